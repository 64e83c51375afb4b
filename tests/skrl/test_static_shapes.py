"""Queries on an accelerator never wait for it: shapes are static, no value is looked at, nothing comes from the host.

The meta device stands for one. It holds no values, so whatever depends on a value raises there.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from skrl import KERNELS, AveragingHead, Gaussian, NetworkFreeHead, ResidualHead, SparseKernel, sparse_kernel
from skrl.kernels import Laplace, Polynomial, Sum, make_kernel
from skrl.search.exact import ExactSearch
from skrl.search.neighbors import Localisation
from skrl.solve.cholesky import JITTERS
from skrl.solve.local_solve import factorise

ALL_KERNELS = {
    **{name: make_kernel(name, 3) for name in KERNELS},
    "sum": Sum(0.5 * Gaussian(), Laplace().stretched(2.0)),
}
DIM = 3

both_localisations = pytest.mark.parametrize("localisation", ["hard", "continuous"])


class StaysOnDevice(TorchDispatchMode):
    """Counts operations, and fails the test at the first one that touches another device than meta."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = function(*args, **(kwargs or {}))
        self.operations[function.overloadpacket.__name__] += 1
        tensors = [leaf for leaf in tree_leaves((args, kwargs, results)) if isinstance(leaf, Tensor)]
        strangers = {str(tensor.device) for tensor in tensors} - {"meta"}
        assert not strangers, f"{function} touches {strangers}"
        return results


def on_device(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


@both_localisations
@pytest.mark.parametrize("kernel", ALL_KERNELS)
def test_function_neither_waits_nor_copies(kernel: str, localisation: Localisation) -> None:
    lengthscale, ridge = on_device(DIM), on_device()
    with StaysOnDevice() as watched:
        mean, variance = sparse_kernel(
            on_device(7, DIM),
            on_device(100, DIM),
            on_device(100, 2),
            kernel=ALL_KERNELS[kernel],
            lengthscale=lengthscale,
            ridge=ridge,
            k=4,
            localisation=localisation,
        )
    assert mean.shape == (7, 2)
    assert variance.shape == (7,)
    assert watched.operations["linalg_cholesky_ex"] == 1


@both_localisations
def test_gradients_neither_wait_nor_copy(localisation: Localisation) -> None:
    tensors = [on_device(7, DIM), on_device(100, DIM), on_device(100, 2), on_device(), on_device()]
    queries, features, targets, lengthscale, ridge = (tensor.requires_grad_() for tensor in tensors)
    with StaysOnDevice() as watched:
        mean, variance = sparse_kernel(
            queries, features, targets, lengthscale=lengthscale, ridge=ridge, k=4, localisation=localisation
        )
        (mean.sum() + variance.sum()).backward()
    assert [tensor.grad.shape for tensor in tensors if tensor.grad is not None] == [tensor.shape for tensor in tensors]
    assert watched.operations["linalg_cholesky_ex"] == 2


@both_localisations
@pytest.mark.parametrize("learn_kernel", [False, True])
@pytest.mark.parametrize("count", [1, 5, 2000], ids=["one support", "fewer than k", "two-stage selection"])
def test_module_neither_waits_nor_copies(count: int, learn_kernel: bool, localisation: Localisation) -> None:
    module = SparseKernel(
        torch.randn(count, DIM),
        torch.randn(count, 2),
        k=6,
        lengthscale=1.0,
        ridge=0.1,
        localisation=localisation,
        learn_kernel=learn_kernel,
        prior_mean=nn.Linear(DIM, 2),
    ).to("meta")
    with StaysOnDevice():
        mean, variance = module.predict(on_device(7, DIM))
        errors = module.leave_one_out(on_device(7, DIM))
    assert (mean.shape, variance.shape) == ((7, 2), (7,))
    assert errors.shape == (7, min(6, count), 2)


@pytest.mark.parametrize("head", [ResidualHead, AveragingHead, NetworkFreeHead])
def test_heads_neither_wait_nor_copy(head: type[ResidualHead]) -> None:
    module = head(2, 1000, DIM, k=6).to("meta")
    with StaysOnDevice():
        module.memory.write(on_device(2, 1000, DIM), torch.empty(2, dtype=torch.long, device="meta"))
        module.write_targets(on_device(2, 1000))
        values = module(on_device(7, DIM), on_device(7, 2))
        bounds = module.optimistic(on_device(7, DIM), on_device(7, 2), 0.5)
    assert values.shape == bounds.shape == (7, 2)


def test_a_look_at_a_value_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gaussian, "__call__", lambda self, r: (-r / r.max().item()).exp())
    with pytest.raises(RuntimeError, match="meta"), StaysOnDevice():
        sparse_kernel(on_device(7, DIM), on_device(100, DIM), on_device(100, 2), kernel="gaussian", k=4)


def test_a_copy_from_the_host_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gaussian, "__call__", lambda self, r: (-r * torch.tensor([2.0]).to(r.device)).exp())
    with pytest.raises(AssertionError, match="cpu"), StaysOnDevice():
        sparse_kernel(on_device(7, DIM), on_device(100, DIM), on_device(100, 2), kernel="gaussian", k=4)


def attempt_by_hand(gram: np.ndarray) -> tuple[int, np.ndarray]:
    """The first attempt at which a matrix is positive definite, and its factor; the identity when none is."""
    identity = np.eye(len(gram))
    for attempt, jitter in enumerate((0.0, *JITTERS)):
        repaired = gram + jitter * gram.diagonal().max() * identity
        if np.linalg.eigvalsh(repaired).min() > 0.0:
            return attempt, np.linalg.cholesky(repaired)
    return -1, identity


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("scale", [1.0, 2.0**20])
def test_all_attempts_at_once_equal_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch, scale: float, gradient: bool
) -> None:
    """Systems of two supports whose kernel value exceeds the diagonal by a multiple of what each jitter repairs."""
    excess = torch.tensor([-0.5, 0.5e-9, 0.5e-6, 0.5e-5, 0.5e-4, 0.5, -0.1], dtype=torch.float64)
    features = torch.arange(14.0, dtype=torch.float64).unsqueeze(-1).requires_grad_(gradient)
    queries = features.detach()[::2] + 0.4
    monkeypatch.setattr(
        Polynomial,
        "blocks",
        lambda self, cross, pairs: (cross, scale * torch.where(pairs > 0, 1 + excess[:, None, None], 1.0)),
    )

    def systems() -> Any:
        return factorise(ExactSearch()(queries, features, 2), features, Polynomial(), 1.0, 0.0)

    one_by_one = systems()
    monkeypatch.setattr("skrl.solve.cholesky.traced", lambda: True)
    at_once = systems()
    for b, system in enumerate(excess):
        gram = scale * np.array([[1.0, 1.0 + system.item()], [1.0 + system.item(), 1.0]])
        attempt, factor = attempt_by_hand(gram)
        for solved in (one_by_one, at_once):
            assert solved.jittered[b].item() == (attempt > 0)
            assert solved.failed[b].item() == (attempt < 0)
            np.testing.assert_allclose(solved.factor[b].detach(), factor, rtol=1e-9)
        if attempt == 0:
            assert torch.equal(at_once.factor[b], torch.linalg.cholesky(torch.from_numpy(gram)))


def test_systems_of_no_supports_are_static_too() -> None:
    with StaysOnDevice():
        mean, variance = sparse_kernel(on_device(7, DIM), on_device(0, DIM), on_device(0, 2), k=4)
    assert (mean.shape, variance.shape) == ((7, 2), (7,))
