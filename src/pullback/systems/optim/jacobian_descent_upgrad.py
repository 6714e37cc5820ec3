"""Descent along a direction that hurts no objective, with a training example for an objective.

Jacobian descent steps against an aggregate of the gradients of m objectives. UPGrad averages their projections on the
cone of directions that lower no objective; it needs inner products alone, which layers give without a Jacobian
(Quinton, Rey 2024). With every example of a batch as an objective, a step does not trade rare examples for many.

Smaller than in the paper: 1 024 garments of Fashion-MNIST as there (real), two convolutions of 8 and 16 maps, 512 steps
of 32, whose size falls to 0 over the last half, or all would jump out of minima at the end. Each method has the largest
size of a grid of ratio 1.3 at which no pilot diverged (mean gradient 0.154, UPGrad 0.12); those seen once, that of the
smallest training loss. UPGrad learns faster, with worst examples about as bad at an equal mean loss; CAGrad is yet
faster. No network with several tasks: shared and own parameters are told apart in tests of the block.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
from scipy.optimize import nnls
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pullback import data, optim
from pullback.lab import Arm, Lab, above, at_least, system
from pullback.optim import aggregate, instance_losses, jacobian_backward, loss_gramian, upgrad_weights


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    examples: Annotated[int, at_least(32)] = 1024
    """Garments to learn from."""
    steps: Annotated[int, at_least(1)] = 512
    """Steps of each training with a batch of examples."""
    batch: Annotated[int, at_least(2)] = 32
    """Examples, which are objectives, of a step."""
    lr: Annotated[float, above(0)] = 0.12
    """Step size of UPGrad in the first half; then it falls to 0."""
    replicates: Annotated[int, at_least(1)] = 5
    """Initialisations and orders of examples; MGDA, PCGrad, CAGrad see the first alone."""
    jacobians: Annotated[int, at_least(1)] = 10_000
    """Random Jacobians on which the properties of aggregators are tried."""
    starts: Annotated[int, at_least(2)] = 100
    """Pairs of quadratic functions, each with a start."""
    descent: Annotated[int, at_least(1)] = 300
    """Steps on the quadratic functions."""


RATES = {"mean": 1.3, "mean, equal steps": 1.0, "UPGrad": 1.0, "MGDA": 0.2, "PCGrad": 0.025, "CAGrad": 1.3}  # times lr
LEARNT = ("mean", "mean, equal steps", "UPGrad")  # in all replicates
METHODS: dict[str, Any] = {"mean": "mean", "UPGrad": "upgrad", "MGDA": "mgda", "PCGrad": "pcgrad", "CAGrad": "cagrad"}
BLOCKS = "upgrad_weights aggregate jacobian_backward loss_gramian instance_losses pareto_stationarity properties_of"


@system(
    "jacobian-descent-upgrad",
    family="optim",
    title="Jacobian Descent for Multi-Objective Optimization",
    paper="Quinton and Rey, 2024, arXiv 2406.16232",
    config=Config,
    smoke={"examples": 64, "steps": 2, "replicates": 1, "jacobians": 18, "starts": 2, "descent": 4},
    full={"examples": 60_000, "steps": 30_000, "batch": 128, "replicates": 8},
    data=("fashion_mnist",),
    blocks=tuple(f"optim.{name}" for name in BLOCKS.split()),
)
def run(lab: Lab, config: Config) -> None:
    """Check what is exact, descend on quadratics, learn with examples for objectives, measure costs."""
    arms = [lab.arm(name, baseline=name != "UPGrad") for name in METHODS]
    _exact(lab)
    _properties(lab, config, arms)
    _quadratics(lab, config, arms)
    lab.data("Fashion-MNIST", origin="real")
    test = data.fashion_mnist("test")  # at smoke for both: the other takes long to read
    train = test if lab.scale == "smoke" else data.fashion_mnist("train")
    centre, spread = train.images[: config.examples].mean(), train.images[: config.examples].std()
    seen = [(train.images[: config.examples, None] - centre) / spread, train.labels[: config.examples]]
    unseen = [(test.images[:2000, None] - centre) / spread, test.labels[:2000]]
    ends: dict[str, list[Tensor]] = {}
    for number in lab.replicates(config.replicates):
        for name in LEARNT if number else RATES:
            arm = lab.arm(name, baseline=name != "UPGrad")
            ends.setdefault(name, []).append(_learn_examples(lab, config, arm, seen, unseen))
    mean, equal, ours = (lab.arms[name] for name in LEARNT)
    lab.claim(
        "an example for an objective, equally many steps, each method with its largest stable ones: UPGrad has at most "
        "0.75 of the mean gradient's training loss and 0.7 of its 95 % quantile; with equal steps, half of both",
        ours["training loss"] <= 0.75 * mean["training loss"],
        ours["95 % quantile"] <= 0.7 * mean["95 % quantile"],
        ours["training loss"] <= 0.5 * equal["training loss"],
        ours["95 % quantile"] <= 0.5 * equal["95 % quantile"],
    )
    lab.claim("it loses at most 1 point of accuracy", ours["test accuracy"] >= mean["test accuracy"] - 1)
    _draw(lab, ends)
    if lab.scale != "smoke":
        _cost(lab)


def _directions(jacobian: Tensor, **options: Any) -> Tensor:
    return aggregate(jacobian, **options).direction


def _losses(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return instance_losses(cross_entropy, model(x), y)


def _learn_examples(lab: Lab, config: Config, arm: Arm, seen: list[Tensor], unseen: list[Tensor]) -> Tensor:
    """Every example of a batch is an objective; return the losses of all examples at the end."""
    x, y = seen
    with arm.weights():
        convolutions = (nn.Conv2d(1, 8, 5, 2, 2), nn.ELU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ELU())
        model = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(784, 10))
    lr = config.lr * RATES[arm.name] / (config.batch if arm.name == "PCGrad" else 1)  # it adds gradients up
    optimizer, draws = torch.optim.SGD(model.parameters(), lr=lr), lab.fork("batches")
    epoch = max(1, len(x) // config.batch)
    orders = [torch.randperm(len(x), generator=draws) for _ in range(1 + config.steps // epoch)]
    for step in arm.steps(config.steps, model, optimizer, draws):
        chosen = orders[step // epoch][step % epoch * config.batch :][: config.batch]
        losses = partial(_losses, model, x[chosen], y[chosen])
        optimizer.param_groups[0]["lr"] = lr * min(1, 2 - 2 * step / config.steps)
        optimizer.zero_grad()
        if arm.name.startswith("mean"):
            losses().mean().backward()
        else:
            method = METHODS[arm.name]
            jacobian_backward(losses, model, aggregator=method, method="gramian", check=False, generator=draws)
        optimizer.step()
        if step % epoch == epoch - 1:
            with torch.no_grad():
                ends = _losses(model, x, y)
            arm.record("mean of all losses", ends.mean())
            arm.record("quantile of all losses", ends.quantile(0.95))
    with torch.no_grad():
        ends, right = _losses(model, x, y), (model(unseen[0]).argmax(-1) == unseen[1]).float().mean()
    mean, tail = ends.mean(), ends.quantile(0.95)
    for name, value in (("training loss", mean), ("95 % quantile", tail), ("tail ratio", tail / mean)):
        arm.metric(name, value, better="lower")
    arm.metric("test accuracy", 100 * right, better="higher", unit="%")
    return ends


def _by_rows(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The Gramian of gradients that are held, found one example at a time under vmap."""

    def loss(p: dict[str, Tensor], one: Tensor, label: Tensor) -> Tensor:
        return cross_entropy(torch.func.functional_call(model, p, one[None]), label[None])

    parameters = {name: p.detach() for name, p in model.named_parameters()}
    each = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(parameters, x, y)
    matrix = torch.cat([g.flatten(1) for g in each.values()], 1)
    return matrix @ matrix.T


