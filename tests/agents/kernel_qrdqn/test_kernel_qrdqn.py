"""KernelQRDQN: sb3-contrib's update, asked through a target network that the kernel corrects."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sb3_contrib import QRDQN

from agents import KernelRefreshCallback
from agents.kernel_ddqn.live_kernel import LiveKernel
from agents.kernel_qrdqn import KernelQRDQN, KernelQRDQNPolicy

SETTINGS: dict[str, Any] = {
    "learning_starts": 50,
    "batch_size": 16,
    "target_update_interval": 20,
    "buffer_size": 1000,
    "seed": 0,
    "device": "cpu",
}
NETWORK: dict[str, Any] = {"net_arch": [16], "n_quantiles": 5}
KERNEL: dict[str, Any] = {"capacity": 100, "k": 4, "refresh_interval": 60}


def _trained(**settings: Any) -> KernelQRDQN:
    return KernelQRDQN("MlpPolicy", "CartPole-v1", kernel=KERNEL, policy_kwargs=NETWORK, **SETTINGS, **settings).learn(
        300
    )


def test_with_an_empty_memory_it_learns_exactly_as_qrdqn() -> None:
    plain = QRDQN("MlpPolicy", "CartPole-v1", policy_kwargs=NETWORK, **SETTINGS).learn(300)
    kernel = QRDQN(KernelQRDQNPolicy, "CartPole-v1", policy_kwargs=NETWORK, **SETTINGS).learn(300)
    theirs = dict(plain.policy.named_parameters())
    for name, parameter in kernel.policy.named_parameters():
        assert torch.equal(parameter, theirs[name]), name


def test_the_correction_moves_every_quantile_by_the_same() -> None:
    network = _trained().policy.quantile_net
    observations = torch.randn(20, 4)
    with torch.no_grad():
        corrected = network(observations)
        network.set_training_mode(True)
        moved = corrected - network(observations)
    assert (moved.abs().amax((0, 1)) > 1e-3).all()
    torch.testing.assert_close(moved, moved[:, :1].expand_as(moved))
    features = network.feature_map(observations)
    torch.testing.assert_close(moved[:, 0], network.head.correction(features))


def test_the_kernel_is_renewed_between_target_update_and_gradient_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    equal = []
    original = LiveKernel.refresh

    def spy(self: LiveKernel, steps: int) -> None:
        pairs = zip(self.q_net.layers.parameters(), self.q_net_target.layers.parameters(), strict=True)
        equal.append(all(torch.equal(online, target) for online, target in pairs))
        original(self, steps)

    monkeypatch.setattr(LiveKernel, "refresh", spy)
    _trained()
    assert len(equal) >= 10
    assert all(equal)


def test_residuals_are_those_of_the_means_of_the_quantiles() -> None:
    model = _trained(n_steps=1)
    kernel = model._kernel()
    kernel.rebuild()
    supports, head, target = kernel.supports, kernel.head, model.policy.target
    assert supports is not None
    head.write_targets(torch.zeros_like(head.memory.targets[..., 0]))
    with torch.no_grad():
        network = target.prior_mean
        next_values = network(supports.next_observations).amax(1)
        present = network(supports.observations).gather(1, supports.actions.unsqueeze(1)).squeeze(1)
    kernel.config = type(kernel.config)(**{**KERNEL, "sweeps": 1})
    kernel.rebase()
    expected = supports.rewards + supports.discounts * next_values - present
    filled = supports.filled
    torch.testing.assert_close(head.memory.targets.reshape(-1)[filled], expected[filled])


def test_the_head_corrects_after_learning_as_before_saving(tmp_path) -> None:
    model = _trained()
    assert not model.policy.quantile_net.training
    model.save(tmp_path / "model.zip")
    loaded = KernelQRDQN.load(tmp_path / "model.zip", env=model.get_env(), device="cpu")
    assert loaded.replay_kernel is None
    loaded.learn(100, reset_num_timesteps=False)
    assert loaded.replay_kernel is not None


def test_the_callback_serves_qrdqn_of_sb3_contrib() -> None:
    policy_kwargs = {**NETWORK, "kernel": KERNEL}
    model = QRDQN(KernelQRDQNPolicy, "CartPole-v1", policy_kwargs=policy_kwargs, **SETTINGS)
    model.learn(300, callback=KernelRefreshCallback())
    assert model.policy.quantile_net.head.memory.targets.abs().sum() > 0
    with pytest.raises(ValueError, match="KernelQRDQN refreshes its own kernel"):
        _trained().learn(10, callback=KernelRefreshCallback())


def test_the_bonus_follows_its_schedule() -> None:
    seen: list[float] = []

    def watch(local: dict[str, Any], _: Any) -> bool:
        seen.append(local["self"].policy.online.bonus - 2.0 * local["self"]._current_progress_remaining)
        return True

    model = KernelQRDQN(
        "MlpPolicy",
        "CartPole-v1",
        kernel=KERNEL,
        policy_kwargs=NETWORK,
        bonus_schedule=lambda progress: 2.0 * progress,
        **SETTINGS,
    )
    model.learn(100, callback=watch)
    assert np.abs(seen[1:]).max() < 1e-9
    assert model.policy.online.bonus == 0.0
