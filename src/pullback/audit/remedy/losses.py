"""The values that a program differentiates, noted while it runs."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pullback.audit.trace.private import unseen

__all__ = ["first_losses"]


@contextlib.contextmanager
def first_losses() -> Iterator[list[float]]:
    """Collect the values on which ``backward`` is called, in order."""
    losses: list[float] = []
    backward = torch.Tensor.backward

    @functools.wraps(backward)  # the tracer knows it by its name and module
    def noting(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        with unseen():
            losses.append(float(tensor.detach().double().sum()))
        return backward(tensor, *args, **kwargs)

    torch.Tensor.backward = noting  # type: ignore[assignment, method-assign]
    try:
        yield losses
    finally:
        torch.Tensor.backward = backward  # type: ignore[method-assign]
