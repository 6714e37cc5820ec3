"""What the user asked for: temperature, scale, methods; how they become the arguments of a block."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pullback.core.transforms import physical
from pullback.relax.internals import viewed
from pullback.relax.soft_tensors import attach, attached

__all__ = ["Settings"]

_GAUSSIAN_WIDTH = math.sqrt(2 * math.pi)


@dataclass(frozen=True)
class Settings:
    """Settings of one entered context.

    Attributes:
        temperature: standard deviation of the imitated noise, in units of the spread of each argument.
        scale: ``"std"``: relative to the standard deviation of the argument; ``None``: absolute.
        hard: hard values forward.
        methods: operation -> method of its block.
    """

    temperature: float = 0.1
    scale: str | None = "std"
    hard: bool = True
    methods: Mapping[str, str] = field(default_factory=dict)

    def spread(self, x: Tensor) -> float:
        """The standard deviation of the usual elements of ``x``, or of what it is a view of.

        1 where there is none: one element, all equal.
        """
        if self.scale is None:
            return 1.0
        # A slice has the spread of what it was cut from: a loop over rows gets what the batch gets.
        cut_from = attached(x, "_cut_from")
        whole = cut_from[0] if cut_from else viewed(x)
        spread: float | None = attached(whole, "_spread")
        if spread is None:
            with torch.no_grad():
                spread = _spread(physical(whole.detach()))
            if not (whole.is_leaf and whole.requires_grad):  # parameters of the user stay as they are
                attach(whole, "_spread", spread)
        return spread if math.isfinite(spread) and spread > 0 else 1.0

    def width(self, x: Tensor) -> float:
        """The ``temperature`` of an elementwise block on ``x``: its step gets the slope of the Gaussian's distribution.

        A block's step has slope ``1 / temperature`` at 0, that of noise with standard deviation ``sigma`` has
        ``1 / (sigma sqrt(2 pi))``.
        """
        return self.temperature * self.spread(x) * _GAUSSIAN_WIDTH

    def ordering(self, x: Tensor, operation: str) -> dict[str, Any]:
        """The keyword arguments of an ordering block: an absolute temperature, the same noise for every row."""
        return {"temperature": self.temperature * self.spread(x), "scale": None, **self.method(operation)}

    def method(self, operation: str) -> dict[str, Any]:
        """``{"method": ...}`` where the user chose one, or where not the block's own default fits the Gaussian best."""
        method = self.methods.get(operation, _METHODS.get(operation))
        return {} if method is None else {"method": method}


def _spread(x: Tensor) -> float:
    """The standard deviation without the elements that stand for something else: infinities, ``-1e9`` of a mask.

    Those beyond a hundred median deviations from the median are left out. Of large tensors a regular sample is taken.
    """
    x = x.reshape(-1)
    if x.numel() > 2 * _SAMPLE:
        x = x[:: x.numel() // _SAMPLE]
    if x.dtype != torch.float64:
        x = x.float()
    if x.numel() < 2:
        return 0.0
    if x.numel() <= _FEW:
        return _spread_of_few(x.tolist())
    if not math.isfinite(x.sum()):
        x = x[torch.isfinite(x)]
        if len(x) < 2:
            return 0.0
    deviation = (x - x.median()).abs()
    limit = 100 * deviation.median()
    if deviation.amax() > limit:
        usual = x[deviation <= limit]
        spread = usual.std().item() if len(usual) > 1 else 0.0
        return spread if spread > 0 else x.std().item()
    return x.std().item()


def _spread_of_few(x: list[float]) -> float:
    """The same of so few numbers that Python is faster."""
    x = [v for v in x if math.isfinite(v)]
    if len(x) < 2:
        return 0.0
    middle = sorted(x)[(len(x) - 1) // 2]
    deviation = [abs(v - middle) for v in x]
    limit = 100 * sorted(deviation)[(len(x) - 1) // 2]
    usual = [v for v, d in zip(x, deviation, strict=True) if d <= limit]
    spread = _deviation(usual) if len(usual) > 1 else 0.0
    return spread if spread > 0 else _deviation(x)


def _deviation(x: list[float]) -> float:
    mean = math.fsum(x) / len(x)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in x) / (len(x) - 1))


_FEW = 32
_SAMPLE = 4096
# The blocks round with heavy tails; the logistic step is closer to a Gaussian's.
_METHODS = dict.fromkeys(("round", "floor", "ceil", "trunc", "frac"), "logistic")
