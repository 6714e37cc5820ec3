"""Published force fields as teachers: gradients, parts, minima, refusals."""

from __future__ import annotations

import pytest
import torch

from pullback.data import ReferenceForceField


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("model", ["mmff94", "uff"])
@pytest.mark.parametrize("bonded", [False, True])
def test_forces_are_minus_the_slope_of_energies(model, bonded: bool, generator: torch.Generator) -> None:
    field = ReferenceForceField("CC=O", model, bonded=bonded)
    x = field.embed(1, jitter=0.05, generator=generator)
    found = field.energies(x)
    step = 1e-5 * torch.eye(x[0].numel(), dtype=x.dtype).view(-1, *x.shape[1:])
    slope = (field.energies(x + step).energies - field.energies(x - step).energies) / 2e-5
    torch.testing.assert_close(-slope.view(x.shape), found.forces, rtol=1e-5, atol=1e-4)


def test_bonded_terms_do_not_see_molecules_fold(generator: torch.Generator) -> None:
    """At a minimum of the whole, what acts across space balances what acts along bonds."""
    for model in ("mmff94", "uff"):
        whole, part = (ReferenceForceField("CCCC", model, bonded=bonded) for bonded in (False, True))
        x = whole.minimize(whole.embed(1, generator=generator))
        assert bool((whole.energies(x).forces.abs() < 0.01).all())
        assert bool((part.energies(x).forces.abs() > 0.1).any())


def test_charges_and_sizes_are_those_of_the_model() -> None:
    field = ReferenceForceField("CC(=O)[O-]")
    assert field.charges.sum().item() == pytest.approx(-1.0, abs=1e-5)
    assert field.charges[2].item() == pytest.approx(field.charges[3].item())
    assert bool(((field.sigma > 1.5) & (field.sigma < 5)).all())
    assert bool((field.epsilon > 0).all())


def test_distances_between_conformations_do_not_see_motions_or_hydrogens(generator: torch.Generator) -> None:
    from rdkit.Chem import rdMolAlign

    field = ReferenceForceField("CC(N)C(=O)O")
    x = field.embed(3, generator=generator)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=x.dtype)).Q
    moved = x @ (turn * torch.linalg.det(turn)) + 3
    assert float(field.heavy_rmsd(moved, x).max()) < 1e-6
    assert float(field.heavy_rmsd(-x, x).min()) > 0.1  # a mirror image is another molecule
    jittered = x + 0.2 * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    placed = []
    for y in (jittered[:1], x[:1]):
        _, molecule = field._field(y)
        placed.append(molecule)
    heavy = [(i, i) for i, atom in enumerate(field.molecule.GetAtoms()) if atom.GetAtomicNum() > 1]
    expected = rdMolAlign.AlignMol(*placed, atomMap=heavy)
    assert float(field.heavy_rmsd(jittered, x)[0]) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="positions must have shape"):
        field.heavy_rmsd(x[:, :3], x)


def test_the_same_generator_gives_the_same_conformations() -> None:
    field = ReferenceForceField("CCCC")
    first, second, other = (field.embed(3, jitter=0.1, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert first.shape == (3, 14, 3)


def test_what_no_model_knows_is_refused(generator: torch.Generator) -> None:
    with pytest.raises(ValueError, match="smiles must be a SMILES string, got 'C1'"):
        ReferenceForceField("C1")
    with pytest.raises(ValueError, match="must be a molecule that mmff94 has parameters for"):
        ReferenceForceField("[Xe]")
    with pytest.raises(ValueError, match="model must be"):
        ReferenceForceField("C", "amber")  # type: ignore[arg-type]
    field = ReferenceForceField("C")
    with pytest.raises(ValueError, match=r"positions must have shape \(conformers, 5, 3\)"):
        field.energies(torch.zeros(5, 3))
    with pytest.raises(ValueError, match="count must be an integer >= 1"):
        field.embed(0, generator=generator)
    with pytest.raises(ValueError, match="jitter must be >= 0"):
        field.embed(1, jitter=-1.0, generator=generator)
