"""Checks of what a Sparse Kernel is given: every error names the value, the limit and the remedy.

Values are looked at on a CPU only: an accelerator would have to wait for them.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from numbers import Real

import torch

from skrl.modes import traced
from skrl.shapes import Float, Shaped, Tensor

MAX_NEIGHBORS = 1 << 14
"""Neighbours of a query at most: their Gram matrix takes 1 GiB in float32, and every query has its own."""


def floating(values: Shaped[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The values in floating point: integers and booleans in torch's default dtype.

    Raises:
        TypeError: the values are no tensor.
        ValueError: they are complex.
    """
    check_tensor(values)
    if values.is_complex():
        raise ValueError(f"dtype is {values.dtype}, but must be real; split it with torch.view_as_real(…).flatten(-2)")
    return values if values.is_floating_point() else values.to(torch.get_default_dtype())


def check_tensor(values: object, name: str = "the values") -> None:
    """Refuse arrays and lists.

    Raises:
        TypeError: the values are no tensor.
    """
    if not isinstance(values, torch.Tensor):
        raise TypeError(f"{name}: got {type(values).__name__}, but need a torch.Tensor; wrap with torch.as_tensor(…)")


def looks_at(values: Shaped[Tensor, "*shape"]) -> bool:
    """Whether looking at values costs nothing: on a CPU, outside a compiler's trace."""
    return values.device.type == "cpu" and not traced()


def check_sets(
    queries: Float[Tensor, "..."] | None, features: Float[Tensor, "..."], targets: Float[Tensor, "..."] | None
) -> None:
    """Shapes and devices of the sets, of which some may not be known yet.

    Raises:
        ValueError: they do not fit.
    """
    if features.dim() != 2 or (targets is not None and (targets.dim() != 2 or len(features) != len(targets))):
        shape = None if targets is None else tuple(targets.shape)
        raise ValueError(
            f"features have shape {tuple(features.shape)} and targets {shape}, "
            "but must be [points, dim] and [points, targets] with equally many points"
        )
    if queries is not None:
        check_queries(queries, features)
    if targets is not None and targets.device != features.device:
        raise ValueError(
            f"targets lie on {targets.device} and features on {features.device}; move both to one with .to(device)"
        )


def check_queries(queries: Float[Tensor, "..."], features: Float[Tensor, "..."]) -> None:
    """Shape and device of queries, which are those of the features.

    Raises:
        ValueError: they are not.
    """
    if queries.dim() != 2 or queries.shape[1] != features.shape[-1]:
        raise ValueError(
            f"queries have shape {tuple(queries.shape)}, but must be [batch, {features.shape[-1]}] like the features"
        )
    if queries.device != features.device:
        raise ValueError(
            f"queries lie on {queries.device} and features on {features.device}; move both to one with .to(device)"
        )


def as_neighbors(k: object) -> int | tuple[int, ...]:
    """A number of neighbours, or candidates for it, from whatever holds whole numbers: numpy's, a list, an array.

    An array without dimensions holds one number.

    Raises:
        TypeError: it does not; the message names the value.
    """
    try:
        # An array of one number has an index as well, but stands for a list.
        if isinstance(k, Iterable) and getattr(k, "ndim", 1) > 0:
            return tuple(operator.index(candidate) for candidate in k)
        return operator.index(k)  # type: ignore[arg-type]  # it says itself what it does not take
    except TypeError as error:
        raise TypeError(f"k is {k!r}, but must be a whole number of neighbours, or several to choose from") from error


def check_neighbors(k: object, points: int) -> int:
    """At least one neighbour, and no larger system than memory holds; more neighbours than points are all points.

    Returns:
        The number, from whatever holds it.

    Raises:
        TypeError: k is not one whole number.
        ValueError: k is out of range.
    """
    number = as_neighbors(k)
    if isinstance(number, tuple):
        raise TypeError(
            f"k is {k!r}, but must be one whole number here; skrl.tune and SparseKernel choose one of several"
        )
    if number < 1:
        raise ValueError(f"k is {number}, but must be positive: a prediction needs at least 1 neighbour")
    if min(number, points) > MAX_NEIGHBORS:
        raise ValueError(
            f"k is {number} for {points} points, but every query solves a system of that size; "
            f"at most {MAX_NEIGHBORS} neighbours are taken, so lower k"
        )
    return number


def check_rows(name: str, values: Float[Tensor, "rows width"], remedy: str = "drop it or repair it") -> None:
    """Find a row that is not finite.

    Raises:
        ValueError: there is one; the message names the first, and its value.
    """
    if looks_at(values) and not _all_finite(values):
        row, column = values.isfinite().logical_not().nonzero()[0].tolist()
        raise ValueError(f"{name} row {row} is not finite: {values[row, column].item()} in column {column}; {remedy}")


