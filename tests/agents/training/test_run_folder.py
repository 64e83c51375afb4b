"""The folder of a run: what it gives away, and what it keeps."""

from __future__ import annotations

from pathlib import Path

import pytest

from agents.common.schema import ConfigError
from agents.training.config import RunConfig
from agents.training.run_folder import RunFolder
from agents.training.settings import dump_config


@pytest.mark.parametrize("name", ["config.yaml", "model.zip", "best_model.zip", "events.out.tfevents.1.host"])
def test_files_that_are_not_of_a_run_are_not_replaced(name: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    (tmp_path / name).write_text("of something else\n")
    with pytest.raises(ConfigError, match=r"holds files that are not of a run .*--run-dir, .* --force"):
        folder.check_free(force=False)
    folder.check_free(force=True)


def test_an_unfinished_run_and_files_of_other_names_are_no_hindrance(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    (tmp_path / "notes.txt").write_text("")
    folder.check_free(force=False)
    folder.config.write_text("agent: ddqn\n")
    folder.model("final").write_bytes(b"half")
    folder.check_free(force=False)
    folder.config.write_text(dump_config(RunConfig(agent="no_such_agent")))
    with pytest.raises(ConfigError, match="not of a run"):
        folder.check_free(force=False)


def test_a_finished_run_and_a_file_are_kept(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.result.write_text("{}")
    with pytest.raises(ConfigError, match="holds a finished run; overwrite it with --force"):
        folder.check_free(force=False)
    with pytest.raises(ConfigError, match="is a file; choose another with --run-dir"):
        RunFolder(folder.result).check_free(force=True)


def test_names_of_no_folder_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="run_dir is '', which names no folder; give one with --run-dir"):
        RunFolder.of(RunConfig(run_dir=""))
    with pytest.raises(
        ConfigError, match=r"cannot write the run folder xxx.*name too long.*choose another with --run-dir"
    ):
        RunFolder(Path("x" * 300)).check_free(force=False)

    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", refuse)
    with pytest.raises(ConfigError, match=r"cannot write the run folder .* Permission denied"):
        RunFolder(tmp_path).check_free(force=True)
