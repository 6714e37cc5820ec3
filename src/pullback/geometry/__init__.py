"""Cameras and the geometry of views. Conventions: OpenCV axes (x right, y down, z forward), metres, radians."""

from pullback.geometry.camera import Camera, Projection, Rays, look_at

__all__ = ["Camera", "Projection", "Rays", "look_at"]
