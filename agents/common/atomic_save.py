"""Files that are either the old one or the new one, never half of either."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path


def atomic_write(path: Path, write: Callable[[io.BufferedIOBase], None]) -> None:
    """Write beside the destination, flush to disk, then rename over it.

    Args:
        path: destination; its folder is made when missing.
        write: gets the open binary file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with aside.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
