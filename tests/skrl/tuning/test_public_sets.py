"""Tuning and learning on public regression sets: against dense grids, and on points that were held out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from sklearn import datasets
from torch import Tensor

from skrl import SparseKernel, neighbor_lengthscale, tune
from skrl.kernels import Matern32
from skrl.search.exact import ExactSearch
from skrl.tuning.probes import Probes

SETS: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {
    "diabetes": lambda: datasets.load_diabetes(return_X_y=True),
    "friedman1": lambda: datasets.make_friedman1(1000, noise=1.0, random_state=0),
    "friedman2": lambda: datasets.make_friedman2(1000, noise=100.0, random_state=0),
    "friedman3": lambda: datasets.make_friedman3(1000, noise=0.1, random_state=0),
    "swiss_roll": lambda: datasets.make_swiss_roll(1000, noise=0.5, random_state=0),
}


def load(name: str) -> tuple[Tensor, Tensor]:
    """Features [M, d] and targets [M, 1], standardised."""
    features, targets = SETS[name]()
    columns = (features, targets[:, None])
    features, targets = ((values - values.mean(0)) / values.std(0) for values in columns)
    return torch.from_numpy(features).float(), torch.from_numpy(targets).float()


def errors_of_all(features: Tensor, targets: Tensor, k: int, lengthscale: float, ridges: Sequence[float]) -> np.ndarray:
    """Leave-one-out root mean square error over all points, one for every ridge."""
    index = ExactSearch().index(features)
    probes = Probes.of(index, features, targets, Matern32(), k, len(features), "hard")
    means = [mean for mean, _ in probes.predictions(lengthscale, ridges, k)]
    return (torch.stack(means) - targets).square().mean((1, 2)).sqrt().numpy()


def best_of_grid(features: Tensor, targets: Tensor, k: int, count: int) -> float:
    """Smallest error of ``count`` lengthscales, 0.1 to 100 median neighbour distances, times ``count`` ridges."""
    scale = neighbor_lengthscale(features, k, factor=1.0).item()
    ridges = np.geomspace(1e-8, 1e3, count).tolist()
    factors = np.geomspace(0.1, 100.0, count)
    return min(errors_of_all(features, targets, k, scale * factor, ridges).min() for factor in factors)


@pytest.mark.parametrize("name", SETS)
def test_tuned_error_is_within_a_twentieth_of_a_dense_grid(name: str) -> None:
    features, targets = load(name)
    tuned = tune(features, targets, Matern32(), k=16)
    (error,) = errors_of_all(features, targets, 16, float(tuned.lengthscale), [tuned.ridge])
    assert error <= 1.05 * best_of_grid(features, targets, 16, 25)


@pytest.mark.parametrize(("name", "best"), [("swiss_roll", 8), ("diabetes", 32)])
def test_so_it_is_among_numbers_of_neighbours(name: str, best: int) -> None:
    features, targets = load(name)
    tuned = tune(features, targets, Matern32(), k=(8, 32))
    (error,) = errors_of_all(features, targets, tuned.k, float(tuned.lengthscale), [tuned.ridge])
    assert error <= 1.05 * min(best_of_grid(features, targets, k, 10) for k in (8, 32))
    assert tuned.k == best


def held_out_error(module: SparseKernel, features: Tensor, targets: Tensor) -> float:
    with torch.no_grad():
        return (module(features) - targets).square().mean().sqrt().item()


def test_learned_relevance_lowers_the_held_out_error() -> None:
    """friedman1: of ten dimensions the last five mean nothing."""
    features, targets = load("friedman1")
    known, new = slice(0, 300), slice(300, 1000)
    start = SparseKernel(features[known], targets[known])
    module = SparseKernel(
        features[known],
        targets[known],
        lengthscale=start.lengthscale.expand(10),
        ridge=start.ridge.item(),
        learn_kernel=True,
    )
    before = held_out_error(module, features[new], targets[new])
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    for _ in range(30):
        optimizer.zero_grad()
        loss = module.leave_one_out_loss()
        loss.backward()
        optimizer.step()
    relevant, irrelevant = module.lengthscale[:5], module.lengthscale[5:]
    assert irrelevant.min() > 2.0 * relevant.median()
    assert held_out_error(module, features[new], targets[new]) < 0.8 * before


@pytest.mark.parametrize("objective", ["error", "likelihood"])
def test_an_irrelevant_dimension_loses_its_weight(objective: str) -> None:
    """Of two dimensions the second means nothing: its share of the distance falls, and the held-out error with it."""
    features = torch.rand(200, 2)
    targets = torch.sin(6.0 * features[:, :1]) + 0.1 * torch.randn(200, 1)
    module = SparseKernel(features, targets, k=24, lengthscale=torch.tensor([0.5, 0.5]), ridge=0.05, learn_kernel=True)
    queries = torch.rand(500, 2)
    truth = torch.sin(6.0 * queries[:, :1])
    before = held_out_error(module, queries, truth)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = module.leave_one_out_loss(objective, probes=100)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert module.lengthscale[1] > 2.0 * module.lengthscale[0]
    assert held_out_error(module, queries, truth) < 0.8 * before


def test_every_learned_tensor_receives_a_gradient() -> None:
    features, targets = load("friedman3")
    prior = torch.nn.Linear(4, 1)
    module = SparseKernel(
        torch.nn.Parameter(features[:60]),
        torch.nn.Parameter(targets[:60]),
        lengthscale=1.0,
        ridge=0.1,
        prior_mean=prior,
        learn_kernel=True,
    )
    module.leave_one_out_loss().backward()
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    assert len(gradients) == 6
    assert all(gradient is not None and gradient.abs().max() > 0.0 for gradient in gradients.values())
