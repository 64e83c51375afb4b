"""Set-up of every test: one thread, fixed seeds, and shape annotations that are enforced.

The package annotates shapes (``Float[Tensor, "batch neighbors"]``) and never checks them at run time. Here an import
hook wraps every annotated function with a checker, so a wrong shape, or a wrong annotation, fails a test.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by BLAS when it loads, hence before every other import

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read by Triton when it loads: it then runs kernels on a CPU

UNCHECKED = {
    "__init__",
    "compiling",
    "compiled_search",
    "compiled_solve",
    "compiled_screen",
    "cuda_graph",
    "fused_kernels",
    "modes",
    "compiled_kernels",
    "compiled_gradient",
}
"""Modules of skrl without shape annotations; numba must see the plain functions of the compiled ones."""

CHECKED = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted((ROOT / "skrl").rglob("*.py"))
    if path.stem not in UNCHECKED
]
CHECKED.append("agents.common.targets")

if too_early := set(CHECKED) & set(sys.modules):
    raise RuntimeError(f"imported before its shape annotations could be enforced: {', '.join(sorted(too_early))}")
# The hook looks modules up on sys.path; an editable installation may announce them elsewhere.
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
jaxtyping.install_import_hook(CHECKED, "beartype.beartype")

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    """Every test draws the same numbers, alone or in company."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  (what libraries draw from the global generator is fixed too)
    torch.manual_seed(0)


@pytest.fixture
def without_shape_checks() -> Iterator[None]:
    """Call functions as users do, without the checker, to see our own errors for wrong shapes."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
