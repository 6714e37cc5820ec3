"""Classifying shapes by how their Euler characteristic grows along directions, with a gradient.

Sweep a line over a shape in some direction and count, with alternating signs, the vertices, edges and faces that it has
passed: the curves of enough directions determine the shape. With logistic steps in place of the count's jumps the
transform has a gradient in directions and coordinates; an ordinary small network on its image classifies shapes, and
points move until their transform is a given one (Roell, Rieck, ICLR 2024).

Smaller than in the paper: digits of 8 x 8 pixels as complexes of bright pixels, neighbours and squares, one hidden
layer. Digits and meshes are real, rough surfaces and the ring simulated. What *learning* directions gains is measured,
not claimed: it has either sign. A network on pixels stays ahead; that on graphs was picked by unseen digits of seed 0.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pullback import data, topology
from pullback.lab import Arm, Lab, above, at_least, system


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    counts: Annotated[tuple[int, ...], at_least(1)] = (2, 4, 16)
    """Directions of the transforms that are compared, ascending."""
    thresholds: Annotated[int, at_least(2)] = 16
    """Of each curve."""
    sharpness: Annotated[float, above(0)] = 20.0
    """Of the logistic steps, per radius of a shape."""
    steps: Annotated[int, at_least(1)] = 400
    """Adam steps of every classifier, on 64 shapes each."""
    lr: Annotated[float, above(0)] = 1e-2
    """Step size of the classifiers; that of learned directions is twice as large."""
    replicates: Annotated[int, at_least(1)] = 4
    """Random directions, initial weights and batches."""
    complexes: Annotated[int, at_least(1)] = 100
    """Random complexes on which the transform is counted cell by cell."""
    sizes: Annotated[tuple[int, ...], at_least(4)] = (4_000, 8_000, 16_000, 32_000, 64_000)
    """Cells of the surfaces on which time is measured."""
    mesh: str = "bunny00"
    """On which memory and time are held against the tensor expression."""
    resolution: Annotated[int, at_least(2)] = 64
    """Directions, and thresholds, of both."""
    morph_steps: Annotated[int, at_least(1)] = 300
    """Adam steps on the coordinates of 60 points."""


_BRIGHT = 0.25  # pixels above it belong to the shape
_BASELINES = ("pixels", "numbers of cells", "graph network")


@system(
    "differentiable-euler-characteristic-transform",
    family="topology",
    title="Differentiable Euler Characteristic Transforms for Shape Classification",
    paper="Roell, Rieck, ICLR 2024, arXiv 2310.07630",
    config=Config,
    smoke={"counts": (2,), "steps": 3, "replicates": 1, "complexes": 2, "sizes": (200, 400), "mesh": "cow"}
    | {"resolution": 8, "morph_steps": 5},
    full={"steps": 4000, "replicates": 10, "thresholds": 32},
    data=("digits", "opencv_digits", "meshes"),
    blocks=("topology.Complex", "topology.EulerTransform", "topology.euler_transform", "topology.GraphNetwork"),
)
def run(lab: Lab, config: Config) -> None:
    """Hold the transform against counting, classify digits by it, measure its cost, and move points to match one."""
    lab.data("UCI digits, 1 797 images of 8 x 8; digits of 20 x 20 (OpenCV); scanned meshes (CGAL)", origin="real")
    lab.data("random complexes, rough surfaces, 60 points on a ring", origin="simulated")
    _identities(lab, config)

    train, test, other = data.digits("train"), data.digits("test"), data.opencv_digits()
    other = data.LabelledImages(other.images[::5], other.labels[::5])
    masks = [each.images > _BRIGHT for each in (train, test, other)]
    shapes, unseen, larger = (topology.Complex.from_image(mask).to_unit_ball() for mask in masks)
    pixels, statistics, network = (lab.arm(name, baseline=True) for name in _BASELINES)
    fixed = {count: lab.arm(f"{count} random directions") for count in config.counts}
    learned = {count: lab.arm(f"{count} learned directions") for count in config.counts}

    def fit(arm: Arm, view: Callable[[Tensor], Any], model: nn.Module, lr: float = config.lr) -> None:
        groups: list[dict[str, Any]] = [{"params": [], "lr": lr}, {"params": [], "lr": 2 * lr}]
        for name, parameter in model.named_parameters():
            groups["directions" in name]["params"].append(parameter)
        optimizer, batches = torch.optim.Adam(groups), lab.fork("batches")
        for _ in arm.steps(config.steps, model, optimizer, batches):
            chosen = torch.randperm(len(train.labels), generator=batches)[:64]
            arm.descend(F.cross_entropy(model(view(chosen)), train.labels[chosen]), optimizer)

    def judge(arm: Arm, scores: Tensor, labels: Tensor = test.labels, name: str = "accuracy") -> None:
        arm.metric(name, (scores.argmax(-1) == labels).double().mean(), better="higher")

    for _ in lab.replicates(config.replicates):
        plain = ((pixels, masks[0].float(), masks[1].float()), (statistics, _numbers(shapes), _numbers(unseen)))
        for arm, known, new in plain:
            with arm.weights():
                model: nn.Module = _perceptron(known[0].numel())
            fit(arm, known.__getitem__, model)
            judge(arm, model(new))
        with network.weights():
            model = _OnGraphs(2, 64, 10, layers=2, aggregate="mean", readout="sum")
        fit(network, shapes.select, model, 3e-3)
        judge(network, model(unseen))
        for count, learns in itertools.product(config.counts, (False, True)):
            arm, drawn = (learned if learns else fixed)[count], lab.fork(f"{count} directions")
            options: Any = {"sharpness": config.sharpness, "learned": learns, "generator": drawn}
            transform = topology.EulerTransform(2, count, config.thresholds, **options)
            start = transform.directions.detach().clone()
            with arm.weights():
                model = nn.Sequential(transform, _perceptron(count * config.thresholds))
            fit(arm, shapes.select, model)
            judge(arm, model(unseen))
            judge(arm, model(larger), other.labels, "accuracy on 20 x 20 pixels")

    few, many = config.counts[0], config.counts[-1]
    lab.claim(
        f"{many} random directions classify at least 5 points more digits than the graph network and 25 more than the "
        f"same perceptron on numbers of cells and degrees; {few} at least 5 points less than {many}",
        fixed[many]["accuracy"] >= network["accuracy"] + 0.05,
        fixed[many]["accuracy"] >= statistics["accuracy"] + 0.25,
        fixed[few]["accuracy"] <= fixed[many]["accuracy"] - 0.05,
    )
    for n in config.counts:
        lab.metric(f"gain by learning {n} directions", learned[n]["accuracy"] - fixed[n]["accuracy"], better="higher")
    _cost(lab, config)
    _morph(lab, config)
    _draw(lab, config, start, transform.directions.detach(), shapes, train.labels)


def _perceptron(inputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, 10))


class _OnGraphs(topology.GraphNetwork):
    """Messages along the edges of shapes, from the coordinates of their vertices."""

    def forward(self, shapes: topology.Complex) -> Tensor:  # type: ignore[override]
        arcs = torch.cat([shapes.edges, shapes.edges.flip(1)]).mT
        return super().forward(shapes.vertices, topology.GraphBatch(arcs, shapes.batch, shapes.count))


def _numbers(shapes: topology.Complex) -> Tensor:
    """How many vertices of each degree, edges and squares there are, and the Euler characteristic."""
    degree = torch.bincount(shapes.edges.flatten(), minlength=len(shapes.vertices)).clamp(max=4)
    of_degree = topology.segment_reduce(F.one_hot(degree, 5), shapes.batch, shapes.count)
    cells = [torch.bincount(shapes.batch[corners[:, 0]], minlength=shapes.count) for corners in shapes.cells]
    return torch.cat([of_degree, torch.stack([*cells, shapes.euler_characteristic()], 1)], 1) / 10


def _formula(shape: topology.Complex, directions: Tensor, thresholds: Tensor, sharpness: float) -> Tensor:
    """The paper's equation for one shape, as one tensor expression a dimension, like its reference code."""
    heights = shape.vertices @ directions.mT
    by_dimension = (heights, *(heights[corners].amax(1) for corners in shape.cells))
    steps = (torch.sigmoid(sharpness * (thresholds[:, None] - h[:, None])).sum(0) for h in by_dimension)
    return sum((-1) ** k * count for k, count in enumerate(steps))[None]


