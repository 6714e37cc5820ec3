"""Contracts of the orderings: each method against its definition, written with matrices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pullback import discrete
from tests.contracts.contract import Bad, Call, Contract, Edges
from tests.contracts.law import floating

T = 0.5


def _samples(generator: torch.Generator) -> list[Call]:
    return [
        Call((torch.randn(5, generator=generator, dtype=torch.float64),)),
        Call((torch.randn(2, 3, generator=generator, dtype=torch.float64) * 3 + 1,)),
        Call((torch.randn(1, generator=generator, dtype=torch.float64),)),
    ]


def _with_k(generator: torch.Generator) -> list[Call]:
    return [Call((c.args[0], min(2, c.args[0].shape[-1]))) for c in _samples(generator)]


def _with_payload(generator: torch.Generator) -> list[Call]:
    return [
        Call((c.args[0], torch.randn(*c.args[0].shape, 2, generator=generator, dtype=torch.float64)))
        for c in _samples(generator)
    ]


def width(x: Tensor) -> Tensor:
    spread = x.std(-1, correction=0, keepdim=True)
    return T * torch.where(spread > 0, spread, 1.0)


def softsort(x: Tensor) -> Tensor:
    y = x / width(x)
    return torch.softmax(-(y.sort(-1).values.unsqueeze(-1) - y.unsqueeze(-2)).abs(), -1)


def neuralsort(x: Tensor) -> Tensor:
    n = x.shape[-1]
    y = x / width(x)
    b = (y.unsqueeze(-1) - y.unsqueeze(-2)).abs().sum(-1)
    rows = torch.arange(1, n + 1, dtype=x.dtype)
    descending = torch.softmax((n + 1 - 2 * rows).unsqueeze(-1) * y.unsqueeze(-2) - b.unsqueeze(-2), -1)
    return descending.flip(-2)


def sinkhorn(x: Tensor) -> Tensor:
    y = x / width(x)
    log_k = -(y.sort(-1).values.unsqueeze(-1) - y.unsqueeze(-2)).abs()
    g = torch.zeros_like(y)
    for _ in range(500):
        f = -torch.logsumexp(log_k + g.unsqueeze(-2), -1)
        g = -torch.logsumexp(log_k + f.unsqueeze(-1), -2)
    return torch.exp(f.unsqueeze(-1) + log_k + g.unsqueeze(-2))


def sparse(logits: Tensor, power: float) -> Tensor:
    """Rows ``max(logits / power - threshold, 0)^power`` that sum to 1, their threshold by bisection."""
    z = logits / power
    low, high = z.amax(-1, keepdim=True) - 1, z.amax(-1, keepdim=True)
    for _ in range(100):
        middle = (low + high) / 2
        heavy = (z - middle).clamp(min=0).pow(power).sum(-1, keepdim=True) > 1
        low, high = torch.where(heavy, middle, low), torch.where(heavy, high, middle)
    return (z - low).clamp(min=0).pow(power)


def softsort_c1(x: Tensor) -> Tensor:
    y = x / width(x)
    return sparse(-(y.sort(-1).values.unsqueeze(-1) - y.unsqueeze(-2)).abs(), 2.0)


def neuralsort_c0(x: Tensor) -> Tensor:
    n = x.shape[-1]
    y = x / width(x)
    b = (y.unsqueeze(-1) - y.unsqueeze(-2)).abs().sum(-1)
    rows = torch.arange(1, n + 1, dtype=x.dtype)
    return sparse((2 * rows - n - 1).unsqueeze(-1) * y.unsqueeze(-2) - b.unsqueeze(-2), 1.0)


MATRICES: dict[str, Callable[[Tensor], Tensor]] = {
    "softsort": softsort,
    "neuralsort": neuralsort,
    "sinkhorn": sinkhorn,
    "softsort_c1": softsort_c1,
    "neuralsort_c0": neuralsort_c0,
}


def isotonic(v: Tensor) -> Tensor:
    """Increasing regression by the minimax formula: max over left ends of min over right ends of the mean."""
    n = v.shape[-1]
    out = torch.empty_like(v)
    for i in range(n):
        lows = [torch.stack([v[..., a : b + 1].mean(-1) for b in range(i, n)]).amin(0) for a in range(i + 1)]
        out[..., i] = torch.stack(lows).amax(0)
    return out


def entropic(z: Tensor, w: Tensor) -> Tensor:
    """The same with logsumexp(z) - logsumexp(w) of a block for its mean."""
    n = z.shape[-1]
    out = torch.empty_like(z)
    for i in range(n):
        lows = [
            torch.stack([z[..., a : b + 1].logsumexp(-1) - w[..., a : b + 1].logsumexp(-1) for b in range(i, n)]).amin(
                0
            )
            for a in range(i + 1)
        ]
        out[..., i] = torch.stack(lows).amax(0)
    return out


def _places(x: Tensor) -> Tensor:
    return torch.arange(x.shape[-1], dtype=x.dtype).expand_as(x)


def _unit(x: Tensor) -> Tensor:
    """The spread of places over the temperature's width."""
    n = x.shape[-1]
    return (torch.tensor((n * n - 1) / 12).sqrt() if n > 1 else torch.tensor(1.0)).to(x.dtype) / width(x)


