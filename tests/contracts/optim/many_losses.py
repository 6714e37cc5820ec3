"""Contracts of many losses at once: aggregators, Gramians, backward passes, reports."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.optimize
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pullback.optim import (
    aggregate,
    aggregation_weights,
    conflict,
    instance_losses,
    jacobian_backward,
    loss_gramian,
    pareto_stationarity,
    properties_of,
    upgrad_weights,
)
from tests.contracts.contract import Bad, Call, Contract, HigherOrder, Measurement
from tests.contracts.law import seeded


def _gramians(g: torch.Generator) -> list[Call]:
    """Of independent gradients, of opposing ones, of one that is 0."""
    jacobians = [torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((3, 4), (2, 4, 3), (3, 4))]
    jacobians[0][1] -= 1.5 * jacobians[0][0]
    return [Call((j @ j.mT,)) for j in jacobians]


def _by_enumeration(gramian: Tensor, preference: Tensor | None = None, normalize: str = "trace") -> Tensor:
    """Every set of active constraints is tried."""
    if gramian.ndim > 2:
        return torch.stack([_by_enumeration(g, preference, normalize) for g in gramian])
    m = len(gramian)
    lengths = gramian.diagonal().sqrt() if normalize == "gradients" else gramian.trace().sqrt().expand(m)
    matrix = gramian / lengths[:, None] / lengths + 1e-4 * torch.eye(m).double()
    least = torch.diag(torch.full((m,), 1 / m, dtype=torch.float64) if preference is None else preference) * lengths
    return sum(_least_square(matrix, row) for row in least) / lengths  # type: ignore[return-value]


def _least_square(matrix: Tensor, least: Tensor) -> Tensor:
    for size in range(len(least) + 1):
        for free in map(list, itertools.combinations(range(len(least)), size)):
            held = [i for i in range(len(least)) if i not in free]
            v = least.clone()
            if free:
                v[free] = torch.linalg.solve(matrix[free][:, free], -matrix[free][:, held] @ least[held])
            if bool((v >= least - 1e-12).all() and (matrix @ v >= -1e-12).all()):
                return v
    raise AssertionError


def _jacobians(g: torch.Generator) -> list[Call]:
    return [Call((torch.randn(3, 5, generator=g, dtype=torch.float64),)) for _ in range(2)]


def _on_simplex(objective: Callable[[Any], Any], m: int) -> np.ndarray:
    found = scipy.optimize.minimize(
        objective,
        np.full(m, 1 / m),
        bounds=[(0, 1)] * m,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 500},
    )
    return found.x


def _mgda(j: np.ndarray) -> np.ndarray:
    return _on_simplex(lambda w: np.square(w @ j).sum(), len(j)) @ j


def _dualproj(j: np.ndarray) -> np.ndarray:
    mean = j.mean(0)
    return mean + j.T @ scipy.optimize.nnls(j.T, -mean)[0]


def _cagrad(j: np.ndarray) -> np.ndarray:
    mean = j.mean(0)
    k = 0.5 * np.linalg.norm(mean)
    v = _on_simplex(lambda w: w @ j @ mean + k * np.linalg.norm(w @ j), len(j)) @ j
    return mean + k * v / np.linalg.norm(v)


def _imtl(j: np.ndarray) -> np.ndarray:
    """Weights of sum 1 whose direction has equal slopes along all normed gradients."""
    units = j / np.linalg.norm(j, axis=1, keepdims=True)
    equal = np.vstack([(units[1:] - units[0]) @ j.T, np.ones(len(j))])
    return np.linalg.solve(equal, np.eye(len(j))[-1]) @ j


def _aligned(j: np.ndarray) -> np.ndarray:
    left, values, right = np.linalg.svd(j, full_matrices=False)
    return values[-1] * (left @ right).mean(0)


def _nash(j: np.ndarray) -> np.ndarray:
    found = scipy.optimize.root(lambda w: j @ j.T @ np.exp(w) - np.exp(-w), np.zeros(len(j)), tol=1e-13)
    return np.exp(found.x) @ j


def _pcgrad(j: np.ndarray) -> np.ndarray:
    """Of two objectives: no order to draw."""
    first, second = j[0].copy(), j[1].copy()
    for v, other in ((first, j[1]), (second, j[0])):
        if v @ other < 0:
            v -= (v @ other) / (other @ other) * other
    return first + second


_REFERENCES = {
    "mgda": _mgda,
    "dualproj": _dualproj,
    "cagrad": _cagrad,
    "imtl": _imtl,
    "aligned": _aligned,
    "nash": _nash,
    "mean": lambda j: j.mean(0),
    "pcgrad": _pcgrad,
}


def _aggregated(method: str) -> Measurement:
    def pairs(g: torch.Generator) -> list[Call]:
        return [Call((c.args[0][:2],)) for c in _jacobians(g)]

    return Measurement(
        f"optim.aggregate[{method}]",
        lambda j, **words: aggregate(j, **{"method": method, "regularization": 0.0} | words).direction,  # type: ignore[arg-type]
        pairs if method == "pcgrad" else _jacobians,
        reference=lambda j: torch.from_numpy(_REFERENCES[method](j.numpy())),
        tolerance=1e-6,
    )


def _model(x: Tensor) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2), nn.LayerNorm(2)).to(x.dtype)
    for p, g in zip(model.parameters(), range(9), strict=False):
        p.data = torch.randn(p.shape, generator=seeded(g), dtype=x.dtype)
    return model


def _watched(f: Any, x: Tensor, **words: Any) -> Tensor:
    model = _model(x)
    losses = (lambda: f(model(x))) if callable(f) else f
    return loss_gramian(losses, model, **words).gramian


def _gramian_of_rows(x: Tensor) -> Tensor:
    model = _model(x)
    rows = torch.func.jacrev(lambda p: _one_each(torch.func.functional_call(model, p, (x,))))(
        dict(model.named_parameters())
    )
    matrix = torch.cat([r.flatten(1) for r in rows.values()], 1).detach()
    return matrix @ matrix.T


def _one_each(output: Tensor) -> Tensor:
    return output.square().sum(1) + output[:, 0]


def _filled(x: Tensor, **words: Any) -> Tensor:
    w = nn.Parameter(x.detach().clone())
    head = nn.Parameter(x.detach().clone()[0])
    losses = [(w[0] * head).sum(), w.square().sum(), (w[0] - w[1]).exp().sum()]
    jacobian_backward(losses, [w, head], **words)
    return torch.cat([w.grad.flatten(), head.grad])  # type: ignore[union-attr]


def _filled_by_hand(x: Tensor) -> Tensor:
    rows = torch.func.jacrev(lambda w: torch.stack([(w[0] * x[0]).sum(), w.square().sum(), (w[0] - w[1]).exp().sum()]))
    matrix = rows(x).flatten(1)
    return torch.cat([_by_enumeration(matrix @ matrix.T) @ matrix, x[0]])


_INSTANCE_PAIRS = [
    Bad((torch.ones(2, 2), torch.ones(3, 2)), {}, ValueError, "prediction and target must hold the same number"),
]
_BAD_GRAMIANS = [
    Bad((torch.ones(2, 3),), {}, ValueError, r"gramian must have shape \(..., m, m\), got \(2, 3\)"),
    Bad((torch.ones(2, 2).long(),), {}, TypeError, "gramian must be a floating tensor"),
    Bad((torch.tensor([[1.0, torch.nan], [0.0, 1.0]]),), {}, ValueError, r"got nan for objectives \(0, 1\)"),
    Bad((torch.ones(0, 0),), {}, ValueError, "gramian must have at least one objective"),
]
_UNBATCHED = {
    **dict.fromkeys(("batched", "gradcheck", "gradgradcheck", "forward_mode", "vmap", "compile", "half"), False),
    "large": (),
    "why": "a measurement: it is not differentiated",
}


CONTRACTS = [
    Contract(
        "optim.upgrad_weights",
        upgrad_weights,
        _gramians,
        reference=_by_enumeration,
        scalars={"regularization": 0.01},
        half_tolerance=6e-2,
        bad=[
            *_BAD_GRAMIANS,
            Bad((-torch.eye(2),), {}, ValueError, "gramian must be positive semidefinite"),
            Bad((torch.tensor([[1.0, -2.0], [-2.0, 1.0]]),), {}, ValueError, "negative eigenvalue"),
            Bad((torch.eye(2),), {"regularization": -1.0}, ValueError, "regularization must be >= 0"),
            Bad((torch.eye(2),), {"normalize": "rows"}, ValueError, "normalize must be one of"),
            Bad((torch.eye(2),), {"preference": torch.ones(3)}, ValueError, r"preference must have shape \(..., 2\)"),
            Bad((torch.eye(2),), {"preference": -torch.ones(2)}, ValueError, "preference must be >= 0"),
        ],
    ),
    Contract(
        "optim.upgrad_weights[preference, gradients]",
        lambda g, p: upgrad_weights(g, preference=p, normalize="gradients"),
        lambda g: [Call((*_gramians(g)[0].args, torch.tensor([0.2, 0.5, 1.0], dtype=torch.float64)))],
        reference=lambda g, p: _by_enumeration(g, p, "gradients"),
        half_tolerance=6e-2,
    ),
    *(_aggregated(method) for method in _REFERENCES),
    Measurement(
        "optim.aggregate",
        lambda j, **words: aggregate(j, **words).direction,
        _jacobians,
        reference=lambda j: _by_enumeration(j @ j.T) @ j,
        tolerance=1e-7,
        bad=[
            Bad((torch.ones(2, 3),), {"method": "mgd"}, ValueError, "method must be one of .*mgda"),
            Bad((torch.ones(3),), {}, ValueError, "jacobian must have shape"),
            Bad((torch.ones(2, 3).long(),), {}, TypeError, "jacobian must be a floating tensor"),
            Bad((torch.tensor([[1.0], [torch.inf]]),), {}, ValueError, "the gradient of objective 1 is not"),
            Bad((torch.ones(2, 3),), {"radius": 1.0, "method": "cagrad"}, ValueError, r"radius must be in \[0, 1\)"),
        ],
    ),
    Measurement(
        "optim.aggregation_weights",
        lambda g, **words: aggregation_weights(g, **{"method": "mgda"} | words),
        lambda g: [Call((torch.diag(torch.rand(4, generator=g, dtype=torch.float64)),))],
        reference=lambda g: g.diagonal().reciprocal() / g.diagonal().reciprocal().sum(),
        bad=[
            *_BAD_GRAMIANS,
            Bad((torch.eye(2),), {"method": "graddrop"}, ValueError, "'graddrop' needs the gradients"),
        ],
    ),
    Measurement(
        "optim.conflict",
        lambda j, d: tuple(conflict(j, d)),
        lambda g: [Call((torch.randn(3, 4, generator=g).double(), torch.randn(4, generator=g).double()))],
        reference=lambda j, d: (
            F.cosine_similarity(j, d[None]),
            (j @ d < 0).double().mean(),
            torch.stack([j[a] @ j[b] < 0 for a, b in itertools.combinations(range(3), 2)]).double().mean(),
        ),
        bad=[
            Bad((torch.ones(2, 3), torch.ones(2)), {}, ValueError, "jacobian and direction must have shapes"),
            Bad((torch.ones(2, 3), torch.full((3,), torch.nan)), {}, ValueError, "direction must be finite"),
            Bad((torch.full((2, 3), torch.nan), torch.ones(3)), {}, ValueError, "the gradient of objective 0 is not"),
            Bad((torch.ones(2, 3).long(), torch.ones(3)), {}, TypeError, "jacobian must be a floating tensor"),
        ],
    ),
    Measurement(
        "optim.pareto_stationarity",
        lambda g: pareto_stationarity(g).norm,
        lambda g: [Call((j.args[0] @ j.args[0].mT,)) for j in _jacobians(g)],
        reference=lambda g: torch.tensor(np.linalg.norm(_mgda(np.linalg.cholesky(g.numpy())))),
        tolerance=1e-6,
        bad=_BAD_GRAMIANS,
    ),
    HigherOrder(
        "optim.properties_of",
        lambda f, scale, **words: torch.tensor(properties_of(f, generator=seeded(), **words), dtype=scale.dtype),
        lambda g: [Call((torch.ones(1, dtype=torch.float64),), {"count": 3})],
        given=lambda j: j.sum(-2),
        argument="aggregator",
        bad=[
            Bad((torch.ones(1),), {"count": 0}, ValueError, "count must be an integer >= 1, got 0"),
            Bad((torch.ones(1),), {"objectives": 0}, ValueError, "objectives must be an integer >= 1"),
            Bad((torch.ones(1),), {"decades": -1.0}, ValueError, "decades must be >= 0"),
            Bad((torch.ones(1),), {"dependent": 1.5}, ValueError, r"dependent must be in \[0, 1\]"),
        ],
        **_UNBATCHED,  # type: ignore[arg-type]
    ),
    HigherOrder(
        "optim.loss_gramian",
        _watched,
        lambda g: [Call((torch.randn(5, 3, generator=g, dtype=torch.float64),))],
        given=_one_each,
        argument="losses",
        reference=_gramian_of_rows,
        **_UNBATCHED,  # type: ignore[arg-type]
    ),
    Measurement(
        "optim.jacobian_backward",
        _filled,
        lambda g: [Call((torch.randn(2, 3, generator=g, dtype=torch.float64),))],
        reference=_filled_by_hand,
        tolerance=1e-7,
        bad=[
            Bad((torch.ones(2, 3),), {"method": "row"}, ValueError, "method must be one of"),
            Bad((torch.ones(2, 3),), {"method": "gramian"}, TypeError, "params must be a module"),
            Bad((torch.ones(2, 3),), {"aggregator": "mea"}, ValueError, "aggregator must be one of"),
            Bad((torch.ones(2, 3),), {"aggregator": 3}, TypeError, "aggregator must be a name or a function"),
            Bad((torch.ones(2, 3),), {"shared": []}, ValueError, "losses must share parameters"),
            Bad((torch.ones(2, 3),), {"chunk": 0}, ValueError, "chunk must be an integer >= 1"),
            Bad((torch.full((2, 3), torch.nan),), {}, ValueError, "that of objective 0 is not"),
        ],
    ),
    HigherOrder(
        "optim.instance_losses",
        instance_losses,
        lambda g: [Call(tuple(torch.randn(3, 2, generator=g, dtype=torch.float64) for _ in range(2)))],
        given=F.mse_loss,
        argument="criterion",
        reference=lambda p, t: (p - t).square().mean(1),
        batched=False,
        vmap=False,
        large=(),
        why="the first dimension is the batch; squares of the given loss overflow",
        bad=_INSTANCE_PAIRS,
    ),
]
