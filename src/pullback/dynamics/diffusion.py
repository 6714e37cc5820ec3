"""Random diffusion problems on a mesh with their solutions: a simulator for what learns to solve them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from pullback.core.checks import check_integer, check_positive
from pullback.core.shapes import Float, Tensor
from pullback.dynamics.finite_elements import FunctionSpace, assemble, load_vector, project, solve_dirichlet

__all__ = ["DiffusionProblems", "diffusion_problems", "random_waves"]


class DiffusionProblems(NamedTuple):
    r"""Problems :math:`-\nabla\cdot(a\nabla u)=f` with given values on the boundary, and their solutions.

    Attributes:
        inputs: ``[count, 2, n]``, log a and f as coefficients of a space.
        boundary: ``[count, b]``, values at its ``dirichlet_dofs``.
        solution: ``[count, n]``, values of the solution where its coefficients are values.
        truth: ``[count, N]``, the solution in the space in which it was found.
    """

    inputs: Float[Tensor, "count 2 n"]
    boundary: Float[Tensor, "count b"]
    solution: Float[Tensor, "count n"]
    truth: Float[Tensor, "count N"]


def random_waves(
    count: int, *, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float64
) -> Callable[[Float[Tensor, "*points 2"]], Float[Tensor, "count *points"]]:
    r"""Return random smooth functions of the plane.

    .. math:: g(x, y) = \sum_{i,j=0}^2 c_{ij}\cos(1.6\,i\,x+\alpha_i)\cos(1.6\,j\,y+\beta_j), \qquad \sum c_{ij}^2 = 4

    with :math:`c_{ij}` normal of deviation in proportion to :math:`(1+i^2+j^2)^{-3/4}`, and uniform phases.

    Args:
        count: of functions, >= 1.
        generator: of the draws.
        dtype: of coefficients and values.

    Returns:
        A function from points ``[*points, 2]`` to values ``[count, *points]``, differentiable in the points.

    Raises:
        TypeError: ``count`` is no integer.
        ValueError: ``count`` is out of range.

    Example:
        >>> waves = random_waves(3, generator=torch.Generator().manual_seed(0))
        >>> waves(torch.zeros(4, 5, 2).double()).shape
        torch.Size([3, 4, 5])
    """
    check_integer("count", count, 1)
    device = generator.device if generator is not None else torch.device("cpu")
    waves = torch.arange(3, dtype=dtype, device=device)
    size = (
        torch.randn(count, 3, 3, generator=generator, dtype=dtype, device=device)
        / (1 + waves[:, None] ** 2 + waves**2) ** 0.75
    )
    size = 2 * size / size.square().sum((1, 2), keepdim=True).sqrt()
    phases = 2 * math.pi * torch.rand(2, count, 1, 3, generator=generator, dtype=dtype, device=device)

    def value(x: Tensor) -> Tensor:
        flat = x.reshape(-1, 2)
        across, along = ((1.6 * flat[:, k, None] * waves.to(x) + phases[k].to(x)).cos() for k in (0, 1))
        return torch.einsum("npi,npj,nij->np", across, along, size.to(x)).reshape(count, *x.shape[:-1])

    return value


def diffusion_problems(
    count: int,
    space: FunctionSpace,
    fine: FunctionSpace,
    *,
    contrast: float = 0.5,
    source: float = 4.0,
    generator: torch.Generator | None = None,
) -> DiffusionProblems:
    r"""Draw problems, solve them on a finer mesh, and tell them on a coarser one.

    Log a, f and the values on the boundary are :func:`random_waves`, the first times ``contrast``, the second times
    ``source``. The solution is that of finite elements on ``fine``; a and f are taken exactly at the points of
    integration, and inputs are projections of the functions themselves, of log a before and f before the factors.

    Args:
        count: of problems, >= 1.
        space: Lagrange of degree 1, in which they are told.
        fine: Lagrange of degree 1 on the same mesh or a refinement of it, in which they are solved.
        contrast: > 0.
        source: > 0.
        generator: of the draws.

    Returns:
        :class:`DiffusionProblems` in the dtype of the meshes.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: a number is out of range, the meshes are not nested, or a space is another one.

    Example:
        >>> from pullback.dynamics import grid_mesh
        >>> mesh = grid_mesh((2, 2))
        >>> told = diffusion_problems(3, FunctionSpace(mesh), FunctionSpace(mesh.refine()))
        >>> told.inputs.shape, told.boundary.shape, told.solution.shape, told.truth.shape
        (torch.Size([3, 2, 9]), torch.Size([3, 8]), torch.Size([3, 9]), torch.Size([3, 25]))
    """
    check_integer("count", count, 1)
    check_positive("contrast", contrast)
    check_positive("source", source)
    for name, one in (("space", space), ("fine", fine)):
        if not isinstance(one, FunctionSpace):
            raise TypeError(f"{name} must be a FunctionSpace, got {type(one).__name__}")
        if (one.family, one.degree) != ("lagrange", 1):
            raise ValueError(f"{name} must be lagrange of degree 1, got {one.family} of degree {one.degree}")
    fine.mesh.depth_below(space.mesh)
    log_a, f, edge = (random_waves(count, generator=generator, dtype=fine.mesh.vertices.dtype) for _ in range(3))
    matrix = assemble("stiffness", fine, coefficient=lambda x: (contrast * log_a(x)).exp())
    load, held = load_vector(lambda x: source * f(x), fine), edge(fine.dof_points)[:, fine.dirichlet_dofs]
    u = solve_dirichlet(matrix, load, fine, boundary=held)
    inputs = torch.stack([project(log_a, space), project(f, space)], 1)
    # the vertices of a mesh come first among those of its refinement
    return DiffusionProblems(inputs, edge(space.dof_points)[:, space.dirichlet_dofs], u[:, : space.size], u)
