"""Kernel value iteration: the supports of a network-free head keep their values."""

from __future__ import annotations

from typing import Any

import torch

from agents.common.replay_view import NStep
from agents.kernel_ddqn.replay_kernel import ReplayKernel, Supports
from skrl.shapes import Float, Tensor


class ValueIteration(ReplayKernel):
    """Backs up the values of the supports through the kernel, with no network to carry them on.

    D. Ormoneit and Ś. Sen, *Kernel-Based Reinforcement Learning*, 2002. Sweeps begin with the values that the last ones
    ended with.

    Args:
        *args: as for :class:`ReplayKernel`, whose networks have a :class:`NetworkFreeHead`.
        **kwargs: likewise.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Of the states that supports lead to, [A, m].
        self.next_values = torch.zeros(0, device=self.head.lengthscale.device)

    def _place_supports(self, features: Float[Tensor, "actions points dim"], sizes: Tensor, steps: NStep) -> None:
        # The supports of until now know what the new ones lead to.
        self.next_values = self.table.lookup(steps.last_slots).mT
        super()._place_supports(features, sizes, steps)

    def _rebase_over_n_steps(self, supports: Supports) -> None:
        before = self.next_values.argmax(0)
        values, self.next_values = self._go_on(supports, self.next_values)
        self._write(values)
        if self.looks_ahead:
            self._look_ahead(supports, 0.0, 0.0)
        changed = (self.next_values.argmax(0) != before) & supports.filled
        self._finish(changed.sum() / supports.filled.sum())
