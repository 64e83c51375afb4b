"""What the layers of a network know: readouts fitted to the activations of each, and their scores.

Linear probes are due to G. Alain and Y. Bengio, *Understanding intermediate layers using linear classifier probes*,
2017; the Sparse Kernel beside them is the nonlinear probe of Mercier and Santin, 2026, arXiv 2605.02313.
"""

from __future__ import annotations

import copy
import csv
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import nn

from skrl.readouts.activations import (
    Pooling,
    batches,
    device_of,
    evaluation_mode,
    joined_targets,
    pooled,
    recorded_outputs,
)
from skrl.readouts.linear_readouts import LinearClassifier, LinearRegressor
from skrl.readouts.sparse_kernel_readouts import SparseKernelClassifier, SparseKernelRegressor
from skrl.shapes import Tensor

BATCH = 256
"""Samples per forward pass where the data are two arrays."""


@runtime_checkable
class Scorer(Protocol):
    """What a probe needs of a readout; scikit-learn's estimators have it too."""

    def fit(self, X: Any, y: Any) -> Any:
        """Fit to activations, [n, d], and targets."""

    def score(self, X: Any, y: Any) -> float:
        """How well targets are predicted, larger is better."""


@dataclass(frozen=True)
class LayerScore:
    """One readout at one layer.

    Attributes:
        layer: the module's name.
        width: features of a sample after pooling.
        readout: the readout's name.
        score: on the test data.
        seconds: for fitting and scoring.
    """

    layer: str
    width: int
    readout: str
    score: float
    seconds: float


@dataclass(frozen=True)
class ProbeReport:
    """Scores of every readout at every layer, layers in the order of the network.

    Attributes:
        scores: one entry per layer and readout.
        metric: what a score is.
    """

    scores: tuple[LayerScore, ...]
    metric: str

    @property
    def layers(self) -> list[str]:
        """Names of the layers."""
        return list(dict.fromkeys(score.layer for score in self.scores))

    @property
    def readouts(self) -> list[str]:
        """Names of the readouts."""
        return list(dict.fromkeys(score.readout for score in self.scores))

    def __getitem__(self, place: tuple[str, str]) -> LayerScore:
        """The entry of a layer and a readout, ``report["layer3", "sparse kernel"]``."""
        for score in self.scores:
            if (score.layer, score.readout) == place:
                return score
        raise KeyError(f"no score for {place}; layers: {', '.join(self.layers)}; readouts: {', '.join(self.readouts)}")

    def to_markdown(self) -> str:
        """A table, one row per layer, score and seconds per readout."""
        head = ["layer", "width", *(f"{name}: {what}" for name in self.readouts for what in (self.metric, "seconds"))]
        lines = [_row(head), _row(["---"] + ["---:"] * (len(head) - 1))]
        for layer in self.layers:
            entries = [self[layer, name] for name in self.readouts]
            cells = [cell for entry in entries for cell in (f"{entry.score:.3f}", f"{entry.seconds:.2f}")]
            lines.append(_row([layer or "(model)", str(entries[0].width), *cells]))
        return "\n".join(lines) + "\n"

    def to_csv(self, path: str | Path) -> None:
        """Write one line per layer and readout."""
        with Path(path).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["layer", "width", "readout", self.metric, "seconds"])
            writer.writerows([s.layer, s.width, s.readout, s.score, s.seconds] for s in self.scores)

    def plot(self, path: str | Path) -> None:
        """Draw the scores over the layers into a file; needs matplotlib (the extra ``plots``)."""
        from matplotlib.figure import Figure

        layers = self.layers
        figure = Figure(figsize=(max(5.0, 0.5 * len(layers) + 2.0), 4.0), layout="constrained")
        axes = figure.subplots()
        for name in self.readouts:
            axes.plot([self[layer, name].score for layer in layers], marker="o", label=name)
        axes.set_xticks(range(len(layers)), [layer or "(model)" for layer in layers], rotation=45, ha="right")
        axes.set_xlabel("layer")
        axes.set_ylabel(self.metric)
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(path)


