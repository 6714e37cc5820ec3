"""Cameras, poses, angles with a gradient: world to pixels and back. OpenCV axes (x right, y down, z forward), metres."""

from pullback.geometry.angles import angular_distance
from pullback.geometry.camera import Camera, Projection, Rays, look_at

__all__ = ["Camera", "Projection", "Rays", "angular_distance", "look_at"]
