"""Contracts of attention with masks, of tokens that halt, and of detection by centres."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pullback import discrete
from tests.contracts.contract import Bad, Call, Contract, Edges, Exempt, Module

_POSITIONS = torch.tensor([[[0, 0], [0, 1], [2, 1], [5, 5]], [[1, 1], [3, 0], [0, 0], [0, 0]]])
_MASK = torch.tensor([[True, True, True, True], [True, True, False, False]])
_ALIVE = torch.tensor([[[1, 1, 1, 1], [1, 0, 1, 1], [1, 0, 0, 1]], [[1, 1, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0]]]).bool()


def _attended(g: torch.Generator) -> list[Call]:
    q, k, v, bias = (torch.randn(s, generator=g).double() for s in ((2, 3, 2), (2, 4, 2), (2, 4, 3), (2, 3, 4)))
    mask = 0.1 + torch.rand(2, 4, generator=g).double()
    return [Call((q, k, v, mask)), Call((q, k, v, mask, bias))]


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, bias: Tensor | None = None) -> Tensor:
    return discrete.masked_attention(q, k, v, mask, bias=bias)


def _attention_by_hand(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, bias: Tensor | None = None) -> Tensor:
    logits = torch.einsum("bnd,bmd->bnm", q, k) / math.sqrt(q.shape[-1]) + (0 if bias is None else bias)
    return torch.softmax(logits + mask.log()[:, None], -1) @ v


def _one_query(x: Tensor) -> tuple[Tensor, ...]:
    like = x if x.is_floating_point() else x.float()
    q, k = like.new_zeros((*x.shape[:-1], 1, 1)), like.new_zeros((*x.shape, 1))
    return q, k, x.unsqueeze(-1), torch.ones_like(like)


def _scores(g: torch.Generator) -> list[Call]:
    return [Call((0.5 * torch.rand(2, 5, generator=g).double(), torch.rand(5, generator=g).double()))]


def _transformer(g: torch.Generator) -> discrete.HaltingTransformer:
    bias = discrete.RelativePositionBias(2, 2, generator=g)
    torch.nn.init.normal_(bias.table, generator=g)
    return discrete.HaltingTransformer(4, 2, 3, bias=bias, generator=g)


def _halting(module: Any, x: Tensor) -> Tensor:
    features: Tensor = module(x, _POSITIONS.to(x.device), _MASK.to(x.device), alive=_ALIVE.to(x.device)).features
    return features


def _halting_by_torch(x: Tensor) -> Tensor:
    """torch's own layers, each on the living tokens of one row alone."""
    module = _transformer(torch.Generator().manual_seed(0)).double()
    rows = []
    for tokens, cells, alive in zip(x, _POSITIONS, _ALIVE, strict=True):
        rows.append(torch.where(alive[0, :, None], tokens, 0))
        for weights, living in zip(module.layers, alive, strict=True):
            layer = torch.nn.TransformerEncoderLayer(4, 2, 16, 0.0, "gelu", batch_first=True, norm_first=True).double()
            names = {"self_attn.in_proj_": "project.", "self_attn.out_proj.": "combine.", "norm1.": "first."}
            names |= {"norm2.": "second.", "linear1.": "feed.0.", "linear2.": "feed.2."}
            state = weights.state_dict()
            layer.load_state_dict({a + kind: state[b + kind] for a, b in names.items() for kind in ("weight", "bias")})
            seen = (cells[living][None] - cells[living][:, None]).clamp(-2, 2) + 2
            bias = module.bias.table.view(5, 5, 2)[seen[..., 1], seen[..., 0]].movedim(-1, 0)
            rows[-1] = rows[-1].index_put((living,), layer(rows[-1][living][None], bias)[0])
    return torch.stack(rows)


def _plane(g: torch.Generator) -> list[Call]:
    logits, centers = torch.randn(2, 5, 3, generator=g).double(), 9 * torch.rand(2, 2, 2, generator=g).double()
    return [Call((logits, 9 * torch.rand(2, 5, 2, generator=g).double(), centers))]


def _heat(logits: Tensor, positions: Tensor, centers: Tensor) -> Tensor:
    classes = logits.shape[-1] if isinstance(logits, Tensor) else 1
    labels = torch.tensor([classes - 1, 0], device=centers.device).expand(centers.shape[:-1])
    return discrete.center_heatmap_loss(logits, positions, centers, labels, radius=2.0)


def _heat_by_hand(logits: Tensor, positions: Tensor, centers: Tensor) -> Tensor:
    total = [torch.zeros((), dtype=logits.dtype) for _ in logits]
    distances = torch.cdist(positions, centers)
    for row in range(len(logits)):
        for c in range(3):
            own = [o for o, label in enumerate((2, 0)) if label == c]
            for i in range(logits.shape[1]):
                h, p = torch.zeros((), dtype=logits.dtype), torch.sigmoid(logits[row, i, c])
                if own:
                    d = distances[row, :, own[0]]
                    h = torch.ones_like(h) if i == int(d.argmin()) else torch.exp((d.min() ** 2 - d[i] ** 2) / 8)
                total[row] = total[row] - ((1 - p) ** 2 * p.log() if h == 1 else (1 - h) ** 4 * p**2 * (1 - p).log())
    return torch.stack(total) / 2


def _one_class(x: Tensor) -> tuple[Tensor, ...]:
    like = x if x.is_floating_point() else x.float()
    return x.unsqueeze(-1), like.new_zeros((*x.shape, 2)), like.new_zeros((*x.shape[:-1], 2, 2))


_Q, _V = torch.ones(2, 3), torch.ones(4, 1)

