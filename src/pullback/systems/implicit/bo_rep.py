"""Bilevel descent with steps of known length, for outer objectives that are steep without bound.

The curvature of recurrent networks grows with their gradient, so no step size of plain descent suits every place.
BO-REP divides the hypergradient's running mean by its norm: a step has the length that is asked for, the inner solution
drifts by a known distance at most, and a few inner steps now and then follow it, after a refinement at the start (Hao,
Gong, Liu, ICLR 2024, arXiv 2401.09587).

Shown on an exponential objective with a known optimum, and on verses of which 40 % are said to be from another book:
weights of the verses are learned through the training of a recurrent network. Smaller than in the paper: 1 600 verses,
their first twelve words, 32 units instead of SNLI and 4 096. The text is real, the wrong labels are ours. The baseline
is MA-SOBA, the same updates without norm, period and refinement, with as many evaluated gradients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from pullback import data
from pullback.core.errors import ConvergenceError
from pullback.gradients import fit_smoothness, local_smoothness
from pullback.implicit import AveragedMultipliers, BilevelProblem, NormalizedBilevelMomentum
from pullback.lab import Arm, Lab, above, at_least, at_most, system

BOOKS, LENGTH, BATCH = ("Psa", "Lev", "Prv", "Acts"), 12, 64
MA_SOBA: dict[str, Any] = {"mix": 0, "step_decay": 0, "momentum": 0.9}
ACCURACY, FOUND = "accuracy on unseen verses", "weights on the right side"


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    toy_steps: Annotated[int, at_least(1)] = 1200
    """Outer steps on the exponential objective."""
    toy_rates: tuple[Annotated[float, above(0)], ...] = (0.2, 0.4, 0.8, 1.6, 3.2, 6.4)
    """Its step sizes for BO-REP, lengths of the first step."""
    toy_soba_rates: tuple[Annotated[float, above(0)], ...] = (8e-6, 1.6e-5, 3.2e-5, 6.4e-5, 1.28e-4, 2.56e-4)
    """Those of MA-SOBA, around its best."""
    measured: Annotated[int, at_least(3)] = 40
    """Places on the way of a training at which smoothness is measured."""
    samples: Annotated[int, at_least(8)] = 1600
    """Training verses; an eighth as many with right labels for validation."""
    flipped: Annotated[float, above(0), at_most(1)] = 0.4
    """Share of the training labels that are wrong."""
    steps: Annotated[int, at_least(1)] = 120
    """Outer steps of BO-REP on the verses."""
    refinement: Annotated[int, at_least(1)] = 60
    """Inner steps of each of the two epochs before."""
    lr: Annotated[float, above(0)] = 2.0
    """Length of its steps."""
    soba_rates: tuple[Annotated[float, above(0)], ...] = (1000.0, 3000.0)
    """Step sizes of MA-SOBA, of which the best on the validation verses is taken."""
    inner_lr: Annotated[float, above(0)] = 2.0
    """Of the network, for both."""
    plain_rates: tuple[Annotated[float, above(0)], ...] = (1.0, 3.0)
    """Step sizes of training without cleaning, of which again the best is taken."""
    replicates: Annotated[int, at_least(1)] = 3
    """Choices of verses, wrong labels and initial weights."""


@system(
    "bo-rep",
    family="implicit",
    title="Bilevel Optimization under Unbounded Smoothness: A New Algorithm and Convergence Analysis",
    paper="Hao, Gong, Liu, ICLR 2024, arXiv 2401.09587",
    config=Config,
    smoke={"toy_steps": 4, "toy_rates": (0.3,), "toy_soba_rates": (1e-3,), "measured": 3}
    | {"samples": 40, "steps": 3, "refinement": 1, "soba_rates": (30.0,), "plain_rates": (1.0,), "replicates": 1},
    full={"samples": 3000, "steps": 2000, "replicates": 5},
    data=("bible",),
    blocks=("implicit.NormalizedBilevelMomentum", "implicit.AveragedMultipliers", "gradients.local_smoothness"),
)
def run(lab: Lab, config: Config) -> None:
    """Descend an exponential, measure a network's smoothness, clean the labels of verses."""
    lab.data("an exponential objective with a known optimum", origin="simulated")
    lab.data("King James Bible, verses of four books, 40 % of the labels wrong", origin="real")
    ours, soba = lab.arm("BO-REP"), lab.arm("MA-SOBA", baseline=True)
    noisy, clean = (lab.arm(name, baseline=True) for name in ("noisy labels", "clean labels alone"))
    _toy(lab, config, ours, soba)
    _follow(lab, ours, lab.arm("without refinement", baseline=True))
    verses = [(data.words(v.text)[:LENGTH], BOOKS.index(v.book)) for v in data.bible() if v.book in BOOKS]
    for _ in lab.replicates(config.replicates):
        _smoothness(lab, config, noisy, _Task(lab, config, noisy, verses))
        _clean(lab, config, verses, ours, soba)
        for arm in (noisy, clean):
            _train(lab, config, verses, arm)
    lab.claim(
        "a recurrent network is the less smooth, the steeper it is: the slope of local smoothness against the "
        "gradient's norm is positive, at three standard errors and more on average over the replicates",
        noisy["t of the slope"] >= 3,
    )
    lab.claim(
        "cleaned, the network reads at least 3 points more of the unseen verses than on noisy labels, 1 more than on "
        "the clean ones alone, both at their best step sizes, and not 1 less than by MA-SOBA at its best one",
        *(ours[ACCURACY] >= other[ACCURACY] + more for other, more in ((noisy, 3), (clean, 1), (soba, -1))),
    )
    figure, axis = lab.subplots(figsize=(6, 4))
    for k in range(config.replicates):
        values, norms = (noisy.series(name, k) for name in ("local smoothness", "norm of the gradient"))
        axis.plot(norms, values, "o", alpha=0.6)
    axis.set(xlabel="norm of the gradient", ylabel="local smoothness")
    lab.figure("smoothness", figure, "Of a recurrent network on its way down the loss, a colour for each replicate.")
    lab.bars(ACCURACY, FOUND, caption="A weight below one half calls the label wrong; without cleaning, none is.")


