r"""Who is matched with whom, with a gradient: the front door to exact, entropic and learned assignments.

:func:`pullback.transport.assignment` returns indices and :func:`pullback.transport.sinkhorn` plans between masses; here
both, and a network that has learned to assign, answer with one (soft) permutation matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from pullback.core.checks import check_callable, check_choice, check_floating, check_integer
from pullback.core.gradients import replace_gradient
from pullback.core.shapes import Float, Scalar, Tensor
from pullback.core.transforms import can_look
from pullback.discrete.bins import constant
from pullback.discrete.softness import is_hard, widen
from pullback.transport import assignment, sinkhorn

__all__ = ["assign"]

_METHODS = ("sinkhorn", "hungarian", "learned")


def assign(
    cost: Float[Tensor, "*batch n m"],
    *,
    method: str = "sinkhorn",
    temperature: Scalar = 0.1,
    iterations: int = 200,
    dustbin: Scalar | None = None,
    hard: bool = False,
    model: Callable[[Tensor], Tensor] | None = None,
) -> Float[Tensor, "*batch n m"]:
    r"""Match rows with columns at the least total cost, as a matrix: 1 where a pair is made, in between where soft.

    The hard matrix is :math:`\arg\min_P \sum_{ij} P_{ij}C_{ij}` over matchings of all of the fewer side. With a dustbin
    any row or column may stay alone: :math:`\arg\min_P \sum_{ij} P_{ij}(C_{ij}-\delta)` over all matchings, so that a
    pair is made only where it costs less than :math:`\delta`.

    Args:
        cost: ``[*batch, n, m]``; ``inf`` forbids a pair.
        method: ``"sinkhorn"``: the minimum with entropy, :math:`\sum P C + \tau \sum P\log P` over matrices whose rows
            sum to 1 and columns too (at most 1 where they are more than rows, and the other way round). With a dustbin
            the matrix gets one row and one column more, of cost :math:`\delta` throughout, that take up to m rows and n
            columns, and are cut off from the answer (SuperGlue). ``"hungarian"``: the hard matrix, gradient 0.
            ``"learned"``: :math:`\sigma(\mathrm{model}(C))`, 0 where that is at most 1/2.
        temperature: :math:`\tau` >= 0 in the unit of the cost, of ``"sinkhorn"``; a number or a differentiable tensor
            without dimensions; 0 is the hard matrix.
        iterations: sweeps of Sinkhorn at most, >= 1; fewer where they have converged. The gradient is that of the
            converged matrix.
        dustbin: :math:`\delta`, in the unit of the cost, any sign; a number or a differentiable tensor without
            dimensions. Not for ``"learned"``, which decides itself who stays alone.
        hard: return the hard matrix, with the gradient of the soft one.
        model: from costs ``[*batch, n, m]`` to logits of the same shape, such as a trained
            :class:`~pullback.discrete.HungarianNet`; with ``"learned"`` only.

    Returns:
        ``[*batch, n, m]`` in [0, 1].

    Raises:
        TypeError: ``cost`` is no floating tensor, or ``model`` cannot be called.
        ValueError: ``cost`` is NaN or ``-inf`` somewhere or has no rows or columns, its infinities leave no matching,
            an option is out of range or does not belong to the method, the model returns another shape.

    Example:
        >>> cost = torch.tensor([[0.1, 0.9], [0.2, 0.3]])
        >>> assign(cost)
        tensor([[0.9707, 0.0293],
                [0.0293, 0.9707]])
        >>> assign(cost, dustbin=0.2, hard=True)
        tensor([[1., 0.],
                [0., 0.]])

    References:
        Cuturi (2013), Sinkhorn distances. Sarlin et al. (2020), SuperGlue, section 3.2. Adavanne, Politis, Virtanen
        (2021), Differentiable tracking-based training of deep learning sound source localizers, section 2.1.
    """
    check_choice("method", method, _METHODS)
    check_integer("iterations", iterations, 1)
    if check_floating("cost", cost).ndim < 2 or 0 in cost.shape[-2:]:
        raise ValueError(f"cost must have shape (..., n, m), n and m >= 1, got {tuple(cost.shape)}")
    wrong = cost.isnan() | (cost == -torch.inf)
    if can_look(cost) and bool(wrong.any()):
        raise ValueError(f"cost must not be NaN or -inf, got {cost[wrong][0].item()}")
    _check_dustbin(dustbin, method)
    if (model is None) == (method == "learned"):
        raise ValueError(f"model must be given with method 'learned' and with no other, got method {method!r}")
    still = is_hard(temperature, torch.float32 if cost.dtype != torch.float64 else cost.dtype)
    wide = widen(cost)
    exact = partial(_hard, wide.detach(), dustbin.detach() if isinstance(dustbin, Tensor) else dustbin)
    if method == "hungarian" or (method == "sinkhorn" and still):
        sources = (x for x in (wide, dustbin, temperature) if isinstance(x, Tensor))
        return constant(exact(), *sources).to(cost.dtype)
    if model is not None:
        check_callable("model", model)
        soft = torch.sigmoid(widen(model(cost)))
        if soft.shape != cost.shape:
            raise ValueError(f"model must return the shape of cost, {tuple(cost.shape)}, got {tuple(soft.shape)}")
        soft = torch.where(soft > 0.5, soft, 0)
    else:
        soft = _entropic(wide, temperature, iterations, dustbin)
    return (replace_gradient(exact(), soft) if hard else soft).to(cost.dtype)


def _check_dustbin(dustbin: Scalar | None, method: str) -> None:
    if dustbin is None:
        return
    if method == "learned":
        raise ValueError("dustbin must not be given with method 'learned', which decides itself who stays alone")
    if isinstance(dustbin, Tensor):
        if check_floating("dustbin", dustbin).ndim:
            raise ValueError(f"dustbin must be a number or a tensor without dimensions, got {tuple(dustbin.shape)}")
        number = float(dustbin.detach()) if can_look(dustbin) else 0.0
    elif isinstance(dustbin, bool) or not isinstance(dustbin, int | float):
        raise TypeError(f"dustbin must be a number or a tensor without dimensions, got {type(dustbin).__name__}")
    else:
        number = dustbin
    if not math.isfinite(number):
        raise ValueError(f"dustbin must be finite, got {number}")


def _hard(cost: Tensor, dustbin: Scalar | None) -> Tensor:
    n, m = cost.shape[-2:]
    alone = torch.zeros_like(cost, dtype=torch.bool)
    if dustbin is not None:  # what is not below it is as good as staying alone
        alone = ~(cost < dustbin)
        cost = torch.where(alone, 0, cost - dustbin)
    found = assignment(cost)
    places = found.rows * m + found.columns
    flat = torch.zeros_like(cost).flatten(-2)
    matrix = flat.scatter(-1, places, torch.ones_like(places, dtype=cost.dtype)).unflatten(-1, (n, m))
    return torch.where(alone, 0, matrix)


def _entropic(cost: Tensor, temperature: Scalar, iterations: int, dustbin: Scalar | None) -> Tensor:
    n, m = cost.shape[-2:]
    rows, columns = (torch.ones(k, dtype=cost.dtype, device=cost.device) for k in (n, m))
    padded = cost
    if dustbin is not None:
        price = (
            dustbin.to(cost) if isinstance(dustbin, Tensor) else torch.full((), dustbin, dtype=torch.float64).to(cost)
        )
        padded = torch.cat([padded, price.expand(*cost.shape[:-1], 1)], -1)
        padded = torch.cat([padded, price.expand(*cost.shape[:-2], 1, m + 1)], -2)
        rows, columns = nn.functional.pad(rows, (0, 1), value=m), nn.functional.pad(columns, (0, 1), value=n)
    elif n < m:  # what is left of the columns; a cost that is one number along a row changes nothing
        padded = torch.cat([padded, cost.new_zeros(*cost.shape[:-2], 1, m)], -2)
        rows = nn.functional.pad(rows, (0, 1), value=m - n)
    elif m < n:
        padded = torch.cat([padded, cost.new_zeros(*cost.shape[:-1], 1)], -1)
        columns = nn.functional.pad(columns, (0, 1), value=n - m)
    found = sinkhorn(padded, rows, columns, epsilon=temperature, max_iterations=iterations, tolerance=1e-7)
    return found.plan[..., :n, :m]
