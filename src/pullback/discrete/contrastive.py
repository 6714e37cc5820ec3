"""Losses of an anchor's similarities to what belongs to it and what does not, and how good its neighbours are."""

from __future__ import annotations

from typing import NamedTuple

import torch

from pullback.core.checks import check_choice, check_floating, check_integer, check_positive, check_scalar, check_tensor
from pullback.core.shapes import Float, Int, Scalar, Tensor
from pullback.core.transforms import is_transformed
from pullback.discrete.group_ordering import check_groups, reduced
from pullback.discrete.softness import widen

__all__ = ["ViewSimilarities", "info_nce", "nearest_neighbour_accuracy", "triplet_loss", "view_similarities"]

_MINING = ("hard", "all")
_REDUCTIONS = ("mean", "sum", "none")


class ViewSimilarities(NamedTuple):
    """Cosines of every view of every sample, the anchor.

    Attributes:
        positives: ``[*batch, views, n, views - 1]`` with the other views of the same sample.
        negatives: ``[*batch, views, n, m]`` with views of other samples.
    """

    positives: Float[Tensor, "*batch views n p"]
    negatives: Float[Tensor, "*batch views n m"]


def view_similarities(
    features: Float[Tensor, "*batch views n d"],
    *,
    same_view: bool = False,
    hardest: int | None = None,
    anchor_only: bool = False,
) -> ViewSimilarities:
    r"""Return the cosines of each view of each sample with its other views, and with those of the other samples.

    .. math::
        s_{vi} = \left(\cos(z_{vi}, z_{wi})\right)_{w \ne v}, \qquad
        n_{vi} = \left(\cos(z_{vi}, z_{wj})\right)_{j \ne i}

    What the losses of this file take, every view an anchor once.

    Args:
        features: ``[*batch, views, n, d]`` finite; at least 2 views of at least 2 samples. A zero vector has cosine 0.
        same_view: of other samples only the view with the anchor's index: ``m = n - 1`` instead of ``views (n - 1)``.
        hardest: keep that many negatives with the largest cosines, in falling order, or all where there are fewer.
        anchor_only: no gradient flows to what the anchor is compared with.

    Returns:
        :class:`ViewSimilarities` ``(positives, negatives)``. Half precision is computed in float32.

    Raises:
        TypeError: ``features`` is not a floating tensor, ``hardest`` no integer.
        ValueError: there are fewer dimensions, views or samples, a feature is not finite (looked for except under
            ``torch.func``, forward mode and ``torch.compile``), or ``hardest < 1``.

    Example:
        >>> features = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[2.0, 0.0], [3.0, 4.0]]])  # 2 views of 2 samples
        >>> positives, negatives = view_similarities(features)
        >>> positives.flatten().tolist()
        [1.0, 0.800000..., 1.0, 0.800000...]
        >>> negatives[0, 0].tolist()
        [0.0, 0.600000...]

    References:
        Chen, Kornblith, Norouzi, Hinton (2020), A simple framework for contrastive learning, equation 1. Shvetsova et
        al. (2023), Learning by sorting, section 3.3 (``same_view``, ``hardest=10``, ``anchor_only``).
    """
    check_floating("features", features)
    if features.ndim < 3 or features.shape[-3] < 2 or features.shape[-2] < 2 or not features.shape[-1]:
        raise ValueError(f"features must be [*batch, views >= 2, n >= 2, d >= 1], got {tuple(features.shape)}")
    if not is_transformed(features) and not bool(torch.isfinite(features).all()):
        raise ValueError("features must be finite")
    if hardest is not None:
        check_integer("hardest", hardest, 1)
    anchors = _unit(features)
    others = anchors.detach() if anchor_only else anchors
    views, n = features.shape[-3:-1]
    positives = _others(anchors.transpose(-3, -2) @ others.transpose(-3, -2).mT).transpose(-3, -2)
    if same_view:
        negatives = _others(anchors @ others.mT)
    else:
        every = anchors.flatten(-3, -2) @ others.flatten(-3, -2).mT
        pairs = every.unflatten(-1, (views, n)).unflatten(-3, (views, n)).transpose(-3, -2)
        negatives = _others(pairs).transpose(-3, -2).flatten(-2)
    if hardest is not None:
        negatives = negatives.topk(min(hardest, negatives.shape[-1]), dim=-1).values
    return ViewSimilarities(positives.to(features.dtype), negatives.to(features.dtype))


