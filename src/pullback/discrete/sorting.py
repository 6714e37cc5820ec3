"""Sort, argsort, rank and top-k with a gradient: torch's signatures, six methods, three of them in four degrees of
smoothness (``methods.py`` has their table).

At one temperature the methods differ in what they average:

* ``"softsort"``: place i takes the mean of the items weighted by ``exp(-|x_(i) - x_j| / t)``. O(n log n).
* ``"neuralsort"``: weights that fall quadratically in the number of places between. O(n^1.5) for spread values.
* ``"sinkhorn"``: the doubly stochastic form of softsort, an entropic transport plan. O(n log n).
* ``"network"``: a bitonic network of soft swaps (Cauchy), steepness ``1 / t``. O(n log^2 n).
* ``"isotonic"``: projection onto the permutahedron, exact pooling of neighbours. O(n log n), no matrix.
* ``"isotonic_kl"``: the same with the Kullback-Leibler divergence in place of the Euclidean distance: values pool by
  ``-log(mean(exp(-x)))``, ranks (from 1) by geometric shares of their sum, so that they stay positive. No matrix.
* ``"softsort_c0"``, ``"softsort_c1"``, ``"softsort_c2"`` and ``"neuralsort_c0"``, ..: rows by alpha-entmax, with alpha
  2, 3/2, 4/3, in place of softmax. ``"network_c0"``, ..: the linear, cubic, quintic step. What is farther from a place
  than some temperatures has weight exactly 0, and no gradient; in the plain forms all have some. With ``c0`` weights
  are continuous in the distances, with ``c1`` once, with ``c2`` twice continuously differentiable; the plain forms are
  smooth. (At ties softsort and neuralsort have kinks in every form, networks none.) O(n^2) memory, networks' values
  O(n).

``t = temperature * std(x)`` along ``dim`` (over the finite entries, population form, 1 where all are equal), so that
results depend neither on the units nor on the size of the input; ``scale=None`` makes the temperature absolute. For
the isotonic methods it is relative to the spread of the places as well: at 1 evenly spread values are about to pool.

References:
    Prillo, Eisenschlos (2020), SoftSort. Grover, Wang, Zweig, Ermon (2019), Stochastic optimization of sorting networks
    via continuous relaxations. Cuturi, Teboul, Vert (2019), Differentiable ranks and sorting using optimal transport.
    Petersen, Borgelt, Kuehne, Deussen (2022), Monotonic differentiable sorting networks. Blondel, Teboul, Berthet,
    Djolonga (2020), Fast differentiable sorting and ranking. Peters, Niculae, Martins (2019), Sparse
    sequence-to-sequence models, for the sparse rows.
"""

from __future__ import annotations

import torch

from pullback.core.checks import check_floating, check_integer
from pullback.core.gradients import replace_gradient
from pullback.core.shapes import Float, Scalar, Tensor
from pullback.discrete.request import Request
from pullback.discrete.result import Sorted

__all__ = ["argsort", "permutation_matrix", "rank", "sort", "sort_by", "topk"]


