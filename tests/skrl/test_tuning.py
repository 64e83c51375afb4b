"""Lengthscale and ridge from the data."""

from __future__ import annotations

import pytest
import torch

from skrl.kernels import Gaussian, Matern32
from skrl.neighbors import ExactSearch, Neighbors
from skrl.tuning import (
    DEFAULT_RIDGES,
    MAX_PROBES,
    leave_one_out_ridge,
    leave_one_out_rmse,
    median_neighbor_distance,
    neighbor_lengthscale,
    probes,
)


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


@pytest.mark.parametrize(("noise", "low", "high"), [(0.0, 0.0, 1e-2), (0.3, 1e-2, 1.0), (None, 1.0, 1.0)])
def test_ridge_grows_with_the_noise(noise: float | None, low: float, high: float) -> None:
    """A smooth function wants a small ridge, pure noise (None) the largest there is."""
    features = torch.rand(400, 1, dtype=torch.float64)
    targets = torch.randn(400, 1, dtype=torch.float64)
    if noise is not None:
        targets = torch.sin(6.0 * features) + noise * targets
    neighbors = ExactSearch()(features, features, 16)
    ridge = leave_one_out_ridge(neighbors, features, targets, Matern32(), neighbor_lengthscale(features, 16))
    assert low <= ridge.item() <= high
    assert ridge.item() in DEFAULT_RIDGES


def test_ridge_is_the_best_of_the_candidates() -> None:
    features, targets = torch.randn(60, 2, dtype=torch.float64), torch.randn(60, 1, dtype=torch.float64)
    neighbors = ExactSearch()(features, features, 8)
    candidates = (0.01, 0.3, 2.0, 30.0)
    errors = [leave_one_out_rmse(neighbors, features, targets, Matern32(), 1.0, ridge).item() for ridge in candidates]
    chosen = leave_one_out_ridge(neighbors, features, targets, Matern32(), 1.0, candidates)
    assert chosen.item() == candidates[errors.index(min(errors))]


def test_ridge_of_duplicates_with_conflicting_targets_is_finite() -> None:
    features = torch.zeros(20, 2)
    neighbors = ExactSearch()(features, features, 8)
    ridge = leave_one_out_ridge(neighbors, features, torch.randn(20, 1), Matern32(), 1.0)
    assert ridge.item() == 1.0


def test_tuning_looks_at_a_bounded_number_of_points_spread_over_the_set() -> None:
    features = torch.arange(3 * MAX_PROBES, dtype=torch.float64).unsqueeze(1)
    looked_at = probes(features).squeeze(1)
    assert len(looked_at) == MAX_PROBES
    assert looked_at[0] == features[0]
    assert looked_at[-1] == features[-1]
    assert looked_at.diff().min() >= 2
    assert torch.equal(probes(features[:7]), features[:7])
