"""Gates: factors 0 or 1 that open and close parts of a network, and learn by gradient which to open."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pullback.core.checks import (
    check_broadcast,
    check_callable,
    check_choice,
    check_finite,
    check_floating,
    check_integer,
    check_positive,
    check_scalar,
)
from pullback.core.gradients import replace_gradient
from pullback.core.random import drawing_device
from pullback.core.shapes import Bool, Float, Scalar, Shaped, Tensor
from pullback.core.transforms import can_look
from pullback.discrete.sampling import check_binary_outcome
from pullback.discrete.softness import is_hard, quotient, widen

__all__ = ["TrainableGate", "budget_loss", "gate", "trainable_gate"]

_STRETCH = (-0.1, 1.1)


def trainable_gate(
    weight: Float[Tensor, "*shape"],
    *,
    slope: float = 1e5,
    shaping: str | Callable[[Tensor], Tensor] = "constant",
    hard: bool = True,
) -> Float[Tensor, "*shape"]:
    r"""Return the step :math:`b(w) = 1[w > 0]` with a derivative of your choice, as a limit of true derivatives.

    .. math:: TG_M(w) = b(w) + s_M(w)\, g(w), \qquad s_M(w) = \frac{M w - \lfloor M w \rfloor}{M} \in [0, 1/M)

    The sawtooth has slope 1 almost everywhere, so :math:`TG_M' = g + s_M g'`: as M grows, the value tends to the step
    (:math:`|TG_M - b| \le \sup|g| / M`) and the derivative to the shape :math:`g`. A closed gate (:math:`w \le 0`)
    still gets gradient and can open again.

    Args:
        weight: ``[*shape]``, gates are open where it is positive.
        slope: :math:`M`, > 0, how many teeth a unit of ``weight`` has. Where ``M |weight|`` exceeds the integers of the
            dtype, no tooth can be told from rounding, and the limit is taken.
        shaping: :math:`g`: ``"constant"`` is 1 (a plain straight-through step), ``"sigmoid"`` the bump :math:`4
            \sigma(w)(1 - \sigma(w))`, which leaves gates far from 0 alone; or a function, elementwise and bounded.
        hard: return the limit: values exactly 0 or 1, derivative exactly :math:`g`. Otherwise :math:`TG_M` itself.

    Returns:
        ``[*shape]``: 0 or 1, with ``hard=False`` within ``sup|g| / slope`` of it.

    Raises:
        TypeError: ``weight`` is no floating tensor.
        ValueError: ``weight`` is NaN, ``slope`` is not > 0, ``shaping`` is unknown or changes the shape.

    Example:
        >>> w = torch.tensor([-0.2, 0.3], requires_grad=True)
        >>> gates = trainable_gate(w)
        >>> gates.sum().backward()
        >>> gates.tolist(), w.grad.tolist()
        ([0.0, 1.0], [1.0, 1.0])

    References:
        Kim, Park, Jung, Choe (2020), Plug-in, trainable gate for streamlining arbitrary neural networks, definition 1.
    """
    check_floating("weight", weight)
    check_positive("slope", slope)
    shape = _shape(shaping)
    if can_look(weight) and bool(weight.isnan().any()):
        raise ValueError("weight must not be NaN")
    wide = widen(weight)
    fixed = wide.detach()
    step = (fixed > 0).to(wide)
    move = torch.where(fixed.isfinite(), wide - fixed, 0.0)  # 0, with slope 1
    if hard:
        # g at the middle of the move: the derivative of move * g(middle) is g, its second derivative g'.
        ramp = move * _shaped(shape, fixed + move / 2)
        return replace_gradient(step.to(weight.dtype), ramp.to(weight.dtype))
    toothed = fixed.abs() < 1 / (slope * torch.finfo(wide.dtype).eps)
    inner = torch.where(toothed, wide, 0.0)
    teeth = torch.where(toothed, inner - (slope * inner.detach()).floor() / slope, move)
    return (step + teeth * _shaped(shape, wide)).to(weight.dtype)


def gate(
    logits: Float[Tensor, "*shape"],
    *,
    temperature: Scalar = 1.0,
    hard: bool = True,
    noise: str | None = "logistic",
    stretch: tuple[float, float] | None = None,
    generator: torch.Generator | None = None,
    outcome: Shaped[Tensor, "*shape"] | None = None,
) -> Float[Tensor, "*shape"]:
    r"""Open each gate with probability :math:`\sigma(r)` of its logit :math:`r`: a Bernoulli choice with a gradient.

    .. math:: s = \sigma\left(\frac{r + \varepsilon}{T}\right),\ \varepsilon = \log u - \log(1 - u); \qquad
       \bar s = \min(1, \max(0, s (\zeta - \gamma) + \gamma))

    The soft gate is :math:`s`, or, stretched, :math:`\bar s` (hard concrete: exactly 0 and 1 with positive
    probability). The hard one is :math:`1[s > 1/2]` with the gradient of the soft one.

    Args:
        logits: ``[*shape]``; ``inf`` is always open, ``-inf`` always closed, both without gradient.
        temperature: :math:`T`, >= 0, a number or a tensor without dimensions; 0 is the hard gate without gradient.
        hard: return exactly 0 or 1.
        noise: ``"logistic"``, or ``None``: no noise, a gate is open where its logit is positive.
        stretch: :math:`(\gamma, \zeta)` with :math:`\gamma \le 0`, :math:`\zeta \ge 1`; (-0.1, 1.1) is usual.
        generator: of the noise; torch's own by default.
        outcome: ``[*shape]`` which gates are open, booleans or integers 0 and 1; the noise is then drawn given it.

    Returns:
        ``[*shape]`` in [0, 1].

    Raises:
        TypeError: ``logits`` is no floating tensor, ``outcome`` is neither boolean nor integer.
        ValueError: ``logits`` is NaN, ``temperature`` is negative or not finite, ``noise`` is unknown, ``stretch`` does
            not hold [0, 1], ``outcome`` is given without noise, has another shape or other values.

    Example:
        >>> r = torch.tensor([-1.0, 2.0], requires_grad=True)
        >>> open = gate(r, noise=None)
        >>> open.sum().backward()
        >>> open.tolist(), [round(g, 3) for g in r.grad.tolist()]
        ([0.0, 1.0], [0.197, 0.105])

    References:
        Maddison, Mnih, Teh (2017), The concrete distribution, appendix B. Louizos, Welling, Kingma (2018), Learning
        sparse neural networks through L0 regularization, equations 10 to 11.
    """
    check_floating("logits", logits)
    frozen = is_hard(temperature, widen(logits).dtype)
    check_choice("noise", noise, ("logistic", None))
    low, high = _stretched(stretch)
    if can_look(logits) and bool(logits.isnan().any()):
        raise ValueError("logits must not be NaN")
    if outcome is not None and noise is None:
        raise ValueError("outcome must be None without noise, which is drawn given it")
    wide = widen(logits)
    fixed = wide.detach()
    noisy = wide
    opened = None
    if noise is not None:
        uniform = torch.rand(
            wide.shape, dtype=wide.dtype, device=drawing_device(generator, wide), generator=generator
        ).to(wide.device)
        if outcome is not None:
            p = torch.sigmoid(fixed)
            opened = check_binary_outcome(outcome, p, "logits")
            uniform = torch.where(opened, 1 - p * uniform, (1 - p) * uniform)
        info = torch.finfo(wide.dtype)
        noisy = wide + torch.logit(uniform.clamp(info.tiny, 1 - info.eps / 2))
    exact = (noisy.detach() > 0 if opened is None else opened).to(logits.dtype)
    if frozen:
        return replace_gradient(exact, torch.sign(logits))
    finite = fixed.isfinite()
    soft = torch.sigmoid(quotient(torch.where(finite, noisy, fixed), temperature))
    if stretch is not None:
        soft = (soft * (high - low) + low).clamp(0, 1)
    return replace_gradient(exact, soft.to(logits.dtype)) if hard else soft.to(logits.dtype)


class TrainableGate(nn.Module):
    r"""A tensor of gates that are learned with everything else, to be multiplied to what they open and close.

    ===================  ===========================================  ==============================================
    ``method``           gates in training                            gates in evaluation
    ===================  ===========================================  ==============================================
    ``"sawtooth"``       :func:`trainable_gate` of the weight         the same
    ``"gumbel"``         :func:`gate` of the weight: hard, noisy      1 where the weight is positive
    ``"hard_concrete"``  :func:`gate`, soft, stretched to             without noise, so between 0 and 1 too
                         (-0.1, 1.1)
    ===================  ===========================================  ==============================================

    Args:
        shape: of the gates, an integer or several.
        slope: of ``"sawtooth"``, as in :func:`trainable_gate`.
        shaping: of ``"sawtooth"``, as in :func:`trainable_gate`.
        initial: the weight of all gates at first; positive is open.
        hard: of ``"sawtooth"``: gates are exactly 0 or 1.
        method: see the table.
        temperature: of the two with noise; > 0; by default 1 and 2/3.

    Attributes:
        weight: the parameter, ``[*shape]``.

    Raises:
        TypeError: a size is no integer.
        ValueError: a size is < 1, a number is out of range, ``method`` or ``shaping`` is unknown.

    Example:
        >>> gates = TrainableGate(3)
        >>> gates().tolist(), gates.open_count()
        ([1.0, 1.0, 1.0], 3)
        >>> with torch.no_grad():
        ...     _ = gates.weight.copy_(torch.tensor([0.1, -0.1, 0.2]))
        >>> gates().tolist(), gates.open.tolist()
        ([1.0, 0.0, 1.0], [True, False, True])

    References:
        Kim, Park, Jung, Choe (2020), Plug-in, trainable gate for streamlining arbitrary neural networks. Louizos,
        Welling, Kingma (2018), Learning sparse neural networks through L0 regularization.
    """

    hardened: Tensor

    def __init__(
        self,
        shape: int | tuple[int, ...],
        *,
        slope: float = 1e5,
        shaping: str | Callable[[Tensor], Tensor] = "constant",
        initial: float = 0.1,
        hard: bool = True,
        method: str = "sawtooth",
        temperature: float | None = None,
    ) -> None:
        super().__init__()
        sizes = (shape,) if isinstance(shape, int) else tuple(shape)
        for size in sizes:
            check_integer("shape", size, 1)
        check_positive("slope", slope)
        _shape(shaping)
        check_choice("method", method, ("sawtooth", "gumbel", "hard_concrete"))
        self.temperature = (2 / 3 if method == "hard_concrete" else 1.0) if temperature is None else temperature
        check_positive("temperature", self.temperature)
        check_scalar("initial", abs(initial), zero=True)
        self.slope, self.shaping, self.hard, self.method = slope, shaping, hard, method
        self.weight = nn.Parameter(torch.full(sizes, float(initial)))
        self.register_buffer("hardened", torch.tensor(False))

    def forward(self, *, generator: torch.Generator | None = None) -> Float[Tensor, "*shape"]:
        """Return the gates, ``[*shape]``; noise of a gate in training is drawn from ``generator``."""
        weight: Tensor = self.weight
        if self.hardened:
            weight = weight.detach()
        still = not self.training or bool(self.hardened)
        if self.method == "sawtooth":
            return trainable_gate(weight, slope=self.slope, shaping=self.shaping, hard=self.hard or still)
        concrete = self.method == "hard_concrete"
        return gate(
            weight,
            temperature=1.0 if still and concrete else self.temperature,
            hard=not concrete,
            noise=None if still else "logistic",
            stretch=_STRETCH if concrete else None,
            generator=generator,
        )

    def expected(self) -> Float[Tensor, "*shape"]:
        """Return how open a gate is counted in a cost, with gradient: the probability that it is not 0.

        For ``"sawtooth"``, and for the others in evaluation, that is 0 or 1.
        """
        if self.method == "sawtooth":
            return self()
        if not self.training or self.hardened:
            return self.open.to(self.weight.dtype)
        shift = 0.0 if self.method == "gumbel" else self.temperature * _log_odds_of_zero()
        return torch.sigmoid(self.weight - shift)

    @property
    def open(self) -> Bool[Tensor, "*shape"]:
        """Which gates are not 0 in evaluation."""
        return self.weight.detach() > (_log_odds_of_zero() if self.method == "hard_concrete" else 0.0)

    def open_count(self) -> int:
        """Return how many gates are not 0 in evaluation."""
        return int(self.open.sum())

    def harden(self) -> None:
        """Keep the gates as they are in evaluation from now on: without noise, without gradient."""
        self.hardened.fill_(True)

    def extra_repr(self) -> str:
        """Return what :func:`repr` shows."""
        return f"{tuple(self.weight.shape)}, method={self.method!r}"


def budget_loss(
    cost: Float[Tensor, "*shape"], target: Float[Tensor, "*#shape"] | float, *, power: float = 2.0
) -> Float[Tensor, "*shape"]:
    r"""Return :math:`|c - c^*|^p`, the distance of a cost from its budget.

    A cost above and one below the budget are pulled alike; the gradient at the budget is 0 for :math:`p > 1`.

    Args:
        cost: ``[*shape]``, such as the share of a :class:`NetworkCost` that is left; a mean over a batch, if single
            samples may differ.
        target: the budget, in the same unit; a number or a tensor that broadcasts.
        power: :math:`p`, >= 1.

    Returns:
        ``[*shape]``, >= 0.

    Raises:
        TypeError: ``cost`` is no floating tensor.
        ValueError: ``cost`` is not finite, ``power`` is below 1, ``target`` does not broadcast.

    Example:
        >>> round(budget_loss(torch.tensor(0.75), 0.5).item(), 4)
        0.0625
    """
    check_floating("cost", cost)
    if not power >= 1:
        raise ValueError(f"power must be >= 1, got {power}")
    if can_look(cost):
        check_finite("cost", cost)
    if isinstance(target, Tensor):
        check_broadcast(cost=cost.shape, target=target.shape)
    wide = widen(cost)
    distance = (wide - target).abs()
    return (distance if power == 1 else distance**power).to(cost.dtype)


def _shape(shaping: Any) -> Callable[[Tensor], Tensor]:
    if isinstance(shaping, str):
        check_choice("shaping", shaping, _SHAPES)
        return _SHAPES[shaping]
    check_callable("shaping", shaping)
    function: Callable[[Tensor], Tensor] = shaping
    return function


def _bump(w: Tensor) -> Tensor:
    return 4 * torch.sigmoid(w) * torch.sigmoid(-w)


_SHAPES: dict[str, Callable[[Tensor], Tensor]] = {"constant": torch.ones_like, "sigmoid": _bump}


def _shaped(shape: Callable[[Tensor], Tensor], w: Tensor) -> Tensor:
    height = shape(w)
    if height.shape != w.shape:
        raise ValueError(f"shaping must keep the shape {tuple(w.shape)}, got {tuple(height.shape)}")
    return height


def _stretched(stretch: tuple[float, float] | None) -> tuple[float, float]:
    low, high = (0.0, 1.0) if stretch is None else stretch
    if not (low <= 0 and high >= 1):
        raise ValueError(f"stretch must hold [0, 1], got ({low}, {high})")
    return low, high


def _log_odds_of_zero() -> float:
    """The logit at which a stretched sigmoid leaves 0."""
    low, high = _STRETCH
    return float(torch.logit(torch.tensor(-low / (high - low), dtype=torch.float64)))
