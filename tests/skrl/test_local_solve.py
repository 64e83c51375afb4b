"""Local systems against explicit dense solves: weights, variance, leave-one-out errors, and bad systems."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from skrl.kernels import KERNELS, Gaussian, Laplace, Matern52, make_kernel
from skrl.local_solve import JITTERS, LocalSystem, averaging_weights, factorise
from skrl.neighbors import ExactSearch, Neighbors

LENGTHSCALE, RIDGE = 0.8, 0.1


def kernel_matrix(kernel: str, left: Tensor, right: Tensor) -> Tensor:
    distances = torch.cdist(left, right, compute_mode="donot_use_mm_for_euclid_dist")
    return make_kernel(kernel)(distances / LENGTHSCALE)


def local_system(queries: Tensor, features: Tensor, k: int, ridge: Tensor | float = RIDGE) -> LocalSystem:
    return factorise(ExactSearch()(queries, features, k), features, Matern52(), LENGTHSCALE, ridge)


def masked_neighbors(neighbors: Neighbors, missing: int) -> Neighbors:
    """The same neighbours behind ``missing`` more slots that do not exist."""

    def extend(values: Tensor) -> Tensor:
        return torch.cat([values, values.new_zeros(*values.shape[:-1], missing)], dim=-1)

    return Neighbors(*(extend(values) for values in neighbors))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("k", [1, 2, 7, 20])
def test_weights_and_variance_equal_a_dense_solve_per_query(kernel: str, k: int) -> None:
    queries, features = torch.randn(6, 3, dtype=torch.float64), torch.randn(20, 3, dtype=torch.float64)
    neighbors = ExactSearch()(queries, features, k)
    system = factorise(neighbors, features, make_kernel(kernel), LENGTHSCALE, RIDGE)
    weights = system.weights()
    variance = system.variance(weights)
    for b in range(6):
        points = features[neighbors.indices[b]]
        gram = kernel_matrix(kernel, points, points) + RIDGE * torch.eye(k, dtype=torch.float64)
        cross = kernel_matrix(kernel, queries[b : b + 1], points)[0]
        expected = torch.linalg.solve(gram, cross)
        torch.testing.assert_close(weights[b], expected, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(variance[b], 1.0 - cross @ expected, rtol=1e-9, atol=1e-11)
    assert not system.jittered.any()
    assert not system.failed.any()


def test_one_support_by_hand() -> None:
    features = torch.zeros(1, 1, dtype=torch.float64)
    neighbors = ExactSearch()(torch.tensor([[0.0], [2.0]], dtype=torch.float64), features, 1)
    system = factorise(neighbors, features, Laplace(), 2.0, 0.25)
    weights = system.weights()
    expected = torch.tensor([1.0, 0.36787944117144233], dtype=torch.float64) / 1.25
    torch.testing.assert_close(weights[:, 0], expected)
    torch.testing.assert_close(system.variance(weights), 1.0 - expected.square() * 1.25)


def test_ridge_is_added_as_it_is() -> None:
    """λ on the diagonal, never k·λ, and with all the digits of the features' dtype, whether number or tensor."""
    queries, features = torch.randn(4, 2, dtype=torch.float64), torch.randn(9, 2, dtype=torch.float64)
    system = local_system(queries, features, 9, ridge=0.1)
    diagonal = (system.factor @ system.factor.mT).diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(diagonal, torch.full_like(diagonal, 1.1), rtol=1e-15, atol=0.0)
    tensor = local_system(queries, features, 9, ridge=torch.tensor(0.1, dtype=torch.float64))
    assert torch.equal(tensor.factor, system.factor)


