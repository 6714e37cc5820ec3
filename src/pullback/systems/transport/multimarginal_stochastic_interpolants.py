"""One regression, and points travel between any of several distributions, along any path between them.

Take a point of each distribution and mix them by weights on a simplex. The mean of each of them, given the mixture, is
learned by plain regression, for all weights at once. The velocity along any path of weights is a sum of these means:
one network carries every distribution onto every other, and the path can be chosen afterwards, to make transport
cheaper (Albergo, Boffi, Lindsey, Vanden-Eijnden, ICLR 2024). Smaller than in the paper: three digits of 8 x 8 pixels in
16 principal components, perceptrons, independent points. The digits are real.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import combinations, pairwise, permutations, product
from typing import Annotated

import torch
from torch import Tensor, nn

from pullback import data, transport
from pullback.lab import Arm, Lab, above, at_least, system

DIGITS = (1, 4, 7)
PAIRS = (*(f"{a} to {b}" for a, b in combinations(DIGITS, 2)), "mean")
LEFT = "distance left"
PAID = ("energy", "squared displacement", LEFT)


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    steps: Annotated[int, at_least(3)] = 1200
    """Adam steps of the one network, and of the three that each know one pair, together."""
    batch: Annotated[int, at_least(1)] = 256
    """Points of each distribution a step."""
    lr: Annotated[tuple[float, float], above(0)] = (1e-3, 1e-3)
    """Step size of Adam at the beginning, of the one network and of the three: the best of 0.0004 to 0.01. It falls to
    0 on a cosine."""
    width: Annotated[int, at_least(1)] = 256
    """Of three hidden layers of each network."""
    components: Annotated[int, at_least(1)] = 16
    """Principal components of the digits."""
    flow_steps: Annotated[int, at_least(1)] = 25
    """Runge-Kutta steps of a transport."""
    gaussian_steps: Annotated[int, at_least(1)] = 1600
    """Adam steps on three Gaussians, whose conditional means are known."""
    path_steps: Annotated[int, at_least(1)] = 120
    """Adam steps of each path."""
    path_lr: Annotated[float, above(0)] = 0.05
    """Their step size."""


@system(
    "multimarginal-stochastic-interpolants",
    family="transport",
    title="Multimarginal generative modeling with stochastic interpolants",
    paper="Albergo, Boffi, Lindsey, Vanden-Eijnden, ICLR 2024, arXiv 2310.03695",
    config=Config,
    smoke={"steps": 3, "batch": 16, "width": 8, "flow_steps": 1, "gaussian_steps": 2, "path_steps": 2},
    full={"steps": 100_000, "batch": 1024, "width": 1024, "gaussian_steps": 20_000, "path_steps": 2000},
    data=("digits",),
    blocks=(
        *(f"transport.{b}" for b in ("barycentric_interpolant", "uniform_simplex", "multimarginal_loss")),
        *(f"transport.{b}" for b in ("transport_along", "SimplexPath", "path_energy", "gaussian_conditional_means")),
        *(f"transport.{b}" for b in ("flow_matching_loss", "rectify", "sliced_wasserstein")),
    ),
)
def run(lab: Lab, config: Config) -> None:
    """Check the means of Gaussians, carry digits onto digits, learn cheaper paths."""
    _gaussians(lab, config)
    lab.data(f"UCI digits {DIGITS}, images of 8 x 8", origin="real")
    digits = _Digits(config.components)
    ours, base = lab.arm("one network"), lab.arm("three networks", baseline=True)
    model = _all_at_once(lab, config, ours, digits)
    _pair_by_pair(lab, config, base, digits)
    real = lab.arm("digits to train on", baseline=True)
    _judge(lab, real, digits, {(a, b): digits.train[b][: len(digits.test[a])] for a, b in permutations(range(3), 2)})
    lab.claim(
        "one network carries each digit onto each other: of the sliced distance to unseen ones at most 0.35 is left, "
        "in the mean no more than between as many real ones and them",
        *(ours[f"{LEFT}, {a} to {b}"] <= 0.35 for a, b in permutations(DIGITS, 2)),
        ours[f"{LEFT}, mean"] <= real[f"{LEFT}, mean"],
    )
    lab.claim(
        "a classifier of real digits labels at least 85 % of them as the target, at most 0.03 fewer than of those "
        "carried by three networks with as many steps together",
        ours[right := "labelled as the target"] >= 0.85,
        ours[right] >= base[right] - 0.03,
    )
    _learn_paths(lab, config, model, digits)
    _draw(lab, config, model, digits)


class ConditionalMeans(nn.Module):
    """A perceptron from weights and a point to a point of each distribution."""

    def __init__(self, count: int, dim: int, width: int) -> None:
        super().__init__()
        self.layers = _perceptron(count + dim, count * dim, width)

    def forward(self, alpha: Tensor, x: Tensor) -> Tensor:
        """Return ``[*batch, count, dim]``."""
        found: Tensor = self.layers(torch.cat([alpha, x], -1))
        return found.unflatten(-1, (alpha.shape[-1], x.shape[-1]))


def _perceptron(inputs: int, outputs: int, width: int) -> nn.Sequential:
    sizes = pairwise((inputs, width, width, width))
    layers = [layer for i, o in sizes for layer in (nn.Linear(i, o), nn.SiLU())]
    return nn.Sequential(*layers, nn.Linear(width, outputs))


class _Digits:
    """Three digits in principal components of those to train on, in units of twice their common deviation."""

    def __init__(self, components: int) -> None:
        from sklearn.svm import SVC

        train, test = data.digits("train"), data.digits("test")
        images, labels = train.images.flatten(1), train.labels
        self.classifier = SVC(C=10).fit(images.numpy(), labels.numpy())
        chosen = torch.cat([images[labels == digit] for digit in DIGITS])
        self.mean = chosen.mean(0)
        self.axes = torch.linalg.svd(chosen - self.mean, full_matrices=False).Vh[:components]
        self.scale = 2 * ((chosen - self.mean) @ self.axes.mT).std()
        self.train = [self.encode(images[labels == digit]) for digit in DIGITS]
        self.test = [self.encode(test.images[test.labels == digit].flatten(1)) for digit in DIGITS]

    def encode(self, images: Tensor) -> Tensor:
        """Return components of images ``[n, 64]``."""
        return (images - self.mean) @ self.axes.mT / self.scale

    def decode(self, x: Tensor) -> Tensor:
        """Return images ``[n, 64]``."""
        return x * self.scale @ self.axes + self.mean

    @staticmethod
    def draw(clouds: list[Tensor], count: int, g: torch.Generator) -> Tensor:
        """Return ``[count, 4, d]``: a normal point and one of each digit, independent."""
        points = [c[torch.randint(len(c), (count,), generator=g)] for c in clouds]
        return torch.stack([torch.randn(points[0].shape, generator=g), *points], 1)


def _gaussians(lab: Lab, config: Config) -> None:
    """Regression on samples of three Gaussians against the closed form."""
    arm, g = lab.arm("Gaussians"), lab.fork("Gaussians")
    means, half = 2 * torch.randn(3, 3, generator=g), torch.randn(3, 3, 3, generator=g)
    covariances = half @ half.mT / 3 + 0.2 * torch.eye(3)
    factors = torch.linalg.cholesky(covariances)
    lab.data("three Gaussians in three dimensions", origin="simulated")

    def draw(count: int) -> tuple[Tensor, Tensor]:
        noise = torch.randn(count, 3, 3, 1, generator=g)
        return means + (factors @ noise).squeeze(-1), transport.uniform_simplex((count, 3), generator=g)

    with arm.weights():
        model = ConditionalMeans(3, 3, config.width // 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.gaussian_steps)
    for _ in arm.steps(config.gaussian_steps, model, optimizer, falling, g, name="Gaussians"):
        arm.descend(transport.multimarginal_loss(model, *draw(config.batch)), optimizer, name="Gaussians: loss")
        falling.step()
    xs, alpha = draw(5000)
    x = transport.barycentric_interpolant(xs, alpha)
    known = transport.gaussian_conditional_means(means, covariances, alpha, x)
    with torch.no_grad():
        found = model(alpha, x)
    arm.metric("error of the means, relative", (found - known).norm() / known.norm(), better="lower")
    mixed = transport.barycentric_interpolant(found, alpha)
    arm.metric("error of their mixture, relative", (mixed - x).norm() / x.norm(), better="lower")
    lab.claim(
        "learned means of Gaussians are off by at most 10 %, their mixture from the point by at most 5 %",
        arm["error of the means, relative"] <= 0.1,
        arm["error of their mixture, relative"] <= 0.05,
    )


def _all_at_once(lab: Lab, config: Config, arm: Arm, digits: _Digits) -> ConditionalMeans:
    """Train one network on all weights, and carry unseen digits along the six edges."""
    with arm.weights():
        model = ConditionalMeans(4, config.components, config.width)
    optimizer, g = torch.optim.Adam(model.parameters(), lr=config.lr[0]), lab.fork("digits")
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    for _ in arm.steps(config.steps, model, optimizer, falling, g):
        alpha = transport.uniform_simplex((config.batch, 4), generator=g)
        arm.descend(transport.multimarginal_loss(model, digits.draw(digits.train, config.batch, g), alpha), optimizer)
        falling.step()
    follow = partial(transport.transport_along, model, steps=config.flow_steps)
    with torch.no_grad():
        edges = {(a, b): transport.SimplexPath(a + 1, b + 1, 4, modes=0) for a, b in permutations(range(3), 2)}
        _judge(lab, arm, digits, {pair: follow(path, digits.test[pair[0]]).z1 for pair, path in edges.items()})
    return model


def _pair_by_pair(lab: Lab, config: Config, arm: Arm, digits: _Digits) -> None:
    """Train a velocity for each pair, which is followed in both directions."""
    carried = {}
    for a, b in combinations(range(3), 2):
        with arm.weights(f"{a} {b}"):
            network = _perceptron(config.components + 1, config.components, config.width)

        def velocity(t: Tensor, x: Tensor, network: nn.Sequential = network) -> Tensor:
            return network(torch.cat([t.expand(*x.shape[:-1], 1), x], -1))

        count, g = config.steps // 3, lab.fork(f"{a} and {b}")
        optimizer = torch.optim.Adam(network.parameters(), lr=config.lr[1])
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, count)
        name = f"{DIGITS[a]} and {DIGITS[b]}"
        for _ in arm.steps(count, network, optimizer, falling, g, name=name):
            xs = digits.draw(digits.train, config.batch, g)
            loss = transport.flow_matching_loss(velocity, xs[:, a + 1], xs[:, b + 1], generator=g)
            arm.descend(loss, optimizer, name=f"{name}: loss")
            falling.step()
        with torch.no_grad():
            follow = partial(transport.rectify, velocity, steps=config.flow_steps)
            carried[a, b], carried[b, a] = follow(digits.test[a]).z1, follow(digits.test[b], reverse=True).z0
    _judge(lab, arm, digits, carried)


def _judge(lab: Lab, arm: Arm, digits: _Digits, carried: dict[tuple[int, int], Tensor]) -> None:
    """Compare what arrived with unseen digits of its target, and ask a classifier of all ten."""
    left, right = [], []
    for (a, b), points in carried.items():
        left.append(_left(lab, digits, a, b, points))
        arm.metric(f"{LEFT}, {DIGITS[a]} to {DIGITS[b]}", left[-1], better="lower")
        found = torch.from_numpy(digits.classifier.predict(digits.decode(points).numpy()))
        right.append((found == DIGITS[b]).double().mean())
    arm.metric(f"{LEFT}, mean", torch.stack(left).mean(), better="lower")
    arm.metric("labelled as the target", torch.stack(right).mean(), better="higher")


def _left(lab: Lab, digits: _Digits, a: int, b: int, points: Tensor) -> Tensor:
    """Of the sliced distance to unseen digits of the target, what is left of that before."""
    far = partial(transport.sliced_wasserstein, y=digits.test[b], projections=500)
    after, before = (far(cloud, generator=lab.fork("projections")) for cloud in (points, digits.test[a]))
    return (after / before).sqrt()


def _learn_paths(lab: Lab, config: Config, model: ConditionalMeans, digits: _Digits) -> None:
    """Let paths through the simplex learn, with the means as they are, and measure what unseen digits pay."""
    learned, *others = (lab.arm(f"{n} path", baseline=n != "learned") for n in ("learned", "first", "straight"))
    model.requires_grad_(False)
    unseen = digits.draw(digits.test, 2000, lab.fork("unseen"))
    (figure, panels), rows = lab.subplots(1, 3, figsize=(11, 3)), list[Tensor]()
    for name, (a, b), axes in zip(PAIRS[:3], combinations(range(3), 2), panels, strict=True):
        ways = [transport.SimplexPath(a + 1, b + 1, 4, modes=modes, initial=1.0) for modes in (4, 4, 0)]
        optimizer, g = torch.optim.Adam(ways[0].parameters(), lr=config.path_lr), lab.fork(f"path {name}")
        for _ in learned.steps(config.path_steps, ways[0], optimizer, g, name=name):
            loss = transport.path_energy(model, ways[0], digits.draw(digits.train, config.batch, g), generator=g)
            learned.descend(loss, optimizer, name=f"energy while learning, {name}")
        with torch.no_grad():
            for way in ways:
                z0, z1 = transport.transport_along(model, way, digits.test[a], steps=config.flow_steps)
                cost = transport.path_energy(model, way, unseen, generator=lab.fork("times"))
                rows.append(torch.stack([cost, (z1 - z0).square().sum(-1).mean(), _left(lab, digits, a, b, z1)]))
            axes.plot(t := torch.linspace(0, 1, 101), ways[0](t), label=["Gaussian", *DIGITS])
        axes.set(title=name, xlabel="time", ylabel="" if a + b > 1 else "weight")
    for arm, paid in zip((learned, *others), torch.stack(rows).view(3, 3, -1).unbind(1), strict=True):
        for (which, label), value in zip(product(PAIRS, PAID), [*paid.flatten(), *paid.mean(0)], strict=True):
            arm.metric(f"{label}, {which}", value, better="lower")
    panels[-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    lab.figure("paths", figure, "The learned paths of weights.")
    energies, moves, misses = ([arm[f"{label}, mean"] for arm in (learned, *others)] for label in PAID)
    lab.claim(
        "paths that begin as detours learn to have at most 0.7 of their energy on unseen digits, 1.05 times that of "
        "the straight ones and 1.02 times the squared displacement, with as little of the distance left to 0.02",
        energies[0] <= 0.7 * energies[1],
        energies[0] <= 1.05 * energies[2],
        moves[0] <= 1.02 * moves[2],
        misses[0] <= misses[2] + 0.02,
    )
    lab.note("The straight path is all but the cheapest here: a mixture of more independent points is narrower.")


def _draw(lab: Lab, config: Config, model: ConditionalMeans, digits: _Digits) -> None:
    """Unseen digits on their way along the edges, and one of each carried into the simplex."""

    def carried(x: Tensor, start: int, goal: Tensor) -> Tensor:
        def path(t: Tensor) -> Tensor:
            return torch.lerp(torch.eye(4)[start], goal, t.unsqueeze(-1))

        return digits.decode(transport.transport_along(model, path, x, steps=config.flow_steps).z1).view(-1, 8, 8)

    rows = {}
    with torch.no_grad():
        for a, b in permutations(range(3), 2):
            goals = [torch.lerp(torch.eye(4)[a + 1], torch.eye(4)[b + 1], s) for s in torch.linspace(0, 1, 9)]
            rows[f"{DIGITS[a]} to {DIGITS[b]}"] = [carried(digits.test[a][:1], a + 1, goal)[0] for goal in goals]
        lab.images(rows, name="ways", caption="An unseen digit of each kind on its way to the others.")
        figure, axes = lab.subplots(figsize=(5, 4.5))
        corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.87]])
        for p, q in ((p, q) for p, q in product(range(6), repeat=2) if p + q < 6):
            weights = torch.tensor([p, q, 5 - p - q]) / 5
            image = carried(digits.test[0][:1], 1, torch.cat([torch.zeros(1), weights]))[0]
            x, y = (weights @ corners).tolist()
            axes.imshow(image, extent=(x - 0.08, x + 0.08, y - 0.08, y + 0.08), cmap="gray_r", vmin=0, vmax=1)
    axes.set(xlim=(-0.1, 1.1), ylim=(-0.1, 1), aspect="equal", xticks=[], yticks=[])
    lab.figure("simplex", figure, "An unseen 1 (left below), carried to mixtures with 4 (right) and 7 (top).")
