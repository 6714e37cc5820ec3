"""Cutting tokens, heads, layers and weights of a graph transformer: where its operations can go, and where not.

Attention of a graph transformer is redundant in four ways, each of which a mask cuts that is trained end to end: nodes
that take no part in attention, heads, whole layers, single weights (Liu, Zhan, Ma, Ding, Tao, Wu, Hu, Du, Neural
Networks 2024). The published code multiplies dropped tokens by zero; as keys of zeros they stay in the softmax and cost
what they cost. Here they are gathered away, and operations are counted as they are executed.

Smaller than in the paper: three layers of four heads, 32 units, 200 steps. The controlled task is simulated: a random
graph whose nodes have one of four colours; the class is the colour that nodes of large degree mostly have, which a
class token has to find among all others by attention. The molecules are real, and too few for claims: measured only.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, NamedTuple

import scipy.stats
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pullback import data, topology
from pullback.lab import Arm, Lab, above, at_least, at_most, below, system
from pullback.topology import GradualMagnitudePruner, GraphBatch, GraphTransformer, segment_reduce

COLOURS = 4
Batches = Sequence["Batch"]


class Batch(NamedTuple):
    """Graphs, features and encodings of their nodes, and the class of each."""

    x: Tensor
    graphs: GraphBatch
    places: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    hidden: Annotated[int, at_least(4)] = 32
    """Units, a multiple of four heads."""
    layers: Annotated[int, at_least(3)] = 3
    """Layers."""
    steps: Annotated[int, at_least(1)] = 200
    """Adam steps of the dense networks."""
    further: Annotated[int, at_least(2)] = 150
    """Adam steps after each cut."""
    train: Annotated[int, at_least(32)] = 3200
    """Random graphs to train on."""
    test: Annotated[int, at_least(100)] = 2000
    """Random graphs to test on."""
    lr: Annotated[float, above(0)] = 3e-3
    """Largest step size of Adam."""
    score_lr: Annotated[float, above(0)] = 0.03
    """Largest step size of the scores of tokens, which have to rise above the noise."""
    keep: Annotated[float, above(0), at_most(1)] = 0.15
    """Share of nodes that stay in attention, in the claim."""
    drop: Annotated[float, at_least(0), below(1)] = 0.3
    """Probability with which stochastic depth drops a layer."""
    replicates: Annotated[int, at_least(1)] = 3
    """Initialisations and graphs."""


@system(
    "graph-transformer-sparsification",
    family="topology",
    title="Exploring Sparsity in Graph Transformers",
    paper="Liu, Zhan, Ma, Ding, Tao, Wu, Hu, Du, Neural Networks 2024, arXiv 2312.05479",
    config=Config,
    smoke={"hidden": 8, "steps": 4, "further": 2, "train": 64, "test": 100, "replicates": 1},
    full={"hidden": 64, "layers": 5, "steps": 20_000, "further": 2000, "train": 100_000, "test": 10_000},
    data=("solubility",),
    blocks=(
        "topology.GraphTransformer",
        "topology.token_prune",
        "topology.head_importance",
        "topology.stochastic_depth",
        "topology.LayerSelector",
        "topology.GradualMagnitudePruner",
        "topology.random_walk_encoding",
        "topology.random_graphs",
    ),
)
def run(lab: Lab, config: Config) -> None:
    """Hold the cuts against their definitions, then against random cuts of equal size."""
    lab.data("random graphs, class: the colour that nodes of large degree mostly have", origin="simulated")
    lab.data("solubility of 1 282 molecules in water, three published classes", origin="real")
    _tokens(lab)
    points: dict[str, list[tuple[float, float]]] = {}
    dense, plain = lab.arm("dense"), lab.arm("stochastic depth")
    for number in lab.replicates(config.replicates):
        stream = lab.fork("graphs")
        train, test = ([_hubs(32, stream) for _ in range(count // 32)] for count in (config.train, config.test + 31))
        models = {}
        for arm, drop in ((dense, 0.0), (plain, config.drop)):
            with arm.weights():
                models[arm.name] = GraphTransformer(
                    COLOURS + 1, config.hidden, 4, config.layers, COLOURS, places=4, drop=drop
                )
            _train(lab, arm, models[arm.name], train, config, config.steps)
            arm.metric("accuracy", _accuracy(models[arm.name], test), better="higher", unit="%")
            arm.metric("points lost with a layer", _without_a_layer(models[arm.name], test), better="lower")
        model = models["dense"]
        importance, agreement = _heads(model, train[:8])
        dense.metric("rank agreement of head importance", agreement, better="higher")
        _both(lab, config, model, importance, train, test, "")
        if number == 0:
            points = _axes(lab, config, model, importance, train, test)
            _draw_heads(lab, model, test[0])
    both, chance = lab.arms["tokens and heads"], lab.arms["random tokens and heads"]
    lab.claim(
        "importance of heads, read off one backward pass, orders them as their removal does: rank correlation at "
        "least 0.6",
        dense["rank agreement of head importance"] >= 0.6,
    )
    lab.claim(
        "at least 30 % fewer operations by tokens and heads: accuracy at most 2 points below the dense network, at "
        "least 2 above random tokens and heads of equal number with equal training",
        both["operations"] <= 70,
        both["accuracy"] >= dense["accuracy"] - 2,
        both["accuracy"] >= chance["accuracy"] + 2,
    )
    lab.claim(
        "one layer removed, mean of all layers: with stochastic depth at least 2 points less are lost",
        plain["points lost with a layer"] <= dense["points lost with a layer"] - 2,
    )
    _molecules(lab, config)
    _draw(lab, points)


def _hubs(count: int, stream: torch.Generator) -> Batch:
    """Random graphs whose nodes of degree six or more mostly have the colour that is the class; the others have any."""
    graphs = topology.random_graphs("ba", count, (16, 24), degree=3.0, generator=stream)
    nodes = len(graphs.index)
    degree = segment_reduce(torch.ones(graphs.edges.shape[1]), graphs.edges[1], nodes)
    largest = segment_reduce(degree, graphs.index, count, reduce="max")
    hub = degree >= largest.clamp(max=6)[graphs.index]
    labels = torch.randint(COLOURS, (count,), generator=stream)
    shown = hub & (torch.rand(nodes, generator=stream) < 0.9)
    colour = torch.where(shown, labels[graphs.index], torch.randint(COLOURS, (nodes,), generator=stream))
    x = torch.cat([nn.functional.one_hot(colour, COLOURS).float(), degree[:, None] / 8], 1)
    return Batch(x, graphs, topology.random_walk_encoding(graphs, 4), labels)


def _losses(model: nn.Module, batch: Batch, **options: Any) -> Tensor:
    found = model(batch.x, batch.graphs, places=batch.places, **options)
    return nn.functional.cross_entropy(found, batch.labels, reduction="none")


def _train(
    lab: Lab,
    arm: Arm,
    model: nn.Module,
    batches: Batches,
    config: Config,
    steps: int,
    name: str = "train",
    pruner: Callable[[list[Tensor]], GradualMagnitudePruner] | None = None,
    **options: Any,
) -> None:
    """One cycle of Adam; the noise of scores, dropped layers and random nodes comes from its own stream."""
    scores = [p for key, p in model.named_parameters() if "score" in key]
    others = [p for key, p in model.named_parameters() if "score" not in key]
    optimizer = torch.optim.Adam([{"params": others}, {"params": scores}])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [config.lr, config.score_lr], total_steps=steps + 1)
    order, noise = lab.fork(f"batches of {name}"), lab.fork(f"noise of {name}")
    pruning = pruner(_weights(model)) if pruner else None
    model.train()
    for _ in arm.steps(steps, model, optimizer, schedule, order, noise, *([pruning] if pruning else []), name=name):
        batch = batches[int(torch.randint(len(batches), (), generator=order))]
        arm.descend(_losses(model, batch, generator=noise, **options).mean(), optimizer, name=f"loss, {name}")
        schedule.step()
        if pruning:
            pruning.step()
            arm.record(
                f"distance from the schedule, {name}", abs(pruning.sparsity - pruning.scheduled(pruning.steps - 1))
            )
    model.eval()


@torch.no_grad()
def _accuracy(model: nn.Module, batches: Batches, **options: Any) -> float:
    right = [model(b.x, b.graphs, places=b.places, **options).argmax(-1) == b.labels for b in batches]
    return 100 * torch.cat(right).double().mean().item()


@torch.no_grad()
def _operations(model: nn.Module, *inputs: Any, **options: Any) -> int:
    """Count multiplications and additions of matrix products as they are executed."""
    given = inputs[0]
    if isinstance(given, Batch):
        inputs, options = (given.x, given.graphs), {"places": given.places, **options}
    with FlopCounterMode(display=False) as counter:
        model(*inputs, **options)
    return counter.get_total_flops()


def _tokens(lab: Lab) -> None:
    """What removal of tokens is: nothing where all are kept, not the same as zeros, cheaper, and straight-through."""
    stream = lab.fork("identities")
    saved, changed, zeros_save = {}, [], []
    for nodes in (64, 256):
        graphs = topology.random_graphs("ba", 4, nodes, generator=stream)
        x = torch.rand(len(graphs.index), COLOURS, generator=stream)
        batch = Batch(x, graphs, topology.random_walk_encoding(graphs, 4), torch.zeros(4, dtype=torch.int64))
        model = GraphTransformer(COLOURS, 48, 4, 3, COLOURS, places=4, generator=stream).eval()
        saved[nodes] = 1 - _operations(model, batch, keep=0.5) / _operations(model, batch)
        attention, tokens = topology.HeadAttention(48, 4, generator=stream), torch.randn(4, nodes, 48, generator=stream)
        scores = torch.randn(4, nodes, generator=stream, requires_grad=True)
        full, half = (topology.token_prune(tokens, scores, keep) for keep in (1.0, 0.5))
        zeroed = torch.zeros_like(tokens).scatter(1, half.index[..., None].expand_as(half.tokens), half.tokens)
        zeros_save.append(_operations(attention, tokens) - _operations(attention, zeroed))
        away = attention(zeroed).gather(1, half.index[..., None].expand_as(half.tokens)) - attention(half.tokens)
        same = attention(full.tokens) - attention(tokens)
        changed.append((same.abs().max().item(), away.abs().max().item()))
        (found,) = torch.autograd.grad((half.weights * half.index).sum(), scores, retain_graph=True)
        (soft,) = torch.autograd.grad((scores.softmax(-1).gather(1, half.index) * half.index).sum(), scores)
        off = ((found - soft).abs().max() / soft.abs().max()).item()
    lab.claim(
        "keeping all tokens changes nothing (1e-6); multiplied by zero they save no operation and change the output "
        "(> 1e-3), gathered away at ratio 0.5 they save at least 25 % of the network at 64 and 256 nodes; the "
        "gradient of the weights is that of the softmax",
        max(same for same, _ in changed) <= 1e-6 and min(other for _, other in changed) > 1e-3,
        set(zeros_save) == {0} and min(saved.values()) >= 0.25,
        off <= 1e-6,
        scale="smoke",
        saved_at_64=saved[64],
        saved_at_256=saved[256],
        zeroed_output_differs=min(other for _, other in changed),
    )


def _heads(model: GraphTransformer, batches: Batches) -> tuple[Tensor, float]:
    """Importance by one backward pass, and its rank correlation with what removal of each head does to the losses."""
    importance = topology.head_importance(model, _losses, batches)
    removed = torch.zeros_like(importance)
    with torch.no_grad():
        before = torch.cat([_losses(model, batch) for batch in batches])
        for layer, head in torch.cartesian_prod(*map(torch.arange, importance.shape)).tolist():
            cut = copy.deepcopy(model)
            cut.keep_heads(layer, [h for h in range(importance.shape[1]) if h != head])
            removed[layer, head] = (torch.cat([_losses(cut, batch) for batch in batches]) - before).abs().mean()
    return importance, float(scipy.stats.spearmanr(importance.flatten(), removed.flatten()).statistic)


def _keep_heads(model: GraphTransformer, scores: Tensor, share: float = 0.75) -> None:
    """Close all heads but the best of each layer and, of the others, those with the largest scores."""
    count = max(round(share * scores.numel()), len(scores))
    order = scores.clone()
    order[torch.arange(len(scores)), scores.argmax(1)] = torch.inf
    kept = order.flatten().topk(count).indices
    for layer in range(len(scores)):
        model.keep_heads(layer, (kept[kept // scores.shape[1] == layer] % scores.shape[1]).tolist())


def _without_a_layer(model: GraphTransformer, batches: Batches) -> float:
    layers = range(len(model.stack.layers))
    left = []
    for gone in layers:
        model.stack.keep([layer for layer in layers if layer != gone])
        left.append(_accuracy(model, batches))
    model.stack.keep(list(layers))
    return _accuracy(model, batches) - sum(left) / len(left)


def _weights(model: nn.Module) -> list[Tensor]:
    return [p for name, p in model.named_parameters() if p.ndim > 1 and "stack" in name and "score" not in name]


def _both(
    lab: Lab, config: Config, model: GraphTransformer, importance: Tensor, train: Batches, test: Batches, of: str
) -> None:
    """Cut tokens and heads, chosen and at random, train both equally."""
    cost = _operations(model, test[0])
    for name, choose in (("tokens and heads", "learned"), ("random tokens and heads", "random")):
        arm, cut, chance = lab.arm(name, baseline=choose == "random"), copy.deepcopy(model), lab.fork("random cuts")
        _keep_heads(cut, importance if choose == "learned" else torch.rand(importance.shape, generator=chance))
        options: dict[str, Any] = {"keep": config.keep, "choose": choose}
        _train(lab, arm, cut, train, config, config.further, f"train{of}", **options)
        accuracy, operations = _accuracy(cut, test, generator=chance, **options), _operations(cut, test[0], **options)
        arm.metric(f"accuracy{of}", accuracy, better="higher", unit="%")
        arm.metric(f"operations{of}", 100 * operations / cost, better="lower", unit="%")


def _axes(
    lab: Lab, config: Config, model: GraphTransformer, importance: Tensor, train: Batches, test: Batches
) -> dict[str, list[tuple[float, float]]]:
    """Accuracy against operations along each cut, one initialisation, equal further training."""
    cost, few, layers = _operations(model, test[0]), test[: len(test) // 2 + 1], len(model.stack.layers)
    points: dict[str, list[tuple[float, float]]] = {}

    def one(
        label: str, cut: GraphTransformer, name: str, pruner: Any = None, share: float = 1.0, **options: Any
    ) -> None:
        _train(lab, lab.arm(label), cut, train, config, config.further // 2, name, pruner, **options)
        accuracy = _accuracy(cut, few, generator=lab.fork("random nodes"), **options)
        points.setdefault(label, []).append((100 * share * _operations(cut, test[0], **options) / cost, accuracy))

    for keep, choose in itertools.product((0.5, 0.25, 0.15), ("learned", "random")):
        one(f"tokens, {choose}", copy.deepcopy(model), f"tokens {keep}", keep=keep, choose=choose)
    chosen = {"important": importance, "random": torch.rand(importance.shape, generator=lab.fork("heads"))}
    for share, (label, scores) in itertools.product((0.75, 0.5, 0.34), chosen.items()):
        cut = copy.deepcopy(model)
        _keep_heads(cut, scores, share)
        one(f"heads, {label}", cut, f"heads {share}")
    right = []
    for gone in range(layers):
        cut = copy.deepcopy(model)
        cut.stack.keep([layer for layer in range(layers) if layer != gone])
        right.append(_accuracy(cut, train[:20]))
    for kept in range(layers - 1, 0, -1):
        cut = copy.deepcopy(model)
        cut.stack.keep(sorted(range(layers), key=lambda layer: right[layer])[:kept])
        one("layers, important", cut, f"layers {kept}")
    gaps, end = [], max(config.further // 3, 2)
    gradual: dict[str, Any] = {"initial": 0.0, "start": 0, "end": end, "every": 5}
    for final in (0.5, 0.8, 0.95):
        at_once = {"initial": final, "start": 0, "end": 1, "every": 1, "regrow": 0.0}
        for label, plan in (("weights, gradual", gradual), ("weights, at once", at_once)):
            pruner = partial(GradualMagnitudePruner, final=final, **plan)
            one(label, copy.deepcopy(model), f"weights {final}", pruner, 1 - final)
        gaps += lab.arms["weights, gradual"].series(f"distance from the schedule, weights {final}")[:end:5]
    lab.claim(
        "weights pruned gradually with regrowth: the share of zeros is within 0.1 % of the cubic schedule at every "
        "update, so as many weights grow as are dropped beyond it",
        max(gaps) <= 1e-3,
        scale="smoke",
        largest_gap=max(gaps),
    )
    return points


def _molecules(lab: Lab, config: Config) -> None:
    """The same cuts on real molecules, with the standard error of a few hundred of them."""
    parts: dict[str, list[Batch]] = {}
    for split in ("train", "test"):
        found = data.solubility(split)
        order = torch.randperm(len(found.molecules), generator=lab.fork("molecules")).tolist()
        parts[split] = []
        for start in range(0, len(order), 32):
            some = [found.molecules[i] for i in order[start : start + 32]]
            graphs = topology.batch_graphs([m.bonds for m in some], [len(m.elements) for m in some])
            x = (torch.cat([m.elements for m in some])[:, None] == torch.tensor([6, 7, 8, 9, 16, 17])).float()
            labels = found.labels[order[start : start + 32]]
            parts[split].append(Batch(x, graphs, topology.random_walk_encoding(graphs, 8), labels))
    dense = lab.arm("dense")
    with dense.weights("molecules"):
        model = GraphTransformer(6, config.hidden, 4, config.layers, 3)
    _train(lab, dense, model, parts["train"], config, config.steps, "molecules")
    accuracy = dense.metric("accuracy, molecules", _accuracy(model, parts["test"]), better="higher", unit="%")
    importance = topology.head_importance(model, _losses, parts["train"][:8])
    _both(lab, config, model, importance, parts["train"], parts["test"], ", molecules")
    count = sum(len(batch.labels) for batch in parts["test"])
    error = (accuracy * (100 - accuracy) / count) ** 0.5
    lab.note(f"Molecules: {count} to test on, standard error {error:.1f} points: measured and not claimed.")


def _draw_heads(lab: Lab, model: nn.Module, batch: Batch) -> None:
    """How alike the heads are: correlation of what they say for the nodes of a batch."""
    said: list[Tensor] = []
    hooks = [
        m.outputs.register_forward_hook(lambda _, __, output: said.append(output.detach()))
        for m in model.modules()
        if isinstance(m, topology.HeadAttention)
    ]
    _losses(model, batch)
    for hook in hooks:
        hook.remove()
    heads = torch.cat([s.movedim(1, 0).flatten(1) for s in said])
    figure, axes = lab.subplots(figsize=(5, 4.2))
    shown = axes.imshow(torch.corrcoef(heads).abs().numpy(), vmin=0, vmax=1, cmap="viridis")
    figure.colorbar(shown)
    axes.set(title="how alike heads are", xlabel="head, layer by layer", ylabel="head, layer by layer")
    lab.figure(
        "heads", figure, "Absolute correlation of the outputs of all heads over the nodes of a batch of test graphs."
    )


def _draw(lab: Lab, points: dict[str, list[tuple[float, float]]]) -> None:
    figure, axes = lab.subplots(figsize=(7, 4.5))
    for label, found in points.items():
        line = "--x" if label.endswith(("random", "at once")) else "-o"
        axes.plot(*zip(*found, strict=True), line, color=lab.colour(label.split(",")[0]), label=label)
    axes.set(
        xlabel="operations, % of the dense network", ylabel="accuracy, %", title="colour of the hubs, unseen graphs"
    )
    axes.legend(fontsize=8)
    caption = (
        "Accuracy against executed operations along four cuts, each after equal further training; dashed: random or "
        "one-shot cuts of equal size. Of sparse weights the non-zeros are counted."
    )
    lab.figure("cuts", figure, caption)
