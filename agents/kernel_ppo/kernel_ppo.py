"""PPO whose critic is a network, corrected by a kernel over the states of its rollouts."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, TensorDict
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from agents.common.observations import joined
from agents.kernel_ppo.critic_config import CriticConfig
from agents.kernel_ppo.rollout_critic import RolloutCritic
from agents.kernel_ppo.time_limits import Cuts, TimeLimits
from agents.normalized_ppo import NormalizedPPO


class KernelPPO(NormalizedPPO):
    """PPO with advantages from a kernel-corrected critic.

    Every rollout is collected as PPO does. Before it is learned from, its states get the values m(s) + R(s), where R is
    a local regression of what the critic m missed of the returns; advantages and the critic's targets are computed anew
    from them, so that m absorbs R. Acting is the policy network's alone, and nothing of the kernel is needed for it.
    See :class:`~agents.kernel_ppo.rollout_critic.RolloutCritic`.

    Args:
        policy: as for PPO.
        env: as for PPO.
        *args: as for PPO.
        kernel: settings of the kernel, as a :class:`CriticConfig` or a mapping of some of its fields.
        normalize: scale observations and rewards by running statistics, as :class:`NormalizedPPO` does.
        **kwargs: as for PPO.
    """

    critic: RolloutCritic

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        *args: Any,
        kernel: CriticConfig | Mapping[str, Any] | None = None,
        normalize: bool = False,
        **kwargs: Any,
    ) -> None:
        self.kernel = asdict(CriticConfig.read(kernel))
        super().__init__(policy, env, *args, normalize=normalize, **kwargs)

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Collect as PPO does, then correct advantages and value targets; False where a callback stopped it."""
        limits = TimeLimits(env)
        if not super().collect_rollouts(limits, callback, rollout_buffer, n_rollout_steps):
            return False
        assert self._last_obs is not None
        last_observations = obs_as_tensor(self._last_obs, self.device)
        dones = np.asarray(self._last_episode_starts, dtype=np.bool_)
        self.critic.correct(
            rollout_buffer, self.policy.predict_values, last_observations, dones, _reward_scale(env), self._cuts(limits)
        )
        for name, value in self.critic.scalars.items():
            self.logger.record(f"kernel/{name}", value)
        return True

    def set_parameters(
        self,
        load_path_or_dict: str | TensorDict,
        exact_match: bool = True,
        device: torch.device | str = "auto",
    ) -> None:
        """Take over parameters as SB3 does; returns of the old policy are forgotten."""
        super().set_parameters(load_path_or_dict, exact_match, device)
        self.critic.forget()

    def _cuts(self, limits: TimeLimits) -> Cuts | None:
        """Where time limits cut episodes of the last rollout, for the critic."""
        if not limits.found:
            return None
        rows, copies, last = zip(*limits.found, strict=True)
        observations = [self.policy.obs_to_tensor(observation)[0] for observation in last]
        return Cuts(np.array(rows), np.array(copies), functools.reduce(joined, observations))

    def _setup_model(self) -> None:
        super()._setup_model()
        self.critic = RolloutCritic(
            self.observation_space,
            CriticConfig.read(self.kernel),
            self.policy.normalize_images,
            self.device,
            np.random.default_rng(self.seed),
        )

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "critic"]


def _reward_scale(env: VecEnv) -> float:
    """What an environment divides its rewards by at present."""
    normalised = unwrap_vec_normalize(env)
    if normalised is None or not normalised.norm_reward:
        return 1.0
    return float(np.sqrt(normalised.ret_rms.var + normalised.epsilon))
