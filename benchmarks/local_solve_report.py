"""The local-solve benchmark in Markdown: ratios per rival, bars, and the cells where we are behind."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from math import exp, fsum, log

from local_solve_records import Record
from shown_command import shown_command

from agents.training.provenance import machine

DISTRIBUTIONS = ("torch", "numpy", "numba", "muygpys", "gpytorch", "faiss-cpu", "scikit-learn")


@dataclass(frozen=True)
class Bar:
    """A ratio that a group of cells should reach.

    Attributes:
        title: what is asked.
        part: part of the benchmark.
        rival: whose time counts.
        ratio: the rival's time over ours, at least.
        applies: which cells it is asked of.
    """

    title: str
    part: str
    rival: str
    ratio: float
    applies: Callable[[Record], bool]


BARS = (
    Bar("search at least 2× as fast as FAISS flat, M ≥ 10⁴", "search", "faiss", 2.0, lambda r: r.points >= 10_000),
    Bar(
        "search within 2× of the bare product, M ≥ 10⁴ and d ≥ 64",
        "search",
        "product",
        0.5,
        lambda r: r.points >= 10_000 and r.dim >= 64,
    ),
    Bar(
        "whole prediction within 2× of the bare product, M ≥ 10⁴ and d ≥ 64",
        "predict",
        "product",
        0.5,
        lambda r: r.points >= 10_000 and r.dim >= 64,
    ),
)

TITLES = {
    "predict": "Prediction: search, mean and variance",
    "search": "Search alone",
    "gradient": "Prediction and its gradient in queries and features",
    "acting": "One acting query: 4 actions × 1,000 supports, 8-D, k = 16, one thread",
}

NOTES = """\
Ratios are a rival's time over ours: above 1 we are ahead. Times are medians of interleaved rounds in float32; building
an index stands apart. `kernel_ridge` searches the whole batch but solves 16 queries at most, the time of the others is
extrapolated; it and `kneighbors` answer with a mean alone, the latter without any solve. `gpytorch` finds its
neighbours by torch's product and `topk`. The searches of scikit-learn, on which MuyGPyS rests too, have one job or two,
whichever is faster. `product` is the bare matrix product of queries and features.

