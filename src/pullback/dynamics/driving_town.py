"""The plan of a town: streets, lanes, routes, lights and walkers, and the state of a drive through it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pullback.core.shapes import Float

__all__ = [
    "AHEAD",
    "BLOCK",
    "BOX",
    "CYCLE",
    "GREEN",
    "HALF",
    "LANE",
    "NOSE",
    "SPACING",
    "STREETS",
    "TOWN",
    "TURNS",
    "WALL",
    "WIDTH",
    "YELLOW",
    "DrivingState",
    "axes",
    "circles",
    "draw_route",
    "from_street",
    "next_stop",
    "pick",
    "red_at",
    "to_ego",
    "to_world",
    "walkers_at",
    "wrap",
]

BLOCK, STREETS = 48.0, 3  # metres from street to street, streets each way before the town repeats itself
TOWN = BLOCK * STREETS
LANE, HALF, BOX = 2.0, 5.0, 7.0  # middle of a lane, edge of the street, entry of a crossing, from the middle
WALL = 9.0  # of the houses, from the middle of the street
TURNS = 3  # crossings on a route
SPACING = 0.5  # of the points of a route
NOSE, WIDTH = 2.3, 1.0  # half of a vehicle's length and width
CYCLE, GREEN, YELLOW = 16.0, 0.45, 2.0  # seconds of all lights, part of them that is green, warning before red
AHEAD = 60  # points of the route that are looked at


class DrivingState(NamedTuple):
    """Scenes of a town.

    Attributes:
        ego: ``[batch, 4]`` x, y [m], heading [rad], speed [m/s] of the vehicle that is driven.
        route: ``[batch, points, 3]`` x, y, heading of its route, a point every half metre.
        stops: ``[batch, 3]`` metres along the route where it enters a crossing.
        progress: ``[batch]`` metres along the route.
        vehicles: ``[batch, vehicles, 4]`` the same as ego, of the others.
        desired: ``[batch, vehicles]`` their speeds on a free road.
        paint: ``[batch, vehicles, 3]`` their colours.
        walkers: ``[batch, walkers, 5]`` middle of the crossing, its direction, phase in [0, 1), speed.
        lights: ``[batch, 3, 3]`` seconds that the cycle of each crossing is ahead.
        time: ``[batch]`` [s].
    """

    ego: Float[Tensor, "batch 4"]
    route: Float[Tensor, "batch points 3"]
    stops: Float[Tensor, "batch 3"]
    progress: Float[Tensor, "batch"]
    vehicles: Float[Tensor, "batch vehicles 4"]
    desired: Float[Tensor, "batch vehicles"]
    paint: Float[Tensor, "batch vehicles 3"]
    walkers: Float[Tensor, "batch walkers 5"]
    lights: Float[Tensor, "batch 3 3"]
    time: Float[Tensor, "batch"]


def walkers_at(state: DrivingState, after: float) -> Float[Tensor, "batch walkers 2"]:
    """Return where walkers are some seconds later (or earlier): on either pavement most of the time."""
    phase = state.walkers[..., 3] + state.walkers[..., 4] * (state.time[:, None] + after) / 60.0
    way = (15 * (4 * ((phase % 1) - 0.5).abs() - 1)).clamp(-7.5, 7.5)
    return state.walkers[..., :2] + way[..., None] * axes(state.walkers[..., 2])[0]


def red_at(state: DrivingState, crossing: Tensor, heading: Tensor, warning: float) -> Tensor:
    """Whether the light is red for a heading at crossings ``[batch, n, 2]``, now or within the warning."""
    number = (crossing / BLOCK).round().long() % STREETS
    ahead = state.lights.flatten(1).gather(1, number[..., 0] * STREETS + number[..., 1])
    half = torch.where(heading.cos().abs() > 0.5, 0.0, 0.5)
    red = [((state.time[:, None] + ahead + w) / CYCLE + half) % 1 >= GREEN for w in {0.0, warning}]
    return torch.stack(red).any(0)


def next_stop(state: DrivingState, warning: float) -> tuple[Tensor, Tensor]:
    """Metres from the front to the next stop line of the route, inf after the last, and whether it is red."""
    left = state.stops - state.progress[:, None] - NOSE
    stop = torch.where(left > -0.25, left, math.inf).amin(-1)
    line = torch.where(stop.isfinite(), stop, 0.0) + state.progress + NOSE
    at = pick(state.route, (line / SPACING).round().long()[:, None])
    crossing = at[..., :2] + BOX * axes(at[..., 2])[0]
    red = red_at(state, crossing, at[..., 2], warning)[:, 0] & stop.isfinite()
    return torch.where(stop.isfinite(), stop, 1e3), red


def axes(heading: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors ahead and to the right."""
    c, s = heading.cos(), heading.sin()
    return torch.stack([c, s], -1), torch.stack([s, -c], -1)