def isotonic_sort(x: Tensor) -> Tensor:
    n = x.shape[-1]
    spread_of_places = ((n * n - 1) / 12) ** 0.5 if n > 1 else 1.0
    z = _places(x) * (width(x) / T**2) / spread_of_places
    return z - isotonic(z - x.sort(-1).values)


def isotonic_rank(x: Tensor) -> Tensor:
    z = x * _unit(x)
    ordered, order = z.sort(-1)
    return torch.zeros_like(x).scatter(-1, order, ordered - isotonic(ordered - _places(x)))


def isotonic_kl_sort(x: Tensor) -> Tensor:
    n, spread = x.shape[-1], width(x) / T
    spread_of_places = ((n * n - 1) / 12) ** 0.5 if n > 1 else 1.0
    z, w = _places(x) / (T * spread_of_places), -(x.sort(-1).values / spread).flip(-1)
    return -spread * (z - entropic(z, w)).flip(-1)


def isotonic_kl_rank(x: Tensor) -> Tensor:
    ordered, order = (x * _unit(x)).sort(-1)
    projected = ordered - entropic(ordered, (_places(x) + 1).log())
    return torch.zeros_like(x).scatter(-1, order, projected.exp() - 1)


def _sort_reference(method: str) -> Callable[..., Tensor]:
    if method == "isotonic":
        return isotonic_sort
    if method == "isotonic_kl":
        return isotonic_kl_sort
    return lambda x: (MATRICES[method](x) @ x.unsqueeze(-1)).squeeze(-1)


def _rank_reference(method: str) -> Callable[..., Tensor]:
    if method == "isotonic":
        return isotonic_rank
    if method == "isotonic_kl":
        return isotonic_kl_rank
    if method == "softsort_c1":
        return lambda x: (
            sparse(-(x.unsqueeze(-1) - x.sort(-1).values.unsqueeze(-2)).abs() / width(x).unsqueeze(-1), 2.0)
            @ torch.arange(x.shape[-1], dtype=x.dtype)
        )
    if method == "softsort":
        return lambda x: (
            torch.softmax(-(x.unsqueeze(-1) - x.sort(-1).values.unsqueeze(-2)).abs() / width(x).unsqueeze(-1), -1)
            @ torch.arange(x.shape[-1], dtype=x.dtype)
        )
    return lambda x: (MATRICES[method](x) * _places(x).unsqueeze(-1)).sum(-2) / MATRICES[method](x).sum(-2)


def _topk_reference(method: str) -> Callable[..., Tensor]:
    return lambda x, k: _sort_reference(method)(x).flip(-1)[..., :k]


def _product_reference(method: str) -> Callable[..., Tensor]:
    return lambda x, v: MATRICES[method](x) @ v


def _last_row(method: str) -> Callable[..., Tensor]:
    return lambda x: MATRICES[method](x)[..., -1, :]


def _row(matrix: Tensor, place: float) -> Tensor:
    low = int(place)
    return torch.lerp(matrix[..., low, :], matrix[..., min(low + 1, matrix.shape[-1] - 1), :], place - low)


def _hard_rank(x: Tensor) -> Tensor:
    return x.argsort(-1).argsort(-1)


