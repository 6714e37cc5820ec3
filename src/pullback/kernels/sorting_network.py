"""The layers of a sorting network: a plain-torch reference and its compiled form with an exact backward pass.

The compiled form serves the CPU; the reference serves every device and carries double backward, forward mode, ``vmap``
and ``torch.compile``. Nothing of size n x n exists unless the matrix is asked for, and that is n swaps of rows a layer,
never a matrix product.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from pullback.core.gradients import replace_gradient
from pullback.core.transforms import is_transformed
from pullback.kernels.compiled import compiled

__all__ = ["Swaps", "mass_reference", "reference", "sorted_values", "sorting_mass", "sorting_matrix"]


@dataclass(frozen=True, eq=False)
class Swaps:
    """The swaps of a network on ``n`` wires, and how they are relaxed.

    Attributes:
        pairs: int32 ``[2, swaps]``: the wire that gets the smaller value, the wire that gets the larger.
        sizes: how many swaps each layer has; those of one layer share no wire.
        step: the sigmoid ``f``.
        distribution: its name.
        steepness: ``beta``; the weight of the other wire is ``f(-beta d)`` with ``d`` the signed difference.
        hard: swap without error, with the gradient of the soft swap.
    """

    pairs: Tensor
    sizes: tuple[int, ...]
    step: Callable[[Tensor], Tensor]
    distribution: str
    steepness: float
    hard: bool


def sorted_values(x: Tensor, swaps: Swaps) -> Tensor:
    """Return the values ``[*batch, n]`` that leave the network."""
    if not _is_compiled(x):
        return reference(x, swaps)
    result: Tensor = _Values.apply(x, swaps)
    return result


def sorting_matrix(x: Tensor, swaps: Swaps) -> Tensor:
    """Return the doubly stochastic ``[*batch, n, n]`` (row = place, column = item) that the network amounts to."""
    if not _is_compiled(x):
        return reference(x, swaps, matrix=True)
    result: Tensor = _Matrix.apply(x, swaps)
    return result


def sorting_mass(x: Tensor, swaps: Swaps, group: int) -> Tensor:
    """Return ``[*batch, n]``: the sums of the matrix's columns over its last ``group`` rows, without the matrix."""
    if not _is_compiled(x):
        return mass_reference(x, swaps, group)
    result: Tensor = _Mass.apply(x, swaps, group)
    return result


def reference(x: Tensor, swaps: Swaps, matrix: bool = False) -> Tensor:
    """Return the values, or the matrix, layer by layer in plain torch: the specification of the compiled form.

    Every wire mixes with its partner: ``x + d f(-beta d)`` with ``d = partner - x`` on the lower wire and
    ``x + d f(beta d)`` on the upper; idle wires are their own partners.
    """
    n = x.shape[-1]
    mixed = x
    if matrix:  # connected to x even where it is constant, on a single wire
        mixed = torch.eye(n, dtype=x.dtype, device=x.device) + 0 * torch.where(x.isfinite(), x, 0.0)[..., None]
    # Hard swaps compare places in the stable order and not values, so that ties leave as torch.sort leaves them.
    place = torch.argsort(torch.argsort(x.detach(), dim=-1, stable=True), dim=-1)
    for pairs in swaps.pairs.split(swaps.sizes, dim=1):
        low, high = pairs.to(x.device, torch.int64)
        partner = torch.arange(n, device=x.device).index_copy(0, low, high).index_copy(0, high, low)
        side = torch.zeros(n, dtype=x.dtype, device=x.device).index_fill(0, low, 1.0).index_fill(0, high, -1.0)
        other = x[..., partner]
        wrong = torch.where(side > 0, other < x, (other > x) & (side < 0))
        difference = other - x
        # Where the step is out of range (also inf - inf) the swap is the hard one: 0 * inf must not appear.
        finite = torch.isfinite(swaps.steepness * difference)
        difference = torch.where(finite, difference, 0.0)
        weight = torch.where(finite, swaps.step(-swaps.steepness * side * difference), wrong.to(x.dtype))
        soft = torch.where(finite, x + difference * weight, torch.where(wrong, other, x))
        rows = mixed[..., partner, :] if matrix else mixed
        soft_mixed = mixed + weight[..., None] * (rows - mixed) if matrix else mixed
        if swaps.hard:
            other_place = place[..., partner]
            change = torch.where(side > 0, other_place < place, (other_place > place) & (side < 0))
            soft = replace_gradient(torch.where(change, other, x), soft)
            if matrix:
                soft_mixed = replace_gradient(torch.where(change[..., None], rows, mixed), soft_mixed)
            place = torch.where(change, other_place, place)
        x, mixed = soft, soft_mixed
    return mixed if matrix else x


