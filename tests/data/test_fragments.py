from __future__ import annotations

import pytest
import torch

from pullback import data
from pullback.data import image_fragments


@pytest.mark.parametrize("grid", [1, 2, 3])
def test_each_piece_is_the_part_of_its_image_that_its_order_says(grid: int, generator: torch.Generator) -> None:
    images = torch.rand(5, 2, 6, 12, generator=generator)
    pieces, order = image_fragments(images, grid, generator=generator)
    high, wide = 6 // grid, 12 // grid
    assert pieces.shape == (5, grid**2, 2, high, wide)
    assert torch.equal(order.sort(-1).values, torch.arange(grid**2).expand(5, -1))
    for image in range(5):
        for piece, place in zip(pieces[image], order[image].tolist(), strict=True):
            row, column = divmod(place, grid)
            top, left = row * high, column * wide
            assert torch.equal(piece, images[image, :, top : top + high, left : left + wide])


def test_orders_differ_from_image_to_image_and_are_all_as_likely(generator: torch.Generator) -> None:
    order = image_fragments(torch.zeros(6000, 1, 2, 2), 2, generator=generator).order
    counts = torch.unique(order, dim=0, return_counts=True)[1]
    assert len(counts) == 24
    assert ((counts - 250).abs() < 6 * 250**0.5).all()


def test_crops_evenly_what_the_grid_does_not_divide(generator: torch.Generator) -> None:
    images = torch.rand(2, 1, 7, 8, generator=generator)
    pieces, order = image_fragments(images, 3, generator=generator, crop=True)
    same = image_fragments(images[..., :6, 1:7], 3, generator=torch.Generator())
    back = [p[o.argsort()] for p, o in zip(pieces, order, strict=True)]
    other = [p[o.argsort()] for p, o in zip(*same, strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(back, other, strict=True))


@pytest.mark.parametrize(
    ("shape", "grid", "error", "match"),
    [
        ((2, 1, 7, 6), 3, ValueError, r"grid must divide the height of images \(or crop=True\), got 3 and 7"),
        ((2, 1, 6, 2), 3, ValueError, r"grid must divide the width of images .*, got 3 and 2"),
        ((1, 6, 6), 3, ValueError, r"images must have shape \[count, channels, height, width\], got \(1, 6, 6\)"),
        ((1, 1, 6, 6), 0, ValueError, "grid must be an integer >= 1, got 0"),
        ((1, 1, 6, 6), 2.0, TypeError, "grid must be an integer, got float"),
    ],
)
def test_refuses(
    shape: tuple[int, ...],
    grid: int,
    error: type[Exception],
    match: str,
    generator: torch.Generator,
    without_shape_checks: None,
) -> None:
    with pytest.raises(error, match=match):
        image_fragments(torch.zeros(shape), grid, generator=generator)


def test_patches_are_squares_of_the_image_from_everywhere() -> None:
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(5.0), indexing="ij")
    found = data.patches(torch.stack([rows, columns]), 3, 500, generator=torch.Generator().manual_seed(0))
    assert found.shape == (500, 2, 3, 3)
    steps = torch.arange(3.0)
    assert (found[:, 0] - found[:, 0, :1, :1] == steps[:, None]).all()
    assert (found[:, 1] - found[:, 1, :1, :1] == steps).all()
    places = {tuple(corner) for corner in found[:, :, 0, 0].tolist()}
    assert places == {(float(i), float(j)) for i in range(4) for j in range(3)}
    with pytest.raises(ValueError, match=r"size must be in 1\.\.5, got 6"):
        data.patches(rows, 6, 1, generator=torch.Generator())
