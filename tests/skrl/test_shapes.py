"""The shape checker itself, and life without it."""

from __future__ import annotations

import os
import subprocess
import sys

import jaxtyping
import pytest
import torch

from skrl import sparse_kernel
from skrl.functional import make_support

WITHOUT_EXTRAS = """
import sys
sys.modules["jaxtyping"] = sys.modules["numba"] = None
"""
USE = """
import torch
import skrl
head = skrl.ResidualHead(actions=1, capacity=2, feature_dim=1, k=2, ridge=1.0)
head.memory.write(torch.zeros(1, 2, 1), torch.tensor([1]), torch.ones(1, 2, 1))
assert head.correction(torch.zeros(1, 1)).tolist() == [[0.5]]
assert skrl.sparse_kernel(torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1, 1), ridge=1.0).mean.tolist() == [[0.5]]
"""
NOTHING_FOREIGN = """
foreign = {"stable_baselines3", "gymnasium", "agents", "envs"} & set(sys.modules)
assert not foreign, foreign
"""


def run(program: str, **environment: str) -> None:
    """In a process of its own, which has to end well."""
    outcome = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 0, outcome.stderr


def test_a_wrong_shape_fails_in_tests() -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        sparse_kernel(torch.zeros(1, 2), torch.zeros(4, 3), torch.zeros(4, 1))


def test_a_wrong_dtype_fails_in_tests() -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        make_support(torch.zeros(4, 2, dtype=torch.long), 1.0)


def test_core_needs_torch_alone() -> None:
    run(WITHOUT_EXTRAS + USE + NOTHING_FOREIGN)


def test_core_works_with_numba_switched_off() -> None:
    run(USE + "assert not skrl.compiling.AVAILABLE", NUMBA_DISABLE_JIT="1")
