"""The laws of every neighbour search; a new one adds a line to ``SEARCHES``."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from skrl.search.approximate import AVAILABLE, HnswSearch, IvfSearch
from skrl.search.exact import ExactSearch
from skrl.search.neighbors import NeighborSearch, gather_points

SEARCHES: dict[str, Callable[[], NeighborSearch]] = {
    "exact": ExactSearch,
    "hnsw": HnswSearch,
    "ivf": IvfSearch,
}
NEED_FAISS = {"hnsw", "ivf"}


@pytest.fixture(params=SEARCHES)
def search(request: pytest.FixtureRequest) -> NeighborSearch:
    if request.param in NEED_FAISS and not AVAILABLE:
        pytest.skip("FAISS is not installed")
    return SEARCHES[request.param]()


def true_distances(queries: Tensor, features: Tensor) -> Tensor:
    return torch.cdist(queries, features, compute_mode="donot_use_mm_for_euclid_dist")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize(("points", "k"), [(1, 1), (20, 3), (40, 40), (700, 16)])
def test_finds_the_nearest(
    search: NeighborSearch, dtype: torch.dtype, batch: tuple[int, ...], points: int, k: int
) -> None:
    queries, features = torch.randn(*batch, 9, 4, dtype=dtype), torch.randn(*batch, points, 4, dtype=dtype)
    neighbors = search(queries, features, k)
    expected = torch.topk(true_distances(queries, features), k, largest=False).values
    assert neighbors.indices.shape == neighbors.distances.shape == neighbors.mask.shape == (*batch, 9, k)
    assert neighbors.indices.dtype == torch.long
    assert neighbors.distances.dtype == dtype
    assert neighbors.mask.all()
    torch.testing.assert_close(neighbors.distances, expected, rtol=1e-5, atol=1e-5)


def noise(count: int) -> Tensor:
    return torch.randn(count, 8)


def clumps(count: int) -> Tensor:
    centres = torch.randn(50, 8, generator=torch.Generator().manual_seed(1))
    return centres[torch.randint(50, (count,))] + 0.05 * torch.randn(count, 8)


def duplicates(count: int) -> Tensor:
    return torch.randint(-2, 3, (count, 8))[:, :3].repeat(1, 2).float()


@pytest.mark.parametrize("data", [noise, clumps, duplicates])
def test_finds_nearly_all_among_many(search: NeighborSearch, data: Callable[[int], Tensor]) -> None:
    """At least 95 % of what is found is no farther than the true k-th neighbour; an exact search misses nothing."""
    queries, features = data(60), data(5000)
    neighbors = search(queries, features, 16)
    farthest = true_distances(queries, features).kthvalue(16, dim=-1, keepdim=True).values
    assert neighbors.mask.all()
    assert (neighbors.indices.sort(-1).values.diff() > 0).all()
    right = (neighbors.distances <= farthest * (1 + 1e-5) + 1e-5).float().mean()
    assert right == 1.0 if isinstance(search, ExactSearch) else right >= 0.95


def test_nearest_first(search: NeighborSearch) -> None:
    neighbors = search(torch.randn(30, 2), torch.randn(300, 2), 10)
    assert (neighbors.distances.diff() > -1e-5).all()


def test_neighbours_are_distinct_and_their_distances_are_theirs(search: NeighborSearch) -> None:
    queries, features = torch.randn(2, 8, 3, dtype=torch.float64), torch.randn(2, 50, 3, dtype=torch.float64)
    features[:, 25:] = features[:, :25]
    neighbors = search(queries, features, 12)
    assert (neighbors.indices.sort(-1).values.diff() > 0).all()
    differences = gather_points(features, neighbors.indices) - queries.unsqueeze(-2)
    torch.testing.assert_close(neighbors.distances, differences.norm(dim=-1), rtol=1e-12, atol=0.0)


def test_a_support_point_finds_itself(search: NeighborSearch) -> None:
    features = torch.randn(60, 3)
    neighbors = search(features, features, 1)
    assert neighbors.indices.flatten().tolist() == list(range(60))
    assert neighbors.distances.max() == 0.0


@pytest.mark.parametrize("points", [0, 1, 3])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_fewer_points_than_k(search: NeighborSearch, points: int, batch: tuple[int, ...]) -> None:
    neighbors = search(torch.randn(*batch, 5, 2), torch.randn(*batch, points, 2), 4)
    assert neighbors.indices.shape == (*batch, 5, points)
    assert neighbors.mask.all()
    assert torch.equal(neighbors.indices.sort(-1).values, torch.arange(points).expand(*batch, 5, points))


def test_no_queries(search: NeighborSearch) -> None:
    neighbors = search(torch.zeros(0, 2), torch.randn(6, 2), 4)
    assert neighbors.indices.shape == (0, 4)


@pytest.mark.parametrize("points", [6, 400])
def test_empty_slots_are_never_returned(search: NeighborSearch, points: int) -> None:
    """Slots with half-norm +∞ do not exist, even where their content is nearest; missing neighbours are masked."""
    filled = torch.tensor([0, 1, 3, points])
    queries, features = 0.1 * torch.randn(4, 7, 2), torch.randn(4, points, 2)
    features[torch.arange(points) >= filled.unsqueeze(1)] = 0.0
    half_norms = 0.5 * features.square().sum(-1)
    half_norms[torch.arange(points) >= filled.unsqueeze(1)] = float("inf")
    neighbors = search(queries, features, 5, half_norms)
    assert neighbors.mask.sum(-1).tolist() == [[0] * 7, [1] * 7, [3] * 7, [5] * 7]
    assert (neighbors.indices >= 0).all()
    assert (neighbors.indices < filled.clamp(min=1).view(4, 1, 1)).all()
    assert (neighbors.indices[~neighbors.mask] == 0).all()
    assert (neighbors.distances[~neighbors.mask] == 0.0).all()
    alone = search(queries[2], features[2, :3], 5)
    found = neighbors.distances[2][neighbors.mask[2]].view(7, 3)
    torch.testing.assert_close(found, alone.distances, rtol=1e-6, atol=1e-6)


def test_batch_equals_loop(search: NeighborSearch) -> None:
    queries, features = torch.randn(3, 8, 2, dtype=torch.float64), torch.randn(3, 90, 2, dtype=torch.float64)
    together = search(queries, features, 6)
    for s in range(3):
        alone = search(queries[s], features[s], 6)
        assert torch.equal(together.indices[s], alone.indices)
        torch.testing.assert_close(together.distances[s], alone.distances, rtol=1e-14, atol=0.0)


def test_distances_are_differentiable_and_indices_constant(search: NeighborSearch) -> None:
    queries = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    features = torch.randn(9, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z, x: search(z, x, 4).distances, (queries, features))
    neighbors = search(queries, features, 4)
    assert not neighbors.indices.requires_grad
    assert not neighbors.mask.requires_grad


def test_finite_gradient_at_coincident_and_masked_neighbours(search: NeighborSearch) -> None:
    queries = torch.zeros(1, 1, 2, requires_grad=True)
    half_norms = torch.tensor([[0.0, float("inf")]])
    search(queries, torch.zeros(1, 2, 2), 2, half_norms).distances.sum().backward()
    assert queries.grad is not None
    assert queries.grad.tolist() == [[[0.0, 0.0]]]


def test_abstract_search_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="abstract"):
        NeighborSearch()  # type: ignore[abstract]
