"""Which points without derivative a function touches, in which line, and whether its gradient depends on them."""

from __future__ import annotations

import linecache
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from pullback.core.checks import check_callable, check_integer
from pullback.core.random import drawing_device
from pullback.gradients.kinks import KINKS, kink_distance

__all__ = ["KinkReport", "OneSidedSlopes", "TouchedKink", "kink_report"]

_HERE = (os.path.dirname(torch.__file__) + os.sep, os.path.dirname(os.path.dirname(__file__)) + os.sep)


@dataclass(frozen=True)
class TouchedKink:
    """An operation some of whose inputs lie on a point without derivative.

    Attributes:
        operation: a key of :data:`~pullback.gradients.KINKS`.
        file: of the source.
        line: its number, from 1.
        source: its text.
        count: how many elements, or slices, lie there.
        total: of how many.
        matters: whether the cotangent is not zero at one of them, so that the gradient depends on which derivative
            autograd takes; ``None`` where no cotangent arrives: a comparison decides, or the graph is cut.
    """

    operation: str
    file: str
    line: int
    source: str
    count: int
    total: int
    matters: bool | None


@dataclass(frozen=True)
class OneSidedSlopes:
    """Derivatives of the function along one random direction of unit length.

    Attributes:
        left: ``(f(x) - f(x - h v)) / h``.
        right: ``(f(x + h v) - f(x)) / h``.
        autograd: ``grad f(x) . v``.
    """

    left: float
    right: float
    autograd: float


@dataclass(frozen=True)
class KinkReport:
    """What :func:`kink_report` found.

    Attributes:
        kinks: what was touched, in the order of execution.
        unknown: names of custom autograd functions in the graph, whose kinks nobody has said: never taken as smooth.
        slopes: one entry a probe.
        value: of the function.
    """

    kinks: tuple[TouchedKink, ...]
    unknown: tuple[str, ...]
    slopes: tuple[OneSidedSlopes, ...]
    value: float

    @property
    def smooth(self) -> bool | None:
        """Whether no kink matters; ``None`` where a comparison or a custom function leaves it open."""
        if any(kink.matters for kink in self.kinks):
            return False
        return None if self.unknown or any(kink.matters is None for kink in self.kinks) else True


