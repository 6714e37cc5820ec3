"""What it may be worth to look somewhere next."""

from __future__ import annotations

import math

import torch

from pullback.core.checks import check_broadcast, check_floating, check_same_dtype
from pullback.core.shapes import Float, Tensor
from pullback.core.transforms import can_look

__all__ = ["expected_improvement"]


def expected_improvement(
    mean: Float[Tensor, "*#batch"], variance: Float[Tensor, "*#batch"], best: Float[Tensor, "*#batch"]
) -> Float[Tensor, "*batch"]:
    r"""Return :math:`E \max(y - \mathrm{best}, 0)` of a normal prediction, what maximisation expects to gain.

    .. math:: \sigma\,(\phi(z) + z\,\Phi(z)), \qquad z = (\mu - \mathrm{best}) / \sigma

    A variance of 0 is a known value: its gain is :math:`\max(\mu - \mathrm{best}, 0)`.

    Args:
        mean: ``[*batch]`` of y.
        variance: ``[*batch]`` >= 0, in the squared unit of y.
        best: ``[*batch]`` the largest value reached so far.

    Returns:
        ``[*batch]`` >= 0, in the unit of y.

    Raises:
        TypeError: a tensor is not floating, or the dtypes differ.
        ValueError: the shapes do not broadcast, or a variance is negative (not looked at under transforms).

    Example:
        >>> expected_improvement(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0]), torch.tensor(0.0))
        tensor([0.3989, 1.0000])

    References:
        Jones, Schonlau, Welch (1998), Efficient global optimization of expensive black-box functions, equation 15.
    """
    for name, value in (("mean", mean), ("variance", variance), ("best", best)):
        check_floating(name, value)
    check_same_dtype(mean=mean, variance=variance, best=best)
    check_broadcast(mean=tuple(mean.shape), variance=tuple(variance.shape), best=tuple(best.shape))
    if can_look(variance) and not bool((variance >= 0).all()):
        raise ValueError(f"variance must be >= 0, got minimum {variance.min().item()}")
    gain, variance, unknown = torch.broadcast_tensors(mean - best, variance, variance > 0)
    deviation = torch.where(unknown, variance, 1).sqrt()  # safe: both branches have finite gradients
    # Beyond 40 deviations the density is 0 in every precision; its slope would be 0 times infinity.
    z = torch.maximum(torch.minimum(gain, 40 * deviation), -40 * deviation) / deviation
    density = torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)
    # sigma phi(z) + gain Phi(z) loses no more than rounding where z is large; sigma * z could overflow.
    expected = deviation * density + gain * 0.5 * torch.erfc(-z / math.sqrt(2))
    return torch.where(unknown, expected.clamp_min(0), gain.clamp_min(0))
