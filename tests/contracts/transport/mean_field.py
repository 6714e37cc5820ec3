"""Contracts of laws of particles: Langevin steps against a closed form, potentials and gaps against sums in numpy."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pullback import transport
from tests.contracts.contract import Bad, Call, Exempt, HigherOrder
from tests.contracts.law import seeded


def _points(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def _steps(potential: Any, theta: Tensor, **words: Any) -> Tensor:
    return transport.langevin(potential, theta, **({"step": 0.1, "steps": 3, "generator": seeded()} | words)).theta


def _bowl(theta: Tensor) -> Tensor:
    return theta.square().sum(-1) / 2


def _in_a_bowl(theta: Tensor, temperature: float = 1.0) -> Tensor:
    """Each step shrinks by 0.9 and adds noise: three of them, written out."""
    noise = [torch.randn(theta.shape, generator=g, dtype=theta.dtype) for g in [seeded()] for _ in range(3)]
    scale = (0.2 * temperature) ** 0.5
    return 0.9**3 * theta + scale * (0.81 * noise[0] + 0.9 * noise[1] + noise[2])


def _metropolis(theta: Tensor) -> Tensor:
    """The same with Metropolis and Hastings, chain by chain, from densities of normal laws."""
    g, draws = seeded(), []
    for _ in range(3):
        noise = torch.randn(theta.shape, generator=g, dtype=theta.dtype)
        draws.append((noise, torch.rand(theta.shape[:-1], generator=g, dtype=theta.dtype)))
    rows = []
    for i, row in enumerate(theta):
        for noise, chance in draws:
            there = row - 1.5 * row + 3**0.5 * noise[i]

            def kernel(to: Tensor, at: Tensor) -> Tensor:
                return torch.distributions.Normal(at - 1.5 * at, 3**0.5).log_prob(to).sum()

            gain = _bowl(row) - _bowl(there) + kernel(row, there) - kernel(there, row)
            row = there if chance[i].log() < gain else row
        rows.append(row)
    return torch.stack(rows)


def _tanh(theta: Tensor, x: Tensor) -> Tensor:
    return torch.tanh(theta @ x.mT)


def _energy(theta: Tensor, x: Tensor, g: Tensor, decay: float = 0.0) -> Tensor:
    rows = theta.reshape(-1, theta.shape[-1]).numpy()
    values = [np.mean(np.tanh(x.numpy() @ row) * g.numpy()) + decay * row @ row for row in rows]
    return torch.tensor(np.array(values)).view(theta.shape[:-1])


def _square(h: Tensor, y: Any) -> Tensor:
    return (h - y).square() / 2


def _certified(log_density: Tensor, theta: Tensor, features: Tensor, y: Tensor, **words: float) -> tuple[Tensor, ...]:
    heat, decay = words["temperature"], words["decay"]
    found = []
    for row in (torch.log_softmax(log_density, -1) - np.log(0.5)).reshape(-1, log_density.shape[-1]).numpy():
        mass = 0.5 * np.exp(row)
        h = sum(m * f for m, f in zip(mass, features.numpy(), strict=True))
        g = h - y.numpy()
        v = np.array([np.mean(g * f) + decay * t @ t for f, t in zip(features.numpy(), theta.numpy(), strict=True)])
        gibbs = np.exp(-v / heat) / (0.5 * np.exp(-v / heat).sum())
        norm = (theta.numpy() ** 2).sum(-1)
        primal = np.mean(g**2) / 2 + decay * mass @ norm + heat * mass @ row
        dual = -np.mean(g**2 / 2 + g * y.numpy()) - heat * np.log(0.5 * np.exp(-v / heat).sum())
        found.append((primal, dual, mass @ (row - np.log(gibbs)), np.log(gibbs), h))
    batch = log_density.shape[:-1]
    return tuple(torch.tensor(np.array(part)).view((*batch, *np.shape(part[0]))) for part in zip(*found, strict=True))


def _gap(loss: Any, log_density: Tensor, theta: Tensor, features: Tensor, y: Tensor, **words: Any) -> Any:
    options = {"temperature": 0.3, "decay": 0.1, "volume": 0.5} | words
    if isinstance(log_density, Tensor) and log_density.ndim and log_density.shape[-1] == 4:
        log_density = torch.log_softmax(log_density, -1) - np.log(0.5)  # what the laws make of it has other masses
    return transport.duality_gap(log_density, theta, features, y, loss=loss, **options)


_GRID = (torch.zeros(4), torch.zeros(4, 2), torch.zeros(4, 3), torch.zeros(3))
_ONE = torch.zeros(2, 2)

CONTRACTS = [
    HigherOrder(
        "transport.langevin",
        _steps,
        lambda g: [Call((_points(g, 3, 2),)), Call((_points(g, 2),), {"temperature": 0.25})],
        given=_bowl,
        argument="potential",
        reference=_in_a_bowl,
        scalars={"temperature": 0.5},
        batched=False,
        vmap=False,
        compile=False,
        large_limit=1e4,
        why="each chain has its own noise; squares of the largest numbers overflow; torch does not compile transforms "
        "of a caller's function",
        bad=[
            Bad((torch.tensor(1.0),), {}, ValueError, r"theta must have shape \(..., d\), got \(\)"),
            Bad((_ONE.long(),), {}, TypeError, "theta must be a floating tensor"),
            Bad((_ONE,), {"step": 0.0}, ValueError, "step must be > 0, got 0.0"),
            Bad((_ONE,), {"temperature": -1.0}, ValueError, "temperature must be >= 0, got -1.0"),
            Bad((_ONE,), {"temperature": 0.0, "adjusted": True}, ValueError, "temperature must be > 0, got 0.0"),
            Bad((_ONE,), {"steps": 0}, ValueError, "steps must be an integer >= 1"),
        ],
    ),
    HigherOrder(
        "transport.langevin[adjusted]",
        partial(_steps, adjusted=True, step=1.5),
        lambda g: [Call((_points(g, 6, 2),))],
        given=_bowl,
        argument="potential",
        reference=_metropolis,
        batched=False,
        vmap=False,
        compile=False,
        half=False,
        large=(),
        why="each chain has its own noise; whether a step is taken turns on the last bit; see the entry above",
    ),
    HigherOrder(
        "transport.proximal_gibbs_potential",
        lambda feature, *args, **words: transport.proximal_gibbs_potential(*args, feature=feature, **words),
        lambda g: [
            Call((_points(g, 2, 3, 2), _points(g, 4, 2), _points(g, 4))),
            Call((_points(g, 2), _points(g, 1, 2), _points(g, 1)), {"decay": 0.5}),
        ],
        given=_tanh,
        argument="feature",
        reference=_energy,
        scalars={"decay": 0.5},
        large=(2,),
        large_limit=1e8,
        why="a sum of the largest numbers overflows",
        bad=[
            Bad(
                (torch.tensor(1.0), _ONE, torch.ones(2)), {}, ValueError, r"theta must have shape \(..., d\), got \(\)"
            ),
            Bad((_ONE, _ONE, torch.ones(0)), {}, ValueError, r"g must have shape \(n,\) or \(n, k\)"),
            Bad(
                (_ONE, _ONE, torch.ones(3)), {}, ValueError, r"feature must return a tensor of shape \(2, 3\), got \(2"
            ),
            Bad((_ONE, _ONE, torch.ones(2)), {"decay": -1.0}, ValueError, "decay must be >= 0, got -1.0"),
        ],
    ),
    HigherOrder(
        "transport.duality_gap",
        _gap,
        lambda g: [
            Call(
                (_points(g, *batch, 4), _points(g, 4, 2), _points(g, 4, 3), _points(g, 3)),
                {"temperature": 0.3, "decay": 0.1},
            )
            for batch in ((2,), ())
        ],
        given=_square,
        argument="loss",
        reference=_certified,
        outputs=lambda found: tuple(found),
        scalars={"temperature": 0.5, "decay": 0.2},
        large=(),
        compile=False,
        why="exponentials of a density's logarithm have no large sizes; torch does not compile transforms of a "
        "caller's function",
        bad=[
            Bad((_GRID[0], torch.zeros(4), *_GRID[2:]), {}, ValueError, r"theta must have shape \(m, d\), got \(4,\)"),
            Bad(
                (*_GRID[:2], torch.zeros(5, 3), _GRID[3]), {}, ValueError, "features must have a row for each of the 4"
            ),
            Bad((torch.zeros(3), *_GRID[1:]), {}, ValueError, r"log_density must have shape \(..., 4\), got \(3,\)"),
            Bad(
                (_GRID[0].double(), *_GRID[1:]), {}, TypeError, "log_density and theta and features must have the same"
            ),
            Bad(_GRID, {"temperature": 0.0}, ValueError, "temperature must be > 0, got 0.0"),
            Bad(_GRID, {"volume": -1.0}, ValueError, "volume must be > 0"),
            Bad(_GRID, {"conjugate": 3}, TypeError, "conjugate must be callable"),
        ],
    ),
    HigherOrder(
        "transport.duality_gap[conjugate]",
        partial(_gap, conjugate=lambda g, y: g.square() / 2 + g * y),
        lambda g: [
            Call((_points(g, 4), _points(g, 4, 2), _points(g, 4, 3), _points(g, 3)), {"temperature": 0.3, "decay": 0.1})
        ],
        given=_square,
        argument="loss",
        reference=_certified,
        outputs=lambda found: tuple(found),
        large=(),
        compile=False,
        why="see the entry above",
    ),
    Exempt(
        "transport.EntropicFictitiousPlay",
        "a learner that draws; against ridge regression",
        "transport/test_mean_field.py",
    ),
    Exempt(
        "transport.MeanFieldLangevin", "a learner that draws; against ridge regression", "transport/test_mean_field.py"
    ),
]
