"""KernelQRDQN: sb3-contrib's update, asked through a target network that the kernel corrects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sb3_contrib import QRDQN
from stable_baselines3.common.buffers import ReplayBuffer

from agents import KernelRefreshCallback
from agents.common.schema import ConfigError
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
    plain = QRDQN("MlpPolicy", "CartPole-v1", policy_kwargs=dict(NETWORK), **SETTINGS).learn(300)
    kernel = QRDQN(KernelQRDQNPolicy, "CartPole-v1", policy_kwargs=dict(NETWORK), **SETTINGS).learn(300)
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


def test_the_kernel_is_renewed_between_target_update_and_gradient_steps(networks_equal_at_refresh: list[bool]) -> None:
    _trained()
    assert len(networks_equal_at_refresh) >= 10
    assert all(networks_equal_at_refresh)


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
    observations = torch.randn(9, 4)
    with torch.no_grad():
        corrected = model.policy.quantile_net(observations)
        assert not torch.equal(corrected.mean(1), model.policy.quantile_net.prior_mean(observations))
        model.save(tmp_path / "model.zip")
        loaded = KernelQRDQN.load(tmp_path / "model.zip", device="cpu")
        assert torch.equal(loaded.policy.quantile_net(observations), corrected)


def test_a_loaded_model_renews_its_residuals_before_it_learns_from_them(tmp_path, monkeypatch) -> None:
    """Saved one step before a target update, as a callback does at every multiple of the interval."""
    model = _trained()
    model._n_calls = 20 * 7 - 1
    model.save(tmp_path / "model.zip")
    loaded = KernelQRDQN.load(tmp_path / "model.zip", env=model.get_env(), device="cpu")
    loaded.load_replay_buffer(_saved_buffer(model, tmp_path))
    events: list[str] = []
    refresh, train = LiveKernel.refresh, QRDQN.train
    monkeypatch.setattr(LiveKernel, "refresh", lambda self, steps: (events.append("refresh"), refresh(self, steps)))
    monkeypatch.setattr(QRDQN, "train", lambda self, *args: (events.append("train"), train(self, *args)))
    loaded.learn(8, reset_num_timesteps=False)
    assert events[:2] == ["refresh", "train"]


def _saved_buffer(model: KernelQRDQN, folder: Path) -> Path:
    model.save_replay_buffer(folder / "buffer.pkl")
    return folder / "buffer.pkl"


def test_a_buffer_that_goes_by_between_two_rebuilds_is_read_anew() -> None:
    settings = {**SETTINGS, "buffer_size": 100, "target_update_interval": 100}
    kernel_settings = {**KERNEL, "refresh_interval": 100}
    model = KernelQRDQN(
        "MlpPolicy", "CartPole-v1", kernel=kernel_settings, policy_kwargs=NETWORK, n_steps=1, **settings
    )
    model.learn(400)
    kernel = model._kernel()
    kernel.extend()
    slots = kernel.view.slots()
    expected = kernel.feature_map.raw(kernel.view.observations(slots))
    assert torch.equal(kernel.table.raw[torch.from_numpy(slots)], expected)


@pytest.mark.filterwarnings("ignore:.*is ignored because a custom")  # SB3 says so too, and goes on
def test_a_buffer_that_sums_no_rewards_is_refused() -> None:
    with pytest.raises(ValueError, match=r"n_steps is 3, but SB3's update learns from a ReplayBuffer that sums 1"):
        KernelQRDQN("MlpPolicy", "CartPole-v1", replay_buffer_class=ReplayBuffer)
    with pytest.raises(ConfigError, match="kernel is a str"):
        KernelQRDQN("MlpPolicy", "CartPole-v1", kernel="residual")


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


@pytest.mark.parametrize("given", [{}, {"weight_decay": 0.5}, {"eps": 0.25, "amsgrad": True}])
def test_arguments_of_the_optimizer_are_added_to_those_of_qrdqn(given: dict[str, Any], tmp_path: Path) -> None:
    asked = {**NETWORK, "optimizer_kwargs": given}
    model = KernelQRDQN("MlpPolicy", "CartPole-v1", policy_kwargs=asked, **SETTINGS)
    model.save(tmp_path / "model.zip")
    for each in (model, KernelQRDQN.load(tmp_path / "model.zip", device="cpu", policy_kwargs=asked)):
        assert type(each.policy.optimizer) is torch.optim.Adam
        defaults = {"eps": 0.01 / SETTINGS["batch_size"], **given}
        assert {name: each.policy.optimizer.defaults[name] for name in defaults} == defaults
