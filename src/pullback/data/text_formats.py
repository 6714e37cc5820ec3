"""From the bytes of a member to text and sound: strings as arrays, WAV, prompt lists, LZW streams."""

from __future__ import annotations

import gzip
import io
import struct
import wave
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = ["join_arrays", "join_strings", "lzw", "prompts", "split_arrays", "split_strings", "wav", "windowed_lzw"]

Arrays = dict[str, NDArray[np.generic]]


def join_arrays(key: str, parts: Sequence[NDArray[np.generic]]) -> Arrays:
    """Return arrays of different lengths as one array and the offsets at which they end."""
    ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
    return {key: np.concatenate(parts), f"{key} ends": ends}


def split_arrays(stored: Mapping[str, NDArray[np.generic]], key: str) -> list[NDArray[np.generic]]:
    """Undo :func:`join_arrays`."""
    return np.split(stored[key], stored[f"{key} ends"][:-1].astype(np.int64))


def join_strings(key: str, texts: Sequence[str]) -> Arrays:
    """Return strings as one array of UTF-8 bytes and the offsets at which they end.

    Example:
        >>> split_strings(join_strings("t", ["a", "", "né"]), "t")
        ['a', '', 'né']
    """
    return join_arrays(key, [np.frombuffer(text.encode("utf-8"), dtype=np.uint8) for text in texts])


def split_strings(stored: Mapping[str, NDArray[np.generic]], key: str) -> list[str]:
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


def lzw(content: bytes) -> bytes:
    """Decompress a stream of the Unix ``compress`` program without its header: codes of 9 to 16 bits, 256 clears.

    Codes come in groups of eight; where the width grows, the rest of a group is padding.

    Raises:
        ValueError: a code is not in the dictionary yet.

    References:
        Welch (1984), A technique for high-performance data compression.
    """
    table = [bytes([i]) for i in range(256)] + [b""]
    output: list[bytes] = []
    width, position, in_group, previous = 9, 0, 0, b""
    while position + width <= 8 * len(content):
        start, shift = divmod(position, 8)
        code = (int.from_bytes(content[start : start + 4], "little") >> shift) & ((1 << width) - 1)
        position, in_group = position + width, (in_group + 1) % 8
        if code == 256:
            position, in_group = position + (-in_group % 8) * width, 0
            del table[257:]
            width, previous = 9, b""
            continue
        if code < len(table):
            word = table[code]
        elif code == len(table) and previous:
            word = previous + previous[:1]
        else:
            raise ValueError(f"LZW: code {code} at bit {position - width} is not in the dictionary of {len(table)}")
        output.append(word)
        if previous and len(table) < 1 << 16:
            table.append(previous + word[:1])
            if len(table) == 1 << width and width < 16:
                position, in_group = position + (-in_group % 8) * width, 0
                width += 1
        previous = word
    return b"".join(output)


def windowed_lzw(content: bytes) -> bytes:
    """Decompress a file of independently compressed windows (the format of the Debian package ``bible-kjv-text``).

    A magic string, then from byte 84 big-endian: window size, number of windows, and where each starts.

    Raises:
        ValueError: another magic string, or a window has the wrong size.
    """
    if content[:24] != b"EC02Compressed Data File":
        raise ValueError(f"not a windowed file: it starts with {content[:24]!r}")
    size, count = struct.unpack_from(">II", content, 84)
    starts = struct.unpack_from(f">{count + 1}I", content, 92)
    windows = [lzw(content[a:b]) for a, b in pairwise(starts)]
    if any(len(window) != size for window in windows[:-1]):
        raise ValueError(f"a window does not have {size} bytes")
    return b"".join(windows)
