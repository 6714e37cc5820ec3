r"""Finite elements on triangles: spaces, matrices with a gradient in coefficients and vertices, exact embeddings.

A function of a space is :math:`u_h=\sum_j u_j\varphi_j`; what is called its coefficients are the :math:`u_j`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from pullback.core.checks import (
    check_broadcast,
    check_choice,
    check_floating,
    check_integer,
    check_same_dtype,
    check_shape,
)
from pullback.core.shapes import Float, Int, Tensor
from pullback.core.transforms import can_look, kept_property
from pullback.dynamics.triangulations import Mesh
from pullback.implicit import SparseMatrix, SparsePattern, linear_solve

__all__ = [
    "FunctionSpace",
    "assemble",
    "evaluate",
    "finite_element_loss",
    "load_vector",
    "project",
    "prolongation",
    "solve_dirichlet",
]

Coefficient = Tensor | Callable[[Float[Tensor, "m q 2"]], Tensor]

_DEGREES = {"lagrange": (1, 2), "discontinuous": (0, 1), "crouzeix_raviart": (1,)}


def _quadrature() -> tuple[Tensor, Tensor]:
    """Points (barycentric) and weights of sum 1 of the rule of six points, exact for polynomials of degree 4.

    Two orbits (1 - 2 a, a, a): the equations for their moments have this solution in radicals (Dunavant, 1985).
    """
    root = (38 - 44 * 0.4**0.5) ** 0.5
    weight = (213125 - 53320 * 10**0.5) ** 0.5
    points, weights = [], []
    for sign in (1, -1):
        a = (8 - 10**0.5 + sign * root) / 18
        for k in range(3):
            points.append([1 - 2 * a if i == k else a for i in range(3)])
            weights.append((620 + sign * weight) / 3720)
    return torch.tensor(points, dtype=torch.float64), torch.tensor(weights, dtype=torch.float64)


_POINTS, _WEIGHTS = _quadrature()


@dataclass(frozen=True, eq=False)
class FunctionSpace:
    r"""A space of finite elements: which polynomials on each triangle, joined how.

    ``"lagrange"`` (degree 1, 2): continuous, coefficients are values at vertices (and at middles of edges).
    ``"discontinuous"`` (degree 0, 1): each cell by itself, coefficients are its mean or the values at its corners.
    ``"crouzeix_raviart"`` (degree 1): coefficients are values at the middles of edges, where alone it is continuous.

    Attributes:
        mesh: the triangles.
        family: see above.
        degree: of the polynomials.

    Raises:
        TypeError: ``mesh`` is no :class:`Mesh`.
        ValueError: the family is unknown or does not have this degree.

    Example:
        >>> from pullback.dynamics import grid_mesh
        >>> space = FunctionSpace(grid_mesh((2, 2)), "lagrange", 2)
        >>> space.size, space.dofs.shape, len(space.dirichlet_dofs)
        (25, torch.Size([8, 6]), 16)

    References:
        Brenner, Scott (2008), The mathematical theory of finite element methods, chapter 3. Crouzeix, Raviart (1973).
    """

    mesh: Mesh
    family: str = "lagrange"
    degree: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.mesh, Mesh):
            raise TypeError(f"mesh must be a Mesh, got {type(self.mesh).__name__}")
        check_choice("family", self.family, tuple(_DEGREES))
        if check_integer("degree", self.degree) not in _DEGREES[self.family]:
            raise ValueError(f"degree must be one of {_DEGREES[self.family]} for {self.family}, got {self.degree}")

    @kept_property
    def dofs(self) -> Int[Tensor, "m l"]:
        """``[m, l]`` int64, the numbers of the coefficients of each cell: corners first, then edges opposite them."""
        mesh = self.mesh
        if self.family == "crouzeix_raviart":
            return mesh.cell_edges
        if self.family == "discontinuous":
            local = 3 if self.degree else 1
            return torch.arange(local * len(mesh.cells), device=mesh.cells.device).view(-1, local)
        if self.degree == 1:
            return mesh.cells
        return torch.cat([mesh.cells, len(mesh.vertices) + mesh.cell_edges], 1)

    @kept_property
    def size(self) -> int:
        """Number of coefficients."""
        return int(self.dofs.max()) + 1

    @kept_property
    def local_points(self) -> Float[Tensor, "l 3"]:
        """``[l, 3]`` barycentric, where the coefficients of a cell are values."""
        corners, middles = torch.eye(3, dtype=torch.float64), (1 - torch.eye(3, dtype=torch.float64)) / 2
        if self.family == "crouzeix_raviart":
            return middles
        if self.degree == 0:
            return torch.full((1, 3), 1 / 3, dtype=torch.float64)
        return corners if self.degree == 1 else torch.cat([corners, middles])

    @property
    def dof_points(self) -> Float[Tensor, "n 2"]:
        """``[size, 2]``, where the coefficients are values."""
        corners = self.mesh.vertices[self.mesh.cells]
        points = self.local_points.to(corners) @ corners
        return points.flatten(0, 1)[self._first]

    @kept_property
    def _first(self) -> Tensor:
        """``[size]``, of each coefficient one place in the flattened :attr:`dofs`."""
        flat = self.dofs.flatten()
        places = torch.arange(len(flat), device=flat.device).flip(0)
        return torch.empty(self.size, dtype=torch.int64, device=flat.device).scatter_(0, flat.flip(0), places)

    @kept_property
    def dirichlet_dofs(self) -> Int[Tensor, "b"]:
        """``[b]`` int64, the coefficients on the boundary, in order; none for a discontinuous space."""
        mesh = self.mesh
        if self.family == "discontinuous":
            return torch.empty(0, dtype=torch.int64, device=mesh.cells.device)
        if self.family == "crouzeix_raviart":
            return mesh.boundary_edges
        vertices = mesh.boundary.nonzero()[:, 0]
        return vertices if self.degree == 1 else torch.cat([vertices, len(mesh.vertices) + mesh.boundary_edges])

    @kept_property
    def free_dofs(self) -> Int[Tensor, "f"]:
        """``[size - b]`` int64, the coefficients that are not on the boundary, in order."""
        free = torch.ones(self.size, dtype=torch.bool, device=self.dofs.device)
        free[self.dirichlet_dofs] = False
        return free.nonzero()[:, 0]

    @kept_property
    def pattern(self) -> SparsePattern:
        """Pairs of coefficients that share a cell, in order of rows: the pattern of its matrices."""
        return self._coupling[0]

    @kept_property
    def _coupling(self) -> tuple[SparsePattern, Tensor]:
        key = (self.dofs[:, :, None] * self.size + self.dofs[:, None, :]).flatten()
        pairs, places = key.unique(return_inverse=True)
        return SparsePattern(pairs // self.size, pairs % self.size, (self.size, self.size)), places

    def tabulate(self, barycentric: Float[Tensor, "*batch 3"]) -> tuple[Tensor, Tensor]:
        """Return the basis of a cell at points given by barycentric coordinates.

        Returns:
            Values ``[*batch, l]`` and derivatives with respect to the three coordinates ``[*batch, l, 3]``.
        """
        check_shape("barycentric", check_floating("barycentric", barycentric), (3,))
        one = torch.eye(3, dtype=barycentric.dtype, device=barycentric.device)
        lead = barycentric.shape[:-1]
        if self.degree == 0:
            return barycentric.new_ones(*lead, 1), barycentric.new_zeros(*lead, 1, 3)
        if self.family == "crouzeix_raviart":
            return 1 - 2 * barycentric, (-2 * one).expand(*lead, 3, 3)
        if self.degree == 1:
            return barycentric, one.expand(*lead, 3, 3)
        a, b = barycentric.roll(-1, -1), barycentric.roll(-2, -1)
        values = torch.cat([barycentric * (2 * barycentric - 1), 4 * a * b], -1)
        at_corners = (4 * barycentric - 1)[..., None] * one
        at_edges = 4 * (b[..., None] * one.roll(-1, 0) + a[..., None] * one.roll(-2, 0))
        return values, torch.cat([at_corners, at_edges.expand(*lead, 3, 3)], -2)

    def _tables(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Weights ``[q]``, values ``[q, l]`` and derivatives ``[q, l, 3]`` at the points of the quadrature."""
        values, derivatives = self.tabulate(_POINTS)
        return _WEIGHTS.to(like), values.to(like), derivatives.to(like)


