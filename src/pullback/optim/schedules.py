"""Step sizes with which the last iterate is as good as any average."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from pullback.core.checks import check_choice, check_finite, check_floating, check_integer, check_positive
from pullback.core.shapes import Float

__all__ = ["LinearDecay", "SqrtDecay", "step_sizes", "worst_case_subgradient"]

Schedule = Literal["linear", "sqrt", "constant", "strongly_convex"]


def step_sizes(schedule: str, steps: int, scale: float = 1.0, *, smoothness: float = 0.0) -> Float[Tensor, "steps"]:
    r"""Return the step sizes of a theorem, :math:`\min(1 / 2L, \eta_t)`.

    ===================  =========================================  =============================================
    schedule             :math:`\eta_t`                             error of the last iterate
    ===================  =========================================  =============================================
    linear               :math:`\eta (T - t + 1) / T^{3/2}`         :math:`O(1/\sqrt T)`, the horizon is known
    sqrt                 :math:`\eta / \sqrt t`                     :math:`O(\log T / \sqrt T)`
    constant             :math:`\eta / \sqrt T`                     :math:`O(\log T / \sqrt T)`
    strongly_convex      :math:`2 \eta / (t + 1)`                   :math:`O(\log T / T)`, :math:`\eta = 1/\mu`
    ===================  =========================================  =============================================

    Args:
        schedule: see the table.
        steps: ``T`` >= 1.
        scale: ``eta`` > 0.
        smoothness: ``L`` >= 0 of the smooth part; 0: none.

    Returns:
        ``[steps]`` float64, of steps ``t = 1 .. T``.

    Raises:
        ValueError: an unknown schedule, or a number out of range.

    Example:
        >>> step_sizes("linear", 4, 8.0).tolist()
        [4.0, 3.0, 2.0, 1.0]

    References:
        Liu, Zhou (2024), Revisiting the last-iterate convergence of stochastic gradient methods, theorems 3.1, 3.2.
        Zamani, Glineur (2023), Exact convergence rate of the last iterate in subgradient methods.
    """
    check_choice("schedule", schedule, get_args(Schedule))
    check_integer("steps", steps, 1)
    check_positive("scale", scale)
    check_positive("smoothness", smoothness, zero=True)
    t = torch.arange(1, steps + 1, dtype=torch.float64)
    sizes = {
        "linear": scale * (steps - t + 1) / steps**1.5,
        "sqrt": scale / t.sqrt(),
        "constant": torch.full_like(t, scale / math.sqrt(steps)),
        "strongly_convex": 2 * scale / (t + 1),
    }[schedule]
    return sizes.clamp(max=1 / (2 * smoothness)) if smoothness else sizes


def worst_case_subgradient(x: Float[Tensor, "n"]) -> tuple[Tensor, Tensor]:
    r"""Return the value and an adversary's subgradient of a function on which the last iterate pays for log T.

    .. math:: f(x) = \max_{i \le T + 1} \; \sum_{j < i} a_j x_j - b_i x_i, \quad
        a_j = \frac{1}{8 (T - j + 1)}, \; b_i = \frac{\sqrt i}{2 \sqrt T} \text{ for } i \le T, \; b_{T+1} = 0

    Its least value on the unit ball is 0, at the origin: a convex combination of its pieces is 0. From there, with
    steps :math:`1 / \sqrt t`, the subgradient of the first largest piece leads each step to the next piece.

    Args:
        x: ``[T + 1]``, at least 2 entries, from the unit ball.

    Returns:
        The value and ``[T + 1]`` the subgradient, without a graph.

    Raises:
        TypeError: ``x`` is no floating tensor.
        ValueError: ``x`` is no vector of at least two finite entries.

    Example:
        >>> value, slope = worst_case_subgradient(torch.zeros(3))
        >>> value.item(), [round(v, 4) for v in slope.tolist()]
        (0.0, [-0.3536, 0.0, 0.0])

    References:
        Harvey, Liaw, Plan, Randhawa (2019), Tight analyses for non-smooth stochastic gradient descent, section 4.
    """
    check_floating("x", x)
    if x.ndim != 1 or len(x) < 2:
        raise ValueError(f"x must be a vector of at least 2 entries, got shape {tuple(x.shape)}")
    check_finite("x", x)
    steps = len(x) - 1
    j = torch.arange(1, steps + 2, dtype=x.dtype, device=x.device)
    a, b = 1 / (8 * (steps - j + 1)), j.sqrt() / (2 * math.sqrt(steps))
    a[-1] = b[-1] = 0
    pieces = (a * x.detach()).cumsum(0) - (a + b) * x.detach()
    largest = pieces.max()
    first = int((pieces >= largest - 1e-12).nonzero()[0])
    slope = torch.where(torch.arange(steps + 1, device=x.device) < first, a, 0)
    slope[first] = -b[first]
    return largest, slope


class LinearDecay(LRScheduler):
    r"""Let the step size fall to 0 along a line: :math:`\min(1/2L, lr\,(T - t + 1) / T)` at step t of T.

    With ``lr = eta / sqrt(T)`` the last iterate of stochastic mirror descent on a convex function is within
    :math:`O(1/\sqrt T)` of the optimum, without the factor log T of constant steps and without an average.

    Args:
        optimizer: whose ``lr`` is that of the first step.
        steps: ``T`` >= 1, how many times ``optimizer.step()`` is called; call ``step()`` of this after each.
        smoothness: ``L`` >= 0; 0: no cap.
        last_epoch: number of the last step when going on, as of torch's schedulers.

    Raises:
        TypeError: ``steps`` is no integer.
        ValueError: a number is out of range, or more steps are taken than ``steps``.

    Example:
        >>> w = torch.nn.Parameter(torch.zeros(1))
        >>> optimizer = torch.optim.SGD([w], lr=0.4)
        >>> scheduler, sizes = LinearDecay(optimizer, 4), []
        >>> for _ in range(4):
        ...     sizes.append(round(optimizer.param_groups[0]["lr"], 2))
        ...     optimizer.step()
        ...     scheduler.step()
        >>> sizes
        [0.4, 0.3, 0.2, 0.1]

    References:
        Liu, Zhou (2024), Revisiting the last-iterate convergence of stochastic gradient methods, theorem 3.1.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, steps: int, *, smoothness: float = 0.0, last_epoch: int = -1
    ) -> None:
        check_integer("steps", steps, 1)
        check_positive("smoothness", smoothness, zero=True)
        self.steps, self.smoothness = steps, smoothness
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """Return the step size of each group."""
        if self.last_epoch > self.steps:
            raise ValueError(f"LinearDecay was made for {self.steps} steps, step {self.last_epoch} is beyond")
        factor = (self.steps - self.last_epoch) / self.steps
        return _capped([base * factor for base in self.base_lrs], self.smoothness)


