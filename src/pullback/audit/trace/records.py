"""What a trace is made of: operations, trained leaves, stops, exits and backward passes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pullback.audit.trace.private import is_wrapped, unwrap
from pullback.audit.trace.sites import Site

__all__ = ["Event", "Exit", "Leaf", "Node", "NotFinite", "Origin", "tensors_in", "unwrapped"]

NO_ORIGINS: frozenset[int] = frozenset()


class Node:
    """One traced operation (or leaf); ``parents`` are indices of the nodes whose values it used."""

    __slots__ = (
        "constant",
        "cotangent",
        "first_bad",
        "flat",
        "forward",
        "gain_count",
        "gain_log",
        "has_data",
        "index",
        "kinks",
        "leaf",
        "linear",
        "live",
        "op",
        "origins",
        "parents",
        "scale",
        "shape",
        "site",
        "size",
        "straight",
        "ties",
        "values",
        "zero_out",
    )

    def __init__(self, index: int, op: str, site: Site | None, parents: tuple[int, ...]) -> None:
        self.index = index
        self.op = op
        self.site = site
        self.parents = parents
        self.origins: frozenset[int] = NO_ORIGINS
        self.live = False
        self.has_data = False
        self.leaf: Leaf | None = None
        self.linear: dict[int, tuple[float, float]] | None = None
        self.straight = False
        self.constant = False
        self.forward = ""
        self.flat = ""
        self.kinks = 0
        self.ties = 0
        self.size = 0
        self.shape: tuple[int, ...] = ()
        self.scale = 0.0
        self.cotangent: float | None = None
        self.gain_log = 0.0
        self.gain_count = 0
        self.zero_out = 0
        self.first_bad = False
        self.values: tuple[float, float, float] | None = None


@dataclass
class Leaf:
    """A trained tensor: a leaf of the graph that requires grad."""

    node: int
    shape: tuple[int, ...]
    parameter: bool
    reference: Any
    name: str = ""
    norm: float | None = None
    inner: float | None = None
    """Norm of what ``torch.autograd.grad`` returned without a graph: an optimizer never sees it."""
    frozen: bool = False
    gradient: Tensor | None = None


@dataclass
class Origin:
    """A place where the gradient stops: ``node`` holds the value without (useful) gradient."""

    node: int
    code: str
    op: str
    site: Site
    sources: tuple[int, ...]
    """Nodes of the inputs that still carried a gradient."""
    region: int = 0
    """Number of the stretch without gradients that it lies in, 0 where gradients were on."""
    relaxed: bool = False
    """Whether it ran under ``relaxed``, which let it pass."""


@dataclass
class Exit:
    """A traced value that became a Python or NumPy value."""

    node: int
    op: str
    site: Site
    source: int
    visit: int
    live: bool
    upstream: frozenset[int]
    direct: bool
    """Whether the user's own frame asked for it, not a library on the way."""
    linked: bool = False


@dataclass
class Event:
    """One backward pass."""

    node: int | None
    live: bool
    finite: bool
    first: int
    """Index of the first node that belongs to this pass alone."""
    site: Site
    leaves: set[int] = field(default_factory=set)
    number: int = 0
    """Of the pass, from 1 on, those that were not recorded included."""


@dataclass
class NotFinite:
    """An autograd function that turned a finite cotangent into one that is not."""

    node: int
    function: str
    masked: bool
    what: str
    event: int
    """Index of the backward pass that it happened in."""


def tensors_in(value: Any, depth: int = 3) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item, depth - 1)
    elif depth and isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item, depth - 1)


def unwrapped(tensor: Tensor) -> tuple[Tensor, bool]:
    """Return the tensor below torch.func's wrappers, and whether any level requires grad."""
    live = tensor.requires_grad
    while is_wrapped(tensor):
        tensor = unwrap(tensor)
        live = live or tensor.requires_grad
    return tensor, live
