"""An unknown or a state of any nesting as a matrix, one row a problem: what solvers that stop row by row work on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from pullback.core.shapes import Float, Shaped, Tensor

__all__ = ["Rows"]


@dataclass(frozen=True)
class Rows:
    """How a tensor ``[*batch, ...]`` or a nesting of them is laid out as one matrix ``[count, size]``.

    Each row is one problem (of a solver) or one sample (of a simulation); rows are independent of each other, so each
    may stop when it is done.

    Attributes:
        structure: the nesting.
        single: whether it is one tensor alone.
        batch: leading dimensions, common to all tensors, that number the rows.
        shapes: of each tensor behind ``batch``.
        sizes: of each tensor's part of a row.
        count: number of rows.
        size: length of a row.
        dtype, device: of the matrix, and of every tensor: a complex one is held by its real and imaginary parts.
        complex: whether the tensors are complex.

    Example:
        >>> state = {"position": torch.zeros(4, 3), "mass": torch.ones(4)}
        >>> rows = Rows.of(state, 1)
        >>> rows.count, rows.size, rows.pack(state).shape
        (4, 4, torch.Size([4, 4]))
        >>> rows.unpack(rows.pack(state))["mass"]
        tensor([1., 1., 1., 1.])
    """

    structure: pytree.TreeSpec
    single: bool
    batch: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    sizes: tuple[int, ...]
    count: int
    size: int
    dtype: torch.dtype
    device: torch.device
    complex: bool = False

    @staticmethod
    def of(x: Any, batch_ndim: int | None, name: str = "x", *, complex: bool = False) -> Rows:
        """Return the layout of ``x``, an argument called ``name``.

        Args:
            x: a floating tensor, or any nesting of tuples, lists and dicts of them.
            batch_ndim: number of leading dimensions that number the rows; ``None``: all but the last of the first
                tensor.
            name: for messages.
            complex: whether complex tensors are taken too.

        Raises:
            TypeError: ``x`` holds something else than such tensors.
            ValueError: ``x`` is empty, or its tensors do not share their leading dimensions, dtype and device.
        """
        leaves, structure = pytree.tree_flatten(x)
        if not leaves:
            raise ValueError(f"{name} must hold at least one tensor, got {x!r}")
        for leaf in leaves:
            if not isinstance(leaf, Tensor) or not (leaf.is_floating_point() or (complex and leaf.is_complex())):
                got = leaf.dtype if isinstance(leaf, Tensor) else type(leaf).__name__
                kind = "floating or complex" if complex else "floating"
                raise TypeError(f"{name} must be a {kind} tensor or a nesting of them, got {got}")
        first = leaves[0]
        if batch_ndim is None:
            if first.ndim == 0:
                raise ValueError(f"{name} must have at least one dimension (the last is the row), got a scalar tensor")
            batch_ndim = first.ndim - 1
        if not 0 <= batch_ndim <= min(leaf.ndim for leaf in leaves):
            raise ValueError(f"batch_ndim must be between 0 and the dimensions of {name}, got {batch_ndim}")
        batch = tuple(first.shape[:batch_ndim])
        if any(tuple(leaf.shape[:batch_ndim]) != batch for leaf in leaves):
            raise ValueError(
                f"the tensors of {name} must share their first {batch_ndim} dimensions (batch_ndim), "
                f"got shapes {[tuple(leaf.shape) for leaf in leaves]}"
            )
        if any(leaf.dtype != first.dtype or leaf.device != first.device for leaf in leaves):
            raise ValueError(
                f"the tensors of {name} must share dtype and device, got {[(v.dtype, str(v.device)) for v in leaves]}"
            )
        shapes = tuple(tuple(leaf.shape[batch_ndim:]) for leaf in leaves)
        parts = 2 if first.is_complex() else 1
        sizes = tuple(parts * math.prod(shape) for shape in shapes)
        single = isinstance(x, Tensor)
        count, dtype = math.prod(batch), first.real.dtype if parts == 2 else first.dtype
        return Rows(structure, single, batch, shapes, sizes, count, sum(sizes), dtype, first.device, parts == 2)

    def pack(self, x: Any) -> Float[Tensor, "{self.count} {self.size}"]:
        """Return ``x`` as a matrix, its tensors side by side."""
        if isinstance(x, Tensor):
            return self._parts(x).reshape(self.count, self.size)
        leaves = [self._parts(leaf) for leaf in pytree.tree_leaves(x)]
        return torch.cat([v.reshape(self.count, n) for v, n in zip(leaves, self.sizes, strict=True)], 1)

    def unpack(self, matrix: Shaped[Tensor, "*lead {self.count} {self.size}"]) -> Any:
        """Return ``x`` from its matrix; dimensions in front of the matrix stay in front of each tensor."""
        lead = tuple(matrix.shape[:-2]) + self.batch
        if self.single:
            return self._whole(matrix, lead + self.shapes[0])
        parts = matrix.split(list(self.sizes), -1)
        leaves = [self._whole(part, lead + shape) for part, shape in zip(parts, self.shapes, strict=True)]
        return pytree.tree_unflatten(leaves, self.structure)

    def _parts(self, x: Tensor) -> Tensor:
        """Real and imaginary parts side by side, of what may have become real on its way."""
        if not self.complex:
            return x
        return torch.view_as_real(x if x.is_complex() else torch.complex(x, torch.zeros_like(x)))

    def _whole(self, part: Tensor, shape: tuple[int, ...]) -> Tensor:
        return torch.view_as_complex(part.reshape(*shape, 2)) if self.complex else part.reshape(shape)

    def per_row(self, values: Shaped[Tensor, "#{self.count}"]) -> Shaped[Tensor, "..."]:
        """Return one number a row (or one for all) in the shape ``batch``."""
        return values.expand(self.count).reshape(self.batch)

    def check(self, value: Any, function: str, of: str = "x") -> None:
        """Raise ``ValueError`` unless ``value``, which ``function`` returned, has the structure and shapes of ``x``.

        Args:
            value: what it returned.
            function: its name, for messages.
            of: what it should look like, for messages.

        Example:
            >>> Rows.of(torch.zeros(3), 0).check(torch.zeros(2), "map")
            Traceback (most recent call last):
            ValueError: map must return the shape of x, (3,), got (2,)
        """
        leaves, structure = pytree.tree_flatten(value)
        if structure != self.structure:
            raise ValueError(f"{function} must return the structure of {of}, {self.structure}, got {structure}")
        expected = [self.batch + shape for shape in self.shapes]
        got = [tuple(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__ for leaf in leaves]
        if got != expected:
            if len(expected) == 1:
                raise ValueError(f"{function} must return the shape of {of}, {expected[0]}, got {got[0]}")
            raise ValueError(f"{function} must return the shapes of {of}, {expected}, got {got}")
