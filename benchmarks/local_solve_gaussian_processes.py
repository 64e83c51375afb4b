"""Rivals that are Gaussian processes: MuyGPyS and GPyTorch, each the way its users would write it."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from local_solve_contenders import Contender, TorchContender, gradient_answer
from local_solve_problem import Answer, Settings
from local_solve_scikit import faster_jobs
from torch import Tensor

MUYGPYS_ELEMENTS = 1 << 27
"""Entries of the [queries, k, k, d] differences that one call of MuyGPyS may hold (512 MiB in float32)."""


class MuyGPySNumpy(Contender):
    """MuyGPyS on numpy: exact search, difference tensors, posterior mean and posterior variance.

    A batch whose difference tensor would not fit into memory is answered in chunks. The search uses one or two jobs,
    whichever is faster.
    """

    requires: ClassVar[tuple[str, ...]] = ("MuyGPyS",)
    one_process_per_precision: ClassVar[bool] = True
    backend: ClassVar[str] = "numpy"

    @classmethod
    def environment(cls, precision: str) -> dict[str, str]:
        """Backend and precision are fixed at import."""
        return {"MUYGPYS_BACKEND": cls.backend, "MUYGPYS_FTYPE": precision.removeprefix("float")}

    def fit(self, features: Any, targets: Any, settings: Settings) -> None:
        """Build the search index and the model."""
        from MuyGPyS.gp import MuyGPS
        from MuyGPyS.gp.deformation import Isotropy, l2
        from MuyGPyS.gp.hyperparameter import Parameter
        from MuyGPyS.gp.kernels import Matern
        from MuyGPyS.gp.noise import HomoscedasticNoise
        from MuyGPyS.neighbors import NN_Wrapper

        self.features, self.targets, self.k = features, targets, settings.k
        self.search = NN_Wrapper(np.asarray(features), settings.k, nn_method="exact", n_jobs=1)
        metric = Isotropy(l2, length_scale=Parameter(settings.lengthscale))
        self.model = MuyGPS(
            kernel=Matern(smoothness=Parameter(1.5), deformation=metric), noise=HomoscedasticNoise(settings.ridge)
        )

    def settle(self, queries: Any) -> None:
        """Take the faster number of jobs."""
        self.setting = faster_jobs(self.search.nbrs, np.asarray(queries))

    def __call__(self, queries: Any) -> Any:
        """Mean and variance, chunk by chunk."""
        indices, _ = self.search.get_nns(np.asarray(queries))
        rows = max(1, MUYGPYS_ELEMENTS // (self.k**2 * queries.shape[1]))
        if len(queries) <= rows:
            return self._posterior(queries, self.features, indices)
        starts = range(0, len(queries), rows)
        parts = [self._posterior(queries[i : i + rows], self.features, indices[i : i + rows]) for i in starts]
        return tuple(np.concatenate(column) for column in zip(*parts, strict=True))

    def _posterior(self, queries: Any, features: Any, indices: Any) -> Any:
        deformation = self.model.kernel.deformation
        rows = torch.arange(len(queries)) if isinstance(queries, Tensor) else np.arange(len(queries))
        cross = self.model.kernel(deformation.crosswise_tensor(queries, features, rows, indices))
        gram = self.model.kernel(deformation.pairwise_tensor(features, indices))
        mean = self.model.posterior_mean(gram, cross, self.targets[indices])
        return mean, self.model.posterior_variance(gram, cross)

    def answer(self, output: Any) -> Answer:
        """Mean [B, 1] and variance [B]."""
        mean, variance = (np.asarray(part) for part in output)
        return {"mean": mean.reshape(-1, 1), "variance": variance}


class MuyGPySTorch(MuyGPySNumpy):
    """MuyGPyS on torch, without gradients; the search stays on numpy."""

    backend: ClassVar[str] = "torch"

    def native(self, values: np.ndarray) -> Tensor:
        """A tensor that shares the array's memory."""
        return torch.from_numpy(values)

    @torch.no_grad()
    def __call__(self, queries: Tensor) -> Any:
        """Mean and variance, chunk by chunk."""
        return super().__call__(queries)


