"""Finished cells: one row of a CSV file each, written as soon as it is measured."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal, NamedTuple, get_type_hints

Status = Literal["ok", "failed", "error"]


class Cell(NamedTuple):
    """Where two sides meet: queries in a batch, neighbours, support points and width."""

    batch: int
    neighbors: int
    points: int
    dim: int

    def __str__(self) -> str:
        """As the report prints it."""
        return f"B={self.batch} k={self.neighbors} M={self.points} d={self.dim}"


@dataclass(frozen=True)
class Record:
    """One cell at one precision; float64 is compared only, float32 is compared and timed.

    Errors are distances |a − b| / (1 + |b|), empty where there is nothing to compare.
    """

    part: str
    rival: str
    batch: int
    neighbors: int
    points: int
    dim: int
    precision: str
    status: Status
    commit: str
    threads: int
    compared_queries: int | None = None
    our_error: float | None = None
    """Ours from the dense float64 solution."""
    rival_error: float | None = None
    """The rival from the dense float64 solution."""
    difference: float | None = None
    """Ours from the rival."""
    our_us: float | None = None
    rival_us: float | None = None
    """Microseconds of a batch."""
    ratio: float | None = None
    """The rival's time over ours: above 1 we are ahead."""
    rounds: int | None = None
    solved_queries: int | None = None
    """Queries that the rival solved; where fewer than the batch, the time of the others is extrapolated linearly."""
    our_fit_ms: float | None = None
    rival_fit_ms: float | None = None
    """Building the index, outside the times above."""
    note: str = ""

    @property
    def cell(self) -> Cell:
        """Its place in the grid."""
        return Cell(self.batch, self.neighbors, self.points, self.dim)

    @property
    def measured_ratio(self) -> float:
        """The ratio of a record that was timed."""
        assert self.ratio is not None
        return self.ratio

    @property
    def key(self) -> tuple[object, ...]:
        """What makes two records the same measurement."""
        return self.part, self.rival, self.cell, self.precision


def read(path: Path) -> list[Record]:
    """Records of a file; none when there is no file or an older version with other columns wrote it.

    Of equal keys the last one counts.
    """
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        records = [_parse(row) for row in reader] if reader.fieldnames == _NAMES else []
    return list({record.key: record for record in records}.values())


def to_csv(records: Iterable[Record]) -> str:
    """The text of a file, in the order of the grid."""
    text = io.StringIO()
    ordered = sorted(records, key=lambda record: (record.part, record.rival, record.precision, record.cell))
    csv.writer(text).writerows([_NAMES, *map(_row, ordered)])
    return text.getvalue()


def append(path: Path, record: Record) -> None:
    """Add a row to a file that exists."""
    with path.open("a", newline="", encoding="utf-8") as file:
        csv.writer(file).writerow(_row(record))


_NAMES = [field.name for field in fields(Record)]


def _row(record: Record) -> list[object]:
    values = asdict(record)
    return [f"{value:.5g}" if isinstance(value, float) else value for value in (values[name] for name in _NAMES)]


def _parse(row: dict[str, str]) -> Record:
    values: dict[str, object] = {}
    for name, hint in get_type_hints(Record).items():
        text = row[name]
        if hint == int | None or hint is int:
            values[name] = int(text) if text else None
        elif hint == float | None:
            values[name] = float(text) if text else None
        else:
            values[name] = text
    return Record(**values)  # type: ignore[arg-type]
