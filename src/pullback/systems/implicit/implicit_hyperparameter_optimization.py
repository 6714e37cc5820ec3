"""Millions of hyperparameters tuned at once, by the gradient of the validation loss through training.

Trained weights answer the hyperparameters implicitly: dw/dx = -H^-1 D_xw loss, with the Hessian H of the training loss.
A product with H^-1 is a Neumann series of products with H, and cut off after i terms it is what unrolling the last i
training steps would give, without keeping them. So training and tuning run side by side: some steps on the weights,
one on the hyperparameters (Lorraine, Vicol, Duvenaud, AISTATS 2020, arXiv 1911.02590).

Smaller than in the paper: digits of 8 x 8 pixels, an MLP of 100 000 weights (each with its own decay) instead of
ResNets, and an augmentation network that makes a 3 x 3 kernel of noise for each image instead of a U-Net. All digits
are real. For the augmentation, those for validation and test are displaced by up to one pixel, by us, and those for
training are not: this it has to learn. Displacing at random, for who knows, does better and is shown as the ceiling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy, one_hot, unfold

from pullback import data
from pullback.implicit import BilevelDescent, BilevelProblem, hypergradient, inverse_hessian_product, minimize
from pullback.lab import Arm, Lab, above, at_least, system

CAP = 0.1
"""The largest decay of a weight: with it the step size of the weights stays a stable one."""
TERMS = (1, 2, 5, 10, 20, 50, 100, 300)
"""Lengths of the series that are studied."""


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    decays: tuple[Annotated[float, above(0)], ...] = (1e-1, 1e-2, 1e-3)
    """Decays of the logistic regression on which the inverse Hessian is studied."""
    few: Annotated[int, at_least(10)] = 50
    """Training, and as many validation images, of the MLP with a decay a weight."""
    decay_steps: Annotated[int, at_least(1)] = 80
    """Outer steps on these decays, each after ten steps on the weights."""
    draws: Annotated[int, at_least(1)] = 8
    """Single decays that random search tries, each with as many steps on the weights."""
    inner_steps: tuple[Annotated[int, at_least(1)], ...] = (10, 30, 100)
    """Inner steps at which memory is measured."""
    labels: Annotated[int, at_least(20)] = 200
    """Labels for the augmentation, half of them for validation."""
    augmentation_steps: Annotated[int, at_least(1)] = 150
    """Outer steps on the augmentation network; four times as many steps in each final training with a fixed one."""
    replicates: Annotated[int, at_least(1)] = 3
    """Choices of images and initial weights."""


@system(
    "implicit-hyperparameter-optimization",
    family="implicit",
    title="Optimizing Millions of Hyperparameters by Implicit Differentiation",
    paper="Lorraine, Vicol, Duvenaud, AISTATS 2020, arXiv 1911.02590",
    config=Config,
    smoke={"decays": (1e-2,), "few": 10, "decay_steps": 2, "draws": 1}
    | {"labels": 20, "augmentation_steps": 2, "replicates": 1, "inner_steps": (2, 4)},
    full={"decay_steps": 1000, "draws": 50, "labels": 1000, "augmentation_steps": 2000},
    data=("digits",),
    blocks=("implicit.hypergradient", "implicit.inverse_hessian_product", "implicit.BilevelDescent"),
)
def run(lab: Lab, config: Config) -> None:
    """Study the inverse Hessian, tune a decay a weight, measure what that costs, learn an augmentation."""
    lab.data("UCI digits, 1 797 images of 8 x 8", origin="real")
    lab.data("the same, displaced by up to one pixel (augmentation: validation and test)", origin="real")
    series, identity = lab.arm("Neumann series"), lab.arm("T1-T2", baseline=True)
    _inverse(lab, config, series)
    untuned, search = (lab.arm(name, baseline=True) for name in ("no tuning", "random search, one decay"))
    series.metric("hyperparameters", 1.0 * sum(v.numel() for v in _Decays(lab, config, series).x.values()))
    for _ in lab.replicates(config.replicates):
        _decays(lab, config, series, identity, untuned, search)
    loss = "validation loss"
    lab.claim(
        "with more than 100 000 decays, one a weight, every validation image is read rightly, and the validation loss "
        "is at most a tenth of that without tuning and of that of the best single decay",
        series["hyperparameters"] > 1e5,
        min(series["validation accuracy"].values) == 100,
        series[loss] <= 0.1 * untuned[loss],
        series[loss] <= 0.1 * search[loss],
    )
    statement = "it is at most 0.7 of what twice as many steps with the identity as inverse (T1-T2) leave"
    lab.claim(statement, series[loss] <= 0.7 * identity[loss])
    lab.curves(loss, log=True, xlabel="outer step", caption="On the images that the decays are tuned on.")
    _cost(lab, config, series)
    names = ("learned augmentation", "no augmentation", "Gaussian noise, best of 3", "random displacements (known)")
    arms = [lab.arm(name, baseline=name != names[0]) for name in names]
    for _ in lab.replicates(config.replicates):
        _augmentation(lab, config, arms)
    ours, none, noise, _ = (arm["displaced test accuracy"] for arm in arms)
    lab.claim(
        "trained on 200 labels, all used in the end, the learned augmentation reads at least 10 points more of the "
        "displaced test images than none, and 5 more than noise whose level is the best of three on the test images",
        *(ours >= none + 10, ours >= noise + 5),
    )
    lab.bars("displaced test accuracy", caption="Trained on half of them displaced. The last knows how: a ceiling.")


def _inverse(lab: Lab, config: Config, series: Arm) -> None:
    """Compare products with the inverse Hessian of a logistic regression with the exact ones."""
    digits = data.digits("train")
    order = torch.randperm(len(digits.labels), generator=lab.fork("inverse"))
    images = torch.cat([digits.images.flatten(1), torch.ones(len(digits.labels), 1)], 1)[order].double()
    (train, valid), (labels, wanted) = (t.tensor_split(2) for t in (images, digits.labels[order]))

    def lower(w: Tensor, decay: float) -> Tensor:
        return cross_entropy(train @ w, labels) + decay * (w**2).sum() / 2

    for decay in config.decays:
        objective, name = partial(lower, decay=decay), f"cosine, decay {decay:g}"
        w = minimize(objective, images.new_zeros(65, 10), tolerance=1e-4, max_iterations=5000, check=True).value
        slope = valid.T @ (torch.softmax(valid @ w, -1) - one_hot(wanted, 10)) / len(valid)
        p = torch.softmax(train @ w, -1)  # the Hessian has a closed form
        spread = (torch.diag_embed(p) - p[:, :, None] * p[:, None]) / len(p)
        hessian = torch.einsum("ni,nj,ncd->icjd", train, train, spread).reshape(650, 650) + decay * torch.eye(650)
        exact = torch.linalg.solve(hessian, slope.flatten())
        product = partial(inverse_hessian_product, objective, w, slope, scale=1.0)
        for terms in TERMS:
            value = cosine_similarity(product(terms=terms).value.flatten(), exact, 0)
            series.record(name, value, step=terms)
            if terms in (1, 20, 300):
                series.metric(f"{name}, {terms} terms", value, better="higher")
        if decay == 1e-2:
            lab.claim(
                "at decay 0.01 and scale 1 the product's cosine to the exact one is at most 0.9 of the identity, at "
                "least 0.92 with 20 terms and 0.999 with 300 (with less decay it takes more: see the figure)",
                series[f"{name}, 1 terms"] <= 0.9,
                series[f"{name}, 20 terms"] >= 0.92,
                series[f"{name}, 300 terms"] >= 0.999,
            )
    zero = torch.zeros_like(exact)  # a quadratic whose minimum x moves; the outer objective is linear
    at = partial(hypergradient, lambda x, w: slope.flatten() @ w, lambda x, w: w @ hessian @ w / 2 - x @ w, zero, zero)
    steps = at(method="unrolled", steps=20, scale=0.5).gradient
    off = (at(terms=20, scale=0.5).gradient - steps).norm() / steps.norm()
    lab.claim("at the minimum of a quadratic i terms are i unrolled steps, to 1e-6", off <= 1e-6, scale="smoke")
    caption = "Of the Neumann product to the exact one; one term is the identity."
    lab.curves(*(f"cosine, decay {decay:g}" for decay in config.decays), arms=[series], xlabel="terms", caption=caption)


class _Decays:
    """A network that learns from a few images, with one decay for each of its weights, judged by as many others."""

    def __init__(self, lab: Lab, config: Config, arm: Arm) -> None:
        digits, few = data.digits("train"), config.few
        order = torch.randperm(len(digits.labels), generator=lab.fork("decays"))[: 2 * few]
        self.images, self.valid = digits.images.flatten(1)[order].split(few)
        self.labels, self.wanted = digits.labels[order].split(few)
        with arm.weights():
            self.net = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 128), nn.ReLU(), nn.Linear(128, 10))
        self.x = {name: torch.full_like(w, -4.0) for name, w in self.net.named_parameters()}
        self.inner = torch.optim.SGD(self.net.parameters(), lr=0.1)
        self.outer = torch.optim.RMSprop(self.x.values(), lr=0.3)

    def upper(self, x: dict[str, Tensor], net: nn.Module) -> Tensor:
        return cross_entropy(net(self.valid), self.wanted)

    def lower(self, x: dict[str, Tensor], net: nn.Module) -> Tensor:
        decay = sum((torch.sigmoid(x[name]) * w**2).sum() for name, w in net.named_parameters())
        return cross_entropy(net(self.images), self.labels) + CAP * decay / 2

    def descent(self, inner_steps: int = 10, **options: Any) -> BilevelDescent:
        return BilevelDescent(
            BilevelProblem(self.upper, self.lower, self.x, self.net),
            hypergradient=partial(hypergradient, scale=0.1, **options),
            outer_optimizer=self.outer,
            inner_optimizer=self.inner,
            inner_steps=inner_steps,
        )

    @torch.no_grad()
    def report(self, arm: Arm) -> None:
        arm.metric("validation loss", self.upper(self.x, self.net), better="lower")
        test = data.digits("test")
        for name, images, labels in (("validation", self.valid, self.wanted), ("test", test.images, test.labels)):
            right = (self.net(images.flatten(1)).argmax(1) == labels).double().mean()
            arm.metric(f"{name} accuracy", 100 * right, better="higher", unit="%")


def _decays(lab: Lab, config: Config, series: Arm, identity: Arm, untuned: Arm, search: Arm) -> None:
    """Tune one decay a weight by two hypergradients, and try what one decay for all can do."""
    # A step with the identity takes about half the time of one with ten terms.
    for arm, steps, options in ((series, 1, {"terms": 10}), (identity, 2, {"method": "identity"})):
        problem = _Decays(lab, config, arm)
        descent = problem.descent(**options)
        state = (problem.x, problem.net, problem.outer, problem.inner)
        for _ in arm.steps(steps * config.decay_steps, *state, name="decays"):
            arm.record("validation loss", descent.step().upper)
        problem.report(arm)
    chances = 10 ** (-5 + 4 * torch.rand(config.draws, generator=lab.fork("random search")))
    tried = []
    for draw, decay in enumerate([0.0, *chances.tolist()]):
        arm, problem = search if draw else untuned, _Decays(lab, config, search)
        problem.inner.param_groups[0]["weight_decay"] = decay
        for _ in arm.steps(10 * config.decay_steps, problem.net, problem.inner, name=f"draw {draw}"):
            loss = cross_entropy(problem.net(problem.images), problem.labels)
            arm.descend(loss, problem.inner, name=f"training loss, draw {draw}")
        tried.append(problem)
    tried[0].report(untuned)
    min(tried, key=lambda p: p.upper(p.x, p.net).item()).report(search)


def _cost(lab: Lab, config: Config, series: Arm) -> None:
    """Measure memory against inner steps, and the time of a joint step."""
    unrolled, problem = lab.arm("unrolled", baseline=True), _Decays(lab, config, series)
    upper, lower, x, net = problem.upper, problem.lower, problem.x, problem.net
    ours, theirs = [], []
    for steps in config.inner_steps:
        joint = problem.descent(steps, terms=10).step
        through = partial(hypergradient, upper, lower, x, net, method="unrolled", steps=steps, scale=0.1)
        ours.append(lab.peak_memory(joint, of=series.name))
        theirs.append(lab.peak_memory(through, of=unrolled.name))
    memory = {series.name: ours, unrolled.name: theirs}
    lab.scaling(config.inner_steps, memory, name="memory", xlabel="inner steps", ylabel="memory / bytes")
    statement = "from 10 to 100 inner steps memory stays the same within 1 %, that of unrolling grows at least fivefold"
    lab.claim(statement, abs(ours[-1] / ours[0] - 1) <= 0.01, theirs[-1] >= 5 * theirs[0])

    def plain() -> None:
        for _ in range(10):
            problem.inner.zero_grad()
            lower(x, net).backward()
            problem.inner.step()

    race = lab.race({"joint": problem.descent(terms=10).step, "plain": plain}, rounds=5, seconds=0.02)
    statement = "ten training steps and one on the hyperparameters (ten terms) take at most 4 times ten training steps"
    lab.claim(statement, race.ratio("joint", "plain") <= 4)


class _NoiseKernel(nn.Module):
    """Convolves each image with a 3 x 3 kernel, positive with sum 1, that a small network makes of noise."""

    def __init__(self, stream: torch.Generator) -> None:
        super().__init__()
        self.stream = stream
        self.net = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 9))
        with torch.no_grad():
            self.net[-1].get_parameter("bias").zero_()[4] = 2.0  # begins near the identity

    def forward(self, images: Tensor) -> Tensor:
        noise = torch.randn(len(images), 8, generator=self.stream)
        return _convolved(images, torch.softmax(self.net(noise), -1))


def _convolved(images: Tensor, kernels: Tensor) -> Tensor:
    return (kernels[:, None] @ unfold(images[:, None], 3, padding=1)).view_as(images)


def _displaced(images: Tensor, stream: torch.Generator) -> Tensor:
    return _convolved(images, torch.eye(9)[torch.randint(9, (len(images),), generator=stream)])


def _augmentation(lab: Lab, config: Config, arms: Sequence[Arm]) -> None:
    """Learn an augmentation from displaced validation images, then train anew with it on all labels."""
    ours, stream, noise = arms[0], lab.fork("displacements"), lab.fork("noise")
    digits, test, half = data.digits("train"), data.digits("test"), config.labels // 2
    order = torch.randperm(len(digits.labels), generator=stream)[: 2 * half]
    (train, valid), (labels, wanted) = digits.images[order].split(half), digits.labels[order].split(half)
    valid, unseen = _displaced(valid, stream), _displaced(test.images, stream)

    def classifier() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))

    def lower(x: nn.Module, net: nn.Module) -> Tensor:
        return cross_entropy(net(x(train)), labels) + 1e-2 * sum((w**2).sum() for w in net.parameters()) / 2

    with ours.weights("augmentation"):
        learned, net = _NoiseKernel(noise), classifier()
    outer, inner = torch.optim.Adam(learned.parameters(), lr=0.05), torch.optim.SGD(net.parameters(), 0.02, 0.9)
    descent = BilevelDescent(
        BilevelProblem(lambda x, net: cross_entropy(net(valid), wanted), lower, learned, net),
        hypergradient=partial(hypergradient, method="cg", terms=10, damping=0.1),
        outer_optimizer=outer,
        inner_optimizer=inner,
        inner_steps=10,
    )
    for _ in ours.steps(config.augmentation_steps, learned, net, outer, inner, noise, name="augmentation"):
        ours.record("displaced validation loss", descent.step().upper)
    shown = {"image": list(train[:6]), "augmented": list(learned(train[:6]).detach())}
    lab.images(shown, name="augmentation", caption="Of the last replicate.")

    def fit(arm: Arm, augment: Callable[[Tensor], Tensor], number: int) -> float:
        with arm.weights("fit"):
            net = classifier()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
        images, both = torch.cat([train, valid]), torch.cat([labels, wanted])
        for _ in arm.steps(4 * config.augmentation_steps, net, optimizer, noise, name=f"fit {number}"):
            arm.descend(cross_entropy(net(augment(images).detach()), both), optimizer, name=f"final training {number}")
        return 100 * (net(unseen).argmax(1) == test.labels).double().mean().item()

    levels = [lambda images, a=a: images + a * torch.randn(images.shape, generator=noise) for a in (0.1, 0.2, 0.4)]
    choices: list[Sequence[Any]] = [[learned], [nn.Identity()], levels, [partial(_displaced, stream=noise)]]
    for arm, augments in zip(arms, choices, strict=True):
        best = max(fit(arm, augment, number) for number, augment in enumerate(augments))
        arm.metric("displaced test accuracy", best, better="higher", unit="%")
