"""Contracts of the sorting networks of ``pullback.discrete``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pullback.discrete.networks import comparators, soft_swap, sorting_network
from pullback.discrete.ordering import permutation_loss, reordered_loss
from pullback.discrete.set_scorer import SetScorer
from pullback.discrete.steps import soft_step
from tests.contracts.contract import Bad, Call, Contract, Edges, Exempt, Module

_STEPS: dict[str, Callable[[Tensor], Tensor]] = {
    "logistic": lambda x: 1 / (1 + torch.exp(-4 * x)),
    "gaussian": lambda x: torch.distributions.Normal(0.0, 1.0).cdf(math.sqrt(2 * math.pi) * x),
    "cauchy": lambda x: torch.arctan(math.pi * x) / math.pi + 0.5,
    "reciprocal": lambda x: x / (1 + 2 * x.abs()) + 0.5,
    "optimal": lambda x: torch.where(x.abs() <= 0.25, x + 0.5, 0.5 + x.sign() * (0.5 - 1 / (16 * x.abs()))),
}


def _odd(x: Tensor, half: float, *coefficients: float) -> Tensor:
    """1/2 and an odd polynomial of what lies within a band of that half width."""
    u = torch.minimum(torch.maximum(x / half, torch.full_like(x, -1.0)), torch.full_like(x, 1.0))
    return 0.5 + sum(c * u ** (2 * k + 1) for k, c in enumerate(coefficients))


_FURTHER_STEPS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: _odd(x, 1 / 2, 1 / 2),
    "cubic": lambda x: _odd(x, 3 / 4, 3 / 4, -1 / 4),
    "quintic": lambda x: _odd(x, 15 / 16, 15 / 16, -5 / 8, 3 / 16),
    "logistic_phi": lambda x: torch.special.expit(4 * x / (x.square() + 1e-8) ** (1 / 8)),
}
_MEAN = {"steepness": 2.0}


def _samples(generator: torch.Generator) -> list[Call]:
    return [Call((torch.randn(*shape, generator=generator, dtype=torch.float64),)) for shape in ((5,), (2, 3), (1,))]


def _product(x: Tensor, distribution: str, network: str) -> Tensor:
    """The soft permutation of one vector by its definition: the product of the layers, each an n x n matrix."""
    n = x.numel()
    product = torch.eye(n, dtype=x.dtype)
    for layer in comparators(n, network):
        mixing = torch.eye(n, dtype=x.dtype)
        for i, j in layer.T.tolist():
            w = {**_STEPS, **_FURTHER_STEPS}[distribution](2.0 * (x[j] - x[i]))
            mixing[i, i], mixing[i, j], mixing[j, i], mixing[j, j] = w, 1 - w, 1 - w, w
        product, x = mixing @ product, mixing @ x
    return product


def _reference(distribution: str, network: str) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def reference(x: Tensor) -> tuple[Tensor, Tensor]:
        rows = x.reshape(-1, x.shape[-1])
        matrices = torch.stack([_product(row, distribution, network) for row in rows])
        values = (matrices @ rows[..., None]).squeeze(-1)
        return values.reshape(x.shape), matrices.reshape(*x.shape, x.shape[-1])

    return reference


def _network(distribution: str, network: str) -> Contract:
    def block(x: Tensor, **kwargs: Any) -> Any:
        return sorting_network(x, **{**_MEAN, "distribution": distribution, "network": network, **kwargs})

    return Contract(
        f"discrete.sorting_network[{network}, {distribution}]",
        block,
        _samples,
        reference=_reference(distribution, network),
        hard=lambda x: (
            x.sort(dim=-1).values,
            torch.nn.functional.one_hot(x.argsort(dim=-1), x.shape[-1]),
        ),
        soft={"steepness": 1e8},
        scalars={"steepness": 2.0},
        outputs=lambda result: (result.values, result.permutation),
        edges=Edges(
            lambda x, dim: x.sort(dim).values,
            along=True,
            empty="x must not be empty along dim",
            outputs=lambda result: result.values,
        )
        if (distribution, network) == ("logistic", "bitonic")
        else None,
        bad=[
            Bad((torch.zeros(2),), {"steepness": torch.tensor(-1.0)}, ValueError, "steepness must be > 0, got -1.0"),
            Bad((torch.tensor([1, 2]),), {}, TypeError, "x must be a floating tensor, got torch.int64"),
            Bad((torch.zeros(2, 0),), {}, ValueError, r"x must not be empty along dim 1, got shape \(2, 0\)"),
            Bad((torch.tensor(1.0),), {}, ValueError, "x must have at least one dimension"),
            Bad((torch.tensor([[0.0, 1.0], [torch.nan, 1.0]]),), {}, ValueError, r"NaN, got nan at index \(1, 0\)"),
            Bad((torch.zeros(2),), {"steepness": 0.0}, ValueError, "steepness must be > 0, got 0.0"),
            Bad((torch.zeros(2),), {"steepness": -1.0}, ValueError, "steepness must be > 0, got -1.0"),
            Bad((torch.zeros(2),), {"distribution": "caucy"}, ValueError, "'optimal'.*did you mean 'cauchy'"),
            Bad((torch.zeros(2),), {"network": "bitnic"}, ValueError, "'odd_even'.*did you mean 'bitonic'"),
            Bad((torch.zeros(2),), {"dim": 1}, IndexError, "dim must be in"),
        ],
    )


def _swap(distribution: str) -> Contract:
    def reference(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        w = _STEPS[distribution](2.0 * (b - a))
        return w * a + (1 - w) * b, (1 - w) * a + w * b

    return Contract(
        f"discrete.soft_swap[{distribution}]",
        lambda a, b, **kwargs: soft_swap(a, b, **{**_MEAN, "distribution": distribution, **kwargs}),
        lambda g: [Call(tuple(torch.randn(2, 3, 4, generator=g, dtype=torch.float64)))],
        reference=reference,
        hard=lambda a, b: (torch.minimum(a, b), torch.maximum(a, b)),
        soft={"steepness": 1e8},
        scalars={"steepness": 2.0},
        outputs=tuple,
        edges=Edges(lambda x: x, lambda x: (x, x * 0.5)) if distribution == "logistic" else None,
        bad=[
            Bad((torch.zeros(2), torch.zeros(3)), {}, ValueError, "a and b must broadcast"),
            Bad((torch.zeros(2), torch.zeros(2).double()), {}, ValueError, "a and b must agree in dtype"),
            Bad((torch.zeros(2), torch.tensor([1, 2])), {}, TypeError, "b must be a floating tensor"),
            Bad((torch.zeros(2), torch.tensor([1.0, torch.nan])), {}, ValueError, "b must not be NaN"),
            Bad((torch.zeros(2), torch.zeros(2)), {"steepness": 0.0}, ValueError, "steepness must be > 0"),
        ],
    )


def _step(distribution: str, reference: Callable[[Tensor], Tensor]) -> Contract:
    return Contract(
        f"discrete.soft_step[{distribution}]",
        lambda x: soft_step(x, distribution),
        lambda g: [Call((torch.randn(7, generator=g, dtype=torch.float64),))],
        reference=reference,
        bad=[Bad((torch.tensor([1]),), {}, TypeError, "x must be a floating tensor")],
    )


def _doubly_stochastic(generator: torch.Generator) -> list[Call]:
    return [Call((torch.rand(2, 3, 3, generator=generator, dtype=torch.float64) * 0.8 + 0.1,))]


def _matrix(x: Tensor) -> Tensor:
    """A matrix with a distribution in each row, or one of integers from integers."""
    product = x.unsqueeze(-1) * torch.arange(1, x.shape[-1] + 1).to(x)
    return torch.softmax(product, -1) if x.is_floating_point() else product


_ORDER = torch.tensor([2, 0, 1])


class _Encoder(torch.nn.Module):
    """Items that are numbers: every shape is a set of them."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.slope = torch.nn.Parameter(torch.randn(4, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x[:, None] * self.slope)


