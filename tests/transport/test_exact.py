"""Exact transport beyond its contract: scipy's optima at larger sizes, gradients, optimality, the plain forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from pullback import transport
from pullback.kernels import transport as kernels


def _costs(seed: int, *shape: int, kind: str = "random") -> Tensor:
    g = torch.Generator().manual_seed(seed)
    cost = torch.randn(*shape, generator=g, dtype=torch.float64)
    if kind == "ties":
        return cost.round()
    if kind == "forbidden":
        return torch.where(torch.rand(*shape, generator=g) < 0.4, torch.inf, cost)
    return cost


@pytest.mark.parametrize("kind", ["random", "ties", "forbidden"])
@pytest.mark.parametrize("shape", [(20, 6, 6), (20, 5, 9), (20, 9, 5), (2, 60, 60)], ids=str)
def test_the_matching_is_as_good_as_that_of_scipy(shape: tuple[int, ...], kind: str) -> None:
    for cost in _costs(0, *shape, kind=kind):
        try:
            rows, columns = linear_sum_assignment(cost.numpy())
        except ValueError:
            with pytest.raises(ValueError, match=r"^cost must"):
                transport.assignment(cost)
            continue
        found = transport.assignment(cost)
        assert len(set(found.rows.tolist())) == len(set(found.columns.tolist())) == len(columns)
        torch.testing.assert_close(cost[found.rows, found.columns].sum(), cost[rows, columns].sum())
        if kind == "random":
            assert (found.rows.tolist(), found.columns.tolist()) == (rows.tolist(), columns.tolist())


def test_the_gradient_of_a_matching_is_its_permutation() -> None:
    cost = _costs(1, 3, 4, 6).requires_grad_()
    found = transport.assignment(cost, maximize=True)
    found.value.sum().backward()
    expected = torch.zeros(3, 4, 6, dtype=torch.float64)
    for b in range(3):
        expected[b, found.rows[b], found.columns[b]] = 1
    assert torch.equal(cost.grad, expected)


def test_nothing_to_match_costs_nothing() -> None:
    found = transport.assignment(torch.zeros(2, 0, 3))
    assert found.columns.shape == (2, 0)
    assert found.value.tolist() == [0, 0]


@pytest.mark.parametrize("shape", [(6, 7, 7), (6, 4, 9), (6, 9, 4), (1, 40, 30)], ids=str)
@pytest.mark.parametrize("kind", ["random", "ties"])
def test_a_plan_has_its_sums_and_potentials_prove_that_it_is_best(shape: tuple[int, ...], kind: str) -> None:
    batch, n, m = shape
    cost, g = _costs(2, *shape, kind=kind), torch.Generator().manual_seed(3)
    a, b = torch.rand(batch, n, generator=g).double(), torch.rand(batch, m, generator=g).double()
    a[0, 0] = b[0, 1] = 0
    b = b * (a.sum(-1, keepdim=True) / b.sum(-1, keepdim=True))
    found = transport.exact_transport(cost, a, b)
    assert (found.plan >= 0).all()
    torch.testing.assert_close(found.plan.sum(-1), a)
    torch.testing.assert_close(found.plan.sum(-2), b)
    slack = cost - found.f.unsqueeze(-1) - found.g.unsqueeze(-2)
    assert slack.min() > -1e-12
    torch.testing.assert_close((found.f * a).sum(-1) + (found.g * b).sum(-1), found.value)


def test_wasserstein_in_one_dimension_is_exact_transport_with_gradients_for_points_and_masses() -> None:
    g = torch.Generator().manual_seed(4)
    x, y, a, b = (torch.rand(2, n, generator=g, dtype=torch.float64) for n in (4, 6, 4, 6))
    a, b = a / a.sum(-1, keepdim=True), b / b.sum(-1, keepdim=True)
    inputs = [t.requires_grad_() for t in (x, y, a, b)]
    values = transport.wasserstein_1d(x, y, a, b, p=3)
    others = transport.exact_transport((x.unsqueeze(-1) - y.unsqueeze(-2)).abs() ** 3, a, b).value
    torch.testing.assert_close(values, others)
    for one, other in zip(*(torch.autograd.grad(v.sum(), inputs) for v in (values, others)), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", ["random", "ties", "forbidden"])
def test_plain_forms_agree_with_the_kernels(kind: str) -> None:
    for shape in ((8, 5, 5), (8, 3, 6)):
        cost = _costs(5, *shape, kind=kind).numpy()
        fast, plain = kernels.assign(cost), kernels.assign_plain(cost)
        assert ((fast[0] < 0) == (plain[0] < 0)).all()
        solved = fast[0][:, 0] >= 0
        totals = [np.take_along_axis(cost[solved], x[0][solved][..., None], 2).sum((1, 2)) for x in (fast, plain)]
        np.testing.assert_allclose(*totals)
        a = np.random.default_rng(0).dirichlet(np.ones(shape[1]), shape[0])
        b = np.random.default_rng(1).dirichlet(np.ones(shape[2]), shape[0])
        plans = [ship(cost, a, b)[0] for ship in (kernels.ship, kernels.ship_plain)]
        np.testing.assert_allclose(*((np.where(plan > 0, cost, 0) * plan).sum((1, 2)) for plan in plans))


@pytest.mark.parametrize("kind", ["random", "ties", "forbidden"])
def test_the_simplex_solves_problems_without_mass_in_places_of_equal_masses_and_of_equal_costs(kind: str) -> None:
    rng = np.random.default_rng(0)
    for case in range(60):
        n, m = rng.integers(1, 8, 2)
        cost = _costs(case, 1, n, m, kind=kind).numpy()
        cost[0, :, np.isinf(cost[0]).all(0)] = cost[0, np.isinf(cost[0]).all(1), :] = 0  # as check_cost asks for
        a, b = rng.integers(0, 3, (1, n)) + 0.0, rng.integers(0, 3, (1, m)) + 0.0
        a[:, 0] += 1
        b[:, -1] += 1
        a, b = (a / a.sum(), b / b.sum()) if case % 3 else (np.full((1, n), 1 / n), np.full((1, m), 1 / m))
        plain, (plan, u, v) = kernels.ship_plain(cost, a, b), kernels.ship(cost, a, b)
        assert np.isnan(plan).any() == np.isnan(plain[0]).any()
        if np.isnan(plan).any():
            continue
        assert plan.min() >= 0
        np.testing.assert_allclose(plan.sum(2), a, atol=1e-14)
        np.testing.assert_allclose(plan.sum(1), b, atol=1e-14)
        assert (u[:, :, None] + v[:, None] - cost).max() < 1e-12
        paid = [(np.where(p > 0, cost, 0) * p).sum() for p in (plan, plain[0])]
        np.testing.assert_allclose(paid, (u * a).sum() + (v * b).sum(), atol=1e-12)
