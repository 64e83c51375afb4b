from __future__ import annotations

from pathlib import Path

import pytest

from agents.common.schema import ConfigError
from agents.kernel_ddqn.kernel_config import KernelConfig
from agents.training.settings import dump_config, load_config, resolve


def _older(tmp_path: Path, agent: str, backup: str) -> Path:
    """The config.yaml of a run from when backups could go along trajectories."""
    text = dump_config(resolve({"agent": [agent], "env": ["CartPole-v1"]}))
    assert "backup: restart" in text
    file = tmp_path / "config.yaml"
    text = text.replace("  backup: restart\n", f"  backup: {backup}\n  trace_decay: 0.9\n")
    file.write_text(text.replace("exploration: lookahead", "exploration: optimism"))
    return file


@pytest.mark.parametrize("agent", ["kernel_ddqn", "kernel_q", "kernel_qrdqn", "knn_ddqn"])
def test_a_run_from_before_is_the_run_of_today(tmp_path: Path, agent: str) -> None:
    assert load_config(_older(tmp_path, agent, "n_step")) == resolve({"agent": [agent], "env": ["CartPole-v1"]})


def test_a_model_from_before_can_be_loaded() -> None:
    assert KernelConfig.read({"k": 8, "backup": "n_step", "trace_decay": 0.9}) == KernelConfig(k=8)
    older = {"head": "network_free", "k": 8, "backup": "n_step", "trace_decay": 0.9}
    assert KernelConfig.read(older).exploration == "lookahead"
    assert KernelConfig.read({**older, "exploration": "thompson"}).exploration == "thompson"
    with pytest.raises(ConfigError, match=r"kernel\.trace_decay"):
        KernelConfig.read({"trace_decay": 0.9})


def test_what_is_gone_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config.yaml: kernel.backup is trajectory, but .* are gone; give continue"):
        load_config(_older(tmp_path, "kernel_ddqn", "trajectory"))
    with pytest.raises(ConfigError, match="backups along trajectories are gone"):
        resolve({"agent": ["kernel_ddqn"], "env": ["CartPole-v1"], "kernel.backup": ["trajectory"]})


def test_a_command_line_is_of_today() -> None:
    with pytest.raises(ConfigError, match=r"kernel.backup is 'n_step'; did you mean"):
        resolve({"agent": ["kernel_ddqn"], "env": ["CartPole-v1"], "kernel.backup": ["n_step"]})


def test_the_critics_own_traces_stay() -> None:
    config = resolve({"agent": ["kernel_ppo"], "env": ["CartPole-v1"], "kernel.trace_decay": ["0.5"]})
    assert config.kernel.trace_decay == 0.5
