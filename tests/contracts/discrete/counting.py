"""Contracts of counting by value, of places among boundaries, of running extremes and of rank filters."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from pullback import discrete
from tests.contracts.contract import Bad, Call, Contract, Edges

_STEPS = ("logistic", "cauchy", "reciprocal", "optimal")
_EDGES = torch.tensor([-1.0, 0.125, 0.5, 2.0], dtype=torch.float64)
_X = torch.tensor([-1.7, 0.3, 0.9, -0.2, 1.4], dtype=torch.float64)
_INDEX = torch.tensor([0.2, 2.8, 1.1, 2.3, 0.1], dtype=torch.float64)
_SMALL = {"temperature": 1e-6}


def _cdf(u: Tensor, method: str) -> Tensor:
    """The four steps, by other formulas than the library's."""
    if method == "logistic":
        return torch.special.expit(4 * u)
    if method == "cauchy":
        return torch.arctan(math.pi * u) / math.pi + 0.5
    if method == "reciprocal":
        return torch.where(u.isinf(), (1 + u.sign()) / 2, (1 + 2 * u / (1 + 2 * u.abs())) / 2)
    return torch.where(u.abs() < 0.25, u + 0.5, torch.where(u > 0, 1 - 1 / (16 * u), -1 / (16 * u)))


def _counts(x: Tensor, edges: Tensor, method: str, temperature: float, weight: Tensor | None = None) -> Tensor:
    """Counts between all pairs of neighbours of ``edges``, infinite ones included, by the whole matrix."""
    above = _cdf((x.unsqueeze(-1) - edges) / temperature, method)
    member = above[..., :-1] - above[..., 1:]
    return (member if weight is None else member * weight.unsqueeze(-1)).sum(-2)


def _open(edges: Tensor) -> Tensor:
    infinite = edges.new_tensor([math.inf])
    return torch.cat([-infinite, edges, infinite])


def _histc(x: Tensor, bins: int, low: float, high: float, method: str = "logistic", temperature: float = 0.1) -> Tensor:
    if low == high == 0:
        inner = torch.linspace(float(x.min()), float(x.max()), bins + 1, dtype=x.dtype)[1:-1]
        return _counts(x.reshape(-1), _open(inner), method, temperature)
    return _counts(x.reshape(-1), torch.linspace(low, high, bins + 1, dtype=x.dtype), method, temperature)


def _histogram(x: Tensor, bins: Tensor, **options: Any) -> Tensor:
    weight = options.pop("weight", None)
    density = options.pop("density", False)
    counts = _counts(x.reshape(-1), bins, options.get("method", "logistic"), options["temperature"], weight)
    return counts / counts.sum() / bins.diff() if density else counts


def _bincount(index: Tensor, weights: Tensor | None = None, minlength: int = 0, **options: Any) -> Tensor:
    classes = max(minlength, int(index.round().max()) + 1)
    edges = _open(torch.arange(classes - 1, dtype=index.dtype) + 0.5)
    return _counts(index, edges, options.get("method", "logistic"), options["temperature"], weights)


def _unique(x: Tensor, support: Tensor, method: str = "logistic", temperature: float = 0.1) -> Tensor:
    return _counts(x, _open((support[:-1] + support[1:]) / 2), method, temperature)


def _nearest(x: Tensor, support: Tensor) -> Tensor:
    if not x.numel():
        return x.new_zeros(*x.shape[:-1], len(support))
    found = (x.unsqueeze(-1) - support.to(x)).abs().argmin(-1)
    return torch.nn.functional.one_hot(found, len(support)).sum(-2)


def _below(x: Tensor, boundaries: Tensor, method: str = "logistic", temperature: float = 0.1) -> Tensor:
    return _cdf((x.unsqueeze(-1) - boundaries.unsqueeze(-2)) / temperature, method).sum(-1)


def _running(x: Tensor, dim: int = -1, temperature: float = 0.1, sign: float = 1.0) -> Tensor:
    """From the definition: every prefix by its own logsumexp."""
    moved = x.movedim(dim, -1) * sign * 4 / temperature
    prefixes = [moved[..., : i + 1].logsumexp(-1) for i in range(moved.shape[-1])]
    return (torch.stack(prefixes, -1) * temperature / 4 * sign).movedim(-1, dim) if prefixes else x


def _calls(*args: Any, **options: Any) -> Callable[[torch.Generator], list[Call]]:
    return lambda generator: [Call(args, options)]


