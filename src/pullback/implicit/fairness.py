"""Differentiable rates by which a model treats groups and changed inputs differently, for constraints on them."""

from __future__ import annotations

import torch

from pullback.core.checks import check_floating, check_integer, check_same_dtype, check_tensor
from pullback.core.shapes import Bool, Float, Int, Tensor
from pullback.core.transforms import physical

__all__ = ["counterfactual_gap", "demographic_parity", "equal_opportunity"]


def demographic_parity(
    score: Float[Tensor, "n"], group: Int[Tensor, "n"], *, groups: int = 2
) -> Float[Tensor, "groups"]:
    r"""Return by how much the mean score of each group is above that of all: ``mean_{group = g} score - mean score``.

    ``|gap_g| <= c`` is two constraints, ``gap_g <= c`` and ``-gap_g <= c``: ``torch.cat([gap, -gap])``. A group with
    nobody in it has the gap 0.

    Args:
        score: ``[n]``, such as the probability of the favourable outcome, or its logit. ``n >= 1``.
        group: ``[n]`` int64 in ``0..groups - 1``.
        groups: >= 1.

    Returns:
        ``[groups]``, differentiable in ``score``.

    Raises:
        TypeError: ``score`` is not floating or ``group`` is not integer.
        ValueError: the shapes differ, nobody is there, or a group is out of range.

    Example:
        >>> demographic_parity(torch.tensor([0.75, 0.75, 0.25, 0.25]), torch.tensor([0, 0, 1, 1])).tolist()
        [0.25, -0.25]

    References:
        Calders, Kamiran, Pechenizkiy (2009), Building classifiers with independency constraints; Agarwal, Beygelzimer,
        Dudik, Langford, Wallach (2018), A reductions approach to fair classification, example 1.
    """
    _check(score, group, groups)
    return _gaps(score, group, groups, torch.ones_like(group, dtype=torch.bool))


def equal_opportunity(
    score: Float[Tensor, "n"], group: Int[Tensor, "n"], label: Bool[Tensor, "n"], *, groups: int = 2
) -> Float[Tensor, "groups"]:
    r"""Return by how much those of each group who deserve it score above all who do.

    ``mean_{group = g, label} score - mean_{label} score``. A group without anybody of a positive label has the gap 0.

    Args:
        score: ``[n]``, such as the probability of the favourable outcome, or its logit. ``n >= 1``.
        group: ``[n]`` int64 in ``0..groups - 1``.
        label: ``[n]`` bool, who should get the favourable outcome.
        groups: >= 1.

    Returns:
        ``[groups]``, differentiable in ``score``.

    Raises:
        TypeError: ``score`` is not floating, ``group`` is not integer or ``label`` not boolean.
        ValueError: the shapes differ, nobody is there, or a group is out of range.

    Example:
        >>> score, group = torch.tensor([1.0, 0.5, 0.0, 0.0]), torch.tensor([0, 1, 1, 1])
        >>> equal_opportunity(score, group, torch.tensor([True, True, False, False])).tolist()
        [0.25, -0.25]

    References:
        Hardt, Price, Srebro (2016), Equality of opportunity in supervised learning, definition 2.2.
    """
    _check(score, group, groups)
    if check_tensor("label", label).dtype != torch.bool:
        raise TypeError(f"label must be boolean, got {label.dtype}")
    if label.shape != score.shape:
        raise ValueError(f"label must have the shape of score, {tuple(score.shape)}, got {tuple(label.shape)}")
    return _gaps(score, group, groups, label)


def counterfactual_gap(logits: Float[Tensor, "n *classes"], changed: Float[Tensor, "n *classes"]) -> Float[Tensor, ""]:
    r"""Return the mean divergence of predictions from those for changed inputs: ``mean_i KL(p_i || q_i)`` in nats.

    The inputs are changed in what should not matter, such as a sex or a race. Of logits ``[n]``, ``p`` is the Bernoulli
    distribution of probability ``sigmoid(logit)``; of ``[n, k]`` the distribution ``softmax(logits)``. It is at most an
    eighth of the mean squared difference of the logits (with classes, a quarter of that of their vectors).

    Args:
        logits: ``[n]`` or ``[n, k]``, of the inputs as they are. ``n >= 1``.
        changed: the same shape and type, of the changed ones.

    Returns:
        The mean, no dimensions, >= 0, differentiable in both.

    Raises:
        TypeError: the logits are not floating, or of different types.
        ValueError: their shapes differ or are none of these, or nobody is there.

    Example:
        >>> round(counterfactual_gap(torch.zeros(3), torch.tensor([0.0, 0.0, 3.0])).item(), 4)  # of one of three
        0.2851

    References:
        Elenter, Chamon, Ribeiro (2024), Near-optimal solutions of constrained learning problems, section 5.
    """
    check_floating("logits", logits)
    check_floating("changed", changed)
    check_same_dtype(logits=logits, changed=changed)
    if logits.shape != changed.shape or logits.ndim not in (1, 2) or not logits.numel():
        raise ValueError(
            f"logits and changed must both be [n] or [n, k] with n >= 1, got {tuple(logits.shape)} and "
            f"{tuple(changed.shape)}"
        )
    if logits.ndim == 1:
        logits, changed = (torch.stack([z / 2, -z / 2], -1) for z in (logits, changed))
    log_p, log_q = torch.log_softmax(logits, -1), torch.log_softmax(changed, -1)
    return (log_p.exp() * ((log_p - log_q) / len(logits))).sum()


def _check(score: Tensor, group: Tensor, groups: int) -> None:
    check_floating("score", score)
    check_integer("groups", groups, 1)
    if check_tensor("group", group).is_floating_point() or group.dtype == torch.bool:
        raise TypeError(f"group must be of integers, got {group.dtype}")
    if score.ndim != 1 or not len(score) or group.shape != score.shape:
        raise ValueError(f"score and group must be [n] with n >= 1, got {tuple(score.shape)} and {tuple(group.shape)}")
    if not torch.compiler.is_compiling():
        held = physical(group)
        if bool(((held < 0) | (held >= groups)).any()):
            raise ValueError(f"group must be in 0..{groups - 1}, got {int(held.min())} to {int(held.max())}")


def _gaps(score: Tensor, group: Tensor, groups: int, counted: Tensor) -> Tensor:
    member = (group == torch.arange(groups, device=group.device)[:, None]) & counted
    return torch.where(member.any(1), _mean(score, member) - _mean(score, counted), 0)


def _mean(score: Tensor, counted: Tensor) -> Tensor:
    """Return the mean of what is counted, 0 where nothing is."""
    count = counted.sum(-1, keepdim=True).clamp(min=1)
    return torch.where(counted, score / count, 0).sum(-1)
