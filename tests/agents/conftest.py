"""Fixtures that tests of several agents share."""

from __future__ import annotations

import pytest
import torch

from agents.kernel_ddqn.replay_kernel import ReplayKernel


@pytest.fixture
def networks_equal_at_refresh(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether online and target network were equal, for every refresh that follows.

    They are between a target update and the next gradient step. Residuals against the old target network would count
    every correction twice.
    """
    equal: list[bool] = []
    original = ReplayKernel.refresh

    def spy(self: ReplayKernel, steps: int) -> None:
        pairs = zip(self.q_net.layers.parameters(), self.q_net_target.layers.parameters(), strict=True)
        equal.append(all(torch.equal(online, target) for online, target in pairs))
        original(self, steps)

    monkeypatch.setattr(ReplayKernel, "refresh", spy)
    return equal
