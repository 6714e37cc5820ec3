"""Projection onto the permutahedron: soft sorting and ranking in O(n log n), with exact Jacobian products.

The permutahedron of w is the convex hull of all permutations of w. Sorting is ``argmax <rho, .>`` over that of x,
ranking ``argmax <x, .>`` over that of ``rho = (0, .., n-1)``; a quadratic term makes either differentiable. With both
arguments in order the projection is ``z - isotonic(z - w)``: blocks of neighbours are pooled, and a Jacobian product
is a mean over blocks.

References:
    Blondel, Teboul, Berthet, Djolonga (2020), Fast differentiable sorting and ranking, propositions 3 and 4.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pullback.core.checks import check_choice, check_floating
from pullback.core.gradients import nested_forward_mode, primals
from pullback.core.shapes import Float
from pullback.discrete.laplace import as_rows, batched
from pullback.discrete.value_state import value_state
from pullback.kernels.isotonic import block_means, pool

__all__ = ["capped", "project_ascending", "project_permutahedron"]


def project_permutahedron(
    z: Float[Tensor, "*#batch n"], w: Float[Tensor, "*#batch n"], *, regularization: str = "l2"
) -> Float[Tensor, "..."]:
    """Project onto the permutahedron of ``w`` (``"l2"``) or, in the log domain, onto that of ``exp(w)`` (``"kl"``).

    ``"l2"``: ``argmin_{p in P(w)} |p - z|^2 / 2``. ``"kl"``: ``log argmax_{p in P(exp w)} <z, p> - <p, log p - 1>``.

    Args:
        z: ``[*batch, n]`` finite, the point.
        w: ``[*batch, n]`` finite, the vertex (in any order); batch dimensions broadcast.
        regularization: ``"l2"`` or ``"kl"``. Blocks are pooled by mean, or by log-sum-exp.

    Returns:
        ``[*batch, n]`` the projection, in the order of ``z``. O(n log n) time, O(n) memory, forward and backward.

    Raises:
        TypeError: an argument is not a floating tensor.
        ValueError: the shapes do not go together, an entry is not finite, or ``regularization`` is unknown.

    Example:
        >>> project_permutahedron(torch.tensor([9.0, 1.0, 0.5]), torch.tensor([0.0, 1.0, 2.0])).tolist()
        [2.0, 0.75, 0.25]

    References:
        Blondel, Teboul, Berthet, Djolonga (2020), Fast differentiable sorting and ranking, eq. 5 and 6.
    """
    check_choice("regularization", regularization, ["l2", "kl"])
    check_floating("z", z)
    check_floating("w", w)
    if not z.ndim or not w.ndim or z.shape[-1] != w.shape[-1]:
        raise ValueError(f"z and w must have the same last dimension, got {tuple(z.shape)} and {tuple(w.shape)}")
    for name, argument in (("z", z), ("w", w)):
        if not torch.compiler.is_compiling() and value_state(argument).infinite:
            raise ValueError(f"{name} must be finite")
    dtype = torch.promote_types(z.dtype, w.dtype)
    wide = torch.promote_types(dtype, torch.float32)
    z, w = torch.broadcast_tensors(z.to(wide), w.to(wide))
    order = z.argsort(dim=-1, stable=True)
    projected = project_ascending(z.gather(-1, order), w.sort(dim=-1).values, entropic=regularization == "kl")
    return projected.gather(-1, order.argsort(dim=-1)).to(dtype)


def project_ascending(z: Tensor, w: Tensor, *, entropic: bool = False) -> Tensor:
    """Return the projection of ascending ``z`` onto the permutahedron of ascending ``w``, or its entropic form.

    It is ``z - v`` with the increasing sequence ``v`` closest to ``z - w``, whose value on a block B is
    ``mean(z_B) - mean(w_B)``, or (entropic) ``logsumexp(z_B) - logsumexp(w_B)``. Formed as ``(z - mean(z_B)) +
    mean(w_B)`` it is exact for entries of every size. The blocks are locally constant, so derivatives of every order
    are those of these formulas.

    Args:
        z: ``[*batch, n]``.
        w: ``[*batch, n]``.
        entropic: pool by log-sum-exp.

    Example:
        >>> project_ascending(torch.tensor([0.5, 1.0, 9.0]), torch.tensor([0.0, 1.0, 2.0])).tolist()
        [0.25, 0.75, 2.0]
    """
    start: Tensor = _Pool.apply(z.detach(), w.detach(), entropic)
    pooled = _log_mean_exp if entropic else _mean
    return (z - pooled(z, start)) + pooled(w, start)


def capped(y: Tensor, k: int) -> Tensor:
    """Return the projection of ascending ``y`` onto ``{m in [0, 1]^n, sum m = k}``.

    It is ``clamp(y - threshold, 0, 1)``, and the threshold is at most the largest entry that is not among the k: what
    is 1 above that is 1, what is 1 below the next is 0, and no more of their size matters.

    Args:
        y: ``[*batch, n]`` ascending.
        k: 0 < k <= n.

    Example:
        >>> capped(torch.tensor([0.0, 0.5, 1e12]), 2).tolist()
        [0.25, 0.75, 1.0]
    """
    n = y.shape[-1]
    pivot = y.detach()[..., max(n - k - 1, 0)].unsqueeze(-1)
    w = (torch.arange(n, device=y.device) >= n - k).to(y.dtype).expand_as(y)
    z = (y - pivot).clamp(-2.0, 2.0)
    start: Tensor = _Pool.apply(z.detach(), w, False)
    return z - _mean(z - w, start)  # all of order 1: nothing is lost in the difference


def _mean(v: Tensor, start: Tensor) -> Tensor:
    result: Tensor = _BlockMean.apply(v, start)
    return result


def _log_mean_exp(v: Tensor, start: Tensor) -> Tensor:
    # Shifted by the largest element of each block, so that the mean is in [1/n, 1].
    top = torch.full_like(v.detach(), -torch.inf).scatter_reduce(-1, start, v.detach(), "amax").gather(-1, start)
    return top + _mean((v - top).exp(), start).log()


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(z: Tensor, w: Tensor, entropic: bool) -> Tensor:
        z.shape[-1]
        return pool(as_rows(z, 1), as_rows(w, 1), entropic).view(z.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, bool], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[None, None, None]:
        return None, None, None

    @staticmethod
    def jvp(ctx: Any, dz: Tensor | None, dw: Tensor | None, _: None) -> None:
        return None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], z: Tensor, w: Tensor, entropic: bool) -> Any:
        return _Pool.apply(*batched(info.batch_size, in_dims[:2], z, w), entropic), 0


class _BlockMean(torch.autograd.Function):
    """The mean over blocks: linear, symmetric, so its derivative and its transpose are itself."""

    @staticmethod
    def forward(v: Tensor, start: Tensor) -> Tensor:
        v.shape[-1]
        return block_means(as_rows(v, 1).detach(), as_rows(start, 1)).view(v.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (start,) = ctx.saved_tensors
        return _mean(g, start), None

    @staticmethod
    def jvp(ctx: Any, dv: Tensor, _: None) -> Tensor:
        with nested_forward_mode():
            return _mean(dv, *primals(ctx.saved_tensors))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, int | None], v: Tensor, start: Tensor) -> Any:
        return _mean(*batched(info.batch_size, in_dims, v, start)), 0
