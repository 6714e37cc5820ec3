"""Topology with a gradient: persistence, Euler transforms, learned graphs and cell complexes."""

from __future__ import annotations

__all__: list[str] = []
