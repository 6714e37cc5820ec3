"""Proximal steps of optimal transport: the exact plan as the limit of easy entropic problems, each cut short."""

from __future__ import annotations

from typing import NamedTuple

import torch

from pullback.core.checks import (
    check_broadcast,
    check_finite,
    check_floating,
    check_integer,
    check_same_dtype,
    check_scalar,
)
from pullback.core.shapes import Float, Scalar, Tensor
from pullback.core.transforms import can_look
from pullback.transport.masses import masses

__all__ = ["ProximalState", "proximal_sinkhorn"]


class ProximalState(NamedTuple):
    """Where a proximal iteration stands.

    Attributes:
        log_plan: ``[*batch, n, m]`` logarithms of the plan. Its column sums are exact, its row sums up to what the
            sweeps left.
        g: ``[*batch, m]`` potential of the columns, in the unit of the cost: where the next step begins.
    """

    log_plan: Float[Tensor, "*batch n m"]
    g: Float[Tensor, "*batch m"]


def proximal_sinkhorn(
    cost: Float[Tensor, "*#batch n m"],
    state: ProximalState | None = None,
    a: Float[Tensor, "*#batch n"] | None = None,
    b: Float[Tensor, "*#batch m"] | None = None,
    *,
    epsilon: Scalar,
    sweeps: int = 1,
) -> ProximalState:
    r"""Take one inexact proximal step of optimal transport from the plan :math:`P`.

    .. math:: Q = P\,e^{-C/\varepsilon}, \qquad
        f_i = \varepsilon\Big(\log a_i - \log\sum_j Q_{ij}e^{g_j/\varepsilon}\Big),\quad
        g_j = \varepsilon\Big(\log b_j - \log\sum_i Q_{ij}e^{f_i/\varepsilon}\Big),\qquad
        P' = e^{f/\varepsilon}\,Q\,e^{g/\varepsilon}

    The step minimises :math:`\langle P',C\rangle+\varepsilon\,KL(P'|P)` up to what the sweeps of f and g leave. With
    one cost, t steps are an entropic problem at :math:`\varepsilon/t`: whatever epsilon is, they tend to an unblurred
    plan of least cost. The potential g is kept from step to step; begun at 0 each time, a single sweep leaves an error
    that the next step does not mend, and the limit has other row sums.

    Args:
        cost: ``[*batch, n, m]`` finite.
        state: where the last step ended; ``a b^T`` with g = 0 by default. It is not changed.
        a: ``[*batch, n]`` masses > 0 of the rows; uniform by default.
        b: ``[*batch, m]`` masses > 0 of the columns, of the same sum; uniform by default.
        epsilon: > 0, in the unit of the cost; a number or a differentiable tensor without dimensions. The larger, the
            smaller the step.
        sweeps: of f and g, >= 1; each is part of the gradient.

    Returns:
        :class:`ProximalState`, differentiable in all arguments; detach it to hold what came before constant. Logarithms
        below the least number of the dtype are that number.

    Raises:
        TypeError: ``cost`` is no floating tensor, another argument has another dtype, ``sweeps`` is no integer.
        ValueError: a number is out of range, a cost or a logarithm is not finite, masses are not positive or of
            different sums, shapes do not fit.

    Example:
        >>> cost, state = torch.tensor([[0.0, 1.0], [1.0, 0.5]]), None
        >>> for _ in range(20):
        ...     state = proximal_sinkhorn(cost, state, epsilon=0.5)
        >>> state.log_plan.exp().round(decimals=4)
        tensor([[0.5000, 0.0000],
                [0.0000, 0.5000]])

    References:
        Xie, Wang, Wang, Zha (2019), A fast proximal point method for computing exact Wasserstein distance, algorithm 1.
    """
    if check_floating("cost", cost).ndim < 2 or 0 in cost.shape[-2:]:
        raise ValueError(f"cost must have shape (..., n, m) with n, m >= 1, got {tuple(cost.shape)}")
    check_scalar("epsilon", epsilon)
    check_integer("sweeps", sweeps, 1)
    n, m = cost.shape[-2:]
    _check_finite("cost", cost)
    shapes = {"cost": tuple(cost.shape[:-2])}
    for name, x, shape in () if state is None else (("log_plan", state.log_plan, (n, m)), ("g", state.g, (m,))):
        check_same_dtype(**{"cost": cost, name: check_floating(name, x)})
        if tuple(x.shape[-len(shape) :]) != shape:
            raise ValueError(f"{name} must have shape (..., {', '.join(map(str, shape))}), got {tuple(x.shape)}")
        _check_finite(name, x)
        shapes[name] = tuple(x.shape[: -len(shape)])
    batch = check_broadcast(**shapes, **{k: tuple(x.shape[:-1]) for k, x in (("a", a), ("b", b)) if x is not None})
    for name, mass in (("a", a), ("b", b)):
        if mass is not None and can_look(mass) and bool((mass <= 0).any()):
            raise ValueError(f"{name} must be > 0")
    rows, columns = (x.double().log() for x in masses(a, b, sizes=(n, m), batch=batch, like=cost, what="cost"))
    scale = epsilon.double() if isinstance(epsilon, Tensor) else float(epsilon)
    if state is None:
        kernel, g = rows.unsqueeze(-1) + columns.unsqueeze(-2), torch.zeros_like(columns)
    else:
        kernel, g = state.log_plan.double(), state.g.double() / scale
    kernel = kernel - cost.double() / scale
    for _ in range(sweeps):
        f = rows - torch.logsumexp(kernel + g.unsqueeze(-2), -1)
        g = columns - torch.logsumexp(kernel + f.unsqueeze(-1), -2)
    log_plan = kernel + f.unsqueeze(-1) + g.unsqueeze(-2)
    least = torch.finfo(cost.dtype).min
    return ProximalState(log_plan.clamp(min=least).to(cost.dtype), (g * scale).to(cost.dtype))


def _check_finite(name: str, x: Tensor) -> None:
    if can_look(x):
        check_finite(name, x)
