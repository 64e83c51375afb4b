"""Layers of settings: the agent's YAML, over it a file given by the user, over it the command line."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from agents.common.retired import upgraded
from agents.common.schema import (
    ConfigError,
    UnknownSettingError,
    Values,
    coerce_mapping,
    construct,
    is_command_line_only,
    leaf_types,
    merge,
    to_plain,
)
from agents.training.command_line import Flags, flat_flags, nest_flags, spelled
from agents.training.config import RunConfig
from agents.training.registry import AGENTS, AgentSpec, check_config, find_agent

CONFIGS = Path(str(files("configs")))
SECTIONS = ("extends", "defaults", "environments")


def resolve(flags: Flags) -> RunConfig:
    """Settings of a run from parsed command-line flags.

    Args:
        flags: words by dotted setting name.

    Returns:
        The complete configuration, of the class that its agent has.

    Raises:
        ConfigError: a file cannot be read, or a setting is unknown, of the wrong type, out of range or not honoured.
    """
    path = next(iter(flags.get("config", [])), None)
    user_file = {} if path is None else read_yaml(Path(path))
    chosen = {"agent": RunConfig.agent, "env": RunConfig.env}
    for name in chosen:
        chosen[name] = flags[name][0] if flags.get(name) else str(user_file.get(name, chosen[name]))
    spec = find_agent(chosen["agent"])
    from_file = _checked(spec, user_file, source=f"{path}: ")
    from_flags = _checked(spec, _for_agent(spec, flags), source="", command_line=True)
    values = merge(merge(merge(agent_settings(spec, chosen["env"]), from_file), from_flags), chosen)
    config = construct(spec.config, values)
    check_config(spec, config)
    return config


def load_config(path: Path) -> RunConfig:
    """Read the `config.yaml` of a run.

    Raises:
        ConfigError: the file is missing, is no YAML mapping, names no agent, or holds what the agent does not take.
    """
    values = read_yaml(path)
    if "agent" not in values:
        raise ConfigError(f"{path}: names no agent, so it is not the config.yaml of a run")
    spec = find_agent(str(values["agent"]))
    config = construct(spec.config, _checked(spec, values, source=f"{path}: "))
    check_config(spec, config)
    return config


def file_flags(values: Mapping[str, Any], source: str) -> Flags:
    """Settings of a file, the agent among them, as flags of `train.py`.

    Args:
        values: settings by name as `--config` takes them.
        source: where they stand, for messages.

    Raises:
        ConfigError: the agent does not take a setting, or no command line can say it.
    """
    spec = find_agent(str(values["agent"]))
    checked = _checked(spec, values, source)
    try:
        return flat_flags(spec.config, checked)
    except ConfigError as error:
        raise ConfigError(source + str(error)) from error


def dump_config(config: RunConfig) -> str:
    """The complete configuration as YAML that `load_config` and `--config` take back."""
    return yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True)


def agent_settings(spec: AgentSpec, env_id: str) -> Values:
    """Settings in the agent's YAML file for an environment: its defaults under the section of the environment.

    Args:
        spec: the agent.
        env_id: Gymnasium id, with or without the module that registers it. A section's name may hold wildcards; an
            exact name goes before them.

    Returns:
        Checked settings, not all of them.
    """
    sections = _read_sections(spec.name)
    environments = sections["environments"]
    names = env_id, env_id.rpartition(":")[2]
    matching = [pattern for pattern in environments if any(fnmatchcase(name, pattern) for name in names)]
    values = sections["defaults"]
    for pattern in sorted(matching, key=lambda pattern: pattern in names):
        values = merge(values, environments[pattern])
    return _checked(spec, values, source=f"{spec.name}.yaml: ")


def read_yaml(path: Path) -> Values:
    """Read a YAML file that holds a mapping.

    Raises:
        ConfigError: it cannot be read or holds something else.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read settings from {path}: {' '.join(str(error).split())}") from error
    if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{path} must hold a YAML mapping of setting names to values")
    return dict(values)


MERGE = "tag:yaml.org,2002:merge"
"""Of `<<`, which takes the settings of another mapping over and may stand beside names of its own."""


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a name that is given twice in one mapping, of which YAML's readers keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        plain = [key for key, _ in node.value if key.tag != MERGE]
        names = [self.construct_object(key, deep=True) for key in plain]
        if repeated := sorted({str(name) for name in names if names.count(name) > 1}):
            raise yaml.YAMLError(f"{', '.join(repeated)} is given twice, line {node.start_mark.line + 1} and after")
        return super().construct_mapping(node, deep)


def _read_sections(agent: str, heirs: tuple[str, ...] = ()) -> dict[str, Any]:
    """Defaults and environments of an agent's file, laid over those of the file that it extends."""
    if agent in heirs:
        raise ConfigError(f"{agent}.yaml extends itself, by way of {', '.join(heirs)}; leave one `extends` out")
    sections = {"defaults": {}, "environments": {}, **read_yaml(CONFIGS / f"{agent}.yaml")}
    for key in sections:
        if key not in SECTIONS:
            raise ConfigError(f"{agent}.yaml: {UnknownSettingError(key, SECTIONS)}")
    parent = sections.pop("extends", None)
    sections = {key: _section(agent, key, section) for key, section in sections.items()}
    of_environments = sections["environments"]
    sections["environments"] = {key: _section(agent, key, section) for key, section in of_environments.items()}
    return sections if parent is None else merge(_read_sections(parent, (*heirs, agent)), sections)


def _section(agent: str, name: str, section: object) -> Values:
    """A section of an agent's file, which is empty where nothing stands below its name."""
    if section is not None and not isinstance(section, Mapping):
        raise ConfigError(f"{agent}.yaml: {name} holds {section!r}, but must hold settings, one NAME: VALUE a line")
    return dict(section or {})


def _checked(spec: AgentSpec, values: Mapping[str, Any], source: str, *, command_line: bool = False) -> Values:
    """The values in the types of the agent's settings; every complaint names its source."""
    hints = leaf_types(spec.config)
    try:
        if isinstance(values.get("kernel"), Mapping):
            # Files may be older than the names of today; a command line is not.
            kernel = upgraded(values["kernel"])
            values = values if command_line else {**values, "kernel": kernel}
        for name in values:
            if not command_line and is_command_line_only(hints.get(name)):
                raise ConfigError(f"'{name}' belongs on the command line (--{name}), not into a file")
        return coerce_mapping(spec.config, values)
    except UnknownSettingError as error:
        raise ConfigError(source + (_other_owner(spec, error.name) or str(error))) from error
    except ConfigError as error:
        raise ConfigError(source + str(error)) from error


def _for_agent(spec: AgentSpec, flags: Flags) -> Values:
    """Flags as nested settings; one of another agent is named as such, and so is a group without a name."""
    known = leaf_types(spec.config)
    for name in flags:
        if inside := [leaf for leaf in known if leaf.startswith(f"{name}.")]:
            group = spelled(name)
            raise ConfigError(
                f"{group} is a group of settings; give {group}.NAME VALUE, for example {spelled(inside[0])}"
            )
        if name not in known and (complaint := _other_owner(spec, name)):
            raise ConfigError(complaint)
    return nest_flags(spec.config, flags)


def _other_owner(spec: AgentSpec, name: str) -> str | None:
    """A sentence about the agents that do have a setting (or a group of settings), if any."""
    owners = [
        other.name
        for other in AGENTS.values()
        if any(leaf == name or leaf.startswith(f"{name}.") for leaf in leaf_types(other.config))
    ]
    return f"agent '{spec.name}' does not use '{name}'; it belongs to {', '.join(owners)}" if owners else None
