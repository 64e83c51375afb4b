"""Packages that need not be installed."""

from __future__ import annotations


def not_installed(wanted: str, package: str | None, extra: str) -> str:
    """What to tell a user who asks for something that needs a package of an extra.

    Args:
        wanted: what was asked for.
        package: the package that is missing.
        extra: the extra that brings it.
    """
    return (
        f"{wanted} needs {package}, which is not installed; in the folder of this project run: "
        f'pip install -e ".[{extra}]"'
    )


def missing_from_zoo(wanted: str, error: ModuleNotFoundError) -> str:
    """The same for a package of the extra `zoo`.

    Args:
        wanted: what was asked for.
        error: raised when its package was imported.
    """
    return not_installed(wanted, error.name, "zoo")
