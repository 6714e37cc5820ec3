"""Matrices with few entries: one pattern, a batch of values with a gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pullback.core.checks import check_broadcast, check_floating, check_integer, check_same_dtype, check_tensor
from pullback.core.shapes import Float, Int, Tensor
from pullback.core.transforms import kept_property, physical
from pullback.implicit.elimination import BlockElimination

__all__ = ["SparseMatrix", "SparsePattern"]


@dataclass(frozen=True, eq=False)
class SparsePattern:
    """Where a sparse matrix has entries; matrices that share it share the order in which they are eliminated.

    Attributes:
        rows: ``[k]`` int64, of each entry; entries of one place add up.
        columns: ``[k]`` int64.
        shape: number of rows and of columns.

    Raises:
        TypeError: ``rows`` or ``columns`` are no int64 tensors, or ``shape`` holds no integers.
        ValueError: the lengths differ, or an entry is outside of ``shape``.

    Example:
        >>> pattern = SparsePattern(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), (2, 2))
        >>> pattern.transposed().rows.tolist()
        [0, 1, 1]
    """

    rows: Int[Tensor, "k"]
    columns: Int[Tensor, "k"]
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        if not isinstance(self.shape, tuple) or len(self.shape) != 2:
            raise ValueError(f"shape must be two numbers, got {self.shape!r}")
        for name in ("rows", "columns"):  # no part of any transform: derivatives use them at every level
            object.__setattr__(self, name, physical(check_tensor(name, getattr(self, name))))
        for name, places, size in zip(("rows", "columns"), (self.rows, self.columns), self.shape, strict=True):
            check_integer("shape", size, 1)
            if places.dtype != torch.int64:
                raise TypeError(f"{name} must hold integers of type int64, got {places.dtype}")
            if places.ndim != 1 or places.shape != self.rows.shape:
                raise ValueError(
                    f"rows and columns must be two lists of one length, got {tuple(self.rows.shape)} and "
                    f"{tuple(self.columns.shape)}"
                )
            if len(places) and not (int(places.min()) >= 0 and int(places.max()) < size):
                raise ValueError(f"{name} must be in 0..{size - 1}, got {int(places.min())}..{int(places.max())}")

    def transposed(self) -> SparsePattern:
        """Return the pattern of the transposed matrix."""
        return SparsePattern(self.columns, self.rows, self.shape[::-1])

    @kept_property
    def elimination(self) -> BlockElimination:
        """The order in which a square matrix of this pattern is eliminated."""
        return BlockElimination.of(self.rows, self.columns, self.shape[0])


@dataclass(frozen=True, eq=False)
class SparseMatrix:
    r"""A batch of sparse matrices of one pattern: :math:`A_{r_e c_e} = \sum v_e`.

    ``matrix @ x`` is the product, :func:`linear_solve` takes it in place of a dense matrix.

    Attributes:
        pattern: where the entries are.
        values: ``[*batch, k]``, what they are; derivatives of every product and solve reach them.

    Raises:
        TypeError: ``values`` is no floating tensor.
        ValueError: ``values`` does not end with one number an entry.

    Example:
        >>> pattern = SparsePattern(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), (2, 2))
        >>> matrix = SparseMatrix(pattern, torch.tensor([2.0, 1.0, 4.0]))
        >>> (matrix @ torch.tensor([1.0, 1.0])).tolist(), matrix.diagonal().tolist()
        ([3.0, 4.0], [2.0, 4.0])
        >>> from pullback.implicit import linear_solve
        >>> linear_solve(matrix, torch.tensor([3.0, 4.0])).value.tolist()
        [1.0, 1.0]
    """

    pattern: SparsePattern
    values: Float[Tensor, "*batch k"]

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, SparsePattern):
            raise TypeError(f"pattern must be a SparsePattern, got {type(self.pattern).__name__}")
        if check_floating("values", self.values).ndim == 0 or self.values.shape[-1] != len(self.pattern.rows):
            raise ValueError(
                f"values must have shape (..., {len(self.pattern.rows)}), one for each entry of the pattern, "
                f"got {tuple(self.values.shape)}"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """``(*batch, rows, columns)``."""
        return (*self.values.shape[:-1], *self.pattern.shape)

    @property
    def mT(self) -> SparseMatrix:
        """The transposed matrices."""
        return SparseMatrix(self.pattern.transposed(), self.values)

    def __matmul__(self, x: Float[Tensor, "*#batch n"]) -> Float[Tensor, "*batch m"]:
        """Return the product with vectors ``[*batch, columns]``; batches broadcast."""
        check_same_dtype(values=self.values, x=check_floating("x", x))
        height, width = self.pattern.shape
        if x.ndim == 0 or x.shape[-1] != width:
            raise ValueError(f"x must have shape (..., {width}), got {tuple(x.shape)}")
        check_broadcast(values=self.values.shape[:-1], x=x.shape[:-1])
        terms = self.values * x[..., self.pattern.columns]
        return terms.new_zeros(*terms.shape[:-1], height).index_add(-1, self.pattern.rows, terms)

    def diagonal(self) -> Float[Tensor, "*batch n"]:
        """Return the entries ``A[i, i]``, as many as the shorter side has."""
        on = (self.pattern.rows == self.pattern.columns).nonzero()[:, 0]
        short = min(self.pattern.shape)
        zeros = self.values.new_zeros(*self.values.shape[:-1], short)
        return zeros.index_add(-1, self.pattern.rows[on], self.values[..., on])

    def dense(self) -> Float[Tensor, "*batch m n"]:
        """Return the matrices with their zeros."""
        height, width = self.pattern.shape
        zeros = self.values.new_zeros(*self.values.shape[:-1], height * width)
        places = self.pattern.rows * width + self.pattern.columns
        return zeros.index_add(-1, places, self.values).unflatten(-1, (height, width))
