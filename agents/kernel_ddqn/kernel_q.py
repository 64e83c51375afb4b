"""Kernel value iteration on the replay memory, without a network and without a gradient step."""

from __future__ import annotations

from typing import Any, ClassVar

from stable_baselines3.common.type_aliases import GymEnv

from agents.kernel_ddqn.kernel_ddqn import KernelDDQN
from agents.kernel_ddqn.policies import KernelDQNPolicy

GRADIENT_SETTINGS = ("learning_rate", "batch_size", "gradient_steps", "tau", "max_grad_norm", "huber_threshold")

KERNEL: dict[str, Any] = {"head": "network_free", "k": 32, "ridge": 0.1, "sweeps": 20, "exploration": "lookahead"}
"""Settings in place of those of KernelConfig: no network carries values on, so the memory has to fit them itself."""


class KernelQ(KernelDDQN):
    """Network-free agent: the replay memory alone carries the action values.

    Every ``target_update_interval`` environment steps the values of the supports are backed up ``kernel.sweeps`` times,
    and optimistic ones that exploring follows. For observations of a few dimensions; in more, neighbours are too far
    away to say much.

    Args:
        policy: as in :class:`KernelDDQN`.
        env: as in :class:`KernelDDQN`.
        **kwargs: as in :class:`KernelDDQN`, without those in :data:`GRADIENT_SETTINGS`; the kernel's other defaults are
            :data:`KERNEL`, and its head must be the network-free one.

    Raises:
        ValueError: a setting of the gradient step was given, which this agent could not honour.
    """

    heads: ClassVar[tuple[str, ...]] = ("network_free",)
    kernel_defaults: ClassVar[dict[str, Any]] = KERNEL

    def __init__(self, policy: str | type[KernelDQNPolicy], env: GymEnv | str | None, **kwargs: Any) -> None:
        for name in GRADIENT_SETTINGS:
            if name in kwargs:
                raise ValueError(
                    f"KernelQ takes no gradient steps, so {name}={kwargs[name]!r} has no meaning; leave it out"
                )
        self._bad_transitions = 0
        super().__init__(policy, env, **kwargs)
        self.nonfinite_guard.complaint = "rollouts in a row brought values that are not finite"

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """Nothing to fit: the values change at refreshes only. Counts as updates for SB3's log.

        Raises:
            NonFiniteError: every one of many rollouts in a row brought values that are not finite.
        """
        finite = self.nonfinite_guard.transitions == self._bad_transitions
        self._bad_transitions = self.nonfinite_guard.transitions
        self.nonfinite_guard.check_update(self.num_timesteps, finite)
        self._n_updates += gradient_steps
        self.logger.record("train/nonfinite_skipped", self.nonfinite_guard.skipped)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
