r"""How many of independent events have come so far: the Poisson-binomial law of every prefix, and its pullback.

.. math::
    B_{0k} = [k = 0], \qquad B_{i+1,k} = (1 - p_i)\,B_{ik} + p_i\,B_{i,k-1}

References:
    Wang (1993), On the number of successes in independent trials.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from pullback.core.transforms import is_transformed
from pullback.kernels.compiled import compiled

__all__ = ["prefix_counts", "prefix_counts_plain"]


def prefix_counts(p: Tensor, most: int) -> Tensor:
    """Return the probabilities that ``k`` events have come before each.

    Args:
        p: ``[n]`` probabilities of independent events.
        most: counts from 0 to ``most - 1`` are told apart.

    Returns:
        ``[n, most]``: entry ``(i, k)`` is the probability of ``k`` events among the first ``i``. Differentiable to any
        order; memory and time of the first derivative are those of the result.

    Example:
        >>> prefix_counts(torch.tensor([0.5, 0.5, 0.5]), 2)
        tensor([[1.0000, 0.0000],
                [0.5000, 0.5000],
                [0.2500, 0.5000]])
    """
    if len(p) == 0 or most == 0:
        return p.new_zeros(len(p), most)
    if p.device.type != "cpu" or p.dtype not in (torch.float32, torch.float64) or is_transformed(p) or not _kernels():
        return prefix_counts_plain(p, most)
    counts: Tensor = _PrefixCounts.apply(p, most)
    return counts


def prefix_counts_plain(p: Tensor, most: int) -> Tensor:
    """:func:`prefix_counts` by torch's operations, one event at a time.

    Example:
        >>> prefix_counts_plain(torch.tensor([0.5, 0.5]), 2)
        tensor([[1.0000, 0.0000],
                [0.5000, 0.5000]])
    """
    start = p.new_zeros(most)
    start[0] = 1
    rows = [start]
    for one in p[:-1].unbind():
        before = rows[-1]
        rows.append(before * (1 - one) + torch.nn.functional.pad(before[:-1] * one, (1, 0)))
    return torch.stack(rows)


class _PrefixCounts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, p: Tensor, most: int) -> Tensor:
        run, _ = _kernels()
        counts = p.new_zeros(len(p), most)
        run(p.detach().resolve_neg().numpy(), counts.numpy())
        ctx.save_for_backward(p, counts)
        return counts

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        p, counts = ctx.saved_tensors
        if torch.is_grad_enabled():
            return torch.autograd.grad(prefix_counts_plain(p, counts.shape[1]), p, grad, create_graph=True)[0], None
        _, pullback = _kernels()
        cotangent, grad_p = grad.resolve_neg().clone(memory_format=torch.contiguous_format), torch.zeros_like(p)
        pullback(p.detach().resolve_neg().numpy(), counts.numpy(), cotangent.numpy(), grad_p.numpy())
        return grad_p, None


@cache
def _kernels() -> Any:
    jit = compiled(reassociate=True, nan=True)
    return None if jit is None else (jit(_run), jit(_pullback))


def _run(p: Any, counts: Any) -> None:
    n, most = counts.shape
    counts[0, 0] = 1
    for i in range(n - 1):
        yes, no = p[i], 1 - p[i]
        before, after = counts[i], counts[i + 1]
        after[0] = no * before[0]
        for k in range(1, min(i + 2, most)):
            chance = no * before[k] + yes * before[k - 1]
            after[k] = chance if chance > 1e-30 else 0.0  # numbers below the normal range are slow


def _pullback(p: Any, counts: Any, cotangent: Any, grad_p: Any) -> None:
    n, most = counts.shape
    for i in range(n - 2, -1, -1):
        yes, no = p[i], 1 - p[i]
        before, here, after = counts[i], cotangent[i], cotangent[i + 1]
        reached = min(i + 1, most)
        total = 0.0
        last = most if reached == most else reached + 1
        for k in range(1, last):
            here[k - 1] += no * after[k - 1] + yes * after[k]
            total += before[k - 1] * (after[k] - after[k - 1])
        if reached == most:
            here[most - 1] += no * after[most - 1]
            total -= before[most - 1] * after[most - 1]
        grad_p[i] += total
