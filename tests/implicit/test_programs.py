"""Quadratic programs: what their entry in the contracts does not say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pullback.core.errors import ConvergenceError
from pullback.implicit import Reason, projection_transport, quadratic_program
from pullback.implicit.interior_point import InteriorPoint
from pullback.implicit.iteration import iterate
from pullback.kernels.interior_point import interior_point


def _programs(generator: torch.Generator, shape: tuple[int, int, int, int]) -> tuple[Tensor, ...]:
    """Return ``Q, c, A, b, G, h`` with a point inside."""
    count, n, p, m = shape

    def draw(*sizes: int) -> Tensor:
        return torch.randn(count, *sizes, generator=generator, dtype=torch.float64)

    root, inside, a, g = draw(n, n), draw(n, 1), draw(p, n), draw(m, n)
    room = torch.rand(count, m, generator=generator, dtype=torch.float64)
    quadratic = root @ root.mT / n + 0.1 * torch.eye(n).double()
    quadratic = quadratic / quadratic.abs().amax((1, 2), keepdim=True)
    return quadratic, draw(n), a, (a @ inside)[..., 0], g, (g @ inside)[..., 0] + room


@pytest.mark.parametrize("shape", [(3, 6, 0, 8), (2, 6, 2, 5), (2, 3, 1, 20)])
def test_compiled_and_plain_steps_agree(shape: tuple[int, int, int, int], generator: torch.Generator) -> None:
    q, c, a, b, g, h = _programs(generator, shape)
    found = interior_point(q, c, (a, b), (g, h), 1e-9, 50)
    assert found is not None  # numba is an extra of the tests
    plain = iterate(InteriorPoint(q, c, a, b, g, h), torch.zeros_like(c), 1e-9, 50)
    assert (found.iterations - plain.iterations).abs().max() <= 1
    torch.testing.assert_close(found.x, plain.x, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found.multiplier, plain.memory.multiplier, atol=1e-5, rtol=1e-5)


def test_linear_programs_equal_scipys(generator: torch.Generator) -> None:
    import scipy.optimize

    _, c, a, b, g, h = _programs(generator, (5, 4, 1, 9))
    box = torch.cat([torch.eye(4), -torch.eye(4)]).double().expand(5, 8, 4)
    g, h = torch.cat([g, box], 1), torch.cat([h, torch.full((5, 8), 9.0).double()], 1)
    found = quadratic_program(torch.zeros(4, 4).double(), c, (a, b), (g, h), check=True)
    for i in range(5):
        vertex = scipy.optimize.linprog(
            c[i].numpy(), g[i].numpy(), h[i].numpy(), a[i].numpy(), b[i].numpy(), bounds=(None, None)
        )
        torch.testing.assert_close(found.value[i], torch.from_numpy(vertex.x), atol=1e-8, rtol=1e-8)


def test_multipliers_are_the_price_of_the_bounds(generator: torch.Generator) -> None:
    q, c, a, b, g, h = _programs(generator, (4, 5, 2, 7))
    b, h = b.requires_grad_(), h.requires_grad_()
    found = quadratic_program(q, c, (a, b), (g, h), check=True)
    value = ((found.value[:, None] @ q)[:, 0] * found.value / 2 + c * found.value).sum()
    of_b, of_h = torch.autograd.grad(value, (b, h))
    torch.testing.assert_close(of_b, -found.equality, atol=1e-7, rtol=1e-7)
    torch.testing.assert_close(of_h, -found.inequality, atol=1e-7, rtol=1e-7)


def test_redundant_constraints_share_their_price() -> None:
    height = torch.tensor([1.0, 1.0, 5.0], dtype=torch.float64, requires_grad=True)
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    found = quadratic_program(torch.eye(2).double(), torch.full((2,), -2.0).double(), inequality=(rows, height))
    torch.testing.assert_close(found.value.detach(), torch.tensor([1.0, 2.0]).double())
    torch.testing.assert_close(found.inequality.detach(), torch.tensor([0.5, 0.5, 0.0]).double())
    # Both moved together move the solution as one constraint does.
    assert abs(torch.autograd.grad(found.value[0], height)[0].sum().item() - 1) < 1e-9


def test_dependent_equations_and_undecided_directions() -> None:
    a = torch.tensor([[1.0, 1.0, 0.0], [2.0, 2.0, 0.0]])
    b = torch.tensor([1.0, 2.0], requires_grad=True)
    quadratic = torch.diag(torch.tensor([1.0, 1.0, 0.0]))  # nothing decides the last entry
    found = quadratic_program(quadratic, torch.zeros(3), (a, b), check=True)
    torch.testing.assert_close(found.value.detach(), torch.tensor([0.5, 0.5, 0.0]))
    assert torch.isfinite(torch.autograd.grad(found.value.sum(), b)[0]).all()


def test_solutions_that_are_not_unique_have_no_derivative_along_what_is_free() -> None:
    eye = torch.eye(2).double()
    rows, height = torch.cat([-eye, torch.ones(1, 2).double()]), torch.tensor([0.0, 0.0, 1.0]).double().requires_grad_()
    cost = torch.tensor([[-1.0, -1.0], [-1.0, -3.0]]).double().requires_grad_()  # a whole side is best, or a corner
    found = quadratic_program(0 * eye, cost, inequality=(rows, height), check=True)
    torch.testing.assert_close(found.value.detach(), torch.tensor([[0.5, 0.5], [0.0, 1.0]]).double())
    of_cost, of_height = torch.autograd.grad((found.value * torch.tensor([1.0, 2.0]).double()).sum(), (cost, height))
    torch.testing.assert_close(of_cost, torch.zeros(2, 2).double(), atol=1e-7, rtol=0)
    # The side moves along its normal, the corner with both bounds that meet there.
    torch.testing.assert_close(of_height, torch.tensor([1.0, 0.0, 3.5]).double(), atol=1e-6, rtol=0)


def test_each_problem_says_whether_it_has_a_solution() -> None:
    one, rows = torch.eye(1).double(), torch.tensor([[1.0], [-1.0]]).double()
    bounds = torch.tensor([[1.0, 0.0], [-1.0, -1.0], [3.0, 2.0]]).double()  # x <= h_0 and x >= -h_1
    found = quadratic_program(one, torch.tensor([-2.0]).double(), inequality=(rows, bounds))
    assert found.converged.tolist() == [True, False, True]
    torch.testing.assert_close(found.value[::2, 0], torch.tensor([1.0, 2.0]).double())
    unbounded = quadratic_program(torch.zeros_like(one), torch.ones(1).double(), inequality=(rows[:1], bounds[0, :1]))
    assert unbounded.reason != Reason.CONVERGED
    with pytest.raises(ConvergenceError, match="1 of 3 systems did not converge"):
        quadratic_program(one, torch.tensor([-2.0]).double(), inequality=(rows, bounds), check=True)
    with pytest.raises(ConvergenceError, match="the system did not converge"):
        quadratic_program(one, torch.ones(1).double(), (rows, bounds[0]), check=True)  # x = 1 and x = 0


def test_infinite_bounds_are_none(generator: torch.Generator) -> None:
    q, c, a, b, g, h = _programs(generator, (2, 4, 1, 6))
    h[:, 3:] = torch.inf
    found = quadratic_program(q, c, (a, b), (g, h), check=True)
    fewer = quadratic_program(q, c, (a, b), (g[:, :3], h[:, :3]), check=True)
    torch.testing.assert_close(found.value, fewer.value, atol=1e-8, rtol=1e-8)
    assert not found.inequality[:, 3:].any()


def _box_program() -> tuple[Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor], Tensor]:
    """Return ``c``, equalities and a box whose linear program has the solution that comes last."""
    import scipy.optimize

    c, a, b = torch.tensor([0.7, -0.3, 0.1]), torch.tensor([[1.0, 0.5, -0.4]]), torch.tensor([0.9])
    box = (torch.cat([torch.eye(3), -torch.eye(3)]), torch.cat([torch.ones(3), torch.zeros(3)]))
    vertex = scipy.optimize.linprog(c.numpy(), *(v.numpy() for v in (*box, a, b)), bounds=(None, None)).x
    return c.double(), (a.double(), b.double()), (box[0].double(), box[1].double()), torch.from_numpy(vertex)


@pytest.mark.parametrize("little", [1e-4, 1e-6, 1e-8, 1e-10])
def test_a_little_curvature_leaves_the_vertex_of_a_linear_program(little: float) -> None:
    c, equality, box, vertex = _box_program()
    found = quadratic_program(little * torch.eye(3).double(), c, equality, box, check=True)
    torch.testing.assert_close(found.value, vertex, atol=1e-7, rtol=0)


@pytest.mark.parametrize("scale", [1e-8, 1e-4, 1e4, 1e8])
def test_units_of_a_linear_program_do_not_matter(scale: float) -> None:
    c, (a, b), (g, h), vertex = _box_program()
    flat = torch.zeros(3, 3).double()
    torch.testing.assert_close(quadratic_program(flat, scale * c, (a, b), (g, h), check=True).value, vertex)
    far = quadratic_program(flat, c, (a, scale * b), (g, scale * h), check=True)
    torch.testing.assert_close(far.value / scale, vertex)
    torch.testing.assert_close(c + (far.equality @ a) + (far.inequality @ g), torch.zeros(3).double())


@pytest.mark.parametrize("far", [1e4, 1e6, 1e8, 1e10])
def test_a_far_bound_is_none(far: float, generator: torch.Generator) -> None:
    q, c, a, b, g, h = _programs(generator, (2, 4, 1, 6))
    wide = torch.where(torch.arange(6) < 3, h, torch.inf)
    expected = quadratic_program(q, c, (a, b), (g, wide), check=True)
    found = quadratic_program(q, c, (a, b), (g, wide.clamp(max=far)), check=True)
    torch.testing.assert_close(found.value, expected.value)


def test_without_constraints_it_is_a_linear_system(generator: torch.Generator) -> None:
    q, c, *_ = _programs(generator, (2, 4, 1, 6))
    empty = (torch.zeros(0, 4).double(), torch.zeros(0).double())
    choices: list[dict[str, Any]] = [{}, {"inequality": empty}, {"equality": empty, "inequality": empty}]
    for options in choices:
        found = quadratic_program(q, c, **options, check=True)
        torch.testing.assert_close(found.value, torch.linalg.solve(q, -c))
    assert not quadratic_program(torch.zeros(4, 4).double(), c).converged.any()


def test_what_is_infeasible_is_not_said_to_converge_beside_an_infinite_bound() -> None:
    rows, bounds = torch.tensor([[1.0], [-1.0], [1.0]]).double(), torch.tensor([0.0, -1.0, torch.inf]).double()
    found = quadratic_program(torch.eye(1).double(), torch.zeros(1).double(), inequality=(rows, bounds))
    assert not found.converged


def test_more_nearly_active_rows_than_unknowns(generator: torch.Generator) -> None:
    """Projections on transport polytopes: sparse masses, dependent equations, large costs."""
    n, m, count = 4, 3, 12
    x = 1e4 * torch.randn(count, n, m, generator=generator, dtype=torch.float64)
    mass = torch.rand(count, n, m, generator=generator, dtype=torch.float64)
    mass = torch.where(torch.rand(count, n, m, generator=generator) < 0.4, mass, 0) + 1e-6
    sums = torch.cat([torch.kron(torch.eye(n), torch.ones(1, m)), torch.kron(torch.ones(1, n), torch.eye(m))]).double()
    totals, eye = torch.cat([mass.sum(-1), mass.sum(-2)], -1), torch.eye(n * m).double()
    positive = (-eye, torch.zeros(n * m).double())
    found = quadratic_program(eye, -x.flatten(1), (sums, totals), positive, check=True)
    expected = projection_transport(x, mass.sum(-1), mass.sum(-2))
    torch.testing.assert_close(found.value.reshape(x.shape), expected, atol=1e-5, rtol=0)
