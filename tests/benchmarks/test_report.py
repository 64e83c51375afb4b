"""The report of a made-up grid, whose figures are known by hand."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib", reason="needs the extra `plots`")
import curves_plots
import report
from curves_results import read_runs
from curves_scores import balanced
from matplotlib.figure import Figure
from tasks import TASKS, Task, read_tasks

STEPS = [100, 200, 300]
WriteRun = Callable[..., Path]


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    return tmp_path / "grid"


@pytest.fixture
def write_run(grid: Path) -> WriteRun:
    def write(variant: str, env: str, seed: int, returns: list[float], final: float, **others: Any) -> Path:
        folder = grid / variant / env / f"seed{seed}"
        folder.mkdir(parents=True)
        settings = others.pop("settings", "gamma: 0.9\n")
        (folder / "config.yaml").write_text(f"seed: {seed}\nrun_dir: {folder}\n{settings}")
        result = {
            "agent": "ddqn",
            "env": env,
            "seed": seed,
            "total_timesteps": 300,
            "eval_timesteps": STEPS,
            "eval_mean_returns": returns,
            "eval_seconds": [1.0, 2.5, 4.0],
            "final_mean_return": final,
            "final_std_return": 0.0,
            "best_mean_return": max(returns),
            "wall_seconds": 9.0,
            "train_seconds": 4.0,
            "versions": {"python": "3.11"},
            "machine": "x86_64, 4 cores",
            "commit": "abcdef0123456789",
        }
        (folder / "result.json").write_text(json.dumps(result | others))
        return folder

    return write


@pytest.fixture
def finished(write_run: WriteRun, grid: Path) -> Path:
    """Two variants, two known environments and one that is not."""
    for seed in (0, 1):
        write_run("ddqn", "CartPole-v1", seed, [22.0, 22.0, 248.5], 22.0)
        write_run("fast", "CartPole-v1", seed, [22.0, 475.0, 475.0], 248.5, train_seconds=2.0 + 4.0 * seed)
        write_run("ddqn", "MountainCar-v0", seed, [-200.0, -200.0, -200.0], -200.0)
        write_run("fast", "MountainCar-v0", seed, [-200.0, -200.0, -115.0 - 85.0 * seed], -200.0)
        write_run("fast", "ALE/Pong-v5", seed, [-21.0, -20.0, -19.0], -19.0)
    (grid / "command.txt").write_text("python first\npython second\n")
    return grid


def run(grid: Path, *words: str) -> int:
    return report.main(["--folder", str(grid), "--results", str(grid.parent / "results"), "--name", "made", *words])


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def cells(text: str, *beginning: str) -> list[list[str]]:
    """Rows of the report's tables that begin so, without their beginning."""
    found = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines() if line[:1] == "|"]
    return [row[len(beginning) :] for row in found if tuple(row[: len(beginning)]) == beginning]


def test_figures_by_hand(finished: Path) -> None:
    assert run(finished) == 0
    text = (finished.parent / "results" / "made.md").read_text()
    assert "`python first`, `python second` · commit abcdef012345 ·" in text
    assert "## Over 2 environments" in text
    assert "Left out: ALE/Pong-v5." in text
    # Scores of fast: areas 2/3, 2/3, 1/3 and 0, of which the middle two count, or 2/3 and 0 where 0 is drawn twice;
    # finals 1/2, 1/2, 0 and 0.
    (aggregate,) = cells(text, "fast", "4")
    assert aggregate[:3] == ["0.500 [0.333, 0.500]", "0.417 [0.333, 0.500]", "0.88 [0.75, 1.00]"]
    assert aggregate[3:] == ["0.250", "0.250", "0.75"]
    scores, costs = cells(text, "CartPole-v1", "fast")[:2]
    assert scores[:2] == ["300", "2"]
    assert scores[3:5] == ["324", "1.00"]
    assert costs[:5] == ["475", "2 of 2", "200", "2.5", "4"]
    assert costs[5:] == ["1.00 [0.50, 1.50]", "0.50"]
    _, slow = cells(text, "MountainCar-v0", "fast")[:2]
    assert slow[:4] == ["-115", "1 of 2", "∞ [300, ∞]", "∞ [4.0, ∞]"]
    _, pong = cells(text, "ALE/Pong-v5", "fast")[:2]
    assert pong == ["–", "–", "–", "–", "4", "–", "–"]
    assert "**Not finished:** ddqn on ALE/Pong-v5: seed 0, 1." in text