def check_lengthscale(lengthscale: Tensor | float, dim: int | None, dtype: torch.dtype) -> None:
    """A lengthscale is one number, or one per dimension, positive and finite in the precision of the distances.

    Raises:
        TypeError: it is neither a number nor a tensor.
        ValueError: it is not.
    """
    _check_setting("lengthscale", lengthscale)
    smallest, largest = torch.finfo(dtype).tiny, torch.finfo(dtype).max
    if not isinstance(lengthscale, Tensor):
        good = smallest <= float(lengthscale) <= largest  # in double, or numpy's would compare in their own precision
    elif lengthscale.dim() > 0 and lengthscale.shape != (len(lengthscale) if dim is None else dim,):
        raise ValueError(
            f"lengthscale has shape {tuple(lengthscale.shape)}, but must be one number, or one per dimension, [{dim}]"
        )
    else:
        values = lengthscale.detach().double()  # A narrower dtype would round the limits to zero and infinity.
        good = not looks_at(values) or bool(((values >= smallest) & (values <= largest)).all())
    if not good:
        raise ValueError(
            f"lengthscale is {_shown(lengthscale)}, but must be positive and finite, from {smallest:.1e} to "
            f"{largest:.1e} in {dtype}; leave it out to have it chosen, or lower the rate at which it is learned"
        )


def check_one_lengthscale(lengthscale: Tensor | float, dtype: torch.dtype) -> None:
    """A lengthscale that is one number, positive and finite in the precision of the distances.

    Raises:
        TypeError: it is neither a number nor a tensor.
        ValueError: it is not.
    """
    if isinstance(lengthscale, Tensor) and lengthscale.dim() > 0:
        raise ValueError(
            f"lengthscale has shape {tuple(lengthscale.shape)}, but must be one number here; divide the features by it "
            "and give 1.0"
        )
    check_lengthscale(lengthscale, None, dtype)


def check_ridge(ridge: Tensor | float) -> None:
    """A ridge is one number, finite and not negative.

    Raises:
        TypeError: it is neither a number nor a tensor.
        ValueError: it is not.
    """
    _check_setting("ridge", ridge)
    if isinstance(ridge, Tensor):
        if ridge.dim() > 0:
            raise ValueError(f"ridge has shape {tuple(ridge.shape)}, but must be one number; call .squeeze()")
        if not looks_at(ridge):
            return
        ridge = ridge.item()
    largest = torch.finfo(torch.float32).max
    if not 0.0 <= float(ridge) <= largest:
        raise ValueError(
            f"ridge is {_shown(ridge)}, but must not be negative, and at most {largest:.1e}; "
            "0 interpolates, or lower the rate at which it is learned"
        )


def _check_setting(name: str, value: object) -> None:
    if not isinstance(value, Tensor | Real):
        raise TypeError(
            f"{name} is {value!r}, of type {type(value).__name__}, but must be a number or a tensor; wrap with "
            "torch.as_tensor(…), or leave it out"
        )


def check_answer(
    mean: Float[Tensor, "queries targets"],
    prior: Float[Tensor, "queries targets"] | None,
    residuals: Float[Tensor, "points targets"],
    targets: Float[Tensor, "points targets"],
) -> None:
    """An answer is finite; where it is not, look for the reason among what it was made of.

    Raises:
        ValueError: it is not; the message names the set and the row that spoilt it.
    """
    if not looks_at(mean) or _all_finite(mean):
        return
    check_rows("targets", targets)
    check_rows("prior_mean at features", residuals, "lower the rate at which it is learned, or scale its inputs")
    if prior is not None:
        check_rows("prior_mean at query", prior, "lower the rate at which it is learned, or scale its inputs")
    raise overflow_error(mean, targets.abs().max().item())


def overflow_error(mean: Float[Tensor, "queries targets"], largest: float) -> ValueError:
    """What to raise for an answer that its precision cannot hold; the message names the row.

    Args:
        mean: the answer, [B, c], of which a row is not finite.
        largest: magnitude of the targets that it was made from.
    """
    row = int(mean.isfinite().all(-1).logical_not().nonzero()[0])
    return ValueError(
        f"the prediction of query row {row} exceeds {mean.dtype}, which ends at {torch.finfo(mean.dtype).max:.4g}, "
        f"from targets up to {largest:.4g}; scale the targets, or ask with queries of a wider dtype"
    )


def _all_finite(values: Tensor) -> bool:
    # One pass settles nearly every case; a sum may overflow where no term is infinite.
    return math.isfinite(values.detach().sum().item()) or bool(values.isfinite().all())


def _shown(value: Tensor | float) -> str:
    return str(value.tolist() if isinstance(value, Tensor) else value)
