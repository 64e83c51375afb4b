"""Scripts that measure for minutes, on problems of a moment: both sides agree, and what they write can be read."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.usefixtures("without_shape_checks")


def test_both_sides_of_the_gradients_are_timed_and_agree() -> None:
    gradients = pytest.importorskip("gradients", reason="needs numba")
    if not gradients.compiling.AVAILABLE:
        pytest.skip("needs numba")
    for localisation in ("hard", "continuous"):
        shape = gradients.Shape("small", 60, 20, 3, 2, 8, localisation)
        times = gradients.timed(shape, rounds=2, seconds=1.0)
        assert times.ours > 0.0
        assert times.rival > 0.0


def test_gradients_of_one_side_alone_are_no_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = pytest.importorskip("gradients", reason="needs numba")
    monkeypatch.setattr(gradients, "functional", type(sys)("elsewhere"))
    with pytest.raises(RuntimeError, match="no longer asks carries_gradients"):
        gradients.timed(gradients.Shape("small", 60, 20, 3, 2, 8), rounds=1, seconds=1.0)


def test_searches_are_compared_with_exact_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaced: set[Path]
) -> None:
    search = pytest.importorskip("search", reason="needs faiss")
    words = ["--points", "600", "--dims", "4", "--k", "5", "--results", str(tmp_path / "new")]
    monkeypatch.setattr(sys, "argv", ["search.py", *words])
    search.main()
    assert replaced == {tmp_path / "new" / name for name in ("search.json", "search.md")}
    rows = json.loads((tmp_path / "new" / "search.json").read_text())["results"]
    assert {row["search"] for row in rows} == {"exact", "FAISS flat", "IVF", "HNSW"}
    # Ours is what they are compared with: FAISS's own exhaustive search finds the same.
    assert [row["recall"] for row in rows if row["search"] == "FAISS flat"] == [1.0, 1.0]
    assert all(0.3 < row["recall"] <= 1.0 for row in rows)
    assert "| noise | 4 | 600 | exact |" in (tmp_path / "new" / "search.md").read_text()


def test_recall_by_hand() -> None:
    search = pytest.importorskip("search", reason="needs faiss")
    found, truth = torch.tensor([[0, 1], [3, 2], [4, 5]]), torch.tensor([[1, 9], [2, 3], [6, 7]])
    assert search.recall(found, truth) == pytest.approx((1 / 2 + 1 + 0) / 3)


def test_tuned_settings_are_near_the_best_of_a_grid() -> None:
    tuning = pytest.importorskip("tuning", reason="needs scikit-learn")
    (row,) = tuning.compare("diabetes", tuning.Tuning(k=(16,), grid=4, repeats=1)).values()
    assert row["ratio"] == pytest.approx(row["tuned_error"] / row["grid_error"])
    assert row["ratio"] < 1.1


def test_a_gpu_is_told_from_a_cpu_by_its_type(monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu

    assert gpu.on_gpu(gpu.Workload(device="cuda:0"))
    work = gpu.Workload(device="cpu", systems=8, queries=4, supports=100, dim=3, k=4, rounds=2)
    rows = gpu.systems(work) | gpu.whole_queries(work)
    assert set(rows) == {"solver alone", "torch"}
    assert all(row["eager_ms"] > 0.0 and row["peak_mib"] is None for row in rows.values())
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cuda:0"])
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit, match="no accelerator"):
            gpu.main()