class MuyGPySGradient(MuyGPySTorch):
    """MuyGPyS on torch, then the gradient in queries and features."""

    def __call__(self, queries: Tensor) -> tuple[Tensor, ...]:
        """Gradients in queries and features."""
        indices, _ = self.search.get_nns(np.asarray(queries))
        query, feature = queries.detach().requires_grad_(), self.features.detach().requires_grad_()
        mean, variance = self._posterior(query, feature, indices)
        return torch.autograd.grad(mean.sum() + variance.sum(), [query, feature])

    def answer(self, output: tuple[Tensor, ...]) -> Answer:
        """Gradients, [B, d] and [M, d]."""
        return gradient_answer(output)


class GPyTorch(TorchContender):
    """GPyTorch: a batch of exact processes, one per query, on neighbours by torch's matrix product and `topk`."""

    requires: ClassVar[tuple[str, ...]] = ("gpytorch",)

    def fit(self, features: Tensor, targets: Tensor, settings: Settings) -> None:
        """Build the search's norms and one model, whose training data every call replaces."""
        import gpytorch

        class Process(gpytorch.models.ExactGP):  # type: ignore[misc]  # without types
            def __init__(self, likelihood: Any) -> None:
                super().__init__(None, None, likelihood)
                self.mean_module = gpytorch.means.ZeroMean()
                self.covar_module = gpytorch.kernels.MaternKernel(nu=1.5)

            def forward(self, points: Tensor) -> Any:
                mean, covariance = self.mean_module(points), self.covar_module(points)
                return gpytorch.distributions.MultivariateNormal(mean, covariance)

        self.gpytorch, self.k = gpytorch, settings.k
        self.features, self.targets = features, targets.squeeze(-1)
        self.half_norms = 0.5 * features.square().sum(-1)
        self.model = Process(gpytorch.likelihoods.GaussianLikelihood()).to(features.dtype).eval()
        self.model.requires_grad_(False)
        self.model.likelihood.noise = settings.ridge
        self.model.covar_module.lengthscale = settings.lengthscale

    @torch.no_grad()
    def __call__(self, queries: Tensor) -> tuple[Tensor, ...]:
        """Mean and variance."""
        return self._posterior(queries, self.features, self._nearest(queries))

    def _nearest(self, queries: Tensor) -> Tensor:
        scores = torch.addmm(self.half_norms, queries, self.features.T, alpha=-1)
        return scores.topk(self.k, largest=False).indices

    def _posterior(self, queries: Tensor, features: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        settings = self.gpytorch.settings
        exact, attached = settings.fast_computations(False, False, False), settings.detach_test_caches(False)
        with exact, attached, settings.debug(False):
            self.model.set_train_data(features[indices], self.targets[indices], strict=False)
            posterior = self.model(queries.unsqueeze(1))
            return posterior.mean, posterior.variance

    def answer(self, output: tuple[Tensor, ...]) -> Answer:
        """Mean [B, 1] and variance [B]."""
        return {"mean": output[0].numpy(), "variance": output[1].squeeze(-1).numpy()}


class GPyTorchGradient(GPyTorch):
    """GPyTorch, then the gradient in queries and features."""

    def __call__(self, queries: Tensor) -> tuple[Tensor, ...]:
        """Gradients in queries and features."""
        indices = self._nearest(queries)
        query, feature = queries.detach().requires_grad_(), self.features.detach().requires_grad_()
        mean, variance = self._posterior(query, feature, indices)
        return torch.autograd.grad(mean.sum() + variance.sum(), [query, feature])

    def answer(self, output: tuple[Tensor, ...]) -> Answer:
        """Gradients, [B, d] and [M, d]."""
        return gradient_answer(output)
