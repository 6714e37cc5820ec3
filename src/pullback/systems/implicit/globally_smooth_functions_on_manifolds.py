"""Learning the function of least Lipschitz constant on a manifold, of which mostly unlabelled points are known.

``min rho^2`` subject to ``loss(f) <= epsilon`` and ``|grad f(z)|^2 <= rho^2`` everywhere on the manifold. The gradient
is estimated on a graph of the points, and the dual of the problem is manifold regularisation with a weight for each
point, which gathers where the function is steep; plain regularisation by the graph's Laplacian weighs all alike, lowers
the mean of the squared gradients and leaves peaks (Cervino, Chamon, Haeffele, Vidal, Ribeiro, ICML 2023, arXiv
2210.00301). The best rho confines the weights to the simplex: they are projected onto it, where the authors' code
divides them by their sum.

Two moons with one label each and the digits 3, 5 and 8 with four labels a class. All that lower gradients stop at one
bound on the loss, which sets the weight of their regulariser: they differ in what they call smooth. The least Lipschitz
constant does not care how many points are on the way from one label to another, and the mean does: where clusters are
the classes, as here, plain regularisation reads up to a few in a hundred more, unlike in the paper. Where two clusters
nearly touch, the smoothest function takes a part of one for the other. What is bounded at a point is a mean over its
edges: on the digits the single steepest edge of the graph is hardly less steep. The digits are real, the moons
simulated. Smaller than in the paper: no time series, two hidden layers of 64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from torch import Tensor, nn

from pullback import data, implicit
from pullback.implicit import ConstrainedProblem, DualAscent, PointCloudGraph, SmoothManifoldLearning
from pullback.lab import Arm, Lab, above, at_least, system


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    moon_nodes: Annotated[int, at_least(10)] = 200
    """Points on the moons, two of them labelled."""
    moon_noise: Annotated[float, above(0)] = 0.075
    """Standard deviation of their coordinates, a twentieth of the radius as in the authors' code."""
    moon_scale: Annotated[float, above(0)] = 0.0145
    """Time of the heat kernel between them."""
    moon_steps: Annotated[int, at_least(1)] = 1000
    """Steps of Adam."""
    digit_nodes: Annotated[int, at_least(40)] = 400
    """Images, twelve of them labelled."""
    neighbours: Annotated[int, at_least(1)] = 10
    """Of each image in the graph; the time of its heat kernel is a sixteenth of the squared distance of the last."""
    digit_steps: Annotated[int, at_least(1)] = 500
    """Steps of Adam."""
    dual_lr: Annotated[float, above(0)] = 7e-4
    """Step size of the weights of the points."""
    replicates: Annotated[int, at_least(1)] = 5
    """Samples of points, choices of labels, initialisations."""


ACCURACY, STEEPEST = "accuracy", "largest gradient"  # of the points without a label; of all
LIPSCHITZ = "Lipschitz constant on the graph"
BASELINES = ("labelled points alone", "weight decay", "gradients of the inputs", "plain Laplacian")


class Task(NamedTuple):
    """Points ``[n, d]``, their graph, targets ``[n, c]``, which are labelled; how it is trained.

    The bound is on the squared error of the labelled points; ``decay`` is the best of 1e-4, 1e-3, 1e-2 and 1e-1.
    """

    name: str
    z: Tensor
    graph: PointCloudGraph
    targets: Tensor
    labelled: Tensor
    steps: int
    bound: float
    loss_lr: float
    decay: float


