"""A town of square blocks to drive through: traffic, walkers and lights, seen from above."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import huber_loss

from pullback.core.checks import check_callable, check_floating, check_integer, check_positive, check_shape
from pullback.core.random import drawing_device
from pullback.core.shapes import Bool, Float
from pullback.core.transforms import can_look
from pullback.dynamics.driving import bicycle_step, intelligent_driver
from pullback.dynamics.driving_town import (
    AHEAD,
    BLOCK,
    BOX,
    CYCLE,
    LANE,
    NOSE,
    SPACING,
    STREETS,
    TOWN,
    TURNS,
    WIDTH,
    YELLOW,
    DrivingState,
    axes,
    circles,
    draw_route,
    next_stop,
    pick,
    red_at,
    walkers_at,
    wrap,
)
from pullback.dynamics.driving_views import render_masks

__all__ = ["DrivingEvents", "DrivingScores", "DrivingWorld", "RoadAhead"]

_TINTS = [
    *([0.35, 0.35, 0.35], [0.24, 0.51, 0.24], [0.9, 0.86, 0.35], [0.24, 0.24, 1.0]),
    *([0.24, 0.55, 0.78], [1.0, 0.0, 1.0], [0.78, 0.47, 0.78], [1.0, 0.0, 0.0]),
]  # of the masks, red, green, blue


class RoadAhead(NamedTuple):
    """Metres from the front of the ego vehicle, along its route, to what is on it; ``inf`` beyond 30.

    Attributes:
        vehicle: ``[batch]`` the nearest vehicle.
        walker: ``[batch]`` the nearest walker who is there now or in 0.7 s.
        light: ``[batch]`` the next stop line, where its light is red, or will be in 2 s.
    """

    vehicle: Float[Tensor, "batch"]
    walker: Float[Tensor, "batch"]
    light: Float[Tensor, "batch"]


class DrivingEvents(NamedTuple):
    """What went wrong in a step, ``[batch]`` each.

    Attributes:
        vehicle: another vehicle was hit.
        walker: a walker was hit.
        light: the front passed a stop line at red.
        route: it is more than 3 m off its route.
    """

    vehicle: Bool[Tensor, "batch"]
    walker: Bool[Tensor, "batch"]
    light: Bool[Tensor, "batch"]
    route: Bool[Tensor, "batch"]


class DrivingScores(NamedTuple):
    """How drives went, ``[batch]`` each.

    Attributes:
        score: percent of the way, times 0.6, 0.5 or 0.7 for a vehicle or walker that was hit or for each red light.
        progress: metres of the route, up to where a drive ended.
        mishaps: ``[4, batch]`` how often each of :class:`DrivingEvents` happened; but for red lights, a drive ends so.
    """

    score: Float[Tensor, "batch"]
    progress: Float[Tensor, "batch"]
    mishaps: Float[Tensor, "4 batch"]


@dataclass(frozen=True)
class DrivingWorld:
    """Batches of scenes in a town whose streets cross every 48 m, with one lane each way, driven on the right.

    The ego vehicle is a bicycle (:func:`bicycle_step`) with a route that turns at three crossings. The others go
    straight on by :func:`intelligent_driver`, behind whatever is in their lane, the ego vehicle too, and stop at red.
    Walkers cross the streets between crossings, back and forth, and look at nobody. The town is a torus of three by
    three blocks. Everything is worked out for all scenes at once.

    Attributes:
        vehicles: others of a scene, in 1..100.
        walkers: of a scene, >= 1.
        dt: length of a step [s].

    Raises:
        TypeError: a number is no integer.
        ValueError: it is out of range.

    Example:
        >>> world = DrivingWorld()
        >>> state = world.sample(2, generator=torch.Generator().manual_seed(0))
        >>> after = world.step(state, torch.zeros(2, 2))
        >>> world.render_bev(after).shape, world.road_ahead(after).light.shape
        (torch.Size([2, 8, 32, 32]), torch.Size([2]))

    References:
        Zhang et al. (2021), End-to-end urban driving by imitating a reinforcement learning coach, arXiv 2108.08265,
        section 3.1 (masks); Dosovitskiy et al. (2017), CARLA, arXiv 1711.03938 (infractions).
    """

    MASKS: ClassVar[tuple[str, ...]] = (
        *("road", "route", "lane lines", "vehicles", "vehicles before", "walkers", "walkers before", "red light"),
    )
    """Of :meth:`render_bev`; before is half a second earlier, at the speed of now."""
    THROTTLE: ClassVar[float] = 3.0
    """Acceleration of the action 1 [m/s^2]."""
    BRAKE: ClassVar[float] = 6.0
    """Deceleration of the action -1 [m/s^2]."""
    STEERING: ClassVar[float] = 0.6
    """Angle of the front wheels of the action 1, to the left [rad]."""

    vehicles: int = 8
    walkers: int = 3
    dt: float = 0.25

    def __post_init__(self) -> None:
        check_integer("vehicles", self.vehicles, 1, 100)
        check_integer("walkers", self.walkers, 1)
        check_positive("dt", self.dt)

    def sample(self, count: int, *, anywhere: bool = False, generator: torch.Generator | None = None) -> DrivingState:
        """Return random scenes, the ego vehicle in its lane before a crossing.

        Args:
            count: of scenes, >= 1.
            anywhere: whether it is somewhere on the first 90 m of its route instead, up to 1.5 m and 0.3 rad off.
            generator: of the draws.

        Raises:
            ValueError: ``count`` < 1.
        """
        check_integer("count", count, 1)
        device = drawing_device(generator, torch.device("cpu"))

        def rand(*shape: int) -> Tensor:
            return torch.rand(count, *shape, generator=generator, device=device).cpu()

        first, where, speed = 8 + 22 * rand(), (rand(2) * STREETS).floor() * BLOCK, 7 * rand()
        heading = (4 * rand()).floor() * (math.pi / 2)
        ahead, right = axes(heading)
        start = where - (first + BOX)[:, None] * ahead + LANE * right
        route, stops = draw_route(torch.cat([start, heading[:, None]], -1), first, rand(TURNS))
        ego, progress = torch.cat([start, heading[:, None], speed[:, None]], -1), torch.zeros(count)
        if anywhere:
            progress = (90 / SPACING * rand()).round() * SPACING
            at = pick(route, (progress / SPACING).round().long()[:, None])[:, 0]
            off, turned = 2 * rand(2).T - 1
            place = at[:, :2] + 1.5 * off[:, None] * axes(at[:, 2])[1]
            ego = torch.cat([place, at[:, 2:] + 0.3 * turned[:, None], 8 / 7 * speed[:, None]], -1)
        vehicles, legs = self._traffic(ego, route, rand), rand(self.walkers, 4)
        leg = (legs[..., 0] * TURNS).long()
        along = stops.gather(1, leg) - 8 - 18 * legs[..., 1]
        along = torch.where(along < 12, stops[:, 1:2] - 8 - 18 * legs[..., 1], along)
        middle = route.gather(1, (along / SPACING).round().long()[..., None].expand(-1, -1, 3))
        across = axes(middle[..., 2])[1]
        crossing = torch.cat([middle[..., :2] - LANE * across, middle[..., 2:] - math.pi / 2], -1)
        walkers = torch.cat([crossing, legs[..., 2:3], 1.1 + 0.8 * legs[..., 3:]], -1)
        count_of = self.vehicles
        return DrivingState(
            ego,
            route,
            stops,
            progress,
            vehicles,
            6 + 3 * rand(count_of),
            0.15 + 0.85 * rand(count_of, 3),
            walkers,
            CYCLE * rand(STREETS, STREETS),
            torch.zeros(count),
        )

    def step(self, state: DrivingState, action: Float[Tensor, "batch 2"], *, traffic: bool = True) -> DrivingState:
        """Return the scenes ``dt`` later.

        The ego vehicle has derivatives in the action and in where it was; who follows it has them through the gap.

        Args:
            state: ``[batch]`` scenes.
            action: ``[batch, 2]`` in [-1, 1]: throttle or brake, and steering to the left.
            traffic: whether the others move too.

        Raises:
            TypeError: the action is not floating.
            ValueError: shapes do not fit, or an action is out of range.
        """
        self._check(state)
        check_shape("action", check_floating("action", action), (len(state.ego), 2))
        if can_look(action) and not bool((action.detach().abs() <= 1).all()):
            raise ValueError(f"action must be in [-1, 1], got a largest size of {float(action.detach().abs().max())}")
        pedal = torch.where(action[:, 0] > 0, self.THROTTLE, self.BRAKE) * action[:, 0]
        ego = bicycle_step(state.ego, pedal, self.STEERING * action[:, 1], dt=self.dt)
        others = state.vehicles
        if traffic:
            others = bicycle_step(others, self._follow(state), torch.zeros_like(state.desired), dt=self.dt)
            others = torch.cat([others[..., :2] % TOWN, others[..., 2:]], -1)
        now = state._replace(ego=ego, vehicles=others, time=state.time + self.dt)
        place = (state.progress / SPACING).round().long()[:, None] + torch.arange(24, device=ego.device)
        near = pick(state.route, place)[..., :2] - ego.detach()[:, None, :2]
        further = near.square().sum(-1).argmin(-1) * SPACING
        return now._replace(progress=(state.progress + further).clamp(max=SPACING * (state.route.shape[1] - 1)))

    def deviation(self, state: DrivingState) -> Float[Tensor, "batch 2"]:
        """Return metres to the left of the route and the heading [rad] relative to it, with derivatives in ego."""
        self._check(state)
        here = pick(state.route, (state.progress / SPACING).round().long()[:, None])[:, 0]
        right = axes(here[:, 2])[1]
        left = -((state.ego[:, :2] - here[:, :2]) * right).sum(-1)
        turned = torch.remainder(state.ego[:, 2] - here[:, 2] + math.pi, 2 * math.pi) - math.pi
        return torch.stack([left, turned], -1)

    def road_ahead(self, state: DrivingState) -> RoadAhead:
        """Return how far away the next things are that the ego vehicle has to stop for."""
        self._check(state)
        place = (state.progress / SPACING).round().long()[:, None] + torch.arange(AHEAD, device=state.ego.device)
        path = pick(state.route, place)[..., :2]

        def gap(points: Tensor, reach: float, radius: float) -> Tensor:
            off = wrap(points[:, :, None] - path[:, None]).square().sum(-1)
            there = torch.where(off < reach**2, 1.0, 0.0).amax(1)  # [batch, points of the path]
            first = torch.where(there > 0, place - place[:, :1], 2 * AHEAD).amin(-1) * SPACING
            return torch.where(first < SPACING * AHEAD, first - NOSE - radius, math.inf)

        soon = torch.cat([walkers_at(state, after) for after in (0.0, 0.7)], 1)
        stop, red = next_stop(state, YELLOW)
        line = torch.where(red & (stop < 30), stop, math.inf)
        return RoadAhead(gap(circles(state.vehicles).flatten(1, 2), 2.2, 1.1), gap(soon, 1.8, 0.3), line)

    def allowed_speed(
        self,
        state: DrivingState,
        *,
        fastest: float = 8.0,
        braking: float = 3.0,
        sideways: float = 3.0,
        coasting: int = 0,
    ) -> Float[Tensor, "batch"]:
        r"""Return the speed at which a careful driver goes: what stops 2 m before the next thing, and rounds bends.

        .. math:: \min\big(v_{\max}, \sqrt{2 b \max(g - 2, 0)}, \sqrt{c / \kappa}\big)

        Args:
            state: ``[batch]`` scenes; g is the least of :meth:`road_ahead`, kappa the largest curvature of the next
                10 m of the route.
            fastest: v_max > 0 [m/s].
            braking: b > 0 [m/s^2].
            sideways: c > 0, the acceleration to the side [m/s^2].
            coasting: >= 0; the least of now and after each of so many steps without pedal and steering is returned,
                for who drives by what will be.

        Returns:
            ``[batch]`` [m/s], without derivatives.

        Raises:
            ValueError: a number out of range.
        """
        for name, value in (("fastest", fastest), ("braking", braking), ("sideways", sideways)):
            check_positive(name, value)
        check_integer("coasting", coasting, 0)
        gap = torch.stack(self.road_ahead(state)).amin(0).detach()
        place = (state.progress / SPACING).round().long()[:, None] + torch.arange(0, 21, 2, device=gap.device)
        bend = pick(state.route, place)[..., 2].diff().abs().amax(1) / (2 * SPACING)
        stopping, bending = (2 * braking * (gap - 2).clamp(min=0)).sqrt(), (sideways / bend.clamp(min=1e-6)).sqrt()
        now = torch.minimum(stopping, bending).clamp(max=fastest)
        if not coasting:
            return now
        later = self.allowed_speed(
            self.step(state, torch.zeros_like(state.ego[:, :2])),
            fastest=fastest,
            braking=braking,
            sideways=sideways,
            coasting=coasting - 1,
        )
        return torch.minimum(now, later)

    def reward(self, state: DrivingState, allowed: Float[Tensor, "batch"]) -> Float[Tensor, "batch"]:
        r"""Return how well the ego vehicle keeps a speed and its route, with derivatives in where it is.

        .. math:: 1 - \tfrac15 h_2(v - v^*) - \tfrac12 \big(\sqrt{1 + d^2} - 1\big) - (1 - \cos\varphi)

        Args:
            state: ``[batch]`` scenes; d and phi are the :meth:`deviation`.
            allowed: v*, ``[batch]``, such as :meth:`allowed_speed`; h is Huber's function, linear from 2 m/s on.
        """
        left, turned = self.deviation(state).unbind(-1)
        off = huber_loss(state.ego[:, 3], allowed, reduction="none", delta=2.0)
        return 1 - 0.2 * off - 0.5 * ((1 + left.square()).sqrt() - 1) - (1 - turned.cos())

    def must_brake(self, state: DrivingState) -> Bool[Tensor, "batch"]:
        """Return whether only full brakes, after one more step, still stop 1 m before the next thing: a rule."""
        gap, speed = torch.stack(self.road_ahead(state)).amin(0), state.ego[:, 3]
        return gap < speed.square() / (2 * self.BRAKE) + self.dt * speed + 1

    def events(self, before: DrivingState, after: DrivingState) -> DrivingEvents:
        """Return what went wrong between two states that follow each other."""
        self._check(after)
        own, others = circles(after.ego), circles(after.vehicles).flatten(1, 2)
        touched = wrap(own[:, :, None] - others[:, None]).square().sum(-1).amin((1, 2)) < (2 * WIDTH) ** 2
        walkers = walkers_at(after, 0.0)[:, None]
        run_over = wrap(own[:, :, None] - walkers).square().sum(-1).amin((1, 2)) < (WIDTH + 0.3) ** 2
        stop, red = next_stop(before, 0.0)
        passed = after.progress - before.progress > stop
        return DrivingEvents(touched, run_over, passed & red, self.deviation(after)[:, 0].abs() > 3.0)

    def drive(
        self, state: DrivingState, act: Callable[[DrivingState], Tensor], *, decisions: int, way: float
    ) -> DrivingScores:
        """Drive and count what goes wrong, as CARLA does.

        Args:
            state: ``[batch]`` scenes.
            act: ``act(state)`` gives the action, ``[batch, 2]``.
            decisions: steps, >= 1.
            way: metres that make a whole drive, > 0.

        Raises:
            TypeError: ``act`` cannot be called.
            ValueError: a number out of range, or an action that :meth:`step` refuses.
        """
        check_callable("act", act)
        check_integer("decisions", decisions, 1)
        check_positive("way", way)
        mishaps = state.progress.new_zeros(4, len(state.ego))
        goes, reached = torch.ones_like(state.progress, dtype=torch.bool), state.progress
        for _ in range(decisions):
            after = self.step(state, act(state))
            what = torch.stack(self.events(state, after)) & goes
            reached, state = torch.where(goes, after.progress, reached), after
            mishaps, goes = mishaps + what, goes & ~what[[0, 1, 3]].any(0)
        kept = mishaps.new_tensor([[0.6], [0.5], [0.7], [1.0]]).pow(mishaps).prod(0)
        return DrivingScores(100 * (reached / way).clamp(max=1) * kept, reached, mishaps)

    def render_bev(self, state: DrivingState) -> Float[Tensor, "batch 8 32 32"]:
        """Return masks, 0 or 1, of what is around the ego vehicle, a metre a cell; it drives upwards from row 24.

        The order is that of :attr:`MASKS`. A red light is the stop line ahead. No derivatives.
        """
        self._check(state)
        return render_masks(state)

    @staticmethod
    def paint(masks: Bool[Tensor, "*batch masks rows columns"]) -> Float[Tensor, "*batch 3 rows columns"]:
        """Return a picture of masks, of colours in [0, 1]: route green, vehicles blue, walkers magenta, red lights red.

        Raises:
            ValueError: there are not the eight of :attr:`MASKS`.
        """
        check_shape("masks", masks, (8, None, None))
        tints = masks.new_tensor(_TINTS, dtype=torch.float32)
        picture = torch.zeros(*masks.shape[:-3], 3, *masks.shape[-2:], device=masks.device)
        for k in (0, 1, 2, 4, 3, 6, 5, 7):  # what moves over what does not, now over before
            picture = torch.where(masks[..., k : k + 1, :, :] > 0, tints[k, :, None, None], picture)
        return picture

    def _traffic(self, ego: Tensor, route: Tensor, rand: Callable[..., Tensor]) -> Tensor:
        """Places in lanes, 12 m apart and not beside the ego vehicle, those on its route more often."""
        slots = int(TOWN / 12)
        turn, street, slot = torch.meshgrid(*(torch.arange(n) for n in (4, STREETS, slots)), indexing="ij")
        heading = turn.flatten() * (math.pi / 2)
        ahead, right = axes(heading)
        along = 12 * (slot.flatten()[:, None] + 0.5) * ahead.abs()
        place = (along + street.flatten()[:, None] * BLOCK * right.abs() + LANE * right) % TOWN
        score = rand(len(place))
        path = route[:, : int(70 / SPACING) : 4]
        close = wrap(place[None, :, None] - path[:, None, :, :2]).square().sum(-1) < 2.0
        same = (heading[:, None] - path[:, None, :, 2]).cos() > 0.9
        score = score + 0.15 * (close & same).any(-1).float()
        beside = wrap(place - ego[:, None, :2]).square().sum(-1) < 14.0**2
        chosen = torch.where(beside, -1.0, score).topk(self.vehicles).indices
        pose = torch.cat([place, heading[:, None]], -1)[chosen]
        return torch.cat([pose, 7 * rand(self.vehicles, 1)], -1)

    def _follow(self, state: DrivingState) -> Tensor:
        """Accelerations of the others, behind whatever is next in their lane."""
        here = state.vehicles
        ahead, right = axes(here[..., 2])
        walkers = walkers_at(state, 0.0)
        things = torch.cat([state.ego[:, None, :2], here[..., :2], walkers], 1)
        speeds = torch.cat([state.ego[:, None, 3:] * axes(state.ego[:, None, 2])[0], here[..., 3:] * ahead], 1)
        speeds = torch.cat([speeds, torch.zeros_like(walkers)], 1)
        off = wrap(things[:, None] - here[:, :, None, :2])
        front, aside = (off * ahead[:, :, None]).sum(-1), (off * right[:, :, None]).sum(-1)
        length = torch.full((things.shape[1],), 2 * NOSE, device=here.device)
        length[1 + self.vehicles :] = NOSE + 0.3
        gaps = torch.where((aside.abs() < 1.9) & (front > 0.5), front - length, math.inf)
        gap, leader = gaps.min(-1)
        leading = (speeds[:, None] * ahead[:, :, None]).sum(-1).gather(-1, leader[..., None])[..., 0]
        entry = (-BOX - NOSE - (here[..., :2] * ahead).sum(-1)) % BLOCK
        crossing = here[..., :2] + (entry + BOX + NOSE)[..., None] * ahead
        red = red_at(state, crossing, here[..., 2], 0.0)
        must = red & (entry < 30) & (entry > here[..., 3].square() / (2 * 4.0)) & (entry < gap)
        gap, leading = torch.where(must, entry + 1.0, gap), torch.where(must, 0.0, leading)
        wanted = intelligent_driver(here[..., 3], gap, here[..., 3] - leading, state.desired)
        return wanted.clamp(-7.0, 2.0)

    def _check(self, state: DrivingState) -> None:
        count = len(state.ego)
        check_shape("state.ego", check_floating("state.ego", state.ego), (count, 4))
        check_shape("state.vehicles", state.vehicles, (count, self.vehicles, 4))
        check_shape("state.walkers", state.walkers, (count, self.walkers, 5))
        check_shape("state.progress", state.progress, (count,))
