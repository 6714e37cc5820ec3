"""Weights of trained networks, as state dictionaries."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from pullback.core.shapes import Tensor
from pullback.data.cache import load, require
from pullback.data.gguf import read_gguf

__all__ = ["LanguageModel", "efficientnet_lite0", "resemblyzer", "smollm2"]


class LanguageModel(NamedTuple):
    """A decoder-only transformer.

    Attributes:
        metadata: its sizes and its tokenizer, by the keys of the GGUF format.
        weights: name to float32 tensor ``[out, in]``; query and key rows are in llama.cpp's order (rotary
            pairs adjacent).
    """

    metadata: dict[str, Any]
    weights: dict[str, Tensor]


def efficientnet_lite0() -> dict[str, Tensor]:
    """Return the state dictionary of EfficientNet-Lite0 trained on ImageNet.

    Raises:
        DataMissingError: the set was not fetched.
    """
    return {name: torch.from_numpy(value) for name, value in load("efficientnet_lite0").items()}


def resemblyzer() -> dict[str, Tensor]:
    """Return the state dictionary of the speaker encoder: ``lstm.*`` (40 to 256, 3 layers), ``linear.*``.

    Raises:
        DataMissingError: the set was not fetched.
    """
    return {name: torch.from_numpy(value) for name, value in load("resemblyzer").items()}


def smollm2(layers: int | None = None) -> LanguageModel:
    """Return SmolLM2-135M-Instruct, dequantised to float32 (0.5 GB for all 30 layers).

    Args:
        layers: how many layers to decode, all by default.

    Raises:
        DataMissingError: the set was not fetched.
    """
    opened = read_gguf(require("smollm2") / "model.gguf")
    wanted = [
        name
        for name in opened.tensors
        if layers is None or not name.startswith("blk.") or int(name.split(".")[1]) < layers
    ]
    return LanguageModel(opened.metadata, {name: torch.from_numpy(opened.tensors[name]()) for name in wanted})
