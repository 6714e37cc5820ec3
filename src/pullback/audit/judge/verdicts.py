"""What the probes measured, for the analysis to weigh."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pullback.audit.trace.sites import Site

__all__ = ["Bias", "Verdicts", "site_key"]


@dataclass(frozen=True)
class Bias:
    """How the smoothed loss rises where autograd says it does, at one smoothing.

    Attributes:
        ratio: slope of the smoothed loss along autograd's gradient over the slope autograd claims; 1 is unbiased.
        error: its standard error.
        cosine: between the two gradients, estimated from the same directions.
        smoothing: relative to the root mean square of each trained tensor.
    """

    ratio: float
    error: float
    cosine: float
    smoothing: float

    @property
    def biased(self) -> bool:
        """Whether the ratio differs from 1 by more than three standard errors and by more than 10 %."""
        return abs(self.ratio - 1) > max(3 * self.error, 0.1)


@dataclass
class Verdicts:
    """What the probes measured; keys are (code object, instruction, operation).

    Attributes:
        exits: for a value that left for Python: whether changing it changes the loss.
        branches: for a branch on a value: whether taking the other side changes the loss.
        gaps: for a stop: the share of the smoothed derivative that it hides (0: none).
        matters: for a stop: whether the loss moves when the input of the stopped operation does.
        biased: custom functions whose backward disagrees with their forward, with the numbers.
        wrong: operations of torch whose own derivative disagrees with the slope of their values, with the numbers.
        bias: of the whole gradient against the smoothed loss, one entry a smoothing, if measured.
        relaxed: gradient norm under ``relaxed`` and its cosine with the slope of the smoothed loss, if tried.
    """

    exits: dict[tuple[Any, int, str], bool] = field(default_factory=dict)
    branches: dict[tuple[Any, int, str], bool] = field(default_factory=dict)
    gaps: dict[tuple[Any, int, str], float] = field(default_factory=dict)
    matters: dict[tuple[Any, int, str], bool | None] = field(default_factory=dict)
    biased: list[tuple[Site, str, dict[str, float]]] = field(default_factory=list)
    wrong: list[tuple[Site, str, dict[str, float]]] = field(default_factory=list)
    bias: list[Bias] = field(default_factory=list)
    relaxed: dict[str, float] = field(default_factory=dict)


def site_key(site: Site, op: str) -> tuple[Any, int, str]:
    """Return the key under which probes file what they measured."""
    return site.code, site.instruction, op
