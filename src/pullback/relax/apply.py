"""One call under ``relaxed``: find its rule, run torch's own function, put the soft gradient behind the result."""

from __future__ import annotations

import functools
import warnings
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.overrides import resolve_name

from pullback.core.gradients import replace_gradient
from pullback.core.transforms import transform_running
from pullback.relax import catalogue
from pullback.relax.image import LINEAR, MULTILINEAR, SMOOTH
from pullback.relax.internals import forward_mode, inherits_dispatch, viewed, warn_of_compiled_caller
from pullback.relax.law import (
    FOLLOWS,
    MEAN,
    NEAREST_HALF_WAY,
    any_law,
    distribution_of,
    follow,
    give_law,
    jump_law,
    law_of,
    lift,
    pure,
)
from pullback.relax.ranking import MOVES, Statistic, follow_places, remember_places
from pullback.relax.report import Calls, Site, find_site, inside_function
from pullback.relax.rules import (
    FLOW,
    INPLACE,
    INPLACE_FLAG,
    PASS,
    QUOTIENTS,
    RULES,
    Discrete,
    Dropped,
    Integer,
    Rule,
    any_active,
    as_they_are,
    is_active,
    soft_value,
    tensors_in,
)
from pullback.relax.rules_elementwise import STEPS, flat_point
from pullback.relax.rules_flow import atoms_behind
from pullback.relax.rules_index import set_items
from pullback.relax.rules_logic import with_atoms
from pullback.relax.settings import Settings
from pullback.relax.soft_tensors import (
    Lazy,
    SoftBool,
    SoftIndex,
    SoftTensor,
    Stale,
    as_kind,
    attach,
    attached,
    plain,
    untouched,
)

__all__ = ["relax_call", "tell_left"]


class Context(AbstractContextManager[Any], Protocol):
    """What a call needs to know about the mode that caught it."""

    settings: Settings
    chosen: frozenset[str]
    ignored: frozenset[str]
    calls: Calls


