"""A kernel for updates that ask the corrected target network itself, as those of SB3 do."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from agents.common.replay_view import ReplayView, check_returns
from agents.kernel_ddqn.kernel_policy import KernelPolicy
from agents.kernel_ddqn.replay_kernel import ReplayKernel
from skrl.value_heads import NetworkFreeHead


class LiveKernel(ReplayKernel):
    """Follows the target updates of a model, whose policy carries the heads.

    Corrections of stored states are kept only where backups go on from them.

    Args:
        model: one that copies an online network every ``target_update_interval`` steps, as DQN and QRDQN do.
        rng: source of every random choice.

    Raises:
        ValueError: the head knows no network, the replay buffer cannot be read by slot, or it sums other n-step returns
            than the model is asked for.
    """

    serves_minibatches: ClassVar[bool] = False

    def __init__(self, model: OffPolicyAlgorithm, rng: np.random.Generator) -> None:
        policy = model.policy
        assert isinstance(policy, KernelPolicy)
        if isinstance(policy.online.head, NetworkFreeHead):
            raise ValueError(
                f"{type(model).__name__} trains a network, but kernel.head is 'network_free'; use the KernelQ algorithm"
            )
        check_returns(model)
        self.model = model
        super().__init__(policy.online, policy.target, ReplayView.of(model), rng)
        self._updates_seen: int | None = None

    def after_rollout(self) -> None:
        """Refresh if the target network was updated since the last time; to be called before gradient steps.

        The rollout's target updates lie behind and its gradient steps ahead, so a copied network is still equal. The
        first call refreshes in any case: how old the residuals of a loaded head are, nobody knows.
        """
        self.extend()
        updates = self._target_updates()
        if updates != self._updates_seen and self.model.num_timesteps > self.model.learning_starts:
            self.refresh(self.model.num_timesteps)
            self._updates_seen = updates

    def _target_updates(self) -> int:
        model: Any = self.model  # DQN and QRDQN count alike, though no class of SB3 says so
        return int(model._n_calls // max(model.target_update_interval // model.n_envs, 1))
