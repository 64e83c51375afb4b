"""Layers that answer otherwise while their network learns, in evaluation mode for a while."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

FOLLOWERS = (
    nn.modules.batchnorm._NormBase,
    nn.modules.dropout._DropoutNd,
    nn.MultiheadAttention,
    nn.RNNBase,
    nn.RReLU,
)
"""Layers of torch whose answers depend on the mode; the first of them learn from what they see in training mode."""


def mode_dependent(network: nn.Module) -> list[nn.Module]:
    """Those layers of a network whose answers depend on the mode; most networks have none."""
    return [module for module in network.modules() if isinstance(module, FOLLOWERS)]


def running_statistics(layers: Sequence[nn.Module]) -> list[Tensor]:
    """What layers of a network have learned from the batches that they saw in training mode; they go on in place."""
    normalising = [layer for layer in layers if isinstance(layer, nn.modules.batchnorm._NormBase)]
    return [statistic for layer in normalising for statistic in layer.buffers(recurse=False)]


@contextmanager
def in_evaluation_mode(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Evaluate by given layers, and have those learn again that did; the network around them stays in its mode."""
    learning = [layer for layer in layers if layer.training]
    try:
        for layer in learning:
            layer.training = False
        yield
    finally:
        for layer in learning:
            layer.training = True
