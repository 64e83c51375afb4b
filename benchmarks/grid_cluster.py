"""Jobs on a dask cluster, whose workers may die: the scheduler hands their jobs to others.

joblib can drive dask too, but its call (1.6.0) did not come back once the scheduler had given a job up; here that is
one failed job.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import grid_jobs
from distributed import Client, as_completed
from distributed.diagnostics.plugin import UploadFile
from grid_jobs import Job, Outcome, run_job

CONNECTION_SECONDS = 20
RETRIES = 2
"""New attempts after an exception in a worker. How many workers a job may outlive is the scheduler's own setting,
`distributed.scheduler.allowed-failures`."""


def run_on_cluster(jobs: Sequence[Job], scheduler: str) -> Iterator[Outcome]:
    """Outcomes in the order in which they come.

    Args:
        jobs: what to run, the first ones first.
        scheduler: address of the dask scheduler; its workers must see the same files under the same paths.

    Raises:
        OSError: no scheduler answers there.
    """
    with Client(scheduler, timeout=CONNECTION_SECONDS) as client:
        client.register_plugin(UploadFile(grid_jobs.__file__))
        futures = {client.submit(run_job, job, pure=False, retries=RETRIES): job for job in jobs}
        for future in as_completed(futures, raise_errors=False):
            yield _outcome(future, futures[future])


def _outcome(future: Any, job: Job) -> Outcome:
    if future.status == "finished":
        outcome: Outcome = future.result()
        return outcome
    reason = future.exception() if future.status == "error" else future.status
    return Outcome(job, 0.0, f"given up by dask: {reason}")
