"""A regression problem, its dense solution in float64, and how far an answer lies from it.

Features and queries are standard normal, targets a smooth function of a random direction with noise. All are drawn in
float32, so that both precisions solve the same problem.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

POOL = 1024
"""Queries of a problem; batches are cut from them."""

PROBES = 64
"""Queries whose neighbours set the lengthscale, and the most that are compared with the dense solution."""

SPARE = 8
"""Candidates beyond the last neighbour, so that their order by exact distance decides and not by the product."""

SEPARATION = 32 * float(np.finfo(np.float32).eps)
"""Gap of squared distances to the k-th and (k + 1)-th point, in units of the norms that a float32 search subtracts.

A smaller gap is within the rounding of a search by ‖z‖² + ‖x‖² − 2 zᵀx: either point is then a right answer, and two
right answers differ, so such queries are not compared.
"""

RIDGE = float(np.float32(1e-2))
"""λ; like the lengthscale a float32 number: some libraries keep their parameters so, whatever they compute in."""

NOISE = 0.1
Answer = dict[str, np.ndarray]
"""What a contender computes, by name, one row per query unless named in `WHOLE`."""

WHOLE = frozenset({"feature_gradient"})
"""Entries of an answer that belong to all queries together."""


@dataclass(frozen=True)
class Settings:
    """What all contenders of a cell share.

    Attributes:
        k: neighbours per query.
        lengthscale: ℓ.
        ridge: λ.
    """

    k: int
    lengthscale: float
    ridge: float = RIDGE


@dataclass(frozen=True)
class Nearest:
    """The nearest points of n queries, found in float64, nearest first.

    Attributes:
        indices: [n, most].
        squared: squared distances, [n, most].
        scale: ‖z‖² plus the squared norm of every such point, [n, most].
    """

    indices: np.ndarray
    squared: np.ndarray
    scale: np.ndarray

    def separated(self, k: int) -> np.ndarray:
        """Queries whose k-th and (k + 1)-th neighbours no float32 search confuses, [n]."""
        return np.asarray(self.squared[:, k] - self.squared[:, k - 1] > SEPARATION * self.scale[:, k])


class Problem:
    """Support points, queries and their dense solution.

    Args:
        points: support points M.
        dim: width d.
        most_neighbors: the largest k that will be asked for, below M.
    """

    def __init__(self, points: int, dim: int, most_neighbors: int) -> None:
        if not 0 < most_neighbors < points:
            raise ValueError(
                f"{most_neighbors} neighbours of {points} points, but there must be at least one and fewer than "
                "points: how well the next point is separated decides which queries are compared"
            )
        generator = np.random.default_rng([points, dim])
        self.most = most_neighbors
        self.features = generator.standard_normal((points, dim), dtype=np.float32)
        self.queries = generator.standard_normal((POOL, dim), dtype=np.float32)
        direction = generator.standard_normal(dim) / np.sqrt(dim)
        smooth = np.sin(2.0 * (self.features @ direction))
        self.targets = (smooth + NOISE * generator.standard_normal(points)).astype(np.float32)[:, None]
        self._known: dict[int, Nearest] = {}

    @cached_property
    def exact_features(self) -> np.ndarray:
        """Features in float64, [M, d]."""
        return self.features.astype(np.float64)

    def settings(self, k: int) -> Settings:
        """ℓ is twice the median distance to the k-th neighbour over `PROBES` queries."""
        nearest = self.nearest(np.linspace(0, POOL - 1, PROBES).astype(int))
        return Settings(k, float(np.float32(2.0 * np.median(np.sqrt(nearest.squared[:, k - 1])))))

    def nearest(self, rows: np.ndarray) -> Nearest:
        """The `most_neighbors` + 1 nearest points of some queries, [n]."""
        new = np.array([row for row in rows if row not in self._known], dtype=int)
        for row, found in zip(new, self._search(new), strict=True):
            self._known[int(row)] = found
        parts = [self._known[int(row)] for row in rows]
        names = ("indices", "squared", "scale")
        return Nearest(*(np.stack([getattr(part, name) for part in parts]) for name in names))

    def _search(self, rows: np.ndarray) -> list[Nearest]:
        queries, features = self.queries[rows].astype(np.float64), self.exact_features
        norms = np.square(features).sum(1)
        scores = 0.5 * norms - queries @ features.T
        count = min(self.most + 1 + SPARE, len(features))
        found = []
        for query, row in zip(queries, scores, strict=True):
            candidates = np.argpartition(row, count - 1)[:count]
            squared = np.square(features[candidates] - query).sum(1)
            order = np.argsort(squared)[: self.most + 1]
            indices = candidates[order]
            found.append(Nearest(indices, squared[order], query @ query + norms[indices]))
        return found

    def solution(self, rows: np.ndarray, settings: Settings) -> Answer:
        """Everything a contender may answer, computed densely in float64 for some queries, [n]."""
        indices = self.nearest(rows).indices[:, : settings.k]
        queries, targets = self.queries[rows].astype(np.float64), self.targets[indices].astype(np.float64)
        offsets = self.exact_features[indices] - queries[:, None]
        products = offsets @ offsets.swapaxes(-1, -2)
        norms = np.square(offsets).sum(-1)
        squared = np.maximum(norms[:, :, None] + norms[:, None, :] - 2.0 * products, 0.0)
        diagonal = np.arange(settings.k)
        squared[:, diagonal, diagonal] = 0.0
        gram = matern32(np.sqrt(squared) / settings.lengthscale) + settings.ridge * np.eye(settings.k)
        cross = matern32(np.sqrt(norms) / settings.lengthscale)
        weights = np.linalg.solve(gram, cross[:, :, None])[:, :, 0]
        return {
            "indices": np.sort(indices, axis=1),
            "neighbor_mean": targets.mean(1),
            "mean": (weights[:, :, None] * targets).sum(1),
            "variance": 1.0 - (weights * cross).sum(1),
        }


def matern32(scaled: np.ndarray) -> np.ndarray:
    """κ(r) = (1 + √3 r) exp(−√3 r) of scaled distances, any shape."""
    root = np.sqrt(3.0) * scaled
    return np.asarray((1.0 + root) * np.exp(-root))


def distance(answer: Answer, expected: Answer, rows: np.ndarray) -> float | None:
    """Largest |a − b| / (1 + |b|) over the entries that both hold: below tol, they agree to rtol = atol = tol.

    Args:
        answer: a contender's answer.
        expected: another's, or the dense solution.
        rows: which queries to compare, a mask [n].

    Returns:
        The distance, infinite where neighbours differ or a value is not finite; None when there is nothing to compare.
    """
    shared = sorted(answer.keys() & expected.keys())
    if not shared or not rows.any():
        return None
    errors = []
    for name in shared:
        actual, right = (values[name] if name in WHOLE else values[name][rows] for values in (answer, expected))
        if actual.shape != right.shape:
            raise ValueError(f"{name} has shape {actual.shape}, but {right.shape} is expected")
        if name == "indices":
            errors.append(0.0 if np.array_equal(actual, right) else np.inf)
        else:
            error = np.abs(actual.astype(np.float64) - right) / (1.0 + np.abs(right))
            errors.append(np.nan_to_num(error, nan=np.inf, posinf=np.inf).max())
    return float(max(errors))
