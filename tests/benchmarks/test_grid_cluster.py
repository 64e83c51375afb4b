"""A grid on a dask cluster whose workers are killed: every cell still finishes, and none runs beside itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

distributed = pytest.importorskip("distributed", reason="needs the extra `cluster`")

from grid_cluster import run_on_cluster
from grid_jobs import Job
from grid_progress import Progress
from learning_curves import watch

# Stands for train.py: it refuses to run beside another, notes its process and its worker's, and writes its result last.
STUB = """
import os, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
(folder / "running").touch(exist_ok=False)
with (folder / "starts.txt").open("a") as starts:
    starts.write(f"{os.getpid()} {os.getppid()}\\n")
time.sleep(float(sys.argv[2]))
(folder / "running").unlink()
(folder / "result.json").write_text("{}")
"""
PATIENCE_SECONDS = 30.0
ONE_FAILURE = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1"}
"""A job may outlive one worker, and is given up with the second."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A scheduler with two workers, started as a user starts them: in another folder, without this one's path."""
    folder = tmp_path_factory.mktemp("cluster")
    address_file = folder / "scheduler.json"
    python = [sys.executable, "-m"]
    scheduler = [*python, "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    scheduler += ["--scheduler-file", str(address_file)]
    worker = [*python, "distributed.cli.dask_worker", "--scheduler-file", str(address_file), "--nthreads", "1"]
    worker += ["--no-dashboard", "--nworkers", "2", "--local-directory", str(folder)]
    with ExitStack() as stack:
        for command in (scheduler, worker):
            process = stack.enter_context(
                subprocess.Popen(
                    command,
                    cwd=folder,
                    env=os.environ | ONE_FAILURE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            )
            stack.callback(process.terminate)
        with distributed.Client(scheduler_file=str(address_file), timeout=PATIENCE_SECONDS) as client:
            client.wait_for_workers(2, timeout=PATIENCE_SECONDS)
        yield json.loads(address_file.read_text())["address"]


def stub_job(folder: Path, seconds: float) -> Job:
    return Job(folder.name, (sys.executable, "-S", "-c", STUB, str(folder), str(seconds)), folder / "result.json", 1)


def starts(job: Job) -> list[tuple[int, int]]:
    """Process and worker of every start of a job."""
    file = job.result.with_name("starts.txt")
    if not file.exists():
        return []
    pairs = [line.split() for line in file.read_text().splitlines()]
    return [(int(process), int(worker)) for process, worker in pairs]


def kill_worker(job: Job, with_its_run: bool) -> None:
    """Kill the worker of a job once it runs; its run too, as a lost machine would."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := starts(job)):
        assert time.monotonic() < deadline, f"{job.name} has not started"
        time.sleep(0.02)
    process, worker = found[0]
    os.kill(worker, signal.SIGKILL)
    if with_its_run:
        job.result.with_name("running").unlink()
        os.kill(process, signal.SIGKILL)


@pytest.mark.parametrize("with_its_run", [False, True], ids=["worker", "worker and run"])
def test_a_killed_worker_loses_no_cell(
    with_its_run: bool, cluster: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The first is still running when the other worker is free to be given it.
    jobs = [stub_job(tmp_path / f"cell{index}", seconds=2.5 if index == 0 else 0.2) for index in range(5)]
    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(kill_worker, jobs[0], with_its_run)
        status = watch(run_on_cluster(jobs, cluster), Progress(jobs, skipped=0))
    killed.result()
    assert status == 0, capsys.readouterr().err
    assert all(job.result.exists() for job in jobs)
    assert [len(starts(job)) for job in jobs] == [2 if with_its_run else 1, 1, 1, 1, 1]
    assert "[5/5]" in capsys.readouterr().out


def test_a_job_that_kills_its_workers_is_one_failed_job(
    cluster: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = stub_job(tmp_path / "good", 0.0), stub_job(tmp_path / "bad", 0.0)
    kill_parent = "import os, signal; os.kill(os.getppid(), signal.SIGKILL)"
    bad = replace(bad, command=(sys.executable, "-S", "-c", kill_parent))
    jobs = [bad, good]
    assert watch(run_on_cluster(jobs, cluster), Progress(jobs, skipped=0)) == 1
    assert good.result.exists()
    complaint = capsys.readouterr().err
    assert complaint.startswith("failed: bad: given up by dask: ")
    assert complaint.rstrip().endswith(f"see {bad.log}")
