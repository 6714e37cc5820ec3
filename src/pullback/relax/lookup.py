"""Reading and writing at soft positions: sums over the positions an index could have taken."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pullback.relax.ordering import Ordering, behind
from pullback.relax.rules import Dropped
from pullback.relax.soft_tensors import Distribution, SoftBool, SoftIndex, attached, plain

__all__ = ["Layout", "atoms", "atoms_along", "dense", "parse", "read", "read_along", "write", "write_along"]


def dense(index: SoftIndex, size: int) -> Tensor:
    """``[*shape, size]`` the probability of each position; from the expected value alone, its nearest neighbours.

    With only the expected value ``m`` known the positions ``i - 1, i, i + 1`` around the hard index get the weights
    ``-d/2, 1, d/2``, ``d = m - i``, with only their derivative: a lookup then has the slope of a central difference.
    """
    distribution = index.distribution
    if distribution is None:
        expected = index.expected
        half = (expected - expected.detach()) / 2
        hard = plain(index).long()
        support = torch.stack([hard - 1, hard, hard + 1], -1)
        support = torch.where(hard.unsqueeze(-1) < 0, support + size, support)
        distribution = Distribution(torch.stack([-half, torch.ones_like(half), half], -1), support)
    return distribution.dense(size)


class Layout(NamedTuple):
    """An indexing ``x[index]`` with soft indices, taken apart.

    Attributes:
        view: ``x`` with the basic indices (integers, slices, None, Ellipsis) applied, then permuted: dimensions of the
            other tensor indices first, plain dimensions, the softly indexed dimensions, as one, last.
        others: the other tensor indices, expanded to ``shape``.
        shape: broadcast shape of all tensor indices.
        position: where the dimensions of ``shape`` are in the result.
        soft: the soft indices.
        sizes: of the dimensions they index.
    """

    view: Tensor
    others: tuple[Tensor, ...]
    shape: torch.Size
    position: int
    soft: tuple[SoftIndex, ...]
    sizes: list[int]


def parse(x: Tensor, index: tuple[Any, ...]) -> Layout:
    """Take ``x[index]`` apart.

    Raises:
        Dropped: a mask among the indices makes the shape depend on the data.
    """
    index = tuple(torch.as_tensor(a, device=x.device) if isinstance(a, list | tuple | range) else a for a in index)
    if any(isinstance(a, SoftBool) or (isinstance(a, Tensor) and a.dtype in (torch.bool, torch.uint8)) for a in index):
        raise Dropped("a mask beside an index")
    consumed = sum(a is not None and a is not Ellipsis for a in index)
    if not any(a is Ellipsis for a in index):
        index = (*index, Ellipsis)
    basic: list[Any] = []
    tensors: dict[int, Tensor] = {}  # dimension of the view -> index
    dimension = 0
    for a in index:
        if a is Ellipsis:
            basic.extend([slice(None)] * (x.ndim - consumed))
            dimension += x.ndim - consumed
        elif isinstance(a, Tensor) and (a.ndim > 0 or isinstance(a, SoftIndex)):
            tensors[dimension] = a
            basic.append(slice(None))
            dimension += 1
        elif isinstance(a, slice) or a is None:
            basic.append(a)
            dimension += 1
        elif isinstance(a, bool):
            raise Dropped("a mask beside an index")
        else:
            basic.append(int(a))
    view = x[tuple(basic)]
    places = list(tensors)
    adjacent = places == list(range(places[0], places[0] + len(places)))
    soft_places = [d for d, a in tensors.items() if isinstance(a, SoftIndex)]
    other_places = [d for d in places if d not in soft_places]
    shape = torch.broadcast_shapes(*(a.shape for a in tensors.values()))
    rest = [d for d in range(view.ndim) if d not in tensors]
    sizes = [view.shape[d] for d in soft_places]
    entries = math.prod([*shape, *sizes])
    if len(sizes) > 1 and entries > MAX_JOINT:
        raise Dropped(f"the joint distribution of {len(sizes)} indices has {entries:.1e} elements")
    view = view.permute(*other_places, *rest, *soft_places).flatten(-len(sizes))
    others = tuple(tensors[d].long().expand(shape) for d in other_places)
    soft = tuple(tensors[d] for d in soft_places)
    return Layout(view, others, shape, places[0] if adjacent else 0, soft, sizes)  # type: ignore[arg-type]


MAX_JOINT = 2**26
"""Elements of the largest joint distribution of several indices that is formed."""


def _weights(layout: Layout) -> Tensor:
    """``[*shape, n]`` the probability of each position, of several (independent) indices of each combination."""
    first, *more = (dense(a, size) for a, size in zip(layout.soft, layout.sizes, strict=True))
    if not more and not layout.others:
        return first
    weights = first.expand(*layout.shape, first.shape[-1])
    for other in more:
        weights = (weights.unsqueeze(-1) * other.expand(*layout.shape, other.shape[-1]).unsqueeze(-2)).flatten(-2)
    return weights


def atoms(x: Tensor, index: tuple[Any, ...]) -> Distribution:
    """The entries that ``x[index]`` could have been: a row shares one choice."""
    layout = parse(x, index)
    weights = _weights(layout)
    count = len(layout.shape)
    weights = weights.expand(*layout.shape, weights.shape[-1])
    support = layout.view[layout.others] if layout.others else layout.view
    rest = support.ndim - 1 - (count if layout.others else 0)
    weights = weights.reshape(*layout.shape, *[1] * rest, weights.shape[-1])
    tied = any(_is_tied(index) for index in layout.soft)
    if rest == 0 and not layout.others:
        return Distribution(weights, support, tied=tied)
    if not layout.others:
        support = support.reshape(*[1] * count, *support.shape)
    weights, support = (_to_position(t, count, layout.position) for t in (weights, support))
    return Distribution(weights, support, tied=tied)


def _is_tied(index: SoftIndex) -> bool:
    distribution = index.distribution
    return distribution is not None and distribution.tied


def atoms_along(x: Tensor, dim: int, index: SoftIndex) -> Distribution:
    """The entries that ``torch.gather(x, dim, index)`` could have been."""
    if x.ndim == 0:
        return Distribution(torch.ones_like(index, dtype=torch.get_default_dtype()).unsqueeze(-1), x.reshape(1))
    dim = dim % x.ndim
    weights = dense(index, x.shape[dim])
    for d in range(x.ndim):
        if d != dim:
            x = x.narrow(d, 0, index.shape[d])
    support = x.movedim(dim, -1)
    return Distribution(weights, support if support.ndim == 1 else support.unsqueeze(dim), tied=_is_tied(index))


def read(x: Tensor, index: tuple[Any, ...]) -> Tensor:
    """``sum_v P(v) x[..., v, ...]``: ``x[index]`` with soft indices replaced by their distributions."""
    layout = parse(x, index)
    ordering = _whole_ordering(layout)
    if ordering is not None:
        result = ordering.read(layout.view.movedim(-1, 0))
        return _to_position(result.to(torch.promote_types(x.dtype, result.dtype)), 1, layout.position)
    weights = _weights(layout)
    table = layout.view.to(torch.promote_types(x.dtype, weights.dtype))
    weights = weights.to(table.dtype)
    if not layout.others:
        result = torch.tensordot(weights, table, dims=([-1], [-1]))  # [*shape, rest]
    else:
        rows = table[layout.others]  # [*shape, rest, n]
        weights = weights.reshape(*layout.shape, *[1] * (rows.ndim - len(layout.shape) - 1), weights.shape[-1])
        result = (rows * weights).sum(-1)
    return _to_position(result, len(layout.shape), layout.position)


def write(x: Tensor, index: tuple[Any, ...], value: Any, *, accumulate: bool = False) -> Tensor:
    """``x`` after ``x[index] = value`` with soft indices replaced by their distributions.

    Position ``v`` becomes ``(1 - P(v)) x[v] + P(v) value``; with ``accumulate`` it is ``x[v] + P(v) value``. Of several
    writes ``P(v) = 1 - prod_i (1 - P_i(v))`` and the value is their mean, weighed by ``P_i(v)``. Where nothing was
    before (``torch.empty``), and where the places of one ordering cover all, what was there has no part in it.

    Raises:
        Dropped: basic indices beside the soft one.
    """
    if any((isinstance(a, slice) and a != slice(None)) or a is None or isinstance(a, int) for a in index):
        raise Dropped("a write at a soft position of a slice")
    layout = parse(x, index)
    table = layout.view
    rest = table.shape[len(layout.others) : -1]
    result_shape = [*layout.shape, *rest]
    hard_shape = _shape_at(result_shape, len(layout.shape), layout.position)
    value = torch.as_tensor(value, dtype=table.dtype, device=table.device).expand(hard_shape)
    value = _from_position(value, len(layout.shape), layout.position)  # [*shape, rest]
    ordering = _whole_ordering(layout)
    if ordering is not None:
        one = torch.ones(layout.shape, dtype=table.dtype, device=table.device)
        hit, given = ordering.write(one), ordering.write(value).movedim(0, -1).to(table.dtype)
        return _unpermute(_written(x, index, table, hit.to(table.dtype), given, accumulate), x, index)
    weights = _weights(layout)
    weights = weights.expand(*layout.shape, weights.shape[-1])
    broad = weights.reshape(*layout.shape, *[1] * len(rest), weights.shape[-1]).to(table.dtype)
    inside = table.shape[: len(layout.others)]
    hit = torch.zeros(*inside, *[1] * len(rest), table.shape[-1], dtype=table.dtype, device=table.device)
    given = torch.zeros_like(table)
    contribution = value.unsqueeze(-1) * broad
    alone = not accumulate and not any(map(_is_tied, layout.soft))  # each writes for itself, and several may meet
    if layout.others:
        hit = hit.index_put(layout.others, broad, accumulate=True)
        given = given.index_put(layout.others, contribution, accumulate=True)
    else:
        dims = tuple(range(len(layout.shape)))
        hit = hit + (broad.sum(dims) if dims else broad)
        given = given + (contribution.sum(dims) if dims else contribution)
    if alone:
        missed = broad.clamp(max=1 - torch.finfo(broad.dtype).eps).neg().log1p()
        if layout.others:
            none = torch.zeros_like(hit).index_put(layout.others, missed, accumulate=True).exp()
        else:
            none = (missed.sum(dims) if dims else missed).exp()
        given = given * (1 - none) / hit.clamp(min=torch.finfo(hit.dtype).tiny)
        hit = 1 - none
    return _unpermute(_written(x, index, table, hit, given, accumulate, alone), x, index)


def _whole_ordering(layout: Layout) -> Ordering | None:
    """The ordering that alone decides which rows are read or written."""
    if layout.others or len(layout.soft) != 1:
        return None
    ordering = behind(layout.soft[0])
    if ordering is None or len(layout.shape) != 1:
        return None
    return ordering if ordering.shape == layout.shape and ordering.size == layout.sizes[0] else None


def _written(
    x: Tensor, index: Any, table: Tensor, hit: Tensor, given: Tensor, accumulate: bool, alone: bool = False
) -> Tensor:
    """The table after the write."""
    if accumulate:
        return table + given
    if attached(x, "_empty"):
        covered: Any = True
    elif alone:
        covered = False
    else:
        written = torch.zeros(x.shape, dtype=torch.bool, device=x.device)
        written[tuple(map(plain, index))] = True
        covered = parse(written, index).view.all(-1, keepdim=True)
    return _mixed(table, hit, given, covered)


def _mixed(base: Tensor, hit: Tensor, given: Tensor, covered: Any) -> Tensor:
    """``(1 - hit) base + given``, where it is covered ``given / hit``."""
    covered = torch.as_tensor(covered, device=base.device)
    share = torch.where(covered, hit.clamp(min=torch.finfo(hit.dtype).eps), 1.0)
    base = torch.where(covered, 0.0, base)
    return base * (1 - hit.clamp(max=1)) + given / share


def _unpermute(changed: Tensor, x: Tensor, index: tuple[Any, ...]) -> Tensor:
    numbered = torch.arange(x.numel(), device=x.device).view(x.shape)
    order = parse(numbered, index).view.reshape(-1)
    flat = changed.reshape(-1)
    return torch.zeros_like(flat).scatter(0, order, flat).view(x.shape)


def _to_position(result: Tensor, count: int, position: int) -> Tensor:
    if count == 0 or position == 0:
        return result
    return result.movedim(tuple(range(count)), tuple(range(position, position + count)))


def _from_position(value: Tensor, count: int, position: int) -> Tensor:
    if count == 0 or position == 0:
        return value
    return value.movedim(tuple(range(position, position + count)), tuple(range(count)))


def _shape_at(shape: list[int], count: int, position: int) -> list[int]:
    front, rest = shape[:count], shape[count:]
    return [*rest[:position], *front, *rest[position:]]


def read_along(x: Tensor, dim: int, index: SoftIndex) -> Tensor:
    """``sum_v P(v) x[.., v at dim, ..]`` for every entry of ``index``: ``torch.gather``."""
    if x.ndim == 0:
        return x.expand(index.shape).clone()
    dim = dim % x.ndim
    ordering = _ordering_along(x, dim, index)
    if ordering is not None:
        return ordering.read(x)
    weights = dense(index, x.shape[dim])  # [*shape, n]
    table = x
    for d in range(x.ndim):
        if d != dim:
            table = table.narrow(d, 0, index.shape[d])
    table = table.movedim(dim, -1).unsqueeze(-1)  # [*rest, n, 1]
    weights = weights.movedim(dim, -2)  # [*rest, m, n]
    table = table.to(torch.promote_types(table.dtype, weights.dtype))
    return (weights.to(table.dtype) @ table).squeeze(-1).movedim(-1, dim)


def write_along(x: Tensor, dim: int, index: SoftIndex, value: Any, *, accumulate: bool = False) -> Tensor:
    """``torch.scatter`` (or ``scatter_add``) of ``value`` at soft positions along ``dim``."""
    dim = dim % max(x.ndim, 1)
    ordering = _ordering_along(x, dim, index)
    if ordering is not None:
        value = torch.as_tensor(value, dtype=x.dtype, device=x.device)
        value = value[tuple(slice(0, n) for n in index.shape)] if value.ndim else value.expand(index.shape)
        one = torch.ones(index.shape, dtype=x.dtype, device=x.device)
        hit, given = ordering.write(one).to(x.dtype), ordering.write(value).to(x.dtype)
        return x + given if accumulate else _mixed(x, hit, given, _covered_along(x, dim, index))
    weights = dense(index, x.shape[dim]).to(x.dtype).movedim(dim, -2)  # [*rest, m, n]
    if isinstance(value, Tensor) and value.ndim:
        for d in range(value.ndim):
            value = value.narrow(d, 0, index.shape[d])
        value = value.to(x.dtype).movedim(dim, -1)  # [*rest, m]
    else:
        value = torch.as_tensor(value, dtype=x.dtype, device=x.device).expand(weights.shape[:-1])
    given = (value.unsqueeze(-2) @ weights).squeeze(-2)  # [*rest, n]
    hit = weights.sum(-2).clamp(max=1)
    padding: list[int] = []
    for d in reversed([d for d in range(x.ndim) if d != dim]):
        padding += [0, x.shape[d] - index.shape[d]]
    if any(padding):
        given, hit = (torch.nn.functional.pad(t, (0, 0, *padding)) for t in (given, hit))
    given, hit = given.movedim(-1, dim), hit.movedim(-1, dim)
    if accumulate:
        return x + given
    return _mixed(x, hit, given, _covered_along(x, dim, index))


def _ordering_along(x: Tensor, dim: int, index: SoftIndex) -> Ordering | None:
    """The ordering of all rows of ``x`` along ``dim``."""
    ordering = behind(index) if x.ndim else None
    if ordering is None or not ordering.is_along(dim) or ordering.size != x.shape[dim]:
        return None
    same = x.ndim == index.ndim and all(x.shape[d] == index.shape[d] for d in range(x.ndim) if d != dim)
    return ordering if same and ordering.shape == index.shape else None


def _covered_along(x: Tensor, dim: int, index: SoftIndex) -> Any:
    """Whether a write along ``dim`` reaches every position."""
    if attached(x, "_empty"):
        return True
    written = torch.zeros(x.shape, dtype=torch.bool, device=x.device).scatter(dim, plain(index), True)
    return written.all(dim, keepdim=True)
