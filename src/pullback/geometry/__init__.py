"""Cameras, angles, polygons, meshes with a gradient. In space OpenCV axes (x right, y down, z forward), metres."""

from pullback.geometry.angles import angular_distance
from pullback.geometry.camera import Camera, Projection, Rays, look_at
from pullback.geometry.meshes import Measure, laplacian_energy, mesh_measure
from pullback.geometry.polygons import complexity_iou, polis_distance, polygon_iou, rasterize_polygon
from pullback.geometry.surfaces import SurfaceDistance, chamfer, self_intersections, surface_distance

__all__ = [
    "Camera",
    "Measure",
    "Projection",
    "Rays",
    "SurfaceDistance",
    "angular_distance",
    "chamfer",
    "complexity_iou",
    "laplacian_energy",
    "look_at",
    "mesh_measure",
    "polis_distance",
    "polygon_iou",
    "rasterize_polygon",
    "self_intersections",
    "surface_distance",
]
