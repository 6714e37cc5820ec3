"""Rendering with a gradient: from an image back to shapes, colours, opacity and the camera. One result type."""

from pullback.render.density import Densified, Spheres, SphereStatistics, prune_and_split
from pullback.render.points import splat_points
from pullback.render.result import Rendered
from pullback.render.shading import NeuralShader
from pullback.render.spheres import render_spheres
from pullback.render.tiles import TileLists, tile_primitives
from pullback.render.top_down import MapMemory, TopDownMap, project_to_map
from pullback.render.views import Views
from pullback.render.zbuffer import ZBuffer, zbuffer_spheres

__all__ = [
    "Densified",
    "MapMemory",
    "NeuralShader",
    "Rendered",
    "SphereStatistics",
    "Spheres",
    "TileLists",
    "TopDownMap",
    "Views",
    "ZBuffer",
    "project_to_map",
    "prune_and_split",
    "render_spheres",
    "splat_points",
    "tile_primitives",
    "zbuffer_spheres",
]
