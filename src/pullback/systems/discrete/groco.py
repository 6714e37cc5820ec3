"""Representations without labels from one demand: every view of an image is nearer to it than other images are.

Of an anchor, a view of an image, the other views are the positives and the ten most similar views of other images the
negatives. Both groups go through a sorting network, relaxed by a sigmoid with tails of Cauchy's distribution, and the
loss is the cross entropy of which of them come to the last places: one group before the other, no order inside
(Shvetsova, Petersen, Kukleva, Schiele, Kuehne, ICCV 2023). Contrastive losses push all pairs; here the gradient sits on
those that are out of order, or nearly. Only the mass of each item on the last places is needed: it goes through the
network in reverse, without the permutation matrix.

Smaller than in the paper: 8 000 garments of 28 x 28 pixels (Fashion-MNIST, real), a CNN of three layers, 4 views of 64
images, 280 steps of Adam (paper: ImageNet, ResNet-50, batches of 1024). Steepness is ours, the authors' is pi times
that. The baselines, SimCLR's InfoNCE and a triplet loss of all pairs (of the hardest alone it ends at its margin, all
features alike), take all views of all other images as negatives and pass gradients to them, as published; as in the
authors' code, InfoNCE is also shown with GroCo's ten negatives and its gradients of the anchor alone. Settings were
chosen on images that are not those of the test.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from torch import Tensor, nn

from pullback import data, discrete
from pullback.lab import Arm, Lab, above, at_least, at_most, system

Loss = Callable[[Tensor], Tensor]
NEAR = "InfoNCE, GroCo's negatives"


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    steps: Annotated[int, at_least(1)] = 280
    """Training steps of each arm."""
    batch: Annotated[int, at_least(2)] = 64
    """Images a step."""
    views: Annotated[int, at_least(2)] = 4
    """Views of each image."""
    negatives: Annotated[int, at_least(1)] = 10
    """Most similar negatives that GroCo orders, fewer where there are fewer (of 63; paper: of 1 023)."""
    lr: Annotated[float, above(0)] = 2e-3
    """Step size of Adam (paper: SGD with momentum)."""
    steepness: Annotated[float, above(0)] = 1.0
    """Of GroCo (paper: 1 / pi)."""
    temperature: Annotated[float, above(0)] = 0.1
    """Of InfoNCE."""
    near_temperature: Annotated[float, above(0)] = 0.2
    """The same with GroCo's negatives."""
    margin: Annotated[float, at_least(0)] = 0.5
    """Of the triplet loss."""
    width: Annotated[int, at_least(1)] = 12
    """Channels of the first convolution; the others have two and four times as many."""
    known: Annotated[int, at_least(8), at_most(8000)] = 8000
    """Images to learn from, and to look for neighbours in."""
    asked: Annotated[int, at_least(8), at_most(2000)] = 2000
    """Test images."""
    rounds: Annotated[int, at_least(3)] = 9
    """In which the losses are timed."""
    replicates: Annotated[int, at_least(1)] = 2
    """Initialisations and batches, each the same for all arms."""


@system(
    "groco",
    family="discrete",
    title="Learning by Sorting: Self-supervised Learning with Group Ordering Constraints",
    paper="Shvetsova, Petersen, Kukleva, Schiele, Kuehne, ICCV 2023, arXiv 2301.02009",
    config=Config,
    smoke={"steps": 2, "batch": 8, "rounds": 3, "replicates": 1, "known": 400, "asked": 100},
    full={"steps": 20_000, "batch": 1024, "width": 64, "replicates": 3},
    data=("fashion_mnist",),
    blocks=(
        "discrete.group_ordering_loss",
        "discrete.group_mass",
        "discrete.view_similarities",
        "discrete.info_nce",
        "discrete.triplet_loss",
        "discrete.nearest_neighbour_accuracy",
    ),
)
def run(lab: Lab, config: Config) -> None:
    """Check masses and closed forms, see where the gradient sits, learn representations, measure the cost."""
    _masses(lab)
    _margins(lab)
    _emphasis(lab)
    _learn(lab, config)
    _cost(lab, config)


