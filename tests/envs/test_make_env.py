"""Environments by id: wrappers, seeds, evaluation, unknown names."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv

import train
from agents.training.evaluation import evaluate_greedily
from envs import ChainEnv, EnvironmentArgumentError, UnknownEnvironmentError, make_env
from envs.make_env import EVALUATION_LIMIT


def play(env: VecEnv, steps: int) -> np.ndarray:
    """Observations under a fixed sequence of actions, [steps + 1, n_envs, ...]."""
    rng = np.random.default_rng(0)
    actions = rng.integers(env.action_space.n, size=(steps, env.num_envs))
    observations = np.stack([env.reset(), *(env.step(action)[0] for action in actions)])
    env.close()
    return observations


@contextmanager
def registered(env_id: str, cls: type[gym.Env[Any, Any]]) -> Iterator[None]:
    """An id for a class of a test, for as long as the block lasts."""
    gym.register(env_id, entry_point=cls, disable_env_checker=True)
    try:
        yield
    finally:
        del gym.registry[env_id]


def test_copies_are_monitored_and_start_apart() -> None:
    env = make_env("CartPole-v1", n_envs=3, seed=0)
    assert env.num_envs == 3
    assert env.env_is_wrapped(Monitor) == [True] * 3
    first = env.reset()
    env.close()
    assert len(np.unique(first, axis=0)) == 3


@pytest.mark.parametrize("env_id", ["CartPole-v1", "ALE/Pong-v5", "LunarLander-v3"])
def test_same_seed_same_episode(env_id: str) -> None:
    one, same, other = (play(make_env(env_id, seed=seed), 40) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_atari_shows_four_stacked_grey_frames() -> None:
    env = make_env("ALE/Pong-v5", n_envs=2, seed=0)
    # A film has a picture for every action, so that it runs as fast as the game at 15 of them a second.
    assert [metadata["render_fps"] for metadata in env.get_attr("metadata")] == [15, 15]
    observation = env.reset()
    env.close()
    assert env.observation_space == spaces.Box(0, 255, (84, 84, 4), np.uint8)
    assert observation.shape == (2, 84, 84, 4)
    assert not observation[..., :3].any()
    assert observation[..., 3].any()


def test_atari_skips_frames_once_and_keeps_sticky_actions() -> None:
    env = make_env("ALE/Pong-v5")
    spec = env.get_attr("spec")[0]
    assert spec.kwargs["frameskip"] == 1
    assert spec.kwargs["repeat_action_probability"] == 0.25
    env.reset()
    ale = env.unwrapped.envs[0].unwrapped.ale
    before = ale.getEpisodeFrameNumber()
    env.step(np.array([0]))
    assert ale.getEpisodeFrameNumber() - before == 4
    env.close()


@pytest.mark.parametrize("evaluation", [False, True])
def test_atari_rewards_are_clipped_in_training_only(evaluation: bool) -> None:
    env = make_env("ALE/SpaceInvaders-v5", evaluation=evaluation)
    clip = env.unwrapped.envs[0]
    rewards = []
    while clip is not clip.unwrapped:
        if isinstance(clip, gym.RewardWrapper):
            rewards.append(clip.reward(200.0))
        clip = clip.env
    env.close()
    assert rewards == ([] if evaluation else [1.0])


@pytest.mark.parametrize("evaluation", [False, True])
def test_a_lost_life_ends_an_episode_and_the_last_one_the_game(evaluation: bool) -> None:
    """Of Breakout, where the wrappers serve the next ball and a policy that never does would wait for ever."""
    env = make_env("ALE/Breakout-v5", seed=0, evaluation=evaluation)
    env.reset()
    lives, games = [], []
    while not games:
        _, _, dones, infos = env.step(np.array([3]))
        if dones[0]:
            lives.append(infos[0]["lives"])
            games += [infos[0]["episode"]] if "episode" in infos[0] else []
    env.close()
    assert lives == [4, 3, 2, 1, 0]
    assert games[0]["l"] < 2000


def test_an_evaluation_of_atari_counts_games() -> None:
    env = make_env("ALE/Breakout-v5", n_envs=2, evaluation=True)
    evaluation = evaluate_greedily(DQN("CnnPolicy", env, buffer_size=2, seed=0), env, 2, seed=0)
    env.close()
    assert len(evaluation.returns) == 2
    assert all(100 < length < 20_000 for length in evaluation.lengths)


def test_minatar_is_registered_on_demand() -> None:
    pytest.importorskip("minatar")
    env = make_env("MinAtar/Breakout-v1", n_envs=2, seed=0)
    assert env.reset().shape == (2, 10, 10, 4)
    env.close()
    make_env("MinAtar/Breakout-v1").close()


def test_arguments_reach_the_constructor() -> None:
    env = make_env("Chain-v0", env_kwargs={"n_states": 7})
    assert env.observation_space.shape == (7,)
    env.close()
    with pytest.raises(EnvironmentArgumentError, match=r"Chain-v0 does not take .*'n_stats'"):
        make_env("Chain-v0", env_kwargs={"n_stats": 7})
    with pytest.raises(
        EnvironmentArgumentError, match=r"does not take .*: n_states is 1, but a chain needs at least 2"
    ):
        make_env("Chain-v0", env_kwargs={"n_states": 1})


@pytest.mark.parametrize(
    ("env_id", "kwargs", "message"),
    [
        ("FrozenLake-v1", {"map_name": "9x9"}, r"does not take \{'map_name': '9x9'\}: KeyError '9x9'"),
        ("LunarLander-v3", {"gravity": 5}, r"does not take .*: gravity \(current value: 5\) must be between -12 and 0"),
        ("ALE/Pong-v5", {"mode": 99}, "does not take .*: Invalid game mode requested"),
        ("ALE/Pong-v5", {"obs_type": "smell"}, "does not take obs_type='smell': .* needs obs_type='rgb'"),
        ("ALE/Pong-v5", {"obs_type": "ram"}, "does not take obs_type='ram': .* needs obs_type='rgb'"),
        ("ALE/Pong-v5", {"frameskip": 4}, "does not take frameskip=4: .* needs frameskip=1"),
    ],
)
def test_whatever_a_constructor_raises_names_the_arguments(env_id: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(EnvironmentArgumentError, match=message):
        make_env(env_id, env_kwargs=kwargs)


def test_an_argument_that_is_needed_is_asked_for() -> None:
    class Sized(gym.Env[Any, Any]):
        metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012

        def __init__(self, size: int) -> None:
            self.size = size

    refusal = pytest.raises(EnvironmentArgumentError, match=r"missing 1 .* 'size' .*; give --env-kwargs.NAME VALUE")
    with registered("Sized-v0", Sized), refusal:
        make_env("Sized-v0")


def test_a_size_whose_end_no_episode_reaches_is_refused() -> None:
    with pytest.raises(EnvironmentArgumentError, match="its end is 101 steps away, but an episode has 100"):
        make_env("Chain-v0", env_kwargs={"n_states": 102})
    make_env("Chain-v0", env_kwargs={"n_states": 101}).close()
    make_env("Chain-v0", env_kwargs={"n_states": 102}, max_episode_steps=101).close()
    make_env("Chain-v0", max_episode_steps=2, evaluation=True).close()


def test_a_value_that_the_constructor_refuses_is_one_sentence_of_train(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--env", "Chain-v0", "--env-kwargs.n-states", "1", "--run-dir", str(tmp_path / "run")]
    assert train.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("train.py: Chain-v0 does not take {'n_states': 1}: n_states is 1")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("CartPoel-v1", "CartPole-v1"),
        ("cartpole", "CartPole-v1"),
        ("LunarLander-v2", "LunarLander-v3"),
        ("ALE/pnog-v5", "ALE/Pong-v5"),
        ("Chian-v0", "Chain-v0"),
        ("Pong", "ALE/Pong-v5"),
        ("MsPacmanNoFrameskip-v5", "ALE/MsPacman-v5"),
    ],
)
def test_unknown_id_names_the_nearest(wrong: str, nearest: str) -> None:
    with pytest.raises(UnknownEnvironmentError, match=f"'{wrong}'; did you mean '{nearest}'"):
        make_env(wrong)


@pytest.mark.parametrize(
    ("env_id", "remedy"),
    [
        ("PongNoFrameskip-v4", "ALE/Pong-v5"),
        ("MsPacman-v0", "ALE/MsPacman-v5"),
        ("ale_py:Breakout-v4", "ALE/Breakout-v5"),
        ("ale_py:ALE/Pong-v5", "ALE/Pong-v5"),
    ],
)
def test_an_atari_game_without_its_preprocessing_is_refused(env_id: str, remedy: str) -> None:
    with pytest.raises(UnknownEnvironmentError, match=f"'{env_id}' is an Atari game.*use '{remedy}'"):
        make_env(env_id)


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("no_such_module.envs:Thing-v0", "imports a module that is missing: No module named 'no_such_module'"),
        (".foo:Thing-v0", "imports '.foo', but relative to what"),
        (":CartPole-v1", "':CartPole-v1' names no module before its colon"),
        ("NeedsMore-v0", "environment 'NeedsMore-v0' needs what is not installed: No module named 'no_such_module'"),
    ],
)
def test_missing_module_is_named(env_id: str, message: str) -> None:
    if "NeedsMore-v0" not in gym.registry:
        gym.register("NeedsMore-v0", entry_point="no_such_module:NeedsMoreEnv")
    with pytest.raises(UnknownEnvironmentError, match=message):
        make_env(env_id)


@pytest.mark.parametrize(
    ("space", "part"),
    [
        (spaces.Dict({"outer": spaces.Dict({"x": spaces.Discrete(2)})}), "Dict"),
        (spaces.Dict({"words": spaces.Text(3)}), "Text"),
        (spaces.Tuple([spaces.Text(3)]), "Text"),
        (spaces.Text(3), "Text"),
    ],
)
def test_observations_that_cannot_be_batched_are_refused(space: spaces.Space[Any], part: str) -> None:
    class Showing(ChainEnv):
        def __init__(self, render_mode: str | None = None) -> None:
            super().__init__(render_mode=render_mode)
            self.observation_space = space

    refusal = pytest.raises(UnknownEnvironmentError, match=f"Showing-v0 has .* can batch no {part} in it; wrap it")
    with registered("Showing-v0", Showing), refusal:
        make_env("Showing-v0")


def test_id_behind_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mazes.py").write_text(
        "import gymnasium\ngymnasium.register('Maze-v0', entry_point='envs.tabular:ChainEnv', max_episode_steps=9)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert "Maze-v0" not in gym.registry
    try:
        env = make_env("mazes:Maze-v0")
        assert env.reset().shape == (1, 5)
        env.close()
    finally:
        del gym.registry["Maze-v0"]
        del sys.modules["mazes"]


def test_an_episode_of_minatar_begins_without_the_last_one() -> None:
    pytest.importorskip("minatar")
    env = make_env("MinAtar/Breakout-v1", seed=0)
    game = env.get_attr("game")[0]
    game.last_action = 3
    env.reset()
    assert game.last_action == 0
    env.close()


def test_an_evaluation_cuts_what_never_ends() -> None:
    """Going up for ever, at the edge of the cliff walk, ends in training where the user says and never by itself."""

    def length(**kwargs: Any) -> int | None:
        env = make_env("CliffWalking-v1", **kwargs)
        env.reset()
        infos = (env.step(np.array([0]))[2][0] for _ in range(EVALUATION_LIMIT + 1))
        steps = next((step for step, done in enumerate(infos, start=1) if done), None)
        env.close()
        return steps

    assert length() is None
    assert length(evaluation=True) == EVALUATION_LIMIT
    assert length(max_episode_steps=7) == 7
    assert length(evaluation=True, max_episode_steps=7) == 7
    assert length(evaluation=True, env_kwargs={"max_episode_steps": 7}) == 7


@pytest.mark.parametrize(("env_id", "limit"), [("CartPole-v1", 500), ("LunarLander-v3", 1000)])
def test_an_environments_own_limit_stays(env_id: str, limit: int) -> None:
    env = make_env(env_id, evaluation=True)
    assert env.get_attr("spec")[0].max_episode_steps == limit
    env.close()


def test_the_limit_of_an_atari_game_counts_actions() -> None:
    """The monitor sees the cut, for evaluations count the episodes that it reports; no-ops at the beginning count."""
    env = make_env("ALE/Pong-v5", seed=0, evaluation=True, max_episode_steps=50)
    env.reset()
    steps = next(step for step in range(1, 60) if (answer := env.step(np.array([0])))[2][0])
    env.close()
    assert 50 - 30 / 4 - 1 <= steps <= 50
    assert answer[3][0]["episode"]["l"] <= 200
    assert answer[3][0]["TimeLimit.truncated"]
