"""Kernel formulas by hand, and the registry. The laws of every kernel are in ``tests/contracts``."""

from __future__ import annotations

import math

import pytest
import torch

from skrl.kernels import (
    KERNELS,
    Gaussian,
    InverseMultiquadric,
    Kernel,
    Laplace,
    Matern32,
    Matern52,
    Polynomial,
    Wendland,
    WendlandC2,
    WendlandC4,
    make_kernel,
)

WENDLANDS: list[Wendland] = [kind(dim) for kind in (WendlandC2, WendlandC4) for dim in (1, 2, 3, 5, 17, 512)]


@pytest.mark.parametrize(
    ("kernel", "at_half", "at_one", "at_two"),
    [
        (Gaussian(), 0.8824969025845955, 0.6065306597126334, 0.1353352832366127),
        (Laplace(), 0.6065306597126334, 0.3678794411714423, 0.1353352832366127),
        (Matern32(), 0.7848876539574506, 0.4833577245965077, 0.1397313501923147),
        (Matern52(), 0.8286491424181253, 0.5239941088318203, 0.1386602191385043),
        (InverseMultiquadric(), 0.8944271909999159, 0.7071067811865476, 0.4472135954999579),
    ],
)
def test_values_by_hand(kernel: Kernel, at_half: float, at_one: float, at_two: float) -> None:
    values = kernel(torch.tensor([0.0, 0.5, 1.0, 2.0], dtype=torch.float64))
    expected = torch.tensor([1.0, at_half, at_one, at_two], dtype=torch.float64)
    torch.testing.assert_close(values, expected, rtol=1e-14, atol=0.0)


@pytest.mark.parametrize(
    ("kernel", "squared_radius", "half_way"),
    [
        (WendlandC2(1), 12.0, 5.0 / 16.0),
        (WendlandC2(3), 20.0, 3.0 / 16.0),
        (WendlandC2(5), 30.0, 7.0 / 64.0),
        (WendlandC4(1), 14.0, 11.0 / 64.0),
        (WendlandC4(3), 56.0 / 3.0, 83.0 / 768.0),
        (WendlandC4(5), 24.0, 17.0 / 256.0),
    ],
)
def test_wendland_by_hand(kernel: Wendland, squared_radius: float, half_way: float) -> None:
    assert kernel.radius == pytest.approx(math.sqrt(squared_radius), rel=1e-15)
    value = kernel(torch.tensor(0.5 * kernel.radius, dtype=torch.float64)).item()
    assert value == pytest.approx(half_way, rel=1e-14)


