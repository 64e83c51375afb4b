"""Local predictions by compiled loops that carry gradients: an adjoint solve per query, no graph of operations."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from skrl.compiling import Array, compiles, over_rows
from skrl.kernels.algebra import Kernel
from skrl.kernels.distances import cross_distances
from skrl.modes import batched, forwards, full_precision, traced
from skrl.search.neighbors import Localisation, Neighbors, gather_points, within_radius
from skrl.shapes import Bool, Float, Int, Tensor
from skrl.solve import compiled_solve
from skrl.solve.cholesky import JITTERS
from skrl.solve.compiled_gradient import adjoint_rows
from skrl.solve.local_solve import factorise
from skrl.solve.local_weights import MAX_GRAM, compiled_weights, weighted_means


def learns(kernel: Kernel, points: Tensor) -> bool:
    """Whether a gradient is recorded and the kernel has parameters of its own that ask for it."""
    if kernel.is_built_in or not torch.is_grad_enabled() or traced():
        return False
    cross = points.new_zeros(1)
    return kernel.blocks(cross, cross.unsqueeze(0))[0].requires_grad


def carries_gradients(kernel: Kernel, points: Tensor) -> bool:
    """Whether :func:`differentiable_means` serves these points, on a CPU, and passes on all that is asked for.

    That is gradients backwards, and none in a kernel's own parameters.
    """
    return kernel.is_radial and compiles(points.detach()) and not learns(kernel, points)


def differentiable_means(
    queries: Float[Tensor, "queries dim"],
    points: Float[Tensor, "points dim"],
    targets: Float[Tensor, "points targets"],
    ridge: Float[Tensor, ""] | float,
    found: Int[Tensor, "queries found"],
    present: Bool[Tensor, "queries found"],
    kernel: Kernel,
    k: int,
    localisation: Localisation,
) -> tuple[Float[Tensor, "queries targets"], Float[Tensor, " queries"]]:
    """Means and variances, to the numbers of plain torch, with gradients in queries, points, targets and ridge.

    Gradients of gradients, and those of many mixtures of the answers at once, come from plain torch.

    Args:
        queries: in units of the lengthscale, [B, d].
        points: likewise, [M, d].
        targets: [M, c].
        ridge: λ.
        found: the min(k, M) neighbours, or one more for windows, [B, ·].
        present: where a neighbour exists, likewise.
        kernel: a radial kernel.
        k: neighbours per query.
        localisation: hard or continuous.
    """
    ridge = torch.as_tensor(ridge, dtype=points.dtype, device=points.device)
    means, variances = _Means.apply(queries, points, targets, ridge, found, present, kernel, k, localisation)  # type: ignore[no-untyped-call]
    return means, variances


class _Means(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        points: Tensor,
        targets: Tensor,
        ridge: Tensor,
        found: Tensor,
        present: Tensor,
        kernel: Kernel,
        k: int,
        localisation: Localisation,
    ) -> tuple[Tensor, Tensor]:
        local = compiled_weights(
            queries.unsqueeze(0), points.unsqueeze(0), found, present, kernel, 1.0, ridge.item(), k, localisation
        )
        ctx.settings = kernel, k, localisation
        ctx.save_for_backward(
            queries, points, targets, ridge, found, present, local.weights[0], local.variance[0], local.failed[0]
        )
        return weighted_means(found, local.weights[0], targets), local.variance[0]

    @staticmethod
    def backward(ctx: Any, mean_bar: Tensor, variance_bar: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, found, present, weights, variance, failed = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:4]
        settings = ctx.settings
        if torch.is_grad_enabled() or traced() or forwards() or batched(mean_bar, variance_bar):
            gradients = _plain_gradients(inputs, wanted, found, present, settings, (mean_bar, variance_bar))
        else:
            gradients = _compiled_gradients(
                inputs, wanted, found, present, settings, (mean_bar, variance_bar), (weights, variance, failed)
            )
        return (*gradients, None, None, None, None, None)


def _plain_gradients(
    inputs: list[Tensor],
    wanted: tuple[bool, ...],
    found: Tensor,
    present: Tensor,
    settings: tuple[Kernel, int, Localisation],
    bars: tuple[Tensor, Tensor],
) -> list[Tensor | None]:
    """The same by operations that can be differentiated again, and whose outer gradients may be a batch."""
    again = torch.is_grad_enabled()
    with full_precision(inputs[0].device.type):
        with torch.enable_grad():
            # Gradients stop at these aliases: one input may be a function of another, through the caller's own graph.
            aliases = [value.view_as(value) for value in inputs]
            outputs = _plain_answers(aliases, found, present, settings)
        asked = [value for value, is_wanted in zip(aliases, wanted, strict=True) if is_wanted]
        # The variance knows nothing of targets.
        reached, outer = zip(*(pair for pair in zip(outputs, bars, strict=True) if pair[0].requires_grad), strict=True)
        gradients = iter(torch.autograd.grad(reached, asked, outer, create_graph=again, allow_unused=True))
    return [next(gradients) if is_wanted else None for is_wanted in wanted]


def _plain_answers(
    inputs: list[Tensor], found: Tensor, present: Tensor, settings: tuple[Kernel, int, Localisation]
) -> tuple[Tensor, Tensor]:
    queries, points, targets, ridge = inputs
    kernel, k, localisation = settings
    distances = cross_distances(queries, gather_points(points, found))
    measured = Neighbors(found, torch.where(present, distances, 0.0), present)
    neighbors, radius = within_radius(measured, min(k, len(points)), localisation)
    system = factorise(neighbors, points, kernel, 1.0, ridge, radius)
    weights = system.weights()
    means = (weights.unsqueeze(-2) @ gather_points(targets, neighbors.indices)).squeeze(-2)
    return means, system.variance(weights)


def _compiled_gradients(
    inputs: list[Tensor],
    wanted: tuple[bool, ...],
    found: Tensor,
    present: Tensor,
    settings: tuple[Kernel, int, Localisation],
    bars: tuple[Tensor, Tensor],
    answers: tuple[Tensor, Tensor, Tensor],
) -> list[Tensor | None]:
    queries, points, targets, ridge = inputs
    kernel, _, localisation = settings
    rows, k = answers[0].shape
    columns, windowed = k + k * (k - 1) // 2, localisation == "continuous"
    arrays = [value.detach().contiguous().numpy() for value in (queries, points, targets, found, present)]
    centres, places, outcomes, indices, mask = arrays
    mean_bar, variance_bar = (bar.contiguous().numpy() for bar in bars)
    weights, variance, failed = (answer.numpy() for answer in answers)
    jitters = np.array(JITTERS, places.dtype)
    # Nothing is summed up where nobody asks.
    bars_of = (
        torch.zeros_like(queries),
        *(
            torch.zeros_like(value if is_wanted else value[:0])
            for value, is_wanted in ((points, wanted[1]), (targets, wanted[2]))
        ),
    )
    queries_bar, *sums = (bar.numpy() for bar in bars_of)
    parts: dict[int, tuple[float, list[Array]]] = {}

    def differentiate(start: int, stop: int) -> None:
        whole = start == 0 and stop == rows
        own = sums if whole else [np.zeros_like(total) for total in sums]
        of_ridge, chunk_rows = 0.0, max(1, MAX_GRAM // max(1, columns))
        for first in range(start, stop, chunk_rows):
            count = min(first + chunk_rows, stop) - first
            distances = np.empty((count, columns), places.dtype)
            windows = np.empty((count, k if windowed else 0), places.dtype)
            compiled_solve.measure_rows(centres, places[None], rows, first, indices, mask, distances, windows)
            values, slopes = _values_and_slopes(kernel, torch.from_numpy(distances))
            of_ridge += adjoint_rows(
                centres, places, outcomes, indices, mask, first, distances, values, slopes, windows,
                kernel.prior_variance, ridge.item(), jitters, weights, variance, failed,
                mean_bar, variance_bar, queries_bar, *own,
            )  # fmt: skip
        parts[start] = of_ridge, own

    over_rows(differentiate, rows, k * k * (1e-8 + 6e-11 * (places.shape[-1] + k)) + 4e-10 * k * outcomes.shape[1])
    ridge_bar = 0.0
    # In the order of the rows, whichever thread is done first: the same sum every time.
    for _, (of_ridge, own) in sorted(parts.items(), key=lambda item: item[0]):
        ridge_bar += of_ridge
        if own is not sums:
            for total, part in zip(sums, own, strict=True):
                total += part
    given = *bars_of, torch.full_like(ridge, ridge_bar)
    return [bar if is_wanted else None for bar, is_wanted in zip(given, wanted, strict=True)]


def _values_and_slopes(kernel: Kernel, r: Tensor) -> tuple[Array, Array]:
    """κ(r) and κ'(r) by the kernel's one formula."""
    with torch.enable_grad():
        r.requires_grad_()
        values = kernel(r)
        # A constant kernel does not depend on the distance.
        (slopes,) = torch.autograd.grad(values.sum() + 0.0 * r.sum(), r)
    r.requires_grad_(False)
    return values.detach().numpy(), slopes.numpy()
