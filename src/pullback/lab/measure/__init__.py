"""Instruments: what something costs, and how that grows.

* :func:`race`: CPU seconds of several callables, in turn, as medians. The one clock of the house: systems and
  ``pullback bench`` read it.
* :func:`peak_memory`: bytes of the tensors that live at once.
* :func:`operations`: multiplications and additions of matrix products.
* :func:`slope`: the exponent of a power law with its confidence interval.
"""

from pullback.lab.measure.clock import Race, race
from pullback.lab.measure.growth import Slope, slope
from pullback.lab.measure.memory import peak_memory
from pullback.lab.measure.operations import operations

__all__ = ["Race", "Slope", "operations", "peak_memory", "race", "slope"]
