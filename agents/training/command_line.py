"""Command lines as strict as files: `--name value` by the fields of a dataclass."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import is_dataclass
from typing import Annotated, Any, TypeVar, get_args, get_origin

import tyro
import yaml

from agents.common.schema import ConfigError, Values, field_types, leaf_types, nearest

T = TypeVar("T")
Flags = dict[str, list[str]]


def split_flags(argv: Sequence[str]) -> Flags:
    """Words of a command line by the flag that they follow.

    Args:
        argv: the words; `--a-name=value` and `--a_name value` are the same.

    Returns:
        Words by flag name, with underscores.

    Raises:
        ConfigError: a word before the first flag, or a flag given twice.
    """
    flags: Flags = {}
    words: list[str] | None = None
    for word in argv:
        if word.startswith("--"):
            flag, assigned, value = word.partition("=")
            name = flag_name(flag)
            if name in flags:
                raise ConfigError(f"--{name.replace('_', '-')} is given twice; keep one")
            words = flags[name] = [value] if assigned else []
        elif words is None:
            raise ConfigError(f"unexpected argument '{word}'; settings are given as --name value")
        else:
            words.append(word)
    return flags


def flag_name(flag: str) -> str:
    """The name of a setting, with underscores, by a flag or by the name as the command line spells it."""
    return flag.removeprefix("--").replace("-", "_")


def nest_flags(schema: type, flags: Mapping[str, Sequence[str]]) -> Values:
    """Flags as settings of a dataclass, still text, nested where the dataclass is.

    Args:
        schema: the dataclass.
        flags: words by dotted setting name; `no_NAME` switches a truth value off, and what follows the name of a free
            mapping is a key of it, whose value is read as YAML.

    Returns:
        Settings for `agents.common.schema.coerce_mapping`.

    Raises:
        ConfigError: a flag is unknown, with the nearest known one, or has the wrong number of values.
    """
    leaves = leaf_types(schema)
    values: Values = {}
    for flag, words in flags.items():
        free, _, key = flag.partition(".")
        if key and free in leaves and get_origin(_bare(leaves[free])) is dict:
            target = values.setdefault(free, {})
            if not isinstance(target, dict):
                raise ConfigError(f"{spelled(free)} takes its values by name: {spelled(flag)} {' '.join(words)}")
            target[key] = _free_value(flag, _value(flag, words, str))
            continue
        negated = flag.removeprefix("no_")
        if flag not in leaves and negated in leaves and _bare(leaves[negated]) is bool and not words:
            values[negated] = False
            continue
        if flag not in leaves:
            raise ConfigError(f"unknown flag '{spelled(flag)}'; did you mean '{spelled(nearest(flag, leaves))}'?")
        *groups, name = flag.split(".")
        target = values
        for group in groups:
            target = target.setdefault(group, {})
        target[name] = _value(flag, words, _bare(leaves[flag]))
    return values


def flat_flags(schema: type, values: Mapping[str, Any], prefix: str = "") -> Flags:
    """Settings of a dataclass as the flags that `nest_flags` takes back.

    Args:
        schema: the dataclass.
        values: checked settings, which need not be all of them.
        prefix: dotted path of the schema inside a larger one.

    Returns:
        Words by dotted setting name.

    Raises:
        ConfigError: a free mapping holds what no command line can say.
    """
    flags: Flags = {}
    for name, value in values.items():
        hint, dotted = _bare(field_types(schema)[name]), f"{prefix}{name}"
        if get_origin(hint) is dict:
            flags |= {f"{dotted}.{key}": [_free_word(f"{dotted}.{key}", one)] for key, one in value.items()}
        elif isinstance(hint, type) and is_dataclass(hint):
            flags |= flat_flags(hint, value, f"{dotted}.")
        else:
            flags[dotted] = [str(entry) for entry in value] if isinstance(value, list | tuple) else [str(value)]
    return flags


def spelled(name: str) -> str:
    """A setting as it is written on a command line."""
    return f"--{name.replace('_', '-')}"


def print_help(schema: type[T], default: T, prog: str, description: str) -> None:
    """Print every setting with its sentence and its present value."""
    try:
        tyro.cli(schema, default=default, prog=prog, description=description, args=["--help"])
    except SystemExit as finished:
        if finished.code != 0:
            raise


def _value(flag: str, words: Sequence[str], hint: Any) -> Any:
    if get_origin(hint) is tuple:
        return list(words)
    if hint is bool and not words:
        return True
    if len(words) != 1:
        raise ConfigError(f"{spelled(flag)} takes one value, but got {len(words)}: {' '.join(words) or 'none'}")
    return words[0]


def _free_value(flag: str, word: str) -> Any:
    """A word as YAML reads it, but for the numbers that YAML 1.1 takes for text, such as 1e-3."""
    try:
        value = yaml.safe_load(word)
    except yaml.YAMLError as error:
        raise ConfigError(f"{spelled(flag)} is {word!r}, which is no YAML: {' '.join(str(error).split())}") from error
    if value == word:  # and not a text in quotes
        with suppress(ValueError):
            return float(value)
    return value


def _free_word(flag: str, value: Any) -> str:
    """A value of a free mapping as the word that `_free_value` reads as it."""
    if "-" in flag or "=" in flag:
        raise ConfigError(f"'{flag}' holds '-' or '=', which no command line can give; write an underscore")
    try:
        word = json.dumps(value, allow_nan=False, ensure_ascii=False)
        faithful = bool(_free_value(flag, word) == value)
    except (TypeError, ValueError):
        faithful = False
    if not faithful:
        raise ConfigError(
            f"{flag} is {value!r}, which no command line can give; only text, finite numbers, true, false, null, and "
            "lists and mappings of them can be given, numbers within these not as 1e-05"
        )
    return word


def _bare(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint
