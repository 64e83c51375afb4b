"""The scripts of `benchmarks/` are no package; here they are found as when one of them runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))


@pytest.fixture
def replaced(monkeypatch: pytest.MonkeyPatch) -> set[Path]:
    """Files that were written aside and put in their place whole."""
    files: set[Path] = set()
    replace = os.replace

    def noted(aside: Path, path: Path) -> None:
        replace(aside, path)
        files.add(path)

    monkeypatch.setattr(os, "replace", noted)
    return files