CONTRACTS = [
    Contract(
        "discrete.masked_attention",
        _attention,
        _attended,
        reference=_attention_by_hand,
        large=(2,),
        large_limit=1e8,
        why="products of large queries and keys overflow, as do sums of the largest values",
        edges=Edges(lambda x: x.mean(-1)[..., None, None], args=_one_query, place=2),
        bad=[
            Bad((_Q, _Q, torch.ones(3, 1), torch.ones(4)), {}, ValueError, "must have an entry for each of 2 keys"),
            Bad((_Q, torch.ones(4, 2), _V, torch.ones(4)), {}, ValueError, "q and k must have one width"),
            Bad((_Q, torch.ones(4, 3), _V, -torch.ones(4)), {}, ValueError, "key_mask must be >= 0"),
            Bad((_Q, torch.ones(4, 3), _V, torch.ones(4).long()), {}, TypeError, "key_mask must be a floating tensor"),
            Bad((_Q, torch.ones(4, 3), _V, torch.ones(4), torch.ones(3, 4)), {}, ValueError, "must have shapes that"),
        ],
    ),
    Exempt(
        "discrete.RelativePositionBias",
        "takes integers alone; its table is a parameter of HaltingTransformer, whose laws go through it",
        "discrete/test_halting.py",
    ),
    Contract(
        "discrete.halting_gate",
        lambda scores, alive=None, hard=False: discrete.halting_gate(scores, alive, hard=hard),
        _scores,
        reference=lambda scores, alive: scores * alive,
        large=(),
        why="scores are not large; the laws of derivatives see the soft mask, as the hard one has its gradient",
        edges=Edges(lambda x: x, domain=torch.sigmoid),
        bad=[
            Bad((torch.tensor([0.5, 1.5]),), {}, ValueError, r"scores must be in \[0, 1\], got 0.5 to 1.5"),
            Bad((torch.ones(3), torch.ones(2)), {}, ValueError, "scores and alive must have shapes that broadcast"),
            Bad((torch.tensor(0.5),), {}, ValueError, "scores must have a dimension of tokens"),
        ],
    ),
    Module(
        "discrete.HaltingTransformer",
        _halting,
        lambda g: [Call((torch.randn(2, 4, 4, generator=g).double(),))],
        build=_transformer,
        idle=[f"score.{i}.{n}.{kind}" for i in (0, 1) for n in (0, 1, 3) for kind in ("weight", "bias")],
        reference=_halting_by_torch,
        batched=False,
        large=(),
        forward_mode=False,
        vmap=False,
        compile=False,
        why="living tokens are packed, and their number is data; torch's LayerNorm is wrong in nested forward mode",
        bad=[
            Bad((torch.ones(2, 4, 3),), {}, ValueError, r"x must have shape \(..., n, 4\)"),
            Bad((torch.ones(4, 4),), {}, ValueError, r"mask must have shape \(4,\), got \(2, 4\)"),
        ],
    ),
    Contract(
        "discrete.sparsity_loss",
        discrete.sparsity_loss,
        lambda g: [Call((torch.rand(2, 3, 4, generator=g).double(), torch.rand(4, generator=g).double()))],
        reference=lambda alive, weights: torch.einsum("bln,n->b", alive, weights) / 12,
        large=(),
        why="masks are not large",
        edges=Edges(lambda x: x.mean(-1), args=lambda x: (x.unsqueeze(-2), x.new_ones(x.shape[-1:]))),
        bad=[
            Bad((torch.ones(2, 3), torch.ones(2)), {}, ValueError, "weights must have an entry for each of 3 tokens"),
            Bad((torch.ones(2, 3), -torch.ones(3)), {}, ValueError, "weights must be >= 0"),
            Bad((torch.ones(3),), {}, ValueError, r"alive must have shape \(..., layers, n\)"),
            Bad((torch.ones(2, 3),), {"mask": torch.ones(3)}, TypeError, "mask must be a boolean tensor"),
        ],
    ),
    Contract(
        "discrete.transformer_macs",
        lambda counts: discrete.transformer_macs(counts, 4),
        lambda g: [Call((5 * torch.rand(2, 3, generator=g).double(),))],
        reference=lambda counts: sum(12 * 16 * n + 8 * n**2 for n in counts.unbind(-1)),
        large=(),
        why="counts of tokens, whose squares overflow half precision",
        edges=Edges(lambda x: (192 * x + 8 * x**2).sum(-1), domain=torch.sigmoid),
        bad=[
            Bad((-torch.ones(3),), {}, ValueError, "counts must be >= 0"),
            Bad((torch.tensor(3.0),), {}, ValueError, "counts must have a dimension of layers"),
        ],
    ),
    Contract(
        "discrete.center_heatmap_loss",
        _heat,
        _plane,
        reference=_heat_by_hand,
        batched=False,
        large=(),
        why="every row has its own positions; a sum of logits overflows as distances do",
        edges=Edges(
            lambda x: x.sum(-1),
            args=_one_class,
            refuses=(lambda x: bool(x.isinf().any()), "logits must be finite"),
        ),
        bad=[
            Bad((torch.ones(4, 3), torch.ones(4, 3), torch.ones(2, 2)), {}, ValueError, "positions must have shape"),
            Bad((torch.ones(4, 3), torch.ones(3, 2), torch.ones(2, 2)), {}, ValueError, "logits must have shape"),
            Bad((torch.ones(4, 3), torch.ones(4, 2), torch.ones(2, 3)), {}, ValueError, "centers and labels must be"),
            Bad((torch.ones(4, 0), torch.ones(4, 2), torch.ones(2, 2)), {}, ValueError, r"labels must be in -1\.\.-1"),
        ],
    ),
    Exempt("discrete.find_centers", "picks tokens: values are compared, not changed", "discrete/test_halting.py"),
    Exempt("discrete.detection_scores", "counts what is right; checked against a matching", "discrete/test_halting.py"),
]
