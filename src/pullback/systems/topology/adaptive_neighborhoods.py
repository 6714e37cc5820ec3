"""Learning who is a neighbour, and how many neighbours each node has, for a graph network.

A graph generator in front of the network scores pairs of nodes, finds a real degree for every node, and cuts the scores
off there by a smooth step over their ranks. The loss of the task alone trains all of it: its gradient reaches the
scores and the degrees (Saha, Mendez, Russell, Bowden, ICCV 2023).

Held against it, with the same network, data and steps: a fixed number of nearest neighbours, the best on the *test*
nodes; the same learned scores with 20 Gumbel draws, as in DGM (better than 5, 10 and 40 on pilots), and without any
cut; no graph. The scores do more than the cut: what the degree is worth beside them is shown with its sign.

Smaller than in the paper: planted clusters and digits, not citation graphs, trajectories and point clouds. Clusters of
3, 6, 12 and 40 nodes are simulated, so that the right degree is known. The digits are real; 64 features of noise are
added to their pixels. With 40 labels the learned graph is worse than a fixed one, which the run shows too. DGM trains
what it draws by a reward; here the gradient of the scores, by which the drawn edges are weighted, did much better on
pilots and stands for it. Weight decay was chosen for each arm, on seeds 0 to 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.nn import functional

from pullback import data, discrete, topology
from pullback.lab import Arm, Lab, above, at_least, at_most, system


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    graphs: Annotated[int, at_least(1)] = 6
    """Simulated graphs to train on, and as many to test on."""
    nodes: Annotated[int, at_least(50)] = 300
    """Nodes of a simulated graph."""
    sizes: tuple[Annotated[int, at_least(2)], ...] = (3, 6, 12, 40)
    """Sizes of its clusters."""
    fixed: tuple[Annotated[int, at_least(1)], ...] = (2, 3, 5, 10, 20, 40)
    """Numbers of neighbours of the fixed graphs, on clusters ..."""
    fixed_digits: tuple[Annotated[int, at_least(1)], ...] = (5, 10, 20)
    """... and on digits."""
    draws: Annotated[int, at_least(1)] = 20
    """Neighbours that DGM draws."""
    candidates: Annotated[int, at_least(2)] = 60
    """Nearest nodes among which neighbours are chosen."""
    steps: Annotated[int, at_least(1)] = 700
    """Adam steps on the simulated graphs, one graph each."""
    digits: Annotated[int, at_least(100)] = 900
    """Images that are nodes."""
    noise_features: Annotated[int, at_least(0)] = 64
    """Features of unit noise beside the pixels."""
    labels: tuple[Annotated[int, at_least(10)], ...] = (450, 40)
    """Images whose label is known."""
    digit_steps: Annotated[int, at_least(1)] = 60
    """Adam steps on the digits."""
    lr: Annotated[float, above(0)] = 1e-2
    """Step size of Adam."""
    decay: Annotated[float, at_least(0)] = 1e-2
    """Weight decay on the digits, but for a fixed graph."""
    fixed_decay: Annotated[float, at_least(0)] = 5e-4
    """Weight decay on the digits with a fixed graph, for which it is better."""
    gumbel: Annotated[float, at_least(0), at_most(1)] = 0.3
    """Scale of the noise on the scores in training."""
    replicates: Annotated[int, at_least(1)] = 3
    """Simulated data, splits and initialisations."""


@system(
    "adaptive-neighborhoods",
    family="topology",
    title="Learning Adaptive Neighborhoods for Graph Neural Networks",
    paper="Saha, Mendez, Russell, Bowden, ICCV 2023, arXiv 2307.09065",
    config=Config,
    smoke={
        **{"graphs": 1, "nodes": 60, "sizes": (3, 12), "fixed": (2, 10), "draws": 5, "candidates": 15},
        **{"steps": 4, "fixed_digits": (10,), "digits": 120, "labels": (60, 20), "digit_steps": 3, "replicates": 2},
    },
    full={"digits": 1797, "labels": (900, 40), "steps": 2000, "digit_steps": 500, "replicates": 5},
    data=("digits",),
    blocks=(
        "topology.DifferentiableGraphGenerator",
        "topology.adaptive_neighborhood",
        "topology.smooth_first_k",
        "topology.graph_convolution",
        "topology.neighbor_candidates",
        "topology.LearnedGraph",
    ),
)
def run(lab: Lab, config: Config) -> None:
    """Check the cut; average noisy values over planted clusters; classify digits by a graph that is learned."""
    lab.data(f"clusters of {config.sizes} nodes with noisy values", origin="simulated")
    lab.data("UCI digits, images of 8 x 8, with features of noise", origin="real")
    _cut(lab)
    learned = {"adaptive": lab.arm("adaptive degree"), "soft": lab.arm("no cut (attention)", baseline=True)}
    learned["DGM"] = lab.arm("DGM (Gumbel draws)", baseline=True)
    fixed = lab.arm("fixed k, best k", baseline=True)
    shown = _clusters(lab, config, learned, fixed)
    _digits(lab, config, learned, fixed)
    _draw(lab, config.fixed, *shown)


def infer(
    kind: str, pairs: topology.DifferentiableGraphGenerator, x: Tensor, index: Tensor, k: int, draws: torch.Generator
) -> topology.LearnedGraph:
    """Return the graph of nodes ``x`` among candidates: cut at a learned degree, not cut, or of ``k`` Gumbel draws."""
    if kind == "adaptive":
        return pairs(x, index=index, generator=draws)
    log_p = pairs.log_scores(x, index=index)
    noise = pairs.noise * discrete.gumbel_noise(log_p.shape, generator=draws) if pairs.training else 0
    if kind == "soft":
        return _graph((log_p + noise).exp(), index)
    drawn = (log_p.detach() + noise).topk(min(k, log_p.shape[-1])).indices
    return _graph(log_p.gather(-1, drawn).exp(), index.gather(-1, drawn))


def _graph(weights: Tensor, index: Tensor) -> topology.LearnedGraph:
    return topology.LearnedGraph(weights, index, (weights > 1e-3).sum(-1).float(), weights.sum(-1))


def _clusters(
    lab: Lab, config: Config, learned: dict[str, Arm], fixed: Arm
) -> tuple[data.PlantedClusters, topology.LearnedGraph, Tensor]:
    """Average the values over a neighbourhood, whose best choice is the cluster."""
    oracle, error, by_k = lab.arm("the true clusters", baseline=True), "squared error, clusters", []
    for _ in lab.replicates(config.replicates):
        draw = partial(data.planted_clusters, config.graphs, config.nodes, config.sizes)
        train, test = (draw(generator=lab.fork(f"{part} clusters")) for part in ("training", "test"))
        near = [topology.neighbor_candidates(part.places, config.candidates).index for part in (train, test)]
        features = [torch.cat([part.places, part.values], -1) for part in (train, test)]
        errors = []
        for k in config.fixed:
            one = torch.ones(1, 1)
            means = [
                topology.graph_convolution(part.values, _graph(torch.ones(index[..., :k].shape), index[..., :k]), one)
                for part, index in zip((train, test), near, strict=True)
            ]
            scale = (means[0] * train.truth).sum() / means[0].square().sum()  # least squares on the training graphs
            errors.append((scale * means[1] - test.truth).square().mean())
        by_k.append(torch.stack(errors))
        fixed.metric(error, by_k[-1].min(), better="lower")
        same = (test.truth == test.truth.mT).float()
        perfect = same @ test.values / same.sum(-1, keepdim=True)
        oracle.metric(error, (perfect - test.truth).square().mean(), better="lower")
        for kind, arm in learned.items():
            with arm.weights("clusters"):
                pairs = topology.DifferentiableGraphGenerator(4, 16, score="distance", noise=config.gumbel)
            scale, draws = nn.Parameter(torch.ones(1, 1)), lab.fork("draws")
            optimizer = torch.optim.Adam([*pairs.parameters(), scale], config.lr)
            for step in arm.steps(config.steps, pairs, scale, optimizer, draws, name="clusters"):
                g = step % config.graphs
                graph = infer(kind, pairs, features[0][g], near[0][g], config.draws, draws)
                found = topology.graph_convolution(train.values[g], graph, scale)
                arm.descend(functional.mse_loss(found, train.truth[g]), optimizer, name="loss on clusters")
            with torch.no_grad():
                graph = infer(kind, pairs.eval(), features[1], near[1], config.draws, draws)
                found = topology.graph_convolution(test.values, graph, scale)
            arm.metric(error, functional.mse_loss(found, test.truth), better="lower")
            arm.metric("edges a node", (graph.weights > 1e-3).sum(-1).double().mean(), better="lower")
            if kind == "adaptive":
                both = torch.stack([graph.degree.flatten(), test.sizes.flatten()])
                arm.metric("correlation of degree and size", torch.corrcoef(both)[0, 1], better="higher")
                shown = graph
    ours = learned["adaptive"]
    lab.claim(
        "clusters: the squared error is at most .7 of that of the best fixed k, chosen on the test graphs, and at most "
        ".9 in every replicate",
        ours[error] <= 0.7 * fixed[error],
        all(a <= 0.9 * b for a, b in zip(ours[error].values, fixed[error].values, strict=True)),
    )
    correlation = ours["correlation of degree and size"]
    lab.claim("clusters: the learned degree correlates with the size of the cluster by at least .6", correlation >= 0.6)
    lab.claim(
        "clusters: at most .7 of the edges (of weight above 1e-3) of the arm without a cut",
        ours["edges a node"] <= 0.7 * learned["soft"]["edges a node"],
        **{f"error less that of {arm.name}": ours[error] - arm[error] for arm in (learned["soft"], learned["DGM"])},
    )
    return test, shown, torch.stack(by_k)


class Classifier(nn.Module):
    """Two graph convolutions, from features to the logits of ten digits."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(features, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor, graph: topology.LearnedGraph) -> Tensor:
        """Return the logits of every node."""
        x = topology.graph_convolution(x, graph, self.first.weight.T, self.first.bias).relu()
        x = functional.dropout(x, 0.5, self.training)
        return topology.graph_convolution(x, graph, self.second.weight.T, self.second.bias)


