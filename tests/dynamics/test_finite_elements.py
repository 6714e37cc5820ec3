"""Triangulations and finite elements against exact integrals of polynomials, scipy and manufactured solutions."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.spatial
import torch
from torch import Tensor

from pullback.dynamics import (
    FunctionSpace,
    Mesh,
    assemble,
    evaluate,
    finite_element_loss,
    grid_mesh,
    load_vector,
    project,
    prolongation,
    solve_dirichlet,
)
from pullback.implicit import SparseMatrix

REFERENCE = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
ONE = torch.tensor([[0, 1, 2]])
KINDS = [("lagrange", 1), ("lagrange", 2), ("discontinuous", 0), ("discontinuous", 1), ("crouzeix_raviart", 1)]


def scattered(count: int = 40, seed: int = 0) -> Mesh:
    """A Delaunay triangulation of random points and the corners of the unit square."""
    points = np.random.default_rng(seed).random((count, 2))
    points = np.concatenate([points, [[0, 0], [1, 0], [0, 1], [1, 1]]])
    return oriented(points, scipy.spatial.Delaunay(points).simplices)


def oriented(points: np.ndarray, cells: np.ndarray) -> Mesh:
    vertices, cells = torch.from_numpy(points), torch.from_numpy(cells).long()
    a, b, c = vertices[cells].unbind(1)
    turn = torch.linalg.det(torch.stack([b - a, c - a], 1)) < 0
    return Mesh(vertices, torch.where(turn[:, None], cells[:, [0, 2, 1]], cells))


def _monomials(degree: int) -> list[tuple[int, int]]:
    return [(a, d - a) for d in range(degree + 1) for a in range(d + 1)]


def _exact(kind: tuple[str, int], form: str) -> np.ndarray:
    """Element matrices of the reference triangle: basis from interpolation, integrals of monomials a! b! / (a+b+2)!."""
    space = FunctionSpace(Mesh(REFERENCE, ONE), *kind)
    powers = _monomials(kind[1])
    at = (space.local_points @ REFERENCE).numpy()
    basis = np.linalg.inv([[x**a * y**b for a, b in powers] for x, y in at])  # columns: coefficients of each function

    def integral(a: int, b: int) -> float:
        return 0.0 if min(a, b) < 0 else math.factorial(a) * math.factorial(b) / math.factorial(a + b + 2)

    def entry(p: tuple[int, int], q: tuple[int, int]) -> float:
        if form == "mass":
            return integral(p[0] + q[0], p[1] + q[1])
        if form == "advection":  # along (2, -1), on the second
            return 2 * q[0] * integral(p[0] + q[0] - 1, p[1] + q[1]) - q[1] * integral(p[0] + q[0], p[1] + q[1] - 1)
        along_x = p[0] * q[0] and p[0] * q[0] * integral(p[0] + q[0] - 2, p[1] + q[1])
        along_y = p[1] * q[1] and p[1] * q[1] * integral(p[0] + q[0], p[1] + q[1] - 2)
        return along_x + along_y

    return basis.T @ np.array([[entry(p, q) for q in powers] for p in powers]) @ basis


@pytest.mark.parametrize("form", ["mass", "stiffness", "advection"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_element_matrices_are_exact(kind: tuple[str, int], form: str) -> None:
    space = FunctionSpace(Mesh(REFERENCE, ONE), *kind)
    velocity = torch.tensor([[2.0, -1.0]], dtype=torch.float64) if form == "advection" else None
    found = assemble(form, space, coefficient=velocity).dense()
    order = space.dofs[0]
    np.testing.assert_allclose(found[order][:, order], _exact(kind, form), atol=1e-14)


def test_second_degree_by_the_book() -> None:
    space = FunctionSpace(Mesh(REFERENCE, ONE), degree=2)
    book = np.array(
        [
            [6, -1, -1, -4, 0, 0],
            [-1, 6, -1, 0, -4, 0],
            [-1, -1, 6, 0, 0, -4],
            [-4, 0, 0, 32, 16, 16],
            [0, -4, 0, 16, 32, 16],
            [0, 0, -4, 16, 16, 32],
        ]
    )
    order = space.dofs[0]
    np.testing.assert_allclose(assemble("mass", space).dense()[order][:, order], book / 360, atol=1e-14)


def exact(x: Tensor) -> Tensor:
    return (math.pi * x[..., 0]).sin() * x[..., 1].exp()


def coefficient(x: Tensor) -> Tensor:
    return 1 + x[..., 0] * x[..., 1]


def source(x: Tensor) -> Tensor:
    """-div(a grad u) by autograd."""
    with torch.enable_grad():
        at = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(exact(at).sum(), at, create_graph=True)
        flow = coefficient(at)[..., None] * slope
        parts = [torch.autograd.grad(flow[..., k].sum(), at, retain_graph=True)[0][..., k] for k in (0, 1)]
    return -(parts[0] + parts[1])


def true_error(u: Tensor, space: FunctionSpace) -> float:
    """In L2 against the function itself, by a rule of four points on each cell of the mesh refined twice."""
    fine = space.mesh.refine().refine()
    total = 0.0
    for shares, weight in (
        *((row, 25 / 48) for row in ([0.6, 0.2, 0.2], [0.2, 0.6, 0.2], [0.2, 0.2, 0.6])),
        ([1 / 3] * 3, -9 / 16),
    ):
        points = torch.einsum("k,mkd->md", torch.tensor(shares).double(), fine.vertices[fine.cells])
        total += weight * float((fine.areas * (evaluate(u, space, points) - exact(points)).square()).sum())
    return total**0.5


@pytest.mark.parametrize(("kind", "rate", "slack"), [(KINDS[0], 2, 0.15), (KINDS[1], 3, 0.2), (KINDS[4], 2, 0.15)])
def test_manufactured_solutions_converge_at_the_known_rates(kind: tuple[str, int], rate: int, slack: float) -> None:
    grid, errors = grid_mesh((4, 4)), []
    moved = 0.08 * torch.rand(25, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mesh = Mesh(torch.where(grid.boundary[:, None], grid.vertices, grid.vertices + moved), grid.cells)
    for _ in range(2):
        mesh = mesh.refine()
        space = FunctionSpace(mesh, *kind)
        matrix = assemble("stiffness", space, coefficient=coefficient)
        u = solve_dirichlet(
            matrix, load_vector(source, space), space, boundary=exact(space.dof_points)[space.dirichlet_dofs]
        )
        errors.append(true_error(u, space))
    assert abs(math.log2(errors[0] / errors[1]) - rate) <= slack


def test_constants_and_linear_functions_go_through() -> None:
    mesh = scattered()
    for kind in KINDS:
        space = FunctionSpace(mesh, *kind)
        ones = torch.ones(space.size, dtype=torch.float64)
        assert float(ones @ (assemble("mass", space) @ ones)) == pytest.approx(1.0)
        assert (assemble("stiffness", space) @ ones).abs().max() < 1e-12
        if kind[1]:
            plane = project(lambda x: 3 * x[..., 0] - x[..., 1] + 2, space)
            want = 3 * space.dof_points[:, 0] - space.dof_points[:, 1] + 2
            torch.testing.assert_close(plane, want, atol=1e-10, rtol=0)
            flow = assemble("advection", space, coefficient=lambda x: torch.stack([x[..., 1], x[..., 0]], -1))
            # the integral of y * 3 - x over the square
            assert float(ones @ (flow @ plane)) == pytest.approx(1.0)


@pytest.mark.parametrize("kind", KINDS[:2], ids=str)
def test_gradients_of_a_solution_in_coefficient_and_vertices(kind: tuple[str, int]) -> None:
    mesh = grid_mesh((2, 2))

    def solved(a: Tensor, vertices: Tensor) -> Tensor:
        space = FunctionSpace(Mesh(vertices, mesh.cells), *kind)
        matrix = assemble("stiffness", space, coefficient=a)
        u = solve_dirichlet(matrix, load_vector(lambda x: x[..., 0].sin(), space), space)
        return finite_element_loss(u, space, norm="h1")

    generator = torch.Generator().manual_seed(0)
    a = torch.rand(2, 8, generator=generator, dtype=torch.float64) + 0.5
    vertices = mesh.vertices + 0.05 * torch.rand(9, 2, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(solved, (a.requires_grad_(), vertices.requires_grad_()))


def test_functions_of_points_may_come_in_batches_with_gradients() -> None:
    space = FunctionSpace(scattered(8))
    scale = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64, requires_grad=True)
    batch = assemble("mass", space, coefficient=lambda x: scale[:, None, None] * x[..., 0])
    single = assemble("mass", space, coefficient=lambda x: x[..., 0])
    torch.testing.assert_close(batch.dense()[2], 5 * single.dense())
    (slope,) = torch.autograd.grad(batch.values[1].sum(), scale)
    assert slope.tolist() == [0.0, pytest.approx(0.5), 0.0]


@pytest.mark.parametrize(("below", "above"), [(0, 0), (0, 1), (1, 1), (0, 3), (2, 2), (2, 3), (3, 3)])
def test_prolongation_keeps_the_function(below: int, above: int) -> None:
    generator = torch.Generator().manual_seed(0)
    mesh = scattered(12)
    for fine in (mesh, mesh.refine(), mesh.refine().refine()):
        base = fine
        while base.coarse is not None:
            base = base.coarse
        coarse = FunctionSpace(base, *KINDS[below])
        space = FunctionSpace(fine, *KINDS[above])
        c = torch.randn(3, coarse.size, generator=generator, dtype=torch.float64)
        points = torch.rand(200, 2, generator=generator, dtype=torch.float64)
        u = prolongation(coarse, space) @ c
        torch.testing.assert_close(evaluate(u, space, points), evaluate(c, coarse, points), atol=1e-10, rtol=0)


def test_what_is_not_nested_is_refused() -> None:
    mesh = grid_mesh((2, 2))
    fine = mesh.refine()
    with pytest.raises(ValueError, match="meshes must be nested"):
        prolongation(FunctionSpace(grid_mesh((2, 2))), FunctionSpace(fine))
    with pytest.raises(ValueError, match="spaces must be nested, got lagrange of degree 2 in lagrange of degree 1"):
        prolongation(FunctionSpace(mesh, degree=2), FunctionSpace(fine))
    for pair in (("discontinuous", "lagrange"), ("crouzeix_raviart", "crouzeix_raviart")):
        with pytest.raises(ValueError, match="spaces must be nested"):
            prolongation(FunctionSpace(mesh, pair[0], 1), FunctionSpace(fine, pair[1], 1))
    with pytest.raises(TypeError, match="fine must be a FunctionSpace"):
        prolongation(FunctionSpace(mesh), fine)


def test_points_are_located_as_scipy_locates_them() -> None:
    rng = np.random.default_rng(3)
    points = rng.random((300, 2)) ** np.array([3.0, 1.0])  # graded
    triangulation = scipy.spatial.Delaunay(points)
    mesh = oriented(points, triangulation.simplices)
    asked = rng.random((2000, 2)) * 1.2 - 0.1
    located = mesh.locate(torch.from_numpy(asked))
    np.testing.assert_array_equal(located.cells.numpy(), triangulation.find_simplex(asked))
    inside = located.cells >= 0
    again = (located.barycentric[inside, :, None] * mesh.vertices[mesh.cells[located.cells[inside]]]).sum(1)
    np.testing.assert_allclose(again, asked[inside.numpy()], atol=1e-12)
    assert 0 < int(inside.sum()) < 2000
    assert bool((mesh.locate(mesh.vertices).cells >= 0).all())


def test_a_mesh_knows_its_topology() -> None:
    ring = grid_mesh((3, 3), keep=lambda x: ((x - 0.5).abs() > 0.2).any(1))  # a square with a hole
    for mesh in (ring, ring.refine(), scattered()):
        holes = mesh is not ring and mesh.coarse is not ring
        assert len(mesh.vertices) - len(mesh.edges) + len(mesh.cells) == int(holes)  # Euler
        boundary = mesh.edges[mesh.boundary_edges]
        assert (torch.bincount(boundary.flatten())[mesh.boundary.nonzero()] == 2).all()
        ends = mesh.edges[mesh.cell_edges]
        assert not (ends == mesh.cells[:, :, None]).any()  # opposite the corner
    fine = ring.refine()
    torch.testing.assert_close(fine.areas.view(-1, 4).sum(1), ring.areas)
    torch.testing.assert_close(fine.areas[0], ring.areas[0] / 4)
    assert fine.refine().depth_below(ring) == 2


SQUARE = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.5, 0.5]])


@pytest.mark.parametrize(
    ("vertices", "cells", "error", "words"),
    [
        (SQUARE[:, :1], [[0, 1, 2]], ValueError, r"vertices must have shape \(n, 2\)"),
        (SQUARE.long(), [[0, 1, 2]], TypeError, "vertices must be a floating tensor"),
        (SQUARE[:3] * torch.nan, [[0, 1, 2]], ValueError, "vertices must be finite"),
        (SQUARE, [[0, 1]], ValueError, r"cells must have shape \(m, 3\)"),
        (SQUARE, [[0, 1, 9]], ValueError, r"cells must be in 0\.\.4, got 0\.\.9"),
        (SQUARE, [[0, 1, 2]], ValueError, "vertices must each be in a cell, got 2 in none: 3, 4"),
        (SQUARE[:4], [[0, 1, 2], [0, 3, 2]], ValueError, "counterclockwise and have an area, got 1 that do not: 1"),
        (SQUARE[[0, 2, 4]], [[0, 1, 2]], ValueError, "counterclockwise and have an area, got 1 that do not: 0"),
        (SQUARE[:4], [[0, 1, 2], [0, 1, 3], [0, 1, 2]], ValueError, "share an edge by twos, got 3"),
        (
            SQUARE,
            [[0, 1, 4], [1, 2, 4], [0, 2, 3]],
            ValueError,
            r"no hanging vertices, got vertex 4 inside the edge \[0, 2\]",
        ),
    ],
)
def test_a_wrong_mesh_is_refused(
    vertices: Tensor, cells: list, error: type[Exception], words: str, without_shape_checks: None
) -> None:
    with pytest.raises(error, match=words):
        Mesh(vertices, torch.tensor(cells))


def _made(**words: object) -> Mesh:
    return grid_mesh(**{"shape": (2, 2), **words})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda m: _made(shape=(0, 1)), ValueError, "shape must be an integer >= 1"),
        (lambda m: _made(low=(1.0, 0.0)), ValueError, "high must be above low"),
        (lambda m: _made(keep=3), TypeError, "keep must be callable"),
        (lambda m: _made(keep=lambda x: x[:, 0] > 9), ValueError, "keep must keep at least one"),
        (lambda m: _made(keep=lambda x: x), ValueError, "keep must return 4 booleans"),
        (lambda m: FunctionSpace(m, "hermite"), ValueError, "family must be one of"),
        (lambda m: FunctionSpace(m, "lagrange", 3), ValueError, r"degree must be one of \(1, 2\) for lagrange, got 3"),
        (lambda m: FunctionSpace(m.vertices), TypeError, "mesh must be a Mesh"),
        (lambda m: assemble("laplace", FunctionSpace(m)), ValueError, "form must be one of"),
        (lambda m: assemble("advection", FunctionSpace(m)), ValueError, "coefficient must be the velocity"),
        (
            lambda m: load_vector(lambda x: x, FunctionSpace(m)),
            ValueError,
            r"source must return shape \(\.\.\., 8, 6\)",
        ),
        (lambda m: assemble("mass", m), TypeError, "space must be a FunctionSpace"),
        (
            lambda m: solve_dirichlet(assemble("mass", FunctionSpace(m)), torch.ones(9).double(), FunctionSpace(m)),
            ValueError,
            "matrix must have the pattern of the space",
        ),
    ],
)
def test_wrong_use_is_refused(
    call: Callable[[Mesh], object], error: type[Exception], words: str, without_shape_checks: None
) -> None:
    with pytest.raises(error, match=words):
        call(grid_mesh((2, 2)))


def test_heat_decays_at_the_rate_of_its_first_mode() -> None:
    """A step of Crank and Nicolson on sums of assembled matrices."""
    space = FunctionSpace(grid_mesh((16, 16)))
    mass, stiffness = assemble("mass", space), assemble("stiffness", space)
    x = space.dof_points
    u = (math.pi * x[:, 0]).sin() * (math.pi * x[:, 1]).sin()
    left = SparseMatrix(space.pattern, mass.values + 0.005 * stiffness.values)
    right = SparseMatrix(space.pattern, mass.values - 0.005 * stiffness.values)
    start = finite_element_loss(u, space)
    for _ in range(5):
        u = solve_dirichlet(left, right @ u, space)
    rate = -(finite_element_loss(u, space) / start).log() / (2 * 0.05)
    assert float(rate) == pytest.approx(2 * math.pi**2, rel=0.02)