def _sampled(name: str, given: Coefficient, space: FunctionSpace, tail: tuple[int, ...] = ()) -> Tensor:
    """Return a coefficient ``[*batch, m, q or 1, *tail]`` from one number a cell, or a function of the points."""
    mesh = space.mesh
    if callable(given):
        points = _POINTS.to(mesh.vertices) @ mesh.vertices[mesh.cells]
        values = given(points)
        wanted = (len(mesh.cells), len(_POINTS), *tail)
        if not isinstance(values, Tensor) or values.shape[-len(wanted) :] != wanted:
            came = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(
                f"{name} must return shape (..., {', '.join(map(str, wanted))}) for its points, got {came}"
            )
    else:
        check_shape(name, check_floating(name, given), (len(mesh.cells), *tail))
        values = given.unsqueeze(-1 - len(tail))
    check_same_dtype(**{name: values, "vertices": mesh.vertices})
    return values


def assemble(form: str, space: FunctionSpace, *, coefficient: Coefficient | None = None) -> SparseMatrix:
    r"""Return the matrix of a bilinear form on a space.

    .. math::
        \text{mass: } \int c\,\varphi_i\varphi_j, \qquad
        \text{stiffness: } \int c\,\nabla\varphi_i\cdot\nabla\varphi_j, \qquad
        \text{advection: } \int \varphi_i\,w\cdot\nabla\varphi_j

    in row i and column j, by a rule of six points a cell that is exact for polynomials of degree 4; gradients are
    taken cell by cell, so that those of spaces with jumps leave the jumps out.

    Args:
        form: ``"mass"``, ``"stiffness"`` or ``"advection"``.
        space: with m cells.
        coefficient: c, one number a cell ``[*batch, m]`` or a function from points ``[m, 6, 2]`` to ``[*batch, m, 6]``;
            1 by default. For advection the velocity w, ``[*batch, m, 2]`` or a function to ``[*batch, m, 6, 2]``.

    Returns:
        ``SparseMatrix`` with values ``[*batch, k]``, differentiable in the coefficient and in ``space.mesh.vertices``.

    Raises:
        TypeError: a tensor that is not floating, or of another dtype than the vertices.
        ValueError: an unknown form, advection without a velocity, or a shape that does not fit.

    Example:
        >>> from pullback.dynamics import Mesh
        >>> triangle = Mesh(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0, 1, 2]]))
        >>> assemble("stiffness", FunctionSpace(triangle)).dense().add(0.0).tolist()
        [[1.0, -0.5, -0.5], [-0.5, 0.5, 0.0], [-0.5, 0.0, 0.5]]

    References:
        Brenner, Scott (2008), The mathematical theory of finite element methods, chapter 0.6. Dunavant (1985).
    """
    _check_space(space)
    check_choice("form", form, ("mass", "stiffness", "advection"))
    mesh = space.mesh
    weights, values, derivatives = space._tables(mesh.vertices)
    tail = (2,) if form == "advection" else ()
    if coefficient is None:
        if form == "advection":
            raise ValueError("coefficient must be the velocity of advection, got None")
        coefficient = mesh.vertices.new_ones(len(mesh.cells))
    sampled = _sampled("coefficient", coefficient, space, tail)
    flat = sampled.shape[-1 - len(tail)] == 1  # one number a cell: what depends on the points is summed before
    if flat:
        sampled = sampled.squeeze(-1 - len(tail))
    point = "" if flat else "q"
    if form == "mass":
        table = torch.einsum("q,qi,qj->qij", weights, values, values)
        local = torch.einsum(f"{point}ij,...m{point},m->...mij", table.sum(0) if flat else table, sampled, mesh.areas)
    elif form == "stiffness":
        slopes = mesh.slopes
        metric = torch.einsum("mak,mbk,m->mab", slopes, slopes, mesh.areas)
        table = torch.einsum("q,qia,qjb->qijab", weights, derivatives, derivatives)
        table = table.sum(0) if flat else table
        local = torch.einsum(f"{point}ijab,mab,...m{point}->...mij", table, metric, sampled)
    else:
        table = torch.einsum("q,qi,qja->qija", weights, values, derivatives)
        flow = torch.einsum(f"mak,m,...m{point}k->...m{point}a", mesh.slopes, mesh.areas, sampled)
        local = torch.einsum(f"{point}ija,...m{point}a->...mij", table.sum(0) if flat else table, flow)
    pattern, places = space._coupling
    zeros = local.new_zeros(*local.shape[:-3], len(pattern.rows))
    return SparseMatrix(pattern, zeros.index_add(-1, places, local.flatten(-3)))


