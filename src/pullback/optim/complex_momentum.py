"""Momentum whose coefficient is complex: it converges where players rotate around each other."""

from __future__ import annotations

import cmath
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from pullback.core.checks import check_positive
from pullback.core.elementwise import Elementwise, State, check_lr, check_modulus
from pullback.core.transforms import is_transformed
from pullback.kernels.complex_momentum import complex_adam, complex_momentum

__all__ = ["ComplexMomentumAdam", "ComplexMomentumSGD"]


class ComplexMomentumSGD(Elementwise):
    r"""Stochastic gradient descent with complex momentum.

    ``m <- beta m - g``, ``w <- w + lr Re(m)`` with ``beta = momentum e^{i angle}``: the buffer is complex (two real
    ones), steps are real. ``angle=0`` is the heavy ball of :class:`torch.optim.SGD`, ``pi`` negative momentum. In a
    bilinear game with simultaneous steps no real coefficient converges, every angle strictly between does for small
    steps; ``pi / 8`` is close to ordinary momentum where players cooperate. :func:`~pullback.optim.momentum_radius` is
    the rate for a given game.

    Complex parameters are pairs of real ones.

    Args:
        params: parameters, or dictionaries of parameter groups, as for :class:`torch.optim.SGD`.
        lr: step size, > 0.
        momentum: modulus of ``beta`` in [0, 1), or a Python complex number of such a modulus, whose angle then counts.
        angle: of ``beta`` in radians.
        weight_decay: times the parameter is added to the gradient, >= 0.
        foreach: ``None`` or ``True``: all tensors at once, in one pass compiled for the CPU where that is possible;
            ``False``: the plain rule, tensor by tensor.

    Raises:
        TypeError: a number has the wrong type.
        ValueError: ``lr``, ``momentum`` or ``weight_decay`` is out of range.

    Example:
        >>> x, y = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
        >>> optimizer = ComplexMomentumSGD([x, y], lr=0.2, momentum=0.8, angle=math.pi / 4)
        >>> for _ in range(300):  # x minimises x y, y maximises it
        ...     x.grad, y.grad = y.detach().clone(), -x.detach().clone()
        ...     optimizer.step()
        >>> bool(x.abs() + y.abs() < 1e-3)
        True

    References:
        Lorraine, Acuna, Vicol, Duvenaud (2022), Complex momentum for optimization in games, arXiv 2102.08431,
        equations 4 to 6, algorithm 1.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        momentum: float | complex = 0.8,
        angle: float = math.pi / 8,
        weight_decay: float = 0.0,
        foreach: bool | None = None,
    ) -> None:
        if isinstance(momentum, complex):
            momentum, angle = cmath.polar(momentum)
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "angle": angle, "weight_decay": weight_decay, "foreach": foreach}
        )

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> None:
        """Refuse options out of range."""
        check_lr(options)
        check_modulus("momentum", options["momentum"])
        check_angle(options["angle"])
        check_positive("weight_decay", options["weight_decay"], zero=True)

    @staticmethod
    def start(p: Tensor, options: Mapping[str, Any]) -> State:
        """Two buffers of zeros."""
        return {"real": torch.zeros_like(p), "imaginary": torch.zeros_like(p)}

    @staticmethod
    def rule(p: Tensor, g: Tensor, state: State, options: Mapping[str, Any]) -> tuple[Tensor, State]:
        """The formula."""
        across, up = coefficient(options["momentum"], options["angle"])
        a, b = state["real"], state["imaginary"]
        real = across * a - up * b - (g + options["weight_decay"] * p)
        return p + options["lr"] * real, {"real": real, "imaginary": up * a + across * b}

    @staticmethod
    def loop(params: list[Tensor], grads: list[Tensor], states: list[State], options: Mapping[str, Any]) -> None:
        """One compiled pass, or one pass an operation."""
        beta = cmath.rect(float(options["momentum"]), float(options["angle"]))
        a, b = ([state[name] for state in states] for name in ("real", "imaginary"))
        if options["weight_decay"]:
            grads = list(torch._foreach_add(grads, params, alpha=options["weight_decay"]))
        if not is_transformed(params[0]) and complex_momentum(params, grads, a, b, beta, float(options["lr"])):
            return
        turned = torch._foreach_mul(a, beta.imag)
        torch._foreach_mul_(a, beta.real)
        torch._foreach_add_(a, b, alpha=-beta.imag)
        torch._foreach_sub_(a, grads)
        torch._foreach_mul_(b, beta.real)
        torch._foreach_add_(b, turned)
        torch._foreach_add_(params, torch._foreach_mul(a, options["lr"]))


class ComplexMomentumAdam(Elementwise):
    r"""Adam whose first moment has a complex coefficient.

    ``m <- b1 m + (1 - b1) g``, ``v <- b2 v + (1 - b2) g^2``, ``w <- w - lr Re(m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) +
    eps)``, with ``b1 = betas[0] e^{i angle}``. ``angle=0`` is :class:`torch.optim.Adam`.

    Args:
        params: parameters, or dictionaries of parameter groups.
        lr: step size, > 0.
        betas: modulus of ``b1`` and ``b2``, both in [0, 1); a Python complex number as the first has its own angle.
        angle: of ``b1`` in radians.
        eps: > 0.
        weight_decay: times the parameter is added to the gradient, >= 0.
        foreach: ``None`` or ``True``: all tensors at once; ``False``: the plain rule, tensor by tensor.

    Raises:
        TypeError: a number has the wrong type.
        ValueError: a number is out of range.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([1.0, -3.0]))
        >>> optimizer = ComplexMomentumAdam([w], lr=0.1)
        >>> w.grad = torch.tensor([2.0, -1.0])
        >>> optimizer.step()
        >>> w.data
        tensor([ 0.9000, -2.9000])

    References:
        Lorraine, Acuna, Vicol, Duvenaud (2022), Complex momentum for optimization in games, arXiv 2102.08431, section
        4.2 and its appendix. Kingma, Ba (2015), Adam, algorithm 1.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        betas: tuple[float | complex, float] = (0.8, 0.999),
        angle: float = math.pi / 8,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        foreach: bool | None = None,
    ) -> None:
        if isinstance(betas, tuple | list) and len(betas) == 2 and isinstance(betas[0], complex):
            modulus, angle = cmath.polar(betas[0])  # a state of plain numbers can be saved as JSON
            betas = (modulus, betas[1])
        settings = {"betas": betas, "angle": angle, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {"lr": lr, "foreach": foreach, **settings})

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> None:
        """Refuse options out of range."""
        check_lr(options)
        check_betas(options["betas"])
        check_angle(options["angle"])
        check_positive("eps", options["eps"])
        check_positive("weight_decay", options["weight_decay"], zero=True)

    @staticmethod
    def start(p: Tensor, options: Mapping[str, Any]) -> State:
        """Both parts of the first moment, the second moment, the count of steps."""
        zeros = {name: torch.zeros_like(p) for name in ("real", "imaginary", "square")}
        return zeros | {"step": torch.zeros((), dtype=torch.float32)}

    @staticmethod
    def rule(p: Tensor, g: Tensor, state: State, options: Mapping[str, Any]) -> tuple[Tensor, State]:
        """The formula."""
        g = g + options["weight_decay"] * p
        after, first, second = moments(g, state, *coefficients(options))
        return p - options["lr"] * first / (second.sqrt() + options["eps"]), after

    @staticmethod
    def loop(params: list[Tensor], grads: list[Tensor], states: list[State], options: Mapping[str, Any]) -> None:
        """One compiled pass, or one pass an operation."""
        if not is_transformed(params[0]) and _compiled_step(params, grads, states, options):
            return
        first, roots = foreach_moments(params, grads, states, options)
        torch._foreach_add_(roots, options["eps"])
        torch._foreach_div_(first, roots)
        torch._foreach_add_(params, torch._foreach_mul(first, -options["lr"]))


