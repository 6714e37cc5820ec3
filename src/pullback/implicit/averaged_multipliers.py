"""Bilevel problems whose inner minimum is not unique: one averaged objective, one multiplier, one loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch

from pullback.core.checks import check_positive, check_range
from pullback.core.errors import ConvergenceError
from pullback.core.shapes import Float, Tensor
from pullback.implicit.arguments import check_number
from pullback.implicit.bilevel import BilevelProblem
from pullback.implicit.stationarity import Stationarity
from pullback.implicit.variables import Objective, Variables

__all__ = ["AveragedMultipliers", "MultiplierState", "kkt_residual"]


class MultiplierState(NamedTuple):
    """Where a step of :class:`AveragedMultipliers` began.

    Attributes:
        step: the number of the step, from 0.
        upper: the outer objective, no dimensions.
        lower: the inner objective.
        mix: weight of the outer objective in the averaged one.
        residual: norm of the three conditions, as :func:`kkt_residual` has it.
    """

    step: int
    upper: Float[Tensor, ""]
    lower: Float[Tensor, ""]
    mix: float
    residual: Float[Tensor, ""]


def kkt_residual(
    upper: Callable[[Any, Any], Tensor],
    lower: Callable[[Any, Any], Tensor],
    x: Any,
    y: Any,
    multiplier: Any,
    *,
    mix: float,
) -> Float[Tensor, ""]:
    r"""Return how far ``(x, y, v)`` is from stationary for ``min upper`` subject to ``D_y phi = 0``.

    With ``phi = mix * upper + (1 - mix) * lower`` and a multiplier ``v`` of that condition, it is the norm of all of

    ``D_x upper - (D_xy phi) v``,  ``D_y upper - (D_yy phi) v``,  ``D_y phi``.

    Args:
        upper: ``upper(x, y)``, one number.
        lower: ``lower(x, y)``, one number.
        x: outer variable, a floating tensor, a nesting of them or a module.
        y: inner variable, likewise.
        multiplier: ``v``, structured like ``y``; of a module, a dictionary by names of parameters.
        mix: in [0, 1]; with 0 it is the condition of a strongly convex inner problem.

    Returns:
        The 2-norm, no dimensions, without derivatives.

    Raises:
        TypeError: an objective cannot be called, a variable holds other things than floating tensors.
        ValueError: ``mix`` out of range, a multiplier that does not look like ``y``, or an objective that does not
            depend on ``y``.

    Example:
        >>> one = torch.ones(1)  # upper is least where y = x = 1, and lower has its minimum at y = x
        >>> upper = lambda x, y: ((y - 1) ** 2).sum() / 2
        >>> lower = lambda x, y: ((y - x) ** 2).sum() / 2
        >>> [kkt_residual(upper, lower, x, one, 0 * one, mix=0.5).item() for x in (one, 3 * one)]
        [0.0, 1.0]

    References:
        Liu, Liu, Yao, Zeng, Zhang (2023), Averaged method of multipliers for bi-level optimization without lower-level
        strong convexity, equation 6.
    """
    outer, inner = Variables.of("x", x), Variables.of("y", y)
    check_range("mix", mix, 0, 1)
    v = inner.like("multiplier", multiplier)
    objectives = Objective("upper", upper, outer, inner), Objective("lower", lower, outer, inner)
    return Stationarity(*objectives, outer, inner, v, mix).residual


class AveragedMultipliers:
    r"""The averaged method of multipliers for ``min_x upper(x, y)`` with ``y`` among the minimisers of ``lower(x, .)``.

    Where ``lower(x, .)`` is merely convex its minimum is a set, its Hessian has no inverse, and which of the minima is
    taken matters to ``upper``. The averaged objective ``phi_k = m_k upper + (1 - m_k) lower`` has one minimum; with
    ``m_k -> 0`` it leads to the one of the set that ``upper`` wants. ``v`` follows ``(D_yy phi)^{-1} D_y upper``. In
    each step, at once,

    * ``y <- y - b_k D_y phi_k``
    * ``v <- v - e_k (D_yy phi_k v - D_y upper)``
    * ``x <- x - a_k (D_x upper - D_xy phi_k v)``

    with ``m_k = mix (k + 1)^(-1 / mix_decay)``, ``b_k = lr_y (k + 1)^(-step_decay / 2)``,
    ``a_k = lr_x (k + 1)^(-3 step_decay / 2) m_k^3`` (without the power of ``m_k`` where ``mix`` is 0), and ``e_k`` like
    ``b_k`` from ``lr_v``, or ``|r|^2 / r^T (D_yy phi_k) r``, the exact line search along ``r``, the residual of ``v``.
    A step evaluates each objective and its gradient once and takes one product with the second derivatives, which gives
    both ``D_yy phi_k v`` and ``D_xy phi_k v``; the line search takes another one. Nothing is solved, nothing unrolled.

    The problem's tensors are changed in place.

    Args:
        problem: what is solved.
        lr_x: > 0.
        lr_y: > 0, below 2 / (largest eigenvalue of ``D_yy phi``).
        lr_v: > 0, with the same bound, or ``"line search"``.
        mix: in [0, 1], weight of ``upper`` at the start. 0 is for inner problems that are strongly convex.
        mix_decay: > 0, the ``p`` of the paper; the larger, the slower ``mix`` falls.
        step_decay: >= 0, the ``tau`` of the paper.
        momentum: in [0, 1); above 0 ``x`` follows a running mean of its gradient, ``m <- momentum m + (1 - momentum)
            (...)``. With ``mix`` 0 and ``step_decay`` 0 that is MA-SOBA, and without momentum SOBA.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an option is out of range.

    Example:
        >>> from pullback.implicit import BilevelProblem
        >>> x, y = torch.zeros(1), torch.zeros(2)  # lower says y_0 = x, and nothing of y_1
        >>> problem = BilevelProblem(
        ...     lambda x, y: ((x - y[1]) ** 2 + (y[0] - 1) ** 2).sum() / 2,
        ...     lambda x, y: ((y[0] - x) ** 2).sum() / 2,
        ...     x,
        ...     y,
        ... )
        >>> method = AveragedMultipliers(problem, lr_x=0.5, lr_y=0.5, lr_v=0.5)
        >>> for _ in range(500):
        ...     state = method.step()
        >>> round(x.item(), 2), [round(v, 2) for v in y.tolist()]
        (1.0, [1.0, 1.0])

    References:
        Liu, Liu, Yao, Zeng, Zhang (2023), Averaged method of multipliers for bi-level optimization without lower-level
        strong convexity, algorithm 1 and theorem 3.
        Dagreou, Ablin, Vaiter, Moreau (2022), A framework for bilevel optimization that enables stochastic and global
        variance reduction algorithms: SOBA.
        Chen, Xiao, Balasubramanian (2023), Optimal algorithms for stochastic bilevel optimization under relaxed
        smoothness conditions: MA-SOBA.
    """

    def __init__(
        self,
        problem: BilevelProblem,
        *,
        lr_x: float,
        lr_y: float,
        lr_v: float | Literal["line search"] = "line search",
        mix: float = 0.9,
        mix_decay: float = 10.0,
        step_decay: float = 1 / 40,
        momentum: float = 0.0,
    ) -> None:
        if not isinstance(problem, BilevelProblem):
            raise TypeError(f"problem must be a BilevelProblem, got {type(problem).__name__}")
        check_number("lr_x", lr_x)
        check_number("lr_y", lr_y)
        if isinstance(lr_v, str):
            if lr_v != "line search":
                raise ValueError(f"lr_v must be 'line search' or a number > 0, got {lr_v!r}")
        else:
            check_number("lr_v", lr_v)
        check_range("mix", mix, 0, 1)
        check_number("mix_decay", mix_decay)
        check_positive("step_decay", step_decay, zero=True)
        check_range("momentum", momentum, 0, 1)
        if momentum == 1:
            raise ValueError("momentum must be in [0, 1), got 1")
        self.problem = problem
        self.taken = 0
        self._outer, self._inner = Variables.of("x", problem.x), Variables.of("y", problem.y)
        self._upper = Objective("upper", problem.upper, self._outer, self._inner)
        self._lower = Objective("lower", problem.lower, self._outer, self._inner)
        self._v = [torch.zeros_like(leaf) for leaf in self._inner.leaves]
        self._m, self._momentum = [torch.zeros_like(leaf) for leaf in self._outer.leaves], momentum
        self._lr_x, self._lr_y, self._lr_v = lr_x, lr_y, lr_v
        self._mix, self._mix_decay, self._step_decay = mix, mix_decay, step_decay

    @property
    def multiplier(self) -> Any:
        """``v``, structured like ``y``; of a module, a dictionary by names of parameters."""
        return self._inner.tree(self._v)

    def step(self) -> MultiplierState:
        """Move ``y``, ``v`` and ``x`` at once.

        Raises:
            ValueError: an objective does not depend on ``y`` or returns no single number.
            ConvergenceError: the multiplier became infinite or NaN: ``lr_v`` or ``lr_y`` is too large. It carries the
                :class:`MultiplierState` of the step.
        """
        k = self.taken + 1
        mix = self._mix * k ** (-1 / self._mix_decay)
        slow = k ** (-self._step_decay / 2)
        at = Stationarity(self._upper, self._lower, self._outer, self._inner, self._v, mix)
        state = MultiplierState(self.taken, at.upper, at.lower, mix, at.residual)
        rate = at.line_search() if isinstance(self._lr_v, str) else self._lr_v * slow
        # Out of place: the graph of the gradients holds the tensors of x and y, which are written last.
        v = [torch.sub(v, r * rate) for v, r in zip(self._v, at.of_v, strict=True)]
        if not all(bool(torch.isfinite(leaf).all()) for leaf in v):
            raise ConvergenceError(
                f"AveragedMultipliers: the multiplier became infinite or NaN in step {self.taken}; "
                "take a smaller lr_v or lr_y",
                state,
            )
        self._v, of_x = v, at.of_x
        if self._momentum:
            of_x = self._m = [torch.lerp(slope, old, self._momentum) for slope, old in zip(of_x, self._m, strict=True)]
        step_x = self._lr_x * slow**3 * (mix**3 if self._mix else 1.0)
        for variables, slopes, length_of_step in (
            (self._inner, at.of_y, self._lr_y * slow),
            (self._outer, of_x, step_x),
        ):
            moved = zip(variables.leaves, slopes, strict=True)
            variables.assign([torch.sub(leaf.detach(), g, alpha=length_of_step) for leaf, g in moved])
        self.taken += 1
        return state

    def state_dict(self) -> dict[str, Any]:
        """Return all that a step changes: both variables, the multiplier, the momentum and the count."""
        tensors = {"x": self._outer.leaves, "y": self._inner.leaves, "multiplier": self._v, "m": self._m}
        return {key: [leaf.detach() for leaf in leaves] for key, leaves in tensors.items()} | {"taken": self.taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of :meth:`state_dict`."""
        self._outer.assign(state["x"])
        self._inner.assign(state["y"])
        self._v, self._m = ([leaf.clone() for leaf in state[key]] for key in ("multiplier", "m"))
        self.taken = state["taken"]
