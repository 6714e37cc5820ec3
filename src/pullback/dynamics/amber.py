"""Force fields of Amber: the parameters of a molecule from a topology file, and its energy."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pullback.core.checks import check_floating, check_integer, check_same_dtype, check_shape
from pullback.core.shapes import Float, Int
from pullback.dynamics.force_field import Harmonic
from pullback.dynamics.internal_coordinates import dihedrals
from pullback.dynamics.molecular_energy import bonded_energy, nonbonded_energy
from pullback.dynamics.molecular_graph import Topology, molecular_topology
from pullback.dynamics.molecular_networks import MoleculeParameters

__all__ = ["AmberForceField", "amber_energy", "read_prmtop"]

_CHARGE = 18.2223
"""Amber's unit of charge: the square is the energy of two elementary charges one Angstrom apart [kcal/mol]."""
_MASSES = {
    1: 1.008,
    3: 6.94,
    6: 12.01,
    7: 14.01,
    8: 16.00,
    9: 19.00,
    11: 22.99,
    12: 24.305,
    15: 30.97,
    16: 32.06,
    17: 35.45,
    19: 39.10,
    20: 40.08,
    26: 55.85,
    30: 65.4,
    35: 79.90,
    53: 126.9,
}
_SCALES = {"SCEE_SCALE_FACTOR": 1.2, "SCNB_SCALE_FACTOR": 2.0}
_USED = (
    "POINTERS ATOM_NAME CHARGE MASS ATOM_TYPE_INDEX NUMBER_EXCLUDED_ATOMS NONBONDED_PARM_INDEX BOND_FORCE_CONSTANT "
    "BOND_EQUIL_VALUE ANGLE_FORCE_CONSTANT ANGLE_EQUIL_VALUE DIHEDRAL_FORCE_CONSTANT DIHEDRAL_PERIODICITY "
    "DIHEDRAL_PHASE LENNARD_JONES_ACOEF LENNARD_JONES_BCOEF BONDS_INC_HYDROGEN BONDS_WITHOUT_HYDROGEN "
    "ANGLES_INC_HYDROGEN ANGLES_WITHOUT_HYDROGEN DIHEDRALS_INC_HYDROGEN DIHEDRALS_WITHOUT_HYDROGEN EXCLUDED_ATOMS_LIST"
).split()
_WITHOUT_ENERGY = (  # of a molecule in vacuum: names, solvent, and what only other programs read
    "TITLE RESIDUE_LABEL RESIDUE_POINTER SOLTY HBCUT AMBER_ATOM_TYPE TREE_CHAIN_CLASSIFICATION JOIN_ARRAY IROTAT "
    "SOLVENT_POINTERS BOX_DIMENSIONS RADIUS_SET RADII SCREEN IPOL"
).split()
_OPTIONAL = [*_SCALES, "HBOND_ACOEF", "HBOND_BCOEF", "ATOMIC_NUMBER", "ATOMS_PER_MOLECULE"]


class AmberForceField(NamedTuple):
    """The terms and parameters of one molecule, energies in kcal/mol, lengths in Angstrom.

    Attributes:
        topology: bonds, angles and pairs as the file lists them; torsions stand below, and there are no impropers.
        parameters: springs and charges, no torsions.
        torsions: ``[n, 4]`` atoms in the order of the chain; what Amber calls impropers is among them.
        amplitudes: ``[n]`` k of each term ``k (1 + cos(m phi - phase))``.
        periods: ``[n]`` m.
        phases: ``[n]`` [rad].
        epsilon: ``[atoms]`` depths of Lennard-Jones wells.
        sigma: ``[atoms]`` distances at which two like atoms have no Lennard-Jones energy.
        scale14: factors of Lennard-Jones and Coulomb for pairs three bonds apart.
        masses: ``[atoms]`` [g/mol].
        names: of the atoms.
    """

    topology: Topology
    parameters: MoleculeParameters
    torsions: Int[Tensor, "n 4"]
    amplitudes: Float[Tensor, "n"]
    periods: Float[Tensor, "n"]
    phases: Float[Tensor, "n"]
    epsilon: Float[Tensor, "atoms"]
    sigma: Float[Tensor, "atoms"]
    scale14: tuple[float, float]
    masses: Float[Tensor, "atoms"]
    names: tuple[str, ...]


