"""Search through rough scores in half precision against distances in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import skrl.search.exact
from skrl import SparseKernel, compiling
from skrl.search.exact import ExactIndex
from skrl.search.screening import MIN_DIM, MIN_POINTS, MIN_ROWS

POINTS, ROWS = MIN_POINTS, 3 * MIN_ROWS

pytestmark = pytest.mark.skipif(not compiling.AVAILABLE, reason="numba is not installed")


@pytest.fixture(autouse=True)
def _screens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a processor that multiplies half precision slowly."""
    monkeypatch.setattr(skrl.search.exact, "half_precision_pays", lambda: True)


def screened(queries: Tensor, features: Tensor, k: int) -> tuple[Tensor, int]:
    """Neighbours, all of which exist, and how many queries had too many candidates."""
    index = ExactIndex(features)
    with torch.no_grad():
        indices, mask = index.nearest(queries, k)
        assert index._screen is not None
        assert index.centre is not None
        given_up = index._screen.nearest(queries.detach() - index.centre, k)[2]
    assert mask.all()
    return indices, int(given_up.sum())


def assert_nearest(indices: Tensor, queries: Tensor, features: Tensor, rtol: float = 1e-5, atol: float = 0.0) -> None:
    """Distinct points, nearest first, at the k smallest distances; which of those at one distance is open."""
    places, points = queries.detach().double(), features.double()
    expected = torch.cdist(places, points, compute_mode="donot_use_mm_for_euclid_dist").sort(-1).values
    actual = (points[indices] - places.unsqueeze(1)).norm(dim=-1)
    torch.testing.assert_close(actual, expected[:, : indices.shape[1]], rtol=rtol, atol=atol)
    assert (indices.sort(-1).values.diff() > 0).all()


@pytest.mark.parametrize("k", [1, 32, POINTS // 16])
@pytest.mark.parametrize("dim", [MIN_DIM, 40])
def test_neighbours_are_the_nearest(dim: int, k: int) -> None:
    queries, features = torch.randn(ROWS, dim), torch.randn(POINTS + 77, dim)
    indices, given_up = screened(queries, features, k)
    assert given_up < ROWS / 2
    assert_nearest(indices, queries, features)


@pytest.mark.usefixtures("two_threads")
def test_two_threads_find_the_same() -> None:
    queries, features = torch.randn(ROWS, MIN_DIM), torch.randn(POINTS, MIN_DIM)
    torch.set_num_threads(1)
    alone, _ = screened(queries, features, 16)
    torch.set_num_threads(2)
    assert torch.equal(screened(queries, features, 16)[0], alone)


@pytest.mark.parametrize("copies", [4, 64])
def test_duplicates_are_all_found(copies: int) -> None:
    features = torch.randn(POINTS // copies, MIN_DIM).repeat(copies, 1)
    queries = torch.cat([features[:MIN_ROWS], torch.randn(MIN_ROWS, MIN_DIM)])
    indices, _ = screened(queries, features, 20)
    assert_nearest(indices, queries, features)
    same = (features[indices[:MIN_ROWS]] == queries[:MIN_ROWS].unsqueeze(1)).all(-1)
    assert (same.sum(-1) == min(copies, 20)).all()


def test_a_tight_clump_far_away_is_searched_in_full() -> None:
    """Half precision cannot tell its points apart, so that too many of them remain."""
    clump = 20.0 + 0.3 * torch.randn(2000, MIN_DIM)
    features = torch.cat([torch.randn(POINTS, MIN_DIM), clump])
    queries = torch.cat([torch.randn(40, MIN_DIM), 20.0 + 0.3 * torch.randn(30, MIN_DIM)])
    indices, given_up = screened(queries, features, 8)
    assert given_up >= 30
    assert_nearest(indices, queries, features, atol=2e-3)


def test_empty_slots_are_no_neighbours() -> None:
    queries, features = torch.randn(ROWS, MIN_DIM), torch.randn(POINTS, MIN_DIM)
    features[::2] = torch.nan
    indices, _ = screened(queries, features, 10)
    assert (indices % 2 == 1).all()
    assert_nearest(indices // 2, queries, features[1::2])


@pytest.mark.usefixtures("two_threads")
def test_queries_may_ask_for_a_gradient() -> None:
    """Whether one is recorded is each thread's own setting."""
    features, targets = torch.randn(POINTS, MIN_DIM), torch.randn(POINTS, 1)
    queries = torch.randn(ROWS, MIN_DIM, requires_grad=True)
    indices, _ = screened(queries, features, 8)
    assert_nearest(indices, queries, features)
    kernel = SparseKernel(features, targets, k=8, lengthscale=3.0, ridge=0.1)
    kernel(queries).sum().backward()
    assert queries.grad is not None
    assert queries.grad.abs().sum() > 0