def mass_reference(x: Tensor, swaps: Swaps, group: int) -> Tensor:
    """Return the masses in plain torch: the indicator of the places through the layers in reverse.

    Each layer is a symmetric matrix, so that reversing their order transposes the product.
    """
    n = x.shape[-1]
    layers = []
    for pairs in swaps.pairs.split(swaps.sizes, dim=1):
        low, high = pairs.to(x.device, torch.int64)
        a, b = x[..., low], x[..., high]
        difference = b - a
        finite = torch.isfinite(swaps.steepness * difference)
        wrong = b < a
        difference = torch.where(finite, difference, 0.0)
        weight = torch.where(finite, swaps.step(-swaps.steepness * difference), wrong.to(x.dtype))
        layers.append((low, high, weight))
        smaller = torch.where(finite, a + difference * weight, torch.where(wrong, b, a))
        larger = torch.where(finite, b - difference * weight, torch.where(wrong, a, b))
        x = x.index_copy(-1, low, smaller).index_copy(-1, high, larger)
    # Connected to x even where it is constant, on a single wire.
    mass = (torch.arange(n, device=x.device) >= n - group).to(x.dtype) + 0 * torch.where(x.isfinite(), x, 0.0)
    for low, high, weight in reversed(layers):
        moved = (mass[..., high] - mass[..., low]) * weight
        mass = mass.index_add(-1, low, moved).index_add(-1, high, -moved)
    return mass


def _is_compiled(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and x.numel() > 0
        and not is_transformed(x)
        and compiled() is not None
    )


def _loops() -> ModuleType:
    from pullback.kernels import sorting_network_numba

    return sorting_network_numba


def _forward(x: Tensor, swaps: Swaps, derivatives: int) -> tuple[Tensor, list[Tensor]]:
    """Return the sorted rows and the first ``derivatives`` of ``q``, ``g``, ``r``."""
    low, high = swaps.pairs
    lanes = min(16, x.shape[0])
    blocks = -(-x.shape[0] // lanes)
    kept = [x.new_empty((blocks, low.numel(), lanes) if i < derivatives else (0, 0, 0)) for i in range(3)]
    out = torch.empty_like(x)
    loops = _loops()
    kind = loops.KINDS[swaps.distribution]
    arrays = [t.numpy() for t in (out, *kept)]
    loops.forward(x.numpy(), low.numpy(), high.numpy(), float(swaps.steepness), kind, swaps.hard, *arrays)
    return out, kept


def _rows(x: Tensor) -> Tensor:
    return x.detach().reshape(-1, x.shape[-1]).contiguous().resolve_neg()


class _Values(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, swaps: Swaps) -> Tensor:
        rows = _rows(x)
        out, (ctx.q, _, _) = _forward(rows, swaps, derivatives=int(ctx.needs_input_grad[0]))
        if swaps.hard:
            out = torch.sort(rows, dim=-1, stable=True).values  # the same values; among equal zeros also the same signs
        ctx.save_for_backward(x)
        ctx.swaps = swaps
        return out.reshape(x.shape)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, None]:
        (x,) = ctx.saved_tensors
        if torch.is_grad_enabled() or is_transformed(cotangent):
            return _backward_of(lambda x: reference(x, ctx.swaps), x, cotangent), None
        rows = _rows(cotangent)
        low, high = ctx.swaps.pairs
        out = torch.empty_like(rows)
        arrays = [t.numpy() for t in (low, high, ctx.q, rows.new_empty(0, 0), out)]
        _loops().transposed(rows.numpy(), *arrays)
        return out.reshape(x.shape), None


