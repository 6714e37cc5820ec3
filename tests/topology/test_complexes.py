"""Complexes with coordinates: made from meshes, images, graphs and points, put together and taken apart."""

from __future__ import annotations

import networkx as nx
import pytest
import torch

from pullback import data, topology
from pullback.topology import Complex


def test_the_sides_of_a_mesh_are_there_once() -> None:
    mesh = data.mesh("cow")
    shape = Complex.from_mesh(mesh.vertices, mesh.faces)
    sides = {frozenset((f[i], f[i - 1])) for f in mesh.faces.tolist() for i in range(3)}
    assert {frozenset(edge) for edge in shape.edges.tolist()} == sides
    assert len(shape.edges) == len(sides)
    assert int(shape.euler_characteristic()) == 2  # a sphere


def test_an_image_is_its_bright_pixels_upright() -> None:
    ring = torch.ones(4, 5, dtype=torch.bool)
    ring[1:3, 1:4] = False
    dot = torch.zeros(4, 5, dtype=torch.bool)
    dot[0, 4] = True
    shapes = Complex.from_image(torch.stack([ring, dot, ~ring]))
    assert shapes.euler_characteristic().tolist() == [0, 1, 1]
    assert shapes.vertices[shapes.batch == 1].tolist() == [[pytest.approx(0.8), pytest.approx(0.6)]]
    assert len(shapes.select(torch.tensor([2])).faces) == 2


def test_a_rips_complex_holds_the_cliques() -> None:
    points = torch.rand(15, 2, generator=torch.Generator().manual_seed(1))
    shape = Complex.from_points(points, "rips", radius=0.4, max_dim=3)
    graph = nx.Graph([(i, j) for i in range(15) for j in range(i) if (points[i] - points[j]).norm() <= 0.4])
    graph.add_nodes_from(range(15))
    cliques = [sorted(c) for c in nx.enumerate_all_cliques(graph) if 1 < len(c) <= 4]
    assert sorted(c for table in shape.cells for c in table.tolist()) == sorted(cliques)


def test_a_triangulation_fills_the_hull() -> None:
    points = torch.rand(20, 3, generator=torch.Generator().manual_seed(2))
    shape = Complex.from_points(points, "delaunay")
    assert [table.shape[1] for table in shape.cells] == [2, 3, 4]
    assert int(shape.euler_characteristic()) == 1


def test_selecting_takes_collating_back() -> None:
    shapes = [Complex.from_image(torch.rand(5, 5, generator=torch.Generator().manual_seed(s)) < 0.6) for s in range(4)]
    batch = Complex.collate(shapes)
    for order in ([2], [3, 0, 1]):
        part = batch.select(torch.tensor(order))
        assert part.count == len(order)
        for place, number in enumerate(order):
            one = part.select(torch.tensor([place]))
            assert torch.equal(one.vertices, shapes[number].vertices)
            assert all(torch.equal(a, b) for a, b in zip(one.cells, shapes[number].cells, strict=True))


def test_the_unit_ball_is_reached_by_the_farthest_vertex_of_each_shape() -> None:
    points = torch.tensor([[1.0, 0.0], [3.0, 0.0], [7.0, 7.0], [0.0, 0.0], [0.0, 4.0], [0.0, 5.0]])
    shape = Complex(points, batch=torch.tensor([0, 0, 1, 2, 2, 2])).to_unit_ball(2.0)
    lengths = shape.vertices.norm(dim=1)
    assert lengths.tolist() == [2.0, 2.0, 0.0, 2.0, pytest.approx(2 / 3), pytest.approx(4 / 3)]


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda x: Complex(x, (torch.tensor([[0, 4]]),)), ValueError, r"cells\[0\] must be in 0..3, got 0 to 4"),
        (lambda x: Complex(x, (torch.tensor([[0, 1, 2]]),)), ValueError, r"cells\[0\] must have 2 corners"),
        (lambda x: Complex(x, torch.tensor([[0, 1]])), TypeError, "cells must be a sequence"),
        (lambda x: Complex(x, (torch.tensor([[0.0, 1.0]]),)), TypeError, r"cells\[0\] must be an int64 tensor"),
        (lambda x: Complex(x[0]), ValueError, "vertices must have shape"),
        (lambda x: Complex(x.long()), TypeError, "vertices must be a floating tensor"),
        (lambda x: Complex(x, batch=torch.tensor([0, 0, 1])), ValueError, "batch must have shape"),
        (
            lambda x: Complex(x, (torch.tensor([[0, 1], [1, 2]]),), torch.tensor([0, 0, 1, 1])),
            ValueError,
            r"cells\[0\] must not join different shapes of the batch, as in row 1",
        ),
        (lambda x: Complex.from_mesh(x, torch.tensor([[0, 1, 9]])), ValueError, "faces must be in 0..3"),
        (lambda x: Complex.from_image(x), ValueError, "mask must be bool"),
        (lambda x: Complex.from_points(x, "alpha"), ValueError, "kind must be one of"),
        (lambda x: Complex.from_points(x, "rips", radius=-1.0), ValueError, "radius must be >= 0"),
        (lambda x: Complex(x).select(torch.tensor([0, 0])), ValueError, "shapes must be different"),
        (lambda x: Complex.collate([]), ValueError, "shapes must hold at least one"),
        (lambda x: topology.flag_simplices(x), TypeError, "adjacency must be bool"),
        (
            lambda x: topology.flag_simplices(torch.eye(3, dtype=torch.bool)[:2]),
            ValueError,
            "adjacency must have shape",
        ),
    ],
)
def test_what_is_no_complex_is_refused_by_name(make, error, match, without_shape_checks) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=match):
        make(torch.zeros(4, 2))
