"""The agents by name: which algorithm, which settings, which spaces."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import DQN, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv

from agents.common.extras import missing_from_zoo
from agents.common.features import is_numbered
from agents.common.lengthscale import separates
from agents.common.schema import ConfigError, nearest
from agents.double_dqn import DoubleDQN
from agents.dqk import DQK
from agents.kernel_actor_critic import KernelSAC, KernelTD3
from agents.kernel_ddqn import KernelConfig, KernelDDQN, KernelQ
from agents.kernel_ppo import CriticConfig, KernelPPO
from agents.normalized_ppo import NormalizedPPO, can_normalize
from agents.training.config import (
    ActorCriticConfig,
    DoubleDQNConfig,
    DQKConfig,
    DQNConfig,
    KernelDDQNConfig,
    KernelPPOConfig,
    KernelQConfig,
    KernelQuantileConfig,
    KernelSACConfig,
    KernelTD3Config,
    NetworkConfig,
    PPOConfig,
    QLearningConfig,
    QuantileConfig,
    RunConfig,
    SACConfig,
    TD3Config,
)
from agents.training.served_spaces import action_fault, fitting_policy, observation_fault

CONTINUOUS = (spaces.Box,)
EVERY_ACTION = (spaces.Discrete, spaces.Box, spaces.MultiDiscrete, spaces.MultiBinary)
OF_THE_NETWORK = {"policy", "net_arch", "n_quantiles"}
SCHEDULED = ("learning_rate", "clip_range")
OF_DISTANCES = ("lengthscale_factor", "lengthscale_rule")


@dataclass(frozen=True)
class AgentSpec:
    """What there is to know about an agent before it is built."""

    name: str
    """Name on the command line and in run folders."""

    source: type[BaseAlgorithm] | str
    """Class of the algorithm, or `module.Class` in a package that need not be installed."""

    config: type[RunConfig]
    """Class of its settings: exactly those that the algorithm honours."""

    description: str
    """One sentence for users."""

    head: str | None = None
    """The only `kernel.head` that deserves the agent's name; None without a kernel."""

    action_spaces: tuple[type[spaces.Space[Any]], ...] = (spaces.Discrete,)
    """Action spaces that it serves."""

    @property
    def algorithm(self) -> type[BaseAlgorithm]:
        """Class of the algorithm.

        Raises:
            ConfigError: its package is not installed.
        """
        if not isinstance(self.source, str):
            return self.source
        module, _, name = self.source.rpartition(".")
        try:
            found: type[BaseAlgorithm] = getattr(importlib.import_module(module), name)
        except ModuleNotFoundError as error:
            raise ConfigError(missing_from_zoo(f"agent '{self.name}'", error)) from error
        return found

    @property
    def sums_rewards_of_dicts(self) -> bool:
        """Whether n-step returns serve dict observations, which Stable-Baselines3's own replay buffer refuses."""
        return issubclass(self.algorithm, KernelDDQN)


