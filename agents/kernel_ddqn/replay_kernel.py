"""The kernel's side of learning: supports from the replay buffer, and the correction of every replayed state."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import PyTorchObs

from agents.common.head_scalars import head_scalars
from agents.common.lengthscale import LengthscaleRule
from agents.common.observations import in_parts
from agents.common.replay_view import NStep, ReplayView, Slots
from agents.common.replicates import ReplicateRule
from agents.common.seeding import seeded
from agents.kernel_ddqn.correction_table import CorrectionTable, Localised
from agents.kernel_ddqn.kernel_network import KernelNetwork
from agents.kernel_ddqn.past_network import PastNetwork
from skrl.memory.subsets import newest_and_uniform, newest_of_each
from skrl.shapes import Float, Int, Tensor
from skrl.solve.local_weights import bounded_correction
from skrl.value_heads import NetworkFreeHead, ResidualHead

CHUNK = 1024
"""Observations that one forward pass of a refresh holds at once."""

GROWTH = 0.02
"""Share of the stored transitions that have to be new before supports are chosen again."""


class Supports(NamedTuple):
    """The transitions behind the support points, flattened over actions: m = A · C, padding included.

    Attributes:
        filled: false for padding, [m].
        observations: where they began, [m, ...].
        actions: [m].
        rewards: n-step returns, [m].
        discounts: γʰ or zero, [m].
        next_observations: where they lead, [m, ...].
        next_local: how the kernel reads the next observations.
    """

    filled: Tensor
    observations: PyTorchObs
    actions: Tensor
    rewards: Tensor
    discounts: Tensor
    next_observations: PyTorchObs
    next_local: Localised


@dataclass
class Diagnostics:
    """What the last refresh looked like; tensors, read only when they are logged."""

    variance_mean: Tensor
    changed_share: Tensor
    leave_one_out_error: Tensor
    refresh_seconds: list[float] = field(default_factory=list)


class ReplayKernel:
    """Chooses supports among replayed transitions, keeps their residuals, and reads R(s', ·) of stored next states.

    ``rebuild`` chooses supports and finds neighbours and weights of every next state; ``rebase`` only renews the
    residuals, by a few Bellman backups through those neighbours. Both must follow the target update: a correction
    computed against the old target network would be counted twice.

    Backups that continue begin with the values that the last ones ended with, so that from refresh to refresh a value
    is carried ever further: kernel value iteration (D. Ormoneit and Ś. Sen, *Kernel-Based Reinforcement Learning*,
    2002), with the network, if there is one, as the mean function.

    Args:
        q_net: the online network; its head is written.
        q_net_target: the target network; its head receives a copy.
        view: the replay buffer.
        rng: source of every random choice.
    """

    serves_minibatches: ClassVar[bool] = True
    """Whether :meth:`next_corrections` is asked for."""

    def __init__(
        self, q_net: KernelNetwork, q_net_target: KernelNetwork, view: ReplayView, rng: np.random.Generator
    ) -> None:
        self.q_net, self.q_net_target, self.view = q_net, q_net_target, view
        self.config, self.head, self.feature_map = q_net.kernel, q_net.head, q_net.feature_map
        self.loads = self.head.loads
        self.generator = seeded(torch.Generator(), rng)
        self.lengthscale = LengthscaleRule(self.head, self.config, self.generator)
        self.ridge = ReplicateRule(self.lengthscale)
        self.corrects_targets = self.config.applies_to != "acting"
        self.looks_ahead = self.config.exploration == "lookahead"
        self.continues = self.config.backup == "continue" or isinstance(self.head, NetworkFreeHead)
        self.carries_values = self.continues or self.looks_ahead
        self.reads_every_state = self.carries_values or (self.corrects_targets and self.serves_minibatches)
        # The network that the residuals are relative to, where values go on; that of now until there are any.
        self.past_network = PastNetwork(q_net_target)
        # Of the states that supports lead to, [A, m], where they are needed: values, and optimistic ones.
        self.next_values = self.next_optimistic = torch.zeros(0, device=self.head.lengthscale.device)
        self.supports: Supports | None = None
        self.steps_at_rebuild = 0
        self.table = CorrectionTable(self.head, self.feature_map, view, self.reads_every_state)
        zero = torch.zeros((), device=self.head.lengthscale.device)
        self.diagnostics = Diagnostics(zero, zero, zero)

    @property
    def is_outdated(self) -> bool:
        """Whether the head was loaded since, so that it has other supports than those known here."""
        return self.head.loads != self.loads

    @property
    def scalars(self) -> dict[str, float]:
        """Figures to be written as ``kernel/NAME``, none before there are supports; reading them waits for a device."""
        if self.supports is None:
            return {}
        diagnostics = self.diagnostics
        seconds = diagnostics.refresh_seconds
        scalars = {
            **head_scalars(self.head, self.q_net_target.head),
            "supports_smallest_action": float(self.head.memory.sizes.min()),
            "variance_mean": float(diagnostics.variance_mean),
            "amplitude": float(self.head.amplitude),
            "bonus": self.q_net.bonus,
            "greedy_changed_share": float(diagnostics.changed_share),
            "refresh_ms": 1e3 * float(np.mean(seconds)) if seconds else 0.0,
        }
        if isinstance(self.head, ResidualHead):
            scalars["ridge"] = float(self.head.scaled_ridge)
            scalars["leave_one_out_error"] = float(diagnostics.leave_one_out_error)
        return scalars

    def record(self, logger: Logger) -> None:
        """Write the figures; the next ones tell of the refreshes that come after this call."""
        for name, value in self.scalars.items():
            logger.record(f"kernel/{name}", value)
        self.diagnostics.refresh_seconds.clear()

    def refresh(self, num_timesteps: int) -> None:
        """Rebuild when ``refresh_interval`` environment steps have passed since the last time, else re-base.

        A rebuild costs time in proportion to the buffer, so it waits until the buffer has grown by ``GROWTH`` as well:
        in the long run a step costs what it costs at ``refresh_interval`` / ``GROWTH`` transitions.

        Args:
            num_timesteps: environment steps so far.
        """
        started = time.perf_counter()
        elapsed = num_timesteps - self.steps_at_rebuild
        interval = max(self.config.refresh_interval, GROWTH * self.view.size)
        if self.supports is None or elapsed >= interval or elapsed < 0:
            self.rebuild()
            self.steps_at_rebuild = num_timesteps
        else:
            self.rebase()
        self.diagnostics.refresh_seconds.append(time.perf_counter() - started)

    @torch.no_grad()
    def rebuild(self) -> None:
        """Choose supports, standardise features, find neighbours and weights of every next state, then re-base."""
        if self.carries_values and bool(self.head.memory.mask.any()):
            # Values go on from what the supports of until now, or of a loaded model, say of every stored state.
            self.table.localise(self.table.read_new())
        self.feature_map.freeze(self.q_net_target.trunk())
        slots, usable = self.table.read_features()
        if not usable.any():
            return
        self.feature_map.fit(self.table.raw[torch.from_numpy(slots[usable])])
        chosen, sizes = self._choose(slots[usable])
        features = self.feature_map.standardise(self.table.raw[torch.from_numpy(chosen)])
        steps = self.view.n_step(chosen.reshape(-1))
        self._place_supports(features, sizes, steps)
        self.lengthscale.apply(self.feature_map.gap)
        self.ridge.apply()
        if self.reads_every_state:
            self.diagnostics.variance_mean = self.table.localise(slots)
            local = self.table.known(steps.last_slots)
        else:
            # Backups that restart need those next states alone to which supports lead.
            local, self.diagnostics.variance_mean = self.table.localise_apart(steps.last_slots)
        self.supports = self._describe(chosen.reshape(-1), steps, local)
        self.rebase()
        if isinstance(self.head, ResidualHead):
            self.diagnostics.leave_one_out_error = self.lengthscale.judge()
            self.ridge.judge()

    @torch.no_grad()
    def rebase(self) -> None:
        """Residuals of the supports against the present target network, after ``sweeps`` backups through the kernel."""
        supports = self.supports
        if supports is None:
            return
        present = self._present_values(supports)
        next_prior = self._prior_means(supports.next_observations).mT
        before = self.next_values if self.continues else next_prior
        residuals, self.next_values = self._back_up(supports, before, 0.0, present, next_prior)
        self.head.write_targets(residuals)
        if self.looks_ahead:
            self._look_ahead(supports, present, next_prior)
        if self.carries_values:
            self.past_network.keep()
        self.q_net_target.copy_kernel(self.q_net)
        changed = (self.next_values.argmax(0) != before.argmax(0)) & supports.filled
        self.diagnostics.changed_share = changed.sum() / supports.filled.sum()

    def _present_values(self, supports: Supports) -> Float[Tensor, " points"]:
        """What the target network says of the supports, [m]."""
        values = self._prior_means(supports.observations)
        return values.gather(1, supports.actions.unsqueeze(1)).squeeze(1)

    def _look_ahead(
        self,
        supports: Supports,
        present: Float[Tensor, " points"],
        next_prior: Float[Tensor, "actions points"],
    ) -> None:
        """Write the residuals of optimistic values, which get the bonus wherever they bootstrap.

        Args:
            supports: the present ones.
            present: what the target network says of them, [m].
            next_prior: what it says of the states they lead to, [A, m].
        """
        bonus = self.q_net.bonus * self.head.amplitude * supports.next_local.variance.sqrt()
        residuals, self.next_optimistic = self._back_up(supports, self.next_optimistic, bonus, present, next_prior)
        self.head.write_optimistic_targets(residuals)

    def _back_up(
        self,
        supports: Supports,
        next_values: Float[Tensor, "actions points"],
        bonus: Float[Tensor, "actions points"] | float,
        present: Float[Tensor, " points"],
        next_prior: Float[Tensor, "actions points"],
    ) -> tuple[Float[Tensor, "actions capacity"], Float[Tensor, "actions points"]]:
        """Bellman backups through the kernel, as many as ``sweeps`` says.

        Args:
            supports: the present ones.
            next_values: of the states they lead to, to begin with, [A, m].
            bonus: added to those wherever a backup bootstraps, [A, m].
            present: what the network says of the supports, [m].
            next_prior: what it says of the states they lead to, [A, m].

        Returns:
            Residuals of the supports, zero where there is none and where its target is not finite, [A, C], and values
            of the states they lead to, [A, m].
        """
        shape, local = self.head.memory.mask.shape, supports.next_local
        residuals = torch.zeros_like(supports.rewards).view(shape)
        for _ in range(self.config.sweeps):
            improved = supports.rewards + supports.discounts * (next_values + bonus).amax(0)
            differences = improved - present
            residuals = torch.where(supports.filled & differences.isfinite(), differences, 0.0).view(shape)
            next_values = next_prior + bounded_correction(local.indices, local.weights, residuals)
        return residuals, next_values

    def extend(self) -> None:
        """Read the transitions stored since the last call, and find neighbours and weights, if anything reads them."""
        if self.supports is None or not self.reads_every_state:
            return
        slots = self.table.read_new()
        if len(slots):
            self.table.localise(slots)

    def next_corrections(self, slots: Slots) -> Float[Tensor, "batch actions"]:
        """What targets add to the network's values of the states in which given transitions ended, [B, A].

        R(s', ·); zero before the first rebuild, and where the correction is for acting alone.
        """
        if not self.corrects_targets or self.supports is None:
            return torch.zeros(len(slots), self.head.memory.sets, device=self.head.lengthscale.device)
        return self.table.lookup(slots)

    def _choose(self, slots: Slots) -> tuple[Slots, Tensor]:
        """Slots of the supports per action, [A, C] with padding, and how many are real, [A]."""
        memory = self.head.memory
        actions = self.view.stored_actions(slots)
        chosen = np.full((memory.sets, memory.capacity), slots[0])
        sizes = torch.zeros(memory.sets, dtype=torch.long, device=memory.sizes.device)
        for action in range(memory.sets):
            picked = self._pick(torch.from_numpy(slots[actions == action]))
            chosen[action, : len(picked)] = picked.numpy()
            sizes[action] = len(picked)
        return chosen, sizes

    def _pick(self, candidates: Int[Tensor, " candidates"]) -> Int[Tensor, " chosen"]:
        """Which of an action's transitions become supports.

        Where states are told apart and no more, one that is not among the supports is unknown however often it was
        visited: each keeps its newest visits first.
        """
        capacity = self.head.memory.capacity
        if self.feature_map.gap is not None:
            states = self.table.raw[candidates, 0].cpu()
            return newest_of_each(candidates, states, capacity, self.head.k)
        return newest_and_uniform(candidates, capacity, self.config.newest_fraction, self.generator)

    def _place_supports(self, features: Float[Tensor, "actions points dim"], sizes: Tensor, steps: NStep) -> None:
        """Write chosen supports to the memory; ``steps`` are the returns that begin there."""
        if self.carries_values:
            # The supports of until now know what the new ones lead to, beside the network that they were to correct.
            prior = in_parts(self.past_network.prior_mean, self.view.next_observations(steps.last_slots), CHUNK)
            self.next_values = (prior + self.table.lookup(steps.last_slots)).mT
            self.next_optimistic = (prior + self.table.read(steps.last_slots, self.head.optimistic_targets)).mT
        self.head.memory.write(features, sizes)

    def _describe(self, chosen: Slots, steps: NStep, local: Localised) -> Supports:
        """Read everything that later backups need, since the buffer may overwrite these slots meanwhile."""
        device = self.head.lengthscale.device
        return Supports(
            filled=self.head.memory.mask.reshape(-1),
            observations=self.view.observations(chosen),
            actions=self.view.actions(chosen),
            rewards=torch.from_numpy(steps.rewards).to(device),
            discounts=torch.from_numpy(steps.discounts).to(device),
            next_observations=self.view.next_observations(steps.last_slots),
            next_local=local,
        )

    def _prior_means(self, observations: PyTorchObs) -> Float[Tensor, "batch actions"]:
        """Action values that the target network predicts without its head, [B, A]."""
        return in_parts(self.q_net_target.prior_mean, observations, CHUNK)