Equal results come first: float64 within 1e-9 (ours, the rival's and a dense numpy solution, on at most 64 queries of
a batch), ours in float32 within 1e-5 of the dense float64 solution, as |a − b| / (1 + |b|); gradients, which the dense
solution lacks, are compared in float64 alone. Queries whose k-th and
(k + 1)-th neighbour are closer than the rounding of a float32 search are not compared: either neighbour is right."""


@dataclass(frozen=True)
class Ratios:
    """Ratios of a group of cells.

    Attributes:
        geometric_mean: of all.
        least: the smallest.
        most: the largest.
        ahead: cells that reach the bar.
        cells: all cells.
    """

    geometric_mean: float
    least: float
    most: float
    ahead: int
    cells: int


def summarise(ratios: Sequence[float], bar: float = 1.0) -> Ratios:
    """Summary of at least one positive ratio; a ratio of exactly the bar reaches it."""
    mean = exp(fsum(map(log, ratios)) / len(ratios))
    return Ratios(mean, min(ratios), max(ratios), sum(ratio >= bar for ratio in ratios), len(ratios))


@dataclass(frozen=True)
class Run:
    """How the records came about.

    Attributes:
        arguments: of the command line.
        commit: what was measured.
        threads: of every library, save the acting query.
        load: load average before the start; a machine that others use gives worse figures, and other ratios.
        resumed: records of earlier runs of the same commit.
        missing: rivals that were not installed.
    """

    arguments: Sequence[str]
    commit: str
    threads: int
    load: float
    resumed: int = 0
    missing: Sequence[str] = ()


def markdown(records: Iterable[Record], run: Run) -> str:
    """The report of all records that a run left."""
    records = list(records)
    timed = [record for record in records if record.ratio is not None and record.status == "ok"]
    sections = ["# Local solves against their nearest relatives", _provenance(run), NOTES]
    if run.resumed:
        sections.append(f"{run.resumed} records are from earlier runs of the same commit.")
    if run.missing:
        sections.append(f"Not installed, hence not measured: {', '.join(run.missing)}.")
    sections.append(_wrong([record for record in records if record.status != "ok"]))
    for part, title in TITLES.items():
        if chosen := [record for record in timed if record.part == part]:
            sections += [f"## {title}", _acting(chosen) if part == "acting" else _table(chosen)]
    sections += ["## Bars", _bars(timed)]
    behind = [record for record in timed if record.part != "acting" and record.rival != "product"]
    sections += ["## Where we are behind", _behind(behind, partial(_is_below, 1.0))]
    return "\n\n".join(sections) + "\n"


def _provenance(run: Run) -> str:
    versions = ", ".join(f"{name} {_version(name)}" for name in DISTRIBUTIONS)
    command = shown_command("local_solve.py", run.arguments)
    place = f"{machine()}, threads: {run.threads}, load before the start: {run.load:.1f}"
    return f"`{command}` · commit {run.commit} · {place} · Python {platform.python_version()}, {versions}."


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "absent"


def _wrong(records: list[Record]) -> str:
    if not records:
        return "Every measured cell gave equal results."
    lines = [f"**{len(records)} records are wrong** and left out of the ratios:", ""]
    lines += [f"- {r.part} {r.rival} {r.cell} {r.precision} {r.status}: {r.note}" for r in records]
    return "\n".join(lines)


def _table(records: list[Record]) -> str:
    lines = [
        "| rival | geometric mean | min | max | ahead | fit, rival / ours (geometric mean, ms) |",
        "|---|---|---|---|---|---|",
    ]
    for rival in dict.fromkeys(record.rival for record in records):
        own = [record for record in records if record.rival == rival]
        ratios = summarise([record.measured_ratio for record in own])
        fits = (summarise([getattr(r, f"{side}_fit_ms") for r in own]).geometric_mean for side in ("rival", "our"))
        lines.append(
            f"| {rival} | {ratios.geometric_mean:.3g} | {ratios.least:.3g} | {ratios.most:.3g} | "
            f"{ratios.ahead} of {ratios.cells} | {' / '.join(f'{fit:.3g}' for fit in fits)} |"
        )
    return "\n".join(lines)


def _acting(records: list[Record]) -> str:
    return "\n".join(f"- `{r.rival}`: {r.our_us:.1f} µs, bar {r.rival_us:.0f} µs" for r in records)


def _bars(records: list[Record]) -> str:
    blocks = []
    for bar in BARS:
        own = [r for r in records if (r.part, r.rival) == (bar.part, bar.rival) and bar.applies(r)]
        if own:
            ratios = summarise([record.measured_ratio for record in own], bar.ratio)
            blocks.append(
                f"**{bar.title}**: {ratios.ahead} of {ratios.cells} cells; ratio {ratios.geometric_mean:.3g} in the "
                f"geometric mean, {ratios.least:.3g} to {ratios.most:.3g}.\n\n"
                + _behind(own, partial(_is_below, bar.ratio))
            )
    return "\n\n".join(blocks) or "No cell that a bar applies to was measured."


def _is_below(bar: float, record: Record) -> bool:
    return record.measured_ratio < bar


def _behind(records: list[Record], is_behind: Callable[[Record], bool]) -> str:
    """The cells below, by part and rival, the worst first."""
    lines = []
    for part, rival in dict.fromkeys((record.part, record.rival) for record in records):
        own = [r for r in records if (r.part, r.rival) == (part, rival) and is_behind(r)]
        if own:
            own.sort(key=lambda record: record.measured_ratio)
            cells = "; ".join(f"{record.cell}: {record.ratio:.2f}" for record in own)
            lines.append(f"- {part} {rival}, {len(own)} cells: {cells}")
    return "\n".join(lines) or "Nowhere."
