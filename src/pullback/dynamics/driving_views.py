"""A drive through a town as masks from above and as the picture of a camera."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback.core.random import drawing_device
from pullback.core.shapes import Float
from pullback.dynamics.driving_town import (
    AHEAD,
    BLOCK,
    BOX,
    HALF,
    NOSE,
    SPACING,
    WALL,
    YELLOW,
    DrivingState,
    axes,
    from_street,
    next_stop,
    pick,
    to_ego,
    to_world,
    walkers_at,
)

__all__ = ["ground_pixels", "render_masks", "render_picture"]

_GRID = 32
_FRONT = 24  # rows of the map in front of the ego vehicle
_HIGH, _FOCAL, _HORIZON = 2.5, 48.0, 16.0  # camera: metres, pixels, row
_ROWS, _COLUMNS = 48, 96
_BILLBOARDS = 8  # nearest things that the camera draws
_TEXELS = 4  # a metre


def render_masks(state: DrivingState) -> Float[Tensor, "batch 8 32 32"]:
    """Return masks of what is around the ego vehicle, see :meth:`DrivingWorld.render_bev`."""
    state = DrivingState(*(value.detach() for value in state))
    count, device = len(state.ego), state.ego.device
    line = torch.arange(_GRID, device=device) + 0.5
    grid = torch.stack(torch.meshgrid(_FRONT - line, line - _GRID / 2, indexing="ij"), -1).view(1, -1, 2)
    x, y = (from_street(value).abs() for value in to_world(state.ego, grid).unbind(-1))
    near, far = torch.minimum(x, y), torch.maximum(x, y)
    corner = (BOX - near).square() + (BOX - far).square() > 2.0**2  # kerbs are round there
    road = (near < HALF) | ((far < BOX) & corner)
    masks = torch.zeros(count, 8 * _GRID**2 + 1, device=device)
    masks[:, : _GRID**2] = road.float()
    masks[:, 2 * _GRID**2 : 3 * _GRID**2] = ((near < 0.75) & (far > BOX)).float()
    place = (state.progress / SPACING).round().long()[:, None] + torch.arange(AHEAD - 4, device=device)
    path = pick(state.route, place)
    wide = torch.tensor([-1.0, 0.0, 1.0], device=device)
    along, aside = torch.meshgrid(torch.linspace(-2, 2, 9), torch.linspace(-0.8, 0.8, 4), indexing="ij")
    body = torch.stack([along, aside], -1).view(1, 1, -1, 2).to(device)
    feet = torch.cartesian_prod(*[torch.tensor([-0.5, 0.5], device=device)] * 2)
    ahead = axes(state.vehicles[..., 2])[0]
    earlier = state.vehicles[..., :2] - 0.5 * state.vehicles[..., 3:] * ahead
    before = torch.cat([earlier, state.vehicles[..., 2:]], -1)
    stop, red = next_stop(state, YELLOW)
    at = pick(state.route, ((state.progress + stop + NOSE) / SPACING).round().long()[:, None])
    points = {
        1: path[:, :, None, :2] + wide[:, None] * axes(path[..., 2])[1][:, :, None],
        3: to_world(state.vehicles, body),
        4: to_world(before, body),
        5: walkers_at(state, 0.0)[:, :, None] + feet,
        6: walkers_at(state, -0.5)[:, :, None] + feet,
        7: torch.where(red[:, None, None, None], to_world(at, 1.75 * wide[:, None] * body.new_tensor([0, 1])), 1e4),
    }
    for mask, found in points.items():
        seen = to_ego(state.ego, found.flatten(1, 2), torus=mask != 7)
        row, column = (_FRONT - seen[..., 0]).floor().long(), (seen[..., 1] + _GRID / 2).floor().long()
        inside = (row >= 0) & (row < _GRID) & (column >= 0) & (column < _GRID)
        index = torch.where(inside, (mask * _GRID + row) * _GRID + column, masks.shape[1] - 1)
        masks.scatter_(1, index, 1.0)
    return masks[:, :-1].view(count, -1, _GRID, _GRID)


def render_picture(
    state: DrivingState,
    textures: Float[Tensor, "3 size size"],
    *,
    noise: float = 0.05,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "batch 3 48 96"]:
    """Return what the camera sees, see :meth:`DrivingWorld.render_camera`."""
    state = DrivingState(*(value.detach() for value in state))
    device, count = state.ego.device, len(state.ego)
    ground, wall = _ground(textures).to(device), textures[2].reshape(-1, 1).to(device)
    wall = wall * wall.new_tensor([1.0, 0.6, 0.5])
    boards, colours = _boards(state)
    plain = colours.new_tensor([[0.7, 0.85, 1.0], [0.2, 0.2, 0.2]])  # sky, dirt
    table = torch.cat([ground, wall, plain, colours.flatten(0, 1)])
    first_wall, sky = len(ground), len(ground) + len(wall)
    row = (torch.arange(_ROWS, device=device) + 0.5 - _HORIZON) / _FOCAL
    column = (torch.arange(_COLUMNS, device=device) + 0.5 - _COLUMNS / 2) / _FOCAL
    ahead, right = axes(state.ego[:, 2])
    ray = ahead[:, None] + column[:, None] * right[:, None]  # [batch, columns, 2]
    depth = torch.arange(2.0, 46.0, device=device)
    x, y = (state.ego[:, None, None, i] + ray[..., i, None] * depth for i in (0, 1))
    hit = (from_street(x).abs() > WALL) & (from_street(y).abs() > WALL)
    house = torch.where(hit, depth, 1e3).amin(-1)[:, None]  # [batch, 1, columns]
    floor = torch.where(row > 0.02, _HIGH / row.clamp(min=0.02), 1e3)[:, None]  # [rows, 1]
    far = torch.minimum(floor, house)
    x, y = (state.ego[:, None, None, i] + ray[:, None, :, i] * far for i in (0, 1))
    label = _texel(x, BLOCK) * int(BLOCK * _TEXELS) + _texel(y, BLOCK)
    size = textures.shape[-1] / _TEXELS
    height = _HIGH - row[:, None] * house
    brick = first_wall + _texel(x + y, size) * textures.shape[-1] + _texel(height, size)
    upright = floor >= house
    label = torch.where(upright, brick, label)
    label = torch.where((far >= 1e3) | (upright & (height > 8)), sky, label)
    first = sky + 2 + colours.shape[1] * torch.arange(count, dtype=torch.int32, device=device)[:, None, None]
    for k in range(colours.shape[1]):  # the furthest first
        d, left, edge, low, high = (value[:, None, None] for value in boards[:, k].unbind(-1))
        rows = (row[:, None] < (_HIGH - low) / d) & (row[:, None] > (_HIGH - high) / d)
        label = torch.where(rows & ((column > left) & (column < edge) & (d < house)), first + k, label)
    if noise:
        drawn = drawing_device(generator, device)
        dirt = torch.rand(count, 4, generator=generator, device=drawn).to(device)
        rows = (torch.arange(_ROWS, device=device) - _ROWS * dirt[:, :1]).abs() < 4 * dirt[:, 2:3]
        columns = (torch.arange(_COLUMNS, device=device) - _COLUMNS * dirt[:, 1:2]).abs() < 8 * dirt[:, 3:]
        label = torch.where(rows[:, :, None] & columns[:, None], sky + 1, label)
    image = table.index_select(0, label.flatten()).view(*label.shape, 3)
    if noise:
        grain = torch.randn(label.shape, generator=generator, device=drawn)
        image += noise * grain.to(device)[..., None]
    return image.clamp_(0, 1).permute(0, 3, 1, 2)


def ground_pixels() -> Float[Tensor, "32 32 2"]:
    """Return where in the picture of the camera the cells of the map lie on the ground, as ``grid_sample`` has it.

    Outside of [-1, 1] where the camera does not see them.
    """
    line = torch.arange(_GRID) + 0.5
    ahead, right = torch.meshgrid(_FRONT - line, line - _GRID / 2, indexing="ij")
    seen = ahead > 1.0
    depth = ahead.clamp(min=1.0)
    column = torch.where(seen, 2 * _FOCAL * right / depth / _COLUMNS, 9.0)
    return torch.stack([column, 2 * (_HORIZON + _FOCAL * _HIGH / depth) / _ROWS - 1], -1)


def _boards(state: DrivingState) -> tuple[Tensor, Tensor]:
    """Vehicles, walkers and a light as boards, the furthest first: depth, edges, heights; and their colours."""
    corners = state.ego.new_tensor([[2.2, 0.95], [2.2, -0.95], [-2.2, 0.95], [-2.2, -0.95]])
    boxes = to_ego(state.ego, to_world(state.vehicles, corners).flatten(1, 2)).unflatten(1, (-1, 4))
    feet = to_ego(state.ego, walkers_at(state, 0.0))
    stop, red = next_stop(state, 0.0)
    warned = next_stop(state, YELLOW)[1]
    at = pick(state.route, ((state.progress + stop + NOSE) / SPACING).round().long()[:, None])
    head = to_ego(state.ego, to_world(at, at.new_tensor([[2 * BOX, 2.5]])).flatten(1, 2), torus=False)
    lines = [boxes[..., 1] / boxes[..., 0].clamp(min=0.5)]
    lines += [(p[..., 1:] + p.new_tensor([-w, w])) / p[..., :1].clamp(min=0.5) for p, w in ((feet, 0.4), (head, 0.8))]
    left, right = (torch.cat([edges(line, -1) for line in lines], 1) for edges in (torch.amin, torch.amax))
    depth = torch.cat([boxes[..., 0].amin(-1), feet[..., 0], head[..., 0]], 1)
    low, high = torch.zeros_like(depth), torch.full_like(depth, 1.6)
    low[:, -1], high[:, -1], high[:, len(state.desired[0]) : -1] = 2.2, 4.2, 1.8
    lit = depth.new_tensor([[0.0, 1.0, 0.2], [1.0, 0.8, 0.0], [1.0, 0.0, 0.0]])[warned.long() + red.long()]
    dressed = depth.new_tensor([0.95, 0.5, 0.9]).expand(*feet.shape[:2], 3)
    depth = torch.where((depth > 0.8) & (depth < 60), depth, 1e6)
    order = depth.topk(min(_BILLBOARDS, depth.shape[1]), largest=False).indices.flip(-1)[..., None]
    boards = torch.stack([depth, left, right, low, high], -1)
    colours = torch.cat([state.paint, dressed, lit[:, None]], 1)
    return boards.gather(1, order.expand(-1, -1, 5)), colours.gather(1, order.expand(-1, -1, 3))


def _ground(textures: Tensor) -> Tensor:
    """Colours of a block from above, from one crossing to the next, a texel a row: street, verge, lines."""
    line = (torch.arange(int(BLOCK * _TEXELS), device=textures.device) + 0.5) / _TEXELS
    x, y = torch.meshgrid(line, line, indexing="ij")
    off = torch.stack([from_street(x).abs(), from_street(y).abs()])
    near, far = off.amin(0), off.amax(0)
    at = [(_TEXELS * v).long() % textures.shape[-1] for v in (x, y)]
    street, verge = textures[0][at[0], at[1]], textures[1][at[0], at[1]]
    street = street[..., None] * street.new_tensor([0.55, 0.55, 0.6])
    verge = verge[..., None] * street.new_tensor([0.5, 0.85, 0.4])
    painted = ((near < 0.25) & (far > BOX)) | (((off - BOX).abs().amin(0) < 0.4) & (near < HALF))
    colours = torch.where((near < HALF)[..., None], street, verge)
    return torch.where(painted[..., None], 0.9, colours).flatten(0, 1)


def _texel(x: Tensor, period: float) -> Tensor:
    """Number of the texel of a texture that repeats itself after some metres."""
    share = x / period
    return ((share - share.floor()) * (period * _TEXELS)).int().clamp_(max=int(period * _TEXELS) - 1)
