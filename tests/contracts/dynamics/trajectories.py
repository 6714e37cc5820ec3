"""Contracts of paths of masses and of the potential of Mueller and Brown."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pullback import dynamics
from tests.contracts.contract import Bad, Call, Contract, Exempt, Module


def _by_rows(x: Tensor) -> Tensor:
    point, total = x.numpy(), 0.0
    for height, a, b, c, u, w in (
        (-200, -1, 0, -10, 1, 0),
        (-100, -1, 0, -10, 0, 0.5),
        (-170, -6.5, 11, -6.5, -0.5, 1.5),
        (15, 0.7, 0.6, 0.7, -1, 1),
    ):
        off = point - np.array([u, w])
        total = total + height * np.exp(np.einsum("ni,ij,nj->n", off, np.array([[a, b / 2], [b / 2, c]]), off))
    return torch.from_numpy(total)


def _network(g: torch.Generator) -> dynamics.NeuralBias:
    module = dynamics.NeuralBias(torch.sin, 2, hidden=4, layers=2)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=g)
    return module


CONTRACTS = [
    Contract(
        "dynamics.muller_brown",
        dynamics.muller_brown,
        lambda g: [Call((torch.rand(4, 2, generator=g, dtype=torch.float64) * 1.5 - 0.5,))],
        reference=_by_rows,
        large_limit=2.0,
        half_tolerance=0.1,
        why="the exponential of a square",
        bad=(
            Bad((torch.ones(3),), {}, ValueError, r"x must have shape \(\.\.\., 2\)"),
            Bad((torch.full((2,), 1e4),), {}, ValueError, "x must be where the potential is finite"),
        ),
    ),
    Module(
        "dynamics.GaussianGridBias",
        lambda module, x: module(x),
        lambda g: [Call((2 * torch.rand(4, 2, generator=g, dtype=torch.float64),))],
        build=lambda g: dynamics.GaussianGridBias((0.0, 0.0), (2.0, 2.0), resolution=3, width=0.5, height=0.7),
        bad=(Bad((torch.ones(3),), {}, ValueError, r"x must have shape \(\.\.\., 2\)"),),
    ),
    Contract(
        "dynamics.muller_brown_force",
        dynamics.muller_brown_force,
        lambda g: [Call((torch.rand(4, 2, generator=g, dtype=torch.float64) * 1.5 - 0.5,))],
        reference=lambda x: -torch.func.grad(lambda z: dynamics.muller_brown(z).sum())(x),
        large_limit=2.0,
        half_tolerance=0.1,
        why="the exponential of a square",
        bad=(
            Bad((torch.ones(3),), {}, ValueError, r"x must have shape \(\.\.\., 2\)"),
            Bad((torch.full((2,), 1e4),), {}, ValueError, "x must be where the force is finite"),
        ),
    ),
    Module(
        "dynamics.NeuralBias",
        lambda module, x: (module(x), module.force(x)),
        lambda g: [Call((torch.randn(4, 2, generator=g, dtype=torch.float64),))],
        build=_network,
        bad=(Bad((torch.ones(3),), {}, ValueError, r"descriptors must return a tensor of shape \(\.\.\., 2\)"),),
    ),
    Exempt("dynamics.minibatch_parameter_gradient", "yields losses in random order", "dynamics/test_rare_events.py"),
    Exempt("dynamics.Basin", "a result, with its two questions", "dynamics/test_rare_events.py"),
    Exempt("dynamics.basin", "an inverse covariance in double precision", "dynamics/test_rare_events.py"),
    Exempt("dynamics.approach", "looks for frames, and has no gradient", "dynamics/test_rare_events.py"),
    Exempt("dynamics.crossing_adjoints", "is a gradient, and has none", "dynamics/test_rare_events.py"),
    Exempt("dynamics.free_energy", "counts samples in boxes", "dynamics/test_rare_events.py"),
    Exempt("dynamics.HillBias", "a table that hills are added to", "dynamics/test_rare_events.py"),
    Exempt("dynamics.metadynamics", "draws noise along a path", "dynamics/test_rare_events.py"),
    Exempt("dynamics.amber_energy", "takes the force field of a file", "dynamics/test_amber.py"),
    Exempt("dynamics.read_prmtop", "reads a file", "dynamics/test_amber.py"),
    Exempt("dynamics.underdamped_langevin", "draws noise along a path", "dynamics/test_trajectories.py"),
    Exempt("dynamics.trajectory_adjoint", "is a gradient, and has none", "dynamics/test_trajectories.py"),
]
