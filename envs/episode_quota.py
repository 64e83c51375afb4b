"""A number of episodes to play, and rest after them."""

from __future__ import annotations

from typing import Any, SupportsFloat

import gymnasium as gym


class EpisodeQuota(gym.Wrapper[Any, Any, Any, Any]):
    """Rest after a given number of episodes: repeat the last observation, unrewarded, and never end.

    Copies that are stepped together end their episodes at different times. Those that have played theirs would play
    others, which nobody counts, until the longest has ended. Without a quota nothing is changed.

    Args:
        env: SB3's `Monitor` around the environment.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self._episodes_left: int | None = None
        self._last_observation: Any = None

    def set_quota(self, episodes: int) -> None:
        """Play this many more episodes; call it before a reset."""
        self._episodes_left = episodes

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode, unless all have been played."""
        if self._rests and self._last_observation is not None:
            return self._last_observation, {}
        self._last_observation, info = self.env.reset(seed=seed, options=options)
        return self._last_observation, info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step, unless all episodes have been played."""
        if self._rests:
            return self._last_observation, 0.0, False, False, {}
        self._last_observation, reward, terminated, truncated, info = self.env.step(action)
        # A life that is lost may end an episode for the agent; the monitor below tells when the game is over.
        if self._episodes_left is not None and "episode" in info:
            self._episodes_left -= 1
        return self._last_observation, reward, terminated, truncated, info

    @property
    def _rests(self) -> bool:
        return self._episodes_left == 0
