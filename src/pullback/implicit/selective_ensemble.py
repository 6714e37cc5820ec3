"""Ensembles that choose, for each input, which of their members answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from pullback.core.checks import check_floating, check_integer, check_positive
from pullback.core.shapes import Float, Tensor
from pullback.core.transforms import can_look
from pullback.implicit.perturbed import knapsack_layer

__all__ = ["Selected", "SelectiveEnsemble", "average_vote", "majority_vote"]


class Selected(NamedTuple):
    """The answer of chosen members.

    Attributes:
        logits: ``[*batch, classes]`` sum of the logits of those chosen.
        chosen: ``[*batch, n]`` how much each is chosen, of sum k: zeros and ones in evaluation mode.
    """

    logits: Float[Tensor, "*batch classes"]
    chosen: Float[Tensor, "*batch n"]


class SelectiveEnsemble(nn.Module):
    r"""Members of which a selector, trained through the choice, picks k for each input.

    .. math:: \text{logits}(x) = \sum_i K(g(x))_i\, h_i(x)

    with the members' logits :math:`h_i`, the selector's scores :math:`g` and K, which marks the k best of these
    (:func:`~pullback.implicit.knapsack_layer`): perturbed while training, so that the selector gets a gradient, exactly
    k in evaluation mode. Members keep their weights: they get no gradient.

    Args:
        members: n modules from inputs to logits ``[*batch, classes]``.
        selector: module from inputs to scores ``[*batch, n]``.
        k: in 1..n.
        temperature: > 0, of the perturbation, in units of the scores.
        samples: perturbations a training step.
        generator: of the perturbations.

    Raises:
        TypeError: a member or the selector is no module, ``k`` or ``samples`` no integer.
        ValueError: there is no member, ``k`` exceeds their number, ``temperature`` or ``samples`` is out of range.

    Example:
        >>> def member(a, b):
        ...     layer = nn.Linear(1, 2)
        ...     layer.weight.data, layer.bias.data = torch.zeros(2, 1), torch.tensor([a, b])
        ...     return layer
        >>> selector = nn.Linear(1, 2)
        >>> selector.weight.data, selector.bias.data = torch.tensor([[1.0], [-1.0]]), torch.zeros(2)
        >>> ensemble = SelectiveEnsemble([member(3.0, 0.0), member(0.0, 2.0)], selector, 1).eval()
        >>> ensemble(torch.tensor([[5.0], [-5.0]])).logits.tolist()
        [[3.0, 0.0], [0.0, 2.0]]

    References:
        Kotary, Di Vito, Fioretto (2023), Differentiable model selection for ensemble learning, section 4.
    """

    def __init__(
        self,
        members: Sequence[nn.Module],
        selector: nn.Module,
        k: int,
        *,
        temperature: float = 1.0,
        samples: int = 32,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        for name, module in (*((f"members[{i}]", m) for i, m in enumerate(members)), ("selector", selector)):
            if not isinstance(module, nn.Module):
                raise TypeError(f"{name} must be a module, got {type(module).__name__}")
        if not len(members):
            raise ValueError("members must hold at least one module")
        self.k = check_integer("k", k, 1, len(members))
        check_positive("temperature", temperature)
        self.temperature, self.samples = temperature, check_integer("samples", samples, 1)
        self.members, self.selector = nn.ModuleList(members), selector
        self.generator = generator

    def answers(self, x: Tensor) -> Float[Tensor, "*batch n classes"]:
        """Return the logits of all members, without a gradient; they may be kept and given to :meth:`forward`.

        Raises:
            ValueError: members have different numbers of classes.
        """
        with torch.no_grad():
            answers = [check_floating(f"members[{i}](x)", member(x)) for i, member in enumerate(self.members)]
        if len({tuple(answer.shape) for answer in answers}) > 1:
            shapes = ", ".join(str(tuple(answer.shape)) for answer in answers)
            raise ValueError(f"members must return logits of one shape, got {shapes}")
        return torch.stack(answers, -2)

    def forward(self, x: Tensor, answers: Float[Tensor, "*batch n classes"] | None = None) -> Selected:
        """Choose members for each input and add their logits.

        Args:
            x: inputs of the selector and the members.
            answers: those of :meth:`answers` for ``x``, where they are known already.

        Returns:
            :class:`Selected`.

        Raises:
            ValueError: shapes of scores, or of answers, do not fit.
        """
        scores, n = check_floating("selector(x)", self.selector(x)), len(self.members)
        if not scores.ndim or scores.shape[-1] != n:
            raise ValueError(f"selector must return one score for each of {n} members, got {tuple(scores.shape)}")
        answers = self.answers(x) if answers is None else answers
        if check_floating("answers", answers).ndim != scores.ndim + 1 or answers.shape[:-1] != scores.shape:
            raise ValueError(f"answers must be {(*scores.shape, 'classes')}, got {tuple(answers.shape)}")
        temperature = self.temperature if self.training else 0.0
        chosen = knapsack_layer(scores, self.k, temperature=temperature, samples=self.samples, generator=self.generator)
        return Selected((chosen.unsqueeze(-1) * answers).sum(-2), chosen)


def majority_vote(
    logits: Float[Tensor, "*batch n classes"], weights: Float[Tensor, "*#batch n"] | None = None
) -> Float[Tensor, "*batch classes"]:
    """Return the share of members whose best class each one is; a weight counts a member so often.

    Args:
        logits: ``[*batch, n, classes]`` of the members, or their probabilities.
        weights: ``[*batch, n]`` or ``[n]``, >= 0, not all 0; equal by default.

    Returns:
        ``[*batch, classes]`` of sum one; no gradient reaches the logits, those of the weights are right.

    Raises:
        TypeError: an argument is no floating tensor.
        ValueError: there is no member or no class; weights have another shape, are negative or all 0.

    Example:
        >>> majority_vote(torch.tensor([[0.0, 9.0], [1.0, 0.0], [2.0, 1.0], [3.0, 1.0]]))
        tensor([0.7500, 0.2500])
    """
    _check_answers(logits)
    votes = torch.zeros_like(logits).scatter(-1, logits.detach().argmax(-1, keepdim=True), 1.0)
    return _mean(votes, weights)


def average_vote(
    logits: Float[Tensor, "*batch n classes"], weights: Float[Tensor, "*#batch n"] | None = None
) -> Float[Tensor, "*batch classes"]:
    """Return the mean of the members' probabilities ``softmax(logits)``, weighted if wanted.

    Args:
        logits: ``[*batch, n, classes]`` of the members.
        weights: ``[*batch, n]`` or ``[n]``, >= 0, not all 0; equal by default.

    Returns:
        ``[*batch, classes]`` of sum one.

    Raises:
        TypeError: an argument is no floating tensor.
        ValueError: there is no member or no class; weights have another shape, are negative or all 0.

    Example:
        >>> average_vote(torch.tensor([[0.0, 100.0], [100.0, 0.0]]), torch.tensor([3.0, 1.0]))
        tensor([0.2500, 0.7500])
    """
    _check_answers(logits)
    return _mean(logits.softmax(-1), weights)


def _check_answers(logits: Tensor) -> None:
    if check_floating("logits", logits).ndim < 2 or not logits.shape[-1] or not logits.shape[-2]:
        raise ValueError(f"logits must be [*, members, classes] with at least one of each, got {tuple(logits.shape)}")


def _mean(values: Tensor, weights: Tensor | None) -> Tensor:
    if weights is None:
        return values.mean(-2)
    shape, count = values.shape[:-1], check_floating("weights", weights)
    if not count.ndim or count.shape not in (shape, shape[-1:]):
        raise ValueError(f"weights must be {tuple(shape)} or {tuple(shape[-1:])}, got {tuple(count.shape)}")
    if can_look(count) and not bool((count >= 0).all() & (count.sum(-1) > 0).all() & count.isfinite().all()):
        raise ValueError("weights must be finite and >= 0, and not all 0")
    largest = count.detach().amax(-1, keepdim=True)  # so that their sum does not overflow
    share = count / largest / (count / largest).sum(-1, keepdim=True)
    return (share.unsqueeze(-1) * values).sum(-2)
