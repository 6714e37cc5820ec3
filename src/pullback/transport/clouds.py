"""Entropic transport between clouds of points with memory for the points alone: costs are computed when needed."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from pullback.core.gradients import replace_gradient
from pullback.core.shapes import Bool, Float, Tensor
from pullback.kernels.sinkhorn import points_loops
from pullback.kernels.softmin import Softmin, compiled_loops, pull, softmin
from pullback.transport.entropic import Problem, partials
from pullback.transport.sweeps import SHRINK, Sweeper

__all__ = ["Debiased", "Solved", "solve_clouds", "solve_debiased"]


class Solved(NamedTuple):
    """A solution without its plan.

    Attributes:
        g: ``[*batch, m]`` potential of the columns.
        value: ``[*batch]``, with derivatives of first order along points, masses, epsilon and reach.
        residual: ``[*batch]`` sum of what column sums miss, as a part of all mass.
        converged: ``[*batch]`` whether it is small enough.
    """

    g: Float[Tensor, "*batch m"]
    value: Float[Tensor, "*batch"]
    residual: Float[Tensor, "*batch"]
    converged: Bool[Tensor, "*batch"]


def solve_clouds(
    x: Tensor,
    y: Tensor,
    problem: Problem,
    cost: str,
    *,
    start: Tensor | None,
    symmetric: bool,
    count: int,
    tolerance: float,
) -> Solved:
    """Solve with the derivatives of an envelope.

    Args:
        x, y: ``[*batch, n, d]`` and ``[*batch, m, d]`` float64.
        problem: of these, with costs of no size.
        cost: ``"sqeuclidean"`` or ``"euclidean"``.
        start: potential of the columns to begin with; ``None``: 0, and epsilon comes down to its value.
        symmetric: x is y, and so are the masses.
        count: sweeps at most.
        tolerance: of the residual.
    """
    reach = torch.full_like(problem.epsilon, torch.inf) if problem.reach is None else problem.reach
    begin = torch.zeros_like(problem.b) if start is None else start.double().expand_as(problem.b)
    tensors = [t.detach() for t in (x, y, problem.a, problem.b, problem.epsilon, reach, begin)]
    options = (cost == "sqeuclidean", start is None, symmetric, count, tolerance)
    g, value, residual, *slopes = solve_points(*tensors, *options)
    scalars = [t.squeeze(-1) for t in (problem.epsilon, problem.reach) if t is not None]
    linear = (slopes[0] * x).sum((-2, -1)) + (slopes[1] * y).sum((-2, -1))
    for slope, t in zip(slopes[2:], (problem.a, problem.b, *scalars), strict=False):
        linear = linear + (slope * t).sum(-1)
    return Solved(g, replace_gradient(value, linear), residual, residual <= tolerance)


class Debiased(NamedTuple):
    """A divergence and what belongs to its three problems.

    Attributes:
        value: ``[*batch]``, with derivatives of first order along points, masses, epsilon and reach.
        residual: ``[*batch]`` the largest of the three.
        g, of_x, of_y: ``[*batch, m]``, ``[*batch, n]`` and ``[*batch, m]`` potentials.
    """

    value: Float[Tensor, "*batch"]
    residual: Float[Tensor, "*batch"]
    g: Float[Tensor, "*batch m"]
    of_x: Float[Tensor, "*batch n"]
    of_y: Float[Tensor, "*batch m"]


def solve_debiased(
    x: Tensor,
    y: Tensor,
    a: Tensor,
    b: Tensor,
    epsilon: Tensor,
    reach: Tensor | None,
    cost: str,
    *,
    start: tuple[Tensor, Tensor, Tensor] | None,
    count: int,
    tolerance: float,
) -> Debiased:
    """Solve between x and y, x and x, y and y at once: the first less half of the others.

    Args:
        x, y, a, b: ``[*batch, ...]`` float64, see :func:`solve_clouds`; without reach masses of one sum.
        epsilon, reach: without dimensions, or ``[*batch]``.
        cost, start, count, tolerance: see there; three potentials to begin with.
    """
    wide = epsilon.expand(a.shape[:-1])[..., None, None]
    far = None if reach is None else reach.expand(a.shape[:-1])[..., None, None]
    begin = [torch.zeros_like(w, memory_format=torch.contiguous_format) for w in (b, a, b)]
    if start is not None:
        begin = [t.detach().double().expand_as(w) for t, w in zip(start, begin, strict=True)]
    given = [t.detach() for t in (x, y, a, b, wide, torch.full_like(wide, torch.inf) if far is None else far)]
    found = solve_three(*given, *begin, cost == "sqeuclidean", start is None, count, tolerance)
    value, residual, g, of_x, of_y, *slopes = found
    scalars = [t.squeeze(-1) for t in (wide, far) if t is not None]
    linear = (slopes[0] * x).sum((-2, -1)) + (slopes[1] * y).sum((-2, -1))
    for slope, t in zip(slopes[2:], (a, b, *scalars), strict=False):
        linear = linear + (slope * t).sum(-1)
    return Debiased(replace_gradient(value, linear), residual, g, of_x, of_y)


_SINGLE = 500.0
"""Largest cost in epsilons for which single precision keeps residuals of 1e-4."""


_PAIRS_OF_KERNEL = 1 << 20
"""Whose costs are kept while a problem is swept: then exponentials are computed once in many sweeps."""


class _Points(Sweeper):
    """With one pair of clouds; costs are recomputed in each sweep."""

    def __init__(self, x: Tensor, y: Tensor, squared: bool, *others: Any) -> None:
        a, b, epsilon, reach, symmetric, tolerance = others
        both = torch.cat([x, y])
        spread = (both.amax(0) - both.amin(0)).square().sum().reshape(1)
        super().__init__(a, b, epsilon, reach, spread if squared else spread.sqrt(), symmetric, tolerance)
        centre = both.mean(0)
        self.squared, self.double = squared, (x - centre, y - centre)
        self.single = (self.double[0].float(), self.double[1].float())
        self.last: dict[bool, Tensor] = {}  # what the next sweep of one side is near to

    def run(self, start: Tensor, scale: bool, count: int) -> tuple[Tensor, Tensor]:
        """Sweep until the problem is done; where masses are held, on arrays."""
        if not (self.balanced and compiled_loops(start)):
            return super().run(start, scale, count)
        epsilon, spread, k = float(self.epsilon), float(self.spread), 0
        words = (self.squared, self.tolerance >= 1e-4 and spread / epsilon <= _SINGLE)
        rows, columns = Softmin(*self.double, *words), Softmin(*self.double[::-1], *words)
        a, log_a, log_b = (t.numpy() for t in (self.a, self.log_a, self.log_b))
        f, g, total = np.zeros_like(a), start.numpy(), a.sum()
        while k < count:
            current = max(epsilon, spread * SHRINK ** (k + 1)) if scale else epsilon
            before, f = (g if self.symmetric else f), rows(g / current + log_b, current)
            if (k or self.symmetric) and current <= epsilon:
                off = a * np.abs(np.expm1((before - f) / epsilon))
                if off.sum() <= self.tolerance * total:
                    break
            g, k = (g + f) / 2 if self.symmetric else columns(f / current + log_a, current), k + 1
            f = g if self.symmetric else f
        g = rows(g / epsilon + log_b, epsilon) if self.symmetric else g
        return torch.from_numpy(np.array(g)), torch.tensor(k)

    def softmin_rows(self, g: Tensor, epsilon: Tensor) -> Tensor:
        """Return the soft minimum along rows."""
        return self._softmin(False, g / epsilon + self.log_b, epsilon)

    def softmin_columns(self, f: Tensor, epsilon: Tensor) -> Tensor:
        """Return the soft minimum along columns."""
        return self._softmin(True, f / epsilon + self.log_a, epsilon)

    def exact_rows(self, g: Tensor) -> Tensor:
        """Return the soft minimum along rows in double precision."""
        return softmin(*self.double, g / self.epsilon + self.log_b, float(self.epsilon), self.squared)

    def _softmin(self, columns: bool, h: Tensor, epsilon: Tensor) -> Tensor:
        # In single precision the exponents are right to 1e-7 of their size.
        enough = self.tolerance >= 1e-4 and float(self.spread / epsilon) <= _SINGLE
        x, y = self.single if enough else self.double
        x, y = (y, x) if columns else (x, y)
        near = self.last.get(columns)
        found = softmin(x, y, h.to(x.dtype), float(epsilon), self.squared, None if near is None else near.to(x.dtype))
        self.last[columns] = found.double()
        return self.last[columns]


@torch.library.custom_op(
    "pullback::sinkhorn_points",
    mutates_args=(),
    schema="(Tensor x, Tensor y, Tensor a, Tensor b, Tensor epsilon, Tensor reach, Tensor start, bool squared, "
    "bool scale, bool symmetric, int count, float tolerance) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def solve_points(
    x: Tensor,
    y: Tensor,
    a: Tensor,
    b: Tensor,
    epsilon: Tensor,
    reach: Tensor,
    start: Tensor,
    squared: bool,
    scale: bool,
    symmetric: bool,
    count: int,
    tolerance: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return g, value, residual and the slopes of the value along x, y, a, b, epsilon and reach, problem by problem."""
    batch = a.shape[:-1]
    tensors = (x, y, a, b, epsilon, reach, start)
    flat = [t.reshape(-1, *t.shape[len(batch) :]) for t in tensors]
    with torch.no_grad():
        each = [_one(*one, squared, scale, symmetric, count, tolerance) for one in zip(*flat, strict=True)]
    if not each:
        return tuple(torch.empty_like(t) for t in _like(*tensors))  # type: ignore[return-value]
    alone = len(each) == 1
    parts = [part[0].contiguous().unsqueeze(0) if alone else torch.stack(part) for part in zip(*each, strict=True)]
    return tuple(t.reshape((*batch, *t.shape[1:])) for t in parts)  # type: ignore[return-value]


