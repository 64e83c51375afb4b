"""Our side and one rival on the same problem: are their answers equal, and how long do they take?"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
from local_solve_contenders import Contender
from local_solve_problem import POOL, PROBES, WHOLE, Answer, Problem, distance
from local_solve_records import Cell, Record
from local_solve_rivals import OURS, RIVALS
from local_solve_timing import Call, interleave

TOLERANCE = {"float64": 1e-9, "float32": 1e-5}
"""Largest distance of two answers that count as equal, as both rtol and atol."""

FEWEST_COMPARED = 4
"""Queries that are compared at least, by several calls where a batch is smaller."""


@dataclass(frozen=True)
class Budget:
    """What a cell may cost: rounds at most, and the seconds after which no further round begins."""

    rounds: int
    seconds: float


@dataclass(frozen=True)
class Origin:
    """What a record was measured on: commit and threads."""

    commit: str
    threads: int


class Duel:
    """Two contenders fitted to one problem.

    Args:
        part: what is compared, a key of `OURS`.
        rival: a key of `RIVALS[part]`.
        problem: support points and queries.
        k: neighbours per query.
        precision: float64 or float32.
    """

    def __init__(self, part: str, rival: str, problem: Problem, k: int, precision: str) -> None:
        self.part, self.name, self.problem, self.precision = part, rival, problem, precision
        self.settings = problem.settings(k)
        self.queries = problem.queries.astype(precision, copy=False)
        self.ours, self.rival = OURS[part](), RIVALS[part][rival]()
        self.our_fit, self.rival_fit = self._fit(self.ours), self._fit(self.rival)
        self._compared: dict[int, Record] = {}

    def _fit(self, contender: Contender) -> float:
        features, targets = (
            contender.native(values.astype(self.precision, copy=False))
            for values in (self.problem.features, self.problem.targets)
        )
        started = time.perf_counter()
        contender.fit(features, targets, self.settings)
        return 1e3 * (time.perf_counter() - started)

    def measure(self, batch: int, budget: Budget, origin: Origin) -> Record:
        """Compare both sides, and time them in float32."""
        cell = Cell(batch, self.settings.k, *self.problem.features.shape)
        record = Record(self.part, self.name, *cell, self.precision, "ok", origin.commit, origin.threads)
        record = replace(record, our_fit_ms=self.our_fit, rival_fit_ms=self.rival_fit)
        if self.precision == "float64":
            size = batch if self.rival.compare_all else min(batch, PROBES)
            if size not in self._compared:
                self._compared[size] = self.compare(replace(record, batch=size))[0]
            return replace(self._compared[size], batch=batch)
        self.rival.settle(self.rival.native(self.queries[:batch]))
        record, earlier = self.compare(record)
        return self.timed(record, budget, earlier)

    def compare(self, record: Record) -> tuple[Record, tuple[float, float]]:
        """Distances between our answers, the rival's and the dense solution's, and whether they are small enough.

        Returns:
            The record, and the seconds of our call and the rival's.
        """
        batch, most = record.batch, self.rival.most_queries
        count = batch if most is None else min(batch, most)
        calls = max(1, FEWEST_COMPARED // batch)
        chosen = np.unique(np.linspace(0, count - 1, min(count, PROBES // calls)).astype(int))
        rows = np.concatenate([call * batch + chosen for call in range(calls)])
        batches = [self.queries[call * batch : (call + 1) * batch] for call in range(calls)]
        (mine, our_seconds), (theirs, rival_seconds) = (_answers(s, batches, chosen) for s in (self.ours, self.rival))
        expected = self.problem.solution(rows, self.settings)
        separated = self.problem.nearest(rows).separated(self.settings.k)
        record = replace(
            record,
            compared_queries=int(separated.sum()),
            our_error=distance(mine, expected, separated),
            rival_error=distance(theirs, expected, separated),
            difference=distance(mine, theirs, separated),
            note=self.rival.setting,
        )
        return _judge(record), (our_seconds, rival_seconds)

    def timed(self, record: Record, budget: Budget, earlier: tuple[float, float]) -> Record:
        """Median times of both sides for a batch."""
        ours, rival = (self._call(side, record.batch) for side in (self.ours, self.rival))
        times = interleave(ours, rival, budget.rounds, budget.seconds, earlier)
        return replace(
            record,
            our_us=1e6 * times.ours,
            rival_us=1e6 * times.rival,
            ratio=times.rival / times.ours,
            rounds=times.rounds,
            solved_queries=min(record.batch, self.rival.most_queries or record.batch),
        )

    def _call(self, contender: Contender, batch: int) -> Call:
        """Answer a batch, another one at every call."""
        starts = range(0, POOL - batch + 1, batch)
        batches = [contender.native(self.queries[start : start + batch]) for start in starts]

        def call(index: int) -> float:
            contender(batches[index % len(batches)])
            return contender.missing_seconds

        return call


def _answers(contender: Contender, batches: list[np.ndarray], chosen: np.ndarray) -> tuple[Answer, float]:
    """The answers to some rows of every batch, and the seconds of the last call."""
    parts, seconds = [], 0.0
    for batch in batches:
        queries, started = contender.native(batch), time.perf_counter()
        output = contender(queries)
        seconds = time.perf_counter() - started + contender.missing_seconds
        answer = contender.answer(output)
        parts.append({name: value if name in WHOLE else value[chosen] for name, value in answer.items()})
    columns = {name: [part[name] for part in parts] for name in parts[0]}
    merged = {name: np.sum(each, axis=0) if name in WHOLE else np.concatenate(each) for name, each in columns.items()}
    return merged, seconds


def _judge(record: Record) -> Record:
    """Failed when nothing could be compared or a distance is too large.

    A rival's regression in float32 is not judged, since its rounding is its own affair; its neighbours are.
    """
    if not record.compared_queries:
        return replace(record, status="failed", note="no query has well separated neighbours")
    judged = {"ours from the dense solution": record.our_error}
    if record.precision == "float64" or record.part == "search":
        judged["the rival from the dense solution"] = record.rival_error
        judged["ours from the rival"] = record.difference
    bound = TOLERANCE[record.precision]
    wrong = [f"{name}: {error:.2g}" for name, error in judged.items() if error is not None and not error <= bound]
    return replace(record, status="failed", note="; ".join(wrong)) if wrong else record
