"""Inner products of the gradients of many losses, without the gradients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from pullback.core.checks import check_callable
from pullback.optim.layer_gramians import LAYERS, layer_gramian

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
    losses: Callable[[], Tensor], module: nn.Module, *, instances: bool = True, check: bool = True
) -> LossGramian:
    r"""Compute ``G = J J^T`` of the losses of a module, never holding its Jacobian ``J``.

    The gradient of loss i by the weight of a linear layer is ``b_i a_i^T``, of its input and output gradient, and
    ``G = (A A^T) * (B B^T)``; all ``b_i`` come from one backward pass that stops at the layers. Convolutions,
    embeddings, layer and group norms have such terms too; a layer that is called several times has more positions.
    Other parameters, and those that are used outside of their layer, get their own rows of ``J``, one parameter at a
    time.

    Args:
        losses: computes the losses, of any shape, by a forward pass of ``module``. It is called once.
        module: whose parameters with ``requires_grad`` count.
        instances: loss i depends on row i of the batch alone (``m`` rows go through every layer). ``False``: losses
            share their input, as those of several tasks do: all parameters by rows.
        check: try with the first loss that no other row of a layer reaches it, for one more backward pass to the
            layers. Without it, losses that share rows give a wrong Gramian.

    Returns:
        The Gramian, the losses with their graph, and which parameter went which way.

    Raises:
        TypeError: ``losses`` cannot be called or returns no floating tensor.
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
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not parameters:
        raise ValueError("module must have a parameter with requires_grad, got none")
    if not instances:
        values = _flat(losses())
        return LossGramian(*_by_rows(values, parameters, {}))
    for name, part in module.named_modules():
        if isinstance(part, _COUPLING) and (part.training or part.running_mean is None):
            raise ValueError(
                f"instances must be independent, but batch normalisation {name!r} couples them: use eval()"
            )
    with _recording(module) as calls:
        values = _flat(losses())
    known = _plain_layers(module, calls, values)
    edges = [use.edge for uses in known.values() for use in uses]
    found = torch.autograd.grad(values.sum(), edges, retain_graph=True, allow_unused=True) if edges else ()
    if check and edges:
        _check_first(values, known, edges, module)
    gramian = values.new_zeros(len(values), len(values), requires_grad=False)
    ways: dict[str, str] = {}
    gradients = iter(found)
    names = {id(p): name for name, p in parameters.items()}
    with torch.no_grad():
        for layer, uses in known.items():
            pairs = [(use.x.detach(), g) for use in uses if (g := next(gradients)) is not None]
            if pairs:
                gramian += layer_gramian(layer, pairs).to(gramian.dtype)
            ways |= {names[id(p)]: "layer" for p in layer.parameters(recurse=False) if p.requires_grad}
    rest = {name: p for name, p in parameters.items() if name not in ways}
    if not rest:
        return LossGramian(gramian, values, {name: ways[name] for name in parameters})
    added, _, others = _by_rows(values, rest, ways)
    return LossGramian(gramian + added, values, {name: (ways | others)[name] for name in parameters})


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


def jacobian_rows(values: Tensor, parameters: list[Tensor], chunk: int | None) -> tuple[list[Tensor], str]:
    """Return rows ``[m, *shape]`` of every parameter, zeros where a loss does not reach it, and how they came.

    Batched; one after the other where an operation has no rule for a batch of cotangents (some recurrent layers).
    """
    m = len(values)
    size = m if chunk is None else min(chunk, m)
    if size > 1:
        try:
            parts = [_some_rows(values, parameters, start, min(start + size, m)) for start in range(0, m, size)]
            return [torch.cat(rows) for rows in zip(*parts, strict=True)], "batched"
        except (RuntimeError, NotImplementedError) as error:
            if "vmap" not in str(error) and "batching" not in str(error).lower():
                raise
    rows = []
    for i in range(m):
        row = torch.autograd.grad(values[i], parameters, retain_graph=True, allow_unused=True)
        rows.append([torch.zeros_like(p) if g is None else g for g, p in zip(row, parameters, strict=True)])
    return [torch.stack(parts) for parts in zip(*rows, strict=True)], "loop"


def _some_rows(values: Tensor, parameters: list[Tensor], start: int, end: int) -> list[Tensor]:
    picked = torch.zeros(end - start, len(values), dtype=values.dtype, device=values.device)
    picked[torch.arange(end - start), torch.arange(start, end)] = 1
    rows = torch.autograd.grad(values, parameters, picked, retain_graph=True, allow_unused=True, is_grads_batched=True)
    return [p.new_zeros(end - start, *p.shape) if g is None else g for g, p in zip(rows, parameters, strict=True)]


def _by_rows(
    values: Tensor, parameters: Mapping[str, Tensor], ways: dict[str, str]
) -> tuple[Tensor, Tensor, dict[str, str]]:
    gramian = values.new_zeros(len(values), len(values), requires_grad=False)
    for p in parameters.values():
        rows = jacobian_rows(values, [p], None)[0][0].detach().flatten(1).to(values.dtype)
        gramian += rows @ rows.T
    return gramian, values, dict.fromkeys(parameters, "rows")


def _flat(values: Any) -> Tensor:
    if not isinstance(values, Tensor) or not values.is_floating_point():
        came = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"losses must return a floating tensor, got {came}")
    if not values.requires_grad:
        raise ValueError("losses must depend on the parameters of module, got a tensor without a graph")
    if not values.numel():
        raise ValueError("losses must return at least one loss, got none")
    return values.reshape(-1)


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


def _plain_layers(module: nn.Module, calls: dict[nn.Module, list[_Use]], values: Tensor) -> dict[nn.Module, list[_Use]]:
    """The layers whose parameters are used by recorded calls alone, each with one row per loss."""
    used = _uses_in_graph(values)
    owners = Counter(id(p) for layer in module.modules() for p in layer.parameters(recurse=False))
    plain = {}
    for layer, uses in calls.items():
        own = [p for p in layer.parameters(recurse=False) if p.requires_grad]
        good = all(use.batch == len(values) and use.x._version == use.version for use in uses)
        once = all(owners[id(p)] == 1 and used[id(p)] == len(uses) for p in own)
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
