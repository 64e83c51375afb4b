"""Compiled loops against torch, one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from skrl import compiled

pytestmark = pytest.mark.skipif(not compiled.AVAILABLE, reason="numba is not installed")


@pytest.mark.parametrize(("points", "k"), [(1, 1), (5, 5), (16, 3), (17, 3), (100, 32), (1003, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_selection_equals_topk(points: int, k: int, dtype: torch.dtype) -> None:
    for scores in (torch.randn(points, dtype=dtype), torch.randint(0, 3, (points,)).to(dtype)):
        best, positions = np.empty(k, scores.numpy().dtype), np.zeros(k, np.int64)
        assert compiled._select_row(scores.numpy(), k, best, positions) == k
        assert best.tolist() == torch.topk(scores, k, largest=False).values.tolist()
        assert scores[torch.from_numpy(positions)].tolist() == best.tolist()
        assert len(set(positions.tolist())) == k


def test_selection_takes_finite_scores_only() -> None:
    inf, nan = float("inf"), float("nan")
    scores = np.array([inf, 3.0, nan, -1.0, inf] + [nan] * 20 + [2.0])
    best, positions = np.empty(8), np.zeros(8, np.int64)
    assert compiled._select_row(scores, 8, best, positions) == 3
    assert best[:3].tolist() == [-1.0, 2.0, 3.0]
    assert positions[:3].tolist() == [3, 25, 1]


def test_blocks_by_hand() -> None:
    scores = np.array([[[0.5, np.inf, 0.1]]])
    queries, features = np.array([[[0.0, 0.0]]]), np.array([[[3.0, 4.0], [9.0, 9.0], [0.0, 1.0]]])
    indices, counts = np.full((1, 1, 3), 7), np.full((1, 1), 7)
    distances = np.full((1, 1, 6), 7.0)
    compiled.nearest_blocks(scores, queries, features, indices, counts, distances)
    assert indices.tolist() == [[[2, 0, 0]]]
    assert counts.tolist() == [[2]]
    np.testing.assert_allclose(distances[0, 0], [1.0, 5.0, 0.0, np.sqrt(18.0), 0.0, 0.0])


def solve(values: list[float], count: int, ridge: float, k: int = 2) -> tuple[list[float], float, bool, bool]:
    """One system: κ_z, then the lower triangle of K."""
    weights, variance = np.full((1, 1, k), 7.0), np.full((1, 1), 7.0)
    jittered, failed = np.ones((2, 1, 1), np.bool_)
    counts, jitters = np.array([[count]]), np.array([1e-6, 1e-4])
    compiled.solve_blocks(np.array([[values]]), counts, ridge, jitters, weights, variance, jittered, failed)
    return weights[0, 0].tolist(), variance.item(), jittered.item(), failed.item()


def test_two_neighbours_by_hand() -> None:
    """K + λI = [[2, 1/2], [1/2, 2]], whose inverse is [[8, -2], [-2, 8]] / 15."""
    weights, variance, jittered, failed = solve([1.0, 0.5, 0.5], count=2, ridge=1.0)
    np.testing.assert_allclose(weights, [7.0 / 15.0, 2.0 / 15.0], rtol=1e-15)
    assert variance == pytest.approx(1.0 - 8.0 / 15.0, rel=1e-14)
    assert (jittered, failed) == (False, False)


def test_missing_neighbours_are_left_out() -> None:
    weights, variance, jittered, failed = solve([0.5, 9.0, 9.0], count=1, ridge=1.0)
    assert weights == pytest.approx([0.25, 0.0], rel=1e-15)
    assert variance == pytest.approx(0.875, rel=1e-15)
    assert (jittered, failed) == (False, False)
    assert solve([9.0, 9.0, 9.0], count=0, ridge=0.0) == ([0.0, 0.0], 1.0, False, False)


def test_variance_is_kept_in_its_range() -> None:
    """Rounding may carry κ_zᵀ w past one; here it is 1.21."""
    assert solve([1.1, 0.0, 0.0], count=1, ridge=0.0)[1] == 0.0


def test_singular_system_gets_jitter() -> None:
    weights, variance, jittered, failed = solve([0.5, 0.5, 1.0], count=2, ridge=0.0)
    assert (jittered, failed) == (True, False)
    np.testing.assert_allclose(weights, [0.25, 0.25], rtol=1e-5)
    assert variance == pytest.approx(0.75, abs=1e-6)


def test_hopeless_systems_fall_back() -> None:
    assert solve([0.5, 0.5, 2.0], count=2, ridge=0.0) == ([0.0, 0.0], 1.0, False, True)
    assert solve([0.5, 0.5, float("nan")], count=2, ridge=0.0) == ([0.0, 0.0], 1.0, False, True)
    assert solve([float("nan"), 0.5, 0.5], count=2, ridge=1.0) == ([0.0, 0.0], 1.0, False, True)
    assert solve([float("inf"), 0.5, 0.5], count=2, ridge=1.0) == ([0.0, 0.0], 1.0, False, True)
