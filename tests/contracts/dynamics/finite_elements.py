"""Contracts of finite elements, against element matrices written out by hand."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pullback import dynamics
from tests.contracts.contract import DEVICE, Bad, Call, Contract, Exempt

VERTICES = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.25, 1.0], [0.0, 1.5], [2.0, 0.5]], dtype=torch.float64)
CELLS = torch.tensor([[0, 1, 2], [0, 2, 3], [1, 4, 2]])
SPACES = {
    (device, dtype): dynamics.FunctionSpace(dynamics.Mesh(VERTICES.to(device, dtype), CELLS.to(device)))
    for device in {"cpu", DEVICE.type}
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
}
EXACT = SPACES["cpu", torch.float64]


def _space(like: Tensor) -> dynamics.FunctionSpace:
    return SPACES[like.device.type, like.dtype] if like.is_floating_point() else EXACT


def _assembled(form: str):
    return lambda c, **words: dynamics.assemble(form, _space(c), coefficient=c, **words).dense()


def _by_hand(form: str):
    """Sums over cells: A / 12 (1 + delta), products of the turned sides / 4 A, A / 3 of a slope along the velocity."""

    def matrix(c: Tensor) -> Tensor:
        found = torch.zeros(len(c), 5, 5, dtype=torch.float64)
        for k, cell in enumerate(CELLS.tolist()):
            p = VERTICES[cell]
            area = torch.linalg.det(torch.stack([p[1] - p[0], p[2] - p[0]])) / 2
            turned = [torch.stack([p[j - 2][1] - p[j - 1][1], p[j - 1][0] - p[j - 2][0]]) for j in range(3)]
            for i in range(3):
                for j in range(3):
                    if form == "mass":
                        entry = c[:, k] * area / 12 * (1 + (i == j))
                    elif form == "stiffness":
                        entry = c[:, k] * (turned[i] @ turned[j]) / (4 * area)
                    else:
                        entry = c[:, k] @ turned[j] / 6
                    found[:, cell[i], cell[j]] += entry
        return found

    return matrix


def _coefficients(*tail: int):
    return lambda g: [Call((torch.randn(2, *tail, generator=g, dtype=torch.float64),))]


def _loads(c: Tensor) -> Tensor:
    return _by_hand("mass")(c).sum(-1)


def _refused(block) -> list[Bad]:
    return [
        Bad((torch.ones(2),), {}, ValueError, r"must have shape \(\.\.\., 3\), got \(2,\)"),
        Bad((torch.ones(3).long(),), {}, TypeError, "must be a floating tensor"),
    ]


MASS = _by_hand("mass")(torch.ones(1, 3, dtype=torch.float64))[0]
STIFFNESS = _by_hand("stiffness")(torch.ones(1, 3, dtype=torch.float64))[0]


def _drawn(g: torch.Generator) -> list[Call]:
    shares = torch.rand(4, 3, generator=g, dtype=torch.float64) + 0.2
    shares = shares / shares.sum(-1, keepdim=True)
    points = (shares[..., None] * VERTICES[CELLS[torch.tensor([0, 1, 2, 1])]]).sum(1)
    return [Call((torch.randn(2, 5, generator=g, dtype=torch.float64), points))]


def _planes(coefficients: Tensor, points: Tensor) -> Tensor:
    """The plane through the three values of the cell."""
    values = []
    for cell, x in zip((0, 1, 2, 1), points, strict=True):
        corners = torch.cat([VERTICES[CELLS[cell]], torch.ones(3, 1).double()], 1)
        plane = torch.linalg.solve(corners, coefficients[:, CELLS[cell]].mT)
        values.append(torch.cat([x, torch.ones(1).double()]) @ plane)
    return torch.stack(values, -1)


def _poisson(c: Tensor, load: Tensor) -> Tensor:
    """On the mesh refined once, so that there are two coefficients inside; three cells share what they are made of."""
    space = FINE[c.device.type, c.dtype]
    c, load = c[..., SHARED], F.pad(load, (6, 0))
    matrix = dynamics.assemble("stiffness", space, coefficient=1 + c.square())
    edge = torch.linspace(-1, 1, len(space.dirichlet_dofs), dtype=c.dtype, device=c.device)
    return dynamics.solve_dirichlet(matrix, load, space, boundary=edge)


FINE = {key: dynamics.FunctionSpace(space.mesh.refine()) for key, space in SPACES.items()}


def _poisson_dense(c: Tensor, load: Tensor) -> Tensor:
    space = FINE["cpu", torch.float64]
    fixed, free = space.dirichlet_dofs, space.free_dofs
    c, load = c[..., SHARED], F.pad(load, (6, 0))
    matrix = dynamics.assemble("stiffness", space, coefficient=1 + c.square()).dense()
    u = torch.zeros(space.size, dtype=torch.float64)
    u[fixed] = torch.linspace(-1, 1, len(fixed), dtype=torch.float64)
    u[free] = torch.linalg.solve(matrix[free][:, free], load[free] - matrix[free][:, fixed] @ u[fixed])
    return u


SHARED = torch.arange(12) % 3
SQUARES = "squares leave the range"

CONTRACTS = [
    *(
        Contract(
            f"dynamics.assemble[{form}]" if form != "mass" else "dynamics.assemble",
            _assembled(form),
            _coefficients(3, *tail),
            reference=_by_hand(form),
            bad=[
                Bad((torch.ones(4, *tail),), {}, ValueError, r"coefficient must have shape \(\.\.\., 3"),
                Bad((torch.ones(3, *tail).long(),), {}, TypeError, "coefficient must be a floating tensor"),
            ],
            large_limit=1e4,
            why="a sum of the largest numbers leaves the range",
        )
        for form, tail in (("mass", ()), ("stiffness", ()), ("advection", (2,)))
    ),
    Contract(
        "dynamics.load_vector",
        lambda c: dynamics.load_vector(c, _space(c)),
        _coefficients(3),
        reference=_loads,
        bad=_refused(dynamics.load_vector),
        large_limit=1e4,
        why="a sum of the largest numbers leaves the range",
    ),
    Contract(
        "dynamics.project",
        lambda c: dynamics.project(c, _space(c)),
        _coefficients(3),
        reference=lambda c: torch.linalg.solve(MASS, _loads(c).mT).mT,
        bad=_refused(dynamics.project),
        large_limit=1e3,
        compile=False,
        half_tolerance=1e-1,
        why="compile: the solver branches on its data; large: as for a load vector",
    ),
    Contract(
        "dynamics.evaluate",
        lambda c, points: dynamics.evaluate(c, _space(c), points),
        _drawn,
        reference=_planes,
        bad=[
            Bad((torch.ones(4), torch.ones(1, 2)), {}, ValueError, r"coefficients must have shape \(\.\.\., 5\)"),
            Bad((torch.ones(5), torch.ones(2)), {}, ValueError, r"points must have shape \(p, 2\)"),
            Bad((torch.ones(5), torch.ones(1, 3)), {}, ValueError, r"points must have shape \(\.\.\., 2\)"),
            Bad((torch.ones(5), torch.ones(1, 2).double()), {}, TypeError, "points and vertices must have the same"),
            Bad((torch.ones(5), 9 * torch.ones(1, 2)), {}, ValueError, r"1 outside, the first at \[9\.0, 9\.0\]"),
            Bad((torch.ones(5), torch.ones(1, 2) * torch.nan), {}, ValueError, "points must be finite"),
        ],
        large_limit=1e4,
        compile=False,
        why="compile: points are searched; large: sums of the largest numbers leave the range",
    ),
    *(
        Contract(
            f"dynamics.finite_element_loss{suffix}",
            lambda e, norm=norm: dynamics.finite_element_loss(e, _space(e), norm=norm),
            _coefficients(5),
            reference=lambda e, m=matrix: ((e @ m) * e).sum(-1),
            bad=[
                Bad((torch.ones(4),), {}, ValueError, r"error must have shape \(\.\.\., 5\)"),
                Bad((torch.ones(5).long(),), {}, TypeError, "error must be a floating tensor"),
                Bad((torch.ones(5),), {"norm": "l1"}, ValueError, "norm must be"),
            ],
            large_limit=50.0,
            why=SQUARES,
        )
        for norm, suffix, matrix in (("l2", "", MASS), ("h1", "[h1]", MASS + STIFFNESS))
    ),
    Contract(
        "dynamics.solve_dirichlet",
        _poisson,
        lambda g: [Call(tuple(torch.randn(n, generator=g, dtype=torch.float64) for n in (3, 6)))],
        reference=_poisson_dense,
        bad=[
            Bad((torch.ones(3), torch.ones(3)), {}, ValueError, r"load must have shape \(\.\.\., 12\), got \(9,\)"),
            Bad((torch.ones(3), torch.ones(6).double()), {}, TypeError, "matrix and load must have the same dtype"),
        ],
        large=(1,),
        large_limit=1e4,
        compile=False,
        half_tolerance=1e-1,
        why="compile: the solver branches on its data; large: sums of the largest numbers leave the range",
    ),
    Exempt("dynamics.Mesh", "holds a triangulation", "dynamics/test_finite_elements.py"),
    Exempt("dynamics.grid_mesh", "makes a triangulation", "dynamics/test_finite_elements.py"),
    Exempt("dynamics.FunctionSpace", "numbers the coefficients of a mesh", "dynamics/test_finite_elements.py"),
    Exempt("dynamics.prolongation", "a fixed matrix of two spaces", "dynamics/test_finite_elements.py"),
]
