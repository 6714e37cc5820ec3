"""Rendering with a gradient: from an image back to shapes, colours, opacity and the camera. One result type."""

from pullback.render.density import Densified, Spheres, SphereStatistics, prune_and_split
from pullback.render.result import Rendered
from pullback.render.shading import NeuralShader
from pullback.render.spheres import ZBuffer, render_spheres, zbuffer_spheres
from pullback.render.tiles import TileLists, tile_primitives

__all__ = [
    "Densified",
    "NeuralShader",
    "Rendered",
    "SphereStatistics",
    "Spheres",
    "TileLists",
    "ZBuffer",
    "prune_and_split",
    "render_spheres",
    "tile_primitives",
    "zbuffer_spheres",
]
