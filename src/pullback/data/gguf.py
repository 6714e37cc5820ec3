"""Reading the weights of a language model in the GGUF format (version 3), with the block formats of our data."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["GgufFile", "read_gguf"]

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class GgufFile:
    """The contents of a GGUF file.

    Attributes:
        metadata: key to number, string or list.
        tensors: name to float32 array, read and dequantised when called.
    """

    metadata: dict[str, Any]
    tensors: dict[str, Callable[[], NDArray[np.float32]]]


def read_gguf(path: Path) -> GgufFile:
    """Open a GGUF file; tensors are decoded one by one, when asked for.

    Raises:
        ValueError: not a GGUF file of version 3, or a tensor in a format other than F32, Q4_1 and Q8_0.
    """
    data = np.memmap(path, dtype=np.uint8, mode="r")
    if bytes(data[:4]) != b"GGUF":
        raise ValueError(f"{path} is not a GGUF file: it starts with {bytes(data[:4])!r}")
    reader = _Reader(data)
    version, count, pairs = reader.take("I"), reader.take("Q"), reader.take("Q")
    if version != 3:
        raise ValueError(f"GGUF version must be 3, got {version}")
    metadata = {}
    for _ in range(pairs):
        key = reader.string()
        metadata[key] = reader.value(reader.take("I"))
    entries = []
    for _ in range(count):
        name = reader.string()
        shape = tuple(reader.take("Q") for _ in range(reader.take("I")))[::-1]
        entries.append((name, shape, reader.take("I"), reader.take("Q")))
    alignment = metadata.get("general.alignment", 32)
    start = -(-reader.position // alignment) * alignment
    tensors = {}
    for name, shape, kind, offset in entries:
        if kind not in _DECODERS:
            raise ValueError(f"GGUF tensor {name} has format {kind}; readable are F32 (0), Q4_1 (3), Q8_0 (8)")
        tensors[name] = _decode(data, start + offset, shape, kind)
    return GgufFile(metadata, tensors)


class _Reader:
    """A cursor over little-endian values."""

    def __init__(self, data: NDArray[np.uint8]) -> None:
        self.data, self.position = data, 4

    def take(self, kind: str) -> Any:
        size = struct.calcsize("<" + kind)
        (value,) = struct.unpack("<" + kind, self.data[self.position : self.position + size].tobytes())
        self.position += size
        return value

    def string(self) -> str:
        size = self.take("Q")
        self.position += size
        return self.data[self.position - size : self.position].tobytes().decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            inner, size = self.take("I"), self.take("Q")
            return [self.value(inner) for _ in range(size)]
        return self.take(_SCALARS[kind])


def _decode(
    data: NDArray[np.uint8], start: int, shape: tuple[int, ...], kind: int
) -> Callable[[], NDArray[np.float32]]:
    block, size, decode = _DECODERS[kind]
    length = int(np.prod(shape)) // block * size
    return lambda: decode(np.array(data[start : start + length]).reshape(-1, size)).reshape(shape)


def _f32(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    return blocks.view("<f4").astype(np.float32)


def _q4_1(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    """32 values a block: ``scale * nibble + minimum``, the low nibbles first."""
    scale, minimum = (blocks[:, i : i + 2].copy().view("<f2").astype(np.float32) for i in (0, 2))
    nibbles = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)
    return scale * nibbles + minimum


def _q8_0(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    """32 values a block: ``scale * signed byte``."""
    return blocks[:, :2].copy().view("<f2").astype(np.float32) * blocks[:, 2:].view(np.int8)


_DECODERS: dict[int, tuple[int, int, Callable[[NDArray[np.uint8]], NDArray[np.float32]]]] = {
    0: (1, 4, _f32),
    3: (32, 20, _q4_1),
    8: (32, 34, _q8_0),
}
"""Format to (values a block, bytes a block, decoder)."""
