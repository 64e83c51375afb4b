"""Small decision processes: their values by hand, by simulation and by Gymnasium's own checker."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from envs import ChainEnv, DeepSeaEnv, GridWorldEnv, TabularEnv, value_iteration
from envs.tabular import DOWN, LEFT, RIGHT, UP

GAMMA = 0.9


@pytest.mark.parametrize("env_id", ["Chain-v0", "GridWorld-v0", "DeepSea-v0"])
@pytest.mark.parametrize("observation", ["one_hot", "index", "position"])
@pytest.mark.parametrize("render_mode", [None, "rgb_array"])
def test_gymnasium_accepts_them(env_id: str, observation: str, render_mode: str | None) -> None:
    check_env(gym.make(env_id, observation=observation, render_mode=render_mode).unwrapped)


def test_chain_values_by_hand() -> None:
    expected = [
        [GAMMA**3, GAMMA**2],
        [GAMMA**3, GAMMA],
        [GAMMA**2, 1.0],
        [0.0, 0.0],
    ]
    np.testing.assert_allclose(ChainEnv(4).optimal_q(GAMMA), expected, atol=1e-10)


def test_grid_values_by_hand() -> None:
    values = GridWorldEnv(rows=2, columns=2, step_cost=0.1).optimal_q(GAMMA)
    beside_goal, corner = 0.9, -0.1 + GAMMA * 0.9
    assert values[0, RIGHT] == pytest.approx(corner)
    assert values[0, DOWN] == pytest.approx(corner)
    assert values[0, LEFT] == values[0, UP] == pytest.approx(-0.1 + GAMMA * corner)
    assert values[1, DOWN] == values[2, RIGHT] == pytest.approx(beside_goal)
    np.testing.assert_array_equal(values[3], 0.0)


def test_the_deep_sea_pays_one_sequence_of_actions_and_repeating_one_is_no_help() -> None:
    size = 6
    env = DeepSeaEnv(size, cost=0.06)
    returns = []
    for sequence in range(2**size):
        env.reset(seed=0)
        steps = [env.step(np.int64(sequence >> row & 1)) for row in range(size)]
        assert [step[2] for step in steps] == [False] * (size - 1) + [True]
        returns.append(sum(step[1] for step in steps))
    best = np.argsort(returns)
    assert returns[best[-1]] == pytest.approx(1.0 - 0.06)
    assert max(returns[i] for i in best[:-1]) <= 0.0
    assert best[-1] not in (0, 2**size - 1)  # neither action alone
    assert env.optimal_q(1.0)[0].max() == pytest.approx(1.0 - 0.06)


def test_the_end_is_as_far_as_it_looks() -> None:
    assert ChainEnv(102).steps_to_end() == 101
    assert ChainEnv(5, slip=0.3).steps_to_end() == 4
    assert GridWorldEnv(rows=3, columns=5).steps_to_end() == 2 + 4
    assert DeepSeaEnv(7).steps_to_end() == 7


def test_a_slip_goes_the_other_way() -> None:
    mdp = ChainEnv(3, slip=0.2).mdp
    np.testing.assert_allclose(mdp.transitions[1, [LEFT, RIGHT]], [[0.8, 0.0, 0.2], [0.2, 0.0, 0.8]])
    np.testing.assert_allclose(mdp.transitions[0, [LEFT, RIGHT]], [[0.8, 0.2, 0.0], [0.2, 0.8, 0.0]])
    np.testing.assert_allclose(mdp.rewards, [[0.0, 0.0], [0.2, 0.8], [0.0, 0.0]])


def test_values_satisfy_the_bellman_equation_with_slips() -> None:
    env = ChainEnv(6, slip=0.2)
    values = env.optimal_q(GAMMA)
    backup = env.mdp.rewards + GAMMA * np.einsum("san,n->sa", env.mdp.transitions, values.max(axis=1))
    np.testing.assert_allclose(values, backup, atol=1e-10)


def test_simulated_returns_match_the_value_of_the_start() -> None:
    env = ChainEnv(4, slip=0.3)
    values = env.optimal_q(GAMMA)
    env.reset(seed=0)
    returns = [discounted_greedy_return(env, values) for _ in range(3000)]
    standard_error = np.std(returns) / np.sqrt(len(returns))
    assert abs(np.mean(returns) - values[0].max()) < 4 * standard_error


def discounted_greedy_return(env: TabularEnv, values: np.ndarray) -> float:
    env.reset()
    total, discount, terminated = 0.0, 1.0, False
    while not terminated:
        _, reward, terminated, _, _ = env.step(values[env.state].argmax())
        total += discount * reward
        discount *= GAMMA
    return total


def test_observations_name_the_state() -> None:
    vector, index = ChainEnv(3), ChainEnv(3, observation="index")
    vector.reset(seed=0)
    index.reset(seed=0)
    np.testing.assert_array_equal(vector.step(RIGHT)[0], [0.0, 1.0, 0.0])
    assert index.step(RIGHT)[0] == 1
    position = GridWorldEnv(rows=3, columns=5, observation="position")
    position.reset(seed=0)
    np.testing.assert_array_equal(position.step(DOWN)[0], np.float32([0.5, 0.0]))
    np.testing.assert_array_equal(position.step(RIGHT)[0], np.float32([0.5, 0.25]))


def test_picture_shows_the_present_state() -> None:
    env = GridWorldEnv(rows=2, columns=3, render_mode="rgb_array")
    env.reset(seed=0)
    env.step(DOWN)
    image = env.render()
    assert image.shape == (64, 96, 3)
    assert np.argwhere(image[::32, ::32, 0] == 255).tolist() == [[1, 0]]


def test_value_iteration_rejects_what_it_cannot_solve() -> None:
    env = ChainEnv(3)
    with pytest.raises(ValueError, match=r"gamma is 1\.5"):
        value_iteration(env.mdp.transitions, env.mdp.rewards, 1.5)
    with pytest.raises(ValueError, match="sum to 1"):
        value_iteration(env.mdp.transitions * 0.5, env.mdp.rewards, GAMMA)
    endless = np.ones((1, 1, 1)), np.ones((1, 1))
    with pytest.raises(RuntimeError, match="use gamma below 1"):
        value_iteration(*endless, gamma=1.0, max_iterations=10)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ChainEnv(1), "n_states is 1"),
        (lambda: ChainEnv(slip=1.0), r"slip is 1\.0"),
        (lambda: GridWorldEnv(rows=0), "0 x 4"),
        (lambda: ChainEnv(observation="picture"), "'picture', but must be one of one_hot, index, position"),
        (lambda: DeepSeaEnv(1), "size is 1"),
    ],
)
def test_impossible_sizes_are_errors(build, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        build()