def kink_report(
    fn: Callable[..., Tensor],
    *inputs: Any,
    tolerance_ulps: float = 0,
    probes: int = 4,
    generator: torch.Generator | None = None,
) -> KinkReport:
    r"""Run ``fn`` and report the points without derivative that it touches.

    Every torch operation with an entry in :data:`~pullback.gradients.KINKS` is looked at as it runs; one backward pass
    gives the cotangents. For networks with bias parameters that share no weights this decides exactly: the loss is
    differentiable at its parameters if and only if no touched kink ``matters``. Otherwise a kink that matters may
    still cancel: the slopes along random directions tell.

    Args:
        fn: returns one number; deterministic.
        *inputs: its arguments; floating tensors are what is differentiated, and are copied.
        tolerance_ulps: >= 0; kinks as near as this many units in the last place count as touched.
        probes: number of directions, >= 0.
        generator: of the directions.

    Returns:
        A :class:`KinkReport`.

    Raises:
        TypeError: ``fn`` is not callable, or does not return a floating tensor.
        ValueError: no input is a floating tensor, ``fn`` returns more than one number, or it is not deterministic: the
            message names the first line whose result differs.

    Example:
        >>> report = kink_report(lambda x: x.relu().sum() - (-x).relu().sum(), torch.tensor([0.0, 1.0]).double())
        >>> [(kink.operation, kink.count, kink.matters) for kink in report.kinks]
        [('relu', 1, True), ('relu', 1, True)]
        >>> report.smooth  # although it is the identity: both touch the same number
        False

    References:
        Lee, Park, Aiken (2023), On the correctness of automatic differentiation for neural networks with
        machine-representable parameters, theorem 3.6.
    """
    check_callable("fn", fn)
    check_integer("probes", probes, 0)
    if not tolerance_ulps >= 0:
        raise ValueError(f"tolerance_ulps must be >= 0, got {tolerance_ulps}")
    leaves, structure = pytree.tree_flatten(inputs)
    copies = [_copy(leaf) for leaf in leaves]
    wanted = [i for i, leaf in enumerate(copies) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if not wanted:
        raise ValueError("inputs must hold a floating tensor")

    def run(values: list[Any]) -> Tensor:
        found = fn(*pytree.tree_unflatten(values, structure))
        if not isinstance(found, Tensor) or not found.is_floating_point():
            raise TypeError(f"fn must return a floating tensor, got {type(found).__name__}")
        if found.numel() != 1:
            raise ValueError(f"fn must return one number, got shape {tuple(found.shape)}")
        return found.reshape(())

    first, again, others = _Recorder(tolerance_ulps), _Recorder(tolerance_ulps), [_copy(leaf) for leaf in leaves]
    with again, torch.no_grad():
        run(others)
    with first:
        value = run(copies)
    _check_equal(first.trace, again.trace)
    gradients: list[Tensor | None] = [None] * len(wanted)
    if value.requires_grad:
        gradients = list(torch.autograd.grad(value, [copies[i] for i in wanted], allow_unused=True))
    number = float(value.detach())
    kinks = tuple(touched.result() for touched in first.touched)
    slopes = tuple(_slopes(run, leaves, wanted, gradients, number, generator) for _ in range(probes))
    return KinkReport(kinks, tuple(dict.fromkeys(_custom(value))), slopes, number)


def _copy(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    copy = leaf.detach().clone()
    return copy.requires_grad_() if copy.is_floating_point() else copy


class _Touched:
    def __init__(self, operation: str, site: tuple[str, int], mask: Tensor) -> None:
        self.operation, self.site, self.mask = operation, site, mask
        self.matters: bool | None = None

    def arrive(self, cotangent: Tensor) -> None:
        there = cotangent[self.mask] if cotangent.shape == self.mask.shape else cotangent
        self.matters = bool(self.matters) or bool((there != 0).any())

    def result(self) -> TouchedKink:
        file, line = self.site
        source = linecache.getline(file, line).strip()
        return TouchedKink(self.operation, file, line, source, int(self.mask.sum()), self.mask.numel(), self.matters)


class _Recorder(TorchFunctionMode):
    """Looks at each operation with kinks as it runs, and keeps a fingerprint of every result."""

    def __init__(self, tolerance: float) -> None:
        super().__init__()
        self.tolerance = tolerance
        self.touched: list[_Touched] = []
        self.trace: list[tuple[str, tuple[str, int], float]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").strip("_")
        name = {"linalg_norm": "norm", "vector_norm": "norm", "linalg_vector_norm": "norm"}.get(name, name)
        touched = None
        if name in KINKS and args and isinstance(args[0], Tensor) and args[0].is_floating_point() and args[0].numel():
            words = {key: value for key, value in kwargs.items() if key not in ("inplace", "out")}
            distance = kink_distance(name, args[0].detach(), *args[1:], ulps=True, **words)
            mask = distance <= self.tolerance
            if bool(mask.any()):
                touched = _Touched(name, _site(), mask)
                self.touched.append(touched)
        result = func(*args, **kwargs)
        first = next((t for t in pytree.tree_leaves(result) if isinstance(t, Tensor)), None)
        if first is not None and not first.is_sparse:
            if touched is not None and first.requires_grad and first.grad_fn is not None:
                first.register_hook(touched.arrive)
            self.trace.append((name, _site(), float(first.detach().double().sum()) if first.numel() else 0.0))
        return result


def _site() -> tuple[str, int]:
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_HERE):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


def _check_equal(one: list[Any], two: list[Any]) -> None:
    for a, b in zip(one, two, strict=False):
        if a != b and not (a[:2] == b[:2] and a[2] != a[2] and b[2] != b[2]):  # NaN is equal to NaN here
            file, line = a[1]
            text = linecache.getline(file, line).strip()
            raise ValueError(f"fn must be deterministic, two runs differ at {file}:{line}: {text}")
    if len(one) != len(two):
        raise ValueError(f"fn must be deterministic, two runs take {len(one)} and {len(two)} operations")


def _custom(value: Tensor) -> Iterator[str]:
    """Yield the names of the custom functions in the graph behind a value."""
    stack, seen = [value.grad_fn], set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, BackwardCFunction):
            yield node.name().removesuffix("Backward")
        stack += [parent for parent, _ in node.next_functions]


def _slopes(
    run: Callable[[list[Any]], Tensor],
    leaves: list[Any],
    wanted: list[int],
    gradients: list[Tensor | None],
    value: float,
    generator: torch.Generator | None,
) -> OneSidedSlopes:
    points = [leaves[i].detach() for i in wanted]
    drawn = [
        torch.randn(p.shape, generator=generator, dtype=p.dtype, device=drawing_device(generator, p)).to(p.device)
        for p in points
    ]
    length = sum(float(v.double().square().sum()) for v in drawn) ** 0.5
    v = [direction / length for direction in drawn]
    eps = max(torch.finfo(p.dtype).eps for p in points)
    h = eps**0.5 * max(1.0, *(float(p.abs().max()) if p.numel() else 0.0 for p in points))

    def at(side: float) -> float:
        moved = list(leaves)
        for i, p, direction in zip(wanted, points, v, strict=True):
            moved[i] = p + side * direction
        with torch.no_grad():
            return float(run(moved))

    slope = sum(float((g * d).sum()) for g, d in zip(gradients, v, strict=True) if g is not None)
    return OneSidedSlopes((value - at(-h)) / h, (at(h) - value) / h, slope)
