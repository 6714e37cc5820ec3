"""Steps that look ahead: optimistic descent and the extragradient method, the baselines of games."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from pullback.core.checks import check_positive
from pullback.core.elementwise import Elementwise, State, check_lr
from pullback.optim.complex_momentum import check_betas, coefficients, foreach_moments, moments

__all__ = ["Extragradient", "OptimisticAdam", "OptimisticSGD"]


class OptimisticSGD(Elementwise):
    r"""Optimistic gradient descent: a step along the gradient and its last change.

    ``w <- w - lr (g_t + strength (g_t - g_{t-1}))``, ``g_0 = 0``: one gradient a step, the extrapolation is made from
    the past. It converges in bilinear games, where descent diverges.

    Args:
        params: parameters, or dictionaries of parameter groups.
        lr: step size, > 0.
        strength: of the change, >= 0; 0 is plain descent.
        foreach: ``None`` or ``True``: all tensors at once; ``False``: the plain rule, tensor by tensor.

    Raises:
        TypeError: a number has the wrong type.
        ValueError: a number is out of range.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([1.0]))
        >>> optimizer = OptimisticSGD([w], lr=0.1)
        >>> for gradient in (1.0, 3.0):
        ...     w.grad = torch.tensor([gradient])
        ...     optimizer.step()
        >>> w.data
        tensor([0.3000])

    References:
        Daskalakis, Ilyas, Syrgkanis, Zeng (2018), Training GANs with optimism, equation 4. Popov (1980), A modification
        of the Arrow-Hurwicz method.
    """

    def __init__(self, params: Iterable[Any], lr: float, *, strength: float = 1.0, foreach: bool | None = None) -> None:
        super().__init__(params, {"lr": lr, "strength": strength, "foreach": foreach})

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> None:
        """Refuse options out of range."""
        check_lr(options)
        check_positive("strength", options["strength"], zero=True)

    @staticmethod
    def start(p: Tensor, options: Mapping[str, Any]) -> State:
        """No gradient yet."""
        return {"previous": torch.zeros_like(p)}

    @staticmethod
    def rule(p: Tensor, g: Tensor, state: State, options: Mapping[str, Any]) -> tuple[Tensor, State]:
        """The formula."""
        return p - options["lr"] * (g + options["strength"] * (g - state["previous"])), {"previous": g}

    @staticmethod
    def loop(params: list[Tensor], grads: list[Tensor], states: list[State], options: Mapping[str, Any]) -> None:
        """One pass an operation."""
        previous = [state["previous"] for state in states]
        move = torch._foreach_mul(grads, 1 + options["strength"])
        torch._foreach_add_(move, previous, alpha=-options["strength"])
        torch._foreach_add_(params, torch._foreach_mul(move, -options["lr"]))
        torch._foreach_copy_(previous, grads)


class OptimisticAdam(Elementwise):
    r"""Optimistic descent with the steps of Adam.

    ``w <- w - lr (u_t + strength (u_t - u_{t-1}))``, with ``u_t = m_hat / (sqrt(v_hat) + eps)`` as in
    :class:`torch.optim.Adam`, ``u_0 = 0``.

    Args:
        params: parameters, or dictionaries of parameter groups.
        lr: step size, > 0.
        strength: of the change, >= 0; 0 is Adam.
        betas: of the moments, in [0, 1).
        eps: > 0.
        weight_decay: times the parameter is added to the gradient, >= 0.
        foreach: ``None`` or ``True``: all tensors at once; ``False``: the plain rule, tensor by tensor.

    Raises:
        TypeError: a number has the wrong type.
        ValueError: a number is out of range.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([1.0]))
        >>> optimizer = OptimisticAdam([w], lr=0.1)
        >>> w.grad = torch.tensor([5.0])
        >>> optimizer.step()
        >>> w.data
        tensor([0.8000])

    References:
        Daskalakis, Ilyas, Syrgkanis, Zeng (2018), Training GANs with optimism, algorithm 1.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        strength: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        foreach: bool | None = None,
    ) -> None:
        settings = {"strength": strength, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {"lr": lr, "foreach": foreach, **settings})

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> None:
        """Refuse options out of range."""
        check_lr(options)
        check_positive("strength", options["strength"], zero=True)
        check_betas(options["betas"])
        check_positive("eps", options["eps"])
        check_positive("weight_decay", options["weight_decay"], zero=True)

    @staticmethod
    def start(p: Tensor, options: Mapping[str, Any]) -> State:
        """Both moments, the last direction, the count of steps."""
        zeros = {name: torch.zeros_like(p) for name in ("real", "imaginary", "square", "previous")}
        del zeros["imaginary"]
        return zeros | {"step": torch.zeros((), dtype=torch.float32)}

    @staticmethod
    def rule(p: Tensor, g: Tensor, state: State, options: Mapping[str, Any]) -> tuple[Tensor, State]:
        """The formula."""
        g = g + options["weight_decay"] * p
        after, first, second = moments(g, state | {"imaginary": torch.zeros_like(g)}, *coefficients(options))
        del after["imaginary"]
        move = first / (second.sqrt() + options["eps"])
        moved = p - options["lr"] * (move + options["strength"] * (move - state["previous"]))
        return moved, after | {"previous": move}

    @staticmethod
    def loop(params: list[Tensor], grads: list[Tensor], states: list[State], options: Mapping[str, Any]) -> None:
        """One pass an operation."""
        move, roots = foreach_moments(params, grads, states, options)
        torch._foreach_add_(roots, options["eps"])
        torch._foreach_div_(move, roots)
        previous = [state["previous"] for state in states]
        ahead = torch._foreach_mul(move, 1 + options["strength"])
        torch._foreach_add_(ahead, previous, alpha=-options["strength"])
        torch._foreach_add_(params, torch._foreach_mul(ahead, -options["lr"]))
        torch._foreach_copy_(previous, move)


