"""Numbers of a command line that count something."""

from __future__ import annotations

from agents.common.schema import ConfigError


def check_counts(settings: object, *names: str) -> None:
    """Refuse counts below 1; those that are left out are None.

    Args:
        settings: what holds them.
        names: of its fields.

    Raises:
        ConfigError: one is below 1.
    """
    for name in names:
        if (value := getattr(settings, name)) is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} is {value}, but must be at least 1")
