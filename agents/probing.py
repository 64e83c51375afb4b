"""What the layers of a trained agent's network know about the environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from torch import nn

from agents.common.cut_at_reset import lent
from agents.common.normalized_env import frozen_statistics, require_normalized
from agents.common.seeding import numpy_generator
from agents.normalized_ppo import NormalizedPPO
from skrl import ProbeReport, probe_layers
from skrl.readouts.probe import Scorer
from skrl.shapes import Tensor

Variables = Callable[[gym.Env[Any, Any], npt.NDArray[Any]], Mapping[str, float]]
"""From an unwrapped environment and its present observation to numbers by name."""

TRAINED_SHARE = 2 / 3
"""Share of the steps, the first ones, that readouts are fitted to; later episodes score them."""

NETWORKS = ("q_net", "quantile_net")
"""Where policies keep a network of action values; the policy itself is probed where there is none."""


@dataclass(frozen=True)
class AgentProbe:
    """Scores by variable, layer and readout.

    Attributes:
        reports: R² of every readout at every layer, by the variable's name.
    """

    reports: Mapping[str, ProbeReport]

    def scores(self, readout: str) -> npt.NDArray[np.float64]:
        """R² of one readout, [variables, layers]."""
        return np.array([[report[layer, readout].score for layer in report.layers] for report in self.reports.values()])

    def to_markdown(self) -> str:
        """One table per readout, a row per variable and a column per layer."""
        first = next(iter(self.reports.values()))
        parts = []
        for readout in first.readouts:
            rows = [["R²", *first.layers], ["---", *["---:"] * len(first.layers)]]
            for name, row in zip(self.reports, self.scores(readout), strict=True):
                rows.append([name, *(f"{score:.2f}" for score in row)])
            lines = ["| " + " | ".join(row) + " |" for row in rows]
            parts.append(f"**{readout}**\n\n" + "\n".join(lines) + "\n")
        return "\n".join(parts)

    def plot(self, path: str | Path) -> None:
        """Draw R² over the layers, one panel per variable; needs matplotlib (the extra ``plots``)."""
        from matplotlib.figure import Figure

        columns = min(4, len(self.reports))
        rows = -(-len(self.reports) // columns)
        figure = Figure(figsize=(3.2 * columns, 2.6 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat
        for panel, (name, report) in zip(panels, self.reports.items(), strict=False):
            for readout in report.readouts:
                panel.plot([report[layer, readout].score for layer in report.layers], marker="o", label=readout)
            panel.set_title(name, fontsize="small")
            panel.set_xticks(range(len(report.layers)), report.layers, rotation=45, ha="right", fontsize="x-small")
            panel.set_ylim(-0.1, 1.05)
            panel.grid(alpha=0.3)
        for panel in list(figure.axes)[len(self.reports) :]:
            panel.set_visible(False)
        figure.axes[0].set_ylabel("R²")
        figure.axes[0].legend(fontsize="x-small")
        figure.savefig(path)


def probe_agent(
    model: BaseAlgorithm,
    env: GymEnv | str,
    variables: Variables | None = None,
    *,
    steps: int = 3000,
    exploration_rate: float = 0.1,
    noise: float = 0.0,
    network: nn.Module | None = None,
    readouts: Mapping[str, Scorer] | None = None,
    seed: int = 0,
) -> AgentProbe:
    """Play, and fit a Sparse Kernel and a linear readout of environment variables to the activations of each layer.

    With ``noise`` the network sees spoilt observations while the variables stay clean, so that a score says what a
    layer makes of noise.

    Args:
        model: a trained SB3 model. It is not changed, but where it learns on in the given environment it begins a new
            episode.
        env: an environment, a vectorised one with one copy, or an id. It is reset, and the statistics of VecNormalize,
            if it is in one, stand still meanwhile; it must be where the model was trained in one.
        variables: what is to be read out; the entries of the observation when left out, for vectors, and for Atari see
            :func:`ram_variables`. Those that never change are left out.
        steps: environment steps to play; two thirds are fitted to, the later third scores.
        exploration_rate: probability of a random action, so that the steps cover more than one path.
        noise: standard deviation of Gaussian noise on vectors, in those of the observation's entries.
        network: module to probe, called with observations; the policy's action values, or the policy, when left out.
        readouts: as in :func:`skrl.probe_layers`.
        seed: of environment, exploration and noise.

    Returns:
        Scores by variable and layer.

    Raises:
        ValueError: the environment has several copies, is not normalised as the model's own is or has observations of
            another kind, a variable is not finite or none ever changes, the model has no network, or a number is out of
            range.
    """
    if steps < 30:
        raise ValueError(f"steps is {steps}, but a probe needs at least 30; some thousand score well")
    if not 0.0 <= exploration_rate <= 1.0:
        raise ValueError(f"exploration_rate is {exploration_rate}, but must be a probability between 0 and 1")
    played = _vectorised(env, seed)
    try:
        if played.num_envs != 1:
            raise ValueError(f"env has {played.num_envs} copies, but a probe plays one")
        require_normalized(model, played)
        is_vector = isinstance(model.observation_space, spaces.Box) and len(model.observation_space.shape) == 1
        if isinstance(model.observation_space, spaces.Dict):
            raise ValueError("observations are dicts, but a probe reads layers that see one tensor")
        if variables is None and not is_vector:
            raise ValueError("observations are no vectors; say what to read out, for Atari by ram_variables")
        rng = numpy_generator(seed)
        played.seed(seed)
        with frozen_statistics(played), lent(model, played):
            seen, values = _play(model, played, variables or _entries, steps, exploration_rate, rng)
    finally:
        if isinstance(env, str):
            played.close()
    if noise:
        if not is_vector or noise < 0.0:
            raise ValueError(f"noise is {noise}, but must not be negative, and spoils vectors only")
        spread = seen.std(0, correction=0)
        seen = seen + noise * spread * torch.from_numpy(rng.normal(size=seen.shape)).to(seen)
    for name, column in values.items():
        if not np.isfinite(column).all():
            step = int(np.argmin(np.isfinite(column)))
            raise ValueError(
                f"{name} is {column[step]} at step {step}, but a readout needs finite numbers; leave it out"
            )
    split = round(TRAINED_SHARE * steps)
    changing = {
        name: column for name, column in values.items() if np.ptp(column[:split]) > 0.0 and np.ptp(column[split:]) > 0.0
    }
    if not changing:
        raise ValueError(f"none of the variables {', '.join(values)} ever changed; play longer or read out others")
    module = network if network is not None else _network(model)
    reports = {}
    for name, column in changing.items():
        target = torch.from_numpy(column).float()
        train, test = (seen[:split], target[:split]), (seen[split:], target[split:])
        reports[name] = probe_layers(module, train=train, test=test, readouts=readouts, pooling="flatten")
    if not any(report.layers for report in reports.values()):
        raise ValueError(f"{type(model).__name__} has no network with layers to probe; take an agent that trains one")
    return AgentProbe(reports)


def ram_variables(addresses: Mapping[str, int]) -> Variables:
    """Variables of an Atari game from its memory.

    Which byte holds what is known for many games: A. Anand et al., *Unsupervised State Representation Learning in
    Atari*, 2019. In Pong, for example, byte 51 is the player's height, 49 and 54 are the ball's place.

    Args:
        addresses: bytes, from 0 to 127, by the names that they get.

    Returns:
        Variables for :func:`probe_agent`.

    Raises:
        ValueError: an address is no byte of the memory.
    """
    for name, address in addresses.items():
        if not 0 <= address < 128:
            raise ValueError(f"{name} is at {address}, but the memory has the bytes 0 to 127")

    def read(env: gym.Env[Any, Any], observation: npt.NDArray[Any]) -> Mapping[str, float]:
        memory = env.ale.getRAM()  # type: ignore[attr-defined]  # Atari environments alone have it
        return {name: float(memory[address]) for name, address in addresses.items()}

    return read


def _entries(env: gym.Env[Any, Any], observation: npt.NDArray[Any]) -> Mapping[str, float]:
    return {f"x{index}": float(value) for index, value in enumerate(observation)}


def _vectorised(env: GymEnv | str, seed: int) -> VecEnv:
    if isinstance(env, str):
        return make_vec_env(env, n_envs=1, seed=seed)
    return env if isinstance(env, VecEnv) else DummyVecEnv([lambda: env])


def _network(model: BaseAlgorithm) -> nn.Module:
    for name in NETWORKS:
        if isinstance(module := getattr(model.policy, name, None), nn.Module):
            return module
    return model.policy


def _play(
    model: BaseAlgorithm,
    env: VecEnv,
    variables: Variables,
    steps: int,
    exploration_rate: float,
    rng: np.random.Generator,
) -> tuple[Tensor, dict[str, npt.NDArray[np.float64]]]:
    """Observations as the network sees them, [steps, ...], and the variables, [steps] each."""
    seen: list[Tensor] = []
    values: list[Mapping[str, float]] = []
    env.action_space.seed(int(rng.integers(2**31)))
    observation = env.reset()
    for _ in range(steps):
        assert isinstance(observation, np.ndarray)
        shown = model.policy_observation(observation) if isinstance(model, NormalizedPPO) else observation
        seen.append(model.policy.obs_to_tensor(shown)[0].clone())  # type: ignore[union-attr]
        values.append(variables(env.get_attr("unwrapped")[0], observation[0]))
        action, _ = model.predict(observation, deterministic=True)
        if rng.random() < exploration_rate:
            action = np.array([env.action_space.sample()])
        observation, _, _, _ = env.step(action)
    return torch.cat(seen), {name: np.array([value[name] for value in values], dtype=np.float64) for name in values[0]}
