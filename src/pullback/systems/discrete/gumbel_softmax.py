"""A category as a softmax of noisy logits: low temperatures are nearly discrete, high ones have smooth gradients.

The argmax of logits with Gumbel noise is an exact draw of a category; its softmax, the Gumbel-Softmax sample, has a
derivative. Temperature trades bias against variance; with the hard sample forward it is ST-Gumbel (Jang, Gu, Poole,
ICLR 2017, arXiv 1611.01144).

The density and the trade are checked against quadrature, torch and enumeration. Then the paper's experiments with 20
ten-way categories: the lower half of a digit from its upper half, an autoencoder, and one that learns from few labels,
whose unknown label is drawn in one pass instead of summed over in ten. Smaller than in the paper: 5 000 real digits
(MNIST, 14 x 14 pixels, binarised, grey with few labels), one layer of categories, 400 steps.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from pullback import data, discrete
from pullback.lab import Arm, Lab, above, at_least, system

METHODS = {"Gumbel-Softmax": "gumbel_softmax", "ST-Gumbel": "gumbel", "straight-through": "straight_through"}
METHODS |= {"MuProp": "muprop", "score function": "score_function"}


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    functions: Annotated[int, at_least(2)] = 40
    """Random functions whose gradient is estimated."""
    estimates: Annotated[int, at_least(2)] = 4000
    """Estimates of each, at each temperature."""
    numbers: Annotated[int, at_least(100)] = 10_000_000
    """Gumbel draws that are looked at for numbers that are not finite; a tenth of them for their frequencies."""
    code: tuple[Annotated[int, at_least(1)], Annotated[int, at_least(2)]] = (20, 10)
    """Categories of the code, and classes of each."""
    steps: Annotated[int, at_least(1)] = 400
    """Adam steps of each stochastic network."""
    temperatures: tuple[Annotated[float, above(0)], ...] = (0.5, 1.0)
    """Choices in the completion of digits, for the estimators that have one."""
    lrs: tuple[Annotated[float, above(0)], ...] = (1e-2, 3e-2)
    """Step sizes of Adam, chosen with the temperature on held-out images after a third of the steps; else the first."""
    batch: Annotated[int, at_least(1)] = 100
    """Images a step."""
    shrink: Annotated[int, at_least(1)] = 2
    """Factor by which images are made smaller."""
    samples: Annotated[int, at_least(1)] = 100
    """Draws of the code in the bound of the test."""
    label_steps: Annotated[int, at_least(1)] = 600
    """Adam steps with few labels."""
    labels: Annotated[int, at_least(1)] = 20
    """Labels of each class."""
    weight: Annotated[float, above(0)] = 20.0
    """Of the cross entropy of the labels, against the bound in nats."""
    cost_classes: Annotated[tuple[int, ...], at_least(2)] = (5, 10, 20, 50, 100)
    """Numbers of labels whose step is timed."""
    replicates: Annotated[int, at_least(1)] = 2
    """Initialisations and batch streams."""


@system(
    "gumbel-softmax",
    family="discrete",
    title="Categorical Reparameterization with Gumbel-Softmax",
    paper="Jang, Gu, Poole, ICLR 2017, arXiv 1611.01144",
    config=Config,
    smoke={"functions": 2, "estimates": 50, "numbers": 20_000, "code": (2, 3), "steps": 1, "lrs": (1e-2,)}
    | {"temperatures": (1.0,), "batch": 10, "samples": 2, "label_steps": 1, "cost_classes": (2, 3), "replicates": 1},
    full={"steps": 1_000_000, "samples": 1000, "label_steps": 100_000, "lrs": (1e-3, 3e-4), "shrink": 1},
    data=("mnist",),
    takes_data="a folder with the MNIST files in IDX format",
    blocks=(
        "discrete.gumbel_softmax",
        "discrete.RelaxedOneHot",
        "discrete.estimator_statistics",
        "discrete.RunningBaseline",
        "discrete.CategoricalBottleneck",
        "discrete.DiscreteVAE",
        "discrete.SemiSupervisedVAE",
        "discrete.temperature_schedule",
    ),
)
def run(lab: Lab, config: Config) -> None:
    """Check the law, measure bias against variance, complete digits, encode them, learn from few labels."""
    arms = {name: lab.arm(name, baseline="Gumbel" not in name) for name in METHODS}
    lab.data("MNIST, binarised or grey", origin="real")
    _law(lab, config.numbers // 10)
    _temperatures(lab, config)
    _numbers(lab, config)
    _networks(lab, config, arms)
    _few_labels(lab, config)
    _cost(lab, config)


def _law(lab: Lab, draws: int) -> None:
    logits, axis = torch.tensor([0.5, -1.0, 0.3]).double(), torch.linspace(-45, 45, 301).double()
    grid = torch.cartesian_prod(axis, axis)
    log_y = torch.log_softmax(torch.cat([grid, torch.zeros_like(grid[:, :1])], 1), 1)
    off, errors = [], []
    for t in (0.3, 0.5, 1.0, 2.0):
        law = discrete.RelaxedOneHot(logits, t)
        # In log-ratios of the entries an area of the simplex is their product.
        mass = (law.log_prob(log_y, log=True) + log_y.sum(1)).exp().sum() * axis.diff()[0] ** 2
        off.append(abs(float(mass) - 1))
        y = law.sample((1000,), generator=lab.fork("density")).clamp(min=1e-12)
        theirs = torch.distributions.RelaxedOneHotCategorical(torch.tensor(t).double(), logits=logits)
        errors.append(float((law.log_prob(y) - theirs.log_prob(y)).abs().max()))
    drawn = discrete.RelaxedOneHot(logits, 0.5).sample((draws,), generator=lab.fork("frequencies")).argmax(-1)
    expected = draws * logits.softmax(-1)
    chance = float(torch.exp(-((drawn.bincount() - expected) ** 2 / expected).sum() / 2))  # of two degrees of freedom
    lab.claim(
        "three classes, temperatures .3 to 2: the density integrates to 1 within 1e-4 and is torch's within 1e-6; the "
        f"largest entries of {draws:,} samples occur as often as softmax(logits) says (chi-square p > .001)",
        max(off) <= 1e-4 and max(errors) <= 1e-6 and chance > 1e-3,
        scale="smoke",
        **{"mass less 1": max(off), "difference to torch": max(errors), "chi-square p": chance},
    )


def _temperatures(lab: Lab, config: Config) -> None:
    """Bias and variance of one sample, against the exact gradient, over random functions of six classes."""
    swept, stream = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0), lab.fork("functions")
    biases, variances = torch.zeros(2, len(swept), config.functions, dtype=torch.float64)
    for number in range(config.functions):
        w, b, v, logits = (torch.randn(s, generator=stream).double() for s in ((6, 10), (10,), (10,), (6,)))
        f = partial(lambda w, b, v, d: torch.tanh(d @ w + b) @ v, w, b, v)
        for place, t in enumerate(swept):
            options: dict[str, Any] = {"samples": config.estimates, "temperature": t, "generator": stream}
            error = discrete.estimator_statistics("gumbel_softmax", f, logits, **options)
            biases[place, number], variances[place, number] = error.relative_bias, error.relative_variance
    # Paired over functions, in standard errors.
    steps = [part.diff(dim=0) for part in (biases[2:], -variances[:5])]
    rises, falls = (float((step.mean(1) / step.std(1) * config.functions**0.5).min()) for step in steps)
    lab.claim(
        "random tanh functions: between the temperatures .1, .2, .5, 1, 2 the variance falls, between .5, 1, 2, 5 the "
        "squared bias rises, each by more than 3 standard errors; at .1 it is at most 1 % of the squared gradient",
        min(rises, falls) > 3 and float(biases[0].mean()) <= 0.01,
        **{"least rise": rises, "least fall": falls, "squared bias at .1": float(biases[0].mean())},
    )
    figure, (left, right) = lab.subplots(1, 2)
    left.plot(swept, biases.mean(1), marker="o", label="squared bias")
    left.plot(swept, variances.mean(1), marker="o", label="variance")
    left.set(xscale="log", yscale="log", xlabel="temperature", ylabel="over the squared gradient")
    left.legend()
    shown, p = (0.1, 0.5, 1.0, 10.0), torch.tensor([0.1, 0.2, 0.05, 0.3, 0.35])
    for row, t in enumerate(shown):
        y = 0.8 * discrete.RelaxedOneHot(p.log(), t).sample((4,), generator=lab.fork("shown"))
        places, colour = torch.arange(4)[:, None] + 0.15 * torch.arange(5), lab.colour(f"temperature {t:g}")
        right.bar(places.flatten().tolist(), y.flatten().tolist(), 0.12, bottom=-row, color=colour)
    right.set(xticks=[], yticks=[0.3 - row for row in range(4)], yticklabels=[f"{t:g}" for t in shown])
    right.set(ylabel="temperature", xlabel="four samples of five classes")
    lab.figure("temperature", figure, "Bias and variance, means over the functions; samples at four temperatures.")


def _numbers(lab: Lab, config: Config) -> None:
    """Draws that are not finite, ours and torch's, in single and half precision, at a low temperature and at none."""
    lost, kinds = dict[tuple[str, str], Any](), ((torch.float32, 0.5), (torch.float16, 1e-4), (torch.float32, 0.0))
    for name, (dtype, t) in itertools.product(("pullback", "torch"), kinds):
        logits = torch.zeros(config.numbers // 100, 100, dtype=dtype, requires_grad=True)
        arm = lab.arm(f"{name}'s sampler", baseline=name == "torch")
        with arm.weights():  # seeds the generator of torch, from which its sampler draws
            ours = name == "pullback"
            y = discrete.gumbel_softmax(logits, temperature=t) if ours else nn.functional.gumbel_softmax(logits, tau=t)
        (slope,) = torch.autograd.grad(y[:, 0].float().sum(), logits)
        bad = ~(y.isfinite().all(1) & slope.isfinite().all(1))
        key = f"rows with NaN, {dtype}, temperature {t:g}".replace("torch.", "")
        lost[name, key] = arm.metric(key, 100 * bad.float().mean(), better="lower", unit="%")
    lab.claim(
        f"{config.numbers:,} draws in rows of 100 in single precision, in half precision at temperature 1e-4, and at "
        "temperature 0: no value and no gradient is NaN or infinite; of torch's rows some are at the last two each",
        *(share == 0 for share in list(lost.values())[:3]),
        *(share > 0 for share in list(lost.values())[4:]),
        scale="smoke",
    )


def _pixels(lab: Lab, shrink: int, grey: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Digits ``[n, pixels]``, binarised or grey: for training, for choosing temperatures, and of the test."""
    sets = [data.mnist(split, path=lab.data_path).images.unsqueeze(1) for split in ("train", "test")]
    train, test = (nn.functional.avg_pool2d(images, shrink).flatten(1).to(lab.device) for images in sets)
    parts = (train[:-500], train[-500:], test)
    return parts if grey else tuple((part > 0.5).float() for part in parts)  # type: ignore[return-value]


def _networks(lab: Lab, config: Config, arms: dict[str, Arm]) -> None:
    """Lower halves of digits from upper ones, with a fixed temperature; an autoencoder, with one that falls."""
    train, validation, test = _pixels(lab, config.shrink)
    half = train.shape[1] // 2

    def fit(arm: Arm, name: str, model: Any, temperature: Any, lr: float, steps: int) -> Any:
        fair = discrete.RunningBaseline(0.69 * model.outputs)  # starts at the loss of fair coins
        model.to(lab.device).estimator = fair if arm.name == "score function" else METHODS[arm.name]
        optimizer, stream = torch.optim.Adam(model.parameters(), lr=lr), lab.fork(f"batches of {name}")
        for step in arm.steps(steps, model, optimizer, stream, name=name):
            model.temperature = temperature(step)
            x = train[torch.randint(len(train), (config.batch,), generator=stream)]
            encodes = isinstance(model, discrete.DiscreteVAE)
            loss = partial(model.negative_elbo, x) if encodes else partial(model.loss, x[:, :half], x[:, half:])
            arm.descend(loss(generator=stream).mean(), optimizer, name=f"loss, {name}")
        return model.eval()

    def complete(arm: Arm, name: str, t: float, lr: float, steps: int) -> discrete.CategoricalBottleneck:
        with arm.weights(name):
            model = discrete.CategoricalBottleneck(half, *config.code, half)
        return fit(arm, name, model, discrete.temperature_schedule(t, t, 0.0), lr, steps)

    def bound(model: discrete.CategoricalBottleneck, x: Tensor) -> Tensor:
        options: dict[str, Any] = {"samples": config.samples, "generator": lab.fork("test codes")}
        return torch.cat([model.bound(part[:, :half], part[:, half:], **options) for part in x.split(250)]).mean()

    chosen, key = {}, "lower half: bound of the test"
    for name, arm in arms.items():
        tried, warm = {}, config.temperatures if name not in ("MuProp", "score function") else (1.0,)
        for t, lr in itertools.product(warm, config.lrs):
            model: Any = complete(arm, f"trial at {t:g}, step size {lr:g}", t, lr, max(1, config.steps // 3))
            tried[float(bound(model, validation))] = t, lr
        chosen[name] = tried[min(tried)]
        for what, value in zip(("temperature", "step size"), chosen[name], strict=True):
            arm.metric(f"{what} chosen", value)
    falling = discrete.temperature_schedule(1.0, 0.5, 1 / config.steps, every=max(1, config.steps // 10))
    for _ in lab.replicates(config.replicates):
        for name, arm in reversed(arms.items()):
            with arm.weights("autoencoder"):
                model = discrete.DiscreteVAE(train.shape[1], *config.code)
            fit(arm, "autoencoder", model, falling, config.lrs[0], config.steps)
            value = model.negative_elbo(test, samples=4, generator=lab.fork("test codes")).mean()
            arm.metric("autoencoder: negative ELBO of the test", value.detach(), better="lower", unit="nat")
            model = complete(arm, "lower half", *chosen[name], config.steps)
            arm.metric(key, bound(model, test), better="lower", unit="nat")
    ours, hard, straight, linear, score = (arm[key] for arm in arms.values())
    lab.claim(
        "lower halves of unseen digits, bound of 100 samples: Gumbel-Softmax is at least 1 nat below the score "
        "function with a running mean, and below MuProp; ST-Gumbel is at most straight-through + 0.5 nat",
        *(ours <= score - 1, ours < linear, hard <= straight + 0.5),
    )
    lab.curves("loss, lower half", "loss, autoencoder", arms=list(arms.values()), caption="Bounds of batches, in nats.")
    upper, size = test[:5, :half], int(test.shape[1] ** 0.5)  # completed by the last network, Gumbel-Softmax's
    codes = discrete.categorical(model.logits(upper).expand(2, -1, -1, -1), generator=lab.fork("completions"))
    lower = torch.sigmoid(model.decode(codes)).detach()
    rows = {"unseen": test[:5]} | {f"draw {n + 1}": torch.cat([upper, lower[n]], 1) for n in range(2)}
    images = {name: list(x.view(-1, size, size)) for name, x in rows.items()}
    lab.images(images, name="completed digits", caption="Lower halves drawn from upper ones by Gumbel-Softmax.")


def _few_labels(lab: Lab, config: Config) -> None:
    """Few labels a class; the label of the other digits is drawn in one pass, or summed over in ten."""
    train, _, test = _pixels(lab, config.shrink, grey=True)
    labels, truth = (data.mnist(split, path=lab.data_path).labels.to(lab.device) for split in ("train", "test"))
    known = torch.cat([(labels[: len(train)] == k).nonzero().flatten()[: config.labels] for k in range(10)])
    estimators = {"Gumbel label": "gumbel_softmax", "marginal label": "exact", "labels only": None}
    arms = {name: lab.arm(name, baseline=name != "Gumbel label") for name in estimators}
    for _ in lab.replicates(config.replicates):
        for name, estimator in estimators.items():
            with arms[name].weights("few labels"):
                model = discrete.SemiSupervisedVAE(train.shape[1], 10, 4, (128,), estimator=estimator or "exact")
            optimizer = torch.optim.Adam(model.to(lab.device).parameters(), config.lrs[0])
            stream = lab.fork("few labels")
            for _ in arms[name].steps(config.label_steps, model, optimizer, stream, name="few labels"):
                some = known[torch.randint(len(known), (config.batch // 2,), generator=stream)]
                x = train[torch.randint(len(train), (config.batch,), generator=stream)]
                loss = config.weight * nn.functional.cross_entropy(model.classify(train[some]), labels[some])
                if estimator:
                    loss = loss - model.elbo(train[some], labels[some], generator=stream).mean()
                    loss = loss - model.elbo(x, generator=stream).mean()
                arms[name].descend(loss, optimizer, name="loss with few labels")
            right = (model.classify(test).argmax(-1) == truth).float().mean()
            arms[name].metric("accuracy with few labels", 100 * right, better="higher", unit="%")
    ours, marginal, alone = (arm["accuracy with few labels"] for arm in arms.values())
    lab.claim(
        f"{config.labels} labels a class: with drawn labels the others add at least 3 points of accuracy, and half of "
        "what they add with marginal labels",
        *(ours >= alone + 3, ours - alone >= 0.5 * (marginal - alone)),
    )


def _cost(lab: Lab, config: Config) -> None:
    """A step without labels: one pass of the drawn label, as many as labels of the marginal one."""
    x = torch.rand(config.batch, 196, generator=lab.fork("cost")).round()
    seconds, ratios = dict[str, list[Any]](), {}
    for classes in config.cost_classes:
        steps = {}
        for name, estimator in (("Gumbel label", "gumbel_softmax"), ("marginal label", "exact")):
            with lab.arm(name).weights(f"{classes} labels"):
                model = discrete.SemiSupervisedVAE(196, classes, 16, (128,), estimator=estimator)
            step = partial(lambda m: torch.autograd.grad(m.elbo(x).mean(), list(m.parameters())), model)
            steps[f"{name}, {classes} labels"] = step
        race = lab.race(steps, rounds=5, seconds=0.01 if lab.scale == "smoke" else 0.03)
        for label in steps:
            seconds.setdefault(label.partition(",")[0], []).append(race[label])
        ratios[classes] = race.ratio(*reversed(steps))
    lab.scaling(config.cost_classes, seconds, name="cost", xlabel="labels", ylabel="seconds a step")
    few, many = config.cost_classes[1], config.cost_classes[-1]
    statement = f"marginal labels cost at least 2 times as much a step as drawn ones at {few} labels, 15 at {many}"
    lab.claim(statement, ratios[few] >= 2, ratios[many] >= 15)
