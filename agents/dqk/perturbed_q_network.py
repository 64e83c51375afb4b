"""A Q-network whose last hidden layer and whose output a learned Sparse Kernel over observations perturbs."""

from __future__ import annotations

from typing import Any

import torch
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.dqn.policies import QNetwork
from torch import nn

from agents.common.feature_map import FeatureMap
from agents.common.features import ObservationFeatures
from agents.dqk.perturbation_config import PerturbationConfig
from skrl import SparseKernel, neighbor_lengthscale
from skrl.shapes import Float, Tensor


class PerturbedQNetwork(QNetwork):
    """Q(s) = θ₃ · relu(θ₂ h(s) + SK₁(s)) + SK₃(s), with supports and targets of both kernels learned.

    One set of supports carries the targets of both kernels, so that one search and one solve serve both. h(s) is
    everything before the last hidden layer; without a hidden layer SK₁ has nothing to perturb. Until
    :meth:`place_supports` has run, and right after the first time, targets are zero and so are both perturbations.

    Args:
        kernel: settings of the kernel.
        **kwargs: everything :class:`stable_baselines3.dqn.policies.QNetwork` takes.
    """

    is_placed: Tensor

    def __init__(self, *, kernel: PerturbationConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kernel = kernel
        observation = ObservationFeatures(self.observation_space, kernel.projection_dim, self.normalize_images)
        self.feature_map = FeatureMap(observation, None)
        # Behind the last hidden layer come its activation and the output.
        hidden = [self.net_arch[-1]] if self.net_arch else []
        self.widths = [*hidden, int(self.action_space.n)]
        self.perturbation = SparseKernel(
            nn.Parameter(torch.zeros(kernel.capacity, self.feature_map.dim)),
            nn.Parameter(torch.zeros(kernel.capacity, sum(self.widths))),
            kernel=kernel.kernel,
            k=kernel.k,
            lengthscale=1.0,
            ridge=kernel.ridge,
            localisation=kernel.localisation,
        )
        self.register_buffer("is_placed", torch.zeros((), dtype=torch.bool))

    def forward(self, obs: PyTorchObs) -> Float[Tensor, "batch actions"]:
        """Action values, [B, A]."""
        # The kernel refuses what is not finite; the network makes it a loss that is not, which the algorithm skips.
        features = self.feature_map(obs).nan_to_num(0.0, 0.0, 0.0)
        # No gradient either before supports are placed, so that none moves what is placed later.
        perturbations = (self.perturbation(features) * self.is_placed).split(self.widths, dim=1)
        values: Tensor = self.extract_features(obs, self.features_extractor)
        if len(perturbations) > 1:
            values = self.q_net[:-2](values) + perturbations[0]
            values = self.q_net[-2:](values)
        else:
            values = self.q_net(values)
        corrected: Tensor = values + perturbations[-1]
        return corrected

    @torch.no_grad()
    def place_supports(self, observations: PyTorchObs) -> None:
        """Take the features of given observations as supports, and what the kernels have said there as their targets.

        The first time these are zero. The lengthscale is ``lengthscale_factor`` times the median distance from a
        support to its k-th neighbour.

        Args:
            observations: as many as there are supports, [M, ...].

        Raises:
            ValueError: they are more or fewer.
        """
        raw = self.feature_map.raw(observations)
        if len(raw) != self.kernel.capacity:
            raise ValueError(f"{len(raw)} observations for {self.kernel.capacity} supports; give one for each")
        finite = raw.isfinite().all(1)
        # In place of what is not finite stands the mean of the others.
        raw = torch.where(finite.unsqueeze(1), raw, raw[finite].mean(0) if finite.any() else 0.0)
        known = self.perturbation(self.feature_map.standardise(raw)) * self.is_placed
        self.feature_map.fit(raw)
        supports, kernel = self.feature_map.standardise(raw), self.perturbation
        assert kernel.features is not None
        assert kernel.targets is not None
        assert kernel.lengthscale is not None
        kernel.features.copy_(supports)
        kernel.targets.copy_(known)
        k = min(self.kernel.k, len(supports) - 1)
        kernel.lengthscale.copy_(neighbor_lengthscale(supports, k, self.kernel.lengthscale_factor))
        self.is_placed.fill_(True)

    @property
    @torch.no_grad()
    def scalars(self) -> dict[str, float]:
        """Figures of the kernel, to be written as ``kernel/NAME``; reading them waits for an accelerator."""
        kernel = self.perturbation
        assert kernel.targets is not None
        assert kernel.lengthscale is not None
        output = kernel.targets[:, -self.widths[-1] :]
        hidden = kernel.targets[:, : -self.widths[-1]]
        return {
            "supports": float(len(kernel.targets)),
            "lengthscale": float(kernel.lengthscale),
            "hidden_targets_abs_mean": float(hidden.abs().mean()) if hidden.numel() else 0.0,
            "output_targets_abs_mean": float(output.abs().mean()),
        }

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "kernel": self.kernel}
