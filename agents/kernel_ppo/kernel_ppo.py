"""PPO whose critic is a network, corrected by a kernel over the states of its rollouts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize
from typing_extensions import Self

from agents.common.nonfinite import NonFiniteError, env_name
from agents.common.seeding import numpy_generator, seeded
from agents.common.taken_parameters import TakenParameters
from agents.kernel_ppo.critic_config import CriticConfig
from agents.kernel_ppo.rollout_critic import Cuts, RolloutCritic
from agents.normalized_ppo import NormalizedPPO


class KernelPPO(TakenParameters, NormalizedPPO):
    """PPO with advantages from a kernel-corrected critic.

    Every rollout is collected as PPO does. Before it is learned from, its states get the values m(s) + R(s), where R is
    a local regression of what the critic m missed of the returns; advantages and the critic's targets are computed anew
    from them, so that m absorbs R. Acting is the policy network's alone, and nothing of the kernel is needed for it.
    See :class:`~agents.kernel_ppo.rollout_critic.RolloutCritic`. Callbacks find corrected advantages and returns at the
    end of a rollout and may add to them; rewards are to be changed before, by a wrapper of the environment.

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
        """Collect as PPO does, and correct advantages and value targets before callbacks see the rollout's end.

        Returns:
            False where a callback stopped it.

        Raises:
            NonFiniteError: a reward or a value in the rollout is not finite.
        """
        self.cuts = []
        corrected = _BeforeRolloutEnd(callback, partial(self._correct, env, rollout_buffer))
        return super().collect_rollouts(env, corrected, rollout_buffer, n_rollout_steps)

    def _correct(self, env: VecEnv, rollout_buffer: RolloutBuffer) -> None:
        assert self._last_obs is not None
        self._check_finite(env, rollout_buffer)
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

    def _check_finite(self, env: VecEnv, rollout: RolloutBuffer) -> None:
        """Say where a number comes from that would make every state's value one that is not finite."""
        # Returns are made backwards: what spoils them and neither rewards nor values came at the end.
        looked_at = (("reward", rollout.rewards, 0), ("value", rollout.values, 0), ("return", rollout.returns, -1))
        for what, numbers, index in looked_at:
            bad = np.argwhere(~np.isfinite(numbers))
            if len(bad):
                row, copy = bad[index]
                step = self.num_timesteps - (len(numbers) - 1 - row) * env.num_envs
                raise NonFiniteError(
                    f"stopped at step {self.num_timesteps}: the rollout holds a {what} that is not finite, "
                    f"{numbers[row, copy]} at step {step} from environment {copy} of {env_name(env)}. The "
                    "parameters are as they were before it."
                )

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

    def _after_new_parameters(self) -> None:
        """Forget the returns of the old policy."""
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

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed SB3's generators and the one that supports are drawn from."""
        super().set_random_seed(seed)
        if hasattr(self, "critic"):  # SB3 seeds before it builds
            seeded(self.critic.generator, numpy_generator(seed))

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


class _BeforeRolloutEnd(BaseCallback):
    """Another callback, before whose look at the end of a rollout something is done.

    Args:
        callback: hears everything that a rollout says.
        work: what to do first.
    """

    def __init__(self, callback: BaseCallback, work: Callable[[], None]) -> None:
        super().__init__()
        self.callback, self.work = callback, work

    def update_locals(self, locals_: dict[str, Any]) -> None:
        """Pass on what the rollout knows."""
        self.callback.update_locals(locals_)

    def on_rollout_start(self) -> None:
        """Pass on that a rollout begins."""
        self.callback.on_rollout_start()

    def on_step(self) -> bool:
        """Pass on a step, and whether learning goes on."""
        return self.callback.on_step()

    def on_rollout_end(self) -> None:
        """Do the work, then pass on that the rollout has ended."""
        self.work()
        self.callback.on_rollout_end()

    def _on_step(self) -> bool:
        return True


def _reward_scale(env: VecEnv) -> float:
    """What an environment divides its rewards by at present."""
    normalised = unwrap_vec_normalize(env)
    if normalised is None or not normalised.norm_reward:
        return 1.0
    return float(np.sqrt(normalised.ret_rms.var + normalised.epsilon))
