"""One process of the benchmark: a rival, with the libraries and threads that it needs, through its cells.

`local_solve.py` starts it with a job in JSON on standard input.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path

import torch
from local_solve_acting import measure as measure_acting
from local_solve_duel import Budget, Duel, Origin
from local_solve_problem import Problem
from local_solve_records import Cell, Record, append


@dataclass(frozen=True)
class Job:
    """What a process measures."""

    part: str
    rival: str
    todo: list[tuple[str, Cell]]
    """Precision and cell of every record."""
    rounds: int
    seconds: float
    threads: int
    results: str
    """CSV file that records are added to."""
    commit: str

    def to_json(self) -> str:
        """For standard input."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        """From standard input."""
        values = json.loads(text)
        values["todo"] = [(precision, Cell(*cell)) for precision, cell in values["todo"]]
        return cls(**values)


def records(job: Job) -> Iterator[Record]:
    """Measure every cell of a job, one problem and one fit at a time."""
    if job.part == "acting":
        yield from measure_acting(20 * job.rounds, job.commit)
        return
    budget = Budget(job.rounds, job.seconds)
    # Libraries load and compiled loops compile before anything is timed, index building included.
    _ = list(_duel(job, Problem(64, 4, 8), 8, job.todo[0][0], [Cell(8, 8, 64, 4)], budget))
    ordered = sorted(job.todo, key=lambda entry: (entry[1].points, entry[1].dim, entry[1].neighbors, *entry))
    for (points, dim), group in groupby(ordered, key=lambda entry: (entry[1].points, entry[1].dim)):
        entries = list(group)
        problem = Problem(points, dim, max(cell.neighbors for _, cell in entries))
        for (k, precision), same_fit in groupby(entries, key=lambda entry: (entry[1].neighbors, entry[0])):
            yield from _duel(job, problem, k, precision, [cell for _, cell in same_fit], budget)
            gc.collect()


def _duel(job: Job, problem: Problem, k: int, precision: str, cells: list[Cell], budget: Budget) -> Iterator[Record]:
    """Whatever a rival raises is a result too: it is recorded, and the other cells go on."""
    origin = Origin(job.commit, job.threads)

    def raised(cell: Cell, error: Exception) -> Record:
        note = f"{type(error).__name__}: {error}".splitlines()[0]
        record = Record(job.part, job.rival, *cell, precision, "error", origin.commit, origin.threads)
        return replace(record, note=note)

    try:
        duel = Duel(job.part, job.rival, problem, k, precision)
    except Exception as error:
        yield from [raised(cell, error) for cell in cells]
        return
    for cell in cells:
        try:
            record = duel.measure(cell.batch, budget, origin)
        except Exception as error:
            record = raised(cell, error)
        yield record


def main() -> None:
    """Measure the job, and add each record to the file at once."""
    job = Job.from_json(sys.stdin.read())
    torch.set_num_threads(job.threads)
    for record in records(job):
        append(Path(job.results), record)
        times = (
            "" if record.ratio is None else f" {record.rival_us:.0f} µs, ours {record.our_us:.0f}: {record.ratio:.2f}×"
        )
        print(f"{record.part} {record.rival} {record.cell} {record.precision} {record.status}{times} {record.note}")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
