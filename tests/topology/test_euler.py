"""Euler curves and transforms: against counting, against the tensor expression, in memory, and what they say."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor

from pullback import data, topology
from pullback.kernels import euler as kernel
from pullback.lab.measure import peak_memory


def _cloud(seed: int, dim: int, points: int = 12) -> topology.Complex:
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(points, dim, generator=g, dtype=torch.float64) - 0.5
    return topology.Complex.from_points(x, "rips", radius=0.5, max_dim=3)


def _expression(shape: topology.Complex, directions: Tensor, thresholds: Tensor, sharpness: float) -> Tensor:
    heights, total = shape.vertices @ directions.mT, 0
    for k, corners in enumerate((torch.arange(len(heights))[:, None], *shape.cells)):
        steps = torch.sigmoid(sharpness * (thresholds[:, None] - heights[corners].amax(1)[:, None])).sum(0)
        total = total + (-1) ** k * steps
    return total


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("sharpness", [0.3, 7.0, 200.0])
def test_value_and_gradient_are_those_of_the_sum_over_all_simplices(dim: int, sharpness: float) -> None:
    shape, directions = _cloud(3, dim), topology.sphere_directions(5, dim).double()
    directions = directions / directions.norm(dim=1, keepdim=True)
    thresholds = torch.linspace(-1, 1, 9, dtype=torch.float64)
    results = []
    for function in (topology.euler_transform, _expression):
        x = shape.vertices.clone().requires_grad_()
        value = function(shape.with_vertices(x), directions, thresholds, sharpness=sharpness).view(9, 5)
        weights = torch.arange(45, dtype=torch.float64).view(9, 5).cos()
        results.append((value, *torch.autograd.grad((value * weights).sum(), x)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_the_plain_form_and_the_compiled_one_agree_to_any_order() -> None:
    g = torch.Generator().manual_seed(0)
    u, w = (torch.randn(40, 3, generator=g, dtype=torch.float64) * s for s in (30, 2))
    rows, t = torch.randint(0, 4, (40,), generator=g), torch.sort(100 * torch.randn(7, generator=g).double()).values
    cotangent = torch.randn(4, 3, 7, generator=g, dtype=torch.float64)
    for order in (None, 0, 1, 2, 3, 4):
        ours, plain = kernel.step_sum(u, w, rows, t, 4, order), kernel._step_sum_plain(u, w, rows, t, 4, order)
        torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-10)
        if order is not None:
            both = [f(u, w, rows, t, cotangent, order) for f in (kernel.logistic_pull, kernel._logistic_pull_plain)]
            torch.testing.assert_close(*both, rtol=1e-10, atol=1e-10)
    shape = _cloud(1, 3)
    heights = torch.randn(12, 4, generator=g, dtype=torch.float64).round(decimals=1)  # with ties
    single = kernel.highest_corner_weights(heights, shape.cells)
    assert torch.equal(
        single, torch.func.vmap(lambda h: kernel.highest_corner_weights(h, shape.cells))(heights[None])[0]
    )
    assert torch.equal(single.sum(0), shape.euler_characteristic().double().expand(4))


def test_most_vertices_of_a_surface_cost_nothing() -> None:
    mesh = data.mesh("cow")
    shape = topology.Complex.from_mesh(mesh.vertices, mesh.faces)
    height = mesh.vertices @ topology.sphere_directions(1, 3, method="fibonacci").mT
    weights = kernel.highest_corner_weights(height, shape.cells)
    assert (weights == 0).double().mean() > 0.9
    assert int(weights.sum()) == int(shape.euler_characteristic())


def test_a_mesh_of_37_000_vertices_with_64_directions_and_thresholds_fits_in_a_gigabyte() -> None:
    mesh = data.mesh("bunny00")
    shape = topology.Complex.from_mesh(mesh.vertices, mesh.faces).to_unit_ball()
    directions, thresholds = topology.sphere_directions(64, 3, method="fibonacci"), torch.linspace(-1, 1, 64)

    def backward() -> None:
        x = shape.vertices.clone().requires_grad_()
        topology.euler_transform(shape.with_vertices(x), directions, thresholds).square().mean().backward()

    assert peak_memory(backward) < 1e8
    exact = topology.euler_transform(shape, directions, thresholds, sharpness=None)
    assert torch.equal(exact[0, -1], shape.euler_characteristic().float().expand(64))


def test_subdividing_squares_changes_nothing() -> None:
    squares = topology.Complex.from_image(data.digits("test").images[3] > 0.3)
    corners = squares.faces
    triangles = torch.cat([corners[:, [0, 1, 2]], corners[:, [0, 2, 3]]])
    split = topology.Complex(squares.vertices, (torch.cat([squares.edges, corners[:, [0, 2]]]), triangles))
    directions, thresholds = topology.sphere_directions(9, 2, method="circle"), torch.linspace(-1, 1, 11)
    transforms = [topology.euler_transform(s, directions, thresholds, sharpness=20.0) for s in (squares, split)]
    torch.testing.assert_close(*transforms, rtol=1e-5, atol=1e-5)


def test_a_batch_is_its_shapes_one_by_one() -> None:
    shapes = [_cloud(s, 2) for s in range(3)]
    directions, thresholds = torch.eye(2, dtype=torch.float64), torch.linspace(-1, 1, 6, dtype=torch.float64)
    batch = topology.euler_transform(topology.Complex.collate(shapes), directions, thresholds)
    alone = torch.cat([topology.euler_transform(s, directions, thresholds) for s in shapes])
    torch.testing.assert_close(batch, alone)
    curves = topology.euler_curve(
        [shapes[0].vertices, shapes[0].vertices[shapes[0].edges].amax(1)], thresholds, sharpness=100.0
    )
    graph = topology.Complex(shapes[0].vertices, shapes[0].cells[:1])
    torch.testing.assert_close(curves, topology.euler_transform(graph, directions, thresholds))


def test_a_layer_warns_of_vertices_outside_of_its_radius_with_their_share() -> None:
    layer = topology.EulerTransform(2, 4, 8, radius=1.0)
    points = torch.tensor([[0.5, 0.0], [0.0, 3.0], [0.1, 0.2], [0.6, 0.6]])
    with pytest.warns(UserWarning, match="25 % of the vertices lie outside of the radius 1"):
        layer(topology.Complex(points))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(topology.Complex(points).to_unit_ball())


def test_directions_lie_where_their_method_says() -> None:
    angles = torch.atan2(*topology.sphere_directions(6, 2, method="circle").T.flip(0))
    expected = torch.tensor([0, 1, 2, 3, -2, -1]) * math.pi / 3
    assert ((angles - expected).cos() > 1 - 1e-6).all()
    spiral = topology.sphere_directions(500, 3, method="fibonacci")
    assert spiral.mean(0).abs().max() < 5e-3
    torch.testing.assert_close(spiral.mT @ spiral / 500, torch.eye(3) / 3, rtol=0, atol=5e-3)
    drawn = topology.sphere_directions(20_000, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.norm(dim=1), torch.ones(20_000))
    torch.testing.assert_close(drawn.mT @ drawn / 20_000, torch.eye(5) / 5, rtol=0, atol=1e-2)


def test_a_cell_that_would_be_counted_twice_is_refused() -> None:
    points = torch.rand(5, 3, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"cells\[0\] must hold each cell once .*, got \[0, 1\] in rows 0 and 2"):
        topology.Complex.from_graph(points, torch.tensor([[0, 1], [2, 3], [1, 0]]))
    with pytest.raises(ValueError, match=r"cells\[1\] must hold each cell once .*, got \[4, 1, 2\] in rows 1 and 2"):
        topology.Complex.from_mesh(points, torch.tensor([[0, 1, 2], [4, 1, 2], [2, 4, 1]]))
    with pytest.raises(ValueError, match=r"cells\[0\] must have different vertices in each row, got \[3, 3\] in row 1"):
        topology.Complex.from_graph(points, torch.tensor([[0, 1], [3, 3]]))
    with pytest.raises(ValueError, match="vertices must be 5 as before"):
        topology.Complex.from_graph(points, torch.tensor([[0, 1]])).with_vertices(points[:4])
