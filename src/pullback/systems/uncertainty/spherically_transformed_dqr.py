"""Regions for several outcomes at once that bend with their law, and still cover what they promise.

A half-space for each direction holds a share 1 - tau of the outcomes given x; together they bound a region, a convex
one. Spherically transformed directional quantile regression (ST-DQR) first draws codes of outcomes from a conditional
variational autoencoder, whose law is about Gaussian at every x, bounds the codes, decodes points within the bounds, and
calls the region what is near one of them. A conformal step grows or shrinks any of these regions until it covers, for
every law of the data (Feldman, Bates, Romano, JMLR 2023, arXiv 2110.00816).

The banana is the paper's with one input (simulated); the wind and the proteins are real pairs of ours. One network
knows the quantiles of every level tau, so that the level whose region covers is found on validation rows without
another training. Step sizes, and the price of the divergence, are the best of three for the area at equal coverage on
the banana's validation rows. Smaller than in the paper: 6 000 rows, fewer and narrower layers, no adversary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from torch import Tensor, nn

from pullback import data, uncertainty
from pullback.lab import Arm, Lab, above, at_least, below, system
from pullback.uncertainty import BoxRegion, EllipsoidRegion, HalfspaceRegion, PointCloudRegion, Region


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    rows: Annotated[int, at_least(400)] = 6000
    """Of each table: half of it training, 10 % validation, 20 % calibration, 20 % test."""
    alpha: Annotated[float, above(0), below(1)] = 0.1
    """Share that may be outside."""
    latent: Annotated[int, at_least(1)] = 3
    """Dimensions of a code."""
    beta: Annotated[float, above(0)] = 0.03
    """Price of the divergence of codes from a Gaussian."""
    code_steps: Annotated[int, at_least(1)] = 800
    """Adam steps of the autoencoder."""
    steps: Annotated[int, at_least(1)] = 400
    """Adam steps of each other network."""
    batch: Annotated[int, at_least(2)] = 256
    """Rows in a step."""
    lr: Annotated[float, above(0)] = 1e-2
    """Step size at the beginning; it falls to zero as a cosine."""
    direction_lr: Annotated[float, above(0)] = 3e-2
    """The same, of directional quantiles."""
    directions: Annotated[int, at_least(2)] = 16
    """Random directions in a step; a region has 6 times as many."""
    cloud: Annotated[int, at_least(2)] = 200
    """Decoded points of a region."""
    measured: Annotated[int, at_least(4)] = 100
    """Test rows whose regions' areas are measured."""
    grid: Annotated[int, at_least(2)] = 50
    """Cells along each coordinate for that."""
    replicates: Annotated[int, at_least(1)] = 2
    """Data sets or splits, initial weights, batches."""


BOX, DIRECTIONS, CODES, ELLIPSE = "naive QR", "NPDQR", "ST-DQR", "ellipse"
AREA, COVERED, RAW, WORST = "{}: area", "{}: coverage", "{}: coverage before", "{}: worst coverage of a fifth"
TAUS = torch.logspace(-2.6, -0.7, 39)
"""Levels that are tried on validation rows."""
Predict = Callable[[Tensor], Region]
Bounds = Callable[[Tensor], HalfspaceRegion]
Drawn = Callable[[Tensor, Tensor, torch.Generator], Tensor]


