"""Terms of a molecular force field: harmonics from mixtures, torsions, and charges by equilibration."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pullback.core.checks import check_broadcast, check_floating, check_positive, check_same_dtype, check_shape
from pullback.core.shapes import Float, Int
from pullback.core.transforms import can_look

__all__ = ["Harmonic", "equilibrate_charges", "mixture_to_harmonic", "torsion_energy"]


class Harmonic(NamedTuple):
    """A spring, ``u(x) = stiffness (x - rest)^2``.

    Attributes:
        stiffness: ``[*batch]``, > 0, energy by squared length or angle.
        rest: ``[*batch]`` length or angle without force.
    """

    stiffness: Float[Tensor, "*batch"]
    rest: Float[Tensor, "*batch"]


def mixture_to_harmonic(log_weights: Float[Tensor, "*batch n"], centres: Float[Tensor, "n"]) -> Harmonic:
    """Merge springs with fixed centres into the one spring that has the same forces.

    ``sum_m exp(c_m) (x - b_m)^2 = k (x - x0)^2 + const`` with ``k = sum_m exp(c_m)`` and
    ``x0 = sum_m exp(c_m) b_m / k``: rest lengths stay between the centres, and a network that predicts ``c`` never
    multiplies a stiffness with an error of a rest length.

    Args:
        log_weights: ``[*batch, n]`` logarithms of the stiffnesses, ``n >= 1``.
        centres: ``[n]`` of the springs.

    Returns:
        The spring.

    Raises:
        TypeError: a tensor is not floating, or their dtypes differ.
        ValueError: the shapes do not agree, or the stiffness is not finite.

    Example:
        >>> spring = mixture_to_harmonic(torch.tensor([3.0, 1.0]).log(), torch.tensor([1.5, 6.0]))
        >>> round(float(spring.stiffness), 4), round(float(spring.rest), 4)
        (4.0, 2.625)

    References:
        Takaba et al. (2024), Machine-learned molecular mechanics force fields from large-scale quantum chemical data
        (centres 1.5 and 6 bohr for bonds, 0 and pi for angles).
    """
    check_floating("log_weights", log_weights)
    check_floating("centres", centres)
    check_same_dtype(log_weights=log_weights, centres=centres)
    if centres.ndim != 1 or not len(centres):
        raise ValueError(f"centres must have shape (n,) with n >= 1, got {tuple(centres.shape)}")
    check_shape("log_weights", log_weights, (len(centres),))
    stiffness = log_weights.logsumexp(-1).exp()
    if can_look(stiffness) and not bool(torch.isfinite(stiffness).all()):
        raise ValueError("log_weights must have exponentials with a finite sum")
    return Harmonic(stiffness, (log_weights.softmax(-1) * centres).sum(-1))


def torsion_energy(angles: Float[Tensor, "*batch"], amplitudes: Float[Tensor, "*#batch n"]) -> Float[Tensor, "*batch"]:
    """Return ``sum_m k_m (1 + cos(m phi))``, ``m = 1..n``, the energy of rotation about a bond.

    The phase of the usual form, 0 or pi, is the sign of ``k_m``, up to a constant.

    Args:
        angles: ``[*batch]`` dihedrals [rad].
        amplitudes: ``[*batch, n]`` of the periods, energies of either sign; broadcasts against ``angles``.

    Returns:
        ``[*batch]`` energies, in the unit of ``amplitudes``.

    Raises:
        TypeError: a tensor is not floating, or their dtypes differ.
        ValueError: the shapes do not broadcast, or ``amplitudes`` has no dimension.

    Example:
        >>> ethane = torch.tensor([0.0, 0.0, 1.4])
        >>> [round(u, 4) for u in torsion_energy(torch.tensor([0.0, torch.pi / 3]), ethane).tolist()]
        [2.8, 0.0]
    """
    check_floating("angles", angles)
    check_shape("amplitudes", check_floating("amplitudes", amplitudes), (None,))
    check_same_dtype(angles=angles, amplitudes=amplitudes)
    check_broadcast(angles=tuple(angles.shape), amplitudes=tuple(amplitudes.shape[:-1]))
    period = torch.arange(1, amplitudes.shape[-1] + 1, dtype=angles.dtype, device=angles.device)
    return (amplitudes * (1 + (period * angles[..., None]).cos())).sum(-1)


def equilibrate_charges(
    electronegativity: Float[Tensor, "*#batch atoms"],
    hardness: Float[Tensor, "*#batch atoms"],
    total: Float[Tensor, "*#charged"] | float = 0.0,
    *,
    molecule: Int[Tensor, "atoms"] | None = None,
) -> Float[Tensor, "*batch atoms"]:
    """Return the charges of least energy ``sum_i e_i q_i + s_i q_i^2 / 2`` that sum to ``total``.

    With the multiplier ``mu = (total + sum_j e_j / s_j) / sum_j (1 / s_j)``, the chemical potential all atoms share,

        q_i = (mu - e_i) / s_i.

    Args:
        electronegativity: ``[*batch, atoms]`` energy by charge; a constant added to all changes nothing.
        hardness: ``[*batch, atoms]``, > 0, energy by squared charge; infinite hardness is not allowed.
        total: charge of the molecule, a number or ``[*batch]``; with ``molecule`` of each, ``[*batch, molecules]``.
        molecule: ``[atoms]`` the molecule of each atom, where there are many: integers in ``0..molecules - 1``, none of
            them without an atom. Charge stays within a molecule. One molecule by default.

    Returns:
        ``[*batch, atoms]`` charges, in the unit of ``total``.

    Raises:
        TypeError: a tensor is not floating, dtypes differ, ``total`` is neither a number nor a tensor, or ``molecule``
            does not hold integers.
        ValueError: shapes do not broadcast, there is no atom, a hardness is not > 0, or a molecule is out of range.

    Example:
        >>> q = equilibrate_charges(torch.tensor([1.0, 3.0, 1.0]), torch.tensor([2.0, 4.0, 2.0]))
        >>> [round(charge, 4) for charge in q.tolist()]
        [0.2, -0.4, 0.2]

    References:
        Rappé, Goddard (1991), Charge equilibration for molecular dynamics simulations.
        Gilson, Gilson, Potter (2003), Fast assignment of accurate partial atomic charges.
    """
    check_shape("electronegativity", check_floating("electronegativity", electronegativity), (None,))
    check_shape("hardness", check_floating("hardness", hardness), (None,))
    check_same_dtype(electronegativity=electronegativity, hardness=hardness)
    shape = check_broadcast(electronegativity=tuple(electronegativity.shape), hardness=tuple(hardness.shape))
    if not shape[-1]:
        raise ValueError("electronegativity must have an atom at least, got none")
    if can_look(hardness):
        check_positive("hardness", hardness)
    if isinstance(total, Tensor):
        check_same_dtype(electronegativity=electronegativity, total=check_floating("total", total))
    elif isinstance(total, bool) or not isinstance(total, int | float):
        raise TypeError(f"total must be a number or a tensor, got {type(total).__name__}")
    if molecule is not None:
        return _charges_of_many(electronegativity.expand(shape), hardness.expand(shape), total, molecule)
    if isinstance(total, Tensor):
        check_broadcast(total=tuple(total.shape), electronegativity=tuple(shape[:-1]))
        total = total[..., None]
    softest = hardness.detach().amin(-1, keepdim=True)  # shares do not depend on it
    softness = (softest / hardness).expand(shape)  # in (0, 1], where reciprocals might overflow
    share = softness / softness.sum(-1, keepdim=True)
    mean = (share * electronegativity).sum(-1, keepdim=True)
    return share * total + (mean - electronegativity) / hardness


def _charges_of_many(e: Tensor, hardness: Tensor, total: Tensor | float, molecule: Tensor) -> Tensor:
    """The charges of molecules whose atoms stand one after another; sums run over the atoms of each."""
    if molecule.is_floating_point() or molecule.is_complex() or molecule.dtype == torch.bool:
        raise TypeError(f"molecule must hold integers, got {molecule.dtype}")
    if tuple(molecule.shape) != tuple(e.shape[-1:]):
        raise ValueError(f"molecule must have shape {tuple(e.shape[-1:])}, got {tuple(molecule.shape)}")
    if not isinstance(total, Tensor) or not total.ndim:
        raise ValueError("total must be a tensor of shape (..., molecules) beside molecule")
    count, index = total.shape[-1], molecule.long()
    check_broadcast(total=tuple(total.shape[:-1]), electronegativity=tuple(e.shape[:-1]))
    if can_look(index) and not bool(((index >= 0) & (index < count)).all()):
        raise ValueError(f"molecule must be in 0..{count - 1}, got {int(index.min())}..{int(index.max())}")
    if can_look(index) and len(index.unique()) < count:
        raise ValueError(f"molecule must give each of the {count} molecules an atom")

    def each(x: Tensor) -> Tensor:
        """Add up over molecules and hand the sums back to the atoms."""
        return x.new_zeros(*x.shape[:-1], count).index_add(-1, index, x)[..., index]

    least = hardness.detach()
    lowest = least.new_full((*least.shape[:-1], count), torch.inf).scatter_reduce(
        -1, index.expand(least.shape), least, "amin"
    )
    softness = lowest[..., index] / hardness
    share = softness / each(softness)
    return share * total[..., index] + (each(share * e) - e) / hardness
