"""Optimising persistence of two parameters: a density that keeps loops from running away, filtrations that are learned.

A complex may be filtered by two numbers at once, as scale and density. Its ranks of homology jump at points of a plane
with integer weights, a signed measure; every coordinate is the value of one simplex. So the measure is affine in the
values while their order stays, and losses of it train what makes them (Scoccola, Setlur, Loiseaux, Carriere, Oudot,
ICML 2024). (1) 90 points move so that loops of their Rips complex persist. Of scale alone the loss has no bound: the
cloud grows unless a box holds it. An integral over scale and density charges for spreading, like the authors' example
scale x (threshold - density). Their sum of norms of the measure's points is over a Delaunay complex: of a Rips complex,
weights of a density level cancel and the loss of scale is left (claimed below). (2) The solubility of molecules is
predicted from measures of their graphs, by channels that are learned (and see all columns) or fixed (two of them). What
measures add to a mean over atoms of the same network is reported, not claimed.

Smaller than in the paper: one kind of cloud, one set of graphs. Clouds are simulated, molecules real.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, product
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pullback import data, topology
from pullback.lab import Lab, at_least, system

_ELEMENTS = {6: 2.55, 7: 3.04, 8: 3.44, 9: 3.98, 15: 2.19, 16: 2.58, 17: 3.16, 35: 2.96, 53: 2.66}
"""Elements of the molecules, with Pauling's electronegativity."""
_codensity = partial(topology.codensity, bandwidth=0.3)  # in radii of the circle


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    complexes: Annotated[int, at_least(1)] = 50
    """Random bifiltrations of each degree with ranks by elimination; twice as many for slopes, four times for pairs."""
    clouds: Annotated[int, at_least(1)] = 3
    """Clouds of 70 points near a circle and 20 anywhere."""
    cloud_steps: Annotated[int, at_least(1)] = 140
    """Adam steps of each loss, of a size that falls from 0.05 to zero."""
    splits: Annotated[int, at_least(2)] = 5
    """Random quarters of the molecules that are left out."""
    graph_steps: Annotated[int, at_least(1)] = 250
    """Adam steps of every model, on 64 molecules each."""
    molecules: Annotated[int, at_least(16)] = 1282
    """How many are used."""


@system(
    "multiparameter-persistence-optimization",
    family="topology",
    title="Differentiability and Optimization of Multiparameter Persistent Homology",
    paper="Scoccola, Setlur, Loiseaux, Carriere, Oudot, ICML 2024, arXiv 2406.07224",
    config=Config,
    smoke={"complexes": 1, "clouds": 1, "cloud_steps": 2, "splits": 2, "graph_steps": 2, "molecules": 60},
    full={"cloud_steps": 1000, "splits": 20, "graph_steps": 4000},
    data=("solubility",),
    blocks=(
        *("topology.function_rips", "topology.codensity", "topology.graph_bifiltration", "topology.hilbert_function"),
        *("topology.signed_measure", "topology.signed_measure_distance", "topology.convolve_signed_measure"),
    ),
)
def run(lab: Lab, config: Config) -> None:
    """Hold the measure against ranks, slopes and its stability; move clouds; learn filtrations of molecules."""
    lab.data("70 points near a circle and 20 anywhere; random bifiltrations", origin="simulated")
    lab.data("1 282 organic molecules with their solubility in water", origin="real")
    for part in (_ranks, _pieces, _clouds, _molecules):
        part(lab, config)


def _random_bifiltration(stream: torch.Generator, levels: int | None = None) -> topology.Bifiltration:
    """Cliques of a random graph of up to 8 nodes, with different values, or with few levels."""
    nodes = int(torch.randint(4, 9, (), generator=stream))
    adjacency = torch.rand(nodes, nodes, generator=stream) < 0.6
    tables = topology.flag_simplices(adjacency | adjacency.mT, max_dim=2)
    values = 0.1 + torch.rand(sum(map(len, tables)), 2, generator=stream, dtype=torch.float64)
    return _raised(tables, (levels * values).floor(), 0.0) if levels else _raised(tables, values, 0.01)


def _raised(tables: Sequence[Tensor], values: Tensor, gap: float) -> topology.Bifiltration:
    """Raise values to those of the faces, and above by a share of themselves."""
    raised: dict[tuple[int, ...], Tensor] = {}
    for simplex, value in zip([tuple(row) for table in tables for row in table.tolist()], values, strict=True):
        faces = [raised[face] + gap * value for face in combinations(simplex, len(simplex) - 1) if face]
        raised[simplex] = torch.stack([value, *faces]).amax(0)
    return topology.Bifiltration(tuple(tables), torch.stack([*raised.values()]))


