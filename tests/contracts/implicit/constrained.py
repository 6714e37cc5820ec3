"""Contracts of constrained learning: rates of fairness, multipliers, what iterates are worth."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pullback import implicit
from tests.contracts.contract import Bad, Call, Contract, Exempt, Measurement

_GROUP = torch.tensor([0, 2, 0, 2, 2, 0, 2])
_LABEL = torch.tensor([True, True, False, True, False, False, True])


def _scores(generator: torch.Generator) -> list[Call]:
    return [Call((torch.randn(7, generator=generator, dtype=torch.float64),))]


def _gaps(counted: Tensor) -> Any:
    def gaps(score: Tensor) -> Tensor:
        rows = []
        for g in range(3):  # nobody is in group 1
            own = [float(s) for s, h, c in zip(score, _GROUP, counted, strict=True) if h == g and c]
            every = [float(s) for s, c in zip(score, counted, strict=True) if c]
            rows.append(sum(own) / len(own) - sum(every) / len(every) if own else 0.0)
        return torch.tensor(rows, dtype=score.dtype)

    return gaps


def _parity(score: Tensor, group: Any = _GROUP, groups: Any = 3) -> Tensor:
    gap: Tensor = implicit.demographic_parity(score, group.to(score.device), groups=groups)
    return gap


def _opportunity(score: Tensor, group: Any = _GROUP, label: Any = _LABEL, groups: Any = 3) -> Tensor:
    at = score.device
    gap: Tensor = implicit.equal_opportunity(score, group.to(at), label.to(at), groups=groups)
    return gap


def _logits(generator: torch.Generator) -> list[Call]:
    return [
        Call(tuple(torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(2)))
        for shape in ((5,), (4, 3))
    ]


def _divergence(logits: Tensor, changed: Tensor) -> Tensor:
    if logits.ndim == 1:
        p, q = torch.sigmoid(logits), torch.sigmoid(changed)
        return (p * torch.log(p / q) + (1 - p) * torch.log((1 - p) / (1 - q))).mean()
    p, q = (torch.distributions.Categorical(logits=z) for z in (logits, changed))
    return torch.distributions.kl_divergence(p, q).mean()


def _states(generator: torch.Generator) -> list[Call]:
    draw = {"generator": generator, "dtype": torch.float64}
    return [Call((torch.randn(6, **draw), torch.randn(6, 3, **draw) + shift)) for shift in (-3.0, 0.0, 1.0)]


def _report(objective: Tensor, slacks: Tensor) -> Tensor:
    price = torch.tensor((0.5, 0.0, 2.0), dtype=slacks.dtype, device=slacks.device)
    terms = slacks @ price
    states = [
        implicit.DualState(k, objective[k], slacks[k], price, objective[k] + terms[k], -terms[k]) for k in range(6)
    ]
    return torch.stack(list(implicit.feasibility_report(states)))


def _by_hand(objective: Tensor, slacks: Tensor) -> Tensor:
    violated = [max(0.0, *row) for row in slacks.tolist()]
    means = [sum(column) / 6 for column in slacks.mT.tolist()]
    dual = max(o + 0.5 * s[0] + 2 * s[2] for o, s in zip(objective.tolist(), slacks.tolist(), strict=True))
    mean = sum(objective.tolist()) / 6
    found = (violated[-1], min(violated), max(violated), max(0.0, *means), mean, dual, mean - dual)
    return torch.tensor(found, dtype=objective.dtype)


_S = torch.zeros(7)
_Z = torch.zeros(4)
CONTRACTS = [
    Contract(
        "implicit.demographic_parity",
        _parity,
        _scores,
        reference=_gaps(torch.ones(7, dtype=torch.bool)),
        batched=False,
        vmap=True,
        bad=[
            Bad((_S.long(),), {}, TypeError, "score must be a floating tensor"),
            Bad((_S, _GROUP.float()), {}, TypeError, "group must be of integers"),
            Bad((_S[:3],), {}, ValueError, r"score and group must be \[n\]"),
            Bad((_S, _GROUP, 2), {}, ValueError, "group must be in 0..1"),
            Bad((_S, -_GROUP), {}, ValueError, "group must be in 0..2"),
            Bad((_S, _GROUP, 0), {}, ValueError, "groups must be an integer >= 1"),
            Bad((_S[:0], _GROUP[:0]), {}, ValueError, "n >= 1"),
        ],
        why="batched: one set of persons",
    ),
    Contract(
        "implicit.equal_opportunity",
        _opportunity,
        _scores,
        reference=_gaps(_LABEL),
        batched=False,
        bad=[
            Bad((_S, _GROUP, _LABEL.long()), {}, TypeError, "label must be boolean"),
            Bad((_S, _GROUP, _LABEL[:2]), {}, ValueError, "label must have the shape of score"),
        ],
        why="batched: one set of persons",
    ),
    Contract(
        "implicit.counterfactual_gap",
        implicit.counterfactual_gap,
        _logits,
        reference=_divergence,
        batched=False,
        large=(0, 1),
        bad=[
            Bad((_Z.long(), _Z), {}, TypeError, "logits must be a floating tensor"),
            Bad((_Z, _Z.double()), {}, TypeError, "changed"),
            Bad((_Z, _Z[:2]), {}, ValueError, r"must both be \[n\] or \[n, k\]"),
            Bad((_Z[:0], _Z[:0]), {}, ValueError, "n >= 1"),
            Bad((_Z.view(1, 2, 2), _Z.view(1, 2, 2)), {}, ValueError, r"must both be \[n\] or \[n, k\]"),
        ],
        why="batched: one set of persons",
    ),
    Measurement("implicit.feasibility_report", _report, _states, reference=_by_hand),
    Exempt("implicit.Multipliers", "a module without parameters", "implicit/test_constrained.py"),
    Exempt("implicit.DualAscent", "steps that change a problem in place", "implicit/test_constrained.py"),
    Exempt("implicit.AugmentedLagrangian", "steps that change a problem in place", "implicit/test_constrained.py"),
]