@system(
    "globally-smooth-functions-on-manifolds",
    family="implicit",
    title="Learning Globally Smooth Functions on Manifolds",
    paper="Cervino, Chamon, Haeffele, Vidal, Ribeiro, ICML 2023, arXiv 2210.00301",
    config=Config,
    smoke={"moon_nodes": 40, "moon_scale": 0.1, "moon_steps": 6, "digit_nodes": 60, "digit_steps": 6, "replicates": 1},
    full={"moon_nodes": 1000, "moon_steps": 10_000, "digit_nodes": 539, "digit_steps": 5000, "replicates": 20},
    data=("digits",),
    blocks=("implicit.SmoothManifoldLearning", "implicit.point_cloud_laplacian", "implicit.DualAscent"),
)
def run(lab: Lab, config: Config) -> None:
    """Learn both tasks from few labels by every notion of smoothness."""
    lab.data("two half moons in the plane", origin="simulated")
    lab.data("UCI digits 3, 5 and 8, 539 images of 8 x 8", origin="real")
    ours = lab.arm("least Lipschitz constant")
    alone, decay, ambient, plain = (lab.arm(name, baseline=True) for name in BASELINES)
    fields = {}
    for replicate in lab.replicates(config.replicates):
        for task in (_moons(lab, config), _digits(lab, config)):
            _report(alone, task, _fit(alone, task))
            _report(decay, task, _fit(decay, task, task.decay))
            _report(ambient, task, _ambient(lab, ambient, task))
            for arm, rate in ((plain, 0.0), (ours, config.dual_lr)):
                net, learner = _smooth(arm, task, rate)
                _report(arm, task, net)
                if task.name == "moons" and replicate == 0:
                    fields[arm.name] = (task, net, learner.multipliers)
            _multipliers(ours, task, net, learner)
    lab.claim(
        "moons: from two labels at least 90 % of the points are right, 10 points more than with the labelled ones "
        "alone, weight decay or gradients of the inputs",
        ours[f"moons: {ACCURACY}"] >= 90,
        *(ours[f"moons: {ACCURACY}"] >= arm[f"moons: {ACCURACY}"] + 10 for arm in (alone, decay, ambient)),
    )
    lab.claim(
        "with the same bound on the loss the largest gradient and the Lipschitz constant on the graph are at most 0.85 "
        "of the plain Laplacian's on the moons, the largest gradient 0.7 on the digits",
        *(ours[f"moons: {name}"] <= 0.85 * plain[f"moons: {name}"] for name in (STEEPEST, LIPSCHITZ)),
        ours[f"digits: {STEEPEST}"] <= 0.7 * plain[f"digits: {STEEPEST}"],
    )
    lab.claim(
        "the estimate of the Lipschitz constant is within a quarter of the largest gradient, and at least 60 % of the "
        "weight are on the fifth of the points where the function is steepest, three times an equal share",
        *(ours[f"{name}: error of the estimate"] <= 25 for name in ("moons", "digits")),
        *(ours[f"{name}: weight on the steepest fifth"] >= 60 for name in ("moons", "digits")),
    )
    digits = f"digits: {ACCURACY}"
    lab.claim(
        "digits: at least 3 points more are right than with the labelled ones alone, weight decay or gradients of the "
        "inputs, at most 3 fewer than with the plain Laplacian",
        *(ours[digits] >= arm[digits] + 3 for arm in (alone, decay, ambient)),
        ours[digits] >= plain[digits] - 3,
    )
    _draw(lab, config, fields)