def info_nce(
    positives: Float[Tensor, "*batch p"],
    negatives: Float[Tensor, "*batch m"],
    *,
    temperature: Scalar,
    reduction: str = "mean",
) -> Float[Tensor, "..."]:
    r"""Return the cross entropy of picking a positive among the negatives, the mean over the positives.

    .. math:: \frac{1}{p} \sum_i -\log \frac{e^{s_i / \tau}}{e^{s_i / \tau} + \sum_j e^{n_j / \tau}}

    The other positives are not in the denominator.

    Args:
        positives: ``[*batch, p]`` scores, such as cosines of an anchor with its other views.
        negatives: ``[*batch, m]`` scores of the others; ``-inf`` leaves one out.
        temperature: ``tau > 0``, in units of the scores; a number or a differentiable tensor without dimensions.
        reduction: ``"mean"`` or ``"sum"`` over the batch, or ``"none"``.

    Returns:
        A scalar, or ``[*batch]``; the mean over an empty batch is 0. Half precision is computed in float32.

    Raises:
        TypeError: an argument is not a floating tensor, or the dtypes differ.
        ValueError: there are no positives or no negatives, the batches differ, a positive is not finite, a negative
            ``inf`` or NaN (looked for except under ``torch.func``, forward mode and ``torch.compile``),
            ``temperature <= 0``, an unknown word.

    Example:
        >>> info_nce(torch.tensor([0.5]), torch.tensor([0.5, 0.5, 0.5]), temperature=0.1).item()  # ln 4
        1.386294...

    References:
        van den Oord, Li, Vinyals (2018), Representation learning with contrastive predictive coding, equation 4. Chen,
        Kornblith, Norouzi, Hinton (2020), A simple framework for contrastive learning, equation 1.
    """
    _check(positives, negatives)
    check_scalar("temperature", temperature)
    check_choice("reduction", reduction, _REDUCTIONS)
    if isinstance(temperature, Tensor):
        temperature = temperature.to(positives.device)
    # The difference first: scores of any size divide by the temperature without an overflow of their own.
    odds = (widen(negatives)[..., None, :] - widen(positives)[..., None]) / temperature
    losses = torch.nn.functional.softplus(torch.logsumexp(odds, -1)).mean(-1)
    return reduced(losses, reduction).to(positives.dtype)


def triplet_loss(
    positives: Float[Tensor, "*batch p"],
    negatives: Float[Tensor, "*batch m"],
    *,
    margin: Scalar = 0.2,
    mining: str = "hard",
    reduction: str = "mean",
) -> Float[Tensor, "..."]:
    r"""Return by how much negatives come closer than a margin below the positives.

    .. math::
        \text{hard: } \max(0, \mu + \max_j n_j - \min_i s_i), \qquad
        \text{all: } \frac{1}{p m} \sum_{ij} \max(0, \mu + n_j - s_i)

    Args:
        positives: ``[*batch, p]`` scores, such as cosines of an anchor with its other views.
        negatives: ``[*batch, m]`` scores of the others; ``-inf`` leaves one out.
        margin: ``mu >= 0``, in units of the scores; a number or a differentiable tensor without dimensions.
        mining: ``"hard"``, the nearest negative and the farthest positive, or ``"all"`` pairs.
        reduction: ``"mean"`` or ``"sum"`` over the batch, or ``"none"``.

    Returns:
        A scalar, or ``[*batch]``; the mean over an empty batch is 0. Half precision is computed in float32.

    Raises:
        TypeError: an argument is not a floating tensor, or the dtypes differ.
        ValueError: there are no positives or no negatives, the batches differ, a positive is not finite, a negative
            ``inf`` or NaN (looked for except under ``torch.func``, forward mode and ``torch.compile``), ``margin < 0``,
            an unknown word.

    Example:
        >>> positives, negatives = torch.tensor([0.75, 0.5]), torch.tensor([0.25, 0.5])
        >>> triplet_loss(positives, negatives, margin=0.5).item()
        0.5
        >>> triplet_loss(positives, negatives, margin=0.5, mining="all").item()
        0.25

    References:
        Schroff, Kalenichenko, Philbin (2015), FaceNet, equation 3. Hermans, Beyer, Leibe (2017), In defense of the
        triplet loss, equation 5.
    """
    _check(positives, negatives)
    check_scalar("margin", margin, zero=True)
    check_choice("mining", mining, _MINING)
    check_choice("reduction", reduction, _REDUCTIONS)
    if isinstance(margin, Tensor):
        margin = margin.to(positives.device)
    near, far = widen(negatives), widen(positives)
    if mining == "hard":
        losses = (near.amax(-1) - far.amin(-1) + margin).relu()
    else:
        losses = (near[..., None, :] - far[..., None] + margin).relu().mean((-2, -1))
    return reduced(losses, reduction).to(positives.dtype)


