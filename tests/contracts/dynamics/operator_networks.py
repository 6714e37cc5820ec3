"""Contracts of operator networks on finite elements."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pullback.dynamics import (
    FunctionSpace,
    MeshProcessor,
    MultigridProcessor,
    StructurePreservingOperator,
    grid_mesh,
    load_vector,
)
from tests.contracts.contract import Bad, Call, Module

COARSE = FunctionSpace(grid_mesh((1, 1)))
SPACE = FunctionSpace(COARSE.mesh.refine())
WIDE = FunctionSpace(grid_mesh((3, 2)))
MOMENT = load_vector(lambda x: x[..., 0], WIDE)[None]


def _fields(g: torch.Generator) -> list[Call]:
    return [Call((torch.randn(2, 2, 9, generator=g, dtype=torch.float64),))]


def _operator(g: torch.Generator) -> StructurePreservingOperator:
    processor = MeshProcessor(WIDE, sources=1, boundary=True, channels=2, layers=2, generator=g)
    return StructurePreservingOperator(
        WIDE, WIDE, processor, dirichlet=True, constraint=(MOMENT, torch.tensor([0.5], dtype=torch.float64))
    )


def _held(operator: StructurePreservingOperator, inputs: Tensor, data: Tensor) -> tuple[Tensor, Tensor]:
    u = operator(F.pad(inputs, (0, 8)), F.pad(data, (0, 7)))
    return u, u @ MOMENT[0].to(u)


_BAD = [
    Bad((torch.ones(3, 9),), {}, ValueError, r"x must have shape \(\.\.\., 2, 9\)"),
    Bad((torch.ones(2, 8),), {}, ValueError, r"x must have shape \(\.\.\., 2, 9\)"),
]

CONTRACTS = [
    Module(
        "dynamics.MeshProcessor",
        lambda processor, x: processor(x),
        _fields,
        build=lambda g: MeshProcessor(SPACE, coefficients=1, sources=1, channels=3, layers=1, generator=g),
        bad=_BAD,
        large_limit=1e4,
        compile=False,
        why="large: sums of the largest numbers leave the range; compile: stencils are made at the first call",
    ),
    Module(
        "dynamics.MultigridProcessor",
        lambda processor, x: processor(x),
        _fields,
        build=lambda g: MultigridProcessor([COARSE, SPACE], coefficients=1, sources=1, channels=3, generator=g),
        bad=_BAD,
        large_limit=1e4,
        compile=False,
        why="large: sums of the largest numbers leave the range; compile: stencils are made at the first call",
    ),
    Module(
        "dynamics.StructurePreservingOperator",
        _held,
        lambda g: [Call(tuple(torch.randn(2, *s, generator=g, dtype=torch.float64) for s in ((1, 4), (3,))))],
        build=_operator,
        bad=[
            Bad((torch.ones(1, 8), torch.ones(3)), {}, ValueError, r"inputs must have shape \(\.\.\., any, 12\)"),
            Bad((torch.ones(1, 4), torch.ones(9)), {}, ValueError, r"boundary must have shape \(\.\.\., 10\)"),
            Bad((torch.ones(1, 4), torch.ones(3).double()), {}, TypeError, "inputs and boundary must have the same"),
            Bad((torch.ones(2, 1, 4), torch.ones(3, 3)), {}, ValueError, "inputs and boundary must have shapes that"),
        ],
        large_limit=1e3,
        compile=False,
        half_tolerance=6e-2,
        why="large: sums of the largest numbers leave the range; compile: stencils are made at the first call",
    ),
]
