"""Sparse Kernels as readouts: a module for the end of a network, and a scikit-learn estimator, in one object.

Fitting stores features as supports, without a gradient step: training-free transfer. With learned targets it is
nonlinear probing, with learned supports and a backbone that trains along it is a hybrid model. After J.-M. Mercier and
G. Santin, *Differentiable Kernel Ridge Regression for Deep Learning Pipelines*, 2026, arXiv 2605.02313.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from skrl.checks import looks_at, overflow_error
from skrl.kernels.algebra import Kernel
from skrl.modes import precise
from skrl.readouts.checked_input import in_precision_of, like
from skrl.readouts.estimators import Classifier, Readout, Regressor
from skrl.readouts.feature_scaling import MAX_WHITENED, FeatureScaling, Scaling
from skrl.readouts.held_out import HeldOut, held_out
from skrl.search.neighbors import Localisation, NeighborSearch
from skrl.shapes import Float, Int, Tensor
from skrl.sparse_kernel import SparseKernel

SHARPNESSES = (1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0, 11.0, 16.0)
"""Candidates for the factor of class scores. Few separable samples would ask for an endless one; 16 gives 1e-7."""

NEAR, WIDE = 32, 128
"""Neighbours per query that are compared when none are set."""

AUTOMATIC: tuple[Scaling, ...] = ("standard", "isotropic", "cosine", "whitened")
"""Scalings that are compared when none is set."""


class Trial(NamedTuple):
    """One way of scaling the features, with the kernel that tuned itself to it.

    Attributes:
        scaling: of features.
        kernel: over the scaled supports.
        held_out: its leave-one-out errors.
    """

    scaling: FeatureScaling
    kernel: SparseKernel
    held_out: HeldOut


class SparseKernelReadout(Readout):
    """What regressor and classifier share: supports chosen from the data, a scaling, a Sparse Kernel.

    Args:
        kernel: a kernel or its name.
        k: neighbours per query; when left out ``NEAR``, or ``WIDE`` where those predict left-out supports better, as
            they do for features that say little about the targets. A query then takes several times as long.
        lengthscale: ℓ in units of the scaled features, whose mean square length is one; tuned when left out.
        ridge: λ; tuned when left out.
        localisation: ``hard`` neighbours, or ``continuous``, whose say fades with distance.
        scaling: see :class:`FeatureScaling`; ``auto`` takes the one with the smallest leave-one-out error (whitening
            up to ``MAX_WHITENED`` features).
        max_supports: samples kept at most, drawn at random, per class in proportion and at least one while there is
            room for all classes; None keeps all.
        learn_supports: make the supports a parameter.
        learn_targets: make their targets a parameter.
        learn_kernel: make lengthscale and ridge parameters.
        search: how neighbours are found; exact by default.
        random_state: seed of the draw.
    """

    KEPT_BESIDES: ClassVar[tuple[str, ...]] = ("k",)
    ANY_ROWS: ClassVar[tuple[str, ...]] = ("sparse_kernel_.features", "sparse_kernel_.targets")

    scaling_: FeatureScaling
    sparse_kernel_: SparseKernel

    def __init__(
        self,
        *,
        kernel: str | Kernel = "matern32",
        k: int | None = None,
        lengthscale: float | None = None,
        ridge: float | None = None,
        localisation: Localisation = "hard",
        scaling: Scaling | str = "auto",
        max_supports: int | None = 50_000,
        learn_supports: bool = False,
        learn_targets: bool = False,
        learn_kernel: bool = False,
        search: NeighborSearch | None = None,
        random_state: int | None = 0,
    ) -> None:
        super().__init__()
        self.kernel, self.k = kernel, k
        self.lengthscale, self.ridge = lengthscale, ridge
        self.localisation, self.scaling = localisation, scaling
        self.max_supports = max_supports
        self.learn_supports, self.learn_targets, self.learn_kernel = learn_supports, learn_targets, learn_kernel
        self.search, self.random_state = search, random_state

    def _fit_kernel(self, features: Tensor, residuals: Tensor, chosen: Tensor) -> HeldOut:
        """Take the scaling, then the number of neighbours, whose kernel predicts its own supports best.

        Args:
            features: all samples, [n, d]; the scaling is measured on them.
            residuals: targets of the supports around what the answer is far from all of them, [M, c].
            chosen: positions of the supports among the samples, [M].
        """
        supports, near = features[chosen], NEAR if self.k is None else self.k
        scalings = [FeatureScaling.fit(features, scaling) for scaling in self._scalings(features.shape[1])]
        trials = [self._trial(scaling, supports, residuals, near) for scaling in scalings]
        best = min(trials, key=lambda trial: trial.held_out.mean_square)
        if self.k is None and len(chosen) > NEAR:
            wide = self._trial(best.scaling, supports, residuals, WIDE)
            # The wide one leaves fewer supports out: compare the two on the same.
            same = held_out(best.kernel, self.search, self.localisation, probes=len(wide.held_out.positions))
            best = wide if wide.held_out.mean_square < same.mean_square else best
        self.scaling_, self.sparse_kernel_ = best.scaling, best.kernel
        return best.held_out

    def _scalings(self, dim: int) -> tuple[Scaling, ...]:
        if self.scaling != "auto":
            return (cast("Scaling", self.scaling),)
        return AUTOMATIC if dim <= MAX_WHITENED else tuple(scaling for scaling in AUTOMATIC if scaling != "whitened")

    def _trial(self, scaling: FeatureScaling, supports: Tensor, residuals: Tensor, k: int) -> Trial:
        kernel = self._make_kernel(scaling(supports), residuals, self.lengthscale, self.ridge, k)
        return Trial(scaling, kernel, held_out(kernel, self.search, self.localisation))

    def _make_kernel(
        self, supports: Tensor, residuals: Tensor, lengthscale: float | None, ridge: float | None, k: int
    ) -> SparseKernel:
        return SparseKernel(
            nn.Parameter(supports) if self.learn_supports else supports,
            nn.Parameter(residuals) if self.learn_targets else residuals,
            kernel=self.kernel,
            k=k,
            lengthscale=lengthscale,
            ridge=ridge,
            localisation=self.localisation,
            learn_kernel=self.learn_kernel,
            search=self.search,
        )

    def _choose(self, groups: Tensor) -> Tensor:
        """Positions of the supports, ascending: a random share of every group that is proportional to its size."""
        count, limit = len(groups), self.max_supports
        if limit is not None and limit < 1:
            raise ValueError(f"max_supports is {limit}, but at least one support is needed; None keeps all samples")
        if limit is None or count <= limit:
            return torch.arange(count, device=groups.device)
        order = torch.from_numpy(np.random.default_rng(self.random_state).permutation(count)).to(groups.device)
        # Each sample's rank within its group, as a share of the group: the smallest shares go first.
        grouped = groups[order].argsort(stable=True)
        sizes = groups.bincount()
        ranks = torch.arange(count, device=groups.device) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
        shares = ranks / sizes.repeat_interleave(sizes)
        return order[grouped[shares.argsort(stable=True)[:limit]]].sort().values

    def _allocate(self, blank: Mapping[str, Tensor]) -> None:
        """See :meth:`Readout._allocate`."""
        self.scaling_ = FeatureScaling.room_for(blank, "scaling_.")
        supports, targets = blank["sparse_kernel_.features"], blank["sparse_kernel_.targets"]
        self.sparse_kernel_ = self._make_kernel(supports, targets, lengthscale=1.0, ridge=1.0, k=self.k or NEAR)

    def get_extra_state(self) -> dict[str, Any]:
        """See :meth:`Readout.get_extra_state`."""
        state = super().get_extra_state()
        return {**state, "k": self.sparse_kernel_.k} if state else state

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`get_extra_state` gave."""
        super().set_extra_state(state)
        if state:
            self.sparse_kernel_.k = state["k"]


