from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from skrl import compiling


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two threads, woken for any work."""
    monkeypatch.setattr(compiling, "WAKING_SECONDS", 1e-12)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)
