"""What the probes measured, for the analysis to weigh."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pullback.audit.sites import Site

__all__ = ["Verdicts", "site_key"]


@dataclass
class Verdicts:
    """What the probes measured; keys are (code object, instruction, operation).

    Attributes:
        exits: for a value that left for Python: whether changing it changes the loss.
        branches: for a branch on a value: whether taking the other side changes the loss.
        gaps: for a stop: the share of the smoothed derivative that it hides (0: none).
        matters: for a stop: whether the loss moves when the input of the stopped operation does.
        agree: whether autograd agrees with the smoothed derivative as a whole; ``None`` if not measured.
        biased: custom functions whose backward disagrees with their forward, with the numbers.
        evidence: further numbers of the whole function.
    """

    exits: dict[tuple[Any, int, str], bool] = field(default_factory=dict)
    branches: dict[tuple[Any, int, str], bool] = field(default_factory=dict)
    gaps: dict[tuple[Any, int, str], float] = field(default_factory=dict)
    matters: dict[tuple[Any, int, str], bool | None] = field(default_factory=dict)
    agree: bool | None = None
    biased: list[tuple[Site, str, dict[str, float]]] = field(default_factory=list)
    evidence: dict[str, float] = field(default_factory=dict)


def site_key(site: Site, op: str) -> tuple[Any, int, str]:
    """Return the key under which probes file what they measured."""
    return site.code, site.instruction, op
