"""Sparse relatives of softmax: sparsemax, 1.5-entmax, alpha-entmax. Exact zeros, and a gradient on the support."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch

from pullback.core.checks import check_choice, check_dim, check_floating, check_positive, check_scalar
from pullback.core.gradients import nested_forward_mode, primals, replace_gradient
from pullback.core.shapes import Float, Scalar, Tensor
from pullback.core.transforms import can_look, is_transformed
from pullback.discrete.softness import is_hard, quotient, widen

__all__ = ["entmax", "entmax15", "kernel_available", "on_simplex", "sparsemax"]

_NUMBA = find_spec("numba") is not None  # imported, and the kernel compiled, only on first use
METHODS = ("auto", "kernel", "sort", "bisection")


def sparsemax(
    x: Float[Tensor, "..."], dim: int = -1, *, method: str = "auto", temperature: Scalar = 1.0, hard: bool = False
) -> Float[Tensor, "..."]:
    r"""Return the Euclidean projection of ``x / temperature`` onto the simplex: ``max(x / t - threshold, 0)``.

    Args:
        x: ``[..., n, ...]`` scores; ``-inf`` gets 0. A row without a finite largest entry gives NaN, as in
            ``torch.softmax``, with gradient 0; masked by the dtype's smallest number it is uniform.
        dim: the dimension that sums to 1.
        method: ``"kernel"`` (compiled, CPU, needs numba: Newton's method on the threshold, O(n)), ``"sort"`` (plain
            torch), ``"bisection"`` (plain torch, any alpha); ``"auto"`` takes the kernel where it can.
        temperature: >= 0, a number or a differentiable tensor without dimensions; 0 is the one-hot of the argmax with
            gradient 0.
        hard: return the one-hot of the argmax, with the gradient of the relaxation.

    Returns:
        The shape of ``x``, >= 0, sums to 1 along ``dim``.

    Raises:
        IndexError: ``dim`` is out of range.
        TypeError: ``x`` is not a floating tensor.
        ValueError: ``method`` is unknown or can not run here, ``temperature`` is negative, not finite or has
            dimensions.

    Example:
        >>> sparsemax(torch.tensor([1.0, 0.5, -1.0]))
        tensor([0.7500, 0.2500, 0.0000])

    References:
        Martins, Astudillo (2016), From softmax to sparsemax, equations 4 and 14.
        Michelot (1986), A finite algorithm for finding the projection of a point onto the canonical simplex.
    """
    return entmax(x, 2.0, dim, method=method, temperature=temperature, hard=hard)


def entmax15(
    x: Float[Tensor, "..."], dim: int = -1, *, method: str = "auto", temperature: Scalar = 1.0, hard: bool = False
) -> Float[Tensor, "..."]:
    r"""Return 1.5-entmax, half way between softmax and sparsemax: ``max(x / (2 t) - threshold, 0)^2``.

    Args:
        x, dim, method, temperature, hard: as in :func:`sparsemax`.

    Returns:
        As :func:`sparsemax`.

    Raises:
        IndexError, TypeError, ValueError: as :func:`sparsemax`.

    Example:
        >>> entmax15(torch.tensor([1.0, 0.5, -2.0]))
        tensor([0.6740, 0.3260, 0.0000])

    References:
        Peters, Niculae, Martins (2019), Sparse sequence-to-sequence models, section 3 and algorithm 2.
    """
    return entmax(x, 1.5, dim, method=method, temperature=temperature, hard=hard)


def entmax(
    x: Float[Tensor, "..."],
    alpha: float | Float[Tensor, "..."] = 1.5,
    dim: int = -1,
    *,
    method: str = "auto",
    temperature: Scalar = 1.0,
    hard: bool = False,
) -> Float[Tensor, "..."]:
    r"""Return alpha-entmax, the maximiser of ``<p, x / t>`` plus Tsallis' alpha-entropy on the simplex.

    .. math:: p_i = \big[(\alpha - 1) x_i / t - \tau\big]_+^{1 / (\alpha - 1)}, \qquad \sum_i p_i = 1

    ``alpha = 1`` is softmax, 2 sparsemax; below 1 nothing is 0, and tails are heavier than those of softmax. Its
    Jacobian on the support is ``diag(s) - s s^T / sum(s)`` with ``s = p^(2 - alpha)``: no derivative of the solver is
    needed.

    Args:
        x, dim, method, temperature, hard: as in :func:`sparsemax`; ``"sort"`` knows alpha 1.5 and 2.
        alpha: > 0, larger is sparser: a number, or a differentiable tensor other than 1 that broadcasts with ``x``
            and has size 1 along ``dim``: one alpha of all, of a head, or of a row. Its derivative is
            ``(h - s sum(h) / sum(s)) / (alpha - 1) + (p - s / sum(s)) / (alpha - 1)^2`` with ``h = -p log p``.

    Returns:
        As :func:`sparsemax`.

    Raises:
        IndexError, TypeError, ValueError: as :func:`sparsemax`, or ``alpha`` is no number, not > 0 or not finite, is
            1 as a tensor, or does not broadcast.

    Example:
        >>> entmax(torch.tensor([1.0, 0.5, -1.0]), alpha=1.2)
        tensor([0.6199, 0.3461, 0.0341])
        >>> alphas = torch.tensor([[0.5], [3.0]])  # one a row
        >>> entmax(torch.tensor([1.0, 0.5, -1.0]).expand(2, 3), alphas)
        tensor([[0.4821, 0.3500, 0.1679],
                [1.0000, 0.0000, 0.0000]])

    References:
        Peters, Niculae, Martins (2019), Sparse sequence-to-sequence models, definition 2 and proposition 1.
        Blondel, Martins, Niculae (2019), Learning classifiers with Fenchel-Young losses, algorithm 1.
        Correia, Niculae, Martins (2019), Adaptively sparse transformers, proposition 1 (the derivative by alpha).
    """
    dim = check_dim(check_floating("x", x), dim)
    check_choice("method", method, METHODS)
    number = _checked_alpha(alpha, x, dim)
    if method == "sort" and number not in (1.5, 2):
        raise ValueError(f"method 'sort' knows alpha 1.5 and 2, got {alpha}; 'bisection' knows every alpha")
    if method == "kernel" and not kernel_available(x):
        raise ValueError(f"method 'kernel' must run on the CPU with numba installed, got {x.device}")
    if method == "auto":
        method = "kernel" if kernel_available(x) else "sort" if number in (1.5, 2) else "bisection"
    if isinstance(alpha, Tensor) and alpha.ndim:  # as x is laid out: of its rank, the dimension in question last
        alpha = alpha.reshape((1,) * (x.ndim - alpha.ndim) + alpha.shape).movedim(dim, -1)

    def solve(scaled: Tensor) -> Tensor:
        if isinstance(alpha, Tensor):
            return _LearnedEntmax.apply(scaled, alpha.to(scaled), number, method)
        # Nearer to 1 than that the powers lose more digits than the difference from softmax has.
        return torch.softmax(scaled, -1) if abs(alpha - 1) < 1e-8 else _Entmax.apply(scaled, float(alpha), method)

    return on_simplex(x, dim, temperature, hard, solve)


def on_simplex(x: Tensor, dim: int, temperature: Scalar, hard: bool, solve: Callable[[Tensor], Tensor]) -> Tensor:
    """Return ``solve(x / temperature)``, where ``dim`` comes last and in single precision at least, laid out as ``x``.

    Args:
        x: ``[..., n, ...]`` scores.
        dim: the dimension of the probabilities.
        temperature: >= 0; 0 is the one-hot of the argmax with gradient 0.
        hard: the one-hot of the argmax with the gradient of ``solve``.
        solve: from ``[..., n]`` to probabilities of that shape.

    Example:
        >>> on_simplex(torch.tensor([0.0, 0.0]), 0, 1.0, False, lambda x: x.softmax(-1))
        tensor([0.5000, 0.5000])
    """
    if is_hard(temperature, widen(x).dtype):
        return replace_gradient(_argmax(x, dim), torch.sign(x))
    scaled = widen(x).movedim(dim, -1) if x.ndim else widen(x).reshape(1)
    if scaled.numel() and (isinstance(temperature, Tensor) or temperature != 1):
        # Less the largest: what overflows then is -inf, and gets 0.
        scaled = quotient(scaled - scaled.detach().amax(-1, keepdim=True), temperature)
    p = solve(scaled)
    p = (p.movedim(-1, dim) if x.ndim else p.reshape(())).to(x.dtype)
    return replace_gradient(_argmax(x, dim), p) if hard else p


def kernel_available(x: Tensor) -> bool:
    """Return whether the compiled rows can take ``x``: on the CPU, with numba installed.

    Example:
        >>> kernel_available(torch.zeros(2, device="meta"))
        False
    """
    return x.device.type == "cpu" and _NUMBA


class _Entmax(torch.autograd.Function):
    """Alpha-entmax along the last dimension; its Jacobian is symmetric and a function of the result alone."""

    @staticmethod
    def forward(x: Tensor, alpha: float, method: str) -> Tensor:
        return _solve(x, alpha, method)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float, str], output: Tensor) -> None:
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)
        ctx.alpha, ctx.method = inputs[1:]

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None, None]:
        p = ctx.saved_tensors[0]
        if ctx.method == "kernel" and _once(cotangent):
            return torch.ops.pullback.entmax_gradient(p, cotangent, _a_row(ctx.alpha, p))[0], None, None
        return _jacobian_product(p, cotangent, ctx.alpha), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *unused: None) -> Tensor:
        with nested_forward_mode():
            return _jacobian_product(primals(ctx.saved_tensors)[0], tangent, ctx.alpha)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, alpha: float, method: str) -> tuple[Tensor, int]:
        return _Entmax.apply(x.movedim(in_dims[0], 0), alpha, method), 0  # type: ignore[arg-type]


class _LearnedEntmax(torch.autograd.Function):
    """The same with a derivative by alpha, a tensor that broadcasts with ``x[..., :1]``; ``number`` is its value."""

    @staticmethod
    def forward(x: Tensor, alpha: Tensor, number: float | None, method: str) -> Tensor:
        return _solve(x, alpha if number is None else number, method)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float | None, str], output: Tensor) -> None:
        ctx.save_for_backward(output, inputs[1])
        ctx.save_for_forward(output, inputs[1])
        ctx.method = inputs[3]

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, Tensor, None, None]:
        p, alpha = ctx.saved_tensors
        if ctx.method == "kernel" and _once(cotangent):
            to_x, to_alpha = torch.ops.pullback.entmax_gradient(p, cotangent, _a_row(alpha, p))
            by_row = to_alpha.view((*p.shape[:-1], 1)).sum_to_size(alpha.shape)
            return to_x, by_row.to(alpha.dtype), None, None
        by_alpha = (cotangent * _by_alpha(p, alpha)).sum_to_size(alpha.shape)
        return _jacobian_product(p, cotangent, alpha), by_alpha, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None, alpha_tangent: Tensor | None, *unused: None) -> Tensor:
        p, alpha = primals(ctx.saved_tensors)
        with nested_forward_mode():
            result = torch.zeros_like(p) if tangent is None else _jacobian_product(p, tangent, alpha)
            return result if alpha_tangent is None else result + alpha_tangent * _by_alpha(p, alpha)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, alpha: Tensor, number: float | None, method: str
    ) -> tuple[Tensor, int]:
        x = x.unsqueeze(0) if in_dims[0] is None else x.movedim(in_dims[0], 0)
        if in_dims[1] is not None:
            x, number = x.expand(info.batch_size, *x.shape[1:]), None
            alpha = alpha.movedim(in_dims[1], 0)
            alpha = alpha.reshape(alpha.shape[:1] + (1,) * (x.ndim - alpha.ndim) + alpha.shape[1:])
        return _LearnedEntmax.apply(x, alpha, number, method), 0


def _checked_alpha(alpha: float | Tensor, x: Tensor, dim: int) -> float | None:
    """Return the number, ``None`` for a tensor whose value is not one number, or not yet."""
    if not isinstance(alpha, Tensor):
        if isinstance(alpha, bool) or not isinstance(alpha, int | float):
            raise TypeError(f"alpha must be a finite number > 0, got {type(alpha).__name__}")
        if not 0 < alpha < float("inf"):
            raise ValueError(f"alpha must be a finite number > 0, got {alpha}")
        return float(alpha)
    if not alpha.ndim:
        number = check_scalar("alpha", alpha)
        if number is not None and abs(number - 1) <= 1e-6:
            raise ValueError(f"alpha must not be 1 as a tensor, got {number}")
        return number
    check_floating("alpha", alpha)
    row = [1 if d == dim else size for d, size in enumerate(x.shape)]
    tail = row[len(row) - alpha.ndim :]
    if alpha.ndim > x.ndim or any(a not in (1, size) for a, size in zip(alpha.shape, tail, strict=True)):
        raise ValueError(f"alpha must broadcast with shape {tuple(row)}, got {tuple(alpha.shape)}")
    if can_look(alpha):
        check_positive("alpha", alpha.detach())
        if bool(((alpha - 1).abs() <= 1e-6).any()):
            raise ValueError("alpha must not be 1 as a tensor")
    return None


def _solve(x: Tensor, alpha: float | Tensor, method: str) -> Tensor:
    if x.numel() == 0:
        return x.clone()
    if method == "kernel":
        result: Tensor = torch.ops.pullback.entmax(x, _a_row(alpha, x))
        return result
    if method == "sort" and not isinstance(alpha, Tensor):
        return _by_sorting(x, alpha)
    return _by_bisection(x, alpha)


def _a_row(alpha: float | Tensor, x: Tensor) -> Tensor:
    """Return ``[rows]`` in double precision."""
    if isinstance(alpha, Tensor):
        return alpha.double().expand((*x.shape[:-1], 1)).reshape(-1)
    return torch.full((x.shape[:-1].numel(),), alpha, dtype=torch.float64)


def _once(cotangent: Tensor) -> bool:
    """Whether there is something to differentiate, and nothing that will be again."""
    return cotangent.numel() > 0 and not (torch.is_grad_enabled() or is_transformed(cotangent))


def _by_alpha(p: Tensor, alpha: Tensor) -> Tensor:
    """Return the derivative by alpha, in double precision: near alpha = 1 it is a difference of large terms."""
    wide, gap = p.double(), alpha.double() - 1
    support = wide > 0
    inside = torch.where(support, wide, 1.0)
    weight = torch.where(support, (inside ** (1 - gap)).clamp(max=1e150), 0.0)  # of an alpha of thousands
    entropy = -inside * inside.log()
    total = weight.sum(-1, keepdim=True)
    share = weight / torch.where(total > 0, total, 1.0)
    return ((entropy - share * entropy.sum(-1, keepdim=True)) / gap + (wide - share) / gap**2).to(p.dtype)


def _jacobian_product(p: Tensor, g: Tensor, alpha: float | Tensor) -> Tensor:
    support = p > 0
    if not isinstance(alpha, Tensor) and alpha == 2:
        weight = support.to(p.dtype)
    else:
        power = torch.where(support, p, 1.0) ** (2 - alpha)
        weight = torch.where(support, power.clamp(max=torch.finfo(p.dtype).max ** 0.5), 0.0)  # of alphas of hundreds
    total = weight.sum(-1, keepdim=True)  # 0 for a row of NaN, which then has gradient 0
    mean = (weight * g).sum(-1, keepdim=True) / torch.where(total > 0, total, 1.0)
    return weight * (g - mean)


@torch.library.custom_op("pullback::entmax", mutates_args=(), schema="(Tensor x, Tensor alphas) -> Tensor")
def _kernel(x: Tensor, alphas: Tensor) -> Tensor:
    from pullback.kernels.sparsemax import entmax_rows  # compiles on first use

    rows = x.detach().contiguous()
    out = torch.empty_like(rows)
    n = rows.shape[-1]
    entmax_rows(rows.view(-1, n).numpy(), alphas.numpy(), out.view(-1, n).numpy())
    return out


@_kernel.register_fake
def _(x: Tensor, alphas: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op(
    "pullback::entmax_gradient", mutates_args=(), schema="(Tensor p, Tensor g, Tensor alphas) -> (Tensor, Tensor)"
)
def _gradient_kernel(p: Tensor, g: Tensor, alphas: Tensor) -> tuple[Tensor, Tensor]:
    from pullback.kernels.sparsemax import entmax_gradient_rows

    rows, cotangents = (t.detach().resolve_neg().reshape(-1, p.shape[-1]).contiguous() for t in (p, g))
    to_x, to_alpha = torch.empty_like(rows), torch.empty_like(alphas)
    largest = torch.finfo(p.dtype).max ** 0.5
    entmax_gradient_rows(rows.numpy(), cotangents.numpy(), alphas.numpy(), largest, to_x.numpy(), to_alpha.numpy())
    return to_x.view(p.shape), to_alpha


@_gradient_kernel.register_fake
def _(p: Tensor, g: Tensor, alphas: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(p, memory_format=torch.contiguous_format), torch.empty_like(alphas)


def _by_sorting(x: Tensor, alpha: float) -> Tensor:
    """Sort, find the size of the support, solve for the threshold in closed form."""
    z = (alpha - 1) * (x - x.amax(-1, keepdim=True))
    ordered = z.sort(-1, descending=True).values
    finite = ordered.clamp(min=-2)  # at -2 below the largest the probability is 0 anyway
    k = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype, device=x.device)
    mean = finite.cumsum(-1) / k
    if alpha == 2:
        thresholds = mean - 1 / k
    else:
        spread = finite.square().cumsum(-1) - k * mean.square()  # the sum of squared deviations
        thresholds = mean - ((1 - spread).clamp(min=0) / k).sqrt()
    size = (thresholds <= ordered).sum(-1, keepdim=True).clamp(min=1)
    gap = (z - thresholds.gather(-1, size - 1)).clamp(min=0)
    return gap if alpha == 2 else gap.square()


def _by_bisection(x: Tensor, alpha: float | Tensor) -> Tensor:
    """Halve the bracket of the threshold until it has no width in this precision, then normalise.

    Less the largest score, ``p = (1 + (alpha - 1) x - d)^(1 / (alpha - 1))`` with d in [0, 1] for alpha above 1, in
    ``[1 - n^(1 - alpha), 0]`` below; the larger ``|d|``, the smaller the sum.
    """
    z = (alpha - 1) * (x - x.amax(-1, keepdim=True))
    sign: float | Tensor = 1.0 if not isinstance(alpha, Tensor) and alpha > 1 else -1.0
    width: float | Tensor = 1.0
    if isinstance(alpha, Tensor):
        sign = torch.sign(alpha - 1)
        width = torch.where(sign > 0, 1.0, torch.expm1((1 - alpha) * math.log(x.shape[-1])))
    elif alpha < 1:
        width = math.expm1((1 - alpha) * math.log(x.shape[-1]))

    def logits(size: Tensor) -> Tensor:
        return torch.log1p((z - sign * size).clamp(min=-1)) / (alpha - 1)

    low = torch.zeros_like(z[..., :1])
    for _ in range(32 if x.dtype == torch.float32 else 60):
        width = width / 2
        low = torch.where(logits(low + width).logsumexp(-1, keepdim=True) >= 0, low + width, low)
    return torch.softmax(logits(low), -1)


def _argmax(x: Tensor, dim: int) -> Tensor:
    """Return 1 at the first largest entry along ``dim`` and 0 elsewhere, without gradient.

    Example:
        >>> _argmax(torch.tensor([1.0, 3.0, 3.0]), 0)
        tensor([0., 1., 0.])
    """
    if x.numel() == 0:
        return x.detach().clone()
    return torch.zeros_like(x, requires_grad=False).scatter(dim, x.detach().argmax(dim, keepdim=True), 1.0)
