"""Choosing with a gradient: the value at an argmax, the row of a table, an entry at a fractional index.

An index becomes a distribution over positions, and a lookup its mean: with ``hard=True`` the value is that of the plain
lookup, bit for bit, and the gradient that of the mean. Every lookup by a fractional index takes the ``method``,
``temperature`` and ``hard`` of :func:`one_hot`; an index outside the table is held at its ends, NaN gives NaN.
"""

from __future__ import annotations

import torch

from pullback.core.checks import check_choice, check_dim, check_floating, check_integer, check_tensor
from pullback.core.gradients import replace_gradient
from pullback.core.shapes import Float, Scalar, Tensor
from pullback.discrete.softness import broadcast, is_hard, softmax, widen
from pullback.discrete.value_state import value_state

__all__ = ["choose", "embedding", "gather", "index_select", "lookup", "one_hot", "take", "take_along_dim"]

KERNELS = ("softmax", "linear")
_MOST_CLASSES = 2**31  # over more, the distribution of one index would take over 8 GiB


def choose(
    scores: Float[Tensor, "*batch n"],
    values: Float[Tensor, "..."],
    *,
    features: int = 0,
    temperature: Scalar = 0.1,
    hard: bool = False,
) -> Float[Tensor, "..."]:
    r"""Return the value of the best score: ``sum_k softmax(scores / temperature)_k values_k``.

    It stands for ``values[scores.argmax()]`` and sends a gradient to both: to the values as they are chosen, to the
    scores by how much a value differs from the mean.

    Args:
        scores: ``[*batch, n]``; ``-inf`` is never chosen.
        values: ``[*batch, n, *features]``, broadcast with the scores.
        features: how many trailing dimensions of ``values`` belong to one value.
        temperature: in units of the scores, >= 0, a number or a differentiable tensor without dimensions; 0 chooses
            hard, the scores get gradient 0.
        hard: return the chosen value, bit for bit, with the gradient of the mean. (The first of equal scores.)

    Returns:
        ``[*batch, *features]``.

    Raises:
        TypeError: ``scores`` or ``values`` is not a floating tensor.
        ValueError: there is nothing to choose from, ``features`` does not fit ``values``, the batches do not broadcast,
            ``temperature`` is negative, not finite or has dimensions.

    Example:
        >>> scores = torch.tensor([0.0, 2.0, 1.0], requires_grad=True)
        >>> chosen = choose(scores, torch.tensor([10.0, 20.0, 30.0]), temperature=1.0, hard=True)
        >>> chosen.backward()
        >>> chosen.item(), scores.grad.tolist()[2] > 0
        (20.0, True)
    """
    check_floating("scores", scores)
    check_floating("values", values)
    check_integer("features", features, 0, max(values.ndim, 1) - 1)
    if not scores.ndim or not values.ndim or scores.shape[-1] != values.shape[values.ndim - features - 1]:
        raise ValueError(f"scores and values must agree in n, got {tuple(scores.shape)} and {tuple(values.shape)}")
    broadcast(scores=scores, values=values.shape[: values.ndim - features])
    if not scores.shape[-1]:
        raise ValueError(f"scores must have at least one entry, got shape {tuple(scores.shape)}")
    wide = widen(scores)
    frozen = is_hard(temperature, wide.dtype)
    dtype = torch.result_type(scores, values)

    def mean(weights: Tensor) -> Tensor:
        weights = weights.reshape(*weights.shape, *[1] * features)
        table = widen(values)
        ignored = (weights == 0) & ~torch.isfinite(table)
        return (weights * torch.where(ignored, 0.0, table)).sum(-1 - features).to(dtype)

    def exact() -> Tensor:
        batch = torch.broadcast_shapes(scores.shape, values.shape[: values.ndim - features])
        tail = values.shape[values.ndim - features :]
        index = scores.argmax(-1, keepdim=True).expand(*batch[:-1], 1).reshape(*batch[:-1], 1, *[1] * features)
        chosen = values.expand(*batch, *tail).gather(len(batch) - 1, index.expand(*batch[:-1], 1, *tail))
        return chosen.squeeze(len(batch) - 1).to(dtype)

    if frozen:
        chosen = exact()
        # A path to the scores on which only zeros flow; a sum with it would turn -0.0 into 0.0.
        connection = torch.sign(wide).sum(-1).reshape((*scores.shape[:-1], *[1] * features)).to(dtype)
        return replace_gradient(chosen.detach(), chosen + connection)
    top = wide.detach().amax(-1, keepdim=True)
    tied = wide.isinf() & (wide == top)
    # Infinite scores: only the largest are chosen from, equally.
    shifted = torch.where(tied, 0.0, torch.where(tied, 0.0, wide) - torch.where(tied, 0.0, top))
    soft = mean(softmax(shifted, -1, temperature))
    return replace_gradient(exact().detach(), soft) if hard else soft


