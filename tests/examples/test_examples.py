"""Every example runs from end to end on a few pictures, and what the documentation shows runs too."""

from __future__ import annotations

import csv
import gzip
import re
import runpy
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import tyro

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))

import hybrid
import localisation
import probe
import probe_agent
import transfer
from backbones import BACKBONES, WIDTH, accuracy, make_backbone, train
from images import Images, first_per_class, load_images, read_idx, split_per_class
from opponents import MLPReadout, NearestNeighbours
from transfer_report import Interval, Row, summary

# Programs from end to end take twice as long with checks of shapes, which the tests of their parts make.
pytestmark = pytest.mark.usefixtures("without_shape_checks")


def blobs(per_class: int, classes: int = 3, dim: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Well separated clouds, [n, d], and their labels."""
    labels = torch.arange(per_class * classes) % classes
    return 6.0 * torch.eye(classes, dim)[labels] + torch.randn(len(labels), dim), labels


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    content = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    pictures = np.arange(12 * 28 * 28).reshape(12, 28, 28) % 256
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", pictures)
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.arange(12) % 10)
    return tmp_path


def test_digits() -> None:
    images = load_images()
    assert images.pixels.shape == (1797, 1, 8, 8)
    assert (float(images.pixels.min()), float(images.pixels.max())) == (0.0, 1.0)
    assert images.labels.unique().tolist() == list(range(10))


def test_idx_files_plain_and_zipped(mnist: Path) -> None:
    images = load_images(mnist, limit=11)
    assert images.pixels.shape == (11, 1, 28, 28)
    assert images.labels.tolist() == [*range(10), 0]
    # Pixel (1, 2) of picture 3 in the order in which the file holds them.
    assert float(images.pixels[3, 0, 1, 2]) == pytest.approx((3 * 784 + 28 + 2) % 256 / 255)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no idx header"),
        (b"\x1f\x8b\x08\x00rest", "no idx header"),
        (bytes([0, 0, 8, 1, 0, 0, 0, 3, 1, 2]), "holds 2 bytes of data, but its header asks for 3"),
        (bytes([0, 0, 8, 3, 0, 0]), "is cut off within its header"),
    ],
)
def test_what_is_no_idx_file_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_idx(tmp_path / "file")


def test_idx_numbers_of_two_bytes_are_big_endian(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes([0, 0, 0x0B, 1, 0, 0, 0, 2, 1, 0, 255, 254]))
    assert read_idx(tmp_path / "file").tolist() == [256, -2]


def test_a_folder_without_mnist_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="train-images-idx3-ubyte"):
        load_images(tmp_path)


def test_splits_are_disjoint_even_and_fixed_by_the_seed() -> None:
    labels = torch.arange(50) % 5
    images = Images(torch.arange(50.0).reshape(50, 1, 1, 1), labels)
    split = split_per_class(images, test_per_class=3, seed=1)
    assert split.test.labels.bincount().tolist() == [3] * 5
    both = torch.cat([split.train.pixels, split.test.pixels]).flatten()
    assert both.sort().values.tolist() == list(range(50))
    few, more = first_per_class(split.train, 2), first_per_class(split.train, 4)
    assert few.labels.bincount().tolist() == [2] * 5
    assert set(few.pixels.flatten().tolist()) < set(more.pixels.flatten().tolist())
    assert torch.equal(split_per_class(images, 3, seed=1).test.pixels, split.test.pixels)
    assert not torch.equal(split_per_class(images, 3, seed=2).test.pixels, split.test.pixels)
    with pytest.raises(ValueError, match="smallest class has 10"):
        split_per_class(images, 10, seed=1)


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("size", [8, 28])
def test_backbones_see_pictures_of_both_sizes(name: str, size: int) -> None:
    model = make_backbone(name, Images(torch.rand(3, 1, size, size), torch.tensor([0, 1, 2])), seed=0)
    model.fc = torch.nn.Identity()
    assert model(torch.rand(2, 1, size, size)).shape == (2, WIDTH)


@pytest.mark.parametrize("name", BACKBONES)
def test_backbones_learn(name: str) -> None:
    images = load_images().of_classes(0, 1)
    model = make_backbone(name, images, seed=0)
    train(model, images[torch.arange(200)], epochs=20, seed=0)
    assert accuracy(model, images[torch.arange(200, 360)]) > 0.9


@pytest.mark.parametrize("readout", [MLPReadout(max_epochs=15, weight_decays=(0.1,)), NearestNeighbours()])
def test_opponents_learn_separated_classes(readout: MLPReadout | NearestNeighbours) -> None:
    readout.fit(*blobs(20))
    assert readout.score(*blobs(50)) > 0.95


def test_the_network_readout_stops_before_it_overfits() -> None:
    features, labels = torch.randn(60, 4), torch.arange(60) % 3
    readout = MLPReadout(max_epochs=200, weight_decays=(0.1,), patience=5).fit(features, labels)
    assert readout.plan.epochs < 60, "labels are noise: what is learned soon makes held-out predictions worse"


def test_transfer(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        transfer.READOUTS, "MLP", lambda seed: MLPReadout(max_epochs=3, weight_decays=(1.0,), seed=seed)
    )
    settings = transfer.Settings(
        backbones=("cnn",),
        labels=(5, 100),
        epochs=2,
        limit=150,
        test_per_class=5,
        seeds=(0, 1),
        save=tmp_path / "study_1.5",
    )
    rows = transfer.main(settings)
    assert len(rows) == 2 * 2 * 4
    assert all(0.2 < row.accuracy <= 1.0 for row in rows if row.readout == "sparse kernel")
    assert "| cnn | 5 |" in capsys.readouterr().out
    text = (tmp_path / "study_1.5.md").read_text()
    assert "all but the test part" in text
    assert "commit" in text
    with (tmp_path / "study_1.5.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(rows)
    assert (tmp_path / "study_1.5.png").stat().st_size > 0


def test_intervals_are_students() -> None:
    # Standard deviation 1, three seeds: 4.303 · 1 / √3.
    interval = Interval.of([1.0, 2.0, 3.0])
    assert interval.mean == pytest.approx(2.0)
    assert interval.half_width == pytest.approx(2.484, abs=1e-3)
    assert Interval.of([0.5]).text(2) == "0.50"


def test_differences_are_paired_by_seed() -> None:
    accuracies = {"sparse kernel": (0.91, 0.81), "MLP": (0.90, 0.80)}
    rows = [
        Row("cnn", 10, 10.0, seed, name, accuracy, 0.1)
        for name, values in accuracies.items()
        for seed, accuracy in enumerate(values)
    ]
    assert summary(rows).splitlines()[-1].endswith("| +1.0 ± 0.0 |")


@pytest.mark.parametrize("example", [hybrid, probe, transfer])
def test_unknown_backbones_are_refused(example: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    flag = "--backbone" if example is hybrid else "--backbones"
    with pytest.raises(SystemExit) as refused:
        tyro.cli(example.Settings, args=[flag, "foo"])
    assert refused.value.code == 2
    output = capsys.readouterr()
    assert "foo" in output.out + output.err
    assert "cnn" in output.out + output.err


def test_probe(tmp_path: Path) -> None:
    settings = probe.Settings(labels=5, epochs=1, limit=300, test_per_class=5, folder=tmp_path)
    reports = probe.main(settings)
    assert {name: report.layers for name, report in reports.items()} == probe.LAYERS
    assert (tmp_path / "cnn.png").stat().st_size > 0


def test_probe_of_an_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from train import main as train_agent

    words = ["--agent", "ddqn", "--env", "MountainCar-v0", "--total-timesteps", "60", "--learning-starts", "20"]
    words += ["--n-evaluations", "1", "--n-eval-episodes", "1", "--n-final-eval-episodes", "1", "--no-progress-bar"]
    words += ["--net-arch", "8"]
    assert train_agent([*words, "--run-dir", str(tmp_path)]) == 0
    scores = probe_agent.main(probe_agent.Settings(tmp_path, steps=90, noise=0.1))
    assert list(scores.reports) == ["x0", "x1"]
    assert (tmp_path / "probe.png").stat().st_size > 0
    monkeypatch.setattr(sys, "argv", ["probe_agent.py", str(tmp_path), "--steps", "3"])
    with pytest.raises(SystemExit, match=r"probe_agent\.py: steps is 3, but a probe needs at least 30"):
        runpy.run_path(probe_agent.__file__, run_name="__main__")


def test_hybrid() -> None:
    results = hybrid.main(hybrid.Settings(labels=10, supports=50, epochs=15, limit=400, test_per_class=5, seeds=(0,)))
    assert set(results) == {"plain", "hybrid"}
    assert results["hybrid"][0].accuracy > 0.5


def test_every_part_of_the_hybrid_learns() -> None:
    images = load_images(limit=100)
    model = make_backbone("cnn", images, seed=0)
    hybrid.put_kernel_on(model, images, supports=40)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    assert len([name for name in before if name.startswith("fc.kernel.")]) == 4
    train(model, images, epochs=1, seed=0)
    still = [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]
    assert not still


def test_the_window_has_no_jump(tmp_path: Path) -> None:
    jumps = localisation.main(localisation.Settings(path=tmp_path / "picture.png", resolution=4001))
    assert jumps["continuous"] < 0.1 * jumps["hard"]
    assert (tmp_path / "picture.png").stat().st_size > 0


def snippets_of(page: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_the_snippets_of_the_documentation_run() -> None:
    snippets = snippets_of("docs/kernel_module.md")
    assert len(snippets) >= 8
    exec(compile("\n".join(snippets), "docs/kernel_module.md", "exec"), {})


def test_the_snippets_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, with budgets cut short and nothing else changed."""
    monkeypatch.chdir(tmp_path)
    snippets = snippets_of("README.md")
    assert len(snippets) >= 7
    program = re.sub(r"learn\([\d_]+", "learn(600", "\n".join(snippets))
    for setting, steps in (("seed=0", 1_000), ("noise=0.5", 200)):
        assert program.count(f"{setting})") == 1
        program = program.replace(f"{setting})", f"{setting}, steps={steps})")
    names: dict[str, object] = {}
    exec(compile(program, "README.md", "exec"), names)
    assert (tmp_path / "policy.pt").exists()
    assert float(names["accuracy"]) > 0.9  # type: ignore[arg-type]
