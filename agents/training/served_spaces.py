"""What observation and action spaces no agent can serve, and which network fits those that one can."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space

from agents.common.schema import ConfigError

OBSERVATION_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
"""Those without parts; a Dict of them is served too."""

LEAST_PIXELS = 36
"""Side of the smallest picture of which anything is left behind the convolutions of Stable-Baselines3."""

TOO_SMALL = f"is a picture with less than the {LEAST_PIXELS} x {LEAST_PIXELS} pixels that convolutions need"


def fitting_policy(policy: str, observation_space: spaces.Space[Any]) -> str:
    """Alias of the policy for an observation space: dict, image or anything that flattens to a vector.

    Args:
        policy: alias wished for, or `auto`.
        observation_space: what the environment shows.

    Returns:
        Alias that the algorithm takes.

    Raises:
        ConfigError: the policy that was wished for cannot read such observations.
    """
    fitting = ["CnnPolicy", "MlpPolicy"] if _fits_convolutions(observation_space) else ["MlpPolicy"]
    fitting = ["MultiInputPolicy"] if isinstance(observation_space, spaces.Dict) else fitting
    if policy not in ("auto", *fitting):
        small = f"; it {TOO_SMALL}" if is_image_space(observation_space) and len(fitting) == 1 else ""
        raise ConfigError(
            f"policy is '{policy}', but {observation_space} needs {' or '.join(fitting)} (or auto){small}"
        )
    return fitting[0] if policy == "auto" else policy


def observation_fault(space: spaces.Space[Any]) -> str | None:
    """What keeps networks from reading such observations, with a remedy, or None."""
    if not isinstance(space, spaces.Dict):
        return f"it {fault}" if (fault := _fault(space)) else None
    for key, part in space.spaces.items():
        if fault := _fault(part):
            return f"its entry '{key}' {fault}"
        if is_image_space(part) and not _fits_convolutions(part):
            return f"its entry '{key}' {TOO_SMALL}; enlarge it, or show it as floating-point numbers"
    return None if space.spaces else "it has no entry; give it one at least"


def action_fault(space: spaces.Space[Any]) -> str | None:
    """What keeps agents that take spaces of this class from acting in one, with a remedy, or None."""
    fault = _fault_of_numbers(space)
    if isinstance(space, spaces.Box) and not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        fault = "has no finite bounds; give it some, for example with gymnasium.wrappers.TransformAction"
    elif isinstance(space, spaces.Box) and not np.issubdtype(space.dtype, np.floating):
        fault = (
            "holds whole numbers, to which buffers would cut what is drawn from a distribution; wrap it into one of "
            "floating-point numbers, for example with gymnasium.wrappers.TransformAction"
        )
    if isinstance(space, spaces.MultiBinary) and len(space.shape) != 1:
        fault = "is no vector; flatten it"
    return f"it {fault}" if fault else None


def _fault(space: spaces.Space[Any]) -> str | None:
    if not isinstance(space, OBSERVATION_SPACES):
        return (
            f"is a {type(space).__name__}; wrap it into a Box, or into a Dict without another in it, for example with "
            "gymnasium.wrappers.FlattenObservation"
        )
    if isinstance(space, spaces.Box) and not space.shape:
        return "is a bare number; show it as a vector, of shape (1,)"
    return _fault_of_numbers(space)


def _fault_of_numbers(space: spaces.Space[Any]) -> str | None:
    if isinstance(space, spaces.Box) and 0 in space.shape:
        return "holds no number; give it one at least"
    if isinstance(space, spaces.MultiDiscrete) and len(space.shape) != 1:
        return "is no vector; flatten it"
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete) and np.any(space.start != 0):
        return f"counts from {space.start}, but must count from 0; wrap it"
    return None


def _fits_convolutions(space: spaces.Space[Any]) -> bool:
    """Whether observations are pictures that Stable-Baselines3's convolutions can take."""
    if not is_image_space(space):
        return False
    assert space.shape is not None
    # As Stable-Baselines3 guesses: channels are first where that is the smallest side, and else last.
    sides = space.shape[1:] if np.argmin(space.shape) == 0 else space.shape[:2]
    return min(sides) >= LEAST_PIXELS
