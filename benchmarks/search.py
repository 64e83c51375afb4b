"""Nearest-neighbour search: exact, FAISS's exhaustive index, and the two approximate ones; build, query and recall.

One thread computes and its processor time is taken, so that a busy machine changes little.

python benchmarks/search.py
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import faiss
import torch
import tyro
from shown_command import shown_command
from torch import Tensor

from agents.common.atomic_save import write_text
from agents.training.provenance import commit, machine, versions
from skrl.search.approximate import HnswSearch, IvfSearch
from skrl.search.exact import ExactSearch
from skrl.search.neighbors import NeighborSearch

QUERIES = 128
"""Queries of a large batch."""

Ask = Callable[[Tensor], Tensor]
"""Indices [B, k] of the neighbours of queries [B, d]."""


@dataclass(frozen=True)
class Settings:
    """What to time."""

    points: tuple[int, ...] = (1_000, 3_000, 10_000, 30_000, 100_000, 1_000_000)
    """Sizes of the support set."""

    dims: tuple[int, ...] = (8, 16, 64)
    """Widths of the features."""

    k: int = 32
    """Neighbours per query."""

    largest_graph: int = 100_000
    """Points beyond which no graph is built: it would take minutes."""

    largest_set: int = 10_000_000
    """Entries of the feature matrix beyond which a set is left out: its inverted lists would take minutes too."""

    results: Path = Path(__file__).resolve().parent / "results"
    """Where search.json and search.md go; a trial belongs elsewhere."""


@dataclass(frozen=True)
class Row:
    """One search on one set of points."""

    data: str
    dim: int
    points: int
    search: str
    build_s: float
    ms_1: float
    """Milliseconds for one query."""
    ms_128: float
    """Milliseconds for a batch of 128."""
    recall: float
    """Share of the true neighbours that are found."""


def noise(count: int, dim: int, generator: torch.Generator) -> Tensor:
    """Independent Gaussian coordinates: no structure to exploit, the hardest case."""
    return torch.randn(count, dim, generator=generator)


def clumps(count: int, dim: int, generator: torch.Generator) -> Tensor:
    """64 clumps on a bent four-dimensional sheet with a little noise around it, like states that a policy visits."""
    fixed = torch.Generator().manual_seed(7)
    centres, axes = 3.0 * torch.randn(64, 4, generator=fixed), torch.randn(4, dim, generator=fixed)
    places = centres[torch.randint(64, (count,), generator=generator)] + 0.3 * torch.randn(
        count, 4, generator=generator
    )
    return torch.tanh(0.5 * places @ axes) + 0.01 * torch.randn(count, dim, generator=generator)


DATA = {"noise": noise, "clumps": clumps}


def build_flat(features: Tensor, k: int) -> Ask:
    """FAISS's own exhaustive search."""
    index = faiss.IndexFlatL2(features.shape[1])
    index.add(features.numpy())
    return lambda queries: torch.from_numpy(index.search(queries.numpy(), k)[1])


def build(search: NeighborSearch, features: Tensor, k: int) -> Ask:
    """One of our searches behind its interface."""
    index = search.index(features)
    return lambda queries: index.nearest(queries, k)[0]


def builders(settings: Settings, points: int) -> dict[str, Callable[[Tensor, int], Ask]]:
    """The searches of a set of this size, the exact one first."""
    chosen: dict[str, Callable[[Tensor, int], Ask]] = {
        "exact": lambda features, k: build(ExactSearch(), features, k),
        "FAISS flat": build_flat,
        "IVF": lambda features, k: build(IvfSearch(), features, k),
    }
    if points <= settings.largest_graph:
        chosen["HNSW"] = lambda features, k: build(HnswSearch(), features, k)
    return chosen


def milliseconds(ask: Ask, queries: Tensor) -> float:
    """Median of as many repetitions as 0.4 seconds hold, three at least and a hundred at most."""
    ask(queries)
    times: list[float] = []
    while len(times) < 3 or (sum(times) < 0.4 and len(times) < 100):
        started = time.process_time()
        ask(queries)
        times.append(time.process_time() - started)
    return 1e3 * median(times)


def recall(found: Tensor, truth: Tensor) -> float:
    """Mean share of the true neighbours [B, k] among those found."""
    return (found.unsqueeze(-1) == truth.unsqueeze(-2)).any(-2).float().mean().item()


def measure(settings: Settings, data: str, dim: int, points: int) -> Iterator[Row]:
    """Every search on one set of points, the exact one first."""
    generator = torch.Generator().manual_seed(0)
    features, queries = DATA[data](points, dim, generator), DATA[data](QUERIES, dim, generator)
    truth: Tensor | None = None
    for name, make in builders(settings, points).items():
        started = time.process_time()
        ask = make(features, settings.k)
        seconds = time.process_time() - started
        found = ask(queries)
        truth = found if truth is None else truth
        one, many = (round(milliseconds(ask, asked), 3) for asked in (queries[:1], queries))
        yield Row(data, dim, points, name, round(seconds, 3), one, many, recall(found, truth))


def pays_after(row: Row, exact: Row) -> str:
    """Batches of 128 queries after which a build has earned its time back, with exact search as the alternative."""
    gain = exact.ms_128 - row.ms_128
    return f"{1e3 * (row.build_s - exact.build_s) / gain:,.0f}" if gain > 0 else "never"


def table(rows: list[Row]) -> Iterator[str]:
    """Markdown lines."""
    yield "| data | d | M | search | build, s | 1 query, ms | 128 queries, ms | recall | pays after batches of 128 |"
    yield "|---|---|---|---|---|---|---|---|---|"
    exact = rows[0]
    for row in rows:
        exact = row if row.search == "exact" else exact
        pays = "" if row.search in {"exact", "FAISS flat"} else pays_after(row, exact)
        yield (
            f"| {row.data} | {row.dim} | {row.points:,} | {row.search} | {row.build_s:.2f} | {row.ms_1:.3f} "
            f"| {row.ms_128:.2f} | {row.recall:.3f} | {pays} |"
        )


def main() -> None:
    """Time every search and write the results."""
    settings = tyro.cli(Settings, description=__doc__)
    source = commit()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    rows: list[Row] = []
    for dim in settings.dims:
        for data in DATA:
            for points in (size for size in settings.points if size * dim <= settings.largest_set):
                rows += measure(settings, data, dim, points)
                print(*list(table(rows))[-len(builders(settings, points)) :], sep="\n", flush=True)
    report: dict[str, object] = {
        "command": shown_command("search.py", sys.argv[1:]),
        "commit": source,
        "machine": f"{machine()}, processor time of one thread",
        "versions": {**versions(), "faiss": faiss.__version__},
        "settings": {name: value for name, value in asdict(settings).items() if name != "results"},
        "searches": [repr(search) for search in (IvfSearch(), HnswSearch())],
        "results": [asdict(row) for row in rows],
    }
    write_text(settings.results / "search.json", json.dumps(report, indent=2) + "\n")
    text = "\n".join([*heading(report), *table(rows)]) + "\n"
    write_text(settings.results / "search.md", text)


def heading(report: dict[str, object]) -> list[str]:
    """What was done, above the table."""
    provenance = [f"{name}: {report[name]}" for name in ("commit", "machine", "versions", "searches")]
    return ["# Nearest-neighbour search", "", f"`{report['command']}`", "", *(f"- {line}" for line in provenance), ""]


if __name__ == "__main__":
    main()
