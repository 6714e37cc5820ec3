"""What a soft assignment to groups says about the classes: the information gain of a batch."""

from __future__ import annotations

import torch

from pullback.core.checks import check_floating, check_integer, check_scalar, check_shape, check_tensor
from pullback.core.shapes import Float, Int, Scalar, Tensor
from pullback.core.transforms import can_look
from pullback.discrete.softness import widen

__all__ = ["information_gain"]


def information_gain(
    probabilities: Float[Tensor, "*batch n k"],
    labels: Int[Tensor, "*batch n"],
    classes: int,
    *,
    balance: Scalar = 1.0,
    weights: Float[Tensor, "*batch n"] | None = None,
) -> Float[Tensor, "*batch"]:
    r"""Return the information that soft groups of samples hold about the classes of the samples, in nats.

    .. math:: \mathrm{IG} = \beta H(p_F) + H(p_C) - H(p_{CF}), \qquad
        p_{CF}(c, f) = \sum_i w_i\, 1[y_i = c]\, p(f \mid x_i)

    with :math:`w_i = 1/n` by default. At :math:`\beta = 1` it is the mutual information of group and class, between 0
    and :math:`\min(H(p_C), \log k)`; a larger balance favours groups of equal size, at most by
    :math:`(\beta - 1) \log k`. Where a probability is exactly 0 the gradient, infinite in truth, is that of the
    smallest normal number.

    Args:
        probabilities: ``[*batch, n, k]`` of each group, given the sample; rows sum to 1.
        labels: ``[*batch, n]`` integers in ``0..classes - 1``.
        classes: number of classes, >= 1.
        balance: :math:`\beta` >= 0, a number or a tensor without dimensions.
        weights: ``[*batch, n]`` of the samples, >= 0, not all 0; scaled to sum 1.

    Returns:
        ``[*batch]``; half precision is computed in float32.

    Raises:
        TypeError: ``probabilities`` or ``weights`` is not floating, ``labels`` not of integers.
        ValueError: the shapes do not fit, there is no sample or group; or, looked for except under ``torch.func`` and
            ``torch.compile``: a label is out of range, a probability negative or NaN, a row does not sum to 1 within
            1e-4 (half precision: 1e-2), a weight is negative or all are 0.

    Example:
        >>> certain = torch.eye(2)[[0, 0, 1, 1]]
        >>> round(information_gain(certain, torch.tensor([3, 3, 5, 5]), 10).item(), 4)  # ln 2: the group is the class
        0.6931
        >>> abs(round(information_gain(torch.full((4, 2), 0.5), torch.tensor([3, 3, 5, 5]), 10).item(), 4))
        0.0

    References:
        Bicici, Meral, Akarun (2024), Conditional information gain trellis, equations 4-6. Bicici, Keskin, Akarun
        (2018), Conditional information gain networks, section 3.
    """
    check_floating("probabilities", probabilities)
    n, k = probabilities.shape[-2:] if probabilities.ndim > 1 else (0, 0)
    if not n or not k:
        shape = tuple(probabilities.shape)
        raise ValueError(f"probabilities must have at least one sample and one group, got shape {shape}")
    if check_tensor("labels", labels).is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"labels must hold integers, got {labels.dtype}")
    check_shape("labels", labels, (n,))
    _check_batch("labels", labels, probabilities)
    check_integer("classes", classes, 1)
    check_scalar("balance", balance, zero=True)
    wide = widen(probabilities)
    if can_look(probabilities):
        _check_rows(wide, 1e-4 if wide.dtype == probabilities.dtype else 1e-2)
    if not labels.numel():
        return probabilities.sum((-2, -1))
    if can_look(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(f"labels must be in 0..{classes - 1}, got {int(labels.min())} to {int(labels.max())}")
    of_class = (labels.unsqueeze(-2) == torch.arange(classes, device=labels.device).unsqueeze(-1)).to(wide)
    if weights is None:
        of_class = of_class / n
    else:
        check_shape("weights", check_floating("weights", weights), (n,))
        _check_batch("weights", weights, probabilities)
        if can_look(weights) and bool(((weights < 0).any(-1) | ~(weights.sum(-1) > 0)).any()):
            raise ValueError(f"weights must be >= 0 and not all 0, got minimum {weights.min().item()}")
        share = weights.to(wide)
        of_class = of_class * (share / share.sum(-1, keepdim=True)).unsqueeze(-2)
    joint = of_class @ wide
    factor = balance.to(wide) if isinstance(balance, Tensor) else balance
    gain = factor * _entropy(joint.sum(-2)) + _entropy(joint.sum(-1)) - _entropy(joint.flatten(-2))
    return gain.to(probabilities.dtype)


def _entropy(p: Tensor) -> Tensor:
    return -(p * p.clamp(min=torch.finfo(p.dtype).tiny).log()).sum(-1)


def _check_batch(name: str, value: Tensor, probabilities: Tensor) -> None:
    if value.shape != probabilities.shape[:-1]:
        raise ValueError(f"{name} must have shape {tuple(probabilities.shape[:-1])}, got {tuple(value.shape)}")


def _check_rows(probabilities: Tensor, tolerance: float) -> None:
    wrong = ~((probabilities.sum(-1) - 1).abs() <= tolerance) | ~(probabilities >= 0).all(-1)
    if bool(wrong.any()):
        row = tuple(int(i) for i in wrong.nonzero()[0])
        values = [round(p, 6) for p in probabilities[row].detach().tolist()]
        raise ValueError(f"probabilities must be >= 0 and sum to 1 in each row, got {values} in row {row}")
