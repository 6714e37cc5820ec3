"""What the leaves of a circuit make of one variable, given the state of a latent one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pullback.core.checks import check_choice, check_integer
from pullback.core.transforms import can_look

__all__ = ["LEAVES", "Leaf", "make_leaf"]

LEAVES = ("bernoulli", "categorical", "gaussian")


class Leaf(Protocol):
    """A law of one variable for each variable and state: ``parameters`` are ``[variables, states, *shape]``."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the parameters of one law."""

    def initial(self, variables: int, states: int, generator: torch.Generator | None) -> Tensor:
        """Draw parameters of free circuits."""

    def check(self, x: Tensor, observed: Tensor | None) -> None:
        """Raise where an observed value is outside of the support."""

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Return ``[variables, rows, states]`` from ``x [rows, variables]``."""

    def mean(self, parameters: Tensor) -> Tensor:
        """Return ``[variables, states]``."""

    def draw(self, parameters: Tensor, generator: torch.Generator | None) -> Tensor:
        """Draw one value for each law in ``[..., *shape]``, on the generator's device."""

    def fitted(self, parameters: Tensor, flows: Tensor, x: Tensor, step: float, smoothing: float) -> Tensor:
        """Move to the laws of most likelihood for rows weighted by ``flows [variables, rows, states]``."""


def make_leaf(leaf: str, categories: int | None) -> Leaf:
    """Return the leaf of a name, with what it needs."""
    check_choice("leaf", leaf, LEAVES)
    if leaf == "categorical":
        if categories is None:
            raise ValueError("categories must be given for categorical leaves")
        return _Categorical(check_integer("categories", categories, 2))
    if categories is not None:
        raise ValueError(f"categories must be left out for {leaf} leaves, got {categories}")
    return _Bernoulli() if leaf == "bernoulli" else _Gaussian()


def _all(good: Tensor, observed: Tensor | None) -> bool:
    """Whether all that is observed is good, or nobody may look."""
    return not can_look(good) or bool((good if observed is None else good | ~observed).all())


@dataclass(frozen=True)
class _Bernoulli:
    """Values 0 and 1; the parameter is the logit."""

    shape: tuple[int, ...] = ()

    def initial(self, variables: int, states: int, generator: torch.Generator | None) -> Tensor:
        return torch.rand(variables, states, generator=generator).clamp(1e-3, 1 - 1e-3).logit()

    def check(self, x: Tensor, observed: Tensor | None) -> None:
        if not _all((x == 0) | (x == 1), observed):
            raise ValueError("x must be 0 or 1 where it is observed, for bernoulli leaves")

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        return _looked_up(torch.stack([logsigmoid(-parameters), logsigmoid(parameters)], 1), x)

    def mean(self, parameters: Tensor) -> Tensor:
        return parameters.sigmoid()

    def draw(self, parameters: Tensor, generator: torch.Generator | None) -> Tensor:
        uniform = torch.rand(parameters.shape, generator=generator, device=parameters.device, dtype=parameters.dtype)
        return (uniform < parameters.sigmoid()).to(parameters.dtype)

    def fitted(self, parameters: Tensor, flows: Tensor, x: Tensor, step: float, smoothing: float) -> Tensor:
        old = parameters.sigmoid()
        ones = torch.einsum("vbn,bv->vn", flows, x) + smoothing
        found = _ratio(ones, flows.sum(1) + 2 * smoothing, old)
        eps = torch.finfo(old.dtype).eps  # a state that was sure of itself could never learn
        return ((1 - step) * old + step * found).clamp(eps, 1 - eps).logit()


