"""Bounds of unknowns of any nesting."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree

from pullback.core.rows import Rows
from pullback.core.transforms import can_look
from pullback.implicit.arguments import broadcast

__all__ = ["bounds_like"]


def bounds_like(x: Any, bounds: Any, batch_ndim: int) -> tuple[Any, Any]:
    """Return ``(low, high)``, each a number or like ``x``, as two nestings of the shapes of ``x``.

    Raises:
        TypeError: ``bounds`` is no pair, or holds something else than numbers and real tensors.
        ValueError: the nesting or a shape does not fit, or ``low`` exceeds ``high``.
    """
    Rows.of(x, batch_ndim, "init")
    if not isinstance(bounds, tuple | list) or len(bounds) != 2:
        raise TypeError(f"bounds must be a pair (low, high), got {type(bounds).__name__}")
    leaves, structure = pytree.tree_flatten(x)
    sides = []
    for name, side in zip(("low", "high"), bounds, strict=True):
        given, own = pytree.tree_flatten(side)
        if len(given) == 1 and not isinstance(given[0], torch.Tensor):
            given, own = given * len(leaves), structure
        if own != structure:
            raise ValueError(
                f"the {name} bounds must be a number or have the structure of init, {structure}, got {own}"
            )
        pairs = zip(given, leaves, strict=True)
        sides.append([broadcast(f"the {name} bound", v, leaf, leaf.shape).expand(leaf.shape) for v, leaf in pairs])
    for low, high in zip(*sides, strict=True):
        crossed = ~(low <= high)
        if can_look(crossed) and bool(crossed.any()):
            raise ValueError("the low bounds must not exceed the high ones, and neither may be NaN")
    low_tree, high_tree = (pytree.tree_unflatten(side, structure) for side in sides)
    return low_tree, high_tree
