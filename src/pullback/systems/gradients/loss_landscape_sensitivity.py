"""Which inputs drive a target, read off the curvature of a loss.

A plain tanh network is trained; then its loss is differentiated one to three times along each input, averaged over the
data. The second order resembles the bar chart of Spearman's rank correlations, although neither is derived from the
other, and sees what a rank correlation cannot: an input that acts up and down (Faroz, 2024, arXiv 2403.01128). There is
a reason: near a fit the residual fades and S2 tends to 2 E (df/dx)^2, a squared slope. So it has a size and no sign;
the sign has to come from the network.

What to expect: the resemblance holds on Friedman's function after a short training, no closer than that of squared
slopes or of permutation importance, and fades as the network learns the input that no rank correlation sees. On
diabetes and wine (real) it is weak, and ensembles trained on shuffled labels come as close; by the first layer's
weights, the paper's other choice, it is negative. This is shown, not claimed. Networks of 8 units, 20 in an ensemble.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor, nn

from pullback import data, gradients
from pullback.gradients import derivative_profile, rank_correlation, sensitivity_ranking
from pullback.lab import Arm, Lab, above, at_least, system

REAL = ("diabetes", "wine")
TRUE = 5
"""Inputs of Friedman's function that act; the third acts through a square, the others do not act at all."""


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    networks: Annotated[int, at_least(2)] = 20
    """Networks of an ensemble."""
    shuffles: Annotated[int, at_least(1)] = 20
    """Ensembles trained on shuffled labels."""
    hidden: Annotated[int, at_least(1)] = 8
    """Tanh units of a network."""
    steps: Annotated[int, at_least(1)] = 100
    """Adam steps on all rows before sensitivities are read."""
    more_steps: Annotated[int, at_least(1)] = 300
    """Steps after that, on Friedman's function, towards a fit."""
    lr: Annotated[float, above(0)] = 0.02
    """Step size of Adam."""
    rows: Annotated[int, at_least(20)] = 500
    """Rows drawn from Friedman's function, noise 1."""
    replicates: Annotated[int, at_least(1)] = 3
    """Draws of Friedman's function, and of initial weights and shuffled labels of all tables."""


class Table(NamedTuple):
    """Columns and target, each with mean 0 and variance 1."""

    x: Tensor
    y: Tensor
    names: tuple[str, ...]


class Networks(nn.Module):
    """Networks of one tanh layer side by side, Glorot's weights: ``[rows, d]`` to ``[networks, rows]``."""

    def __init__(self, count: int, features: int, hidden: int) -> None:
        super().__init__()
        inside, outside = (6 / (features + hidden)) ** 0.5, (6 / (hidden + 1)) ** 0.5
        self.inner = nn.Parameter(inside * (2 * torch.rand(count, hidden, features) - 1))
        self.outer = nn.Parameter(outside * (2 * torch.rand(count, 1, hidden) - 1))
        self.shift, self.level = nn.Parameter(torch.zeros(count, hidden, 1)), nn.Parameter(torch.zeros(count, 1))

    def forward(self, x: Tensor, weight: Tensor | float = 0.0) -> Tensor:
        """Return predictions; ``weight`` is added to the inner weights."""
        units = torch.tanh((self.inner + weight) @ x.mT + self.shift)
        return (self.outer @ units).squeeze(-2) + self.level

    def first(self, count: int) -> Networks:
        """Return a copy of the first networks, in double precision."""
        copy = Networks(count, self.inner.shape[2], self.inner.shape[1]).double()
        copy.load_state_dict({name: p[:count].double() for name, p in self.state_dict().items()})
        return copy