def _exact(lab: Lab) -> None:
    """Weights against non-negative least squares, Gramians against Jacobians."""
    stream, off = lab.fork("exact"), 0.0
    for m in range(2, 9):
        jacobian = torch.randn(m, 5, generator=stream, dtype=torch.float64)
        gramian = jacobian @ jacobian.T / jacobian.square().sum() + 1e-4 * torch.eye(m, dtype=torch.float64)
        root = torch.linalg.cholesky(gramian).T.numpy()
        added = sum(torch.from_numpy(nnls(root, -root[:, i] / m)[0]) for i in range(m))
        off = max(off, float((upgrad_weights(jacobian @ jacobian.T) - 1 / m - added).abs().max()))
    with lab.arm("UPGrad").weights("exact"):
        layers = nn.Conv2d(1, 4, 3, 2), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(36, 5), nn.LayerNorm(5)
        model = nn.Sequential(*layers)
    x, y = torch.randn(6, 1, 8, 8, generator=stream), torch.randint(5, (6,), generator=stream)
    found = loss_gramian(partial(_losses, model, x, y), model)
    rows = jacobian_backward(_losses(model, x, y), model, method="rows")
    difference = float((found.gramian - rows.gramian).abs().max() / rows.gramian.max())
    lab.claim(
        "the weights equal those of scipy's non-negative least squares to 1e-6 (m <= 8); the Gramian from inputs and "
        "output gradients of linear, convolution and norm layers equals J J^T of rows to 1e-5",
        off <= 1e-6,
        difference <= 1e-5,
        set(found.ways.values()) == {"layer"},
        scale="smoke",
        weights=off,
        gramian=difference,
    )


