"""Cotangents that vanish or explode along a repeated call, and at any scale of the loss."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pullback
from pullback.audit.trace.norms import norm_of


def _sigmoids(x: Tensor) -> Tensor:
    for _ in range(30):
        x = torch.sigmoid(x)
    return x.sum()


def _module(x: Tensor) -> Tensor:
    chain = nn.Sequential(*[nn.Sigmoid() for _ in range(25)])
    return chain(x).square().mean()


def _recursion(x: Tensor) -> Tensor:
    def deeper(x: Tensor, left: int) -> Tensor:
        return deeper(torch.sin(x) * 0.2, left - 1) if left else x

    return deeper(x, 40).sum()


def _below_the_smallest_number(x: Tensor) -> Tensor:
    for _ in range(120):
        x = 0.3 * x.tanh()
    return x.sum()


def _triples(x: Tensor) -> Tensor:
    for _ in range(60):
        x = 3 * x
    return x.mean()


def _matrix_powers(x: Tensor) -> Tensor:
    for _ in range(45):
        x = x.clone() / 0.2
    return x.sum()


def _codes(program: Callable[..., Tensor], *inputs: Tensor) -> set[str]:
    return {f.code for f in pullback.audit(program, *inputs).findings if f.severity != "info"}


@pytest.mark.parametrize("program", [_sigmoids, _module, _recursion, _below_the_smallest_number])
def test_a_chain_without_a_layer_vanishes(program: Callable[[Tensor], Tensor]) -> None:
    assert _codes(program, torch.randn(4).requires_grad_()) == {"vanishing.loop"}


@pytest.mark.parametrize("program", [_triples, _matrix_powers])
def test_a_chain_without_a_layer_explodes(program: Callable[[Tensor], Tensor]) -> None:
    assert _codes(program, torch.randn(4).requires_grad_()) == {"exploding.loop"}


def test_a_parameter_whose_gradient_is_rounded_to_zero_is_charged_to_the_loop() -> None:
    report = pullback.audit(_below_the_smallest_number, torch.randn(4).requires_grad_())
    (parameter,) = report.parameters
    assert parameter.gradient_norm == 0.0
    assert parameter.blame is not None
    assert parameter.blame["code"] == "vanishing.loop"


@pytest.mark.parametrize(("scale", "code"), [(1e-24, "vanishing.line"), (1e-32, "vanishing.line")])
def test_a_tiny_loss_is_measured(scale: float, code: str) -> None:
    w = torch.randn(3, 3).requires_grad_()
    assert _codes(lambda x: F.mse_loss(x @ w, x) * scale, torch.randn(5, 3)) == {code}


@pytest.mark.parametrize("scale", [1e24, 1e30])
def test_a_huge_loss_is_measured(scale: float) -> None:
    w = torch.randn(3, 3).requires_grad_()
    assert _codes(lambda x: scale * F.mse_loss(x @ w, x), torch.randn(5, 3)) == {"exploding.line"}


def test_a_discounted_sum_forgets_on_purpose() -> None:
    w = torch.randn(3, 2).requires_grad_()

    def returns(x: Tensor) -> Tensor:
        rewards, total = (x @ w).sum(1), torch.zeros(())
        for reward in rewards:
            total = reward + 0.9 * total
        return total

    assert _codes(returns, torch.randn(200, 3)) == set()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64])
def test_norms_keep_their_digits_over_the_whole_range_of_a_type(dtype: torch.dtype) -> None:
    limits = torch.finfo(dtype)
    for scale in (limits.tiny * 64, 1.0, limits.max / 64):
        x = torch.tensor([3.0, -4.0], dtype=torch.float64).mul(scale).to(dtype)
        exact = 5.0 * scale
        assert norm_of(x) == pytest.approx(exact, rel=8 * limits.eps)
    assert norm_of(torch.zeros(3, dtype=dtype)) == 0.0
    assert norm_of(torch.zeros(0, dtype=dtype)) == 0.0