def _one_hot_argsort(x: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(x.argsort(-1), x.shape[-1])


def _hard_mask(x: Tensor, k: int) -> Tensor:
    order = x.argsort(stable=True, dim=-1, descending=True)  # of equal entries the first
    return torch.zeros_like(x).scatter(-1, order[..., :k], 1.0)


def _matrix(x: Tensor, dim: int) -> Tensor:
    return torch.eye(x.shape[dim], dtype=x.dtype)[x.movedim(dim, -1).argsort(-1)]


def _one_of(x: Tensor, dim: int, largest: bool = True) -> Tensor:
    """The mask of the largest, or of the smallest."""
    return torch.zeros_like(x).scatter(dim, x.topk(1, dim, largest).indices, 1.0) if x.numel() else x


def _lone(x: Tensor) -> tuple[Tensor, int]:
    return x, 1


def _values(result: Any) -> Tensor:
    return result.values


BAD = (
    Bad((torch.tensor([1, 2]),), {}, TypeError, "x must be a floating tensor, got torch.int64"),
    Bad((torch.tensor([1.0, torch.nan]),), {}, ValueError, "x must not hold NaN"),
    Bad((torch.tensor([1.0, torch.nan]),), {"temperature": 0.0}, ValueError, "x must not hold NaN"),
    Bad((torch.zeros(2),), {"temperature": -1.0}, ValueError, "temperature must be >= 0, got -1.0"),
    Bad((torch.zeros(2),), {"temperature": torch.tensor(-1.0)}, ValueError, "temperature must be >= 0, got -1.0"),
    Bad((torch.zeros(2),), {"temperature": torch.tensor(1)}, TypeError, "temperature must be a floating tensor"),
    Bad((torch.zeros(2),), {"dim": 1}, IndexError, "dim must be in"),
    Bad((torch.zeros(2),), {"scale": "range"}, ValueError, "scale must be 'std' or None, got 'range'"),
)
UNKNOWN = Bad((torch.zeros(2),), {"method": "sotfsort"}, ValueError, "method must be one of .*did you mean 'softsort'")
_BAD_PLACES = [
    Bad((torch.zeros(3),), {"places": (0, 4)}, ValueError, r"places\[1\] must be in 0..3, got 4"),
    Bad((torch.zeros(3),), {"places": (2, 1)}, ValueError, r"places\[0\] must be in 0..1, got 2"),
    Bad((torch.zeros(3),), {"places": 2}, ValueError, "places must be two integers, got 2"),
]
NO_MATRIX = Bad((torch.zeros(2),), {"method": "isotonic"}, ValueError, "method must be one of 'softsort', .*'network'")


NO_K = "k must be in"
_EXTREMES = {"max": torch.max, "min": torch.min, "median": torch.median}


def _add_k(bads: tuple[Bad, ...], k: int = 1) -> tuple[Bad, ...]:
    return tuple(Bad((*b.args, k), b.kwargs, b.error, b.match) for b in bads)


METHODS = tuple(name for name in discrete.ORDERINGS if "_c" not in name)
LIMITED = ("softsort_c1", "neuralsort_c0", "network_c2")
"""Of the methods of limited smoothness one a family; the others differ in a number or in a step."""
WITH_MATRIX = tuple(name for name in METHODS if discrete.ORDERINGS[name].matrix is not None)
_TABLE = [
    *(
        Contract(
            f"discrete.sort[{m}]",
            partial(discrete.sort, **{"method": m, "temperature": T}),
            _samples,
            reference=None if "network" in m else _sort_reference(m),
            hard=lambda x: x.sort(-1).values,
            outputs=_values,
            edges=Edges(lambda x, dim: x.sort(dim).values, along=True, outputs=_values) if m == METHODS[0] else None,
            bad=(*BAD, UNKNOWN),
        )
        for m in (*METHODS, *LIMITED)
    ),
    *(
        Contract(
            f"discrete.rank[{m}]",
            partial(discrete.rank, method=m, temperature=T),
            _samples,
            reference=None if "network" in m else _rank_reference(m),
            hard=_hard_rank,
            edges=Edges(lambda x, dim: x.argsort(dim).argsort(dim).to(x.dtype), along=True)
            if m == METHODS[0]
            else None,
            bad=(*BAD, UNKNOWN),
        )
        for m in (*METHODS, "neuralsort_c0")
    ),
    *(
        Contract(
            f"discrete.argsort[{m}]",
            partial(discrete.argsort, method=m, temperature=T),
            _samples,
            reference=MATRICES.get(m),
            hard=_one_hot_argsort,
            edges=Edges(_matrix, along=True) if m == METHODS[0] else None,
            bad=(*BAD, UNKNOWN, NO_MATRIX, *_BAD_PLACES),
        )
        for m in WITH_MATRIX
    ),
    Contract(
        "discrete.permutation_matrix",
        partial(discrete.permutation_matrix, temperature=T),
        _samples,
        reference=softsort,
        hard=_one_hot_argsort,
        edges=Edges(_matrix, along=True),
        bad=(*(b for b in BAD if "dim" not in b.kwargs), UNKNOWN, NO_MATRIX),
    ),
    *(
        Contract(
            f"discrete.topk[{m}]",
            partial(discrete.topk, method=m, temperature=T),
            _with_k,
            reference=None if m == "network" else _topk_reference(m),
            hard=lambda x, k: x.topk(k).values,
            outputs=_values,
            edges=Edges(lambda x, dim: x.topk(1, dim).values, _lone, along=True, empty=NO_K, outputs=_values)
            if m == METHODS[0]
            else None,
            bad=(
                *_add_k((*BAD, UNKNOWN)),
                Bad((torch.zeros(2), 3), {}, ValueError, r"k must be in 0\.\.2, got 3"),
                Bad((torch.zeros(2), -1), {}, ValueError, r"k must be in 0\.\.2, got -1"),
                Bad((torch.zeros(2), 1.0), {}, TypeError, "k must be an integer, got float"),
            ),
        )
        for m in METHODS
    ),
    *(
        Contract(
            f"discrete.sort_by[{m}]",
            partial(discrete.sort_by, method=m, temperature=T),
            _with_payload,
            reference=_product_reference(m) if m in MATRICES else None,
            hard=lambda x, v: v.take_along_dim(x.argsort(-1).unsqueeze(-1), -2),
            batched=False,
            why="the payload needs the batch too",
            edges=Edges(
                lambda x, dim: torch.ones_like(x), lambda x: (x, torch.ones_like(x, dtype=floating(x))), along=True
            )
            if m == METHODS[0]
            else None,
            bad=(
                Bad((torch.zeros(2), torch.zeros(3)), {}, ValueError, r"values must have the shape of the keys \(2,\)"),
                Bad((torch.zeros(2), torch.tensor([1, 2])), {}, TypeError, "values must be a floating tensor"),
            ),
        )
        for m in WITH_MATRIX
    ),
    *(
        Contract(
            f"discrete.argmax[{m}]",
            partial(discrete.argmax, method=m, temperature=T),
            _samples,
            reference=_last_row(m) if m in MATRICES else None,
            hard=lambda x: torch.nn.functional.one_hot(x.argmax(-1), x.shape[-1]),
            edges=Edges(_one_of, along=True, empty="x must not be empty along dim") if m == METHODS[0] else None,
            bad=(*BAD, UNKNOWN, Bad((torch.zeros(0),), {}, ValueError, "x must not be empty along dim -1")),
        )
        for m in METHODS
    ),
    Contract(
        "discrete.argmin",
        partial(discrete.argmin, temperature=T),
        _samples,
        reference=lambda x: torch.softmax(-x / width(x), -1),
        hard=lambda x: torch.nn.functional.one_hot(x.argmin(-1), x.shape[-1]),
        edges=Edges(lambda x, dim: _one_of(x, dim, False), along=True, empty="x must not be empty along dim"),
        bad=BAD,
    ),
    *(
        Contract(
            f"discrete.{name}",
            partial(getattr(discrete, name), **{"temperature": T, **options}),
            _samples,
            reference=lambda x, p=place: _row(softsort(x), p(x.shape[-1])),
            hard=lambda x, p=place: _row(_one_hot_argsort(x).to(x.dtype), p(x.shape[-1])),
            edges=Edges(
                lambda x, dim, p=place: _row(_matrix(x, dim), p(x.shape[dim])).movedim(-1, dim) if x.ndim else x + 1,
                along=True,
                empty="x must not be empty along dim",
            ),
            bad=(*BAD, UNKNOWN, NO_MATRIX, Bad((torch.zeros(0),), {}, ValueError, "x must not be empty along dim -1")),
        )
        for name, options, place in (
            ("argmedian", {}, lambda n: (n - 1) // 2),
            ("argquantile", {"q": 0.3}, lambda n: 0.3 * (n - 1)),
        )
    ),
    *(
        Contract(
            f"discrete.soft_topk[{m}]",
            partial(discrete.soft_topk, method=m, temperature=T),
            _with_k,
            hard=_hard_mask,
            edges=Edges(_one_of, _lone, along=True, empty=NO_K) if m == "sinkhorn" else None,
            bad=(
                *_add_k(BAD),
                Bad((torch.zeros(2), 3), {}, ValueError, r"k must be in 0\.\.2, got 3"),
                Bad(
                    (torch.zeros(2), 1), {"method": "softsort"}, ValueError, "one of 'sinkhorn', 'network', 'isotonic'"
                ),
            ),
        )
        for m in ("sinkhorn", "network", "isotonic")
    ),
    Contract(
        "discrete.partition",
        partial(discrete.partition, temperature=T),
        _with_k,
        reference=lambda x, k: (
            discrete.soft_topk(-x, k, temperature=T),
            1 - discrete.soft_topk(-x, k, temperature=T),
        ),
        hard=lambda x, k: (_hard_mask(-x, k), 1 - _hard_mask(-x, k)),
        edges=Edges(
            lambda x, dim: _one_of(x, dim, False), _lone, along=True, empty=NO_K, outputs=lambda parts: parts.lower
        ),
    ),
    *(
        Contract(
            f"discrete.{name}",
            partial(getattr(discrete, name), temperature=T),
            _samples,
            reference=lambda x, p=place: _sort_reference("softsort")(x)[..., p(x.shape[-1])],
            hard=hard,
            edges=Edges(
                lambda x, dim, name=name: _EXTREMES[name](x, dim).values,
                along=True,
                empty="x must not be empty along dim",
            ),
            bad=(*BAD, Bad((torch.zeros(2, 0),), {}, ValueError, "x must not be empty along dim -1")),
        )
        for name, place, hard in (
            ("max", lambda n: n - 1, lambda x: x.amax(-1)),
            ("min", lambda n: 0, lambda x: x.amin(-1)),
            ("median", lambda n: (n - 1) // 2, lambda x: x.median(-1).values),
        )
    ),
    Contract(
        "discrete.kthvalue",
        partial(discrete.kthvalue, temperature=T),
        _with_k,
        hard=lambda x, k: x.kthvalue(k).values,
        edges=Edges(lambda x, dim: x.kthvalue(1, dim).values, _lone, along=True, empty="x must not be empty along dim"),
        bad=(Bad((torch.zeros(2), 0), {}, ValueError, r"k must be in 1\.\.2, got 0"),),
    ),
    Contract(
        "discrete.quantile",
        lambda x, **kw: discrete.quantile(x, 0.3, **{"dim": -1, "temperature": T, **kw}),
        _samples,
        hard=lambda x: x.quantile(0.3, -1),
        edges=Edges(
            lambda x, dim: x.double().quantile(0.3, dim) if x.numel() else x.sum(dim),
            along=True,
            empty="x must not be empty along dim",
        ),
        bad=(Bad((torch.zeros(2),), {"interpolation": "cubic"}, ValueError, "interpolation must be one of"),),
    ),
    *(
        Contract(
            f"discrete.project_permutahedron[{r}]",
            partial(discrete.project_permutahedron, regularization=r),
            lambda g: [
                Call(
                    (torch.randn(5, generator=g, dtype=torch.float64), torch.randn(5, generator=g, dtype=torch.float64))
                )
            ],
            reference=reference,
            edges=Edges(
                lambda z, dim: 0 * z,
                lambda z: (z, torch.zeros_like(z, dtype=floating(z))),
                along=True,
                domain=torch.sigmoid,
            )
            if r == "l2"
            else None,
            bad=(
                Bad((torch.zeros(2), torch.zeros(3)), {}, ValueError, "z and w must have the same last dimension"),
                Bad((torch.zeros(1), torch.full((1,), torch.inf)), {}, ValueError, "w must be finite"),
                Bad(
                    (torch.zeros(1), torch.zeros(1)), {"regularization": "l1"}, ValueError, "regularization must be one"
                ),
            ),
        )
        for r, reference in (
            ("l2", lambda z, w: _unsorted(z, z.sort(-1).values - isotonic(z.sort(-1).values - w.sort(-1).values))),
            ("kl", lambda z, w: _unsorted(z, z.sort(-1).values - entropic(z.sort(-1).values, w.sort(-1).values))),
        )
    ),
]


def _unsorted(z: Tensor, by_place: Tensor) -> Tensor:
    return torch.zeros_like(z).scatter(-1, z.argsort(-1), by_place)


_BAD_PLACES = [
    Bad((torch.zeros(3),), {"places": (0, 4)}, ValueError, r"places\[1\] must be in 0..3, got 4"),
    Bad((torch.zeros(3),), {"places": (2, 1)}, ValueError, r"places\[0\] must be in 0..1, got 2"),
    Bad((torch.zeros(3),), {"places": 2}, ValueError, "places must be two integers, got 2"),
]

CONTRACTS = [c if c.name.startswith("discrete.project") else replace(c, scalars={"temperature": T}) for c in _TABLE]
