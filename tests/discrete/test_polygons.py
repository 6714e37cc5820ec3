"""Polygons to tokens, permutations and back: inverse of each other, and refused where there is no way."""

from __future__ import annotations

import pytest
import torch

from pullback import discrete


def _polygons(generator: torch.Generator) -> list[torch.Tensor]:
    """Up to three rings of three to seven corners, on the middles of pixels."""
    count = int(torch.randint(1, 4, (), generator=generator))
    places = torch.randperm(256, generator=generator)
    rings = []
    for _ in range(count):
        n = int(torch.randint(3, 8, (), generator=generator))
        rings.append(torch.stack([places[:n] // 16, places[:n] % 16], -1) + 0.5)
        places = places[n:]
    return rings


def _turned(ring: torch.Tensor) -> list[tuple[float, ...]]:
    """The same cycle from its smallest corner on."""
    corners = [tuple(c) for c in ring.tolist()]
    first = corners.index(min(corners))
    return corners[first:] + corners[:first]


def test_rings_come_back_from_permutations_and_from_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    tokenizer = discrete.CoordinateTokenizer(16.0, 16, max_vertices=24)
    for shuffle in (False, True):
        for _ in range(300):
            polygons = _polygons(generator)
            vertices, successor = discrete.polygons_to_permutation(polygons, 24)
            back = discrete.permutation_to_polygons(successor, vertices)
            assert all(torch.equal(a, b) for a, b in zip(back, polygons, strict=True))
            tile = tokenizer.encode(polygons, shuffle=shuffle, generator=generator)
            corners, dropped = tokenizer.decode(tile.tokens)
            assert (len(corners), dropped, tile.left_out) == (tile.vertices, 0, 0)
            rings = discrete.permutation_to_polygons(tile.successor[: tile.vertices], corners)
            assert sorted(map(_turned, rings)) == sorted(map(_turned, polygons))


def test_shuffling_changes_the_order_of_the_corners() -> None:
    ring = torch.tensor([[float(i), float(i * i % 13)] for i in range(12)])
    tokenizer = discrete.CoordinateTokenizer(16.0, 16, max_vertices=12)
    shuffled = tokenizer.encode([ring], shuffle=True, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(shuffled.tokens, tokenizer.encode([ring]).tokens)


def test_what_does_not_fit_is_left_out_as_a_whole() -> None:
    triangle = torch.tensor([[0.0, 0.0], [0.0, 3.0], [3.0, 0.0]])
    tile = discrete.CoordinateTokenizer(4.0, 4, max_vertices=7).encode([triangle] * 3)
    assert (tile.vertices, tile.left_out) == (6, 1)
    assert tile.successor.tolist() == [1, 2, 0, 4, 5, 3, 6]


def test_an_odd_coordinate_and_special_tokens_are_dropped_and_counted() -> None:
    tokenizer = discrete.CoordinateTokenizer(8.0, 8, max_vertices=4)
    corners, dropped = tokenizer.decode(torch.tensor([8, 1, 2, 10, 3, 4, 5, 9, 7, 7]))
    assert corners.tolist() == [[1.5, 2.5], [3.5, 4.5]]
    assert dropped == 2
    assert len(tokenizer.decode(torch.tensor([9]))[0]) == 0


def test_cycles_of_one_and_two_are_no_polygons() -> None:
    vertices = torch.rand(6, 2, generator=torch.Generator().manual_seed(0))
    rings = discrete.permutation_to_polygons(torch.tensor([1, 0, 2, 4, 5, 3]), vertices)
    assert len(rings) == 1
    assert torch.equal(rings[0], vertices[3:])


def test_refusals_name_the_polygon(without_shape_checks: None) -> None:
    tokenizer = discrete.CoordinateTokenizer(4.0, 4, max_vertices=8)
    triangle = torch.tensor([[0.0, 0.0], [0.0, 3.0], [3.0, 0.0]])
    for polygon, message in (
        (triangle[:2], r"polygons\[1\] must have shape \(n, 2\) with n >= 3"),
        (triangle + 2, r"polygons\[1\] must lie in \[0, 4\)"),
        (triangle[[0, 1, 2, 0]], r"polygons\[1\] must not have a corner twice"),
        (triangle * torch.nan, r"polygons\[1\] must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            tokenizer.encode([triangle, polygon])
    with pytest.raises(ValueError, match="slots must be at least the 3 corners, got 2"):
        discrete.polygons_to_permutation([triangle], 2)
    with pytest.raises(ValueError, match=r"successor must be a permutation of 0\.\.2"):
        discrete.permutation_to_polygons(torch.tensor([0, 0, 1]), triangle)
    with pytest.raises(ValueError, match=r"tokens must be in 0\.\.6"):
        tokenizer.decode(torch.tensor([7]))
    with pytest.raises(TypeError, match="tokens must hold integers"):
        tokenizer.decode(torch.tensor([1.0]))
