"""What a kernel machine gets wrong on each point when it is trained on the others, without training it again."""

from __future__ import annotations

import torch

from pullback.core.checks import check_broadcast, check_floating, check_positive, check_same_dtype
from pullback.core.shapes import Float, Tensor
from pullback.uncertainty.gaussian_process import cholesky

__all__ = ["leave_one_out_residuals"]


def leave_one_out_residuals(
    kernel: Float[Tensor, "*#batch n n"], y: Float[Tensor, "*#batch n"], ridge: Float[Tensor, "r"]
) -> Float[Tensor, "*batch r n"]:
    r"""Return the errors of kernel ridge regression on each point when that point is left out.

    .. math::
        y_i - \hat f_{-i}(x_i) = \frac{(A^{-1} y)_i}{(A^{-1})_{ii}}, \qquad A = K + \lambda I

    Exact. All ridges share one decomposition; where a gradient is wanted each has its own factor, whose derivatives do
    not depend on the gaps between eigenvalues. A Gaussian process with noise :math:`\lambda` makes the same errors.

    Args:
        kernel: ``[*batch, n, n]`` positive semi-definite.
        y: ``[*batch, n]``.
        ridge: ``[r]`` values of lambda > 0, in the unit of the kernel.

    Returns:
        ``[*batch, r, n]`` in the unit of y. float16 and bfloat16 are computed in float32.

    Raises:
        TypeError: a tensor is not floating, or the dtypes differ.
        ValueError: the shapes do not fit, or a ridge is not > 0.

    Example:
        >>> leave_one_out_residuals(torch.ones(2, 2), torch.tensor([1.0, 3.0]), torch.tensor([1.0]))
        tensor([[-0.5000,  2.5000]])

    References:
        Rasmussen, Williams (2006), Gaussian processes for machine learning, equation 5.12.
    """
    for name, value in (("kernel", kernel), ("y", y), ("ridge", ridge)):
        check_floating(name, value)
    check_same_dtype(kernel=kernel, y=y, ridge=ridge)
    check_positive("ridge", ridge)
    if kernel.ndim < 2 or y.ndim < 1 or ridge.ndim != 1 or not kernel.shape[-1] == kernel.shape[-2] == y.shape[-1]:
        raise ValueError(
            "kernel, y and ridge must be [*batch, n, n], [*batch, n] and [r], got "
            f"{tuple(kernel.shape)}, {tuple(y.shape)} and {tuple(ridge.shape)}"
        )
    check_broadcast(kernel=tuple(kernel.shape[:-2]), y=tuple(y.shape[:-1]))
    wide = torch.promote_types(y.dtype, torch.float32)
    k, values = kernel.to(wide), y.to(wide)[..., None, :, None]
    if torch.is_grad_enabled() and (kernel.requires_grad or ridge.requires_grad):
        eye = torch.eye(k.shape[-1], dtype=wide, device=k.device)
        factor = cholesky(k[..., None, :, :] + ridge.to(wide)[:, None, None] * eye).factor
        inverse = torch.cholesky_solve(eye.expand_as(factor), factor)
        return ((inverse @ values)[..., 0] / inverse.diagonal(dim1=-2, dim2=-1)).to(y.dtype)
    spectrum, vectors = torch.linalg.eigh(k)
    shrunk = 1 / (spectrum.clamp_min(0)[..., None, :] + ridge.to(wide)[:, None])  # [*batch, r, n]
    fitted = (shrunk * (vectors.mT @ values[..., 0, :, :])[..., 0][..., None, :]) @ vectors.mT
    return (fitted / (shrunk @ vectors.square().mT)).to(y.dtype)
