"""Comparisons, logic on masks, and what is done with a mask: select, fill, count, any, all."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pullback import discrete
from pullback.core.gradients import replace_gradient
from pullback.core.transforms import physical, transform_running
from pullback.relax.image import MAX_ATOMS, elementwise, form_of, shares_a_choice
from pullback.relax.internals import wrapped
from pullback.relax.law import distribution_of, law_of, only_jumps
from pullback.relax.ranking import compare_with_places
from pullback.relax.rules import PASS, Discrete, Dropped, Integer, as_they_are, is_active, lazy, relaxes, soft_value
from pullback.relax.rules_flow import atoms_behind
from pullback.relax.settings import Settings
from pullback.relax.soft_tensors import Distribution, Lazy, SoftBool, SoftIndex, SoftTensor, plain, tossed, truth_values

__all__ = ["probability", "select", "selection", "with_atoms"]

_COMPARISONS: dict[str, tuple[Callable[..., Any], Callable[..., Tensor], str]] = {
    # operation: torch's function, the block, torch's names
    "gt": (torch.gt, discrete.greater, "gt __gt__ greater"),
    "ge": (torch.ge, discrete.greater_equal, "ge __ge__ greater_equal"),
    "lt": (torch.lt, discrete.less, "lt __lt__ less"),
    "le": (torch.le, discrete.less_equal, "le __le__ less_equal"),
    "eq": (torch.eq, discrete.equal, "eq __eq__"),
    "ne": (torch.ne, discrete.not_equal, "ne __ne__ not_equal"),
}


def _comparison(operation: str) -> Callable[..., Any]:
    function, block, _ = _COMPARISONS[operation]

    def soft(settings: Settings, hard: Any, input: Any, other: Any) -> Any:
        if not isinstance(hard, Tensor):  # `x == None`
            return PASS
        known = [a for a in (input, other) if distribution_of(a) is not None]
        counts = [a for a in (input, other) if isinstance(a, SoftIndex)]
        by_places = compare_with_places(operation, input, other)
        if by_places is not None and not known:
            return by_places
        kept = (input, other) if transform_running() else as_they_are((input, other))

        # The spread of an index from its labels is asked for only where their atoms do not decide.
        deferred = bool(counts) and all(isinstance(a, Tensor) and a.numel() > 1 for a in (input, other))
        compared = [plain(a) for a in (kept if deferred else (input, other))]

        @functools.cache
        def options() -> dict[str, Any]:
            width = _comparison_width(settings, compared[0], compared[1], counts)
            return {"temperature": width, **settings.method(operation)}

        if not deferred:
            options()

        def met(input: Any, other: Any) -> Distribution | None:
            return _by_atoms(function, block, input, other, options, hard.device)

        atoms: Lazy[Distribution | None] = lazy(met, input, other) if known else Lazy(lambda: None)

        def compute(input: Any, other: Any) -> Tensor:
            exact = atoms()
            if exact is not None:
                return exact.mean().expand(hard.shape)
            x, y = soft_value(input), soft_value(other)
            if not isinstance(x, Tensor) or not x.is_floating_point():
                x = torch.as_tensor(x, device=hard.device).to(y.dtype)
            p = block(x, y, **options())
            if operation in ("eq", "ne") or not (is_active(x) and is_active(y)):
                return p
            # An entry compared with itself is certain, `scores > scores[label]`; derivatives of distinct ones stay.
            certain = replace_gradient(plain(hard).to(p.dtype), p)
            return torch.where(x.detach() == y.detach(), certain, p)

        alone = _decided_alone(function, hard, kept)
        if alone is not None:
            return _with_coin(alone, atoms, alone)
        late = Lazy(lambda: compute(*kept), [atoms])
        if known:
            late = with_atoms(late, atoms)
        else:
            late.alone = True
        if operation == "eq" and len(counts) == 1:
            late.exclusive = _exclusive(counts[0], other if counts[0] is input else input)
        return late

    return soft


def _decided_alone(function: Callable[..., Tensor], hard: Tensor, args: tuple[Any, Any]) -> Lazy[Tensor] | None:
    """``P(mask op other)`` of a mask whose elements are decided by themselves and what is certain; else ``None``."""
    masks = [a for a in args if isinstance(a, SoftBool)]
    if len(masks) != 1 or not isinstance(args[0], Tensor) or masks[0].shape != hard.shape:
        return None
    p_true = masks[0]._current()
    first = args[0] is masks[0]
    other = args[1] if first else args[0]
    if not p_true.alone or is_active(other) or law_of(other) is not None:
        return None

    def probability() -> Tensor:
        p = p_true()
        truths = truth_values(p.device)
        no, yes = (function(*((t, other) if first else (other, t))).to(p.dtype) for t in truths)
        return torch.addcmul(no, p, yes - no).expand(hard.shape)

    late = Lazy(probability, [p_true])
    late.alone = True
    return late


for _operation, (_, _, _names) in _COMPARISONS.items():
    relaxes(_names, group="comparison", operation=_operation)(_comparison(_operation))


def _exclusive(index: SoftIndex, other: Any) -> int | None:
    """The dimension along which at most one element of ``index`` equals ``other``."""
    places = index._current()[0]
    dim: int | None = None if places is None else places.exclusive
    if dim is None or not isinstance(other, Tensor) or other.ndim == 0:
        return dim
    return dim if other.ndim == index.ndim and other.shape[dim] == 1 else None


def _by_atoms(
    function: Callable[..., Any],
    block: Callable[..., Tensor],
    input: Any,
    other: Any,
    options: Callable[[], Any],
    device: Any,
) -> Distribution | None:
    """The distribution of the truth value over all atoms; ``None`` where they are too many.

    Where the atoms themselves move, or what they meet does, each is compared softly: then either answer may follow it.
    """
    found = {id(a): distribution_of(a)() for a in (input, other) if distribution_of(a) is not None}  # type: ignore[misc]
    if any(d is None for d in found.values()):
        return None
    still = all(only_jumps(d) for d in found.values())
    if still and not any(is_active(a) for a in (input, other) if id(a) not in found):
        exact = elementwise(function, (input, other), {}, found, None)
        if exact is None and len(found) == 2 and function in (torch.eq, torch.ne):
            p = _same(*found.values())
            return None if p is None else tossed(1 - p if function is torch.ne else p)
        return exact

    def softly(x: Any, y: Any) -> Tensor:
        dtype = next(a.dtype for a in (x, y) if isinstance(a, Tensor) and a.is_floating_point())
        x = x.to(dtype) if isinstance(x, Tensor) else torch.as_tensor(x, dtype=dtype, device=device)
        return block(x, y, **options())

    each = elementwise(softly, (input, other), {}, found, None)
    if each is None:
        return None
    p, q = torch.broadcast_tensors(each.probability, each.values)
    both = torch.stack([p * (1 - q), p * q], -1).flatten(-2)
    answers = torch.tensor([False, True], device=both.device).repeat(q.shape[-1])
    return Distribution(both, answers, refines=(each._replace(support=None), 2))


def with_atoms(probability: Lazy[Tensor], atoms: Lazy[Distribution | None]) -> Lazy[Tensor]:
    """A probability that knows whose choice it belongs to."""
    return _with_coin(Lazy(lambda: probability, [probability]), atoms, probability)


def _with_coin(late: Lazy[Any], atoms: Lazy[Distribution | None], probability: Lazy[Tensor]) -> Lazy[Tensor]:
    def toss() -> Distribution:
        known = atoms()
        return tossed(probability()) if known is None else known

    late.coin = Lazy(toss, [atoms, probability])
    return late


def _comparison_width(settings: Settings, x: Any, y: Any, counts: list[SoftIndex]) -> float:
    if counts and not (isinstance(x, Tensor) and isinstance(y, Tensor)):  # a count against a number: a step of one unit
        return 1.0
    if not isinstance(x, Tensor) or (isinstance(y, Tensor) and x.numel() == 1 < y.numel()):
        x, y = y, x
    if not isinstance(y, Tensor) or y.numel() == 1:  # a shift has no part in the spread
        return settings.width(x)
    if torch.bool in (x.dtype, y.dtype):  # a truth value against a number
        return 1.0
    return settings.width(x.detach() - y.detach())


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, Tensor) and value.dtype == torch.bool)


def _same(p: Distribution, q: Distribution) -> Tensor | None:
    """``P(a = b)`` of two independent integers with many atoms."""
    low = min(int(d.values.min()) for d in (p, q))
    size = max(int(d.values.max()) for d in (p, q)) - low + 1
    if any(d.values.is_floating_point() for d in (p, q)) or size > _MAX_RANGE:
        return None
    a, b = (d._replace(support=d.values - low).dense(size) for d in (p, q))
    return (a * b).sum(-1)


_MAX_RANGE = 4096


def probability(value: Any) -> Any:
    """Return the probability of a soft bool, a plain one as 0 and 1 of a later fitting type, an integer as ``!= 0``."""
    if isinstance(value, SoftBool):
        return value.probability
    if isinstance(value, SoftIndex):
        raise Dropped("a condition from an integer")
    return value


_LOGIC = {
    "logical_and": (discrete.logical_and, "logical_and bitwise_and __and__ __rand__"),
    "logical_or": (discrete.logical_or, "logical_or bitwise_or __or__ __ror__"),
    "logical_xor": (discrete.logical_xor, "logical_xor bitwise_xor __xor__ __rxor__"),
}


_TORCH: dict[str, Any] = {
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor,
    "logical_not": torch.logical_not,
    "where": torch.where,
}


_BITS: dict[str, Any] = {
    "logical_and": torch.bitwise_and,
    "logical_or": torch.bitwise_or,
    "logical_xor": torch.bitwise_xor,
}


def _bits(function: Callable[..., Tensor], hard: Tensor, args: Any) -> Integer:
    """The bits of integers: those of every value they could have."""
    if any(isinstance(a, SoftTensor) and distribution_of(a) is None for a in args):
        raise Dropped("bits of an integer of which only the mean is known")
    atoms = atoms_behind(function, hard, args, {})
    shape = hard.shape

    def expected() -> Tensor:
        exact = atoms()
        if exact is None:
            raise Dropped("bits of integers with too many values")
        return exact.mean().expand(shape)

    return Integer(atoms, Lazy(expected, [atoms]))


def _of_one_choice(function: Callable[..., Tensor], hard: Tensor, args: Any, otherwise: Lazy[Tensor]) -> Lazy[Tensor]:
    """``otherwise``, a probability; where elements or arguments share a choice that of the atoms together."""
    masks = [a for a in args if isinstance(a, SoftBool)]
    if len(masks) == 1 and masks[0]._current().alone and masks[0].shape == hard.shape:
        otherwise.alone = True
        return otherwise
    if all(mask._current().coin is None for mask in masks):
        return otherwise  # nothing but comparisons of floats: independent
    atoms = _shared_atoms(function, hard, args)
    shape = hard.shape

    def probability() -> Any:
        exact = atoms()
        return otherwise if exact is None else exact.mean().expand(shape)

    return with_atoms(Lazy(probability, [atoms]), atoms)


def _shared_atoms(function: Callable[..., Tensor], hard: Tensor, args: Any) -> Lazy[Distribution | None]:
    kept = args if transform_running() else as_they_are(args)
    known = {id(a): distribution_of(a) for a in kept if distribution_of(a) is not None}
    form = form_of(plain(hard))

    def compute() -> Distribution | None:
        found = {key: distribution() for key, distribution in known.items()}  # type: ignore[misc]
        if any(d is None for d in found.values()) or not shares_a_choice(found.values(), form.shape):
            return None
        return elementwise(function, kept, {}, found, form)

    return Lazy(compute, list(known.values()))  # type: ignore[arg-type]


def _logic(operation: str) -> Callable[..., Any]:
    block, _ = _LOGIC[operation]

    def soft(settings: Settings, hard: Tensor, input: Any, other: Any) -> Any:
        if hard.dtype != torch.bool:
            return _bits(_BITS[operation], hard, (input, other))

        def compute(input: Any, other: Any) -> Tensor:
            p, q = probability(input), probability(other)
            for soft, certain in ((p, q), (q, p)):
                if isinstance(certain, Tensor) and certain.dtype == torch.bool and soft.is_floating_point():
                    return _with_certain(operation, soft, certain)
            dtype = next(v.dtype for v in (p, q) if isinstance(v, Tensor) and v.is_floating_point())
            p, q = (torch.as_tensor(v, device=hard.device).to(dtype) for v in (p, q))
            return block(p, q, **settings.method("logical"))

        if not all(isinstance(v, SoftBool) or _is_bool(v) for v in (input, other)):
            raise Dropped("logic on numbers")
        function: Callable[..., Tensor] = _TORCH[operation]
        return _of_one_choice(function, hard, (input, other), lazy(compute, input, other))

    return soft


def _with_certain(operation: str, p: Tensor, certain: Tensor) -> Tensor:
    """Logic of a probability and a plain mask, by which every norm gives the same."""
    if operation == "logical_and":
        return torch.where(certain, p, 0.0)
    return torch.where(certain, 1.0, p) if operation == "logical_or" else torch.where(certain, 1 - p, p)


for _operation, (_, _names) in _LOGIC.items():
    relaxes(_names, group="logic", operation=_operation, only_soft=True)(_logic(_operation))


@relaxes("logical_not bitwise_not __invert__", group="logic", operation="logical_not", only_soft=True)
def _not(settings: Settings, hard: Tensor, input: Tensor) -> Any:
    if isinstance(input, SoftBool):
        late = lazy(lambda mask: discrete.logical_not(mask.probability), input)
        return _of_one_choice(torch.logical_not, hard, (input,), late)
    if hard.dtype == torch.bool:
        raise Dropped("a condition from an integer")
    return Integer(expected=lazy(lambda index: -1 - index.expected, input, mean=True))


def _reduction(block: Callable[..., Tensor]) -> Callable[..., Any]:
    def soft(settings: Settings, hard: Tensor, input: Tensor, dim: Any = None, keepdim: bool = False) -> Any:
        if not isinstance(input, SoftBool):
            raise Dropped("a condition from numbers")
        dims = tuple(dim) if isinstance(dim, list) else dim
        exclusive = input._current().exclusive
        if block is discrete.any and exclusive is not None and (exclusive == dims or input.ndim == 1):
            return lazy(lambda mask: mask.probability.sum(exclusive, keepdim).clamp(max=1), input)
        return lazy(lambda mask: block(mask.probability, dims, keepdim, **settings.method("logical")), input)

    return soft


relaxes("all", group="logic", only_soft=True)(_reduction(discrete.all))
relaxes("any", group="logic", only_soft=True)(_reduction(discrete.any))


@relaxes("count_nonzero", group="logic", only_soft=True)
def _count_nonzero(settings: Settings, hard: Tensor, input: Tensor, dim: Any = None) -> Any:
    if not isinstance(input, SoftBool):
        raise Dropped("counts of integers that are not zero")
    dims = tuple(dim) if isinstance(dim, list) else dim
    return Integer(expected=lazy(lambda mask: discrete.count(mask.probability, dims), input))


@relaxes("where", group="where", operation="where", only_soft=True)
def _where(settings: Settings, hard: Any, *args: Any) -> Any:
    if len(args) == 1 or not isinstance(hard, Tensor):
        raise Dropped("where(condition) alone has a shape that depends on the data")
    if isinstance(args[1], Tensor) and isinstance(args[0], Tensor) and args[0].dtype != torch.bool:
        condition, input, other = args[1], args[0], args[2]  # x.where(condition, other)
    else:
        condition, input, other = args
    return selection(hard, condition, input, other)


@relaxes("masked_fill", group="where", operation="masked_fill", only_soft=True)
def _masked_fill(settings: Settings, hard: Tensor, input: Tensor, mask: Tensor, value: Any) -> Any:
    finite = isinstance(value, Tensor) or math.isfinite(value)
    if isinstance(mask, SoftBool) and input.is_floating_point() and not finite:
        return discrete.masked_fill(input, mask.probability, value)
    return selection(hard, mask, value, input)


def selection(hard: Tensor, condition: Any, input: Any, other: Any) -> Any:
    """The part behind ``where(condition, input, other)``."""
    if hard.is_floating_point():
        if isinstance(condition, SoftBool) and condition._current().coin is not None:
            shared = _shared_atoms(torch.where, hard, (condition, input, other))
            exact = shared()
            if exact is not None:
                return Discrete(exact.mean().expand(hard.shape), shared)
        value = select(condition, soft_value(input), soft_value(other))
        return Discrete(value, _mixture(hard, condition, input, other))
    late = lazy(lambda c, a, b: select(c, soft_value(a), soft_value(b)), condition, input, other, mean=True)
    return late if hard.dtype == torch.bool else Integer(_mixture(hard, condition, input, other), late)


def _mixture(hard: Tensor, condition: Any, input: Any, other: Any) -> Lazy[Distribution | None]:
    """The atoms of a choice between two branches: those of both, where a branch has none its value."""
    branches = as_they_are((input, other)) if not transform_running() else (input, other)
    known = [distribution_of(branch) for branch in branches]
    parents = [lazy_ for lazy_ in known if lazy_ is not None]
    if not isinstance(condition, SoftBool):
        condition = as_they_are(condition)
        p: Any = None
    else:
        p = condition._current()
        parents.append(p)
    dtype, shape, device = hard.dtype, hard.shape, hard.device

    def compute() -> Distribution | None:
        chosen = condition if p is None else p()
        parts = []
        for branch, lazy_, weight in zip(
            branches, known, (chosen, 1 - chosen if p is not None else ~condition), strict=True
        ):
            atoms = lazy_() if lazy_ is not None else None
            if lazy_ is not None and atoms is None:
                return None
            if atoms is None:
                value = soft_value(branch) if isinstance(branch, SoftTensor) else branch
                values = torch.as_tensor(value, device=device).unsqueeze(-1)
                probability = weight.unsqueeze(-1)
            else:
                values, probability = atoms.values, atoms.probability * weight.unsqueeze(-1)
            if not values.is_floating_point() and not dtype.is_floating_point:
                values = values.long()
            parts.append((values.to(dtype) if dtype.is_floating_point else values, probability))
        if math.prod(shape) * sum(v.shape[-1] for v, _ in parts) > MAX_ATOMS:
            return None
        floats = next((q.dtype for _, q in parts if q.is_floating_point()), torch.get_default_dtype())
        common = () if all(v.ndim == 1 for v, _ in parts) else shape
        support = torch.cat([v.expand(*common, v.shape[-1]) for v, _ in parts], -1)
        if support.is_floating_point() and not bool(torch.isfinite(physical(support.detach())).all()):
            return None
        longest = torch.broadcast_shapes(*(q.shape[:-1] for _, q in parts))
        return Distribution(torch.cat([q.to(floats).expand(*longest, q.shape[-1]) for _, q in parts], -1), support)

    return Lazy(compute, parents)


def select(condition: Any, input: Any, other: Any) -> Tensor:
    """Return the mean of two branches; where one of them is not finite, the branch that the hard condition takes."""
    if not isinstance(condition, SoftBool):
        floats = [a for a in (input, other) if isinstance(a, Tensor) and a.is_floating_point()]
        dtype = floats[0].dtype
        input, other = (
            a.to(dtype) if isinstance(a, Tensor) and not a.is_floating_point() else a for a in (input, other)
        )
        return torch.where(condition, input, other)
    p = condition.probability
    if not (_surely_finite(input) and _surely_finite(other)):
        finite = _finite(input, p) & _finite(other, p)
        p = torch.where(finite, p, plain(condition).to(p.dtype))
        return discrete.where(p, input, other)
    return p * input + (1 - p) * other


def _surely_finite(branch: Any) -> bool:
    """Whether one pass over the branch finds nothing infinite or NaN; not asked under ``torch.func``."""
    if not isinstance(branch, Tensor):
        return math.isfinite(branch)
    if not branch.is_floating_point():
        return True
    if wrapped(branch):
        return False
    return math.isfinite(branch.detach().sum())


def _finite(branch: Any, p: Tensor) -> Tensor:
    return torch.isfinite(torch.as_tensor(branch, device=p.device))


@relaxes("signbit", group="comparison")
def _signbit(settings: Settings, hard: Tensor, input: Tensor) -> Any:
    if isinstance(input, SoftTensor):
        raise Dropped("the sign bit of an integer")
    width = settings.width(input)
    return lazy(lambda x: discrete.less(x, 0.0, temperature=width, **settings.method("lt")), input)


@relaxes("isclose", group="comparison")
def _isclose(
    settings: Settings,
    hard: Tensor,
    input: Any,
    other: Any,
    rtol: float = 1e-5,
    atol: float = 1e-8,
    equal_nan: bool = False,
) -> Any:
    x, y = soft_value(input), soft_value(other)

    width = settings.width(x.detach() - y.detach())
    options = {"temperature": width, **settings.method("eq")}
    return lazy(lambda x, y: discrete.isclose(x, y, rtol, atol, equal_nan, **options), x, y)
