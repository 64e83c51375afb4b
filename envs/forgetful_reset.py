"""MinAtar games that begin an episode without the last action of the one before."""

from __future__ import annotations

from typing import Any

import gymnasium as gym


class ForgetfulReset(gym.Wrapper[Any, Any, Any, Any]):
    """Forget the last action at every reset.

    MinAtar repeats the last action instead of the present one with a probability of 0.1, and keeps it over a reset, so
    that the first step of an evaluation would depend on what was played before.

    Args:
        env: a MinAtar game.
    """

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode, as a new environment would."""
        self.env.unwrapped.game.last_action = 0  # type: ignore[attr-defined]
        return self.env.reset(seed=seed, options=options)
