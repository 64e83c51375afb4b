"""Interleaved timing of two ways to do the same: rival, ours, rival, ours, so that both see the machine alike."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

SAMPLE_SECONDS = 0.004
"""A sample repeats its call until it lasts about this long."""

MOST_REPEATS = 100
LONG_CALL = 0.1
"""Seconds of a call that neither repeats nor needs an untimed call before it."""

LEAST_ROUNDS = 2
Call = Callable[[int], float]
"""Answers the batch of a number, batches repeat; returns seconds to add for what was left out."""


@dataclass(frozen=True)
class Times:
    """Median seconds of one call over the rounds that were run."""

    ours: float
    rival: float
    rounds: int


def interleave(ours: Call, rival: Call, rounds: int, seconds: float, earlier: tuple[float, float]) -> Times:
    """Time two calls that have run before.

    Args:
        ours: our side.
        rival: the other side.
        rounds: samples of each, at most, 1 or more.
        seconds: no further round begins after this time, but there are two rounds at least.
        earlier: seconds of an earlier call, ours and the rival's; long ones count as a round.

    Raises:
        ValueError: there are to be no rounds.
    """
    if rounds < 1:
        raise ValueError(f"rounds are {rounds}, but must be at least 1")
    started = time.perf_counter()
    is_long = min(earlier) > LONG_CALL
    pilots = list(reversed(earlier)) if is_long else [_sample(call, 0, 1) for call in (rival, ours)]
    repeats = [max(1, min(MOST_REPEATS, round(SAMPLE_SECONDS / pilot))) for pilot in pilots]
    rows = [pilots] if is_long else []
    while len(rows) < rounds and (len(rows) < LEAST_ROUNDS or time.perf_counter() - started < seconds):
        first = 1 + len(rows) * MOST_REPEATS
        rows.append([_sample(call, first, count) for call, count in zip((rival, ours), repeats, strict=True)])
    theirs, mine = zip(*rows, strict=True)
    return Times(median(mine), median(theirs), len(rows))


def _sample(call: Call, first: int, repeats: int) -> float:
    """Mean seconds of consecutive calls; one untimed call drives out what the other side left in the caches."""
    if repeats > 1:
        call(first - 1)
    extra, started = 0.0, time.perf_counter()
    for index in range(first, first + repeats):
        extra += call(index)
    return (time.perf_counter() - started + extra) / repeats
