"""Imports go one way: ``skrl`` ← ``agents`` ← ``train.py`` and ``envs`` ← ``train.py``.

The source is read, never run, so that imports inside functions and under ``TYPE_CHECKING`` count too.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

OURS: dict[str, set[str]] = {
    "skrl": {"skrl"},
    "agents": {"agents", "skrl"},
    "envs": {"envs"},
}
"""Which of our top-level names each package may import."""

THIRD_PARTY: dict[str, set[str]] = {
    "skrl": {"torch", "numpy", "numba"},
}
"""Which foreign packages a package may import; one that is not listed may import any."""

EXCEPTIONS: dict[str, set[str]] = {
    "skrl/readouts/checked_input.py": {"sklearn"},
    "skrl/readouts/estimators.py": {"sklearn"},
    "skrl/readouts/probe.py": {"matplotlib"},
    "skrl/solve/fused_kernels.py": {"triton"},
    "skrl/shapes.py": {"jaxtyping"},
    "skrl/search/approximate.py": {"faiss"},
}
"""What single files may import besides."""

PROGRAMS = {path.stem for path in ROOT.glob("*.py")}
FIRST_PARTY = set(OURS) | PROGRAMS | {"benchmarks", "configs", "tests"}


def module_name(path: Path) -> str:
    """``agents/common/__init__.py`` is the module ``agents.common``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = [path for package in OURS for path in sorted((ROOT / package).rglob("*.py"))]
MODULES = {module_name(path): path for path in FILES}


def imported_names(source: str, module: str, is_package: bool = False) -> Iterator[str]:
    """Absolute dotted names that a module imports; for ``from a import b`` both ``a`` and ``a.b``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                anchor = parents[: len(parents) - node.level + is_package]
                base = ".".join([*anchor, base] if base else anchor)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def imports_of(path: Path) -> set[str]:
    return set(imported_names(path.read_text(encoding="utf-8"), module_name(path), path.stem == "__init__"))


def imported_modules(path: Path, modules: dict[str, Path]) -> set[str]:
    """What a file needs among ``modules``: ``from a import b`` needs ``a.b`` where that is a module, else ``a``.

    That importing ``a.b`` also runs ``a/__init__.py`` is left out, since a package's ``__init__`` gathers its modules.
    """
    names = imports_of(path)
    submodules_only = {name for name in names if name in modules and _only_for_submodules(path, name, modules)}
    return (names & modules.keys()) - submodules_only - {module_name(path)}


def _only_for_submodules(path: Path, package: str, modules: dict[str, Path]) -> bool:
    """Whether a file names a package just to reach modules in it, as in ``from skrl import compiled``."""
    attributes = {name for name in imports_of(path) if name.rpartition(".")[0] == package}
    return bool(attributes) and attributes <= modules.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    file = path.relative_to(ROOT)
    package = file.parts[0]
    tops = {name.partition(".")[0] for name in imports_of(path)}
    wrong = (tops & FIRST_PARTY) - OURS[package]
    assert not wrong, f"{file} imports {wrong}, but {package} may import {OURS[package]} alone"
    if package in THIRD_PARTY:
        allowed = THIRD_PARTY[package] | EXCEPTIONS.get(file.as_posix(), set())
        foreign = tops - FIRST_PARTY - set(sys.stdlib_module_names)
        assert foreign <= allowed, f"{file} imports {foreign - allowed}, but may import {allowed} alone"


def imports_within(package: str) -> dict[str, set[str]]:
    return {
        module: imported_modules(path, MODULES)
        for module, path in MODULES.items()
        if module.partition(".")[0] == package
    }


def between_rooms(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The same imports among rooms: ``skrl.search.exact`` is in ``skrl.search``; a file in no folder is a room."""
    rooms: dict[str, set[str]] = {}
    for module, imported in graph.items():
        rooms.setdefault(room(module), set()).update(room(name) for name in imported)
    return {name: imported - {name} for name, imported in rooms.items()}


def room(module: str) -> str:
    return ".".join(module.split(".")[:2])


@pytest.mark.parametrize("rooms", [False, True], ids=["modules", "rooms"])
@pytest.mark.parametrize("package", OURS)
def test_no_import_cycle(package: str, rooms: bool) -> None:
    graph = imports_within(package)
    if rooms:
        graph = between_rooms(graph)
    assert len(graph) > 1
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' ← '.join(error.args[1])}")


def test_every_room_is_read() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(OURS)
    assert {"train", "evaluate"} <= PROGRAMS
    for file in EXCEPTIONS:
        assert (ROOT / file).is_file(), f"{file} is gone; remove its exception"


def test_the_reader_sees_every_form_of_import() -> None:
    source = """
import torch.nn as nn, envs
from agents.common import targets
from . import sibling
from ..above import name
if TYPE_CHECKING:
    from jaxtyping import Float
def late():
    import stable_baselines3
"""
    names = set(imported_names(source, "agents.deep.module"))
    assert names == {
        "torch.nn",
        "envs",
        "agents.common",
        "agents.common.targets",
        "agents.deep",
        "agents.deep.sibling",
        "agents.above",
        "agents.above.name",
        "jaxtyping",
        "jaxtyping.Float",
        "stable_baselines3",
    }
    assert "agents.deep.sibling" in imported_names("from . import sibling", "agents.deep", is_package=True)


def test_rooms_can_have_a_cycle_where_modules_have_none() -> None:
    graph = {"skrl.a.x": {"skrl.b.y"}, "skrl.a.z": set(), "skrl.b.y": {"skrl.a.z"}, "skrl.c": {"skrl.a.x", "skrl.b"}}
    TopologicalSorter(graph).prepare()
    rooms = between_rooms(graph)
    assert rooms == {"skrl.a": {"skrl.b"}, "skrl.b": {"skrl.a"}, "skrl.c": {"skrl.a", "skrl.b"}}
    with pytest.raises(CycleError):
        TopologicalSorter(rooms).prepare()


def test_the_reader_sees_a_cycle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    files = {
        "__init__": "from skrl.a import x",
        "a": "from skrl import b",
        "b": "import math\nfrom skrl.c import y",
        "c": "",
    }
    (tmp_path / "skrl").mkdir()
    modules = {}
    for stem, source in files.items():
        path = tmp_path / "skrl" / f"{stem}.py"
        path.write_text(source)
        modules[module_name(path)] = path

    def graph() -> dict[str, set[str]]:
        return {module: imported_modules(path, modules) for module, path in modules.items()}

    assert graph() == {"skrl": {"skrl.a"}, "skrl.a": {"skrl.b"}, "skrl.b": {"skrl.c"}, "skrl.c": set()}
    assert next(iter(TopologicalSorter(graph()).static_order())) == "skrl.c"
    modules["skrl.c"].write_text("def late():\n    from skrl import a")
    with pytest.raises(CycleError):
        TopologicalSorter(graph()).prepare()
    modules["skrl.c"].write_text("from skrl import x")
    with pytest.raises(CycleError):
        TopologicalSorter(graph()).prepare()
