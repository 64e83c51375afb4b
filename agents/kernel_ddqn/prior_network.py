"""The network of a trained model as the prior mean of a kernel head."""

from __future__ import annotations

from typing import Any

import torch
from stable_baselines3 import DQN
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork

from agents.kernel_ddqn.kernel_network import state_without_head
from agents.kernel_ddqn.policies import KernelDQNPolicy, KernelQNetwork
from skrl.shapes import Tensor
from skrl.value_heads import NetworkFreeHead

NOT_OF_A_KERNEL_POLICY = ("observation_space", "action_space", "lr_schedule", "n_quantiles", "kernel")
QUANTILE_NETWORKS = (
    "sb3_contrib.qrdqn.policies.QuantileNetwork",
    "agents.kernel_qrdqn.policies.KernelQuantileNetwork",
)
"""Networks whose weights can be read, by name, since sb3_contrib need not be installed."""


def check_model(model: BaseAlgorithm) -> None:
    """Make sure that a model's network gives action values that a kernel can correct.

    Raises:
        ValueError: the model is not of the DQN family, has no network, or one of another form than SB3's.
    """
    name = type(model).__name__
    if not isinstance(model, DQN) and not _has_quantiles(model):
        raise ValueError(
            f"{name} has no action values to correct; attach a kernel to DQN, DoubleDQN or KernelDDQN, or to QRDQN of "
            "sb3_contrib"
        )
    if _has_quantiles(model):
        _check_quantile_network(model.policy.quantile_net)
        return
    network = model.policy.q_net if isinstance(model.policy, DQNPolicy) else None
    if type(network) not in (QNetwork, KernelQNetwork):
        raise ValueError(
            f"the network is a {type(network).__name__}, but its weights can be read from SB3's QNetwork only; train "
            "with 'MlpPolicy', 'CnnPolicy' or 'MultiInputPolicy'"
        )
    if isinstance(network, KernelQNetwork) and isinstance(network.head, NetworkFreeHead):
        raise ValueError(f"{name} has a kernel and no network; there is nothing to attach another kernel to")


def policy_arguments(model: BaseAlgorithm) -> dict[str, Any]:
    """Arguments of a :class:`KernelDQNPolicy` with the same network, without spaces, step size and kernel."""
    arguments = model.policy._get_constructor_parameters()
    return {name: value for name, value in arguments.items() if name not in NOT_OF_A_KERNEL_POLICY}


@torch.no_grad()
def copy_network(model: BaseAlgorithm, policy: KernelDQNPolicy) -> None:
    """Give online and target network of a policy the weights of a model's online network; both heads stay."""
    weights = _mean_of_quantiles(model) if _has_quantiles(model) else _weights(model)
    for network in (policy.q_net, policy.q_net_target):
        network.load_state_dict({**network.state_dict(), **weights})


def _has_quantiles(model: BaseAlgorithm) -> bool:
    """Whether the model is a QR-DQN; asked of the policy, since sb3_contrib need not be installed."""
    return hasattr(model.policy, "quantile_net")


def _check_quantile_network(network: Any) -> None:
    kind = type(network)
    if f"{kind.__module__}.{kind.__qualname__}" not in QUANTILE_NETWORKS:
        raise ValueError(
            f"the network is a {kind.__name__}, but its weights can be read from the QuantileNetwork of sb3_contrib "
            "only; train with 'MlpPolicy', 'CnnPolicy' or 'MultiInputPolicy'"
        )


def _weights(model: BaseAlgorithm) -> dict[str, Tensor]:
    return state_without_head(model.policy.q_net)


def _mean_of_quantiles(model: BaseAlgorithm) -> dict[str, Tensor]:
    """Weights of the network whose values are the means of the quantiles: the mean commutes with the last layer."""
    network: Any = model.policy.quantile_net
    last = f"quantile_net.{len(network.quantile_net) - 1}."
    weights: dict[str, Tensor] = {}
    for name, value in state_without_head(network).items():
        mean = value.view(network.n_quantiles, -1, *value.shape[1:]).mean(0) if name.startswith(last) else value
        weights[name.replace("quantile_net.", "q_net.", 1)] = mean
    return weights
