"""Momentum with a complex coefficient: descent that converges where players turn around each other.

With real momentum simultaneous descent diverges in games that are purely adversarial; a coefficient with an angle
between 0 and pi converges there, and loses little where players cooperate (Lorraine, Acuna, Vicol, Duvenaud 2022). Two
real buffers hold the complex one, and the eigenvalues of the game tell the rate beforehand.

Smaller than in the paper: spectra and rates of games of a few eigenvalues; a game whose equilibrium is the covariance
of real digits (two players of 36 numbers: a linear generator, a quadratic critic), each method with the best step size
of a grid; a GAN on a ring of eight Gaussians (simulated), networks of 64 units with the steps of Adam, twelve pairs at
once, step sizes tuned beforehand. Adam without momentum finds the whole ring: an angle mends what momentum spoils, and
is no better than none. With plain steps no coefficient finds it so soon. No images (paper: BigGAN).
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pullback import data, optim
from pullback.lab import Lab, above, at_least, system
from pullback.optim import ComplexMomentumAdam, ComplexMomentumSGD, OptimisticAdam, momentum_radius, play


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    checks: Annotated[int, at_least(1)] = 50
    """Random games and settings whose rates are measured."""
    rounds: Annotated[int, at_least(50)] = 2000
    """Rounds of the games of rates and covariances."""
    grid: Annotated[int, at_least(2)] = 24
    """Step sizes, moduli and angles of the maps."""
    lrs: Annotated[tuple[float, ...], above(0)] = (0.003, 0.01, 0.03, 0.1, 0.3)
    """Step sizes that each method tries on the covariance of digits."""
    steps: Annotated[int, at_least(1)] = 800
    """Rounds of the GANs."""
    pairs: Annotated[int, at_least(2)] = 12
    """Generators with their critics that are trained at once."""
    batch: Annotated[int, at_least(2)] = 64
    """Points a round, of each."""


BLOCKS = "ComplexMomentumSGD ComplexMomentumAdam OptimisticSGD OptimisticAdam Extragradient play momentum_radius"
GAMES = {
    "adversarial": torch.tensor([1j, -1j]),
    "mixed": torch.tensor([1j, -1j, 0.1 + 0j, 1 + 0j]),
    "cooperative": torch.linspace(0.07, 1, 6).to(torch.complex64),
}
ANGLES = {"positive": 0.0, "pi/8": math.pi / 8, "pi/4": math.pi / 4, "negative": math.pi}


@system(
    "complex-momentum",
    family="optim",
    title="Complex Momentum for Optimization in Games",
    paper="Lorraine, Acuna, Vicol, Duvenaud, AISTATS 2022, arXiv 2102.08431",
    config=Config,
    smoke={"checks": 3, "rounds": 50, "grid": 4, "lrs": (0.01,), "steps": 2, "pairs": 2, "batch": 8},
    full={"steps": 100_000, "pairs": 32, "batch": 256},
    data=("digits",),
    blocks=tuple(f"optim.{name}" for name in BLOCKS.split()),
)
def run(lab: Lab, config: Config) -> None:
    """Check rates, draw spectra, play for a covariance, train on the ring, measure what a step costs."""
    _exact(lab, config)
    radii = _spectra(lab, config)
    _covariance(lab, config)
    samples = _ring(lab, config)
    _draw(lab, radii, samples)
    if lab.scale != "smoke":
        _cost(lab)


def _exact(lab: Lab, config: Config) -> None:
    """The growth of linear games against the spectral radius."""
    stream, expected, players, jacobians, groups = lab.fork("games"), [], nn.ParameterList(), [], []
    for _ in range(config.checks):
        own, other, turn, lr, modulus, angle = torch.rand(6, generator=stream, dtype=torch.float64).tolist()
        jacobian = torch.tensor([[own, 1.5 * turn], [-1.5 * turn, other]], dtype=torch.float64)
        setting = {"lr": 0.02 + 0.18 * lr, "momentum": 0.95 * modulus, "angle": math.pi * angle}
        expected.append(float(momentum_radius(torch.linalg.eigvals(jacobian), **setting)))
        players.append(nn.Parameter(torch.randn(2, generator=stream, dtype=torch.float64)))
        jacobians.append(jacobian)
        groups.append({"params": [players[-1]], **setting})
    optimizer, growth = ComplexMomentumSGD(groups, 0.1), torch.zeros(config.checks, dtype=torch.float64)
    began = config.rounds // 4
    for step in lab.arm("pi/8").steps(config.rounds, players, optimizer, growth, name="rates"):
        for player, jacobian in zip(players, jacobians, strict=True):
            player.grad = jacobian @ player.detach()
        optimizer.step()
        if (step + 1) % 25 == 0:
            for number, player in enumerate(players):  # back to length 1: what is linear grows alike
                parts = [player.data, *optimizer.state[player].values()]
                size = torch.stack(parts).norm()
                growth[number] += size.log() if step >= began else 0.0
                for part in parts:
                    part /= size
    counted = 25 * (config.rounds // 25 - (began + 24) // 25)
    error = float(((growth / counted).exp() - torch.tensor(expected)).abs().max())
    lab.claim("random games of two players grow by the spectral radius to 1e-3", error <= 1e-3, largest_error=error)


def _spectra(lab: Lab, config: Config) -> dict[str, Tensor]:
    """The smallest radius over step sizes, by modulus and angle."""
    lrs, moduli = torch.logspace(-2, 0.5, 2 * config.grid), torch.linspace(0, 0.98, 2 * config.grid)
    maps = {}
    for game, eigenvalues in GAMES.items():
        grid = torch.meshgrid(lrs, moduli[::2], torch.linspace(0, math.pi, config.grid), indexing="ij")
        radius = momentum_radius(eigenvalues, lr=grid[0], momentum=grid[1], angle=grid[2])
        maps[game] = radius.amin(0)
        for name, angle in ANGLES.items():
            best = momentum_radius(eigenvalues, lr=lrs[:, None], momentum=moduli, angle=angle).min()
            arm = lab.arm(name, baseline=name in ("positive", "negative"))
            arm.metric(f"radius, {game}", best, better="lower")
    positive, eighth, quarter, negative = (lab.arms[name] for name in ANGLES)
    lab.claim(
        "purely adversarial: the smallest radius of all step sizes and moduli is 1 for real momentum of either sign, "
        "0.96 at pi/8 and 0.93 at pi/4 or less; mixed: only the complex ones get below 1, to 0.999 or less",
        min(positive["radius, adversarial"], negative["radius, adversarial"]) >= 0.99999,
        eighth["radius, adversarial"] <= 0.96,
        quarter["radius, adversarial"] <= 0.93,
        min(positive["radius, mixed"], negative["radius, mixed"]) >= 0.99999,
        max(eighth["radius, mixed"], quarter["radius, mixed"]) <= 0.999,
    )
    lab.claim(
        "cooperative: pi/8 loses at most 0.1 of radius to positive momentum",
        eighth["radius, cooperative"] <= positive["radius, cooperative"] + 0.1,
    )
    return maps


def _covariance(lab: Lab, config: Config) -> None:
    """``min_A max_W <W, C - A A^T>``: a generator ``A z`` and a critic ``x^T W x`` of digits in six components."""
    digits = data.digits("train").images.flatten(1).double()
    lab.data("UCI digits, 8 x 8", origin="real")
    centred = digits - digits.mean(0)
    points = centred @ torch.linalg.svd(centred, full_matrices=False).Vh[:6].T
    wanted = points.T @ points / points.square().sum() * 6
    start = torch.linalg.cholesky(wanted) + 0.1 * torch.randn(6, 6, generator=lab.fork("start"), dtype=torch.float64)
    builders: dict[str, Callable[..., torch.optim.Optimizer]] = {
        **{name: lambda p, lr, a=angle: ComplexMomentumSGD([p], lr, angle=a) for name, angle in ANGLES.items()},
        "no momentum": lambda p, lr: torch.optim.SGD([p], lr),
        "optimistic": lambda p, lr: optim.OptimisticSGD([p], lr),
        "extragradient": lambda p, lr: optim.Extragradient([p], lr),
    }
    key = "distance from the covariance"
    for name, build in builders.items():
        arm, best = lab.arm(name, baseline=name not in ("pi/8", "pi/4")), math.inf
        rounds = config.rounds // 2 if name == "extragradient" else config.rounds  # it takes two gradients
        for lr in config.lrs:
            both = nn.ParameterList([start.clone(), torch.zeros_like(start)])
            optimizers = [build(p, lr) for p in both]
            state = {"distance": 1.0}
            game = play(lambda p=both: _meeting(wanted, *p), optimizers, steps=rounds)  # type: ignore[misc]
            for step in arm.steps(rounds, both, *optimizers, state, name=f"covariance {lr:g}"):
                next(game)
                if step % 20 == 19 or step == rounds - 1:
                    state["distance"] = float((wanted - both[0] @ both[0].T).detach().norm() / wanted.norm())
                    arm.record(f"distance at {lr:g}", state["distance"])
                    if not 1e-10 <= state["distance"] <= 1e3:
                        break
            best = min(best, state["distance"]) if state["distance"] == state["distance"] else best
        arm.metric(key, best, better="lower")
    turned = min(lab.arms["pi/8"][key], lab.arms["pi/4"][key])
    lab.claim(
        "with its best step size complex momentum finds the covariance of digits to 1e-6 in 2 000 rounds, as do "
        "optimistic and extragradient steps; no real momentum, nor none, comes within 5 % of it",
        max(turned, lab.arms["optimistic"][key], lab.arms["extragradient"][key]) <= 1e-6,
        min(lab.arms[name][key] for name in ("positive", "negative", "no momentum")) >= 0.05,
    )
    players = [torch.linalg.cholesky(wanted).requires_grad_(), torch.zeros_like(wanted, requires_grad=True)]
    spectrum = optim.game_spectrum(_meeting(wanted, *players), players)
    real = float(spectrum.real.abs().max() / spectrum.abs().max())
    lab.claim("at its equilibrium all eigenvalues are imaginary to 1e-6", real <= 1e-6, scale="smoke", real_part=real)


def _meeting(wanted: Tensor, generator: Tensor, critic: Tensor) -> tuple[Tensor, Tensor]:
    value = ((wanted - generator @ generator.T) * critic).sum()
    return value, -value


class Networks(nn.Module):
    """Several perceptrons at once."""

    def __init__(self, count: int, *sizes: int) -> None:
        super().__init__()
        shapes = list(pairwise(sizes))
        self.weights = nn.ParameterList([(2 * torch.rand(count, i, o) - 1) / i**0.5 for i, o in shapes])
        self.biases = nn.ParameterList([(2 * torch.rand(count, 1, o) - 1) / i**0.5 for i, o in shapes])

    def forward(self, x: Tensor) -> Tensor:
        """Points ``[networks, n, features]``."""
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x if number == 0 else x.relu(), weight)
        return x


ADAMS = {
    "Adam, 0": (0j, 0.012),
    "Adam, 0.5": (0.5 + 0j, 0.012),
    "Adam, 0.8": (0.8 + 0j, 0.012),
    "optimistic Adam, 0.5": (0.5 + 0j, 0.006),
    "complex Adam, pi/8": (cmath.rect(0.8, math.pi / 8), 0.006),
    "complex Adam, pi/4": (cmath.rect(0.8, math.pi / 4), 0.006),
}
"""Coefficient of the first moment and step size, the best of 0.003 to 0.012 by modes (0.8 real: of 0.0015 to 0.024)."""


def _ring(lab: Lab, config: Config) -> dict[str, Tensor]:
    """Generators of a ring of eight Gaussians, each against a critic."""
    lab.data("ring of eight Gaussians", origin="simulated")
    corners = torch.arange(8) * math.pi / 4
    centres = torch.stack([corners.cos(), corners.sin()], -1)
    samples = {}
    for name, (beta, lr) in ADAMS.items():
        arm, draws = lab.arm(name, baseline=not name.startswith("complex")), lab.fork("points")
        with arm.weights("ring"):
            networks = [Networks(config.pairs, 4, 64, 64, 2), Networks(config.pairs, 2, 64, 64, 1)]
        if name.startswith("optimistic"):
            optimizers: list[Any] = [OptimisticAdam(n.parameters(), lr, betas=(beta.real, 0.999)) for n in networks]
        else:
            optimizers = [ComplexMomentumAdam(n.parameters(), lr, betas=(beta, 0.999)) for n in networks]

        def losses(networks: Any = networks, draws: Any = draws) -> tuple[Tensor, Tensor]:
            made = networks[0](torch.randn(config.pairs, config.batch, 4, generator=draws))
            fake, real = networks[1](made), networks[1](_ring_points(centres, config.pairs, config.batch, draws))
            return softplus(-fake).mean((1, 2)).sum(), (softplus(fake) + softplus(-real)).mean((1, 2)).sum()

        game = play(losses, optimizers, steps=config.steps)
        for _ in arm.steps(config.steps, *networks, *optimizers, draws, name="ring"):
            next(game)
        unseen = lab.fork("unseen")
        with torch.no_grad():
            made = networks[0](torch.randn(config.pairs, 1000, 4, generator=unseen))
        real = _ring_points(centres, config.pairs, 1000, unseen)
        near = torch.cdist(made, centres.expand(config.pairs, 8, 2)) < 0.3  # three standard deviations
        discrepancy = _kernel(made, made) + _kernel(real, real) - 2 * _kernel(made, real)
        arm.metric("modes", (near.sum(1) >= 20).sum(-1).float(), better="higher", replicated=True)
        arm.metric("median MMD", discrepancy.median(), better="lower")
        samples[name] = made[discrepancy.argsort()[len(discrepancy) // 2]]
    eighth, quarter, straight = (lab.arms[n] for n in ("complex Adam, pi/8", "complex Adam, pi/4", "Adam, 0.8"))
    lab.claim(
        "ring, modulus 0.8: the median MMD is at most half of that of a real coefficient at an angle of pi/8, a "
        "quarter or less at pi/4, where at least 2 modes more are found",
        eighth["median MMD"] <= 0.5 * straight["median MMD"],
        quarter["median MMD"] <= 0.25 * straight["median MMD"],
        quarter["modes"] >= straight["modes"] + 2,
    )
    return samples


def _ring_points(centres: Tensor, count: int, size: int, draws: torch.Generator) -> Tensor:
    return centres[torch.randint(8, (count, size), generator=draws)] + 0.1 * torch.randn(
        count, size, 2, generator=draws
    )


def _kernel(some: Tensor, others: Tensor) -> Tensor:
    return torch.exp(-torch.cdist(some, others).square() / (2 * 0.25**2)).mean((1, 2))


def _cost(lab: Lab) -> None:
    """Twenty tensors of 256 x 256."""
    sets = [[nn.Parameter(torch.randn(256, 256, generator=lab.fork("cost"))) for _ in range(20)] for _ in range(2)]
    for p in (p for own in sets for p in own):
        p.grad = torch.ones_like(p)
    ours, torchs = ComplexMomentumSGD(sets[0], 1e-3), torch.optim.SGD(sets[1], 1e-3, momentum=0.8, foreach=True)
    race = lab.race({"complex": ours.step, "torch": torchs.step}, rounds=61, seconds=0.02)
    held = [sum(b.numel() for s in o.state.values() for b in s.values() if b is not None) for o in (ours, torchs)]
    lab.claim(
        "a step takes at most 1.5 of that of torch's SGD with momentum (foreach) and holds one buffer more",
        race.ratio("complex", "torch") <= 1.5,
        held[0] == 2 * held[1],
    )


def _draw(lab: Lab, radii: dict[str, Tensor], samples: dict[str, Tensor]) -> None:
    figure, axes = lab.subplots(1, 3, figsize=(10, 3))
    for axis, (game, radius) in zip(axes, radii.items(), strict=True):
        shown = {"origin": "lower", "extent": (0, 1, 0, 0.98), "aspect": "auto", "cmap": "viridis_r"}
        image = axis.imshow(radius.clamp(max=1).numpy(), **shown)
        axis.set(title=game, xlabel="angle / pi", ylabel="modulus" if axis is axes[0] else "")
        axis.grid(visible=False)
        figure.colorbar(image, ax=axis)
    lab.figure("spectral radius", figure, "Smallest radius over step sizes, at most 1: the darkest does not converge.")
    figure, axes = lab.subplots(1, len(samples), figsize=(11, 2.2), sharex=True, sharey=True)
    for axis, (name, points) in zip(axes, samples.items(), strict=True):
        axis.plot(*points.T.numpy(), ".", markersize=1, color=lab.colour(name))
        axis.set(title=name.replace(" Adam", "\nAdam"), xlim=(-1.6, 1.6), ylim=(-1.6, 1.6))
    lab.figure("ring", figure, "Samples of the generator of median discrepancy.")
