"""Compiled local systems against numpy and by hand, also as the plain Python that they are without numba."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch

from skrl import compiling
from skrl.solve import compiled_solve
from skrl.solve.cholesky import JITTERS
from skrl.solve.local_solve import window_roots
from skrl.solve.local_weights import bounded_correction

Array = npt.NDArray[np.floating]
INF, NAN = float("inf"), float("nan")
DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@pytest.fixture(params=["compiled", "interpreted"])
def _both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compiled, and as the plain Python functions that are left without numba."""
    if request.param == "interpreted":
        for name, function in inspect.getmembers(compiled_solve, lambda member: hasattr(member, "py_func")):
            monkeypatch.setattr(compiled_solve, name, function.py_func)
    with np.errstate(all="ignore"):
        yield


pytestmark = pytest.mark.usefixtures("_both_ways")


def layout(cross: Array, pairs: Array) -> Array:
    """κ_z, then the lower triangle of K row by row."""
    return np.concatenate([cross, pairs[np.tril_indices(len(cross), -1)]])


# Distances and windows


class Measured(NamedTuple):
    distances: Array
    windows: Array


def measure(
    queries: Array, features: Array, indices: npt.NDArray[np.int64], mask: npt.NDArray[np.bool_], k: int, windowed: bool
) -> Measured:
    """All rows, as two chunks."""
    rows = len(queries)
    parts = []
    for first, last in ((0, rows // 2), (rows // 2, rows)):
        count = last - first
        distances = np.full((count, k * (k + 1) // 2), 7.0, queries.dtype)
        windows = np.full((count, k if windowed else 0), 7.0, queries.dtype)
        per_set = rows // len(features)
        compiled_solve.measure_rows(queries, features, per_set, first, indices, mask, distances, windows)
        parts.append(Measured(distances, windows))
    return Measured(*(np.concatenate(values) for values in zip(*parts, strict=True)))


@DTYPES
@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("found", [0, 1], ids=["hard", "windowed"])
def test_distances_equal_numpy(dtype: type[np.floating], k: int, found: int) -> None:
    generator = np.random.default_rng(0)
    queries, features = generator.normal(size=(6, 3)).astype(dtype), generator.normal(size=(2, 9, 3)).astype(dtype)
    indices = np.stack([generator.permutation(9)[: k + found] for _ in range(6)])
    counts = np.array([k + found, k, max(k - 1, 0), 0, k + found, 1])
    mask = np.arange(k + found) < counts[:, None]
    measured = measure(queries, features, indices, mask, k, windowed=found > 0)
    for b, (query, present) in enumerate(zip(queries, mask[:, :k].sum(-1), strict=True)):
        points = features[b // 3][indices[b]]
        cross = np.linalg.norm(points - query, axis=-1)
        pairs = np.linalg.norm(points[:, None] - points, axis=-1)
        cross[present:], pairs[present:], pairs[:, present:] = 0.0, 0.0, 0.0
        np.testing.assert_allclose(measured.distances[b], layout(cross[:k], pairs[:k, :k]), rtol=2e-6, atol=1e-7)
        if found:
            radius = np.linalg.norm(points[k] - query) if mask[b, k] else INF
            roots = window_roots(torch.from_numpy(cross[:k]), torch.tensor(radius, dtype=torch.float64))
            np.testing.assert_allclose(measured.windows[b, :present], roots[:present], rtol=2e-6, atol=1e-6)


def test_windows_by_hand() -> None:
    """Half way to the radius 1 − 1/4; none where the radius is zero, infinite, or has no point."""
    queries = np.zeros((4, 1), np.float32)
    features = np.array([[[1.0], [2.0]], [[0.0], [0.0]], [[1.0], [3e19]], [[1.0], [0.0]]], np.float32)
    indices, mask = np.array([[0, 1]] * 4), np.array([[True, True]] * 3 + [[True, False]])
    windows = measure(queries, features, indices, mask, 1, windowed=True).windows
    assert windows.tolist() == [[0.75], [1.0], [1.0], [1.0]]


# Factor and substitute


@DTYPES
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 9, 17])
def test_factor_and_substitution_equal_numpy(dtype: type[np.floating], count: int) -> None:
    generator = np.random.default_rng(count)
    square = generator.normal(size=(count, count))
    gram = square @ square.T + count * np.eye(count)
    upper = np.full((count + 2, count + 2), NAN, dtype)
    upper[:count, :count] = np.triu(gram)
    assert compiled_solve._factor(count, upper)
    tolerance = float(100 * count * np.finfo(dtype).eps)
    factor = np.linalg.cholesky(gram).T
    np.testing.assert_allclose(np.triu(upper[:count, :count]), factor, rtol=tolerance, atol=tolerance)
    given = generator.normal(size=count)
    solution = np.concatenate([given, [7.0]]).astype(dtype)
    reduction = compiled_solve.substitute(count, upper, solution)
    expected = np.linalg.solve(gram, given)
    np.testing.assert_allclose(solution[:count], expected, rtol=tolerance, atol=tolerance)
    assert solution[count] == 7.0
    assert reduction == pytest.approx(given @ expected, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize(
    "gram",
    [
        [[0.0, 0.0], [0.0, 1.0]],
        [[-1.0, 0.0], [0.0, 1.0]],
        [[1.0, 1.0], [0.0, 1.0]],
        [[1.0, 2.0], [0.0, 1.0]],
        [[1.0, NAN], [0.0, 1.0]],
        [[1.0, INF], [0.0, 1.0]],
        [[INF, 0.0], [0.0, 1.0]],
        [[1.0, 0.0], [0.0, NAN]],
    ],
)
def test_what_is_not_positive_definite_is_not_factored(gram: list[list[float]]) -> None:
    assert not compiled_solve._factor(2, np.array(gram))


# Weights and variance


class Solved(NamedTuple):
    weights: Array
    variance: Array
    jittered: list[bool]
    failed: list[bool]


def solve(
    values: Array, windows: Array, mask: npt.NDArray[np.bool_], k: int, ridge: float, prior: float = 1.0
) -> Solved:
    """All rows, in two ranges, into arrays full of other things."""
    rows = len(values)
    weights, variance = np.full((rows, k), 7.0, values.dtype), np.full(rows, 7.0, values.dtype)
    jittered, failed = np.ones((2, rows), np.bool_)
    for start, stop in ((rows // 2, rows), (0, rows // 2)):
        part, jitters = slice(start, stop), np.array(JITTERS, values.dtype)
        answers = (answer[part] for answer in (weights, variance, jittered, failed))
        compiled_solve.solve_rows(values[part], windows[part], mask[part], prior, ridge, jitters, *answers)
    return Solved(weights, variance, jittered.tolist(), failed.tolist())


def solve_one(
    values: list[float], ridge: float, count: int = 2, windows: list[float] | None = None, prior: float = 1.0
) -> tuple[list[float], float, bool, bool]:
    """One system of two neighbours: κ_z, then K₂₁."""
    solved = solve(np.array([values]), np.array([windows or []]), np.array([[count > 0, count > 1]]), 2, ridge, prior)
    return solved.weights[0].tolist(), solved.variance[0].item(), solved.jittered[0], solved.failed[0]


@pytest.mark.parametrize("ridge", [1e-3, 1.0])
@pytest.mark.parametrize("windowed", [False, True])
@pytest.mark.parametrize("prior", [1.0, 2.5])
@DTYPES
def test_every_count_equals_numpy(dtype: type[np.floating], prior: float, windowed: bool, ridge: float) -> None:
    """Systems of 0 to 7 neighbours, an ended window among them, against dense solves."""
    k = 7
    generator = np.random.default_rng(0)
    values, roots, expected = [], [], []
    for count in range(k + 1):
        points, query = generator.normal(size=(k, 3)), generator.normal(size=3)
        gram = prior * np.exp(-np.linalg.norm(points[:, None] - points, axis=-1))
        cross = prior * np.exp(-np.linalg.norm(points - query, axis=-1))
        root = generator.uniform(0.1, 1.0, k) if windowed else np.ones(k)
        if windowed and count > 2:
            root[1] = 0.0
        here = np.diag(root) @ gram @ np.diag(root) + ridge * np.eye(k)
        weights = np.zeros(k)
        weights[:count] = root[:count] * np.linalg.solve(here[:count, :count], (root * cross)[:count])
        values.append(layout(cross, gram))
        roots.append(root)
        expected.append((weights, prior - weights @ cross))
    windows = np.array(roots, dtype) if windowed else np.empty((k + 1, 0), dtype)
    mask = np.arange(k + 1) < np.arange(k + 1)[:, None]
    solved = solve(np.array(values, dtype), windows, mask, k, ridge, prior)
    tolerance = 1e-10 if dtype is np.float64 else 2e-3 if ridge < 1e-2 else 1e-5
    np.testing.assert_allclose(solved.weights, [weights for weights, _ in expected], rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(solved.variance, [variance for _, variance in expected], rtol=tolerance, atol=tolerance)
    assert not any(solved.jittered)
    assert not any(solved.failed)
    beyond = np.arange(k) >= np.arange(k + 1)[:, None]
    assert (solved.weights[beyond] == 0.0).all()


def test_two_neighbours_by_hand() -> None:
    """K + λI = [[2, 1/2], [1/2, 2]], whose inverse is [[8, -2], [-2, 8]] / 15."""
    weights, variance, jittered, failed = solve_one([1.0, 0.5, 0.5], ridge=1.0)
    np.testing.assert_allclose(weights, [7.0 / 15.0, 2.0 / 15.0], rtol=1e-15)
    assert variance == pytest.approx(1.0 - 8.0 / 15.0, rel=1e-14)
    assert (jittered, failed) == (False, False)


def test_missing_neighbours_are_left_out() -> None:
    weights, variance, jittered, failed = solve_one([0.5, 9.0, 9.0], ridge=1.0, count=1)
    assert weights == pytest.approx([0.25, 0.0], rel=1e-15)
    assert variance == pytest.approx(0.875, rel=1e-15)
    assert (jittered, failed) == (False, False)
    assert solve_one([9.0, 9.0, 9.0], ridge=0.0, count=0) == ([0.0, 0.0], 1.0, False, False)


@pytest.mark.parametrize("spoilt", [[0.5, 0.5, 0.5], [0.5, NAN, 0.5], [0.5, 0.5, NAN], [0.5, INF, INF]])
def test_a_neighbour_whose_window_has_ended_is_left_out(spoilt: list[float]) -> None:
    """Whatever its values, and without a ridge, where its row would be zero."""
    for ridge in (0.0, 1.0):
        weights, variance, jittered, failed = solve_one(spoilt, ridge, windows=[1.0, 0.0])
        assert weights == pytest.approx([0.5 / (1.0 + ridge), 0.0], rel=1e-15)
        assert variance == pytest.approx(1.0 - 0.25 / (1.0 + ridge), rel=1e-15)
        assert (jittered, failed) == (False, False)


def test_variance_is_kept_in_its_range() -> None:
    """Rounding may carry κ_zᵀ w past one; here it is 1.21."""
    assert solve_one([1.1, 0.0, 0.0], ridge=0.0, count=1)[1] == 0.0
    assert solve_one([0.0, 0.0, 0.0], ridge=0.0, prior=3.0)[1] == 3.0


def test_singular_system_gets_jitter() -> None:
    weights, variance, jittered, failed = solve_one([0.5, 0.5, 1.0], ridge=0.0)
    assert (jittered, failed) == (True, False)
    np.testing.assert_allclose(weights, [0.25, 0.25], rtol=1e-5)
    assert variance == pytest.approx(0.75, abs=1e-6)


@pytest.mark.parametrize("jitter", JITTERS)
@pytest.mark.parametrize("prior", [1.0, 2.0**-30, 2.0**30])
@pytest.mark.parametrize("window", [None, 0.5])
def test_the_least_jitter_that_works_is_taken(jitter: float, prior: float, window: float | None) -> None:
    """K₂₁ = 1 + ε is indefinite by ε, so that the first jitter above ε repairs it; w₁ + w₂ = κ / (2 + ε + jitter)."""
    excess = 1.0 + 0.5 * jitter
    cross = 0.5 * prior
    windows = None if window is None else [window, window]
    weights, _, jittered, failed = solve_one([cross, cross, excess * prior], ridge=0.0, windows=windows, prior=prior)
    assert (jittered, failed) == (True, False)
    assert sum(weights) == pytest.approx(1.0 / (1.0 + excess + jitter), rel=1e-9)
    assert weights[0] == pytest.approx(weights[1], rel=1e-6)


@pytest.mark.parametrize(
    ("values", "ridge"),
    [
        ([0.5, 0.5, 2.0], 0.0),
        ([0.5, 0.5, NAN], 0.0),
        ([0.5, 0.5, INF], 1.0),
        ([NAN, 0.5, 0.5], 1.0),
        ([0.5, INF, 0.5], 1.0),
        ([0.5, 0.5, 0.5], INF),
        ([0.5, 0.5, 0.5], NAN),
    ],
)
@pytest.mark.parametrize("windows", [None, [1.0, 0.5]])
def test_hopeless_systems_fall_back_alone(values: list[float], ridge: float, windows: list[float] | None) -> None:
    assert solve_one(values, ridge, windows=windows) == ([0.0, 0.0], 1.0, False, True)
    healthy = [0.5, 0.5, 0.5]
    roots = np.array([windows or []] * 3)
    mask = np.ones((3, 2), np.bool_)
    if np.isfinite(ridge):
        alone = solve(np.array([healthy]), roots[:1], mask[:1], 2, ridge)
        beside = solve(np.array([healthy, values, healthy]), roots, mask, 2, ridge)
        assert beside.failed == [False, True, False]
        assert beside.jittered == [False, False, False]
        assert beside.weights[0].tolist() == beside.weights[2].tolist() == alone.weights[0].tolist()
        assert beside.variance[0] == beside.variance[2] == alone.variance[0]


def test_no_support_at_all() -> None:
    solved = solve(np.empty((3, 0)), np.empty((3, 0)), np.empty((3, 0), np.bool_), 0, 0.1)
    assert solved.weights.shape == (3, 0)
    assert solved.variance.tolist() == [1.0, 1.0, 1.0]
    assert solved.failed == [False, False, False]


# Reading targets


@DTYPES
@pytest.mark.parametrize("width", [1, 3])
def test_means_equal_numpy(dtype: type[np.floating], width: int) -> None:
    """Of the first k columns; a neighbour without weight is not read."""
    generator = np.random.default_rng(0)
    targets = generator.normal(size=(9, width)).astype(dtype)
    indices, weights = generator.integers(0, 8, (6, 5)), generator.normal(size=(6, 4)).astype(dtype)
    targets[8], indices[2, 1], weights[2, 1], indices[:, 4] = NAN, 8, 0.0, 8
    means = np.full((6, width), 7.0, dtype)
    compiled_solve.mean_rows(indices, weights, targets, 3, 6, means)
    assert (means[:3] == 7.0).all()
    compiled_solve.mean_rows(indices, weights, targets, 0, 3, means)
    expected = np.einsum("bk,bkc->bc", weights, np.nan_to_num(targets)[indices[:, :4]])
    np.testing.assert_allclose(means, expected, rtol=1e-5, atol=1e-6)


def test_a_target_that_is_no_number_shows_where_it_is_read() -> None:
    means = np.zeros((2, 2))
    targets = np.array([[NAN, 1.0], [2.0, 3.0]])
    compiled_solve.mean_rows(np.array([[0], [1]]), np.ones((2, 1)), targets, 0, 2, means)
    np.testing.assert_array_equal(means, targets)


@pytest.mark.parametrize("spoilt", [0.0, NAN, INF, -INF])
@DTYPES
def test_bounded_reading_equals_torch(monkeypatch: pytest.MonkeyPatch, dtype: type[np.floating], spoilt: float) -> None:
    """Also where a residual is not finite: it shows in the queries that read it, and in no other."""
    generator = np.random.default_rng(0)
    weights, residuals = generator.normal(size=(2, 40, 3)).astype(dtype), generator.normal(size=(2, 9)).astype(dtype)
    indices = generator.integers(0, 9, (2, 40, 3))
    weights[0, :4, 1], residuals[0, 0] = 0.0, spoilt
    corrections = np.full((2, 40), 7.0, dtype)
    compiled_solve.read_blocks(indices, weights, residuals, corrections)
    with monkeypatch.context() as patch:
        patch.setattr(compiling, "AVAILABLE", False)
        expected = bounded_correction(*(torch.from_numpy(values) for values in (indices, weights, residuals)))
    np.testing.assert_allclose(corrections, expected.numpy(), rtol=1e-5, atol=1e-6)
    reads = (indices == 0).any(-1)
    assert np.isfinite(corrections[1]).all()
    assert np.isfinite(corrections[0, ~reads[0]]).all()
