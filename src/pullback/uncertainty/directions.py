"""Directions: unit vectors that surround the origin."""

from __future__ import annotations

import math
from typing import Any

import torch

from pullback.core.checks import check_floating, check_integer
from pullback.core.random import unit_vectors
from pullback.core.shapes import Float, Tensor
from pullback.core.transforms import can_look

__all__ = ["unit_directions"]


def unit_directions(
    count: int, dim: int, *, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "count dim"]:
    """Return unit vectors: random with a generator, else evenly spread and always the same.

    Evenly spread are equal angles in the plane, the Fibonacci lattice on the sphere, and in more dimensions points of
    Sobol's sequence, made normal and scaled.

    Args:
        count: of the vectors, >= 1; in one dimension they alternate between 1 and -1.
        dim: >= 1.
        generator: of random ones, uniform on the sphere.
        dtype: of the result.

    Returns:
        ``[count, dim]``.

    Raises:
        TypeError: a number is no integer.
        ValueError: one is below 1.

    Example:
        >>> unit_directions(4, 2).round(decimals=3).abs()
        tensor([[1., 0.],
                [0., 1.],
                [1., 0.],
                [0., 1.]])
    """
    check_integer("count", count, 1)
    check_integer("dim", dim, 1)
    if generator is not None:
        return unit_vectors(count, dim, generator=generator, like=torch.device("cpu")).to(dtype)
    place = torch.arange(count, dtype=torch.float64)
    if dim == 1:
        found = (1 - 2 * (place % 2))[:, None]
    elif dim == 2:
        angle = 2 * math.pi * place / count
        found = torch.stack([angle.cos(), angle.sin()], -1)
    elif dim == 3:
        height, angle = 1 - (2 * place + 1) / count, math.pi * (3 - math.sqrt(5)) * place
        ring = (1 - height**2).clamp(min=0).sqrt()
        found = torch.stack([ring * angle.cos(), ring * angle.sin(), height], -1)
    else:
        drawn = torch.quasirandom.SobolEngine(dim, scramble=True, seed=0).draw(count, dtype=torch.float64)
        normal = torch.special.ndtri(drawn.clamp(1e-6, 1 - 1e-6))
        found = normal / normal.norm(dim=-1, keepdim=True)
    return found.to(dtype)


def check_directions(directions: Any, name: str = "directions") -> Tensor:
    """Return unit vectors ``[k, d]``, else raise."""
    if check_floating(name, directions).ndim != 2 or 0 in directions.shape:
        raise ValueError(f"{name} must have shape [k, d], at least one, got {tuple(directions.shape)}")
    if can_look(directions):
        off = (directions.detach().double().norm(dim=-1) - 1).abs().max()
        if not off <= max(1e-6, 100 * torch.finfo(directions.dtype).eps):  # of single precision, made double
            raise ValueError(f"{name} must be unit vectors, lengths are off by up to {float(off):.3g}")
    return directions
