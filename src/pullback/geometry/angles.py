"""Angles between directions."""

from __future__ import annotations

import torch

from pullback.core.checks import check_broadcast, check_floating, check_same_dtype
from pullback.core.shapes import Float, Tensor
from pullback.core.transforms import can_look

__all__ = ["angular_distance"]


def angular_distance(u: Float[Tensor, "*#batch d"], v: Float[Tensor, "*#batch d"]) -> Float[Tensor, "*batch"]:
    r"""Return the angle between vectors: :math:`2\,\mathrm{atan2}(|\hat u - \hat v|, |\hat u + \hat v|)`, in radians.

    Exact to rounding for small and for flat angles, where the arc cosine of a product has no digits and an infinite
    slope. The gradient has length 1 on the unit sphere, and is 0 at 0 and pi, where it has no direction.

    Args:
        u: ``[*batch, d]`` of any length but 0, d >= 1.
        v: ``[*batch, d]`` of any length but 0.

    Returns:
        ``[*batch]`` in [0, pi].

    Raises:
        TypeError: an argument is no floating tensor, or the dtypes differ.
        ValueError: the shapes do not broadcast, or a vector has length 0 or is not finite.

    Example:
        >>> angular_distance(torch.tensor([1.0, 0.0]), torch.tensor([[2.0, 0.0], [0.0, 3.0]]))
        tensor([0.0000, 1.5708])

    References:
        Kahan (2006), How futile are mindless assessments of roundoff in floating-point computation, section 12.
    """
    for name, value in (("u", u), ("v", v)):
        if check_floating(name, value).ndim < 1 or not value.shape[-1]:
            raise ValueError(f"{name} must have shape (..., d), d >= 1, got {tuple(value.shape)}")
    check_same_dtype(u=u, v=v)
    check_broadcast(u=tuple(u.shape), v=tuple(v.shape))
    if u.shape[-1] != v.shape[-1]:
        raise ValueError(f"u and v must have as many entries, got {u.shape[-1]} and {v.shape[-1]}")
    a, b = (_unit(name, value) for name, value in (("u", u), ("v", v)))
    norm = torch.linalg.vector_norm
    return (2 * torch.atan2(norm(a - b, dim=-1), norm(a + b, dim=-1))).to(u.dtype)


def _unit(name: str, x: Tensor) -> Tensor:
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    largest = x.detach().abs().amax(-1, keepdim=True)
    if can_look(largest):
        if not bool(largest.isfinite().all()):
            raise ValueError(f"{name} must be finite")
        if not bool((largest > 0).all()):
            raise ValueError(f"{name} must not be of length 0")
    scaled = x / largest
    return scaled / torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
