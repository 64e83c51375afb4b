from __future__ import annotations

from pathlib import Path
from typing import Any

import attach
import pytest
from attach import Attach, Row, measure, stopped_model, summary, write
from stable_baselines3.common.base_class import BaseAlgorithm

from agents import DoubleDQN, KernelDQNPolicy
from agents.common.schema import ConfigError
from agents.training.evaluation import FINAL_SEED_OFFSET, Evaluation
from envs import make_env


def test_a_model_is_stopped_at_its_share_and_kept(tmp_path: Path) -> None:
    settings = Attach(share=0.06, models=tmp_path)
    model = stopped_model(settings, "ddqn", "CartPole-v1", seed=3, source="abc")
    assert model.num_timesteps == 600
    assert model.exploration_rate == pytest.approx(1.0 - 0.95 * 0.06 / 0.12, abs=0.01)
    file = tmp_path / "ddqn" / "CartPole-v1" / "seed3" / "share0.06.zip"
    written = file.stat().st_mtime_ns
    assert stopped_model(settings, "ddqn", "CartPole-v1", seed=3, source="abc").num_timesteps == 600
    assert file.stat().st_mtime_ns == written
    # One of other code, or that was never finished, is made anew.
    for source in ("def", "def-dirty", "def-dirty"):
        stopped_model(settings, "ddqn", "CartPole-v1", seed=3, source=source)
        assert file.stat().st_mtime_ns > written
        written = file.stat().st_mtime_ns
    assert [path.name for path in sorted(file.parent.iterdir())] == ["share0.06.yaml", file.name]


@pytest.mark.parametrize(
    ("agent", "reason"), [("ppo", "has no action values"), ("kernel_q", "no network"), ("dqk", "can be read from")]
)
def test_what_nothing_can_be_attached_to_is_refused_before_it_is_trained(
    agent: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BaseAlgorithm, "learn", lambda *others, **named: pytest.fail("minutes for nothing"))
    with pytest.raises(ConfigError, match=f"{agent}: .*{reason}"):
        stopped_model(Attach(models=tmp_path), agent, "CartPole-v1", seed=0, source=None)


@pytest.mark.parametrize("words", [["--share", "0"], ["--share", "2"], ["--steps", "0"], ["--episodes", "0"]])
def test_numbers_that_measure_nothing_are_refused(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["attach.py", *words])
    with pytest.raises(SystemExit) as stopped:  # tyro's own way
        attach.main()
    assert stopped.value.code == 2
    output = capsys.readouterr()
    assert f"{words[0]} is {words[1]}, but must be" in output.out + output.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--envs", "CartPoel-v1"], "unknown environment 'CartPoel-v1'; did you mean 'CartPole-v1'"),
        (["--agents", "ddqn", "ddqm"], "ddqm"),
    ],
)
def test_names_are_checked_before_anything_is_trained(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(attach, "attach_kernel_head", lambda *others, **named: pytest.fail("seconds for nothing"))
    monkeypatch.setattr("sys.argv", ["attach.py", *words, "--results", str(tmp_path / "new")])
    assert attach.main() == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_row_holds_both_returns_and_what_they_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated: list[tuple[type, int, int]] = []

    def known(model: object, env: object, episodes: int, seed: int) -> Evaluation:
        evaluated.append((type(model), episodes, seed))
        return Evaluation([10.0 * len(evaluated), 30.0 * len(evaluated)], [1, 1])

    monkeypatch.setattr(attach, "evaluate_greedily", known)
    row = measure(
        Attach(share=0.06, steps=300, episodes=3, models=tmp_path), "ddqn", "CartPole-v1", seed=4, source=None
    )
    assert row.trained_steps == 600
    assert row.attach_steps >= 300
    assert evaluated == [(DoubleDQN, 3, FINAL_SEED_OFFSET + 4), (KernelDQNPolicy, 3, FINAL_SEED_OFFSET + 4)]
    assert (row.before, row.after) == (20.0, 40.0)
    assert 0.0 < row.processor_seconds < 60.0


def test_returns_are_those_of_the_model() -> None:
    """A pole that is pushed to where it falls stays up, and one pushed to the left falls within eleven steps."""

    class Rule(DoubleDQN):
        balances = False

        def predict(self, observation: Any, *others: Any, **named: Any) -> Any:
            falls_right = observation[:, 2] + observation[:, 3] > 0.0
            return (falls_right if self.balances else 0 * falls_right).astype(int), None

    rule = Rule("MlpPolicy", make_env("CartPole-v1", n_envs=1, seed=0), device="cpu")
    for rule.balances, least, most in ((False, 8.0, 11.0), (True, 150.0, 500.0)):
        assert least <= attach.greedy_return(rule, "CartPole-v1", seed=0, episodes=4) <= most


def test_the_table_by_hand(tmp_path: Path, replaced: set[Path]) -> None:
    rows = [
        Row("ddqn", "CartPole-v1", seed, 2000, before, after, 11_000, seconds, 8.0)
        for seed, before, after, seconds in ((0, 100.0, 200.0, 9.0), (1, 50.0, 250.0, 12.0))
    ]
    cells = [cell.strip() for cell in summary(rows).strip("|").split("|")]
    assert cells == [
        "CartPole-v1",
        "ddqn",
        "2,000",
        "75",
        "**225**",
        "+150 ± 50",
        "100 → 200, 50 → 250",
        "11,000",
        "10 (≤ 12)",
        "8",
    ]
    write(Attach(results=tmp_path), rows, "abc123")
    assert replaced == {tmp_path / "attach.md", tmp_path / "attach.csv"}
    assert summary(rows) in (tmp_path / "attach.md").read_text(encoding="utf-8")
    lines = (tmp_path / "attach.csv").read_text(encoding="utf-8").splitlines()
    assert lines[1:] == [
        "ddqn,CartPole-v1,0,2000,100.0,200.0,11000,9.0,8.0",
        "ddqn,CartPole-v1,1,2000,50.0,250.0,11000,12.0,8.0",
    ]
