"""Contracts of the modes of ``pullback.dynamics``: perturbations, feasibility, the classifier and its loss."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from pullback import dynamics
from tests.contracts.contract import Bad, Call, Contract, Exempt, Measurement, Module
from tests.contracts.dynamics.models import seeded

TABLE = dynamics.feasibility_matrix(["a", "b", "c"])


def _perturbed(x: Tensor, **words: object) -> Tensor:
    given = {"count": 4, "low": -1.0, "high": 2.0, "generator": torch.Generator().manual_seed(3), **words}
    return dynamics.perturb_trajectories(x, **given)  # type: ignore[arg-type]


def _by_hand(p: Tensor, table: Tensor) -> Tensor:
    sums = [[sum(a[i] * table[i, j] * b[j] for i in range(3) for j in range(3)) for a, b in pairwise(row)] for row in p]
    return torch.stack([torch.stack(row) for row in sums])


def _logits(g: torch.Generator) -> list[Call]:
    return [Call(tuple(torch.randn(n, 4, 2, 3, generator=g, dtype=torch.float64) for n in (2, 3)))]


def _loss(success: Tensor, failure: Tensor) -> Tensor:
    return dynamics.grounding_loss(success, failure, TABLE.to(success), weights=(3.0, 2.0, 1.0)).guesses


def _loss_by_hand(success: Tensor, failure: Tensor) -> Tensor:
    each = []
    for guess in range(2):
        total = torch.zeros((), dtype=success.dtype)
        for logits, works in ((success, True), (failure, False)):
            p = logits[:, :, guess].softmax(-1)
            q = _by_hand(p, TABLE.double())
            total = total + (-3 * q.mean() if works else 2 * torch.maximum(q.sum(1), -torch.ones(len(q))).mean())
            total = total - p[:, 0, 0].log().mean() - p[:, -1, 2].log().mean()
        each.append(total)
    return torch.stack(each)


CONTRACTS = [
    Contract(
        "dynamics.perturb_trajectories",
        _perturbed,
        lambda g: [Call((torch.randn(2, 6, 2, generator=g, dtype=torch.float64),))],
        bad=[
            Bad((torch.zeros(2, 2, 2),), {}, ValueError, r"demonstrations must be \[demos, time, dim\]"),
            Bad((torch.zeros(2, 5, 2),), {"low": 2.0}, ValueError, "low must be below high"),
            Bad((torch.zeros(2, 5, 2),), {"sharpness": 0.0}, ValueError, "sharpness must be > 0"),
            Bad((torch.zeros(2, 5, 2),), {"count": 0}, ValueError, "count must be an integer >= 1"),
        ],
        batched=False,
        vmap=False,
        compile=False,
        large=(),
        why="draws copies of the demonstrations, which are a set; a generator does not compile",
    ),
    Contract(
        "dynamics.mode_feasibility",
        dynamics.mode_feasibility,
        lambda g: [Call((torch.rand(2, 4, 3, generator=g, dtype=torch.float64), TABLE.double()))],
        reference=_by_hand,
        bad=[
            Bad((torch.zeros(1, 3), TABLE), {}, ValueError, "two steps or more"),
            Bad((torch.zeros(2, 4), TABLE), {}, ValueError, r"feasibility must be \[4, 4\]"),
        ],
        large_limit=100.0,
        why="a product of two probabilities, which large numbers are not",
    ),
    Contract(
        "dynamics.grounding_loss",
        _loss,
        _logits,
        reference=_loss_by_hand,
        bad=[
            Bad((torch.zeros(1, 4, 2, 3), torch.zeros(0, 4, 2, 3)), {}, ValueError, "failure must be .* targets"),
            Bad((torch.zeros(1, 5, 2, 3), torch.zeros(1, 4, 2, 3)), {}, ValueError, "success must be"),
        ],
        batched=False,
        vmap=False,
        large_limit=100.0,
        why="a mean over trajectories; likelihoods of the largest logits leave the range of half",
    ),
    Module(
        "dynamics.ModeClassifier",
        lambda model, x: model.log_probabilities(x),
        lambda g: [Call((torch.randn(3, 2, generator=g, dtype=torch.float64),))],
        build=seeded(lambda: dynamics.ModeClassifier(2, 3, guesses=1, hidden=(5,), scale=2.0)),
        large_limit=100.0,
        why="sums of products leave the range of half",
    ),
    Measurement(
        "dynamics.feasibility_matrix",
        lambda x, **words: dynamics.feasibility_matrix(["a", "b", "c", "d"], **words).to(x),
        lambda g: [Call((torch.zeros(1, dtype=torch.float64),))],
        reference=lambda x: torch.tensor([[0, 0, -1, -2], [0, 0, 0, -1], [0, 0, 0, 0], [0, 0, 0, 0]]).to(x),
    ),
    Exempt("dynamics.ModePolicy", "acts by a trained classifier", "dynamics/test_grounding.py"),
    Exempt("dynamics.PolygonWorld", "its mode and validity against a plane worked out", "dynamics/test_grounding.py"),
    Exempt("dynamics.polygon_world", "draws worlds whose invariants are tested", "dynamics/test_grounding.py"),
]
