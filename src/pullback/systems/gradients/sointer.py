"""Which features decide one output of a model that predicts several at once, where outputs lean on each other.

An interpreter network scores the features of each input; a k-hot mask of the scores, sampled by Gumbel-softmax, hides
the rest. The black box predicts from the full and from the masked input, and a learned energy of inputs and outputs
stands in for it: the interpreter descends the energy of the target's true value beside the other outputs of the masked
input (SOInter: Seyyedsalehi, Soleymani, Rabiee, ICLR 2024). Against it the same with an energy of the target alone,
and an interpreter without energy, which predicts the target from the masked input (L2X): these see decisions, and ask
nothing about the input they explain. A linear fit to decisions on random halves of it (LIME), occlusion, which sees
probabilities, and gradients inside of the box do ask; where they come in several kinds, each measure takes the best.

Simulated: four binary outputs by exact inference in a random field, the target coupled to two of the others, whose
features are then its own: that each of them changes it, and no other, is checked. Real: a network that tells four
properties of a digit (even, at least 5, with a loop, prime) from 64 pixels; there the measure is how often the target
changes when only the kept pixels remain. Smaller than in the paper: networks of 64 units, few inputs to learn from.
The literal difference of the two energies has a gradient that ends in masks of irrelevant features: EnergyInterpreter
compares the true value with the exchanged one. Both energies find more than L2X; probabilities make them needless.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pullback import data, discrete, implicit
from pullback.lab import Arm, Lab, Measured, above, at_least, system


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    features: Annotated[int, at_least(12)] = 24
    """Of the simulated box; each output reads three."""
    couplings: Annotated[tuple[float, ...], at_least(0)] = (0.0, 1.0, 3.0)
    """Of the target with two other outputs, from none to strong."""
    inputs: Annotated[int, at_least(8)] = 250
    """Simulated inputs to learn from."""
    many: Annotated[int, at_least(8)] = 4000
    """The same, where they are many."""
    digits: Annotated[int, at_least(8)] = 1200
    """Images to learn from."""
    steps: Annotated[int, at_least(1)] = 400
    """Adam steps of each interpreter, batches of 128."""
    lr: Annotated[float, above(0)] = 1e-3
    """Step size of interpreters with an energy, the best of 0.0005, 0.001, 0.002, 0.003."""
    plain_lr: Annotated[float, above(0)] = 3e-4
    """Step size of the interpreter without, the best of 0.0001, 0.0003, 0.001, 0.003; its predictor's is twice that."""
    many_lr: Annotated[float, above(0)] = 1e-3
    """The same where inputs are many, and for digits."""
    maskings: Annotated[int, at_least(2)] = 200
    """Random halves of each input, for the linear fit."""
    pixels: Annotated[int, at_least(1)] = 8
    """Pixels of a digit that are kept."""
    box_steps: Annotated[int, at_least(1)] = 300
    """Adam steps of the network that reads digits."""
    test: Annotated[int, at_least(8)] = 500
    """Simulated inputs to explain."""
    replicates: Annotated[int, at_least(1)] = 2
    """Black boxes, inputs, initialisations and masks."""


METHODS = ("SOInter", "target alone", "no energy", "LIME", "occlusion", "gradient inside", "largest values")


class Problem(NamedTuple):
    """A black box, the inputs to learn from, those to explain, the output to explain, features to keep, a name."""

    box: Callable[[Tensor], Tensor]
    inputs: Tensor
    test: Tensor
    target: int
    k: int
    name: str


