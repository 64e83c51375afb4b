"""Random actions that last: εz-greedy exploration for vectorised environments."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

LONGEST = 100
"""Steps at which a random action ends at the latest; with the exponent 2 one in 160 would last longer."""


class LastingActions:
    """Draws random actions and repeats each for a number of steps n with P(n) ∝ n^−μ, per environment.

    W. Dabney, G. Ostrovski and A. Barreto, *Temporally-Extended ε-Greedy Exploration*, 2021. Most last one step and a
    few last very long, so that exploring also leaves what a policy does everywhere, such as hovering, where single
    random actions are undone by the next greedy one. Unlike theirs, ε is the share of steps that are random, as it is
    where random actions last one step, and not the probability that one begins: they begin as much more rarely as they
    last longer.

    Args:
        exponent: μ of the zeta distribution, above 1; 2 is the authors' choice for all of their tasks. It is cut at
            :data:`LONGEST` steps.

    Raises:
        ValueError: the exponent is not above 1.
    """

    def __init__(self, exponent: float) -> None:
        if not 1.0 < exponent < float("inf"):
            raise ValueError(f"exploration_zeta is {exponent}, but must be above 1 (2 is usual), or None")
        self.exponent = exponent
        self._lengths = np.arange(1, LONGEST + 1)
        self._odds = self._lengths ** -float(exponent)  # numpy raises whole numbers to no negative whole power
        self._odds /= self._odds.sum()
        self._mean_length = float(self._lengths @ self._odds)
        self._left = np.zeros(0, dtype=np.int64)
        self._actions = np.zeros(0, dtype=np.int64)

    def draw(
        self, share: float, n_envs: int, n_actions: int, rng: np.random.Generator
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
        """Which environments explore in this step, and what they do.

        Args:
            share: ε, the share of steps to be random, in [0, 1]; episodes that end cut random actions short and leave
                it a little smaller.
            n_envs: how many environments there are; another number than in the last step ends all that lasts.
            n_actions: actions to choose from.
            rng: source of randomness.

        Returns:
            Whether each explores, [E], and its action, without meaning where it does not, [E].
        """
        if len(self._left) != n_envs:
            self._left, self._actions = np.zeros((2, n_envs), dtype=np.int64)
        # Of a cycle of (1 − p) / p steps without and L steps with a random action, L are random.
        begin = share / (share + self._mean_length * (1.0 - share))
        begins = (self._left == 0) & (rng.random(n_envs) < begin)
        count = int(begins.sum())
        if count:
            self._actions[begins] = rng.integers(n_actions, size=count)
            self._left[begins] = rng.choice(self._lengths, size=count, p=self._odds)
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

    def end_all(self) -> None:
        """Let nothing last beyond a reset of the environments."""
        self._left[:] = 0
