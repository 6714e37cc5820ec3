"""Rounding, steps, bends: float results with the gradient of a smooth curve; casts with a distribution."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pullback import discrete
from pullback.core.transforms import can_look
from pullback.relax.image import MAX_ATOMS
from pullback.relax.rules import (
    FLOW,
    INPLACE_FLAG,
    PASS,
    RULES,
    Discrete,
    Dropped,
    Integer,
    Rule,
    lazy,
    relaxes,
    soft_value,
)
from pullback.relax.settings import Settings
from pullback.relax.soft_tensors import Distribution, Lazy, SoftBool, SoftIndex, SoftTensor, coin

__all__ = ["STEPS", "flat_point"]


def _unary(operation: str, block: Callable[..., Tensor]) -> Callable[..., Any]:
    def soft(settings: Settings, hard: Tensor, input: Tensor) -> Any:
        return block(input, temperature=settings.width(input), **settings.method(operation))

    return soft


def _rounding(operation: str, block: Callable[..., Tensor]) -> Callable[..., Any]:
    def soft(settings: Settings, hard: Tensor, input: Tensor) -> Any:
        width = settings.width(input)
        value = block(input, temperature=width, **settings.method(operation))
        return Discrete(value, lazy(lambda x: _rounded(x, operation, width, settings), input))

    return soft


for _operation, _block, _names in (
    ("floor", discrete.floor, "floor"),
    ("ceil", discrete.ceil, "ceil"),
    ("trunc", discrete.trunc, "trunc fix"),
):
    relaxes(_names, group="rounding", operation=_operation)(_rounding(_operation, _block))
relaxes("frac", group="rounding")(_unary("frac", discrete.frac))
relaxes("abs absolute", group="elementwise", operation="abs")(_unary("abs", discrete.abs))


@relaxes("sign sgn", group="elementwise", operation="sign")
def _sign(settings: Settings, hard: Tensor, input: Tensor) -> Any:
    value = discrete.sign(input, temperature=settings.width(input), **settings.method("sign"))
    if value.is_complex():
        return value
    p, ends = (value + 1) / 2, torch.tensor([-1.0, 1.0], dtype=value.dtype, device=input.device)
    return Discrete(value, Lazy(lambda: Distribution(torch.stack([1 - p, p], -1), ends)), unit=2.0)


@relaxes("round", group="rounding")
def _round(settings: Settings, hard: Tensor, input: Tensor, *, decimals: int = 0) -> Any:
    if decimals == 0:
        return _rounding("round", discrete.round)(settings, hard, input)
    unit = 10.0**decimals
    width = settings.width(input) * unit
    return discrete.round(input * unit, temperature=width, **settings.method("round")) / unit


@relaxes("relu", group="elementwise")
def _relu(settings: Settings, hard: Tensor, input: Tensor) -> Any:
    return discrete.relu(input, temperature=settings.width(input), **settings.method("relu"))


@relaxes("clamp clip", group="elementwise", operation="clamp")
def _clamp(settings: Settings, hard: Tensor, input: Tensor, min: Any = None, max: Any = None) -> Any:
    low, high = soft_value(min), soft_value(max)
    return discrete.clamp(input, low, high, temperature=settings.width(input), **settings.method("clamp"))


@relaxes("clamp_min", group="elementwise", operation="clamp")
def _clamp_min(settings: Settings, hard: Tensor, input: Tensor, min: Any) -> Any:
    return _clamp(settings, hard, input, min=min)


@relaxes("clamp_max", group="elementwise", operation="clamp")
def _clamp_max(settings: Settings, hard: Tensor, input: Tensor, max: Any) -> Any:
    return _clamp(settings, hard, input, max=max)


@relaxes("hardtanh", group="elementwise", operation="clamp")
def _hardtanh(settings: Settings, hard: Tensor, input: Tensor, min_val: float = -1.0, max_val: float = 1.0) -> Any:
    return _clamp(settings, hard, input, min_val, max_val)


@relaxes("relu6", group="elementwise", operation="clamp")
def _relu6(settings: Settings, hard: Tensor, input: Tensor) -> Any:
    return _clamp(settings, hard, input, 0.0, 6.0)


@relaxes("threshold", group="elementwise")
def _threshold(settings: Settings, hard: Tensor, input: Tensor, threshold: float, value: float) -> Any:
    above = discrete.greater(input, threshold, temperature=settings.width(input), **settings.method("gt"))
    return discrete.where(above, input, value)


for _name, _position in (("relu", 1), ("relu6", 1), ("hardtanh", 3), ("threshold", 3)):
    INPLACE_FLAG[getattr(torch.nn.functional, _name)] = _position


@relaxes("heaviside", group="elementwise")
def _heaviside(settings: Settings, hard: Tensor, input: Tensor, values: Tensor) -> Any:
    value = discrete.heaviside(input, values, temperature=settings.width(input), **settings.method("heaviside"))
    steps = torch.tensor([0.0, 1.0], dtype=value.dtype, device=input.device)
    return Discrete(value, Lazy(lambda: Distribution(torch.stack([1 - value, value], -1), steps)))


@relaxes("maximum fmax", group="elementwise", operation="maximum")
def _maximum(settings: Settings, hard: Tensor, input: Tensor, other: Tensor) -> Any:
    width = settings.width(input.detach() - other.detach())
    return discrete.maximum(input, other, temperature=width, **settings.method("maximum"))


@relaxes("minimum fmin", group="elementwise", operation="minimum")
def _minimum(settings: Settings, hard: Tensor, input: Tensor, other: Tensor) -> Any:
    width = settings.width(input.detach() - other.detach())
    return discrete.minimum(input, other, temperature=width, **settings.method("minimum"))


def _quotient(input: Any, other: Any) -> Tensor:
    result: Tensor = (
        torch.true_divide(input, other)
        if isinstance(input, Tensor)
        else torch.true_divide(torch.as_tensor(input, dtype=other.dtype, device=other.device), other)
    )
    return result


def _divided(block: Callable[..., Tensor], operation: str, settings: Settings, input: Any, other: Any) -> Tensor:
    quotient = _quotient(input, other)
    return block(quotient, temperature=settings.width(quotient), **settings.method(operation))


@relaxes("floor_divide __floordiv__", group="rounding", operation="floor_divide")
def _floor_divide(settings: Settings, hard: Tensor, input: Any, other: Any) -> Any:
    return _divided(discrete.floor, "floor", settings, input, other)


@relaxes("__rfloordiv__", group="rounding", operation="floor_divide")
def _rfloor_divide(settings: Settings, hard: Tensor, input: Any, other: Any) -> Any:
    return _divided(discrete.floor, "floor", settings, other, input)


@relaxes("remainder __mod__", group="rounding", operation="remainder")
def _remainder(settings: Settings, hard: Tensor, input: Any, other: Any) -> Any:
    return input - other * _divided(discrete.floor, "floor", settings, input, other)


@relaxes("__rmod__", group="rounding", operation="remainder")
def _rremainder(settings: Settings, hard: Tensor, input: Any, other: Any) -> Any:
    return other - input * _divided(discrete.floor, "floor", settings, other, input)


@relaxes("fmod", group="rounding", operation="remainder")
def _fmod(settings: Settings, hard: Tensor, input: Any, other: Any) -> Any:
    return input - other * _divided(discrete.trunc, "trunc", settings, input, other)


@relaxes("div divide", group="rounding", operation="floor_divide")
def _div(settings: Settings, hard: Tensor, input: Any, other: Any, *, rounding_mode: str | None = None) -> Any:
    if rounding_mode is None:
        return PASS
    block, name = (discrete.floor, "floor") if rounding_mode == "floor" else (discrete.trunc, "trunc")
    return _divided(block, name, settings, input, other)


@relaxes("float double half bfloat16 int long short char byte bool to type type_as", group="cast", operation="cast")
def _cast(settings: Settings, hard: Any, input: Tensor, *args: Any, **kwargs: Any) -> Any:
    if not isinstance(hard, Tensor) or hard is input:  # `x.type()`, nothing to do
        return PASS
    if hard.is_floating_point() or hard.is_complex():
        return PASS
    width = settings.width(input)
    if hard.dtype == torch.bool:
        return lazy(lambda x: discrete.not_equal(x, 0.0, temperature=width, **settings.method("ne")), input)
    if bool((input.detach() == hard).all()):  # already whole numbers: the slope they bring is all there is
        return Integer(expected=lazy(lambda x: x, input))

    def values(x: Tensor) -> Distribution | None:
        atoms = _rounded(x, "trunc", width, settings)
        return None if atoms is None else atoms._replace(support=atoms.values.to(hard.dtype).long())

    truncated = lazy(lambda x: discrete.trunc(x, temperature=width, **settings.method("trunc")), input)
    return Integer(lazy(values, input), truncated)


def _cast_soft(settings: Settings, hard: Any, input: SoftTensor, *args: Any, **kwargs: Any) -> Any:
    """What is soft stays so, whichever operations were chosen."""
    if not isinstance(hard, Tensor) or hard is input:
        return PASS
    if isinstance(input, SoftBool):
        tossed = coin(input._current())
        if hard.is_floating_point():
            return Discrete(input.probability, _as_floats(tossed, hard.dtype))
        if hard.dtype == torch.bool:
            return input._current()
        return Integer(Lazy(lambda: tossed()._replace(support=tossed().values.long()), [tossed]), input._current())
    assert isinstance(input, SoftIndex)
    known, expected = input._current()
    if hard.is_floating_point():
        return input.expected if known is None else Discrete(input.expected, _as_floats(known, hard.dtype))
    if hard.dtype == torch.bool:
        if known is None:
            raise Dropped("a condition from an expected value")
        return lazy(_unlike_zero, input)
    return Integer(known, expected)


for _function in [function for function, rule in RULES.items() if rule.operation == "cast"]:
    FLOW[_function] = Rule("cast", "flow", _cast_soft, only_soft=True)


def _as_floats(known: Lazy[Any], dtype: torch.dtype) -> Lazy[Any]:
    def compute() -> Any:
        atoms = known()
        return None if atoms is None else atoms._replace(support=atoms.values.to(dtype))

    return Lazy(compute, [known])


def _unlike_zero(index: SoftIndex) -> Tensor:
    atoms = index.distribution
    if atoms is None:
        raise Dropped("a condition from an expected value")
    return (atoms.probability * (atoms.values != 0)).sum(-1).expand(index.shape)


def flat_point(settings: Settings, operation: str, x: Tensor) -> str:
    """What to say where all of ``x`` is so far from the next step that its rounding hardly has a slope, else nothing.

    A rounding of the same noise would have the slope 1 on average; at distance ``d`` from its two next steps that of
    noise with the scale ``w`` is ``sum f(d_i / w) / w`` with the density ``f``.
    """
    if not 0 < x.numel() <= _LOOKED_AT or not can_look(x):
        return ""
    with torch.no_grad():
        away = torch.remainder(x.detach().double() + (0.5 if operation == "round" else 0.0), 1.0)
        if not bool(torch.isfinite(away).all()):
            return ""
        if operation == "trunc":
            away = torch.where(x.abs() < 1, torch.maximum(1 - x.abs(), x.abs()).double(), away)
        nearest = torch.minimum(away, 1 - away).amin().item()
    width = settings.width(x)
    # Noise as wide as a level sees many steps, not two, and a slope of about 1 everywhere.
    if width >= 1 or _slope(nearest, width) > 0.05:
        return ""
    factor = 2.0
    while _slope(nearest, width * factor) < 0.3:
        factor *= 1.5
    return (
        f"it sits at its flat point, slope {_slope(nearest, width):.1g} at temperature {settings.temperature:.2g}; "
        f"a temperature of {settings.temperature * factor:.2g} would move it"
    )


def _slope(away: float, width: float) -> float:
    return sum(4 / width / (2 * math.cosh(min(2 * d / width, 300.0))) ** 2 for d in (away, 1 - away))


STEPS = frozenset({"round", "floor", "ceil", "trunc"})
_LOOKED_AT = 2**16

_REACH = 64
"""Levels on each side of a value that are told apart; noise wider than these makes a rounding continuous."""

_SHIFTS = {"floor": 0.0, "round": -0.5, "ceil": -1.0}


def _rounded(x: Tensor, operation: str, width: float, settings: Settings) -> Distribution | None:
    """The integers near ``x`` with the probability that ``x`` with noise of scale ``width`` is rounded to them.

    ``None`` where they are too many.
    """
    reach = math.ceil(2 * width) + 2
    if reach > _REACH or x.numel() * (2 * reach + 1) > MAX_ATOMS:
        return None
    offsets = torch.arange(-reach, reach + 1, device=x.device)
    support = torch.where(torch.isfinite(x.detach()), x.detach(), 0.0).round().unsqueeze(-1) + offsets
    if operation == "trunc":  # k: [k, k + 1) for k > 0, (k - 1, k] for k < 0, (-1, 1) for 0
        low = torch.where(support > 0, support, support - 1)
    else:
        low = support + _SHIFTS[operation]
    # The lowest takes all below, the highest all above.
    method = settings.method(operation)
    above = discrete.greater(x.unsqueeze(-1), low[..., 1:], temperature=width, **method)
    one = torch.ones_like(above[..., :1])
    return Distribution(torch.cat([one, above], -1) - torch.cat([above, 0 * one], -1), support)
