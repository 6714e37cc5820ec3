"""Averages of iterates: what the last iterate with falling steps makes unnecessary, and is compared with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pullback.core.checks import check_choice, check_integer, check_positive, check_range
from pullback.core.elementwise import Elementwise, State, check_lr, check_modulus

__all__ = ["IterateAverage", "ScheduleFreeSGD"]

Kind = Literal["uniform", "suffix", "linear", "ema"]


class IterateAverage:
    r"""A running average of parameters, beside any optimizer.

    ``x_bar <- x_bar + c_t (x_t - x_bar)`` with ``c_t = 1 / t`` (uniform), ``2 / (t + 1)`` (weights that grow
    linearly), ``1 - decay`` (exponential), or ``1 / (t - start)`` from the step ``start`` on (suffix).

    Args:
        params: parameters, in the order of the buffers.
        kind: ``"uniform"``, ``"suffix"``, ``"linear"`` or ``"ema"``.
        start: steps that ``"suffix"`` leaves out, >= 0; half of the horizon is usual.
        decay: of ``"ema"``, in [0, 1).

    Raises:
        ValueError: an unknown kind, a number out of range, or no parameters.
        RuntimeError: ``swap()`` inside of ``swap()``, or ``state_dict()`` while the average is in place.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([1.0]))
        >>> average = IterateAverage([w])
        >>> for value in (1.0, 2.0, 6.0):
        ...     _ = w.data.fill_(value)
        ...     average.update()
        >>> with average.swap():
        ...     print(w.item())
        3.0
        >>> w.item()
        6.0

    References:
        Polyak, Juditsky (1992), Acceleration of stochastic approximation by averaging. Shamir, Zhang (2013), Stochastic
        gradient descent for non-smooth optimization, for suffixes. Lacoste-Julien, Schmidt, Bach (2012), for linear
        weights.
    """

    def __init__(
        self, params: Iterable[Tensor], *, kind: Kind = "uniform", start: int = 0, decay: float = 0.99
    ) -> None:
        check_choice("kind", kind, get_args(Kind))
        check_integer("start", start, 0)
        check_range("decay", decay, 0, 1)
        self.params = list(params)
        if not self.params:
            raise ValueError("params must hold at least one parameter")
        self.kind, self.start, self.decay, self.step = kind, start, decay, 0
        self.average = [p.detach().clone() for p in self.params]
        self._swapped = False

    @torch.no_grad()
    def update(self) -> None:
        """Take in the parameters as they are; call it after each step of the optimizer."""
        self._check_apart("update")
        self.step += 1
        t = self.step - (self.start if self.kind == "suffix" else 0)
        if t < 1:
            weight = 1.0  # the suffix has not begun: the parameters themselves
        else:
            weight = {"uniform": 1 / t, "suffix": 1 / t, "linear": 2 / (t + 1), "ema": 1 - self.decay}[self.kind]
        # Not torch._foreach_lerp_: it rounds the weight to single precision.
        gaps = torch._foreach_sub([p.detach() for p in self.params], self.average)
        torch._foreach_add_(self.average, gaps, alpha=1.0 if self.step == 1 else weight)

    @contextmanager
    def swap(self) -> Iterator[None]:
        """Put the average in the parameters' place, and them back at the end."""
        self._check_apart("swap")
        kept = [p.detach().clone() for p in self.params]
        self._fill(self.average)
        self._swapped = True
        try:
            yield
        finally:
            self._fill(kept)
            self._swapped = False

    def state_dict(self) -> dict[str, Any]:
        """Return what ``load_state_dict`` goes on from."""
        self._check_apart("state_dict")
        return {"step": self.step, "average": [a.clone() for a in self.average]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a saved state ended."""
        for own, saved in zip(self.average, state["average"], strict=True):
            own.copy_(saved)
        self.step = int(state["step"])

    @torch.no_grad()
    def _fill(self, values: list[Tensor]) -> None:
        for p, value in zip(self.params, values, strict=True):
            p.copy_(value)

    def _check_apart(self, what: str) -> None:
        if self._swapped:
            raise RuntimeError(f"{what}() inside of swap(): the parameters hold the average now")


class ScheduleFreeSGD(Elementwise):
    r"""Schedule-free descent: gradients between the iterate and its average, no falling steps.

    ``y = (1 - momentum) z + momentum x``, ``z <- z - lr g(y)``, ``x <- x + (z - x) / (t + 1)``. While training the
    parameters are ``y``; :meth:`eval` puts the average ``x`` in their place, :meth:`train` ``y``.

    Args:
        params: parameters, or dictionaries of parameter groups.
        lr: step size, > 0.
        momentum: in [0, 1).
        weight_decay: times ``y`` is added to the gradient, >= 0.
        foreach: ``None`` or ``True``: all tensors at once; ``False``: the plain rule, tensor by tensor.

    Raises:
        TypeError: a number has the wrong type.
        ValueError: a number is out of range.
        RuntimeError: ``step()`` or ``state_dict()`` after ``eval()``.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([1.0]))
        >>> optimizer = ScheduleFreeSGD([w], lr=0.5, momentum=0.5)
        >>> for _ in range(2):
        ...     w.grad = torch.ones(1)
        ...     optimizer.step()
        >>> w.item()
        0.125
        >>> optimizer.eval()
        >>> w.item()  # the mean of z after one and two steps
        0.25

    References:
        Defazio, Yang, Mehta, Mishchenko, Khaled, Cutkosky (2024), The road less scheduled, equations 1 to 3.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        foreach: bool | None = None,
    ) -> None:
        self._training = True
        settings = {"momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, {"lr": lr, "foreach": foreach, **settings})

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> None:
        """Refuse options out of range."""
        check_lr(options)
        check_modulus("momentum", options["momentum"])
        check_positive("weight_decay", options["weight_decay"], zero=True)

    @staticmethod
    def start(p: Tensor, options: Mapping[str, Any]) -> State:
        """The iterate, the average, the count of steps."""
        return {"iterate": p.clone(), "average": p.clone(), "step": torch.zeros((), dtype=torch.float32)}

    @staticmethod
    def rule(p: Tensor, g: Tensor, state: State, options: Mapping[str, Any]) -> tuple[Tensor, State]:
        """The formula."""
        step = state["step"] + 1
        z = state["iterate"] - options["lr"] * (g + options["weight_decay"] * p)
        x = state["average"] + (z - state["average"]) / step.to(p.device)
        y = (1 - options["momentum"]) * z + options["momentum"] * x
        return y, {"iterate": z, "average": x, "step": step}

    @staticmethod
    def loop(params: list[Tensor], grads: list[Tensor], states: list[State], options: Mapping[str, Any]) -> None:
        """One pass an operation."""
        z, x, steps = ([state[name] for state in states] for name in ("iterate", "average", "step"))
        moves = torch._foreach_add(grads, params, alpha=options["weight_decay"]) if options["weight_decay"] else grads
        torch._foreach_add_(z, torch._foreach_mul(moves, -options["lr"]))
        torch._foreach_add_(steps, 1)
        torch._foreach_add_(x, torch._foreach_mul(torch._foreach_sub(z, x), [1 / float(s) for s in steps]))
        mixed = torch._foreach_mul(z, 1 - options["momentum"])
        torch._foreach_add_(mixed, torch._foreach_mul(x, options["momentum"]))
        torch._foreach_copy_(params, mixed)

    def step(self, closure: Any = None) -> Any:
        """Take a step with the gradients that are there."""
        if not self._training:
            raise RuntimeError("ScheduleFreeSGD.step() after eval(): call train() first")
        return super().step(closure)

    def state_dict(self) -> dict[str, Any]:
        """Return the state; the parameters to save beside it are those of training."""
        if not self._training:
            raise RuntimeError("ScheduleFreeSGD.state_dict() after eval(): call train() first")
        return super().state_dict()

    def eval(self) -> None:
        """Put the averages in the parameters' place."""
        self._put(training=False)

    def train(self) -> None:
        """Put back the points where gradients are taken."""
        self._put(training=True)

    @torch.no_grad()
    def _put(self, training: bool) -> None:
        if training == self._training:
            return
        self._training = training
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state.get(p)
                if not state:
                    continue
                x, z = state["average"], state["iterate"]
                p.copy_((1 - group["momentum"]) * z + group["momentum"] * x if training else x)
