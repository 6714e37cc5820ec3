"""Bilevel problems whose inner minimum is not unique, in one loop and without inverting a Hessian.

Where the inner objective f is merely convex, its minima form a set, and the outer objective F cares which of them is
taken. Unrolling and implicit differentiation never move what f does not see. Averaging, phi = m F + (1 - m) f with
m -> 0, makes the minimum unique and leads to the one that F wants; a multiplier v follows the solution of the linear
system, and y, v and x move at once (sl-BAMM; Liu, Liu, Yao, Zeng, Zhang, ICML 2023, arXiv 2302.03407).

Shown on the paper's counterexample, whose solution is known, and on data with half of the labels wrong, where one
weight a sample is learned from a clean validation set. The classifier is linear with more weights than samples, so
that its loss is convex with many minima. Smaller than in the paper: 500 samples instead of 5 000. The digits are real;
the wrong labels are ours.

Averaging lets the classifier learn from the clean labels themselves, here with half of the weight and more; unrolling
and implicit differentiation use them for the weights of the samples alone. What these labels give without any cleaning
is therefore a baseline too, alone and mixed with the wrong ones, and most of the way to sl-BAMM. Aggregated descent
averages as well, and with few unrolled steps in each of many outer ones it does as well, here and above.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from pullback import data
from pullback.implicit import AveragedMultipliers, BilevelDescent, BilevelProblem, hypergradient
from pullback.lab import Arm, Lab, above, at_least, at_most, system

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    size: Annotated[int, at_least(1)] = 100
    """Unknowns of the counterexample's outer variable; the inner one has twice as many."""
    steps: Annotated[int, at_least(1)] = 5000
    """Steps on the counterexample."""
    nested_steps: Annotated[int, at_least(1)] = 300
    """Outer steps of the methods that solve an inner problem in each."""
    samples: Annotated[int, at_least(10)] = 500
    """Training digits, and as many clean ones for validation."""
    flipped: Annotated[float, above(0), at_most(1)] = 0.5
    """Share of the training labels that are wrong."""
    cleaning_steps: Annotated[int, at_least(1)] = 250
    """Steps of sl-BAMM on the digits; the nested methods get as many as take twice its time or more."""
    replicates: Annotated[int, at_least(1)] = 3
    """Choices of digits and of wrong labels."""


@system(
    "sl-bamm",
    family="implicit",
    title="Averaged Method of Multipliers for Bi-Level Optimization without Lower-Level Strong Convexity",
    paper="Liu, Liu, Yao, Zeng, Zhang, ICML 2023, arXiv 2302.03407",
    config=Config,
    smoke={"size": 3, "steps": 5, "nested_steps": 2, "samples": 20, "cleaning_steps": 10, "replicates": 1},
    full={"samples": 2000, "cleaning_steps": 3000, "replicates": 5},
    data=("mnist",),
    blocks=("implicit.AveragedMultipliers", "implicit.BilevelDescent", "implicit.hypergradient"),
)
def run(lab: Lab, config: Config) -> None:
    """Solve the counterexample, clean the digits, count what a step costs."""
    lab.data("a counterexample with a known solution", origin="simulated")
    lab.data("MNIST, 1 000 digits of 28 x 28 at a time, half of them with wrong labels", origin="real")
    ours = lab.arm("sl-BAMM")
    names = ("unrolled (RHG)", "conjugate gradients (IFT)", "aggregated descent (BDA)")
    nested = [lab.arm(name, baseline=True) for name in names]
    _counterexample(lab, config, ours, nested)
    plain = [lab.arm(name, baseline=True) for name in ("all noisy labels", "clean labels alone", "mixture of both")]
    for _ in lab.replicates(config.replicates):
        _cleaning(lab, config, ours, nested, plain)
    _count(lab, ours, _Cleaning(lab, config))
    accuracy, found, reverse = "accuracy on unseen digits", "F1 of wrong labels", nested[0]
    lab.claim(
        "cleaning: the accuracy on unseen digits is at least 5 points above that of training on all noisy labels, and "
        "0.3 above that of the clean ones alone and of the best of three mixtures; these are stopped at their best",
        ours[accuracy] >= plain[0][accuracy] + 5,
        *(ours[accuracy] >= arm[accuracy] + 0.3 for arm in plain[1:]),
    )
    lab.claim(
        "it is at least 1 point above the best of unrolling, in at most half of its CPU time",
        ours[accuracy] >= reverse[accuracy] + 1,
        ours["seconds of cleaning"] <= 0.5 * reverse["seconds of cleaning"],
    )
    lab.claim(
        "the wrong labels are found with an F1 at least 0.01 above those of unrolling and of implicit differentiation, "
        "where these read best",
        *(ours[found] >= arm[found] + 0.01 for arm in nested[:2]),
    )
    caption = "On unseen digits. All but sl-BAMM take two to three times the time that they are drawn with."
    lab.curves("accuracy while cleaning", xlabel="step of sl-BAMM", caption=caption)
    caption = "Half of the labels are wrong. All but sl-BAMM are judged where they are best. A classifier of the clean "
    lab.bars(accuracy, found, caption=caption + "labels calls those wrong that it contradicts.")


