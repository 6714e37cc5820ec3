"""Cameras: conventions, degenerate points, batches."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from pullback.geometry import Camera, look_at

UP = (0.0, -1.0, 0.0)


def test_axes_are_opencv_and_pixel_centres_are_at_one_half() -> None:
    camera = Camera.pinhole(10.0, (4, 4))
    right, down = camera.project(torch.tensor([[0.1, 0.0, 1.0], [0.0, 0.1, 1.0]])).pixels
    assert right.tolist() == [3.0, 2.0]
    assert down.tolist() == [2.0, 3.0]
    first = camera.pixel_directions()[0, 0]
    assert camera.project(first[None]).pixels[0].tolist() == pytest.approx([0.5, 0.5])


def test_rays_of_all_pixels_meet_the_points_that_project_there(generator: torch.Generator) -> None:
    pose = look_at(torch.tensor([1.0, -0.5, -2.0]), torch.zeros(3), up=UP)
    camera = Camera.pinhole(30.0, (5, 7), camera_from_world=pose)
    rays = camera.rays()
    assert rays.directions.shape == (5, 7, 3)
    depth = 1 + torch.rand(5, 7, 1, generator=generator)
    seen = camera.project((rays.origins + depth * rays.directions).flatten(0, 1))
    torch.testing.assert_close(seen.depth, depth.flatten())
    torch.testing.assert_close(seen.pixels[8], torch.tensor([1.5, 1.5]))


def test_look_at_puts_the_target_in_the_middle_and_up_upwards() -> None:
    position, target = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([0.0, 1.0, 4.0])
    camera = Camera.pinhole(20.0, (10, 10), camera_from_world=look_at(position, target, up=UP))
    torch.testing.assert_close(camera.position, position)
    middle, above = camera.project(torch.stack([target, target + 0.1 * torch.tensor(UP)])).pixels
    torch.testing.assert_close(middle, torch.tensor([5.0, 5.0]))
    assert above[1] < 5
    rotation = camera.camera_from_world[:3, :3]
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(3))
    assert torch.linalg.det(rotation) > 0


def test_points_not_in_front_have_no_position_and_no_gradient() -> None:
    points = torch.tensor([[0.0, 0.0, -1.0], [0.3, 0.1, 0.0], [0.3, 0.1, 1e-42], [0.0, 0.0, 2.0]], requires_grad=True)
    seen = Camera.pinhole(10.0, (4, 4)).project(points)
    assert seen.valid.tolist() == [False, False, False, True]
    assert seen.pixels.tolist() == [[-1.0, -1.0]] * 3 + [[2.0, 2.0]]
    (gradient,) = torch.autograd.grad(seen.pixels.sum(), points)
    assert gradient[:3].abs().max() == 0
    assert torch.isfinite(gradient).all()


def test_nan_points_stay_nan() -> None:
    seen = Camera.pinhole(10.0, (4, 4)).project(torch.tensor([[torch.nan, 0.0, 1.0], [0.0, 0.0, torch.nan]]))
    assert seen.pixels.isnan().all()
    assert not seen.valid.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e4, 1e8, math.inf])
def test_large_points_project_as_their_directions(dtype: torch.dtype, size: float) -> None:
    size = min(size, torch.finfo(dtype).max)
    directions = torch.tensor([[0.5, -0.25, 1.0], [0.0, 0.125, 0.5]], dtype=dtype)
    camera = Camera.pinhole(8.0, (4, 4), dtype=dtype)
    seen = camera.project(size * directions)
    assert seen.valid.all()
    assert seen.pixels.tolist() == [[6.0, 0.0], [2.0, 4.0]]
    back = camera.unproject(seen.pixels, seen.depth)
    torch.testing.assert_close(back, size * directions)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("size", [2.0**-8, 2.0**13, math.inf])
def test_look_at_does_not_depend_on_the_distance(dtype: torch.dtype, size: float) -> None:
    size = min(size, torch.finfo(dtype).max)
    near = look_at(torch.zeros(3, dtype=dtype), torch.tensor([0.5, 0.25, 1.0], dtype=dtype), up=UP)
    far = look_at(torch.zeros(3, dtype=dtype), size * torch.tensor([0.5, 0.25, 1.0], dtype=dtype), up=UP)
    torch.testing.assert_close(near, far)
    rotation = far[:3, :3].double()
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(3).double(), rtol=0, atol=4 * torch.finfo(dtype).eps)
    between = look_at(torch.tensor([size, 0, 0], dtype=dtype), torch.tensor([-size, 0, 0], dtype=dtype), up=UP)
    assert between[2].tolist() == pytest.approx([-1.0, 0.0, 0.0, size])


def test_focal_length_has_a_gradient() -> None:
    focal = torch.tensor(20.0, requires_grad=True)
    pixels = Camera.pinhole(focal, (4, 4)).project(torch.tensor([[0.3, 0.1, 2.0]])).pixels
    (gradient,) = torch.autograd.grad(pixels.sum(), focal)
    assert gradient.item() == pytest.approx((0.3 + 0.1) / 2)


def test_indexing_picks_cameras_of_a_batch() -> None:
    poses = look_at(torch.tensor([[0.0, 0.0, -1.0], [1.0, 0.0, -1.0], [2.0, 0.0, -1.0]]), torch.zeros(3), up=UP)
    camera = Camera.pinhole(10.0, (4, 4), camera_from_world=poses)
    assert torch.equal(camera[1].camera_from_world, poses[1])
    assert camera[1].batch_shape == ()
    assert torch.equal(camera[torch.tensor([2, 0])].camera_from_world, poses[[2, 0]])
    assert camera[1:].intrinsics.shape == (2, 3, 3)
    with pytest.raises(IndexError, match="must have a batch dimension"):
        camera[0][0]


def test_batches_broadcast() -> None:
    poses = torch.stack([torch.eye(4), look_at(torch.tensor([0.0, 0.0, -1.0]), torch.zeros(3), up=UP)])
    camera = Camera.pinhole(10.0, (4, 4), camera_from_world=poses)
    assert camera.batch_shape == (2,)
    points = torch.tensor([[0.1, 0.2, 3.0]])
    for item, pose in zip(camera.project(points).pixels, poses, strict=True):
        one = Camera.pinhole(10.0, (4, 4), camera_from_world=pose)
        torch.testing.assert_close(item, one.project(points).pixels)
    assert camera.rays().directions.shape == (2, 4, 4, 3)
    assert camera.position.shape == (2, 3)


def test_resized_sees_the_same_at_another_size() -> None:
    camera = Camera.pinhole(33.0, (20, 30), centre=(14.0, 9.0))
    point = torch.tensor([[0.2, -0.1, 2.0]])
    small = camera.resized((10, 10)).project(point).pixels
    torch.testing.assert_close(small, camera.project(point).pixels * torch.tensor([1 / 3, 1 / 2]))


_EYE3, _EYE4 = torch.eye(3), torch.eye(4)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: Camera.pinhole(0.0, (4, 4)), "focal must be > 0"),
        (lambda: Camera.pinhole(torch.tensor(-1.0), (4, 4)), "focal must be > 0"),
        (lambda: Camera.pinhole(torch.ones(2), (4, 4)), "focal must be a number or a tensor without dimensions"),
        (lambda: Camera(_EYE3, _EYE4, (0, 4)), "height of size must be an integer >= 1, got 0"),
        (lambda: Camera(_EYE3, _EYE4, (4,)), "size must be"),
        (lambda: Camera(_EYE3 * torch.tensor([0.0, 1.0, 1.0]), _EYE4, (4, 4)), "focal lengths other than 0"),
        (lambda: Camera.pinhole(1e-18, (4, 4)), "slopes of pixels of at most 1.15e"),
        (lambda: Camera(_EYE3 * torch.nan, _EYE4, (4, 4)), "intrinsics must be finite"),
        (lambda: Camera(_EYE3, _EYE4 * torch.inf, (4, 4)), "camera_from_world must be finite"),
        (lambda: Camera(_EYE3, 0 * _EYE4, (4, 4)), "camera_from_world must be invertible"),
        (lambda: Camera(_EYE3, _EYE4.double(), (4, 4)), "intrinsics and camera_from_world must have the same dtype"),
        (lambda: Camera(_EYE3.expand(2, 3, 3), _EYE4.expand(3, 4, 4), (4, 4)), "must have shapes that broadcast"),
        (
            lambda: Camera.pinhole(1.0, (4, 4)).project(torch.ones(1, 3).double()),
            "points and camera must have the same dtype",
        ),
        (
            lambda: Camera.pinhole(1.0, (4, 4), camera_from_world=_EYE4.expand(2, 4, 4)).project(torch.ones(3, 1, 3)),
            "points and camera must have shapes",
        ),
        (lambda: Camera.pinhole(1.0, (4, 4)).rays(torch.ones(1, 3)), "pixels must have shape"),
        (lambda: Camera.pinhole(1.0, (4, 4)).unproject(torch.ones(2, 2), torch.ones(3)), "depth must have shape"),
        (lambda: Camera.pinhole(1.0, (4, 4)).resized((4, 0)), "width of size"),
        (lambda: look_at(torch.ones(2), torch.ones(3), up=UP), "position must have shape"),
        (lambda: look_at(torch.ones(3), torch.ones(3), up=UP), "target must differ from position"),
        (
            lambda: look_at(torch.ones(3), torch.zeros(3).double(), up=UP),
            "position and target must have the same dtype",
        ),
    ],
)
def test_bad_arguments_are_refused(call: Any, match: str, without_shape_checks: None) -> None:
    with pytest.raises((TypeError, ValueError), match=match):
        call()
