"""Bias and variance of an estimator of a categorical gradient, where the gradient is known exactly."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from pullback.core.checks import check_callable, check_choice, check_floating, check_integer
from pullback.core.shapes import Float, Scalar, Tensor
from pullback.discrete.expectation import (
    ESTIMATORS,
    all_outcomes,
    exact_categorical_gradient,
    expectation,
    log_probability,
)
from pullback.gradients import EstimatorError, estimator_error

__all__ = ["estimator_statistics"]


def estimator_statistics(
    estimator: str | Callable[..., Tensor],
    f: Callable[[Tensor], Tensor],
    logits: Float[Tensor, "*variables n"],
    *,
    samples: int | None = None,
    draws: int = 1,
    temperature: Scalar = 1.0,
    generator: torch.Generator | None = None,
) -> EstimatorError:
    r"""Return bias, variance and direction of an estimator of the gradient of ``E f(D)`` over the logits.

    Args:
        estimator: one of ``ESTIMATORS``, or a function with the signature of :func:`expectation`:
            ``estimator(f, logits, samples=, generator=, outcome=)``.
        f: maps draws ``[*any, *variables, n]`` to values ``[*any]``.
        logits: ``[*variables, n]`` of one draw.
        samples: independent estimates to measure, >= 2; ``None`` takes every outcome with its probability, so that the
            statistics are exact. Estimators that draw more than the outcome (Gumbel noise) need samples.
        draws: of ``D`` in one estimate, >= 1, and >= 2 for ``"leave_one_out"``.
        temperature: of an estimator given by name.
        generator: torch's default one if ``None``.

    Returns:
        A :class:`pullback.gradients.EstimatorError`, against :func:`exact_categorical_gradient`.

    Raises:
        TypeError: ``f`` or ``estimator`` cannot be called.
        ValueError: ``estimator`` is unknown, a number is out of range, too many outcomes would be enumerated, or
            ``samples`` is ``None`` and the estimator draws although its outcome is given.

    Example:
        >>> f = lambda d: torch.tanh(d @ torch.tensor([2.0, -1.0, 0.5])).square()
        >>> found = {m: estimator_statistics(m, f, torch.zeros(3)) for m in ("straight_through", "score_function")}
        >>> {name: (round(e.relative_bias, 3), round(e.relative_variance, 2)) for name, e in found.items()}
        {'straight_through': (0.793, 5.5), 'score_function': (0.0, 8.72)}

    References:
        Mohamed, Rosca, Figurnov, Mnih (2020), Monte Carlo gradient estimation in machine learning.
    """
    check_callable("f", f)
    if isinstance(estimator, str):
        check_choice("estimator", estimator, ESTIMATORS)
        estimate: Callable[..., Tensor] = partial(expectation, method=estimator, temperature=temperature)
    else:
        check_callable("estimator", estimator)
        estimate = estimator
    check_integer("draws", draws, 1)
    exact = exact_categorical_gradient(f, check_floating("logits", logits).detach())
    if estimator == "exact":
        return estimator_error(torch.stack([exact, exact]), exact, weights=exact.new_full((2,), 0.5))
    variables = logits.shape[:-1]
    if samples is not None:
        options: dict[str, Any] = {"samples": draws, "generator": generator}
        return estimator_error(_estimates(estimate, f, logits, check_integer("samples", samples, 2), options), exact)
    outcome = all_outcomes((draws, *variables), logits.shape[-1], logits.device)
    possible = (logits > -torch.inf).expand(outcome.shape + logits.shape[-1:]).gather(-1, outcome.unsqueeze(-1))
    outcome = outcome[possible.reshape(len(outcome), math.prod(outcome.shape[1:])).all(-1)]
    onehot = torch.nn.functional.one_hot(outcome, logits.shape[-1]).to(logits.dtype)
    weights = log_probability(logits.detach().expand(onehot.shape), onehot, 1).exp()
    watched = torch.Generator(logits.device)
    before = watched.get_state()
    options = {"samples": draws, "outcome": outcome.movedim(1, 0), "generator": watched}
    found = _estimates(estimate, f, logits, len(outcome), options)
    if not torch.equal(watched.get_state(), before):
        raise ValueError(f"samples must be given for {estimator!r}: it draws, also where its outcome is known")
    return estimator_error(found, exact, weights=weights)


def _estimates(
    estimate: Callable[..., Tensor], f: Callable[[Tensor], Tensor], logits: Tensor, count: int, options: dict[str, Any]
) -> Tensor:
    copies = logits.detach().expand(count, *logits.shape).clone().requires_grad_()
    with torch.enable_grad():
        value = estimate(f, copies, **options)
    return torch.autograd.grad(value.sum(), copies)[0]
