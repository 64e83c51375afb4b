"""Settings written before a setting of the kernel went or got another name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agents.common.schema import ConfigError

TRAJECTORY = (
    "kernel.backup is trajectory, but backups along trajectories are gone; give continue, which carries values as far "
    "in another way, or take commit be6ab04, the last that has them"
)


def upgraded(kernel: Mapping[str, Any]) -> dict[str, Any]:
    """The same settings of a kernel beside a Q-network under today's names.

    Args:
        kernel: settings; where their ``backup`` is of the old kind, they are from before there was ``continue``.

    Raises:
        ConfigError: what they ask for exists no more.
    """
    backup = kernel.get("backup")
    if backup == "trajectory":
        raise ConfigError(TRAJECTORY)
    if backup != "n_step":
        return dict(kernel)
    # Without trajectories the decay of their traces had no effect, and backups began anew as they do by default.
    kept = {name: value for name, value in kernel.items() if name not in ("backup", "trace_decay")}
    # Without a network optimism always looked ahead.
    if kernel.get("head") == "network_free" and kernel.get("exploration", "optimism") == "optimism":
        kept["exploration"] = "lookahead"
    return kept
