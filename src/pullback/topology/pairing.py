"""What every backend of persistence returns: pairs of cells, and where in the input their values stand."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pullback.core.transforms import transform_running

__all__ = ["Pairs", "as_array", "joined", "settled", "with_ties"]


class Pairs(NamedTuple):
    """Pairs of one degree of a stack of inputs, as arrays.

    Attributes:
        element: ``[m]`` of the stack.
        births, deaths: ``[m, .]`` the cells, -1 for what never dies.
        birth_at, death_at: ``[m]`` where the values stand in the flat element, -1: born at 0, never dies.
        degenerate: ``[b]``, whether ties leave a choice.
    """

    element: np.ndarray
    births: np.ndarray
    deaths: np.ndarray
    birth_at: np.ndarray
    death_at: np.ndarray
    degenerate: np.ndarray


def as_array(x: Tensor) -> np.ndarray:
    """Return the values of ``x`` in float64, below gradients and forward mode of any order; vmap is refused."""
    if not transform_running():
        return _array(x)
    read = _Numbers()
    _Read.apply(x, read)
    return read.array


def _array(x: Tensor) -> np.ndarray:
    result: np.ndarray = x.detach().resolve_neg().to("cpu", torch.float64).numpy()
    return result


class _Numbers:
    """Where they are left: torch copies lists on the way to ``forward``."""

    array: np.ndarray


class _Read(torch.autograd.Function):
    """torch hands the tensor below all transforms to ``forward``, once."""

    @staticmethod
    def forward(x: Tensor, read: _Numbers) -> Tensor:
        read.array = _array(x)
        return x.new_zeros(())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Any], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[None, None]:
        return None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> None:
        return None

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, read: _Numbers) -> Any:
        raise ValueError("x must not be mapped over by vmap: which bars there are depends on values; give it the batch")


def joined(parts: list[Pairs]) -> Pairs:
    """Return the pairs of several stacks as those of one, element after element."""
    if len(parts) == 1:
        return parts[0]
    counts = np.cumsum([0, *(len(part.degenerate) for part in parts)])
    shifted = [part._replace(element=part.element + shift) for part, shift in zip(parts, counts, strict=False)]
    return Pairs(*(np.concatenate(arrays) for arrays in zip(*shifted, strict=True)))


def settled(pairs: Pairs, values: np.ndarray) -> Pairs:
    """Leave out what would be born at infinity; what would die there never dies."""
    at = np.maximum(pairs.death_at, 0)
    never = (pairs.death_at < 0) | np.isinf(values[pairs.element, at])
    deaths = np.where(never[:, None], -1, pairs.deaths)
    whole = pairs._replace(deaths=deaths, death_at=np.where(never, -1, pairs.death_at))
    here = np.isfinite(values[pairs.element, pairs.birth_at])
    kept = {name: array[here] for name, array in whole._asdict().items() if name != "degenerate"}
    return whole._replace(**kept)


def with_ties(pairs: Pairs, values: np.ndarray) -> Pairs:
    """Flag the elements in which a value of the diagram stands in more than one place of ``values [b, places]``."""
    degenerate = pairs.degenerate.copy()
    for element in np.unique(pairs.element):
        own, ordered = pairs.element == element, np.sort(values[element])
        places = np.concatenate([pairs.birth_at[own], pairs.death_at[own]])
        critical = values[element][places[places >= 0]]
        counts = np.searchsorted(ordered, critical, "right") - np.searchsorted(ordered, critical, "left")
        degenerate[element] |= bool((counts > 1).any())
    return pairs._replace(degenerate=degenerate)
