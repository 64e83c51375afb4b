"""PPO whose critic is a network, corrected by a kernel over the states of its rollouts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, TensorDict
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize
from typing_extensions import Self

from agents.common.seeding import numpy_generator
from agents.kernel_ppo.critic_config import CriticConfig
from agents.kernel_ppo.rollout_critic import Cuts, RolloutCritic
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
        # Row of the rollout, copy of the environment and observation of every cut in the present rollout.
        self.cuts: list[tuple[int, int, Any]] = []
        super().__init__(policy, env, *args, normalize=normalize, **kwargs)

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Collect as PPO does, then correct advantages and value targets; False where a callback stopped it."""
        self.cuts = []
        if not super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps):
            return False
        assert self._last_obs is not None
        last_observations = obs_as_tensor(self._last_obs, self.device)
        dones = np.asarray(self._last_episode_starts, dtype=np.bool_)
        self.critic.correct(
            rollout_buffer,
            self.policy.predict_values,
            last_observations,
            dones,
            _reward_scale(env),
            self._all_cuts(),
        )
        for name, value in self.critic.scalars.items():
            self.logger.record(f"kernel/{name}", value)
        return True

    @classmethod
    def load(cls, *args: Any, kernel: CriticConfig | Mapping[str, Any] | None = None, **kwargs: Any) -> Self:
        """Load as SB3 does; a mapping for ``kernel`` changes those of the saved settings that it names."""
        model = super().load(*args, **kwargs)
        if kernel is not None:
            model.kernel = asdict(CriticConfig.read(kernel, model.kernel))
            model._make_critic()
        return model

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """Go on in another environment; returns of the old one are forgotten."""
        super().set_env(env, force_reset)
        self.critic.forget()

    def set_parameters(
        self,
        load_path_or_dict: str | TensorDict,
        exact_match: bool = True,
        device: torch.device | str = "auto",
    ) -> None:
        """Take over parameters as SB3 does; returns of the old policy are forgotten."""
        super().set_parameters(load_path_or_dict, exact_match, device)
        self.critic.forget()

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: npt.NDArray[np.bool_] | None = None) -> None:
        """Called after every step of a rollout: note where PPO adds γ m of the state in which a time limit cut."""
        super()._update_info_buffer(infos, dones)
        for copy in () if dones is None else np.flatnonzero(dones):
            last = infos[copy].get("terminal_observation")
            # As OnPolicyAlgorithm.collect_rollouts asks.
            if last is not None and infos[copy].get("TimeLimit.truncated", False):
                self.cuts.append((self.rollout_buffer.pos, int(copy), last))

    def _all_cuts(self) -> Cuts | None:
        """Where time limits cut episodes of the last rollout, for the critic."""
        if not self.cuts:
            return None
        rows, copies, last = zip(*self.cuts, strict=True)
        if isinstance(last[0], dict):
            stacked: Any = {key: np.stack([observation[key] for observation in last]) for key in last[0]}
        else:
            stacked = np.stack(last)
        return Cuts(np.array(rows), np.array(copies), self.policy.obs_to_tensor(stacked)[0])

    def _setup_model(self) -> None:
        super()._setup_model()
        self._make_critic()

    def _make_critic(self) -> None:
        self.critic = RolloutCritic(
            self.observation_space,
            CriticConfig.read(self.kernel),
            self.policy.normalize_images,
            self.device,
            numpy_generator(self.seed),
        )

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "critic", "cuts"]


def _reward_scale(env: VecEnv) -> float:
    """What an environment divides its rewards by at present."""
    normalised = unwrap_vec_normalize(env)
    if normalised is None or not normalised.norm_reward:
        return 1.0
    return float(np.sqrt(normalised.ret_rms.var + normalised.epsilon))
