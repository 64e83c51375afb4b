"""Copies of the points by set: empty slots, rows that are not finite, duplicates."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from skrl.search.copied_points import CopiedIndex, SharedPlaces
from skrl.search.exact import ExactSearch
from skrl.search.neighbors import NeighborIndex

INF, NAN = float("inf"), float("nan")


class Recorded:
    """Makes exact indexes and keeps what they were made of."""

    def __init__(self) -> None:
        self.points: list[Tensor] = []

    def __call__(self, points: Tensor) -> NeighborIndex:
        self.points.append(points)
        return ExactSearch().index(points, 0.5 * points.square().sum(-1))


def test_only_filled_finite_rows_are_indexed_centred_in_float32() -> None:
    made = Recorded()
    features = torch.tensor([[1.0, 0.0], [NAN, 0.0], [7.0, 7.0], [3.0, 4.0], [0.0, -INF]], dtype=torch.float64)
    half_norms = torch.tensor([0.5, 0.0, INF, 12.5, 0.0], dtype=torch.float64)
    index = CopiedIndex(features, half_norms, made)
    assert made.points[0].dtype == torch.float32
    assert made.points[0].tolist() == [[0.0, 0.0], [2.0, 4.0]]
    indices, mask = index.nearest(torch.tensor([[7.0, 7.0], [0.0, 0.0]], dtype=torch.float64), 4)
    assert indices.tolist() == [[3, 0, 0, 0], [0, 3, 0, 0]]
    assert mask.tolist() == [[True, True, False, False]] * 2


@pytest.mark.parametrize("large", [1e25, -1e300])
def test_a_row_too_large_for_float32_is_left_out(large: float) -> None:
    made = Recorded()
    features = torch.tensor([[large], [2.0], [4.0]], dtype=torch.float64)
    indices, mask = CopiedIndex(features, None, made).nearest(torch.tensor([[9.0]], dtype=torch.float64), 3)
    assert made.points[0].tolist() == [[0.0], [2.0]]
    assert (indices.tolist(), mask.tolist()) == ([[2, 1, 0]], [[True, True, False]])


def test_offset_survives_the_cast_to_float32() -> None:
    made = Recorded()
    features = 1e9 + torch.randn(50, 3, dtype=torch.float64)
    CopiedIndex(features, None, made)
    centred = made.points[0].double()
    assert centred.abs().max() < 6.0
    torch.testing.assert_close(centred - centred[0], features - features[0], rtol=0.0, atol=1e-5)


def test_a_far_point_blinds_nobody() -> None:
    """A centre that followed it would leave the others at one place in float32."""
    features = torch.randn(500, 3, dtype=torch.float64)
    queries, before = features[:40].clone(), features.clone()
    features[499] = 1e15
    indices, mask = CopiedIndex(features, None, Recorded()).nearest(queries, 5)
    assert mask.all()
    expected = torch.cdist(queries, before[:499]).topk(5, largest=False).values
    torch.testing.assert_close((features[indices] - queries.unsqueeze(1)).norm(dim=-1), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_query_that_is_not_finite_has_no_neighbours(bad: float) -> None:
    queries, features = torch.randn(2, 3, 2), torch.randn(2, 9, 2)
    whole = CopiedIndex(features, None, Recorded()).nearest(queries, 4)
    queries[1, 2, 0] = bad
    indices, mask = CopiedIndex(features, None, Recorded()).nearest(queries, 4)
    assert mask.sum(-1).tolist() == [[4, 4, 4], [4, 4, 0]]
    assert indices[1, 2].tolist() == [0, 0, 0, 0]
    assert torch.equal(indices[mask], whole[0][mask])


def test_sets_without_any_point() -> None:
    features, half_norms = torch.randn(2, 5, 2), torch.tensor([[INF] * 5, [0.0] * 5])
    indices, mask = CopiedIndex(features, half_norms, Recorded()).nearest(torch.randn(2, 3, 2), 2)
    assert mask.tolist() == [[[False, False]] * 3, [[True, True]] * 3]
    assert (indices[0] == 0).all()


@pytest.mark.parametrize(
    ("features", "queries"), [((0, 5, 2), (0, 3, 2)), ((2, 0, 2), (2, 3, 2)), ((3, 2), (0, 2)), ((0, 2), (0, 2))]
)
def test_nothing_to_search(features: tuple[int, ...], queries: tuple[int, ...]) -> None:
    indices, mask = CopiedIndex(torch.zeros(features), None, Recorded()).nearest(torch.zeros(queries), 4)
    assert indices.shape == mask.shape == (*queries[:-1], min(4, features[-2]))


@pytest.mark.parametrize("shape", [(4, 2), (2, 4, 3), (3, 4, 2), (1, 2, 4, 2)])
def test_queries_of_another_shape(shape: tuple[int, ...]) -> None:
    index = CopiedIndex(torch.zeros(2, 6, 2), None, Recorded())
    with pytest.raises(ValueError, match=r"queries have shape .* but must be \[2, 'B', 2\] like the points"):
        index.nearest(torch.zeros(shape), 1)


def test_the_points_are_copies() -> None:
    queries, features = torch.randn(5, 2), torch.randn(40, 2)
    index = CopiedIndex(features, None, Recorded())
    before = index.nearest(queries, 3)
    features.zero_()
    assert torch.equal(index.nearest(queries, 3)[0], before[0])


@pytest.mark.parametrize("k", [1, 2, 5, 30, 50])
def test_shared_places_equal_the_points_they_stand_for(k: int) -> None:
    points = torch.randint(0, 4, (30, 2)).float()
    places, place_of_point, counts = torch.unique(points, dim=0, return_inverse=True, return_counts=True)
    index = SharedPlaces(ExactSearch().index(places), place_of_point, counts)
    queries = torch.randn(20, 2)
    indices, mask = index.nearest(queries, k)
    assert indices.shape == (20, min(k, 30))
    assert mask.all()
    assert (indices.sort(-1).values.diff() > 0).all()
    expected = torch.topk(torch.cdist(queries, points), min(k, 30), largest=False).values
    torch.testing.assert_close((points[indices] - queries.unsqueeze(1)).norm(dim=-1), expected, rtol=1e-5, atol=1e-6)


def test_shared_places_by_hand() -> None:
    """Places at 0, 5 and 9 with points {1, 3}, {0} and {2, 4}."""
    index = SharedPlaces(
        ExactSearch().index(torch.tensor([[0.0], [5.0], [9.0]])), torch.tensor([1, 0, 2, 0, 2]), torch.tensor([2, 1, 2])
    )
    indices, mask = index.nearest(torch.tensor([[8.0], [-1.0]]), 4)
    assert indices.tolist() == [[2, 4, 0, 1], [1, 3, 0, 2]]
    assert mask.all()


def test_a_place_that_was_not_found_hands_out_nothing() -> None:
    class Short(NeighborIndex):
        def nearest(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
            return torch.tensor([[1, 0, 0]]), torch.tensor([[True, False, False]])

    index = SharedPlaces(Short(), torch.tensor([0, 1, 1, 2]), torch.tensor([1, 2, 1]))
    indices, mask = index.nearest(torch.zeros(1, 1), 3)
    assert indices[0, :2].tolist() == [1, 2]
    assert mask.tolist() == [[True, True, False]]
