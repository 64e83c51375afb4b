"""The train command, from its words to the run folder."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import pytest
import torch
import yaml
from gymnasium import spaces
from stable_baselines3.common.save_util import load_from_zip_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tqdm.rich import tqdm as tqdm_rich

import evaluate
import train
from agents.training.config import DoubleDQNConfig, PPOConfig
from agents.training.evaluation import Evaluation, PeriodicEvaluation
from agents.training.provenance import commit
from agents.training.registry import AGENTS
from agents.training.run_folder import LOCK, RunFolder
from agents.training.runs import train as train_run
from envs import ChainEnv, make_env

# Programs from end to end take twice as long with checks of shapes, which the tests of their parts make.
pytestmark = pytest.mark.usefixtures("without_shape_checks")

RESULT_KEYS = [
    "agent",
    "env",
    "seed",
    "total_timesteps",
    "eval_timesteps",
    "eval_mean_returns",
    "eval_seconds",
    "final_mean_return",
    "final_std_return",
    "best_mean_return",
    "wall_seconds",
    "train_seconds",
    "versions",
    "machine",
    "commit",
]
QUICK = ["--env", "Chain-v0", "--total-timesteps", "100", "--no-progress-bar"]
QUICK += ["--n-eval-episodes", "2", "--n-final-eval-episodes", "3"]
OFF_POLICY = ["--learning-starts", "20"]
ON_POLICY = [name for name, spec in AGENTS.items() if issubclass(spec.config, PPOConfig)]
CONTINUOUS = [name for name, spec in AGENTS.items() if spaces.Discrete not in spec.action_spaces]
ROLLOUTS = ["--n-steps", "30", "--batch-size", "10"]


class NanRewardEnv(ChainEnv):
    """Every reward is not a number."""

    def step(self, action):  # type: ignore[no-untyped-def]
        observation, _, terminated, truncated, info = super().step(action)
        return observation, float("nan"), terminated, truncated, info


gym.register("NanReward-v0", entry_point=NanRewardEnv, max_episode_steps=20, disable_env_checker=True)


def weights(file: Path) -> dict[str, torch.Tensor]:
    return load_from_zip_file(file, load_data=False)[1]["policy"]


def run(folder: Path, *words: str) -> int:
    quick = QUICK if set(words) & set(ON_POLICY) else [*QUICK, *OFF_POLICY]
    return train.main([*quick, "--run-dir", str(folder), *words])


@pytest.mark.parametrize("agent", AGENTS)
def test_run_folder_is_complete(agent: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    env = "Pendulum-v1" if agent in CONTINUOUS else "Chain-v0"
    words = ["--agent", agent, *(ROLLOUTS if agent in ON_POLICY else []), "--seed", "3"]
    quick = [*QUICK[2:], *([] if agent in ON_POLICY else OFF_POLICY), "--env", env]
    assert train.main([*quick, "--run-dir", str(tmp_path), *words]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert list(result) == RESULT_KEYS
    assert [result[key] for key in RESULT_KEYS[:4]] == [agent, env, 3, 100]
    assert result["eval_timesteps"] == list(range(10, 101, 10))
    assert len(result["eval_mean_returns"]) == 10
    assert len(result["eval_seconds"]) == 10
    assert 0.0 < result["eval_seconds"][0] < result["eval_seconds"][-1] <= result["train_seconds"]
    assert result["best_mean_return"] == max(result["eval_mean_returns"])
    assert 0.0 < result["train_seconds"] < result["wall_seconds"]
    expected = {"python", "torch", "stable_baselines3", "sb3_contrib", "gymnasium", "numpy", "sparse_kernel_rl"}
    assert set(result["versions"]) == expected
    names = {file.name.split(".")[0] for file in tmp_path.iterdir()}
    assert names == {"config", "model", "best_model", "events", "result", LOCK.split(".")[0]}
    output = capsys.readouterr().out
    assert f"{agent} on {env}, seed 3" in output
    assert f"{Path(sys.executable).name} -m tensorboard.main --logdir {tmp_path}" in output
    rows = [[cell.strip() for cell in line.split("│")[1:3]] for line in output.splitlines() if line.startswith("│")]
    scored = f"{result['final_mean_return']:.2f} ± {result['final_std_return']:.2f}"
    assert dict(rows)["final return (episodes: 3)"] == scored
    assert evaluate.main([str(tmp_path), "--episodes", "3"]) == 0
    assert f"│ {scored}" in capsys.readouterr().out


def test_saved_settings_repeat_the_run(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert run(first, "--agent", "ddqn", "--gamma", "0.8", "--seed", "4") == 0
    assert train.main(["--config", str(first / "config.yaml"), "--run-dir", str(second)]) == 0
    one, two = weights(first / "model.zip"), weights(second / "model.zip")
    assert all(torch.equal(one[name], two[name]) for name in one)
    settings = [yaml.safe_load((folder / "config.yaml").read_text()) for folder in (first, second)]
    assert settings[0] == settings[1]
    assert settings[0]["run_dir"] is None  # the folder may be moved


@pytest.mark.parametrize("agent", ["dqn", "qrdqn", *ON_POLICY, "kernel_ddqn"])
def test_evaluations_do_not_touch_training(agent: str, tmp_path: Path) -> None:
    words = ["--agent", agent, *(ROLLOUTS if agent in ON_POLICY else ["--target-update-interval", "10"])]
    words += ["--kernel.refresh-interval", "20"] if agent == "kernel_ddqn" else []
    for count in ("1", "7"):
        assert run(tmp_path / count, *words, "--n-evaluations", count) == 0
    one, many = weights(tmp_path / "1" / "model.zip"), weights(tmp_path / "7" / "model.zip")
    assert all(torch.equal(one[name], many[name]) for name in one)


@pytest.mark.parametrize("agent", ON_POLICY)
def test_steps_beyond_the_budget_are_not_learned_from(agent: str, tmp_path: Path) -> None:
    """Rollouts of 30 steps: of a budget of 100, ten steps are left over."""
    for budget in ("90", "100", "120"):
        words = ["--agent", agent, *ROLLOUTS, "--run-dir", str(tmp_path / budget), "--n-evaluations", "1"]
        assert train.main([*QUICK[:2], *QUICK[4:], *words, "--total-timesteps", budget]) == 0
    whole, left_over, longer = (weights(tmp_path / budget / "model.zip") for budget in ("90", "100", "120"))
    assert all(torch.equal(whole[name], left_over[name]) for name in whole)
    assert not all(torch.equal(whole[name], longer[name]) for name in whole)


@pytest.mark.parametrize("agent", ON_POLICY)
def test_a_budget_below_one_rollout_is_refused(agent: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--agent", agent, *ROLLOUTS, "--n-envs", "4"]
    assert run(tmp_path, *words) == 2
    error = capsys.readouterr().err
    assert "total_timesteps is 100, but the first rollout" in error
    assert "takes 120 steps" in error
    assert "raise --total-timesteps or lower --n-steps" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("agent", ["ddqn", "kernel_q"])
def test_a_budget_without_an_update_is_refused(agent: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([*QUICK, "--run-dir", str(tmp_path), "--agent", agent, "--learning-starts", "100"]) == 2
    error = capsys.readouterr().err
    assert f"total_timesteps is 100, but the first update of {agent} comes after learning_starts 100 steps" in error
    assert "raise --total-timesteps or lower --learning-starts" in error
    assert not list(tmp_path.iterdir())


def test_episodes_may_be_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Training and evaluations, later ones too, end episodes where the setting says; the environment has no limit."""
    words = [*QUICK[2:], *OFF_POLICY, "--env", "CliffWalking-v1", "--max-episode-steps", "5"]
    assert train.main([*words, "--agent", "ddqn", "--run-dir", str(tmp_path)]) == 0
    events = EventAccumulator(str(tmp_path)).Reload()
    for name in ("rollout/ep_len_mean", "eval/mean_ep_length"):
        assert {event.value for event in events.Scalars(name)} == {5.0}
    capsys.readouterr()
    assert evaluate.main([str(tmp_path), "--episodes", "2"]) == 0
    assert "5.0 steps" in capsys.readouterr().out