def load_vector(source: Coefficient, space: FunctionSpace) -> Float[Tensor, "*batch n"]:
    r"""Return :math:`b_i=\int f\varphi_i` by the same rule of six points.

    Args:
        source: f, one number a cell ``[*batch, m]`` or a function from points ``[m, 6, 2]`` to ``[*batch, m, 6]``.
        space: with m cells and n coefficients.

    Returns:
        ``[*batch, n]``, differentiable in the source and in ``space.mesh.vertices``.

    Raises:
        TypeError: a tensor that is not floating, or of another dtype than the vertices.
        ValueError: a shape that does not fit.

    Example:
        >>> from pullback.dynamics import grid_mesh
        >>> load_vector(lambda x: x[..., 0], FunctionSpace(grid_mesh((3, 3)))).sum()  # of x over the unit square
        tensor(0.5000, dtype=torch.float64)
    """
    _check_space(space)
    weights, values, _ = space._tables(space.mesh.vertices)
    sampled = _sampled("source", source, space)
    table = weights[:, None] * values
    if sampled.shape[-1] == 1:
        table = table.sum(0, keepdim=True)
    local = torch.einsum("qi,...mq,m->...mi", table, sampled, space.mesh.areas)
    zeros = local.new_zeros(*local.shape[:-2], space.size)
    return zeros.index_add(-1, space.dofs.flatten(), local.flatten(-2))


