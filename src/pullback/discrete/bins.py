"""Soft membership in the bins between edges: what every count and every place among boundaries is made of.

An entry lies above an edge by the step ``F((x - e) / t)``, and in the region between two edges by the difference of
their steps. The logistic step is 0 or 1 to rounding from a few temperatures on, so that an entry meets a window of
edges and not all of them; the other steps have heavy tails and meet all.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pullback.core.checks import check_choice, check_scalar
from pullback.core.gradients import replace_gradient
from pullback.core.shapes import Scalar
from pullback.core.transforms import physical
from pullback.discrete.softness import quotient
from pullback.discrete.steps import STEP_ERRORS, soft_step
from pullback.discrete.value_state import value_state

__all__ = ["check_entries", "check_increasing", "constant", "count_regions", "edges_below"]


def edges_below(x: Tensor, edges: Tensor, temperature: Scalar, method: str) -> Tensor:
    """Return ``[*batch, n]``: the soft number of edges below each entry, ``sum_k F((x - e_k) / t)``.

    Args:
        x: ``[*batch, n]`` of at least single precision.
        edges: ``[m]`` or ``[*batch, m]``, ascending.
        temperature: > 0.
        method: the step.

    Example:
        >>> edges_below(torch.tensor([0.0, 1.0, 5.0]), torch.tensor([1.0, 2.0]), 1e-3, "logistic")
        tensor([0.0000, 0.5000, 2.0000])
    """
    first, steps = _window(x, edges, temperature, method)
    return first.to(steps.dtype) + steps.sum(-1)


def count_regions(x: Tensor, edges: Tensor, temperature: Scalar, method: str, weights: Tensor | None = None) -> Tensor:
    """Return ``[*batch, m + 1]``: how many entries lie below the first edge, between each two, above the last.

    Args:
        x, edges, temperature, method: as in :func:`edges_below`.
        weights: ``[*batch, n]``, what each entry counts; 1 by default.

    Example:
        >>> count_regions(torch.tensor([0.0, 1.0, 5.0]), torch.tensor([1.0, 2.0]), 1e-3, "logistic")
        tensor([1.5000, 0.5000, 1.0000])
    """
    first, steps = _window(x, edges, temperature, method)
    m = edges.shape[-1]
    above = torch.nn.functional.pad(torch.nn.functional.pad(steps, (1, 0), value=1.0), (0, 1))
    member = above[..., :-1] - above[..., 1:]
    if weights is not None:
        member = member * weights.unsqueeze(-1)
    region = (first.unsqueeze(-1) + torch.arange(member.shape[-1], device=x.device)).clamp(max=m)
    none = member.new_zeros(*x.shape[:-1], m + 1)
    return none.scatter_add(-1, region.flatten(-2), member.flatten(-2))


def check_entries(name: str, x: Tensor) -> None:
    """Refuse NaN.

    Raises:
        ValueError: ``x`` holds a NaN.

    Example:
        >>> check_entries("x", torch.tensor([float("nan")]))
        Traceback (most recent call last):
        ValueError: x must not hold NaN: it lies in no bin
    """
    if value_state(x).nan:
        raise ValueError(f"{name} must not hold NaN: it lies in no bin")


def check_increasing(name: str, edges: Tensor, *, strictly: bool = False) -> None:
    """Refuse edges that are not finite or do not increase along the last dimension (``strictly``: are equal).

    Raises:
        ValueError: they are not finite or do not increase.

    Example:
        >>> check_increasing("bins", torch.tensor([1.0, 0.0]))
        Traceback (most recent call last):
        ValueError: bins must be finite and must not decrease
    """
    if torch.compiler.is_compiling():
        return
    low, high = edges.detach()[..., :-1], edges.detach()[..., 1:]
    # Neighbours are compared, as the difference of two large ones may overflow.
    ordered = (low < high if strictly else low <= high).all() & edges.detach().isfinite().all()
    if not bool(physical(ordered).all()):
        raise ValueError(f"{name} must be finite and {'increase strictly' if strictly else 'must not decrease'}")


def constant(exact: Tensor, *sources: Tensor | None) -> Tensor:
    """Return ``exact`` with gradient 0 in each of the ``sources``: the hard function at temperature 0.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> torch.autograd.grad(constant(torch.zeros(3), x).sum(), x)[0].tolist()
        [0.0, 0.0]
    """
    zero = sum((torch.sign(s).sum() for s in sources if s is not None), start=exact.new_zeros(()))
    return replace_gradient(exact, zero.to(exact.dtype).expand(exact.shape))


def _window(x: Tensor, edges: Tensor, temperature: Scalar, method: str) -> tuple[Tensor, Tensor]:
    """Return the number of edges that are below each entry for certain, and the steps at the ``w`` next ones.

    ``first [*batch, n]`` int64 and ``steps [*batch, n, w]``, 0 where there is no edge left.
    """
    check_choice("method", method, STEP_ERRORS)
    m = edges.shape[-1]
    batch = x.shape[:-1]
    first = torch.zeros(x.shape, dtype=torch.int64, device=x.device)
    width = m
    number = check_scalar("temperature", temperature)
    if method == "logistic" and number is not None and not torch.compiler.is_compiling():
        reach = number * math.log(8 / torch.finfo(x.dtype).eps) / 4
        values, sequence = x.detach().contiguous(), edges.detach().contiguous()
        begin = torch.searchsorted(sequence, values - reach)
        near = torch.searchsorted(sequence, values + reach, right=True) - begin
        widest = int(physical(near).max()) if physical(near).numel() else 0
        if widest < m:
            first, width = begin, widest
    index = first.unsqueeze(-1) + torch.arange(width, device=x.device)
    inside = index < m
    expanded = edges.expand(*batch, m)
    near_edges = expanded.gather(-1, index.clamp(max=max(m - 1, 0)).flatten(-2)).unflatten(-1, index.shape[-2:])
    steps = soft_step(quotient(x.unsqueeze(-1) - near_edges, temperature), method)
    return first, torch.where(inside, steps, 0.0)