def _direct_rank(bifiltration: topology.Bifiltration, x: float, y: float, degree: int) -> int:
    """Rank of homology at a point: simplices less the ranks of both boundaries, by elimination over Z/2."""
    inside, values = [], bifiltration.values.split([len(table) for table in bifiltration.simplices])
    for table, at in zip(bifiltration.simplices, values, strict=True):
        inside.append([tuple(row) for row in table[(at <= torch.tensor([x, y])).all(1)].tolist()])
    place, ranks = {simplex: i for table in inside for i, simplex in enumerate(table)}, [0]
    for k in (1, 2):
        pivots: dict[int, int] = {}
        for column in (sum(1 << place[face] for face in combinations(simplex, k)) for simplex in inside[k]):
            while column and column.bit_length() in pivots:
                column ^= pivots[column.bit_length()]
            if column:
                pivots[column.bit_length()] = column
        ranks.append(len(pivots))
    return len(inside[degree]) - ranks[degree] - ranks[degree + 1]


def _ranks(lab: Lab, config: Config) -> None:
    stream, wrong = lab.fork("ranks"), 0
    for degree, _ in product((0, 1), range(config.complexes)):
        bifiltration = _random_bifiltration(stream, levels=5)
        hilbert = topology.hilbert_function(bifiltration, degree=degree)
        measure = topology.signed_measure(bifiltration, degree=degree)
        wrong += int(measure.weights.sum() != hilbert.ranks[-1, -1])
        for (i, x), (j, y) in product(enumerate(hilbert.x.tolist()), enumerate(hilbert.y.tolist())):
            wrong += int(hilbert.ranks[i, j] != _direct_rank(bifiltration, x, y, degree))
    lab.claim(
        f"{2 * config.complexes} random bifiltrations, degrees 0 and 1: cumulative sums of the signed measure are the "
        "ranks by elimination at every point of the grid, and its weights sum to that of the whole complex",
        wrong == 0,
        scale="smoke",
    )


def _pieces(lab: Lab, config: Config) -> None:
    """Slopes, the pieces on which the measure is affine, and how far it moves."""
    stream, slopes, bends, changed, ratios = lab.fork("pieces"), [], [], 0, []
    for _ in range(2 * config.complexes):
        start = _random_bifiltration(stream)
        spacing = start.values.sort(0).values.diff(dim=0).amin()
        step = 0.2 * spacing * torch.randn(start.values.shape, generator=stream, dtype=torch.float64).clamp(-1, 1)
        values, away = start.values.clone().requires_grad_(), torch.randn(2, generator=stream, dtype=torch.float64)
        moved = (topology.Bifiltration(start.simplices, values + s * step) for s in (0, 1, -1))
        here, forth, back = (topology.signed_measure(each, degree=1) for each in moved)
        losses = [(m.weights * (m.points @ away).sin()).sum() for m in (here, forth, back)]
        (slope,) = torch.autograd.grad(losses[0] + 0 * values.sum(), values)
        slopes.append(((losses[1] - losses[2]).detach() / 2 - (slope * step).sum()).abs().item() / spacing.item())
        changed += sum(not torch.equal(here.weights, other.weights) for other in (forth, back))
        bends += [0.0, *(forth.points + back.points - 2 * here.points).abs().flatten().tolist()]
    for _ in range(4 * config.complexes):
        one = _random_bifiltration(stream)
        noise = 0.3 * torch.randn(one.values.shape, generator=stream, dtype=torch.float64)
        other = _raised(one.simplices, one.values + noise, 0.0)
        apart = topology.signed_measure_distance(topology.signed_measure(one), topology.signed_measure(other))
        ratios.append(float(apart / (one.values - other.values).abs().sum()))
    lab.claim(
        f"{2 * config.complexes} random bifiltrations: slopes of a smooth loss equal finite differences to 1e-5; small "
        "steps leave the weights as they are, and the points affine (second difference at most 1e-10); the transport "
        f"distance of {4 * config.complexes} pairs of measures is at most twice the sum of the changes of all values",
        max(slopes) <= 1e-5 and changed == 0 and max(bends) <= 1e-10 and max(ratios) <= 2,
        scale="smoke",
        **{"largest_slope_difference": max(slopes), "weights_changed": changed, "largest_bend": max(bends)},
        largest_ratio=max(ratios),
    )


