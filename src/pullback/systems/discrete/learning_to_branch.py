"""Learning which tasks share which layers, by drawing the tree of layers along with the weights.

Each layer has several nodes, and every node and task picks one parent in the layer before: a one-hot Gumbel-softmax
sample for the whole batch, whose gradient teaches the logits which parent serves better (Guo, Lee, Ulbricht, ICML
2020). The likeliest tree is trained again from scratch. A single search often ends in a wrong tree, as its first
samples break the symmetry of the nodes; of four the one with the lowest validation loss is kept.

Smaller than in the paper: two planted groups of three tasks on vectors, with nodes too narrow for both groups, and six
questions about pictures of a digit and a garment (real MNIST and Fashion-MNIST images, paired at random as two
channels), convolutions of 6 and 8 maps. Logits start at 0; uniform samples without learning of logits for 30 % of the
steps, then a temperature from 5 to 0.5. Full sharing is the tree in which a single node serves all tasks; wide sharing
makes this node as wide as the parameters of the planted tree allow. Trees of pictures have equally many parameters.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import torch
from scipy.stats import chisquare
from torch import Tensor, nn
from torch.nn import functional as F

from pullback import data, discrete
from pullback.discrete import BranchingNetwork
from pullback.lab import Arm, Lab, above, at_least, system


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    problems: Annotated[int, at_least(1)] = 4
    """Planted problems."""
    restarts: Annotated[int, at_least(1)] = 4
    """Searches of each planted problem."""
    steps: Annotated[int, at_least(1)] = 700
    """Steps of a search, and of training again, on planted problems; batches of 64."""
    image_steps: Annotated[int, at_least(1)] = 250
    """Steps of a search, and of training again, on images; batches of 64."""
    lr: Annotated[float, above(0)] = 5e-3
    """Step size of Adam for weights; for logits six times that."""


GROUPS = torch.tensor([0, 0, 0, 1, 1, 1])
SHARED = (torch.zeros(3, dtype=torch.int64), torch.zeros(6, dtype=torch.int64))
QUESTIONS = {"even": 2, "5 or more": 2, "turned": 4, "class": 10, "worn": 4, "sleeves": 3}  # and how many answers
WORN = torch.tensor([0, 1, 0, 0, 0, 2, 0, 2, 3, 2])  # upper body, legs, feet, in the hand
SLEEVES = torch.tensor([0, 1, 2, 0, 2, 1, 2, 1, 1, 1])  # short, none, long

Tree = Sequence[Tensor]
Split = tuple[Tensor, Tensor]  # inputs [n, ...], targets [n, tasks]
Loss = Callable[[Sequence[Tensor], Tensor], Tensor]


@system(
    "learning-to-branch",
    family="discrete",
    title="Learning to Branch for Multi-Task Learning",
    paper="Guo, Lee, Ulbricht, ICML 2020, arXiv 2006.01895",
    config=Config,
    smoke={"problems": 1, "restarts": 2, "steps": 5, "image_steps": 2},
    full={"problems": 20, "steps": 5_000, "image_steps": 10_000},
    data=("mnist", "fashion_mnist"),
    blocks=tuple(f"discrete.{b}" for b in ("BranchingLayer", "BranchingNetwork", "search_branching", "grouping_score")),
)
def run(lab: Lab, config: Config) -> None:
    """Check the exact parts, find planted groups, learn what six questions about pictures share."""
    _exact(lab)
    lab.data("two planted groups of three tasks", origin="simulated")
    _planted(lab, config)
    if lab.scale != "smoke":
        _pictures(lab, config)


def _exact(lab: Lab) -> None:
    stream = lab.fork("exact")
    layer = discrete.BranchingLayer(3, 1000)
    layer.logits.data += torch.tensor([0.0, 1.0, -0.5])  # a thousand children alike
    drawn = torch.stack([layer(torch.eye(3), generator=stream).detach() for _ in range(100)])
    p = chisquare(drawn.sum((0, 1)).numpy(), 1e5 * layer.probabilities()[0].detach().numpy()).pvalue
    network = BranchingNetwork([[nn.Linear(2, 2) for _ in range(3)] for _ in range(2)], [nn.Linear(2, 1)] * 4).double()
    counts = []
    for _ in range(5):
        for branching in network.branchings:
            choice = torch.randint(3, (len(branching.logits),), generator=stream)
            branching.logits.data = 1e4 * F.one_hot(choice, 3).double()
        kept = sum(q.numel() for q in network.pruned().nodes[:-1].parameters()) + 4 * 3
        counts.append(float(network.expected_parameters().detach()) == kept)
    logits = [torch.randn(size, 3, generator=stream).double().requires_grad_() for size in (3, 4)]

    def expected(*logits: Tensor) -> Tensor:
        for branching, tensor in zip(network.branchings, logits, strict=True):
            vars(branching)["_parameters"]["logits"] = tensor
        return network.expected_parameters()

    lab.claim(
        "every child has one parent in each sample, parents of 100 000 samples are as frequent as the logits say (p > "
        "0.001), the expected number of parameters passes gradcheck and is that of the tree for one-hot logits",
        bool(((drawn == 0) | (drawn == 1)).all() and (drawn.sum(-1) == 1).all()),
        p > 0.001,
        all(counts),
        torch.autograd.gradcheck(expected, logits),
        scale="smoke",
        p=float(p),
    )


def _train(
    lab: Lab, arm: Arm, config: Config, network: nn.Module, train: Split, loss: Loss, steps: int, name: str
) -> None:
    logits = [p for key, p in network.named_parameters() if key.endswith("logits")]
    weights = [p for key, p in network.named_parameters() if not key.endswith("logits")]
    optimizers = [torch.optim.Adam(weights, lr=config.lr, fused=True)]
    if logits:
        optimizers.append(torch.optim.Adam(logits, lr=6 * config.lr, betas=(0.5, 0.999), fused=True))
    stream = lab.fork(f"batches of {name}")
    for step in arm.steps(steps, network, optimizers, stream, name=name):
        chosen = torch.randint(len(train[0]), (64,), generator=stream)
        options: dict[str, Any] = {}
        if logits:
            late = (step / steps - 0.3) / 0.7
            options = {"generator": stream, "method": "gumbel" if late > 0 else "uniform"}
            options["temperature"] = 5 * 0.1 ** max(late, 0)
            certain = torch.cat([tensor.detach().softmax(-1).amax(-1) for tensor in logits])
            arm.record(f"probability of the likeliest parent, {name}", certain.mean())
        arm.descend(loss(network(train[0][chosen], **options), train[1][chosen]), *optimizers, name=f"loss, {name}")


def _search(
    lab: Lab, arm: Arm, config: Config, make: Any, train: Split, valid: Split, loss: Loss, steps: int, restarts: int
) -> discrete.Search:
    def build(number: int) -> BranchingNetwork:
        with arm.weights(f"search {number}"):
            return make()

    def fit(network: BranchingNetwork, number: int) -> None:
        _train(lab, arm, config, network, train, loss, steps, f"search {number}, {len(valid[0])}")

    def judge(network: BranchingNetwork) -> float:
        return loss(network(valid[0], method="argmax"), valid[1]).item()

    return discrete.search_branching(build, fit, judge, restarts=restarts)


def _total(each: Any, outputs: Sequence[Tensor], targets: Tensor) -> Tensor:
    return torch.stack([each(*pair) for pair in zip(outputs, targets.T, strict=True)]).sum()


_squares, _entropies = partial(_total, F.mse_loss), partial(_total, F.cross_entropy)


def _size(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def _widened(make: Callable[[float], BranchingNetwork], tree: Tree, wanted: int) -> nn.Module:
    scales = [number / 50 for number in range(20, 125)]
    first = bisect.bisect_left(scales, wanted, key=lambda scale: _size(make(scale).pruned(tree)))
    near = [make(scale).pruned(tree) for scale in scales[max(first - 1, 0) : first + 1]]
    return min(near, key=lambda network: abs(_size(network) - wanted))


def _dense(scale: float = 1.0) -> BranchingNetwork:
    width = round(12 * scale)
    nodes = [nn.Sequential(nn.Linear(10, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh()) for _ in range(2)]
    return BranchingNetwork([nodes], [nn.Sequential(nn.Linear(width, 1), nn.Flatten(0)) for _ in GROUPS])


def _planted(lab: Lab, config: Config) -> None:
    names = ("learned", "full sharing", "random trees", "planted", "wide sharing")
    arms = {name: lab.arm(name, baseline=name != "learned") for name in names}
    ours, key, bounds = arms["learned"], "share of variance left", {"full sharing": 0.75, "random trees": 0.8}
    found, planted = list[tuple[float, float]](), _size(_dense().pruned([GROUPS]))
    for _ in lab.replicates(config.problems):
        stream = lab.fork("problem")
        a, b = 0.8 * torch.randn(2, 6, 10, generator=stream), 2 * math.pi * torch.rand(2, 6, generator=stream)
        v = math.sqrt(6) * F.normalize(torch.randn(6, 6, generator=stream), dim=1)
        x = torch.randn(3_000, 10, generator=stream)
        features = torch.sin(0.7 * torch.einsum("gfi,ni->ngf", a, x) + b)
        y = torch.einsum("tf,ntf->nt", v, features[:, GROUPS]) + 0.1 * torch.randn(3_000, 6, generator=stream)
        train, valid, test = ((x[i:j], y[i:j]) for i, j in ((0, 1_500), (1_500, 2_000), (2_000, 3_000)))
        result = _search(lab, ours, config, _dense, train, valid, _squares, config.steps, config.restarts)
        scores = [discrete.grouping_score(tree, GROUPS)[0] for tree in result.trees]
        found += zip((loss / min(result.losses) for loss in result.losses), scores, strict=True)
        ours.metric("grouping score of the best search", scores[result.best], better="higher")
        ours.metric("searches with score 1", sum(score == 1 for score in scores) / len(scores), better="higher")
        others = torch.tensor([tree for tree in itertools.product((0, 1), repeat=6) if 0 < sum(tree) < 6])
        drawn: list[Tree] = [[one] for one in others[torch.randperm(len(others), generator=stream)[:4]]]
        trees: list[list[Tree]] = [[result.trees[result.best]], [SHARED[1:]], drawn, [[GROUPS]], [SHARED[1:]]]
        for arm, some in zip(arms.values(), trees, strict=True):
            losses, size = [], planted if arm.name == "wide sharing" else None
            for number, tree in enumerate(some):
                with arm.weights("again"):
                    network = _dense().pruned(tree) if size is None else _widened(_dense, tree, size)
                _train(lab, arm, config, network, train, _squares, config.steps, f"tree {number}")
                losses.append(_squares(network(test[0]), test[1]).item() / test[1].var(0).sum().item())
            arm.metric(key, sum(losses) / len(losses), better="lower")
    rows = list(zip(*(arms[name][key].values for name in names), strict=True))
    best, enough = sum(score == 1 for score in ours["grouping score of the best search"].values), 0.75 * config.problems
    statement = "the best of four searches finds the planted groups in 3 of 4 problems, a single one in 1 of 4"
    lab.claim(statement, best >= enough, ours["searches with score 1"] >= 0.25, problems=float(best))
    below = {name: sum(row[0] <= part * row[i] for row in rows) for i, (name, part) in enumerate(bounds.items(), 1)}
    lab.claim(
        "the learned tree, trained again, leaves at most 0.75 of what full sharing leaves and 0.8 of the mean of "
        "random trees, in 3 of 4 problems, and on average at most 1.1 of the planted tree",
        min(below.values()) >= enough,
        ours[key] <= 1.1 * arms["planted"][key],
        **{f"below {name}": float(count) for name, count in below.items()},
    )
    statement = "on average the learned tree leaves at most 0.95 of what full sharing leaves with as many parameters"
    lab.claim(statement, ours[key] <= 0.95 * arms["wide sharing"][key])
    figure, axes = lab.subplots()
    axes.plot(*zip(*found, strict=True), "o", color=ours.colour)
    axes.set(xlabel="validation loss of a search / lowest of its problem", ylabel="adjusted Rand index of its tree")
    lab.figure("searches", figure, "Every search of the planted problems; the tree at 1 is kept.")
    caption = "Mean over the tasks, in the first search of each planted problem."
    lab.curves("probability of the likeliest parent, search 0, 500", log=False, caption=caption)
    lab.bars(key, caption="Of unseen examples, after training again; four planted problems.")


def _convolutions(scale: float = 1.0, nodes: tuple[int, int] = (2, 3)) -> BranchingNetwork:
    first, last = round(6 * scale), round(8 * scale)

    def node(maps: int, out: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(maps, out, 3, padding=1), nn.LeakyReLU(0.1), nn.MaxPool2d(2))

    heads = [nn.Sequential(nn.Flatten(), nn.Linear(9 * last, answers)) for answers in QUESTIONS.values()]
    return BranchingNetwork(
        [[node(2, first) for _ in range(nodes[0])], [node(first, last) for _ in range(nodes[1])]], heads
    )


def _pairs(lab: Lab, split: Literal["train", "test"]) -> Split:
    stream = lab.fork(f"pairs, {split}")
    (digits, digit), (garments, garment) = data.mnist(split), data.fashion_mnist(split)
    chosen, turns = (torch.randint(high, digit.shape, generator=stream) for high in (len(garment), 4))
    turned = torch.stack([torch.rot90(image, int(k)) for image, k in zip(digits, turns, strict=True)])
    garment = garment[chosen]
    answers = torch.stack([digit % 2, (digit >= 5).long(), turns, garment, WORN[garment], SLEEVES[garment]], 1)
    return F.avg_pool2d(torch.stack([turned, garments[chosen]], 1), 2), answers


def _by_gradients(lab: Lab, config: Config, arm: Arm, train: Split) -> Tree:
    with arm.weights("again"):
        network = _convolutions().pruned(SHARED)
    _train(lab, arm, config, network, train, _entropies, config.image_steps // 2, "before clustering")
    outputs, weights, flat = network(train[0][:512]), list(network.nodes[:-1].parameters()), []
    for output, target in zip(outputs, train[1][:512].T, strict=True):
        slopes = torch.autograd.grad(F.cross_entropy(output, target), weights, retain_graph=True)
        flat.append(F.normalize(nn.utils.parameters_to_vector(slopes), dim=0))
    alike = torch.stack(flat) @ torch.stack(flat).T
    splits = torch.tensor([(0, *tail) for tail in itertools.product((0, 1), repeat=5) if any(tail)])
    same = (splits[:, :, None] == splits[:, None]).float()  # the split of k-means, of all that there are:
    return [torch.tensor([0, 1, 1]), splits[(alike * same / same.sum(-1, keepdim=True)).sum((1, 2)).argmax()]]


def _pictures(lab: Lab, config: Config) -> None:
    lab.data("MNIST digits beside Fashion-MNIST garments", origin="real")
    whole, test = _pairs(lab, "train"), _pairs(lab, "test")
    train, valid = ((whole[0][cut], whole[1][cut]) for cut in (slice(3_200), slice(3_200, None)))
    ours, key = lab.arm("learned"), "mean accuracy on pictures"
    result = _search(lab, ours, config, _convolutions, train, valid, _entropies, config.image_steps, 2)
    tree, stream = result.trees[result.best], lab.fork("random trees of pictures")
    wanted, off = _size(_convolutions().pruned(tree)), dict[str, float]()
    drawn: list[Tree] = [[torch.randint(*many, generator=stream) for many in ((2, (3,)), (3, (6,)))] for _ in range(2)]
    trees: dict[str, list[Tree]] = {"learned": [tree], "random trees": drawn, "full sharing": [SHARED]}
    trees["gradient clusters"] = [_by_gradients(lab, config, lab.arm("gradient clusters", baseline=True), train)]
    trees["no sharing"] = [[torch.arange(6)] * 2]
    for name, each in trees.items():
        arm, right = lab.arm(name, baseline=name != "learned"), []
        make = partial(_convolutions, nodes=(6, 6)) if name == "no sharing" else _convolutions
        for number, one in enumerate(each * 2):
            with arm.weights(f"again, {number // len(each)}"):
                network = _widened(make, one, wanted)
            off[name] = max(off.get(name, 0), abs(_size(network) / wanted - 1))
            _train(lab, arm, config, network, train, _entropies, config.image_steps, f"pictures, tree {number}")
            found = torch.stack([output.argmax(-1) for output in network(test[0])], 1)
            right.append(100 * (found == test[1]).float().mean().item())
        arm.metric(key, sum(right) / len(right), better="higher", unit="%")
    for layer, score in enumerate(discrete.grouping_score(tree, GROUPS), 1):
        ours.metric(f"grouping score on pictures, layer {layer}", score)
    lab.claim(
        "six questions about pictures: the learned tree is at most half a point less accurate than full sharing and "
        "than random trees, of as many parameters within 5 % (no sharing: 8 %)",
        off.pop("no sharing") <= 0.08,
        max(off.values()) <= 0.05,
        ours[key] >= lab.arm("full sharing")[key] - 0.5,
        ours[key] >= lab.arm("random trees")[key] - 0.5,
    )
    rows = [[question, int(top), int(tree[0][top])] for question, top in zip(QUESTIONS, tree[1], strict=True)]
    lab.table("who shares what", ["question", "layer 2", "layer 1"], rows, "The nodes of the learned tree.")
    lab.bars(key, caption="Six questions on unseen pictures, mean of two initialisations.")