@system(
    "sointer",
    family="gradients",
    title="SOInter: A Novel Deep Energy Based Interpretation Method for Explaining Structured Output Models",
    paper="Seyyedsalehi, Soleymani, Rabiee, ICLR 2024, arXiv 2202.09914",
    config=Config,
    smoke={"couplings": (0.0, 3.0), "digits": 16, "steps": 2, "box_steps": 2, "test": 8, "replicates": 1},
    full={"features": 50, "steps": 10_000, "box_steps": 5000, "replicates": 5},
    data=("digits",),
    blocks=tuple(f"discrete.{b}" for b in ("EnergyInterpreter", "StructuredEnergy", "k_hot_sample", "mask_recovery")),
)
def run(lab: Lab, config: Config) -> None:
    """Recover known features under growing coupling, then explain a reader of digits."""
    lab.data("a random field with four outputs", origin="simulated")
    lab.data("UCI digits, 8 x 8, four properties", origin="real")
    arms = {name: lab.arm(name, baseline=name != "SOInter") for name in METHODS}
    right = True
    for _ in lab.replicates(config.replicates):
        few = [(f"coupling {c:g}", c, config.inputs) for c in config.couplings]
        for name, coupling, count in (*few, (f"{config.many} inputs", config.couplings[-1], config.many)):
            draw = lab.fork(f"field {coupling}")
            field = Field(config.features, coupling, draw)
            truth = field.features_of_target()
            test, inputs = (torch.randn(n, config.features, generator=draw) for n in (config.test, count))
            right = right and bool((_influence(field, config.features, draw) == truth).all())
            problem = Problem(field, inputs, test, 0, int(truth.sum()), name)
            for arm, masks in _explain(lab, config, arms, problem).items():
                found = max(discrete.mask_recovery(mask, truth).mean() for mask in masks)
                arms[arm].metric(f"recovery, {name}", found, better="higher")
                changes = min(_changes(problem, mask) for mask in masks)
                arms[arm].metric(f"changes, {name}", changes, better="lower", unit="%")
        problem = _digits(lab, config, arms["SOInter"])
        best = {}
        for arm, masks in _explain(lab, config, arms, problem).items():
            best[arm] = min(masks, key=lambda mask: float(_changes(problem, mask)))
            arms[arm].metric("changes, digits", _changes(problem, best[arm]), better="lower", unit="%")
    lab.claim("the features called true, and no others, change the target when drawn again", right, scale="smoke")
    _judge(lab, config, arms)
    _draw(lab, config, arms, {name: problem.test * mask for name, mask in best.items()}, problem.test)


class Field(nn.Module):
    """Marginals of ``p(y) ~ exp(2 sum_l s_l f_l(x) + 2 coupling s_0 (s_1 + s_2))`` by enumeration, ``s = 2 y - 1``.

    ``f_l`` is a weighted sum of three features of ``x`` and the product of two of them.
    """

    def __init__(self, features: int, coupling: float, draw: torch.Generator) -> None:
        super().__init__()
        self.places = torch.randperm(features, generator=draw)[:12].view(4, 3)
        self.weights = (0.7 + torch.rand(4, 3, generator=draw)) * torch.randn(4, 3, generator=draw).sign()
        self.values = torch.tensor(list(itertools.product((0.0, 1.0), repeat=4)))
        self.coupling, self.features = coupling, features

    def forward(self, x: Tensor) -> Tensor:
        """The probability of 1 of each output."""
        read = x[:, self.places]
        unary = 0.5 * (self.weights * read).sum(-1) + 2 * read[..., 0] * read[..., 1]
        signs = 2 * self.values - 1
        pairs = signs[:, 0] * (signs[:, 1] + signs[:, 2])
        return torch.softmax(2 * (unary @ signs.T + self.coupling * pairs), -1) @ self.values

    def features_of_target(self) -> Tensor:
        """Its own, and those of the outputs it is coupled to."""
        truth = torch.zeros(self.features, dtype=torch.bool)
        truth[self.places[: 3 if self.coupling else 1]] = True
        return truth


def _influence(field: Field, features: int, draw: torch.Generator) -> Tensor:
    """Whether drawing a feature again changes the decision on the target for at least 1 in 500 of 1 000 inputs."""
    x = torch.randn(1000, features, generator=draw)
    before, found = field(x)[:, 0] > 0.5, []
    for i in range(features):
        again = torch.where(torch.arange(features) == i, torch.randn(1000, 1, generator=draw), x)
        found.append(((field(again)[:, 0] > 0.5) != before).float().mean() >= 0.002)
    return torch.stack(found)


