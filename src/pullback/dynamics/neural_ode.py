"""A module that solves an ordinary differential equation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pullback.dynamics.odeint import odeint

__all__ = ["NeuralODE"]


class NeuralODE(nn.Module):
    """y(t[-1]) or y at all times of dy/dt = field(t, y), with the field's parameters as its own.

    Args:
        field: ``field(t, y)``, a module.
        t: the times, ``(0, 1)`` by default.
        final: return the state at the last time alone, which makes the module a layer of ``nn.Sequential``; one step
            of ``method="euler"`` is then a residual block.
        method, rtol, atol, step, adjoint, shared_step, max_steps, batch_ndim: as in :func:`odeint`.

    Example:
        >>> class Decay(torch.nn.Linear):
        ...     def forward(self, t, y):
        ...         return super().forward(y)
        >>> block = NeuralODE(Decay(3, 3), [0.0, 1.0], method="rk4", step=0.25)
        >>> solution = block(torch.zeros(5, 3))
        >>> solution.y.shape, solution.evaluations
        (torch.Size([2, 5, 3]), 16)

    References:
        Chen, Rubanova, Bettencourt, Duvenaud (2018), Neural ordinary differential equations, arXiv 1806.07366.
    """

    def __init__(
        self,
        field: nn.Module,
        t: Tensor | Sequence[float] = (0.0, 1.0),
        *,
        final: bool = False,
        method: str = "dopri5",
        rtol: float = 1e-5,
        atol: float = 1e-7,
        step: float | None = None,
        adjoint: str = "checkpoint",
        shared_step: bool = False,
        max_steps: int = 10_000,
        batch_ndim: int | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(field, nn.Module):
            raise TypeError(f"field must be a torch.nn.Module, got {type(field).__name__}; for a function call odeint")
        self.field = field
        self.final = final
        self.register_buffer("t", torch.as_tensor(t), persistent=False)
        self.options: dict[str, Any] = {
            "method": method,
            "rtol": rtol,
            "atol": atol,
            "step": step,
            "adjoint": adjoint,
            "shared_step": shared_step,
            "max_steps": max_steps,
            "batch_ndim": batch_ndim,
        }

    def forward(self, y0: Any, t: Tensor | Sequence[float] | None = None) -> Any:
        """Solve from ``y0``; ``t`` replaces the module's times.

        Returns:
            The :class:`pullback.dynamics.ODESolution`, which has the counts of evaluations; where ``final``, the last
            state alone.
        """
        times: Any = self.t if t is None else t
        field: Callable[[Tensor, Any], Any] = self.field
        solution = odeint(field, y0, times, **self.options)
        return tree_map(lambda y: y[-1], solution.y) if self.final else solution

    def extra_repr(self) -> str:
        """Method and adjoint."""
        return f"method={self.options['method']!r}, adjoint={self.options['adjoint']!r}"
