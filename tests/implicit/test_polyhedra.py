"""Projections on polyhedra: kinks, several nearest points, gradients that stay inside of the set."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from pullback.implicit import (
    on_nesting,
    projection_birkhoff,
    projection_box_section,
    projection_halfspace,
    projection_l1_sphere,
    projection_l2_sphere,
    projection_polyhedron,
    projection_simplex,
    projection_sparse_simplex,
    projection_transport,
    prox_elastic_net,
    prox_l0,
    prox_lasso,
)


def test_a_box_section_is_the_simplex_and_a_polyhedron(generator: torch.Generator) -> None:
    x = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    one = torch.ones(5).double()
    section = projection_box_section(x, 0.0, torch.inf, one, 1.0)
    torch.testing.assert_close(section, projection_simplex(x))
    inequality = (-torch.eye(5).double(), torch.zeros(5).double())
    torch.testing.assert_close(
        projection_polyhedron(x, (one[None], one[:1]), inequality), section, atol=1e-9, rtol=1e-9
    )


def test_a_box_section_of_a_corner_and_of_entries_that_do_not_count() -> None:
    normal = torch.tensor([1.0, 0.0, -2.0])
    found = projection_box_section(torch.tensor([5.0, 5.0, 5.0]), 0.0, 1.0, normal, 1.0)
    assert found.tolist() == [1.0, 1.0, 0.0]  # the only values of the first and the last entry


def test_where_several_points_are_nearest_one_is_chosen_and_gradients_are_finite() -> None:
    zero = torch.zeros(3, requires_grad=True)
    for block, length in ((projection_l1_sphere, 1), (projection_l2_sphere, 2)):
        point = block(zero, 2.0)
        assert abs(torch.linalg.vector_norm(point, length).item() - 2) < 1e-6
        assert torch.isfinite(torch.autograd.grad(point[0], zero)[0]).all()
    assert (projection_sparse_simplex(zero, 2) > 0).sum() == 2


def test_inside_of_a_half_space_nothing_moves() -> None:
    x = torch.tensor([[0.2, 0.2], [3.0, 3.0]], requires_grad=True)
    found = projection_halfspace(x, torch.ones(2), 1.0)
    (slope,) = torch.autograd.grad(found.sum(), x)
    torch.testing.assert_close(slope, torch.tensor([[1.0, 1.0], [0.0, 0.0]]))


def test_gradients_of_a_transport_plan_keep_its_sums(generator: torch.Generator) -> None:
    x = torch.randn(30, 20, generator=generator, dtype=torch.float64, requires_grad=True)
    plan = projection_transport(20 * x, torch.full((30,), 2.0).double(), torch.full((20,), 3.0).double())
    assert (plan == 0).double().mean() > 0.8  # sparse
    torch.testing.assert_close(plan.sum(0), torch.full((20,), 3.0).double())
    weight = torch.randn(30, 20, generator=generator, dtype=torch.float64)
    (slope,) = torch.autograd.grad((plan * weight).sum(), x)
    kept = slope * (plan == 0)
    assert slope.sum(0).abs().max() < 1e-7
    assert slope.sum(1).abs().max() < 1e-7
    assert not kept.any()


def test_a_permutation_that_wins_by_far_is_a_vertex(generator: torch.Generator) -> None:
    order = torch.randperm(8, generator=generator)
    x = 50 * torch.eye(8)[order]
    torch.testing.assert_close(projection_birkhoff(x), torch.eye(8)[order])


def test_a_block_that_loses_entries_is_refused() -> None:
    with pytest.raises(ValueError, match="block must keep the 4 entries"):
        on_nesting(lambda x: x[..., :1])([torch.ones(2), torch.ones(2)])


def test_nestings_of_a_batch_are_projected_problem_by_problem(generator: torch.Generator) -> None:
    nesting = {"a": torch.randn(3, 2, generator=generator), "b": torch.randn(3, 2, 2, generator=generator)}
    found = on_nesting(projection_simplex, batch_ndim=1)(nesting)
    torch.testing.assert_close(found["a"].sum(-1) + found["b"].sum((-1, -2)), torch.ones(3))


@pytest.mark.parametrize("block", [prox_lasso, prox_l0, prox_elastic_net])
def test_a_weight_beyond_the_precision_leaves_nothing(block: Callable[..., torch.Tensor]) -> None:
    assert block(torch.tensor([6e4, -1.0], dtype=torch.float16), 1e12).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_hyperplane_through_a_corner_of_a_box_does_not_miss_it_by_rounding(
    dtype: torch.dtype, generator: torch.Generator
) -> None:
    for size in range(1, 40):
        x, normal = (torch.randn(size, generator=generator, dtype=dtype) for _ in range(2))
        low, high = -torch.rand(size, generator=generator, dtype=dtype), torch.rand(size, generator=generator).to(dtype)
        corner = torch.where(normal > 0, high, low)
        for scale in (1e-3, 1.0, 1e3):
            offset = scale * (normal * corner).sum()
            found = projection_box_section(scale * x, scale * low, scale * high, normal, offset)
            assert (normal * (found / scale - corner)).abs().sum() < 1e-4
    with pytest.raises(ValueError, match="misses the box"):
        projection_box_section(x, low, high, normal, 1.001 * offset / scale)


def test_what_is_not_known_stays_so() -> None:
    x = torch.tensor([[0.5, torch.nan], [0.5, 0.5]])
    assert projection_box_section(x, 0.0, 1.0, torch.ones(2), 1.0).isnan().all(1).tolist() == [True, False]


def test_sums_of_a_transport_plan_are_kept_where_costs_are_large(generator: torch.Generator) -> None:
    x = 1e4 * torch.randn(20, 5, 4, generator=generator, dtype=torch.float64)
    mass = 0.1 + torch.rand(20, 5, 4, generator=generator, dtype=torch.float64)
    plan = projection_transport(x, mass.sum(-1), mass.sum(-2))
    torch.testing.assert_close(plan.sum(-1), mass.sum(-1), atol=1e-9, rtol=0)
    torch.testing.assert_close(plan.sum(-2), mass.sum(-2), atol=1e-9, rtol=0)
