"""Quantile policies whose action values, the means over their quantiles, a kernel head corrects."""

from __future__ import annotations

from sb3_contrib.qrdqn.policies import QRDQNPolicy, QuantileNetwork
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from agents.common.extractors import ReadsDicts, ReadsPictures
from agents.kernel_ddqn.kernel_network import KernelNetwork
from agents.kernel_ddqn.kernel_policy import KernelPolicy
from skrl.shapes import Float, Tensor


class KernelQuantileNetwork(KernelNetwork, QuantileNetwork):
    """:class:`QuantileNetwork` of sb3-contrib with a value head; arguments as in :class:`KernelNetwork`.

    The correction moves all quantiles of an action by R(s, a), so that their mean becomes m + R and their spread stays.
    """

    @property
    def layers(self) -> nn.Sequential:
        """Everything behind the features extractor."""
        return self.quantile_net

    def network_values(self, obs: PyTorchObs) -> Float[Tensor, "batch actions"]:
        """Action values that the network predicts, the means over its quantiles, [B, A]."""
        return QuantileNetwork.forward(self, obs).mean(dim=1)

    def forward(self, obs: PyTorchObs) -> Float[Tensor, "batch quantiles actions"]:
        """Quantiles, [B, N, A]: the network's in training mode, the corrected ones in evaluation mode."""
        quantiles = QuantileNetwork.forward(self, obs)
        if self.training or not self.corrects:
            return quantiles
        correction = self.head.correction(self.feature_map(obs))
        return quantiles + correction.unsqueeze(1).to(quantiles.dtype)


class KernelQRDQNPolicy(KernelPolicy, QRDQNPolicy):
    """:class:`QRDQNPolicy` of sb3-contrib with a kernel value head in the online and the target network.

    Works with sb3-contrib's own ``QRDQN`` too: add :class:`~agents.kernel_ddqn.callback.KernelRefreshCallback`.
    Arguments as in :class:`KernelPolicy`, and everything ``QRDQNPolicy`` takes.
    """

    quantile_net: KernelQuantileNetwork
    quantile_net_target: KernelQuantileNetwork

    @property
    def online(self) -> KernelQuantileNetwork:
        """The network that acts and learns."""
        return self.quantile_net

    @property
    def target(self) -> KernelQuantileNetwork:
        """The network that evaluates next states in targets."""
        return self.quantile_net_target

    def make_quantile_net(self) -> KernelQuantileNetwork:
        """One network with its head."""
        arguments = self._update_features_extractor(self.net_args, features_extractor=None)
        return KernelQuantileNetwork(kernel=self.kernel, **arguments).to(self.device)


class KernelQRDQNCnnPolicy(ReadsPictures, KernelQRDQNPolicy):
    """:class:`KernelQRDQNPolicy` for images: the features extractor is ``NatureCNN`` unless another is given."""


class KernelQRDQNMultiInputPolicy(ReadsDicts, KernelQRDQNPolicy):
    """:class:`KernelQRDQNPolicy` for dict observations: ``CombinedExtractor`` unless another extractor is given."""
