"""One step of each method of ``sdeint``, and the grid of its steps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pullback.core.transforms import can_look
from pullback.dynamics.brownian import BrownianPath

__all__ = ["SDE_METHODS", "Equation", "Grid", "OneStep", "heun_pair", "step_along"]

SDE_METHODS: dict[str, tuple[str, ...]] = {
    "euler": ("ito",),
    "milstein": ("ito", "stratonovich"),
    "heun": ("stratonovich",),
    "midpoint": ("stratonovich",),
    "reversible_heun": ("stratonovich",),
    "srk": ("ito",),
}
"""The methods, and which equations each solves."""


class OneStep(NamedTuple):
    """A step from ``start`` to ``end``."""

    start: float
    end: float

    @property
    def length(self) -> float:
        """h."""
        return self.end - self.start


@dataclass(frozen=True)
class Grid:
    """Steps between the times of a solve.

    Attributes:
        times: of the outputs.
        steps: in order.
        counts: of steps up to each time but the first.
    """

    times: list[float]
    steps: list[OneStep]
    counts: list[int]

    @staticmethod
    def of(times: list[float], step: float) -> Grid:
        """Equal steps between two times, of at most ``step``."""
        steps, counts = [], []
        for start, end in itertools.pairwise(times):
            count = max(1, math.ceil((end - start) / step - 1e-6))
            points = [start + (end - start) * (i / count) for i in range(count)] + [end]
            steps += [OneStep(a, b) for a, b in itertools.pairwise(points)]
            counts.append(count)
        return Grid(times, steps, counts)

    def points(self) -> list[float]:
        """Ends of all steps."""
        return [self.times[0], *(one.end for one in self.steps)]

    def intervals(self) -> Iterator[list[OneStep]]:
        """The steps between each two times."""
        first = 0
        for count in self.counts:
            yield self.steps[first : first + count]
            first += count


@dataclass(frozen=True)
class Equation:
    """dy = f dt + g dW.

    Attributes:
        drift, diffusion: f and g of the user.
        noise: how g meets dW.
        ito: whether it is meant in Ito's sense.
        dtype: in which the user's functions are called.
    """

    drift: Callable[[Tensor, Tensor], Tensor]
    diffusion: Callable[[Tensor, Tensor], Tensor]
    noise: str
    ito: bool
    dtype: torch.dtype

    def check(self, t: float, y: Tensor) -> torch.Size:
        """Raise ``ValueError`` where f or g returns a wrong shape at the start; return the shape of the noise."""
        with torch.no_grad():
            found = {"drift": self._call(self.drift, t, y), "diffusion": self._call(self.diffusion, t, y)}
        for name, value in found.items():
            if not isinstance(value, Tensor):
                raise TypeError(f"{name} must return a tensor, got {type(value).__name__}")
            shape = tuple(value.shape)
            if name == "diffusion" and self.matrix:
                if shape[:-1] != tuple(y.shape):
                    raise ValueError(
                        f"diffusion must return [*{tuple(y.shape)}, m] for {self.noise} noise, got {shape}"
                    )
            elif shape != tuple(y.shape):
                raise ValueError(f"{name} must return the shape of y, {tuple(y.shape)}, got {shape}")
        if self.noise == "additive":
            with torch.no_grad():
                moved = self._call(self.diffusion, t, y + 1 + y.abs())
            if can_look(moved) and not torch.equal(moved, found["diffusion"]):
                raise ValueError("diffusion must not depend on y for additive noise")
        if self.noise == "diagonal":
            return y.shape
        return torch.Size((*y.shape[:-1], found["diffusion"].shape[-1] if self.matrix else 1))

    @property
    def matrix(self) -> bool:
        """Whether g is a matrix for each sample."""
        return self.noise in ("general", "additive")

    def f(self, t: float, y: Tensor) -> Tensor:
        """The drift."""
        return self._call(self.drift, t, y).to(y.dtype)

    def g(self, t: float, y: Tensor) -> Tensor:
        """The diffusion."""
        return self._call(self.diffusion, t, y).to(y.dtype)

    def times_noise(self, g: Tensor, dw: Tensor) -> Tensor:
        """g dW."""
        return (g @ dw.unsqueeze(-1)).squeeze(-1) if self.matrix else g * dw

    def increment(self, t: float, y: Tensor, h: float, dw: Tensor) -> Tensor:
        """f h + g dW."""
        return self.f(t, y) * h + self.times_noise(self.g(t, y), dw)

    def _call(self, function: Callable[[Tensor, Tensor], Tensor], t: float, y: Tensor) -> Tensor:
        return function(torch.full((*y.shape[:-1], 1), t, dtype=self.dtype, device=y.device), y.to(self.dtype))


def heun_pair(y: Tensor) -> Tensor:
    """What ``reversible_heun`` carries along with y: its second copy of the state."""
    return y


def step_along(
    equation: Equation, method: str, one: OneStep, path: BrownianPath, y: Tensor, extra: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The state after one step, and what the method carries along."""
    dw = path.increment(one.start, one.end).to(y)
    if method == "reversible_heun":
        assert extra is not None
        return reversible_heun(equation, one, dw, y, extra)
    if method == "srk":
        mean = path.area(one.start, one.end).to(y) / one.length
        return (additive_srk if equation.noise == "additive" else srk)(equation, one, dw, mean, y), None
    return _STEPS[method](equation, one, dw, y), None


