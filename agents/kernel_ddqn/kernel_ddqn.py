"""Double DQN whose values a kernel corrects by local regression of Bellman residuals over replayed states."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any, ClassVar

import numpy as np
import torch
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from agents.common.head_scalars import head_scalars
from agents.common.replay_view import ReplayView
from agents.double_dqn import DoubleDQN, TransitionBatch
from agents.kernel_ddqn.kernel_config import KernelConfig
from agents.kernel_ddqn.policies import (
    KernelCnnPolicy,
    KernelDQNPolicy,
    KernelMultiInputPolicy,
    KernelQNetwork,
)
from agents.kernel_ddqn.replay_kernel import ReplayKernel
from skrl.shapes import Float, Tensor
from skrl.value_heads import ResidualHead

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
    "exploration_zeta": 2.0,
    "huber_threshold": 4.0,
}
"""Settings in place of those of :class:`DoubleDQN`; SB3's are for millions of steps of Atari."""


class KernelDDQN(DoubleDQN):
    """Kernel-augmented Double DQN.

    The network is the prior mean of a local Gaussian process over replayed states whose observations are Bellman
    residuals: Q(s, ·) = m(s) + R(s, ·), used for acting and inside the targets. ``KernelDDQN("MlpPolicy",
    "CartPole-v1").learn(10_000)`` needs no other settings.

    Args:
        policy: ``MlpPolicy``, ``CnnPolicy``, ``MultiInputPolicy`` or a subclass of :class:`KernelDQNPolicy`.
        env: environment with discrete actions, or its id.
        kernel: settings of the kernel, as a :class:`KernelConfig` or a mapping of some of its fields.
        bonus_schedule: posterior standard deviations that exploring adds, over the remaining progress from 1 to 0, as
            SB3's schedules are; ``kernel.exploration_bonus`` all along when left out.
        **kwargs: every argument of :class:`stable_baselines3.DQN`; the defaults differ where :data:`DEFAULTS` says.
            n-step returns serve every observation space here.

    Raises:
        ValueError: the policy has no kernel, its head is one for another algorithm, or the replay buffer cannot be read
            by slot (:class:`HerReplayBuffer`, say).
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": KernelDQNPolicy,
        "CnnPolicy": KernelCnnPolicy,
        "MultiInputPolicy": KernelMultiInputPolicy,
    }
    heads: ClassVar[tuple[str, ...]] = ("residual", "averaging")
    """Value heads that the algorithm can train with."""

    q_net: KernelQNetwork
    q_net_target: KernelQNetwork
    policy: KernelDQNPolicy
    replay_kernel: ReplayKernel | None

    def __init__(
        self,
        policy: str | type[KernelDQNPolicy],
        env: GymEnv | str | None,
        *,
        kernel: KernelConfig | dict[str, Any] | None = None,
        bonus_schedule: Schedule | None = None,
        **kwargs: Any,
    ) -> None:
        self.bonus_schedule = bonus_schedule
        settings = {**DEFAULTS, **kwargs}
        policy_kwargs = dict(settings.pop("policy_kwargs", None) or {})
        chosen = policy_kwargs.get("kernel") if kernel is None else kernel
        if chosen is not None:
            policy_kwargs["kernel"] = asdict(chosen) if isinstance(chosen, KernelConfig) else dict(chosen)
        policy_kwargs.setdefault("net_arch", self._default_net_arch(policy))
        if policy_kwargs["net_arch"] is None:
            del policy_kwargs["net_arch"]
        self.replay_kernel = None
        super().__init__(policy, env, policy_kwargs=policy_kwargs, **settings)

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """Gradient steps towards targets that contain the kernel's correction; arguments as in :class:`DoubleDQN`."""
        kernel = self._kernel()
        kernel.extend()
        if kernel.trajectories is not None and kernel.trajectories.are_stale:
            kernel.refresh(self.num_timesteps)
        super().train(gradient_steps, batch_size)

    def dump_logs(self) -> None:
        """Write SB3's log and the ``kernel/`` scalars."""
        if self.replay_kernel is not None and self.replay_kernel.supports is not None:
            for name, value in self._kernel_scalars(self.replay_kernel).items():
                self.logger.record(f"kernel/{name}", value)
        super().dump_logs()

    def _default_net_arch(self, policy: str | type[KernelDQNPolicy]) -> list[int] | None:
        """Two layers of 256 on vectors and dicts; none beyond ``NatureCNN``'s own on images, as in SB3."""
        images = policy == "CnnPolicy" or (isinstance(policy, type) and issubclass(policy, KernelCnnPolicy))
        return None if images else [256, 256]

    def _setup_model(self) -> None:
        # SB3 refuses n-step returns for dict observations. ReplayView takes them from a plain buffer of any kind.
        n_steps, self.n_steps = self.n_steps, 1
        super()._setup_model()
        self.n_steps = n_steps
        self.replay_kernel = None
        name = type(self).__name__
        if not isinstance(self.policy, KernelDQNPolicy):
            raise ValueError(
                f"{name} needs a KernelDQNPolicy, but got {type(self.policy).__name__}; use 'MlpPolicy', 'CnnPolicy' "
                "or 'MultiInputPolicy'"
            )
        head = self.policy.kernel.head
        if head not in self.heads:
            raise ValueError(
                f"kernel.head is '{head}', but {name} takes {' or '.join(self.heads)}; "
                "'network_free' belongs to KernelQ, the others to KernelDDQN"
            )
        ReplayView.of(self)  # refuses a buffer that cannot be read so
        self._set_bonus()

    def _set_bonus(self) -> None:
        """What exploring adds at present, where a schedule says it."""
        if self.bonus_schedule is not None:
            self.q_net.bonus = float(self.bonus_schedule(self._current_progress_remaining))

    def _kernel(self) -> ReplayKernel:
        """The kernel bound to the present buffer and normalisation; made anew when either was replaced."""
        view = None if self.replay_kernel is None else self.replay_kernel.view
        if view is None or view.buffer is not self.replay_buffer or view.vec_normalize is not self._vec_normalize_env:
            self.replay_kernel = ReplayKernel(
                self.q_net, self.q_net_target, ReplayView.of(self), self.rng, hard_updates=self.tau == 1.0
            )
        assert self.replay_kernel is not None
        return self.replay_kernel

    def _on_step(self) -> None:
        super()._on_step()
        self._set_bonus()
        copied = self._n_calls % max(self.target_update_interval // self.n_envs, 1) == 0
        # After the target update, never before: the residuals are relative to the new target network.
        if copied and self.num_timesteps > self.learning_starts:
            self._kernel().refresh(self.num_timesteps)

    def _gradient_step(self, batch_size: int) -> dict[str, Tensor]:
        kernel = self._kernel()
        trajectories, view = kernel.trajectories, kernel.view
        if trajectories is None:
            return super()._gradient_step(batch_size)
        slots = trajectories.sample(batch_size, self.rng)
        return self._regress(view.observations(slots), view.actions(slots), trajectories.lookup(slots))

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

    def _kernel_scalars(self, kernel: ReplayKernel) -> dict[str, float]:
        head, diagnostics = kernel.head, kernel.diagnostics
        seconds, diagnostics.refresh_seconds = diagnostics.refresh_seconds, []
        solve = {"ridge": head.ridge, "leave_one_out_error": float(diagnostics.leave_one_out_error)}
        return {
            **head_scalars(head),
            **(solve if isinstance(head, ResidualHead) else {}),
            "supports_smallest_action": float(head.memory.sizes.min()),
            "variance_mean": float(diagnostics.variance_mean),
            "greedy_changed_share": float(diagnostics.changed_share),
            "refresh_ms": 1e3 * float(np.mean(seconds)) if seconds else 0.0,
            "query_ms": self._query_ms(),
        }

    def _query_ms(self) -> float:
        """Milliseconds of one correction as acting asks for it, measured on the last observation."""
        if self._last_obs is None:
            return 0.0
        observation, _ = self.policy.obs_to_tensor(self._last_obs)
        with torch.no_grad():
            started = time.perf_counter()
            # Reading the result waits for an accelerator to finish.
            self.q_net.head.correction(self.q_net.feature_map(observation)).sum().item()
            return 1e3 * (time.perf_counter() - started)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "replay_kernel"]
