"""Variants: an agent with settings of its own under a label, so that an ablation is one grid."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agents.common.schema import ConfigError
from agents.training.command_line import Flags, flag_name
from agents.training.settings import file_flags, read_yaml

OF_THE_GRID = ("agent", "env", "seed", "run_dir", "threads", "config", "force", "progress_bar", "verbose")
"""Settings that the grid itself gives to `train.py`."""


@dataclass(frozen=True)
class Variant:
    """One row of a comparison."""

    label: str
    """Name in folders, tables and figures."""

    agent: str
    """Agent by its `train.py` name."""

    settings: Flags = field(default_factory=dict)
    """Words by setting name, over those of the grid."""

    def __post_init__(self) -> None:
        """Refuse what no folder can be called."""
        taken = self.label == "command.txt"  # of the grid itself
        if not self.label or taken or self.label.startswith((".", "-")) or any(sign in self.label for sign in "/|"):
            raise ConfigError(f"'{self.label}' is no label; take a word that can name a folder")


def read_variants(words: Sequence[str], file: Path | None) -> list[Variant]:
    """Variants of a command line, then those of a file.

    Args:
        words: each an agent's name, or LABEL=AGENT,NAME=VALUE,….
        file: YAML that maps labels to settings as `train.py --config` takes them, `agent` among them.

    Raises:
        ConfigError: a word or an entry of another form, or a label given twice.
    """
    variants = [_from_word(word) for word in words]
    if file is not None:
        variants += [_from_entry(label, entry, file) for label, entry in read_yaml(file).items()]
    labels = [variant.label for variant in variants]
    if repeated := sorted({label for label in labels if labels.count(label) > 1}):
        raise ConfigError(f"two variants are called {', '.join(repeated)}; give one of them another label")
    return variants


def read_settings(words: Sequence[str]) -> Flags:
    """NAME=VALUE words as flags; a value with spaces is a list.

    Raises:
        ConfigError: a word of another form, a name given twice, or a setting that the grid gives itself.
    """
    flags = {name: value.split() for name, value in split_pairs(words, "kernel.k=32", flag_name).items()}
    _check_free(flags)
    return flags


def split_pairs(words: Sequence[str], example: str, known_as: Callable[[str], str] = str) -> dict[str, str]:
    """NAME=VALUE words as a mapping.

    Args:
        words: as said.
        example: one, for messages.
        known_as: the name in the mapping, by the one that is given.

    Raises:
        ConfigError: a word of another form, or a name given twice.
    """
    pairs: dict[str, str] = {}
    for word in words:
        name, _, value = word.partition("=")
        if not name or not value:
            raise ConfigError(f"'{word}' is no NAME=VALUE, for example {example}")
        name = known_as(name)
        if name in pairs:
            raise ConfigError(f"'{name}' is given twice; keep one")
        pairs[name] = value
    return pairs


def _from_word(word: str) -> Variant:
    label, assigned, rest = word.partition("=")
    agent, *settings = rest.split(",") if assigned else [label]
    return Variant(label, agent, read_settings(settings))


def _from_entry(label: str, entry: Any, file: Path) -> Variant:
    if not isinstance(entry, Mapping) or "agent" not in entry:
        raise ConfigError(f"{file}: '{label}' must hold settings, agent among them: {label}: {{agent: kernel_ddqn}}")
    _check_free(name for name in entry if name != "agent")
    flags = file_flags(entry, source=f"{file}: {label}: ")
    (agent,) = flags.pop("agent")
    return Variant(label, agent, flags)


def _check_free(names: Iterable[str]) -> None:
    if taken := [name for name in names if name in OF_THE_GRID]:
        raise ConfigError(f"'{taken[0]}' is given by the grid itself; leave it out of overrides and variants")
