"""Strict settings: plain values checked and coerced against the fields of a dataclass."""

from __future__ import annotations

import math
import types
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from numbers import Integral, Real
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")
Values = dict[str, Any]


class ConfigError(ValueError):
    """A setting that no run can honour; the message is one sentence for the user."""


class UnknownSettingError(ConfigError):
    """A key that is no setting of the agent."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        super().__init__(f"unknown setting '{name}'; did you mean '{nearest(name, known)}'?")
        self.name = name


@dataclass(frozen=True)
class Range:
    """The values that a number may take; beside a type in `Annotated`."""

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf

    def __contains__(self, value: float) -> bool:
        """Whether the number is allowed."""
        return self.least <= value <= self.most and value > self.above

    def __str__(self) -> str:
        """The rule in words."""
        limits = {"at least": self.least, "above": self.above, "at most": self.most}
        return " and ".join(f"{words} {limit:.12g}" for words, limit in limits.items() if math.isfinite(limit))


Count = Annotated[int, Range(least=1)]
NonNegative = Annotated[int, Range(least=0)]
Seed = Annotated[int, Range(least=0, most=4_000_000_000)]
"""Below 2³², where numpy's end, with room for the seeds that copies and evaluations derive from it."""

NonNegativeReal = Annotated[float, Range(least=0.0)]
Positive = Annotated[float, Range(above=0.0)]
Fraction = Annotated[float, Range(least=0.0, most=1.0)]
PositiveFraction = Annotated[float, Range(above=0.0, most=1.0)]


@dataclass(frozen=True)
class CommandLineOnly:
    """Marks, beside a type in `Annotated`, what concerns one call of a command and is never saved with a run."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name closest to a misspelt one; small and capital letters, dashes and underscores count alike."""
    plain = {_plain(candidate): candidate for candidate in sorted(known)}
    return plain[get_close_matches(_plain(name), plain, n=1, cutoff=0.0)[0]]


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def field_types(schema: type) -> Mapping[str, Any]:
    """Type of every field, what `Annotated` adds included."""
    return _read_annotations(schema)


@cache
def _read_annotations(schema: type) -> Mapping[str, Any]:
    """Remembered, since evaluating annotations takes long; apart, since mypy takes no class variable for hashable."""
    return types.MappingProxyType(get_type_hints(schema, include_extras=True))


def leaf_types(schema: type) -> dict[str, Any]:
    """Type of every setting by its dotted name, the settings of nested dataclasses included."""
    leaves: dict[str, Any] = {}
    for name, hint in field_types(schema).items():
        if isinstance(hint, type) and is_dataclass(hint):
            leaves.update({f"{name}.{inner}": inner_hint for inner, inner_hint in leaf_types(hint).items()})
        else:
            leaves[name] = hint
    return leaves


def coerce_mapping(schema: type, values: Mapping[str, Any], prefix: str = "") -> Values:
    """Check and coerce the given settings, which need not be all of them.

    Args:
        schema: a dataclass.
        values: plain values by field name; a nested dataclass is a mapping.
        prefix: dotted path of the schema inside a larger one, for messages.

    Returns:
        The same keys with values of the fields' types; a nested mapping stays a mapping.

    Raises:
        UnknownSettingError: a key is no field; the message names the nearest one.
        ConfigError: a value has the wrong type or is out of range.
    """
    hints = field_types(schema)
    for key in values:
        if key not in hints:
            raise UnknownSettingError(f"{prefix}{key}", (f"{prefix}{name}" for name in leaf_types(schema)))
    return {key: coerce(value, hints[key], f"{prefix}{key}") for key, value in values.items()}


