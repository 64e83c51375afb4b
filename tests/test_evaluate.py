"""The evaluate command on saved runs."""

from __future__ import annotations

import base64
import io
import json
import pickle
import shutil
import sys
import zipfile
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.save_util import load_from_zip_file

import evaluate
import train
from agents.training.video import as_picture, play_episode
from envs import make_env

# Evaluations take longer with checks of shapes, which the tests of their parts make. The runs that a module shares are
# trained before this holds, with them.
pytestmark = pytest.mark.usefixtures("without_shape_checks")

SHORT = ["--env", "CartPole-v1", "--total-timesteps", "200", "--no-progress-bar"]
SHORT += ["--n-evaluations", "2", "--n-eval-episodes", "2"]
QUICK = [*SHORT, "--learning-starts", "50"]
PPO = [*SHORT, "--n-envs", "4", "--n-steps", "10", "--batch-size", "40", "--normalize"]


@pytest.fixture(scope="module", params=["dqn", "qrdqn", "ppo", "kernel_ddqn", "kernel_q"])
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    words = PPO if request.param == "ppo" else QUICK
    words = [*words, "--target-update-interval", "1", "--train-freq", "64"] if request.param == "qrdqn" else words
    assert train.main([*words, "--agent", request.param, "--run-dir", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def dqn_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dqn")
    assert train.main([*QUICK, "--agent", "dqn", "--run-dir", str(folder)]) == 0
    return folder


def table(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    rows = (line.split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│"))
    return {row[1].strip(): row[2].strip() for row in rows}


def test_final_score_is_reproduced(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = json.loads((finished / "result.json").read_text())
    capsys.readouterr()
    assert evaluate.main([str(finished)]) == 0
    rows = table(capsys)
    assert rows["episodes"] == "20"
    assert rows["return"] == f"{result['final_mean_return']:.2f} ± {result['final_std_return']:.2f}"
    assert float(rows["lowest"]) <= result["final_mean_return"] <= float(rows["highest"])
    assert rows["mean length"] == f"{result['final_mean_return']:.1f} steps"


def test_a_run_from_a_machine_with_another_device(
    dqn_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(dqn_run, tmp_path / "run")
    settings = (run / "config.yaml").read_text()
    assert "device: auto" in settings
    (run / "config.yaml").write_text(settings.replace("device: auto", "device: cuda:7"))
    assert evaluate.main([str(run), "--episodes", "1"]) == 0
    capsys.readouterr()
    assert evaluate.main([str(run), "--episodes", "1", "--device", "cuda:7"]) == 2
    assert "device is 'cuda:7', but this machine has auto, cpu" in capsys.readouterr().err


def test_best_checkpoint_seed_and_episodes(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = json.loads((finished / "result.json").read_text())["best_mean_return"]
    capsys.readouterr()
    words = [str(finished), "--checkpoint", "best", "--episodes", "2", "--seed", "10000"]
    assert evaluate.main(words) == 0
    assert table(capsys)["return"].startswith(f"{best:.2f} ±")


# moviepy leaves the pipe to its encoder to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_video_shows_one_episode(dqn_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([str(dqn_run), "--episodes", "1", "--video"]) == 0
    (film,) = dqn_run.glob("*.mp4")
    assert str(film) in capsys.readouterr().out
    frames = iio.imread(film)
    assert len(frames) >= 8
    assert frames.shape[1:] == (400, 600, 3)


def test_a_film_of_atari_shows_a_game() -> None:
    env = make_env("ALE/Breakout-v5", evaluation=True)
    frames = play_episode(DQN("CnnPolicy", env, buffer_size=1, seed=0), env, seed=0)
    env.close()
    assert len(frames) > 60  # five lives; the first ends after 23 actions


def test_a_long_film_is_cut_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    env = make_env("Chain-v0", evaluation=True, env_kwargs={"render_mode": "rgb_array"})
    model = DQN("MlpPolicy", env, buffer_size=1, seed=0)
    whole = play_episode(model, env, seed=0)
    monkeypatch.setattr("agents.training.video.MOST_BYTES", 3 * whole[0].nbytes)
    with pytest.warns(UserWarning, match="the film ends after 3 steps, for memory"):
        assert len(play_episode(model, env, seed=0)) == 3 < len(whole)
    env.close()


def test_without_a_film_writer_there_are_scores(
    dqn_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "moviepy", None)
    monkeypatch.setitem(sys.modules, "moviepy.video.io.ImageSequenceClip", None)
    monkeypatch.delitem(sys.modules, "gymnasium.utils.save_video", raising=False)
    assert evaluate.main([str(dqn_run), "--episodes", "1"]) == 0
    capsys.readouterr()
    assert evaluate.main([str(dqn_run), "--episodes", "1", "--video"]) == 2
    output = capsys.readouterr()
    assert "--video needs moviepy" in output.err
    assert 'pip install -e ".[video]"' in output.err
    assert not output.out


def test_what_keeps_a_film_from_being_made_is_said_before_the_episodes(
    dqn_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("moviepy")
    run = shutil.copytree(dqn_run, tmp_path / "run")
    settings = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(settings.replace("env_kwargs: {}", "env_kwargs: {render_mode: null}"))
    assert evaluate.main([str(run), "--video"]) == 2
    output = capsys.readouterr()
    assert "renders no pictures (render mode rgb_array), so leave --video out" in output.err
    assert not output.out

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("agents.training.video.TemporaryFile", refuse)
    assert evaluate.main([str(dqn_run), "--video"]) == 2
    output = capsys.readouterr()
    assert f"no film can be written into {dqn_run}: Permission denied; leave --video out" in output.err
    assert not output.out


def test_an_interrupted_evaluation_says_so(
    dqn_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("evaluate.evaluate_greedily", interrupt)
    assert evaluate.main([str(dqn_run)]) == 130
    assert capsys.readouterr().err == "evaluate.py: interrupted\n"


@pytest.mark.parametrize(
    ("frame", "shape"),
    [
        (np.zeros((400, 600, 3), np.uint8), (400, 600, 3)),
        (np.zeros((211, 161, 3), np.uint8), (210, 160, 3)),
        (np.ones((10, 10, 3)), (130, 130, 3)),
    ],
)
def test_pictures_suit_the_codec(frame: np.ndarray, shape: tuple[int, ...]) -> None:
    picture = as_picture(frame)
    assert picture.dtype == np.uint8
    assert picture.shape == shape
    assert picture.max() == (255 if frame.any() else 0)


def copy_config(source: Path, target: Path) -> None:
    (target / "config.yaml").write_text((source / "config.yaml").read_text())


def test_missing_parts_are_named(dqn_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in [
        ([], "which run?"),
        ([str(tmp_path / "none")], "there is no run folder"),
        ([str(dqn_run / "model.zip")], f"give that of the model, {dqn_run}"),
        ([str(tmp_path)], "config.yaml"),
        (["x" * 300], "cannot read the run folder xxx"),
        ([str(dqn_run), "--checkpoint", "bets"], "did you mean 'best'"),
        ([str(dqn_run), "--episodes", "0"], "episodes is 0"),
        ([str(dqn_run), "--episode", "3"], "did you mean '--episodes'"),
    ]:
        assert evaluate.main(words) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    copy_config(dqn_run, tmp_path)
    assert evaluate.main([str(tmp_path)]) == 2
    assert "there is no model.zip" in capsys.readouterr().err


def test_a_file_that_is_no_model_is_an_error(dqn_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy_config(dqn_run, tmp_path)
    (tmp_path / "model.zip").write_bytes(b"not a zip file")
    assert evaluate.main([str(tmp_path)]) == 2
    assert "does not hold a model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "EOFError"), (torch.zeros(2), "Expected state_dict to be dict-like, got <class 'torch.Tensor'>")],
)
def test_what_is_wrong_with_a_model_is_said(
    content: bytes | torch.Tensor, message: str, dqn_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy_config(dqn_run, tmp_path)
    saved = io.BytesIO(content if isinstance(content, bytes) else b"")
    if isinstance(content, torch.Tensor):
        torch.save(content, saved)
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        archive.writestr("policy.pth", saved.getvalue())
    assert evaluate.main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert f"does not hold a model that fits its config.yaml: {message}" in error
    assert error.count("\n") == 1


def test_a_model_that_cannot_be_read_is_an_error(
    dqn_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "model.zip")

    monkeypatch.setattr(DQN, "set_parameters", refuse)
    assert evaluate.main([str(dqn_run)]) == 2
    assert f"cannot read {dqn_run / 'model.zip'}: Permission denied" in capsys.readouterr().err


def test_weights_of_another_network_are_an_error(
    dqn_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = (dqn_run / "config.yaml").read_text().replace("- 256\n- 256", "- 32")
    (tmp_path / "config.yaml").write_text(settings)
    (tmp_path / "model.zip").write_bytes((dqn_run / "model.zip").read_bytes())
    assert evaluate.main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "does not hold a model that fits its config.yaml: Error(s) in loading state_dict for" in error
    assert "size mismatch" in error
    assert error.count("\n") == 1


class Payload:
    """Runs when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.marker,)


def test_nothing_in_a_saved_model_is_executed(
    dqn_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither among the settings, which stable_baselines3 would unpickle, nor in place of the tensors."""
    copy_config(dqn_run, tmp_path)
    marker = tmp_path / "executed"
    pickled = {":type:": "x", ":serialized:": base64.b64encode(pickle.dumps(Payload(marker))).decode()}
    with zipfile.ZipFile(dqn_run / "model.zip") as model, zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        for name in model.namelist():
            archive.writestr(name, json.dumps({"x": pickled}) if name == "data" else model.read(name))
    assert evaluate.main([str(tmp_path), "--episodes", "1"]) == 0
    assert not marker.exists()
    load_from_zip_file(tmp_path / "model.zip")
    assert marker.exists()
    marker.unlink()
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        archive.writestr("data", json.dumps({"x": pickled}))
        archive.writestr("policy.pth", pickle.dumps(Payload(marker), protocol=2))
    capsys.readouterr()
    assert evaluate.main([str(tmp_path)]) == 2
    assert not marker.exists()
    assert capsys.readouterr().err.count("\n") == 1


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(["--help"]) == 0
    output = capsys.readouterr().out
    assert all(flag in output for flag in ("--run-dir", "--episodes", "--checkpoint", "--video", "--seed"))


def test_a_run_that_did_not_finish_is_called_so(
    dqn_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy_config(dqn_run, tmp_path)
    shutil.copy(dqn_run / "model.zip", tmp_path)
    capsys.readouterr()
    assert evaluate.main([str(tmp_path), "--episodes", "1"]) == 0
    assert "unfinished run's model" in capsys.readouterr().out
    assert evaluate.main([str(dqn_run), "--episodes", "1"]) == 0
    assert "final model" in capsys.readouterr().out
