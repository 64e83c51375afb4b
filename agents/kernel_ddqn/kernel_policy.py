"""A deep Q-learning policy whose online and target networks carry a value head, whatever they predict."""

from __future__ import annotations

import sys
import warnings
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule

from agents.kernel_ddqn.kernel_config import KernelConfig
from agents.kernel_ddqn.kernel_network import KernelNetwork
from skrl.shapes import Tensor

LIBRARIES = ("agents", "stable_baselines3", "sb3_contrib")
"""Packages whose code no user wrote."""


class KernelPolicy(BasePolicy):
    """Mixed in before a policy of SB3 that has an online and a target network.

    Args:
        observation_space: vector, image or dict space.
        action_space: discrete.
        lr_schedule: learning rate over the remaining progress.
        kernel: settings of the head, as a :class:`KernelConfig` or a mapping of some of its fields.
        **kwargs: everything that the policy takes.

    Raises:
        ConfigError: a setting of the head is unknown, of the wrong type or out of range.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Discrete,
        lr_schedule: Schedule,
        *,
        kernel: KernelConfig | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        # Set first: the parent's constructor builds the networks.
        self.kernel = KernelConfig.read(kernel)
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)
        # The online network acts, the target network gives the targets of SB3's own update.
        self.online.corrects = self.kernel.applies_to != "targets"
        self.target.corrects = self.kernel.applies_to != "acting"
        self.set_training_mode(False)

    @property
    @abstractmethod
    def online(self) -> KernelNetwork:
        """The network that acts and learns."""

    @property
    @abstractmethod
    def target(self) -> KernelNetwork:
        """The network that evaluates next states in targets."""

    def warn_of_empty(self, buffer: ReplayBuffer) -> None:
        """Say that learning on from an empty buffer forgets what the head remembers.

        Args:
            buffer: what supports will be chosen from.
        """
        remembered = int(self.online.head.memory.mask.sum())
        if remembered and buffer.size() == 0:
            warnings.warn(
                f"the kernel remembers {remembered} transitions, but the replay buffer is empty: they are forgotten at "
                "the first refresh. Save the buffer beside the model, save_replay_buffer(…), and load_replay_buffer(…) "
                "before learning goes on",
                stacklevel=_levels_to_user(),
            )

    def _predict(self, obs: PyTorchObs, deterministic: bool = True) -> Tensor:
        """Greedy actions, [B]; when exploring, by values that say what is not known."""
        if deterministic or self.online.bonus == 0.0:
            return super()._predict(obs, deterministic=deterministic)  # type: ignore[safe-super]  # of the policy
        return self.online.exploring_values(obs).argmax(dim=1)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "kernel": asdict(self.kernel)}


def _levels_to_user() -> int:
    """Levels of the stack from who calls this to the first function that is neither ours nor SB3's."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in LIBRARIES:
        level, frame = level + 1, frame.f_back
    return level
