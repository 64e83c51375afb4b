"""Double DQN whose network learned Sparse Kernels perturb."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar

from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv

from agents.common.policy_kernel_settings import PolicyKernelSettings
from agents.common.replay_view import ReplayView
from agents.double_dqn import DoubleDQN
from agents.dqk.perturbation_config import PerturbationConfig
from agents.dqk.perturbed_q_network import PerturbedQNetwork
from agents.dqk.policies import DQKCnnPolicy, DQKMultiInputPolicy, DQKPolicy

GROWTH = 2
"""Supports are placed anew when the replay buffer holds so many times what it held the last time."""


class DQK(PolicyKernelSettings, DoubleDQN):
    """Deep Q-kernel: the hybrid agent of the Sparse Kernel paper, trained end to end by Double DQN's update.

    J.-M. Mercier and G. Santin, *Differentiable Kernel Ridge Regression for Deep Learning Pipelines*, 2026, arXiv
    2605.02313. Where :class:`~agents.kernel_ddqn.KernelDDQN` solves for the correction that its memory asks for, here
    supports and targets are parameters, learned by the gradient like every other layer. Supports begin as different
    transitions' observations, drawn from the replay buffer at the first update at which it holds enough of them. They
    are drawn anew whenever it holds twice as many as then, with what the kernels said there as their targets.

    Takes every argument of :class:`DoubleDQN`, by name. The policy is ``MlpPolicy``, ``CnnPolicy``,
    ``MultiInputPolicy`` or a subclass of :class:`DQKPolicy`.

    Args:
        policy: as said.
        env: environment with discrete actions, or its id.
        kernel: settings of the kernel, as a :class:`PerturbationConfig` or a mapping of some of its fields.
        **kwargs: as for :class:`DoubleDQN`.

    Raises:
        ConfigError: a setting of the kernel is unknown, of the wrong type or out of range.
        ValueError: the policy has no such kernels, or the replay buffer cannot be read by slot
            (:class:`HerReplayBuffer`, say) or is too small for the supports.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": DQKPolicy,
        "CnnPolicy": DQKCnnPolicy,
        "MultiInputPolicy": DQKMultiInputPolicy,
    }
    needed_policy: ClassVar[type[BasePolicy]] = DQKPolicy

    q_net: PerturbedQNetwork
    q_net_target: PerturbedQNetwork
    policy: DQKPolicy

    def __init__(
        self,
        policy: str | type[DQKPolicy],
        env: GymEnv | str | None,
        *,
        kernel: PerturbationConfig | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.kernel_settings = None if kernel is None else asdict(PerturbationConfig.read(kernel))
        # Transitions in the buffer when supports were placed the last time; a saved model knows it.
        self.transitions_at_placement = 0
        super().__init__(policy, env, **kwargs)

    def _after_new_parameters(self) -> None:
        """Supports among them count as placed among what the buffer holds now."""
        if self.q_net.is_placed and self.transitions_at_placement == 0:
            self.transitions_at_placement = max(self.policy.kernel.capacity, self._stored())

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """Gradient steps on the network and the kernels; arguments as in :class:`DoubleDQN`."""
        assert self.replay_buffer is not None
        stored, last = self._stored(), self.transitions_at_placement
        if stored >= max(self.policy.kernel.capacity, GROWTH * last) or (self.replay_buffer.full and last == 0):
            self._place_supports(stored)
        super().train(gradient_steps, batch_size)

    def dump_logs(self) -> None:
        """Write SB3's log and the ``kernel/`` scalars."""
        if self.q_net.is_placed:
            for name, value in self.q_net.scalars.items():
                self.logger.record(f"kernel/{name}", value)
        super().dump_logs()

    def _setup_model(self) -> None:
        super()._setup_model()
        ReplayView.of(self)  # refuses a buffer that cannot be read so

    def _stored(self) -> int:
        """Transitions in the buffer."""
        return 0 if self.replay_buffer is None else self.replay_buffer.size() * self.n_envs

    def _place_supports(self, stored: int) -> None:
        view, count = ReplayView.of(self), self.policy.kernel.capacity
        slots = view.slots()
        if len(slots) < count:
            raise ValueError(
                f"the replay buffer holds {len(slots)} transitions, too few for {count} supports; "
                "raise buffer_size or lower kernel.capacity"
            )
        observations = view.observations(self.rng.choice(slots, count, replace=False))
        for network in (self.q_net, self.q_net_target):
            network.place_supports(observations)
        for parameter in self.q_net.perturbation.parameters():
            # Moments of the supports of until now say nothing about these.
            self.policy.optimizer.state.pop(parameter, None)
        self.transitions_at_placement = stored
