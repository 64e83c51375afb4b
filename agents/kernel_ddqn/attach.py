"""A kernel head for a trained model: better action values without a gradient step."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv

from agents.common.cut_at_reset import lent
from agents.common.normalized_env import frozen_statistics, require_normalized, require_same_rewards
from agents.common.replay_view import ReplayView
from agents.common.seeding import numpy_generator
from agents.kernel_ddqn.experience import Experience
from agents.kernel_ddqn.kernel_config import KernelConfig
from agents.kernel_ddqn.kernel_ddqn import KernelDDQN
from agents.kernel_ddqn.policies import KernelDQNPolicy
from agents.kernel_ddqn.prior_network import check_model, copy_network, policy_arguments
from agents.kernel_ddqn.replay_kernel import ReplayKernel
from skrl.shapes import Tensor

KERNEL: dict[str, Any] = {"capacity": 8000, "sweeps": 15}
"""Settings in place of those of KernelConfig: the network stands still, so values can be backed up to their end."""

STEPS = 10_000
"""Environment steps to take when no number is given."""

EXPLORATION_RATE = 0.05
"""Probability of a random action when none is given."""

COPIES = 5
"""Copies of an environment that is given by its id."""

SHARE = 1 / 6
"""Share of the steps that each round explores for, and that each measurement takes at least."""

SHIFTS = 3
"""Times that the network's values are shifted after every choice of supports; each changes the targets of the next."""

Report = Callable[[int, float], None]


def attach_kernel_head(
    model: OffPolicyAlgorithm,
    env_or_buffer: GymEnv | str | ReplayBuffer,
    steps: int | None = None,
    *,
    kernel: KernelConfig | Mapping[str, Any] | None = None,
    n_steps: int = 30,
    exploration_rate: float | None = None,
    seed: int | None = None,
    report: Report | None = None,
) -> KernelDQNPolicy:
    """Correct a trained model's action values by a kernel over experience, without a gradient step.

    The network stands still as the prior mean, and the Bellman backup of the residuals is iterated through the kernel.
    With an environment the corrected policy goes on to collect: every round explores with the newest values, chooses
    supports anew and plays greedy episodes, which become experience too. What is returned did best in its greedy
    episodes, the network alone included. With a buffer there is one choice of supports and nothing is measured.

    Every value of the network is shifted by one constant, the median residual. No greedy action of the network changes,
    but an action without experience no longer beats a corrected one merely by what the network overestimates them all.

    Args:
        model: a trained DQN, DoubleDQN or QRDQN, whose mean over quantiles is taken, or a KernelDDQN, whose kernel is
            left behind. It is not changed, but where it learns on in the given environment it begins a new episode.
        env_or_buffer: an environment, which is reset, or its id for several copies of it, or a replay buffer of the
            model's spaces. Episodes should end; one that lasts longer than ``steps`` is cut, so that a measurement of
            endless ones takes as many of every copy. In VecNormalize ``norm_reward`` must be as in training, since the
            network's values have the scale of the rewards that it learned from: also where SB3 evaluates with
            ``norm_reward = False``, and where a model that is loaded without an environment cannot tell. A buffer is
            normalised as the model's own environment is: load the model with the one that it was trained in.
        steps: environment steps over all copies after which no further round begins, measurements included;
            10,000 when left out. Not for a buffer.
        kernel: settings of the kernel that differ from the defaults; a :class:`KernelConfig` is taken whole.
        n_steps: rewards summed before bootstrapping.
        exploration_rate: probability of a random action while exploring, 0.05 when left out. Not for a buffer.
        seed: of environment, exploration and choice of supports.
        report: called with the environment steps so far and a mean greedy return: the network's, then every round's.
            Not for a buffer.

    Returns:
        A greedy policy with ``predict`` and ``save``, loaded again by ``KernelDQNPolicy.load``. Observations of a model
        that was trained in VecNormalize must be normalised for it, as for the model's own policy.

    Raises:
        ConfigError: a setting of the kernel is unknown, of the wrong type or out of range.
        ValueError: the model is not of the DQN family or has no network; the environment or the buffer has other
            spaces; the environment is not normalised as the model's own is; the buffer is empty; or a number is out of
            range.
    """
    check_model(model)
    config = _kernel_config(kernel)
    if n_steps < 1:
        raise ValueError(f"n_steps is {n_steps}, but at least 1 reward must be summed; 10 to 30 did well")
    if isinstance(env_or_buffer, ReplayBuffer):
        _refuse_with_buffer(steps=steps, exploration_rate=exploration_rate, report=report)
        return _from_buffer(model, env_or_buffer, config, n_steps, seed)
    steps = STEPS if steps is None else steps
    exploration_rate = EXPLORATION_RATE if exploration_rate is None else exploration_rate
    if steps < 1:
        raise ValueError(f"steps is {steps}, but at least 1 environment step must be taken; leave it out for {STEPS:,}")
    if not 0.0 <= exploration_rate <= 1.0:
        raise ValueError(f"exploration_rate is {exploration_rate}, but must be a probability between 0 and 1")
    copies = make_vec_env(env_or_buffer, n_envs=COPIES, seed=seed) if isinstance(env_or_buffer, str) else None
    try:
        env = env_or_buffer if copies is None else copies
        collector = _collector(model, env, config, n_steps, 2 * steps, seed)
        collector.exploration_rate = exploration_rate
        assert collector.env is not None
        with frozen_statistics(collector.env), lent(model, collector.env):
            return _best_of_rounds(collector, steps, report or (lambda steps, mean_return: None))
    finally:
        if copies is not None:
            copies.close()


