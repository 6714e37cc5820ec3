"""Weights for a law of responses that has shifted, when features of the target are all that is known of it.

Where p(x | y) stays and p(y) changes, a sample of the source has to be weighted by omega(y) = p_t(y) / p_s(y). Its
mean given x is the ratio of the laws of the features, E_s[omega(Y) | X = x] = p_t(x) / p_s(x): an integral equation of
the first kind, ill-posed, which Tikhonov's regularisation makes a linear system between two Nadaraya-Watson matrices
(Kim, Zhang, Zhao, Tian, ICLR 2024). The weights then serve to fit and to calibrate for the target.

Smaller than in the paper: a few hundred rows. The tables are real; the shift of their responses is imposed, by keeping
rows of the target with a known probability, so that the true weights are known, but for the weather, whose target is
the summer; the rows that are judged are the target, whose features the weights were found with. All methods see what a
ridge regression, fitted on the source, predicts. For the weather, whose
humidity given the temperature is not the same all year, no weights help.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Normal

from pullback import data
from pullback.lab import Arm, Lab, above, at_least, below, system
from pullback.uncertainty import (
    conformal_quantile,
    density_ratio,
    kernel_mean_matching,
    target_shift_weights,
    tikhonov_solve,
)


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    rows: Annotated[int, at_least(40)] = 500
    """Of the source and of the target, in the model that is simulated."""
    more: Annotated[int, at_least(40)] = 2000
    """The same for the rate."""
    tested: Annotated[int, at_least(40)] = 2000
    """Labelled rows of the target to judge on."""
    alpha: Annotated[float, above(0)] = 0.03
    """For the rate: the same at both sizes."""
    ridge: Annotated[float, above(0)] = 1e-2
    """Of the regressions, times the number of rows; of standardised features."""
    level: Annotated[float, above(0), below(1)] = 0.9
    """Nominal coverage of intervals."""
    replicates: Annotated[int, at_least(1)] = 12
    """Samples, or splits of the tables."""


class Problem(NamedTuple):
    """A source with responses, a target without, labelled rows to judge on, the true weights of the source."""

    x: Tensor
    y: Tensor
    target: Tensor
    unseen_x: Tensor
    unseen_y: Tensor
    weights: Tensor | None


OURS, KMM, RATIO, PLAIN, ORACLE = "ReTaSA", "mean matching", "ratio of features", "unweighted", "true weights"
ERROR, LOSS, COVER = "squared error of weights", "squared error of predictions", "coverage"
GRID = (1e-6, 1e-4, 1e-3, 1e-2, 3e-2, 0.1, 0.3)
TABLES: dict[str, Callable[..., data.Table]] = {
    "cars": data.autompg,
    "homes": data.boston,
    "diabetes": data.diabetes,
}


@system(
    "retasa",
    family="uncertainty",
    title="ReTaSA: A Nonparametric Functional Estimation Approach for Addressing Continuous Target Shift",
    paper="Kim, Zhang, Zhao, Tian, ICLR 2024, arXiv 2401.16410",
    config=Config,
    smoke={"rows": 60, "more": 80, "tested": 60, "replicates": 1},
    full={"rows": 2000, "more": 20_000, "tested": 20_000, "replicates": 50},
    data=("regression", "weather"),
    blocks=(
        *(f"uncertainty.{b}" for b in ("target_shift_weights", "tikhonov_solve", "conformal_quantile")),
        *(f"uncertainty.{b}" for b in ("kernel_mean_matching", "density_ratio")),
    ),
)
def run(lab: Lab, config: Config) -> None:
    """Solve a shift of few atoms exactly; then a model whose weights are known; then tables."""
    _atoms(lab)
    lab.data("Auto MPG, Boston housing, diabetes, with an imposed shift; hourly weather of Sand Point", origin="real")
    lab.data("a location-scale model of five features", origin="simulated")
    arms = {name: lab.arm(name, baseline=name != OURS) for name in (OURS, KMM, RATIO, PLAIN, ORACLE)}
    drawn = None
    for _ in lab.replicates(config.replicates):
        draws = lab.fork("model")
        problem = _model(config.rows, config, draws)
        found = {name: _compare(config, arm, problem, "model") for name, arm in arms.items()}
        drawn = drawn or (problem, found)
        _regularise(config, arms[OURS], problem, _model(config.more, config, draws))
        for name, load in TABLES.items():
            problem = _shifted(load(dtype=torch.float64), lab.fork(name))
            for arm in arms.values():
                _compare(config, arm, problem, name)
        problem = _summer(config, lab.fork("weather"))
        for arm in (arm for arm in arms.values() if arm.name != ORACLE):
            _compare(config, arm, problem, "weather")
    _judge(lab, config, arms)
    assert drawn is not None
    _draw(lab, arms, *drawn)


def _atoms(lab: Lab) -> None:
    """Four responses, six features, all laws known: without noise, hardly any regularisation is needed."""
    draws = lab.fork("atoms")
    channel = torch.rand(4, 6, generator=draws, dtype=torch.float64).softmax(1)
    source, target = torch.rand(2, 4, generator=draws, dtype=torch.float64).softmax(1)
    given_x = (source[:, None] * channel / (source @ channel)).T
    found = tikhonov_solve(given_x, channel, (target @ channel) / (source @ channel) - 1, alpha=1e-10)
    gap = float((found.value + 1 - target / source).abs().max())
    lab.claim(
        "four responses, six features, laws known: as alpha goes to 1e-10 the solution is the ratio of the laws (1e-5)",
        gap <= 1e-5,
        scale="smoke",
        gap=gap,
    )


def _model(n: int, config: Config, draws: torch.Generator) -> Problem:
    """Normal responses, of another mean and a smaller spread in the target; features of location and scale by y."""
    slopes, before, after = torch.linspace(1, -1, 5, dtype=torch.float64), Normal(0.0, 1.0), Normal(1.0, 0.7)

    def features(y: Tensor) -> Tensor:
        noise = torch.randn(len(y), 5, generator=draws, dtype=torch.float64)
        return slopes * y[:, None] + (0.5 + 0.5 * torch.sigmoid(2 * y))[:, None] * noise

    y = torch.randn(n, generator=draws, dtype=torch.float64)
    z = 1.0 + 0.7 * torch.randn(n + config.tested, generator=draws, dtype=torch.float64)
    x, other = features(y), features(z)
    return Problem(x, y, other[:n], other[n:], z[n:], (after.log_prob(y) - before.log_prob(y)).exp())


def _shifted(table: data.Table, draws: torch.Generator) -> Problem:
    """Half of the rows are the source; of the others large responses are kept more often."""
    x, y = table.features, (table.target - table.target.mean()) / table.target.std()
    order = torch.randperm(len(y), generator=draws)
    source, other = order[: len(y) // 2], order[len(y) // 2 :]
    chance = torch.sigmoid(3 * (y - 0.5))
    kept = other[torch.rand(len(other), generator=draws, dtype=torch.float64) < chance[other]]
    weights = chance[source] / chance[source].mean()
    return Problem(x[source], y[source], x[kept], x[kept], y[kept], weights)


def _summer(config: Config, draws: torch.Generator) -> Problem:
    """Temperatures of hours of the whole year are the source, those of June to August the target."""
    table = data.weather("greensboro")
    names = ("dew point", "humidity", "pressure", "wind speed", "irradiance")
    x, y = torch.stack([table.column(name) for name in names], 1), table.column("temperature")
    order = torch.randperm(len(y), generator=draws)
    source, rest = order[: config.rows], order[config.rows :]
    month = table.column("month")[rest]
    summer = rest[(month >= 6) & (month <= 8)]
    y = (y - y.mean()) / y.std()
    target, unseen = summer[: config.rows], summer[config.rows :]
    return Problem(x[source], y[source], x[target], x[unseen], y[unseen], None)


class Ridge:
    """A linear regression of standardised features, rows weighted."""

    def __init__(self, x: Tensor, y: Tensor, weights: Tensor, ridge: float) -> None:
        self.mean, self.scale = x.mean(0), x.std(0).clamp(min=1e-6)
        z, part = self._features(x), weights / weights.sum()
        penalty = ridge * torch.diag(torch.tensor([0.0] + x.shape[1] * [1.0], dtype=x.dtype))
        self.slopes = torch.linalg.solve(z.T @ (part[:, None] * z) + penalty, z.T @ (part * y))

    def _features(self, x: Tensor) -> Tensor:
        return torch.cat([torch.ones_like(x[:, :1]), (x - self.mean) / self.scale], 1)

    def __call__(self, x: Tensor) -> Tensor:
        """Predict."""
        return self._features(x) @ self.slopes


def _compare(config: Config, arm: Arm, problem: Problem, name: str) -> Tensor:
    """Weigh the source, fit and calibrate with the weights, and judge on the target."""
    x, y, half = problem.x, problem.y, len(problem.y) // 2
    box = Ridge(x, y, torch.ones_like(y), config.ridge)
    u, v = box(x)[:, None], box(problem.target)[:, None]
    if arm.name == OURS:  # options of the others: the best ones for the true weights of the model, on other draws
        weights = target_shift_weights(u, y, v).values
    elif arm.name == KMM:
        weights = kernel_mean_matching(u, v, y, width=0.2, bound=4.0)
    elif arm.name == RATIO:
        weights = density_ratio(v, u, method="ulsif", bandwidth=float(u.std()))
    else:
        weights = problem.weights if arm.name == ORACLE and problem.weights is not None else torch.ones_like(y)
    if problem.weights is not None:
        arm.metric(f"{ERROR}, {name}", (weights - problem.weights).square().mean(), better="lower")
    fitted = Ridge(x, y, weights, config.ridge)
    loss = (fitted(problem.unseen_x) - problem.unseen_y).square().mean()
    arm.metric(f"{LOSS}, {name}", loss, better="lower")
    first = Ridge(x[:half], y[:half], torch.ones(half, dtype=y.dtype), config.ridge)  # the same for all
    scores = (y[half:] - first(x[half:])).abs()
    bound = conformal_quantile(scores, config.level, weights=weights[half:], test_weight=float(weights.mean()))
    arm.metric(f"{COVER}, {name}", ((problem.unseen_y - first(problem.unseen_x)).abs() <= bound).double().mean())
    return weights


def _regularise(config: Config, arm: Arm, problem: Problem, larger: Problem) -> None:
    """The error of the weights by alpha, and by the number of rows."""
    for known, strengths in ((problem, GRID), (larger, (config.alpha,))):
        assert known.weights is not None
        box = Ridge(known.x, known.y, torch.ones_like(known.y), config.ridge)
        for alpha in strengths:
            found = target_shift_weights(known.x, known.y, known.target, alpha=alpha, black_box=box)
            error = (found.values - known.weights).square().mean()
            arm.metric(f"error at alpha {alpha:g}" if known is problem else "error of more rows", error, better="lower")


def _judge(lab: Lab, config: Config, arms: dict[str, Arm]) -> None:
    ours, plain, oracle = (arms[name] for name in (OURS, PLAIN, ORACLE))
    error, loss, cover = (f"{what}, model" for what in (ERROR, LOSS, COVER))
    fixed = ours[f"error at alpha {config.alpha:g}"]
    lab.claim(
        "model: the weights are off by at most 0.3 of what weights of 1 are; four times as many rows leave 0.6 of that "
        "at the same alpha",
        ours[error] <= 0.3 * plain[error],
        ours["error of more rows"] <= 0.6 * fixed,
    )
    lab.claim(
        "model: with an alpha chosen without the truth, their error is at most 0.6 of that of the ratio of features, "
        "and 1.1 of that of mean matching, both with the options that are best for the truth",
        ours[error] <= 0.6 * arms[RATIO][error],
        ours[error] <= 1.1 * arms[KMM][error],
    )
    lab.claim(
        "model: they close 0.7 of the gap between predictions of unweighted and of truly weighted fits, whose error is "
        "then at most 1.03 of that of mean matching",
        plain[loss] - ours[loss] >= 0.7 * (plain[loss] - oracle[loss]),
        ours[loss] <= 1.03 * arms[KMM][loss],
    )
    lab.claim(
        "tables: where large responses become more frequent, the error of predictions falls by a tenth or more",
        *(ours[f"{LOSS}, {name}"] <= 0.9 * plain[f"{LOSS}, {name}"] for name in TABLES),
    )
    lab.claim(
        "model: intervals calibrated with them cover the target within 0.03 of the level, unweighted ones miss by 0.05",
        abs(ours[cover] - config.level) <= 0.03,
        abs(plain[cover] - config.level) >= 0.05,
    )
    tried = [ours[f"error at alpha {alpha:g}"] for alpha in GRID]
    lab.claim(
        "ill-posed: at alpha = 1e-6 the error is 10 times that at the alpha chosen without the truth, which is at most "
        "twice the least of the grid",
        tried[0] >= 10 * ours[error],
        ours[error] <= 2 * min(tried),
    )


def _draw(lab: Lab, arms: dict[str, Arm], problem: Problem, found: dict[str, Tensor]) -> None:
    figure, axes = lab.subplots(1, 3, figsize=(13, 3.8))
    order = problem.y.argsort()
    for name in (ORACLE, RATIO, KMM, OURS):
        axes[0].plot(problem.y[order], found[name][order], ".", ms=3, color=arms[name].colour, label=name)
    axes[0].set(xlabel="response", ylabel="weight", title="first sample of the model")
    axes[0].legend(markerscale=3, loc="upper left")
    ours = arms[OURS]
    tried = [ours[f"error at alpha {alpha:g}"] for alpha in GRID]
    axes[1].errorbar(GRID, [float(e) for e in tried], [e.spread or 0 for e in tried], color=ours.colour, marker="o")
    axes[1].axhline(float(ours[f"{ERROR}, model"]), color=ours.colour, ls="--", label="chosen")
    axes[1].axhline(float(arms[PLAIN][f"{ERROR}, model"]), color=arms[PLAIN].colour, label=PLAIN)
    axes[1].set(xscale="log", yscale="log", xlabel="alpha", ylabel=ERROR, title="model")
    axes[1].legend()
    names = ("model", *TABLES, "weather")
    for place, name in enumerate((OURS, KMM, RATIO, ORACLE)):
        known = [i for i, what in enumerate(names) if name != ORACLE or what != "weather"]
        gains = [float(arms[name][f"{LOSS}, {names[i]}"] / arms[PLAIN][f"{LOSS}, {names[i]}"]) for i in known]
        axes[2].bar([i + 0.2 * place - 0.3 for i in known], gains, 0.18, color=arms[name].colour, label=name)
    axes[2].axhline(1, color=arms[PLAIN].colour, label=PLAIN)
    axes[2].set_xticks(range(len(names)), names)
    axes[2].set(ylabel="error of predictions, of unweighted", title="target")
    axes[2].legend(loc="upper left", bbox_to_anchor=(1, 1))
    caption = "Weights of one sample; their error by alpha, mean and spread over samples; what they do for predictions."
    lab.figure("weights", figure, caption)
    lab.bars(f"{COVER}, model", f"{COVER}, cars", caption="Coverage of the target by intervals; the level is 0.9.")
