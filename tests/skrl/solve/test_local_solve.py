"""Local systems against explicit dense solves: weights, variance and leave-one-out errors, hard and continuous."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from skrl.kernels import KERNELS, Gaussian, Kernel, Laplace, Matern32, Matern52, Polynomial, WendlandC2, make_kernel
from skrl.search.exact import ExactSearch
from skrl.search.neighbors import Localisation, Neighbors, local_neighbors
from skrl.solve.local_solve import LocalSystem, averaging_weights, factorise

LENGTHSCALE, RIDGE = 0.8, 0.1

LOCALISATIONS: list[Localisation] = ["hard", "continuous"]

SYSTEMS: dict[str, Kernel] = {name: make_kernel(name) for name in KERNELS} | {
    "sum": 0.3 * Gaussian() + 2.0 * Laplace().stretched(5.0),
    "product": Matern32() * WendlandC2(),
    "with a polynomial": 0.5 * Gaussian() + Polynomial(),
}


def kernel_matrix(kernel: Kernel, left: Tensor, right: Tensor, query: Tensor) -> Tensor:
    """κ(x, x') by its definition; polynomials are centred at the query."""
    if kernel == SYSTEMS["with a polynomial"]:
        return 0.5 * kernel_matrix(Gaussian(), left, right, query) + kernel_matrix(Polynomial(), left, right, query)
    if isinstance(kernel, Polynomial):
        return (1.0 + (left - query) @ (right - query).mT / LENGTHSCALE**2) ** kernel.degree
    return kernel(torch.cdist(left, right, compute_mode="donot_use_mm_for_euclid_dist") / LENGTHSCALE)


def window_by_hand(query: Tensor, points: Tensor, features: Tensor, localisation: Localisation) -> Tensor:
    """ω_i = (1 − (d_i/d_{k+1})²)² of the k points nearest to the query."""
    if localisation == "hard":
        return torch.ones(len(points), dtype=points.dtype)
    radius = (features - query).norm(dim=-1).sort().values[len(points)]
    return (1.0 - ((points - query).norm(dim=-1) / radius) ** 2) ** 2


def localised_system(
    queries: Tensor, features: Tensor, k: int, kernel: Kernel, localisation: Localisation, ridge: Tensor | float = RIDGE
) -> tuple[Neighbors, LocalSystem]:
    neighbors, radius = local_neighbors(ExactSearch().index(features), queries, features, k, localisation)
    return neighbors, factorise(neighbors, features, kernel, LENGTHSCALE, ridge, radius)


def local_system(queries: Tensor, features: Tensor, k: int, ridge: Tensor | float = RIDGE) -> LocalSystem:
    return factorise(ExactSearch()(queries, features, k), features, Matern52(), LENGTHSCALE, ridge)


def masked_neighbors(neighbors: Neighbors, missing: int) -> Neighbors:
    """The same neighbours behind ``missing`` more slots that do not exist."""

    def extend(values: Tensor) -> Tensor:
        return torch.cat([values, values.new_zeros(*values.shape[:-1], missing)], dim=-1)

    return Neighbors(*(extend(values) for values in neighbors))


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("k", [1, 2, 7, 20])
@pytest.mark.parametrize("localisation", LOCALISATIONS)
def test_weights_and_variance_equal_a_dense_solve_per_query(name: str, k: int, localisation: Localisation) -> None:
    """The continuous form is the regression with noise λ/ω_i."""
    kernel = SYSTEMS[name]
    queries, features = torch.randn(6, 3, dtype=torch.float64), torch.randn(21, 3, dtype=torch.float64)
    neighbors, system = localised_system(queries, features, k, kernel, localisation)
    weights = system.weights()
    variance = system.variance(weights)
    for b in range(6):
        query, points = queries[b], features[neighbors.indices[b]]
        noise = RIDGE / window_by_hand(query, points, features, localisation)
        gram = kernel_matrix(kernel, points, points, query)
        cross = kernel_matrix(kernel, query.unsqueeze(0), points, query)[0]
        expected = torch.linalg.solve(gram + torch.diag(noise), cross)
        prior = kernel_matrix(kernel, query.unsqueeze(0), query.unsqueeze(0), query).item()
        torch.testing.assert_close(weights[b], expected, rtol=1e-8, atol=1e-11)
        torch.testing.assert_close(variance[b], prior - cross @ expected, rtol=1e-8, atol=1e-11)
    assert not system.jittered.any()
    assert not system.failed.any()


@pytest.mark.parametrize("name", SYSTEMS)
def test_variance_without_a_say_is_the_prior_variance(name: str) -> None:
    kernel = SYSTEMS[name]
    features = torch.zeros(1, 2, dtype=torch.float64)
    missing = Neighbors(torch.zeros(1, 1).long(), torch.zeros(1, 1).double(), torch.zeros(1, 1).bool())
    system = factorise(missing, features, kernel, 1.0, RIDGE)
    assert system.variance(system.weights()).item() == kernel.prior_variance
    if kernel.is_radial and name != "inverse_multiquadric":
        far = factorise(ExactSearch()(features + 1e4, features, 1), features, kernel, 1.0, RIDGE)
        assert far.variance(far.weights()).item() == kernel.prior_variance


@pytest.mark.parametrize("localisation", LOCALISATIONS)
def test_weights_keep_when_kernel_and_ridge_are_scaled(localisation: Localisation) -> None:
    """c · κ with c · λ: the same weights, c times the variance."""
    queries, features = torch.randn(6, 3, dtype=torch.float64), torch.randn(21, 3, dtype=torch.float64)
    _, plain = localised_system(queries, features, 5, Matern52(), localisation)
    _, scaled = localised_system(queries, features, 5, 40.0 * Matern52(), localisation, 40.0 * RIDGE)
    torch.testing.assert_close(scaled.weights(), plain.weights(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(
        scaled.variance(scaled.weights()), 40.0 * plain.variance(plain.weights()), rtol=1e-11, atol=1e-12
    )


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


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("localisation", LOCALISATIONS)
def test_leave_one_out_equals_explicit_refits(name: str, localisation: Localisation) -> None:
    """Errors, and the variances of the left-out values with their own noise, by literally leaving the point out."""
    kernel = SYSTEMS[name]
    queries, features = torch.randn(3, 2, dtype=torch.float64), torch.randn(15, 2, dtype=torch.float64)
    targets = torch.randn(15, 2, dtype=torch.float64)
    neighbors, system = localised_system(queries, features, 8, kernel, localisation)
    errors, precisions = system.leave_one_out_with_precision(targets[neighbors.indices])
    assert torch.equal(errors, system.leave_one_out(targets[neighbors.indices]))
    for b in range(3):
        points, values = features[neighbors.indices[b]], targets[neighbors.indices[b]]
        noise = RIDGE / window_by_hand(queries[b], points, features, localisation)
        gram = kernel_matrix(kernel, points, points, queries[b])
        for i in range(8):
            rest = torch.arange(8) != i
            solution = torch.linalg.solve(gram[rest][:, rest] + torch.diag(noise[rest]), gram[rest, i])
            torch.testing.assert_close(errors[b, i], values[i] - solution @ values[rest], rtol=1e-7, atol=1e-9)
            variance = gram[i, i] + noise[i] - gram[rest, i] @ solution
            torch.testing.assert_close(precisions[b, i], 1.0 / variance, rtol=1e-7, atol=1e-10)


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


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("localisation", LOCALISATIONS)
def test_nan_query_reads_the_prior(name: str, localisation: Localisation) -> None:
    """It has no neighbours, which is no failure of a system; whoever counts fallbacks looks at the query."""
    features = torch.randn(8, 2)
    queries = torch.tensor([[0.0, 0.0], [float("nan"), 0.0]])
    _, system = localised_system(queries, features, 3, SYSTEMS[name], localisation)
    assert system.mask.any(-1).tolist() == [True, False]
    assert system.failed.tolist() == [False, False]
    assert system.weights()[1].tolist() == [0.0, 0.0, 0.0]
    assert system.variance(system.weights())[1] == SYSTEMS[name].prior_variance
    _, alone = localised_system(queries[:1], features, 3, SYSTEMS[name], localisation)
    torch.testing.assert_close(system.weights()[0], alone.weights()[0], rtol=0.0, atol=1e-5)


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
    """Rounding may carry κ_zᵀ w past κ(z, z); here it is 1.21 times that and −0.5."""
    no = torch.zeros(2, dtype=torch.bool)
    for prior, high in ((1.0, 1.1), (2.0, 2.2)):
        cross = torch.tensor([[high], [0.5]])
        system = LocalSystem(torch.ones(2, 1, 1), cross, torch.ones(2, 1), ~no.unsqueeze(1), no, no, prior)
        assert system.variance(torch.tensor([[1.1], [-1.0]])).tolist() == [0.0, prior]


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


@pytest.mark.parametrize("name", [name for name, kernel in SYSTEMS.items() if kernel.is_radial])
def test_averaging_weights_sum_to_one_where_a_kernel_value_is_left(name: str) -> None:
    queries, features = torch.randn(20, 2, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    values = SYSTEMS[name](ExactSearch()(queries, features, 6).distances / LENGTHSCALE)
    weights = averaging_weights(torch.nn.functional.pad(values, (0, 2)))
    torch.testing.assert_close(weights.sum(-1), torch.ones(20, dtype=torch.float64))
    assert (weights >= 0.0).all()
    assert (weights[:, 6:] == 0.0).all()
    assert averaging_weights(torch.zeros(20, 6)).abs().max() == 0.0
