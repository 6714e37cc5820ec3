"""A molecular mechanics force field whose parameters a network reads from the graph of a molecule.

Atom types are replaced by embeddings: GraphSAGE sees elements, rings and hybridisation, never a conformation; pooling
over the orders that name a term gives its springs, torsions and impropers, and charges come by equilibration. From
graph to energy all is one differentiable map, trained on energies and forces by a second derivative; what it gives is
an ordinary force field (Wang et al. 2022; Takaba et al., espaloma-0.3, 2024).

The molecules are real (FreeSolv, 2 to 12 heavy atoms). Their energies are a stand-in for quantum chemistry: the bonded
terms of MMFF94, whose stretches are not harmonic and coupled with angles, which no arm can copy. Smaller: 3 layers of
64, not 512, no dropout, 8 conformations a molecule. Lennard-Jones keeps the sizes of MMFF94. All arms start at the same
springs; from there mixtures gain a tenth on springs read directly, and bonds at minima come no nearer than the table's.
Impropers pool over all six orders of their neighbours: with the paper's three, parameters depend on how atoms are
numbered. Energies are in kcal/mol, lengths in Angstrom (the paper's centres of springs are in bohr).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import torch
from rdkit import Chem
from torch import Tensor, nn
from torch.func import grad

from pullback import data, dynamics
from pullback.dynamics import ForceFieldNetwork, Harmonic, MoleculeParameters, Topology, bonded_energy
from pullback.lab import Arm, Lab, above, at_least, system

WIDTHS = {"bonds": 2, "angles": 2, "propers": 6, "impropers": 2, "atoms": 2}
FORCE, ENERGY, CHARGE = "force error", "energy error", "charge error"
LENGTH, ANGLE = "bonds at minima", "angles at minima"
UNITS = {FORCE: "kcal/mol/Å", ENERGY: "kcal/mol", CHARGE: "e", LENGTH: "Å", ANGLE: "°"}
WEIGHTS = (0.1, 100.0, 0.1)  # of forces [Å^2], charges [(kcal/mol/e)^2], amplitudes


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    train: Annotated[int, at_least(2)] = 120
    """Molecules."""
    test: Annotated[int, at_least(1)] = 30
    """Others, unseen."""
    conformers: Annotated[int, at_least(2)] = 8
    """Conformations a molecule."""
    jitter: Annotated[float, above(0)] = 0.05
    """Normal noise on every coordinate [Å]."""
    steps: Annotated[int, at_least(1)] = 220
    """Adam steps of each arm."""
    batch: Annotated[int, at_least(1)] = 30
    """Molecules a step, in four of their conformations."""
    hidden: Annotated[int, at_least(1)] = 64
    """Width of the network."""
    lr: Annotated[float, above(0)] = 5e-3
    """Highest step size of the networks."""
    table_lr: Annotated[float, above(0)] = 5e-2
    """Highest step size of the table; the best of 0.05, 0.1 and 0.2."""
    relax: Annotated[int, at_least(1)] = 200
    """Steps that find minima."""


class Example(NamedTuple):
    """A molecule and what the teacher says of it."""

    field: data.ReferenceForceField
    graph: Topology
    x: Tensor
    energies: Tensor
    forces: Tensor


class Batch(NamedTuple):
    """Some molecules in some of their conformations."""

    graph: Topology
    x: Tensor
    energies: Tensor
    forces: Tensor
    charges: Tensor

    @classmethod
    def of(cls, examples: list[Example], shown: Tensor) -> Batch:
        """Join the molecules: their atoms one after another."""
        x, forces = (torch.cat(parts, 1)[shown] for parts in ([e.x for e in examples], [e.forces for e in examples]))
        energies = torch.stack([e.energies for e in examples], 1)[shown]
        graph = dynamics.join_topologies([e.graph for e in examples])
        return cls(graph, x, energies, forces, torch.cat([e.field.charges for e in examples]))

    def loss(self, p: MoleculeParameters) -> dynamics.ForceMatchingLoss:
        """Of energies and forces."""
        told = (self.x, self.energies, self.forces)
        return dynamics.force_matching_loss(lambda x: bonded_energy(x, self.graph, p).total, *told, weight=WEIGHTS[0])


class Table(nn.Module):
    """The legacy way: parameters looked up by the types of a term's atoms: element, hybridisation, ring or not."""

    def __init__(self, graphs: list[Topology]) -> None:
        super().__init__()
        found = {name: dict.fromkeys(key for graph in graphs for key in self.keys(graph, name)) for name in WIDTHS}
        self.rows = {name: {key: n for n, key in enumerate(keys)} for name, keys in found.items()}
        self.values = nn.ParameterDict({n: nn.Parameter(torch.zeros(len(self.rows[n]), w)) for n, w in WIDTHS.items()})
        self.start = ForceFieldNetwork(1, 1, 1).requires_grad_(False)  # its springs for outputs of 0

    @staticmethod
    def keys(graph: Topology, name: str) -> list[Any]:
        """The types of the atoms of each term, in an order that does not depend on how it is listed."""
        flags = [[n for n, f in enumerate(dynamics.ATOM_FEATURES) if f[:4] == kind] for kind in ("sp2", "sp3", "ring")]
        kinds = [graph.elements, *(graph.features[:, columns].sum(1) > 0 for columns in flags)]
        types = [tuple(row) for row in torch.stack([k.long() for k in kinds], 1).tolist()]
        rows = [[i] for i in range(len(types))] if name == "atoms" else getattr(graph, name).tolist()
        terms = [tuple(types[i] for i in row) for row in rows]
        return [(t[0], *sorted(t[1:])) if name == "impropers" else min(t, t[::-1]) for t in terms]

    def shares(self, graph: Topology) -> tuple[dict[str, Tensor], int]:
        """Which rows each term takes; unseen ones the mean of those of its elements, or of all; and their number."""
        found, unseen = {}, 0
        for name, rows in self.rows.items():
            keys = self.keys(graph, name)
            found[name] = torch.zeros(len(keys), len(rows))
            for n, key in enumerate(keys):
                like = [r for k, r in rows.items() if [a[0] for a in k] == [a[0] for a in key]] or [*rows.values()]
                chosen = [rows[key]] if key in rows else like
                unseen += key not in rows
                found[name][n, chosen] = 1 / len(chosen)
        return found, unseen

    def forward(self, graph: Topology, shares: list[dict[str, Tensor]]) -> MoleculeParameters:
        """Parameters of all terms of the molecules whose shares are given."""
        read = {name: torch.cat([s[name] for s in shares]) @ value for name, value in self.values.items()}
        e, s = read["atoms"].unbind(-1)
        bonds = dynamics.mixture_to_harmonic(read["bonds"] + self.start.bond_start, self.start.bond_centres)
        angles = dynamics.mixture_to_harmonic(read["angles"] + self.start.angle_start, self.start.angle_centres)
        q = dynamics.equilibrate_charges(e, s.exp(), graph.charge, molecule=graph.molecule)
        waves = read["propers"].masked_fill(graph.linear[:, None], 0.0)
        return MoleculeParameters(bonds, angles, waves, read["impropers"], q)


