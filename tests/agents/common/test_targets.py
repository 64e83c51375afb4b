import pytest
import torch

from agents.common.targets import double_q_target, trace_target


def test_matches_a_hand_computed_target() -> None:
    rewards = torch.tensor([1.0, 2.0, 3.0])
    discounts = torch.tensor([0.9, 0.5, 0.0])
    online = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 9.0]])
    target = torch.tensor([[10.0, 20.0], [30.0, 40.0], [50.0, 60.0]])
    # The online network chooses actions 1, 0, 1; the target network says what they are worth.
    expected = torch.tensor([1.0 + 0.9 * 20.0, 2.0 + 0.5 * 30.0, 3.0])
    assert torch.equal(double_q_target(rewards, discounts, online, target), expected)


def test_the_online_network_chooses_and_the_target_network_evaluates() -> None:
    target = double_q_target(torch.zeros(1), torch.ones(1), torch.tensor([[0.0, 1.0]]), torch.tensor([[5.0, -5.0]]))
    assert target.item() == -5.0


@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 64, 301])
def test_traces_match_a_loop_from_the_end(count, n_steps) -> None:
    generator = torch.Generator().manual_seed(count)
    rewards, values = torch.randn(2, count, generator=generator)
    discounts = 0.97 * (torch.rand(count, generator=generator) > 0.1)
    traces = 0.9 * (torch.rand(count, generator=generator) > 0.2)
    traces[-n_steps:] = 0.0
    expected = torch.zeros(count + n_steps)
    for t in reversed(range(count)):
        ahead = (1.0 - traces[t]) * values[t] + traces[t] * expected[t + n_steps]
        expected[t] = rewards[t] + discounts[t] * ahead
    assert torch.allclose(trace_target(rewards, discounts, values, traces, n_steps), expected[:count], atol=1e-4)


def test_a_full_trace_is_the_return_and_none_is_one_step() -> None:
    rewards, values = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([10.0, 20.0, 30.0])
    discounts = torch.tensor([0.5, 0.5, 0.0])
    full = trace_target(rewards, discounts, values, torch.tensor([1.0, 1.0, 0.0]))
    assert torch.equal(full, torch.tensor([1.0 + 0.5 * 4.0, 2.0 + 0.5 * 4.0, 4.0]))
    none = trace_target(rewards, discounts, values, torch.zeros(3))
    assert torch.equal(none, torch.tensor([1.0 + 5.0, 2.0 + 10.0, 4.0]))