@dataclass(frozen=True)
class _Categorical:
    """Values 0 to categories - 1; the parameters are logits."""

    categories: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.categories,)

    def initial(self, variables: int, states: int, generator: torch.Generator | None) -> Tensor:
        return torch.randn(variables, states, self.categories, generator=generator)

    def check(self, x: Tensor, observed: Tensor | None) -> None:
        if not _all((x >= 0) & (x < self.categories) & (x == x.floor()), observed):
            raise ValueError(f"x must be an integer in 0..{self.categories - 1} where it is observed")

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        return _looked_up(parameters.log_softmax(-1).mT, x)

    def mean(self, parameters: Tensor) -> Tensor:
        return parameters.softmax(-1) @ torch.arange(self.categories, dtype=parameters.dtype, device=parameters.device)

    def draw(self, parameters: Tensor, generator: torch.Generator | None) -> Tensor:
        flat = parameters.softmax(-1).reshape(-1, self.categories)
        drawn = torch.multinomial(flat, 1, generator=generator).reshape(parameters.shape[:-1])
        return drawn.to(parameters.dtype)

    def fitted(self, parameters: Tensor, flows: Tensor, x: Tensor, step: float, smoothing: float) -> Tensor:
        codes = torch.nn.functional.one_hot(x.long(), self.categories).to(flows.dtype)
        counts = torch.einsum("vbn,bvc->vnc", flows, codes) + smoothing
        old = parameters.softmax(-1)
        found = _ratio(counts, counts.sum(-1, keepdim=True), old)
        return ((1 - step) * old + step * found).clamp(min=torch.finfo(old.dtype).tiny).log()


@dataclass(frozen=True)
class _Gaussian:
    """Real values; the parameters are the mean and the logarithm of the standard deviation."""

    shape: tuple[int, ...] = (2,)

    def initial(self, variables: int, states: int, generator: torch.Generator | None) -> Tensor:
        means = torch.randn(variables, states, generator=generator)
        return torch.stack([means, torch.zeros_like(means)], -1)

    def check(self, x: Tensor, observed: Tensor | None) -> None:
        if not _all(x.isfinite(), observed):
            raise ValueError("x must be finite where it is observed, for gaussian leaves")

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        mean, log_scale = parameters.unsqueeze(-3).unbind(-1)
        distance = (x.T.unsqueeze(-1) - mean) * (-log_scale).exp()
        return -distance.square() / 2 - log_scale - math.log(2 * math.pi) / 2

    def mean(self, parameters: Tensor) -> Tensor:
        return parameters[..., 0]

    def draw(self, parameters: Tensor, generator: torch.Generator | None) -> Tensor:
        mean, log_scale = parameters.unbind(-1)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        return mean + log_scale.exp() * noise

    def fitted(self, parameters: Tensor, flows: Tensor, x: Tensor, step: float, smoothing: float) -> Tensor:
        """Moves mean and mean square, whose mixture is a law of its own; never narrower than by smoothing."""
        mean, log_scale = parameters.unbind(-1)
        total = flows.sum(1) + smoothing
        found = _ratio(torch.einsum("vbn,bv->vn", flows, x) + smoothing * mean, total, mean)
        moved = (1 - step) * mean + step * found
        gap = (x.T.unsqueeze(-1) - moved.unsqueeze(1)).square()
        old = (2 * log_scale).exp() + (mean - moved).square()
        spread = _ratio((flows * gap).sum(1), total, old) + smoothing
        variance = (1 - step) * old + step * spread
        return torch.stack([moved, variance.clamp(min=torch.finfo(old.dtype).tiny).log() / 2], -1)


def _ratio(counts: Tensor, total: Tensor, old: Tensor) -> Tensor:
    """Return counts over their total, the old value where nothing was counted."""
    return torch.where(total > 0, counts / torch.where(total > 0, total, 1), old)


def _looked_up(table: Tensor, x: Tensor) -> Tensor:
    """Return ``[variables, rows, states]`` from ``table [variables, values, states]`` at ``x [rows, variables]``."""
    count, values, states = table.shape
    index = x.T.long() + values * torch.arange(count, device=x.device).unsqueeze(-1)
    return table.reshape(-1, states).index_select(0, index.reshape(-1)).view(count, len(x), states)
