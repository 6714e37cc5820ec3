"""Maps from above: what cameras see, carried by its depth to the cells of a ground grid, and a memory of such maps."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from pullback.core.checks import check_floating, check_integer, check_positive, check_same_dtype, check_shape
from pullback.core.shapes import Bool, Float, Int, Tensor
from pullback.geometry import Camera

__all__ = ["MapMemory", "TopDownMap", "project_to_map"]


class TopDownMap(NamedTuple):
    """What a view says about the cells of a grid.

    Attributes:
        features: ``[*batch, channels, rows, columns]`` mean over the pixels that fall into a cell, 0 where none does.
        hits: ``[*batch, rows, columns]`` int64, how many do.
    """

    features: Float[Tensor, "*batch channels rows columns"]
    hits: Int[Tensor, "*batch rows columns"]


def project_to_map(
    features: Float[Tensor, "*#batch channels height width"],
    depth: Float[Tensor, "*#batch height width"],
    camera: Camera,
    *,
    size: tuple[int, int],
    cell: float,
    origin: tuple[float, float] = (0.0, 0.0),
    axes: tuple[int, int] = (0, 1),
) -> TopDownMap:
    """Carry the features of an image to the ground cells above which their pixels lie, and average them there.

    Pixel centres are placed in the world by their depth; the two world coordinates ``axes`` say in which column and row
    a place is, the third is forgotten. Cells are hard: the map is differentiable in ``features``, and in nothing else.

    Args:
        features: ``[*batch, channels, height, width]``.
        depth: ``[*batch, height, width]`` metres along the viewing axis. Pixels that have none (not finite, or <= 0)
            are left out.
        camera: of that size; its batch shape broadcasts with that of the images.
        size: rows and columns of the map.
        cell: side of a cell, metres, > 0.
        origin: world coordinates (of ``axes``) of the corner of cell (0, 0), metres.
        axes: which world coordinate grows along columns, and which along rows; each 0, 1 or 2, different.

    Returns:
        A :class:`TopDownMap`.

    Raises:
        TypeError: a tensor is not floating, or the dtypes differ.
        ValueError: a shape, ``size``, ``cell`` or ``axes`` is not as said.

    Example:
        >>> seen = project_to_map(
        ...     torch.tensor([[[1.0, 3.0]]]), torch.tensor([[2.0, 2.0]]), Camera.pinhole(1.0, (1, 2)),
        ...     size=(1, 4), cell=1.0, origin=(-2.0, -0.5),
        ... )  # fmt: skip
        >>> seen.features.tolist(), seen.hits.tolist()
        ([[[0.0, 1.0, 0.0, 3.0]]], [[0, 1, 0, 1]])

    References:
        Anderson, Shrivastava, Parikh, Batra, Lee (2019), Chasing Ghosts, section 4.1.
    """
    check_shape("features", check_floating("features", features), (None, *camera.size))
    check_shape("depth", check_floating("depth", depth), camera.size)
    check_same_dtype(features=features, depth=depth, camera=camera.intrinsics)
    rows, columns = (check_integer(name, value, 1) for name, value in zip(("rows", "columns"), size, strict=True))
    check_positive("cell", cell)
    if len(set(axes)) != 2 or not set(axes) <= {0, 1, 2}:
        raise ValueError(f"axes must be two different ones of 0, 1, 2, got {axes}")
    batch = torch.broadcast_shapes(features.shape[:-3], depth.shape[:-2], camera.batch_shape)
    channels, (height, width) = features.shape[-3], camera.size
    with torch.no_grad():
        known = (depth.isfinite() & (depth > 0)).flatten(-2)
        y, x = torch.meshgrid(*(torch.arange(n).to(depth) + 0.5 for n in (height, width)), indexing="ij")
        pixels = torch.stack([x, y], -1).reshape(-1, 2)
        points = camera.unproject(pixels.expand(*depth.shape[:-2], -1, 2), torch.where(known, depth.flatten(-2), 1.0))
        corner = torch.tensor(origin, dtype=torch.float64, device=points.device)
        column, row = ((points[..., list(axes)].double() - corner) / cell).floor().unbind(-1)
        inside = known & (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
        place = torch.where(inside, row * columns + column, rows * columns).long().expand(*batch, -1)
        count = place.new_zeros(*batch, rows * columns + 1).scatter_add(-1, place, torch.ones_like(place))[..., :-1]
    flat = features.flatten(-2).expand(*batch, -1, -1)
    target = place.unsqueeze(-2).expand(*batch, channels, -1)
    # Shares first: a sum of the largest features would overflow.
    share = 1 / torch.nn.functional.pad(count, (0, 1), value=1).clamp(min=1).to(features).gather(-1, place)
    total = flat.new_zeros(*batch, channels, rows * columns + 1).scatter_add(-1, target, flat * share.unsqueeze(-2))
    return TopDownMap(total[..., :-1].unflatten(-1, (rows, columns)), count.unflatten(-1, (rows, columns)))


class MapMemory(nn.Module):
    r"""A convolutional gated recurrent unit that changes a map only where something was seen.

    .. math:: z, r = \sigma(W_z * [x, h]),\ \sigma(W_r * [x, h]),\quad
              h' = (1 - z)\, h + z \tanh(W_h * [x, r h]) \text{ where seen, else } h

    Args:
        channels: of what is seen, >= 1.
        hidden: of the memory, >= 1.
        kernel: side of the convolutions, odd, >= 1.

    Raises:
        ValueError: sizes below one, an even kernel.

    Example:
        >>> memory = MapMemory(2, 3)
        >>> seen = torch.tensor([[True, False]])
        >>> (memory(torch.ones(2, 1, 2), seen) != 0).any(0).tolist()
        [[True, False]]

    References:
        Cho et al. (2014), Ballas et al. (2016); with the masked update of Anderson et al. (2019), section 4.1.
    """

    def __init__(self, channels: int, hidden: int, *, kernel: int = 3) -> None:
        super().__init__()
        for name, value in (("channels", channels), ("hidden", hidden), ("kernel", kernel)):
            check_integer(name, value, 1)
        if kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, got {kernel}")
        self.channels, self.hidden = channels, hidden
        self.gates = nn.Conv2d(channels + hidden, 2 * hidden, kernel, padding=kernel // 2)
        self.candidate = nn.Conv2d(channels + hidden, hidden, kernel, padding=kernel // 2)

    def forward(
        self,
        seen: Float[Tensor, "*batch channels rows columns"],
        mask: Bool[Tensor, "*#batch rows columns"],
        state: Float[Tensor, "*#batch hidden rows columns"] | None = None,
    ) -> Float[Tensor, "*batch hidden rows columns"]:
        """Return the memory after a view.

        Args:
            seen: ``[*batch, channels, rows, columns]``, as :func:`project_to_map` makes it.
            mask: ``[*batch, rows, columns]`` booleans, where something was seen (``hits > 0``).
            state: ``[*batch, hidden, rows, columns]`` before it; zeros by default. Batch shapes
                broadcast.

        Raises:
            TypeError: a tensor of another kind or dtype than the weights.
            ValueError: a shape is not as said.
        """
        check_shape("seen", check_floating("seen", seen), (self.channels, None, None))
        if mask.dtype != torch.bool:
            raise TypeError(f"mask must hold booleans, got {mask.dtype}")
        check_shape("mask", mask, tuple(seen.shape[-2:]))
        rows, columns = seen.shape[-2:]
        if state is None:
            state = seen.new_zeros(self.hidden, rows, columns)
        check_shape("state", check_floating("state", state), (self.hidden, rows, columns))
        check_same_dtype(seen=seen, state=state, weights=self.gates.weight)
        batch = torch.broadcast_shapes(seen.shape[:-3], mask.shape[:-2], state.shape[:-3])
        x, h = (t.expand(*batch, *t.shape[-3:]).reshape(batch.numel(), *t.shape[-3:]) for t in (seen, state))
        update, reset = torch.sigmoid(self.gates(torch.cat([x, h], 1))).chunk(2, 1)
        new = torch.tanh(self.candidate(torch.cat([x, reset * h], 1)))
        changed = mask.expand(*batch, rows, columns).reshape(batch.numel(), 1, rows, columns)
        return torch.where(changed, torch.lerp(h, new, update), h).reshape(*batch, self.hidden, rows, columns)