def sort(
    x: Float[Tensor, "*shape"],
    dim: int = -1,
    descending: bool = False,
    *,
    method: str = "softsort",
    temperature: Scalar = 0.1,
    scale: str | None = "std",
    hard: bool = False,
    carry: Tensor | None = None,
) -> Sorted:
    """Sort along ``dim`` with a gradient: the values ``P x`` of a relaxed permutation ``P``.

    Args:
        x: ``[*shape]`` floating; ``+-inf`` sort to the ends and take no part in the rest. Ties share their weights.
        dim: the dimension to sort.
        descending: largest first.
        method: ``"softsort"``, ``"neuralsort"``, ``"sinkhorn"``, ``"network"``, ``"isotonic"``, ``"isotonic_kl"``, or
            one of limited smoothness, such as ``"softsort_c1"`` (see the module).
        temperature: >= 0, in units of the spread of ``x`` along ``dim``, a number or a differentiable tensor without
            dimensions; 0 is ``torch.sort`` with its own gradient.
        scale: ``"std"`` (the standard deviation is part of the differentiated function), or ``None`` for an absolute
            temperature.
        hard: return ``torch.sort``'s values (and payload), bit for bit, with the gradient of the relaxation.
        carry: ``[*shape, ...]`` floating payload to bring into the same order; not with the isotonic methods.

    Returns:
        :class:`Sorted`: ``values``, ``indices`` (hard, int64), ``permutation [*batch, n, n]`` and ``carried``. Only
        reading ``permutation`` forms a matrix.

    Raises:
        TypeError: ``x`` or ``carry`` is not a floating tensor.
        IndexError: ``dim`` is out of range.
        ValueError: NaN in ``x``, ``temperature`` < 0 or with dimensions, unknown ``method`` or ``scale``, ``carry`` of
            another shape or with a method that has no matrix.

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
    request = Request.of(
        x, dim, method=method, temperature=temperature, scale=scale, needed="values" if carry is None else "carried"
    )
    return _sorted(request, descending, hard, carry)


def argsort(
    x: Float[Tensor, "*shape"],
    dim: int = -1,
    descending: bool = False,
    *,
    method: str = "softsort",
    temperature: Scalar = 0.1,
    scale: str | None = "std",
    places: tuple[int, int] | None = None,
    hard: bool = False,
) -> Float[Tensor, "*batch places n"]:
    """Return the relaxed permutation matrix of ``argsort``: row = place, column = item, ``dim`` moved to the end.

    Rows sum to 1; with ``"sinkhorn"`` and ``"network"`` so do columns. The matrix takes O(n^2) memory, that of k places
    O(k n).

    Args:
        x, dim, descending, temperature, scale: as in :func:`sort`; at temperature 0 the gradient is 0.
        method: all but the isotonic ones, which have no matrix.
        places: ``(first, end)``, ``0 <= first <= end <= n``: form only these rows; all by default.
        hard: return the permutation matrix of ``torch.argsort`` with the gradient of the relaxation.

    Returns:
        ``[*batch, n, n]``; ``argsort(x) @ x`` are the soft-sorted values. With ``places`` ``[*batch, end - first, n]``.

    Raises:
        TypeError, IndexError, ValueError: as in :func:`sort`, or ``places`` are out of range.

    Example:
        >>> argsort(torch.tensor([3.0, 1.0]), hard=True).tolist()
        [[0.0, 1.0], [1.0, 0.0]]

    References:
        Prillo, Eisenschlos (2020), SoftSort, eq. 4.
    """
    request = Request.of(x, dim, method=method, temperature=temperature, scale=scale, needed="matrix")
    if places is None:
        return request.rows(descending=descending, hard=hard)
    if not isinstance(places, tuple) or len(places) != 2:
        raise ValueError(f"places must be two integers, got {places!r}")
    end = check_integer("places[1]", places[1], 0, request.size)
    first = check_integer("places[0]", places[0], 0, end)
    return request.rows(first, end, descending=descending, hard=hard)


def permutation_matrix(
    x: Float[Tensor, "*batch n"],
    *,
    method: str = "softsort",
    temperature: Scalar = 0.1,
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
    temperature: Scalar = 0.1,
    scale: str | None = "std",
    hard: bool = False,
) -> Float[Tensor, "*shape"]:
    """Return the soft place of every entry along ``dim``, from 0: the relaxation of ``argsort(argsort(x))``.

    Tied entries share the mean of their places. The ranks of ``"sinkhorn"``, ``"network"`` and the isotonic methods sum
    to ``n (n - 1) / 2`` at every temperature, so their sum has gradient 0. Those of the isotonic methods have a slope
    only where neighbours pool: they train at temperatures of about 1 and above.

    Args:
        x, dim, descending, temperature, scale: as in :func:`sort`; at temperature 0 the gradient is 0.
        method: as in :func:`sort`; those of limited smoothness and the networks take O(n^2) memory, the others O(n).
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
    request = Request.of(x, dim, method=method, temperature=temperature, scale=scale)
    if request.is_hard:
        return request.back(replace_gradient(_hard_ranks(request, descending), torch.sign(request.last)))
    ranks = request.ranks()
    if descending:
        ranks = (request.size - 1) - ranks
    return request.back(replace_gradient(_hard_ranks(request, descending), ranks) if hard else ranks)


