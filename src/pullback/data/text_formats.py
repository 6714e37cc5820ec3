"""From the bytes of a member to text and sound: strings as arrays, WAV, prompt lists."""

from __future__ import annotations

import gzip
import io
import wave
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["join_arrays", "join_strings", "prompts", "split_arrays", "split_strings", "wav"]

Arrays = dict[str, NDArray[np.generic]]


def join_arrays(key: str, parts: Sequence[NDArray[np.generic]]) -> Arrays:
    """Return arrays of different lengths as one array and the offsets at which they end."""
    ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
    return {key: np.concatenate(parts), f"{key} ends": ends}


def split_arrays(stored: Arrays, key: str) -> list[NDArray[np.generic]]:
    """Undo :func:`join_arrays`."""
    return np.split(stored[key], stored[f"{key} ends"][:-1].astype(np.int64))


def join_strings(key: str, texts: Sequence[str]) -> Arrays:
    """Return strings as one array of UTF-8 bytes and the offsets at which they end.

    Example:
        >>> split_strings(join_strings("t", ["a", "", "né"]), "t")
        ['a', '', 'né']
    """
    return join_arrays(key, [np.frombuffer(text.encode("utf-8"), dtype=np.uint8) for text in texts])


def split_strings(stored: Arrays, key: str) -> list[str]:
    """Undo :func:`join_strings`."""
    return [part.tobytes().decode("utf-8") for part in split_arrays(stored, key)]


def wav(content: bytes) -> tuple[NDArray[np.int16], int]:
    """Read a mono 16-bit WAV file: samples and the sampling rate in hertz.

    Raises:
        ValueError: another number of channels or sample size.
    """
    with wave.open(io.BytesIO(content)) as opened:
        if opened.getnchannels() != 1 or opened.getsampwidth() != 2:
            raise ValueError(
                f"WAV must be mono, 16 bit; got {opened.getnchannels()} channels of {opened.getsampwidth()} bytes"
            )
        return np.frombuffer(opened.readframes(opened.getnframes()), dtype="<i2"), opened.getframerate()


def prompts(content: bytes) -> dict[str, str]:
    """Read lines ``name: sentence``; ``;`` starts a comment.

    Example:
        >>> prompts(b"; list\\nhello: Hello: world.\\n")
        {'hello': 'Hello: world.'}
    """
    text = (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).decode("utf-8")
    pairs = (line.partition(":") for line in text.splitlines() if line.strip() and not line.startswith(";"))
    return {name.strip(): sentence.strip() for name, colon, sentence in pairs if colon}
