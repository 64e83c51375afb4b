"""What a captured query promises, with a graph that runs on a CPU; real graphs are captured in test_gpu.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from skrl import ResidualHead
from skrl.cuda_graph import CapturedQuery, _copies, capture


class CallsAgain:
    """Stands for a graph: its replay calls the query again on the same inputs and writes into the same answer."""

    def __init__(self, head: ResidualHead, inputs: tuple[Tensor, ...], answer: Tensor) -> None:
        self.head, self.inputs, self.answer = head, inputs, answer

    def replay(self) -> None:
        self.answer.copy_(self.head(*self.inputs))


@pytest.fixture
def head() -> ResidualHead:
    head = ResidualHead(2, 20, 3, k=4)
    head.memory.write(torch.randn(2, 20, 3), torch.tensor([20, 9]), torch.randn(2, 20, 1))
    return head


@pytest.fixture
def captured(head: ResidualHead) -> CapturedQuery[Tensor]:
    inputs = torch.randn(5, 3), torch.randn(5, 2)
    answer = head(*inputs)
    return CapturedQuery(head, inputs, CallsAgain(head, inputs, answer), answer)


def test_answers_new_queries_in_the_same_memory(head: ResidualHead, captured: CapturedQuery[Tensor]) -> None:
    for _ in range(2):
        queries, prior_mean = torch.randn(5, 3), torch.randn(5, 2)
        answer = captured(queries, prior_mean)
        assert answer is captured.answer
        assert torch.equal(answer, head(queries, prior_mean))


def test_keeps_nothing_of_the_graph_that_made_a_query(captured: CapturedQuery[Tensor]) -> None:
    encoder = torch.nn.Linear(3, 3)
    answer = captured(encoder(torch.randn(5, 3)), torch.randn(5, 2))
    assert not answer.requires_grad
    assert not any(buffer.requires_grad for buffer in captured.inputs)


@pytest.mark.parametrize("made_in", [False, True])
@pytest.mark.parametrize("called_in", [False, True])
def test_is_called_in_and_out_of_inference_mode(head: ResidualHead, made_in: bool, called_in: bool) -> None:
    with torch.inference_mode(made_in):
        inputs = _copies((torch.randn(5, 3), torch.randn(5, 2)))
    answer = head(*inputs)
    captured = CapturedQuery(head, inputs, CallsAgain(head, inputs, answer), answer)
    with torch.inference_mode(called_in):
        queries = torch.randn(5, 3), torch.randn(5, 2)
        assert torch.equal(captured(*queries), head(*queries))


def test_sees_supports_that_are_rewritten_in_place(head: ResidualHead, captured: CapturedQuery[Tensor]) -> None:
    queries, prior_mean = torch.randn(5, 3), torch.randn(5, 2)
    before = captured(queries, prior_mean).clone()
    head.memory.write(torch.randn(2, 20, 3), torch.tensor([9, 20]), torch.randn(2, 20, 1))
    head.lengthscale.fill_(2.0)
    assert torch.equal(captured(queries, prior_mean), head(queries, prior_mean))
    assert not torch.equal(captured.answer, before)


@pytest.mark.parametrize("attribute", ["lengthscale", "memory.features"])
def test_a_tensor_that_was_replaced_is_an_error(
    head: ResidualHead, captured: CapturedQuery[Tensor], attribute: str
) -> None:
    owner, _, name = attribute.rpartition(".")
    module = head.get_submodule(owner)
    setattr(module, name, getattr(module, name).clone())
    with pytest.raises(RuntimeError, match="replaced since the capture"):
        captured(torch.randn(5, 3), torch.randn(5, 2))


@pytest.mark.parametrize("shapes", [[(4, 3), (4, 2)], [(5, 3)], []])
def test_another_shape_is_an_error(captured: CapturedQuery[Tensor], shapes: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match=r"\[5, 3\] of torch.float32 on cpu, \[5, 2\].* was captured"):
        captured(*(torch.randn(shape) for shape in shapes))


def test_another_precision_is_an_error(captured: CapturedQuery[Tensor]) -> None:
    with pytest.raises(ValueError, match="float64"):
        captured(torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 2))


def test_capture_off_the_gpu_is_an_error_that_says_so(head: ResidualHead) -> None:
    with pytest.raises(ValueError, match="lie on cpu, but a CUDA graph needs"):
        capture(head, torch.randn(5, 3), torch.randn(5, 2))
    with pytest.raises(ValueError, match="lie on cpu, meta"):
        capture(head, torch.randn(5, 3), torch.empty(5, 2, device="meta"))
    with pytest.raises(ValueError, match="none were given"):
        capture(head)
