"""Speech with its text."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from pullback.core.shapes import Float, Tensor
from pullback.data.cache import load
from pullback.data.text_formats import split_arrays, split_strings

__all__ = ["Prompt", "prompts"]


class Prompt(NamedTuple):
    """One spoken sentence.

    Attributes:
        name: of the recording, such as ``"digits/7"``.
        text: what is said.
        samples: ``[t]`` float32 in [-1, 1).
        rate: samples a second.
    """

    name: str
    text: str
    samples: Float[Tensor, "t"]
    rate: int


def prompts() -> list[Prompt]:
    """Return the telephone prompts of one speaker at 8 kHz, by name.

    Raises:
        DataMissingError: the set was not fetched.
    """
    stored = load("prompts")
    names, texts = split_strings(stored, "names"), split_strings(stored, "texts")
    rate = int(stored["rate"])
    return [
        Prompt(name, text, torch.from_numpy(part.astype(np.float32) / np.float32(32768)), rate)
        for name, text, part in zip(names, texts, split_arrays(stored, "samples"), strict=True)
    ]
