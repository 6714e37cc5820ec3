"""Measures and distances of meshes on shapes whose areas and distances are known."""

from __future__ import annotations

import math

import pytest
import torch

from pullback import geometry
from pullback.geometry import surfaces


def _octahedron(divisions: int, radius: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """A sphere: an octahedron whose faces are divided into four, again and again."""
    corners = torch.tensor([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]], dtype=torch.float64)
    faces = [[0, 2, 4], [2, 1, 4], [1, 3, 4], [3, 0, 4], [2, 0, 5], [1, 2, 5], [3, 1, 5], [0, 3, 5]]
    triangles = corners[torch.tensor(faces)]
    for _ in range(divisions):
        a, b, c = triangles.unbind(1)
        d, e, f = (torch.nn.functional.normalize(p + q, dim=-1) for p, q in ((a, b), (b, c), (c, a)))
        parts = ((a, d, f), (d, b, e), (f, e, c), (d, e, f))
        triangles = torch.cat([torch.stack(part, 1) for part in parts])
    vertices, index = triangles.flatten(0, 1).mul(1e9).round().unique(dim=0, return_inverse=True)
    return radius * vertices / 1e9, index.view(-1, 3)


def test_points_are_drawn_by_area() -> None:
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [5, 0, 0], [8, 0, 0], [5, 3, 0]], dtype=torch.float64)
    faces = torch.tensor([[0, 1, 2], [3, 4, 5], [0, 0, 1]])  # the last one has no area
    g = torch.Generator().manual_seed(0)
    points, weights = geometry.mesh_measure(vertices, faces, count=20_000, generator=g)
    first = points[:, 0] < 2
    assert abs(float(first.double().mean()) - 0.1) < 1e-3  # a ninth of the other's area
    middles = torch.tensor([[1 / 3, 1 / 3, 0], [6, 1, 0]], dtype=torch.float64)
    for part, middle in zip((points[first], points[~first]), middles, strict=True):
        torch.testing.assert_close(part.mean(0), middle, atol=0.02, rtol=0)
    assert float(weights.sum()) == pytest.approx(1)
    with pytest.raises(ValueError, match="faces must have an area, got none at 2"):
        geometry.mesh_measure(vertices, faces, kind="varifold", normal_weight=1.0)


def test_a_varifold_knows_the_side_of_a_sheet() -> None:
    vertices, faces = _octahedron(1)
    out = geometry.mesh_measure(vertices, faces, kind="varifold", normal_weight=0.5)
    turned = geometry.mesh_measure(vertices, faces.flip(-1), kind="varifold", normal_weight=0.5)
    torch.testing.assert_close(out.points[:, 3:], -turned.points[:, 3:])
    assert bool(((out.points[:, :3] * out.points[:, 3:]).sum(-1) > 0).all())
    torch.testing.assert_close(out.points[:, 3:].norm(dim=-1), torch.full((32,), 0.5, dtype=torch.float64))


def test_two_spheres_are_apart_by_the_difference_of_their_radii() -> None:
    inner, outer = _octahedron(3), _octahedron(3, 1.5)
    found = geometry.surface_distance(*inner, *outer, samples=2000, generator=torch.Generator().manual_seed(0))
    assert abs(float(found.average) - 0.5) < 0.01
    assert abs(float(found.percentile) - 0.5) < 0.02
    assert float(found.normal_consistency) > 0.99
    same = geometry.surface_distance(*inner, *inner, samples=500, generator=torch.Generator().manual_seed(0))
    assert float(same.average) < 1e-9
    flipped = geometry.surface_distance(inner[0], inner[1].flip(-1), *outer, samples=500)
    assert float(flipped.normal_consistency) < -0.99


def test_the_nearest_point_of_a_triangle_is_inside_on_an_edge_or_a_corner() -> None:
    triangle = torch.tensor([[[0.0, 0, 0], [4, 0, 0], [0, 4, 0]]], dtype=torch.float64)
    far = triangle + torch.tensor([0.0, 0, 100])
    places = torch.tensor([[1.0, 1, 3], [2, -3, 4], [-3, -4, 12], [4, 4, 0], [0, 0, 99]], dtype=torch.float64)
    distances, nearest = surfaces._to_triangles(places, torch.cat([triangle, far]))
    expected = torch.tensor([3, 5, 13, math.sqrt(8), 1], dtype=torch.float64)
    torch.testing.assert_close(distances, expected)
    assert nearest.tolist() == [0, 0, 0, 0, 1]


def test_spheres_that_meet_cross_along_a_circle_and_apart_they_do_not() -> None:
    vertices, faces = _octahedron(2)
    both = torch.cat([faces, faces + len(vertices)])
    for shift, crossed in ((0.9, True), (2.5, False)):
        moved = vertices + torch.tensor([shift, 0.013, 0.007], dtype=torch.float64)
        found = geometry.self_intersections(torch.cat([vertices, moved]), both)
        assert bool(found.any()) == crossed
        middle = torch.cat([vertices, moved])[both].mean(1)[found]
        assert bool(((middle[:, 0] - shift / 2).abs() < 0.35).all())  # where the spheres meet


def test_a_fold_over_a_common_corner_is_a_crossing() -> None:
    vertices = torch.tensor([[0.0, 0, 0], [2, -1, 0], [2, 1, 0], [1, 0, -1], [1, 0, 1]])
    faces = torch.tensor([[0, 1, 2], [0, 3, 4]])
    assert geometry.self_intersections(vertices, faces).tolist() == [True, True]
    vertices[3, 2] = 0.5  # now above
    assert geometry.self_intersections(vertices, faces).tolist() == [False, False]
