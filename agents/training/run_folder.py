"""The folder of a run: where its parts lie, and who may write to them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agents.common.schema import ConfigError
from agents.training.config import RunConfig
from agents.training.settings import load_config

try:
    import fcntl
except ImportError:  # Windows, where nothing keeps two runs apart
    fcntl = None  # type: ignore[assignment]

Checkpoint = Literal["final", "best"]
LOCK = ".run.lock"

OWN_FILES = ("result.json", "config.yaml", "model.zip", "best_model.zip", "events.out.tfevents.*", "*-episode-0.mp4")


@dataclass(frozen=True)
class RunFolder:
    """Where the parts of a run lie."""

    path: Path

    @classmethod
    def of(cls, config: RunConfig) -> RunFolder:
        """The folder that a configuration names, or the one that its agent, environment and seed make.

        Raises:
            ConfigError: the name is empty, which would be the present folder.
        """
        if config.run_dir is not None and not config.run_dir.strip():
            raise ConfigError(
                f"run_dir is {config.run_dir!r}, which names no folder; give one with --run-dir, the present one as "
                "--run-dir . , or leave it out for runs/AGENT/ENV/seedSEED"
            )
        default = Path("runs", config.agent, config.env, f"seed{config.seed}")
        return cls(default if config.run_dir is None else Path(config.run_dir))

    @property
    def config(self) -> Path:
        """Complete settings."""
        return self.path / "config.yaml"

    @property
    def result(self) -> Path:
        """Scores and provenance; written last, so that it marks a finished run."""
        return self.path / "result.json"

    def model(self, checkpoint: Checkpoint) -> Path:
        """Model at the end of training, or at its best periodic evaluation."""
        return self.path / ("model.zip" if checkpoint == "final" else "best_model.zip")

    def check_free(self, *, force: bool) -> None:
        """Make sure that a run may be written here.

        Raises:
            ConfigError: a finished run lies here and `force` is off, or the path is no folder that can be written.
        """
        try:
            self._check_free(force)
        except OSError as error:
            raise self._unwritable(error) from error

    def check_present(self) -> None:
        """Make sure that there is a folder.

        Raises:
            ConfigError: there is none, or it cannot be read.
        """
        try:
            is_folder, is_file = self.path.is_dir(), self.path.is_file()
        except OSError as error:
            raise ConfigError(f"cannot read the run folder {self.path}: {error.strerror}") from error
        if not is_folder:
            advice = f"; give that of the model, {self.path.parent}" if is_file else ""
            raise ConfigError(f"there is no run folder {self.path}{advice}")

    def _check_free(self, force: bool) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"the run folder {self.path} is a file; choose another with --run-dir")
        if self.result.exists() and not force:
            raise ConfigError(
                f"{self.path} holds a finished run; overwrite it with --force or choose another folder with --run-dir"
            )
        if not force and any(file for pattern in OWN_FILES for file in self.path.glob(pattern)):
            try:
                load_config(self.config)
            except ConfigError as error:
                raise ConfigError(
                    f"{self.path} holds files that are not of a run and would be replaced; choose another folder with "
                    "--run-dir, or overwrite them with --force"
                ) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder, and keep other runs out of it until the block, or this process, ends.

        Raises:
            ConfigError: another run is in it, or it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = open(self.path / LOCK, "w")  # noqa: SIM115  closed below, at the end of the block
        except OSError as error:
            raise self._unwritable(error) from error
        with file:
            if fcntl is not None:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise ConfigError(
                        f"another run is writing to {self.path}; choose another folder with --run-dir"
                    ) from error
                except OSError:
                    pass  # a file system without locks, where nothing keeps two runs apart
            yield

    def clear(self) -> None:
        """Remove what an earlier run left in the folder: the result first, for it marks a finished one.

        Raises:
            ConfigError: the folder cannot be written.
        """
        try:
            for pattern in OWN_FILES:
                for file in self.path.glob(pattern):
                    file.unlink()
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> ConfigError:
        return ConfigError(f"cannot write the run folder {self.path}: {error}; choose another with --run-dir")
