"""Arrays, tables and tensors from outside, checked and made into tensors.

The messages follow scikit-learn's wording where its users, and its estimator checks, look for it.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from skrl.shapes import Float, Tensor

Array = NDArray[Any]

LARGEST_LOSS = 1e-3
"""Share of the mean absolute deviation of targets that rounding may take silently."""


def as_features(
    X: Any, device: torch.device | None = None, owner: str = "the readout", width: int | None = None
) -> Float[Tensor, "samples dim"]:
    """Features as a finite floating-point tensor, [n, d], detached.

    Args:
        X: a tensor, which keeps its precision (at least float32) and its device unless one is given, or anything that
            numpy reads; arrays of other types than float32 become float64.
        device: where the answer lies.
        owner: who asks, for messages.
        width: the d that was seen when fitting, if any.

    Raises:
        TypeError: sparse data, or entries that are not numbers.
        ValueError: not two-dimensional, empty, complex, not finite, or another width.
    """
    if isinstance(X, Tensor):
        _refuse_complex(X.is_complex())
        features = X.detach().to(device or X.device, torch.promote_types(X.dtype, torch.float32))
    else:
        features = torch.from_numpy(_float_array(X, "X")).to(device or "cpu")
    if features.dim() != 2:
        raise ValueError(
            f"Expected 2D array, got {features.dim()}D array instead, shape {tuple(features.shape)}. Reshape your data "
            "to (n_samples, n_features): X.reshape(-1, 1) for a single feature, X.reshape(1, -1) for a single sample."
        )
    for count, what in zip(features.shape, ("sample", "feature"), strict=True):
        if count == 0:
            raise ValueError(
                f"Found array with 0 {what}(s) (shape={tuple(features.shape)}) while a minimum of 1 is required."
            )
    _refuse_not_finite(features, "X")
    if width is not None and features.shape[1] != width:
        raise ValueError(
            f"X has {features.shape[1]} features, but {owner} is expecting {width} features as input; "
            "give the features that it was fitted on"
        )
    return features


def feature_names(X: Any) -> Array | None:
    """Names of the columns of a table, [d], as scikit-learn takes them; None unless all are text."""
    columns = getattr(X, "columns", None)
    if columns is None or not all(isinstance(name, str) for name in columns):
        return None
    return np.array(list(columns), dtype=object)


def check_feature_names(X: Any, seen: Array | None, owner: str) -> None:
    """Columns of a table are those that were seen when fitting, in their order; data without names pass.

    Raises:
        ValueError: they are not.
    """
    names = feature_names(X)
    if names is None or seen is None or np.array_equal(names, seen):
        return
    how = "are in another order" if sorted(names) == sorted(seen) else "differ"
    raise ValueError(
        f"The feature names should match those that were passed during fit, but they {how}: {owner} was fitted to "
        f"{', '.join(seen)}; give X[fitted.feature_names_in_]"
    )


def as_real_targets(y: Any, features: Float[Tensor, "samples dim"], owner: str) -> Float[Tensor, "samples ..."]:
    """Regression targets as they are, in float64 on the CPU, [n] or [n, c].

    Raises:
        ValueError: missing, of another length than the features, not finite, or of more than two dimensions.
    """
    _refuse_missing(y, owner)
    _refuse_complex(isinstance(y, Tensor) and y.is_complex())
    values = y.detach() if isinstance(y, Tensor) else torch.from_numpy(_float_array(y, "y"))
    targets = values.to("cpu", torch.float64)
    if targets.dim() not in (1, 2):
        raise ValueError(f"y should be a 1d or 2d array, got an array of shape {tuple(targets.shape)} instead")
    _refuse_other_length(len(features), len(targets))
    _refuse_not_finite(targets, "y")
    return targets


def rounded_targets(
    targets: Float[Tensor, "samples ..."], features: Float[Tensor, "samples dim"]
) -> Float[Tensor, "samples ..."]:
    """Targets in the precision and on the device of the features; warns where that takes digits that matter."""
    rounded = targets.to(features)
    largest = targets.abs().amax(0)
    if not rounded.isfinite().all():
        raise ValueError(
            f"y reaches {float(largest.max()):.4g}, but {features.dtype}, the precision of X, ends at "
            f"{torch.finfo(features.dtype).max:.4g}; scale y, or give X in float64"
        )
    lost = (rounded.cpu() - targets).abs().amax(0)
    spread = (targets - targets.mean(0)).abs().mean(0)
    # A constant has a mean that is off by rounding.
    varies = spread > 64 * torch.finfo(targets.dtype).eps * largest
    share = torch.where(varies, lost / spread, 0.0)
    if (share > LARGEST_LOSS).any():
        warnings.warn(
            f"y is rounded to {features.dtype}, the precision of X, by up to {float(share.max()):.1%} of its mean "
            "deviation; subtract a constant from y, or give X in float64",
            stacklevel=4,
        )
    return rounded


def as_labels(y: Any, samples: int, owner: str) -> Array:
    """Class labels as an array, [n].

    Raises:
        ValueError: missing, of another length than the features, not one-dimensional, continuous, or of mixed types.
    """
    _refuse_missing(y, owner)
    labels = y.detach().cpu().numpy() if isinstance(y, Tensor) else np.array(y)
    if labels.ndim == 2 and labels.shape[1] == 1:
        warnings.warn(
            "A column-vector y was passed when a 1d array was expected. Change the shape of y to (n_samples,), for "
            "example by y.ravel().",
            data_conversion_warning(),
            stacklevel=4,
        )
        labels = labels.ravel()
    if labels.ndim != 1:
        raise ValueError(f"y should be a 1d array, got an array of shape {labels.shape} instead.")
    _refuse_other_length(samples, len(labels))
    _refuse_complex(labels.dtype.kind == "c")
    if labels.dtype.kind == "f":
        _refuse_not_finite(torch.from_numpy(labels.astype(np.float64)), "y")
        if (labels != np.floor(labels)).any():
            raise ValueError("Unknown label type: continuous; y holds fractions, so take a regressor, or bin it first")
    return labels


def distinct_labels(labels: Array) -> tuple[Array, Array]:
    """Sorted distinct labels, [C], and the position of every label among them, [n].

    Raises:
        ValueError: labels of mixed types have no order.
    """
    try:
        classes, positions = np.unique(labels, return_inverse=True)
    except TypeError as error:
        raise ValueError(f"Unknown label type: labels of mixed types cannot be sorted ({error})") from error
    return classes, positions


def like(values: Tensor, X: Any) -> Any:
    """Answers as a tensor on the device of X when that is a tensor, else as an array."""
    return values.to(X.device) if isinstance(X, Tensor) else values.cpu().numpy()


def in_precision_of(features: Tensor, answers: Tensor) -> Tensor:
    """Answers in the precision of floating-point features; numbers and pixels in integers leave them as they are."""
    return answers.to(features.dtype) if features.is_floating_point() else answers


def as_sample_weights(weights: Any, features: Tensor) -> Float[Tensor, "samples 1"]:
    """Weights of samples as a column, ones when left out."""
    if weights is None:
        return features.new_ones(len(features), 1)
    return torch.as_tensor(np.array(weights)).to(features).reshape(-1, 1)


def not_fitted_error(message: str) -> Exception:
    """An error that ``except sklearn.exceptions.NotFittedError`` catches where scikit-learn is in use."""
    if "sklearn" in sys.modules:
        from sklearn.exceptions import NotFittedError

        return NotFittedError(message)  # type: ignore[no-any-return]
    return ValueError(message)


def data_conversion_warning() -> type[Warning]:
    """The category that scikit-learn's users filter, where it is in use."""
    if "sklearn" in sys.modules:
        from sklearn.exceptions import DataConversionWarning

        return DataConversionWarning  # type: ignore[no-any-return]
    return UserWarning


