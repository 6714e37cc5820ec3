"""Paths between paired points, and the loss that makes a velocity follow all of them at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from pullback.core.checks import check_callable, check_floating, check_integer, check_same_dtype
from pullback.core.random import drawing_device
from pullback.core.shapes import Float, Tensor
from pullback.core.transforms import can_look

__all__ = ["Interpolant", "Interpolated", "flow_matching_loss", "interpolated_at", "linear_interpolant", "points_of"]


class Interpolated(NamedTuple):
    """Where paths are at a time.

    Attributes:
        x: the points, of the shape of both ends.
        velocity: their derivatives in time.
    """

    x: Float[Tensor, "*shape"]
    velocity: Float[Tensor, "*shape"]


Interpolant = Callable[[Tensor, Tensor, Tensor], Interpolated]
"""From ends ``x0``, ``x1`` and times ``[*batch, 1, ...]`` to where the path is and how it moves there."""


def linear_interpolant(
    x0: Float[Tensor, "*shape"], x1: Float[Tensor, "*shape"], t: float | Float[Tensor, "..."]
) -> Interpolated:
    r"""Return the straight path :math:`x_t=(1-t)\,x_0+t\,x_1` and its velocity :math:`x_1-x_0`.

    Args:
        x0: points of any shape: ``[*batch, d]``, images ``[*batch, channels, height, width]``.
        x1: points of the same shape.
        t: times in [0, 1]: a number, or a tensor whose dimensions are the leading ones of the points, of their sizes
            or 1: ``[*batch]`` and ``[*batch, 1]`` both give each point its time.

    Returns:
        :class:`Interpolated`, differentiable in all three.

    Raises:
        TypeError: a point is no floating tensor, or the dtypes differ.
        ValueError: ``x0`` and ``x1`` differ in shape, ``t`` does not fit them or lies outside [0, 1].

    Example:
        >>> x0, x1 = torch.zeros(2, 1), torch.tensor([[1.0], [2.0]])
        >>> linear_interpolant(x0, x1, torch.tensor([0.5, 0.25])).x
        tensor([[0.5000],
                [0.5000]])

    References:
        Liu, Gong, Liu (2023), Flow straight and fast, equation 1; Lipman et al. (2023), Flow matching for generative
        modeling, equation 22.
    """
    _check_ends(x0, x1)
    t = _aligned(t, x0)
    return Interpolated((1 - t) * x0 + t * x1, x1 - x0)


def flow_matching_loss(
    velocity: Callable[[Tensor, Tensor], Tensor],
    x0: Float[Tensor, "*shape"],
    x1: Float[Tensor, "*shape"],
    *,
    t: Float[Tensor, "..."] | None = None,
    interpolant: Interpolant = linear_interpolant,
    event_ndim: int = 1,
    generator: torch.Generator | None = None,
) -> Float[Tensor, ""]:
    r"""Return :math:`E\,|v(t,x_t)-\dot x_t|^2`, the mean over pairs.

    Its minimiser is :math:`v(t,x)=E[\dot x_t\mid x_t=x]`: following it from :math:`x_0`, points have the distribution
    of :math:`x_t` at every time.

    Args:
        velocity: ``velocity(t, x)`` with times ``[*batch, 1, ...]`` that broadcast against x, as a field of
            :func:`pullback.dynamics.odeint`; returns the shape of x.
        x0: ``[*batch, *event]`` points.
        x1: ``[*batch, *event]`` points, each the partner of one in ``x0``: independent draws, or a coupling.
        t: times in [0, 1], see :func:`linear_interpolant`; ``None``: drawn uniformly, one for each pair.
        interpolant: the path between partners: any function of ``x0``, ``x1`` and ``t`` that returns
            :class:`Interpolated`.
        event_ndim: how many dimensions are one point: 1 for vectors, 3 for images. The square is summed over them.
        generator: source of the times.

    Returns:
        A scalar >= 0.

    Raises:
        TypeError: ``velocity`` or ``interpolant`` cannot be called, a point is no floating tensor.
        ValueError: ``x0`` and ``x1`` differ in shape or are empty, ``t`` does not fit or lies outside [0, 1], the
            velocity has another shape.

    Example:
        >>> x0 = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
        >>> x1 = x0 + torch.tensor([3.0, 0.0])
        >>> flow_matching_loss(lambda t, x: torch.tensor([3.0, 0.0]).expand_as(x), x0, x1).item() < 1e-10
        True

    References:
        Liu, Gong, Liu (2023), Flow straight and fast, equation 1; Lipman et al. (2023), Flow matching for generative
        modeling, equation 14; Albergo, Vanden-Eijnden (2023), Building normalizing flows with stochastic interpolants.
    """
    check_callable("velocity", velocity)
    t, (x, wanted) = interpolated_at(x0, x1, t, interpolant, event_ndim, generator)
    found = velocity(t, x)
    if not isinstance(found, Tensor) or found.shape != x.shape:
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"velocity must return a tensor of shape {tuple(x.shape)}, got {got}")
    return points_of(found - wanted, event_ndim).square().sum(-1).mean()


def interpolated_at(
    x0: Tensor,
    x1: Tensor,
    t: Tensor | None,
    interpolant: Interpolant,
    event_ndim: int,
    generator: torch.Generator | None,
) -> tuple[Tensor, Interpolated]:
    """Return times ``[*batch, 1, ...]``, drawn where there are none, and where the paths are then.

    Example:
        >>> t, (x, velocity) = interpolated_at(torch.zeros(3, 2), torch.ones(3, 2), None, linear_interpolant, 1, None)
        >>> t.shape, torch.equal(x, t.expand(3, 2)), velocity[0]
        (torch.Size([3, 1]), True, tensor([1., 1.]))
    """
    check_callable("interpolant", interpolant)
    _check_ends(x0, x1)
    check_integer("event_ndim", event_ndim, 1)
    if x0.ndim < event_ndim or not x0.numel():
        raise ValueError(f"x0 must hold points of {event_ndim} dimensions, at least one, got shape {tuple(x0.shape)}")
    if t is None:
        shape = (*x0.shape[: x0.ndim - event_ndim], *[1] * event_ndim)
        t = torch.rand(shape, generator=generator, dtype=x0.dtype, device=drawing_device(generator, x0)).to(x0.device)
    t = _aligned(t, x0)
    return t, interpolant(x0, x1, t)


def points_of(x: Tensor, event_ndim: int) -> Tensor:
    """Return points as vectors ``[*batch, d]``.

    Example:
        >>> points_of(torch.zeros(5, 3, 8, 8), 3).shape
        torch.Size([5, 192])
    """
    return x if event_ndim == 1 else x.flatten(-event_ndim)


def _check_ends(x0: Tensor, x1: Tensor) -> None:
    check_same_dtype(x0=check_floating("x0", x0), x1=check_floating("x1", x1))
    if x0.shape != x1.shape:
        raise ValueError(f"x0 and x1 must have one shape, got {tuple(x0.shape)} and {tuple(x1.shape)}")


def _aligned(t: float | Tensor, x: Tensor) -> Tensor:
    """Times with as many dimensions as x, its leading ones first."""
    if not isinstance(t, Tensor):
        if isinstance(t, bool) or not isinstance(t, int | float):
            raise TypeError(f"t must be a number or a floating tensor, got {type(t).__name__}")
        t = torch.as_tensor(t, dtype=x.dtype, device=x.device)
    check_floating("t", t)
    if t.ndim > x.ndim or any(size not in (1, n) for size, n in zip(t.shape, x.shape, strict=False)):
        raise ValueError(
            f"t must have leading dimensions of {tuple(x.shape)}, or 1 in their place, got {tuple(t.shape)}"
        )
    if can_look(t) and not bool(((t >= 0) & (t <= 1)).all()):
        low, high = float(t.detach().min()), float(t.detach().max())
        raise ValueError(f"t must be in [0, 1], got values from {low:g} to {high:g}")
    return t.to(x.dtype).reshape((*t.shape, *[1] * (x.ndim - t.ndim)))
