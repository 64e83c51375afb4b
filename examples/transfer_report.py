"""Results of `transfer.py` as table, figure and file."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from agents.training.provenance import machine, versions

COLOURS = {"sparse kernel": "#c2410c", "MLP": "#1d4ed8", "linear": "#15803d", "k-NN": "#777777"}
RIVAL = "MLP"


@dataclass(frozen=True)
class Row:
    """One readout on one set of features.

    Attributes:
        backbone: name of the network.
        labels: labelled pictures of a class that were asked for.
        given: labelled pictures of a class that there were, the mean over the classes.
        seed: of split, network and readout.
        readout: its name.
        accuracy: on the test pictures, 0 … 1.
        seconds: of fitting, processor time of one thread.
    """

    backbone: str
    labels: int
    given: float
    seed: int
    readout: str
    accuracy: float
    seconds: float


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with half the width of its 95 % interval (Student's t; not a number for a single seed)."""

    mean: float
    half_width: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """Of one value per seed."""
        array = np.asarray(values)
        if len(array) < 2:
            return cls(float(array.mean()), float("nan"))
        error = array.std(ddof=1) / len(array) ** 0.5
        return cls(float(array.mean()), float(stats.t.ppf(0.975, len(array) - 1) * error))

    def text(self, digits: int, sign: str = "") -> str:
        """The mean, with its interval when there is one."""
        spread = "" if np.isnan(self.half_width) else f" ± {self.half_width:.{digits}f}"
        return f"{self.mean:{sign}.{digits}f}{spread}"


def summary(rows: Sequence[Row]) -> str:
    """Markdown: one line per network and label count, accuracy and seconds of every readout.

    The last column is the Sparse Kernel's accuracy less the network readout's, paired by seed.
    """
    names = list(dict.fromkeys(row.readout for row in rows))
    lines = [
        "| " + " | ".join(["backbone", "labels a class", *names, f"sparse kernel − {RIVAL}, points"]) + " |",
        "|---|---|" + "---|" * (len(names) + 1),
    ]
    for backbone, labels in dict.fromkeys((row.backbone, row.labels) for row in rows):
        cell = [row for row in rows if (row.backbone, row.labels) == (backbone, labels)]
        accuracies = {name: [100 * row.accuracy for row in cell if row.readout == name] for name in names}
        seconds = {name: np.mean([row.seconds for row in cell if row.readout == name]) for name in names}
        differences = [
            ours - theirs for ours, theirs in zip(accuracies["sparse kernel"], accuracies[RIVAL], strict=True)
        ]
        texts = [f"{Interval.of(accuracies[name]).text(1)} % in {seconds[name]:.2f} s" for name in names]
        lines.append(
            "| "
            + " | ".join([backbone, label_text(cell[0]), *texts, Interval.of(differences).text(1, sign="+")])
            + " |"
        )
    return "\n".join(lines)


def label_text(row: Row) -> str:
    """Labelled pictures of a class."""
    return str(row.labels) if row.given == row.labels else f"all but the test part: {row.given:.0f}"


def write_report(rows: Sequence[Row], stem: Path, source: str | None) -> None:
    """Write `.md`, `.csv` and `.png` beside each other; ``source`` is the commit that was measured."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    # Not with_suffix(), which would cut off what follows a dot in the name.
    markdown, table, picture = (stem.with_name(stem.name + suffix) for suffix in (".md", ".csv", ".png"))
    markdown.write_text(f"# {stem.name}\n\n{heading(rows, source)}\n\n{summary(rows)}\n")
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    draw(rows, picture)


def heading(rows: Sequence[Row], source: str | None) -> str:
    """What was done, by which commit and versions."""
    command = " ".join(["python", "examples/transfer.py", *sys.argv[1:]])
    packages = {**versions(), "scikit-learn": version("scikit-learn")}
    seeds = ", ".join(str(seed) for seed in dict.fromkeys(row.seed for row in rows))
    return "\n\n".join(
        [
            f"`{command}` · commit {source} · {machine()}, one thread · "
            + ", ".join(f"{name} {number}" for name, number in packages.items())
            + ".",
            "A network learns the first half of the classes and is frozen; readouts learn the second half from the "
            "features that reach its last layer. Accuracy on test pictures of the second half, mean and 95 % interval "
            f"(Student's t) over seeds {seeds}, each with its own split and network; seconds of processor time for "
            "fitting to the features, choice of settings included. The difference is paired by seed.",
        ]
    )


def draw(rows: Sequence[Row], path: Path) -> None:
    """One panel per network: accuracy over label count with its interval."""
    backbones = list(dict.fromkeys(row.backbone for row in rows))
    figure = Figure(figsize=(4.6 * len(backbones), 3.8), layout="constrained")
    for axes, backbone in zip(figure.subplots(1, len(backbones), squeeze=False)[0], backbones, strict=True):
        for name in dict.fromkeys(row.readout for row in rows):
            chosen = [row for row in rows if (row.backbone, row.readout) == (backbone, name)]
            counts = sorted({row.labels for row in chosen})
            cells = [[row for row in chosen if row.labels == count] for count in counts]
            means = [Interval.of([100 * row.accuracy for row in cell]) for cell in cells]
            axes.errorbar(
                [np.mean([row.given for row in cell]) for cell in cells],
                [interval.mean for interval in means],
                [np.nan_to_num(interval.half_width) for interval in means],
                marker="o",
                capsize=3,
                label=name,
                color=COLOURS.get(name),
            )
        axes.set(title=backbone, xscale="log", xlabel="labelled pictures of a class")
        axes.grid(alpha=0.25)
    figure.axes[0].set_ylabel("accuracy on new classes, %")
    figure.axes[0].legend(frameon=False)
    figure.savefig(path, dpi=130)