def test_environments_weigh_the_same_whatever_their_seeds(write_run: WriteRun, grid: Path) -> None:
    for seed in range(9):
        write_run("ddqn", "CartPole-v1", seed, [475.0, 475.0, 475.0], 475.0)
    for seed in (3, 8):
        write_run("ddqn", "MountainCar-v0", seed, [-200.0, -200.0, -200.0], -200.0)
    assert run(grid) == 0
    text = (grid.parent / "results" / "made.md").read_text()
    (aggregate,) = cells(text, "ddqn", "4")
    assert aggregate[0].split()[0] == "0.500"
    assert "Of ddqn 4 of 11 runs count, equally many of every environment." in text
    runs = read_runs(grid)
    assert [run.seed for run in balanced(runs, TASKS, "ddqn")["CartPole-v1"]] == [3, 8]


def test_every_seed_and_evaluation_is_in_the_csv(finished: Path) -> None:
    assert run(finished) == 0
    seeds = rows(finished.parent / "results" / "made_seeds.csv")
    assert len(seeds) == 10
    by_key = {(row["env"], row["variant"], row["seed"]): row for row in seeds}
    row = by_key["MountainCar-v0", "fast", "1"]
    assert (row["steps_to_threshold"], row["seconds_to_threshold"], row["best_return"]) == ("inf", "inf", "-200")
    assert by_key["CartPole-v1", "fast", "0"]["area_under_curve"] == "324"
    assert by_key["ALE/Pong-v5", "fast", "0"]["steps_to_threshold"] == ""
    evaluations = rows(finished.parent / "results" / "made.csv")
    assert len(evaluations) == 30
    assert evaluations[1] == {
        "env": "ALE/Pong-v5",
        "variant": "fast",
        "seed": "0",
        "timesteps": "200",
        "seconds": "2.500",
        "mean_return": "-20.000",
    }


def test_figures_are_drawn_and_repeat(finished: Path) -> None:
    assert run(finished) == 0
    results = finished.parent / "results"
    names = {"made.png", "made.svg", "made_intervals.png", "made_intervals.svg"}
    first = {name: (results / name).read_bytes() for name in names}
    assert all(len(content) > 2_000 for content in first.values())
    # ddqn is missing in the first panel.
    assert all(f"{name} (2 seeds)".encode() in first["made.svg"] for name in ("ddqn", "fast"))
    assert b"P(better than ddqn)" in first["made_intervals.svg"]
    assert run(finished) == 0
    assert {name: (results / name).read_bytes() for name in names} == first