def _loops(points: Tensor, power: int = 1) -> Tensor:
    """``death**power - birth**power`` of the loops of a Rips complex."""
    (loops,) = topology.persistence(topology.pairwise_distances(points), degrees=(1,))
    return loops.death**power - loops.birth**power


def _of_scale(points: Tensor) -> Tensor:
    """Minus the integral of 2 x H(x) over scale: long loops count more than in proportion."""
    return -_loops(points, 2).sum()


def _measured(points: Tensor) -> topology.SignedMeasure:
    return topology.signed_measure(topology.function_rips(points, _codensity(points)), degree=1)


def _of_scale_and_density(points: Tensor, last: Tensor) -> Tensor:
    """Minus the integral of 2 x H(x, y) over scale and codensity to a last one; loops that begin beyond it cost."""
    measure = _measured(points)
    return (measure.weights * measure.points[:, 0].square() * (last - measure.points[:, 1])).sum()


def _longest(points: Tensor) -> float:
    """The longest loop among the densest points, of any number of them."""
    ordered = points[_codensity(points).argsort()]
    return float(torch.cat([_loops(ordered[:m]) for m in range(4, len(points) + 1)]).max())


def _clouds(lab: Lab, config: Config) -> None:
    ours, one = lab.arm("scale and density"), lab.arm("scale", baseline=True)
    boxed, clouds, apart = lab.arm("scale, in a box", baseline=True), {}, []
    for _ in lab.replicates(config.clouds):
        stream = lab.fork("cloud")
        angle, radius = 2 * math.pi * torch.rand(70, generator=stream), 1 + torch.randn(70, generator=stream) / 10
        ring = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
        start = torch.cat([ring, 3 * torch.rand(20, 2, generator=stream) - 1.5])
        clouds["at the start"], width = start, topology.pairwise_distances(start).max()
        losses: Any = {ours: partial(_of_scale_and_density, last=_codensity(start).max()), one: _of_scale}
        losses[boxed] = lambda x: 10 * (x.abs() - 1.5).clamp(min=0).square().sum() + _of_scale(x)
        for arm, loss in losses.items():
            points = start.clone().requires_grad_()
            optimizer = torch.optim.Adam([points], lr=0.05)
            decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, config.cloud_steps)
            for _ in arm.steps(config.cloud_steps, points, optimizer, decay):
                arm.descend(loss(points), optimizer)
                arm.record("diameter", topology.pairwise_distances(points.detach()).max() / width)
                decay.step()
            clouds[arm.name] = points.detach()
            arm.metric("diameter", arm.last("diameter"), unit="of the start", better="lower")
            arm.metric("growth of the longest loop", _longest(points.detach()) - _longest(start), better="higher")
        weights, norms = _measured(start.double()).weights, _measured(start.double()).points.abs().sum(1)
        apart.append(float(((weights * norms).sum() + _loops(start.double()).sum()).abs()))
    lab.claim("each level's weights cancel: norms sum to the persistence of scale", max(apart) <= 1e-9, scale="smoke")
    lab.claim(
        "the loss of scale makes the diameter grow at least 1.5 times, with density at most 1.15 times, while the "
        "longest loop among the densest points, of any number of them, grows by at least 0.3",
        one["diameter"] >= 1.5,
        ours["diameter"] <= 1.15,
        ours["growth of the longest loop"] >= 0.3,
    )
    lab.curves("diameter", arms=[*losses], log=False, caption="Diameters of moving clouds, as shares of the first.")
    figure, axes = lab.subplots(2, 4, figsize=(13, 7))
    for (panel, below), (name, points) in zip(axes.T, clouds.items(), strict=True):
        panel.scatter(*points.T, s=9, color=lab.arms[name].colour if name in lab.arms else "grey")
        panel.set(title=name, aspect="equal", xlim=(-3.5, 3.5), ylim=(-3.5, 3.5))
        below.scatter(*(bars := _measured(points)).points.T, c=bars.weights, cmap="coolwarm", vmin=-2, vmax=2, s=8)
        below.set(xlabel="scale", ylabel="codensity")
    lab.figure("clouds", figure, "A cloud before, and after three losses; below, signed barcodes: red +, blue -.")


