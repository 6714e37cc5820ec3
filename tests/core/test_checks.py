"""Argument checks say which argument, what came and what is allowed; the straight-through value is exact."""

from __future__ import annotations

import math

import pytest
import torch

from pullback.core import checks
from pullback.core.gradients import replace_gradient


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (0, ValueError),
        (-1.5, ValueError),
        (math.nan, ValueError),
        (math.inf, ValueError),
        ("1", TypeError),
        (True, TypeError),
    ],
)
def test_positive_refuses(value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="width must be"):
        checks.check_positive("width", value)


def test_positive_accepts_numbers_and_tensors() -> None:
    checks.check_positive("width", 3)
    checks.check_positive("width", 0.0, zero=True)
    checks.check_positive("width", torch.tensor([1.0, 2.0]))
    with pytest.raises(ValueError, match="width must be > 0 everywhere, got minimum -2"):
        checks.check_positive("width", torch.tensor([1.0, -2.0]))


def test_dimension_follows_torch() -> None:
    x = torch.zeros(2, 3)
    assert [checks.check_dim(x, d) for d in (0, 1, -1, -2)] == [0, 1, 1, 0]
    assert checks.check_dim(torch.zeros(()), -1) == 0
    with pytest.raises(IndexError, match=r"dim must be in \[-2, 1\]"):
        checks.check_dim(x, 2)
    with pytest.raises(TypeError, match="dim must be an integer, got bool"):
        checks.check_dim(x, True)


def test_shape_finite_and_choice_name_what_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"points must have shape \(\.\.\., any, 3\), got \(3,\)"):
        checks.check_shape("points", torch.zeros(3), (None, 3))
    with pytest.raises(ValueError, match=r"got inf at index \(1, 0\)"):
        checks.check_finite("x", torch.tensor([[0.0], [math.inf]]))
    with pytest.raises(ValueError, match=r"'a', 'b', got 3$"):
        checks.check_choice("method", 3, ["a", "b"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_replaced_gradient_keeps_the_bits_even_of_zeros_and_infinities(dtype: torch.dtype) -> None:
    hard = torch.tensor([0.1, -0.0, math.inf, -math.inf, 1e-7], dtype=dtype)
    soft = torch.tensor([0.3, 0.0, math.inf, 1.0, 1e4], dtype=dtype, requires_grad=True)
    value = replace_gradient(hard, soft)
    assert torch.equal(value, hard)
    assert torch.signbit(value).equal(torch.signbit(hard))
    (gradient,) = torch.autograd.grad(value, soft, torch.arange(5.0).to(dtype))
    assert gradient.tolist() == [0, 1, 2, 3, 4]


def test_replaced_gradient_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"hard and soft must agree, got \(2,\)"):
        replace_gradient(torch.zeros(2), torch.zeros(3))