def test_files_are_whole_whatever_fails(
    finished: Path, replaced: set[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(finished) == 0
    files = set((finished.parent / "results").iterdir())
    assert replaced == files
    figures = {path: path.read_bytes() for path in files if path.suffix in curves_plots.SUFFIXES}

    def full_disk(figure: Figure, file: Any, **others: Any) -> None:
        file.write(b"half a figure")
        raise OSError("no space left on device")

    monkeypatch.setattr(Figure, "savefig", full_disk)
    assert run(finished) == 2
    assert "no space left on device" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in figures} == figures
    assert set((finished.parent / "results").iterdir()) == files


def test_figures_show_the_figures(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, Figure] = {}
    monkeypatch.setattr(curves_plots, "save", lambda figure, stem: drawn.update({stem.name: figure}))
    assert run(finished) == 0
    curves = {panel.get_title(): panel for panel in drawn["made"].axes}
    assert set(curves) == {"ALE/Pong-v5", "CartPole-v1", "MountainCar-v0"}
    slow, fast, threshold = curves["CartPole-v1"].lines
    assert (slow.get_color(), fast.get_color()) == (curves_plots.BASELINE_COLOUR, curves_plots.COLOURS[0])
    assert slow.get_xdata() == pytest.approx(STEPS)
    assert slow.get_ydata() == pytest.approx([22.0, 22.0, 248.5])
    assert fast.get_ydata() == pytest.approx([22.0, 475.0, 475.0])
    assert list(threshold.get_ydata()) == [475.0, 475.0]
    _, halved, _ = curves["MountainCar-v0"].lines
    assert halved.get_ydata() == pytest.approx([-200.0, -200.0, -157.5])
    band = curves["MountainCar-v0"].collections[1].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (-200.0, -115.0)
    # As in the tables: AUC 0.500 [0.333, 0.500], P 0.88 [0.75, 1.00].
    scores, chances = drawn["made_intervals"].axes[:2]
    bar = scores.patches[1]
    assert (bar.get_y() + bar.get_height() / 2, bar.get_x(), bar.get_width()) == pytest.approx((1, 1 / 3, 1 / 6))
    assert scores.collections[1].get_segments()[0][:, 0] == pytest.approx([0.5, 0.5])
    (chance,) = chances.patches
    assert (chance.get_x(), chance.get_width()) == pytest.approx((0.75, 0.25))
    assert chances.collections[0].get_segments()[0][0] == pytest.approx([0.875, 0.7])
    for figure in drawn.values():
        curves_plots.plt.close(figure)


def test_more_variants_than_colours_draw_no_curves(write_run: WriteRun, grid: Path) -> None:
    for index in range(1 + len(curves_plots.COLOURS)):
        write_run(f"v{index}", "CartPole-v1", 0, [1.0, 2.0, 3.0], 3.0)
    write_run("v0", "CartPole-v1", 1, [1.0, 2.0, 3.0], 3.0)
    assert run(grid, "--baseline", "v0") == 0
    assert (grid.parent / "results" / "made.svg").exists()
    write_run("ddqn", "CartPole-v1", 0, [1.0, 2.0, 3.0], 3.0)
    assert run(grid) == 0
    assert (grid.parent / "results" / "made_intervals.svg").exists()
    assert not (grid.parent / "results" / "made.svg").exists()


def test_our_agents_keep_their_colours_and_rows_go_by_area(
    write_run: WriteRun, grid: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, Figure] = {}
    monkeypatch.setattr(curves_plots, "save", lambda figure, stem: drawn.update({stem.name: figure}))
    for variant, area in (("averaging", 60.0), ("ddqn", 30.0), ("kernel_ddqn", 90.0), ("zoo", 20.0)):
        for seed in (0, 1):
            write_run(variant, "CartPole-v1", seed, [area, area, area], area)
    assert run(grid) == 0
    rows = [label.get_text() for label in drawn["made_intervals"].axes[0].get_yticklabels()]
    assert rows == ["ddqn", "kernel_ddqn", "averaging", "zoo"]
    grey, first, ours, second, _ = (line.get_color() for line in drawn["made"].axes[0].lines)
    wheel = curves_plots.COLOURS
    assert (grey, first, second) == (curves_plots.BASELINE_COLOUR, wheel[0], wheel[1])
    assert ours == curves_plots.OWN_COLOURS["kernel_ddqn"] not in wheel
    scores, chances = drawn["made_intervals"].axes[:2]
    assert [bar.get_facecolor()[:3] for bar in scores.patches] == [
        pytest.approx(curves_plots.mpl.colors.to_rgb(colour)) for colour in (grey, ours, first, second)
    ]
    assert scores.get_xlim()[0] < min(bar.get_x() for bar in scores.patches)
    assert len(chances.patches) == 3
    for figure in drawn.values():
        curves_plots.plt.close(figure)


def test_what_began_and_did_not_finish_is_told(finished: Path) -> None:
    for variant, env, seed, file in (("slow", "CartPole-v1", 0, "log.txt"), ("fast", "ALE/Pong-v5", 2, "config.yaml")):
        folder = finished / variant / env / f"seed{seed}"
        folder.mkdir(parents=True)
        (folder / file).write_text("")
    assert run(finished) == 0
    text = (finished.parent / "results" / "made.md").read_text()
    assert "**Not finished:** slow on CartPole-v1: seed 0, 1, 2." in text
    assert "**Not finished:** fast on ALE/Pong-v5: seed 2." in text


def test_versions_are_those_of_every_run(write_run: WriteRun, grid: Path) -> None:
    write_run("ddqn", "CartPole-v1", 0, [1.0, 2.0, 3.0], 3.0, versions={"torch": "2.13"})
    write_run("ddqn", "CartPole-v1", 1, [1.0, 2.0, 3.0], 3.0, versions={"torch": "2.10", "numpy": "2"})
    assert run(grid) == 0
    assert "torch 2.13 and 2.10, numpy None and 2." in (grid.parent / "results" / "made.md").read_text()


def test_files_that_are_no_results_are_named(
    write_run: WriteRun, grid: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run("ddqn", "CartPole-v1", 0, [1.0, 2.0, 3.0], 3.0)
    shutil.copytree(folder, folder.with_name("seed0_old"))
    assert run(grid) == 2
    assert "lies in CartPole-v1/seed0_old, but is of CartPole-v1/seed0" in capsys.readouterr().err
    shutil.rmtree(folder.with_name("seed0_old"))
    shutil.copytree(folder.parent, folder.parent.with_name("CartPole-v1.bak"))
    assert run(grid) == 2
    assert "lies in CartPole-v1.bak/seed0, but is of CartPole-v1/seed0" in capsys.readouterr().err
    shutil.rmtree(folder.parent.with_name("CartPole-v1.bak"))
    (folder / "config.yaml").write_text("gamma: [")
    assert run(grid) == 2
    assert "seed0/result.json is no result of train.py" in capsys.readouterr().err
    (folder / "config.yaml").unlink()
    for content in ("{", "{}", "[]"):
        (folder / "result.json").write_text(content)
        assert run(grid) == 2
        assert "seed0/result.json is no result of train.py" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"final_mean_return": float("nan")}, "final_mean_return"),
        ({"final_mean_return": None}, "final_mean_return"),
        ({"eval_mean_returns": [1.0, float("inf"), 3.0]}, "eval_mean_returns"),
        ({"train_seconds": float("nan")}, "train_seconds"),
        ({"eval_seconds": [1.0, float("nan"), 3.0]}, "eval_seconds"),
    ],
)
def test_figures_that_are_not_finite_are_refused(
    wrong: dict[str, Any], name: str, write_run: WriteRun, grid: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run("ddqn", "CartPole-v1", 0, [1.0, 2.0, 3.0], 3.0)
    assert run(grid) == 0
    written = {path: path.read_bytes() for path in (grid.parent / "results").iterdir()}
    write_run("ddqn", "CartPole-v1", 1, [1.0, 2.0, 3.0], 3.0, **wrong)
    capsys.readouterr()
    assert run(grid) == 2
    assert f"seed1/result.json is no result of train.py (ValueError('{name} is not finite" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (grid.parent / "results").iterdir()} == written