def probe_layers(
    model: nn.Module,
    layers: Sequence[str] | None = None,
    *,
    train: tuple[Any, Any] | Iterable[Any],
    test: tuple[Any, Any] | Iterable[Any],
    readouts: Mapping[str, Scorer] | None = None,
    pooling: Pooling = "mean",
    device: torch.device | str | None = None,
) -> ProbeReport:
    """Fit readouts to the activations of each layer and score them on other data.

    The network runs once over each data set, in evaluation mode and without gradients; its modes are restored and the
    hooks removed, whatever happens. A module that runs several times per pass counts with its last output.

    Args:
        model: any module.
        layers: names as in ``model.named_modules()``; every module without children that ran and gave a tensor when
            left out.
        train: two arrays (x, y), or batches of such pairs, a ``DataLoader`` for instance.
        test: likewise.
        readouts: readouts by name, copied for each layer; a Sparse Kernel and a linear one when left out,
            classifiers for labels, regressors for fractional numbers.
        pooling: ``mean`` over positions or tokens, ``flatten``, or a function to [B, d].
        device: where batches go; the model's own device when left out.

    Returns:
        Accuracy for labels, R² for numbers, per layer and readout.

    Raises:
        ValueError: a layer is unknown (the message names the nearest), did not run, gave no tensor per sample, or its
            activations cannot be fitted.
    """
    modules = _named_layers(model, layers)
    device = device or device_of(model)
    activations, targets = _activations(model, modules, train, pooling, device, skip_others=layers is None)
    test_activations, test_targets = _activations(model, modules, test, pooling, device, skip_others=layers is None)
    regression = isinstance(targets, Tensor) and targets.is_floating_point()
    readouts = _default_readouts(regression) if readouts is None else readouts
    scores = []
    for layer, features in activations.items():
        for name, readout in readouts.items():
            start = time.perf_counter()
            try:
                fitted = copy.deepcopy(readout)
                fitted.fit(features, targets)
                score = fitted.score(test_activations[layer], test_targets)
            except ValueError as error:
                raise ValueError(f"readout '{name}' at layer '{layer}': {error}") from error
            scores.append(LayerScore(layer, features.shape[1], name, float(score), time.perf_counter() - start))
    return ProbeReport(tuple(scores), metric="R²" if regression else "accuracy")


def _default_readouts(regression: bool) -> dict[str, Scorer]:
    if regression:
        return {"sparse kernel": SparseKernelRegressor(), "linear": LinearRegressor()}
    return {"sparse kernel": SparseKernelClassifier(), "linear": LinearClassifier()}


def _named_layers(model: nn.Module, layers: Sequence[str] | None) -> dict[str, nn.Module]:
    known = dict(model.named_modules())
    if layers is None:
        return {name: module for name, module in known.items() if not any(module.children())}
    if isinstance(layers, str) or not layers:
        raise ValueError(f"layers is {layers!r}, but must be a list of module names, or None for all")
    for name in layers:
        if name not in known:
            near = get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise ValueError(f"the model has no module '{name}'; did you mean '{near}'?")
    return {name: known[name] for name in layers}


def _activations(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    data: tuple[Any, Any] | Iterable[Any],
    pooling: Pooling,
    device: torch.device | str | None,
    skip_others: bool,
) -> tuple[dict[str, Tensor], Any]:
    """Pooled activations of every module, in the order in which they first gave one, and the targets."""
    collected: dict[str, list[Tensor]] = {}
    targets: list[Any] = []

    def read(output: Any) -> Tensor | str:
        return _rows(output, samples, pooling)

    with torch.no_grad(), evaluation_mode(model), recorded_outputs(modules, read) as outputs:
        for x, y in batches(_as_loader(data, _precision(model))):
            outputs.clear()
            x = torch.as_tensor(x, device=device)
            samples = len(x)
            model(x)
            targets.append(y)
            for name in list(outputs) if skip_others else modules:
                rows = outputs.get(name, "nothing, for it did not run")
                if isinstance(rows, Tensor):
                    collected.setdefault(name, []).append(rows)
                elif not skip_others:
                    raise ValueError(f"layer '{name}' gave {rows}, but a probe needs a tensor with one row per sample")
    return {name: torch.cat(rows) for name, rows in collected.items()}, joined_targets(targets)


def _rows(output: Any, samples: int, pooling: Pooling) -> Tensor | str:
    """A copy of a layer's activations as rows, of several outputs the first; or what came instead."""
    activation = output[0] if isinstance(output, (tuple, list)) and output else output
    if not isinstance(activation, Tensor):
        return f"a {type(activation).__name__}"
    if activation.dim() == 0 or len(activation) != samples:
        return f"shape {tuple(activation.shape)} for {samples} samples"
    return pooled(activation, pooling).clone()


def _precision(model: nn.Module) -> torch.dtype:
    """Of a network's numbers."""
    floating = (parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    return next(floating, torch.get_default_dtype())


def _as_loader(data: tuple[Any, Any] | Iterable[Any], precision: torch.dtype) -> Iterable[Any]:
    if not isinstance(data, tuple):
        return data
    if len(data) != 2:
        raise ValueError(f"data is a tuple of {len(data)}, but must be a pair (x, y) or batches of such pairs")
    # A tensor on a caller's memory needs it writable, which a table's may not be.
    x, y = (values if isinstance(values, Tensor) else np.require(values, requirements="W") for values in data)
    if not isinstance(x, Tensor):
        x = torch.from_numpy(x)
        x = x.to(precision) if x.is_floating_point() else x  # numpy's numbers are float64 unasked
    if len(x) != len(y):
        raise ValueError(f"x has {len(x)} samples, but y has {len(y)}; give one target for each")
    return ((x[start : start + BATCH], y[start : start + BATCH]) for start in range(0, len(x), BATCH))


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
