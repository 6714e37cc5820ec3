"""Normmax: a sparse softmax that is uniform on what it keeps as its parameter grows, whatever the scores' gaps."""

from __future__ import annotations

from typing import Any

import torch

from pullback.core.checks import check_choice, check_dim, check_floating
from pullback.core.gradients import nested_forward_mode, primals
from pullback.core.shapes import Float, Scalar, Tensor
from pullback.discrete.sparse import kernel_available, on_simplex

__all__ = ["normmax"]


def normmax(
    x: Float[Tensor, "..."],
    alpha: float = 2.0,
    dim: int = -1,
    *,
    method: str = "auto",
    temperature: Scalar = 1.0,
    hard: bool = False,
) -> Float[Tensor, "..."]:
    r"""Return the maximiser of ``<p, x / t> - |p|_alpha`` on the simplex.

    .. math:: p_i \propto \big[x_i / t - \tau\big]_+^{1 / (\alpha - 1)}, \qquad
        \sum_i \big[x_i / t - \tau\big]_+^{\alpha / (\alpha - 1)} = 1

    Its Jacobian is ``(I - p 1^T) diag(s) (I - 1 p^T)`` with ``s = p^(2 - alpha) |p|_alpha^(alpha - 1) / (alpha - 1)``.
    Unlike :func:`pullback.discrete.entmax` it tends to the uniform distribution on its support as alpha grows.

    Args:
        x: ``[..., n, ...]`` scores; ``-inf`` gets 0. A row without a finite largest entry gives NaN, with gradient 0.
        alpha: > 1, a number. Near 1 it is the argmax.
        dim: the dimension that sums to 1.
        method: ``"kernel"`` (compiled, CPU, needs numba), ``"bisection"`` (plain torch), ``"auto"`` takes the kernel
            where it can.
        temperature: >= 0, a number or a differentiable tensor without dimensions; 0 is the one-hot of the argmax with
            gradient 0.
        hard: return the one-hot of the argmax, with the gradient of the relaxation.

    Returns:
        The shape of ``x``, >= 0, sums to 1 along ``dim``.

    Raises:
        IndexError: ``dim`` is out of range.
        TypeError: ``x`` is not a floating tensor, ``alpha`` is not a number.
        ValueError: ``alpha`` is not > 1 and finite, ``method`` is unknown or can not run here, ``temperature`` is
            negative, not finite or has dimensions.

    Example:
        >>> normmax(torch.tensor([1.0, 0.5, -1.0]))
        tensor([0.6890, 0.3110, 0.0000])
        >>> normmax(torch.tensor([1.0, 0.5, -1.0]), alpha=20.0)
        tensor([0.5140, 0.4860, 0.0000])

    References:
        Blondel, Martins, Niculae (2020), Learning with Fenchel-Young losses, section 4.3 (norm entropies).
    """
    dim = check_dim(check_floating("x", x), dim)
    check_choice("method", method, ("auto", "kernel", "bisection"))
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise TypeError(f"alpha must be a number, got {type(alpha).__name__}")
    if not 1 < alpha < float("inf"):
        raise ValueError(f"alpha must be a finite number > 1, got {alpha}")
    if method == "kernel" and not kernel_available(x):
        raise ValueError(f"method 'kernel' must run on the CPU with numba installed, got {x.device}")
    if method == "auto":
        method = "kernel" if kernel_available(x) else "bisection"
    return on_simplex(x, dim, temperature, hard, lambda scaled: _Normmax.apply(scaled, float(alpha), method))


class _Normmax(torch.autograd.Function):
    """Along the last dimension; its Jacobian is symmetric and a function of the result alone."""

    @staticmethod
    def forward(x: Tensor, alpha: float, method: str) -> Tensor:
        if not x.numel():
            return x.clone()
        if method == "kernel":
            result: Tensor = torch.ops.pullback.normmax(x, alpha)
            return result
        return _by_bisection(x, alpha)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float, str], output: Tensor) -> None:
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)
        ctx.alpha = inputs[1]

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None, None]:
        return _jacobian_product(ctx.saved_tensors[0], cotangent, ctx.alpha), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *unused: None) -> Tensor:
        with nested_forward_mode():
            return _jacobian_product(primals(ctx.saved_tensors)[0], tangent, ctx.alpha)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, alpha: float, method: str) -> tuple[Tensor, int]:
        return _Normmax.apply(x.movedim(in_dims[0], 0), alpha, method), 0  # type: ignore[arg-type]


def _jacobian_product(p: Tensor, v: Tensor, alpha: float) -> Tensor:
    support = p > 0
    inside = torch.where(support, p, 1.0)
    # The norm from the largest entry: powers of thousands neither under- nor overflow.
    top = torch.where(support, p, 0.0).amax(-1, keepdim=True) if p.shape[-1] else p.sum(-1, keepdim=True)
    top = torch.where(top > 0, top, 1.0)
    norm = top * torch.where(support, inside / top, 0.0).pow(alpha).sum(-1, keepdim=True).clamp(min=1).pow(1 / alpha)
    slope = inside * (norm / inside).pow(alpha - 1) / (alpha - 1)
    slope = torch.where(support, slope.clamp(max=torch.finfo(p.dtype).max ** 0.5), 0.0)
    share = torch.where(support, p, 0.0)
    moved = slope * (v - (share * v).sum(-1, keepdim=True))
    return moved - share * moved.sum(-1, keepdim=True)


@torch.library.custom_op("pullback::normmax", mutates_args=(), schema="(Tensor x, float alpha) -> Tensor")
def _kernel(x: Tensor, alpha: float) -> Tensor:
    from pullback.kernels.sparsemax import normmax_rows  # compiles on first use

    rows = x.detach().contiguous()
    out = torch.empty_like(rows)
    n = rows.shape[-1]
    normmax_rows(rows.view(-1, n).numpy(), alpha, out.view(-1, n).numpy())
    return out


@_kernel.register_fake
def _(x: Tensor, alpha: float) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _by_bisection(x: Tensor, alpha: float) -> Tensor:
    """Halve the bracket ``[-1, 0]`` of the threshold, less the largest score, until it has no width; then normalise."""
    z = x - x.amax(-1, keepdim=True)
    low, width = torch.full_like(z[..., :1], -1.0), 1.0
    for _ in range(32 if x.dtype == torch.float32 else 60):
        width = width / 2
        total = (z - low - width).clamp(min=0).pow(alpha / (alpha - 1)).sum(-1, keepdim=True)
        low = torch.where(total >= 1, low + width, low)
    q = (z - low).clamp(min=0).pow(1 / (alpha - 1))
    return q / q.sum(-1, keepdim=True)
