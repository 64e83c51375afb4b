"""Continuous localisation: the prediction, its gradient and its edges where the neighbours of a query change."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from skrl.kernels import Gaussian, Kernel, Laplace, Matern52, Polynomial, make_kernel
from skrl.search.exact import ExactSearch
from skrl.search.neighbors import Localisation, Neighbors, gather_points, local_neighbors
from skrl.solve.local_solve import Prediction, factorise, window_roots

RIDGE = 0.1
MAX_SLOPE = 40.0
"""Bound on |f(z) − f(z')| / ‖z − z'‖ of the continuous form below; the jumps of the hard form exceed it."""


def predict(
    queries: Tensor,
    features: Tensor,
    targets: Tensor,
    kernel: Kernel,
    localisation: Localisation,
    k: int = 6,
    lengthscale: Tensor | float = 1.0,
    ridge: Tensor | float = RIDGE,
) -> Prediction:
    neighbors, radius = local_neighbors(ExactSearch().index(features), queries, features, k, localisation)
    system = factorise(neighbors, features, kernel, lengthscale, ridge, radius)
    weights = system.weights()
    mean = (weights.unsqueeze(-1) * gather_points(targets, neighbors.indices)).sum(-2)
    return Prediction(mean, system.variance(weights))


def walk(dim: int, steps: int) -> tuple[Tensor, Tensor, Tensor, float]:
    """Points on a line through supports with random targets: queries, features, targets, length of a step."""
    points, width = {1: (40, 10.0), 2: (150, 6.0), 8: (300, 3.0)}[dim]
    generator = torch.Generator().manual_seed(dim)
    features = width * torch.rand(points, dim, dtype=torch.float64, generator=generator)
    targets = torch.randn(points, 1, dtype=torch.float64, generator=generator)
    share = torch.linspace(0.1, 0.9, steps + 1, dtype=torch.float64).unsqueeze(-1)
    queries = features.amin(0) + share * (features.amax(0) - features.amin(0))
    return queries, features, targets, (queries[1] - queries[0]).norm().item()


def neighbour_changes(queries: Tensor, features: Tensor, k: int = 6) -> int:
    sets = ExactSearch()(queries, features, k).indices.sort(-1).values
    return int((sets.diff(dim=0) != 0).any(-1).sum())


def largest_jump(values: Tensor) -> float:
    return float(values.diff(dim=0).abs().max())


@pytest.mark.parametrize("dim", [1, 2, 8])
@pytest.mark.parametrize("name", ["matern52", "laplace", "wendland_c2", "polynomial"])
def test_jumps_shrink_with_the_step_when_localisation_is_continuous(name: str, dim: int) -> None:
    kernel = make_kernel(name, dim)
    jumps: dict[Localisation, list[tuple[float, float]]] = {"hard": [], "continuous": []}
    for steps in (4000, 8000):
        queries, features, targets, step = walk(dim, steps)
        assert neighbour_changes(queries, features) > 15
        for localisation, found in jumps.items():
            mean, variance = predict(queries, features, targets, kernel, localisation)
            found.append((largest_jump(mean), largest_jump(variance)))
        assert jumps["continuous"][-1][0] < MAX_SLOPE * step
    assert jumps["hard"][-1][0] > MAX_SLOPE * step
    for coarse, fine in zip(*jumps["continuous"], strict=True):
        assert fine == pytest.approx(0.5 * coarse, rel=0.05)
    assert jumps["hard"][1][0] > 0.9 * jumps["hard"][0][0]


def refined_where_neighbours_change(queries: Tensor, features: Tensor, k: int = 6) -> Tensor:
    """The same walk with a hundred smaller steps wherever the k neighbours, or the one after them, change."""
    found = ExactSearch()(queries, features, k + 1).indices
    found = torch.cat([found[:, :k].sort(-1).values, found[:, k:]], dim=-1)
    changes = (found.diff(dim=0) != 0).any(-1).nonzero().flatten()
    places = torch.cat([torch.arange(len(queries)), (changes.unsqueeze(-1) + torch.arange(1, 100) / 100).flatten()])
    return queries[0] + places.sort().values.double().unsqueeze(-1) * (queries[1] - queries[0])


@pytest.mark.parametrize("dim", [1, 2, 8])
@pytest.mark.parametrize("kernel", [Matern52(), 0.5 * Gaussian() + Polynomial()], ids=repr)
def test_gradient_integrates_to_the_difference_across_neighbour_changes(kernel: Kernel, dim: int) -> None:
    """Step by step and so along the line, ∫ ∇f · dz is f(b) − f(a) where f is continuous; the hard form loses jumps."""
    queries, features, targets, _ = walk(dim, 4000)
    assert neighbour_changes(queries, features) > 15
    queries = refined_where_neighbours_change(queries, features).requires_grad_()
    steps = queries.detach().diff(dim=0)
    lost: dict[str, list[float]] = {"hard": [], "continuous": []}
    for localisation in ("hard", "continuous"):
        mean, variance = predict(queries, features, targets, kernel, localisation)
        for values in (mean.squeeze(-1), variance):
            (gradient,) = torch.autograd.grad(values.sum(), queries, retain_graph=True)
            integrals = (0.5 * (gradient[1:] + gradient[:-1]) * steps).sum(-1)
            lost[localisation].append((values.detach().diff() - integrals).abs().sum().item())
    for hard, continuous in zip(lost["hard"], lost["continuous"], strict=True):
        assert continuous < 5e-3
        assert hard > 100.0 * continuous


def bracketed_change(features: Tensor, k: int, start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Queries just before and just after the first change of neighbours on the way from start to end."""
    share = torch.linspace(0.0, 1.0, 4001, dtype=torch.float64).unsqueeze(-1)
    queries = start + share * (end - start)
    sets = ExactSearch()(queries, features, k).indices.sort(-1).values
    first = int((sets.diff(dim=0) != 0).any(-1).nonzero()[0])
    return queries[first : first + 1], queries[first + 1 : first + 2]


@pytest.mark.parametrize("dim", [1, 2, 8])
def test_gradcheck_beside_a_neighbour_change(dim: int) -> None:
    """Where the leaving neighbour has almost no window left."""
    features, targets = torch.randn(6, dim, dtype=torch.float64), torch.randn(6, 1, dtype=torch.float64)
    lengthscale = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    ridge = torch.tensor(RIDGE, dtype=torch.float64, requires_grad=True)
    for queries in bracketed_change(features, 3, features.amin(0), features.amax(0)):
        neighbors, radius = local_neighbors(ExactSearch().index(features), queries, features, 3, "continuous")
        assert radius is not None
        assert 0.0 < window_roots(neighbors.distances, radius).min() < 5e-3
        inputs = queries.clone().requires_grad_(), features.clone().requires_grad_(), targets.clone().requires_grad_()
        assert torch.autograd.gradcheck(
            lambda z, x, y, ell, lam: predict(z, x, y, Matern52(), "continuous", 3, ell, lam),
            (*inputs, lengthscale, ridge),
        )


def test_leaving_neighbour_has_no_say_left() -> None:
    """Both sides of a change: the same weights for all that stay, none for the two that swap."""
    features = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64)
    beside = torch.tensor([[1.5 - 1e-9], [1.5 + 1e-9]], dtype=torch.float64)  # d_2 = d_3 half-way from 0 to 3
    neighbors, radius = local_neighbors(ExactSearch().index(features), beside, features, 2, "continuous")
    assert neighbors.indices.tolist() == [[1, 0], [1, 2]]
    weights = factorise(neighbors, features, Laplace(), 1.0, RIDGE, radius).weights()
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-7, atol=1e-12)
    assert weights[:, 1].abs().max() < 1e-15
    assert weights[:, 0].min() > 0.3