def _scorer(generator: torch.Generator) -> SetScorer:
    return SetScorer(_Encoder(generator), 4, 2, item_dims=0, generator=generator)


def _scored_by_hand(items: Tensor) -> Tensor:
    """One item at a time, one head at a time, with the parameters of the module of the entry."""
    w = _scorer(torch.Generator().manual_seed(0)).double().state_dict()

    def norm(x: Tensor, name: str) -> Tensor:
        x = (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt()
        return x * w[f"layers.0.{name}.weight"] + w[f"layers.0.{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return w[f"{name}.weight"] @ x + w[f"{name}.bias"]

    sets = []
    for rows in items.reshape(-1, items.shape[-1]):
        tokens = [torch.tanh(row * w["encoder.slope"]) for row in rows]
        parts = [linear(token, "layers.0.project").view(3, 2, 2) for token in tokens]
        scores = []
        for token, (query, _, _) in zip(tokens, parts, strict=True):
            said = []
            for head in range(2):
                shares = torch.softmax(torch.stack([query[head] @ key[head] for _, key, _ in parts]) / 2**0.5, 0)
                said.append(sum(share * value[head] for share, (_, _, value) in zip(shares, parts, strict=True)))
            h = norm(token + linear(torch.cat(said), "layers.0.combine"), "first")
            fed = linear(torch.relu(linear(h, "layers.0.feed.0")), "layers.0.feed.2")
            scores.append(linear(torch.relu(norm(h + fed, "second")), "score").squeeze())
        sets.append(torch.stack(scores))
    return torch.stack(sets).view(items.shape)


def _reordered(p: Tensor, items: Tensor) -> Tensor:
    """Sum over places: the item that the matrix puts there, less the item that belongs there."""
    total = p.new_zeros(())
    for q, x in zip(p.reshape(-1, 3, 3), items.reshape(-1, 3, 2), strict=True):
        for place, item in enumerate(_ORDER.tolist()):
            total = total + (q[place] @ x - x[item]).square().sum()
    return total / items.numel()


CONTRACTS = [
    *[_step(*step) for step in (*_STEPS.items(), *_FURTHER_STEPS.items())],
    Contract(
        "discrete.soft_step",
        soft_step,
        lambda g: [Call((torch.randn(7, generator=g, dtype=torch.float64),))],
        edges=Edges(lambda x: torch.heaviside(x, torch.full_like(x, 0.5))),
        bad=[Bad((torch.zeros(2), "gauss"), {}, ValueError, "distribution must be one of 'logistic'")],
    ),
    *[_swap(d) for d in _STEPS],
    *[_network(d, "bitonic") for d in (*_STEPS, "cubic")],
    _network("cauchy", "odd_even"),
    Contract(
        "discrete.sorting_network[descending, along the first dimension]",
        lambda x, **kwargs: sorting_network(x, -2, descending=True, **{**_MEAN, **kwargs}).values,
        lambda g: [Call((torch.randn(4, 2, generator=g, dtype=torch.float64),))],
        reference=lambda x: -_reference("cauchy", "bitonic")(-x.mT)[0].mT,
        hard=lambda x: x.sort(dim=-2, descending=True).values,
        soft={"steepness": 1e8},
    ),
    Contract(
        "discrete.sorting_network[hard]",
        lambda x, **kwargs: sorting_network(x, hard=True, **{**_MEAN, **kwargs}),
        lambda g: [Call((torch.randn(2, 6, generator=g, dtype=torch.float64),))],
        reference=lambda x: (
            x.sort(dim=-1).values,
            torch.nn.functional.one_hot(x.argsort(dim=-1), x.shape[-1]).double(),
        ),
        tolerance=0.0,
        outputs=lambda result: (result.values, result.permutation),
        gradcheck=False,
        gradgradcheck=False,
        why="straight-through: the gradient is that of the soft swaps, not of the hard values",
    ),
    Contract(
        "discrete.permutation_loss",
        lambda p, target=None: permutation_loss(p, _ORDER.expand(p.shape[:-1]) if target is None else target),
        _doubly_stochastic,
        reference=lambda p: torch.nn.functional.binary_cross_entropy(
            p, torch.eye(3, dtype=p.dtype)[_ORDER].expand_as(p)
        ),
        batched=False,
        edges=Edges(
            lambda s, dim: s.new_zeros(()),
            lambda s: (_matrix(s), torch.arange(s.shape[-1], device=s.device).expand(s.shape)),
            along=True,
            domain=torch.sigmoid,
        ),
        large=(),
        bad=[
            Bad((torch.zeros(3, 2),), {}, ValueError, "permutation must have shape"),
            Bad((torch.zeros(3, 3, dtype=torch.int64),), {}, TypeError, "permutation must be a floating tensor"),
        ],
        why="a mean over the batch; probabilities are not large",
    ),
    Contract(
        "discrete.reordered_loss",
        lambda p, items, target=None: (
            reordered_loss(p, items, _ORDER.expand(p.shape[:-1]).to(p.device))
            if target is None
            else reordered_loss(p, items, target)
        ),
        lambda g: [Call((c.args[0], torch.randn(2, 3, 2, generator=g).double())) for c in _doubly_stochastic(g)],
        reference=_reordered,
        batched=False,
        large=(),
        edges=Edges(
            lambda s, dim: s.new_zeros(()),
            lambda s: (_matrix(s), torch.nan_to_num(s), torch.arange(s.shape[-1], device=s.device).expand(s.shape)),
            along=True,
            domain=torch.sigmoid,
        ),
        bad=[
            Bad((torch.zeros(3, 2), torch.zeros(3)), {}, ValueError, "permutation must have shape"),
            Bad(
                (torch.zeros(3, 3), torch.zeros(2)), {}, ValueError, r"items must begin with the shape \(3,\), got \(2,"
            ),
            Bad((torch.zeros(3, 3), torch.zeros(3).double()), {}, TypeError, "items"),
            Bad((torch.zeros(3, 3), torch.arange(3)), {}, TypeError, "items must be a floating tensor"),
            Bad((torch.zeros(3, 3), torch.zeros(3), torch.tensor([0, 0, 1])), {}, ValueError, "target must hold every"),
        ],
        why="a mean over the batch; the gradient in the matrix holds squares of items, which overflow",
    ),
    Module(
        "discrete.SetScorer",
        lambda module, items: module(items),
        lambda g: [Call((torch.randn(2, 3, generator=g, dtype=torch.float64),))],
        reference=_scored_by_hand,
        build=_scorer,
        forward_mode=False,
        bad=[
            Bad((torch.tensor(1.0),), {}, ValueError, r"items must have a set dimension .* \(0\), got \(\)"),
        ],
        why="torch's LayerNorm is wrong in nested forward mode",
    ),
    Exempt("discrete.comparators", "takes a size: no data in", "discrete/test_networks.py"),
    Exempt("discrete.ordering_metrics", "gives Python numbers", "discrete/test_networks.py"),
    Exempt("discrete.Sorted", "a result that forms its parts when they are read", "discrete/test_sorting.py"),
]
