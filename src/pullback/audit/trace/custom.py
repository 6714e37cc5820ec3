"""Calls of custom autograd Functions, kept so that they can be repeated alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pullback.audit.trace.private import is_wrapped
from pullback.audit.trace.sites import Site

__all__ = ["CustomCall", "copied"]

MOST_ELEMENTS = 100_000


@dataclass
class CustomCall:
    """A call of ``function.apply`` with detached copies of its arguments."""

    function: Any
    args: tuple[Any, ...]
    site: Site


def copied(args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Return the arguments with tensors copied, ``None`` if they are too large to keep."""
    tensors = [a for a in args if isinstance(a, Tensor)]
    if sum(t.numel() for t in tensors) > MOST_ELEMENTS:
        return None
    if any(is_wrapped(t) for t in tensors):
        return None
    return tuple(a.detach().clone() if isinstance(a, Tensor) else a for a in args)
