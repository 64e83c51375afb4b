"""Settings of the kernel beside a critic."""

from __future__ import annotations

from dataclasses import dataclass

from agents.common.regression_config import RegressionConfig
from agents.common.schema import Count, Fraction, Positive


@dataclass(frozen=True)
class CriticConfig(RegressionConfig):
    """How the critic remembers and predicts; one support set per fold of the environments.

    Raises:
        ConfigError: a value has the wrong type or is out of range.
    """

    k: Count = 32
    """Nearest support points that answer a query; returns are noisier than the residuals of one Bellman backup."""

    ridge: Positive = 0.3
    """Tikhonov term on the diagonal of the local Gram matrix (a normalised kernel has ones there)."""

    trace_decay: Fraction = 0.99
    """λ of the returns that the regression learns from; the advantages keep the λ of PPO."""

    sweeps: Count = 3
    """How often returns and values are computed from each other."""
