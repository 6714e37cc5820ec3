"""Draws: the plain program's numbers, with the gradient of the probabilities they were drawn from."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pullback.relax.rules import PASS, Dropped, Integer, is_active, lazy, relaxes, soft_value
from pullback.relax.settings import Settings
from pullback.relax.soft_tensors import Distribution, SoftTensor

__all__: list[str] = []


@relaxes("bernoulli", group="sampling", random=True)
def _bernoulli(settings: Settings, hard: Tensor, input: Tensor, p: Any = None, *, generator: Any = None) -> Any:
    probability = soft_value(input if p is None else p)
    if not is_active(probability):
        return PASS
    if not hard.is_floating_point():
        raise Dropped("a draw into an integer tensor")
    return probability.expand(hard.shape)


@relaxes("multinomial", group="sampling", random=True)
def _multinomial(
    settings: Settings,
    hard: Tensor,
    input: Tensor,
    num_samples: int,
    replacement: bool = False,
    *,
    generator: Any = None,
) -> Any:
    if isinstance(input, SoftTensor):
        raise Dropped("a draw from integer weights")

    shape = hard.shape

    def distribution(input: Tensor) -> Distribution:
        probability = input / input.sum(-1, keepdim=True)
        return Distribution(probability.unsqueeze(-2).expand(*shape, input.shape[-1]))

    return Integer(lazy(distribution, input))


@relaxes("poisson", group="sampling", random=True)
def _poisson(settings: Settings, hard: Tensor, input: Tensor, generator: Any = None) -> Any:
    return input


@relaxes("binomial", group="sampling", random=True)
def _binomial(settings: Settings, hard: Tensor, count: Tensor, prob: Tensor, generator: Any = None) -> Any:
    return count * prob