def _masses(lab: Lab) -> None:
    draw, off, total, mixed = lab.fork("scores"), 0.0, 0.0, 0.0
    for positives, negatives in ((1, 1), (1, 10), (3, 10), (8, 25)):
        near = torch.randn(50, positives, generator=draw, dtype=torch.float64)
        far = torch.randn(50, negatives, generator=draw, dtype=torch.float64)
        x = torch.cat([far, near], -1)
        mass = discrete.group_mass(x, positives, steepness=2.0)
        matrix = discrete.sorting_network(x, steepness=2.0, network="odd_even").permutation
        off = max(off, float((mass - matrix[:, negatives:].sum(1)).abs().max()))
        outside = torch.maximum(-mass, mass - 1).max()
        total = max(total, float((mass.sum(-1) - positives).abs().max()), float(outside))
        loss = partial(discrete.group_ordering_loss, steepness=2.0)
        mixed = max(mixed, float((loss(near.flip(-1), far.roll(1, -1)) - loss(near, far)).abs()))
    gap = torch.linspace(-2, 2, 41, dtype=torch.float64)[:, None]
    two = discrete.group_ordering_loss(gap, torch.zeros_like(gap), steepness=1 / math.pi, reduction="none")
    closed = -torch.log(torch.arctan(gap[:, 0]) / math.pi + 0.5)
    leaves = [torch.randn(2, n, generator=draw, dtype=torch.float64).requires_grad_() for n in (3, 5)]
    lab.claim(
        "masses are the sums of the last rows of the permutation to 1e-10, lie in [0, 1] and sum to the number of "
        "positives; two scores give -log(atan(p - q) / pi + 1/2); the order inside a group changes nothing; the "
        "gradient passes gradcheck",
        off <= 1e-10,
        total <= 1e-10,
        float((two - closed).abs().max()) <= 1e-10,
        mixed <= 0,
        torch.autograd.gradcheck(lambda p, n: discrete.group_ordering_loss(p, n, steepness=2.0), leaves),
        scale="smoke",
        largest_difference=off,
        largest_difference_of_the_sum=total,
    )


def _margins(lab: Lab) -> None:
    steepness = [b / math.pi for b in (1.0, 3.0, 10.0, 100.0, 1000.0)]
    gaps = torch.linspace(-1.8, 1.8, 37, dtype=torch.float64)
    near, far = gaps[:, None].expand(-1, 3) / 2, -gaps[:, None].expand(-1, 10) / 2
    curves = [discrete.group_ordering_loss(near, far, steepness=b, reduction="none") for b in steepness]
    scaled = [b * float(curve[-1]) for b, curve in zip(steepness, curves, strict=True)][2:]
    lab.claim(
        "the loss falls strictly with the distance of the groups; where they are apart (0.9 against -0.9) it goes as "
        "one over the steepness, within a third from 10 / pi to 1000 / pi, so that similarities never make it 0",
        all(bool((curve.diff() < 0).all()) for curve in curves),
        max(scaled) <= 4 / 3 * min(scaled),
        scale="smoke",
        smallest_times_steepness=min(scaled),
        largest_times_steepness=max(scaled),
    )


