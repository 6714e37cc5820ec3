"""Data of several tasks at once, in episodes: each episode goes to the model that explains it best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import nn

from pullback.core.checks import check_callable, check_floating, check_tensor
from pullback.core.shapes import Bool, Float, Int, Scalar, Shaped, Tensor
from pullback.discrete.routing import least_loss

__all__ = ["EpisodeAllocation", "episode_loss"]


class EpisodeAllocation(NamedTuple):
    """Which model learns from which episode.

    Attributes:
        loss: the mean over episodes of the weighted losses: what is minimised.
        choice: ``[episodes]`` the model with the least loss.
        losses: ``[episodes, models]`` of each model on each episode, with their gradients.
        weights: ``[episodes, models]``, rows sum to 1, without gradient.
    """

    loss: Float[Tensor, ""]
    choice: Int[Tensor, "episodes"]
    losses: Float[Tensor, "episodes models"]
    weights: Float[Tensor, "episodes models"]


def episode_loss(
    models: Callable[[Tensor], Tensor] | Sequence[Callable[[Tensor], Tensor]] | nn.ModuleList,
    x: Float[Tensor, "episodes m *features"],
    y: Shaped[Tensor, "episodes m *targets"],
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    temperature: Scalar = 0.0,
    mask: Bool[Tensor, "episodes m"] | None = None,
    revive: bool = False,
) -> EpisodeAllocation:
    r"""Allocate episodes to models by their own data, labels included, and return the loss of what was allocated.

    .. math:: L_k(Z_b) = \frac1m \sum_j \ell(f_k(x_{bj}), y_{bj}), \qquad
        h(Z_b) = \arg\min_k L_k(Z_b), \qquad \frac1B \sum_b L_{h(Z_b)}(Z_b)

    Only the chosen model learns from an episode. At a temperature :math:`T > 0` all do, in the shares
    :math:`\mathrm{softmax}(-L(Z_b) / T)`, which keeps models alive at the beginning. The allocation has no gradient.

    Args:
        models: functions or modules from ``[n, *features]`` to ``[n, *out]``, all of one shape; or a single function
            that returns the predictions of all models at once, ``[models, n, *out]``.
        x: ``[episodes, m, *features]``; an episode comes from one task.
        y: ``[episodes, m, *targets]`` of any dtype.
        loss: from predictions ``[n, *out]`` and targets ``[n, *targets]`` to losses whose first dimension is ``n``,
            such as ``partial(cross_entropy, reduction="none")``; further dimensions are averaged.
        temperature: :math:`T` >= 0, a number or a tensor without dimensions; nothing is differentiated in it.
        mask: ``[episodes, m]``, which samples count, for episodes of unequal length.
        revive: give each model that no episode would choose one of those with the largest loss, to learn from alone:
            so a dead model takes over what another has to explain together with something else. For the beginning of
            training, and for as many models as there are tasks.

    Returns:
        :class:`EpisodeAllocation`; the loss of no episodes is 0.

    Raises:
        TypeError: ``x`` is not floating, ``mask`` not boolean, ``models`` or ``loss`` cannot be called.
        ValueError: there is no model or an empty episode, shapes do not fit, ``temperature`` is negative, or the losses
            of an episode are all NaN or infinite (its index is named; not under ``torch.func`` and ``torch.compile``).

    Example:
        >>> x = torch.tensor([[[1.0], [2.0]], [[3.0], [1.0]]])
        >>> y = torch.cat([x[:1], -x[1:]])
        >>> found = episode_loss([lambda t: t, lambda t: -t], x, y, lambda p, t: (p - t) ** 2)
        >>> found.choice.tolist(), found.loss.item(), found.losses.tolist()
        ([0, 1], 0.0, [[0.0, 10.0], [20.0, 0.0]])

    References:
        Zhang et al. (2021), Subjective learning for open-ended data, equations 3-5.
    """
    if not isinstance(models, Sequence | nn.ModuleList):
        check_callable("models", models)
    elif len(models) < 1:
        raise ValueError("models must be at least one, got none")
    else:
        for number, model in enumerate(models):
            check_callable(f"models[{number}]", model)
    check_callable("loss", loss)
    if check_floating("x", x).ndim < 2 or not x.shape[1]:
        raise ValueError(f"x must have shape (episodes, m, ...) with m >= 1, got {tuple(x.shape)}")
    if check_tensor("y", y).shape[:2] != x.shape[:2]:
        raise ValueError(f"y must have shape ({x.shape[0]}, {x.shape[1]}, ...), got {tuple(y.shape)}")
    count, m = x.shape[:2]
    inputs, targets = x.flatten(0, 1), y.flatten(0, 1)
    if isinstance(models, Sequence | nn.ModuleList):
        predictions = [model(inputs) for model in models]
        for prediction in predictions:
            if prediction.shape != predictions[0].shape:
                raise ValueError(
                    f"models must return one shape, got {tuple(predictions[0].shape)} and {tuple(prediction.shape)}"
                )
    else:
        predictions = list(models(inputs))
    columns = []
    for prediction in predictions:
        each = loss(prediction, targets)
        if each.ndim < 1 or len(each) != count * m:
            raise ValueError(f"loss must return one loss a sample, ({count * m}, ...), got {tuple(each.shape)}")
        columns.append(each.reshape(count, m, each[:1].numel() if len(each) else 1).mean(-1))
    losses = _mean(torch.stack(columns, -1), mask)
    weights = least_loss(losses, temperature, "the losses").to(losses.dtype)
    choice = weights.argmax(-1)
    if revive and count:
        weights = _revived(weights, choice, losses.detach())
    chosen = torch.where(weights > 0, weights * losses, 0.0).sum(-1)
    return EpisodeAllocation(chosen.mean() if count else chosen.sum(), choice, losses, weights)


def _revived(weights: Tensor, choice: Tensor, losses: Tensor) -> Tensor:
    """The episodes that are explained worst go to the models that explain none best."""
    unused = (choice[:, None] != torch.arange(losses.shape[1], device=choice.device)).all(0).nonzero().flatten()
    worst = losses.gather(1, choice[:, None]).flatten().argsort(descending=True)[: len(unused)]
    one_hot = torch.zeros_like(weights[worst]).scatter(1, unused[: len(worst), None], 1.0)
    return weights.index_copy(0, worst, one_hot)


def _mean(samples: Tensor, mask: Tensor | None) -> Tensor:
    """Over the samples that count; ``samples`` is ``[episodes, m, models]``."""
    if mask is None:
        return samples.mean(1)
    if check_tensor("mask", mask).dtype != torch.bool:
        raise TypeError(f"mask must be boolean, got {mask.dtype}")
    if mask.shape != samples.shape[:2]:
        raise ValueError(f"mask must have shape {tuple(samples.shape[:2])}, got {tuple(mask.shape)}")
    lengths = mask.sum(1, keepdim=True)
    if bool((lengths == 0).any()):
        raise ValueError(f"mask must keep a sample of each episode, got none of episode {int(lengths.argmin())}")
    return torch.where(mask.unsqueeze(-1), samples, 0.0).sum(1) / lengths
