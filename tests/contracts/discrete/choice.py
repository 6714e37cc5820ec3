"""Contracts of the estimators of a sampled choice, of the sparse softmaxes and of lookup by a soft index."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pullback import discrete
from tests.contracts.contract import Bad, Call, Contract, Edges, Exempt
from tests.contracts.law import floating

_INT = torch.arange(3)
_T = {"temperature": 0.7}
_RANDOM = "the draws of a batch are not those of its rows; vmap is tested with randomness='different'"


def _seeded(block: Callable[..., Any], seed: int = 0) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return block(*args, generator=torch.Generator().manual_seed(seed), **kwargs)

    return call


def _logits(generator: torch.Generator) -> Tensor:
    return torch.randn(3, 4, generator=generator, dtype=torch.float64)


def _noise(shape: tuple[int, ...]) -> Tensor:
    """The Gumbel noise of the seeded blocks, from the definition."""
    exponential = torch.empty(shape, dtype=torch.float64).exponential_(generator=torch.Generator().manual_seed(0))
    return -torch.log(exponential)


def _bad_logits(name: str = "logits") -> list[Bad]:
    x = torch.zeros(3)
    return [
        Bad((_INT,), {}, TypeError, f"{name} must be a floating tensor, got torch.int64"),
        Bad((x,), {"temperature": -1.0}, ValueError, "temperature must be >"),
        Bad((x,), {"temperature": torch.tensor(-1.0)}, ValueError, "temperature must be >.* 0, got -1.0"),
        Bad(
            (x,), {"temperature": torch.tensor(1)}, TypeError, "temperature must be a floating tensor, got torch.int64"
        ),
    ]


_BAD_OUTCOME = [
    Bad((torch.zeros(2, 3),), {"outcome": torch.tensor([0, 3])}, ValueError, r"outcome must be in 0..2, got 0..3"),
    Bad((torch.zeros(2, 3),), {"outcome": torch.tensor([0])}, ValueError, r"outcome must have .* \(2,\), got \(1,\)"),
    Bad((torch.zeros(2, 3),), {"outcome": torch.zeros(2)}, TypeError, "outcome must hold integers, got torch.float32"),
    Bad((torch.tensor([0.0, -torch.inf]),), {"outcome": torch.tensor(1)}, ValueError, "must not be a class"),
]
_BAD_ROW = [
    *_BAD_OUTCOME,
    Bad((torch.tensor([[0.0, 1.0], [torch.nan, 1.0]]),), {}, ValueError, r"logits must have a finite .* in row \(1,\)"),
    Bad((torch.full((2,), -torch.inf),), {}, ValueError, "logits must have a finite largest entry"),
    Bad((torch.zeros(2, 0),), {}, ValueError, "logits must have at least one class"),
    Bad((torch.zeros(2),), {"dim": 1}, IndexError, "dim must be in"),
]


def _exact(logits: Tensor) -> Tensor:
    return torch.nn.functional.one_hot((logits + _noise(tuple(logits.shape))).argmax(-1), logits.shape[-1]).double()


def _inverted(logits: Tensor) -> Tensor:
    """The seeded one-hot sample by inversion: class i where the uniform falls between the sums up to i - 1 and i."""
    uniform = torch.rand(*logits.shape[:-1], 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    index = (torch.softmax(logits, -1).cumsum(-1) <= uniform).sum(-1)
    return torch.nn.functional.one_hot(index, logits.shape[-1]).double()


def _simplex_projection(x: Tensor, dim: int = -1, **_: Any) -> Tensor:
    """Sparsemax by trying every support size: the largest k whose k-th entry stays positive (Martins and Astudillo)."""
    rows = []
    for row in x.movedim(dim, -1).reshape(-1, x.shape[dim]):
        ordered = sorted(row.tolist(), reverse=True)
        size = max(k for k in range(1, len(ordered) + 1) if 1 + k * ordered[k - 1] > sum(ordered[:k]))
        rows.append((row - (sum(ordered[:size]) - 1) / size).clamp(min=0))
    return torch.stack(rows).reshape(x.movedim(dim, -1).shape).movedim(-1, dim)


def _normmax_by_root(x: Tensor, alpha: float = 2.0, temperature: float = 1.0, **_: Any) -> Tensor:
    """The defining equation solved by scipy, row by row."""
    from scipy.optimize import brentq

    rows = []
    for row in (x / temperature).reshape(-1, x.shape[-1]):
        z = row.numpy()
        q = lambda t, z=z: (z - t).clip(0) ** (1 / (alpha - 1))  # noqa: E731
        root = brentq(lambda t, q=q: (q(t) ** alpha).sum() - 1, z.max() - 1 - 1e-9, z.max(), xtol=1e-14)
        rows.append(torch.from_numpy(q(root) / q(root).sum()))
    return torch.stack(rows).reshape(x.shape)


def _entmax_by_root(x: Tensor, alpha: float = 1.5, temperature: float = 1.0, **_: Any) -> Tensor:
    """The defining equation solved by scipy, row by row."""
    from scipy.optimize import brentq

    rows = []
    for row in (x / temperature).reshape(-1, x.shape[-1]):
        z = (alpha - 1) * row.numpy()
        if alpha > 1:
            low, high, power = z.max() - 1, z.max(), lambda t, z=z: (z - t).clip(0) ** (1 / (alpha - 1))
        else:
            low, high = z.min() - len(row) ** (1 - alpha), z.min() - 1
            power = lambda t, z=z: (z - t) ** (1 / (alpha - 1))  # noqa: E731
        root = brentq(lambda t, power=power: power(t).sum() - 1, low - 1e-9, high + 1e-9 * (alpha < 1), xtol=1e-14)
        rows.append(torch.from_numpy(power(root)))
    return torch.stack(rows).reshape(x.shape)


def _sparse_calls(*tail: Any, **kwargs: Any) -> Callable[[torch.Generator], list[Call]]:
    def samples(generator: torch.Generator) -> list[Call]:
        x = torch.randn(3, 5, generator=generator, dtype=torch.float64)
        return [Call((x, *tail), kwargs), Call((x[0] * 2, *tail), kwargs)]

    return samples


def _one_hot_max(x: Tensor, *_: Any) -> Tensor:
    return torch.nn.functional.one_hot(x.argmax(-1), x.shape[-1])


_INDEX = torch.tensor([0.2, 1.3, 2.8, 1.7], dtype=torch.float64)
_TABLE = torch.linspace(-1.0, 2.0, 12, dtype=torch.float64).square().reshape(4, 3)


def _gaussian(index: Tensor, n: int, temperature: float, **_: Any) -> Tensor:
    weights = torch.stack([torch.exp(-2 * (k - index) ** 2 / temperature) for k in range(n)], -1)
    return weights / weights.sum(-1, keepdim=True)


def _hat(index: Tensor, n: int, temperature: float, **_: Any) -> Tensor:
    return torch.stack([(1 - (k - index).abs()).clamp(min=0) for k in range(n)], -1)


def _chosen(scores: Tensor, values: Tensor, temperature: float, features: int = 0) -> Tensor:
    weights = torch.exp(scores / temperature)
    weights = weights / weights.sum(-1, keepdim=True)
    if features:
        return torch.einsum("bn,bnf->bf", weights, values)
    return torch.einsum("bn,n->b", weights, values)


def _largest(x: Tensor, dim: int) -> Tensor:
    return torch.zeros_like(x).scatter(dim, x.argmax(dim, keepdim=True), 1.0) if x.numel() else x


def _slope(x: Tensor) -> Tensor:
    return torch.linspace(1, 2, x.shape[-1], dtype=floating(x), device=x.device)


def _hot(index: Tensor, n: int) -> Tensor:
    return torch.eye(n, dtype=index.dtype)[index.round().clamp(0, n - 1).long()]


def _sampled() -> Edges:
    """Of the samplers: a row without a finite largest logit is no distribution."""
    return Edges(
        _largest,
        along=True,
        empty="logits must have at least one class",
        refuses=(lambda x: bool((x == torch.inf).any()), "logits must have a finite largest"),
        outputs=lambda result: result,
    )


def _has_no_largest(x: Tensor, options: Mapping[str, Any]) -> bool:
    """A row without a finite largest entry is no distribution: documented as NaN."""
    return bool((x == torch.inf).any())


def _is_mean_of_opposites(x: Tensor, options: Mapping[str, Any]) -> bool:
    """All entries have a weight > 0, and the mean of opposite infinities is no number."""
    soft = options in ({}, {"method": "softmax"})
    return soft and bool((x == torch.inf).any() and (x == -torch.inf).any())


_KERNELS = {"softmax": _gaussian, "linear": _hat}

CONTRACTS = [
    Contract(
        "discrete.straight_through",
        discrete.straight_through,
        lambda g: [Call((_INT, torch.rand(3, generator=g, dtype=torch.float64)))],
        edges=Edges(lambda x: (x > 0).to(x.dtype), lambda x: (x > 0, x), place=1),
        bad=[
            Bad((_INT, _INT), {}, TypeError, "soft must be a floating tensor, got torch.int64"),
            Bad((_INT, torch.zeros(2)), {}, ValueError, "hard and soft must agree"),
        ],
        gradcheck=False,
        gradgradcheck=False,
        batched=False,
        vmap=False,
        half=False,
        why="its values and its gradient belong to different functions, by design: tests/discrete/test_sampling.py",
    ),
    Contract(
        "discrete.gumbel_softmax",
        _seeded(discrete.gumbel_softmax),
        lambda g: [Call((_logits(g),), {"temperature": 0.7}), Call((_logits(g).T,), {"temperature": 0.7, "dim": 0})][
            :1
        ],
        reference=lambda x, temperature: torch.softmax((x + _noise(tuple(x.shape))) / temperature, -1),
        hard=_exact,
        scalars=_T,
        edges=_sampled(),
        bad=[*_bad_logits(), *_BAD_ROW],
        batched=False,
        vmap=False,
        half=False,
        why=_RANDOM + "; float32 noise is another draw than float64 noise",
    ),
    Contract(
        "discrete.reinmax[probabilities]",
        _seeded(discrete.reinmax),
        lambda g: [Call((_logits(g),), {"temperature": 1.3})],
        reference=lambda x, temperature: torch.exp(x) / torch.exp(x).sum(-1, keepdim=True),
        outputs=lambda sample: sample.probabilities,
        edges=_sampled(),
        bad=[
            *_bad_logits(),
            *_BAD_ROW,
            Bad((torch.zeros(2),), {"temperature": 0.0}, ValueError, "temperature must be > 0"),
        ],
        vmap=False,
        why=_RANDOM,
    ),
    *[
        Contract(
            f"discrete.categorical[{method}]",
            _seeded(discrete.categorical),
            lambda g, method=method: [Call((_logits(g),), {"method": method, "temperature": 1.3})],
            reference=lambda x, method, temperature: (
                _inverted(x) if method in ("straight_through", "reinmax") else _exact(x)
            ),
            edges=_sampled() if method == "gumbel" else None,
            bad=[
                *_bad_logits(),
                *_BAD_ROW,
                Bad((torch.zeros(2),), {"temperature": 0.0}, ValueError, "temperature must be > 0"),
                Bad((torch.zeros(2),), {"method": "gumble"}, ValueError, "method must be one of 'gumbel', 'straight_"),
            ],
            gradcheck=False,
            gradgradcheck=False,
            forward_mode=method != "imle",
            batched=False,
            vmap=False,
            half=False,
            why=_RANDOM
            + "; the value is constant between jumps, the gradient that of the estimator (test_estimators), "
            "for imle no linear function of the cotangent",
        )
        for method in discrete.CATEGORICAL_METHODS
    ],
    Contract(
        "discrete.bernoulli",
        _seeded(discrete.bernoulli),
        lambda g: [Call((torch.rand(3, 4, generator=g, dtype=torch.float64) * 0.5 + 0.2,), {"temperature": 0.5})],
        scalars=_T,
        large=(),
        hard=lambda p: torch.rand(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(0)) < p,
        edges=Edges(lambda p: (p > 0.5).to(p.dtype), domain=torch.sigmoid),
        bad=[
            *_bad_logits("p"),
            Bad((torch.tensor([0.5, 1.5]),), {}, ValueError, r"p must be in \[0, 1\], got minimum 0.5 and maximum 1.5"),
            Bad((torch.tensor([0.5]),), {"method": "gumbel"}, ValueError, "method must be one of 'concrete'"),
            Bad((torch.tensor([0.5]),), {"outcome": torch.tensor([0.5])}, TypeError, "outcome must hold booleans or"),
            Bad((torch.tensor([0.5]),), {"outcome": torch.tensor(1)}, ValueError, r"outcome must have the shape of p"),
            Bad((torch.tensor([0.5]),), {"outcome": torch.tensor([2])}, ValueError, "outcome must be 0 or 1"),
            Bad((torch.tensor([0.0]),), {"outcome": torch.tensor([True])}, ValueError, "must not be of probability 0"),
        ],
        batched=False,
        vmap=False,
        half=False,
        why=_RANDOM + "; a float32 uniform is another draw than a float64 uniform; probabilities are not large",
    ),
    Contract(
        "discrete.multinomial",
        _seeded(discrete.multinomial),
        lambda g: [Call((torch.rand(3, 4, generator=g, dtype=torch.float64) + 0.1, 2), {"temperature": 0.8})],
        scalars=_T,
        edges=Edges(
            lambda p, dim: _largest(p, dim).unsqueeze(-2),
            lambda p: (p, 1),
            along=True,
            domain=torch.sigmoid,
            empty="num_samples must be at most the number of classes 0",
        ),
        bad=[
            Bad((_INT, 2), {}, TypeError, "p must be a floating tensor"),
            Bad((torch.ones(3), 4), {}, ValueError, "num_samples must be at most the number of classes 3, got 4"),
            Bad((torch.tensor([1.0, 0.0]), 2), {}, ValueError, "num_samples must be at most the number of positive"),
            Bad((torch.tensor([1.0, -1.0]), 1), {}, ValueError, "p must be >= 0 and finite"),
            Bad((torch.ones(3), 0), {}, ValueError, "num_samples must be an integer >= 1, got 0"),
        ],
        batched=False,
        vmap=False,
        half=False,
        why=_RANDOM + "; float32 noise is another draw than float64 noise",
    ),
    *[
        Contract(
            f"discrete.sparsemax[{method}]",
            discrete.sparsemax,
            _sparse_calls(method=method),
            scalars=_T,
            reference=_simplex_projection,
            hard=_one_hot_max,
            edges=Edges(_largest, along=True, nan=_has_no_largest) if method == "auto" else None,
            bad=_bad_logits("x") if method == "auto" else (),
        )
        for method in ("auto", "sort", "bisection")
    ],
    *[
        Contract(
            f"discrete.entmax15[{method}]",
            discrete.entmax15,
            _sparse_calls(method=method),
            scalars=_T,
            reference=_entmax_by_root,
            hard=_one_hot_max,
            edges=Edges(_largest, along=True, nan=_has_no_largest) if method == "auto" else None,
            bad=_bad_logits("x") if method == "auto" else (),
        )
        for method in ("auto", "sort", "bisection")
    ],
    *[
        Contract(
            f"discrete.normmax[{method}]",
            discrete.normmax,
            _sparse_calls(1.6, method=method, temperature=0.9),
            scalars=_T,
            reference=_normmax_by_root,
            hard=_one_hot_max,
            edges=Edges(_largest, along=True, nan=_has_no_largest) if method == "auto" else None,
            bad=[
                *_bad_logits("x"),
                Bad((torch.zeros(3), 1.0), {}, ValueError, "alpha must be a finite number > 1, got 1.0"),
                Bad((torch.zeros(3), "2"), {}, TypeError, "alpha must be a number, got str"),
                Bad((torch.zeros(3), 2.0, 1), {}, IndexError, "dim must be in"),
            ]
            if method == "auto"
            else (),
        )
        for method in ("auto", "bisection")
    ],
    Contract(
        "discrete.entmax[learned alpha]",
        discrete.entmax,
        lambda g: [Call((torch.randn(2, 5, generator=g).double(), torch.tensor(a).double())) for a in (1.2, 2.4)],
        reference=lambda x, alpha: _entmax_by_root(x, float(alpha)),
        hard=lambda x, alpha: _one_hot_max(x),
    ),
    Contract(
        "discrete.entmax[an alpha a row]",
        discrete.entmax,
        lambda g: [Call((torch.randn(2, 5, generator=g).double(), torch.tensor([[0.6], [1.7]]).double()))],
        reference=lambda x, alpha: torch.stack(
            [_entmax_by_root(x[:1], float(alpha[0]))[0], _entmax_by_root(x[1:], float(alpha[1]))[0]]
        ),
        hard=lambda x, alpha: _one_hot_max(x),
        batched=False,
        why="alphas are of the rows",
    ),
    Contract(
        "discrete.entmax[below 1]",
        discrete.entmax,
        _sparse_calls(0.5),
        scalars=_T,
        reference=_entmax_by_root,
        hard=_one_hot_max,
    ),
    *[
        Contract(
            f"discrete.entmax[{alpha}, {method}]",
            discrete.entmax,
            _sparse_calls(alpha, method=method, temperature=0.9),
            scalars=_T,
            reference=_entmax_by_root,
            hard=_one_hot_max,
            edges=Edges(_largest, along=True, nan=_has_no_largest) if (alpha, method) == (1.3, "auto") else None,
            bad=[
                *_bad_logits("x"),
                Bad((torch.zeros(3), 0.0), {}, ValueError, "alpha must be a finite number > 0, got 0.0"),
                Bad((torch.zeros(3), "1.5"), {}, TypeError, "alpha must be a finite number > 0, got str"),
                Bad((torch.zeros(3), torch.tensor(1.0)), {}, ValueError, "alpha must not be 1 as a tensor, got 1.0"),
                Bad(
                    (torch.zeros(3), torch.ones(2)), {}, ValueError, r"alpha must broadcast with shape \(1,\), got \(2"
                ),
                Bad((torch.zeros(2, 3), torch.tensor([[1.5], [1.0]])), {}, ValueError, "alpha must not be 1 as a te"),
                Bad((torch.zeros(2, 3), torch.tensor([[1.5], [-1.0]])), {}, ValueError, "alpha must be > 0 everywhere"),
                Bad(
                    (torch.zeros(3), 1.2),
                    {"method": "sort"},
                    ValueError,
                    "method 'sort' knows alpha 1.5 and 2, got 1.2",
                ),
                Bad((torch.zeros(3), 2.0, 1), {}, IndexError, "dim must be in"),
            ]
            if method == "auto"
            else (),
        )
        for alpha, method in ((1.3, "auto"), (1.3, "bisection"), (3.0, "bisection"))
    ],
    Contract(
        "discrete.choose",
        discrete.choose,
        lambda g: [
            Call((_logits(g), torch.randn(4, generator=g, dtype=torch.float64)), {"temperature": 0.6}),
            Call(
                (_logits(g), torch.randn(3, 4, 2, generator=g, dtype=torch.float64)),
                {"temperature": 0.6, "features": 1},
            ),
        ],
        reference=_chosen,
        scalars=_T,
        edges=Edges(
            lambda s, dim: _slope(s)[s.argmax(-1)],
            lambda s: (s, _slope(s)),
            along=True,
            empty="scores must have at least one",
        ),
        bad=[
            Bad((_INT, torch.zeros(3)), {}, TypeError, "scores must be a floating tensor"),
            Bad((torch.zeros(3), _INT), {}, TypeError, "values must be a floating tensor"),
            Bad((torch.zeros(3), torch.zeros(2)), {}, ValueError, "scores and values must agree in n"),
            Bad((torch.zeros(2, 3), torch.zeros(4, 3)), {}, ValueError, "values must broadcast with scores"),
            Bad((torch.zeros(3), torch.zeros(3)), {"features": 1}, ValueError, r"features must be in 0\.\.0"),
            Bad((torch.zeros(3), torch.zeros(3)), {"temperature": -1.0}, ValueError, "temperature must be >= 0"),
        ],
    ),
    Contract(
        "discrete.lookup",
        discrete.lookup,
        lambda g: [Call((torch.softmax(_logits(g), -1), torch.randn(4, 2, generator=g, dtype=torch.float64)))],
        large=(1,),
        reference=lambda w, table: torch.stack([sum(row[k] * table[k] for k in range(4)) for row in w]),
        edges=Edges(
            lambda w, dim: w,
            lambda w: (w, torch.eye(w.shape[-1], dtype=floating(w), device=w.device)),
            along=True,
            domain=torch.sigmoid,
        ),
        bad=[
            Bad((_INT, torch.zeros(3)), {}, TypeError, "weights must be a floating tensor"),
            Bad((torch.zeros(3), torch.zeros(2, 2)), {}, ValueError, "weights and table must agree in n"),
        ],
    ),
    *[
        Contract(
            f"discrete.one_hot[{method}]",
            discrete.one_hot,
            lambda g, method=method: [Call((_INDEX, 4), {"method": method, "temperature": 0.7})],
            reference=_KERNELS[method],
            scalars=_T if method == "softmax" else {},
            hard=(lambda i, n: torch.nn.functional.one_hot(i.round().long(), n)) if method == "softmax" else None,
            edges=Edges(lambda i: _hot(i, 3), lambda i: (i, 3)) if method == "softmax" else None,
            bad=[
                Bad((_INT, 3), {}, TypeError, "index must be a floating tensor, got torch.int64"),
                Bad((torch.zeros(2), 0), {}, ValueError, "num_classes must be an integer >= 1, got 0"),
                Bad((torch.zeros(2), 3), {"method": "cubic"}, ValueError, "method must be one of 'softmax', 'linear'"),
                Bad((torch.zeros(2), 3), {"temperature": -1.0}, ValueError, "temperature must be >= 0"),
            ],
        )
        for method in ("softmax", "linear")
    ],
    *[
        Contract(
            f"discrete.{name}",
            getattr(discrete, name),
            samples,
            reference=reference,
            hard=hard,
            scalars=_T,
            edges=edges,
            batched=False,
            vmap=name not in ("take", "embedding", "index_select"),
            bad=bad,
            why="x has no batch in this signature, as in torch",
        )
        for name, samples, reference, hard, edges, bad in (
            (
                "take",
                lambda g: [Call((_TABLE, _INDEX), {"temperature": 0.7})],
                lambda x, i, temperature: torch.einsum(
                    "mk,k->m", _KERNELS["softmax"](i, 12, temperature), x.reshape(-1)
                ),
                lambda x, i: torch.take(x, i.round().long()),
                Edges(
                    lambda i: i.round().clamp(0, 2),
                    lambda i: (torch.arange(3.0, dtype=floating(i), device=i.device), i),
                    place=1,
                ),
                [Bad((torch.zeros(0), torch.zeros(1)), {}, ValueError, "x must have at least one entry")],
            ),
            (
                "embedding",
                lambda g: [Call((_INDEX, _TABLE), {"temperature": 0.7})],
                lambda i, w, temperature: torch.einsum("mk,kf->mf", _KERNELS["softmax"](i, 4, temperature), w),
                lambda i, w: torch.nn.functional.embedding(i.round().long(), w),
                Edges(lambda i: _hot(i, 3), lambda i: (i, torch.eye(3, dtype=floating(i), device=i.device))),
                [Bad((_INT, torch.zeros(3, 2)), {}, TypeError, "index must be a floating tensor")],
            ),
            (
                "index_select",
                lambda g: [Call((_TABLE, 0, _INDEX), {"temperature": 0.7})],
                lambda x, dim, i, temperature: torch.einsum("mk,kf->mf", _KERNELS["softmax"](i, 4, temperature), x),
                lambda x, dim, i: torch.index_select(x, dim, i.round().long()),
                Edges(
                    lambda x, dim: x.index_select(dim, torch.zeros(2, dtype=torch.int64)),
                    words=lambda x: {"index": torch.zeros(2, dtype=x.dtype, device=x.device)},
                    along=True,
                    empty="x must have at least one",
                    nan=_is_mean_of_opposites,
                ),
                [
                    Bad((torch.zeros(3), 1, torch.zeros(2)), {}, IndexError, "dim must be in"),
                    Bad(
                        (torch.zeros(3), 0, torch.zeros(2, 2)), {}, ValueError, "index must have at most one dimension"
                    ),
                ],
            ),
            (
                "take_along_dim",
                lambda g: [Call((_TABLE, _INDEX[:3].expand(2, 3).clone(), 0), {"temperature": 0.7})],
                lambda x, i, dim, temperature: torch.einsum("mfk,kf->mf", _KERNELS["softmax"](i, 4, temperature), x),
                lambda x, i, dim: torch.take_along_dim(x, i.round().long(), dim),
                Edges(
                    lambda x, dim: x.gather(dim, torch.zeros_like(x, dtype=torch.int64)),
                    lambda x: (x, torch.zeros_like(x)),
                    along=True,
                    empty="x must have at least one entry",
                    nan=_is_mean_of_opposites,
                ),
                [
                    Bad((torch.zeros(3), torch.zeros(1, 3)), {}, ValueError, "index must have as many dimensions as x"),
                    Bad((torch.zeros(3, 0), torch.zeros(3, 1)), {}, ValueError, "x must have at least one entry"),
                    Bad((torch.zeros(3), _INT), {}, TypeError, "index must be a floating tensor"),
                    Bad((torch.zeros(3, 2), torch.zeros(2, 2)), {}, ValueError, "index must broadcast with x"),
                ],
            ),
            (
                "gather",
                lambda g: [Call((_TABLE, 0, _INDEX[:2].expand(3, 2).clone()), {"temperature": 0.7})],
                lambda x, dim, i, temperature: torch.einsum(
                    "mfk,kf->mf", _KERNELS["softmax"](i, 4, temperature), x[:, :2]
                ),
                lambda x, dim, i: torch.gather(x, dim, i.round().long()),
                Edges(
                    lambda x, dim: x.gather(dim, torch.zeros_like(x, dtype=torch.int64)),
                    words=lambda x: {"index": torch.zeros_like(x)},
                    along=True,
                    empty="x must have at least one entry",
                    nan=_is_mean_of_opposites,
                ),
                [Bad((torch.zeros(2, 2), 0, torch.zeros(2, 3)), {}, ValueError, "index must not be larger than x")],
            ),
        )
    ],
    Exempt("discrete.gumbel_noise", "takes a shape: no data in", "discrete/test_sampling.py"),
]
