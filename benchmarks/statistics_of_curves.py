"""Statistics of learning curves over seeds and environments.

R. Agarwal et al., *Deep Reinforcement Learning at the Edge of the Statistical Precipice*, NeurIPS 2021, and its library
rliable (`metrics.py`), whose definitions these are. Intervals are percentile intervals of 95 %. *Strata* are arrays
with one score per seed, one array for every environment; seeds are drawn anew within each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

Scores = npt.NDArray[np.float64]
Strata = Sequence[Scores]
LEVELS = (2.5, 97.5)
RESAMPLES = 10_000


class Interval(NamedTuple):
    """An estimate with the ends of its 95 % bootstrap interval."""

    estimate: float
    low: float
    high: float


def interquartile_mean(scores: Scores, axis: int = -1) -> Scores:
    """Mean of the middle half of the scores along an axis: 25 %, rounded down to whole scores, go at either end."""
    return np.asarray(stats.trim_mean(scores, 0.25, axis=axis))


def bootstrap_interval(scores: Scores, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Interquartile mean over seeds with its bootstrap interval.

    Args:
        scores: one per seed, [n].
        resamples: bootstrap resamples.
        seed: of the resampling.
    """
    return stratified_interval([scores], resamples, seed)


def stratified_interval(strata: Strata, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Interquartile mean over all runs of all environments with its stratified bootstrap interval.

    Args:
        strata: normalised scores of every environment, each [seeds].
        resamples: bootstrap resamples.
        seed: of the resampling.
    """
    return _interval(interquartile_mean(np.concatenate(strata)), interquartile_mean(_pooled(strata, resamples, seed)))


def stratified_mean_interval(strata: Strata, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Mean over all runs of all environments with its stratified bootstrap interval.

    Args:
        strata: normalised scores of every environment, each [seeds].
        resamples: bootstrap resamples.
        seed: of the resampling.
    """
    return _interval(np.concatenate(strata).mean(), _pooled(strata, resamples, seed).mean(1))


def probability_of_improvement(ours: Strata, theirs: Strata) -> float:
    """P(X > Y) for a run X of ours and a run Y of theirs, ties counted half, averaged over environments.

    The Mann-Whitney U statistic divided by the number of pairs.

    Args:
        ours: scores of every environment, each [seeds].
        theirs: scores of the same environments, each [their seeds].
    """
    pairs = zip(ours, theirs, strict=True)
    return float(np.mean([_wins(x, y).mean() for x, y in pairs]))


def improvement_interval(ours: Strata, theirs: Strata, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """`probability_of_improvement` with its bootstrap interval; both sides are drawn anew, each on its own."""
    rng = np.random.default_rng(seed)
    drawn = np.zeros(resamples)
    for x, y in zip(ours, theirs, strict=True):
        our_counts, their_counts = _counts(len(x), resamples, rng), _counts(len(y), resamples, rng)
        drawn += np.einsum("rn,nm,rm->r", our_counts, _wins(x, y), their_counts, optimize=True) / (len(x) * len(y))
    return _interval(probability_of_improvement(ours, theirs), drawn / len(ours))


def ratio_interval(ours: Scores, theirs: Scores, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Ratio of two means with its bootstrap interval; both sides are drawn anew, each on its own.

    Args:
        ours: one value per seed, [n].
        theirs: one positive value per seed, [m].
        resamples: bootstrap resamples.
        seed: of the resampling.
    """
    rng = np.random.default_rng(seed)
    drawn = _redrawn(ours, resamples, rng).mean(1) / _redrawn(theirs, resamples, rng).mean(1)
    return _interval(ours.mean() / theirs.mean(), drawn)


def median_interval(values: Scores, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Median over seeds with its bootstrap interval; values may be infinite, as a threshold never reached.

    Args:
        values: one per seed, [n].
        resamples: bootstrap resamples.
        seed: of the resampling.
    """
    drawn = np.median(_redrawn(values, resamples, np.random.default_rng(seed)), axis=1)
    low, high = np.percentile(drawn, LEVELS, method="inverted_cdf")
    return Interval(float(np.median(values)), float(low), float(high))


def curve_intervals(curves: Scores, resamples: int = 2_000, seed: int = 0) -> Scores:
    """Interquartile mean curve and its pointwise 95 % bootstrap band: [seeds, evaluations] gives [3, evaluations]."""
    rng = np.random.default_rng(seed)
    drawn = curves[rng.integers(len(curves), size=(resamples, len(curves)))]
    band = np.percentile(interquartile_mean(drawn, axis=1), LEVELS, axis=0)
    return np.vstack([interquartile_mean(curves, axis=0), band])


def area_under_curve(mean_returns: Scores) -> float:
    """Mean of the evaluations during training: the area under the curve over the budget, in units of return."""
    return float(np.mean(mean_returns))


def first_reaching(threshold: float, mean_returns: Scores, times: Scores) -> float:
    """When an evaluation first reaches a threshold; infinite when none does.

    Args:
        threshold: return to reach.
        mean_returns: [evaluations].
        times: of the evaluations, in environment steps or in seconds, [evaluations].
    """
    reached = np.flatnonzero(mean_returns >= threshold)
    return float(times[reached[0]]) if len(reached) else float("inf")


def _wins(x: Scores, y: Scores) -> Scores:
    """1 where x is greater, 1/2 where both are equal but for rounding: [n] and [m] give [n, m]."""
    return np.where(np.isclose(x[:, None], y, rtol=1e-9, atol=1e-12), 0.5, x[:, None] > y)


def _counts(size: int, resamples: int, rng: np.random.Generator) -> Scores:
    """How often every seed is drawn, [resamples, size]."""
    return rng.multinomial(size, np.full(size, 1 / size), size=resamples).astype(np.float64)


def _pooled(strata: Strata, resamples: int, seed: int) -> Scores:
    """Scores of all environments, drawn anew within each, [resamples, runs]."""
    rng = np.random.default_rng(seed)
    return np.concatenate([_redrawn(scores, resamples, rng) for scores in strata], axis=1)


def _redrawn(scores: Scores, resamples: int, rng: np.random.Generator) -> Scores:
    """Scores drawn with replacement, [resamples, n]."""
    drawn: Scores = scores[rng.integers(len(scores), size=(resamples, len(scores)))]
    return drawn


def _interval(estimate: float | np.floating | Scores, drawn: Scores) -> Interval:
    low, high = np.percentile(drawn, LEVELS)
    return Interval(float(estimate), float(low), float(high))
