"""The grid: cells, variants, what counts as finished, and failures that are told."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path

import learning_curves
import pytest
from grid import Grid
from grid_jobs import Job, run_job
from grid_progress import Progress, duration
from grid_variants import Variant, read_variants
from grid_workers import run_here

from agents.common.schema import ConfigError, to_plain
from agents.kernel_ddqn import KernelConfig
from agents.training.config import KernelDDQNConfig, KernelQConfig
from agents.training.settings import dump_config

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

MEETING = """
import os, time
late = time.time() + 30.0
open("{own}", "w").close()
while len(os.listdir("{meeting}")) < {count}:
    assert time.time() < late, "the others have not begun"
    time.sleep(0.01)
"""

INTERRUPTED = """
import signal, sys
from dataclasses import replace
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell takes from what it runs in the background
sys.path.insert(0, sys.argv[1])
import grid_cells, learning_curves
real = grid_cells.Cell.job
stub = (sys.executable, "-S", "-c", sys.argv[2], sys.argv[3])
grid_cells.Cell.job = lambda cell, **how: replace(real(cell, **how), command=stub)
sys.exit(learning_curves.main(sys.argv[4:]))
"""
# As train.py, it takes its time after an interrupt, to save what it has learned.
SAVING = """
import sys, time
try:
    with open(sys.argv[1], "a") as starts:
        starts.write("started\\n")
    time.sleep(60.0)
except KeyboardInterrupt:
    time.sleep(0.5)
    sys.exit(130)