@system(
    "espaloma",
    family="dynamics",
    title="Machine-learned molecular mechanics force field for the simulation of protein-ligand systems and beyond",
    paper="Takaba, Friedman, Cavender, Behara, Pulido, Henry, ..., Chodera, Wang, Chem. Sci. 2024, arXiv 2307.07085",
    config=Config,
    smoke={"train": 3, "test": 1, "conformers": 2, "steps": 2, "hidden": 8, "relax": 5},
    full={"train": 400, "test": 100, "conformers": 50, "steps": 10_000, "batch": 100, "hidden": 512, "lr": 1e-3},
    data=("hydration",),
    blocks=(
        "dynamics.molecular_graph",
        "dynamics.ForceFieldNetwork",
        "dynamics.bonded_energy",
        "dynamics.force_matching_loss",
        "dynamics.minimize_geometry",
    ),
)
def run(lab: Lab, config: Config) -> None:
    """Train on molecules, judge forces, energies and minima on others, against a table of types and UFF."""
    examples = teach(lab, config)
    train, test = examples[: config.train], examples[config.train :]
    lab.data("FreeSolv: real molecules", origin="real")
    lab.data("energies, forces and charges of MMFF94 in place of quantum chemistry", origin="stand-in")
    ours = lab.arm("graph network")
    direct, table, shipped = (lab.arm(name, baseline=True) for name in ("direct springs", "table of types", "UFF"))
    unseen = Batch.of(test, torch.arange(config.conformers))
    forces, fields = {}, {}
    for arm in (direct, table, ours):
        with arm.weights():
            springs: Any = "direct" if arm is direct else "mixture"
            network = ForceFieldNetwork(len(dynamics.ATOM_FEATURES), config.hidden, 3, springs=springs)
        model = Table([e.graph for e in train]) if arm is table else network
        shares = [model.shares(e.graph) for e in examples] if isinstance(model, Table) else []
        fit(arm, lab, config, model, train, [share for share, _ in shares])
        with torch.no_grad():
            p = model(unseen.graph, *([[s for s, _ in shares[config.train :]]] if shares else []))
        fields[arm], loss, gap = p, unseen.loss(p), p.charges - unseen.charges
        for name, error in {FORCE: loss.forces, ENERGY: loss.energy, CHARGE: gap.square().mean()}.items():
            arm.metric(name, error.sqrt(), better="lower", unit=UNITS[name])
        arm.metric("final loss", sum(arm.series("loss")[-20:]) / len(arm.series("loss")[-20:]), better="lower")
        forces[arm] = -grad(lambda x, p=p: bonded_energy(x, unseen.graph, p).total.sum())(unseen.x)
        if shares:
            terms = sum(len(s) for found, _ in shares[config.train :] for s in found.values())
            table.metric("terms of unseen types", sum(n for _, n in shares) / terms)
    said = [data.ReferenceForceField(e.field.smiles, "uff", bonded=True).energies(e.x) for e in test]
    forces[shipped] = torch.cat([s.forces for s in said], 1)
    off = torch.stack([s.energies for s in said], 1) - unseen.energies
    for name, error in ((FORCE, forces[shipped] - unseen.forces), (ENERGY, off - off.mean(0))):
        shipped.metric(name, error.square().mean().sqrt(), better="lower", unit=UNITS[name])
    gaps = relax(config, test, unseen.graph, {ours: fields[ours], table: fields[table]}, shipped)
    statement = "unseen molecules: force error at most 0.85 of the table's, energy error at most the table's"
    lab.claim(statement, ours[FORCE] <= 0.85 * table[FORCE], ours[ENERGY] <= table[ENERGY])
    lab.claim("unseen molecules: energy error at most half of UFF's", ours[ENERGY] <= 0.5 * shipped[ENERGY])
    for name in (LENGTH, ANGLE):
        lab.claim(f"{name}, unseen molecules: error at most 0.85 of the table's", ours[name] <= 0.85 * table[name])
    statement = "springs as mixtures train to at most 0.8 of the loss of springs read directly, from the same start"
    lab.claim(statement, ours["final loss"] <= 0.8 * direct["final loss"])
    exact(lab, network, test)

    figure, axes = lab.subplots(1, 3, figsize=(13, 4))
    for axis, arm in zip(axes, (ours, table), strict=False):
        axis.plot(unseen.forces.flatten()[::3], forces[arm].flatten()[::3], ".", ms=2, color=arm.colour)
        axis.plot([-250, 250], [-250, 250], color="black", lw=0.8)
        axis.set(xlim=(-250, 250), ylim=(-250, 250), aspect="equal", title=f"{arm.name}, unseen molecules")
        axis.set(xlabel=f"force of MMFF94 [{UNITS[FORCE]}]", ylabel="force found")
    for arm, gap in gaps.items():
        sizes = gap.flatten().abs().sort().values.clamp(min=1e-2)
        axes[2].plot(sizes, torch.linspace(0, 1, len(sizes)), color=arm.colour, label=arm.name)
    axes[2].set(xscale="log", title="angles at minima", xlabel="off those of MMFF94 [°]", ylabel="share less off")
    axes[2].legend()
    lab.figure("forces", figure, "Unseen molecules: every third component of forces; errors of angles at minima.")
    lab.curves("loss")


