"""Whole episodes played into a replay buffer, without learning."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from agents.common.cut_at_reset import cut_episodes
from agents.kernel_ddqn.kernel_ddqn import KernelDDQN

EPISODES = 5
"""Greedy episodes of a measurement, at least, unless they are so long that the limit cuts it short."""

REFRESH = 500
"""Environment steps between two renewals of the values while exploring."""


class Experience:
    """Plays into the replay buffer of a :class:`KernelDDQN` and counts environment steps over all copies.

    Args:
        model: the agent that acts; its policy is the caller's to change.
        limit: steps of every copy after which greedy episodes are cut, all of them together, so that one without end
            ends.
        seed: of the environment at every measurement, so that all begin in the same states.
    """

    def __init__(self, model: KernelDDQN, limit: int, seed: int) -> None:
        assert model.env is not None
        assert model.replay_buffer is not None
        self.model, self.env, self.buffer = model, model.env, model.replay_buffer
        self.limit, self.seed = limit, seed
        self.steps = 0

    def explore(self, steps: int, refresh: Callable[[], None]) -> None:
        """Act with exploration.

        Args:
            steps: environment steps to take.
            refresh: called every :data:`REFRESH` steps, to renew the values that act.
        """
        end, due = self.steps + steps, self.steps + REFRESH
        self._reset()
        while self.steps < end:
            self._step(greedy=False)
            if self.steps >= due:
                refresh()
                due += REFRESH
        cut_episodes(self.buffer)

    def measure(self, steps: int) -> float:
        """Mean return of greedy episodes: as many of every copy, until ``steps`` steps are taken.

        Args:
            steps: environment steps to take at least.

        Returns:
            Mean undiscounted return, in the rewards of the environment; a cut episode counts as far as it came.
        """
        self.env.seed(self.seed)
        end, returns = self.steps + steps, self._greedy_episodes()
        while self.steps < end:
            returns += self._greedy_episodes()
        return float(np.mean(returns))

    def _greedy_episodes(self) -> list[float]:
        """Returns of the first episodes of every copy, :data:`EPISODES` or more together."""
        wanted = -(-EPISODES // self.env.num_envs)
        returns: list[list[float]] = [[] for _ in range(self.env.num_envs)]
        running, end = np.zeros(self.env.num_envs), self.steps + self.limit * self.env.num_envs
        self._reset()
        while min(map(len, returns)) < wanted and self.steps < end:
            rewards, dones = self._step(greedy=True)
            running += rewards
            for copy in np.flatnonzero(dones):
                returns[copy].append(float(running[copy]))
                running[copy] = 0.0
        cut_episodes(self.buffer)
        return [value for copy, ended in enumerate(returns) for value in ended[:wanted] or [float(running[copy])]]

    def _reset(self) -> None:
        self.model._last_obs = self.env.reset()  # type: ignore[assignment]  # SB3 declares arrays and gets dicts too
        normalize = self.model._vec_normalize_env
        if normalize is not None:
            self.model._last_original_obs = normalize.get_original_obs()

    def _step(self, greedy: bool) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """One step of every copy, stored as SB3 stores it; rewards before normalisation and ends of episodes."""
        model = self.model
        assert model._last_obs is not None
        actions, _ = model.predict(model._last_obs, deterministic=greedy)
        observations, rewards, dones, infos = self.env.step(actions)
        normalize = model._vec_normalize_env
        original = rewards if normalize is None else normalize.get_original_reward()
        model._store_transition(self.buffer, actions, observations, rewards, dones, infos)
        self.steps += self.env.num_envs
        return original, dones
