r"""Sweeps of Sinkhorn: from costs and masses to potentials, without derivatives.

A sweep in the log domain costs two exponentials a pair. Where the potentials stand still to some hundred epsilons, the
kernel :math:`K_{ij}=\exp((f_i+g_j-C_{ij})/\varepsilon)` is computed once, and sweeps are products with it that scale
its rows by u and its columns by v; :math:`\varepsilon\log u` then goes into f, and so for v, before either leaves the
range of numbers. What does not stay in range is swept in the log domain. Where masses are held, the same loop is
compiled (:mod:`pullback.kernels.sinkhorn`).

References:
    Schmitzer (2019), Stabilized sparse scaling algorithms for entropy regularized transport problems, sections 3.1
    (absorption) and 3.2 (scaling of epsilon). Chizat, Peyre, Schmitzer, Vialard (2018), Scaling algorithms for
    unbalanced optimal transport problems. Feydy et al. (2019), section 3.2 (the symmetric problem). Sejourne, Vialard,
    Peyre (2022), Faster unbalanced optimal transport (translation).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pullback.kernels.sinkhorn import sinkhorn_loops

__all__ = ["SHRINK", "Sweeper", "log_masses", "sweep"]

SHRINK = 0.25
"""Of epsilon from sweep to sweep, until it has its value."""
_BLOCK = 20
"""Sweeps with one kernel."""
_RANGE = 100.0
"""Of log u and log v: what is below e^-745 in the kernel, and lost, then has no part in any sum."""
_PAUSE = 10
"""Sweeps in the log domain after one with the kernel that left the range."""


def log_masses(x: Tensor) -> Tensor:
    """Return logarithms, -inf with derivative 0 for no mass.

    Example:
        >>> log_masses(torch.tensor([1.0, 0.0]))
        tensor([0., -inf])
    """
    return torch.where(x > 0, torch.where(x > 0, x, 1.0).log(), -torch.inf)


@torch.library.custom_op(
    "pullback::sinkhorn",
    mutates_args=(),
    schema="(Tensor cost, Tensor a, Tensor b, Tensor epsilon, Tensor reach, Tensor start, bool scale, bool symmetric, "
    "int count, float tolerance) -> (Tensor, Tensor)",
)
def sweep(
    cost: Tensor,
    a: Tensor,
    b: Tensor,
    epsilon: Tensor,
    reach: Tensor,
    start: Tensor,
    scale: bool,
    symmetric: bool,
    count: int,
    tolerance: float,
) -> tuple[Tensor, Tensor]:
    """Sweep until each problem is done.

    Args:
        cost: ``[*batch, n, m]`` float64, inf forbids a pair.
        a, b: ``[*batch, n]``, ``[*batch, m]`` masses.
        epsilon, reach: ``[*batch, 1, 1]``; a reach of inf holds the masses.
        start: ``[*batch, m]`` potential of the columns to begin with.
        scale: begin with an epsilon of the spread of the costs, and quarter it from sweep to sweep.
        symmetric: costs are symmetric and a = b; both potentials are one, the mean of the old and the new.
        count: sweeps at most.
        tolerance: of the row sums, as a part of all mass.

    Returns:
        ``[*batch, m]`` potential of the columns, and the sweeps it took, ``[*batch]``.
    """
    with torch.no_grad():
        found = (
            _compiled(cost, a, b, epsilon, start, scale, symmetric, count, tolerance) if _held(cost, reach) else None
        )
        return found or _Dense(cost, a, b, epsilon, reach, symmetric, tolerance).run(start, scale, count)


def _held(cost: Tensor, reach: Tensor) -> bool:
    return cost.device.type == "cpu" and bool(reach.isinf().all())


def _compiled(
    cost: Tensor,
    a: Tensor,
    b: Tensor,
    epsilon: Tensor,
    start: Tensor,
    scale: bool,
    symmetric: bool,
    count: int,
    tolerance: float,
) -> tuple[Tensor, Tensor] | None:
    """The loop of sweeps in compiled form; ``None`` where there is none, or where numbers leave its range."""
    sizes = ((-1, *cost.shape[-2:]), (-1, a.shape[-1]), (-1, b.shape[-1]), (-1,), (-1, b.shape[-1]))
    if 0 in cost.shape:
        return None
    parts = zip((cost, a, b, epsilon, start), sizes, strict=True)
    c, p, q, e, begin = (x.reshape(size).contiguous().numpy() for x, size in parts)
    found = sinkhorn_loops(c, p, q, e, begin, scale, symmetric, count, tolerance, SHRINK)
    if found is None or not found[2].all():
        return None
    return torch.from_numpy(found[0]).reshape(b.shape), torch.from_numpy(found[1]).reshape(b.shape[:-1])


class Sweeper:
    """The loop of sweeps, whatever computes one.

    Args:
        a, b: masses ``[*batch, n]`` and ``[*batch, m]``.
        epsilon, reach, spread: ``[*batch, 1]``; the last is of the costs.
        symmetric: both potentials are one.
        tolerance: of the row sums.
    """

    def __init__(
        self, a: Tensor, b: Tensor, epsilon: Tensor, reach: Tensor, spread: Tensor, symmetric: bool, tolerance: float
    ) -> None:
        self.a, self.b, self.log_a, self.log_b = a, b, log_masses(a), log_masses(b)
        self.epsilon, self.reach, self.spread = epsilon, reach, spread
        self.balanced, self.symmetric, self.tolerance = bool(reach.isinf().all()), symmetric, tolerance
        self.block = 0  # sweeps that `scaled` takes at once

    def softmin_rows(self, g: Tensor, epsilon: Tensor) -> Tensor:
        """Return ``-epsilon log sum_j b_j exp((g_j - cost_ij) / epsilon)``."""
        raise NotImplementedError

    def softmin_columns(self, f: Tensor, epsilon: Tensor) -> Tensor:
        """Return the same of f along columns."""
        raise NotImplementedError

    def scaled(
        self, f: Tensor, g: Tensor, done: Tensor, sweeps: Tensor, count: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
        """Take up to ``count`` sweeps at once; return potentials, what is done, sweeps of each, and how many."""
        raise NotImplementedError

    def run(self, start: Tensor, scale: bool, count: int) -> tuple[Tensor, Tensor]:
        """Sweep until all problems are done; return the potential of the columns and the sweeps of each."""
        f, g = torch.zeros_like(self.a), start.clone()
        sweeps = torch.zeros(g.shape[:-1], dtype=torch.int64, device=g.device)
        done, k, pause = torch.zeros_like(sweeps, dtype=torch.bool), 0, 0
        while k < count:
            current = torch.maximum(self.epsilon, self.spread * SHRINK ** (k + 1)) if scale else self.epsilon
            last = (current <= self.epsilon).squeeze(-1)
            if k and not self.balanced:
                f, g = self._translated(f, g)
            before, f = f, self._rows(g, current)
            if k or self.symmetric:
                before = g if self.symmetric else before
                done = done | (last & (self._error(before, f, self.epsilon) <= self.tolerance))
                if bool(done.all()):
                    break
            new = (g + f) / 2 if self.symmetric else self._columns(f, current)
            g = torch.where(done.unsqueeze(-1), g, new)
            f = g if self.symmetric else f
            sweeps, k, pause = torch.where(done, sweeps, k + 1), k + 1, pause - 1
            if self.block and pause < 0 and bool(last.all()):
                f, g, done, sweeps, taken = self.scaled(f, g, done, sweeps, min(self.block, count - k))
                k, pause = k + taken, pause if taken == self.block else _PAUSE
                if bool(done.all()):
                    break
        if self.symmetric:  # also right where there is no mass, which no error sees
            g = self._rows(g, self.epsilon)
        return g.clone(), sweeps

    def _rows(self, g: Tensor, epsilon: Tensor) -> Tensor:
        return self.softmin_rows(g, epsilon) / (1 + epsilon / self.reach)

    def _columns(self, f: Tensor, epsilon: Tensor) -> Tensor:
        return self.softmin_columns(f, epsilon) / (1 + epsilon / self.reach)

    def _error(self, before: Tensor, f: Tensor, epsilon: Tensor) -> Tensor:
        """Row sums with ``before``, against what they should be, as a part of the mass."""
        change = ((before - f) * (1 / epsilon + 1 / self.reach)).expm1().abs()
        wanted = self.a if self.balanced else self.a * torch.exp(-before / self.reach)
        return (wanted * change).sum(-1) / self.a.sum(-1)

    def _translated(self, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Move mass between the potentials: the best f + t, g - t. Sweeps alone do that slowly where reach is far."""
        if self.symmetric:
            return f, g
        rows, columns = (torch.logsumexp(w - x / self.reach, -1, True) for w, x in ((self.log_a, f), (self.log_b, g)))
        shift = torch.where(self.reach.isinf(), 0, self.reach * (rows - columns) / 2).nan_to_num(0, 0, 0)
        return f + shift, g - shift