def test_every_evaluation_writes_the_scalars_of_training(tmp_path: Path) -> None:
    words = ["--agent", "kernel_ddqn", "--target-update-interval", "10", "--kernel.refresh-interval", "20"]
    assert run(tmp_path, *words, "--n-evaluations", "4") == 0
    events = EventAccumulator(str(tmp_path)).Reload()
    expected = {"eval/mean_reward", "eval/mean_ep_length", "train/loss", "train/q_mean", "kernel/supports"}
    assert expected <= set(events.Tags()["scalars"])
    assert {event.step for event in events.Scalars("eval/mean_reward")} == {25, 50, 75, 100}


def test_best_model_is_the_one_of_the_best_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([1.0, 3.0, 2.0, 0.5])
    seen: list[dict[str, torch.Tensor]] = []

    def scored(model, env, episodes, seed):  # type: ignore[no-untyped-def]
        seen.append({name: value.clone() for name, value in model.policy.state_dict().items()})
        return Evaluation([next(scores)], [1])

    for module in ("agents.training.evaluation", "agents.training.runs"):
        monkeypatch.setattr(f"{module}.evaluate_greedily", scored)
    assert run(tmp_path, "--agent", "ddqn", "--n-evaluations", "3") == 0
    best, final = weights(tmp_path / "best_model.zip"), weights(tmp_path / "model.zip")
    assert all(torch.equal(best[name], seen[1][name]) for name in best)
    assert all(torch.equal(final[name], seen[3][name]) for name in final)
    assert not all(torch.equal(best[name], final[name]) for name in best)
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["best_mean_return"], result["final_mean_return"]) == (3.0, 0.5)


