"""Activations between one with a kink and a smooth one."""

from __future__ import annotations

import torch

from pullback.core.checks import check_floating, check_positive, check_scalar
from pullback.core.choices import check_choice
from pullback.core.shapes import Float, Scalar, Tensor

__all__ = ["interpolated_activation"]


def interpolated_activation(
    x: Float[Tensor, "*shape"],
    weight: Scalar,
    *,
    smooth: str = "gelu",
    scale: Scalar = 1.0,
    negative_slope: float = 0.0,
) -> Float[Tensor, "*shape"]:
    r"""Return an activation between the (leaky) ReLU and a smooth one.

    ``leaky(x) + i (x F(c x) - leaky(x))`` with ``F`` the normal distribution function (GELU) or the logistic one
    (SiLU): ``i = 0`` is the ReLU, ``i = 1`` the smooth one, a large ``c`` sharpens it.

    Args:
        x: ``[*shape]``.
        weight: ``i >= 0``, a number or a differentiable tensor without dimensions.
        smooth: ``"gelu"`` or ``"silu"``.
        scale: ``c > 0``, likewise.
        negative_slope: of the leaky ReLU, >= 0.

    Returns:
        ``[*shape]``.

    Raises:
        TypeError: ``x`` is not a floating tensor.
        ValueError: ``weight``, ``scale`` or ``negative_slope`` is out of range, or ``smooth`` is unknown.

    Example:
        >>> interpolated_activation(torch.tensor([-1.0, 1.0]), 0.5)
        tensor([-0.0793,  0.9207])

    References:
        Shah, Youngblood (2024), Leveraging continuously differentiable activation functions for learning in quantized
        noisy environments, section 4.
    """
    check_floating("x", x)
    check_choice("smooth", smooth, ("gelu", "silu"))
    check_scalar("weight", weight, zero=True)
    check_scalar("scale", scale)
    check_positive("negative_slope", negative_slope, zero=True)
    leaky = torch.nn.functional.leaky_relu(x, negative_slope)
    gate = torch.special.ndtr(scale * x) if smooth == "gelu" else torch.sigmoid(scale * x)
    return leaky + weight * (x * gate - leaky)
