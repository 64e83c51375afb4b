"""Fused local systems on an accelerator: one Triton program measures, fills, factors and solves one query's system.

Nothing between the features of the neighbours and the weights leaves the multiprocessor, and no library is called, so
that a CUDA graph may capture it. Every lane holds one column of a matrix: sums over rows stay within a lane, sums over
columns would cost five exchanges between lanes per row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl


def jit(function: Callable[..., Any]) -> Any:
    """``triton.jit``, for type checkers that know no Triton."""
    return triton.jit(function)


@jit
def number(value: tl.tensor, is_pointer: tl.constexpr) -> Any:
    """A setting, from the device's memory where it lies there: fetching it to the host would synchronise."""
    if is_pointer:
        value = tl.load(value)
    return value


@jit
def kernel_value(r: tl.tensor, kernel: tl.constexpr) -> Any:
    """κ(r) of a scaled distance; the formulas of :mod:`skrl.kernels.formulas`."""
    if kernel == "gaussian":
        value = tl.exp(-0.5 * r * r)
    elif kernel == "laplace":
        value = tl.exp(-r)
    elif kernel == "matern32":
        decay = tl.exp(-1.7320508075688772 * r)
        value = decay + 1.7320508075688772 * (r * decay)
    elif kernel == "matern52":
        half = tl.exp(-1.118033988749895 * r)
        linear = 2.23606797749979 * (r * half)
        value = (half + linear) * half + linear * linear / 3.0
    else:
        tl.static_assert(kernel == "inverse_multiquadric", "a kernel without a formula here")
        value = 1.0 / tl.sqrt(1.0 + r * r)
    return value


@jit
def pick(vector: tl.tensor, lanes: tl.tensor, j: tl.tensor) -> Any:
    """Entry j of a vector: registers cannot be indexed, so the others are masked away."""
    return tl.sum(tl.where(lanes == j, vector, 0.0), 0)


@jit
def row_of(matrix: tl.tensor, lanes: tl.tensor, j: tl.tensor) -> Any:
    """Row j of a matrix."""
    return tl.sum(tl.where(lanes[:, None] == j, matrix, 0.0), 0)


@jit
def factor(matrix: tl.tensor, solution: tl.tensor, k: tl.tensor, lanes: tl.tensor) -> Any:
    """Factor A = L D Lᵀ and substitute forwards, row by row: Cholesky's method without its square roots.

    Returns D Lᵀ in the upper triangle, L⁻¹ b, and one if every pivot was positive, else zero.
    """
    positive = 1
    for j in range(k):
        row = row_of(matrix, lanes, j)
        pivot = pick(row, lanes, j)
        positive = tl.where(pivot > 0.0, positive, 0)  # false for NaN too
        right = tl.where(lanes > j, row, 0.0)
        scaled = right / pivot
        matrix -= scaled[:, None] * right[None, :]
        solution -= scaled * pick(solution, lanes, j)
    return matrix, solution, positive


@jit
def factor_with_jitter(
    gram: tl.tensor,
    noise: tl.tensor,
    right: tl.tensor,
    largest: tl.tensor,
    k: tl.tensor,
    lanes: tl.tensor,
    first_jitter: tl.constexpr,
    attempts: tl.constexpr,
) -> Any:
    """Factor with the least jitter that works, in units of the largest diagonal term.

    Returns what :func:`factor` does, and the number of attempts.
    """
    attempt = 0
    solved = 0
    jitter = 0.0
    matrix = gram
    forward = right
    while (attempt < attempts) & (solved == 0):
        diagonal = noise + jitter * largest
        matrix = gram + tl.where(lanes[:, None] == lanes[None, :], diagonal[None, :], 0.0)
        matrix, forward, solved = factor(matrix, right, k, lanes)
        jitter = tl.where(attempt == 0, first_jitter, 10.0 * jitter)
        attempt += 1
    return matrix, forward, solved, attempt


@jit
def substitute(matrix: tl.tensor, forward: tl.tensor, k: tl.tensor, lanes: tl.tensor) -> Any:
    """Solve D Lᵀ x = L⁻¹ b from the last row upwards, with the matrix of :func:`factor`."""
    solution = tl.zeros_like(forward)
    for step in range(k):
        j = k - 1 - step
        row = row_of(matrix, lanes, j)
        known = tl.sum(tl.where(lanes > j, row * solution, 0.0), 0)
        entry = (pick(forward, lanes, j) - known) / pick(row, lanes, j)
        solution = tl.where(lanes == j, entry, solution)
    return solution


@jit
def measure(
    queries: tl.tensor,
    features: tl.tensor,
    slots: tl.tensor,
    last: tl.tensor,
    query: tl.tensor,
    dim: tl.tensor,
    windowed: tl.constexpr,
    width: tl.constexpr,
    depth: tl.constexpr,
) -> Any:
    """Squared distances by differences: to the neighbours, among them, and to the one that ends the windows.

    Every lane reads one neighbour's coordinate and gets those of the others from there, so that no load waits for
    another.

    Returns them, and the number of coordinates of the query that are not finite; arguments as in :func:`solve_query`.
    """
    cross_squares = tl.zeros([width], tl.float32)
    pair_squares = tl.zeros([width, width], tl.float32)
    radius_squares = 0.0
    strange = 0
    for start in range(0, dim, depth):
        for offset in tl.static_range(depth):
            d = start + offset
            centre = tl.load(queries + query * dim + d, mask=d < dim, other=0.0)
            strange += tl.where(centre - centre == 0.0, 0, 1)
            column = tl.load(features + slots * dim + d, mask=d < dim, other=0.0)
            gaps = column - centre
            cross_squares += gaps * gaps
            pairs = column[:, None] - column[None, :]
            pair_squares += pairs * pairs
            if windowed:
                # Summed in the same order as the others, so that a tie with the radius is exact.
                gap = tl.load(features + last * dim + d, mask=d < dim, other=0.0) - centre
                radius_squares += gap * gap
    return cross_squares, pair_squares, radius_squares, strange