class _Dense(Sweeper):
    """With the costs of all pairs."""

    def __init__(
        self, cost: Tensor, a: Tensor, b: Tensor, epsilon: Tensor, reach: Tensor, symmetric: bool, tolerance: float
    ) -> None:
        allowed = cost < torch.inf
        most, least = (torch.where(allowed, cost, x).flatten(-2) for x in (-torch.inf, torch.inf))
        spread = (most.amax(-1) - least.amin(-1)).unsqueeze(-1)
        super().__init__(a, b, epsilon.squeeze(-1), reach.squeeze(-1), spread, symmetric, tolerance)
        self.minus_cost, self.block = -cost, _BLOCK

    def softmin_rows(self, g: Tensor, epsilon: Tensor) -> Tensor:
        """Return the soft minimum along rows."""
        logits = (g.unsqueeze(-2) + self.minus_cost).div_(epsilon.unsqueeze(-1)).add_(self.log_b.unsqueeze(-2))
        return -epsilon * torch.logsumexp(logits, -1)

    def softmin_columns(self, f: Tensor, epsilon: Tensor) -> Tensor:
        """Return the soft minimum along columns."""
        logits = (f.unsqueeze(-1) + self.minus_cost).div_(epsilon.unsqueeze(-1)).add_(self.log_a.unsqueeze(-1))
        return -epsilon * torch.logsumexp(logits, -2)

    def scaled(
        self, f: Tensor, g: Tensor, done: Tensor, sweeps: Tensor, count: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
        """Take sweeps as products with one kernel, up to ``count`` of them."""
        e = self.epsilon
        kernel = (f.unsqueeze(-1) + g.unsqueeze(-2) + self.minus_cost).div_(e.unsqueeze(-1)).exp_()
        power, inverse = 1 / (1 + e / self.reach), 1 + e / self.reach
        rows, columns = torch.exp(-f / self.reach), torch.exp(-g / self.reach)  # 1 where masses are held
        u, v = torch.ones_like(f), torch.ones_like(g)
        total, taken = self.a.sum(-1), 0
        for _ in range(count):
            new_u = rows / (kernel @ (self.b * v).unsqueeze(-1)).squeeze(-1)
            new_u = new_u if self.balanced else new_u**power
            ratio = u / new_u if self.balanced else (u / new_u) ** inverse
            wanted = self.a if self.balanced else self.a * rows * u ** (-e / self.reach)
            error = (wanted * (ratio - 1).abs()).sum(-1) / total
            if self.symmetric:
                new_v = new_u = (u * new_u).sqrt()
            else:
                new_v = columns / ((self.a * new_u).unsqueeze(-2) @ kernel).squeeze(-2)
                new_v = new_v if self.balanced else new_v**power
            largest = torch.maximum(new_u.log().abs().amax(-1), new_v.log().abs().amax(-1))
            if not bool(((largest <= _RANGE) | done).all()):  # nor NaN
                break
            done = done | (error <= self.tolerance)
            taken += 1
            if bool(done.all()):
                break
            sweeps = sweeps + (~done).long()
            if len(sweeps.shape):
                new_u, new_v = (torch.where(done.unsqueeze(-1), x, y) for x, y in ((u, new_u), (v, new_v)))
            u, v = new_u, new_v
        return f + e * u.log(), g + e * v.log(), done, sweeps, taken


@sweep.register_fake
def _(cost: Tensor, a: Tensor, b: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(b), b.new_empty(b.shape[:-1], dtype=torch.int64)


@sweep.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> Any:
    moved = [
        t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)
        for t, dim in zip(arguments[:6], in_dims[:6], strict=True)
    ]
    return sweep(*moved, *arguments[6:]), (0, 0)
