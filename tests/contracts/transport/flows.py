"""Contracts of rectified flows: against closed forms, of linear fields by the matrix exponential."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pullback import transport
from tests.contracts.contract import Bad, Call, Contract, HigherOrder, Module

_TURN = torch.tensor([[0.3, 0.8], [-0.5, 0.2]], dtype=torch.float64)
_ZEROS = torch.zeros(2, 2)


def _pairs(g: torch.Generator, *shape: int) -> tuple[Tensor, Tensor]:
    x0, x1 = torch.randn(2, *shape, generator=g, dtype=torch.float64)
    return x0, x1


def _times(g: torch.Generator, *shape: int) -> Tensor:
    return 0.1 + 0.8 * torch.rand(shape, generator=g, dtype=torch.float64)


def _linear(t: Tensor, x: Tensor) -> Tensor:
    return x @ _TURN.to(x).mT


def _potential(t: Tensor, x: Tensor) -> Tensor:
    """Of the gradient ``(1 + t) x + 1``."""
    return (1 + t.flatten(-1)).squeeze(-1) * x.square().sum(-1) / 2 + x.sum(-1)


def _slope(t: Tensor, x: Tensor) -> Tensor:
    return (1 + t) * x + 1


def _power(z: Tensor, p: float) -> Tensor:
    return z.norm(dim=-1) ** p / p


def _gap(x0: Tensor, x1: Tensor, t: Tensor, p: float) -> Tensor:
    """Fenchel and Young's, term by term."""
    y, z, q = _slope(t, (1 - t) * x0 + t * x1), x1 - x0, p / (p - 1)
    return (_power(y, q) + _power(z, p) - (y * z).sum(-1)).mean()


def _loss(given: Any, x0: Tensor, x1: Tensor, t: Tensor, **options: Any) -> Tensor:
    return transport.conjugate_flow_loss(given, x0, x1, t=t, **options)


