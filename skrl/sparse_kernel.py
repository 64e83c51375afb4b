"""Sparse Kernel as a module: supports, targets and evaluation points, each fixed, learned or given at call time.

After J.-M. Mercier and G. Santin, *Differentiable Kernel Ridge Regression for Deep Learning Pipelines*, 2026,
arXiv 2605.02313.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from skrl.checks import (
    as_neighbors,
    check_lengthscale,
    check_neighbors,
    check_ridge,
    check_rows,
    check_sets,
    check_tensor,
    floating,
)
from skrl.few_queries import FewQueries, ShortWay
from skrl.functional import PriorMean, find, local_systems, prior_residuals, sparse_kernel
from skrl.kernels.algebra import Kernel
from skrl.kernels.formulas import make_kernel
from skrl.modes import KeepsFloat32, forwards, full_precision, precise, traced, wants_gradient
from skrl.search.exact import as_search
from skrl.search.neighbors import Localisation, NeighborSearch, check_localisation, gather_points
from skrl.shapes import Float, Shaped, Tensor
from skrl.solve.local_solve import Prediction
from skrl.support_cache import SupportCache
from skrl.tuning.hyperparameters import tune
from skrl.tuning.leave_one_out import MAX_PROBES, Objective, leave_one_out_loss

__all__ = ["SparseKernel", "sparse_kernel"]

SMALLEST_RIDGE = 1e-8
"""A learned ridge starts here at least, since it is learned through its logarithm."""

SETS = ("features", "targets", "points")

FIXED = frozenset(("features", "targets", "fixed_lengthscale", "fixed_ridge"))
"""Buffers of a module that learns nothing."""


class SparseKernel(KeepsFloat32):
    """A Sparse Kernel over a support set, usable wherever an ``nn.Module`` is.

    Each of the three parameter sets is a tensor, which stays fixed (a buffer), an ``nn.Parameter``, which is learned,
    or left out and given at call time; what is given at call time goes before what the module has. Everything fixed is
    training-free transfer, a learned kernel over fixed features a nonlinear probe, everything learned a hybrid model.

    Fixed features are made ready for queries once, and again when they or the lengthscale have changed. Change them by
    the usual means, such as ``copy_`` or ``load_state_dict``: what is written through ``.data`` leaves no trace.

    A lengthscale or a ridge that is left out and a k among candidates are chosen by leave-one-out error
    (:func:`skrl.tuning.tune`): once where features and targets are given here, else at every call.

    Args:
        features: support points X, [M, d]; integers and booleans are cast to torch's default dtype, in every set.
        targets: values Y, [M, c].
        points: evaluation points z, [B, d].
        kernel: a kernel or its name.
        k: neighbours per query, or candidates for it. Not in the state dict, no more than the kernel.
        lengthscale: ℓ, one number or one per dimension, [d]; fixed unless ``learn_kernel`` says otherwise. Kept in the
            precision of the features, float32 at least; without features in torch's default dtype, which rounds it to
            float32 for data of float64 too, unless it was set to that.
        ridge: λ; likewise.
        localisation: "hard", or "continuous", whose prediction does not jump where the neighbours change.
        learn_kernel: make the logarithms of the lengthscale and the ridge parameters, which keeps both positive.
        prior_mean: m, a module or any callable; zero when left out.
        search: how neighbours are found; exact by default.

    Raises:
        TypeError: k is not a whole number, or lengthscale or ridge neither a number nor a tensor.
        ValueError: shapes do not match, a setting is out of range or wants a gradient, or a row is not finite.
    """

    KEPT = ("fixed_lengthscale", "fixed_ridge", "log_lengthscale", "log_ridge")

    features: Tensor | None
    targets: Tensor | None
    points: Tensor | None
    k: int | tuple[int, ...]

    def __init__(
        self,
        features: Shaped[Tensor, "points dim"] | None = None,
        targets: Shaped[Tensor, "points targets"] | None = None,
        points: Shaped[Tensor, "queries dim"] | None = None,
        *,
        kernel: str | Kernel = "matern32",
        k: int | Sequence[int] = 32,
        lengthscale: Float[Tensor, ""] | Float[Tensor, " dim"] | float | None = None,
        ridge: Float[Tensor, ""] | float | None = None,
        localisation: Localisation = "hard",
        learn_kernel: bool = False,
        prior_mean: PriorMean | None = None,
        search: NeighborSearch | None = None,
    ) -> None:
        super().__init__()
        self.kernel, self.localisation = kernel, localisation
        self.k = as_neighbors(k)
        self.prior_mean, self.search = prior_mean, as_search(search)
        self._supports, self._short_way = SupportCache(), ShortWay()
        for name, value in zip(SETS, (features, targets, points), strict=True):
            self._fix_or_learn(name, value)
        check_localisation(localisation)
        for candidate in self.k if isinstance(self.k, tuple) else (self.k,):
            check_neighbors(candidate, 0 if self.features is None else len(self.features))
        if self.features is None:
            make_kernel(kernel)  # An unknown name is found here, the dimension at the call.
        else:
            check_sets(self.points, self.features, self.targets)
            self.kernel = make_kernel(kernel, max(1, self.features.shape[1]))
            for name in SETS:
                if getattr(self, name) is not None:
                    check_rows(name, getattr(self, name))
        self._fix_or_learn_kernel(lengthscale, ridge, learn_kernel)

    @property
    def lengthscale(self) -> Tensor | None:
        """ℓ, one number or [d]; None while it is chosen at every call. Learned as ``log_lengthscale``."""
        return self._setting("lengthscale")

    @property
    def ridge(self) -> Tensor | None:
        """λ; None while it is chosen at every call. Learned as ``log_ridge``."""
        return self._setting("ridge")

    def forward(
        self,
        queries: Shaped[Tensor, "queries dim"] | None = None,
        *,
        features: Shaped[Tensor, "points dim"] | None = None,
        targets: Shaped[Tensor, "points targets"] | None = None,
    ) -> Float[Tensor, "queries targets"]:
        """Mean prediction, [B, c]; see :meth:`predict`."""
        return self.predict(queries, features=features, targets=targets).mean

    def predict(
        self,
        queries: Shaped[Tensor, "queries dim"] | None = None,
        *,
        features: Shaped[Tensor, "points dim"] | None = None,
        targets: Shaped[Tensor, "points targets"] | None = None,
    ) -> Prediction:
        """Mean [B, c] and variance [B], as :func:`skrl.functional.sparse_kernel` answers.

        Args:
            queries: [B, d]; the module's own points when left out.
            features: [M, d]; the module's own when left out.
            targets: [M, c]; the module's own when left out.

        Raises:
            ValueError: a set is neither the module's nor given, shapes do not match, or, on a CPU, a row is not finite.
        """
        queries, own = self._own_or_given("points", queries, "queries"), features is None
        if own and targets is None:
            answer = self._answer_few(queries)
            if answer is not None:
                return answer
        features, targets = self._own_or_given("features", features), self._own_or_given("targets", targets)
        lengthscale, ridge, k = self._known_or_chosen(features, targets)
        return sparse_kernel(
            queries,
            features,
            targets,
            kernel=self.kernel,
            lengthscale=lengthscale,
            ridge=ridge,
            k=k,
            localisation=self.localisation,
            prior_mean=self.prior_mean,
            search=self.search,
            support=self._supports.support(features, lengthscale, self.search) if own else None,
        )

    def leave_one_out(self, queries: Shaped[Tensor, "queries dim"] | None = None) -> Float[Tensor, "queries k targets"]:
        """Closed-form leave-one-out errors of every query's neighbours, [B, min(k, M), c], from the own sets."""
        queries = floating(self._own_or_given("points", queries, "queries"))
        features, targets = self._own_or_given("features", None), self._own_or_given("targets", None)
        check_sets(queries, features, targets)
        check_rows("query", queries)
        lengthscale, ridge, k = self._known_or_chosen(features, targets)
        kernel = make_kernel(self.kernel, max(1, features.shape[1]))
        residuals = prior_residuals(features, targets, self.prior_mean)
        check_rows("residuals", residuals, "repair the target, or the prior mean")
        with full_precision(queries.device.type):
            support = self._supports.support(features, lengthscale, self.search)
            found = find(queries, support, lengthscale, k, self.localisation)
            systems = local_systems(
                found, features, support, kernel, lengthscale, ridge, k, self.localisation, residuals.shape[1]
            )
            errors = [
                system.leave_one_out(gather_points(residuals, indices).to(system.factor.dtype))
                for indices, system in systems
            ]
        return torch.cat(errors).to(queries.dtype)

    def leave_one_out_loss(
        self,
        objective: Objective = "error",
        *,
        probes: int = MAX_PROBES,
        features: Shaped[Tensor, "points dim"] | None = None,
        targets: Shaped[Tensor, "points targets"] | None = None,
    ) -> Float[Tensor, ""]:
        """Loss of predicting supports from their k nearest others: minimise it to learn the kernel.

        Args:
            objective: "error" or "likelihood", see :func:`skrl.tuning.leave_one_out.leave_one_out_loss`.
            probes: supports that are predicted, at most.
            features: [M, d]; the module's own when left out.
            targets: [M, c]; the module's own when left out.
        """
        features = floating(self._own_or_given("features", features))
        targets = floating(self._own_or_given("targets", targets))
        lengthscale, ridge, k = self._known_or_chosen(features, targets)
        return leave_one_out_loss(
            features,
            prior_residuals(features, targets, self.prior_mean),
            make_kernel(self.kernel, max(1, features.shape[1])),
            lengthscale,
            ridge,
            k,
            objective=objective,
            probes=probes,
            search=self.search,
            localisation=self.localisation,
        )

    def extra_repr(self) -> str:
        """Settings that ``print(module)`` shows."""
        parts = [] if self.features is None else ["supports={}, dim={}".format(*self.features.shape)]
        parts += [f"kernel={self.kernel}, k={self.k}, localisation={self.localisation}"]
        for name, value in (("lengthscale", self.lengthscale), ("ridge", self.ridge)):
            if value is None:
                continue
            if value.dim() > 0:
                parts.append(f"{name}={len(value)} values")
            else:
                # An accelerator would have to wait for a look, and the meta device has nothing to show.
                parts.append(f"{name}={value.item():.4g}" if value.is_cpu else f"{name} on {value.device}")
        return ", ".join(parts)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take the number of rows of every set from the state; widths have to match, and features and targets."""
        own = {name: value for name in SETS if (value := getattr(self, name)) is not None}
        given = {name: state_dict.get(prefix + name, value) for name, value in own.items()}
        counts = {given[name].shape[:1] for name in ("features", "targets") if name in given}
        # Otherwise torch says which shapes differ, and no set is left with the room of another.
        if len(counts) < 2 and all(given[name].shape[1:] == value.shape[1:] for name, value in own.items()):
            for name, value in own.items():
                if given[name].shape != value.shape:
                    self._make_room(name, value, given[name].shape)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _make_room(self, name: str, own: Tensor, shape: torch.Size) -> None:
        if isinstance(own, nn.Parameter):
            own.data, own.grad = own.data.new_zeros(shape), None
        else:
            setattr(self, name, own.new_zeros(shape))

    def _fix_or_learn(self, name: str, value: Tensor | None) -> None:
        if isinstance(value, nn.Parameter):
            self.register_parameter(name, value)
        elif value is None:
            self.register_buffer(name, None)
        else:
            if wants_gradient(value):
                raise ValueError(
                    f"{name} want a gradient, but a module keeps what it is given fixed; learn them as nn.Parameter, "
                    f"give {name}.detach(), or give them at every call"
                )
            self.register_buffer(name, floating(value).detach().clone(memory_format=torch.contiguous_format))

    def _fix_or_learn_kernel(
        self, lengthscale: Tensor | float | None, ridge: Tensor | float | None, learn: bool
    ) -> None:
        features, like = self.features, torch.empty(0) if self.features is None else precise(self.features[:0])
        if lengthscale is not None:
            check_lengthscale(lengthscale, None if features is None else features.shape[1], like.dtype)
        if ridge is not None:
            check_ridge(ridge)
        for name, given in (("lengthscale", lengthscale), ("ridge", ridge)):
            if not learn and wants_gradient(given):
                raise ValueError(
                    f"{name} wants a gradient, but a module keeps what it is given fixed; learn it by "
                    f"learn_kernel=True, give {name}.detach(), or call the function skrl.sparse_kernel"
                )
        if features is not None and self.targets is not None:
            lengthscale, ridge, self.k = self._chosen(features, self.targets, lengthscale, ridge)
        elif learn and (lengthscale is None or ridge is None):
            raise ValueError(
                "learn_kernel needs a start: give lengthscale and ridge, or features and targets to choose them from"
            )
        for name, given, smallest in (("lengthscale", lengthscale, 0.0), ("ridge", ridge, SMALLEST_RIDGE)):
            value = None if given is None else _like(like, given).clone()
            if learn and value is not None:
                self.register_parameter(f"log_{name}", nn.Parameter(value.clamp(min=smallest).log()))
            else:
                self.register_buffer(f"fixed_{name}", value)

    def _setting(self, name: str) -> Tensor | None:
        # As attributes, for whoever parametrises, prunes or replaces them.
        logarithm: Tensor | None = None if f"fixed_{name}" in self._buffers else getattr(self, f"log_{name}", None)
        setting: Tensor | None = getattr(self, f"fixed_{name}") if logarithm is None else logarithm.exp()
        return setting

    def _answer_few(self, queries: Tensor) -> Prediction | None:
        """Few queries of fixed supports by the shortest way, where it may be taken."""
        tensors = [tensor for tensor in self._buffers.values() if tensor is not None]
        # What was parametrised or replaced by an attribute is no buffer any more.
        kept = not self._parameters and self._buffers.keys() >= FIXED
        fixed = kept and self.prior_mean is None and not wants_gradient(queries, *tensors)
        if not fixed or not queries.is_cpu or traced() or forwards():
            return None
        settings = self.kernel, self.k, self.localisation, self.search
        if not self._short_way.is_known(tensors, settings):
            if any(tensor.is_inference() for tensor in tensors):
                return None
            self._short_way.renew(self._make_few(), tensors, settings)
        few = self._short_way.few
        if few is None or not few.serves(queries):
            return None
        return few(queries)

    def _make_few(self) -> FewQueries | None:
        features, targets, lengthscale, ridge = self.features, self.targets, self.lengthscale, self.ridge
        if features is None or targets is None or lengthscale is None or ridge is None or not isinstance(self.k, int):
            return None
        # Settings may have been assigned or written to since the constructor looked at them.
        check_sets(None, features, targets)
        check_neighbors(self.k, len(features))
        check_ridge(ridge)
        check_localisation(self.localisation)
        kernel = make_kernel(self.kernel, max(1, features.shape[1]))
        support = self._supports.support(features, lengthscale, self.search)
        if not FewQueries.is_possible(support, targets, kernel):
            return None
        return FewQueries(support, targets, kernel, lengthscale, ridge.item(), self.k, self.localisation)

    def _own_or_given(self, name: str, given: Tensor | None, argument: str | None = None) -> Tensor:
        value: Tensor | None = getattr(self, name) if given is None else given
        if value is None:
            raise ValueError(f"no {name}: give them to the constructor, or as `{argument or name}` at every call")
        check_tensor(value, argument or name)
        return value

    def _known_or_chosen(self, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, int]:
        """Lengthscale, ridge and k: the module's, or, where it has none, those that these supports ask for."""
        lengthscale, ridge = self.lengthscale, self.ridge
        if lengthscale is not None and ridge is not None and isinstance(self.k, int):
            return lengthscale, ridge, self.k
        features, targets = floating(features), floating(targets)
        check_sets(None, features, targets)
        chosen = self._chosen(features, targets, lengthscale, ridge)
        # What the module has carries its gradient.
        return chosen[0] if lengthscale is None else lengthscale, chosen[1] if ridge is None else ridge, chosen[2]

    @torch.no_grad()
    def _chosen(
        self, features: Tensor, targets: Tensor, lengthscale: Tensor | float | None, ridge: Tensor | float | None
    ) -> tuple[Tensor, Tensor, int]:
        points, residuals = precise(features.detach()), prior_residuals(features, targets, self.prior_mean)
        if lengthscale is not None and ridge is not None and isinstance(self.k, int):
            return _like(points, lengthscale), _like(points, ridge), self.k
        check_rows("features", points)
        check_rows("targets without prior_mean", residuals)
        tuned = tune(
            points,
            residuals,
            make_kernel(self.kernel, max(1, points.shape[1])),
            k=self.k,
            lengthscale=lengthscale,
            ridge=None if ridge is None else float(ridge),
            search=self.search,
            localisation=self.localisation,
        )
        return _like(points, tuned.lengthscale), _like(points, tuned.ridge if ridge is None else ridge), tuned.k


def _like(values: Tensor, setting: Tensor | float) -> Tensor:
    return torch.as_tensor(setting, dtype=values.dtype, device=values.device).detach()
