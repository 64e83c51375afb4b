"""A residual head over replayed state–action pairs, for critics of continuous actions."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.type_aliases import PyTorchObs

from agents.common.feature_map import standardisation
from agents.common.features import ObservationFeatures
from agents.common.head_scalars import head_scalars
from agents.common.lengthscale import LengthscaleRule
from agents.common.observations import in_parts, take
from agents.common.replay_view import ReplayView
from agents.common.seeding import seeded
from agents.kernel_actor_critic.action_kernel_config import ActionKernelConfig
from skrl.memory.subsets import newest_and_uniform
from skrl.shapes import Bool, Float, Tensor
from skrl.solve.local_weights import LocalWeights

CHUNK = 2048
"""Transitions that one forward pass or one local solve holds at once."""

Values = Callable[[PyTorchObs, Tensor], Float[Tensor, " batch"]]
"""Observations and actions to the critics' smallest value."""

NextActions = Callable[[PyTorchObs], tuple[Float[Tensor, "batch actions"], Float[Tensor, " batch"]]]
"""Observations to the policy's actions there and their log-probabilities."""


class Transitions(NamedTuple):
    """The transitions behind the support points.

    Attributes:
        observations: where they began, [m, ...].
        actions: scaled to −1 … 1, [m, d_a].
        rewards: n-step returns, [m].
        discounts: γʰ or zero, [m].
        next_observations: where they lead, [m, ...].
        next_actions: what the policy of the last choice of supports does there, [m, d_a].
        log_probabilities: of those actions, [m].
        local: how those next pairs read the supports, a part per chunk.
        finite: false where a reward or a feature is not finite, [m].
    """

    observations: PyTorchObs
    actions: Tensor
    rewards: Tensor
    discounts: Tensor
    next_observations: PyTorchObs
    next_actions: Tensor
    log_probabilities: Tensor
    local: list[LocalWeights]
    finite: Bool[Tensor, " points"]


