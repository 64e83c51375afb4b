from __future__ import annotations

from pathlib import Path

import attach
import pytest
from attach import Attach, Row, measure, stopped_model, summary, write

from agents.common.schema import ConfigError


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


def test_what_is_no_dqn_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ppo is no DQN"):
        stopped_model(Attach(models=tmp_path), "ppo", "CartPole-v1", seed=0, source=None)


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


def test_a_row_holds_both_returns_and_what_they_cost(tmp_path: Path) -> None:
    row = measure(
        Attach(share=0.06, steps=300, episodes=3, models=tmp_path), "ddqn", "CartPole-v1", seed=0, source=None
    )
    assert row.trained_steps == 600
    assert row.attach_steps >= 300
    assert 8.0 < row.before < 500.0
    assert 8.0 < row.after <= 500.0
    assert 0.0 < row.processor_seconds < 60.0


def test_the_table_by_hand(tmp_path: Path) -> None:
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
    assert summary(rows) in (tmp_path / "attach.md").read_text(encoding="utf-8")
    lines = (tmp_path / "attach.csv").read_text(encoding="utf-8").splitlines()
    assert lines[1:] == [
        "ddqn,CartPole-v1,0,2000,100.0,200.0,11000,9.0,8.0",
        "ddqn,CartPole-v1,1,2000,50.0,250.0,11000,12.0,8.0",
    ]
