"""The rivals: each the way its users would write it, set up to give our numbers."""

from __future__ import annotations

import time
from typing import ClassVar

import numpy as np
import torch
from local_solve_contenders import (
    Contender,
    OurGradient,
    OurPrediction,
    OurSearch,
    TorchContender,
)
from local_solve_gaussian_processes import (
    GPyTorch,
    GPyTorchGradient,
    MuyGPySGradient,
    MuyGPySNumpy,
    MuyGPySTorch,
)
from local_solve_problem import Answer, Settings
from local_solve_scikit import faster_jobs
from torch import Tensor

RIDGE_QUERIES = 16
"""Queries of a batch that the loop over `KernelRidge` solves; the time of the others is extrapolated."""


class NumpySolve(Contender):
    """numpy: matrix product, `argpartition` and a batched `np.linalg.solve`."""

    compare_all: ClassVar[bool] = True

    def fit(self, features: np.ndarray, targets: np.ndarray, settings: Settings) -> None:
        """Keep the norms."""
        self.features, self.targets, self.settings = features, targets, settings
        self.half_norms = 0.5 * np.square(features).sum(1)

    def __call__(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance."""
        k = self.settings.k
        scores = self.half_norms - queries @ self.features.T
        indices = np.argpartition(scores, k - 1, axis=1)[:, :k]
        offsets = self.features[indices] - queries[:, None]
        norms = np.square(offsets).sum(-1)
        squared = norms[:, :, None] + norms[:, None, :] - 2.0 * (offsets @ offsets.swapaxes(-1, -2))
        diagonal = np.arange(k)
        squared[:, diagonal, diagonal] = 0.0
        gram = self._kernel(np.sqrt(np.maximum(squared, 0.0)))
        gram[:, diagonal, diagonal] += self.settings.ridge
        cross = self._kernel(np.sqrt(norms))
        weights = np.linalg.solve(gram, cross[:, :, None])[:, :, 0]
        return (weights[:, :, None] * self.targets[indices]).sum(1), 1.0 - (weights * cross).sum(1)

    def _kernel(self, distances: np.ndarray) -> np.ndarray:
        scaled = distances * (3.0**0.5 / self.settings.lengthscale)
        return np.asarray((1.0 + scaled) * np.exp(-scaled))

    def answer(self, output: tuple[np.ndarray, np.ndarray]) -> Answer:
        """Mean [B, 1] and variance [B]."""
        return {"mean": output[0], "variance": output[1]}


class KernelRidgeLoop(Contender):
    """scikit-learn: nearest neighbours of the batch, then one `KernelRidge` per query; mean only."""

    requires: ClassVar[tuple[str, ...]] = ("sklearn",)
    most_queries: ClassVar[int | None] = RIDGE_QUERIES

    def fit(self, features: np.ndarray, targets: np.ndarray, settings: Settings) -> None:
        """Build the search index."""
        from sklearn.gaussian_process.kernels import Matern
        from sklearn.kernel_ridge import KernelRidge
        from sklearn.neighbors import NearestNeighbors

        self.features, self.targets = features, targets
        self.search = NearestNeighbors(n_neighbors=settings.k).fit(features)
        self.kernel = Matern(length_scale=settings.lengthscale, nu=1.5)
        self.model = KernelRidge(alpha=settings.ridge, kernel="precomputed")

    def settle(self, queries: np.ndarray) -> None:
        """Take the faster number of jobs."""
        self.setting = faster_jobs(self.search, queries)

    def __call__(self, queries: np.ndarray) -> np.ndarray:
        """Mean of the first queries; all are searched."""
        neighbors = self.search.kneighbors(queries, return_distance=False)
        count = min(len(queries), RIDGE_QUERIES)
        started = time.perf_counter()
        means = [self._predict(queries[row : row + 1], neighbors[row]) for row in range(count)]
        self.missing_seconds = (time.perf_counter() - started) * (len(queries) / count - 1.0)
        return np.concatenate(means)

    def _predict(self, query: np.ndarray, indices: np.ndarray) -> np.ndarray:
        points = self.features[indices]
        model = self.model.fit(self.kernel(points), self.targets[indices])
        return np.asarray(model.predict(self.kernel(query, points)))

    def answer(self, output: np.ndarray) -> Answer:
        """Mean of the first queries, [16 or B, 1]."""
        return {"mean": output}


class KNeighbors(Contender):
    """scikit-learn's `KNeighborsRegressor`: the search and an average, no solve."""

    requires: ClassVar[tuple[str, ...]] = ("sklearn",)

    def fit(self, features: np.ndarray, targets: np.ndarray, settings: Settings) -> None:
        """Build the search index."""
        from sklearn.neighbors import KNeighborsRegressor

        self.model = KNeighborsRegressor(n_neighbors=settings.k).fit(features, targets)

    def settle(self, queries: np.ndarray) -> None:
        """Take the faster number of jobs."""
        self.setting = faster_jobs(self.model, queries)

    def __call__(self, queries: np.ndarray) -> np.ndarray:
        """Mean of the neighbours' targets."""
        return np.asarray(self.model.predict(queries))

    def answer(self, output: np.ndarray) -> Answer:
        """Mean of the neighbours' targets, [B, 1]."""
        return {"neighbor_mean": output}


class FaissSearch(Contender):
    """FAISS `IndexFlatL2`, which knows float32 only."""

    requires: ClassVar[tuple[str, ...]] = ("faiss",)
    precisions: ClassVar[tuple[str, ...]] = ("float32",)

    def fit(self, features: np.ndarray, targets: np.ndarray, settings: Settings) -> None:
        """Copy the features into the index."""
        import faiss

        faiss.omp_set_num_threads(torch.get_num_threads())
        self.k, self.index = settings.k, faiss.IndexFlatL2(features.shape[1])
        self.index.add(features)

    def __call__(self, queries: np.ndarray) -> np.ndarray:
        """Neighbours, nearest first."""
        return self.index.search(queries, self.k)[1]

    def answer(self, output: np.ndarray) -> Answer:
        """Neighbours in ascending order of their positions, [B, k]."""
        return {"indices": np.sort(output, axis=1)}


class DistanceProduct(TorchContender):
    """The matrix product of queries and features into memory that is there already: no exhaustive search is faster."""

    precisions: ClassVar[tuple[str, ...]] = ("float32",)

    def fit(self, features: Tensor, targets: Tensor, settings: Settings) -> None:
        """Nothing to prepare."""
        self.transposed, self.output = features.T, features.new_empty(0)

    @torch.no_grad()
    def __call__(self, queries: Tensor) -> Tensor:
        """The product [B, M]; the first call for a size allocates."""
        if len(queries) != len(self.output):
            self.output = queries.new_empty(len(queries), self.transposed.shape[1])
        return torch.mm(queries, self.transposed, out=self.output)

    def answer(self, output: Tensor) -> Answer:
        """Nothing that a prediction could be compared with."""
        return {}


OURS: dict[str, type[Contender]] = {"predict": OurPrediction, "search": OurSearch, "gradient": OurGradient}
"""Our side of each part."""

RIVALS: dict[str, dict[str, type[Contender]]] = {
    "predict": {
        "muygpys_numpy": MuyGPySNumpy,
        "muygpys_torch": MuyGPySTorch,
        "gpytorch": GPyTorch,
        "numpy": NumpySolve,
        "kernel_ridge": KernelRidgeLoop,
        "kneighbors": KNeighbors,
        "product": DistanceProduct,
    },
    "search": {"faiss": FaissSearch, "product": DistanceProduct},
    "gradient": {"gpytorch": GPyTorchGradient, "muygpys_torch": MuyGPySGradient},
}
"""Whom our side meets in each part."""
