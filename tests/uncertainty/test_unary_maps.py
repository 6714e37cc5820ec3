"""Potentials read from a grid."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pullback.uncertainty import ImageFactors, UnaryMaps


def _g(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_plane_is_read_exactly_between_cells_and_its_slope_is_that_of_the_points() -> None:
    across = (torch.arange(8, dtype=torch.float64) + 0.5) / 4 - 1
    plane = 3 * across[None, :] - 2 * across[:, None]  # y points upwards, rows downwards: 3 x + 2 y
    maps = UnaryMaps(torch.stack([plane, -plane]).expand(5, 2, 8, 8))
    x = (1.6 * torch.rand(5, 20, 2, generator=_g(), dtype=torch.float64) - 0.8).requires_grad_()
    for node, sign in ((0, 1), (1, -1)):
        found = maps(node, x)
        torch.testing.assert_close(found, sign * (3 * x[..., 0] + 2 * x[..., 1]))
        (slope,) = torch.autograd.grad(found.sum(), x)
        torch.testing.assert_close(slope, sign * torch.tensor([3.0, 2.0]).double().expand_as(x))


def test_detached_maps_still_have_a_slope_in_the_points_alone() -> None:
    learned = torch.randn(1, 1, 4, 4, generator=_g()).requires_grad_()
    x = torch.zeros(1, 3, 2).requires_grad_()
    UnaryMaps(learned).detach()(0, x).sum().backward()  # type: ignore[no-untyped-call]
    assert learned.grad is None
    assert x.grad is not None


def test_factors_of_an_image_are_those_of_its_cells() -> None:
    factors = ImageFactors(nn.AvgPool2d(2), 2, 3, hidden=8, generator=_g())
    images = torch.rand(4, 3, 8, 6, generator=_g(1))  # four rows and three columns of cells
    maps = factors(images)
    assert maps.maps.shape == (4, 2, 4, 3)
    for row, column in ((0, 0), (1, 2), (3, 1)):
        place = torch.tensor([(column + 0.5) * 2 / 3 - 1, 1 - (row + 0.5) / 2])
        seen = images[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].mean((2, 3))
        for node in (0, 1):
            expected = factors.unary[node](place.expand(4, 1, 2), seen)
            torch.testing.assert_close(maps(node, place.expand(4, 1, 2)), expected)


def test_factors_learn_where_a_spot_is() -> None:
    factors = ImageFactors(nn.AvgPool2d(2), 1, 1, hidden=16, generator=_g())
    optimizer, g = torch.optim.Adam(factors.parameters(), lr=2e-2), _g(1)
    for _ in range(60):
        images, cell = torch.zeros(16, 1, 16, 16), torch.randint(8, (16, 2), generator=g)
        for image, (row, column) in zip(images, cell.tolist(), strict=True):
            image[0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = 1
        log_p = factors(images).maps.flatten(1).log_softmax(-1)
        loss = -log_p.gather(1, cell[:, :1] * 8 + cell[:, 1:]).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert (log_p.argmax(1) == cell[:, 0] * 8 + cell[:, 1]).all()


@pytest.mark.usefixtures("without_shape_checks")
def test_wrong_arguments_are_refused_by_name() -> None:
    maps = UnaryMaps(torch.zeros(2, 3, 4, 4))
    with pytest.raises(TypeError, match="maps must be a floating tensor"):
        UnaryMaps(torch.zeros(2, 3, 4, 4).long())
    with pytest.raises(ValueError, match=r"maps must have shape \[batch, nodes, height, width\], got \(3, 4, 4\)"):
        UnaryMaps(torch.zeros(3, 4, 4))
    with pytest.raises(ValueError, match=r"node must be in 0\.\.2, got 3"):
        maps(3, torch.zeros(2, 5, 2))
    for shape in ((5, 2), (3, 5, 2), (2, 5, 3)):
        with pytest.raises(ValueError, match=r"x must have shape \[2, m, 2\], got"):
            maps(0, torch.zeros(shape))
    with pytest.raises(ValueError, match="nodes must be an integer >= 1"):
        ImageFactors(nn.Identity(), 0, 3)
    with pytest.raises(ValueError, match="channels must be an integer >= 1"):
        ImageFactors(nn.Identity(), 1, 0)
    with pytest.raises(ValueError, match=r"encoder must return \[batch, channels, height, width\], got \(2, 16\)"):
        ImageFactors(nn.Flatten(), 1, 16)(torch.zeros(2, 1, 4, 4))
