"""Files that are either the old one or the new one, never half of either."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from stable_baselines3.common.base_class import BaseAlgorithm


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


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""

    def write_encoded(file: io.BufferedIOBase) -> None:
        file.write(text.encode())

    atomic_write(path, write_encoded)


class AtomicSave(BaseAlgorithm):
    """Mixed in before one of SB3's algorithms, whose ``save`` then never leaves a half-written file."""

    def save(
        self,
        path: str | Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """Save as SB3 does, but write aside and rename, so that a full disk or a crash keeps the old file.

        Args:
            path: file name (``.zip`` is added when it has no suffix) or an open binary file.
            exclude: names of attributes to leave out besides the usual ones.
            include: names of attributes to save although they are usually left out.
        """
        if isinstance(path, io.BufferedIOBase):
            super().save(path, exclude=exclude, include=include)
            return
        path = Path(path)
        path = path if path.suffix else path.with_suffix(".zip")
        atomic_write(path, lambda file: super(AtomicSave, self).save(file, exclude=exclude, include=include))
