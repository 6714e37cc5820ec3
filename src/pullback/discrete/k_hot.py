"""Relaxed subsets of at most k: the union of k sampled choices."""

from __future__ import annotations

import torch

from pullback.core.checks import check_floating, check_integer
from pullback.core.gradients import replace_gradient
from pullback.core.random import drawing_device
from pullback.core.shapes import Float, Scalar, Tensor
from pullback.discrete.sampling import check_rows, gumbel_noise
from pullback.discrete.softness import is_hard, softmax, widen

__all__ = ["k_hot_sample"]


def k_hot_sample(
    logits: Float[Tensor, "*batch n"],
    k: int,
    *,
    temperature: Scalar = 1.0,
    hard: bool = False,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*batch n"]:
    r"""Sample a relaxed subset: the elementwise largest of ``k`` independent Gumbel-softmax vectors.

    ``m_i = max_j softmax((logits + g_j) / temperature)_i`` with Gumbel noise ``g_1 .. g_k``. The draws are made with
    replacement, so that a hard subset has between 1 and ``k`` entries, entry ``i`` with probability
    ``1 - (1 - softmax(logits)_i)^k``. For exactly ``k`` see :func:`multinomial` without replacement and
    :func:`soft_topk`.

    Args:
        logits: ``[*batch, n]`` unnormalised log probabilities; ``-inf`` is never drawn and gets gradient 0.
        k: draws, >= 1.
        temperature: >= 0, a number or a differentiable tensor without dimensions; 0 is the hard sample with gradient 0.
        hard: return zeros and ones, with the gradient of the relaxation.
        generator: torch's default one if ``None``.

    Returns:
        ``[*batch, n]`` in ``[0, 1]``; sums to at most ``k``.

    Raises:
        TypeError: ``logits`` is not a floating tensor, or ``k`` is no integer.
        ValueError: ``k`` or ``temperature`` is out of range; ``logits`` has no dimensions; a row of logits is all
            ``-inf`` or has NaN or ``inf`` (not checked under ``torch.func`` transforms and ``torch.compile``).

    Example:
        >>> logits = torch.tensor([5.0, 5.0, -5.0, -torch.inf])
        >>> k_hot_sample(logits, 8, hard=True, generator=torch.Generator().manual_seed(0))
        tensor([1., 1., 0., 0.])

    References:
        Chen, Song, Wainwright, Jordan (2018), Learning to explain: an information-theoretic perspective on model
        interpretation, section 3.2.
    """
    if not check_floating("logits", logits).ndim:
        raise ValueError("logits must have at least one dimension, got a tensor without")
    check_rows("logits", logits, -1)
    check_integer("k", k, 1)
    wide = widen(logits)
    frozen = is_hard(temperature, wide.dtype)
    shape = (*logits.shape[:-1], k, logits.shape[-1])
    noise = gumbel_noise(shape, dtype=wide.dtype, device=drawing_device(generator, logits), generator=generator)
    perturbed = wide.unsqueeze(-2) + noise.to(logits.device)
    chosen = torch.nn.functional.one_hot(perturbed.argmax(-1), logits.shape[-1]).amax(-2).to(logits.dtype)
    if frozen:
        return replace_gradient(chosen, torch.sign(logits))
    soft = softmax(perturbed, -1, temperature).amax(-2).to(logits.dtype)
    return replace_gradient(chosen, soft) if hard else soft