@pytest.mark.parametrize("kernel", WENDLANDS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wendland_ends_at_its_radius(kernel: Wendland, dtype: torch.dtype) -> None:
    inside = torch.linspace(0.0, 0.99 if kernel.dim < 10 else 0.1, 50, dtype=dtype) * kernel.radius
    assert (kernel(inside) > 0).all()  # with a power of hundreds the tail underflows long before the radius
    outside = torch.tensor([kernel.radius * (1.0 + 1e-6), 2.0 * kernel.radius, 1e30], dtype=dtype, requires_grad=True)
    values = kernel(outside)
    values.sum().backward()
    assert values.tolist() == [0.0, 0.0, 0.0]
    assert outside.grad is not None
    assert outside.grad.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("kernel", [Gaussian(), InverseMultiquadric(), *WENDLANDS], ids=repr)
def test_curvature_at_zero(kernel: Kernel) -> None:
    """One lengthscale means the same width for all of them: κ''(0) = −1, κ'(0) = 0."""
    r = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(kernel(r), r, create_graph=True)
    (curvature,) = torch.autograd.grad(slope, r)
    assert slope.item() == pytest.approx(0.0, abs=1e-12)
    assert curvature.item() == pytest.approx(-1.0, rel=1e-12)
    step = 1e-3
    difference = 2.0 * (kernel(torch.tensor(step, dtype=torch.float64)).item() - 1.0) / step**2
    assert difference == pytest.approx(-1.0, abs=2e-3)


@pytest.mark.parametrize(
    ("kind", "limit"),
    [(WendlandC2, Matern32().stretched(math.sqrt(3.0))), (WendlandC4, Matern52().stretched(math.sqrt(5.0 / 3.0)))],
)
def test_wendland_approaches_matern_in_many_dimensions(kind: type[Wendland], limit: Kernel) -> None:
    """The same smoothness and curvature, no compact support: (1 − r/n)^n tends to exp(−r), at the rate 1/n."""
    r = torch.linspace(0.0, 10.0, 101, dtype=torch.float64)
    gaps = [(kind(dim)(r) - limit(r)).abs().max().item() for dim in (8, 80, 800, 8000)]
    assert gaps[0] > 4.0 * gaps[1] > 32.0 * gaps[2] > 256.0 * gaps[3]
    assert gaps[3] < 2e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_inverse_multiquadric_has_the_tail_of_one_over_r(dtype: torch.dtype) -> None:
    """Up to where r² is far beyond the largest number."""
    r = torch.logspace(2.0, math.log10(torch.finfo(dtype).max) - 0.5, 20, dtype=torch.float64).to(dtype)
    tail = InverseMultiquadric()(r)
    kept = tail >= torch.finfo(dtype).tiny
    assert kept.sum() >= 15
    torch.testing.assert_close((r * tail)[kept].double(), torch.ones(int(kept.sum())).double(), rtol=2e-3, atol=0.0)


def test_matern_kernels_vanish_at_the_largest_numbers() -> None:
    """√3 r and √5 r overflow there, and infinity times zero is no number."""
    for dtype in (torch.float16, torch.float32, torch.float64):
        for kernel in (Matern32(), Matern52()):
            assert kernel(torch.tensor(torch.finfo(dtype).max, dtype=dtype)).item() == 0.0


def test_polynomial_by_hand() -> None:
    """Query 0, points 1 and −2 on a line: (1 + x x')²."""
    cross = torch.tensor([1.0, 2.0])
    pairs = torch.tensor([[0.0, 3.0], [3.0, 0.0]])
    values, gram = Polynomial().blocks(cross, pairs)
    assert values.tolist() == [1.0, 1.0]
    assert gram.tolist() == [[4.0, 1.0], [1.0, 25.0]]
    assert Polynomial(3).blocks(cross, pairs)[1].tolist() == [[8.0, -1.0], [-1.0, 125.0]]


@pytest.mark.parametrize(("degree", "rank"), [(1, 3), (2, 6), (3, 10)])
def test_polynomial_has_the_rank_of_its_monomials(degree: int, rank: int) -> None:
    """C(d + degree, degree) of them in d = 2 dimensions."""
    points = torch.randn(20, 2, dtype=torch.float64)
    pairs = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    gram = Polynomial(degree).blocks(points.norm(dim=-1), pairs)[1]
    assert torch.linalg.matrix_rank(gram, rtol=1e-12).item() == rank


@pytest.mark.parametrize("name", KERNELS)
def test_make_kernel_knows_every_name(name: str) -> None:
    assert type(make_kernel(name)) is KERNELS[name]
    assert make_kernel(name, dim=3) == make_kernel(name) == KERNELS[name]()


def test_make_kernel_gives_wendland_kernels_the_dimension() -> None:
    assert make_kernel("wendland_c2", dim=7) == WendlandC2(dim=7)
    assert make_kernel("wendland_c4", dim=7) == WendlandC4(dim=7)
    assert make_kernel("polynomial", dim=7) == Polynomial()


def test_make_kernel_passes_a_kernel_through() -> None:
    kernel = 0.5 * Laplace()
    assert make_kernel(kernel, dim=9) is kernel


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("matern3", "matern32"), ("Gausian", "gaussian"), ("laplacian", "laplace"), ("wendland_4", "wendland_c4")],
)
def test_unknown_name_suggests_the_nearest(wrong: str, near: str) -> None:
    with pytest.raises(ValueError, match=f"unknown kernel '{wrong}'; did you mean '{near}'"):
        make_kernel(wrong)


def test_an_empty_name_is_an_error_too() -> None:
    with pytest.raises(ValueError, match="unknown kernel ''"):
        make_kernel("")


def test_kernel_itself_is_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Kernel()  # type: ignore[abstract]


@pytest.mark.parametrize("kind", [WendlandC2, WendlandC4])
def test_points_have_a_dimension(kind: type[Wendland]) -> None:
    with pytest.raises(ValueError, match="dim is 0, but must be at least 1; give the dimension of the points"):
        kind(dim=0)
    with pytest.raises(ValueError, match="dim is -2"):
        kind.for_dimension(-2)


def test_polynomial_has_a_degree() -> None:
    with pytest.raises(ValueError, match="degree is 0, but must be at least 1; 1 is a local linear regression"):
        Polynomial(degree=0)


def test_representation_is_the_constructor_call() -> None:
    assert repr(Matern32()) == "Matern32()"
    assert repr(WendlandC4(8)) == "WendlandC4(dim=8)"
    assert repr(Polynomial(3)) == "Polynomial(degree=3)"