class _Matrix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, swaps: Swaps) -> Tensor:
        rows = _rows(x)
        low, high = swaps.pairs
        _, (ctx.q, ctx.g, ctx.r) = _forward(rows, swaps, derivatives=3)
        ctx.save_for_backward(x)
        ctx.swaps = swaps
        if swaps.hard:
            order = torch.argsort(rows, dim=-1, stable=True)
            out = torch.zeros(*rows.shape, x.shape[-1], dtype=x.dtype).scatter_(-1, order[..., None], 1.0)
        else:
            out = torch.empty(*rows.shape, x.shape[-1], dtype=x.dtype)
            _loops().matrix(low.numpy(), high.numpy(), ctx.g.numpy(), out.numpy())
        return out.reshape(*x.shape, x.shape[-1])

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, None]:
        (x,) = ctx.saved_tensors
        swaps: Swaps = ctx.swaps
        if torch.is_grad_enabled() or is_transformed(cotangent):
            return _backward_of(lambda x: reference(x, swaps, matrix=True), x, cotangent), None
        loops = _loops()
        rows = _rows(x)
        low, high = (t.numpy() for t in swaps.pairs)
        decided = rows.new_empty(0, 0)
        if swaps.hard:
            decided = rows.new_empty(rows.shape[0], low.size)
            rank = torch.argsort(torch.argsort(rows, dim=-1, stable=True), dim=-1)
            loops.decide(rank.numpy(), low, high, decided.numpy())
        injected = rows.new_empty(rows.shape[0], low.size)
        arrays = [t.numpy() for t in (ctx.g, ctx.r, decided, injected)]
        loops.matrix_transposed(_rows(cotangent).reshape(*rows.shape, -1).numpy(), low, high, *arrays)
        out = torch.empty_like(rows)
        loops.transposed(torch.zeros_like(rows).numpy(), low, high, ctx.q.numpy(), injected.numpy(), out.numpy())
        return out.reshape(x.shape), None


class _Mass(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, swaps: Swaps, group: int) -> Tensor:
        rows = _rows(x)
        low, high = swaps.pairs
        needed = ctx.needs_input_grad[0]
        _, (ctx.q, ctx.g, ctx.r) = _forward(rows, swaps, derivatives=3)
        ctx.differences = torch.empty_like(ctx.g) if needed else ctx.g.new_empty(0, 0, 0)
        out = torch.empty_like(rows)
        _loops().mass(low.numpy(), high.numpy(), ctx.g.numpy(), group, ctx.differences.numpy(), out.numpy())
        ctx.save_for_backward(x)
        ctx.swaps, ctx.group = swaps, group
        return out.reshape(x.shape)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, None, None]:
        (x,) = ctx.saved_tensors
        if torch.is_grad_enabled() or is_transformed(cotangent):
            return _backward_of(lambda x: mass_reference(x, ctx.swaps, ctx.group), x, cotangent), None, None
        loops, rows = _loops(), _rows(cotangent)
        low, high = (t.numpy() for t in ctx.swaps.pairs)
        injected = rows.new_empty(rows.shape[0], low.size)
        arrays = [t.numpy() for t in (ctx.g, ctx.r, ctx.differences, injected)]
        loops.mass_transposed(rows.numpy(), low, high, *arrays)
        out = torch.empty_like(rows)
        loops.transposed(torch.zeros_like(rows).numpy(), low, high, ctx.q.numpy(), injected.numpy(), out.numpy())
        return out.reshape(x.shape), None, None


def _backward_of(function: Callable[[Tensor], Tensor], x: Tensor, cotangent: Tensor) -> Tensor:
    """The gradient as a differentiable function of ``x`` and ``cotangent``: double backward, batched cotangents."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        output = function(x)
    return torch.autograd.grad(output, x, cotangent, create_graph=create_graph)[0]
