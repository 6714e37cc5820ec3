"""Which of the ways to calibrate a network's predicted law works: a map after training, or a term of the loss?

A law is calibrated if a share tau of what comes is below its level tau; how far these shares are off on average is the
PCE. After training, a map of levels can be fitted to the PITs of held-out rows: their empirical cdf (which is conformal
prediction), a line through it, or a smooth one that keeps a density. During training, a term of the loss can pull PITs
to uniform: the smoothed PCE, their distance to even spacing, their entropy. Over the paper's 57 tables maps win (Dheur,
Ben Taieb, ICML 2023, arXiv 2306.02738). As many test rows of a perfect law have a PCE too: what counts is the excess
above that. On the three tables that leave 59 to 76 rows for calibration a map errs about as much as it mends: claims
say more of the five that leave at least 299.

Smaller than in the paper: eight real tables of at most 4 000 rows instead of 57, three splits, hidden layers of 48, and
three weights for each term. All networks of a kind train at once. Those that need no calibration rows train on them.
Hours of weather are drawn at random and treated as exchangeable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, NamedTuple

import torch
from torch import Tensor, nn

from pullback import data, uncertainty
from pullback.lab import Arm, Lab, above, at_least, system
from pullback.uncertainty import MixtureOfGaussians, Recalibrator, calibration_error, crps, quantile_calibration_error

LEVELS = (torch.arange(24) + 0.5) / 24
"""Of the quantile networks, and of the quantiles that stand for a recalibrated law in the CRPS."""
LARGER = 3
"""The place of crime among the tables, the first of the larger ones, whose reliability is drawn."""
WIDEST = 24
"""Features; tables with more are projected on their first principal components."""


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    rows: Annotated[int, at_least(400)] = 4000
    """Of a table at most."""
    splits: Annotated[int, at_least(2)] = 3
    """Random splits of each table: 45 % training, 15 % validation, 15 % calibration, 25 % test."""
    steps: Annotated[int, at_least(1)] = 250
    """Adam steps of each network."""
    batch: Annotated[int, at_least(4)] = 128
    """Rows in a step."""
    lr: Annotated[float, above(0)] = 3e-3
    """Step size."""
    every: Annotated[int, at_least(1)] = 50
    """Steps between looks at the validation loss, whose best network is kept."""
    hidden: Annotated[int, at_least(1)] = 48
    """Units of each of three layers."""
    weights: Annotated[tuple[float, ...], above(0)] = (0.2, 1.0, 5.0)
    """Of the terms that calibrate, tried beside 0."""
    smooth: Annotated[float, above(0)] = 100.0
    """Steepness of the smoothed PCE and of the smooth map."""


NLL, SCORE, QUANTILES = "NLL", "CRPS", "quantiles"
MAPS = {"empirical map": "empirical", "linear map": "linear", "smooth map": "kde"}
TERMS = ("PCE-KDE", "PCE-Sort", "QR")
EXCESS, LARGE = "excess PCE", "excess PCE of the larger tables"
COVERAGE = "deviation of the simulated coverage from its formula, in standard errors"


@system(
    "calibrated-regression",
    family="uncertainty",
    title="A Large-Scale Study of Probabilistic Calibration in Neural Network Regression",
    paper="Dheur, Ben Taieb, ICML 2023, arXiv 2306.02738",
    config=Config,
    smoke={"rows": 400, "splits": 2, "steps": 2, "hidden": 4, "weights": (1.0,)},
    full={"splits": 5, "steps": 3000, "batch": 512, "hidden": 100, "weights": (0.01, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0)},
    data=("regression", "fairness", "weather", "survival", "sachs", "diabetes"),
    blocks=(
        *("uncertainty.calibration_error", "uncertainty.pce_sort_loss", "uncertainty.spacing_entropy"),
        *("uncertainty.Recalibrator", "uncertainty.RecalibratedDistribution", "uncertainty.MixtureOfGaussians"),
        *("uncertainty.crps", "uncertainty.conformalize_quantiles", "uncertainty.MLPEnsemble"),
    ),
)
def run(lab: Lab, config: Config) -> None:
    """Train with three losses and three terms, put maps behind, count how often the levels are right."""
    lab.data("diabetes, cars, homes, crime, wind, temperature, CD4 cells, a phosphorylated protein", origin="real")
    _coverage(lab)
    tables = Tables(lab, config)
    lab.arm("perfect law", baseline=True).metric("PCE", tables.floor, better="lower", replicated=True)
    terms: dict[str, Function] = {
        TERMS[0]: lambda out, y: calibration_error(mixture(out).cdf(y), smooth=config.smooth),
        TERMS[1]: lambda out, y: uncertainty.pce_sort_loss(mixture(out).cdf(y)),
        TERMS[2]: lambda out, y: -uncertainty.spacing_entropy(mixture(out).cdf(y), m=math.isqrt(y.shape[-1])),
    }
    maps = {name: partial(_mapped, method, config.smooth) for name, method in MAPS.items()}
    shown = study(lab, config, tables, NLL, Kind(9, lambda out, y: -mixture(out).log_prob(y), terms, _law, maps))
    study(lab, config, tables, SCORE, Kind(9, lambda out, y: crps(mixture(out), y), {}, _law, maps))
    pinball = partial(uncertainty.pinball_loss, level=LEVELS, reduction="none")
    terms = {TERMS[0]: lambda out, y: quantile_calibration_error(out.sort(-1).values, y, LEVELS, smooth=config.smooth)}
    kind = Kind(len(LEVELS), lambda out, y: 2 * pinball(out, y).mean(-1), terms, _quantiles, {"shifts": _shifted})
    study(lab, config, tables, QUANTILES, kind)
    plain, during = lab.arm(NLL), [lab.arm(f"{NLL}, {name}") for name in TERMS]
    after = [lab.arm(f"{NLL} + {name}") for name in MAPS]
    lab.claim(
        "each map takes 20 % off the excess PCE of networks that train on its rows too, on the larger tables 40 %",
        *(arm[EXCESS] <= 0.8 * plain[EXCESS] for arm in after),
        *(arm[LARGE] <= 0.6 * plain[LARGE] for arm in after),
    )
    lab.claim(
        "the smoothed PCE as a term of the loss takes off at least 15 %, at no more than 10 % more CRPS",
        during[0][EXCESS] <= 0.85 * plain[EXCESS],
        during[0]["CRPS"] <= 1.1 * plain["CRPS"],
    )
    pairs = [(lab.arm(f"{SCORE} + linear map"), lab.arm(SCORE)), (lab.arm(f"{QUANTILES} + shifts"), lab.arm(QUANTILES))]
    lab.claim(
        "a linear map behind the CRPS and shifts of quantiles take off at least 20 %, on the larger tables 25 %",
        *(arm[EXCESS] <= 0.8 * bare[EXCESS] for arm, bare in pairs),
        *(arm[LARGE] <= 0.75 * bare[LARGE] for arm, bare in pairs),
    )
    gap = torch.tensor([[arm["PCE"].values for arm in arms] for arms in (after, during)]).mean(1).diff(dim=0)
    value = math.sqrt(gap.numel()) * gap.mean() / gap.std()
    errors = lab.metric("gap between terms and maps, in standard errors of paired differences", value)
    lab.claim("on average maps leave less PCE than terms, by at least 2 standard errors", errors >= 2)
    kinds = [sum((arm[LARGE] for arm in arms[1:]), arms[0][LARGE]) for arms in (after, during)]
    lab.claim("on the larger tables they leave at most 0.9 of the excess PCE of terms", kinds[0] <= 0.9 * kinds[1])
    lab.bars("PCE", caption="Mean and spread over tables and splits. Of so few test rows a perfect law has a PCE too.")
    lab.bars("CRPS", caption="In standard deviations of the target.")
    _draw(lab, shown)


Rows = tuple[Tensor, Tensor]
"""Inputs and targets."""


class Tables:
    """Every table in every split, standardised by the rows that some network trains on; one index for both."""

    def __init__(self, lab: Lab, config: Config) -> None:
        self.parts: list[dict[str, Rows]] = []
        floor, uniform = [], lab.fork("perfect")
        for name, table in data.regression_tables().items():
            for split in range(config.splits):
                order = torch.randperm(len(table.target), generator=lab.fork(f"{name} {split}"))[: config.rows]
                train, check, calibrate, test = order.tensor_split([round(s * len(order)) for s in (0.45, 0.6, 0.75)])
                both = torch.cat([train, calibrate])
                x = (table.features - table.features[both].mean(0)) / table.features[both].std(0).clamp(min=1e-6)
                if x.shape[1] > WIDEST:
                    x = x @ torch.linalg.svd(x[both], full_matrices=False).Vh[:WIDEST].T
                    x = x / x[both].std(0)
                x = nn.functional.pad(x, (0, WIDEST - x.shape[1])).float()
                y = ((table.target - table.target[both].mean()) / table.target[both].std()).float()
                rows = {"train": train, "check": check, "calibrate": calibrate, "test": test, "both": both}
                self.parts.append({part: (x[index], y[index]) for part, index in rows.items()})
                floor.append(calibration_error(torch.rand(200, len(test), generator=uniform)).mean())
        self.floor = torch.stack(floor)
        """The PCE that so many test rows have under a perfect law."""

    def padded(self, parts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Return inputs, targets and the number of rows of all tables, for each part in turn."""
        rows = [p[part] for part in parts for p in self.parts]
        x, y = (nn.utils.rnn.pad_sequence(list(values), batch_first=True) for values in zip(*rows, strict=True))
        return x, y, torch.tensor([len(target) for _, target in rows])


