"""What full precision switches off around it, and puts back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from skrl import ExactSearch, SparseKernel, compiling, leave_one_out_rmse, p_greedy, sparse_kernel, tune
from skrl.modes import full_precision, rounds_products
from skrl.tuning.leave_one_out import leave_one_out_loss

mkldnn, cuda = torch.backends.mkldnn.matmul, torch.backends.cuda.matmul

SETTINGS: dict[str, Callable[[], object]] = {
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "TF32 as before": lambda: setattr(cuda, "allow_tf32", True),
    "TF32": lambda: setattr(cuda, "fp32_precision", "tf32"),
    "bfloat16": lambda: setattr(mkldnn, "fp32_precision", "bf16"),
    "bfloat16 everywhere": lambda: setattr(torch.backends, "fp32_precision", "bf16"),
}
"""Ways to have products of float32 rounded."""


def state() -> tuple[str, ...]:
    try:
        whole = torch.get_float32_matmul_precision()
    except RuntimeError:
        whole = "several"
    return whole, mkldnn.fp32_precision, cuda.fp32_precision, torch.backends.fp32_precision


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    torch.set_float32_matmul_precision("highest")
    for backend in (torch.backends, mkldnn, cuda):
        backend.fp32_precision = "none"


@pytest.mark.parametrize("name", SETTINGS)
def test_products_are_whole_within_and_as_before_after(name: str) -> None:
    SETTINGS[name]()
    before = state()
    assert rounds_products()
    for _ in range(2):
        with full_precision("cpu"), full_precision("cpu"):
            assert not rounds_products()
        assert state() == before
    with pytest.raises(KeyError), full_precision("cpu"):
        raise KeyError
    assert state() == before


def test_what_one_backend_inherits_it_inherits_again() -> None:
    torch.backends.fp32_precision = "bf16"
    with full_precision("cpu"):
        assert mkldnn.fp32_precision == "ieee"
    torch.backends.fp32_precision = "ieee"
    assert mkldnn.fp32_precision == "ieee"


def test_nothing_is_done_where_nothing_rounds() -> None:
    assert isinstance(full_precision("cpu"), nullcontext)


def test_autocast_goes_off_beside_it() -> None:
    torch.set_float32_matmul_precision("medium")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with full_precision("cpu"):
            assert not torch.is_autocast_enabled("cpu")
            assert not rounds_products()
        assert torch.is_autocast_enabled("cpu")
    assert rounds_products()


def test_the_last_thread_to_leave_puts_it_back() -> None:
    torch.set_float32_matmul_precision("medium")
    inside, left, seen = threading.Event(), threading.Event(), []

    def stay() -> None:
        with full_precision("cpu"):
            inside.set()
            left.wait(10.0)
            seen.append(rounds_products())

    with full_precision("cpu"):
        other = threading.Thread(target=stay)
        other.start()
        assert inside.wait(10.0)
    left.set()
    other.join()
    assert seen == [False]
    assert rounds_products()


@pytest.mark.parametrize("plain", [False, True])
def test_no_answer_depends_on_how_products_are_rounded(monkeypatch: pytest.MonkeyPatch, plain: bool) -> None:
    """Where a processor multiplies in bfloat16, a tenth of the neighbours would be other ones."""
    monkeypatch.setattr(compiling, "AVAILABLE", compiling.AVAILABLE and not plain)
    queries, features, targets = torch.randn(100, 16), torch.randn(1000, 16), torch.randn(1000, 1)
    kernel = {"lengthscale": 4.0, "ridge": 0.01, "k": 20}

    def answers() -> list[Tensor]:
        neighbors = ExactSearch()(queries, features, 20)
        tuned = tune(features[:200], targets[:200], "matern32", k=8, probes=32, rounds=1)
        return [
            neighbors.indices,
            *sparse_kernel(queries, features, targets, **kernel),  # type: ignore[arg-type]
            SparseKernel(features, targets, **kernel).leave_one_out(queries),  # type: ignore[arg-type]
            leave_one_out_loss(features, targets, "matern32", 4.0, 0.01, 20),
            leave_one_out_rmse(neighbors, features, targets, "matern32", 4.0, 0.01),
            torch.as_tensor([tuned.lengthscale, tuned.ridge, tuned.score]),
            p_greedy(features, 50, lengthscale=4.0),
        ]

    expected = answers()
    torch.set_float32_matmul_precision("medium")
    for ours, theirs in zip(answers(), expected, strict=True):
        assert torch.equal(ours, theirs)
