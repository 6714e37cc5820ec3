"""What rounding and the piecewise functions promise beyond their contracts: limits, laws, values to the bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pullback import discrete

METHODS = ("logistic", "gaussian", "cauchy", "reciprocal", "optimal", "cubic")
EDGES = torch.tensor([-math.inf, -1e30, -2.5, -1.0, -0.3, -0.0, 0.0, 0.5, 1.0, 1.7, 1e30, math.inf, math.nan])

PAIRS: list[tuple[str, Callable[..., Tensor], Callable[..., Tensor]]] = [
    ("round", discrete.round, torch.round),
    ("floor", discrete.floor, torch.floor),
    ("ceil", discrete.ceil, torch.ceil),
    ("trunc", discrete.trunc, torch.trunc),
    ("frac", discrete.frac, torch.frac),
    ("remainder", lambda x, **k: discrete.remainder(x, 0.7, **k), lambda x: torch.remainder(x, 0.7)),
    ("fmod", lambda x, **k: discrete.fmod(x, 0.7, **k), lambda x: torch.fmod(x, 0.7)),
    ("sign", discrete.sign, torch.sign),
    ("heaviside", discrete.heaviside, lambda x: torch.heaviside(x, torch.full_like(x, 0.5))),
    ("abs", discrete.abs, torch.abs),
    ("relu", discrete.relu, torch.relu),
    ("clamp", lambda x, **k: discrete.clamp(x, -1, 1, **k), lambda x: torch.clamp(x, -1, 1)),
    ("clamp low", lambda x, **k: discrete.clamp(x, min=-1.0, **k), lambda x: torch.clamp(x, min=-1.0)),
    ("maximum", lambda x, **k: discrete.maximum(x, 0.5, **k), lambda x: torch.maximum(x, torch.full_like(x, 0.5))),
    ("minimum", lambda x, **k: discrete.minimum(x, 0.5, **k), lambda x: torch.minimum(x, torch.full_like(x, 0.5))),
]
EVERY = pytest.mark.parametrize(("soft", "torch_function"), [p[1:] for p in PAIRS], ids=[p[0] for p in PAIRS])


def _bits(x: Tensor) -> Tensor:
    return x.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


@EVERY
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_hard_values_are_those_of_torch_to_the_bit(soft: Any, torch_function: Any, dtype: torch.dtype) -> None:
    x = torch.cat([EDGES, torch.linspace(-3, 3, 100)]).to(dtype)
    for kwargs in ({"hard": True}, {"temperature": 0.0}):
        got = soft(x, **kwargs)
        assert got.dtype == dtype
        assert torch.equal(_bits(got), _bits(torch_function(x)))


@EVERY
@pytest.mark.parametrize("temperature", [0.0, 1e-30, 1e-3, 0.1, 1.0, 1e3])
def test_gradients_are_finite_at_infinities(soft: Any, torch_function: Any, temperature: float) -> None:
    x = EDGES[:-1].clone().requires_grad_()
    for hard in (False, True):
        (gradient,) = torch.autograd.grad(soft(x, temperature=temperature, hard=hard).nansum(), x)
        assert torch.isfinite(gradient).all()


@EVERY
def test_infinities_and_nan_are_treated_as_torch_does(soft: Any, torch_function: Any) -> None:
    x = torch.tensor([-math.inf, math.inf, math.nan])
    expected = torch_function(x)
    expected[2] = math.nan  # sign and heaviside of NaN are 0 in torch; the relaxations say NaN
    torch.testing.assert_close(soft(x), expected, equal_nan=True)


@EVERY
@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (1,)])
def test_any_shape(soft: Any, torch_function: Any, shape: tuple[int, ...]) -> None:
    assert soft(torch.full(shape, 0.3)).shape == shape


@pytest.mark.parametrize("name", ["round", "floor", "ceil", "trunc"])
@pytest.mark.parametrize("method", METHODS)
def test_rounding_is_continuous_and_increasing(name: str, method: str) -> None:
    x = torch.linspace(-2.5, 2.5, 100_001, dtype=torch.float64)
    for temperature in (0.05, 0.3, 3.0):
        step = getattr(discrete, name)(x, method=method, temperature=temperature).diff()
        steepest = 1.5 / temperature + 2
        assert (step > -1e-12).all()
        assert step.max() < steepest * 5e-5


@pytest.mark.parametrize("method", METHODS)
@given(st.floats(-100, 100), st.floats(0.01, 100))
def test_round_keeps_integers_and_symmetry(method: str, value: float, temperature: float) -> None:
    x = torch.tensor([value, -value, value + 1, float(math.floor(value)), math.floor(value) + 0.5], dtype=torch.float64)
    y = discrete.round(x, method=method, temperature=temperature)
    torch.testing.assert_close(y[1], -y[0], rtol=1e-9, atol=1e-9)  # odd
    torch.testing.assert_close(y[2], y[0] + 1, rtol=1e-9, atol=1e-9)  # equivariant to integer shifts
    torch.testing.assert_close(y[3:], x[3:], rtol=1e-9, atol=1e-9)  # integers and half integers are kept
    assert (y - x).abs().max() <= 0.5 + 1e-9


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-4), (torch.float64, 1e-7)])
def test_round_tends_to_the_identity(method: str, dtype: torch.dtype, tolerance: float) -> None:
    x = torch.linspace(-3, 3, 101, dtype=dtype, requires_grad=True)
    for temperature in (1e4, 1e6, 1e30):
        y = discrete.round(x, method=method, temperature=temperature)
        torch.testing.assert_close(y, x, rtol=0, atol=max(tolerance, 0.5 / temperature))
        (gradient,) = torch.autograd.grad(y.sum(), x)
        torch.testing.assert_close(gradient, torch.ones_like(x), rtol=0, atol=max(20 * tolerance, 4 / temperature))


def test_cauchy_rounding_has_a_slope_at_the_integers() -> None:
    x = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
    for temperature in (0.1, 0.03):
        (slope,) = torch.autograd.grad(discrete.round(x, temperature=temperature), x)
        assert slope.item() == pytest.approx(temperature * 4 / math.pi**2, rel=0.05)
        (dead,) = torch.autograd.grad(discrete.round(x, temperature=temperature, method="logistic"), x)
        assert dead < 1e-6


@pytest.mark.parametrize("name", ["round", "floor", "sign", "heaviside", "trunc", "ceil"])
def test_temperature_zero_has_gradient_zero(name: str) -> None:
    x = torch.randn(5, requires_grad=True)
    getattr(discrete, name)(x, temperature=0.0).sum().backward()
    assert torch.equal(x.grad, torch.zeros(5))


@given(st.floats(-20, 20), st.floats(-5, 5), st.floats(0, 5), st.floats(1e-3, 100))
def test_soft_clamp_stays_inside_and_increases(value: float, low: float, width: float, temperature: float) -> None:
    x = torch.tensor([value, value + 0.1], dtype=torch.float64)
    y = discrete.clamp(x, low, low + width, temperature=temperature)
    slack = 1e-12 * max(temperature, 1) * 10
    assert (y >= low - slack).all()
    assert (y <= low + width + slack).all()
    assert y[1] >= y[0] - slack


@pytest.mark.parametrize("temperature", [0.0, 0.3])
@pytest.mark.parametrize("shapes", [((), (3,), (1,)), ((1,), (3,), (2, 1)), ((3,), (), (2, 3)), ((), None, (2,))])
def test_clamp_has_a_gradient_where_a_bound_is_larger(shapes: tuple[Any, ...], temperature: float) -> None:
    values = zip(shapes, (0.5, -1.0, 2.0), strict=True)
    x, low, high = (None if s is None else torch.full(s, v, requires_grad=True) for s, v in values)
    value = discrete.clamp(x, low, high, temperature=temperature)
    assert value.shape == torch.broadcast_shapes(*(s for s in shapes if s is not None))
    given = [t for t in (x, low, high) if t is not None]
    gradients = torch.autograd.grad(value.sum(), given)
    assert [g.shape for g in gradients] == [t.shape for t in given]
    if temperature == 0:
        assert gradients[0].sum() == value.numel()  # x is inside of its bounds
        assert not any(g.any() for g in gradients[1:])


def test_clamp_follows_torch_where_bounds_cross_or_are_infinite() -> None:
    x = torch.linspace(-2, 2, 9)
    low, high = torch.tensor(1.0), torch.tensor(-1.0)
    got = discrete.clamp(x, low, high, temperature=1e-6)
    torch.testing.assert_close(got, torch.clamp(x, low, high), rtol=0, atol=1e-5)
    got = discrete.clamp(x, -math.inf, 1.0, temperature=0.5)
    torch.testing.assert_close(got, discrete.clamp(x, max=1.0, temperature=0.5))
    bounds = torch.tensor([0.0, -1.0], requires_grad=True)
    discrete.clamp(torch.tensor([-5.0, 5.0]), bounds, bounds + 2, hard=True).sum().backward()
    torch.testing.assert_close(bounds.grad, torch.ones(2))  # one sits at its lower, one at its upper bound


@given(st.floats(-5, 5), st.floats(-5, 5), st.floats(0.01, 10))
def test_maximum_is_symmetric_and_bounds_the_hard_one(a: float, b: float, temperature: float) -> None:
    x, y = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    soft = discrete.maximum(x, y, temperature=temperature)
    torch.testing.assert_close(soft, discrete.maximum(y, x, temperature=temperature))
    assert max(a, b) - 1e-12 <= soft <= max(a, b) + temperature * math.log(2) / 4 + 1e-12
    gated = discrete.maximum(x, y, temperature=temperature, method="gated")
    assert min(a, b) - 1e-12 <= gated <= max(a, b) + 1e-12


def test_a_tie_of_infinities_is_no_nan() -> None:
    a = torch.tensor([math.inf, -math.inf, math.inf], requires_grad=True)
    b = torch.tensor([math.inf, -math.inf, -math.inf], requires_grad=True)
    for function in (discrete.maximum, discrete.minimum):
        gradients = torch.autograd.grad(function(a, b).sum(), (a, b))
        assert all(torch.isfinite(g).all() for g in gradients)


def test_heaviside_values_only_matter_where_hard() -> None:
    x, values = torch.tensor([0.0, 1.0]), torch.tensor([0.25])
    assert discrete.heaviside(x, values, hard=True).tolist() == [0.25, 1.0]
    assert discrete.heaviside(x, values).tolist()[0] == 0.5


def test_broadcasting_and_promotion_follow_torch() -> None:
    half, single = torch.zeros(3, 1, dtype=torch.float16), torch.zeros(2)
    assert discrete.maximum(half, single).dtype == torch.float32
    assert discrete.maximum(half, single, hard=True).shape == (3, 2)
    assert discrete.maximum(torch.tensor(0.0), half, hard=True).dtype == torch.float16


def test_bends_far_from_their_arguments_are_hard() -> None:
    for method in ("softplus", "gated"):
        x = torch.tensor([1.0, 1e8, -1e8, 3e38], requires_grad=True)
        other = torch.tensor([-1e8, 1.0, 1.0, -3e38])
        assert torch.equal(discrete.maximum(x, other, method=method), torch.maximum(x, other))
        assert torch.equal(discrete.minimum(x, other, method=method), torch.minimum(x, other))
        clamped = discrete.clamp(x, -3.0, 2.0, method=method)
        torch.testing.assert_close(clamped, x.clamp(-3.0, 2.0), rtol=1e-6, atol=1e-6)
        assert torch.isfinite(torch.autograd.grad(clamped.sum(), x)[0]).all()


@pytest.mark.parametrize("name", ["remainder", "fmod"])
def test_remainders_of_large_numbers_are_those_of_their_exact_quotient(name: str) -> None:
    x = torch.tensor([1e8, 3e30, -1e8, 16777219.0])
    hard = getattr(torch, name)(x.double(), 3.0)
    torch.testing.assert_close(getattr(discrete, name)(x, 3.0, temperature=1e-6).double(), hard, rtol=1e-5, atol=1e-5)


def test_a_temperature_may_be_mapped_over() -> None:
    x, temperatures = torch.tensor([0.3, 1.2, -0.7]), torch.tensor([0.1, 0.5, 2.0])
    for block in (discrete.round, discrete.relu, discrete.sign, discrete.argmax, discrete.sparsemax, discrete.rank):
        mapped = torch.func.vmap(lambda t, block=block: block(x, temperature=t))(temperatures)
        alone = torch.stack([block(x, temperature=float(t)) for t in temperatures])
        torch.testing.assert_close(mapped, alone)


@pytest.mark.parametrize("method", ["linear", "cubic", "quintic"])
def test_a_bend_is_the_integral_of_its_step(method: str) -> None:
    x = torch.linspace(-1, 1, 2001, dtype=torch.float64)
    step = discrete.soft_step(x / 0.7, method)
    area = torch.cumulative_trapezoid(step, x)
    torch.testing.assert_close(discrete.relu(x, method=method, temperature=0.7)[1:], area, atol=1e-6, rtol=0)
    far = torch.tensor([-30.0, -0.7, 0.7, 1e30, torch.inf])
    assert torch.equal(discrete.relu(far, method=method, temperature=0.7), torch.relu(far))


@pytest.mark.parametrize("block", [pair[1] for pair in PAIRS[:7]], ids=[pair[0] for pair in PAIRS[:7]])
def test_staircases_refuse_the_step_that_is_never_straight(block: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match=r"method must be one of 'logistic', .*, got 'logistic_phi'"):
        block(torch.zeros(2), method="logistic_phi")
