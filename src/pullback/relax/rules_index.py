"""Soft indices where positions are read and written: indexing, gather, embedding, one_hot, scatter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pullback.relax import lookup
from pullback.relax.image import MAX_ATOMS
from pullback.relax.law import law_of
from pullback.relax.ordering import TooMany, behind
from pullback.relax.rules import Discrete, Dropped, Integer, lazy, relaxes, soft_value
from pullback.relax.rules_counting import positions_of_true
from pullback.relax.rules_flow import flow, reshape_distribution
from pullback.relax.rules_logic import selection, with_atoms
from pullback.relax.settings import Settings
from pullback.relax.soft_tensors import Distribution, Lazy, SoftBool, SoftIndex, SoftTensor, attach, attached, plain

__all__ = ["set_items"]


@relaxes("__getitem__", group="index", operation="getitem", only_soft=True)
def _getitem(settings: Settings, hard: Tensor, input: Tensor, index: Any) -> Any:
    index = index if isinstance(index, tuple) else (index,)
    if len(index) == 1 and isinstance(index[0], SoftBool) and index[0].ndim == 1:
        places = positions_of_true(index[0], len(hard))
        row = Integer(Lazy(lambda: Distribution(places().probability.squeeze(1), tied=True), [places]))
        where = SoftIndex.make(plain(index[0]).nonzero().squeeze(1), row.distribution)
        return _read(hard, input, (where,), lookup.read, lookup.atoms)
    if any(isinstance(a, SoftBool) for a in index):
        raise Dropped("x[mask] has a shape that depends on the data; x * mask or where(mask, x, 0) has not")
    if not any(isinstance(a, SoftIndex) for a in index):
        if isinstance(input, SoftIndex) and input.has_distribution:
            ordering = _part_of_ordering(input, index)
            if ordering is not None:
                return ordering
            part = reshape_distribution(Tensor.__getitem__, hard, (input, index), {})
            known = input._current()[0]
            if all(isinstance(a, slice) or a is Ellipsis for a in index) and known is not None:
                part.distribution.exclusive = known.exclusive
            return part
        return flow(Tensor.__getitem__, hard, (input, index), {})
    return _read(hard, input, index, lookup.read, lookup.atoms)


def _part_of_ordering(input: SoftIndex, index: tuple[Any, ...]) -> Integer | None:
    """The first, or other neighbouring, places of an ordering."""
    known = input._current()[0]
    if known.exclusive is None or input.ndim != 1 or len(index) != 1 or not isinstance(index[0], slice):
        return None
    first, end, step = index[0].indices(len(input))
    ordering = behind(input)
    part = ordering.part(0, first, end) if ordering is not None and step == 1 else None
    if part is None:
        return None
    late: Lazy[Any] = Lazy(lambda: part, [known])
    late.exclusive = known.exclusive
    return Integer(late)


def _read(hard: Tensor, input: Any, index: Any, read: Any, atoms: Any) -> Any:
    """The parts behind a lookup in ``input``, which may be floating, integer, bool or itself soft."""
    certain = not isinstance(input, SoftTensor) and law_of(input) is None
    known: Any = None
    if certain:
        known = lazy(lambda table, index: _small(atoms, table, index, hard), input, index)
    elif isinstance(input, SoftIndex) and input.has_distribution and input.ndim == 1 and read is lookup.read:
        known = lazy(_read_twice, input, index)
    if hard.is_floating_point():
        value = read(input, index)
        return value if known is None else Discrete(value, known)

    def compute(input: Any, index: Any) -> Tensor:
        table = soft_value(input)
        result: Tensor = read(table if table.is_floating_point() else table.to(torch.get_default_dtype()), index)
        return result

    late = lazy(compute, input, index)
    if hard.dtype == torch.bool:
        return late if known is None else with_atoms(late, known)
    return Integer(known, late)


def _read_twice(table: SoftIndex, index: tuple[Any, ...]) -> Distribution | None:
    """The atoms of ``table[index]`` where both are soft: those of the table, by where the index may point."""
    inside = table.distribution
    if inside is None or inside.values.ndim != 1:
        return None
    p = inside.probability.expand(len(table), inside.probability.shape[-1])
    where = lookup.atoms(torch.arange(len(table), device=p.device), index)
    return Distribution(where.probability.to(p.dtype) @ p, inside.support, tied=where.tied or inside.tied)


def _small(find: Any, table: Any, index: Any, hard: Tensor) -> Distribution | None:
    try:
        atoms = find(table, index)
    except TooMany:
        return None
    integers = not (hard.is_floating_point() or hard.dtype == torch.bool) and atoms.support is not None
    if integers:
        atoms = atoms._replace(support=atoms.values.long())
    return atoms if atoms.values.numel() <= MAX_ATOMS else None


@relaxes("gather", group="index", only_soft=True)
def _gather(
    settings: Settings, hard: Tensor, input: Tensor, dim: int, index: Tensor, *, sparse_grad: bool = False
) -> Any:
    if not isinstance(index, SoftIndex):
        return flow(torch.gather, hard, (input, dim, index), {})
    return _read(
        hard,
        input,
        index,
        lambda table, index: lookup.read_along(table, dim, index),
        lambda table, index: lookup.atoms_along(table, dim, index),
    )


@relaxes("take_along_dim", group="index", only_soft=True)
def _take_along_dim(settings: Settings, hard: Tensor, input: Tensor, indices: Tensor, dim: int | None = None) -> Any:
    if not isinstance(indices, SoftIndex):
        return flow(torch.take_along_dim, hard, (input, indices, dim), {})

    def along(function: Any, flat: Any) -> Any:
        def read(table: Tensor, indices: Any) -> Any:
            if dim is None:
                return flat(table.reshape(-1), (indices,))
            place = dim % table.ndim
            shape = torch.broadcast_shapes(
                table.shape[:place] + table.shape[place + 1 :], indices.shape[:place] + indices.shape[place + 1 :]
            )
            table = table.expand(*shape[:place], table.shape[place], *shape[place:])
            wanted = (*shape[:place], indices.shape[place], *shape[place:])
            return function(table, place, _expanded(indices, wanted))

        return read

    if dim is None:
        indices = _flattened(indices)
    return _read(hard, input, indices, along(lookup.read_along, lookup.read), along(lookup.atoms_along, lookup.atoms))


def _flattened(index: SoftIndex) -> SoftIndex:
    return _expanded(index, (index.numel(),), Tensor.reshape)


def _expanded(index: SoftIndex, shape: tuple[int, ...], function: Any = Tensor.expand) -> SoftIndex:
    if tuple(index.shape) == tuple(shape):
        return index
    hard = function(plain(index), shape)
    part = reshape_distribution(function, hard, (index, shape), {})
    return SoftIndex.make(hard, part.distribution, part.expected)


@relaxes("take", group="index", only_soft=True)
def _take(settings: Settings, hard: Tensor, input: Tensor, index: Tensor) -> Any:
    if not isinstance(index, SoftIndex):
        return flow(torch.take, hard, (input, index), {})
    return _read(
        hard,
        input,
        index,
        lambda table, index: lookup.read(table.reshape(-1), (index,)),
        lambda table, index: lookup.atoms(table.reshape(-1), (index,)),
    )


@relaxes("index_select", group="index", only_soft=True)
def _index_select(settings: Settings, hard: Tensor, input: Tensor, dim: int, index: Tensor) -> Any:
    if not isinstance(index, SoftIndex):
        return flow(torch.index_select, hard, (input, dim, index), {})

    place = dim % max(input.ndim, 1)
    where = (*[slice(None)] * place, index if index.ndim else _expanded(index, (1,)))
    return _read(hard, input, where, lookup.read, lookup.atoms)


@relaxes("embedding", group="index", only_soft=True)
def _embedding(
    settings: Settings,
    hard: Tensor,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:
    if isinstance(weight, SoftTensor) or not isinstance(input, SoftIndex):
        input, weight = (weight, input) if not isinstance(input, SoftIndex) else (input, weight)  # torch.embedding
    if not isinstance(input, SoftIndex):
        raise Dropped("an embedding of a soft table")
    if padding_idx is not None and padding_idx >= -len(weight):
        keep = torch.arange(len(weight), device=weight.device) == padding_idx % len(weight)
        weight = torch.where(keep.unsqueeze(-1), weight.detach(), weight)
    return _read(hard, weight, (input,), lookup.read, lookup.atoms)


@relaxes("one_hot", group="index", only_soft=True)
def _one_hot(settings: Settings, hard: Tensor, tensor: SoftIndex, num_classes: int = -1) -> Any:
    classes = hard.shape[-1]
    late = lazy(lambda index: lookup.dense(index, classes), tensor)
    late.exclusive = tensor.ndim

    def vectors() -> Distribution:
        p = late()
        return Distribution(p.unsqueeze(-2), torch.eye(classes, dtype=torch.long, device=p.device))

    return Integer(Lazy(vectors, [late]), late)


def _scatter(settings: Settings, hard: Tensor, input: Any, dim: int, index: Any, src: Any = None, **kwargs: Any) -> Any:
    reduce = kwargs.get("reduce")
    src = kwargs.get("value", src)
    if reduce is not None:
        raise Dropped("a scatter with a reduction")
    if not isinstance(index, SoftIndex):
        return flow(torch.scatter, hard, (input, dim, index, src), {})
    return _write(hard, input, src, lambda x, v, index: lookup.write_along(x, dim, index, v), index)


relaxes("scatter", group="index", only_soft=True)(_scatter)


@relaxes("scatter_add", group="index", only_soft=True)
def _scatter_add(settings: Settings, hard: Tensor, input: Tensor, dim: int, index: Any, src: Tensor) -> Any:
    if not isinstance(index, SoftIndex):
        return flow(torch.scatter_add, hard, (input, dim, index, src), {})
    return _write(hard, input, src, lambda x, v, index: lookup.write_along(x, dim, index, v, accumulate=True), index)


@relaxes("index_add", group="index", only_soft=True)
def _index_add(
    settings: Settings, hard: Tensor, input: Tensor, dim: int, index: Any, source: Tensor, *, alpha: float = 1
) -> Any:
    if not isinstance(index, SoftIndex):
        return flow(torch.index_add, hard, (input, dim, index, source), {"alpha": alpha})
    place = (*[slice(None)] * (dim % input.ndim), index)
    return _write(hard, input, source, lambda x, v, place: lookup.write(x, place, alpha * v, accumulate=True), place)


@relaxes("index_copy", group="index", only_soft=True)
def _index_copy(settings: Settings, hard: Tensor, input: Tensor, dim: int, index: Any, source: Tensor) -> Any:
    if not isinstance(index, SoftIndex):
        return flow(torch.index_copy, hard, (input, dim, index, source), {})
    place = (*[slice(None)] * (dim % input.ndim), index)
    return _write(hard, input, source, lambda x, v, place: lookup.write(x, place, v), place)


@relaxes("index_fill", group="index", only_soft=True)
def _index_fill(settings: Settings, hard: Tensor, input: Tensor, dim: int, index: Any, value: Any) -> Any:
    if not isinstance(index, SoftIndex):
        return flow(torch.index_fill, hard, (input, dim, index, value), {})
    place = (*[slice(None)] * (dim % input.ndim), index)
    return _write(hard, input, value, lambda x, v, place: lookup.write(x, place, v), place)


@relaxes("index_put", group="index", only_soft=True)
def _index_put(
    settings: Settings, hard: Tensor, input: Tensor, indices: Any, values: Any, accumulate: bool = False
) -> Any:
    return set_items(settings, hard, input, tuple(indices), values, accumulate)


def set_items(settings: Settings, hard: Tensor, input: Tensor, index: Any, value: Any, accumulate: bool = False) -> Any:
    """The part behind ``input`` after ``input[index] = value``; ``hard`` is the plain result."""
    index = index if isinstance(index, tuple) else (index,)
    masks = [a for a in index if isinstance(a, SoftBool)]
    soft = [a for a in index if isinstance(a, SoftIndex)]
    if masks:
        return _set_masked(hard, input, index, value, accumulate)
    if soft:
        return _write(hard, input, value, lambda x, v, index: lookup.write(x, index, v, accumulate=accumulate), index)
    if any(isinstance(a, Tensor) and a.dtype == torch.bool for a in index):
        raise Dropped("soft values written at a plain mask")
    return _overwrite(hard, input, index, value, accumulate)


def _set_masked(hard: Tensor, input: Tensor, index: tuple[Any, ...], value: Any, accumulate: bool) -> Any:
    if len(index) != 1 or accumulate or (isinstance(value, Tensor) and value.ndim > 0 and value.numel() > 1):
        raise Dropped("x[mask] = values: which value goes where depends on the data")
    mask = index[0]
    mask = mask if mask.ndim == input.ndim else _trailing(mask, input.ndim)
    if isinstance(value, Tensor):
        value = value.reshape(())

    if attached(input, "_empty"):  # nothing was there that could stay
        value = soft_value(value)
        dtype = input.dtype if input.is_floating_point() else torch.get_default_dtype()
        filled = torch.as_tensor(value, device=input.device).to(dtype).expand(hard.shape)
        if hard.is_floating_point():
            one = torch.ones_like(filled).unsqueeze(-1)
            return Discrete(filled, Lazy(lambda: Distribution(one, filled.unsqueeze(-1))), unit=0.0)
        late = Lazy(lambda: filled)
        return late if hard.dtype == torch.bool else Integer(expected=late)
    return selection(hard, mask, value, input)


def _trailing(mask: SoftBool, ndim: int) -> SoftBool:
    shape = (*mask.shape, *[1] * (ndim - mask.ndim))
    return SoftBool.make(plain(mask).view(shape), lazy(lambda mask: mask.probability.view(shape), mask))


def _overwrite(hard: Tensor, input: Tensor, index: tuple[Any, ...], value: Any, accumulate: bool) -> Any:
    """Soft values at plain positions, or plain values into a soft tensor."""
    if accumulate:
        raise Dropped("soft values accumulated")

    def compute(input: Any, index: Any, value: Any) -> Tensor:
        base, new = soft_value(input), soft_value(value)
        dtype = next(t.dtype for t in (new, base) if isinstance(t, Tensor) and t.is_floating_point())
        changed = base.to(dtype).clone()
        changed[index] = new.to(dtype) if isinstance(new, Tensor) else new
        return changed

    if hard.is_floating_point():
        return compute(input, index, value)
    late = lazy(compute, input, index, value, mean=True)
    return late if hard.dtype == torch.bool else Integer(expected=late)


def _write(hard: Tensor, input: Any, value: Any, write: Any, index: Any) -> Any:
    if hard.is_floating_point():
        return write(soft_value(input), soft_value(value), index)

    def compute(input: Any, value: Any, index: Any) -> Tensor:
        base, new = soft_value(input), soft_value(value)
        if not base.is_floating_point():
            empty, base = attached(base, "_empty"), base.to(torch.get_default_dtype())
            if empty:
                attach(base, "_empty", True)
        result: Tensor = write(base, new, index)
        return result

    late = lazy(compute, input, value, index)
    return late if hard.dtype == torch.bool else Integer(expected=late)
