"""Molecules with a measured property: graphs of atoms and bonds, or strings."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

import torch

from pullback.core.checks import check_choice
from pullback.core.shapes import Float, Int, Tensor
from pullback.data.cache import load, require
from pullback.data.text_formats import split_arrays, split_strings

__all__ = ["Conformations", "Hydration", "Molecule", "Molecules", "alanine_dipeptide", "hydration", "solubility"]


class Molecule(NamedTuple):
    """One molecule; hydrogens are implied, but for two of all sets.

    Attributes:
        elements: ``[atoms]`` int64 atomic numbers (6 is carbon).
        charges: ``[atoms]`` int64 formal charges.
        positions: ``[atoms, 2]`` float32 of a drawing on paper (no conformation), length of a bond about 1.5.
        bonds: ``[bonds, 2]`` int64 atoms that are joined, each bond once.
        orders: ``[bonds]`` int64: 1 single, 2 double, 3 triple (rings with alternating bonds, as drawn).
    """

    elements: Int[Tensor, "atoms"]
    charges: Int[Tensor, "atoms"]
    positions: Float[Tensor, "atoms 2"]
    bonds: Int[Tensor, "bonds 2"]
    orders: Int[Tensor, "bonds"]


class Molecules(NamedTuple):
    """Molecules and how well they dissolve in water.

    Attributes:
        molecules: the graphs.
        log_solubility: ``[n]`` float32, decimal logarithm of mol / l, at about 25 degrees.
        labels: ``[n]`` int64, as published: 0 low, 1 medium, 2 high.
        names: of the compounds.
        smiles: the same molecules as strings.
    """

    molecules: tuple[Molecule, ...]
    log_solubility: Float[Tensor, "n"]
    labels: Int[Tensor, "n"]
    names: tuple[str, ...]
    smiles: tuple[str, ...]


class Hydration(NamedTuple):
    """Small molecules and what it takes to bring them from gas into water.

    Attributes:
        smiles: of the molecules, hydrogens implied.
        names: of the compounds.
        measured: ``[n]`` float32, free energy of hydration [kcal / mol].
        computed: ``[n]`` float32, the same by simulations with the force field GAFF, as published.
    """

    smiles: tuple[str, ...]
    names: tuple[str, ...]
    measured: Float[Tensor, "n"]
    computed: Float[Tensor, "n"]


class Conformations(NamedTuple):
    """A molecule in some of its conformations.

    Attributes:
        positions: ``[frames, atoms, 3]`` float64 [Angstrom].
        topology: the file of its force field, for :func:`pullback.dynamics.read_prmtop`.
    """

    positions: Float[Tensor, "frames atoms 3"]
    topology: Path


def alanine_dipeptide() -> Conformations:
    """Return capped alanine, 22 atoms: 11 frames of a simulation in water, which is left out, and its force field.

    Raises:
        DataMissingError: the set was not fetched.
    """
    positions = load("alanine_dipeptide")["positions"]
    return Conformations(torch.from_numpy(positions.copy()), require("alanine_dipeptide") / "topology.prmtop")


def hydration() -> Hydration:
    """Return FreeSolv: 642 small neutral organic molecules with their free energy of hydration.

    Raises:
        DataMissingError: the set was not fetched.

    References:
        Mobley, Guthrie (2014), FreeSolv: a database of experimental and calculated hydration free energies.
    """
    stored = load("hydration")
    return Hydration(
        tuple(split_strings(stored, "smiles")),
        tuple(split_strings(stored, "names")),
        torch.from_numpy(stored["measured"].copy()),
        torch.from_numpy(stored["computed"].copy()),
    )


def solubility(split: Literal["train", "test"]) -> Molecules:
    """Return organic compounds with their measured solubility in water: 1 025 to train on, 257 to test, as published.

    Args:
        split: which part.

    Raises:
        DataMissingError: the set was not fetched.
        ValueError: ``split`` is unknown.

    References:
        Hou, Xia, Zhang, Xu (2004), ADME evaluation in drug discovery 4: prediction of aqueous solubility.
    """
    check_choice("split", split, ("train", "test"))
    stored = load("solubility")
    parts = [
        [torch.from_numpy(part.copy()) for part in split_arrays(stored, f"{split}/{field}")]
        for field in Molecule._fields
    ]
    return Molecules(
        tuple(Molecule(*fields) for fields in zip(*parts, strict=True)),
        torch.from_numpy(stored[f"{split}/solubility"]),
        torch.from_numpy(stored[f"{split}/labels"]),
        tuple(split_strings(stored, f"{split}/names")),
        tuple(split_strings(stored, f"{split}/smiles")),
    )