def wrap(off: Tensor) -> Tensor:
    """The shortest way from one point to another in a town that repeats itself."""
    return off - TOWN * (off / TOWN).round()


def from_street(point: Tensor) -> Tensor:
    """Signed distance from the middle of the nearest street, each way."""
    return point - BLOCK * (point / BLOCK).round()


def to_world(pose: Tensor, points: Tensor) -> Tensor:
    """Points ahead and to the right of poses ``[*batch, 3 or 4]`` as x and y, ``[*batch, n, 2]``."""
    ahead, right = axes(pose[..., 2])
    return pose[..., None, :2] + points[..., :1] * ahead[..., None, :] + points[..., 1:] * right[..., None, :]


def to_ego(ego: Tensor, points: Tensor, torus: bool = True) -> Tensor:
    """Points ``[batch, n, 2]`` as metres ahead and to the right."""
    ahead, right = axes(ego[:, None, 2])
    off = points - ego[:, None, :2]
    off = wrap(off) if torus else off
    return torch.stack([(off * ahead).sum(-1), (off * right).sum(-1)], -1)


def pick(route: Tensor, place: Tensor) -> Tensor:
    """Points of routes by number, ``[batch, n, 3]``; the last one beyond the end."""
    place = place.clamp(0, route.shape[1] - 1)
    return route.gather(1, place[..., None].expand(-1, -1, 3))


def circles(vehicles: Tensor) -> Tensor:
    """Middles of three circles that cover a vehicle, ``[*batch, 3, 2]``."""
    ahead = axes(vehicles[..., 2])[0]
    return vehicles[..., None, :2] + vehicles.new_tensor([-1.4, 0.0, 1.4])[:, None] * ahead[..., None, :]


def draw_route(start: Tensor, first: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Straight legs and quarter circles (or straight on) in turn, sampled evenly, and where crossings begin."""
    box = torch.tensor([2 * BOX, (BOX + LANE) * math.pi / 2, (BOX - LANE) * math.pi / 2])
    bend = torch.tensor([0.0, 1 / (BOX + LANE), -1 / (BOX - LANE)])
    turn = (3 * drawn).long()
    legs = torch.full_like(drawn, BLOCK - 2 * BOX)
    lengths = torch.stack([torch.cat([first[:, None], legs[:, 1:]], 1), box[turn]], -1).flatten(1)
    lengths = torch.cat([lengths, legs[:, :1]], 1)
    bends = torch.cat([torch.stack([torch.zeros_like(drawn), bend[turn]], -1).flatten(1), 0 * legs[:, :1]], 1)
    ends = lengths.cumsum(1)
    poses = [start]
    for k in range(lengths.shape[1] - 1):
        poses.append(_arc(poses[-1], bends[:, k], lengths[:, k]))
    along = SPACING * torch.arange(int((30 + 3 * (14.2 + 34)) / SPACING) + 1.0)
    along = torch.minimum(along.expand(len(start), -1), ends[:, -1:])
    piece = torch.searchsorted(ends, along.contiguous()).clamp(max=lengths.shape[1] - 1)
    begun = (ends - lengths).gather(1, piece)
    pose = torch.stack(poses, 1).gather(1, piece[..., None].expand(-1, -1, 3))
    return _arc(pose, bends.gather(1, piece), along - begun), ends[:, 0:-1:2]


def _arc(pose: Tensor, bend: Tensor, length: Tensor) -> Tensor:
    half = 0.5 * bend * length
    chord, middle = length * torch.sinc(half / math.pi), pose[..., 2] + half
    return torch.stack(
        [pose[..., 0] + chord * middle.cos(), pose[..., 1] + chord * middle.sin(), pose[..., 2] + 2 * half], -1
    )
