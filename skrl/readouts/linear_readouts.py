"""Linear readouts, tuned with the same care as the Sparse Kernels that they are compared with."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional

from skrl.modes import KeepsFloat32, precise
from skrl.readouts.checked_input import in_precision_of
from skrl.readouts.estimators import Classifier, Regressor
from skrl.readouts.feature_scaling import FeatureScaling, Scaling
from skrl.shapes import Float, Int, Tensor

LINEAR_SCALINGS: tuple[Scaling, ...] = ("standard", "isotropic")
"""Scalings that are compared when no penalty is set. A penalty is felt through them alone."""

LOGISTIC_PENALTIES = tuple(10.0**-power for power in range(1, 10))
"""Candidates for the penalty per sample on scaled features, strongest first."""

RIDGE_PENALTIES = tuple(10.0 ** (-power / 3) for power in range(22))
"""Candidates for the penalty in units of the largest eigenvalue of the features' Gram matrix."""

FOLDS = 5

MANY_SAMPLES = 5000
"""From here on one fold decides about the penalty: its error is small, and five would cost five times as much."""


class LinearRegressor(Regressor):
    """Ridge regression; scaling and penalty have the smallest leave-one-out error, in closed form.

    Args:
        penalty: in units of the largest eigenvalue of the features' Gram matrix; chosen when left out. Features are
            standardised when given.
    """

    scaling_: FeatureScaling
    linear_: nn.Linear

    def __init__(self, *, penalty: float | None = None) -> None:
        super().__init__()
        self.penalty = penalty

    def forward(self, features: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch targets"]:
        """Predicted targets, [B, c]."""
        self._require_width(features)
        answers: Tensor = self.linear_(self.scaling_(features))
        return in_precision_of(features, answers)

    def _fit(self, features: Tensor, targets: Tensor) -> None:
        centre = targets.double().mean(0)
        candidates = RIDGE_PENALTIES if self.penalty is None else (self.penalty,)
        best = float("inf")
        for scaling in LINEAR_SCALINGS if self.penalty is None else LINEAR_SCALINGS[:1]:
            scaled = FeatureScaling.fit(features, scaling)
            weight, error = ridge_regression(scaled(features).double(), targets.double() - centre, candidates)
            if error < best or scaling == LINEAR_SCALINGS[0]:
                self.scaling_, best = scaled, error
                self.linear_ = filled_linear(weight.to(features.dtype), centre.to(features.dtype))

    def _allocate(self, blank: Mapping[str, Tensor]) -> None:
        self.scaling_ = FeatureScaling.room_for(blank, "scaling_.")
        self.linear_ = filled_linear(blank["linear_.weight"], blank["linear_.bias"])


class LinearClassifier(Classifier):
    """Multinomial logistic regression, solved by L-BFGS.

    The scaling of the features and the L2 penalty make the fewest mistakes on held-out folds (of equally many, the
    smallest cross entropy), after S. Kornblith, J. Shlens and Q. V. Le, *Do Better ImageNet Models Transfer Better?*,
    2019, appendix A.

    Args:
        penalty: per sample, on half the squared weights; chosen when left out. Features are standardised when given.
        max_iterations: of L-BFGS, per penalty.
        random_state: seed of the folds.
    """

    scaling_: FeatureScaling
    linear_: nn.Linear

    def __init__(
        self, *, penalty: float | None = None, max_iterations: int = 300, random_state: int | None = 0
    ) -> None:
        super().__init__()
        self.penalty, self.max_iterations, self.random_state = penalty, max_iterations, random_state

    def forward(self, features: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch classes"]:
        """Logits, [B, C]."""
        self._require_width(features)
        logits: Tensor = self.linear_(self.scaling_(features))
        return in_precision_of(features, logits)

    def _fit(self, features: Tensor, targets: Tensor) -> None:
        scalings = [FeatureScaling.fit(features, scaling) for scaling in LINEAR_SCALINGS]
        if self.penalty is None:
            trials = [self._held_out(scaling(features).double(), targets) for scaling in scalings]
            best = min(range(len(scalings)), key=lambda i: trials[i][:2])
            self.scaling_, penalty = scalings[best], trials[best][2]
        else:
            self.scaling_, penalty = scalings[0], self.penalty
        scaled = self.scaling_(features).double()
        model = filled_linear(scaled.new_zeros(len(self.classes_), scaled.shape[1]), None)
        logistic_regression(model, scaled, targets, penalty, self.max_iterations)
        self.linear_ = model.to(features.dtype)

    def _held_out(self, features: Tensor, labels: Tensor) -> tuple[int, float, float]:
        """Mistakes, cross entropy and penalty of the best candidate; the path is left where the entropy rose twice."""
        folds = stratified_folds(labels, FOLDS, self.random_state)
        held = [folds == fold for fold in range(FOLDS if len(labels) < MANY_SAMPLES else 1)]
        held = [test for test in held if test.any() and not test.all()]
        models = [filled_linear(features.new_zeros(len(self.classes_), features.shape[1]), None) for _ in held]
        trials: list[tuple[int, float, float]] = []
        for penalty in LOGISTIC_PENALTIES:
            mistakes, loss = 0, 0.0
            for test, model in zip(held, models, strict=True):
                logistic_regression(model, features[~test], labels[~test], penalty, self.max_iterations)
                logits = model(features[test]).detach()
                mistakes += int((logits.argmax(-1) != labels[test]).sum())
                loss += float(functional.cross_entropy(logits, labels[test], reduction="sum"))
            trials.append((mistakes, loss, penalty))
            if len(trials) > 2 and loss > trials[-2][1] > trials[-3][1]:
                break
        return min(trials)

    def _allocate(self, blank: Mapping[str, Tensor]) -> None:
        self.scaling_ = FeatureScaling.room_for(blank, "scaling_.")
        self.linear_ = filled_linear(blank["linear_.weight"], blank["linear_.bias"])


class PreciseLinear(KeepsFloat32, nn.Linear):
    """A linear layer that keeps float32: in half precision weights in the units of large targets are infinite."""

    KEPT = ("weight", "bias")


def filled_linear(weight: Float[Tensor, "outputs inputs"], bias: Float[Tensor, " outputs"] | None) -> nn.Linear:
    """A linear layer with this weight and bias, zero when left out, in float32 at least."""
    outputs, inputs = weight.shape
    layer = PreciseLinear(inputs, outputs, device=weight.device, dtype=precise(weight).dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(torch.zeros_like(layer.bias) if bias is None else bias)
    return layer


def ridge_regression(
    features: Float[Tensor, "samples dim"], targets: Float[Tensor, "samples targets"], candidates: tuple[float, ...]
) -> tuple[Float[Tensor, "targets dim"], float]:
    """Weights with the penalty that has the smallest leave-one-out error e_i = (y_i − ŷ_i) / (1 − h_ii).

    One eigendecomposition serves all candidates. The leverage h_ii counts the mean, hence the 1/n.

    Args:
        features: centred, [n, d].
        targets: centred, [n, c].
        candidates: penalties in units of the largest eigenvalue.

    Returns:
        Weights, [c, d], and the mean square of their leave-one-out errors.
    """
    samples, dim = features.shape
    if dim <= samples:
        eigenvalues, right = torch.linalg.eigh(features.mT @ features)
        left = features @ right / eigenvalues.clamp(min=1e-300).sqrt()
    else:
        eigenvalues, left = torch.linalg.eigh(features @ features.mT)
    kept = eigenvalues > 1e-12 * eigenvalues[-1].clamp(min=1e-300)
    eigenvalues, left = eigenvalues[kept], left[:, kept]
    if not len(eigenvalues):
        return targets.new_zeros(targets.shape[1], dim), float("inf")
    projected = left.mT @ targets
    best, best_error = targets.new_zeros(()), float("inf")
    for penalty in eigenvalues[-1] * targets.new_tensor(candidates):
        shrinkage = eigenvalues / (eigenvalues + penalty)
        leverage = left.square() @ shrinkage + 1.0 / samples
        errors = (targets - left @ (shrinkage.unsqueeze(-1) * projected)) / (1.0 - leverage).unsqueeze(-1)
        if (error := float(errors.square().mean())) < best_error:
            best, best_error = penalty, error
    dual = left @ (projected / (eigenvalues + best).unsqueeze(-1))
    return dual.mT @ features, best_error


def logistic_regression(
    model: nn.Linear,
    features: Float[Tensor, "samples dim"],
    labels: Int[Tensor, " samples"],
    penalty: float,
    max_iterations: int,
) -> None:
    """Minimise the mean cross entropy + penalty/2 · ‖W‖² from where the model is, in place.

    Args:
        model: logits from features.
        features: [n, d].
        labels: [n].
        penalty: per sample.
        max_iterations: of L-BFGS.
    """
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=max_iterations, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = functional.cross_entropy(model(features), labels) + 0.5 * penalty * model.weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[no-untyped-call]
    optimizer.zero_grad()


def stratified_folds(labels: Int[Tensor, " samples"], folds: int, seed: int | None) -> Int[Tensor, " samples"]:
    """A fold for every sample, each with its share of every class."""
    generator = torch.Generator()
    if seed is not None:
        generator.manual_seed(seed)
    else:
        generator.seed()
    order = torch.randperm(len(labels), generator=generator).to(labels.device)
    order = order[labels[order].argsort(stable=True)]
    assigned = torch.empty_like(order)
    assigned[order] = torch.arange(len(order), device=order.device) % folds
    return assigned
