"""What one defect of docs/defects.md consists of, and how its numbers are computed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Program = Callable[..., Tensor]
Inputs = Callable[[torch.Generator], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Defect(ABC):
    """A program with one defect, marked by ``# <- kind`` at its line, and the same program without it.

    Attributes:
        slug: the anchor of its section in the page.
        program: maps the inputs to a loss.
        mended: the same after the remedy.
        inputs: what both are given: trained tensors are leaves that require grad.
    """

    slug: str
    program: Program
    mended: Program
    inputs: Inputs

    def fresh(self) -> tuple[Tensor, ...]:
        """Return new inputs, the same each time."""
        return self.inputs(torch.Generator().manual_seed(0))

    @abstractmethod
    def numbers(self) -> tuple[float, ...]:
        """Return the numbers that the section states, in its order."""


@dataclass(frozen=True)
class Lost(Defect):
    """A term of the loss that trains nothing.

    Attributes:
        term: maps the inputs to the term that should become small.
        steps: of Adam, step size 0.05, on the whole loss.
    """

    term: Callable[..., Tensor]
    steps: int = 150

    def numbers(self) -> tuple[float, ...]:
        """Return the term before training, after training with the defect, and after training without it."""
        start = float(self.term(*self.fresh()).detach())
        return start, self._trained(self.program), self._trained(self.mended)

    def _trained(self, program: Program) -> float:
        torch.manual_seed(0)  # of programs that draw
        inputs = self.fresh()
        optimizer = torch.optim.Adam([x for x in inputs if x.requires_grad], lr=0.05)
        for _ in range(self.steps):
            optimizer.zero_grad()
            program(*inputs).backward()
            optimizer.step()
        return float(self.term(*inputs).detach())


@dataclass(frozen=True)
class Singular(Defect):
    """A gradient that is not finite at a point that occurs.

    Attributes:
        ordinary: inputs away from that point, where program and mended program are the same.
    """

    ordinary: Inputs

    def numbers(self) -> tuple[float, ...]:
        """Return how many entries of the gradient are not finite, of how many, and the same when mended."""
        return *self._not_finite(self.program), self._not_finite(self.mended)[0]

    def _not_finite(self, program: Program) -> tuple[float, float]:
        inputs = self.fresh()
        gradients = torch.autograd.grad(program(*inputs), [x for x in inputs if x.requires_grad])
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        return float((~flat.isfinite()).sum()), float(flat.numel())
