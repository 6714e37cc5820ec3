"""Force fields of real molecules: terms against RDKit, invariances, charges, minima, the file for OpenMM read back."""

from __future__ import annotations

import itertools
import math
from xml.etree import ElementTree

import pytest
import torch
from rdkit import Chem
from torch import Tensor

from pullback.dynamics import (
    ATOM_FEATURES,
    ForceFieldNetwork,
    GraphSage,
    Harmonic,
    JanossyPooling,
    MoleculeParameters,
    Topology,
    bonded_energy,
    equilibrate_charges,
    export_parameters,
    force_matching_loss,
    join_topologies,
    minimize_geometry,
    molecular_graph,
    molecular_topology,
    nonbonded_energy,
    pair_distances,
)

SMILES = ["CCO", "C1CC1", "C1CCC1C", "c1ccccc1C#N", "CC(=O)NC", "C12CC1C2", "CC#CC", "C[N+](=O)[O-]", "O", "[Na+]"]


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _molecule(smiles: str) -> Chem.Mol:
    return Chem.AddHs(Chem.MolFromSmiles(smiles))


def _places(count: int, generator: torch.Generator, conformers: int = 2) -> Tensor:
    return 2 * torch.randn(conformers, count, 3, generator=generator, dtype=torch.float64)


def _network(generator: torch.Generator) -> ForceFieldNetwork:
    network = ForceFieldNetwork(len(ATOM_FEATURES), 16, 2, generator=generator).double()
    for head in network.heads.values():
        torch.nn.init.normal_(head.last.bias, generator=generator)
    return network


@pytest.mark.parametrize("smiles", SMILES)
def test_terms_are_the_substructures_that_rdkit_finds(smiles: str) -> None:
    molecule = _molecule(smiles)
    found = molecular_graph(molecule)

    def matches(pattern: str) -> set[tuple[int, ...]]:
        hits = molecule.GetSubstructMatches(Chem.MolFromSmarts(pattern), uniquify=False, maxMatches=100_000)
        return {min(hit, hit[::-1]) for hit in hits}

    for name, pattern in (("bonds", "*~*"), ("angles", "*~*~*"), ("propers", "*~*~*~*")):
        rows = [min(tuple(row), tuple(row[::-1])) for row in getattr(found, name).tolist()]
        assert len(rows) == len(set(rows))
        assert set(rows) == matches(pattern), name
    centres = {hit[0] for hit in molecule.GetSubstructMatches(Chem.MolFromSmarts("[X3]"))}
    assert {row[0] for row in found.impropers.tolist()} == centres
    apart = torch.from_numpy(Chem.GetDistanceMatrix(molecule))
    pairs = torch.combinations(torch.arange(len(apart)))
    for name, low, high in (("exclusions", 1, 2), ("pairs14", 3, 3), ("pairs15", 4, 1000)):
        within = [(low <= apart[a, b] <= high).item() for a, b in pairs.tolist()]
        assert torch.equal(getattr(found, name), pairs[torch.tensor(within, dtype=torch.bool)]), name
    straight = matches("*~[$([CX2]#*)]~*~*") | matches("*~*~[$([CX2]#*)]~*")
    rows = [min(tuple(row), tuple(row[::-1])) for row in found.propers[found.linear].tolist()]
    assert set(rows) == straight


def test_features_say_what_the_graph_says_and_resonance_keeps_equal_atoms_equal() -> None:
    found = molecular_graph("Cc1ccccc1")
    names = [{name for name, value in zip(ATOM_FEATURES, row, strict=True) if value} for row in found.features]
    assert names[0] == {"element 6", "4 neighbours", "sp3"}
    assert names[1] == {"element 6", "3 neighbours", "aromatic", "sp2", "ring of 6"}
    nitro = molecular_graph("C[N+](=O)[O-]")
    assert torch.equal(nitro.features[2], nitro.features[3])
    assert molecular_graph("C[NH3+]").charge.tolist() == [1.0]