def _emphasis(lab: Lab) -> None:
    positives = torch.linspace(0.5, 0.6, 3, dtype=torch.float64)
    losses: dict[str, Loss] = {
        "GroCo": lambda n: discrete.group_ordering_loss(positives, n, steepness=1 / math.pi),
        "InfoNCE": lambda n: discrete.info_nce(positives, n, temperature=0.5),
        "triplet": lambda n: discrete.triplet_loss(positives, n, margin=0.5, mining="all"),
    }
    figure, axes = lab.subplots()
    nearer, farthest = dict[str, float](), dict[str, float]()
    for place, (name, loss) in enumerate(losses.items()):
        negatives = torch.linspace(0.45, -0.5, 10, dtype=torch.float64).requires_grad_()
        size = torch.autograd.grad(loss(negatives), negatives)[0].abs()
        nearer[name], farthest[name] = float(size[:5].sum() / size.sum()), float(size[-1] / size.max())
        ranks = [rank + 0.28 * (place - 1) for rank in range(1, 11)]
        axes.bar(ranks, (size / size.sum()).tolist(), 0.28, color=lab.colour(name), label=name)
    axes.set(xlabel="rank of the negative", ylabel="share of the gradient", xticks=range(1, 11))
    axes.legend()
    caption = "Shares of the gradient: ten negatives at cosines 0.45 (rank 1) to -0.5, three positives at 0.5 to 0.6."
    lab.figure("emphasis", figure, caption)
    lab.claim(
        "ten negatives at -0.5 to 0.45, three positives at 0.5 to 0.6: the nearer half gets at least 84 % of GroCo's "
        "gradient and the farthest at most 1 % of the largest; of InfoNCE's at temperature 0.5 at most 80 % and at "
        "least 10 %",
        nearer["GroCo"] >= 0.84,
        farthest["GroCo"] <= 0.01,
        nearer["InfoNCE"] <= 0.8,
        farthest["InfoNCE"] >= 0.1,
        scale="smoke",
        **{f"nearer_half_{name}": share for name, share in nearer.items()},
        **{f"farthest_{name}": share for name, share in farthest.items()},
    )


def _losses(config: Config) -> dict[str, Loss]:
    """The loss of projected features ``[views, batch, d]``, by the name of its arm."""
    pairs = discrete.view_similarities
    near = partial(pairs, same_view=True, hardest=config.negatives, anchor_only=True)
    ordering = partial(discrete.group_ordering_loss, steepness=config.steepness)
    return {
        "GroCo": lambda z: ordering(*near(z)),
        "InfoNCE": lambda z: discrete.info_nce(*pairs(z), temperature=config.temperature),
        NEAR: lambda z: discrete.info_nce(*near(z), temperature=config.near_temperature),
        "triplet": lambda z: discrete.triplet_loss(*pairs(z), margin=config.margin, mining="all"),
    }


def _learn(lab: Lab, config: Config) -> None:
    images, labels = data.fashion_mnist("test")
    images, first = images[:, None], slice(2000, 2000 + config.known)  # settings were chosen on the last 2 000
    train, test = (images[first], labels[first]), (images[: config.asked], labels[: config.asked])
    lab.data("Fashion-MNIST, 8 000 garments to learn from without labels, 2 000 to test", origin="real")
    losses = _losses(config)
    arms = {name: lab.arm(name, baseline=name != "GroCo") for name in losses}
    floor, pixels = lab.arm("random features", baseline=True), lab.arm("pixels", baseline=True)
    score = "accuracy of 5 neighbours"

    def accuracy(model: nn.Module, every: int = 1) -> float:
        bank, asked = ((_features(model, images[::every]), labels[::every]) for images, labels in (train, test))
        return discrete.nearest_neighbour_accuracy(*asked, 5, bank=bank)

    pixels.metric(score, accuracy(nn.Flatten()), better="higher")
    for number in lab.replicates(config.replicates):
        with floor.weights():
            floor.metric(score, accuracy(_encoder(config.width)), better="higher")
        for name, loss in losses.items():
            model = _train(lab, config, arms[name], loss, train[0], partial(accuracy, every=4))
            arms[name].metric(score, accuracy(model), better="higher")
            if name == "GroCo" and number == 0:
                _show(lab, model, train[0], test[0])
    ours = arms["GroCo"][score]
    lab.claim(
        "neighbours: GroCo is at most half a point below InfoNCE, InfoNCE with its negatives, and the triplet loss",
        *(ours >= arms[name][score] - 0.005 for name in ("InfoNCE", NEAR, "triplet")),
    )
    lab.claim("neighbours: GroCo is at least 2 points above random features", ours >= floor[score] + 0.02)
    lab.note(f"Of centred garments raw pixels are hard to beat by few steps: {pixels[score]:.3f}, GroCo {ours:.3f}.")
    lab.curves("accuracy, a quarter of the images", caption="Accuracy of neighbours while training, each fourth image.")
    lab.bars(score)


