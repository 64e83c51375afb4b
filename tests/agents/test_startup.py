from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

import agents
from agents.startup import DISTRIBUTION, ForeignPackageError, check_installation


def test_our_own_kernel_core_passes() -> None:
    check_installation()


def test_agents_do_not_start_on_a_foreign_package(tmp_path: Path) -> None:
    (tmp_path / "skrl").mkdir()
    (tmp_path / "skrl" / "__init__.py").touch()
    root = Path(agents.__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (tmp_path, root)))}
    started = subprocess.run(
        [sys.executable, "-c", "import agents"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert started.returncode == 1
    assert "ForeignPackageError: Python found a foreign package named 'skrl' at " in started.stderr
    assert str(tmp_path / "skrl" / "__init__.py") in started.stderr


def test_a_foreign_package_of_the_same_name_is_named_with_a_remedy() -> None:
    foreign = types.ModuleType("skrl")
    foreign.__file__ = "site-packages/skrl/__init__.py"
    with pytest.raises(
        ForeignPackageError, match=f"site-packages/skrl/__init__.py, not the kernel core of {DISTRIBUTION}"
    ):
        check_installation(foreign)
