from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from agents import KernelDDQN, KernelQ
from agents.kernel_ddqn.replay_kernel import ReplayKernel
from envs.tabular import ChainEnv


def _trained(steps: int = 600, buffer_size: int = 1000, **kernel: object) -> tuple[KernelQ, ReplayKernel]:
    model = KernelQ(
        "MlpPolicy",
        ChainEnv(6, observation="position"),
        gamma=0.9,
        n_steps=1,
        learning_starts=50,
        target_update_interval=50,
        buffer_size=buffer_size,
        kernel={"capacity": 200, "k": 8, "refresh_interval": 100, **kernel},
        seed=0,
        device="cpu",
    ).learn(steps)
    return model, model._kernel()


def _bellman_error(kernel: ReplayKernel) -> Tensor:
    """Of the supports' values: what one more backup would change, at most."""
    before = kernel.head.memory.targets.clone()
    kernel.rebase()
    return (kernel.head.memory.targets - before).abs().max()


def test_sweeps_go_on_where_the_last_ones_ended() -> None:
    _, kernel = _trained(sweeps=1)
    for _ in range(200):
        kernel.rebase()
    assert _bellman_error(kernel) < 1e-5
    assert kernel.head.memory.targets.max() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("buffer_size", [1000, 400])
def test_new_supports_begin_with_what_the_old_ones_knew(buffer_size: int) -> None:
    """Also those stored since they were chosen, and those that took the place of others in a full buffer."""
    model, kernel = _trained(sweeps=1, buffer_size=buffer_size)
    for _ in range(200):
        kernel.rebase()
    model.target_update_interval = 10_000
    model.learn(90, reset_num_timesteps=False)
    assert model.num_timesteps >= kernel.steps_at_rebuild + 90
    kernel.rebuild()
    assert _bellman_error(kernel) < 0.05


def test_greedy_values_are_free_of_the_bonus() -> None:
    model, kernel = _trained()
    plain, optimistic = kernel.head.memory.targets.clone(), kernel.head.optimistic_targets.clone()
    model.q_net.bonus = 500.0
    for _ in range(50):
        kernel.rebase()
    assert (kernel.head.optimistic_targets - optimistic).max() > 1.0
    model.q_net.bonus = 0.0
    for _ in range(50):
        kernel.rebase()
    torch.testing.assert_close(kernel.head.memory.targets, plain, rtol=0.0, atol=0.05)
    torch.testing.assert_close(kernel.head.optimistic_targets, kernel.head.memory.targets.squeeze(-1))


def test_a_bonus_is_felt_many_steps_ahead() -> None:
    """A bonus before the end of the row raises values at its other end, five steps away."""
    model, kernel = _trained(ridge=1e-3, kernel="laplace", lengthscale_factor=0.3)
    supports = kernel.supports
    assert supports is not None
    local = supports.next_local
    reached = supports.next_observations[:, -1]
    last = reached == reached[supports.discounts > 0].max()
    changed = supports._replace(next_local=local._replace(variance=torch.zeros_like(local.variance) + last))
    kernel.head.amplitude.fill_(1.0)
    nothing, values = torch.zeros_like(supports.rewards), {}
    for model.q_net.bonus in (0.0, 5.0):
        for _ in range(10):
            kernel._look_ahead(changed, nothing, torch.zeros_like(changed.next_local.variance))
        values[model.q_net.bonus] = kernel.head.optimistic_targets.clone()
    first = supports.observations[:, -1] == supports.observations[:, -1].min()
    gain = (values[5.0] - values[0.0]).flatten()[supports.filled & first]
    assert len(gain) > 10
    assert gain.min() > 1.0


@pytest.mark.parametrize("exploration", ["optimism", "thompson"])
def test_without_looking_ahead_optimistic_values_are_the_others(exploration: str) -> None:
    _, kernel = _trained(exploration=exploration)
    assert kernel.head.amplitude > 0
    torch.testing.assert_close(kernel.head.optimistic_targets, kernel.head.memory.targets.squeeze(-1))


@pytest.mark.parametrize("settings", [{}, {"applies_to": "acting"}, {"applies_to": "targets"}])
def test_a_network_can_look_ahead_too(settings: dict[str, str]) -> None:
    """Optimistic residuals are relative to the network: with them every support has the value that was backed up."""
    model = KernelDDQN(
        "MlpPolicy",
        ChainEnv(6, observation="position"),
        policy_kwargs={"net_arch": [16]},
        n_steps=1,
        learning_starts=50,
        batch_size=16,
        target_update_interval=50,
        kernel={"capacity": 200, "k": 8, "exploration": "lookahead", **settings},
        seed=0,
        device="cpu",
    ).learn(400)
    kernel = model._kernel()
    kernel.refresh(model.num_timesteps)
    supports, head = kernel.supports, model.q_net.head
    assert supports is not None
    next_prior = kernel._prior_means(supports.next_observations).mT
    reached = (kernel.next_optimistic + model.q_net.bonus * head.amplitude * supports.next_local.variance.sqrt()).amax(
        0
    )
    for _ in range(300):
        before = reached
        kernel._look_ahead(supports, kernel._present_values(supports), next_prior)
        reached = (
            kernel.next_optimistic + model.q_net.bonus * head.amplitude * supports.next_local.variance.sqrt()
        ).amax(0)
    torch.testing.assert_close(reached, before, rtol=1e-3, atol=1e-3)
    kernel._look_ahead(supports, kernel._present_values(supports), next_prior)
    optimistic = head.optimistic_targets.flatten()
    expected = supports.rewards + supports.discounts * reached - kernel._present_values(supports)
    torch.testing.assert_close(optimistic[supports.filled], expected[supports.filled], rtol=1e-2, atol=1e-2)
    with torch.no_grad():
        explored = model.q_net.exploring_values(supports.observations)
        greedy = model.q_net.prior_mean(supports.observations) + head.correction(
            model.q_net.feature_map(supports.observations)
        )
    assert (explored - greedy).max() > 0.0


def test_a_loaded_model_goes_on_with_the_values_of_its_file(tmp_path: Path) -> None:
    model, kernel = _trained(sweeps=1)
    for _ in range(200):
        kernel.rebase()
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = KernelQ.load(tmp_path / "model", env=model.get_env(), device="cpu")
    loaded.load_replay_buffer(tmp_path / "buffer")
    loaded.learn(60, reset_num_timesteps=False)
    assert loaded.replay_kernel is not None
    mean, known = (each.policy.online.head.memory.targets.mean() for each in (loaded, model))
    assert known > 0.3
    assert mean == pytest.approx(float(known), rel=0.15)
