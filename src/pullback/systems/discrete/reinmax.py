"""Gradients through a sampled choice: straight-through is a first-order rule, ReinMax the second-order one.

A network that samples a category has no derivative there. Straight-through takes the softmax's, which is the forward
Euler rule of E f(D) - f(E D): exact for linear f alone. ReinMax is Heun's rule, exact for every quadratic f, at one
evaluation of f and without a Hessian (Liu, Dong, Liu, Yu, Gao, NeurIPS 2023, arXiv 2304.08612).

Bias and variance are measured against the exact gradient, every outcome enumerated; then two experiments of the paper:
polynomial programming of 128 coins, and autoencoders with a categorical code. Smaller than in the paper: digits of 14 x
14 pixels (MNIST, 5 000 real images, binarised), one hidden layer, 1 000 steps, no ListOps.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from pullback import data, discrete
from pullback.lab import Arm, Lab, above, at_least, system

METHODS = {
    "ReinMax": "reinmax",
    "straight-through": "straight_through",
    "ST-Gumbel": "gumbel",
    "Gumbel-Softmax": "gumbel_softmax",
    "leave-one-out": "leave_one_out",
}
COIN = 0.45


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    problems: Annotated[int, at_least(4)] = 100
    """Random functions whose gradient is estimated."""
    draws: Annotated[int, at_least(2)] = 1000
    """Estimates of each where Gumbel noise is drawn; the others are enumerated."""
    coins: Annotated[int, at_least(1)] = 128
    """Binary variables of the polynomial programme."""
    coin_steps: Annotated[int, at_least(1)] = 300
    """Adam steps of the polynomial programme."""
    codes: tuple[tuple[Annotated[int, at_least(1)], Annotated[int, at_least(1)]], ...] = ((8, 4), (4, 24))
    """Variables and classes of the codes."""
    hidden: Annotated[int, at_least(1)] = 128
    """Units of the hidden layers."""
    steps: Annotated[int, at_least(1)] = 1000
    """Adam steps of each autoencoder."""
    trial_steps: Annotated[int, at_least(1)] = 500
    """Steps of another initialisation after which its temperature is chosen, on held-out images."""
    batch: Annotated[int, at_least(1)] = 100
    """Images a step."""
    lr: Annotated[float, above(0)] = 3e-3
    """Step size of Adam."""
    shrink: Annotated[int, at_least(1)] = 2
    """Factor by which images are made smaller."""
    replicates: Annotated[int, at_least(1)] = 2
    """Initialisations and batch streams."""


@system(
    "reinmax",
    family="discrete",
    title="Bridging Discrete and Backpropagation: Straight-Through and Beyond",
    paper="Liu, Dong, Liu, Yu, Gao, NeurIPS 2023, arXiv 2304.08612",
    config=Config,
    smoke={"problems": 4, "draws": 20, "coins": 8, "coin_steps": 2, "codes": ((2, 3),), "hidden": 8}
    | {"steps": 3, "trial_steps": 2, "batch": 10, "replicates": 1},
    full={"codes": ((8, 4), (4, 24), (8, 16), (16, 12), (64, 8), (10, 30)), "hidden": 512, "shrink": 1}
    | {"steps": 100_000, "trial_steps": 20_000, "coin_steps": 10_000, "replicates": 5, "lr": 5e-4},
    data=("mnist",),
    takes_data="a folder with the MNIST files in IDX format",
    blocks=(
        "discrete.reinmax",
        "discrete.expectation",
        "discrete.estimator_statistics",
        "discrete.exact_categorical_gradient",
        "discrete.straight_through_softmax",
        "discrete.DiscreteVAE",
    ),
)
def run(lab: Lab, config: Config) -> None:
    """Measure bias, order and variance, optimise coins, train autoencoders, time one step."""
    arms = {name: lab.arm(name, baseline=name != "ReinMax") for name in METHODS}
    _quadratics(lab)
    _networks(lab, config, arms)
    _coins(lab, config, arms)
    _autoencoders(lab, config, arms)
    _fused(lab)


def _normal(stream: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=stream, dtype=torch.float64)


def _quadratics(lab: Lab) -> None:
    stream, off = lab.fork("quadratics"), dict[str, list[float]]()
    for _ in range(50):
        a, b, logits = _normal(stream, 6, 6), _normal(stream, 6), _normal(stream, 6)
        f = partial(lambda a, b, d: ((d @ a) * d).sum(-1) + d @ b, a, b)
        size = discrete.exact_categorical_gradient(f, logits).norm()
        for method in ("reinmax", "straight_through"):
            bias = torch.as_tensor(discrete.estimator_statistics(method, f, logits).bias)
            off.setdefault(method, []).append(float(bias.norm() / size))
    lab.claim(
        "50 quadratic functions: the mean of ReinMax over all outcomes is the exact gradient to 1e-10 of its norm, "
        "that of straight-through is off by at least 20 % in the median",
        max(off["reinmax"]) <= 1e-10,
        median(off["straight_through"]) >= 0.2,
        scale="smoke",
        reinmax=max(off["reinmax"]),
        straight_through=median(off["straight_through"]),
    )


def _networks(lab: Lab, config: Config, arms: dict[str, Arm]) -> None:
    """Bias and variance on f(D) = v tanh(s W D + b): the smaller the scale s, the simpler the function."""
    figure, (left, right) = lab.subplots(1, 2)
    small, scales, cosines = [2.0**-k for k in range(5, 1, -1)], [0.5, 1.0, 2.0], dict[tuple[str, float], list[float]]()
    for name, arm in arms.items():
        # Enumerated but for Gumbel noise, whose bias drowns in its variance where the function is simple.
        noisy, rows = "Gumbel" in name, []
        options: dict[str, Any] = {"draws": 2 if name == "leave-one-out" else 1, "temperature": 0.5 if noisy else 1.0}
        swept = small + scales if name in ("ReinMax", "straight-through") else scales
        for scale in swept:
            stream, noise, found = lab.fork("networks"), lab.fork(f"noise of {name}"), []
            for _ in range(config.problems):
                w, b, v, logits = (_normal(stream, *shape) for shape in ((6, 10), (10,), (10,), (6,)))
                f = partial(lambda w, b, v, d: torch.tanh(d @ w + b) @ v, scale * w, b, v)
                samples = config.draws if noisy else None
                error = discrete.estimator_statistics(
                    METHODS[name], f, logits, samples=samples, generator=noise, **options
                )
                found.append([max(error.relative_bias, 0.0) ** 0.5, error.relative_variance, error.mean_cosine])
            bias, variance, cosines[name, scale] = torch.tensor(found).T.tolist()
            rows.append((median(bias), median(variance)))
            if scale == 1:
                arm.metric("relative bias, scale 1", rows[-1][0], better="lower")
                arm.metric("relative variance, scale 1", rows[-1][1], better="lower")
        biases, variances = zip(*rows, strict=True)
        if swept is not scales:
            order = lab.slope(small, biases[: len(small)], of=name).exponent
            arm.metric("order of the bias", order, better="higher")
        if name != "leave-one-out":
            left.plot(swept, biases, marker="o", color=arm.colour)
        right.plot(scales, variances[-len(scales) :], marker="o", color=arm.colour, label=name)
    ours, theirs, share = arms["ReinMax"], arms["straight-through"], "nearer in direction than straight-through, scale"
    for scale in scales:
        pairs = zip(cosines["ReinMax", scale], cosines["straight-through", scale], strict=True)
        ours.metric(f"{share} {scale:g}", sum(a >= b for a, b in pairs) / config.problems, better="higher")
    lab.claim(
        "f(D) = v tanh(s W D + b): the median relative bias of straight-through falls as s to the power 1 +- .15, that "
        "of ReinMax as s to the power 2 +- .2",
        abs(theirs["order of the bias"] - 1) <= 0.15,
        abs(ours["order of the bias"] - 2) <= 0.2,
    )
    lab.claim(
        "of such functions with s = .5 and 1, in at least 65 % the mean of ReinMax is nearer in direction to the exact "
        "gradient than that of straight-through",
        *(ours[f"{share} {scale:g}"] >= 0.65 for scale in (0.5, 1.0)),
    )
    left.set(xscale="log", yscale="log", xlabel="scale s", ylabel="median relative bias")
    right.set(xscale="log", yscale="log", xlabel="scale s", ylabel="median relative variance")
    right.legend(fontsize="small")
    caption = (
        "One estimate of the gradient of E f(D), f(D) = v tanh(s W D + b) of six classes, against the exact gradient: "
        "norm of the bias, and variance, over the norm of the gradient and its square. Gumbel at temperature 0.5; "
        "leave-one-out, of two draws, has no bias."
    )
    lab.figure("bias and variance", figure, caption)


def _coins(lab: Lab, config: Config, arms: dict[str, Arm]) -> None:
    """Minimise E sum |x_i - .45|^p / n over coins x: all of them have to show 0."""
    powers = torch.tensor([1.5, 2.0, 3.0])
    best, keys = COIN**powers, [f"coin excess, p = {power:g}" for power in powers.tolist()]

    def f(d: Tensor) -> Tensor:
        return ((d[..., 1] - COIN).abs() ** powers[:, None]).mean(-1)

    for name, arm in arms.items():
        excesses = []
        for t in _temperatures(name):
            logits = torch.zeros(len(powers), config.coins, 2, requires_grad=True)
            optimizer, draws, label = torch.optim.Adam([logits], lr=0.1), lab.fork("coins"), f"coins, temperature {t:g}"
            estimate = partial(discrete.expectation, method=METHODS[name], temperature=t, samples=16, generator=draws)
            for _ in arm.steps(config.coin_steps, logits, optimizer, draws, name=label):
                arm.descend(estimate(f, logits).sum(), optimizer, name=f"loss of {label}")
            p = logits.detach().softmax(-1)
            value = (p[..., 0] * COIN ** powers[:, None] + p[..., 1] * (1 - COIN) ** powers[:, None]).mean(-1)
            excesses.append(value / best - 1)
        for key, lowest in zip(keys, torch.stack(excesses).amin(0), strict=True):
            arm.metric(key, 100 * lowest, better="lower", unit="%")
    biased = ("straight-through", "ST-Gumbel", "Gumbel-Softmax")
    lab.claim(
        "coins: for every p ReinMax ends at most a quarter as far above the optimum as straight-through, ST-Gumbel and "
        "Gumbel-Softmax, each at its best temperature",
        *(arms["ReinMax"][key] <= arms[name][key] / 4 for key in keys for name in biased),
    )
    lab.bars(*keys, caption="What is left above the optimum, in per cent of it, each at its best temperature.")


def _temperatures(name: str) -> tuple[float, ...]:
    choices = {"ReinMax": (1.0, 1.25, 1.5), "straight-through": (0.5, 1.0, 1.5), "leave-one-out": (1.0,)}
    return choices.get(name, (0.2, 0.5, 1.0))


def _autoencoders(lab: Lab, config: Config, arms: dict[str, Arm]) -> None:
    """Train autoencoders of digits, each estimator at the temperature that a trial chose."""
    images = data.mnist("train", path=lab.data_path).images
    lab.data("MNIST, binarised", origin="real")
    small = nn.functional.avg_pool2d(images.unsqueeze(1), config.shrink).squeeze(1)
    pixels = (small.flatten(1) > 0.5).float().to(lab.device)
    train, validation = pixels[: 7 * len(pixels) // 8], pixels[7 * len(pixels) // 8 :]
    rivals, nat = ("ReinMax", "straight-through", "ST-Gumbel"), dict[str, Any](better="lower", unit="nat")

    def fit(arm: Arm, code: tuple[int, int], temperature: float, steps: int, name: str) -> discrete.DiscreteVAE:
        with arm.weights(name):
            model = discrete.DiscreteVAE(pixels.shape[1], *code, (config.hidden,), estimator=METHODS[arm.name])
        model.to(lab.device).temperature = temperature
        optimizer, stream = torch.optim.Adam(model.parameters(), lr=config.lr), lab.fork(f"batches of {name}")
        for _ in arm.steps(steps, model, optimizer, stream, name=name):
            batch = train[torch.randint(len(train), (config.batch,), generator=stream)]
            arm.descend(model.negative_elbo(batch, generator=stream).mean(), optimizer, name=f"loss, {name}")
        return model.eval()

    @torch.no_grad()
    def bound(model: discrete.DiscreteVAE, x: Tensor) -> Tensor:
        return model.negative_elbo(x, samples=4, generator=lab.fork("test codes")).mean()

    figure, panels = lab.subplots(1, len(config.codes), squeeze=False)
    every = max(1, config.steps // 28)
    for axes, code in zip(panels[0], config.codes, strict=True):
        label, chosen = "x".join(map(str, code)), dict[str, float]()
        for name in rivals:
            trials = {}
            for t in _temperatures(name):
                model = fit(arms[name], code, t, config.trial_steps, f"trial {label}, temperature {t:g}")
                trials[float(bound(model, validation))] = t
            chosen[name] = trials[min(trials)]
            arms[name].metric(f"{label}: temperature chosen", chosen[name])
        key = f"{label}: negative ELBO, training"
        for replicate in lab.replicates(config.replicates):
            for name in rivals:
                model = fit(arms[name], code, chosen[name], config.steps, label)
                arms[name].metric(key, bound(model, train), **nat)
                arms[name].metric(f"{label}: negative ELBO, held out", bound(model, validation), **nat)
                means = torch.tensor(arms[name].series(f"loss, {label}")).unfold(0, every, every).mean(-1)[2:]
                steps = (torch.arange(len(means)) + 2.5) * every
                axes.plot(steps, means, color=arms[name].colour, label=None if replicate else name)
        axes.set(xlabel="step", ylabel="negative ELBO (nat)", title=f"{label} code")
        axes.legend(fontsize="small")
        ours, straight, gumbel = (arms[name][key] for name in rivals)
        lab.claim(
            f"autoencoder {label}: ReinMax's final bound on the training images is at least 1 nat below that of "
            "straight-through, and not above that of ST-Gumbel",
            ours <= straight - 1,
            ours <= gumbel,
        )
    lab.figure("autoencoders", figure, f"Negative ELBO of the batches, means of {every} steps, each initialisation.")
    figures = list(torch.cat([validation[:8], model(validation[:8]).detach()]).view(-1, *small.shape[1:]))
    caption = "Held-out digits, and what the most likely code of the last autoencoder of ST-Gumbel makes of them."
    lab.images({"held out": figures[:8], "reconstructed": figures[8:]}, name="reconstructions", caption=caption)


def _fused(lab: Lab) -> None:
    """The fused gradient against the straight-through object of the paper, and what it costs."""
    stream = lab.fork("fused")
    x, g = (torch.randn(256, 1000, generator=stream) for _ in range(2))
    x.requires_grad_()
    outcome = torch.randint(1000, (256,), generator=stream)
    onehot = nn.functional.one_hot(outcome, 1000).float()
    errors = []
    for t in (1.0, 1.3):
        sample = discrete.reinmax(x, temperature=t, outcome=outcome).onehot
        middle = (onehot + (x / t).softmax(-1)) / 2
        first = ((middle.log() - x).detach() + x).softmax(-1)
        second = 2 * first - x.softmax(-1) / 2
        paper = second - second.detach() + onehot
        gradients = [torch.autograd.grad(value, x, g)[0] for value in (sample, paper)]
        errors += [float((a - b).detach().abs().max()) for a, b in ((sample, paper), gradients)]
    statement = (
        "the fused form equals the straight-through form to 1e-6 in value and gradient, at temperatures 1 and 1.3"
    )
    lab.claim(statement, max(errors) <= 1e-6, scale="smoke", largest_difference=max(errors))
    contenders = {
        "ReinMax": lambda: torch.autograd.grad(discrete.reinmax(x).onehot, x, g),
        "torch Gumbel": lambda: torch.autograd.grad(nn.functional.gumbel_softmax(x, hard=True), x, g),
    }
    race = lab.race(contenders, rounds=11, seconds=0.0 if lab.scale == "smoke" else 0.05)  # the clock may tick slowly
    statement = "forward and backward of 256 x 1000 cost at most 1.4 times torch's gumbel_softmax(hard=True)"
    lab.claim(statement, race.ratio("ReinMax", "torch Gumbel") <= 1.4)
