"""Settings that every local kernel regression has, whatever it regresses and whoever chooses its supports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from typing_extensions import Self

from agents.common.schema import ConfigError, Count, Positive, coerce_mapping


@dataclass(frozen=True)
class LocalKernelConfig:
    """How many neighbours answer a query, and how they are weighed.

    Raises:
        ConfigError: a value has the wrong type or is out of range.
    """

    k: Count = 16
    """Nearest support points that answer a query."""

    capacity: Count = 4000
    """Support points in total, shared evenly among the support sets."""

    kernel: Literal[
        "gaussian",
        "laplace",
        "matern32",
        "matern52",
        "inverse_multiquadric",
        "wendland_c2",
        "wendland_c4",
        "polynomial",
    ] = "matern32"
    """Kernel of the local regression; all but polynomial are functions of the distance."""

    ridge: Positive = 1.0
    """Tikhonov term on the diagonal of the local Gram matrix (a normalised kernel has ones there)."""

    localisation: Literal["hard", "continuous"] = "hard"
    """How a neighbour's say ends when another takes its place: `hard` (at once), `continuous` (after fading)."""

    lengthscale_factor: Positive = 1.0
    """Lengthscale in units of the median distance from a support point to its k-th neighbour."""

    projection_dim: Count = 64
    """Observations or layers with more entries are mapped to this many by a fixed random projection."""

    def __post_init__(self) -> None:
        """Coerce every field to its type and reject what is out of range."""
        for name, value in coerce_mapping(type(self), vars(self), prefix="kernel.").items():
            object.__setattr__(self, name, value)

    @classmethod
    def read(cls, given: object, defaults: Mapping[str, object] | None = None) -> Self:
        """Settings from themselves, from a mapping of some of their fields, or from None for the defaults.

        Args:
            given: as said.
            defaults: what a mapping, or None, differs from, where that is not the defaults of every field.

        Raises:
            ConfigError: it is something else, or a value is unknown or out of range.
        """
        if isinstance(given, cls):
            return given
        if given is None or isinstance(given, Mapping):
            return cls.from_mapping({**(defaults or {}), **(given or {})})
        raise ConfigError(
            f"kernel is a {type(given).__name__}, but must be a {cls.__name__} or a mapping of its fields"
        )

    @classmethod
    def from_mapping(cls, values: Mapping[str, object]) -> Self:
        """Build from plain values.

        Raises:
            UnknownSettingError: a key is unknown; the message names the nearest known one.
            ConfigError: a value has the wrong type or is out of range.
        """
        return cls(**coerce_mapping(cls, values, prefix="kernel."))
