"""Implicit differentiation: every mode, every order, any nesting, and what it refuses."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, vmap

from pullback.implicit import Reason, Solution, custom_fixed_point, custom_root, find_root, minimize, root_jvp, root_vjp

METHODS = ("lu", "cg", "normal_cg", "bicgstab", "gmres")


def energy(x: Tensor, a: Tensor, m: Tensor) -> Tensor:
    return (x**4).sum() / 4 + (x @ (m @ m.T) * x).sum() / 2 + (x**2 * a).sum() / 2 - x.sum()


def slope(x: Tensor, a: Tensor, m: Tensor) -> Tensor:
    return grad(energy)(x, a, m)


def slope_by_autograd(x: Tensor, a: Tensor, m: Tensor) -> Tensor:
    with torch.enable_grad():
        if not x.requires_grad:
            x = x.detach().requires_grad_()
        return torch.autograd.grad(energy(x, a, m), x, create_graph=True)[0]


def newton(init: Tensor, a: Tensor, m: Tensor) -> Tensor:
    x = init.clone()
    for _ in range(8):
        x = x - torch.linalg.solve(jacrev(slope)(x, a, m), slope(x, a, m))
    return x


@pytest.fixture
def theta(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    a = torch.rand(3, generator=generator, dtype=torch.float64)
    m = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    return a.requires_grad_(), m.requires_grad_()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("optimality", [slope, slope_by_autograd])
def test_every_linear_solver_in_both_modes_and_twice(
    optimality: Any, method: Any, theta: tuple[Tensor, Tensor]
) -> None:
    solver = custom_root(optimality, solve=method, tolerance=1e-13)(newton)

    a, m = theta

    def solution(a: Tensor, scale: Tensor) -> Tensor:
        return solver(torch.zeros(3, dtype=torch.float64), a, scale * m.detach())

    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    assert gradcheck(solution, (a, scale), check_forward_ad=True)
    assert gradgradcheck(solution, (a, scale))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_every_nesting_of_modes_is_exact(order: int) -> None:
    square_root = custom_root(lambda x, a: x**2 - a)(lambda init, a: a.sqrt())
    expected = {1: 0.5 * 2**-0.5, 2: -0.25 * 2**-1.5, 3: 0.375 * 2**-2.5}[order]
    for modes in itertools.product((jacfwd, jacrev), repeat=order):
        derivative = lambda a: square_root(None, a)  # noqa: E731
        for mode in modes:
            derivative = mode(derivative)
        got = derivative(torch.tensor(2.0, dtype=torch.float64))
        assert abs(got.item() - expected) < 1e-12, [mode.__name__ for mode in modes]


def test_transforms_compose(theta: tuple[Tensor, Tensor], generator: torch.Generator) -> None:
    a, m = (t.detach() for t in theta)
    solver = custom_root(slope)(newton)

    def loss(a: Tensor) -> Tensor:
        return solver(torch.zeros(3, dtype=torch.float64), a, m).square().sum()

    many = torch.rand(4, 3, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(vmap(loss)(many), torch.stack([loss(v) for v in many]))
    torch.testing.assert_close(vmap(grad(loss))(many), torch.stack([grad(loss)(v) for v in many]))
    torch.testing.assert_close(hessian(loss)(a), torch.autograd.functional.hessian(loss, a))


def test_nested_unknowns_and_parameters(generator: torch.Generator) -> None:
    weight = torch.randn(2, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, generator=generator, dtype=torch.float64, requires_grad=True)

    def optimality(x: dict[str, Tensor], theta: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
        matrix = torch.eye(2, dtype=torch.float64) + scale * torch.tanh(theta["weight"])
        return {"u": matrix @ x["u"] + x["v"] - theta["bias"], "v": 2 * x["v"] - x["u"]}

    def solution(weight: Tensor, bias: Tensor) -> Tensor:
        init = {"u": torch.zeros(2, dtype=torch.float64), "v": torch.zeros(2, dtype=torch.float64)}
        found = find_root(optimality, init, {"weight": weight, "bias": bias}, 0.3)
        assert found.converged
        return torch.cat([found.value["u"], 3 * found.value["v"]])

    matrix = 1.5 * torch.eye(2, dtype=torch.float64) + 0.3 * torch.tanh(weight.detach())
    u = torch.linalg.solve(matrix, bias.detach())
    torch.testing.assert_close(solution(weight, bias).detach(), torch.cat([u, 1.5 * u]))
    assert gradcheck(solution, (weight, bias), check_forward_ad=True)
    assert gradgradcheck(solution, (weight, bias))


def test_independent_problems_need_small_systems(generator: torch.Generator) -> None:
    a = torch.rand(700, 2, generator=generator, dtype=torch.float64, requires_grad=True)  # 1 400 unknowns together

    def function(x: Tensor, a: Tensor) -> Tensor:
        return torch.stack([x[..., 0] ** 3 + x[..., 1] - a[..., 0], x[..., 1] - x[..., 0] - 2 * a[..., 1]], -1)

    with pytest.raises(ValueError, match="at most 512 unknowns, got 1400"):
        find_root(function, torch.ones_like(a), a, solve="lu")
    batched = find_root(function, torch.ones_like(a), a, solve="lu", batch_ndim=1)
    assert batched.converged.shape == (700,)
    assert batched.converged.all()
    whole = find_root(function, torch.ones_like(a), a, solve="gmres", max_iterations=500)
    torch.testing.assert_close(batched.value, whole.value, atol=1e-8, rtol=1e-8)
    got = torch.autograd.grad(batched.value.square().sum(), a)[0]
    torch.testing.assert_close(got, torch.autograd.grad(whole.value.square().sum(), a)[0], atol=1e-7, rtol=1e-6)


def test_products_equal_the_jacobian(theta: tuple[Tensor, Tensor], generator: torch.Generator) -> None:
    a, m = (t.detach() for t in theta)
    x = newton(torch.zeros(3, dtype=torch.float64), a, m)
    left = jacrev(slope)(x, a, m)
    jacobian = -torch.linalg.solve(left, jacrev(slope, argnums=1)(x, a, m))
    v, w = (torch.randn(3, generator=generator, dtype=torch.float64) for _ in range(2))
    torch.testing.assert_close(root_jvp(slope, x, (a, m), (v, torch.zeros_like(m))), jacobian @ v)
    torch.testing.assert_close(root_vjp(slope, x, (a, m), w)[0], jacobian.T @ w)


def test_fixed_point_equals_root(generator: torch.Generator) -> None:
    a = torch.rand(3, generator=generator, dtype=torch.float64, requires_grad=True)

    def solver(init: Tensor, a: Tensor) -> Tensor:
        x = init
        for _ in range(100):
            x = torch.cos(a * x)
        return x

    as_map = custom_fixed_point(lambda x, a: torch.cos(a * x))(solver)(torch.ones(3, dtype=torch.float64), a)
    as_root = custom_root(lambda x, a: torch.cos(a * x) - x)(solver)(torch.ones(3, dtype=torch.float64), a)
    unrolled = solver(torch.ones(3, dtype=torch.float64), a)
    for value in (as_map, as_root):
        torch.testing.assert_close(
            torch.autograd.grad(value.sum(), a)[0],
            torch.autograd.grad(unrolled.sum(), a, retain_graph=True)[0],
        )


def test_twice_the_same(theta: tuple[Tensor, Tensor]) -> None:
    solver = custom_root(slope, solve="gmres")(newton)
    value = solver(torch.zeros(3, dtype=torch.float64), *theta)
    first = torch.autograd.grad(value.sum(), theta, retain_graph=True)
    second = torch.autograd.grad(value.sum(), theta)
    again = torch.autograd.grad(solver(torch.zeros(3, dtype=torch.float64), *theta).sum(), theta)
    for f, s, t in zip(first, second, again, strict=True):
        assert torch.equal(f, s)
        assert torch.equal(f, t)


def test_the_solver_s_memory_does_not_reach_the_caller() -> None:
    saved: list[int] = []

    def pack(t: Tensor) -> Tensor:
        saved.append(t.numel())
        return t

    counts = []
    for steps in (10, 100):

        def solver(init: Tensor, a: Tensor, steps: int = steps) -> Tensor:
            x = init
            for _ in range(steps):
                x = x - 0.1 * (x - a) * a.exp()
            return x

        a = torch.full((50,), 0.3, dtype=torch.float64, requires_grad=True)
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            custom_root(lambda x, a: (x - a) * a.exp())(solver)(torch.zeros(50, dtype=torch.float64), a)
        counts.append(sum(saved))
    assert counts[0] == counts[1]


def test_inexact_solutions_get_the_formula_s_jacobian() -> None:
    a = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    inexact = custom_root(lambda x, a: x**2 - a)(lambda init, a: torch.tensor(1.5, dtype=torch.float64))(None, a)
    assert torch.autograd.grad(inexact, a)[0].item() == pytest.approx(1 / 3)


def test_solution_results_pass_through() -> None:
    a = torch.tensor([4.0, 9.0], requires_grad=True)

    @custom_root(lambda x, a: x**2 - a)
    def solver(init: Tensor | None, a: Tensor) -> Solution:
        return Solution(a.sqrt(), torch.tensor(0.5), torch.tensor(7), torch.tensor(Reason.STALLED))

    solution = solver(None, a)
    assert (solution.residual, solution.iterations, solution.converged) == (0.5, 7, False)
    assert not solution.residual.requires_grad
    torch.testing.assert_close(torch.autograd.grad(solution.value.sum(), a)[0], torch.tensor([0.25, 1 / 6]))


def test_a_shape_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"optimality must return the shape of x, \(3,\), got \(\)"):
        custom_root(lambda x, a: (x - a).sum())(lambda init, a: a)(None, torch.ones(3))
    with pytest.raises(ValueError, match="optimality must return the structure of x"):
        custom_root(lambda x, a: (x, x))(lambda init, a: a)(None, torch.ones(3))
    with pytest.raises(ValueError, match=r"map must return the shape of x, \(3,\), got \(2,\)"):
        custom_fixed_point(lambda x, a: x[:2])(lambda init, a: a)(None, torch.ones(3))
    with pytest.raises(TypeError, match="must be a floating tensor"):
        custom_root(lambda x, a: x)(lambda init, a: a.long())(None, torch.ones(3))


def test_a_captured_parameter_is_refused_not_forgotten() -> None:
    captured = torch.ones(3, requires_grad=True)
    with pytest.raises(ValueError, match="pass it to the solver as part of theta"):
        custom_root(lambda x, a: x * captured - a)(lambda init, a: a)(None, torch.ones(3))
    layer = torch.nn.Linear(3, 3)
    with pytest.raises(ValueError, match="pass it to the solver as part of theta"):
        minimize(lambda x, a: (layer(x) - a).square().sum(), torch.zeros(3), torch.ones(3))


def test_a_singular_system_warns_and_ridge_cures_it() -> None:
    a = torch.ones(2, dtype=torch.float64, requires_grad=True)

    def flat(x: Tensor, a: Tensor) -> Tensor:  # one equation for two unknowns, twice
        return (x.sum() - a.sum()).expand(2)

    def solver(init: Any, a: Tensor) -> Tensor:
        return a.clone()

    with pytest.warns(RuntimeWarning, match="the backward pass of a root: the system did not converge, residual"):
        torch.autograd.grad(custom_root(flat)(solver)(None, a)[0], a)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        damped = custom_root(flat, ridge=1e-3)(solver)(None, a)
        assert torch.isfinite(torch.autograd.grad(damped.sum(), a)[0]).all()