def relax_call(context: Context, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
    """Return what ``func(*args, **kwargs)`` returns, relaxed where a rule applies."""
    if func in catalogue.LENDS or (func is Tensor.to and len(args) > 1):
        args = (args[0], *map(plain, args[1:]))
        kwargs = {key: plain(value) for key, value in kwargs.items()}
        types = (type(args[0]),)
    soft = any(issubclass(kind, SoftTensor) for kind in types)
    if not soft and func not in RULES and func not in INPLACE and not catalogue.ends(func, False):
        if func in _LEAVES:
            return _LEAVES[func](context, *args, **kwargs)
        if not torch.is_grad_enabled():
            _tell_region(context, func, (args, kwargs))
        if func is Tensor.__setitem__ and torch.is_grad_enabled() and _anything_known(args[2:]):
            with untouched(subclasses=True):
                return _write_known(context, *args)
        result = _pass(func, args, kwargs)
        if func in _EMPTY:
            attach(result, "_empty", True)
        if func not in _NOTED or not _anything_known((args, kwargs)):
            return result
        with untouched(subclasses=True):
            return _noted(context, func, result, args, kwargs)
    if func in catalogue.SILENT or not any_active((args, kwargs)):
        return _pass(func, args, kwargs)
    site = find_site()
    if site is None:
        return _pass(func, args, kwargs)
    foreign = [kind for kind in types if not issubclass(kind, SoftTensor) and kind not in _OWN]
    reason = _left(foreign)
    if reason:
        if soft or _makes_soft(context, func):
            context.calls.add(site, _name(func), "left", reason)
        return _pass(func, args, kwargs)
    if foreign:
        return _through_subclass(context, func, foreign[0], args, kwargs)
    if context.calls.is_new(site):
        warn_of_compiled_caller()
    with untouched():
        return _relax(context, site, func, args, kwargs, soft)


def tell_left(context: Context, func: Any, arguments: Any, reason: str) -> None:
    """Report a call that ``context`` would relax where nothing is relaxed."""
    if func in catalogue.SILENT or not _makes_soft(context, func) or not any_active(arguments):
        return
    site = find_site()
    if site is not None:
        context.calls.add(site, _name(func), "left", reason)


def _left(foreign: list[type]) -> str:
    """Why nothing is relaxed here, where that is so."""
    strange = [kind for kind in foreign if not inherits_dispatch(kind)]
    if strange:
        return f"a {strange[0].__name__} handles the functions of torch itself: pass x.as_subclass(torch.Tensor)"
    if torch.is_grad_enabled() or forward_mode():
        return ""
    if inside_function():
        return "the forward of an autograd.Function: its gradient is that of its own backward"
    return OFF


OFF = "gradients are off, as under torch.no_grad(); through_no_grad=True carries them through such a region"


def _tell_region(context: Context, func: Any, arguments: Any) -> None:
    """Report that a region without gradients drops that of a value which was relaxed before."""
    if func in catalogue.SILENT or forward_mode() or not any(t.requires_grad for t in tensors_in(arguments)):
        return
    site = find_site()
    if site is not None and _anything_known(arguments) and not inside_function():
        context.calls.add(site, _name(func), "left", OFF)


def _makes_soft(context: Context, func: Any) -> bool:
    rule = RULES.get(INPLACE.get(func, func))
    if func in (torch.div, Tensor.div):  # most often without a rounding_mode
        return False
    return rule is not None and _concerned(context, rule, False) and (rule.operation != "cast" or func not in _TO_FLOAT)


_TO_FLOAT = {Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16, Tensor.to, Tensor.type, Tensor.type_as}


def _through_subclass(context: Context, func: Any, kind: type, args: Any, kwargs: Any) -> Any:
    """The call for tensors of a class that adds nothing to the functions of torch; its results are of that class."""
    with untouched(subclasses=False):
        target = args[0] if args else None
        args, kwargs = _unclassed((args, kwargs))
    kinds = tuple({type(t) for t in tensors_in((args, kwargs))} - {Tensor})
    result = relax_call(context, func, kinds, args, kwargs)
    with untouched(subclasses=False):
        if func in INPLACE and result is args[0]:
            return target
        return _classed(result, kind)


def _unclassed(value: Any) -> Any:
    if isinstance(value, Tensor) and not isinstance(value, SoftTensor) and type(value) not in _OWN:
        base = value.as_subclass(Tensor)
        for name in ("_law", "_places"):
            known = attached(value, name)
            if known is not None:
                attach(base, name, known)
        return base
    return _mapped(_unclassed, value)


def _classed(value: Any, kind: type) -> Any:
    if isinstance(value, SoftTensor):
        return as_kind(value, kind)
    if isinstance(value, Tensor) and type(value) is Tensor:
        result: Tensor = value.as_subclass(kind)
        for name in ("_law", "_places"):
            known = attached(value, name)
            if known is not None:
                attach(result, name, known)
        return result
    return _mapped(lambda item: _classed(item, kind), value)


def _mapped(function: Any, value: Any) -> Any:
    if isinstance(value, dict):
        return {key: function(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        items = [function(item) for item in value]
        if type(value) in (tuple, list):
            return type(value)(items)
        return type(value)(*items) if hasattr(type(value), "_fields") else type(value)(items)
    return value


_NOTED = FOLLOWS | MOVES
_EMPTY = {torch.empty, torch.empty_like, Tensor.new_empty}


def _anything_known(arguments: Any) -> bool:
    """Return whether it is known of any float among the arguments what stands behind it."""
    return any("_law" in t.__dict__ or "_places" in t.__dict__ for t in tensors_in(arguments))


_OWN = (Tensor, torch.nn.Parameter)


def _pass(func: Any, args: Any, kwargs: Any) -> Any:
    # `untouched` for a nested context: the inner one has decided, an outer one must not see the call again.
    with untouched(subclasses=True):
        return func(*args, **kwargs)


def _relax(context: Context, site: Site, func: Any, args: Any, kwargs: Any, soft: bool) -> Any:
    if kwargs.get("out") is not None:
        context.calls.add(site, _name(func), "dropped", "out= writes the plain values")
        return func(*args, **kwargs)
    if func in INPLACE:
        return _relax_inplace(context, site, func, INPLACE[func], args, kwargs)
    if func in INPLACE_FLAG:
        args, kwargs, inplace = _without_flag(func, args, kwargs)
        if inplace:
            return _relax_inplace(context, site, functools.partial(func, inplace=True), func, args, kwargs)
    if func is Tensor.__setitem__:
        return _set_item(context, site, soft, *args)
    rule = _rule(func, soft)
    if rule is None or (rule.only_soft and not soft and catalogue.ends(func, soft)):
        reason = catalogue.SINKS.get(func, "no soft counterpart is known for it")
        context.calls.add(site, _name(func), "dropped", reason)
        return func(*args, **kwargs)
    if not _concerned(context, rule, soft):
        return _unruled(context, func, func(*args, **kwargs), args, kwargs)
    return _apply(context, site, rule, func, args, kwargs)


def _unruled(context: Context, func: Any, hard: Any, args: Any, kwargs: Any) -> Any:
    """The plain result; after a jump with the derivative at the right place."""
    if func in FOLLOWS and any_law((args, kwargs)):
        hard = follow(func, hard, args, kwargs, functools.partial(_tell_collapse, context, func))
    if func in MOVES:
        follow_places(func, hard, args, kwargs)
    return hard


def _noted(context: Context, func: Any, result: Any, args: Any, kwargs: Any) -> Any:
    """The result of a function without a rule, with what is known of its arguments handed on."""
    try:
        result = _unruled(context, func, result, args, kwargs)
    except _FAILURES as error:
        site = find_site()
        if site is not None:
            _tell_failure(context, site, _name(func), error)
    return result


_FAILURES = (RuntimeError, TypeError, ValueError, NotImplementedError)


def _tell_failure(context: Context, site: Site, operation: str, error: Exception) -> None:
    """The plain program runs here, so the relaxed one must: warn, once a line, and report."""
    reason = f"its soft counterpart failed: {type(error).__name__}: {error}"
    if context.calls.add(site, operation, "dropped", reason):
        warnings.warn(f"relaxed: {site}: {operation}: {reason}", stacklevel=2)


COLLAPSED = "more values are possible than are followed: differentiated at the mean, or half way to the next jump"


def _tell_collapse(context: Context, func: Any) -> None:
    site = find_site()
    if site is not None:
        context.calls.add(site, _name(func), "relaxed", COLLAPSED)


def _rule(func: Any, soft: bool) -> Rule | None:
    return FLOW[func] if soft and func in FLOW else RULES.get(func)


def _concerned(context: Context, rule: Rule, soft: bool) -> bool:
    if soft:
        return rule.group == "flow" or rule.operation not in context.ignored
    return not rule.only_soft and rule.operation in context.chosen


def _apply(context: Context, site: Site, rule: Rule, func: Any, args: Any, kwargs: Any) -> Any:
    hard = func(*args, **kwargs)
    try:
        if func in QUOTIENTS and rule.group == "rounding" and kwargs.get("rounding_mode") is None:
            return _unruled(context, func, hard, args, kwargs)
        given, named = (args, kwargs) if rule.group in ("comparison", "order") else _copied((args, kwargs))
        lifted = any_law((args, kwargs))
        if lifted:
            point = NEAREST_HALF_WAY if pure((args, kwargs)) else MEAN
            given, named = lift(given, point), lift(named, point)
        if rule.operation in STEPS and lifted and _is_whole(args[0]):
            context.calls.add(site, rule.operation, "relaxed", "its argument is whole already")
            same = _combine(context, hard, args[0])
            give_law(same, law_of(args[0]))  # type: ignore[arg-type]
            return same
        part = rule.soft(context.settings, hard, *given, **named)
        if part is PASS:
            return _unruled(context, func, hard, args, kwargs)
        if lifted and rule.group in _ATOMWISE:
            part = _of_atoms(func, hard, args, kwargs, part)
        result: Any = _combine(context, hard, part)
        if context.settings.hard and (lifted or rule.operation not in catalogue.CONTINUOUS):
            _give_laws(rule, func, result, hard, part, (args, kwargs))
        if rule.group == "where" and isinstance(result, Tensor) and result.is_floating_point():
            _keep_spread(result, (args, kwargs))
    except (Dropped, Stale) as why:
        context.calls.add(site, rule.operation, "dropped", str(why))
        return hard
    except _FAILURES as error:
        _tell_failure(context, site, rule.operation, error)
        return hard
    collapsed = rule.group == "flow" and _bends_a_mean(func, (args, kwargs))
    reason = COLLAPSED if collapsed else READ_BOTH if _reads_both(rule, args) else _flatness(context, rule, args)
    context.calls.add(site, rule.operation, "relaxed", reason)
    return result


READ_BOTH = (
    "a table of soft values read at a soft place: the two are taken as independent, which they are not where one was "
    "made from the other; do not trust the direction of a chain of these (a suppression loop over sorted scores)"
)


def _reads_both(rule: Rule, args: Any) -> bool:
    """Whether a table that may jump is read where an index may: what then depends on both is not followed."""
    if rule.group != "index" or not any(isinstance(t, SoftIndex) for t in tensors_in(args[1:])):
        return False
    table = args[0]
    if isinstance(table, SoftIndex):
        return not table.has_distribution
    return isinstance(table, SoftBool)


def _bends_a_mean(func: Any, arguments: Any) -> bool:
    """Whether a function that is not linear meets an integer of which the mean alone is known."""
    if func not in SMOOTH or func in LINEAR:
        return False
    soft = [t for t in tensors_in(arguments) if is_active(t)]
    if func in MULTILINEAR and len(soft) == 1:
        return False
    divided = func in QUOTIENTS and len(arguments[0]) == 2 and not is_active(arguments[0][1])
    return not divided and any(isinstance(t, SoftIndex) and not t.has_distribution for t in soft)


def _keep_spread(result: Tensor, arguments: Any) -> None:
    """Let a tensor filled with constants have the spread of what was not filled: ``where(free, scores, -9)``."""
    floats = [t for t in tensors_in(arguments) if t.is_floating_point() and t.numel() > 1]
    if len(floats) == 1 and is_active(floats[0]):
        attach(result, "_cut_from", attached(floats[0], "_cut_from") or (viewed(floats[0]).detach(),))


def _is_whole(x: Any) -> bool:
    """Whether it is known of a float that it can only have whole values."""
    law = law_of(x)
    return law is not None and law.whole is not None and law.whole()


def _flatness(context: Context, rule: Rule, args: Any) -> str:
    """What to say of a rounding whose argument is so far from every step that its gradient is next to nothing."""
    if rule.operation not in STEPS or not args or not isinstance(args[0], Tensor) or not args[0].is_floating_point():
        return ""
    return flat_point(context.settings, rule.operation, args[0])


def _copied(arguments: Any) -> Any:
    """Arguments of which the soft counterpart may keep the floats; the program may change its own in place."""
    if isinstance(arguments, Tensor):
        certain = not arguments.is_floating_point() or (arguments.requires_grad and arguments.is_leaf)
        return arguments if certain or transform_running() else as_they_are(arguments)
    return _mapped(_copied, arguments)


_ATOMWISE = ("comparison", "rounding", "elementwise", "cast")


def _of_atoms(func: Any, hard: Any, args: Any, kwargs: Any, otherwise: Any) -> Any:
    """The part behind an elementwise function of floats that only jump: that of their atoms, where these are few."""
    sources = [t for t in tensors_in((args, kwargs)) if is_active(t)]
    if not isinstance(hard, Tensor) or any(distribution_of(t) is None for t in sources) or not pure((args, kwargs)):
        return otherwise
    atoms = atoms_behind(func, hard, args, kwargs)
    shape = hard.shape
    if hard.is_floating_point():
        exact = atoms()
        return otherwise if exact is None else Discrete(exact.mean().expand(shape), atoms)
    second = otherwise if isinstance(otherwise, Lazy) else otherwise.expected

    def expected() -> Any:
        exact = atoms()
        return second if exact is None else exact.mean().expand(shape)

    late = Lazy(expected, [atoms])
    if hard.dtype == torch.bool:
        return with_atoms(late, atoms)
    known = otherwise.distribution
    return Integer(Lazy(lambda: known if atoms() is None and known is not None else atoms(), [atoms]), late)


def _combine(context: Context, hard: Any, part: Any) -> Any:
    """Put ``part`` behind ``hard``: of one result, or of each of several."""
    if not isinstance(hard, Tensor):
        return type(hard)([_combine(context, h, p) for h, p in zip(hard, part, strict=True)])
    if part is PASS:
        return hard
    if isinstance(part, Lazy):
        return SoftBool.make(hard, part, context)
    if isinstance(part, Integer):
        return SoftIndex.make(hard, part.distribution, part.expected, context)
    if isinstance(part, Statistic):
        result = _combine(context, hard, part.value)
        if context.settings.hard:
            remember_places(result, part)
        return result
    if isinstance(part, Discrete):
        return _combine(context, hard, part.value)
    part = part.to(hard.dtype)
    if part.shape != hard.shape:
        part = part.expand(hard.shape)
    return replace_gradient(hard, part) if context.settings.hard else part


def _give_laws(rule: Rule, func: Any, result: Any, hard: Any, part: Any, arguments: Any) -> None:
    """Attach to the float results of a rule what stands behind them."""
    if not isinstance(hard, Tensor):
        for r, h, p in zip(result, hard, part, strict=True):
            _give_laws(rule, func, r, h, p, arguments)
        return
    unit, distribution = 1.0, None
    if isinstance(part, Statistic):
        part = part.value
    if isinstance(part, Discrete):
        part, distribution, unit = part
    if not isinstance(part, Tensor):
        return
    carries = rule.only_soft or rule.group == "cast" or rule.operation in catalogue.CONTINUOUS
    is_pure = pure(arguments) if carries else rule.operation != "threshold"
    mean = part.to(hard.dtype).expand(hard.shape)
    soft = [t for t in tensors_in(arguments) if isinstance(t, SoftTensor)]
    is_whole = rule.operation in STEPS or (rule.operation == "cast" and bool(soft))
    is_written = rule.operation in catalogue.WRITES
    law = jump_law(
        hard, mean, arguments, distribution, unit=unit, is_pure=is_pure, is_whole=is_whole, is_written=is_written
    )
    law.made_by(func, arguments, hard.shape)
    give_law(result, law)


def _relax_inplace(context: Context, site: Site, func: Any, out_of_place: Any, args: Any, kwargs: Any) -> Any:
    """Change ``args[0]`` by ``func``; its new soft counterpart comes from the function that is not in place."""
    target, rest = args[0], args[1:]
    soft = any(isinstance(t, SoftTensor) for t in tensors_in((args, kwargs)))
    rule = _rule(out_of_place, soft)
    if rule is None or not _concerned(context, rule, soft):
        return func(*args, **kwargs)
    before = _before(target)
    relaxed = _apply(context, site, rule, out_of_place, (before, *rest), kwargs)
    return assign(context, func, target, relaxed, args, kwargs)


def _before(target: Tensor) -> Tensor:
    """A copy of ``target`` as it is now, in the graph, with what it carries."""
    return as_they_are(target)


def _set_item(context: Context, site: Site, soft: bool, target: Tensor, index: Any, value: Any) -> None:
    """``target[index] = value`` where the index or the value is soft, or the target is."""
    if not soft:
        target[index] = value
        return
    before = _before(target)
    hard = plain(before).clone()
    hard[plain_in(index)] = plain(value)
    rule = RULES[Tensor.index_put]
    if rule.operation in context.ignored:
        target[index] = value
        return

    def write(target: Tensor, index: Any, value: Any) -> None:
        target[index] = value

    def soft_write(settings: Settings, hard: Tensor, target: Tensor, index: Any, value: Any) -> Any:
        return set_items(settings, hard, target, index, value)

    writing = Rule("setitem", "index", soft_write)
    relaxed = _apply(context, site, writing, lambda *_: hard, (before, index, value), {})
    assign(context, write, target, relaxed, (target, index, value), {})


def _write_known(context: Context, target: Tensor, index: Any, value: Tensor) -> None:
    """``target[index] = value`` of plain tensors, with what is known of the value handed on."""
    if law_of(value) is None or not target.is_floating_point() or transform_running():
        target[index] = value
        return
    before = as_they_are(target)
    target[index] = value
    try:
        law = law_of(_written(before, index, value, target))
    except _FAILURES as error:
        site = find_site()
        if site is not None:
            _tell_failure(context, site, "setitem", error)
        return
    if law is not None:
        give_law(target, law)


def _written(before: Tensor, index: Any, value: Tensor, after: Tensor) -> Tensor:
    """``after``, as entries of what was there and of what was written, in another order."""
    count = before.numel()
    source = torch.arange(count, device=before.device).reshape(before.shape)
    place = source[index]
    source[index] = count + torch.arange(place.numel(), device=before.device).reshape(place.shape)
    if value.dtype != before.dtype:
        value = follow(Tensor.to, value.to(before.dtype), (value, before.dtype), {})
    bare = value.shape[max(value.ndim - place.ndim, 0) :]
    for step, size in ((Tensor.reshape, bare), (Tensor.expand, place.shape), (Tensor.reshape, (-1,))):
        value = follow(step, step(value, size), (value, size), {})
    if bool((source >= count).all()):
        source = source - count
    else:
        parts = [follow(Tensor.reshape, before.reshape(-1), (before, (-1,)), {}), value]
        value = follow(torch.cat, torch.cat(parts), (parts,), {})
    result = follow(Tensor.__getitem__, value[source], (value, source), {})
    return result if result.equal(after) else after.detach()


def assign(context: Context, func: Any, target: Tensor, relaxed: Tensor, args: Any, kwargs: Any) -> Any:
    """Let ``func`` change ``target``, then put the soft counterpart of ``relaxed`` behind it."""
    if isinstance(relaxed, SoftTensor) and not target.is_floating_point():
        if isinstance(relaxed, SoftBool) == (target.dtype == torch.bool):
            result = func(*args, **kwargs)
            carry(target, relaxed)
            return result
        expected = soft_value(relaxed)
        result = func(*args, **kwargs)
        carry(target, SoftIndex.make(target, expected=Lazy(lambda: expected), context=context))
        return result
    law = law_of(relaxed)
    if not isinstance(relaxed, SoftTensor) and relaxed.is_floating_point() and (is_active(relaxed) or law is not None):
        hard = target.detach().clone()
        with torch.no_grad():
            func(hard, *args[1:], **kwargs)
        soft = relaxed.to(hard.dtype).expand(hard.shape)
        target.copy_(replace_gradient(hard, soft) if context.settings.hard else soft)
        if law is not None:
            give_law(target, law)
        return target
    return func(*args, **kwargs)


def carry(target: Tensor, relaxed: SoftTensor) -> None:
    """Make the very object ``target`` a soft tensor that carries what ``relaxed`` does."""
    target.__class__ = type(relaxed)
    target._carry(relaxed._carried, relaxed._context)  # type: ignore[attr-defined]


def _leave(func: Any) -> Any:
    def leave(context: Context, tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        # The plain program's tensor might not require grad here, and then this is allowed.
        if torch.is_grad_enabled() and tensor.requires_grad and not tensor.is_leaf:
            site = find_site()
            if site is not None:
                context.calls.add(site, _name(func), "dropped", "NumPy and copies carry no gradient")
            tensor = tensor.detach()
        return _pass(func, (tensor, *args), kwargs)

    return leave


_LEAVES: dict[Any, Any] = {func: _leave(func) for func in (Tensor.numpy, Tensor.__array__, Tensor.__deepcopy__)}


def _without_flag(func: Any, args: Any, kwargs: Any) -> tuple[Any, Any, bool]:
    position = INPLACE_FLAG[func]
    if "inplace" in kwargs:
        kwargs = dict(kwargs)
        return args, kwargs, bool(kwargs.pop("inplace"))
    if len(args) > position:
        return args[:position], kwargs, bool(args[position])
    return args, kwargs, False


def plain_in(index: Any) -> Any:
    """An index with its soft tensors as plain ones."""
    return tuple(plain(a) for a in index) if isinstance(index, tuple) else plain(index)


@functools.cache
def _name(func: Any) -> str:
    name = resolve_name(func) or getattr(func, "__name__", repr(func))
    parts = [part for part in name.split(".") if part != "__get__"]
    return parts[-1].lstrip("_") if parts[-1].startswith("_") and not parts[-1].startswith("__") else parts[-1]
