"""Cameras: conventions, degenerate points, batches."""

from __future__ import annotations

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


def test_points_not_in_front_are_at_the_principal_point_with_zero_gradient() -> None:
    points = torch.tensor([[0.0, 0.0, -1.0], [0.3, 0.1, 0.0], [0.0, 0.0, 2.0]], requires_grad=True)
    camera = Camera(torch.tensor([[10.0, 0.5, 2.0], [0.0, 10.0, 1.0], [0.0, 0.0, 1.0]]), torch.eye(4), (4, 4))
    seen = camera.project(points)
    assert seen.pixels.tolist() == [[2.0, 1.0]] * 3
    assert (seen.depth > 0).tolist() == [False, False, True]
    (gradient,) = torch.autograd.grad(seen.pixels.sum(), points)
    assert gradient[:2].abs().max() == 0
    torch.testing.assert_close(gradient[2], torch.tensor([5.0, 5.25, 0.0]))


def test_far_and_near_points_keep_their_direction() -> None:
    camera, directions = Camera.pinhole(10.0, (4, 4)), torch.tensor([[0.1, -0.2, 1.0]])
    for size in (1e-30, 1e30):
        torch.testing.assert_close(camera.project(size * directions).pixels, camera.project(directions).pixels)
        towards = look_at(torch.zeros(3), size * directions[0], up=UP)
        torch.testing.assert_close(towards, look_at(torch.zeros(3), directions[0], up=UP))


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


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="focal must be > 0"):
        Camera.pinhole(0.0, (4, 4))
    with pytest.raises(ValueError, match="height of size must be an integer >= 1"):
        Camera(torch.eye(3), torch.eye(4), (0, 4))
    with pytest.raises(ValueError, match="focal lengths other than 0"):
        Camera(torch.zeros(3, 3), torch.eye(4), (4, 4))
    with pytest.raises(ValueError, match="camera_from_world must be invertible"):
        Camera(torch.eye(3), torch.zeros(4, 4), (4, 4))
    with pytest.raises(TypeError, match="must have the same dtype"):
        Camera(torch.eye(3), torch.eye(4).double(), (4, 4))
    with pytest.raises(ValueError, match="points and the camera must have shapes that broadcast"):
        Camera(torch.eye(3), torch.eye(4).expand(2, 4, 4), (4, 4)).project(torch.zeros(3, 1, 3))
