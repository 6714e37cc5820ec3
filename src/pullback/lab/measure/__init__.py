"""Instruments: what something costs, and how that grows.

* :func:`race`: CPU seconds of several callables, in turn, as medians. The one clock of the house: systems and
  ``pullback bench`` read it.
* :func:`peak_memory`: bytes of the tensors that live at once.
* :func:`slope`: the exponent of a power law with its confidence interval.
"""

from pullback.lab.measure.clock import Race, race
from pullback.lab.measure.growth import Slope, slope
from pullback.lab.measure.memory import peak_memory

__all__ = ["Race", "Slope", "peak_memory", "race", "slope"]