def euler(equation: Equation, one: OneStep, dw: Tensor, y: Tensor) -> Tensor:
    """Maruyama (1955)."""
    return y + equation.increment(one.start, y, one.length, dw)


def milstein(equation: Equation, one: OneStep, dw: Tensor, y: Tensor) -> Tensor:
    """Without derivatives (Kloeden, Platen 1992, 11.1.3): g' g by a difference along g, sqrt(h) apart."""
    h = one.length
    f, g = equation.f(one.start, y), equation.g(one.start, y)
    ahead = y + g * math.sqrt(h) + (f * h if equation.ito else 0.0)
    change = (equation.g(one.start, ahead) - g) / math.sqrt(h)
    square = dw.square() - h if equation.ito else dw.square()
    return y + f * h + g * dw + change * square / 2


def heun(equation: Equation, one: OneStep, dw: Tensor, y: Tensor) -> Tensor:
    """The trapezoid, predicted by Euler."""
    first = equation.increment(one.start, y, one.length, dw)
    return y + (first + equation.increment(one.end, y + first, one.length, dw)) / 2


def midpoint(equation: Equation, one: OneStep, dw: Tensor, y: Tensor) -> Tensor:
    """The increment at the middle, predicted by Euler."""
    middle = y + equation.increment(one.start, y, one.length, dw) / 2
    return y + equation.increment((one.start + one.end) / 2, middle, one.length, dw)


def srk(equation: Equation, one: OneStep, dw: Tensor, mean: Tensor, y: Tensor) -> Tensor:
    """SRI1W1 of Roessler (2010), one motion a component; ``mean`` is that of W - W(start) in the step."""
    start, h = one.start, one.length
    root = math.sqrt(h)
    f, g = equation.f(start, y), equation.g(start, y)
    ahead = equation.f(start + 3 / 4 * h, y + 3 / 4 * h * f + 3 / 2 * mean * g)
    g1 = equation.g(start + h / 4, y + h / 4 * f + root / 2 * g)
    g2 = equation.g(one.end, y + h * f - root * g)
    g3 = equation.g(start + h / 4, y + h / 4 * f + root * (3 * g1 + g2 / 2 - 5 * g))
    double, triple = (dw.square() - h) / (2 * root), dw * (dw.square() - 3 * h) / (6 * h)
    noise = (2 * mean - dw - double - 2 * triple) * g + 4 / 3 * (dw + double - mean + 5 / 4 * triple) * g1
    noise = noise + (2 / 3 * (dw - mean - triple) - double / 3) * g2 + triple * g3
    return y + h / 3 * (f + 2 * ahead) + noise


def additive_srk(equation: Equation, one: OneStep, dw: Tensor, mean: Tensor, y: Tensor) -> Tensor:
    """SRA1 of Roessler (2010), for any motions."""
    start, h = one.start, one.length
    f, g, late = equation.f(start, y), equation.g(start, y), equation.g(one.end, y)
    ahead = y + 3 / 4 * h * f + 3 / 2 * equation.times_noise(late, mean)
    rest = equation.times_noise(late, dw - mean) + equation.times_noise(g, mean)
    return y + h / 3 * (f + 2 * equation.f(start + 3 / 4 * h, ahead)) + rest


_STEPS = {"euler": euler, "milstein": milstein, "heun": heun, "midpoint": midpoint}


def reversible_heun(equation: Equation, one: OneStep, dw: Tensor, y: Tensor, twin: Tensor) -> tuple[Tensor, Tensor]:
    """Kidger et al. (2021), algorithm 1: state and twin, of which the twin is where f and g are evaluated."""
    before = equation.increment(one.start, twin, one.length, dw)
    ahead = 2 * y - twin + before
    return y + (before + equation.increment(one.end, ahead, one.length, dw)) / 2, ahead


def retraced(equation: Equation, one: OneStep, dw: Tensor, y: Tensor, twin: Tensor) -> tuple[Tensor, Tensor]:
    """The step of :func:`reversible_heun` undone: state and twin before it."""
    after = equation.increment(one.end, twin, one.length, dw)
    behind = 2 * y - twin - after
    return y - (after + equation.increment(one.start, behind, one.length, dw)) / 2, behind
