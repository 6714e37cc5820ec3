"""Optimal transport with a gradient: exact assignments, Sinkhorn, distances between distributions."""

from __future__ import annotations

__all__: list[str] = []
