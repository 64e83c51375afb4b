"""Kernel formulas by hand, and the registry. The laws of every kernel are in ``tests/contracts``."""

from __future__ import annotations

import pytest
import torch

from skrl.kernels import KERNELS, Gaussian, Kernel, Laplace, Matern32, Matern52, make_kernel


@pytest.mark.parametrize(
    ("kernel", "at_half", "at_one", "at_two"),
    [
        (Gaussian(), 0.8824969025845955, 0.6065306597126334, 0.1353352832366127),
        (Laplace(), 0.6065306597126334, 0.3678794411714423, 0.1353352832366127),
        (Matern32(), 0.7848876539574506, 0.4833577245965077, 0.1397313501923147),
        (Matern52(), 0.8286491424181253, 0.5239941088318203, 0.1386602191385043),
    ],
)
def test_values_by_hand(kernel: Kernel, at_half: float, at_one: float, at_two: float) -> None:
    values = kernel(torch.tensor([0.0, 0.5, 1.0, 2.0], dtype=torch.float64))
    expected = torch.tensor([1.0, at_half, at_one, at_two], dtype=torch.float64)
    torch.testing.assert_close(values, expected, rtol=1e-14, atol=0.0)


@pytest.mark.parametrize("name", KERNELS)
def test_make_kernel_knows_every_name(name: str) -> None:
    assert type(make_kernel(name)) is KERNELS[name]


def test_make_kernel_passes_a_kernel_through() -> None:
    kernel = Laplace()
    assert make_kernel(kernel) is kernel


@pytest.mark.parametrize(
    ("wrong", "near"), [("matern3", "matern32"), ("Gausian", "gaussian"), ("laplacian", "laplace")]
)
def test_unknown_name_suggests_the_nearest(wrong: str, near: str) -> None:
    with pytest.raises(ValueError, match=f"unknown kernel '{wrong}'; did you mean '{near}'"):
        make_kernel(wrong)


def test_an_empty_name_is_an_error_too() -> None:
    with pytest.raises(ValueError, match="unknown kernel ''"):
        make_kernel("")


def test_kernel_itself_is_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Kernel()  # type: ignore[abstract]


def test_representation_is_the_constructor_call() -> None:
    assert repr(Matern32()) == "Matern32()"