class _Potential(nn.Module):
    """``|A x|^2 / 2 + t b . x``."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(2, 2, generator=generator))
        self.shift = nn.Parameter(torch.randn(2, generator=generator))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return (x @ self.matrix.mT).square().sum(-1) / 2 + (t * x * self.shift).sum(-1)


def _optimal(generator: torch.Generator, p: float) -> transport.PotentialVelocity:
    return transport.PotentialVelocity(_Potential(generator), transport.PowerCost(p))


def _velocity(t: Tensor, x: Tensor, p: float = 2.0) -> Tensor:
    net = _Potential(torch.Generator().manual_seed(0)).double()
    matrix, shift = net.matrix.detach(), net.shift.detach()
    y = x @ matrix.mT @ matrix + t * shift
    return y.norm(dim=-1, keepdim=True) ** (p / (p - 1) - 2) * y


def _bent(x0: Tensor) -> Tensor:
    """The integral of ``|A z_t - (z_1 - z_0)|^2`` of a linear field by 32 nodes."""
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(32))
    mean = x0 @ (torch.matrix_exp(_TURN) - torch.eye(2, dtype=torch.float64)).mT
    off = [x0 @ (_TURN @ torch.matrix_exp((s + 1) / 2 * _TURN)).mT - mean for s in nodes]
    return sum(w / 2 * part.square().sum(-1).mean() for w, part in zip(weights, off, strict=True))


_UNEQUAL = [
    Bad((_ZEROS, torch.zeros(3, 2)), {}, ValueError, r"x0 and x1 must have one shape, got \(2, 2\) and \(3, 2\)"),
    Bad((_ZEROS, torch.zeros(2, 2, dtype=torch.float64)), {}, TypeError, "x0 and x1 must have the same dtype"),
    Bad((_ZEROS, _ZEROS), {"t": torch.tensor([0.5, 1.5])}, ValueError, r"t must be in \[0, 1\], got values from 0.5"),
    Bad((_ZEROS, _ZEROS), {"t": torch.rand(3)}, ValueError, r"t must have leading dimensions of \(2, 2\)"),
]
_MEAN = "the mean over all pairs of a batch is one number"

CONTRACTS = [
    Contract(
        "transport.linear_interpolant",
        transport.linear_interpolant,
        lambda g: [
            Call((*_pairs(g, 3, 2), _times(g, 3))),
            Call((*_pairs(g, 2, 3), _times(g, 2, 1))),
            Call((*_pairs(g, 2), _times(g))),
        ],
        reference=lambda x0, x1, t: (x0 + t.reshape(*t.shape, *[1] * (x0.ndim - t.ndim)) * (x1 - x0), x1 - x0),
        outputs=tuple,
        batched=False,
        why="both ends have one shape: the law of batches enlarges the first alone",
        bad=[Bad((*bad.args, bad.kwargs.get("t", 0.5)), {}, bad.error, bad.match) for bad in _UNEQUAL]
        + [Bad((_ZEROS, _ZEROS, "half"), {}, TypeError, "t must be a number or a floating tensor, got str")],
    ),
    Contract(
        "transport.linear_interpolant[batches]",
        lambda x0: transport.linear_interpolant(x0, x0.flip(-1), 0.25),
        lambda g: [Call((torch.randn(3, 2, generator=g, dtype=torch.float64),))],
        reference=lambda x0: (0.75 * x0 + 0.25 * x0.flip(-1), x0.flip(-1) - x0),
        outputs=tuple,
        large_limit=1e38,
        why="the difference of the largest numbers overflows",
    ),
    *(
        Contract(
            f"transport.PowerCost[{p}, {name}]",
            lambda z, p=p, name=name: getattr(transport.PowerCost(p), name)(z),
            lambda g: [Call((torch.randn(3, 2, generator=g, dtype=torch.float64),))],
            reference=lambda z, p=p, name=name: {
                "value": lambda: _power(z, p),
                "conjugate": lambda: _power(z, p / (p - 1)),
                "gradient": lambda: z.norm(dim=-1, keepdim=True) ** (p - 2) * z,
                "conjugate_gradient": lambda: z.norm(dim=-1, keepdim=True) ** (p / (p - 1) - 2) * z,
            }[name](),
            large_limit=limit,
            compile=(p, name) == (4, "conjugate_gradient"),
            why="powers of the largest numbers overflow by nature; the four share their code, which is compiled once",
        )
        for p, name, limit in (
            (2, "value", 100.0),
            (4, "value", 10.0),
            (4, "conjugate", 1000.0),
            (4, "gradient", 20.0),
            (4, "conjugate_gradient", float("inf")),
            (1.5, "conjugate_gradient", 100.0),
        )
    ),
    Contract(
        "transport.PowerCost",
        lambda x, y: transport.PowerCost(3)(x, y),
        lambda g: [Call(_pairs(g, 3, 2))],
        reference=lambda x, y: torch.cdist(x, y) ** 3 / 3,
        large_limit=20.0,
        why="cubes of the largest numbers overflow by nature",
        bad=[
            Bad((_ZEROS, torch.zeros(2, 3)), {}, ValueError, "x and y must have points of one dimension"),
        ],
    ),
    HigherOrder(
        "transport.flow_matching_loss",
        lambda given, x0, x1, t=None, **options: transport.flow_matching_loss(given, x0, x1, t=t, **options),
        lambda g: [
            Call((*_pairs(g, 3, 2), _times(g, 3))),
            Call((*_pairs(g, 2, 3, 2), _times(g, 2, 1)), {"event_ndim": 2}),
        ],
        given=_linear,
        argument="velocity",
        reference=lambda x0, x1, t, event_ndim=1: (
            (_linear(t, x0 + t.reshape(-1, *[1] * (x0.ndim - 1)) * (x1 - x0)) - (x1 - x0))
            .square()
            .flatten(1)
            .sum(-1)
            .mean()
        ),
        large_limit=50.0,
        batched=False,
        compile=False,
        why=f"{_MEAN}; squares of the largest numbers overflow; the velocity is a function of the caller",
        bad=[*_UNEQUAL, Bad((_ZEROS, _ZEROS), {"event_ndim": 3}, ValueError, "x0 must hold points of 3 dimensions")],
    ),
    *(
        HigherOrder(
            f"transport.conjugate_flow_loss[{p}]",
            lambda given, x0, x1, t=None, p=p: transport.conjugate_flow_loss(
                given, x0, x1, t=t, cost=transport.PowerCost(p)
            ),
            lambda g: [Call((*_pairs(g, 3, 2), _times(g, 3, 1)))],
            given=_potential,
            argument="potential",
            reference=lambda x0, x1, t, p=p: _gap(x0, x1, t, p),
            large_limit=limit,
            batched=False,
            compile=False,
            why=f"{_MEAN}; powers of the largest numbers overflow; the potential is a function of the caller",
            bad=_UNEQUAL if p == 2 else (),
        )
        for p, limit in ((2, 50.0), (4, 3.0))
    ),
    *(
        Module(
            f"transport.PotentialVelocity[{p}]",
            lambda velocity, t, x: velocity(t, x),
            lambda g: [Call((_times(g, 3, 1), torch.randn(3, 2, generator=g, dtype=torch.float64)))],
            build=partial(_optimal, p=p),
            reference=lambda t, x, p=p: _velocity(t, x, p),
            large=(1,),
            large_limit=1e3,
            batched=False,
            compile=False,
            why="samples have their own times, and a stack of them has no common one; the potential, of the caller, is "
            "differentiated inside, which torch does not compile, and its squares overflow",
        )
        for p in (2, 4)
    ),
    *(
        HigherOrder(
            f"transport.rectify{'[reverse]' if reverse else ''}",
            lambda given, x0, reverse=reverse, **options: transport.rectify(
                given, x0, steps=8, reverse=reverse, **options
            ),
            lambda g: [Call((torch.randn(1, 2, generator=g, dtype=torch.float64),))],
            given=_linear,
            argument="velocity",
            reference=lambda x0, reverse=reverse: (
                (x0 @ torch.matrix_exp(-_TURN).mT, x0) if reverse else (x0, x0 @ torch.matrix_exp(_TURN).mT)
            ),
            tolerance=1e-5,
            outputs=tuple,
            large_limit=1e4,
            compile=False,
            why="dynamics.odeint is not compiled, its steps depend on data; the flow leaves the range of half",
            bad=()
            if reverse
            else [
                Bad((torch.zeros(2, 2, dtype=torch.long),), {}, TypeError, "x0 must be a floating tensor"),
                Bad((torch.zeros(0, 2),), {}, ValueError, r"x0 must hold points .* at least one, got shape \(0, 2\)"),
                Bad((_ZEROS,), {"method": "rk5"}, ValueError, "method must be one of"),
            ],
        )
        for reverse in (False, True)
    ),
    HigherOrder(
        "transport.straightness",
        lambda given, x0: transport.straightness(given, x0, steps=4),
        lambda g: [Call((torch.randn(2, 2, generator=g, dtype=torch.float64),))],
        given=_linear,
        argument="velocity",
        reference=_bent,
        tolerance=1e-5,
        large_limit=50.0,
        batched=False,
        compile=False,
        why=f"{_MEAN}; its squares overflow; dynamics.odeint is not compiled, its steps depend on data",
        bad=[Bad((torch.zeros(2, 2, dtype=torch.long),), {}, TypeError, "x0 must be a floating tensor")],
    ),
]
