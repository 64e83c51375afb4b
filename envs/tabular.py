"""Small Markov decision processes whose optimal action values are known, for tests and examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

Observation = Literal["one_hot", "index", "position"]
LEFT, RIGHT, UP, DOWN = range(4)
EPISODE_LIMIT = 100
CELL_PIXELS = 32
DEEP_SEA_SEED = 0


@dataclass(frozen=True)
class FiniteMDP:
    """A Markov decision process in tables; a terminal state is absorbing and pays nothing."""

    transitions: NDArray[np.float64]
    """Probability of the next state, [states, actions, states]."""

    rewards: NDArray[np.float64]
    """Expected reward, [states, actions]."""

    terminals: NDArray[np.bool_]
    """Whether the episode ends in the state, [states]."""


def value_iteration(
    transitions: NDArray[np.float64],
    rewards: NDArray[np.float64],
    gamma: float,
    tolerance: float = 1e-12,
    max_iterations: int = 100_000,
) -> NDArray[np.float64]:
    """Optimal action values of a finite Markov decision process.

    Source: Bellman, *Dynamic Programming*, 1957: repeat Q ← r + γ P max_a Q until it stands still.

    Args:
        transitions: probability of the next state, [states, actions, states].
        rewards: expected reward, [states, actions].
        gamma: discount factor per step, in [0, 1].
        tolerance: largest change of a value at which the iteration ends, in units of reward.
        max_iterations: sweeps over all states before giving up.

    Returns:
        Q*, [states, actions].

    Raises:
        ValueError: the rows of `transitions` are no distributions, or `gamma` is outside [0, 1].
        RuntimeError: the values still change by more than `tolerance` after `max_iterations` sweeps.
    """
    if not 0.0 <= gamma <= 1.0:
        raise ValueError(f"gamma is {gamma}, but must be between 0 and 1")
    if (transitions < 0.0).any() or not np.allclose(transitions.sum(axis=-1), 1.0):
        raise ValueError("transitions[state, action] must be non-negative and sum to 1 for every state and action")
    q_values: NDArray[np.float64] = np.zeros(rewards.shape)
    for _ in range(max_iterations):
        updated: NDArray[np.float64] = rewards + gamma * transitions @ q_values.max(axis=1)
        change = np.abs(updated - q_values).max()
        q_values = updated
        if change <= tolerance:
            return q_values
    raise RuntimeError(
        f"values still change by {change:.3g} after {max_iterations} sweeps, more than the tolerance {tolerance:.3g}; "
        "use gamma below 1, a larger tolerance or more sweeps"
    )


class TabularEnv(gym.Env[Any, np.int64]):
    """An environment that plays a `FiniteMDP` from its state 0.

    Args:
        mdp: the decision process.
        layout: rows and columns in which the states are drawn, row by row.
        observation: `one_hot` for a float32 vector with one entry per state, `index` for the number of the state,
            `position` for its row and column, each from 0 to 1.
        render_mode: `rgb_array` draws the layout with the present state in white; None draws nothing.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 8}  # noqa: RUF012  (Gymnasium declares it on the instance)

    def __init__(
        self,
        mdp: FiniteMDP,
        layout: tuple[int, int],
        observation: Observation = "one_hot",
        render_mode: str | None = None,
    ) -> None:
        if observation not in get_args(Observation):
            raise ValueError(f"observation is {observation!r}, but must be one of {', '.join(get_args(Observation))}")
        n_states, n_actions = mdp.rewards.shape
        self.mdp = mdp
        self.layout = layout
        self.render_mode = render_mode
        self.action_space = spaces.Discrete(n_actions)
        self.observation = observation
        self.observation_space: spaces.Space[Any] = (
            spaces.Discrete(n_states)
            if observation == "index"
            else spaces.Box(0.0, 1.0, (n_states if observation == "one_hot" else 2,), np.float32)
        )
        self.state = 0

    def steps_to_end(self) -> int:
        """Fewest steps from state 0 to a terminal state."""
        possible = self.mdp.transitions.max(axis=1) > 0.0
        steps, reached = 0, np.arange(len(possible)) == 0
        while not reached[self.mdp.terminals].any():
            steps, reached = steps + 1, possible[reached].any(axis=0)
        return steps

    def optimal_q(self, gamma: float) -> NDArray[np.float64]:
        """Q*, [states, actions], for the discount factor `gamma` per step."""
        return value_iteration(self.mdp.transitions, self.mdp.rewards, gamma)

    def observe(self, state: int) -> Any:
        """The observation of a state: a one-hot vector, its number, or its row and column."""
        if self.observation == "index":
            return np.int64(state)
        if self.observation == "position":
            rows, columns = self.layout
            row, column = divmod(state, columns)
            return np.array([row / max(1, rows - 1), column / max(1, columns - 1)], dtype=np.float32)
        return np.eye(len(self.mdp.terminals), dtype=np.float32)[state]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Return to state 0."""
        super().reset(seed=seed, options=options)
        self.state = 0
        return self.observe(self.state), {}

    def step(self, action: np.int64) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Draw the next state; the reward is the expected one of the state and action that were left."""
        reward = float(self.mdp.rewards[self.state, action])
        probabilities = self.mdp.transitions[self.state, action]
        self.state = int(self.np_random.choice(len(probabilities), p=probabilities))
        return self.observe(self.state), reward, bool(self.mdp.terminals[self.state]), False, {}

    def render(self) -> Any:
        """Image of the layout, [rows * 32, columns * 32, 3] in uint8, or None without a render mode."""
        if self.render_mode is None:
            return None
        cells = np.where(self.mdp.terminals, 128, 32).astype(np.uint8)
        cells[self.state] = 255
        image = np.kron(cells.reshape(self.layout), np.ones((CELL_PIXELS, CELL_PIXELS), dtype=np.uint8))
        return np.repeat(image[:, :, None], 3, axis=2)


