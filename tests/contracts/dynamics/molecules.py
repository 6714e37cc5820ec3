"""Contracts of molecular mechanics in ``pullback.dynamics``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pullback import dynamics
from tests.contracts.contract import Bad, Call, Contract

_PAIRS = torch.tensor([[0, 1], [3, 1]])
_TRIPLES = torch.tensor([[0, 1, 2], [3, 1, 0]])
_QUADRUPLES = torch.tensor([[0, 1, 2, 3], [2, 0, 3, 1]])


def _positions(g: torch.Generator) -> list[Call]:
    return [Call((torch.randn(2, 4, 3, generator=g, dtype=torch.float64),))]


def _distances(x: Tensor) -> Tensor:
    return torch.stack([torch.cdist(x, x)[:, i, j] for i, j in _PAIRS.tolist()], -1)


def _cosine_rule(x: Tensor) -> Tensor:
    d = torch.cdist(x, x)
    terms = [(d[:, i, j], d[:, j, k], d[:, i, k]) for i, j, k in _TRIPLES.tolist()]
    return torch.stack([((a**2 + b**2 - c**2) / (2 * a * b)).acos() for a, b, c in terms], -1)


def _turned(x: Tensor) -> Tensor:
    """The angle by which the near bond turns about the axis into the far one, each laid flat on the axis."""
    found = []
    for i, j, k, l in _QUADRUPLES.tolist():  # noqa: E741
        axis = (x[:, k] - x[:, j]) / (x[:, k] - x[:, j]).norm(dim=-1, keepdim=True)
        near, far = x[:, i] - x[:, j], x[:, l] - x[:, k]
        near, far = (b - (b * axis).sum(-1, keepdim=True) * axis for b in (near, far))
        cosine = (near * far).sum(-1) / (near.norm(dim=-1) * far.norm(dim=-1))
        found.append(cosine.acos() * torch.linalg.det(torch.stack([axis, near, far], -2)).sign())
    return torch.stack(found, -1)


def _bad_indices(name: str, block, arity: int) -> list[Bad]:
    x, good = torch.rand(4, 3), torch.zeros(1, arity, dtype=torch.long)
    return [
        Bad((torch.rand(4, 2),), {"indices": good}, ValueError, r"positions must have shape \(\.\.\., any, 3\)"),
        Bad((x.long(),), {"indices": good}, TypeError, "positions must be a floating tensor"),
        Bad((x,), {"indices": good.float()}, TypeError, f"{name} must hold integers, got torch.float32"),
        Bad((x,), {"indices": good[0]}, ValueError, rf"{name} must have shape \(n, {arity}\)"),
        Bad((x,), {"indices": good + 4}, ValueError, rf"{name} must be in 0\.\.3, got 4\.\.4"),
        Bad((x,), {"indices": good - 1}, ValueError, rf"{name} must be in 0\.\.3, got -1\.\.-1"),
    ]


def _geometry(name: str, argument: str, indices: Tensor, reference, limit: float) -> Contract:
    block = getattr(dynamics, name)
    return Contract(
        f"dynamics.{name}",
        lambda x, indices=indices: block(x, indices.to(x.device)),
        _positions,
        reference=reference,
        bad=_bad_indices(argument, block, indices.shape[1]),
        large_limit=limit,
        why="products of lengths leave the range of half",
    )


def _mixtures(g: torch.Generator) -> list[Call]:
    return [Call((torch.randn(3, 2, generator=g, dtype=torch.float64),))]


def _centres(c: Tensor) -> Tensor:
    return torch.tensor([1.5, 6.0], dtype=c.dtype, device=c.device)


def _curvature_and_root(c: Tensor) -> Tensor:
    """From the forces of the mixture at 0 and 1, a line."""

    def force(x: float) -> Tensor:
        return (2 * c.exp() * (x - _centres(c))).sum(-1)

    slope = force(1.0) - force(0.0)
    return torch.stack([slope / 2, -force(0.0) / slope], -1)


def _charged(g: torch.Generator) -> list[Call]:
    e, s = torch.randn(2, 2, 4, generator=g, dtype=torch.float64)
    return [Call((e, s.exp(), torch.tensor([1.0, -2.0], dtype=torch.float64)))]


def _kkt(e: Tensor, s: Tensor, total: Tensor) -> Tensor:
    """The bordered system: stationarity of every charge, and the constraint."""
    n = e.shape[-1]
    found = []
    for one, hard, charge in zip(e, s, total, strict=True):
        matrix = torch.ones(n + 1, n + 1, dtype=e.dtype)
        matrix[:n, :n] = hard.diag()
        matrix[n, n] = 0
        found.append(torch.linalg.solve(matrix, torch.cat([-one, charge[None]]))[:n])
    return torch.stack(found)


CONTRACTS = [
    _geometry("pair_distances", "pairs", _PAIRS, _distances, 1e4),
    _geometry("bond_angles", "triples", _TRIPLES, _cosine_rule, 50.0),
    _geometry("dihedrals", "quadruples", _QUADRUPLES, _turned, 4.0),
    Contract(
        "dynamics.mixture_to_harmonic",
        lambda c, centres=None: torch.stack(
            list(dynamics.mixture_to_harmonic(c, _centres(c) if centres is None else centres)), -1
        ),
        _mixtures,
        reference=_curvature_and_root,
        bad=[
            Bad((torch.zeros(3),), {}, ValueError, r"log_weights must have shape \(\.\.\., 2\)"),
            Bad((torch.tensor([0.0, 90.0]),), {}, ValueError, "log_weights must have exponentials with a finite sum"),
            Bad((torch.zeros(2),), {"centres": torch.zeros(())}, ValueError, r"centres must have shape \(n,\)"),
            Bad((torch.zeros(2),), {"centres": torch.zeros(2).double()}, TypeError, "the same dtype"),
            Bad((torch.zeros(2).long(),), {"centres": torch.zeros(2)}, TypeError, "log_weights must be a floating"),
        ],
        large_limit=3.0,
        why="a stiffness is an exponential: it overflows by nature",
    ),
    Contract(
        "dynamics.torsion_energy",
        dynamics.torsion_energy,
        lambda g: [Call((torch.randn(2, generator=g).double(), torch.randn(2, 3, generator=g, dtype=torch.float64)))],
        reference=lambda phi, k: sum(k[:, m] * (1 + ((m + 1) * phi).cos()) for m in range(3)),
        bad=[
            Bad((torch.zeros(2), torch.zeros(3, 1)), {}, ValueError, "angles and amplitudes must have shapes"),
            Bad((torch.zeros(2), torch.zeros(())), {}, ValueError, "amplitudes must have shape"),
            Bad((torch.zeros(2).long(), torch.zeros(2)), {}, TypeError, "angles must be a floating tensor"),
        ],
        large=(1,),
        large_limit=1e3,
        why="an angle of many turns has no digits left; a sum of the largest amplitudes overflows",
    ),
    Contract(
        "dynamics.equilibrate_charges",
        dynamics.equilibrate_charges,
        _charged,
        reference=_kkt,
        bad=[
            Bad((torch.zeros(3), torch.zeros(3)), {}, ValueError, "hardness must be > 0 everywhere"),
            Bad((torch.zeros(3), torch.ones(2)), {}, ValueError, "electronegativity and hardness must have shapes"),
            Bad((torch.zeros(3, 3), torch.ones(3, 3), torch.ones(2)), {}, ValueError, "total and electronegativity"),
            Bad((torch.zeros(3), torch.full((3,), math.inf)), {}, ValueError, "hardness must be > 0 everywhere"),
            Bad((torch.zeros(0), torch.ones(0)), {}, ValueError, "electronegativity must have an atom"),
            Bad((torch.zeros(3), torch.ones(3), "1"), {}, TypeError, "total must be a number or a tensor"),
        ],
        large_limit=1e3,
        why="a difference of the largest energies by a small hardness overflows",
    ),
]