@system(
    "loss-landscape-sensitivity",
    family="gradients",
    title="Sensitivity Analysis On Loss Landscape",
    paper="Faroz, arXiv 2403.01128",
    config=Config,
    smoke={"networks": 2, "shuffles": 2, "steps": 5, "more_steps": 5, "rows": 40, "replicates": 1},
    full={"networks": 100, "shuffles": 100, "more_steps": 3000, "rows": 5000},
    data=REAL,
    blocks=(
        *("gradients.derivative_profile", "gradients.sensitivity_ranking"),
        *("gradients.rank_correlation", "gradients.permutation_importance", "gradients.loss_slice"),
    ),
)
def run(lab: Lab, config: Config) -> None:
    """Train ensembles on three tables and compare derivatives of their loss with rank correlations."""
    from sklearn.datasets import make_friedman1

    patients, wines = data.diabetes(dtype=torch.float64), data.wine(dtype=torch.float64)
    pairs = zip(REAL, (patients, wines), strict=True)
    tables = {name: _standard(t.features, t.target, t.feature_names) for name, t in pairs}
    lab.data("Friedman's function, noise 1", origin="simulated")
    lab.data("diabetes progression of 442 patients; 178 wines, the number of the cultivar as target", origin="real")
    arm = lab.arm("second derivative")
    figure, panels = lab.subplots(3, 4, figsize=(11, 7.5))
    chance, strips = lab.subplots(1, 3, figsize=(9, 2.6), sharex=True)
    for replicate in lab.replicates(config.replicates):
        seed = int(torch.randint(2**31, (), generator=lab.fork("friedman1")))
        x, y = map(torch.as_tensor, make_friedman1(config.rows, 10, noise=1.0, random_state=seed))
        tables["friedman1"] = _standard(x, y, tuple(f"x{j + 1}" for j in range(10)))
        for (name, table), axes, strip in zip(tables.items(), panels, strips, strict=True):
            networks, second, shuffled = _ensembles(lab, config, arm, name, table)
            found = _compare(lab, arm, name, table, networks, second, shuffled)
            if not replicate:
                _draw_profiles(arm, name, table, networks, axes)
                _draw_chance(lab, arm, name, found, strip)
            if name == "friedman1":
                _fit(lab, config, arm, table, networks, draw=not replicate)
    lab.figure("profiles", figure, "Mean derivatives of the loss along each input, spread of the ensemble; largest 1.")
    lab.figure("chance", chance, "Resemblance of |S2| and |Spearman|: ensemble (line), its networks, shuffled labels.")
    lab.claim(
        f"Friedman's function, {config.steps} steps: |S2| of the ensemble has rank correlation 0.55 and more with "
        "|Spearman|, above at least 90 % of ensembles trained on shuffled labels",
        arm["rank correlation with Spearman, friedman1"] >= 0.55,
        arm["share of shuffled ensembles below, friedman1"] >= 0.9,
    )
    ratio = arm["least / largest S2 of inputs that act / do not"]
    lab.claim(
        "Friedman's function after all steps: by |S2| the five inputs that act come before the five that do not, with "
        "at least three times the largest of those; by |Spearman| they do not",
        ratio >= 3,
        min(ratio.values) >= 3,
        arm["least / largest Spearman of inputs that act / do not"] < 1,
    )
    lab.claim(
        "after all steps S2 of each input that acts is twice its mean squared slope within 5 %",
        arm["largest S2 / 2 E (df/dx)^2 - 1 of inputs that act"] <= 0.05,
    )
    _exact(lab, tables["diabetes"])