def teach(lab: Lab, config: Config) -> list[Example]:
    """Draw molecules and their conformations, and ask the teacher."""
    draws, found = lab.fork("molecules"), []
    small = [s for s in data.hydration().smiles if 2 <= Chem.MolFromSmiles(s).GetNumHeavyAtoms() <= 12]
    for i in torch.randperm(len(small), generator=draws)[: config.train + config.test].tolist():
        field = data.ReferenceForceField(small[i], bonded=True)
        x = field.embed(config.conformers, jitter=config.jitter, generator=draws).float()
        found.append(Example(field, dynamics.molecular_graph(field.molecule), x, *field.energies(x)))
    return found


def fit(arm: Arm, lab: Lab, config: Config, model: nn.Module, train: list[Example], shares: list[Any]) -> None:
    """Match energies, forces and charges; amplitudes of torsions are kept small."""
    lr, draws = config.table_lr if shares else config.lr, lab.fork("batches")
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=config.steps)
    for _ in arm.steps(config.steps, model, optimizer, schedule, draws):
        which = torch.randperm(len(train), generator=draws)[: config.batch].tolist()
        batch = Batch.of([train[i] for i in which], torch.randperm(config.conformers, generator=draws)[:4])
        p = model(batch.graph, *([[shares[i] for i in which]] if shares else []))
        waves = torch.cat([p.propers.flatten(), p.impropers.flatten()]).square().mean()
        charges = (p.charges - batch.charges).square().mean()
        arm.descend(batch.loss(p).total + WEIGHTS[1] * charges + WEIGHTS[2] * waves, optimizer, clip=100)
        schedule.step()


