"""GLiDE: the modes of a language plan, grounded in which perturbed demonstrations fail.

A plan names the modes of a task in their order and says which may follow which. A handful of demonstrations, pushed
aside at random and replayed, succeed or fail as a whole; a classifier of the modes that explains which of them failed
finds the boundaries between modes without one label of a state. A policy then replans by modes: pushed back into an
earlier one it goes on from there, and keeps out of those that may not follow. Wang, Wang, Mao, Hagenow, Shah, 2024.

The paper's polygon worlds, simulated as there, with two to four regions; the demonstrations are a noisy planner's.
Here: 64 + 64 hidden units, 60 points a trajectory, 48 of them a step in place of full batches, the better of two
starts. A success that counts as a failure costs 1.5 times what an explained failure gains (by the authors' weights
1000, 1, 10 ten times): below 1 it pays to call everything a failure. The plan is the fixed text below; no language
model is called. Left out: the robots.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
from scipy.optimize import linear_sum_assignment
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn
from torch.nn import functional as F

from pullback import dynamics
from pullback.dynamics import ModeClassifier, ModePolicy, PolygonWorld, grounding_loss, mode_feasibility
from pullback.lab import Arm, Lab, above, at_least, system

PROMPT = (
    "A robot moves from free space through {count} regions, in order. List the modes, one a line; a mode may be left"
)
PROMPT += " for the next one or for any earlier one, never for a later one."
ANSWER = "free space\nregion 1\nregion 2\nregion 3\nregion 4"  # what it answers; fewer regions: its first lines
SIZE, EXTENT = 3, 5.0  # of an input that counts as 1, of the box of random targets


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    regions: Annotated[tuple[int, ...], at_least(2)] = (2, 3, 4)
    """Of each world, up to four."""
    perturbed: Annotated[int, at_least(10)] = 500
    """Successes and failures in training, each."""
    points: Annotated[int, at_least(10)] = 60
    """Of a trajectory."""
    steps: Annotated[int, at_least(1)] = 550
    """Adam steps from each start, of 24 successes and 24 failures."""
    starts: Annotated[int, at_least(1)] = 2
    """Initial weights that each classifier is trained from."""
    lr: Annotated[float, above(0)] = 4e-3
    """Step size."""
    clone_steps: Annotated[int, at_least(1)] = 600
    """Adam steps of the cloned policy."""
    executions: Annotated[int, at_least(1)] = 200
    """Pushed executions of each policy."""


@system(
    "glide",
    family="dynamics",
    title="Grounding Language Plans in Demonstrations Through Counterfactual Perturbations",
    paper="Wang, Wang, Mao, Hagenow, Shah, ICLR 2024, arXiv 2403.17124",
    config=Config,
    smoke={"regions": (2,), "perturbed": 20, "steps": 2, "clone_steps": 2, "executions": 4},
    full={"perturbed": 2000, "points": 100, "steps": 20_000, "executions": 1000},
    data=(),
    blocks=(
        "dynamics.perturb_trajectories",
        "dynamics.grounding_loss",
        "dynamics.ModeClassifier",
        "dynamics.ModePolicy",
    ),
)
def run(lab: Lab, config: Config) -> None:
    """Ground the modes of each world, against classifiers with less to go by, then act under pushes."""
    lab.data("worlds of convex regions in a row, with demonstrations of a noisy planner", origin="simulated")
    lab.note(f"The plan's prompt: {PROMPT} The answer: {ANSWER.splitlines()}.")
    ours, lesser = lab.arm("GLiDE"), lab.arm("successes only", baseline=True)
    mixture, cloned, nearest = (lab.arm(name, baseline=True) for name in ("mixture", "cloned", "nearest demonstration"))
    maps, worlds, drives = [], [], []
    for replicate in lab.replicates(len(config.regions)):
        count = config.regions[replicate]
        feasibility = dynamics.feasibility_matrix(ANSWER.splitlines()[: count + 1])
        world = dynamics.polygon_world(count, generator=lab.fork("world"))
        demonstrations = world.demonstrations(5, config.points, generator=lab.fork("demonstrations"))
        success, failure = replayed(world, demonstrations, config.perturbed, lab.fork("training"))
        seen = replayed(world, demonstrations, config.perturbed, lab.fork("test"))
        visited = torch.cat(seen)
        truth = world.mode(visited)
        for arm, others in ((ours, failure), (lesser, success)):
            weights = (1.5 * 4.0 * (config.points - 1), 4.0 if arm is ours else 0.0, 10.0)
            found = grounded(arm, lab, config, success, others, feasibility, weights)
            arm.metric("mode accuracy", (found.mode(visited) == truth).float().mean(), better="higher")
            with torch.no_grad():
                total = [mode_feasibility(found.log_probabilities(x).exp(), feasibility).sum(-1) for x in seen]
            told = ((total[0] > -0.5).float().mean() + (total[1] <= -0.5).float().mean()) / 2
            arm.metric("success told from failure", told, better="higher")
            if arm is ours:
                classifier = found
        ours.metric("share of the commonest mode", torch.bincount(truth.flatten()).max() / truth.numel())
        mixture.metric("mode accuracy", segmented(torch.cat([success, failure]), visited, truth), better="higher")

        policy = ModePolicy(classifier, demonstrations, feasibility)
        network = clone(cloned, lab, config, demonstrations)
        policies: dict[Arm, Callable[[Tensor], Tensor]] = {
            ours: policy.velocity,
            cloned: network,
            nearest: partial(follow, demonstrations),
        }
        for arm, velocity in policies.items():
            path, arrived = executed(velocity, world, demonstrations, config.executions, lab.fork("pushes"))
            arm.metric("success under pushes", arrived.float().mean(), better="higher")
            if arm is ours:
                drives.append(path[:12])
        worlds.append(world)
        maps.append(classifier)
    draw(lab, worlds, maps, drives)

    accuracy = ours["mode accuracy"]
    lab.claim(
        "modes of visited states: accuracy 0.90 or more, mean of the worlds; the commonest mode has at most 0.55, a "
        "Gaussian mixture with the best of all labellings 0.15 less",
        accuracy >= 0.90,
        ours["share of the commonest mode"] <= 0.55,
        mixture["mode accuracy"] <= accuracy - 0.15,
    )
    lab.claim(
        "without failures the accuracy falls by 0.05 or more (same steps)",
        lesser["mode accuracy"] <= accuracy - 0.05,
    )
    sure = ours["success told from failure"]
    statement = "the modes tell success from failure of unseen trajectories: 0.92 or more, 0.3 less without failures"
    lab.claim(statement, sure >= 0.92, lesser["success told from failure"] <= sure - 0.3)
    pushed, best = ours["success under pushes"], max(cloned["success under pushes"], nearest["success under pushes"])
    lab.claim("pushed midway, the mode policy succeeds 0.2 oftener than either imitation", pushed >= best + 0.2)
    table = dynamics.feasibility_matrix(ANSWER.splitlines())
    steps = F.one_hot(torch.cartesian_prod(torch.arange(5), torch.arange(5)), 5).float()
    same = bool((mode_feasibility(steps, table)[:, 0] == table.flatten()).all())
    lab.claim("q of certain modes is the entry of the table, exactly", same, scale="smoke")
    lab.bars("mode accuracy", "success under pushes")


def replayed(world: PolygonWorld, demos: Tensor, count: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """As many perturbed trajectories that succeed, and that fail, as the environment says."""
    kept: list[list[Tensor]] = [[], []]
    while min(sum(map(len, part)) for part in kept) < count:
        moved = dynamics.perturb_trajectories(demos, count=2 * count, low=-EXTENT, high=EXTENT, generator=g)
        good = world.valid(moved)
        kept[0].append(moved[good])
        kept[1].append(moved[~good])
    return torch.cat(kept[0])[:count], torch.cat(kept[1])[:count]


def grounded(
    arm: Arm, lab: Lab, config: Config, success: Tensor, others: Tensor, table: Tensor, weights: tuple[float, ...]
) -> ModeClassifier:
    """Train a classifier from some starts; start and guess are those of the least loss on all training trajectories."""
    found: list[tuple[float, int, ModeClassifier]] = []
    words: Any = {"weights": weights}
    for start in range(config.starts):
        with arm.weights(f"start {start}"):
            classifier = ModeClassifier(2, len(table), guesses=10, scale=SIZE)
        optimizer, draws = torch.optim.Adam(classifier.parameters(), lr=config.lr), lab.fork(f"batches {start}")
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=config.steps)
        name = f"classifier {start}"
        for _ in arm.steps(config.steps, classifier, optimizer, schedule, draws, name=name):
            some, more = torch.randint(config.perturbed, (2, 24), generator=draws)
            loss = grounding_loss(classifier(success[some]), classifier(others[more]), table, **words)
            arm.descend(loss.total, optimizer, name=f"loss {start}")
            schedule.step()
        with torch.no_grad():
            whole = grounding_loss(classifier(success), classifier(others), table, **words)
        classifier.best = whole.best
        found.append((whole.guesses.min().item(), start, classifier))
    return min(found, key=lambda f: f[:2])[2]


def segmented(points: Tensor, visited: Tensor, truth: Tensor) -> float:
    """Accuracy of a mixture of as many Gaussians as modes, whose components are labelled by the truth at its best."""
    modes = int(truth.max()) + 1
    fitted = GaussianMixture(modes, n_init=3, random_state=0).fit(points.flatten(0, 1)[::8].numpy())
    found = torch.from_numpy(fitted.predict(visited.flatten(0, 1).numpy()))
    table = torch.bincount(found * modes + truth.flatten(), minlength=modes**2).view(modes, modes)
    rows, columns = linear_sum_assignment(-table.numpy())
    return float(table[rows, columns].sum() / truth.numel())


def clone(arm: Arm, lab: Lab, config: Config, demos: Tensor) -> Callable[[Tensor], Tensor]:
    """Behaviour cloning: the velocity of the demonstrations, at rest at their end, by a network."""
    with arm.weights():
        network = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))
    at = demos.flatten(0, 1)
    way = follow(demos, at)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3, weight_decay=1e-3)
    for _ in arm.steps(config.clone_steps, network, optimizer, name="cloning"):
        arm.descend((network(at / SIZE) - way).square().mean(), optimizer)
    return lambda x: network(x / SIZE).detach()


def follow(demos: Tensor, x: Tensor) -> Tensor:
    """Imitation that comes back: head for where the nearest demonstrated state is four steps later."""
    steps = demos.shape[1]
    near = torch.cdist(x, demos.flatten(0, 1)).argmin(1)
    way = demos[near // steps, (near % steps + 4).clamp(max=steps - 1)] - x
    return way / way.norm(dim=-1, keepdim=True).clamp(min=0.2)


def executed(
    velocity: Callable[[Tensor], Tensor], world: PolygonWorld, demos: Tensor, count: int, g: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Run a policy until it enters the last region; after 1 to 4 units of time a push carries it into free space."""
    x, when = demos[torch.arange(count) % len(demos), 0], torch.randint(10, 40, (count,), generator=g)
    places = 4 * (2 * torch.rand(count, 50, 2, generator=g) - 1)
    target = places[torch.arange(count), (world.mode(places) == 0).int().argmax(1)]
    path = []
    for step in range(225):
        x = torch.where((when == step)[:, None], target, x)
        path.append(x)
        done = (world.mode(x) == len(world.vertices)) & (step > when)
        x = torch.where(done[:, None], x, x + 0.1 * velocity(x))
    states = torch.stack(path, 1)
    return states, world.valid(states)


