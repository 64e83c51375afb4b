"""Probes measured once predict what refits without them do, compiled or in plain torch, at any lengthscale, λ and k."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor

from skrl import compiling
from skrl.functional import sparse_kernel
from skrl.kernels import KERNELS, Kernel, Matern32, make_kernel
from skrl.search.exact import ExactSearch
from skrl.search.neighbors import Localisation
from skrl.tuning.probes import Probes

needs_numba = pytest.mark.skipif(not compiling.AVAILABLE, reason="numba is not installed")
both_paths = pytest.mark.parametrize("plain", [False, True], ids=["compiled", "torch"])
every_localisation = pytest.mark.parametrize("localisation", get_args(Localisation))


def data(points: int = 40, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    features, targets = torch.randn(points, 3, dtype=torch.float64), torch.randn(points, 2, dtype=torch.float64)
    return features.to(dtype), targets.to(dtype)


def probe(
    features: Tensor, targets: Tensor, k: int = 12, localisation: Localisation = "hard", kernel: Kernel | None = None
) -> Probes:
    index = ExactSearch().index(features)
    return Probes.of(index, features, targets, kernel or Matern32(), k, 15, localisation)


@both_paths
@every_localisation
@pytest.mark.parametrize("k", [1, 5, 12])
def test_predictions_equal_refits(
    monkeypatch: pytest.MonkeyPatch, plain: bool, localisation: Localisation, k: int
) -> None:
    monkeypatch.setattr(compiling, "AVAILABLE", compiling.AVAILABLE and not plain)
    features, targets = data()
    probes = probe(features, targets, 12, localisation)
    for ridge, (mean, variance) in zip((1e-3, 0.2), probes.predictions(1.3, (1e-3, 0.2), k), strict=True):
        for position, row in enumerate(probes.rows.tolist()):
            rest = torch.arange(40) != row
            expected = sparse_kernel(
                features[row : row + 1],
                features[rest],
                targets[rest],
                lengthscale=1.3,
                ridge=ridge,
                k=k,
                localisation=localisation,
            )
            torch.testing.assert_close(mean[position], expected.mean[0], rtol=0.0, atol=1e-10)
            torch.testing.assert_close(variance[position], expected.variance[0], rtol=0.0, atol=1e-10)


@needs_numba
@every_localisation
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-3)], ids=str)
def test_both_paths_agree(
    monkeypatch: pytest.MonkeyPatch, localisation: Localisation, kernel: str, dtype: torch.dtype, tolerance: float
) -> None:
    features, targets = data(dtype=dtype)
    features[1] = features[0]
    fast = probe(features, targets, 12, localisation, make_kernel(kernel))
    monkeypatch.setattr(compiling, "AVAILABLE", False)
    slow = probe(features, targets, 12, localisation, make_kernel(kernel))
    for k in (12, 3):
        for left, right in zip(fast.predictions(0.9, [0.1], k), slow.predictions(0.9, [0.1], k), strict=True):
            torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)


def test_fewer_of_the_probes_predict_the_same() -> None:
    probes = probe(*data())
    few = probes.thinned(4)
    (whole,), (part,) = probes.predictions(0.9, [0.1], 7), few.predictions(0.9, [0.1], 7)
    kept = torch.isin(probes.rows, few.rows)
    assert kept.sum() == 4
    torch.testing.assert_close(part.mean, whole.mean[kept])
    torch.testing.assert_close(few.targets, probes.targets[kept])


@both_paths
@every_localisation
@pytest.mark.parametrize("points", [2, 3, 12, 13])
def test_more_neighbours_than_others_is_all_others(
    monkeypatch: pytest.MonkeyPatch, plain: bool, localisation: Localisation, points: int
) -> None:
    monkeypatch.setattr(compiling, "AVAILABLE", compiling.AVAILABLE and not plain)
    features, targets = data(points)
    (some,) = probe(features, targets, points - 1, localisation).predictions(0.9, [0.1], points - 1)
    (most,) = probe(features, targets, 100, localisation).predictions(0.9, [0.1], 100)
    torch.testing.assert_close(most, some)


@both_paths
def test_singular_systems_are_repaired(monkeypatch: pytest.MonkeyPatch, plain: bool) -> None:
    """Without a ridge, duplicates need jitter; they answer as one point would."""
    monkeypatch.setattr(compiling, "AVAILABLE", compiling.AVAILABLE and not plain)
    features, targets = torch.zeros(9, 2), torch.full((9, 1), 3.0)
    (prediction,) = probe(features, targets, 4).predictions(1.0, [0.0], 4)
    torch.testing.assert_close(prediction.mean, targets, rtol=0.0, atol=1e-2)


@needs_numba
def test_kernels_are_evaluated_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    probes = probe(*data())
    (whole,) = probes.predictions(0.9, [0.1], 7)
    sizes: list[int] = []

    class Watched(Matern32):
        def __call__(self, r: Tensor) -> Tensor:
            sizes.append(r.numel())
            return super().__call__(r)

    monkeypatch.setattr("skrl.tuning.probes.MAX_VALUES", 100)
    probes.kernel = Watched()
    (pieces,) = probes.predictions(0.9, [0.1], 7)
    assert max(sizes) <= 100
    assert len(sizes) == 5, "15 probes of 28 distances, 3 at a time"
    torch.testing.assert_close(pieces, whole, rtol=0.0, atol=0.0)
