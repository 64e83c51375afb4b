"""Double DQN whose values a kernel corrects by local regression of Bellman residuals over replayed states."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.policies import BasePolicy

from agents.common.replay_view import ReplayView
from agents.double_dqn import DoubleDQN, TransitionBatch
from agents.kernel_ddqn.kernel_deep_q import KernelDeepQ
from agents.kernel_ddqn.policies import (
    KernelCnnPolicy,
    KernelDQNPolicy,
    KernelMultiInputPolicy,
    KernelQNetwork,
)
from agents.kernel_ddqn.replay_kernel import ReplayKernel
from skrl.shapes import Float, Tensor

DEFAULTS: dict[str, Any] = {
    "learning_rate": 5e-4,
    "buffer_size": 100_000,
    "learning_starts": 500,
    "batch_size": 128,
    "train_freq": 4,
    "gradient_steps": 4,
    "n_steps": 3,
    "target_update_interval": 100,
    "exploration_fraction": 0.12,
    "exploration_final_eps": 0.15,
    "exploration_zeta": 2.0,
    "huber_threshold": 4.0,
}
"""Settings in place of those of :class:`DoubleDQN`; SB3's are for millions of steps of Atari."""


class KernelDDQN(KernelDeepQ, DoubleDQN):
    """Kernel-augmented Double DQN.

    The network is the prior mean of a local Gaussian process over replayed states whose observations are Bellman
    residuals: Q(s, ·) = m(s) + R(s, ·), used for acting and inside the targets. ``KernelDDQN("MlpPolicy",
    "CartPole-v1").learn(10_000)`` needs no other settings.

    Takes every argument of :class:`DoubleDQN`, with other :attr:`defaults`, and ``kernel`` and ``bonus_schedule`` of
    :class:`KernelDeepQ`, which says what is refused. The policy is ``MlpPolicy``, ``CnnPolicy``, ``MultiInputPolicy``
    or a subclass of :class:`KernelDQNPolicy`; n-step returns serve every observation space here.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": KernelDQNPolicy,
        "CnnPolicy": KernelCnnPolicy,
        "MultiInputPolicy": KernelMultiInputPolicy,
    }
    defaults: ClassVar[dict[str, Any]] = DEFAULTS
    needed_policy: ClassVar[type[BasePolicy]] = KernelDQNPolicy

    q_net: KernelQNetwork
    q_net_target: KernelQNetwork
    policy: KernelDQNPolicy

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """Gradient steps towards targets that contain the kernel's correction; arguments as in :class:`DoubleDQN`."""
        kernel = self._kernel()
        if self._is_resumed(kernel):
            # The rollout's target updates lie behind, and the next one brings its own refresh.
            kernel.refresh(self.num_timesteps)
        kernel.extend()
        super().train(gradient_steps, batch_size)

    def _setup_model(self) -> None:
        # SB3 refuses n-step returns for dict observations. ReplayView takes them from a plain buffer of any kind.
        n_steps, self.n_steps = self.n_steps, 1
        super()._setup_model()
        self.n_steps = n_steps
        ReplayView.of(self)  # refuses what is no number of rewards
        buffer = self.replay_buffer
        if isinstance(buffer, NStepReplayBuffer) and (buffer.n_steps, buffer.gamma) != (n_steps, self.gamma):
            raise ValueError(
                f"the NStepReplayBuffer is to sum {buffer.n_steps} rewards discounted by {buffer.gamma}, but "
                f"{type(self).__name__} sums what it stores by n_steps={n_steps} and gamma={self.gamma}; leave "
                "replay_buffer_class out, or give both the same"
            )

    def _make_kernel(self) -> ReplayKernel:
        return ReplayKernel(self.q_net, self.q_net_target, ReplayView.of(self), self.rng)

    def _on_step(self) -> None:
        super()._on_step()
        copied = self._n_calls % max(self.target_update_interval // self.n_envs, 1) == 0
        # After the target update, never before: the residuals are relative to the new target network.
        # In a second run the first steps are random again, and the residuals of the first must follow all the same.
        # Asked for only where there is one: making it draws from the generator that exploration draws from.
        known = self.replay_kernel is not None and self._kernel().supports is not None
        if copied and (known or self.num_timesteps > self.learning_starts):
            self._kernel().refresh(self.num_timesteps)

    def _is_resumed(self, kernel: ReplayKernel) -> bool:
        """Whether acting reads supports that minibatches cannot read, since head or buffer were replaced.

        A buffer that holds no more than ``learning_starts``, and is not full, waits for the target update, as in a run
        that begins.
        """
        if kernel.supports is not None or kernel.view.size < min(self.learning_starts + 1, kernel.view.capacity):
            return False
        return bool(kernel.head.memory.mask.any())

    def _sample_batch(self, batch_size: int) -> TransitionBatch:
        kernel = self._kernel()
        view = kernel.view
        slots = view.sample(batch_size, self.rng)
        steps = view.n_step(slots)
        return TransitionBatch(
            observations=view.observations(slots),
            actions=view.actions(slots),
            rewards=torch.from_numpy(steps.rewards).to(self.device),
            discounts=torch.from_numpy(steps.discounts).to(self.device),
            next_observations=view.next_observations(steps.last_slots),
            next_corrections=kernel.next_corrections(steps.last_slots),
        )

    def _next_q_values(
        self, batch: TransitionBatch
    ) -> tuple[Float[Tensor, "batch actions"], Float[Tensor, "batch actions"]]:
        assert batch.next_corrections is not None
        choosing = self.q_net.prior_mean(batch.next_observations) + batch.next_corrections
        return choosing, self.q_net_target.prior_mean(batch.next_observations) + batch.next_corrections
