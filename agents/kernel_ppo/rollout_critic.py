"""State values of a rollout: a network, corrected by a local regression of what its states returned."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.utils import explained_variance

from agents.common.feature_map import FeatureMap
from agents.common.features import ObservationFeatures
from agents.common.head_scalars import head_scalars
from agents.common.lengthscale import LengthscaleRule, separates
from agents.common.observations import in_parts, joined, take
from agents.common.seeding import seeded
from agents.kernel_ppo.critic_config import CriticConfig
from skrl.memory.subsets import newest_and_uniform
from skrl.shapes import Float, Int, Tensor
from skrl.solve.local_weights import LocalWeights

FOLDS = 2
CHUNK = 4096
"""States that one forward pass or one local solve holds at once."""


class Remembered(NamedTuple):
    """States of earlier rollouts.

    Attributes:
        observations: as the policy saw them, [m, ...].
        returns: λ-returns from when they were new, [m].
        folds: which half of the environments they come from, [m].
    """

    observations: PyTorchObs
    returns: Float[Tensor, " states"]
    folds: Int[Tensor, " states"]


class Cuts(NamedTuple):
    """States in which a time limit cut episodes of a rollout.

    Attributes:
        rows: steps of the rollout that led there, [n].
        copies: copies of the environment, [n].
        observations: as the policy sees them, [n, ...].
    """

    rows: npt.NDArray[np.int64]
    copies: npt.NDArray[np.int64]
    observations: PyTorchObs


class RolloutCritic:
    """Corrects the values of a rollout and computes its advantages from them.

    V(s) = m(s) + R(s), where the network m is the prior mean of a local Gaussian process over states of this and of
    earlier rollouts, whose observations are returns less m. A state's own return must not enter its baseline, or the
    advantage would be biased towards zero: environments are split into two folds, or every other episode of a single
    one. Each fold's returns are made by its own values alone, and in the end each is valued by the other's supports.

    Args:
        observation_space: of the policy.
        config: settings.
        normalize_images: divide image channels by 255, as the network does.
        device: where values are computed.
        rng: source of every random choice.
    """

    def __init__(
        self,
        observation_space: spaces.Space[object],
        config: CriticConfig,
        normalize_images: bool,
        device: torch.device,
        rng: np.random.Generator,
    ) -> None:
        self.config, self.device = config, device
        features = ObservationFeatures(observation_space, config.projection_dim, normalize_images, separates(config))
        self.feature_map = FeatureMap(features, None).to(device)
        self.head = config.make_head(FOLDS, self.feature_map.dim).to(device)
        self.generator = seeded(torch.Generator(), rng)
        self.lengthscale = LengthscaleRule(self.head, config, self.generator)
        self.remembered: Remembered | None = None
        self.reward_scale = 1.0
        self.episodes = 0
        self.scalars: dict[str, float] = {}

    def forget(self) -> None:
        """Drop what is remembered of earlier rollouts."""
        self.remembered = None

    @torch.no_grad()
    def correct(
        self,
        buffer: RolloutBuffer,
        network: Callable[[PyTorchObs], Float[Tensor, "states 1"]],
        last_observations: PyTorchObs,
        last_dones: npt.NDArray[np.bool_],
        reward_scale: float = 1.0,
        cuts: Cuts | None = None,
    ) -> None:
        """Recompute advantages and value targets of a full rollout; its values stay the network's.

        Args:
            buffer: the rollout, complete but not yet read.
            network: m, state values of observations.
            last_observations: where the rollout ended, one per environment.
            last_dones: whether an episode ended there, [E].
            reward_scale: what rewards are divided by at present; remembered returns follow when it changes.
            cuts: where a time limit cut episodes; their last rewards contain γ m already, and γ R is added to them.
        """
        started = time.perf_counter()
        values, rewards, own_lambda = buffer.values.copy(), buffer.rewards.copy(), buffer.gae_lambda
        rollout = self._rollout(buffer)
        known = self._with_remembered(rollout, reward_scale)
        old = len(known.returns) - values.size
        chosen, sizes = self._choose(known.folds)
        supports = take(known.observations, chosen.flatten())
        raw = in_parts(self.feature_map.raw, known.observations, CHUNK)
        self.feature_map.fit(raw)
        self.head.memory.write(self.feature_map.standardise(raw[chosen]), sizes)
        self.lengthscale.apply(self.feature_map.gap)
        prior = in_parts(network, supports, CHUNK).view(chosen.shape)
        local = self._localise(raw[old:])
        last_values = network(last_observations).flatten()
        folds = rollout.folds.view(values.shape)
        ends, end_folds = last_observations, folds[-1]
        if cuts is not None:
            ends, end_folds = joined(ends, cuts.observations), torch.cat([end_folds, folds[cuts.rows, cuts.copies]])
        end_local = self._localise(in_parts(self.feature_map.raw, ends, CHUNK))

        def compute_returns(corrections: Float[Tensor, " states"], at_ends: Float[Tensor, " ends"]) -> None:
            buffer.values = values + corrections.view(values.shape).cpu().numpy()
            at_last, at_cuts = at_ends[: len(last_values)], at_ends[len(last_values) :]
            if cuts is not None:
                buffer.rewards = rewards.copy()
                buffer.rewards[cuts.rows, cuts.copies] += buffer.gamma * at_cuts.cpu().numpy()
            buffer.compute_returns_and_advantage(last_values + at_last, last_dones)

        corrections, at_ends = torch.zeros_like(rollout.returns), torch.zeros(len(end_folds), device=self.device)
        try:
            buffer.gae_lambda = self.config.trace_decay
            for _ in range(self.config.sweeps):
                compute_returns(corrections, at_ends)
                known.returns[old:] = torch.from_numpy(buffer.returns.reshape(-1)).to(self.device)
                self.head.write_targets(known.returns[chosen] - prior)
                corrections, at_ends = self._read(local, rollout.folds), self._read(end_local, end_folds)
            # Up to here each fold has seen its own rewards alone, and from here each is valued by the other.
            corrections, at_ends = self._read(local, 1 - rollout.folds), self._read(end_local, 1 - end_folds)
            self._describe(buffer, values, values + corrections.view(values.shape).cpu().numpy(), local)
            buffer.gae_lambda = own_lambda
            compute_returns(corrections, at_ends)
        finally:
            # Whatever interrupts this, the buffer is the model's.
            buffer.gae_lambda, buffer.values, buffer.rewards = own_lambda, values, rewards
        kept = chosen[self.head.memory.mask]
        self.remembered = Remembered(take(known.observations, kept), known.returns[kept], known.folds[kept])
        self.scalars["refresh_ms"] = 1e3 * (time.perf_counter() - started)

    def _rollout(self, buffer: RolloutBuffer) -> Remembered:
        """The states of a rollout in the order of time, all environments of a step together."""
        steps, envs = buffer.values.shape
        stored = buffer.observations
        parts = stored if isinstance(stored, dict) else {"": stored}
        flat = {
            key: torch.as_tensor(part.reshape(steps * envs, *part.shape[2:])).to(self.device)
            for key, part in parts.items()
        }
        folds = torch.arange(envs).expand(steps, envs) % FOLDS
        if envs == 1:
            # The first step of a run begins an episode too; one that spans two rollouts keeps its fold.
            begun = self.episodes + buffer.episode_starts.cumsum(0)
            self.episodes = int(begun[-1, 0])
            folds = torch.from_numpy(begun).long() % FOLDS
        observations = flat if isinstance(stored, dict) else flat[""]
        return Remembered(
            observations, torch.zeros(steps * envs, device=self.device), folds.reshape(-1).to(self.device)
        )

    def _with_remembered(self, rollout: Remembered, reward_scale: float) -> Remembered:
        """Remembered states, then the rollout's, oldest first, all returns in the present units."""
        if self.remembered is not None:
            self.remembered.returns.mul_(self.reward_scale / reward_scale)
        self.reward_scale = reward_scale
        if self.remembered is None:
            return rollout
        earlier = self.remembered
        return Remembered(
            joined(earlier.observations, rollout.observations),
            torch.cat([earlier.returns, rollout.returns]),
            torch.cat([earlier.folds, rollout.folds]),
        )

    def _choose(self, folds: Int[Tensor, " states"]) -> tuple[Int[Tensor, "folds capacity"], Int[Tensor, " folds"]]:
        """Positions of the supports, oldest first, with padding, and how many are real."""
        memory = self.head.memory
        chosen = torch.zeros(FOLDS, memory.capacity, dtype=torch.long)
        sizes = torch.zeros(FOLDS, dtype=torch.long)
        for fold in range(FOLDS):
            candidates = (folds.cpu() == fold).nonzero().squeeze(1)
            picked = newest_and_uniform(candidates, memory.capacity, self.config.newest_fraction, self.generator)
            chosen[fold, : len(picked)] = picked
            sizes[fold] = len(picked)
        return chosen.to(self.device), sizes.to(self.device)

    def _localise(self, raw: Float[Tensor, "states dim"]) -> list[LocalWeights]:
        """Neighbours and weights of states by their features before standardisation, a part at a time."""
        return [self.head.localise(self.feature_map.standardise(part)) for part in torch.split(raw, CHUNK)]

    def _read(self, local: list[LocalWeights], folds: Int[Tensor, " states"]) -> Float[Tensor, " states"]:
        """Corrections of states by the supports of given folds, [n]."""
        both = torch.cat([self.head.read(part) for part in local], dim=1)
        return both.gather(0, folds.unsqueeze(0)).squeeze(0)

    def _describe(
        self,
        buffer: RolloutBuffer,
        network: npt.NDArray[np.float32],
        corrected: npt.NDArray[np.float32],
        local: list[LocalWeights],
    ) -> None:
        """How much of the returns both kinds of values knew, [T, E]."""
        self.scalars = {
            **head_scalars(self.head),
            "leave_one_out_error": float(self.lengthscale.judge()),
            "variance_mean": float(torch.cat([part.variance for part in local], dim=1).mean()),
            "explained_variance": float(explained_variance(corrected.flatten(), buffer.returns.flatten())),
            "explained_variance_of_network": float(explained_variance(network.flatten(), buffer.returns.flatten())),
        }
