"""Modules that are scikit-learn estimators too: ``fit``, ``predict``, ``score`` and ``forward`` on one object.

Settings are constructor arguments kept under their own names and checked when fitting; what is fitted ends in an
underscore and lives in buffers, parameters and submodules. So ``.to(device)``, ``state_dict``, ``clone`` and
``GridSearchCV`` all work. scikit-learn itself is needed only when it is the one who asks.
"""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import suppress
from difflib import get_close_matches
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import nn

from skrl.modes import KeepsFloat32, full_precision
from skrl.readouts.activations import collect_features
from skrl.readouts.checked_input import (
    Array,
    as_features,
    as_labels,
    as_real_targets,
    as_sample_weights,
    check_feature_names,
    distinct_labels,
    feature_names,
    like,
    not_fitted_error,
    rounded_targets,
)
from skrl.shapes import Float, Int, Tensor

REGISTRIES = ("_parameters", "_buffers", "_non_persistent_buffers_set", "_modules")
"""Where a module keeps what fitting makes."""

R = TypeVar("R", bound="Readout")


class Readout(KeepsFloat32, ABC):
    """A map from features to answers that is fitted in one go.

    Subclasses store their settings, then say how tensors are fitted (``_fit``), how room is made for a state dict
    (``_allocate``), and ``forward``.
    """

    KEPT_BESIDES: ClassVar[tuple[str, ...]] = ("n_features_in",)
    """What a state dict holds besides tensors, those of the parents apart."""

    ANY_ROWS: ClassVar[tuple[str, ...]] = ()
    """Fitted tensors that take any number of rows from a state."""

    n_features_in_: int
    _anchor: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Moves with .to(device): how a readout without supports knows where it lives.
        self.register_buffer("_anchor", torch.empty(0), persistent=False)

    @property
    def training(self) -> bool:
        """Training mode, as in every module, kept private because scikit-learn wants settings alone to be public."""
        return bool(self.__dict__["_training"])

    @training.setter
    def training(self, mode: bool) -> None:
        self.__dict__["_training"] = mode

    def fit(self: R, X: Any, y: Any) -> R:
        """Fit to features and targets, replacing whatever was fitted before.

        Learned supports and targets are new parameters afterwards: make the optimizer after fitting.

        Args:
            X: features, [n, d]: a tensor (supports then live on its device, in its precision) or anything that numpy
                reads (supports then stay where this module is).
            y: targets, [n], or [n, c] for a regressor.

        Returns:
            This readout.

        Raises:
            ValueError: data or a setting cannot be used; the message says why. What was fitted before stays as it was.
        """
        features = as_features(X, None if isinstance(X, Tensor) else self._anchor.device)
        before = self._memento()
        try:
            with torch.no_grad(), full_precision(features.device.type):
                self._fit(features, self._encode(y, features))
        except BaseException:
            self._restore(before)
            raise
        self._anchor = features.new_empty(0)
        self.n_features_in_ = features.shape[1]
        self.__dict__.pop("feature_names_in_", None)
        names = feature_names(X)
        if names is not None:
            self.feature_names_in_ = names
        return self

    def fit_loader(
        self: R,
        loader: Iterable[Any],
        backbone: nn.Module | None = None,
        device: torch.device | str | None = None,
    ) -> R:
        """Fit to the batches of a loader, seen through a frozen backbone in evaluation mode.

        When this readout is a part of the backbone, say ``model.fc``, it is fitted to what reaches it there.

        Args:
            loader: batches (x, y), a ``DataLoader`` for instance.
            backbone: maps x to features, [B, d]; x itself when left out. Its modes are restored.
            device: where batches go; the backbone's own device when left out.

        Returns:
            This readout.
        """
        return self.fit(*collect_features(loader, backbone, device, head=self))

    @abstractmethod
    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """How well y is predicted, larger is better."""

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The settings; ``deep`` is scikit-learn's and changes nothing, since no setting has settings of its own."""
        return {name: getattr(self, name) for name in self._settings()}

    def set_params(self: R, **settings: Any) -> R:
        """Change settings; they take effect at the next fit.

        Raises:
            ValueError: a name is unknown; the message names the nearest one.
        """
        known = self._settings()
        for name in settings:
            if name not in known:
                near = get_close_matches(name, known, n=1, cutoff=0.0)[0]
                raise ValueError(
                    f"Invalid parameter '{name}' for {type(self).__name__}; did you mean '{near}'? "
                    f"Known: {', '.join(known)}"
                )
        for name, value in settings.items():
            setattr(self, name, value)
        return self

    def get_extra_state(self) -> dict[str, Any]:
        """What a state dict holds besides tensors, in plain types; empty before fitting."""
        return {"n_features_in": self.n_features_in_} if self._is_fitted() else {}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`get_extra_state` gave."""
        if state:
            self.n_features_in_ = state["n_features_in"]
            self.__dict__.pop("feature_names_in_", None)  # of another fit

    def extra_repr(self) -> str:
        """Settings that differ from their defaults."""
        defaults = inspect.signature(type(self)).parameters
        changed = {name: value for name, value in self.get_params().items() if value is not defaults[name].default}
        return ", ".join(f"{name}={value!r}" for name, value in changed.items())

    @abstractmethod
    def _fit(self, features: Tensor, targets: Tensor) -> None:
        """Fit to features, [n, d], and encoded targets; no gradient is recorded."""

    @abstractmethod
    def _allocate(self, blank: Mapping[str, Tensor]) -> None:
        """Make room for a state dict: every fitted tensor by its name, filled with zeros."""

    @abstractmethod
    def _encode(self, y: Any, features: Tensor) -> Tensor:
        """Targets as a tensor; remembers how to decode answers."""

    def _memento(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """All attributes, and what torch's registries among them hold."""
        return dict(self.__dict__), {name: copy.copy(self.__dict__[name]) for name in REGISTRIES}

    def _restore(self, memento: tuple[dict[str, Any], dict[str, Any]]) -> None:
        attributes, contents = memento
        self.__dict__.clear()
        self.__dict__.update(attributes)
        for name, held in contents.items():
            self.__dict__[name].clear()
            self.__dict__[name].update(held)

    @classmethod
    def _settings(cls) -> list[str]:
        return list(inspect.signature(cls).parameters)

    def _is_fitted(self) -> bool:
        return "n_features_in_" in self.__dict__

    def _checked(self, X: Any) -> Tensor:
        self._require_fit()
        check_feature_names(X, self.__dict__.get("feature_names_in_"), type(self).__name__)
        return as_features(X, self._anchor.device, type(self).__name__, self.n_features_in_)

    def _require_fit(self) -> None:
        if not self._is_fitted():
            name = type(self).__name__
            raise not_fitted_error(
                f"This {name} is not fitted yet; call fit(X, y) or fit_loader(loader, backbone) first, "
                "or load a state dict"
            )

    def _require_width(self, features: Tensor) -> None:
        self._require_fit()
        if features.dim() != 2 or features.shape[1] != self.n_features_in_:
            raise ValueError(
                f"features have shape {tuple(features.shape)}, but must be [batch, {self.n_features_in_}] as in "
                "fitting; pool or flatten them first"
            )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Make room first when the saved tensors have other shapes, so that a state loads at any number of supports.

        One that is of something else is an error, also where ``strict`` is false, and nothing of it is taken over.
        """
        saved = {
            name.removeprefix(prefix): value
            for name, value in state_dict.items()
            if name.startswith(prefix) and isinstance(value, Tensor)
        }
        beside, before = state_dict.get(f"{prefix}_extra_state"), self._memento()
        kept = beside if isinstance(beside, Mapping) else {}
        needed = {name for base in type(self).__mro__ for name in base.__dict__.get("KEPT_BESIDES", ())}
        is_own = saved and kept.keys() == needed and (self._has_room_for(saved) or self._make_room_for(saved))
        if is_own or not (saved or kept):  # of an empty state torch says what is missing
            super()._load_from_state_dict(state_dict, prefix, *rest)
            return
        self._restore(before)
        rest[-1].append(
            f"{prefix.removesuffix('.') or 'the state'} is not of a fitted {type(self).__name__} with these "
            f"settings: it holds {', '.join(sorted([*saved, *kept]))}"
        )
        for name in [name for name in state_dict if name.startswith(prefix)]:
            del state_dict[name]  # no part of it replaces what is fitted

    def _has_room_for(self, saved: Mapping[str, Tensor]) -> bool:
        """Whether the fitted tensors are those of a state, of any number of rows where they take any."""
        present = {name: value.shape for name, value in self.state_dict().items() if isinstance(value, Tensor)}
        return present.keys() == saved.keys() and all(
            saved[name].shape == shape or (name in self.ANY_ROWS and saved[name].shape[1:] == shape[1:])
            for name, shape in present.items()
        )

    def _make_room_for(self, saved: Mapping[str, Tensor]) -> bool:
        """Replace the fitted tensors by zeros of the shapes of a state; false when it needs others."""
        dtype = self._anchor.dtype if self._is_fitted() else None
        blank = {
            name: torch.zeros_like(value, dtype=dtype, device=self._anchor.device) for name, value in saved.items()
        }
        with suppress(KeyError):
            self._allocate(blank)
            self._anchor = next(iter(blank.values())).new_empty(0)
        return self._has_room_for(saved)


class Regressor(Readout):
    """A readout with real targets; ``forward`` gives [B, c]."""

    KEPT_BESIDES: ClassVar[tuple[str, ...]] = ("one_dimensional",)

    _one_dimensional: bool = True

    def predict(self, X: Any) -> Any:
        """Predicted targets, [n] or [n, c] like those seen when fitting; a tensor for a tensor, else an array."""
        with torch.no_grad():
            mean = self(self._checked(X))
        return like(mean[:, 0] if self._one_dimensional else mean, X)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Coefficient of determination R², the mean over the targets."""
        features = self._checked(X)
        targets = as_real_targets(y, features, type(self).__name__).reshape(len(features), -1)
        with torch.no_grad():
            answers = self(features).cpu().double()
        if answers.shape != targets.shape:
            raise ValueError(
                f"y has {targets.shape[1]} columns, but {type(self).__name__} was fitted to {answers.shape[1]}; "
                "score it on targets of the same kind"
            )
        errors = targets - answers
        weights = as_sample_weights(sample_weight, targets)
        residual = (weights * errors.square()).sum(0)
        centre = (weights * targets).sum(0) / weights.sum()
        total = (weights * (targets - centre).square()).sum(0)
        # Constant targets: perfect is one, anything else is zero.
        determined = torch.where(
            total > 0, 1.0 - residual / torch.where(total > 0, total, 1.0), (residual == 0).to(total)
        )
        return float(determined.mean())

    def get_extra_state(self) -> dict[str, Any]:
        """See :meth:`Readout.get_extra_state`."""
        state = super().get_extra_state()
        return {**state, "one_dimensional": self._one_dimensional} if state else state

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`get_extra_state` gave."""
        super().set_extra_state(state)
        if state:
            self._one_dimensional = state["one_dimensional"]

    def _encode(self, y: Any, features: Tensor) -> Float[Tensor, "samples targets"]:
        targets = rounded_targets(as_real_targets(y, features, type(self).__name__), features)
        self._one_dimensional = targets.dim() == 1
        return targets.reshape(len(features), -1)

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn asks for; only it calls this."""
        from sklearn.utils import RegressorTags, Tags, TargetTags

        targets = TargetTags(required=True, multi_output=True)
        return Tags(estimator_type="regressor", target_tags=targets, regressor_tags=RegressorTags())


