"""One regression, and points travel between any of several distributions, along any path between them.

Take a point of each distribution and mix them by weights on a simplex. The mean of each of them, given the mixture, is
learned by plain regression, for all weights at once. The velocity along any path of weights is a sum of these means:
one network carries every distribution onto every other, and the path can be chosen afterwards, to make transport
cheaper (Albergo, Boffi, Lindsey, Vanden-Eijnden, ICLR 2024). Smaller than in the paper: three digits of 8 x 8 pixels in
16 principal components, perceptrons, independent pairs. The digits are real.
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

DIGITS = (0, 1, 7)
MOVED = "squared displacement"


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
    lab.claim(
        "one network carries each digit onto each other: of the sliced distance to unseen ones at most 0.35 is left",
        *(ours[_name(a, b)] <= 0.35 for a, b in permutations(DIGITS, 2)),
    )
    right = "labelled as the target"
    lab.claim(
        "a classifier of real digits labels at least 85 % of them as the target, at most 0.03 fewer than of those "
        "carried by three networks with as many steps together",
        ours[right] >= 0.85,
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
    """Three digits in principal components of those to train on, in units of their common deviation."""

    def __init__(self, components: int) -> None:
        train, test = data.digits("train"), data.digits("test")
        self.images, self.labels = train.images.flatten(1), train.labels
        chosen = torch.cat([self.images[self.labels == digit] for digit in DIGITS])
        self.mean = chosen.mean(0)
        self.axes = torch.linalg.svd(chosen - self.mean, full_matrices=False).Vh[:components]
        self.scale = ((chosen - self.mean) @ self.axes.mT).std()
        self.train = [self.encode(self.images[self.labels == digit]) for digit in DIGITS]
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


def _name(a: int, b: int) -> str:
    return f"distance left, {a} to {b}"


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
    carried = {}
    with torch.no_grad():
        for a, b in permutations(range(3), 2):
            path = transport.SimplexPath(a + 1, b + 1, 4, modes=0)
            carried[a, b] = transport.transport_along(model, path, digits.test[a], steps=config.flow_steps).z1
    _judge(lab, arm, digits, carried)
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
            carried[a, b] = follow(digits.test[a]).z1
            carried[b, a] = follow(digits.test[b], reverse=True).z0
    _judge(lab, arm, digits, carried)


def _judge(lab: Lab, arm: Arm, digits: _Digits, carried: dict[tuple[int, int], Tensor]) -> None:
    """Compare what arrived with unseen digits of its target, and ask a classifier of all ten."""
    from sklearn.svm import SVC

    classifier = SVC(C=10).fit(digits.images.numpy(), digits.labels.numpy())
    right = []
    for (a, b), points in carried.items():
        before, after = (
            transport.sliced_wasserstein(cloud, digits.test[b], projections=500, generator=lab.fork("projections"))
            for cloud in (digits.test[a], points)
        )
        arm.metric(_name(DIGITS[a], DIGITS[b]), (after / before).sqrt(), better="lower")
        found = torch.from_numpy(classifier.predict(digits.decode(points).numpy()))
        right.append((found == DIGITS[b]).double().mean())
    arm.metric("labelled as the target", torch.stack(right).mean(), better="higher")


def _learn_paths(lab: Lab, config: Config, model: ConditionalMeans, digits: _Digits) -> None:
    """Let paths that begin as detours learn, with the means as they are, and measure what unseen digits pay."""
    arms = [lab.arm(name, baseline=name != "learned path") for name in ("straight path", "detour", "learned path")]
    straight, detour, learned = arms
    model.requires_grad_(False)
    unseen = digits.draw(digits.test, 2000, lab.fork("unseen"))
    names = {(a, b): f"{DIGITS[a]} to {DIGITS[b]}" for a, b in combinations(range(3), 2)}
    figure, panels = lab.subplots(1, 3, figsize=(11, 3))
    for ((a, b), name), axes in zip(names.items(), panels, strict=True):
        make, g = partial(transport.SimplexPath, a + 1, b + 1, 4), lab.fork(f"path {name}")
        path = make(initial=1.0)
        optimizer = torch.optim.Adam(path.parameters(), lr=config.path_lr)
        for _ in learned.steps(config.path_steps, path, optimizer, g, name=name):
            energy = transport.path_energy(model, path, digits.draw(digits.train, config.batch, g), generator=g)
            learned.descend(energy, optimizer, name=f"energy while learning, {name}")
        with torch.no_grad():
            for arm, way in zip(arms, (make(modes=0), make(initial=1.0), path), strict=True):
                energy = transport.path_energy(model, way, unseen, generator=lab.fork("times"))
                arm.metric(f"energy, {name}", energy, better="lower")
                z0, z1 = transport.transport_along(model, way, digits.test[a], steps=config.flow_steps)
                arm.metric(f"{MOVED}, {name}", (z1 - z0).square().sum(-1).mean(), better="lower")
            t = torch.linspace(0, 1, 101)
            axes.plot(t, path(t), label=["Gaussian", *DIGITS])
        axes.set(title=name, xlabel="time")
    panels[0].set_ylabel("weight")
    panels[-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    lab.figure("paths", figure, "The learned paths of weights.")
    lab.claim(
        "a path that begins as a detour learns to have at most 0.6 of its energy on unseen digits, 1.05 times that of "
        "the straight one, and 1.02 times the squared displacement",
        *(learned[f"energy, {name}"] <= 0.6 * detour[f"energy, {name}"] for name in names.values()),
        *(learned[f"energy, {name}"] <= 1.05 * straight[f"energy, {name}"] for name in names.values()),
        *(learned[f"{MOVED}, {name}"] <= 1.02 * straight[f"{MOVED}, {name}"] for name in names.values()),
    )
    lab.note(
        "With independent points the straight path is all but the cheapest: a mixture of more of them is narrower."
    )


def _draw(lab: Lab, config: Config, model: ConditionalMeans, digits: _Digits) -> None:
    """Unseen digits on their way along the edges, and one of each carried into the simplex."""

    def carried(x: Tensor, start: int, goal: Tensor) -> Tensor:
        def path(t: Tensor) -> Tensor:
            return (1 - t.unsqueeze(-1)) * torch.eye(4)[start] + t.unsqueeze(-1) * goal

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
    lab.figure("simplex", figure, "An unseen 0 (left below), carried to mixtures with 1 (right) and 7 (top).")
