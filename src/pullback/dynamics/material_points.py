"""Soft bodies as clouds of points that meet on a grid: the moving least squares material point method."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pullback.core.checks import (
    check_broadcast,
    check_finite,
    check_floating,
    check_integer,
    check_positive,
    check_range,
    check_same_dtype,
    check_shape,
    check_tensor,
)
from pullback.core.shapes import Float, Int
from pullback.core.transforms import can_look

__all__ = ["MaterialMotion", "MaterialPoints"]

_TURNED = 1e-12
"""Added under the root of a rotation's size: a body that is turned inside out has a gradient."""


class MaterialMotion(NamedTuple):
    """A simulated motion.

    Attributes:
        positions: ``[steps + 1, *batch, n, 2]``.
        velocities: ``[steps + 1, *batch, n, 2]``.
        affine: ``[*batch, n, 2, 2]``, C at the end: how the velocity changes around each point [1/s].
        deformation: ``[*batch, n, 2, 2]``, F at the end.
    """

    positions: Tensor
    velocities: Tensor
    affine: Tensor
    deformation: Tensor


class MaterialPoints(nn.Module):
    r"""An elastic body of points in a square box, which push on each other through a grid; parts of it are muscles.

    A step hands momentum to the grid, where forces and walls act, and takes it back, with quadratic weights
    :math:`w_{ip}` and the spacing s of the grid:

    .. math::
        F^+ = (I + h C) F, \qquad \tau = 2\mu (F - R) F^T + \lambda J (J - 1) I + \alpha u\, (F d)(F d)^T \\
        m_i v_i = \sum_p w_{ip} \big[ m_p v_p + \big(m_p C_p - \tfrac{4 h}{s^2} V_p \tau_p\big) (x_i - x_p) \big]
            + h\, m_i g \\
        v_p^+ = \sum_i w_{ip} v_i, \qquad C_p^+ = \tfrac{4}{s^2} \sum_i w_{ip} v_i (x_i - x_p)^T, \qquad
        x_p^+ = x_p + h v_p^+

    at F = R S (its rotation and stretch) and J = det F: the fixed corotated material, whose energy is
    :math:`\sum_p V_p [\mu |F - R|^2 + \tfrac{\lambda}{2} (J - 1)^2]`. A muscle pulls along the fibre d that its command
    u is for. Momentum and angular momentum are kept where no wall is near. On the floor a velocity loses its downward
    part and, along it, ``friction`` times that, not below 0; the other walls take what points into them.

    Args:
        volume: ``[n]`` area of each point at rest, > 0 [m^2].
        cells: of the grid along each side, >= 8.
        size: of the box, > 0 [m]; it begins at 0.
        walls: a wall acts on the nodes of the grid that are nearer to its side than so many cells, in 2..cells / 4.
        density: > 0 [kg/m^2].
        youngs: Young's modulus > 0 [N/m].
        poisson: Poisson's ratio in (-1, 0.5).
        gravity: vertical acceleration [m/s^2].
        friction: Coulomb's coefficient >= 0; None: what touches the floor sticks.
        muscles: ``[n]`` integers, the command that each point obeys, -1 for none.
        fibres: ``[n, 2]`` directions d at rest; upwards without them.
        strength: alpha >= 0, the stress of a command of 1 [N/m].

    Raises:
        TypeError: ``muscles`` are not integers.
        ValueError: shapes do not fit or a number is out of range.

    Example:
        >>> across, up = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
        >>> x = 0.4 + 0.02 * torch.stack([across, up], -1).flatten(0, 1)
        >>> body = MaterialPoints(torch.full((64,), 4e-4), cells=20, youngs=5.0)
        >>> motion = body.simulate(x, torch.zeros_like(x), torch.zeros(50, 0), dt=4e-3)
        >>> fallen = (motion.positions[-1] - x).mean(0)
        >>> [round(part, 4) for part in fallen.tolist()], round(1.8 * 0.004**2 * 50 * 51 / 2, 4)
        ([0.0, -0.0367], 0.0367)

    References:
        Hu, Fang, Ge, Qu, Zhu, Pradhana, Jiang (2018), A moving least squares material point method with displacement
        discontinuity and two-way rigid body coupling; Hu, Liu, Spielberg, Tenenbaum, Freeman, Wu, Rus, Matusik (2019),
        ChainQueen, arXiv 1810.01054; Fang et al. (2022), arXiv 2206.02341, whose soft robots these are.
    """

    volume: Tensor
    muscles: Tensor
    fibres: Tensor

    def __init__(
        self,
        volume: Float[Tensor, " n"],
        *,
        cells: int = 32,
        size: float = 1.0,
        walls: int = 3,
        density: float = 1.0,
        youngs: float = 10.0,
        poisson: float = 0.2,
        gravity: float = -1.8,
        friction: float | None = 0.5,
        muscles: Int[Tensor, " n"] | None = None,
        fibres: Float[Tensor, "n 2"] | None = None,
        strength: float = 1.0,
    ) -> None:
        super().__init__()
        if check_floating("volume", volume).ndim != 1:
            raise ValueError(f"volume must have shape [n], got {tuple(volume.shape)}")
        check_positive("volume", volume)
        self.cells = check_integer("cells", cells, 8)
        self.walls = check_integer("walls", walls, 2, cells // 4)
        for name, value in (("size", size), ("density", density), ("youngs", youngs)):
            check_positive(name, value)
        check_positive("strength", strength, zero=True)
        check_range("poisson", poisson, -1, 0.5)
        if poisson in (-1, 0.5):
            raise ValueError(f"poisson must be in (-1, 0.5), got {poisson}")
        if not math.isfinite(gravity):
            raise ValueError(f"gravity must be finite, got {gravity}")
        if friction is not None:
            check_positive("friction", friction, zero=True)
        if muscles is None:
            muscles = torch.full(volume.shape, -1, dtype=torch.int64, device=volume.device)
        if check_tensor("muscles", muscles).dtype != torch.int64:
            raise TypeError(f"muscles must be int64, got {muscles.dtype}")
        if muscles.shape != volume.shape or bool((muscles < -1).any()):
            raise ValueError(f"muscles must be {len(volume)} numbers from -1, got shape {tuple(muscles.shape)}")
        if fibres is None:
            fibres = volume.new_tensor([0.0, 1.0]).expand(len(volume), 2).clone()
        check_same_dtype(volume=volume, fibres=check_floating("fibres", fibres))
        check_finite("fibres", fibres)
        if fibres.shape != (len(volume), 2):
            raise ValueError(f"fibres must have shape ({len(volume)}, 2), got {tuple(fibres.shape)}")
        self.register_buffer("volume", volume)
        self.register_buffer("muscles", muscles)
        self.register_buffer("fibres", fibres)
        self.spacing, self.size, self.density = size / cells, size, density
        self.shear, self.bulk = youngs / (2 * (1 + poisson)), youngs * poisson / ((1 + poisson) * (1 - 2 * poisson))
        self.gravity, self.friction, self.strength = gravity, friction, strength
        self.commands = int(muscles.max()) + 1 if muscles.numel() else 0

    def simulate(
        self,
        x: Float[Tensor, "*#batch n 2"],
        v: Float[Tensor, "*#batch n 2"],
        controls: Float[Tensor, "steps *#batch commands"],
        *,
        affine: Float[Tensor, "*#batch n 2 2"] | None = None,
        deformation: Float[Tensor, "*#batch n 2 2"] | None = None,
        dt: float = 1e-3,
    ) -> MaterialMotion:
        """Simulate from positions and velocities under commands.

        Args:
            x: ``[*batch, n, 2]`` positions [m], a cell or more from every side of the box.
            v: ``[*batch, n, 2]`` velocities [m/s].
            controls: ``[steps, *batch, commands]``, u; without muscles ``commands`` is 0.
            affine: C at the start; 0 without it.
            deformation: F at the start; I without it.
            dt: h > 0 [s], below :meth:`stable_step`.

        Returns:
            A :class:`MaterialMotion`, differentiable in all tensors and in the buffers.

        Raises:
            TypeError: a tensor is not floating, or the dtypes differ.
            ValueError: shapes do not fit, a number is not finite, or a point leaves the box (named with the step).
        """
        check_positive("dt", dt)
        count = len(self.volume)
        for name, value, shape in (
            ("x", x, (count, 2)),
            ("v", v, (count, 2)),
            ("controls", controls, (self.commands,)),
        ):
            check_shape(name, check_floating(name, value), shape)
        if controls.ndim < 2:
            raise ValueError("controls must have shape [steps, *batch, commands], got one dimension")
        eye = torch.eye(2, dtype=x.dtype, device=x.device).expand(count, 2, 2)
        affine = torch.zeros_like(eye) if affine is None else affine
        deformation = eye if deformation is None else deformation
        for name, value in (("affine", affine), ("deformation", deformation)):
            check_shape(name, check_floating(name, value), (count, 2, 2))
        check_same_dtype(x=x, v=v, controls=controls, affine=affine, deformation=deformation, volume=self.volume)
        batch = check_broadcast(
            x=tuple(x.shape[:-2]),
            v=tuple(v.shape[:-2]),
            controls=tuple(controls.shape[1:-1]),
            affine=tuple(affine.shape[:-3]),
            deformation=tuple(deformation.shape[:-3]),
        )
        x, v = x.expand(*batch, count, 2), v.expand(*batch, count, 2)
        c, f = affine.expand(*batch, count, 2, 2), deformation.expand(*batch, count, 2, 2)
        if can_look(x):
            for name, value in (("v", v), ("controls", controls), ("affine", c), ("deformation", f)):
                check_finite(name, value)
        positions, velocities = [x], [v]
        for u in controls:
            self._check_inside(x, len(positions) - 1)
            x, v, c, f = self._step(x, v, c, f, u, dt)
            positions.append(x)
            velocities.append(v)
        self._check_inside(x, len(positions) - 1)
        return MaterialMotion(torch.stack(positions), torch.stack(velocities), c, f)

    def stress(self, deformation: Float[Tensor, "*batch n 2 2"]) -> Float[Tensor, "*batch n 2 2"]:
        """Return Kirchhoff's stress tau of a deformation, without muscles [N/m]."""
        check_shape("deformation", check_floating("deformation", deformation), (len(self.volume), 2, 2))
        rotation, ratio = _rotation(deformation), _determinant(deformation)
        eye = torch.eye(2, dtype=deformation.dtype, device=deformation.device)
        sheared = 2 * self.shear * (deformation - rotation) @ deformation.mT
        return sheared + (self.bulk * ratio * (ratio - 1))[..., None, None] * eye

    def energy(
        self,
        x: Float[Tensor, "*batch n 2"],
        v: Float[Tensor, "*batch n 2"],
        affine: Float[Tensor, "*batch n 2 2"],
        deformation: Float[Tensor, "*batch n 2 2"],
    ) -> Float[Tensor, "*batch"]:
        """Return kinetic (with that of the affine parts), elastic and gravitational energy, from height 0 [J]."""
        count = len(self.volume)
        shapes: dict[str, tuple[Tensor, tuple[int, ...]]] = {"x": (x, (count, 2)), "v": (v, (count, 2))}
        shapes |= {"affine": (affine, (count, 2, 2)), "deformation": (deformation, (count, 2, 2))}
        for name, (value, shape) in shapes.items():
            check_shape(name, check_floating(name, value), shape)
        off = (deformation - _rotation(deformation)).square().sum((-2, -1))
        elastic = self.shear * off + self.bulk / 2 * (_determinant(deformation) - 1).square()
        moving = v.square().sum(-1) + self.spacing**2 / 4 * affine.square().sum((-2, -1))
        return (self.volume * (elastic + self.density * (moving / 2 - self.gravity * x[..., 1]))).sum(-1)

    def stable_step(self) -> float:
        """Return the time in which a sound wave crosses a cell [s]: steps are to stay well below it."""
        return self.spacing * math.sqrt(self.density / (self.bulk + 2 * self.shear))

    def _step(
        self, x: Tensor, v: Tensor, c: Tensor, f: Tensor, u: Tensor, dt: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        batch, (count, across) = x.shape[:-2], (x.shape[-2], self.cells + 1)  # nodes on both sides of the box
        f = f + dt * c @ f
        stress = self.stress(f)
        if self.commands:
            told = torch.where(self.muscles >= 0, u[..., self.muscles.clamp_min(0)], 0.0)
            pulled = (f @ self.fibres[..., None])[..., 0]
            stress = stress + (self.strength * told)[..., None, None] * pulled[..., :, None] * pulled[..., None, :]
        mass = self.density * self.volume
        push = mass[:, None, None] * c - (4 * dt / self.spacing**2) * self.volume[:, None, None] * stress

        place = x / self.spacing
        base = (place.detach() - 0.5).floor().clamp(0, across - 3)
        at = place - base
        weights = torch.stack([0.5 * (1.5 - at).square(), 0.75 - (at - 1).square(), 0.5 * (at - 0.5).square()])
        near = torch.cartesian_prod(torch.arange(3, device=x.device), torch.arange(3, device=x.device))  # [9, 2]
        share = weights[near[:, 0], ..., 0] * weights[near[:, 1], ..., 1]  # [9, *batch, n]
        steps = near.to(x).view(9, *[1] * len(batch), 1, 2)
        away = (steps - at) * self.spacing  # from each point to its nodes
        node = base.long() + near.view(9, *[1] * len(batch), 1, 2)
        index = node[..., 0] * across + node[..., 1]
        given = share[..., None] * (mass[:, None] * v + (push @ away[..., None])[..., 0])
        both = torch.cat([given, (share * mass)[..., None]], -1)  # momentum and mass

        rows = batch.numel()
        own = across * across * torch.arange(rows, device=x.device).view(*batch, 1)
        index = (index + own).flatten()
        grid = x.new_zeros(rows * across * across, 3).index_add(0, index, both.reshape(-1, 3))
        grid = grid.view(rows, across, across, 3)
        full = grid[..., 2] > 0
        speed = torch.where(full[..., None], grid[..., :2] / torch.where(full, grid[..., 2], 1.0)[..., None], 0.0)
        speed = self._walled(speed + torch.tensor([0.0, dt * self.gravity], dtype=x.dtype, device=x.device))

        found = speed.reshape(-1, 2)[index].view(9, *batch, count, 2)
        v = (share[..., None] * found).sum(0)
        c = (4 / self.spacing**2) * (share[..., None, None] * found[..., :, None] * away[..., None, :]).sum(0)
        return x + dt * v, v, c, f

    def _walled(self, speed: Tensor) -> Tensor:
        """Velocities of the nodes ``[rows, across, up, 2]`` next to floor and walls."""
        along, up = speed.unbind(-1)
        node = torch.arange(self.cells + 1, device=speed.device)
        low, high = node < self.walls, node > self.cells - self.walls
        lands = low & (up < 0)
        if self.friction is None:
            slid = torch.zeros_like(along)
        else:
            left = (along.abs() + self.friction * up).clamp_min(0)
            slid = torch.where(along >= 0, left, -left)
        along, up = torch.where(lands, slid, along), torch.where(lands | (high & (up > 0)), 0.0, up)
        blocked = (low[:, None] & (along < 0)) | (high[:, None] & (along > 0))
        return torch.stack([torch.where(blocked, 0.0, along), up], -1)

    def _check_inside(self, x: Tensor, step: int) -> None:
        if can_look(x):
            outside = ~((x >= self.spacing) & (x <= self.size - self.spacing)).all(-1)
            if bool(outside.any()):
                worst = outside.nonzero()[0].tolist()
                raise ValueError(
                    f"points must stay a cell of {self.spacing:.3g} m from every side of the box of {self.size:.3g} m, "
                    f"got point {worst[-1]} at {[round(float(p), 4) for p in x[tuple(worst)]]} in step {step}: shorten "
                    "dt or start farther inside"
                )


def _determinant(f: Tensor) -> Tensor:
    return f[..., 0, 0] * f[..., 1, 1] - f[..., 0, 1] * f[..., 1, 0]


def _rotation(f: Tensor) -> Tensor:
    """The rotation nearest to ``[*batch, 2, 2]``."""
    cosine, sine = f[..., 0, 0] + f[..., 1, 1], f[..., 1, 0] - f[..., 0, 1]
    size = (cosine.square() + sine.square() + _TURNED).sqrt()
    cosine, sine = cosine / size, sine / size
    return torch.stack([torch.stack([cosine, -sine], -1), torch.stack([sine, cosine], -1)], -2)