def test_molecules_that_have_no_force_field_are_refused(without_shape_checks: None) -> None:
    with pytest.raises(ValueError, match="molecule must be a SMILES string, got 'C1'"):
        molecular_graph("C1")
    with pytest.raises(ValueError, match="all its hydrogens, 4 are implied"):
        molecular_graph(Chem.MolFromSmiles("C"))
    with pytest.raises(ValueError, match="molecule must be in one piece, got 2"):
        molecular_graph("[Na+].[Cl-]")
    with pytest.raises(TypeError, match="molecule must be one of RDKit or a SMILES string, got int"):
        molecular_graph(3)
    two = torch.tensor([6, 6])
    for bonds, message in (
        ([[0, 2]], r"bonds must be in 0\.\.1, got \(0, 2\)"),
        ([[0, 0]], r"bonds must join two atoms, each pair once, got \(0, 0\)"),
        ([[0, 1], [1, 0]], r"got \(1, 0\) twice"),
    ):
        with pytest.raises(ValueError, match=message):
            molecular_topology(two, torch.tensor(bonds))
    with pytest.raises(ValueError, match="got 2 pieces"):
        molecular_topology(two, torch.zeros(0, 2, dtype=torch.long))
    with pytest.raises(TypeError, match="elements must hold integers"):
        molecular_topology(two.float(), torch.tensor([[0, 1]]))
    with pytest.raises(ValueError, match="elements must be >= 1"):
        molecular_topology(torch.tensor([0, 6]), torch.tensor([[0, 1]]))
    with pytest.raises(ValueError, match="features must have a row for each of the 2 atoms"):
        molecular_topology(two, torch.tensor([[0, 1]]), features=torch.zeros(3, 1))
    with pytest.raises(ValueError, match="topologies must hold one at least"):
        join_topologies([])
    with pytest.raises(ValueError, match="equally many features"):
        join_topologies([molecular_graph("C"), molecular_topology(two, torch.tensor([[0, 1]]))])


def test_without_rdkit_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "rdkit", None)
    with pytest.raises(ImportError, match=r"pip install 'pullback\[chem\]'"):
        molecular_graph("C")


def test_joined_molecules_are_each_by_itself(generator: torch.Generator) -> None:
    parts = [molecular_graph(s) for s in ("CCO", "O", "CC(=O)[O-]")]
    together = join_topologies(parts)
    x = _places(len(together.elements), generator)
    network = _network(generator)
    found = network(together)
    q = found.charges
    depth, size = torch.rand(2, len(q), generator=generator, dtype=torch.float64) + 0.2
    energy = bonded_energy(x, together, found).total + nonbonded_energy(x, q, depth, size, together)
    start = 0
    for n, part in enumerate(parts):
        own = slice(start, start := start + len(part.elements))
        alone = network(part)
        single = bonded_energy(x[:, own], part, alone).total
        single = single + nonbonded_energy(x[:, own], alone.charges, depth[own], size[own], part)
        torch.testing.assert_close(energy[:, n], single[:, 0])
        torch.testing.assert_close(q[own].sum(), part.charge[0].double(), atol=1e-12, rtol=0)


def test_numbering_turning_and_conformation_change_nothing(generator: torch.Generator) -> None:
    molecule = _molecule("CC(=O)Nc1ccccc1")
    order = torch.randperm(molecule.GetNumAtoms(), generator=generator)
    renumbered = Chem.RenumberAtoms(molecule, order.tolist())
    first, second = molecular_graph(molecule), molecular_graph(renumbered)
    network = _network(generator)
    x = _places(len(order), generator)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64)).Q
    here = bonded_energy(x, first, network(first))
    there = bonded_energy(x[:, order] @ (turn * torch.linalg.det(turn)).T + 5, second, network(second))
    for a, b in zip(here, there, strict=True):
        torch.testing.assert_close(a, b)
    assert all(bool((term != 0).all()) for term in here)
    torch.testing.assert_close(network(second).charges, network(first).charges[order])


def test_sage_is_a_mean_over_neighbours(generator: torch.Generator) -> None:
    edges = torch.tensor([[0, 1], [1, 2], [2, 0], [3, 1]])
    sage = GraphSage(3, 4, 2, generator=generator).double()
    x = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    h = x
    for own, around in zip(sage.own, sage.around, strict=True):
        rows = []
        for v in range(5):
            near = [h[b if a == v else a] for a, b in edges.tolist() if v in (a, b)]
            mean = torch.stack(near).mean(0) if near else torch.zeros_like(h[0])
            rows.append(torch.nn.functional.silu(own(h[v]) + around(mean)))
        h = torch.stack(rows)
    torch.testing.assert_close(sage(x, edges), h)