def _compiled_step(params: list[Tensor], grads: list[Tensor], states: list[State], options: Mapping[str, Any]) -> bool:
    """Take the step of Adam in one compiled pass over each tensor; return whether that could be done."""
    if any(not p.is_cpu or isinstance(option, Tensor) for p in params for option in (options["lr"], *options["betas"])):
        return False
    one, two = coefficients(options)
    if options["weight_decay"]:
        grads = list(torch._foreach_add(grads, params, alpha=options["weight_decay"]))
    factors = []
    for state in states:
        t = float(state["step"]) + 1
        turned = 1 / (1 - one**t).conjugate()
        factors.append((turned.real, turned.imag, 1 / (1 - two**t)))
    a, b, square = ([state[name] for state in states] for name in ("real", "imaginary", "square"))
    if not complex_adam(params, grads, a, b, square, factors, (one, two), float(options["lr"]), float(options["eps"])):
        return False
    torch._foreach_add_([state["step"] for state in states], 1)
    return True


def coefficient(modulus: Any, angle: Any) -> tuple[Any, Any]:
    """Return the real and the imaginary part, of numbers or of tensors that are differentiated."""
    if isinstance(modulus, Tensor) or isinstance(angle, Tensor):
        turn = torch.as_tensor(angle)
        return modulus * turn.cos(), modulus * turn.sin()
    beta = cmath.rect(modulus, angle)
    return beta.real, beta.imag


