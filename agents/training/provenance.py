"""What produced a result: versions and commit."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

DISTRIBUTIONS = ("torch", "stable_baselines3", "sb3_contrib", "gymnasium", "numpy", "sparse_kernel_rl")
SOURCE_ROOT = Path(__file__).resolve().parents[2]


def versions() -> dict[str, str | None]:
    """Versions of Python, of the packages that shape a result, and of this one (None for what is not installed)."""
    return {"python": platform.python_version(), **{name: _version(name) for name in DISTRIBUTIONS}}


def commit(root: Path = SOURCE_ROOT, ignore: Sequence[str] = ()) -> str | None:
    """Git commit of a checkout.

    Args:
        root: top folder of the checkout; this code's own when left out.
        ignore: folders whose files do not count as differing, for results that are written while they are measured.

    Returns:
        The hash, with `-dirty` behind it when files differ from it; None when the folder is no checkout's top, has no
        commit, or git is not installed.
    """
    top = _git(root, "rev-parse", "--show-toplevel")
    head = _git(root, "rev-parse", "--verify", "HEAD")
    if top is None or head is None or Path(top).resolve() != root.resolve():
        return None
    changes = _git(root, "status", "--porcelain", "--", ".", *(f":(exclude){folder}" for folder in ignore))
    return f"{head}-dirty" if changes else head


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
