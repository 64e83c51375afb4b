"""Batches of observations of any space: tensors, and dicts of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from stable_baselines3.common.type_aliases import PyTorchObs

from skrl.shapes import Tensor


def is_reset_answer(observation: object) -> bool:
    """Whether this is what Gymnasium's ``reset`` returns, observation and info, of which SB3 says what is wrong."""
    return isinstance(observation, tuple) and len(observation) == 2 and isinstance(observation[1], dict)


def count(observations: PyTorchObs) -> int:
    """How many observations there are."""
    return len(next(iter(observations.values())) if isinstance(observations, dict) else observations)


def take(observations: PyTorchObs, rows: Tensor | slice) -> PyTorchObs:
    """Some of the observations, by position."""
    return _each(lambda part: part[rows], observations)


def joined(first: PyTorchObs, second: PyTorchObs) -> PyTorchObs:
    """One batch after the other, both of the same space."""
    if isinstance(first, dict) and isinstance(second, dict):
        return {key: torch.cat([values, second[key]]) for key, values in first.items()}
    assert isinstance(first, torch.Tensor)
    assert isinstance(second, torch.Tensor)
    return torch.cat([first, second])


def in_parts(function: Callable[[PyTorchObs], Tensor], observations: PyTorchObs, rows: int) -> Tensor:
    """What a function gives for every observation, computed for ``rows`` of them at a time."""
    starts = range(0, count(observations), rows)
    return torch.cat([function(take(observations, slice(start, start + rows))) for start in starts])


def _each(function: Callable[[Tensor], Tensor], observations: PyTorchObs) -> PyTorchObs:
    if isinstance(observations, dict):
        return {key: function(values) for key, values in observations.items()}
    return function(observations)
