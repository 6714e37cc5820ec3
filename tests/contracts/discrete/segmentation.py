"""Contracts of segmentation with a gradient, and of attention in a window."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pullback import discrete
from tests.contracts.contract import Bad, Call, Contract, Edges, Exempt, Module


def _frontiers(g: torch.Generator) -> list[Call]:
    return [Call((0.1 + 0.4 * torch.rand(2, 6, generator=g).double(),))]


def _segmented(p: Tensor, method: str = "gaussian") -> Tensor:
    blocks = p.shape[-1] if isinstance(p, Tensor) and p.shape[-1] else 1
    return discrete.soft_segment(p, blocks=blocks, method=method)


def _enumerated(p: Tensor, blocks: int = 4) -> Tensor:
    """The probability of every pattern of frontiers, summed where it puts a position into a block."""
    n = p.shape[-1]
    result = torch.zeros(*p.shape, blocks, dtype=p.dtype)
    for pattern in itertools.product((0, 1), repeat=n - 1):
        opens = torch.tensor([0, *pattern])
        chance = torch.where(opens[1:] > 0, p[..., 1:], 1 - p[..., 1:]).prod(-1)
        for i, k in enumerate(opens.cumsum(0).tolist()):
            if k < blocks:
                result[..., i, k] += chance
    return result


def _gaussian(p: Tensor, *, sharp: bool) -> Tensor:
    rows = []
    for row in p.flatten(0, -2):
        mean = variance = torch.zeros((), dtype=p.dtype)
        means, variances = [], []
        for i, chance in enumerate(row):
            mean, variance = (mean, variance) if i == 0 else (mean + chance, variance + chance * (1 - chance))
            means.append(mean)
            variances.append(variance + 1e-6)
        last = min(int(means[-1] + 3 * variances[-1] ** 0.5 + 1), p.shape[-1] - 1)
        k = torch.arange(last + 1)
        for m, v in zip(means, variances, strict=True):
            weights = torch.exp(-((m - k) ** 2) / (2 * (v**0.5 if sharp else v)) + ((m - m.round()) ** 2) / (2 * v))
            rows.append(torch.nn.functional.pad(weights / weights.sum(), (0, p.shape[-1]))[:4])
    return torch.stack(rows).view(*p.shape, 4)


def _blocks(g: torch.Generator) -> list[Call]:
    embeddings = torch.randn(2, 5, 3, generator=g).double()
    assignment = torch.rand(2, 5, 2, generator=g).double().softmax(-1)
    return [Call((embeddings, assignment, torch.randn(3, 3, generator=g).double()))]


def _pool(e: Tensor, assignment: Tensor, kernel: Tensor | None = None, **options: Any) -> Tensor:
    return discrete.pool_blocks(e, assignment, kernel=kernel, **options)


def _pooled_by_conv(e: Tensor, assignment: Tensor, kernel: Tensor, *, method: str = "max") -> Tensor:
    blocks = []
    for k in range(assignment.shape[-1]):
        weighted = (e * assignment[..., k, None]).mT
        z = torch.nn.functional.conv1d(weighted, kernel[:, None], padding=1, groups=kernel.shape[0])
        blocks.append(
            z.amax(-1) if method == "max" else z.sum(-1) / assignment[..., k].sum(-1, keepdim=True).clamp(min=1)
        )
    return torch.stack(blocks, 1)


def _local(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    return discrete.local_attention(q, k, v, 4, bias=bias)


def _local_by_mask(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    n = q.shape[-2]
    offset = torch.arange(n) - torch.arange(n)[:, None]
    extra = torch.zeros(n, n) if bias is None else bias[(offset + 2).clamp(0, 4)]
    extra = extra.to(q.dtype).masked_fill(offset.abs() > 2, -torch.inf)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=extra)


def _sequence(g: torch.Generator) -> list[Call]:
    q, k, v = (torch.randn(2, 7, e, generator=g).double() for e in (2, 2, 3))
    return [Call((q, k, v)), Call((q, k, v, torch.randn(5, generator=g).double()))]


def _values(x: Tensor) -> tuple[Tensor, ...]:
    like = x if x.is_floating_point() else x.float()
    zeros = like.new_zeros((*x.shape, 1))
    return zeros, zeros, x.unsqueeze(-1)


def _around(x: Tensor) -> Tensor:
    """Mean of the positions within 2."""
    n = x.shape[-1]
    sums = [x[..., max(0, i - 2) : i + 3].mean(-1) for i in range(n)]
    return (torch.stack(sums, -1) if sums else x).unsqueeze(-1)


_X = torch.ones(4, 2)

CONTRACTS = [
    *[
        Contract(
            f"discrete.soft_segment[{method}]",
            partial(discrete.soft_segment, blocks=4, method=method),
            _frontiers,
            reference=reference,
            batched=False,
            large=(),
            why="probabilities are not large, nor above 1",
            bad=[
                Bad((torch.ones(0),), {}, ValueError, "frontiers must hold at least one position"),
                Bad((torch.full((5,), 1.5),), {}, ValueError, r"frontiers must be in \[0, 1\], got 1.5 to 1.5"),
                Bad((torch.ones(3),), {}, ValueError, r"blocks must be in 1\.\.3, got 4"),
            ],
        )
        for method, reference in (
            ("gaussian", partial(_gaussian, sharp=False)),
            ("gaussian_sharp", partial(_gaussian, sharp=True)),
            ("exact", _enumerated),
        )
    ],
    Contract(
        "discrete.soft_segment",
        _segmented,
        lambda g: [Call((0.1 + 0.4 * torch.rand(2, 4, generator=g).double(),))],
        reference=partial(_gaussian, sharp=False),
        batched=False,
        large=(),
        why="probabilities are not large, nor above 1",
        edges=Edges(
            lambda x: x.unsqueeze(-1).expand(*x.shape, x.shape[-1]),
            domain=torch.sigmoid,
            empty="frontiers must hold at least one position",
        ),
    ),
    *[
        Contract(
            f"discrete.pool_blocks[{method}]",
            partial(_pool, method=method),
            _blocks,
            reference=partial(_pooled_by_conv, method=method),
            batched=False,
            large_limit=1e8 if method == "max" else 1e4,
            why="sums of the largest numbers overflow; every row has its own assignment",
            bad=[
                Bad((_X, torch.ones(3, 2)), {}, ValueError, r"assignment must have shape \(4,\) and blocks"),
                Bad((_X, _X, torch.ones(2, 2)), {}, ValueError, r"kernel must have shape \(2, an odd number\)"),
                Bad((_X, _X), {"window": 0}, ValueError, "window must be an integer >= 1"),
                Bad((torch.ones(0, 2), torch.ones(0, 2)), {}, ValueError, "embeddings must hold at least one position"),
            ],
        )
        for method in ("max", "mean")
    ],
    Contract(
        "discrete.pool_blocks",
        lambda e, assignment, method="max": discrete.pool_blocks(e, assignment, method=method, window=5),
        lambda g: [Call(_blocks(g)[0].args[:2])],
        reference=lambda e, assignment: (e.unsqueeze(-2) * assignment.unsqueeze(-1)).amax(1),
        batched=False,
        large_limit=1e8,
        why="sums of the largest numbers overflow; every row has its own assignment",
        edges=Edges(
            lambda x: x.amax(-1)[..., None, None],
            args=lambda x: (x.unsqueeze(-1), torch.ones_like(x if x.is_floating_point() else x.float()).unsqueeze(-1)),
            empty="embeddings must hold at least one position",
            nan=lambda x, options: options.get("method") == "mean",
        ),
    ),
    Contract(
        "discrete.local_attention",
        _local,
        _sequence,
        reference=_local_by_mask,
        batched=False,
        large=(2,),
        large_limit=1e8,
        why="products of large queries and keys overflow, as do sums of the largest values; one batch for all three",
        edges=Edges(_around, args=_values, place=2, nan=lambda x, options: True),
        bad=[
            Bad((_X, torch.ones(3, 2), _X), {}, ValueError, "q, k, v must be"),
            Bad((_X, _X, _X, torch.ones(4)), {}, ValueError, "bias must have 5 offsets"),
            Bad((_X, _X, _X.long()), {}, TypeError, "v must be a floating tensor"),
        ],
    ),
    Module(
        "discrete.FrontierPredictor",
        lambda module, x: module(x),
        lambda g: [Call((torch.randn(2, 5, 4, generator=g).double(),))],
        build=lambda g: discrete.FrontierPredictor(4, 2, 2, 1, generator=g),
        large=(),
        forward_mode=False,
        why="inputs go through norms; torch's LayerNorm is wrong in nested forward mode",
        bad=[Bad((torch.ones(5, 3),), {}, ValueError, r"x must have shape \(..., n, 4\)")],
    ),
    Exempt(
        "discrete.GradientTokenizer",
        "takes integers alone; made of the blocks above, whose composition is tested",
        "discrete/test_segmentation.py",
    ),
    Exempt("discrete.segmentation_f1", "takes masks alone", "discrete/test_segmentation.py"),
]