Function = Callable[[Tensor, Tensor], Tensor]
"""Of outputs of networks and targets, a row or a network at a time."""


class Found(NamedTuple):
    """What a law is worth on a set of rows."""

    pce: Tensor
    score: Tensor
    pit: Tensor


@dataclass(frozen=True)
class Kind:
    """Networks of one kind: their loss (of a row), terms (of a network), what they are worth alone and behind maps."""

    outputs: int
    loss: Function
    terms: Mapping[str, Function]
    measure: Callable[[Tensor, Tensor], Found]
    maps: Mapping[str, Callable[[Tensor, Tensor, Tensor, Tensor], Found]]


def mixture(out: Tensor) -> MixtureOfGaussians:
    """Read a mixture of three Gaussians off the outputs of a network."""
    logits, mean, scale = out.unflatten(-1, (3, 3)).unbind(-2)
    return MixtureOfGaussians(logits, mean, nn.functional.softplus(scale) + 0.01)


def _law(out: Tensor, y: Tensor) -> Found:
    pit = mixture(out).cdf(y)
    return Found(calibration_error(pit), crps(mixture(out), y).mean(), pit)


def _mapped(method: str, smooth: float, known: Tensor, known_y: Tensor, out: Tensor, y: Tensor) -> Found:
    pit = mixture(known).cdf(known_y).clamp(1e-9, 1 - 1e-9)  # so that quantiles stay finite
    recalibrator = Recalibrator(method, smooth=smooth).fit(pit)
    law = uncertainty.RecalibratedDistribution(mixture(out), recalibrator)
    score = uncertainty.crps_from_quantiles(law.icdf(LEVELS.to(out)[:, None]).T, y, LEVELS)
    return Found(calibration_error(law.cdf(y)), score.mean(), law.cdf(y))


