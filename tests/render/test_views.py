"""Views: what is not known does not count, and picking keeps cameras and images together."""

from __future__ import annotations

import pytest
import torch

from pullback.geometry import Camera, look_at
from pullback.render import Views


def _views(generator: torch.Generator) -> Views:
    places = torch.tensor([[0.0, 0.0, -1.0], [1.0, 0.0, -1.0], [2.0, 0.0, -1.0]])
    cameras = Camera.pinhole(10.0, (4, 5), camera_from_world=look_at(places, torch.zeros(3), up=(0.0, -1.0, 0.0)))
    known = (torch.rand(3, 1, 4, 5, generator=generator) < 0.5).float()
    return Views(cameras, torch.rand(3, 2, 4, 5, generator=generator), known)


def test_error_and_mean_are_of_the_known_pixels(generator: torch.Generator) -> None:
    views = _views(generator)
    rendered = torch.rand(3, 2, 4, 5, generator=generator)
    inside = views.known.bool().expand_as(rendered)
    assert torch.isclose(views.error(rendered), (rendered - views.images)[inside].square().mean())
    by_channel = views.images.movedim(1, 0)[:, views.known[:, 0].bool()]
    torch.testing.assert_close(views.mean(), by_channel.mean(1))
    rendered[~inside] = torch.nan
    leaf = rendered.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(views.error(leaf), leaf)
    assert torch.equal(gradient != 0, inside)


def test_picked_views_keep_their_cameras(generator: torch.Generator) -> None:
    views = _views(generator)
    for chosen in ([2, 0], torch.tensor([2, 0])):
        picked = views.pick(chosen)
        assert torch.equal(picked.cameras.camera_from_world, views.cameras.camera_from_world[[2, 0]])
        assert torch.equal(picked.images, views.images[[2, 0]])
        assert torch.equal(picked.known, views.known[[2, 0]])


def test_other_sizes_are_refused(generator: torch.Generator, without_shape_checks: None) -> None:
    with pytest.raises(ValueError, match="rendered must have shape"):
        _views(generator).error(torch.zeros(2, 4, 5))
