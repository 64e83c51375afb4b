"""One command of a grid, run where it is started. Standard library only, for dask sends it to its workers."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

if sys.platform != "win32":
    import fcntl

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Job:
    """A command that writes one file when it has finished, whole or not at all."""

    name: str
    command: tuple[str, ...]
    result: Path
    steps: int
    """Environment steps, by which the rest of the grid is estimated."""

    replaces: int | None = None
    """Time of change, in nanoseconds, of an earlier result that goes when the job begins; None when there is none."""

    @property
    def log(self) -> Path:
        """Where the output goes."""
        return self.result.with_name("log.txt")


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    job: Job
    seconds: float
    failure: str = ""
    """Why there is no result; empty when there is one."""


def run_job(job: Job) -> Outcome:
    """Run a command unless its result is there, with its output in the log beside the result."""
    started = time.perf_counter()
    failure = ""
    try:
        job.result.parent.mkdir(parents=True, exist_ok=True)
        with _only_one(job.result.with_name(".lock")) as held:
            # Only now is its replacement about to be made; and a job that is started twice keeps its own result.
            if job.replaces is not None and job.result.exists() and job.result.stat().st_mtime_ns == job.replaces:
                job.result.unlink()
            if not job.result.exists():
                failure = _run(job, held)
    except OSError as error:
        failure = str(error)
    return Outcome(job, time.perf_counter() - started, failure)


def _run(job: Job, held: tuple[int, ...]) -> str:
    with job.log.open("w") as log:
        done = subprocess.run(
            job.command,
            env=os.environ | ONE_THREAD,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=held,
            check=False,
        )
    if done.returncode != 0:
        last = job.log.read_text(errors="replace").strip().splitlines()[-1:]
        return ": ".join([f"exit status {done.returncode}", *last])
    return "" if job.result.exists() else f"finished without writing {job.result.name}"


@contextmanager
def _only_one(path: Path) -> Iterator[tuple[int, ...]]:
    """Wait until nobody else runs the job, then hold its place.

    The command inherits the lock: should its worker be killed, it runs on, and whoever is given the job next waits for
    its result instead of training in the same folder. On a file system without locks nothing keeps two of them apart.
    """
    if sys.platform == "win32":
        yield ()
        return
    with path.open("w") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield (file.fileno(),)
