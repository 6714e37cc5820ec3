"""From the bytes of a member to arrays: CSV, BIF, JSON networks, IDX."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Mapping
from csv import reader as csv_reader

import numpy as np
from numpy.typing import NDArray

__all__ = ["bare_csv", "csv", "digits_csv", "gaussian_network", "gunzip", "idx", "mixed_csv"]

Arrays = dict[str, NDArray[np.generic]]


def gunzip(content: bytes) -> bytes:
    """Return ``content`` decompressed if it is gzip, else as it is.

    Example:
        >>> gunzip(gzip.compress(b"plain")), gunzip(b"plain")
        (b'plain', b'plain')
    """
    return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content


def idx(content: bytes) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes (the format of MNIST), gzipped or not.

    Raises:
        ValueError: the magic number, the element type or the length is wrong.

    Example:
        >>> idx(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9])).tolist()
        [7, 8, 9]
    """
    raw = gunzip(content)
    if len(raw) < 4 or raw[:2] != b"\0\0":
        raise ValueError(f"not an IDX file: it starts with {raw[:4]!r}, an IDX file with two zero bytes")
    if raw[2] != 8:
        raise ValueError(f"IDX element type must be 0x08 (unsigned byte), got {raw[2]:#04x}")
    rank = raw[3]
    shape = tuple(int(n) for n in np.frombuffer(raw, ">u4", count=rank, offset=4))
    data = np.frombuffer(raw, np.uint8, offset=4 + 4 * rank)
    if data.size != int(np.prod(shape)):
        raise ValueError(f"IDX header says shape {shape}, the file holds {data.size} bytes")
    return data.reshape(shape)


def csv(content: bytes) -> tuple[list[str], NDArray[np.float64]]:
    """Read a table of numbers with one header line.

    Example:
        >>> names, values = csv(b"a,b\\n1,2\\n3,4\\n")
        >>> names, values.tolist()
        (['a', 'b'], [[1.0, 2.0], [3.0, 4.0]])
    """
    text = gunzip(content).decode("utf-8")
    header, body = text.split("\n", 1)
    names = [name.strip().strip('"') for name in header.strip().split(",")]
    return names, np.loadtxt(io.StringIO(body), delimiter=",", dtype=np.float64, ndmin=2)


def bare_csv(content: bytes) -> NDArray[np.float64]:
    """Read a table without a header line; columns that are not made of numbers are left out.

    Example:
        >>> bare_csv(b"1,audi 100,2.5\\n3,saab 99e,4\\n").tolist()
        [[1.0, 2.5], [3.0, 4.0]]
    """
    columns = []
    for cells in zip(*csv_reader(io.StringIO(gunzip(content).decode())), strict=True):
        try:
            columns.append([float(cell) for cell in cells])
        except ValueError:
            continue
    return np.array(columns).T


def mixed_csv(content: bytes) -> Arrays:
    """Read a table with one header line: ``values [n, d]`` float64, ``columns [d]``.

    A column with words is numbered by its sorted words, which are kept as ``words <column>``; an empty cell is NaN.

    Example:
        >>> table = mixed_csv(b"a,b\\n1,no\\n,yes\\n")
        >>> table["values"].tolist(), table["words b"].tolist()
        ([[1.0, 0.0], [nan, 1.0]], ['no', 'yes'])
    """
    rows = list(csv_reader(io.StringIO(gunzip(content).decode("utf-8-sig"))))
    columns, body = rows[0], [row for row in rows[1:] if row]
    values = np.full((len(body), len(columns)), np.nan)
    arrays: Arrays = {}
    for j, column in enumerate(columns):
        cells = [row[j].strip() for row in body]
        try:
            values[:, j] = [float(cell) if cell not in ("", "NA") else np.nan for cell in cells]
        except ValueError:
            words = sorted(set(cells) - {"", "NA"})
            place = {word: float(k) for k, word in enumerate(words)}
            values[:, j] = [place.get(cell, np.nan) for cell in cells]
            arrays[f"words {column}"] = np.array(words)
    return {"values": values, "columns": np.array(columns), **arrays}


def digits_csv(members: Mapping[str, bytes]) -> Arrays:
    """Read rows of 784 pixels and a label, sorted by class, into images that take the classes in turn (0 to 9, 0, ...).

    Every prefix whose length is a multiple of ten is class balanced, and so is every split at such a place.
    """
    text = gunzip(members["digits"]).decode("ascii")
    rows = np.loadtxt(io.StringIO(text), delimiter=",", dtype=np.int64)
    pixels, labels = rows[:, :-1].astype(np.uint8), rows[:, -1]
    within = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels == label)
        within[of_class] = np.arange(len(of_class))
    order = np.lexsort((labels, within))
    return {"images": pixels[order].reshape(-1, 28, 28), "labels": labels[order].astype(np.uint8)}


def gaussian_network(members: Mapping[str, bytes]) -> Arrays:
    """Read a linear Gaussian network: weights ``[parent, child]``, intercepts and standard deviations."""
    network = json.loads(gunzip(members["network"]))
    names: list[str] = network["nodes"]
    count = len(names)
    weights, intercepts, scales = np.zeros((count, count)), np.zeros(count), np.zeros(count)
    adjacency = np.zeros((count, count), dtype=bool)
    for parent, child in network["arcs"]:
        adjacency[names.index(parent), names.index(child)] = True
    for child, conditional in network["cpds"].items():
        j = names.index(child)
        for parent, coefficient in conditional["coefficients"].items():
            if parent == "(Intercept)":
                intercepts[j] = coefficient[0]
            else:
                weights[names.index(parent), j] = coefficient[0]
        scales[j] = np.sqrt(conditional["variance"][0])
    return {
        "names": np.array(names),
        "adjacency": adjacency,
        "weights": weights,
        "intercepts": intercepts,
        "scales": scales,
    }
