"""Random steps of the trained tensors that keep the program inside its domain.

A program that checks its inputs (an image in [0, 1], a positive scale, a distribution that sums to one) refuses most
values around the trained ones. Steps are tried in this order, and the first kind that the program takes is kept:

========== ================================= ===========================================================
``free``    ``p + s rms(p) u``                 anywhere
``scaled``  ``p (1 + s u)``, ``|s u| < 1``      keeps signs and zeros
``mixed``   ``p + s (p' - p)``, one side       ``p'`` has the entries of ``p`` in another order: keeps bounds,
                                               sums, norms, every convex set that does not depend on the order
``small``   ``free``, a hundred times shorter  where the values are far from the border
========== ================================= ===========================================================
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pullback.audit.probe.replay import Laboratory

__all__ = ["Steps", "draw_step"]

TRIES = 3
"""Steps that must be taken before a kind is kept."""
SHORTER = 0.01


class Steps:
    """Steps around the values that some tensors have now.

    Args:
        laboratory: runs the program.
        tensors: what is moved; restored to the bit after each step.
        generator: of the directions.
    """

    def __init__(self, laboratory: Laboratory, tensors: list[Tensor], generator: torch.Generator) -> None:
        self.laboratory = laboratory
        self.tensors = tensors
        self.generator = generator

    def kind(self, scale: float) -> str:
        """Return the first kind of step of this size that the program takes, an empty string if it takes none."""
        for kind in ("free", "scaled", "mixed", "small"):
            if all(self._taken(kind, scale) for _ in range(TRIES)):
                return kind
        self.laboratory.give_up()
        return ""

    def _taken(self, kind: str, scale: float) -> bool:
        with self.step(kind, scale) as (move, _):
            for side in self.sides(kind):
                move(side)
                if self.laboratory.loss() is None:
                    return False
        return True

    @staticmethod
    def sides(kind: str) -> tuple[float, ...]:
        """Return the multiples of a step to go: both sides, or one and none."""
        return (1.0, 0.0) if kind == "mixed" else (1.0, -1.0)

    @contextlib.contextmanager
    def step(self, kind: str, scale: float) -> Iterator[tuple[Callable[[float], None], list[Tensor]]]:
        """Draw a step; give the function that moves the tensors to a multiple of it, and the step of each."""
        with torch.no_grad():
            before = [t.detach().clone() for t in self.tensors]
            steps = [draw_step(start, kind, scale, self.generator) for start in before]

        def move(multiple: float) -> None:
            with torch.no_grad():
                for tensor, start, step in zip(self.tensors, before, steps, strict=True):
                    tensor.copy_(start + multiple * step)

        try:
            yield move, steps
        finally:
            with torch.no_grad():
                for tensor, start in zip(self.tensors, before, strict=True):
                    tensor.copy_(start)


def draw_step(start: Tensor, kind: str, scale: float, generator: torch.Generator) -> Tensor:
    """Return a random step of a kind from ``start``; ``"ray"`` is not random: towards zero, and away from it."""
    if kind == "ray":
        return scale * start
    if kind == "mixed":
        return scale * (_shuffled(start, generator) - start)
    noise = torch.randn(start.shape, generator=generator, dtype=torch.float64)
    if kind == "scaled":
        return (scale * noise).clamp(-0.99, 0.99).to(start) * start
    size = float(start.double().square().mean().sqrt()) if start.numel() else 0.0
    return (scale * (SHORTER if kind == "small" else 1.0) * (size or 0.1) * noise).to(start)


def _shuffled(values: Tensor, generator: torch.Generator) -> Tensor:
    """Return each row's entries in another order; a row of one is taken towards zero."""
    if values.dim() == 0 or values.shape[-1] < 2:
        return torch.zeros_like(values)
    order = torch.rand(values.shape, generator=generator).argsort(-1).to(values.device)
    return values.gather(-1, order)
