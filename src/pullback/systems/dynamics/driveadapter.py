"""A driver who learned on perfect maps is kept as it is, and adapters teach it to read those of a camera.

A teacher drives by masks seen from above, true to the scene. Masks that a camera's picture is turned into are not, and
on them it drives badly. Its layers stay frozen; an adapter after each moves the features to where the teacher has them
on the true masks, by looking at the raw features of perception too. Where a hand-written emergency brake overrode the
teacher its features are wrong: alignment is off there, and the brake's action alone teaches the adapters (Jia, Gao,
Chen, Yan, Liu, Li, ICCV 2023, arXiv 2308.00398).

What to expect depends on the teacher, another with every seed. With most, adapters drive far better than the teacher
alone, and better than a planner cloned at the same price (clipped at 1: without it some clones act alike whatever they
see); with some they drive worse than both, though their actions on held-out frames are nearer to the teacher's: of four
teachers one. Alignment wins little or nothing in score. It brings features nearer, not by half: one camera sees half of
the map, perception misses vehicles and walkers (overlaps are reported), and what the teacher saw is not there to be
aligned. Without it they go astray. Its mask, of few frames, does nothing: that claim fails.

Driving is simulated: a town with traffic, walkers and lights, a camera that sees textures of real photographs. Smaller
than in the paper: 32 x 32 masks of 8 kinds, one camera of 48 x 96 pixels, now and a moment ago, 24 features every two
metres; speed is a ninth mask, and gradients stop at the masks in the second stage. The teacher is none of CARLA's: it
learns by the policy gradient through the simulator. Alignment has the authors' weights, in units of a layer's features.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import convert_conv2d_weight_memory_format as convert

from pullback import data, dynamics
from pullback.dynamics import DrivingPlanner, DrivingState, DrivingWorld, PlannerView, StudentPlanner, with_speed
from pullback.lab import Arm, Lab, above, at_least, system


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    states: Annotated[int, at_least(2)] = 4000
    """That the teacher learns from, before it drives."""
    rounds: Annotated[int, at_least(1)] = 3
    """Of the teacher: gradient steps, then a drive, whose states are added."""
    teacher_steps: Annotated[int, at_least(1)] = 150
    """Gradient steps of a round."""
    towns: Annotated[int, at_least(2)] = 64
    """States of a gradient step, and scenes of a drive."""
    entropy: Annotated[float, above(0)] = 0.1
    """Reward of the teacher for a nat of its laws: without it they narrow and features grow without end."""
    recorded: Annotated[int, at_least(5)] = 84
    """Drives that are recorded, a fifth of them held out."""
    decisions: Annotated[int, at_least(1)] = 36
    """Of a drive, 0.4 s apart."""
    seen: Annotated[int, at_least(1)] = 450
    """Gradient steps of perception, of half a batch."""
    steps: Annotated[int, at_least(1)] = 130
    """Gradient steps of each arm; three times as many of the cloned planner, at about the same CPU time."""
    batch: Annotated[int, at_least(2)] = 32
    """Frames a gradient step."""
    lr: Annotated[tuple[float, float, float, float], above(0)] = (3e-3, 3e-3, 5e-3, 3e-3)
    """Largest step sizes of Adam: of teacher, perception, adapters, cloned planner."""
    tests: Annotated[int, at_least(2)] = 48
    """Unseen scenes."""


ALIGNED = dict(zip(DrivingPlanner.LAYERS, (50.0, 20.0, 10.0, 5.0, 2.0, 1.0, 2.5), strict=False))  # weights
WAY, HELD = 60.0, 3  # metres of a whole drive; steps that an action is held while its reward is differentiated
SEEN = [0, 2, 3, 4, 5, 6, 7]  # masks that are seen; the route is told by the navigation
Layers = dict[str, Tensor]  # features by layer
BRAKED, FREE = "action error where the rule braked", "action error elsewhere"
BLOCKS = "DrivingWorld DrivingCamera DrivingPlanner GroundPerception FrozenBackbone Adapter feature_alignment_loss"


@system(
    "driveadapter",
    family="dynamics",
    title="DriveAdapter: Breaking the Coupling Barrier of Perception and Planning in End-to-End Autonomous Driving",
    paper="Jia, Gao, Chen, Yan, Liu, Li, ICCV 2023, arXiv 2308.00398",
    config=Config,
    smoke=dict.fromkeys(("rounds", "teacher_steps", "towns", "decisions", "seen", "steps", "tests"), 2)
    | {"states": 8, "recorded": 5, "batch": 4},
    full={"states": 50_000, "rounds": 20, "teacher_steps": 1000, "recorded": 2000, "seen": 20_000, "steps": 20_000},
    data=("pictures",),
    blocks=tuple(f"dynamics.{name}" for name in [*BLOCKS.split(), "action_kl"]),
)
def run(lab: Lab, config: Config) -> None:
    """Teacher, recorded drives, perception, then five ways to join them, each driven where nobody was."""
    lab.data("drives through a town of blocks", origin="simulated")
    lab.data("textures of gravel, grass and brick", origin="real")
    textures = torch.stack([data.picture(name).mean(-1)[::2, ::2] for name in ("gravel", "grass", "brick")])
    world, camera = DrivingWorld(dt=0.4), dynamics.DrivingCamera(textures)
    upper = lab.arm("true masks and rule")
    plain, clone = lab.arm("predicted masks", baseline=True), lab.arm("cloned planner", baseline=True)
    loose, whole = lab.arm("no alignment", baseline=True), lab.arm("no frame masked", baseline=True)
    ours, arms = lab.arm("DriveAdapter"), {}
    with upper.weights():
        policy = convert(DrivingPlanner(9), torch.channels_last)
    learn_to_drive(lab, config, upper, world, policy)
    teacher = dynamics.FrozenBackbone(dict(policy.stages.items()))
    before, held = {k: x.clone() for k, x in teacher.state_dict().items()}, config.decisions * (config.recorded // 5)
    frames, true = record(lab, config, world, camera, teacher)
    train, test = Frames(*(x[held:] for x in frames)), Frames(*(x[:held] for x in frames))
    see = learn_to_see(lab, config, train)
    with torch.no_grad():
        seen, unseen = (dynamics.perceive(see, x.images, x.masks[:, 1:2], x.speed) for x in (train, test))
    kinds = {plain: "plain", clone: "cloned", loose: "adapted", whole: "adapted", ours: "adapted"}
    for arm, kind in kinds.items():
        with arm.weights():
            arms[arm] = StudentPlanner(teacher, kind)
        if arm is not plain:
            plan(lab, config, arm, arms[arm], train, seen, {name: x[held:] for name, x in true.items()})
    noise, every, scores = lab.fork("noise of unseen scenes"), list(arms.values()), dict[Arm, Tensor]()
    drives = [([upper], dynamics.DrivingAgent(world, every[:1], rule=True))]
    for group, agent in [*drives, (list(arms), dynamics.DrivingAgent(world, every, see, camera, generator=noise))]:
        scenes = world.sample(config.tests, generator=lab.fork("unseen scenes"))
        scenes = DrivingState(*(torch.cat([x] * len(group)) for x in scenes))
        found = world.drive(scenes, agent, decisions=config.decisions, way=WAY).score
        scores |= dict(zip(group, found.chunk(len(group)), strict=True))
    for arm, score in scores.items():
        arm.metric("driving score", score.mean(), better="higher")
        if arm is not ours:
            gain = scores[ours] - score
            arm.metric("DriveAdapter scores more by", gain.mean())
            arm.metric("its paired standard error", gain.std() / len(gain) ** 0.5, better="lower")
    said = "on unseen scenes DriveAdapter scores 10 points more than predicted masks and 5 more than the cloned planner"
    lab.claim(said, *(ours["driving score"] >= arm["driving score"] + x for arm, x in ((plain, 10), (clone, 5))))
    judge(lab, arms, test, unseen, {name: x[:held] for name, x in true.items()})
    exact(lab, teacher, before, unseen)
    draw(lab, scores, test, unseen)


class Frames(NamedTuple):
    """Recorded: true masks, speed, pictures of now and before, the law of the action, whether the rule overrode it."""

    masks: Tensor
    speed: Tensor
    images: Tensor
    alpha: Tensor
    beta: Tensor
    ruled: Tensor


def learn_to_drive(lab: Lab, config: Config, arm: Arm, world: DrivingWorld, policy: DrivingPlanner) -> None:
    """The policy gradient through the simulator, from states anywhere on a route and then from where it came to."""
    optimizer, draws = torch.optim.Adam(policy.parameters(), fused=True), lab.fork("states to learn from")
    total = 10 + config.rounds * config.teacher_steps
    slower = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr[0], total, pct_start=0.2)

    def study(state: DrivingState) -> list[Tensor]:
        return [*state, world.render_bev(state).bool(), world.allowed_speed(state, coasting=2)]

    some = partial(world.sample, anywhere=True, generator=draws)
    parts = [study(some(min(config.towns, config.states - k))) for k in range(0, config.states, config.towns)]
    pool = [torch.cat(x) for x in zip(*parts, strict=True)]
    for k in range(config.rounds):
        for _ in arm.steps(config.teacher_steps, policy, optimizer, slower, draws, name=f"round {k}"):
            i = torch.randint(len(pool[0]), (config.towns,), generator=draws)
            *start, masks, allowed = (x[i] for x in pool)
            law = policy.law(policy(with_speed(masks, start[0][:, 3])))
            held = partial(world.step, action=law.draw(generator=draws), traffic=False)
            path = dynamics.rollout(held, DrivingState(*start), steps=HELD)
            later = DrivingState(*(x[1:].flatten(0, 1) for x in path))
            wide = config.entropy * torch.distributions.Beta(*law).entropy().mean()
            arm.descend(-world.reward(later, allowed.repeat(HELD)).mean() - wide, optimizer, clip=1.0)
            slower.step()
        new, state = lab.fork(f"drives {k}"), world.sample(config.towns, generator=lab.fork(f"scenes {k}"))
        near = torch.ones(config.towns, dtype=torch.bool)
        for _ in range(config.decisions // 2 if k + 1 < config.rounds else 0):
            near = near & (world.deviation(state).abs() < torch.tensor([2.0, 0.6])).all(1)  # never more once it is lost
            pool = [torch.cat([x, y[near]]) for x, y in zip(pool, study(state), strict=True)]
            with torch.no_grad():
                action = policy.law(policy(with_speed(world.render_bev(state), state.ego[:, 3]))).draw(generator=new)
                state = world.step(world.step(state, action), action)


@torch.no_grad()
def record(
    lab: Lab, config: Config, world: DrivingWorld, camera: dynamics.DrivingCamera, teacher: dynamics.FrozenBackbone
) -> tuple[Frames, Layers]:
    """Drives of the teacher with noise, under the rule that brakes, and its features."""
    state, image = world.sample(config.recorded, generator=(draws := lab.fork("recorded drives"))), None
    rows, features = list[Frames](), list[Layers]()
    for _ in range(config.decisions):
        new = (255 * camera(state, generator=draws)).byte()
        masks, speed, brake = world.render_bev(state), state.ego[:, 3], world.must_brake(state)
        features.append(teacher(with_speed(masks, speed)))
        law = DrivingPlanner.law(features[-1])
        action, ruled = law.draw(generator=draws), brake & (law.mean[:, 0] > -0.3)
        law.alpha[brake, 0], law.beta[brake, 0], action[brake, 0] = 2.0, 18.0, -1.0
        rows.append(Frames(masks.bool(), speed, torch.cat([new, new if image is None else image], 1), *law, ruled))
        state, image = world.step(state, action), new
    true = {k: torch.stack([x[k] for x in features], 1).flatten(0, 1) for k in ALIGNED}
    return Frames(*(torch.stack(x, 1).flatten(0, 1) for x in zip(*rows, strict=True))), true


def learn_to_see(lab: Lab, config: Config, train: Frames) -> dynamics.GroundPerception:
    """The first stage: cross entropy in units of each mask's own, set cells counting five times, and dice."""
    arm, draws, true = lab.arm("perception"), lab.fork("frames to see"), train.masks[:, SEEN]
    rates = true.float().mean((0, 2, 3)).clamp(1e-4, 0.9)
    with arm.weights():
        see = dynamics.GroundPerception(dynamics.DrivingCamera.ground(), channels=6, masks=7)
    convert(see, torch.channels_last).expect(rates)
    optimizer, unit = torch.optim.Adam(see.parameters(), fused=True), torch.distributions.Bernoulli(rates).entropy()
    slower = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr[1], config.seen + 10, pct_start=0.2)
    for _ in arm.steps(config.seen, see, optimizer, slower, draws):
        i = torch.randint(len(train.speed), (config.batch // 2,), generator=draws)
        goal, logits = true[i].float(), see(train.images[i].float().div_(255)).logits
        found, each = logits.sigmoid(), F.binary_cross_entropy_with_logits(logits, goal, reduction="none")
        dice = (2 * (found * goal).sum((0, 2, 3)) + 1) / ((found + goal).sum((0, 2, 3)) + 1)
        arm.descend((((1 + 4 * goal) * each).mean((0, 2, 3)) / unit + 1 - dice).mean(), optimizer)
        slower.step()
    return see


def plan(
    lab: Lab, config: Config, arm: Arm, student: StudentPlanner, train: Frames, seen: PlannerView, true: Layers
) -> None:
    """The second stage: divergence of actions, and alignment of features but where the rule overrode the teacher."""
    optimizer, draws = torch.optim.Adam(student.parameters(), fused=True), lab.fork("frames to plan")
    steps = config.steps * (1 + 2 * (cloned := student.kind == "cloned"))
    slower = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr[2 + cloned], steps + 10, pct_start=0.2)
    size = {k: x.square().mean().sqrt().clamp(min=1e-3) for k, x in true.items()}
    weight = (1 + dynamics.ActionLaw(train.alpha, train.beta).mean[:, 1].abs()) ** 3 / 2
    for _ in arm.steps(steps, student, optimizer, slower, draws):
        i = torch.randint(len(train.speed), (config.batch,), generator=draws)
        found = student(PlannerView(*(x[i] for x in seen)))
        laws = (train.alpha[i], train.beta[i], *DrivingPlanner.law(found))
        loss = 2 * dynamics.action_kl(*laws, weight=weight[i]).mean()
        if arm.name in ("DriveAdapter", "no frame masked"):
            pair = ({k: x[k] / size[k] for k in ALIGNED} for x in (found, {k: x[i] for k, x in true.items()}))
            kept = ~train.ruled[i] if arm.name == "DriveAdapter" else None
            loss = loss + dynamics.feature_alignment_loss(*pair, weights=ALIGNED, mask=kept)
        arm.descend(loss, optimizer, clip=1.0 if cloned else 100.0)  # after a leap a clone may never move again
        slower.step()


@torch.no_grad()
def judge(lab: Lab, arms: dict[Arm, StudentPlanner], test: Frames, unseen: PlannerView, true: Layers) -> None:
    """Masks, features and actions on drives that were held out."""
    ours, loose, whole = (lab.arm(x) for x in ("DriveAdapter", "no alignment", "no frame masked"))
    found, free, away = unseen.masks[:, :8] > 0, ~test.ruled, arms[ours].teacher(unseen.masks)
    for k in SEEN:
        overlap = (found & test.masks)[:, k].sum() / (found | test.masks)[:, k].sum().clamp(min=1)
        lab.arm("perception").metric(f"overlap of {DrivingWorld.MASKS[k]}", overlap, better="higher")
    for arm in (ours, loose):
        moved = arms[arm](unseen)
        for name in ALIGNED:
            far, near = ((x[name] - true[name])[free].norm() for x in (away, moved))
            arm.metric(f"distance after {name}", near / far, better="lower")
    near, other = ([arm[f"distance after {name}"] for name in ALIGNED] for arm in (ours, loose))
    said = "after each layer features are nearer to the teacher's than unadapted ones, in all at most 0.75 of unaligned"
    lab.claim(said, max(near) < 1, sum(near) <= 0.75 * sum(other))
    lab.claim("after each layer they are at most half as far from the teacher's as unadapted ones", max(near) <= 0.5)
    goal = dynamics.ActionLaw(test.alpha, test.beta).mean
    for arm, student in arms.items():
        error = (DrivingPlanner.law(student(unseen)).mean - goal).abs().mean(1)
        for name, frames in ((BRAKED, test.ruled), (FREE, free)):
            arm.metric(name, (error * frames).sum() / frames.sum().clamp(min=1), better="lower")
    said = "where the rule braked, the action error is at most 0.7 of that without the mask, elsewhere at most 1.05"
    lab.claim(said, bool(test.ruled.any()) and ours[BRAKED] <= 0.7 * whole[BRAKED], ours[FREE] <= 1.05 * whole[FREE])


@torch.no_grad()
def exact(lab: Lab, teacher: dynamics.FrozenBackbone, before: dict[str, Tensor], unseen: PlannerView) -> None:
    """What holds whatever is learned."""
    few, after = PlannerView(*(x[:32] for x in unseen)), teacher.state_dict()
    new, old = StudentPlanner(teacher, "adapted")(few), teacher(few.masks)
    a, b, c, d = 1 + 9 * torch.rand(4, 50, 2, generator=lab.fork("laws"), dtype=torch.float64)
    law = torch.distributions.Beta
    off = dynamics.action_kl(a, b, c, d) - torch.distributions.kl_divergence(law(a, b), law(c, d)).mean(-1)
    lab.claim(
        "after training the teacher is the same to the bit; new adapters change it, and laws torch's, by 1e-6 at most",
        all(torch.equal(after[name], x) for name, x in before.items()),
        max(float((x - new[name]).abs().max()) for name, x in old.items()) <= 1e-6,
        bool(off.abs().max() <= 1e-6),
        scale="smoke",
    )


def draw(lab: Lab, scores: dict[Arm, Tensor], test: Frames, unseen: PlannerView) -> None:
    """Scores, how far features are from the teacher's, and frames that were held out."""
    figure, (left, right) = lab.subplots(1, 2, figsize=(12, 4.2))
    for arm, score in reversed(scores.items()):
        left.barh(arm.name, score.mean(), xerr=score.std() / len(score) ** 0.5, color=arm.colour)
    left.set(xlabel="driving score on unseen scenes, with standard errors", xlim=(0, 100))
    for shift, arm in enumerate((lab.arm("DriveAdapter"), lab.arm("no alignment"))):
        heights = [float(arm[f"distance after {name}"]) for name in ALIGNED]
        right.bar([k + 0.4 * shift - 0.2 for k in range(len(heights))], heights, 0.38, color=arm.colour, label=arm.name)
    right.axhline(1.0, color=lab.arm("predicted masks").colour, linestyle="--", label="predicted masks")
    right.set(xlabel="distance to the teacher's features, held out", xticks=range(len(ALIGNED)), xticklabels=ALIGNED)
    right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=4, fontsize="small")
    lab.figure("scores and features", figure, "Driving on unseen scenes; features, in parts of those unadapted.")
    shown, paint = torch.linspace(0, len(test.speed) - 1, min(6, len(test.speed))).long(), DrivingWorld.paint
    rows = {"camera": test.images[shown, :3], "true masks": paint(test.masks[shown])}
    rows |= {"predicted": paint(unseen.masks[shown, :8] > 0)}
    words = "Held out, driving upwards: route green, vehicles blue, walkers magenta, red lights red."
    lab.images({name: list(x) for name, x in rows.items()}, name="frames", caption=words)
