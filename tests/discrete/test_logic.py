"""What comparisons and masks promise beyond their contracts."""

from __future__ import annotations

import math
import operator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pullback import discrete

COMPARISONS = {
    "greater": operator.gt,
    "greater_equal": operator.ge,
    "less": operator.lt,
    "less_equal": operator.le,
    "equal": operator.eq,
    "not_equal": operator.ne,
}
VALUES = torch.tensor([-math.inf, -1.0, 0.0, 0.3, 1.0, math.inf, math.nan])


@pytest.mark.parametrize("name", COMPARISONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_hard_comparisons_are_those_of_torch(name: str, dtype: torch.dtype) -> None:
    a, b = torch.meshgrid(VALUES.to(dtype), VALUES.to(dtype), indexing="ij")
    expected = COMPARISONS[name](a, b).to(dtype)
    for kwargs in ({"hard": True}, {"temperature": 0.0}):
        got = getattr(discrete, name)(a, b, **kwargs)
        assert got.dtype == dtype
        assert torch.equal(got, expected)


@pytest.mark.parametrize("name", COMPARISONS)
@pytest.mark.parametrize("method", ["logistic", "gaussian", "cauchy", "reciprocal", "optimal"])
def test_comparisons_of_infinities_have_finite_gradients(name: str, method: str) -> None:
    a, b = (t.clone().requires_grad_() for t in torch.meshgrid(VALUES[:-1], VALUES[:-1], indexing="ij"))
    p = getattr(discrete, name)(a, b, method=method)
    assert ((p >= 0) & (p <= 1)).all()
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(p.sum(), (a, b)))


@pytest.mark.parametrize("method", ["logistic", "gaussian", "cauchy", "reciprocal", "optimal"])
@given(st.floats(-3, 3), st.floats(-3, 3), st.floats(0.05, 5))
def test_comparisons_complement_each_other(method: str, a: float, b: float, temperature: float) -> None:
    x, y = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    kwargs = {"method": method, "temperature": temperature}
    one = torch.ones((), dtype=torch.float64)
    torch.testing.assert_close(discrete.greater(x, y, **kwargs) + discrete.less_equal(x, y, **kwargs), one)
    torch.testing.assert_close(discrete.less(x, y, **kwargs), discrete.greater(y, x, **kwargs))
    torch.testing.assert_close(discrete.equal(x, y, **kwargs) + discrete.not_equal(x, y, **kwargs), one)
    assert 0 <= discrete.isclose(x, y, atol=0.5, **kwargs) <= 1 + 1e-12


def test_temperature_zero_comparisons_have_gradient_zero() -> None:
    x, y = torch.randn(2, 5).unbind()
    x.requires_grad_(), y.requires_grad_()
    for name in (*COMPARISONS, "isclose"):
        gradients = torch.autograd.grad(getattr(discrete, name)(x, y, temperature=0.0).sum(), (x, y))
        assert all(torch.equal(g, torch.zeros(5)) for g in gradients)


def test_isclose_is_that_of_torch_when_hard() -> None:
    a, b = torch.meshgrid(VALUES, torch.cat([VALUES, VALUES * (1 + 1e-6)]), indexing="ij")
    for equal_nan in (False, True):
        got = discrete.isclose(a, b, 1e-5, 1e-8, equal_nan, hard=True)
        assert torch.equal(got, torch.isclose(a, b, 1e-5, 1e-8, equal_nan).float())


def test_isclose_with_tolerance_zero_is_equal() -> None:
    x, y = torch.randn(2, 20, dtype=torch.float64).unbind()
    torch.testing.assert_close(discrete.isclose(x, y, 0.0, 0.0), discrete.equal(x, y))


def test_hard_logic_is_that_of_torch() -> None:
    p, q = torch.meshgrid(torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0.2, 0.8]), indexing="ij")
    for name in ("logical_and", "logical_or", "logical_xor"):
        assert torch.equal(getattr(discrete, name)(p, q, hard=True), getattr(torch, name)(p > 0.5, q > 0.5).float())
    assert torch.equal(discrete.logical_not(p, hard=True), (~(p > 0.5)).float())
    for name in ("all", "any"):
        assert torch.equal(getattr(discrete, name)(p, 0, hard=True), getattr(torch, name)(p > 0.5, 0).float())
    assert torch.equal(discrete.count(p, 1, True, hard=True), (p > 0.5).sum(1, True).float())


@pytest.mark.parametrize("method", ["product", "minimum"])
def test_quantifiers_over_nothing_and_over_several_dimensions(method: str) -> None:
    nothing = torch.zeros(2, 0, 3)
    assert torch.equal(discrete.all(nothing, 1, method=method), torch.ones(2, 3))
    assert torch.equal(discrete.any(nothing, 1, method=method), torch.zeros(2, 3))
    p = torch.rand(2, 3, 4, dtype=torch.float64)
    flat = p.transpose(1, 2).reshape(2 * 4, 3).reshape(2, 4, 3).permute(2, 0, 1).reshape(3, 8)
    torch.testing.assert_close(discrete.all(p, (0, 2), method=method), discrete.all(flat, 1, method=method))
    assert discrete.any(p, method=method).shape == ()


