"""Contracts of routing: against scores by hand, dense evaluation with masks, scikit-learn's mutual information."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from sklearn.metrics import mutual_info_score
from torch import Tensor, nn

from pullback import discrete
from pullback.core.checks import check_floating, check_shape
from tests.contracts.contract import Bad, Call, Contract, Edges, Exempt, Measurement, Module

_LABELS = torch.tensor([0, 2, 2, 1, 0])


def _gain(p: Tensor, labels: Tensor | None = None, classes: int = 3, **options: Any) -> Tensor:
    if labels is None:
        labels = _LABELS.to(p.device).expand(p.shape[:-1])
    return discrete.information_gain(p, labels, classes, **options)


def _groups(generator: torch.Generator) -> list[Call]:
    p = torch.softmax(torch.randn(5, 4, generator=generator, dtype=torch.float64), -1)
    certain = torch.eye(4, dtype=torch.float64)[[0, 1, 1, 3, 2]] * 0.96 + 0.01
    return [Call((p,)), Call((certain,))]


def _by_sums(p: Tensor, balance: float = 1.0) -> Tensor:
    """Entropies of the joint table, entry by entry."""
    table = [[sum(float(p[i, f]) for i in range(5) if _LABELS[i] == c) / 5 for f in range(4)] for c in range(3)]

    def entropy(masses: list[float]) -> float:
        return -sum(m * math.log(m) for m in masses if m > 0)

    of_groups = entropy([sum(column) for column in zip(*table, strict=True)])
    joint = entropy([m for row in table for m in row])
    return torch.tensor(balance * of_groups + entropy([sum(row) for row in table]) - joint, dtype=torch.float64)


def _halves(s: Tensor) -> Tensor:
    return torch.stack([s, 1 - s], -1)


_P = torch.tensor([[0.2, 0.8], [0.5, 0.5]])
_Y = torch.tensor([0, 1])

_X = torch.tensor([[0.3, -0.4], [1.0, 0.2], [-0.7, 0.9]], dtype=torch.float64)
_W = torch.tensor([[1.0, 0.5], [-0.5, 1.0], [0.3, -1.0]], dtype=torch.float64)
_B = torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64)


def _router(method: str, k: int = 1, **options: Any) -> Callable[[torch.Generator], nn.Module]:
    def build(generator: torch.Generator) -> nn.Module:
        router = discrete.Router(2, 3, method=method, k=k, generator=generator, **options).double()
        with torch.no_grad():
            router.score.weight.copy_(_W + 0.01 * torch.rand(3, 2, generator=generator))
            router.score.bias.copy_(_B)
        return router

    return build


def _route(module: Any, x: Tensor, **options: Any) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    routing = module(x, generator=generator, **options)
    # Constant weights are looked at in tests/discrete/test_routing.py.
    return tuple(
        part
        for part in (routing.weights, routing.probabilities)
        if module.method != "information_gain" or part is routing.probabilities
    )


def _points(generator: torch.Generator) -> list[Call]:
    return [Call((_X + 0.01 * torch.rand(3, 2, generator=generator, dtype=torch.float64),))]


def _each_alone(x: Tensor, index: Tensor | None = None) -> Tensor:
    """What dispatch does, sample by sample."""
    rows = [_EXPERTS[e](row.unsqueeze(0)) for row, e in zip(x, _INDEX.tolist(), strict=True)]
    return torch.cat(rows)


_INDEX = torch.tensor([2, 0, 2, 1])
_EXPERTS = [torch.sin, torch.tanh, torch.sigmoid, lambda t: t / 2]
_PAIRS = torch.tensor([[2, 0], [1, 3], [0, 2], [3, 1]])


def _dispatched(x: Tensor, index: Tensor | None = None) -> Tensor:
    index = _INDEX.to(x.device) if index is None and isinstance(x, Tensor) else index
    return discrete.dispatch(x, index, _EXPERTS[:3])


def _in_pairs(x: Tensor, weights: Tensor) -> Tensor:
    return discrete.dispatch(x, _PAIRS.to(x.device), _EXPERTS, weights=weights)


def _masked(x: Tensor, weights: Tensor) -> Tensor:
    """All experts on all samples, and a mask."""
    mask = torch.zeros(4, 4, dtype=x.dtype).scatter(1, _PAIRS, weights)
    return sum(mask[:, e, None] * _EXPERTS[e](x) for e in range(4))


def _linear_trellis(generator: torch.Generator) -> nn.Module:
    levels = [[nn.Linear(2, 2) for _ in range(count)] for count in (2, 2)]
    routers = [discrete.Router(2, count, method="softmax") for count in (2, 2)]
    trellis = discrete.Trellis(nn.Linear(2, 2), levels, routers, nn.Linear(2, 3))
    for parameter in trellis.parameters():
        nn.init.uniform_(parameter, -1, 1, generator=generator)
    for router in trellis.routers:  # every expert gets a sample
        nn.init.zeros_(router.score.bias)
    nn.init.zeros_(trellis.stem.bias)
    return trellis.double()


def _walk(x: Tensor) -> tuple[Tensor, Tensor]:
    """The path of each sample, one after the other."""
    trellis = _linear_trellis(torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, last = [], []
        for row in x:
            here = trellis.stem(row)
            for experts, router in zip(trellis.levels, trellis.routers, strict=True):
                p = torch.softmax(router.score(here), 0)
                here = p.max() * experts[int(p.argmax())](here)
            logits.append(trellis.head(here))
            last.append(p)
        return torch.stack(logits), torch.stack(last)


def _scores(x: Tensor) -> Tensor:
    return x @ (_W + 0.01 * torch.rand(3, 2, generator=_after_initial_weights())).T + _B


def _after_initial_weights() -> torch.Generator:
    generator = torch.Generator().manual_seed(0)
    discrete.Router(2, 3, generator=generator)
    return generator


def _largest(x: Tensor, k: int) -> Tensor:
    top = torch.softmax(_scores(x), -1).sort(-1, descending=True).values[:, :k]
    return top if k == 1 else top / top.sum(-1, keepdim=True)


def _trellis_outputs(module: Any, x: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    check_shape("x", check_floating("x", x), (x.shape[0] if x.ndim else 0, 2))  # the stem's business
    output = module(x, **options)
    return output.logits, output.routings[-1].probabilities


def _by_weighted(p: Tensor, w: Tensor) -> Tensor:
    """Weights are masses: a sample of twice the weight counts as two."""
    counts = (10 * w).round().long().tolist()
    labels = [int(_LABELS[i]) for i, c in enumerate(counts) for _ in range(c)]
    rows = torch.cat([p[i].expand(c, -1) for i, c in enumerate(counts)])
    return discrete.information_gain(rows, torch.tensor(labels), 3)


CONTRACTS = [
    Contract(
        "discrete.information_gain",
        _gain,
        _groups,
        _by_sums,
        scalars={"balance": 1.5},
        large=(),
        edges=Edges(
            lambda s, dim: s.new_zeros(s.shape[:-1]),
            lambda s: (_halves(s), torch.arange(s.shape[-1], device=s.device).expand(s.shape)),
            lambda s: {"classes": max(1, s.shape[-1])},
            along=True,
            domain=torch.sigmoid,
            empty="probabilities must have at least one sample",
        ),
        bad=[
            Bad((torch.ones(2, 2), _Y), {}, ValueError, r"probabilities must be >= 0 and sum to 1 in each row"),
            Bad((torch.tensor([[1.5, -0.5]]), _Y[:1]), {}, ValueError, "probabilities must be >= 0"),
            Bad((_P * torch.nan, _Y), {}, ValueError, "probabilities must be >= 0"),
            Bad((_P, torch.tensor([0, 3])), {}, ValueError, r"labels must be in 0\.\.2, got 0 to 3"),
            Bad((_P, torch.tensor([0.0, 1.0])), {}, TypeError, "labels must hold integers"),
            Bad((_P, _Y), {"classes": 0}, ValueError, "classes must be"),
            Bad((_P, _Y), {"balance": -1.0}, ValueError, "balance must be"),
            Bad((_P, _Y), {"weights": torch.zeros(2)}, ValueError, "weights must be >= 0 and not all 0"),
            Bad((torch.zeros(0, 2), _Y[:0]), {}, ValueError, "probabilities must have at least one sample"),
        ],
        batched=False,
        vmap=False,
        half=False,
        why="rows of probabilities have to sum to 1: not when they are shifted or rounded, see the next entry",
    ),
    Contract(
        "discrete.information_gain[of a softmax]",
        lambda x: _gain(torch.softmax(x, -1)),
        lambda g: [Call((torch.randn(5, 4, generator=g, dtype=torch.float64),))],
        lambda x: _by_sums(torch.softmax(x, -1)),
        half_tolerance=0.1,
    ),
    Contract(
        "discrete.information_gain[weights of samples]",
        lambda x, w: _gain(torch.softmax(x, -1), weights=w),
        lambda g: [
            Call((torch.randn(5, 4, generator=g, dtype=torch.float64), torch.tensor([1, 2, 0.5, 1, 0.1]).double()))
        ],
        lambda x, w: _by_weighted(torch.softmax(x, -1), w),
        half_tolerance=0.1,
        batched=False,
        why="a batch has weights of its own",
    ),
    Measurement(
        "discrete.information_gain[certain groups]",
        lambda p: _gain(p),
        lambda g: [Call((torch.eye(4, dtype=torch.float64)[torch.randint(4, (5,), generator=g)],)) for _ in range(3)],
        lambda p: torch.tensor(mutual_info_score(_LABELS.numpy(), p.argmax(-1).numpy()), dtype=torch.float64),
        layouts=False,
        why="of one-hot rows; gradients there are infinite in truth",
    ),
    *(
        Module(
            f"discrete.Router[{method}{', two of three' if k > 1 else ''}]",
            _route,
            _points,
            reference,
            build=_router(method, k),
            idle=(),
            scalars={"temperature": 0.7} if method in ("information_gain", "softmax") else {},
            large_limit=1e4,
            half_tolerance=0.1,
            batched=method in ("information_gain", "softmax"),
            vmap=method in ("information_gain", "softmax"),
            half=method in ("information_gain", "softmax"),
            gradcheck=method in ("information_gain", "softmax"),
            gradgradcheck=method in ("information_gain", "softmax"),
            bad=bad,
            why="scores of large numbers overflow; what is sampled is other in other shapes, its gradient an estimate",
        )
        for method, k, reference, bad in (
            (
                "information_gain",
                1,
                lambda x, **_: torch.softmax(_scores(x), -1),
                [
                    Bad((torch.ones(2, 3),), {}, ValueError, r"x must have shape \(\.\.\., 2\)"),
                    Bad((torch.full((1, 2), torch.nan),), {}, ValueError, "x must be finite"),
                    Bad((_X,), {"random": 1.5}, ValueError, r"random must be in \[0, 1\]"),
                    Bad((_X,), {"temperature": 0.0}, ValueError, "temperature must be > 0"),
                    Bad(
                        (_X,), {"allowed": torch.zeros(3, dtype=torch.bool)}, ValueError, "allowed must leave at least"
                    ),
                    Bad((_X,), {"allowed": torch.ones(3)}, TypeError, "allowed must be boolean"),
                    Bad((_X,), {"allowed": torch.ones(4).bool()}, ValueError, "allowed must broadcast"),
                ],
            ),
            ("softmax", 1, lambda x, **_: (_largest(x, 1), torch.softmax(_scores(x), -1)), []),
            ("softmax", 2, lambda x, **_: (_largest(x, 2), torch.softmax(_scores(x), -1)), []),
            ("gumbel", 1, lambda x, **_: (torch.ones(3, 1).double(), torch.softmax(_scores(x), -1)), []),
            ("gumbel", 2, lambda x, **_: (torch.full((3, 2), 0.5).double(), torch.softmax(_scores(x), -1)), []),
            ("reinmax", 1, lambda x, **_: (torch.ones(3, 1).double(), torch.softmax(_scores(x), -1)), []),
        )
    ),
    Contract(
        "discrete.dispatch",
        _dispatched,
        lambda g: [Call((0.5 + torch.rand(4, 2, generator=g, dtype=torch.float64),))],
        _each_alone,
        edges=Edges(lambda x: torch.sin(x), lambda x: (x, torch.zeros(len(x), dtype=torch.int64, device=x.device))),
        batched=False,
        vmap=False,
        compile=False,
        bad=[
            Bad((torch.ones(4, 2), torch.tensor([0, 1, 2, 3])), {}, ValueError, r"index must be in 0\.\.2, got 0 to 3"),
            Bad((torch.ones(4, 2), torch.tensor([0, 1])), {}, ValueError, r"index must have shape \(4,\) or \(4, k\)"),
            Bad((torch.ones(4, 2), torch.ones(4)), {}, TypeError, "index must hold integers"),
            Bad((torch.ones(4).long(), _INDEX), {}, TypeError, "x must be a floating tensor"),
            Bad((torch.tensor(1.0), _INDEX), {}, ValueError, "x must have a dimension of samples"),
        ],
        large_limit=1e4,
        why="the first dimension is that of the samples, how many go where is read; a cube of large numbers overflows",
    ),
    Contract(
        "discrete.dispatch[two experts a sample, weighted]",
        _in_pairs,
        lambda g: [
            Call(
                (
                    0.5 + torch.rand(4, 2, generator=g, dtype=torch.float64),
                    torch.rand(4, 2, generator=g, dtype=torch.float64),
                )
            )
        ],
        _masked,
        bad=[
            Bad((torch.ones(4, 2), torch.ones(4, 3)), {}, ValueError, r"weights must have shape \(\.\.\., 4, 2\)"),
            Bad((torch.ones(4, 2), torch.ones(4, 2).long()), {}, TypeError, "weights must be a floating tensor"),
        ],
        batched=False,
        vmap=False,
        compile=False,
        large=(1,),
        large_limit=1e4,
        why="the first dimension is that of the samples, how many go where is read; a weight times a cube overflows",
    ),
    Module(
        "discrete.Trellis",
        _trellis_outputs,
        lambda g: [Call((torch.randn(6, 2, generator=g, dtype=torch.float64),))],
        _walk,
        build=_linear_trellis,
        idle=(),
        batched=False,
        vmap=False,
        compile=False,
        large_limit=1e4,
        half_tolerance=0.1,
        bad=[
            Bad((_X,), {"threshold": -1.0}, ValueError, "threshold must be"),
            Bad((_X,), {"random": 2.0}, ValueError, r"random must be in \[0, 1\]"),
        ],
        why="samples are the first dimension, how many take which way is read; scores of large numbers overflow",
    ),
    Exempt("discrete.expected_macs", "gives Python numbers", "discrete/test_routing.py"),
]
