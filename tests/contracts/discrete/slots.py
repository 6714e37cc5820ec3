"""Contracts of slots, symbols and modular transitions: brute force over matchings, attention and updates by hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pullback import discrete
from tests.contracts.contract import Bad, Call, Contract, Edges, Exempt, Module

RANGE = "sums of products leave the range of half"


def normal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def seeded(make: Callable[[], nn.Module]) -> Callable[[torch.Generator], nn.Module]:
    """torch's layers draw their weights from its own generator."""

    def build(g: torch.Generator) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (), generator=g)))
            return make()

    return build


def _matched_by_hand(keys: Tensor, queries: Tensor, actions: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    weights = torch.zeros(*queries.shape[:-1], keys.shape[-2], dtype=keys.dtype)
    given = torch.zeros(*keys.shape[:-1], actions.shape[-1], dtype=keys.dtype)
    for b, j in itertools.product(range(len(queries)), range(queries.shape[1])):
        scores = [float((queries[b, j] * key).sum()) / keys.shape[-1] ** 0.5 / temperature for key in keys[b]]
        weights[b, j] = torch.tensor(scores, dtype=keys.dtype).exp()
        weights[b, j] /= weights[b, j].sum()
        given[b] += weights[b, j][:, None] * actions[b, j]
    return given, weights


def _assigned_by_hand(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    rows, totals = [], []
    for x, y in zip(a, b, strict=True):
        costs = {order: (x - y[list(order)]).square().sum() for order in itertools.permutations(range(len(x)))}
        best = min(costs, key=lambda order: float(costs[order]))
        rows.append(y[list(best)])
        totals.append(costs[best])
    return torch.stack(rows), torch.stack(totals)


MASKS = torch.zeros(2, 5, 6, dtype=torch.float64)
MASKS[0, 1:3, 2:4], MASKS[1, 4, 5] = 1.0, 0.7


def _crops(image: Tensor, masks: Tensor | None = None, side: int = 3) -> Tensor:
    masks = MASKS.to(image).expand(*image.shape[:-3], 2, 5, 6) if masks is None else masks
    return discrete.object_crops(image, masks, side)


def _cropped_by_hand(image: Tensor) -> Tensor:
    wide = nn.functional.pad(image, [3] * 4)
    middles = ((2, 3), (4, 5))  # half up
    return torch.stack([wide[..., r + 2 : r + 5, c + 2 : c + 5] for r, c in middles], -4)


def _scored(scorer: Any, image: Tensor) -> Tensor:
    rows, columns = (torch.arange(4, device=image.device) // 2 == k for k in (0, 1))
    mask = (rows[:, None] & columns).to(image)
    return scorer(torch.cat([image, mask.expand(*image.shape[:-2], 4, 4)], -3))


def _soft(model: Any, *args: Tensor) -> tuple[Tensor, ...]:
    slots, *others = args
    others = [x.expand(*slots.shape[:-1], x.shape[-1]) for x in others]
    return tuple(model(slots, *others, hard=False, temperature=0.7))


def _updated_by_hand(model: Any, slots: Tensor, symbols: Tensor, actions: Tensor) -> tuple[Tensor, ...]:
    """One scene after the other, one step after the other."""
    count, scale, heat = slots.shape[1], model.width**-0.5, 0.7
    found = []
    for s, words, a in zip(slots, symbols, actions, strict=True):
        known = torch.cat([words, a], -1)
        like = model.like(words)
        shared = torch.stack([((like[i] * like).sum(-1) * scale).softmax(0) @ model.value(known) for i in range(count)])
        keys = model.key(torch.cat([known, shared], -1))
        free, new = torch.ones(count, dtype=s.dtype), s.clone()
        record: list[list[Tensor]] = [[], [], []]
        for _ in range(model.steps):
            logits = torch.stack([keys @ model.rule_query(e) * scale for e in model.rule_embedding], 1)
            flat = torch.cat([(logits + free.clamp(min=1e-6).log()[:, None]).flatten(), model.nothing])
            both = (flat / heat).softmax(0)[:-1].view(count, model.rules)
            looked = torch.zeros(count, dtype=s.dtype)
            for p, r in itertools.product(range(count), range(model.rules)):
                asked = model.context_query(torch.cat([keys[p], model.rule_embedding[r]]))
                near = model.context_key(known) @ asked * scale
                weights = (near.masked_fill(torch.arange(count) == p, -torch.inf) / heat).softmax(0)
                given = torch.cat([s[p], a[p], weights @ s, weights @ a])
                change = torch.relu(given @ model.first[r] + model.first_bias[r, 0]) @ model.second[r]
                new = new + both[p, r] * (torch.arange(count) == p)[:, None] * change
                looked = looked + both[p, r] * weights
            for part, value in zip(record, (both.sum(1), both.sum(0), looked), strict=True):
                part.append(value)
            free = free * (1 - both.sum(1))
        found.append((new, *(torch.stack(part) for part in record)))
    return tuple(torch.stack(part) for part in zip(*found, strict=True))


def _rules(g: torch.Generator) -> nn.Module:
    return seeded(lambda: discrete.RuleTransition(2, 1, 1, rules=2, steps=2, width=2, hidden=3))(g)


def _by_hand(slots: Tensor, symbols: Tensor, actions: Tensor) -> tuple[Tensor, ...]:
    return _updated_by_hand(_rules(torch.Generator().manual_seed(0)).double(), slots, symbols, actions)


def _autoencoder(g: torch.Generator, flat: bool = False, size: int = 4) -> nn.Module:
    return seeded(lambda: discrete.SlotAutoencoder(1, 2, 3, size=size, width=2, flat=flat))(g)


def _through(model: Any, image: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    slots = model.encode(image, masks.expand(*image.shape[:-3], *masks.shape[-3:]))
    return slots, model.decode(slots).image


def _alone(model: Any, image: Tensor) -> tuple[Tensor, Tensor]:
    slots = model.encode(image)
    return slots, model.decode(slots).image


COMPETING = [
    "features.0.weight", "features.0.bias", "features.2.weight", "features.2.bias", "start", "key_value.weight",
    "key_value.bias", "query.weight", "query.bias", "cell.weight_ih", "cell.weight_hh", "cell.bias_ih", "cell.bias_hh",
    "norm.weight", "norm.bias",
]  # fmt: skip
KINDS = (["shape", "colour"], [["round", "square"], ["red", "green", "blue"]])


class Scaled(nn.Module):
    """Logits are the objects, in other units."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale if x.shape[-1] == 5 else x


def _symbols(g: torch.Generator) -> nn.Module:
    return seeded(lambda: discrete.SymbolicAttributes(*KINDS, Scaled()))(g)


PAIR = torch.zeros(1, 2, 3)

CONTRACTS = [
    Contract(
        "discrete.match_actions",
        discrete.match_actions,
        lambda g: [
            Call((normal(g, 2, 3, 2), normal(g, 2, 4, 2), normal(g, 2, 4, 2)), words)
            for words in ({}, {"temperature": 0.5})
        ],
        reference=_matched_by_hand,
        outputs=tuple,
        scalars={"temperature": 0.5},
        edges=Edges(
            lambda x: x,
            lambda x: (x[..., None], x.new_ones(*x.shape[:-1], 1, 1), x.new_ones(*x.shape[:-1], 1, 1)),
            empty=r"keys \[\.\.\., slots, dim\]",
            refuses=(lambda x: bool(x.isinf().any()), "keys must be finite"),
            outputs=lambda result: result.actions[..., 0],
        ),
        bad=[
            Bad((PAIR, PAIR, PAIR), {"temperature": 0}, ValueError, "temperature must be > 0"),
            Bad((PAIR, torch.zeros(1, 2, 4), PAIR), {}, ValueError, "must have one dim"),
            Bad((PAIR, PAIR, torch.zeros(1, 3, 3)), {}, ValueError, "actions must be 2, as queries"),
            Bad((PAIR, PAIR * torch.nan, PAIR), {}, ValueError, "queries must be finite"),
        ],
        large=(2,),
        large_limit=1e4,
        why="products of keys and queries leave the range, sums of actions that of half",
    ),
    Contract(
        "discrete.assign_slots",
        discrete.assign_slots,
        lambda g: [Call((normal(g, 1, 3, 2), normal(g, 1, 3, 2)))],
        reference=_assigned_by_hand,
        outputs=lambda result: (result.slots, result.distance),
        edges=Edges(
            lambda x: x,
            lambda x: (x[..., None], torch.flip(x[..., None], [-2])),
            empty="a and b must have the same slots",
            refuses=(lambda x: bool(x.isinf().any()), "a must be finite"),
            outputs=lambda result: result.slots[..., 0],
        ),
        bad=[
            Bad((PAIR, torch.zeros(1, 3, 3)), {}, ValueError, "a and b must have the same slots"),
            Bad((PAIR, PAIR * torch.inf), {}, ValueError, "b must be finite"),
        ],
        large_limit=10.0,
        why="squares of the distances leave the range of half",
    ),
    Contract(
        "discrete.object_crops",
        _crops,
        lambda g: [Call((normal(g, 3, 5, 6),)), Call((normal(g, 2, 1, 5, 6),))],
        reference=_cropped_by_hand,
        edges=Edges(
            lambda x: x.new_zeros(*x.shape[:-1], 1, 1, 1, 1),
            lambda x: (x[..., None, None, :], torch.ones_like(x)[..., None, None, :]),
            lambda x: {"side": 1},
            empty="image must have shape",
        ),
        bad=[
            Bad((torch.zeros(1, 5, 7),), {}, ValueError, "masks must be of the pictures"),
            Bad((torch.zeros(1, 5, 6),), {"side": 0}, ValueError, "side must be an integer >= 1"),
        ],
    ),
    Module(
        "discrete.ObjectScorer",
        _scored,
        lambda g: [Call((normal(g, 1, 1, 4, 4),))],
        build=seeded(lambda: discrete.ObjectScorer((2, 3), (2, 2), channels=1, size=4, side=2, width=4)),
        large_limit=100.0,
        why=RANGE,
        bad=[Bad((torch.zeros(2, 2, 4, 4),), {}, ValueError, "objects must have shape")],
    ),
    Exempt("discrete.retrieval_metrics", "gives Python numbers", "discrete/test_slots.py"),
    Module(
        "discrete.SymbolicAttributes",
        lambda symbols, x: symbols(x),
        lambda g: [Call((normal(g, 3, 5),))],
        reference=lambda x: torch.cat(
            [
                part.softmax(-1)
                for part in _symbols(torch.Generator().manual_seed(0)).double().scorer(x).split([2, 3], -1)
            ],
            -1,
        ),
        build=_symbols,
        large_limit=100.0,
        why=RANGE,
    ),
    Module(
        "discrete.RuleTransition",
        _soft,
        lambda g: [Call((normal(g, 1, 3, 2), normal(g, 1, 3, 1), normal(g, 1, 3, 1)))],
        reference=_by_hand,
        build=_rules,
        large=(),
        why="choices by logits of any size jump, their products leave the range of half",
        bad=[
            Bad((torch.zeros(2, 2), torch.zeros(2, 3), torch.zeros(2, 1)), {}, ValueError, r"symbols must have shape")
        ],
    ),
    *(
        Module(
            f"discrete.SlotAutoencoder[{'flat' if flat else 'texture'}]",
            _through,
            lambda g: [Call((normal(g, 1, 1, 4, 4), torch.rand(1, 2, 4, 4, generator=g, dtype=torch.float64)))],
            build=lambda g, flat=flat: _autoencoder(g, flat),
            idle=COMPETING,
            large_limit=10.0,
            why=RANGE,
            bad=[
                Bad(
                    (torch.zeros(1, 4, 4), torch.zeros(3, 4, 4)), {}, ValueError, "at most 2 objects, the slots, got 3"
                ),
                Bad((torch.zeros(1, 4, 5), torch.zeros(2, 4, 5)), {}, ValueError, "image must have shape"),
            ],
        )
        for flat in (False, True)
    ),
    Module(
        "discrete.SlotAutoencoder[attention]",
        _alone,
        lambda g: [Call((normal(g, 1, 1, 8, 8),))],
        build=lambda g: _autoencoder(g, size=8),
        idle=[f"encoder.{layer}.{kind}" for layer in (0, 2, 5) for kind in ("weight", "bias")],
        large_limit=10.0,
        forward_mode=False,
        vmap=False,
        gradgradcheck=False,
        why=f"{RANGE}; torch's recurrent cell has no forward mode and no batching rule",
    ),
]
