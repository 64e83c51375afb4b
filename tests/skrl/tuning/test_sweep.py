"""The search on landscapes whose minimum is known."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor

from skrl.kernels import Matern32
from skrl.solve.local_solve import Prediction
from skrl.tuning.leave_one_out import COARSE_PROBES
from skrl.tuning.probes import Probes
from skrl.tuning.sweep import Axis, Position, Sweep

LENGTHSCALES, RIDGES = Axis(2.0, 2.0**0.25, -20, 16), Axis(0.01, 10.0**0.125, -40, 40)
Landscape = Callable[[float, float, int], float]


class Landscapes(Probes):
    """Probes whose mean square error is a given function of lengthscale, ridge and k."""

    def __init__(self, landscape: Landscape, probes: int = 50, noise: float = 0.0) -> None:
        self.landscape, self.noise, self.kernel = landscape, noise, Matern32()
        self.rows, self.targets = torch.arange(probes), torch.zeros(probes, 1)
        self.calls: Counter[tuple[float, float, int]] = Counter()

    def thinned(self, most: int) -> Landscapes:
        few = Landscapes(self.landscape, most, self.noise)
        few.calls = self.calls
        return few

    def predictions(self, lengthscale: float, ridges: Sequence[float], k: int) -> Iterator[Prediction]:
        for ridge in ridges:
            self.calls[lengthscale, ridge, k] += 1
            # Half of the probes err more, half less, others at every ridge.
            generator = torch.Generator().manual_seed(round(8.0 * math.log10(ridge)) + 100)
            order = torch.randperm(len(self.rows), generator=generator)
            signs = torch.where(order % 2 == 0, 1.0, -1.0)
            squares = self.landscape(lengthscale, ridge, k) + self.noise * signs
            yield Prediction(squares.sqrt().unsqueeze(1), torch.zeros(len(self.rows)))


def search(probes: Probes, candidates: Sequence[int] = (8,), rounds: int = 30) -> tuple[int, float, float]:
    sweep = Sweep(probes, LENGTHSCALES, RIDGES, "error")
    k, (i, j) = sweep.settings(list(candidates), rounds)
    return k, LENGTHSCALES.value(i), RIDGES.value(j)


def valley(lengthscale: float, ridge: float) -> float:
    """Narrow across λ ℓ² = 0.1, and lowest at ℓ = 9."""
    across, along = math.log(ridge * lengthscale**2 / 0.1), math.log(lengthscale / 9.0)
    return 1.0 + 0.2 * across**2 + 0.02 * along**2


def test_axis() -> None:
    axis = Axis(3.0, 2.0, -2, 5)
    assert [axis.value(i) for i in (-1, 0, 2)] == [1.5, 3.0, 12.0]
    assert list(axis.spaced(3)) == [5, 2, -1]
    assert axis.around(0, 2) == [-2, 0, 2]
    assert axis.around(-1, 2) == [-2, -1, 1]
    assert axis.around(5, 2) == [3, 5]
    fixed = Axis(7.0)
    assert (list(fixed.spaced(4)), fixed.around(0, 4), fixed.value(0)) == ([0], [0], 7.0)


@pytest.mark.parametrize("probes", [50, 500])
def test_walks_down_a_narrow_valley(probes: int) -> None:
    _, lengthscale, ridge = search(Landscapes(lambda lengthscale, ridge, k: valley(lengthscale, ridge), probes))
    on_grid = min(
        valley(LENGTHSCALES.value(i), RIDGES.value(j))
        for i in range(LENGTHSCALES.low, LENGTHSCALES.high + 1)
        for j in range(RIDGES.low, RIDGES.high + 1)
    )
    assert valley(lengthscale, ridge) < 1.0 + 2.0 * (on_grid - 1.0) + 1e-3


def test_computes_every_position_once() -> None:
    probes = Landscapes(lambda lengthscale, ridge, k: valley(lengthscale, ridge))
    search(probes, [4, 8])
    assert len(probes.calls) > 100
    assert set(probes.calls.values()) == {1}


def test_stays_on_the_grid_and_finds_its_corner() -> None:
    corners: list[tuple[float, Position]] = [(1.0, (16, 40)), (-1.0, (-20, -40))]
    for sign, (i, j) in corners:
        probes = Landscapes(lambda lengthscale, ridge, k, sign=sign: 1.0 - sign * 1e-2 * math.log(lengthscale * ridge))
        assert search(probes) == (8, LENGTHSCALES.value(i), RIDGES.value(j))


def test_without_rounds_the_coarse_grid_decides() -> None:
    probes = Landscapes(lambda lengthscale, ridge, k: valley(lengthscale, ridge))
    Sweep(probes, LENGTHSCALES, RIDGES, "error").settings([8], 0)
    lengthscales = {lengthscale for lengthscale, _, _ in probes.calls}
    assert lengthscales == {LENGTHSCALES.value(i) for i in (16, 8, 0, -8, -16)}


@pytest.mark.parametrize("probes", [50, 500])
def test_a_plateau_ends_at_the_largest_ridge(probes: int) -> None:
    """Level up to λ = 3, steep beyond, and slightly lowest at ℓ = 2."""
    _, lengthscale, ridge = search(
        Landscapes(lambda lengthscale, ridge, k: 1.0 + (ridge > 3.0) + 1e-3 * math.log(lengthscale / 2.0) ** 2, probes)
    )
    assert lengthscale == 2.0
    assert 0.3 < ridge <= 3.0


def test_only_a_difference_that_the_probes_can_tell_costs_ridge() -> None:
    """The loss rises by 0.01 per decade of λ; with ±0.5 in each of 50 probes half a standard error is 0.05."""

    def rising(lengthscale: float, ridge: float, k: int) -> float:
        return 1.0 + 0.01 * math.log10(ridge / 1e-7)

    assert search(Landscapes(rising))[2] == pytest.approx(1e-7)
    assert 1e-4 < search(Landscapes(rising, noise=0.5))[2] < 3e-2


def test_the_smallest_of_equally_good_numbers_of_neighbours() -> None:
    def level(lengthscale: float, ridge: float, k: int) -> float:
        return valley(lengthscale, ridge) + 0.1 * (k < 8)

    assert search(Landscapes(level), [4, 8, 16, 32])[0] == 8
    assert search(Landscapes(level, 500), [4, 8, 16, 32])[0] == 8


def test_a_better_number_of_neighbours_wins() -> None:
    def falling(lengthscale: float, ridge: float, k: int) -> float:
        return valley(lengthscale, ridge) + 1.0 / k

    assert search(Landscapes(falling), [4, 8, 16, 32])[0] == 32


def test_the_coarse_grid_is_seen_by_few_probes() -> None:
    seen: set[int] = set()

    class Watched(Landscapes):
        def predictions(self, lengthscale: float, ridges: Sequence[float], k: int) -> Iterator[Prediction]:
            seen.add(len(self.rows))
            return super().predictions(lengthscale, ridges, k)

        def thinned(self, most: int) -> Watched:
            assert most == COARSE_PROBES
            few = Watched(self.landscape, most)
            few.calls = self.calls
            return few

    whole = Watched(lambda lengthscale, ridge, k: valley(lengthscale, ridge), 500)
    search(whole)
    assert seen == {COARSE_PROBES, 500}


def test_one_setting_needs_no_search() -> None:
    probes = Landscapes(lambda lengthscale, ridge, k: 1.0)
    assert Sweep(probes, Axis(3.0), Axis(0.5), "error").settings([8], 6) == (8, (0, 0))
    assert probes.calls == {(3.0, 0.5, 8): 1}


def test_losses_are_those_of_the_probes() -> None:
    probes = Landscapes(lambda lengthscale, ridge, k: lengthscale + ridge)
    losses: Tensor = Sweep(probes, LENGTHSCALES, RIDGES, "error").losses(8, [(0, 0), (4, 8)])
    assert losses.shape == (2, 50)
    torch.testing.assert_close(losses.mean(1), torch.tensor([2.01, 4.1], dtype=torch.float64), rtol=1e-6, atol=0.0)
