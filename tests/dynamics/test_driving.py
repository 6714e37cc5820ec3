"""A town to drive through: routes, traffic, masks and pictures against geometry worked out point by point."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from pullback.dynamics import (
    ActionLaw,
    DrivingAgent,
    DrivingCamera,
    DrivingPlanner,
    DrivingState,
    DrivingWorld,
    FrozenBackbone,
    GroundPerception,
    StudentPlanner,
    bicycle_step,
    intelligent_driver,
    perceive,
    with_speed,
)
from pullback.dynamics.driving_town import walkers_at

WORLD = DrivingWorld()


def scenes(count: int, seed: int = 0) -> DrivingState:
    return WORLD.sample(count, generator=torch.Generator().manual_seed(seed))


def test_held_wheels_drive_a_circle() -> None:
    state = torch.tensor([1.0, 2.0, 0.3, 5.0], dtype=torch.float64)
    zero, wheel = torch.zeros((), dtype=torch.float64), torch.tensor(math.atan(2.7 / 10.0), dtype=torch.float64)
    middle = state[:2] + 10 * torch.stack([-state[2].sin(), state[2].cos()])
    for k in range(1, 9):
        state = bicycle_step(state, zero, wheel)
        assert abs(float((state[:2] - middle).norm()) - 10) < 1e-12
        assert abs(float(state[2]) - 0.3 - k * 5 * 0.25 / 10) < 1e-12


def test_nobody_drives_backwards() -> None:
    assert bicycle_step(torch.tensor([0.0, 0.0, 0.0, 0.5]), torch.tensor(-6.0), torch.tensor(0.1))[3] == 0


def test_drivers_settle_at_the_distance_that_is_known() -> None:
    """Where all are equally fast, the gap is (s0 + vT) / sqrt(1 - (v / v0)^4)."""
    v, v0 = 7.0, 10.0
    place, speed = torch.tensor(0.0, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)
    lead, desired = torch.tensor(30.0, dtype=torch.float64), torch.tensor(v0, dtype=torch.float64)
    for _ in range(8000):
        a = intelligent_driver(speed, lead - place, speed - v, desired)
        place, speed, lead = place + 0.05 * speed, speed + 0.05 * a, lead + 0.05 * v
    assert abs(float(lead - place) - (2 + 1.2 * v) / math.sqrt(1 - (v / v0) ** 4)) < 1e-3


def test_routes_are_smooth_and_follow_lanes() -> None:
    state = scenes(200)
    steps = state.route.diff(dim=1)
    lengths = steps[..., :2].norm(dim=-1)
    moving = lengths > 1e-3
    assert bool((lengths[moving] < 0.5001).all())
    assert bool((lengths[:, :250] > 0.49).all())
    assert bool((steps[..., 2].abs() <= 0.5 / 5 + 1e-4).all())
    off = (state.route[..., :2] + 24) % 48 - 24
    straight = (state.route[..., 2] / (math.pi / 2)).frac().abs().remainder(1)
    on_leg = (off.abs().amax(-1) > 7.01) & ((straight < 1e-4) | (straight > 1 - 1e-4))
    right = torch.stack([state.route[..., 2].sin(), -state.route[..., 2].cos()], -1)
    aside = (off * right).sum(-1)
    assert bool(((aside[on_leg] - 2).abs() < 1e-3).all())
    turned = (state.route[:, -1, 2] - state.route[:, 0, 2]) / (math.pi / 2)
    assert set(turned.round().int().tolist()) == set(range(-3, 4))
    at = state.route.gather(1, (2 * state.stops).round().long()[..., None].expand(-1, -1, 3))[..., :2]
    entry = ((at + 24) % 48 - 24).abs().amax(-1)
    assert bool(((entry - 7).abs() < 0.26).all())


def test_progress_follows_who_drives_along_the_route() -> None:
    state = scenes(20)
    stay = torch.zeros(20, 2)
    for k in range(4, 200, 4):  # carried along, 2 m a step
        at = state.route[:, k]
        state = WORLD.step(state._replace(ego=torch.cat([at, torch.zeros(20, 1)], -1)), stay)
        assert bool(((state.progress - 0.5 * k).abs() <= 0.5).all())
        assert bool((WORLD.deviation(state).abs() < 0.1).all())
    left = state.ego.clone()
    left[:, :2] += 1.0 * torch.stack([-left[:, 2].sin(), left[:, 2].cos()], -1)
    left[:, 2] += 0.2 + 2 * math.pi
    off = WORLD.deviation(state._replace(ego=left)) - WORLD.deviation(state)
    torch.testing.assert_close(off, torch.tensor([1.0, 0.2]).expand(20, 2), atol=0.02, rtol=0)


def test_traffic_keeps_apart_and_stops_at_red() -> None:
    state = scenes(40)
    away = torch.full((40, 4), 0.0)
    away[:, :2] = 24.0  # inside of a block, in nobody's way
    state, stay = state._replace(ego=away), torch.zeros(40, 2)
    crossed, at_red, driven = 0, 0, torch.zeros(40, 8)
    for _ in range(160):
        after = WORLD.step(state, stay)
        front = [
            (s.vehicles[..., :2] * torch.stack([s.vehicles[..., 2].cos(), s.vehicles[..., 2].sin()], -1)).sum(-1) + 2.3
            for s in (state, after)
        ]
        ways = [(f + 7) % 48 for f in front]
        entered = (ways[0] > 40) & (ways[1] < 8)
        number = (state.vehicles[..., :2] / 48).round().long() % 3
        ahead = state.lights.flatten(1).gather(1, number[..., 0] * 3 + number[..., 1])
        along_x = state.vehicles[..., 2].cos().abs() > 0.5
        phase = ((state.time[:, None] + ahead) / 16 + torch.where(along_x, 0.0, 0.5)) % 1
        crossed += int(entered.sum())
        at_red += int((entered & (phase > 0.45 + 2.1 / 16) & (phase < 0.98)).sum())
        driven += after.vehicles[..., 3] * 0.25
        near = (after.vehicles[:, :, None, :2] - after.vehicles[:, None, :, :2] + 72) % 144 - 72
        apart = near.norm(dim=-1) + 99 * torch.eye(8)
        same = (after.vehicles[:, :, None, 2] - after.vehicles[:, None, :, 2]).cos() > 0.9
        assert float(apart[same].min()) > 3.5, "one behind the other in a lane, or side by side"
        state = after
    assert crossed > 300
    assert at_red == 0
    assert float((driven / 40).mean()) > 2.0, "metres a second, lights and all"


def test_masks_show_bodies_where_they_are() -> None:
    state = scenes(60)
    masks = WORLD.render_bev(state)
    assert masks.shape == (60, 8, 32, 32)
    assert bool(((masks == 0) | (masks == 1)).all())
    for b in range(60):
        x, y, heading, _ = state.ego[b].tolist()
        for row in range(0, 32, 3):
            for column in range(0, 32, 3):
                f, r = 24 - row - 0.5, column + 0.5 - 16
                px = x + f * math.cos(heading) + r * math.sin(heading)
                py = y + f * math.sin(heading) - r * math.cos(heading)
                dx, dy = abs((px + 24) % 48 - 24), abs((py + 24) % 48 - 24)
                if abs(min(dx, dy) - 5) > 0.01 and not (dx < 7 and dy < 7):
                    assert bool(masks[b, 0, row, column]) == (min(dx, dy) < 5)
                inside = margin = False
                for vx, vy, turn, _ in state.vehicles[b].tolist():
                    ox, oy = (px - vx + 72) % 144 - 72, (py - vy + 72) % 144 - 72
                    along = abs(ox * math.cos(turn) + oy * math.sin(turn))
                    aside = abs(ox * math.sin(turn) - oy * math.cos(turn))
                    inside |= along < 1.5 and aside < 0.3
                    margin |= along < 3.0 and aside < 1.8
                assert inside <= bool(masks[b, 3, row, column]) <= margin
    assert float(masks[:, 1].sum((1, 2)).min()) > 50, "the route is always there"
    assert bool((masks[:, 7].sum((1, 2)) > 0).any())


def test_boards_stand_where_a_pinhole_sees_them_and_houses_hide_them() -> None:
    """A vehicle whose rear is ten metres ahead, and one behind a house."""
    state = scenes(1)
    camera = DrivingCamera(torch.full((3, 16, 16), 0.5), noise=0.0)
    ego = torch.tensor([[24.0, -2.0, 0.0, 0.0]])  # along a street, towards +x
    others = torch.zeros(1, 8, 4)
    others[:, :, :2] = torch.tensor([-30.0, 24.0])  # out of sight
    others[0, 0] = torch.tensor([24.0 + 10.0 + 2.2, -2.0, 0.0, 0.0])  # its rear is 10 m ahead
    away = state.walkers.clone()
    away[..., :2] = torch.tensor([-30.0, 24.0])
    paint = torch.zeros(1, 8, 3)
    paint[0, 0] = torch.tensor([1.0, 0.0, 1.0])
    state = state._replace(ego=ego, vehicles=others, walkers=away, paint=paint)
    state = state._replace(stops=torch.full((1, 3), -50.0))
    seen = (camera(state)[0] - paint[0, 0][:, None, None]).abs().sum(0) < 1e-6
    rows, columns = seen.nonzero(as_tuple=True)
    wide = 48 * 0.95 / 10
    assert abs(columns.min() + 0.5 - (48 - wide)) <= 1
    assert abs(columns.max() + 0.5 - (48 + wide)) <= 1
    assert abs(rows.max() + 0.5 - (16 + 48 * 2.5 / 10)) <= 1
    assert abs(rows.min() + 0.5 - (16 + 48 * (2.5 - 1.6) / 10)) <= 1
    hidden = others.clone()
    hidden[0, 0] = torch.tensor([24.0 + 14.0, -2.0 + 18.0, 0.0, 0.0])  # 14 m ahead, behind the house on the left
    behind = camera(state._replace(vehicles=hidden))[0]
    assert not bool(((behind - paint[0, 0][:, None, None]).abs().sum(0) < 1e-6).any())


def test_cells_of_the_map_are_found_in_the_picture() -> None:
    """A street that is bright in a dark country: the picture, sampled on the ground, is the mask of the street."""
    state = scenes(1)._replace(ego=torch.tensor([[20.0, -2.0, 0.0, 0.0]]))
    state = state._replace(vehicles=torch.full((1, 8, 4), 24.0), walkers=torch.full((1, 3, 5), 24.0))
    state = state._replace(stops=torch.full((1, 3), -50.0))
    textures = torch.stack([torch.ones(16, 16), torch.zeros(16, 16), torch.zeros(16, 16)])
    picture, grid = DrivingCamera(textures, noise=0.0)(state), DrivingCamera.ground()
    found = torch.nn.functional.grid_sample(picture, grid[None], align_corners=False)[0, 2] > 0.3
    seen = (grid.abs() < 0.95).all(-1)
    seen[:8] = False  # beyond 16 m a pixel is more than a cell
    agree = found == WORLD.render_bev(state)[0, 0].bool()
    assert float(agree[seen].double().mean()) > 0.95
    assert int(seen.sum()) > 150


def test_lights_and_what_is_ahead_agree_with_what_happens() -> None:
    state = scenes(300, seed=1)
    ahead = WORLD.road_ahead(state)
    for b in range(300):
        gaps = [math.inf, math.inf]
        for kind, (things, reach) in enumerate(
            (
                (
                    [
                        (x + d * math.cos(h), y + d * math.sin(h))
                        for x, y, h, _ in state.vehicles[b].tolist()
                        for d in (-1.4, 0.0, 1.4)
                    ],
                    2.2,
                ),
                (torch.cat([walkers_at(state, t)[b] for t in (0.0, 0.7)]).tolist(), 1.8),
            )
        ):
            for k, (px, py, _) in enumerate(state.route[b, :60].tolist()):
                if any(
                    math.hypot((x - px + 72) % 144 - 72, (y - py + 72) % 144 - 72) < reach - 1e-4 for x, y in things
                ):
                    gaps[kind] = min(gaps[kind], 0.5 * k - 2.3 - (1.1, 0.3)[kind])
        for found, expected in zip((ahead.vehicle[b], ahead.walker[b]), gaps, strict=True):
            assert found == pytest.approx(expected, abs=0.51)
    red = ahead.light.isfinite()
    assert 0.2 < float(red.double().mean()) < 0.7
    line = (ahead.light + 2.3 - state.stops[:, 0])[red]
    assert bool((line.abs() < 0.3).all())
    masks = WORLD.render_bev(state)[:, 7].flatten(1).sum(1) > 0
    in_view = red & (ahead.light < 21)
    assert bool((masks[in_view]).all())
    assert not bool(masks[~red].any())


def test_a_careful_driver_keeps_to_the_lane_and_out_of_trouble() -> None:
    """Steered at a point of the route ahead, at the speed that is allowed, with the rule: next to nothing happens."""
    world = DrivingWorld(dt=0.25)
    state, trouble = scenes(64), torch.zeros(4, 64)
    for _ in range(60):
        place = (2 * state.progress).round().long() + (4 + state.ego[:, 3]).round().long()
        aim = state.route[torch.arange(64), place.clamp(max=state.route.shape[1] - 1), :2] - state.ego[:, :2]
        angle = torch.atan2(aim[:, 1], aim[:, 0]) - state.ego[:, 2]
        wheel = torch.atan(2 * 2.7 * angle.sin() / aim.norm(dim=-1)) / world.STEERING
        pedal = (world.allowed_speed(state) - state.ego[:, 3]) / 1.5
        pedal = torch.where(world.must_brake(state), -1.0, pedal)
        after = world.step(state, torch.stack([pedal, wheel], -1).clamp(-1, 1))
        trouble += torch.stack(world.events(state, after))
        state = after
    hit, run_over, red, lost = (trouble > 0).double().mean(1).tolist()
    assert lost == 0
    assert max(hit, run_over) <= 0.05
    assert red <= 0.1
    assert float(state.progress.mean()) > 35


def test_events_are_told_apart() -> None:
    state = scenes(4)
    quiet = state._replace(
        vehicles=torch.cat([torch.full((4, 8, 2), 24.0), torch.zeros(4, 8, 2)], -1),
        walkers=torch.cat([torch.full((4, 3, 2), 24.0), torch.zeros(4, 3, 3)], -1),
    )
    assert not bool(torch.stack(WORLD.events(quiet, quiet)).any())
    crash = quiet.vehicles.clone()
    crash[0, 3, :2] = quiet.ego[0, :2] + torch.tensor([0.0, 1.5])
    crash[1, 3, :2] = quiet.ego[1, :2] + 144.0  # the town repeats itself
    assert WORLD.events(quiet, quiet._replace(vehicles=crash)).vehicle.tolist() == [True, True, False, False]
    hit = quiet.walkers.clone()
    hit[2, 1, :2] = quiet.ego[2, :2]
    hit[2, 1, 2:] = torch.tensor([0.0, 0.25, 0.0])  # in the middle of its way
    assert WORLD.events(quiet, quiet._replace(walkers=hit)).walker.tolist() == [False, False, True, False]
    lost = quiet.ego.clone()
    lost[3, :2] += 4 * torch.stack([lost[3, 2].sin(), -lost[3, 2].cos()])
    assert WORLD.events(quiet, quiet._replace(ego=lost)).route.tolist() == [False, False, False, True]
    late = quiet._replace(progress=quiet.stops[:, 0] - 2.3 - 0.4)
    passed = late._replace(progress=late.progress + 2)
    at_red = WORLD.events(late, passed).light
    flipped = late._replace(time=late.time + 8.0)  # half a cycle later
    assert bool((at_red | WORLD.events(flipped, passed).light).all())


def test_the_gradient_of_a_drive_is_that_of_differences() -> None:
    state = DrivingState(*(x.double() for x in scenes(3)))
    first = torch.zeros(3, 2, dtype=torch.float64) + 0.1

    def end(actions: torch.Tensor) -> torch.Tensor:
        now = state
        for _ in range(4):
            now = WORLD.step(now, actions)
        return now.ego

    assert torch.autograd.gradcheck(end, first.requires_grad_())


def test_a_drive_ends_where_something_is_hit_and_counts_red_lights() -> None:
    state = scenes(30)
    full = WORLD.drive(state, lambda s: torch.tensor([1.0, 0.0]).expand(30, 2), decisions=50, way=50.0)
    by_hand, ends = [], []
    for b in range(30):
        now, factor, reached = DrivingState(*(x[b : b + 1] for x in state)), 1.0, 0.0
        for _ in range(50):
            after = WORLD.step(now, torch.tensor([[1.0, 0.0]]))
            hit, run_over, red, lost = (bool(x) for x in WORLD.events(now, after))
            factor *= 0.6**hit * 0.5**run_over * 0.7**red
            reached, now = float(after.progress), after
            if hit or run_over or lost:
                break
        by_hand.append(100 * min(reached / 50.0, 1.0) * factor)
        ends.append(reached)
    torch.testing.assert_close(full.score, torch.tensor(by_hand), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(full.progress, torch.tensor(ends))
    assert float(full.mishaps[[0, 1, 3]].sum(0).min()) >= 1, "full throttle straight on ends badly"
    assert float(full.mishaps[2].sum()) > 3


def test_action_laws_have_the_moments_of_beta_laws() -> None:
    law = ActionLaw(torch.tensor([20.0, 27.0]), torch.tensor([15.0, 30.0]))
    exact = torch.distributions.Beta(law.alpha, law.beta)
    torch.testing.assert_close(law.mean, 2 * exact.mean - 1)
    many = ActionLaw(*(x.expand(100_000, 2) for x in law)).draw(generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(many.std(0), 2 * exact.stddev, rtol=0.02, atol=0)
    assert bool((many.abs() <= 1).all())


def test_new_adapters_of_a_planner_change_nothing_and_fit_every_layer() -> None:
    torch.manual_seed(0)
    planner, masks, side = DrivingPlanner(3), torch.rand(2, 3, 32, 32), torch.rand(2, 5, 16, 16)
    plain, by_layers = planner(masks), masks
    frozen = FrozenBackbone(planner.stages)
    adapters = DrivingPlanner.adapters(5)
    assert list(adapters) == list(DrivingPlanner.LAYERS)
    adapted = frozen(masks, dict(adapters.items()), side)
    for name, stage in planner.stages.items():
        by_layers = stage(by_layers)
        assert torch.equal(plain[name], by_layers)
        torch.testing.assert_close(adapted[name], plain[name])
        assert plain[name].shape[1] == {**DrivingPlanner.LAYERS, "law": 4}[name]
    assert bool((planner.law(plain).alpha > 1).all())


def test_what_is_perceived_is_hard_and_has_a_gradient() -> None:
    torch.manual_seed(0)
    see = GroundPerception(DrivingCamera.ground(), channels=3, masks=7)
    images, route = torch.rand(2, 3, 48, 96), torch.ones(2, 1, 32, 32)
    view, logits = perceive(see, images, route, torch.tensor([0.0, 8.0])), see(images).logits
    assert torch.equal(view.masks[:, [0, 2, 3, 4, 5, 6, 7]], (logits > 0).float())
    assert torch.equal(view.masks[:, 1:2], route)
    assert view.masks[:, 8, 0, 0].tolist() == [0, 1]
    assert torch.equal(view.features[:, 24], torch.ones(2, 16, 16))
    view.masks.sum().backward()
    assert see.head[0].weight.grad is not None
    assert float(see.head[0].weight.grad.abs().sum()) > 0


def test_students_differ_in_kind_and_agents_give_each_its_scenes() -> None:
    torch.manual_seed(0)
    teacher, world = FrozenBackbone(DrivingPlanner(9).stages), DrivingWorld()
    students = [StudentPlanner(teacher, kind) for kind in ("plain", "adapted", "cloned")]
    assert [sum(p.requires_grad for p in s.parameters()) > 2 for s in students] == [False, True, True]
    assert not any(p is q for s in students for p in s.parameters() for q in teacher.parameters())
    state = world.sample(4, generator=torch.Generator().manual_seed(0))
    thrice = DrivingState(*(torch.cat([x] * 3) for x in state))
    plain, adapted, cloned = DrivingAgent(world, students)(thrice).chunk(3)
    assert torch.equal(plain, adapted)
    assert not torch.equal(plain, cloned)
    view = with_speed(world.render_bev(state), state.ego[:, 3])
    assert torch.equal(plain, DrivingPlanner.law(teacher(view)).mean)
    ruled = DrivingAgent(world, students[:1], rule=True)(state)
    torch.testing.assert_close(ruled[:, 0], torch.where(world.must_brake(state), -1.0, plain[:, 0]))


def test_agents_see_the_picture_before() -> None:
    torch.manual_seed(0)
    world, camera = DrivingWorld(), DrivingCamera(torch.rand(3, 16, 16), noise=0.0)
    see = GroundPerception(camera.ground(), channels=6, masks=7)
    student = StudentPlanner(FrozenBackbone(DrivingPlanner(9).stages), "cloned")
    first = world.sample(3, generator=torch.Generator().manual_seed(0))
    second = world.step(first, torch.zeros(3, 2))
    agent = DrivingAgent(world, [student], see, camera)
    agent(first)
    route = world.render_bev(second)[:, 1:2]
    view = perceive(see, torch.cat([camera(second), camera(first)], 1), route, second.ego[:, 3])
    torch.testing.assert_close(agent(second), DrivingPlanner.law(student(view)).mean)


def test_rewards_fall_with_speed_off_and_route_left() -> None:
    state = scenes(8)
    speed = state.ego[:, 3]
    torch.testing.assert_close(WORLD.reward(state, speed), torch.ones(8))
    torch.testing.assert_close(WORLD.reward(state, speed + 1), torch.full((8,), 1 - 0.1))
    still = WORLD.step(state, torch.zeros(8, 2), traffic=False)
    assert torch.equal(still.vehicles, state.vehicles)
    assert torch.equal(still.ego, WORLD.step(state, torch.zeros(8, 2)).ego)
    spread = WORLD.sample(200, anywhere=True, generator=torch.Generator().manual_seed(0))
    off = WORLD.deviation(spread).abs().amax(0)
    assert 1.3 < float(off[0]) <= 1.5 + 1e-3
    assert 0.25 < float(off[1]) <= 0.3 + 1e-3
    assert float(spread.progress.max()) > 80


def test_perception_learns_what_lies_on_the_ground_and_what_hangs_above_it() -> None:
    """The street ahead from its texture, and a light from the picture's upper half, told as a whole map."""
    torch.manual_seed(0)
    world, g = DrivingWorld(vehicles=1, walkers=1), torch.Generator().manual_seed(0)
    camera = DrivingCamera(torch.stack([torch.ones(8, 8), torch.zeros(8, 8), torch.full((8, 8), 0.5)]))
    see = GroundPerception(DrivingCamera.ground(), channels=3, masks=2)
    optimizer = torch.optim.Adam(see.parameters(), lr=5e-3)

    def draw(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        state = world.sample(count, generator=g)
        on = torch.rand(count, generator=g) < 0.5
        images = camera(state, generator=g)
        images[on, :, 2:6, 40:46] = torch.tensor([1.0, 0.0, 0.0])[:, None, None]
        return images, torch.stack([world.render_bev(state)[:, 0], on.float()[:, None, None].expand(-1, 32, 32)], 1)

    for _ in range(50):
        images, true = draw(16)
        optimizer.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(see(images).logits, true).backward()
        optimizer.step()
    images, true = draw(64)
    right = ((see(images).logits > 0) == true.bool()).double().mean((0, 2, 3))
    assert float(right[0]) > 0.85
    assert float(right[1]) > 0.9


def test_draws_depend_on_the_generator_alone() -> None:
    one, two = scenes(5, seed=3), scenes(5, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    textures = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    pictures = [DrivingCamera(textures)(one, generator=torch.Generator().manual_seed(k)) for k in (0, 0, 1)]
    assert torch.equal(pictures[0], pictures[1])
    assert not torch.equal(pictures[0], pictures[2])
    assert bool((pictures[0] >= 0).all())
    assert bool((pictures[0] <= 1).all())


def test_wrong_use_of_the_town_is_named(without_shape_checks: None) -> None:
    state, action = scenes(2), torch.zeros(2, 2)
    calls: list[tuple[str, Any]] = [
        (r"vehicles must be in 1\.\.100", lambda: DrivingWorld(vehicles=0)),
        (r"walkers must be an integer >= 1", lambda: DrivingWorld(walkers=0)),
        ("dt must be", lambda: DrivingWorld(dt=0.0)),
        ("count must be", lambda: WORLD.sample(0)),
        (r"action must be in \[-1, 1\]", lambda: WORLD.step(state, action + 2)),
        ("action must have shape", lambda: WORLD.step(state, action[:1])),
        (r"state.vehicles must have shape", lambda: DrivingWorld(vehicles=3).step(state, action)),
        (r"textures must have shape", lambda: DrivingCamera(torch.zeros(2, 8, 8))),
        ("decisions must be", lambda: WORLD.drive(state, lambda s: action, decisions=0, way=1.0)),
        ("way must be", lambda: WORLD.drive(state, lambda s: action, decisions=1, way=0.0)),
        ("kind must be one of", lambda: StudentPlanner(FrozenBackbone(DrivingPlanner(9).stages), "other")),
        ("students must hold", lambda: DrivingAgent(WORLD, [])),
        (
            "perception needs a camera",
            lambda: DrivingAgent(
                WORLD,
                [StudentPlanner(FrozenBackbone(DrivingPlanner(9).stages), "plain")],
                camera=DrivingCamera(torch.zeros(3, 8, 8)),
            ),
        ),
        ("channels must be", lambda: DrivingPlanner(0)),
        ("masks must have shape", lambda: DrivingPlanner(2)(torch.zeros(1, 3, 32, 32))),
        ("ground must have shape", lambda: GroundPerception(torch.zeros(4, 4, 2), channels=3, masks=2)),
        (
            "images must have shape",
            lambda: GroundPerception(DrivingCamera.ground(), channels=1, masks=1)(torch.zeros(1, 1, 6, 8)),
        ),
        ("noise must be", lambda: DrivingCamera(torch.zeros(3, 8, 8), noise=-1.0)),
    ]
    for match, call in calls:
        with pytest.raises(ValueError, match=match):
            call()
    with pytest.raises(TypeError, match="action must be a floating"):
        WORLD.step(state, action.long())


def test_who_looks_ahead_is_allowed_the_least_of_what_comes() -> None:
    state, still = scenes(40), torch.zeros(40, 2)
    later = [state, WORLD.step(state, still), WORLD.step(WORLD.step(state, still), still)]
    least = torch.stack([WORLD.allowed_speed(x) for x in later]).amin(0)
    assert torch.equal(WORLD.allowed_speed(state, coasting=2), least)
    assert bool((least < WORLD.allowed_speed(state)).any())
    with pytest.raises(ValueError, match="coasting"):
        WORLD.allowed_speed(state, coasting=-1)


def test_masks_are_painted_one_over_the_other() -> None:
    masks = torch.zeros(2, 8, 3, 4, dtype=torch.bool)
    masks[1, 0], masks[1, 3, 0, 0], masks[1, 4, 0, :2], masks[1, 7, 2, 3] = True, True, True, True
    picture = WORLD.paint(masks)
    assert not bool(picture[0].any())
    assert picture[1, :, 0, 0].tolist() == pytest.approx([0.24, 0.24, 1.0]), "a vehicle over where it was"
    assert picture[1, :, 2, 3].tolist() == [1.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="masks"):
        WORLD.paint(masks[:, 1:])


def test_perception_begins_with_the_rates_that_it_is_told_and_sees_bytes_in_parts() -> None:
    torch.manual_seed(0)
    see, rates = GroundPerception(DrivingCamera.ground(), channels=3, masks=7), torch.linspace(0.01, 0.5, 7)
    next(see.head.parameters()).data.zero_()
    see.expect(rates)
    images = (255 * torch.rand(70, 3, 48, 96)).byte()
    with torch.no_grad():
        found = see(images[:2] / 255).logits.sigmoid()
        torch.testing.assert_close(found, rates[:, None, None].expand(2, 7, 32, 32))
        route, speed = torch.zeros(70, 1, 32, 32), torch.rand(70)
        whole = perceive(see, images, route, speed)
        part = perceive(see, images[60:] / 255, route[60:], speed[60:])
    for x, y in zip(whole, part, strict=True):
        torch.testing.assert_close(x[60:], y)
    for wrong in (torch.ones(7), torch.full((6,), 0.5)):
        with pytest.raises(ValueError, match="rates"):
            see.expect(wrong)
