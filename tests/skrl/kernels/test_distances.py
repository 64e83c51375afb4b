"""Distances: exact zeros, finite gradients, no loss of digits far from the origin."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from skrl.kernels.distances import (
    DIFFERENCES_DIM,
    block_distances,
    centred_points,
    cross_distances,
    median_point,
    ranking_scores,
    safe_sqrt,
    within_reach,
)

OFFSET = 1e4


def exact_distances(left: Tensor, right: Tensor) -> Tensor:
    """Float64 distances by differences, the oracle of every test here."""
    return (left.double().unsqueeze(-2) - right.double().unsqueeze(-3)).square().sum(-1).sqrt()


def test_safe_sqrt_values_and_gradients() -> None:
    squared = torch.tensor([0.0, 4.0, 9.0], requires_grad=True)
    roots = safe_sqrt(squared)
    roots.sum().backward()
    assert roots.tolist() == [0.0, 2.0, 3.0]
    assert squared.grad is not None
    torch.testing.assert_close(squared.grad, torch.tensor([0.0, 1 / 4, 1 / 6]))


def test_what_is_not_a_number_does_not_become_zero() -> None:
    """Zero would claim that the two points coincide."""
    assert safe_sqrt(torch.tensor([float("nan"), float("inf")])).isfinite().tolist() == [False, False]
    assert cross_distances(torch.tensor([[float("nan")]]), torch.zeros(1, 2, 1)).isnan().all()
    for dim in (1, DIFFERENCES_DIM + 1):
        assert block_distances(torch.tensor([[float("nan")], [0.0]]).expand(2, dim))[0].isnan().all()
        overflowing = block_distances(torch.tensor([[0.0], [1e30]]).expand(2, dim))
        assert not overflowing.isfinite().all()  # no solve can mistake such a block for a valid one


def test_cross_distances_by_hand() -> None:
    query = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    points = torch.tensor([[[4.0, 5.0], [1.0, 1.0]], [[0.0, -2.0], [5.0, 12.0]]])
    assert cross_distances(query, points).tolist() == [[5.0, 0.0], [2.0, 13.0]]


def test_cross_distances_equal_torch_cdist() -> None:
    queries, points = torch.randn(3, 4, 5, dtype=torch.float64), torch.randn(3, 4, 7, 5, dtype=torch.float64)
    expected = torch.cdist(queries.unsqueeze(-2), points, compute_mode="donot_use_mm_for_euclid_dist").squeeze(-2)
    torch.testing.assert_close(cross_distances(queries, points), expected, rtol=1e-14, atol=0.0)


def test_cross_distances_keep_their_digits_far_from_the_origin() -> None:
    queries, points = OFFSET + torch.randn(6, 3), OFFSET + torch.randn(6, 20, 3)
    expected = exact_distances(queries.unsqueeze(-2), points).squeeze(-2)
    torch.testing.assert_close(cross_distances(queries, points).double(), expected, rtol=1e-6, atol=0.0)


def test_cross_distance_gradients() -> None:
    queries = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    points = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(cross_distances, (queries, points))


def test_gradient_at_a_coincident_point_is_zero() -> None:
    query = torch.ones(1, 2, requires_grad=True)
    points = torch.ones(1, 3, 2, requires_grad=True)
    (cross_distances(query, points).sum() + block_distances(points).sum()).backward()
    assert query.grad is not None
    assert points.grad is not None
    assert query.grad.tolist() == [[0.0, 0.0]]
    assert points.grad.abs().max() == 0.0


def test_block_distances_by_hand() -> None:
    square = torch.tensor([[0.0, 0.0], [3.0, 0.0], [3.0, 4.0], [0.0, 4.0]])
    expected = torch.tensor([[0.0, 3, 5, 4], [3, 0, 4, 5], [5, 4, 0, 3], [4, 5, 3, 0]])
    torch.testing.assert_close(block_distances(square), expected)


@pytest.mark.parametrize("dim", [1, 2, DIFFERENCES_DIM, DIFFERENCES_DIM + 1, 64])
def test_block_distances_equal_differences(dim: int) -> None:
    points = torch.randn(2, 3, 9, dim, dtype=torch.float64)
    distances = block_distances(points)
    torch.testing.assert_close(distances, exact_distances(points, points), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(distances, distances.mT, rtol=1e-14, atol=0.0)  # the product rounds as it likes
    assert distances.diagonal(dim1=-2, dim2=-1).abs().max() == 0.0


def test_block_distances_keep_their_digits_far_from_the_origin() -> None:
    points = OFFSET + torch.randn(5, 32, 4)
    error = (block_distances(points).double() - exact_distances(points, points)).abs().max()
    assert error < 1e-4


def test_block_distances_of_each_block_do_not_depend_on_the_others() -> None:
    points = torch.randn(4, 6, 3)
    together = block_distances(torch.stack([points[0], 1e6 * points[1], points[2], points[3] - 1e4]))
    torch.testing.assert_close(together[0], block_distances(points[0]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [1, 3, 17, 64, 513])
@pytest.mark.parametrize("offset", [0.0, OFFSET])
def test_duplicates_are_at_distance_zero(dtype: torch.dtype, dim: int, offset: float) -> None:
    distinct = offset + torch.randn(8, dim, dtype=dtype)
    points = distinct.repeat(2, 1)[torch.randperm(16)]
    same = (points.unsqueeze(0) == points.unsqueeze(1)).all(-1)
    assert same.sum() == 32
    distances = block_distances(points)
    assert distances[same].max() == 0.0
    assert distances[~same].min() > 0.0


def test_block_distance_gradients_also_with_duplicates() -> None:
    distinct = torch.randn(4, 3, dtype=torch.float64)
    points = torch.cat([distinct, distinct[:1]]).requires_grad_()
    away = ~torch.eye(5, dtype=torch.bool)
    away[0, 4] = away[4, 0] = False
    assert torch.autograd.gradcheck(lambda x: block_distances(x)[away], (points,))


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_ranking_scores_are_half_squared_distances_up_to_the_query_norm(batch: tuple[int, ...]) -> None:
    queries = torch.randn(*batch, 5, 4, dtype=torch.float64)
    features = torch.randn(*batch, 7, 4, dtype=torch.float64)
    scores = ranking_scores(queries, features, 0.5 * features.square().sum(-1))
    expected = 0.5 * exact_distances(queries, features).square() - 0.5 * queries.square().sum(-1, keepdim=True)
    torch.testing.assert_close(scores, expected, rtol=1e-12, atol=1e-12)


def test_infinite_half_norm_excludes_a_point() -> None:
    features = torch.tensor([[1.0], [2.0]])
    scores = ranking_scores(torch.tensor([[2.0]]), features, torch.tensor([float("inf"), 2.0]))
    assert scores.tolist() == [[float("inf"), -2.0]]


@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize("count", [1, 2, 63, 64, 200, 1000])
def test_median_point_lies_amidst_the_points(batch: tuple[int, ...], count: int) -> None:
    """Within the middle half of every coordinate, whatever a few far points do."""
    points = torch.randn(*batch, count, 4)
    points[..., : count // 10, 1] = 1e30
    centre = median_point(points)
    assert centre.shape == (*batch, 1, 4)
    below = (points < centre).float().mean(-2)
    assert ((below > 0.25 if count > 2 else below >= 0.0) & (below < 0.75)).all()


def test_median_point_where_there_is_none() -> None:
    assert median_point(torch.zeros(2, 0, 3)).tolist() == [[[0.0] * 3]] * 2
    assert median_point(torch.full((4, 3), float("nan"))).tolist() == [[0.0] * 3]


@pytest.mark.parametrize("unit", [1.0, 0.25, torch.tensor([0.5, 1.0, 4.0])])
def test_centred_points_keep_their_differences(unit: Tensor | float) -> None:
    points = OFFSET + torch.randint(-8, 8, (2, 40, 3)).float()
    centred, centre, half_norms = centred_points(points, unit)
    assert torch.equal(centred * unit + centre, points)
    assert centred.abs().max() < 16.0 / torch.as_tensor(unit).min()
    torch.testing.assert_close(half_norms, 0.5 * centred.square().sum(-1))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e30])
def test_a_point_whose_norm_is_not_finite_is_an_empty_slot(value: float) -> None:
    points = torch.randn(10, 3)
    points[4, 1] = value
    centred, centre, half_norms = centred_points(points)
    assert half_norms.isfinite().tolist() == [row != 4 for row in range(10)]
    assert half_norms[4] == float("inf")
    assert centred[4].tolist() == [0.0] * 3
    assert centred.isfinite().all()
    assert centre.abs().max() < 3.0


@pytest.mark.parametrize("dim", [DIFFERENCES_DIM, DIFFERENCES_DIM + 1, 40])
@pytest.mark.parametrize("far", [0, 13, 19])
@pytest.mark.parametrize("offset", [1e5, -1e5])
def test_a_far_point_costs_the_others_no_digit(dim: int, far: int, offset: float) -> None:
    points = torch.randn(20, dim)
    points[far] += offset
    distances, expected = block_distances(points).double(), exact_distances(points, points)
    torch.testing.assert_close(distances, expected, rtol=1e-5, atol=0.0)


def test_block_distance_gradients_by_the_product() -> None:
    points = torch.randn(2, 5, DIFFERENCES_DIM + 1, dtype=torch.float64, requires_grad=True)
    away = ~torch.eye(5, dtype=torch.bool)
    assert torch.autograd.gradcheck(lambda x: block_distances(x)[:, away], (points,))
    assert torch.autograd.gradgradcheck(lambda x: block_distances(x)[:, away], (points,))


@pytest.mark.parametrize("dim", [1, 3, DIFFERENCES_DIM])
def test_near_points_in_a_wide_block_keep_their_distance(dim: int) -> None:
    """A product would round it to zero."""
    points = torch.zeros(3, dim)
    points[:, 0] = torch.tensor([0.0, 3e-4, 3.0])
    assert block_distances(points)[0, 1].item() == pytest.approx(3e-4)


@pytest.mark.parametrize("dim", [DIFFERENCES_DIM, DIFFERENCES_DIM + 1, 64])
@pytest.mark.parametrize(("separation", "tolerance"), [(100.0, 1e-6), (5000.0, 1e-6), (1e5, 1e-4)])
def test_a_block_across_clumps_keeps_the_distances_within_each(dim: int, separation: float, tolerance: float) -> None:
    """A product in float32 loses the digits of all clumps but the one in the middle, and then all of the distance."""
    centres, clump = separation * torch.randn(6, dim), torch.arange(36) % 6
    points = (centres[clump] + torch.randn(36, dim)).requires_grad_()
    within = (clump.unsqueeze(0) == clump.unsqueeze(1)) & ~torch.eye(36, dtype=torch.bool)
    left, right = within.nonzero(as_tuple=True)
    distances, expected = block_distances(points)[within], (points[left].double() - points[right].double()).norm(dim=1)
    torch.testing.assert_close(distances.double(), expected, rtol=tolerance, atol=0.0)
    ours, theirs = (torch.autograd.grad(values.sum(), points)[0] for values in (distances, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_points_within_reach_have_a_square_of_their_distance(dtype: torch.dtype) -> None:
    largest = torch.finfo(torch.promote_types(dtype, torch.float32)).max
    near, far = (torch.tensor([factor * largest**0.5, 0.0], dtype=torch.float64) for factor in (0.49, 0.51))
    if dtype is not torch.float16:  # whose largest number is within reach
        assert within_reach(torch.stack([near, -near, far, far]).to(dtype)).tolist() == [True, True, False, False]
        assert block_distances(torch.stack([near, -near]).to(dtype)).isfinite().all()
    points = torch.tensor([[6e4, 6e4], [float("nan"), 0.0], [0.0, -float("inf")]], dtype=dtype)
    assert within_reach(points).tolist() == [True, False, False]
