"""Sort, argsort, rank and top-k with a gradient: torch's signatures, five methods.

At one temperature the methods differ in what they average:

* ``"softsort"``: place i takes the mean of the items weighted by ``exp(-|x_(i) - x_j| / t)``. O(n log n).
* ``"neuralsort"``: weights that fall quadratically in the number of places between. O(n^1.5) for spread values.
* ``"sinkhorn"``: the doubly stochastic form of softsort, an entropic transport plan. O(n log n).
* ``"network"``: a bitonic network of soft swaps (Cauchy), steepness ``1 / t``. O(n log^2 n).
* ``"isotonic"``: projection onto the permutahedron, exact pooling of neighbours. O(n log n), no matrix.

``t = temperature * std(x)`` along ``dim`` (over the finite entries, population form, 1 where all are equal), so that
results depend neither on the units nor on the size of the input; ``scale=None`` makes the temperature absolute. For
``"isotonic"`` it is relative to the spread of the places as well: at 1 evenly spread values are about to pool.

References:
    Prillo, Eisenschlos (2020), SoftSort. Grover, Wang, Zweig, Ermon (2019), Stochastic optimization of sorting networks
    via continuous relaxations. Cuturi, Teboul, Vert (2019), Differentiable ranks and sorting using optimal transport.
    Petersen, Borgelt, Kuehne, Deussen (2022), Monotonic differentiable sorting networks. Blondel, Teboul, Berthet,
    Djolonga (2020), Fast differentiable sorting and ranking.
"""

from __future__ import annotations

from functools import cache

import torch

from pullback.core.checks import check_choice, check_floating, check_integer
from pullback.core.gradients import replace_gradient
from pullback.core.shapes import Float, Tensor
from pullback.discrete.direct import direct
from pullback.discrete.result import Sorted
from pullback.discrete.sorted_input import (
    ALL,
    WITH_MATRIX,
    SortedInput,
    check_scale,
    hard_requested,
    has_infinities,
    place_last,
)

__all__ = ["argsort", "permutation_matrix", "rank", "sort", "sort_by", "topk"]


def sort(
    x: Float[Tensor, "*shape"],
    dim: int = -1,
    descending: bool = False,
    *,
    method: str = "softsort",
    temperature: float = 0.1,
    scale: str | None = "std",
    hard: bool = False,
    carry: Tensor | None = None,
) -> Sorted:
    """Sort along ``dim`` with a gradient: the values ``P x`` of a relaxed permutation ``P``.

    Args:
        x: ``[*shape]`` floating; ``+-inf`` sort to the ends and take no part in the rest. Ties share their weights.
        dim: the dimension to sort.
        descending: largest first.
        method: ``"softsort"``, ``"neuralsort"``, ``"sinkhorn"``, ``"network"`` or ``"isotonic"`` (see the module).
        temperature: >= 0, in units of the spread of ``x`` along ``dim``; 0 is ``torch.sort`` with its own gradient.
        scale: ``"std"`` (the standard deviation is part of the differentiated function), or ``None`` for an absolute
            temperature.
        hard: return ``torch.sort``'s values (and payload), bit for bit, with the gradient of the relaxation.
        carry: ``[*shape, ...]`` floating payload to bring into the same order; not with ``"isotonic"``.

    Returns:
        :class:`Sorted`: ``values``, ``indices`` (hard, int64), ``permutation [*batch, n, n]`` and ``carried``. Only
        reading ``permutation`` forms a matrix.

    Raises:
        TypeError: ``x`` or ``carry`` is not a floating tensor.
        IndexError: ``dim`` is out of range.
        ValueError: NaN in ``x``, ``temperature`` < 0, unknown ``method`` or ``scale``, ``carry`` of another shape or
            with a method that has no matrix.

    Example:
        >>> x = torch.tensor([3.0, 1.0, 2.0], requires_grad=True)
        >>> values, indices = sort(x, temperature=0.1, hard=True)
        >>> values.tolist(), indices.tolist()
        ([1.0, 2.0, 3.0], [1, 2, 0])
        >>> sort(x, method="isotonic").values.tolist()
        [1.0, 2.0, 3.0]

    References:
        See the module's docstring, one source a method.
    """
    check_choice("method", method, ALL if carry is None else WITH_MATRIX)
    if carry is not None:
        _check_payload("carry", carry, x)
    if hard_requested(temperature, check_floating("x", x).dtype):
        return _hard_sort(x, dim, descending, carry)

    @cache
    def prepared() -> SortedInput:
        return SortedInput.of(x, dim, method=method, allowed=ALL, temperature=temperature, scale=scale)

    check_scale(scale)
    last = place_last(x, dim, temperature)
    ascending = direct(last, method, temperature, scale is not None, lambda x: _composed(x, temperature, scale, method))
    if ascending is None:
        ascending = prepared().values(method)
    values = _back(_direct(ascending, descending), x, dim)
    carried = None if carry is None else _carried(prepared(), carry, x, dim, descending, method)
    if hard:
        exact = _hard_sort(x.detach(), dim, descending, None if carry is None else carry.detach())
        values = replace_gradient(exact.values, values)
        if carried is not None and exact.carried is not None:
            carried = replace_gradient(exact.carried, carried)

    def permutation() -> Tensor:
        return _matrix(prepared(), x, dim, descending, method, hard)

    return Sorted(values, lambda: _hard_indices(x, dim, descending), permutation, carried)


