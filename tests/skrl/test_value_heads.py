"""What each value head computes. The laws that all of them share are in ``tests/contracts``."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from skrl import KERNELS, AveragingHead, NetworkFreeHead, ResidualHead, sparse_kernel
from skrl.kernels import Kernel, Laplace
from skrl.search.neighbors import LOCALISATIONS, Localisation, gather_points, within_radius
from skrl.solve.local_solve import factorise
from skrl.value_heads import ValueHead


def fill(head: ValueHead, sizes: list[int]) -> None:
    sets, capacity, dim = head.memory.features.shape
    head.memory.write(torch.randn(sets, capacity, dim), torch.tensor(sizes), torch.randn(sets, capacity, 1))


def line_head(kind: type[ValueHead], points: list[float], targets: list[float], **keywords: object) -> ValueHead:
    """One action, supports on a line, in float64."""
    chosen: dict[str, object] = {"k": len(points), "ridge": 0.0, "kernel": "laplace"} | keywords
    head = kind(1, len(points), 1, **chosen).double()  # type: ignore[arg-type]
    as_column = lambda values: torch.tensor(values, dtype=torch.float64).view(1, -1, 1)  # noqa: E731
    head.memory.write(as_column(points), torch.tensor([len(points)]), as_column(targets))
    return head


def at(*points: float) -> Tensor:
    return torch.tensor(points, dtype=torch.float64).unsqueeze(1)


@pytest.mark.parametrize("localisation", LOCALISATIONS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_residual_head_equals_a_sparse_kernel_per_action(kernel: str, localisation: Localisation) -> None:
    head = ResidualHead(3, 30, 2, k=6, kernel=kernel, ridge=0.3, localisation=localisation).double()
    fill(head, [30, 9, 4])
    head.lengthscale.fill_(0.8)
    queries = torch.randn(11, 2, dtype=torch.float64)
    local = head.localise(queries)
    for action, size in enumerate([30, 9, 4]):
        features, targets = head.memory.features[action, :size], head.memory.targets[action, :size]
        expected = sparse_kernel(
            queries, features, targets, kernel=kernel, lengthscale=0.8, ridge=0.3, k=6, localisation=localisation
        )
        raw = (local.weights * head.memory.targets[action, local.indices[action], 0]).sum(-1)[action]
        torch.testing.assert_close(raw, expected.mean[:, 0], rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(local.variance[action], expected.variance, rtol=1e-9, atol=1e-10)
        near = torch.cdist(queries, features).topk(min(6, size), largest=False).indices
        low, high = targets[near, 0].amin(-1).clamp(max=0.0), targets[near, 0].amax(-1).clamp(min=0.0)
        clamped = torch.minimum(torch.maximum(expected.mean[:, 0], low), high)
        torch.testing.assert_close(head.correction(queries)[:, action], clamped, rtol=1e-9, atol=1e-10)


def test_residual_head_by_hand() -> None:
    """One support: w = e^{-1} / (1 + λ), prior plus w · residual."""
    head = line_head(ResidualHead, [0.0], [6.0], ridge=1.0)
    values = head(at(1.0), torch.tensor([[10.0]], dtype=torch.float64))
    assert values.item() == pytest.approx(10.0 + 3.0 * 0.36787944117144233, rel=1e-14)
    assert head.localise(at(0.0)).variance.item() == pytest.approx(0.5)


def test_residual_head_without_ridge_interpolates() -> None:
    head = line_head(ResidualHead, [0.0, 1.0, 2.5], [3.0, -1.0, 4.0])
    torch.testing.assert_close(head.correction(at(0.0, 1.0, 2.5)).flatten(), head.memory.targets.flatten())


def test_continuous_localisation_frees_the_correction_of_jumps() -> None:
    """A walk past the middle of two supports, where one neighbour takes the other's place."""
    hard, continuous = (
        line_head(ResidualHead, [0.0, 1.0], [3.0, -1.0], k=1, ridge=0.5, localisation=localisation)
        for localisation in ("hard", "continuous")
    )
    beside = at(0.5 - 1e-9, 0.5 + 1e-9)
    assert hard.correction(beside).diff(dim=0).abs() > 1.0
    assert continuous.correction(beside).diff(dim=0).abs() < 1e-6


@pytest.mark.usefixtures("without_shape_checks")
def test_localisation_is_known_and_belongs_to_a_solve() -> None:
    with pytest.raises(ValueError, match="localisation is 'soft', but must be one of hard, continuous"):
        ResidualHead(2, 5, 3, localisation="soft")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"localisation is 'continuous', but .* averaging head lacks; take 'hard'"):
        AveragingHead(2, 5, 3, localisation="continuous")


