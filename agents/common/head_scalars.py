"""What TensorBoard shows of a value head, under the same names for every agent."""

from __future__ import annotations

from skrl.value_heads import ValueHead


def head_scalars(head: ValueHead) -> dict[str, float]:
    """Figures of a head by name, to be written as ``kernel/NAME``; reading them waits for an accelerator."""
    memory = head.memory
    return {
        "supports": float(memory.sizes.sum()),
        "lengthscale": float(head.lengthscale),
        "residual_abs_mean": float(memory.targets.abs().sum() / memory.sizes.sum().clamp(min=1)),
        "fallbacks": float(head.fallbacks),
        "jitters": float(head.jitters),
    }
