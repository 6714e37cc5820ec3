"""Internal coordinates of molecules: distances, angles and dihedrals of listed atoms, with finite gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback.core.checks import check_floating, check_shape, check_tensor
from pullback.core.shapes import Float, Int
from pullback.core.transforms import can_look

__all__ = ["bond_angles", "dihedrals", "pair_distances"]


def pair_distances(positions: Float[Tensor, "*batch atoms 3"], pairs: Int[Tensor, "n 2"]) -> Float[Tensor, "*batch n"]:
    """Return ``|x_i - x_j|`` of the listed pairs.

    The gradient of a pair of atoms in one place is 0.

    Args:
        positions: ``[*batch, atoms, 3]``, in any unit of length.
        pairs: ``[n, 2]`` indices of atoms, integers in ``0..atoms - 1``.

    Returns:
        ``[*batch, n]`` distances, in the unit of ``positions``.

    Raises:
        TypeError: ``positions`` is not floating, or ``pairs`` does not hold integers.
        ValueError: a shape is another, or an index is out of range.

    Example:
        >>> x = torch.tensor([[0.0, 0.0, 0.0], [3.0, 4.0, 0.0]])
        >>> pair_distances(x, torch.tensor([[0, 1]])).tolist()
        [5.0]
    """
    a, b = _atoms("pairs", positions, pairs, 2)
    return _length(b - a)


def bond_angles(positions: Float[Tensor, "*batch atoms 3"], triples: Int[Tensor, "n 3"]) -> Float[Tensor, "*batch n"]:
    """Return the angle at the second of three atoms.

    It is ``atan2(|u x v|, u . v)`` with ``u = x_i - x_j`` and ``v = x_k - x_j``.

    Unlike the arc cosine it keeps its digits near 0 and pi. On a line, where there is no gradient, the gradient is 0.

    Args:
        positions: ``[*batch, atoms, 3]``, in any unit of length.
        triples: ``[n, 3]`` indices of atoms, the centre second, integers in ``0..atoms - 1``.

    Returns:
        ``[*batch, n]`` angles in [0, pi] [rad].

    Raises:
        TypeError: ``positions`` is not floating, or ``triples`` does not hold integers.
        ValueError: a shape is another, or an index is out of range.

    Example:
        >>> x = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        >>> [round(angle, 4) for angle in bond_angles(x, torch.tensor([[0, 1, 2], [1, 0, 2]])).tolist()]
        [1.5708, 0.7854]
    """
    a, centre, b = _atoms("triples", positions, triples, 3)
    u, v = a - centre, b - centre
    return torch.atan2(_length(torch.linalg.cross(u, v)), (u * v).sum(-1))


def dihedrals(positions: Float[Tensor, "*batch atoms 3"], quadruples: Int[Tensor, "n 4"]) -> Float[Tensor, "*batch n"]:
    """Return the angle between the planes ``(i, j, k)`` and ``(j, k, l)``, 0 for cis and +-pi for trans.

    With ``b1, b2, b3`` the vectors from each atom to the next,

        phi = atan2(|b2| b1 . (b2 x b3), (b1 x b2) . (b2 x b3)),

    positive where, seen along ``b2``, the far atom is turned clockwise. The same from either end; a mirror image
    changes its sign. Where three atoms lie on a line there is no dihedral: it is 0 there, and so is its gradient.

    Args:
        positions: ``[*batch, atoms, 3]``, in any unit of length.
        quadruples: ``[n, 4]`` indices of atoms in the order of the chain, integers in ``0..atoms - 1``.

    Returns:
        ``[*batch, n]`` angles in [-pi, pi] [rad].

    Raises:
        TypeError: ``positions`` is not floating, or ``quadruples`` does not hold integers.
        ValueError: a shape is another, or an index is out of range.

    Example:
        >>> x = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
        >>> [round(angle, 4) for angle in dihedrals(x, torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]])).tolist()]
        [1.5708, 1.5708]

    References:
        Blondel, Karplus (1996), New formulation for derivatives of torsion angles and improper torsion angles in
        molecular mechanics: elimination of singularities.
    """
    i, j, k, l = _atoms("quadruples", positions, quadruples, 4)  # noqa: E741 (the names of the field)
    first, axis, last = j - i, k - j, l - k
    near, far = torch.linalg.cross(first, axis), torch.linalg.cross(axis, last)
    y, x = _length(axis) * (first * far).sum(-1), (near * far).sum(-1)
    flat = (x == 0) & (y == 0)
    return torch.where(flat, 0.0, torch.atan2(torch.where(flat, 0.0, y), torch.where(flat, 1.0, x)))


def _length(x: Tensor) -> Tensor:
    """The norm over the last dimension, with gradient 0 at 0."""
    zero = (x == 0).all(-1)
    return torch.where(zero, 0.0, torch.linalg.vector_norm(torch.where(zero[..., None], 1.0, x), dim=-1))


def _atoms(name: str, positions: Tensor, indices: Tensor, arity: int) -> tuple[Tensor, ...]:
    """The positions of the first, second, ... atoms of each term, ``[*batch, n, 3]`` each."""
    check_shape("positions", check_floating("positions", positions), (None, 3))
    check_tensor(name, indices)
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise TypeError(f"{name} must hold integers, got {indices.dtype}")
    if indices.ndim != 2 or indices.shape[1] != arity:
        raise ValueError(f"{name} must have shape (n, {arity}), got {tuple(indices.shape)}")
    atoms = positions.shape[-2]
    if indices.numel() and can_look(indices) and not bool(((indices >= 0) & (indices < atoms)).all()):
        raise ValueError(f"{name} must be in 0..{atoms - 1}, got {int(indices.min())}..{int(indices.max())}")
    flat = positions.index_select(-2, indices.long().flatten())
    return flat.unflatten(-2, tuple(indices.shape)).unbind(-2)