def draw(lab: Lab, worlds: list[PolygonWorld], maps: list[ModeClassifier], drives: list[Tensor]) -> None:
    """The learned modes with the true outlines, and executions after their push."""
    figure, axes = lab.subplots(2, len(worlds), figsize=(4 * len(worlds), 7), squeeze=False)
    line = torch.linspace(-EXTENT, EXTENT, 120)
    grid = torch.cartesian_prod(line, line)
    box = (-EXTENT, EXTENT, -EXTENT, EXTENT)
    for column, world, found, paths in zip(axes.T, worlds, maps, drives, strict=True):
        column[0].imshow(found.mode(grid).view(120, 120).T, origin="lower", extent=box, cmap="Pastel1", vmin=0, vmax=8)
        for axis in column:
            for polygon in world.vertices:
                axis.plot(*polygon[[0, 1, 2, 3, 0]].T, color="black", lw=1)
            axis.set(aspect="equal", xlim=box[:2], ylim=box[2:])
        for path in paths:
            start = int(path.diff(dim=0).norm(dim=-1).argmax()) + 1
            column[1].plot(*path[start:].T, lw=1)
            column[1].plot(*path[start], "o", color="black", ms=3)
        column[0].set(title=f"{len(world.vertices)} regions: modes learned")
        column[1].set(title="after the push (dots)")
    lab.figure("modes", figure, "Learned modes (colours) and true regions (lines); the mode policy after a push.")
