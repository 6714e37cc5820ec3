"""The solvers against scipy, closed forms and unrolling; what they say when they fail."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

from pullback.core.errors import ConvergenceError
from pullback.implicit import (
    Reason,
    SparseMatrix,
    SparsePattern,
    find_root,
    fixed_point,
    linear_solve,
    minimize,
    prox_lasso,
)


def rosenbrock(x: Tensor, a: Tensor) -> Tensor:
    return (100 * (x[..., 1:] - x[..., :-1] ** 2) ** 2 + (a - x[..., :-1]) ** 2).sum(-1)


@pytest.mark.parametrize("method", ["lbfgs", "bfgs", "nonlinear_cg", "newton", "gradient"])
def test_minimize_rosenbrock(method: Any) -> None:
    a = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    init = torch.tensor([-1.2, 1.0, 0.5], dtype=torch.float64)
    solution = minimize(rosenbrock, init, a, method=method, max_iterations=20_000, check=True)
    torch.testing.assert_close(solution.value.detach(), torch.ones(3, dtype=torch.float64), atol=1e-6, rtol=0)
    (got,) = torch.autograd.grad(solution.value[0], a)
    step = 1e-4
    ends = [
        scipy.optimize.minimize(lambda x, s=s: rosenbrock(torch.tensor(x), 1 + s).item(), np.ones(3), tol=1e-14).x[0]
        for s in (-step, step)
    ]
    assert got.item() == pytest.approx((ends[1] - ends[0]) / (2 * step), rel=1e-2)


@pytest.mark.parametrize("method", ["lbfgs", "bfgs", "nonlinear_cg", "newton", "gradient", "fire"])
def test_minimize_a_batch_of_independent_problems(method: Any, generator: torch.Generator) -> None:
    a = 1 + torch.rand(5, 1, generator=generator, dtype=torch.float64)
    init = torch.zeros(5, 2, dtype=torch.float64)

    def objective(x: Tensor, a: Tensor) -> Tensor:
        return (10 * (x[..., 1] - x[..., 0]) ** 2 + (a[..., 0] - x[..., 0]) ** 2) / 2

    solution = minimize(objective, init, a, method=method, batch_ndim=1, max_iterations=5000, check=True)
    torch.testing.assert_close(solution.value, a.expand(5, 2), atol=1e-7, rtol=0)
    assert solution.iterations.shape == (5,)
    assert len(solution.iterations.unique()) >= 1


def test_fire_relaxes_a_cluster_to_a_known_minimum(generator: torch.Generator) -> None:
    # Three discs with a Lennard-Jones potential: an equilateral triangle of side 2^(1/6), energy -3.
    def potential(x: Tensor, size: Tensor) -> Tensor:
        first, second = torch.triu_indices(3, 3, 1)
        distance = (x[first] - x[second]).norm(dim=-1) / size
        return 4 * (distance**-12 - distance**-6).sum()

    start = torch.tensor([[0.0, 0.0], [1.3, 0.1], [0.4, 1.2]], dtype=torch.float64)
    size = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    solution = minimize(potential, start, size, method="fire", step=0.01, max_iterations=5000, ridge=1e-6)
    assert solution.converged
    assert potential(solution.value, size).item() == pytest.approx(-3)
    side = (solution.value[0] - solution.value[1]).norm()
    assert side.item() == pytest.approx(2 ** (1 / 6))
    assert torch.autograd.grad(side, size)[0].item() == pytest.approx(2 ** (1 / 6), rel=1e-4)  # all lengths scale


def test_lasso_equals_scikit_learn_and_its_closed_jacobian(generator: torch.Generator) -> None:
    from sklearn.linear_model import Lasso

    x = torch.randn(40, 8, generator=generator, dtype=torch.float64)
    y = x[:, :3].sum(-1) + 0.1 * torch.randn(40, generator=generator, dtype=torch.float64)
    weight = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)

    def loss(w: Tensor, weight: Tensor) -> Tensor:
        return ((x @ w - y) ** 2).mean() / 2

    solution = minimize(
        loss,
        torch.zeros(8, dtype=torch.float64),
        weight,
        prox=lambda w, step, weight: prox_lasso(w, step * weight),
        tolerance=1e-10,
        check=True,
    )
    reference = Lasso(alpha=0.2, fit_intercept=False, tol=1e-12, max_iter=10_000).fit(x.numpy(), y.numpy())
    torch.testing.assert_close(solution.value.detach(), torch.from_numpy(reference.coef_), atol=1e-7, rtol=0)
    support = solution.value.detach() != 0
    assert 0 < support.sum() < 8
    active = x[:, support]
    expected = torch.zeros(8, dtype=torch.float64)
    expected[support] = -torch.linalg.solve(active.T @ active / 40, solution.value.detach()[support].sign())
    jacobian = torch.autograd.functional.jacobian(
        lambda v: (
            minimize(
                loss,
                solution.value.detach(),
                v,
                prox=lambda w, step, weight: prox_lasso(w, step * weight),
                tolerance=1e-10,
            ).value
        ),
        weight.detach(),
    )
    torch.testing.assert_close(jacobian, expected, atol=1e-7, rtol=1e-6)


def test_anderson_needs_fewer_iterations_than_picard(generator: torch.Generator) -> None:
    matrix = torch.randn(20, 20, generator=generator, dtype=torch.float64)
    matrix = 0.97 * (matrix + matrix.T) / torch.linalg.eigvalsh(matrix + matrix.T).abs().max()
    b = torch.randn(20, generator=generator, dtype=torch.float64)
    counts = {}
    for method in ("picard", "anderson", "newton"):
        found = fixed_point(lambda x, b: matrix @ x + b, torch.zeros_like(b), b, method=method, max_iterations=5000)
        assert found.converged
        torch.testing.assert_close(found.value, torch.linalg.solve(torch.eye(20) - matrix, b), atol=1e-8, rtol=0)
        counts[method] = int(found.iterations)
    assert counts["newton"] <= 2 < counts["anderson"] < counts["picard"] / 2


def test_newton_survives_a_start_where_plain_newton_diverges() -> None:
    # arctan from 3: the undamped iteration overshoots and never comes back.
    found = find_root(lambda x: torch.atan(x), torch.tensor(3.0, dtype=torch.float64), check=True)
    assert abs(found.value.item()) < 1e-9


def test_a_failure_is_reported_and_can_be_raised() -> None:
    def nowhere(x: Tensor) -> Tensor:
        return x**2 + 1

    start = torch.tensor(2.0, dtype=torch.float64)
    found = find_root(nowhere, start)
    assert not found.converged
    assert found.residual >= 1
    with pytest.raises(
        ConvergenceError, match=r"find_root: the system did not converge, residual 1.*tolerance"
    ) as caught:
        find_root(nowhere, start, check=True)
    assert caught.value.result.residual >= 1
    with pytest.raises(ConvergenceError, match="fixed_point"):
        fixed_point(lambda x: 2 * x + 1, start, method="picard", max_iterations=20, check=True)
    with pytest.raises(ConvergenceError, match="minimize"):
        minimize(rosenbrock, torch.tensor([-1.2, 1.0], dtype=torch.float64), start, max_iterations=3, check=True)


def test_one_bad_problem_does_not_spoil_the_others() -> None:
    a = torch.tensor([[4.0], [-1.0], [9.0]], dtype=torch.float64)
    found = find_root(lambda x, a: x**2 - a, torch.ones_like(a), a, batch_ndim=1)
    assert found.converged.tolist() == [True, False, True]
    torch.testing.assert_close(found.value[[0, 2]], a[[0, 2]].sqrt())


@pytest.mark.parametrize("method", ["lu", "cg", "normal_cg", "bicgstab", "gmres"])
def test_linear_solve_on_a_batch_with_different_difficulty(method: Any, generator: torch.Generator) -> None:
    a = torch.randn(6, 12, 12, generator=generator, dtype=torch.float64)
    a = a @ a.mT + torch.logspace(-1, 3, 6, dtype=torch.float64)[:, None, None] * torch.eye(12)
    b = torch.randn(6, 12, generator=generator, dtype=torch.float64)
    b[3] = 0  # solved before the first iteration
    solution = linear_solve(a, b, method=method, tolerance=1e-12, max_iterations=400)
    assert solution.converged.all()
    torch.testing.assert_close(solution.value, torch.linalg.solve(a, b), atol=1e-9, rtol=1e-7)
    assert not solution.value[3].any()
    if method == "cg":
        assert solution.iterations[5] < solution.iterations[0]


@pytest.mark.parametrize("method", ["normal_cg", "bicgstab", "gmres", "lu"])
def test_linear_solve_of_a_nonsymmetric_function(method: Any, generator: torch.Generator) -> None:
    a = torch.randn(4, 4, generator=generator, dtype=torch.float64) + 3 * torch.eye(4)
    b = torch.randn(2, 2, generator=generator, dtype=torch.float64)

    def product(v: Tensor, a: Tensor) -> Tensor:
        return (a @ v.reshape(4)).reshape(2, 2)

    def solve(a: Tensor, b: Tensor) -> Tensor:
        return linear_solve(product, b, method=method, tolerance=1e-13, parameters=(a,)).value

    torch.testing.assert_close(solve(a, b).reshape(4), torch.linalg.solve(a, b.reshape(4)))
    assert torch.autograd.gradcheck(solve, (a.requires_grad_(), b.requires_grad_()), check_forward_ad=True)


def test_a_preconditioner_saves_iterations(generator: torch.Generator) -> None:
    scale = torch.logspace(0, 5, 60, dtype=torch.float64)
    a = torch.diag(scale) + 0.1 * torch.ones(60, 60, dtype=torch.float64)
    b = torch.randn(60, generator=generator, dtype=torch.float64)
    for method in ("cg", "gmres", "bicgstab"):
        plain = linear_solve(a, b, method=method, max_iterations=2000)
        helped = linear_solve(a, b, method=method, preconditioner=lambda v: v / scale)
        assert helped.converged
        assert helped.iterations < plain.iterations
        torch.testing.assert_close(helped.value, torch.linalg.solve(a, b), atol=1e-7, rtol=1e-6)


def test_singular_systems_are_reported(generator: torch.Generator) -> None:
    column = torch.randn(4, 1, generator=generator, dtype=torch.float64)
    a, b = column @ column.T, torch.randn(4, generator=generator, dtype=torch.float64)
    for method in ("lu", "cg", "normal_cg", "bicgstab", "gmres"):
        assert not linear_solve(a, b, method=method).converged, method
        damped = linear_solve(a, b, method=method, ridge=0.1)
        assert damped.converged, method
        normal = (a @ a if method == "normal_cg" else a) + 0.1 * torch.eye(4)
        torch.testing.assert_close(damped.value, torch.linalg.solve(normal, a @ b if method == "normal_cg" else b))
    with pytest.raises(ConvergenceError, match="linear_solve"):
        linear_solve(a, b, method="gmres", check=True)


def test_ridge_of_a_consistent_singular_system_is_the_minimum_norm_solution() -> None:
    a = torch.tensor([[1.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    solution = linear_solve(a, torch.tensor([2.0, 2.0], dtype=torch.float64), method="cg")
    assert solution.converged
    torch.testing.assert_close(solution.value, torch.ones(2, dtype=torch.float64))


def test_bad_arguments_are_named() -> None:
    x = torch.zeros(2)
    with pytest.raises(ValueError, match="objective must return one value a problem"):
        minimize(lambda x: x, x)
    with pytest.raises(ValueError, match="did you mean 'anderson'"):
        fixed_point(lambda x: x, x, method="andersen")
    with pytest.raises(TypeError, match=r"init must be a floating tensor or a nesting of them, got torch\.int64"):
        find_root(lambda x: x, torch.tensor([1]))
    with pytest.raises(ValueError, match="share their first 1 dimensions"):
        find_root(lambda x: x, (torch.zeros(2, 1), torch.zeros(3, 1)), batch_ndim=1)
    weight = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match="not in parameters"):
        linear_solve(lambda v: weight * v, x + 1)
    with pytest.raises(ValueError, match=r"matvec must return the shape of its argument \(2,\), got \(1,\)"):
        linear_solve(lambda v: v[:1], x + 1)


def test_each_problem_says_why_it_stopped() -> None:
    # A root, no root, a Jacobian of zeros at the start, a root beyond three steps.
    a = torch.tensor([[4.0], [-1.0], [4.0], [1e12]], dtype=torch.float64)
    start = torch.tensor([[1.0], [1.0], [0.0], [1.0]], dtype=torch.float64)
    found = find_root(lambda x, a: x**2 - a, start, a, batch_ndim=1, max_iterations=3)
    assert found.reason[3] == Reason.MAX_ITERATIONS
    found = find_root(lambda x, a: x**2 - a, start, a, batch_ndim=1)
    assert found.reason.tolist() == [Reason.CONVERGED, Reason.STALLED, Reason.STALLED, Reason.CONVERGED]
    assert found.converged.tolist() == [True, False, False, True]
    with pytest.raises(
        ConvergenceError, match=r"2 of 4 systems did not converge.*no step reduces the residual"
    ) as error:
        find_root(lambda x, a: x**2 - a, start, a, batch_ndim=1, check=True)
    assert torch.equal(error.value.result.reason, found.reason)


def test_a_diverging_problem_keeps_its_last_finite_point() -> None:
    rate = torch.tensor([[0.5], [1e4]], dtype=torch.float64)
    found = fixed_point(
        lambda x, r: r * x + 1, torch.ones_like(rate), rate, method="picard", batch_ndim=1, max_iterations=500
    )
    assert found.reason.tolist() == [Reason.CONVERGED, Reason.DIVERGED]
    assert torch.isfinite(found.value).all()
    assert found.value[1] > 1e290
    assert found.value[0].item() == pytest.approx(2)
    nothing = minimize(lambda x: torch.log(x).sum(), torch.tensor([-1.0]))
    assert nothing.reason == Reason.DIVERGED
    assert nothing.value.tolist() == [-1.0]


@pytest.mark.parametrize("method", ["cg", "normal_cg", "bicgstab", "gmres"])
def test_a_krylov_method_says_that_its_products_were_used_up(method: Any, generator: torch.Generator) -> None:
    a = torch.randn(40, 40, generator=generator, dtype=torch.float64)
    solution = linear_solve(a @ a.mT, torch.ones(40, dtype=torch.float64), method=method, max_iterations=2)
    assert solution.reason == Reason.MAX_ITERATIONS
    assert solution.iterations <= 4  # the bidirectional ones take two products a step


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e8, 1e30])
def test_what_the_arithmetic_cannot_solve_is_said(dtype: torch.dtype, size: float) -> None:
    a = torch.tensor([size, -size / 3], dtype=dtype)
    for found in (
        find_root(lambda x, a: x**3 + x - a, torch.zeros_like(a), a),
        minimize(lambda x, a: (x**4 / 4 + x**2 / 2 - a * x).sum(), torch.zeros_like(a), a),
        minimize(lambda x, a: ((x - a) ** 2).sum(), torch.zeros_like(a), a, prox=lambda y, step, a: y),
    ):
        assert found.converged or not found.residual <= 1e-10
        assert torch.isfinite(found.value).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", ["lu", "cg", "normal_cg", "bicgstab", "gmres"])
def test_linear_solve_in_half_precision(dtype: torch.dtype, method: Any, generator: torch.Generator) -> None:
    a = torch.randn(30, 30, generator=generator)
    a = (a @ a.mT / 30 + torch.eye(30)).to(dtype)
    b = torch.randn(30, generator=generator).to(dtype)
    solution = linear_solve(a, b, method=method)
    assert solution.converged
    assert solution.value.dtype == dtype
    torch.testing.assert_close(solution.value.float(), torch.linalg.solve(a.float(), b.float()), atol=0.05, rtol=0.05)


METHODS = ["lu", "cg", "normal_cg", "bicgstab", "gmres"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", [0, 1, 2])
def test_matrices_and_right_sides_broadcast(method: str, count: int, generator: torch.Generator) -> None:
    a = torch.randn(count, 3, 3, generator=generator, dtype=torch.float64)
    a = (a @ a.mT + torch.eye(3, dtype=torch.float64)).requires_grad_()
    b = torch.randn(3, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.arange(3, dtype=torch.float64)
    found = linear_solve(a, b, method=method, tolerance=1e-13)
    expected = torch.linalg.solve(a, b.expand(count, 3))
    assert found.converged.shape == (count,)
    torch.testing.assert_close(found.value, expected)
    got, wanted = (torch.autograd.grad((x * weight).sum(), (a, b)) for x in (found.value, expected))
    torch.testing.assert_close(got, wanted, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("matrix", [torch.zeros(2, 2), torch.full((2, 2), 0.3)], ids=["zero", "equal"])
def test_a_singular_system_is_finite_and_says_so(method: str, matrix: Tensor) -> None:
    a = matrix.double().requires_grad_()
    found = linear_solve(a, torch.tensor([1.0, -1.0], dtype=torch.float64), method=method)
    assert torch.isfinite(found.value).all()
    assert not found.converged
    assert found.reason == Reason.STALLED
    with pytest.warns(RuntimeWarning, match="the backward pass of linear_solve"):
        (slope,) = torch.autograd.grad(found.value[0], a)
    assert torch.isfinite(slope).all()
    nothing = linear_solve(a, torch.zeros(2, dtype=torch.float64), method=method)  # 0 solves it, whatever the matrix
    assert nothing.converged
    assert not nothing.value.any()


@pytest.mark.parametrize("method", ["lbfgs", "newton", "gradient", "fire"])
@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3)])
def test_nothing_is_minimised_at_once(method: str, shape: tuple[int, ...]) -> None:
    a = torch.zeros(shape, requires_grad=True)
    found = minimize(
        lambda x, a: ((x - a) ** 2).sum(-1), torch.zeros(shape), a, method=method, batch_ndim=len(shape) - 1
    )
    assert found.value.shape == shape
    assert found.converged.shape == shape[:-1]
    assert found.converged.all()
    assert torch.autograd.grad(found.value.sum(), a)[0].shape == shape


@pytest.mark.parametrize("early", [0.0, 1e-10, 1e-8, 1e-7, 1e-5, 1e-3])
def test_a_problem_that_stops_early_changes_nothing_for_the_others(early: float) -> None:
    """The memory of these methods grows in the first steps."""
    curvature = torch.stack([torch.ones(6), torch.tensor([1.0, 2.0, 3.0, 5.0, 8.0, 13.0])]).double()
    start = torch.stack([torch.full((6,), 1 - early).double(), torch.zeros(6).double()])

    def objective(x: Tensor, weight: Tensor) -> Tensor:
        return (weight * (x - 1) ** 2 + (x - 1) ** 4 / 10).sum(-1)

    choices: list[dict[str, Any]] = [{}, {"bounds": (-9.0, 9.0)}]
    for options in choices:
        both = minimize(objective, start, curvature, batch_ndim=1, **options)
        alone = minimize(objective, start[1], curvature[1], **options)
        assert both.converged.all()
        assert both.iterations[1] == alone.iterations
        torch.testing.assert_close(both.value[1], alone.value)
    pulled = lambda x, weight: x - weight * (x - 1) / 14  # noqa: E731
    both = fixed_point(pulled, start, curvature, method="anderson", batch_ndim=1)
    assert both.iterations[1] == fixed_point(pulled, start[1], curvature[1], method="anderson").iterations


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3, 1e6])
def test_conjugate_gradients_go_on_when_the_slope_has_all_but_vanished(scale: float) -> None:
    weight = scale * torch.tensor([1.0, 10.0, 100.0, 3.0]).double()
    found = minimize(
        lambda x: (weight * (x - 1) ** 2).sum(), torch.zeros(4).double(), method="nonlinear_cg", check=True
    )
    assert found.iterations <= 8


def test_several_right_sides_are_scipys_and_share_a_factorisation(generator: torch.Generator) -> None:
    a = torch.randn(3, 5, 5, generator=generator, dtype=torch.float64) + 4 * torch.eye(5)
    b = torch.randn(3, 5, 2, generator=generator, dtype=torch.float64)
    found = linear_solve(a, b, columns=True)
    torch.testing.assert_close(found.value, torch.from_numpy(np.linalg.solve(a.numpy(), b.numpy())))
    assert found.residual.shape == (3, 2)
    pattern = SparsePattern(torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([0, 1, 1, 2, 2, 0]), (3, 3))
    values = torch.randn(4, 6, generator=generator, dtype=torch.float64) + torch.tensor([3.0, 0, 3, 0, 3, 0])
    right = torch.randn(4, 3, 5, generator=generator, dtype=torch.float64)
    for chosen in (values, values[0]):  # a batch of matrices, one for all
        sparse = SparseMatrix(pattern, chosen)
        expected = torch.linalg.solve(sparse.dense(), right)
        torch.testing.assert_close(linear_solve(sparse, right, columns=True).value, expected)
    with pytest.raises(ValueError, match="columns=True is for a matrix"):
        linear_solve(lambda v: v, right, columns=True)


def test_block_coordinates_of_very_different_scale_take_fewer_sweeps(generator: torch.Generator) -> None:
    scale = torch.tensor([1.0, 0.2, 20.0], dtype=torch.float64)
    a = torch.randn(20, 3, generator=generator, dtype=torch.float64) * scale
    y = torch.randn(20, generator=generator, dtype=torch.float64)

    def objective(x: Tensor, weight: Tensor) -> Tensor:
        return ((a @ x - y) ** 2).sum() / 2

    def soft(v: Tensor, step: float, weight: Tensor) -> Tensor:
        return prox_lasso(v, step * weight)

    weight, start = torch.tensor(0.3, dtype=torch.float64, requires_grad=True), torch.zeros(3, dtype=torch.float64)
    options: dict[str, Any] = {"prox": soft, "tolerance": 1e-4, "max_iterations": 20_000, "check": True}
    blocks = minimize(objective, start, weight, method="block_coordinate", **options)
    whole = minimize(objective, start, weight, **options)
    assert int(blocks.iterations) < 0.2 * int(whole.iterations)
    torch.testing.assert_close(blocks.value, whole.value, atol=1e-4, rtol=1e-4)
    slope = torch.autograd.grad(blocks.value.sum(), weight)[0]
    torch.testing.assert_close(slope, torch.autograd.grad(whole.value.sum(), weight)[0], atol=1e-6, rtol=1e-4)


def test_blocks_are_the_tensors_of_a_nesting(generator: torch.Generator) -> None:
    target = torch.randn(2, 3, generator=generator, dtype=torch.float64)

    def objective(x: dict[str, Tensor], target: Tensor) -> tuple[Tensor, Tensor]:
        gap = x["row"][:, None, :] * x["level"][:, None, None] - target[:, None, :]
        return (gap**2).sum((1, 2)) + ((x["level"] - 2) ** 2), gap

    init = {"row": torch.zeros(2, 3, dtype=torch.float64), "level": torch.ones(2, dtype=torch.float64)}
    found = minimize(objective, init, target, method="block_coordinate", batch_ndim=1, has_aux=True, check=True)
    torch.testing.assert_close(found.value["row"], target / 2)
    torch.testing.assert_close(found.aux, torch.zeros_like(found.aux), atol=1e-7, rtol=0)


def test_aux_must_be_the_second_of_two() -> None:
    with pytest.raises(ValueError, match=r"function must return a pair \(value, aux\) with has_aux=True, got Tensor"):
        find_root(lambda x: x, torch.ones(2), has_aux=True)
    with pytest.raises(ValueError, match=r"map must return a pair \(value, aux\) with has_aux=True, got 3 values"):
        fixed_point(lambda x: (x, 1, 2), torch.ones(2), has_aux=True)
    assert fixed_point(lambda x: (x / 2, "half"), torch.ones(2), has_aux=True).aux == "half"


def test_aux_has_the_derivatives_of_the_solution_and_of_its_own() -> None:
    def square(x: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        return x**2 - a, 3 * x + a

    a = torch.tensor([4.0, 9.0], dtype=torch.float64, requires_grad=True)
    found = find_root(square, torch.ones(2, dtype=torch.float64), a, has_aux=True)
    torch.testing.assert_close(torch.autograd.grad(found.aux.sum(), a)[0], 1 + 1.5 / a.detach().sqrt())
