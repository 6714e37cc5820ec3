"""Sorting networks that swap without error, and scores that look at the whole set.

A soft swap mixes its two values, and over the layers of a sorting network they drift together. An error-free swap
returns minimum and maximum themselves and goes backward as the soft swap would at these hard values: the network sorts
exactly, its matrix is a permutation. What is sorted is a score of each item, from a network with attention over the
set, so that a piece of a jigsaw can look at the others (Kim, Yoon, Cho, ICLR 2024). Two losses: cross entropy of the
soft permutation with the true one, and the squared difference between the raw items in the order of the hard
permutation and in the true one.

Smaller than in the paper: 2 x 2 and 3 x 3 pieces of 8 000 garments (Fashion-MNIST, real), many of them black and alike,
sets of 9 numbers of two half-size digits (MNIST, real), one layer of attention of width 32 (paper: 6 of 16), at most
450 steps (paper: 10^5). The steepness is tuned for each kind of scorer, on other images than those of the test; the
error-free network of the second loss has a tenth of it: with the same one it pulls the scores of wrong pairs together
until nothing tells them apart. Jigsaws of photographs are left out: from the eight pictures at hand neither scorer
learns one that it has not seen.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, NamedTuple

import torch
from torch import Tensor, nn

from pullback import data, discrete
from pullback.lab import Arm, Lab, above, at_least, system

odd_even = partial(discrete.sorting_network, distribution="optimal", network="odd_even")


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    longest: Annotated[int, at_least(2)] = 64
    """Largest number of values that the networks are shown to sort exactly."""
    steps: Annotated[int, at_least(3)] = 450
    """Training steps on 3 x 3 pieces; 2 x 2 pieces take a third, numbers two thirds of them."""
    batch: Annotated[int, at_least(1)] = 64
    """Jigsaws a step; numbers come in a third as many sets, at least one."""
    lr: Annotated[float, above(0)] = 6e-3
    """Step size of AdamW at the start; it falls linearly to a tenth (paper: 10^-3.5, halved now and then)."""
    steepness: Annotated[float, above(0)] = 0.3
    """Of the soft network, where scores look at the set."""
    item_steepness: Annotated[float, above(0)] = 10.0
    """The same where each score is of its item alone."""
    pixels: Annotated[float, at_least(0)] = 1.0
    """Weight of the second loss."""
    width: Annotated[int, at_least(8)] = 32
    """Numbers that stand for an item in attention, a multiple of 8."""
    layers: Annotated[int, at_least(1)] = 1
    """Layers of attention."""
    test: Annotated[int, at_least(1)] = 1000
    """Unseen sets of each test."""
    replicates: Annotated[int, at_least(1)] = 2
    """Initialisations and batches, each the same for all arms."""


class Task(NamedTuple):
    """Sets of items and, of each item, the number by which it is to be ordered."""

    draw: Callable[[str, int, torch.Generator], tuple[Tensor, Tensor]]
    kernel: int
    thirds: int


@system(
    "error-free-swap-networks",
    family="discrete",
    title="Generalized Neural Sorting Networks with Error-Free Differentiable Swap Functions",
    paper="Kim, Yoon, Cho, ICLR 2024, arXiv 2310.07174",
    config=Config,
    smoke={"longest": 16, "steps": 3, "batch": 6, "test": 20, "replicates": 1},
    full={"steps": 100_000, "batch": 100, "lr": 10**-3.5, "layers": 6, "replicates": 5},
    data=("fashion_mnist", "mnist"),
    takes_data="a folder with the MNIST files in IDX format",
    blocks=(
        "discrete.sorting_network",
        "discrete.soft_swap",
        "discrete.SetScorer",
        "discrete.permutation_loss",
        "discrete.reordered_loss",
        "discrete.ordering_metrics",
    ),
)
def run(lab: Lab, config: Config) -> None:
    """Check that swaps are exact forward and soft backward, then learn to order numbers and to solve jigsaws."""
    _sorts_exactly(lab, config)
    _errors(lab)
    _goes_backward_softly(lab)
    _learn(lab, config)


def _sorts_exactly(lab: Lab, config: Config) -> None:
    draw, equal, off = lab.fork("vectors"), True, 0.0
    for n in range(2, config.longest + 1):
        for network in discrete.NETWORKS:
            for dtype in (torch.float32, torch.float64):
                x = torch.randn(2, n, generator=draw, dtype=dtype)
                hard, truth = discrete.sorting_network(x, network=network, hard=True), x.sort().values
                moved = (hard.permutation @ x[..., None]).squeeze(-1)
                equal &= torch.equal(hard.values, truth) and torch.equal(moved, truth)
            soft = discrete.sorting_network(x.float(), network=network, distribution="optimal").permutation
            off = max(off, *(float((soft.sum(d) - 1).abs().max()) for d in (-1, -2)))
    lab.claim(
        f"of 2 to {config.longest} values the error-free networks return what torch.sort does, bit for bit, as does "
        "their permutation; rows and columns of the soft one sum to 1 within 1e-6",
        equal,
        off <= 1e-6,
        scale="smoke",
        largest_distance_from_1=off,
    )


def _errors(lab: Lab) -> None:
    """How far the values that leave a network are from the sorted ones, and how they drift through its layers."""
    arms = {False: lab.arm("soft swaps", baseline=True), True: lab.arm("error-free swaps")}
    sizes, draw = (4, 8, 16, 32, 64), lab.fork("errors")
    vectors = [torch.randn(400, n, generator=draw) for n in sizes]
    figure, axes = lab.subplots(1, 3, figsize=(10, 3.2))
    for (hard, arm), drift in zip(arms.items(), axes, strict=False):
        for n, x in zip(sizes, vectors, strict=True):
            values = discrete.sorting_network(x, distribution="optimal", hard=hard).values
            arm.metric(f"mean error of {n} values", (values - x.sort().values).abs().mean(), better="lower")
        axes[2].plot(sizes, [arm[f"mean error of {n} values"] for n in sizes], "o-", color=arm.colour, label=arm.name)
        wires = vectors[2][0]
        through = [wires]
        for low, high in discrete.comparators(len(wires), "odd_even"):
            swap = discrete.soft_swap(wires[low], wires[high], steepness=2.0, distribution="optimal", hard=hard)
            wires = wires.index_copy(0, low.long(), swap.low).index_copy(0, high.long(), swap.high)
            through.append(wires)
        drift.plot(torch.stack(through), color=arm.colour, linewidth=1)
        drift.set(xlabel="layer", ylabel="value of each wire", title=arm.name)
    axes[2].set(xscale="log", xlabel="values", ylabel="mean error")
    axes[2].legend()
    caption = "Sixteen values through an odd-even network, steepness 2; mean error of bitonic networks, steepness 10."
    lab.figure("drift", figure, caption)
    soft, exact = ([arm[f"mean error of {n} values"] for n in sizes] for arm in arms.values())
    lab.claim(
        "the mean error of a soft network grows from each number of values to the next, and is at least three times as "
        "large for 64 as for 4; that of the error-free one is 0",
        *(more > less for less, more in itertools.pairwise(soft)),
        soft[-1] >= 3 * soft[0],
        max(exact) <= 0,
        scale="smoke",
    )


def _goes_backward_softly(lab: Lab) -> None:
    largest, draw = 0.0, lab.fork("Jacobians")
    for n, network in ((6, "bitonic"), (16, "bitonic"), (9, "odd_even")):
        x = torch.randn(n, generator=draw, dtype=torch.float64)
        jacobian, wires = torch.eye(n, dtype=x.dtype), x
        for layer in discrete.comparators(n, network):
            low, high = layer.long()
            a, b = (wires[side].requires_grad_() for side in (low, high))
            soft = discrete.soft_swap(a, b, steepness=2.0, distribution="optimal").low
            slopes = torch.autograd.grad(soft.sum(), (a, b))
            factor = torch.eye(n, dtype=x.dtype)
            for side, slope in zip((low, high), slopes, strict=True):
                factor[low, side], factor[high, side] = slope, 1 - slope  # the sum of both wires stays
            jacobian = factor @ jacobian
            wires = wires.index_copy(0, low, torch.minimum(a, b).detach())
            wires = wires.index_copy(0, high, torch.maximum(a, b).detach())
        sort = partial(discrete.sorting_network, steepness=2.0, distribution="optimal", network=network, hard=True)
        found = torch.autograd.functional.jacobian(lambda x, sort=sort: sort(x).values, x)
        largest = max(largest, float((found - jacobian).abs().max()))
    lab.claim(
        "the error-free networks' Jacobian is the product of those of the soft swaps at the hard values to 1e-10",
        largest <= 1e-10,
        scale="smoke",
        largest_difference=largest,
    )


def _tasks(lab: Lab) -> dict[str, Task]:
    images = data.fashion_mnist("test").images  # its smaller part; settings were chosen on the last 2 000
    garments = {"train": images[2000:], "test": images[:2000]}
    lab.data("Fashion-MNIST, 8 000 garments to train on and 2 000 to test", origin="real")
    images, labels = data.mnist(path=lab.data_path)  # the same on the last 1 000
    images = nn.functional.avg_pool2d(images[:, None], 2).squeeze(1)
    digits = {"train": (images[1000:], labels[1000:]), "test": (images[:1000], labels[:1000])}
    lab.data("MNIST, numbers of two digits; those of the test from 1 000 other images", origin="real")

    def jigsaws(grid: int, split: str, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(garments[split]), (count,), generator=generator)
        return data.image_fragments(garments[split][chosen, None], grid, generator=generator, crop=True)

    def numbers(split: str, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        count = max(count // 3, 1)
        drawn = data.digit_numbers(*digits[split], 9 * count, 2, generator=generator)
        return drawn.images[:, None].unflatten(0, (count, 9)), drawn.values.view(count, 9)

    return {
        "2 x 2 pieces": Task(partial(jigsaws, 2), 3, 1),
        "3 x 3 pieces": Task(partial(jigsaws, 3), 3, 3),
        "9 numbers": Task(numbers, 5, 2),
    }


def _learn(lab: Lab, config: Config) -> None:
    tasks = _tasks(lab)
    names = itertools.product(("per item", "attention"), ("soft", "error-free"))
    arms = {pair: lab.arm(", ".join(pair), baseline=pair[1] == "soft") for pair in names}
    alone = lab.arm("attention, hard losses alone")
    places, exact, puzzle = "element-wise", "exact match", "3 x 3 pieces"
    for number in lab.replicates(config.replicates):
        for name, task in tasks.items():
            kinds = [(kind, arm) for kind, arm in arms.items() if name != "9 numbers" or kind[0] == "per item"]
            if name == puzzle and number == 0:
                kinds.append((("attention", "hard losses alone"), alone))
            items, truth = task.draw("test", config.test, lab.fork(f"test of {name}"))
            for (scorer, losses), arm in kinds:
                model = _train(lab, config, arm, name, task, scorer, losses)
                with torch.no_grad():
                    scores = torch.cat([model(part) for part in items.split(100)])
                found = discrete.ordering_metrics(scores, truth)
                arm.metric(f"{exact}, {name}", found.exact_match, better="higher")
                arm.metric(f"{places}, {name}", found.element_wise, better="higher")
                if name == puzzle and (scorer, losses) == ("attention", "error-free") and number == 0:
                    _show(lab, items[:3], truth[:3], scores[:3])
    lab.claim(
        "3 x 3 pieces: scores that look at the set solve at least 10 points more jigsaws than scores of single "
        "pieces, with either loss",
        *(
            arms["attention", losses][f"{exact}, {puzzle}"] >= arms["per item", losses][f"{exact}, {puzzle}"] + 0.1
            for losses in ("soft", "error-free")
        ),
    )
    lab.claim(
        "3 x 3 pieces: losses of the hard permutation alone solve at most 1 jigsaw of 100; with cross entropy of the "
        "soft one it is at least 10 points more",
        alone[f"{exact}, {puzzle}"] <= 0.01,
        arms["attention", "error-free"][f"{exact}, {puzzle}"] >= alone[f"{exact}, {puzzle}"] + 0.1,
    )
    best = [("attention", "2 x 2 pieces"), ("attention", puzzle), ("per item", "9 numbers")]
    soft, both = (
        sum(arms[scorer, losses][f"{places}, {name}"] for scorer, name in best) / 3 for losses in ("soft", "error-free")
    )
    lab.claim(
        "the second loss costs at most 1 point of the items in place, the mean over the three tasks of the scorer that "
        "is best at it",
        both >= soft - 0.01,
    )
    lab.note("In so few steps the second loss gains nothing above the spread: cross entropy drives scores apart.")
    lab.curves(f"loss, {puzzle}", caption="Loss of each scorer, each replicate.")
    lab.bars(*(f"{exact}, {task}" for task in tasks), caption="Sets that are ordered entirely right, unseen ones.")


def _train(lab: Lab, config: Config, arm: Arm, name: str, task: Task, scorer: str, losses: str) -> nn.Module:
    batches, steps = lab.fork(f"batches of {name}"), config.steps * task.thirds // 3
    height, length = task.draw("train", 1, lab.fork("shape"))[0].shape[-2:]
    width, layers, steepness = 64, 0, config.item_steepness
    if scorer == "attention":
        width, layers, steepness = config.width, config.layers, config.steepness
    with arm.weights(name):
        model = discrete.SetScorer(_encoder(task.kernel, height, length, width), width, layers=layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, steps)
    for _ in arm.steps(steps, model, optimizer, schedule, batches, name=name):
        items, truth = task.draw("train", config.batch, batches)
        scores, target = model(items), truth.argsort(-1)
        loss = torch.zeros(())
        if losses != "hard losses alone":
            soft = odd_even(scores, steepness=steepness).permutation
            loss = discrete.permutation_loss(soft, target)
        if losses != "soft":
            hard = odd_even(scores, steepness=steepness / 10, hard=True).permutation
            loss = loss + config.pixels * discrete.reordered_loss(hard, items, target)
        if losses == "hard losses alone":  # torch's cross entropy, as in the authors' code, pulls at wrong entries
            loss = loss + nn.functional.binary_cross_entropy(hard, nn.functional.one_hot(target).to(hard))
        arm.descend(loss, optimizer, name=f"loss, {name}")
        schedule.step()
    return model


def _encoder(kernel: int, height: int, length: int, width: int) -> nn.Sequential:
    """A CNN of two convolutions of stride 2, as in the paper's code at half of its channels."""
    size = 32 * ((height + 3) // 4) * ((length + 3) // 4)
    first, second = (nn.Conv2d(i, o, kernel, stride=2, padding=kernel // 2) for i, o in ((1, 16), (16, 32)))
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(size, width))


def _show(lab: Lab, pieces: Tensor, order: Tensor, scores: Tensor) -> None:
    def joined(by: Tensor) -> list[Tensor]:
        placed = pieces.gather(1, by.argsort(-1)[..., None, None, None].expand_as(pieces)).squeeze(2)
        return list(placed.unflatten(1, (3, 3)).transpose(2, 3).flatten(3).flatten(1, 2))

    lab.images(
        {"as drawn": joined(torch.arange(9).expand_as(order)), "put together": joined(scores), "true": joined(order)},
        name="jigsaws",
        caption="Unseen garments in 3 x 3 pieces, ordered by scores that look at the set, error-free.",
    )
