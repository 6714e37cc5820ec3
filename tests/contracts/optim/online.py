"""Contracts of online learning: a projection in another norm, regret; learners of rounds are tested elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback import optim
from tests.contracts.contract import Bad, Call, Contract, Exempt

_X, _EYE = torch.ones(2), torch.eye(2)


def _points(generator: torch.Generator) -> list[Call]:
    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    root = draw(2, 3, 3)
    metric = root @ root.mT + 0.5 * torch.eye(3).double()
    x = torch.nn.functional.normalize(draw(2, 3), dim=-1) * torch.tensor([[3.0], [0.3]]).double()  # one is inside
    return [Call((x[0], metric[0])), Call((x, metric), {"radius": 0.7})]


def _by_steps(x: Tensor, metric: Tensor, radius: float = 1.0) -> Tensor:
    """Projected descent, many steps."""
    metric = metric.tril() + metric.tril(-1).mT
    p, step = torch.zeros_like(x), 1 / torch.linalg.matrix_norm(metric, 2)
    for _ in range(800):
        p = p - step[..., None] * (metric @ (p - x)[..., None])[..., 0]
        p = p / (p.norm(dim=-1, keepdim=True) / radius).clamp(min=1)
    return p


CONTRACTS = [
    Contract(
        "optim.projection_ball_in_metric",
        optim.projection_ball_in_metric,
        _points,
        reference=_by_steps,
        tolerance=1e-6,
        scalars={"radius": 0.7},
        large=(),
        batched=False,
        compile=False,
        half=False,
        why="batched: the first argument alone gets the batch; compile: decompositions; half: eigenvalues are found in "
        "float32; large: the right side overflows",
        bad=[
            Bad((torch.ones(2, dtype=torch.int64), _EYE), {}, TypeError, "x must be a floating"),
            Bad((_X, _EYE.double()), {}, TypeError, "dtype"),
            Bad((_X, torch.eye(3)), {}, ValueError, "metric must be square of the size of x"),
            Bad((_X, -_EYE), {}, ValueError, "metric must be positive definite"),
            Bad((_X, _EYE), {"radius": 0.0}, ValueError, "radius must be > 0"),
        ],
    ),
    Exempt("optim.online_regret", "takes sums of losses that belong together", "optim/test_online.py"),
    Exempt("optim.OptimisticMirrorDescent", "learns round by round", "optim/test_online.py"),
    Exempt("optim.OnlineDescent", "learns round by round", "optim/test_online.py"),
    Exempt("optim.OnlineEnsemble", "learns round by round", "optim/test_online.py"),
]
