"""Stable-Baselines3 algorithms and policies with Sparse Kernels as value heads."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from agents.startup import check_installation

check_installation()

from agents.common.extras import missing_from_zoo  # noqa: E402  a foreign `skrl` must be named before any import of it
from agents.common.nonfinite import NonFiniteError  # noqa: E402
from agents.common.schema import ConfigError  # noqa: E402
from agents.double_dqn import DoubleDQN  # noqa: E402
from agents.dqk import DQK, DQKCnnPolicy, DQKMultiInputPolicy, DQKPolicy, PerturbationConfig  # noqa: E402
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

if TYPE_CHECKING:
    from agents.kernel_qrdqn import KernelQRDQN

__all__ = [
    "DQK",
    "ActionKernelConfig",
    "AgentProbe",
    "ConfigError",
    "CriticConfig",
    "DQKCnnPolicy",
    "DQKMultiInputPolicy",
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
    "NonFiniteError",
    "NormalizedPPO",
    "PerturbationConfig",
    "attach_kernel_head",
    "probe_agent",
    "ram_variables",
]
if find_spec("sb3_contrib") is not None:
    __all__ += ["KernelQRDQN"]


def __getattr__(name: str) -> Any:
    """KernelQRDQN, which needs sb3-contrib, when it is asked for."""
    if name != "KernelQRDQN":
        raise AttributeError(f"module 'agents' has no attribute '{name}'")
    try:
        from agents.kernel_qrdqn import KernelQRDQN
    except ModuleNotFoundError as error:
        raise ImportError(missing_from_zoo(name, error)) from error
    return KernelQRDQN
