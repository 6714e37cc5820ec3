"""One call of an ordering: its arguments checked and its dimension moved to the end, once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pullback.core.checks import check_dim, check_floating, check_scalar
from pullback.core.gradients import replace_gradient
from pullback.core.shapes import Scalar
from pullback.core.transforms import is_transformed
from pullback.discrete.direct import direct
from pullback.discrete.methods import OrderingMethod, ordering_method
from pullback.discrete.softness import is_hard, widen
from pullback.discrete.sorted_input import SortedInput, look

__all__ = ["Request"]


@dataclass(frozen=True)
class Request:
    """A checked call.

    Attributes:
        last: ``[*batch, n]`` the input with the ordered dimension last, at least single precision.
        dtype: of the input, and of the results.
        dim: the dimension, not negative; ``None`` for an input without dimensions.
        name: of the method.
        method: how to order.
        temperature: a number, or a tensor whose gradient (or value under a transform) is wanted.
        relative: the temperature is in units of the standard deviation.
        is_hard: the temperature is 0.
        flattened: the shape of an input all of whose entries are ordered together, else ``None``.
    """

    last: Tensor
    dtype: torch.dtype
    dim: int | None
    name: str
    method: OrderingMethod
    temperature: Scalar
    relative: bool
    is_hard: bool
    flattened: torch.Size | None = None

    @classmethod
    def over(cls, x: Tensor, dim: int | None, **options: Any) -> Request:
        """As :meth:`of`, and for ``dim=None`` over all entries of ``x`` together."""
        if dim is not None:
            return cls.of(x, dim, **options)
        return replace(cls.of(check_floating("x", x).reshape(-1), 0, **options), flattened=x.shape)

    @classmethod
    def of(
        cls,
        x: Tensor,
        dim: int,
        *,
        method: str,
        temperature: Scalar,
        scale: str | None,
        needed: str = "values",
        argument: str = "x",
        empty: bool = True,
    ) -> Request:
        """Check the arguments that all orderings have in common.

        Args:
            x, dim, method, temperature, scale: as in :func:`~pullback.discrete.sort`.
            needed: what the method must have, a field of :class:`OrderingMethod`.
            argument: what ``x`` is called.
            empty: whether the dimension may be empty.

        Raises:
            TypeError: ``x`` is not a floating tensor, ``temperature`` neither a number nor such a tensor.
            IndexError: ``dim`` is out of range.
            ValueError: ``method`` or ``scale`` is unknown, ``temperature`` < 0 or with dimensions, an empty dimension.
                In the hard form a NaN; elsewhere it is found where the values are first looked at.
        """
        chosen = ordering_method(method, needed)
        check_floating(argument, x)
        at = check_dim(x, dim)
        if scale not in ("std", None):
            raise ValueError(f"scale must be 'std' or None, got {scale!r}")
        wide = widen(x)
        hard = is_hard(temperature, wide.dtype)
        if isinstance(temperature, Tensor) and not (temperature.requires_grad or is_transformed(temperature)):
            number = check_scalar("temperature", temperature, zero=True)
            temperature = temperature if number is None else number
        if not empty and x.ndim and not x.shape[at]:
            raise ValueError(f"x must not be empty along dim {dim}, got shape {tuple(x.shape)}")
        last = wide.unsqueeze(0) if x.ndim == 0 else wide if at == x.ndim - 1 else wide.movedim(at, -1)
        if hard:
            look(last)
        return cls(last, x.dtype, at if x.ndim else None, method, chosen, temperature, scale is not None, hard)

    @property
    def shape(self) -> torch.Size:
        """The shape of the input."""
        if self.dim is None:
            return torch.Size()
        batch = list(self.last.shape[:-1])
        batch.insert(self.dim, self.size)
        return torch.Size(batch)

    @property
    def size(self) -> int:
        """How many entries are ordered."""
        return self.last.shape[-1]

    @cached_property
    def sorted(self) -> SortedInput:
        """The sorted input, made when first needed. Raises ``ValueError`` for a NaN."""
        return SortedInput.of(self.last, self.temperature, self.relative)

    def negated(self) -> Request:
        """The request on the negated input: the smallest becomes the largest."""
        return replace(self, last=-self.last)

    def values(self, descending: bool = False, hard: bool = False) -> Tensor:
        """Return the ordered values ``[*batch, n]``; with ``hard`` the exact ones with the gradient of the soft."""
        if self.is_hard:
            return torch.sort(self.last, dim=-1, descending=descending, stable=True).values
        soft = self._made("values")
        soft = soft.flip(-1) if descending else soft
        if not hard:
            return soft
        return replace_gradient(torch.sort(self.last.detach(), dim=-1, descending=descending, stable=True).values, soft)

    def ranks(self) -> Tensor:
        """Return ``[*batch, n]``: the soft places of the items, ascending from 0."""
        return self._made("ranks")

    def _made(self, what: str) -> Tensor:
        plain = getattr(self.method, what)
        compiled = getattr(self.method, f"compiled_{what}")

        def composed(x: Tensor, temperature: Scalar) -> Tensor:
            result: Tensor = plain(SortedInput.of(x, temperature, self.relative))
            return result.to(x.dtype)

        made = None
        if compiled is not None and "sorted" not in self.__dict__:
            made = direct(self.last, compiled, self.temperature, self.relative, composed)
        return plain(self.sorted).to(self.last.dtype) if made is None else made

    def indices(self, descending: bool = False) -> Tensor:
        """Return ``[*batch, n]`` int64: the item at each place of the hard order."""
        return torch.sort(self.last.detach(), dim=-1, descending=descending, stable=True).indices

    def rows(self, first: int = 0, end: int | None = None, *, descending: bool = False, hard: bool = False) -> Tensor:
        """Return rows ``first .. end - 1`` of the permutation, ``[*batch, places, n]`` in the dtype of the input."""
        n = self.size
        end = n if end is None else end
        exact = None
        if hard or self.is_hard:
            items = torch.arange(n, device=self.last.device)
            exact = (self.indices(descending)[..., first:end].unsqueeze(-1) == items).to(self.dtype)
        if exact is not None and self.is_hard:
            return replace_gradient(exact, torch.sign(self.last).to(exact.dtype).unsqueeze(-2).expand_as(exact))
        matrix = ordering_method(self.name, needed="matrix").matrix
        assert matrix is not None
        p = matrix(self.sorted, slice(n - end, n - first) if descending else slice(first, end))
        p = (p.flip(-2) if descending else p).to(self.dtype)
        return p if exact is None else replace_gradient(exact, p)

    def back(self, last: Tensor) -> Tensor:
        """Return ``[*batch, n]`` in the layout and, if it is floating, the dtype of the input."""
        if last.is_floating_point():
            last = last.to(self.dtype)
        if self.flattened is not None:
            return last.reshape(self.flattened)
        if self.dim is None:
            return last.squeeze(0)
        return last if self.dim == last.ndim - 1 else last.movedim(-1, self.dim)

    def reduced(self, last: Tensor, keepdim: bool) -> Tensor:
        """Return ``[*batch]``, one value in place of the dimension, in the dtype of the input."""
        last = last.to(self.dtype)
        if self.flattened is not None:
            return last.reshape([1] * len(self.flattened) if keepdim else [])
        return last.unsqueeze(self.dim) if keepdim and self.dim is not None else last
