"""Contracts of force fields of ``pullback.dynamics``: from the graph of a molecule to its energy."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor

from pullback import dynamics
from pullback.dynamics import Harmonic, MoleculeParameters, Topology
from tests.contracts.contract import Bad, Call, Contract, Exempt, HigherOrder, Measurement, Module

# A centre of three neighbours, one of which goes on: all kinds of terms with five atoms.
ELEMENTS = torch.tensor([6, 8, 1, 7, 1])
BONDS = torch.tensor([[0, 1], [0, 2], [0, 3], [3, 4]])
SMALL = dynamics.molecular_topology(ELEMENTS, BONDS, features=torch.eye(2)[[0, 1, 1, 0, 1]])
_COUNTS = (4, 4, 4, 4, 2, 1)
SHAPE = torch.tensor(
    [[0.0, 0.0, 0.0], [1.2, 0.1, 0.0], [-0.6, -0.9, 0.1], [-0.7, 1.1, 0.2], [-0.2, 2.0, 0.3]], dtype=torch.float64
)


def _here(topology: Topology, x: Tensor) -> Topology:
    return Topology(*(t.to(x.device) for t in topology))


def _spread(*numbers: Tensor) -> list[Tensor]:
    """Numbers of all terms of a kind from one, each term another."""
    kinds = [*numbers[:4], numbers[4].mT, numbers[5]]
    rows = [n * torch.linspace(1, 1.5, c, dtype=n.dtype, device=n.device) for n, c in zip(kinds, _COUNTS, strict=True)]
    return [*rows[:4], rows[4].mT, rows[5]]


def _energy(x: Tensor, *numbers: Tensor, **words: Any) -> Tensor:
    numbers = tuple(_spread(*numbers) if numbers[0].shape[-1] == 1 else numbers)
    parameters = MoleculeParameters(Harmonic(*numbers[:2]), Harmonic(*numbers[2:4]), *numbers[4:6], x.new_zeros(5))
    return dynamics.bonded_energy(x, _here(SMALL, x), parameters, **words).total


def _places(g: torch.Generator) -> Tensor:
    return SHAPE + 0.1 * torch.randn(5, 3, generator=g, dtype=torch.float64)


def _numbers(g: torch.Generator) -> list[Tensor]:
    def drawn(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=g, dtype=torch.float64) + 0.5

    return [drawn(1), drawn(1), drawn(1), drawn(1), drawn(1, 2), drawn(1, 2)]


def _dihedral(x: Tensor, i: int, j: int, k: int, l: int) -> float:  # noqa: E741
    axis = (x[k] - x[j]) / (x[k] - x[j]).norm()
    near, far = x[i] - x[j], x[l] - x[k]
    near, far = (b - (b @ axis) * axis for b in (near, far))
    return math.acos(float(near @ far / (near.norm() * far.norm())))


def _by_hand(x: Tensor, *numbers: Tensor) -> Tensor:
    """Terms found by trying all tuples of atoms."""
    numbers = tuple(_spread(*numbers))
    joined = {frozenset(pair) for pair in BONDS.tolist()}

    def path(*atoms: int) -> bool:
        return all(frozenset(pair) in joined for pair in itertools.pairwise(atoms))

    def lookup(name: str, atoms: tuple[int, ...]) -> int:
        rows = getattr(SMALL, name).tolist()
        return rows.index(list(atoms)) if list(atoms) in rows else rows.index(list(atoms[::-1]))

    total = 0.0
    for i, j in itertools.combinations(range(5), 2):
        if path(i, j):
            n = lookup("bonds", (i, j))
            total += float(numbers[0][n]) * (math.dist(x[i], x[j]) - float(numbers[1][n])) ** 2
    for i, j, k in itertools.permutations(range(5), 3):
        if i < k and path(i, j, k):
            n = lookup("angles", (i, j, k))
            u, v = x[i] - x[j], x[k] - x[j]
            angle = math.acos(float(u @ v / (u.norm() * v.norm())))
            total += float(numbers[2][n]) * (angle - float(numbers[3][n])) ** 2
    for i, j, k, l in itertools.permutations(range(5), 4):  # noqa: E741
        if i < l and path(i, j, k, l):
            n, phi = lookup("propers", (i, j, k, l)), _dihedral(x, i, j, k, l)
            total += sum(float(a) * (1 + math.cos(m * phi)) for m, a in enumerate(numbers[4][n], 1))
    for order in itertools.permutations((1, 2, 3)):  # all six: each dihedral comes twice, with either sign
        phi = _dihedral(x, 0, *order)
        total += sum(float(a) * (1 + math.cos(m * phi)) for m, a in enumerate(numbers[5][0], 1)) / 6
    return torch.tensor([total], dtype=torch.float64)


def _pairs_by_hand(x: Tensor, q: Tensor, depth: Tensor, size: Tensor) -> Tensor:
    """The only pairs three bonds apart end in the last atom."""
    total = 0.0
    for i, j in ((1, 4), (2, 4)):
        r = math.dist(x[i], x[j])
        sixth = ((float(size[i]) + float(size[j])) / 2 / r) ** 6
        total += 0.5 * 4 * math.sqrt(float(depth[i] * depth[j])) * (sixth**2 - sixth)
        total += 5 / 6 * 332.0637 * float(q[i] * q[j]) / r
    return torch.tensor([total], dtype=torch.float64)


def _charged(g: torch.Generator) -> list[Call]:
    q, depth, size = torch.rand(3, 5, generator=g, dtype=torch.float64)
    return [Call((_places(g), q - 0.5, depth + 0.1, size + 1))]


def _spring(x: Tensor) -> Tensor:
    return ((x[..., 0, :] - x[..., 1, :]).square().sum(-1) - 1) ** 2


def _references(g: torch.Generator) -> list[Call]:
    x, energies = torch.randn(3, 2, 3, generator=g, dtype=torch.float64), torch.randn(3, generator=g)
    forces = torch.randn(3, 2, 3, generator=g, dtype=torch.float64)
    return [Call((x, energies.double(), forces))]


def _losses_by_hand(x: Tensor, energies: Tensor, forces: Tensor) -> tuple[Tensor, ...]:
    """With the forces of the spring written out."""
    way = x[:, 0] - x[:, 1]
    pull = 4 * (way.square().sum(-1) - 1)[:, None] * way
    off = _spring(x) - energies
    first = off.var(correction=0)
    second = (torch.stack([-pull, pull], 1) - forces).square().mean()
    return first + 0.7 * second, first, second


def _rest(x: Tensor, length: Tensor) -> Tensor:
    """A spring between two atoms."""
    return ((x[..., 0, :] - x[..., 1, :]).norm(dim=-1) - length[..., 0]) ** 2


def _relaxed(energy: Any, length: Tensor, **words: Any) -> Tensor:
    start = torch.tensor([[0.0, 0.1, 0.0], [1.1, 0.0, 0.0]], dtype=length.dtype, device=length.device)
    start = start.expand(*length.shape[:-1], 2, 3)
    tolerance = 1e-11 if length.dtype == torch.float64 else 1e-5
    found = dynamics.minimize_geometry(energy, start, length, **{"tolerance": tolerance, "ridge": 1e-9} | words)
    return dynamics.pair_distances(found.positions, torch.tensor([[0, 1]], device=length.device))


_X = torch.rand(5, 3)
_MISSING = [torch.ones(3), torch.ones(3), torch.ones(4), torch.ones(4), torch.ones(2, 3), torch.ones(1, 2)]
_PAIRED = (torch.zeros(5), torch.ones(5), torch.ones(5))


def _bad_indices(name: str, rows: list[int]) -> list[Bad]:
    good = torch.tensor([rows])
    return [
        Bad((torch.rand(5, 3),), {}, ValueError, r"must have shape \(\.\.\., any, 2\)"),
        Bad((torch.rand(5, 2),), {"indices": good + 5}, ValueError, rf"{name} must be in 0\.\.4"),
        Bad((torch.rand(5, 2),), {"indices": good.float()}, TypeError, f"{name} must hold integers"),
        Bad((torch.rand(5, 2),), {"indices": good[0]}, ValueError, f"{name} must have shape"),
    ]


def _embed(module: dynamics.GraphSage, x: Tensor, indices: Tensor = BONDS) -> Tensor:
    return module(x, indices.to(x.device))


def _pool(term: str, indices: Tensor) -> Module:
    def run(module: dynamics.JanossyPooling, h: Tensor, indices: Tensor = indices) -> Tensor:
        return module(h, indices.to(h.device))

    return Module(
        f"dynamics.JanossyPooling[{term}]",
        run,
        lambda g: [Call((torch.randn(5, 2, generator=g, dtype=torch.float64),))],
        build=lambda g: dynamics.JanossyPooling(2, 3, 2, term, layers=2, generator=g),  # type: ignore[arg-type]
        bad=_bad_indices("terms", indices[0].tolist()),
        large=(),
        why="activations grow with their input",
    )


POOLED = ("first.weight", "bias", "inner.0.weight", "inner.0.bias", "last.weight", "last.bias")
# With four atoms: a chain has a torsion, a centre of three neighbours an improper.
FOUR = {
    "mixture": dynamics.molecular_topology(ELEMENTS[:4], torch.tensor([[0, 1], [1, 2], [2, 3]])),
    "direct": dynamics.molecular_topology(ELEMENTS[:4], BONDS[:3]),
}


def _all_parameters(module: dynamics.ForceFieldNetwork, features: Tensor) -> tuple[Tensor, ...]:
    found = module(_here(FOUR[module.springs], features)._replace(features=features))
    return tuple(value for value in (*found.bonds, *found.angles, *found[2:]) if value.numel())


CONTRACTS = [
    Contract(
        "dynamics.bonded_energy",
        _energy,
        lambda g: [Call((_places(g), *_numbers(g)))],
        reference=_by_hand,
        bad=[
            Bad((_X[:4], *_MISSING), {}, ValueError, r"positions must have shape \(\.\.\., 5, 3\)"),
            Bad((_X, *_MISSING), {}, ValueError, r"parameters.bonds.stiffness must have shape \(\.\.\., 4\)"),
            Bad((_X.double(), *_MISSING), {}, TypeError, "must have the same dtype"),
            Bad((_X, *_MISSING), {"terms": ("torsions",)}, ValueError, "terms must be"),
        ],
        half_tolerance=0.1,
        large=(),
        why="squares of lengths leave the range",
    ),
    Contract(
        "dynamics.nonbonded_energy",
        lambda x, *args, **words: dynamics.nonbonded_energy(x, *args, _here(SMALL, x), **words),
        _charged,
        reference=_pairs_by_hand,
        bad=[
            Bad((_X[:4], *_PAIRED), {}, ValueError, r"positions must have shape \(\.\.\., 5, 3\)"),
            Bad((_X, _PAIRED[0][:4], *_PAIRED[1:]), {}, ValueError, r"charges must have shape \(\.\.\., 5\)"),
            Bad((_X, _PAIRED[0], torch.zeros(5), _PAIRED[2]), {}, ValueError, "epsilon must be > 0"),
            Bad((_X, *_PAIRED[:2], -torch.ones(5)), {}, ValueError, "sigma must be >= 0"),
            Bad((_X, *_PAIRED), {"scale14": (-1.0, 1.0)}, ValueError, "scale14 must be >= 0"),
            Bad((_X, *_PAIRED), {"coulomb": 0.0}, ValueError, "coulomb must be > 0"),
            Bad((_X, _PAIRED[0].double(), *_PAIRED[1:]), {}, TypeError, "must have the same dtype"),
        ],
        half_tolerance=0.2,
        large=(),
        why="products of charges and depths leave the range",
    ),
    HigherOrder(
        "dynamics.force_matching_loss",
        lambda energy, *args, **words: tuple(dynamics.force_matching_loss(energy, *args, **{"weight": 0.7} | words)),
        _references,
        given=_spring,
        argument="energy",
        reference=_losses_by_hand,
        scalars={"weight": 0.7},
        bad=[
            Bad((torch.zeros(3, 2), torch.zeros(3), torch.zeros(3, 2)), {}, ValueError, "positions must have shape"),
            Bad((torch.zeros(3, 2, 3), torch.zeros(3), torch.zeros(3, 1, 3)), {}, ValueError, "reference_forces must"),
            Bad((torch.zeros(3, 2, 3), torch.zeros(2), torch.zeros(3, 2, 3)), {}, ValueError, "energy must return"),
            Bad(
                (torch.zeros(3, 2, 3), torch.zeros(3), torch.zeros(3, 2, 3)),
                {"weight": -1.0},
                ValueError,
                "weight must be >= 0",
            ),
        ],
        batched=False,
        large=(),
        half_tolerance=0.1,
        why="the first dimension is the sample of conformations; squares of fourth powers leave the range",
    ),
    HigherOrder(
        "dynamics.minimize_geometry",
        _relaxed,
        lambda g: [Call((1.2 + 0.1 * torch.randn(1, generator=g, dtype=torch.float64),))],
        given=_rest,
        argument="energy",
        reference=lambda length: length,
        bad=[
            Bad((torch.ones(1),), {"steps": 0}, ValueError, "steps must be an integer >= 1"),
            Bad((torch.ones(1),), {"tolerance": 0.0}, ValueError, "tolerance must be > 0"),
            Bad((torch.ones(1),), {"ridge": 0.0}, ValueError, "ridge must be > 0"),
        ],
        batched=False,
        compile=False,
        half=False,
        large=(),
        why="an iteration that ends by its residual",
    ),
    Measurement(
        "dynamics.linear_torsions",
        lambda x, indices=None, **words: dynamics.linear_torsions(
            x, (torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]]) if indices is None else indices).to(x.device), **words
        ),
        lambda g: [
            Call((torch.tensor([[0, 0, 0], [1, 0, 0], [2, 1e-4, 0], [3, 1.0, 0], [3, 1, 1]], dtype=torch.float64),))
        ],
        reference=lambda x: torch.tensor([True, False]),
        bad=[
            Bad((torch.rand(5, 3),), {"tolerance": 0.0}, ValueError, "tolerance must be > 0"),
            Bad((torch.rand(4, 3),), {}, ValueError, r"quadruples must be in 0\.\.3"),
            Bad((torch.rand(5, 2),), {}, ValueError, "positions must have shape"),
        ],
    ),
    Module(
        "dynamics.GraphSage",
        _embed,
        lambda g: [Call((torch.randn(5, 2, generator=g, dtype=torch.float64),))],
        build=lambda g: dynamics.GraphSage(2, 3, 2, generator=g),
        bad=_bad_indices("edges", [0, 1]),
        large=(),
        why="activations grow with their input",
    ),
    _pool("atom", torch.tensor([[0], [3]])),
    _pool("bond", SMALL.bonds),
    _pool("angle", SMALL.angles),
    _pool("proper", SMALL.propers),
    _pool("improper", SMALL.impropers),
    *(
        Module(
            f"dynamics.ForceFieldNetwork[{springs}]",
            _all_parameters,
            lambda g: [Call((torch.rand(4, 1, generator=g, dtype=torch.float64),))],
            build=lambda g, springs=springs: dynamics.ForceFieldNetwork(1, 3, 1, springs=springs, generator=g),
            bad=[
                Bad((torch.rand(4, 3),), {}, ValueError, r"x must have shape \(\.\.\., any, 1\)"),
                Bad((torch.full((4, 1), 1e30),), {}, ValueError, "must"),
            ],
            idle=[f"heads.{'improper' if springs == 'mixture' else 'proper'}." + part for part in POOLED],
            batched=False,
            vmap=False,
            large=(),
            why="a topology has one set of features; a stiffness is an exponential",
        )
        for springs in ("mixture", "direct")
    ),
    Exempt("dynamics.molecular_topology", "lists terms of a graph", "dynamics/test_force_fields.py"),
    Exempt("dynamics.molecular_graph", "takes a molecule of RDKit", "dynamics/test_force_fields.py"),
    Exempt("dynamics.join_topologies", "joins lists of terms", "dynamics/test_force_fields.py"),
    Exempt("dynamics.export_parameters", "writes text", "dynamics/test_force_fields.py"),
]