def _counterexample(lab: Lab, config: Config, ours: Arm, nested: list[Arm]) -> None:
    """Solve a problem whose inner objective does not see half of the inner variable; the solution is all ones."""

    def upper(x: Tensor, y: Tensor) -> Tensor:
        return ((x - y[1]) ** 2).sum() / 2 + ((y[0] - 1) ** 2).sum() / 2

    def lower(x: Tensor, y: Tensor) -> Tensor:
        return (y[0] ** 2).sum() / 2 - (x * y[0]).sum()

    def new() -> BilevelProblem:
        return BilevelProblem(upper, lower, torch.full((config.size,), 0.01), torch.full((2, config.size), 0.01))

    def report(arm: Arm, problem: BilevelProblem) -> None:
        arm.metric("counterexample: largest |x - 1|", (problem.x - 1).abs().max(), better="lower")
        arm.metric("counterexample: largest |y - 1|", (problem.y - 1).abs().max(), better="lower")

    problem = new()
    method = AveragedMultipliers(problem, lr_x=0.5, lr_y=0.5, lr_v=0.5)
    for step in ours.steps(config.steps, method, name="counterexample"):
        if step % 10 == 0 and step < config.nested_steps * 10:
            ours.record("largest |x - 1|", (problem.x - 1).abs().max(), step=step + 1)
        ours.record("KKT residual", method.step().residual, step=step + 1)
    report(ours, problem)
    options: list[dict[str, Any]] = [
        {"method": "unrolled", "steps": 20, "scale": 0.5},
        {"method": "cg", "damping": 1e-3},  # the Hessian is singular: without damping there is no solution
        {"method": "bda", "steps": 20, "scale": 0.5, "mix": 0.5},
    ]
    for arm, chosen in zip(nested, options, strict=True):
        problem = new()
        outer, inner = torch.optim.SGD([problem.x], lr=0.5), torch.optim.SGD([problem.y], lr=0.5)
        descent = BilevelDescent(
            problem,
            hypergradient=partial(hypergradient, **chosen),
            outer_optimizer=outer,
            inner_optimizer=inner if chosen["method"] == "cg" else None,
            inner_steps=20,
        )
        for step in arm.steps(config.nested_steps, problem.x, problem.y, outer, inner, name="counterexample"):
            arm.record("largest |x - 1|", (problem.x - 1).abs().max(), step=10 * step + 1)
            descent.step()
        report(arm, problem)
    residuals, cg = ours.series("KKT residual"), nested[1]
    lab.claim(
        "counterexample: x and y are within 0.01 of the solution; implicit differentiation ends at least 0.4 from it",
        *(ours[f"counterexample: largest |{name} - 1|"] <= 1e-2 for name in "xy"),
        cg["counterexample: largest |x - 1|"] >= 0.4,
    )
    fall = ours.metric("counterexample: fall of the KKT residual", residuals[0] / residuals[-1], better="higher")
    lab.claim("the KKT residual falls at least a hundredfold", fall >= 100)
    caption = "An outer step of the others is drawn as ten. Unrolling and implicit differentiation coincide."
    lab.curves("largest |x - 1|", log=True, xlabel="step of sl-BAMM", caption=caption)


