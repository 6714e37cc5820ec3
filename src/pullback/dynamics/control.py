"""How steps are chosen: the first one, whether one is accepted, and the next."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from pullback.core.checks import check_positive, check_range

if TYPE_CHECKING:
    from pullback.dynamics.steps import Stepper

__all__ = ["Control", "Judgement", "StepControl"]


@dataclass(frozen=True)
class StepControl:
    """Choices of the adaptive steps of :func:`odeint`, all with the usual defaults.

    The next step is h clip(safety err^(-1/order), shrink, grow), and between ``smallest`` and ``largest``; where the
    end is nearer than 1 / safety of it (1 / 0.9 at most), it goes there.

    Args:
        first: length of the first step; ``None`` guesses it from the field (Hairer, Norsett, Wanner 1993, II.4).
        smallest: a step this short is accepted whatever its error, >= 0.
        largest: no step is longer, > ``smallest``.
        safety: what the step is multiplied with beside the power of the error, in [0, 1].
        shrink: the least factor from one step to the next, in [0, 1].
        grow: the largest, > 1.
        norm: ``norm(x)`` of x, the error of each component over its tolerance, as ``y0`` is; returns err, ``[*batch]``
            (a tensor without dimensions where all share their step). A step is accepted where it is at most 1. ``None``
            is the root mean square.
        jumps: times at which the field jumps: ``[jumps]``, or ``[*batch, jumps]``. A step ends at each, and the next
            begins anew behind it; the field is asked on this side of it and on that, never there. They may have a
            gradient.

    Raises:
        TypeError: ``norm`` is no function, or a number is none.
        ValueError: a number outside its range.

    Example:
        >>> from pullback.dynamics import odeint
        >>> def switched(t, y):
        ...     return torch.where(t < 0.5, -y, y)
        >>> control = StepControl(jumps=[0.5], largest=0.25)
        >>> odeint(switched, torch.ones(1), [0.0, 1.0], control=control).y[-1]
        tensor([1.0000])
    """

    first: float | None = None
    smallest: float = 0.0
    largest: float = math.inf
    safety: float = 0.9
    shrink: float = 0.2
    grow: float = 5.0
    norm: Callable[[Any], Tensor] | None = None
    jumps: Any = ()

    def __post_init__(self) -> None:
        if self.first is not None:
            check_positive("first", self.first)
        check_positive("smallest", self.smallest, zero=True)
        if not self.largest > self.smallest:
            raise ValueError(f"largest must be more than smallest, {self.smallest}, got {self.largest}")
        check_range("safety", self.safety, 0, 1)
        check_range("shrink", self.shrink, 0, 1)
        if not self.grow > 1:
            raise ValueError(f"grow must be > 1, got {self.grow}")
        if self.norm is not None and not callable(self.norm):
            raise TypeError(f"norm must be a function of the state, or None, got {type(self.norm).__name__}")


class Judgement(NamedTuple):
    """What an attempted step is worth. M is the number of samples, or 1 where they share their steps.

    Attributes:
        accept: ``[M, 1]``.
        factor: ``[M, 1]``, what the next step is multiplied with.
        ratio: ``[samples, size]``, error over tolerance of each component.
    """

    accept: Tensor
    factor: Tensor
    ratio: Tensor


@dataclass(frozen=True)
class Control:
    """How steps are chosen.

    Attributes:
        rtol, atol: err = norm(e / (atol + rtol max(|y|, |y'|))) <= 1 accepts a step; numbers, or ``[1, size]``.
        step: size of fixed steps; ``None`` adapts them, or for a method without error estimate takes the given times.
        shared: one step for all samples.
        max_steps: attempted steps of one solve.
        options: what else the steps are chosen by; its norm is ``norm`` here.
        norm: of ``[samples, size]``, ``[M, 1]``; ``None``: the root mean square.
        complex: whether components are pairs, the parts of complex numbers, whose modulus counts.
    """

    rtol: float | Tensor
    atol: float | Tensor
    step: float | None
    shared: bool
    max_steps: int
    options: StepControl = StepControl()
    norm: Callable[[Tensor], Tensor] | None = None
    complex: bool = False

    @property
    def tightest(self) -> float:
        """The smallest relative tolerance."""
        return float(self.rtol.min()) if isinstance(self.rtol, Tensor) else self.rtol

    @property
    def stretch(self) -> float:
        """How much longer than proposed the last step may be, so that no short one is left: what safety allows."""
        return 1 / max(self.options.safety, 0.9)

    def rows(self, y: Tensor) -> int:
        """M: how many samples have a step of their own."""
        return 1 if self.shared else y.shape[0]

    def judge(self, stepper: Stepper, h: Tensor, y: Tensor, new: Tensor, stages: Any) -> Judgement:
        """Judge a step from ``y`` to ``new`` by the error estimate; gradients are switched off."""
        options = self.options
        scale = torch.maximum(self._modulus(y), self._modulus(new)).mul_(self.rtol).add_(self.floor(y.dtype))
        ratio = stepper.error(h, stages) / scale
        norm = self._norm(ratio)
        accept = norm <= 1.0
        if options.smallest > 0:
            accept = accept | (h <= options.smallest * 1.001) & torch.isfinite(norm)  # up to the rounding of times
        if stepper.solved is not None:
            solved = stepper.solved.all() if self.shared else stepper.solved
            accept, norm = accept & solved, torch.where(solved, norm, math.inf)
        factor = norm.pow(-1.0 / stepper.tableau.order).mul_(options.safety)
        factor = factor.clamp(options.shrink, options.grow).nan_to_num_(options.shrink)
        return Judgement(accept, factor, ratio)

    def bounded(self, h: Tensor) -> Tensor:
        """The step between the smallest and the largest."""
        smallest, largest = self.options.smallest, self.options.largest
        return h if smallest == 0 and math.isinf(largest) else h.clamp(smallest, largest)

    def first_step(self, stepper: Stepper, t: Tensor, span: Tensor, y: Tensor, k: Tensor) -> Tensor:
        """``[M, 1]`` starting step of Hairer, Norsett, Wanner (1993), II.4, from ``k``, the field at ``(t, y)``."""
        if self.options.first is not None:
            return torch.full_like(span, self.options.first)
        with torch.no_grad():
            y, k = y.detach(), k.detach()
            tiny_step = 1e-6 * torch.where(torch.isfinite(span), span, 1 + t.abs())
            scale = self._modulus(y) * self.rtol + self.floor(y.dtype)
            d0, d1 = self._norm(y / scale), self._norm(k / scale)
            tiny = (d0 < 1e-5) | (d1 < 1e-5)
            h0 = torch.where(tiny, tiny_step, 0.01 * d0 / torch.where(tiny, 1.0, d1))
            h0 = torch.minimum(h0, span)
            slope = stepper.quietly(t + h0, y + h0 * k)
            d2 = self._norm((slope.detach() - k) / scale) / torch.where(h0 > 0, h0, 1.0)
            most = torch.maximum(d1, d2)
            h1 = torch.where(
                most <= 1e-15, torch.maximum(tiny_step, 1e-3 * h0), (0.01 / most) ** (1.0 / stepper.tableau.order)
            )
            h = torch.minimum(torch.minimum(100 * h0, h1), span)
            return torch.where(torch.isfinite(h) & (h > 0), h, tiny_step)

    def _norm(self, x: Tensor) -> Tensor:
        """``[M, 1]`` root mean square of each sample, or of all where they share their steps; 0 of no component."""
        if self.norm is not None:
            return self.norm(x)
        count = x.numel() if self.shared else x.shape[1]
        if self.complex:
            count //= 2
        norm = torch.linalg.vector_norm(x, dim=None if self.shared else 1, keepdim=True)
        return norm.mul_(1.0 / math.sqrt(max(count, 1)))

    def _modulus(self, y: Tensor) -> Tensor:
        """Size of each component; of a complex number both of its parts have the same."""
        if not self.complex:
            return y.abs()
        pairs = y.unflatten(-1, (-1, 2))
        return torch.hypot(pairs[..., :1], pairs[..., 1:]).expand(pairs.shape).flatten(-2)

    def floor(self, dtype: torch.dtype) -> float | Tensor:
        """The absolute tolerance; never 0, so that a component that stays 0 has the error 0 rather than 0 / 0."""
        tiny = torch.finfo(dtype).tiny
        return self.atol.clamp(min=tiny) if isinstance(self.atol, Tensor) else max(self.atol, tiny)