def _kernel_config(kernel: KernelConfig | Mapping[str, Any] | None) -> KernelConfig:
    config = KernelConfig.read(kernel, KERNEL)
    if config.head == "network_free":
        raise ValueError("kernel.head is 'network_free', which would leave the network out; take 'residual'")
    if config.applies_to == "targets":
        raise ValueError(
            "kernel.applies_to is 'targets', but nothing is trained here that would read one, and the policy would act "
            "by the network alone; take 'both' or 'acting'"
        )
    if config.bonus_fraction is not None:
        raise ValueError(
            f"kernel.bonus_fraction is {config.bonus_fraction}, but attaching is no training over which a bonus could "
            "fall; leave it out"
        )
    if config.refresh_interval != KernelConfig.refresh_interval:
        raise ValueError(
            f"kernel.refresh_interval is {config.refresh_interval}, but supports are chosen once in every round; leave "
            "it out"
        )
    return config


def _refuse_with_buffer(**given: object) -> None:
    for name, value in given.items():
        if value is not None:
            raise ValueError(
                f"{name} is {value}, but a replay buffer is read whole and nothing is played; "
                f"leave {name} out or give an environment"
            )


def _from_buffer(
    model: OffPolicyAlgorithm,
    buffer: ReplayBuffer,
    config: KernelConfig,
    n_steps: int,
    seed: int | None,
) -> KernelDQNPolicy:
    _check_spaces(model, buffer.observation_space, buffer.action_space, "replay buffer")
    if buffer.size() == 0:
        raise ValueError(
            "the replay buffer holds 0 transitions; a saved model is without its buffer, so load that by "
            "load_replay_buffer, or give an environment in its place"
        )
    assert isinstance(model.action_space, spaces.Discrete)
    policy = KernelDQNPolicy(
        model.observation_space, model.action_space, lambda _: 0.0, kernel=config, **policy_arguments(model)
    ).to(model.device)
    copy_network(model, policy)
    # A buffer of another model may put what it reads elsewhere.
    buffer = copy.copy(buffer)
    buffer.device = model.device
    view = ReplayView(buffer, n_steps, model.gamma, model.get_vec_normalize_env())
    _renew(ReplayKernel(policy.q_net, policy.q_net_target, view, numpy_generator(seed)))
    return policy


def _collector(
    model: OffPolicyAlgorithm, env: GymEnv | str, config: KernelConfig, n_steps: int, buffer_size: int, seed: int | None
) -> KernelDDQN:
    """The agent that plays: the model's network with an empty kernel."""
    collector = KernelDDQN(
        KernelDQNPolicy,
        env,
        kernel=config,
        policy_kwargs=policy_arguments(model),
        n_steps=n_steps,
        gamma=model.gamma,
        buffer_size=buffer_size,
        seed=seed,
        device=model.device,
    )
    _check_spaces(model, collector.observation_space, collector.action_space, "environment")
    assert collector.env is not None
    require_normalized(model, collector.env)
    require_same_rewards(model, collector.env)
    copy_network(model, collector.policy)
    return collector


def _best_of_rounds(collector: KernelDDQN, steps: int, report: Report) -> KernelDQNPolicy:
    """Explore, renew, measure, until the steps are taken; the policy as it was at its best measurement."""
    policy, share = collector.policy, math.ceil(steps * SHARE)
    renew = partial(_renew, collector._kernel())
    experience = Experience(collector, steps, int(collector.rng.integers(2**31)))
    best, state = experience.measure(share), _copied_state(policy)
    report(experience.steps, best)
    begun = False
    while experience.steps < steps or not begun:
        begun = True
        renew()
        experience.explore(share, renew)
        renew()
        mean_return = experience.measure(share)
        report(experience.steps, mean_return)
        if mean_return > best:
            best, state = mean_return, _copied_state(policy)
    policy.load_state_dict(state)
    # A DQN policy of SB3 is greedy however it is asked.
    policy.q_net.bonus = 0.0
    return policy


@torch.no_grad()
def _renew(kernel: ReplayKernel) -> None:
    """Choose supports and their residuals, and shift the network's values until those have a median near zero."""
    kernel.rebuild()
    memory = kernel.head.memory
    if not memory.mask.any():
        return
    for _ in range(SHIFTS):
        shift = memory.targets.squeeze(-1)[memory.mask].median()
        for network in (kernel.q_net, kernel.q_net_target):
            cast(torch.nn.Linear, network.layers[-1]).bias.add_(shift)
        kernel.rebase()
    # What all residuals had in common is gone, and there may be no other choice of supports to wait for.
    kernel.ridge.judge()
    if kernel.ridge.scale != float(kernel.head.ridge_scale):
        kernel.rebuild()


def _copied_state(policy: KernelDQNPolicy) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in policy.state_dict().items()}


def _check_spaces(
    model: OffPolicyAlgorithm, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], owner: str
) -> None:
    for what, theirs, own in (
        ("observations", observation_space, model.observation_space),
        ("actions", action_space, model.action_space),
    ):
        if theirs != own:
            raise ValueError(
                f"the {owner} has {what} in {theirs}, but the model was trained on {own}; give one of the same spaces"
            )