def project(source: Coefficient, space: FunctionSpace) -> Float[Tensor, "*batch n"]:
    r"""Return the coefficients of the function of a space that is nearest in :math:`L^2`: :math:`Mc=b`.

    Args:
        source: as in :func:`load_vector`.
        space: with n coefficients.

    Returns:
        ``[*batch, n]``, differentiable in the source and in ``space.mesh.vertices``.

    Raises:
        TypeError: a tensor that is not floating, or of another dtype than the vertices.
        ValueError: a shape that does not fit.

    Example:
        >>> from pullback.dynamics import grid_mesh
        >>> space = FunctionSpace(grid_mesh((1, 1)))
        >>> [round(c, 6) for c in project(lambda x: 2 * x[..., 0] - x[..., 1], space).tolist()]  # it is in the space
        [0.0, -1.0, 2.0, 1.0]
    """
    return linear_solve(assemble("mass", _check_space(space)), load_vector(source, space)).value


def solve_dirichlet(
    matrix: SparseMatrix,
    load: Float[Tensor, "*#batch n"],
    space: FunctionSpace,
    *,
    boundary: Float[Tensor, "*#batch b"] | None = None,
) -> Float[Tensor, "*batch n"]:
    r"""Return u with given values on the boundary and :math:`\sum_jA_{ij}u_j=b_i` for every i that is not on it.

    Args:
        matrix: A, sums of what :func:`assemble` returns for ``space``.
        load: b, ``[*batch, n]``.
        space: with n coefficients, b of them on the boundary.
        boundary: ``[*batch, b]`` values at ``space.dirichlet_dofs``; 0 by default.

    Returns:
        ``[*batch, n]``, differentiable in the values of the matrix, the load and the boundary.

    Raises:
        TypeError: a tensor that is not floating, or of another dtype than the matrix.
        ValueError: the matrix has another pattern than the space, or a shape does not fit.
        ConvergenceError: the matrix that is left is singular (not told under ``torch.func.vmap``).

    Example:
        >>> from pullback.dynamics import grid_mesh
        >>> space = FunctionSpace(grid_mesh((2, 2)))
        >>> data = space.dof_points[space.dirichlet_dofs] @ torch.tensor([1.0, 2.0]).double()
        >>> u = solve_dirichlet(assemble("stiffness", space), torch.zeros(9).double(), space, boundary=data)
        >>> round(float(u[4]), 6)  # in the middle: linear functions are harmonic
        1.5
    """
    _check_space(space)
    if matrix.pattern is not space.pattern:
        raise ValueError("matrix must have the pattern of the space: be assembled for it, or a sum of such values")
    check_same_dtype(matrix=matrix.values, load=check_floating("load", load))
    check_shape("load", load, (space.size,))
    fixed = space.dirichlet_dofs
    if boundary is None:
        boundary = load.new_zeros(len(fixed))
    check_same_dtype(matrix=matrix.values, boundary=check_floating("boundary", boundary))
    check_shape("boundary", boundary, (len(fixed),))
    shape = check_broadcast(matrix=matrix.shape[:-2], load=load.shape[:-1], boundary=boundary.shape[:-1])
    held = torch.zeros(space.size, dtype=torch.bool, device=load.device)
    held[fixed] = True
    lift = load.new_zeros(*boundary.shape[:-1], space.size).index_copy(-1, fixed, boundary)
    rows, columns = matrix.pattern.rows, matrix.pattern.columns
    unit = (rows == columns).to(load.dtype)
    inner = SparseMatrix(matrix.pattern, torch.where(held[rows] | held[columns], unit, matrix.values))
    right = torch.where(held, lift, load - matrix @ lift)
    return linear_solve(inner, right.expand(*shape, space.size), check=can_look(right)).value


