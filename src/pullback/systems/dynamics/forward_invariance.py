"""Forward invariance: neural ODEs whose trajectories satisfy specifications at all times, by construction.

A specification h(x) >= 0 holds for ever where dh/dt + p h >= 0 does (a control barrier function). That condition is
linear in the last layer of the field, or, after some derivatives, in an input or in the rate of inner weights; a least
change of those, found by a small quadratic program at every evaluation of the field, carries it through the network.
Xiao, Wang, Hasani, Lechner, Ban, Gan, Rus, ICML 2023.

Two of the paper's examples, simulated as there: a spiral field with discs in its way, and driving by lidar, where the
filtered image is what the network should have seen. Here: 50 and 64 hidden units, a rule as teacher among discs, tests
among thin posts. Other than in the authors' code: the derivative of tanh is 1 - tanh^2 (theirs: tanh^2), one relaxed
row leads all inner weights back, all of a layer is freed (its choice changes no state), k = 4 by lidar (theirs 2).
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
from matplotlib.patches import Circle
from torch import Tensor, nn

from pullback import dynamics
from pullback.dynamics import DiscRoad, InvariantODE, odeint
from pullback.lab import Arm, Lab, above, at_least, system

CLASSK = (5.0, 10.0, 30.0)
RADIUS, STEP = 0.2, 0.02  # of the discs, of the Runge-Kutta method
ROTATION = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]])  # of the spiral, dx/dt = x^3 A


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    fit_steps: Annotated[int, at_least(1)] = 300
    """Adam steps of the spiral field, and of each training with a penalty."""
    starts: Annotated[int, at_least(1)] = 64
    """Starts of trajectories."""
    horizon: Annotated[float, above(0)] = 4.0
    """Time of a trajectory; one turn of the spiral takes about 4."""
    clone_steps: Annotated[int, at_least(1)] = 800
    """Adam steps of the driver."""
    episodes: Annotated[int, at_least(1)] = 300
    """Unseen scenes in which the driver is tested."""
    duration: Annotated[float, above(0)] = 14.0
    """Of an episode [s]."""


@system(
    "forward-invariance",
    family="dynamics",
    title="On the Forward Invariance of Neural ODEs",
    paper="Xiao, Wang, Hasani, Lechner, Ban, Gan, Rus, ICML 2023, arXiv 2210.04763",
    config=Config,
    smoke={"fit_steps": 2, "starts": 3, "horizon": 0.2, "clone_steps": 2, "episodes": 3, "duration": 0.5},
    full={"fit_steps": 2000, "starts": 10_000, "clone_steps": 20_000, "episodes": 10_000},
    data=(),
    blocks=("dynamics.min_norm_filter", "dynamics.barrier_condition", "dynamics.InvariantODE", "dynamics.disc_ranges"),
)
def run(lab: Lab, config: Config) -> None:
    """Keep a spiral out of discs and a driver off posts."""
    lab.data("trajectories of a spiral field; scenes of discs with a simulated lidar", origin="simulated")
    spiral(lab, config)
    driving(lab, config)


class Spiral(dynamics.NeuralField):
    """The authors' field: a perceptron of the cubes."""

    def __init__(self) -> None:
        super().__init__(2, hidden=(50,), activation=nn.Tanh)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """dy/dt."""
        return super().forward(t, y**3)


def outside(discs: Tensor, y: Tensor, radius: float | Tensor = RADIUS) -> Tensor:
    """The specification: h = |y - centre|^2 - r^2 of each disc."""
    return (y[..., None, :] - discs).square().sum(-1) - radius**2


def around(count: int, generator: torch.Generator) -> Tensor:
    """Starts in a square of side 0.2 about (1, 0)."""
    return torch.tensor([1.0, 0.0]) + 0.2 * (torch.rand(count, 2, generator=generator) - 0.5)


def solved(field: Callable[[Tensor, Tensor], Tensor], y0: Tensor, times: Tensor) -> Tensor:
    """States of a Runge-Kutta solve with a step between times."""
    with torch.no_grad():
        states: Tensor = odeint(field, y0, times, method="rk4").y
    return states


