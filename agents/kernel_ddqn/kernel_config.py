"""Settings of the kernel beside a Q-network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from agents.common.schema import ConfigError, Count, Fraction, NonNegativeReal, Positive, coerce_mapping

WITHOUT_MEANING = {
    "averaging": ("the averaging head solves nothing", ("ridge", "localisation", "lengthscale_rule")),
    "network_free": ("the network-free head has no network beside it", ("applies_to", "features")),
}
"""What a head lacks, and the settings that it therefore cannot honour."""


@dataclass(frozen=True)
class KernelConfig:
    """What the value head remembers, how it predicts, and how often it is refreshed.

    Raises:
        ConfigError: a value has the wrong type or is out of range.
    """

    head: Literal["residual", "averaging", "network_free"] = "residual"
    """Weights of the neighbours: `residual` (ridge solve), `averaging` (no solve), `network_free` (no network)."""

    applies_to: Literal["both", "targets", "acting"] = "both"
    """Where the correction is added: `targets` of minibatches, `acting` and evaluation, or `both`."""

    k: Count = 16
    """Nearest support points that answer a query, per action."""

    capacity: Count = 4000
    """Support points in total, shared evenly among the actions."""

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

    lengthscale_rule: Literal["neighbors", "leave_one_out"] = "neighbors"
    """`neighbors`: that length; `leave_one_out`: ½, 1, 2 or 4 times it, whichever erred least at the last rebuild."""

    backup: Literal["n_step", "trajectory"] = "n_step"
    """Bellman backups over `n_step` returns, or from there on along the `trajectory` while that is greedy."""

    trace_decay: Fraction = 0.9
    """λ of the backups along trajectories: how much of the later target enters in place of the value there."""

    sweeps: Count = 5
    """Bellman backups through the cached neighbours at every refresh."""

    refresh_interval: Count = 500
    """Environment steps between two choices of supports; targets are renewed at every target update."""

    newest_fraction: Fraction = 0.5
    """Share of the supports that are the newest transitions; the rest is drawn uniformly from the buffer."""

    exploration_bonus: NonNegativeReal = 1.0
    """Posterior standard deviations added to the values when exploring; 0 leaves exploration to ε alone."""

    features: Literal["observation", "penultimate", "both"] = "observation"
    """Space of the distances: the `observation`, the network's last hidden layer (`penultimate`), or `both`."""

    projection_dim: Count = 64
    """Observations or layers with more entries are mapped to this many by a fixed random projection."""

    def __post_init__(self) -> None:
        """Coerce every field to its type and reject what is out of range."""
        for name, value in coerce_mapping(type(self), vars(self), prefix="kernel.").items():
            object.__setattr__(self, name, value)
        reason, names = WITHOUT_MEANING.get(self.head, ("", ()))
        for name in names:
            if getattr(self, name) != getattr(type(self), name):
                raise ConfigError(f"kernel.{name} is {getattr(self, name)}, but {reason}; leave {name} out")
        if self.backup == "n_step" and self.trace_decay != type(self).trace_decay:
            raise ConfigError(
                f"kernel.trace_decay is {self.trace_decay}, but n_step backups follow no trace; leave it out"
            )
        if self.head == "averaging" and self.kernel == "polynomial":
            raise ConfigError("kernel.kernel is polynomial, but the averaging head weighs by distance; take another")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> KernelConfig:
        """Build from plain values.

        Raises:
            UnknownSettingError: a key is unknown; the message names the nearest known one.
            ConfigError: a value has the wrong type or is out of range.
        """
        return cls(**coerce_mapping(cls, values, prefix="kernel."))
