"""The selection rule that keeps what the memory cannot predict: admission and removal by posterior variance."""

from __future__ import annotations

import torch

from skrl.checks import check_neighbors, check_one_lengthscale, check_ridge
from skrl.kernels.algebra import Kernel
from skrl.kernels.distances import cross_distances
from skrl.kernels.formulas import make_kernel
from skrl.memory.selection_rule import SelectionRule, chunks, latest
from skrl.memory.support_memory import SupportMemory
from skrl.modes import precise
from skrl.search.exact import smallest
from skrl.search.neighbors import Neighbors
from skrl.shapes import Bool, Float, Int, Tensor
from skrl.solve.local_solve import LocalSystem, factorise


class Novelty(SelectionRule):
    """Keeps rows about which the memory knows little: those whose posterior variance σ² exceeds a threshold.

    While slots are free, a row enters where σ² by the local system over its k nearest supports exceeds the threshold.
    So every two supports stay novel to each other: κ₀ − κ(x_i, x_j)² / (κ₀ + λ) > threshold, κ₀ = κ(x, x).

    When the memory is full, the pool of supports and newcomer loses its most redundant member: the one with the least
    variance given all the others (by its k nearest). If that is the newcomer, nothing changes. With k ≥ C every
    exchange thereby increases det(K + λI), the information in the memory, so no cycle can arise; with fewer
    neighbours that holds up to localisation. It is P-greedy selection, :func:`skrl.memory.subsets.p_greedy`, turned
    into a stream of single exchanges. Looking at all C variances would cost O(C² d); instead each support carries the
    last known bound on its own, and only the ``CANDIDATES`` lowest are measured anew.

    A row that does not enter changes nothing, its target included. A threshold below κ₀ λ / (κ₀ + λ), the variance on
    top of one support, lets about λ / threshold rows enter at one place, which averages their noise.

    Admission by conditional variance: Y. Engel, S. Mannor and R. Meir, *The Kernel Recursive Least-Squares Algorithm*,
    2004. Removal of the least informative: L. Csató and M. Opper, *Sparse On-Line Gaussian Processes*, 2002. Exchanges
    that increase a determinant: V. Fedorov, *Theory of Optimal Experiments*, 1972.

    Args:
        memory: the memory to fill.
        threshold: least σ² of a newcomer, 0 ≤ threshold < κ₀; named kernels have κ₀ = 1.
        kernel: a radial kernel or its name.
        lengthscale: ℓ > 0, in the units of the features. It is a buffer; call :meth:`adopt` after changing it.
        ridge: λ ≥ 0.
        k: neighbours of a local system.

    Raises:
        TypeError: k is not a whole number.
        ValueError: a setting is out of its range or the kernel is not radial.
    """

    CANDIDATES = 4
    """Supports whose variance is measured anew before one of them makes room."""

    lengthscale: Tensor
    bounds: Tensor

    def __init__(
        self,
        memory: SupportMemory,
        *,
        threshold: float = 0.1,
        kernel: str | Kernel = "matern32",
        lengthscale: float = 1.0,
        ridge: float = 1e-2,
        k: int = 16,
    ) -> None:
        super().__init__(memory)
        self.kernel = make_kernel(kernel, memory.features.shape[-1])
        _check_novelty(self.kernel, threshold, lengthscale, ridge, k, memory.capacity)
        self.threshold, self.ridge, self.k = threshold, ridge, min(k, memory.capacity)
        dtype = torch.promote_types(memory.features.dtype, torch.float32)
        self.register_buffer("lengthscale", torch.tensor(lengthscale, dtype=dtype, device=memory.features.device))
        self.register_buffer("bounds", torch.zeros_like(memory.half_norms))
        self.adopt()

    @torch.no_grad()
    def adopt(self) -> None:
        """See :class:`SelectionRule`; measures every support anew, in O(C² d + C k³) time."""
        super().adopt()
        self.bounds.fill_(torch.inf)
        for set_index, present in enumerate(self.memory.mask):
            points = precise(self.memory.features[set_index])
            for members in chunks(present.nonzero().flatten(), self.CANDIDATES):
                self.bounds[set_index, members] = self._left_out(points, present, members).to(self.bounds)

    def place(
        self, features: Float[Tensor, "rows dim"], targets: Float[Tensor, "rows targets"], set_index: int
    ) -> Int[Tensor, " rows"]:
        """See :class:`SelectionRule`."""
        rows = torch.arange(len(features), device=features.device)
        slots = [self._place_one(features[row], targets[row], set_index) for row in chunks(rows, 1)]
        return latest(torch.cat(slots), self.memory.capacity)

    def _place_one(self, row: Tensor, target: Tensor, set_index: int) -> Tensor:
        """The slot that a row took, −1 where it took none, [1]."""
        memory, bounds = self.memory, self.bounds[set_index]
        pool = precise(torch.cat([memory.features[set_index], row]))
        present = torch.cat([memory.mask[set_index], memory.mask.new_ones(1)])
        newcomer = torch.full_like(memory.sizes[:1], memory.capacity)
        variance = self._left_out(pool, present, newcomer)
        if not bool(variance > self.threshold):
            return torch.full_like(newcomer, -1)
        if bool(memory.mask[set_index].all()):
            candidates = smallest(bounds, min(self.CANDIDATES, memory.capacity))[1]
            bounds[candidates] = self._left_out(pool, present, candidates).to(bounds)
            slot = candidates[bounds[candidates].argmin(keepdim=True)]
            if not bool(bounds[slot] < variance):
                return torch.full_like(newcomer, -1)
            memory.write_slots(slot, row, target, set_index)
        else:
            slot = memory.append(row, target, set_index)
        bounds[slot] = variance.to(bounds)
        self._tighten(set_index, slot)
        return slot

    def _left_out(
        self, pool: Float[Tensor, "pool dim"], present: Bool[Tensor, " pool"], members: Int[Tensor, " members"]
    ) -> Float[Tensor, " members"]:
        """σ² of members of a pool, each given its k nearest others."""
        others = present.expand(len(members), -1).scatter(1, members.unsqueeze(1), False)
        system = self._systems(pool[members], pool, others, self.k)[0]
        return system.variance(system.weights())

    def _tighten(self, set_index: int, slot: Int[Tensor, "1"]) -> None:
        """Lower the bounds around a new support: within its local system one factor gives every variance left out."""
        points = precise(self.memory.features[set_index])
        usable = self.memory.mask[set_index].unsqueeze(0)
        system, indices = self._systems(points[slot], points, usable, self.k + 1)
        _, precision = system.leave_one_out_with_precision(torch.zeros_like(system.cross).unsqueeze(-1))
        variance = torch.where(system.mask, (1.0 / precision - self.ridge).clamp(min=0.0), torch.inf)
        self.bounds[set_index].scatter_reduce_(0, indices[0], variance[0].to(self.bounds), "amin")

    def _systems(
        self,
        queries: Float[Tensor, "queries dim"],
        points: Float[Tensor, "points dim"],
        usable: Bool[Tensor, "queries points"],
        k: int,
    ) -> tuple[LocalSystem, Int[Tensor, "queries k"]]:
        """Local systems over the k nearest usable points, and which these are."""
        distances = cross_distances(queries, points.expand(len(queries), *points.shape))
        nearest, indices = smallest(torch.where(usable, distances, torch.inf), min(k, len(points)))
        mask = nearest.isfinite()
        neighbors = Neighbors(torch.where(mask, indices, 0), torch.where(mask, nearest, 0.0), mask)
        return factorise(neighbors, points, self.kernel, self.lengthscale, self.ridge), neighbors.indices


def _check_novelty(kernel: Kernel, threshold: float, lengthscale: float, ridge: float, k: int, capacity: int) -> None:
    if not kernel.is_radial:
        raise ValueError(f"kernel is {kernel}, but the variance of one support given others needs a radial kernel")
    if not 0.0 <= threshold < kernel.prior_variance:
        raise ValueError(
            f"threshold is {threshold}, but must lie in [0, {kernel.prior_variance}): the variance is "
            f"{kernel.prior_variance} where nothing is known, so nothing would ever enter"
        )
    check_one_lengthscale(lengthscale, torch.float32)
    check_ridge(ridge)
    check_neighbors(k, capacity)
