"""Gradients by compiled loops against those of plain torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from skrl import KERNELS, compiling, sparse_kernel
from skrl.kernels.algebra import Kernel
from skrl.kernels.formulas import Gaussian, Laplace, Matern52
from skrl.search.neighbors import Localisation
from skrl.solve import differentiable
from skrl.solve.differentiable import carries_gradients

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


def test_a_constant_loss_in_one_answer_leaves_the_other_alone() -> None:
    queries, features, targets, _, ridge = problem()
    features.requires_grad_()
    prediction = sparse_kernel(queries, features, targets, ridge=ridge, k=4)
    (gradient,) = torch.autograd.grad(prediction.mean.sum(), features)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_what_it_cannot_carry_goes_through_plain_torch() -> None:
    queries, features, targets, lengthscale, ridge = problem()
    kernel = Learned()
    prediction = sparse_kernel(queries, features, targets.requires_grad_(), kernel=kernel, ridge=ridge, k=4)
    prediction.mean.sum().backward()
    assert kernel.power.grad is not None
    assert kernel.power.grad != 0
    assert carries_gradients(Gaussian(), features)
    assert not carries_gradients(kernel, features)
    tangent = torch.ones_like(queries)
    step = 1e-6 * tangent
    plain = [
        sparse_kernel(place, features, targets.detach(), lengthscale=lengthscale, ridge=ridge, k=4).mean
        for place in (queries + step, queries - step)
    ]
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(queries, tangent)
        mean = sparse_kernel(dual, features, targets, lengthscale=lengthscale, ridge=ridge, k=4).mean
        slope = forward_ad.unpack_dual(mean).tangent
    assert slope is not None
    torch.testing.assert_close(slope[1:].detach(), (plain[0] - plain[1])[1:] / 2e-6, rtol=1e-5, atol=1e-7)


def test_a_constant_kernel_has_no_gradient_in_places() -> None:
    class Constant(Kernel):
        def __call__(self, r: Tensor) -> Tensor:
            return torch.ones_like(r)

    results = answers(problem(), Constant(), "hard", 8)
    assert not results["queries"].any()
    assert not results["features"].any()
    assert results["targets"].any()
