"""Statistics against published values, values by hand, and scipy's own bootstrap."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats
from statistics_of_curves import (
    Scores,
    area_under_curve,
    bootstrap_interval,
    curve_intervals,
    first_reaching,
    improvement_interval,
    interquartile_mean,
    median_interval,
    probability_of_improvement,
    ratio_interval,
    stratified_interval,
    stratified_mean_interval,
)

# Runs by environments, and what they give: rliable's tests/rliable/metrics_test.py.
X = np.array([[1.0, 2.0], [2.0, 2.0], [1.0, 1.0], [2.0, 1.0]])
Y = np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])


def columns(scores: Scores) -> list[Scores]:
    return list(scores.T)


def test_rliables_own_values() -> None:
    assert stratified_interval(columns(X)).estimate == 1.5
    assert stratified_interval(columns(Y)).estimate == 2.0
    assert probability_of_improvement(columns(X), columns(Y)) == pytest.approx(1 / 3)


def test_interquartile_mean_by_hand() -> None:
    scores = np.array([100.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, -100.0])
    assert interquartile_mean(scores) == pytest.approx((2 + 3 + 4 + 5) / 4)
    assert interquartile_mean(np.array([9.0, 0.0, 1.0, 2.0, 50.0])) == pytest.approx((1 + 2 + 9) / 3)
    both = np.stack([scores, 2 * scores])
    assert interquartile_mean(both).tolist() == [3.5, 7.0]
    assert interquartile_mean(both.T, axis=0).tolist() == [3.5, 7.0]


def test_improvement_is_the_mann_whitney_statistic_with_ties_halved() -> None:
    assert probability_of_improvement([np.array([3.0, 1.0])], [np.array([1.0, 2.0])]) == (1 + 1 + 0.5 + 0) / 4
    rng = np.random.default_rng(0)
    ours, theirs = rng.integers(5, size=9).astype(float), rng.integers(5, size=7).astype(float)
    expected = stats.mannwhitneyu(ours, theirs, alternative="greater").statistic / 63
    assert probability_of_improvement([ours], [theirs]) == pytest.approx(expected)
    assert probability_of_improvement([theirs], [ours]) == pytest.approx(1 - expected)
    assert probability_of_improvement([ours, theirs], [ours, theirs]) == pytest.approx(0.5)
    # 22 episodes of 50 won, in two orders of adding them up.
    assert probability_of_improvement([np.array([0.43999999999999995])], [np.array([0.44000000000000006])]) == 0.5


def test_improvement_interval_of_two_runs_by_enumeration() -> None:
    # Ours is drawn as (0, 0), (0, 2), (2, 0) or (2, 2): chances 0, 1/2, 1/2 and 1.
    ours, theirs = np.array([0.0, 2.0]), np.array([1.0, 1.0])
    assert improvement_interval([ours], [theirs]) == (0.5, 0.0, 1.0)
    # Eight such environments: the mean of eight chances that are 0, 1/2, 1 with weights 1/4, 1/2, 1/4, a binomial / 16.
    found = improvement_interval([ours] * 8, [theirs] * 8)
    low, high = stats.binom.ppf([0.025, 0.975], 16, 0.5) / 16
    assert found == (0.5, pytest.approx(low), pytest.approx(high))
    # The other side is drawn anew too.
    assert improvement_interval([np.array([1.0])], [np.array([0.0, 2.0])]) == (0.5, 0.0, 1.0)


def test_one_stratum_is_the_usual_bootstrap() -> None:
    scores = np.random.default_rng(0).normal(size=12)
    usual = stats.bootstrap(
        (scores,), interquartile_mean, method="percentile", n_resamples=10_000, rng=np.random.default_rng(1)
    ).confidence_interval
    found = bootstrap_interval(scores)
    assert found.estimate == float(stats.trim_mean(scores, 0.25))
    assert (found.low, found.high) == pytest.approx((usual.low, usual.high), abs=0.05)


def test_seeds_are_drawn_within_their_environment() -> None:
    # Between environments everything differs, within them nothing does.
    easy, hard = np.full(4, 1.0), np.zeros(4)
    assert stratified_interval([easy, hard]) == (0.5, 0.5, 0.5)
    pooled = bootstrap_interval(np.concatenate([easy, hard]))
    assert (pooled.low, pooled.high) == (0.0, 1.0)


def test_the_mean_of_strata_by_enumeration() -> None:
    # Each mean of three is drawn by itself; those of 27 draws of the one meet all of the other.
    easy, hard = np.array([0.0, 1.0, 4.0]), np.array([-9.0, 0.0, 2.0])
    means = [np.array(list(itertools.product(scores, repeat=3))).mean(1) for scores in (easy, hard)]
    drawn = np.add.outer(*means) / 2
    found = stratified_mean_interval([easy, hard])
    assert found.estimate == pytest.approx((5 / 3 - 7 / 3) / 2)
    for end, least, most in ((found.low, 2.0, 3.0), (found.high, 97.0, 98.0)):
        assert np.percentile(drawn, least) - 1e-9 <= end <= np.percentile(drawn, most) + 1e-9


def test_the_mean_sees_an_environment_that_the_interquartile_mean_leaves_out() -> None:
    solved = [np.full(4, 1.0)] * 3
    for failures in (0.0, -5.0):
        assert stratified_interval([*solved, np.full(4, failures)]).estimate == 1.0
        assert stratified_mean_interval([*solved, np.full(4, failures)]).estimate == (3.0 + failures) / 4


def test_ratio_of_means() -> None:
    found = ratio_interval(np.array([1.0, 3.0]), np.array([4.0, 4.0]))
    assert found == (0.5, 0.25, 0.75)
    wide = ratio_interval(np.array([2.0, 2.0]), np.array([1.0, 4.0]))
    assert wide == (0.8, 0.5, 2.0)


def test_threshold_by_hand() -> None:
    steps, returns = np.array([10.0, 20.0, 30.0]), np.array([1.0, 5.0, 4.0])
    assert first_reaching(5.0, returns, steps) == 20.0
    assert first_reaching(0.0, returns, steps) == 10.0
    assert first_reaching(5.1, returns, steps) == np.inf


def test_median_counts_what_was_never_reached() -> None:
    assert median_interval(np.array([10.0, np.inf, 30.0])) == (30.0, 10.0, np.inf)
    assert median_interval(np.array([np.inf, np.inf, 5.0])).estimate == np.inf
    assert median_interval(np.full(3, np.inf)) == (np.inf, np.inf, np.inf)
    assert median_interval(np.full(3, 7.0)) == (7.0, 7.0, 7.0)


def test_curves_have_a_band_at_every_evaluation() -> None:
    curves = np.array([[0.0, 1.0], [0.0, 2.0], [0.0, 3.0], [0.0, 100.0]])
    middle, low, high = curve_intervals(curves)
    assert middle.tolist() == [0.0, 2.5]
    assert (low[0], high[0]) == (0.0, 0.0)
    assert 1.0 <= low[1] < 2.5 < high[1] <= 100.0
    assert area_under_curve(np.array([1.0, 2.0, 6.0])) == 3.0


def test_the_band_of_a_curve_by_enumeration() -> None:
    returns = np.arange(6.0) ** 2
    _, low, high = curve_intervals(returns[:, None])
    drawn = interquartile_mean(np.array(list(itertools.product(returns, repeat=6))))
    # Between the ends of bands of 93 and 97 %.
    for end, least, most in ((low, 1.5, 3.5), (high, 96.5, 98.5)):
        assert np.percentile(drawn, least) <= end.item() <= np.percentile(drawn, most)