def _digits(lab: Lab, config: Config, arm: Arm) -> Problem:
    """A network that tells four properties of a digit, and the images to explain."""
    train, test = data.digits("train"), data.digits("test")
    x, labels = train.images.flatten(1), train.labels
    groups = ((0, 2, 4, 6, 8), (5, 6, 7, 8, 9), (0, 6, 8, 9), (2, 3, 5, 7))
    properties = torch.stack([torch.isin(labels, torch.tensor(group)) for group in groups], 1).float()
    with arm.weights("box"):
        box = nn.Sequential(_network(64, 4), nn.Sigmoid())
    optimizer, batches = torch.optim.Adam(box.parameters(), lr=3e-3), lab.fork("batches of the box")
    for _ in arm.steps(config.box_steps, box, optimizer, batches, name="box"):
        chosen = torch.randint(len(x), (128,), generator=batches)
        arm.descend(F.binary_cross_entropy(box(x[chosen]), properties[chosen]), optimizer, name="loss, box")
    box.requires_grad_(False)
    few = x[torch.randperm(len(x), generator=batches)[: config.digits]]
    return Problem(box, few, test.images.flatten(1), 2, config.pixels, "digits")


def _explain(lab: Lab, config: Config, arms: dict[str, Arm], problem: Problem) -> dict[str, list[Tensor]]:
    """The ``k`` features of each test input that every method keeps, by each kind of its scores."""
    box, _, test, target, k, name = problem
    here, inside = (lambda x: box(x)[:, target : target + 1]), test.clone().requires_grad_()
    present, outputs = here(test), box(test).shape[1]
    sign = torch.where(present > 0.5, 1.0, -1.0)
    drop = present - torch.cat([here(test * (torch.arange(test.shape[1]) != i)) for i in range(test.shape[1])], 1)
    kept = torch.rand(config.maskings, *test.shape, generator=lab.fork(f"halves, {name}")) < 0.5
    same = torch.stack([(here(test * mask) > 0.5) == (present > 0.5) for mask in kept], 1).float()
    fit = implicit.linear_least_squares(kept.movedim(0, 1).float() - 0.5, (same - same.mean(1, True))[..., 0]).value
    (slope,) = torch.autograd.grad(torch.logit(here(inside), eps=1e-6).sum(), inside)
    scores = {
        "SOInter": [_with_energy(lab, config, arms["SOInter"], problem, box, outputs, target)],
        "target alone": [_with_energy(lab, config, arms["target alone"], problem, here, 1, 0)],
        "no energy": [_without_energy(lab, config, arms["no energy"], problem)],
        "LIME": [fit, fit.abs()],
        "occlusion": [drop * sign, drop.abs()],
        "gradient inside": [slope.abs(), (slope * test).abs(), slope * test * sign],
        "largest values": [test.abs()],
    }
    return {method: [_largest(score, k) for score in scores[method]] for method in METHODS}


def _largest(scores: Tensor, k: int) -> Tensor:
    return torch.zeros_like(scores).scatter(1, scores.topk(k, 1).indices, 1.0) > 0


def _changes(problem: Problem, mask: Tensor) -> Tensor:
    """In how many per cent of the cases the target changes when only the kept features remain."""
    shown, whole = (problem.box(x)[:, problem.target] > 0.5 for x in (problem.test * mask, problem.test))
    return 100 * (shown != whole).float().mean()


def _network(inputs: int, outputs: int) -> nn.Module:
    layers = (nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, outputs))
    return nn.Sequential(*layers)


def _with_energy(lab: Lab, config: Config, arm: Arm, problem: Problem, box: Any, outputs: int, target: int) -> Tensor:
    draw, n = lab.fork(f"masks, {problem.name}"), problem.test.shape[1]
    interpreter = discrete.EnergyInterpreter(box, n, outputs, target, problem.k, lr=config.lr, generator=draw)
    state = (interpreter, interpreter.optimizer, interpreter.energy_optimizer, draw)
    for step in arm.steps(config.steps, *state, name=problem.name):
        temperature = max(0.1, 1 - step / config.steps)
        x = problem.inputs[torch.randint(len(problem.inputs), (128,), generator=draw)]
        teaching, missing = interpreter.step(x, temperature=temperature, hard=True)
        arm.record(f"energy loss, {problem.name}", teaching)
        arm.record(f"loss, {problem.name}", missing)
    return interpreter.explain(problem.test).scores


