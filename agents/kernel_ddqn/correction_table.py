"""Neighbours and weights, and so corrections, of every next state in a replay buffer."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from agents.common.feature_map import FeatureMap
from agents.common.replay_view import ReplayView, Slots
from skrl.shapes import Float, Tensor
from skrl.solve.local_weights import bounded_correction
from skrl.value_heads import ValueHead

CHUNK = 2048
"""Next states whose local systems are solved at once."""

INITIAL_ROWS = 1024


class Localised(NamedTuple):
    """How the kernel reads some states.

    Attributes:
        indices: neighbours, as positions in their action's set, [A, m, k].
        weights: their weights, [A, m, k].
        variance: posterior variance, [A, m].
    """

    indices: Tensor
    weights: Tensor
    variance: Tensor

    def at(self, states: Tensor) -> Localised:
        """Some of the states, or all in another order."""
        return Localised(self.indices[:, states], self.weights[:, states], self.variance[:, states])


class CorrectionTable:
    """Keeps, by replay slot, the raw features of both states and how the kernel reads the next state.

    Neighbours and weights depend on where the supports lie alone, so between two choices of supports a correction
    costs a gather and no search or solve. The arrays grow with the fill of the buffer.

    Args:
        head: the value head whose memory is read.
        feature_map: gives the features of an observation.
        view: the replay buffer.
        keeps_every_state: false leaves room for features alone, where no more than the states of
            :meth:`localise_apart` is asked for.
    """

    def __init__(
        self, head: ValueHead, feature_map: FeatureMap, view: ReplayView, keeps_every_state: bool = True
    ) -> None:
        self.head, self.feature_map, self.view = head, feature_map, view
        self.keeps_every_state = keeps_every_state
        self.raw = torch.zeros(0, feature_map.dim, device=head.lengthscale.device)
        self.raw_next = torch.zeros(0, feature_map.dim, device=head.lengthscale.device)
        self.kept = self._room(0)
        # No row is known yet, whatever the buffer already holds.
        self._next_row: int | None = None
        # Since the last read, counted by whoever stores: a buffer that has gone by whole stands where it stood.
        self.rows_stored = 0

    @torch.no_grad()
    def read_features(self) -> tuple[Slots, npt.NDArray[np.bool_]]:
        """Bring the raw features up to date.

        Returns:
            All filled slots, oldest first, and which of them have finite features and n-step rewards.
        """
        slots = self.view.slots()
        # Running normalisation statistics change what an old observation reads as, and so does a network that learned.
        new = slots if self.view.vec_normalize is not None else self._new_slots()
        self._read_raw(slots if self.feature_map.is_learned else new)
        steps = self.view.n_step(slots)
        begun, ended = self.raw[torch.from_numpy(slots)], self.raw_next[torch.from_numpy(steps.last_slots)]
        finite = begun.isfinite().all(1) & ended.isfinite().all(1)
        return slots, finite.cpu().numpy() & np.isfinite(steps.rewards)

    @torch.no_grad()
    def localise(self, slots: Slots) -> Float[Tensor, ""]:
        """Find neighbours and weights of the next states of given slots.

        Returns:
            Mean posterior variance over states and actions.
        """
        rows = torch.from_numpy(slots)
        return self._localise_into(self.kept, rows, rows)

    @torch.no_grad()
    def localise_apart(self, slots: Slots) -> tuple[Localised, Float[Tensor, ""]]:
        """The same for a few slots, which may repeat, and nothing is kept.

        Returns:
            How the kernel reads every one, and the mean posterior variance over different ones and actions.
        """
        different, positions = np.unique(slots, return_inverse=True)
        apart = self._room(len(different))
        mean = self._localise_into(apart, torch.arange(len(different)), torch.from_numpy(different))
        return apart.at(torch.from_numpy(positions).to(apart.weights.device)), mean

    def known(self, slots: Slots) -> Localised:
        """How the kernel reads the next states of slots that it was asked to keep."""
        return self.kept.at(torch.from_numpy(slots).to(self.kept.weights.device))

    @torch.no_grad()
    def read_new(self) -> Slots:
        """Read the raw features of transitions stored since the last call, and return their slots."""
        slots = self._new_slots()
        self._read_raw(slots)
        return slots

    @torch.no_grad()
    def lookup(self, slots: Slots) -> Float[Tensor, "batch actions"]:
        """Corrections of the next states of given slots by the present targets, [B, A]; zero for slots never served."""
        return self.read(slots, self.head.memory.targets)

    @torch.no_grad()
    def read(self, slots: Slots, residuals: Float[Tensor, "..."]) -> Float[Tensor, "batch actions"]:
        """The same by other residuals of the supports, A · C in any shape."""
        weights = self.kept.weights
        if weights.shape[1] == 0:
            return torch.zeros(len(slots), self.head.memory.sets, device=weights.device)
        rows = torch.from_numpy(slots).to(weights.device)
        shaped = residuals.reshape(self.head.memory.mask.shape)
        return bounded_correction(self.kept.indices[:, rows], weights[:, rows], shaped).mT

    def _localise_into(self, room: Localised, columns: Tensor, slots: Tensor) -> Float[Tensor, ""]:
        total = torch.zeros((), device=room.weights.device)
        for places, rows in zip(torch.split(columns, CHUNK), torch.split(slots, CHUNK), strict=True):
            local = self.head.localise(self.feature_map.standardise(self.raw_next[rows]))
            room.indices[:, places] = local.indices.int()
            room.weights[:, places] = local.weights
            room.variance[:, places] = local.variance
            total += local.variance.sum()
        return total / max(1, len(slots) * self.head.memory.sets)

    def _room(self, states: int) -> Localised:
        """Room for so many states."""
        sets, k, device = self.head.memory.sets, self.head.k, self.head.lengthscale.device
        return Localised(
            torch.zeros(sets, states, k, dtype=torch.int32, device=device),
            torch.zeros(sets, states, k, device=device),
            torch.zeros(sets, states, device=device),
        )

    def _new_slots(self) -> Slots:
        """Slots filled since the last call, all when a whole buffer has gone by."""
        buffer = self.view.buffer
        known, self._next_row = self._next_row, buffer.pos
        counted, self.rows_stored = self.rows_stored, 0
        if known is None:
            return self.view.slots()
        return self.view.newest(max(counted, (buffer.pos - known) % buffer.buffer_size))

    def _read_raw(self, slots: Slots) -> None:
        if len(slots) == 0:
            return
        self._grow(int(slots.max()) + 1)
        for part in np.array_split(slots, -(-len(slots) // CHUNK)):
            rows = torch.from_numpy(part)
            self.raw[rows] = self.feature_map.raw(self.view.observations(part))
            self.raw_next[rows] = self.feature_map.raw(self.view.next_observations(part))

    def _grow(self, rows: int) -> None:
        if rows <= len(self.raw):
            return
        rows = min(self.view.capacity, max(rows, 2 * len(self.raw), INITIAL_ROWS))
        self.raw, self.raw_next = _pad(self.raw, rows, 0), _pad(self.raw_next, rows, 0)
        if self.keeps_every_state:
            self.kept = Localised(*(_pad(part, rows, 1) for part in self.kept))


def _pad(tensor: Tensor, rows: int, axis: int) -> Tensor:
    """Zeros appended along an axis up to ``rows``."""
    shape = list(tensor.shape)
    shape[axis] = rows - shape[axis]
    return torch.cat([tensor, tensor.new_zeros(shape)], dim=axis)
