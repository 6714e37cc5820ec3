"""The terms of a molecule's force field, listed from its graph: bonds, angles, torsions, impropers and pairs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pullback.core.checks import check_tensor
from pullback.core.shapes import Bool, Float, Int

__all__ = ["ATOM_FEATURES", "Topology", "join_topologies", "molecular_graph", "molecular_topology"]

_ELEMENTS = (1, 6, 7, 8, 9, 15, 16, 17, 35, 53)
_RINGS = (3, 4, 5, 6, 7, 8)
ATOM_FEATURES: tuple[str, ...] = (
    *(f"element {z}" for z in _ELEMENTS),
    "another element",
    *(f"{n} neighbours" for n in (1, 2, 3, 4)),
    "aromatic",
    *("sp", "sp2", "sp3", "another hybridisation"),
    *(f"ring of {n}" for n in _RINGS),
)
"""What each column of the features of :func:`molecular_graph` says of an atom, 1 or 0."""


class Topology(NamedTuple):
    """Molecules as lists of the terms that a force field has; atoms of all molecules are numbered through.

    Attributes:
        elements: ``[atoms]`` atomic numbers.
        features: ``[atoms, features]`` of the atoms, none of them of their places.
        molecule: ``[atoms]`` the molecule of each atom, ascending from 0.
        charge: ``[molecules]`` total charges, in elementary charges.
        bonds: ``[n, 2]`` atoms that are joined, each bond once.
        angles: ``[n, 3]`` two neighbours of an atom, which stands between them.
        propers: ``[n, 4]`` paths of four atoms, each once.
        linear: ``[n]`` the propers about a bond with an end whose two bonds lie on a line: no torsion is there.
        impropers: ``[n, 4]`` an atom with three neighbours, first, and these.
        exclusions: ``[n, 2]`` pairs one or two bonds apart, which have no term of their own.
        pairs14: ``[n, 2]`` pairs three bonds apart.
        pairs15: ``[n, 2]`` the pairs of a molecule that are further apart.
    """

    elements: Int[Tensor, "atoms"]
    features: Float[Tensor, "atoms features"]
    molecule: Int[Tensor, "atoms"]
    charge: Float[Tensor, "molecules"]
    bonds: Int[Tensor, "bonds 2"]
    angles: Int[Tensor, "angles 3"]
    propers: Int[Tensor, "propers 4"]
    linear: Bool[Tensor, "propers"]
    impropers: Int[Tensor, "impropers 4"]
    exclusions: Int[Tensor, "exclusions 2"]
    pairs14: Int[Tensor, "pairs14 2"]
    pairs15: Int[Tensor, "pairs15 2"]


def molecular_topology(
    elements: Int[Tensor, "atoms"],
    bonds: Int[Tensor, "bonds 2"],
    *,
    features: Float[Tensor, "atoms features"] | None = None,
    charge: float = 0.0,
    linear: Bool[Tensor, "atoms"] | None = None,
) -> Topology:
    """Return the terms of one molecule, given as a graph.

    Angles are the pairs of neighbours of an atom, propers the paths of four different atoms, impropers the atoms with
    three neighbours; pairs are sorted by the number of bonds of the shortest way between them.

    Args:
        elements: ``[atoms]`` atomic numbers, >= 1.
        bonds: ``[bonds, 2]`` indices of atoms, each bond once.
        features: of the atoms; none by default.
        charge: of the molecule, in elementary charges.
        linear: ``[atoms]`` whether the two bonds of an atom lie on a line; no atom by default.

    Returns:
        :class:`Topology` of one molecule.

    Raises:
        TypeError: ``elements`` or ``bonds`` does not hold integers.
        ValueError: there is no atom, an index is out of range, a bond joins an atom with itself or comes twice, the
            molecule is in several pieces, or shapes do not fit.

    Example:
        >>> water = molecular_topology(torch.tensor([8, 1, 1]), torch.tensor([[0, 1], [0, 2]]))
        >>> water.angles.tolist(), water.exclusions.tolist()
        ([[1, 0, 2]], [[0, 1], [0, 2], [1, 2]])
    """
    for name, value in (("elements", elements), ("bonds", bonds)):
        if check_tensor(name, value).dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
            raise TypeError(f"{name} must hold integers, got {value.dtype}")
    if elements.ndim != 1 or not len(elements):
        raise ValueError(f"elements must have shape (atoms,) with an atom at least, got {tuple(elements.shape)}")
    if bool((elements < 1).any()):
        raise ValueError(f"elements must be >= 1, got {int(elements.min())}")
    count = len(elements)
    joined = _neighbours(count, bonds)
    pieces = _pieces(joined)
    if pieces > 1:
        raise ValueError(f"bonds must join all atoms to one molecule, got {pieces} pieces: list them one by one")
    shapes = {"features": (count,), "linear": (count,)}
    for name, given in (("features", features), ("linear", linear)):
        if given is not None and given.shape[:1] != shapes[name]:
            raise ValueError(f"{name} must have a row for each of the {count} atoms, got {tuple(given.shape)}")

    straight = set() if linear is None else set(linear.nonzero().flatten().tolist())
    angles = [(i, j, k) for j in range(count) for i, k in itertools.combinations(joined[j], 2)]
    propers = [
        (i, j, k, l)
        for j in range(count)
        for k in joined[j]
        if j < k
        for i in joined[j]
        for l in joined[k]  # noqa: E741 (the names of the field)
        if len({i, j, k, l}) == 4
    ]
    impropers = [(j, *n) for j, n in enumerate(joined) if len(n) == 3]
    apart = _bonds_apart(joined)
    pairs = list(itertools.combinations(range(count), 2))
    device = elements.device

    def listed(rows: Sequence[tuple[int, ...]], width: int) -> Tensor:
        return torch.tensor(rows, dtype=torch.int64, device=device).reshape(-1, width)

    return Topology(
        elements=elements.long(),
        features=torch.zeros(count, 0, device=device) if features is None else features,
        molecule=torch.zeros(count, dtype=torch.int64, device=device),
        charge=torch.tensor([float(charge)], device=device),
        bonds=bonds.long(),
        angles=listed(angles, 3),
        propers=listed(propers, 4),
        linear=torch.tensor(
            [j in straight or k in straight for _, j, k, _ in propers], dtype=torch.bool, device=device
        ),
        impropers=listed(impropers, 4),
        exclusions=listed([(a, b) for a, b in pairs if apart[a][b] < 3], 2),
        pairs14=listed([(a, b) for a, b in pairs if apart[a][b] == 3], 2),
        pairs15=listed([(a, b) for a, b in pairs if apart[a][b] > 3], 2),
    )


def molecular_graph(molecule: Any) -> Topology:
    """Return the terms of a molecule and what its graph says of its atoms.

    Features are the columns of :data:`ATOM_FEATURES`: element, number of neighbours, aromaticity, hybridisation and
    sizes of rings. Formal charges are left out: with them, atoms that resonance makes equal would differ.

    Args:
        molecule: a molecule of RDKit with all its hydrogens, or a SMILES string, to which hydrogens are added.

    Returns:
        :class:`Topology`, atoms in the order of the molecule.

    Raises:
        ImportError: RDKit is not installed.
        TypeError: ``molecule`` is neither.
        ValueError: the string is no SMILES, hydrogens are missing, or the molecule is in several pieces.

    Example:
        >>> ethanol = molecular_graph("CCO")
        >>> len(ethanol.elements), len(ethanol.bonds), len(ethanol.angles), len(ethanol.propers)
        (9, 8, 13, 12)

    References:
        Takaba et al. (2024), Machine-learned molecular mechanics force fields from large-scale quantum chemical data.
    """
    try:
        from rdkit import Chem
    except ModuleNotFoundError as error:
        raise ImportError("this needs RDKit: pip install 'pullback[chem]'") from error
    if isinstance(molecule, str):
        read = Chem.MolFromSmiles(molecule)
        if read is None:
            raise ValueError(f"molecule must be a SMILES string, got {molecule!r}")
        molecule = Chem.AddHs(read)
    if not isinstance(molecule, Chem.Mol):
        raise TypeError(f"molecule must be one of RDKit or a SMILES string, got {type(molecule).__name__}")
    molecule = Chem.Mol(molecule)  # what follows fills caches of it
    molecule.UpdatePropertyCache(strict=False)
    Chem.GetSymmSSSR(molecule)
    atoms = list(molecule.GetAtoms())
    missing = sum(atom.GetTotalNumHs() for atom in atoms)  # those that are no atoms of the graph
    if missing:
        raise ValueError(f"molecule must have all its hydrogens, {missing} are implied: call Chem.AddHs")
    pieces = len(Chem.GetMolFrags(molecule))
    if pieces > 1:
        raise ValueError(f"molecule must be in one piece, got {pieces}: charge would flow between them")
    rings = molecule.GetRingInfo()
    kinds = (Chem.HybridizationType.SP, Chem.HybridizationType.SP2, Chem.HybridizationType.SP3)
    rows = []
    for index, atom in enumerate(atoms):
        element, kind = atom.GetAtomicNum(), atom.GetHybridization()
        rows.append(
            [
                *(element == z for z in _ELEMENTS),
                element not in _ELEMENTS,
                *(atom.GetDegree() == n for n in (1, 2, 3, 4)),
                atom.GetIsAromatic(),
                *(kind == k for k in kinds),
                kind not in kinds,
                *(rings.IsAtomInRingOfSize(index, n) for n in _RINGS),
            ]
        )
    bonds = [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in molecule.GetBonds()]
    return molecular_topology(
        torch.tensor([atom.GetAtomicNum() for atom in atoms]),
        torch.tensor(bonds, dtype=torch.int64).reshape(-1, 2),
        features=torch.tensor(rows, dtype=torch.float32).reshape(-1, len(ATOM_FEATURES)),
        charge=float(Chem.GetFormalCharge(molecule)),
        linear=torch.tensor(
            [atom.GetDegree() == 2 and atom.GetHybridization() == Chem.HybridizationType.SP for atom in atoms]
        ),
    )


def join_topologies(topologies: Sequence[Topology]) -> Topology:
    """Return many molecules as one list of terms, their atoms numbered through.

    Args:
        topologies: at least one, with equally many features.

    Returns:
        :class:`Topology`, molecules and atoms in the order given.

    Raises:
        ValueError: there is none, or their features differ in number.

    Example:
        >>> water = molecular_topology(torch.tensor([8, 1, 1]), torch.tensor([[0, 1], [0, 2]]))
        >>> join_topologies([water, water]).angles.tolist()
        [[1, 0, 2], [4, 3, 5]]
    """
    if not len(topologies):
        raise ValueError("topologies must hold one at least")
    widths = {t.features.shape[-1] for t in topologies}
    if len(widths) > 1:
        raise ValueError(f"topologies must have equally many features, got {sorted(widths)}")
    atoms = list(itertools.accumulate((len(t.elements) for t in topologies), initial=0))
    molecules = list(itertools.accumulate((len(t.charge) for t in topologies), initial=0))
    shift = dict.fromkeys(("bonds", "angles", "propers", "impropers", "exclusions", "pairs14", "pairs15"), atoms)
    shift["molecule"] = molecules
    fields = {}
    for name in Topology._fields:
        parts = [getattr(t, name) for t in topologies]
        if name in shift:
            parts = [part + start for part, start in zip(parts, shift[name][:-1], strict=True)]
        fields[name] = torch.cat(parts)
    return Topology(**fields)


def _neighbours(count: int, bonds: Tensor) -> list[list[int]]:
    """The neighbours of each atom, in ascending order."""
    if bonds.ndim != 2 or bonds.shape[1] != 2:
        raise ValueError(f"bonds must have shape (bonds, 2), got {tuple(bonds.shape)}")
    joined: list[list[int]] = [[] for _ in range(count)]
    for a, b in bonds.tolist():
        if not (0 <= a < count and 0 <= b < count):
            raise ValueError(f"bonds must be in 0..{count - 1}, got {(a, b)}")
        if a == b or b in joined[a]:
            raise ValueError(f"bonds must join two atoms, each pair once, got {(a, b)}{'' if a == b else ' twice'}")
        joined[a].append(b)
        joined[b].append(a)
    return [sorted(n) for n in joined]


def _pieces(joined: list[list[int]]) -> int:
    left, pieces = set(range(len(joined))), 0
    while left:
        pieces += 1
        front = [left.pop()]
        while front:
            reached = left.intersection(joined[front.pop()])
            left -= reached
            front += reached
    return pieces


def _bonds_apart(joined: list[list[int]]) -> list[list[int]]:
    """The number of bonds between two atoms; 4 stands for all that is further."""
    apart = [[4] * len(joined) for _ in joined]
    for start in range(len(joined)):
        front, apart[start][start] = {start}, 0
        for length in (1, 2, 3):
            front = {b for a in front for b in joined[a] if apart[start][b] > length}
            for b in front:
                apart[start][b] = length
    return apart