class Classifier(Readout):
    """A readout with class labels; ``forward`` gives logits, [B, C], whose column j belongs to ``classes_[j]``.

    As targets of a cross entropy take positions in ``classes_``, which are the labels themselves when those are
    0 … C−1.
    """

    KEPT_BESIDES: ClassVar[tuple[str, ...]] = ("classes", "dtype")

    classes_: Array

    def predict_proba(self, X: Any) -> Any:
        """Probabilities of ``classes_``, [n, C]; a tensor for a tensor, else an array."""
        with torch.no_grad():
            return like(self(self._checked(X)).softmax(-1), X)

    def predict(self, X: Any) -> Any:
        """The most probable label, [n]; a tensor for a tensor when labels are numbers, else an array."""
        with torch.no_grad():
            positions = self(self._checked(X)).argmax(-1)
        labels = self.classes_[positions.cpu().numpy()]
        numbers = labels.dtype.kind in "biuf"
        return torch.from_numpy(labels).to(X.device) if isinstance(X, Tensor) and numbers else labels

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Accuracy."""
        features = self._checked(X)
        with torch.no_grad():
            predicted = self.classes_[self(features).argmax(-1).cpu().numpy()]
        right = predicted == as_labels(y, len(features), type(self).__name__)
        return float(np.average(right, weights=None if sample_weight is None else np.asarray(sample_weight)))

    def get_extra_state(self) -> dict[str, Any]:
        """See :meth:`Readout.get_extra_state`."""
        state = super().get_extra_state()
        return {**state, "classes": self.classes_.tolist(), "dtype": self.classes_.dtype.str} if state else state

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`get_extra_state` gave."""
        super().set_extra_state(state)
        if state:
            self.classes_ = np.array(state["classes"], dtype=state["dtype"])

    def _encode(self, y: Any, features: Tensor) -> Int[Tensor, " samples"]:
        self.classes_, positions = distinct_labels(as_labels(y, len(features), type(self).__name__))
        return torch.from_numpy(positions).to(features.device)

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn asks for; only it calls this."""
        from sklearn.utils import ClassifierTags, Tags, TargetTags

        targets = TargetTags(required=True)
        return Tags(estimator_type="classifier", target_tags=targets, classifier_tags=ClassifierTags())