def lookup(weights: Float[Tensor, "*batch n"], table: Float[Tensor, "n *features"]) -> Float[Tensor, "..."]:
    """Return the mean row of a table under a distribution over its rows: ``weights @ table``.

    Args:
        weights: ``[*batch, n]`` distributions (a softmax, a Gumbel-softmax sample, a row of a permutation).
        table: ``[n, *features]``, differentiable too. Infinite and NaN entries do not matter where a weight is exactly
            0; a table that has such (or is seen by ``torch.compile``) takes O(batch n features) memory.

    Returns:
        ``[*batch, *features]``.

    Raises:
        TypeError: ``weights`` or ``table`` is not a floating tensor.
        ValueError: they do not agree in ``n``.

    Example:
        >>> lookup(torch.tensor([0.5, 0.5, 0.0]), torch.tensor([[0.0, 2.0], [4.0, 4.0], [9.0, 9.0]]))
        tensor([2., 3.])
    """
    check_floating("weights", weights)
    check_floating("table", table)
    if not weights.ndim or not table.ndim or weights.shape[-1] != table.shape[0]:
        raise ValueError(f"weights and table must agree in n, got {tuple(weights.shape)} and {tuple(table.shape)}")
    dtype = torch.promote_types(weights.dtype, table.dtype)
    a, b = widen(weights), widen(table)
    wide = torch.promote_types(a.dtype, b.dtype)
    a, b = a.to(wide), b.to(wide)
    if not value_state(b).infinite:
        return torch.tensordot(a, b, dims=1).to(dtype)
    rows = a.reshape(*a.shape, *[1] * (b.ndim - 1))
    ignored = (rows == 0) & ~torch.isfinite(b)
    return (rows * torch.where(ignored, 0.0, b)).sum(a.ndim - 1).to(dtype)


def one_hot(
    index: Float[Tensor, "*shape"],
    num_classes: int,
    *,
    method: str = "softmax",
    temperature: Scalar = 0.5,
    hard: bool = False,
) -> Float[Tensor, "*shape n"]:
    r"""Return a distribution over the classes ``0..n-1`` around a fractional index.

    .. math:: \text{softmax: } \mathrm{softmax}_k\big(-2 (k - i)^2 / t\big), \qquad
        \text{linear: } \max(1 - |k - i|, 0)

    Softmax is smooth in the index; between two classes it is a logistic step of width ``t``. Linear interpolation is
    exact at the integers at every temperature; at an integer its derivative is the one to the right.

    Args:
        index: ``[*shape]`` floating; it is held within ``[-1/2, n - 1/2]`` (with gradient 0 outside), NaN gives NaN.
        num_classes: ``n`` >= 1.
        method: ``"softmax"`` or ``"linear"``.
        temperature: in units of the index, >= 0, a number or a differentiable tensor without dimensions; 0 is the
            one-hot of the nearest class with gradient 0.
        hard: return the one-hot of the nearest class, with the gradient of the relaxation.

    Returns:
        ``[*shape, n]``; rows sum to 1.

    Raises:
        TypeError: ``index`` is not a floating tensor (for integers there is ``torch.nn.functional.one_hot``).
        ValueError: ``num_classes`` or ``temperature`` is out of range or has dimensions, ``method`` is unknown.

    Example:
        >>> one_hot(torch.tensor([1.0, 1.25]), 3, method="linear")
        tensor([[0.0000, 1.0000, 0.0000],
                [0.0000, 0.7500, 0.2500]])
        >>> one_hot(torch.tensor(1.25), 3, hard=True)
        tensor([0., 1., 0.])
    """
    check_floating("index", index)
    check_choice("method", method, KERNELS)
    check_integer("num_classes", num_classes, 1)
    if num_classes > _MOST_CLASSES:
        raise ValueError(f"num_classes must be at most {_MOST_CLASSES}, got {num_classes}")
    wide = widen(index)
    frozen = is_hard(temperature, wide.dtype)
    classes = torch.arange(num_classes, dtype=wide.dtype, device=index.device)
    held = wide.clamp(-0.5, num_classes - 0.5).unsqueeze(-1)
    nearest = held.detach().round().clamp(0, num_classes - 1)
    exact = torch.where(nearest.isnan(), nearest, (nearest == classes).to(wide.dtype)).to(index.dtype)
    if frozen:
        return replace_gradient(exact, torch.sign(index).unsqueeze(-1).expand(exact.shape))
    if method == "softmax":
        soft = softmax(-2 * (classes - held).square(), -1, temperature)
    else:
        inside = held.clamp(0, num_classes - 1)
        below = inside.detach().floor().clamp(max=max(num_classes - 2, 0))
        part = inside - below
        soft = (classes == below) * (1 - part) + (classes == below + 1) * part
    soft = soft.to(index.dtype)
    return replace_gradient(exact, soft) if hard else soft


