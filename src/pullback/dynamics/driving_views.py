"""A drive through a town as masks from above and as the picture of a camera."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback.core.checks import check_floating, check_positive
from pullback.core.random import drawing_device
from pullback.core.shapes import Float
from pullback.dynamics.driving_town import (
    AHEAD,
    BLOCK,
    BOX,
    HALF,
    NOSE,
    SPACING,
    TOWN,
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

__all__ = ["DrivingCamera", "render_masks"]

_GRID = 32
_FRONT = 24  # rows of the map in front of the ego vehicle
_HIGH, _FOCAL, _HORIZON = 2.5, 48.0, 16.0  # camera: metres, pixels, row
_ROWS, _COLUMNS = 48, 96
_BILLBOARDS = 6  # nearest things that the camera draws
_SIDE = 256  # texels of a block and of a wall's texture, a power of 2
_TEXELS = _SIDE / BLOCK  # a metre
_PART = 96  # scenes at once


def render_masks(state: DrivingState) -> Float[Tensor, "batch 8 32 32"]:
    """Return masks of what is around the ego vehicle, see :meth:`DrivingWorld.render_bev`."""
    state = DrivingState(*(value.detach() for value in state))
    count, device = len(state.ego), state.ego.device
    if count > _PART:
        return torch.cat([render_masks(part) for part in _parts(state)])
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


class DrivingCamera:
    """What a camera over the bonnet sees of a town: 90 degrees wide, 2.5 m high, 48 x 96 pixels.

    Streets, verges and houses wear textures, houses hide what is behind them; vehicles, walkers and the light beyond
    the next crossing are boards that face the camera. A random patch of each picture is dirty.

    Args:
        textures: ``[3, size, size]`` grey in [0, 1], 16 pixels on 3 metres: of street, verge and wall.
        noise: standard deviation of the grain of pixels, >= 0; 0 leaves out the dirt too.

    Raises:
        TypeError: the textures are not floating.
        ValueError: textures of another shape, or ``noise`` < 0.

    Example:
        >>> from pullback.dynamics import DrivingWorld
        >>> state = DrivingWorld().sample(2, generator=torch.Generator().manual_seed(0))
        >>> DrivingCamera(torch.rand(3, 64, 64))(state).shape
        torch.Size([2, 3, 48, 96])
    """

    def __init__(self, textures: Float[Tensor, "3 size size"], *, noise: float = 0.05) -> None:
        shape = check_floating("textures", textures).shape
        if len(shape) != 3 or shape[0] != 3 or not shape[1] == shape[2] > 0:
            raise ValueError(f"textures must have shape [3, size, size], got {tuple(shape)}")
        check_positive("noise", noise, zero=True)
        self.noise = float(noise)
        self.surfaces = torch.cat(_surfaces(textures))

    def __call__(
        self, state: DrivingState, *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch 3 48 96"]:
        """Return pictures in [0, 1], without derivatives.

        Args:
            state: ``[batch]`` scenes.
            generator: of noise and dirt.
        """
        state = DrivingState(*(value.detach() for value in state))
        device, count = state.ego.device, len(state.ego)
        if count > _PART:
            return torch.cat([self(part, generator=generator) for part in _parts(state)])
        boards, colours = _boards(state)
        plain = colours.new_tensor([[0.7, 0.85, 1.0], [0.2, 0.2, 0.2]])  # sky, dirt
        table = torch.cat([self.surfaces.to(colours), plain, colours.flatten(0, 1)])
        sky = len(self.surfaces)
        row = (torch.arange(_ROWS, device=device) + 0.5 - _HORIZON) / _FOCAL
        column = (torch.arange(_COLUMNS, device=device) + 0.5 - _COLUMNS / 2) / _FOCAL
        ahead, right = axes(state.ego[:, 2])
        ray = ahead[:, None] + column[:, None] * right[:, None]  # [batch, columns, 2]
        house = _walls(state.ego[:, None, :2], ray)[:, None]  # [batch, 1, columns]
        floor = torch.where(row > 0.02, _HIGH / row.clamp(min=0.02), 1e3)[:, None]  # [rows, 1]
        far, upright = torch.minimum(floor, house), floor >= house
        start = (state.ego[:, None, None, :2] + 16 * TOWN) * _TEXELS  # above 0: an integer is the floor
        x, y = ((start[..., i] + _TEXELS * ray[:, None, :, i] * far).int() for i in (0, 1))
        height = _HIGH - row[:, None] * house
        brick = _SIDE**2 + ((x + y) & (_SIDE - 1)) * _SIDE + ((height * _TEXELS).int() & (_SIDE - 1))
        brick = torch.where(height > 8, sky, brick)
        label = torch.where(upright, brick, (x & (_SIDE - 1)) * _SIDE + (y & (_SIDE - 1)))
        label = torch.where(far >= 1e3, sky, label)
        first = sky + 2 + colours.shape[1] * torch.arange(count, dtype=torch.int32, device=device)[:, None, None]
        for k in range(colours.shape[1]):  # the furthest first
            d, left, edge, low, high = (value[:, None, None] for value in boards[:, k].unbind(-1))
            rows = (row[:, None] < (_HIGH - low) / d) & (row[:, None] > (_HIGH - high) / d)
            label = torch.where(rows & ((column > left) & (column < edge) & (d < house)), first + k, label)
        if self.noise:
            drawn = drawing_device(generator, device)
            dirt = torch.rand(count, 4, generator=generator, device=drawn).to(device)
            rows = (torch.arange(_ROWS, device=device) - _ROWS * dirt[:, :1]).abs() < 4 * dirt[:, 2:3]
            columns = (torch.arange(_COLUMNS, device=device) - _COLUMNS * dirt[:, 1:2]).abs() < 8 * dirt[:, 3:]
            label = torch.where(rows[:, :, None] & columns[:, None], sky + 1, label)
        image = table.index_select(0, label.flatten()).view(*label.shape, 3)
        if self.noise:
            grain = torch.rand(label.shape, generator=generator, device=drawn).to(device) - 0.5
            image += (12**0.5 * self.noise) * grain[..., None]
        return image.clamp_(0, 1).permute(0, 3, 1, 2)

    @staticmethod
    def ground() -> Float[Tensor, "32 32 2"]:
        """Return where in the picture the cells of the map lie on the ground, as ``grid_sample`` has places.

        Outside of [-1, 1] where the camera does not see them.
        """
        line = torch.arange(_GRID) + 0.5
        ahead, right = torch.meshgrid(_FRONT - line, line - _GRID / 2, indexing="ij")
        depth = ahead.clamp(min=1.0)
        column = torch.where(ahead > 1.0, 2 * _FOCAL * right / depth / _COLUMNS, 9.0)
        return torch.stack([column, 2 * (_HORIZON + _FOCAL * _HIGH / depth) / _ROWS - 1], -1)


def _parts(state: DrivingState) -> list[DrivingState]:
    return [DrivingState(*part) for part in zip(*(x.split(_PART) for x in state), strict=True)]


def _walls(start: Tensor, ray: Tensor) -> Tensor:
    """Metres along rays to the first house, of the next two walls each way; 1000 where there is none."""
    found = []
    for i in (0, 1):
        slope = torch.where(ray[..., i].abs() > 1e-6, ray[..., i], 1e-6)
        before = slope.sign() * start[..., i]
        wall = WALL + BLOCK * ((before - WALL) / BLOCK).ceil()
        for face in (wall, wall + BLOCK):
            way = (face - before) / slope.abs()
            other = from_street(start[..., 1 - i] + way * ray[..., 1 - i]).abs()
            found.append(torch.where((other > WALL) & (way < 60), way, 1e3))
    return torch.stack(found).amin(0)


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


def _surfaces(textures: Tensor) -> tuple[Tensor, Tensor]:
    """Colours of a block from above, from one crossing to the next, a texel a row, and those of a wall."""
    line = (torch.arange(_SIDE, device=textures.device) + 0.5) / _TEXELS
    x, y = torch.meshgrid(line, line, indexing="ij")
    off = torch.stack([from_street(x).abs(), from_street(y).abs()])
    near, far = off.amin(0), off.amax(0)
    place = torch.arange(_SIDE, device=textures.device) % textures.shape[-1]
    street, verge, wall = textures[:, place][:, :, place][..., None]
    painted = ((near < 0.25) & (far > BOX)) | (((off - BOX).abs().amin(0) < 0.4) & (near < HALF))
    street, verge = street * street.new_tensor([0.55, 0.55, 0.6]), verge * verge.new_tensor([0.5, 0.85, 0.4])
    colours = torch.where((near < HALF)[..., None], street, verge)
    colours = torch.where(painted[..., None], 0.9, colours)
    return colours.flatten(0, 1), (wall * wall.new_tensor([1.0, 0.6, 0.5])).flatten(0, 1)