@system(
    "spherically-transformed-dqr",
    family="uncertainty",
    title="Calibrated Multiple-Output Quantile Regression with Representation Learning",
    paper="Feldman, Bates, Romano, JMLR 2023, arXiv 2110.00816",
    config=Config,
    smoke={"rows": 400, "code_steps": 3, "steps": 3, "cloud": 20, "measured": 8, "grid": 8, "replicates": 1},
    full={"rows": 20_000, "code_steps": 20_000, "steps": 10_000, "directions": 32, "cloud": 2000, "replicates": 20},
    data=("weather", "sachs"),
    blocks=(
        *("uncertainty.DirectionalQuantiles", "uncertainty.directional_quantile_loss", "uncertainty.ConditionalVAE"),
        *("uncertainty.HalfspaceRegion", "uncertainty.PointCloudRegion", "uncertainty.conformalize_region"),
        "uncertainty.region_area",
    ),
)
def run(lab: Lab, config: Config) -> None:
    """Bound a banana, the wind and two proteins by four kinds of regions, all made to cover."""
    lab.data("a banana that stretches with x", origin="simulated")
    lab.data("the wind at Sand Point three hours later; phosphorylated Erk and Akt of cells", origin="real")
    makers: dict[str, Callable[[Task, Arm], Predict]] = {
        BOX: _boxes,
        DIRECTIONS: lambda task, arm: task.directional(arm, lambda x, y, draws: y, task.dim),
        CODES: _codes,
        ELLIPSE: _ellipses,
    }
    arms = {name: lab.arm(name, baseline=name != CODES) for name in makers}
    for replicate in lab.replicates(config.replicates):
        for name in TABLES:
            task = Task(lab, config, name)
            regions = {kind: task.judge(arm, makers[kind](task, arm)) for kind, arm in arms.items()}
            if name == "banana" and replicate == 0:
                _draw(lab, task, regions, arms)
    banana, worst = ({kind: arm[key.format("banana")] for kind, arm in arms.items()} for key in (AREA, WORST))
    lab.claim(
        "banana: regions of codes have at most 0.6 of the area of boxes, 0.7 of that of half-spaces, 0.5 of ellipses",
        *(banana[CODES] <= share * banana[kind] for kind, share in ((BOX, 0.6), (DIRECTIONS, 0.7), (ELLIPSE, 0.5))),
    )
    lab.claim(
        "banana: the fifth covered least is covered 0.1 better than by ellipses, and by boxes at most 0.05 better",
        *(worst[CODES] >= worst[kind] + more for kind, more in ((ELLIPSE, 0.1), (BOX, -0.05))),
    )
    error = 4 * math.sqrt(
        2 * config.alpha * (1 - config.alpha) / (0.2 * config.rows * config.replicates)
    )  # of both parts
    lab.claim(
        "after calibration every kind of region covers 0.9 of each table, within 4 standard errors",
        *(abs(arm[COVERED.format(name)] - 1 + config.alpha) <= error for arm in arms.values() for name in TABLES),
    )
    pairs = [(arm[RAW.format(name)], arm[COVERED.format(name)]) for arm in arms.values() for name in TABLES]
    gaps = [[abs(share - 1 + config.alpha) for share in pair] for pair in pairs]
    wrong = [pair for pair in gaps if float(pair[0]) > 0.02]  # the others' distances are those of few test rows
    statement = "calibration at least halves the distance from 0.9 of what misses it by more than 0.02, on average"
    lab.claim(statement, sum(after for _, after in wrong) <= 0.5 * sum(before for before, _ in wrong))
    lab.bars(
        *(AREA.format(name) for name in TABLES),
        caption="In units of both standard deviations, as far as within half a unit of the data.",
    )
    lab.bars(*(f.format("banana") for f in (RAW, COVERED, WORST)), caption="A fifth of the test rows is 240 of them.")