def _toy(lab: Lab, config: Config, ours: Arm, soba: Arm) -> None:
    """Minimise ``sum cosh(y - 1)`` in ``x``, which ``y`` copies. Falling steps suit BO-REP, constant ones MA-SOBA."""
    length, side = torch.rand(2, 5, generator=lab.fork("toy"))
    start = (8 + 4 * length) * (side - 0.5).sign()
    reach, least = "toy: step sizes that reach a gradient of 1", "toy: least final gradient"
    figure, axis = lab.subplots(figsize=(6, 4))
    for arm, rates in ((ours, config.toy_rates), (soba, config.toy_soba_rates)):
        # A step evaluates two gradients and a product with the Hessian, which counts as two; BO-REP's five more.
        steps = config.toy_steps if arm is ours else (9 * config.toy_steps + 100) // 4
        ends = []
        for rate in rates:
            problem = _exponential(1 + start, 1 + start)
            method: Any = NormalizedBilevelMomentum(problem, lr=rate, lower_lr=0.3, linear_lr=0.3)
            if arm is soba:
                method = AveragedMultipliers(problem, lr_x=rate, lr_y=0.3, lr_v=0.3, **MA_SOBA)
            state = {"gradient": math.inf}
            for step in arm.steps(steps, method, state, name=f"toy {rate:g}"):
                if arm is ours:
                    method.lr = rate / math.sqrt(step + 1)
                try:
                    method.step()
                except ConvergenceError:
                    state["gradient"] = math.inf
                    break
                state["gradient"] = torch.sinh(problem.x - 1).norm().nan_to_num(math.inf, math.inf).item()
            ends.append(state["gradient"])
        arm.metric(reach, 1.0 * sum(end <= 1 for end in ends), better="higher")
        arm.metric(least, min(ends), better="lower")
        axis.loglog(rates, [min(end, 1e6) for end in ends], "o-", color=arm.colour, label=arm.name)
    axis.axhline(start.sinh().norm(), color="0.6", linestyle="--")
    axis.set(xlabel="step size", ylabel="norm of the gradient at the end")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper left", ncols=2)
    lab.figure("toy", figure, "The dashed line is the start; points above it overflowed.")
    lab.claim(
        "exponential objective, each coordinate 8 to 12 away: BO-REP takes the gradient to 1 and less with four or "
        "more of six step sizes, MA-SOBA with none of six around its best, whose least is 20 times that of BO-REP",
        *(ours[reach] >= 4, soba[reach] <= 0, soba[least] >= 20 * ours[least]),
    )


