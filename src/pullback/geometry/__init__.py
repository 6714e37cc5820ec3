"""Cameras and poses with a gradient: world to pixels and back. OpenCV axes (x right, y down, z forward), metres."""

from pullback.geometry.camera import Camera, Projection, Rays, look_at

__all__ = ["Camera", "Projection", "Rays", "look_at"]
