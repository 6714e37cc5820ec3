"""Functions of parameters at many perturbed copies of them, one by one or side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pullback.core.checks import check_callable, check_floating, check_integer, check_positive
from pullback.core.random import drawing_device

__all__ = ["check_perturbed", "directions", "each"]


def check_perturbed(
    loss: Callable[..., Any], parameters: Mapping[str, Tensor], smoothing: float, chunk: int | None
) -> None:
    """Check what all estimators of a smoothed gradient take.

    Raises:
        TypeError: ``loss`` is not callable, or a parameter is not floating.
        ValueError: there are no parameters, one is empty, or ``smoothing`` or ``chunk`` is out of range.
    """
    check_callable("loss", loss)
    check_positive("smoothing", smoothing)
    if not parameters:
        raise ValueError("parameters must hold at least one tensor")
    for name, tensor in parameters.items():
        if not check_floating(f"parameters[{name!r}]", tensor).numel():
            raise ValueError(f"parameters[{name!r}] must not be empty, got shape {tuple(tensor.shape)}")
    if chunk is not None:
        check_integer("chunk", chunk, 1)


def directions(like: Any, count: int, chunk: int | None, generator: torch.Generator) -> Iterator[Any]:
    """Yield ``count`` standard normal directions, ``chunk`` of them stacked; the same ones for every chunk.

    Args:
        like: any nesting of tensors, which gives structure, shapes, dtype and device.
        count: how many.
        chunk: how many at once; ``None``: one.
        generator: of the numbers.
    """
    leaves, structure = pytree.tree_flatten(like)
    for done in range(0, count, chunk or 1):
        drawn = [
            [
                torch.randn(p.shape, generator=generator, dtype=p.dtype, device=drawing_device(generator, p))
                for p in leaves
            ]
            for _ in range(min(chunk or 1, count - done))
        ]
        stacked = [torch.stack(draws).to(p.device) for draws, p in zip(zip(*drawn, strict=True), leaves, strict=True)]
        yield pytree.tree_unflatten(stacked, structure)


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=drawing_device(generator, like))


def each(function: Callable[..., Any], chunk: int | None, *stacked: Any) -> Any:
    """Return ``function`` of each entry of the stacked arguments, stacked; by vmap where there is a ``chunk``."""
    if chunk is not None:
        return torch.func.vmap(function, randomness="different")(*stacked)
    count = len(pytree.tree_leaves(stacked)[0])
    results = [function(*pytree.tree_map(lambda t, i=i: t[i], stacked)) for i in range(count)]
    return pytree.tree_map(lambda *values: torch.stack(values), *results)
