"""Different optimality conditions of one problem give one derivative."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pullback.implicit import (
    KKTPoint,
    custom_fixed_point,
    custom_root,
    optimality,
    projection_affine,
    projection_box,
    projection_l1_ball,
    projection_l2_ball,
    projection_simplex,
    prox_group_lasso,
    prox_lasso,
)


def quadratic(x: Tensor, a: Tensor) -> Tensor:
    scale = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype)
    return (scale * (x - a) ** 2).sum() / 2


def simplex_solution(a: Tensor) -> Tensor:
    """Minimise the quadratic over the simplex by bisection on the multiplier (an independent solver)."""
    scale = torch.arange(1, a.shape[-1] + 1, dtype=a.dtype)
    low, high = torch.tensor(-100.0, dtype=a.dtype), torch.tensor(100.0, dtype=a.dtype)
    for _ in range(200):
        middle = (low + high) / 2
        if (a - middle / scale).clamp(min=0).sum() > 1:
            low = middle
        else:
            high = middle
    return (a - low / scale).clamp(min=0)


@pytest.fixture
def target() -> Tensor:
    return torch.tensor([0.9, 0.5, -0.4, 0.3], dtype=torch.float64, requires_grad=True)


def finite_differences(a: Tensor) -> Tensor:
    eye, h = torch.eye(len(a), dtype=a.dtype), 1e-6
    return torch.stack([(simplex_solution(a + h * e) - simplex_solution(a - h * e)) / (2 * h) for e in eye], -1)


def test_projected_mirror_and_kkt_agree(target: Tensor) -> None:
    expected = finite_differences(target.detach())
    projected = custom_fixed_point(
        optimality.projected_gradient(quadratic, lambda y, a: projection_simplex(y), step=0.3)
    )(lambda init, a: simplex_solution(a))
    by_projection = torch.autograd.functional.jacobian(lambda a: projected(None, a), target)
    torch.testing.assert_close(by_projection, expected, atol=1e-6, rtol=0)

    def solve_kkt(init: None, a: Tensor) -> KKTPoint:
        x = simplex_solution(a)
        gradient = torch.func.grad(quadratic)(x, a)
        nu = -gradient[x > 0].mean()
        return KKTPoint(x, nu[None], (gradient + nu).clamp(min=0) * (x == 0))

    conditions = optimality.kkt(quadratic, equality=lambda x, a: x.sum()[None] - 1, inequality=lambda x, a: -x)
    point = solve_kkt(None, target.detach())
    for part in conditions(point, target.detach()):
        torch.testing.assert_close(part, torch.zeros_like(part), atol=1e-9, rtol=0)
    kkt = custom_root(conditions)(solve_kkt)
    torch.testing.assert_close(
        torch.autograd.functional.jacobian(lambda a: kkt(None, a).primal, target), expected, atol=1e-6, rtol=0
    )


def test_mirror_descent_in_the_interior(target: Tensor) -> None:
    def entropic(x: Tensor, a: Tensor) -> Tensor:  # interior solution: softmax(a)
        return (x * x.log()).sum() - (x * a).sum()

    mirror = custom_fixed_point(optimality.mirror_descent(entropic, step=0.5), ridge=0.0)(
        lambda init, a: torch.softmax(a, -1)
    )
    got = torch.autograd.functional.jacobian(lambda a: mirror(None, a), target)
    torch.testing.assert_close(got, torch.autograd.functional.jacobian(lambda a: torch.softmax(a, -1), target))
    with pytest.raises(ValueError, match="must be given together"):
        optimality.mirror_descent(entropic, mapping=torch.log)


def test_proximal_and_block_proximal(target: Tensor) -> None:
    def loss(x: Tensor, a: Tensor) -> Tensor:
        return ((x - a) ** 2).sum() / 2

    single = custom_fixed_point(
        optimality.proximal_gradient(loss, lambda y, step, a: prox_lasso(y, 0.35 * step), step=0.7)
    )(lambda init, a: prox_lasso(a, 0.35))
    got = torch.autograd.functional.jacobian(lambda a: single(None, a), target)
    torch.testing.assert_close(got, torch.diag((target.detach().abs() > 0.35).double()))

    def coupled(blocks: tuple[Tensor, ...], a: Tensor) -> Tensor:
        u, v = blocks
        return ((u - a[:2]) ** 2).sum() / 2 + ((v - a[2:]) ** 2).sum() / 2

    blocks = custom_fixed_point(
        optimality.block_proximal(
            coupled,
            [lambda y, step, a: prox_lasso(y, 0.35 * step), lambda y, step, a: prox_group_lasso(y, 0.1 * step)],
            [0.7, 0.4],
        )
    )(lambda init, a: (prox_lasso(a[:2], 0.35), prox_group_lasso(a[2:], 0.1)))
    got = torch.autograd.functional.jacobian(lambda a: torch.cat(blocks(None, a)), target)
    expected = torch.autograd.functional.jacobian(
        lambda a: torch.cat([prox_lasso(a[:2], 0.35), prox_group_lasso(a[2:], 0.1)]), target
    )
    torch.testing.assert_close(got, expected)
    with pytest.raises(ValueError, match="proxes and steps must be of one length, got 1 and 2"):
        optimality.block_proximal(coupled, [lambda y, step, a: y], [0.1, 0.1])


def test_newton_map_and_stationary_agree(target: Tensor) -> None:
    def objective(x: Tensor, a: Tensor) -> Tensor:
        return (x**4).sum() / 4 + (x**2).sum() / 2 - (a * x).sum()

    gradient = optimality.stationary(objective)
    assert gradient.symmetric

    def solver(init: None, a: Tensor) -> Tensor:
        x = torch.zeros_like(a)
        for _ in range(50):
            x = x - (x**3 + x - a) / (3 * x**2 + 1)
        return x

    root = torch.autograd.functional.jacobian(lambda a: custom_root(gradient)(solver)(None, a), target)
    fixed = torch.autograd.functional.jacobian(
        lambda a: custom_fixed_point(optimality.newton(gradient, step=0.5))(solver)(None, a), target
    )
    x = solver(None, target.detach())
    torch.testing.assert_close(root, torch.diag(1 / (3 * x**2 + 1)))
    torch.testing.assert_close(fixed, root)


def test_constraints_are_needed_for_kkt() -> None:
    with pytest.raises(ValueError, match="use stationary"):
        optimality.kkt(quadratic)


@pytest.mark.parametrize("projection", [projection_simplex, projection_l1_ball, projection_box])
def test_projections_are_idempotent_and_nonexpansive(projection: object, generator: torch.Generator) -> None:
    x, y = (3 * torch.randn(200, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    p, q = projection(x), projection(y)  # type: ignore[operator]
    torch.testing.assert_close(projection(p), p)  # type: ignore[operator]
    assert ((p - q).norm(dim=-1) <= (x - y).norm(dim=-1) + 1e-12).all()


def test_simplex_radius_is_differentiable_and_broadcast() -> None:
    x = torch.tensor([[0.5, 1.2, -1.0], [3.0, 2.0, 1.0]], dtype=torch.float64, requires_grad=True)
    radius = torch.tensor([1.0, 4.0], dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(projection_simplex(x, radius).sum(-1), radius)
    assert torch.autograd.gradcheck(projection_simplex, (x, radius), check_forward_ad=True)


def test_simplex_ties_and_size_one() -> None:
    torch.testing.assert_close(projection_simplex(torch.zeros(4)), torch.full((4,), 0.25))
    assert projection_simplex(torch.tensor([-7.0])).tolist() == [1.0]
    assert projection_simplex(torch.zeros(0, 3)).shape == (0, 3)


@pytest.mark.parametrize(
    ("projection", "point", "expected"),
    [
        (projection_simplex, [1e9, 0.0], [1.0, 0.0]),
        (projection_simplex, [3.4e38, -3.4e38], [1.0, 0.0]),
        (projection_simplex, [torch.inf, 0.0], [1.0, 0.0]),
        (projection_simplex, [torch.inf, torch.inf], [0.5, 0.5]),
        (projection_simplex, [-torch.inf, -2.0], [0.0, 1.0]),
        (projection_l1_ball, [-1e9, 0.0], [-1.0, 0.0]),
        (projection_l1_ball, [3.4e38, -3.4e38], [0.5, -0.5]),
        (projection_l1_ball, [-torch.inf, 5.0], [-1.0, 0.0]),
        (projection_l2_ball, [3e38, 3e38], [0.5**0.5, 0.5**0.5]),
        (projection_l2_ball, [torch.inf, 5.0], [1.0, 0.0]),
        (prox_lasso, [torch.inf, -3e38], [torch.inf, -3e38]),
        (prox_group_lasso, [3e38, -3e38], [3e38, -3e38]),
    ],
)
def test_entries_of_any_size(projection: object, point: list[float], expected: list[float]) -> None:
    x = torch.tensor(point, requires_grad=True)
    got = projection(x)  # type: ignore[operator]
    torch.testing.assert_close(got, torch.tensor(expected))
    assert torch.isfinite(torch.autograd.grad(got.nan_to_num(0, 0, 0).sum(), x)[0]).all()
    bad = projection(torch.tensor([[torch.nan, 1.0], [0.2, 0.3]]))  # type: ignore[operator]
    assert bad[0].isnan().any()
    assert not bad[1].isnan().any()


def test_a_small_radius_is_not_drowned_by_large_or_small_entries(generator: torch.Generator) -> None:
    x = torch.randn(50, generator=generator) + 1e6
    p = projection_simplex(x)
    assert p.sum().item() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(p, projection_simplex(x.double()).float(), atol=1e-5, rtol=0)
    tiny = projection_l2_ball(torch.tensor([3e-30, 4e-30]), 1e-30)
    torch.testing.assert_close(tiny, torch.tensor([6e-31, 8e-31]), atol=0, rtol=1e-5)
    assert prox_group_lasso(torch.tensor([3e-30, 4e-30]), 1e-30).tolist() == pytest.approx([2.4e-30, 3.2e-30])


def test_affine_projection_does_not_depend_on_the_scale_of_its_equations(generator: torch.Generator) -> None:
    x = torch.randn(4, generator=generator)
    matrix, offset = torch.randn(2, 4, generator=generator), torch.randn(2, generator=generator)
    expected = projection_affine(x.double(), matrix.double(), offset.double()).float()
    scale = torch.tensor([1e30, 1e-30])
    torch.testing.assert_close(projection_affine(x, scale[:, None] * matrix, scale * offset), expected)
    torch.testing.assert_close(projection_affine(1e30 * x, matrix, 1e30 * offset) / 1e30, expected)


@pytest.mark.parametrize("second", [[2.0, 2.0, 6.0], [0.0, 0.0, 0.0], [1.0, 1.0, 3.0 + 1e-7]])
def test_dependent_equations_are_refused(second: list[float]) -> None:
    matrix = torch.tensor([[1.0, 1.0, 3.0], second])
    with pytest.raises(ValueError, match="matrix must have linearly independent rows"):
        projection_affine(torch.tensor([1.0, 2.0, 0.5]), matrix, torch.tensor([1.0, 7.0]))


def test_newton_takes_unknowns_of_any_shape_and_refuses_a_singular_jacobian() -> None:
    def function(x: dict[str, Tensor], a: Tensor) -> dict[str, Tensor]:
        return {"square": x["square"] ** 2 - a, "line": 2 * x["line"] - 6}

    step = optimality.newton(function)
    got = step({"square": torch.tensor([[3.0, 1.0]]), "line": torch.tensor(0.0)}, torch.tensor([4.0, 1.0]))
    torch.testing.assert_close(got["square"], torch.tensor([[13 / 6, 1.0]]))
    torch.testing.assert_close(got["line"], torch.tensor(3.0))
    assert optimality.newton(lambda x: x)(torch.zeros(0)).shape == (0,)
    with pytest.raises(ValueError, match="function must have a regular Jacobian at x"):
        step({"square": torch.zeros(1, 2), "line": torch.tensor(0.0)}, torch.ones(2))
    with pytest.raises(ValueError, match="function must return the shape of x"):
        optimality.newton(lambda x: x[:1])(torch.ones(2))


def test_the_entropy_refuses_what_is_on_no_simplex() -> None:
    step = optimality.mirror_descent(lambda x: (x**2).sum(), step=0.5)
    for x in (torch.zeros(3), torch.tensor([1.0, -0.1]), torch.tensor([1.0, torch.nan])):
        with pytest.raises(ValueError, match="x must be >= 0 with an entry > 0 in each row"):
            step(x)
    torch.testing.assert_close(step(torch.tensor([0.0, 1.0])), torch.tensor([0.0, 1.0]))
