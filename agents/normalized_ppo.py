"""PPO that scales its inputs by running statistics and keeps these with its parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize
from torch import nn
from typing_extensions import Self

from agents.common.atomic_save import AtomicSave
from agents.common.named_runs import NamedRuns
from agents.common.nonfinite import NonFiniteError, env_name, nonfinite_rows
from agents.common.observations import is_reset_answer
from agents.common.schema import ConfigError

CLIP = 10.0
EPSILON = 1e-8


class ObservationStatistics(nn.Module):
    """Running mean and variance of observations and of their returns, saved and loaded as a network's tensors are.

    Args:
        shape: shape of one observation.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.running = RunningMeanStd(shape=shape)
        self.returns = RunningMeanStd(shape=())

    def normalize(self, observations: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Observations with mean 0 and variance 1, clipped, as `VecNormalize` gives them to the policy."""
        scaled = (observations - self.running.mean) / np.sqrt(self.running.var + EPSILON)
        return np.clip(scaled, -CLIP, CLIP).astype(np.float32)

    def get_extra_state(self) -> dict[str, Any]:
        """Plain numbers, which every torch device and a loader of weights alone can read."""
        return {**_numbers(self.running), "returns": _numbers(self.returns)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take the numbers of `get_extra_state`; an older file has none of returns, whose present ones then stay."""
        _set_numbers(self.running, state)
        if "returns" in state:
            _set_numbers(self.returns, state["returns"])


class NormalizedPPO(AtomicSave, NamedRuns, PPO):
    """Stable-Baselines3's PPO inside `VecNormalize`, which it brings along.

    J. Schulman, F. Wolski, P. Dhariwal, A. Radford and O. Klimov, *Proximal Policy Optimization Algorithms*, 2017.
    Training sees what :class:`stable_baselines3.common.vec_env.VecNormalize` makes of observations and rewards. From
    outside nothing of it shows: ``predict`` takes observations as the environment gives them, ``get_env`` returns the
    environment that was given, and ``save`` and ``set_parameters`` carry the statistics of observations and returns.

    Args:
        policy: as for PPO.
        env: environment with vectors for observations, not yet normalised.
        normalize: False for PPO as it is.
    """

    observation_statistics: ObservationStatistics

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        *args: Any,
        normalize: bool = True,
        **kwargs: Any,
    ) -> None:
        self.normalize = normalize
        super().__init__(policy, env, *args, **kwargs)

    @classmethod
    def load(cls, *args: Any, **kwargs: Any) -> Self:
        """Load as SB3 does.

        Raises:
            ValueError: ``normalize`` is given; a policy has learned from scaled observations or from others.
        """
        if "normalize" in kwargs:
            raise ValueError(
                f"normalize is {kwargs['normalize']!r}, but a saved {cls.__name__} knows what its policy learned from; "
                "leave it out"
            )
        return super().load(*args, **kwargs)

    def get_env(self) -> VecEnv | None:
        """The environment without its normalisation."""
        return self.env.venv if self.normalize and isinstance(self.env, VecNormalize) else self.env

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """Go on in another environment, normalised by the present statistics.

        Raises:
            ValueError: it is normalised already.
        """
        if self.normalize and isinstance(env, VecEnv):
            self._refuse_normalized(env)
        super().set_env(env, force_reset)
        self._normalize_env()

    def predict(
        self,
        observation: npt.NDArray[Any] | dict[str, npt.NDArray[Any]],
        state: tuple[npt.NDArray[Any], ...] | None = None,
        episode_start: npt.NDArray[Any] | None = None,
        deterministic: bool = False,
    ) -> tuple[npt.NDArray[Any], tuple[npt.NDArray[Any], ...] | None]:
        """Act on observations as the environment gives them.

        Args:
            observation: one observation or a batch of them.
            state: unused, kept for SB3's interface.
            episode_start: unused, kept for SB3's interface.
            deterministic: take the most probable action instead of drawing one.

        Returns:
            Actions, a scalar array or [B], and the unchanged state.
        """
        if self.normalize and not isinstance(observation, dict) and not is_reset_answer(observation):
            # Scaling would broadcast what has another shape than the statistics.
            observation = np.asarray(observation)
            self.policy.is_vectorized_observation(observation)
            observation = self.policy_observation(observation)
        return super().predict(observation, state, episode_start, deterministic)

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Collect as PPO does.

        Returns:
            False where a callback stopped it.

        Raises:
            NonFiniteError: an observation is not finite, of which torch's distributions would say what the policy made.
        """
        try:
            return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        except (ValueError, RuntimeError) as error:
            normalized = unwrap_vec_normalize(env)
            seen = self._last_obs if normalized is None else normalized.get_original_obs()
            if seen is None or not (bad := nonfinite_rows(seen, env.num_envs)).any():
                raise
            raise NonFiniteError(
                f"stopped at step {self.num_timesteps}: environment {int(bad.argmax())} of {env_name(env)} sent an "
                "observation that is not finite. The parameters are as they were before it"
                + ("." if normalized is None else ", the statistics of observations are not: mend it and begin anew.")
            ) from error

    def policy_observation(
        self, observation: npt.NDArray[Any] | dict[str, npt.NDArray[Any]]
    ) -> npt.NDArray[Any] | dict[str, npt.NDArray[Any]]:
        """What the policy sees of an observation as the environment gives it, or of a batch of them."""
        if self.normalize and not isinstance(observation, dict):
            return self.observation_statistics.normalize(observation)
        return observation

    def _setup_model(self) -> None:
        if self.normalize:
            if not can_normalize(self.observation_space):
                raise ValueError(
                    f"{type(self).__name__} normalises vectors, but the environment has {self.observation_space}; "
                    "give normalize=False"
                )
            assert self.observation_space.shape is not None
            self.observation_statistics = ObservationStatistics(self.observation_space.shape)
            self._normalize_env()
        super()._setup_model()

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        if self.normalize and not np.issubdtype(self.observation_space.dtype, np.floating):
            raise ConfigError(
                f"{type(self).__name__} scales observations, but a rollout stores them as "
                f"{self.observation_space.dtype}, which would cut them to whole numbers; give normalize=False "
                "(--no-normalize), or observe floating-point numbers"
            )
        return super()._setup_learn(*args, **kwargs)

    def _normalize_env(self) -> None:
        """Wrap the environment; wrapper and model share the statistics of observations and returns."""
        if not self.normalize or self.env is None:
            return
        self._refuse_normalized(self.env)
        self.env = VecNormalize(self.env, gamma=self.gamma, clip_obs=CLIP, epsilon=EPSILON)
        self.env.obs_rms = self.observation_statistics.running  # type: ignore[assignment]  # SB3's type is that for dicts
        self.env.ret_rms = self.observation_statistics.returns

    def _refuse_normalized(self, env: VecEnv) -> None:
        if unwrap_vec_normalize(env) is not None:
            raise ValueError(
                f"{type(self).__name__} brings its own VecNormalize, but the environment has one already; give the "
                "environment without it, or normalize=False"
            )

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        modules, variables = super()._get_torch_save_params()
        return [*modules, *(["observation_statistics"] if self.normalize else [])], variables


def can_normalize(space: spaces.Space[Any]) -> bool:
    """Whether observations are vectors (or matrices) of numbers, but no images."""
    return isinstance(space, spaces.Box) and not is_image_space(space)


def _numbers(running: RunningMeanStd) -> dict[str, Any]:
    return {"mean": running.mean.tolist(), "var": running.var.tolist(), "count": running.count}


def _set_numbers(running: RunningMeanStd, state: dict[str, Any]) -> None:
    running.mean, running.var, running.count = np.array(state["mean"]), np.array(state["var"]), state["count"]
