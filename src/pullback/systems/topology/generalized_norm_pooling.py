"""Pooling that learns what it is: a norm with two exponents, from which sum, mean, maximum and minimum come out.

A network on graphs goes on to larger ones only if it pools as its task does: the largest degree is a maximum over nodes
of a sum over neighbours. With four reductions in two places there are sixteen networks to try. A generalised norm
n^-q (sum |x|^p)^(1/p) with learned p and q holds all of them, so that one network is trained instead (Ko, Kwon, Shin,
Lee, 2021, arXiv 2106.06210).

Smaller than in the paper: 8 units, 800 steps of 16 graphs of 20 to 30 nodes, no shortest paths. Graphs and sets are
generated, their labels are exact. The molecules are real: trained on small ones, tested on large ones, measured only.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from torch import Tensor, nn

from pullback import data, topology
from pullback.lab import Arm, Lab, above, at_least, system
from pullback.topology import GeneralizedNormPool, GraphBatch, segment_reduce

FIXED = ("sum", "mean", "max", "min")
TASKS: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "sum": segment_reduce,
    "mean": lambda x, index, count: segment_reduce(x, index, count, reduce="mean"),
    "norm": lambda x, index, count: segment_reduce(x.square(), index, count).sqrt(),
    "min": lambda x, index, count: segment_reduce(x, index, count, reduce="min"),
    "max": lambda x, index, count: segment_reduce(x, index, count, reduce="max"),
}
Batch = tuple[tuple[object, ...], Tensor]
Build = Callable[[], nn.Module]
Draw = Callable[[torch.Generator], Batch]


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    hidden: Annotated[int, at_least(2)] = 8
    """Units of every layer, an even number."""
    steps: Annotated[int, at_least(1)] = 800
    """Adam steps of each network on graphs."""
    set_steps: Annotated[int, at_least(1)] = 500
    """Adam steps of each network on sets and molecules."""
    batches: Annotated[int, at_least(1)] = 40
    """Batches of 16 graphs, from which each step draws one."""
    sets: Annotated[int, at_least(2)] = 64
    """Sets a step."""
    test: Annotated[int, at_least(25)] = 1000
    """Sets to test on, and a 25th of that graphs of each family."""
    lr: Annotated[float, above(0)] = 1e-2
    """Step size of Adam at the start, on graphs and molecules; it falls linearly to a fiftieth."""
    set_lr: Annotated[float, above(0)] = 1e-2
    """The same on sets."""
    factor: Annotated[float, above(0)] = 10.0
    """How much larger the step of p and q is."""
    replicates: Annotated[int, at_least(1)] = 3
    """Initialisations and batches."""


class SetNetwork(nn.Module):
    """Numbers become some each (no bias, so that scales stay; no ReLU, so that none dies), are pooled and mapped."""

    def __init__(self, hidden: int, pool: Build) -> None:
        super().__init__()
        self.item, self.pool, self.head = nn.Linear(1, hidden, bias=False), pool(), nn.Linear(hidden, 1)

    def forward(self, x: Tensor, index: Tensor, count: int) -> Tensor:
        """Return ``[count, 1]``."""
        result: Tensor = self.head(self.pool(self.item(x).abs(), index, count))
        return result


@system(
    "generalized-norm-pooling",
    family="topology",
    title="Learning to Pool in Graph Neural Networks for Extrapolation",
    paper="Ko, Kwon, Shin, Lee, 2021, arXiv 2106.06210",
    config=Config,
    smoke={"steps": 3, "set_steps": 3, "batches": 2, "replicates": 1, "test": 50},
    full={"hidden": 32, "steps": 20_000, "set_steps": 5000, "batches": 2000, "replicates": 5},
    data=("solubility",),
    blocks=(
        "topology.norm_pool",
        "topology.GeneralizedNormPool",
        "topology.GraphNetwork",
        "topology.random_graphs",
        "topology.max_degree",
        "topology.segment_reduce",
        "topology.replace_pooling",
    ),
)
def run(lab: Lab, config: Config) -> None:
    """Check the norm, then let it learn what sets, graphs and molecules need."""
    lab.data("sets of numbers and random graphs, exact labels", origin="simulated")
    lab.data("solubility of 1 282 molecules in water, trained on small ones and tested on large ones", origin="real")
    _identities(lab)
    _sets(lab, config)
    _degrees(lab, config)
    _molecules(lab, config)


def _fit(
    lab: Lab, arm: Arm, config: Config, name: str, steps: int, build: Build, draw: Draw, unit: str = "%"
) -> nn.Module:
    """Train one network; the loss is the mean absolute (percentage) error, as is the metric."""
    with arm.weights(name):
        network = build()
    lr = config.set_lr if isinstance(network, SetNetwork) else config.lr
    optimizer = torch.optim.Adam(GeneralizedNormPool.parameter_groups(network, lr, factor=config.factor))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, steps)
    batches = lab.fork(f"batches of {name}")
    pools = [module for module in network.modules() if isinstance(module, GeneralizedNormPool)]
    for _ in arm.steps(steps, network, optimizer, schedule, batches, name=name):
        inputs, truth = draw(batches)
        error = (network(*inputs) - truth).abs()
        arm.descend((error / truth if unit else error).mean(), optimizer, name=f"loss, {name}")
        schedule.step()
        for number, pool in enumerate(pools):
            for half, (p, q) in enumerate(zip(*pool.exponents, strict=True)):
                arm.record(f"p {number} {half}, {name}", p)
                arm.record(f"q {number} {half}, {name}", q)
    return network


@torch.no_grad()
def _error(network: nn.Module, batches: Sequence[Batch], unit: str = "%") -> float:
    errors = [((network(*inputs) - truth) / (truth / 100 if unit else 1)).abs().mean() for inputs, truth in batches]
    return torch.stack(errors).mean().item()


def _identities(lab: Lab) -> None:
    """The special cases, the distance to the maximum, derivatives, and inputs over twelve decades."""
    stream = lab.fork("identities")
    x, index = torch.rand(40, 3, generator=stream, dtype=torch.float64), torch.randint(1, 6, (40,), generator=stream)
    cases = {(1.0, 0.0): "sum", (1.0, 1.0): "mean", (math.inf, 0.0): "max", (-math.inf, 0.0): "min", (2.0, 0.0): "norm"}
    off = [
        (topology.norm_pool(x, index, 6, p=p, q=q) - TASKS[name](x, index, 6)).abs().max().item()
        for (p, q), name in cases.items()
    ]
    sizes, largest = segment_reduce(torch.ones_like(index), index, 6)[:, None], TASKS["max"](x, index, 6)
    excess = topology.norm_pool(x, index, 6, p=50.0, q=0.0) - largest
    lab.claim(
        "at (1, 0), (1, 1), (inf, 0), (-inf, 0), (2, 0) it is the sum, mean, maximum, minimum and Euclidean norm "
        "(1e-6); at p = 50 it is above the maximum by at most n^(1/50) - 1 of it",
        max(off) <= 1e-6 and bool(((excess >= -1e-12) & (excess <= largest * (sizes ** (1 / 50) - 1) + 1e-12)).all()),
        scale="smoke",
        largest_difference=max(off),
    )
    right, places = [], torch.tensor([0, 0, 2, 2, 2])
    for p in (-7.0, -1.0, 0.5, 2.0, 30.0):
        leaves = [
            x[:5, :1].clone().requires_grad_(),
            *torch.tensor([[p], [0.3]], dtype=torch.float64, requires_grad=True),
        ]

        def pooled(x: Tensor, p: Tensor, q: Tensor) -> Tensor:
            return topology.norm_pool(x, places, 4, p=p, q=q)

        right += [torch.autograd.gradcheck(pooled, leaves), torch.autograd.gradgradcheck(pooled, leaves)]
    finite, seen = True, 0
    while seen < 10_000:
        x = 10 ** (12 * torch.rand(500, 4, generator=stream) - 6) * (torch.rand(500, 4, generator=stream) > 0.2)
        exponents = (0.1 * 500 ** torch.rand(4, generator=stream)) * (2 * torch.randint(2, (4,), generator=stream) - 1)
        q = 2 * torch.rand(4, generator=stream) - 1
        leaves = [leaf.requires_grad_() for leaf in (x, exponents, q)]
        found = topology.norm_pool(x, torch.randint(1, 60, (500,), generator=stream), 61, p=exponents, q=q)
        numbers = (found, *torch.autograd.grad(found.log1p().sum(), leaves))
        finite, seen = finite and all(bool(torch.isfinite(n).all()) for n in numbers), seen + x.numel()
    lab.claim(
        "first and second derivatives pass gradcheck at p = -7, -1, 0.5, 2, 30 with empty sets; 10 000 inputs over "
        "twelve decades with zeros and empty sets give finite values and gradients",
        all(right) and finite,
        scale="smoke",
        inputs=seen,
    )


def _sets(lab: Lab, config: Config) -> None:
    """Trained on 5 to 15 numbers, tested on 50 to 100; the sign of the norm is given, fixed ones see one seed."""

    def draw(task: str, count: int, low: int, high: int, stream: torch.Generator) -> Batch:
        index = torch.arange(count).repeat_interleave(torch.randint(low, high + 1, (count,), generator=stream))
        scale = 10 ** (2 * torch.rand(count, 1, generator=stream) - 1)  # without it a constant is near the maximum
        x = (0.05 + 0.95 * torch.rand(len(index), 1, generator=stream)) * scale[index]
        return (x, index, count), TASKS[task](x, index, count)

    arms = {"GNP": lab.arm("GNP"), **{name: lab.arm(name, baseline=True) for name in FIXED}}
    for number in lab.replicates(config.replicates):
        for task, (name, arm) in itertools.product(TASKS, arms.items()):
            if name != "GNP" and (number or task == "max"):
                continue
            sign = -1.0 if task == "min" else 1.0
            pool = partial(GeneralizedNormPool, config.hidden, split=False, p_init=sign)
            build = partial(SetNetwork, config.hidden, pool if name == "GNP" else partial(topology.SegmentPool, name))
            train = partial(draw, task, config.sets, 5, 15)
            network = _fit(lab, arm, config, f"{task} of sets", config.set_steps, build, train)
            test = [draw(task, config.test, 50, 100, lab.fork("test sets"))]
            arm.metric(f"error, {task} of sets", _error(network, test), better="lower", unit="%")
    four = ("sum", "mean", "norm", "min")
    ours = arms["GNP"]
    lab.claim(
        "sets of 50 to 100 numbers after training on 5 to 15: the norm is off by at most 10 % on sum, mean, norm and "
        "minimum each; every fixed pooling by more than 30 % on at least two of them",
        *(ours[f"error, {task} of sets"] <= 10 for task in four),
        all(sum(arms[name][f"error, {task} of sets"] > 30 for task in four) >= 2 for name in FIXED),
    )


def _degrees(lab: Lab, config: Config) -> None:
    """The largest degree: a maximum over nodes of a sum over neighbours."""

    def labelled(graphs: GraphBatch) -> Batch:
        return (torch.ones(len(graphs.index), 1), graphs), topology.max_degree(graphs).float()[:, None]

    def network(pair: tuple[str, ...]) -> nn.Module:
        # A norm in both places has both signs: neither is told what to become.
        learned = GeneralizedNormPool(config.hidden, split=pair == ("GNP", "GNP"))
        aggregate, readout = (learned if part == "GNP" else part for part in pair)
        return topology.GraphNetwork(1, config.hidden, 1, aggregate=aggregate, readout=readout)

    families, stream = (("er", 7), ("ba", 4), ("path", 2), ("complete", 3)), lab.fork("graphs")
    train = [
        labelled(
            topology.join_graphs([topology.random_graphs(kind, n, (20, 30), generator=stream) for kind, n in families])
        )
        for _ in range(config.batches)
    ]
    kinds = ("er", "ba", "path", "complete", "tree", "ladder")
    test = [labelled(topology.random_graphs(kind, config.test // 25, (50, 100), generator=stream)) for kind in kinds]

    def draw(stream: torch.Generator) -> Batch:
        return train[int(torch.randint(len(train), (), generator=stream))]

    name, key = "max degree", "error, max degree"
    pairs = {pair: lab.arm("{} + {}".format(*pair), baseline=True) for pair in itertools.product(FIXED, repeat=2)}
    ours = {(a, r): lab.arm(f"{a} + {r}") for a, r in (("GNP", "max"), ("sum", "GNP"), ("GNP", "GNP"))}
    again = list(pairs)
    for number in lab.replicates(config.replicates):
        for pair, arm in [*((pair, pairs[pair]) for pair in again), *ours.items()]:
            fitted = _fit(lab, arm, config, name, config.steps, partial(network, pair), draw)
            arm.metric(key, _error(fitted, test), better="lower", unit="%")
            if pair == ("GNP", "max"):
                p, q = fitted.aggregates[0].exponents  # type: ignore[union-attr, index]
                arm.metric("distance of p from 1", (p - 1).abs())
                arm.metric("distance of q from 0", q.abs())
        if number == 0:  # the others are seen once
            ordered = sorted(pairs, key=lambda pair: float(pairs[pair][key]))
            again = [ordered[0], ordered[len(ordered) // 2]]
    first, errors = ours["GNP", "max"], [arm[key] for arm in pairs.values()]
    lab.claim(
        "largest degree on graphs of 50 to 100 nodes: the sixteen fixed pairs differ by more than ten times; a learned "
        "aggregation below a maximum is off by at most 5 % and finds the sum: p within 0.3 of 1, |q| at most 0.2",
        max(errors) > 10 * min(errors),
        first[key] <= 5,
        first["distance of p from 1"] <= 0.3,
        first["distance of q from 0"] <= 0.2,
    )
    lab.claim(
        "with norms in both places the mean error is at most half of the median of the sixteen pairs",
        ours["GNP", "GNP"][key] <= sum(sorted(errors)[7:9]) / 4,
    )
    _draw(lab, config, [*pairs.values(), *ours.values()], key)


def _molecules(lab: Lab, config: Config) -> None:
    """Logarithm of the solubility of molecules larger than any seen: measured, not claimed."""

    def batches(parts: Sequence[data.Molecules], small: bool) -> list[Batch]:
        chosen = [
            (molecule, value)
            for part in parts
            for molecule, value in zip(part.molecules, part.log_solubility, strict=True)
            if (len(molecule.elements) <= 15) == small
        ]
        found: list[Batch] = []
        for start in range(0, len(chosen), 64):
            some = chosen[start : start + 64]
            graphs = topology.batch_graphs([m.bonds for m, _ in some], [len(m.elements) for m, _ in some])
            elements = torch.cat([m.elements for m, _ in some])
            x = (elements[:, None] == torch.tensor([6, 7, 8, 9, 16, 17])).float()  # C, N, O, F, S, Cl
            found.append(((x, graphs), torch.stack([value for _, value in some])[:, None]))
        return found

    parts = (data.solubility("train"), data.solubility("test"))
    train, test = batches(parts, small=True), batches(parts, small=False)

    def draw(stream: torch.Generator) -> Batch:
        return train[int(torch.randint(len(train), (), generator=stream))]

    def network() -> nn.Module:
        return topology.GraphNetwork(6, config.hidden, 1, layers=2, aggregate="sum", readout="mean")

    def learned() -> nn.Module:
        model = network()
        topology.replace_pooling(model, GeneralizedNormPool(config.hidden))
        return model

    for arm, build in ((lab.arm("sum + mean"), network), (lab.arm("GNP + GNP"), learned)):
        fitted = _fit(lab, arm, config, "solubility", config.set_steps, build, draw, unit="")
        arm.metric("error of log solubility, large molecules", _error(fitted, test, unit=""), better="lower")
    lab.note(
        "Solubility of molecules of more than 15 heavy atoms, after training on smaller ones, is measured and not "
        "claimed: nothing says which pooling it wants."
    )


def _draw(lab: Lab, config: Config, arms: list[Arm], key: str) -> None:
    figure, (left, right) = lab.subplots(1, 2, figsize=(12, 4.5))
    for label, number, part in (
        ("GNP + max", 0, "aggregation"),
        ("sum + GNP", 0, "readout"),
        ("GNP + GNP", 1, "readout"),
    ):
        arm = lab.arms[label]
        for replicate in range(config.replicates):
            p, q = (arm.series(f"{letter} {number} 0, max degree", replicate=replicate) for letter in "pq")
            left.plot(p, q, color=arm.colour, linewidth=1, label=None if replicate else f"{label}: {part}")
            left.plot(p[-1:], q[-1:], "o", color=arm.colour, markersize=4)
    for point, place in {"sum": (1, 0), "mean": (1, 1), "norm": (2, 0), "max": (40, 0)}.items():
        left.plot(*place, "k+")
        left.annotate(point, place, xytext=(4, 4), textcoords="offset points")
    left.set(xscale="log", xlabel="p", ylabel="q", title="where the exponents go")
    left.legend(fontsize=8)
    values = [arm[key] for arm in arms]
    colours = ["lightgrey" if arm.baseline else arm.colour for arm in arms]
    right.bar(range(len(arms)), [max(v, 0.01) for v in values], yerr=[v.spread or 0 for v in values], color=colours)
    right.set(yscale="log", ylabel="error, %", title="largest degree, graphs of 50 to 100 nodes")
    right.set_xticks(range(len(arms)), [arm.name for arm in arms], rotation=90, fontsize=7)
    caption = (
        "Left: exponents while they are trained, from (1, 0) to the dots, each initialisation; crosses name special "
        "cases. Right: percentage error on larger graphs of fixed pairs (aggregation + readout) and of learned norms."
    )
    lab.figure("exponents", figure, caption)