def _digits(lab: Lab, config: Config, learned: dict[str, Arm], fixed: Arm) -> None:
    """Classify images from the labels of some of them: all are nodes, seen in training."""
    images, none = data.digits(), lab.arm("no graph (MLP)", baseline=True)
    for _ in lab.replicates(config.replicates):
        stream = lab.fork("digits")
        chosen = torch.randperm(len(images.labels), generator=stream)[: config.digits]
        pixels, labels = images.images[chosen].flatten(1), images.labels[chosen]
        pixels = (pixels - pixels.mean(0)) / pixels.std(0).clamp(min=1e-2)
        x = torch.cat([pixels, torch.randn(len(chosen), config.noise_features, generator=stream)], 1)
        index = topology.neighbor_candidates(x, config.candidates).index
        for known in config.labels:
            for kind, arm in {**learned, "fixed": fixed, "none": none}.items():
                numbers = config.fixed_digits if kind == "fixed" else (config.draws,)
                right = [_classify(lab, config, arm, kind, k, x, index, labels, known) for k in numbers]
                arm.metric(f"accuracy, {known} labels", 100 * max(right), better="higher", unit="%")
    many, few, ours = max(config.labels), min(config.labels), learned["adaptive"]
    lab.claim(
        f"digits with {config.noise_features} features of noise, {many} labels: at most one point below the best fixed "
        "k, chosen on the test nodes",
        ours[f"accuracy, {many} labels"] >= fixed[f"accuracy, {many} labels"] - 1,
        **{
            f"points above {arm.name}, {n} labels": ours[f"accuracy, {n} labels"] - arm[f"accuracy, {n} labels"]
            for arm in (fixed, learned["soft"], learned["DGM"], none)
            for n in (many, few)
        },
    )
    gain = float(ours[f"accuracy, {few} labels"] - fixed[f"accuracy, {few} labels"])
    lab.note(f"With {few} labels: {gain:+.1f} points by the learned graph, against the best fixed one.")


