"""The lengthscale from distances, and from leave-one-out errors on problems whose answer is known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from agents import KernelConfig, KernelDDQN
from agents.common.lengthscale import MULTIPLES, TABULAR, LengthscaleRule
from skrl.value_heads import NetworkFreeHead, ResidualHead

POINTS = 101
SPACING = 1.0 / (POINTS - 1)
MEDIAN = 2.0 * SPACING
"""Distance to the fourth neighbour on a grid."""


def _rule(frequency: float, **settings: Any) -> LengthscaleRule:
    """One action, supports on a grid from 0 to 1, residuals sin(frequency · x)."""
    config = KernelConfig(**{"k": 4, "ridge": 0.01, "kernel": "gaussian", **settings})
    head = ResidualHead(1, POINTS, 1, k=4, kernel=config.kernel, ridge=config.ridge, localisation=config.localisation)
    grid = torch.linspace(0.0, 1.0, POINTS).view(1, -1, 1)
    head.memory.write(grid, torch.tensor([POINTS]), torch.sin(frequency * grid))
    return LengthscaleRule(head, config, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_neighbors_is_a_multiple_of_the_median_distance(factor: float) -> None:
    rule = _rule(2.0, lengthscale_factor=factor)
    rule.apply()
    assert rule.head.lengthscale.item() == pytest.approx(factor * MEDIAN, rel=1e-4)
    rule.judge()
    rule.apply()
    assert rule.head.lengthscale.item() == pytest.approx(factor * MEDIAN, rel=1e-4)


@pytest.mark.parametrize("localisation", ["hard", "continuous"])
@pytest.mark.parametrize(("frequency", "multiple"), [(2.0, 4.0), (math.pi / SPACING / 1.9, 0.5)])
def test_leave_one_out_takes_long_for_smooth_and_short_for_rough_residuals(
    frequency: float, multiple: float, localisation: str
) -> None:
    rule = _rule(frequency, lengthscale_rule="leave_one_out", localisation=localisation)
    rule.apply()
    rule.judge()
    assert rule.head.lengthscale.item() == pytest.approx(MEDIAN, rel=1e-4)  # weights were made with this one
    rule.apply()
    assert rule.head.lengthscale.item() == pytest.approx(multiple * MEDIAN, rel=1e-4)
    rule.judge()
    rule.apply()
    assert rule.head.lengthscale.item() == pytest.approx(multiple * MEDIAN, rel=1e-4)


@pytest.mark.parametrize("frequency", [2.0, 20.0, 60.0, 150.0])
def test_the_choice_errs_least_among_the_candidates(frequency: float) -> None:
    errors = []
    for candidate in MULTIPLES:
        rule = _rule(frequency, lengthscale_factor=candidate)
        rule.apply()
        errors.append(rule.judge())
    chosen = _rule(frequency, lengthscale_rule="leave_one_out")
    chosen.apply()
    chosen.judge()
    assert chosen.multiple == MULTIPLES[int(torch.stack(errors).argmin())]


def _agent() -> KernelDDQN:
    return KernelDDQN(
        "MlpPolicy",
        "CartPole-v1",
        kernel={"capacity": 100, "k": 4, "refresh_interval": 60, "lengthscale_rule": "leave_one_out"},
        policy_kwargs={"net_arch": [16]},
        learning_starts=50,
        target_update_interval=20,
        seed=0,
    ).learn(200)


def test_an_agent_takes_the_choice_at_the_next_rebuild() -> None:
    model = _agent()
    kernel = model.replay_kernel
    assert kernel is not None
    lengths = {}
    for multiple in (1.0, 4.0):
        kernel.generator.manual_seed(7)
        kernel.lengthscale.multiple = multiple
        kernel.rebuild()
        lengths[multiple] = kernel.scalars["lengthscale"]
        assert kernel.lengthscale.multiple in MULTIPLES
        assert model.q_net_target.head.lengthscale.item() == lengths[multiple]
    assert lengths[4.0] == pytest.approx(4.0 * lengths[1.0])


@pytest.mark.parametrize("multiple", MULTIPLES)
@pytest.mark.parametrize("factor", [0.3, 1.0])
def test_a_head_that_was_loaded_goes_on_with_its_multiple(multiple: float, factor: float) -> None:
    first = _rule(2.0, lengthscale_rule="leave_one_out", lengthscale_factor=factor)
    assert first.multiple == 1.0  # a lengthscale that no multiple explains is nobody's choice
    first.multiple = multiple
    first.apply()
    loaded = LengthscaleRule(first.head, first.config, torch.Generator().manual_seed(1))
    assert loaded.multiple == multiple
    plain = KernelConfig(k=4, lengthscale_factor=factor)
    assert LengthscaleRule(first.head, plain, torch.Generator()).multiple == 1.0
    first.apply(torch.tensor(0.5))
    assert LengthscaleRule(first.head, first.config, torch.Generator()).multiple == 1.0


def test_an_agent_keeps_its_multiple_wherever_its_kernel_is_made_anew(tmp_path) -> None:
    model = _agent()
    model._kernel().lengthscale.multiple = 4.0
    model._kernel().rebuild()
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = KernelDDQN.load(tmp_path / "model", env=model.get_env())
    assert loaded._kernel().lengthscale.multiple == 4.0
    loaded.load_replay_buffer(tmp_path / "buffer")
    assert loaded._kernel().lengthscale.multiple == 4.0
    model.set_parameters(loaded.get_parameters())
    assert model._kernel().lengthscale.multiple == 4.0


def test_a_network_free_head_is_judged_by_what_it_predicts() -> None:
    errors = []
    for offset in (0.0, -60.0):
        head = NetworkFreeHead(1, POINTS, 1, k=4, ridge=0.1)
        grid = torch.linspace(0.0, 1.0, POINTS).view(1, -1, 1)
        head.memory.write(grid, torch.tensor([POINTS]), torch.sin(20.0 * grid) + offset)
        rule = LengthscaleRule(head, KernelConfig(head="network_free"), torch.Generator().manual_seed(0))
        rule.apply()
        errors.append(float(rule.judge()))
    assert errors[1] == pytest.approx(errors[0], rel=1e-3)


def test_states_that_are_only_told_apart_are_no_neighbours_of_each_other() -> None:
    rule = _rule(2.0, lengthscale_rule="leave_one_out")
    rule.apply(torch.tensor(0.5))
    rule.judge()
    rule.apply(torch.tensor(0.5))
    assert rule.head.lengthscale.item() == pytest.approx(0.5 * TABULAR)
    assert rule.multiple == 1.0


def test_a_head_in_half_precision_is_judged_too() -> None:
    rule = _rule(20.0)
    rule.apply()
    expected = float(rule.judge())
    rule.head.half()
    assert float(rule.judge()) == pytest.approx(expected, rel=0.1)