def topk(
    x: Float[Tensor, "*shape"],
    k: int,
    dim: int = -1,
    largest: bool = True,
    *,
    method: str = "softsort",
    temperature: Scalar = 0.1,
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
    request = Request.of(x, dim, method=method, temperature=temperature, scale=scale)
    check_integer("k", k, 0, request.size)
    ordered = _sorted(request, largest, hard)

    def first(t: Tensor, at: int) -> Tensor:
        return t.narrow(at, 0, k) if x.ndim else t

    return Sorted(
        first(ordered.values, dim),
        lambda: first(ordered.indices, dim),
        lambda: request.rows(0, k, descending=largest, hard=hard),
    )


def sort_by(
    key: Float[Tensor, "*shape"],
    values: Float[Tensor, "*shape_and_features"],
    dim: int = -1,
    descending: bool = False,
    *,
    method: str = "softsort",
    temperature: Scalar = 0.1,
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
    request = Request.of(
        key, dim, method=method, temperature=temperature, scale=scale, needed="carried", argument="key"
    )
    _check_payload("values", values, request)
    return _carried(request, values, descending, hard)


def _sorted(request: Request, descending: bool, hard: bool, carry: Tensor | None = None) -> Sorted:
    if carry is not None:
        _check_payload("carry", carry, request)
    return Sorted(
        request.back(request.values(descending, hard)),
        lambda: request.back(request.indices(descending)),
        lambda: request.rows(descending=descending, hard=hard),
        None if carry is None else _carried(request, carry, descending, hard),
    )


def _hard_ranks(request: Request, descending: bool) -> Tensor:
    """Return ``[*batch, n]``: the place of each item in the hard order."""
    last = request.last.detach()
    places = torch.arange(request.size, dtype=last.dtype, device=last.device).expand_as(last)
    return torch.zeros_like(last).scatter(-1, request.indices(descending), places)


def _check_payload(name: str, payload: Tensor, request: Request) -> None:
    check_floating(name, payload)
    shape = request.shape
    if payload.shape[: len(shape)] != shape:
        raise ValueError(
            f"{name} must have the shape of the keys {tuple(shape)}, then features, got {tuple(payload.shape)}"
        )
    wide = request.last.dtype
    if torch.promote_types(wide, payload.dtype) != wide:
        raise TypeError(f"{name} must not be of higher precision than the keys ({request.dtype}), got {payload.dtype}")


def _carried(request: Request, carry: Tensor, descending: bool, hard: bool) -> Tensor:
    """Return the payload in the order of the keys."""
    last, ndim = request.last, len(request.shape)
    at = 0 if request.dim is None else request.dim
    features = carry.shape[ndim:]
    # [*batch, n, *features] -> [*batch, c, n]
    moved = carry.movedim(at, ndim - 1) if ndim else carry.unsqueeze(0)
    flat = moved.reshape(*last.shape, features.numel()).transpose(-1, -2)

    def back(ordered: Tensor) -> Tensor:
        unflat = ordered.transpose(-1, -2).reshape(*last.shape, *features)
        return (unflat.movedim(ndim - 1, at) if ndim else unflat.squeeze(0)).to(carry.dtype)

    exact = None
    if hard or request.is_hard:
        exact = back(flat.gather(-1, request.indices(descending).unsqueeze(-2).expand_as(flat)))
        if request.is_hard:
            return exact
    assert request.method.carried is not None
    ordered = request.method.carried(request.sorted, flat.to(request.sorted.x.dtype))
    soft = back(ordered.flip(-1) if descending else ordered)
    return soft if exact is None else replace_gradient(exact.detach(), soft)
