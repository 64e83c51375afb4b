"""What a result says of its origin: never a clean commit where nobody knows, and a machine that can be told apart."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from agents.training import provenance
from agents.training.provenance import commit


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
