"""Exact search: the two-stage selection and its chunks. The laws of every search are in ``tests/contracts``."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import skrl.neighbors
from skrl.neighbors import GROUP_SIZE, ExactSearch, gather_points, smallest

SHAPES = [
    # points, k: one group or fewer, just below and above two groups per neighbour, with and without a rest
    (1, 1),
    (15, 1),
    (16, 1),
    (31, 1),
    (32, 1),
    (33, 1),
    (47, 5),
    (2 * 5 * GROUP_SIZE - 1, 5),
    (2 * 5 * GROUP_SIZE, 5),
    (2 * 5 * GROUP_SIZE + 1, 5),
    (2 * 5 * GROUP_SIZE + 15, 5),
    (7, 7),
    (100, 100),
    (1000, 16),
    (1003, 31),
    (4001, 32),
]


def check_selection(scores: Tensor, k: int) -> None:
    """Values bit for bit as torch.topk's, at distinct positions that hold them."""
    values, positions = smallest(scores, k)
    assert torch.equal(values, torch.topk(scores, k, dim=-1, largest=False, sorted=True).values)
    assert torch.equal(scores.gather(-1, positions), values)
    assert (positions.sort(-1).values.diff() > 0).all()


@pytest.mark.parametrize(("points", "k"), SHAPES)
@pytest.mark.parametrize("batch", [(), (1,), (7,), (3, 5)])
def test_two_stage_selection_equals_topk(points: int, k: int, batch: tuple[int, ...]) -> None:
    check_selection(torch.randn(*batch, points), k)


@pytest.mark.parametrize(("points", "k"), SHAPES)
def test_two_stage_selection_with_ties(points: int, k: int) -> None:
    check_selection(torch.randint(0, 3, (6, points)).float(), k)
    check_selection(torch.zeros(2, points), k)


@pytest.mark.parametrize(("points", "k"), SHAPES)
def test_two_stage_selection_with_empty_slots(points: int, k: int) -> None:
    scores = torch.randn(5, points)
    scores[torch.rand(5, points) < 0.9] = float("inf")
    check_selection(scores, k)


@pytest.mark.parametrize("where", ["first group", "last group", "rest"])
def test_neighbours_that_share_one_place_are_all_found(where: str) -> None:
    k, points = 6, 20 * GROUP_SIZE + 9
    groups = points // GROUP_SIZE
    positions = {
        "first group": torch.arange(k) * groups,
        "last group": torch.arange(k) * groups + groups - 1,
        "rest": torch.arange(k) + groups * GROUP_SIZE,
    }[where]
    scores = torch.rand(points)
    scores[positions] -= 10.0
    assert smallest(scores, k)[1].sort().values.tolist() == positions.sort().values.tolist()


def test_two_stages_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shapes above really reach the second stage."""
    calls = []
    topk = torch.topk
    monkeypatch.setattr(torch, "topk", lambda scores, *args, **kwargs: calls.append(1) or topk(scores, *args, **kwargs))
    smallest(torch.randn(2, 2 * 5 * GROUP_SIZE - 1), 5)
    assert len(calls) == 1
    smallest(torch.randn(2, 2 * 5 * GROUP_SIZE), 5)
    assert len(calls) == 3


def test_nothing_asked_of_nothing() -> None:
    values, positions = smallest(torch.zeros(3, 0), 0)
    assert values.shape == positions.shape == (3, 0)


@pytest.mark.parametrize("limit", [1, 300, 1000, 4000])
@pytest.mark.parametrize("sets", [None, 2])
def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch, limit: int, sets: int | None) -> None:
    batch = () if sets is None else (sets,)
    queries, features = torch.randn(*batch, 17, 3).double(), torch.randn(*batch, 100, 3).double()
    half_norms = 0.5 * features.square().sum(-1)
    half_norms[..., 4:] = float("inf")
    for norms in (None, half_norms):
        whole = ExactSearch()(queries, features, 5, norms)
        with monkeypatch.context() as patch:
            patch.setattr(skrl.neighbors, "MAX_SCORES", limit)
            chunked = ExactSearch()(queries, features, 5, norms)
        for left, right in zip(whole, chunked, strict=True):
            assert torch.equal(left, right)


def test_chunks_bound_the_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    selection = skrl.neighbors.smallest

    def recorded(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
        sizes.append(scores.numel())
        return selection(scores, k)

    monkeypatch.setattr(skrl.neighbors, "MAX_SCORES", 500)
    monkeypatch.setattr(skrl.neighbors, "smallest", recorded)
    ExactSearch()(torch.randn(2, 9, 3), torch.randn(2, 100, 3), 4)
    assert sizes == [400, 400, 400, 400, 200]


def test_order_far_from_the_origin() -> None:
    queries, features = 1e4 + torch.randn(50, 3), 1e4 + torch.randn(500, 3)
    neighbors = ExactSearch()(queries, features, 8)
    expected = torch.cdist(queries.double(), features.double(), compute_mode="donot_use_mm_for_euclid_dist")
    nearest = torch.topk(expected, 8, largest=False).values
    torch.testing.assert_close(neighbors.distances.sort(-1).values.double(), nearest, rtol=1e-5, atol=1e-6)


def test_gather_points_equals_loop() -> None:
    values, indices = torch.randn(2, 5, 3), torch.randint(0, 5, (2, 4, 6))
    gathered = gather_points(values, indices)
    assert gathered.shape == (2, 4, 6, 3)
    for s in range(2):
        assert torch.equal(gather_points(values[s], indices[s]), gathered[s])
        for b in range(4):
            for i in range(6):
                assert torch.equal(gathered[s, b, i], values[s, indices[s, b, i]])


def test_gather_points_gradient_counts_every_reading() -> None:
    values = torch.zeros(1, 3, 1, requires_grad=True)
    gather_points(values, torch.tensor([[[0, 0], [0, 2]]])).sum().backward()
    assert values.grad is not None
    assert values.grad.flatten().tolist() == [3.0, 0.0, 1.0]
