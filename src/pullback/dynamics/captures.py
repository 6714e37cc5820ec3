"""Find the tensors that a function uses without being given them: parameters of modules, tensors of closures.

An adjoint has to know every tensor that the field depends on. Its graph says which: run once, every edge that leaves
the nodes made during the run leads to a captured tensor. The tensors themselves are noted on the way by a function
mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["captured_tensors", "check_known", "reachable_parameters"]

_LEAF = "torch::autograd::AccumulateGrad"
_Edge = tuple[Any, int]


class _Recorder(TorchFunctionMode):
    """Notes every tensor that is handed to a torch function and requires a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._note(args)
        if kwargs:
            self._note(kwargs.values())
        return func(*args, **(kwargs or {}))

    def _note(self, values: Iterable[Any]) -> None:
        for value in values:
            if isinstance(value, Tensor):
                if value.requires_grad:
                    self.seen[id(value)] = value
            elif isinstance(value, list | tuple):
                self._note(value)


def captured_tensors(function: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Call ``function`` with gradients on and return its output and the tensors it captured.

    Args:
        function: of tensors, returning one tensor.
        *inputs: its arguments; detached leaves.

    Returns:
        The output, attached to its graph, and every captured tensor that it depends on: leaves, and results of earlier
        operations (such as the weights that a hypernetwork made).

    Raises:
        RuntimeError: the graph leaves through an intermediate tensor that never passed a torch function in sight
        (inside
            a scripted or compiled function); it has to be named explicitly.

    Example:
        >>> w = torch.tensor(2.0, requires_grad=True)
        >>> output, captured = captured_tensors(lambda y: w * y, torch.ones(3))
        >>> captured[0] is w
        True
    """
    # the graph is read and dropped: hooks that watch what is kept for a backward pass need not hear of it
    unwatched = torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)
    with torch.enable_grad(), unwatched:
        marker: Any = (torch.zeros((), requires_grad=True) + 0).grad_fn
        start = marker._sequence_nr()
        recorder = _Recorder()
        with recorder:
            output = function(*inputs)
    leaves, edges = _frontier(output, start)
    given = {id(x) for x in inputs}
    by_edge = {(t.grad_fn, t.output_nr): t for t in recorder.seen.values() if t.grad_fn is not None}
    found = [leaf for leaf in leaves if id(leaf) not in given]
    for edge in edges:
        if edge not in by_edge:
            raise RuntimeError(
                f"the field depends on an intermediate tensor (made by {edge[0].name()}) that cannot be traced; "
                "pass it in params=[...]"
            )
        found.append(by_edge[edge])
    return output, found


def _frontier(output: Any, start: int) -> tuple[list[Tensor], list[_Edge]]:
    """Leaves and earlier edges on which ``output`` depends; nodes with a sequence number below ``start`` are
    earlier."""
    leaves: dict[int, Tensor] = {}
    edges: dict[_Edge, None] = {}
    if output.grad_fn is None:
        if output.requires_grad:
            leaves[id(output)] = output
        return list(leaves.values()), []
    stack: list[_Edge] = [(output.grad_fn, output.output_nr)]
    visited = set()
    while stack:
        node, number = stack.pop()
        if node.name() == _LEAF:
            leaves[id(node.variable)] = node.variable
        elif node._sequence_nr() < start:
            edges[node, number] = None
        elif node not in visited:
            visited.add(node)
            stack.extend(edge for edge in node.next_functions if edge[0] is not None)
    return list(leaves.values()), list(edges)


def known_edges(tensors: Iterable[Tensor]) -> tuple[set[int], set[_Edge]]:
    """Identities of the leaves and edges of the other tensors, for :func:`check_known`."""
    tensors = list(tensors)
    return (
        {id(t) for t in tensors if t.grad_fn is None},
        {(t.grad_fn, t.output_nr) for t in tensors if t.grad_fn is not None},
    )


def check_known(outputs: Iterable[Any], given: Tensor, leaves: set[int], edges: set[_Edge]) -> None:
    """Raise ``RuntimeError`` if ``outputs`` depend on a leaf other than ``given`` and the known ones.

    A field may branch and meet a parameter that the first call did not use. Its gradient would be silently missing.
    """
    stack: list[Any] = [(output.grad_fn, output.output_nr) for output in outputs if output.grad_fn is not None]
    visited = set()
    while stack:
        edge = stack.pop()
        node = edge[0]
        if node is None or node in visited or edge in edges:
            continue
        visited.add(node)
        following = node.next_functions
        if following:
            stack.extend(following)
        elif node.name() == _LEAF:
            variable = node.variable
            if id(variable) not in leaves and variable is not given:
                raise RuntimeError(
                    f"the field used a tensor of shape {tuple(variable.shape)} that requires a gradient and that it "
                    "did not use at the start of the solve, so its gradient would be missing; pass it in params=[...]"
                )


def reachable_parameters(function: Any) -> list[Tensor]:
    """Return the tensors requiring gradients that ``function`` holds: its module's parameters, closure, partial,
    defaults.

    Example:
        >>> module = torch.nn.Linear(2, 2)
        >>> len(reachable_parameters(lambda t, y: module(y)))
        2
    """
    found: dict[int, Tensor] = {}
    _collect(function, found, set(), 4)
    return list(found.values())


def _collect(value: Any, found: dict[int, Tensor], visited: set[int], depth: int) -> None:
    if depth == 0 or id(value) in visited:
        return
    visited.add(id(value))
    inside: Sequence[Any] = ()
    if isinstance(value, Tensor):
        if value.requires_grad:
            found[id(value)] = value
    elif isinstance(value, nn.Module):
        for parameter in value.parameters():
            _collect(parameter, found, visited, 1)
    elif isinstance(value, list | tuple | set):
        inside = list(value)
    elif isinstance(value, dict):
        inside = list(value.values())
    elif callable(value) and not isinstance(value, type):
        cells = getattr(value, "__closure__", None) or ()
        code, names = getattr(value, "__code__", None), getattr(value, "__globals__", {})
        inside = [
            *(cell.cell_contents for cell in cells if _filled(cell)),
            *(names[name] for name in (code.co_names if code else ()) if name in names),
            *(getattr(value, "__defaults__", None) or ()),
            getattr(value, "__self__", None),
            getattr(value, "func", None),
            *getattr(value, "args", ()),
            *(getattr(value, "keywords", None) or {}).values(),
        ]
        if not cells:
            inside += list(getattr(value, "__dict__", {}).values())
    for item in inside:
        _collect(item, found, visited, depth - 1)


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