class _Cleaning:
    """Digits of which some have a wrong label, clean ones for validation, and one weight a sample to be learned."""

    def __init__(self, lab: Lab, config: Config) -> None:
        stream, digits, test = lab.fork("cleaning"), data.mnist("train"), data.mnist("test")
        chosen = torch.randperm(len(digits.labels), generator=stream)[: 2 * config.samples]
        self.images, self.valid = digits.images.flatten(1)[chosen].split(config.samples)
        labels, self.wanted = digits.labels[chosen].split(config.samples)
        self.wrong = torch.rand(config.samples, generator=stream) < config.flipped
        other = (labels + torch.randint(1, 10, (config.samples,), generator=stream)) % 10
        self.labels = torch.where(self.wrong, other, labels)
        rest = torch.ones(len(digits.labels), dtype=torch.bool).index_fill(0, chosen, value=False)
        self.unseen = torch.cat([test.images, digits.images[rest]]).flatten(1)
        self.truth = torch.cat([test.labels, digits.labels[rest]])
        self.x = torch.zeros(config.samples)
        self.y = {"weight": torch.zeros(784, 10), "bias": torch.zeros(10)}
        self.problem = BilevelProblem(self.upper, self.lower, self.x, self.y)

    def upper(self, x: Tensor, y: Weights) -> Tensor:
        return cross_entropy(self.valid @ y["weight"] + y["bias"], self.wanted)

    def lower(self, x: Tensor, y: Weights) -> Tensor:
        losses = cross_entropy(self.images @ y["weight"] + y["bias"], self.labels, reduction="none")
        return (torch.sigmoid(x) * losses).mean()

    def read(self, images: Tensor) -> Tensor:
        return (images @ self.y["weight"] + self.y["bias"]).argmax(1)

    def accuracy(self) -> float:
        return 100 * (self.read(self.unseen) == self.truth).double().mean().item()

    def f1(self, found: Tensor) -> float:
        return float(2 * (found & self.wrong).sum() / (found.sum() + self.wrong.sum()))

    def clean(self, arm: Arm, count: int, each: int, step: Callable[[], Any], *state: Any) -> None:
        """Take steps, of which each is drawn as ``each`` steps; judge baselines where they are best."""
        best = {"accuracy": 0.0, "F1": 0.0}
        for number in arm.steps(count, self.x, self.y, best, *state, name="cleaning"):
            with arm.cpu_time("seconds of cleaning"):
                step()
            if each * (number + 1) % 8 == 0 or number == count - 1:
                accuracy = self.accuracy()
                arm.record("accuracy while cleaning", accuracy, step=each * (number + 1))
                if accuracy > best["accuracy"] or not arm.baseline:
                    best |= {"accuracy": accuracy, "F1": self.f1(self.x < 0)}  # a weight below one half
        arm.metric("accuracy on unseen digits", best["accuracy"], better="higher", unit="%")
        arm.metric("F1 of wrong labels", best["F1"], better="higher")


