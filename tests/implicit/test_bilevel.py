"""Hypergradients, descent and averaged multipliers on problems with closed forms."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pullback.core.errors import ConvergenceError
from pullback.implicit import (
    AveragedMultipliers,
    BilevelDescent,
    BilevelProblem,
    NormalizedBilevelMomentum,
    hypergradient,
    inverse_hessian_product,
    kkt_residual,
)


class Quadratic:
    """``lower = y^T A y / 2 - y^T (B x + c)``, so ``y* = A^{-1} (B x + c)``; ``upper = |y - t|^2 / 2 + |x|^2 / 2``."""

    def __init__(self, n: int = 6, m: int = 4, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        draw = partial(torch.randn, generator=generator, dtype=torch.float64)
        a = draw(n, n)
        self.a, self.b, self.c = a @ a.T / n + 0.5 * torch.eye(n, dtype=torch.float64), draw(n, m), draw(n)
        self.target, self.x = draw(n), draw(m)

    def lower(self, x: Tensor, y: Tensor) -> Tensor:
        return y @ self.a @ y / 2 - y @ (self.b @ x + self.c)

    def upper(self, x: Tensor, y: Tensor) -> Tensor:
        return ((y - self.target) ** 2).sum() / 2 + (x**2).sum() / 2

    def best(self, x: Tensor) -> Tensor:
        return torch.linalg.solve(self.a, self.b @ x + self.c)

    def exact(self, x: Tensor) -> Tensor:
        return x + self.b.T @ torch.linalg.solve(self.a, self.best(x) - self.target)

    @property
    def rate(self) -> float:
        return 1 / float(torch.linalg.eigvalsh(self.a)[-1])


@pytest.fixture
def quadratic() -> Quadratic:
    return Quadratic()


@pytest.mark.parametrize(
    "options",
    [
        {"method": "exact"},
        {"method": "cg", "tolerance": 1e-12},
        {"method": "neumann", "terms": 400, "scale": 0.3},
        {"method": "unrolled", "steps": 400, "scale": 0.3},
        {"method": "truncated", "steps": 800, "terms": 400, "scale": 0.3},
    ],
    ids=lambda options: options["method"],
)
def test_methods_find_the_closed_form(quadratic: Quadratic, options: dict[str, Any]) -> None:
    q, x = quadratic, quadratic.x
    assert float(torch.linalg.eigvalsh(q.a)[-1]) * 0.3 < 2
    start = q.best(x) if "steps" not in options else torch.zeros_like(q.c)
    found = hypergradient(q.upper, q.lower, x, start, **options)
    torch.testing.assert_close(found.gradient, q.exact(x), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found.y, q.best(x), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found.value, q.upper(x, q.best(x)))
    assert (found.solution is None) == ("steps" in options)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_series_is_as_many_unrolled_steps_at_the_minimum(quadratic: Quadratic, count: int) -> None:
    """Theorem 2 of Lorraine et al.; and the last k of N steps are the k that start near the minimum."""
    q, y, rate = quadratic, quadratic.best(quadratic.x), quadratic.rate
    at = partial(hypergradient, q.upper, q.lower, q.x, y, scale=rate)
    series = at(method="neumann", terms=count).gradient
    torch.testing.assert_close(series, at(method="unrolled", steps=count).gradient, rtol=1e-10, atol=1e-10)
    last = at(method="truncated", steps=50, terms=count).gradient
    torch.testing.assert_close(series, last, rtol=1e-10, atol=1e-10)
    if count == 1:
        torch.testing.assert_close(series, at(method="identity").gradient, rtol=1e-12, atol=1e-12)


def test_direct_is_the_partial_derivative(quadratic: Quadratic) -> None:
    q = quadratic
    torch.testing.assert_close(hypergradient(q.upper, q.lower, q.x, q.c, method="direct").gradient, q.x)


def test_aggregated_descent_is_the_recursion_differentiated() -> None:
    """Steps along m_k D_y upper + (1 - m_k) D_y lower, by hand for one number each."""
    x, y, rate = (torch.tensor(v, dtype=torch.float64) for v in (0.7, 0.2, 0.3))
    found = hypergradient(
        lambda x, y: (y - 2 * x) ** 2 / 2, lambda x, y: x * y**2 / 2, x, y, method="bda", steps=2, scale=0.3, mix=0.8
    )
    live = x.clone().requires_grad_()
    point = y
    for share in (0.8, 0.4):
        point = point - rate * (share * (point - 2 * live) + (1 - share) * live * point)
    expected = torch.autograd.grad((point - 2 * live) ** 2 / 2, live)[0]
    torch.testing.assert_close(found.gradient, expected)
    torch.testing.assert_close(found.y, point.detach())


def test_the_residual_is_that_of_the_value(quadratic: Quadratic) -> None:
    q, v = quadratic, quadratic.target
    for options in ({"method": "neumann", "terms": 5, "scale": 0.2}, {"method": "cg", "terms": 3}, {"method": "exact"}):
        found = inverse_hessian_product(partial(q.lower, q.x), q.c, v, damping=0.1, **options)
        gap = v - q.a @ found.value - 0.1 * found.value
        torch.testing.assert_close(found.residual, torch.linalg.vector_norm(gap), rtol=1e-6, atol=1e-12)
    assert bool(found.converged)
    assert not bool(inverse_hessian_product(partial(q.lower, q.x), q.c, v, method="cg", terms=2).converged)


def test_many_unknowns_in_a_nesting() -> None:
    """Above the limit of dense solves; the Hessian couples the parts."""
    generator = torch.Generator().manual_seed(1)
    y = {"a": torch.randn(20, 20, generator=generator).double(), "b": [torch.randn(200, generator=generator).double()]}
    weight = torch.linspace(1, 3, 200, dtype=torch.float64)

    def lower(y: Any) -> Tensor:
        pairs = y["a"].reshape(2, 200)
        return ((pairs[0] - y["b"][0]) ** 2).sum() / 2 + (weight * (pairs**2).sum(0)).sum() + (y["b"][0] ** 2).sum()

    def gradient(y: Any) -> Any:
        live = torch.utils._pytree.tree_map(lambda t: t.clone().requires_grad_(), y)
        leaves = torch.utils._pytree.tree_leaves(live)
        found = torch.autograd.grad(lower(live), leaves)
        return torch.utils._pytree.tree_unflatten(found, torch.utils._pytree.tree_flatten(y)[1])

    for options in ({"method": "exact"}, {"method": "cg"}, {"method": "neumann", "scale": 0.25, "terms": 200}):
        found = inverse_hessian_product(lower, y, gradient(y), check=True, **options)  # H^{-1} H y = y
        torch.testing.assert_close(found.value, y, rtol=1e-6, atol=1e-6)


def _regression() -> tuple[Tensor, Tensor, nn.Module]:
    generator = torch.Generator().manual_seed(2)
    inputs, targets = (torch.randn(12, size, generator=generator, dtype=torch.float64) for size in (3, 2))
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    for p in model.parameters():
        nn.init.normal_(p, 0, 0.5, generator=generator)
    return inputs, targets, model


@pytest.mark.parametrize("method", ["neumann", "cg", "exact", "unrolled", "direct"])
def test_modules_are_their_parameters(method: str) -> None:
    """A module as y, and one as x too, gives what dictionaries of its parameters give; nothing is written."""
    inputs, targets, model = _regression()
    weigher = nn.Linear(3, 1).double()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    options: dict[str, Any] = {"scale": 0.1} if method in ("neumann", "unrolled") else {}
    if method in ("cg", "exact"):
        options["damping"] = 3.0

    def upper(x: Any, net: Any) -> Tensor:
        return ((net(inputs[6:]) - targets[6:]) ** 2).mean() + sum((p**2).sum() for p in x.parameters())

    def lower(x: Any, net: Any) -> Tensor:
        weights = torch.sigmoid(x(inputs[:6]))
        return (weights * (net(inputs[:6]) - targets[:6]) ** 2).mean() + 0.1 * sum(
            (p**2).sum() for p in net.parameters()
        )

    found = hypergradient(upper, lower, weigher, model, method=method, **options)

    def call(net: nn.Module, params: dict[str, Tensor]) -> Any:
        class Bound:
            def __call__(self, value: Tensor) -> Tensor:
                return torch.func.functional_call(net, params, (value,))

            def parameters(self) -> Any:
                return params.values()

        return Bound()

    trees = [dict(net.named_parameters()) for net in (weigher, model)]
    expected = hypergradient(
        lambda x, y: upper(call(weigher, x), call(model, y)),
        lambda x, y: lower(call(weigher, x), call(model, y)),
        *trees,
        method=method,
        **options,
    )
    assert set(found.gradient) == {"weight", "bias"}
    torch.testing.assert_close(found.gradient, expected.gradient)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert all(p.grad is None for net in (weigher, model) for p in net.parameters())


def test_frozen_parameters_are_no_variables() -> None:
    inputs, targets, model = _regression()
    model[0].requires_grad_(False)
    found = inverse_hessian_product(
        lambda net: ((net(inputs) - targets) ** 2).mean(),
        model,
        {name: torch.ones_like(p) for name, p in model[2].named_parameters("2")},
        method="exact",
    )
    assert set(found.value) == {"2.weight", "2.bias"}
    assert bool(found.converged)


@pytest.mark.parametrize("method", ["neumann", "unrolled"])
def test_descent_on_a_module_reaches_the_optimum(quadratic: Quadratic, method: str) -> None:
    """The outer optimum has a closed form: the hypergradient is affine in x."""
    q = quadratic
    solve = torch.linalg.solve(q.a, q.b)
    system = torch.eye(4, dtype=torch.float64) + solve.T @ solve
    optimum = torch.linalg.solve(system, solve.T @ (q.target - torch.linalg.solve(q.a, q.c)))
    inner = nn.Linear(6, 1, bias=False).double()
    x = torch.zeros(4, dtype=torch.float64)

    def lower(x: Tensor, net: nn.Linear) -> Tensor:
        return q.lower(x, net.weight[0])

    def upper(x: Tensor, net: nn.Linear) -> Tensor:
        return q.upper(x, net.weight[0])

    unrolls = method == "unrolled"
    count = {"steps": 40} if unrolls else {"terms": 40}
    descent = BilevelDescent(
        BilevelProblem(upper, lower, x, inner),
        hypergradient=partial(hypergradient, method=method, scale=q.rate, **count),
        outer_optimizer=torch.optim.SGD([x], lr=1 / float(torch.linalg.eigvalsh(system)[-1])),
        inner_optimizer=None if unrolls else torch.optim.SGD(inner.parameters(), lr=q.rate),
        inner_steps=10,
    )
    for _ in range(80):
        state = descent.step()
    torch.testing.assert_close(x, optimum, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(inner.weight[0].detach(), q.best(x), rtol=1e-2, atol=1e-2)
    assert state.step == 80
    assert bool(state.lower.isnan()) == unrolls


def test_restart_begins_at_the_first_inner_point(quadratic: Quadratic) -> None:
    q, x, y = quadratic, quadratic.x.clone(), torch.zeros(6, dtype=torch.float64)
    descent = BilevelDescent(
        BilevelProblem(q.upper, q.lower, x, y),
        hypergradient=partial(hypergradient, method="unrolled", steps=3, scale=q.rate),
        outer_optimizer=torch.optim.SGD([x], lr=0.1),
        restart=True,
    )
    for _ in range(2):
        before = x.clone()
        descent.step()
        again = hypergradient(q.upper, q.lower, before, torch.zeros_like(y), method="unrolled", steps=3, scale=q.rate)
        torch.testing.assert_close(y, again.y, rtol=0, atol=0)


def test_a_loaded_state_goes_on_to_the_same_numbers(quadratic: Quadratic) -> None:
    q = quadratic

    def new(kind: str) -> tuple[Any, Tensor]:
        x, y = torch.zeros(4, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
        problem = BilevelProblem(q.upper, q.lower, x, y)
        if kind == "normalized":
            return NormalizedBilevelMomentum(problem, lr=0.1, lower_lr=0.1, linear_lr=0.1), x
        if kind == "multipliers":
            return AveragedMultipliers(problem, lr_x=0.1, lr_y=0.1, mix_decay=2.0, momentum=0.9), x
        return BilevelDescent(
            problem,
            hypergradient=partial(hypergradient, method="cg"),
            outer_optimizer=torch.optim.Adam([x], lr=0.1),
            inner_optimizer=torch.optim.SGD([y], lr=0.1, momentum=0.9),
        ), x

    for kind in ("multipliers", "descent", "normalized"):
        (whole, x), (first, _), (second, resumed) = (new(kind) for _ in range(3))
        for _ in range(6):
            whole.step()
        for _ in range(3):
            first.step()
        second.load_state_dict(first.state_dict())
        for _ in range(3):
            second.step()
        assert torch.equal(x, resumed)


def _saved_bytes(descent: BilevelDescent) -> int:
    saved: list[int] = []

    def keep(t: Tensor) -> Tensor:
        saved.append(t.nbytes)
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        descent.step()
    return sum(saved)


def test_memory_does_not_grow_with_steps(quadratic: Quadratic) -> None:
    """What autograd keeps for one outer step, after 5 of them and after 50."""
    q, x, y = quadratic, quadratic.x.clone(), torch.zeros(6, dtype=torch.float64)
    descent = BilevelDescent(
        BilevelProblem(q.upper, q.lower, x, y),
        hypergradient=partial(hypergradient, method="neumann", scale=q.rate),
        outer_optimizer=torch.optim.SGD([x], lr=0.1),
        inner_optimizer=torch.optim.SGD([y], lr=q.rate),
    )
    kept = []
    for count in (5, 45):
        for _ in range(count - 1):
            descent.step()
        kept.append(_saved_bytes(descent))
    assert kept[0] == kept[1] > 0
    assert not x.requires_grad
    assert not y.requires_grad


def _counterexample(n: int) -> BilevelProblem:
    def upper(x: Tensor, y: Tensor) -> Tensor:
        return ((x - y[1]) ** 2).sum() / 2 + ((y[0] - 1) ** 2).sum() / 2

    def lower(x: Tensor, y: Tensor) -> Tensor:
        return (y[0] ** 2).sum() / 2 - (x * y[0]).sum()

    return BilevelProblem(upper, lower, torch.full((n,), 0.01).double(), torch.full((2, n), 0.01).double())


def test_averaged_multipliers_find_the_solution_among_many_minima() -> None:
    """Conjugate gradients never move what the inner objective does not see: they stop half way."""
    ours, theirs = _counterexample(3), _counterexample(3)
    method = AveragedMultipliers(ours, lr_x=0.5, lr_y=0.5, lr_v=0.5)
    states = [method.step() for _ in range(1500)]
    one = torch.ones(3, dtype=torch.float64)
    torch.testing.assert_close(ours.x, one, rtol=0, atol=1e-2)
    torch.testing.assert_close(ours.y, one.expand(2, 3), rtol=0, atol=1e-2)
    assert states[-1].residual < states[0].residual / 100
    at = kkt_residual(ours.upper, ours.lower, ours.x, ours.y, method.multiplier, mix=0.9 * 1501 ** (-1 / 10))
    torch.testing.assert_close(at, method.step().residual)
    descent = BilevelDescent(
        theirs,
        hypergradient=partial(hypergradient, method="cg", damping=1e-4),
        outer_optimizer=torch.optim.SGD([theirs.x], lr=0.5),
        inner_optimizer=torch.optim.SGD([theirs.y], lr=0.5),
        inner_steps=10,
    )
    for _ in range(40):
        descent.step()
    torch.testing.assert_close(theirs.x, torch.full_like(one, 0.505), rtol=0, atol=1e-4)


def test_a_strongly_convex_inner_problem_needs_no_average(quadratic: Quadratic) -> None:
    q, x, y = quadratic, torch.zeros(4, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
    for lr_v in (q.rate, "line search"):
        method = AveragedMultipliers(BilevelProblem(q.upper, q.lower, x, y), lr_x=0.05, lr_y=q.rate, lr_v=lr_v, mix=0)
        for _ in range(800):
            state = method.step()
        torch.testing.assert_close(q.exact(x), torch.zeros_like(x), rtol=0, atol=1e-5)
        assert state.residual < 1e-5


def test_momentum_moves_along_the_mean_of_the_gradients_in_x(quadratic: Quadratic) -> None:
    """Two steps; while x does not see the others' moves within a step, their gradients come from the plain method."""
    q, options = quadratic, {"lr_x": 0.1, "lr_y": quadratic.rate, "lr_v": quadratic.rate, "mix": 0, "step_decay": 0}
    steps, ends = [], []
    for momentum in (0.0, 0.9):
        x, y = q.x.clone(), torch.zeros(6, dtype=torch.float64)
        method = AveragedMultipliers(BilevelProblem(q.upper, q.lower, x, y), **options, momentum=momentum)
        method.step()
        steps.append(x - q.x)
        at = BilevelProblem(q.upper, q.lower, x.clone(), y.clone())  # a plain step from where the first one ended
        plain = AveragedMultipliers(at, **options)
        plain.load_state_dict({**plain.state_dict(), "multiplier": [method.multiplier.clone()]})
        before = x.clone()
        plain.step()
        method.step()
        ends.append((x - before, at.x - before))
    torch.testing.assert_close(steps[1], 0.1 * steps[0])  # (1 - momentum) of the first gradient
    torch.testing.assert_close(ends[0][0], ends[0][1])
    torch.testing.assert_close(ends[1][0], 0.9 * steps[1] + 0.1 * ends[1][1])


