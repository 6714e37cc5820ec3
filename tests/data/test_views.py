from __future__ import annotations

from typing import Any

import pytest
import torch

from pullback.data import image_views

PLAIN: dict[str, Any] = {"area": (1.0, 1.0), "gamma": (1.0, 1.0), "contrast": (1.0, 1.0), "flip": False}


def test_a_view_of_all_without_a_change_is_the_image(generator: torch.Generator) -> None:
    images = torch.rand(3, 2, 6, 8, generator=generator)
    views = image_views(images, 2, generator=generator, **PLAIN)
    torch.testing.assert_close(views, images.expand(2, -1, -1, -1, -1), atol=1e-5, rtol=1e-5)


def test_about_half_of_the_views_are_mirrored(generator: torch.Generator) -> None:
    image = torch.rand(1, 1, 5, 7, generator=generator)
    views = image_views(image, 400, generator=generator, **{**PLAIN, "flip": True}).squeeze((1, 2))
    as_it_is, mirrored = ((views - x).abs().amax((-2, -1)) < 1e-4 for x in (image[0, 0], image[0, 0].flip(-1)))
    assert (as_it_is ^ mirrored).all()
    assert 140 < int(mirrored.sum()) < 260  # six standard deviations


def test_parts_lie_inside_of_the_image_and_have_its_shape(generator: torch.Generator) -> None:
    # Of a picture of its own coordinates a view shows which part it is.
    rows, columns = torch.meshgrid(torch.linspace(0, 1, 50), torch.linspace(0, 1, 50), indexing="ij")
    picture = torch.stack([rows, columns])[None]
    views = image_views(picture, 300, generator=generator, **{**PLAIN, "area": (0.2, 0.6)})[:, 0]
    spans = views.amax((-2, -1)) - views.amin((-2, -1))
    torch.testing.assert_close(spans[:, 0], spans[:, 1], atol=1e-2, rtol=0)  # half a pixel at the border
    areas = spans.prod(-1)
    assert 0.17 < float(areas.min()) < 0.25
    assert 0.53 < float(areas.max()) < 0.62
    corners = views[:, :, 0, 0]
    assert float(corners.min()) < 0.02  # parts reach the border,
    assert float((corners + spans).max()) < 1.001  # and not beyond


def test_gamma_and_contrast_are_as_documented(generator: torch.Generator) -> None:
    image = torch.rand(1, 1, 4, 4, generator=generator)
    view = image_views(image, 1, generator=generator, **{**PLAIN, "gamma": (2.0, 2.0)})
    torch.testing.assert_close(view[0], image**2, atol=1e-4, rtol=0)
    view = image_views(image, 1, generator=generator, **{**PLAIN, "contrast": (0.0, 0.0)})
    torch.testing.assert_close(view[0], image.mean().expand_as(image), atol=1e-4, rtol=0)


def test_gradients_reach_black_pixels(generator: torch.Generator) -> None:
    images = torch.zeros(2, 1, 4, 4, requires_grad=True)
    image_views(images, 3, generator=generator).sum().backward()
    assert images.grad is not None
    assert torch.isfinite(images.grad).all()


@pytest.mark.parametrize(
    ("images", "words", "error", "match"),
    [
        (torch.zeros(2, 4, 4), {}, ValueError, r"images must have shape \[b, channels, height, width\]"),
        (torch.full((1, 1, 2, 2), 1.5), {}, ValueError, r"images must be in \[0, 1\]"),
        (torch.full((1, 1, 2, 2), torch.nan), {}, ValueError, r"images must be in \[0, 1\]"),
        (torch.zeros(1, 1, 2, 2, dtype=torch.int64), {}, TypeError, "images must be a floating tensor"),
        (torch.zeros(1, 1, 2, 2), {"count": 0}, ValueError, "count must be an integer >= 1, got 0"),
        (torch.zeros(1, 1, 2, 2), {"area": (0.5, 1.2)}, ValueError, r"area must be a range \(low, high\)"),
        (torch.zeros(1, 1, 2, 2), {"gamma": (2.0, 1.0)}, ValueError, "gamma must be a range"),
        (torch.zeros(1, 1, 2, 2), {"contrast": (-1.0, 1.0)}, ValueError, "contrast must be a range"),
    ],
)
def test_refuses(
    images: torch.Tensor,
    words: dict[str, Any],
    error: type[Exception],
    match: str,
    generator: torch.Generator,
    without_shape_checks: None,
) -> None:
    with pytest.raises(error, match=match):
        image_views(images, **{"count": 1, "generator": generator, **words})
