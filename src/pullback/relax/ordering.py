"""The distribution behind an ordering as an operator: what is read and written through it, without its matrix.

``table[x.argsort()]`` has the mean ``P table`` with the doubly stochastic ``P`` of the ordering. The product costs
O(n log n) (:func:`pullback.discrete.sort_by`), the matrix ``[places, items]`` n times that. It is formed where somebody
asks for the probabilities themselves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pullback import discrete
from pullback.core.transforms import transform_running
from pullback.relax.rules import Dropped
from pullback.relax.soft_tensors import Distribution

__all__ = ["Ordering", "TooMany", "behind", "is_too_large", "permutation_rows"]

MAX_MATRIX = 2**26
"""Elements of the largest part of a permutation matrix that is formed behind indices (256 MiB in float32)."""


class TooMany(Dropped):
    """The probabilities themselves are too many to be formed."""


def with_matrix(options: dict[str, Any]) -> dict[str, Any]:
    """The options of an ordering, with a method that has a matrix."""
    if "method" not in options or discrete.ORDERINGS[options["method"]].matrix is None:
        # Doubly stochastic: an entry that leaves one place arrives at another.
        return {**options, "method": "sinkhorn"}
    return options


def permutation_rows(
    options: dict[str, Any], x: Tensor, dim: int, descending: bool, places: tuple[int, int] | None = None
) -> Tensor:
    """``[*batch, places, n items]``; only the rows of those places are formed.

    Raises:
        TooMany: more than :data:`MAX_MATRIX` elements.
    """
    n = x.shape[dim] if x.ndim else 1
    first, end = places or (0, n)
    if x.numel() * (end - first) > MAX_MATRIX:
        elements = f"{x.numel() * (end - first):.1e} elements"
        raise TooMany(f"the distribution behind the indices of {n} sorted entries has {elements}")
    return discrete.argsort(x, dim, descending, places=(first, end), **with_matrix(options))


class Ordering:
    """The places of the entries of ``x`` along a dimension, a :class:`Distribution` that is formed when it is read.

    Its elements are the places ``first .. end - 1`` and it says which item each holds; inverted, they are the items and
    it says at which place each is, or, where places belong to groups, in which group.

    Args:
        x: ``[*shape]`` floating, what is ordered.
        along: the dimension of the places, not negative.
        descending: the largest first.
        options: of the ordering block, ``method`` being ``"sinkhorn"`` (a symmetric plan).
        places: those that are elements; all by default.
        inverted: whether its elements are the items.
        group: ``[n]`` ascending int64, of inverted places, and the number of groups.
    """

    support = None
    choice = None
    refines = None
    tied = True

    def __init__(
        self,
        x: Tensor,
        along: int,
        descending: bool,
        options: dict[str, Any],
        *,
        places: tuple[int, int] | None = None,
        inverted: bool = False,
        group: tuple[Tensor, int] | None = None,
    ) -> None:
        self._x = x
        self._along = along
        self._descending = descending
        self._options = options
        self._places = places or (0, x.shape[along])
        self._inverted = inverted
        self._group = group
        self._formed: Distribution | None = None

    @staticmethod
    def applies(options: dict[str, Any]) -> bool:
        """Whether it can be one: the matrix of other methods is not symmetric."""
        # Levels of torch.func end before it may be read.
        return bool(with_matrix(options)["method"] == "sinkhorn") and not transform_running()

    @property
    def size(self) -> int:
        """The number of atoms of an element."""
        return self._x.shape[self._along] if self._group is None else self._group[1]

    def is_along(self, dim: int) -> bool:
        """Whether that is the dimension that is ordered."""
        return dim == self._along

    @property
    def shape(self) -> torch.Size:
        """That of the index."""
        shape = list(self._x.shape)
        if not self._inverted:
            shape[self._along] = self._places[1] - self._places[0]
        return torch.Size(shape)

    @property
    def values(self) -> Tensor:
        """``[n]`` the positions."""
        return torch.arange(self.size, device=self._x.device)

    @property
    def probability(self) -> Tensor:
        """``[*shape, n]``.

        Raises:
            TooMany: they are not formed.
        """
        return self.formed().probability

    @property
    def is_too_large(self) -> bool:
        """Whether its probabilities cannot be formed."""
        return self._x.numel() * (self._places[1] - self._places[0]) > MAX_MATRIX

    def formed(self) -> Distribution:
        """Return it with its probabilities.

        Raises:
            TooMany: they are not formed.
        """
        if self._formed is None:
            with torch.enable_grad():  # it is kept, whoever asks first, and be it a law that wants the values alone
                self._formed = Distribution(self._matrix().movedim(-2, self._along), tied=True)
        return self._formed

    def _matrix(self) -> Tensor:
        matrix = permutation_rows(self._options, self._x, self._along, self._descending, self._places)
        if not self._inverted:
            return matrix
        if self._group is None:
            return matrix.mT
        merged = matrix.new_zeros((*matrix.mT.shape[:-1], self.size))
        return merged.index_add(-1, self._group[0], matrix.mT)

    def _replace(self, **changes: Any) -> Distribution:
        return self.formed()._replace(**changes)

    def dense(self, size: int) -> Tensor:
        """As :meth:`Distribution.dense`."""
        return self.formed().dense(size)

    def mean(self) -> Tensor:
        """``[*shape]`` expected value."""
        shape = [1] * self._x.ndim
        shape[self._along] = -1
        positions = self.values.to(self._x.dtype).reshape(shape)
        full = list(self._x.shape)
        full[self._along] = self.size
        return self.read(positions.expand(full))

    def inverse(self, dim: int) -> Ordering | None:
        """Return that of the inverse permutation along ``dim``, ``None`` where this is none, or a part of one."""
        if dim != self._along or self._places != (0, self._x.shape[self._along]) or self._group is not None:
            return None
        return Ordering(self._x, self._along, self._descending, self._options, inverted=not self._inverted)

    def part(self, dim: int, first: int, end: int) -> Ordering | None:
        """Return that of the elements ``first .. end - 1`` along ``dim``, ``None`` where these are no places."""
        if dim != self._along or self._inverted:
            return None
        start = self._places[0]
        return Ordering(
            self._x, self._along, self._descending, self._options, places=(start + first, start + max(first, end))
        )

    def read(self, table: Tensor) -> Tensor:
        """Return ``sum_v P(v) table[.., v, ..]``: ``[*x.shape with n along, *features]`` to ``[*shape, *features]``."""
        if self._inverted:
            table = table if self._group is None else table.index_select(self._along, self._group[0])
            return self._transposed(table)
        return self._ordered(table).narrow(self._along, self._places[0], self._places[1] - self._places[0])

    def write(self, value: Tensor) -> Tensor:
        """Return ``sum_e P(e is at v) value[.., e, ..]``: ``[*shape, *features]`` to ``[*x.shape, *features]``."""
        if self._inverted:
            given = self._ordered(value)
            if self._group is None:
                return given
            shape = list(given.shape)
            shape[self._along] = self.size
            return given.new_zeros(shape).index_add(self._along, self._group[0], given)
        n = self._x.shape[self._along]
        if value.shape[self._along] != n:
            padded = [0, 0] * (value.ndim - self._along - 1)
            value = torch.nn.functional.pad(value, (*padded, self._places[0], n - self._places[1]))
        return self._transposed(value)

    def _ordered(self, table: Tensor) -> Tensor:
        """``P table``."""
        dtype = torch.promote_types(table.dtype, self._x.dtype)
        options = with_matrix(self._options)
        return discrete.sort_by(self._x.to(dtype), table.to(dtype), self._along, self._descending, **options)

    def _transposed(self, value: Tensor) -> Tensor:
        """``P^T value``: ``P = S Q`` with the hard permutation ``Q`` and a symmetric ``S``, so ``P^T = Q^T P Q^T``."""
        return self._to_items(self._ordered(self._to_items(value)))

    def _to_items(self, by_place: Tensor) -> Tensor:
        order = self._x.detach().argsort(dim=self._along, descending=self._descending, stable=True)
        order = order.reshape(*order.shape, *[1] * (by_place.ndim - order.ndim)).expand(by_place.shape)
        return torch.zeros_like(by_place).scatter(self._along, order, by_place)


def is_too_large(distribution: Any) -> bool:
    """Return whether it is an ordering whose probabilities cannot be formed."""
    return isinstance(distribution, Ordering) and distribution.is_too_large


def behind(index: Any) -> Ordering | None:
    """Return the ordering behind a soft index, if it is one."""
    distribution = index.distribution
    return distribution if isinstance(distribution, Ordering) else None