@jit
def window_roots(squares: tl.tensor, radius_squares: tl.tensor) -> Any:
    """Roots of the windows; see :func:`skrl.solve.local_solve.window_roots`."""
    radius = tl.sqrt(radius_squares)
    ends = (radius > 0.0) & (radius < float("inf"))
    width = tl.where(ends, radius, 1.0)
    gap = tl.where(ends, (width - tl.sqrt(squares)) / width, 1.0)
    gap = tl.where(gap < 0.0, 0.0, gap)
    return gap * (2.0 - gap)


@jit
def solve_query(
    queries: tl.tensor,
    features: tl.tensor,
    found: tl.tensor,
    present: tl.tensor,
    lengthscale: tl.tensor,
    ridge: tl.tensor,
    weights: tl.tensor,
    variance: tl.tensor,
    jittered: tl.tensor,
    failed: tl.tensor,
    rows_per_set: tl.tensor,
    entries_per_set: tl.tensor,
    dim: tl.tensor,
    k: tl.tensor,
    columns: tl.tensor,
    kernel: tl.constexpr,
    windowed: tl.constexpr,
    lengthscale_is_pointer: tl.constexpr,
    ridge_is_pointer: tl.constexpr,
    first_jitter: tl.constexpr,
    attempts: tl.constexpr,
    width: tl.constexpr,
    depth: tl.constexpr,
) -> None:
    """Weights and posterior variance of one query; the program's number is the query's.

    Args:
        queries: those of S sets one after the other, [S·B, d].
        features: [S, M, d].
        found: neighbours, [S·B, columns].
        present: one where a neighbour exists, else zero, like ``found``.
        lengthscale: ℓ, a number or a pointer.
        ridge: λ, likewise.
        weights: receives w, zero where a neighbour is missing, [S·B, k].
        variance: receives σ², [S·B].
        jittered: receives whether jitter was needed, [S·B].
        failed: receives whether the query falls back to the prior, [S·B].
        rows_per_set: B.
        entries_per_set: M · d.
        dim: d.
        k: neighbours.
        columns: k, or k + 1 where the last one ends the windows.
        kernel: name of the kernel, whose κ(z, z) is one.
        windowed: whether localisation is continuous.
        lengthscale_is_pointer: see ``lengthscale``.
        ridge_is_pointer: see ``ridge``.
        first_jitter: what the second attempt adds to the diagonal, in units of its largest term; later ones, ten times
            more each.
        attempts: factorisations at most.
        width: k, rounded up to a power of two.
        depth: dimensions whose loads are under way together.
    """
    query = tl.program_id(0).to(tl.int64)
    features += query // rows_per_set * entries_per_set
    found += query * columns
    present += query * columns
    lanes = tl.arange(0, width)
    mask = tl.load(present + lanes, mask=lanes < k, other=0) != 0
    slots = tl.load(found + lanes, mask=lanes < k, other=0)
    ends = False
    last = slots
    if windowed:
        ends = (columns > k) and (tl.load(present + columns - 1) != 0)
        last = tl.load(found + columns - 1)

    cross_squares, pair_squares, radius_squares, strange = measure(
        queries, features, slots, last, query, dim, windowed, width, depth
    )
    scale = 1.0 / number(lengthscale, lengthscale_is_pointer)
    cross = kernel_value(tl.sqrt(cross_squares) * scale, kernel)
    gram = kernel_value(tl.sqrt(pair_squares) * scale, kernel)
    window = tl.full([width], 1.0, tl.float32)
    if windowed:
        window = window_roots(cross_squares, tl.where(ends, radius_squares, float("inf")))
        gram *= window[:, None] * window[None, :]
        mask = mask & (window != 0.0)
    cross = tl.where(mask, cross, 0.0)
    strange += tl.sum(tl.where(cross - cross == 0.0, 0, 1), 0)
    gram = tl.where(mask[:, None] & mask[None, :], gram, 0.0)
    noise = tl.where(mask, number(ridge, ridge_is_pointer), 1.0)
    # κ(0) = 1: the largest diagonal term, up to rounding, without taking it out of the matrix.
    largest = tl.max(tl.where(lanes < k, tl.where(mask, window * window, 0.0) + noise, 0.0), 0)
    matrix, forward, solved, attempt = factor_with_jitter(
        gram, noise, window * cross, largest, k, lanes, first_jitter, attempts
    )
    answer = window * substitute(matrix, forward, k, lanes)
    good = (solved == 1) & (strange == 0)
    answer = tl.where(good & mask, answer, 0.0)
    reduction = tl.sum(tl.where(good, cross * answer, 0.0), 0)
    tl.store(weights + query * k + lanes, answer, mask=lanes < k)
    tl.store(variance + query, tl.minimum(tl.maximum(1.0 - reduction, 0.0), 1.0))
    tl.store(jittered + query, (solved == 1) & (attempt > 1))
    tl.store(failed + query, (solved == 0) | (strange > 0))
