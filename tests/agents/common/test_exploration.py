from __future__ import annotations

import numpy as np
import pytest

from agents.common.exploration import LONGEST, LastingActions


def test_durations_follow_the_zeta_distribution() -> None:
    """Always exploring, one environment: runs of the same draw are told apart by an action that never repeats."""
    lasting, rng = LastingActions(2.0), np.random.default_rng(0)
    durations = []
    for _ in range(4000):
        explores, _ = lasting.draw(1.0, 1, 3, rng)
        assert explores.all()
        durations.append(1 + int(lasting._left[0]))
        lasting.end(np.array([True]))
    shares = np.bincount(np.minimum(durations, 5), minlength=6)[1:] / len(durations)
    terms = 6 / np.pi**2 / np.arange(1, 5) ** 2
    assert shares[:4] == pytest.approx(terms, abs=4 * 0.5 / np.sqrt(len(durations)))
    assert max(durations) <= LONGEST


def test_an_action_is_repeated_until_its_duration_is_over() -> None:
    lasting, rng = LastingActions(2.0), np.random.default_rng(1)
    lasting.draw(1.0, 2, 1000, rng)
    lasting._left[:] = [2, 0]
    first = lasting._actions.copy()
    for _ in range(2):
        explores, actions = lasting.draw(0.0, 2, 1000, rng)
        assert explores.tolist() == [True, False]
        assert actions[0] == first[0]
    assert not lasting.draw(0.0, 2, 1000, rng)[0].any()


def test_nothing_lasts_beyond_an_episode_or_another_number_of_environments() -> None:
    lasting, rng = LastingActions(1.01), np.random.default_rng(2)
    lasting.draw(1.0, 3, 2, rng)
    lasting._left[:] = 100
    lasting.end(np.array([True, False, True]))
    assert lasting.draw(0.0, 3, 2, rng)[0].tolist() == [False, True, False]
    assert not lasting.draw(0.0, 2, 2, rng)[0].any()


def test_the_rate_is_that_of_beginning() -> None:
    lasting, rng = LastingActions(3.0), np.random.default_rng(3)
    explores, actions = lasting.draw(0.25, 20_000, 4, rng)
    assert explores.mean() == pytest.approx(0.25, abs=0.02)
    assert np.bincount(actions[explores], minlength=4) / explores.sum() == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("exponent", [1.0, 0.5, float("inf"), float("nan")])
def test_an_exponent_without_a_distribution_is_refused(exponent) -> None:
    with pytest.raises(ValueError, match="must be above 1"):
        LastingActions(exponent)
