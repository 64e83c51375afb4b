"""Keeps the kernel of SB3's own DQN fresh."""

from __future__ import annotations

import numpy as np
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback

from agents.common.replay_view import ReplayView
from agents.kernel_ddqn.policies import KernelDQNPolicy
from agents.kernel_ddqn.replay_kernel import ReplayKernel


class KernelRefreshCallback(BaseCallback):
    """Refreshes the value head of a :class:`KernelDQNPolicy` inside ``stable_baselines3.DQN``.

    ``DQN(KernelDQNPolicy, env).learn(10_000, callback=KernelRefreshCallback())``. The refresh follows every target
    update of the model after ``learning_starts``.
    """

    model: DQN

    def _init_callback(self) -> None:
        if not isinstance(self.model, DQN) or not isinstance(self.model.policy, KernelDQNPolicy):
            raise ValueError(
                f"KernelRefreshCallback needs a DQN with a KernelDQNPolicy, but got {type(self.model).__name__} with "
                f"{type(self.model.policy).__name__}; build it as DQN(KernelDQNPolicy, env)"
            )
        model = self.model
        assert model.replay_buffer is not None
        view = ReplayView(model.replay_buffer, model.n_steps, model.gamma, model._vec_normalize_env)
        policy = self.model.policy
        rng = np.random.default_rng(model.seed)
        self.kernel = ReplayKernel(policy.q_net, policy.q_net_target, view, rng, hard_updates=model.tau == 1.0)
        self._calls_at_refresh = 0

    def _on_step(self) -> bool:
        model = self.model
        # SB3 calls back before it updates the target, so an update is seen one step later: after it, as must be.
        calls, interval = model._n_calls, max(model.target_update_interval // model.n_envs, 1)
        if calls // interval > self._calls_at_refresh // interval and model.num_timesteps > model.learning_starts:
            self.kernel.refresh(model.num_timesteps)
            self._calls_at_refresh = calls
        return True
