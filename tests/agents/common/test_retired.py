from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from agents.common.schema import ConfigError
from agents.kernel_ddqn.kernel_config import KernelConfig
from agents.training.settings import dump_config, load_config, resolve

DEFAULTS = {"k": 16, "ridge": 1.0, "sweeps": 5, "exploration": "optimism", "backup": "restart"}
"""Of kernel_ddqn, when what it had saved is from before there was a bonus_fraction."""


def _older(tmp_path: Path, agent: str, backup: str = "restart") -> Path:
    """The config.yaml of a run from then, or from when backups could go along trajectories."""
    saved = yaml.safe_load(dump_config(resolve({"agent": [agent], "env": ["CartPole-v1"]})))
    saved["kernel"] = {**saved["kernel"], **DEFAULTS, "backup": backup}
    del saved["kernel"]["bonus_fraction"]
    if backup != "restart":
        saved["kernel"]["trace_decay"] = 0.9
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(saved))
    return file


@pytest.mark.parametrize("backup", ["restart", "n_step"])
@pytest.mark.parametrize("agent", ["kernel_ddqn", "kernel_q", "kernel_qrdqn", "knn_ddqn"])
def test_a_run_from_before_keeps_its_settings(tmp_path: Path, agent: str, backup: str) -> None:
    loaded = load_config(_older(tmp_path, agent, backup))
    idle = {"kernel_q": "backup", "knn_ddqn": "ridge"}.get(agent)
    expected = {name: value for name, value in DEFAULTS.items() if name != idle}
    today = resolve({"agent": [agent], "env": ["CartPole-v1"]})
    assert loaded == replace(today, kernel=replace(today.kernel, **expected, bonus_fraction=None))


def test_a_model_from_before_can_be_loaded() -> None:
    saved = {name: value for name, value in asdict(KernelConfig()).items() if name != "bonus_fraction"}
    assert KernelConfig.read({**saved, "backup": "n_step", "trace_decay": 0.9}) == KernelConfig(
        backup="restart", bonus_fraction=None
    )
    with pytest.raises(ConfigError, match=r"kernel\.trace_decay"):
        KernelConfig.read({"trace_decay": 0.9})


def test_settings_that_somebody_gives_are_todays() -> None:
    assert KernelConfig.read({"k": 8, "exploration_bonus": 2.0}).bonus_fraction == KernelConfig().bonus_fraction


def test_what_is_gone_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config.yaml: kernel.backup is trajectory, but .* are gone; give continue"):
        load_config(_older(tmp_path, "kernel_ddqn", "trajectory"))
    with pytest.raises(ConfigError, match="backups along trajectories are gone"):
        resolve({"agent": ["kernel_ddqn"], "env": ["CartPole-v1"], "kernel.backup": ["trajectory"]})


def test_the_critics_own_traces_stay() -> None:
    config = resolve({"agent": ["kernel_ppo"], "env": ["CartPole-v1"], "kernel.trace_decay": ["0.5"]})
    assert config.kernel.trace_decay == 0.5
