"""Contracts of markets of single items: prices, congestion, the proxy of welfare, models of choices."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from pullback import markets
from tests.contracts.contract import Bad, Call, Contract, Exempt, Module

_V = torch.tensor([[5.0, 2.0], [4.0, 3.0]])
_Y = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
_P = torch.tensor([0.5, 0.25])


def _values(generator: torch.Generator) -> list[Call]:
    shapes = ((2, 3), (2, 3, 2), (3, 3))
    return [Call((torch.rand(*shape, generator=generator, dtype=torch.float64),)) for shape in shapes]


def _greatest(values: list[list[float]]) -> float:
    """The greatest total by trying every matching of the fewer side."""
    n, m = len(values), len(values[0]) if values else 0
    if n > m:
        values, n, m = [list(column) for column in zip(*values, strict=True)], m, n
    return max(sum(values[i][j] for i, j in enumerate(chosen)) for chosen in itertools.permutations(range(m), n))


def _prices(values: Tensor) -> Tensor:
    """The greatest prices: by how much the greatest total falls without an item."""
    rows = []
    for table in values.reshape(-1, *values.shape[-2:]).tolist():
        without = [_greatest([[*line[:j], *line[j + 1 :]] for line in table]) for j in range(len(table[0]))]
        rows.append([_greatest(table) - total for total in without])
    return torch.tensor(rows, dtype=values.dtype).reshape(*values.shape[:-2], values.shape[-1])


def _choices(generator: torch.Generator) -> list[Call]:
    logits = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((4, 3), (2, 3, 4))]
    return [Call((torch.softmax(2 * x, -1),)) for x in logits]


def _with_prices(generator: torch.Generator) -> list[Call]:
    drawn = [call.args[0] for call in _choices(generator)]
    return [Call((y, torch.rand(*y.shape[:-2], y.shape[-1] - 1, generator=generator).double())) for y in drawn]


def _surplus(choices: Tensor) -> Tensor:
    items = choices.movedim(-1, 0)[:-1]
    return torch.stack([torch.clamp(item.sum(-1) - 1, min=0) for item in items], -1)


def _score(choices: Tensor, prices: Tensor) -> Tensor:
    bought = torch.einsum("...ij,...j->...", choices[..., :-1], prices)
    return 0.3 * bought - 0.7 * (_surplus(choices).sum(-1) + choices[..., -1].sum(-1))


def _model(generator: torch.Generator) -> markets.ChoiceModel:
    features = torch.rand(3, 4, generator=generator, dtype=torch.float64)
    return markets.ChoiceModel(features, 2, temperature=0.5, generator=generator)


def _known(generator: torch.Generator) -> list[Call]:
    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    return [Call((draw(2, 5, 2), draw(2, 3), draw(2, 4))), Call((draw(5, 2), draw(3), draw(4)))]


_KNOWN: tuple[Any, ...] = (torch.ones(2, 5, 2), torch.ones(2, 3), torch.ones(2, 4))

CONTRACTS = [
    Contract(
        "markets.equilibrium_prices",
        lambda values, **options: markets.equilibrium_prices(values, **{"position": 1.0, **options}),
        _values,
        reference=_prices,
        large_limit=1e8,
        compile=False,
        half_tolerance=6e-2,
        why="assignments are solved outside of graphs; a total of the largest numbers overflows by nature",
        bad=[
            Bad((_V.long(),), {}, TypeError, "values must be a floating tensor"),
            Bad((_V[0],), {}, ValueError, r"values must have shape \(..., consumers, items\)"),
            Bad((_V[:0],), {}, ValueError, "at least 1 each"),
            Bad((_V / 0,), {}, ValueError, "values must be finite"),
            Bad((_V,), {"position": 1.5}, ValueError, r"position must be in \[0, 1\]"),
        ],
    ),
    Contract(
        "markets.congestion",
        markets.congestion,
        _choices,
        reference=_surplus,
        large_limit=1e4,
        why="large: a difference of sums of probabilities",
        bad=[
            Bad((_Y.long(),), {}, TypeError, "choices must be a floating tensor"),
            Bad((_Y[0],), {}, ValueError, r"choices must have shape \(..., consumers, items \+ 1\)"),
            Bad((_Y[:, :1],), {}, ValueError, r"choices must have shape"),
        ],
    ),
    Contract(
        "markets.welfare_proxy",
        lambda choices, prices, **options: markets.welfare_proxy(choices, prices, **{"tradeoff": 0.7, **options}),
        _with_prices,
        reference=_score,
        large=(1,),
        large_limit=1e4,
        why="large: a sum of prices overflows by nature",
        bad=[
            Bad((_Y, -_P), {}, ValueError, "prices must be >= 0 everywhere"),
            Bad((_Y, _P[:1]), {}, ValueError, r"prices must have shape \(..., 2\)"),
            Bad((_Y, _P.double()), {}, TypeError, "must have the same dtype"),
            Bad((_Y, _P), {"tradeoff": 2.0}, ValueError, r"tradeoff must be in \[0, 1\]"),
            Bad((_Y[0], _P), {}, ValueError, "choices must have shape"),
        ],
    ),
    Module(
        "markets.ChoiceModel",
        lambda module, *args: module(*args),
        _known,
        build=_model,
        large=(),
        why="large: a product of its three arguments overflows by nature",
        bad=[
            Bad((_KNOWN[0][..., :1], *_KNOWN[1:]), {}, ValueError, r"consumers must have shape \(..., n, 2\)"),
            Bad((_KNOWN[0], -_KNOWN[1], _KNOWN[2]), {}, ValueError, "prices must be >= 0 everywhere"),
            Bad((*_KNOWN[:2], _KNOWN[2][..., :3]), {}, ValueError, r"mask must have shape \(..., 4\)"),
            Bad((*_KNOWN[:2], torch.ones(3, 4)), {}, ValueError, "mask and markets must have shapes that broadcast"),
        ],
    ),
    Exempt("markets.Market", "a problem with methods", "markets/test_matching.py"),
]
