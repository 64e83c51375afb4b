import torch

from agents.common.targets import double_q_target


def test_matches_a_hand_computed_target() -> None:
    rewards = torch.tensor([1.0, 2.0, 3.0])
    discounts = torch.tensor([0.9, 0.5, 0.0])
    online = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 9.0]])
    target = torch.tensor([[10.0, 20.0], [30.0, 40.0], [50.0, 60.0]])
    # The online network chooses actions 1, 0, 1; the target network says what they are worth.
    expected = torch.tensor([1.0 + 0.9 * 20.0, 2.0 + 0.5 * 30.0, 3.0])
    assert torch.equal(double_q_target(rewards, discounts, online, target), expected)
    target[2] = online[2] = float("nan")
    assert torch.equal(double_q_target(rewards, discounts, online, target), expected)


def test_the_online_network_chooses_and_the_target_network_evaluates() -> None:
    target = double_q_target(torch.zeros(1), torch.ones(1), torch.tensor([[0.0, 1.0]]), torch.tensor([[5.0, -5.0]]))
    assert target.item() == -5.0
