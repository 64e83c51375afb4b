"""How well a Sparse Kernel predicts its own supports when each is left out."""

from __future__ import annotations

from typing import NamedTuple

import torch

from skrl.kernels.formulas import make_kernel
from skrl.search.exact import as_search
from skrl.search.neighbors import Localisation, NeighborSearch, gather_points, local_neighbors
from skrl.shapes import Float, Int, Tensor
from skrl.solve.local_solve import factorise
from skrl.sparse_kernel import SparseKernel

MAX_PROBES = 1024
"""Supports that are left out, evenly spaced over the set."""

MAX_GRAM = 1 << 22
"""Entries of all Gram matrices that may be held at once."""


class HeldOut(NamedTuple):
    """Leave-one-out errors of some supports.

    Attributes:
        positions: which supports, [P].
        errors: y_i − f₋ᵢ(x_i), [P, c].
        precision: 1 / (σ²₋ᵢ(x_i) + λ), the inverse of the predictive variance, [P].
    """

    positions: Int[Tensor, " probes"]
    errors: Float[Tensor, "probes targets"]
    precision: Float[Tensor, " probes"]

    @property
    def mean_square(self) -> float:
        """Mean square of the errors; infinity when there are none."""
        return float(self.errors.square().mean().nan_to_num(float("inf")))


@torch.no_grad()
def held_out(
    kernel: SparseKernel,
    search: NeighborSearch | None = None,
    localisation: Localisation = "hard",
    probes: int = MAX_PROBES,
) -> HeldOut:
    """Predict supports from their k nearest others, in closed form (Rasmussen and Williams, 2006, section 5.4.2).

    Unlike the errors of all neighbours in a local system, which sit at its rim, these are errors of the very prediction
    that a query at that place would get.

    Args:
        kernel: a Sparse Kernel without a prior mean.
        search: how neighbours are found; exact by default.
        localisation: hard or continuous.
        probes: supports that are left out at most; fewer where their Gram matrices would hold too many entries.

    Returns:
        At most ``probes`` supports. A support with more than k duplicates may be missing.

    Raises:
        ValueError: supports, lengthscale or ridge are given at call time only.
    """
    features, targets, lengthscale, ridge = kernel.features, kernel.targets, kernel.lengthscale, kernel.ridge
    k = kernel.k
    if features is None or targets is None or lengthscale is None or ridge is None or not isinstance(k, int):
        raise ValueError("the Sparse Kernel has no supports or settings of its own; give them to its constructor")
    # In units of the lengthscale, which may be one per dimension.
    points = features.to(torch.promote_types(features.dtype, torch.float32)) / lengthscale
    count, size = len(points), k + 1
    probes = max(1, min(count, probes, MAX_GRAM // size**2))
    positions = torch.linspace(0, count - 1, probes, device=points.device, dtype=torch.float64).round().long()
    index = as_search(search).index(points)
    neighbors, radius = local_neighbors(index, points[positions], points, size, localisation)
    system = factorise(neighbors, points, make_kernel(kernel.kernel, points.shape[1]), 1.0, ridge, radius)
    local = gather_points(targets, neighbors.indices).to(system.factor.dtype)
    errors, precision = system.leave_one_out_with_precision(local)
    itself = (neighbors.indices == positions.unsqueeze(-1)) & neighbors.mask
    found = itself.any(-1)
    return HeldOut(positions[found], errors[itself], precision[itself])