def test_finished_run_needs_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--agent", "dqn") == 0
    before = (tmp_path / "result.json").read_bytes()
    assert run(tmp_path, "--agent", "dqn", "--seed", "1") == 2
    assert "--force" in capsys.readouterr().err
    assert (tmp_path / "result.json").read_bytes() == before
    assert run(tmp_path, "--agent", "dqn", "--seed", "1", "--force") == 0
    assert json.loads((tmp_path / "result.json").read_text())["seed"] == 1
    assert len(list(tmp_path.glob("events.*"))) == 1


def test_a_buffer_that_memory_does_not_hold_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--agent", "ddqn", "--buffer-size", str(10**15)) == 1
    error = capsys.readouterr().err
    assert "train.py: out of memory: Unable to allocate" in error
    assert "--buffer-size" in error


def test_a_job_that_is_stopped_keeps_what_it_learned(tmp_path: Path) -> None:
    words = ["--agent", "ddqn", "--env", "CartPole-v1", "--total-timesteps", "1000000", "--n-evaluations", "1"]
    program = [sys.executable, "train.py", *words, "--learning-starts", "10", "--run-dir", str(tmp_path / "run")]
    with subprocess.Popen(program, cwd=Path(train.__file__).parent, stderr=subprocess.PIPE, text=True) as job:
        late = time.monotonic() + 60.0
        while not list(tmp_path.glob("run/events.*")):
            assert time.monotonic() < late, "it has not begun to learn"
            time.sleep(0.05)
        job.terminate()
        _, errors = job.communicate(timeout=60)
    assert job.returncode == 130
    assert "model.zip holds what was learned so far" in errors
    assert (tmp_path / "run" / "model.zip").exists()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_job_or_terminal_that_ends_interrupts_unless_nohup_says_otherwise(name: str) -> None:
    number = getattr(signal, name, None) or pytest.skip(f"this system has no {name}")
    before = {kind: signal.getsignal(kind) for kind in (signal.SIGTERM, number)}
    try:
        for said, expected in (
            (signal.SIG_DFL, signal.default_int_handler),
            (signal.SIG_IGN, signal.SIG_IGN),
        ):
            signal.signal(number, said)
            train.stop_as_ctrl_c_does()
            assert signal.getsignal(number) is expected
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def test_unfinished_run_may_be_overwritten_and_a_failed_one_is_unfinished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "--agent", "dqn") == 0

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("agents.training.runs.evaluate_greedily", interrupted)
        assert run(tmp_path, "--agent", "dqn", "--force") == 130
    assert "model.zip holds what was learned" in capsys.readouterr().err
    assert (tmp_path / "model.zip").exists()
    assert not (tmp_path / "result.json").exists()
    assert run(tmp_path, "--agent", "dqn") == 0


