"""The norms of :mod:`~pullback.gradients.selective_ops`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pullback.core.checks import check_floating, check_integer, check_positive
from pullback.core.shapes import Float
from pullback.core.transforms import transform_running
from pullback.gradients import selective_functions as functions
from pullback.gradients.selective_checks import Sizes, check_parameters, theirs

__all__ = ["batch_norm", "group_norm", "layer_norm"]


def batch_norm(
    x: Float[Tensor, "batch channels *space"],
    running_mean: Float[Tensor, "channels"] | None,
    running_var: Float[Tensor, "channels"] | None,
    weight: Float[Tensor, "channels"] | None = None,
    bias: Float[Tensor, "channels"] | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    r"""Normalise by running statistics, ``(x - mean) / sqrt(var + eps) * weight + bias``, as in evaluation.

    Keeps ``x`` only where ``weight`` requires a gradient. With ``training=True``, where the statistics are those of the
    batch and their gradient needs ``x`` anyway, it is torch's own function.

    Args:
        x: ``[batch, channels, *space]``.
        running_mean: ``[channels]``.
        running_var: ``[channels]``, >= 0.
        weight: ``[channels]``.
        bias: ``[channels]``.
        training: whether the statistics are those of the batch, which also update the running ones.
        momentum: of that update.
        eps: > 0, added to the variance.

    Returns:
        The shape of ``x``.

    Raises:
        TypeError: ``x`` is not floating, or the types differ.
        ValueError: ``eps`` is not > 0, or shapes do not fit.

    Example:
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
        >>> batch_norm(x, torch.tensor([2.0, 4.0]), torch.tensor([1.0, 4.0]), eps=1e-12)
        tensor([[-1., -1.],
                [ 1.,  1.]])
    """
    check_floating("x", x)
    check_positive("eps", eps)
    if x.ndim < 2 or 0 in x.shape[1:]:
        raise ValueError(f"x must be [batch, channels, *space] with at least one of each, got {tuple(x.shape)}")
    if not training and (running_mean is None or running_var is None):
        raise ValueError("running_mean and running_var must be given where training=False")
    check_parameters(x, (x.shape[1],), running_mean=running_mean, running_var=running_var, weight=weight, bias=bias)
    if training or running_mean is None or running_var is None or theirs(x, weight, bias):
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    result: Tensor = functions.BatchNorm.apply(x, running_mean, running_var, weight, bias, eps)
    return result


def layer_norm(
    x: Float[Tensor, "*batch *normalized"],
    normalized_shape: Sizes,
    weight: Float[Tensor, "*normalized"] | None = None,
    bias: Float[Tensor, "*normalized"] | None = None,
    eps: float = 1e-5,
) -> Tensor:
    r"""Normalise the last dimensions, ``(x - mean) / sqrt(var + eps) * weight + bias``.

    For the gradient of ``x``, ``x`` and two numbers a row are kept, as torch does; without ``weight`` and ``bias`` the
    output and one number a row, which a next layer may keep as well: in memory it is there once. For the gradient of
    ``weight`` alone the normalised ``x`` is kept, for that of ``bias`` nothing.

    Args:
        x: ``[*batch, *normalized]``.
        normalized_shape: the last dimensions.
        weight: ``[*normalized]``.
        bias: ``[*normalized]``.
        eps: > 0, added to the variance.

    Returns:
        The shape of ``x``.

    Raises:
        TypeError: ``x`` is not floating.
        ValueError: ``eps`` is not > 0, or ``x`` does not end in ``normalized_shape``.

    Example:
        >>> layer_norm(torch.tensor([[1.0, 3.0]]), 2, eps=1e-12)
        tensor([[-1.,  1.]])
    """
    check_floating("x", x)
    check_positive("eps", eps)
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    if not shape or tuple(x.shape[-len(shape) :]) != shape:
        raise ValueError(f"x must end in the dimensions {shape}, got shape {tuple(x.shape)}")
    if 0 in shape:
        raise ValueError(f"x must have entries along the dimensions {shape} that are normalised, got {tuple(x.shape)}")
    check_parameters(x, shape, weight=weight, bias=bias)
    if transform_running() and not torch.compiler.is_compiling():
        # torch's own forgets in nested forward mode that mean and deviation depend on x.
        rows = x.flatten(-len(shape))
        centred = rows - rows.mean(-1, keepdim=True)
        normalised = centred * (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
        return _affine(normalised.view(x.shape), weight, bias)
    if theirs(x, weight, bias) or (x.requires_grad and not (weight is None and bias is None)):
        return F.layer_norm(x, shape, weight, bias, eps)
    normalised, _ = functions.Normalised.apply(_raised(x).flatten(-len(shape)), eps)
    return _affine(normalised.view(x.shape), weight, bias)


def group_norm(
    x: Float[Tensor, "batch channels *space"],
    num_groups: int,
    weight: Float[Tensor, "channels"] | None = None,
    bias: Float[Tensor, "channels"] | None = None,
    eps: float = 1e-5,
) -> Tensor:
    r"""Normalise groups of channels, ``(x - mean) / sqrt(var + eps) * weight + bias``.

    What is kept is that of :func:`layer_norm`, with groups in the place of rows.

    Args:
        x: ``[batch, channels, *space]``.
        num_groups: how many groups, a divisor of ``channels``.
        weight: ``[channels]``.
        bias: ``[channels]``.
        eps: > 0, added to the variance.

    Returns:
        The shape of ``x``.

    Raises:
        TypeError: ``x`` is not floating.
        ValueError: ``x`` has no channels, ``num_groups`` is no divisor of them, or ``eps`` is not > 0.

    Example:
        >>> group_norm(torch.tensor([[1.0, 3.0, 5.0, 9.0]]), 2, eps=1e-12)
        tensor([[-1.,  1., -1.,  1.]])
    """
    check_floating("x", x)
    check_positive("eps", eps)
    check_integer("num_groups", num_groups, 1)
    if x.ndim < 2 or x.shape[1] % num_groups or 0 in x.shape[1:]:
        raise ValueError(f"x must have channels that {num_groups} groups divide, got shape {tuple(x.shape)}")
    check_parameters(x, (x.shape[1],), weight=weight, bias=bias)
    if theirs(x, weight, bias) or (x.requires_grad and not (weight is None and bias is None)):
        return F.group_norm(x, num_groups, weight, bias, eps)
    grouped = _raised(x).reshape(len(x), num_groups, x.shape[1:].numel() // num_groups)
    normalised, _ = functions.Normalised.apply(grouped, eps)
    weight, bias = (None if each is None else each.view(-1, *(1,) * (x.ndim - 2)) for each in (weight, bias))
    return _affine(normalised.view(x.shape), weight, bias)


def _raised(x: Tensor) -> Tensor:
    """Cast as autocast does for norms on CUDA."""
    return x.float() if x.is_cuda and torch.is_autocast_enabled("cuda") else x


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """``x * weight + bias``, whose parts torch keeps only for gradients that are asked for."""
    if weight is not None:
        x = x * weight.to(x.dtype) if bias is None else torch.addcmul(bias.to(x.dtype), x, weight.to(x.dtype))
    elif bias is not None:
        x = x + bias.to(x.dtype)
    return x
