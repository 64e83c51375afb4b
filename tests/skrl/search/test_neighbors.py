"""Exact search: the two-stage selection and its chunks. The laws of every search are in ``tests/contracts``."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import skrl.search.exact
from skrl import compiling
from skrl.search.exact import GROUP_SIZE, ExactIndex, ExactSearch, smallest
from skrl.search.neighbors import NeighborIndex, gather_points, local_neighbors, measured_neighbors

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

BOTH = pytest.mark.parametrize("plain", [False, True], ids=["compiled", "torch"])


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


@BOTH
@pytest.mark.parametrize("limit", [1, 300, 1000, 4000])
@pytest.mark.parametrize("sets", [None, 2])
def test_chunks_do_not_change_the_result(
    monkeypatch: pytest.MonkeyPatch, limit: int, sets: int | None, plain: bool
) -> None:
    monkeypatch.setattr(compiling, "AVAILABLE", compiling.AVAILABLE and not plain)
    batch = () if sets is None else (sets,)
    queries, features = torch.randn(*batch, 17, 3).double(), torch.randn(*batch, 100, 3).double()
    half_norms = 0.5 * features.square().sum(-1)
    half_norms[..., 4:] = float("inf")
    for norms in (None, half_norms):
        whole = ExactSearch()(queries, features, 5, norms)
        with monkeypatch.context() as patch:
            patch.setattr(skrl.search.exact, "MAX_SCORES", limit)
            patch.setattr(skrl.search.exact, "MAX_COMPILED_SCORES", limit)
            chunked = ExactSearch()(queries, features, 5, norms)
        for left, right in zip(whole, chunked, strict=True):
            assert torch.equal(left, right)


def test_chunks_bound_the_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    selection = skrl.search.exact.smallest

    def recorded(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
        sizes.append(scores.numel())
        return selection(scores, k)

    monkeypatch.setattr(compiling, "AVAILABLE", False)
    monkeypatch.setattr(skrl.search.exact, "MAX_SCORES", 500)
    monkeypatch.setattr(skrl.search.exact, "smallest", recorded)
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


@pytest.mark.parametrize("sets", [None, 3])
def test_index_serves_many_queries_as_the_search_does(sets: int | None) -> None:
    batch = () if sets is None else (sets,)
    features = 1e3 + torch.randn(*batch, 200, 3)
    for norms in (None, (0.5 * features.square().sum(-1)).masked_fill(torch.rand(*batch, 200) < 0.5, float("inf"))):
        index = ExactSearch().index(features, norms)
        for _ in range(2):
            queries = 1e3 + torch.randn(*batch, 11, 3)
            whole = ExactSearch()(queries, features, 7, norms)
            indices, mask = index.nearest(queries, 7)
            assert torch.equal(indices, whole.indices)
            assert torch.equal(mask, whole.mask)
            for ours, theirs in zip(measured_neighbors(index, queries, features, 7), whole, strict=True):
                assert torch.equal(ours, theirs)


def test_index_records_no_gradient() -> None:
    features, queries = torch.randn(9, 2, requires_grad=True), torch.randn(4, 2, requires_grad=True)
    index = ExactIndex(features.detach())
    neighbors = measured_neighbors(index, queries, features, 3)
    neighbors.distances.sum().backward()
    assert not index.half_norms.requires_grad
    assert queries.grad is not None
    assert features.grad is not None
    # Every distance pulls its query and its point apart with the same force.
    torch.testing.assert_close(queries.grad.sum(0), -features.grad.sum(0))


def test_abstract_index_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="abstract"):
        NeighborIndex()  # type: ignore[abstract]


@pytest.mark.parametrize("batch", [(), (2,)])
def test_local_neighbours_and_the_radius_behind_them(batch: tuple[int, ...]) -> None:
    queries, features = torch.randn(*batch, 6, 3).double(), torch.randn(*batch, 50, 3).double()
    index = ExactSearch().index(features)
    hard, none = local_neighbors(index, queries, features, 5, "hard")
    continuous, radius = local_neighbors(index, queries, features, 5, "continuous")
    assert none is None
    assert radius is not None
    expected = torch.cdist(queries, features, compute_mode="donot_use_mm_for_euclid_dist").sort(-1).values
    torch.testing.assert_close(radius, expected[..., 5])
    torch.testing.assert_close(continuous.distances, expected[..., :5])
    for ours, theirs in zip(continuous, hard, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("points", "ends"), [(0, False), (1, False), (4, False), (5, True)])
def test_radius_is_infinite_without_a_further_point(points: int, ends: bool) -> None:
    queries, features = torch.randn(3, 2), torch.randn(points, 2)
    neighbors, radius = local_neighbors(ExactSearch().index(features), queries, features, 4, "continuous")
    assert neighbors.indices.shape == neighbors.distances.shape == neighbors.mask.shape == (3, min(points, 4))
    assert radius is not None
    assert radius.shape == (3,)
    assert (radius.isfinite() == ends).all()


def test_empty_slots_give_no_radius() -> None:
    features = torch.randn(3, 9, 2)
    half_norms = 0.5 * features.square().sum(-1)
    for row, filled in enumerate((2, 4, 5)):
        half_norms[row, filled:] = float("inf")
    index = ExactSearch().index(features, half_norms)
    neighbors, radius = local_neighbors(index, torch.randn(3, 6, 2), features, 4, "continuous")
    assert radius is not None
    assert radius.isfinite().tolist() == [[False] * 6, [False] * 6, [True] * 6]
    assert neighbors.mask.sum(-1).tolist() == [[2] * 6, [4] * 6, [4] * 6]


def test_gradient_of_the_radius_reaches_queries_and_features() -> None:
    """Of the one point behind the neighbours, or of none."""
    features = torch.tensor([[0.0], [1.0], [4.0]], dtype=torch.float64, requires_grad=True)
    queries = torch.tensor([[-1.0]], dtype=torch.float64, requires_grad=True)
    for k, slopes in ((2, [0.0, 0.0, 1.0]), (3, [0.0, 0.0, 0.0])):
        neighbors, radius = local_neighbors(ExactSearch().index(features.detach()), queries, features, k, "continuous")
        assert radius is not None
        total = torch.where(radius.isfinite(), radius, 0.0).sum() + 0.0 * neighbors.distances.sum()
        slope, (pull,) = torch.autograd.grad(total, (features, queries))
        assert slope.flatten().tolist() == slopes
        assert pull.item() == -sum(slopes)


@pytest.mark.usefixtures("without_shape_checks")
def test_unknown_localisation_is_an_error() -> None:
    features = torch.randn(9, 2)
    with pytest.raises(ValueError, match="localisation is 'soft', but must be one of hard, continuous"):
        local_neighbors(ExactIndex(features), features, features, 3, "soft")  # type: ignore[arg-type]


@BOTH
@pytest.mark.parametrize("dim", [3, 12])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_queries_of_another_precision(
    monkeypatch: pytest.MonkeyPatch, plain: bool, dim: int, dtype: torch.dtype
) -> None:
    """Searched for in that of the features."""
    monkeypatch.setattr(compiling, "AVAILABLE", compiling.AVAILABLE and not plain)
    queries, index = torch.randn(5, dim).to(dtype), ExactIndex(torch.randn(90, dim))
    indices, mask = index.nearest(queries, 4)
    expected, _ = index.nearest(queries.float(), 4)
    assert torch.equal(indices, expected)
    assert mask.all()


@BOTH
@pytest.mark.parametrize("dim", [3, 12])
def test_memory_layout_does_not_matter(monkeypatch: pytest.MonkeyPatch, plain: bool, dim: int) -> None:
    monkeypatch.setattr(compiling, "AVAILABLE", compiling.AVAILABLE and not plain)
    queries, features = torch.randn(5, dim), torch.randn(90, dim)
    expected = ExactIndex(features).nearest(queries, 4)[0]
    index = ExactIndex(features.t().contiguous().t())
    assert torch.equal(index.nearest(queries.t().contiguous().t(), 4)[0], expected)
    assert torch.equal(index.nearest(torch.stack([queries, queries], 1)[:, 1], 4)[0], expected)


@BOTH
@pytest.mark.parametrize("dim", [3, 12])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_points_out_of_reach_hide_nobody(monkeypatch: pytest.MonkeyPatch, plain: bool, dim: int, value: float) -> None:
    """Every tenth point is no point; the others are found as if they were alone, at an offset too."""
    monkeypatch.setattr(compiling, "AVAILABLE", compiling.AVAILABLE and not plain)
    features, queries = 1e3 + torch.randn(300, dim), 1e3 + torch.randn(7, dim)
    features[::10, 1] = value
    there = torch.arange(300) % 10 != 0
    indices, mask = ExactIndex(features).nearest(queries, 5)
    distances = torch.cdist(queries, features[there], compute_mode="donot_use_mm_for_euclid_dist")
    found = (features[indices] - queries.unsqueeze(1)).norm(dim=-1)
    torch.testing.assert_close(found, torch.topk(distances, 5, largest=False).values, rtol=1e-3, atol=1e-3)
    assert mask.all()
    _, mask = ExactIndex(features[::10]).nearest(queries, 5)
    assert mask.any() == (value == 1e30)  # beside each other the far ones are in reach


def test_a_query_that_is_no_number_leaves_the_gradient_finite() -> None:
    queries, features = torch.randn(3, 2), torch.randn(9, 2, requires_grad=True)
    queries[1, 0] = float("nan")
    queries.requires_grad_()
    ExactSearch()(queries, features, 4).distances.sum().backward()
    assert queries.grad is not None
    assert features.grad is not None
    assert queries.grad[1].tolist() == [0.0, 0.0]
    assert queries.grad.isfinite().all()
    assert features.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 200.0])
def test_half_precision_is_searched_in_float32(dtype: torch.dtype, scale: float) -> None:
    features, queries = ((scale * torch.randn(rows, 6)).to(dtype) for rows in (500, 20))
    expected = ExactSearch()(queries.float(), features.float(), 10)
    assert torch.equal(ExactSearch()(queries, features, 10).indices, expected.indices)


@pytest.mark.parametrize("compile_loops", [True, False])
@pytest.mark.parametrize("dim", [3, 12])
@pytest.mark.parametrize("sets", [None, 2])
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_a_query_that_is_not_finite_has_no_neighbours(
    monkeypatch: pytest.MonkeyPatch, compile_loops: bool, dim: int, sets: int | None, value: float
) -> None:
    monkeypatch.setattr(compiling, "AVAILABLE", compiling.AVAILABLE and compile_loops)
    shape = () if sets is None else (sets,)
    features, queries = torch.randn(*shape, 50, dim), torch.randn(*shape, 3, dim)
    queries[..., 1, 0] = value
    indices, mask = ExactIndex(features).nearest(queries, 4)
    assert mask.all(-1).tolist() == torch.tensor([True, False, True]).expand(*shape, 3).tolist()
    assert not mask[..., 1, :].any()
    assert not indices[..., 1, :].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_distances_of_half_precision_do_not_overflow(dtype: torch.dtype) -> None:
    features, queries = (1000.0 * torch.randn(2, 60, 3)).to(dtype), (1000.0 * torch.randn(2, 5, 3)).to(dtype)
    neighbors, exact = (ExactSearch()(q, x, 4) for q, x in ((queries, features), (queries.double(), features.double())))
    assert neighbors.distances.dtype == torch.float32
    torch.testing.assert_close(neighbors.distances.double(), exact.distances, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("dim", [3, 20])
def test_float64_tells_points_of_narrow_clumps_apart(dim: int) -> None:
    """No one centre is near both clumps, and the rounding of float32 scores exceeds what their points differ by."""
    side = torch.tensor([-1000.0, 1000.0]).repeat(200).unsqueeze(1)
    features = side + 0.2 * torch.randn(400, dim, dtype=torch.float64)
    queries = side[:40] + 0.2 * torch.randn(40, dim, dtype=torch.float64)
    expected = torch.cdist(queries, features, compute_mode="donot_use_mm_for_euclid_dist").topk(8, largest=False)
    assert torch.equal(ExactIndex(features).nearest(queries, 8)[0], expected.indices)


def test_a_query_too_far_for_a_square_has_no_neighbours_and_leaves_the_gradient_finite() -> None:
    queries, features = torch.randn(3, 2), torch.randn(9, 2, requires_grad=True)
    queries[1, 0] = 3e38
    queries.requires_grad_()
    neighbors = ExactSearch()(queries, features, 4)
    assert neighbors.mask.any(1).tolist() == [True, False, True]
    neighbors.distances.sum().backward()
    assert queries.grad is not None
    assert features.grad is not None
    assert queries.grad[1].tolist() == [0.0, 0.0]
    assert queries.grad.isfinite().all()
    assert features.grad.isfinite().all()
