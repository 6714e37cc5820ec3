"""Densities of weighted points, smoothed by Gaussian kernels."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint

from pullback.core.checks import check_broadcast, check_floating, check_positive, check_same_dtype
from pullback.core.shapes import Float, Tensor
from pullback.core.transforms import is_transformed, transform_running

__all__ = ["gaussian_kernel", "kernel_density"]

_BLOCK, _SMALL = 1 << 21, 1 << 17
"""Entries of differences at a time, with gradients and without: these stay in the processor's cache."""


def kernel_density(
    points: Float[Tensor, "*#batch n d"],
    log_weights: Float[Tensor, "*#batch n"] | None,
    x: Float[Tensor, "*#batch m d"],
    *,
    bandwidth: float | Float[Tensor, "..."],
) -> Float[Tensor, "*batch m"]:
    r"""Return the logarithm of the density that weighted points have after Gaussian smoothing.

    .. math:: \log p(x) = \log \sum_i w_i \prod_k \frac{1}{\sqrt{2\pi} h_k} e^{-(x_k - p_{ik})^2 / 2 h_k^2}

    Weights are taken as they are: where they do not sum to one, neither does the density. Many pairs are taken in
    blocks, which are computed again for their gradient: its memory is that of one block.

    Args:
        points: ``[*batch, n, d]`` finite.
        log_weights: ``[*batch, n]`` logarithms of w, -inf for none; None for 1 / n each.
        x: ``[*batch, m, d]`` where the density is wanted.
        bandwidth: h > 0 in the unit of the points: a number, or a tensor that broadcasts against ``[*batch, 1, d]``.

    Returns:
        ``[*batch, m]``; -inf where no point has a weight, and so far from all that the square of the distance in
        bandwidths is no finite number. float16 and bfloat16 are computed in float32.

    Raises:
        TypeError: the tensors are not floating or of different dtypes.
        ValueError: shapes do not fit, there are no points, or a bandwidth is not > 0.

    Example:
        >>> kernel_density(torch.tensor([[0.0], [2.0]]), None, torch.tensor([[1.0]]), bandwidth=1.0).exp()
        tensor([0.2420])

    References:
        Parzen (1962), On estimation of a probability density function and mode, equation 1.6.
    """
    for name, value in (("points", points), ("x", x)):
        if check_floating(name, value).ndim < 2:
            raise ValueError(f"{name} must have shape [*batch, points, dimensions], got {tuple(value.shape)}")
    if not points.shape[-2]:
        raise ValueError("points must have at least one point, got none")
    if points.shape[-1] != x.shape[-1]:
        raise ValueError(f"points and x must have as many dimensions, got {points.shape[-1]} and {x.shape[-1]}")
    check_same_dtype(points=points, x=x)
    check_positive("bandwidth", bandwidth)
    batch = check_broadcast(points=tuple(points.shape[:-2]), x=tuple(x.shape[:-2]))
    wide = torch.promote_types(x.dtype, torch.float32)
    if log_weights is None:
        weights = x.new_full((points.shape[-2],), -math.log(points.shape[-2]), dtype=wide)
    else:
        if check_floating("log_weights", log_weights).shape[-1:] != points.shape[-2:-1]:
            raise ValueError(f"log_weights must end with {points.shape[-2]}, got {tuple(log_weights.shape)}")
        check_same_dtype(points=points, log_weights=log_weights)
        check_broadcast(points=tuple(points.shape[:-2]), log_weights=tuple(log_weights.shape[:-1]))
        weights = log_weights.to(wide)
    h = torch.as_tensor(bandwidth, dtype=wide, device=x.device)
    shape = (*batch, 1, x.shape[-1])
    if check_broadcast(points=shape, bandwidth=tuple(h.shape)) != shape:
        raise ValueError(f"bandwidth must broadcast against {shape}, got {tuple(h.shape)}")
    h = h.expand(shape)
    p, z = points.to(wide), x.to(wide)
    norm = h.log().sum(-1) + x.shape[-1] * math.log(2 * math.pi) / 2
    hidden = transform_running() or any(map(is_transformed, (p, weights, z, h)))
    constant = not (hidden or (torch.is_grad_enabled() and any(x.requires_grad for x in (p, weights, z, h))))
    rows = max(1, (_SMALL if constant else _BLOCK) // max(1, p.numel()))
    blocks = [z] if z.shape[-2] <= rows else list(z.split(rows, -2))
    sums = _log_sums
    if constant:
        sums = _log_sums_in_place
    elif len(blocks) > 1 and not hidden:
        sums = partial(checkpoint, _log_sums, use_reentrant=False)
    found = [sums(p, weights, block, h) for block in blocks]
    return (torch.cat(found, -1) - norm).to(x.dtype)


def gaussian_kernel(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], width: Tensor) -> Float[Tensor, "n m"]:
    """Return ``exp(-|(x_i - y_j) / width|^2 / 2)``.

    Example:
        >>> gaussian_kernel(torch.zeros(1, 1), torch.tensor([[0.0], [2.0]]), torch.tensor([1.0]))
        tensor([[1.0000, 0.1353]])
    """
    return (-((x.unsqueeze(1) - y) / width).square().sum(-1) / 2).exp()


def _log_sums(points: Tensor, log_weights: Tensor, x: Tensor, bandwidth: Tensor) -> Tensor:
    distance = ((x.unsqueeze(-2) - points.unsqueeze(-3)) / (2**0.5 * bandwidth.unsqueeze(-2))).square()
    return torch.logsumexp(log_weights.unsqueeze(-2) - distance.sum(-1), -1)


def _log_sums_in_place(points: Tensor, log_weights: Tensor, x: Tensor, bandwidth: Tensor) -> Tensor:
    """Return the same of constants, in a third of the time."""
    distance = (x.unsqueeze(-2) - points.unsqueeze(-3)).div_(2**0.5 * bandwidth.unsqueeze(-2)).square_()
    total = torch.sub(log_weights.unsqueeze(-2), distance[..., 0] if points.shape[-1] == 1 else distance.sum(-1))
    most = total.amax(-1, keepdim=True)
    most.masked_fill_(most.isinf(), 0.0)
    return total.sub_(most).exp_().sum(-1).log_().add_(most[..., 0])
