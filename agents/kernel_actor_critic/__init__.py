"""Actor–critics for continuous actions with a kernel behind their target critics."""

from agents.kernel_actor_critic.action_kernel_config import ActionKernelConfig
from agents.kernel_actor_critic.kernel_sac import KernelSAC
from agents.kernel_actor_critic.kernel_td3 import KernelTD3

__all__ = ["ActionKernelConfig", "KernelSAC", "KernelTD3"]
