"""Quantile regression DQN with Sparse Kernels; needs sb3-contrib."""

from agents.kernel_qrdqn.kernel_qrdqn import KernelQRDQN
from agents.kernel_qrdqn.policies import KernelQRDQNCnnPolicy, KernelQRDQNMultiInputPolicy, KernelQRDQNPolicy

__all__ = ["KernelQRDQN", "KernelQRDQNCnnPolicy", "KernelQRDQNMultiInputPolicy", "KernelQRDQNPolicy"]
