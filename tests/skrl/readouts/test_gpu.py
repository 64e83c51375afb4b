"""Readouts and probes on an accelerator."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from skrl import LinearClassifier, LinearRegressor, SparseKernelClassifier, SparseKernelRegressor, probe_layers
from skrl.readouts.estimators import Readout

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def data() -> tuple[torch.Tensor, torch.Tensor]:
    X = torch.randn(300, 5)
    return X, (X[:, 0] * X[:, 1] > 0).long()


@pytest.mark.parametrize("cls", [SparseKernelClassifier, SparseKernelRegressor, LinearClassifier, LinearRegressor])
def test_answers_as_on_the_processor(cls: type[Readout]) -> None:
    X, y = data()
    settings = {"max_supports": 200} if cls in (SparseKernelClassifier, SparseKernelRegressor) else {}
    model, reference = cls(**settings), cls(**settings).fit(X, y)
    model.fit(X.cuda(), y.cuda())
    assert all(value.is_cuda for value in (*model.buffers(), *model.parameters()))
    answers = model(X.cuda())
    assert answers.is_cuda
    torch.testing.assert_close(answers.cpu(), reference(X), atol=1e-2, rtol=1e-2)
    assert model.predict(X.cuda()).is_cuda
    assert model.predict(X.numpy()).shape == (300,)
    assert model.score(X.numpy(), y.numpy()) == pytest.approx(reference.score(X, y), abs=0.02)
    fresh = cls(**settings).cuda()
    fresh.load_state_dict(reference.state_dict())
    torch.testing.assert_close(fresh(X.cuda()).cpu(), reference(X), atol=1e-3, rtol=1e-3)
    moved = cls(**settings).cuda().fit(X.numpy(), y.numpy())
    assert moved(X.cuda()).is_cuda


def test_loader_and_probe_through_a_backbone_on_the_device() -> None:
    X, y = data()
    backbone = nn.Sequential(nn.Linear(5, 16), nn.ReLU()).cuda()
    head = SparseKernelClassifier().fit_loader([(X[:200], y[:200]), (X[200:], y[200:])], backbone)
    with torch.no_grad():
        assert head(backbone(X.cuda())).is_cuda
    report, expected = (probe_layers(on, train=(X, y), test=(X, y)) for on in (backbone, deepcopy(backbone).cpu()))
    assert report.layers == ["0", "1"]
    assert [score.score for score in report.scores] == pytest.approx(
        [score.score for score in expected.scores], abs=0.03
    )