def test_lengthscale_scales_the_distances() -> None:
    head = line_head(ResidualHead, [0.0, 1.0], [3.0, -1.0], ridge=0.5)
    before = head.correction(at(0.3))
    head.lengthscale.fill_(10.0)
    wide = line_head(ResidualHead, [0.0, 10.0], [3.0, -1.0], ridge=0.5)
    wide.lengthscale.fill_(10.0)
    torch.testing.assert_close(wide.correction(at(3.0)), before)
    assert not torch.allclose(head.correction(at(0.3)), before)


def test_averaging_head_by_hand() -> None:
    """At 1 between supports 0 and 3: weights e^{-1} : e^{-2}; the variance is 1 − e^{-2}."""
    head = line_head(AveragingHead, [0.0, 3.0], [1.0, -1.0])
    local = head.localise(at(1.0))
    torch.testing.assert_close(local.weights.flatten(), torch.tensor([0.7310585786300049, 0.2689414213699951]).double())
    assert local.variance.item() == pytest.approx(1.0 - 0.1353352832366127, rel=1e-12)
    assert head.correction(at(1.0)).item() == pytest.approx(0.46211715726000973, rel=1e-7)


@pytest.mark.parametrize("kernel", [3.0 * Laplace(), 0.1 * (0.1 * Laplace()), Laplace() + Laplace()])
def test_averaging_head_scales_with_its_kernel(kernel: Kernel) -> None:
    """A multiple of a kernel has the same weights and that multiple of the variance."""
    plain, scaled = (line_head(AveragingHead, [0.0, 3.0], [1.0, -1.0], kernel=one) for one in (Laplace(), kernel))
    queries = at(0.0, 1.0, 50.0)
    expected, local = plain.localise(queries), scaled.localise(queries)
    torch.testing.assert_close(local.weights, expected.weights)
    torch.testing.assert_close(local.variance, kernel.prior_variance * expected.variance)
    assert scaled.optimistic(queries, torch.zeros(3, 1).double(), 1.0).isfinite().all()


def test_averaging_head_ignores_how_many_neighbours_agree() -> None:
    """Its weights sum to one, so that no ridge shrinks them."""
    head = line_head(AveragingHead, [0.0, 0.1, 0.2], [5.0, 5.0, 5.0], ridge=100.0)
    torch.testing.assert_close(head.correction(at(0.1, 4.0)).flatten(), torch.tensor([5.0, 5.0]).double())


def test_network_free_head_ignores_the_network() -> None:
    head = line_head(NetworkFreeHead, [0.0], [6.0], ridge=1.0)
    prior = torch.tensor([[1e6], [float("nan")]], dtype=torch.float64)
    assert head(at(0.0, 1.0), prior).flatten().tolist() == [6.0, 6.0]


@pytest.mark.parametrize("localisation", LOCALISATIONS)
def test_network_free_head_draws_values_towards_each_other(localisation: str) -> None:
    """And not towards zero, however large the ridge."""
    settings = {"localisation": localisation, "ridge": 3.0, "k": 2}
    head = line_head(NetworkFreeHead, [0.0, 1.0, 3.0, 7.0], [7.0] * 4, **settings)
    torch.testing.assert_close(head.correction(at(-2.0, 0.4, 4.0)).flatten(), torch.full((3,), 7.0).double())
    assert head.correction(at(1e6)).item() == 0.0


def test_mean_function_of_a_network_free_head_is_the_mean_of_the_neighbours() -> None:
    places, values = [0.0, 1.0, 3.0], torch.tensor([6.0, -2.0, 4.0]).double()
    head = line_head(NetworkFreeHead, places, values.tolist(), ridge=0.5)
    twin = line_head(ResidualHead, places, (values - values.mean()).tolist(), ridge=0.5)
    queries = at(0.4, 2.0, 3.0)
    torch.testing.assert_close(head.correction(queries), values.mean() + twin.correction(queries))


def test_a_hole_in_the_memory_is_no_neighbour() -> None:
    """The second of three supports is not finite: the others share what the weights lack."""
    whole = line_head(NetworkFreeHead, [0.0, 3.0], [6.0, 4.0], ridge=0.5)
    holed = line_head(NetworkFreeHead, [0.0, float("nan"), 3.0], [6.0, 0.0, 4.0], ridge=0.5)
    torch.testing.assert_close(holed.correction(at(0.4, 5.0)), whole.correction(at(0.4, 5.0)))


