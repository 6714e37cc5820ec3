"""Tinted images keep their shape and their brightness by hue."""

from __future__ import annotations

import pytest
import torch

from pullback.data import tinted


def test_a_hue_is_a_constant_ratio_of_channels_and_all_are_drawn() -> None:
    images = torch.rand(500, 3, 4, generator=torch.Generator().manual_seed(0))
    found = tinted(images, 10, generator=torch.Generator().manual_seed(1))
    assert found.colours.bincount(minlength=10).min() > 20
    ratio = found.images / images[:, None]
    assert (ratio - ratio[:, :, :1, :1]).abs().max() < 1e-4
    torch.testing.assert_close(found.images.sum(1), 1.5 * images)  # the cosines of three thirds of a circle cancel
    of_colour = ratio[found.colours == 4][:, :, 0, 0]
    assert (of_colour - of_colour[0]).abs().max() < 1e-4
    again = tinted(images, 10, generator=torch.Generator().manual_seed(1))
    assert again.colours.equal(found.colours)


def test_bad_arguments_are_refused_by_name(without_shape_checks: None) -> None:
    stream = torch.Generator()
    with pytest.raises(ValueError, match="images must have shape"):
        tinted(torch.ones(2, 2), generator=stream)
    with pytest.raises(TypeError, match="images must be a floating tensor"):
        tinted(torch.ones(2, 2, 2).long(), generator=stream)
    with pytest.raises(ValueError, match="colours must be"):
        tinted(torch.ones(2, 2, 2), 1, generator=stream)
