"""How far a grid is: cells, elapsed time, and an estimate of the rest by environment steps."""

from __future__ import annotations

import time
from collections.abc import Sequence

from grid_jobs import Job, Outcome


class Progress:
    """One line for every finished job.

    Args:
        jobs: all that are to run.
        skipped: cells that had finished before.
    """

    def __init__(self, jobs: Sequence[Job], skipped: int) -> None:
        self.count = skipped
        self.total = skipped + len(jobs)
        self.steps_left = self.steps = sum(job.steps for job in jobs)
        self.started = time.perf_counter()

    def line(self, outcome: Outcome) -> str:
        """Count the outcome and describe it."""
        self.count += 1
        self.steps_left -= outcome.job.steps
        elapsed = time.perf_counter() - self.started
        rest = elapsed * self.steps_left / (self.steps - self.steps_left)
        how = "FAILED" if outcome.failure else duration(outcome.seconds)
        times = f"{duration(elapsed)} so far, about {duration(rest)} left"
        return f"[{self.count}/{self.total}] {outcome.job.name}: {how} · {times}"


def duration(seconds: float) -> str:
    """Seconds in the two units that matter: 45 s, 3 min 20 s, 5 h 4 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