def _bad(*tail: Any, name: str = "x", method: bool = True) -> list[Bad]:
    x = torch.zeros(3)
    bad = [
        Bad((torch.arange(3), *tail), {}, TypeError, f"{name} must be a floating tensor, got torch.int64"),
        Bad((x, *tail), {"temperature": -1.0}, ValueError, "temperature must be >= 0, got -1.0"),
        Bad((x, *tail), {"temperature": torch.tensor(1)}, TypeError, "temperature must be a floating tensor"),
    ]
    return [*bad, Bad((x, *tail), {"method": "steep"}, ValueError, "method must be one of")] if method else bad


def _nan(*tail: Any, name: str = "x") -> Bad:
    return Bad((torch.tensor([0.0, torch.nan]), *tail), {}, ValueError, f"{name} must not hold NaN")


def _windows(x: Tensor, size: tuple[int, ...]) -> list[np.ndarray]:
    """The window of every entry, collected by scipy."""
    found: list[np.ndarray] = []

    def keep(window: np.ndarray) -> float:
        found.append(window.copy())
        return 0.0

    ndimage.generic_filter(x.numpy(), keep, size=size)
    return found


def _filtered(x: Tensor, rank: int, size: tuple[int, ...], temperature: float) -> Tensor:
    """A soft rank of each window by the matrix of softsort."""
    out = []
    for window in _windows(x, size):
        y = torch.from_numpy(window)
        width = temperature * y.std(correction=0)
        place = y.sort().values[rank]
        out.append((torch.softmax(-(place - y).abs() / width, 0) * y).sum())
    return torch.stack(out).view(x.shape)


def _rank_filter(x: Tensor, rank: int, size: Any) -> Tensor:
    return torch.from_numpy(ndimage.rank_filter(x.numpy(), rank, size=size))