def _exponential(x: Tensor, y: Tensor) -> BilevelProblem:
    """Least at 1; the inner objective is least where ``y = x``, with curvatures of 1 to 3."""
    bend = torch.linspace(1, 3, len(y))
    return BilevelProblem(lambda x, y: torch.cosh(y - 1).sum(), lambda x, y: (bend * (y - x) ** 2).sum() / 2, x, y)


def _follow(lab: Lab, ours: Arm, bare: Arm) -> None:
    """Measure how far ``y`` is from the inner solution while ``x`` takes steps of one length."""
    length, distance, late = 0.1, "distance from the inner solution", "steps further than twice the drift"
    for arm, epochs in ((ours, 5), (bare, 0)):
        problem = _exponential(torch.full((5,), 5.0), torch.zeros(5))
        rates: dict[str, Any] = {"lr": length, "lower_lr": 0.3, "linear_lr": 0.3, "refinement_epochs": epochs}
        method = NormalizedBilevelMomentum(problem, **rates)
        for _ in arm.steps(60, method, name="following"):
            before = problem.x.clone()
            method.step()
            arm.record(distance, (problem.y - before).norm())
        arm.metric(late, 1.0 * sum(far > 2 * 2 * length for far in arm.series(distance)), better="lower")
    lab.claim(
        "refined, y stays within twice the drift of the inner solution from one update to the next (Lipschitz constant "
        "1, times the length of a step, times the period 2); without refinement one update does not bring it there",
        *(ours[late] <= 0, bare[late] > 2),
        scale="smoke",
    )


