"""Contracts of ``pullback.geometry``."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pullback.geometry import Camera, look_at
from tests.contracts.contract import Bad, Call, Contract

_SIZE = (4, 6)
_LARGEST = "the pose turns and moves the largest number beyond itself"


def _randn(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _camera(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    intrinsics = torch.tensor([[5.0, 0.1, 2.9], [0.0, 5.3, 2.1], [0.0, 0.0, 1.0]], dtype=torch.float64)
    turn = torch.linalg.matrix_exp(torch.linalg.cross(torch.eye(3).double(), 0.2 * _randn(generator, 1, 3)))
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3], pose[:3, 3] = turn, 0.1 * _randn(generator, 3)
    return intrinsics, pose


def _points(generator: torch.Generator) -> list[Call]:
    points = 0.5 * _randn(generator, 5, 3) + torch.tensor([0.0, 0.0, 4.0], dtype=torch.float64)
    return [Call((points, *_camera(generator)))]


def _project(points: Tensor, intrinsics: Tensor, pose: Tensor, size: Any = _SIZE) -> tuple[Tensor, ...]:
    return tuple(Camera(intrinsics, pose, size).project(points)[:2])


def _project_homogeneous(points: Tensor, intrinsics: Tensor, pose: Tensor) -> tuple[Tensor, ...]:
    homogeneous = torch.cat([points, torch.ones_like(points[..., :1])], -1)
    image = homogeneous @ (intrinsics @ pose[:3]).T
    return image[..., :2] / image[..., 2:], image[..., 2]


def _roundtrip(points: Tensor, intrinsics: Tensor, pose: Tensor) -> Tensor:
    camera = Camera(intrinsics, pose, _SIZE)
    return camera.unproject(*camera.project(points)[:2])


def _pixels(generator: torch.Generator) -> list[Call]:
    return [Call((2 + _randn(generator, 5, 2), *_camera(generator)))]


def _rays(pixels: Tensor, intrinsics: Tensor, pose: Tensor) -> tuple[Tensor, ...]:
    return tuple(Camera(intrinsics, pose, _SIZE).rays(pixels))


def _rays_homogeneous(pixels: Tensor, intrinsics: Tensor, pose: Tensor) -> tuple[Tensor, ...]:
    homogeneous = torch.cat([pixels, torch.ones_like(pixels[..., :1])], -1)
    world = torch.linalg.inv(pose)
    seen = homogeneous @ torch.linalg.inv(intrinsics).T
    return world[:3, 3].expand(len(pixels), 3), seen @ world[:3, :3].T


def _look(generator: torch.Generator) -> list[Call]:
    return [Call((_randn(generator, 3), _randn(generator, 3) + 5), {"up": (0.0, -1.0, 0.0)})]


_EYE3, _EYE4 = torch.eye(3), torch.eye(4)

CONTRACTS = [
    Contract(
        "geometry.Camera[project]",
        _project,
        _points,
        reference=_project_homogeneous,
        bad=[
            Bad((torch.zeros(5, 2), _EYE3, _EYE4), {}, ValueError, "points must have shape"),
            Bad((torch.zeros(5, 3), torch.eye(2), _EYE4), {}, ValueError, "intrinsics must have shape"),
            Bad((torch.zeros(5, 3), _EYE3, _EYE3), {}, ValueError, "camera_from_world must have shape"),
            Bad((torch.zeros(5, 3), _EYE3.long(), _EYE4), {}, TypeError, "intrinsics must be a floating tensor"),
            Bad((torch.zeros(5, 3), _EYE3 * math.nan, _EYE4), {}, ValueError, "intrinsics must be finite"),
            Bad((torch.zeros(5, 3), _EYE3, _EYE4), {"size": (4, 4, 4)}, ValueError, "size must be .height, width."),
            Bad((torch.zeros(5, 3), _EYE3, _EYE4), {"size": (4, 4.0)}, TypeError, "width of size must be an integer"),
        ],
        large_limit=1e37,
        why=_LARGEST,
    ),
    Contract(
        "geometry.Camera[unproject]",
        _roundtrip,
        _points,
        reference=lambda points, *_: points,
        large_limit=1e37,
        why=_LARGEST,
    ),
    Contract("geometry.Camera[rays]", _rays, _pixels, reference=_rays_homogeneous, large_limit=1e37, why=_LARGEST),
    Contract(
        "geometry.look_at",
        look_at,
        _look,
        bad=[
            Bad((torch.zeros(3), torch.zeros(3)), {"up": (0.0, -1.0, 0.0)}, ValueError, "target must differ"),
            Bad((torch.zeros(3), torch.tensor([0.0, 2.0, 0.0])), {"up": (0.0, -1.0, 0.0)}, ValueError, "line of sight"),
            Bad((torch.zeros(2), torch.ones(2)), {"up": (0.0, -1.0, 0.0)}, ValueError, "position must have shape"),
        ],
        large_limit=1e37,
        why=_LARGEST,
    ),
]