def evaluate(
    coefficients: Float[Tensor, "*batch n"], space: FunctionSpace, points: Float[Tensor, "p 2"]
) -> Float[Tensor, "*batch p"]:
    """Return a function of a space at points; on an edge where it jumps, from one of the sides.

    Args:
        coefficients: ``[*batch, n]``.
        space: with n coefficients.
        points: ``[p, 2]`` in the domain.

    Returns:
        ``[*batch, p]``, differentiable in the coefficients and in the points.

    Raises:
        TypeError: a tensor that is not floating, or of another dtype than the vertices.
        ValueError: a shape that does not fit, or points outside of the domain.

    Example:
        >>> from pullback.dynamics import grid_mesh
        >>> space = FunctionSpace(grid_mesh((1, 1), dtype=torch.float32))
        >>> evaluate(torch.tensor([0.0, 1.0, 2.0, 3.0]), space, torch.tensor([[0.5, 0.25]]))
        tensor([1.2500])
    """
    _check_coefficients("coefficients", coefficients, space)
    located = space.mesh.locate(points)
    outside = (located.cells < 0).nonzero()[:, 0]
    if len(outside):
        place = [round(x, 6) for x in points[outside[0]].tolist()]
        raise ValueError(f"points must lie in the mesh, got {len(outside)} outside, the first at {place}")
    values, _ = space.tabulate(located.barycentric)
    return (coefficients[..., space.dofs[located.cells]] * values).sum(-1)


