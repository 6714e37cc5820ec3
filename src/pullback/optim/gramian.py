"""Inner products of the gradients of many losses, without the gradients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from pullback.core.checks import check_callable
from pullback.optim.layer_gramians import LAYERS, layer_gramian, shared_layer_gramian

__all__ = ["LossGramian", "loss_gramian"]

_COUPLING = (nn.modules.batchnorm._BatchNorm,)


class LossGramian(NamedTuple):
    """Inner products of gradients.

    Attributes:
        gramian: ``[m, m]``, ``G_ij = grad l_i . grad l_j``, detached.
        losses: ``[m]`` with their graph: ``(weights * losses).sum().backward()`` is the one backward pass that is left.
        ways: name of each parameter to how its part was found: ``"layer"``, from inputs and output gradients, or
            ``"rows"``, from the rows of its own Jacobian.
    """

    gramian: Tensor
    losses: Tensor
    ways: dict[str, str]


class _Use(NamedTuple):
    """A call of a layer: its input, as it was, and the edge of the graph where its output begins."""

    x: Tensor
    version: int
    edge: GradientEdge
    batch: int


def loss_gramian(
    losses: Callable[[], Tensor | Sequence[Tensor]], module: nn.Module, *, instances: bool = True, check: bool = True
) -> LossGramian:
    r"""Compute ``G = J J^T`` of the losses of a module, never holding its Jacobian ``J``.

    The gradient of loss i by the weight of a linear layer is ``b_i a_i^T``, of its input and output gradient, and
    ``G = (A A^T) * (B B^T)``; all ``b_i`` come from one backward pass that stops at the layers. Convolutions,
    embeddings, layer and group norms have such terms too; a layer that is called several times has more positions.
    Where losses share their input they share ``A``, and backward passes to the layers give every ``B_i``:
    ``G_ij = <B_i, (A A^T) B_j>``. Other parameters, and those that are used outside of their layer, get their own rows
    of ``J``, as many parameters at a time as are no larger than the largest.

    Args:
        losses: computes the losses, a tensor of any shape or a sequence of such tensors, by a forward pass of
            ``module``. It is called once. Losses with parts of the graph of their own, such as heads, are better not
            stacked: in a sequence none pays for the others' parts.
        module: whose parameters with ``requires_grad`` count.
        instances: loss i depends on row i of the batch alone (``m`` rows go through every layer). ``False``: losses
            share their input, as those of several tasks do; the gradients of the layers' outputs are held m times.
        check: of instances: try with the first loss that no other row of a layer reaches it, for one more backward pass
            to the layers. Without it, losses that share rows give a wrong Gramian.

    Returns:
        The Gramian, the losses with their graph, and which parameter went which way.

    Raises:
        TypeError: ``losses`` cannot be called or returns no floating tensors.
        ValueError: no parameter wants a gradient, the losses depend on none, or batch normalisation in training mode
            or whatever else couples the instances (the layer is named).

    Example:
        >>> model, x = nn.Linear(3, 1), torch.randn(5, 3)
        >>> found = loss_gramian(lambda: model(x)[:, 0], model)
        >>> torch.allclose(found.gramian, x @ x.T + 1)
        True

    References:
        Quinton, Rey (2024), Jacobian descent for multi-objective optimization, arXiv 2406.16232, section 6. Goodfellow
        (2015), Efficient per-example gradient computations, arXiv 1510.01799.
    """
    check_callable("losses", losses)
    return gramian_of(losses, module, instances, check)


def gramian_of(
    losses: Callable[[], Tensor | Sequence[Tensor]],
    module: nn.Module,
    instances: bool,
    check: bool,
    chosen: Callable[[], Collection[int]] | None = None,
) -> LossGramian:
    """Do the same of the parameters whose ids ``chosen`` returns once the losses are known."""
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not parameters:
        raise ValueError("module must have a parameter with requires_grad, got none")
    for name, part in module.named_modules() if instances else ():
        if isinstance(part, _COUPLING) and (part.training or part.running_mean is None):
            raise ValueError(
                f"instances must be independent, but batch normalisation {name!r} couples them: use eval()"
            )
    with _recording(module) as calls:
        parts = loss_parts(losses())
    values = parts[0] if len(parts) == 1 else torch.cat(parts)
    if chosen is not None:
        ids = chosen()
        parameters = {name: p for name, p in parameters.items() if id(p) in ids}
    names = {id(p): name for name, p in parameters.items()}
    known = _plain_layers(module, calls, values, instances, names)
    edges = [use.edge for uses in known.values() for use in uses]
    found: Sequence[Tensor | None] = ()
    if edges and instances:
        found = torch.autograd.grad(values.sum(), edges, retain_graph=True, allow_unused=True)
        if check:
            _check_first(values, known, edges, module)
    elif edges:
        known, found = _shared_rows(parts, known, edges)
    gramian = values.new_zeros(len(values), len(values), requires_grad=False)
    ways: dict[str, str] = {}
    gradients = iter(found)
    add = layer_gramian if instances else shared_layer_gramian
    with torch.no_grad():
        for layer, uses in known.items():
            pairs = [(use.x.detach(), g) for use in uses if (g := next(gradients)) is not None]
            if pairs:
                gramian += add(layer, pairs).to(gramian.dtype)
            ways |= {names[id(p)]: "layer" for p in layer.parameters(recurse=False) if p.requires_grad}
    rest = {name: p for name, p in parameters.items() if name not in ways}
    if rest:
        gramian += _by_rows(parts, list(rest.values()))
        ways |= dict.fromkeys(rest, "rows")
    return LossGramian(gramian, values, {name: ways[name] for name in parameters})


def _shared_rows(
    parts: list[Tensor], known: dict[nn.Module, list[_Use]], edges: list[GradientEdge]
) -> tuple[dict[nn.Module, list[_Use]], list[Tensor | None]]:
    """The layers, and gradients ``[m, ...]`` of the outputs of their calls.

    Without those that are called for some losses by themselves: most of what would be multiplied is 0.
    """
    each = [_rows(part, edges, None)[0] for part in parts]
    kept, gradients, places = {}, list[Tensor | None](), iter(range(len(edges)))
    for layer, uses in known.items():
        calls = [[found[place] for found in each] for place in [next(places) for _ in uses]]
        if len(uses) == 1 or all(len({r is None for r in rows}) == 1 for rows in calls):
            kept[layer] = uses
            gradients += [_stacked(rows, parts) for rows in calls]
    return kept, gradients


def _stacked(rows: list[Tensor | None], parts: list[Tensor]) -> Tensor | None:
    like = next((row for row in rows if row is not None), None)
    if like is None or len(rows) == 1:
        return like
    return torch.cat(
        [like.new_zeros(len(p), *like.shape[1:]) if r is None else r for r, p in zip(rows, parts, strict=True)]
    )


def _check_first(
    values: Tensor, known: dict[nn.Module, list[_Use]], edges: list[GradientEdge], module: nn.Module
) -> None:
    alone = torch.autograd.grad(values[0], edges, retain_graph=True, allow_unused=True)
    layers = (layer for layer, uses in known.items() for _ in uses)
    for layer, g in zip(layers, alone, strict=True):
        if g is not None and bool(g[1:].any()):
            name = next(name for name, part in module.named_modules() if part is layer)
            raise ValueError(
                f"instances must be independent, but the first loss depends on other rows of layer {name!r}: its first "
                "dimension must be the batch, or take instances=False"
            )


def jacobian_rows(parts: list[Tensor], parameters: list[Tensor], chunk: int | None) -> tuple[list[Tensor], str]:
    """Return rows ``[m, *shape]`` of every parameter, zeros where a loss does not reach it, and how they came.

    Tensors of losses one after the other, as each may have a part of the graph of its own; the losses of one batched.
    Without a batch where an operation has no rule for one of cotangents (some recurrent layers).
    """
    m, start, ways = sum(len(part) for part in parts), 0, set()
    rows: list[Tensor | None] = [None] * len(parameters)
    for part in parts:
        found, way = _rows(part, parameters, chunk)
        ways.add(way)
        for i, r in enumerate(found):
            if r is None:
                continue
            into = rows[i]
            if into is None:
                into = rows[i] = r if len(r) == m else r.new_zeros(m, *r.shape[1:])
            if into is not r:
                into[start : start + len(r)] = r
        start += len(part)
    filled = [p.new_zeros(m, *p.shape) if r is None else r for r, p in zip(rows, parameters, strict=True)]
    return filled, "batched" if "batched" in ways else "loop"


def _rows(values: Tensor, inputs: Sequence[Any], chunk: int | None) -> tuple[list[Tensor | None], str]:
    """Rows ``[m, ...]`` of each input; ``None`` where no loss reaches it."""
    m = len(values)
    if not values.requires_grad:
        return [None] * len(inputs), "loop"
    size = m if chunk is None else min(chunk, m)
    if size > 1:
        try:
            some = [_some_rows(values, inputs, start, min(start + size, m)) for start in range(0, m, size)]
            return [_joined(rows, torch.cat) for rows in zip(*some, strict=True)], "batched"
        except (RuntimeError, NotImplementedError) as error:
            if "vmap" not in str(error) and "batching" not in str(error).lower():
                raise
    each = [torch.autograd.grad(values[i], inputs, retain_graph=True, allow_unused=True) for i in range(m)]
    return [_joined(rows, torch.stack) for rows in zip(*each, strict=True)], "loop"


def _joined(rows: Sequence[Tensor | None], join: Callable[[list[Tensor]], Tensor]) -> Tensor | None:
    like = next((row for row in rows if row is not None), None)
    if like is None:
        return None
    if len(rows) == 1:
        return like if join is torch.cat else like[None]
    return join([torch.zeros_like(like) if row is None else row for row in rows])


def _some_rows(values: Tensor, inputs: Sequence[Any], start: int, end: int) -> Sequence[Tensor | None]:
    picked = torch.zeros(end - start, len(values), dtype=values.dtype, device=values.device)
    picked[torch.arange(end - start), torch.arange(start, end)] = 1
    return torch.autograd.grad(values, inputs, picked, retain_graph=True, allow_unused=True, is_grads_batched=True)


def _by_rows(parts: list[Tensor], parameters: list[Tensor]) -> Tensor:
    """Parts of ``J`` that are no wider than the largest parameter."""
    m = sum(len(part) for part in parts)
    gramian = parts[0].new_zeros(m, m, requires_grad=False)
    widest, group = max(p.numel() for p in parameters), list[Tensor]()
    for p, after in zip(parameters, [*parameters[1:], None], strict=True):
        group.append(p)
        if after is None or sum(q.numel() for q in (*group, after)) > widest:
            for rows in jacobian_rows(parts, group, None)[0]:
                flat = rows.detach().reshape(m, -1).to(gramian)
                gramian += flat @ flat.T
            group = []
    return gramian


def loss_parts(losses: Any) -> list[Tensor]:
    """Return the tensors of losses, flat; those without a graph, beside others that have one, have rows of zeros."""
    parts = [losses] if isinstance(losses, Tensor) or not isinstance(losses, Sequence) else list(losses)
    for part in parts:
        if not isinstance(part, Tensor) or not part.is_floating_point():
            came = part.dtype if isinstance(part, Tensor) else type(part).__name__
            raise TypeError(f"losses must be floating tensors, got {came}")
    if not sum(part.numel() for part in parts):
        raise ValueError("losses must hold at least one loss, got none")
    if not any(part.requires_grad for part in parts):
        raise ValueError("losses must depend on params, got tensors without a graph")
    return [part.reshape(-1) for part in parts if part.numel()]


@contextmanager
def _recording(module: nn.Module) -> Iterator[dict[nn.Module, list[_Use]]]:
    """Record the calls of all layers with terms of their own while ``losses`` runs."""
    calls: dict[nn.Module, list[_Use]] = {}

    def note(layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        uses = calls.setdefault(layer, [])
        if len(args) == 1 and isinstance(args[0], Tensor) and isinstance(output, Tensor) and output.requires_grad:
            x = args[0]
            if LAYERS[type(layer)][0](layer, x):
                uses.append(_Use(x, x._version, get_gradient_edge(output), len(output)))
                return
        uses.append(_Use(torch.empty(0), -1, None, -1))  # type: ignore[arg-type]

    with ExitStack() as stack:
        for layer in module.modules():
            if type(layer) in LAYERS:
                stack.callback(layer.register_forward_hook(note).remove)
        yield calls


def _plain_layers(
    module: nn.Module, calls: dict[nn.Module, list[_Use]], values: Tensor, instances: bool, counted: Collection[int]
) -> dict[nn.Module, list[_Use]]:
    """The layers whose parameters are counted and used by recorded calls alone, of instances with one row per loss."""
    used = _uses_in_graph(values)
    owners = Counter(id(p) for layer in module.modules() for p in layer.parameters(recurse=False))
    plain = {}
    for layer, uses in calls.items():
        own = [p for p in layer.parameters(recurse=False) if p.requires_grad]
        good = all(use.x._version == use.version and (use.batch == len(values) or not instances) for use in uses)
        once = all(id(p) in counted and owners[id(p)] == 1 and used[id(p)] == len(uses) for p in own)
        if own and good and once and not nn.utils.parametrize.is_parametrized(layer):
            plain[layer] = uses
    return plain


def _uses_in_graph(values: Tensor) -> Counter[int]:
    """How many operations of the graph take each parameter."""
    count: Counter[int] = Counter()
    seen, todo = set(), [values.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for child, _ in node.next_functions:
            if child is not None and hasattr(child, "variable"):
                count[id(child.variable)] += 1
            else:
                todo.append(child)
    return count
