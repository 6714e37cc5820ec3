"""Conditional means of several distributions at points between them: what transport among them is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from pullback.core.checks import check_callable, check_floating, check_integer, check_same_dtype
from pullback.core.random import drawing_device
from pullback.core.shapes import Float, Tensor
from pullback.core.transforms import can_look

__all__ = [
    "Means",
    "barycentric_interpolant",
    "gaussian_conditional_means",
    "means_at",
    "mixed",
    "multimarginal_loss",
    "simplex_score",
    "uniform_simplex",
]

Means = Callable[[Tensor, Tensor], Tensor]
"""``g(alpha, x)`` from weights ``[*batch, k]`` and points ``[*batch, *event]`` to ``[*batch, k, *event]``."""


def uniform_simplex(
    shape: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*batch k"]:
    r"""Return points uniform on the simplex: non-negative weights that sum to 1, Dirichlet(1, ..., 1).

    Args:
        shape: ``(*batch, k)``, k >= 1.
        dtype, device: of the result.
        generator: source of the draws.

    Returns:
        ``[*batch, k]``.

    Raises:
        TypeError, ValueError: the shape is no sequence of integers with ``k >= 1``.

    Example:
        >>> weights = uniform_simplex((1000, 3), generator=torch.Generator().manual_seed(0))
        >>> bool(((weights >= 0).all() & ((weights.mean(0) - 1 / 3).abs() < 0.02)).all())
        True

    References:
        Devroye (1986), Non-uniform random variate generation, theorem V.2.2: exponentials over their sum.
    """
    sizes = [check_integer("shape", size, 0) for size in shape]
    if not sizes or not sizes[-1]:
        raise ValueError(f"shape must be (*batch, k) with k >= 1, got {tuple(sizes)}")
    device = torch.device("cpu") if device is None else device
    uniform = torch.rand(sizes, generator=generator, dtype=torch.float64, device=drawing_device(generator, device))
    spans = -torch.log1p(-uniform)
    return (spans / spans.sum(-1, keepdim=True)).to(device=device, dtype=dtype)


def barycentric_interpolant(
    xs: Float[Tensor, "*shape"], alpha: Float[Tensor, "*batch k"]
) -> Float[Tensor, "*batched_event"]:
    r"""Return :math:`x(\alpha)=\sum_k\alpha_kx_k`, a point between one of each of several distributions.

    Args:
        xs: ``[*batch, k, *event]``, one point of each distribution: vectors, images.
        alpha: ``[*batch, k]`` weights on the simplex.

    Returns:
        ``[*batch, *event]``.

    Raises:
        TypeError: an argument is no floating tensor, or the dtypes differ.
        ValueError: the shapes do not fit, there are fewer than two distributions, or weights lie off the simplex:
            below 0, or with another sum than 1, beyond 1e-6 or rounding.

    Example:
        >>> barycentric_interpolant(torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]]), torch.tensor([0.5, 0.25, 0.25]))
        tensor([1., 1.])

    References:
        Albergo, Boffi, Lindsey, Vanden-Eijnden (2024), Multimarginal generative modeling with stochastic interpolants,
        equation 1.
    """
    check_same_dtype(xs=check_floating("xs", xs), alpha=check_floating("alpha", alpha))
    _check_weights(alpha)
    if xs.shape[: alpha.ndim] != alpha.shape:
        raise ValueError(
            f"xs must have shape (*batch, k, *event) for weights (*batch, k), got {tuple(xs.shape)} for weights "
            f"{tuple(alpha.shape)}"
        )
    return mixed(alpha, xs)


def multimarginal_loss(
    model: Means, xs: Float[Tensor, "*shape"], alpha: Float[Tensor, "*batch k"]
) -> Float[Tensor, ""]:
    r"""Return :math:`\sum_kE\,|g_k(\alpha,x(\alpha))-x_k|^2`, the mean over a batch.

    Its minimiser is the conditional means :math:`g_k(\alpha,x)=E[x_k\mid x(\alpha)=x]`, all that transport along any
    path needs (:func:`simplex_velocity`). With weights uniform on the simplex one training serves for all paths.

    Args:
        model: ``g(alpha, x)`` from ``[*batch, k]`` and ``[*batch, *event]`` to ``[*batch, k, *event]``.
        xs: ``[*batch, k, *event]``, one point of each distribution, independent draws or a coupling.
        alpha: ``[*batch, k]`` weights on the simplex, as :func:`uniform_simplex` draws them.

    Returns:
        A scalar >= 0.

    Raises:
        TypeError, ValueError: as :func:`barycentric_interpolant`; the model cannot be called or returns another shape.

    Example:
        >>> xs = torch.tensor([[[1.0], [3.0]]])
        >>> multimarginal_loss(lambda alpha, x: torch.full((1, 2, 1), 2.0), xs, torch.tensor([[0.5, 0.5]]))
        tensor(2.)

    References:
        Albergo, Boffi, Lindsey, Vanden-Eijnden (2024), equation 8.
    """
    check_callable("model", model)
    x = barycentric_interpolant(xs, alpha)
    if not xs.numel():
        raise ValueError(f"xs must hold at least one point, got shape {tuple(xs.shape)}")
    off = means_at(model, alpha, x) - xs
    return off.flatten(alpha.ndim - 1).square().sum(-1).mean()


def simplex_score(
    model: Means, alpha: Float[Tensor, "*batch k"], x: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    r"""Return the gradient of the log density of :math:`x(\alpha)`, :math:`-g_0(\alpha,x)/\alpha_0`.

    Where the first distribution is a standard Gaussian, independent of the others.

    Args:
        model: the conditional means, see :func:`multimarginal_loss`.
        alpha: ``[*batch, k]`` weights on the simplex, the first positive.
        x: ``[*batch, *event]`` points.

    Returns:
        The shape of x.

    Raises:
        TypeError: the model cannot be called, an argument is no floating tensor.
        ValueError: the shapes do not fit, weights lie off the simplex, or the first is 0.

    Example:
        >>> gaussian = lambda alpha, x: alpha.unsqueeze(-1) * (x / alpha.square().sum(-1, keepdim=True)).unsqueeze(-2)
        >>> round(simplex_score(gaussian, torch.tensor([[0.6, 0.4]]), torch.tensor([[1.04]])).item(), 4)
        -2.0

    References:
        Albergo, Boffi, Lindsey, Vanden-Eijnden (2024), theorem 1.
    """
    check_callable("model", model)
    check_same_dtype(alpha=check_floating("alpha", alpha), x=check_floating("x", x))
    _check_weights(alpha)
    if can_look(alpha) and not bool((alpha[..., 0] > 0).all()):
        raise ValueError("alpha must have a positive first weight: without Gaussian part there is no score")
    first = means_at(model, alpha, x).select(alpha.ndim - 1, 0)
    return -first / alpha[..., 0].reshape(*alpha.shape[:-1], *[1] * (x.ndim - alpha.ndim + 1))


def gaussian_conditional_means(
    means: Float[Tensor, "k d"],
    covariances: Float[Tensor, "k d d"],
    alpha: Float[Tensor, "*batch k"],
    x: Float[Tensor, "*batch d"],
) -> Float[Tensor, "*batch k d"]:
    r"""Return :math:`E[x_k\mid x(\alpha)=x]` of independent Gaussians, in closed form.

    :math:`m_k+\alpha_kC_k\bigl(\sum_j\alpha_j^2C_j\bigr)^{-1}\bigl(x-\sum_j\alpha_jm_j\bigr)`.

    Args:
        means: ``[k, d]``.
        covariances: ``[k, d, d]`` positive definite.
        alpha: ``[*batch, k]`` weights on the simplex.
        x: ``[*batch, d]`` points.

    Returns:
        ``[*batch, k, d]``.

    Raises:
        TypeError: an argument is no floating tensor, or the dtypes differ.
        ValueError: the shapes do not fit, weights lie off the simplex.

    Example:
        >>> gaussian_conditional_means(torch.zeros(2, 1), torch.ones(2, 1, 1), torch.tensor([0.5, 0.5]), torch.ones(1))
        tensor([[1.],
                [1.]])
    """
    for name, value in (("means", means), ("covariances", covariances), ("alpha", alpha), ("x", x)):
        check_floating(name, value)
    check_same_dtype(means=means, covariances=covariances, alpha=alpha, x=x)
    _check_weights(alpha)
    k, d = alpha.shape[-1], x.shape[-1] if x.ndim else 0
    if means.shape != (k, d) or covariances.shape != (k, d, d) or x.shape != (*alpha.shape[:-1], d) or not d:
        raise ValueError(
            f"means, covariances and x must have shapes ({k}, d), ({k}, d, d) and {(*alpha.shape[:-1], 'd')}, got "
            f"{tuple(means.shape)}, {tuple(covariances.shape)} and {tuple(x.shape)}"
        )
    wide = torch.promote_types(x.dtype, torch.float32)
    means, covariances, alpha, off = (part.to(wide) for part in (means, covariances, alpha, x))
    total = (alpha.square()[..., None, None] * covariances).sum(-3)
    solved = torch.linalg.solve(total, (off - alpha @ means).unsqueeze(-1)).unsqueeze(-3)
    return (means + alpha.unsqueeze(-1) * (covariances @ solved).squeeze(-1)).to(x.dtype)


def mixed(weights: Tensor, xs: Tensor) -> Tensor:
    """Return the sum over k of weights ``[*batch, k]`` times ``[*batch, k, *event]``.

    Example:
        >>> mixed(torch.tensor([0.5, 2.0]), torch.tensor([[2.0], [3.0]]))
        tensor([7.])
    """
    where = weights.ndim - 1
    return (weights.reshape((*weights.shape, *[1] * (xs.ndim - weights.ndim))) * xs).sum(where)


def means_at(model: Means, alpha: Tensor, x: Tensor) -> Tensor:
    """Return ``g(alpha, x)``, or raise where shapes do not fit.

    Example:
        >>> means_at(lambda alpha, x: torch.stack([x, x], -2), torch.tensor([0.5, 0.5]), torch.zeros(3)).shape
        torch.Size([2, 3])
    """
    batch, event = alpha.shape[:-1], x.shape[alpha.ndim - 1 :]
    if x.shape[: len(batch)] != batch or not event:
        raise ValueError(f"x must have shape (*batch, *event) for weights {tuple(alpha.shape)}, got {tuple(x.shape)}")
    found = model(alpha, x)
    if not isinstance(found, Tensor) or found.shape != (*alpha.shape, *event):
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"model must return a tensor of shape {(*alpha.shape, *event)}, got {got}")
    return found


def _check_weights(alpha: Tensor) -> None:
    if alpha.ndim < 1 or alpha.shape[-1] < 2:
        raise ValueError(f"alpha must have shape (*batch, k) with k >= 2, got {tuple(alpha.shape)}")
    if not can_look(alpha):
        return
    slack = max(1e-6, alpha.shape[-1] * torch.finfo(alpha.dtype).eps)
    alpha = alpha.detach().double()
    off = (alpha.sum(-1) - 1).abs()
    if not bool((off <= slack).all()):
        raise ValueError(f"alpha must sum to 1, got sums that are off by {float(off.max()):.3g}")
    if not bool((alpha >= -slack).all()):
        raise ValueError(f"alpha must be >= 0, got {float(alpha.min()):.3g}")
