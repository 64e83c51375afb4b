"""Cells of a grid: the `train.py` call of each, and whether it has been made with the settings now asked for."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from grid_jobs import Job
from grid_variants import Variant

from agents.common.schema import ConfigError, to_plain
from agents.training.budget import check_budget
from agents.training.command_line import Flags, flat_flags, spelled
from agents.training.config import RunConfig
from agents.training.run_folder import RunFolder
from agents.training.settings import load_config, resolve

ROOT = Path(__file__).resolve().parent.parent
WITHOUT_EFFECT = ("run_dir", "progress_bar", "verbose")
"""Settings that no figure of a run depends on."""

State = Literal["missing", "finished", "stale"]


@dataclass(frozen=True)
class Cell:
    """One run: a variant on an environment with a seed."""

    variant: Variant
    env: str
    seed: int
    folder: Path
    """Folder of the grid."""

    settings: Flags
    """Words by setting name, over the agent's configuration; those of the variant go before them."""

    @property
    def name(self) -> str:
        """In words."""
        return f"{self.variant.label} {self.env} seed {self.seed}"

    @property
    def run_folder(self) -> RunFolder:
        """Where the run lies."""
        return RunFolder(self.folder / self.variant.label / self.env / f"seed{self.seed}")

    @property
    def flags(self) -> Flags:
        """Flags of `train.py`."""
        chosen = {"agent": [self.variant.agent], "env": [self.env], "seed": [str(self.seed)]}
        place = {"threads": ["1"], "no_progress_bar": [], "run_dir": [str(self.run_folder.path)]}
        return chosen | self.settings | self.variant.settings | place

    def config(self) -> RunConfig:
        """Complete settings.

        Raises:
            ConfigError: the agent does not take a setting.
        """
        try:
            return resolve(self.flags)
        except ConfigError as error:
            raise ConfigError(f"{self.variant.label}: {error}") from error

    def check(self) -> None:
        """Refuse what `train.py` would refuse before it makes the environment.

        Raises:
            ConfigError: the agent does not take a setting, or its budget is too small for it to learn anything.
        """
        config = self.config()
        try:
            check_budget(config)
        except ConfigError as error:
            raise ConfigError(f"{self.variant.label} on {self.env}: {error}") from error

    def job(self, *, force: bool = False) -> Job:
        """The run as a command; with `force` it replaces whatever lies there, the result of another run among it."""
        words = [word for name, values in self.flags.items() for word in (spelled(name), *values)]
        command = (sys.executable, str(ROOT / "train.py"), *words, *(["--force"] if force else []))
        result = self.run_folder.result
        replaces = result.stat().st_mtime_ns if force and result.exists() else None
        return Job(self.name, command, result, self.config().total_timesteps, replaces)

    def state(self) -> State:
        """Whether there is a result, and whether it was made with these settings."""
        if not self.run_folder.result.exists():
            return "missing"
        return "stale" if self.differences() else "finished"

    def commit(self) -> str | None:
        """Commit of the finished run; None where it is not known."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            found: str | None = json.loads(self.run_folder.result.read_text())["commit"]
            return found
        return None

    def differences(self) -> list[str]:
        """Settings in which the finished run is another one, as `name: theirs, now ours`."""
        try:
            theirs = _words(load_config(self.run_folder.config))
        except ConfigError as error:
            return [str(error)]
        ours = _words(self.config())
        names = [name for name in theirs | ours if name not in WITHOUT_EFFECT]
        return [
            f"{name}: {theirs.get(name)}, now {ours.get(name)}" for name in names if theirs.get(name) != ours.get(name)
        ]


def _words(config: RunConfig) -> dict[str, str]:
    """Every setting by its dotted name, as on a command line."""
    return {name: " ".join(words) for name, words in flat_flags(type(config), to_plain(config)).items()}
