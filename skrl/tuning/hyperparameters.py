"""Lengthscale, ridge and number of neighbours from the data: :func:`tune`, and heuristics from distances alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from skrl.checks import as_neighbors, check_ridge
from skrl.functional import make_support
from skrl.kernels.algebra import Kernel
from skrl.kernels.formulas import make_kernel
from skrl.modes import full_precision, precise
from skrl.search.exact import as_search
from skrl.search.neighbors import Localisation, Neighbors, NeighborSearch, gather_points
from skrl.shapes import Float, Tensor
from skrl.solve.local_solve import factorise
from skrl.tuning.leave_one_out import MAX_PROBES, Objective, affordable_probes, column_scales, probe_rows
from skrl.tuning.probes import Probes
from skrl.tuning.sweep import Axis, Sweep

DEFAULT_RIDGE = 1e-2
"""λ where there is nothing to tune on, in units of κ(z, z)."""

FEWEST = 4
"""Supports below which leave-one-out errors say nothing."""

ROUNDS = 6
"""Stencils around the best setting; each either moves there or halves its step."""

LENGTHSCALE_STEP, RIDGE_STEP = 2.0**0.25, 10.0**0.125
"""Smallest steps: a quarter of an octave and an eighth of a decade."""


class Tuned(NamedTuple):
    """Settings with the smallest leave-one-out loss.

    Attributes:
        lengthscale: ℓ, in the units of the features; what was given where it was fixed.
        ridge: λ.
        k: neighbours per query.
        score: mean loss over the probes, see :func:`skrl.tuning.leave_one_out.leave_one_out_loss`; NaN where there was
            nothing to tune on.
    """

    lengthscale: Tensor | float
    ridge: float
    k: int
    score: float


@torch.no_grad()
def tune(
    features: Float[Tensor, "points dim"],
    residuals: Float[Tensor, "points targets"],
    kernel: str | Kernel,
    *,
    k: int | Sequence[int] = (16, 32, 64),
    lengthscale: Float[Tensor, ""] | Float[Tensor, " dim"] | float | None = None,
    ridge: Float[Tensor, ""] | float | None = None,
    objective: Objective = "error",
    search: NeighborSearch | None = None,
    localisation: Localisation = "hard",
    probes: int = MAX_PROBES,
    rounds: int = ROUNDS,
) -> Tuned:
    """Sweep lengthscale, ridge and k for the smallest leave-one-out loss of the local predictor; deterministic.

    Args:
        features: X, [M, d]; a row that is not finite does not count, nor one that
            :func:`skrl.functional.make_support` leaves out.
        residuals: y − m of the supports, [M, c]; likewise.
        kernel: a kernel or its name.
        k: neighbours per query, or candidates for it.
        lengthscale: ℓ > 0 to keep, one or one per dimension; swept when left out.
        ridge: λ ≥ 0 to keep; swept when left out.
        objective: "error" or "likelihood", see :func:`skrl.tuning.leave_one_out.leave_one_out_loss`.
        search: how neighbours are found; exact by default.
        localisation: hard or continuous.
        probes: supports whose errors are looked at, evenly spaced; fewer than asked for where k exceeds 64.
        rounds: stencils of each refinement; 0 keeps the coarse grid.

    Returns:
        Settings and their loss. Below four supports, what is swept has its default: twice the median distance to the
        k-th neighbour, 1 below two supports, and λ = 0.01 κ(z, z).

    Raises:
        TypeError: k is not a whole number.
        ValueError: k, ridge, probes or rounds is out of range, or the objective or the localisation is unknown.
    """
    k = as_neighbors(k)
    candidates = sorted(set(k)) if isinstance(k, tuple) else [k]
    if ridge is not None:
        check_ridge(ridge)
        ridge = float(ridge)
    _check(features, residuals, candidates, probes, rounds)
    kernel = make_kernel(kernel, max(1, features.shape[1]))
    finite = features.isfinite().all(-1) & residuals.isfinite().all(-1)
    points, values = precise(features.detach()[finite]), precise(residuals.detach()[finite])
    if len(points) < 2 or values.shape[1] == 0:
        default = DEFAULT_RIDGE * kernel.prior_variance if ridge is None else ridge
        return Tuned(1.0 if lengthscale is None else lengthscale, default, candidates[0], math.nan)
    unit = _spread(points) if lengthscale is None else lengthscale
    with full_precision(points.device.type):
        support = make_support(points, unit, search)
        if not bool(support.kept.all()):
            return tune(
                points[support.kept], values[support.kept], kernel, k=k, lengthscale=lengthscale, ridge=ridge,
                objective=objective, search=search, localisation=localisation, probes=probes, rounds=rounds,
            )  # fmt: skip
        standardised = (values / column_scales(values)).to(support.points.dtype)
        most = affordable_probes(probes, min(candidates[-1], len(points) - 1))
        probed = Probes.of(support.index, support.points, standardised, kernel, candidates[-1], most, localisation)
        sweep = Sweep(probed, _lengthscales(probed, lengthscale is None), _ridges(probed, ridge), objective)
        best, position = sweep.settings(candidates, rounds)
        score = float(sweep.losses(best, [position]).mean())
    if lengthscale is None:
        lengthscale = sweep.lengthscales.value(position[0]) * unit
    return Tuned(lengthscale, sweep.ridges.value(position[1]), best, score)


def _check(features: Tensor, residuals: Tensor, candidates: list[int], probes: int, rounds: int) -> None:
    if features.dim() != 2 or residuals.dim() != 2 or len(features) != len(residuals):
        raise ValueError(
            f"features have shape {tuple(features.shape)} and residuals {tuple(residuals.shape)}, "
            "but must be [points, dim] and [points, targets] with equally many points"
        )
    if not candidates or candidates[0] < 1:
        raise ValueError(f"k is {candidates}, but needs one or several numbers of at least 1")
    if probes < 1 or rounds < 0:
        raise ValueError(f"probes is {probes} and rounds is {rounds}, but must be at least 1 and 0")


def _spread(points: Tensor) -> float:
    """Mean absolute deviation, one when it is zero: in its units squares neither overflow nor vanish."""
    spread = float((points - points.mean(0)).abs().mean()) if points.numel() else 0.0
    if not math.isfinite(spread):
        # A sum has overflowed: once more in units of the largest entry.
        largest = points.abs().max()
        spread = float(largest) * _spread(points / largest)
    return spread if spread > 0.0 else 1.0


def _lengthscales(probes: Probes, swept: bool) -> Axis:
    """Half the distance to the nearest other support to 32 times that to the farthest; the default at position zero.

    Below, every prediction is the prior; above, the loss depends on a product of powers of lengthscale and ridge alone.
    """
    if not swept:
        return Axis(1.0)
    indices, distances, mask = probes.neighbors
    far = float(median_neighbor_distance(probes.neighbors))
    if len(probes.points) < FEWEST or not bool((distances > 0).any()):
        return Axis(2.0 * far)
    near = float(median_neighbor_distance(Neighbors(indices[:, :1], distances[:, :1], mask[:, :1])))
    octaves = math.log2(min(1.0, near / far))
    return Axis(2.0 * far, LENGTHSCALE_STEP, max(-40, math.floor(4.0 * (octaves - 2.0))), 16)


def _ridges(probes: Probes, fixed: float | None) -> Axis:
    """From what the precision can tell from none to the prior for everything; the default at position zero."""
    if fixed is not None:
        return Axis(fixed)
    default = DEFAULT_RIDGE * probes.kernel.prior_variance
    if len(probes.points) < FEWEST:
        return Axis(default)
    return Axis(default, RIDGE_STEP, -40 if probes.points.dtype == torch.float32 else -64, 40)


def median_neighbor_distance(neighbors: Neighbors) -> Float[Tensor, ""]:
    """Median distance to the farthest of the k neighbours, over all queries that have one; 1 when there is none.

    The usual scale of local kernels: it follows the density of the supports and never needs all pairs. Distances of
    zero (duplicates) do not count, so constant features give 1.

    Args:
        neighbors: k neighbours of each of B queries, [*batch, B, k].

    Returns:
        A positive scalar in the units of the features.
    """
    if neighbors.mask.shape[-1] == 0:
        return neighbors.distances.new_ones(())
    farthest = torch.where(neighbors.mask, neighbors.distances, 0.0).amax(-1).flatten()
    positive = farthest > 0
    # nanmedian ignores the rows without a neighbour and stays on the device.
    median = torch.where(positive, farthest, torch.nan).nanmedian()
    return torch.where(median.isnan(), torch.ones_like(median), median)


def neighbor_lengthscale(
    features: Float[Tensor, "*batch points dim"],
    k: int,
    factor: float = 2.0,
    search: NeighborSearch | None = None,
) -> Float[Tensor, ""]:
    """Lengthscale as a multiple of the median distance to the k-th neighbour within a support set.

    Args:
        features: [*batch, M, d].
        k: neighbours of a query.
        factor: multiple of the median distance.
        search: how neighbours are found; exact by default.

    Returns:
        A positive scalar, detached.
    """
    search = as_search(search)
    with torch.no_grad():
        features = precise(features)
        queries = features.index_select(-2, probe_rows(features.shape[-2], device=features.device))
        return factor * median_neighbor_distance(search(queries, features, k + 1))


def leave_one_out_rmse(
    neighbors: Neighbors,
    features: Float[Tensor, "*support dim"],
    residuals: Float[Tensor, "*support targets"],
    kernel: str | Kernel,
    lengthscale: Float[Tensor, ""] | float,
    ridge: Float[Tensor, ""] | float,
    radius: Float[Tensor, "*queries"] | None = None,
) -> Float[Tensor, ""]:
    """Root mean square of the closed-form leave-one-out errors over a batch of local systems.

    Args:
        neighbors: k neighbours of each of B queries, [*batch, B, k].
        features: [*batch, M, d].
        residuals: y − m of the support set, [*batch, M, c].
        kernel: a radial kernel or its name.
        lengthscale: ℓ.
        ridge: λ.
        radius: where the windows of continuous localisation end, [*batch, B]; localisation is hard when left out.

    Returns:
        A scalar in the units of the targets, differentiable in ℓ and λ.
    """
    kernel = make_kernel(kernel, max(1, features.shape[-1]))
    with full_precision(features.device.type):
        system = factorise(neighbors, features, kernel, lengthscale, ridge, radius)
        residuals = gather_points(residuals, neighbors.indices).to(system.factor.dtype)
        return system.root_mean_square(system.leave_one_out(residuals))