def _quantiles(out: Tensor, y: Tensor) -> Found:
    ordered = out.sort(-1).values
    error = quantile_calibration_error(ordered, y, LEVELS)
    return Found(error, uncertainty.crps_from_quantiles(ordered, y, LEVELS).mean(), y)


def _shifted(known: Tensor, known_y: Tensor, out: Tensor, y: Tensor) -> Found:
    quantiles = (known.sort(-1).values, known_y, out.sort(-1).values)
    return _quantiles(uncertainty.conformalize_quantiles(*quantiles, LEVELS, method="level").quantiles, y)


def study(lab: Lab, config: Config, tables: Tables, name: str, kind: Kind) -> dict[str, Tensor]:
    """Compare a loss with terms and maps on all tables; return the PITs of one table by arm."""
    weighted = [("both", term, weight) for term in kind.terms for weight in config.weights]
    variants = [("train", "", 0.0), ("both", "", 0.0), *weighted]
    nets = _fit(lab, config, lab.arm(name, baseline=True), tables, variants, kind)
    places = range(len(tables.parts))

    def out(variant: int, t: int, rows: str) -> tuple[Tensor, Tensor]:
        x, y = tables.parts[t][rows]
        with torch.no_grad():
            return nets.member(variant * len(tables.parts) + t, x).double(), y.double()

    checked = [[kind.measure(*out(v, t, "check"))[:2] for t in places] for v in range(len(variants))]
    error, score = torch.tensor(checked).unflatten(1, (-1, config.splits)).mean(2).unbind(-1)
    results: dict[str, list[Found]] = {name: [kind.measure(*out(1, t, "test")) for t in places]}
    for term in kind.terms:
        # Of each table the least validation PCE, among weights (0 too) that cost at most a tenth of the CRPS there.
        tried = torch.tensor([variant[0] == "both" and variant[1] in ("", term) for variant in variants])
        best = error.masked_fill(~tried[:, None] | (score > 1.1 * score[1]), math.inf).argmin(0)
        chosen = best.repeat_interleave(config.splits).tolist()
        results[f"{name}, {term}"] = [kind.measure(*out(chosen[t], t, "test")) for t in places]
    for label, mapped in kind.maps.items():
        results[f"{name} + {label}"] = [mapped(*out(0, t, "calibrate"), *out(0, t, "test")) for t in places]
    for label, found in results.items():
        arm = lab.arm(label, baseline=label == name)
        arm.metric("PCE", pce := torch.stack([f.pce for f in found]), better="lower", replicated=True)
        arm.metric(EXCESS, excess := pce - tables.floor, better="lower", replicated=True)
        arm.metric(LARGE, excess[LARGER * config.splits :], better="lower", replicated=True)
        arm.metric("CRPS", torch.stack([f.score for f in found]), better="lower", replicated=True)
    return {label: found[LARGER * config.splits].pit for label, found in results.items()}


