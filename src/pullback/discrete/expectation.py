"""The expectation of a function of categorical variables: its gradient exactly, by enumeration, and estimated."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pullback.core.checks import check_callable, check_choice, check_floating, check_integer, check_range, check_scalar
from pullback.core.shapes import Float, Int, Scalar, Tensor
from pullback.discrete.estimators import CATEGORICAL_METHODS, categorical
from pullback.discrete.sampling import check_outcome, check_rows, draw, gumbel_softmax
from pullback.discrete.score_function import score_function
from pullback.discrete.softness import widen

__all__ = [
    "ESTIMATORS",
    "RunningBaseline",
    "all_outcomes",
    "exact_categorical_gradient",
    "expectation",
    "log_probability",
]

ESTIMATORS = (*CATEGORICAL_METHODS, "gumbel_softmax", "score_function", "leave_one_out", "muprop", "exact")
"""The estimators of :func:`expectation`."""

MOST_OUTCOMES = 100_000
"""So many outcomes are enumerated at most."""


def expectation(
    f: Callable[[Tensor], Tensor],
    logits: Float[Tensor, "*batch_variables n"],
    *,
    method: str = "reinmax",
    temperature: Scalar = 1.0,
    samples: int = 1,
    control: Scalar = 0.0,
    variables: int | None = None,
    generator: torch.Generator | None = None,
    outcome: Int[Tensor, "samples *batch_variables"] | None = None,
) -> Float[Tensor, "*batch"]:
    r"""Estimate ``E f(D)`` over one-hot draws ``D ~ softmax(logits)``; ``method`` is the estimator of its gradient.

    ``gumbel``, ``straight_through``, ``reinmax``, ``perturbed``, ``imle`` take ``f`` at exact draws, and its derivative
    reaches the logits as :func:`categorical` says: little variance, unbiased for simple functions only. Besides:

    ==================  ==========================================================================================
    ``gumbel_softmax``  ``f`` at relaxed draws: the gradient of another, smooth expectation
    ``score_function``  the reward less ``control`` times the derivative of the log probability: unbiased
    ``leave_one_out``   the same with the mean of the other draws as baseline: unbiased, from 2 samples on
    ``muprop``          the same with the linearisation of ``f`` at the mean of ``D`` as control: unbiased
    ``exact``           the sum over all outcomes: no variance; ``n`` to the number of variables evaluations
    ==================  ==========================================================================================

    Gradients of what ``f`` itself depends on (a decoder's weights) flow in every method.

    Args:
        f: maps draws ``[samples, *batch, *variables, n]`` to values ``[samples, *batch]``: what its result has not as
            dimensions are the variables of one draw.
        logits: ``[*batch, *variables, n]`` unnormalised log probabilities of independent variables.
        method: one of ``ESTIMATORS``.
        temperature: > 0 of the pathwise estimators; the others do not use it.
        samples: draws per element of the batch, >= 1; ``"exact"`` does not use it.
        control: subtracted from the reward of ``"score_function"``; what was known before the draw, such as a running
            mean: a number or a tensor without dimensions.
        variables: how many dimensions of ``logits``, before the classes, are variables of one draw. Only ``"exact"``
            must know it beforehand, and calls ``f`` once more to find out where it is ``None``.
        generator: torch's default one if ``None``.
        outcome: ``[samples, *batch, *variables]`` the classes that were drawn, in place of a draw and of ``samples``.

    Returns:
        ``[*batch]`` the mean of ``f`` over the samples, with the estimator's gradient.

    Raises:
        TypeError: ``f`` is not callable or returns no floating tensor, ``logits`` is not floating.
        ValueError: ``method`` is unknown, ``temperature`` or ``samples`` is out of range, a row of logits is no
            distribution, the result of ``f`` has no shape of the draws, or too many outcomes would be enumerated.

    Example:
        >>> logits = torch.zeros(3, requires_grad=True)
        >>> f = lambda d: (d * torch.tensor([1.0, 2.0, 6.0])).sum(-1)
        >>> expectation(f, logits, method="exact")
        tensor(3.0000, grad_fn=<SumBackward1>)
        >>> value = expectation(f, logits, method="reinmax", samples=4, generator=torch.Generator().manual_seed(0))
        >>> torch.autograd.grad(value, logits)[0].sum().abs().item() < 1e-6
        True

    References:
        See :func:`categorical`, :func:`gumbel_softmax`, :func:`score_function`.
    """
    check_callable("f", f)
    check_choice("method", method, ESTIMATORS)
    check_scalar("temperature", temperature, zero=True)
    if check_floating("logits", logits).ndim == 0:
        raise ValueError("logits must have a dimension of classes, got shape ()")
    check_rows("logits", logits, -1)
    if method == "exact":
        if outcome is not None:
            raise ValueError("outcome must be None for method 'exact', which takes all")
        weights, values = _enumerate(f, logits, variables)
        return (weights * values).sum(0)
    count = check_integer("samples", samples, 1) if outcome is None else len(outcome)
    if method == "leave_one_out" and count < 2:
        raise ValueError(f"samples must be at least 2 for method 'leave_one_out', got {count}")
    many = logits.expand(count, *logits.shape)
    if method in CATEGORICAL_METHODS:
        drawn = categorical(many, method=method, temperature=temperature, generator=generator, outcome=outcome)
        return _values(f, drawn).mean(0)
    if method == "gumbel_softmax":
        return _values(f, gumbel_softmax(many, temperature=temperature, generator=generator, outcome=outcome)).mean(0)
    if outcome is None:
        onehot = draw(torch.softmax(widen(many.detach()), -1), -1, generator)
    else:
        onehot = check_outcome(outcome, many, logits.ndim)
    onehot = onehot.to(logits.dtype)
    reward = _values(f, onehot)
    log_prob = log_probability(many, onehot, reward.ndim)
    if method == "leave_one_out":
        return score_function(log_prob, reward, baseline="leave_one_out").mean(0)
    if method == "score_function":
        known = torch.as_tensor(control).to(reward).expand(reward.shape)
        return score_function(log_prob, reward, baseline="control", control=known).mean(0)
    linear, expected = _linearised(f, many, onehot, reward)
    return score_function(log_prob, reward, baseline="control", control=linear, expected=expected).mean(0)


class RunningBaseline(nn.Module):
    """The score function with a running mean of the values as baseline: an estimator with the signature of
    :func:`expectation`.

    Each call in training mode moves the mean, ``mean <- mean + (1 - momentum) (value - mean)``, after it was used. The
    mean is a buffer: it is saved with the network that has the estimator as an attribute.

    Args:
        start: the mean before the first call, near the value to expect.
        momentum: in ``[0, 1)``.

    Raises:
        ValueError: ``momentum`` is out of range, or ``start`` is not finite.

    Example:
        >>> estimator = RunningBaseline(momentum=0.5)
        >>> estimator(lambda d: d.sum(-1) + 3, torch.zeros(2), generator=torch.Generator().manual_seed(0))
        tensor(4.)
        >>> estimator.mean
        tensor(2.)

    References:
        Williams (1992), Simple statistical gradient-following algorithms, section 4.
    """

    mean: Tensor

    def __init__(self, start: float = 0.0, *, momentum: float = 0.9) -> None:
        super().__init__()
        check_range("momentum", momentum, 0.0, 1.0)
        if momentum == 1 or not math.isfinite(start):
            raise ValueError(f"start must be finite and momentum below 1, got {start} and {momentum}")
        self.momentum = momentum
        self.register_buffer("mean", torch.tensor(float(start)))

    def forward(
        self,
        f: Callable[[Tensor], Tensor],
        logits: Float[Tensor, "*batch_variables n"],
        *,
        samples: int = 1,
        generator: torch.Generator | None = None,
        outcome: Int[Tensor, "samples *batch_variables"] | None = None,
    ) -> Float[Tensor, "*batch"]:
        """Return the estimate, as :func:`expectation` does."""
        known = self.mean.clone()  # the mean moves before the backward pass
        options: dict[str, Any] = {"samples": samples, "generator": generator, "outcome": outcome}
        value = expectation(f, logits, method="score_function", control=known, **options)
        if self.training:
            self.mean.lerp_(value.detach().mean().to(self.mean), 1 - self.momentum)
        return value


def exact_categorical_gradient(
    f: Callable[[Tensor], Tensor], logits: Float[Tensor, "*batch_variables n"], *, variables: int | None = None
) -> Float[Tensor, "*batch_variables n"]:
    r"""Return the gradient of ``E f(D)`` with respect to the logits, by enumerating every outcome.

    :math:`\nabla_{s,c} = \sum_D p(D)\,(f(D) - E f)\,D_{s,c}`; of one variable, ``p_c (f(e_c) - E f)``.

    Args:
        f: maps draws ``[m, *batch, *variables, n]`` to values ``[m, *batch]``, as in :func:`expectation`; needs no
            derivative.
        logits: ``[*batch, *variables, n]``.
        variables: as in :func:`expectation`.

    Returns:
        The shape of ``logits``; differentiable. A class of probability 0 has gradient 0, whatever ``f`` is there.

    Raises:
        TypeError: ``f`` is not callable or returns no floating tensor, ``logits`` is not floating.
        ValueError: a row of logits is no distribution, the result of ``f`` has no shape of the draws, or there are more
            than 100 000 outcomes.

    Example:
        >>> exact_categorical_gradient(lambda d: d[..., 1], torch.zeros(2))
        tensor([-0.2500,  0.2500])
    """
    check_callable("f", f)
    if check_floating("logits", logits).ndim == 0:
        raise ValueError("logits must have a dimension of classes, got shape ()")
    check_rows("logits", logits, -1)
    weights, values = _enumerate(f, logits, variables)
    centred = weights * (values - (weights * values).sum(0))
    outcomes = all_outcomes(tuple(logits.shape[values.ndim - 1 : -1]), logits.shape[-1], logits.device)
    onehot = _onehots(outcomes, logits, values.ndim - 1)
    return (centred.reshape(*centred.shape, *[1] * (onehot.ndim - centred.ndim)) * onehot).sum(0).to(logits.dtype)


def all_outcomes(
    variables: tuple[int, ...], n: int, device: torch.device | str | None = None
) -> Int[Tensor, "m *variables"]:
    """Return every outcome of independent variables with ``n`` classes each.

    Raises:
        ValueError: there are more than 100 000.

    Example:
        >>> all_outcomes((2,), 2).tolist()
        [[0, 0], [0, 1], [1, 0], [1, 1]]
    """
    count = math.prod(variables)
    if count * math.log(max(n, 1)) > math.log(MOST_OUTCOMES):
        raise ValueError(f"logits must have at most {MOST_OUTCOMES} outcomes to enumerate, got {n}^{count}")
    digits = torch.arange(n**count, device=device)[:, None] // n ** torch.arange(count - 1, -1, -1, device=device)
    return (digits % n).reshape(n**count, *variables)


def log_probability(
    logits: Float[Tensor, "*batch_variables n"], onehot: Float[Tensor, "*batch_variables n"], batch: int
) -> Float[Tensor, "*batch"]:
    """Return the log probability of one-hot draws, summed over all but the first ``batch`` dimensions.

    Example:
        >>> log_probability(torch.zeros(3, 2), torch.eye(2)[[0, 1, 1]], 1)
        tensor([-0.6931, -0.6931, -0.6931])
    """
    index = onehot.detach().argmax(-1, keepdim=True)
    chosen = torch.log_softmax(logits, -1).gather(-1, index).squeeze(-1)
    return chosen.reshape(*chosen.shape[:batch], math.prod(chosen.shape[batch:])).sum(-1)


def _values(f: Callable[[Tensor], Tensor], drawn: Tensor) -> Tensor:
    values = check_floating("result of f", f(drawn))
    if not 1 <= values.ndim < drawn.ndim or values.shape != drawn.shape[: values.ndim]:
        raise ValueError(
            "f must return one value per draw: a shape that begins as that of the draws, "
            f"{tuple(drawn.shape)}, got {tuple(values.shape)}"
        )
    return values


def _enumerate(f: Callable[[Tensor], Tensor], logits: Tensor, variables: int | None) -> tuple[Tensor, Tensor]:
    """Return the probabilities ``[m, *batch]`` of all outcomes of a draw and the values of ``f`` there."""
    if variables is None:
        likely = torch.zeros_like(logits).scatter(-1, logits.detach().argmax(-1, keepdim=True), 1.0)
        with torch.no_grad():
            batch = _values(f, likely.unsqueeze(0)).ndim - 1
    else:
        batch = logits.ndim - 1 - check_integer("variables", variables, 0, logits.ndim - 1)
    n = logits.shape[-1]
    onehot = _onehots(all_outcomes(tuple(logits.shape[batch:-1]), n, logits.device), logits, batch)
    onehot = onehot.expand(len(onehot), *logits.shape)
    values = _values(f, onehot)
    if values.ndim != batch + 1:
        raise ValueError(f"f must return values of {batch + 1} dimensions, got shape {tuple(values.shape)}")
    probability = log_probability(logits.expand(onehot.shape), onehot, batch + 1).exp()
    # What cannot happen counts nothing, also where f is infinite or NaN there.
    return probability, torch.where(probability > 0, values, 0.0)


def _onehots(outcomes: Tensor, logits: Tensor, batch: int) -> Tensor:
    """Return ``[m, 1 per batch dimension, *variables, n]``."""
    onehot = torch.nn.functional.one_hot(outcomes, logits.shape[-1]).to(logits.dtype)
    return onehot.reshape(len(outcomes), *[1] * batch, *onehot.shape[1:])


def _linearised(f: Callable[[Tensor], Tensor], logits: Tensor, onehot: Tensor, reward: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``f(p) + f'(p) (D - p)`` at the mean p of the draw, and its expectation with its gradient."""
    p = torch.softmax(logits, -1)
    mean = p[:1].detach().requires_grad_()
    with torch.enable_grad():
        value = _values(f, mean)
        slope = torch.zeros_like(mean)
        if value.requires_grad:
            found = torch.autograd.grad(value.sum(), mean, allow_unused=True)[0]
            slope = slope if found is None else found
    over = tuple(range(reward.ndim, logits.ndim))
    middle = value.detach().expand(reward.shape)
    return middle + (slope * (onehot - p.detach())).sum(over), middle + (slope * (p - p.detach())).sum(over)
