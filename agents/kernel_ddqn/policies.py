"""Deep Q-network policies whose action values a kernel head corrects."""

from __future__ import annotations

from typing import cast

from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from torch import nn

from agents.common.extractors import ReadsDicts, ReadsPictures
from agents.kernel_ddqn.kernel_network import KernelNetwork
from agents.kernel_ddqn.kernel_policy import KernelPolicy
from skrl.shapes import Float, Tensor


class KernelQNetwork(KernelNetwork, QNetwork):
    """SB3's :class:`QNetwork` with a value head; arguments as in :class:`KernelNetwork`."""

    @property
    def layers(self) -> nn.Sequential:
        """Everything behind the features extractor."""
        return self.q_net

    def network_values(self, obs: PyTorchObs) -> Float[Tensor, "batch actions"]:
        """Action values that the network predicts, [B, A]."""
        return QNetwork.forward(self, obs)

    def forward(self, obs: PyTorchObs) -> Float[Tensor, "batch actions"]:
        """Action values, [B, A]: the network's in training mode, the corrected ones in evaluation mode."""
        q_values = self.prior_mean(obs)
        if self.training or not self.corrects:
            return q_values
        return cast(Tensor, self.head(self.feature_map(obs), q_values))


class KernelDQNPolicy(KernelPolicy, DQNPolicy):
    """SB3's :class:`DQNPolicy` with a kernel value head in the online and the target network.

    Works with SB3's own ``DQN`` too: add :class:`~agents.kernel_ddqn.callback.KernelRefreshCallback`, which keeps the
    memory fresh. Without it the memory stays empty and the policy behaves exactly as ``DQNPolicy``. Once it has been
    filled, learning on needs the callback too, or R stays as it is while the network learns it, and counts twice.
    Arguments as in :class:`KernelPolicy`, and everything ``DQNPolicy`` takes.
    """

    q_net: KernelQNetwork
    q_net_target: KernelQNetwork

    @property
    def online(self) -> KernelQNetwork:
        """The network that acts and learns."""
        return self.q_net

    @property
    def target(self) -> KernelQNetwork:
        """The network that evaluates next states in targets."""
        return self.q_net_target

    def make_q_net(self) -> KernelQNetwork:
        """One network with its head."""
        arguments = self._update_features_extractor(self.net_args, features_extractor=None)
        return KernelQNetwork(kernel=self.kernel, **arguments).to(self.device)


class KernelCnnPolicy(ReadsPictures, KernelDQNPolicy):
    """:class:`KernelDQNPolicy` for images: the features extractor is ``NatureCNN`` unless another is given."""


class KernelMultiInputPolicy(ReadsDicts, KernelDQNPolicy):
    """:class:`KernelDQNPolicy` for dict observations: ``CombinedExtractor`` unless another extractor is given."""
