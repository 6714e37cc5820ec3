"""Probes of gradients: what audit measures with, each a function of its own."""

from pullback.gradients.memory import SavedBytes, saved_bytes

__all__ = ["SavedBytes", "saved_bytes"]
