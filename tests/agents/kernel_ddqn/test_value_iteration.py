from __future__ import annotations

import pytest
import torch
from torch import Tensor

from agents import KernelQ
from agents.kernel_ddqn.value_iteration import ValueIteration
from envs.tabular import ChainEnv


def _trained(steps: int = 600, **kernel: object) -> tuple[KernelQ, ValueIteration]:
    model = KernelQ(
        "MlpPolicy",
        ChainEnv(6, observation="position"),
        gamma=0.9,
        n_steps=1,
        learning_starts=50,
        target_update_interval=50,
        kernel={"capacity": 200, "k": 8, "refresh_interval": 100, **kernel},
        seed=0,
        device="cpu",
    ).learn(steps)
    kernel_of_model = model._kernel()
    assert isinstance(kernel_of_model, ValueIteration)
    return model, kernel_of_model


def _bellman_error(kernel: ValueIteration) -> Tensor:
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


def test_new_supports_begin_with_what_the_old_ones_knew() -> None:
    _, kernel = _trained(sweeps=1)
    for _ in range(200):
        kernel.rebase()
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
    _, kernel = _trained(exploration_bonus=0.0, ridge=1e-3, kernel="laplace", lengthscale_factor=0.3)
    supports = kernel.supports
    assert supports is not None
    reached = supports.next_observations[:, -1]
    last = reached == reached[supports.discounts > 0].max()
    nothing = torch.zeros_like(supports.next_variance)
    bonus = nothing + 5.0 * last
    for _ in range(100):
        optimistic, kernel.next_optimistic = kernel._sweep(supports, kernel.next_optimistic, bonus)
        plain, kernel.next_values = kernel._sweep(supports, kernel.next_values, nothing)
    first = supports.observations[:, -1] == supports.observations[:, -1].min()
    gain = (optimistic - plain).flatten()[supports.filled & first]
    assert len(gain) > 10
    assert gain.min() > 1.0


def test_thompson_sampling_draws_around_plain_values() -> None:
    _, kernel = _trained(exploration="thompson")
    assert kernel.head.amplitude > 0
    torch.testing.assert_close(kernel.head.optimistic_targets, kernel.head.memory.targets.squeeze(-1))