"""


def script_job(folder: Path, script: str, steps: int = 1) -> Job:
    return Job(folder.name, (sys.executable, "-S", "-c", script), folder / "result.json", steps)


def write_result(folder: Path) -> str:
    return f"from pathlib import Path; Path({str(folder / 'result.json')!r}).write_text('{{}}')"


def test_cells_come_seed_by_seed() -> None:
    cells = Grid(agents=("dqn", "ddqn"), envs=("CartPole-v1", "Acrobot-v1"), seeds=2, first_seed=7).cells()
    assert [(cell.seed, cell.env, cell.variant.label) for cell in cells][:5] == [
        (7, "CartPole-v1", "dqn"),
        (7, "CartPole-v1", "ddqn"),
        (7, "Acrobot-v1", "dqn"),
        (7, "Acrobot-v1", "ddqn"),
        (8, "CartPole-v1", "dqn"),
    ]
    assert len(cells) == 8
    assert {cell.variant.label for cell in Grid().cells()} == {"ddqn", "kernel_ddqn"}


def test_variants_of_words_and_files(tmp_path: Path) -> None:
    file = tmp_path / "variants.yaml"
    file.write_text("small: {agent: kernel_ddqn, net_arch: [32, 16], kernel: {k: 4, exploration_bonus: 0}}\n")
    words = ["ddqn", "plain=kernel_ddqn,kernel.exploration-bonus=0,net_arch=8 8"]
    assert read_variants(words, file) == [
        Variant("ddqn", "ddqn", {}),
        Variant("plain", "kernel_ddqn", {"kernel.exploration_bonus": ["0"], "net_arch": ["8", "8"]}),
        Variant(
            "small", "kernel_ddqn", {"net_arch": ["32", "16"], "kernel.k": ["4"], "kernel.exploration_bonus": ["0.0"]}
        ),
    ]
    kwargs = tmp_path / "kwargs.yaml"
    kwargs.write_text("windy: {agent: ddqn, env_kwargs: {wind: {power: 1}, name: '1', none: null, ends: [1, 2]}}\n")
    (windy,) = Grid(variants=kwargs, envs=("CartPole-v1",), seeds=1).cells()
    assert windy.config().env_kwargs == {"wind": {"power": 1}, "name": "1", "none": None, "ends": [1, 2]}
    (cell,) = Grid(variants=file, envs=("CartPole-v1",), seeds=1).cells()
    config = cell.config()
    assert (config.agent, config.net_arch, config.kernel.k) == ("kernel_ddqn", (32, 16), 4)  # type: ignore[attr-defined]
    assert cell.run_folder.path.parts[-3:] == ("small", "CartPole-v1", "seed0")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{agent: ddqn, env_kwargs: {is-slippery: false}}", "'env_kwargs.is-slippery' holds '-' or '='"),
        ("{agent: ddqn, env_kwargs: {start: 2026-01-01}}", "env_kwargs.start is datetime.date"),
        ("{agent: ddqn, n-steps: 1}", "file.yaml: odd: unknown setting 'n-steps'; did you mean 'n_steps'"),
        ("{agent: ddqn, gamma: 2}", "file.yaml: odd: gamma is 2.0, but must be at least 0 and at most 1"),
        ("{agent: ddqn, kernel: {k: 3}}", "file.yaml: odd: agent 'ddqn' does not use 'kernel'"),
        ("{agent: ddqn, seed: 3}", "'seed' is given by the grid itself"),
        ("{gamma: 0.9}", "'odd' must hold settings, agent among them"),
    ],
)
def test_a_file_of_variants_is_as_strict_as_a_config(entry: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "file.yaml"
    file.write_text(f"odd: {entry}\n")
    with pytest.raises(ConfigError) as refused:
        read_variants([], file)
    assert message in str(refused.value)


def test_a_file_of_variants_may_use_retired_names(tmp_path: Path) -> None:
    file = tmp_path / "file.yaml"
    file.write_text("old: {agent: kernel_ddqn, kernel: {k: 3, backup: n_step, trace_decay: 0.9}}\n")
    assert read_variants([], file) == [Variant("old", "kernel_ddqn", {"kernel.k": ["3"]})]


def test_the_ablation_file_is_a_grid() -> None:
    cells = Grid(variants=BENCHMARKS / "ablations.yaml", seeds=1).cells()
    assert {"kernel_ddqn", "ddqn", "without_bonus"} < {cell.variant.label for cell in cells}
    assert len({(cell.variant.label, cell.env) for cell in cells}) == len(cells)
    configs = [replace(cell.config(), run_dir=None) for cell in cells if cell.env == "CartPole-v1"]
    assert all(one != other for one, other in itertools.combinations(configs, 2))
    kernels = [config.kernel for config in configs if isinstance(config, KernelDDQNConfig | KernelQConfig)]
    settings = fields(KernelConfig)
    varied = {setting.name for setting in settings for one in kernels if getattr(one, setting.name) != setting.default}
    assert varied == {setting.name for setting in settings} - {"kernel", "projection_dim"}


def test_the_agent_without_kernel_differs_in_nothing_else() -> None:
    cells = Grid(variants=BENCHMARKS / "ablations.yaml", envs=("LunarLander-v3",), seeds=1).cells()
    configs = {cell.variant.label: to_plain(cell.config()) for cell in cells}
    with_kernel, without = configs["kernel_ddqn"], configs["without_kernel"]
    differing = {name for name in with_kernel | without if with_kernel.get(name) != without.get(name)}
    assert differing == {"agent", "kernel", "run_dir"}


def test_budgets_and_overrides_have_their_order() -> None:
    grid = Grid(
        agents=("ddqn", "long=ddqn,total_timesteps=900"),
        envs=("CartPole-v1", "Acrobot-v1"),
        seeds=1,
        total_timesteps=600,
        budgets=("Acrobot-v1=700",),
        overrides=("gamma=0.9",),
        eval_episodes=3,
    )
    configs = {(cell.variant.label, cell.env): cell.config() for cell in grid.cells()}
    assert {key: config.total_timesteps for key, config in configs.items()} == {
        ("ddqn", "CartPole-v1"): 600,
        ("ddqn", "Acrobot-v1"): 700,
        ("long", "CartPole-v1"): 900,
        ("long", "Acrobot-v1"): 900,
    }
    assert {(config.gamma, config.n_eval_episodes, config.threads) for config in configs.values()} == {(0.9, 3, 1)}
    (usual,) = Grid(agents=("ddqn",), envs=("Acrobot-v1",), seeds=1).cells()
    assert usual.config().total_timesteps == 10_000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "0"], "--seeds is 0"),
        (["--envs"], "--envs names no environment"),
        (["--total-timesteps", "300"], "the first update of ddqn comes after learning_starts 500"),
        (["--agents", "kernel_dqn"], "did you mean 'kernel_ddqn'"),
        (["--overrides", "kernel.k=3"], "agent 'ddqn' does not use 'kernel.k'"),
        (["--overrides", "gamma"], "'gamma' is no NAME=VALUE"),
        (["--overrides", "seed=3"], "'seed' is given by the grid itself"),
        (["--agents", "ddqn", "ddqn"], "two variants are called ddqn"),
        (["--agents", "a/b=ddqn"], "'a/b' is no label"),
        (["--agents", "a|b=ddqn"], "'a|b' is no label"),
        (["--agents", "command.txt=ddqn"], "'command.txt' is no label"),
        (["--budgets", "Pong=3"], "--budgets names Pong"),
        (["--envs", "Chain-v0", "Chian-v0"], "unknown environment 'Chian-v0'; did you mean 'Chain-v0'"),
        (["--backend", "dask"], "belong together"),
        (["--backend", "dask", "--scheduler", "tcp://h:1", "--print-commands"], "--scheduler has no effect"),
        (["--backend", "dask", "--scheduler", "tcp://h:1", "--jobs", "4"], "--jobs has no effect"),
        (["--print-commands", "--jobs", "4"], "--jobs has no effect"),
        (["--overrides", "n-steps=3", "n_steps=5"], "'n_steps' is given twice"),
        (["--total-timesteps", "600", "--overrides", "total-timesteps=700"], "keep one of them"),
        (["--budgets", "CartPole-v1=600", "--overrides", "total_timesteps=700"], "keep one of them"),
        (["--jobs", "0"], "--jobs is 0, but must be at least 1"),
        (["--variants", "nowhere.yaml"], "cannot read settings from nowhere.yaml"),
    ],
)
def test_a_wrong_grid_is_refused_before_anything_runs(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = learning_curves.main([*words, "--folder", str(tmp_path)])
    except SystemExit as finished:  # tyro's own way
        status = int(finished.code or 0)
    assert status == 2
    output = capsys.readouterr()
    assert message in " ".join((output.out + output.err).split())
    assert not list(tmp_path.iterdir())


def test_a_real_grid_fails_skips_refuses_and_redoes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "grid"
    words = ["--agents", "ddqn", "--envs", "Chain-v0", "Pendulum-v1", "--seeds", "1", "--folder", str(folder)]
    quick = ["--total-timesteps", "60", "--eval-episodes", "1", "--overrides", "learning_starts=20"]
    assert learning_curves.main([*words, *quick]) == 1
    output = capsys.readouterr()
    good, bad = folder / "ddqn" / "Chain-v0" / "seed0", folder / "ddqn" / "Pendulum-v1" / "seed0"
    failed = "failed: ddqn Pendulum-v1 seed 0: exit status 2: train.py: Pendulum-v1 has the action space Box"
    assert output.err.startswith(failed)
    assert output.err.endswith(f"; see {bad / 'log.txt'}\n")
    assert "needs Discrete actions" in (bad / "log.txt").read_text()
    assert "cells: 2, of which finished before: 0" in output.out
    assert "[2/2]" in output.out
    result = json.loads((good / "result.json").read_text())
    assert (result["total_timesteps"], len(result["eval_seconds"])) == (60, 10)

    words[3:5] = ["Chain-v0"]
    before = (good / "result.json").read_bytes()
    assert learning_curves.main([*words, *quick]) == 0
    assert "cells: 1, of which finished before: 1" in capsys.readouterr().out
    changed = [*words, *quick, "gamma=0.5"]
    assert learning_curves.main(changed) == 2
    assert "ddqn Chain-v0 seed 0: gamma: 0.99, now 0.5" in capsys.readouterr().err
    assert learning_curves.main([*changed, "--redo", "--print-commands"]) == 0
    command = shlex.split(capsys.readouterr().out)
    assert command[:2] == ["env", "OMP_NUM_THREADS=1"]
    assert command[command.index("--gamma") + 1] == "0.5"
    assert command[-1] == "--force"
    assert (good / "result.json").read_bytes() == before
    assert len((folder / "command.txt").read_text().splitlines()) == 2

    (good / "config.yaml").write_text("agent: ddqn\nno_such_setting: 1\n")
    assert learning_curves.main([*words, *quick]) == 2
    assert "unknown setting 'no_such_setting'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    [
        "proof",
        "control",
        "baselines",
        "qrdqn",
        "continuous",
        "slow_decay",
        "fast_lunar",
        "fresh_lunar",
        "long",
        "long_lunar",
        "kernel_ppo",
        "kernel_qrdqn",
        "deep_sea",
        "dqk_lunar",
        "continuous_lunar",
        "td3_lunar",
        "frozen_lake",
        "minatar",
        "ablations",
    ],
)
def test_published_cells_are_still_what_their_command_says(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(BENCHMARKS.parent)  # where commands are given: --variants of one is a relative path
    folder = BENCHMARKS / "results" / name
    words = shlex.split((folder / "command.txt").read_text())
    words[words.index("--folder") + 1] = str(folder)
    words[words.index("--seeds") + 1] = "1"  # all seeds of a cell have the same settings, which report.py checks
    assert learning_curves.main([*words[2:], "--print-commands"]) == 0
    assert capsys.readouterr().out == ""


def test_commands_that_nobody_reads_end_quietly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in `learning_curves.py --print-commands | head`."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    words = ["--agents", "ddqn", "--envs", "Chain-v0", "--folder", str(tmp_path), "--print-commands"]
    with open(write_end, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert learning_curves.main(words) == 0
    assert capsys.readouterr().err == ""


def test_cells_that_another_commit_finished_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = Grid(agents=("ddqn",), envs=("Chain-v0",), seeds=3, folder=tmp_path).cells()
    for cell, result in zip(cells, ('{"commit": "here"}', '{"commit": "there"}', "old"), strict=True):
        cell.run_folder.path.mkdir(parents=True)
        cell.run_folder.config.write_text(dump_config(cell.config()))
        cell.run_folder.result.write_text(result)
    monkeypatch.setattr(learning_curves, "commit", lambda: "here")
    words = ["--agents", "ddqn", "--envs", "Chain-v0", "--folder", str(tmp_path), "--seeds"]
    assert learning_curves.main([*words, "3"]) == 0
    assert "cells: 3, of which finished before: 3, of which 2 by other commits\n" in capsys.readouterr().out
    assert learning_curves.main([*words, "1"]) == 0
    assert "cells: 1, of which finished before: 1\n" in capsys.readouterr().out


def test_redo_replaces_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--agents", "ddqn", "--envs", "Chain-v0", "--seeds", "1", "--folder", str(tmp_path)]
    (cell,) = Grid(agents=("ddqn",), envs=("Chain-v0",), seeds=1, folder=tmp_path).cells()
    cell.run_folder.path.mkdir(parents=True)
    cell.run_folder.config.write_text("agent: ddqn\nenv: Chain-v0\ngamma: 0.5\n")
    cell.run_folder.result.write_text("old")
    commands = []

    def redone(jobs: list[Job], at_once: int):  # type: ignore[no-untyped-def]
        for job in jobs:
            commands.append(job.command)
            cell.run_folder.config.write_text(dump_config(cell.config()))
            yield run_job(replace(job, command=script_job(tmp_path, write_result(job.result.parent)).command))

    monkeypatch.setattr(learning_curves, "run_here", redone)
    assert learning_curves.main([*words, "--redo"]) == 0
    assert [command[-1] for command in commands] == ["--force"]
    assert cell.run_folder.result.read_text() == "{}"


def test_an_interrupt_before_the_first_job_leaves_every_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = Grid(agents=("ddqn",), envs=("Chain-v0",), seeds=3, folder=tmp_path).cells()
    for cell in cells:
        cell.run_folder.path.mkdir(parents=True)
        cell.run_folder.config.write_text("agent: ddqn\nenv: Chain-v0\ngamma: 0.5\n")
        cell.run_folder.result.write_text("old")

    def interrupted(jobs: list[Job], at_once: int):  # type: ignore[no-untyped-def]
        assert all(job.replaces is not None for job in jobs)
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(learning_curves, "run_here", interrupted)
    words = ["--agents", "ddqn", "--envs", "Chain-v0", "--seeds", "3", "--folder", str(tmp_path), "--redo"]
    assert learning_curves.main(words) == 130
    assert [cell.run_folder.result.read_text() for cell in cells] == ["old"] * 3


def test_a_job_replaces_the_result_that_it_was_made_for_and_no_other(tmp_path: Path) -> None:
    folder = tmp_path / "cell"
    folder.mkdir()
    script = script_job(folder, write_result(folder))
    script.result.write_text("old")
    job = replace(script, replaces=script.result.stat().st_mtime_ns)
    assert run_job(job).failure == ""
    assert job.result.read_text() == "{}"
    job.result.write_text("of another worker")
    os.utime(job.result, ns=(0, 1))
    assert run_job(job).failure == ""
    assert job.result.read_text() == "of another worker"


def test_the_result_of_another_run_is_not_taken_for_the_one_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As when a grid was interrupted, its runs were not, and the same cells are asked for with other settings."""
    (cell,) = Grid(agents=("ddqn",), envs=("Chain-v0",), seeds=1, folder=tmp_path).cells()

    def beaten(jobs: list[Job], at_once: int):  # type: ignore[no-untyped-def]
        cell.run_folder.path.mkdir(parents=True)
        cell.run_folder.config.write_text("agent: ddqn\nenv: Chain-v0\ngamma: 0.5\n")
        cell.run_folder.result.write_text("theirs")
        yield from map(run_job, jobs)

    monkeypatch.setattr(learning_curves, "run_here", beaten)
    words = ["--agents", "ddqn", "--envs", "Chain-v0", "--seeds", "1", "--folder", str(tmp_path)]
    assert learning_curves.main(words) == 1
    assert "finished with other settings than those now asked for" in capsys.readouterr().err


