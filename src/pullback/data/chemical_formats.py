"""Molecules from the bytes of an SDF file: tables of atoms and bonds (V2000) and the data items beside them."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["ELEMENTS", "Record", "sdf"]

ELEMENTS = (
    "H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb Sr Y Zr Nb "
    "Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe"
).split()
"""Symbols by atomic number, from 1."""

_CODES = {"1": 3, "2": 2, "3": 1, "5": -1, "6": -2, "7": -3}  # charges in the atom table; 0 and 4 (a radical) are none


class Record(NamedTuple):
    """One molecule of an SDF file.

    Attributes:
        elements: ``[atoms]`` atomic numbers.
        charges: ``[atoms]`` formal charges.
        positions: ``[atoms, 3]`` coordinates as written, angstrom.
        bonds: ``[bonds, 2]`` the two atoms, from 0.
        orders: ``[bonds]`` 1 to 3; 4 is aromatic.
        items: the data items, by their name in lower case.
    """

    elements: NDArray[np.int64]
    charges: NDArray[np.int64]
    positions: NDArray[np.float64]
    bonds: NDArray[np.int64]
    orders: NDArray[np.int64]
    items: dict[str, str]


def sdf(content: bytes) -> list[Record]:
    """Read every molecule of an SDF file in the V2000 format.

    Raises:
        ValueError: a record is in another format (V3000), or names an unknown element.
    """
    records: list[Record] = []
    lines: list[str] = []
    for line in content.decode("utf-8").splitlines():
        if line.startswith("$$$$"):
            records.append(_record(lines))
            lines = []
        else:
            lines.append(line)
    return records


def _record(lines: list[str]) -> Record:
    counts = lines[3]
    if counts[33:39].strip() != "V2000":
        raise ValueError(f"not a V2000 table: {lines[0]!r} has the counts line {counts!r}")
    atoms, bonds = int(counts[:3]), int(counts[3:6])
    table, pairs = lines[4 : 4 + atoms], lines[4 + atoms : 4 + atoms + bonds]
    symbols = [line[31:34].strip() for line in table]
    unknown = set(symbols) - set(ELEMENTS)
    if unknown:
        raise ValueError(f"{lines[0]!r} names unknown elements: {', '.join(sorted(unknown))}")
    charges = [_CODES.get(line[36:39].strip(), 0) for line in table]
    rest = lines[4 + atoms + bonds :]
    properties = rest[: next((i for i, line in enumerate(rest) if line.startswith("M  END")), len(rest))]
    stated = [line.split()[3:] for line in properties if line.startswith("M  CHG")]
    if stated:  # supersedes the column of charges
        charges = [0] * atoms
        for words in stated:
            for atom, charge in zip(words[::2], words[1::2], strict=True):
                charges[int(atom) - 1] = int(charge)
    return Record(
        np.array([ELEMENTS.index(symbol) + 1 for symbol in symbols], dtype=np.int64),
        np.array(charges, dtype=np.int64),
        np.array([[float(line[k : k + 10]) for k in (0, 10, 20)] for line in table]).reshape(-1, 3),
        np.array([[int(line[:3]) - 1, int(line[3:6]) - 1] for line in pairs], dtype=np.int64).reshape(-1, 2),
        np.array([int(line[6:9]) for line in pairs], dtype=np.int64),
        _items(rest[len(properties) :]),
    )


def _items(lines: list[str]) -> dict[str, str]:
    """Read ``> <name>`` lines, each followed by its value."""
    items = {}
    for header, value in pairwise(lines):
        if header.startswith(">") and "<" in header:
            items[header[header.index("<") + 1 : header.rindex(">")].lower()] = value.strip()
    return items
