"""Bellman targets as pure functions; termination is folded into the discounts, so no formula mentions it."""

from __future__ import annotations

import torch

from skrl.shapes import Float, Tensor


def double_q_target(
    rewards: Float[Tensor, "*batch"],
    discounts: Float[Tensor, "*batch"],
    next_q_online: Float[Tensor, "*batch actions"],
    next_q_target: Float[Tensor, "*batch actions"],
) -> Float[Tensor, "*batch"]:
    """Double Q-learning target y = R + D · Q_target(s', argmax_b Q_online(s', b)).

    H. van Hasselt, A. Guez and D. Silver, *Deep Reinforcement Learning with Double Q-learning*, 2016, equation 4;
    with n-step returns as in M. Hessel et al., *Rainbow*, 2018, equation 1.

    Args:
        rewards: (n-step) returns R, any batch shape.
        discounts: D = γⁿ, zero where s' is terminal, same shape; values there do not count, not even NaN.
        next_q_online: values that choose the action, [..., A].
        next_q_target: values that evaluate it, [..., A].

    Returns:
        Targets y, the batch shape.
    """
    chosen = next_q_online.argmax(dim=-1, keepdim=True)
    bootstrapped = rewards + discounts * next_q_target.gather(-1, chosen).squeeze(-1)
    return torch.where(discounts == 0.0, rewards, bootstrapped)