@pytest.mark.parametrize(("lr_v", "passes"), [(0.1, 3), ("line search", 4)])
def test_a_step_costs_one_gradient_each_and_the_products(
    quadratic: Quadratic, monkeypatch: pytest.MonkeyPatch, lr_v: Any, passes: int
) -> None:
    q = quadratic
    calls: list[str] = []

    def counted(name: str, function: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            calls.append(name)
            return function(*args, **options)

        return call

    problem = BilevelProblem(
        counted("upper", q.upper), counted("lower", q.lower), q.x.clone(), torch.zeros(6, dtype=torch.float64)
    )
    method = AveragedMultipliers(problem, lr_x=0.1, lr_y=0.1, lr_v=lr_v)
    monkeypatch.setattr(torch.autograd, "grad", counted("backward", torch.autograd.grad))
    method.step()
    assert sorted(calls) == ["backward"] * passes + ["lower", "upper"]


@pytest.mark.usefixtures("without_shape_checks")
def test_refusals(quadratic: Quadratic) -> None:
    q, x, y = quadratic, quadratic.x, torch.zeros(6, dtype=torch.float64)
    problem = BilevelProblem(q.upper, q.lower, x, y)
    with pytest.raises(TypeError, match="lower must be a function"):
        BilevelProblem(q.upper, 1, x, y)
    with pytest.raises(ValueError, match="x must hold at least one tensor"):
        BilevelProblem(q.upper, q.lower, [], y)
    with pytest.raises(TypeError, match=r"y must be a module, a floating tensor .* got torch.int64"):
        BilevelProblem(q.upper, q.lower, x, torch.zeros(6, dtype=torch.int64))
    with pytest.raises(ValueError, match="y must have at least one parameter that requires grad"):
        BilevelProblem(q.upper, q.lower, x, nn.ReLU())
    steps = {"hypergradient": partial(hypergradient, method="cg")}
    outer = torch.optim.SGD([x], lr=0.1)
    with pytest.raises(TypeError, match="problem must be a BilevelProblem"):
        BilevelDescent(q, outer_optimizer=outer, **steps)
    with pytest.raises(ValueError, match=r"inner_optimizer must hold every tensor of y; 1 of 1 are not in it"):
        BilevelDescent(problem, outer_optimizer=outer, inner_optimizer=outer, **steps)
    with pytest.raises(TypeError, match=r"outer_optimizer must be a torch.optim.Optimizer, got float"):
        BilevelDescent(problem, outer_optimizer=0.1, **steps)
    with pytest.raises(TypeError, match="hypergradient must be a function"):
        BilevelDescent(problem, outer_optimizer=outer, hypergradient="cg")
    with pytest.raises(ValueError, match="inner_steps must be an integer >= 0"):
        BilevelDescent(problem, outer_optimizer=outer, inner_steps=-1, **steps)
    for wrong, error, match in (
        ({"mix": 1.5}, ValueError, r"mix must be in \[0, 1\]"),
        ({"lr_v": "newton"}, ValueError, "lr_v must be 'line search' or a number > 0, got 'newton'"),
        ({"lr_y": 0.0}, ValueError, "lr_y must be > 0"),
        ({"mix_decay": 0.0}, ValueError, "mix_decay must be > 0"),
        ({"step_decay": -1.0}, ValueError, "step_decay must be >= 0"),
        ({"momentum": 1.0}, ValueError, r"momentum must be in \[0, 1\), got 1"),
        ({"momentum": -0.1}, ValueError, r"momentum must be in \[0, 1\]"),
    ):
        with pytest.raises(error, match=match):
            AveragedMultipliers(problem, **({"lr_x": 0.1, "lr_y": 0.1} | wrong))
    blind = AveragedMultipliers(BilevelProblem(q.upper, lambda x, y: (x**2).sum(), x, y), lr_x=0.1, lr_y=0.1)
    with pytest.raises(ValueError, match="lower must depend on y"):
        blind.step()


def _until_it_fails(method: AveragedMultipliers) -> None:
    for _ in range(100):
        method.step()


def test_a_multiplier_that_blows_up_is_told_with_its_step(quadratic: Quadratic) -> None:
    q = quadratic
    problem = BilevelProblem(q.upper, q.lower, q.x.clone(), torch.zeros(6, dtype=torch.float64))
    method = AveragedMultipliers(problem, lr_x=1e-3, lr_y=0.1, lr_v=1e30)
    with pytest.raises(ConvergenceError, match=r"the multiplier became infinite or NaN in step \d+") as caught:
        _until_it_fails(method)
    assert caught.value.result.step == method.taken


def test_a_series_that_diverges_is_told_with_its_scale(quadratic: Quadratic) -> None:
    q = quadratic
    with pytest.raises(ConvergenceError, match=r"the Neumann series diverged.*scale 100 is too large") as caught:
        hypergradient(q.upper, q.lower, q.x, q.c, method="neumann", scale=100.0, terms=5)
    assert caught.value.result.reason.item() == 3


def test_inner_steps_that_diverge_are_told_with_their_scale(quadratic: Quadratic) -> None:
    q = quadratic
    with pytest.raises(ConvergenceError, match=r"y became infinite or NaN in 300 inner steps.* than 1e\+03"):
        hypergradient(q.upper, q.lower, q.x, q.c, method="unrolled", scale=1e3, steps=300)


def test_normalized_steps_have_their_length_and_inner_updates_their_period(quadratic: Quadratic) -> None:
    q, x, y = quadratic, quadratic.x.clone(), torch.zeros(6, dtype=torch.float64)
    method = NormalizedBilevelMomentum(
        BilevelProblem(q.upper, q.lower, x, y), lr=0.03, lower_lr=q.rate, linear_lr=q.rate, period=3, radius=0.01
    )
    for number in range(9):
        before, inner = x.clone(), y.clone()
        method.step()
        torch.testing.assert_close((x - before).norm().item(), 0.03)
        moved = (y - inner).norm().item()
        assert (moved > 0) == (number % 3 == 0)
        assert moved <= (0.01 if number else 0.05) + 1e-9  # five epochs first


def test_normalized_momentum_reaches_the_optimum_of_a_steep_objective() -> None:
    """The slope of cosh is exponential in the distance; the way is made in steps of known length."""
    x, y = torch.full((3,), 12.0, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    target = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    problem = BilevelProblem(lambda x, y: torch.cosh(y - target).sum(), lambda x, y: ((y - x) ** 2).sum() / 2, x, y)
    method = NormalizedBilevelMomentum(problem, lr=0.5, lower_lr=0.5, linear_lr=0.5)
    for _ in range(400):
        state = method.step()
        method.lr *= 0.985
    torch.testing.assert_close(x, target, rtol=0, atol=2e-2)
    assert state.slope < 0.1


def test_a_stationary_point_stays(quadratic: Quadratic) -> None:
    q, x = quadratic, torch.zeros(4, dtype=torch.float64)
    problem = BilevelProblem(lambda x, y: (y**2).sum() * 0, q.lower, x, q.c.clone())
    NormalizedBilevelMomentum(problem, lr=0.5, lower_lr=0.1, linear_lr=0.1).step()
    assert not x.any()


def test_normalized_refinement_is_epochs_of_halved_steps() -> None:
    """By hand for one number: the mean of the points of each epoch, with half the step in the next."""
    x, y = torch.zeros(1, dtype=torch.float64), torch.full((1,), 8.0, dtype=torch.float64)
    problem = BilevelProblem(lambda x, y: y.sum(), lambda x, y: ((y - x) ** 2).sum() / 2, x, y)
    options = {"refinement_epochs": 2, "refinement_steps": 2, "period": 9}
    NormalizedBilevelMomentum(problem, lr=0.1, lower_lr=0.5, linear_lr=0.5, **options).step()
    assert y.item() == 8 * (0.5 + 0.25) / 2 * (0.75 + 0.75**2) / 2


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    ("option", "match"),
    [
        ({"lr": 0.0}, "lr must be > 0"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1"),
        ({"period": 0}, "period must be an integer >= 1"),
        ({"radius": 0.0}, "radius must be > 0"),
        ({"lower_steps": 0}, "lower_steps must be an integer >= 1"),
    ],
)
def test_normalized_momentum_refuses(quadratic: Quadratic, option: dict[str, Any], match: str) -> None:
    q = quadratic
    problem = BilevelProblem(q.upper, q.lower, q.x, q.c)
    with pytest.raises(ValueError, match=match):
        NormalizedBilevelMomentum(problem, **({"lr": 0.1, "lower_lr": 0.1, "linear_lr": 0.1} | option))
