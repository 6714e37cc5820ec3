"""Sound with a gradient: arrays of microphones, delays, correlations."""

from __future__ import annotations

from pullback.audio.arrays import gcc_phat, simulate_array

__all__ = ["gcc_phat", "simulate_array"]
