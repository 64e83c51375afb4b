"""Support memories, and the rules that choose what they hold."""

from skrl.memory.support_memory import SupportMemory

__all__ = ["SupportMemory"]
