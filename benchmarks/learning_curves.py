"""Learning curves: agents × environments × seeds, each cell one `train.py` run; finished cells are skipped.

python benchmarks/learning_curves.py --agents ddqn kernel_ddqn --seeds 10 --jobs 2
python benchmarks/learning_curves.py --agents kernel_ddqn no_bonus=kernel_ddqn,kernel.exploration_bonus=0
python benchmarks/learning_curves.py --variants benchmarks/ablations.yaml --backend dask --scheduler tcp://HOST:8786
"""

from __future__ import annotations

import importlib
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import tyro
from grid import JOBS, Grid
from grid_cells import Cell
from grid_jobs import ONE_THREAD, Job, Outcome
from grid_progress import Progress
from grid_workers import run_here
from shown_command import shown_command

from agents.common.atomic_save import write_text
from agents.common.schema import ConfigError
from agents.training.provenance import commit


def main(argv: Sequence[str]) -> int:
    """Run the grid; the exit status is 1 when a cell failed, 2 for a grid that cannot be run, 130 for an interrupt."""
    try:
        return run(tyro.cli(Grid, description=__doc__, args=argv), argv)
    except (ConfigError, OSError) as error:
        print(f"learning_curves.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("learning_curves.py: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130


def run(grid: Grid, argv: Sequence[str]) -> int:
    """Run or print the cells that have not finished."""
    cells = grid.cells()
    states = [cell.state() for cell in cells]
    stale = [cell for cell, state in zip(cells, states, strict=True) if state == "stale"]
    if stale and not grid.redo:
        raise ConfigError(stale_message(stale))
    todo = [cell for cell, state in zip(cells, states, strict=True) if state != "finished"]
    if grid.print_commands:
        # A scheduler may start a job twice, so only what is to be replaced is forced.
        print_commands([cell.job(force=cell in stale) for cell in todo])
        return 0
    # Whatever lies in the folder of a cell without a result is of a run that was to be replaced.
    jobs = [cell.job(force=grid.redo) for cell in todo]
    source = commit()
    outcomes = start(grid, jobs)
    note_command(grid.folder / "command.txt", argv)
    finished = [cell for cell, state in zip(cells, states, strict=True) if state == "finished"]
    others = sum(cell.commit() != source for cell in finished)
    how = f", of which {others} by other commits" if others else ""
    print(f"cells: {len(cells)}, of which finished before: {len(finished)}{how}", flush=True)
    status = watch(outcomes, Progress(jobs, skipped=len(finished)))
    # A run that an interrupted grid left behind may have ended first, and its result was taken for the one asked for.
    if beaten := [cell for cell in todo if cell.state() == "stale"]:
        print(f"failed: {stale_message(beaten)}", file=sys.stderr)
        return 1
    return status


def print_commands(jobs: Sequence[Job]) -> None:
    """One command a line, until nobody reads any more, as behind `| head`."""
    threads = [f"{name}={value}" for name, value in ONE_THREAD.items()]
    try:
        for job in jobs:
            print(shlex.join(["env", *threads, *job.command]))
        sys.stdout.flush()
    except BrokenPipeError:
        # Python writes what is left at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def start(grid: Grid, jobs: Sequence[Job]) -> Iterator[Outcome]:
    """The outcomes of the jobs, from wherever the grid is to run.

    Raises:
        ConfigError: dask is not installed.
        OSError: no scheduler answers.
    """
    if grid.scheduler is None:
        return run_here(jobs, grid.jobs or JOBS)
    try:
        cluster = importlib.import_module("grid_cluster")
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"--backend dask needs {error.name}: pip install -e '.[cluster]' -c constraints.txt"
        ) from error
    outcomes: Iterator[Outcome] = cluster.run_on_cluster(jobs, grid.scheduler)
    return outcomes


def watch(outcomes: Iterator[Outcome], progress: Progress) -> int:
    """Print every outcome as it comes, and at the end where the logs of the failed ones are."""
    failed = []
    for outcome in outcomes:
        print(progress.line(outcome), flush=True)
        if outcome.failure:
            failed.append(outcome)
    for outcome in failed:
        log = f"; see {outcome.job.log}" if outcome.job.log.exists() else ""
        print(f"failed: {outcome.job.name}: {outcome.failure}{log}", file=sys.stderr)
    return 1 if failed else 0


def stale_message(stale: Sequence[Cell]) -> str:
    """Which finished cells were made with other settings, and what can be done."""
    shown = [f"  {cell.name}: {'; '.join(cell.differences())}" for cell in stale[:5]]
    more = [f"  and {len(stale) - 5} more"] if len(stale) > 5 else []
    head = "these cells finished with other settings than those now asked for:"
    return "\n".join([head, *shown, *more, "run them again with --redo, or choose another --folder"])


def note_command(path: Path, argv: Sequence[str]) -> None:
    """Add the command to those that made the grid, once."""
    line = shown_command("learning_curves.py", argv)
    lines = path.read_text().splitlines() if path.exists() else []
    if line not in lines:
        write_text(path, "\n".join([*lines, line]) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
