"""Hard constraints, parts of a domain and diffusion with sorption against closed forms, scipy and brute force."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.integrate
import torch
from torch import Tensor

from pullback.core.errors import ConvergenceError
from pullback.implicit import (
    HardConstraint,
    partition_domain,
    retardation_factor,
    solve_diffusion_sorption,
    total_concentration,
    tridiagonal_solve,
)


@pytest.mark.parametrize(("shape", "blocks"), [((6,), (3,)), ((4, 6), (2, 3)), ((2, 4, 6), (1, 2, 2))])
def test_blocks_hold_every_point_once_and_their_halo_is_what_lies_around(
    shape: tuple[int, ...], blocks: tuple[int, ...]
) -> None:
    partition = partition_domain(shape, blocks, halo=1)
    values = torch.arange(math.prod(shape)).view(shape)
    parts = partition.split(values)
    assert parts.flatten().sort().values.tolist() == list(range(math.prod(shape)))
    assert torch.equal(partition.join(parts), values)
    sizes = [n // k for n, k in zip(shape, blocks, strict=True)]
    padded = values
    for dim in range(len(shape)):  # repeat the edges
        padded = torch.cat([padded.narrow(dim, 0, 1), padded, padded.narrow(dim, -1, 1)], dim)
    for number, corner in enumerate(np.ndindex(blocks)):
        window = padded
        for dim, (place, size) in enumerate(zip(corner, sizes, strict=True)):
            window = window.narrow(dim, place * size, size + 2)
        assert torch.equal(partition.index[number], window)
    assert torch.equal(parts, partition_domain(shape, blocks).index.flatten(1))


def test_a_halo_may_lie_along_one_dimension_alone() -> None:
    partition = partition_domain((2, 6), (1, 2), halo=(0, 1))
    assert partition.index.tolist() == [[[0, 0, 1, 2, 3], [6, 6, 7, 8, 9]], [[2, 3, 4, 5, 5], [8, 9, 10, 11, 11]]]
    assert partition.own[0, 0].tolist() == [False, True, True, True, False]


def test_an_expert_sees_the_equation_in_its_halo(generator: torch.Generator) -> None:
    basis, start = torch.randn(3, 24, generator=generator, dtype=torch.float64), torch.ones(1).double()
    layer = HardConstraint(_terms, _growth, 3, partition=partition_domain((24,), (2,), halo=12), tolerance=1e-12)
    first = layer.solve(basis, start).value[0]
    (values, slopes), (edge,) = _terms(basis)
    twice = [0] * 12 + list(range(24))  # beyond the end the last point stands in
    rows = torch.cat([(slopes - values)[:, twice].T, 10 * edge.T, 1e-4 * torch.eye(3).double()])
    right = torch.cat([torch.zeros(36), 10 * torch.ones(1), torch.zeros(3)]).double()
    torch.testing.assert_close(first, torch.linalg.lstsq(rows, right[:, None]).solution[:, 0], rtol=1e-6, atol=1e-9)


def test_what_cannot_be_divided_is_refused_with_what_is_left() -> None:
    with pytest.raises(ValueError, match="7 points of dimension 1 cannot be divided by 3: 1 are left over"):
        partition_domain((4, 7), (2, 3))
    with pytest.raises(ValueError, match="blocks must have one number for each dimension"):
        partition_domain((4, 7), (2,))
    with pytest.raises(ValueError, match="halo must be an integer >= 0"):
        partition_domain((4,), (2,), halo=-1)
    with pytest.raises(ValueError, match="halo must be one number, or one for each dimension"):
        partition_domain((4,), (2,), halo=(1, 2))
    with pytest.raises(TypeError, match="shape must be an integer"):
        partition_domain((4.0,), (2,))  # type: ignore[arg-type]
    partition = partition_domain((4,), (2,))
    with pytest.raises(ValueError, match="values must end with the grid"):
        partition.split(torch.zeros(3, 5))
    with pytest.raises(ValueError, match="blocks must end with"):
        partition.join(torch.zeros(3, 2))


def test_parallel_reduction_solves_as_many_rows_as_there_are(generator: torch.Generator) -> None:
    for n in (3, 64, 65, 1000):
        lower, upper = (torch.randn(n - 1, generator=generator, dtype=torch.float64) for _ in range(2))
        diagonal = torch.ones(n).double()
        diagonal[1:] += lower.abs()
        diagonal[:-1] += upper.abs()
        x = torch.randn(2, n, generator=generator, dtype=torch.float64)
        b = diagonal * x
        b[:, 1:] += lower * x[:, :-1]
        b[:, :-1] += upper * x[:, 1:]
        torch.testing.assert_close(tridiagonal_solve(lower, diagonal, upper, b), x, rtol=1e-10, atol=1e-12)


def test_without_sorption_an_early_front_is_the_error_function() -> None:
    """With a vanishing isotherm the equation is linear; the right end is not felt yet."""
    x, times, d = torch.linspace(0, 1, 401).double(), torch.tensor([0.0, 5.0, 20.0]).double(), 5e-4
    u = solve_diffusion_sorption(0 * x, times, diffusion=d, coefficient=1e-12, substeps=20)
    for j in (1, 2):
        closed = torch.erfc(x / (4 * d * times[j]).sqrt())
        torch.testing.assert_close(u[j], closed, rtol=0, atol=2e-4)


def test_the_nonlinear_front_is_that_of_a_stiff_solver_of_scipy() -> None:
    n, times = 41, np.array([0.0, 30.0, 200.0, 500.0])
    x = torch.linspace(0, 1, n).double()
    h = float(x[1])

    def rate(_: float, u: np.ndarray) -> np.ndarray:
        full = np.concatenate([[1.0], u])
        second = np.empty(n - 1)
        second[:-1] = (full[2:] - 2 * full[1:-1] + full[:-2]) / h**2
        second[-1] = 2 / h * (-u[-1] / 5e-4 - (u[-1] - u[-2]) / h)
        return 5e-4 / retardation_factor(torch.tensor(u)).numpy() * second

    told = scipy.integrate.solve_ivp(rate, (0, 500), np.full(n - 1, 0.1), "BDF", times, rtol=1e-8, atol=1e-10).y.T
    u = solve_diffusion_sorption(torch.full((n,), 0.1).double(), torch.tensor(times), substeps=50)
    np.testing.assert_allclose(u[:, 1:].numpy(), told, atol=5e-4)
    coarse = solve_diffusion_sorption(torch.full((n,), 0.1).double(), torch.tensor(times), substeps=25)
    coarser = solve_diffusion_sorption(torch.full((n,), 0.1).double(), torch.tensor(times), substeps=12)
    late = [float((v[2:] - u[2:]).abs().max()) for v in (coarser, coarse)]
    assert late[1] < late[0] / 2.5  # of second order in time


def test_what_flows_in_is_what_is_held_and_what_flows_out() -> None:
    n, times = 201, torch.linspace(0, 40, 41).double() ** 2 / 4
    u = solve_diffusion_sorption(torch.full((n,), 0.05).double(), times, substeps=8)
    weights = torch.full((n,), 1 / (n - 1)).double()
    weights[[0, -1]] /= 2
    held = (total_concentration(u) * weights)[:, 1:].sum(-1)
    slope = (-3 * u[:, 0] + 4 * u[:, 1] - u[:, 2]) * (n - 1) / 2
    balance = -5e-4 * slope - u[:, -1]
    late = slice(8, None)  # the front is resolved
    gained = torch.trapezoid(balance[late], times[late])
    torch.testing.assert_close(held[-1] - held[8], gained, rtol=2e-3, atol=0)


def test_sensitivities_of_a_front_are_differences_of_fronts() -> None:
    times = torch.tensor([0.0, 100.0]).double()

    def front(u0: Tensor, diffusion: Tensor, exponent: Tensor) -> Tensor:
        return solve_diffusion_sorption(u0.expand(9), times, diffusion=diffusion, exponent=exponent, substeps=2)[-1, 4]

    point = [torch.tensor(v, dtype=torch.float64) for v in (0.1, 5e-4, 0.874)]
    slopes = torch.func.grad(front, argnums=(0, 1, 2))(*point)
    for k, slope in enumerate(slopes):
        moved = [[v * (1 + s * 1e-5 * (i == k)) for i, v in enumerate(point)] for s in (1, -1)]
        expected = (front(*moved[0]) - front(*moved[1])) / (2e-5 * point[k])
        torch.testing.assert_close(slope, expected, rtol=1e-5, atol=0)


def test_a_solver_that_cannot_converge_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pullback.implicit.sorption._NEWTON", 1)
    with pytest.raises(ConvergenceError, match="Newton"):
        solve_diffusion_sorption(torch.full((9,), 0.1), torch.tensor([0.0, 100.0]))


X = torch.linspace(0, 1, 24).double()


def _terms(u: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    return (u, torch.gradient(u, spacing=(X,), dim=-1, edge_order=2)[0]), (u[..., :1],)


def _growth(inside: tuple[Tensor, ...], edges: tuple[Tensor, ...], start: Tensor) -> Tensor:
    return torch.cat([inside[1] - inside[0], 10 * (edges[0] - start)], -1)


def _layer(experts: int, **options: float) -> HardConstraint:
    return HardConstraint(_terms, _growth, 3, partition=partition_domain((24,), (experts,)), **options)  # type: ignore[arg-type]


def test_coefficients_of_a_linear_equation_are_those_of_lstsq(generator: torch.Generator) -> None:
    basis = torch.randn(2, 3, 24, generator=generator, dtype=torch.float64)
    start = torch.tensor([[1.0], [2.0]]).double()
    found = _layer(4, ridge=1e-4, tolerance=1e-12)(basis, start)
    (values, slopes), (edge,) = _terms(basis)
    for b in range(2):
        for k in range(4):
            own = slice(6 * k, 6 * k + 6)
            rows = torch.cat([(slopes - values)[b, :, own].T, 10 * edge[b].T, 1e-2 * torch.eye(3).double()])
            right = torch.cat([torch.zeros(6).double(), 10 * start[b], torch.zeros(3).double()])
            omega = torch.linalg.lstsq(rows, right[:, None]).solution[:, 0]
            torch.testing.assert_close(found.coefficients[b, k], omega, rtol=1e-7, atol=1e-9)
            torch.testing.assert_close(found.field[b, own], omega @ basis[b, :, own], rtol=1e-7, atol=1e-9)
    assert found.solution is not None
    assert bool(found.solution.converged.all())


def test_experts_alone_find_what_they_find_together(generator: torch.Generator) -> None:
    basis, start = torch.randn(3, 24, generator=generator, dtype=torch.float64), torch.ones(1).double()
    layer = _layer(4)
    together = layer.solve(basis, start).value
    torch.testing.assert_close(layer.solve(basis, start, experts=[2, 0]).value, together[[2, 0]])


def test_functions_that_span_the_solution_give_it_in_every_part() -> None:
    basis = torch.stack([X.exp(), X.sin(), X**3])
    start = torch.ones(1).double()
    for experts in (1, 4):
        layer = _layer(experts, ridge=1e-12)
        field = layer(basis, start).field
        torch.testing.assert_close(field, X.exp(), rtol=4e-3, atol=0)
        assert layer.violation(field, start).square().mean() < 1e-3
    assert _layer(2).violation(X.cos(), start).abs().max() > 0.5


def test_samples_are_some_of_the_points_of_each_part_and_the_generators() -> None:
    basis, start = torch.stack([X.exp(), X.sin(), X**3]), torch.ones(1).double()
    layer = _layer(2, samples=5, ridge=1e-3)
    one, same, other = (layer(basis, start, generator=torch.Generator().manual_seed(s)).field for s in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    full = _layer(2, samples=12, ridge=1e-3)(basis, start, generator=torch.Generator().manual_seed(0)).field
    torch.testing.assert_close(full, _layer(2, ridge=1e-3)(basis, start).field)


def test_basis_functions_that_depend_on_each_other_are_decided_by_the_ridge() -> None:
    found = _layer(1, ridge=1e-6)(torch.stack([X.exp(), X.exp(), X.exp()]), torch.ones(1).double())
    torch.testing.assert_close(found.coefficients[0], torch.full((3,), 1 / 3).double(), rtol=1e-3, atol=0)
    assert found.solution is not None
    assert bool(found.solution.converged.all())


def test_a_soft_layer_is_linear_and_learns_its_coefficients() -> None:
    layer = _layer(2, soft=True, start=0.5)
    basis = torch.stack([X, X**2, X**3]).float()
    found = layer(basis, torch.ones(1))
    torch.testing.assert_close(found.field, 0.5 * basis.sum(0))
    assert found.solution is None
    found.field.sum().backward()
    assert layer.coefficients is not None
    torch.testing.assert_close(layer.coefficients.grad, basis.view(3, 2, 12).sum(-1).T)


def test_wrong_parts_of_a_constraint_are_refused_by_name() -> None:
    partition, basis = partition_domain((24,), (2,)), torch.zeros(3, 24).double()
    start = torch.ones(1).double()

    def make(**options: Any) -> HardConstraint:
        return HardConstraint(
            **{"terms": _terms, "residual": _growth, "functions": 3, "partition": partition} | options
        )

    with pytest.raises(TypeError, match="terms"):
        make(terms=3)
    with pytest.raises(TypeError, match="partition must be a DomainPartition"):
        make(partition=2)
    with pytest.raises(ValueError, match="samples must be at most 12"):
        make(samples=13)
    with pytest.raises(ValueError, match="ridge must be > 0"):
        make(ridge=0.0)
    with pytest.raises(ValueError, match="terms in every point must have the shape"):
        make(terms=lambda u: ((u[..., 1:],), ()))(basis, start)
    with pytest.raises(ValueError, match="terms at the edges must be"):
        make(terms=lambda u: ((u,), (u.sum(),)))(basis, start)
    with pytest.raises(ValueError, match="residual must return"):
        make(residual=lambda inside, edges, start: inside[0].sum())(basis, start)
    with pytest.raises(ValueError, match=r"data\[0\] must have the 1 dimensions"):
        make()(basis[None], torch.tensor(1.0).double())