@torch.library.custom_op(
    "pullback::sinkhorn_three",
    mutates_args=(),
    schema="(Tensor x, Tensor y, Tensor a, Tensor b, Tensor epsilon, Tensor reach, Tensor g, Tensor of_x, Tensor of_y, "
    "bool squared, bool scale, int count, float tolerance) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def solve_three(
    x: Tensor,
    y: Tensor,
    a: Tensor,
    b: Tensor,
    epsilon: Tensor,
    reach: Tensor,
    g: Tensor,
    of_x: Tensor,
    of_y: Tensor,
    squared: bool,
    scale: bool,
    count: int,
    tolerance: float,
) -> tuple[Tensor, ...]:
    """Return value, residual, three potentials and the slopes of the value along the first six."""
    batch = a.shape[:-1]
    tensors = (x, y, a, b, epsilon, reach, g, of_x, of_y)
    flat = [t.reshape(-1, *t.shape[len(batch) :]) for t in tensors]
    with torch.no_grad():
        each = [_three(*one, squared, scale, count, tolerance) for one in zip(*flat, strict=True)]
    if not each:
        return tuple(torch.empty_like(t) for t in _like_three(*tensors))
    parts = [part[0].unsqueeze(0) if len(each) == 1 else torch.stack(part) for part in zip(*each, strict=True)]
    return tuple(t.reshape((*batch, *t.shape[1:])) for t in parts)