def amber_energy(positions: Float[Tensor, "*batch atoms 3"], field: AmberForceField) -> Float[Tensor, "*batch"]:
    r"""Return the energy of a molecule in a vacuum, without a cutoff.

    .. math::
        U=\sum_{bonds}k(r-r_0)^2+\sum_{angles}k(\theta-\theta_0)^2+\sum_{torsions}k(1+\cos(m\phi-\phi_0))
        +\sum_{i<j}\Big(s^{LJ}_{ij}\,4\epsilon_{ij}\big[(\sigma_{ij}/r)^{12}-(\sigma_{ij}/r)^6\big]+
        s^C_{ij}\,18.2223^2\,q_iq_j/r\Big)

    Args:
        positions: ``[*batch, atoms, 3]`` [Angstrom].
        field: of :func:`read_prmtop`.

    Returns:
        ``[*batch]`` [kcal/mol].

    Raises:
        TypeError: ``positions`` is not floating, or has another dtype than the field.
        ValueError: ``positions`` has another number of atoms.

    References:
        Cornell et al. (1995), A second generation force field for the simulation of proteins, nucleic acids, and
        organic molecules, equation 1.
    """
    check_shape("positions", check_floating("positions", positions), (len(field.names), 3))
    check_same_dtype(positions=positions, field=field.amplitudes)
    springs = bonded_energy(positions, field.topology, field.parameters, terms=("bonds", "angles")).total[..., 0]
    turned = field.periods * dihedrals(positions, field.torsions) - field.phases
    across = nonbonded_energy(
        positions,
        field.parameters.charges,
        field.epsilon,
        field.sigma,
        field.topology,
        scale14=field.scale14,
        coulomb=_CHARGE**2,
    )[..., 0]
    return springs + (field.amplitudes * (1 + torch.cos(turned))).sum(-1) + across


