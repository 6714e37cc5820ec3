"""Topology with a gradient: persistence, Euler transforms, learned graphs and cell complexes."""

from __future__ import annotations

from pullback.topology.segments import segment_reduce

__all__ = [
    "segment_reduce",
]