class SparseKernelRegressor(SparseKernelReadout, Regressor):
    """Local kernel ridge regression around the mean of the targets.

    Settings are those of :class:`SparseKernelReadout`; all of them have defaults that tune themselves.
    """

    KEPT = ("target_mean_", "target_scale_", "deviation_")

    target_mean_: Tensor
    target_scale_: Tensor
    deviation_: Tensor

    def forward(self, features: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch targets"]:
        """Predicted targets, [B, c]; their training mean far from every support.

        Differentiable in the features, and in supports and targets where they are learned.

        Raises:
            ValueError: not fitted, another width, or (on a CPU) a row that is not finite, or an answer that exceeds the
                precision of the features.
        """
        self._require_width(features)
        standard: Tensor = self.sparse_kernel_(self.scaling_(features))
        answers = in_precision_of(features, self.target_mean_ + self.target_scale_ * standard)
        if looks_at(answers) and not answers.isfinite().all():
            targets = self.target_mean_ + self.target_scale_ * cast("Tensor", self.sparse_kernel_.targets)
            raise overflow_error(answers, targets.abs().max().item())
        return answers

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Predicted targets and, when asked for, the standard deviation of a new observation.

        That is s · √(σ²(z) + λ) with the scale s that makes the leave-one-out errors most likely, noise included, as of
        scikit-learn's ``GaussianProcessRegressor`` with a ``WhiteKernel``.

        Args:
            X: features, [n, d].
            return_std: also give the deviations.

        Returns:
            Targets, [n] or [n, c] like those seen when fitting, and deviations of the same shape; tensors for a
            tensor, else arrays.
        """
        if not return_std:
            return super().predict(X)
        with torch.no_grad():
            mean, variance = self.sparse_kernel_.predict(self.scaling_(self._checked(X)))
            ridge = cast("Tensor", self.sparse_kernel_.ridge)
            std = (variance + ridge).sqrt().unsqueeze(-1) * self.deviation_ * self.target_scale_
            mean = self.target_mean_ + self.target_scale_ * mean
        column = 0 if self._one_dimensional else slice(None)
        return like(mean[:, column], X), like(std[:, column], X)

    def _fit(self, features: Tensor, targets: Tensor) -> None:
        mean = targets.mean(0)
        if not mean.isfinite().all():  # though they are: their sum overflows
            unit = targets.abs().amax(0).clamp(min=torch.finfo(targets.dtype).tiny)
            mean = unit * (targets / unit).mean(0)
        # In units of the largest deviation, whose square may overflow.
        largest = (targets - mean).abs().amax(0).clamp(min=torch.finfo(targets.dtype).tiny)
        spread = largest * ((targets - mean) / largest).square().mean(0).sqrt()
        scale = torch.where(spread > 0, spread, 1.0)
        chosen = self._choose(torch.zeros(len(features), dtype=torch.long, device=features.device))
        left_out = self._fit_kernel(features, (targets[chosen] - mean) / scale, chosen)
        likeliest = (left_out.errors.square() * left_out.precision.unsqueeze(-1)).mean(0).sqrt()
        # A single sample leaves nothing to predict it from.
        self._register(mean, scale, torch.ones_like(mean) if len(features) == 1 else likeliest.to(mean))

    def _allocate(self, blank: Mapping[str, Tensor]) -> None:
        super()._allocate(blank)
        self._register(blank["target_mean_"], blank["target_scale_"], blank["deviation_"])

    def _register(self, mean: Tensor, scale: Tensor, deviation: Tensor) -> None:
        self.register_buffer("target_mean_", precise(mean))
        self.register_buffer("target_scale_", precise(scale))
        self.register_buffer("deviation_", precise(deviation))


class SparseKernelClassifier(SparseKernelReadout, Classifier):
    """Local kernel ridge regression of one-hot labels around the class frequencies, calibrated to probabilities.

    Settings are those of :class:`SparseKernelReadout`; all of them have defaults that tune themselves.
    """

    KEPT = ("class_prior_", "sharpness_")

    class_prior_: Tensor
    sharpness_: Tensor

    def forward(self, features: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch classes"]:
        """Logits log π + β f, [B, C], for a cross entropy or a softmax.

        π are the class frequencies, f the regression of one-hot labels minus π, which vanishes far from every support,
        and the sharpness β makes the left-out labels most likely.

        Differentiable in the features, and in supports and targets where they are learned.

        Raises:
            ValueError: not fitted, another width, or (on a CPU) a row that is not finite.
        """
        self._require_width(features)
        scores: Tensor = self.sparse_kernel_(self.scaling_(features))
        return in_precision_of(features, self.class_prior_.log() + self.sharpness_ * scores)

    def _fit(self, features: Tensor, targets: Tensor) -> None:
        counts = targets.bincount().to(features.dtype)
        prior = counts / counts.sum()
        chosen = self._choose(targets)
        residuals = functional.one_hot(targets[chosen], len(prior)) - prior
        left_out = self._fit_kernel(features, residuals, chosen)
        scores = residuals[left_out.positions] - left_out.errors
        self._register(prior, likeliest_sharpness(scores, prior, targets[chosen][left_out.positions]))

    def _allocate(self, blank: Mapping[str, Tensor]) -> None:
        super()._allocate(blank)
        self._register(blank["class_prior_"], blank["sharpness_"])

    def _register(self, prior: Tensor, sharpness: Tensor) -> None:
        self.register_buffer("class_prior_", precise(prior))
        self.register_buffer("sharpness_", precise(sharpness))


def likeliest_sharpness(
    scores: Float[Tensor, "samples classes"], prior: Float[Tensor, " classes"], labels: Int[Tensor, " samples"]
) -> Float[Tensor, ""]:
    """The candidate β with the smallest cross entropy of the labels under softmax(log π + β f).

    Args:
        scores: left-out predictions f, [P, C].
        prior: class frequencies π, [C].
        labels: [P].
    """
    if len(labels) == 0:
        return prior.new_ones(())
    losses = torch.stack([functional.cross_entropy(prior.log() + beta * scores, labels) for beta in SHARPNESSES])
    return prior.new_tensor(SHARPNESSES)[losses.argmin()]