def chain_mdp(n_states: int, slip: float) -> FiniteMDP:
    """States in a row with the actions left and right; entering the last state pays 1 and ends the episode.

    Args:
        n_states: length of the row, at least 2.
        slip: probability that the opposite action happens, in [0, 1).

    Returns:
        The decision process, terminal in its last state only.
    """
    if n_states < 2:
        raise ValueError(f"n_states is {n_states}, but a chain needs at least 2")
    if not 0.0 <= slip < 1.0:
        raise ValueError(f"slip is {slip}, but must be at least 0 and below 1")
    goal = n_states - 1
    transitions = np.zeros((n_states, 2, n_states))
    for state in range(goal):
        for action in (LEFT, RIGHT):
            transitions[state, action, max(state - 1, 0)] += slip if action == RIGHT else 1.0 - slip
            transitions[state, action, state + 1] += 1.0 - slip if action == RIGHT else slip
    transitions[goal, :, goal] = 1.0
    rewards = transitions[:, :, goal].copy()
    rewards[goal] = 0.0
    return FiniteMDP(transitions, rewards, np.arange(n_states) == goal)


def grid_mdp(rows: int, columns: int, step_cost: float) -> FiniteMDP:
    """A grid with four moves; a wall holds back, every move costs, the last corner pays 1 and ends the episode.

    Args:
        rows: height of the grid.
        columns: width of the grid; the grid has at least 2 cells.
        step_cost: taken from the reward of every move.

    Returns:
        The deterministic decision process, states row by row, terminal in the last corner only.
    """
    if rows < 1 or columns < 1 or rows * columns < 2:
        raise ValueError(f"the grid is {rows} x {columns}, but needs positive sides and at least 2 cells")
    n_states = rows * columns
    goal = n_states - 1
    moves = {LEFT: (0, -1), RIGHT: (0, 1), UP: (-1, 0), DOWN: (1, 0)}
    transitions = np.zeros((n_states, len(moves), n_states))
    for state in range(goal):
        for action, (down, right) in moves.items():
            row = min(max(state // columns + down, 0), rows - 1)
            column = min(max(state % columns + right, 0), columns - 1)
            transitions[state, action, row * columns + column] = 1.0
    transitions[goal, :, goal] = 1.0
    rewards = transitions[:, :, goal] - step_cost
    rewards[goal] = 0.0
    return FiniteMDP(transitions, rewards, np.arange(n_states) == goal)


def deep_sea_mdp(size: int, cost: float) -> FiniteMDP:
    """A square through which every episode sinks; only going right in every row finds the treasure.

    I. Osband et al., *Behaviour Suite for Reinforcement Learning*, 2020, "Deep Sea". Which action goes right is drawn
    once for every cell, so that repeating an action is no help, and going right costs: of 2^size action sequences one
    pays.

    Args:
        size: rows and columns, at least 2.
        cost: of going right in every row, taken in equal parts; the treasure is worth 1.

    Returns:
        The deterministic decision process, states row by row, terminal in the row below the last one.
    """
    if size < 2:
        raise ValueError(f"size is {size}, but a deep sea needs at least 2 rows")
    n_states = size * (size + 1)
    rights = np.random.default_rng(DEEP_SEA_SEED).integers(2, size=(size, size))
    transitions, rewards = np.zeros((n_states, 2, n_states)), np.zeros((n_states, 2))
    for row in range(size):
        for column in range(size):
            state, below = row * size + column, (row + 1) * size
            right = rights[row, column]
            transitions[state, right, below + min(column + 1, size - 1)] = 1.0
            transitions[state, 1 - right, below + max(column - 1, 0)] = 1.0
            rewards[state, right] = -cost / size
            if (row, column) == (size - 1, size - 1):
                rewards[state, right] += 1.0
    bottom = np.arange(n_states) >= size * size
    transitions[size * size :, :, size * size :] = np.eye(size)[:, None]
    return FiniteMDP(transitions, rewards, bottom)


class ChainEnv(TabularEnv):
    """A row of states, left and right; the reward waits at the far end.

    Args:
        n_states: length of the row, at least 2.
        slip: probability that the opposite action happens, in [0, 1).
        observation: `one_hot`, `index` or `position`.
        render_mode: `rgb_array` or None.
    """

    def __init__(
        self,
        n_states: int = 5,
        slip: float = 0.0,
        observation: Observation = "one_hot",
        render_mode: str | None = None,
    ) -> None:
        super().__init__(chain_mdp(n_states, slip), (1, n_states), observation, render_mode)


class GridWorldEnv(TabularEnv):
    """A grid with four moves from one corner to the opposite one.

    Args:
        rows: height of the grid.
        columns: width of the grid.
        step_cost: taken from the reward of every move.
        observation: `one_hot`, `index` or `position`.
        render_mode: `rgb_array` or None.
    """

    def __init__(
        self,
        rows: int = 4,
        columns: int = 4,
        step_cost: float = 0.01,
        observation: Observation = "one_hot",
        render_mode: str | None = None,
    ) -> None:
        super().__init__(grid_mdp(rows, columns, step_cost), (rows, columns), observation, render_mode)


class DeepSeaEnv(TabularEnv):
    """A square sea; the treasure lies where only one sequence of actions leads.

    Args:
        size: rows and columns, at least 2.
        cost: of going right in every row, against 1 for the treasure.
        observation: `one_hot`, `index` or `position`.
        render_mode: `rgb_array` or None.
    """

    def __init__(
        self,
        size: int = 10,
        cost: float = 0.01,
        observation: Observation = "position",
        render_mode: str | None = None,
    ) -> None:
        super().__init__(deep_sea_mdp(size, cost), (size + 1, size), observation, render_mode)


gym.register("Chain-v0", entry_point="envs.tabular:ChainEnv", max_episode_steps=EPISODE_LIMIT)
gym.register("GridWorld-v0", entry_point="envs.tabular:GridWorldEnv", max_episode_steps=EPISODE_LIMIT)
gym.register("DeepSea-v0", entry_point="envs.tabular:DeepSeaEnv", max_episode_steps=EPISODE_LIMIT)
