"""Rationales: the tokens for which a model decides as it does, how they are extracted, trained and measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pullback.core.checks import (
    check_broadcast,
    check_callable,
    check_floating,
    check_positive,
    check_range,
    check_same_dtype,
    check_tensor,
)
from pullback.core.shapes import Bool, Float, Int
from pullback.core.transforms import can_look
from pullback.discrete.plackett_luce import PlackettLuce
from pullback.discrete.softness import widen
from pullback.discrete.subset import Subset

__all__ = [
    "RationaleLosses",
    "RationaleMetrics",
    "RationaleModel",
    "Rationales",
    "average_precision",
    "comprehensiveness",
    "comprehensiveness_loss",
    "normalized_relative_gain",
    "plausibility_loss",
    "rationale_losses",
    "rationale_metrics",
    "rationale_size",
    "sufficiency",
    "sufficiency_loss",
]

PERCENTS = (1.0, 5.0, 10.0, 20.0, 50.0)


class Rationales(NamedTuple):
    """What a model says with all tokens, without its rationales, and with nothing else; p sizes of rationales.

    Attributes:
        full: ``[*batch, classes]`` logits of all tokens.
        removed: ``[p, *batch, classes]`` logits without the rationale.
        kept: ``[p, *batch, classes]`` logits of the rationale alone.
        scores: ``[*batch, n]`` of the tokens; -inf where there is none.
        index: ``[p, *batch, k]`` the tokens of each rationale in the order in which they were drawn; -1 fills up.
    """

    full: Float[Tensor, "*batch classes"]
    removed: Float[Tensor, "p *batch classes"]
    kept: Float[Tensor, "p *batch classes"]
    scores: Float[Tensor, "*batch n"]
    index: Int[Tensor, "p *batch k"]  # type: ignore[assignment]


class RationaleLosses(NamedTuple):
    """The losses of rationales, one number a sample.

    Attributes:
        task: ``[*batch]`` cross-entropy of the labels with all tokens, in nats.
        faithful: ``[p, *batch]`` mean of :func:`comprehensiveness_loss` and :func:`sufficiency_loss`.
        log_prob: ``[p, *batch]`` logarithm of the probability of the drawn order, for :func:`score_function`.
    """

    task: Float[Tensor, "*batch"]
    faithful: Float[Tensor, "p *batch"]
    log_prob: Float[Tensor, "p *batch"]


class RationaleMetrics(NamedTuple):
    """How good rationales are, means over samples.

    Attributes:
        accuracy: of the task model with all tokens, from 0 to 1.
        comprehensiveness: :func:`comprehensiveness`; large is good.
        sufficiency: :func:`sufficiency`; small is good.
        average_precision: of the scores against the highlights, over samples that have some; NaN where none has.
        token_f1: of the tokens with a score above 0 against the highlights, over those samples; NaN where none has.
    """

    accuracy: float
    comprehensiveness: float
    sufficiency: float
    average_precision: float
    token_f1: float


class RationaleModel(nn.Module):
    r"""A task model and an extractor of rationales that is trained through the choice of the tokens.

    The extractor scores the tokens, ``select`` draws the rationale ``m`` of the best k, and the task model reads the
    tokens weighted by 1, by ``1 - m`` and by ``m``. Its losses (:func:`comprehensiveness_loss`,
    :func:`sufficiency_loss`) have a gradient in ``m``, and through the estimator of ``select`` in the scores.

    Args:
        task: takes tokens ``[*batch, n]`` and weights in [0, 1] ``[*batch, n]`` (0 where there is no token) to logits
            ``[*batch, classes]``; the weights must have a gradient.
        extractor: takes the same, all weights 1 where there is a token, to scores ``[*batch, n]``; it may share modules
            with ``task``.
        select: takes scores ``[*batch, n]`` and sizes ``[*batch]`` to a :class:`~pullback.discrete.Subset`, such as
            :func:`~pullback.discrete.subset_sample` with its options.

    Raises:
        TypeError: ``task`` or ``extractor`` is no module, or ``select`` cannot be called.

    Example:
        >>> from pullback.discrete import subset_sample
        >>> class Words(nn.Module):
        ...     def __init__(self, out):
        ...         super().__init__()
        ...         self.embedding, self.out = nn.Embedding(9, 4), nn.Linear(4, out)
        ...     def forward(self, tokens, weights):
        ...         return self.out(self.embedding(tokens) * weights[..., None])
        >>> task, scores = Words(2), Words(1)
        >>> task.register_forward_hook(lambda module, args, rows: rows.mean(-2)) and None
        >>> scores.register_forward_hook(lambda module, args, rows: rows[..., 0]) and None
        >>> model = RationaleModel(task, scores, lambda s, k: subset_sample(s, k, method="aimle"))
        >>> tokens = torch.tensor([[1, 2, 3, 4, 0], [5, 6, 0, 0, 0]])
        >>> model(tokens, tokens > 0, percents=(20, 50)).removed.shape
        torch.Size([2, 2, 2])

    References:
        Ghasemi Madani, Minervini (2023), REFER, section 3.
    """

    def __init__(self, task: nn.Module, extractor: nn.Module, select: Callable[[Tensor, Tensor], Subset]) -> None:
        super().__init__()
        for name, module in (("task", task), ("extractor", extractor)):
            if not isinstance(module, nn.Module):
                raise TypeError(f"{name} must be a module, got {type(module).__name__}")
        check_callable("select", select)
        self.task, self.extractor, self.select = task, extractor, select

    def scores(self, tokens: Int[Tensor, "*batch n"], present: Bool[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
        """Return the score of every token, -inf where there is none."""
        _check_present(present, tokens.shape)
        weights = present.to(torch.get_default_dtype())
        found = check_floating("scores of the extractor", self.extractor(tokens, weights))
        if found.shape != tokens.shape:
            raise ValueError(f"extractor must return scores {tuple(tokens.shape)}, got {tuple(found.shape)}")
        return found.masked_fill(~present, -torch.inf)

    def forward(
        self,
        tokens: Int[Tensor, "*batch n"],
        present: Bool[Tensor, "*batch n"],
        *,
        percents: Sequence[float] = PERCENTS,
    ) -> Rationales:
        """Read all tokens, all but each rationale, and each rationale alone.

        Args:
            tokens: ``[*batch, n]``.
            present: ``[*batch, n]`` where there is a token.
            percents: sizes of the rationales, in (0, 100] per cent of the tokens.

        Raises:
            TypeError: ``present`` holds no booleans.
            ValueError: a percent is out of range, a sample has no token, or the extractor returns another shape.
        """
        if not percents:
            raise ValueError("percents must not be empty")
        scores = self.scores(tokens, present)
        subsets = [self.select(scores, rationale_size(present, percent)) for percent in percents]
        everything = present.to(scores.dtype)
        masks = torch.stack([subset.mask for subset in subsets])
        weights = torch.cat([everything.unsqueeze(0), everything - masks, masks])
        logits = self.task(tokens.expand(weights.shape), weights)
        most = max(subset.index.shape[-1] for subset in subsets)
        index = [nn.functional.pad(s.index, (0, most - s.index.shape[-1]), value=-1) for s in subsets]
        full, removed, kept = logits.split([1, len(subsets), len(subsets)])
        return Rationales(full[0], removed, kept, scores, torch.stack(index))


def rationale_losses(
    found: Rationales, labels: Int[Tensor, "*batch"], *, margins: tuple[float, float] = (1.0, 0.1)
) -> RationaleLosses:
    r"""Return the losses that train a :class:`RationaleModel`, from cross-entropies of the labels.

    Args:
        found: what the model read.
        labels: ``[*batch]`` classes.
        margins: of :func:`comprehensiveness_loss` and of :func:`sufficiency_loss`, in nats.

    Returns:
        :class:`RationaleLosses`.

    Raises:
        TypeError: ``labels`` hold no integers.
        ValueError: ``labels`` have another shape, or a margin is out of range.

    Example:
        >>> logits = torch.tensor([[[2.0, 0.0]], [[0.0, 0.0]], [[2.0, 0.0]]])
        >>> found = Rationales(logits[0], logits[1:2], logits[2:], torch.zeros(1, 3), torch.tensor([[[1]]]))
        >>> losses = rationale_losses(found, torch.tensor([0]))
        >>> losses.task, losses.faithful, losses.log_prob
        (tensor([0.1269]), tensor([[0.2669]]), tensor([[-1.0986]]))

    References:
        Ghasemi Madani, Minervini (2023), REFER, section 3.
    """
    if check_tensor("labels", labels).dtype not in (torch.int64, torch.int32):
        raise TypeError(f"labels must hold integers, got {labels.dtype}")
    if labels.shape != found.full.shape[:-1]:
        raise ValueError(f"labels must have shape {tuple(found.full.shape[:-1])}, got {tuple(labels.shape)}")
    full, removed, kept = (_cross_entropy(logits, labels) for logits in (found.full, found.removed, found.kept))
    faithful = comprehensiveness_loss(full, removed, margins[0]) + sufficiency_loss(full, kept, margins[1])
    bounded = torch.where(found.scores > -torch.inf, found.scores, -1e4)  # what is not there comes last
    return RationaleLosses(full, faithful / 2, PlackettLuce(bounded).log_prob(found.index))


@torch.no_grad()
def rationale_metrics(
    task: Callable[[Tensor, Tensor], Tensor],
    tokens: Int[Tensor, "*batch n"],
    present: Bool[Tensor, "*batch n"],
    labels: Int[Tensor, "*batch"],
    scores: Float[Tensor, "*batch n"],
    highlights: Bool[Tensor, "*batch n"],
    *,
    percents: Sequence[float] = PERCENTS,
) -> RationaleMetrics:
    """Measure how faithful rationales are to a model, how plausible to people, and how good the model is.

    Args:
        task: takes tokens ``[*batch, n]`` and weights ``[*batch, n]`` to logits ``[*batch, classes]``.
        tokens: ``[*batch, n]``.
        present: ``[*batch, n]`` where there is a token.
        labels: ``[*batch]`` classes.
        scores: ``[*batch, n]`` of the tokens.
        highlights: ``[*batch, n]`` what people highlighted.
        percents: sizes of the rationales, in (0, 100] per cent of the tokens.

    Returns:
        :class:`RationaleMetrics`.

    Raises:
        TypeError: ``task`` cannot be called, ``scores`` is no floating tensor, or the masks hold no booleans.
        ValueError: the shapes differ, a percent is out of range, or a sample has no token.

    Example:
        >>> tokens, highlights = torch.tensor([[3, 1, 0, 0]]), torch.tensor([[True, False, False, False]])
        >>> task = lambda tokens, weights: (weights * tokens).sum(-1, keepdim=True) * torch.tensor([1.0, -1.0])
        >>> words = (tokens, tokens > 0, torch.tensor([0]))
        >>> rationale_metrics(task, *words, torch.tensor([[2.0, -1.0, 0.0, 0.0]]), highlights).average_precision
        1.0

    References:
        DeYoung et al. (2020), ERASER: a benchmark to evaluate rationalized NLP models, section 4.
    """
    check_callable("task", task)
    _check_tokens_of_interest("highlights", highlights, scores, present)
    predicted = task(tokens, present.to(scores.dtype)).argmax(-1)

    def probability(weights: Tensor) -> Tensor:
        return task(tokens, weights).softmax(-1).gather(-1, predicted.unsqueeze(-1)).squeeze(-1)

    some = highlights.any(-1)
    right, marked = highlights[some], (scores[some] > 0) & present[some]
    precision = average_precision(scores, highlights, present)[some].mean() if len(right) else torch.tensor(torch.nan)
    return RationaleMetrics(
        accuracy=float((predicted == labels).double().mean()),
        comprehensiveness=float(comprehensiveness(probability, scores, present, percents).mean()),
        sufficiency=float(sufficiency(probability, scores, present, percents).mean()),
        average_precision=float(precision),
        token_f1=float(2 * (right & marked).sum() / (right.sum() + marked.sum())),
    )


def rationale_size(present: Bool[Tensor, "*batch n"], percent: float) -> Int[Tensor, "*batch"]:
    """Return how many tokens a rationale has: ``max(1, round(percent / 100 * tokens))``.

    Args:
        present: ``[*batch, n]`` where there is a token.
        percent: in (0, 100].

    Raises:
        TypeError: ``present`` holds no booleans.
        ValueError: ``percent`` is out of range, or a sample has no token.

    Example:
        >>> rationale_size(torch.tensor([[True] * 8, [True] + [False] * 7]), 20)
        tensor([2, 1])

    References:
        DeYoung et al. (2020), ERASER, section 4.
    """
    check_positive("percent", percent)
    check_range("percent", percent, 0.0, 100.0)
    _check_present(present, present.shape if isinstance(present, Tensor) else ())
    return (present.sum(-1) * percent / 100).round().clamp(min=1).long()


def comprehensiveness_loss(
    full: Float[Tensor, "..."], removed: Float[Tensor, "..."], margin: float = 1.0
) -> Float[Tensor, "..."]:
    r"""Return ``max(0, full - removed + margin)``: without its rationale a sample should be harder, by a margin.

    Args:
        full: losses of samples with all tokens, such as cross-entropies in nats.
        removed: losses without the rationale, broadcast against ``full``.
        margin: finite, >= 0, in the unit of the losses.

    Raises:
        TypeError: an argument is no floating tensor, or the dtypes differ.
        ValueError: ``margin`` is out of range, or the shapes do not broadcast.

    Example:
        >>> comprehensiveness_loss(torch.tensor([0.25, 0.25]), torch.tensor([0.5, 3.0]))
        tensor([0.7500, 0.0000])

    References:
        Chan et al. (2022), UNIREX, section 4.2.
    """
    _check_losses(margin, full=full, removed=removed)
    return (full - removed + margin).relu()


def sufficiency_loss(
    full: Float[Tensor, "..."], kept: Float[Tensor, "..."], margin: float = 0.1
) -> Float[Tensor, "..."]:
    r"""Return ``max(0, kept - full + margin)``: with its rationale alone a sample should be no harder, by a margin.

    Args:
        full: losses of samples with all tokens, such as cross-entropies in nats.
        kept: losses of the rationale alone, broadcast against ``full``.
        margin: finite, >= 0, in the unit of the losses.

    Raises:
        TypeError: an argument is no floating tensor, or the dtypes differ.
        ValueError: ``margin`` is out of range, or the shapes do not broadcast.

    Example:
        >>> sufficiency_loss(torch.tensor([0.5, 0.5]), torch.tensor([0.25, 3.0]), margin=0.5)
        tensor([0.2500, 3.0000])

    References:
        Chan et al. (2022), UNIREX, section 4.2.
    """
    _check_losses(margin, full=full, kept=kept)
    return (kept - full + margin).relu()


def plausibility_loss(
    scores: Float[Tensor, "*batch n"], highlights: Bool[Tensor, "*batch n"], present: Bool[Tensor, "*batch n"]
) -> Float[Tensor, ""]:
    r"""Return the mean binary cross-entropy of scores against what people highlighted, highlights weighted up.

    Over the tokens of the samples that have highlights, ``h`` of ``t`` in all:

    .. math:: \frac{1}{t} \sum_i \Bigl( \frac{t - h}{h} y_i \log(1 + e^{-s_i}) + (1 - y_i) \log(1 + e^{s_i}) \Bigr)

    Args:
        scores: ``[*batch, n]``; those where there is no token do not count.
        highlights: ``[*batch, n]``; a sample without any does not count.
        present: ``[*batch, n]`` where there is a token.

    Returns:
        A number; 0 where no sample has highlights.

    Raises:
        TypeError: ``scores`` is no floating tensor, or the others hold no booleans.
        ValueError: the shapes differ, a sample has no token, or one is highlighted where there is none.

    Example:
        >>> present = torch.ones(2, 4, dtype=torch.bool)
        >>> highlights = torch.tensor([[True, False, False, False], [False] * 4])
        >>> plausibility_loss(torch.zeros(2, 4), highlights, present)  # 2 (3/4) log 2
        tensor(1.0397)

    References:
        Ghasemi Madani, Minervini (2023), REFER, section 3.3. Chan et al. (2022), UNIREX, section 4.3.
    """
    _check_tokens_of_interest("highlights", highlights, scores, present)
    counted = present & highlights.any(-1, keepdim=True)
    safe = torch.where(counted, widen(scores), 0.0)
    tokens, highlighted = counted.sum(), highlights.sum()
    weight = (tokens - highlighted) / highlighted.clamp(min=1)
    terms = torch.where(highlights, weight * nn.functional.softplus(-safe), nn.functional.softplus(safe))
    return (torch.where(counted, terms, 0.0).sum() / tokens.clamp(min=1)).to(scores.dtype)


@torch.no_grad()
def comprehensiveness(
    probability: Callable[[Tensor], Tensor],
    scores: Float[Tensor, "*batch n"],
    present: Bool[Tensor, "*batch n"],
    percents: Sequence[float] = PERCENTS,
) -> Float[Tensor, "*batch"]:
    r"""Measure how much a model needs its rationales: the area over the curve of the probability without them.

    .. math:: \frac{1}{P + 1} \sum_{p} \bigl( f(\mathrm{all}) - f(\mathrm{all} \setminus \mathrm{top}_p) \bigr)

    Args:
        probability: takes weights ``[*batch, n]``, 1 for the tokens that are read, to the probability ``[*batch]`` of
            the class that the model predicts with all tokens.
        scores: ``[*batch, n]`` of the tokens, by which the rationales are taken.
        present: ``[*batch, n]`` where there is a token.
        percents: the P sizes of rationales, in (0, 100].

    Returns:
        ``[*batch]`` from -1 to 1; large where the rationales are comprehensive.

    Raises:
        TypeError: ``probability`` cannot be called or returns no floating tensor, ``scores`` is no floating tensor, or
            ``present`` holds no booleans.
        ValueError: a percent is out of range, a shape does not fit, or a sample has no token.

    Example:
        >>> f = lambda weights: (weights * torch.tensor([0.5, 0.25, 0.0, 0.0])).sum(-1)
        >>> present = torch.ones(4, dtype=torch.bool)
        >>> comprehensiveness(f, torch.tensor([4.0, 3.0, 2.0, 1.0]), present, percents=(25, 50))
        tensor(0.4167)

    References:
        DeYoung et al. (2020), ERASER: a benchmark to evaluate rationalized NLP models, section 4.
    """
    return _area(probability, scores, present, percents, removed=True)


@torch.no_grad()
def sufficiency(
    probability: Callable[[Tensor], Tensor],
    scores: Float[Tensor, "*batch n"],
    present: Bool[Tensor, "*batch n"],
    percents: Sequence[float] = PERCENTS,
) -> Float[Tensor, "*batch"]:
    r"""Measure what a model loses with nothing but its rationales: the area over the curve of the probability.

    .. math:: \frac{1}{P + 1} \sum_{p} \bigl( f(\mathrm{all}) - f(\mathrm{top}_p) \bigr)

    Args:
        probability: takes weights ``[*batch, n]``, 1 for the tokens that are read, to the probability ``[*batch]`` of
            the class that the model predicts with all tokens.
        scores: ``[*batch, n]`` of the tokens, by which the rationales are taken.
        present: ``[*batch, n]`` where there is a token.
        percents: the P sizes of rationales, in (0, 100].

    Returns:
        ``[*batch]`` from -1 to 1; small where the rationales are sufficient.

    Raises:
        TypeError: ``probability`` cannot be called or returns no floating tensor, ``scores`` is no floating tensor, or
            ``present`` holds no booleans.
        ValueError: a percent is out of range, a shape does not fit, or a sample has no token.

    Example:
        >>> f = lambda weights: (weights * torch.tensor([0.5, 0.25, 0.0, 0.0])).sum(-1)
        >>> present = torch.ones(4, dtype=torch.bool)
        >>> sufficiency(f, torch.tensor([4.0, 3.0, 2.0, 1.0]), present, percents=(25, 50))
        tensor(0.0833)

    References:
        DeYoung et al. (2020), ERASER: a benchmark to evaluate rationalized NLP models, section 4.
    """
    return _area(probability, scores, present, percents, removed=False)


@torch.no_grad()
def average_precision(
    scores: Float[Tensor, "*batch n"], relevant: Bool[Tensor, "*batch n"], present: Bool[Tensor, "*batch n"]
) -> Float[Tensor, "*batch"]:
    r"""Measure how far up the relevant tokens stand: the area under the curve of precision against recall.

    The mean over the relevant tokens i of the precision at their score, equal scores counted together:

    .. math:: \frac{|\{j \text{ relevant}: s_j \ge s_i\}|}{|\{j: s_j \ge s_i\}|}

    Args:
        scores: ``[*batch, n]`` of the tokens.
        relevant: ``[*batch, n]``, such as what people highlighted.
        present: ``[*batch, n]`` where there is a token.

    Returns:
        ``[*batch]`` from above 0 to 1; NaN where nothing is relevant.

    Raises:
        TypeError: ``scores`` is no floating tensor, or the others hold no booleans.
        ValueError: the shapes differ, a sample has no token, or one is relevant where there is none.

    Example:
        >>> relevant = torch.tensor([True, False, True, False])
        >>> average_precision(torch.tensor([3.0, 2.0, 1.0, 0.0]), relevant, torch.ones(4, dtype=torch.bool))
        tensor(0.8333)

    References:
        DeYoung et al. (2020), ERASER, section 4, for its use on rationales.
    """
    _check_tokens_of_interest("relevant", relevant, scores, present)
    above = (scores.unsqueeze(-2) >= scores.unsqueeze(-1)) & present.unsqueeze(-2)
    found = (above & relevant.unsqueeze(-2)).sum(-1).to(widen(scores).dtype)
    precision = found / above.sum(-1).clamp(min=1)
    return ((precision * relevant).sum(-1) / relevant.sum(-1)).to(scores.dtype)


def normalized_relative_gain(
    values: Float[Tensor, "methods metrics"], reverse: Sequence[int] = ()
) -> Float[Tensor, "methods metrics"]:
    r"""Put every metric on the scale from the worst to the best of the methods that are compared.

    .. math:: \frac{v - \min}{\max - \min}, \qquad \text{reversed: } \frac{\max - v}{\max - \min}

    Args:
        values: ``[methods, metrics]`` finite.
        reverse: the metrics of which less is better.

    Returns:
        ``[methods, metrics]`` in [0, 1]; 0 where all methods are equal.

    Raises:
        TypeError: ``values`` is no floating tensor.
        ValueError: ``values`` has other dimensions, or ``reverse`` names no metric.

    Example:
        >>> normalized_relative_gain(torch.tensor([[1.0, 5.0], [2.0, 1.0], [3.0, 2.0]]), reverse=[1])
        tensor([[0.0000, 0.0000],
                [0.5000, 1.0000],
                [1.0000, 0.7500]])

    References:
        Chan et al. (2022), UNIREX: a unified learning framework for language model rationale extraction, section 5.1.
    """
    if check_floating("values", values).ndim != 2 or not len(values):
        raise ValueError(f"values must be [methods, metrics] of at least one method, got {tuple(values.shape)}")
    if any(not 0 <= metric < values.shape[1] for metric in reverse):
        raise ValueError(f"reverse must name metrics in 0..{values.shape[1] - 1}, got {list(reverse)}")
    less = torch.tensor([metric in reverse for metric in range(values.shape[1])], device=values.device)
    wide = widen(values)
    signed = torch.where(less, -wide, wide)
    worst, best = signed.amin(0), signed.amax(0)
    differ = best > worst
    return torch.where(differ, (signed - worst) / torch.where(differ, best - worst, 1.0), 0.0).to(values.dtype)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return one number a sample; labels are repeated over what stands before their batch."""
    index = labels.long().expand(logits.shape[:-1]).unsqueeze(-1)
    return -logits.log_softmax(-1).gather(-1, index).squeeze(-1)