def argsort(
    x: Float[Tensor, "*shape"],
    dim: int = -1,
    descending: bool = False,
    *,
    method: str = "softsort",
    temperature: float = 0.1,
    scale: str | None = "std",
    hard: bool = False,
) -> Float[Tensor, "*batch n n"]:
    """Return the relaxed permutation matrix of ``argsort``: row = place, column = item, ``dim`` moved to the end.

    Rows sum to 1; with ``"sinkhorn"`` and ``"network"`` so do columns. The matrix takes O(n^2) memory.

    Args:
        x, dim, descending, temperature, scale: as in :func:`sort`; at temperature 0 the gradient is 0.
        method: all but ``"isotonic"``, which has no matrix.
        hard: return the permutation matrix of ``torch.argsort`` with the gradient of the relaxation.

    Returns:
        ``[*batch, n, n]``; ``argsort(x) @ x`` are the soft-sorted values.

    Raises:
        TypeError, IndexError, ValueError: as in :func:`sort`.

    Example:
        >>> argsort(torch.tensor([3.0, 1.0]), hard=True).tolist()
        [[0.0, 1.0], [1.0, 0.0]]

    References:
        Prillo, Eisenschlos (2020), SoftSort, eq. 4.
    """
    check_choice("method", method, WITH_MATRIX)
    if hard_requested(temperature, check_floating("x", x).dtype):
        last = place_last(x, dim, temperature)
        has_infinities(last)
        exact = _one_hot(_hard_indices(last, -1, descending), x)
        return replace_gradient(exact, torch.sign(last).to(x.dtype).unsqueeze(-2).expand_as(exact))
    o = SortedInput.of(x, dim, method=method, allowed=WITH_MATRIX, temperature=temperature, scale=scale)
    return _matrix(o, x, dim, descending, method, hard)


