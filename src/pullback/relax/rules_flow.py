"""Soft tensors through arithmetic, reductions, casts and changes of shape: the same function of the soft values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pullback.relax.rules import (
    FLOW,
    Discrete,
    Integer,
    Rule,
    functions_named,
    is_active,
    lazy,
    one_dtype,
    register_inplace,
    soft_arguments,
    soft_value,
)
from pullback.relax.settings import Settings
from pullback.relax.soft_tensors import Distribution, Lazy, SoftBool, SoftIndex, SoftTensor, plain

__all__ = ["flow", "push_forward"]

ELEMENTWISE = (
    "add sub subtract rsub mul multiply div divide true_divide floor_divide remainder fmod pow __pow__ "
    "neg negative abs absolute "
    "square sqrt rsqrt reciprocal exp exp2 expm1 log log2 log10 log1p sin cos tan sinh cosh tanh asin acos atan "
    "sigmoid erf lerp addcmul addcdiv clamp clamp_min clamp_max clip minimum maximum fmin fmax sign sgn "
    "bitwise_left_shift bitwise_right_shift "
    "__radd__ __rsub__ __rmul__ __rdiv__ __rtruediv__ __floordiv__ __rfloordiv__ __mod__ __rmod__ __rpow__ "
    "__lshift__ __rshift__ atan2 hypot positive"
)
"""On a distribution: applied to every value it may take."""

SHAPES = (
    "view reshape view_as reshape_as permute transpose swapaxes swapdims t T mT H movedim "
    "moveaxis flatten ravel unflatten "
    "squeeze unsqueeze expand expand_as repeat tile repeat_interleave stack cat concat "
    "concatenate hstack vstack dstack "
    "chunk split split_with_sizes tensor_split unbind flip fliplr flipud roll rot90 diag "
    "diagonal diag_embed contiguous "
    "clone narrow select broadcast_to broadcast_tensors atleast_1d atleast_2d atleast_3d tril triu "
    "cpu cuda resolve_conj unfold adjoint __reversed__"
)
"""On a distribution: applied to the probability of every value."""

VALUES = (
    "sum mean prod std var nansum nanmean cumsum cumprod norm std_mean var_mean logsumexp diff dot mv mm bmm matmul "
    "__matmul__ __rmatmul__ inner outer ger tensordot einsum kron cross addmm addmv baddbmm bilinear linear trace "
    "cov corrcoef cdist pdist softmax log_softmax "
    "mse_loss l1_loss smooth_l1_loss huber_loss binary_cross_entropy binary_cross_entropy_with_logits kl_div "
    "cosine_similarity normalize layer_norm pad meshgrid copysign "
    "conv1d conv2d conv3d interpolate avg_pool1d avg_pool2d adaptive_avg_pool2d max_pool2d max_pool1d"
)
"""Of the soft value alone."""


def flow(function: Callable[..., Any], hard: Any, args: Any, kwargs: Any, *, numbers: bool = False) -> Any:
    """Return the parts behind ``hard``: ``function`` of the soft values of its arguments.

    Bool and integer results get a lazy probability or expected value, float results a tensor.
    """

    def call() -> Any:
        given = (args, _without_integer_dtype(kwargs))
        soft_args, soft_kwargs = one_dtype(soft_arguments(given, numbers=True)) if numbers else soft_arguments(given)
        return function(*soft_args, **soft_kwargs)

    if not isinstance(hard, Tensor):
        soft = call()
        return tuple(_part(h, s) for h, s in zip(hard, soft, strict=True))

    if hard.is_floating_point() or hard.is_complex():
        return call()
    late = lazy(call, args, kwargs)
    return late if hard.dtype == torch.bool else Integer(expected=late)


def push_forward(function: Callable[..., Any], hard: Tensor, args: Any, kwargs: Any) -> Any:
    """Return the part behind ``hard = function(...)``, elementwise, where one argument has a distribution.

    ``P(f(i) = w) = sum_{v: f(v) = w} P(i = v)``: the distribution keeps its probabilities and gets the values ``f(v)``;
    a condition has the probability ``sum_v P(v) [f(v)]``, a float result the expectation ``sum_v P(v) f(v)``.
    """
    index = next(a for a in args if isinstance(a, SoftIndex) and a.has_distribution)

    def values() -> tuple[Tensor, Tensor]:
        distribution = index.distribution
        assert distribution is not None
        support = distribution.values
        result = at(support)
        if result.is_floating_point() and not bool(torch.isfinite(result.detach()).all()):
            # A value at which the function has none (`x / count` at 0) counts as no change.
            support = torch.where(torch.isfinite(result.detach()), support, plain(index).unsqueeze(-1))
            result = at(support)
        return distribution.probability, result

    def at(support: Tensor) -> Tensor:
        given = [support if a is index else _trailing(soft_or_hard(a)) for a in args]
        result: Tensor = function(*given, **{k: _trailing(soft_or_hard(v)) for k, v in kwargs.items()})
        return result

    def expected() -> Tensor:
        probability, result = values()
        return (probability * result.to(torch.promote_types(result.dtype, probability.dtype))).sum(-1)

    if hard.is_floating_point() and function in _AFFINE and not any(is_active(a) for a in args if a is not index):
        given = [index.expected if a is index else a for a in args]
        return Discrete(function(*given, **kwargs), lazy(lambda: Distribution(*values()), args))
    if hard.is_floating_point():
        return expected()
    if hard.dtype == torch.bool:
        return lazy(expected, args)

    def distribution() -> Distribution:
        probability, result = values()
        return Distribution(probability.expand(*hard.shape, probability.shape[-1]), result)

    return Integer(lazy(distribution, args))


_AFFINE = frozenset(
    f
    for name in "add sub subtract rsub mul multiply div divide neg negative __radd__ __rsub__ __rmul__".split()
    for f in functions_named(name)
)


def count(hard: Tensor, input: SoftBool, args: Any, kwargs: Any) -> Integer | None:
    """Return the part behind the number of true elements, which are taken to be independent; ``None`` for many.

    The distribution of the number (Poisson binomial) takes one step an element: ``P(s) <- (1 - p) P(s) + p P(s - 1)``.
    """
    dim = args[0] if args else kwargs.get("dim")
    if hard.numel() == 0 or not 0 < input.numel() // hard.numel() <= _MAX_COUNTED:
        return None
    dims = range(input.ndim) if dim is None or dim in ((), []) else dim if isinstance(dim, tuple | list) else (dim,)
    reduced = sorted({d % input.ndim for d in dims}) if input.ndim else []
    rest = [d for d in range(input.ndim) if d not in reduced]

    def distribution() -> Distribution:
        p = input.probability.permute(*rest, *reduced).reshape(*hard.shape, -1)
        number = torch.ones_like(p[..., :1])
        for one in p.unbind(-1):
            one = one.unsqueeze(-1)
            zero = torch.zeros_like(one)
            number = torch.cat([number * (1 - one), zero], -1) + torch.cat([zero, number * one], -1)
        return Distribution(number)

    return Integer(
        lazy(distribution), lazy(lambda: torch.sum(input.probability, *args, **_without_integer_dtype(kwargs)))
    )


_MAX_COUNTED = 64


def soft_or_hard(value: Any) -> Any:
    """Return the value of a second operand inside of an expectation: plain integers, floating probabilities."""
    return soft_value(value) if isinstance(value, SoftBool) else value


def _trailing(value: Any) -> Any:
    return value.unsqueeze(-1) if isinstance(value, Tensor) and value.ndim else value


def _part(hard: Tensor, soft: Tensor) -> Any:
    if hard.is_floating_point() or hard.is_complex():
        return soft
    late = Lazy(lambda: soft)
    return late if hard.dtype == torch.bool else Integer(expected=late)


def _without_integer_dtype(kwargs: dict[str, Any]) -> dict[str, Any]:
    dtype = kwargs.get("dtype")
    if dtype is None or dtype.is_floating_point or dtype.is_complex:
        return kwargs
    return {k: v for k, v in kwargs.items() if k != "dtype"}


def _register_flow(names: str, kind: str) -> None:
    for name in names.split():
        for function in functions_named(name):
            FLOW[function] = Rule(name.strip("_"), "flow", _rule(function, kind), only_soft=True)
            register_inplace(name, function)


def _rule(function: Any, kind: str) -> Callable[..., Any]:
    def soft(settings: Settings, hard: Any, *args: Any, **kwargs: Any) -> Any:
        if kind == "elementwise" and sum(_has_distribution(a) for a in args) == 1 and _single(args):
            return push_forward(function, hard, args, kwargs)
        if kind == "shape" and any(_has_distribution(a) for a in _flat(args)):
            return reshape_distribution(function, hard, args, kwargs)
        if function in _SUMS and isinstance(args[0], SoftBool) and not hard.is_floating_point():
            counted = count(hard, args[0], args[1:], kwargs)
            if counted is not None:
                return counted
        return flow(function, hard, args, kwargs, numbers=kind == "value")

    return soft


_SUMS = frozenset(functions_named("sum"))


def _single(args: Any) -> bool:
    """Whether no other argument is a soft index: two soft indices are combined by their expected values."""
    return sum(isinstance(a, SoftIndex) for a in args) == 1


def _has_distribution(value: Any) -> bool:
    return isinstance(value, SoftIndex) and value.has_distribution


def _flat(args: Any) -> list[Any]:
    result: list[Any] = []
    for a in args:
        result.extend(_flat(a) if isinstance(a, tuple | list) else [a])
    return result


def reshape_distribution(function: Callable[..., Any], hard: Any, args: Any, kwargs: Any) -> Any:
    """Return the parts behind ``hard = function(...)`` where the function only moves elements.

    The same function is mapped over the last dimension, that of the possible values.
    """
    indices = [a for a in _flat(args) if isinstance(a, SoftTensor)]
    if not all(_has_distribution(a) for a in indices) or any(
        isinstance(a, Tensor) and not isinstance(a, SoftTensor) and a.ndim != 0 for a in _flat(args)
    ):
        return flow(function, hard, args, kwargs)

    def distributions() -> list[Distribution]:
        return [a.distribution for a in indices]  # type: ignore[attr-defined]

    def mapped(leaves: list[Tensor]) -> Any:
        def one(*slices: Tensor) -> Any:
            given = iter(slices)
            return function(*_replace(args, indices, given), **kwargs)

        return torch.func.vmap(one, in_dims=-1, out_dims=-1)(*leaves)

    def build() -> Any:
        parts = distributions()
        size = max(d.probability.shape[-1] for d in parts)
        probability = mapped([_padded(d.probability, size) for d in parts])
        if all(d.support is None for d in parts):
            return probability, None
        return probability, mapped([_padded(d.values.expand(d.probability.shape), size) for d in parts])

    if isinstance(hard, Tensor):
        return Integer(lazy(lambda: Distribution(*build())))
    shared: Lazy[Any] = lazy(build)

    def item(i: int) -> Integer:
        def distribution() -> Distribution:
            probability, support = shared()
            return Distribution(probability[i], None if support is None else support[i])

        return Integer(Lazy(distribution))

    return tuple(item(i) for i in range(len(hard)))


def _padded(x: Tensor, size: int) -> Tensor:
    return x if x.shape[-1] == size else torch.nn.functional.pad(x, (0, size - x.shape[-1]))


def _replace(value: Any, old: list[Any], new: Any) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(_replace(item, old, new) for item in value)
    return next(new) if isinstance(value, SoftTensor) else value


def register() -> None:
    """Add the rules of this file for every function that no other file has a rule for."""
    _register_flow(ELEMENTWISE, "elementwise")
    _register_flow(SHAPES, "shape")
    _register_flow(VALUES, "value")