AGENTS = {
    spec.name: spec
    for spec in (
        AgentSpec("dqn", DQN, DQNConfig, "Deep Q-network, Stable-Baselines3's own."),
        AgentSpec("zoo_dqn", DQN, DQNConfig, "Deep Q-network with RL Zoo's published settings."),
        AgentSpec("qrdqn", "sb3_contrib.QRDQN", QuantileConfig, "Quantile regression DQN with RL Zoo's settings."),
        AgentSpec(
            "ppo",
            NormalizedPPO,
            PPOConfig,
            "Proximal policy optimisation, with RL Zoo's settings where configs/ppo.yaml has a section.",
            action_spaces=EVERY_ACTION,
        ),
        AgentSpec("ddqn", DoubleDQN, DoubleDQNConfig, "Double DQN."),
        AgentSpec("ddqn_1step", DoubleDQN, DoubleDQNConfig, "Double DQN with one-step returns."),
        AgentSpec("ddqn_more", DoubleDQN, DoubleDQNConfig, "Double DQN with half as many gradient steps again."),
        AgentSpec(
            "kernel_ddqn", KernelDDQN, KernelDDQNConfig, "Double DQN corrected by local kernel regression.", "residual"
        ),
        AgentSpec(
            "knn_ddqn", KernelDDQN, KernelDDQNConfig, "Double DQN corrected by an average of neighbours.", "averaging"
        ),
        AgentSpec("dqk", DQK, DQKConfig, "Double DQN with learned kernels inside its network."),
        AgentSpec(
            "qrdqn_3step", "sb3_contrib.QRDQN", QuantileConfig, "Quantile regression DQN with kernel_qrdqn's settings."
        ),
        AgentSpec(
            "kernel_qrdqn",
            "agents.kernel_qrdqn.KernelQRDQN",
            KernelQuantileConfig,
            "Quantile regression DQN corrected by local kernel regression.",
            "residual",
        ),
        AgentSpec(
            "kernel_q", KernelQ, KernelQConfig, "Kernel value iteration on the replay memory alone.", "network_free"
        ),
        AgentSpec(
            "kernel_ppo",
            KernelPPO,
            KernelPPOConfig,
            "PPO whose critic a kernel over its rollouts corrects.",
            action_spaces=EVERY_ACTION,
        ),
        AgentSpec("sac", SAC, SACConfig, "Soft actor-critic, Stable-Baselines3's own.", action_spaces=CONTINUOUS),
        AgentSpec(
            "kernel_sac",
            KernelSAC,
            KernelSACConfig,
            "Soft actor-critic with a kernel over replayed state-action pairs behind its target critics.",
            action_spaces=CONTINUOUS,
        ),
        AgentSpec(
            "td3", TD3, TD3Config, "Twin delayed policy gradients, Stable-Baselines3's.", action_spaces=CONTINUOUS
        ),
        AgentSpec(
            "kernel_td3",
            KernelTD3,
            KernelTD3Config,
            "Twin delayed policy gradients with a kernel over replayed state-action pairs behind their target critics.",
            action_spaces=CONTINUOUS,
        ),
    )
}


def find_agent(name: str) -> AgentSpec:
    """Look an agent up.

    Raises:
        ConfigError: no such agent; the message names the nearest one.
    """
    if name not in AGENTS:
        raise ConfigError(f"unknown agent '{name}'; did you mean '{nearest(name, AGENTS)}'? Known: {', '.join(AGENTS)}")
    return AGENTS[name]


def build_model(config: RunConfig, env: VecEnv) -> BaseAlgorithm:
    """Build the untrained algorithm that a configuration describes.

    Args:
        config: settings of the run; its class must be the agent's own.
        env: training environment.

    Returns:
        The algorithm, seeded.

    Raises:
        ConfigError: the configuration is of another agent, or the agent does not serve the environment's spaces.
    """
    spec = find_agent(config.agent)
    check_config(spec, config)
    check_spaces(spec, config.env, env)
    check_device(config.device)
    check_observations(spec, config, env.observation_space)
    of_the_run = {field.name for field in fields(RunConfig)} | OF_THE_NETWORK
    arguments = {field.name: getattr(config, field.name) for field in fields(config) if field.name not in of_the_run}
    for name in SCHEDULED:
        if arguments.pop(f"{name}_schedule", "constant") == "linear":
            arguments[name] = LinearSchedule(arguments[name], 0.0, 1.0)
    arguments["policy"] = fitting_policy("auto", env.observation_space)
    if isinstance(config, NetworkConfig):
        arguments["policy"] = fitting_policy(config.policy, env.observation_space)
        arguments["policy_kwargs"] = {"net_arch": list(config.net_arch)}
    if isinstance(config, QuantileConfig):
        arguments["policy_kwargs"]["n_quantiles"] = config.n_quantiles
    if (deviation := arguments.pop("action_noise_std", 0.0)) > 0.0:
        shape = env.action_space.shape or (1,)  # NumPy draws no array of shape ()
        arguments["action_noise"] = NormalActionNoise(np.zeros(shape), np.full(shape, deviation))
    build: Callable[..., BaseAlgorithm] = spec.algorithm
    return build(env=env, seed=config.seed, device=config.device, verbose=config.verbose, **arguments)