def test_an_interrupted_run_keeps_what_it_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("train.make_env", lambda *args, **keywords: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(tmp_path, "--agent", "ddqn") == 130
    assert "model.zip" not in capsys.readouterr().err

    def interrupted(evaluation: PeriodicEvaluation) -> bool:
        if evaluation.num_timesteps == 60:
            raise KeyboardInterrupt
        return True

    monkeypatch.setattr(PeriodicEvaluation, "_on_step", interrupted)
    assert run(tmp_path, "--agent", "ddqn") == 130
    assert "model.zip holds what was learned so far" in capsys.readouterr().err
    assert not (tmp_path / "result.json").exists()
    assert evaluate.main([str(tmp_path), "--episodes", "1"]) == 0


@pytest.mark.filterwarnings("ignore::tqdm.TqdmExperimentalWarning")  # SB3 says so itself outside of tests
@pytest.mark.parametrize("step", [0, 60])
def test_what_an_environment_raises_goes_on_and_the_model_is_kept(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars: list[tqdm_rich] = []
    monkeypatch.setattr(tqdm_rich, "update", lambda bar, steps: bars.append(bar))

    def broken(evaluation: PeriodicEvaluation) -> bool:
        if evaluation.num_timesteps >= step:
            raise RuntimeError("a joint is broken")
        return True

    monkeypatch.setattr(PeriodicEvaluation, "_on_step" if step else "_on_training_start", broken)
    with pytest.raises(RuntimeError, match="a joint is broken"):
        run(tmp_path, "--agent", "ddqn", "--progress-bar")
    assert (tmp_path / "model.zip").exists() == bool(step)
    assert not (tmp_path / "result.json").exists()
    assert bool(bars) == bool(step)
    assert all(bar.disable for bar in bars), "a bar is open"
    monkeypatch.undo()
    assert run(tmp_path, "--agent", "ddqn") == 0


def test_two_runs_keep_out_of_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("fcntl")
    with RunFolder(tmp_path).locked():
        assert run(tmp_path, "--agent", "dqn") == 2
    assert f"another run is writing to {tmp_path}" in capsys.readouterr().err
    assert not (tmp_path / "config.yaml").exists()
    assert run(tmp_path, "--agent", "dqn") == 0


def test_arguments_of_the_environment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--agent", "dqn", "--env-kwargs.n-states", "7") == 0
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["env_kwargs"] == {"n_states": 7}
    capsys.readouterr()
    assert evaluate.main([str(tmp_path), "--episodes", "1"]) == 0  # the network fits 7 states alone
    assert run(tmp_path, "--agent", "dqn", "--env-kwargs.n-stats", "7", "--force") == 2
    error = capsys.readouterr().err
    assert "Chain-v0 does not take {'n_stats': 7}" in error
    assert error.count("\n") == 1


def test_run_that_can_learn_nothing_stops_with_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--agent", "ddqn", "--env", "NanReward-v0", "--total-timesteps", "400", "--n-evaluations", "1"]
    words += ["--learning-starts", "20", "--no-progress-bar", "--run-dir", str(tmp_path)]
    assert train.main(words) == 1
    error = capsys.readouterr().err
    assert "NanReward-v0" in error
    assert "step" in error
    assert error.endswith("The parameters are unharmed. model.zip holds them.\n")
    assert all(bool(tensor.isfinite().all()) for tensor in weights(tmp_path / "model.zip").values())
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize("checks", [True, False], ids=["checked", "unchecked"])
@pytest.mark.parametrize("budget", ["30", "60"])
@pytest.mark.parametrize(
    ("agent", "message"),
    [
        ("ppo", "stopped at step 30: the network's parameters are not finite. NormalizedPPO does not skip bad updates"),
        (
            "kernel_ppo",
            "stopped at step 30: the rollout holds a reward that is not finite, nan at step 1 from environment 0",
        ),
    ],
)
def test_rollouts_that_are_not_finite_stop_with_status_1(
    agent: str,
    message: str,
    budget: str,
    checks: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whether an evaluation, another rollout or the end of the budget comes next, and whoever finds out first."""
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", checks)
    words = ["--agent", agent, "--env", "NanReward-v0", *ROLLOUTS, "--n-evaluations", "1", "--no-progress-bar"]
    assert train.main([*words, "--total-timesteps", budget, "--run-dir", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "result.json").exists()
    assert error.endswith("model.zip holds them.\n") == (tmp_path / "model.zip").exists() == (agent == "kernel_ppo")


def test_folder_is_made_of_agent_environment_and_seed() -> None:
    config = DoubleDQNConfig(agent="ddqn", env="ALE/Pong-v5", seed=3)
    assert RunFolder.of(config).path == Path("runs/ddqn/ALE/Pong-v5/seed3")


def test_result_with_several_environments_overshoots_no_evaluation(tmp_path: Path) -> None:
    config = DoubleDQNConfig(
        agent="ddqn",
        env="Chain-v0",
        run_dir=str(tmp_path),
        n_envs=3,
        total_timesteps=50,
        n_evaluations=4,
        learning_starts=10,
        progress_bar=False,
    )
    env, eval_env = make_env("Chain-v0", n_envs=3, seed=0), make_env("Chain-v0", evaluation=True)
    reported: list[int] = []
    result = train_run(config, env, eval_env, lambda step, evaluation: reported.append(step))
    assert result.eval_timesteps == reported == [15, 27, 39, 51]
    env.close()
    eval_env.close()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--agent", "kernel_dqn"], "did you mean 'kernel_ddqn'"),
        (["--env", "CartPoel-v1"], "did you mean 'CartPole-v1'"),
        (["--env", "PongNoFrameskip-v4"], "use 'ALE/Pong-v5'"),
        (["--env", "Pendulum-v1"], "use --agent ppo or kernel_ppo or sac"),
        (["--learning-rte", "1"], "did you mean '--learning-rate'"),
        (["--seed", "one"], "seed is 'one'"),
        (["--config", "missing.yaml"], "missing.yaml"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([*words, "--run-dir", str(tmp_path / "run")]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not (tmp_path / "run").exists()


def test_run_folder_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "taken"
    file.write_text("mine")
    assert run(file) == 2
    assert "is a file" in capsys.readouterr().err
    assert file.read_text() == "mine"


def test_help_lists_every_setting_with_its_value(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--help", "--agent", "knn_ddqn", "--env", "ALE/Pong-v5"]) == 0
    output = " ".join(capsys.readouterr().out.split())
    for flag in ("--total-timesteps", "--learning-rate", "--kernel.refresh-interval", "--force", "--net-arch"):
        assert flag in output
    assert "Discount factor per environment step. (default: 0.99)" in output
    assert "(default: averaging)" in output


def test_the_script_itself_with_its_progress_bar(tmp_path: Path) -> None:
    words = [word for word in [*QUICK, *OFF_POLICY] if word != "--no-progress-bar"]
    command = [sys.executable, train.__file__, *words, "--agent", "dqn", "--run-dir", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (
        f"{Path(evaluate.__file__).resolve()} {tmp_path / 'run'} --video" in done.stdout
    )  # the present folder is another
    assert "100/100" in done.stdout
    assert done.stdout.count("return") >= 10
    failed = subprocess.run([*command, "--gama", "1"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert failed.returncode == 2
    assert "Traceback" not in failed.stderr


def test_a_result_names_the_commit_of_this_code() -> None:
    root = Path(train.__file__).resolve().parent
    head = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    expected = head.stdout.strip() if head.returncode == 0 else None
    found = commit()
    assert (found or "").removesuffix("-dirty") == (expected or "")


def test_commit_of_a_checkout(tmp_path: Path) -> None:
    assert commit(tmp_path) is None
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    for arguments in (["init", "-q"], [*identity, "commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True)
    clean = commit(tmp_path)
    assert clean is not None
    assert len(clean) == 40
    (tmp_path / "new").write_text("")
    assert commit(tmp_path) == f"{clean}-dirty"
    assert commit(tmp_path, ignore=("old", "new")) == clean
    assert commit(tmp_path, ignore=("old",)) == f"{clean}-dirty"
    (tmp_path / "inside").mkdir()
    assert commit(tmp_path / "inside") is None
