"""Leave-one-out errors at the supports against kernels that never saw them."""

from __future__ import annotations

import pytest
import torch

from skrl import SparseKernel, sparse_kernel
from skrl.readouts.held_out import held_out

LENGTHSCALE, RIDGE = 1.3, 0.1


def made(points: int = 30, k: int = 8) -> SparseKernel:
    features, targets = torch.randn(points, 3).double(), torch.randn(points, 2).double()
    return SparseKernel(features, targets, k=k, lengthscale=LENGTHSCALE, ridge=RIDGE)


@pytest.mark.parametrize("k", [1, 8, 29, 100])
def test_equals_refits_without_each_support(k: int) -> None:
    kernel = made(k=k)
    result = held_out(kernel)
    assert result.positions.tolist() == list(range(30))
    for i in range(30):
        rest = torch.arange(30) != i
        mean, variance = sparse_kernel(
            kernel.features[i : i + 1],
            kernel.features[rest],
            kernel.targets[rest],
            k=k,
            lengthscale=LENGTHSCALE,
            ridge=RIDGE,
        )
        torch.testing.assert_close(result.errors[i], kernel.targets[i] - mean[0])
        torch.testing.assert_close(result.precision[i], 1.0 / (variance[0] + RIDGE))


def test_continuous_windows_end_where_they_do_for_a_query() -> None:
    """The window of a query ends at its (k + 1)-th neighbour; left out, a support has its own (k + 2)-th there."""
    kernel = made(k=8)
    result = held_out(kernel, localisation="continuous")
    for i in range(0, 30, 5):
        distances = (kernel.features - kernel.features[i]).norm(dim=-1) / LENGTHSCALE
        order = distances.argsort()[1:10]
        near, radius = order[:8], distances[order[8]]
        window = 1.0 - (distances[near] / radius) ** 2
        weights = torch.linalg.solve(
            window[:, None] * gram(kernel.features[near]) * window + RIDGE * torch.eye(8),
            window * cross(distances[near]),
        )
        torch.testing.assert_close(result.errors[i], kernel.targets[i] - (window * weights) @ kernel.targets[near])


def cross(scaled: torch.Tensor) -> torch.Tensor:
    """Matérn-3/2."""
    return (1.0 + 3**0.5 * scaled) * torch.exp(-(3**0.5) * scaled)


def gram(points: torch.Tensor) -> torch.Tensor:
    return cross(torch.cdist(points, points) / LENGTHSCALE)


def test_looks_at_evenly_spaced_supports_of_a_large_set() -> None:
    kernel = made(points=3000, k=4)
    positions = held_out(kernel).positions
    assert len(positions) == 1024
    assert (int(positions[0]), int(positions[-1])) == (0, 2999)
    assert positions.diff().max() <= 3


def test_supports_hidden_among_their_duplicates_are_left_out() -> None:
    features = torch.cat([torch.zeros(20, 2), torch.tensor([[3.0, 0.0], [0.0, 3.0]])])
    result = held_out(SparseKernel(features, torch.ones(22, 1), k=2, lengthscale=1.0, ridge=0.1))
    assert 5 <= len(result.positions) < 22
    assert result.errors.isfinite().all()


def test_one_support_has_nothing_to_be_predicted_from() -> None:
    result = held_out(SparseKernel(torch.zeros(1, 2), torch.tensor([[3.0]])))
    torch.testing.assert_close(result.errors, torch.tensor([[3.0]]))


def test_a_kernel_without_supports_has_none_to_leave_out() -> None:
    with pytest.raises(ValueError, match="no supports or settings of its own; give them to its constructor"):
        held_out(SparseKernel())
