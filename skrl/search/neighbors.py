"""Nearest-neighbour search over support points."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, NamedTuple, get_args

import torch

from skrl.kernels.distances import cross_distances, within_reach
from skrl.modes import precise
from skrl.shapes import Bool, Float, Int, Tensor

Localisation = Literal["hard", "continuous"]
"""How a neighbour's say ends when another takes its place: at once, or after it has faded to zero."""

LOCALISATIONS: tuple[Localisation, ...] = get_args(Localisation)


class Neighbors(NamedTuple):
    """The k nearest support points of each query, nearest first up to rounding.

    Attributes:
        indices: positions in the support set, [*batch, B, k]; 0 where the mask is false, so any gather is legal.
        distances: Euclidean distances, [*batch, B, k], in float32 at least; differentiable in queries and features, 0
            where masked.
        mask: true where a neighbour exists, [*batch, B, k]; a set with fewer than k points leaves the rest false, and a
            query so far away that the squares of its distances overflow has none.
    """

    indices: Int[Tensor, "*batch neighbors"]
    distances: Float[Tensor, "*batch neighbors"]
    mask: Bool[Tensor, "*batch neighbors"]


class NeighborIndex(ABC):
    """Support points made ready for many queries: what depends on the points alone has been done once."""

    @abstractmethod
    def nearest(
        self, queries: Float[Tensor, "*batch queries dim"], k: int
    ) -> tuple[Int[Tensor, "*batch queries k"], Bool[Tensor, "*batch queries k"]]:
        """Find the min(k, M) nearest points of every query, nearest first up to rounding; records no gradient.

        Args:
            queries: [*batch, B, d].
            k: neighbours per query.

        Returns:
            Positions in the support set, 0 where the mask is false, and the mask, [*batch, B, min(k, M)] each. Missing
            neighbours come last; a query that is not finite has none.
        """


class NeighborSearch(ABC):
    """Finds neighbours; subclasses decide how."""

    @abstractmethod
    def index(
        self, features: Float[Tensor, "*batch points dim"], half_norms: Float[Tensor, "*batch points"] | None = None
    ) -> NeighborIndex:
        """Make support points ready for many queries.

        Args:
            features: [*batch, M, d].
            half_norms: ½‖x‖² of the features, [*batch, M], when the caller keeps them; +∞ marks an empty slot. Such
                features should lie around the origin; without half-norms exact search puts their median there.

        Exact search ranks by products, whose rounding errors grow with the distance R from the origin: it cannot tell
        squared distances apart that differ by less than some 1e-7 R² in float32. Where points lie in clumps far apart
        no centre helps: of clumps that are 100 times narrower than R two neighbours in a hundred are other ones than
        the nearest, at 1,000 times four in ten. Features in float64 cure it up to 1e6 times.
        """

    def __call__(
        self,
        queries: Float[Tensor, "*batch queries dim"],
        features: Float[Tensor, "*batch points dim"],
        k: int,
        half_norms: Float[Tensor, "*batch points"] | None = None,
    ) -> Neighbors:
        """The min(k, M) nearest features of each query.

        Args:
            queries: [*batch, B, d].
            features: [*batch, M, d].
            k: neighbours per query.
            half_norms: see :meth:`index`.

        Returns:
            Neighbours of each query; gradients flow through the distances.
        """
        with torch.no_grad():
            index = self.index(features, half_norms)
        return measured_neighbors(index, queries, features, k)


def measured_neighbors(
    index: NeighborIndex,
    queries: Float[Tensor, "*batch queries dim"],
    features: Float[Tensor, "*batch points dim"],
    k: int,
) -> Neighbors:
    """The nearest points by an index, with their distances, which carry gradients."""
    with torch.no_grad():
        indices, mask = index.nearest(queries, k)
    return measured(queries, features, indices, mask)


def measured(
    queries: Float[Tensor, "*batch queries dim"],
    features: Float[Tensor, "*batch points dim"],
    indices: Int[Tensor, "*batch queries neighbors"],
    mask: Bool[Tensor, "*batch queries neighbors"],
) -> Neighbors:
    """Points that an index has found, with their distances, which carry gradients."""
    mask = mask & within_reach(queries).unsqueeze(-1)
    # A query without neighbours may be no number, and zero times that would spoil the gradient.
    queries = torch.where(mask.any(-1, keepdim=True), queries, 0.0)
    # In half precision the square of a distance of 256 is infinite.
    distances = cross_distances(precise(queries), precise(gather_points(features, indices)))
    return Neighbors(indices, torch.where(mask, distances, 0.0), mask)


def check_localisation(localisation: str) -> None:
    """A localisation is hard or continuous.

    Raises:
        ValueError: it is neither.
    """
    if localisation not in LOCALISATIONS:
        raise ValueError(f"localisation is '{localisation}', but must be one of {', '.join(LOCALISATIONS)}")


def local_neighbors(
    index: NeighborIndex,
    queries: Float[Tensor, "*batch queries dim"],
    features: Float[Tensor, "*batch points dim"],
    k: int,
    localisation: Localisation,
) -> tuple[Neighbors, Float[Tensor, "*batch queries"] | None]:
    """The k neighbours of each query and the radius of their windows: the distance to the one after them.

    Args:
        index: over the features.
        queries: [*batch, B, d].
        features: [*batch, M, d].
        k: neighbours per query.
        localisation: hard needs no radius, continuous does.

    Returns:
        Neighbours, and the radius, [*batch, B], +∞ where no further neighbour exists; None when localisation is hard.

    Raises:
        ValueError: the localisation is unknown.
    """
    wanted = k + (localisation == "continuous")
    return within_radius(measured_neighbors(index, queries, features, wanted), k, localisation)


def within_radius(
    neighbors: Neighbors, k: int, localisation: Localisation
) -> tuple[Neighbors, Float[Tensor, "*batch queries"] | None]:
    """The first k of more neighbours, and the radius of their windows as :func:`local_neighbors` gives it.

    Args:
        neighbors: nearest first, [*batch, B, ·].
        k: neighbours per query.
        localisation: hard needs no radius, continuous does.

    Raises:
        ValueError: the localisation is unknown.
    """
    check_localisation(localisation)
    indices, distances, mask = neighbors
    first = Neighbors(indices[..., :k], distances[..., :k], mask[..., :k])
    if localisation == "hard":
        return first, None
    if mask.shape[-1] <= k:
        return first, distances.new_full(distances.shape[:-1], float("inf"))
    return first, torch.where(mask[..., k], distances[..., k], float("inf"))


def gather_points(
    values: Float[Tensor, "*batch points width"], indices: Int[Tensor, "*batch queries neighbors"]
) -> Float[Tensor, "*batch queries neighbors width"]:
    """Rows of ``values`` per query: [*batch, M, w] and [*batch, B, k] give [*batch, B, k, w]."""
    width = values.shape[-1]
    if values.dim() == 2:
        return values[indices]
    flat = indices.flatten(-2).unsqueeze(-1)
    rows = values.gather(-2, flat.expand(*flat.shape[:-1], width))
    return rows.reshape(*indices.shape, width)
