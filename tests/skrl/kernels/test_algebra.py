"""Sums, products, scaled and stretched kernels by hand. Their laws are in ``tests/contracts/test_kernels.py``."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from skrl import (
    AveragingHead,
    Novelty,
    ResidualHead,
    SparseKernel,
    SparseKernelRegressor,
    SupportMemory,
    leave_one_out_loss,
    make_kernel,
    p_greedy,
    sparse_kernel,
    tune,
)
from skrl.kernels import Gaussian, Laplace, Matern52, Polynomial, WendlandC2
from skrl.kernels.algebra import Kernel, Product, Scaled, Stretched, Sum

R = torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64)


def test_operations_by_hand() -> None:
    gaussian, laplace = torch.exp(-0.5 * R**2), torch.exp(-R)
    torch.testing.assert_close((Gaussian() + Laplace())(R), gaussian + laplace)
    torch.testing.assert_close((Gaussian() * Laplace())(R), gaussian * laplace)
    torch.testing.assert_close((0.25 * Laplace())(R), 0.25 * laplace)
    torch.testing.assert_close((3 * Laplace())(R), 3.0 * laplace)
    torch.testing.assert_close(Laplace().stretched(4.0)(R), torch.exp(-R / 4.0))
    torch.testing.assert_close((2.0 * Gaussian() * Laplace() + Laplace())(R), 2.0 * gaussian * laplace + laplace)


def test_operators_make_the_classes() -> None:
    assert Gaussian() + Laplace() == Sum(Gaussian(), Laplace())
    assert Gaussian() * Laplace() == Product(Gaussian(), Laplace())
    assert Gaussian() * 0.5 == 0.5 * Gaussian() == Scaled(Gaussian(), 0.5)
    assert Gaussian().stretched(2.0) == Stretched(Gaussian(), 2.0)


def test_brackets_do_not_matter_among_equal_operations() -> None:
    a, b, c = Gaussian(), Laplace(), Matern52()
    assert (a + b) + c == a + (b + c) == Sum(a, b, c)
    assert (a * b) * c == a * (b * c) == Product(a, b, c)
    assert Sum(a, b, c).parts == (a, b, c)
    assert (a + b) * c != a + b * c
    assert Sum(a, b) != Product(a, b)
    assert (a + b) * c == Product(Sum(a, b), c)


@pytest.mark.parametrize(
    ("kernel", "variance"),
    [
        (Gaussian() + Laplace(), 2.0),
        (0.3 * Gaussian() + 0.5 * Laplace(), 0.8),
        ((2.0 * Gaussian()) * (3.0 * Laplace()), 6.0),
        ((2.0 * Gaussian()).stretched(7.0), 2.0),
        (0.5 * (Gaussian() + Polynomial()), 1.0),
        (4 * WendlandC2(5), 4.0),
    ],
    ids=repr,
)
def test_prior_variance_by_hand(kernel: Kernel, variance: float) -> None:
    assert kernel.prior_variance == pytest.approx(variance, rel=1e-15)


def test_radial_when_all_parts_are() -> None:
    assert (Gaussian() + Laplace()).is_radial
    assert (2.0 * (Gaussian() * Laplace())).stretched(3.0).is_radial
    for kernel in (
        Gaussian() + Polynomial(),
        Polynomial() * Gaussian(),
        2.0 * Polynomial(),
        Polynomial().stretched(2.0),
    ):
        assert not kernel.is_radial
        with pytest.raises(TypeError, match=r"Polynomial\(degree=2\) is not a function of one distance"):
            kernel(R)


@pytest.mark.parametrize("weight", [0.0, -1.0, math.inf, math.nan])
def test_weights_are_positive(weight: float) -> None:
    with pytest.raises(ValueError, match=f"weight is {weight}, but must be positive and finite; leave out a term"):
        Gaussian() * weight


@pytest.mark.parametrize("factor", [0.0, -1.0, math.inf, math.nan])
def test_stretching_factors_are_positive(factor: float) -> None:
    with pytest.raises(ValueError, match=f"factor is {factor}, but must be positive and finite; 1 keeps"):
        Gaussian().stretched(factor)


@pytest.mark.parametrize("other", ["a kernel", None, [1.0]])
def test_only_kernels_are_added_and_only_numbers_scale(other: object) -> None:
    with pytest.raises(TypeError, match="unsupported operand"):
        Gaussian() + other  # type: ignore[operator]
    with pytest.raises(TypeError, match=r"unsupported operand|multiply sequence"):
        Gaussian() * other  # type: ignore[operator]


@pytest.mark.usefixtures("without_shape_checks")
def test_one_kernel_is_no_composite() -> None:
    with pytest.raises(TypeError, match="second"):
        Sum(Gaussian())  # type: ignore[call-arg]


def test_representation_is_the_expression() -> None:
    kernel = 0.3 * Gaussian() + 0.7 * Laplace().stretched(5.0)
    assert repr(kernel) == "((0.3 * Gaussian()) + (0.7 * Laplace().stretched(5.0)))"
    assert repr(Matern52() * WendlandC2(dim=5)) == "(Matern52() * WendlandC2(dim=5))"


def test_copies_are_equal() -> None:
    kernel = 0.3 * Gaussian() + 0.7 * Laplace().stretched(5.0)
    assert copy.deepcopy(kernel) == kernel
    assert len({kernel, copy.deepcopy(kernel), 0.3 * Gaussian() + 0.7 * Laplace()}) == 2


class LearnedRates(nn.Module, Kernel):
    """A mean of exponentials whose rates are learned."""

    def __init__(self) -> None:
        super().__init__()
        self.rates = nn.Parameter(torch.tensor([0.5, 1.0, 2.0]))

    def __call__(self, r: torch.Tensor) -> torch.Tensor:
        return torch.exp(-r.unsqueeze(-1) * self.rates).mean(-1)


class HeldRates(Kernel):
    """The same with rates in a field of a plain object."""

    def __init__(self, rates: object) -> None:
        self.rates = rates

    def __call__(self, r: torch.Tensor) -> torch.Tensor:
        return torch.exp(-r.unsqueeze(-1) * torch.as_tensor(self.rates)).mean(-1)


def test_a_kernel_may_be_a_module() -> None:
    """Its tensors belong to whatever module takes it."""
    kernel = LearnedRates()
    module = SparseKernel(torch.rand(20, 2), torch.rand(20, 1), kernel=kernel, lengthscale=0.5, ridge=0.1, k=5)
    assert list(module.parameters()) == [kernel.rates]
    module.eval().to(torch.float64)
    assert not kernel.training
    module(torch.rand(3, 2, dtype=torch.float64)).sum().backward()
    assert kernel.rates.grad is not None
    assert kernel.rates.grad.dtype is torch.float64
    assert kernel.rates.grad.abs().min() > 0.0
    assert list(ResidualHead(2, 10, 3, kernel=kernel).parameters()) == [kernel.rates]


@pytest.mark.parametrize(
    "make",
    [
        LearnedRates,
        lambda: HeldRates(torch.ones(3)),
        lambda: HeldRates([torch.ones(3)]),
        lambda: HeldRates(np.ones(3)),
        lambda: HeldRates(torch.ones(3)).stretched(2.0) + Laplace(),
    ],
)
def test_a_kernel_with_tensors_equals_itself_alone(make: Callable[[], Kernel]) -> None:
    kernel = make()
    assert kernel == kernel
    assert kernel != make()
    assert kernel != copy.deepcopy(kernel)
    assert len({kernel, make(), kernel}) == 2
    assert 0.5 * kernel == 0.5 * kernel
    assert hash(kernel + Gaussian()) == hash(kernel + Gaussian())


class Doubled(Kernel):
    """Twice as much at zero as it says."""

    def __call__(self, r: torch.Tensor) -> torch.Tensor:
        return 2.0 * torch.exp(-r)


def test_a_kernel_of_ones_own_says_its_value_at_zero() -> None:
    """With another prior variance on the diagonal systems fail to factorise, and every answer would be the prior."""
    X, y = torch.rand(30, 2), torch.rand(30, 1)
    for kernel in (Doubled(), 0.5 * Doubled(), Doubled() + Laplace(), Doubled().stretched(2.0)):
        with pytest.raises(
            ValueError, match=r"is [123] at distance zero, but its prior_variance is (0\.5|[12]); divide"
        ):
            sparse_kernel(X, X, y, kernel=kernel)
    nowhere = type("Sinc", (Kernel,), {"__call__": lambda self, r: r.sin() / r})()
    with pytest.raises(ValueError, match=r"Sinc\(\) is nan at distance zero, but must be positive and finite there"):
        sparse_kernel(X, X, y, kernel=nowhere)
    said = type("Said", (Doubled,), {"prior_variance": 2.0})()
    expected = sparse_kernel(X, X, y, kernel=2.0 * Laplace())
    torch.testing.assert_close(sparse_kernel(X, X, y, kernel=said).mean, expected.mean)


@pytest.mark.parametrize(
    "take",
    [
        lambda kernel: ResidualHead(2, 10, 3, kernel=kernel),
        lambda kernel: AveragingHead(2, 10, 3, kernel=kernel),
        lambda kernel: SparseKernel(kernel=kernel),
        lambda kernel: SparseKernel(torch.rand(9, 2), kernel=kernel),
        lambda kernel: tune(torch.rand(9, 2), torch.rand(9, 1), kernel),
        lambda kernel: leave_one_out_loss(torch.rand(9, 2), torch.rand(9, 1), kernel, 1.0, 0.1, 4),
        lambda kernel: p_greedy(torch.rand(9, 2), 4, kernel),
        lambda kernel: Novelty(SupportMemory(1, 5, 2), kernel=kernel),
        lambda kernel: SparseKernelRegressor(kernel=kernel).fit(torch.rand(9, 2), torch.rand(9)),
    ],
)
def test_whoever_takes_a_kernel_asks_for_its_value_at_zero(take: Callable[[Kernel], object]) -> None:
    with pytest.raises(ValueError, match=r"Doubled\(\) is 2 at distance zero, but its prior_variance is 1; divide"):
        take(Doubled())
    take(type("Said", (Doubled,), {"prior_variance": 2.0})())


def test_a_kernel_that_cannot_be_asked_on_a_cpu_is_taken_at_its_word() -> None:
    class Elsewhere(Kernel):
        def __call__(self, r: torch.Tensor) -> torch.Tensor:
            return r + torch.zeros(1, device="meta")

    assert isinstance(make_kernel(Elsewhere()), Elsewhere)


def test_kernels_of_the_package_are_told_from_others() -> None:
    assert (0.5 * (Gaussian() + Laplace().stretched(2.0))).is_built_in
    assert not (0.5 * (Gaussian() + Doubled().stretched(2.0))).is_built_in
