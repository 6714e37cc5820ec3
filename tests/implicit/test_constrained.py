"""Constrained learning: ascent on multipliers against closed forms and scipy, where it alternates, what is refused."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy import optimize
from torch import Tensor, nn

from pullback.implicit import (
    AugmentedLagrangian,
    ConstrainedProblem,
    DualAscent,
    InfeasibleError,
    Multipliers,
    feasibility_report,
)

F64 = {"dtype": torch.float64}


def _quadratic() -> tuple[ConstrainedProblem, Tensor]:
    """A quadratic with two linear constraints, one of which is active at the solution."""
    matrix = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, -1.0]], **F64)
    target, x = torch.tensor([1.0, 2.0, 3.0], **F64), torch.zeros(3, **F64)
    problem = ConstrainedProblem(lambda x: (((x - target) ** 2).sum(), matrix @ x), torch.tensor([2.0, 5.0], **F64), x)
    found = optimize.minimize(
        lambda t: ((t - target.numpy()) ** 2).sum(),
        np.zeros(3),
        constraints={"type": "ineq", "fun": lambda t: problem.bounds.numpy() - matrix.numpy() @ t},
    )
    return problem, torch.from_numpy(found.x)


METHODS: dict[str, Any] = {
    "dual": partial(DualAscent, dual_lr=0.2, primal_steps=10),
    "augmented": partial(AugmentedLagrangian, penalty=0.5, growth=1.2, primal_steps=20),
}


@pytest.mark.parametrize("method", METHODS)
def test_both_find_what_scipy_finds(method: str) -> None:
    problem, solution = _quadratic()
    steps = METHODS[method](problem, optimizer=torch.optim.SGD([problem.x], lr=0.05))
    for _ in range(60 if method == "augmented" else 150):
        state = steps.step()
    torch.testing.assert_close(problem.x, solution, atol=1e-5, rtol=0)
    assert steps.multipliers[0] > 0
    assert steps.multipliers[1] == 0
    torch.testing.assert_close(state.dual, state.objective, atol=1e-4, rtol=0)
    assert not problem.x.requires_grad


def test_the_dual_value_is_below_every_feasible_objective() -> None:
    problem, solution = _quadratic()
    ascent = DualAscent(problem, optimizer=torch.optim.SGD([problem.x], lr=0.4), dual_lr=0.05, primal_steps=60)
    for _ in range(30):
        ascent.step()
    least = problem.losses(solution)[0]
    values = torch.stack([state.dual for state in ascent.states])
    assert bool((values <= least + 1e-6).all())
    assert bool((values.diff() >= -1e-9).all())


def test_alternates_where_the_minimiser_jumps_and_the_augmented_one_does_not() -> None:
    """``min -x^2`` on [0, 1] with ``x <= 1/2``: every Lagrangian has its minimum at an end."""

    def losses(x: Tensor) -> tuple[Tensor, Tensor]:
        inside = x.clamp(0, 1) + 0.01 * (x - x.clamp(0, 1))
        return (-(inside**2) + 10 * (x - x.clamp(0, 1)) ** 2).sum(), inside

    x = torch.full((1,), 0.6, **F64)
    problem = ConstrainedProblem(losses, torch.full((1,), 0.5, **F64), x)
    ascent = DualAscent(problem, optimizer=torch.optim.SGD([x], lr=0.05), dual_lr=0.1, primal_steps=60, restart=True)
    for _ in range(80):
        ascent.step()
    found = feasibility_report(list(ascent.states)[-40:])
    assert found.worst > 0.4
    assert found.best == 0
    assert found.randomized < 0.05
    x.fill_(0.6)
    augmented = AugmentedLagrangian(
        problem, optimizer=torch.optim.SGD([x], lr=0.02), penalty=5, growth=1, primal_steps=100
    )
    for _ in range(30):
        augmented.step()
    assert feasibility_report(list(augmented.states)[-5:]).worst < 1e-3
    assert augmented.multipliers.item() == pytest.approx(1.0, abs=1e-2)


def test_a_step_size_of_zero_is_a_fixed_penalty() -> None:
    x = torch.zeros(1, **F64)
    problem = ConstrainedProblem(lambda x: (((x - 3) ** 2).sum(), x), torch.ones(1, **F64), x)
    ascent = DualAscent(problem, optimizer=torch.optim.SGD([x], lr=0.25), dual_lr=0, primal_steps=60, initial=2.0)
    ascent.step()
    assert ascent.multipliers.item() == 2
    assert x.item() == pytest.approx(2.0)


def test_a_module_and_minibatches_with_a_measure_of_all() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 2, generator=generator)
    net, calls = nn.Linear(2, 1), []

    def losses(net: nn.Module, rows: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(len(rows))
        out = net(rows)[:, 0]
        return ((out - rows[:, 0]) ** 2).mean(), (out**2).mean()[None]

    problem = ConstrainedProblem(
        lambda net: losses(net, inputs[torch.randint(200, (20,), generator=generator)]), torch.tensor([0.25]), net
    )
    ascent = DualAscent(
        problem,
        optimizer=torch.optim.SGD(net.parameters(), lr=0.1),
        dual_lr=0.2,
        primal_steps=5,
        measure=lambda net: losses(net, inputs),
    )
    for _ in range(80):
        state = ascent.step()
    assert calls[:6] == [20] * 5 + [200]
    assert abs(float(state.slacks)) < 0.05
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_a_loaded_state_goes_on_to_the_same_numbers(method: str) -> None:
    def new() -> tuple[Any, Tensor]:
        problem, _ = _quadratic()
        return METHODS[method](problem, optimizer=torch.optim.Adam([problem.x], lr=0.1), keep=4), problem.x

    (whole, x), (first, _), (second, resumed) = (new() for _ in range(3))
    for _ in range(6):
        whole.step()
    for _ in range(3):
        first.step()
    second.load_state_dict(first.state_dict())
    for _ in range(3):
        second.step()
    assert torch.equal(x, resumed)
    assert len(second.states) == 4
    for a, b in zip(whole.states, second.states, strict=True):
        assert a.step == b.step
        assert all(torch.equal(p, q) for p, q in zip(a[1:], b[1:], strict=True))


def test_losses_may_take_gradients_of_their_own() -> None:
    """The slope of a network in its input, bounded."""
    net, points = nn.Linear(1, 1).double(), torch.linspace(-1, 1, 9, **F64)[:, None]

    def losses(net: nn.Module) -> tuple[Tensor, Tensor]:
        z = points.clone().requires_grad_()
        (slope,) = torch.autograd.grad(net(z).sum(), z, create_graph=True)
        return ((net(points) - 3 * points) ** 2).mean(), (slope**2).mean()[None]

    problem = ConstrainedProblem(losses, torch.ones(1, **F64), net)
    ascent = DualAscent(problem, optimizer=torch.optim.SGD(net.parameters(), lr=0.2), dual_lr=0.2, primal_steps=3)
    for _ in range(100):
        state = ascent.step()
    assert net.weight.item() == pytest.approx(1, abs=1e-3)
    assert not state.objective.requires_grad


def test_lbfgs_takes_what_is_not_contiguous() -> None:
    x, mix = torch.zeros(3, 2, **F64), torch.randn(3, 3, generator=torch.Generator().manual_seed(0), **F64)
    problem = ConstrainedProblem(
        lambda x: (((x.mT @ mix - 0.3) ** 2).sum(), x.square().sum()[None]), torch.tensor([0.5], **F64), x
    )
    ascent = DualAscent(
        problem, optimizer=torch.optim.LBFGS([x], max_iter=30, line_search_fn="strong_wolfe"), dual_lr=0.5
    )
    for _ in range(60):
        state = ascent.step()
    assert abs(float(state.slacks)) < 1e-2


@pytest.mark.parametrize("method", METHODS)
def test_an_infeasible_bound_is_reported_with_the_way_there(method: str) -> None:
    x = torch.zeros(1)
    problem = ConstrainedProblem(
        lambda x: (x.square().sum(), torch.cat([x, x.square() + 1])), torch.tensor([1.0, 0.5]), x
    )
    steps = METHODS[method](problem, optimizer=torch.optim.SGD([x], lr=0.01), limit=3.0)
    match = r"the multiplier of constraint 1 grew to .*, beyond the limit of 3"
    with pytest.raises(InfeasibleError, match=match) as caught:
        [steps.step() for _ in range(1000)]
    paths = torch.stack([state.multipliers for state in caught.value.result])
    assert bool((paths[:, 1].diff() > 0).all())
    assert bool((paths[:, 0] == 0).all())


def test_multipliers_are_a_constant_of_the_lagrangian() -> None:
    price, slacks = Multipliers(3, lr=0.5, initial=1.0), torch.tensor([1.0, -4.0, 2.0], requires_grad=True)
    price(slacks).backward()
    assert price(slacks).item() == -1
    assert slacks.grad is not None
    assert slacks.grad.tolist() == [1, 1, 1]
    price.ascend(slacks)
    assert price.values.tolist() == [1.5, 0, 2]
    assert set(price.state_dict()) == {"values"}
    with pytest.raises(ValueError, match=r"slacks must have shape \(3,\)"):
        price(torch.zeros(2))


def test_multipliers_stop_where_slacks_are_no_numbers() -> None:
    with pytest.raises(InfeasibleError, match="constraint 0 grew to nan"):
        Multipliers(2, lr=1.0).ascend(torch.tensor([torch.nan, 0.0]))


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"dual_lr": -1.0}, ValueError, "dual_lr must be >= 0"),
        ({"dual_lr": torch.tensor(1.0)}, TypeError, "dual_lr must be a number"),
        ({"primal_steps": 0}, ValueError, "primal_steps must be an integer >= 1"),
        ({"initial": -1.0}, ValueError, "initial must be >= 0"),
        ({"limit": 0.0}, ValueError, "limit must be > 0"),
        ({"keep": -1}, ValueError, "keep must be an integer >= 0"),
        ({"measure": 3}, TypeError, "measure must be a function"),
        ({"optimizer": torch.optim.SGD([torch.zeros(1)], lr=0.1)}, ValueError, "optimizer must hold every tensor of x"),
        ({"problem": None}, TypeError, "problem must be a ConstrainedProblem"),
        ({"losses": lambda x: x.sum()}, ValueError, "losses must return a pair of tensors"),
        ({"losses": lambda x: (x, x)}, ValueError, "an objective of one element"),
        ({"losses": lambda x: (x.sum(), x.sum())}, ValueError, "one constraint for each of 2 bounds"),
        ({"losses": 3}, TypeError, "losses must be a function"),
        ({"bounds": torch.ones(2).long()}, TypeError, "bounds must be a floating tensor"),
        ({"bounds": torch.ones(0)}, ValueError, "bounds must be"),
        ({"bounds": torch.tensor([1.0, torch.nan])}, ValueError, "bounds must be"),
    ],
)
def test_dual_ascent_refuses(change: dict[str, Any], error: type[Exception], match: str) -> None:
    x = torch.zeros(2)
    fields = {"losses": lambda x: (x.sum(), x), "bounds": torch.ones(2), "x": x}
    options = {"optimizer": torch.optim.SGD([x], lr=0.1), "dual_lr": 0.1}
    fields |= {key: value for key, value in change.items() if key in fields}
    options |= {key: value for key, value in change.items() if key not in fields}
    with pytest.raises(error, match=match):
        DualAscent(**{"problem": ConstrainedProblem(**fields)} | options).step()


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    ("option", "match"),
    [
        ({"penalty": 0.0}, "penalty must be > 0"),
        ({"growth": 0.5}, "growth must be >= 1"),
        ({"progress": 1.5}, r"progress must be in \[0, 1\]"),
        ({"limit": -1.0}, "limit must be > 0"),
    ],
)
def test_augmented_lagrangian_refuses(option: dict[str, Any], match: str) -> None:
    problem, _ = _quadratic()
    with pytest.raises(ValueError, match=match):
        AugmentedLagrangian(problem, optimizer=torch.optim.SGD([problem.x], lr=0.1), **{"penalty": 1.0} | option)


def test_reports_need_states() -> None:
    with pytest.raises(ValueError, match="at least one state"):
        feasibility_report([])
