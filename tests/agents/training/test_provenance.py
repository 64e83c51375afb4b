"""What a result says of its origin: never a clean commit where nobody knows, and a machine that can be told apart."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import pytest
import torch

from agents.training import provenance
from agents.training.provenance import commit, machine


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    for arguments in (["init", "-q"], [*identity, "commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True)
    return tmp_path


def test_a_commit_whose_state_git_cannot_tell_is_not_clean(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clean = commit(checkout)
    assert clean is not None
    assert commit(checkout, ignore=["/elsewhere"]) == f"{clean}-dirty"  # git refuses paths outside of the checkout
    git = provenance._git
    monkeypatch.setattr(provenance, "_git", lambda root, *words: None if words[0] == "status" else git(root, *words))
    assert commit(checkout) == f"{clean}-dirty"


def test_not_everything_can_be_ignored(checkout: Path) -> None:
    for everything in (".", "", str(checkout)):
        with pytest.raises(ValueError, match="name folders inside of it"):
            commit(checkout, ignore=["results", everything])


def test_a_machine_names_its_processor_and_its_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "_processor", lambda: "Some CPU @ 2 GHz")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert machine() == f"{platform.machine()}, Some CPU @ 2 GHz, {os.cpu_count()} cores"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    assert machine().endswith(" cores, Some GPU")


def test_a_processor_that_nobody_names_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(*_: object, **__: object) -> None:
        raise OSError

    assert provenance._processor()
    monkeypatch.setattr("builtins.open", unreadable)
    monkeypatch.setattr(platform, "processor", lambda: "")
    assert provenance._processor() == "processor unknown"