def _classify(
    lab: Lab, config: Config, arm: Arm, kind: str, k: int, x: Tensor, index: Tensor, labels: Tensor, known: int
) -> float:
    """Return the share of the other images that is classified right after training with the first ``known``."""
    with arm.weights("digits"):
        model = Classifier(x.shape[1])
        pairs = topology.DifferentiableGraphGenerator(x.shape[1], 16, score="distance", noise=config.gumbel)
    decay, draws = config.fixed_decay if kind == "fixed" else config.decay, lab.fork("draws on digits")
    optimizer = torch.optim.Adam([*model.parameters(), *pairs.parameters()], config.lr, weight_decay=decay)
    given = (
        _graph(torch.ones(len(x), k), index[:, :k]) if kind == "fixed" else _graph(torch.zeros(len(x), 1), index[:, :1])
    )
    for _ in arm.steps(config.digit_steps, model, pairs, optimizer, draws, name=f"digits, {known} labels, {k}"):
        graph = infer(kind, pairs, x, index, k, draws) if kind in ("adaptive", "soft", "DGM") else given
        loss = functional.cross_entropy(model(x, graph)[:known], labels[:known])
        arm.descend(loss, optimizer, name=f"loss on digits, {known} labels")
    with torch.no_grad():
        graph = infer(kind, pairs.eval(), x, index, k, draws) if kind in ("adaptive", "soft", "DGM") else given
        answers = model.eval()(x, graph).argmax(-1)
    return (answers == labels)[known:].double().mean().item()