def _train(
    lab: Lab, config: Config, arm: Arm, loss: Loss, images: Tensor, accuracy: Callable[[nn.Module], float]
) -> nn.Module:
    with arm.weights():
        encoder = _encoder(config.width)
        projector = _projector(16 * config.width)
    optimizer = torch.optim.Adam([*encoder.parameters(), *projector.parameters()], lr=config.lr)
    batches = lab.fork("batches")
    for step in arm.steps(config.steps, encoder, projector, optimizer, batches):
        chosen = images[torch.randint(len(images), (config.batch,), generator=batches)]
        views = data.image_views(chosen, config.views, generator=batches)
        features = projector(encoder(views.flatten(0, 1))).unflatten(0, (config.views, config.batch))
        arm.descend(loss(features), optimizer)
        if (step + 1) % max(1, config.steps // 4) == 0:
            arm.record("accuracy, a quarter of the images", accuracy(encoder))
    return encoder


def _encoder(width: int) -> nn.Sequential:
    """Three convolutions of stride 2, pooled to 2 x 2: ``16 width`` features of an image."""
    layers: list[nn.Module] = []
    for before, after in ((1, width), (width, 2 * width), (2 * width, 4 * width)):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())


def _projector(features: int) -> nn.Sequential:
    """Three linear layers as in the paper: batch norms instead of biases, the last without weights."""
    hidden = [(nn.Linear(features, features, bias=False), nn.BatchNorm1d(features), nn.ReLU()) for _ in range(2)]
    return nn.Sequential(*hidden[0], *hidden[1], nn.Linear(features, 64, bias=False), nn.BatchNorm1d(64, affine=False))


@torch.no_grad()
def _features(model: nn.Module, images: Tensor) -> Tensor:
    model.eval()
    features = torch.cat([model(part) for part in images.split(500)])
    model.train()
    return features


def _show(lab: Lab, model: nn.Module, known: Tensor, asked: Tensor) -> None:
    near = nn.functional.normalize(_features(model, asked[:3])) @ nn.functional.normalize(_features(model, known)).T
    rows = [[image[0], *known[order, 0]] for image, order in zip(asked, near.topk(4).indices, strict=False)]
    caption = "Test images and their nearest neighbours among those learnt from, GroCo."
    lab.images(rows, titles=["test image", *["neighbour"] * 4], name="neighbours", caption=caption)


def _cost(lab: Lab, config: Config) -> None:
    draw, losses = lab.fork("cost"), _losses(config)
    z = torch.randn(config.views, 128, 64, generator=draw).requires_grad_()
    x = torch.randn(config.views * 128, config.views + 9, generator=draw).requires_grad_()

    def through_matrix() -> None:
        soft = discrete.sorting_network(x, steepness=1.0, network="odd_even").permutation
        soft[:, 10:].sum(1).square().sum().backward()

    race = lab.race(
        {
            "GroCo": lambda: losses["GroCo"](z).backward(),
            "InfoNCE": lambda: losses["InfoNCE"](z).backward(),
            NEAR: lambda: losses[NEAR](z).backward(),
            "masses": lambda: discrete.group_mass(x, config.views - 1, steepness=1.0).square().sum().backward(),
            "masses through the matrix": through_matrix,
        },
        rounds=config.rounds,
        seconds=0.02,
    )
    lab.claim(
        f"loss of {config.views} views of 128 images, forward and backward: GroCo takes at most as long as InfoNCE, at "
        "most 3 times as long with equal negatives; its masses through the permutation matrix at least 3 times as long",
        race.ratio("GroCo", "InfoNCE") <= 1,
        race.ratio("GroCo", NEAR) <= 3,
        race.ratio("masses through the matrix", "masses") >= 3,
    )
