"""One controller for many goals of a soft robot, trained by the gradient of its simulation.

A network of sines commands the springs of a robot; it sees a clock, its shape and, many times over, the wanted velocity
and the wanted height of a jump. The loss compares where the robot is with where it was a cycle before, so that the to
and fro of a gait costs nothing, and its gradient goes through springs, impacts and friction of five hundred steps
(Fang, Liu, Zhang, Zhang, Ma, Li, Hu, Jiang, Liu, 2022). Each part is left out in turn, and evolution strategies and
proximal policy optimisation search without the gradient, at equal simulated steps and with a falling rate as well.

Smaller than in the paper: one robot in the plane (the authors' "stool"), 400 steps of Adam on batches of 2, not 10 000
on 32 (so few simulations teach more in small batches), at a larger rate that falls to zero; goals for one second, not
two, each simulation from rest; no crawling, no losses of commands and pose; commands stand for five steps. Simulated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.optim.lr_scheduler import CosineAnnealingLR

from pullback import dynamics
from pullback.dynamics import MassSpring, PeriodicController, SpringMotion, steer
from pullback.gradients import evolution_gradient
from pullback.lab import Arm, Lab, above, at_least, system

SPEED, HEIGHT, WINDOW, HOLD = 0.08, 0.04, 100, 5  # [m] in a window, [m], [steps], [steps]
ERROR, LOSS, RIGHT = "velocity error", "validation loss", "right directions"
ONCE, NAIVE, TANH, LARGE, SGD = "goal told once", "distance at the end", "tanh", "batch of 16", "SGD"
SGD_RATE, RATE_OF_16, SEARCHED = 0.1, 4e-3, 16  # the last: robots of a step of evolution and PPO
ES_RATE, ES_SMOOTHING = 0.02, 0.05  # found on other seeds; rates of 0.05 and widths of 0.025 and 0.1 do no better
PPO_RATE, PPO_SPREAD, PPO_DISCOUNT = 3e-3, 0.3, 0.99  # nor do a rate of 0.01 and a spread of 0.5


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    iterations: Annotated[int, at_least(2)] = 400
    """Steps of Adam of the full method."""
    compared: Annotated[int, at_least(1)] = 200
    """Steps of the full method and of those that lack a part, where these are compared."""
    batch: Annotated[int, at_least(2)] = 2
    """Robots simulated at once, each with its goals."""
    period: Annotated[int, at_least(WINDOW)] = 250
    """Steps of 4 ms for which a goal stands; a simulation has two."""
    lr: Annotated[float, above(0)] = 1e-3
    """Of Adam."""
    replicates: Annotated[int, at_least(1)] = 2
    """Initial weights and streams of goals."""
    unseen: Annotated[int, at_least(4)] = 32
    """Pairs of goals of the validation."""


class Task:
    """The robot, its goals and its loss."""

    def __init__(self, lab: Lab, config: Config) -> None:
        mask = torch.tensor([[True, True, True, True], [True, False, False, True]])
        robot = dynamics.voxel_robot(mask, actuation=0.2, actuated="sides")
        self.body = MassSpring(*robot[1:], dashpot=50.0)
        self.pose, self.config, self.period = robot.positions, config, config.period
        self.sizes = (robot.positions.numel(), 2, len(robot.rest))
        self.searches = max(1, config.iterations * config.batch // SEARCHED)  # at equal simulated steps
        self.unseen = self.goals(lab.fork("unseen goals"), config.unseen)

    def goals(self, stream: torch.Generator, count: int) -> Tensor:
        """``[steps, count, 2]``: displacement in a window, height of a jump, which half of the goals do not want."""
        ranges = [(-SPEED, SPEED), (-HEIGHT, HEIGHT)]
        drawn = dynamics.goal_schedule(count, 2 * self.period, ranges=ranges, period=self.period, generator=stream)
        return torch.stack([drawn[..., 0], drawn[..., 1].clamp_min(0)], -1)

    def move(self, controller: PeriodicController, goals: Tensor, **words: Any) -> SpringMotion:
        """Robots from rest, one for each sequence of goals."""
        x, told = self.pose.repeat(goals.shape[1], 1, 1), goals / torch.tensor([SPEED, HEIGHT])
        return steer(self.body, controller, x, torch.zeros_like(x), told, hold=HOLD, **words)

    def loss(self, motion: SpringMotion, goals: Tensor, naive: bool = False) -> tuple[Tensor, Tensor]:
        """Of running and of jumping; naive: only how far the end is from where the goals would have led."""
        centre, lowest = motion.positions[..., 0].mean(-1), motion.positions[..., 1].amin(-1)
        jump = dynamics.height_loss(lowest, goals[..., 1], period=self.period, least=0.0).mean()
        if naive:
            return (centre[-1] - centre[0] - goals[..., 0].sum(0) / WINDOW).square().mean(), jump
        return dynamics.velocity_loss(centre, goals[..., 0], window=WINDOW, period=self.period).mean(), jump

    @torch.no_grad()
    def validate(self, controller: PeriodicController) -> dict[str, Tensor]:
        """Errors on unseen goals."""
        run, jump = self.loss(motion := self.move(controller, goals := self.unseen), goals)
        centre = motion.positions[..., 0].mean(-1)
        ran = centre[self.period :: self.period] - centre[self.period - WINDOW :: self.period][:2]
        wanted = goals[:: self.period, :, 0]
        right = (ran.sign() == wanted.sign())[wanted.abs() >= SPEED / 10].float().mean()
        return {ERROR: run.sqrt() / (2 * SPEED), RIGHT: right, "height error": jump.sqrt(), LOSS: 100 * (run + jump)}


@system(
    "complex-locomotion",
    family="dynamics",
    title="Complex Locomotion Skill Learning via Differentiable Physics",
    paper="Fang, Liu, Zhang, Zhang, Ma, Li, Hu, Jiang, Liu, 2022, arXiv 2206.02341",
    config=Config,
    smoke={"iterations": 2, "compared": 1, "period": 100, "replicates": 1, "unseen": 4},
    full={"iterations": 10_000, "compared": 2000, "batch": 32, "lr": 3e-4, "period": 500, "replicates": 5},
    data=(),
    blocks=("dynamics.MassSpring", "dynamics.steer", "dynamics.ppo_update", "gradients.evolution_gradient"),
)
def run(lab: Lab, config: Config) -> None:
    """Check the simulation, train the controller, leave its parts out, and try without its gradient."""
    lab.data("a robot of six square cells in the plane, goals at random", origin="simulated")
    physics(lab)
    task, at = Task(lab, config), f"{ERROR} after {config.compared * config.batch} simulations"
    ours, *lesser = (lab.arm(n, baseline=n != "full method") for n in ("full method", ONCE, NAIVE, TANH, LARGE, SGD))
    searched = {lab.arm("evolution", baseline=True): evolve, lab.arm("PPO", baseline=True): reinforce}
    for _ in lab.replicates(config.replicates):
        for arm in (ours, *lesser):
            trained(arm, lab, task, config.compared, at)
        report(ours, task, controller := trained(ours, lab, task, config.iterations, ERROR))
        for arm, search in searched.items():
            with arm.weights():
                found = PeriodicController(*task.sizes)
            search(arm, lab, task, found)
            report(arm, task, found)
    draw(lab, task, controller)
    lab.claim(
        "on unseen pairs of goals the velocity is off by at most 0.15 of its range, 0.4 of what it was untrained, and "
        "95 % of the goals above a tenth of the top speed go the right way",
        ours[ERROR] <= 0.15,
        ours[ERROR] <= 0.4 * ours[f"{ERROR} before"],
        ours[RIGHT] >= 0.95,
    )
    statement = f"{NAIVE}: at equal simulated steps the velocity error is at least 15 % above the full method's"
    lab.claim(statement, lab.arm(NAIVE)[at] >= 1.15 * ours[at])
    for arm in searched:
        statement = f"{arm.name}, with as many simulated steps, ends at twice the validation loss or more"
        lab.claim(statement, arm[LOSS] >= 2 * ours[LOSS])
    listed = ", ".join(f"{arm.name} {arm[at]:.3f}" for arm in (ours, *lesser))
    lab.note(f"{at}: {listed}. The order of {ONCE}, {TANH}, {SGD} and full changes with the initial weights.")
    still, low = (task.unseen[..., k].square().mean().sqrt().item() for k in (0, 1))
    lab.note(f"Standing still errs by {still / 2 / SPEED:.2f} and {low:.4f} m, here {ours['height error']:.4f} m.")
    lab.curves(at, xlabel="simulations", caption="On unseen pairs of goals, each replicate.")
    lab.bars(at, LOSS)


def physics(lab: Lab) -> None:
    """What the gradients rest on: a known period, and compiled steps equal to plain ones."""
    spring = MassSpring(torch.tensor([[0, 1]]), torch.ones(1), 40.0, gravity=0.0, ground=None).double()
    x, period, dt = torch.tensor([[0.0, 0.0], [1.1, 0.0]]).double(), 2 * math.pi / math.sqrt(80), 0.002
    swing = spring.simulate(x, torch.zeros_like(x), torch.zeros(round(50 * period / dt), 1).double(), dt=dt)
    stretch = swing.positions[:, 1, 0] - swing.positions[:, 0, 0] - 1
    up = ((stretch[:-1] < 0) & (stretch[1:] >= 0)).nonzero()[:, 0]
    crossed = up + stretch[up] / (stretch[up] - stretch[up + 1])
    found, energy = (crossed[-1] - crossed[0]) * dt / (len(up) - 1), spring.energy(swing.positions, swing.velocities)
    drift = lab.metric("largest change of energy in 50 periods", (energy / energy[0] - 1).abs().max(), better="lower")
    off = lab.metric("error of the period", abs(found / period - 1), better="lower")
    lab.claim("a spring: period within 0.1 %, energy within 1 %", off <= 1e-3, drift <= 0.01, scale="smoke")
    robot = dynamics.voxel_robot(torch.tensor([[True, True], [True, False]]))
    body, start = MassSpring(*robot[1:], dashpot=50.0).double(), robot.positions.double()
    controller = PeriodicController(start.numel(), 1, len(robot.rest), generator=lab.fork("check")).double()
    ends = []
    for method in ("compiled", "reference"):
        motion = steer(body, controller, start, 0 * start, torch.ones(200, 1).double(), hold=HOLD, method=method)
        slopes = torch.autograd.grad(motion.positions[-1].mean(0)[0], list(controller.parameters()))
        ends.append(torch.cat([motion.positions.flatten(), *(s.flatten() / s.abs().max() for s in slopes)]))
    same = lab.metric("compiled against plain, states and gradients", (ends[0] - ends[1]).abs().max(), better="lower")
    lab.claim("compiled and plain steps and gradients agree to 1e-9 over 200 steps", same <= 1e-9, scale="smoke")


def trained(arm: Arm, lab: Lab, task: Task, iterations: int, measure: str) -> PeriodicController:
    """Descend the gradient of the simulation, at a rate that falls to zero."""
    config = task.config
    with arm.weights():
        bend, repeat = "tanh" if arm.name == TANH else "sin", 1 if arm.name == ONCE else 30
        controller = PeriodicController(*task.sizes, repeat=repeat, activation=bend)
    size, rate = (16, RATE_OF_16) if arm.name == LARGE else (config.batch, config.lr)
    words: Any = {"lr": SGD_RATE} if arm.name == SGD else {"lr": rate, "betas": (0.9, 0.9)}
    kind: Any = torch.optim.SGD if arm.name == SGD else torch.optim.Adam
    optimizer = kind(controller.parameters(), **words, fused=True)
    stream, count = lab.fork("goals"), max(1, iterations * config.batch // size)
    falling = CosineAnnealingLR(optimizer, count)
    arm.metric(f"{ERROR} before", task.validate(controller)[ERROR])
    for step in arm.steps(count, controller, optimizer, falling, stream):
        parts = task.loss(task.move(controller, goals := task.goals(stream, size)), goals, arm.name == NAIVE)
        arm.descend(100 * torch.stack(parts).sum(), optimizer)
        falling.step()
        if (count - step - 1) % max(1, count // 6) == 0:  # the last one too
            arm.record(measure, task.validate(controller)[ERROR], (step + 1) * size)
    arm.metric(measure, arm.last(measure), better="lower")
    return controller


def report(arm: Arm, task: Task, controller: PeriodicController) -> None:
    """Errors on unseen goals."""
    for measure, value in task.validate(controller).items():
        arm.metric(measure, value, better="higher" if measure == RIGHT else "lower")


def evolve(arm: Arm, lab: Lab, task: Task, controller: PeriodicController) -> None:
    """Evolution strategies: antithetic pairs, each with goals of its own; Adam descends the estimate."""
    trial, stream, pairs = PeriodicController(*task.sizes), lab.fork("evolution"), SEARCHED // 2
    optimizer = torch.optim.Adam(controller.parameters(), lr=ES_RATE)
    falling = CosineAnnealingLR(optimizer, task.searches)

    def loss(weights: dict[str, Tensor], goals: Tensor) -> Tensor:
        trial.load_state_dict(weights)
        return 100 * torch.stack(task.loss(task.move(trial, goals), goals)).sum()

    for _ in arm.steps(task.searches, controller, optimizer, falling, stream):
        words: dict[str, Any] = {"smoothing": ES_SMOOTHING, "pairs": pairs, "shaping": "ranks", "generator": stream}
        goals = task.goals(stream, pairs)[:, :, None].transpose(0, 1)
        found = evolution_gradient(loss, {k: p.detach() for k, p in controller.named_parameters()}, data=goals, **words)
        for name, parameter in controller.named_parameters():
            parameter.grad = found.gradient[name]
        optimizer.step()
        falling.step()
        arm.record("smoothed loss", found.value)


def reinforce(arm: Arm, lab: Lab, task: Task, controller: PeriodicController) -> None:
    """Proximal policy optimisation of the authors' reward, heights weighed less; the critic sees velocities too."""
    steps, size, outputs = 2 * task.period, SEARCHED, task.sizes[2]
    with arm.weights("critic"):
        critic = nn.Sequential(nn.Linear(2 * task.sizes[0] + 6, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
        critic.append(nn.Linear(64, 1))
    spread = nn.Parameter(torch.full((outputs,), math.log(PPO_SPREAD)))
    learned, stream = nn.ModuleList([controller, critic, nn.ParameterList([spread])]), lab.fork("PPO")
    optimizer = torch.optim.Adam(learned.parameters(), lr=PPO_RATE, fused=True)
    falling = CosineAnnealingLR(optimizer, task.searches)
    clock, inward = range(0, steps, HOLD), slice(controller.waves, controller.waves + controller.states)
    turn = 2 * math.pi * torch.arange(0, steps + 1, HOLD) / WINDOW
    time = torch.stack([turn / turn[-1], turn.sin(), turn.cos()], -1)[:, None].expand(-1, size, -1)
    held: dict[str, Tensor] = {}  # what the policy saw and did

    def law(chosen: Any) -> Normal:
        hidden = controller.drive(clock, held["told"]).flatten(0, 1)[chosen]
        hidden = hidden + held["seen"].flatten(0, 1)[chosen] @ controller.first.weight[:, inward].T
        return Normal(controller.second(hidden.sin()).sin(), spread.exp())

    def judge(chosen: Any) -> tuple[Tensor, Tensor]:
        likely = law(chosen).log_prob(held["action"][chosen]).sum(-1)
        return likely, critic(held["states"][:-1].flatten(0, 1)[chosen])[:, 0]

    for _ in arm.steps(task.searches, learned, optimizer, falling, stream):
        goals = task.goals(stream, size)
        with torch.no_grad():
            noise = spread.exp() * torch.randn(len(clock), size, outputs, generator=stream)
            motion = task.move(controller, goals, noise=noise)
            rewards, x, told = reward(motion, goals, task.period), motion.positions[::HOLD], goals[::HOLD]
            told = told / torch.tensor([SPEED, HEIGHT])
            seen = ((x - (middle := x.mean(-2, keepdim=True))) / 0.2).flatten(-2)
            back = (middle - middle[(torch.arange(len(x)) - WINDOW // HOLD).clamp_min(0)])[..., 0, :1] / SPEED
            state = [seen, motion.velocities[::HOLD].flatten(-2), back, torch.cat([told, told[-1:]]), time]
            held |= {"told": told, "seen": seen[:-1], "states": torch.cat(state, -1)}
            values = nn.functional.pad(critic(held["states"][:-1])[..., 0], (0, 0, 0, 1))
            gained = dynamics.generalized_advantage(rewards.T, values.T, discount=PPO_DISCOUNT)
            held["action"] = law(slice(None)).mean + noise.flatten(0, 1)
            before = judge(slice(None))[0]
        arm.record("reward", rewards.sum(0).mean())
        dynamics.ppo_update(judge, optimizer, before, *(t.T.flatten() for t in gained), generator=stream)
        falling.step()


def reward(motion: SpringMotion, goals: Tensor, period: int) -> Tensor:
    """``[asked, count]``: how much nearer each step comes to where the places of the last window are to lead."""
    centre, lowest = motion.positions[..., 0].mean(-1), motion.positions[..., 1].amin(-1)
    found: list[Tensor] = []
    for begin in range(0, len(goals), period):
        c, (wanted, height) = centre[begin : begin + period + 1], goals[begin].unbind(-1)
        first = (torch.arange(1, period + 1) - WINDOW).clamp_min(0)
        count, sums = (torch.arange(1, period + 1) - first)[:, None], torch.cat([0 * c[:1], c.cumsum(0)])
        run = c.diff(dim=0) * (2 * (sums[1:-1] - sums[first]) + count * (2 * wanted - c[1:] - c[:-1]))
        short = (lowest[begin : begin + period + 1].cummax(0).values - height).square() * (height > 0)
        found.append(run / SPEED**2 / 400 - short.diff(dim=0) / HEIGHT**2)
    return torch.cat(found).unflatten(0, (-1, HOLD)).sum(1)


def draw(lab: Lab, task: Task, controller: PeriodicController) -> None:
    """Goals and what became of them, and the robot between two of them."""
    with torch.no_grad():
        centre = (motion := task.move(controller, task.unseen)).positions[..., 0].mean(-1)
    wanted = 100 * task.unseen[..., 0]
    figure, (upper, lower) = lab.subplots(2, 1, figsize=(9, 5.5), height_ratios=(3, 1))
    for i in range(4):
        upper.plot(range(WINDOW, len(centre)), 100 * (centre[WINDOW:] - centre[:-WINDOW])[:, i], color=f"C{i}")
        upper.plot(wanted[:, i], "--", color=f"C{i}", lw=1)
    upper.set(xlabel="step of 4 ms", ylabel="cm in the last 100 steps", title="four unseen pairs (dashed: wanted)")
    chosen, every = int((wanted[0] - wanted[-1]).abs().argmax()), max(1, task.period // 5)
    for place, t in enumerate(range(0, len(centre), every)):
        x = motion.positions[t, chosen] + torch.stack([0.25 * place - centre[t, chosen], torch.zeros(())])
        lines = nn.functional.pad(x[task.body.anchors], (0, 0, 0, 1), value=math.nan).flatten(0, 1)
        lower.plot(*lines.T, color=lab.arm("full method").colour, lw=1)
        came = round(100 * (centre[t] - centre[0])[chosen].item())
        lower.text(0.25 * place, -0.04, f"{came} cm", ha="center", fontsize=8)
    lower.axhline(0, color="black", lw=0.8)
    lower.set(aspect="equal", xticks=[], yticks=[], ylim=(-0.06, 0.16), title=f"one robot, every {every} steps")
    lab.figure("goals", figure, "The full method on unseen goals; they switch midway. Below: how far it has come.")
