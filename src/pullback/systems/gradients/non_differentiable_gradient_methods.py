"""What gradient descent does with a function that has no gradient everywhere, and what to do instead.

Automatic differentiation returns some number where a ReLU or ``|w|`` has a kink, and descent goes on with it. That is
another method than gradient descent on a smooth function, in three ways (Kumar, arXiv 2401.08426): it converges slower
and, with a constant step, not at all; an L1 penalty makes no weight 0, and a large one makes the weights grow; and its
iterates bounce where the curvature is far below ``2 / step``, so no edge of stability holds them. The remedy for
the penalty is its proximal operator, which removes weights for good.

Smaller than in the paper: a multilayer perceptron where the paper trains VGG16 on CIFAR-10. Diabetes and the digits
(MNIST, 5 000 images) are real; the piecewise linear functions are drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn

from pullback import data
from pullback.gradients import ProximalSGD, convergence_rate, oscillation_amplitude, sharpness
from pullback.lab import Arm, Lab, above, at_least, system

Map = Callable[[Tensor], Tensor]
POWERS = (4.0, 6.0, 10.0)


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    rate_steps: Annotated[int, at_least(500)] = 20_000
    """Steps from whose values exponents are fitted, in windows of 100."""
    constant_steps: tuple[Annotated[float, above(0)], ...] = (0.003, 0.01, 0.03, 0.1, 0.3)
    """Constant steps on the maxima."""
    penalties: tuple[Annotated[float, above(0)], ...] = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
    """Weights of the L1 penalty of the regression, ascending."""
    lasso_steps: Annotated[int, at_least(3)] = 10_000
    """Steps of the regression, each half of the inverse curvature."""
    hidden: Annotated[int, at_least(1)] = 100
    """Units of both hidden layers of the perceptron."""
    steps: Annotated[int, at_least(1)] = 3000
    """Training steps of each perceptron, with 64 images."""
    lr: Annotated[float, above(0)] = 0.1
    """Step size of both optimizers."""
    weights: tuple[Annotated[float, above(0)], ...] = (3e-4, 1e-3)
    """Weights of the L1 penalty of the perceptron."""
    replicates: Annotated[int, at_least(1)] = 3
    """Initialisations and batch streams of the perceptron, each the same for both arms."""


@system(
    "non-differentiable-gradient-methods",
    family="gradients",
    title="GD doesn't make the cut: Three ways that non-differentiability affects neural network training",
    paper="Kumar, 2024, arXiv 2401.08426",
    config=Config,
    smoke={"rate_steps": 600, "constant_steps": (0.1, 0.2)}
    | {"lasso_steps": 50, "steps": 3, "hidden": 8, "weights": (1e-3,), "replicates": 2},
    full={"rate_steps": 200_000, "hidden": 1000, "steps": 100_000, "replicates": 5},
    data=("diabetes", "mnist"),
    takes_data="a folder with the MNIST files in IDX format",
    blocks=(
        *("gradients.ProximalSGD", "gradients.sharpness"),
        *("gradients.convergence_rate", "gradients.oscillation_amplitude"),
    ),
)
def run(lab: Lab, config: Config) -> None:
    """Rates and stalls on convex functions, bounces above the edge of stability, LASSO, a pruned perceptron."""
    ngdm = lab.arm("subgradient steps", baseline=True)  # the paper's NGDM
    smooth, proximal = lab.arm("smooth descent", baseline=True), lab.arm("proximal steps")
    stream = lab.fork("affine functions")  # six maxima of 40 of them in ten dimensions
    a = torch.randn(6, 40, 10, generator=stream, dtype=torch.float64)
    a = a - a.mean(1, keepdim=True)  # 0 is among their averages: the maximum is bounded below
    b = torch.randn(6, 40, generator=stream, dtype=torch.float64)
    kinked = {"|x|": _Maximum(b.new_tensor([[[1.0], [-1.0]]]), b.new_zeros(1, 2)), "maxima": _Maximum(a, b)}
    figure, (rates, edge) = lab.subplots(1, 2)
    _rates(lab, config, kinked, ngdm, smooth, rates)
    _stalls(lab, config, kinked, ngdm)
    _edge(lab, smooth, edge)
    lab.figure("convex functions", figure, "Values above the minimum, means of 100 steps; sharpness on sqrt(x^2 + e).")
    _lasso(lab, config, ngdm, proximal)
    _perceptron(lab, config, ngdm, proximal)


class _Maximum:
    """``f(x) = max_i a_i x + b_i`` for ``x [..., problems, starts, n]``; a linear program finds the minimum.

    At a tie one piece gets the gradient. The steps on ``|x|`` meet 0 to the bit, where ``torch.abs`` would end them.
    """

    def __init__(self, a: Tensor, b: Tensor) -> None:
        from scipy.optimize import linprog

        self.a, self.b, found = a, b[:, None], []
        for matrix, offset in zip(a, b, strict=True):  # the least t with a_i x + b_i <= t
            rows, cost = torch.cat([matrix, -torch.ones(len(matrix), 1)], 1), np.eye(a.shape[-1] + 1)[-1]
            found.append(linprog(cost, rows.numpy(), -offset.numpy(), bounds=(None, None)).x)
        best = torch.from_numpy(np.stack(found))[:, None]
        self.minimiser, self.minimum = best[..., :-1], best[..., -1]

    def points(self, stream: torch.Generator) -> Tensor:
        return torch.randn(len(self.a), 5, self.a.shape[-1], generator=stream, dtype=torch.float64)

    def __call__(self, x: Tensor) -> Tensor:
        return (x @ self.a.mT + self.b).max(-1).values

    def twin(self, x: Tensor, width: float) -> Tensor:
        """The smooth function of curvature at most ``|a|^2 / width``."""
        return width * ((x @ self.a.mT + self.b) / width).logsumexp(-1)


def _descend(arm: Arm, name: str, f: Map, x: Tensor, steps: int, size: Callable[[int], Tensor | float]) -> Tensor:
    """Step along the derivative that automatic differentiation returns; ``x`` moves, the values of all runs return."""
    x.requires_grad_()
    values = x.new_zeros(*f(x).shape, steps)
    for k in arm.steps(steps, x, values, name=name):
        value = f(x)
        (derivative,) = torch.autograd.grad(value.sum(), x)
        values[..., k] = value.detach()
        with torch.no_grad():
            x -= size(k) * derivative
    return values


def _rates(lab: Lab, config: Config, kinked: dict[str, _Maximum], ngdm: Arm, smooth: Arm, axes: Any) -> None:
    powers = torch.tensor(POWERS, dtype=torch.float64)
    steps, skip = config.rate_steps, config.rate_steps // 1000 * 100
    one, size = torch.ones_like(powers), 1 / (powers * (powers - 1))
    flat = _descend(smooth, "x^p", lambda x: x**powers, one, steps, lambda k: size)
    found = convergence_rate(flat, window=100, skip=skip).exponent
    fitted = [smooth.metric(f"exponent, x^{p:.0f}", r, better="lower") for p, r in zip(POWERS, found, strict=True)]
    lab.claim(
        "gradient descent on x^p, p = 4, 6, 10, falls like k^(-p / (p - 2)), exponents within 3 %",
        *[abs(exponent / (-p / (p - 2)) - 1) <= 0.03 for exponent, p in zip(fitted, POWERS, strict=True)],
    )
    shown = [(f"$x^{{{p:.0f}}}$", smooth, row) for p, row in zip(POWERS, flat, strict=True)]
    for name, f in kinked.items():
        start = f.points(lab.fork(name))
        gaps = _descend(ngdm, name, f, start.clone(), steps, lambda k: (k + 1) ** -0.5) - f.minimum[..., None]
        exponents = convergence_rate(gaps, window=100, skip=skip).exponent
        steepest = ngdm.metric(f"steepest exponent, {name}", exponents.min())
        flattest = ngdm.metric(f"flattest exponent, {name}", exponents.max())
        lab.claim(
            f"subgradient steps 1 / sqrt k on {name} fall with exponents in [-0.75, -0.4], slower than descent on x^10",
            (steepest >= max(-0.75, fitted[-1])) & (flattest <= -0.4),
        )
        shown.append((name, ngdm, gaps[0, 0]))
    curvature = torch.linalg.matrix_norm(f.a, 2).square()[:, None, None]
    twin = _descend(smooth, "twins", lambda x: f.twin(x, 0.1), start.clone(), steps // 4, lambda k: 0.1 / curvature)
    up = ngdm.metric("share of steps up, maxima", (gaps.diff() > 1e-12).double().mean(), better="lower")
    none = smooth.metric("share of steps up, maxima", (twin.diff() > 1e-12).double().mean(), better="lower")
    lab.claim("20 % of the subgradient steps on the maxima go up, on their smooth twins none", up >= 0.2, none == 0)
    for line, (name, arm, gaps) in zip(("-", "--", ":", "-", "--"), shown, strict=True):
        mean = gaps.unfold(0, 100, 100).mean(-1)
        axes.plot(100 * torch.arange(len(mean)) + 50, mean, line, color=arm.colour, label=f"{name}, {arm.name}")
    axes.set(xscale="log", yscale="log", xlabel="step", ylabel="height above the minimum")
    axes.legend(fontsize="small")


def _stalls(lab: Lab, config: Config, kinked: dict[str, _Maximum], ngdm: Arm) -> None:
    sizes, measured = torch.tensor(config.constant_steps, dtype=torch.float64), config.rate_steps // 20
    for name, f in kinked.items():
        # From near the minimum: how long it takes to come there from afar has no bound in the step alone.
        start = (f.minimiser + 0.3 * f.points(lab.fork(f"near {name}"))).repeat(len(sizes), 1, 1, 1)
        count = int(20 / min(config.constant_steps)) + measured
        values = _descend(ngdm, f"{name}, constant", f, start, count, lambda k: sizes[:, None, None, None])
        heights = (values[..., -measured:].mean(-1) - f.minimum).mean(-1)
        if name == "|x|":
            off = float((heights[:, 0] / sizes / 0.5 - 1).abs().max())
            lab.claim("constant steps a on |x| stall at a height of a / 2, within 2 %", off <= 0.02, off=off)
            continue
        slopes = [lab.slope(config.constant_steps, height).exponent for height in heights.T]
        fits = ngdm.metric("flattest slope of the stalled height in the step", min(slopes)) >= 0.85
        fits &= ngdm.metric("steepest slope of the stalled height in the step", max(slopes)) <= 1.15
        lab.claim("constant steps on every maximum stall at a height that grows like the step (slope 1 +- 0.15)", fits)


def _edge(lab: Lab, arm: Arm, axes: Any) -> None:
    """``sqrt(x^2 + e)`` in steps ``a``: the two-cycle ``|x| = sqrt(a^2 / 4 - e)`` has sharpness ``8 e / a^3``."""
    e, widths = 1e-2, (3.0, 5.0, 10.0, 30.0)
    sizes = torch.tensor(widths, dtype=torch.float64) * e**0.5
    x = torch.full_like(sizes, 0.7)
    places = x.new_zeros(2000, len(sizes))

    def f(x: Tensor) -> Tensor:
        return (x * x + e).sqrt()

    for k in arm.steps(len(places), x, places, name="edge"):
        places[k] = x
        x -= sizes * x / f(x)
    for place, width, a in zip(places.T, widths, sizes.tolist(), strict=True):
        found = [sharpness(lambda p: f(p["x"]), {"x": y}).value * a / 2 for y in (*place[:24], *place[-100::33])]
        axes.plot(found[:24], label=f"{width:g} $\\sqrt{{e}}$")
        share = arm.metric(f"sharpness / (2 / step), step {width:g} sqrt e", sum(found[24:]) / len(found[24:]))
        amplitude = oscillation_amplitude(place, window=100) / (a * a / 4 - e) ** 0.5
        lab.claim(
            f"in steps a of {width:g} sqrt e the sharpness of sqrt(x^2 + e) is 4 e / a^2 times 2 / a within 1 %, while "
            "x changes sign every step, by sqrt(a^2 / 4 - e) around 0",
            abs(share / (4 / width**2) - 1) <= 0.01,
            bool((place[-100:].sign().diff().abs() == 2).all() & ((amplitude - 1).abs() <= 0.01)),
            scale="smoke",
        )
    axes.axhline(1, color="black", linewidth=0.8, linestyle="--")
    axes.set(yscale="log", xlabel="step", ylabel="sharpness / (2 / step size)", ylim=(1e-3, 20))
    axes.legend(title="step size (dashed: edge of stability)", loc="upper right", ncols=4, fontsize="small")


def _lasso(lab: Lab, config: Config, ngdm: Arm, proximal: Arm) -> None:
    """Half the mean square error of diabetes progression from quadratic features, plus ``penalty * |w|_1``."""

    def standardised(x: Tensor) -> Tensor:
        return (x - x.mean(0)) / x.std(0)

    table = data.diabetes(dtype=torch.float64)
    lab.data("diabetes, 442 patients, 65 quadratic features", origin="real")
    x = standardised(table.features)
    x = standardised(torch.cat([x, *(x[:, i, None] * x[:, i:] for i in range(x.shape[1]))], 1))
    gram, moment = x.T @ x / len(x), x.T @ standardised(table.target) / len(x)
    lr, penalties = float(0.5 / torch.linalg.eigvalsh(gram)[-1]), torch.tensor(config.penalties, dtype=torch.float64)
    last = {arm: torch.zeros(3, len(penalties), x.shape[1], dtype=torch.float64) for arm in (ngdm, proximal)}
    for arm in (ngdm, proximal):
        rows = [torch.zeros_like(moment).requires_grad_() for _ in penalties]
        given = [{"params": [row], "weight": weight} for row, weight in zip(rows, config.penalties, strict=True)]
        optimizer = ProximalSGD(given if arm is proximal else rows, lr, weight=0.0)
        for k in arm.steps(config.lasso_steps, rows, optimizer, last[arm], name="LASSO"):
            w = torch.stack(rows)
            added = penalties if arm is ngdm else 0 * penalties
            optimizer.zero_grad()
            ((w @ gram * w).sum() / 2 - (w @ moment).sum() + added @ w.abs().sum(1)).backward()
            optimizer.step()
            if config.lasso_steps - k <= 3:
                last[arm][k - config.lasso_steps] = torch.stack(rows).detach()
    norms = {arm: w[-1].abs().sum(1) for arm, w in last.items()}
    zeros = {arm: (w[-1] == 0).sum(1) for arm, w in last.items()}
    figure, panels = lab.subplots(1, 2)
    for arm in last:
        arm.metric("LASSO: most zeros", float(zeros[arm].max()), better="higher")
        arm.metric("LASSO: L1 norm at the largest penalty", norms[arm][-1], better="lower")
        arm.metric("LASSO: least L1 norm", norms[arm].min(), better="lower")
        for axes, found in zip(panels, (norms, zeros), strict=True):
            axes.plot(penalties, found[arm], "o-", color=arm.colour, label=arm.name)
    lab.claim(
        "the L1 norm of subgradient steps is at the largest penalty more than twice its minimum over penalties, no "
        "weight is 0; that of proximal steps falls and their zeros grow with the penalty, to all of them",
        ngdm["LASSO: L1 norm at the largest penalty"] > 2 * ngdm["LASSO: least L1 norm"],
        (ngdm["LASSO: most zeros"] == 0) & (proximal["LASSO: most zeros"] == x.shape[1]),
        (norms[proximal].diff() <= 1e-9).all() & (zeros[proximal].diff() >= 0).all(),
    )
    # Alternating, (2 - lr H) w = lr penalty s with signs s: in root mean square from 1 / 2 to 1 / (2 - lr L) = 2 / 3.
    bounce = oscillation_amplitude(last[ngdm][:, -1]).square().mean().sqrt() / (lr * penalties[-1])
    share = ngdm.metric("LASSO: bounce / (step size * largest penalty)", bounce)
    span = (share >= 0.499) & (share <= 0.668)
    lab.claim("at the largest penalty the weights bounce by 1 / 2 to 2 / 3 of step size times penalty", span)
    panels[0].set(xscale="log", yscale="symlog", xlabel="penalty", ylabel="L1 norm of the weights", ylim=(-0.1, 200))
    panels[1].set(xscale="log", xlabel="penalty", ylabel=f"weights that are 0, of {x.shape[1]}")
    panels[0].legend()
    lab.figure("LASSO", figure, "Regression on diabetes: what both methods reach, over the weight of the penalty.")


def _perceptron(lab: Lab, config: Config, ngdm: Arm, proximal: Arm) -> None:
    (images, labels), (unseen, truth) = (data.mnist(split, path=lab.data_path) for split in ("train", "test"))
    lab.data("MNIST", origin="real")
    pairs = [(weight, arm) for weight in config.weights for arm in (ngdm, proximal)]
    for weight, arm in (pair for _ in lab.replicates(config.replicates) for pair in pairs):
        with arm.weights():
            model = nn.Sequential(
                *(nn.Flatten(), nn.Linear(images[0].numel(), config.hidden), nn.ReLU()),
                *(nn.Linear(config.hidden, config.hidden), nn.ReLU(), nn.Linear(config.hidden, 10)),
            )
        matrices, biases = ([p for p in model.parameters() if p.ndim == ndim] for ndim in (2, 1))
        given = [{"params": matrices, "weight": weight if arm is proximal else 0.0}, {"params": biases}]
        optimizer = ProximalSGD(given, config.lr, weight=0.0)
        batches = lab.fork("batches")
        for _ in arm.steps(config.steps, model, optimizer, batches, name=f"penalty {weight:g}"):
            chosen = torch.randint(len(labels), (64,), generator=batches)
            loss = nn.functional.cross_entropy(model(images[chosen]), labels[chosen])
            if arm is ngdm:
                loss = loss + weight * sum(m.abs().sum() for m in matrices)
            arm.descend(loss, optimizer, name=f"loss, penalty {weight:g}")
        flat, end = torch.cat([m.detach().flatten() for m in matrices]), f", penalty {weight:g}"
        arm.metric("zeros" + end, 100 * (flat == 0).double().mean(), better="higher", unit="%")
        arm.metric("within a step of 0" + end, 100 * (flat.abs() <= config.lr * weight).double().mean(), unit="%")
        accuracy = (model(unseen).argmax(1) == truth).double().mean()
        arm.metric("accuracy" + end, 100 * accuracy, better="higher", unit="%")
    for end in (f", penalty {weight:g}" for weight in config.weights):
        lab.claim(
            f"perceptron{end}: at equal accuracy (within a point) proximal steps make half of the weights 0, "
            "subgradient steps none: as many (within 2 points of the share) bounce within a step of 0",
            (proximal["zeros" + end] >= 50) & (ngdm["zeros" + end] == 0),
            abs(proximal["accuracy" + end] - ngdm["accuracy" + end]) <= 1,
            abs(ngdm["within a step of 0" + end] - proximal["zeros" + end]) <= 2,
        )
    names = [f"{what}, penalty {weight:g}" for what in ("zeros", "accuracy") for weight in config.weights]
    lab.bars(*names, arms=[ngdm, proximal], caption="Weights that are 0, and accuracy on unseen digits.")
