"""What TensorBoard shows of a value head, under the same names for every agent."""

from __future__ import annotations

from skrl.value_heads import ValueHead


def head_scalars(head: ValueHead, *copies: ValueHead) -> dict[str, float]:
    """Figures of a head by name, to be written as ``kernel/NAME``; reading them waits for an accelerator.

    Args:
        head: the head.
        *copies: heads with the same supports, whose queries count as well.
    """
    memory = head.memory
    return {
        "supports": float(memory.sizes.sum()),
        "lengthscale": float(head.lengthscale),
        "residual_abs_mean": float(memory.targets.abs().sum() / memory.sizes.sum().clamp(min=1)),
        "fallbacks": float(sum(asked.fallbacks for asked in (head, *copies))),
        "jitters": float(sum(asked.jitters for asked in (head, *copies))),
    }