def test_without_locks_jobs_run_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("grid_jobs.fcntl.flock", refuse)
    assert run_job(script_job(tmp_path / "cell", write_result(tmp_path / "cell"))).failure == ""


def test_an_interrupted_redo_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its results are gone, and settings that nobody can read lie where the runs belong."""
    (cell,) = Grid(agents=("ddqn",), envs=("Chain-v0",), seeds=1, folder=tmp_path).cells()
    cell.run_folder.path.mkdir(parents=True)
    cell.run_folder.config.write_text("agent: ddqn\nno_such_setting: 1\n")
    words = ["--agents", "ddqn", "--envs", "Chain-v0", "--seeds", "1", "--folder", str(tmp_path)]
    quick = ["--total-timesteps", "60", "--eval-episodes", "1", "--overrides", "learning_starts=20"]
    assert learning_curves.main([*words, *quick, "--redo"]) == 0, capsys.readouterr().err
    assert cell.run_folder.result.exists()


def test_nothing_is_removed_before_somebody_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grid_cluster = pytest.importorskip("grid_cluster", reason="needs the extra `cluster`")
    monkeypatch.setattr(grid_cluster, "CONNECTION_SECONDS", 0.2)
    (cell,) = Grid(agents=("ddqn",), envs=("Chain-v0",), seeds=1, folder=tmp_path).cells()
    cell.run_folder.path.mkdir(parents=True)
    cell.run_folder.result.write_text("old")
    words = ["--agents", "ddqn", "--envs", "Chain-v0", "--seeds", "1", "--folder", str(tmp_path), "--redo"]
    assert learning_curves.main([*words, "--backend", "dask", "--scheduler", "tcp://127.0.0.1:9"]) == 2
    assert "127.0.0.1:9" in capsys.readouterr().err
    assert cell.run_folder.result.read_text() == "old"
    assert not (tmp_path / "command.txt").exists()


def test_jobs_that_leave_no_result_have_failed(tmp_path: Path) -> None:
    assert run_job(script_job(tmp_path / "none", "pass")).failure == "finished without writing result.json"
    bad = script_job(tmp_path / "bad", "import sys; print('why'); sys.exit(3)")
    assert run_job(bad).failure == "exit status 3: why"
    assert (tmp_path / "bad" / "log.txt").read_text() == "why\n"
    (tmp_path / "file").write_text("")
    assert "file" in run_job(script_job(tmp_path / "file", "pass")).failure


def test_a_job_runs_once_and_with_one_thread(tmp_path: Path) -> None:
    folder = tmp_path / "cell"
    starts = tmp_path / "starts.txt"
    # The log tells only of the last start.
    script = f"import os, time; open({str(starts)!r}, 'a').write(os.environ['OMP_NUM_THREADS'] + chr(10)); "
    script += f"time.sleep(0.3); {write_result(folder)}"
    job = script_job(folder, script)
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(run_job, [job, job]))
    assert [outcome.failure for outcome in outcomes] == ["", ""]
    assert run_job(job).failure == ""
    assert starts.read_text() == "1\n"


def test_jobs_run_side_by_side(tmp_path: Path) -> None:
    """Each ends only once all of them have begun."""
    names, meeting = ("a", "b", "c", "d"), tmp_path / "meeting"
    meeting.mkdir()
    jobs = []
    for name in names:
        script = MEETING.format(own=meeting / name, meeting=meeting, count=len(names)) + write_result(tmp_path / name)
        jobs.append(script_job(tmp_path / name, script))
    outcomes = list(run_here(jobs, at_once=len(names)))
    assert {outcome.job.name for outcome in outcomes} == set(names)
    assert not any(outcome.failure for outcome in outcomes)


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal to a group of processes")
def test_an_interrupt_of_a_grid_starts_no_further_job(tmp_path: Path) -> None:
    starts = tmp_path / "starts.txt"
    words = [
        "--agents",
        "ddqn",
        "--envs",
        "Chain-v0",
        "--seeds",
        "6",
        "--jobs",
        "2",
        "--folder",
        str(tmp_path / "grid"),
    ]
    command = [sys.executable, "-c", INTERRUPTED, str(BENCHMARKS), SAVING, str(starts), *words]
    with subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True) as grid:
        try:
            late = time.monotonic() + 60.0
            while not starts.exists() or starts.read_text().count("started") < 2:
                assert grid.poll() is None
                assert time.monotonic() < late, "no job has begun"
                time.sleep(0.02)
            os.killpg(grid.pid, signal.SIGINT)  # as a terminal does
            _, error = grid.communicate(timeout=30.0)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(grid.pid, signal.SIGKILL)
    assert grid.returncode == 130
    assert error == "learning_curves.py: interrupted; the same command goes on where it stopped\n"
    assert starts.read_text().count("started") == 2
    assert not list((tmp_path / "grid").rglob("seed[2-5]"))


def test_the_rest_is_estimated_by_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("grid_progress.time.perf_counter", lambda: clock[0])
    short, long = script_job(tmp_path / "short", "pass", 100), script_job(tmp_path / "long", "pass", 300)
    progress = Progress([short, long], skipped=3)
    clock[0] = 160.0
    outcome = learning_curves.Outcome(short, 50.0)
    assert progress.line(outcome) == "[4/5] short: 50 s · 1 min 0 s so far, about 3 min 0 s left"
    assert progress.line(learning_curves.Outcome(long, 1.0, "why")).startswith("[5/5] long: FAILED")
    assert duration(3600 * 5 + 61) == "5 h 1 min"


def test_dask_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "grid_cluster", None)
    with pytest.raises(ConfigError, match="pip install -e"):
        learning_curves.start(Grid(backend="dask", scheduler="tcp://nowhere:1"), [])
