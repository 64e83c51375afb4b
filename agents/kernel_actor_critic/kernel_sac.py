"""Soft actor–critic with a kernel behind its target critics."""

from __future__ import annotations

import torch
from stable_baselines3 import SAC
from stable_baselines3.common.type_aliases import PyTorchObs

from agents.kernel_actor_critic.kernel_off_policy import KernelOffPolicy
from skrl.shapes import Float, Tensor


class KernelSAC(KernelOffPolicy, SAC):
    """SAC whose targets a local regression of Bellman residuals over replayed state–action pairs corrects.

    T. Haarnoja et al., *Soft Actor-Critic Algorithms and Applications*, 2018, as Stable-Baselines3 has it. Takes every
    argument of :class:`stable_baselines3.SAC`, and ``kernel`` of :class:`KernelOffPolicy`.
    """

    def _next_actions(self, observations: PyTorchObs) -> tuple[Float[Tensor, "batch actions"], Float[Tensor, " batch"]]:
        actions, log_probabilities = self.actor.action_log_prob(observations)
        return actions, log_probabilities.reshape(-1)

    def _entropy_weight(self) -> Tensor | float:
        learned = self.log_ent_coef
        return self.ent_coef_tensor if learned is None else torch.exp(learned.detach())
