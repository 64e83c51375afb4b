"""Memory grows with the supports and with the queries, never with their product times the width, nor with pairs."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from skrl import SparseKernel, compiling, sparse_kernel
from skrl.search.neighbors import Localisation
from skrl.search.screening import half_precision_pays

POINTS, QUERIES, K = 12_000, 64, 8
LIMIT = 36_000
"""Entries that one chunk of queries may hold here; a score of every query and point would take 768,000."""


class LargestTensor(TorchDispatchMode):
    """Remembers the largest tensor that takes memory of its own, and how many are as large as the supports."""

    def __init__(self, supports: int) -> None:
        super().__init__()
        self.supports, self.largest, self.as_supports = supports, 0, 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        known = {storage.data_ptr() for storage in storages((args, kwargs))}
        for storage in storages(result):
            if storage.data_ptr() not in known:
                entries = storage.nbytes() // 4
                self.largest = max(self.largest, entries)
                self.as_supports += entries >= self.supports
        return result


def storages(tree: object) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


@pytest.fixture(params=["compiled", "torch"], autouse=True)
def _path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "AVAILABLE", compiling.AVAILABLE and request.param == "compiled")
    for name in ("search.exact.MAX_SCORES", "search.exact.MAX_COMPILED_SCORES", "functional.MAX_GATHERED"):
        monkeypatch.setattr(f"skrl.{name}", LIMIT)
    monkeypatch.setattr("skrl.solve.local_weights.MAX_GRAM", LIMIT)
    half_precision_pays()  # Measured once in a process, on matrices of its own.
    # One product of the screened search, which processors with bfloat16 take.
    monkeypatch.setattr("skrl.search.screening.MAX_ROWS", 8)
    for name in ("MIN_TILE", "MAX_TILE"):
        monkeypatch.setattr(f"skrl.search.screening.{name}", 4096)


def watched(dim: int, act: Callable[[], object]) -> int:
    """Runs an action whose largest tensor may be that of the supports, padded; returns how many are as large."""
    supports = POINTS * dim
    with LargestTensor(supports) as watch:
        act()  # The first time loops are compiled and modules imported, which is not watched.
        watch.as_supports = 0
        tracemalloc.start()
        try:
            act()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert watch.largest <= max(1.05 * supports, LIMIT)
    assert peak < 4 * 4 * LIMIT  # what numpy allocates, in bytes
    return watch.as_supports


def sets(dim: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(QUERIES, dim), torch.randn(POINTS, dim), torch.randn(POINTS, 1)


@pytest.mark.parametrize("dim", [4, 32])
@pytest.mark.parametrize("localisation", ["hard", "continuous"])
def test_prediction(dim: int, localisation: Localisation) -> None:
    queries, features, targets = sets(dim)
    watched(dim, lambda: sparse_kernel(queries, features, targets, k=K, localisation=localisation))
    sparse = SparseKernel(features, targets, k=K, lengthscale=1.0, ridge=0.1, localisation=localisation)
    sparse(queries)
    # Supports that are ready are read, and never copied.
    assert watched(dim, lambda: sparse(queries)) == 0
    assert watched(dim, lambda: sparse.leave_one_out(queries)) == 0


@pytest.mark.parametrize("dim", [4, 32])
def test_backward(monkeypatch: pytest.MonkeyPatch, dim: int) -> None:
    """In chunks, of which none scales the supports anew."""
    queries, features, targets = sets(dim)
    sparse = SparseKernel(
        nn.Parameter(features), nn.Parameter(targets), k=K, lengthscale=1.0, ridge=0.1, learn_kernel=True
    )
    forward = watched(dim, lambda: sparse(queries))
    monkeypatch.setattr("skrl.functional.MAX_GATHERED", LIMIT // 10)
    assert watched(dim, lambda: sparse(queries)) == forward
    loss = sparse(queries).square().sum()
    watched(dim, lambda: loss.backward(retain_graph=True))
    assert all(parameter.grad is not None for parameter in sparse.parameters())


def test_choosing_the_settings() -> None:
    _, features, targets = sets(16)
    watched(16, lambda: SparseKernel(features, targets, k=K))


def test_the_watch_sees_what_is_too_large() -> None:
    with pytest.raises(AssertionError):
        watched(4, lambda: torch.zeros(QUERIES, 1) + torch.zeros(POINTS))
    with pytest.raises(AssertionError):
        watched(4, lambda: torch.zeros(POINTS * 5).numpy() + 1.0)
