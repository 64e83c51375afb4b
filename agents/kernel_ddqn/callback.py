"""Keeps the kernel of SB3's own DQN fresh."""

from __future__ import annotations

import numpy as np
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback

from agents.common.replay_view import ReplayView
from agents.kernel_ddqn.kernel_ddqn import KernelDDQN
from agents.kernel_ddqn.policies import KernelDQNPolicy
from agents.kernel_ddqn.replay_kernel import ReplayKernel
from skrl.value_heads import NetworkFreeHead


class KernelRefreshCallback(BaseCallback):
    """Refreshes the value head of a :class:`KernelDQNPolicy` inside ``stable_baselines3.DQN``.

    ``DQN(KernelDQNPolicy, env, target_update_interval=100).learn(10_000, callback=KernelRefreshCallback())``. The
    refresh follows the target updates of every rollout and precedes its gradient steps; SB3's own target interval of
    10,000 environment steps leaves the kernel stale for as long.
    """

    model: DQN

    def _init_callback(self) -> None:
        model = self.model
        if not isinstance(model, DQN) or not isinstance(model.policy, KernelDQNPolicy):
            raise ValueError(
                f"KernelRefreshCallback needs a DQN with a KernelDQNPolicy, but got {type(model).__name__} with "
                f"{type(model.policy).__name__}; build it as DQN(KernelDQNPolicy, env)"
            )
        if isinstance(model, KernelDDQN):
            raise ValueError(f"{type(model).__name__} refreshes its own kernel; leave KernelRefreshCallback out")
        policy = model.policy
        if isinstance(policy.q_net.head, NetworkFreeHead):
            raise ValueError("DQN trains a network, but kernel.head is 'network_free'; use the KernelQ algorithm")
        view = ReplayView.of(model)
        rng = np.random.default_rng(model.seed)
        self.kernel = ReplayKernel(policy.q_net, policy.q_net_target, view, rng, hard_updates=model.tau == 1.0)
        self._updates_seen = self._target_updates()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        # The rollout's target updates lie behind and its gradient steps ahead, so a copied network is still equal.
        updates = self._target_updates()
        if updates > self._updates_seen and self.model.num_timesteps > self.model.learning_starts:
            self.kernel.refresh(self.model.num_timesteps)
            self._updates_seen = updates

    def _target_updates(self) -> int:
        model = self.model
        return model._n_calls // max(model.target_update_interval // model.n_envs, 1)
