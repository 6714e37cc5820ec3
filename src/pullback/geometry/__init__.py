"""Cameras, angles, polygons with a gradient. In space OpenCV axes (x right, y down, z forward), metres."""

from pullback.geometry.angles import angular_distance
from pullback.geometry.camera import Camera, Projection, Rays, look_at
from pullback.geometry.polygons import complexity_iou, polis_distance, polygon_iou, rasterize_polygon

__all__ = [
    "Camera",
    "Projection",
    "Rays",
    "angular_distance",
    "complexity_iou",
    "look_at",
    "polis_distance",
    "polygon_iou",
    "rasterize_polygon",
]