def permutation_matrix(
    x: Float[Tensor, "*batch n"],
    *,
    method: str = "softsort",
    temperature: float = 0.1,
    scale: str | None = "std",
    hard: bool = False,
) -> Float[Tensor, "*batch n n"]:
    """Return :func:`argsort` of the last dimension, ascending: the matrix ``P`` with ``P x`` sorted.

    Args:
        x, method, temperature, scale, hard: as in :func:`argsort`.

    Returns:
        ``[*batch, n, n]`` row = place, column = item.

    Raises:
        TypeError, ValueError: as in :func:`sort`.

    Example:
        >>> p = permutation_matrix(torch.tensor([2.0, 0.0, 1.0]), method="sinkhorn", temperature=0.01)
        >>> p.round().tolist()
        [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    return argsort(x, method=method, temperature=temperature, scale=scale, hard=hard)


def rank(
    x: Float[Tensor, "*shape"],
    dim: int = -1,
    descending: bool = False,
    *,
    method: str = "softsort",
    temperature: float = 0.1,
    scale: str | None = "std",
    hard: bool = False,
) -> Float[Tensor, "*shape"]:
    """Return the soft place of every entry along ``dim``, from 0: the relaxation of ``argsort(argsort(x))``.

    Tied entries share the mean of their places. The ranks of ``"sinkhorn"``, ``"network"`` and ``"isotonic"`` sum to
    ``n (n - 1) / 2`` at every temperature, so their sum has gradient 0. Those of ``"isotonic"`` have a slope only where
    neighbours pool: it trains at temperatures of about 1 and above.

    Args:
        x, dim, descending, temperature, scale: as in :func:`sort`; at temperature 0 the gradient is 0.
        method: any of the five; all but ``"network"`` take O(n) memory.
        hard: return the hard ranks (ties in the order of the items) with the gradient of the relaxation.

    Returns:
        ``[*shape]`` of the dtype of ``x``.

    Raises:
        TypeError, IndexError, ValueError: as in :func:`sort`.

    Example:
        >>> rank(torch.tensor([0.3, -1.0, 2.0]), temperature=0.01).round().tolist()
        [1.0, 0.0, 2.0]
        >>> rank(torch.tensor([5.0, 5.0])).tolist()
        [0.5, 0.5]

    References:
        Blondel, Teboul, Berthet, Djolonga (2020), eq. 7, for ``"isotonic"``; Cuturi, Teboul, Vert (2019), eq. 6, for
        ``"sinkhorn"``.
    """
    check_choice("method", method, ALL)
    if hard_requested(temperature, check_floating("x", x).dtype):
        last = place_last(x, dim, temperature)
        has_infinities(last)
        return replace_gradient(_back(_hard_ranks(last.detach(), descending), x, dim), torch.sign(x))
    check_scale(scale)
    last = place_last(x, dim, temperature)

    def composed(last: Tensor) -> Tensor:
        o = SortedInput.of(last, -1, method=method, allowed=ALL, temperature=temperature, scale=scale)
        return o.ranks(method)

    ranks = direct(last, method, temperature, scale is not None, composed, ranks=True)
    if ranks is None:
        ranks = composed(last)
    if descending:
        ranks = (ranks.shape[-1] - 1) - ranks
    ranks = _back(ranks, x, dim)
    return replace_gradient(_back(_hard_ranks(last.detach(), descending), x, dim), ranks) if hard else ranks


def topk(
    x: Float[Tensor, "*shape"],
    k: int,
    dim: int = -1,
    largest: bool = True,
    *,
    method: str = "softsort",
    temperature: float = 0.1,
    scale: str | None = "std",
    hard: bool = False,
) -> Sorted:
    """Return the ``k`` largest (or smallest) entries along ``dim``, the most extreme first: the first places of a sort.

    Args:
        x, dim, method, temperature, scale, hard: as in :func:`sort`.
        k: 0 <= k <= n.
        largest: the largest entries, descending; else the smallest, ascending.

    Returns:
        :class:`Sorted` with ``values`` and ``indices`` of size k along ``dim`` and ``permutation [*batch, k, n]``.

    Raises:
        TypeError, IndexError, ValueError: as in :func:`sort`, or ``k`` is out of range.

    Example:
        >>> values, indices = topk(torch.tensor([1.0, 5.0, 3.0]), 2, hard=True)
        >>> values.tolist(), indices.tolist()
        ([5.0, 3.0], [1, 2])
    """
    check_choice("method", method, ALL)
    n = place_last(x, dim, temperature).shape[-1]
    check_integer("k", k, 0, n)
    ordered = sort(x, dim, largest, method=method, temperature=temperature, scale=scale, hard=hard)

    def first(t: Tensor, at: int) -> Tensor:
        return t.narrow(at, 0, k) if x.ndim else t

    return Sorted(
        first(ordered.values, dim),
        lambda: first(ordered.indices, dim),
        lambda: first(ordered.permutation, -2),
    )


def sort_by(
    key: Float[Tensor, "*shape"],
    values: Float[Tensor, "*shape_and_features"],
    dim: int = -1,
    descending: bool = False,
    *,
    method: str = "softsort",
    temperature: float = 0.1,
    scale: str | None = "std",
    hard: bool = False,
) -> Float[Tensor, "*shape_and_features"]:
    """Return ``values`` in the soft order of ``key``; gradients flow into both.

    Args:
        key: ``[*shape]`` what is compared.
        values: ``[*shape, ...]`` what is brought along; trailing dimensions are features of an item.
        dim: the dimension of ``key`` to sort.
        descending, method, temperature, scale, hard: as in :func:`sort` with ``carry``.

    Returns:
        A tensor of the shape of ``values``.

    Raises:
        TypeError, IndexError, ValueError: as in :func:`sort`.

    Example:
        >>> sort_by(torch.tensor([2.0, 1.0]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]), hard=True).tolist()
        [[3.0, 4.0], [1.0, 2.0]]
    """
    check_floating("key", key)
    _check_payload("values", values, key)
    ordered = sort(
        key, dim, descending, method=method, temperature=temperature, scale=scale, hard=hard, carry=values
    ).carried
    assert ordered is not None
    return ordered


def _check_payload(name: str, payload: Tensor, x: Tensor) -> None:
    if not isinstance(payload, Tensor) or not payload.is_floating_point():
        came = payload.dtype if isinstance(payload, Tensor) else type(payload).__name__
        raise TypeError(f"{name} must be a floating tensor, got {came}")
    if payload.shape[: x.ndim] != x.shape:
        raise ValueError(
            f"{name} must have the shape of the keys {tuple(x.shape)}, then features, got {tuple(payload.shape)}"
        )


def _composed(last: Tensor, temperature: float, scale: str | None, method: str) -> Tensor:
    return SortedInput.of(last, -1, method=method, allowed=ALL, temperature=temperature, scale=scale).values(method)


def _direct(ascending: Tensor, descending: bool) -> Tensor:
    return ascending.flip(-1) if descending else ascending


def _back(last: Tensor, x: Tensor, dim: int) -> Tensor:
    """Return a result ``[*batch, n]`` in the layout and dtype of ``x``."""
    last = last.to(x.dtype)
    if x.ndim == 0:
        return last.squeeze(0)
    return last if dim in (-1, x.ndim - 1) else last.movedim(-1, dim)


def _hard_indices(x: Tensor, dim: int, descending: bool) -> Tensor:
    if x.ndim == 0:
        return torch.zeros_like(x, dtype=torch.int64)
    return torch.sort(x.detach(), dim=dim, descending=descending, stable=True).indices


def _hard_sort(x: Tensor, dim: int, descending: bool, carry: Tensor | None) -> Sorted:
    last = place_last(x, dim, 0.0)
    has_infinities(last)
    if x.ndim == 0:
        return Sorted(x.clone(), torch.zeros_like(x, dtype=torch.int64), torch.ones_like(x).view(1, 1), carry)
    values, indices = torch.sort(x, dim=dim, descending=descending, stable=True)
    carried = None
    if carry is not None:
        index = indices.reshape(*indices.shape, *[1] * (carry.ndim - x.ndim)).expand_as(carry)
        carried = carry.gather(dim % x.ndim, index)
    return Sorted(values, indices, lambda: _one_hot(indices.movedim(dim, -1), x), carried)


def _hard_ranks(last: Tensor, descending: bool) -> Tensor:
    order = _hard_indices(last, -1, descending)
    places = torch.arange(last.shape[-1], dtype=last.dtype, device=last.device).expand_as(last)
    return torch.zeros_like(last).scatter(-1, order, places)


def _one_hot(indices: Tensor, x: Tensor) -> Tensor:
    return (
        torch.nn.functional.one_hot(indices, indices.shape[-1]).to(x.dtype)
        if indices.numel()
        else (indices.unsqueeze(-1).expand(*indices.shape, indices.shape[-1]).to(x.dtype))
    )


def _matrix(o: SortedInput, x: Tensor, dim: int, descending: bool, method: str, hard: bool) -> Tensor:
    check_choice("method", method, WITH_MATRIX)
    p = o.matrix(method)
    p = (p.flip(-2) if descending else p).to(x.dtype)
    return replace_gradient(_one_hot(_hard_indices(o.x, -1, descending), x), p) if hard else p


def _carried(o: SortedInput, carry: Tensor, x: Tensor, dim: int, descending: bool, method: str) -> Tensor:
    at = dim % max(x.ndim, 1)
    features = carry.shape[x.ndim :]
    wide = torch.promote_types(o.x.dtype, carry.dtype)
    # [*batch, n, *features] -> [*batch, c, n]
    moved = carry.unsqueeze(0) if x.ndim == 0 else carry.movedim(at, x.ndim - 1)
    flat = moved.reshape(*o.x.shape, features.numel()).transpose(-1, -2).to(wide)
    if wide != o.x.dtype:
        raise TypeError(f"carry must not be of higher precision than x ({x.dtype}), got {carry.dtype}")
    ordered = _direct(o.carried(flat, method), descending).transpose(-1, -2).reshape(*o.x.shape, *features)
    ordered = ordered.squeeze(0) if x.ndim == 0 else ordered.movedim(x.ndim - 1, at)
    return ordered.to(carry.dtype)
