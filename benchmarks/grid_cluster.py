"""Jobs on a dask cluster, whose workers may die: the scheduler hands their jobs to others.

joblib can drive dask too, but its call (1.6.0) did not come back once the scheduler had given a job up; here that is
one failed job.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cloudpickle
import grid_jobs
from distributed import Client, as_completed
from grid_jobs import Job, Outcome, run_job

CONNECTION_SECONDS = 20
RETRIES = 2
"""New attempts after an exception in a worker. How many workers a job may outlive is the scheduler's own setting,
`distributed.scheduler.allowed-failures`."""

# Scheduler and workers do not have this folder on their path, so what runs there travels whole.
for module in (grid_jobs, sys.modules[__name__]):
    cloudpickle.register_pickle_by_value(module)


def run_on_cluster(jobs: Sequence[Job], scheduler: str) -> Iterator[Outcome]:
    """Connect, then yield outcomes in the order in which they come.

    Args:
        jobs: what to run, the first ones first.
        scheduler: address of the dask scheduler; its workers must see the same files under the same paths.

    Raises:
        OSError: no scheduler answers there.
    """
    # Not within the iterator: who asks for it is told at once that nobody answers.
    return _outcomes(Client(scheduler, timeout=CONNECTION_SECONDS), jobs)


def _outcomes(client: Client, jobs: Sequence[Job]) -> Iterator[Outcome]:
    with client:
        futures = {client.submit(_task(job), pure=False, retries=RETRIES): job for job in jobs}
        for future in as_completed(futures, raise_errors=False):
            yield _outcome(future, futures[future])


def _task(job: Job) -> Callable[[], tuple[float, str]]:
    """Run a job elsewhere and tell seconds and failure, in types that need no module of ours."""

    def run() -> tuple[float, str]:
        outcome = run_job(job)
        return outcome.seconds, outcome.failure

    return run


def _outcome(future: Any, job: Job) -> Outcome:
    if future.status == "finished":
        return Outcome(job, *future.result())
    reason = future.exception() if future.status == "error" else future.status
    return Outcome(job, 0.0, f"given up by dask: {reason}")