def prolongation(coarse: FunctionSpace, fine: FunctionSpace) -> SparseMatrix:
    r"""Return the matrix that takes the coefficients of a function to those on a refined mesh: the same function.

    Spaces are nested where the meshes are and the fine one has at least the degree: Lagrange in Lagrange, and Lagrange
    or discontinuous ones in discontinuous ones. Its transpose takes load vectors to the coarse space.

    Args:
        coarse: with n coefficients.
        fine: on ``coarse.mesh`` or a refinement of it, with N coefficients.

    Returns:
        ``SparseMatrix [N, n]``.

    Raises:
        TypeError: an argument is no :class:`FunctionSpace`.
        ValueError: the meshes or the spaces are not nested.

    Example:
        >>> from pullback.dynamics import grid_mesh
        >>> mesh = grid_mesh((1, 1))
        >>> step = prolongation(FunctionSpace(mesh), FunctionSpace(mesh.refine()))
        >>> (step @ torch.tensor([0.0, 0.0, 1.0, 1.0]).double()).tolist()
        [0.0, 0.0, 1.0, 1.0, 0.0, 0.5, 0.5, 0.5, 1.0]
    """
    _check_space(coarse, "coarse")
    _check_space(fine, "fine")
    depth = fine.mesh.depth_below(coarse.mesh)
    known = {"lagrange", "discontinuous"}
    nested = {coarse.family, fine.family} <= known and coarse.degree <= fine.degree
    if not nested or (coarse.family == "discontinuous" and fine.family == "lagrange"):
        raise ValueError(
            f"spaces must be nested, got {coarse.family} of degree {coarse.degree} in {fine.family} of degree "
            f"{fine.degree} (project across others)"
        )
    cells = torch.arange(len(fine.dofs), device=fine.dofs.device).repeat_interleave(fine.dofs.shape[1])[fine._first]
    ancestors = cells // 4**depth
    with torch.no_grad():
        values, _ = coarse.tabulate(coarse.mesh.barycentric(ancestors, fine.dof_points))
    rows = torch.arange(fine.size, device=cells.device)[:, None].expand(values.shape)
    keep = values.abs() > 1e-6 * (1 if values.dtype == torch.float64 else 10)
    columns = coarse.dofs[ancestors]
    pattern = SparsePattern(rows[keep], columns[keep], (fine.size, coarse.size))
    return SparseMatrix(pattern, values[keep])


def finite_element_loss(
    error: Float[Tensor, "*batch n"], space: FunctionSpace, *, norm: str = "l2"
) -> Float[Tensor, "*batch"]:
    r"""Return the squared norm of a function, not of its coefficients.

    .. math:: \|e_h\|_{L^2}^2 = e^TMe, \qquad \|e_h\|_{H^1}^2 = e^T(M+K)e

    On graded meshes a mean over coefficients counts a domain by its vertices; this one counts it by its area.

    Args:
        error: ``[*batch, n]`` coefficients.
        space: with n coefficients.
        norm: ``"l2"`` or ``"h1"``, the latter cell by cell where the space has jumps.

    Returns:
        ``[*batch]`` >= 0, differentiable in ``error`` and in ``space.mesh.vertices``.

    Raises:
        TypeError: ``error`` is not floating, or of another dtype than the vertices.
        ValueError: a shape that does not fit, or an unknown norm.

    Example:
        >>> from pullback.dynamics import grid_mesh
        >>> space = FunctionSpace(grid_mesh((4, 4)))
        >>> finite_element_loss(space.dof_points[:, 0], space)  # of x squared over the unit square
        tensor(0.3333, dtype=torch.float64)

    References:
        Bouziani, Boulle (2024), Structure-preserving operator learning, arXiv 2410.01065, section 2.
    """
    check_choice("norm", norm, ("l2", "h1"))
    _check_coefficients("error", error, space)
    local = error[..., space.dofs]
    weights, values, derivatives = space._tables(space.mesh.vertices)
    areas = space.mesh.areas
    at_points = torch.einsum("qi,...mi->...mq", values, local)
    total = torch.einsum("q,m,...mq->...", weights, areas, at_points.square())
    if norm == "h1":
        slopes = torch.einsum("qia,mak,...mi->...mqk", derivatives, space.mesh.slopes, local)
        total = total + torch.einsum("q,m,...mqk->...", weights, areas, slopes.square())
    return total


def _check_space(space: object, name: str = "space") -> FunctionSpace:
    if not isinstance(space, FunctionSpace):
        raise TypeError(f"{name} must be a FunctionSpace, got {type(space).__name__}")
    return space


def _check_coefficients(name: str, value: Tensor, space: FunctionSpace) -> None:
    _check_space(space)
    check_same_dtype(**{name: check_floating(name, value), "vertices": space.mesh.vertices})
    check_shape(name, value, (space.size,))
