"""Random diffusion problems against their equation, and the functions that they are made of."""

from __future__ import annotations

import pytest
import torch

from pullback.dynamics import (
    FunctionSpace,
    assemble,
    diffusion_problems,
    evaluate,
    grid_mesh,
    load_vector,
    random_waves,
)

MESH = grid_mesh((4, 4))
SPACE, FINE = FunctionSpace(MESH), FunctionSpace(MESH.refine().refine())


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_waves_are_their_formula() -> None:
    """A function of frequencies 0, 1.6 and 3.2 along each side is fixed by 25 of its values."""
    waves = random_waves(4, generator=seeded())
    x = 6 * torch.rand(60, 2, generator=seeded(), dtype=torch.float64)

    def columns(t: torch.Tensor) -> torch.Tensor:
        parts = [torch.ones_like(t), *(f(1.6 * k * t) for k in (1, 2) for f in (torch.sin, torch.cos))]
        return torch.stack(parts, -1)

    table = torch.einsum("pi,pj->pij", columns(x[:, 0]), columns(x[:, 1])).flatten(1)
    fitted = torch.linalg.lstsq(table[:40], waves(x[:40]).mT).solution
    torch.testing.assert_close(table[40:] @ fitted, waves(x[40:]).mT, atol=1e-8, rtol=0)
    assert torch.equal(waves(x), random_waves(4, generator=seeded())(x))
    single = random_waves(4, generator=seeded(), dtype=torch.float32)(x.float())
    assert single.dtype == torch.float32


def test_solutions_solve_and_inputs_tell_the_problem() -> None:
    told = diffusion_problems(5, SPACE, FINE, contrast=0.7, source=3.0, generator=seeded())
    generator = seeded()
    log_a, f, edge = (random_waves(5, generator=generator) for _ in range(3))
    matrix = assemble("stiffness", FINE, coefficient=lambda x: (0.7 * log_a(x)).exp())
    gap = (matrix @ told.truth - load_vector(lambda x: 3 * f(x), FINE))[:, FINE.free_dofs]
    assert gap.abs().max() < 1e-10
    torch.testing.assert_close(told.truth[:, FINE.dirichlet_dofs], edge(FINE.dof_points)[:, FINE.dirichlet_dofs])
    torch.testing.assert_close(told.boundary, told.solution[:, SPACE.dirichlet_dofs])
    torch.testing.assert_close(told.solution, evaluate(told.truth, FINE, SPACE.dof_points))
    points = torch.rand(100, 2, generator=seeded(), dtype=torch.float64)
    for place, function in enumerate((log_a, f)):
        off = evaluate(told.inputs[:, place], SPACE, points) - function(points)
        assert off.abs().max() < 0.1


def test_wrong_use_is_refused(without_shape_checks: None) -> None:
    for arguments, words, error, match in (
        ((0, SPACE, FINE), {}, ValueError, "count must be an integer >= 1"),
        ((1, SPACE, FINE), {"contrast": 0.0}, ValueError, "contrast must be > 0"),
        ((1, SPACE, FINE), {"source": -1.0}, ValueError, "source must be > 0"),
        ((1, MESH, FINE), {}, TypeError, "space must be a FunctionSpace"),
        ((1, FINE, SPACE), {}, ValueError, "meshes must be nested"),
        ((1, FunctionSpace(MESH, degree=2), FINE), {}, ValueError, "space must be lagrange of degree 1"),
    ):
        with pytest.raises(error, match=match):
            diffusion_problems(*arguments, **words)
    with pytest.raises(TypeError, match="count must be an integer"):
        random_waves(1.5)