def test_all_has_the_right_gradient_with_zeros() -> None:
    p = torch.tensor([0.0, 0.5, 0.4], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(discrete.all(p), p)
    torch.testing.assert_close(gradient, torch.tensor([0.2, 0.0, 0.0], dtype=torch.float64))


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("certain", [0.0, 1.0])
def test_where_ignores_what_is_surely_not_taken(bad: float, certain: float) -> None:
    p = torch.tensor([certain, certain], requires_grad=True)
    good = torch.tensor([2.0, 3.0], requires_grad=True)
    wrong = torch.tensor([bad, 5.0], requires_grad=True)
    branches = (good, wrong) if certain else (wrong, good)
    out = discrete.where(p, *branches)
    assert torch.equal(out, good)
    to_p, to_good, to_wrong = torch.autograd.grad(out.sum(), (p, good, wrong))
    assert torch.equal(to_good, torch.ones(2))
    assert torch.equal(to_wrong, torch.zeros(2))
    assert to_p.tolist() == [0.0, (3.0 - 5.0) if certain else (5.0 - 3.0)]


def test_where_both_branches_infinite_and_hard() -> None:
    p = torch.tensor([0.0, 1.0, 0.3, 0.5], requires_grad=True)
    x = torch.tensor([math.inf, math.inf, 1.0, 1.0])
    other = torch.tensor([-math.inf, -math.inf, 2.0, 2.0])
    out = discrete.where(p, x, other, hard=True)
    assert torch.equal(out, torch.where(p > 0.5, x, other))
    (gradient,) = torch.autograd.grad(out[2:].sum(), p)
    assert gradient.tolist() == [0.0, 0.0, -1.0, -1.0]
    mask = torch.tensor([True, False])
    assert discrete.where(mask, 1.0, torch.zeros(2)).tolist() == [1.0, 0.0]


def test_masked_fill_with_minus_infinity_weighs_the_softmax() -> None:
    x, p = torch.randn(5, dtype=torch.float64), torch.tensor([0.0, 0.2, 0.9, 1.0, 0.5], dtype=torch.float64)
    p.requires_grad_()
    weights = discrete.masked_fill(x, p, -math.inf).softmax(-1)
    expected = (1 - p) * x.exp() / ((1 - p) * x.exp()).sum()
    torch.testing.assert_close(weights, expected)
    (gradient,) = torch.autograd.grad(weights[0], p)
    assert torch.isfinite(gradient).all()
    hard = discrete.masked_fill(x, p, -math.inf, hard=True)
    assert torch.equal(hard, x.masked_fill(p > 0.5, -math.inf))


def test_masked_mean_is_the_mean_of_the_selection() -> None:
    x, mask = torch.randn(6, dtype=torch.float64), torch.tensor([True, False, True, True, False, False])
    x[1] = math.nan
    torch.testing.assert_close(discrete.masked_mean(x, mask), x[mask].mean())
    p = mask.double().requires_grad_()
    x.requires_grad_()
    gradients = torch.autograd.grad(discrete.masked_mean(x, p), (x, p))
    assert all(torch.isfinite(g).all() for g in gradients)


def test_masked_mean_of_nothing_is_nan_with_gradient_zero() -> None:
    x, p = torch.ones(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    out = discrete.masked_mean(x, p)
    assert math.isnan(out.item())
    assert all(torch.equal(g, torch.zeros(3)) for g in torch.autograd.grad(out, (x, p)))


def test_a_comparison_with_nan_is_false_as_in_torch() -> None:
    x = torch.tensor([math.nan, 0.0, math.nan], requires_grad=True)
    other = torch.tensor([0.0, math.nan, math.nan])
    for name in ("gt", "ge", "lt", "le", "eq", "ne"):
        names = {"gt": "greater", "ge": "greater_equal", "lt": "less", "le": "less_equal", "eq": "equal"}
        block = getattr(discrete, names.get(name, "not_equal"))
        for options in ({}, {"hard": True}, {"temperature": 0.0}):
            p = block(x, other, **options)
            assert torch.equal(p, getattr(torch, name)(x, other).float())
            assert torch.equal(torch.autograd.grad(p.sum(), x)[0], torch.zeros(3))


@pytest.mark.parametrize("block", [discrete.all, discrete.any, discrete.count, discrete.logical_not])
def test_what_is_no_probability_is_refused_and_rounding_is_not(block: Any) -> None:
    with pytest.raises(ValueError, match=r"p must be in \[0, 1\], got minimum -2\.0 and maximum 1e\+30"):
        block(torch.tensor([0.5, -2.0, 1e30], dtype=torch.float64))
    assert torch.isfinite(block(torch.tensor([1.0 + 1e-6, -1e-6]))).all()
