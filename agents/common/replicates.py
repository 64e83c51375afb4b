"""The ridge of a value head where states are visited again and again, from how much residuals differ there."""

from __future__ import annotations

import torch

from agents.common.lengthscale import LengthscaleRule
from skrl.value_heads import NetworkFreeHead, ResidualHead

SCALES = (1.0, 3.0, 10.0, 30.0, 100.0)
"""Of the configured λ, which is the least: with fewer visits than neighbours there is nothing to learn more from."""


class ReplicateRule:
    """Scales λ by what leave-one-out errors say of the noise, where states are told apart and no more.

    λ is how much noise there is, in units of what the kernel is to know. Visits to the same state are replicates, whose
    differences are noise and nothing else; between states that are merely near, a trajectory's own transitions share
    their noise, and errors would call it knowledge. As for the lengthscale, a judgement waits for the next choice of
    supports.

    A head without a network answers with the mean of a state's own visits, whatever λ is, and one that averages has
    none; there it stays as configured.

    Args:
        lengthscale: the rule of the same head.
    """

    def __init__(self, lengthscale: LengthscaleRule) -> None:
        self.lengthscale = lengthscale
        self.scale = float(lengthscale.head.ridge_scale)  # that of a loaded head goes on

    @torch.no_grad()
    def apply(self) -> None:
        """Write the scale that was chosen last."""
        self.lengthscale.head.ridge_scale.fill_(self.scale if self._applies() else SCALES[0])

    @torch.no_grad()
    def judge(self) -> None:
        """Choose the scale that errs least."""
        if not self._applies():
            return
        head = self.lengthscale.head
        neighbors, radius = self.lengthscale.probes()
        errors = [self.lengthscale.error(neighbors, radius, head.lengthscale, head.ridge * scale) for scale in SCALES]
        self.scale = SCALES[int(torch.stack(errors).argmin())]

    def _applies(self) -> bool:
        head = self.lengthscale.head
        solves = isinstance(head, ResidualHead) and not isinstance(head, NetworkFreeHead)
        return solves and self.lengthscale.is_tabular
