"""The timing of a training step: what it writes, and agents that it cannot time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import step_time


def test_a_timing_is_a_ratio_of_what_both_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_time, "WARM_UP", 10)
    words = ["--envs", "CartPole-v1", "--share", "0.01", "--rounds", "2", "--agent", "kernel_q"]
    assert step_time.main([*words, "--results", str(tmp_path / "my results")]) == 0
    report = json.loads((tmp_path / "my results" / "step_time.json").read_text())
    assert report["command"].startswith("python benchmarks/step_time.py --envs CartPole-v1 --share 0.01")
    assert report["command"].endswith(f"--results '{tmp_path / 'my results'}'")
    row = report["results"]["CartPole-v1"]
    assert row["steps"] == 100
    assert row["ratio"] == pytest.approx(row["kernel_q_ms_per_step"] / row["ddqn_ms_per_step"], rel=0.1)
    assert len(row["ratio_by_round"]) == 2


def test_schedules_are_those_of_the_whole_budget() -> None:
    model = step_time.make_model("ddqn", "CartPole-v1")
    step_time.seconds_per_round([model], steps=40, rounds=3, budget=2_000)
    assert model.num_timesteps == 120
    assert model.exploration_rate == pytest.approx(1.0 - 0.95 * 0.06 / 0.12)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--envs", "CartPoel-v1"], "unknown environment 'CartPoel-v1'; did you mean 'CartPole-v1'"),
        (["--agent", "ddqn"], "--agent and --baseline are both ddqn"),
        (["--envs", "CartPole-v1", "--share", "0.0001"], "leaves none for each of 10 rounds"),
    ],
)
def test_rounds_that_nobody_can_time_are_refused(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert step_time.main([*words, "--results", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_agents_that_learn_from_rollouts_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--envs", "CartPole-v1", "--agent", "kernel_ppo", "--baseline", "ppo", "--results", str(tmp_path)]
    assert step_time.main(words) == 2
    assert "kernel_ppo learns from whole rollouts" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
