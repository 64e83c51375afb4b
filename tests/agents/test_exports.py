"""What `from agents import …` offers."""

from __future__ import annotations

import importlib
import sys

import pytest

import agents
from agents.common.atomic_save import AtomicSave
from agents.common.named_runs import NamedRuns


def test_every_name_is_there() -> None:
    assert all(getattr(agents, name).__name__ == name for name in agents.__all__)
    with pytest.raises(ImportError, match="NoSuchAgent"):
        from agents import NoSuchAgent  # noqa: F401


def test_what_needs_another_package_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sb3_contrib", None)
    for name in [name for name in sys.modules if name.startswith("agents.kernel_qrdqn")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(
        ImportError,
        match=r"KernelQRDQN needs sb3_contrib, which is not installed; in the folder of this project run: pip",
    ):
        _ = agents.KernelQRDQN


def test_a_star_import_leaves_out_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "agents")
    module = importlib.import_module("agents")
    assert "KernelQRDQN" not in module.__all__
    assert "KernelDDQN" in module.__all__


@pytest.mark.parametrize("name", ["DoubleDQN", "DQK", "KernelDDQN", "KernelQRDQN", "NormalizedPPO", "KernelSAC"])
def test_every_algorithm_saves_whole_files_and_names_its_runs(name: str) -> None:
    assert issubclass(getattr(agents, name), AtomicSave)
    assert issubclass(getattr(agents, name), NamedRuns)