def _identities(lab: Lab, config: Config) -> None:
    """Hold the transform against a count cell by cell, its gradient against differences; turn digits."""
    stream, levels = lab.fork("identities"), torch.linspace(-1, 1, 21, dtype=torch.float64)
    wrong, off, gaps = 0, 0.0, []
    for i in range(config.complexes):
        dim = 2 + i % 2
        points = torch.rand(9, dim, generator=stream, dtype=torch.float64) * (2 / dim**0.5) - 1 / dim**0.5
        shape = topology.Complex.from_points(points, "rips", radius=0.6)
        lines = F.normalize(torch.randn(3, dim, generator=stream, dtype=torch.float64))
        exact, sharp = (topology.euler_transform(shape, lines, levels, sharpness=s)[0] for s in (None, 1e4))
        counted, clear = torch.zeros_like(exact), torch.ones_like(exact, dtype=torch.bool)
        for cell in [c for table in (torch.arange(9)[:, None], *shape.cells) for c in table.tolist()]:
            past = levels[:, None] - torch.stack([points[v] @ lines.mT for v in cell]).amax(0)
            counted += (-1) ** (len(cell) - 1) * (past >= 0)
            clear &= past.abs() >= 2e-3
        wrong += int((exact != counted).sum() + (exact[-1] != shape.euler_characteristic()).sum())
        off = max(off, float((sharp - exact)[clear].abs().max()))
        along, *step = (torch.randn(t.shape, generator=stream, dtype=torch.float64) for t in (exact, points, lines))
        x, xi = points.clone().requires_grad_(), lines.clone().requires_grad_()
        moved = ((shape.with_vertices(x + h * step[0]), xi + h * step[1]) for h in (0, 1e-6, -1e-6))
        here, forth, back = ((topology.euler_transform(*m, levels, sharpness=5.0)[0] * along).sum() for m in moved)
        slope = sum((g * d).sum() for g, d in zip(torch.autograd.grad(here, (x, xi)), step, strict=True))
        gaps.append(abs(((forth - back) / 2e-6 - slope).item()))
    lab.claim(
        f"{config.complexes} random complexes: the exact transform is the count cell by cell, its last threshold the "
        "Euler characteristic; at sharpness 1e4 the smooth one is within 1e-3 of it where no cell enters within 2e-3; "
        "at sharpness 5 the gradient in vertices and directions equals finite differences to 1e-6",
        wrong == 0 and off <= 1e-3 and max(gaps) <= 1e-6,
        scale="smoke",
        **{"wrong_counts": wrong, "largest_difference": off, "largest_slope_difference": max(gaps)},
    )
    digits = topology.Complex.from_image(data.digits("test").images[:50] > _BRIGHT).to_unit_ball()
    turned = digits.with_vertices(digits.vertices.flip(1) * torch.tensor([-1.0, 1.0]))
    layer = topology.EulerTransform(2, 16, 21, sharpness=20.0, learned=False, method="circle")
    before, after = layer(digits), layer(turned)
    lab.claim(
        "digits turned by 90 degrees have the same transform with its 16 columns moved by four, to 1e-6 of its size",
        bool((after - before.roll(4, 2)).abs().max() <= 1e-6 * before.abs().max()),
        scale="smoke",
    )


