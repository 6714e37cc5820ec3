"""Contracts of the models of ``pullback.dynamics``: fields, flows, latent models, and the systems they are tried on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pullback import dynamics
from tests.contracts.contract import Call, Contract, Exempt, Module

COMPILE = "a solve decides on its steps from data; what is worth compiling is the field (tested in tests/dynamics)"
RANGE = "sums of products leave the range of half, and float32 rounds large states"


def seeded(make: Callable[[], nn.Module]) -> Callable[[torch.Generator], nn.Module]:
    """torch's layers draw their weights from its own generator."""

    def build(g: torch.Generator) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (), generator=g)))
            return make()

    return build


def points(*shape: int) -> Callable[[torch.Generator], list[Call]]:
    return lambda g: [Call((torch.randn(*shape, generator=g, dtype=torch.float64),))]


def time_of(y: Tensor) -> Tensor:
    return torch.full_like(y[..., :1], 0.3)


def drawn(flow: dynamics.ContinuousFlow, x: Tensor) -> tuple[Tensor, Tensor]:
    """Samples of one seed, whose generator lives on the CPU wherever the flow does."""
    sample = flow.sample(2, generator=torch.Generator().manual_seed(0))
    return x + sample.x, sample.log_prob


CONTRACTS = [
    Contract(
        "dynamics.lotka_volterra",
        lambda y: dynamics.lotka_volterra(time_of(y), y),
        points(3, 2),
        reference=lambda y: torch.stack([1.5 * y[:, 0] - y.prod(1), y.prod(1) - 3 * y[:, 1]], 1),
        large_limit=100.0,
        why="products of the state leave the range of half",
    ),
    Contract(
        "dynamics.van_der_pol",
        lambda y: dynamics.van_der_pol(time_of(y), y),
        points(3, 2),
        reference=lambda y: torch.stack([y[:, 1], y[:, 1] - y[:, 0] ** 2 * y[:, 1] - y[:, 0]], 1),
        large_limit=20.0,
        why="a cube of the state leaves the range of half",
    ),
    Contract(
        "dynamics.duffing",
        lambda y: dynamics.duffing(time_of(y), y),
        points(3, 2),
        reference=lambda y: torch.stack(
            [y[:, 1], y[:, 0] * (1 - y[:, 0] ** 2) + 0.3 * torch.cos(torch.tensor(0.3))], 1
        ),
        tolerance=1e-7,
        large_limit=20.0,
        why="a cube of the state leaves the range of half",
    ),
    Module(
        "dynamics.NeuralField",
        lambda field, z: field(time_of(z), z),
        points(3, 2),
        build=seeded(lambda: dynamics.NeuralField(2, hidden=(5,))),
        large_limit=100.0,
        why=RANGE,
    ),
    Module(
        "dynamics.GatedField",
        lambda field, z: (field(time_of(z), z), field.with_trace(time_of(z), z)[1]),
        points(3, 2),
        build=lambda g: dynamics.GatedField(2, 4, generator=g),
        large_limit=100.0,
        why=RANGE,
    ),
    Module(
        "dynamics.PlanarFlow[log_prob]",
        lambda flow, x: flow.log_prob(x),
        points(4, 2),
        build=lambda g: dynamics.PlanarFlow(2, 3, generator=g),
        large_limit=100.0,
        why="a density of the square of its argument leaves the range of half",
    ),
    Module(
        "dynamics.ContinuousFlow[log_prob]",
        lambda flow, x: flow.log_prob(x),
        points(2, 2),
        build=lambda g: dynamics.ContinuousFlow(dynamics.GatedField(2, 3, generator=g), 2, method="rk4", step=0.5),
        vmap=False,
        compile=False,
        large_limit=100.0,
        why=f"a transform over a module's solve needs functional_call; squares leave the range of half; {COMPILE}",
    ),
    Module(
        "dynamics.ContinuousFlow[sample]",
        drawn,
        points(2, 2),
        build=lambda g: dynamics.ContinuousFlow(dynamics.GatedField(2, 3, generator=g), 2, method="rk4", step=0.5),
        gradcheck=False,
        gradgradcheck=False,
        forward_mode=False,
        batched=False,
        vmap=False,
        compile=False,
        large=(),
        why=f"draws: of its input only the shift by it depends on it; {COMPILE}",
    ),
    Exempt("dynamics.ConvolutionalField", "images in; against a convolution written out", "dynamics/test_models.py"),
    Exempt("dynamics.ResidualBlock", "images in; against its layers applied by hand", "dynamics/test_models.py"),
    Exempt("dynamics.NeuralODE", "odeint with a module, whose laws are those of odeint", "dynamics/test_odeint.py"),
    Exempt("dynamics.BackwardsEncoder", "reads times and masks; against a cell by hand", "dynamics/test_models.py"),
    Exempt("dynamics.LatentODE", "draws; against the closed form of a drifting state", "dynamics/test_models.py"),
    Exempt("dynamics.LatentRNN", "LatentODE with a decoder that is stepped by hand", "dynamics/test_models.py"),
    Exempt("dynamics.AutoregressiveRNN", "a cell over times, stepped by hand in its test", "dynamics/test_models.py"),
    Exempt("dynamics.convergence_order", "a fit of Python numbers; against scipy", "dynamics/test_convergence.py"),
    Exempt("dynamics.Tableau", "coefficients; order conditions hold for each", "dynamics/test_odeint.py"),
    Exempt("dynamics.ODESolution", "a result that reads its dense output", "dynamics/test_odeint.py"),
]
