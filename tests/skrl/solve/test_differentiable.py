"""Gradients by compiled loops against those of plain torch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from skrl import KERNELS, Prediction, SparseKernel, compiling, sparse_kernel
from skrl.kernels.algebra import Kernel
from skrl.kernels.formulas import Gaussian, Laplace, Matern52
from skrl.search.exact import ExactIndex
from skrl.search.neighbors import Localisation
from skrl.solve import differentiable
from skrl.solve.differentiable import carries_gradients
from skrl.solve.local_weights import ridge_weights

RADIAL = sorted(set(KERNELS) - {"polynomial"})
NAMES = ("mean", "variance", "queries", "features", "targets", "lengthscale", "ridge")

pytestmark = pytest.mark.skipif(not compiling.AVAILABLE, reason="needs numba")


class Learned(Kernel, nn.Module):
    """A kernel with a parameter of its own."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.power = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

    def __call__(self, r: Tensor) -> Tensor:
        return torch.exp(-self.power * r)

    def __hash__(self) -> int:
        return id(self)


def problem(points: int = 40, queries: int = 9, dim: int = 3, targets: int = 2, seed: int = 0) -> list[Tensor]:
    """Queries, features, targets, lengthscale and ridge; the first query and the second point lie on the first."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (queries, dim), (points, dim), (points, targets)
    values = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]
    values[1][1] = values[0][0] = values[1][0]
    return [*values, torch.tensor(1.3, dtype=torch.float64), torch.tensor(0.2, dtype=torch.float64)]


def answers(
    values: list[Tensor], kernel: str | Kernel, localisation: Localisation, k: int, seed: int = 1
) -> dict[str, Tensor]:
    """Predictions, and the gradients of a random mixture of them."""
    leaves = [value.clone().requires_grad_() for value in values]
    queries, features, targets, lengthscale, ridge = leaves
    prediction = sparse_kernel(
        queries, features, targets, kernel=kernel, lengthscale=lengthscale, ridge=ridge, k=k, localisation=localisation
    )
    generator = torch.Generator().manual_seed(seed)
    mixture = sum((part * torch.randn(part.shape, generator=generator, dtype=part.dtype)).sum() for part in prediction)
    gradients = torch.autograd.grad(mixture, leaves)  # type: ignore[arg-type]
    return dict(zip(NAMES, [*(part.detach() for part in prediction), *gradients], strict=True))


def in_plain_torch(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> dict[str, Tensor]:
    with monkeypatch.context() as patch:
        patch.setattr(compiling, "AVAILABLE", False)
        return answers(*arguments)  # type: ignore[arg-type]


def assert_alike(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name in NAMES:
        torch.testing.assert_close(
            actual[name], expected[name], rtol=1e-6, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("k", [2, 8, 50])
@pytest.mark.parametrize("localisation", ["hard", "continuous"])
@pytest.mark.parametrize("kernel", [*RADIAL, 0.5 * Gaussian() + Laplace().stretched(3.0) * Matern52()])
def test_every_gradient_is_that_of_plain_torch(
    monkeypatch: pytest.MonkeyPatch, kernel: str | Kernel, localisation: Localisation, k: int
) -> None:
    values = problem()
    actual = answers(values, kernel, localisation, k)
    assert actual["features"].abs().max() > 1e-3
    assert_alike(actual, in_plain_torch(monkeypatch, values, kernel, localisation, k))


@pytest.mark.parametrize("localisation", ["hard", "continuous"])
def test_chunks_and_threads_change_nothing(monkeypatch: pytest.MonkeyPatch, localisation: Localisation) -> None:
    values = problem(points=60, queries=41, targets=5)
    expected = in_plain_torch(monkeypatch, values, "matern32", localisation, 8)
    monkeypatch.setattr(differentiable, "MAX_GRAM", 200)
    monkeypatch.setattr(compiling, "WAKING_SECONDS", 1e-12)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert_alike(answers(values, "matern32", localisation, 8), expected)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("asked", [0, 1, 2, 3, 4])
def test_what_is_not_asked_for_gets_none(asked: int) -> None:
    values = problem()
    expected = answers(values, "gaussian", "continuous", 6)
    leaves = [value.clone().requires_grad_(position == asked) for position, value in enumerate(values)]
    queries, features, targets, lengthscale, ridge = leaves
    prediction = sparse_kernel(
        queries, features, targets, kernel="gaussian", lengthscale=lengthscale, ridge=ridge, k=6,
        localisation="continuous",
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    for part in prediction:
        part.backward(torch.randn(part.shape, generator=generator, dtype=part.dtype), retain_graph=True)
    for position, leaf in enumerate(leaves):
        if position == asked:
            torch.testing.assert_close(leaf.grad, expected[NAMES[2 + position]])
        else:
            assert leaf.grad is None


def test_gradients_can_be_differentiated_again() -> None:
    queries, features, targets, _, ridge = problem(points=6, queries=2, dim=2)
    leaves = [value.requires_grad_() for value in (queries[1:], features[2:], targets[2:], ridge)]

    def outputs(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        return sparse_kernel(*inputs[:3], kernel="gaussian", ridge=inputs[3], k=3, localisation="continuous")

    assert torch.autograd.gradgradcheck(outputs, leaves)


def test_targets_alone_can_be_differentiated_again() -> None:
    queries, features, targets, _, ridge = problem(points=6, queries=2, dim=2)
    targets.requires_grad_()
    mean = sparse_kernel(queries, features, targets, ridge=ridge, k=3).mean
    (slope,) = torch.autograd.grad(mean.square().sum(), targets, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), targets)
    assert curvature.abs().max() > 0


def test_inputs_that_depend_on_each_other_get_the_same_gradients_with_a_graph() -> None:
    """Every input counts for itself, and the caller's own graph adds them up, once."""
    _, points, values, scale, _ = problem(points=6, queries=2, dim=2)
    leaves = [points[2:].requires_grad_(), values[2:].requires_grad_(), scale.requires_grad_()]

    def outputs(points: Tensor, values: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        targets = torch.cat([points.sin(), values * points.sum(-1, keepdim=True)], dim=1)
        queries = 0.9 * points[:2] + values[:2]
        return sparse_kernel(
            queries, points, targets, kernel="gaussian", lengthscale=2.0 * scale, ridge=scale, k=3,
            localisation="continuous",
        )  # fmt: skip

    plain, kept = (
        torch.autograd.grad(sum(part.square().sum() for part in outputs(*leaves)), leaves, create_graph=graph)  # type: ignore[arg-type]
        for graph in (False, True)
    )
    for without, with_graph in zip(plain, kept, strict=True):
        assert without.abs().max() > 1e-3
        torch.testing.assert_close(with_graph, without, rtol=1e-9, atol=1e-12)
    assert torch.autograd.gradcheck(outputs, leaves)
    assert torch.autograd.gradgradcheck(outputs, leaves)


@pytest.mark.parametrize("position", [0, 1, 2])
def test_many_gradients_at_once(position: int) -> None:
    values = problem(points=12, queries=3)[:3]

    def mean(value: Tensor) -> Tensor:
        return sparse_kernel(*values[:position], value, *values[position + 1 :], ridge=0.1, k=4).mean

    one_by_one = torch.autograd.functional.jacobian(mean, values[position])
    assert one_by_one.abs().max() > 1e-3
    together = torch.autograd.functional.jacobian(mean, values[position], vectorize=True)
    torch.testing.assert_close(together, one_by_one, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("localisation", ["hard", "continuous"])
def test_parts_of_gradients_are_added_in_order(monkeypatch: pytest.MonkeyPatch, localisation: Localisation) -> None:
    """Threads that finish in another order would else change the last digits."""
    values = problem(points=60, queries=64, targets=3)
    monkeypatch.setattr(compiling, "WAKING_SECONDS", 1e-12)
    threads = torch.get_num_threads()
    torch.set_num_threads(4)

    def over_rows(work: Callable[[int, int], None], rows: int, seconds_per_row: float) -> None:
        parts = [(rows * i // 4, rows * (i + 1) // 4) for i in range(4)]
        for part in parts[:: next(order)]:
            work(*part)

    order = iter([1, -1])
    try:
        whole = answers(values, "matern32", localisation, 8)
        monkeypatch.setattr(differentiable, "over_rows", over_rows)
        both = [answers(values, "matern32", localisation, 8) for _ in range(2)]
    finally:
        torch.set_num_threads(threads)
    for name in NAMES:
        for split in both:
            assert torch.equal(split[name], whole[name])


def test_a_constant_loss_in_one_answer_leaves_the_other_alone() -> None:
    queries, features, targets, _, ridge = problem()
    features.requires_grad_()
    prediction = sparse_kernel(queries, features, targets, ridge=ridge, k=4)
    (gradient,) = torch.autograd.grad(prediction.mean.sum(), features)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


def test_what_it_cannot_carry_goes_through_plain_torch() -> None:
    queries, features, targets, _, ridge = problem()
    kernel = Learned()
    prediction = sparse_kernel(queries, features, targets.requires_grad_(), kernel=kernel, ridge=ridge, k=4)
    prediction.mean.sum().backward()
    assert kernel.power.grad is not None
    assert kernel.power.grad != 0
    assert carries_gradients(Gaussian(), features)
    assert not carries_gradients(kernel, features)


LOADING = "ignore:.torch.jit.script. is deprecated:DeprecationWarning"
"""What torch itself warns of when it makes the first dual tensor."""


def as_function(values: list[Tensor]) -> Prediction:
    queries, features, targets, lengthscale, ridge = values
    return sparse_kernel(queries, features, targets, lengthscale=lengthscale, ridge=ridge, k=4)


def as_module(values: list[Tensor]) -> Prediction:
    """A module that holds all of them, by the way of few queries where that is open."""
    queries, features, targets, lengthscale, ridge = values
    module = SparseKernel(*problem()[1:3], k=4, lengthscale=1.0, ridge=0.1)
    module.predict(problem()[0])
    module.features, module.targets = features, targets
    module.fixed_lengthscale, module.fixed_ridge = lengthscale, ridge
    return module.predict(queries)


def as_head(values: list[Tensor]) -> Prediction:
    """The weights of a head, in place of a mean, and the variance."""
    queries, features, _, lengthscale, ridge = (value.unsqueeze(0) for value in values)
    index = ExactIndex(features, 0.5 * features.square().sum(-1))
    local = ridge_weights(queries, features, index, Gaussian(), lengthscale[0], ridge[0], 4)
    return Prediction(local.weights, local.variance)


@pytest.mark.filterwarnings(LOADING)
@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("position", range(5))
@pytest.mark.parametrize("call", [as_function, as_module, as_head])
def test_tangents_go_forwards(call: Callable[[list[Tensor]], Prediction], position: int, rows: int) -> None:
    """None of the sets asks for a gradient: it is the tangent alone that says so."""
    values = problem()
    values[0] = values[0][1 : 1 + rows]
    direction = torch.randn_like(values[position])
    if position == 1:
        direction[:2] = 0.0  # points that coincide have no slope between them

    def moved(step: float) -> Prediction:
        return call([value + step * direction if i == position else value for i, value in enumerate(values)])

    expected = [(up - down) / 2e-6 for up, down in zip(moved(1e-6), moved(-1e-6), strict=True)]
    with forward_ad.dual_level():
        duals = list(values)
        duals[position] = forward_ad.make_dual(values[position], direction)
        slopes = [forward_ad.unpack_dual(part).tangent for part in call(duals)]
    for slope, difference in zip(slopes, expected, strict=True):
        given = torch.zeros_like(difference) if slope is None else slope
        torch.testing.assert_close(given, difference, rtol=1e-5, atol=1e-7)
    reached = position != 2 or call is not as_head
    assert (slopes[0] is not None and bool(slopes[0].any())) == reached


@pytest.mark.filterwarnings(LOADING)
@pytest.mark.parametrize("position", range(5))
def test_transformed_functions_have_tangents(position: int) -> None:
    values = problem()
    values[0] = values[0][1:]
    direction = torch.randn_like(values[position])
    if position == 1:
        direction[:2] = 0.0

    def mean(value: Tensor) -> Tensor:
        return as_function([value if i == position else other for i, other in enumerate(values)]).mean

    expected = (mean(values[position] + 1e-6 * direction) - mean(values[position] - 1e-6 * direction)) / 2e-6
    _, slope = torch.func.jvp(mean, (values[position],), (direction,))
    torch.testing.assert_close(slope, expected, rtol=1e-5, atol=1e-7)


def test_a_constant_kernel_has_no_gradient_in_places() -> None:
    class Constant(Kernel):
        def __call__(self, r: Tensor) -> Tensor:
            return torch.ones_like(r)

    results = answers(problem(), Constant(), "hard", 8)
    assert not results["queries"].any()
    assert not results["features"].any()
    assert results["targets"].any()
