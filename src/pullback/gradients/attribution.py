"""Attributions of a model's value to its features: integrated gradients and Shapley values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from pullback.core.checks import check_callable, check_floating, check_integer, check_positive, check_same_dtype
from pullback.core.random import drawing_device
from pullback.core.shapes import Float, Tensor

__all__ = ["Attribution", "integrated_gradients", "scalar_rows", "shapley_values"]

_EXACT_FEATURES = 12
_ROWS = 1 << 16
_DEPTH = 50


class Attribution(NamedTuple):
    """What each feature adds to a model's value.

    Attributes:
        values: ``[*batch, n]`` one number a feature.
        residual: ``[*batch]`` their sum, less the model's value above its reference: 0 where the method is complete.
        evaluations: rows at which the model, or its gradient, was evaluated, over the whole batch.
    """

    values: Float[Tensor, "*batch n"]
    residual: Float[Tensor, "*batch"]
    evaluations: int


def integrated_gradients(
    fn: Callable[[Tensor], Tensor],
    x: Float[Tensor, "*batch n"],
    baseline: Float[Tensor, "n"],
    *,
    steps: int = 50,
    tolerance: float | None = None,
    max_evaluations: int = 1 << 16,
    target: int | None = None,
    create_graph: bool = False,
) -> Attribution:
    r"""Attribute ``fn(x) - fn(baseline)`` to features by the gradient along the straight line between them.

    ``phi_j = (x_j - b_j) int_0^1 df/dx_j (b + a (x - b)) da``, by Gauss-Legendre quadrature. A network of ReLUs has a
    gradient with jumps, which a fixed rule resolves to ``O(1 / steps)``; with ``tolerance`` the line is halved
    wherever halving changes the attribution, so that each jump is found by bisection.

    Args:
        fn: maps rows ``[m, n]`` to ``[m]``, ``[m, 1]``, or to ``[m, outputs]`` of which ``target`` is explained; each
            row by itself, without batch statistics.
        x: ``[*batch, n]`` the points to explain.
        baseline: ``[n]`` the point of zero attribution, broadcast over the batch.
        steps: nodes of the rule on the whole line, >= 1; with ``tolerance``, pieces to begin with, of four nodes each,
            two of them its ends (Lobatto), so that a jump shows wherever it is.
        tolerance: > 0, change of a piece's attribution by halving that is accepted, in units of ``fn``; never less than
            the rounding of the piece. ``None`` for the fixed rule.
        max_evaluations: with ``tolerance``, evaluations for each point of the batch, >= 1: when they are spent, pieces
            are accepted as they are, those that change most last; ``residual`` tells what is missing. Each of the
            ``steps`` is halved once in any case.
        target: the output to explain, where ``fn`` has several.
        create_graph: keep the graph, to differentiate the attribution in ``x``, the baseline and parameters.

    Returns:
        An :class:`Attribution`.

    Raises:
        TypeError: ``fn`` is not callable, or ``x`` or ``baseline`` is not floating or of another dtype.
        ValueError: ``steps``, ``tolerance``, ``max_evaluations`` or ``target`` is out of range, ``baseline`` has
            another length, or ``fn`` has several outputs and no ``target``.

    Example:
        >>> found = integrated_gradients(lambda x: x[:, 0] * x[:, 1], torch.tensor([2.0, 3.0]), torch.zeros(2))
        >>> [round(value, 4) for value in found.values.tolist()]
        [3.0, 3.0]

    References:
        Sundararajan, Taly, Yan (2017), Axiomatic attribution for deep networks, equation 1.
        Sotoudeh, Thakur (2019), Computing linear restrictions of neural networks, section 4 (exact for ReLU networks).
    """
    check_callable("fn", fn)
    x, baseline = _features(x, "baseline", baseline, 1)
    check_integer("steps", steps, 1)
    check_integer("max_evaluations", max_evaluations, 1)
    if tolerance is not None:
        check_positive("tolerance", tolerance)
    rows = x.reshape(-1, x.shape[-1])
    start = baseline.expand_as(rows)
    span = rows - start
    evaluations = 0

    def mean_gradient(row: Tensor, left: Tensor, width: Tensor, nodes: Tensor, weights: Tensor) -> Tensor:
        nonlocal evaluations
        along = (left[:, None] + width[:, None] * nodes).unsqueeze(-1)
        points = start[row].unsqueeze(1) + along * span[row].unsqueeze(1)
        flat = points.reshape(-1, points.shape[-1])
        evaluations += len(flat)
        with torch.enable_grad():
            leaf = flat if create_graph and flat.requires_grad else flat.detach().requires_grad_()
            value = scalar_rows(fn, leaf, target).sum()
            slope = torch.autograd.grad(value, leaf, create_graph=create_graph, materialize_grads=True)[0]
        return (weights[:, None] * slope.view(points.shape)).sum(1) * width[:, None]

    row = torch.arange(len(rows), device=x.device)
    if tolerance is None:
        rule = _legendre(steps, x)
        total = mean_gradient(row, x.new_zeros(len(rows)), x.new_ones(len(rows)), *rule)
    else:
        rule, total = _lobatto(x), torch.zeros_like(rows)
        row = row.repeat_interleave(steps)
        left = torch.arange(steps, device=x.device).repeat(len(rows)).to(x.dtype) / steps
        width = torch.full_like(left, 1 / steps)
        whole = mean_gradient(row, left, width, *rule)
        for depth in range(_DEPTH):
            halves = (row.repeat(2), torch.cat([left, left + width / 2]), (width / 2).repeat(2))
            parts = mean_gradient(*halves, *rule)
            sums = parts[: len(row)] + parts[len(row) :]
            change, size = ((part * span[row]).detach().abs().amax(-1) for part in (sums - whole, sums))
            settled = ~(change > (8 * torch.finfo(x.dtype).eps * size).clamp(min=tolerance))
            room = max(0, max_evaluations * len(rows) - evaluations) // (4 * len(rule[0])) if depth < _DEPTH - 1 else 0
            if len(settled) - int(settled.sum()) > room:
                settled[torch.where(settled, -1.0, change).argsort(descending=True)[room:]] = True
            total = total.index_add(0, row[settled], sums[settled])
            again = (~settled).repeat(2)
            row, left, width = (part[again] for part in halves)
            whole = parts[again]
            if not len(row):
                break
    values = (span * total).reshape(x.shape)
    with torch.set_grad_enabled(create_graph):
        change = scalar_rows(fn, rows, target) - scalar_rows(fn, baseline[None], target)
    return Attribution(values, values.sum(-1) - change.reshape(x.shape[:-1]), evaluations)


def shapley_values(
    fn: Callable[[Tensor], Tensor],
    x: Float[Tensor, "*batch n"],
    background: Float[Tensor, "b n"],
    *,
    samples: int | None = None,
    target: int | None = None,
    generator: torch.Generator | None = None,
) -> Attribution:
    r"""Attribute ``fn(x) - mean_b fn(b)`` to features by their Shapley values, absent ones taken from the background.

    ``phi_j = sum_S |S|! (n - |S| - 1)! / n! (v(S + j) - v(S))``, ``v(S)`` the mean over background rows ``b`` of ``fn``
    at ``x`` in ``S`` and ``b`` elsewhere (interventional). Without ``samples`` all ``2^n`` sets are taken. With it, the
    mean over that many random orders in which features turn from a background row into ``x``; the rows take turns, and
    where ``samples`` is a multiple of ``b`` the sum is exact.

    Args:
        fn: maps rows ``[m, n]`` to ``[m]``, ``[m, 1]``, or to ``[m, outputs]`` of which ``target`` is explained; each
            row by itself.
        x: ``[*batch, n]`` the points to explain.
        background: ``[b, n]`` at least one row.
        samples: orders, >= 1, the same for all points; ``None`` for the exact values of at most 12 features.
        target: the output to explain, where ``fn`` has several.
        generator: of the orders; torch's default one if ``None``.

    Returns:
        An :class:`Attribution`; differentiable in ``x``, the background and what ``fn`` holds.

    Raises:
        TypeError: ``fn`` is not callable, or ``x`` or ``background`` is not floating or of another dtype.
        ValueError: more than 12 features without ``samples``, no or other rows in ``background``, ``samples`` or
            ``target`` is out of range, or ``fn`` has several outputs and no ``target``.

    Example:
        >>> found = shapley_values(lambda x: x[:, 0] * x[:, 1], torch.tensor([2.0, 3.0]), torch.zeros(1, 2))
        >>> found.values.tolist(), found.evaluations
        ([3.0, 3.0], 4)

    References:
        Shapley (1953), A value for n-person games. Castro, Gomez, Tejada (2009), Polynomial calculation of the Shapley
        value based on sampling. Lundberg, Lee (2017), A unified approach to interpreting model predictions.
    """
    check_callable("fn", fn)
    x, background = _features(x, "background", background, 2)
    n, count = x.shape[-1], len(background)
    if not count:
        raise ValueError("background must have at least one row, got none")
    if samples is None and n > _EXACT_FEATURES:
        raise ValueError(f"samples must be given for more than {_EXACT_FEATURES} features, got None for {n}")
    if samples is None:
        subsets = (torch.arange(2**n, device=x.device)[:, None] >> torch.arange(n, device=x.device)) % 2 == 1
        values = [_shares(n, subsets, x).T @ _set_values(fn, row, subsets, background, target) for row in _rows(x)]
        evaluations = 2**n * count * len(values)
    else:
        check_integer("samples", samples, 1)
        noise = torch.rand(samples, n, generator=generator, device=drawing_device(generator, x)).to(x.device)
        rank = noise.argsort(-1).argsort(-1)
        present = rank.unsqueeze(1) < torch.arange(n + 1, device=x.device)[:, None]
        turn = background[torch.arange(samples, device=x.device) % count].unsqueeze(1)
        values = []
        for row in _rows(x):
            pieces = zip(present.split(max(1, _ROWS // (n + 1))), turn.split(max(1, _ROWS // (n + 1))), strict=True)
            mixed = (torch.where(p, row, b).reshape(-1, n) for p, b in pieces)
            path = torch.cat([scalar_rows(fn, rows, target) for rows in mixed]).view(samples, n + 1)
            values.append(path.diff(dim=-1).gather(-1, rank).mean(0))
        evaluations = samples * (n + 1) * len(values)
    phi = torch.stack(values).reshape(x.shape) if values else torch.zeros_like(x)
    reference = scalar_rows(fn, background, target).mean()
    change = scalar_rows(fn, x.reshape(-1, n), target) - reference
    return Attribution(phi, phi.sum(-1) - change.reshape(x.shape[:-1]), evaluations)


def scalar_rows(fn: Callable[[Tensor], Tensor], rows: Float[Tensor, "m n"], target: int | None) -> Float[Tensor, "m"]:
    """Return one number a row: that of ``fn``, or of its output ``target``; refuse everything else by name."""
    value = fn(rows)
    if value.ndim == 2 and len(value) == len(rows) and (target is not None or value.shape[1] == 1):
        return value[:, check_integer("target", 0 if target is None else target, 0, value.shape[1] - 1)]
    if target is not None or value.shape != rows.shape[:1]:
        raise ValueError(
            f"fn must map {len(rows)} rows to as many numbers, or to [rows, outputs] with target, "
            f"got shape {tuple(value.shape)} and target {target}"
        )
    return value


def _features(x: Tensor, name: str, other: Tensor, ndim: int) -> tuple[Tensor, Tensor]:
    check_floating("x", x)
    check_floating(name, other)
    check_same_dtype(x=x, **{name: other})
    if not x.ndim or not x.shape[-1]:
        raise ValueError(f"x must have features in its last dimension, got shape {tuple(x.shape)}")
    if other.ndim != ndim or other.shape[-1] != x.shape[-1]:
        wanted = ("b", x.shape[-1])[-ndim:]
        raise ValueError(f"{name} must have shape [{', '.join(map(str, wanted))}], got {tuple(other.shape)}")
    return x, other


def _rows(x: Tensor) -> tuple[Tensor, ...]:
    return x.reshape(-1, x.shape[-1]).unbind()


def _legendre(count: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the Gauss-Legendre rule on ``[0, 1]``, from the eigenvectors of its Jacobi matrix."""
    k = torch.arange(1, count, dtype=torch.float64)
    off = k / (4 * k.square() - 1).sqrt()
    nodes, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return (nodes / 2 + 0.5).to(like), vectors[0].square().to(like)