def coerce(value: Any, hint: Any, name: str) -> Any:
    """Turn a plain value into one of a field's type.

    Text is read as a number where a number is wanted, because YAML takes `1e-4` for text and a command line has nothing
    else; nothing is rounded, and true and false are no numbers.

    Args:
        value: what the file or the command line holds.
        hint: type of the field: bool, int, float, str, `Literal`, optional, `tuple[X, ...]`, `dict[str, Any]`, a
            dataclass, or one of these with a `Range` in `Annotated`.
        name: dotted name of the setting, for messages.

    Returns:
        The value in the field's type.

    Raises:
        ConfigError: the value is of another type or out of range.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _within_ranges(coerce(value, arguments[0], name), hint.__metadata__, name)
    if origin is Literal:
        return _one_of(value, arguments, name)
    if origin in (Union, types.UnionType):
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return None if value is None or value in ("None", "null") else coerce(value, inner, name)
    if origin is dict:
        return _free_mapping(value, name)
    if origin is tuple:
        return _sequence(value, arguments[0], name)
    if isinstance(hint, type) and is_dataclass(hint):
        return _nested(value, hint, name)
    return _PRIMITIVES[hint](value, name)


def construct(schema: type[T], values: Mapping[str, Any]) -> T:
    """Build a dataclass from plain values.

    Raises:
        ConfigError: a key, a type or a value that the dataclass rejects.
    """
    arguments = coerce_mapping(schema, values)
    for name, value in arguments.items():
        if isinstance(value, Mapping) and is_dataclass(field_types(schema)[name]):
            arguments[name] = construct(field_types(schema)[name], value)
    try:
        return schema(**arguments)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error


def to_plain(config: Any) -> Values:
    """Every setting of a dataclass as plain values that `construct` takes back, without `CommandLineOnly` ones."""
    hints = field_types(type(config))
    saved = (field.name for field in fields(config) if not is_command_line_only(hints[field.name]))
    plain = asdict(config)
    return {name: list(plain[name]) if isinstance(plain[name], tuple) else plain[name] for name in saved}


def is_command_line_only(hint: Any) -> bool:
    """Whether a field's type carries the mark."""
    return any(isinstance(mark, CommandLineOnly) for mark in getattr(hint, "__metadata__", ()))


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> Values:
    """`base` with the values of `over` in it, nested mappings key by key."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            merged[key] = merge(below, value)
        else:
            merged[key] = value
    return merged


def _within_ranges(value: Any, metadata: Sequence[Any], name: str) -> Any:
    for rule in metadata:
        if isinstance(rule, Range) and value not in rule:
            raise ConfigError(f"{name} is {value!r}, but must be {rule}")
    return value


def _one_of(value: Any, choices: Sequence[Any], name: str) -> Any:
    if value not in choices:
        listed = ", ".join(map(str, choices))
        raise ConfigError(f"{name} is {value!r}; did you mean '{nearest(str(value), choices)}'? Choices: {listed}")
    return value


def _sequence(value: Any, inner: Any, name: str) -> tuple[Any, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise _wrong_type(value, "a list", name)
    return tuple(coerce(entry, inner, f"{name}[{index}]") for index, entry in enumerate(value))


def _nested(value: Any, schema: type, name: str) -> Any:
    if isinstance(value, schema):
        return value
    if not isinstance(value, Mapping):
        raise _wrong_type(value, "a mapping", name)
    return coerce_mapping(schema, value, f"{name}.")


def _free_mapping(value: Any, name: str) -> Values:
    """Whatever another program takes, so that nothing is coerced."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise _wrong_type(value, "a mapping of names to values", name)
    return dict(value)


def _boolean(value: Any, name: str) -> bool:
    words = {"true": True, "false": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    raise _wrong_type(value, "true or false", name)


def _whole(value: Any, name: str) -> int:
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    number = _read_number(value) if isinstance(value, str) else None
    if isinstance(number, int) or (number is not None and number.is_integer()):
        return int(number)
    raise _wrong_type(value, "a whole number", name)


def _real(value: Any, name: str) -> float:
    number = _read_number(value) if isinstance(value, str) else value
    if isinstance(number, Real) and not isinstance(number, bool):
        with suppress(OverflowError):  # a whole number beyond all floats
            if math.isfinite(number):
                return float(number)
    raise _wrong_type(value, "a finite number", name)


def _text(value: Any, name: str) -> str:
    if isinstance(value, str):
        return value
    raise _wrong_type(value, "text (quote it in YAML)", name)


def _read_number(text: str) -> int | float | None:
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return None


def _wrong_type(value: Any, expected: str, name: str) -> ConfigError:
    return ConfigError(f"{name} is {value!r} ({type(value).__name__}), but must be {expected}")


_PRIMITIVES = {bool: _boolean, int: _whole, float: _real, str: _text}
