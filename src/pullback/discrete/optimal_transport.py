"""Sorting and ranking as entropic optimal transport of the values onto their own sorted places.

The plan between the points and the same points in order, cost ``|y_i - y_j|``, temperature 1, is
``P_ij = exp(f_i - |y_i - y_j| + f_j)`` with one potential (the problem is symmetric): a doubly stochastic SoftSort. The
Sinkhorn iteration, its implicit derivative and all products cost O(n) a step, as the kernel is that of
:mod:`pullback.discrete.laplace`.

References:
    Cuturi, Teboul, Vert (2019), Differentiable ranks and sorting using optimal transport (there with a fixed grid of
    targets; here the targets are the sorted values, so the plan is banded around the diagonal and the iteration
    contracts by 1/2 at every temperature). Feydy et al. (2019), Interpolating between optimal transport and MMD, eq.
    25.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pullback.core.gradients import nested_forward_mode, primals
from pullback.discrete.laplace import as_rows, batched, laplace
from pullback.kernels.laplace import balance, solve_balanced

__all__ = ["Transport", "soft_mask", "soft_threshold"]


class Transport:
    """The doubly stochastic plan on ascending, scaled points ``y [*batch, n]``; a kernel as in ``softsort.py``.

    Example:
        >>> Transport.matrix(torch.tensor([0.0, 0.0])).tolist()
        [[0.5, 0.5], [0.5, 0.5]]
    """

    @staticmethod
    def mean(y: Tensor, v: Tensor) -> Tensor:
        """Return ``P v`` for channels ``v [*batch, c, n]``."""
        u = _potential(y).exp().unsqueeze(-2)
        return u * laplace(y, u * v)

    @staticmethod
    def ranks(y: Tensor) -> Tensor:
        """Return the expected place of each point, ``P^T (0, .., n-1)``; P is symmetric."""
        places = torch.arange(y.shape[-1], dtype=y.dtype, device=y.device).expand_as(y)
        return Transport.mean(y, places.unsqueeze(-2)).squeeze(-2)

    @staticmethod
    def matrix(y: Tensor, places: slice = slice(None)) -> Tensor:
        """Return ``P``, or some of its rows."""
        f = _potential(y)
        at_place, y_place = f[..., places], y[..., places]
        return torch.exp(at_place.unsqueeze(-1) + f.unsqueeze(-2) - (y_place.unsqueeze(-1) - y.unsqueeze(-2)).abs())

    @staticmethod
    def row(y: Tensor, place: int) -> Tensor:
        """Return row ``place`` of ``P``, ``[*batch, n]``, in O(n)."""
        f = _potential(y)
        at = slice(place, place + 1 or None)
        return torch.exp(f + f[..., at] - (y - y[..., at]).abs())


def _potential(y: Tensor) -> Tensor:
    result: Tensor = _Potential.apply(y)
    return result


def _solve(y: Tensor, f: Tensor, g: Tensor) -> Tensor:
    result: Tensor = _Solve.apply(y, f, g)
    return result


def _kernel(y: Tensor, v: Tensor, signed: bool = False) -> Tensor:
    return laplace(y, v.unsqueeze(-2), signed=signed).squeeze(-2)


class _Potential(torch.autograd.Function):
    """``f(y)`` with ``u K u = 1``, ``u = exp(f)``. Differentiated: ``(I + P) df = dy u S u - u S (dy u)``."""

    @staticmethod
    def forward(y: Tensor) -> Tensor:
        return balance(as_rows(y, 1).detach()).view(y.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)
        ctx.save_for_forward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        y, f = ctx.saved_tensors
        u = f.exp()
        w = _solve(y, f, g)
        return u * _kernel(y, u * w, True) + w * u * _kernel(y, u, True)

    @staticmethod
    def jvp(ctx: Any, dy: Tensor) -> Tensor:
        with nested_forward_mode():
            y, f = ctx.saved_tensors  # f is the output: its tangent is not known yet
            y = primals((y,))[0]
            f = _potential(y) if torch.autograd.forward_ad.unpack_dual(y).tangent is not None else f
            u = f.exp()
            return _solve(y, f, dy * u * _kernel(y, u, True) - u * _kernel(y, dy * u, True))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None], y: Tensor) -> Any:
        return _potential(*batched(info.batch_size, in_dims, y)), 0


class _Solve(torch.autograd.Function):
    """``w = (I + P)^-1 g``; ``dw = (I + P)^-1 (dg - dP w)``, ``dP w = df Pw + P(df w) + u (S(dy u w) - dy S(u w))``."""

    @staticmethod
    def forward(y: Tensor, f: Tensor, g: Tensor) -> Tensor:
        rows = [as_rows(t, 1).detach() for t in (y, f, g)]
        return solve_balanced(*rows).view(y.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2], output)
        ctx.save_for_forward(*inputs[:2], output)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, f, w = ctx.saved_tensors
        u = f.exp()
        g = _solve(y, f, cotangent)
        grad_f = -(g * u * _kernel(y, u * w) + w * u * _kernel(y, u * g))
        grad_y = u * w * _kernel(y, u * g, True) + u * g * _kernel(y, u * w, True)
        return grad_y, grad_f, g

    @staticmethod
    def jvp(ctx: Any, dy: Tensor | None, df: Tensor | None, dg: Tensor | None) -> Tensor:
        with nested_forward_mode():
            return _Solve._tangent(primals(ctx.saved_tensors), dy, df, dg)

    @staticmethod
    def _tangent(saved: tuple[Tensor, ...], dy: Tensor | None, df: Tensor | None, dg: Tensor | None) -> Tensor:
        y, f, w = saved
        u = f.exp()
        right = torch.zeros_like(w) if dg is None else dg
        if df is not None:
            right = right - u * (df * _kernel(y, u * w) + _kernel(y, u * df * w))
        if dy is not None:
            right = right - u * (_kernel(y, dy * u * w, True) - dy * _kernel(y, u * w, True))
        return _solve(y, f, right)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], y: Tensor, f: Tensor, g: Tensor) -> Any:
        return _solve(*batched(info.batch_size, in_dims, y, f, g)), 0


def soft_mask(y: Tensor, k: int) -> Tensor:
    """Return the share ``[*batch, n]`` of ascending ``y`` that goes to the upper of two targets of masses n - k and k.

    It is ``sigmoid(y - theta)``. Only what is near the k-th place decides about ``theta``, so the rest is held at a
    distance, where it is 0 or 1: then the numbers are small and nothing is rounded.

    Args:
        y: ``[*batch, n]`` ascending, finite.
        k: 0 < k < n.

    Example:
        >>> soft_mask(torch.tensor([0.0, 1e12, 1e12]), 2).round().tolist()
        [0.0, 1.0, 1.0]
    """
    n = y.shape[-1]
    far = 2 * math.log(n) + (800.0 if y.dtype == torch.float64 else 120.0)
    near = (y - y.detach()[..., n - k - 1 : n - k]).clamp(-far, far)
    return torch.sigmoid(near - soft_threshold(near, k))


def soft_threshold(y: Tensor, k: int) -> Tensor:
    """Return ``theta [*batch, 1]`` with ``sum_j sigmoid(y_j - theta) = k``: transport onto two targets.

    ``sigmoid(y - theta)`` is the share of each point that goes to the upper target in the entropic plan whose targets
    have masses k and n - k (Xie et al. 2020). Newton steps inside a bracket; derivatives are implicit,
    ``dtheta = sum(m (1 - m) dy) / sum(m (1 - m))``.

    Args:
        y: ``[*batch, n]`` finite.
        k: 0 < k < n.

    Example:
        >>> round(float(soft_threshold(torch.tensor([0.0, 2.0]), 1)), 6)
        1.0
    """
    result: Tensor = _Threshold.apply(y, k)
    return result


class _Threshold(torch.autograd.Function):
    @staticmethod
    def forward(y: Tensor, k: int) -> Tensor:
        dtype, n = y.dtype, y.shape[-1]
        y = y.detach().double()
        # log n + 1 above the k-th largest value the sum is below k; as far below the next one it is above k.
        margin = math.log(n) + 1
        low = y.kthvalue(n - k, dim=-1, keepdim=True).values
        high = y.kthvalue(n - k + 1, dim=-1, keepdim=True).values
        low, high = low - margin, high + margin
        theta = (low + high) / 2
        for _ in range(100):
            m = torch.sigmoid(y - theta)
            excess = m.sum(-1, keepdim=True) - k
            low, high = torch.where(excess > 0, theta, low), torch.where(excess > 0, high, theta)
            newton = theta + excess / (m * (1 - m)).sum(-1, keepdim=True).clamp_min(1e-300)
            inside = (newton > low) & (newton < high)
            new = torch.where(inside, newton, (low + high) / 2)
            done = bool(((new - theta).abs() <= 1e-15 * (1 + theta.abs())).all())
            theta = new
            if done:
                break
        return theta.to(dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)
        ctx.save_for_forward(inputs[0], output)

    @staticmethod
    def _share(y: Tensor, theta: Tensor) -> Tensor:
        # softmax of log m(1 - m): finite where every term underflows.
        d = y - theta
        logits = torch.nn.functional.logsigmoid(d) + torch.nn.functional.logsigmoid(-d)
        return torch.softmax(logits, dim=-1)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        y, theta = ctx.saved_tensors
        return g * _Threshold._share(y, theta), None

    @staticmethod
    def jvp(ctx: Any, dy: Tensor, _: None) -> Tensor:
        with nested_forward_mode():
            y, theta = primals(ctx.saved_tensors)
            return (_Threshold._share(y, theta) * dy).sum(-1, keepdim=True)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, None], y: Tensor, k: int) -> Any:
        return soft_threshold(batched(info.batch_size, in_dims[:1], y)[0], k), 0
