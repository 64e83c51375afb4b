"""Local systems and whole queries on a GPU: plain, fused and captured, with their peak memory.

python benchmarks/gpu.py

Two workloads: 1024 systems of 32 × 32, from known neighbours to weights and variance; and 256 queries, k = 32, over
10⁶ supports of 64 dimensions, from queries to predictions. Without a GPU it says so and exits with 1; ``--device cpu``
tries the script out on plain torch.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from shown_command import shown_command
from torch import Tensor

from agents.common.atomic_save import write_text
from agents.training.provenance import commit, versions
from skrl import sparse_kernel
from skrl.cuda_graph import capture
from skrl.functional import make_support
from skrl.kernels import Matern32
from skrl.kernels.distances import cross_distances
from skrl.search.exact import ExactSearch
from skrl.search.neighbors import Neighbors
from skrl.solve import fused
from skrl.solve.cholesky import solve
from skrl.solve.local_solve import Prediction, factorise
from skrl.solve.local_weights import fused_weights

RIDGE = 1e-2
MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class Workload:
    """What to time."""

    device: str = "cuda"
    """Where to run."""

    systems: int = 1024
    """Local systems of the first workload."""

    queries: int = 256
    """Queries of the second workload."""

    supports: int = 1_000_000
    """Support points of the second workload."""

    dim: int = 64
    """Dimensions of a feature."""

    k: int = 32
    """Neighbours per query."""

    rounds: int = 200
    """Timed calls of each variant; the median counts."""

    results: Path = Path(__file__).resolve().parent / "results"
    """Folder for `gpu.json`; written only where a GPU was measured."""


def median_ms(call: Callable[[], object], work: Workload) -> float:
    """Median milliseconds of a call, by the device's own clock where there is one."""
    for _ in range(5):
        call()
    if not on_gpu(work):
        seconds = []
        for _ in range(work.rounds):
            started = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - started)
        return 1e3 * statistics.median(seconds)
    events: list[list[Any]] = [[_event() for _ in range(2)] for _ in range(work.rounds)]
    for start, end in events:
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return float(statistics.median(start.elapsed_time(end) for start, end in events))


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def peak_mib(call: Callable[[], object], work: Workload) -> float | None:
    """Peak memory of a call beyond what was allocated before, in MiB; None where the device does not tell."""
    if not on_gpu(work):
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return round((torch.cuda.max_memory_allocated() - before) / MEBIBYTE, 1)


def measured(query: Callable[[Tensor], object], queries: Tensor, work: Workload) -> dict[str, object]:
    """Milliseconds of a query, plain and captured, and the peak memory of a plain one."""
    row: dict[str, object] = {"eager_ms": round(median_ms(lambda: query(queries), work), 4)}
    row["peak_mib"] = peak_mib(lambda: query(queries), work)
    if on_gpu(work):
        try:
            captured = capture(query, queries)
        except RuntimeError as error:
            row["captured_ms"] = str(error.__cause__ or error)
        else:
            row["captured_ms"] = round(median_ms(lambda: captured(queries), work), 4)
    return row


def systems(work: Workload) -> dict[str, dict[str, object]]:
    """The first workload; `solver alone` is what factoring and solving ready matrices cost."""
    features = torch.randn(10 * max(work.systems, work.k), work.dim, device=work.device)
    queries, lengthscale = features[: work.systems] + 0.01, float(work.dim) ** 0.5
    found, present = ExactSearch().index(features).nearest(queries, work.k)

    def in_torch(centres: Tensor) -> tuple[Tensor, Tensor]:
        neighbors = Neighbors(found, cross_distances(centres, features[found]), present)
        system = factorise(neighbors, features, Matern32(), lengthscale, RIDGE)
        weights = system.weights()
        return weights, system.variance(weights)

    def in_triton(centres: Tensor) -> tuple[Tensor, Tensor]:
        sets = centres.unsqueeze(0), features.unsqueeze(0), found, present
        local = fused_weights(*sets, Matern32(), lengthscale, RIDGE, work.k, "hard")
        return local.weights[0], local.variance[0]

    root = torch.randn(work.systems, work.k, work.k, device=work.device)
    gram = root @ root.mT + work.k * torch.eye(work.k, device=work.device)
    right = queries.new_ones(work.systems, work.k, 1)
    rows = {
        "solver alone": measured(lambda b: solve(torch.linalg.cholesky_ex(gram).L, b), right, work),
        "torch": measured(in_torch, queries, work),
    }
    if fuses(work):
        rows["fused"] = measured(in_triton, queries, work)
        difference = in_triton(queries)[0] - in_torch(queries)[0]
        rows["fused"]["largest_difference"] = difference.abs().max().item()
    return rows


def whole_queries(work: Workload) -> dict[str, dict[str, object]]:
    """The second workload, with supports that were made ready before."""
    features = torch.randn(work.supports, work.dim, device=work.device)
    targets = torch.randn(work.supports, 1, device=work.device)
    queries, lengthscale = torch.randn(work.queries, work.dim, device=work.device), float(work.dim) ** 0.5
    support = make_support(features, lengthscale)

    def predict(centres: Tensor) -> Prediction:
        return sparse_kernel(
            centres, features, targets, lengthscale=lengthscale, ridge=RIDGE, k=work.k, support=support
        )

    rows, available = {}, fused.AVAILABLE
    for name, allowed in (("torch", False), ("fused", fuses(work))):
        fused.AVAILABLE = allowed
        if allowed or name == "torch":
            rows[name] = measured(predict, queries, work)
    fused.AVAILABLE = available
    return rows


def on_gpu(work: Workload) -> bool:
    return torch.device(work.device).type == "cuda"


def fuses(work: Workload) -> bool:
    return on_gpu(work) and fused.AVAILABLE


def main() -> None:
    """Measure both workloads, print the figures and write `gpu.json`."""
    work = tyro.cli(Workload, description=__doc__)
    if on_gpu(work) and not torch.cuda.is_available():
        sys.exit("no accelerator: torch.cuda.is_available() is false, so nothing was measured")
    torch.manual_seed(0)
    report = {
        "command": shown_command("gpu.py", sys.argv[1:]),
        "commit": commit(),
        "device": torch.cuda.get_device_name(work.device) if on_gpu(work) else work.device,
        "versions": {**versions(), "cuda": torch.version.cuda},
        f"{work.systems} systems of {work.k} × {work.k}, {work.dim}-D": systems(work),
        f"{work.queries} queries, {work.supports} supports, {work.dim}-D, k = {work.k}": whole_queries(work),
    }
    print(json.dumps(report, indent=2, ensure_ascii=False))
    if on_gpu(work):
        write_text(work.results / "gpu.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
