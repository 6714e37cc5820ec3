"""The force field of Amber's alanine dipeptide against sums in plain loops over the numbers of the file."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from pullback import data, dynamics


@pytest.fixture(scope="module")
def alanine() -> data.Conformations:
    return data.alanine_dipeptide()


def numbers(text: str) -> dict[str, list[float]]:
    """The sections that hold numbers, split at blanks: none of this file's are glued together."""
    found = {}
    for part in text.split("%FLAG ")[1:]:
        name, _, rest = part.partition("\n")
        try:
            found[name.strip()] = [float(v) for v in rest.split("\n", 1)[1].split()]
        except ValueError:
            continue
    return found


def by_loops(file: dict[str, list[float]], x: np.ndarray) -> float:
    """The energy of the first 22 atoms, term by term."""
    atoms, total, at = 22, 0.0, lambda i: x[int(abs(i)) // 3]
    near = set()
    for part in ("INC", "WITHOUT"):
        rows = np.reshape(file[f"BONDS_{part}_HYDROGEN"], (-1, 3))
        for i, j, n in rows:
            if i < 3 * atoms:
                k, r = (file[f"BOND_{name}"][int(n) - 1] for name in ("FORCE_CONSTANT", "EQUIL_VALUE"))
                total += k * (np.linalg.norm(at(i) - at(j)) - r) ** 2
        for i, j, k, n in np.reshape(file[f"ANGLES_{part}_HYDROGEN"], (-1, 4)):
            if i < 3 * atoms:
                u, v = at(i) - at(j), at(k) - at(j)
                angle = math.acos(u @ v / np.linalg.norm(u) / np.linalg.norm(v))
                stiff, rest = (file[f"ANGLE_{name}"][int(n) - 1] for name in ("FORCE_CONSTANT", "EQUIL_VALUE"))
                total += stiff * (angle - rest) ** 2
        for i, j, k, l, n in np.reshape(file[f"DIHEDRALS_{part}_HYDROGEN"], (-1, 5)):  # noqa: E741
            if i >= 3 * atoms:
                continue
            a, b, c = at(j) - at(i), at(k) - at(j), at(l) - at(k)
            one, two = np.cross(a, b), np.cross(b, c)
            phi = math.atan2(np.linalg.norm(b) * (a @ two), one @ two)
            height, period, phase = (
                file[f"DIHEDRAL_{name}"][int(n) - 1] for name in ("FORCE_CONSTANT", "PERIODICITY", "PHASE")
            )
            total += height * (1 + math.cos(period * phi - phase))
            if k >= 0 and l >= 0:
                near.add(tuple(sorted((int(i) // 3, int(l) // 3))))
    skipped, start = set(), 0
    for i in range(atoms):
        count = int(file["NUMBER_EXCLUDED_ATOMS"][i])
        skipped |= {(i, int(j) - 1) for j in file["EXCLUDED_ATOMS_LIST"][start : start + count]}
        start += count
    kinds = int(file["POINTERS"][1])
    for i in range(atoms):
        for j in range(i + 1, atoms):
            if (i, j) in skipped and (i, j) not in near:
                continue
            lj, electric = (1 / 2.0, 1 / 1.2) if (i, j) in near else (1.0, 1.0)
            row, column = (int(file["ATOM_TYPE_INDEX"][n]) - 1 for n in (i, j))
            place = int(file["NONBONDED_PARM_INDEX"][kinds * row + column]) - 1
            r = np.linalg.norm(x[i] - x[j])
            total += lj * (file["LENNARD_JONES_ACOEF"][place] / r**12 - file["LENNARD_JONES_BCOEF"][place] / r**6)
            total += electric * file["CHARGE"][i] * file["CHARGE"][j] / r
    return total


def test_the_energy_is_that_of_plain_loops(alanine: data.Conformations) -> None:
    field, file = dynamics.read_prmtop(alanine.topology), numbers(alanine.topology.read_text())
    found = dynamics.amber_energy(alanine.positions, field)
    wanted = [by_loops(file, x.numpy()) for x in alanine.positions]
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-6)
    assert field.names[:6] == ("HH31", "CH3", "HH32", "HH33", "C", "O")
    assert abs(float(field.parameters.charges.sum())) < 1e-6
    assert field.topology.elements.bincount().tolist() == [0, 12, 0, 0, 0, 0, 6, 2, 2]
    sizes = [len(part) for part in (field.topology.bonds, field.topology.angles, field.topology.pairs14)]
    assert sizes == [21, 36, 41]


def test_forces_are_differences_of_energies(alanine: data.Conformations) -> None:
    field, x = dynamics.read_prmtop(alanine.topology), alanine.positions[3]
    file = numbers(alanine.topology.read_text())
    forces = -torch.func.grad(lambda z: dynamics.amber_energy(z, field))(x)
    assert float(forces.sum(0).abs().max()) < 1e-8
    for atom, axis in ((0, 0), (4, 1), (6, 2), (16, 0), (21, 1)):
        ends = []
        for shift in (1e-4, -1e-4):
            moved = x.clone().numpy()
            moved[atom, axis] += shift
            ends.append(by_loops(file, moved))
        assert float(forces[atom, axis]) == pytest.approx((ends[1] - ends[0]) / 2e-4, rel=1e-5, abs=1e-4)


def test_water_is_read_as_another_molecule(alanine: data.Conformations) -> None:
    field = dynamics.read_prmtop(alanine.topology, molecule=5, dtype=torch.float32)
    assert field.topology.elements.tolist() == [8, 1, 1]
    assert not len(field.torsions)
    assert float(field.sigma[1]) == 0
    x = torch.tensor([[0.0, 0.0, 0.0], [0.9572, 0.0, 0.0], [-0.2400, 0.9266, 0.0]])
    assert abs(float(dynamics.amber_energy(x, field))) < 1e-3  # rigid water: springs only, at rest


def changed(text: str, name: str, line: int, old: str, new: str) -> str:
    head, mark, tail = text.partition(f"%FLAG {name} ")
    lines = tail.split("\n")
    assert old in lines[1 + line]
    lines[1 + line] = lines[1 + line].replace(old, new, 1)
    return head + mark + "\n".join(lines)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t + "%FLAG CMAP_COUNT\n%FORMAT(2I8)\n       1       1\n",
            "line .*: section CMAP_COUNT is not known",
        ),
        (lambda t: t.replace("%FLAG MASS ", "%FLAG RADII "), "section MASS is missing"),
        (lambda t: "hello\nworld\n", "line 1: expected %FLAG, got 'hello'; not a topology file"),
        (lambda t: t.replace("%FORMAT(20a4)", "%FORMAT(twenty)", 1), "is no format of a section"),
        (lambda t: changed(t, "POINTERS", 1, "    5071", "    9071"), "ATOM_NAME must hold 9071 values, got 5071"),
        (lambda t: changed(t, "HBOND_ACOEF", 1, " 0.0", " 1.0"), "HBOND_ACOEF must be 0"),
        (
            lambda t: changed(t, "LENNARD_JONES_ACOEF", 1, "9.71708117E+04", "9.72708117E+04"),
            "LENNARD_JONES coefficients of pairs must be those",
        ),
        (lambda t: changed(t, "MASS", 1, "1.20100000E+01", "1.30100000E+02"), "MASS must be that of an element"),
        (
            lambda t: t + "%FLAG SCEE_SCALE_FACTOR\n%FORMAT(5E16.8)\n" + "  1.2\n  1.1\n".join([""] * 20),
            r"SCEE_SCALE_FACTOR must be one number > 0 for all torsions, got \[1.1, 1.2\]",
        ),
        (lambda t: changed(t, "BONDS_WITHOUT_HYDROGEN", 1, "      15 ", "    1500 "), "BONDS must join atoms of one"),
    ],
)
def test_files_that_cannot_be_read_whole_are_refused(change, message: str, alanine: data.Conformations, tmp_path: Path):
    path = tmp_path / "changed.prmtop"
    path.write_text(change(alanine.topology.read_text()))
    with pytest.raises(ValueError, match=message):
        dynamics.read_prmtop(path)


def test_arguments_that_cannot_be_are_refused(alanine: data.Conformations, without_shape_checks: None) -> None:
    with pytest.raises(ValueError, match=r"molecule must be in 0\.\.\d+, got 99999"):
        dynamics.read_prmtop(alanine.topology, molecule=99999)
    with pytest.raises(FileNotFoundError):
        dynamics.read_prmtop("nowhere.prmtop")
    field = dynamics.read_prmtop(alanine.topology)
    with pytest.raises(ValueError, match=r"positions must have shape \(\.\.\., 22, 3\)"):
        dynamics.amber_energy(alanine.positions[:, :9], field)
    with pytest.raises(TypeError, match="dtype"):
        dynamics.amber_energy(alanine.positions.float(), field)
