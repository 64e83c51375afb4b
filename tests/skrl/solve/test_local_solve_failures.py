"""Local systems that cannot be factored as they are: jitter, and the prior where none helps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from skrl.kernels import Gaussian, Matern52, Polynomial
from skrl.search.exact import ExactSearch
from skrl.search.neighbors import Neighbors
from skrl.solve.cholesky import JITTERS
from skrl.solve.local_solve import LocalSystem, factorise

LENGTHSCALE, RIDGE = 0.8, 0.1


def local_system(queries: Tensor, features: Tensor, k: int, ridge: Tensor | float = RIDGE) -> LocalSystem:
    return factorise(ExactSearch()(queries, features, k), features, Matern52(), LENGTHSCALE, ridge)


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


@pytest.mark.parametrize("weight", [2.0**-30, 2.0**30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_jitter_follows_the_scale_of_the_kernel(weight: float, dtype: torch.dtype) -> None:
    """Powers of two scale without rounding, so that the weights are the same to the last digits."""
    features = torch.tensor([[0.0], [0.0], [1.0]], dtype=dtype)
    neighbors = ExactSearch()(torch.tensor([[0.3]], dtype=dtype), features, 3)
    system = factorise(neighbors, features, weight * Gaussian(), 1.0, 0.0)
    alone = factorise(neighbors, features, Gaussian(), 1.0, 0.0)
    assert system.jittered.tolist() == alone.jittered.tolist() == [True]
    torch.testing.assert_close(system.weights(), alone.weights(), rtol=1e-6, atol=0.0)
    assert system.variance(system.weights()).item() <= 0.1 * weight


def test_jitter_follows_the_scale_of_far_monomials() -> None:
    """A quadratic through 12 points has 3 coefficients: singular without ridge, with entries up to 10⁵."""
    features = torch.linspace(-20.0, 20.0, 12).unsqueeze(-1)
    targets = 2.0 + 0.5 * features - 0.1 * features.square()
    query = torch.tensor([[3.0]])
    neighbors = ExactSearch()(query, features, 12)
    system = factorise(neighbors, features, Polynomial(), 1.0, 0.0)
    assert not system.failed.any()
    mean = system.weights() @ targets[neighbors.indices[0]]
    torch.testing.assert_close(mean.flatten(), torch.tensor([2.6]), rtol=0.0, atol=0.3)


@pytest.mark.parametrize("prior", [1.0, 2.0])
def test_hopeless_systems_answer_with_the_prior_and_leave_the_others_alone(
    monkeypatch: pytest.MonkeyPatch, prior: float
) -> None:
    """A matrix that no jitter repairs gives weights zero, the prior variance, and residuals as errors."""
    monkeypatch.setattr(Gaussian, "__call__", lambda self, r: torch.where((r > 0) & (r < 2), 1.5, (-r).exp()))
    kernel = prior * Gaussian()
    features = torch.tensor([[0.0], [1.0], [50.0], [53.0]], dtype=torch.float64)
    queries = torch.tensor([[0.4], [51.0]], dtype=torch.float64)
    neighbors = ExactSearch()(queries, features, 2)
    for radius in (None, torch.tensor([9.0, 9.0], dtype=torch.float64)):
        system = factorise(neighbors, features, kernel, 1.0, 0.0, radius)
        weights = system.weights()
        assert system.failed.tolist() == [True, False]
        assert system.jittered.tolist() == [False, False]
        assert weights[0].tolist() == [0.0, 0.0]
        assert system.variance(weights)[0] == prior
        rest = Neighbors(*(values[1:] for values in neighbors))
        alone = factorise(rest, features, kernel, 1.0, 0.0, None if radius is None else radius[1:])
        torch.testing.assert_close(weights[1], alone.weights()[0], rtol=0.0, atol=1e-12)
        assert weights[1].abs().max() > 0.1
        residuals = torch.tensor([[[3.0], [-2.0]]] * 2, dtype=torch.float64)
        torch.testing.assert_close(system.leave_one_out(residuals)[0], residuals[0])


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


@pytest.mark.parametrize("radius", [None, 2.0, float("nan")])
def test_a_distance_that_is_no_number_fails_its_system(radius: float | None) -> None:
    """Also behind a window, which must not hide it as an ended one."""
    features = torch.tensor([[0.0], [1.0], [3.0]])
    neighbors = Neighbors(
        indices=torch.tensor([[0, 1], [0, 1]]),
        distances=torch.tensor([[0.2, 0.8], [0.2, float("nan")]]),
        mask=torch.ones(2, 2, dtype=torch.bool),
    )
    ends = None if radius is None else torch.tensor([2.0, radius])
    system = factorise(neighbors, features, Matern52(), 1.0, 0.1, ends)
    assert system.failed.tolist() == [False, True]
    assert system.weights()[1].tolist() == [0.0, 0.0]