def _moons(lab: Lab, config: Config) -> Task:
    stream = lab.fork("moons")
    z = data.moons(config.moon_nodes, noise=config.moon_noise, generator=stream)
    side = torch.arange(config.moon_nodes) % 2  # they come in turn
    labelled = torch.tensor([int(torch.randint(config.moon_nodes // 2, (), generator=stream)) * 2 + k for k in (0, 1)])
    graph = implicit.point_cloud_laplacian(z, scale=config.moon_scale)
    return Task("moons", z, graph, 2.0 * side[:, None] - 1, labelled, config.moon_steps, 0.02, 0.7, 1e-3)


def _digits(lab: Lab, config: Config) -> Task:
    digits, stream = data.digits(), lab.fork("digits")
    order = torch.randperm(len(digits.labels), generator=stream)
    chosen = order[torch.isin(digits.labels[order], torch.tensor([3, 5, 8]))][: config.digit_nodes]
    z, labels = digits.images[chosen].flatten(1), digits.labels[chosen]
    labelled = torch.cat([(labels == digit).nonzero()[:4, 0] for digit in (3, 5, 8)])
    reach = torch.cdist(z, z).topk(config.neighbours + 1, largest=False).values[:, -1].median()
    graph = implicit.point_cloud_laplacian(z, scale=float(reach) ** 2 / 16, neighbours=config.neighbours)
    targets = (labels[:, None] == torch.tensor([3, 5, 8])).float()
    return Task("digits", z, graph, targets, labelled, config.digit_steps, 0.05, 0.1, 1e-2)


def _net(arm: Arm, task: Task) -> nn.Module:
    """Return a network of two hidden layers, the same for every arm."""
    with arm.weights(task.name):
        layers = [nn.Linear(task.z.shape[1], 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(64, task.targets.shape[1]))


def _adam(net: nn.Module, task: Task) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Return Adam, whose step size falls to zero in the last fifth of the steps: else the steepest point jitters."""
    adam = torch.optim.Adam(net.parameters(), lr=3e-3)
    return adam, torch.optim.lr_scheduler.LambdaLR(adam, lambda step: min(1.0, 5 * (1 - step / task.steps)))


def _loss(task: Task, outputs: Tensor) -> Tensor:
    return ((outputs - task.targets[task.labelled]) ** 2).sum(1).mean()


def _fit(arm: Arm, task: Task, decay: float = 0.0) -> nn.Module:
    """Train on the labelled points."""
    net = _net(arm, task)
    optimizer, schedule = _adam(net, task)
    for _ in arm.steps(task.steps, net, optimizer, schedule, name=task.name):
        penalty = sum(weight.square().sum() for weight in net.parameters())
        arm.descend(_loss(task, net(task.z[task.labelled])) + decay * penalty, optimizer, name=f"{task.name}: loss")
        schedule.step()
    return net


def _ambient(lab: Lab, arm: Arm, task: Task) -> nn.Module:
    """Minimise the mean squared gradient in the inputs, at 64 points at a time, under the bound on the loss."""
    net, batches = _net(arm, task), lab.fork(f"batches of {task.name}")

    def losses(net: nn.Module) -> tuple[Tensor, Tensor]:
        z = task.z[torch.randint(len(task.z), (64,), generator=batches)].requires_grad_()
        outputs = net(z)
        slopes = [torch.autograd.grad(channel.sum(), z, create_graph=True)[0] for channel in outputs.unbind(1)]
        return torch.stack(slopes).square().sum() / 64, _loss(task, net(task.z[task.labelled]))[None]

    optimizer, schedule = _adam(net, task)
    ascent = DualAscent(
        ConstrainedProblem(losses, torch.tensor([task.bound]), net),
        optimizer=optimizer,
        dual_lr=0.5,
        initial=1.0,
    )
    for _ in arm.steps(task.steps, ascent, schedule, batches, name=task.name):
        ascent.step()
        schedule.step()
    return net


def _smooth(arm: Arm, task: Task, dual_lr: float) -> tuple[nn.Module, SmoothManifoldLearning]:
    """Minimise the weighted mean of the squared gradients on the graph under the bound; move the weights."""
    net = _net(arm, task)

    def fit(net: nn.Module) -> tuple[Tensor, Tensor]:
        outputs = net(task.z)
        return _loss(task, outputs[task.labelled]), outputs

    optimizer, schedule = _adam(net, task)
    learner = SmoothManifoldLearning(
        fit,
        net,
        task.graph,
        loss_bound=task.bound,
        optimizer=optimizer,
        dual_lr=dual_lr,
        loss_lr=task.loss_lr,
        warm_up=task.steps // 5,
    )
    for step in arm.steps(task.steps, learner, schedule, name=task.name):
        state = learner.step()
        schedule.step()
        if step % 10 == 0:
            arm.record(f"{task.name}: largest gradient", state.energy.max().sqrt(), step=step)
    return net, learner


def _report(arm: Arm, task: Task, net: nn.Module) -> None:
    """Judge a network at the points that have no label, and by its steepest point on the graph."""
    with torch.no_grad():
        outputs = net(task.z)
    if outputs.shape[1] == 1:
        right = ((outputs > 0) == (task.targets > 0))[:, 0]
    else:
        right = outputs.argmax(1) == task.targets.argmax(1)
    right = right.index_fill(0, task.labelled, value=False)
    share = right.sum() / (len(right) - len(task.labelled))
    arm.metric(f"{task.name}: {ACCURACY}", 100 * share, better="higher", unit="%")
    steepest = implicit.gradient_energy(outputs, task.graph).max().sqrt()
    arm.metric(f"{task.name}: {STEEPEST}", steepest, better="lower")
    arm.metric(f"{task.name}: {LIPSCHITZ}", implicit.graph_lipschitz(outputs, task.z, task.graph), better="lower")
    arm.metric(f"{task.name}: loss", _loss(task, outputs[task.labelled]))


def _multipliers(arm: Arm, task: Task, net: nn.Module, learner: SmoothManifoldLearning) -> None:
    """Compare the weights with the gradients to which they belong."""
    with torch.no_grad():
        energy = implicit.gradient_energy(net(task.z), task.graph)
    estimate = (learner.multipliers * energy).sum().sqrt()
    error = 100 * (1 - estimate / energy.max().sqrt())
    arm.metric(f"{task.name}: error of the estimate", error, better="lower", unit="%")
    weight = learner.multipliers[energy.topk(len(energy) // 5).indices].sum()
    arm.metric(f"{task.name}: weight on the steepest fifth", 100 * weight, better="higher", unit="%")


def _draw(lab: Lab, config: Config, fields: dict[str, tuple[Task, nn.Module, Tensor]]) -> None:
    caption = "Of all points, root of the squared gradient on the graph; every replicate."
    lab.curves("moons: largest gradient", "digits: largest gradient", log=True, caption=caption)
    lab.bars(
        f"digits: {ACCURACY}", f"moons: {ACCURACY}", caption="Of the points without a label; twelve and two have one."
    )
    figure, axes = lab.subplots(1, 2, figsize=(9, 3.4), sharey=True)
    for axis, (name, (task, net, weights)) in zip(axes, fields.items(), strict=True):
        x, y = torch.meshgrid(torch.linspace(-2.7, 2.7, 120), torch.linspace(-2.4, 2.4, 100), indexing="xy")
        with torch.no_grad():
            height = net(torch.stack([x, y], -1))[..., 0]
        levels = torch.linspace(-1.25, 1.25, 11).tolist()
        axis.contourf(x, y, height.clamp(-1.25, 1.25), levels=levels, cmap="RdBu", alpha=0.6)
        sizes = 4 + 400 * weights.sqrt() / len(weights) ** 0.5
        axis.scatter(*task.z.T, s=sizes, c="black", alpha=0.6, linewidths=0)
        axis.scatter(*task.z[task.labelled].T, s=60, c="gold", edgecolors="black", marker="s")
        axis.set(title=name, xticks=[], yticks=[])
        axis.grid(visible=False)
    caption = "Colour: the function. Points grow with the root of their weight; the squares are labelled."
    lab.figure("moons", figure, caption)