def test_window_by_hand() -> None:
    """Distances 0, 1 and 3 of a radius 4: 1 − (d/4)²."""
    roots = window_roots(torch.tensor([[0.0, 1.0, 3.0, 4.0, 4.5]]), torch.tensor([4.0]))
    assert roots.tolist() == [[1.0, 0.9375, 0.4375, 0.0, 0.0]]
    assert window_roots(torch.tensor([[0.0, 7.0]]), torch.tensor([float("inf")])).tolist() == [[1.0, 1.0]]
    assert window_roots(torch.tensor([[0.0, 0.0]]), torch.tensor([0.0])).tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("radius", [float("inf"), 0.0])
def test_gradient_of_windows_that_do_not_end_is_zero(radius: float) -> None:
    distances, end = torch.zeros(1, 2, requires_grad=True), torch.tensor([radius], requires_grad=True)
    window_roots(distances, end).sum().backward()
    assert distances.grad is not None
    assert end.grad is not None
    assert distances.grad.tolist() == [[0.0, 0.0]]
    assert end.grad.tolist() == [0.0]


def test_windows_keep_their_digits_as_they_end() -> None:
    """The last relative digits of 1 − (d/radius)² in float32, down to two distances that differ in the last bit."""
    radius = torch.tensor([1.7], dtype=torch.float32)
    distances = radius * (1.0 - torch.logspace(-7.0, -0.1, 60, dtype=torch.float32))
    distances = distances[distances < radius].unsqueeze(0)
    exact = 1.0 - (distances.double() / radius.double()) ** 2
    torch.testing.assert_close(window_roots(distances, radius).double(), exact, rtol=5e-7, atol=0.0)