def _cleaning(lab: Lab, config: Config, ours: Arm, nested: list[Arm], plain: list[Arm]) -> None:
    """Learn a weight for each sample, by each method with its own best step sizes; train without any."""
    task = _Cleaning(lab, config)
    method = AveragedMultipliers(task.problem, lr_x=1000, lr_y=0.3, lr_v=0.1)
    task.clean(ours, config.cleaning_steps, 1, method.step, method)
    tuned: list[tuple[float, float, int, dict[str, Any]]] = [
        (3000, 0.1, 8, {"method": "unrolled", "steps": 50, "scale": 0.1}),
        (300, 0.1, 8, {"method": "cg", "terms": 20, "damping": 0.01}),
        (3000, 0.3, 2, {"method": "bda", "steps": 5, "scale": 0.3, "mix": 0.9}),
    ]
    for arm, (rate, inner_rate, each, options) in zip(nested, tuned, strict=True):
        task = _Cleaning(lab, config)
        outer, inner = torch.optim.SGD([task.x], lr=rate), torch.optim.SGD(task.y.values(), lr=inner_rate)
        descent = BilevelDescent(
            task.problem,
            hypergradient=partial(hypergradient, **options),
            outer_optimizer=outer,
            inner_optimizer=inner if options["method"] == "cg" else None,
            inner_steps=50,
        )
        task.clean(arm, max(1, config.cleaning_steps // each), each, descent.step, outer, inner)
    for arm, shares in zip(plain, ((0.0,), (1.0,), (0.5, 0.7, 0.9)), strict=True):
        best = max(_train(arm, _Cleaning(lab, config), share, config.cleaning_steps) for share in shares)
        arm.metric("accuracy on unseen digits", best, better="higher", unit="%")


def _train(arm: Arm, task: _Cleaning, share: float, steps: int) -> float:
    """Train on both sets, the clean one with this share of the weight; return the best accuracy on unseen digits."""
    optimizer, best = torch.optim.SGD([w.requires_grad_() for w in task.y.values()], lr=0.1), {"accuracy": 0.0}
    every = torch.full_like(task.x, torch.inf)  # a weight of one for each sample
    for step in arm.steps(steps, task.y, optimizer, best, name=f"plain training {share:g}"):
        loss = torch.lerp(task.lower(every, task.y), task.upper(every, task.y), share)
        arm.descend(loss, optimizer, name=f"training loss {share:g}")
        if step % 8 == 7 or step == steps - 1:
            best["accuracy"] = max(best["accuracy"], task.accuracy())
    if share == 1:
        arm.metric("F1 of wrong labels", task.f1(task.read(task.images) != task.labels), better="higher")
    return best["accuracy"]


def _count(lab: Lab, ours: Arm, task: _Cleaning) -> None:
    """Compare the matrix products of a step with those of its parts."""

    def parts(products: int) -> None:
        x, y = task.x.clone().requires_grad_(), {name: w.clone().requires_grad_() for name, w in task.y.items()}
        leaves = list(y.values())
        of_upper = torch.autograd.grad(task.upper(x, y), leaves, create_graph=True)
        of_lower = torch.autograd.grad(task.lower(x, y), leaves, create_graph=True)
        average = [torch.lerp(low, up, 0.5) for low, up in zip(of_lower, of_upper, strict=True)]
        for _ in range(products):  # with the second derivatives in y, and in x and y, at once
            torch.autograd.grad(average, [x, *leaves], [torch.ones_like(w) for w in leaves], retain_graph=True)

    equal = []
    rates: tuple[tuple[float | Literal["line search"], int], ...] = ((0.1, 1), ("line search", 2))
    for rate, products in rates:
        step = AveragedMultipliers(_copied(task), lr_x=1.0, lr_y=0.1, lr_v=rate).step
        equal.append(lab.operations(step, of=ours.name) == lab.operations(partial(parts, products), of=ours.name))
    lab.claim(
        "a step takes the matrix products of one gradient of each objective and of one product with second "
        "derivatives, two with the line search",
        *equal,
        scale="smoke",
    )


def _copied(task: _Cleaning) -> BilevelProblem:
    return BilevelProblem(task.upper, task.lower, task.x.clone(), {name: w.clone() for name, w in task.y.items()})
