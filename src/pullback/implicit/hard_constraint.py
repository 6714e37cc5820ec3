"""Physics as a hard constraint: the last layer of a network is the solution of an equation, domain by domain."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from pullback.core.checks import check_floating, check_integer, check_tensor
from pullback.core.random import drawing_device
from pullback.core.shapes import Float, Tensor
from pullback.implicit.arguments import check_function, check_number
from pullback.implicit.least_squares import least_squares
from pullback.implicit.partition import DomainPartition
from pullback.implicit.solution import Solution

__all__ = ["ConstrainedField", "HardConstraint"]

Terms = Callable[[Tensor], tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]


class ConstrainedField(NamedTuple):
    """A field in the span of basis functions, see :class:`HardConstraint`.

    Attributes:
        field: ``[*batch, *grid]``.
        coefficients: ``[*batch, experts, n]``.
        solution: of the problems of least squares, ``[*batch, experts]`` each; ``None`` where none was solved.
    """

    field: Float[Tensor, "*batch_and_grid"]
    coefficients: Float[Tensor, "*batch experts n"]
    solution: Solution | None


class HardConstraint(nn.Module):
    r"""Last layer that solves an equation in the span of a network's outputs, in each part of the domain by itself.

    .. math:: u(x) = \sum_n \omega_{kn}\, b_n(x) \;\; \text{for } x \in \Omega_k, \qquad
        \omega_k = \arg\min_\omega \tfrac12 \Big|\mathcal F\Big(\sum_n \omega_n b_n\Big)\Big|^2_{\Omega_k}
        + \tfrac{\rho}{2} |\omega|^2

    The basis functions ``b_n`` are what the network gives, on the points of a grid; the residual ``F`` of the equation
    in the points of one domain, with the conditions at the edges of the whole, decides the coefficients of that domain
    by :func:`~pullback.implicit.least_squares`. The derivative goes through the coefficients by the implicit function
    theorem. With one domain this is a hard constraint as such, with many a mixture of experts whose router is the
    partition: their problems are small and know nothing of each other. What the equation makes of a field is linear in
    it but for a function of the values at a point, so that the operators act once, on the basis functions, before
    anything is solved. With ``soft`` the coefficients are parameters, a linear layer: the baseline, whose only
    constraint is the penalty :meth:`violation`.

    Args:
        terms: from fields ``[*lead, *grid]`` to two tuples: what the equation needs in every point, ``[*lead, *grid]``
            each, and what conditions at the edges need, ``[*lead, m]`` each with an ``m`` of its own; linear.
        residual: ``(inside, edges, *data) -> [*lead, rows]``, what should be zero; ``inside`` are the terms of a set of
            points ``[*lead, points]``, ``edges`` those of the edges ``[*lead, m]``, data ``[*lead, ...]`` or with ones.
        functions: ``n`` >= 1, basis functions.
        partition: of the grid, as :func:`~pullback.implicit.partition_domain` gives it; its blocks are
            the experts. In the points of its halo an expert looks at the equation too, so that the parts fit.
        samples: >= 1, points that each expert looks at, drawn anew at each call; all of its points by default.
        ridge: > 0, ``rho``: it decides what the residual leaves open where basis functions depend on each other.
        start: the first value of all coefficients, that of the layer where ``soft`` is set.
        damping, tolerance, max_iterations: of :func:`~pullback.implicit.least_squares`.
        soft: whether the coefficients are parameters.

    Attributes:
        coefficients: ``[experts, n]``, parameters where ``soft`` is set, ``None`` else.

    Raises:
        TypeError: ``terms`` or ``residual`` cannot be called; on call, ``basis`` is no floating tensor.
        ValueError: a number is out of range; on call, another number of functions, another grid, terms of other
            shapes, or a result of ``residual`` without the leading dimensions.

    Example:
        >>> from pullback.implicit import partition_domain
        >>> x = torch.linspace(0, 1, 41).double()
        >>> def terms(u):  # of u' = u, u(0) = 1
        ...     return (u, torch.gradient(u, spacing=(x,), dim=-1, edge_order=2)[0]), (u[..., :1],)
        >>> def residual(inside, edges):
        ...     return torch.cat([inside[1] - inside[0], 10 * (edges[0] - 1)], -1)
        >>> layer = HardConstraint(terms, residual, 3, partition=partition_domain((41,), (1,)), ridge=1e-9)
        >>> parabola = layer(torch.stack([x**0, x, x**2]))
        >>> [round(v, 2) for v in parabola.field[::20].tolist()]  # exp: 1.0, 1.65, 2.72
        [1.0, 1.64, 2.71]

    References:
        Chalapathi, Du, Krishnapriyan (2024), Scaling physics-informed hard constraints with mixture-of-experts, eq. 3;
        Negiar, Mahoney, Krishnapriyan (2023), Learning differentiable solvers for systems with hard constraints.
    """

    def __init__(
        self,
        terms: Terms,
        residual: Callable[..., Tensor],
        functions: int,
        *,
        partition: DomainPartition,
        samples: int | None = None,
        ridge: float = 1e-8,
        start: float = 1.0,
        damping: float = 1e-3,
        tolerance: float | None = None,
        max_iterations: int = 50,
        soft: bool = False,
    ) -> None:
        super().__init__()
        check_function("terms", terms)
        check_function("residual", residual)
        check_integer("functions", functions, 1)
        if not isinstance(partition, DomainPartition):
            raise TypeError(f"partition must be a DomainPartition, got {type(partition).__name__}")
        check_number("ridge", ridge)
        check_number("damping", damping)
        check_integer("max_iterations", max_iterations, 1)
        if samples is not None:
            check_integer("samples", samples, 1)
            if samples > partition.index[0].numel():
                raise ValueError(f"samples must be at most {partition.index[0].numel()} in a block, got {samples}")
        self.terms, self.residual, self.functions, self.partition = terms, residual, functions, partition
        self.samples, self.ridge, self.start = samples, ridge, float(start)
        self.options = {"damping": damping, "tolerance": tolerance, "max_iterations": max_iterations}
        shape = (len(partition.index), functions)
        self.coefficients = nn.Parameter(torch.full(shape, self.start)) if soft else None

    def forward(
        self, basis: Float[Tensor, "*batch_n_grid"], *data: Tensor, generator: torch.Generator | None = None
    ) -> ConstrainedField:
        """Return the field.

        Args:
            basis: ``[*batch, n, *grid]``.
            data: ``[*batch, ...]`` each, given to ``residual`` as ``[*batch, 1, ...]``.
            generator: of the samples; torch's own by default.

        Returns:
            ``ConstrainedField``, differentiable in ``basis`` and ``data``.
        """
        if self.coefficients is None:
            solution = self.solve(basis, *data, generator=generator)
            omega = solution.value
        else:
            batch, solution = self._batch(basis), None
            omega = self.coefficients.expand(*batch, -1, -1)
        blocks = torch.einsum("...nkp,...kn->...kp", self.partition.split(basis), omega)
        return ConstrainedField(self.partition.join(blocks), omega, solution)

    def solve(
        self,
        basis: Float[Tensor, "*batch_n_grid"],
        *data: Tensor,
        experts: Sequence[int] | None = None,
        generator: torch.Generator | None = None,
    ) -> Solution:
        """Return the coefficients of some experts ``[*batch, experts, n]``, all by default: what one device does."""
        batch = self._batch(basis)
        between = _between(data, len(batch))
        inside, edges = self._terms(basis)
        places = self.partition.index.flatten(1).to(basis.device)
        split = [part.flatten(len(batch) + 1)[..., places] for part in inside]  # [*batch, n, experts, points]
        if experts is not None:
            split = [part[..., list(experts), :] for part in split]
        count, points = split[0].shape[-2:]
        if self.samples is not None:
            drawn = torch.rand(count, points, generator=generator, device=drawing_device(generator, basis))
            chosen = drawn.argsort(-1)[:, : self.samples].to(basis.device)
            split = [part.gather(-1, chosen.expand(*part.shape[:-1], -1)) for part in split]
        matrices = [part.movedim(-3, -1).contiguous() for part in split]
        ends = [part.mT[..., None, :, :].expand(*batch, count, -1, -1).contiguous() for part in edges]

        def residual(omega: Tensor, matrices: list[Tensor], ends: list[Tensor], *data: Tensor) -> Tensor:
            inside, edges = (tuple((m @ omega[..., None])[..., 0] for m in part) for part in (matrices, ends))
            return torch.cat([self._rows(inside, edges, data), math.sqrt(self.ridge) * omega], -1)

        init = basis.new_full((*batch, count, self.functions), self.start)
        options: dict[str, Any] = {"batch_ndim": len(batch) + 1, "solve": "lu", **self.options}
        return least_squares(residual, init, matrices, ends, *between, **options)

    def violation(self, field: Float[Tensor, "*batch_and_grid"], *data: Tensor) -> Float[Tensor, "*batch rows"]:
        """Return the residual of a whole field ``[*batch, *grid]``, across the borders of the domains."""
        inside, edges = self._terms(field)
        lead = field.ndim - len(self.partition.shape)
        points = tuple(part.flatten(lead)[..., None, :] for part in inside)
        rows = self._rows(points, tuple(part[..., None, :] for part in edges), _between(data, lead))
        return rows[..., 0, :]

    def _batch(self, basis: Tensor) -> torch.Size:
        check_floating("basis", basis)
        wanted = (self.functions, *self.partition.shape)
        if tuple(basis.shape[-len(wanted) :]) != wanted:
            raise ValueError(f"basis must end with {wanted}, got shape {tuple(basis.shape)}")
        if basis.numel() == 0:
            raise ValueError(f"basis must hold at least one problem, got shape {tuple(basis.shape)}")
        return basis.shape[: -len(wanted)]

    def _rows(self, inside: tuple[Tensor, ...], edges: tuple[Tensor, ...], data: tuple[Tensor, ...]) -> Tensor:
        value, lead = self.residual(inside, edges, *data), inside[0].shape[:-1]
        if not isinstance(value, Tensor) or value.shape[:-1] != lead:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"residual must return [*lead, rows] with lead {tuple(lead)}, got {got}")
        return value

    def _terms(self, field: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        lead = field.shape[: field.ndim - len(self.partition.shape)]
        inside, edges = self.terms(field)
        if not inside or any(part.shape != field.shape for part in inside):
            got = [tuple(part.shape) for part in inside]
            raise ValueError(f"terms in every point must have the shape {tuple(field.shape)}, got {got}")
        if any(part.shape[:-1] != lead for part in edges):
            got = [tuple(part.shape) for part in edges]
            raise ValueError(f"terms at the edges must be [*lead, m] with lead {tuple(lead)}, got {got}")
        return tuple(inside), tuple(edges)


def _between(data: tuple[Tensor, ...], batch_ndim: int) -> tuple[Tensor, ...]:
    """Return data with a dimension for the experts behind those of the batch."""
    for place, d in enumerate(data):
        if check_tensor(f"data[{place}]", d).ndim < batch_ndim:
            raise ValueError(f"data[{place}] must have the {batch_ndim} dimensions of the batch, got {tuple(d.shape)}")
    return tuple(d.unsqueeze(batch_ndim) for d in data)