class Task:
    """A table with outcomes of two coordinates, in units of their standard deviations, and its networks' training."""

    def __init__(self, lab: Lab, config: Config, name: str) -> None:
        self.lab, self.config, self.name = lab, config, name
        x, y = TABLES[name](config.rows, lab.fork(f"{name} data"))
        order = torch.randperm(len(y), generator=lab.fork(f"{name} split"))[: config.rows]
        parts = order.tensor_split([round(share * len(order)) for share in (0.5, 0.6, 0.8)])
        x, y = ((v - v[parts[0]].mean(0)) / v[parts[0]].std(0).clamp(min=1e-6) for v in (x, y))
        self.train, self.check, self.calibrate, self.test = ((x[p].float(), y[p].float()) for p in parts)
        self.low, self.high = self.train[1].amin(0) - 0.5, self.train[1].amax(0) + 0.5
        self.features, self.dim = x.shape[1], y.shape[1]

    def fit(self, arm: Arm, model: nn.Module, loss: Drawn, part: str) -> None:
        """Train a network on batches of training rows."""
        steps = self.config.code_steps if part == "codes" else self.config.steps
        lr = self.config.direction_lr if part == "quantiles" else self.config.lr
        optimizer = torch.optim.Adam(model.parameters(), lr=lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        draws = self.lab.fork(f"{self.name} {part}")
        for _ in arm.steps(steps, model, optimizer, schedule, draws, name=f"{self.name} {part}"):
            rows = torch.randint(len(self.train[1]), (self.config.batch,), generator=draws)
            value = loss(self.train[0][rows], self.train[1][rows], draws)
            arm.descend(value, optimizer, name=f"loss of {self.name} {part}")
            schedule.step()
        model.requires_grad_(False)

    def judge(self, arm: Arm, predict: Predict) -> Region:
        """Calibrate regions and measure them on test rows; return those of some."""
        x, y = self.test
        calibrated = uncertainty.conformalize_region(predict, *self.calibrate, level=1 - self.config.alpha)
        scores = predict(x).score(y[:, None]).squeeze(-1)
        covered = (scores <= calibrated.growth).float()
        fifths = covered[x[:, 0].argsort()].tensor_split(5)
        some = calibrated.region(x[: self.config.measured])
        area = uncertainty.region_area(some, self.low, self.high, grid=self.config.grid)
        arm.metric(AREA.format(self.name), area.mean(), better="lower")
        arm.metric(RAW.format(self.name), (scores <= 0).float().mean())
        arm.metric(COVERED.format(self.name), covered.mean())
        arm.metric(WORST.format(self.name), min(part.mean() for part in fifths), better="higher")
        return calibrated.region(self.shown())

    def shown(self) -> Tensor:
        """Return inputs at which regions are drawn."""
        return self.test[0][self.test[0][:, 0].argsort()][:: max(1, len(self.test[0]) // 4)][:4]

    def directional(self, arm: Arm, targets: Drawn, dim: int) -> Bounds:
        """Learn the directional quantiles of targets at every level; return the half-spaces of that which covers."""
        with arm.weights("quantiles"):
            model = uncertainty.DirectionalQuantiles(self.features + 1, dim, hidden=40)
        everywhere = uncertainty.unit_directions(6 * self.config.directions, dim)

        def known(x: Tensor, tau: float) -> Tensor:
            return torch.cat([x, torch.special.ndtri(torch.full_like(x[:, :1], tau)) + 1.5], -1)

        def loss(x: Tensor, y: Tensor, draws: torch.Generator) -> Tensor:
            tau = float(TAUS[torch.randint(len(TAUS), (), generator=draws)])
            u = uncertainty.unit_directions(self.config.directions, dim, generator=draws)
            scale = math.exp(-0.5 * torch.special.ndtri(torch.tensor(tau)).item() ** 2)  # small losses of rare events
            found = model(known(x, tau), u)
            return uncertainty.directional_quantile_loss(found, targets(x, y, draws), u, level=tau) / scale

        self.fit(arm, model, loss, "quantiles")

        def bounds(x: Tensor, tau: float) -> HalfspaceRegion:
            return HalfspaceRegion(everywhere, model(known(x, tau), everywhere))

        codes = targets(*self.check, self.lab.fork(f"{self.name} check"))[:, None]
        shares = [bounds(self.check[0], tau).contains(codes).float().mean() for tau in TAUS.tolist()]
        tau = float(TAUS[(torch.stack(shares) - 1 + self.config.alpha).abs().argmin()])
        arm.metric(f"{self.name}: tau", tau)
        return partial(bounds, tau=tau)


def _boxes(task: Task, arm: Arm) -> Predict:
    """Bound each coordinate by quantiles at levels of Bonferroni."""
    d, outer = task.dim, task.config.alpha / (2 * task.dim)
    with arm.weights():
        model = _perceptron(task.features, 2 * d)

    def loss(x: Tensor, y: Tensor, draws: torch.Generator) -> Tensor:
        return uncertainty.pinball_loss(model(x).unflatten(-1, (d, 2)), y, torch.tensor([outer, 1 - outer]))

    task.fit(arm, model, loss, "bounds")
    return lambda x: BoxRegion(*model(x).unflatten(-1, (d, 2)).sort(-1).values.unbind(-1))


def _ellipses(task: Task, arm: Arm) -> Predict:
    """Put the covariance of the residuals around a regression."""
    with arm.weights():
        model = _perceptron(task.features, task.dim)
    task.fit(arm, model, lambda x, y, draws: (model(x) - y).square().mean(), "means")
    factor = torch.linalg.cholesky((task.check[1] - model(task.check[0])).T.cov())
    radius = math.sqrt(-2 * math.log(task.config.alpha))  # of a Gaussian in the plane
    return lambda x: EllipsoidRegion(model(x), factor, radius)


def _codes(task: Task, arm: Arm) -> Predict:
    """Bound the code of the outcome in every direction; decode what is within."""
    with arm.weights("codes"):
        vae = uncertainty.ConditionalVAE(task.features, task.dim, latent=task.config.latent)
    task.fit(arm, vae, lambda x, y, draws: vae.loss(y, x, beta=task.config.beta, generator=draws), "codes")
    region = task.directional(arm, lambda x, y, draws: vae.encode(y, x).rsample(generator=draws), task.config.latent)

    def predict(x: Tensor) -> PointCloudRegion:
        codes = region(x).sample(task.config.cloud, steps=3, generator=torch.Generator().manual_seed(0))
        points = vae.decode(codes, x[:, None])
        return PointCloudRegion(points, PointCloudRegion(points).spacing(0.9))

    return predict


def _perceptron(features: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(features, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, outputs))


def _banana(rows: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the paper's law with one input: a band of width 0.2 along a cosine, longer where x is small."""
    x, z, angle, width = torch.rand(4, rows, generator=draws)
    x = 0.8 + 2.4 * x
    z, angle, width = (2 * z - 1) * math.pi / x, 2 * math.pi * angle, 0.1 * (2 * width - 1)
    across = (1 - torch.cos(x * z)) / 2 + torch.sin(x)
    return x[:, None], torch.stack([z + width * angle.cos(), across + width * angle.sin()], -1)


def _wind(rows: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    year = data.weather("sand_point")
    angle = year.column("wind direction") * math.pi / 180
    east, north = (year.column("wind speed") * f(angle) for f in (torch.sin, torch.cos))
    now = [east, north, *(year.column(name) for name in ("temperature", "dew point", "humidity", "pressure"))]
    return torch.stack(now, -1)[:-3], torch.stack([east, north], -1)[3:]


def _proteins(rows: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    cells = data.sachs()
    log = cells.observations.double().log()
    pair = [cells.names.index(name) for name in ("Erk", "Akt")]
    return log[:, [k for k in range(len(cells.names)) if k not in pair]], log[:, pair]


TABLES = {"banana": _banana, "wind": _wind, "proteins": _proteins}


def _draw(lab: Lab, task: Task, regions: dict[str, Region], arms: dict[str, Arm]) -> None:
    figure, axes = lab.subplots(1, 4, figsize=(13, 3.6), sharex=True, sharey=True)
    ticks = (task.low + (task.high - task.low) * torch.linspace(0, 1, 120)[:, None]).T
    cells = torch.cartesian_prod(*ticks)
    x, y = task.test
    for k, axis in enumerate(axes):
        near = (x[:, 0] - task.shown()[k, 0]).abs().argsort()[: len(x) // 10]
        axis.plot(*y[near].T, ".", color="0.7", ms=2)
        for kind, region in regions.items():
            axis.contour(
                *ticks,
                region.score(cells)[k].reshape(120, 120).T,
                levels=[0.0],
                colors=[arms[kind].colour],
                linewidths=1.5,
            )
        axis.set_title(f"input {float(task.shown()[k, 0]):.1f}")
    for kind, arm in arms.items():
        axes[0].plot([], [], color=arm.colour, label=kind)
    figure.legend(loc="outside lower center", ncols=4)
    lab.figure("regions", figure, "Of the banana; grey: the tenth of the test rows with the nearest inputs.")
