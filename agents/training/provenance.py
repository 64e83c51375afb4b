"""What produced a result: versions, machine and commit."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

DISTRIBUTIONS = ("torch", "stable_baselines3", "sb3_contrib", "gymnasium", "numpy", "sparse_kernel_rl")
SOURCE_ROOT = Path(__file__).resolve().parents[2]
RESULTS = ("benchmarks/results",)
"""Folders whose files come to be while something is measured."""


def versions() -> dict[str, str | None]:
    """Versions of Python, of the packages that shape a result, and of this one (None for what is not installed)."""
    return {"python": platform.python_version(), **{name: _version(name) for name in DISTRIBUTIONS}}


def machine() -> str:
    """Architecture, processor and number of cores, with the accelerator if there is one."""
    parts = [platform.machine(), _processor(), f"{os.cpu_count()} cores"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join(parts)


def commit(root: Path = SOURCE_ROOT, ignore: Sequence[str] = RESULTS) -> str | None:
    """Git commit of a checkout.

    Args:
        root: top folder of the checkout; this code's own when left out.
        ignore: folders whose files do not count as differing.

    Returns:
        The hash, with `-dirty` behind it when files differ from it or git cannot tell; None when the folder is no
        checkout's top, has no commit, or git is not installed.

    Raises:
        ValueError: everything is to be ignored, so that no file could differ.
    """
    if any((root / folder).resolve() == root.resolve() for folder in ignore):
        raise ValueError(f"ignore is {list(ignore)}, which is all of {root}; name folders inside of it")
    top = _git(root, "rev-parse", "--show-toplevel")
    head = _git(root, "rev-parse", "--verify", "HEAD")
    if top is None or head is None or Path(top).resolve() != root.resolve():
        return None
    changes = _git(root, "status", "--porcelain", "--", ".", *(f":(exclude){folder}" for folder in ignore))
    return head if changes == "" else f"{head}-dirty"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "processor unknown"


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