@pytest.mark.parametrize(
    ("term", "same", "other"),
    [
        ("bond", [(0, 1), (1, 0)], None),
        ("angle", [(0, 1, 2), (2, 1, 0)], (1, 0, 2)),
        ("proper", [(0, 1, 2, 3), (3, 2, 1, 0)], (0, 2, 1, 3)),
        ("improper", [(0, *order) for order in itertools.permutations((1, 2, 3))], (1, 0, 2, 3)),
    ],
)
def test_pooling_sees_terms_and_no_orders(term, same, other, generator: torch.Generator) -> None:
    h = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    pool = JanossyPooling(3, 6, 2, term, layers=3, generator=generator).double()
    values = pool(h, torch.tensor(same))
    torch.testing.assert_close(values, values[:1].expand_as(values))
    by_hand = pool.last.bias * 1.0
    weights = pool.first.weight.unflatten(0, (len(same[0]), 6))
    for order in same:
        x = torch.nn.functional.silu(pool.bias + sum(w @ h[atom] for w, atom in zip(weights, order, strict=True)))
        for layer in pool.inner:
            x = torch.nn.functional.silu(layer(x))
        by_hand = by_hand + pool.last.weight @ x
    torch.testing.assert_close(values[0], by_hand)
    assert other is None or not torch.allclose(pool(h, torch.tensor([other])), values[:1])


def test_an_untrained_network_starts_at_the_springs_it_is_given() -> None:
    ethane = molecular_graph("CC")
    for springs in ("mixture", "direct"):
        network = ForceFieldNetwork(len(ATOM_FEATURES), 4, 1, springs=springs, bond=(250.0, 1.4), angle=(60.0, 1.9))
        for head in network.heads.values():
            torch.nn.init.zeros_(head.last.weight)
        found = network(ethane)
        for spring, (stiffness, rest) in ((found.bonds, (250.0, 1.4)), (found.angles, (60.0, 1.9))):
            torch.testing.assert_close(spring.stiffness, torch.full_like(spring.stiffness, stiffness))
            torch.testing.assert_close(spring.rest, torch.full_like(spring.rest, rest))
    with pytest.raises(ValueError, match=r"bond\[1\] must lie between the centres"):
        ForceFieldNetwork(3, 4, 1, bond=(250.0, 0.5))


def test_bonds_with_a_linear_end_have_no_torsion(generator: torch.Generator) -> None:
    butyne = molecular_graph("CC#CC")
    found = _network(generator)(butyne)
    assert bool(butyne.linear.any())
    assert bool((found.propers[butyne.linear] == 0).all())
    assert bool((_network(generator)(molecular_graph("CCC")).propers != 0).all())


def test_charges_of_many_molecules_are_those_of_each(generator: torch.Generator, without_shape_checks: None) -> None:
    e, s = torch.randn(2, 3, 7, generator=generator, dtype=torch.float64)
    molecule = torch.tensor([0, 1, 0, 1, 1, 2, 0])
    total = torch.tensor([0.0, 1.0, -2.0], dtype=torch.float64)
    q = equilibrate_charges(e, s.exp(), total, molecule=molecule)
    for n in range(3):
        own = molecule == n
        torch.testing.assert_close(q[:, own], equilibrate_charges(e[:, own], s[:, own].exp(), float(total[n])))
    for wrong, message in (
        ({"total": total, "molecule": molecule + 1}, r"molecule must be in 0\.\.2, got 1\.\.3"),
        ({"total": total, "molecule": molecule[:3]}, "molecule must have shape"),
        ({"total": total, "molecule": molecule.clamp(max=1)}, "each of the 3 molecules an atom"),
        ({"total": 0.0, "molecule": molecule}, "total must be a tensor of shape"),
    ):
        with pytest.raises(ValueError, match=message):
            equilibrate_charges(e, s.exp(), **wrong)
    with pytest.raises(TypeError, match="molecule must hold integers"):
        equilibrate_charges(e, s.exp(), total, molecule=molecule.double())


def test_parameters_may_be_a_batch_of_their_own(generator: torch.Generator) -> None:
    """Two stiffnesses of bonds, one of all else: the energies are those of either."""
    ethanol = molecular_graph("CCO")
    one, x = _network(generator)(ethanol), _places(len(ethanol.elements), generator)[0]
    both = torch.stack([one.bonds.stiffness, 2 * one.bonds.stiffness])
    found = bonded_energy(x, ethanol, one._replace(bonds=one.bonds._replace(stiffness=both)))
    for n in range(2):
        single = bonded_energy(x, ethanol, one._replace(bonds=one.bonds._replace(stiffness=both[n])))
        for a, b in zip(found, single, strict=True):
            torch.testing.assert_close(a[n], b)
    three = one.angles._replace(rest=one.angles.rest.expand(3, -1))
    with pytest.raises(ValueError, match=r"parameters\.angles\.rest"):
        bonded_energy(x, ethanol, one._replace(bonds=one.bonds._replace(stiffness=both), angles=three))


