"""Places among sorted boundaries with a gradient: the counterparts of ``bucketize`` and ``searchsorted``.

The cost is that of counting (see :mod:`pullback.discrete.counting`): O(n (w + log m)) for n entries and m boundaries,
at most w of them within about 10 temperatures of one entry.
"""

from __future__ import annotations

import torch

from pullback.core.checks import check_choice, check_floating
from pullback.core.gradients import replace_gradient
from pullback.core.shapes import Float, Scalar, Tensor
from pullback.discrete.bins import check_entries, check_increasing, constant, edges_below
from pullback.discrete.softness import is_hard, widen
from pullback.discrete.steps import STEP_ERRORS

__all__ = ["bucketize", "searchsorted"]


def bucketize(
    x: Float[Tensor, "*shape"],
    boundaries: Float[Tensor, "m"],
    *,
    right: bool = False,
    method: str = "logistic",
    temperature: Scalar = 0.1,
    hard: bool = False,
) -> Float[Tensor, "*shape"]:
    r"""Return the place of each entry among sorted boundaries: the soft number of boundaries below it.

    .. math:: \sum_k F\Big(\frac{x - b_k}{t}\Big)

    Args:
        x: ``[*shape]`` floating.
        boundaries: ``[m]`` floating, must not decrease; differentiable too.
        right: whether the hard function counts a boundary that is equal to the entry; the soft one counts half of it.
        method, temperature: as in :func:`~pullback.discrete.histc`.
        hard: return the numbers of ``torch.bucketize`` with the gradient of the relaxation.

    Returns:
        ``[*shape]`` in ``[0, m]``, of the dtype of ``x``.

    Raises:
        TypeError: ``x`` or ``boundaries`` is not a floating tensor.
        ValueError: NaN in ``x``, ``boundaries`` has not one dimension, is not finite or decreases; else as in
            :func:`~pullback.discrete.histc`.

    Example:
        >>> bucketize(torch.tensor([0.0, 1.0, 9.0]), torch.tensor([1.0, 2.0]), temperature=0.01)
        tensor([0.0000, 0.5000, 2.0000])
        >>> bucketize(torch.tensor([0.0, 1.0, 9.0]), torch.tensor([1.0, 2.0]), hard=True)
        tensor([0., 0., 2.])
    """
    check_floating("x", x)
    if check_floating("boundaries", boundaries).ndim != 1:
        raise ValueError(f"boundaries must have one dimension, got shape {tuple(boundaries.shape)}")
    flat = x.reshape(-1)
    names = ("x", "boundaries")
    place = _place(names, flat, boundaries, right=right, method=method, temperature=temperature, hard=hard)
    return place.reshape(x.shape)


def searchsorted(
    sorted_sequence: Float[Tensor, "*batch m"],
    values: Float[Tensor, "*batch n"],
    *,
    right: bool = False,
    method: str = "logistic",
    temperature: Scalar = 0.1,
    hard: bool = False,
) -> Float[Tensor, "*batch n"]:
    """Return the place at which each value would stand in its sorted sequence: :func:`bucketize` row by row.

    Args:
        sorted_sequence: ``[*batch, m]`` floating, must not decrease, or ``[m]`` for all rows; differentiable too.
        values: ``[*batch, n]`` floating.
        right, method, temperature, hard: as in :func:`bucketize`, the hard function being ``torch.searchsorted``.

    Returns:
        ``[*batch, n]`` in ``[0, m]``, of the dtype of ``values``.

    Raises:
        TypeError, ValueError: as :func:`bucketize`, or the batches differ.

    Example:
        >>> searchsorted(torch.tensor([[1.0, 2.0], [5.0, 6.0]]), torch.tensor([[1.5], [1.5]]), hard=True).tolist()
        [[1.0], [0.0]]
    """
    check_floating("sorted_sequence", sorted_sequence)
    check_floating("values", values)
    if not sorted_sequence.ndim or not values.ndim:
        raise ValueError("sorted_sequence and values must have at least one dimension")
    if sorted_sequence.ndim > 1 and sorted_sequence.shape[:-1] != values.shape[:-1]:
        raise ValueError(
            f"sorted_sequence must have the batch of values, got {tuple(sorted_sequence.shape)} and "
            f"{tuple(values.shape)}"
        )
    names = ("values", "sorted_sequence")
    return _place(names, values, sorted_sequence, right=right, method=method, temperature=temperature, hard=hard)


def _place(
    names: tuple[str, str],
    x: Tensor,
    boundaries: Tensor,
    *,
    right: bool,
    method: str,
    temperature: Scalar,
    hard: bool,
) -> Tensor:
    check_choice("method", method, STEP_ERRORS)
    wide = widen(x)
    check_entries(names[0], wide)
    check_increasing(names[1], boundaries)
    edges = widen(boundaries).to(wide.dtype)
    frozen = is_hard(temperature, wide.dtype)
    exact = None
    if hard or frozen:
        found = torch.searchsorted(edges.detach().contiguous(), wide.detach().contiguous(), right=right)
        exact = found.to(x.dtype)
        if frozen:
            return constant(exact, x, boundaries)
    soft = edges_below(wide, edges, temperature, method).to(x.dtype)
    return soft if exact is None else replace_gradient(exact, soft)
