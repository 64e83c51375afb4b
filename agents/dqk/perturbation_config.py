"""Settings of the kernel that perturbs a Q-network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from agents.common.local_kernel_config import LocalKernelConfig
from agents.common.schema import Count


@dataclass(frozen=True)
class PerturbationConfig(LocalKernelConfig):
    """The kernel of both perturbations; its supports and targets are learned.

    Raises:
        ConfigError: a value has the wrong type or is out of range.
    """

    capacity: Count = 256
    """Support points, one set for both layers."""

    localisation: Literal["hard", "continuous"] = "continuous"
    """How a neighbour's say ends when another takes its place: `hard` (at once), `continuous` (after fading)."""
