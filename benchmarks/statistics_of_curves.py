"""Statistics of learning curves over seeds.

R. Agarwal et al., *Deep Reinforcement Learning at the Edge of the Statistical Precipice*, 2021.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

Scores = npt.NDArray[np.float64]


class Interval(NamedTuple):
    """An estimate with the ends of its 95 % bootstrap interval."""

    estimate: float
    low: float
    high: float


def interquartile_mean(scores: Scores, axis: int = -1) -> Scores:
    """Mean of the middle half of the scores along an axis: 25 % are cut at either end."""
    return np.asarray(stats.trim_mean(scores, 0.25, axis=axis))


def bootstrap_interval(scores: Scores, resamples: int = 10_000, seed: int = 0) -> Interval:
    """Interquartile mean over seeds with a percentile bootstrap interval.

    Args:
        scores: one per seed, [n].
        resamples: bootstrap resamples.
        seed: of the resampling.
    """
    rng = np.random.default_rng(seed)
    drawn = scores[rng.integers(len(scores), size=(resamples, len(scores)))]
    low, high = np.percentile(interquartile_mean(drawn), [2.5, 97.5])
    return Interval(float(interquartile_mean(scores)), float(low), float(high))


def curve_intervals(curves: Scores, resamples: int = 2_000, seed: int = 0) -> npt.NDArray[np.float64]:
    """Interquartile mean curve and its pointwise 95 % bootstrap band: [seeds, evaluations] gives [3, evaluations]."""
    rng = np.random.default_rng(seed)
    drawn = curves[rng.integers(len(curves), size=(resamples, len(curves)))]
    band = np.percentile(interquartile_mean(drawn, axis=1), [2.5, 97.5], axis=0)
    return np.vstack([interquartile_mean(curves, axis=0), band])


def area_under_curve(mean_returns: Scores) -> float:
    """Mean of the evaluations during training: the area under the curve over the budget, in units of return."""
    return float(np.mean(mean_returns))
