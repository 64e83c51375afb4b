"""Settings written before a setting of the kernel went or got another name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agents.common.schema import ConfigError

TRAJECTORY = (
    "kernel.backup is trajectory, but backups along trajectories are gone; give continue, which carries values as far "
    "in another way, or take commit be6ab04, the last that has them"
)

SAVED = {"capacity", "ridge", "newest_fraction", "sweeps", "refresh_interval", "exploration_bonus"}
"""Settings of a kernel that every run and every model holds, since they are saved whole."""

WITHOUT_EFFECT = {"network_free": ("backup",), "averaging": ("ridge",)}
"""Settings that had no effect with a head and stood at a default of then, which is another today."""


def upgraded(kernel: Mapping[str, Any]) -> dict[str, Any]:
    """The same settings of a kernel beside a Q-network under today's names and defaults.

    Args:
        kernel: settings. Those that were saved have no ``bonus_fraction`` when they are from before it was one, and a
            ``backup`` of the old kind when they are from before there was ``continue``.

    Raises:
        ConfigError: what they ask for exists no more.
    """
    values = dict(kernel)
    if values.get("backup") == "trajectory":
        raise ConfigError(TRAJECTORY)
    if values.get("backup") == "n_step":
        # Without trajectories the decay of their traces had no effect.
        values["backup"] = "restart"
        values.pop("trace_decay", None)
    if values.keys() >= SAVED and "bonus_fraction" not in values:
        values = {"backup": "restart", "exploration": "optimism", "bonus_fraction": None, **values}
        for name in WITHOUT_EFFECT.get(values.get("head", ""), ()):
            del values[name]
    return values
