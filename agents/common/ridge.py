"""The ridge of a value head, from how well episodes predict each other's residuals."""

from __future__ import annotations

import torch

from agents.common.lengthscale import LengthscaleRule
from skrl.search.neighbors import Neighbors
from skrl.shapes import Int, Tensor
from skrl.tuning.leave_one_out import probe_rows
from skrl.tuning.probes import Probes
from skrl.value_heads import NetworkFreeHead, ResidualHead

MULTIPLES = (1.0, 3.0, 10.0, 30.0)
"""Of the configured λ, which is the least."""

TABULAR_MULTIPLES = (*MULTIPLES, 100.0)
"""The same where states are told apart and no more: visits there differ by noise alone, however large."""

PROBES = 512
"""Supports per action that others predict, at most."""

REACH = 8
"""Nearest supports that are looked through for those of other episodes, in multiples of the neighbours needed."""


class RidgeRule:
    """Multiplies λ by what leave-one-episode-out errors say of the noise.

    λ is how much noise there is, in units of what the kernel is to know. Neighbours of a support are for the most part
    of its own trajectory, with which it shares rewards, and errors of predicting it from those would call the noise of
    that trajectory knowledge. So a support is predicted from its nearest ones of other episodes. As for the
    lengthscale, a judgement waits for the next choice of supports.

    A head without a network goes to the mean of its neighbours and not to zero, whatever λ is, and one that averages
    has none; there it stays as configured.

    Args:
        lengthscale: the rule of the same head.
        fixed: λ stays as configured.
    """

    def __init__(self, lengthscale: LengthscaleRule, fixed: bool = False) -> None:
        self.lengthscale, self.fixed = lengthscale, fixed
        self.multiple = float(lengthscale.head.ridge_scale)  # that of a loaded head goes on

    @torch.no_grad()
    def apply(self) -> None:
        """Write the multiple that was chosen last."""
        self.lengthscale.head.ridge_scale.fill_(self.multiple if self._applies() else MULTIPLES[0])

    @torch.no_grad()
    def judge(self, episodes: Int[Tensor, "actions points"]) -> None:
        """Choose the multiple that errs least; the present one stays where no episode has a word on another.

        Args:
            episodes: a number of the episode of every support, [A, C].
        """
        if not self._applies():
            return
        multiples = TABULAR_MULTIPLES if self.lengthscale.is_tabular else MULTIPLES
        head = self.lengthscale.head
        ridges = [head.ridge * multiple for multiple in multiples]
        errors = torch.zeros(len(multiples), dtype=torch.float64)
        for action in range(head.memory.sets):
            probes = self._probes(action, episodes[action])
            if probes is not None:
                predictions = probes.predictions(float(head.lengthscale), ridges, head.k)
                errors += torch.stack([(probes.targets - each.mean).square().sum() for each in predictions]).cpu()
        if errors.any():
            self.multiple = multiples[int(errors.argmin())]

    def _probes(self, action: int, episodes: Int[Tensor, " points"]) -> Probes | None:
        """Supports of an action and their nearest ones of other episodes; None where there are no two of them."""
        head = self.lengthscale.head
        memory = head.memory
        size = int(memory.sizes[action])
        if size < 2:
            return None
        points, residuals = memory.features[action, :size], memory.targets[action, :size]
        rows = probe_rows(size, PROBES, points.device)
        wanted = head.k + (head.localisation == "continuous")
        near = head.search(points[rows], points, min(size, REACH * wanted))
        others = near.mask & (episodes[near.indices] != episodes[rows].unsqueeze(1))
        # Nearest first, as they were.
        order = (~others).long().argsort(dim=1, stable=True)[:, :wanted]
        found = Neighbors(near.indices.gather(1, order), near.distances.gather(1, order), others.gather(1, order))
        known = found.mask.any(1)
        neighbors = Neighbors(*(values[known] for values in found))
        return Probes(points, residuals, rows[known], neighbors, head.kernel, head.localisation)

    def _applies(self) -> bool:
        head = self.lengthscale.head
        solves = isinstance(head, ResidualHead) and not isinstance(head, NetworkFreeHead)
        return solves and not self.fixed