class SqrtDecay(LRScheduler):
    r"""Let the step size fall as :math:`\min(1/2L, lr / \sqrt t)`: for a horizon that nobody knows.

    Args:
        optimizer: whose ``lr`` is that of the first step.
        smoothness: ``L`` >= 0; 0: no cap.
        last_epoch: number of the last step when going on.

    Raises:
        ValueError: a number is out of range.

    Example:
        >>> w = torch.nn.Parameter(torch.zeros(1))
        >>> optimizer = torch.optim.SGD([w], lr=0.4)
        >>> scheduler = SqrtDecay(optimizer)
        >>> for _ in range(3):
        ...     optimizer.step()
        ...     scheduler.step()
        >>> optimizer.param_groups[0]["lr"]  # of step 4
        0.2

    References:
        Liu, Zhou (2024), Revisiting the last-iterate convergence of stochastic gradient methods, theorem 3.2.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, *, smoothness: float = 0.0, last_epoch: int = -1) -> None:
        check_positive("smoothness", smoothness, zero=True)
        self.smoothness = smoothness
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """Return the step size of each group."""
        return _capped([base / math.sqrt(self.last_epoch + 1) for base in self.base_lrs], self.smoothness)


def _capped(sizes: list[Any], smoothness: float) -> list[Any]:
    return [min(size, 1 / (2 * smoothness)) if smoothness else size for size in sizes]
