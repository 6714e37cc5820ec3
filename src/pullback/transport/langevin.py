"""Sampling a law that is known up to a factor, by the gradient of its potential."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import func

from pullback.core.checks import check_callable, check_floating, check_integer, check_positive, check_scalar
from pullback.core.random import drawing_device
from pullback.core.shapes import Float, Scalar, Tensor

__all__ = ["LangevinSamples", "langevin"]


class LangevinSamples(NamedTuple):
    """Where chains of Langevin are after their steps.

    Attributes:
        theta: ``[*batch, d]`` the last point of each chain.
        accepted: ``[*batch]`` the part of its steps that was taken; 1 for chains that are not adjusted.
    """

    theta: Float[Tensor, "*batch d"]
    accepted: Float[Tensor, "*batch"]


def langevin(
    potential: Callable[[Tensor], Tensor],
    theta: Float[Tensor, "*batch d"],
    *,
    step: float,
    temperature: Scalar = 1.0,
    steps: int = 1,
    adjusted: bool = False,
    generator: torch.Generator | None = None,
) -> LangevinSamples:
    r"""Move chains towards the law :math:`q(\theta)\propto\exp(-V(\theta)/T)`, one chain a row.

    :math:`\theta'=\theta-s\,\nabla V(\theta)+\sqrt{2Ts}\,\xi` with normal :math:`\xi`. The law that these steps keep is
    off by O(s): that of ``V = |theta|^2 / 2`` is wider by the factor :math:`1/(1-s/2)` in variance, and steps above
    ``2 / L`` diverge, L the largest curvature. ``adjusted`` takes a step with the probability of Metropolis and
    Hastings, else stays: then q itself is kept. Chains go on from where they ended: hand ``theta`` in again.

    The points are a differentiable function of the start, the temperature and whatever the potential holds, given the
    noise (and the choices to stay): the graph holds all steps. Use ``torch.no_grad()`` where samples are all that is
    wanted.

    Args:
        potential: V, from points ``[*batch, d]`` to ``[*batch]``, each point by itself.
        theta: ``[*batch, d]`` where the chains begin.
        step: s > 0, in units of theta squared over those of V.
        temperature: T >= 0, in units of V; 0 is gradient descent.
        steps: >= 1.
        adjusted: accept or reject each step.
        generator: source of the noise.

    Returns:
        :class:`LangevinSamples`.

    Raises:
        TypeError: the potential cannot be called, ``theta`` is no floating tensor, an option is of another kind.
        ValueError: the potential returns another shape, ``adjusted`` at temperature 0, an option is out of range.

    Example:
        >>> wide = torch.full((2000, 1), 3.0)
        >>> g = torch.Generator().manual_seed(0)
        >>> found = langevin(lambda x: (x**2).sum(-1) / 8, wide, step=0.8, steps=100, generator=g)
        >>> abs(found.theta.std() - 2) < 0.2
        tensor(True)

    References:
        Roberts, Tweedie (1996), Exponential convergence of Langevin distributions and their discrete approximations.
    """
    check_callable("potential", potential)
    if check_floating("theta", theta).ndim < 1:
        raise ValueError("theta must have shape (..., d), got ()")
    check_positive("step", step)
    value = check_scalar("temperature", temperature, zero=not adjusted)
    check_integer("steps", steps, 1)
    heat = torch.as_tensor(temperature, dtype=theta.dtype, device=theta.device)
    spread = math.sqrt(2 * step) * (heat.sqrt() if value != 0 else 0 * heat)

    def slopes(points: Tensor) -> tuple[Tensor, Tensor]:
        def total(points: Tensor) -> tuple[Tensor, Tensor]:
            energy = potential(points)
            if not isinstance(energy, Tensor) or energy.shape != points.shape[:-1]:
                got = tuple(energy.shape) if isinstance(energy, Tensor) else type(energy).__name__
                raise ValueError(f"potential must return a tensor of shape {tuple(points.shape[:-1])}, got {got}")
            return energy.sum(), energy

        gradient, energy = func.grad(total, has_aux=True)(points)
        return gradient, energy

    device = drawing_device(generator, theta)
    accepted = torch.ones_like(theta[..., 0]) if theta.shape[-1] else theta.sum(-1) + 1
    if not adjusted:
        for _ in range(steps):
            noise = torch.randn(theta.shape, generator=generator, device=device, dtype=theta.dtype).to(theta.device)
            theta = theta - step * slopes(theta)[0] + spread * noise
        return LangevinSamples(theta, accepted)

    gradient, energy = slopes(theta)
    taken = torch.zeros_like(accepted)
    for _ in range(steps):
        noise = torch.randn(theta.shape, generator=generator, device=device, dtype=theta.dtype).to(theta.device)
        chance = torch.rand(theta.shape[:-1], generator=generator, device=device, dtype=theta.dtype).to(theta.device)
        there = theta - step * gradient + spread * noise
        there_gradient, there_energy = slopes(there)
        back = theta - there + step * there_gradient
        # log q(there) k(theta | there) - log q(theta) k(there | theta), k the normal proposal
        gain = (energy - there_energy) / heat + noise.square().sum(-1) / 2 - (back / spread).square().sum(-1) / 2
        good = (chance.log() < gain).detach()  # false where the proposal is not finite
        taken = taken + good
        theta = torch.where(good.unsqueeze(-1), there, theta)
        gradient = torch.where(good.unsqueeze(-1), there_gradient, gradient)
        energy = torch.where(good, there_energy, energy)
    return LangevinSamples(theta, taken / steps)
