"""What is known of the benchmark environments: the returns between which scores are normalised."""

from __future__ import annotations

import math
from typing import NamedTuple


class Task(NamedTuple):
    """Returns of an environment that mean something: a score is 0 at the first and 1 at the second."""

    random_return: float
    """Mean undiscounted return of uniformly random actions."""

    threshold: float
    """Undiscounted return at which the task counts as learned."""

    def normalised(self, mean_return: float) -> float:
        """A return as a score; beyond 0 and 1 it goes on."""
        return (mean_return - self.random_return) / (self.threshold - self.random_return)


TASKS = {
    "CartPole-v1": Task(22.0, 475.0),
    "Acrobot-v1": Task(-500.0, -90.0),
    "MountainCar-v0": Task(-200.0, -115.0),
    "LunarLander-v3": Task(-185.0, 180.0),
}
"""Random returns are means of 200 to 2,000 episodes, rounded."""

ENVIRONMENTS = tuple(TASKS)
"""What the scripts run when they are asked for nothing else."""


def read_tasks(words: tuple[str, ...]) -> dict[str, Task]:
    """The known tasks and those of a command line, as ENV=RANDOM,THRESHOLD.

    Raises:
        ValueError: a word of another form, or a threshold that is not above the random return, both finite.
    """
    tasks = dict(TASKS)
    for word in words:
        env, _, values = word.partition("=")
        try:
            random_return, threshold = map(float, values.split(","))
        except ValueError:
            raise ValueError(f"'{word}' is no ENV=RANDOM,THRESHOLD, for example ALE/Pong-v5=-20.7,18") from None
        if not (math.isfinite(random_return) and math.isfinite(threshold)):
            raise ValueError(f"'{word}': both returns must be finite")
        if threshold <= random_return:
            raise ValueError(f"{env}: the threshold {threshold:g} must be above the random return {random_return:g}")
        tasks[env] = Task(random_return, threshold)
    return tasks