@pytest.mark.parametrize("gap", [1e-1, 1e-3, 1e-5, 1.2e-7])
@pytest.mark.parametrize("ridge", [1e-3, 1.0])
def test_leave_one_out_keeps_its_digits_as_windows_end(gap: float, ridge: float) -> None:
    """Errors and precisions are quotients of numbers that vanish with s; in float32 they are those of float64."""
    features, residuals = torch.randn(40, 3), torch.randn(1, 6, 2)
    neighbors = ExactSearch()(torch.zeros(1, 3), features, 6)
    radius = (1.0 + gap) * neighbors.distances.amax(-1)
    assert (radius > neighbors.distances.amax(-1)).all()
    system = factorise(neighbors, features, Matern52(), 1.0, ridge, radius)
    errors, precisions = system.leave_one_out_with_precision(residuals)
    doubles = Neighbors(neighbors.indices, neighbors.distances.double(), neighbors.mask)
    exact = factorise(doubles, features.double(), Matern52(), 1.0, ridge, radius.double())
    exact_errors, exact_precisions = exact.leave_one_out_with_precision(residuals.double())
    assert system.mask.all()
    torch.testing.assert_close(errors.double(), exact_errors, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(precisions.double(), exact_precisions, rtol=1e-4, atol=0.0)


def test_without_ridge_windows_change_nothing() -> None:
    queries, features = torch.randn(5, 2, dtype=torch.float64), torch.randn(20, 2, dtype=torch.float64)
    targets = torch.randn(20, 1, dtype=torch.float64)
    hard, continuous = (
        predict(queries, features, targets, Laplace(), kind, ridge=0.0) for kind in ("hard", "continuous")
    )
    torch.testing.assert_close(continuous.mean, hard.mean, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("points", [0, 1, 4, 5])
def test_with_no_further_point_windows_do_not_end(points: int) -> None:
    """At most k points: the continuous form is the hard one."""
    queries, features = torch.randn(7, 2, dtype=torch.float64), torch.randn(points, 2, dtype=torch.float64)
    targets = torch.randn(points, 1, dtype=torch.float64)
    hard, continuous = (predict(queries, features, targets, Matern52(), kind, 5) for kind in ("hard", "continuous"))
    torch.testing.assert_close(continuous.mean, hard.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(continuous.variance, hard.variance, rtol=1e-12, atol=1e-12)


def test_empty_slots_are_no_neighbours_and_no_radius() -> None:
    """Sets with 0, 2, 3 and 7 filled slots, k = 3: each predicts as its filled slots alone do."""
    filled = [0, 2, 3, 7]
    queries, features = torch.randn(4, 6, 2, dtype=torch.float64), torch.randn(4, 9, 2, dtype=torch.float64)
    targets = torch.randn(4, 9, 1, dtype=torch.float64)
    half_norms = 0.5 * features.square().sum(-1)
    for row, count in enumerate(filled):
        half_norms[row, count:] = float("inf")
    index = ExactSearch().index(features, half_norms)
    neighbors, radius = local_neighbors(index, queries, features, 3, "continuous")
    system = factorise(neighbors, features, Matern52(), 1.0, RIDGE, radius)
    weights = system.weights()
    means = (weights.unsqueeze(-1) * gather_points(targets, neighbors.indices)).sum(-2)
    assert not system.failed.any()
    for row, count in enumerate(filled):
        alone = predict(queries[row], features[row, :count], targets[row, :count], Matern52(), "continuous", 3)
        torch.testing.assert_close(means[row], alone.mean, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(system.variance(weights)[row], alone.variance, rtol=1e-9, atol=1e-11)


def test_more_duplicates_of_the_query_than_neighbours() -> None:
    """Radius zero: the k duplicates found keep their full say, as in the hard form."""
    features = torch.cat([torch.zeros(5, 2), torch.ones(1, 2)]).double()
    targets = torch.full((6, 1), 3.0, dtype=torch.float64)
    query = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    continuous = predict(query, features, targets, Gaussian(), "continuous", k=3)
    assert continuous.mean.item() == pytest.approx(3.0 * 3.0 / (3.0 + RIDGE))
    assert continuous.variance.item() == pytest.approx(1.0 - 3.0 / (3.0 + RIDGE))
    continuous.mean.sum().backward()
    assert query.grad is not None
    assert query.grad.isfinite().all()


def test_neighbours_at_the_radius_have_no_say_and_leave_the_system_regular() -> None:
    """Ties of the (k+1)-th distance: windows of zero are missing neighbours, even without ridge."""
    features = torch.tensor([[1.0], [-2.0], [2.0], [2.0]], dtype=torch.float64)
    query = torch.zeros(1, 1, dtype=torch.float64)
    neighbors, radius = local_neighbors(ExactSearch().index(features), query, features, 3, "continuous")
    system = factorise(neighbors, features, Laplace(), 1.0, 0.0, radius)
    assert not system.jittered.any()
    assert system.mask.tolist() == [[True, False, False]]
    expected = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64) * torch.exp(torch.tensor(-1.0).double())
    torch.testing.assert_close(system.weights(), expected)
    errors, precisions = system.leave_one_out_with_precision(torch.ones(1, 3, 1, dtype=torch.float64))
    assert errors.flatten().tolist() == [1.0, 0.0, 0.0]
    assert precisions[0, 1:].tolist() == [1.0, 1.0]


def test_query_beside_many_duplicates_gets_the_prior() -> None:
    """All k + 1 nearest are equally far: what is continuous there is the prior."""
    features = torch.full((4, 2), 0.3, dtype=torch.float64)
    continuous = predict(torch.zeros(1, 2).double(), features, torch.ones(4, 1).double(), Gaussian(), "continuous", k=3)
    assert continuous.mean.item() == 0.0
    assert continuous.variance.item() == 1.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_windows_are_solved_in_float32(dtype: torch.dtype) -> None:
    features = torch.randn(12, 2).to(dtype)
    neighbors, radius = local_neighbors(ExactSearch().index(features), features[:3], features, 4, "continuous")
    system = factorise(neighbors, features, Matern52(), 1.0, RIDGE, radius)
    assert system.window.dtype == system.factor.dtype == torch.float32
    assert system.weights().isfinite().all()
