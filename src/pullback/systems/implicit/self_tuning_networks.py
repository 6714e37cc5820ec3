"""A network that tunes its dropout and augmentation while it trains, because its weights answer them.

Every layer gets a second set of weights, scaled by a linear function of the hyperparameters. Trained at hyperparameters
that are perturbed for each example, the network learns what training would have answered to them; the gradient of the
validation loss through that answer then moves the hyperparameters, two training steps and one such step in turn. So
what cannot be differentiated can be tuned: dropout rates, and how far images are shifted, an integer (MacKay, Vicol,
Lorraine, Duvenaud, Grosse, ICLR 2019, arXiv 1903.03088).

Smaller than in the paper: 300 training digits of 14 x 14 pixels, one convolution and five hyperparameters instead of
CIFAR-10 and AlexNet. All arms take as many gradient steps in all, those on hyperparameters counted, and are judged
where their validation loss was least. That the answer is right is shown where it is known: a linear network whose slope
is penalised, on the diabetes data. All data is real.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy, pad, relu

from pullback import data
from pullback.implicit import (
    BestResponseConv2d,
    BestResponseLinear,
    Hyperparameter,
    Hyperparameters,
    dropout_by_example,
    self_tuning_training,
)
from pullback.lab import Arm, Lab, above, at_least, system

START = {"input dropout": 0.05, "feature dropout": 0.05, "hidden dropout": 0.05, "noise": 0.05, "shift": 0.0}
HIDDEN = "hidden dropout"


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    response_steps: Annotated[int, at_least(1)] = 1000
    """Steps on the linear network whose response is known."""
    samples: Annotated[int, at_least(10)] = 300
    """Training digits, and as many for validation."""
    warmup: Annotated[int, at_least(1)] = 150
    """Training steps before the first on the hyperparameters."""
    rounds: Annotated[int, at_least(1)] = 330
    """Of two training steps and one on the hyperparameters."""
    draws: Annotated[int, at_least(2)] = 8
    """Settings that a search tries."""
    lr: Annotated[float, above(0)] = 0.06
    """Of the networks."""
    hyper_lr: Annotated[float, above(0)] = 0.06
    """Of the hyperparameters, by Adam."""
    replicates: Annotated[int, at_least(1)] = 3
    """Choices of digits, initial weights and settings."""


@system(
    "self-tuning-networks",
    family="implicit",
    title="Self-Tuning Networks: Bilevel Optimization of Hyperparameters using Structured Best-Response Functions",
    paper="MacKay, Vicol, Lorraine, Duvenaud, Grosse, ICLR 2019, arXiv 1903.03088",
    config=Config,
    smoke={"response_steps": 5, "samples": 20, "warmup": 2, "rounds": 5, "draws": 2, "replicates": 1},
    full={"samples": 1000, "rounds": 5000, "hyper_lr": 3e-3, "draws": 30, "replicates": 5},
    data=("mnist",),
    blocks=(
        "implicit.self_tuning_training",
        "implicit.BestResponseConv2d",
        "implicit.BestResponseLinear",
        "implicit.Hyperparameters",
        "implicit.dropout_by_example",
    ),
)
def run(lab: Lab, config: Config) -> None:
    """Check a response that is known, tune a dropout rate from two starts, then all; compare with a search."""
    lab.data("diabetes of 442 patients; MNIST digits, averaged to 14 x 14 pixels", origin="real")
    digits = data.mnist()
    digits = digits._replace(images=avg_pool2d(digits.images, 2))
    ours, near, far = (lab.arm(n) for n in ("self-tuning", "hidden dropout from 0.05", "hidden dropout from 0.9"))
    search, start, final = (lab.arm(n, baseline=True) for n in ("random search", "start values", "final values"))
    _response(lab, config, ours, lab.arm("ungated layers", baseline=True))
    for arm, rate in ((near, 0.05), (far, 0.9)):
        _tune(lab, config, arm, digits, {HIDDEN: Hyperparameter(rate, 0.0, 0.95, scale=1.0)})
    late = [torch.tensor(arm.series(HIDDEN)[-max(1, config.rounds // 40) :]).mean() for arm in (near, far)]
    statement = "hidden dropout, tuned alone from 0.05 and from 0.9, is within 0.15 on average over the last quarter"
    lab.claim(statement, far.metric("distance of hidden dropouts", abs(late[1] - late[0]), better="lower") <= 0.15)
    spec = {n: Hyperparameter(v, 0.0, 1.0 if n == "noise" else 0.95) for n, v in START.items() if n != "shift"}
    for _ in lab.replicates(config.replicates):
        tuned = _tune(lab, config, ours, digits, {**spec, "shift": Hyperparameter(0, 0, 3, integer=True)})
        _search(lab, config, search, digits)
        for arm, values in ((start, START), (final, tuned)):
            fixed = _Fixed(arm, _Task(lab, config, digits), config.lr, "fixed", values)
            fixed.train(config.warmup + 3 * config.rounds)
            fixed.task.report(arm)
    validation, test = "validation loss", "test loss"
    lab.claim(
        "the validation and the test loss of one self-tuning run are below those of random search and of the start "
        "values by at least a tenth, with as many gradient steps in all",
        *(ours[loss] <= 0.9 * arm[loss] for loss in (validation, test) for arm in (search, start)),
    )
    statement = "the test loss is at most 0.02 above that of a network trained at the final values from scratch"
    lab.claim(statement, ours[test] <= final[test] + 0.02)
    lab.curves(validation, arms=[ours, start, final], log=True, xlabel="gradient step", caption="Without any dropout.")
    lab.bars(test, "test accuracy", caption="On 2 000 other digits, where the validation loss was least.")
    figure, axes = lab.subplots(1, len(START) + 1, figsize=(15, 3))
    panels = [(HIDDEN, [near, far], "hidden dropout alone"), *((name, [ours], name) for name in START)]
    for (name, arms, title), axis in zip(panels, axes, strict=True):
        for arm in arms:
            found = arm.series(name, 0 if arm is ours else None)
            axis.plot([10 * (k + 1) for k in range(len(found))], found, color=arm.colour)
        axis.set(title="mean shift / pixels" if name == "shift" else title, xlabel="round")
    lab.figure("schedules", figure, "Left: tuned alone, from 0.05 and from 0.9; others: all at once, first replicate.")


def _response(lab: Lab, config: Config, ours: Arm, plain: Arm) -> None:
    """Learn the coefficients of a penalised regression as a function of the penalty; the exact ones are known."""
    table, error = data.diabetes(), "largest error of the response"
    x, t = (v / v.std(0) for v in (table.features, table.target - table.target.mean()))
    decay = Hyperparameters({"decay": Hyperparameter(1.0, 0.0, math.inf, log=True, scale=0.4)}, tune_scale=False)
    grid = torch.linspace(-2, 2, 41)[:, None] * decay.scale.detach()
    ridge = x.T @ x / len(x) + torch.exp(grid)[:, :, None] * torch.eye(x.shape[1])
    exact = torch.linalg.solve(ridge, x.T @ t / len(x))
    figure, axes = lab.subplots(1, 2, figsize=(10, 4), sharey=True)
    shown = exact.std(0).topk(4).indices
    for arm, axis in zip((ours, plain), axes, strict=True):
        stream, gated = lab.fork("responses"), arm is ours
        with arm.weights("response"):
            first = BestResponseLinear(10, 10, 1, bias=False)
            last = nn.Linear(10, 1, bias=False)

        def predict(rows: Tensor, h: Tensor, first: Any = first, last: Any = last, gated: bool = gated) -> Tensor:
            return last(first(rows, h if gated else torch.zeros_like(h)))[..., 0]

        optimizer = torch.optim.Adam([*first.parameters(), *last.parameters()], lr=0.05)
        slower = torch.optim.lr_scheduler.PolynomialLR(optimizer, config.response_steps, power=2)
        for _ in arm.steps(config.response_steps, first, last, optimizer, slower, stream, name="response"):
            h = decay.perturb(len(x), generator=stream).detach()
            slopes = predict(torch.eye(10), h[:, None])  # of the output in the input, for each example
            loss = (predict(x, h) - t) ** 2 + decay.values(h)["decay"] * (slopes**2).sum(1)
            arm.descend(loss.mean(), optimizer, name="penalised loss")
            slower.step()
        learned = predict(torch.eye(10), grid[:, None]).detach()
        errors = (learned - exact).norm(dim=1) / exact.norm(dim=1)
        arm.metric(error, 100 * errors.max(), better="lower", unit="%")
        axis.plot(grid, exact[:, shown], color="0.7", linewidth=5)
        axis.plot(grid, learned[:, shown], color=arm.colour)
        axis.set(title=arm.name if arm is plain else "gated layers", xlabel="log of the penalty", ylabel="coefficient")
    lab.figure("response", figure, "Four of ten coefficients within two deviations: learned (colour) and exact (grey).")
    lab.claim(
        "within two standard deviations gated layers answer the penalty of a linear network with an error of at most "
        "5 % of the exact coefficients; layers that do not see it are off by 30 % and more",
        *(ours[error] <= 5, plain[error] >= 30),
    )


class _Net(nn.Module):
    """A convolution and two linear layers, which answer hyperparameters where their count is given."""

    def __init__(self, count: int = 0) -> None:
        super().__init__()
        convolution: Any = partial(BestResponseConv2d, hyperparameters=count) if count else nn.Conv2d
        linear: Any = partial(BestResponseLinear, hyperparameters=count) if count else nn.Linear
        self.convolution = convolution(1, 12, 3, stride=2, padding=1)
        self.hidden, self.output = linear(588, 48), linear(48, 10)

    def forward(self, images: Tensor, *h: Tensor, drop: Callable[[Tensor, str], Tensor] = lambda x, name: x) -> Tensor:
        features = relu(self.convolution(drop(images, "input dropout")[:, None], *h)).flatten(1)
        hidden = relu(self.hidden(drop(features, "feature dropout"), *h))
        return self.output(drop(hidden, "hidden dropout"), *h)


def _descent(net: nn.Module, lr: float) -> torch.optim.SGD:
    """Descent with momentum; gradients longer than 1 are scaled down, in every arm."""

    def clip(*_: Any) -> None:
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)

    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    optimizer.register_step_pre_hook(clip)
    return optimizer


class _Task:
    """Digits to train on, to validate with and to test on, the losses of a network, and where it was best."""

    def __init__(self, lab: Lab, config: Config, digits: data.LabelledImages) -> None:
        n = config.samples
        order = torch.randperm(len(digits.labels), generator=lab.fork("digits"))[: 2 * n + 2000]
        self.images, self.valid, self.unseen = digits.images[order].split([n, n, 2000])
        self.labels, self.wanted, self.truth = digits.labels[order].split([n, n, 2000])
        self.stream = lab.fork("batches")
        self.best = {"validation loss": math.inf, "test loss": math.inf, "test accuracy": 0.0}

    def train_loss(self, net: nn.Module, values: dict[str, Tensor], *h: Tensor) -> Tensor:
        """Of a minibatch, whose examples have hyperparameters of their own."""
        stream, (count,) = self.stream, values["shift"].shape
        chosen = torch.randint(len(self.images), (count,), generator=stream)
        images = self.images[chosen]
        images = images + values["noise"][:, None, None] * torch.randn(images.shape, generator=stream)
        far = ((2 * values["shift"] + 1) * torch.rand(2, count, generator=stream)).floor() - values["shift"]
        rows, columns = (torch.arange(14) + offset[:, None].long() + 3 for offset in far)
        images = pad(images, [3] * 4)[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
        logits = net(images, *h, drop=lambda x, name: dropout_by_example(x, values[name], generator=stream))
        return cross_entropy(logits, self.labels[chosen])

    @torch.no_grad()
    def judge(self, net: nn.Module, *h: Tensor) -> float:
        """Return the validation loss; where it is the least so far, remember it and what the test digits say."""
        loss = cross_entropy(net(self.valid, *h), self.wanted).item()
        if loss < self.best["validation loss"]:
            logits = net(self.unseen, *h)
            right = 100 * (logits.argmax(1) == self.truth).double().mean().item()
            test = cross_entropy(logits, self.truth).item()
            self.best |= {"validation loss": loss, "test loss": test, "test accuracy": right}
        return loss

    def report(self, arm: Arm) -> None:
        for name, value in self.best.items():
            better, unit = ("lower", "") if name.endswith("loss") else ("higher", "%")
            arm.metric(name, value, better=better, unit=unit)


def _tune(lab: Lab, config: Config, arm: Arm, digits: Any, spec: dict[str, Hyperparameter]) -> dict[str, float]:
    """Return the values that a network tunes. Perturbations of a single one stay as wide, and validation has none."""
    task, hyper = _Task(lab, config, digits), Hyperparameters(spec, tune_scale=len(spec) > 1)
    start = {name: torch.full((64,), value) for name, value in START.items()}
    with arm.weights():
        net = _Net(len(hyper))

    def train(hyper: Hyperparameters, net: nn.Module) -> Tensor:
        h = hyper.perturb(64, generator=task.stream).detach()
        return task.train_loss(net, start | hyper.values(h), h)

    def validation(hyper: Hyperparameters, net: nn.Module) -> Tensor:
        chosen = torch.randint(len(task.valid), (100,), generator=task.stream)
        h = hyper.perturb(100, generator=task.stream) if len(spec) > 1 else hyper.center
        return cross_entropy(net(task.valid[chosen], h), task.wanted[chosen])

    optimizer = _descent(net, config.lr)
    outer = torch.optim.Adam(hyper.parameters(), lr=config.hyper_lr)
    options: dict[str, Any] = {"network_optimizer": optimizer, "hyper_optimizer": outer, "entropy_weight": 1e-3}
    training = self_tuning_training(hyper, net, train, validation, **options)
    for _ in arm.steps(config.warmup, net, optimizer, task.stream, name="warm-up"):
        arm.descend(train(hyper, net), optimizer, name="training loss of the warm-up")
    for step in arm.steps(config.rounds, training, task.stream, task.best):
        training.step()
        if step % 10 == 9 or step == config.rounds - 1:
            place = config.warmup + 3 * (step + 1)
            arm.record("validation loss", task.judge(net, hyper.center.detach()), step=place)
            around = hyper.values(hyper.perturb(500, generator=torch.Generator().manual_seed(0)))
            for name, value in hyper.values().items():
                arm.record(name, around[name].mean() if name == "shift" else value, step=place)
    task.report(arm)
    return {name: value.item() for name, value in hyper.values().items()}


class _Fixed:
    """A plain network trained at values that stay."""

    def __init__(self, arm: Arm, task: _Task, lr: float, name: str, values: dict[str, float]) -> None:
        self.arm, self.task, self.name, self.taken = arm, task, name, 0
        with arm.weights():
            self.net = _Net()
        self.optimizer = _descent(self.net, lr)
        self.values = {key: torch.full((64,), value) for key, value in values.items()}

    def train(self, steps: int) -> None:
        task, name = self.task, f"{self.name}, from step {self.taken}"
        for step in self.arm.steps(steps, self.net, self.optimizer, task.stream, task.best, name=name):
            self.optimizer.zero_grad()
            task.train_loss(self.net, self.values).backward()
            self.optimizer.step()
            if step % 25 == 24 or step == steps - 1:
                loss = task.judge(self.net)
                if self.name == "fixed":
                    self.arm.record("validation loss", loss, step=self.taken + step + 1)
        self.taken += steps


def _search(lab: Lab, config: Config, arm: Arm, digits: data.LabelledImages) -> None:
    """Try settings at random; after each round, in which all take as many steps, the better half goes on."""
    ranges = torch.tensor([0.5, 0.5, 0.5, 0.3, 4.0])
    settings = torch.rand(config.draws, len(START), generator=lab.fork("settings")) * ranges
    settings[:, -1].floor_()
    rows = [dict(zip(START, row, strict=True)) for row in settings.tolist()]
    tried = [_Fixed(arm, _Task(lab, config, digits), config.lr, f"setting {n}", row) for n, row in enumerate(rows)]
    left = [config.draws >> k for k in range(config.draws.bit_length())]  # such as 8, 4, 2, 1
    for count in left:
        tried = sorted(tried, key=lambda one: one.task.best["validation loss"])[:count]
        for one in tried:
            one.train((config.warmup + 3 * config.rounds) // sum(left))
    min(tried, key=lambda one: one.task.best["validation loss"]).task.report(arm)
