"""PPO with a kernel-corrected critic."""

from agents.kernel_ppo.critic_config import CriticConfig
from agents.kernel_ppo.kernel_ppo import KernelPPO

__all__ = ["CriticConfig", "KernelPPO"]
