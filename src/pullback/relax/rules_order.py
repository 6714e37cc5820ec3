"""Orderings: soft values with gradient, indices with their distribution over positions (formed when it is read)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pullback import discrete
from pullback.core.transforms import can_look, transform_running
from pullback.relax.image import MAX_ATOMS
from pullback.relax.internals import wrapped
from pullback.relax.law import MEAN, after_atoms, distribution_of, law_of, only_jumps, over_atoms, pure
from pullback.relax.ordering import Ordering, behind, permutation_rows
from pullback.relax.ranking import Places, Statistic, places_of_rows
from pullback.relax.rules import Dropped, Integer, as_they_are, lazy, relaxes, soft_value
from pullback.relax.rules_elementwise import _maximum, _minimum
from pullback.relax.settings import Settings
from pullback.relax.soft_tensors import Distribution, Lazy, SoftBool, SoftIndex, SoftTensor


def _floating(input: Any) -> Tensor:
    value: Tensor = soft_value(input)
    if not value.is_floating_point():
        raise Dropped("the order of plain integers")
    if value is input and value.requires_grad and not value.is_leaf and not transform_running():
        value = as_they_are(value)  # `x[0] = x[0].sort().values`: the program may write over what the block keeps
    return value


def _rows(
    settings: Settings, operation: str, input: Tensor, dim: int, descending: bool, rows: Any, keepdim: bool = True
) -> Integer:
    """The distributions of the places ``rows`` of an ordering: a slice, or one (``dim`` goes, or stays as 1)."""
    x = _floating(input)
    if x.ndim == 0:
        return Integer(Lazy(lambda: Distribution(torch.ones(1, dtype=x.dtype, device=x.device))))

    options = settings.ordering(x, operation)

    along = dim % x.ndim

    def places(x: Tensor) -> Tensor:
        if isinstance(rows, int):
            row = permutation_rows(options, x, dim, descending, (rows, rows + 1)).squeeze(-2)
            return row.unsqueeze(along) if keepdim else row
        first, end, _ = rows.indices(x.shape[dim])
        return permutation_rows(options, x, dim, descending, (first, end)).movedim(-2, along)

    def distribution(x: Tensor) -> Any:
        probability = over_atoms(x, along, keepdim or not isinstance(rows, int), places)
        if probability is None and isinstance(rows, slice) and Ordering.applies(options):
            return Ordering(x, along, descending, options, places=rows.indices(x.shape[dim])[:2])
        return Distribution(places(x) if probability is None else probability, tied=not isinstance(rows, int))

    late = after_atoms(x, lazy(distribution, x))
    if not isinstance(rows, int):
        late.exclusive = dim % x.ndim  # no entry is at two places
    return Integer(late)


def _statistic(
    settings: Settings, operation: str, input: Any, value: Any, dim: int | None, rows: Any, keepdim: bool = True
) -> Any:
    """``value`` as the order statistics at ``rows`` of the ascending order of ``input``, where they are floats."""
    if not isinstance(value, Tensor) or input.ndim == 0:
        return value
    along = None if dim is None else dim % input.ndim

    options = settings.ordering(input, operation)

    def places(input: Tensor) -> Places:
        x = input.reshape(-1) if along is None else input
        place = 0 if along is None else along
        return places_of_rows(permutation_rows(options, x, place, False), rows, place, keepdim and along is not None)

    return Statistic(value, input, along, lazy(places, input))


def _extreme_statistic(settings: Settings, operation: str, input: Any, value: Any, dim: Any, keepdim: bool) -> Any:
    """``value`` as the extreme of ``input`` along ``dim``."""
    if not isinstance(value, Tensor) or input.ndim == 0:
        return value
    along = None if dim is None else dim % input.ndim

    def places(input: Tensor) -> Places:
        part = _extreme_position(settings, operation, input, along, keepdim and along is not None, operation == "max")
        known = None if part.distribution is None else part.distribution()
        assert known is not None
        at = known.probability
        return Places(at, torch.zeros_like(at) if operation == "max" else 1 - at)

    return Statistic(value, input, along, lazy(places, input))


def _extreme_position(
    settings: Settings, operation: str, input: Tensor, dim: int | None, keepdim: bool, largest: bool
) -> Integer:
    x = _floating(input)
    block = discrete.argmax if largest else discrete.argmin

    options = settings.ordering(x, operation)
    known = distribution_of(input)

    def places(x: Tensor) -> Tensor:
        if dim is None or x.ndim == 0:
            x, along = x.reshape(-1), 0
        else:
            along = dim
        width = _softmax_width(x, options)
        if width is not None:
            return torch.softmax(x / (width if largest else -width), along).movedim(along, -1)
        return block(x, along, **options).movedim(along, -1)

    def distribution(x: Tensor) -> Distribution:
        along = None if dim is None else dim % max(x.ndim, 1)
        probability = over_atoms(x, along, False, places)
        if probability is None and known is not None:
            probability = _first_among_levels(input, known(), along, largest)
        probability = places(x) if probability is None else probability
        if not keepdim:
            return Distribution(probability)
        if along is None or x.ndim == 0:
            return Distribution(probability.view([1] * x.ndim + [-1]))
        return Distribution(probability.unsqueeze(along))

    if isinstance(input, SoftTensor):
        late = lazy(distribution, x)
        after: Lazy[Any] = late if known is None else Lazy(lambda: late, [known])
        return Integer(after)
    return Integer(after_atoms(x, lazy(distribution, x)))


def _softmax_width(x: Tensor, options: dict[str, Any]) -> float | None:
    """The temperature where the largest entry of an ordering is the softmax itself: there nothing need be sorted."""
    width: float = options["temperature"]
    if options.get("method", "softsort") != "softsort" or x.dtype not in _WIDE or not x.numel() or not can_look(x):
        return None
    low, high = (float(end) for end in torch.aminmax(x.detach()))
    return width if max(-low, high) / width < 1e30 and low == low else None


_WIDE = (torch.float32, torch.float64)


def _first_among_levels(input: Tensor, d: Distribution | None, along: int | None, largest: bool) -> Tensor | None:
    """Where the first of the largest elements is, if all take the same few values and do nothing but jump."""
    if d is None or input.ndim == 0 or d.probability.shape[:-1] != input.shape or d.values.ndim != 1:
        return None
    if not pure((input,)) or not only_jumps(d) or wrapped(d.values):
        return None
    values, order = d.values.unique(return_inverse=True)
    if len(values) > MAX_LEVELS:
        return None
    if d.tied:
        places = d.probability.reshape(-1, len(order)) if along is None else d.probability.movedim(along, -2)
        return _first_in_order(places, order, len(values), largest) if along is not None or input.ndim == 1 else None
    p = d.probability.new_zeros((*input.shape, len(values))).index_add(-1, order, d.probability)
    p = p.reshape(-1, len(values)) if along is None else p.movedim(along, -2)
    return first_largest(p if largest else p.flip(-1))


def _first_in_order(places: Tensor, level: Tensor, levels: int, largest: bool) -> Tensor:
    """Where in an ordering the first entry of the highest level is: ``labels[scores.argsort()].argmax()``.

    Entries, not places, are taken as independent: the first of a level is later than place ``k`` where each entry of
    that level is.

    Args:
        places: ``[..., k, n]`` the probability that place ``k`` holds entry ``n``.
        level: ``[n]`` of each entry.
    """
    later = (1 - places.cumsum(-2)).clamp(0, 1)
    none_higher = torch.ones_like(later[..., :1, 0])
    parts = []
    for one in range(levels - 1, -1, -1) if largest else range(levels):
        survives = later[..., level == one].prod(-1)  # [..., k]
        before = torch.cat([torch.ones_like(survives[..., :1]), survives[..., :-1]], -1)
        parts.append(none_higher * (before - survives))
        none_higher = none_higher * survives[..., -1:]
    first = torch.stack(parts).sum(0)
    return first / first.sum(-1, keepdim=True).clamp(min=torch.finfo(first.dtype).tiny)


MAX_LEVELS = 16
"""Values of the longest list of which the largest is sought value by value."""


def first_largest(p: Tensor) -> Tensor:
    """Return ``[..., n]``: the probability that each of ``n`` independent numbers is the first of the largest.

    Args:
        p: ``[..., n, r]`` their laws on the same ``r`` values in ascending order.

    Example:
        >>> first_largest(torch.tensor([[0.5, 0.5], [0.0, 1.0]])).tolist()
        [0.5, 0.5]
    """
    upto = p.cumsum(-1)
    below = upto - p
    one = torch.ones_like(p[..., :1, :])
    before = torch.cat([one, below[..., :-1, :]], -2).cumprod(-2)
    after = torch.cat([one, upto.flip(-2)[..., :-1, :]], -2).cumprod(-2).flip(-2)
    return (p * before * after).sum(-1)


@relaxes("argmax", group="order")
def _argmax(settings: Settings, hard: Tensor, input: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
    return _extreme_position(settings, "argmax", input, dim, keepdim, True)


@relaxes("argmin", group="order")
def _argmin(settings: Settings, hard: Tensor, input: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
    return _extreme_position(settings, "argmin", input, dim, keepdim, False)


def _extreme(largest: bool) -> Callable[..., Any]:
    operation = "max" if largest else "min"
    block = discrete.max if largest else discrete.min
    two = _maximum if largest else _minimum

    def soft(settings: Settings, hard: Any, input: Tensor, *args: Any, **kwargs: Any) -> Any:
        other = args[0] if args else kwargs.get("other", kwargs.get("dim"))
        if isinstance(other, Tensor) and "dim" not in kwargs:
            return two(settings, hard, _floating(input), soft_value(other))
        x = _values_of(input)
        if other is None:
            value = _of_jumps(input, None, False, largest)
            if value is None:
                value = block(x.reshape(-1), 0, **settings.ordering(x, operation))
            value = _behind(hard, value)
            return _extreme_statistic(settings, operation, input, value, None, False)
        keepdim = args[1] if len(args) > 1 else kwargs.get("keepdim", False)
        values = _of_jumps(input, other, keepdim, largest)
        if values is None:
            values = block(x, other, keepdim, **settings.ordering(x, operation))
        return (
            _extreme_statistic(settings, operation, input, _behind(hard[0], values), other, keepdim),
            _extreme_position(settings, operation, input, other, keepdim, largest),
        )

    return soft


def _of_jumps(input: Tensor, dim: int | None, keepdim: bool, largest: bool) -> Tensor | None:
    r"""The extreme of floats that jump independently, as counts do; ``None`` where their laws are not known.

    The noise in which the largest is sought is their own. With means :math:`m_j` and deviations :math:`s_j`,

    .. math::
        \frac{\partial}{\partial m_j} \mathbb E \max_k X_k = P(X_j = \max_k X_k)
        \approx \int \frac{1}{s_j} \varphi(\frac{z - m_j}{s_j}) \prod_{k \neq j} \Phi(\frac{z - m_k}{s_k}) \, dz

    (Clark, 1961): a maximum of normal numbers, by a sum over :data:`NODES` places.
    """
    law = law_of(input)
    if law is None or not law.pure or not input.ndim or not can_look(input):
        return None
    count = input.numel() if dim is None else input.shape[dim]
    if count < 2 or input.numel() * NODES > MAX_ATOMS:
        return None
    variance = law.variance(input.shape)
    if variance is None:
        return None

    def flattened(x: Tensor) -> Tensor:
        return x.reshape(-1) if dim is None else x.movedim(dim, -1)

    flat = flattened(input)  # at whatever point it was lifted to: its gradient is that of the mean
    mean = flattened(law.point(MEAN)()).double()
    with torch.no_grad():
        weight, value = _chances(mean if largest else -mean, flattened(variance).double().sqrt())
    if weight is None:
        return None
    expected = (weight.to(flat.dtype) * flat).sum(-1)
    expected = expected + ((value if largest else -value).to(flat.dtype) - expected.detach())
    if not keepdim:
        return expected
    return expected.reshape([1] * input.ndim) if dim is None else expected.unsqueeze(dim)


NODES = 128
"""Places at which a density of the largest is summed."""


def _chances(mean: Tensor, spread: Tensor) -> tuple[Tensor | None, Tensor]:
    """``[..., n]`` the probability that each of ``n`` normal numbers is the largest, ``[...]`` the mean of that one."""
    low = (mean - 5 * spread).amax(-1, keepdim=True)
    high = (mean + 5 * spread).amax(-1, keepdim=True)
    width = high - low
    if not bool((width > 0).all()):
        return None, low
    spread = torch.maximum(spread, width / NODES)
    at = low + width * (torch.arange(NODES, device=mean.device).double() + 0.5) / NODES  # [..., q]
    away = (at.unsqueeze(-2) - mean.unsqueeze(-1)) / spread.unsqueeze(-1)  # [..., n, q]
    below = torch.special.log_ndtr(away)
    every = below.sum(-2, keepdim=True)
    weight = ((every - below - 0.5 * away.square()).exp() / spread.unsqueeze(-1)).sum(-1)
    value = high.squeeze(-1) - every.squeeze(-2).exp().mean(-1) * width.squeeze(-1)
    return weight / weight.sum(-1, keepdim=True), value


def _values_of(input: Tensor) -> Tensor:
    if isinstance(input, SoftBool):
        raise Dropped("an extreme of truth values: use any or all")
    return _floating(input)


def _behind(hard: Tensor, values: Tensor) -> Any:
    return values if hard.is_floating_point() else Integer(expected=Lazy(lambda: values))


relaxes("max", group="order")(_extreme(True))
relaxes("min", group="order")(_extreme(False))


def _reduced(largest: bool) -> Callable[..., Any]:
    operation = "max" if largest else "min"
    block = discrete.max if largest else discrete.min

    def soft(settings: Settings, hard: Tensor, input: Tensor, dim: Any = (), keepdim: bool = False) -> Any:
        x = _values_of(input)
        dims = (dim,) if isinstance(dim, int) else tuple(dim or range(x.ndim))
        dims = tuple(d % max(x.ndim, 1) for d in dims) if x.ndim else ()
        rest = [d for d in range(x.ndim) if d not in dims]
        value = _of_jumps(input, None, keepdim, largest) if not rest else None
        if value is None and len(dims) == 1:
            value = _of_jumps(input, dims[0], keepdim, largest)
        if value is not None:
            return _extreme_statistic(settings, operation, input, value, dims[0] if rest else None, keepdim)
        flat = x.permute(*rest, *dims).reshape(*(x.shape[d] for d in rest), -1)
        value = _behind(hard, block(flat, -1, **settings.ordering(x, operation)).reshape(hard.shape))
        if rest and len(dims) != 1:
            return value
        return _extreme_statistic(settings, operation, input, value, dims[0] if rest else None, keepdim)

    return soft


relaxes("amax", group="order", operation="max")(_reduced(True))
relaxes("amin", group="order", operation="min")(_reduced(False))


@relaxes("aminmax", group="order", operation="max")
def _aminmax(settings: Settings, hard: Any, input: Tensor, *, dim: int | None = None, keepdim: bool = False) -> Any:
    dims = () if dim is None else dim
    return (
        _reduced(False)(settings, hard[0], input, dims, keepdim),
        _reduced(True)(settings, hard[1], input, dims, keepdim),
    )


@relaxes("sort", group="order")
def _sort(
    settings: Settings, hard: Any, input: Tensor, dim: int = -1, descending: bool = False, *, stable: bool | None = None
) -> Any:
    if isinstance(input, SoftIndex):
        members = _sorted_members(input, dim, descending)
        if members is not None:
            return members, _rows(settings, "sort", input, dim, descending, slice(None))
    x = _floating(input)
    ordered = discrete.sort(x, dim, descending, **settings.ordering(x, "sort"))
    values = _behind(hard[0], ordered.values)
    if not descending:
        values = _statistic(settings, "sort", input, values, dim, slice(None))
    else:
        values = _reversed_statistic(settings, "sort", input, values, dim, None)
    return values, _rows(settings, "sort", input, dim, descending, slice(None))


def _sorted_members(index: SoftIndex, dim: int, descending: bool) -> Integer | None:
    """The distributions of places of one ordering once they are sorted: ``x.topk(k).indices.sort().values``.

    Sorted, they tell which of the ``n`` entries are among the ``k``, and no more of the order. With the probability
    ``p_i`` that entry ``i`` is, the ``c``-th is at ``i`` where it is in and ``c - 1`` before it are, given that ``k``
    are in all.
    """
    places: Lazy[Any] | None = index._current()[0]
    along = dim % max(index.ndim, 1)
    if places is None or places.exclusive != along:
        return None
    d = index.distribution  # asked for here: whether these are places is seen from the support
    if d is None or d.support is not None or d.probability.shape[-1] > MAX_STEPS:
        return None
    p, k = d.probability.expand(*index.shape, d.probability.shape[-1]), index.shape[along]

    def distribution() -> Distribution:
        chosen = members_in_order(p.movedim(along, -2).sum(-2).clamp(0, 1), k)
        return Distribution((chosen.flip(-2) if descending else chosen).movedim(-2, along), tied=True)

    late: Lazy[Any] = Lazy(distribution, [places])
    late.exclusive = along
    return Integer(late)


MAX_STEPS = 4096
"""Entries of the longest row whose chosen ones are sorted."""


def members_in_order(p: Tensor, k: int) -> Tensor:
    """Return ``[..., k, n]``: where the first, second, ... of ``k`` members is, each of ``n`` being one with ``p``.

    The members are independent but for their number, which is ``k``.

    Example:
        >>> members_in_order(torch.tensor([1.0, 0.5, 0.5]), 2).tolist()
        [[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]]
    """
    before, after = _numbers_before(p, k), _numbers_before(p.flip(-1), k).flip(-2)
    # c - 1 before, this one, k - c after
    joint = before[..., :k] * p.unsqueeze(-1) * after[..., :k].flip(-1)
    total = joint.sum(-2, keepdim=True)
    tiny = torch.finfo(p.dtype).tiny
    return (joint / total.clamp(min=tiny)).mT


def _numbers_before(p: Tensor, k: int) -> Tensor:
    """``[..., n, k]``: the probability that ``0 .. k - 1`` of those before each are members."""
    number = torch.nn.functional.pad(torch.ones_like(p[..., :1]), (0, k - 1))
    numbers = []
    for one in p.unbind(-1):
        numbers.append(number)
        one = one.unsqueeze(-1)
        number = number * (1 - one) + torch.nn.functional.pad(number[..., :-1] * one, (1, 0))
    return torch.stack(numbers, -2)


def _reversed_statistic(settings: Settings, operation: str, input: Any, value: Any, dim: int, k: int | None) -> Any:
    """The ``k`` largest, the largest first."""
    if not isinstance(value, Tensor) or input.ndim == 0:
        return value
    along = dim % input.ndim
    options = settings.ordering(input, operation)

    def places(input: Tensor) -> Places:
        matrix = permutation_rows(options, input, along, True, (0, input.shape[along] if k is None else k))
        above = matrix.cumsum(-2) - matrix
        return Places(matrix.movedim(-2, along), above.movedim(-2, along))

    return Statistic(value, input, along, lazy(places, input))


@relaxes("msort", group="order", operation="sort")
def _msort(settings: Settings, hard: Tensor, input: Tensor) -> Any:
    x = _floating(input)
    return _behind(hard, discrete.sort(x, 0, **settings.ordering(x, "sort")).values)


@relaxes("argsort", group="order")
def _argsort(
    settings: Settings, hard: Tensor, input: Tensor, dim: int = -1, descending: bool = False, *, stable: bool = False
) -> Any:
    if isinstance(input, SoftIndex) and input.has_distribution and not descending:
        inverse = _inverse(input, dim)
        if inverse is not None:
            return inverse
    return _rows(settings, "argsort", input, dim, descending, slice(None))


def _inverse(index: SoftIndex, dim: int) -> Integer | None:
    """The distribution of the inverse permutation, where ``index`` is one: the ranks ``x.argsort().argsort()``."""
    n = index.shape[dim] if index.ndim else 0
    ordering = behind(index)
    if ordering is not None:
        inverse = ordering.inverse(dim % index.ndim)
        if inverse is not None:
            ranks: Lazy[Any] = Lazy(lambda: inverse)
            return Integer(ranks)
    distribution = index.distribution  # asked for here: whether this is a permutation is seen from its support
    if distribution is None or distribution.support is not None or distribution.probability.shape[-1] != n:
        return None

    def transposed() -> Distribution:
        matrix = distribution.probability.movedim(dim % index.ndim, -2).mT
        total = matrix.sum(-1, keepdim=True).clamp(min=torch.finfo(matrix.dtype).tiny)
        return Distribution((matrix / total).movedim(-2, dim % index.ndim), tied=True)

    return Integer(Lazy(transposed))


@relaxes("topk", group="order")
def _topk(
    settings: Settings, hard: Any, input: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> Any:
    x = _floating(input)
    values = discrete.topk(x, k, dim, largest, **settings.ordering(x, "topk")).values
    soft = _behind(hard[0], values)
    if largest:
        soft = _reversed_statistic(settings, "topk", input, soft, dim, k)
    else:
        soft = _statistic(settings, "topk", input, soft, dim, slice(0, k))
    return soft, _rows(settings, "topk", input, dim, largest, slice(0, k))


def _place(settings: Settings, operation: str, x: Tensor, place: int, dim: int, keepdim: bool) -> Tensor:
    """The value at one place of the ascending order: ``sum_j P_j x_j`` with the derivative ``P`` of its expectation.

    ``d E[x_(k)] / d x_j = P(j is at place k)``: the weights are held fixed.
    """
    options = settings.ordering(x, operation)
    if x.ndim == 0 or ("method" in options and discrete.ORDERINGS[options["method"]].carried is None):
        return discrete.kthvalue(x, place + 1, dim, keepdim, **options)
    carried = discrete.sort(x.detach(), dim, carry=x, **options).carried
    assert carried is not None
    value = carried.select(dim, place)
    return value.unsqueeze(dim) if keepdim else value


@relaxes("kthvalue", group="order")
def _kthvalue(settings: Settings, hard: Any, input: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> Any:
    x = _floating(input)
    values = _place(settings, "kthvalue", x, k - 1, dim, keepdim)
    soft = _statistic(settings, "kthvalue", input, _behind(hard[0], values), dim, k - 1, keepdim)
    return soft, _rows(settings, "kthvalue", input, dim, False, k - 1, keepdim)


@relaxes("median", group="order")
def _median(settings: Settings, hard: Any, input: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
    x = _floating(input)
    if dim is None:
        middle = (x.numel() - 1) // 2
        value = _behind(hard, _place(settings, "median", x.reshape(-1), middle, 0, False))
        return _statistic(settings, "median", input, value, None, middle)
    middle = ((x.shape[dim] if x.ndim else 1) - 1) // 2
    values = _place(settings, "median", x, middle, dim, keepdim)
    soft = _statistic(settings, "median", input, _behind(hard[0], values), dim, middle, keepdim)
    return soft, _rows(settings, "median", input, dim, False, middle, keepdim)


@relaxes("nanmedian", group="order", operation="median")
def _nanmedian(settings: Settings, hard: Any, input: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
    if bool(torch.isnan(_floating(input)).any()):
        raise Dropped("NaN among the values")
    return _median(settings, hard, input, dim, keepdim)


@relaxes("quantile", group="order")
def _quantile(
    settings: Settings,
    hard: Tensor,
    input: Tensor,
    q: Any,
    dim: int | None = None,
    keepdim: bool = False,
    *,
    interpolation: str = "linear",
) -> Any:
    x, levels = _floating(input), soft_value(q)
    value = discrete.quantile(x, levels, dim, keepdim, interpolation=interpolation, **settings.ordering(x, "quantile"))
    if not isinstance(q, float) or interpolation != "linear" or not hard.is_floating_point():
        return value
    place = q * ((x.numel() if dim is None else x.shape[dim]) - 1)
    rows = int(place) if place == int(place) else (int(place), int(place) + 1)
    return _statistic(settings, "quantile", input, value, dim, rows, keepdim)


@relaxes("nanquantile", group="order", operation="quantile")
def _nanquantile(settings: Settings, hard: Tensor, input: Tensor, *args: Any, **kwargs: Any) -> Any:
    if bool(torch.isnan(_floating(input)).any()):
        raise Dropped("NaN among the values")
    return _quantile(settings, hard, input, *args, **kwargs)


@relaxes("mode", group="order")
def _mode(settings: Settings, hard: Any, input: Tensor, dim: int = -1, keepdim: bool = False) -> Any:
    raise Dropped("the most frequent value has no neighbourhood to smooth over")
