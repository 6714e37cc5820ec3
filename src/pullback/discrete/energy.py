"""Explanations of one output of a structured predictor, by an energy that stands in for the predictor."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from pullback.core.checks import (
    check_broadcast,
    check_callable,
    check_floating,
    check_integer,
    check_positive,
    check_same_dtype,
)
from pullback.core.random import drawing_device
from pullback.core.shapes import Bool, Float, Tensor
from pullback.discrete.k_hot import k_hot_sample

__all__ = ["EnergyInterpreter", "Explanation", "StructuredEnergy", "margin_energy_loss", "mask_recovery"]


class StructuredEnergy(nn.Module):
    r"""An energy of inputs and binary outputs with a learned term for each output and each pair of outputs.

    ``E(x, y) = -sum_l s_l f_l(x) - sum_{l<m} A_lm s_l s_m`` with ``s = 2 y - 1`` and ``f`` a network with two hidden
    layers: the energy of a conditional random field with unary terms from ``x``. Low where ``y`` fits ``x``.

    Args:
        features: of ``x``, >= 1.
        outputs: of ``y``, >= 1.
        hidden: units of both hidden layers, >= 1.
        generator: of the initial weights; torch's default one if ``None``.

    Raises:
        ValueError: a size is out of range.

    Example:
        >>> energy = StructuredEnergy(5, 3, 8)
        >>> energy(torch.randn(4, 5), torch.ones(4, 3)).shape
        torch.Size([4])

    References:
        LeCun, Chopra, Hadsell, Ranzato, Huang (2006), A tutorial on energy-based learning. Belanger, McCallum (2016),
        Structured prediction energy networks, section 3.
    """

    def __init__(self, features: int, outputs: int, hidden: int, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        check_integer("features", features, 1)
        self.outputs = check_integer("outputs", outputs, 1)
        self.local = _network(features, check_integer("hidden", hidden, 1), outputs, generator)
        self.pairs = nn.Parameter(torch.zeros(outputs * (outputs - 1) // 2))

    def forward(self, x: Float[Tensor, "*#batch n"], y: Float[Tensor, "*#batch l"]) -> Float[Tensor, "*batch"]:
        """Return the energy of each row; batches broadcast.

        Raises:
            TypeError: ``x`` or ``y`` is not floating, or they have different dtypes.
            ValueError: the last dimensions are not the numbers of features and outputs, or batches do not broadcast.
        """
        first = next(self.local.parameters())
        if check_floating("x", x).shape[-1:] != first.shape[1:]:
            raise ValueError(f"x must have {first.shape[1]} features, got shape {tuple(x.shape)}")
        if check_floating("y", y).shape[-1:] != (self.outputs,):
            raise ValueError(f"y must have {self.outputs} outputs, got shape {tuple(y.shape)}")
        check_same_dtype(x=x, y=y)
        check_broadcast(x=x.shape[:-1], y=y.shape[:-1])
        s = 2 * y - 1
        upper = torch.triu_indices(self.outputs, self.outputs, 1, device=y.device)
        return -(s * self.local(x)).sum(-1) - (s[..., upper[0]] * s[..., upper[1]]) @ self.pairs


def margin_energy_loss(
    right: Float[Tensor, "*batch"], wrong: Float[Tensor, "*batch"], *, margin: float = 1.0
) -> Float[Tensor, ""]:
    r"""Return the mean hinge ``max(0, margin + E(right) - E(wrong))``: right outputs are to be lower by a margin.

    Args:
        right: ``[*batch]`` energies of the outputs that were seen.
        wrong: ``[*batch]`` energies of outputs that were changed.
        margin: > 0, in units of the energy.

    Returns:
        A number >= 0; 0 without energies.

    Raises:
        TypeError: an energy is not floating, or they have different dtypes.
        ValueError: shapes differ, or ``margin`` is out of range.

    Example:
        >>> margin_energy_loss(torch.tensor([0.0, 2.0]), torch.tensor([3.0, 2.5]))
        tensor(0.2500)

    References:
        Taskar, Guestrin, Koller (2003), Max-margin Markov networks. LeCun et al. (2006), equation 11.
    """
    check_same_dtype(right=check_floating("right", right), wrong=check_floating("wrong", wrong))
    check_positive("margin", margin)
    if right.shape != wrong.shape:
        raise ValueError(f"right and wrong must have one shape, got {tuple(right.shape)} and {tuple(wrong.shape)}")
    return torch.relu(margin + (right - wrong)).sum() / max(right.numel(), 1)


class Explanation(NamedTuple):
    """What an interpreter says of inputs.

    Attributes:
        mask: ``[batch, n]`` true for the ``k`` features that are kept.
        scores: ``[batch, n]`` larger for features that matter more.
    """

    mask: Bool[Tensor, "batch n"]
    scores: Float[Tensor, "batch n"]


class EnergyInterpreter(nn.Module):
    r"""Learn which ``k`` features decide one output of a black box that predicts several, seen as an energy.

    A network scores the features of each input; :func:`k_hot_sample` makes a relaxed mask ``m`` of the scores, and the
    black box predicts ``y`` from ``x`` and ``y'`` from the masked input ``x m``. Each step has two parts. The energy is
    taught by :func:`margin_energy_loss` that ``(x, y)`` and ``(x m, y')`` are lower than the same with the target
    exchanged, so that it stands in for the black box on masked inputs, and has the gradient that the box may lack. The
    interpreter descends ``softplus(E(x m, [y_t, y'_-t]) - E(x m, [1 - y_t, y'_-t]))``: the mask is to leave what makes
    the target's true value the likely one, beside the other outputs that the masked input gives.

    The difference ``E([y'_t, y'_-t]) - E([y_t, y'_-t])`` alone, without the exchanged value, has a gradient that
    raises the energy of what the box predicts, and ends in masks of irrelevant features.

    Features that reach the target through other outputs alone are found, too: the energy's local term of the target
    learns to read them from the masked input, whatever the other outputs say.

    Args:
        predict: the black box, from ``[batch, n]`` to ``[batch, outputs]`` in ``[0, 1]``; above 1/2 counts as 1. It is
            only evaluated: it needs no gradient.
        features: ``n >= 1``.
        outputs: of the black box, >= 1.
        target: the output ``t`` to explain.
        k: features to keep, from 1 to ``n``.
        hidden: units of both hidden layers of the interpreter and of the energy.
        lr: step size of Adam for the interpreter, > 0; the energy's is twice that.
        generator: of the initial weights and of the masks; torch's default one if ``None``.

    Attributes:
        optimizer, energy_optimizer: of the interpreter and of the energy; a checkpoint keeps them, too.

    Raises:
        TypeError: ``predict`` is not callable.
        ValueError: a number is out of range: more features are kept than there are, the target is no output.

    Example:
        >>> def predict(x):
        ...     return torch.stack([(x[:, 1] > 0).float(), (x[:, 3] > 0).float()], 1)
        >>> draw = torch.Generator().manual_seed(0)
        >>> interpreter = EnergyInterpreter(predict, 5, 2, target=0, k=1, generator=draw)
        >>> for _ in range(100):
        ...     values = interpreter.step(torch.randn(64, 5, generator=draw), temperature=0.5)
        >>> interpreter.explain(torch.randn(50, 5, generator=draw)).mask.float().mean(0).argmax().item()
        1

    References:
        Seyyedsalehi, Soleymani, Rabiee (2024), SOInter: a novel deep energy-based interpretation method for explaining
        structured output models.
    """

    def __init__(
        self,
        predict: Callable[[Tensor], Tensor],
        features: int,
        outputs: int,
        target: int,
        k: int,
        *,
        hidden: int = 64,
        lr: float = 1e-3,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_callable("predict", predict)
        check_integer("features", features, 1)
        check_integer("outputs", outputs, 1)
        self.target = check_integer("target", target, 0, outputs - 1)
        self.k = check_integer("k", k, 1, features)
        check_positive("lr", lr)
        self.predict, self.features, self.outputs, self.generator = predict, features, outputs, generator
        self.scorer = _network(features, check_integer("hidden", hidden, 1), features, generator)
        self.energy = StructuredEnergy(features, outputs, hidden, generator=generator)
        self.optimizer = torch.optim.Adam(self.scorer.parameters(), lr=lr)
        self.energy_optimizer = torch.optim.Adam(self.energy.parameters(), lr=2 * lr)

    def step(self, x: Float[Tensor, "batch n"], *, temperature: float, hard: bool = False) -> tuple[float, float]:
        """Take one step of the energy and one of the interpreter.

        Args:
            x: ``[batch, n]`` inputs.
            temperature: of the relaxed masks, > 0; lowered in the course of the training.
            hard: mask with zeros and ones, by the gradient of the relaxation: the box then sees what it is tested on.

        Returns:
            The loss of the energy and that of the interpreter.

        Raises:
            ValueError: ``x`` has another number of features, ``temperature`` is out of range, or the black box returns
                something else than ``[batch, outputs]``.
        """
        check_positive("temperature", temperature)
        scores = self.scorer(self._checked(x))
        mask = k_hot_sample(scores, self.k, temperature=temperature, hard=hard, generator=self.generator)
        masked, y = x * mask, self._decide(x)
        seen = self._decide(masked.detach())
        teaching = self._margin(masked.detach(), seen) + self._margin(x, y)
        self._descend(self.energy, self.energy_optimizer, teaching)
        true = seen.clone()
        true[:, self.target] = y[:, self.target]
        missing = nn.functional.softplus(self.energy(masked, true) - self.energy(masked, self._exchanged(true))).mean()
        self._descend(self.scorer, self.optimizer, missing)
        return float(teaching.detach()), float(missing.detach())

    @torch.no_grad()
    def explain(self, x: Float[Tensor, "batch n"]) -> Explanation:
        """Return the ``k`` features with the largest scores, and the scores.

        Raises:
            TypeError: ``x`` is not floating.
            ValueError: ``x`` has another number of features.
        """
        scores = self.scorer(self._checked(x))
        mask = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, scores.topk(self.k, -1).indices, True)
        return Explanation(mask, scores)

    def _checked(self, x: Tensor) -> Tensor:
        if check_floating("x", x).ndim != 2 or x.shape[1] != self.features:
            raise ValueError(f"x must have shape [batch, {self.features}], got {tuple(x.shape)}")
        return x

    def _decide(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.predict(x)
        if y.shape != (len(x), self.outputs):
            raise ValueError(f"predict must return shape {(len(x), self.outputs)}, got {tuple(y.shape)}")
        return (y > 0.5).to(x.dtype)

    def _exchanged(self, y: Tensor) -> Tensor:
        place = torch.arange(self.outputs, device=y.device) == self.target
        return torch.where(place, 1 - y, y)

    def _margin(self, x: Tensor, y: Tensor) -> Tensor:
        return margin_energy_loss(self.energy(x, y), self.energy(x, self._exchanged(y)))

    @staticmethod
    def _descend(module: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        parameters = list(module.parameters())
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        optimizer.step()


def mask_recovery(mask: Bool[Tensor, "*batch n"], truth: Bool[Tensor, "*#batch n"]) -> Float[Tensor, "*batch"]:
    r"""Return the share of the true features that a mask keeps: ``|mask and truth| / |truth|``.

    Args:
        mask: ``[*batch, n]`` kept features.
        truth: ``[*batch, n]``, or one row for all, at least one feature in each.

    Returns:
        ``[*batch]`` float32 in ``[0, 1]``.

    Raises:
        TypeError: an argument is not boolean.
        ValueError: shapes do not fit, or a row of ``truth`` is empty.

    Example:
        >>> mask_recovery(torch.tensor([[True, True, False], [False, True, False]]), torch.tensor([True, True, False]))
        tensor([1.0000, 0.5000])
    """
    for name, tensor in {"mask": mask, "truth": truth}.items():
        if tensor.dtype != torch.bool:
            raise TypeError(f"{name} must be boolean, got {tensor.dtype}")
    if (
        mask.ndim < 1
        or truth.shape[-1:] != mask.shape[-1:]
        or check_broadcast(mask=mask.shape, truth=truth.shape) != (mask.shape)
    ):
        raise ValueError(f"truth must have the shape {tuple(mask.shape)} of mask or one row, got {tuple(truth.shape)}")
    if not bool(truth.any(-1).all()):
        raise ValueError("truth must have a feature in each row, got a row without")
    return (mask & truth).sum(-1) / truth.sum(-1)


def _network(inputs: int, hidden: int, outputs: int, generator: torch.Generator | None) -> nn.Sequential:
    sizes = (inputs, hidden, hidden, outputs)
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    for layer in layers:
        bound = layer.in_features**-0.5
        for parameter in layer.parameters():
            device = drawing_device(generator, parameter)
            draws = torch.rand(parameter.shape, generator=generator, device=device).to(parameter)
            parameter.data.copy_(bound * (2 * draws - 1))
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