CONTRACTS = [
    *[
        Contract(
            f"discrete.histc[{method}]",
            discrete.histc,
            lambda g, method=method: [
                Call((_X, 4, -2.0, 1.2), {"method": method, "temperature": 0.3}),
                Call((_X.reshape(5, 1), 3, 0.0, 0.0), {"method": method, "temperature": 0.2}),
            ],
            reference=_histc,
            hard=torch.histc,
            soft={"temperature": 1e-6},
            scalars={"temperature": 0.3},
            edges=Edges(lambda x: torch.histc(x, 3, -1, 1), lambda x: (x, 3, -1, 1)) if method == "logistic" else None,
            bad=[
                *_bad(),
                _nan(),
                Bad((_X, 0), {}, ValueError, "bins must be an integer >= 1, got 0"),
                Bad((_X, 2, 1.0, 0.0), {}, ValueError, "min must be at most max, got 1.0 and 0.0"),
                Bad((_X, 2, 0.0, math.inf), {}, ValueError, "max must be finite"),
                Bad((torch.tensor([math.inf]),), {}, ValueError, "x must be finite where the range"),
            ]
            if method == "logistic"
            else (),
            batched=False,
            why="it counts all entries, whatever their shape",
        )
        for method in _STEPS
    ],
    Contract(
        "discrete.histogram",
        discrete.histogram,
        lambda g: [
            Call((_X, _EDGES), {"temperature": 0.3}),
            Call((_X, _EDGES), {"temperature": 0.3}),
        ],
        reference=_histogram,
        hard=lambda x, bins: torch.histogram(x, bins).hist,
        soft=_SMALL,
        outputs=lambda result: result.hist,
        scalars={"temperature": 0.3},
        edges=Edges(
            lambda x: torch.histogram(x, _EDGES.to(x.dtype)).hist,
            lambda x: (x, _EDGES.to(x)),
            outputs=lambda result: result.hist,
        ),
        bad=[
            *_bad(4),
            _nan(4),
            Bad((_X, 0), {}, ValueError, "bins must be an integer >= 1, got 0"),
            Bad((_X, torch.tensor([1.0, 0.0])), {}, ValueError, "bins must be finite and must not decrease"),
            Bad((_X, torch.tensor([1.0])), {}, ValueError, "bins must be one dimension of at least 2 edges"),
            Bad((_X, _EDGES), {"range": (0.0, 1.0)}, ValueError, "range must be None where bins are edges"),
            Bad((_X, 3), {"range": (1.0, 0.0)}, ValueError, r"range\[0\] must be at most range\[1\]"),
            Bad((_X, 3), {"range": 1.0}, ValueError, "range must be two numbers, got 1.0"),
            Bad((_X, 3), {"weight": torch.zeros(2)}, ValueError, r"weight must have the shape of x \(5,\), got \(2,\)"),
        ],
        batched=False,
        why="it counts all entries, whatever their shape",
    ),
    Contract(
        "discrete.histogram[density]",
        lambda x, bins, weight, **options: discrete.histogram(x, bins, weight=weight, density=True, **options),
        lambda g: [Call((_X, _EDGES, torch.arange(5.0).double() + 1), {"temperature": 0.3})],
        reference=lambda x, bins, weight, **o: _histogram(x, bins, weight=weight, density=True, **o),
        hard=lambda x, bins, weight: torch.histogram(x, bins, weight=weight, density=True).hist,
        soft=_SMALL,
        outputs=lambda result: result.hist,
        bad=[
            Bad((_X, torch.tensor([0.0, 1.0, 1.0]), _X), {}, ValueError, "bins must be finite and increase strictly"),
        ],
        batched=False,
        large=(),
        why="it counts all entries, whatever their shape; the density of no entry within the bins is no number, and "
        "the sum of weights may overflow",
    ),
    *[
        Contract(
            f"discrete.bincount[{method}]",
            discrete.bincount,
            lambda g, method=method: [
                Call((_INDEX, _X.cos(), 6), {"method": method, "temperature": 0.3}),
                Call((_INDEX,), {"method": method, "temperature": 0.4}),
            ],
            reference=_bincount,
            hard=lambda index, weights=None, minlength=0, **_: torch.bincount(index.round().long(), weights, minlength),
            soft=_SMALL,
            scalars={"temperature": 0.3},
            edges=Edges(
                lambda x: _nearest(x, torch.arange(4.0)).to(x.dtype),
                domain=lambda x: 3 * torch.sigmoid(x),
                words=lambda x: {"minlength": 4},
            )
            if method == "logistic"
            else None,
            bad=[
                *_bad(name="index"),
                _nan(name="index"),
                Bad((torch.tensor([-1.0, 2.0]),), {}, ValueError, "index must be in .-1/2, 2147483648., got values"),
                Bad((torch.tensor([math.inf]),), {}, ValueError, "index must be in .-1/2, 2147483648., got values"),
                Bad((torch.tensor(1.0),), {}, ValueError, "index must have at least one dimension"),
                Bad((_INDEX, torch.zeros(2)), {}, ValueError, "weights must have the shape of index .5,., got .2,."),
                Bad((_INDEX,), {"minlength": -1}, ValueError, "minlength must be in 0.."),
            ]
            if method == "logistic"
            else (),
            large=(),
            compile=False,
            why="an index counts classes, of which there are not 1e8; as in torch their number depends on the values, "
            "which a compiled graph does not know",
            batched=False,
        )
        for method in _STEPS
    ],
    Contract(
        "discrete.unique",
        discrete.unique,
        lambda g: [
            Call((_X, _EDGES), {"temperature": 0.3}),
            Call((_X.reshape(5, 1), _EDGES[:1]), {"temperature": 0.3}),
        ],
        reference=_unique,
        hard=_nearest,
        soft=_SMALL,
        outputs=lambda result: result.counts,
        scalars={"temperature": 0.3},
        edges=Edges(
            lambda x: _nearest(x.clamp(-1e3, 1e3), _EDGES).to(x.dtype),
            lambda x: (x, _EDGES.to(x)),
            outputs=lambda result: result.counts,
        ),
        bad=[
            *_bad(_EDGES),
            _nan(_EDGES),
            Bad((torch.tensor(0.0), _EDGES), {}, ValueError, "x must have at least one dimension"),
            Bad((_X, torch.tensor([1.0, 1.0])), {}, ValueError, "support must be finite and increase strictly"),
            Bad((_X, torch.zeros(0)), {}, ValueError, "support must be one dimension of at least one value"),
            Bad((_X, torch.arange(3)), {}, TypeError, "support must be a floating tensor"),
        ],
    ),
    Contract(
        "discrete.bucketize",
        discrete.bucketize,
        lambda g: [
            Call((_X, _EDGES), {"temperature": 0.3}),
            Call((_X.reshape(5, 1), _EDGES[:0]), {"temperature": 0.3}),
        ],
        reference=_below,
        hard=torch.bucketize,
        soft=_SMALL,
        scalars={"temperature": 0.3},
        edges=Edges(lambda x: torch.bucketize(x, _EDGES.to(x.dtype)).to(x.dtype), lambda x: (x, _EDGES.to(x))),
        bad=[
            *_bad(_EDGES),
            _nan(_EDGES),
            Bad((_X, _EDGES.flip(0)), {}, ValueError, "boundaries must be finite and must not decrease"),
            Bad((_X, torch.zeros(2, 2)), {}, ValueError, r"boundaries must have one dimension, got shape \(2, 2\)"),
        ],
    ),
    Contract(
        "discrete.searchsorted",
        discrete.searchsorted,
        lambda g: [
            Call((_EDGES, _X), {"temperature": 0.3}),
            Call((torch.stack([_EDGES, _EDGES + 0.3]), torch.stack([_X, 2 * _X])), {"temperature": 0.3}),
        ],
        reference=lambda sequence, values, **options: _below(values, sequence, **options),
        hard=torch.searchsorted,
        soft=_SMALL,
        scalars={"temperature": 0.3},
        large=(1,),
        edges=Edges(
            lambda x: torch.searchsorted(_EDGES.to(x.dtype), x.contiguous()).to(x.dtype),
            lambda x: (_EDGES.to(x) if isinstance(x, Tensor) and x.is_floating_point() else _EDGES, x),
            place=1,
        ),
        bad=[
            Bad((_EDGES, torch.arange(3)), {}, TypeError, "values must be a floating tensor, got torch.int64"),
            Bad((_EDGES, _X), {"temperature": -1.0}, ValueError, "temperature must be >= 0, got -1.0"),
            Bad((_EDGES, _X), {"method": "steep"}, ValueError, "method must be one of"),
            Bad((_EDGES, torch.tensor([torch.nan])), {}, ValueError, "values must not hold NaN"),
            Bad((_EDGES.flip(0), _X), {}, ValueError, "sorted_sequence must be finite and must not decrease"),
            Bad((torch.zeros(2, 3), _X), {}, ValueError, "sorted_sequence must have the batch of values"),
            Bad((torch.tensor(0.0), _X), {}, ValueError, "sorted_sequence and values must have at least one dimension"),
        ],
        batched=False,
        why="the batch of a sequence is that of its values",
    ),
    *[
        Contract(
            f"discrete.{name}",
            getattr(discrete, name),
            lambda g: [
                Call((_X[:3],), {"temperature": 0.5}),  # two rounds of pairs; what follows repeats them
                Call((torch.randn(3, 2, generator=g, dtype=torch.float64), 0), {"temperature": 0.5}),
                Call((torch.zeros(2, 0, dtype=torch.float64),), {"temperature": 0.5}),
            ],
            reference=lambda x, dim=-1, temperature=0.1, sign=sign: _running(x, dim, temperature, sign),
            hard=lambda x, dim=-1, hard=hard: hard(x, dim).values,
            outputs=lambda result: result.values,
            scalars={"temperature": 0.5},
            edges=Edges(
                lambda x, dim, hard=hard: hard(x, dim).values, along=True, outputs=lambda result: result.values
            ),
            bad=[*_bad(method=False), Bad((_X, 1), {}, IndexError, "dim must be in")],
        )
        for name, sign, hard in (("cummax", 1.0, torch.cummax), ("cummin", -1.0, torch.cummin))
    ],
    Contract(
        "discrete.rank_filter",
        discrete.rank_filter,
        lambda g: [
            Call((_X[:3], 1, (3,)), {"temperature": 0.4}),
            Call((torch.randn(2, 3, generator=g, dtype=torch.float64), 4, (2, 3)), {"temperature": 0.4}),
        ],
        reference=_filtered,
        hard=_rank_filter,
        scalars={"temperature": 0.4},
        edges=Edges(lambda x: _rank_filter(x, 1, [1] * (x.ndim - 1) + [3]) if x.numel() else x, lambda x: (x, 1, 3)),
        bad=[
            *_bad(0, 3),
            Bad((_X, 0, 0), {}, ValueError, "size must be an integer >= 1, got 0"),
            Bad((_X, 0, (3, 3)), {}, ValueError, r"size must have one number a filtered dimension, got \(3, 3\)"),
            Bad((_X, 3, 3), {}, ValueError, "rank must be in -3..2, got 3"),
            Bad(
                (_X, 0, 3),
                {"mode": "constant"},
                ValueError,
                "mode must be one of 'reflect', 'nearest',",
            ),
            Bad((torch.tensor([0.0, torch.nan]), 0, 3), {}, ValueError, "x must not hold NaN"),
        ],
    ),
    Contract(
        "discrete.median_filter",
        discrete.median_filter,
        lambda g: [
            Call((_X[:3], (3,)), {"temperature": 0.4}),
            Call((torch.randn(2, 3, generator=g, dtype=torch.float64), (2, 3)), {"temperature": 0.4}),
        ],
        reference=lambda x, size, temperature: _filtered(x, math.prod(size) // 2, size, temperature),
        hard=lambda x, size: torch.from_numpy(ndimage.median_filter(x.numpy(), size=size)),
        scalars={"temperature": 0.4},
        edges=Edges(lambda x: _rank_filter(x, 1, [1] * (x.ndim - 1) + [3]) if x.numel() else x, lambda x: (x, 3)),
        bad=[*_bad(3), Bad((_X, 0), {}, ValueError, "size must be an integer >= 1, got 0")],
    ),
]