def test_batch_of_sets_equals_loop() -> None:
    queries, features = torch.randn(3, 5, 2, dtype=torch.float64), torch.randn(3, 30, 2, dtype=torch.float64)
    together = local_system(queries, features, 8)
    weights = together.weights()
    for s in range(3):
        alone = local_system(queries[s], features[s], 8)
        torch.testing.assert_close(weights[s], alone.weights(), rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(
            together.variance(weights)[s], alone.variance(alone.weights()), rtol=1e-12, atol=1e-13
        )


@pytest.mark.parametrize("kernel", KERNELS)
def test_leave_one_out_errors_equal_explicit_refits(kernel: str) -> None:
    queries, features = torch.randn(3, 2, dtype=torch.float64), torch.randn(15, 2, dtype=torch.float64)
    targets = torch.randn(15, 2, dtype=torch.float64)
    neighbors = ExactSearch()(queries, features, 8)
    system = factorise(neighbors, features, make_kernel(kernel), LENGTHSCALE, RIDGE)
    errors = system.leave_one_out(targets[neighbors.indices])
    for b in range(3):
        points, values = features[neighbors.indices[b]], targets[neighbors.indices[b]]
        for i in range(8):
            rest = torch.arange(8) != i
            gram = kernel_matrix(kernel, points[rest], points[rest]) + RIDGE * torch.eye(7, dtype=torch.float64)
            cross = kernel_matrix(kernel, points[i : i + 1], points[rest])
            expected = values[i] - (cross @ torch.linalg.solve(gram, values[rest]))[0]
            torch.testing.assert_close(errors[b, i], expected, rtol=1e-9, atol=1e-10)


def test_leave_one_out_error_of_a_lonely_point_is_its_residual() -> None:
    features = torch.zeros(1, 2)
    system = local_system(torch.ones(1, 2), features, 1)
    torch.testing.assert_close(system.leave_one_out(torch.tensor([[[3.0, -2.0]]])), torch.tensor([[[3.0, -2.0]]]))


def test_missing_neighbours_change_nothing_and_weigh_nothing() -> None:
    queries, features = torch.randn(5, 2, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    neighbors = ExactSearch()(queries, features, 6)
    full = factorise(neighbors, features, Gaussian(), LENGTHSCALE, RIDGE)
    padded = factorise(masked_neighbors(neighbors, 3), features, Gaussian(), LENGTHSCALE, RIDGE)
    weights = padded.weights()
    assert (weights[:, 6:] == 0.0).all()
    torch.testing.assert_close(weights[:, :6], full.weights(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(padded.variance(weights), full.variance(full.weights()), rtol=1e-12, atol=1e-14)
    residuals = torch.randn(5, 9, 1, dtype=torch.float64)
    residuals[:, 6:] = float("nan")
    errors = padded.leave_one_out(residuals)
    assert (errors[:, 6:] == 0.0).all()
    torch.testing.assert_close(errors[:, :6], full.leave_one_out(residuals[:, :6]), rtol=1e-11, atol=1e-13)


def test_no_neighbour_at_all_gives_the_prior() -> None:
    none = Neighbors(torch.zeros(2, 4, dtype=torch.long), torch.zeros(2, 4), torch.zeros(2, 4, dtype=torch.bool))
    system = factorise(none, torch.zeros(3, 1), Gaussian(), 1.0, 0.0)
    weights = system.weights()
    assert weights.tolist() == [[0.0] * 4] * 2
    assert system.variance(weights).tolist() == [1.0, 1.0]
    assert not system.failed.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_only_singular_systems_get_jitter(dtype: torch.dtype) -> None:
    """Two equal supports without ridge are singular: they get jitter, and no other system notices."""
    features = torch.tensor([[0.0], [0.0], [50.0], [51.0], [100.0], [102.0]], dtype=dtype)
    queries = torch.tensor([[50.2], [0.1], [101.0]], dtype=dtype)
    system = local_system(queries, features, 2, ridge=0.0)
    assert system.jittered.tolist() == [False, True, False]
    assert not system.failed.any()
    weights = system.weights()
    for row in (0, 2):
        alone = local_system(queries[row : row + 1], features, 2, ridge=0.0)
        torch.testing.assert_close(weights[row], alone.weights()[0], rtol=0.0, atol=1e-12)
    torch.testing.assert_close(weights[1].sum(), system.cross[1, 0], rtol=1e-4, atol=0.0)
    assert (weights[1] > 0.0).all()


@pytest.mark.parametrize("jitter", JITTERS)
def test_the_least_jitter_that_works_is_taken(monkeypatch: pytest.MonkeyPatch, jitter: float) -> None:
    """κ = 1 + ε off the diagonal is indefinite by ε, so that the first jitter above ε repairs it."""
    excess = 1.0 + 0.5 * jitter
    monkeypatch.setattr(Gaussian, "__call__", lambda self, r: torch.where(r > 0, excess, torch.ones_like(r)))
    features = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    system = factorise(ExactSearch()(features[:1], features, 2), features, Gaussian(), 1.0, 0.0)
    assert system.jittered.item()
    diagonal = (system.factor @ system.factor.mT)[0, 0, 0].item()
    assert diagonal - 1.0 == pytest.approx(jitter, rel=1e-6)


def test_hopeless_systems_answer_with_the_prior_and_leave_the_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A matrix that no jitter repairs gives weights zero and variance one."""
    monkeypatch.setattr(Gaussian, "__call__", lambda self, r: torch.where((r > 0) & (r < 2), 1.5, (-r).exp()))
    features = torch.tensor([[0.0], [1.0], [50.0], [53.0]], dtype=torch.float64)
    queries = torch.tensor([[0.4], [51.0]], dtype=torch.float64)
    system = factorise(ExactSearch()(queries, features, 2), features, Gaussian(), 1.0, 0.0)
    weights = system.weights()
    assert system.failed.tolist() == [True, False]
    assert system.jittered.tolist() == [False, False]
    assert weights[0].tolist() == [0.0, 0.0]
    assert system.variance(weights)[0] == 1.0
    alone = factorise(ExactSearch()(queries[1:], features, 2), features, Gaussian(), 1.0, 0.0)
    torch.testing.assert_close(weights[1], alone.weights()[0], rtol=0.0, atol=1e-12)
    assert weights[1].abs().max() > 0.1


def test_overflowing_distances_answer_with_the_prior() -> None:
    """Supports so far apart that their distance overflows: only the queries that see both are affected."""
    features = torch.tensor([[0.0], [1.0], [1e30]])
    neighbors = Neighbors(
        indices=torch.tensor([[0, 1], [1, 2]]),
        distances=torch.tensor([[0.2, 0.8], [0.0, 0.0]]),
        mask=torch.ones(2, 2, dtype=torch.bool),
    )
    system = factorise(neighbors, features, Matern52(), 1.0, 0.1)
    weights = system.weights()
    assert system.failed.tolist() == [False, True]
    assert weights[1].tolist() == [0.0, 0.0]
    assert system.variance(weights)[1] == 1.0
    assert weights[0, 0] > weights[0, 1] > 0.0


def test_nan_query_is_marked_as_failed() -> None:
    features = torch.randn(8, 2)
    queries = torch.tensor([[0.0, 0.0], [float("nan"), 0.0]])
    system = local_system(queries, features, 3)
    assert system.failed.tolist() == [False, True]
    assert system.weights()[1].tolist() == [0.0, 0.0, 0.0]
    torch.testing.assert_close(
        system.weights()[0], local_system(queries[:1], features, 3).weights()[0], rtol=0.0, atol=1e-12
    )


def test_gradients_flow_around_a_jittered_system() -> None:
    features = torch.tensor([[0.0], [0.0], [5.0], [6.0]], dtype=torch.float64, requires_grad=True)
    queries = torch.tensor([[0.1], [5.5]], dtype=torch.float64, requires_grad=True)
    system = local_system(queries, features, 2, ridge=0.0)
    system.weights().sum().backward()
    assert queries.grad is not None
    assert features.grad is not None
    assert queries.grad.isfinite().all()
    assert features.grad.isfinite().all()
    assert queries.grad[0].abs() > 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_solved_in_float32(dtype: torch.dtype) -> None:
    features = torch.randn(10, 2).to(dtype)
    neighbors = ExactSearch()(features[:3], features, 4)
    system = factorise(neighbors, features, Matern52(), LENGTHSCALE, RIDGE)
    assert system.factor.dtype == torch.float32
    assert system.weights().dtype == torch.float32
    upcast = local_system(features[:3].float(), features.float(), 4)
    nearest = system.weights().max(-1).values
    torch.testing.assert_close(nearest, upcast.weights().max(-1).values, rtol=0.02, atol=0.02)


def test_variance_is_kept_in_its_range() -> None:
    """Rounding may carry κ_zᵀ w past one; here it is 1.21 and −0.5."""
    no = torch.zeros(2, dtype=torch.bool)
    system = LocalSystem(torch.ones(2, 1, 1), torch.tensor([[1.1], [0.5]]), ~no.unsqueeze(1), no, no)
    assert system.variance(torch.tensor([[1.1], [-1.0]])).tolist() == [0.0, 1.0]


def test_variance_stays_between_zero_and_one() -> None:
    features = torch.randn(5, 1).repeat(8, 1)
    system = local_system(torch.cat([features, 1e3 + features]), features, 40, ridge=1e-6)
    variance = system.variance(system.weights())
    assert (variance >= 0.0).all()
    assert (variance <= 1.0).all()
    assert variance[:40].max() < 1e-3
    assert variance[40:].min() == 1.0


def test_averaging_weights_by_hand() -> None:
    # e^{-1} : e^{-2}, and a missing neighbour
    weights = averaging_weights(torch.tensor([[math.exp(-1.0), math.exp(-2.0), 0.0]]))
    torch.testing.assert_close(weights, torch.tensor([[0.7310585786300049, 0.2689414213699951, 0.0]]))


@pytest.mark.parametrize("kernel", KERNELS)
def test_averaging_weights_sum_to_one_where_a_kernel_value_is_left(kernel: str) -> None:
    queries, features = torch.randn(20, 2, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    values = make_kernel(kernel)(ExactSearch()(queries, features, 6).distances / LENGTHSCALE)
    weights = averaging_weights(torch.nn.functional.pad(values, (0, 2)))
    torch.testing.assert_close(weights.sum(-1), torch.ones(20, dtype=torch.float64))
    assert (weights >= 0.0).all()
    assert (weights[:, 6:] == 0.0).all()
    assert averaging_weights(torch.zeros(20, 6)).abs().max() == 0.0