def _fit(
    lab: Lab, config: Config, arm: Arm, tables: Tables, variants: list[tuple[str, str, float]], kind: Kind
) -> uncertainty.MLPEnsemble:
    """Train all variants on all tables at once; of each network that of the least validation loss is kept."""
    x, y, count = tables.padded([rows for rows, _, _ in variants])
    check_x, check_y, checks = tables.padded(["check"] * len(variants))
    there = torch.arange(check_y.shape[1]) < checks[:, None]
    with arm.weights():
        nets = uncertainty.MLPEnsemble(len(x), (WIDEST, *[config.hidden] * 3, kind.outputs))
    optimizer, best = torch.optim.Adam(nets.parameters(), lr=config.lr), uncertainty.BestMembers(nets)
    batches, network = lab.fork("batches"), torch.arange(len(x))[:, None]
    for step in arm.steps(config.steps, nets, optimizer, batches, best):
        chosen = (torch.rand(len(x), config.batch, generator=batches) * count[:, None]).long()
        out, target = nets(x[network, chosen]), y[network, chosen]
        total = kind.loss(out, target).mean(-1).sum()
        slices = zip(out.split(len(tables.parts)), target.split(len(tables.parts)), variants, strict=True)
        total = total + sum(w * kind.terms[term](o, goal).sum() for o, goal, (_, term, w) in slices if term)
        arm.descend(total, optimizer)
        if (step + 1) % config.every == 0 or step + 1 == config.steps:
            with torch.no_grad():
                best.update((kind.loss(nets(check_x), check_y) * there).sum(-1) / checks)
    best.restore()
    return nets


def _coverage(lab: Lab) -> None:
    """Simulate calibration sets of a wrong law: is what comes below its recalibrated quantile as often as it must?"""
    draws, levels = lab.fork("coverage"), torch.tensor([0.05, 0.5, 0.9, 0.95], dtype=torch.float64)
    worst, count = 0.0, 5000
    for n in (19, 60, 199):
        pit = torch.rand(count, n + 1, generator=draws, dtype=torch.float64) ** 3
        asked = Recalibrator("empirical").fit(pit[:, :n]).inverse_transform(levels.expand(count, -1))
        share = torch.ceil((n + 1) * levels - 1e-9) / (n + 1)
        gap = (pit[:, n:] <= asked).double().mean(0) - share
        worst = max(worst, float((gap.abs() / (share * (1 - share) / count).sqrt()).max()))
    found = lab.arm(f"{NLL} + empirical map").metric(COVERAGE, worst, better="lower")
    statement = "the empirical map of a wrong law covers a level with probability ceil((n + 1) level) / (n + 1)"
    lab.claim(statement, found <= 4, scale="smoke")


def _draw(lab: Lab, pits: dict[str, Tensor]) -> None:
    figure, axes = lab.subplots(figsize=(7, 4.4))
    levels = torch.linspace(0, 1, 101, dtype=torch.float64)
    for name in (NLL, f"{NLL}, {TERMS[0]}", *(f"{NLL} + {name}" for name in MAPS)):
        share = (pits[name][:, None] <= levels).double().mean(0)
        axes.plot(levels, share - levels, color=lab.arm(name).colour, label=name)
    axes.set(xlabel="level", ylabel="share of test rows below it, minus the level")
    axes.legend(fontsize="small")
    lab.figure("reliability", figure, "Of the table of crime, first split.")