def relax(config: Config, test: list[Example], graph: Topology, fields: dict[Arm, Any], uff: Arm) -> dict[Arm, Tensor]:
    """Relax with all terms from the minima of MMFF94: by how much that changes angles [°]."""
    true = [data.ReferenceForceField(e.field.smiles).minimize(e.x[:1].double()) for e in test]
    there = [data.ReferenceForceField(e.field.smiles, "uff").minimize(x) for e, x in zip(test, true, strict=True)]
    start, minima, gaps = torch.cat(true, 1), {uff: torch.cat(there, 1)}, {}
    depth, width = (torch.cat([getattr(e.field, name).double() for e in test]) for name in ("epsilon", "sigma"))

    def energy(x: Tensor, p: MoleculeParameters) -> Tensor:
        across = dynamics.nonbonded_energy(x, p.charges, depth, width, graph, scale14=(1.0, 0.75))  # of MMFF94
        return (bonded_energy(x, graph, p).total + across).sum(-1)

    for arm, p in fields.items():
        v = [value.double() for value in (*p.bonds, *p.angles, *p[2:])]
        wide = MoleculeParameters(Harmonic(*v[:2]), Harmonic(*v[2:4]), *v[4:])
        minima[arm] = dynamics.minimize_geometry(energy, start, wide, steps=config.relax, tolerance=0.5).positions
    for arm, x in minima.items():
        lengths = dynamics.pair_distances(x, graph.bonds) - dynamics.pair_distances(start, graph.bonds)
        gaps[arm] = (dynamics.bond_angles(x, graph.angles) - dynamics.bond_angles(start, graph.angles)).rad2deg()
        for name, gap in ((LENGTH, lengths), (ANGLE, gaps[arm])):
            arm.metric(name, gap.square().mean().sqrt(), better="lower", unit=UNITS[name])
    return gaps


def exact(lab: Lab, network: nn.Module, test: list[Example]) -> None:
    """What holds for any weights: lists of terms, charges, invariances, forces."""
    net: Any = copy.deepcopy(network).double().requires_grad_(False)
    draws, worst = lab.fork("exact"), torch.zeros(4, dtype=torch.float64)
    for field, graph, single, *_ in test:
        x, p = single.double(), net(graph)
        counts = 0
        for pattern, terms in (("*~*", graph.bonds), ("*~*~*", graph.angles), ("*~*~*~*", graph.propers)):
            hits = field.molecule.GetSubstructMatches(Chem.MolFromSmarts(pattern), uniquify=False, maxMatches=10**6)
            counts += abs(len(hits) - 2 * len(terms))  # each is found from both ends
        atoms = torch.arange(len(graph.elements))
        e, s = net.heads["atom"](net.embed(graph.features.double(), graph.bonds), atoms[:, None]).unbind(-1)
        border = torch.ones(len(e) + 1, len(e) + 1, dtype=e.dtype)
        border[:-1, :-1], border[-1, -1] = s.exp().diag(), 0
        solved = torch.linalg.solve(border, torch.cat([-e, graph.charge.double()]))[:-1]
        order = torch.randperm(len(atoms), generator=draws)
        other = dynamics.molecular_graph(Chem.RenumberAtoms(field.molecule, order.tolist()))
        turn = torch.linalg.qr(torch.randn(3, 3, generator=draws, dtype=x.dtype)).Q
        y = (x @ (turn * torch.linalg.det(turn)).T)[:, order]
        u = bonded_energy(x, graph, p).total
        turned = bonded_energy(y, other, net(other)).total / u - 1
        way = 1e-6 * torch.randn(x.shape, generator=draws, dtype=x.dtype)
        rise = bonded_energy(x + way, graph, p).total.sum() - bonded_energy(x - way, graph, p).total.sum()
        slope = grad(lambda x, g=graph, p=p: bonded_energy(x, g, p).total.sum())(x)
        forces = (rise / (2 * slope * way).sum() - 1).abs()
        errors = (counts, (p.charges - solved).abs().max(), turned.abs().max(), forces)
        worst = torch.maximum(worst, torch.tensor([float(error) for error in errors], dtype=worst.dtype))
    names = (
        "every test molecule has as many bonds, angles and torsions as RDKit finds substructures",
        "charges solve the dense bordered system to 1e-9",
        "turned, and with atoms numbered otherwise, energies are the same to 1e-5",
        "forces equal finite differences to 1e-5",
    )
    for statement, value, bound in zip(names, worst.tolist(), (0, 1e-9, 1e-5, 1e-5), strict=True):
        lab.claim(statement, value <= bound, scale="smoke", value=value)
