"""Which members of an ensemble answer is decided for each input, and the choice is trained through the answer.

Fifteen networks have each learned five of the ten digits; on the others they are wrong, and sure of it. A selector
gives each a score, the k best are added up, and the loss is the cross entropy of the sum. The k best have no gradient;
their mean over perturbed scores has, from the solutions alone (e2e-CEL; Kotary, Di Vito, Fioretto, IJCAI 2023, arXiv
2211.00251; the gradient is that of Berthet et al., 2020).

Smaller than in the paper: digits of 8 x 8 pixels, members of one hidden layer. The digits are real. The temperature
falls while the selector learns, here and not in the paper: at a constant one the perturbed ensemble of three or more
reads points more than the hard one that is wanted in the end.

Votes do not look at the input; equal ones are beaten by far, one with learned weights by 0 to 4 points, as the members
are drawn. Two references are not: the same selector, trained to predict which members are right, needs no perturbation
and reads half a point more with one member, two with more; and one network of the selector's size that reads the digits
itself is as good as any choice, on as many digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cosine_similarity, cross_entropy, nll_loss, one_hot

from pullback import data
from pullback.discrete import temperature_schedule
from pullback.implicit import SelectiveEnsemble, average_vote, knapsack_layer, majority_vote
from pullback.lab import Arm, Lab, above, at_least, at_most, system

Loss = Callable[[Tensor, int], Tensor]
SIZES = (800, 300)
"""Digits for training, of members and selectors, and for validation; the other 697 are for the test."""


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    members: Annotated[int, at_least(7)] = 15
    """Networks of the ensemble."""
    classes: Annotated[int, at_least(1), at_most(10)] = 5
    """Classes that a member has seen."""
    member_steps: Annotated[int, at_least(1)] = 120
    """Adam steps of the members."""
    steps: Annotated[int, at_least(1)] = 800
    """Adam steps of each selector and each reference."""
    lr: Annotated[float, above(0)] = 1e-2
    """Their step size at the beginning; it falls to zero as a cosine."""
    temperatures: tuple[Annotated[float, above(0)], Annotated[float, above(0)]] = (2.0, 0.02)
    """Of the perturbation at the beginning and at the end, in units of the scores."""
    samples: Annotated[int, at_least(2)] = 32
    """Perturbations in a step."""
    sizes: tuple[Annotated[int, at_least(1), at_most(7)], ...] = (1, 3, 5, 7)
    """Numbers of members that answer, k."""
    draws: Annotated[int, at_least(2)] = 20_000
    """Perturbations of the gradient that is compared with differences."""
    replicates: Annotated[int, at_least(1)] = 3
    """Splits of the digits, classes of the members, initial weights."""


@system(
    "differentiable-model-selection",
    family="implicit",
    title="Differentiable Model Selection for Ensemble Learning",
    paper="Kotary, Di Vito, Fioretto, IJCAI 2023, arXiv 2211.00251",
    config=Config,
    smoke={"members": 7, "member_steps": 2, "steps": 2, "samples": 4, "sizes": (1,), "draws": 50, "replicates": 1},
    full={"members": 25, "member_steps": 1000, "steps": 5000, "samples": 64, "replicates": 5},
    data=("digits",),
    blocks=(
        *("implicit.SelectiveEnsemble", "implicit.knapsack_layer", "implicit.perturbed_argmax"),
        *("implicit.average_vote", "implicit.majority_vote", "discrete.temperature_schedule"),
    ),
)
def run(lab: Lab, config: Config) -> None:
    """Train specialists, let selectors choose among them, compare with votes."""
    lab.data("UCI digits, 1 797 images of 8 x 8", origin="real")
    ours = lab.arm("trained end to end")
    likely = lab.arm("predicted to be right", baseline=True)
    names = ("random members", "majority vote", "average vote", "weighted vote", "best single member", "one network")
    others = [lab.arm(name, baseline=True) for name in names]
    for _ in lab.replicates(config.replicates):
        task = _Digits(lab, config)
        task.learn_members()
        chosen = task.select(ours)
        task.predict(likely)
        task.vote(*others)
        task.compare_gradients(ours)
    accuracy, random, votes = "accuracy", others[0], others[1:4]
    lab.claim(
        "with k chosen on validation digits, it reads at least 3 points more of the unseen ones than the majority and "
        "the average vote and than random members, and 10 more than the best member alone",
        *(ours[accuracy] >= arm[accuracy] + 3 for arm in (*votes[:2], random)),
        ours[accuracy] >= others[4][accuracy] + 10,
    )
    statement = "it reads no less than the average vote with weights that were trained on the same digits"
    lab.claim(statement, ours[accuracy] >= votes[2][accuracy])
    exact = min(ours["fewest chosen, less k"].values) == 0 == max(ours["most chosen, less k"].values)
    lab.claim("exactly k members answer each unseen digit", exact, scale="smoke")
    gaps = [ours[f"perturbed less hard accuracy, k = {k}"] for k in config.sizes]
    lab.claim(
        "whatever k, the hard choice reads at most 1 point less or more than the perturbed one it was trained as",
        *(abs(gap) <= 1 for gap in gaps),
    )
    lab.claim(
        "the gradient of the perturbed choice has a cosine of at least 0.98 to central differences",
        ours["cosine of the gradient"] >= 0.98,
    )
    known = ours["chosen members know the class, k = 1"]
    lab.claim("a single chosen member has learned the class of at least 90 % of the unseen digits", known >= 90)
    lab.bars(accuracy, caption="On 697 unseen digits; k is chosen on validation digits.")
    _draw(lab, config, task, chosen, [ours, likely, random], others)


class _Digits:
    """Digits, members that have seen some of the classes, and selectors of members."""

    def __init__(self, lab: Lab, config: Config) -> None:
        self.lab, self.config, stream = lab, config, lab.fork("digits and classes")
        parts = [data.digits(part) for part in ("train", "test")]
        order = torch.randperm(sum(len(part.labels) for part in parts), generator=stream)
        self.images = torch.cat([part.images for part in parts]).flatten(1)[order]
        self.labels = torch.cat([part.labels for part in parts])[order]
        rest = len(order) - sum(SIZES)
        self.train, self.valid, self.test = torch.arange(len(order)).split([*SIZES, rest])
        draws = torch.rand(config.members, 10, generator=stream)
        self.known = torch.zeros(config.members, 10).scatter(1, draws.topk(config.classes).indices, 1.0)

    def read(self, logits: Tensor, part: Tensor) -> float:
        return 100 * (logits[part].argmax(-1) == self.labels[part]).double().mean().item()

    def network(self, hidden: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, outputs))

    def learn_members(self) -> None:
        """Train each member on the digits of its classes, and keep what it answers to all."""
        arm = self.lab.arm("members")
        with arm.weights():
            self.members = nn.ModuleList(self.network(32, 10) for _ in range(self.config.members))
        optimizer = torch.optim.Adam(self.members.parameters(), lr=1e-2)
        stream = self.lab.fork("batches of members")
        own = [self.train[seen[self.labels[self.train]] > 0] for seen in self.known]
        for _ in arm.steps(self.config.member_steps, self.members, optimizer, stream):
            loss = torch.zeros(())
            for member, digits in zip(self.members, own, strict=True):
                batch = digits[torch.randint(len(digits), (128,), generator=stream)]
                loss = loss + cross_entropy(member(self.images[batch]), self.labels[batch])
            arm.descend(loss, optimizer)
        with torch.no_grad():
            self.answers = torch.stack([member(self.images) for member in self.members], -2)

    def fit(self, arm: Arm, name: str, module: nn.Module, loss: Loss, *state: Any, lr: float | None = None) -> None:
        """Minimise a loss of batches of the digits for training."""
        stream = self.lab.fork("batches")
        optimizer = torch.optim.Adam(module.parameters(), lr=lr or self.config.lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.config.steps)
        for step in arm.steps(self.config.steps, module, optimizer, schedule, stream, *state, name=name):
            batch = self.train[torch.randint(len(self.train), (128,), generator=stream)]
            arm.descend(loss(batch, step), optimizer, name=f"loss, {name}")
            schedule.step()

    def select(self, arm: Arm) -> Tensor:
        """Train a selector through the choice for each k; return how often each member is chosen for each class."""
        first, last = self.config.temperatures
        temperature = temperature_schedule(first, last, math.log(first / last) / self.config.steps)
        hard: dict[int, Tensor] = {}
        choices: dict[int, Tensor] = {}
        for k in self.config.sizes:
            with arm.weights("selector"):
                selector = self.network(64, self.config.members)
            noise = self.lab.fork("noise")
            ensemble = SelectiveEnsemble([*self.members], selector, k, samples=self.config.samples, generator=noise)

            def loss(batch: Tensor, step: int, ensemble: SelectiveEnsemble = ensemble) -> Tensor:
                ensemble.temperature = temperature(step)
                return cross_entropy(ensemble(self.images[batch], self.answers[batch]).logits, self.labels[batch])

            self.fit(arm, f"k = {k}", selector, loss, noise)
            with torch.no_grad():
                ensemble.temperature = last
                soft = ensemble(self.images, self.answers).logits
                choice = ensemble.eval()(self.images, self.answers)
            hard[k] = choice.logits
            knows = (choice.chosen * self.known.T[self.labels]).sum(-1)[self.test].mean() / k
            arm.metric(f"chosen members know the class, k = {k}", 100 * knows, better="higher", unit="%")
            gap = self.read(soft, self.test) - self.read(choice.logits, self.test)
            arm.metric(f"perturbed less hard accuracy, k = {k}", gap, unit="points")
            choices[k] = choice.chosen[self.test]
        counts = torch.stack([chosen.sum(-1) - k for k, chosen in choices.items()])
        arm.metric("fewest chosen, less k", counts.min())
        arm.metric("most chosen, less k", counts.max())
        self.report(arm, hard)
        classes = one_hot(self.labels[self.test], 10).float()
        return classes.T @ choices[self.config.sizes[0]] / classes.sum(0)[:, None]

    def predict(self, arm: Arm) -> None:
        """Train the same selector to predict which members are right, and take the k likeliest."""
        right = (self.answers.argmax(-1) == self.labels[:, None]).float()
        with arm.weights("selector"):
            selector = self.network(64, self.config.members)

        def loss(batch: Tensor, step: int) -> Tensor:
            return binary_cross_entropy_with_logits(selector(self.images[batch]), right[batch])

        self.fit(arm, "who is right", selector, loss)
        with torch.no_grad():
            scores = selector(self.images)
        self.report(arm, {k: self.added(scores, k) for k in self.config.sizes})

    def added(self, scores: Tensor, k: int) -> Tensor:
        return (knapsack_layer(scores, k)[..., None] * self.answers).sum(-2)

    def report(self, arm: Arm, logits: dict[int, Tensor]) -> None:
        """Measure each k on unseen digits, and the one that is best on validation digits."""
        for k, values in logits.items():
            arm.metric(f"accuracy, k = {k}", self.read(values, self.test), better="higher", unit="%")
        best = max(logits, key=lambda k: self.read(logits[k], self.valid))
        arm.metric("accuracy", self.read(logits[best], self.test), better="higher", unit="%")

    def vote(self, random: Arm, majority: Arm, average: Arm, weighted: Arm, single: Arm, direct: Arm) -> None:
        """Measure what does not choose for each input, and a network that needs no members."""
        scores = torch.rand(self.answers.shape[:2], generator=self.lab.fork("random members"))
        self.report(random, {k: self.added(scores, k) for k in self.config.sizes})
        majority.metric("accuracy", self.read(majority_vote(self.answers), self.test), better="higher", unit="%")
        average.metric("accuracy", self.read(average_vote(self.answers), self.test), better="higher", unit="%")
        weights = nn.ParameterList([torch.zeros(self.config.members)])

        def loss(batch: Tensor, step: int) -> Tensor:
            mean = average_vote(self.answers[batch], weights[0].softmax(0))
            return nll_loss(mean.clamp(min=1e-9).log(), self.labels[batch])

        self.fit(weighted, "weights", weights, loss, lr=5e-2)
        with torch.no_grad():
            mean = average_vote(self.answers, weights[0].softmax(0))
        weighted.metric("accuracy", self.read(mean, self.test), better="higher", unit="%")
        best = max(range(self.config.members), key=lambda i: self.read(self.answers[:, i], self.valid))
        single.metric("accuracy", self.read(self.answers[:, best], self.test), better="higher", unit="%")
        with direct.weights("selector"):
            network = self.network(64, 10)

        def error(batch: Tensor, step: int) -> Tensor:
            return cross_entropy(network(self.images[batch]), self.labels[batch])

        self.fit(direct, "digits", network, error)
        with torch.no_grad():
            direct.metric("accuracy", self.read(network(self.images), self.test), better="higher", unit="%")

    def compare_gradients(self, arm: Arm) -> None:
        """Compare the gradient of a perturbed choice of 3 answers to a digit with central differences."""
        stream = self.lab.fork("scores")
        scores = torch.randn(self.config.members, generator=stream, dtype=torch.float64, requires_grad=True)
        weight = self.answers[self.test[0], :, self.labels[self.test[0]]].double()

        def value(at: Tensor, name: str) -> Tensor:
            noise = self.lab.fork(name)
            return knapsack_layer(at, 3, temperature=1.0, samples=self.config.draws, generator=noise) @ weight

        slope = torch.autograd.grad(value(scores, "draws"), scores)[0]
        with torch.no_grad():
            steps = 0.2 * torch.eye(len(scores), dtype=scores.dtype)
            pairs = [value(scores + move, "other draws") - value(scores - move, "other draws") for move in steps]
        arm.metric("cosine of the gradient", cosine_similarity(slope, torch.stack(pairs), 0), better="higher")


def _draw(lab: Lab, config: Config, task: _Digits, chosen: Tensor, choosing: list[Arm], others: list[Arm]) -> None:
    figure, (left, right) = lab.subplots(1, 2, figsize=(11, 4))
    for arm in choosing:
        values = [arm[f"accuracy, k = {k}"] for k in config.sizes]
        spread = [value.spread or 0 for value in values]
        left.errorbar(config.sizes, [float(v) for v in values], spread, color=arm.colour, label=arm.name, marker="o")
    for arm in others[1:]:
        left.axhline(float(arm["accuracy"]), color=arm.colour, ls="--", lw=1, label=arm.name)
    left.set(xlabel="members that answer", ylabel="accuracy on unseen digits, %", xticks=config.sizes)
    left.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize="small")
    shown = right.imshow(chosen.numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    digit, member = task.known.T.nonzero().unbind(1)
    right.plot(member.numpy(), digit.numpy(), ".", color=choosing[1].colour, ms=4)
    right.set(xlabel="member", ylabel="digit", yticks=range(10))
    figure.colorbar(shown, ax=right, label="share of its unseen images")
    caption = "Left: by the number that answer; means and spreads over replicates. Right, last replicate: the single "
    lab.figure(
        "members", figure, caption + "member that is chosen for each digit; dots mark the digits it has learned."
    )
