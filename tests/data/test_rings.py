"""Rings close and arcs do not; both look alike near a point."""

from __future__ import annotations

import torch

from pullback import data


def test_neighbours_are_equally_far_and_rings_alone_close() -> None:
    drawn = data.rings(10, 8, noise=0.0, generator=torch.Generator().manual_seed(0))
    groups = drawn.points.view(10, 8, 2)
    along = (groups[:, 1:] - groups[:, :-1]).norm(dim=-1)
    assert torch.allclose(along, torch.full((10, 7), 0.5), atol=1e-5)
    around = (groups[:, 0] - groups[:, -1]).norm(dim=-1)
    assert torch.equal((around < 0.51).long(), drawn.closed[::8])
    assert torch.equal(drawn.closed[::8], torch.arange(10) % 2)
    others = torch.cdist(drawn.points, drawn.points)[drawn.group[:, None] != drawn.group]
    assert others.min() > 1.0