def take(
    x: Float[Tensor, "..."],
    index: Float[Tensor, "*shape"],
    *,
    method: str = "softmax",
    temperature: Scalar = 0.5,
    hard: bool = False,
) -> Float[Tensor, "*shape"]:
    """Return the entries of the flattened ``x`` at fractional indices, as ``torch.take`` does at integers.

    Args:
        x: any shape, not empty; differentiable too.
        index: ``[*shape]`` floating; below -1/2 it counts from the end, as in ``torch.take``.
        method, temperature, hard: as in :func:`one_hot`.

    Returns:
        ``[*shape]``.

    Raises:
        TypeError: ``x`` or ``index`` is not a floating tensor.
        ValueError: as :func:`one_hot`, or ``x`` is empty.

    Example:
        >>> take(torch.tensor([[0.0, 10.0], [20.0, 30.0]]), torch.tensor([0.5, 3.0]), method="linear")
        tensor([ 5., 30.])
    """
    flat = check_floating("x", x).reshape(-1)
    if not flat.numel():
        raise ValueError(f"x must have at least one entry, got shape {tuple(x.shape)}")
    index = torch.where(check_floating("index", index) < -0.5, index + flat.numel(), index)
    return embedding(index, flat, method=method, temperature=temperature, hard=hard)


def embedding(
    index: Float[Tensor, "*shape"],
    weight: Float[Tensor, "n *features"],
    *,
    method: str = "softmax",
    temperature: Scalar = 0.5,
    hard: bool = False,
) -> Float[Tensor, "..."]:
    """Return the rows of a table at fractional indices, as ``torch.nn.functional.embedding`` does at integers.

    Args:
        index: ``[*shape]`` floating. For a distribution over the rows see :func:`lookup`.
        weight: ``[n, *features]``, not empty; differentiable too.
        method, temperature, hard: as in :func:`one_hot`.

    Returns:
        ``[*shape, *features]``.

    Raises:
        TypeError: ``index`` or ``weight`` is not a floating tensor.
        ValueError: as :func:`one_hot`, or ``weight`` has no rows.

    Example:
        >>> embedding(torch.tensor([0.25]), torch.tensor([[0.0, 4.0], [4.0, 8.0]]), method="linear")
        tensor([[1., 5.]])
    """
    check_floating("weight", weight)
    if not weight.ndim or not weight.shape[0]:
        raise ValueError(f"weight must have at least one row, got shape {tuple(weight.shape)}")
    n = weight.shape[0]
    soft = lookup(one_hot(index, n, method=method, temperature=temperature), weight)
    if not hard:
        return soft
    exact = weight.detach()[_nearest(index, n)].to(soft.dtype)
    unknown = index.detach().isnan().reshape(index.shape + (1,) * (weight.ndim - 1))
    return replace_gradient(torch.where(unknown, torch.nan, exact), soft)


def index_select(
    x: Float[Tensor, "..."],
    dim: int,
    index: Float[Tensor, "*m"],
    *,
    method: str = "softmax",
    temperature: Scalar = 0.5,
    hard: bool = False,
) -> Float[Tensor, "..."]:
    """Return the slices of ``x`` at fractional indices along ``dim``, as ``torch.index_select`` does at integers.

    Args:
        x: not empty along ``dim``; differentiable too.
        dim: the dimension that is indexed.
        index: ``[m]`` floating, or ``[]``, which counts as one.
        method, temperature, hard: as in :func:`one_hot`.

    Returns:
        ``x`` with size ``m`` along ``dim``.

    Raises:
        IndexError: ``dim`` is out of range.
        TypeError: ``x`` or ``index`` is not a floating tensor.
        ValueError: as :func:`one_hot`, ``x`` is empty along ``dim``, or ``index`` has more than one dimension.

    Example:
        >>> index_select(torch.tensor([[0.0, 1.0, 2.0]]), 1, torch.tensor([0.5, 2.0]), method="linear")
        tensor([[0.5000, 2.0000]])
    """
    dim = check_dim(check_floating("x", x), dim)
    if check_floating("index", index).ndim > 1:
        raise ValueError(f"index must have at most one dimension, got shape {tuple(index.shape)}")
    if x.ndim and not x.shape[dim]:
        raise ValueError(f"x must have at least one entry along dimension {dim}, got shape {tuple(x.shape)}")
    rows = x.movedim(dim, 0) if x.ndim else x.reshape(1)
    chosen = embedding(index.reshape(-1), rows, method=method, temperature=temperature, hard=hard)
    return chosen.movedim(0, dim) if x.ndim or chosen.numel() != 1 else chosen.squeeze(0)