def _three(
    x: Tensor,
    y: Tensor,
    a: Tensor,
    b: Tensor,
    epsilon: Tensor,
    reach: Tensor,
    g: Tensor,
    of_x: Tensor,
    of_y: Tensor,
    *options: Any,
) -> tuple[Tensor, ...]:
    squared, scale, *last = options
    g, value, residual, sx, sy, sa, sb, se, sr = _one(x, y, a, b, epsilon, reach, g, squared, scale, False, *last)
    sx, sy, sa, sb = (
        sx.clone(memory_format=torch.contiguous_format),
        sy.clone(memory_format=torch.contiguous_format),
        sa.clone(),
        sb.clone(),
    )
    found = []
    for points, weights, start, along, mass in ((x, a, of_x, sx, sa), (y, b, of_y, sy, sb)):
        own = _one(points, points, weights, weights, epsilon, reach, start, squared, scale, True, *last)
        found.append(own[0])
        value, residual = value - own[1] / 2, torch.maximum(residual, own[2])
        along -= (own[3] + own[4]) / 2
        mass -= (own[5] + own[6]) / 2
        se, sr = se - own[7] / 2, sr - own[8] / 2
    return value, residual, g, *found, sx, sy, sa, sb, se, sr


def _like_three(
    x: Tensor, y: Tensor, a: Tensor, b: Tensor, epsilon: Tensor, reach: Tensor, *_: Any
) -> tuple[Tensor, ...]:
    one, scalar = a[..., 0], a[..., :1]
    return one, one, b, a, b, x, y, a, b, scalar, scalar