def test_forces_are_finite_where_a_torsion_lies_on_a_line() -> None:
    chain = molecular_topology(torch.ones(4, dtype=torch.long), torch.tensor([[0, 1], [1, 2], [2, 3]]))
    one = torch.ones(3)
    parameters = MoleculeParameters(
        Harmonic(one, one), Harmonic(one[:2], one[:2]), torch.ones(1, 6), torch.zeros(0, 2), torch.zeros(4)
    )
    x = torch.tensor([[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [3, 0, 0]], requires_grad=True)
    (slope,) = torch.autograd.grad(bonded_energy(x, chain, parameters).total.sum(), x)
    assert bool(torch.isfinite(slope).all())


def test_atoms_in_one_place_have_a_finite_energy_and_no_force() -> None:
    chain = molecular_topology(torch.ones(4, dtype=torch.long), torch.tensor([[0, 1], [1, 2], [2, 3]]))
    for size in (torch.ones(4), torch.zeros(4)):
        x = torch.zeros(4, 3, requires_grad=True)
        energy = nonbonded_energy(x, torch.ones(4), torch.ones(4), size, chain)
        (slope,) = torch.autograd.grad(energy.sum(), x)
        assert 1e9 < float(energy.detach()) < math.inf
        assert bool((slope == 0).all())


def test_forces_of_a_model_are_matched_when_it_is_the_reference(generator: torch.Generator) -> None:
    """Fitting springs to the energies and forces of others finds them, up to what no datum says."""
    water = molecular_graph("O")
    truth = torch.tensor([450.0, 0.96, 55.0, 1.82], dtype=torch.float64)

    def energy(numbers: Tensor):
        k, r, bend, angle = numbers
        springs = Harmonic(k.expand(2), r.expand(2)), Harmonic(bend.expand(1), angle.expand(1))
        none = numbers.new_zeros
        found = MoleculeParameters(*springs, none(0, 6), none(0, 2), none(3))
        return lambda x: bonded_energy(x, water, found).total + 7.0

    x = torch.tensor([[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], dtype=torch.float64)
    x = x + 0.05 * torch.randn(6, 3, 3, generator=generator, dtype=torch.float64)
    x.requires_grad_()
    energies = energy(truth)(x)
    (slopes,) = torch.autograd.grad(energies.sum(), x)
    numbers = torch.tensor([400.0, 1.0, 50.0, 1.7], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([numbers], max_iter=200, line_search_fn="strong_wolfe", tolerance_change=1e-15)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = force_matching_loss(energy(numbers), x.detach(), energies.detach() - 3, -slopes, weight=0.1).total
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(numbers.detach(), truth, rtol=1e-4, atol=1e-4)


def test_minima_of_a_batch_and_their_derivative(generator: torch.Generator, without_shape_checks: None) -> None:
    water = molecular_graph("O")

    def energy(x: Tensor, rest: Tensor) -> Tensor:
        k = torch.full((2,), 450.0, dtype=x.dtype)
        springs = Harmonic(k, rest), Harmonic(k[:1] / 9, torch.full((1,), 1.8, dtype=x.dtype))
        none = x.new_zeros
        return bonded_energy(x, water, MoleculeParameters(*springs, none(0, 6), none(0, 2), none(3))).total[..., 0]

    x = torch.tensor([[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], dtype=torch.float64)
    x = x + 0.1 * torch.randn(4, 3, 3, generator=generator, dtype=torch.float64)
    rest = torch.tensor([0.9, 1.1], dtype=torch.float64, requires_grad=True)
    found = minimize_geometry(energy, x, rest, tolerance=1e-6)
    assert bool(found.converged.all())
    assert float(found.force.max()) <= 1e-6
    lengths = pair_distances(found.positions, water.bonds)
    torch.testing.assert_close(lengths.detach(), rest.detach().expand(4, 2), atol=1e-6, rtol=0)
    (slope,) = torch.autograd.grad(lengths[0, 0], rest)
    torch.testing.assert_close(slope, torch.tensor([1.0, 0.0], dtype=torch.float64), atol=1e-4, rtol=0)
    short = minimize_geometry(energy, x, rest, steps=1, tolerance=1e-6)
    assert not bool(short.converged.any())
    with pytest.raises(ValueError, match="positions must have shape"):
        minimize_geometry(energy, x[..., :2], rest)


def _torsions(force: ElementTree.Element, tag: str):
    for term in force.findall(tag):
        atoms = [int(term.get(f"type{n}")[1:]) for n in range(1, 5)]
        for m in range(1, 7):
            if term.get(f"k{m}") is not None:
                numbers = [float(term.get(f"{key}{m}")) for key in ("periodicity", "phase", "k")]
                yield atoms, numbers


def test_the_exported_file_has_the_energy_of_the_force_field(generator: torch.Generator) -> None:
    """Read back with OpenMM's formulas and units, and its rule for impropers of the ordering "smirnoff"."""
    topology = molecular_graph("CC(=O)N")
    parameters = _network(generator)(topology)
    depth, size = torch.rand(2, 9, generator=generator, dtype=torch.float64) + 0.5
    text = export_parameters(topology, parameters, epsilon=depth, sigma=size, scale14=(0.5, 0.8))
    root = ElementTree.fromstring(text)
    x = _places(9, generator, 2)
    nm = x / 10

    def lengths(a: int, b: int) -> Tensor:
        return (nm[:, a] - nm[:, b]).norm(dim=-1)

    def turned(i: int, j: int, k: int, l: int) -> Tensor:  # noqa: E741
        first, axis, last = nm[:, j] - nm[:, i], nm[:, k] - nm[:, j], nm[:, l] - nm[:, k]
        near, far = torch.linalg.cross(first, axis), torch.linalg.cross(axis, last)
        return ((near * far).sum(-1) / near.norm(dim=-1) / far.norm(dim=-1)).clamp(-1, 1).acos()

    bonded = torch.zeros(2, dtype=torch.float64)
    for bond in root.find("HarmonicBondForce"):
        a, b = (int(bond.get(f"type{n}")[1:]) for n in (1, 2))
        bonded += float(bond.get("k")) / 2 * (lengths(a, b) - float(bond.get("length"))) ** 2
    for angle in root.find("HarmonicAngleForce"):
        i, j, k = (int(angle.get(f"type{n}")[1:]) for n in (1, 2, 3))
        u, v = nm[:, i] - nm[:, j], nm[:, k] - nm[:, j]
        theta = ((u * v).sum(-1) / u.norm(dim=-1) / v.norm(dim=-1)).acos()
        bonded += float(angle.get("k")) / 2 * (theta - float(angle.get("angle"))) ** 2
    torsion = root.find("PeriodicTorsionForce")
    assert torsion.get("ordering") == "smirnoff"
    for (i, j, k, l), (period, phase, height) in _torsions(torsion, "Proper"):  # noqa: E741
        bonded += height * (1 + torch.cos(period * turned(i, j, k, l) - phase))
    for (c, a, b, d), (period, phase, height) in _torsions(torsion, "Improper"):
        for order in ((c, a, b, d), (c, b, d, a), (c, d, a, b)):
            bonded += height * (1 + torch.cos(period * turned(*order) - phase))
    ours = 4.184 * bonded_energy(x, topology, parameters).total[:, 0]
    torch.testing.assert_close(bonded[0] - bonded[1], ours[0] - ours[1], rtol=1e-6, atol=1e-5)

    force = root.find("NonbondedForce")
    charge, sigma, epsilon = (
        [float(atom.get(key)) for atom in force.findall("Atom")] for key in ("charge", "sigma", "epsilon")
    )
    pairs = torch.zeros(2, dtype=torch.float64)
    for listed, lj, electric in (
        (topology.pairs14, float(force.get("lj14scale")), float(force.get("coulomb14scale"))),
        (topology.pairs15, 1.0, 1.0),
    ):
        for a, b in listed.tolist():
            sixth = ((sigma[a] + sigma[b]) / 2 / lengths(a, b)) ** 6
            pairs += lj * 4 * math.sqrt(epsilon[a] * epsilon[b]) * (sixth**2 - sixth)
            pairs += electric * 138.93546 * charge[a] * charge[b] / lengths(a, b)
    expected = 4.184 * nonbonded_energy(x, parameters.charges, depth, size, topology, scale14=(0.5, 0.8))[:, 0]
    torch.testing.assert_close(pairs, expected, rtol=1e-5, atol=1e-5)
    assert [atom.get("type") for atom in root.find("Residues")[0].findall("Atom")] == [f"A{i}" for i in range(9)]


def test_what_cannot_be_exported_is_refused(generator: torch.Generator) -> None:
    topology = molecular_graph("C")
    parameters = _network(generator)(topology)
    one = torch.ones(5)
    with pytest.raises(ValueError, match="topology must be that of one molecule, got 2"):
        export_parameters(join_topologies([topology] * 2), parameters, epsilon=one, sigma=one)
    with pytest.raises(ValueError, match="names must be 5 different ones, got 1 different of 5"):
        export_parameters(topology, parameters, epsilon=one, sigma=one, names=["C"] * 5)
    with pytest.raises(ValueError, match="must be finite"):
        export_parameters(topology, parameters, epsilon=one * math.nan, sigma=one)


def test_topologies_move_as_tuples_of_tensors() -> None:
    moved = Topology(*(t.to("cpu") for t in molecular_graph("C")))
    assert len(moved.bonds) == 4
