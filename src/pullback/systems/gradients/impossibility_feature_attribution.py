"""What integrated gradients and Shapley values cannot say about a model, however exactly they are computed.

A complete and linear attribution of ``f + h(x_j)`` is that of ``f`` plus ``h(x_j)`` above its reference, so a sum of
four ReLUs ``h`` gives feature ``j`` any attribution and any slope at ``x``: no test of local behaviour that reads the
attribution alone has sensitivity + specificity above 1 (Bilodeau, Jaques, Koh, Kim, PNAS 2024). Asking the model near
``x`` answers at the same price. First the pairs of the proof are built, then 48 networks of random depth, width and
table are asked three questions: which way does the output move with a feature, does it move at all, can a move of the
feature flip the decision.

Attributions are read twice: as they are (is it positive, is it large; of a direction, with the sign that is right more
often, since near the decision a complete attribution opposes it), and with all that can be known beside them, that is,
divided by the distance to the reference, and for a flip set against the margin of the decision. The second reading is
exact for linear models, where the first one already fails. Smaller than in the paper: three tables of scikit-learn
(Wisconsin breast cancer, wine, diabetes), networks of at most three hidden layers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor, nn

from pullback import data, gradients
from pullback.gradients import Attribution
from pullback.lab import Arm, Lab, above, at_least, system

TABLES = ("diabetes", "breast_cancer", "wine")
TASKS = ("direction", "direction, wide", "use", "flip, wide")
KNOWN = ", all known"


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    pairs: Annotated[int, at_least(2)] = 100
    """Constructed pairs of each attribution."""
    networks: Annotated[int, at_least(3)] = 48
    """Trained networks, a third of them on each table."""
    steps: Annotated[int, at_least(1)] = 300
    """Adam steps of each network on its whole table."""
    lr: Annotated[float, above(0)] = 1e-2
    """Step size of Adam."""
    points: Annotated[int, at_least(8)] = 200
    """Points with a feature each that every network is asked about."""
    queries: Annotated[int, at_least(2)] = 20
    """Evaluations a feature and point, of every method; an even number."""
    budgets: Annotated[tuple[int, ...], at_least(2)] = (2, 4, 8, 16, 32, 64)
    """Numbers of evaluations at which wrong directions are counted, even."""
    delta: Annotated[float, above(0)] = 0.25
    """Half the width of a neighbourhood, in standard deviations of the feature; four times that when it is wide."""


@system(
    "impossibility-feature-attribution",
    family="gradients",
    title="Impossibility Theorems for Feature Attribution",
    paper="Bilodeau, Jaques, Koh, Kim, PNAS 2024, arXiv 2212.11870",
    config=Config,
    smoke={"pairs": 2, "networks": 3, "steps": 3, "points": 20, "budgets": (2, 4)},
    full={"pairs": 1000, "networks": 300, "steps": 3000, "points": 500, "queries": 100},
    blocks=(
        "gradients.integrated_gradients",
        "gradients.shapley_values",
        "gradients.adversarial_pair",
        "gradients.local_behaviour",
        "gradients.hypothesis_test_curve",
    ),
)
def run(lab: Lab, config: Config) -> None:
    """Build the pairs of the proof, then ask trained networks."""
    lab.data("diabetes, Wisconsin breast cancer and wine, standardised", origin="real")
    arms = {"queries": lab.arm("queries")}
    arms |= {n: lab.arm(n, baseline=True) for n in ("integrated gradients", "Shapley values", "gradient")}
    figure, axes = lab.subplots(2, 2, figsize=(8.4, 6.4))
    _construct(lab, config, arms, axes[0, 0])
    _ask(lab, config, arms, axes.flat[1:])
    caption = (
        "Top left: a network along one feature and two with its integrated gradients (baseline: cross) and opposite "
        "slopes near a point (shaded). Operating curves, mean over networks: solid as attributions are, dashed with "
        "distance and margin. Bottom right: diabetes, distances known, equal evaluations but for the one gradient."
    )
    lab.figure("impossibility", figure, caption)


def _standardised(name: str) -> tuple[Tensor, Tensor]:
    """Features in standard deviations; progression above its median, the wine of cultivar 1, or a benign tumour."""
    table = getattr(data, name)()
    x = (table.features - table.features.mean(0)) / table.features.std(0)
    return x, (table.target > table.target.median() if name == "diabetes" else table.target == 1).float()


def _train(lab: Lab, config: Config, arm: Arm, table: str, name: str, linear: bool = False) -> nn.Module:
    """A network of random shape that fits its whole table, one output: the logit."""
    x, y = _standardised(table)
    shape = lab.fork("shapes")
    depth, width = int(torch.randint(1, 4, (), generator=shape)), 2 ** int(torch.randint(4, 7, (), generator=shape))
    with arm.weights(name):
        layers: list[nn.Module] = [nn.LazyLinear(1)]
        if not linear:
            layers = [m for _ in range(depth) for m in (nn.LazyLinear(width), nn.ReLU())] + layers
        network = nn.Sequential(*layers, nn.Flatten(0))
        network(x)
    optimizer = torch.optim.Adam(network.parameters(), lr=config.lr)
    for _ in arm.steps(config.steps, network, optimizer, name=name):
        arm.descend(nn.functional.binary_cross_entropy_with_logits(network(x), y), optimizer, name=f"loss, {name}")
    return network.requires_grad_(False)


def _construct(lab: Lab, config: Config, arms: dict[str, Arm], axis: Any) -> None:
    """Pairs with any attribution that is asked for, one model rising and the other falling."""
    network = _train(lab, config, arms["queries"], "diabetes", "model of the pairs").double()
    x, draw = _standardised("diabetes")[0].double(), lab.fork("pairs")
    background = x[torch.randperm(len(x), generator=draw)[:20]]
    attributions: dict[str, tuple[Callable[..., Attribution], Tensor]] = {
        "integrated gradients": (partial(gradients.integrated_gradients, tolerance=1e-9), x.mean(0)),
        "Shapley values": (gradients.shapley_values, background),
    }
    words: dict[str, Any] = {"delta": config.delta, "queries": config.queries, "generator": draw}
    for name, (attribute, reference) in attributions.items():
        rows = reference.view(-1, x.shape[1])
        near: dict[str, Any] = {"reference": rows, "delta": config.delta}
        errors, residuals, scores, directions = [], [], [], []
        for _ in range(config.pairs):
            feature = int(torch.randint(x.shape[1], (), generator=draw))
            away = ((x[:, feature, None] - rows[:, feature]).abs() > 2 * config.delta).any(1).nonzero()
            point = x[away[torch.randint(len(away), (), generator=draw)]][0]
            value = float(5 * torch.randn((), generator=draw))
            values_of = lambda model, at, _, a=attribute, r=reference: a(model, at, r).values  # noqa: E731
            pair = gradients.adversarial_pair(network, point, feature, attribution=values_of, value=value, **near)
            for model in pair:
                found = attribute(model, point, reference)
                directions.append(gradients.local_behaviour(model, point, feature, **words).effect.sign())
                scores.append(found.values[feature])
                errors.append((scores[-1] - value).abs())
                residuals.append(found.residual.abs())
        truth = torch.tensor([True, False]).repeat(config.pairs)
        curve = gradients.hypothesis_test_curve(torch.stack(scores).round(decimals=5), truth)
        off = (curve.sensitivity + curve.specificity - 1).abs().max()
        lab.claim(
            f"pairs asked for opposite slopes and one value of {name} have it within 1e-6, complete within 1e-4, so "
            "that sensitivity + specificity of every threshold is 1 within 0.02; queries tell all of them apart",
            arms[name].metric("pairs: error of the attribution", max(errors), better="lower") <= 1e-6,
            arms[name].metric("pairs: error of completeness", max(residuals), better="lower") <= 1e-4,
            arms[name].metric("pairs: most that a threshold gains", off, better="lower") <= 0.02,
            bool((torch.stack(directions) == torch.where(truth, 1.0, -1.0)).all()),
            scale="smoke",
        )
        if name == "integrated gradients":
            pair = gradients.adversarial_pair(network, point, feature, **near)
            line, centre = point.repeat(801, 1), float(point[feature])
            line[:, feature] = torch.linspace(-1, 1, 801) * (abs(centre) + 3 * config.delta)
            axis.axvspan(centre - config.delta, centre + config.delta, color="#dddddd")
            for label, model in {"network": network, "rises": pair.increasing, "falls": pair.decreasing}.items():
                axis.plot(line[:, feature], model(line), color=lab.colour(label), label=label)
            axis.plot([0], [float(network(point.index_fill(0, torch.tensor(feature), 0.0)[None]))], "kx")
            axis.set(xlabel=f"feature {feature}", ylabel="logit", title="one attribution, two behaviours")
            axis.legend(fontsize=8)


class _Asked(NamedTuple):
    x: Tensor
    feature: Tensor
    logit: Tensor
    effect: Tensor
    truth: dict[str, Tensor]


def _points(network: nn.Module, x: Tensor, config: Config, draw: torch.Generator) -> _Asked:
    """Points, a feature of each, and what the network does there, by 128 evaluations on a grid."""
    near = x[network(x).abs().argsort()[: len(x) // 2]]  # whoever asks for a flip is not far from it
    x = near[torch.randint(len(near), (config.points,), generator=draw)]
    feature, logit = torch.randint(x.shape[1], (config.points,), generator=draw), network(x)
    grid, truth = (torch.arange(64) + 0.5) / 64, dict[str, Tensor]()
    for wide in (False, True):
        moves = (4 if wide else 1) * config.delta * grid[:, None] * nn.functional.one_hot(feature, x.shape[1])[:, None]
        up, down = (network((x[:, None] + s * moves).flatten(0, 1)).view(len(x), -1) for s in (1, -1))
        both = torch.cat([up, down], 1)
        if wide:
            truth["direction, wide"] = (up - down).mean(1) > 0
            truth["flip, wide"] = ((both > 0) != (logit > 0)[:, None]).any(1)
        else:
            effect, spread = (up - down).mean(1), both.amax(1) - both.amin(1)
            truth |= {"direction": effect > 0, "use": spread > spread.median()}
    return _Asked(x, feature, logit, effect, truth)


def _scores(
    name: str, network: nn.Module, table: Tensor, asked: _Asked, config: Config, queries: int, draw: torch.Generator
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The score of each task: as the method gives it, and with distance and margin beside it."""
    x, j, logit, wide = asked.x, asked.feature, asked.logit, 4 * config.delta
    if name == "queries":
        near, far = (
            gradients.local_behaviour(network, x, j, delta=d, queries=queries, generator=draw)
            for d in (config.delta, wide)
        )
        values, others = (torch.cat([found.above, found.below], 1) for found in (near, far))
        margin = (logit.sign()[:, None] * others).amin(1)
        answers = (near.effect, far.effect, values.amax(1) - values.amin(1), -margin)
        return (scores := dict(zip(TASKS, answers, strict=True))), scores
    reference = torch.zeros(x.shape[1])
    if name == "gradient":
        leaf = x.clone().requires_grad_()
        (phi,) = torch.autograd.grad(network(leaf).sum(), leaf)
        slope = phi
    else:  # as many rows as the queries of all features together
        budget = queries * x.shape[1]
        if name == "integrated gradients":
            phi = gradients.integrated_gradients(network, x, reference, steps=budget).values
        else:
            orders = max(1, budget // (x.shape[1] + 1))
            background = table[torch.randperm(len(table), generator=draw)[:orders]]
            reference = background.mean(0)
            phi = gradients.shapley_values(network, x, background, samples=len(background), generator=draw).values
        distance = x - reference
        slope = torch.where(distance.abs() > 1e-6, phi / distance, 0.0)
    phi, slope = (values.gather(1, j[:, None])[:, 0] for values in (phi, slope))
    plain = (phi, phi, phi.abs(), phi.abs())
    known = (slope, slope, slope.abs(), wide * slope.abs() - logit.abs())
    return dict(zip(TASKS, plain, strict=True)), dict(zip(TASKS, known, strict=True))


def _ask(lab: Lab, config: Config, arms: dict[str, Arm], axes: Any) -> None:
    grid = torch.linspace(0, 1, 201)
    curves: dict[tuple[str, str, bool], list[Tensor]] = {}
    wrong: dict[str, list[list[float]]] = {name: [] for name in arms}
    for number in lab.replicates(config.networks):
        x, _ = _standardised(name := TABLES[number % 3])
        for linear in (False, True) if number < 3 else (False,):
            network = _train(lab, config, arms["queries"], name, "linear" if linear else "network", linear)
            asked = _points(network, x, config, lab.fork("points"))
            for method, arm in arms.items():
                draw = lab.fork("asking")
                both = _scores(method, network, x, asked, config, config.queries, draw)
                for (task, truth), known in itertools.product(asked.truth.items(), (False, True)):
                    if not truth.any() or truth.all() or (linear and task != "direction"):
                        continue
                    curve = gradients.hypothesis_test_curve(both[known][task], truth)
                    kind = "linear models" if linear else name if known else "networks"
                    if not (known and task == "use"):
                        area = curve.area if known else max(curve.area, 1 - curve.area)
                        arm.metric(f"area: {task}{KNOWN * known}, {kind}", area, better="higher")
                    if not linear:
                        rates = torch.searchsorted(1 - curve.specificity, grid, right=True) - 1
                        curves.setdefault((method, task, known), []).append(curve.sensitivity[rates])
                if name == "diabetes" and not linear:
                    answers = (_scores(method, network, x, asked, config, b, draw)[1] for b in config.budgets)
                    off = ((each["direction"].sign() != asked.effect.sign()).float().mean() for each in answers)
                    wrong[method].append([float(share) for share in off])
    _claims(lab, arms)
    for axis, task in zip(axes, ("direction", "flip, wide"), strict=False):
        for (method, which, known), found in curves.items():
            if which == task and not (known and method in ("queries", "gradient")):
                style = {"color": arms[method].colour, "linestyle": "--" if known else "-"}
                axis.plot(grid, torch.stack(found).mean(0), label=None if known else method, **style)
        axis.plot([0, 1], [0, 1], ":", color="#333333", linewidth=0.8)
        axis.set(xlabel="1 - specificity", ylabel="sensitivity", title=task)
        axis.legend(fontsize=8)
    for method, errors in wrong.items():
        axes[2].plot(config.budgets, torch.tensor(errors).mean(0), marker="o", color=arms[method].colour, label=method)
    axes[2].set(xscale="log", xlabel="evaluations a feature", ylim=(0, None), title="wrong directions, diabetes")


def _claims(lab: Lab, arms: dict[str, Arm]) -> None:
    ours, attributions = arms["queries"], (arms["integrated gradients"], arms["Shapley values"])
    for task, gap in (("direction", 0.3), ("direction, wide", 0.3), ("flip, wide", 0.2)):
        key = f"area: {task}, networks"
        lab.claim(
            f"{task}, all networks: queries have an area of at least 0.95, both attributions as they are, of either "
            f"sign, at least {gap} less, at equal evaluations",
            ours[key] >= 0.95,
            *(arm[key] <= ours[key] - gap for arm in attributions),
        )
    for task, gaps in (("direction", (0.05, 0.15)), ("direction, wide", (0.05, 0.15)), ("flip, wide", (0.1, 0.2))):
        key = f"area: {task}{KNOWN}, diabetes"
        lab.claim(
            f"{task}, networks of the diabetes table, with distance and margin beside the attribution: integrated "
            f"gradients still have an area at least {gaps[0]} less than queries, Shapley values at least {gaps[1]}",
            *(arm[key] <= ours[key] - gap for arm, gap in zip(attributions, gaps, strict=True)),
        )
    key = f"area: direction{KNOWN}, linear models"
    lab.claim(
        "direction, linear models: with distances beside them both attributions reach an area of 0.99, as queries do",
        *(arm[key] >= 0.99 for arm in (ours, *attributions)),
    )
    kinds = (", linear models", f"{KNOWN}, breast_cancer", f"{KNOWN}, wine")
    linear, cancer, wine = (", ".join(f"{arm[f'area: direction{k}']:.2f}" for arm in attributions) for k in kinds)
    local = ", ".join(f"{arms['gradient'][f'area: {task}, networks']:.2f}" for task in ("direction", "flip, wide"))
    lab.note(
        f"As they are, attributions tell little of directions of linear models too (areas {linear}): w_j (x_j - b_j) "
        f"has the sign of w_j only beside x_j - b_j. With distances they tell more on the other tables ({cancer}; "
        f"{wine}). One gradient, which is not complete, has {local} for directions and wide flips."
    )
