"""The laws of every kernel. A new kernel in ``KERNELS`` inherits them; it only names its oracle below."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from sklearn.gaussian_process import kernels as sklearn_kernels

from skrl.distances import cross_distances
from skrl.kernels import KERNELS, Kernel

ORACLES: dict[str, sklearn_kernels.Kernel | None] = {
    "gaussian": sklearn_kernels.RBF(),
    "laplace": sklearn_kernels.Matern(nu=0.5),
    "matern32": sklearn_kernels.Matern(nu=1.5),
    "matern52": sklearn_kernels.Matern(nu=2.5),
}
"""scikit-learn's kernel of the same formula, None where it has none."""


@pytest.fixture(params=KERNELS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def kernel(name: str) -> Kernel:
    return KERNELS[name]()


def test_normalised(kernel: Kernel) -> None:
    assert kernel(torch.zeros(3)).tolist() == [1.0, 1.0, 1.0]


def test_strictly_decreasing_and_positive(kernel: Kernel) -> None:
    values = kernel(torch.linspace(0.0, 10.0, 1001, dtype=torch.float64))
    assert (values.diff() < 0).all()
    assert (values > 0).all()


def test_vanishes_far_away_without_overflow(kernel: Kernel) -> None:
    for dtype in (torch.float32, torch.float64):
        values = kernel(torch.tensor([1e3, 1e6, 1e12], dtype=dtype))
        assert values.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_gram_matrix_is_symmetric_and_positive_semidefinite(kernel: Kernel, dim: int) -> None:
    points = torch.randn(40, dim, dtype=torch.float64)
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    for lengthscale in (0.1, 1.0, 10.0):
        gram = kernel(distances / lengthscale)
        assert torch.equal(gram, gram.mT)
        assert torch.linalg.eigvalsh(gram).min() >= -1e-10


def test_gradient_at_distance_zero_is_finite(kernel: Kernel) -> None:
    query = torch.ones(1, 3, requires_grad=True)
    kernel(cross_distances(query, torch.ones(1, 1, 3))).sum().backward()
    assert query.grad is not None
    assert query.grad.tolist() == [[0.0, 0.0, 0.0]]


def test_gradient_elsewhere(kernel: Kernel) -> None:
    r = torch.tensor([1e-3, 0.1, 1.0, 3.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(kernel, (r,))
    kernel(r).sum().backward()
    assert r.grad is not None
    assert (r.grad < 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_is_preserved(kernel: Kernel, dtype: torch.dtype) -> None:
    r = torch.linspace(0.0, 4.0, 9)
    values = kernel(r.to(dtype))
    assert values.dtype == dtype
    torch.testing.assert_close(values.float(), kernel(r), rtol=0.05, atol=1e-3)


def test_batch_equals_loop(kernel: Kernel) -> None:
    r = torch.rand(2, 3, 4, dtype=torch.float64)
    loop = torch.stack([torch.stack([kernel(row) for row in block]) for block in r])
    torch.testing.assert_close(kernel(r), loop, rtol=1e-15, atol=0.0)
    assert kernel(r[0, 0, 0]).shape == ()
    assert kernel(r[:0]).shape == (0, 3, 4)


def test_equal_by_class_and_picklable(kernel: Kernel) -> None:
    copy = pickle.loads(pickle.dumps(kernel))
    r = torch.rand(5)
    assert copy == kernel
    assert hash(copy) == hash(kernel)
    assert torch.equal(copy(r), kernel(r))
    assert [type(kernel) is other for other in KERNELS.values()] == [kernel == other() for other in KERNELS.values()]
    assert kernel != "a kernel"


def test_formula_equals_scikit_learn(name: str, kernel: Kernel) -> None:
    assert name in ORACLES, f"name scikit-learn's counterpart of '{name}' in ORACLES, or None"
    oracle = ORACLES[name]
    if oracle is None:
        pytest.skip("scikit-learn has no such kernel")
    left, right = torch.randn(20, 3, dtype=torch.float64), torch.randn(30, 3, dtype=torch.float64)
    lengthscale = 0.7
    values = kernel(torch.cdist(left, right, compute_mode="donot_use_mm_for_euclid_dist") / lengthscale)
    scaled = oracle.clone_with_theta([math.log(lengthscale)])
    expected = torch.from_numpy(scaled(left.numpy(), right.numpy()))
    torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-14)
