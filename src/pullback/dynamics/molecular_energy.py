"""The energy of molecules in a force field, and how well its energies and forces match others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, func

from pullback.core.checks import (
    check_broadcast,
    check_callable,
    check_choice,
    check_floating,
    check_positive,
    check_same_dtype,
    check_scalar,
    check_shape,
)
from pullback.core.shapes import Bool, Float, Int, Scalar
from pullback.core.transforms import can_look
from pullback.dynamics.force_field import Harmonic, torsion_energy
from pullback.dynamics.internal_coordinates import bond_angles, dihedrals, pair_distances
from pullback.dynamics.molecular_graph import Topology
from pullback.dynamics.molecular_networks import MoleculeParameters

__all__ = [
    "COULOMB",
    "BondedEnergy",
    "ForceMatchingLoss",
    "bonded_energy",
    "force_matching_loss",
    "linear_torsions",
    "nonbonded_energy",
]

COULOMB = 332.0637
"""Energy of two elementary charges one Angstrom apart [kcal/mol]."""
_TERMS = ("bonds", "angles", "propers", "impropers")
_TURNS = ((0, 1, 2, 3), (0, 2, 3, 1), (0, 3, 1, 2))


class BondedEnergy(NamedTuple):
    """Energies of each molecule in each conformation, in the unit of the stiffnesses.

    Attributes:
        total: ``[*batch, molecules]``, the sum of the others.
        bonds: ``[*batch, molecules]``; this and the next are 0 where the term was not asked for.
        angles: ``[*batch, molecules]``.
        propers: ``[*batch, molecules]``.
        impropers: ``[*batch, molecules]``.
    """

    total: Float[Tensor, "*batch molecules"]
    bonds: Float[Tensor, "*batch molecules"]
    angles: Float[Tensor, "*batch molecules"]
    propers: Float[Tensor, "*batch molecules"]
    impropers: Float[Tensor, "*batch molecules"]


class ForceMatchingLoss(NamedTuple):
    """How far energies and forces are from those of a reference.

    Attributes:
        total: ``energy + weight * forces``.
        energy: mean square of the differences of energies, each molecule's mean over conformations taken out.
        forces: mean square of the differences of the components of forces.
    """

    total: Float[Tensor, ""]
    energy: Float[Tensor, ""]
    forces: Float[Tensor, ""]


def bonded_energy(
    positions: Float[Tensor, "*batch atoms 3"],
    topology: Topology,
    parameters: MoleculeParameters,
    *,
    terms: Sequence[str] = _TERMS,
) -> BondedEnergy:
    r"""Return the energy of bonds, angles and torsions.

    .. math::
        U = \sum_{bonds} k (r - r_0)^2 + \sum_{angles} k (\theta - \theta_0)^2 +
            \sum_{propers} \sum_m k_m (1 + \cos m\phi) +
            \sum_{impropers} \frac13 \sum_{turns} \sum_m k_m (1 + \cos m\phi)

    An improper is the mean over three dihedrals, from its centre along its neighbours in turn (the trefoil of
    SMIRNOFF), so that the order in which neighbours are listed does not matter. Gradients are finite also where atoms
    of a torsion lie on a line; whether any do :func:`linear_torsions` tells.

    Args:
        positions: ``[*batch, atoms, 3]`` places of the atoms of all molecules, for instance ``[conformers, atoms, 3]``.
        topology: the terms.
        parameters: of the terms; each may have batch dimensions, which broadcast against the others and ``positions``.
        terms: which are added: ``"bonds"``, ``"angles"``, ``"propers"``, ``"impropers"``.

    Returns:
        :class:`BondedEnergy` by molecule.

    Raises:
        TypeError: ``positions`` is not floating, or has another dtype than the parameters.
        ValueError: a shape does not fit the topology, or a term is unknown.

    Example:
        >>> from pullback.dynamics import Harmonic, molecular_topology
        >>> water = molecular_topology(torch.tensor([8, 1, 1]), torch.tensor([[0, 1], [0, 2]]))
        >>> bond = Harmonic(torch.full((2,), 500.0), torch.full((2,), 0.9))
        >>> angle = Harmonic(torch.tensor([50.0]), torch.tensor([torch.pi / 2]))
        >>> found = MoleculeParameters(bond, angle, torch.zeros(0, 6), torch.zeros(0, 2), torch.zeros(3))
        >>> x = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        >>> [round(u.item(), 3) for u in bonded_energy(x, water, found)]
        [10.0, 10.0, 0.0, 0.0, 0.0]

    References:
        Wang et al. (2022), End-to-end differentiable construction of molecular mechanics force fields, equation 1.
        Mobley et al. (2018), Escaping atom types in force fields using direct chemical perception (impropers).
    """
    for term in terms:
        check_choice("terms", term, _TERMS)
    _check_atoms(positions, topology)
    _check_parameters(positions, topology, parameters)
    found: dict[str, Tensor] = {}
    if "bonds" in terms:
        stretched = pair_distances(positions, topology.bonds) - parameters.bonds.rest
        found["bonds"] = parameters.bonds.stiffness * stretched.square()
    if "angles" in terms:
        bent = bond_angles(positions, topology.angles) - parameters.angles.rest
        found["angles"] = parameters.angles.stiffness * bent.square()
    if "propers" in terms:
        found["propers"] = torsion_energy(dihedrals(positions, topology.propers), parameters.propers)
    if "impropers" in terms:
        turns = [
            torsion_energy(dihedrals(positions, topology.impropers[:, order]), parameters.impropers) for order in _TURNS
        ]
        found["impropers"] = torch.stack(turns).mean(0)
    none = positions.new_zeros(*positions.shape[:-2], len(topology.charge))
    sums = [
        _by_molecule(found[name], topology, getattr(topology, name)[:, 0]) if name in found else none for name in _TERMS
    ]
    sums = list(torch.broadcast_tensors(*sums))  # parameters may be a batch where positions are none
    return BondedEnergy(torch.stack(sums).sum(0), *sums)


def nonbonded_energy(
    positions: Float[Tensor, "*batch atoms 3"],
    charges: Float[Tensor, "*#batch atoms"],
    epsilon: Float[Tensor, "*#batch atoms"],
    sigma: Float[Tensor, "*#batch atoms"],
    topology: Topology,
    *,
    scale14: tuple[float, float] = (0.5, 5 / 6),
    coulomb: float = COULOMB,
) -> Float[Tensor, "*batch molecules"]:
    r"""Return the energy of all pairs of atoms of a molecule that are three or more bonds apart.

    .. math::
        U = \sum_{i<j} s^{LJ}_{ij}\, 4\epsilon_{ij}\left[\left(\frac{\sigma_{ij}}{r}\right)^{12} -
            \left(\frac{\sigma_{ij}}{r}\right)^6\right] + s^{C}_{ij}\, K \frac{q_i q_j}{r}

    with :math:`\epsilon_{ij} = \sqrt{\epsilon_i \epsilon_j}`, :math:`\sigma_{ij} = (\sigma_i + \sigma_j) / 2`
    (Lorentz, Berthelot), and the factors ``scale14`` for pairs three bonds apart, 1 beyond. There is no cutoff.
    Below a hundredth of :math:`\sigma_{ij}` the distance counts as that: the energy of a pair is finite everywhere, and
    so is its gradient, 0 there.

    Args:
        positions: ``[*batch, atoms, 3]`` places of the atoms of all molecules.
        charges: ``[*batch, atoms]``.
        epsilon: ``[*batch, atoms]`` depth of the well, > 0 (an atom without one has ``sigma = 0``).
        sigma: ``[*batch, atoms]`` distance at which two such atoms have no Lennard-Jones energy, >= 0.
        topology: the pairs.
        scale14: of Lennard-Jones and of Coulomb, each >= 0; by default those of Amber.
        coulomb: K > 0, in the units of energy and length; by default kcal/mol and Angstrom, :data:`COULOMB`.

    Returns:
        ``[*batch, molecules]``.

    Raises:
        TypeError: a tensor is not floating, or dtypes differ.
        ValueError: a shape does not fit the topology, or a number is out of range.

    Example:
        >>> from pullback.dynamics import molecular_topology
        >>> chain = molecular_topology(torch.ones(4, dtype=torch.long), torch.tensor([[0, 1], [1, 2], [2, 3]]))
        >>> x = torch.tensor([[0.0, 0.0, 0.0], [0.5, 1.0, 0.0], [1.5, 1.0, 0.0], [2.0, 0.0, 0.0]])
        >>> q, one = torch.tensor([1.0, 0.0, 0.0, -1.0]), torch.ones(4)
        >>> nonbonded_energy(x, q, one, 2 * one, chain, scale14=(1.0, 1.0), coulomb=1.0)
        tensor([-0.5000])
    """
    _check_atoms(positions, topology)
    for name, value in (("charges", charges), ("epsilon", epsilon), ("sigma", sigma)):
        check_shape(name, check_floating(name, value), (len(topology.elements),))
        check_same_dtype(positions=positions, **{name: value})
        check_broadcast(positions=tuple(positions.shape[:-2]), **{name: tuple(value.shape[:-1])})
        if name != "charges" and can_look(value):
            check_positive(name, value, zero=name == "sigma")
    for scale in scale14:
        check_positive("scale14", scale, zero=True)
    check_positive("coulomb", coulomb)
    least = torch.finfo(positions.dtype).tiny ** 0.25  # where no atom of a pair has a size
    total = positions.new_zeros(*positions.shape[:-2], len(topology.charge))
    for pairs, (lj, electric) in ((topology.pairs14, scale14), (topology.pairs15, (1.0, 1.0))):
        a, b = pairs.unbind(1)
        size = sigma[..., a] / 2 + sigma[..., b] / 2
        distance = torch.maximum(pair_distances(positions, pairs), (0.01 * size).clamp(min=least))
        sixth = (size / distance) ** 6
        depth = 4 * (epsilon[..., a].sqrt() * epsilon[..., b].sqrt())
        energy = lj * depth * (sixth * (sixth - 1)) + electric * coulomb * charges[..., a] * charges[..., b] / distance
        total = total + _by_molecule(energy, topology, a)
    return total


def force_matching_loss(
    energy: Callable[[Tensor], Tensor],
    positions: Float[Tensor, "conformers atoms 3"],
    reference_energy: Float[Tensor, "conformers *molecules"],
    reference_forces: Float[Tensor, "conformers atoms 3"],
    *,
    weight: Scalar = 1.0,
) -> ForceMatchingLoss:
    r"""Compare energies and forces of a model with those of a reference.

    .. math::
        L = \frac{1}{CM} \sum_{c,m} \big(U_{cm} - \bar U_m - (U^*_{cm} - \bar U^*_m)\big)^2 +
            \frac{w}{3CN} \sum_{c,i} \big| -\nabla_i U_c - F^*_{ci} \big|^2

    Means over the conformations are taken out, since the zero of an energy has no meaning. The loss is differentiable
    in whatever the model holds, through its forces too: a second derivative, which automatic differentiation takes.

    Args:
        energy: from ``positions`` to ``[conformers]`` or ``[conformers, molecules]``; the energy of one conformation
            may not depend on another one.
        positions: ``[conformers, atoms, 3]``.
        reference_energy: of the shape that ``energy`` returns.
        reference_forces: ``[conformers, atoms, 3]``, in units of energy by length.
        weight: w >= 0, in units of squared length.

    Returns:
        :class:`ForceMatchingLoss`.

    Raises:
        TypeError: ``energy`` cannot be called, a tensor is not floating, dtypes differ.
        ValueError: a shape does not fit, or there is no conformation.

    Example:
        >>> x = torch.tensor([[[1.0, 0.0, 0.0]], [[0.0, 2.0, 0.0]]])
        >>> def spring(k):
        ...     return lambda x: k * x.square().sum((-1, -2))
        >>> found = force_matching_loss(spring(3.0), x, spring(2.0)(x), -4 * x)
        >>> found.energy.item(), round(found.forces.item(), 4)
        (2.25, 3.3333)

    References:
        Ercolessi, Adams (1994), Interatomic potentials from first-principles calculations: the force-matching method.
        Takaba et al. (2024), Machine-learned molecular mechanics force fields from large-scale quantum chemical data.
    """
    check_callable("energy", energy)
    if check_floating("positions", positions).ndim != 3 or positions.shape[-1] != 3 or not positions.shape[0]:
        raise ValueError(f"positions must have shape (conformers, atoms, 3), got {tuple(positions.shape)}")
    check_same_dtype(positions=positions, reference_energy=check_floating("reference_energy", reference_energy))
    check_same_dtype(positions=positions, reference_forces=check_floating("reference_forces", reference_forces))
    if reference_forces.shape != positions.shape:
        raise ValueError(
            f"reference_forces must have shape {tuple(positions.shape)}, got {tuple(reference_forces.shape)}"
        )
    check_scalar("weight", weight, zero=True)

    def total(x: Tensor) -> tuple[Tensor, Tensor]:
        found = energy(x)
        if not isinstance(found, Tensor) or found.shape != reference_energy.shape:
            came = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"energy must return a tensor of shape {tuple(reference_energy.shape)}, got {came}")
        return found.sum(), found

    slopes, found = func.grad(total, has_aux=True)(positions)
    off = found - reference_energy
    energies = (off - off.mean(0)).square().mean()
    forces = (slopes + reference_forces).square().mean()
    return ForceMatchingLoss(energies + weight * forces, energies, forces)


def linear_torsions(
    positions: Float[Tensor, "*batch atoms 3"], quadruples: Int[Tensor, "n 4"], *, tolerance: float = 1e-3
) -> Bool[Tensor, "*batch n"]:
    """Return which dihedrals do not exist, since three of their atoms lie on a line.

    Near such a line the gradient of a dihedral grows with the inverse of the sine of the angle.

    Args:
        positions: ``[*batch, atoms, 3]``.
        quadruples: ``[n, 4]`` indices of atoms in the order of the chain.
        tolerance: of the sine of either angle, > 0.

    Returns:
        ``[*batch, n]``.

    Raises:
        TypeError: ``positions`` is not floating, or ``quadruples`` does not hold integers.
        ValueError: a shape is another, an index or the tolerance out of range.

    Example:
        >>> x = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [2.0, 0.0, 0.0], [2.0, 1.0, 0.0]])
        >>> linear_torsions(x, torch.tensor([[0, 1, 2, 3], [0, 1, 3, 2]]))
        tensor([ True, False])
    """
    check_positive("tolerance", tolerance)
    dihedrals(positions[..., :0, :, :] if positions.ndim > 2 else positions, quadruples)  # its checks
    near = bond_angles(positions, quadruples[:, :3]).sin()
    far = bond_angles(positions, quadruples[:, 1:]).sin()
    return torch.minimum(near, far) < tolerance


def _check_parameters(positions: Tensor, topology: Topology, parameters: MoleculeParameters) -> None:
    springs = {
        f"{name}.{field}": (name, getattr(getattr(parameters, name), field))
        for name in _TERMS[:2]
        for field in Harmonic._fields
    }
    waves = {name: (name, getattr(parameters, name)) for name in _TERMS[2:]}
    batches = {"positions": tuple(positions.shape[:-2])}
    for label, (name, value) in (springs | waves).items():
        check_same_dtype(
            **{"positions": positions, f"parameters.{label}": check_floating(f"parameters.{label}", value)}
        )
        wanted = (len(getattr(topology, name)), *([None] if label in waves else []))
        check_shape(f"parameters.{label}", value, wanted)
        batches[f"parameters.{label}"] = tuple(value.shape[: value.ndim - len(wanted)])
    check_broadcast(**batches)


def _check_atoms(positions: Tensor, topology: Topology) -> None:
    check_shape("positions", check_floating("positions", positions), (len(topology.elements), 3))


def _by_molecule(energy: Tensor, topology: Topology, atom: Tensor) -> Tensor:
    """Sum the energies of terms over the molecule of one of their atoms."""
    sums = energy.new_zeros(*energy.shape[:-1], len(topology.charge))
    return sums.index_add(-1, topology.molecule[atom], energy)
