"""Least squares, bounds, brackets and Broyden's method against scipy and closed forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import torch
from torch import Tensor

from pullback.core.errors import ConvergenceError
from pullback.implicit import Reason, find_bracketed_root, find_root, least_squares, linear_least_squares, minimize


def _decay(p: Tensor, times: Tensor, values: Tensor) -> Tensor:
    return p[..., :1] * torch.exp(-p[..., 1:2] * times) + p[..., 2:] - values


@pytest.mark.parametrize("method", ["levenberg_marquardt", "gauss_newton"])
def test_a_batch_of_fits_equals_scipy_and_its_sensitivity_refits(method: Any, generator: torch.Generator) -> None:
    times = torch.linspace(0, 4, 25, dtype=torch.float64)
    truth = torch.tensor([[2.0, 0.8, 0.5], [1.0, 2.0, -0.3]]).double()
    values = _decay(truth, times, torch.zeros(2, 25).double())
    values = (values + 0.05 * torch.randn(2, 25, generator=generator, dtype=torch.float64)).requires_grad_()
    start = torch.ones(2, 3).double()
    residual = lambda p, v: _decay(p, times, v)  # noqa: E731
    found = least_squares(residual, start, values, method=method, batch_ndim=1, tolerance=1e-11, check=True)

    def fit(i: int, numbers: np.ndarray) -> np.ndarray:
        loss = lambda p: _decay(torch.tensor(p), times, torch.tensor(numbers)).numpy()  # noqa: E731
        return scipy.optimize.least_squares(loss, np.ones(3), method="lm", xtol=1e-15, ftol=1e-15, gtol=1e-15).x

    for i in range(2):
        numbers = values[i].detach().numpy()
        np.testing.assert_allclose(found.value[i].detach().numpy(), fit(i, numbers), rtol=1e-6)
        (slope,) = torch.autograd.grad(found.value[i, 1], values, retain_graph=True)
        moved = np.zeros(25)
        moved[7] = 1e-4
        difference = (fit(i, numbers + moved)[1] - fit(i, numbers - moved)[1]) / 2e-4
        assert slope[i, 7].item() == pytest.approx(difference, rel=1e-3)


def test_a_problem_that_its_residual_does_not_decide_converges_to_one_solution() -> None:
    found = least_squares(lambda x: x.sum()[None] - 3, torch.tensor([1.0, 0.0]).double(), ridge=1e-6, check=True)
    torch.testing.assert_close(found.value, torch.tensor([2.0, 1.0]).double())  # the nearest to the start


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["levenberg_marquardt", "gauss_newton"])
def test_a_jacobian_without_full_rank_gets_the_nearest_solution(method: Any, dtype: torch.dtype) -> None:
    rows = torch.tensor([[1.0, 1.0, 0.0], [2.0, 2.0, 0.0]], dtype=dtype)  # nothing decides the last unknown
    right = torch.tensor([1.0, 2.5], dtype=dtype)
    start = torch.tensor([0.0, 0.0, 0.5], dtype=dtype)
    for matrix, b in ((rows, right), (rows[:1], right[:1])):
        found = least_squares(lambda x, a=matrix, b=b: a @ x - b, start, method=method, check=True)
        expected = start + torch.linalg.pinv(matrix) @ (b - matrix @ start)
        torch.testing.assert_close(found.value, expected, atol=1e-3 if dtype == torch.float32 else 1e-8, rtol=0)


@pytest.mark.parametrize("method", ["levenberg_marquardt", "gauss_newton"])
def test_units_of_the_unknowns_do_not_matter(method: Any) -> None:
    unit = torch.tensor([1e-8, 1e4]).double()
    model = lambda x: torch.stack([x[0] / unit[0] - 1, x[1] / unit[1] - 1])  # noqa: E731
    found = least_squares(model, torch.zeros(2).double(), method=method, check=True)
    torch.testing.assert_close(found.value / unit, torch.ones(2).double(), atol=1e-3, rtol=0)


def test_residuals_of_another_type_are_refused() -> None:
    for wrong in (lambda x: x.double() - 1, lambda x: (x > 0).long(), lambda x: x + 1j):
        with pytest.raises(TypeError, match=r"residual must return tensors of the type of init, torch\.float32, got"):
            least_squares(wrong, torch.ones(2))


def test_damping_saves_a_start_where_the_linear_model_fails() -> None:
    # From 10 the Gauss-Newton step of arctan flies off; damped steps come home.
    found = least_squares(torch.arctan, torch.tensor([10.0]).double(), max_iterations=200, check=True)
    assert abs(found.value.item()) < 1e-6


@pytest.mark.parametrize("size", [3, 12])
def test_bounds_against_scipy_and_their_price(size: int, generator: torch.Generator) -> None:
    root = torch.randn(size, size, generator=generator, dtype=torch.float64)
    matrix, linear = root @ root.T + torch.eye(size), 3 * torch.randn(size, generator=generator, dtype=torch.float64)
    high = torch.full((size,), 0.2).double().requires_grad_()

    def objective(x: Tensor) -> Tensor:
        return x @ matrix @ x / 2 + linear @ x + (x**4).sum()

    found = minimize(objective, torch.zeros(size).double(), bounds=(-0.3, high), tolerance=1e-11, check=True)
    reference = scipy.optimize.minimize(
        lambda x: objective(torch.tensor(x)).item(),
        np.zeros(size),
        method="L-BFGS-B",
        bounds=[(-0.3, 0.2)] * size,
        options={"ftol": 1e-15, "gtol": 1e-10},
    )
    np.testing.assert_allclose(found.value.detach().numpy(), reference.x, atol=1e-5)
    (price,) = torch.autograd.grad(objective(found.value), high)
    slope = torch.autograd.functional.jacobian(objective, found.value.detach())
    expected = torch.where(found.value.detach() == high.detach(), slope, 0)
    torch.testing.assert_close(price, expected, atol=1e-8, rtol=1e-8)
    assert (price < 0).any()


def test_bounds_closer_together_than_rounding_of_ordinary_numbers() -> None:
    target = torch.tensor([3e-11, 2e-10, -1e-10], dtype=torch.float64)
    found = minimize(lambda x: ((x - target) ** 2).sum(), 0 * target + 9e-11, bounds=(0.0, 1e-10), tolerance=1e-18)
    assert found.converged
    torch.testing.assert_close(found.value, target.clamp(0, 1e-10), atol=1e-17, rtol=0)


def test_bounds_of_a_nesting() -> None:
    target: dict[str, Any] = {"a": torch.tensor([2.0, -2.0]), "b": [torch.tensor(0.5)]}

    def objective(x: Any) -> Tensor:
        return ((x["a"] - target["a"]) ** 2).sum() + (x["b"][0] - target["b"][0]) ** 2

    start = {"a": torch.zeros(2), "b": [torch.tensor(0.0)]}
    found = minimize(objective, start, bounds=(-1.0, {"a": torch.tensor([1.0, 1.0]), "b": [torch.tensor(0.25)]}))
    assert found.converged
    assert found.value["a"].tolist() == [1.0, -1.0]
    assert found.value["b"][0].item() == 0.25


def test_brackets_of_steep_and_flat_functions_and_a_pole() -> None:
    for function, root in (
        (lambda x: torch.tan(x) - x, 4.493409457909064),
        (lambda x: 1e8 * (x - 4.4), 4.4),
        (lambda x: (x - 4.4) ** 9, 4.4),
    ):
        found = find_bracketed_root(function, torch.tensor(4.0).double(), torch.tensor(4.7).double())
        assert found.converged
        assert found.value.item() == pytest.approx(root, abs=0.06 if root == 4.4 else 1e-9)  # 0.06^9 is below 1e-10
    pole = find_bracketed_root(lambda x: 1 / (x - 0.3), torch.tensor(0.0).double(), torch.tensor(1.0).double())
    assert pole.reason == Reason.STALLED
    with pytest.raises(ValueError, match="different signs at low and high, got 1 at 1 and 4 at 2"):
        find_bracketed_root(lambda x: x**2, torch.tensor(1.0), torch.tensor(2.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_large_value_at_one_end_does_not_make_the_other_a_root(dtype: torch.dtype) -> None:
    for function, ends, root in (
        (lambda x: x**2 - 2, (0.0, 1e4), 2**0.5),
        (lambda x: torch.exp(x) - 2, (-5.0, 80.0), float(np.log(2))),
        (lambda x: 1 - 1 / x, (1e-30, 3.0), 1.0),
        (lambda x: torch.log(x / (1 - x)) - 2, (0.0, 1.0), 1 / (1 + float(np.exp(-2)))),  # infinite at both ends
        (lambda x: x - 1, (1.0, 3.0), 1.0),
        (lambda x: 1e8 * x - 1e8, (-3.0, 7.0), 1.0),
    ):
        found = find_bracketed_root(function, *torch.tensor(ends, dtype=dtype), check=True)
        assert found.value.item() == pytest.approx(root, rel=1e-9 if dtype == torch.float64 else 1e-5)
    jump = find_bracketed_root(lambda x: torch.where(x < 0.3, -1.0, 2.0).to(x), *torch.tensor([0.0, 1.0], dtype=dtype))
    assert jump.reason == Reason.STALLED
    one = torch.ones((), dtype=dtype)
    with pytest.raises(ValueError, match="high must be finite"):
        find_bracketed_root(lambda x: x - 2, one, one / 0)
    with pytest.raises(TypeError, match="must have the same dtype"):
        find_bracketed_root(lambda x: x - 2, one, 3 * one.to(torch.float16))


def test_broyden_arrives_where_newton_does() -> None:
    def function(x: Tensor, a: Tensor) -> Tensor:
        return torch.stack([x[0] ** 2 + x[1] ** 2 - a, torch.exp(x[0]) + x[1] - 1])

    start, a = torch.tensor([1.0, -1.5]).double(), torch.tensor(4.0).double()
    found = find_root(function, start, a, method="broyden", check=True)
    exact = find_root(function, start, a, check=True)
    torch.testing.assert_close(found.value, exact.value)
    assert found.iterations > exact.iterations  # superlinear, not quadratic


def test_a_fit_that_may_not_step_says_so() -> None:
    with pytest.raises(ConvergenceError, match="the iterations were used up"):
        least_squares(lambda x: torch.exp(x) - 3, torch.tensor([5.0]).double(), max_iterations=1, check=True)


def test_broyden_comes_back_from_a_step_that_is_far_too_long() -> None:
    cubes = torch.tensor([[1.0], [1e6], [1e9], [8.0]]).double()
    found = find_root(lambda x: x**3 - cubes, torch.ones(4, 1).double(), method="broyden", batch_ndim=1, tolerance=1e-5)
    assert found.converged.all()
    torch.testing.assert_close(found.value, torch.tensor([[1.0], [100.0], [1000.0], [2.0]]).double())


@pytest.mark.parametrize("method", ["qr", "svd"])
@pytest.mark.parametrize("shape", [(6, 3), (3, 3), (3, 6)])
def test_linear_least_squares_is_scipys(method: str, shape: tuple[int, int], generator: torch.Generator) -> None:
    a = torch.randn(*shape, generator=generator, dtype=torch.float64)
    b = torch.randn(shape[0], 2, generator=generator, dtype=torch.float64)
    found = linear_least_squares(a, b, method=method, columns=True, check=True)
    torch.testing.assert_close(found.value, torch.from_numpy(scipy.linalg.lstsq(a, b)[0]))
    assert found.residual.shape == (2,)
    assert float(found.residual.max()) < 1e-12


def test_linear_least_squares_without_full_rank(generator: torch.Generator) -> None:
    left, right = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((5, 2), (2, 4)))
    a, b = (left @ right).requires_grad_(), torch.randn(5, generator=generator, dtype=torch.float64)
    shortest = linear_least_squares(a, b, method="svd")
    torch.testing.assert_close(shortest.value.detach(), torch.from_numpy(scipy.linalg.lstsq(a.detach(), b)[0]))
    told = linear_least_squares(a, b)
    assert int(told.reason) == Reason.STALLED
    assert told.value.eq(0).all()
    (slope,) = torch.autograd.grad(told.value.sum(), a)
    assert slope.eq(0).all()  # not NaN
    with pytest.raises(ConvergenceError, match="linear_least_squares: the system did not converge"):
        linear_least_squares(a, b, check=True)
    # In the direction of matrices of the same rank the derivative is that of the pseudo-inverse.
    turn = torch.randn(2, 4, generator=generator, dtype=torch.float64)
    (slope,) = torch.autograd.grad(shortest.value.sum(), a)
    ends = [torch.linalg.pinv(left @ (right + s * turn)) @ b for s in (1e-6, -1e-6)]
    assert float((slope * (left @ turn)).sum()) == pytest.approx(float((ends[0] - ends[1]).sum() / 2e-6), rel=1e-5)


def test_a_number_that_is_none_stays_in_its_own_problem() -> None:
    a = torch.eye(2).expand(2, 2, 2).clone()
    a[0, 0, 0] = torch.nan
    found = linear_least_squares(a, torch.ones(2, 2))
    assert found.value.isnan().tolist() == [[True, True], [False, False]]
    assert found.reason.tolist() == [Reason.DIVERGED, Reason.CONVERGED]
