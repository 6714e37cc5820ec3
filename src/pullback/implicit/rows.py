"""Unknowns of any nesting as rows ``[*batch, n]``, which is what linear algebra works on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from pullback.core.shapes import Float, Tensor

__all__ = ["Rows", "check_like"]


@dataclass(frozen=True)
class Rows:
    """How an unknown ``x`` (a tensor or a nesting of tensors) is laid out in rows.

    Attributes:
        structure: the nesting.
        shapes: of the tensors.
        batch_ndim: number of leading dimensions, common to all tensors, that stay.
    """

    structure: pytree.TreeSpec
    shapes: tuple[torch.Size, ...]
    batch_ndim: int

    @staticmethod
    def of(x: Any, batch_ndim: int, name: str = "init") -> Rows:
        """Return the layout of ``x``, an argument called ``name``.

        Raises:
            TypeError: ``x`` holds something else than floating tensors.
            ValueError: ``x`` is empty, or its tensors do not share ``batch_ndim`` leading dimensions.
        """
        leaves, structure = pytree.tree_flatten(x)
        if not leaves:
            raise ValueError(f"{name} must hold at least one tensor, got {x!r}")
        for leaf in leaves:
            if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
                got = leaf.dtype if isinstance(leaf, Tensor) else type(leaf).__name__
                raise TypeError(f"{name} must hold floating tensors, got {got}")
            if leaf.ndim < batch_ndim or leaf.shape[:batch_ndim] != leaves[0].shape[:batch_ndim]:
                raise ValueError(
                    f"the tensors of {name} must share {batch_ndim} leading dimensions (batch_ndim), "
                    f"got {[tuple(v.shape) for v in leaves]}"
                )
        return Rows(structure, tuple(leaf.shape for leaf in leaves), batch_ndim)

    def pack(self, x: Any) -> Float[Tensor, "*batch n"]:
        """Return the tensors of ``x`` side by side."""
        leaves = pytree.tree_leaves(x)
        batch = self.shapes[0][: self.batch_ndim]
        if len(leaves) == 1:
            return leaves[0].reshape(*batch, -1)
        return torch.cat([leaf.reshape(*batch, -1) for leaf in leaves], -1)

    def unpack(self, rows: Float[Tensor, "*batch n"]) -> Any:
        """Return ``x`` from its rows."""
        parts = rows.split([shape[self.batch_ndim :].numel() for shape in self.shapes], -1)
        return pytree.tree_unflatten([p.reshape(s) for p, s in zip(parts, self.shapes, strict=True)], self.structure)


def check_like(value: Any, x: Any, name: str) -> None:
    """Raise ``ValueError`` unless ``value``, which the function ``name`` returned, is built and shaped like ``x``."""
    got, wanted = pytree.tree_flatten(value), pytree.tree_flatten(x)
    if got[1] != wanted[1]:
        raise ValueError(f"{name} must return the structure of x, {wanted[1]}, got {got[1]}")
    for leaf, reference in zip(got[0], wanted[0], strict=True):
        if not isinstance(leaf, Tensor) or leaf.shape != reference.shape:
            shape = tuple(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__
            raise ValueError(f"{name} must return the shape of x, {tuple(reference.shape)}, got {shape}")
