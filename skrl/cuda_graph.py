"""A whole query, from search to prediction, as one CUDA graph: one launch in place of dozens.

The graph reads supports, targets and settings from the memory where they lay at capture: what is written into it in
place, as :class:`skrl.memory.SupportMemory` and optimizers do, shows at the next call.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

Answer = TypeVar("Answer")

WARM_UPS = 3
"""Plain calls before the capture: libraries allocate and Triton compiles in the first ones."""


class Graph(Protocol):
    """A :class:`torch.cuda.CUDAGraph`, or what does its work."""

    def replay(self) -> None:
        """Run what was captured, on the inputs of the capture, into its answer."""


class CapturedQuery(Generic[Answer]):
    """A query that was captured; made by :func:`capture`.

    Args:
        query: what was captured.
        inputs: the tensors it read, which every call overwrites.
        graph: the graph.
        answer: the tensors it wrote, which every call overwrites.
    """

    def __init__(self, query: Callable[..., Answer], inputs: tuple[Tensor, ...], graph: Graph, answer: Answer) -> None:
        self.query, self.inputs, self.graph, self.answer = query, inputs, graph, answer
        self._places = _places(query)

    def __call__(self, *queries: Tensor) -> Answer:
        """The answer to queries of the captured shapes, without gradients.

        It lies in the same memory at every call: clone what has to outlive the next one.

        Raises:
            ValueError: number, shape, dtype or device differ from the captured ones.
            RuntimeError: a tensor of the module was replaced since the capture.
        """
        if [_form(tensor) for tensor in queries] != [_form(tensor) for tensor in self.inputs]:
            got, captured = (", ".join(map(_describe, tensors)) for tensors in (queries, self.inputs))
            raise ValueError(f"got {got}, but {captured} was captured; capture once per shape")
        if _places(self.query) != self._places:
            raise RuntimeError(
                "a parameter or buffer was replaced since the capture, and the graph still reads the old one; write in "
                "place, or capture again"
            )
        # A copy that is recorded would keep the graph of every earlier call alive.
        with torch.no_grad():
            for buffer, values in zip(self.inputs, queries, strict=True):
                buffer.copy_(values)
            self.graph.replay()
        return self.answer


def capture(query: Callable[..., Answer], *examples: Tensor) -> CapturedQuery[Answer]:
    """Capture a query as a CUDA graph, to be called with tensors of the same shapes.

    Everything happens on the device, so a search that works elsewhere cannot be captured, and lengthscale and ridge
    have to be given. Random draws repeat PyTorch's rules for graphs. The plain calls before the capture do what such
    calls do: a value head counts the fallbacks of the examples.

    Where the fused kernel serves the query the graph calls no solver library. Elsewhere it holds
    :mod:`skrl.solve.cholesky`, whose factors are cuSOLVER's and whose solves are cuBLAS's; NVIDIA does not promise that
    cuSOLVER can be captured, and tests on a GPU see that it is.

    Args:
        query: a module, a bound method of one such as ``head.localise``, or any function of tensors. It returns a
            tensor or a (named) tuple of them.
        examples: inputs, on a CUDA device.

    Returns:
        The captured query.

    Raises:
        ValueError: the examples do not lie on one CUDA device.
        RuntimeError: the query waits for the device, and cannot be captured.
    """
    device = _device_of(examples)
    inputs = _copies(examples)
    graph = torch.cuda.CUDAGraph()
    around = torch.cuda.current_stream(device)
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(around)
    # An answer that was made in inference mode could not be used in training.
    with torch.inference_mode(False), torch.no_grad(), torch.cuda.device(device):
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                query(*inputs)
        try:
            # A capture that fails half-way leaves much behind; most of those that would are told apart here.
            with torch.cuda.stream(stream), errors_for_waiting():
                query(*inputs)
            around.wait_stream(stream)
            with torch.cuda.graph(graph, stream=stream):
                answer = query(*inputs)
        except RuntimeError as error:
            _leave_capture(around)
            raise RuntimeError(
                "the query cannot be captured: something in it waits for the device, a search outside PyTorch or a "
                "setting that is tuned at every call, say; give lengthscale and ridge, or call it without a graph"
            ) from error
    return CapturedQuery(query, inputs, graph, answer)


@contextmanager
def errors_for_waiting() -> Iterator[None]:
    """Within the block what waits for a CUDA device raises RuntimeError, as far as PyTorch detects it."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype feature")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _leave_capture(around: torch.cuda.Stream) -> None:
    """Mend what a capture that failed half-way leaves behind: its stream, and a generator that refuses every draw.

    Graphs that were captured before keep the generator's old state: where torch refuses their replay, capture anew.
    """
    torch.cuda.set_stream(around)
    try:
        torch.rand((), device=around.device)
    except RuntimeError:
        generator = torch.cuda.default_generators[around.device.index]
        generator.graphsafe_set_state(generator.clone_state())


def _copies(examples: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Tensors of their own, which may be written to in any mode."""
    with torch.inference_mode(False), torch.no_grad():
        return tuple(example.clone() for example in examples)


def _device_of(examples: tuple[Tensor, ...]) -> torch.device:
    devices = {example.device for example in examples}
    if len(devices) != 1 or next(iter(devices)).type != "cuda":
        places = ", ".join(sorted(map(str, devices))) or "no device, since none were given"
        raise ValueError(
            f"the examples lie on {places}, but a CUDA graph needs all of them on one CUDA device; move module and "
            "examples there, or call the module as it is"
        )
    return devices.pop()


def _form(tensor: Tensor) -> tuple[object, ...]:
    return tensor.shape, tensor.dtype, tensor.device


def _describe(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} of {tensor.dtype} on {tensor.device}"


def _places(query: Callable[..., object]) -> list[int]:
    """Where the parameters and buffers of a module, or of a bound method's module, lie in memory."""
    module = getattr(query, "__self__", query)
    if not isinstance(module, nn.Module):
        return []
    return [tensor.data_ptr() for tensors in (module.parameters(), module.buffers()) for tensor in tensors]
