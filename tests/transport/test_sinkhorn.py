"""Sinkhorn beyond its contract: its limits, masses of zero, forbidden pairs, memory, and what did not converge."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from pullback import ConvergenceError, transport
from pullback.transport.sweeps import sweep


def _cost(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_small_epsilon_gives_the_exact_plan_and_a_large_one_the_product_of_the_masses() -> None:
    cost = _cost(0, 3, 6, 6)
    exact = transport.exact_transport(cost)
    sharp = transport.sinkhorn(cost, epsilon=2e-2, max_iterations=20_000)
    assert sharp.converged.all()
    assert ((sharp.plan * cost).sum((-2, -1)) - exact.value).abs().max() < 2e-2
    flat = transport.sinkhorn(cost, epsilon=1e4)
    torch.testing.assert_close(flat.plan, torch.full_like(cost, 1 / 36), rtol=1e-3, atol=0)


def test_masses_of_zero_and_forbidden_pairs_stay_empty_with_finite_gradients() -> None:
    cost = _cost(1, 3, 4)
    cost[0, 1] = torch.inf
    cost.requires_grad_()
    a = torch.tensor([0.5, 0.0, 0.5], dtype=torch.float64, requires_grad=True)
    found = transport.sinkhorn(cost, a, epsilon=0.2, check=True)
    assert found.plan[0, 1] == 0
    assert (found.plan[1] == 0).all()
    torch.testing.assert_close(found.plan.sum(-2), torch.full((4,), 0.25, dtype=torch.float64))
    (found.value + found.plan.square().sum()).backward()
    assert cost.grad is not None
    assert a.grad is not None
    assert cost.grad.isfinite().all()
    assert a.grad.isfinite().all()


def test_the_value_is_the_primal_objective_and_its_gradient_the_plan() -> None:
    cost = _cost(2, 5, 5).requires_grad_()
    for gradient in ("implicit", "envelope"):
        found = transport.sinkhorn(cost, epsilon=0.1, gradient=gradient, tolerance=1e-10)
        plan = found.plan.detach()
        primal = (plan * cost).sum() + 0.1 * (plan * (25 * plan).log()).sum()
        torch.testing.assert_close(found.value, primal)
        (slope,) = torch.autograd.grad(found.value, cost)
        torch.testing.assert_close(slope, plan, rtol=1e-6, atol=1e-9)


def test_what_is_saved_for_the_backward_pass_does_not_grow_with_the_sweeps() -> None:
    cost = _cost(3, 8, 8).requires_grad_()

    def saved(gradient: str, sweeps: int) -> int:
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
            transport.sinkhorn(cost, epsilon=1e-3, max_iterations=sweeps, tolerance=1e-15, gradient=gradient)
        return sum(kept)

    assert saved("implicit", 5) == saved("implicit", 50)
    assert saved("unrolled", 50) > 5 * saved("unrolled", 5)


def test_what_did_not_converge_says_so() -> None:
    cost, a, b = (
        _cost(4, 2, 4, 4),
        torch.tensor([0.7, 0.1, 0.1, 0.1]).double(),
        torch.tensor([0.1, 0.1, 0.1, 0.7]).double(),
    )
    found = transport.sinkhorn(cost, a, b, epsilon=1e-3, max_iterations=2, gradient="envelope")
    assert not found.converged.any()
    assert (found.residual > 1e-6).all()
    with pytest.raises(ConvergenceError, match="2 of 2 problems have a residual above 1e-06") as caught:
        transport.sinkhorn(cost, a, b, epsilon=1e-3, max_iterations=2, gradient="envelope", check=True)
    assert torch.equal(caught.value.result.residual, found.residual)


@pytest.mark.parametrize("reach", [None, 0.3, 50.0])
def test_products_with_a_kernel_end_where_sweeps_in_the_log_domain_do(reach: float | None) -> None:
    cost, g = _cost(5, 2, 30, 40), torch.Generator().manual_seed(6)
    a, b = torch.rand(2, 30, generator=g).double(), torch.rand(2, 40, generator=g).double()
    a[0, 3] = b[1, 5] = 0
    b = b * (a.sum(-1, keepdim=True) / b.sum(-1, keepdim=True)) if reach is None else b
    words: dict[str, Any] = {"epsilon": 5e-3, "reach": reach, "tolerance": 1e-9, "max_iterations": 20_000}
    quick = transport.sinkhorn(cost, a, b, gradient="envelope", **words)
    assert quick.converged.all()
    slow = transport.sinkhorn(cost, a, b, gradient="unrolled", start=quick.g, **words | {"max_iterations": 40})
    torch.testing.assert_close(quick.plan, slow.plan, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(quick.value, slow.value)


def test_a_far_reach_holds_the_masses_and_ships_as_fast_as_without_one() -> None:
    cost = _cost(7, 6, 6)
    held = transport.sinkhorn(cost, epsilon=0.05)
    free = transport.sinkhorn(cost, epsilon=0.05, reach=1e6, check=True)
    torch.testing.assert_close(free.plan, held.plan, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(free.value, held.value)
    assert free.iterations <= held.iterations + 20


def test_what_is_farther_than_the_reach_is_not_shipped() -> None:
    cost = torch.tensor([[0.0, 50.0], [50.0, 50.0]], dtype=torch.float64)
    found = transport.sinkhorn(cost, epsilon=0.01, reach=1.0, check=True)
    assert found.plan[1].sum() < 1e-6
    assert found.plan[0, 0] > 0.4


def test_a_start_near_the_solution_saves_sweeps() -> None:
    cost = _cost(8, 20, 20)
    cold = transport.sinkhorn(cost, epsilon=0.05, gradient="envelope", check=True)
    warm = transport.sinkhorn(cost, epsilon=0.05, gradient="envelope", start=cold.g, check=True)
    assert warm.iterations <= 2 < cold.iterations


def test_the_slopes_of_the_envelope_along_epsilon_and_reach_are_those_of_differences() -> None:
    cost, g = _cost(9, 3, 3), torch.Generator().manual_seed(10)
    a, b = torch.rand(3, generator=g).double(), torch.rand(3, generator=g).double()

    def value(epsilon: Tensor, reach: Tensor) -> Tensor:
        return transport.sinkhorn(cost, a, b, epsilon=epsilon, reach=reach, gradient="envelope", tolerance=1e-13).value

    at = torch.tensor([0.3, 0.7], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(value(*at), at)
    steps = 1e-5 * torch.eye(2, dtype=torch.float64)
    differences = [(value(*(at + s).detach()) - value(*(at - s).detach())) / 2e-5 for s in steps]
    torch.testing.assert_close(slope, torch.stack(differences), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("scale", [False, True])
def test_compiled_sweeps_are_those_in_torch(scale: bool, symmetric: bool) -> None:
    g = torch.Generator().manual_seed(0)
    x, y = torch.rand(2, 6, 2, generator=g).double(), torch.rand(2, 9, 2, generator=g).double()
    a, b = (torch.rand(2, k, generator=g).double() for k in (6, 9))
    a[0, 1] = b[1, 2] = 0
    a, b = a / a.sum(-1, keepdim=True), b / b.sum(-1, keepdim=True)
    y, b = (x, a) if symmetric else (y, b)
    cost, epsilon = (x.unsqueeze(-2) - y.unsqueeze(-3)).square().sum(-1), torch.full((2, 1, 1), 0.02).double()
    reach, start = torch.full_like(epsilon, torch.inf), torch.zeros_like(b)
    for count, tolerance in ((3, 0.0), (70, 0.0), (2000, 1e-8)):
        options = (start, scale, symmetric, count, tolerance)
        found, sweeps = sweep(cost, a, b, epsilon, reach, *options)
        with mock.patch("pullback.transport.sweeps.sinkhorn_loops", return_value=None):
            plain, plain_sweeps = sweep(cost, a, b, epsilon, reach, *options)
        torch.testing.assert_close(found, plain)
        if tolerance:
            assert torch.equal(sweeps, plain_sweeps)


def test_where_numbers_leave_the_range_of_the_compiled_sweeps_the_others_go_on() -> None:
    cost = torch.tensor([[0.0, 1.0], [1.0, 900.0]], dtype=torch.float64)
    found = transport.sinkhorn(cost, epsilon=1e-3, tolerance=1e-9, max_iterations=5000, check=True)
    torch.testing.assert_close(found.plan, torch.tensor([[0.0, 0.5], [0.5, 0.0]], dtype=torch.float64))