@solve_three.register_fake
def _(*tensors: Any) -> tuple[Tensor, ...]:
    return tuple(t.new_empty(t.shape) for t in _like_three(*tensors))


@solve_three.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> Any:
    return solve_three(*_moved(info, in_dims, arguments, 9), *arguments[9:]), (0,) * 11


def _one(
    x: Tensor, y: Tensor, a: Tensor, b: Tensor, epsilon: Tensor, reach: Tensor, start: Tensor, *options: Any
) -> tuple[Tensor, ...]:
    squared, scale, symmetric, count, tolerance = options
    e, held = epsilon.squeeze(-1), bool(reach.isinf().all())
    if held and x.device.type == "cpu" and len(x) * len(y) <= _PAIRS_OF_KERNEL:
        few = _one_of_few(x, y, a, b, epsilon, reach, start, *options)
        if few is not None:
            return few
    sweeper = _Points(x, y, squared, a, b, e, reach.squeeze(-1), symmetric, tolerance)
    g = sweeper.run(start, scale, count)[0]
    f = sweeper.exact_rows(g) / (1 + e / reach.squeeze(-1))
    left, right = f / e + sweeper.log_a, g / e + sweeper.log_b
    rows, spent, along_x = pull(x, y, left, right, float(e), squared)
    columns, _, along_y = pull(y, x, right, left, float(e), squared)
    problem = Problem(x, a, b, sweeper.log_a, sweeper.log_b, epsilon, None if held else reach)
    found = partials(problem, f, g, rows, columns, spent.sum(-1))
    return (*found[1:4], along_x, along_y, *found[4:])


def _one_of_few(
    x: Tensor, y: Tensor, a: Tensor, b: Tensor, epsilon: Tensor, reach: Tensor, start: Tensor, *options: Any
) -> tuple[Tensor, ...] | None:
    """The same with a kernel of all pairs, by compiled loops, where there are some."""
    squared, scale, symmetric, count, tolerance = options
    e = float(epsilon)
    left, right, supply, demand, begin = (t.numpy() for t in (x, y, a, b, start))
    centre = left.mean(0)
    points, others = left - centre, np.ascontiguousarray((right - centre).T)
    most = np.maximum(points.max(0), others.max(1)) - np.minimum(points.min(0), others.min(1))
    spread = float(most @ most) if squared else float(most @ most) ** 0.5
    single = tolerance >= 1e-4 and spread / e <= _SINGLE
    supply, demand, begin = (np.ascontiguousarray(t) for t in (supply, demand, begin))
    words = (single, scale, symmetric, count, tolerance, SHRINK)
    solved = points_loops(points, others, squared, supply, demand, e, begin, *words)
    if solved is None:
        return None
    g, f, columns, spent, along_x, along_y = solved  # from here on as `partials`, of arrays
    shift = (f @ supply - g @ demand) / (2 * demand.sum())
    f, g = f - shift, g + shift
    residual = np.abs(columns - demand).sum() / demand.sum()
    scalars = f @ supply + g @ demand, residual, (f @ supply + g @ columns - spent) / e, 0.0
    value, missed, along, none = (torch.tensor(float(t), dtype=torch.float64) for t in scalars)
    parts = [torch.from_numpy(t) for t in (g, along_x, along_y.T, f, g - e)]
    return parts[0], value, missed, *parts[1:], along.reshape(1), none.reshape(1)


def _like(x: Tensor, y: Tensor, a: Tensor, b: Tensor, epsilon: Tensor, *_: Any) -> tuple[Tensor, ...]:
    one, scalar = a[..., 0], a[..., :1]
    return b, one, one, x, y, a, b, scalar, scalar


@solve_points.register_fake
def _(*tensors: Any) -> tuple[Tensor, ...]:
    return tuple(t.new_empty(t.shape) for t in _like(*tensors))


@solve_points.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> Any:
    return solve_points(*_moved(info, in_dims, arguments, 7), *arguments[7:]), (0,) * 9


def _moved(info: Any, in_dims: tuple[int | None, ...], arguments: tuple[Any, ...], count: int) -> list[Tensor]:
    return [
        t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)
        for t, dim in zip(arguments[:count], in_dims[:count], strict=True)
    ]
