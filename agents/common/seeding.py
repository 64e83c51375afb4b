"""Generators of our own, seeded where SB3 seeds its own."""

from __future__ import annotations

import numpy as np
import torch


def numpy_generator(seed: int | None) -> np.random.Generator:
    """A generator with its own state.

    Args:
        seed: None for a draw of NumPy's global generator, which `set_random_seed` of SB3 seeds: scripts that seed once
            and for all repeat then too.
    """
    if seed is None:
        seed = np.random.randint(2**31)  # noqa: NPY002
    return np.random.default_rng(seed)


def seeded(generator: torch.Generator, rng: np.random.Generator) -> torch.Generator:
    """The same generator of PyTorch, which begins anew with a draw of one of NumPy's."""
    return generator.manual_seed(int(rng.integers(2**62)))
