"""The result of an ordering: values now, the permutation matrix and the hard indices when they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pullback.core.shapes import Float, Int, Tensor

__all__ = ["Sorted"]


class Sorted:
    """Soft-sorted values, with the soft permutation and the hard indices computed when they are first read.

    ``permutation @ x == values`` with row = place and column = item. It unpacks as torch's result does:
    ``values, indices = sort(x)``.

    Args:
        values: ``[*batch, n]`` the values in order, the sorted dimension where it was in the input.
        indices: ``[*batch, n]`` int64, or a function that computes it: the item at each place of the hard order.
        permutation: ``[*batch, n, n]``, or a function that computes it (the sorted dimension moved to the end). Where a
            method has no matrix the function raises ``ValueError``.
        carried: the payload in the same order, where one was given.

    Example:
        >>> import torch
        >>> result = Sorted(torch.tensor([1.0, 2.0]), torch.tensor([1, 0]), lambda: torch.eye(2).flip(0))
        >>> values, indices = result
        >>> indices.tolist(), result.permutation.tolist()
        ([1, 0], [[0.0, 1.0], [1.0, 0.0]])
    """

    def __init__(
        self,
        values: Float[Tensor, "..."],
        indices: Tensor | Callable[[], Tensor],
        permutation: Tensor | Callable[[], Tensor],
        carried: Tensor | None = None,
    ) -> None:
        self.values = values
        self.carried = carried
        self._indices = indices
        self._permutation = permutation

    @property
    def indices(self) -> Int[Tensor, "..."]:
        """``[*batch, n]`` int64: the item at each place of the hard order, as torch's."""
        if not isinstance(self._indices, Tensor):
            self._indices = self._indices()
        return self._indices

    @property
    def permutation(self) -> Float[Tensor, "*batch places n"]:
        """``[*batch, places, n]``: row = place, column = item. Formed on first reading, O(n^2) memory."""
        if not isinstance(self._permutation, Tensor):
            self._permutation = self._permutation()
        return self._permutation

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.values, self.indices))

    def __repr__(self) -> str:
        return f"Sorted(values={self.values!r})"
