"""Compilation of loops for a CPU, where many small tensor operations would cost more than their arithmetic.

numba translates them at the first call and keeps the result on disk. Without numba, and wherever an accelerator is
involved, other paths are taken, which give the same numbers.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from typing import Any, TypeVar, cast

import numpy.typing as npt
import torch
from torch import Tensor

from skrl.modes import forwards, traced

try:
    import numba

    # Switched off, numba returns Python as it is, which is slower than PyTorch.
    AVAILABLE = not numba.config.DISABLE_JIT  # type: ignore[attr-defined]  # set when it is imported
except ImportError:
    AVAILABLE = False

Array = npt.NDArray[Any]
Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Translate a function of arrays; it releases the interpreter lock.

    Reassociation lets reductions use vector units; NaN and infinity keep their meaning.
    """
    return _translated(function, {"reassoc", "contract", "nsz", "arcp"})


def compiled_exactly(function: Function) -> Function:
    """The same, with every operation rounded as written."""
    return _translated(function, False)


def _translated(function: Function, fastmath: set[str] | bool) -> Function:
    if not AVAILABLE:
        return function
    translate = numba.njit(fastmath=fastmath, error_model="numpy", nogil=True)(function)
    # Where neither the package nor the user's cache folder can be written, every process translates anew.
    with suppress(RuntimeError):
        translate.enable_caching()
    return cast(Function, translate)


def compiles(*tensors: Tensor) -> bool:
    """Whether compiled loops may read these tensors: on a CPU, of one precision, with no gradient asked for.

    What a function transform such as ``torch.func.grad`` has wrapped has no storage to read, and the tangents of
    forward mode would be lost.
    """
    if not AVAILABLE or traced() or forwards():
        return False
    wants_gradient, dtype = torch.is_grad_enabled(), tensors[0].dtype
    if dtype is not torch.float32 and dtype is not torch.float64:
        return False
    for tensor in tensors:
        if not tensor.is_cpu or tensor.dtype is not dtype or (wants_gradient and tensor.requires_grad):
            return False
    return True


def over_rows(work: Callable[[int, int], None], rows: int, seconds_per_row: float) -> None:
    """Run ``work(start, stop)`` over all rows, split among torch's number of threads where that pays.

    Each part runs on a thread on which torch itself is single-threaded: two pools of threads would fight for the cores.
    No gradient is recorded, on any thread: whether one is, is each thread's own setting, and here it does not reach
    the arrays.

    Args:
        work: compiled loops and tensor operations over a range of rows; ranges are disjoint.
        rows: number of rows.
        seconds_per_row: rough cost, which decides whether waking threads is worth it.
    """
    repaid = 1 + int(rows * seconds_per_row / WAKING_SECONDS)
    threads = 1 if repaid == 1 else min(torch.get_num_threads(), rows, repaid)
    # While the interpreter exits no pool takes work any more.
    if threads <= 1 or not threading.main_thread().is_alive():
        if torch.is_grad_enabled():
            with torch.no_grad():
                work(0, rows)
        else:
            work(0, rows)
        return
    wanted = torch.get_num_threads()
    parts = [(rows * i // threads, rows * (i + 1) // threads) for i in range(threads)]
    for part in [_workers(wanted).submit(work, *part) for part in parts]:
        part.result()


WAKING_SECONDS = 1e-4
"""Work that justifies one more thread; waking it takes about a third of this."""


@cache
def _workers(threads: int) -> ThreadPoolExecutor:
    everyone_started = threading.Barrier(threads + 1)
    workers = ThreadPoolExecutor(threads, "skrl", initializer=_prepare_thread)
    for _ in range(threads):
        workers.submit(everyone_started.wait)
    everyone_started.wait()
    # The setting is each thread's own, but for one inside a linear algebra library, which is put right here.
    torch.set_num_threads(threads)
    return workers


def _prepare_thread() -> None:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)


if hasattr(os, "register_at_fork"):
    # Threads do not survive a fork: the child makes its own.
    os.register_at_fork(after_in_child=_workers.cache_clear)