def check_config(spec: AgentSpec, config: RunConfig) -> None:
    """Make sure that settings are of the agent's class and that the value head is the one it is named for.

    Raises:
        ConfigError: they are not.
    """
    if type(config) is not spec.config:
        raise ConfigError(f"agent '{spec.name}' takes a {spec.config.__name__}, not a {type(config).__name__}")
    kernel = getattr(config, "kernel", None)
    if isinstance(kernel, KernelConfig) and kernel.head != spec.head:
        owners = [other.name for other in AGENTS.values() if other.head == kernel.head]
        raise ConfigError(
            f"agent '{spec.name}' has kernel.head '{spec.head}'; for '{kernel.head}' use --agent {owners[0]}"
        )


def check_spaces(spec: AgentSpec, env_id: str, env: VecEnv) -> None:
    """Make sure that the agent can act in an environment.

    Raises:
        ConfigError: it cannot; the message says which agents can, or what to use instead.
    """
    if not isinstance(env.action_space, spec.action_spaces):
        able = [other.name for other in AGENTS.values() if isinstance(env.action_space, other.action_spaces)]
        remedy = f"use --agent {' or '.join(able)}" if able else "no agent serves it: wrap it into a Discrete or a Box"
        needed = " or ".join(space.__name__ for space in spec.action_spaces)
        raise ConfigError(
            f"{env_id} has the action space {env.action_space}, but {spec.name} needs {needed} actions; {remedy}"
        )
    if fault := action_fault(env.action_space):
        raise ConfigError(
            f"{env_id} has the action space {env.action_space}, which {spec.name} does not serve: {fault}"
        )


def check_observations(spec: AgentSpec, config: RunConfig, space: spaces.Space[Any]) -> None:
    """Make sure that the agent can read such observations, and honour its settings for them.

    Raises:
        ConfigError: it cannot; the message says what is wrong with the space, or names the setting to change.
    """
    fault = observation_fault(space)
    if fault and not (isinstance(config, KernelQConfig) and reads_numbers(config.kernel, space)):
        raise ConfigError(f"{config.env} has the observation space {space}, which {spec.name} does not serve: {fault}")
    sums = not isinstance(space, spaces.Dict) or spec.sums_rewards_of_dicts
    if isinstance(config, QLearningConfig | ActorCriticConfig) and config.n_steps > 1 and not sums:
        raise ConfigError(f"{config.env} has dict observations, for which {spec.name} needs --n-steps 1")
    if isinstance(config, PPOConfig) and config.normalize and not can_normalize(space):
        raise ConfigError(f"{config.env} has the observation space {space}, which is no vector; add --no-normalize")
    if isinstance(config, PPOConfig) and config.normalize and not np.issubdtype(space.dtype, np.floating):
        raise ConfigError(f"{config.env} has the observation space {space}, of whole numbers; add --no-normalize")
    kernel = getattr(config, "kernel", None)
    if isinstance(kernel, KernelConfig | CriticConfig) and reads_numbers(kernel, space):
        for name in OF_DISTANCES:
            if (value := getattr(kernel, name)) != getattr(type(kernel), name):
                raise ConfigError(
                    f"kernel.{name} is {value}, but the states of {config.env} are numbers, which the kernel tells "
                    f"apart and does not compare; leave {name} out"
                )


def reads_numbers(kernel: KernelConfig | CriticConfig, space: spaces.Space[Any]) -> bool:
    """Whether the kernel tells states apart by their numbers, from whatever these count, and needs no network to."""
    return is_numbered(space) and separates(kernel)


def check_device(name: str) -> None:
    """Make sure that a torch device exists here, where Stable-Baselines3 would quietly take another one.

    Raises:
        ConfigError: it does not.
    """
    present = _devices()
    if name not in present:
        raise ConfigError(f"device is '{name}', but this machine has {', '.join(present)}")


def present_device(name: str) -> str:
    """The device where a run was trained, or `auto` where this machine lacks it."""
    return name if name in _devices() else "auto"


def _devices() -> list[str]:
    present = ["auto", "cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    present += ["cuda"] if torch.cuda.is_available() else []
    return present + (["mps"] if torch.backends.mps.is_available() else [])
