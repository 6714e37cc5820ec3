"""Contracts of linear systems."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback import implicit
from pullback.core.errors import ConvergenceError
from tests.contracts.contract import Bad, Call, Contract, HigherOrder


def _spd(a: Tensor) -> Tensor:
    return a @ a.mT + torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)


def _randn(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _product(v: Tensor, a: Tensor) -> Tensor:
    return v + 0.5 * torch.sin(a) * v.flip(-1)  # regular for every a


def _swapped_solve(a: Tensor, b: Tensor) -> Tensor:
    """Solve each pair of unknowns that the flip couples by hand."""
    s = 0.5 * torch.sin(a)
    return (b - s * b.flip(-1)) / (1 - s * s.flip(-1))


def _normal(a: Tensor, b: Tensor, ridge: float) -> Tensor:
    """Normal equations, on the side where they are regular."""
    if ridge or a.shape[-2] >= a.shape[-1]:
        gram = a.mT @ a + ridge * torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
        return torch.linalg.solve(gram, a.mT @ b[..., None])[..., 0]
    return (a.mT @ torch.linalg.solve(a @ a.mT, b[..., None]))[..., 0]


_SINGULAR = torch.ones(3, 3)

CONTRACTS = [
    *(
        Contract(
            f"implicit.linear_solve[{method}]",
            lambda a, b, method=method: implicit.linear_solve(
                _spd(a), b, method=method, tolerance=1e-13 if b.dtype == torch.float64 else None
            ),
            lambda g: [Call((_randn(g, 3, 3), _randn(g, 3)))],
            reference=lambda a, b: torch.linalg.solve(_spd(a), b),
            outputs=lambda solution: solution.value,
            large=(1,),
            batched=False,
            compile=False,
            half_tolerance=1e-1,
            why="batched: b has the batch shape of A; compile: the solver branches on its data",
        )
        for method in ("lu", "cg", "normal_cg", "bicgstab", "gmres")
    ),
    HigherOrder(
        "implicit.linear_solve",
        lambda matvec, a, b: implicit.linear_solve(matvec, b, parameters=(a,)),
        lambda g: [Call((0.3 * _randn(g, 4), _randn(g, 4)))],
        given=_product,
        argument="matvec",
        reference=_swapped_solve,
        outputs=lambda solution: solution.value,
        large=(1,),
        large_limit=1e4,
        batched=False,
        compile=False,
        half_tolerance=1e-1,
        why="batched: one system over all entries; compile: the solver branches on its data; large: the solution is "
        "larger than the right side and overflows at the limit of the type",
    ),
    Contract(
        "implicit.linear_solve[columns]",
        lambda a, b, **options: implicit.linear_solve(_spd(a), b, columns=True, **options),
        lambda g: [Call((_randn(g, 2, 2), _randn(g, 2, 2)))],
        reference=lambda a, b: torch.linalg.solve(_spd(a), b),
        outputs=lambda solution: solution.value,
        large=(1,),
        batched=False,
        compile=False,
        half_tolerance=1e-1,
        why="batched: b has the batch shape of A; compile: the solver branches on its data",
        bad=[
            Bad((torch.eye(3), torch.ones(3)), {}, ValueError, r"matvec must be \[\*batch, n, n\] for b \(3,\)"),
            Bad((torch.eye(3), torch.ones(2, 3)), {}, ValueError, r"matvec must be \[\*batch, n, n\] for b \(2, 3\)"),
        ],
    ),
    *(
        Contract(
            f"implicit.linear_least_squares[{method}{'+ridge' if ridge else ''}{',wide' if shape == (2, 4) else ''}]",
            lambda a, b, method=method, ridge=ridge, **options: implicit.linear_least_squares(
                a, b, method=method, ridge=ridge, **options
            ),
            lambda g, shape=shape: [Call((_randn(g, *shape), _randn(g, *shape[:-1])))],
            reference=lambda a, b, ridge=ridge: _normal(a, b, ridge),
            outputs=lambda solution: solution.value,
            large=(1,),
            batched=False,
            large_limit=1e4,
            half_tolerance=1e-1,
            compile=False,
            why="batched: b has the batch shape of A; compile: an orthogonal factorisation is called as it is; large: "
            "the derivative in the matrix is larger than the right side and overflows at the limit of the type",
            bad=[
                Bad(
                    (torch.ones(2, 3), torch.ones(3)), {}, ValueError, r"b must be \[\*batch, 2\] for a matrix \(2, 3\)"
                ),
                Bad((torch.ones(2, 3), torch.ones(2)), {"columns": True}, ValueError, r"b must be \[\*batch, 2, k\]"),
                Bad((torch.ones(3), torch.ones(3)), {}, ValueError, r"matrix must be \[\*batch, m, n\]"),
                Bad((torch.ones(2, 3), torch.ones(2).double()), {}, TypeError, "must have the same dtype"),
                Bad((torch.ones(2, 3), torch.ones(2)), {"method": "lu"}, ValueError, "method must be one of"),
                Bad((torch.ones(2, 3), torch.ones(2)), {"ridge": -1.0}, ValueError, "ridge must be >= 0"),
            ],
        )
        for method, ridge, shape in (
            ("qr", 0.0, (2, 4, 3)),
            ("qr", 0.0, (2, 4)),
            ("svd", 0.0, (4, 3)),
            ("qr", 0.3, (2, 4)),
        )
    ),
    Contract(
        "implicit.linear_solve[refused]",
        lambda a, b, **options: implicit.linear_solve(a, b, **options),
        lambda g: [Call((_spd(_randn(g, 2, 2)), _randn(g, 2)))],
        reference=lambda a, b: torch.linalg.solve(a, b),
        outputs=lambda solution: solution.value,
        large=(1,),
        batched=False,
        compile=False,
        half_tolerance=1e-1,
        why="batched: b has the batch shape of A; compile: the solver branches on its data",
        bad=[
            Bad((torch.eye(3), torch.ones(4)), {}, ValueError, r"matvec must be \[\*batch, n, n\] for b \(4,\)"),
            Bad((torch.ones(2, 3), torch.ones(3)), {}, ValueError, r"matvec must be \[\*batch, n, n\] for b \(3,\)"),
            Bad((lambda v: torch.ones(2, 3) @ v, torch.ones(3)), {}, ValueError, "matvec must return the shape"),
            Bad((lambda v: torch.ones(2, 3) @ v, torch.ones(2)), {}, ValueError, "a square matrix"),
            Bad((torch.eye(3).double(), torch.ones(3)), {}, TypeError, "must have the same dtype"),
            Bad((torch.eye(3), torch.ones(3)), {"tolerance": -1.0}, ValueError, "tolerance must be > 0"),
            Bad((torch.eye(3), torch.ones(3)), {"ridge": torch.tensor(1.0)}, TypeError, "ridge must be a number"),
            Bad((torch.eye(3), torch.ones(3)), {"method": "qr"}, ValueError, "method must be one of"),
            Bad((torch.eye(3), torch.ones(3)), {"max_iterations": 0}, ValueError, "max_iterations must be an integer"),
            Bad((torch.eye(3), torch.ones(3)), {"preconditioner": 1}, TypeError, "preconditioner must be a function"),
            Bad((_SINGULAR, torch.arange(3.0)), {"check": True}, ConvergenceError, "linear_solve: the system did not"),
        ],
    ),
]
