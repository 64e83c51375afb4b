"""Double DQN with a kernel value head, and its network-free sibling."""

from agents.kernel_ddqn.attach import attach_kernel_head
from agents.kernel_ddqn.callback import KernelRefreshCallback
from agents.kernel_ddqn.kernel_config import KernelConfig
from agents.kernel_ddqn.kernel_ddqn import KernelDDQN
from agents.kernel_ddqn.kernel_q import KernelQ
from agents.kernel_ddqn.policies import KernelCnnPolicy, KernelDQNPolicy, KernelMultiInputPolicy

__all__ = [
    "KernelCnnPolicy",
    "KernelConfig",
    "KernelDDQN",
    "KernelDQNPolicy",
    "KernelMultiInputPolicy",
    "KernelQ",
    "KernelRefreshCallback",
    "attach_kernel_head",
]
