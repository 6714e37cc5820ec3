r"""Polygons in the plane: coverage with a gradient, and how well one follows another."""

from __future__ import annotations

import torch

from pullback.core.checks import (
    check_broadcast,
    check_finite,
    check_floating,
    check_integer,
    check_positive,
    check_same_dtype,
    check_tensor,
)
from pullback.core.shapes import Bool, Float, Tensor
from pullback.core.transforms import can_look

__all__ = ["complexity_iou", "polis_distance", "polygon_iou", "rasterize_polygon"]


def rasterize_polygon(
    vertices: Float[Tensor, "*batch n 2"], size: int | tuple[int, int], *, softness: float = 0.0
) -> Float[Tensor, "*batch height width"]:
    r"""Return how far each pixel is covered: :math:`\sigma(d / s)`, d the distance of its middle to the boundary.

    d is positive inside (by the even-odd rule), negative outside. The pixel in row r and column c is the square from
    (r, c) to (r + 1, c + 1).

    Args:
        vertices: ``[*batch, n, 2]`` rows and columns of the corners in pixels, n >= 3; the last is joined with the
            first. They may lie outside of the image.
        size: height and width in pixels, >= 1, or one number for both.
        softness: s >= 0 in pixels. 0: 1 where the middle is inside, else 0, without a gradient.

    Returns:
        ``[*batch, height, width]`` in [0, 1].

    Raises:
        TypeError: ``vertices`` is no floating tensor, or a size no integer.
        ValueError: fewer than three corners, a corner is not finite, a size < 1, a negative softness.

    Example:
        >>> square = torch.tensor([[1.0, 1.0], [1.0, 3.0], [3.0, 3.0], [3.0, 1.0]])
        >>> rasterize_polygon(square, 4).int()
        tensor([[0, 0, 0, 0],
                [0, 1, 1, 0],
                [0, 1, 1, 0],
                [0, 0, 0, 0]], dtype=torch.int32)

    References:
        Liu, Li, Chen, Li (2019), Soft rasterizer, equation 1 (with the distance in place of its square).
    """
    _check_polygon("vertices", vertices)
    height, width = (size, size) if isinstance(size, int) else size
    for name, value in (("height", height), ("width", width)):
        check_integer(f"the {name} of size", value, 1)
    check_positive("softness", softness, zero=True)
    x = vertices.to(torch.promote_types(vertices.dtype, torch.float32))
    rows = torch.arange(height, dtype=x.dtype, device=x.device) + 0.5
    columns = torch.arange(width, dtype=x.dtype, device=x.device) + 0.5
    pixels = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).flatten(0, 1)
    inside = _inside(pixels, x.detach())
    if softness == 0:
        return inside.to(vertices.dtype).unflatten(-1, (height, width))
    distance = _to_boundary(pixels, x)
    return (
        torch.sigmoid(torch.where(inside, distance, -distance) / softness)
        .to(vertices.dtype)
        .unflatten(-1, (height, width))
    )


def polygon_iou(mask: Bool[Tensor, "*#batch h w"], truth: Bool[Tensor, "*#batch h w"]) -> Float[Tensor, "*batch"]:
    """Return the area of the intersection as a part of that of the union, of rasterised polygons.

    Args:
        mask: ``[*batch, h, w]`` which pixels are covered, by all polygons of a tile.
        truth: ``[*batch, h, w]`` which should be.

    Returns:
        ``[*batch]`` in [0, 1]; 1 where both are empty.

    Raises:
        TypeError: an argument is no boolean tensor.
        ValueError: the shapes do not broadcast.

    Example:
        >>> polygon_iou(torch.tensor([[True, True]]), torch.tensor([[True, False]]))
        tensor(0.5000)
    """
    for name, value in (("mask", mask), ("truth", truth)):
        if check_tensor(name, value).dtype != torch.bool:
            raise TypeError(f"{name} must be a boolean tensor, got {value.dtype}")
        if value.ndim < 2:
            raise ValueError(f"{name} must have shape (..., h, w), got {tuple(value.shape)}")
    check_broadcast(mask=tuple(mask.shape), truth=tuple(truth.shape))
    both, either = (x.flatten(-2).sum(-1) for x in (mask & truth, mask | truth))
    return torch.where(either > 0, both / either.clamp(min=1), 1.0)