def train(arm: Arm, lab: Lab, config: Config, model: Spiral, penalty: float, discs: Tensor) -> None:
    """Fit the flow of the spiral; with a penalty also ask for trajectories outside of the discs."""
    optimizer, draws = torch.optim.Adam(model.parameters(), lr=1e-2), lab.fork(f"trajectories {penalty}")
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.fit_steps)
    short, long = [0.0, 0.1, 0.2, 0.3], torch.linspace(0, config.horizon, 41)
    for _ in arm.steps(config.fit_steps, model, optimizer, schedule, draws, name=f"fit {penalty}"):
        angle = 2 * math.pi * torch.rand(64, generator=draws)
        starts = torch.stack([angle.cos(), angle.sin()], 1) * (0.3 + torch.rand(64, 1, generator=draws))
        target = solved(lambda t, y: y**3 @ ROTATION, starts, torch.tensor(short))
        found = odeint(model, starts, short, method="rk4", adjoint="unrolled").y
        loss = (found - target).square().mean()
        if penalty:
            path = odeint(model, around(32, draws), long, method="rk4", adjoint="unrolled").y
            loss = loss + penalty * torch.relu(-outside(discs, path)).sum(-1).mean()
        arm.descend(loss, optimizer, name=f"loss, penalty {penalty:g}")
        schedule.step()


def placed(path: Tensor, arcs: list[float], beside: bool, g: torch.Generator) -> Tensor:
    """Centres of discs along a path: on it, or beside it at a gap of 0.04 to 0.16."""
    steps = path.diff(dim=0)
    length = steps.norm(dim=-1).cumsum(0)
    where = torch.tensor(arcs) + 0.2 * (torch.rand(len(arcs), generator=g) - 0.5)
    at = (length[None] < where[:, None]).sum(1).clamp(max=len(steps) - 1)
    normal = steps[at].flip(-1) * torch.tensor([-1.0, 1.0]) / steps[at].norm(dim=-1, keepdim=True)
    amount, side = torch.rand(2, len(arcs), generator=g)
    aside = (side - 0.5).sign() * (RADIUS + 0.04 + 0.12 * amount) if beside else 0.16 * (amount - 0.5)
    return path[at] + aside[:, None] * normal


def spiral(lab: Lab, config: Config) -> None:
    """Section 5.1: discs on and beside the path of a trained spiral."""
    plain, outer, inner = lab.arm("none", baseline=True), lab.arm("output layer"), lab.arm("inner layer")
    push, cut, priced = (lab.arm(name, baseline=True) for name in ("push", "truncation", "penalty"))
    with plain.weights():
        field = Spiral()
    train(plain, lab, config, field, 0.0, torch.empty(0))
    field.requires_grad_(False)
    path = solved(field, torch.tensor([1.0, 0.0]), torch.linspace(0, 5, 1001))
    on = placed(path, [1.3, 2.8, 4.3], False, lab.fork("discs on the path"))
    beside = placed(path, [2.0, 3.5, 5.0], True, lab.fork("discs beside the path"))
    times = torch.linspace(0, config.horizon, round(config.horizon / STEP) + 1)
    starts, tuning = around(config.starts, lab.fork("starts")), around(config.starts, lab.fork("tuning starts"))
    free = solved(field, starts, times)
    hit: dict[Arm, Tensor] = {plain: free, cut: truncated(field, starts, times, on)}
    moved: dict[Arm, Tensor] = {cut: truncated(field, starts, times, beside)}
    for arm, through in ((outer, "output_layer"), (inner, "inner_layer")):
        classk = torch.tensor(CLASSK).repeat_interleave(len(starts))[:, None]  # all p in one batch
        for discs, kept in ((on, hit), (beside, moved)):
            safe = InvariantODE(field, partial(outside, discs), through=through, classk=classk, start="recover")
            kept[arm] = safe(starts.repeat(len(CLASSK), 1), times).y
    reach, strength = tuned_push(field, tuning, times, on)
    lab.note(f"The push was tuned on other starts: strength {strength:g}, reach {reach:g}.")
    for discs, kept in ((on, hit), (beside, moved)):
        kept[push] = solved(partial(pushed, field, discs, strength, reach), starts, times)
    candidates = []
    for price in (0.3, 3.0, 30.0):
        model = copy.deepcopy(field).requires_grad_()
        train(priced, lab, config, model, price, on)
        violating = float((outside(on, solved(model, tuning, times)).amin((0, -1)) < 0).float().mean())
        candidates.append((violating, price, model))
    hit[priced] = solved(min(candidates, key=lambda c: c[:2])[2], starts, times)

    for arm, y in hit.items():
        h = outside(on, y).amin((0, -1))
        arm.metric("least h, discs on the path", h.min(), better="higher")
        arm.metric("share of starts that violate", (h < -1e-4).float().mean(), better="lower")
        acceleration = y.diff(2, 0).norm(dim=-1).max() / STEP**2
        arm.metric("largest acceleration", acceleration, better="lower")
    least = [arm["least h, discs on the path"] for arm in (outer, inner, priced)]
    statement = "no start leaves h >= -1e-4 with p = 5, 10, 30 in either layer; the best of three penalties in training"
    lab.claim(f"{statement} lets one pass -1e-3", least[0] >= -1e-4, least[1] >= -1e-4, least[2] <= -1e-3)
    far = ((free[..., None, :] - beside).norm(dim=-1) > 1.5 * RADIUS).all(-1)
    for arm, y in moved.items():
        for p, part in zip(CLASSK if arm in (outer, inner) else (0,), y.split(len(starts), 1), strict=True):
            name = f"deviation, discs beside{f', p = {p:g}' if p else ''}"
            arm.metric(name, (part - free).norm(dim=-1)[far].mean(), better="lower")
    lean, wary = (outer[f"deviation, discs beside, p = {p}"] for p in (30, 10))
    statement = "past discs beside the path p = 30 deviates at most 0.5 x as far as the push, and 0.6 x as p = 10"
    lab.claim(statement, lean <= 0.5 * push["deviation, discs beside"], lean <= 0.6 * wary)

    dense = solved(field, starts, torch.linspace(0, config.horizon, 4 * len(times) - 3))
    pair: Any = torch.func.jvp(partial(outside, beside), (dense,), (field(times, dense),))
    satisfied, shares, largest = (pair[0] >= 0).amin((0, -1)).bool(), [], 0.0
    for p, y in zip(CLASSK, moved[outer].split(len(starts), 1), strict=True):
        change, already = (y - free).norm(dim=-1).amax(0), ((pair[1] + p * pair[0]) >= 0).amin((0, -1)).bool()
        largest = max(largest, float(change[already].max())) if bool(already.any()) else largest
        shares.append(outer.metric(f"share moved, p = {p:g}", (change[satisfied] > 1e-6).float().mean()))
    statement = "starts on whose path the condition holds are not moved (1e-6); the share of safe ones that are"
    lab.claim(f"{statement} falls with p", largest <= 1e-6, shares[0] > shares[1] > shares[2], largest=largest)

    figure, axes = lab.subplots(1, 3, figsize=(12, 4))
    for arm, y in hit.items():
        axes[0 if arm in (plain, push, priced) else 1].plot(*y[:, -1].T, color=arm.colour, label=arm.name)
        axes[2].plot(times, outside(on, y).amin((1, 2)), color=arm.colour)
    for axis in axes[:2]:
        [axis.add_patch(Circle(centre, RADIUS, color="0.8")) for centre in on.tolist()]
        axis.set(aspect="equal", xlim=(-1.4, 1.4), ylim=(-1.5, 1.4))
        axis.legend(fontsize=7, loc="center")
    axes[2].set(xlabel="time", ylabel="least h of all starts", ylim=(-0.05, 0.3))
    lab.figure("spiral", figure, "A start past three discs (p = 30 in the layers); the least h of all starts.")


