"""Cameras, angles, polygons, meshes with a gradient. In space OpenCV axes (x right, y down, z forward), metres."""

from pullback.geometry.angles import angular_distance
from pullback.geometry.camera import Camera, Projection, Rays, look_at
from pullback.geometry.meshes import (
    Measure,
    SurfaceDistance,
    chamfer,
    mesh_measure,
    self_intersections,
    surface_distance,
)
from pullback.geometry.polygons import complexity_iou, polis_distance, polygon_iou, rasterize_polygon

__all__ = [
    "Camera",
    "Measure",
    "Projection",
    "Rays",
    "SurfaceDistance",
    "angular_distance",
    "chamfer",
    "complexity_iou",
    "look_at",
    "mesh_measure",
    "polis_distance",
    "polygon_iou",
    "rasterize_polygon",
    "self_intersections",
    "surface_distance",
]
