"""What every stored transition is worth, backed up along the trajectories that the replay buffer holds."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from agents.common.replay_view import ReplayView, Slots
from agents.common.targets import trace_target
from skrl.shapes import Bool, Float, Int, Tensor

MOST_AT_ONCE = 20_000
"""Transitions whose targets one renewal computes, so that it costs the same however long the buffer is."""


class Stretch(NamedTuple):
    """Transitions in the order of time, one piece of trajectory after the other.

    Attributes:
        slots: where they are stored, [T].
        rewards: of one step, [T].
        discounts: γ, zero where the step terminated its episode, [T].
        follows: whether the next entry continues the episode, [T].
        next_actions: what was done in the state reached; without meaning where nothing follows, [T].
        next_q: values of that state by the target network, [T, A].
    """

    slots: Slots
    rewards: Float[Tensor, " steps"]
    discounts: Float[Tensor, " steps"]
    follows: Bool[Tensor, " steps"]
    next_actions: Int[Tensor, " steps"]
    next_q: Float[Tensor, "steps actions"]


class Trajectories:
    """Keeps a target for every stored transition, by slot.

    Targets are renewed as a whole, when the target network and the kernel have changed, and read by minibatches in
    between, as in B. Daley and C. Amato, *Reconciling λ-Returns with Experience Replay*, 2019. Beyond
    ``MOST_AT_ONCE`` transitions a renewal takes the newest half of that, and the next part of the older ones in turn.

    Args:
        view: the replay buffer; its ``n_steps`` plays no part.
        trace_decay: λ, how much of the next step's target enters where the action taken there is the greedy one.
        device: where targets lie.
    """

    def __init__(self, view: ReplayView, trace_decay: float, device: torch.device) -> None:
        self.view = ReplayView(view.buffer, 1, view.gamma, view.vec_normalize)
        self.trace_decay, self.device = trace_decay, device
        self.targets = torch.zeros(0, device=device)
        self.unknown_rows: int | None = None
        self._cursor = 0

    @property
    def are_stale(self) -> bool:
        """Whether more than half of the transitions have no target yet, as before the first renewal."""
        return self.unknown_rows is None or 2 * self.unknown_rows > self.view.buffer.size()

    def note(self, rows: int) -> None:
        """Take notice of rows stored since the last note."""
        if self.unknown_rows is not None:
            self.unknown_rows += rows

    def sample(self, count: int, rng: np.random.Generator) -> Slots:
        """Slots drawn uniformly, with replacement, among the transitions whose target is known."""
        return self.view.sample(count, rng, skip_newest=self.unknown_rows or 0)

    def lookup(self, slots: Slots) -> Float[Tensor, " batch"]:
        """Targets of given slots, [B]."""
        return self.targets[torch.from_numpy(slots).to(self.device)]

    def next_slots(self) -> tuple[Slots, Bool[Tensor, " steps"]]:
        """What the coming renewal is about, and whether each entry is continued by the next one."""
        rows = self.view.slots().reshape(-1, self.view.buffer.n_envs)
        parts = [rows]
        if self.unknown_rows is not None and rows.size > MOST_AT_ONCE:
            half = MOST_AT_ONCE // (2 * rows.shape[1])
            older = max(0, len(rows) - max(half, self.unknown_rows))
            start = self._cursor if self._cursor < older else 0
            stop = self._cursor = min(start + half, older)
            parts = [rows[start:stop], rows[older:]]
        slots = np.concatenate([part.T.reshape(-1) for part in parts])
        last = np.zeros(len(slots), dtype=np.bool_)
        ends = np.cumsum([len(part) for part in parts for _ in range(rows.shape[1])])
        last[ends[ends > 0] - 1] = True
        return slots, torch.from_numpy(~last & ~self.view.episode_ends(slots)).to(self.device)

    def open(self, slots: Slots, follows: Bool[Tensor, " steps"], next_q: Float[Tensor, "steps actions"]) -> Stretch:
        """Read what a renewal needs besides values.

        Args:
            slots: from :meth:`next_slots`.
            follows: from :meth:`next_slots`.
            next_q: values of the states that these transitions reached by the target network, [T, A].
        """
        self._grow(int(slots.max()) + 1)
        steps = self.view.n_step(slots)
        return Stretch(
            slots,
            torch.from_numpy(steps.rewards).to(self.device),
            torch.from_numpy(steps.discounts).to(self.device),
            follows,
            self.view.actions(slots).to(self.device).roll(-1),
            next_q,
        )

    def solve(self, stretch: Stretch, corrections: Float[Tensor, "steps actions"]) -> Float[Tensor, " steps"]:
        """Targets with corrected next values, [T]; NaN where a transition is not finite, which harms no other.

        Args:
            stretch: what :meth:`open` gave.
            corrections: R of the states reached, [T, A].
        """
        values, greedy = (stretch.next_q + corrections).max(1)
        # What a terminal step leads to is worth nothing, finite or not.
        values = torch.where(stretch.discounts == 0.0, 0.0, values)
        good = stretch.rewards.isfinite() & values.isfinite()
        goes_on = stretch.follows & good.roll(-1) & (stretch.next_actions == greedy)
        targets = trace_target(
            torch.where(good, stretch.rewards, 0.0),
            stretch.discounts,
            torch.where(good, values, 0.0),
            self.trace_decay * goes_on,
        )
        return torch.where(good, targets, torch.nan)

    def write(self, stretch: Stretch, targets: Float[Tensor, " steps"]) -> None:
        """Store targets; every transition has one now."""
        self.targets[torch.from_numpy(stretch.slots).to(self.device)] = targets
        self.unknown_rows = 0

    def _grow(self, rows: int) -> None:
        if rows <= len(self.targets):
            return
        rows = min(self.view.capacity, max(rows, 2 * len(self.targets), 1024))
        self.targets = torch.cat([self.targets, self.targets.new_zeros(rows - len(self.targets))])