def _properties(lab: Lab, config: Config, arms: list[Arm]) -> None:
    tried: dict[str, dict[str, Any]] = {a.name: {"method": METHODS[a.name], "regularization": 0.0} for a in arms}
    tried["UPGrad"]["normalize"] = "gradients"
    tried["UPGrad, regularized"] = {"method": "upgrad", "normalize": "gradients"}
    tried["DualProj"] = {"method": "dualproj", "regularization": 0.0}
    count = max(1, config.jacobians // 4)
    for name, options in tried.items():
        arm, draws = lab.arm(name, baseline=name != "UPGrad"), lab.fork("Jacobians")
        directions = partial(_directions, generator=lab.fork("orders"), **options)
        found = [optim.properties_of(directions, objectives=m, count=count, generator=draws) for m in (2, 3, 5, 10)]
        arm.metric("largest conflict", max(f.conflict for f in found), better="lower")
        arm.metric("conflicting", 100 * sum(f.conflicting for f in found) / 4, better="lower", unit="%")
        arm.metric("error of linearity", max(f.linearity for f in found), better="lower")
    ours, kept = lab.arms["UPGrad"], lab.arms["UPGrad, regularized"]
    lab.claim(
        "random Jacobians of 2 to 10 objectives, a quarter with dependent rows, lengths over two orders of magnitude: "
        "UPGrad raises no objective (J A(J) >= -1e-6 |J|^2) and is linear in the scales to 1e-5; regularized by 1e-4 "
        "of each gradient it conflicts by at most 1e-3 and stays linear to 1e-5",
        ours["largest conflict"] <= 1e-6,
        ours["error of linearity"] <= 1e-5,
        kept["largest conflict"] <= 1e-3,
        kept["error of linearity"] <= 1e-5,
        scale="smoke",
    )
    lab.claim(
        "the mean conflicts in at least 20 % of them; MGDA and DualProj break linearity by more than 5 %",
        lab.arms["mean"]["conflicting"] >= 20,
        lab.arms["MGDA"]["error of linearity"] > 0.05,
        lab.arms["DualProj"]["error of linearity"] > 0.05,
        scale="smoke",
    )


def _quadratics(lab: Lab, config: Config, arms: list[Arm]) -> None:
    """Pairs ``(x - c) . H (x - c) / 2`` in six dimensions, from random starts, with steps ``1 / L``."""
    stream, shape = lab.fork("quadratics"), (config.starts, 2, 6)
    roots = torch.randn(*shape, 6, generator=stream, dtype=torch.float64)
    curvature = roots @ roots.mT / 6 + 0.1 * torch.eye(6, dtype=torch.float64)
    centres = 2 * torch.randn(shape, generator=stream, dtype=torch.float64)
    largest = torch.linalg.eigvalsh(curvature).amax((-2, -1))
    begin = 3 * torch.randn(config.starts, 6, generator=stream, dtype=torch.float64)

    def gradients(x: Tensor) -> tuple[Tensor, Tensor]:
        jacobian = (curvature @ (x[:, None] - centres)[..., None])[..., 0]
        return ((x[:, None] - centres) * jacobian).sum(-1) / 2, jacobian

    for arm in arms:
        x, orders, raised = begin.clone(), lab.fork("orders"), torch.zeros(config.starts)
        for _ in arm.steps(config.descent, x, orders, raised, name="quadratics"):
            before, jacobian = gradients(x)
            arm.record("first objective", before[0, 0])
            arm.record("second objective", before[0, 1])
            found = aggregate(jacobian, method=METHODS[arm.name], regularization=0.0, generator=orders)
            move = found.direction / largest[:, None] / (2 if arm.name == "PCGrad" else 1)
            x -= move
            bound = (largest / 2 * move.square().sum(-1))[:, None] + 1e-9
            raised.copy_(torch.maximum(raised, (gradients(x)[0] - before > bound).any(1).float()))
        _, jacobian = gradients(x)
        end = optim.pareto_stationarity(jacobian @ jacobian.mT).relative
        arm.metric("distance from stationarity", end.max(), better="lower")
        arm.metric("starts with a broken bound", 100 * raised.mean(), better="lower", unit="%")
    ours, mean = lab.arms["UPGrad"], lab.arms["mean"]
    lab.claim(
        "two quadratics: from all starts UPGrad ends Pareto-stationary to 1e-3 of the longest gradient, and no step "
        "raises an objective by more than L / 2 |step|^2; the mean breaks that bound in at least 30 % of them",
        ours["distance from stationarity"] <= 1e-3,
        ours["starts with a broken bound"] <= 0,
        mean["starts with a broken bound"] >= 30,
    )


def _cost(lab: Lab) -> None:
    stream = lab.fork("cost")
    with lab.arm("UPGrad").weights("cost"):
        model = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    x, y = torch.randn(32, 784, generator=stream), torch.randint(10, (32,), generator=stream)
    losses, gramian = partial(_losses, model, x, y), _by_rows(model, x, y)
    calls: dict[str, Any] = {
        "Gramian": lambda: loss_gramian(losses, model, check=False),
        "backward": lambda: losses().mean().backward(),
        "rows": lambda: _by_rows(model, x, y),
        "weights": lambda: upgrad_weights(gramian),
        "step": lambda: jacobian_backward(losses, model, method="gramian", check=False),
    }
    race = lab.race(calls, seconds=0.05)
    for name in calls:
        lab.metric(f"time of {name}", 1e3 * race[name], unit="ms", better="lower")
    peaks = {name: lab.peak_memory(calls[name]) for name in ("step", "backward", "rows")}
    lab.claim(
        "32 losses: the Gramian takes at most 1.5 of an ordinary forward and backward pass, rows by torch.func take 10 "
        "times as long as it or more; the passes of UPGrad peak at 2.5 times the memory of ordinary ones or less",
        race.ratio("Gramian", "backward") <= 1.5,
        race.ratio("rows", "Gramian") >= 10,
        peaks["step"] <= 2.5 * peaks["backward"],
        rows_over_ordinary=float(peaks["rows"] / peaks["backward"]),
    )


def _draw(lab: Lab, ends: dict[str, list[Tensor]]) -> None:
    figure, (left, middle, right) = lab.subplots(1, 3, figsize=(12, 3.4))
    for arm in (lab.arms[name] for name in METHODS):
        path = arm.series("first objective"), arm.series("second objective")
        left.plot(*path, color=arm.colour, label=arm.name, linestyle="--" if arm.name == "PCGrad" else "-")
    left.set(xscale="log", yscale="log", xlabel="first objective", ylabel="second objective")
    for name, losses in ends.items():
        ordered = torch.stack(losses).sort(-1).values.mean(0).clamp(min=1e-5)
        middle.plot(torch.linspace(0, 100, len(ordered)), ordered, color=lab.colour(name), label=name)
    middle.set(yscale="log", xlabel="examples with a smaller loss, %", ylabel="training loss", ylim=(1e-4, 20))
    for arm in (lab.arms[name] for name in LEARNT):
        for number in range(len(ends[arm.name])):
            points = [arm.series(f"{which} of all losses", replicate=number) for which in ("mean", "quantile")]
            right.plot(*points, ".", color=arm.colour, label="" if number else arm.name)
    right.set(xscale="log", yscale="log", xlabel="mean training loss", ylabel="95 % quantile")
    middle.legend(fontsize="small")  # colours are those of the other panels
    lab.figure("paths and losses", figure, "Two quadratics; all examples at the end; their quantile by epoch.")
    lab.bars("training loss", "95 % quantile", "tail ratio", arms=[lab.arms[n] for n in LEARNT])
