"""How fast descent with complex momentum converges, from the eigenvalues of a game."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from pullback.core.checks import check_broadcast, check_choice, check_tensor

__all__ = ["TunedMomentum", "momentum_radius", "tune_momentum"]

Order = Literal["simultaneous", "alternating"]


class TunedMomentum(NamedTuple):
    """The best setting of a grid.

    Attributes:
        radius: spectral radius there, < 1 where the game converges.
        lr: step size.
        momentum: modulus.
        angle: in radians.
    """

    radius: float
    lr: float
    momentum: float
    angle: float


def momentum_radius(
    eigenvalues: Tensor,
    *,
    lr: float | Tensor,
    momentum: float | Tensor,
    angle: float | Tensor = 0.0,
    order: Order = "simultaneous",
) -> Tensor:
    r"""Return the spectral radius of a step of :class:`~pullback.optim.ComplexMomentumSGD` near a fixed point.

    Each eigenvalue ``l`` of the game's Jacobian gives a map of both buffers and the parameter,

    ``[[Re b, -Im b, -l], [Im b, Re b, 0], [lr Re b, -lr Im b, 1 - lr l]]``,  ``b = momentum e^{i angle}``;

    the radius is the largest modulus of an eigenvalue of these maps. Distances to the fixed point shrink by it in each
    step, in the long run; above 1 they grow.

    Args:
        eigenvalues: ``[*batch, n]`` of the game's Jacobian, complex or real.
        lr: step sizes, > 0, that broadcast against ``[*batch]``.
        momentum: moduli in [0, 1), likewise.
        angle: in radians, likewise.
        order: ``"alternating"`` for players that move in turn; then all eigenvalues must be real (no player meets
            another: the same as simultaneous) or imaginary (bilinear pairs ``+- i s``, where the second player sees the
            first one's new place).

    Returns:
        Radii of the broadcast shape, in double precision, not differentiated.

    Raises:
        TypeError: ``eigenvalues`` is no tensor of floating or complex numbers.
        ValueError: there are no eigenvalues, a number is out of range, or an eigenvalue is neither real nor imaginary
            for ``order="alternating"``.

    Example:
        >>> turning = torch.tensor([1.0j, -1.0j])  # the game x y
        >>> for angle in (0.0, torch.pi / 8, torch.pi):
        ...     print(bool(momentum_radius(turning, lr=0.1, momentum=0.8, angle=angle) < 1))
        False
        True
        False

    References:
        Lorraine, Acuna, Vicol, Duvenaud (2022), Complex momentum for optimization in games, arXiv 2102.08431, theorem
        1, equations 7 to 10.
    """
    check_choice("order", order, get_args(Order))
    if not check_tensor("eigenvalues", eigenvalues).is_floating_point() and not eigenvalues.is_complex():
        raise TypeError(f"eigenvalues must be floating or complex, got {eigenvalues.dtype}")
    if not eigenvalues.ndim or not eigenvalues.shape[-1]:
        raise ValueError(f"eigenvalues must hold at least one number, got shape {tuple(eigenvalues.shape)}")
    if not bool(torch.isfinite(eigenvalues).all()):
        raise ValueError("eigenvalues must be finite")
    step, modulus, turn = (
        torch.as_tensor(v, dtype=torch.float64, device=eigenvalues.device).detach() for v in (lr, momentum, angle)
    )
    if not bool((step.isfinite() & (step > 0)).all()):
        raise ValueError(f"lr must be > 0, got {step[~(step.isfinite() & (step > 0))][0].item()}")
    if not bool(((modulus >= 0) & (modulus < 1)).all()):
        raise ValueError("momentum must be in [0, 1)")
    if not bool(turn.isfinite().all()):
        raise ValueError("angle must be finite")
    values = eigenvalues.detach().to(torch.complex128)
    check_broadcast(**{name: tuple(t.shape) for name, t in (("lr", step), ("momentum", modulus), ("angle", turn))})
    step, modulus, turn, values = torch.broadcast_tensors(*(t[..., None] for t in (step, modulus, turn)), values)
    # Buffers measured in units of 1 / lr: the step size multiplies the eigenvalue alone.
    moved, across, up = step * values, modulus * turn.cos(), modulus * turn.sin()
    if order == "simultaneous":
        return _largest(_simultaneous(moved, across, up))
    size = moved.abs()
    real, turning = moved.imag.abs() <= 1e-12 * size, moved.real.abs() <= 1e-12 * size
    if not bool((real | turning).all()):
        bad = values[~(real | turning)][0].item()
        raise ValueError(f"eigenvalues must be real or imaginary for order='alternating', got {bad}")
    alone = _moduli(_simultaneous(moved, across, up))
    pairs = _moduli(_alternating(moved.imag, across, up))
    return torch.where(real, alone, pairs).amax(-1)


def tune_momentum(
    eigenvalues: Tensor,
    grid: tuple[Sequence[float], Sequence[float], Sequence[float]],
    *,
    order: Order = "simultaneous",
) -> TunedMomentum:
    """Return the setting of a grid with the smallest radius.

    Args:
        eigenvalues: ``[n]`` of the game's Jacobian.
        grid: step sizes, moduli, angles to try; every combination is.
        order: as in :func:`momentum_radius`.

    Returns:
        The radius and the setting.

    Raises:
        TypeError: ``eigenvalues`` is no tensor of floating or complex numbers, or ``grid`` has not three parts.
        ValueError: a part of ``grid`` is empty, or a number is out of range.

    Example:
        >>> best = tune_momentum(torch.tensor([1.0, 2.0]), ([0.3, 0.6], [0.0, 0.2], [0.0]))
        >>> best.lr, best.momentum
        (0.6, 0.0)

    References:
        Lorraine, Acuna, Vicol, Duvenaud (2022), Complex momentum for optimization in games, equation 11.
    """
    check_tensor("eigenvalues", eigenvalues)
    if len(grid) != 3:
        raise TypeError(f"grid must hold step sizes, moduli and angles, got {len(grid)} parts")
    axes = [torch.tensor(list(part), dtype=torch.float64) for part in grid]
    for axis, name in zip(axes, ("step sizes", "moduli", "angles"), strict=True):
        if not len(axis):
            raise ValueError(f"grid must hold {name}, got none")
    lr, momentum, angle = torch.meshgrid(*axes, indexing="ij")
    radius = momentum_radius(eigenvalues.cpu(), lr=lr, momentum=momentum, angle=angle, order=order)
    best = int(radius.argmin())
    return TunedMomentum(*(t.reshape(-1)[best].item() for t in (radius, lr, momentum, angle)))


def _largest(maps: Tensor) -> Tensor:
    return _moduli(maps).amax(-1)


def _moduli(maps: Tensor) -> Tensor:
    """The largest of each map, infinite for one that overflows: LAPACK may crash on such."""
    good = torch.isfinite(maps).all((-2, -1), keepdim=True)
    return torch.where(good[..., 0, 0], torch.linalg.eigvals(torch.where(good, maps, 0)).abs().amax(-1), torch.inf)


def _rows(*rows: tuple[Any, ...]) -> Tensor:
    """A matrix from rows of tensors and numbers."""
    like = next(entry for row in rows for entry in row if isinstance(entry, Tensor) and entry.is_complex())
    full = [[torch.as_tensor(e, dtype=like.dtype, device=like.device).expand(like.shape) for e in row] for row in rows]
    return torch.stack([torch.stack(row, -1) for row in full], -2)


def _simultaneous(moved: Tensor, across: Tensor, up: Tensor) -> Tensor:
    return _rows((across, -up, -moved), (up, across, 0), (across, -up, 1 - moved))


def _alternating(turn: Tensor, across: Tensor, up: Tensor) -> Tensor:
    """Of ``(a_1, b_1, w_1, a_2, b_2, w_2)``, for the losses ``s w_1 w_2`` and ``-s w_1 w_2``."""
    s = turn.to(torch.complex128)
    first = [(across, -up, 0, 0, 0, -s), (up, across, 0, 0, 0, 0), (across, -up, 1, 0, 0, -s)]
    move = _rows(*first, (0, 0, 0, 1, 0, 0), (0, 0, 0, 0, 1, 0), (0, 0, 0, 0, 0, 1))
    still = ((1, 0, 0, 0, 0, 0), (0, 1, 0, 0, 0, 0), (0, 0, 1, 0, 0, 0))
    second = [(0, 0, s, across, -up, 0), (0, 0, 0, up, across, 0), (0, 0, s, across, -up, 1)]
    return _rows(*still, *second) @ move
