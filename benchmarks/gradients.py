"""Forward and backward pass of a learned Sparse Kernel on a CPU, by compiled loops against plain torch operations.

python benchmarks/gradients.py
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from local_solve_timing import Times, interleave
from shown_command import shown_command

from agents.common.atomic_save import write_text
from agents.training.provenance import commit, machine, versions
from skrl import SparseKernel, compiling, functional
from skrl.kernels import Kernel
from skrl.search.neighbors import Localisation
from skrl.solve.differentiable import carries_gradients


@dataclass(frozen=True)
class Shape:
    """One problem: M supports with c targets in d dimensions, B queries, k neighbours."""

    what: str
    supports: int
    queries: int
    dim: int
    targets: int
    k: int
    localisation: Localisation = "hard"


SHAPES = (
    Shape("layer of dqk", 256, 128, 4, 258, 16, "continuous"),
    Shape("small regression", 1_000, 256, 8, 1, 16),
    Shape("regression", 10_000, 1_024, 8, 1, 32),
    Shape("wide features", 10_000, 1_024, 64, 10, 32),
    Shape("many queries", 2_000, 20_000, 8, 1, 16),
)


@dataclass(frozen=True)
class Gradients:
    """What to time; both sides in alternation, medians over rounds."""

    rounds: int = 15
    """Samples of each side, at most."""

    seconds: float = 20.0
    """No further round of a shape begins after this time."""

    threads: int = 1
    """Threads of torch."""

    results: Path = Path(__file__).resolve().parent / "results"
    """Where gradients.md is written."""


def timed(shape: Shape, rounds: int, seconds: float) -> Times:
    """Seconds of a forward and a backward pass, all of supports, targets, lengthscale and ridge being learned.

    Raises:
        RuntimeError: both sides are the same code, or have other gradients.
    """
    torch.manual_seed(0)
    queries = torch.randn(shape.queries, shape.dim)
    supports, targets = torch.randn(shape.supports, shape.dim), torch.randn(shape.supports, shape.targets)
    module = SparseKernel(
        torch.nn.Parameter(supports), torch.nn.Parameter(targets), k=shape.k, lengthscale=1.0, ridge=0.1,
        localisation=shape.localisation, learn_kernel=True,
    )  # fmt: skip

    asked = [0, 0]

    def side(is_compiled: bool) -> Callable[[int], float]:
        def chosen(kernel: Kernel, points: torch.Tensor) -> bool:
            asked[is_compiled] += 1
            return is_compiled

        def call(_: int) -> float:
            functional.carries_gradients = chosen  # type: ignore[attr-defined]  # imported there
            module.zero_grad()
            module(queries).square().mean().backward()
            return 0.0

        return call

    ours, rival = side(True), side(False)
    earlier, gradients = [], []
    try:
        for call in (ours, rival):
            call(0)
            gradients.append([each.grad.clone() for each in module.parameters() if each.grad is not None])
            started = time.perf_counter()
            call(0)
            earlier.append(time.perf_counter() - started)
        if not all(asked):
            raise RuntimeError(
                "skrl.functional no longer asks carries_gradients, by which this script chooses the side"
            )
        for mine, theirs in zip(*gradients, strict=True):
            if not torch.allclose(mine, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max())):
                raise RuntimeError(f"{shape.what}: gradients differ by {float((mine - theirs).abs().max()):.2g}")
        return interleave(ours, rival, rounds, seconds, (earlier[0], earlier[1]))
    finally:
        functional.carries_gradients = carries_gradients  # type: ignore[attr-defined]


def main(argv: Sequence[str]) -> int:
    """Time every shape and write the table."""
    settings = tyro.cli(Gradients, description=__doc__, args=argv)
    if not compiling.AVAILABLE:
        print("numba is missing, so that there is nothing to compare; pip install numba", file=sys.stderr)
        return 2
    source = commit()
    settings.results.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(settings.threads)
    lines, ratios = [], []
    for shape in SHAPES:
        times = timed(shape, settings.rounds, settings.seconds)
        ratios.append(times.rival / times.ours)
        lines.append(
            f"| {shape.what}, {shape.localisation} | {shape.supports:,} | {shape.queries:,} | {shape.dim} | "
            f"{shape.targets} | {shape.k} | {1e3 * times.ours:.2f} | {1e3 * times.rival:.2f} | **{ratios[-1]:.1f}** |"
        )
        print(lines[-1], flush=True)
    known = ", ".join(f"{name} {version}" for name, version in versions().items())
    table = [
        "# gradients",
        "",
        f"`{shown_command('gradients.py', argv)}` · commit {source} · {machine()}, "
        f"{settings.threads} thread(s) · {known}.",
        "",
        "Milliseconds of a forward and a backward pass in which supports, targets, lengthscale and ridge are learned, "
        "float32; medians of samples in alternation, the same compiled search included on both sides.",
        "",
        "| problem | supports | queries | dimensions | targets | k | compiled | plain torch | ratio |",
        "|---|---|---|---|---|---|---|---|---|",
        *lines,
        "",
        f"Geometric mean of the ratios: {float(np.exp(np.log(ratios).mean())):.1f}.",
    ]
    write_text(settings.results / "gradients.md", "\n".join(table) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