def nearest_neighbour_accuracy(
    features: Float[Tensor, "n d"],
    labels: Int[Tensor, "n"],
    k: int = 5,
    *,
    bank: tuple[Float[Tensor, "m d"], Int[Tensor, "m"]] | None = None,
    temperature: float = 1.0,
) -> float:
    r"""Return the share of samples whose label is that of their ``k`` nearest neighbours, by weighted vote.

    .. math:: \hat y = \arg\max_c \sum_{i \in k \text{ nearest}} e^{\cos_i / \tau} \, 1[y_i = c]

    Args:
        features: ``[n, d]``; zero vectors have cosine 0 with all.
        labels: ``[n]`` integers.
        k: neighbours that vote, 1 to their number.
        bank: features and labels among which neighbours are looked for; without it the other samples.
        temperature: ``tau > 0`` of the votes.

    Returns:
        The share, in [0, 1]. Ties of votes go to the smallest label.

    Raises:
        TypeError: features are not floating or labels not integers.
        ValueError: shapes do not fit, there are no samples, a feature is not finite, ``k`` or ``temperature`` is out of
            range.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
        >>> nearest_neighbour_accuracy(features, torch.tensor([0, 0, 1, 0]), 1)
        0.5

    References:
        Wu, Xiong, Yu, Lin (2018), Unsupervised feature learning via non-parametric instance discrimination, section
        3.4.
    """
    others, known = (features, labels) if bank is None else bank
    for name, x, y in (("features", features, labels), ("bank", others, known)):
        check_floating(name, x)
        if check_tensor("labels", y).is_floating_point() or y.is_complex() or y.dtype == torch.bool:
            raise TypeError(f"labels must be integers, got {y.dtype}")
        if x.ndim != 2 or y.shape != x.shape[:1] or not x.numel():
            raise ValueError(
                f"{name} must be [n >= 1, d >= 1] with labels [n], got {tuple(x.shape)} and {tuple(y.shape)}"
            )
        if not bool(torch.isfinite(x).all()):
            raise ValueError(f"{name} must be finite")
    if features.shape[1] != others.shape[1]:
        raise ValueError(f"bank must have {features.shape[1]} features, got {others.shape[1]}")
    check_integer("k", k, 1, len(others) - (bank is None))
    check_positive("temperature", temperature)
    with torch.no_grad():
        near, far = (_unit(x) for x in (features, others))
        classes, known = known.to(features.device).unique(return_inverse=True)
        right = 0
        for start in range(0, len(near), 1024):
            cosines = near[start : start + 1024] @ far.to(near).mT
            if bank is None:
                rows = torch.arange(len(cosines), device=near.device)
                cosines[rows, start + rows] = -torch.inf
            nearest = cosines.topk(k, dim=-1)
            weights = ((nearest.values - nearest.values[:, :1]) / temperature).exp()
            votes = torch.zeros(len(cosines), len(classes), dtype=weights.dtype, device=near.device)
            votes.scatter_add_(1, known[nearest.indices], weights)
            right += int((classes[votes.argmax(-1)] == labels[start : start + 1024]).sum())
    return right / len(features)


def _check(positives: Tensor, negatives: Tensor) -> None:
    check_groups(positives, negatives)
    if not is_transformed(positives) and not bool(torch.isfinite(positives).all()):
        raise ValueError("positives must be finite")
    if not is_transformed(negatives) and not bool((negatives < torch.inf).all()):
        raise ValueError("negatives must not be inf or NaN")


def _others(pairs: Tensor) -> Tensor:
    """Return ``[..., n, n - 1]`` of ``[..., n, n]``: without each one's comparison with itself."""
    n = pairs.shape[-1]
    # Without the first entry, every row of n + 1 entries ends with one of the diagonal.
    return pairs.flatten(-2)[..., 1:].unflatten(-1, (n - 1, n + 1))[..., :-1].flatten(-2).unflatten(-1, (n, n - 1))


def _unit(x: Tensor) -> Tensor:
    x = widen(x)
    # Scaled first: squares of large numbers overflow, those of small ones vanish.
    largest = x.detach().abs().amax(-1, keepdim=True)
    return torch.nn.functional.normalize(x / torch.where(largest > 0, largest, 1.0), dim=-1)
