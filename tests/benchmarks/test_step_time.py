"""The timing of a training step: what it writes, and agents that it cannot time."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import step_time

TINY = ["--envs", "CartPole-v1", "--share", "0.01", "--rounds", "2"]


class FakeModel:
    """Takes known seconds for every call of `learn`."""

    def __init__(self, clock: list[float], seconds: list[float], rollout: int = 1) -> None:
        self.clock, self.seconds, self.rollout = clock, iter(seconds), rollout
        self.num_timesteps = 0

    def learn(self, steps: int, reset_num_timesteps: bool, **others: Any) -> None:
        self.clock[0] += next(self.seconds)
        self.num_timesteps = 0 if reset_num_timesteps else self.num_timesteps
        self.num_timesteps += -(-steps // self.rollout) * self.rollout


@pytest.fixture
def known_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent takes 0.3 and 0.5 seconds for its two rounds, the baseline 0.1 and 0.3."""
    clock = [0.0]
    throw_away, timed = ([9.0], [90.0]), ([0.3, 0.5], [0.1, 0.3])
    models = iter([FakeModel(clock, seconds) for seconds in (*throw_away, *timed)])
    monkeypatch.setattr(step_time, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(step_time, "make_model", lambda name, env, device: next(models))


@pytest.mark.usefixtures("known_seconds")
def test_a_timing_is_a_ratio_of_what_both_took(tmp_path: Path) -> None:
    assert step_time.main([*TINY, "--agent", "kernel_q", "--results", str(tmp_path)]) == 0
    (timing,) = json.loads((tmp_path / "step_time.json").read_text())
    assert timing["results"] == {
        "CartPole-v1": {
            "steps": 100,
            "kernel_q_ms_per_step": 8.0,
            "ddqn_ms_per_step": 4.0,
            "ratio": 2.0,
            "ratio_by_round": [3.0, 1.67],
        }
    }


def test_rounds_end_with_a_rollout_and_count_what_was_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(step_time, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    whole, short = FakeModel(clock, [1.0, 1.0], rollout=80), FakeModel(clock, [1.0, 3.0])
    whole.num_timesteps = 7  # of an earlier life
    seconds, taken = step_time.time_rounds([whole, short], steps=50, rounds=2, budget=100)  # type: ignore[list-item]
    assert seconds.tolist() == [[1.0, 1.0], [1.0, 3.0]]
    assert taken.tolist() == [[80, 50], [80, 50]]


def test_real_agents_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_time, "WARM_UP", 10)
    assert step_time.main([*TINY, "--agent", "kernel_q", "--results", str(tmp_path / "my results")]) == 0
    (report,) = json.loads((tmp_path / "my results" / "step_time.json").read_text())
    assert report["command"].startswith("python benchmarks/step_time.py --envs CartPole-v1 --share 0.01")
    assert report["command"].endswith(f"--results '{tmp_path / 'my results'}'")
    row = report["results"]["CartPole-v1"]
    assert row["steps"] == 104  # of 50 in a round, which goes on to the end of a rollout of four
    assert row["ratio"] > 0.0
    assert len(row["ratio_by_round"]) == 2


def test_timings_of_other_agents_and_environments_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = json.loads((Path(step_time.__file__).parent / "results" / "step_time.json").read_text())
    file = tmp_path / "step_time.json"
    file.write_text(json.dumps(published))

    def measured(settings: step_time.StepTime) -> step_time.Rows:
        row = {f"{settings.agent}_ms_per_step": 1.0, "ddqn_ms_per_step": 1.0}
        return {env: row if settings.device == "cpu" else {"device": settings.device, **row} for env in settings.envs}

    for agent, env, device, figures in (
        ("kernel_q", "CartPole-v1", "cpu", 5),
        ("kernel_q", "CartPole-v1", "cpu", 5),  # anew
        ("kernel_q", "Acrobot-v1", "cpu", 6),
        ("averaging", "Acrobot-v1", "cpu", 7),
        ("averaging", "Acrobot-v1", "cuda", 8),
        ("averaging", "Acrobot-v1", "cuda:1", 9),
        ("averaging", "Acrobot-v1", "cuda", 9),
    ):
        monkeypatch.setattr(step_time, "measure", measured)
        words = ["--agent", agent, "--envs", env, "--device", device, "--results", str(tmp_path)]
        assert step_time.main(words) == 0
        timings = json.loads(file.read_text())
        assert sum(len(timing["results"]) for timing in timings) == figures
        assert all(timing in timings for timing in (published if isinstance(published, list) else [published]))


@pytest.mark.parametrize("content", ["{", '{"ratio": 1.0}', "[1]"])
def test_a_file_of_something_else_is_left_alone(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(step_time, "measure", lambda settings: pytest.fail("minutes for nothing"))
    (tmp_path / "step_time.json").write_text(content)
    assert step_time.main([*TINY, "--results", str(tmp_path)]) == 2
    assert "step_time.json holds no timings" in capsys.readouterr().err
    assert (tmp_path / "step_time.json").read_text() == content


def test_agents_are_timed_on_their_device(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, ...]] = []
    monkeypatch.setattr(step_time, "make_model", lambda *about: made.append(about) or FakeModel([0.0], [0.0]))
    monkeypatch.setattr(step_time, "time_rounds", lambda models, *rest, **others: (np.ones((1, 2)), np.ones((1, 2))))
    (row,) = step_time.measure(step_time.StepTime(envs=("CartPole-v1",), device="cuda")).values()
    assert made == 2 * [("kernel_ddqn", "CartPole-v1", "cuda"), ("ddqn", "CartPole-v1", "cuda")]
    assert row["device"] == "cuda"


def test_schedules_are_those_of_the_whole_budget() -> None:
    model = step_time.make_model("ddqn", "CartPole-v1", "cpu")
    _, taken = step_time.time_rounds([model], steps=40, rounds=3, budget=2_000)
    assert taken.tolist() == [[40], [40], [40]]
    assert model.num_timesteps == 120
    assert model.exploration_rate == pytest.approx(1.0 - 0.95 * 0.06 / 0.12)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--envs", "CartPoel-v1"], "unknown environment 'CartPoel-v1'; did you mean 'CartPole-v1'"),
        (["--agent", "ddqn"], "--agent and --baseline are both ddqn"),
        (["--envs", "CartPole-v1", "--share", "0.0001"], "leaves none for each of 10 rounds"),
        (["--envs", "CartPole-v1", "--rounds", "0"], "--rounds is 0, but must be at least 1"),
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
