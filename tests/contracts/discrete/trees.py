"""Contracts of soft trees, of forests with responses in a memory, and of reading and writing one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pullback import discrete
from tests.contracts.contract import Bad, Call, Contract, Edges, Exempt, Module
from tests.contracts.law import floating

_MEMORY = torch.tensor([[1.0, -2.0], [0.5, 3.0], [2.0, 0.0]], dtype=torch.float64)
_EVEN = torch.full((3,), 1 / 3)


def _samples(generator: torch.Generator) -> list[Call]:
    x = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    return [Call((x,)), Call((x[0],))]


def _rows(generator: torch.Generator) -> list[Call]:
    weights = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    return [Call((_MEMORY.clone(), weights))]


def _write_calls(generator: torch.Generator) -> list[Call]:
    weights, erase = (torch.randn(4, n, generator=generator, dtype=torch.float64) for n in (3, 2))
    add = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    return [Call((_MEMORY.clone(), weights, erase, add))]


def _written(memory: Tensor, weights: Tensor, erase: Tensor, add: Tensor) -> Tensor:
    out = torch.empty(*weights.shape, 2, dtype=torch.float64)
    for k, (w, e, a) in enumerate(zip(weights.sigmoid(), erase.sigmoid(), add, strict=True)):
        for j in range(3):
            out[k, j] = memory[j] * (1 - w[j] * e) + w[j] * a
    return out


def _walked(**options: Any) -> Any:
    """The weights of the leaves from the definition: every leaf, every node on its way."""

    def reference(x: Tensor) -> Tensor:
        tree = _tree(**options)(torch.Generator().manual_seed(0)).double()
        attention, depth = tree.weights_of_features(), tree.depth
        out = torch.ones(*x.shape[:-1], tree.trees, 2**depth, dtype=torch.float64)
        for leaf in range(2**depth):
            node = 0
            for level in range(depth):
                margin = (x @ attention[:, level if tree.oblivious else node].T) - tree.threshold[
                    :, level if tree.oblivious else node
                ]
                margin = margin / tree.log_temperature[:, level if tree.oblivious else node].exp()
                share = torch.sigmoid(margin)
                if tree.gate == "entmoid":
                    share = discrete.entmax15(torch.stack([margin, 0 * margin], -1))[..., 0]
                right = leaf >> (depth - 1 - level) & 1
                out[..., leaf] = out[..., leaf] * (1 - share if right else share)
                node = 2 * node + 1 + right
        return out

    return reference


def _tree(**options: Any) -> Any:
    return lambda g: discrete.SoftTree(3, 2, trees=2, generator=g, **options)


def _read(x: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    forest = discrete.ResponseForest(3, 2, depth=2, trees=2, memory=2, generator=generator).double()
    weights = forest.tree(x)
    return forest.head(sum(weights[..., t, :] @ forest.memory[t] for t in range(2)) / 2)


def _softmax(weights: Tensor) -> Tensor:
    """The samples give scores, the bad calls an address as it is."""
    return torch.softmax(weights, -1) if isinstance(weights, Tensor) and weights.ndim == 2 else weights


def _half(x: Tensor, *shape: int) -> Tensor:
    return torch.full(shape, 0.5, dtype=floating(x), device=x.device)


def _share(weights: Tensor) -> Tensor:
    return weights.sigmoid() if isinstance(weights, Tensor) and weights.ndim == 2 else weights


_INT = torch.arange(2)
_CANCELS = "the weighted sum of large features can cancel"
_BAD = [
    Bad((torch.zeros(2, 4),), {}, ValueError, r"x must have 3 features, got shape \(2, 4\)"),
    Bad((torch.full((1, 3), torch.nan),), {}, ValueError, "x must not be NaN"),
]

CONTRACTS = [
    Contract(
        "discrete.memory_read",
        lambda memory, weights: discrete.memory_read(memory, _softmax(weights)),
        _rows,
        reference=lambda memory, weights: torch.softmax(weights, -1) @ memory,
        edges=Edges(
            lambda x: x,
            lambda x: (torch.eye(x.shape[-1], dtype=floating(x), device=x.device), x),
            domain=lambda x: torch.softmax(x, -1),
            empty="weights must sum to 1",
            refuses=(lambda x: bool(x.isnan().any()), "weights must sum to 1, got nan"),
            place=1,
        ),
        batched=False,
        why="the memory in front has no batch, the addresses have",
        bad=[
            Bad((_MEMORY[:2], _EVEN), {}, ValueError, r"memory must have a row for each .* \(2, 2\) and \(3,\)"),
            Bad((_MEMORY.long(), _EVEN), {}, TypeError, "memory must be a floating tensor"),
            Bad((_MEMORY, _EVEN.long()), {}, TypeError, "weights must be a floating tensor"),
            Bad((_MEMORY, _EVEN / 2), {}, ValueError, "weights must sum to 1, got 0.5"),
        ],
    ),
    Contract(
        "discrete.memory_write",
        lambda memory, weights, erase, add: discrete.memory_write(memory, _share(weights), _share(erase), add),
        _write_calls,
        reference=_written,
        edges=Edges(
            lambda x: x.unsqueeze(-1).expand(*x.shape, 2),
            lambda x: (_half(x, x.shape[-1], 2), x, _half(x, 2), _half(x, 2)),
            domain=torch.sigmoid,
            place=1,
        ),
        large=(0, 3),
        large_limit=1e4,
        batched=False,
        why="the memory in front has no batch, the addresses have; sums of the largest numbers overflow",
        bad=[
            Bad((_MEMORY, _EVEN[:2], _EVEN[:2], _EVEN[:2]), {}, ValueError, "memory must have a row for each"),
            Bad((_MEMORY, _EVEN * 4, _EVEN[:2], _EVEN[:2]), {}, ValueError, r"weights must be in \[0, 1\], got 1.333"),
            Bad((_MEMORY, _EVEN, -_EVEN[:2], _EVEN[:2]), {}, ValueError, r"erase must be in \[0, 1\], got -0.33"),
            Bad(
                (_MEMORY, _EVEN, _EVEN, _EVEN[:2]), {}, ValueError, r"erase must have 2 entries a row, got shape \(3,\)"
            ),
            Bad((_MEMORY, _EVEN, _EVEN[:2], _INT), {}, TypeError, "add must be a floating tensor"),
        ],
    ),
    *[
        Module(
            f"discrete.SoftTree[{name}]",
            lambda tree, x: tree(x),
            _samples,
            build=_tree(**options),
            reference=_walked(**options),
            large_limit=1e4,
            why=_CANCELS,
            bad=_BAD,
        )
        for name, options in (
            ("entmax", {}),
            ("softmax", {"attention": "softmax", "gate": "entmoid"}),
            ("dense, oblivious", {"attention": "dense", "oblivious": True}),
        )
    ],
    Module(
        "discrete.ResponseForest",
        lambda forest, x: forest(x),
        _samples,
        build=lambda g: discrete.ResponseForest(3, 2, depth=2, trees=2, memory=2, generator=g),
        reference=_read,
        large_limit=1e4,
        why=_CANCELS,
        bad=_BAD,
    ),
    Exempt("discrete.HardForest", "made by ResponseForest.harden, and not differentiated", "discrete/test_trees.py"),
]
