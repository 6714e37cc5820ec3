"""Optimal transport with a gradient: exact assignments, Sinkhorn, distances between distributions."""

from __future__ import annotations

from pullback.transport.entropic import Transport
from pullback.transport.exact import Assignment, ExactTransport, assignment, exact_transport
from pullback.transport.one_dimensional import wasserstein_1d
from pullback.transport.sinkhorn import sinkhorn

__all__ = [
    "Assignment",
    "ExactTransport",
    "Transport",
    "assignment",
    "exact_transport",
    "sinkhorn",
    "wasserstein_1d",
]
