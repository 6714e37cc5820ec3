"""The backward pass of Jacobian descent: many losses fill ``.grad`` with one direction that heeds them all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, get_args

import torch
from torch import Tensor, nn

from pullback.core.checks import check_choice, check_integer
from pullback.optim.aggregation import Aggregator, aggregate, aggregation_weights
from pullback.optim.gramian import gramian_of, jacobian_rows, loss_parts

__all__ = ["JacobianBackward", "jacobian_backward"]

_Losses = Tensor | Sequence[Tensor]


class JacobianBackward(NamedTuple):
    """What a backward pass of many losses found.

    Attributes:
        losses: ``[m]`` values, detached.
        gramian: ``[m, m]`` inner products of the gradients by the shared parameters.
        weights: ``[m]`` of the gradients in the direction; ``None`` for an aggregator without weights.
        shared: how many parameters got the aggregated direction.
        own: how many got the gradient of the one loss that they belong to.
        way: ``"gramian"``, or how the rows of the Jacobian came: ``"batched"`` or one after the other, ``"loop"``.
    """

    losses: Tensor
    gramian: Tensor
    weights: Tensor | None
    shared: int
    own: int
    way: str


def jacobian_backward(
    losses: _Losses | Callable[[], _Losses],
    params: nn.Module | Iterable[Tensor],
    *,
    aggregator: Aggregator | Callable[[Tensor], Tensor] = "upgrad",
    shared: Iterable[Tensor] | None = None,
    method: str = "rows",
    chunk: int | None = None,
    instances: bool = True,
    check: bool = True,
    generator: torch.Generator | None = None,
) -> JacobianBackward:
    r"""Add ``A(J)`` to ``.grad`` of the parameters, where ``J`` holds the gradients of all losses.

    It takes the place of ``loss.backward()``; any optimizer of torch makes the step. With several tasks, parameters
    that one loss alone reaches (a head) get its plain gradient; the aggregator sees the shared ones.

    Args:
        losses: a tensor of any shape whose entries are the losses, or a sequence of such tensors; with
            ``method="gramian"`` a function without arguments that computes them.
        params: a module, or the parameters.
        aggregator: a method of :func:`~pullback.optim.aggregate`, or a function from the Gramian ``[m, m]`` to weights
            ``[m]``.
        shared: the parameters that the aggregator sees. ``None``: those that at least two entries of a sequence of
            losses reach; all, where ``losses`` is one tensor or its entries are instances.
        method: ``"rows"`` holds the Jacobian of the shared parameters, m times their memory. ``"gramian"`` never does
            (:func:`~pullback.optim.loss_gramian`, for which ``params`` is the module): then one weighted backward pass.
            Of a million parameters it takes a third (8 losses) to a twentieth (64) of the time of rows, for tasks that
            share 32 rows of input a half to a fifth.
        chunk: rows of the Jacobian that are computed at once (the loss's graph is held for each). ``None``: all.
        instances: of ``method="gramian"``: loss i depends on row i of the batch alone; ``False``: losses of several
            tasks, which share their input.
        check: of instances: try that with the first loss.
        generator: of random aggregators.

    Returns:
        Losses, Gramian, weights, and who is shared.

    Raises:
        TypeError: ``losses`` or ``params`` have the wrong type.
        ValueError: no parameter is shared by the losses, the gradient of an objective is not finite (its number is
            given), or an option is unknown.

    Example:
        >>> w = nn.Parameter(torch.tensor([1.0, 1.0]))
        >>> found = jacobian_backward([(w[0] - 3) ** 2, (w[0] + w[1]) ** 2], [w])
        >>> bool(w.grad[0] < 0)  # the first loss may fall, the second does not rise
        True

    References:
        Quinton, Rey (2024), Jacobian descent for multi-objective optimization, arXiv 2406.16232, sections 2 and 6.
    """
    check_choice("method", method, ("rows", "gramian"))
    if isinstance(aggregator, str):
        check_choice("aggregator", aggregator, get_args(Aggregator))
    elif not callable(aggregator):
        raise TypeError(f"aggregator must be a name or a function, got {type(aggregator).__name__}")
    if chunk is not None:
        check_integer("chunk", chunk, 1)
    if method == "gramian":
        return _by_gramian(losses, params, aggregator, shared, instances, check, generator)
    values = losses() if callable(losses) and not isinstance(losses, Tensor) else losses
    losses_of = loss_parts(values)
    flat = torch.cat(losses_of)
    given = [p for p in (params.parameters() if isinstance(params, nn.Module) else list(params)) if p.requires_grad]
    common, own = _split(None if isinstance(values, Tensor) else values, given, shared)
    found, way = jacobian_rows(losses_of, common, chunk)
    rows = [r.detach().reshape(len(flat), -1) for r in found]
    gramian = torch.zeros(len(flat), len(flat), dtype=flat.dtype, device=flat.device)
    for r in rows:
        gramian += (r @ r.T).to(gramian)
    if not bool(gramian.diagonal().isfinite().all()):
        _check_rows(rows)
    if own:
        _add(own, torch.autograd.grad(flat.sum(), own, retain_graph=True, allow_unused=True))
    weights: Tensor | None
    if aggregator == "graddrop":
        _check_rows(rows)
        direction, weights = aggregate(torch.cat(rows, 1), method=aggregator, generator=generator)
        parts: Sequence[Tensor] = direction.split([p.numel() for p in common])
    else:
        weights = _weighed(aggregator, gramian, generator)
        parts = [weights.to(r) @ r for r in rows]
    _add(common, [part.view_as(p) for part, p in zip(parts, common, strict=True)])
    return JacobianBackward(flat.detach(), gramian, weights, len(common), len(own), way)


def _by_gramian(
    losses: _Losses | Callable[[], _Losses],
    params: nn.Module | Iterable[Tensor],
    aggregator: Aggregator | Callable[[Tensor], Tensor],
    shared: Iterable[Tensor] | None,
    instances: bool,
    check: bool,
    generator: torch.Generator | None,
) -> JacobianBackward:
    if not isinstance(params, nn.Module):
        raise TypeError(f"params must be a module for method='gramian', got {type(params).__name__}")
    if isinstance(losses, Tensor) or not callable(losses):
        raise TypeError(
            "losses must be a function without arguments for method='gramian': layers are watched as it runs"
        )
    if aggregator == "graddrop":
        raise ValueError("aggregator 'graddrop' needs the gradients themselves: take method='rows'")
    function, raw = losses, list[_Losses]()
    split: list[list[Tensor]] = []

    def kept() -> _Losses:
        raw.append(function())
        return raw[0]

    def common() -> set[int]:
        tasks = None if isinstance(raw[0], Tensor) else raw[0]
        split.extend(_split(tasks, [p for p in params.parameters() if p.requires_grad], shared))
        return {id(p) for p in split[0]}

    every = instances and shared is None
    found = gramian_of(kept, params, instances, check, None if every else common)
    _refuse(~found.gramian.diagonal().isfinite())
    weights = _weighed(aggregator, found.gramian, generator)
    own = split[1] if split else []
    if own:
        found.losses.sum().backward(inputs=own, retain_graph=True)
    (weights * found.losses).sum().backward(inputs=split[0] if own else None)
    return JacobianBackward(found.losses.detach(), found.gramian, weights, len(found.ways), len(own), "gramian")


def _split(
    tasks: Sequence[Tensor] | None, given: list[Tensor], shared: Iterable[Tensor] | None
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the shared parameters and those that one loss alone reaches; the rest gets nothing."""
    if not given:
        raise ValueError("params must hold a parameter with requires_grad, got none")
    if shared is not None:
        chosen = {id(p) for p in shared}
        common, own = [p for p in given if id(p) in chosen], [p for p in given if id(p) not in chosen]
    elif tasks is None:
        common, own = given, []
    else:
        reached = [_reached(task) for task in tasks]
        entries = [task.numel() for task in tasks]
        counts = [sum(n for n, ids in zip(entries, reached, strict=True) if id(p) in ids) for p in given]
        single = len(tasks) == 1
        common = [p for p, count in zip(given, counts, strict=True) if count > 1 or (single and count)]
        own = [p for p, count in zip(given, counts, strict=True) if count == 1 and not single]
    if not common:
        raise ValueError("losses must share parameters, but none of params is reached by two of them")
    return common, own


def _reached(loss: Tensor) -> set[int]:
    """The leaves of a loss's graph."""
    leaves, seen, todo = {id(loss)}, set(), [loss.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.add(id(node.variable))
        todo += [child for child, _ in node.next_functions]
    return leaves


def _check_rows(rows: list[Tensor]) -> None:
    for r in rows:
        _refuse(~torch.isfinite(r).all(1))


def _refuse(bad: Tensor) -> None:
    if bool(bad.any()):
        raise ValueError(f"losses must have finite gradients, but that of objective {bad.nonzero()[0].item()} is not")


def _weighed(
    aggregator: Aggregator | Callable[[Tensor], Tensor], gramian: Tensor, generator: torch.Generator | None
) -> Tensor:
    if not callable(aggregator):
        return aggregation_weights(gramian, method=aggregator, generator=generator)
    weights = aggregator(gramian)
    if not isinstance(weights, Tensor) or weights.shape != gramian.shape[:1]:
        came = tuple(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
        raise ValueError(f"aggregator must return weights of shape {tuple(gramian.shape[:1])}, got {came}")
    return weights.detach().to(gramian)


def _add(params: list[Tensor], gradients: Sequence[Tensor | None]) -> None:
    for p, g in zip(params, gradients, strict=True):
        if g is not None:
            p.grad = g.detach().clone() if p.grad is None else p.grad + g.detach()
