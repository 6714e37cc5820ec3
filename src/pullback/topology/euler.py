"""Euler characteristic curves and transforms: shapes seen by counting their cells along directions."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pullback.core.checks import (
    check_choice,
    check_finite,
    check_floating,
    check_integer,
    check_positive,
    check_same_dtype,
    check_scalar,
    check_tensor,
)
from pullback.core.gradients import replace_gradient
from pullback.core.random import unit_vectors
from pullback.core.shapes import Float, Int, Scalar
from pullback.core.transforms import can_look, is_transformed
from pullback.kernels.euler import highest_corner_weights, logistic_pull, step_sum
from pullback.topology.complexes import Complex

__all__ = ["EulerTransform", "euler_curve", "euler_transform", "sphere_directions"]


def euler_curve(
    heights: Sequence[Float[Tensor, "_ directions"]],
    thresholds: Float[Tensor, "t"],
    *,
    sharpness: Scalar | None = None,
    hard: bool = False,
    batch: Sequence[Int[Tensor, "_"]] | None = None,
    count: int | None = None,
) -> Float[Tensor, "count t directions"]:
    r"""Count the cells below each threshold, with alternating signs of their dimensions.

    .. math:: \chi(t)_j = \sum_k (-1)^k \sum_{\sigma \in K_k} S\big(\lambda (t - h_j(\sigma))\big)

    with the logistic function ``S``, or, without a sharpness, its limit: 1 where :math:`h \le t`, else 0.

    Args:
        heights: by dimension, ``[cells, directions]``: the value at which each cell enters, one column a filtration.
        thresholds: ``[t]`` in any order, in the units of ``heights``; differentiable too.
        sharpness: lambda > 0, per unit of height; ``None`` counts exactly, with gradient 0.
        hard: exact counts, with the gradient of the smooth ones (straight-through).
        batch: by dimension, ``[cells]`` int64: the shape of each cell; by default there is one shape.
        count: number of shapes; by default one more than the largest in ``batch``.

    Returns:
        ``[count, t, directions]``. Heights a distance of 40 / lambda from a threshold count as exactly 0 or 1 there.

    Raises:
        TypeError: ``heights`` or ``thresholds`` are not floating or of different dtypes.
        ValueError: a shape does not fit, a value is NaN or infinite, ``batch`` is out of range, ``sharpness`` <= 0, or
            ``hard`` without a sharpness.

    Example:
        >>> vertices, edges = torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0]])
        >>> euler_curve([vertices, edges], torch.tensor([-0.5, 0.5, 1.5]))[0, :, 0]
        tensor([0., 1., 1.])

    References:
        Roell, Rieck (2024), Differentiable Euler characteristic transforms for shape classification, equation 4.
    """
    if isinstance(heights, Tensor) or not isinstance(heights, Sequence) or not heights:
        raise TypeError("heights must be a sequence of tensors [cells, directions], one a dimension")
    for k, each in enumerate(heights):
        check_floating(f"heights[{k}]", each)
        if each.ndim != 2 or each.shape[1] != heights[0].shape[-1]:
            raise ValueError(f"heights[{k}] must have shape (cells, {heights[0].shape[-1]}), got {tuple(each.shape)}")
        if can_look(each):
            check_finite(f"heights[{k}]", each)
        check_same_dtype(**{"heights[0]": heights[0], f"heights[{k}]": each})
    device = heights[0].device
    if batch is None:
        batch = [torch.zeros(len(each), dtype=torch.int64, device=device) for each in heights]
        count = 1 if count is None else count
    if isinstance(batch, Tensor) or not isinstance(batch, Sequence) or len(batch) != len(heights):
        raise ValueError(f"batch must be a sequence of {len(heights)} index tensors, one a dimension")
    for k, (each, rows) in enumerate(zip(heights, batch, strict=True)):
        if check_tensor(f"batch[{k}]", rows).dtype != torch.int64 or rows.shape != each.shape[:1]:
            raise ValueError(f"batch[{k}] must be int64 of shape ({len(each)},), got {rows.dtype} {tuple(rows.shape)}")
    rows = torch.cat(list(batch))
    count = (int(rows.max()) + 1 if len(rows) else 1) if count is None else check_integer("count", count, 1)
    if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < count:
        raise ValueError(f"batch must be in 0..{count - 1}, got {int(rows.min())} to {int(rows.max())}")
    signs = [torch.full_like(each, (-1) ** k) for k, each in enumerate(heights)]
    return _count(torch.cat(list(heights)), torch.cat(signs), rows, thresholds, count, sharpness, hard)


def euler_transform(
    complex: Complex,
    directions: Float[Tensor, "directions d"],
    thresholds: Float[Tensor, "t"],
    *,
    sharpness: Scalar | None = 100.0,
    hard: bool = False,
    normalize: bool = False,
) -> Float[Tensor, "count t directions"]:
    r"""Return the Euler characteristic curves of shapes along directions: the (differentiable) Euler transform.

    .. math:: \mathrm{ECT}_{ij} = \sum_k (-1)^k \sum_{\sigma \in K_k}
              S\big(\lambda (t_i - \max_{v \in \sigma} \langle x_v, \xi_j \rangle)\big)

    A cell enters with its highest corner, so this is a sum over vertices, weighted by the alternating number of cells
    that each is the highest corner of. The weights are constant while the order of heights is, and zero at most
    vertices of a mesh, which then cost nothing. The gradient is that of the sum with the weights fixed: exact wherever
    the corners of each cell differ in height, and that of the first highest corner elsewhere.

    Memory is that of ``vertices x directions``, forward and backward, not of ``cells x directions x thresholds``
    (under torch.func and compilation: of ``vertices x directions x thresholds``).

    Args:
        complex: shapes; its vertices are differentiable.
        directions: ``[directions, d]`` of any length but zero: they are normalised here, with gradient.
        thresholds: ``[t]`` in any order, in the units of the vertices.
        sharpness: lambda > 0, per unit of length: 100 is close to exact counts on shapes of size 1, a small one
            smooths. ``None``: exact counts, with gradient 0.
        hard: exact counts, with the gradient of the smooth ones (straight-through).
        normalize: divide each shape's transform by its largest absolute value.

    Returns:
        ``[count, t, directions]``, an image a shape. Translating a shape moves, turning it exchanges its columns.

    Raises:
        TypeError: an argument has another type, or dtypes differ.
        ValueError: the dimensions of space differ, a direction has length zero, a number is NaN or infinite, or
            ``sharpness`` <= 0.

    Example:
        >>> square = Complex.from_image(torch.ones(2, 2, dtype=torch.bool))
        >>> euler_transform(square, torch.tensor([[1.0, 0.0]]), torch.tensor([-1.0, 0.0, 1.0]), sharpness=None)[0, :, 0]
        tensor([0., 1., 1.])

    References:
        Turner, Mukherjee, Boyer (2014), Persistent homology transform for modeling shapes and surfaces.
        Roell, Rieck (2024), Differentiable Euler characteristic transforms for shape classification, equation 4.
        Banchoff (1967), Critical points and curvature for embedded polyhedra (the weights of the vertices).
    """
    if not isinstance(complex, Complex):
        raise TypeError(f"complex must be a Complex, got {type(complex).__name__}")
    vertices = complex.vertices
    check_floating("directions", directions)
    check_same_dtype(vertices=vertices, directions=directions)
    if directions.ndim != 2 or directions.shape[1] != vertices.shape[1]:
        raise ValueError(f"directions must have shape (any, {vertices.shape[1]}), got {tuple(directions.shape)}")
    if can_look(vertices):
        check_finite("vertices", vertices)
    if can_look(directions):
        check_finite("directions", directions)
    heights = vertices @ _unit(directions).mT
    weights = highest_corner_weights(heights.detach(), complex.cells)
    curves = _count(heights, weights, complex.batch, thresholds, complex.count, sharpness, hard)
    if not normalize:
        return curves
    largest = curves.abs().amax((1, 2), keepdim=True) if curves.numel() else curves.new_ones(complex.count, 1, 1)
    return curves / torch.where(largest > 0, largest, 1)


class EulerTransform(nn.Module):
    r"""The Euler characteristic transform as a layer, along directions that may be learned.

    Thresholds are ``thresholds`` evenly spaced numbers from ``-radius`` to ``radius``. A forward pass warns, with their
    share, of vertices that lie outside of the radius.

    Args:
        dim: of space, >= 1.
        directions: how many.
        thresholds: how many, >= 2.
        radius: > 0, in the units of the vertices; shapes are expected within it
            (:meth:`Complex.to_unit_ball <pullback.topology.Complex.to_unit_ball>`).
        sharpness: > 0, as in :func:`euler_transform`.
        learned: whether ``directions`` is a parameter (else a buffer).
        method: of the first directions, as in :func:`sphere_directions`.
        normalize: as in :func:`euler_transform`.
        generator: draws random directions.

    Raises:
        TypeError: a number has another type.
        ValueError: a number is out of range, or ``method`` does not exist in this dimension.

    Example:
        >>> layer = EulerTransform(2, 4, 8, learned=False, method="circle")
        >>> layer(Complex.from_image(torch.ones(5, 8, 8, dtype=torch.bool)).to_unit_ball()).shape
        torch.Size([5, 8, 4])

    References:
        Roell, Rieck (2024), Differentiable Euler characteristic transforms for shape classification.
    """

    directions: Tensor
    thresholds: Tensor

    def __init__(
        self,
        dim: int,
        directions: int,
        thresholds: int,
        *,
        radius: float = 1.1,
        sharpness: float = 100.0,
        learned: bool = True,
        method: str = "uniform",
        normalize: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_integer("thresholds", thresholds, 2)
        check_positive("radius", radius)
        check_positive("sharpness", sharpness)
        start = sphere_directions(directions, dim, method=method, generator=generator)
        if learned:
            self.directions = nn.Parameter(start)
        else:
            self.register_buffer("directions", start)
        self.register_buffer("thresholds", torch.linspace(-radius, radius, thresholds))
        self.radius, self.sharpness, self.normalize = radius, sharpness, normalize

    def forward(self, complex: Complex) -> Float[Tensor, "count t directions"]:
        """Return the transform ``[count, thresholds, directions]`` of shapes, as :func:`euler_transform`."""
        if not isinstance(complex, Complex):
            raise TypeError(f"complex must be a Complex, got {type(complex).__name__}")
        if can_look(complex.vertices) and complex.vertices.numel():
            far = complex.vertices.detach().abs().amax(-1)  # the length could overflow
            outside = far * (complex.vertices.detach() / far.clamp(min=1e-30)[:, None]).norm(dim=-1) > self.radius
            share = outside.double().mean().item()
            if share:
                text = f"{100 * share:.3g} % of the vertices lie outside of the radius {self.radius:g}"
                warnings.warn(text, stacklevel=2)
        return euler_transform(
            complex, self.directions, self.thresholds, sharpness=self.sharpness, normalize=self.normalize
        )

    def extra_repr(self) -> str:
        """Say what ``repr`` shows."""
        count, dim = self.directions.shape
        return (
            f"dim={dim}, directions={count}, thresholds={len(self.thresholds)}, radius={self.radius:g}, "
            f"sharpness={self.sharpness:g}, learned={isinstance(self.directions, nn.Parameter)}"
        )


def sphere_directions(
    count: int, dim: int, *, method: str = "uniform", generator: torch.Generator | None = None
) -> Float[Tensor, "count dim"]:
    r"""Return unit vectors in ``dim`` dimensions.

    Args:
        count: how many, >= 1.
        dim: of space, >= 1.
        method: ``"uniform"`` (independent, uniform on the sphere), ``"circle"`` (2-D: the angles
            :math:`2 \pi j / \mathrm{count}`, the first along x), ``"fibonacci"`` (3-D: a spiral of nearly equal areas).
        generator: draws the random ones.

    Returns:
        ``[count, dim]`` float32 of length 1.

    Raises:
        TypeError: a number is no integer.
        ValueError: a number is < 1, or ``method`` is unknown or of another dimension.

    Example:
        >>> sphere_directions(4, 2, method="circle").round().abs().tolist()
        [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]

    References:
        Gonzalez (2010), Measurement of areas on a sphere using Fibonacci and latitude-longitude lattices.
    """
    check_integer("count", count, 1)
    check_integer("dim", dim, 1)
    check_choice("method", method, ("uniform", "circle", "fibonacci"))
    place = torch.arange(count, dtype=torch.float64)
    if method == "circle":
        if dim != 2:
            raise ValueError(f"method='circle' needs dim = 2, got {dim}")
        angle = 2 * math.pi * place / count
        return torch.stack([angle.cos(), angle.sin()], -1).float()
    if method == "fibonacci":
        if dim != 3:
            raise ValueError(f"method='fibonacci' needs dim = 3, got {dim}")
        z, angle = 1 - (2 * place + 1) / count, math.pi * (3 - math.sqrt(5)) * place
        return torch.stack([(1 - z * z).sqrt() * angle.cos(), (1 - z * z).sqrt() * angle.sin(), z], -1).float()
    return unit_vectors(count, dim, generator=generator, like=torch.device("cpu")).float()


def _unit(directions: Tensor) -> Tensor:
    largest = directions.detach().abs().amax(-1, keepdim=True)
    if can_look(directions) and bool((largest == 0).any()):
        at = int((largest[:, 0] == 0).nonzero()[0])
        raise ValueError(f"directions must have a length > 0, number {at} has 0")
    scaled = directions / largest  # lengths may overflow, and underflow
    return scaled / torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)


def _count(
    heights: Tensor,
    weights: Tensor,
    rows: Tensor,
    thresholds: Tensor,
    count: int,
    sharpness: Scalar | None,
    hard: bool,
) -> Tensor:
    """Sum weighted steps; all checks of what both forms share."""
    check_floating("thresholds", thresholds)
    check_same_dtype(heights=heights, thresholds=thresholds)
    if thresholds.ndim != 1 or not len(thresholds):
        raise ValueError(f"thresholds must have shape (t,) with t >= 1, got {tuple(thresholds.shape)}")
    if can_look(thresholds):
        check_finite("thresholds", thresholds)
    if sharpness is None:
        if hard:
            raise ValueError("hard=True takes the gradient of the smooth counts: give a sharpness")
    else:
        check_scalar("sharpness", sharpness)
    dtype, wide = heights.dtype, torch.promote_types(heights.dtype, torch.float32)
    order = thresholds.detach().argsort()
    back = order.argsort()
    u, weights, t = heights.to(wide), weights.to(wide), thresholds.to(wide)[order]
    exact = soft = None
    if sharpness is None or hard:
        exact = step_sum(u.detach(), weights, rows, t.detach(), count, None)
    if sharpness is not None:
        u, t = u * sharpness, t * sharpness
        if is_transformed(u) or is_transformed(t):
            soft = step_sum(u, weights, rows, t, count, 0)
        else:
            soft = _LogisticSum.apply(u, weights, rows, t, count, 0)
    result = soft if exact is None else exact if soft is None else replace_gradient(exact, soft)
    assert result is not None
    return result.transpose(1, 2)[:, back].to(dtype)


class _LogisticSum(torch.autograd.Function):
    """``out_rji = sum_{v in r} w_vj S^(order)(t_i - u_vj)``: its derivatives are of the same kind, of any order."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, weights: Tensor, rows: Tensor, t: Tensor, count: int, order: int) -> Tensor:
        ctx.save_for_backward(u, weights, rows, t)
        ctx.count, ctx.order = count, order
        return step_sum(u, weights, rows, t, count, order)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        u, weights, rows, t = ctx.saved_tensors
        of_u = of_weights = of_t = None
        if ctx.needs_input_grad[0]:
            of_u = -_LogisticPull.apply(u, weights, rows, t, cotangent, ctx.order + 1)
        if ctx.needs_input_grad[1]:
            of_weights = _LogisticPull.apply(u, torch.ones_like(u), rows, t, cotangent, ctx.order)
        if ctx.needs_input_grad[3]:
            of_t = (cotangent * _LogisticSum.apply(u, weights, rows, t, ctx.count, ctx.order + 1)).sum((0, 1))
        return of_u, of_weights, None, of_t, None, None


class _LogisticPull(torch.autograd.Function):
    """``out_vj = w_vj sum_i g_rji S^(order)(t_i - u_vj)`` with the row r of v: the transpose of the sum."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, weights: Tensor, rows: Tensor, t: Tensor, g: Tensor, order: int) -> Tensor:
        ctx.save_for_backward(u, weights, rows, t, g)
        ctx.order = order
        return logistic_pull(u, weights, rows, t, g, order)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        u, weights, rows, t, g = ctx.saved_tensors
        scaled, count = cotangent * weights, len(g)
        of_u = of_weights = of_t = of_g = None
        if ctx.needs_input_grad[0]:
            of_u = -_LogisticPull.apply(u, scaled, rows, t, g, ctx.order + 1)
        if ctx.needs_input_grad[1]:
            of_weights = cotangent * _LogisticPull.apply(u, torch.ones_like(u), rows, t, g, ctx.order)
        if ctx.needs_input_grad[3]:
            of_t = (g * _LogisticSum.apply(u, scaled, rows, t, count, ctx.order + 1)).sum((0, 1))
        if ctx.needs_input_grad[4]:
            of_g = _LogisticSum.apply(u, scaled, rows, t, count, ctx.order)
        return of_u, of_weights, None, of_t, of_g, None
