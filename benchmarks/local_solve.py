"""Speed of a local prediction (search, mean and variance) against its nearest relatives, equal results first.

Every rival runs in a process of its own, alternating with ours. Finished cells of the same commit are skipped. The exit
status is 1 when results differ, a rival raises or a process dies, and 2 when nothing that is asked for can be measured.
Records lie in a file beside the results, which stay as they are until every process has ended well.

python benchmarks/local_solve.py
python benchmarks/local_solve.py --batch 1 32 --neighbors 16 --points 100000 --rivals kneighbors --results /tmp/trial
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from counts import check_counts
from local_solve_contenders import Contender
from local_solve_problem import POOL
from local_solve_records import Cell, Record, read, to_csv
from local_solve_report import Run, markdown
from local_solve_rivals import RIVALS
from local_solve_worker import Job

from agents.common.atomic_save import write_text
from agents.training.provenance import commit

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "local_solve"
PARTS = (*RIVALS, "acting")
GRADIENT_CELLS = {"batch": {32, 256}, "neighbors": {16, 64}, "points": {1_000, 10_000}, "dim": {8, 64}}
"""Gradients are timed on this corner of the grid."""

ACTING_THREADS = 1
ACTING = ("head", "correction")
"""What is timed of one acting query."""

UNKNOWN = "unknown"
"""Commit of code that is no checkout."""

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
Work = tuple[str, Cell]
Process = tuple[Job, dict[str, str]]
"""A job with the environment of its process."""

Keys = set[tuple[object, ...]]
"""What tells measurements apart, of those that are finished."""


@dataclass(frozen=True)
class Grid:
    """Which cells to measure, and how."""

    batch: tuple[int, ...] = (1, 32, 256, 1024)
    """Queries in a batch."""

    neighbors: tuple[int, ...] = (8, 16, 32, 64)
    """Neighbours of a query."""

    points: tuple[int, ...] = (1_000, 10_000, 100_000)
    """Support points."""

    dim: tuple[int, ...] = (4, 8, 64, 512)
    """Width of a feature."""

    parts: tuple[str, ...] = PARTS
    """Whole predictions, search alone, gradients (32 or 256 queries, 16 or 64 neighbours, 1,000 or 10,000 points of
    width 8 or 64), and one acting query."""

    rivals: tuple[str, ...] = tuple(dict.fromkeys(itertools.chain(*RIVALS.values())))
    """Rivals by name; those that are not installed are left out, and the report says so."""

    rounds: int = 9
    """Alternations between a rival and ours, at most."""

    seconds_per_cell: float = 0.25
    """No further round of a cell begins after so many seconds; every cell has two."""

    threads: int = 2
    """Threads of every library; the acting query has one."""

    results: Path = RESULTS
    """Where the results go, without the suffix: .csv and .md are added. Records of another commit that lie there are
    replaced, so a trial belongs elsewhere."""

    force: bool = False
    """Forget finished cells and measure them again."""

    def __post_init__(self) -> None:
        for name, values, known in (
            ("part", self.parts, PARTS),
            ("rival", self.rivals, set(itertools.chain(*RIVALS.values()))),
        ):
            if unknown := set(values) - set(known):
                raise ValueError(f"unknown {name} {sorted(unknown)}; known are {', '.join(sorted(known))}")
        check_counts(self, "rounds")
        if max(self.batch) > POOL:
            raise ValueError(f"a batch of {max(self.batch)} queries, but a problem has {POOL}")
        if max(self.neighbors) >= min(self.points):
            raise ValueError(f"{max(self.neighbors)} neighbours need more than {min(self.points)} points")

    @property
    def csv(self) -> Path:
        """Records of the last grid that was completed."""
        return self.results.with_name(f"{self.results.name}.csv")

    @property
    def unfinished(self) -> Path:
        """Records of a grid that goes on, or was interrupted."""
        return self.results.with_name(f"{self.results.name}.unfinished.csv")

    @property
    def markdown(self) -> Path:
        """Report."""
        return self.results.with_name(f"{self.results.name}.md")

    def threads_of(self, part: str) -> int:
        """Threads of every library in one part."""
        return ACTING_THREADS if part == "acting" else self.threads

    def cells(self, part: str) -> list[Cell]:
        """The cells of one part."""
        axes = {"batch": self.batch, "neighbors": self.neighbors, "points": self.points, "dim": self.dim}
        if part == "gradient":
            axes = {name: tuple(v for v in values if v in GRADIENT_CELLS[name]) for name, values in axes.items()}
        return [Cell(*values) for values in itertools.product(*axes.values())]


def is_missing(rival: type[Contender]) -> bool:
    """Whether a module that the rival needs cannot be found."""
    return any(importlib.util.find_spec(name) is None for name in rival.requires)


def jobs(grid: Grid, part: str, name: str, finished: Keys, code: str) -> list[Process]:
    """The processes that a rival still needs in one part."""
    rival = RIVALS[part][name]
    todo = [
        (precision, cell)
        for precision in rival.precisions
        for cell in grid.cells(part)
        if (part, name, cell, precision) not in finished
    ]
    groups = [todo]
    if rival.one_process_per_precision:
        groups = [[work for work in todo if work[0] == precision] for precision in rival.precisions]
    return [(_job(grid, part, name, group, code), rival.environment(group[0][0])) for group in groups if group]


def _job(grid: Grid, part: str, name: str, todo: list[Work], code: str) -> Job:
    return Job(part, name, todo, grid.rounds, grid.seconds_per_cell, grid.threads_of(part), str(grid.unfinished), code)


def start(job: Job, environment: dict[str, str]) -> bool:
    """Run a job in a process whose libraries see their number of threads before they load."""
    threads = dict.fromkeys(THREAD_VARIABLES, str(job.threads))
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "local_solve_worker.py")],
        input=job.to_json(),
        text=True,
        env={**os.environ, **threads, **environment, "PYTHONPATH": paths},
        check=False,
    )
    if done.returncode:
        print(f"{job.part} {job.rival}: its process ended with status {done.returncode}", file=sys.stderr)
    return done.returncode == 0


def kept(grid: Grid, code: str) -> list[Record]:
    """Records of an earlier run that still count: of the same commit without local changes, as many threads, and ok.

    All others are dropped, so that one file never mixes commits. An interrupted grid began with those of the completed
    one.
    """
    if grid.force or code.endswith(("-dirty", UNKNOWN)):
        return []

    def counts(record: Record) -> bool:
        origin = (record.status, record.commit, record.threads)
        return origin == ("ok", code, grid.threads_of(record.part))

    return list(filter(counts, read(grid.unfinished))) or list(filter(counts, read(grid.csv)))


def not_installed(grid: Grid) -> list[str]:
    """Rivals that are asked for and cannot be measured here."""
    return sorted({name for part, name in _wanted(grid) if is_missing(RIVALS[part][name])})


def processes(grid: Grid, finished: Keys, code: str) -> list[Process]:
    """Every process that is still needed."""
    wanted = [(part, name) for part, name in _wanted(grid) if not is_missing(RIVALS[part][name])]
    needed = [process for part, name in wanted for process in jobs(grid, part, name, finished, code)]
    if "acting" in grid.parts and not {("acting", name) for name in ACTING} <= {key[:2] for key in finished}:
        needed.append((_job(grid, "acting", "bar", [], code), {}))
    return needed


def _wanted(grid: Grid) -> list[tuple[str, str]]:
    return [(part, name) for part in grid.parts for name in RIVALS.get(part, ()) if name in grid.rivals]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing and write both files."""
    arguments = sys.argv[1:] if arguments is None else arguments
    grid = tyro.cli(Grid, description=__doc__, args=arguments)
    load, started = os.getloadavg()[0], time.perf_counter()
    code = commit() or UNKNOWN
    missing, wanted = not_installed(grid), {name for _, name in _wanted(grid)}
    # The acting query needs no rival, but is not what somebody waits for whose rivals are all missing.
    if (wanted and wanted == set(missing)) or not processes(grid, set(), code):
        lacking = f"; not installed: {', '.join(missing)} (pip install -e '.[bench]')" if missing else ""
        print(
            f"local_solve.py: none of what is asked for can be measured, so {grid.csv} stays as it is{lacking}; ask "
            "for other --parts, --rivals or sizes",
            file=sys.stderr,
        )
        return 2
    earlier = kept(grid, code)
    needed = processes(grid, {record.key for record in earlier}, code)
    write_text(grid.unfinished, to_csv(earlier))
    ended_well = [start(job, environment) for job, environment in needed]
    if not all(ended_well):
        print(
            f"local_solve.py: {grid.csv} stays as it is; {grid.unfinished} holds what was measured, and of a clean "
            "commit the same command goes on from there, or without a rival that dies (--rivals)",
            file=sys.stderr,
        )
        return 1
    records = read(grid.unfinished)
    run = Run(tuple(arguments), code, grid.threads, load, len(earlier), tuple(missing))
    write_text(grid.csv, to_csv(records))
    write_text(grid.markdown, markdown(records, run))
    grid.unfinished.unlink()
    wrong = sum(record.status != "ok" for record in records)
    print(f"{len(records)} records, {wrong} wrong, {time.perf_counter() - started:.0f} s: {grid.markdown}")
    for name in missing:
        print(f"{name} is not installed: pip install -e '.[bench]'", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