def test_a_terminal_without_the_letters_is_no_error(finished: Path) -> None:
    words = ["--folder", str(finished), "--results", str(finished.parent / "results")]
    done = subprocess.run(
        [sys.executable, str(Path(report.__file__)), *words],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"| fast |" in done.stdout


def test_results_without_seconds_are_read(write_run: WriteRun, grid: Path) -> None:
    folder = write_run("ddqn", "CartPole-v1", 0, [500.0, 500.0, 500.0], 500.0)
    result = json.loads((folder / "result.json").read_text())
    del result["eval_seconds"], result["machine"]
    (folder / "result.json").write_text(json.dumps(result))
    assert run(grid) == 0
    text = (grid.parent / "results" / "made.md").read_text()
    _, costs = cells(text, "CartPole-v1", "ddqn")[:2]
    assert costs[:4] == ["475", "1 of 1", "100", "–"]
    assert "unknown machine" in text
    assert "commands unknown" in text


def test_small_returns_keep_their_digits(write_run: WriteRun, grid: Path) -> None:
    write_run("ddqn", "DeepSea-v0", 0, [0.0, 0.5, 1.0], 0.99)
    assert run(grid) == 0
    text = (grid.parent / "results" / "made.md").read_text()
    assert cells(text, "DeepSea-v0", "ddqn")[0][2:] == ["0.50 ± –", "0.50", "–", "0.99 ± –", "0.99", "–"]
    assert "| DeepSea-v0 | ddqn | 0: 0.50 / 0.99 |" in text


def test_seconds_of_different_origin_make_no_ratio(write_run: WriteRun, grid: Path) -> None:
    write_run("ddqn", "CartPole-v1", 0, [1.0, 2.0, 3.0], 3.0, train_seconds=2.0, machine="x86_64, 2 cores")
    write_run("same", "CartPole-v1", 0, [1.0, 2.0, 3.0], 3.0, train_seconds=6.0, machine="x86_64, 2 cores")
    write_run("elsewhere", "CartPole-v1", 0, [1.0, 2.0, 3.0], 3.0, machine="arm64, 8 cores")
    write_run("later", "CartPole-v1", 0, [1.0, 2.0, 3.0], 3.0, machine="x86_64, 2 cores", commit="fedcba")
    for env, commit in (("Acrobot-v1", "abc-dirty"), ("MountainCar-v0", None)):
        for variant in ("ddqn", "same"):
            write_run(variant, env, 0, [1.0, 2.0, 3.0], 3.0, machine="x86_64, 2 cores", commit=commit)
    assert run(grid) == 0
    text = (grid.parent / "results" / "made.md").read_text()
    assert "· x86_64, 2 cores and arm64, 8 cores ·" in text
    assert "unknown machine" not in text
    commits = "None (ddqn, same), abc-dirty (ddqn, same), abcdef012345 (ddqn, elsewhere, same), fedcba (later)"
    assert f"commit {commits} ·" in text
    assert all(cells(text, env, "same")[1][-2] == "–" for env in ("Acrobot-v1", "MountainCar-v0"))
    ratios = {name: cells(text, "CartPole-v1", name)[1][-2] for name in ("ddqn", "same", "elsewhere", "later")}
    assert ratios == {"ddqn": "1", "same": "3.00", "elsewhere": "–", "later": "–"}


@pytest.mark.parametrize(
    ("others", "setting"),
    [
        ({"total_timesteps": 600}, "total_timesteps"),
        ({"eval_timesteps": [100, 200, 316]}, "eval_timesteps"),
        ({"settings": "env_kwargs: {size: 3}\n"}, "env_kwargs"),
        ({"settings": "max_episode_steps: 50\n"}, "max_episode_steps"),
        ({"settings": "n_eval_episodes: 10\n"}, "n_eval_episodes"),
        ({"settings": "n_eval_episodes: 5\nn_final_eval_episodes: 1\n"}, "n_final_eval_episodes"),
    ],
)
def test_unequal_budgets_are_told_and_not_aggregated(
    others: dict[str, Any], setting: str, write_run: WriteRun, grid: Path
) -> None:
    settings = "n_eval_episodes: 5\nn_final_eval_episodes: 20\n"
    for env in ("CartPole-v1", "Acrobot-v1"):
        write_run("ddqn", env, 0, [1.0, 2.0, 3.0], 3.0, settings=settings)
    write_run("long", "Acrobot-v1", 0, [1.0, 2.0, 3.0], 3.0, settings=settings)
    write_run("long", "CartPole-v1", 0, [1.0, 2.0, 3.0], 3.0, **{"settings": settings} | others)
    assert run(grid) == 0
    text = (grid.parent / "results" / "made.md").read_text()
    assert f"**Not comparable:** on CartPole-v1 long differs from ddqn in {setting}.\n" in text
    assert "## Over 1 environments" in text
    assert "Left out: CartPole-v1." in text


def test_evaluations_that_copies_delay_are_equal(write_run: WriteRun, grid: Path) -> None:
    """Sixteen copies stepped together come to 100 steps at 112, and runs of different age name other settings."""
    write_run("ddqn", "CartPole-v1", 0, [1.0, 2.0, 3.0], 3.0, settings="env_kwargs: {}\nn_eval_episodes: 5\n")
    late = [112, 208, 304]
    write_run("ppo", "CartPole-v1", 0, [1.0, 2.0, 3.0], 3.0, settings="n_envs: 16\n", eval_timesteps=late)
    assert run(grid) == 0
    text = (grid.parent / "results" / "made.md").read_text()
    assert "Not comparable" not in text
    assert "## Over 1 environments" in text


@pytest.mark.parametrize("name", ["proof", "slow_decay"])
def test_published_reports_are_what_their_runs_give(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for figure in ("plot_curves", "plot_intervals"):
        monkeypatch.setattr(report, figure, lambda *others: None)  # of other bytes with another matplotlib
    published = Path(report.__file__).parent / "results"
    assert report.main(["--folder", str(published / name), "--name", name, "--results", str(tmp_path)]) == 0
    for file in (f"{name}.md", f"{name}.csv", f"{name}_seeds.csv"):
        assert (tmp_path / file).read_text() == (published / file).read_text(), f"write {name} again"


def test_what_cannot_be_compared_is_refused(
    write_run: WriteRun, grid: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(grid) == 2
    assert "no finished run below" in capsys.readouterr().err
    write_run("fast", "CartPole-v1", 0, [1.0, 2.0, 3.0], 3.0)
    assert run(grid) == 2
    assert "take another --baseline: fast" in capsys.readouterr().err
    assert run(grid, "--baseline", "fast") == 0
    write_run("fast", "CartPole-v1", 1, [1.0, 2.0, 3.0], 3.0, settings="gamma: 0.5\n")
    capsys.readouterr()
    assert run(grid, "--baseline", "fast") == 2
    assert "fast on CartPole-v1: seeds 0 and 1 differ in gamma" in capsys.readouterr().err


def test_tasks_of_the_command_line(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert read_tasks(("ALE/Pong-v5=-21,19",)) == TASKS | {"ALE/Pong-v5": Task(-21.0, 19.0)}
    assert Task(-21.0, 19.0).normalised(-1.0) == 0.5
    assert run(finished, "--tasks", "ALE/Pong-v5=19,-21") == 2
    assert run(finished, "--tasks", "ALE/Pong-v5=a") == 2
    for wrong in ("nan,nan", "0,inf", "-inf,0"):
        assert run(finished, "--tasks", f"ALE/Pong-v5={wrong}") == 2
        assert f"'ALE/Pong-v5={wrong}': both returns must be finite" in capsys.readouterr().err
    assert run(finished, "--tasks", "ALE/Pong-v4=-21,19") == 2
    assert "names ALE/Pong-v4, of which there is no run" in (message := capsys.readouterr().err)
    assert message.endswith("there are runs of ALE/Pong-v5, CartPole-v1, MountainCar-v0\n")
    assert run(finished, "--tasks", "ALE/Pong-v5=-21,-20") == 0
    text = (finished.parent / "results" / "made.md").read_text()
    assert cells(text, "ALE/Pong-v5", "fast")[1][:3] == ["-20", "2 of 2", "200"]


def test_what_no_figure_depends_on_may_differ(write_run: WriteRun, grid: Path) -> None:
    for seed, settings in enumerate(["progress_bar: false\n", "progress_bar: true\nverbose: 1\n"]):
        write_run("kernel", "CartPole-v1", seed, [1.0, 2.0, 3.0], 3.0, settings=settings)
    assert run(grid, "--baseline", "kernel") == 0


def test_runs_of_different_age_compare(write_run: WriteRun, grid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A setting that an older run does not name has the value that it had then; one that differs is still refused."""
    older = "agent: kernel_ddqn\nenv: CartPole-v1\nkernel: {k: 16, backup: n_step, trace_decay: 0.9}\n"
    today = "agent: kernel_ddqn\nenv: CartPole-v1\nkernel: {k: 16, backup: restart, bonus_fraction: null}\n"
    for seed, settings in enumerate([older, today]):
        write_run("kernel", "CartPole-v1", seed, [1.0, 2.0, 3.0], 3.0, settings=settings)
    assert run(grid, "--baseline", "kernel") == 0
    write_run("kernel", "CartPole-v1", 2, [1.0, 2.0, 3.0], 3.0, settings=today.replace("null", "0.5"))
    capsys.readouterr()
    assert run(grid, "--baseline", "kernel") == 2
    assert "kernel on CartPole-v1: seeds 0 and 2 differ in kernel" in capsys.readouterr().err