def _without_energy(lab: Lab, config: Config, arm: Arm, problem: Problem) -> Tensor:
    """Scores of an interpreter that is trained with a predictor of the target from the masked input (L2X)."""
    draw, n = lab.fork(f"masks, {problem.name}"), problem.test.shape[1]
    with arm.weights(problem.name):
        scorer, predictor = _network(n, n), _network(n, 1)
    lr = config.plain_lr if problem.name.startswith("coupling") else config.many_lr
    taught: dict[str, Any] = {"params": predictor.parameters(), "lr": 2 * lr}
    optimizer = torch.optim.Adam([{"params": scorer.parameters()}, taught], lr=lr)
    for step in arm.steps(config.steps, scorer, predictor, optimizer, draw, name=problem.name):
        x = problem.inputs[torch.randint(len(problem.inputs), (128,), generator=draw)]
        temperature = max(0.1, 1 - step / config.steps)
        with torch.no_grad():
            true = (problem.box(x)[:, problem.target] > 0.5).float()
        mask = discrete.k_hot_sample(scorer(x), problem.k, temperature=temperature, hard=True, generator=draw)
        loss = F.binary_cross_entropy_with_logits(predictor(x * mask)[:, 0], true)
        arm.descend(loss, optimizer, name=f"loss, {problem.name}")
    with torch.no_grad():
        return scorer(problem.test)


def _judge(lab: Lab, config: Config, arms: dict[str, Arm]) -> None:
    ours, single, plain, fit, occlusion, _, largest = (arms[name] for name in METHODS)
    few = [f"coupling {coupling:g}" for coupling in config.couplings]

    def mean(arm: Arm, what: str) -> Measured:
        return sum((arm[f"{what}, {name}"] for name in few[1:]), arm[f"{what}, {few[0]}"]) / len(few)

    lab.claim(
        "few inputs, over all couplings: SOInter finds at least 0.05 more of the target's true features than the "
        "interpreter without energy, and the target changes in at most 0.8 times as many cases",
        mean(ours, "recovery") >= mean(plain, "recovery") + 0.05,
        mean(ours, "changes") <= 0.8 * mean(plain, "changes"),
    )
    lab.claim(
        "few inputs, over all couplings: an energy of the target alone, which sees no other output, is within 0.06",
        abs(mean(ours, "recovery") - mean(single, "recovery")) <= 0.06,
    )
    lab.claim(
        f"strong coupling: from few inputs SOInter finds at least 0.1 more than a linear fit to {config.maskings} "
        "decisions about each input, and from many at least 0.95",
        ours[f"recovery, {few[-1]}"] >= fit[f"recovery, {few[-1]}"] + 0.1,
        ours[f"recovery, {config.many} inputs"] >= 0.95,
    )
    lab.claim(
        "no coupling: SOInter finds not less than the interpreter without energy less 0.05, and at least 0.8",
        ours[f"recovery, {few[0]}"] >= plain[f"recovery, {few[0]}"] - 0.05,
        ours[f"recovery, {few[0]}"] >= 0.8,
    )
    lab.claim(
        "with probabilities no interpreter is needed: occlusion finds at least 0.9 at every coupling, and the target "
        "changes in at most 1 % of the cases, of digits too",
        *(occlusion[f"recovery, {name}"] >= 0.9 for name in few),
        *(occlusion[f"changes, {name}"] <= 1 for name in (*few, "digits")),
    )
    lab.claim(
        "digits: with the kept pixels alone the target changes at most half as often as with the brightest",
        ours["changes, digits"] <= 0.5 * largest["changes, digits"],
    )


def _draw(lab: Lab, config: Config, arms: dict[str, Arm], shown: dict[str, Tensor], digits: Tensor) -> None:
    figure, axis = lab.subplots(figsize=(5, 3.4))
    for name, arm in arms.items():
        values = [arm[f"recovery, coupling {coupling:g}"] for coupling in config.couplings]
        look = {"marker": "o", "capsize": 3, "color": arm.colour, "label": name}
        axis.errorbar(config.couplings, values, [value.spread or 0.0 for value in values], **look)
    axis.set(xlabel="coupling of the target", ylabel="true features found", ylim=(0, 1.03))
    axis.legend(fontsize=7, ncols=2, loc="lower right")
    lab.figure("recovery", figure, "Share of the true features that are kept, few inputs; mean and spread.")
    rows = {name: list(x[:6].view(-1, 8, 8)) for name, x in {"digit": digits, **shown}.items()}
    lab.images(rows, name="masks", caption="Pixels that are kept to tell whether a digit has a loop, last replicate.")
