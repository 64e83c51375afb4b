"""Settings from the data: the sweep, on data whose answer is known and on data that has none, and the heuristics."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import Tensor

from skrl import SparseKernel, compiling, tune
from skrl.kernels import Gaussian, Matern32, Polynomial
from skrl.search.exact import ExactSearch
from skrl.search.neighbors import Localisation, Neighbors, within_radius
from skrl.tuning import leave_one_out_rmse, median_neighbor_distance, neighbor_lengthscale
from skrl.tuning.leave_one_out import Objective, leave_one_out_loss

OBJECTIVES, LOCALISATIONS = get_args(Objective), get_args(Localisation)


def smooth(points: int = 200, dim: int = 2, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    features = torch.rand(points, dim, dtype=torch.float64)
    return features.to(dtype), torch.sin(4.0 * features[:, :1]).to(dtype)


def noisy(points: int = 200, dim: int = 2, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    features, targets = smooth(points, dim, dtype)
    return features, targets + 0.3 * torch.randn_like(targets)


# What the sweep finds


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("localisation", LOCALISATIONS)
def test_the_score_is_the_loss_at_the_settings(objective: Objective, localisation: Localisation) -> None:
    features, targets = noisy()
    targets = torch.cat([targets, 100.0 * torch.randn_like(targets)], dim=1)
    tuned = tune(features, targets, Matern32(), k=(4, 12), objective=objective, localisation=localisation)
    loss = leave_one_out_loss(features, targets, Matern32(), *tuned[:3], objective=objective, localisation=localisation)
    assert loss.item() == pytest.approx(tuned.score, rel=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("points", "dim"), [(100, 1), (400, 4)])
def test_ridge_follows_the_noise(objective: Objective, dtype: torch.dtype, points: int, dim: int) -> None:
    """Smooth data want a small ridge, noise alone a large one, and smooth data with noise one between."""
    features, targets = smooth(points, dim, dtype)
    errors = torch.randn_like(targets)
    clean, between, noise = (
        tune(features, values, Matern32(), k=16, objective=objective).ridge
        for values in (targets, targets + 0.3 * errors, errors)
    )
    assert clean <= 1e-3
    assert clean < between < noise
    assert noise >= 0.5


def test_likelihood_recovers_a_gaussian_process() -> None:
    """Targets drawn with ℓ = 0.3 and λ = 0.1 in units of the amplitude are no likelier at their own settings."""
    features = torch.rand(400, 2, dtype=torch.float64)
    gram = Matern32()(torch.cdist(features, features) / 0.3) + 0.1 * torch.eye(400, dtype=torch.float64)
    targets = 50.0 * torch.linalg.cholesky(gram) @ torch.randn(400, 1, dtype=torch.float64)
    tuned = tune(features, targets, Matern32(), k=16, objective="likelihood")
    assert 0.1 < float(tuned.lengthscale) < 1.0
    assert 0.02 < tuned.ridge < 0.5
    truth = leave_one_out_loss(features, targets, Matern32(), 0.3, 0.1, 16, objective="likelihood")
    assert tuned.score < truth.item() + 0.01


def test_more_neighbours_where_they_help_and_few_where_they_do_not() -> None:
    """Averaging pays where the function is flat; a function of one neighbour needs no more."""
    features = torch.rand(400, 2, dtype=torch.float64)
    flat = 1.0 + torch.randn(400, 1, dtype=torch.float64)
    pairs = torch.cat([features[:200], features[:200] + 1e-6])
    own = torch.randn(200, 1, dtype=torch.float64).repeat(2, 1)
    assert tune(features, flat, Matern32(), k=(2, 8, 32)).k == 32
    assert tune(pairs, own, Matern32(), k=(32, 8, 2)).k == 2


@pytest.mark.parametrize("scale", [2.0**-10, 2.0**10])
def test_several_columns_are_weighed_alike(scale: float) -> None:
    features, targets = smooth()
    noise = torch.randn_like(targets)
    alike = tune(features, torch.cat([targets, noise], dim=1), Matern32(), k=8)
    assert tune(features, torch.cat([targets, scale * noise], dim=1), Matern32(), k=8) == alike


@pytest.mark.parametrize("scale", [2.0**-66, 2.0**66], ids=["1e-20", "1e20"])
def test_units_do_not_matter(scale: float) -> None:
    features, targets = noisy(dtype=torch.float32)
    plain, features_too = tune(features, targets, Matern32(), k=8), tune(scale * features, targets, Matern32(), k=8)
    assert features_too == plain._replace(lengthscale=scale * float(plain.lengthscale))
    assert tune(features, targets / scale, Matern32(), k=8) == plain


@pytest.mark.parametrize("offset", [0.0, 4e37])
def test_features_whose_sum_overflows_have_a_lengthscale(offset: float) -> None:
    points, values = smooth(dtype=torch.float32)
    plain, huge = (tune(size * points + shift, values, "matern32", k=8) for size, shift in ((1.0, 0.0), (1e37, offset)))
    assert huge.lengthscale == pytest.approx(1e37 * float(plain.lengthscale), rel=0.2)
    answer = SparseKernel(1e37 * torch.randn(200, 2), torch.randn(200, 1), k=4)(torch.zeros(3, 2))
    assert answer.isfinite().all()


def test_a_multiple_of_the_kernel_has_a_multiple_of_the_ridge() -> None:
    features, targets = noisy()
    for objective in OBJECTIVES:
        plain = tune(features, targets, Matern32(), k=8, objective=objective)
        scaled = tune(features, targets, 4.0 * Matern32(), k=8, objective=objective)
        assert scaled[:3] == (plain.lengthscale, pytest.approx(4.0 * plain.ridge), plain.k)
        assert scaled.score == pytest.approx(plain.score)


def test_what_is_given_stays() -> None:
    features, targets = noisy()
    lengthscales = torch.tensor([0.3, 4.0], dtype=torch.float64)
    by_dimension = tune(features, targets, Matern32(), k=8, lengthscale=lengthscales)
    assert by_dimension.lengthscale is lengthscales
    assert by_dimension.ridge == tune(features / lengthscales, targets, Matern32(), k=8, lengthscale=1.0).ridge
    assert tune(features, targets, Matern32(), k=8, ridge=0.25).ridge == 0.25
    assert tune(features, targets, Matern32(), k=8, ridge=0.0).ridge == 0.0
    everything = tune(features, targets, Matern32(), k=8, lengthscale=0.5, ridge=0.25)
    loss = leave_one_out_loss(features, targets, Matern32(), 0.5, 0.25, 8)
    assert everything == (0.5, 0.25, 8, pytest.approx(loss.item()))


def test_the_swept_ridge_is_the_best_of_a_line() -> None:
    features, targets = noisy(400)
    tuned = tune(features, targets, Matern32(), k=8, lengthscale=0.4)
    line = [leave_one_out_loss(features, targets, Matern32(), 0.4, 10.0 ** (j / 8), 8).item() for j in range(-40, 20)]
    assert tuned.score <= 1.01 * min(line)


def test_is_deterministic() -> None:
    features, targets = noisy(700)
    torch.manual_seed(1)
    first = tune(features, targets, Matern32(), k=(4, 8))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert tune(features, targets, Matern32(), k=(4, 8)) == first
    assert torch.equal(torch.get_rng_state(), state)


def test_plain_torch_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    features, targets = noisy(600)
    compiled = tune(features, targets, Matern32(), k=(4, 8))
    monkeypatch.setattr(compiling, "AVAILABLE", False)
    plain = tune(features, targets, Matern32(), k=(4, 8))
    assert plain[:3] == compiled[:3]
    assert plain.score == pytest.approx(compiled.score)


def test_a_kernel_of_no_single_distance() -> None:
    features, targets = noisy()
    tuned = tune(features, targets, Polynomial(2), k=16)
    assert tuned.score < 0.5


def test_fewer_probes_and_rounds_are_nearly_as_good() -> None:
    features, targets = noisy(1000)
    cheap = tune(features, targets, Matern32(), k=16, probes=128, rounds=2)
    exact = tune(features, targets, Matern32(), k=16, probes=1000, rounds=20)
    loss = leave_one_out_loss(features, targets, Matern32(), *cheap[:3], probes=1000)
    assert exact.score <= loss.item() <= 1.1 * exact.score


# Data without an answer


@pytest.mark.parametrize(("objective", "localisation"), [("error", "hard"), ("likelihood", "continuous")])
@pytest.mark.parametrize("points", range(8))
def test_few_points(objective: Objective, localisation: Localisation, points: int) -> None:
    features, targets = noisy(points)
    tuned = tune(features, targets, Matern32(), objective=objective, localisation=localisation)
    assert 0.0 < float(tuned.lengthscale) < math.inf
    assert 0.0 < tuned.ridge < math.inf
    assert tuned.k == 16
    assert math.isnan(tuned.score) == (points < 2)
    if points < 4:
        assert tuned.ridge == 0.01
    if points < 2:
        assert tuned.lengthscale == 1.0
    elif points < 4:
        assert float(tuned.lengthscale) == pytest.approx(neighbor_lengthscale(features, 16).item(), rel=1e-6)


Change = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
DEGENERATE: dict[str, Change] = {
    "constant targets": lambda x, y: (x, torch.full_like(y, 7.0)),
    "zero targets": lambda x, y: (x, torch.zeros_like(y)),
    "no targets": lambda x, y: (x, y[:, :0]),
    "all duplicates": lambda x, y: (torch.full_like(x, 7.0), y),
    "pairs of duplicates": lambda x, y: (x[: len(x) // 2].repeat(2, 1), y),
    "two points many times": lambda x, y: (x[:2].repeat(len(x) // 2, 1), y),
    "one constant dimension": lambda x, y: (x * torch.tensor([1.0, 0.0]) + torch.tensor([0.0, 1e4]), y),
    "no dimension": lambda x, y: (x[:, :0], y),
    "tiny": lambda x, y: (1e-20 * x, 1e-20 * y),
    "huge": lambda x, y: (1e20 * x, 1e20 * y),
    "scales far apart": lambda x, y: (x * torch.tensor([1e-12, 1e12]), torch.cat([1e-12 * y, 1e12 * y], dim=1)),
    "far away": lambda x, y: (x + 1e4, y + 1e4),
    "one outlier": lambda x, y: (x.index_fill(0, torch.tensor([5]), 1e15), y.index_fill(0, torch.tensor([9]), 1e15)),
    "one row not finite": lambda x, y: (x.index_fill(0, torch.tensor([5]), math.nan), y),
    "one target not finite": lambda x, y: (x, y.index_fill(0, torch.tensor([5]), math.inf)),
    "nothing finite": lambda x, y: (x * math.nan, y),
    "half precision": lambda x, y: (x.half(), y.half()),
    "two precisions": lambda x, y: (x.float(), y.double()),
}


@pytest.mark.parametrize("change", DEGENERATE.values(), ids=DEGENERATE)
@pytest.mark.parametrize(("objective", "localisation"), [("error", "hard"), ("likelihood", "continuous")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_degenerate_data(change: Change, objective: Objective, localisation: Localisation, dtype: torch.dtype) -> None:
    features, targets = change(*noisy(40, dtype=dtype))
    tuned = tune(features, targets, Gaussian(), k=(4, 50), objective=objective, localisation=localisation, rounds=2)
    assert 0.0 < float(tuned.lengthscale) < math.inf
    assert 0.0 < tuned.ridge < math.inf
    assert tuned.k in (4, 50)
    assert not math.isinf(tuned.score)


def test_a_row_that_is_not_finite_does_not_count() -> None:
    features, targets = noisy(50)
    expected = tune(features[:48], targets[:48], Matern32(), k=8)
    features[48, 0], targets[49, 0] = math.inf, math.nan
    assert tune(features, targets, Matern32(), k=8) == expected


def test_constant_targets_want_no_ridge_and_conflicting_duplicates_one() -> None:
    features, targets = smooth()
    assert tune(features, torch.full_like(targets, 7.0), Matern32(), k=8).ridge < 1e-6
    conflicting = tune(torch.zeros_like(features), torch.randn_like(targets), Matern32(), k=8)
    assert conflicting.ridge >= 0.5


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"k": 0}, r"k is \[0\], but needs one or several numbers of at least 1"),
        ({"k": ()}, r"k is \[\]"),
        ({"k": (8, -1)}, r"k is \[-1, 8\]"),
        ({"probes": 0}, "probes is 0 and rounds is 6, but must be at least 1 and 0"),
        ({"rounds": -1}, "rounds is -1"),
        ({"objective": "loss"}, "objective is 'loss', but must be one of error, likelihood"),
        ({"localisation": "soft"}, "localisation is 'soft', but must be one of hard, continuous"),
        ({"residuals": torch.zeros(7, 1)}, r"features have shape \(200, 2\) and residuals \(7, 1\)"),
        ({"features": torch.zeros(200)}, r"features have shape \(200,\)"),
    ],
)
def test_bad_arguments_are_explained(keywords: dict[str, object], message: str) -> None:
    features, residuals = noisy()
    arguments = {"features": features, "residuals": residuals, "kernel": Matern32()} | keywords
    with pytest.raises(ValueError, match=message):
        tune(**arguments)  # type: ignore[arg-type]


# The module


def test_the_module_tunes_what_is_left_out() -> None:
    features, targets = noisy()
    expected = tune(features, targets, Matern32(), k=32)
    module = SparseKernel(features, targets)
    assert (module.lengthscale.item(), module.ridge.item(), module.k) == expected[:3]
    expected = tune(features, targets, Matern32(), k=(4, 8), ridge=0.5)
    module = SparseKernel(features, targets, k=(4, 8), ridge=0.5)
    assert (module.lengthscale.item(), module.ridge.item(), module.k) == expected[:3]
    assert SparseKernel(features, targets, k=[4, 8], lengthscale=0.5, ridge=0.1).k in (4, 8)


def test_the_module_tunes_the_residuals_of_its_prior_mean() -> None:
    features, targets = noisy()

    def prior(values: Tensor) -> Tensor:
        return torch.sin(4.0 * values[:, :1])

    module = SparseKernel(features, targets, prior_mean=prior)
    assert module.ridge.item() == tune(features, targets - prior(features), Matern32(), k=32).ridge
    assert module.ridge > 10.0 * SparseKernel(features, targets).ridge


def test_supports_given_at_call_time_are_tuned_alike() -> None:
    features, targets = noisy()
    fixed, given = SparseKernel(features, targets, k=(4, 16)), SparseKernel(k=(4, 16))
    queries = torch.rand(9, 2, dtype=torch.float64)
    assert given.k == (4, 16)
    torch.testing.assert_close(given(queries, features=features, targets=targets), fixed(queries))
    loss = given.leave_one_out_loss(features=features, targets=targets)
    torch.testing.assert_close(loss, fixed.leave_one_out_loss())
    with pytest.raises(ValueError, match="no features"):
        given.leave_one_out_loss()


@pytest.mark.parametrize("k", [(), (4, 0)])
def test_candidates_of_the_module_are_positive(k: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"k is .* but"):
        SparseKernel(*noisy(), k=k)


def test_the_tuned_module_predicts_well() -> None:
    features, targets = smooth(600)
    queries = torch.rand(50, 2, dtype=torch.float64)
    module = SparseKernel(features, targets)
    assert (module(queries) - torch.sin(4.0 * queries[:, :1])).square().mean().sqrt() < 1e-3


# Heuristics


def test_lengthscale_by_hand() -> None:
    """Points 0, 1, 2, 3, 7, 20: second neighbours at 2, 1, 1, 2, 5 and 17; the lower median is 2."""
    features = torch.tensor([[0.0], [1.0], [2.0], [3.0], [7.0], [20.0]])
    assert neighbor_lengthscale(features, 2, factor=1.0).item() == 2.0
    assert neighbor_lengthscale(features, 2, factor=3.0).item() == 6.0
    assert neighbor_lengthscale(features, 1, factor=1.0).item() == 1.0


def test_lengthscale_follows_the_units() -> None:
    features = torch.randn(100, 3, dtype=torch.float64)
    torch.testing.assert_close(neighbor_lengthscale(1e3 * features, 5), 1e3 * neighbor_lengthscale(features, 5))
    torch.testing.assert_close(neighbor_lengthscale(features + 7.0, 5), neighbor_lengthscale(features, 5))


def test_lengthscale_of_several_sets_is_their_common_median() -> None:
    features = torch.tensor([[[0.0], [1.0], [2.0]], [[0.0], [10.0], [20.0]], [[0.0], [4.0], [8.0]]])
    assert neighbor_lengthscale(features, 1, factor=1.0).item() == 4.0


@pytest.mark.parametrize("points", [0, 1, 2, 30])
def test_lengthscale_is_positive_without_any_distance(points: int) -> None:
    assert neighbor_lengthscale(torch.full((points, 2), 3.0), 5, factor=2.0).item() == 2.0


def test_fewer_points_than_k() -> None:
    assert neighbor_lengthscale(torch.tensor([[0.0], [3.0]]), 16, factor=1.0).item() == 3.0


def test_lengthscale_is_detached() -> None:
    features = torch.randn(10, 2, requires_grad=True)
    assert not neighbor_lengthscale(features, 3).requires_grad


def test_median_counts_neither_missing_neighbours_nor_duplicates() -> None:
    distances = torch.tensor([[[1.0, 9.0], [2.0, 3.0], [0.0, 0.0], [8.0, 8.0], [4.0, 5.0]]])
    mask = torch.tensor([[[True, False], [True, True], [True, True], [False, False], [True, True]]])
    neighbors = Neighbors(torch.zeros(1, 5, 2, dtype=torch.long), distances, mask)
    assert median_neighbor_distance(neighbors).item() == 3.0
    assert median_neighbor_distance(neighbors._replace(mask=torch.zeros_like(mask))).item() == 1.0


def test_leave_one_out_rmse_equals_explicit_refits() -> None:
    features, targets = torch.randn(12, 2, dtype=torch.float64), torch.randn(12, 2, dtype=torch.float64)
    neighbors = ExactSearch()(features[:4], features, 5)
    squares = []
    for indices in neighbors.indices:
        points, values = features[indices], targets[indices]
        for i in range(5):
            rest = torch.arange(5) != i
            gram = Gaussian()(torch.cdist(points, points) / 1.3) + 0.1 * torch.eye(5, dtype=torch.float64)
            predicted = gram[i, rest] @ torch.linalg.solve(gram[rest][:, rest], values[rest])
            squares.append((values[i] - predicted).square())
    expected = torch.stack(squares).mean().sqrt()
    rmse = leave_one_out_rmse(neighbors, features, targets, Gaussian(), 1.3, 0.1)
    torch.testing.assert_close(rmse, expected, rtol=1e-9, atol=0.0)


def test_leave_one_out_rmse_knows_the_windows_of_continuous_localisation() -> None:
    """The noise of neighbour i is λ/ω_i, as an explicit refit says."""
    features, targets = torch.randn(12, 2, dtype=torch.float64), torch.randn(12, 1, dtype=torch.float64)
    neighbors, radius = within_radius(ExactSearch()(features[:4], features, 6), 5, "continuous")
    squares = []
    for indices, distances, end in zip(neighbors.indices, neighbors.distances, radius, strict=True):
        points, values, windows = features[indices], targets[indices], (1.0 - (distances / end).square()).square()
        gram = Gaussian()(torch.cdist(points, points) / 1.3) + torch.diag(0.1 / windows)
        for i in range(5):
            rest = torch.arange(5) != i
            squares.append((values[i] - gram[i, rest] @ torch.linalg.solve(gram[rest][:, rest], values[rest])).square())
    rmse = leave_one_out_rmse(neighbors, features, targets, Gaussian(), 1.3, 0.1, radius)
    torch.testing.assert_close(rmse, torch.stack(squares).mean().sqrt(), rtol=1e-9, atol=0.0)


def test_leave_one_out_rmse_counts_present_neighbours_only() -> None:
    features, targets = torch.randn(1, 6, 2, dtype=torch.float64), torch.randn(1, 6, 1, dtype=torch.float64)
    half_norms = 0.5 * features.square().sum(-1)
    half_norms[:, 3:] = float("inf")
    padded = ExactSearch()(features[:, :3], features, 5, half_norms)
    exact = ExactSearch()(features[:, :3], features[:, :3], 5)
    torch.testing.assert_close(
        leave_one_out_rmse(padded, features, targets, Matern32(), 1.0, 0.1),
        leave_one_out_rmse(exact, features[:, :3], targets[:, :3], Matern32(), 1.0, 0.1),
    )


def test_leave_one_out_rmse_of_nothing_is_zero() -> None:
    features = torch.zeros(0, 2)
    neighbors = ExactSearch()(torch.randn(3, 2), features, 4)
    assert leave_one_out_rmse(neighbors, features, torch.zeros(0, 1), Matern32(), 1.0, 0.1).item() == 0.0


def test_leave_one_out_rmse_is_differentiable() -> None:
    features, targets = torch.randn(10, 2, dtype=torch.float64), torch.randn(10, 1, dtype=torch.float64)
    neighbors = ExactSearch()(features[:3], features, 4)
    settings = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (1.2, 0.3)]
    assert torch.autograd.gradcheck(
        lambda lengthscale, ridge: leave_one_out_rmse(neighbors, features, targets, Matern32(), lengthscale, ridge),
        settings,
    )
