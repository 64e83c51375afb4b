"""Frozen networks: modes, hooks, pooling, batches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from skrl.readouts.activations import collect_features, evaluation_mode, pooled, recorded_outputs


def network() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Dropout(), nn.ReLU(inplace=True)))
    model[0].eval()
    return model


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def test_evaluation_mode_restores_every_module() -> None:
    model = network()
    before = modes(model)
    assert before == [True, False, True, True, True]
    with evaluation_mode(model):
        assert modes(model) == [False] * 5
    assert modes(model) == before
    with pytest.raises(RuntimeError, match="inside"), evaluation_mode(model):
        raise RuntimeError("inside")
    assert modes(model) == before


def test_outputs_are_read_before_a_later_module_overwrites_them() -> None:
    model = network().eval()
    x = torch.randn(5, 3)
    with recorded_outputs({"linear": model[0], "relu": model[1][1]}, lambda output: output.clone()) as outputs:
        model(x)
    torch.testing.assert_close(outputs["linear"], x @ model[0].weight.mT + model[0].bias)
    torch.testing.assert_close(outputs["relu"], outputs["linear"].clamp(min=0.0))
    assert outputs["linear"].min() < 0.0


def test_no_hook_outlives_the_block() -> None:
    model = network()
    with (
        pytest.raises(RuntimeError, match="inside"),
        recorded_outputs(dict(model.named_modules()), lambda output: output),
    ):
        raise RuntimeError("inside")
    assert not any(module._forward_hooks for module in model.modules())


def test_pooling_by_hand() -> None:
    maps = torch.arange(24.0).reshape(1, 2, 3, 4)
    torch.testing.assert_close(pooled(maps), torch.tensor([[5.5, 17.5]]))
    torch.testing.assert_close(pooled(maps.unsqueeze(2)), torch.tensor([[5.5, 17.5]]))
    tokens = torch.tensor([[[1.0, 10.0], [3.0, 20.0]]])
    torch.testing.assert_close(pooled(tokens), torch.tensor([[2.0, 15.0]]))
    torch.testing.assert_close(pooled(tokens, "flatten"), torch.tensor([[1.0, 10.0, 3.0, 20.0]]))
    torch.testing.assert_close(pooled(tokens, lambda values: values.mean(-1)), torch.tensor([[5.5, 11.5]]))
    torch.testing.assert_close(pooled(torch.tensor([1.0, 2.0])), torch.tensor([[1.0], [2.0]]))


@pytest.mark.usefixtures("without_shape_checks")
def test_pooling_errors() -> None:
    with pytest.raises(ValueError, match="pooling is 'max', but must be 'mean', 'flatten' or a function"):
        pooled(torch.rand(2, 3, 4), "max")  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"pooling made shape \(2, 3, 4\) of \(2, 3, 4\), but must give \[2, features\]"
    ):
        pooled(torch.rand(2, 3, 4), lambda values: values)


def test_features_of_all_batches_without_a_gradient() -> None:
    model = network()
    x, y = torch.randn(5, 3), torch.arange(5)

    def relu_of_linear(values: Tensor) -> Tensor:
        return (values @ model[0].weight.mT + model[0].bias).clamp(min=0.0)

    features, targets = collect_features([(x[:2], y[:2]), [x[2:], y[2:]]], model)
    assert not features.requires_grad
    torch.testing.assert_close(features, relu_of_linear(x).detach())
    assert torch.equal(targets, y)
    inputs, _ = collect_features([(x, y)], model, head=model[1][1])
    torch.testing.assert_close(inputs, (x @ model[0].weight.mT + model[0].bias).detach())
    outside, _ = collect_features([(x, y)], model, head=nn.Linear(3, 1))
    torch.testing.assert_close(outside, features)


def test_labels_of_a_loader_may_be_text() -> None:
    batches = [(torch.ones(2, 3), ("a", "b")), (torch.zeros(1, 3), ["b"])]
    features, labels = collect_features(batches)
    assert features.shape == (3, 3)
    assert labels.tolist() == ["a", "b", "b"]
