"""Bellman targets as pure functions; termination is folded into the discounts, so no formula mentions it."""

from __future__ import annotations

from torch.nn.functional import pad

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
        discounts: D = γⁿ, zero where s' is terminal, same shape.
        next_q_online: values that choose the action, [..., A].
        next_q_target: values that evaluate it, [..., A].

    Returns:
        Targets y, the batch shape.
    """
    chosen = next_q_online.argmax(dim=-1, keepdim=True)
    return rewards + discounts * next_q_target.gather(-1, chosen).squeeze(-1)


def trace_target(
    rewards: Float[Tensor, " steps"],
    discounts: Float[Tensor, " steps"],
    next_values: Float[Tensor, " steps"],
    traces: Float[Tensor, " steps"],
    n_steps: int = 1,
) -> Float[Tensor, " steps"]:
    """Targets along trajectories, y_t = R_t + D_t · ((1 − c_t) V_t + c_t y_{t+n}).

    With n = 1, and c = λ where the next action is the greedy one and 0 elsewhere, this is Q(λ) of C. Watkins,
    *Learning from Delayed Rewards*, 1989, over stored experience as in B. Daley and C. Amato, *Reconciling λ-Returns
    with Experience Replay*, 2019; with λ everywhere that of J. Peng and R. Williams, *Incremental Multi-Step
    Q-Learning*, 1996.

    Args:
        rewards: n-step returns R, in the order of time, [T].
        discounts: D = γⁿ, zero where the episode terminated, [T].
        next_values: V, what the state reached is worth, [T].
        traces: c, how far the target of the n-th entry from here replaces V; zero where that is no continuation, as in
            the last n, [T].
        n_steps: n.

    Returns:
        Targets y, [T].
    """
    total, factors = rewards + discounts * (1.0 - traces) * next_values, discounts * traces
    # y = total + factor · (y of the entry ahead): each pass doubles how far ahead that is.
    ahead = n_steps
    while ahead < len(rewards):
        total = total + factors * pad(total[ahead:], (0, ahead))
        factors = factors * pad(factors[ahead:], (0, ahead))
        ahead *= 2
    return total