def truncated(field: Spiral, y: Tensor, times: Tensor, discs: Tensor) -> Tensor:
    """Every step is followed by a projection out of the discs."""
    states = [y]
    for i in range(len(times) - 1):
        y = solved(field, y, times[i : i + 2])[-1]
        for centre in discs:
            distance = (y - centre).norm(dim=-1, keepdim=True)
            y = torch.where(distance < RADIUS, centre + (y - centre) * (RADIUS / distance), y)
        states.append(y)
    return torch.stack(states)


def pushed(field: Spiral, discs: Tensor, strength: float, reach: float, t: Tensor, y: Tensor) -> Tensor:
    """The field with a potential field around each disc: strength exp(-distance from its edge / reach) outwards."""
    away = y[..., None, :] - discs
    distance = away.norm(dim=-1, keepdim=True)
    return field(t, y) + (strength * (-(distance - RADIUS) / reach).exp().clamp(max=20) * away / distance).sum(-2)


def tuned_push(field: Spiral, starts: Tensor, times: Tensor, discs: Tensor) -> tuple[float, float]:
    """Of the pushes that let at most 3 % of the tuning starts in, the one that moves those the least."""
    free, best = solved(field, starts, times), (math.inf, 0.08, 8.0)
    for reach, strength in itertools.product((0.01, 0.02, 0.04), (1.5, 2.0, 3.0, 4.5)):
        y = solved(partial(pushed, field, discs, strength, reach), starts, times)
        if (outside(discs, y).amin((0, -1)) < 0).float().mean() <= 0.03:
            best = min(best, ((y - free).norm(dim=-1).mean().item(), reach, strength))
    return best[1:]


