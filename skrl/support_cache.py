"""What depends on fixed support points alone is made once, and again when they have changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from skrl.functional import Support, make_support
from skrl.memory.support_memory import SupportMemory
from skrl.modes import traced
from skrl.search.neighbors import NeighborSearch
from skrl.shapes import Bool, Float, Int, Tensor


@dataclass(frozen=True)
class _Known:
    """A support and what it was made of. Holding the features keeps their memory from being given to others."""

    support: Support
    features: Tensor
    version: int
    lengthscale: Tensor
    lengthscale_version: int
    search: NeighborSearch

    def serves(self, features: Tensor, lengthscale: Tensor, search: NeighborSearch) -> bool:
        if search is not self.search:
            return False
        same = features.data_ptr() == self.features.data_ptr() and features._version == self.version
        if not same or features.shape != self.features.shape or features.dtype != self.features.dtype:
            return False
        if lengthscale.device.type == "cpu":
            return torch.equal(lengthscale, self.lengthscale)
        # An accelerator would have to wait for a look at the value.
        return lengthscale is self.lengthscale and lengthscale._version == self.lengthscale_version


class SupportCache:
    """The last support made of fixed features. Copies and pickles of it are empty: an index is made again where needed.

    A change is seen by the address and the version counter of the features; what is written through ``.data`` has
    neither.
    """

    def __init__(self) -> None:
        self._known: _Known | None = None

    def support(
        self,
        features: Float[Tensor, "points dim"],
        lengthscale: Float[Tensor, ""] | Float[Tensor, " dim"],
        search: NeighborSearch,
    ) -> Support:
        """Support points made ready; see :func:`skrl.functional.make_support`.

        Args:
            features: X, [M, d]. Learned ones are made ready at every call, since many programs write to the ``.data``
                of parameters; so are tensors of inference mode, which count no versions.
            lengthscale: ℓ.
            search: how neighbours are found.
        """
        learned = features.requires_grad or isinstance(features, nn.Parameter)
        # First whether the code is being read: what reads it cannot ask a tensor for its mode.
        if traced() or learned or features.is_inference() or _captured(features):
            return make_support(features, lengthscale, search)
        known = self._known
        if known is None or not known.serves(features, lengthscale, search):
            # What is made in inference mode could not be used in training.
            with torch.inference_mode(False):
                known = _known(features, lengthscale, search)
            self._known = known
        return known.support

    def __reduce__(self) -> tuple[type[SupportCache], tuple[()]]:
        return SupportCache, ()


class Probes(NamedTuple):
    """Some supports of every set and their neighbours in it.

    Attributes:
        indices: slots of the neighbours, [S, P, k]; 0 where the mask is false.
        mask: true where the probe and the neighbour exist, [S, P, k].
    """

    indices: Int[Tensor, "sets probes neighbors"]
    mask: Bool[Tensor, "sets probes neighbors"]


class ProbeCache:
    """The last probes of a memory. Copies and pickles of it are empty, and it sees a change as a support cache does."""

    def __init__(self) -> None:
        self._probes: Probes | None = None
        self._seen: list[tuple[Tensor, int, int]] = []
        self._asked: tuple[NeighborSearch, int, int] | None = None

    @torch.no_grad()
    def probes(self, memory: SupportMemory, search: NeighborSearch, k: int, step: int) -> Probes:
        """Every ``step``-th support of every set, with its k nearest ones, itself among them.

        Args:
            memory: the supports.
            search: how neighbours are found.
            k: neighbours per probe.
            step: 1 makes every slot a probe.
        """
        tensors, asked = (memory.features, memory.half_norms), (search, k, step)
        if traced() or any(tensor.is_inference() for tensor in tensors) or _captured(memory.features):
            return _probes(memory, *asked)
        if self._probes is None or asked != self._asked or not self._has_seen(tensors):
            # What is made in inference mode could not be used in training.
            with torch.inference_mode(False), torch.no_grad():
                self._probes, self._asked = _probes(memory, *asked), asked
            self._seen = [(tensor, tensor.data_ptr(), tensor._version) for tensor in tensors]
        return self._probes

    def _has_seen(self, tensors: tuple[Tensor, ...]) -> bool:
        return all(
            tensor is seen and tensor.data_ptr() == address and tensor._version == version
            for tensor, (seen, address, version) in zip(tensors, self._seen, strict=True)
        )

    def __reduce__(self) -> tuple[type[ProbeCache], tuple[()]]:
        return ProbeCache, ()


def _probes(memory: SupportMemory, search: NeighborSearch, k: int, step: int) -> Probes:
    near = search(memory.features[:, ::step], memory.features, k, memory.half_norms)
    return Probes(near.indices.long(), near.mask & memory.mask[:, ::step].unsqueeze(-1))


def _captured(features: Tensor) -> bool:
    """A graph reads what the supports hold at its replay, not what they held before."""
    return features.is_cuda and torch.cuda.is_current_stream_capturing()


def _known(features: Tensor, lengthscale: Tensor, search: NeighborSearch) -> _Known:
    on_cpu = lengthscale.device.type == "cpu"
    return _Known(
        support=make_support(features, lengthscale.detach(), search),
        features=features.detach(),
        version=features._version,
        lengthscale=lengthscale.detach().clone() if on_cpu else lengthscale,
        lengthscale_version=0 if on_cpu else lengthscale._version,
        search=search,
    )