def test_amplitude_of_a_network_free_head_is_the_deviation_inside_neighbourhoods() -> None:
    """Values of two groups differ a lot, those inside a group little: what an action changes is of that size."""
    places, values = [0.0, 1.0, 50.0, 51.0], [9.0, 11.0, -19.0, -21.0]
    head = line_head(NetworkFreeHead, places, values, k=2)
    head.write_targets(torch.tensor([values]).double())
    assert head.amplitude.item() == pytest.approx(1.0)
    head.write_targets(torch.tensor([[10.0, 10.0, -20.0, -20.0]]).double())
    assert head.amplitude.item() == pytest.approx(1e-3 * 250.0**0.5)
    head.write_targets(torch.zeros(1, 4).double())
    assert head.amplitude.item() == pytest.approx(1e-6)


def test_optimistic_targets_are_read_by_bounds_alone() -> None:
    head = line_head(NetworkFreeHead, [0.0, 3.0], [1.0, 1.0])
    nothing, queries = torch.zeros(1, 1).double(), at(0.0)
    head.write_targets(torch.tensor([[1.0, 1.0]]).double())
    assert head.optimistic(queries, nothing, 0.0).item() == pytest.approx(1.0)
    head.write_optimistic_targets(torch.tensor([[5.0, 5.0]]).double())
    assert head.optimistic(queries, nothing, 0.0).item() == pytest.approx(5.0)
    assert head(queries, nothing).item() == pytest.approx(1.0)
    with pytest.raises(ValueError, match="residuals row 0 is not finite"):
        head.write_optimistic_targets(torch.tensor([[float("inf"), 0.0]]).double())
    head.write_targets(torch.tensor([[2.0, 2.0]]).double())
    assert head.optimistic(queries, nothing, 0.0).item() == pytest.approx(2.0)


def test_jitters_are_counted() -> None:
    head = line_head(ResidualHead, [0.0, 0.0, 50.0, 51.0], [1.0, 1.0, 2.0, 3.0], k=2)
    corrections = head.correction(at(0.1, 50.1, 0.2))
    assert corrections.isfinite().all()
    assert (int(head.jitters), int(head.fallbacks)) == (2, 0)
    torch.testing.assert_close(corrections[0].exp(), (Laplace()(at(0.1)[0])).exp(), rtol=1e-5, atol=0.0)
    head.correction(at(0.1))
    assert int(head.jitters) == 3


def test_conflicting_duplicates_are_averaged() -> None:
    """Two equal supports with residuals 1 and 4 under ridge λ: (1 + 4) / (2 + λ)."""
    head = line_head(ResidualHead, [0.0, 0.0], [1.0, 4.0], ridge=0.5)
    assert head.correction(at(0.0)).item() == pytest.approx(2.0, rel=1e-12)


def test_unknown_kernel_is_rejected() -> None:
    with pytest.raises(ValueError, match="did you mean 'gaussian'"):
        ResidualHead(1, 1, 1, kernel="gausian")


def test_a_head_is_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        ValueHead(1, 1, 1)  # type: ignore[abstract]


def test_heads_run_outside_autocast() -> None:
    head = ResidualHead(2, 40, 3, k=8)
    fill(head, [40, 20])
    queries = torch.randn(5, 3)
    expected = head.correction(queries)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(head.correction(queries), expected, rtol=1e-5, atol=1e-5)


