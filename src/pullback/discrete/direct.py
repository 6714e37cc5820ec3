"""Soft-sorted values as one compiled operation: the common case of a finite input on the CPU, differentiated once.

Everything here has its plain, composed form in ``sorted_input.py``, which is taken under ``torch.func``, forward mode
and ``torch.compile``, for infinities, on other devices, without numba, and for derivatives of second order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pullback.kernels.isotonic import block_means, pool
from pullback.kernels.laplace import balance, laplace_product, softsort, solve_balanced
from pullback.kernels.neuralsort import neuralsort_mean_gradient, weighted
from pullback.kernels.sorting_network import transformed
from pullback.kernels.standardise import standardise

__all__ = ["direct_values"]

METHODS = ("softsort", "neuralsort", "sinkhorn", "isotonic")


def direct_values(
    x: Tensor, method: str, temperature: float, relative: bool, composed: Callable[[Tensor], Tensor]
) -> Tensor | None:
    """Return the ascending soft-sorted values ``[*batch, n]``, or ``None`` where this form does not apply.

    Args:
        x: ``[*batch, n]`` of single or double precision.
        method: one of the five; there is no such form of ``"network"`` here.
        temperature: > 0.
        relative: the temperature is in units of the standard deviation.
        composed: the plain form, for derivatives of second order.

    Example:
        >>> direct_values(torch.tensor([1.0, float("nan")]), "softsort", 0.1, True, lambda x: x) is None
        True
    """
    kernels = standardise()
    if method not in METHODS or kernels is None or x.device.type != "cpu" or not x.numel() or transformed(x):
        return None
    n = x.shape[-1]
    flat = x.detach().reshape(-1, n)
    # numpy's vectorised argsort takes a sixth of torch.sort's time; the kernel below makes it stable.
    order = torch.from_numpy(np.argsort(flat.numpy(), axis=-1))
    rows = flat.gather(-1, order)
    y, spread = torch.empty_like(rows), torch.empty(rows.shape[0], dtype=torch.float64)
    if not kernels[0](rows.numpy(), order.numpy(), temperature, relative, y.numpy(), spread.numpy()):
        return None
    result: Tensor = _Values.apply(x, rows, order, y, spread, method, temperature, relative, composed)
    return result


class _Values(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        ordered: Tensor,
        order: Tensor,
        y: Tensor,
        spread: Tensor,
        method: str,
        temperature: float,
        relative: bool,
        composed: Callable[[Tensor], Tensor],
    ) -> Tensor:
        values, ctx.kept = _FORWARD[method](ordered, y, spread, temperature, relative)
        ctx.save_for_backward(x)
        ctx.parts = ordered, order, y, spread
        ctx.options = method, temperature, relative, composed
        return values.view(x.shape)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        method, temperature, relative, composed = ctx.options
        if torch.is_grad_enabled():
            (grad,) = torch.autograd.grad(composed(x), x, g, create_graph=True)
            return (grad, *[None] * 8)
        ordered, order, y, spread = ctx.parts
        flat = g.reshape(ordered.shape)
        grad_spread = np.zeros(spread.shape)
        grad_o, grad_y = _BACKWARD[method](flat, ordered, y, spread, temperature, relative, ctx.kept, grad_spread)
        grad = torch.empty_like(ordered)
        arrays = [t.numpy() for t in (ordered, order, y, spread, grad_y)]
        standardise()[1](  # type: ignore[index]
            *arrays, grad_spread, temperature, relative, grad_o.contiguous().numpy(), grad.numpy()
        )
        return (grad.view(x.shape), *[None] * 8)


def _softsort(o: Tensor, y: Tensor, *_: Any) -> tuple[Tensor, Any]:
    values, total = torch.empty_like(o), torch.empty_like(y)
    softsort()[0](y.numpy(), o.numpy(), values.numpy(), total.numpy())  # type: ignore[index]
    return values, (values, total)


def _softsort_back(g: Tensor, o: Tensor, y: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    grad_o, grad_y = torch.empty_like(o), torch.empty_like(y)
    arrays = [t.numpy() for t in (y, o, g.contiguous(), *rest[-2], grad_o, grad_y)]
    softsort()[1](*arrays)  # type: ignore[index]
    return grad_o, grad_y


def _neuralsort(o: Tensor, y: Tensor, *_: Any) -> tuple[Tensor, Any]:
    kept = weighted(y, o.unsqueeze(1))
    return kept[0].squeeze(1), kept


def _neuralsort_back(g: Tensor, o: Tensor, y: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    grad_y, grad_o = neuralsort_mean_gradient(y, o.unsqueeze(1), g.unsqueeze(1), rest[-2])
    return grad_o.squeeze(1), grad_y


def _sinkhorn(o: Tensor, y: Tensor, *_: Any) -> tuple[Tensor, Any]:
    f = balance(y)
    u = f.exp()
    values = u * laplace_product(y, (u * o).unsqueeze(1)).squeeze(1)
    return values, (f, u, values)


def _sinkhorn_back(g: Tensor, o: Tensor, y: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    f, u, values = rest[-2]
    u_g, u_o = u * g, u * o
    p_g = u * laplace_product(y, u_g.unsqueeze(1)).squeeze(1)
    w = solve_balanced(y, f, g * values + o * p_g)
    u_w = u * w
    s_g, s_o, s_w, s_1 = laplace_product(y, torch.stack([u_g, u_o, u_w, u], dim=1), True).unbind(1)
    return p_g, u * s_w + u_w * s_1 - u_g * s_o - u_o * s_g


def _slope(spread: Tensor, n: int, temperature: float, relative: bool) -> Tensor:
    unit = math.sqrt((n * n - 1) / 12) if relative and n > 1 else 1.0
    return (spread if relative else torch.ones_like(spread)).unsqueeze(-1) / (temperature * unit)


def _isotonic(o: Tensor, y: Tensor, spread: Tensor, temperature: float, relative: bool) -> tuple[Tensor, Any]:
    n = o.shape[-1]
    z = torch.arange(n, dtype=torch.float64) * _slope(spread, n, temperature, relative)
    w = o.double()
    start = pool(z, w)
    return (z - block_means(z - w, start)).to(o.dtype), start


def _isotonic_back(
    g: Tensor, o: Tensor, y: Tensor, spread: Tensor, temperature: float, relative: bool, start: Any, grad_spread: Any
) -> tuple[Tensor, Tensor]:
    mean = block_means(g.contiguous(), start)
    if relative:
        n = o.shape[-1]
        places = torch.arange(n, dtype=torch.float64)
        slope_of_spread = _slope(torch.ones_like(spread), n, temperature, relative).squeeze(-1)
        grad_spread += (((g - mean) @ places.to(g.dtype)).double() * slope_of_spread).numpy()
    return mean, torch.zeros_like(y)


_FORWARD: dict[str, Callable[..., tuple[Tensor, Any]]] = {
    "softsort": _softsort,
    "neuralsort": _neuralsort,
    "sinkhorn": _sinkhorn,
    "isotonic": _isotonic,
}
_BACKWARD: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "softsort": _softsort_back,
    "neuralsort": _neuralsort_back,
    "sinkhorn": _sinkhorn_back,
    "isotonic": _isotonic_back,
}
