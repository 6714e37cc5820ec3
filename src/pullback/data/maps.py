"""Maps: outlines of real buildings."""

from __future__ import annotations

import torch

from pullback.core.shapes import Float, Tensor
from pullback.data.cache import load
from pullback.data.text_formats import split_arrays

__all__ = ["buildings"]


def buildings() -> list[Float[Tensor, "n 2"]]:
    """Return the outlines of 144 buildings of a quarter of Prague, as they were mapped.

    Returns:
        For each its corners ``[n, 2]`` in order, east and north in metres from the middle of the quarter; the last
        corner is joined with the first. A courtyard is left out.

    Raises:
        DataMissingError: the set was not fetched.
    """
    return [torch.from_numpy(outline) for outline in split_arrays(load("buildings"), "outlines")]
