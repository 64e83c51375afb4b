"""Random actions that last: εz-greedy exploration for vectorised environments."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

LONGEST = 10_000
"""Steps at which a random action ends at the latest."""


class LastingActions:
    """Draws random actions and repeats each for a number of steps n with P(n) ∝ n^−μ, per environment.

    W. Dabney, G. Ostrovski and A. Barreto, *Temporally-Extended ε-Greedy Exploration*, 2021. Most last one step and a
    few last very long, so that exploring also leaves what a policy does everywhere, such as hovering, where single
    random actions are undone by the next greedy one.

    Args:
        exponent: μ of the zeta distribution, above 1; 2 is the authors' choice for all of their tasks.

    Raises:
        ValueError: the exponent is not above 1.
    """

    def __init__(self, exponent: float) -> None:
        if not 1.0 < exponent < float("inf"):
            raise ValueError(f"exploration_zeta is {exponent}, but must be above 1 (2 is usual), or None")
        self.exponent = exponent
        self._left = np.zeros(0, dtype=np.int64)
        self._actions = np.zeros(0, dtype=np.int64)

    def draw(
        self, rate: float, n_envs: int, n_actions: int, rng: np.random.Generator
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
        """Which environments explore in this step, and what they do.

        Args:
            rate: ε, the probability that an environment which does not explore begins to.
            n_envs: how many environments there are; another number than in the last step ends all that lasts.
            n_actions: actions to choose from.
            rng: source of randomness.

        Returns:
            Whether each explores, [E], and its action, without meaning where it does not, [E].
        """
        if len(self._left) != n_envs:
            self._left, self._actions = np.zeros((2, n_envs), dtype=np.int64)
        begins = (self._left == 0) & (rng.random(n_envs) < rate)
        count = int(begins.sum())
        if count:
            self._actions[begins] = rng.integers(n_actions, size=count)
            self._left[begins] = np.minimum(rng.zipf(self.exponent, size=count), LONGEST)
        explores = self._left > 0
        self._left[explores] -= 1
        return explores, self._actions.copy()

    def end(self, ended: npt.NDArray[np.bool_]) -> None:
        """Let nothing last beyond the end of an episode.

        Args:
            ended: whether each environment's episode ended in this step, [E].
        """
        if len(self._left) == len(ended):  # nothing lasts yet where somebody else acts
            self._left[ended] = 0
