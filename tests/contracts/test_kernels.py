"""The laws of every kernel. A new kernel in ``KERNELS`` inherits them; it only names its oracle below."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.gaussian_process.kernels import RBF, Matern, RationalQuadratic
from sklearn.metrics.pairwise import euclidean_distances, polynomial_kernel
from torch import Tensor

import skrl.kernels
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
    make_kernel,
)
from skrl.kernels.distances import block_distances, cross_distances

Array = np.ndarray
Oracle = Callable[[Array, Array], Array]
"""κ(x, x') of points relative to the query and in lengthscales, [n, d] and [m, d] give [n, m]."""

WENDLAND: dict[tuple[int, int], tuple[float, Callable[[Array], Array]]] = {
    # The polynomials of Wendland's table 9.1, and their second derivative at zero by hand, which scales the argument.
    (1, 1): (-12.0, lambda t: (1 - t) ** 3 * (3 * t + 1)),
    (1, 2): (-20.0, lambda t: (1 - t) ** 4 * (4 * t + 1)),
    (1, 5): (-30.0, lambda t: (1 - t) ** 5 * (5 * t + 1)),
    (2, 1): (-14.0, lambda t: (1 - t) ** 5 * (8 * t**2 + 5 * t + 1)),
    (2, 2): (-56.0 / 3.0, lambda t: (1 - t) ** 6 * (35 * t**2 + 18 * t + 3) / 3),
    (2, 5): (-24.0, lambda t: (1 - t) ** 7 * (16 * t**2 + 7 * t + 1)),
}
"""Curvature and formula by smoothness and dimension; dimension 2 shares the formula of dimension 3."""


def wendland(left: Array, right: Array, smoothness: int) -> Array:
    curvature, formula = WENDLAND[smoothness, left.shape[1]]
    return formula(np.minimum(euclidean_distances(left, right) / math.sqrt(-curvature), 1.0))


NAMED: dict[str, Oracle] = {
    "gaussian": RBF(),
    "laplace": Matern(nu=0.5),
    "matern32": Matern(nu=1.5),
    "matern52": Matern(nu=2.5),
    "inverse_multiquadric": RationalQuadratic(alpha=0.5),
    "wendland_c2": partial(wendland, smoothness=1),
    "wendland_c4": partial(wendland, smoothness=2),
    "polynomial": partial(polynomial_kernel, degree=2, gamma=1.0, coef0=1.0),
}
"""The same formula by scikit-learn, or by hand where it has none."""

COMPOSITES: dict[str, tuple[Callable[[int], Kernel], Oracle]] = {
    "sum": (lambda dim: Gaussian() + Matern32(), RBF() + Matern(nu=1.5)),
    "weighted": (
        lambda dim: 0.3 * Gaussian() + 0.7 * Laplace().stretched(5.0),
        0.3 * RBF() + 0.7 * Matern(length_scale=5.0, nu=0.5),
    ),
    "product": (
        lambda dim: Matern52() * WendlandC2(dim),
        lambda x, y: Matern(nu=2.5)(x, y) * wendland(x, y, smoothness=1),
    ),
    "nested": (
        lambda dim: (2.5 * (InverseMultiquadric() + Laplace()) * Gaussian().stretched(3.0)).stretched(0.5),
        2.5 * (RationalQuadratic(length_scale=0.5, alpha=0.5) + Matern(length_scale=0.5, nu=0.5)) * RBF(1.5),
    ),
    "with a polynomial": (
        lambda dim: 0.5 * Gaussian() + Polynomial(),
        lambda x, y: 0.5 * RBF()(x, y) + polynomial_kernel(x, y, degree=2, gamma=1.0, coef0=1.0),
    ),
    "cubic": (
        lambda dim: Matern32() * Polynomial(3).stretched(2.0),
        lambda x, y: Matern(nu=1.5)(x, y) * polynomial_kernel(x, y, degree=3, gamma=0.25, coef0=1.0),
    ),
}
"""Kernels of kernels for points of some dimension, and their oracles."""

MAKERS: dict[str, Callable[[int], Kernel]] = {name: partial(make_kernel, name) for name in KERNELS}
MAKERS |= {name: maker for name, (maker, _) in COMPOSITES.items()}
ORACLES = NAMED | {name: oracle for name, (_, oracle) in COMPOSITES.items()}
RADIAL = [name for name, maker in MAKERS.items() if maker(3).is_radial]


@pytest.fixture(params=MAKERS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def kernel(name: str) -> Kernel:
    return MAKERS[name](3)


@pytest.fixture(params=RADIAL)
def radial(request: pytest.FixtureRequest) -> Kernel:
    return MAKERS[request.param](3)


def local_blocks(kernel: Kernel, query: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """κ_z and K of one query [d] and its points [k, d], in lengthscales."""
    return kernel.blocks(cross_distances(query, points), block_distances(points))


def joint_matrix(kernel: Kernel, query: Tensor, points: Tensor) -> Tensor:
    """The kernel among the query and its points, [1 + k, 1 + k], from exactly symmetric distances."""
    joint = torch.cat([query.unsqueeze(0), points])
    distances = torch.cdist(joint, joint, compute_mode="donot_use_mm_for_euclid_dist")
    return kernel.blocks(distances[0], distances)[1]


def test_prior_variance_is_the_value_at_the_query(name: str, kernel: Kernel) -> None:
    cross, gram = kernel.blocks(torch.zeros(1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64))
    assert cross.item() == gram.item() == pytest.approx(kernel.prior_variance, rel=1e-15)
    assert isinstance(kernel.prior_variance, float)
    if name in KERNELS:
        assert kernel.prior_variance == 1.0
    if kernel.is_radial:
        assert kernel(torch.zeros(3)).tolist() == pytest.approx([kernel.prior_variance] * 3, rel=1e-6)


def test_blocks_are_the_values_of_radial_kernels(kernel: Kernel) -> None:
    query, points = torch.randn(3), torch.randn(7, 3)
    cross, gram = local_blocks(kernel, query, points)
    if kernel.is_radial:
        assert torch.equal(cross, kernel(cross_distances(query, points)))
        assert torch.equal(gram, kernel(block_distances(points)))
    else:
        with pytest.raises(TypeError, match=r"is not a function of one distance; use \.blocks"):
            kernel(torch.ones(2))


@pytest.mark.parametrize("dim", [1, 2, 5])
@pytest.mark.parametrize("lengthscale", [0.1, 1.0, 10.0])
def test_local_system_is_symmetric_and_positive_semidefinite(name: str, dim: int, lengthscale: float) -> None:
    query, points = torch.randn(dim, dtype=torch.float64), torch.randn(40, dim, dtype=torch.float64)
    gram = joint_matrix(MAKERS[name](dim), query / lengthscale, points / lengthscale)
    assert torch.equal(gram, gram.mT)
    values = torch.linalg.eigvalsh(gram)
    assert values.min() >= -1e-13 * values.max()


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_joint_matrix_holds_both_blocks(name: str, dim: int) -> None:
    """κ_z is the query's row of the matrix that the test above finds to be positive semidefinite."""
    kernel, query, points = MAKERS[name](dim), torch.randn(dim).double(), torch.randn(6, dim).double()
    cross, gram = local_blocks(kernel, query, points)
    joint = joint_matrix(kernel, query, points)
    torch.testing.assert_close(joint[0, 1:], cross, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(joint[1:, 1:], gram, rtol=1e-12, atol=1e-13)


def alternating_form(kernel: Kernel, dim: int, edge: float) -> float:
    """vᵀKv / 2^d on the corners of a cube, v = ±1 in turn: a corner has C(d, j) others at distance edge · √j."""
    values = kernel(edge * torch.arange(dim + 1, dtype=torch.float64).sqrt()).tolist()
    return math.fsum((-1) ** j * math.comb(dim, j) * value for j, value in enumerate(values))


@pytest.mark.parametrize("name", RADIAL)
def test_form_in_many_dimensions_is_not_negative(name: str) -> None:
    assert min(alternating_form(MAKERS[name](24), 24, 0.2 * step) for step in range(1, 25)) > -1e-8


@pytest.mark.parametrize("name", ["wendland_c2", "wendland_c4"])
@pytest.mark.parametrize("dim", [1, 3])
def test_form_is_negative_beyond_the_dimension_of_a_kernel(name: str, dim: int) -> None:
    """The law above can fail: a Wendland kernel of too few dimensions is indefinite."""
    assert min(alternating_form(MAKERS[name](dim), 24, 0.2 * step) for step in range(1, 25)) < -1e-3


def test_falls_and_is_never_negative(radial: Kernel) -> None:
    values = radial(torch.linspace(0.0, 10.0, 1001, dtype=torch.float64))
    assert (values >= 0).all()
    assert (values.diff()[values[1:] > 0] < 0).all()
    assert (values.diff() <= 0).all()
    assert values[100] > 0


@pytest.mark.parametrize(
    ("dtype", "far"),
    [(torch.float16, [1e3, 6e4]), (torch.float32, [1e3, 1e12, 1e38]), (torch.float64, [1e3, 1e12, 1e300])],
)
def test_vanishes_far_away_without_overflow(radial: Kernel, dtype: torch.dtype, far: list[float]) -> None:
    """At least like 5/r, in value and slope, where r² is beyond the largest number."""
    r = torch.tensor(far, dtype=dtype, requires_grad=True)
    values = radial(r)
    assert (values >= 0).all()
    assert (values <= 5.0 / r).all()
    if dtype is not torch.float16:  # there 2r, the slope of a square, is beyond the largest number
        values.sum().backward()
        assert r.grad is not None
        assert (r.grad.abs() <= 5.0 / r).all()


def test_gradient_at_distance_zero_vanishes(kernel: Kernel) -> None:
    query = torch.ones(3, requires_grad=True)
    points = torch.ones(2, 3, requires_grad=True)
    cross, gram = local_blocks(kernel, query, points)
    (cross.sum() + gram.sum() + 0.0 * query.sum()).backward()
    assert query.grad is not None
    assert points.grad is not None
    assert query.grad.tolist() == [0.0] * 3
    assert points.grad.tolist() == [[0.0] * 3] * 2


def test_gradient_of_blocks(kernel: Kernel) -> None:
    query = torch.randn(3, dtype=torch.float64, requires_grad=True)
    points = (2.0 * torch.randn(4, 3, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(partial(local_blocks, kernel), (query, points))


def test_gradient_of_radial_values(radial: Kernel) -> None:
    r = torch.tensor([1e-3, 0.1, 1.0, 3.0, 20.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(radial, (r,))
    radial(r).sum().backward()
    assert r.grad is not None
    assert (r.grad[:4] < 0).all()
    assert r.grad[4] <= 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_is_preserved(kernel: Kernel, dtype: torch.dtype) -> None:
    points = torch.linspace(0.0, 2.0, 9).unsqueeze(-1)
    cross, pairs = cross_distances(points[0], points), block_distances(points)
    for half, full in zip(kernel.blocks(cross.to(dtype), pairs.to(dtype)), kernel.blocks(cross, pairs), strict=True):
        assert half.dtype == dtype
        torch.testing.assert_close(half.float(), full, rtol=0.05, atol=2e-3)


def test_batch_equals_loop(kernel: Kernel) -> None:
    cross, points = torch.rand(2, 3, 4, dtype=torch.float64), torch.randn(2, 3, 4, 2, dtype=torch.float64)
    pairs = block_distances(points)
    values, gram = kernel.blocks(cross, pairs)
    for s in range(2):
        for b in range(3):
            alone, alone_gram = kernel.blocks(cross[s, b], pairs[s, b])
            torch.testing.assert_close(values[s, b], alone, rtol=1e-15, atol=0.0)
            torch.testing.assert_close(gram[s, b], alone_gram, rtol=1e-15, atol=0.0)
    assert [tuple(block.shape) for block in kernel.blocks(cross[:0], pairs[:0])] == [(0, 3, 4), (0, 3, 4, 4)]
    assert [tuple(block.shape) for block in kernel.blocks(cross[..., :0], pairs[..., :0, :0])] == [
        (2, 3, 0),
        (2, 3, 0, 0),
    ]


def test_radial_values_of_any_shape(radial: Kernel) -> None:
    r = torch.rand(2, 3, dtype=torch.float64)
    torch.testing.assert_close(radial(r), torch.stack([radial(row) for row in r]), rtol=1e-15, atol=0.0)
    assert radial(r[0, 0]).shape == ()
    assert radial(r[:0]).shape == (0, 3)


def test_equality_hash_and_pickle(name: str, kernel: Kernel) -> None:
    copy = pickle.loads(pickle.dumps(kernel))
    assert copy == kernel
    assert hash(copy) == hash(kernel)
    query, points = torch.randn(3), torch.randn(5, 3)
    for ours, theirs in zip(local_blocks(kernel, query, points), local_blocks(copy, query, points), strict=True):
        assert torch.equal(ours, theirs)
    assert [other for other, maker in MAKERS.items() if maker(3) == kernel] == [name]
    assert kernel != "a kernel"


def test_representation_makes_the_kernel_again(name: str, kernel: Kernel) -> None:
    assert eval(repr(kernel), vars(skrl.kernels)) == kernel
    third = (kernel * (1.0 / 3.0)).stretched(2.0 / 7.0) + kernel
    assert eval(repr(third), vars(skrl.kernels)) == third


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_formula_equals_the_oracle(name: str, dim: int) -> None:
    assert name in ORACLES, f"name scikit-learn's counterpart of '{name}' in NAMED, or write its formula there"
    lengthscale = 0.7
    query, points = 3.0 + torch.randn(dim, dtype=torch.float64), 3.0 + torch.randn(30, dim, dtype=torch.float64)
    cross, gram = local_blocks(MAKERS[name](dim), query / lengthscale, points / lengthscale)
    relative = ((points - query) / lengthscale).numpy()
    expected = torch.from_numpy(ORACLES[name](relative, relative))
    torch.testing.assert_close(gram, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(cross.numpy(), ORACLES[name](np.zeros((1, dim)), relative)[0], rtol=1e-12, atol=1e-12)


def test_wendland_kernels_are_all_here() -> None:
    """Each of them needs its row in the table of formulas."""
    smoothness = {kind.smoothness for kind in KERNELS.values() if issubclass(kind, Wendland)}
    assert smoothness == {key[0] for key in WENDLAND}
