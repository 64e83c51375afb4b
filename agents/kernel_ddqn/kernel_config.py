"""Settings of the kernel beside a Q-network."""

from __future__ import annotations

from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any

from skrl.kernels import KERNELS
from skrl.value_heads import HEADS


@dataclass(frozen=True)
class KernelConfig:
    """What the value head remembers, how it predicts, and how often it is refreshed."""

    head: str = "residual"
    """Weights of the neighbours: `residual` (ridge solve), `averaging` (no solve), `network_free` (no network)."""

    k: int = 16
    """Nearest support points that answer a query, per action."""

    capacity: int = 4000
    """Support points in total, shared evenly among the actions."""

    kernel: str = "matern32"
    """Radial kernel: gaussian, laplace, matern32 or matern52."""

    ridge: float = 1.0
    """Tikhonov term on the diagonal of the local Gram matrix (a normalised kernel has ones there)."""

    lengthscale_factor: float = 1.0
    """Lengthscale in units of the median distance from a support point to its k-th neighbour."""

    sweeps: int = 5
    """Bellman backups through the cached neighbours at every refresh."""

    refresh_interval: int = 500
    """Environment steps between two choices of supports; targets are renewed at every target update."""

    newest_fraction: float = 0.5
    """Share of the supports that are the newest transitions; the rest is drawn uniformly from the buffer."""

    exploration_bonus: float = 1.0
    """Posterior standard deviations added to the values when exploring; 0 leaves exploration to ε alone."""

    projection_dim: int = 64
    """Observations with more entries than this are mapped to this many by a fixed random projection."""

    def __post_init__(self) -> None:
        """Reject values that no run could honour."""
        _require(self.head in HEADS, "head", self.head, f"one of {', '.join(HEADS)}")
        _require(self.kernel in KERNELS, "kernel", self.kernel, f"one of {', '.join(KERNELS)}")
        for name in ("k", "capacity", "sweeps", "refresh_interval", "projection_dim"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        _require(self.ridge > 0.0, "ridge", self.ridge, "positive")
        _require(self.lengthscale_factor > 0.0, "lengthscale_factor", self.lengthscale_factor, "positive")
        _require(self.exploration_bonus >= 0.0, "exploration_bonus", self.exploration_bonus, "at least 0")
        _require(0.0 <= self.newest_fraction <= 1.0, "newest_fraction", self.newest_fraction, "between 0 and 1")

    @classmethod
    def from_mapping(cls, values: dict[str, Any]) -> KernelConfig:
        """Build from plain values.

        Raises:
            ValueError: a key is unknown; the message names the nearest known one.
        """
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                near = get_close_matches(key, known, n=1, cutoff=0.0)[0]
                raise ValueError(f"unknown kernel setting '{key}'; did you mean '{near}'? Known: {', '.join(known)}")
        return cls(**values)


def _require(holds: bool, name: str, value: object, rule: str) -> None:
    if not holds:
        raise ValueError(f"kernel.{name} is {value!r}, but must be {rule}")
