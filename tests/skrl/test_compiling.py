"""Where compiled loops run: which tensors, which threads, which processes, and what happens where they cannot."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from skrl import Prediction, SparseKernel, compiling, sparse_kernel
from skrl.compiling import compiles, over_rows

needs_numba = pytest.mark.skipif(not compiling.AVAILABLE, reason="numba is not installed")


def ranges(rows: int, seconds_per_row: float) -> tuple[list[tuple[int, int]], set[str]]:
    """What the loop was asked for, in order, and the names of the threads that were asked."""
    seen: list[tuple[int, int]] = []
    names = set()

    def loop(start: int, stop: int) -> None:
        seen.append((start, stop))
        names.add(threading.current_thread().name.partition("_")[0])

    over_rows(loop, rows, seconds_per_row)
    return sorted(seen), names


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("rows", [2, 3, 10, 1001])
@pytest.mark.parametrize("threads", [2, 3, 8])
def test_rows_are_split_among_threads(rows: int, threads: int) -> None:
    torch.set_num_threads(threads)
    seen, names = ranges(rows, 1.0)
    assert len(seen) == min(rows, threads)
    assert seen[0][0] == 0
    assert seen[-1][1] == rows
    assert all(stop == start for (_, stop), (start, _) in itertools.pairwise(seen))
    assert all(stop > start for start, stop in seen)
    assert names == {"skrl"}


@pytest.mark.parametrize(("rows", "seconds", "count"), [(0, 1.0, 1), (1, 1.0, 1), (100, 1e-9, 1), (100, 1.5e-6, 2)])
def test_threads_are_woken_where_the_work_pays(rows: int, seconds: float, count: int) -> None:
    torch.set_num_threads(2)
    try:
        seen, _ = ranges(rows, seconds)
    finally:
        torch.set_num_threads(1)
    assert len(seen) == count
    assert seen[-1][1] == rows


def test_one_thread_is_enough() -> None:
    assert ranges(1000, 1.0) == ([(0, 1000)], {"MainThread"})


@pytest.mark.usefixtures("two_threads")
def test_an_error_in_another_thread_arrives() -> None:
    def loop(start: int, stop: int) -> None:
        if start > 0:
            raise ZeroDivisionError(stop)

    with pytest.raises(ZeroDivisionError, match="10"):
        over_rows(loop, 10, 1.0)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("threads", [1, 2])
def test_no_gradient_is_recorded_on_any_thread(threads: int) -> None:
    torch.set_num_threads(threads)
    recorded = []
    over_rows(lambda start, stop: recorded.append(torch.is_grad_enabled()), 10, 1.0)
    assert recorded == [False] * threads
    assert torch.is_grad_enabled()


@pytest.mark.usefixtures("two_threads")
def test_no_thread_is_asked_while_the_interpreter_exits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pools take no work any more: what is predicted at exit is predicted by one thread."""
    finished = threading.Thread()
    monkeypatch.setattr(threading, "main_thread", lambda: finished)
    assert ranges(10, 1.0)[0] == [(0, 10)]


# Predictions, whoever computes them


def sets(dim: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(23, dim), torch.randn(400, dim), torch.randn(400, 2)


def predict(given: tuple[Tensor, Tensor, Tensor]) -> Prediction:
    return sparse_kernel(*given, k=7, ridge=0.1, localisation="continuous")


def assert_equal(ours: Prediction, theirs: Prediction) -> None:
    assert torch.equal(ours.mean, theirs.mean)
    assert torch.equal(ours.variance, theirs.variance)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("dim", [3, 20], ids=["fused search", "product"])
def test_threads_do_not_change_the_answer(dim: int) -> None:
    given = sets(dim)
    torch.set_num_threads(1)
    alone = predict(given)
    torch.set_num_threads(2)
    assert_equal(predict(given), alone)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("dim", [3, 20], ids=["fused search", "product"])
def test_several_python_threads_at_once(dim: int) -> None:
    """Each with rows of its own to hand out, and all through one module, whose supports they make ready together."""
    queries, features, targets = sets(dim)
    sparse = SparseKernel(features, targets, k=7, lengthscale=1.0, ridge=0.1)
    expected = [SparseKernel(features, targets, k=7, lengthscale=1.0, ridge=0.1).predict(queries + i) for i in range(8)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            answers = list(pool.map(lambda i: sparse.predict(queries + i), range(8)))
            for ours, theirs in zip(answers, expected, strict=True):
                assert_equal(ours, theirs)
            sparse.features.mul_(1.0)  # type: ignore[union-attr]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system does not fork")
@pytest.mark.usefixtures("two_threads")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_has_threads_of_its_own() -> None:
    """A child that predicts leaves torch one thread, as data loaders do: torch's exponential waits for ever else."""
    given = sets(3)
    expected = predict(given)
    assert ranges(10, 1.0)[1] == {"skrl"}
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        status = 1
        try:
            own_threads = ranges(10, 1.0)[1] == {"skrl"}
            torch.set_num_threads(1)
            answer = predict(given)
            same = torch.equal(answer.mean, expected.mean) and torch.equal(answer.variance, expected.variance)
            status = 0 if own_threads and same else 2
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


# What is compiled


@needs_numba
def test_which_tensors_compiled_loops_read() -> None:
    single, double = torch.zeros(2), torch.zeros(2, dtype=torch.float64)
    assert compiles(single, single)
    assert compiles(double)
    assert not compiles(single, double)
    assert not compiles(single.half())
    assert not compiles(torch.zeros(2, dtype=torch.long))
    assert not compiles(torch.zeros(2, device="meta"))
    learned = torch.zeros(2, requires_grad=True)
    assert not compiles(single, learned)
    with torch.no_grad():
        assert compiles(single, learned)
    with forward_ad.dual_level():  # whose tangents have a storage of their own
        assert not compiles(single)


def test_nothing_is_compiled_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    def function(x: float) -> float:
        return x

    monkeypatch.setattr(compiling, "AVAILABLE", False)
    assert compiling.compiled(function) is function
    assert not compiles(torch.zeros(2))


@needs_numba
def test_a_function_that_cannot_be_kept_on_disk_is_compiled_all_the_same() -> None:
    """As in a read-only installation without a home; here, because it has no file."""
    names: dict[str, object] = {"compiled": compiling.compiled}
    exec("@compiled\ndef twice(x):\n    return 2 * x", names)
    twice = names["twice"]
    assert twice(2.5) == 5.0  # type: ignore[operator]
    assert hasattr(twice, "py_func")
