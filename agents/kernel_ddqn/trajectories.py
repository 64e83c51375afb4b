"""What every stored transition is worth, backed up along the trajectories that the replay buffer holds."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
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
        last_slots: where the transitions are stored that lead to the state reached after n steps, [T].
        rewards: n-step returns, [T].
        discounts: γⁿ, zero where the episode terminated, [T].
        follows: whether the n-th entry from here begins in the state reached, [T].
        next_actions: what was done in that state; without meaning where nothing follows, [T].
    """

    slots: Slots
    last_slots: Slots
    rewards: Float[Tensor, " steps"]
    discounts: Float[Tensor, " steps"]
    follows: Bool[Tensor, " steps"]
    next_actions: Int[Tensor, " steps"]


class Trajectories:
    """Keeps a target for every stored transition, by slot.

    Targets are renewed as a whole, when the target network and the kernel have changed, and read by minibatches in
    between, as in B. Daley and C. Amato, *Reconciling λ-Returns with Experience Replay*, 2019. Beyond
    ``MOST_AT_ONCE`` transitions a renewal takes the newest half of that, and the next part of the older ones in turn.

    Args:
        view: the replay buffer; the first ``n_steps`` of its returns are taken whatever was done in them.
        trace_decay: λ, how much of the target after n steps enters where the action taken there is the greedy one.
        device: where targets lie.
    """

    def __init__(self, view: ReplayView, trace_decay: float, device: torch.device) -> None:
        self.view, self.trace_decay, self.device = view, trace_decay, device
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

    def open(self) -> Stretch:
        """What the coming renewal is about, without values."""
        slots, follows = self._next_slots()
        self._grow(int(slots.max()) + 1)
        n_steps, going_on = self.view.n_steps, follows
        for _ in range(n_steps - 1):
            # Where the last entries wrap around to the first ones nothing follows either.
            follows = np.roll(follows, -1)
            going_on = going_on & follows
        steps = self.view.n_step(slots)
        return Stretch(
            slots,
            steps.last_slots,
            torch.from_numpy(steps.rewards).to(self.device),
            torch.from_numpy(steps.discounts).to(self.device),
            torch.from_numpy(going_on).to(self.device),
            self.view.actions(slots).to(self.device).roll(-n_steps),
        )

    def solve(self, stretch: Stretch, next_q: Float[Tensor, "steps actions"]) -> Float[Tensor, " steps"]:
        """Targets, [T]; NaN where a transition is not finite, which harms no other but those whose n steps hold it.

        Args:
            stretch: what :meth:`open` gave.
            next_q: action values of the states reached, [T, A].
        """
        values, greedy = next_q.max(1)
        # What a terminal step leads to is worth nothing, finite or not.
        values = torch.where(stretch.discounts == 0.0, 0.0, values)
        good = stretch.rewards.isfinite() & values.isfinite()
        goes_on = stretch.follows & good.roll(-self.view.n_steps) & (stretch.next_actions == greedy)
        targets = trace_target(
            torch.where(good, stretch.rewards, 0.0),
            stretch.discounts,
            torch.where(good, values, 0.0),
            self.trace_decay * goes_on,
            self.view.n_steps,
        )
        return torch.where(good, targets, torch.nan)

    def write(self, stretch: Stretch, targets: Float[Tensor, " steps"]) -> None:
        """Store targets; every transition has one now."""
        self.targets[torch.from_numpy(stretch.slots).to(self.device)] = targets
        self.unknown_rows = 0

    def _next_slots(self) -> tuple[Slots, npt.NDArray[np.bool_]]:
        """Slots in the order of time, and whether each entry is continued by the next one."""
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
        return slots, ~last & ~self.view.episode_ends(slots)

    def _grow(self, rows: int) -> None:
        if rows <= len(self.targets):
            return
        rows = min(self.view.capacity, max(rows, 2 * len(self.targets), 1024))
        self.targets = torch.cat([self.targets, self.targets.new_zeros(rows - len(self.targets))])