def take_along_dim(
    x: Float[Tensor, "..."],
    index: Float[Tensor, "..."],
    dim: int = -1,
    *,
    method: str = "softmax",
    temperature: Scalar = 0.5,
    hard: bool = False,
) -> Float[Tensor, "..."]:
    r"""Return the entries of ``x`` at fractional indices along ``dim``, as ``torch.take_along_dim`` does at integers.

    Forms the weights ``[..., m, n]`` of all ``m`` indices over the ``n`` entries.

    Args:
        x: ``[..., n, ...]``, not empty along ``dim``; differentiable too. Infinite and NaN entries do not matter where
            their weight is exactly 0.
        index: ``[..., m, ...]`` floating, of as many dimensions as ``x``, broadcast with it outside ``dim``.
        dim: the dimension that is indexed.
        method, temperature, hard: as in :func:`one_hot`.

    Returns:
        The broadcast shape, ``m`` along ``dim``.

    Raises:
        IndexError: ``dim`` is out of range.
        TypeError: ``x`` or ``index`` is not a floating tensor.
        ValueError: as :func:`one_hot`, the numbers of dimensions differ, the shapes do not broadcast outside ``dim``,
            or ``x`` is empty along ``dim``.

    Example:
        >>> take_along_dim(torch.tensor([[0.0, 1.0], [4.0, 8.0]]), torch.tensor([[0.5], [1.0]]), method="linear")
        tensor([[0.5000],
                [8.0000]])
    """
    dim = check_dim(check_floating("x", x), dim)
    if check_tensor("index", index).ndim != x.ndim:
        raise ValueError(f"index must have as many dimensions as x, got {tuple(index.shape)} and {tuple(x.shape)}")
    if not x.ndim or not x.shape[dim]:
        raise ValueError(f"x must have at least one entry along dimension {dim}, got shape {tuple(x.shape)}")
    broadcast(x=x.shape[:dim] + x.shape[dim + 1 :], index=index.shape[:dim] + index.shape[dim + 1 :])
    n = x.shape[dim]
    weights = widen(one_hot(index.movedim(dim, -1), n, method=method, temperature=temperature))
    rows = widen(x).movedim(dim, -1).unsqueeze(-2)
    ignored = (weights == 0) & ~torch.isfinite(rows)
    mean = (weights * torch.where(ignored, 0.0, rows)).sum(-1)
    soft = mean.movedim(-1, dim).to(torch.promote_types(x.dtype, index.dtype))
    if not hard:
        return soft
    exact = torch.take_along_dim(x.detach(), _nearest(index, n), dim).to(soft.dtype)
    return replace_gradient(torch.where(index.detach().isnan(), torch.nan, exact), soft)


def gather(
    x: Float[Tensor, "..."],
    dim: int,
    index: Float[Tensor, "..."],
    *,
    method: str = "softmax",
    temperature: Scalar = 0.5,
    hard: bool = False,
) -> Float[Tensor, "..."]:
    """Return :func:`take_along_dim` in the argument order of ``torch.gather``.

    As in torch the index may be smaller than ``x`` outside ``dim``; then the leading part of ``x`` is meant.

    Args:
        x: ``[..., n, ...]``, not empty along ``dim``; differentiable too.
        dim: the dimension that is indexed.
        index: ``[..., m, ...]`` floating, of as many dimensions as ``x``.
        method, temperature, hard: as in :func:`one_hot`.

    Returns:
        The shape of ``index``.

    Raises:
        IndexError: ``dim`` is out of range.
        TypeError: ``x`` or ``index`` is not a floating tensor.
        ValueError: ``index`` is larger than ``x`` outside ``dim``, or see :func:`take_along_dim`.

    Example:
        >>> gather(torch.tensor([[0.0, 1.0], [4.0, 8.0]]), 0, torch.tensor([[0.5, 1.0]]), method="linear")
        tensor([[2., 8.]])
    """
    dim = check_dim(check_floating("x", x), dim)
    if check_tensor("index", index).ndim != x.ndim:
        raise ValueError(f"index must have as many dimensions as x, got {tuple(index.shape)} and {tuple(x.shape)}")
    for d in range(x.ndim):
        if d != dim:
            if index.shape[d] > x.shape[d]:
                raise ValueError(f"index must not be larger than x, got {tuple(index.shape)} and {tuple(x.shape)}")
            x = x.narrow(d, 0, index.shape[d])
    return take_along_dim(x, index, dim, method=method, temperature=temperature, hard=hard)


def _nearest(index: Tensor, n: int) -> Tensor:
    """Return the integers that the hard forms take; 0 for NaN."""
    return index.detach().round().clamp(0, n - 1).nan_to_num().long()
