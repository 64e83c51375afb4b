"""Few queries at a time with as few calls as possible, since every tensor operation costs a microsecond.

The numbers are those of :func:`skrl.functional.sparse_kernel`.
"""

from __future__ import annotations

import numpy as np
import torch

from skrl.compiling import Array, compiles
from skrl.functional import Support
from skrl.kernels.algebra import Kernel
from skrl.search import exact
from skrl.search.exact import ExactIndex, inner_products
from skrl.search.neighbors import Localisation
from skrl.shapes import Float, Tensor
from skrl.solve.cholesky import JITTERS
from skrl.solve.compiled_kernels import CODES, MAX_DISTANCES, predict_few, scale_rows
from skrl.solve.local_solve import Prediction


class FewQueries:
    """Answers few queries at a time from fixed supports on a CPU.

    Args:
        support: the supports made ready by exact search.
        targets: [M, c], of the supports' precision.
        kernel: a kernel with a compiled formula.
        lengthscale: ℓ, one or one per dimension.
        ridge: λ.
        k: neighbours.
        localisation: hard or continuous.
    """

    def __init__(
        self,
        support: Support,
        targets: Float[Tensor, "points targets"],
        kernel: Kernel,
        lengthscale: Tensor | float,
        ridge: float,
        k: int,
        localisation: Localisation,
    ) -> None:
        index = support.index
        assert isinstance(index, ExactIndex)
        points = index.features.detach()
        self.dtype, self.dim = support.points.dtype, points.shape[1]
        scale = torch.as_tensor(lengthscale, dtype=self.dtype, device=points.device).expand(self.dim)
        self.tiled = index.is_tiled
        columns, norms = index.tiles() if self.tiled else (points.new_zeros(0, 0, 0, 0), index.half_norms)
        flat_norms = norms if self.tiled else norms.view(1, 1, -1)
        origin = support.centre if index.centre is None else support.centre + index.centre.flatten() * scale
        self.points, self.targets = points.numpy(), targets.detach().numpy()
        self.origin, self.scale = origin.numpy(), scale.contiguous().numpy()
        self.columns, self.half_norms = columns.to(self.dtype).numpy(), flat_norms.numpy()
        self.jitters: Array = np.array(JITTERS, self.points.dtype)
        self.k = min(k, len(points))
        self.width = columns.shape[2] if self.tiled else self.dim
        self.code, self.ridge, self.windowed = CODES[type(kernel)], ridge, localisation == "continuous"

    @staticmethod
    def is_possible(support: Support, targets: Tensor, kernel: Kernel) -> bool:
        """Whether such supports and such a kernel have this way."""
        return (
            type(kernel) in CODES
            and type(support.index) is ExactIndex
            and compiles(support.points, targets.detach())
            and len(targets) > 0
        )

    def serves(self, queries: Tensor) -> bool:
        """Whether these queries fit and are so few that this way is the shorter one."""
        if queries.dim() != 2 or queries.shape[1] != self.dim or queries.dtype is not self.dtype:
            return False
        rows = len(queries)
        if rows <= 1:
            return rows == 1
        few_scores = self.tiled or rows * len(self.points) <= exact.MAX_COMPILED_SCORES
        return few_scores and rows * self.k * (self.k + 1) <= 2 * MAX_DISTANCES

    def __call__(self, queries: Float[Tensor, "queries dim"]) -> Prediction | None:
        """Mean [B, c] and variance [B]; None when a query or an answer is not finite.

        Args:
            queries: [B, d], without gradient, of the supports' precision.
        """
        rows, dtype = len(queries), self.points.dtype
        mean, variance = np.empty((rows, self.targets.shape[1]), dtype), np.empty(rows, dtype)
        scaled = np.zeros((rows, self.width), dtype)
        scale_rows(queries.contiguous().numpy(), self.origin, self.scale, scaled)
        products = np.empty((0, 0), dtype) if self.tiled else inner_products(self.points, scaled)
        finite = predict_few(
            self.code, self.ridge, self.k, self.windowed, scaled, products, self.columns, self.half_norms,
            self.points, self.targets, self.jitters, mean, variance,
        )  # fmt: skip
        if not (finite and np.isfinite(mean).all()):
            return None
        return Prediction(torch.from_numpy(mean), torch.from_numpy(variance))


class ShortWay:
    """The last :class:`FewQueries`, or the knowledge that there is none, and what it was made of; copies are empty."""

    def __init__(self) -> None:
        self.few: FewQueries | None = None
        self._seen: list[tuple[Tensor, int, int]] = []
        self._settings: tuple[object, ...] = ()

    def is_known(self, tensors: list[Tensor], settings: tuple[object, ...]) -> bool:
        """Whether it was made of these tensors and settings, and nothing was written to the tensors since."""
        if not self._seen or len(tensors) != len(self._seen) or not self._has(settings):
            return False
        for tensor, (seen, address, version) in zip(tensors, self._seen, strict=True):
            if tensor is not seen or tensor.data_ptr() != address or tensor._version != version:
                return False
        return True

    def renew(self, few: FewQueries | None, tensors: list[Tensor], settings: tuple[object, ...]) -> None:
        """Remember the way and what it was made of."""
        self.few, self._settings = few, settings
        self._seen = [(tensor, tensor.data_ptr(), tensor._version) for tensor in tensors]

    def _has(self, settings: tuple[object, ...]) -> bool:
        # Kernels of the caller's own may hold tensors, which have no one answer to whether they are equal.
        return all(
            given is known or (isinstance(given, int | str) and given == known)
            for given, known in zip(settings, self._settings, strict=True)
        )

    def __reduce__(self) -> tuple[type[ShortWay], tuple[()]]:
        return ShortWay, ()
