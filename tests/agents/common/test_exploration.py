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
    terms = np.arange(1, 5) ** -2.0 / np.sum(np.arange(1, LONGEST + 1) ** -2.0)
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


@pytest.mark.parametrize("exponent", [1.2, 2.0, 3.0])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0])
def test_the_share_of_random_steps_is_what_was_asked_for(exponent, share) -> None:
    lasting, rng = LastingActions(exponent), np.random.default_rng(3)
    steps = [lasting.draw(share, 1000, 4, rng)[0].mean() for _ in range(3 * LONGEST)]
    assert np.mean(steps[LONGEST:]) == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize("exponent", [2, 2.0])
def test_every_action_is_as_likely(exponent) -> None:
    explores, actions = LastingActions(exponent).draw(1.0, 20_000, 4, np.random.default_rng(3))
    assert explores.all()
    assert np.bincount(actions, minlength=4) / 20_000 == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("exponent", [1.0, 0.5, float("inf"), float("nan")])
def test_an_exponent_without_a_distribution_is_refused(exponent) -> None:
    with pytest.raises(ValueError, match="must be above 1"):
        LastingActions(exponent)