def _standard(x: Tensor, y: Tensor, names: tuple[str, ...]) -> Table:
    y = y.double()
    return Table((x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std(), names)


def _train(arm: Arm, steps: int, networks: Networks, x: Tensor, targets: Tensor, lr: float, name: str) -> None:
    optimizer = torch.optim.Adam(networks.parameters(), lr=lr)
    x, targets = x.to(networks.inner.dtype), targets.to(networks.inner.dtype)
    for _ in arm.steps(steps, networks, optimizer, name=name):
        losses = (networks(x) - targets).square().mean(-1)
        optimizer.zero_grad()
        losses.sum().backward()
        optimizer.step()
        arm.record(f"loss, {name}", losses.mean())


def _ensembles(lab: Lab, config: Config, arm: Arm, name: str, table: Table) -> tuple[Networks, Tensor, Tensor]:
    """Return the networks, their S2 ``[n, d]``, and the mean S2 ``[shuffles, d]`` of those on shuffled labels."""
    x, y, _ = table
    draws, n = lab.fork(f"labels of {name}"), config.networks
    shuffled = [y[torch.randperm(len(y), generator=draws)] for _ in range(config.shuffles)]
    targets = torch.stack([y, *shuffled]).repeat_interleave(n, 0)
    with arm.weights(name):
        networks = Networks(len(targets), x.shape[1], config.hidden)
    _train(arm, config.steps, networks, x, targets, config.lr, name)
    networks.double()
    profile = derivative_profile(lambda x: (networks(x) - targets).square(), x, order=2, chunk=1)
    second = profile.values[:, 1].unflatten(0, (-1, n))
    return networks.first(n), second[0], second[1:].mean(1)


def _compare(
    lab: Lab, arm: Arm, name: str, table: Table, networks: Networks, second: Tensor, shuffled: Tensor
) -> tuple[Tensor, ...]:
    """Return rank correlations with Spearman's: of the ensemble, of those on shuffled labels, of each network."""
    x, y, _ = table
    truth, key = rank_correlation(x, y), f"rank correlation with Spearman, {name}"

    def resemblance(scores: Tensor) -> Tensor:
        return rank_correlation(scores.abs().reshape(-1, len(truth)).mT, truth.abs())

    found, chance, alone = (resemblance(s) for s in (sensitivity_ranking(second).score, shuffled, second))
    arm.metric(key, found)
    arm.metric(f"{key}, single networks", alone.mean())
    arm.metric(f"{key}, shuffled labels", chance.mean())
    arm.metric(f"share of shuffled ensembles below, {name}", (chance < found).double().mean())
    arm.metric(f"inputs with negative S2, {name}", (second.mean(0) < 0).sum())
    weights = torch.zeros(networks.inner.shape[1:], dtype=x.dtype)
    of_weights = derivative_profile(lambda w: (networks(x, w) - y).square(), weights, order=2, wrt="weight")
    arm.metric(f"{key}, S2 of weights", resemblance(of_weights.values[:, 1].mean(0)))
    slopes, size = derivative_profile(networks, x, order=1).values.squeeze(1), _squared_slopes(networks, x)
    lab.arm("input gradient", baseline=True).metric(key, resemblance(size))
    draws = lab.fork(f"permutations of {name}")
    rises = gradients.permutation_importance(lambda x: (networks(x) - y).square(), x, generator=draws)
    lab.arm("permutation importance", baseline=True).metric(key, resemblance(rises))
    arm.metric(f"share of Gauss-Newton in S2, {name}", 2 * size.sum() / second.mean(0).sum())
    signed = sensitivity_ranking(second, slopes=slopes).signed
    right = (signed.sign() == truth.sign())[truth.abs() >= 0.2]
    arm.metric(f"signs of slopes as Spearman's, {name}", right.double().mean())
    return found, chance, alone


def _squared_slopes(networks: Networks, x: Tensor) -> Tensor:
    """Return E (df/dx_j)^2 ``[d]``, over rows and networks."""
    slopes = derivative_profile(networks, x, order=1)
    return (slopes.values.square() + slopes.spread.square()).squeeze(1).mean(0)


def _fit(lab: Lab, config: Config, arm: Arm, table: Table, networks: Networks, *, draw: bool) -> None:
    """Go on to a fit of Friedman's function: the inputs that act come out, and S2 is the squared slope."""
    x, y, _ = table
    _train(arm, config.more_steps, networks, x, y, config.lr, "friedman1, to a fit")
    second = derivative_profile(lambda x: (networks(x) - y).square(), x, order=2).values[:, 1].mean(0)
    truth = rank_correlation(x, y).abs()
    for label, values in (("S2", second.abs()), ("Spearman", truth)):
        arm.metric(f"least / largest {label} of inputs that act / do not", values[:TRUE].min() / values[TRUE:].max())
    off = (second / (2 * _squared_slopes(networks, x)) - 1).abs()[:TRUE].max()
    arm.metric("largest S2 / 2 E (df/dx)^2 - 1 of inputs that act", off)
    arm.metric("rank correlation with Spearman, friedman1, late", rank_correlation(second.abs()[:, None], truth))
    if not draw:
        return
    figure, (lines, plane) = lab.subplots(1, 2, figsize=(8.5, 3.4))
    for j, name in enumerate(table.names):
        along = torch.zeros_like(x)
        along[:, j] = 1.0
        found = gradients.loss_slice(lambda x: (networks(x) - y).square().mean(), x, [along], steps=21)
        colour = lab.colour(name) if j < TRUE else "0.7"
        lines.plot(found.offsets, found.values, color=colour, label=name if j < TRUE else None)
    lines.set(xlabel="shift of one input, standard deviations", ylabel="mean loss")
    lines.legend(fontsize="small")
    single, draws = networks.first(1), lab.fork("directions")
    weights = dict(single.named_parameters())
    directions = [{k: 0.5 * torch.randn(p.shape, generator=draws).to(p) for k, p in weights.items()} for _ in "ab"]

    def around(weights: dict[str, Tensor]) -> Tensor:
        return (torch.func.functional_call(single, weights, x) - y).square().mean()

    found = gradients.loss_slice(around, weights, directions, steps=21)
    figure.colorbar(plane.contourf(found.offsets, found.offsets, found.values.mT, levels=20), ax=plane)
    plane.set(xlabel="first random direction of the weights", ylabel="second")
    lab.figure("slices", figure, "Loss where one input is shifted (grey: inputs that do not act), and around weights.")


def _draw_profiles(arm: Arm, name: str, table: Table, networks: Networks, axes: Any) -> None:
    x, y, names = table
    profile = derivative_profile(lambda x: (networks(x) - y).square(), x).values  # [networks, 3, d]
    at = range(len(names))
    for k in range(3):
        mean, spread = profile[:, k].mean(0), profile[:, k].std(0)
        heights, errors = ((values / mean.abs().max()).numpy() for values in (mean, spread))
        axes[k].bar(at, heights, yerr=errors, color=arm.colour, error_kw={"linewidth": 0.7})
        axes[k].set_title(f"S{k + 1}, {name}")
    truth = rank_correlation(x, y)
    axes[3].bar(at, (truth / truth.abs().max()).numpy(), color="0.5")
    axes[3].set_title(f"Spearman, {name}")
    for panel in axes:
        panel.set_xticks(at, names, rotation=90, fontsize="x-small")


def _draw_chance(lab: Lab, arm: Arm, name: str, found: tuple[Tensor, ...], strip: Any) -> None:
    draws = lab.fork("places")
    for height, values in enumerate(found[1:]):
        strip.plot(values, height + 0.6 * torch.rand(len(values), generator=draws), ".", color="0.6")
    strip.axvline(float(found[0]), color=arm.colour)
    strip.set(title=name, xlabel="rank correlation", yticks=(0.3, 1.3), yticklabels=("shuffled", "single"))


def _exact(lab: Lab, table: Table) -> None:
    """The profile against whole derivative tensors, and the identity at a perfect fit."""
    x, y, _ = table
    x, y = x[:8], y[:8]
    with lab.arm("second derivative").weights("exact"):
        network = Networks(1, x.shape[1], 4).double()

    def losses(rows: Tensor, targets: Tensor = y) -> Tensor:
        return (network(rows)[0] - targets).square()

    first = torch.func.jacrev(lambda row, target: (network(row[None])[0, 0] - target).square())
    second, third = torch.func.jacfwd(first), torch.func.jacfwd(torch.func.jacfwd(first))
    whole = [torch.func.vmap(derivative)(x, y).detach() for derivative in (first, second, third)]
    diagonals = (whole[0], whole[1].diagonal(dim1=1, dim2=2), torch.einsum("biii->bi", whole[2]))
    means = torch.stack([diagonal.mean(0) for diagonal in diagonals])
    off = float((derivative_profile(losses, x).values - means).abs().max())
    slopes = derivative_profile(lambda x: network(x)[0], x, order=1)
    squared = 2 * (slopes.values.square() + slopes.spread.square())[0]
    perfect = network(x)[0].detach()
    fit = float((derivative_profile(lambda x: losses(x, perfect), x).values[1] - squared).abs().max())
    lab.claim(
        "the profile is the diagonal of gradient, Hessian and third-derivative tensor to 1e-8; where the target is the "
        "prediction, S2 = 2 E (df/dx)^2 to 1e-8",
        off <= 1e-8 and fit <= 1e-8,
        scale="smoke",
        off_the_diagonals=off,
        off_the_squared_slopes=fit,
    )