class ActionKernel:
    """R(s, a): a local regression of what the target critics' smallest value misses at replayed transitions.

    A pair is one point, the observation's features beside the action, each entry standardised. Choosing supports finds
    neighbours and weights of the pairs that follow them; re-basing renews the residuals through these alone, because
    polyak averaging moves the target networks at every step.

    Args:
        observation_space: of the policy.
        action_dim: entries of an action.
        config: settings.
        normalize_images: divide image channels by 255, as the networks do.
        device: where values are computed.
        rng: source of every random choice.
    """

    def __init__(
        self,
        observation_space: spaces.Space[object],
        action_dim: int,
        config: ActionKernelConfig,
        normalize_images: bool,
        device: torch.device,
        rng: np.random.Generator,
    ) -> None:
        self.config = config
        self.features = ObservationFeatures(observation_space, config.projection_dim, normalize_images).to(device)
        dim = self.features.dim + action_dim
        self.head = config.make_head(1, dim).to(device)
        self.mean, self.scale = torch.zeros(dim, device=device), torch.ones(dim, device=device)
        self.generator = seeded(torch.Generator(), rng)
        self.lengthscale = LengthscaleRule(self.head, config, self.generator)
        self.transitions: Transitions | None = None
        self.view: ReplayView | None = None
        self.steps_at_rebuild, self.updates_at_rebase = 0, 0
        self.leave_one_out_error = torch.zeros((), device=device)
        self.refresh_seconds = 0.0

    @property
    def scalars(self) -> dict[str, float]:
        """Figures to be written as ``kernel/NAME``; reading them waits for an accelerator."""
        if self.transitions is None:
            return {}
        variance = torch.cat([part.variance[0] for part in self.transitions.local])
        return {
            **head_scalars(self.head),
            "variance_mean": float(variance.mean()),
            "leave_one_out_error": float(self.leave_one_out_error),
            "refresh_ms": 1e3 * self.refresh_seconds,
        }

    @torch.no_grad()
    def correction(self, observations: PyTorchObs, actions: Tensor) -> Float[Tensor, "batch 1"]:
        """R(s, a) of given pairs, [B, 1]; zero before the first refresh."""
        return self.head.correction(self._points(observations, actions))

    def forget(self) -> None:
        """Drop supports and residuals, as those of other critics; the next refresh chooses supports anew."""
        self.transitions = None
        self.head.memory.clear()

    @torch.no_grad()
    def refresh(
        self,
        view: ReplayView,
        values: Values,
        next_actions: NextActions,
        entropy_weight: Tensor | float,
        num_timesteps: int,
        updates: int,
    ) -> None:
        """Choose supports anew, renew their residuals, or do nothing, by the steps since the last time.

        Args:
            view: the replay buffer.
            values: the target critics' smallest value.
            next_actions: the policy that targets follow.
            entropy_weight: α, by which targets count the entropy of that policy.
            num_timesteps: environment steps so far.
            updates: gradient steps so far.
        """
        since_rebuild = num_timesteps - self.steps_at_rebuild
        rebuilds = self.transitions is None or since_rebuild >= self.config.refresh_interval or since_rebuild < 0
        rebuilds |= self._is_replaced(view)
        if not rebuilds and 0 <= updates - self.updates_at_rebase < self.config.rebase_interval:
            return
        started = time.perf_counter()
        if rebuilds:
            self.transitions = self._choose(view, next_actions)
            self.steps_at_rebuild = num_timesteps
        assert self.transitions is not None
        self._rebase(self.transitions, values, entropy_weight)
        self.updates_at_rebase = updates
        if rebuilds:
            self.leave_one_out_error = self.lengthscale.judge()
        self.refresh_seconds = time.perf_counter() - started

    def _is_replaced(self, view: ReplayView) -> bool:
        """Whether the buffer, or what normalises it, is another one than at the last call."""
        last, self.view = self.view, view
        return last is None or not last.reads(view.buffer, view.vec_normalize)

    def _choose(self, view: ReplayView, next_actions: NextActions) -> Transitions:
        slots = torch.from_numpy(view.slots())
        chosen = newest_and_uniform(slots, self.config.capacity, self.config.newest_fraction, self.generator).numpy()
        steps = view.n_step(chosen)
        observations, actions = view.observations(chosen), view.action_vectors(chosen)
        following = view.next_observations(steps.last_slots)
        raw = self._raw(observations, actions)
        rewards = torch.from_numpy(steps.rewards).to(raw.device)
        finite = raw.isfinite().all(1) & rewards.isfinite()
        self.mean, self.scale, _ = standardisation(raw[finite])
        points = raw.new_zeros(1, self.head.memory.capacity, raw.shape[1])
        points[0, : len(raw)] = (raw - self.mean) / self.scale
        self.head.memory.write(points, torch.tensor([len(raw)]))
        self.lengthscale.apply()
        acted, log_probabilities = _acted_in_parts(next_actions, following)
        local = [self.head.localise(part) for part in torch.split(self._points(following, acted), CHUNK)]
        discounts = torch.from_numpy(steps.discounts).to(raw.device)
        return Transitions(
            observations, actions, rewards, discounts, following, acted, log_probabilities, local, finite
        )

    def _rebase(self, transitions: Transitions, values: Values, entropy_weight: Tensor | float) -> None:
        """Residuals against the present target critics, after ``sweeps`` backups through the kernel."""
        present = _of_pairs(values, transitions.observations, transitions.actions)
        following = _of_pairs(values, transitions.next_observations, transitions.next_actions)
        following = following - entropy_weight * transitions.log_probabilities
        corrections = torch.zeros_like(present)
        residuals = present.new_zeros(1, self.head.memory.capacity)
        for _ in range(self.config.sweeps):
            improved = transitions.rewards + transitions.discounts * (following + corrections)
            known = transitions.finite & improved.isfinite() & present.isfinite()
            residuals[0, : len(present)] = torch.where(known, improved - present, 0.0)
            self.head.write_targets(residuals)
            corrections = torch.cat([self.head.read(part)[0] for part in transitions.local])

    def _points(self, observations: PyTorchObs, actions: Tensor) -> Float[Tensor, "batch dim"]:
        """Standardised features of pairs, [B, d]."""
        return (self._raw(observations, actions) - self.mean) / self.scale

    def _raw(self, observations: PyTorchObs, actions: Tensor) -> Float[Tensor, "batch dim"]:
        """Features of pairs before standardisation, [B, d]."""
        return torch.cat([in_parts(self.features.raw, observations, CHUNK), actions], dim=1)


def _acted_in_parts(next_actions: NextActions, observations: PyTorchObs) -> tuple[Tensor, Tensor]:
    """Next actions and their log-probabilities, computed for some at a time."""
    both = in_parts(
        lambda part: torch.cat([each.view(len(each), -1) for each in next_actions(part)], dim=1), observations, CHUNK
    )
    return both[:, :-1], both[:, -1]


def _of_pairs(values: Values, observations: PyTorchObs, actions: Tensor) -> Float[Tensor, " batch"]:
    """Values of pairs, computed for some at a time."""
    starts = range(0, len(actions), CHUNK)
    rows = [slice(start, start + CHUNK) for start in starts]
    return torch.cat([values(take(observations, part), actions[part]) for part in rows])