def read_prmtop(
    path: str | Path, *, molecule: int = 0, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
) -> AmberForceField:
    """Read one molecule's force field from a topology file of Amber (``prmtop``, ``parm7``).

    Sections that say nothing of the energy in a vacuum (names, solvent, radii) are passed over; one that is not known
    is an error, since a term of the energy might be missing.

    Args:
        path: of the file.
        molecule: which one, from 0; the solute is the first.
        dtype: of the parameters.
        device: of the parameters.

    Returns:
        :class:`AmberForceField`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no topology, has an unknown section, misses one or holds too few numbers, has no such
            molecule, or has terms that the energy has not: 10-12 hydrogen bonds, Lennard-Jones parameters of pairs that
            are not those of their atoms, scales that differ between torsions, bonds between molecules.

    References:
        The Amber reference manual, "PARM file format".
    """
    check_integer("molecule", molecule, 0)
    sections = _sections(Path(path).read_text(encoding="utf-8", errors="replace"))
    integers = {name: [int(v) for v in values] for name, values in sections.items() if name in _integer_sections()}
    total = integers["POINTERS"][0]
    counts = [int(v) for v in sections.get("ATOMS_PER_MOLECULE", [str(total)])]
    if molecule >= len(counts):
        raise ValueError(f"molecule must be in 0..{len(counts) - 1}, got {molecule}")
    first, size = sum(counts[:molecule]), counts[molecule]
    last = first + size

    def floats(name: str, low: int = 0, high: int | None = None) -> Tensor:
        return torch.tensor([float(v) for v in sections[name][low:high]], dtype=torch.float64)

    def terms(name: str, arity: int) -> list[list[int]]:
        found = []
        for part in ("INC", "WITHOUT"):
            flat = integers[f"{name}_{part}_HYDROGEN"]
            if len(flat) % (arity + 1):
                raise ValueError(f"{name}_{part}_HYDROGEN must hold rows of {arity + 1} numbers, got {len(flat)}")
            for row in (flat[n : n + arity + 1] for n in range(0, len(flat), arity + 1)):
                inside = [first <= abs(i) // 3 < last for i in row[:arity]]
                if any(inside) and not all(inside):
                    raise ValueError(f"{name} must join atoms of one molecule, got the row {row}")
                if all(inside):
                    found.append(row)
        return found

    bonds, angles, turns = terms("BONDS", 2), terms("ANGLES", 3), terms("DIHEDRALS", 4)
    masses, charges = floats("MASS", first, last), floats("CHARGE", first, last) / _CHARGE
    numbers = [int(v) for v in sections.get("ATOMIC_NUMBER", [])][first:last] or [_element(m) for m in masses.tolist()]

    def joined(rows: list[list[int]], arity: int) -> Tensor:
        return torch.tensor([[abs(i) // 3 - first for i in row[:arity]] for row in rows]).reshape(-1, arity).long()

    def looked_up(rows: list[list[int]], name: str) -> Tensor:
        values = floats(name)
        kinds = torch.tensor([row[-1] - 1 for row in rows]).long()
        if len(kinds) and int(kinds.max()) >= len(values):
            raise ValueError(f"{name} must hold {int(kinds.max()) + 1} numbers, got {len(values)}")
        return values[kinds]

    base = molecular_topology(torch.tensor(numbers), joined(bonds, 2), charge=float(charges.sum()))
    near = {(min(a, b), max(a, b)) for row in turns if row[2] >= 0 and row[3] >= 0 for a, b in [(row[0], row[3])]}
    near = {(abs(a) // 3 - first, abs(b) // 3 - first) for a, b in near}
    listed = set(near)
    start = sum(integers["NUMBER_EXCLUDED_ATOMS"][:first])
    for atom, count in enumerate(integers["NUMBER_EXCLUDED_ATOMS"][first:last]):
        for other in integers["EXCLUDED_ATOMS_LIST"][start : start + count]:
            if other:  # 0 stands for none
                listed.add((atom, other - 1 - first))
        start += count
    pairs = [(a, b) for a in range(size) for b in range(a + 1, size)]
    topology = base._replace(
        angles=joined(angles, 3),
        propers=torch.zeros(0, 4, dtype=torch.int64),
        linear=torch.zeros(0, dtype=torch.bool),
        impropers=torch.zeros(0, 4, dtype=torch.int64),
        exclusions=torch.tensor(sorted(listed - near)).reshape(-1, 2).long(),
        pairs14=torch.tensor(sorted(near)).reshape(-1, 2).long(),
        pairs15=torch.tensor([pair for pair in pairs if pair not in listed]).reshape(-1, 2).long(),
    )
    sigma, epsilon = _wells(sections, integers, first, last)
    scales = [_scale(sections, name, turns) for name in ("SCNB_SCALE_FACTOR", "SCEE_SCALE_FACTOR")]
    waves = [looked_up(turns, f"DIHEDRAL_{name}") for name in ("FORCE_CONSTANT", "PERIODICITY", "PHASE")]
    none = torch.zeros(0, 1, dtype=torch.float64)

    def placed(x: Tensor) -> Tensor:
        return x.to(device=device, dtype=dtype if x.is_floating_point() else x.dtype)

    def springs(name: str, rows: list[list[int]]) -> Harmonic:
        return Harmonic(*(placed(looked_up(rows, f"{name}_{what}")) for what in ("FORCE_CONSTANT", "EQUIL_VALUE")))

    return AmberForceField(
        topology=Topology(*(placed(part) for part in topology)),
        parameters=MoleculeParameters(
            springs("BOND", bonds),
            springs("ANGLE", angles),
            placed(none),
            placed(none),
            placed(charges),
        ),
        torsions=placed(joined(turns, 4)),
        amplitudes=placed(waves[0]),
        periods=placed(waves[1].abs()),  # a negative one only says that another term follows
        phases=placed(waves[2]),
        epsilon=placed(epsilon),
        sigma=placed(sigma),
        scale14=(1 / scales[0], 1 / scales[1]),
        masses=placed(masses),
        names=tuple(name.strip() for name in sections["ATOM_NAME"][first:last]),
    )


def _integer_sections() -> set[str]:
    words = ("POINTERS", "INDEX", "EXCLUDED", "_HYDROGEN")
    return {name for name in _USED if any(word in name for word in words)}


def _sections(text: str) -> dict[str, list[str]]:
    """The fields of every section, cut as its format says, all of them known and none of those needed missing."""
    found: dict[str, list[str]] = {}
    name, width = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("%FLAG"):
            name, width = line[5:].strip(), 0
            if name not in _USED and name not in _WITHOUT_ENERGY and name not in _OPTIONAL:
                raise ValueError(f"line {number}: section {name} is not known, and may hold a part of the energy")
            found[name] = []
        elif line.startswith("%FORMAT"):
            form = re.match(r"%FORMAT\(\d+[aAiIeEfF](\d+)", line)
            if form is None or not name:
                raise ValueError(f"line {number}: {line.strip()!r} is no format of a section")
            width = int(form[1])
        elif name and width:
            line = line.rstrip("\n")
            found[name] += [line[i : i + width] for i in range(0, len(line), width) if line[i : i + width].strip()]
        elif line.strip() and not line.startswith("%"):
            raise ValueError(f"line {number}: expected %FLAG, got {line[:40]!r}; not a topology file of Amber")
    missing = [name for name in _USED if name not in found]
    if missing:
        raise ValueError(f"section {missing[0]} is missing; not a topology file of Amber 7 or later")
    atoms = int(found["POINTERS"][0])
    for name in ("ATOM_NAME", "CHARGE", "MASS", "ATOM_TYPE_INDEX", "NUMBER_EXCLUDED_ATOMS"):
        if len(found[name]) < atoms:
            raise ValueError(f"{name} must hold {atoms} values, got {len(found[name])}")
    return found


def _wells(
    sections: dict[str, list[str]], integers: dict[str, list[int]], first: int, last: int
) -> tuple[Tensor, Tensor]:
    """Sigma and epsilon of each atom, from coefficients of pairs of types that must be those of their means."""
    if any(float(v) for name in ("HBOND_ACOEF", "HBOND_BCOEF") for v in sections.get(name, [])):
        raise ValueError("HBOND_ACOEF must be 0: hydrogen bonds of the form 10-12 are not part of the energy")
    count = integers["POINTERS"][1]
    index = torch.tensor(integers["NONBONDED_PARM_INDEX"]).reshape(count, count) - 1
    kinds = torch.tensor(integers["ATOM_TYPE_INDEX"][first:last]) - 1
    a, b = (
        torch.tensor([float(v) for v in sections[f"LENNARD_JONES_{name}COEF"]], dtype=torch.float64) for name in "AB"
    )
    table = index[kinds[:, None], kinds]
    other = table < 0  # pairs of the form 10-12, whose coefficients are 0
    a, b = (torch.where(other, 0.0, x[table.clamp(min=0)]) for x in (a, b))
    own_a, own_b = a.diagonal(), b.diagonal()
    empty = (own_a == 0) | (own_b == 0)
    sigma = torch.where(empty, 0.0, (own_a / torch.where(empty, 1.0, own_b)) ** (1 / 6))
    epsilon = torch.where(empty, 1.0, own_b**2 / (4 * torch.where(empty, 1.0, own_a)))
    size = (sigma[:, None] + sigma) / 2
    depth = 4 * (epsilon[:, None] * epsilon).sqrt() * ~(empty[:, None] | empty)
    off = torch.maximum((depth * size**12 - a).abs() / a.clamp(min=1.0), (depth * size**6 - b).abs() / b.clamp(min=1.0))
    if float(off.max()) > 1e-5:
        raise ValueError(
            f"LENNARD_JONES coefficients of pairs must be those of their atoms' means, off by {off.max():.1e}"
        )
    if bool(empty.any()):
        epsilon = torch.where(empty, torch.finfo(torch.float32).tiny, epsilon)
    return sigma, epsilon


def _scale(sections: dict[str, list[str]], name: str, turns: list[list[int]]) -> float:
    if name not in sections:
        return _SCALES[name]
    values = [float(v) for v in sections[name]]
    used = {values[row[-1] - 1] for row in turns if row[2] >= 0 and row[3] >= 0}
    if len(used) > 1 or not all(v > 0 for v in used):
        raise ValueError(f"{name} must be one number > 0 for all torsions, got {sorted(used)}")
    return used.pop() if used else _SCALES[name]


def _element(mass: float) -> int:
    number = min(_MASSES, key=lambda z: abs(_MASSES[z] - mass))
    if not math.isclose(_MASSES[number], mass, abs_tol=0.2):
        raise ValueError(f"MASS must be that of an element that is known, got {mass}; ATOMIC_NUMBER is missing")
    return number
