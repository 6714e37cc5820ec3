from __future__ import annotations

import pytest
import torch

from pullback import data


def test_spheres_have_their_radii_and_the_large_one_holds_the_others() -> None:
    spheres = data.nested_spheres(50, 100, 10, generator=torch.Generator().manual_seed(0))
    assert spheres.points.shape == (1000, 101)
    assert spheres.labels.bincount().tolist() == [50] * 10 + [500]
    outer = spheres.points[spheres.labels == 10]
    torch.testing.assert_close(outer.norm(dim=1), torch.full((500,), 25.0))
    for label in range(10):
        own = spheres.points[spheres.labels == label]
        center = torch.linalg.lstsq(2 * (own[1:] - own[0]), own[1:].square().sum(1) - own[0].square().sum()).solution
        assert (own - center).norm(dim=1).std() < 1e-2  # all on one sphere
        assert own.norm(dim=1).max() < 25
    with pytest.raises(ValueError, match="count must be"):
        data.nested_spheres(count=0, generator=torch.Generator())
