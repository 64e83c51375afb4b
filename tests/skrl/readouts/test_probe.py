"""Layer-wise probes of small networks."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from skrl import LayerScore, LinearClassifier, ProbeReport, SparseKernelClassifier, SparseKernelRegressor, probe_layers
from skrl.readouts.linear_readouts import LinearRegressor
from skrl.readouts.probe import Scorer

# Readouts from end to end take twice as long with checks of shapes, which the tests of their parts make.
pytestmark = pytest.mark.usefixtures("without_shape_checks")

Split = tuple[Tensor, Tensor]

QUICK: dict[str, Scorer] = {
    "sparse kernel": SparseKernelClassifier(scaling="isotropic", ridge=0.1),
    "linear": LinearClassifier(penalty=1e-3),
}


def digits(train: int = 400, test: int = 200) -> tuple[Split, Split]:
    X, y = load_digits(return_X_y=True)
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(y)))
    images = torch.from_numpy(X).float().div(16.0).reshape(-1, 1, 8, 8)[order]
    labels = torch.from_numpy(y)[order]
    return (images[:train], labels[:train]), (images[train : train + test], labels[train : train + test])


class SmallConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.conv = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(16 * 4 * 4, 10)
        self.spare = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.drop(self.conv(self.stem(x)).relu())
        logits: Tensor = self.fc(hidden.flatten(1))
        return logits


def trained() -> SmallConvNet:
    model = SmallConvNet()
    (x, y), _ = digits()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


def test_probe_of_a_small_trained_network() -> None:
    """Every leaf that ran, in order; the trained logits tell the class best; nothing of the network changes."""
    model = trained()
    model.stem[1].eval()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train, test = digits()
    report = probe_layers(model, train=train, test=test, readouts=QUICK)
    assert report.layers == ["stem.0", "stem.1", "stem.2", "conv", "drop", "fc"]
    assert report.readouts == ["sparse kernel", "linear"]
    assert [report[layer, "linear"].width for layer in report.layers] == [8, 8, 8, 16, 16, 10]
    for name in report.readouts:
        assert report["fc", name].score > 0.9
        assert report["fc", name].score > report["stem.0", name].score + 0.1
    assert all(0.0 <= entry.score <= 1.0 and entry.seconds > 0.0 for entry in report.scores)
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_scores_are_those_of_readouts_on_the_activations() -> None:
    model, (train, test) = SmallConvNet(), digits()
    report = probe_layers(model, ["conv", "stem.0"], train=train, test=test, readouts=QUICK, pooling="flatten")
    assert report.layers == ["conv", "stem.0"]
    model.eval()
    with torch.no_grad():
        features, test_features = (model.conv(model.stem(images)).flatten(1) for images in (train[0], test[0]))
    expected = SparseKernelClassifier(scaling="isotropic", ridge=0.1).fit(features, train[1])
    assert report["conv", "sparse kernel"].width == features.shape[1] == 16 * 16
    assert report["conv", "sparse kernel"].score == pytest.approx(expected.score(test_features, test[1]))
    # A later module works in place on what the batch normalisation gave, and must not reach it.
    rectified = probe_layers(model, ["stem.1", "stem.2"], train=train, test=test, readouts=QUICK, pooling="flatten")
    assert rectified["stem.1", "linear"].score != rectified["stem.2", "linear"].score


def test_a_loader_gives_what_two_tensors_give() -> None:
    model, (train, test) = SmallConvNet(), digits(100, 50)
    readouts = {"linear": LinearClassifier(penalty=1e-3)}
    loaders = [DataLoader(TensorDataset(*data), batch_size=32) for data in (train, test)]
    direct = probe_layers(model, ["fc"], train=train, test=test, readouts=readouts)
    loaded = probe_layers(model, ["fc"], train=loaders[0], test=loaders[1], readouts=readouts)
    assert loaded["fc", "linear"].score == direct["fc", "linear"].score


def test_numbers_are_regressed() -> None:
    """A target that is linear in the hidden layer, and not in the input of a kink."""
    model = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 1))
    x = torch.randn(600, 2)
    y = x.abs().sum(-1)
    report = probe_layers(model, train=(x[:400], y[:400]), test=(x[400:], y[400:]))
    assert report.metric == "R²"
    assert report.readouts == ["sparse kernel", "linear"]
    assert report["0", "linear"].score < 0.2
    assert report["0", "sparse kernel"].score > 0.95
    assert report["1", "linear"].score > 0.7
    linear = LinearRegressor().fit(x[:400] @ model[0].weight.mT + model[0].bias, y[:400])
    score = linear.score(x[400:] @ model[0].weight.mT + model[0].bias, y[400:])
    assert report["0", "linear"].score == pytest.approx(score, abs=1e-4)


def test_tokens_tuples_and_estimators_of_scikit_learn() -> None:
    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(8, 12, batch_first=True)
            self.fc = nn.Linear(12, 10)

        def forward(self, x: Tensor) -> Tensor:
            tokens, _ = self.rnn(x.squeeze(1))
            logits: Tensor = self.fc(tokens[:, -1])
            return logits

    train, test = digits(100, 50)
    readouts = {"theirs": LogisticRegression(max_iter=500)}
    model = Sequence()
    report = probe_layers(model, train=train, test=test, readouts=readouts)
    assert [(entry.layer, entry.width) for entry in report.scores] == [("rnn", 12), ("fc", 10)]
    with torch.no_grad():
        tokens, test_tokens = (model.rnn(images.squeeze(1))[0].mean(1).numpy() for images in (train[0], test[0]))
    expected = LogisticRegression(max_iter=500).fit(tokens, train[1].numpy()).score(test_tokens, test[1].numpy())
    assert report["rnn", "theirs"].score == pytest.approx(expected, abs=0.021)  # one sample of fifty may be a tie
    assert not hasattr(readouts["theirs"], "coef_")  # a copy was fitted


def test_a_module_that_runs_twice_counts_with_its_last_output() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.twofold = nn.Linear(1, 1, bias=False)
            nn.init.constant_(self.twofold.weight, 2.0)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.twofold(self.twofold(x))
            return y * 0.0

    class Recorder:
        def fit(self, X: Tensor, y: Tensor) -> None:
            self.mean = float(X.mean())

        def score(self, X: Tensor, y: Tensor) -> float:
            return self.mean

    x, y = torch.ones(4, 1), torch.arange(4)
    report = probe_layers(Twice(), train=(x, y), test=(x, y), readouts={"mean": Recorder()})
    assert report["twofold", "mean"].score == 4.0


def test_errors_teach_and_leave_nothing_behind() -> None:
    model, (train, test) = SmallConvNet(), digits(20, 10)

    def probe(*layers: str, **settings: object) -> ProbeReport:
        return probe_layers(model, layers, train=train, test=test, readouts=QUICK, **settings)  # type: ignore[arg-type]

    with pytest.raises(ValueError, match=r"the model has no module 'stem.4'; did you mean 'stem\.[012]'\?"):
        probe("stem.4")
    with pytest.raises(ValueError, match="layer 'spare' gave nothing, for it did not run"):
        probe("fc", "spare")
    with pytest.raises(ValueError, match=r"layers is \(\), but must be a list of module names, or None for all"):
        probe()
    with pytest.raises(ValueError, match="layers is 'fc', but must be a list"):
        probe_layers(model, "fc", train=train, test=test)
    with pytest.raises(ValueError, match="data is a tuple of 3, but must be a pair"):
        probe_layers(model, ["fc"], train=(*train, train[0]), test=test)  # type: ignore[arg-type]
    model.fc.weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="readout 'sparse kernel' at layer 'fc': Input X contains NaN"):
        probe("conv", "fc")
    model.fc = nn.Linear(3, 3)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        probe("conv")
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


def test_layers_without_a_tensor_per_sample() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"x": x}

    class Summed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum(0)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.odd, self.summed, self.fc = Odd(), Summed(), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            self.summed(x)
            logits: Tensor = self.fc(self.odd(x)["x"])
            return logits

    data = torch.randn(20, 2), torch.arange(20) % 2
    report = probe_layers(Model(), train=data, test=data, readouts=QUICK)
    assert report.layers == ["fc"]
    with pytest.raises(ValueError, match="layer 'odd' gave a dict, but a probe needs a tensor with one row per sample"):
        probe_layers(Model(), ["odd"], train=data, test=data)
    with pytest.raises(ValueError, match=r"layer 'summed' gave shape \(2,\) for 20 samples"):
        probe_layers(Model(), ["summed"], train=data, test=data)


REPORT = ProbeReport(
    (
        LayerScore("conv", 16, "sparse kernel", 0.75, 1.25),
        LayerScore("conv", 16, "linear", 0.5, 0.125),
        LayerScore("", 10, "sparse kernel", 1.0, 0.5),
        LayerScore("", 10, "linear", 0.25, 0.0),
    ),
    "accuracy",
)


def test_markdown() -> None:
    assert REPORT.to_markdown() == (
        "| layer | width | sparse kernel: accuracy | sparse kernel: seconds | linear: accuracy | linear: seconds |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: |\n"
        "| conv | 16 | 0.750 | 1.25 | 0.500 | 0.12 |\n"
        "| (model) | 10 | 1.000 | 0.50 | 0.250 | 0.00 |\n"
    )


def test_csv(tmp_path: Path) -> None:
    REPORT.to_csv(tmp_path / "probe.csv")
    with (tmp_path / "probe.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {
        "layer": "conv",
        "width": "16",
        "readout": "sparse kernel",
        "accuracy": "0.75",
        "seconds": "1.25",
    }
    assert len(rows) == 4


def test_plot(tmp_path: Path) -> None:
    REPORT.plot(tmp_path / "probe.png")
    assert (tmp_path / "probe.png").read_bytes().startswith(b"\x89PNG")
    REPORT.plot(str(tmp_path / "probe.svg"))
    drawn = (tmp_path / "probe.svg").read_text(encoding="utf-8")
    # As text or, where letters are drawn as paths, in the comments beside them.
    assert "conv" in drawn
    assert "sparse kernel" in drawn


def test_unknown_place() -> None:
    with pytest.raises(KeyError, match="layers: conv, ; readouts: sparse kernel, linear"):
        REPORT["convv", "linear"]


def test_default_readouts_follow_the_targets() -> None:
    data = torch.randn(30, 3), torch.arange(30) % 2
    numbers = data[0], torch.randn(30)
    model = nn.Identity()
    labels = probe_layers(model, train=data, test=data)
    assert (labels.metric, labels.layers) == ("accuracy", [""])
    assert probe_layers(model, train=numbers, test=numbers).metric == "R²"
    forced = probe_layers(model, train=numbers, test=numbers, readouts={"k": SparseKernelRegressor(k=3, ridge=1.0)})
    assert forced.readouts == ["k"]


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_arrays_of_numpy_come_in_the_networks_precision(precision: torch.dtype) -> None:
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(90, 3)), rng.integers(0, 2, 90)
    network, readouts = nn.Linear(3, 2).to(precision), {"linear": QUICK["linear"]}
    report = probe_layers(network, train=(X[:60], y[:60]), test=(X[60:], y[60:]), readouts=readouts)
    assert len(report.layers) == 1


def test_text_and_tables_are_labels_and_data_too() -> None:
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(90, 3)), rng.integers(0, 2, 90)
    network, readouts = nn.Linear(3, 2), {"linear": QUICK["linear"]}

    def scores(labels: Any, data: Any = X) -> float:
        report = probe_layers(network, train=(data[:60], labels[:60]), test=(data[60:], labels[60:]), readouts=readouts)
        return report[report.layers[0], "linear"].score

    assert scores(np.array(["a", "b"])[y]) == scores(y) == scores(y.tolist(), X.tolist())
    with pytest.raises(ValueError, match="x has 60 samples, but y has 59"):
        probe_layers(network, train=(X[:60], y[:59]), test=(X[60:], y[60:]), readouts=readouts)
