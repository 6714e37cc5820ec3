"""Contracts of physics as a constraint: tridiagonal systems, diffusion with sorption, parts of a domain."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pullback import implicit
from tests.contracts.contract import Bad, Call, Contract, Exempt, Module

_THREE, _TWO = torch.full((3,), 2.0), torch.ones(2)
_TIMES = torch.tensor([0.0, 60.0, 200.0])
_MEDIUM = {"porosity": 0.4, "density": 2000.0, "coefficient": 4e-4, "exponent": 0.9}


def _systems(generator: torch.Generator) -> list[Call]:
    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    calls = []
    for n, batch in ((1, ()), (2, ()), (5, (2,))):
        lower, upper = draw(*batch, n - 1), draw(*batch, n - 1)
        room = torch.zeros(*batch, n).double()
        room[..., 1:] += lower.abs()
        room[..., :-1] += upper.abs()
        calls.append(Call((lower, draw(*batch, n).sign() * (room + 0.5), upper, draw(*batch, n))))
    return calls


def _dense(lower: Tensor, diagonal: Tensor, upper: Tensor, b: Tensor) -> Tensor:
    matrix = torch.diag_embed(diagonal) + torch.diag_embed(lower, -1) + torch.diag_embed(upper, 1)
    return torch.linalg.solve(matrix, b)


def _concentrations(generator: torch.Generator) -> list[Call]:
    u = 0.01 + torch.rand(2, 3, generator=generator, dtype=torch.float64)
    return [Call((u,)), Call((-u[0],), dict(_MEDIUM))]


def _share(porosity: float = 0.29, density: float = 2880.0, coefficient: float = 3.5e-4) -> float:
    return (1 - porosity) / porosity * density * coefficient


def _retardation(u: Tensor, exponent: float = 0.874, **medium: float) -> Tensor:
    return torch.stack(
        [1 + _share(**medium) * exponent * (v.clamp(min=0) + 1e-6) ** (exponent - 1) for v in u.flatten()]
    ).view(u.shape)


def _amount(u: Tensor, exponent: float = 0.874, **medium: float) -> Tensor:
    """The integral of the retardation factor by many trapezoids of the logarithm of the concentration."""
    nodes = torch.linspace(0, 1, 2001).double()
    total = []
    for v in u.flatten():
        shifted = (torch.log1p(v.clamp(min=0) / 1e-6) * nodes).exp() * 1e-6 - 1e-6 if v > 0 else v * nodes
        total.append(torch.trapezoid(_retardation(shifted, exponent, **medium), shifted))
    return torch.stack(total).view(u.shape)


def _profiles(generator: torch.Generator) -> list[Call]:
    u0 = 0.05 + 0.1 * torch.rand(2, 3, generator=generator, dtype=torch.float64)
    return [Call((u0[0], _TIMES[:2].double()), {"substeps": 1}), Call((u0[1], _TIMES[:2].double()), {"substeps": 1})]


def _layer(soft: bool) -> implicit.HardConstraint:
    def terms(u: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        return (u, torch.gradient(u, spacing=0.2, dim=-1)[0]), (u[..., :1],)

    def residual(inside: tuple[Tensor, ...], edges: tuple[Tensor, ...], start: Tensor) -> Tensor:
        return torch.cat([inside[1] + torch.tanh(inside[0]), edges[0] - start], -1)

    partition = implicit.partition_domain((2,), (2,))
    return implicit.HardConstraint(
        terms, residual, 1, partition=partition, ridge=1e-2, tolerance=None if soft else 1e-10, soft=soft
    )


class _Curved(nn.Module):
    """A network of one parameter before the layer."""

    def __init__(self, soft: bool) -> None:
        super().__init__()
        self.layer, self.scale = _layer(soft), nn.Parameter(torch.tensor(0.7))

    def forward(self, basis: Tensor, start: Tensor) -> Tensor:
        return self.layer(torch.sin(basis * self.scale), start).field


def _bases(generator: torch.Generator) -> list[Call]:
    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return [Call((draw(1, 2), draw(1)))]


CONTRACTS = [
    Contract(
        "implicit.tridiagonal_solve",
        implicit.tridiagonal_solve,
        _systems,
        reference=_dense,
        large=(3,),
        large_limit=1e4,
        batched=False,
        why="batched: the first argument has another length; large: the solution is a few times the right side",
        bad=[
            Bad((_TWO, torch.ones(3, dtype=torch.int64), _TWO, _THREE), {}, TypeError, "diagonal must be a floating"),
            Bad((_TWO, _THREE.double(), _TWO, _THREE), {}, TypeError, "dtype"),
            Bad((_THREE, _THREE, _TWO, _THREE), {}, ValueError, "lower must have 2 entries"),
            Bad((_TWO, _THREE, _TWO, _TWO), {}, ValueError, "b must have 3 entries"),
            Bad((_TWO, _THREE / 2, _TWO, _THREE), {}, ValueError, "row 1 must be diagonally dominant"),
            Bad((_TWO[:1], _TWO, _TWO[:1], _TWO), {}, ValueError, "singular"),
            Bad((_TWO[:0], torch.zeros(1), _TWO[:0], _TWO[:1]), {}, ValueError, "row 0 must be diagonally dominant"),
        ],
    ),
    Contract(
        "implicit.retardation_factor",
        implicit.retardation_factor,
        _concentrations,
        reference=_retardation,
        scalars=_MEDIUM,
        bad=[
            Bad((torch.ones(2, dtype=torch.int64),), {}, TypeError, "u must be a floating"),
            Bad((torch.ones(2),), {"porosity": 1.5}, ValueError, r"porosity must be in \(0, 1\]"),
            Bad((torch.ones(2),), {"density": -1.0}, ValueError, "density must be > 0"),
        ],
    ),
    Contract(
        "implicit.total_concentration",
        implicit.total_concentration,
        _concentrations,
        reference=_amount,
        tolerance=1e-4,
        scalars=_MEDIUM,
        large_limit=1e30,
        why="large: the amount is a few times the concentration, which overflows",
        bad=[
            Bad((torch.ones(2, dtype=torch.int64),), {}, TypeError, "u must be a floating"),
            Bad((torch.ones(2),), {"coefficient": 0.0}, ValueError, "coefficient must be > 0"),
            Bad((torch.ones(2),), {"exponent": 1.1}, ValueError, r"exponent must be in \(0, 1\]"),
        ],
    ),
    Contract(
        "implicit.solve_diffusion_sorption",
        implicit.solve_diffusion_sorption,
        _profiles,
        scalars={"inflow": 0.5, "diffusion": 1e-3},
        large=(),
        compile=False,
        half=False,
        why="large: concentrations are of order 1; compile: the iteration ends by its data; half: the stages of a step "
        "differ by less than its rounding",
        bad=[
            Bad((torch.ones(4, dtype=torch.int64), _TIMES), {}, TypeError, "u0 must be a floating"),
            Bad((torch.ones(4).double(), _TIMES), {}, TypeError, "dtype"),
            Bad((torch.ones(2), _TIMES), {}, ValueError, "u0 must have at least 3 nodes"),
            Bad((-torch.ones(4), _TIMES), {}, ValueError, "u0 must be >= 0"),
            Bad((torch.ones(4), _TIMES.flip(0)), {}, ValueError, "times must increase"),
            Bad((torch.ones(4), _TIMES[None]), {}, ValueError, "times must have shape"),
            Bad((torch.ones(4), _TIMES), {"diffusion": 0.0}, ValueError, "diffusion must be > 0"),
            Bad((torch.ones(4), _TIMES), {"substeps": 0}, ValueError, "substeps must be an integer >= 1"),
        ],
    ),
    *(
        Module(
            f"implicit.HardConstraint{'[soft]' if soft else ''}",
            lambda module, *args: module(*args),
            _bases,
            build=lambda generator, soft=soft: _Curved(soft),
            large=(),
            compile=False,
            half=False,
            why="compile: the solver branches on its data; half: it has no digits for a solve; large: the same",
            bad=[
                Bad((torch.zeros(2, 3, 4), torch.zeros(2, 1)), {}, ValueError, r"basis must end with \(1, 2\)"),
                Bad((torch.zeros(2, 2, 5), torch.zeros(2, 1)), {}, ValueError, r"basis must end with \(1, 2\)"),
            ],
        )
        for soft in (False, True)
    ),
    Exempt("implicit.partition_domain", "takes and returns places, no floats", "implicit/test_physics.py"),
    Exempt("implicit.DomainPartition", "moves values without a formula", "implicit/test_physics.py"),
]
