"""Contracts of what learns several functions from episodes: against the losses of each model, one after the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pullback import discrete
from tests.contracts.contract import Bad, Call, Contract, Edges, Exempt, HigherOrder

_Y = torch.tensor([[0.5, 1.0, -0.2], [0.3, -1.0, 0.8]], dtype=torch.float64)


def _three(x: Tensor) -> Tensor:
    """Three models at once."""
    return torch.stack([torch.tanh(x), torch.tanh(-x), torch.sigmoid(x)])


def _squares(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target) ** 2


def _loss(models: Any, x: Tensor, y: Tensor | None = None, **options: Any) -> tuple[Tensor, Tensor]:
    y = _Y.to(x) if y is None else y
    found = discrete.episode_loss(models, x, y, _squares, **options)
    return found.loss, found.losses


def _by_hand(x: Tensor, temperature: float = 0.0) -> tuple[Tensor, Tensor]:
    losses = torch.tensor(
        [[float(((model - y) ** 2).mean()) for model in _three(row)] for row, y in zip(x, _Y, strict=True)],
        dtype=torch.float64,
    )
    if temperature == 0:
        return losses.min(1).values.mean(), losses
    return (torch.softmax(-losses / temperature, 1) * losses).sum(1).mean(), losses


def _episodes(generator: torch.Generator) -> list[Call]:
    return [Call((torch.randn(2, 3, generator=generator, dtype=torch.float64),))]


CONTRACTS = [
    HigherOrder(
        "discrete.episode_loss",
        _loss,
        _episodes,
        _by_hand,
        given=_three,
        argument="models",
        edges=Edges(
            lambda x: x.new_zeros(()),
            lambda x: (x.reshape(-1, 1), torch.zeros_like(x).reshape(-1, 1)),
            outputs=lambda found: found[0],
        ),
        batched=False,
        large_limit=1e4,
        bad=[
            Bad((_Y, _Y[:1]), {}, ValueError, r"y must have shape \(2, 3, \.\.\.\)"),
            Bad((_Y[:, :0], _Y[:, :0]), {}, ValueError, r"x must have shape \(episodes, m"),
            Bad((_Y[0],), {}, ValueError, r"x must have shape \(episodes, m"),
            Bad((_Y.long(), _Y), {}, TypeError, "x must be a floating tensor"),
            Bad((_Y, _Y), {"temperature": -1.0}, ValueError, "temperature must be"),
            Bad((_Y, _Y * torch.nan), {}, ValueError, r"the losses must have a finite .* none in row \(0,\)"),
            Bad((_Y, _Y), {"mask": torch.ones(2, 3)}, TypeError, "mask must be boolean"),
            Bad((_Y, _Y), {"mask": torch.ones(2).bool()}, ValueError, r"mask must have shape \(2, 3\)"),
            Bad((_Y, _Y), {"mask": torch.zeros(2, 3).bool()}, ValueError, "mask must keep a sample of each episode"),
        ],
        why="the first dimension is that of the episodes; squares of large numbers overflow",
    ),
    Contract(
        "discrete.episode_loss[all learn]",
        lambda x: _loss([torch.tanh, lambda t: torch.tanh(-t), torch.sigmoid], x, temperature=0.7),
        _episodes,
        lambda x: _by_hand(x, 0.7),
        batched=False,
        gradcheck=False,
        gradgradcheck=False,
        large_limit=1e4,
        why="weights are held fixed, so differences of the value are not the gradient; squares overflow",
    ),
    Exempt("discrete.mapping_rank", "gives Python numbers", "discrete/test_episodes.py"),
    Exempt("discrete.match_clusters", "integers in, integers and shares out", "discrete/test_episodes.py"),
]