class Driver(nn.Module):
    """The authors' driver: the rates of turning rate and acceleration, linear in the lidar image, from a perceptron."""

    def __init__(self, road: DiscRoad) -> None:
        super().__init__()
        self.rays, self.speed = road.rays, road.speed
        self.net = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 2 * (road.rays + 4)))

    def forward(self, t: Tensor, z: Tensor, image: Tensor) -> Tensor:
        """Rate of the vehicle's state."""
        gains = self.net(z[..., 4:]).unflatten(-1, (2, -1))
        rest = torch.stack([z[..., 1], z[..., 2], z[..., 3] - self.speed, torch.ones_like(z[..., 0])], -1)
        change = (gains[..., :-4] * image[..., None, :]).sum(-1) + (gains[..., -4:] * rest[..., None, :]).sum(-1)
        return dynamics.vehicle(t, z, change)


def driving(lab: Lab, config: Config) -> None:
    """Section 5.3: a driver cloned among discs meets thin posts, with its lidar image filtered and without."""
    ours, plain = lab.arm("lidar filtered"), lab.arm("none", baseline=True)
    times, g = torch.linspace(0, config.duration, round(10 * config.duration) + 1), lab.fork("driving")
    road = DiscRoad(200, generator=g)
    z = solved(lambda t, z: dynamics.vehicle(t, z, road.rule(z, road.lidar(t, z))), road.start, times)
    z = z + torch.randn(z.shape, generator=g) * torch.tensor([0.0, 0.2, 0.2, 0.3, 0.5, 0.5])  # beside the beaten path
    image = road.lidar(times, z)
    z, image, target = (v.flatten(0, 1) for v in (z, image, road.rule(z, image)))
    with plain.weights("driver"):
        driver = Driver(road)
    optimizer, draws = torch.optim.Adam(driver.parameters(), lr=3e-3), lab.fork("batches")
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.clone_steps)
    for _ in plain.steps(config.clone_steps, driver, optimizer, schedule, draws, name="driver"):
        some = torch.randint(len(z), (256,), generator=draws)
        change = driver(times[:1], z[some], image[some])[..., 4:]
        plain.descend((change - target[some]).square().mean(), optimizer, name="loss of the driver")
        schedule.step()

    unseen = DiscRoad(config.episodes, 10, size=(0.05, 0.12), spacing=1.25, generator=lab.fork("unseen roads"))
    apart = partial(outside, unseen.centers, radius=unseen.radius + 0.01)
    words: Any = {"through": "input", "degree": 3, "classk": 4.0, "slack": 1e4, "start": "recover"}
    safe = InvariantODE(driver.requires_grad_(False), lambda z: apart(z[..., :2]), **words)
    found = safe(unseen.start, times, unseen.lidar)
    paths = {plain: solved(lambda t, z: driver(t, z, unseen.lidar(t, z)), unseen.start, times), ours: found.y}
    crash = {arm: (unseen.clearance(y) < 0).any(-1).any(0) for arm, y in paths.items()}
    for arm, y in paths.items():
        arm.metric("collisions", crash[arm].float().mean(), better="lower")
        arrived = (~crash[arm] & (y[..., 0].amax(0) > 15.5))[~crash[plain]]
        arm.metric("success where none collides", arrived.float().mean(), better="higher")
    kept = [arm["success where none collides"] for arm in (ours, plain)]
    ours.metric("largest slack", found.slack.max(), better="lower")
    statement = (
        "unseen roads: no collision with the filtered image, at least 5 % without; where the driver is safe alone"
    )
    verdicts = ours["collisions"] <= 0, plain["collisions"] >= 0.05, kept[0] >= kept[1] - 0.03
    lab.claim(f"{statement} its success falls by at most 3 points", *verdicts)
    one = int(crash[plain].float().argmax())
    moment = int(found.intervention[:, one].argmax())
    figure, axes = lab.subplots(1, 2, figsize=(12, 3), width_ratios=(2, 1))
    [axes[0].add_patch(Circle(c, r, color="0.6")) for c, r in zip(unseen.centers[one], unseen.radius[one], strict=True)]
    for arm, y in paths.items():
        axes[0].plot(*y[:, one, :2].T, color=arm.colour, label=arm.name)
    axes[0].plot(*found.y[moment, one, :2], "o", color="black", ms=4, label="place of the image")
    axes[0].set(aspect="equal", xlabel="x [m]", ylabel="y [m]", xlim=(0, 17), ylim=(-2.5, 2.5))
    axes[0].legend(fontsize=7, ncols=3, loc="upper left")
    z, t = found.y[moment], times[moment].expand(config.episodes, 1)
    axes[1].plot(unseen.lidar(t, z)[one], color=plain.colour)
    axes[1].plot(safe.control(t, z, unseen.lidar).value[one], color=ours.colour)
    axes[1].set(xlabel="ray, from the right to the left", ylabel="lidar image (nearness)")
    lab.figure("driving", figure, "A road on which the driver collides; its lidar image at the dot, before and after.")
