"""Neighbours and weights, and so corrections, of every next state in a replay buffer."""

from __future__ import annotations

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


class CorrectionTable:
    """Keeps, by replay slot, the raw features of both states and how the kernel reads the next state.

    Neighbours and weights depend on where the supports lie alone, so between two choices of supports a correction
    costs a gather and no search or solve. The arrays grow with the fill of the buffer.

    Args:
        head: the value head whose memory is read.
        feature_map: gives the features of an observation.
        view: the replay buffer.
    """

    def __init__(self, head: ValueHead, feature_map: FeatureMap, view: ReplayView) -> None:
        self.head, self.feature_map, self.view = head, feature_map, view
        device, dim, sets, k = head.lengthscale.device, feature_map.dim, head.memory.sets, head.k
        self.raw = torch.zeros(0, dim, device=device)
        self.raw_next = torch.zeros(0, dim, device=device)
        self.indices = torch.zeros(sets, 0, k, dtype=torch.int32, device=device)
        self.weights = torch.zeros(sets, 0, k, device=device)
        self.variance = torch.zeros(sets, 0, device=device)
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
        total = torch.zeros((), device=self.weights.device)
        for rows in torch.split(torch.from_numpy(slots), CHUNK):
            local = self.head.localise(self.feature_map.standardise(self.raw_next[rows]))
            self.indices[:, rows] = local.indices.int()
            self.weights[:, rows] = local.weights
            self.variance[:, rows] = local.variance
            total += local.variance.sum()
        return total / max(1, len(slots) * self.head.memory.sets)

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
        if self.indices.shape[1] == 0:
            return torch.zeros(len(slots), self.head.memory.sets, device=self.weights.device)
        rows = torch.from_numpy(slots).to(self.weights.device)
        shaped = residuals.reshape(self.head.memory.mask.shape)
        return bounded_correction(self.indices[:, rows], self.weights[:, rows], shaped).mT

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
        for name in ("raw", "raw_next"):
            setattr(self, name, _pad(getattr(self, name), rows, 0))
        for name in ("indices", "weights", "variance"):
            setattr(self, name, _pad(getattr(self, name), rows, 1))


def _pad(tensor: Tensor, rows: int, axis: int) -> Tensor:
    """Zeros appended along an axis up to ``rows``."""
    shape = list(tensor.shape)
    shape[axis] = rows - shape[axis]
    return torch.cat([tensor, tensor.new_zeros(shape)], dim=axis)
