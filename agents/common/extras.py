"""Packages that need not be installed."""

from __future__ import annotations


def missing_from_zoo(wanted: str, error: ModuleNotFoundError) -> str:
    """What to tell a user who asks for something that needs a package of the extra `zoo`.

    Args:
        wanted: what was asked for.
        error: raised when its package was imported.
    """
    return (
        f"{wanted} needs {error.name}, which is not installed; "
        'run: pip install "sparse-kernel-rl[zoo]", or in a checkout: pip install -e ".[zoo]"'
    )
