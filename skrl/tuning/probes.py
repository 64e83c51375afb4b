"""Probes: support points whose leave-one-out predictions are wanted at many settings.

Distances are measured once. On a CPU, with a radial kernel, compiled loops solve the local systems; elsewhere plain
torch does, to the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from skrl.compiling import Array, compiles, over_rows
from skrl.kernels.algebra import Kernel
from skrl.search.neighbors import Localisation, NeighborIndex, Neighbors, within_radius
from skrl.shapes import Float, Int, Tensor
from skrl.solve import compiled_solve
from skrl.solve.cholesky import JITTERS
from skrl.solve.local_solve import Prediction, window_roots
from skrl.solve.local_weights import weighted_means
from skrl.tuning.leave_one_out import nearest_others, predict_probes, probe_rows

MAX_VALUES = 1 << 17
"""Distances at which a kernel is evaluated at once: what its formula keeps in between stays in a cache."""


class Probes:
    """Some supports and their nearest others.

    Args:
        points: support points in units in which squares neither overflow nor vanish, [M, d].
        residuals: y − m, [M, c].
        rows: positions of the probes, [P].
        neighbors: their nearest others, [P, K].
        kernel: a kernel.
        localisation: hard or continuous.
    """

    def __init__(
        self,
        points: Float[Tensor, "points dim"],
        residuals: Float[Tensor, "points targets"],
        rows: Int[Tensor, " probes"],
        neighbors: Neighbors,
        kernel: Kernel,
        localisation: Localisation,
    ) -> None:
        self.points, self.residuals, self.rows, self.neighbors = points, residuals, rows, neighbors
        self.kernel, self.localisation = kernel, localisation
        self.targets = residuals[rows]
        self._compiles = kernel.is_radial and compiles(points, residuals)
        self._all_distances: Array | None = None
        self._measured: dict[int, tuple[Array, Array]] = {}

    @classmethod
    def of(
        cls,
        index: NeighborIndex,
        points: Float[Tensor, "points dim"],
        residuals: Float[Tensor, "points targets"],
        kernel: Kernel,
        k: int,
        most: int,
        localisation: Localisation,
    ) -> Probes:
        """At most ``most`` probes, evenly spaced, and as many nearest others as ``k`` neighbours need."""
        rows = probe_rows(len(points), most, points.device)
        neighbors = nearest_others(index, points, rows, k + (localisation == "continuous"))
        return cls(points, residuals, rows, neighbors, kernel, localisation)

    def thinned(self, most: int) -> Probes:
        """At most ``most`` of these probes, evenly spaced."""
        kept = probe_rows(len(self.rows), most, self.rows.device)
        neighbors = Neighbors(*(values[kept] for values in self.neighbors))
        return Probes(self.points, self.residuals, self.rows[kept], neighbors, self.kernel, self.localisation)

    def predictions(self, lengthscale: float, ridges: Sequence[float], k: int) -> Iterator[Prediction]:
        """Predictions of the probes without themselves for every ridge, mean [P, c] and variance [P] each.

        Args:
            lengthscale: ℓ, in units of the points.
            ridges: λ.
            k: nearest others that are read, of which there are at most K.
        """
        k = min(k, self.neighbors.mask.shape[1])
        if not self._compiles:
            neighbors, radius = within_radius(self.neighbors, k, self.localisation)
            for ridge in ridges:
                yield predict_probes(neighbors, self.points, self.residuals, self.kernel, lengthscale, ridge, radius)
            return
        distances, windows = self._measure(k)
        values = _kernel_values(self.kernel, distances, lengthscale)
        for ridge in ridges:
            yield self._solve(values, windows, k, ridge)

    def _measure(self, k: int) -> tuple[Array, Array]:
        """Distances of the systems of k neighbours, as `compiled_solve` lays them out, and their windows."""
        if k not in self._measured:
            every, width = self._every_distance(), self.neighbors.mask.shape[1]
            # Pairs stand row by row, so those of the first k neighbours come first.
            distances = np.concatenate([every[:, :k], every[:, width : width + k * (k - 1) // 2]], axis=1)
            neighbors, radius = within_radius(self.neighbors, k, self.localisation)
            windows = neighbors.distances[:, :0] if radius is None else window_roots(neighbors.distances, radius)
            self._measured[k] = distances, windows.numpy()
        return self._measured[k]

    def _every_distance(self) -> Array:
        if self._all_distances is None:
            indices, mask = self.neighbors.indices.numpy(), self.neighbors.mask.numpy()
            probes, width = indices.shape
            distances = np.empty((probes, width + width * (width - 1) // 2), self.points.numpy().dtype)
            queries, points, none = self.points[self.rows].numpy(), self.points.unsqueeze(0).numpy(), distances[:, :0]
            over_rows(
                lambda start, stop: compiled_solve.measure_rows(
                    queries, points, probes, start, indices, mask, distances[start:stop], none[start:stop]
                ),
                probes,
                width * width * (1e-9 + 3e-11 * points.shape[-1]),
            )
            self._all_distances = distances
        return self._all_distances

    def _solve(self, values: Array, windows: Array, k: int, ridge: float) -> Prediction:
        probes, mask, prior = len(values), self.neighbors.mask.numpy(), self.kernel.prior_variance
        weights, variance = np.empty((probes, k), values.dtype), np.empty(probes, values.dtype)
        jitters: Array = np.array(JITTERS, values.dtype)
        jittered, failed = np.empty((2, probes), np.bool_)
        arrays = weights, variance, jittered, failed

        def solve(start: int, stop: int) -> None:
            part = slice(start, stop)
            answers = (array[part] for array in arrays)
            compiled_solve.solve_rows(values[part], windows[part], mask[part], prior, ridge, jitters, *answers)

        over_rows(solve, probes, 3e-11 * k**3 + 3e-9 * k * k)
        means = weighted_means(self.neighbors.indices, torch.from_numpy(weights), self.residuals)
        return Prediction(means, torch.from_numpy(variance))


def _kernel_values(kernel: Kernel, distances: Array, lengthscale: float) -> Array:
    """κ(distance / ℓ); the kernel keeps its one formula, and torch evaluates it."""
    values = np.empty_like(distances)
    rows = max(1, MAX_VALUES // max(1, distances.shape[1]))
    for start in range(0, len(distances), rows):
        chunk = slice(start, start + rows)
        values[chunk] = kernel(torch.from_numpy(distances[chunk]) / lengthscale).detach().numpy()
    return values
