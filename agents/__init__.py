"""Stable-Baselines3 algorithms and policies with Sparse Kernels as value heads."""

from agents.startup import check_installation

check_installation()

from agents.double_dqn import DoubleDQN  # noqa: E402  a foreign `skrl` must be named before anything imports from it
from agents.dqk import DQK, DQKPolicy, PerturbationConfig  # noqa: E402
from agents.kernel_actor_critic import ActionKernelConfig, KernelSAC, KernelTD3  # noqa: E402
from agents.kernel_ddqn import (  # noqa: E402
    KernelCnnPolicy,
    KernelConfig,
    KernelDDQN,
    KernelDQNPolicy,
    KernelMultiInputPolicy,
    KernelQ,
    KernelRefreshCallback,
    attach_kernel_head,
)
from agents.kernel_ppo import CriticConfig, KernelPPO  # noqa: E402
from agents.normalized_ppo import NormalizedPPO  # noqa: E402
from agents.probing import AgentProbe, probe_agent, ram_variables  # noqa: E402

__all__ = [
    "DQK",
    "ActionKernelConfig",
    "AgentProbe",
    "CriticConfig",
    "DQKPolicy",
    "DoubleDQN",
    "KernelCnnPolicy",
    "KernelConfig",
    "KernelDDQN",
    "KernelDQNPolicy",
    "KernelMultiInputPolicy",
    "KernelPPO",
    "KernelQ",
    "KernelRefreshCallback",
    "KernelSAC",
    "KernelTD3",
    "NormalizedPPO",
    "PerturbationConfig",
    "attach_kernel_head",
    "probe_agent",
    "ram_variables",
]
