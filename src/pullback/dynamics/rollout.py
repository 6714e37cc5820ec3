"""Unrolling: a step function applied again and again, with bounded memory and with a bounded reach of the gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint as recompute

from pullback.core.checks import check_callable, check_integer

__all__ = ["rollout"]

State = TypeVar("State")


def rollout(
    step: Callable[..., State],
    state: State,
    inputs: Any = None,
    *,
    steps: int | None = None,
    segment: int | str | None = None,
    truncate: int | None = None,
    detach: Callable[[State], State] | None = None,
) -> State:
    r"""Return :math:`x_0, x_1, \dots, x_T` with :math:`x_{t+1} = \mathrm{step}(x_t, u_t)`, stacked in time.

    Args:
        step: ``step(state, input)``, or ``step(state)`` without ``inputs``; gives the next state, a tensor or nested
            tuples, lists and dicts of tensors as the state is. A policy inside of it closes a loop.
        state: x_0.
        inputs: one entry a step along the first dimension, ``[T, ...]``; a tensor or nested ones.
        steps: T; needed without ``inputs``, otherwise at most their length.
        segment: steps between states that are kept for the backward pass; all else is computed once more there.
            ``"sqrt"`` takes :math:`\lceil\sqrt T\rceil`, which needs the least memory; ``None`` keeps everything. The
            gradient is the same; random draws inside of ``step`` are repeated for torch's global generator alone, so
            draw noise beforehand and give it as ``inputs``.
        truncate: k: after every k steps the state is detached, so that no gradient reaches further back than k steps
            (truncated backpropagation through time). It is biased, and bounded where long products explode.
        detach: changes the state before every step, such as ``lambda s: (s[0].detach(), s[1])``: gradient flows
            through the velocities of a particle alone.

    Returns:
        The states, ``[T + 1, ...]`` in each tensor, x_0 first. ``truncate`` and ``detach`` change what a step starts
        from, not the states that are returned: each of these carries the gradient of the step that made it.

    Raises:
        TypeError: ``step`` is not callable, or a leaf is not a tensor.
        ValueError: no number of steps, more steps than inputs, inputs of different lengths, T < 1, or a step changed
            the state's structure or the shape of a tensor (the step is named).

    Example:
        >>> rollout(lambda x, u: 0.5 * x + u, torch.tensor(0.0), torch.ones(3)).tolist()
        [0.0, 1.0, 1.5, 1.75]
        >>> x = torch.tensor(1.0, requires_grad=True)
        >>> rollout(lambda x: 2 * x, x, steps=4, segment="sqrt")[-1].backward()
        >>> x.grad
        tensor(16.)

    References:
        Chen, Xu, Zhang, Guestrin (2016), Training deep nets with sublinear memory cost, arXiv 1604.06174; Williams,
        Peng (1990), An efficient gradient-based algorithm for on-line training of recurrent network trajectories.
    """
    check_callable("step", step)
    given, length = _inputs(inputs), None
    if given:
        length = len(given[0])
    if steps is None and length is None:
        raise ValueError("rollout needs inputs or a number of steps")
    total = check_integer("steps", length if steps is None else steps, 1)
    if length is not None and total > length:
        raise ValueError(f"steps must be at most the {length} of the inputs, got {total}")
    every = None if truncate is None else check_integer("truncate", truncate, 1)
    if segment == "sqrt":
        segment = math.isqrt(total - 1) + 1
    piece = total if segment is None else check_integer("segment", segment, 1)
    leaves, structure = pytree.tree_flatten(state)
    for leaf in leaves:
        if not isinstance(leaf, Tensor):
            raise TypeError(f"the state must be made of tensors, got {type(leaf).__name__}")

    def run(first: int, last: int, *now: Tensor) -> tuple[tuple[Tensor, ...], ...]:
        found = []
        for t in range(first, last):
            if every is not None and t and t % every == 0:
                now = tuple(leaf.detach() for leaf in now)
            current = pytree.tree_unflatten(list(now), structure)
            current = current if detach is None else detach(current)
            following = step(current) if inputs is None else step(current, pytree.tree_map(lambda u, t=t: u[t], inputs))
            now = _same(following, structure, now, t)
            found.append(now)
        return tuple(found)

    states: list[tuple[Tensor, ...]] = [tuple(leaves)]
    for first in range(0, total, piece):
        last = min(first + piece, total)
        if segment is None or not torch.is_grad_enabled():
            states += run(first, last, *states[-1])
        else:
            states += recompute(run, first, last, *states[-1], use_reentrant=False)
    stacked = [torch.stack(one) for one in zip(*states, strict=True)]
    result: State = pytree.tree_unflatten(stacked, structure)
    return result


def _inputs(inputs: Any) -> list[Tensor]:
    """The leaves of inputs, checked."""
    leaves: list[Tensor] = pytree.tree_leaves(inputs) if inputs is not None else []
    for leaf in leaves:
        if not isinstance(leaf, Tensor):
            raise TypeError(f"inputs must be made of tensors, got {type(leaf).__name__}")
        if leaf.ndim == 0 or len(leaf) != len(leaves[0]):
            raise ValueError(f"inputs must have one entry a step, got shapes {[tuple(v.shape) for v in leaves]}")
    return leaves


def _same(following: Any, structure: Any, before: tuple[Tensor, ...], t: int) -> tuple[Tensor, ...]:
    leaves, found = pytree.tree_flatten(following)
    if found != structure or not all(isinstance(leaf, Tensor) for leaf in leaves):
        raise ValueError(f"step {t} returned another structure than the state's")
    for leaf, old in zip(leaves, before, strict=True):
        if leaf.shape != old.shape:
            raise ValueError(f"step {t} returned a tensor of shape {tuple(leaf.shape)} for one of {tuple(old.shape)}")
    return tuple(leaves)