def _check_losses(margin: float, **losses: Tensor) -> None:
    check_positive("margin", margin, zero=True)
    for name, loss in losses.items():
        check_floating(name, loss)
    check_same_dtype(**losses)
    check_broadcast(**{name: loss.shape for name, loss in losses.items()})


def _area(
    probability: Callable[[Tensor], Tensor], scores: Tensor, present: Tensor, percents: Sequence[float], removed: bool
) -> Tensor:
    check_callable("probability", probability)
    check_floating("scores", scores)
    _check_present(present, scores.shape)
    if not percents:
        raise ValueError("percents must not be empty")
    rank = scores.masked_fill(~present, -torch.inf).argsort(-1, descending=True).argsort(-1)
    weights = present.to(scores.dtype)
    full = check_floating("result of probability", probability(weights))
    if full.shape != scores.shape[:-1]:
        raise ValueError(f"probability must return {tuple(scores.shape[:-1])}, got {tuple(full.shape)}")
    total = torch.zeros_like(full)
    for percent in percents:
        top = (rank < rationale_size(present, percent).unsqueeze(-1)).to(scores.dtype)
        total = total + full - probability(weights * (1 - top) if removed else weights * top)
    return total / (len(percents) + 1)


def _check_tokens_of_interest(name: str, tokens: Any, scores: Any, present: Any) -> None:
    check_floating("scores", scores)
    _check_present(present, scores.shape)
    if check_tensor(name, tokens).dtype != torch.bool:
        raise TypeError(f"{name} must hold booleans, got {tokens.dtype}")
    if tokens.shape != scores.shape:
        raise ValueError(f"{name} must have shape {tuple(scores.shape)}, got {tuple(tokens.shape)}")
    if can_look(tokens) and bool((tokens & ~present).any()):
        raise ValueError(f"{name} must be where tokens are present")


def _check_present(present: Any, shape: Sequence[int]) -> None:
    if check_tensor("present", present).dtype != torch.bool:
        raise TypeError(f"present must hold booleans, got {present.dtype}")
    if tuple(present.shape) != tuple(shape):
        raise ValueError(f"present must have shape {tuple(shape)}, got {tuple(present.shape)}")
    if not present.ndim or (can_look(present) and not bool(present.any(-1).all())):
        raise ValueError("present must have at least one token in each sample")