def _cut(lab: Lab) -> None:
    """What the cut promises, exactly."""
    stream = lab.fork("cut")
    scores = torch.rand(100, 100, 100, generator=stream, dtype=torch.float64)  # single precision draws ties
    k = 0.01 + 98 * torch.rand(100, 100, generator=stream, dtype=torch.float64)
    kept = topology.adaptive_neighborhood(scores, k, width=1e-9).weights > 0.5 * scores
    last = scores.sort(-1, descending=True).values.gather(-1, k.ceil().long().unsqueeze(-1) - 1)
    wrong = int((kept != (scores >= last)).any(-1).sum())
    degree = torch.linspace(2, 17, 500, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(topology.smooth_first_k(degree, 20).sum(), degree)
    inputs = (scores[0, :5, :5].clone().requires_grad_(), (0.1 + k[0, :5] / 25).requires_grad_())
    exact = gradcheck(lambda s, k: topology.adaptive_neighborhood(s, k).weights, inputs)
    lab.claim(
        "towards width 0 exactly the ceil(k) largest scores are kept, in 10 000 rows; at width 1 the number of kept "
        "neighbours grows by .9 to 1.1 with k in 2 .. n - 3; gradients in scores and k equal finite differences",
        wrong == 0 and exact and 0.9 <= slope.min() <= slope.max() <= 1.1,
        scale="smoke",
        **{"rows that differ": wrong, "smallest slope": float(slope.min()), "largest slope": float(slope.max())},
    )


def _draw(
    lab: Lab, fixed: tuple[int, ...], test: data.PlantedClusters, graph: topology.LearnedGraph, by_k: Tensor
) -> None:
    figure, (left, middle, right) = lab.subplots(1, 3, figsize=(14, 4.2))
    sizes = test.sizes.unique()
    left.boxplot([graph.degree[test.sizes == s].numpy() for s in sizes], tick_labels=[f"{int(s)}" for s in sizes])
    left.plot(range(1, len(sizes) + 1), sizes - 1, "o", color="grey", mfc="none", label="all others of the cluster")
    left.set(xlabel="size of the node's cluster", ylabel="learned degree", title="Degree, test graphs")
    left.legend()
    colour = lab.colour("fixed k, best k")
    middle.errorbar(fixed, by_k.mean(0), by_k.std(0, correction=0), color=colour, label="fixed k")
    for arm in [arm for name, arm in lab.arms.items() if name not in ("fixed k, best k", "no graph (MLP)")]:
        middle.axhline(arm["squared error, clusters"], color=arm.colour, label=arm.name)
    middle.set(xlabel="fixed k", ylabel="squared error", title="Error, test graphs", ylim=(0.04, 4))
    middle.set(xscale="log", yscale="log")
    middle.legend(fontsize=8)
    place, colours = test.places[0], test.truth[0, :, 0]
    for i, j, weight in zip(*graph.to_edges().index, graph.to_edges().weights, strict=True):
        if max(i, j) < len(place) and weight > 0.2:
            right.plot(*place[[int(i), int(j)], :2].mT, color="grey", linewidth=0.6 * float(weight), zorder=1)
    right.scatter(*place[:, :2].mT, c=colours, s=12, cmap="coolwarm", zorder=2)
    right.set(title="A test graph, edges of weight > .2", xlabel="x (z is not shown)", ylabel="y")
    caption = (
        "Left: degrees that the task found, by the size of the cluster (last replicate). Middle: error of every fixed "
        "k (mean, deviation over replicates) and of the arms. Right: the learned graph; colour is the value to find."
    )
    lab.figure("neighborhoods", figure, caption)
    lab.curves("loss on clusters", caption="Loss on the training graphs.")
