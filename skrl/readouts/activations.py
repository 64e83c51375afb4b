"""What a frozen network computes on its way: batches through a backbone, hooks on its modules, pooling."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from skrl.shapes import Float, Tensor

Pooling = Literal["mean", "flatten"] | Callable[[Tensor], Tensor]
"""How activations become rows: averaged over positions, flattened, or by a function to [B, d]."""


class _HeadReached(Exception):  # noqa: N818  (a signal, not an error)
    """Ends a forward pass at the module whose input is wanted."""


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; each module's own mode is restored afterwards, whatever happens."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def recorded_outputs(modules: Mapping[str, nn.Module], read: Callable[[Any], Any]) -> Iterator[dict[str, Any]]:
    """What is read from the outputs of named modules, by name, overwritten by every call; no hook outlives the block.

    Args:
        modules: modules by name.
        read: what to keep of an output. It is called at once, since a later module may work in place.
    """
    outputs: dict[str, Any] = {}

    def recorder(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def record(_module: nn.Module, _inputs: Any, output: Any) -> None:
            outputs[name] = read(output)

        return record

    handles = [module.register_forward_hook(recorder(name)) for name, module in modules.items()]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def pooled(activation: Tensor, pooling: Pooling = "mean") -> Float[Tensor, "batch dim"]:
    """Activations as rows, [B, d].

    Args:
        activation: [B, d], tokens [B, T, C], or maps [B, C, H, W] and [B, C, D, H, W].
        pooling: ``mean`` averages over tokens or positions, ``flatten`` keeps them all; a function is for other
            layouts, such as the [B, C, L] of one-dimensional convolutions.

    Raises:
        ValueError: the pooling is unknown, or the function gave no rows.
    """
    if callable(pooling):
        rows = pooling(activation)
        if rows.dim() != 2 or len(rows) != len(activation):
            raise ValueError(
                f"pooling made shape {tuple(rows.shape)} of {tuple(activation.shape)}, but must give "
                f"[{len(activation)}, features]"
            )
        return rows
    if pooling not in ("mean", "flatten"):
        raise ValueError(f"pooling is {pooling!r}, but must be 'mean', 'flatten' or a function to [batch, features]")
    if pooling == "flatten" or activation.dim() <= 2:
        return activation.reshape(len(activation), -1)
    return activation.mean(1) if activation.dim() == 3 else activation.flatten(2).mean(-1)


def batches(loader: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """Pairs (x, y) of a loader.

    Raises:
        ValueError: a batch is not a pair, or there is none.
    """
    found = False
    for batch in loader:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            size = f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
            raise ValueError(f"a batch is a {type(batch).__name__}{size}, but must be a pair (x, y)")
        found = True
        yield batch[0], batch[1]
    if not found:
        raise ValueError("the loader gave no batch; give it data, or a fresh iterator if it was used up")


def device_of(model: nn.Module | None) -> torch.device | None:
    """Where the first parameter of a model lives; none without parameters."""
    parameter = None if model is None else next(model.parameters(), None)
    return None if parameter is None else parameter.device


def collect_features(
    loader: Iterable[Any],
    backbone: nn.Module | None = None,
    device: torch.device | str | None = None,
    head: nn.Module | None = None,
) -> tuple[Tensor, Any]:
    """Features and targets of all batches, through a frozen backbone.

    Args:
        loader: batches (x, y).
        backbone: maps x to features; x itself when left out.
        device: where batches go; the backbone's own device when left out.
        head: a part of the backbone whose input are the features; the backbone's output when it is no part of it.

    Returns:
        Features, [n, …], and targets, [n, …], a tensor but for text, which is an array.

    Raises:
        ValueError: a batch is not a pair, there is none, or the backbone never reaches the head.
    """
    target_device = device or device_of(backbone)
    features, targets = [], []
    inside = backbone is not None and head is not None and any(module is head for module in backbone.modules())
    with torch.no_grad(), evaluation_mode(backbone or nn.Identity()):
        for x, y in batches(loader):
            x = torch.as_tensor(x, device=target_device)
            if backbone is None:
                features.append(x)
            else:
                features.append(_input_of(head, backbone, x) if inside and head is not None else backbone(x))
            targets.append(y)
    return torch.cat(features), joined_targets(targets)


def joined_targets(parts: Sequence[Any]) -> Any:
    """Targets of all batches: a tensor, [n, …], or, where they are text, an array."""
    if all(isinstance(part, Tensor) for part in parts):
        return torch.cat(list(parts))
    arrays = [part.cpu().numpy() if isinstance(part, Tensor) else np.asarray(part) for part in parts]
    joined = np.concatenate(arrays)
    return joined if joined.dtype.kind in "OSU" else torch.from_numpy(joined)


def _input_of(head: nn.Module, backbone: nn.Module, x: Any) -> Tensor:
    """What reaches a module of the backbone; the forward pass ends there."""
    seen: list[Tensor] = []

    def stop(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0])
        raise _HeadReached

    handle = head.register_forward_pre_hook(stop)
    try:
        backbone(x)
    except _HeadReached:
        return seen[0]
    finally:
        handle.remove()
    raise ValueError(f"the backbone contains this {type(head).__name__}, but its forward pass never reaches it")
