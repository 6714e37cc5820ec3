"""Contracts of what compares clouds of points: costs, divergences, gaps, maps; against scipy and direct sums."""

from __future__ import annotations

import math
from functools import partial

import torch
from scipy.spatial.distance import cdist
from torch import Tensor, nn

from pullback import transport
from pullback.core.errors import ConvergenceError
from tests.contracts.contract import Bad, Call, Contract, Exempt, HigherOrder, Learner
from tests.contracts.transport.exact import _best
from tests.contracts.transport.sinkhorn import by_scipy

_NAN = float("nan")


def _points(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def _masses(g: torch.Generator, *shape: int) -> Tensor:
    x = torch.rand(*shape, generator=g, dtype=torch.float64) + 0.1
    return x / x.sum(-1, keepdim=True)


def _pairs(x: Tensor, y: Tensor, cost: str = "sqeuclidean") -> Tensor:
    if x.ndim > 2 or y.ndim > 2:
        x, y = (t.expand(*torch.broadcast_shapes(x.shape[:-2], y.shape[:-2]), *t.shape[-2:]) for t in (x, y))
        return torch.stack([_pairs(*one, cost) for one in zip(x, y, strict=True)])
    return torch.from_numpy(cdist(x.numpy(), y.numpy(), cost))


def _debiased(
    x: Tensor, y: Tensor, a: Tensor | None = None, b: Tensor | None = None, cost: str = "sqeuclidean", **words: float
) -> Tensor:
    options = {"epsilon": words["epsilon"], "reach": words.get("reach")}
    batch = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    a, b = (torch.full(t.shape[-2:-1], 1 / t.shape[-2]).double() if w is None else w for t, w in ((x, a), (y, b)))
    x, y, a, b = (t.expand(*batch, *t.shape[-k:]) for t, k in ((x, 2), (y, 2), (a, 1), (b, 1)))
    terms = [
        by_scipy(_pairs(*p, cost), *w, **options)[1] for p, w in (((x, y), (a, b)), ((x, x), (a, a)), ((y, y), (b, b)))
    ]
    unequal = words["epsilon"] / 2 * (a.sum(-1) - b.sum(-1)).square() if options["reach"] else 0
    return terms[0] - (terms[1] + terms[2]) / 2 + unequal


def _gap(x: Tensor, y: Tensor, *, epsilon: float, entropy: str = "shannon", **words: object) -> Tensor:
    costs = _pairs(x, y)
    paid, n = costs.diagonal(dim1=-2, dim2=-1).mean(-1), x.shape[-2]
    if epsilon == 0:
        return paid - _best(costs) / n
    plan = by_scipy(costs, epsilon=epsilon)[0]
    gain = (plan * plan.log()).sum((-2, -1)) + (2 * math.log(n) if entropy == "kl" else 0)
    return paid - (plan * costs).sum((-2, -1)) - epsilon * gain


_TIGHT = {"tolerance": 1e-11, "max_iterations": 500}
_CLOUD = torch.zeros(2, 2)
_CLOUDS = [
    Bad((torch.zeros(2), _CLOUD), {}, ValueError, r"x must have shape \(..., points, dimensions\), got \(2,\)"),
    Bad((_CLOUD, torch.zeros(0, 2)), {}, ValueError, r"y must have shape \(..., points, dimensions\), got \(0, 2\)"),
    Bad((_CLOUD, torch.zeros(2, 3)), {}, ValueError, "x and y must have points of one dimension, got 2 and 3"),
    Bad((_CLOUD, _CLOUD.double()), {}, TypeError, "x and y must have the same dtype"),
    Bad((torch.full((2, 2), _NAN), _CLOUD), {}, ValueError, "x must be finite"),
    Bad((_CLOUD, _CLOUD), {"cost": "manhattan"}, ValueError, "cost must be one of 'sqeuclidean', 'euclidean'"),
    Bad((_CLOUD, _CLOUD), {"cost": 2}, TypeError, "cost must be a name or a function, got int"),
    Bad((_CLOUD, _CLOUD), {"cost": lambda x, y: 1.0}, ValueError, r"must return a tensor of shape \(2, 2\), got float"),
]
_SOLVED = [Bad(b.args, b.kwargs | {"epsilon": 1.0}, b.error, b.match) for b in _CLOUDS]
_SQUARES = "squares of numbers near the largest ones overflow by nature"

CONTRACTS = [
    Contract(
        "transport.pairwise_cost",
        transport.pairwise_cost,
        lambda g: [
            Call((_points(g, 2, 3, 2), _points(g, 4, 2))),
            Call((_points(g, 3, 2), _points(g, 2, 2)), {"cost": "euclidean"}),
        ],
        reference=_pairs,
        large=(0, 1),
        large_limit=1e8,
        why=_SQUARES,
        bad=_CLOUDS,
    ),
    Contract(
        "transport.sinkhorn_divergence",
        transport.sinkhorn_divergence,
        lambda g: [
            Call((_points(g, 2, 2, 2), _points(g, 3, 2), _masses(g, 2), _masses(g, 3)), {"epsilon": 5.0} | _TIGHT),
            Call((_points(g, 3, 1), _points(g, 2, 1)), {"epsilon": 2.0, "cost": "euclidean"} | _TIGHT),
        ],
        reference=_debiased,
        tolerance=1e-7,
        outputs=lambda found: found.value,
        scalars={"epsilon": 5.0},
        large=(0, 1),
        large_limit=1e2,
        gradgradcheck=False,
        compile=False,
        why="the envelope is of first order; compiling is tried in monge_gap, here it takes three times as long; "
        + _SQUARES,
        bad=[
            *_SOLVED,
            Bad((_CLOUD, _CLOUD), {}, ValueError, "epsilon or relative_epsilon must be given, and not both"),
            Bad((_CLOUD, _CLOUD, -torch.ones(2)), {"epsilon": 1.0}, ValueError, "a must be >= 0 and finite"),
            Bad(
                (_CLOUD, _CLOUD), {"epsilon": 1.0, "start": (_CLOUD, _CLOUD, torch.ones(3))}, ValueError, "start: of_y"
            ),
            Bad((_CLOUD, _CLOUD, torch.ones(3)), {"epsilon": 1.0}, ValueError, r"a must have shape \(..., 2\)"),
            Bad(
                (100 * torch.eye(2), -100 * torch.eye(2), torch.tensor([0.9, 0.1])),
                {"epsilon": 1e-3, "max_iterations": 1, "check": True},
                ConvergenceError,
                "sinkhorn_divergence: 1 of 1 problems have a residual above",
            ),
        ],
    ),
    Contract(
        "transport.sinkhorn_divergence[implicit, reach]",
        partial(transport.sinkhorn_divergence, gradient="implicit"),
        lambda g: [
            Call(
                (_points(g, 2, 1), _points(g, 2, 1), _masses(g, 2)),
                {"epsilon": 4.0, "reach": 3.0} | _TIGHT,
            )
        ],
        reference=_debiased,
        tolerance=1e-7,
        outputs=lambda found: found.value,
        scalars={"epsilon": 5.0, "reach": 2.0},
        large=(0, 1),
        large_limit=1e2,
        compile=False,
        why="compiling is tried in monge_gap; what is far beyond the reach is not shipped at all",
    ),
    Contract(
        "transport.monge_gap",
        transport.monge_gap,
        lambda g: [
            Call((_points(g, 2, 3, 2), _points(g, 2, 3, 2)), {"epsilon": 4.0} | _TIGHT),
            Call((_points(g, 3, 2), _points(g, 3, 2)), {"epsilon": 4.0, "entropy": "kl"} | _TIGHT),
            Call((_points(g, 2, 4, 2), _points(g, 2, 4, 2)), {"epsilon": 0}),
        ],
        reference=_gap,
        tolerance=1e-7,
        outputs=lambda found: found.value,
        scalars={"epsilon": 5.0},
        large=(0, 1),
        large_limit=1e8,
        gradgradcheck=False,
        why="the envelope is of first order; " + _SQUARES,
        bad=[
            *_SOLVED,
            Bad((_CLOUD, torch.zeros(3, 2)), {"epsilon": 1.0}, ValueError, "y must have an image for each of the 2"),
            Bad((_CLOUD, _CLOUD), {"epsilon": -1.0}, ValueError, "epsilon must be > 0"),
            Bad((_CLOUD, _CLOUD), {"epsilon": 1.0, "entropy": "renyi"}, ValueError, "entropy must be one of 'shannon'"),
            Bad((_CLOUD, _CLOUD), {"epsilon": 1.0, "start": torch.zeros(3)}, ValueError, "start must have shape"),
        ],
    ),
    HigherOrder(
        "transport.unexplained_variance",
        lambda given, x: transport.unexplained_variance(given, lambda x: 2 * x, x),
        lambda g: [Call((_points(g, 2, 5, 2),))],
        reference=lambda x: 100 * (x.square() - 2 * x).square().mean((-2, -1)) / (2 * x).var(-2, correction=0).mean(-1),
        given=lambda x: x.square(),
        argument="map",
        large_limit=1e2,
        infinite=True,
        why=_SQUARES,
        bad=[
            Bad((torch.zeros(2),), {}, ValueError, r"x must have shape \(..., n, d\) with n >= 2"),
            Bad((torch.zeros(2, 1),), {}, ValueError, "reference_map must not be constant"),
        ],
    ),
    Learner(
        "transport.fit_transport_map",
        lambda points, g: transport.fit_transport_map(_affine(), *points, steps=45, lr=0.15, generator=g),
        answer=lambda found: torch.cat([found.map.weight.detach().flatten(), found.map.bias.detach()]),
        planted=lambda g: ((x := _points(g, 12, 1), 2 * x + 1), torch.tensor([2.0, 1.0]).double()),
        recovers=lambda found, truth: bool((found - truth).abs().max() < 0.2),
        sets=lambda g: [(_points(g, 3, 1), _points(g, 2, 1)), (torch.ones(2, 1).double(), torch.ones(2, 1).double())],
        permute=lambda points, order: (points[0][order[: len(points[0])]], points[1]),
        bad=[
            Bad(((torch.zeros(2), torch.zeros(2, 1)), None), {}, ValueError, "x must have shape"),
            Bad(((torch.full((2, 1), _NAN), torch.zeros(2, 1)), None), {}, ValueError, "x must be finite"),
        ],
    ),
    Exempt("transport.TransportMapFit", "fit_transport_map step by step, with its state", "transport/test_maps.py"),
]


def _affine() -> nn.Linear:
    line = nn.utils.skip_init(nn.Linear, 1, 1, dtype=torch.float64)
    nn.init.ones_(line.weight)
    nn.init.zeros_(line.bias)
    return line
