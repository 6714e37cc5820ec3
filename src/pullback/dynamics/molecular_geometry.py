"""Geometries of least energy, and force fields written for engines of molecular dynamics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from xml.etree import ElementTree

import torch
from torch import Tensor

from pullback.core.checks import check_callable, check_floating, check_integer, check_positive
from pullback.core.shapes import Bool, Float, Int
from pullback.dynamics.molecular_graph import Topology
from pullback.dynamics.molecular_networks import MoleculeParameters
from pullback.implicit import minimize

__all__ = ["MinimizedGeometry", "export_parameters", "minimize_geometry"]

_KILOJOULES = 4.184  # of a kilocalorie
_NANOMETRES = 0.1  # of an Angstrom


class MinimizedGeometry(NamedTuple):
    """Conformations after minimisation.

    Attributes:
        positions: ``[*batch, atoms, 3]``.
        energy: ``[*batch]``.
        force: ``[*batch]`` 2-norm of the gradient that is left.
        iterations: ``[*batch]``.
        converged: ``[*batch]`` whether the force is within the tolerance.
    """

    positions: Float[Tensor, "*batch atoms 3"]
    energy: Float[Tensor, "*batch"]
    force: Float[Tensor, "*batch"]
    iterations: Int[Tensor, "*batch"]
    converged: Bool[Tensor, "*batch"]


def minimize_geometry(
    energy: Callable[..., Tensor],
    positions: Float[Tensor, "*batch atoms 3"],
    *theta: Any,
    steps: int = 500,
    tolerance: float = 1e-2,
    ridge: float = 1e-4,
) -> MinimizedGeometry:
    """Relax every conformation to a minimum of its energy, by limited-memory BFGS, each with its own steps.

    The minima are differentiable in ``theta``: an energy that is stationary there makes ``x`` a function of it. Motions
    of the whole molecule cost no energy; ``ridge`` holds them in place in that derivative.

    Args:
        energy: from ``[*batch, atoms, 3]`` and ``theta`` to ``[*batch]``, each conformation by itself.
        positions: ``[*batch, atoms, 3]`` where to start.
        theta: what the minima are differentiated in, tensors or nested containers of them.
        steps: of the method at most, >= 1.
        tolerance: of the 2-norm of the gradient, > 0, energy by length.
        ridge: > 0, energy by squared length; small against the stiffness of the softest motion.

    Returns:
        :class:`MinimizedGeometry`; a conformation that did not converge says so and is where it got to.

    Raises:
        TypeError: ``energy`` cannot be called, ``positions`` is not floating, ``steps`` is no integer.
        ValueError: ``positions`` has another shape, ``energy`` returns another one, an option is out of range.

    Example:
        >>> def spring(x, rest):
        ...     return ((x[..., 0, :] - x[..., 1, :]).norm(dim=-1) - rest) ** 2
        >>> x = torch.tensor([[0.0, 0.0, 0.0], [2.0, 0.0, 0.0]], dtype=torch.float64)
        >>> found = minimize_geometry(spring, x, torch.tensor(1.2, dtype=torch.float64), tolerance=1e-6)
        >>> round((found.positions[1] - found.positions[0]).norm().item(), 4)
        1.2

    References:
        Nocedal, Wright (2006), Numerical optimization, algorithm 7.4.
    """
    check_callable("energy", energy)
    if check_floating("positions", positions).ndim < 2 or positions.shape[-1] != 3:
        raise ValueError(f"positions must have shape (..., atoms, 3), got {tuple(positions.shape)}")
    check_integer("steps", steps, 1)
    check_positive("tolerance", tolerance)
    check_positive("ridge", ridge)
    found = minimize(
        energy,
        positions,
        *theta,
        tolerance=tolerance,
        max_iterations=steps,
        ridge=ridge,
        batch_ndim=positions.ndim - 2,
    )
    return MinimizedGeometry(
        found.value, energy(found.value, *theta), found.residual, found.iterations, found.converged
    )


def export_parameters(
    topology: Topology,
    parameters: MoleculeParameters,
    *,
    epsilon: Float[Tensor, "atoms"],
    sigma: Float[Tensor, "atoms"],
    names: Sequence[str] | None = None,
    scale14: tuple[float, float] = (0.5, 5 / 6),
) -> str:
    """Return one molecule's force field as a file that OpenMM reads, in which every atom has a type of its own.

    kcal/mol and Angstrom become kJ/mol and nm; OpenMM's springs are ``k (x - x0)^2 / 2``, so stiffnesses double. An
    amplitude below 0 becomes one above 0 with phase pi, which differs by a constant. Impropers have OpenMM's ordering
    ``"smirnoff"``, three torsions each, of a third of the amplitude.

    Args:
        topology: of one molecule.
        parameters: in kcal/mol, Angstrom and rad.
        epsilon: ``[atoms]`` depths of Lennard-Jones [kcal/mol].
        sigma: ``[atoms]`` [Angstrom].
        names: of the atoms, different ones; by default ``A0, A1, ...``.
        scale14: of Lennard-Jones and of Coulomb.

    Returns:
        The text of an XML file.

    Raises:
        ValueError: there are several molecules, names do not fit, or numbers are not finite.

    Example:
        >>> from pullback.dynamics import Harmonic, molecular_topology
        >>> pair = molecular_topology(torch.tensor([1, 1]), torch.tensor([[0, 1]]))
        >>> bond = Harmonic(torch.tensor([100.0]), torch.tensor([0.5]))
        >>> none = Harmonic(torch.zeros(0), torch.zeros(0))
        >>> found = MoleculeParameters(bond, none, torch.zeros(0, 6), torch.zeros(0, 2), torch.zeros(2))
        >>> text = export_parameters(pair, found, epsilon=torch.ones(2), sigma=torch.ones(2))
        >>> [line.strip() for line in text.splitlines() if "<Bond type" in line]
        ['<Bond type1="A0" type2="A1" length="0.05" k="83680.0" />']

    References:
        Eastman et al. (2017), OpenMM 7; its user guide, "Creating force fields".
    """
    count = len(topology.elements)
    if len(topology.charge) != 1:
        raise ValueError(f"topology must be that of one molecule, got {len(topology.charge)}")
    names = [f"A{i}" for i in range(count)] if names is None else list(names)
    if len(names) != count or len(set(names)) != count:
        raise ValueError(f"names must be {count} different ones, got {len(set(names))} different of {len(names)}")
    numbers = (*parameters.bonds, *parameters.angles, *parameters[2:], epsilon, sigma)
    if not all(bool(torch.isfinite(n).all()) for n in numbers):
        raise ValueError("parameters, epsilon and sigma must be finite")

    root = ElementTree.Element("ForceField")
    types = ElementTree.SubElement(root, "AtomTypes")
    residue = ElementTree.SubElement(ElementTree.SubElement(root, "Residues"), "Residue", name="MOL")
    for i, element in enumerate(topology.elements.tolist()):
        symbol, mass = _ELEMENTS[element] if element < len(_ELEMENTS) else ("", 0.0)
        if not symbol:
            raise ValueError(f"elements must be known, up to {len(_ELEMENTS) - 1}, got {element}")
        ElementTree.SubElement(
            types, "Type", {"name": names[i], "class": names[i], "element": symbol, "mass": str(mass)}
        )
        ElementTree.SubElement(residue, "Atom", name=names[i], type=names[i])
    for a, b in topology.bonds.tolist():
        ElementTree.SubElement(residue, "Bond", atomName1=names[a], atomName2=names[b])

    def term(parent: ElementTree.Element, tag: str, atoms: Sequence[int], **values: float) -> None:
        called = {f"type{n}": names[i] for n, i in enumerate(atoms, 1)}
        ElementTree.SubElement(parent, tag, called | {key: f"{value!r}" for key, value in values.items()})

    def listed(x: Tensor, factor: float = 1.0) -> list[Any]:
        rounded: list[Any] = _rounded((x.detach().double() * factor).tolist())
        return rounded

    force = ElementTree.SubElement(root, "HarmonicBondForce")
    stiffness = listed(parameters.bonds.stiffness, 2 * _KILOJOULES / _NANOMETRES**2)
    for atoms, length, k in zip(
        topology.bonds.tolist(), listed(parameters.bonds.rest, _NANOMETRES), stiffness, strict=True
    ):
        term(force, "Bond", atoms, length=length, k=k)
    force = ElementTree.SubElement(root, "HarmonicAngleForce")
    stiffness = listed(parameters.angles.stiffness, 2 * _KILOJOULES)
    for atoms, angle, k in zip(topology.angles.tolist(), listed(parameters.angles.rest), stiffness, strict=True):
        term(force, "Angle", atoms, angle=angle, k=k)
    force = ElementTree.SubElement(root, "PeriodicTorsionForce", ordering="smirnoff")
    for atoms, amplitudes in zip(topology.propers.tolist(), listed(parameters.propers, _KILOJOULES), strict=True):
        term(force, "Proper", atoms, **_periods(amplitudes))
    for atoms, amplitudes in zip(
        topology.impropers.tolist(), listed(parameters.impropers, _KILOJOULES / 3), strict=True
    ):
        term(force, "Improper", atoms, **_periods(amplitudes))
    force = ElementTree.SubElement(
        root, "NonbondedForce", coulomb14scale=repr(float(scale14[1])), lj14scale=repr(float(scale14[0]))
    )
    sizes = zip(listed(parameters.charges), listed(sigma, _NANOMETRES), listed(epsilon, _KILOJOULES), strict=True)
    for name, (charge, size, depth) in zip(names, sizes, strict=True):
        values = {"charge": charge, "sigma": size, "epsilon": depth}
        ElementTree.SubElement(force, "Atom", {"type": name} | {key: repr(value) for key, value in values.items()})
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _rounded(x: Any) -> Any:
    """The numbers of a nested list, with the digits that parameters in single precision have."""
    return [_rounded(v) for v in x] if isinstance(x, list) else float(f"{x:.9g}")


def _periods(amplitudes: Sequence[float]) -> dict[str, float]:
    found: dict[str, float] = {}
    for m, k in enumerate(amplitudes, 1):
        found |= {f"periodicity{m}": m, f"phase{m}": 0.0 if k >= 0 else torch.pi, f"k{m}": abs(k)}
    return found


_ELEMENTS: tuple[tuple[str, float], ...] = (
    ("", 0.0),
    *(("H", 1.008), ("He", 4.0026), ("Li", 6.94), ("Be", 9.0122), ("B", 10.81), ("C", 12.011), ("N", 14.007)),
    *(("O", 15.999), ("F", 18.998), ("Ne", 20.180), ("Na", 22.990), ("Mg", 24.305), ("Al", 26.982), ("Si", 28.085)),
    *(("P", 30.974), ("S", 32.06), ("Cl", 35.45), ("Ar", 39.95), ("K", 39.098), ("Ca", 40.078), ("Sc", 44.956)),
    *(("Ti", 47.867), ("V", 50.942), ("Cr", 51.996), ("Mn", 54.938), ("Fe", 55.845), ("Co", 58.933), ("Ni", 58.693)),
    *(("Cu", 63.546), ("Zn", 65.38), ("Ga", 69.723), ("Ge", 72.630), ("As", 74.922), ("Se", 78.971), ("Br", 79.904)),
    *(("Kr", 83.798), ("Rb", 85.468), ("Sr", 87.62), ("Y", 88.906), ("Zr", 91.224), ("Nb", 92.906), ("Mo", 95.95)),
    *(("Tc", 97.0), ("Ru", 101.07), ("Rh", 102.91), ("Pd", 106.42), ("Ag", 107.87), ("Cd", 112.41), ("In", 114.82)),
    *(("Sn", 118.71), ("Sb", 121.76), ("Te", 127.60), ("I", 126.90)),
)
"""Symbol and standard atomic weight [Da] by atomic number."""
