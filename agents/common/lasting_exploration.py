"""Exploration of SB3's algorithms for discrete actions: draws of its own, and random actions that last."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv

from agents.common.cut_at_reset import CutAtReset
from agents.common.exploration import LastingActions
from agents.common.nonfinite import Observation
from agents.common.observations import is_reset_answer
from agents.common.seeding import numpy_generator


class LastingExploration(CutAtReset):
    """Mixed in before an ε-greedy algorithm of SB3, for discrete actions.

    Exploration draws from its own seeded generator, independently for every environment, and its actions can last.

    Args:
        policy: as for the algorithm.
        env: environment with discrete actions, or its id.
        *args: as for the algorithm.
        exploration_zeta: exponent μ of the zeta distribution of how many steps a random action is repeated while
            learning, those of ``learning_starts`` among them, see
            :class:`~agents.common.exploration.LastingActions`; None for one step, as in SB3.
            ``exploration_rate`` is the share of random steps either way.
        **kwargs: as for the algorithm.

    Raises:
        ValueError: the exponent is not above 1, or actions are not discrete or do not count from 0.
    """

    exploration_rate: float
    rng: np.random.Generator
    _lasting: LastingActions | None

    def __init__(
        self,
        policy: str | type[BasePolicy],
        env: GymEnv | str | None,
        *args: Any,
        exploration_zeta: float | None = None,
        **kwargs: Any,
    ) -> None:
        self.exploration_zeta = exploration_zeta
        env = maybe_make_env(env, kwargs.get("verbose", 0)) if env is not None else None  # load() passes None
        if env is not None:
            _check_action_space(type(self).__name__, env.action_space)
        super().__init__(policy, env, *args, **kwargs)  # type: ignore[arg-type]  # of the algorithm

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed SB3's generators and the one that exploration draws from."""
        super().set_random_seed(seed)
        self.rng = numpy_generator(seed)

    def predict(
        self,
        observation: npt.NDArray[Any] | dict[str, npt.NDArray[Any]],
        state: tuple[npt.NDArray[Any], ...] | None = None,
        episode_start: npt.NDArray[Any] | None = None,
        deterministic: bool = False,
    ) -> tuple[npt.NDArray[Any], tuple[npt.NDArray[Any], ...] | None]:
        """Act ε-greedily, with an independent draw for every environment.

        Args:
            observation: one observation or a batch of them.
            state: unused, kept for SB3's interface.
            episode_start: unused, kept for SB3's interface.
            deterministic: act greedily.

        Returns:
            Actions, a scalar array or [B], and the unchanged state.
        """
        if deterministic or is_reset_answer(observation):
            return self.policy.predict(observation, state, episode_start, deterministic=True)
        assert isinstance(self.action_space, spaces.Discrete)
        if not isinstance(observation, dict):
            observation = np.asarray(observation)
        vectorised = self.policy.is_vectorized_observation(observation)
        first = next(iter(observation.values())) if isinstance(observation, dict) else observation
        count = len(first) if vectorised else 1
        explored = self.rng.random(count) < self.exploration_rate
        actions = self.rng.integers(self.action_space.n, size=count)
        if not explored.all():
            greedy, state = self.policy.predict(observation, state, episode_start, deterministic=False)
            actions = np.where(explored, actions, greedy)
        return (actions if vectorised else np.asarray(actions[0])), state

    def _break_off(self) -> None:
        super()._break_off()
        if self._lasting is not None:
            self._lasting.end_all()

    def _setup_model(self) -> None:
        super()._setup_model()
        # Here, where loading a model comes by after it has read the settings.
        self._lasting = None if self.exploration_zeta is None else LastingActions(self.exploration_zeta)

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        if self._lasting is None:
            return super()._sample_action(learning_starts, action_noise, n_envs)
        assert isinstance(self.action_space, spaces.Discrete)
        share = 1.0 if self.num_timesteps < learning_starts else self.exploration_rate
        explores, actions = self._lasting.draw(share, n_envs, int(self.action_space.n), self.rng)
        if not explores.all():
            assert self._last_obs is not None
            greedy, _ = self.policy.predict(self._last_obs, deterministic=False)
            actions = np.where(explores, actions, greedy)
        return actions, actions

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: npt.NDArray[Any],
        new_obs: Observation,
        reward: npt.NDArray[Any],
        dones: npt.NDArray[Any],
        infos: list[dict[str, Any]],
    ) -> None:
        if self._lasting is not None:
            self._lasting.end(dones.astype(np.bool_))
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)

    def _excluded_save_params(self) -> list[str]:
        """What SB3 leaves out, and the action that lasts now."""
        return [*super()._excluded_save_params(), "_lasting"]


def _check_action_space(algorithm: str, space: spaces.Space[Any]) -> None:
    if not isinstance(space, spaces.Discrete):
        raise ValueError(
            f"{algorithm} needs a discrete action space, but the environment has {space}. For continuous actions use "
            "KernelPPO, KernelSAC or KernelTD3, or PPO, SAC or TD3 of stable_baselines3; a MultiDiscrete space can be "
            "flattened to Discrete by a wrapper."
        )
    if space.start != 0:
        raise ValueError(f"{algorithm} needs actions that count from 0, but the environment has {space}; wrap it")
