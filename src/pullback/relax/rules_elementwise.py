"""Rounding, steps, bends: float results with the gradient of a smooth curve; casts with a distribution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pullback import discrete
from pullback.relax.rules import INPLACE_FLAG, PASS, Discrete, Dropped, Integer, is_active, lazy, relaxes, soft_value
from pullback.relax.settings import Settings
from pullback.relax.soft_tensors import (
    Distribution,
    Lazy,
    SoftBool,
    SoftIndex,
    SoftTensor,
    remember_values,
    remembered_values,
)

__all__ = ["keep_values"]


def _unary(operation: str, block: Callable[..., Tensor]) -> Callable[..., Any]:
    def soft(settings: Settings, hard: Tensor, input: Tensor) -> Any:
        return block(input, temperature=settings.width(input), **settings.method(operation))

    return soft


def _rounding(operation: str, block: Callable[..., Tensor]) -> Callable[..., Any]:
    def soft(settings: Settings, hard: Tensor, input: Tensor) -> Any:
        width = settings.width(input)
        value = block(input, temperature=width, **settings.method(operation))
        return Discrete(value, lazy(lambda: _rounded(input, operation, width, settings), input))

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
    ends = torch.tensor([-1, 1], device=input.device)
    return Discrete(value, Lazy(lambda: Distribution(_coin((value + 1) / 2).probability, ends)), unit=2.0)


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
    known = remembered_values(input)
    if known is not None and not any(isinstance(bound, Tensor) and bound.ndim for bound in (min, max)):
        clamped = Lazy(lambda: _mapped(known(), lambda values: torch.clamp(values, min, max)))
        return Discrete(clamped().mean(), clamped)
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
    return Discrete(value, Lazy(lambda: _coin(value)))


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
    if isinstance(input, SoftTensor):
        return _cast_soft(hard, input)
    if hard.is_floating_point() or hard.is_complex():
        return PASS
    known = remembered_values(input)
    if hard.dtype == torch.bool:
        if known is not None:
            return lazy(lambda: _unlike_zero(known()))
        width = settings.width(input)
        return lazy(lambda: discrete.not_equal(input, 0.0, temperature=width, **settings.method("ne")), input)
    if known is not None:
        return Integer(Lazy(lambda: _mapped(known(), lambda values: values.to(hard.dtype).long())))
    if bool((input.detach() == hard).all()):  # already whole numbers: the slope they bring is all there is
        return Integer(expected=lazy(lambda: input, input))
    width = settings.width(input)
    truncated = lazy(lambda: discrete.trunc(input, temperature=width, **settings.method("trunc")), input)
    return Integer(lazy(lambda: _rounded(input, "trunc", width, settings), input), truncated)


def _cast_soft(hard: Tensor, input: SoftTensor) -> Any:
    if hard.is_floating_point():
        if isinstance(input, SoftBool):
            return Discrete(input.probability, Lazy(lambda: _coin(input.probability)))
        assert isinstance(input, SoftIndex)
        known = input._current()[0]
        return input.expected if known is None else Discrete(input.expected, known)
    if hard.dtype == torch.bool:
        if isinstance(input, SoftBool):
            return lazy(lambda: input.probability)
        assert isinstance(input, SoftIndex)
        if not input.has_distribution:
            raise Dropped("a condition from an expected value")
        return lazy(lambda: _unlike_zero(input.distribution))  # type: ignore[arg-type]
    if isinstance(input, SoftBool):
        return Integer(lazy(lambda: _coin(input.probability)))
    return Integer(*input._current())


def _mapped(distribution: Distribution, function: Callable[[Tensor], Tensor]) -> Distribution:
    return Distribution(distribution.probability, function(distribution.values))


def keep_values(function: Callable[..., Any], result: Any, args: Any) -> None:
    """Let ``result = function(*args)`` remember its values where one argument does and the rest is data."""
    remembered = [(i, remembered_values(a)) for i, a in enumerate(args)]
    known = [(i, distribution) for i, distribution in remembered if distribution is not None]
    if len(known) != 1 or not isinstance(result, Tensor):
        return
    position, values = known[0]
    others = [a for i, a in enumerate(args) if i != position]
    if any(is_active(a) or (isinstance(a, Tensor) and a.shape != result.shape and a.ndim) for a in others):
        return
    if args[position].shape != result.shape:
        return

    def distribution() -> Distribution:
        def apply(support: Tensor) -> Tensor:
            given = [a.unsqueeze(-1) if isinstance(a, Tensor) and a.ndim else a for a in args]
            given[position] = support
            moved: Tensor = function(*given)
            return moved

        return _mapped(values(), apply)

    remember_values(result, Lazy(distribution, [a for a in others if isinstance(a, Tensor)]))


def _unlike_zero(distribution: Distribution) -> Tensor:
    return (distribution.probability * (distribution.values != 0)).sum(-1)


def _coin(p: Tensor) -> Distribution:
    """A truth value as an integer: 0 or 1."""
    return Distribution(torch.stack([1 - p, p], -1))


_REACH = 3


_SHIFTS = {"floor": 0.0, "round": -0.5, "ceil": -1.0}


def _rounded(x: Tensor, operation: str, width: float, settings: Settings) -> Distribution:
    """The integers near ``x`` with the probability that ``x`` with noise of scale ``width`` is rounded to them."""
    offsets = torch.arange(-_REACH, _REACH + 1, device=x.device)
    support = torch.where(torch.isfinite(x.detach()), x.detach(), 0.0).round().unsqueeze(-1) + offsets
    if operation == "trunc":  # k: [k, k + 1) for k > 0, (k - 1, k] for k < 0, (-1, 1) for 0
        low = torch.where(support > 0, support, support - 1)
    else:
        low = support + _SHIFTS[operation]
    # The lowest takes all below, the highest all above.
    method = settings.method(operation)
    above = discrete.greater(x.unsqueeze(-1), low[..., 1:], temperature=width, **method)
    one = torch.ones_like(above[..., :1])
    return Distribution(torch.cat([one, above], -1) - torch.cat([above, 0 * one], -1), support.long())
