"""Jobs on one machine: joblib's threads, each of which starts one process at a time and waits for it.

A thread of the parent cannot be killed on its own, as a pool's process can; a run that dies is one failed job.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import joblib
from grid_jobs import Job, Outcome, run_job


def run_here(jobs: Sequence[Job], at_once: int) -> Iterator[Outcome]:
    """Outcomes in the order in which they come.

    Args:
        jobs: what to run, the first ones first.
        at_once: processes at the same time.
    """
    pool = joblib.Parallel(n_jobs=at_once, backend="threading", batch_size=1, return_as="generator_unordered")
    yield from pool(joblib.delayed(run_job)(job) for job in jobs)