def complexity_iou(
    iou: Float[Tensor, "*#batch"], vertices: Float[Tensor, "*#batch"], truth: Float[Tensor, "*#batch"]
) -> Float[Tensor, "*batch"]:
    r"""Return the intersection over union, less where there are too many or too few corners.

    .. math:: \mathrm{IoU} \cdot \Bigl(1 - \frac{|N - N'|}{N + N'}\Bigr)

    Args:
        iou: ``[*batch]`` in [0, 1].
        vertices: ``[*batch]`` corners N of what was found, >= 0.
        truth: ``[*batch]`` corners N' of the truth, >= 0.

    Returns:
        ``[*batch]`` in [0, 1]; the iou itself where neither has corners.

    Raises:
        TypeError: an argument is no floating tensor, or the dtypes differ.
        ValueError: the shapes do not broadcast, or a number of corners is negative.

    Example:
        >>> complexity_iou(torch.tensor(0.8), torch.tensor(8.0), torch.tensor(4.0))
        tensor(0.5333)

    References:
        Zorzi, Bazrafkan, Habenschuss, Fraundorfer (2022), PolyWorld, equation 10.
    """
    named = {"iou": iou, "vertices": vertices, "truth": truth}
    for name, value in named.items():
        check_floating(name, value)
    check_same_dtype(**named)
    check_broadcast(**{name: tuple(value.shape) for name, value in named.items()})
    for name, value in (("vertices", vertices), ("truth", truth)):
        if can_look(value) and bool((value < 0).any()):
            raise ValueError(f"{name} must be >= 0")
    wide = torch.promote_types(iou.dtype, torch.float32)
    n, m = vertices.to(wide) / 2, truth.to(wide) / 2  # their sum is a number of the dtype
    total = n + m
    return (iou.to(wide) * (1 - (n - m).abs() / torch.where(total > 0, total, 1))).to(iou.dtype)


def polis_distance(
    first: Float[Tensor, "*#batch n 2"], second: Float[Tensor, "*#batch m 2"]
) -> Float[Tensor, "*batch"]:
    r"""Return the mean distance of the corners of each polygon to the boundary of the other, averaged over both.

    .. math::
        \frac{1}{2n} \sum_i \min_{q \in \partial B} |a_i - q| +
        \frac{1}{2m} \sum_j \min_{q \in \partial A} |b_j - q|

    Args:
        first: ``[*batch, n, 2]`` corners of A in order, n >= 3.
        second: ``[*batch, m, 2]`` corners of B, m >= 3, in the same unit.

    Returns:
        ``[*batch]`` >= 0 in that unit, differentiable; a corner that lies on the other's boundary has gradient 0.

    Raises:
        TypeError: an argument is no floating tensor, or the dtypes differ.
        ValueError: fewer than three corners, shapes that do not broadcast, a corner is not finite.

    Example:
        >>> square = torch.tensor([[0.0, 0.0], [0.0, 2.0], [2.0, 2.0], [2.0, 0.0]])
        >>> polis_distance(square, square + torch.tensor([0.5, 0.0]))
        tensor(0.2500)

    References:
        Avbelj, Mueller, Bamler (2015), A metric for polygon comparison and building extraction evaluation.
    """
    _check_polygon("first", first)
    _check_polygon("second", second)
    check_same_dtype(first=first, second=second)
    check_broadcast(first=tuple(first.shape[:-2]), second=tuple(second.shape[:-2]))
    a, b = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (first, second))
    return ((_to_boundary(a, b).mean(-1) + _to_boundary(b, a).mean(-1)) / 2).to(first.dtype)


def _check_polygon(name: str, vertices: Tensor) -> None:
    if check_floating(name, vertices).ndim < 2 or vertices.shape[-1] != 2 or vertices.shape[-2] < 3:
        raise ValueError(f"{name} must have shape (..., n, 2) with n >= 3, got {tuple(vertices.shape)}")
    if can_look(vertices):
        check_finite(name, vertices)


def _inside(points: Tensor, vertices: Tensor) -> Tensor:
    """Count the edges that a ray to the right crosses: ``[*batch, p]`` of points ``[p, 2]``."""
    start, end = vertices.unsqueeze(-3), vertices.roll(-1, -2).unsqueeze(-3)  # [*batch, 1, n, 2]
    row, column = points[:, None, 0], points[:, None, 1]
    spans = (start[..., 0] > row) != (end[..., 0] > row)
    rise = end[..., 0] - start[..., 0]
    share = (row - start[..., 0]) / torch.where(spans, rise, 1)
    crossed = spans & (column < start[..., 1] + share * (end[..., 1] - start[..., 1]))
    return crossed.sum(-1) % 2 == 1


def _to_boundary(points: Tensor, vertices: Tensor) -> Tensor:
    """Distances ``[*batch, p]`` of points ``[*batch, p, 2]`` to the nearest edge."""
    start, end = vertices.unsqueeze(-3), vertices.roll(-1, -2).unsqueeze(-3)
    edge, offset = end - start, points.unsqueeze(-2) - start
    length = edge.square().sum(-1)
    share = ((offset * edge).sum(-1) / torch.where(length > 0, length, 1)).clamp(0, 1)
    squared = (offset - share.unsqueeze(-1) * edge).square().sum(-1).amin(-1)
    positive = squared > 0
    return torch.where(positive, torch.where(positive, squared, 1).sqrt(), 0)
