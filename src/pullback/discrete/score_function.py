"""The score function estimator, which needs no derivative of the reward, and its control variates."""

from __future__ import annotations

from pullback.core.checks import check_choice, check_dim, check_floating, check_same_dtype
from pullback.core.gradients import replace_gradient
from pullback.core.shapes import Float, Tensor

__all__ = ["BASELINES", "score_function"]

BASELINES = ("none", "mean", "leave_one_out", "control")
"""What :func:`score_function` can subtract from a reward."""


def score_function(
    log_prob: Float[Tensor, "*shape"],
    reward: Float[Tensor, "*shape"],
    *,
    baseline: str = "none",
    control: Float[Tensor, "*shape"] | None = None,
    expected: Float[Tensor, "*shape"] | None = None,
    dim: int = 0,
) -> Float[Tensor, "*shape"]:
    r"""Return the reward with the score function estimate of the gradient of its expectation.

    Where ``D`` was drawn with probability ``p(D)`` and brought the reward ``r(D)``, the gradient of ``E r`` is
    estimated by

    .. math:: (r - b)\, \nabla \log p(D) + \nabla r + \nabla e,

    with the baseline ``b``, the reward's own derivative and that of the control's expectation ``e``.

    =================  ========================================================================================
    ``none``           ``b = 0``
    ``mean``           the mean over ``dim``; the estimate shrinks by ``1 - 1/m``, as each of m draws is part of it
    ``leave_one_out``  the mean of the other ``m - 1`` draws: unbiased (REINFORCE leave-one-out)
    ``control``        ``control``: a number known before the draw, or a function of ``D`` that resembles ``r`` and
                       whose expectation is ``expected`` (MuProp: the linearisation at the mean of ``D``)
    =================  ========================================================================================

    Args:
        log_prob: ``[*shape]`` logarithms of the probabilities of the draws, with their gradient.
        reward: ``[*shape]`` what each draw brought, of the same dtype.
        baseline: one of ``BASELINES``.
        control: ``[*shape]``, needed for ``"control"`` and refused otherwise; no gradient flows into it.
        expected: ``[*shape]`` the expectation of ``control`` over the draws, with its gradient; ``None`` where
            ``control`` does not depend on the draw.
        dim: along which independent draws of one law lie.

    Returns:
        ``[*shape]`` the values of ``reward``; its mean is a loss whose gradient is the estimate. Second derivatives
        are not those of the expectation.

    Raises:
        IndexError: ``dim`` is out of range.
        TypeError: an argument is not a floating tensor, or the dtypes differ.
        ValueError: ``baseline`` is unknown, the shapes differ, ``control`` is missing or not used, or
            ``"leave_one_out"`` has fewer than two draws.

    Example:
        >>> import torch
        >>> logits = torch.zeros(2, requires_grad=True)
        >>> log_prob = logits.log_softmax(0)  # both outcomes, each of probability 1/2
        >>> (0.5 * score_function(log_prob, torch.tensor([0.0, 1.0]))).sum().backward()
        >>> logits.grad
        tensor([-0.2500,  0.2500])

    References:
        Williams (1992), Simple statistical gradient-following algorithms. Kool, van Hoof, Welling (2019), Buy 4
        REINFORCE samples, get a baseline for free. Gu, Levine, Sutskever, Mnih (2016), MuProp, equation 5.
    """
    check_choice("baseline", baseline, BASELINES)
    check_floating("log_prob", log_prob)
    others = {"reward": reward}
    if (control is None) == (baseline == "control"):
        raise ValueError(f"control must be given where baseline is 'control' and only there, got {baseline!r}")
    if expected is not None and control is None:
        raise ValueError("expected must be given with a control only")
    others |= {name: x for name, x in (("control", control), ("expected", expected)) if x is not None}
    for name, x in others.items():
        if check_floating(name, x).shape != log_prob.shape:
            raise ValueError(f"{name} must have the shape of log_prob, {tuple(log_prob.shape)}, got {tuple(x.shape)}")
    check_same_dtype(log_prob=log_prob, **others)
    dim = check_dim(log_prob, dim)
    gain = reward.detach()
    if baseline in ("mean", "leave_one_out"):
        m = reward.shape[dim] if reward.ndim else 1
        if baseline == "leave_one_out" and m < 2:
            raise ValueError(f"leave_one_out needs at least 2 draws along dim {dim}, got {m}")
        gain = gain - gain.mean(dim, keepdim=True)
        if baseline == "leave_one_out":
            gain = gain * (m / (m - 1))  # r_i - mean of the others
    elif control is not None:
        gain = gain - control.detach()
    estimate = reward + gain * log_prob
    return replace_gradient(reward.detach(), estimate if expected is None else estimate + expected)
