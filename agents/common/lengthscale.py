"""The lengthscale of a value head, from how far its supports lie apart and from how well they predict each other."""

from __future__ import annotations

import math

import torch

from agents.common.regression_config import RegressionConfig
from skrl.kernels.formulas import make_kernel
from skrl.search.neighbors import Neighbors, gather_points, within_radius
from skrl.shapes import Float, Tensor
from skrl.solve.local_solve import factorise
from skrl.tuning import median_neighbor_distance
from skrl.value_heads import ResidualHead, ValueHead

MULTIPLES = (1.0, 0.5, 2.0, 4.0)
"""Of the configured length, among which leave-one-out errors choose; the first one until there are any."""

TABULAR = 0.001
"""Lengthscale between states that are only told apart, as a share of the distance between their features."""

PROBES = 256
"""Support points per action from which lengthscale and leave-one-out error are estimated."""


def separates(config: RegressionConfig) -> bool:
    """Whether a kernel is to read numbered states as such, being nothing at all between those that are told apart.

    Beside features that a network learned, or in a kernel of directions, a number would be a coordinate.
    """
    kernel = make_kernel(config.kernel, 1)
    is_zero = kernel.is_radial and bool(kernel(torch.tensor(1.0 / TABULAR, dtype=torch.float64)) == 0.0)
    return is_zero and config.reads_observation_alone


class LengthscaleRule:
    """Sets the lengthscale when supports are chosen; judges it when their residuals are known.

    Weights, and tables of them, are made with the lengthscale, so a judgement waits for the next choice of supports.

    Args:
        head: the value head, which is written.
        config: factor and rule.
        generator: draws the probes.
    """

    def __init__(self, head: ValueHead, config: RegressionConfig, generator: torch.Generator) -> None:
        self.head, self.config, self.generator = head, config, generator
        # That of a loaded head goes on.
        self.multiple = self._present_multiple() if config.lengthscale_rule == "leave_one_out" else MULTIPLES[0]
        self.is_tabular = False

    @torch.no_grad()
    def apply(self, gap: Float[Tensor, ""] | None = None) -> None:
        """Write the chosen multiple of ``lengthscale_factor`` times the median distance to the k-th neighbour.

        Args:
            gap: distance between features of different states where it says nothing of how alike they are: the kernel
                then knows a state by its own visits alone.
        """
        self.is_tabular = gap is not None
        if gap is not None:
            self.head.lengthscale.copy_(TABULAR * gap)
            return
        self.head.lengthscale.copy_(self.config.lengthscale_factor * self.multiple * self._distance())

    @torch.no_grad()
    def judge(self) -> Float[Tensor, ""]:
        """Let leave-one-out errors choose the multiple, if that is the rule; for heads that solve.

        Returns:
            Leave-one-out error at the present lengthscale, in the units of the residuals.
        """
        neighbors, radius = self.probes()
        present = self.head.lengthscale
        error = self.error(neighbors, radius, present)
        if self.config.lengthscale_rule == "leave_one_out" and not self.is_tabular:
            unit = present / self.multiple
            errors = torch.stack([self.error(neighbors, radius, multiple * unit) for multiple in MULTIPLES])
            self.multiple = MULTIPLES[int(errors.argmin())]
        return error

    def probes(self) -> tuple[Neighbors, Tensor | None]:
        """Neighbours of some supports per action, and where their windows end, if there are any."""
        head = self.head
        near = self._near_probes(head.k + (head.localisation == "continuous"))
        return within_radius(near, head.k, head.localisation)

    def error(
        self, neighbors: Neighbors, radius: Tensor | None, lengthscale: Tensor, ridge: Tensor | float | None = None
    ) -> Float[Tensor, ""]:
        """Root mean square of the leave-one-out errors of neighbours, at the head's own λ unless one is given."""
        memory, head = self.head.memory, self.head
        assert isinstance(head, ResidualHead)
        ridge = head.scaled_ridge if ridge is None else ridge
        system = factorise(neighbors, memory.features, head.kernel, lengthscale, ridge, radius)
        residuals = gather_points(memory.targets, neighbors.indices).to(system.factor.dtype)
        return system.root_mean_square(head.leave_one_out(system, residuals))

    def _distance(self) -> Float[Tensor, ""]:
        """Median distance to the k-th neighbour."""
        # One more neighbour than k, since every probe finds itself.
        return median_neighbor_distance(self._near_probes(self.head.k + 1))

    @torch.no_grad()
    def _present_multiple(self) -> float:
        """What the head's lengthscale was made with; the first where there are no supports, or none explains it.

        Distances of other probes differ by a little, multiples by two or more.
        """
        if not self.head.memory.mask.any():
            return MULTIPLES[0]
        ratio = float(self.head.lengthscale / (self.config.lengthscale_factor * self._distance()))
        differences = {multiple: abs(math.log2(ratio / multiple)) for multiple in MULTIPLES}
        nearest = min(differences, key=differences.__getitem__)
        return nearest if differences[nearest] < 0.5 else MULTIPLES[0]

    def _near_probes(self, k: int) -> Neighbors:
        """The k nearest supports of some random ones per action; of an empty set's zero padding."""
        memory = self.head.memory
        uniform = torch.rand(memory.sets, PROBES, generator=self.generator).to(memory.sizes.device)
        positions = (uniform * memory.sizes.unsqueeze(1)).long()
        probes = memory.features.gather(1, positions.unsqueeze(-1).expand(-1, -1, memory.features.shape[-1]))
        return self.head.search(probes, memory.features, k, memory.half_norms)