def check_angle(value: Any) -> None:
    """Refuse what is no finite number."""
    value = float(value) if isinstance(value, Tensor) else value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"angle must be a number, got {type(value).__name__}")
    if not math.isfinite(value):
        raise ValueError(f"angle must be finite, got {value}")


def check_betas(betas: Any) -> None:
    """Refuse what is no pair of numbers in [0, 1)."""
    if not isinstance(betas, tuple | list) or len(betas) != 2:
        raise TypeError(f"betas must be a pair of numbers, got {betas!r}")
    for number, beta in enumerate(betas):
        check_modulus(f"betas[{number}]", beta)


def coefficients(options: Mapping[str, Any]) -> tuple[complex, float]:
    """Return ``b1`` and ``b2``."""
    return cmath.rect(options["betas"][0], options.get("angle", 0.0)), options["betas"][1]


def moments(g: Tensor, state: State, one: complex, two: float) -> tuple[State, Tensor, Tensor]:
    """Return the next buffers, the real part of the corrected first moment, the corrected second moment."""
    a, b, step = state["real"], state["imaginary"], state["step"] + 1
    real = one.real * a - one.imag * b + (1 - one.real) * g
    imaginary = one.imag * a + one.real * b - one.imag * g
    square = two * state["square"] + (1 - two) * g.square()
    across, up, second = corrections(step, one, two, g)
    first = (across * real + up * imaginary) if one.imag else across * real
    after = {"real": real, "imaginary": imaginary, "square": square, "step": step}
    return after, first, square / second


def corrections(step: Tensor, one: complex, two: float, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the real and imaginary part of ``1 / conj(1 - b1^t)`` and ``1 - b2^t``, in double precision."""
    t = step.to(like.device, torch.float64)
    modulus, angle = cmath.polar(one)
    size = torch.as_tensor(modulus, dtype=torch.float64, device=like.device).pow(t)
    across, up = 1 - size * (angle * t).cos(), -size * (angle * t).sin()
    length = across.square() + up.square()
    second = 1 - torch.as_tensor(two, dtype=torch.float64, device=like.device).pow(t)
    return tuple(x.to(like.dtype) for x in (across / length, up / length, second))  # type: ignore[return-value]


def foreach_moments(
    params: list[Tensor], grads: list[Tensor], states: list[State], options: Mapping[str, Any]
) -> tuple[list[Tensor], list[Tensor]]:
    """Move the buffers in place; return the real parts of the corrected first moments, the roots of the second."""
    one, two = coefficients(options)
    if options["weight_decay"]:
        grads = list(torch._foreach_add(grads, params, alpha=options["weight_decay"]))
    a, square, steps = ([s[name] for s in states] for name in ("real", "square", "step"))
    b = [s["imaginary"] for s in states] if one.imag else []
    torch._foreach_add_(steps, 1)
    turned = torch._foreach_mul(a, one.imag) if one.imag else None
    torch._foreach_mul_(a, one.real)
    torch._foreach_add_(a, grads, alpha=1 - one.real)
    if turned is not None:
        torch._foreach_add_(a, b, alpha=-one.imag)
        torch._foreach_mul_(b, one.real)
        torch._foreach_add_(b, turned)
        torch._foreach_add_(b, grads, alpha=-one.imag)
    torch._foreach_mul_(square, two)
    torch._foreach_addcmul_(square, grads, grads, 1 - two)
    across, up, second = zip(*(corrections(s, one, two, p) for s, p in zip(steps, params, strict=True)))
    first = list(torch._foreach_mul(a, list(across)))
    if turned is not None:
        torch._foreach_add_(first, torch._foreach_mul(b, list(up)))
    roots = list(torch._foreach_div(square, list(second)))
    torch._foreach_sqrt_(roots)
    return first, roots