class _Net(nn.Module):
    """The class of a verse from its words."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, 32)
        self.recurrent = nn.GRU(32, 32, batch_first=True)
        self.out = nn.Linear(32, len(BOOKS))

    def forward(self, words: Tensor) -> Tensor:
        return self.out(self.recurrent(self.embedding(words))[0].amax(1))


class _Task:
    """Verses with wrong labels, some with right ones for validation, others to test; and a network of an arm."""

    def __init__(self, lab: Lab, config: Config, arm: Arm, verses: list[tuple[list[str], int]]) -> None:
        self.stream, n = lab.fork("verses"), config.samples
        classes = torch.tensor([book for _, book in verses])
        even = [torch.randperm(len(verses), generator=self.stream) for _ in BOOKS]
        even = [order[classes[order] == book][: 400 + n * 9 // 32] for book, order in enumerate(even)]
        order = torch.cat(even)[torch.randperm(sum(map(len, even)), generator=self.stream)].tolist()
        texts, labels = [verses[i][0] for i in order], classes[order]
        vocabulary = data.Vocabulary(texts[:n], at_least=4)
        sizes = [n, n // 8, len(order) - n - n // 8]
        self.words, self.valid, self.unseen = vocabulary.encode(texts, LENGTH).split(sizes)
        right, self.wanted, self.truth = labels.split(sizes)
        self.wrong = torch.rand(n, generator=self.stream) < config.flipped
        other = (right + torch.randint(1, len(BOOKS), (n,), generator=self.stream)) % len(BOOKS)
        self.labels = torch.where(self.wrong, other, right)
        self.arm, self.x = arm, torch.zeros(n)
        with arm.weights():
            self.net = _Net(len(vocabulary))
        self.problem = BilevelProblem(self.upper, self.lower, self.x, self.net)
        self.best = {"validation": -1.0, ACCURACY: 0.0, FOUND: 0.0}

    def upper(self, x: Tensor, net: nn.Module) -> Tensor:
        chosen = torch.randint(len(self.valid), (BATCH,), generator=self.stream)
        return cross_entropy(net(self.valid[chosen]), self.wanted[chosen])

    def lower(self, x: Tensor, net: nn.Module) -> Tensor:
        chosen = torch.randint(len(self.words), (BATCH,), generator=self.stream)
        losses = cross_entropy(net(self.words[chosen]), self.labels[chosen], reduction="none")
        return (torch.sigmoid(x[chosen]) * losses).mean() + 5e-4 * sum((w**2).sum() for w in net.parameters())

    @torch.no_grad()
    def judge(self) -> None:
        """Where the validation accuracy is the best so far, remember it and what the other verses say."""
        valid, test = (
            100 * (self.net(words).argmax(1) == labels).double().mean().item()
            for words, labels in ((self.valid, self.wanted), (self.unseen, self.truth))
        )
        if valid > self.best["validation"]:
            found = 100 * ((self.x < 0) == self.wrong).double().mean().item()
            self.best |= {"validation": valid, ACCURACY: test, FOUND: found}

    def descend(self, steps: int, method: Any, name: str = "cleaning") -> None:
        for step in self.arm.steps(steps, method, self.stream, self.best, name=name):
            self.arm.record(f"validation loss, {name}", method.step().upper)
            if step % 10 == 9 or step == steps - 1:
                self.judge()

    def report(self) -> None:
        for name in (ACCURACY, FOUND):
            self.arm.metric(name, self.best[name], better="higher", unit="%")


def _smoothness(lab: Lab, config: Config, arm: Arm, task: _Task) -> None:
    """Train on some verses by plain descent; measure how fast the gradient changes along every third step."""
    words, labels = task.words[:128], task.labels[:128]

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return cross_entropy(functional_call(task.net, parameters, words), labels)

    optimizer = torch.optim.SGD(task.net.parameters(), lr=config.inner_lr)
    for step in arm.steps(3 * config.measured, task.net, optimizer, name="smoothness"):
        optimizer.zero_grad()
        loss(dict(task.net.named_parameters())).backward()
        if step % 3 == 0:
            here = {name: p.detach() for name, p in task.net.named_parameters()}
            ahead = {name: -config.inner_lr * p.grad for name, p in task.net.named_parameters() if p.grad is not None}
            found = local_smoothness(loss, here, ahead, points=3)
            arm.record("local smoothness", found.value)
            arm.record("norm of the gradient", found.gradient_norm)
        optimizer.step()
    line = fit_smoothness(*(torch.tensor(arm.series(n)) for n in ("local smoothness", "norm of the gradient")))
    arm.metric("slope of smoothness", line.slope)
    arm.metric("t of the slope", line.t)


def _clean(lab: Lab, config: Config, verses: list[tuple[list[str], int]], ours: Arm, soba: Arm) -> None:
    """Learn a weight for each verse; the network is trained in between."""
    task = _Task(lab, config, ours, verses)
    rates: dict[str, Any] = {"lr": config.lr, "lower_lr": config.inner_lr, "linear_lr": 0.1}
    often = {"period": 2, "lower_steps": 4, "refinement_epochs": 2, "refinement_steps": config.refinement}
    task.descend(config.steps, NormalizedBilevelMomentum(task.problem, **rates, **often))
    task.report()
    tried = []
    for rate in config.soba_rates:
        other = _Task(lab, config, soba, verses)
        rates = {"lr_x": rate, "lr_y": config.inner_lr, "lr_v": 0.1}
        plain = AveragedMultipliers(other.problem, **rates, **MA_SOBA)
        # As many gradients, counted as above: BO-REP takes two inner ones in each step, and the refinement.
        other.descend((6 * config.steps + 2 * config.refinement) // 4, plain, f"step size {rate:g}")
        tried.append(other)
    max(tried, key=lambda other: other.best["validation"]).report()


def _train(lab: Lab, config: Config, verses: list[tuple[list[str], int]], arm: Arm) -> None:
    """Train on wrong labels, or on the few right ones: to the end, at the step size best for the unseen verses."""
    tried, steps, clean = [], 4 * config.steps, arm.name != "noisy labels"
    for rate in config.plain_rates:
        task = _Task(lab, config, arm, verses)
        optimizer = torch.optim.SGD(task.net.parameters(), lr=rate, weight_decay=1e-3 if clean else 0)  # as in lower
        loss = task.upper if clean else task.lower
        for step in arm.steps(steps, task.net, optimizer, task.stream, task.best, name=f"step size {rate:g}"):
            arm.descend(loss(task.x, task.net), optimizer, name=f"loss, step size {rate:g}")
            if step == steps - 1 or (step % 10 == 9 and not clean):
                task.judge()
        tried.append(task)
    max(tried, key=lambda task: task.best[ACCURACY if clean else "validation"]).report()
