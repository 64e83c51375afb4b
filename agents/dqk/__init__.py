"""Double DQN whose network is perturbed by learned Sparse Kernels."""

from agents.dqk.dqk import DQK
from agents.dqk.perturbation_config import PerturbationConfig
from agents.dqk.policies import DQKCnnPolicy, DQKMultiInputPolicy, DQKPolicy

__all__ = ["DQK", "DQKCnnPolicy", "DQKMultiInputPolicy", "DQKPolicy", "PerturbationConfig"]
