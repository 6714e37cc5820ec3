"""Contracts of sparse matrices and of the systems that they pose."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback import implicit
from tests.contracts.contract import DEVICE, Bad, Call, Contract, Exempt

ROWS = torch.tensor([0, 0, 1, 1, 2, 2, 3, 0, 2])
COLUMNS = torch.tensor([0, 1, 1, 2, 2, 3, 3, 3, 2])  # the last is one place with the fifth
PATTERN = implicit.SparsePattern(ROWS.to(DEVICE), COLUMNS.to(DEVICE), (4, 4))


def _matrix(values: Tensor) -> implicit.SparseMatrix:
    return implicit.SparseMatrix(PATTERN, values)


def _written_out(values: Tensor) -> Tensor:
    dense = values.new_zeros(*values.shape[:-1], 4, 4)
    for entry, (i, j) in enumerate(zip(ROWS.tolist(), COLUMNS.tolist(), strict=True)):
        dense[..., i, j] += values[..., entry]
    return dense


FILLED = torch.tensor([[0, 1, 2, 0, 1, 2], [0, 1, 2, 1, 2, 0]])  # elimination fills the place (2, 1)
FILLING = implicit.SparsePattern(*FILLED.to(DEVICE), (3, 3))


def _filled(values: Tensor) -> Tensor:
    flat = values.new_zeros(*values.shape[:-1], 9)
    return flat.index_copy(-1, 3 * FILLED[0] + FILLED[1], values).unflatten(-1, (3, 3))


def _regular(values: Tensor) -> Tensor:
    """No row with less on the diagonal than beside it."""
    return values.tanh() + 2.5 * (FILLED[0] == FILLED[1]).to(values)


def _drawn(g: torch.Generator) -> list[Call]:
    return [Call((torch.randn(2, 9, generator=g).double(), torch.randn(2, 4, generator=g).double()))]


CONTRACTS = [
    Contract(
        "implicit.SparseMatrix",
        lambda values, x: (_matrix(values) @ x, _matrix(values).mT @ x, _matrix(values).dense()),
        _drawn,
        reference=lambda values, x: (
            torch.einsum("bij,bj->bi", _written_out(values), x),
            torch.einsum("bji,bj->bi", _written_out(values), x),
            _written_out(values),
        ),
        bad=[
            Bad((torch.ones(8), torch.ones(4)), {}, ValueError, r"values must have shape \(\.\.\., 9\)"),
            Bad((torch.ones(9), torch.ones(3)), {}, ValueError, r"x must have shape \(\.\.\., 4\), got \(3,\)"),
            Bad((torch.ones(9), torch.ones(4).double()), {}, TypeError, "values and x must have the same dtype"),
            Bad((torch.ones(9).long(), torch.ones(4)), {}, TypeError, "values must be a floating tensor"),
            Bad((torch.ones(2, 9), torch.ones(3, 4)), {}, ValueError, "values and x must have shapes that broadcast"),
        ],
        large=(0,),
        large_limit=1e4,
        compile=False,
        why="large: products leave the range; compile: a pattern is checked by its values",
    ),
    Contract(
        "implicit.linear_solve[sparse]",
        lambda values, b: implicit.linear_solve(implicit.SparseMatrix(FILLING, _regular(values)), b).value,
        lambda g: [Call(tuple(torch.randn(2, n, generator=g).double() for n in (6, 3)))],
        reference=lambda values, b: torch.linalg.solve(_filled(_regular(values)), b),
        bad=[
            Bad((torch.ones(6), torch.ones(4)), {}, ValueError, r"matvec must be \[\*batch, n, n\] for b \(4,\)"),
            Bad((torch.ones(6), torch.ones(3).double()), {}, TypeError, "matvec and b must have the same dtype"),
        ],
        large=(1,),
        compile=False,
        half_tolerance=1e-1,
        why="compile: the solver branches on its data",
    ),
    Exempt("implicit.SparsePattern", "holds the places of entries", "implicit/test_sparse_matrices.py"),
]
