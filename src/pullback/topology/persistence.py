"""Persistence diagrams with a gradient: one function for Rips, lower-star, cubical and alpha filtrations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pullback.core.checks import check_choice, check_finite, check_floating, check_integer
from pullback.core.shapes import Bool, Float, Int
from pullback.core.transforms import physical
from pullback.topology.alpha import alpha_pairs
from pullback.topology.pairing import Pairs, as_array, joined
from pullback.topology.reduction import check_simplices, with_faces
from pullback.topology.rips import BACKENDS, check_distances, rips_stack
from pullback.topology.sublevel import cubical_stack, lower_star_stack

__all__ = ["KINDS", "Diagram", "check_degrees", "persistence"]

KINDS = ("rips", "lower_star", "cubical", "alpha")


class Diagram(NamedTuple):
    """The bars of one degree ``k`` of a whole batch, one after the other, by birth and death within an element.

    Attributes:
        birth: ``[m]`` values at which classes appear, with gradient.
        death: ``[m]`` values at which they vanish, with gradient; infinite for those that stay.
        birth_simplex: ``[m, k + 1]`` vertices of the simplex that gives birth (cubical: ``[m, axes]``, the indices of
            the pixel whose value it is).
        death_simplex: ``[m, k + 2]`` vertices of the one that ends it (cubical: ``[m, axes]``); -1 for what stays.
        batch: ``[m]`` the element of the batch, counted through all its dimensions.
        degenerate: ``[*batch]`` whether ties among the values leave a choice of pairs: then the gradient is one of
            several.
    """

    birth: Float[Tensor, "m"]
    death: Float[Tensor, "m"]
    birth_simplex: Int[Tensor, "m _"]
    death_simplex: Int[Tensor, "m _"]
    batch: Int[Tensor, "m"]
    degenerate: Bool[Tensor, "*batch"]


def persistence(
    x: Float[Tensor, "..."] | Sequence[Float[Tensor, "..."]],
    *,
    degrees: Sequence[int] = (0,),
    kind: str = "rips",
    simplices: Sequence[Int[Tensor, "_ _"]] | Sequence[Sequence[Int[Tensor, "_ _"]]] | None = None,
    axes: int = 2,
    essential: bool = False,
    backend: str = "auto",
) -> tuple[Diagram, ...]:
    r"""Return persistence diagrams over Z/2, differentiable in the values of the filtration.

    A filtration gives each simplex the value at which it enters:

    .. math:: f_{rips}(\sigma) = \max_{i,j\in\sigma} d_{ij},\quad f_{star}(\sigma) = \max_{i\in\sigma} x_i,\quad
              f_{cubical}(\sigma) = \min_{p\ni\sigma} x_p,\quad f_{alpha}(\sigma) = r^2

    with :math:`r` the radius of the smallest empty ball around :math:`\sigma`. Which simplices form a pair depends on
    the order of the values alone, so it is constant while the order is: pairs are computed without gradient, then
    ``birth`` and ``death`` are gathered from ``x``, and equal the diagram value by value. The gradient is exact where
    values differ; where ties leave a choice, ``degenerate`` says so. Bars without length are left out.

    Args:
        x: filtration values: ``rips`` distances ``[*batch, n, n]``, symmetric, >= 0; ``lower_star`` values ``[*batch,
            n]`` of vertices; ``cubical`` images ``[*batch, *shape]``; ``alpha`` points ``[*batch, n, d]``. A sequence
            of such tensors without batch dimensions is a ragged batch. All finite; vertices and pixels may be ``inf``:
            they never enter.
        degrees: of homology, any set of integers >= 0.
        kind: one of ``"rips"``, ``"lower_star"``, ``"cubical"``, ``"alpha"``.
        simplices: of ``lower_star``: tensors ``[m, vertices]`` of edges, triangles and so on; faces are added. For a
            ragged batch one such sequence for all or, nested, one an element.
        axes: of a ``cubical`` image: 2, of a volume: 3.
        essential: whether bars that never end are returned too, with infinite death.
        backend: ``"auto"``: own loops for degree 0 and 1 of Rips, where no complex is built, and for lower stars;
            gudhi for the rest. ``"reference"``: own matrix reduction. ``"gudhi"``: gudhi. Nothing is ever collapsed,
            which would lose the simplices that carry the values. Pairs are found on the CPU, for each element of the
            batch; values and gradients stay on the device.

    Returns:
        One :class:`Diagram` a degree, the whole batch in one, with the index of the element.

    Raises:
        ImportError: gudhi is needed and not installed.
        TypeError: ``x`` is not floating, ``degrees`` no integers, simplices no integers.
        ValueError: a shape does not fit, a value is NaN or infinite where it must not be, distances are negative or not
            symmetric, a degree is negative or there twice, a simplex names a vertex that is not there, or the reference
            would have to reduce too large a complex.

    Example:
        >>> square = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 0.0]], requires_grad=True)
        >>> components, loops = persistence(torch.cdist(square, square), degrees=(0, 1))
        >>> components.death.tolist(), loops.birth.item(), round(loops.death.item(), 4)
        ([1.0, 1.0, 1.0], 1.0, 1.4142)
        >>> loops.degenerate  # the square's sides are equally long
        tensor(True)
        >>> valley = torch.tensor([0.0, 2.0, 1.0], requires_grad=True)
        >>> (bars,) = persistence(valley, kind="lower_star", simplices=[torch.tensor([[0, 1], [1, 2]])])
        >>> bars.birth.tolist(), bars.death.tolist()
        ([1.0], [2.0])

    References:
        Edelsbrunner, Harer (2010), Computational topology, chapter VII.
        Carriere, Chazal, Glisse, Ike, Kannan, Umeda (2021), Optimizing persistent homology based functions.
    """
    check_choice("kind", kind, KINDS)
    check_choice("backend", backend, BACKENDS)
    wanted = check_degrees(degrees)
    if (simplices is not None) != (kind == "lower_star"):
        raise ValueError(f"simplices must be given for kind 'lower_star' alone, got kind {kind!r}")
    if kind == "alpha" and backend == "reference":
        raise ValueError("backend must be 'auto' or 'gudhi' for kind 'alpha', whose triangulation is gudhi's")
    check_integer("axes", axes, 1)
    dims = {"rips": 2, "lower_star": 1, "alpha": 2, "cubical": axes}[kind]
    ragged = not isinstance(x, Tensor)
    elements: list[Tensor] = [x] if isinstance(x, Tensor) else list(x)
    if not elements:
        raise ValueError("x must have at least one element")
    for i, element in enumerate(elements):
        _check(f"x[{i}]" if ragged else "x", element, kind, dims, ragged)
    batch = (len(elements),) if ragged else tuple(elements[0].shape[: elements[0].ndim - dims])
    parts: list[list[Pairs]] = []
    values: list[Tensor] = []
    for i, element in enumerate(elements):
        stack = element.reshape(-1, *element.shape[element.ndim - dims :])
        if kind == "alpha":
            for points in stack:
                pairs, squared_radii = alpha_pairs(points, wanted)
                parts.append(pairs)
                values.append(squared_radii)
            continue
        values += list(stack.flatten(1)) if ragged else [stack.flatten()]
        if kind == "rips":
            parts.append(rips_stack(stack, wanted, backend))
        elif kind == "cubical":
            parts.append(cubical_stack(as_array(stack), wanted, backend))
        else:
            cells = _cells(simplices, i if ragged else None, stack.shape[-1])
            parts.append(lower_star_stack(as_array(stack), cells, wanted, backend))
    if not parts:
        raise ValueError("x must have at least one element, got none")
    flat = values[0] if len(values) == 1 else torch.cat(values)
    sizes = (
        [v.numel() for v in values] if len(values) > 1 else [len(flat) // max(1, math.prod(batch))] * math.prod(batch)
    )
    offsets = np.cumsum([0, *sizes])
    return tuple(
        _gather(joined([part[i] for part in parts]), flat, offsets, batch, essential) for i in range(len(wanted))
    )


def check_degrees(degrees: Sequence[int]) -> list[int]:
    """Return the degrees of homology as a list, if they are different integers >= 0."""
    if isinstance(degrees, int) or not isinstance(degrees, Sequence):
        raise TypeError(f"degrees must be a sequence of integers, got {type(degrees).__name__}")
    wanted = [check_integer("degrees", k, 0, 20) for k in degrees]
    if not wanted or len(set(wanted)) < len(wanted):
        raise ValueError(f"degrees must be different integers, at least one, got {tuple(degrees)}")
    return wanted


def _check(name: str, x: Tensor, kind: str, dims: int, alone: bool) -> None:
    if physical(check_floating(name, x)).shape != x.shape:
        raise ValueError(f"{name} must not be mapped over by vmap, as values decide how many bars there are; batch it")
    if x.ndim < dims or (alone and x.ndim != dims):
        raise ValueError(f"{name} must have {dims} dimensions{' or more' * (not alone)}, got shape {tuple(x.shape)}")
    if kind == "rips":
        check_distances(name, x)
        return
    never = torch.isposinf(x) if kind != "alpha" else None
    check_finite(name, x if never is None else x.masked_fill(never, 0))
    if not all(x.shape[x.ndim - dims :]):
        raise ValueError(f"{name} must not be empty, got shape {tuple(x.shape)}")


def _cells(simplices: Any, element: int | None, vertices: int) -> list[np.ndarray]:
    """The complex of an element, with all faces."""
    name = "simplices"
    if element is not None and len(simplices) and not isinstance(simplices[0], Tensor):
        if element >= len(simplices):
            raise ValueError(f"simplices must have one complex an element, got {len(simplices)}")
        simplices, name = simplices[element], f"simplices[{element}]"
    cells = check_simplices(simplices)
    for table in cells:
        if table.size and table.max() >= vertices:
            raise ValueError(f"{name} must hold vertices below {vertices}, got {table.max()}")
    return with_faces(cells, vertices)


def _gather(pairs: Pairs, flat: Tensor, sizes: np.ndarray, batch: tuple[int, ...], essential: bool) -> Diagram:
    """Values from the input; bars without length and, unless they are wanted, without end are left out."""
    offset = sizes[pairs.element]
    numbers = as_array(flat)
    ends = []
    for at, outside in ((pairs.birth_at, 0.0), (pairs.death_at, np.inf)):
        places = np.where(at < 0, 0, at + offset)
        ends.append(np.where(at < 0, outside, numbers[places] if len(places) else 0.0))
    birth, death = ends
    kept = (death > birth) & (essential | (pairs.death_at >= 0))
    order = np.flatnonzero(kept)
    order = order[np.lexsort((death[order], birth[order], pairs.element[order]))]
    device = flat.device

    def value(at: np.ndarray, outside: float) -> Tensor:
        index = torch.from_numpy(np.where(at < 0, 0, at + offset)[order]).to(device)
        missing = torch.from_numpy(at[order] < 0).to(device)
        return torch.where(missing, outside, flat[index])

    def moved(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    return Diagram(
        value(pairs.birth_at, 0.0),
        value(pairs.death_at, torch.inf),
        moved(pairs.births[order]),
        moved(pairs.deaths[order]),
        moved(pairs.element[order]),
        moved(pairs.degenerate).view(batch),
    )