def _descend(transform: Callable[..., Tensor], shape: topology.Complex, lines: Tensor, levels: Tensor) -> None:
    moved = shape.with_vertices(shape.vertices.clone().requires_grad_())
    transform(moved, lines, levels, sharpness=100.0).square().mean().backward()


def _cost(lab: Lab, config: Config) -> None:
    """Time over cells of rough surfaces; time and memory of a scanned mesh, beside the tensor expression."""
    stream, n = lab.fork("surfaces"), config.resolution
    lines, levels, tasks = topology.sphere_directions(n, 3, method="fibonacci"), torch.linspace(-1, 1, n), {}
    for cells in config.sizes:
        plane = topology.Complex.from_image(torch.ones(2 * (max(2, round((cells / 4) ** 0.5)),), dtype=torch.bool))
        height = torch.randn(len(plane.vertices), 1, generator=stream) / 5
        shape = plane.with_vertices(torch.cat([0.5 * plane.vertices, height], 1))
        size = str(len(height) + sum(map(len, shape.cells)))
        tasks[size] = partial(_descend, topology.euler_transform, shape, lines, levels)
    race = lab.race(tasks, rounds=7)
    text = f"CPU time of the transform of rough surfaces with its gradient, {n} directions and thresholds."
    fits = lab.scaling([*map(int, tasks)], {"transform": [race[n] for n in tasks]}, xlabel="cells", caption=text)
    lab.claim(
        f"time is linear in the number of cells, from {min(tasks, key=int)} to {max(tasks, key=int)}: an exponent in "
        "[0.85, 1.15]",
        fits["transform"].exponent >= 0.85,
        fits["transform"].exponent <= 1.15,
    )
    ours, formula = lab.arm("transform"), lab.arm("tensor expression", baseline=True)
    shape = topology.Complex.from_mesh(*data.mesh(config.mesh)).to_unit_ball()
    few, low = lines[: max(2, n // 16)], levels[::2]
    forms: dict[Arm, Callable[..., Tensor]] = {ours: topology.euler_transform, formula: _formula}
    calls = {arm.name: partial(_descend, form, shape, few, low) for arm, form in forms.items()}
    race = lab.race(calls, rounds=5)
    for arm in forms:
        arm.metric("time of a mesh", 1e3 * race[arm.name], unit="ms", better="lower")
        arm.metric("memory of a mesh", lab.peak_memory(calls[arm.name], of=arm.name), unit="bytes", better="lower")
    wide, fine = shape.with_vertices(shape.vertices.double()), F.normalize(few.double())
    ones = [form(wide, fine, low.double(), sharpness=100.0) for form in forms.values()]
    whole = lab.peak_memory(partial(_descend, topology.euler_transform, shape, lines, levels), of="all directions")
    lab.claim(
        f"{config.mesh}, {len(shape.vertices)} vertices, with gradient: {n} directions and thresholds take less than "
        f"1 GB; with {len(few)} and {len(low)} the values are those of the tensor expression (1e-9, double precision), "
        "at least 3 times as fast, in at most a tenth of its memory",
        whole <= 1e9,
        race.ratio(formula.name, ours.name) >= 3,
        ours["memory of a mesh"] <= formula["memory of a mesh"] / 10,
        bool((ones[0] - ones[1]).abs().max() <= 1e-9 * ones[1].abs().max()),
    )


def _morph(lab: Lab, config: Config) -> None:
    """Move 60 random points until their transform is that of a ring."""
    arm, angle = lab.arm("coordinates"), torch.arange(60) * (2 * math.pi / 60)
    ring = topology.Complex(0.8 * torch.stack([angle.cos(), angle.sin()], 1))
    start = (0.4 * torch.randn(60, 2, generator=lab.fork("points"))).clamp(-0.7, 0.7)
    points = start.clone().requires_grad_()
    layer = topology.EulerTransform(2, 16, 32, radius=1.5, sharpness=config.sharpness, learned=False, method="circle")
    target, optimizer = layer(ring), torch.optim.Adam([points], lr=1e-2)
    for _ in arm.steps(config.morph_steps, points, optimizer):
        arm.descend((layer(ring.with_vertices(points)) - target).square().mean(), optimizer)
    first, last = ((layer(ring.with_vertices(x)) - target).detach().square().mean() for x in (start, points))
    lab.claim(
        "60 points that follow the gradient come within 0.05 of a ring on average, their transform 1 000 times nearer",
        arm.metric("loss at the end", last, better="lower") <= first.item() / 1000,
        arm.metric("distance from the ring", (points.detach().norm(dim=1) - 0.8).abs().mean(), better="lower") <= 0.05,
        loss_at_the_start=first,
    )
    figure, axes = lab.subplots(1, 1, figsize=(5, 5))
    for cloud, name, style in ((ring.vertices, "ring", "+"), (start, "start", "."), (points.detach(), "end", "o")):
        axes.plot(*cloud.T, style, color=lab.colour(name), label=name, markersize=5)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
    axes.set(aspect="equal")
    lab.figure("morph", figure, "60 points before and after they followed the gradient of their transform to a ring's.")


def _draw(lab: Lab, config: Config, start: Tensor, end: Tensor, shapes: topology.Complex, labels: Tensor) -> None:
    figure, (left, right) = lab.subplots(1, 2, figsize=(11, 4))
    for kind in ("random", "learned"):
        arms = [lab.arms[f"{count} {kind} directions"] for count in config.counts]
        means, spreads = zip(*((arm["accuracy"], arm["accuracy"].spread or 0) for arm in arms), strict=True)
        left.errorbar(config.counts, means, spreads, label=f"{kind} directions", color=arms[0].colour, capsize=3)
    for name in _BASELINES:
        left.axhline(lab.arms[name]["accuracy"], color=lab.arms[name].colour, linestyle="--", label=name)
    left.set(xscale="log", xlabel="directions", ylabel="accuracy on unseen digits")
    left.set_xticks(config.counts, [str(count) for count in config.counts])
    left.set_xticks([], minor=True)
    left.legend(loc="center right", fontsize=8)
    for directions, where, style in ((start, "at the start", {"mfc": "none"}), (end, "learned", {})):
        right.plot(*F.normalize(directions).T, "o", color=arms[0].colour, label=where, **style)
    right.legend(loc="center")
    right.set(aspect="equal", title=f"{len(end)} directions")
    lab.figure("directions", figure, "Accuracy (mean and deviation of replicates), and where learned directions went.")
    images = topology.EulerTransform(2, 64, 64, sharpness=config.sharpness, method="circle")(shapes).detach().flip(1)
    rows = {f"{a} to {a + 4}": [images[labels == digit].mean(0) for digit in range(a, a + 5)] for a in (0, 5)}
    text = "Mean transforms of the digits: directions around the circle across, thresholds upwards; black -1, white 4."
    lab.images(rows, name="transforms", limits=(-1, 4), caption=text)