class Extragradient(Elementwise):
    r"""The extragradient method: the gradient of a step is taken where a first step leads.

    ``w' = w - lr g(w)``, ``w <- w - lr g(w')``: two gradients a step. ``extrapolate()`` takes the first half with the
    gradients that are there and keeps ``w``; after another backward pass ``step()`` takes the second. With a closure
    ``step`` does both. The functional twin takes the halves in turn.

    Args:
        params: parameters, or dictionaries of parameter groups.
        lr: step size, > 0.
        foreach: ``None`` or ``True``: all tensors at once; ``False``: the plain rule, tensor by tensor.

    Raises:
        TypeError: a number has the wrong type.
        ValueError: ``lr`` is out of range.
        RuntimeError: ``step()`` without ``extrapolate()`` before it, or ``extrapolate()`` twice.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([1.0]))
        >>> optimizer = Extragradient([w], lr=0.1)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     (w**2).sum().backward()
        >>> optimizer.step(closure)
        >>> w.data  # 1 - 0.1 * 2 * 0.8
        tensor([0.8400])

    References:
        Korpelevich (1976), The extragradient method for finding saddle points. Gidel et al. (2019), A variational
        inequality perspective on generative adversarial networks, algorithm 1.
    """

    def __init__(self, params: Iterable[Any], lr: float, *, foreach: bool | None = None) -> None:
        super().__init__(params, {"lr": lr, "foreach": foreach})

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> None:
        """Refuse options out of range."""
        check_lr(options)

    @staticmethod
    def start(p: Tensor, options: Mapping[str, Any]) -> State:
        """Where the step began, and whether its first half is taken."""
        return {"origin": torch.zeros_like(p), "step": torch.zeros((), dtype=torch.float32)}

    @staticmethod
    def rule(p: Tensor, g: Tensor, state: State, options: Mapping[str, Any]) -> tuple[Tensor, State]:
        """One half, the first where the count of halves is even."""
        origin = torch.where(state["step"].to(p.device) % 2 == 0, p, state["origin"])
        return origin - options["lr"] * g, {"origin": origin, "step": state["step"] + 1}

    @staticmethod
    def loop(params: list[Tensor], grads: list[Tensor], states: list[State], options: Mapping[str, Any]) -> None:
        """One pass an operation; all parameters with a gradient are in the same half."""
        origins, steps = ([state[name] for state in states] for name in ("origin", "step"))
        if float(steps[0]) % 2 == 0:
            torch._foreach_copy_(origins, params)
        else:
            torch._foreach_copy_(params, origins)
        torch._foreach_add_(params, torch._foreach_mul(grads, -options["lr"]))
        torch._foreach_add_(steps, 1)

    def extrapolate(self) -> None:
        """Take the first half of a step with the gradients that are there, and keep where it began.

        Raises:
            RuntimeError: the first half is taken already.
        """
        if self._halves() % 2:
            raise RuntimeError("extrapolate() was called twice: step() comes after it")
        super().step()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take the second half with the gradients that are there, or both with a closure.

        Args:
            closure: evaluates the loss with its gradients. It is called twice.

        Returns:
            What ``closure`` returned at the point where the step began.

        Raises:
            RuntimeError: there was no first half.
        """
        if closure is None:
            if self._halves() % 2 == 0:
                raise RuntimeError("step() needs extrapolate() and a backward pass before it, or a closure")
            return super().step()
        with torch.enable_grad():
            loss = closure()
        self.extrapolate()
        super().step(closure)
        return loss

    def _halves(self) -> int:
        counts = {int(state["step"]) for state in self.state.values() if "step" in state}
        return max(counts, default=0)