def _float_array(values: Any, name: str) -> Array:
    """A fresh array of float32 or float64; a copy, since the caller's may be read-only."""
    if hasattr(values, "tocsr"):
        raise TypeError(f"Sparse data was passed as {name}, but dense data is required; call .toarray() first")
    array = np.asarray(values)
    _refuse_complex(array.dtype.kind == "c")
    return np.array(array, np.float32 if array.dtype == np.float32 else np.float64, order="C")


def _refuse_complex(is_complex: bool) -> None:
    if is_complex:
        raise ValueError("Complex data not supported; pass real and imaginary parts as separate features")


def _refuse_missing(y: Any, owner: str) -> None:
    if y is None:
        raise ValueError(f"{owner} requires y to be passed, but the target y is None")


def _refuse_other_length(samples: int, targets: int) -> None:
    if samples != targets:
        raise ValueError(
            f"Found input variables with inconsistent numbers of samples: X has {samples}, y has {targets}"
        )


def _refuse_not_finite(values: Tensor, name: str) -> None:
    if bool(values.isfinite().all()):
        return
    bad = ~values.isfinite().flatten(1).all(-1) if values.dim() > 1 else ~values.isfinite()
    what = "NaN" if bool(values.isnan().any()) else "infinity"
    raise ValueError(
        f"Input {name} contains {what}, first in row {int(bad.nonzero()[0])}; drop such rows or impute them"
    )
