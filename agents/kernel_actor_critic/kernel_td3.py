"""Twin delayed policy gradients with a kernel behind the target critics."""

from __future__ import annotations

from stable_baselines3 import TD3
from stable_baselines3.common.type_aliases import PyTorchObs

from agents.kernel_actor_critic.kernel_off_policy import KernelOffPolicy
from skrl.shapes import Float, Tensor


class KernelTD3(KernelOffPolicy, TD3):
    """TD3 whose targets a local regression of Bellman residuals over replayed state–action pairs corrects.

    S. Fujimoto, H. van Hoof and D. Meger, *Addressing Function Approximation Error in Actor-Critic Methods*, 2018, as
    Stable-Baselines3 has it. Takes every argument of :class:`stable_baselines3.TD3`, and ``kernel`` of
    :class:`KernelOffPolicy`.
    """

    def _next_actions(self, observations: PyTorchObs) -> tuple[Float[Tensor, "batch actions"], Float[Tensor, " batch"]]:
        actions = self.actor_target(observations)
        return actions, actions.new_zeros(len(actions))

    def _entropy_weight(self) -> Tensor | float:
        return 0.0
