"""Features brought to a common scale before distances are taken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch.nn import functional

from skrl.checks import floating
from skrl.modes import KeepsFloat32, full_precision, precise
from skrl.shapes import Float, Tensor

Scaling = Literal["standard", "isotropic", "cosine", "whitened", "none"]
"""How features are scaled; see :class:`FeatureScaling`."""

SCALINGS: tuple[Scaling, ...] = get_args(Scaling)

WHITENING_FLOOR = 0.1
"""Added to every variance before whitening, in units of the mean one, so that noise is not blown up without bound."""

WHITENING_DOUBT = 0.3
"""The same times features per sample: few samples do not know the small variances, and what they missed looks empty."""

MAX_WHITENED = 2048
"""Features that are whitened unasked at most; the eigenvectors of more would take minutes."""


class FeatureScaling(KeepsFloat32):
    """Centre features and bring them to a mean square length of one: z = (x − shift) R ⊙ scale.

    So a lengthscale of about one is wide in any dimension. What is measured when fitting stays in buffers:

    - ``standard``: every feature to the same variance, for features in different units. One that never varied counts
      as nothing.
    - ``isotropic``: one factor for all, so that pixels or activations keep their relative sizes.
    - ``cosine``: centred, then each row to length one, so that only directions count.
    - ``whitened``: principal components brought to about the same variance, for deep features, whose few strong
      directions tell what the network was trained for and hide what else it knows.
    - ``none``: as they are.

    Args:
        shift: subtracted, [d].
        scale: multiplied, [d].
        rotation: R, principal components in its columns, [d, d]; none when left out.
        unit_length: whether rows are divided by their length at last.
    """

    # In half precision their unit may be zero or infinite, and an offset hides the rest.
    KEPT = ("shift", "scale", "rotation")

    shift: Tensor
    scale: Tensor
    rotation: Tensor | None

    def __init__(
        self,
        shift: Float[Tensor, " dim"],
        scale: Float[Tensor, " dim"],
        rotation: Float[Tensor, "dim dim"] | None = None,
        unit_length: bool = False,
    ) -> None:
        super().__init__()
        self.register_buffer("shift", precise(shift))
        self.register_buffer("scale", precise(scale))
        self.register_buffer("rotation", None if rotation is None else precise(rotation))
        self.unit_length = unit_length

    @classmethod
    @torch.no_grad()
    def fit(cls, features: Float[Tensor, "samples dim"], scaling: Scaling) -> FeatureScaling:
        """Measure shift, rotation and scale.

        Args:
            features: [n, d].
            scaling: one of ``SCALINGS``.

        Raises:
            ValueError: the scaling is unknown.
        """
        if scaling not in SCALINGS:
            raise ValueError(f"scaling is {scaling!r}, but must be one of {', '.join(SCALINGS)}")
        features = precise(floating(features))
        if scaling == "none":
            return cls(torch.zeros_like(features[0]), torch.ones_like(features[0]))
        # In a unit of their own, a power of two so that nothing is rounded: squares of large numbers are infinite.
        unit = _power_of_two(features.abs().amax())
        with full_precision(features.device.type):
            fitted = cls._measured(features / unit, scaling)
        return cls(fitted.shift * unit, fitted.scale / unit, fitted.rotation, fitted.unit_length)

    @classmethod
    def _measured(cls, features: Tensor, scaling: Scaling) -> FeatureScaling:
        """What :meth:`fit` measures on features whose largest entry is about one."""
        shift = features.mean(0)
        centred = features - shift
        variance = centred.square().mean(0)
        # A constant feature keeps a rest of rounding, which must not be blown up to unit variance.
        varies = variance.sqrt() > 10 * torch.finfo(features.dtype).eps * features.abs().amax(0)
        if scaling == "standard":
            scale = torch.where(varies, variance, torch.inf).rsqrt() / varies.sum().clamp(min=1).sqrt()
            return cls(shift, scale)
        total = torch.where(varies, variance, 0.0).sum()
        if scaling == "whitened" and total > 0:
            return cls(shift, *_whitening(centred, total))
        scale = torch.where(total > 0, total, 1.0).rsqrt().expand_as(shift).clone()
        return cls(shift, scale, unit_length=scaling == "cosine")

    @classmethod
    def room_for(cls, saved: Mapping[str, Tensor], prefix: str) -> FeatureScaling:
        """A scaling over such tensors, to be filled by a state dict.

        Args:
            saved: tensors by their names in the state dict.
            prefix: of the names of this module's own.
        """
        return cls(saved[prefix + "shift"], saved[prefix + "scale"], saved.get(prefix + "rotation"))

    def forward(self, features: Float[Tensor, "samples dim"]) -> Float[Tensor, "samples dim"]:
        """Scaled features, [n, d], in the precision of the buffers, float32 at least."""
        centred = features.to(self.shift.dtype) - self.shift
        with full_precision(features.device.type):
            scaled = (centred if self.rotation is None else centred @ self.rotation) * self.scale
        return functional.normalize(scaled, dim=-1) if self.unit_length else scaled

    def get_extra_state(self) -> dict[str, bool]:
        """What a state dict holds besides the buffers."""
        return {"unit_length": self.unit_length}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`get_extra_state` gave."""
        self.unit_length = state["unit_length"]


def _power_of_two(largest: Tensor) -> Tensor:
    """The power of two at or below a number, one for zero."""
    exponent = torch.frexp(largest).exponent - 1
    return torch.where(largest > 0, torch.ldexp(torch.ones_like(largest), exponent), 1.0)


def _whitening(centred: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """Scale, [d], and rotation, [d, d], that bring principal components to about the same variance."""
    samples, dim = centred.shape
    covariance = centred.mT @ centred / samples
    # Where many features are constant, eigenvalues of single precision may not converge, or come as NaN.
    wide = covariance if covariance.device.type == "mps" else covariance.double()
    variances, rotation = (part.to(centred.dtype) for part in torch.linalg.eigh(wide))
    floor = (WHITENING_FLOOR + WHITENING_DOUBT * dim / samples) * total / dim
    scale = (variances.clamp(min=0.0) + floor).rsqrt()
    return scale / (variances * scale.square()).sum().sqrt(), rotation