class _Model(nn.Module):
    """Two rounds of messages along bonds, then 72 features: of a filtration with so many channels, or means (none)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(24, 32), nn.Linear(64, 32), nn.Linear(32, channels or 72)])

    def forward(self, graphs: topology.Complex) -> Tensor:
        x, (target, source) = graphs.vertices, torch.cat([graphs.edges, graphs.edges.flip(1)]).mT
        for layer in self.layers[:2]:
            around = topology.segment_reduce(x[source], target, len(x))
            x = torch.relu(layer(torch.cat([x, around], 1)))
        values = torch.sigmoid(self.layers[2](x))
        if values.shape[1] == 72:
            return topology.segment_reduce(values, graphs.batch, graphs.count, reduce="mean")
        return _features(values, graphs)


def _features(values: Tensor, graphs: topology.Complex) -> Tensor:
    """Measures of degrees 0 and 1 of one or two numbers an atom, convolved with a Gaussian on a grid of 36 places."""
    x, y = (torch.linspace(0, 1, 6),) * 2 if values.shape[1] == 2 else (torch.linspace(0, 1, 36), torch.zeros(1))
    pairs, places = F.pad(values, (0, 2 - values.shape[1])), torch.cartesian_prod(x, y)
    filtered = topology.graph_bifiltration(pairs, graphs.edges, batch=graphs.batch, count=graphs.count)
    measures = (topology.signed_measure(filtered, degree=k) for k in (0, 1))
    return torch.cat([topology.convolve_signed_measure(m, places, bandwidth=0.2) for m in measures], 1)


def _graph(molecule: data.Molecule) -> topology.Complex:
    """Atoms with columns for elements, degree, electronegativity and the heat kernel's diagonal."""
    is_element = (molecule.elements[:, None] == torch.tensor([*_ELEMENTS])).float()
    bonded = torch.zeros(2 * molecule.elements.shape).index_put_((*molecule.bonds.T,), torch.ones(len(molecule.bonds)))
    degree = (bonded + bonded.mT).sum(1)
    heat = torch.matrix_exp(bonded + bonded.mT - torch.diag(degree)).diagonal()
    pull = is_element @ torch.tensor([*_ELEMENTS.values()])
    return topology.Complex.from_graph(torch.column_stack([is_element, degree / 4, pull / 4, heat]), molecule.bonds)


def _molecules(lab: Lab, config: Config) -> None:
    parts = [data.solubility("train"), data.solubility("test")]
    soluble = torch.cat([part.log_solubility for part in parts])[: config.molecules]
    graphs = topology.Complex.collate([_graph(m) for part in parts for m in part.molecules][: config.molecules])
    degree, pull, heat = graphs.vertices[:, -3:].unbind(1)
    two = lab.arm("2 learned channels")
    channels = {two: 2, lab.arm("1 learned channel"): 1, lab.arm("mean over atoms", baseline=True): 0}
    pairs = {"degree, heat kernel": [degree, heat], "electronegativity, degree": [pull, degree]}
    fixed = {lab.arm(n, baseline=True): _features(torch.stack(pair, 1), graphs) for n, pair in pairs.items()}
    for _ in lab.replicates(config.splits):
        order = torch.randperm(len(soluble), generator=lab.fork("split"))
        held, rest = order[: len(order) // 4], order[len(order) // 4 :]
        centre, spread = soluble[rest].mean(), soluble[rest].std()
        for arm in (*channels, *fixed):
            with arm.weights():
                head = nn.Sequential(nn.LayerNorm(72), nn.Linear(72, 64), nn.ReLU(), nn.Linear(64, 1))
                model = nn.Sequential(_Model(channels[arm]), head) if arm in channels else head
            see = graphs.select if arm in channels else fixed[arm].__getitem__
            optimizer, batches = torch.optim.Adam(model.parameters(), lr=5e-3), lab.fork("batches")
            for _ in arm.steps(config.graph_steps, model, optimizer, batches):
                chosen = rest[torch.randperm(len(rest), generator=batches)[:64]]
                found = model(see(chosen))[:, 0] * spread + centre
                arm.descend((found - soluble[chosen]).square().mean(), optimizer)
            missed = model(see(held))[:, 0] * spread + centre - soluble[held]
            arm.metric("error", missed.square().mean().sqrt(), unit="log mol/l", better="lower")
    gaps = [torch.tensor(base["error"].values) - torch.tensor(two["error"].values) for base in fixed]
    lab.claim(
        "molecules: two learned channels predict better than either pair of fixed ones, by more than two standard "
        f"errors of the difference over {config.splits} splits",
        *(b["error"] - two["error"] > 2 * float(g.std()) / len(g) ** 0.5 for b, g in zip(fixed, gaps, strict=True)),
    )
    lab.metric("gain over a mean over atoms", lab.arms["mean over atoms"]["error"] - two["error"], better="higher")
    lab.bars("error", caption="Root mean square error of the solubility of unseen molecules, over splits.")