def _lobatto(like: Tensor) -> tuple[Tensor, Tensor]:
    inner = math.sqrt(0.2) / 2
    nodes = torch.tensor([0, 0.5 - inner, 0.5 + inner, 1], dtype=torch.float64)
    return nodes.to(like), torch.tensor([1 / 12, 5 / 12, 5 / 12, 1 / 12], dtype=torch.float64).to(like)


def _shares(n: int, subsets: Tensor, like: Tensor) -> Tensor:
    """``[2^n, n]`` the factor of ``v(S)`` in ``phi_j``: ``(|S| - 1)! (n - |S|)! / n!`` with ``j`` in ``S``, else
    ``-|S|! (n - |S| - 1)! / n!``.
    """
    inside = [0.0] + [1 / (s * math.comb(n, s)) for s in range(1, n + 1)]
    outside = [-1 / ((n - s) * math.comb(n, s)) for s in range(n)] + [0.0]
    size = subsets.sum(-1, keepdim=True)
    table = torch.tensor([outside, inside], dtype=torch.float64).to(like)
    return table[subsets.long(), size]


def _set_values(
    fn: Callable[[Tensor], Tensor], row: Tensor, sets: Tensor, background: Tensor, target: int | None
) -> Tensor:
    """``[s]`` the mean over the background of ``fn`` at ``row`` in each set and at the background outside."""
    values = []
    for part in sets.split(max(1, _ROWS // len(background))):
        mixed = torch.where(part.unsqueeze(1), row, background)
        values.append(scalar_rows(fn, mixed.flatten(0, 1), target).view(len(part), -1).mean(-1))
    return torch.cat(values)
