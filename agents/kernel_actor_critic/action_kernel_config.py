"""Settings of the kernel beside the critics of an actor–critic."""

from __future__ import annotations

from dataclasses import dataclass

from agents.common.regression_config import RegressionConfig
from agents.common.schema import Count


@dataclass(frozen=True)
class ActionKernelConfig(RegressionConfig):
    """What is remembered of replayed state–action pairs, how it predicts, and how often it is refreshed.

    Raises:
        ConfigError: a value has the wrong type or is out of range.
    """

    sweeps: Count = 5
    """Bellman backups through the cached neighbours at every refresh."""

    refresh_interval: Count = 500
    """Environment steps between two choices of supports."""

    rebase_interval: Count = 50
    """Gradient steps between two renewals of the residuals, at least, for target networks move with each."""
