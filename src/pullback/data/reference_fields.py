"""Published force fields as teachers: conformations, energies, forces and charges of real molecules."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from pullback.core.checks import check_choice, check_floating, check_integer, check_positive
from pullback.core.shapes import Float, Tensor

__all__ = ["ReferenceEnergies", "ReferenceForceField"]


class ReferenceEnergies(NamedTuple):
    """What a force field says of conformations.

    Attributes:
        energies: ``[conformers]`` [kcal / mol].
        forces: ``[conformers, atoms, 3]`` minus the gradient [kcal / (mol Angstrom)].
    """

    energies: Float[Tensor, "conformers"]
    forces: Float[Tensor, "conformers atoms 3"]


class ReferenceForceField:
    """MMFF94 or UFF of one molecule, as RDKit has them.

    They stand in for quantum chemistry: real molecules, energies of a published model.

    Args:
        smiles: of the molecule; hydrogens are added.
        model: ``"mmff94"`` or ``"uff"``.
        bonded: leave out what acts between atoms without a bond, an angle or a torsion (van der Waals, charges).

    Attributes:
        molecule: of RDKit, with its hydrogens.
        charges: ``[atoms]`` partial charges of MMFF94, in elementary charges.
        sigma: ``[atoms]`` distance at which two atoms of this kind have no van der Waals energy in MMFF94, taken from
            its radius of least energy as a Lennard-Jones potential has it [Angstrom].
        epsilon: ``[atoms]`` depth of its well [kcal / mol].

    Raises:
        ImportError: RDKit is not installed.
        ValueError: the string is no SMILES, or the model has no parameters for the molecule.

    Example:
        >>> water = ReferenceForceField("O")
        >>> [round(charge, 2) for charge in water.charges.tolist()]
        [-0.86, 0.43, 0.43]
        >>> x = water.embed(2, generator=torch.Generator().manual_seed(0))
        >>> bool((water.energies(water.minimize(x)).forces.abs() < 1e-2).all())
        True

    References:
        Halgren (1996), Merck molecular force field. Rappé et al. (1992), UFF. Tosco, Stiefl, Landrum (2014), Bringing
        the MMFF force field to the RDKit. Riniker, Landrum (2015), Better informed distance geometry.
    """

    def __init__(self, smiles: str, model: Literal["mmff94", "uff"] = "mmff94", *, bonded: bool = False) -> None:
        check_choice("model", model, ("mmff94", "uff"))
        try:
            from rdkit import Chem
            from rdkit.Chem import rdForceFieldHelpers
        except ModuleNotFoundError as error:
            raise ImportError("this needs RDKit: pip install 'pullback[chem]'") from error
        read = Chem.MolFromSmiles(smiles)
        if read is None:
            raise ValueError(f"smiles must be a SMILES string, got {smiles!r}")
        self.smiles, self.model, self.bonded = smiles, model, bonded
        self.molecule = Chem.AddHs(read)
        self._helpers = rdForceFieldHelpers
        known = rdForceFieldHelpers.MMFFHasAllMoleculeParams(self.molecule)
        if not (known and (model == "mmff94" or rdForceFieldHelpers.UFFHasAllMoleculeParams(self.molecule))):
            raise ValueError(f"smiles must be a molecule that {model} has parameters for, got {smiles!r}")
        self._properties = rdForceFieldHelpers.MMFFGetMoleculeProperties(self.molecule)
        atoms = range(self.molecule.GetNumAtoms())
        self.charges = torch.tensor([self._properties.GetMMFFPartialCharge(i) for i in atoms])
        wells = [self._properties.GetMMFFVdWParams(i, i) for i in atoms]
        self.sigma = torch.tensor([well[0] / 2 ** (1 / 6) for well in wells])
        self.epsilon = torch.tensor([well[1] for well in wells])
        if bonded:
            self._properties.SetMMFFVdWTerm(False)
            self._properties.SetMMFFEleTerm(False)

    def embed(
        self, count: int, *, jitter: float = 0.0, generator: torch.Generator
    ) -> Float[Tensor, "conformers atoms 3"]:
        """Return conformations by distance geometry (ETKDG), with normal noise of ``jitter`` [Angstrom] added.

        Raises:
            TypeError: ``count`` is no integer.
            ValueError: ``count`` is < 1, ``jitter`` < 0, or no conformation was found.
        """
        from rdkit.Chem import rdDistGeom

        check_integer("count", count, 1)
        check_positive("jitter", jitter, zero=True)
        options: Any = rdDistGeom.ETKDGv3()
        options.randomSeed = int(torch.randint(2**31 - 1, (), generator=generator))
        options.numThreads = 1
        embedded = type(self.molecule)(self.molecule)
        found = list(rdDistGeom.EmbedMultipleConfs(embedded, count, options))
        if len(found) < count:
            raise ValueError(f"{self.smiles!r}: {len(found)} of {count} conformations were found")
        x = torch.from_numpy(np.stack([embedded.GetConformer(i).GetPositions() for i in found]))
        return x + jitter * torch.randn(x.shape, generator=generator, dtype=x.dtype)

    def energies(self, positions: Float[Tensor, "conformers atoms 3"]) -> ReferenceEnergies:
        """Return energies and forces of conformations."""
        energies, forces = [], []
        field, _placed = self._field(positions)
        for row in positions.double().flatten(1).tolist():
            energies.append(field.CalcEnergy(row))
            forces.append(field.CalcGrad(row))
        return ReferenceEnergies(positions.new_tensor(energies), -positions.new_tensor(forces).reshape(positions.shape))

    def minimize(
        self, positions: Float[Tensor, "conformers atoms 3"], *, steps: int = 2000
    ) -> Float[Tensor, "conformers atoms 3"]:
        """Return the minimum that each conformation runs into, after at most ``steps`` steps of BFGS.

        Raises:
            TypeError: ``steps`` is no integer.
            ValueError: ``steps`` is < 1, ``positions`` has another shape.
        """
        check_integer("steps", steps, 1)
        found = []
        for row in positions:
            field, _placed = self._field(row[None])
            field.Minimize(maxIts=steps, forceTol=1e-5, energyTol=1e-9)
            found.append(positions.new_tensor(field.Positions()).reshape(row.shape))
        return torch.stack(found)

    def heavy_rmsd(
        self, positions: Float[Tensor, "conformers atoms 3"], onto: Float[Tensor, "conformers atoms 3"]
    ) -> Float[Tensor, "conformers"]:
        """Return how far the atoms other than hydrogen lie apart, root mean square, after each is laid onto the other.

        Raises:
            ValueError: the shapes differ or are not those of the molecule.
        """
        for name, value in (("positions", positions), ("onto", onto)):
            if value.shape != (len(onto), self.molecule.GetNumAtoms(), 3):
                raise ValueError(f"{name} must have shape {(len(onto), self.molecule.GetNumAtoms(), 3)}")
        heavy = [atom.GetAtomicNum() > 1 for atom in self.molecule.GetAtoms()]
        x, y = (v[:, heavy] - v[:, heavy].mean(1, keepdim=True) for v in (positions, onto))
        u, _, v = torch.linalg.svd(x.mT @ y)
        flip = torch.ones_like(x[:, 0])
        flip[:, 2] = torch.linalg.det(u @ v).sign()
        return (x @ (u * flip[:, None]) @ v - y).square().sum(-1).mean(-1).sqrt()

    def _field(self, positions: Tensor) -> tuple[Any, Any]:
        """The field of RDKit at the first of the conformations, and its molecule, which must live as long."""
        from rdkit import Chem
        from rdkit.Geometry import Point3D

        shape = (self.molecule.GetNumAtoms(), 3)
        if check_floating("positions", positions).ndim != 3 or positions.shape[1:] != shape or not len(positions):
            raise ValueError(f"positions must have shape (conformers, {shape[0]}, 3), got {tuple(positions.shape)}")
        placed = Chem.Mol(self.molecule)
        conformer = Chem.Conformer(shape[0])
        for i, point in enumerate(positions[0].tolist()):
            conformer.SetAtomPosition(i, Point3D(*point))
        placed.AddConformer(conformer, assignId=True)
        if self.model == "mmff94":
            field = self._helpers.MMFFGetMoleculeForceField(placed, self._properties, nonBondedThresh=1e4)
        else:
            field = self._helpers.UFFGetMoleculeForceField(placed, vdwThresh=0.0 if self.bonded else 1e4)
        field.Initialize()
        return field, placed
