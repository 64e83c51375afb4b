"""Keeps the kernel of SB3's own DQN fresh."""

from __future__ import annotations

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from agents.common.seeding import numpy_generator
from agents.double_dqn import DoubleDQN
from agents.kernel_ddqn.kernel_deep_q import KernelDeepQ
from agents.kernel_ddqn.kernel_policy import KernelPolicy
from agents.kernel_ddqn.live_kernel import LiveKernel


class KernelRefreshCallback(BaseCallback):
    """Refreshes the value head of a kernel policy inside ``stable_baselines3.DQN``, or inside QRDQN of sb3-contrib.

    ``DQN(KernelDQNPolicy, env, target_update_interval=100).learn(10_000, callback=KernelRefreshCallback())``. The
    refresh follows the target updates of every rollout and precedes its gradient steps; SB3's own target interval of
    10,000 environment steps leaves the kernel stale for as long.
    """

    model: OffPolicyAlgorithm

    def _init_callback(self) -> None:
        model = self.model
        if not isinstance(model.policy, KernelPolicy):
            raise ValueError(
                f"KernelRefreshCallback needs a model with a kernel policy, but got {type(model).__name__} with "
                f"{type(model.policy).__name__}; build it as DQN(KernelDQNPolicy, env)"
            )
        if isinstance(model, KernelDeepQ):
            raise ValueError(f"{type(model).__name__} refreshes its own kernel; leave KernelRefreshCallback out")
        if isinstance(model, DoubleDQN):
            raise ValueError(
                f"{type(model).__name__} would choose actions without R, by the network that learns, and value them "
                "with R; use KernelDDQN, which corrects both"
            )
        assert model.replay_buffer is not None
        model.policy.warn_of_empty(model.replay_buffer)
        self.kernel = LiveKernel(model, numpy_generator(model.seed))
        self._set_bonus()

    def _on_step(self) -> bool:
        self._set_bonus()
        # SB3 stores the transitions of this step next.
        self.kernel.table.rows_stored += 1
        if self._logs_next():
            self.kernel.record(self.logger)
        return True

    def _logs_next(self) -> bool:
        """Whether SB3 writes its log after this step: when an episode ends, and every so many of them."""
        interval, ended = self.locals["log_interval"], int(np.sum(self.locals["dones"]))
        before = self.model._episode_num
        return interval is not None and (before + ended) // interval > before // interval

    def _on_training_end(self) -> None:
        # SB3 leaves training mode on, in which the networks answer without R.
        self.model.policy.set_training_mode(False)

    def _on_rollout_end(self) -> None:
        self.kernel.after_rollout()

    def _set_bonus(self) -> None:
        """What exploring adds at present."""
        policy = self.model.policy
        assert isinstance(policy, KernelPolicy)
        policy.online.bonus = policy.kernel.bonus_at(self.model._current_progress_remaining)