# Bad input


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"k": 0}, "k is 0, but must be positive"),
        ({"ridge": -1.0}, "ridge is -1.0, but must not be negative"),
        ({"ridge": float("nan")}, "ridge is nan"),
        ({"ridge": float("inf")}, "ridge is inf"),
    ],
)
def test_settings_out_of_range_are_explained(keywords: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResidualHead(2, 5, 3, **keywords)  # type: ignore[arg-type]


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("kind", [ResidualHead, AveragingHead])
def test_queries_that_do_not_fit_are_explained(kind: type[ValueHead]) -> None:
    head = kind(2, 5, 3)
    for queries in (torch.zeros(4, 2), torch.zeros(3), torch.zeros(2, 4, 3)):
        with pytest.raises(ValueError, match=r"queries have shape .* but must be \[batch, 3\] like the features"):
            head.correction(queries)
    with pytest.raises(
        ValueError, match=r"queries lie on meta and features on cpu; move both to one with .to\(device\)"
    ):
        head.correction(torch.zeros(4, 3, device="meta"))


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_integer_queries_are_cast(dtype: torch.dtype) -> None:
    head = ResidualHead(2, 40, 3, k=8)
    fill(head, [40, 20])
    queries = torch.randint(0, 2, (5, 3)).to(dtype)
    assert torch.equal(head.correction(queries), head.correction(queries.float()))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_residuals_that_are_not_finite_are_named(value: float) -> None:
    """In a filled slot; what stands beyond them is ignored."""
    head = ResidualHead(2, 10, 3)
    fill(head, [10, 4])
    residuals = torch.ones(2, 10)
    residuals[1, 4:] = value
    head.write_targets(residuals)
    assert head.amplitude.item() == 1.0
    residuals[1, 2] = value
    with pytest.raises(
        ValueError, match=f"residuals row 1 is not finite: {value} in column 2; rows are actions; a resid"
    ):
        head.write_targets(residuals)
    assert head.amplitude.item() == 1.0


def test_deviations_without_ridge_have_gradients_on_a_support() -> None:
    head = line_head(ResidualHead, [0.0, 1.0], [1.0, 2.0])
    queries = at(0.0, 0.5).requires_grad_()
    bounds = head.optimistic(queries, torch.zeros(2, 1, dtype=torch.float64), 1.0)
    (gradient,) = torch.autograd.grad((head.deviation(queries) + bounds).sum(), queries)
    assert gradient.isfinite().all()


def test_amplitude_counts_what_is_remembered() -> None:
    head = ResidualHead(1, 4, 2)
    features = torch.randn(1, 4, 2)
    features[0, 2] = float("nan")
    head.memory.write(features, torch.tensor([4]))
    head.write_targets(torch.ones(1, 4))
    assert head.amplitude.item() == 1.0


def test_a_head_in_half_precision_measures_in_float32() -> None:
    """Squares of the distances are beyond float16."""
    head = ResidualHead(1, 50, 3, k=8)
    head.memory.write(400.0 * torch.randn(1, 50, 3), torch.tensor([50]), torch.randn(1, 50, 1))
    head.lengthscale.fill_(400.0)
    queries = (400.0 * torch.randn(20, 3)).half()
    half = head.half()
    correction = half.correction(queries)
    torch.testing.assert_close(correction.float(), half.float().correction(queries.float()), atol=2e-3, rtol=2e-3)
    assert not head.fallbacks.item()


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_query_that_is_not_finite_leaves_the_gradient_finite(value: float) -> None:
    head = ResidualHead(2, 20, 3, k=8)
    fill(head, [20, 20])
    queries = torch.randn(3, 3)
    queries[1, 0] = value
    queries.requires_grad_()
    (gradient,) = torch.autograd.grad(head.correction(queries).sum(), queries)
    assert gradient.isfinite().all()
    assert gradient[0].abs().sum() > 0.0


def test_leaving_out_is_predicting_by_the_others() -> None:
    points, targets = [0.0, 0.4, 1.1, 1.5], [-60.0, -59.0, -58.5, -61.0]
    for kind in (ResidualHead, NetworkFreeHead):
        head = line_head(kind, points, targets, ridge=0.3)
        memory = head.memory
        neighbors = head.search(memory.features, memory.features, 4)
        system = factorise(neighbors, memory.features, head.kernel, head.lengthscale, head.ridge)
        errors = head.leave_one_out(system, gather_points(memory.targets, neighbors.indices))[0, 0, :, 0]
        for slot, error in zip(neighbors.indices[0, 0].tolist(), errors, strict=True):
            others = [index for index in range(4) if index != slot]
            rest = line_head(kind, [points[i] for i in others], [targets[i] for i in others], ridge=0.3)
            assert error == pytest.approx(targets[slot] - float(rest.correction(at(points[slot]))), abs=1e-9)


@pytest.mark.parametrize("localisation", LOCALISATIONS)
def test_what_all_values_have_in_common_is_no_error_of_a_network_free_head(localisation: Localisation) -> None:
    head = NetworkFreeHead(1, 20, 2, k=6, ridge=0.3, localisation=localisation).double()
    fill(head, [20])
    memory = head.memory
    near = head.search(memory.features, memory.features, 6 + (localisation == "continuous"))
    neighbors, radius = within_radius(near, 6, localisation)
    system = factorise(neighbors, memory.features, head.kernel, head.lengthscale, head.ridge, radius)
    targets = gather_points(memory.targets, neighbors.indices)
    errors, shifted = head.leave_one_out(system, targets), head.leave_one_out(system, targets + 100.0)
    assert errors.abs().max() > 0.1
    assert torch.allclose(errors, shifted, atol=1e-6)


def test_a_network_free_head_takes_no_mean_over_what_is_infinitely_far() -> None:
    head = line_head(NetworkFreeHead, [0.0, 0.0, 1e6], [3.0, 5.0, 900.0], ridge=0.5)
    assert float(head.correction(at(0.0))) == pytest.approx(4.0)
    assert float(head.correction(at(1e6))) == pytest.approx(900.0)
    neighbors = head.search(head.memory.features, head.memory.features, 3)
    system = factorise(neighbors, head.memory.features, head.kernel, head.lengthscale, head.ridge)
    errors = head.leave_one_out(system, gather_points(head.memory.targets, neighbors.indices))
    by_slot = dict(zip(neighbors.indices[0, 0].tolist(), errors[0, 0, :, 0].tolist(), strict=True))
    assert by_slot == {0: pytest.approx(-2.0), 1: pytest.approx(2.0), 2: pytest.approx(900.0)}  # nothing is known of 2


# Precision


@pytest.mark.parametrize("kind", [ResidualHead, AveragingHead, NetworkFreeHead])
@pytest.mark.parametrize("convert", [torch.nn.Module.half, torch.nn.Module.bfloat16])
def test_numbers_of_a_head_keep_their_precision(
    kind: type[ValueHead], convert: Callable[[torch.nn.Module], ValueHead]
) -> None:
    head = kind(2, 10, 3)
    head.lengthscale.fill_(1e5)
    head.ridge_scale.fill_(1e-8)
    head.amplitude.fill_(7e4)
    head = convert(head)
    assert head.memory.features.dtype in (torch.float16, torch.bfloat16)
    for setting, value in ((head.lengthscale, 1e5), (head.ridge_scale, 1e-8), (head.amplitude, 7e4)):
        assert setting.dtype is torch.float32
        assert setting.item() == pytest.approx(value, rel=1e-6)
    fill(head, [10, 6])
    head.write_targets(torch.randn(2, 10).to(head.memory.targets))
    values = head(torch.randn(4, 3).to(head.memory.features), torch.zeros(4, 2))
    assert values.isfinite().all()
    assert head.double().lengthscale.dtype is torch.float64


@pytest.mark.parametrize(("dtype", "size"), [(torch.float16, 300.0), (torch.float32, 3e19), (torch.float64, 1e200)])
@pytest.mark.parametrize("kind", [ResidualHead, NetworkFreeHead])
def test_the_amplitude_of_residuals_whose_squares_overflow(
    kind: type[ValueHead], dtype: torch.dtype, size: float
) -> None:
    signs = torch.tensor([[1.0, -1.0, 1.0, -1.0, 0.0]]).double()
    amplitudes = []
    for factor in (1.0, size):
        head = kind(1, 5, 1, k=4).to(dtype)
        head.memory.write(torch.arange(5.0).view(1, 5, 1).to(dtype), torch.tensor([4]))
        head.write_targets((factor * signs).to(dtype))
        amplitudes.append(head.amplitude.item() / factor)
    assert amplitudes[1] == pytest.approx(amplitudes[0], rel=1e-3)
    assert kind is NetworkFreeHead or amplitudes[0] == 1.0


@pytest.mark.parametrize("kind", [ResidualHead, NetworkFreeHead])
def test_the_amplitude_of_ordinary_residuals_is_the_plain_root_mean_square(kind: type[ValueHead]) -> None:
    """Published runs repeat bit for bit."""
    head = kind(2, 50, 3)
    fill(head, [50, 20])
    residuals = 100.0 * torch.randn(2, 50)
    head.write_targets(residuals)
    plain = (head.memory.targets.square().sum() / 70).sqrt()
    if kind is NetworkFreeHead:
        near = head.search(head.memory.features, head.memory.features, head.k, head.memory.half_norms)
        values = head.memory.targets.squeeze(-1).gather(1, near.indices.flatten(1)).view(near.indices.shape)
        counts = near.mask & head.memory.mask.unsqueeze(-1)
        mean = (values * counts).sum(-1, keepdim=True) / counts.sum(-1, keepdim=True).clamp(min=1)
        plain = (((values - mean).square() * counts).sum() / counts.sum().clamp(min=1)).sqrt()
    assert torch.equal(head.amplitude, plain)
