"""The loss of an iterated step at each horizon, with gradients through all steps or through the last few."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pullback.core.checks import check_callable, check_integer

__all__ = ["unrolled_losses"]


def unrolled_losses(
    step: Callable[..., Any],
    loss: Callable[[Any], Tensor],
    state: Any,
    *,
    steps: int,
    every: int | None = None,
    inputs: Sequence[Any] | Tensor | None = None,
    truncate: int | None = None,
) -> Tensor:
    r"""Return ``loss(s_t)`` at ``t = every, 2 every .. steps`` of ``s_t = step(s_{t-1})``.

    Args:
        step: from state to state; ``step(state, inputs[t])`` where there are ``inputs``.
        loss: of a state, one element.
        state: the initial state, any nesting of tensors.
        steps: a positive multiple of ``every``.
        every: steps from one loss to the next (default: ``steps``, one loss at the end).
        inputs: what drives the system, ``steps`` entries.
        truncate: before every ``truncate`` steps the gradient is cut, so that it passes through that many steps at
            most: truncated backpropagation, whose gradient is biased.

    Returns:
        ``[steps / every]``.

    Raises:
        TypeError: ``step`` or ``loss`` is not callable.
        ValueError: a number is out of range, ``inputs`` has another length, or the loss has more than one element.

    Example:
        >>> x = torch.tensor(1.0, requires_grad=True)
        >>> losses = unrolled_losses(lambda s: 2 * s, lambda s: s, x, steps=4, every=2)
        >>> losses.tolist(), torch.autograd.grad(losses[-1], x)[0].item()
        ([4.0, 16.0], 16.0)

    References:
        Werbos (1990), Backpropagation through time: what it does and how to do it.
        Tallec, Ollivier (2017), Unbiasing truncated backpropagation through time.
    """
    check_callable("step", step)
    check_callable("loss", loss)
    every = check_integer("steps", steps, 1) if every is None else check_integer("every", every, 1)
    if steps % every or steps < 1:
        raise ValueError(f"steps must be a positive multiple of every, got steps={steps}, every={every}")
    if inputs is not None and len(inputs) != steps:
        raise ValueError(f"inputs must have one entry a step, {steps}, got {len(inputs)}")
    if truncate is not None:
        check_integer("truncate", truncate, 1)
    losses = []
    for t in range(steps):
        if truncate is not None and t % truncate == 0:
            state = pytree.tree_map(Tensor.detach, state)
        state = step(state) if inputs is None else step(state, inputs[t])
        if (t + 1) % every == 0:
            value = loss(state)
            if value.numel() != 1:
                raise ValueError(f"loss must return a scalar, got shape {tuple(value.shape)}")
            losses.append(value.reshape(()))
    return torch.stack(losses)
