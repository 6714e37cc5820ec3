"""Maps from above: a room seen from two sides, and what a memory keeps."""

from __future__ import annotations

import pytest
import torch

from pullback import render
from pullback.geometry import Camera, look_at


def test_two_views_of_a_floor_agree_about_its_cells() -> None:
    """A floor of two colours, seen by two cameras whose depths come from its plane."""
    size, cell = (4, 4), 0.5
    eyes = torch.tensor([[1.0, -2.0, 2.0], [1.2, 3.5, 2.5]], dtype=torch.float64)
    poses = torch.stack([look_at(eye, torch.tensor([1.0, 1.0, 0.0]).double(), up=(0, 0, 1)) for eye in eyes])
    camera = Camera.pinhole(40.0, (60, 60), camera_from_world=poses)
    rays = camera.rays()
    reach = -rays.origins[..., 2] / rays.directions[..., 2]
    places = rays.origins + reach[..., None] * rays.directions
    depth = camera.transform(places.flatten(1, 2))[..., 2].unflatten(-1, (60, 60))
    colours = (places[..., 0] > 1).double()[:, None]
    seen = render.project_to_map(colours, depth, camera, size=size, cell=cell)
    assert isinstance(seen, render.TopDownMap)
    assert (seen.hits > 0).all()
    expected = (torch.arange(4) >= 2).double().expand(2, 1, 4, 4)
    torch.testing.assert_close(seen.features, expected)


def test_gradients_reach_the_pixels_that_fall_into_a_cell() -> None:
    camera = Camera.pinhole(1.0, (1, 3))
    features = torch.ones(1, 1, 3, requires_grad=True)
    depth = torch.tensor([[1.0, torch.nan, 1.0]])
    seen = render.project_to_map(features, depth, camera, size=(1, 1), cell=10.0, origin=(-5.0, -5.0))
    assert seen.hits.item() == 2
    seen.features.sum().backward()
    assert features.grad is not None
    assert features.grad.flatten().tolist() == [0.5, 0.0, 0.5]


def test_largest_features_do_not_overflow() -> None:
    large = torch.full((1, 2, 2), 3e38)
    camera = Camera.pinhole(1.0, (2, 2))
    seen = render.project_to_map(large, torch.ones(2, 2), camera, size=(1, 1), cell=10.0, origin=(-5.0, -5.0))
    torch.testing.assert_close(seen.features.flatten(), torch.tensor([3e38]))


def test_memory_changes_only_where_something_was_seen() -> None:
    torch.manual_seed(0)
    memory = render.MapMemory(2, 3)
    state, seen = torch.randn(2, 3, 4, 5), torch.randn(2, 2, 4, 5)
    mask = torch.rand(2, 4, 5) < 0.5
    after = memory(seen, mask, state)
    same = (after == state).all(1)
    assert torch.equal(same, ~mask)
    x = torch.cat([seen, state], 1)
    update, reset = torch.sigmoid(memory.gates(x)).chunk(2, 1)
    new = torch.tanh(memory.candidate(torch.cat([seen, reset * state], 1)))
    by_formula = (1 - update) * state + update * new
    torch.testing.assert_close(after.movedim(1, -1)[mask], by_formula.movedim(1, -1)[mask])
    with pytest.raises(TypeError, match="mask"):
        memory(seen, mask.float(), state)
    with pytest.raises(ValueError, match="kernel must be odd"):
        render.MapMemory(2, 3, kernel=2)
