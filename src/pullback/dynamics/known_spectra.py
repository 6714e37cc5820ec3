"""Processes whose operators are known: a noisy logistic map, and diffusion in a potential on a line."""

from __future__ import annotations

from collections.abc import Callable
from math import comb

import numpy as np
import torch

from pullback.core.checks import check_callable, check_floating, check_integer, check_positive, check_scalar
from pullback.core.random import drawing_device
from pullback.core.shapes import Float, Scalar, Shaped, Tensor
from pullback.core.transforms import can_look
from pullback.dynamics.operator_scores import FeatureCovariances

__all__ = ["NoisyLogisticMap", "four_well_potential", "langevin_generator"]


class NoisyLogisticMap:
    r"""The chain :math:`X_{t+1}=4X_t(1-X_t)+\xi_t\bmod1` on [0, 1), with :math:`\xi\sim\cos^N(\pi\xi)`.

    The density of a step is a sum of N + 1 products,
    :math:`p(y\mid x)=\alpha(x)^T\beta(y)`, with
    :math:`\beta=(1,\sqrt{2w_k}\cos2\pi ky,\sqrt{2w_k}\sin2\pi ky)_{k=1..N/2}`,
    :math:`w_k=\binom N{N/2+k}/\binom N{N/2}` and :math:`\alpha(x)=\beta(4x(1-x))`. So the transfer operator has rank
    N + 1: its eigenvalues are those of :math:`\int\beta\alpha^T`, and all expectations below are integrals over [0, 1].

    Args:
        order: N >= 2, even: the larger, the smaller the noise.

    Raises:
        TypeError: ``order`` is no integer.
        ValueError: ``order`` is odd or out of range.

    Example:
        >>> [f"{value:.4f}" for value in NoisyLogisticMap(20).eigenvalues()[:3].tolist()]
        ['1.0000+0.0000j', '-0.1933+0.1909j', '-0.1933-0.1909j']

    References:
        Ostruszka, Pakonski, Slomczynski, Zyczkowski (2000), Dynamical entropy for systems with stochastic
        perturbation, Physical Review E 62; Kostic, Novelli, Grazzi, Lounici, Pontil (2024), arXiv 2307.09912,
        section 6.
    """

    def __init__(self, order: int = 20) -> None:
        check_integer("order", order, 2)
        if order % 2:
            raise ValueError(f"order must be even, got {order}")
        self.order = order
        half = order // 2
        ratios = [comb(order, half + k) / comb(order, half) for k in range(1, half + 1)]
        self._scale = (2 * torch.tensor(ratios, dtype=torch.float64)).sqrt()
        x, weight = self._nodes(64 + 4 * order)
        self._matrix = (self.after(x) * weight[:, None]).mT @ self.before(x)
        values, vectors = torch.linalg.eig(self._matrix.mT)
        perron = vectors[:, (values - 1).abs().argmin()].real
        self._stationary = perron / perron[0]

    def after(self, y: Shaped[Tensor, "*batch"]) -> Float[Tensor, "*batch m"]:
        r"""Return :math:`\beta(y)`, ``[*batch, N + 1]``, float64."""
        angle = 2 * torch.pi * y.double()[..., None] * torch.arange(1, self.order // 2 + 1)
        return torch.cat([torch.ones_like(angle[..., :1]), self._scale * angle.cos(), self._scale * angle.sin()], -1)

    def before(self, x: Shaped[Tensor, "*batch"]) -> Float[Tensor, "*batch m"]:
        r"""Return :math:`\alpha(x)`, ``[*batch, N + 1]``, float64."""
        x = x.double()
        return self.after(4 * x * (1 - x))

    def density(self, x: Shaped[Tensor, "*#batch"], y: Shaped[Tensor, "*#batch"]) -> Float[Tensor, "*batch"]:
        """Return the density of a step from ``x`` to ``y``, numbers in [0, 1]."""
        return (self.before(x) * self.after(y)).sum(-1)

    def stationary(self, x: Shaped[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Return the density at ``x`` that a step keeps."""
        return self.after(x) @ self._stationary

    def eigenvalues(self) -> Tensor:
        """Return the N + 1 eigenvalues of the transfer operator that can differ from 0, largest modulus first."""
        values = torch.linalg.eigvals(self._matrix)
        return values[values.abs().argsort(descending=True, stable=True)]

    def singular_values(self) -> Float[Tensor, "m"]:
        """Return its singular values on functions that are square integrable by the stationary law, largest first."""
        x, weight = self._nodes(256 + 16 * self.order)
        before, after, law = self.before(x), self.after(x), self.stationary(x)
        start = (before * (weight * law)[:, None]).mT @ before
        end = (after * (weight / law)[:, None]).mT @ after
        values, vectors = torch.linalg.eigh(start)
        root = vectors * values.clamp_min(0).sqrt() @ vectors.mT
        return torch.linalg.eigvalsh(root @ end @ root).clamp_min(0).sqrt().flip(0)

    def covariances(
        self,
        features: Callable[[Tensor], Tensor],
        later: Callable[[Tensor], Tensor] | None = None,
        *,
        nodes: int = 2048,
    ) -> FeatureCovariances:
        r"""Return the expectations of :func:`covariances` under the stationary law, without a sample.

        Args:
            features: :math:`\psi`, from states ``[n, 1]`` to ``[n, r]``.
            later: :math:`\psi'` of the state one step later; ``None``: the same.
            nodes: of quadrature, at least 16; smooth features need few.

        Returns:
            The three matrices, float64.

        Raises:
            TypeError: a function that cannot be called, or does not return floating numbers.
            ValueError: another shape than ``[n, r]``, or ``nodes`` out of range.
        """
        check_callable("features", features)
        check_callable("later", later or features)
        check_integer("nodes", nodes, 16)
        x, weight = self._nodes(nodes)
        found = []
        for name, function in (("features", features), ("later", later or features)):
            value = check_floating(name, function(x[:, None]))
            if value.ndim != 2 or len(value) != len(x):
                raise ValueError(f"{name} must map ({len(x)}, 1) to ({len(x)}, r), got {tuple(value.shape)}")
            found.append(value.double())
        now, then = found
        law = (weight * self.stationary(x))[:, None]
        across = ((now * law).mT @ self.before(x)) @ ((self.after(x) * weight[:, None]).mT @ then)
        return FeatureCovariances((now * law).mT @ now, (then * law).mT @ then, across)

    def sample(
        self, start: Float[Tensor, "*batch"], steps: int, *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "times *batch"]:
        r"""Return paths: ``[steps + 1, *batch]``, the start first.

        The noise is an angle of a direction :math:`z` that is uniform in N + 2 dimensions,
        :math:`\pi\xi=\arctan(z_0/|z_{1:}|)`.

        Args:
            start: ``[*batch]`` in [0, 1).
            steps: >= 1.
            generator: source of the noise.

        Raises:
            TypeError: ``start`` is not floating, or ``steps`` no integer.
            ValueError: ``start`` or ``steps`` out of range.
        """
        check_floating("start", start)
        check_integer("steps", steps, 1)
        if can_look(start) and not bool(((start >= 0) & (start < 1)).all()):
            raise ValueError(f"start must be in [0, 1), got {start.min().item()} to {start.max().item()}")
        shape = (steps, *start.shape, self.order + 2)
        drawn = torch.randn(shape, generator=generator, device=drawing_device(generator, start), dtype=start.dtype)
        noise = (torch.atan2(drawn[..., 0], drawn[..., 1:].norm(dim=-1)) / torch.pi).to(start.device)
        path = [start]
        for xi in noise.unbind(0):
            x = path[-1]
            moved = torch.remainder(4 * x * (1 - x) + xi, 1)
            path.append(torch.where(moved < 1, moved, 0.0))  # the remainder of a tiny negative number rounds to 1
        return torch.stack(path)

    @staticmethod
    def _nodes(count: int) -> tuple[Tensor, Tensor]:
        """Nodes and weights on [0, 1]: Gauss-Legendre of 16 nodes on equal pieces."""
        x, weight = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(16))
        pieces = -(-count // 16)
        points = (torch.arange(pieces)[:, None] + (x + 1) / 2) / pieces
        return points.flatten(), (weight / 2 / pieces).repeat(pieces)


def four_well_potential(x: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    r"""Return :math:`U=4\left(x^8+\frac45e^{-80x^2}+\frac15e^{-80(x-1/2)^2}+\frac12e^{-40(x+1/2)^2}\right)`.

    It has four wells in [-1, 1], between barriers of 0.5 to 3.

    Args:
        x: ``[*batch]``.

    Returns:
        ``[*batch]``, in units of the temperature, say.

    Raises:
        TypeError: ``x`` is not floating.

    Example:
        >>> round(four_well_potential(torch.zeros(())).item(), 3)
        3.2

    References:
        Schuette, Sarich (2013), Metastability and Markov state models in molecular dynamics; Prinz et al. (2011),
        Markov models of molecular kinetics, Journal of Chemical Physics 134, section V.
    """
    check_floating("x", x)
    bumps = (0.8, 80.0, 0.0), (0.2, 80.0, 0.5), (0.5, 40.0, -0.5)
    return 4 * (x**8 + sum(height * torch.exp(-slope * (x - at) ** 2) for height, slope, at in bumps))


def langevin_generator(
    potential: Float[Tensor, "*batch n"], *, spacing: float, temperature: Scalar = 1.0, symmetric: bool = False
) -> Float[Tensor, "*batch n n"]:
    r"""Return the generator of :math:`dX=-U'(X)\,dt+\sqrt{2T}\,dW` on equal cells between reflecting walls.

    A cell is left for a neighbour at the rate :math:`\frac T{h^2}B\!\left(\frac{U_j-U_i}T\right)` with
    :math:`B(z)=z/(e^z-1)`, exact where U is linear between the middles, so that :math:`e^{-U/T}` is kept exactly and is
    reversible. The eigenvalues converge with :math:`h^2`. The symmetric matrix :math:`e^{-U/2T}Le^{U/2T}` has the same
    ones; both are tridiagonal.

    Args:
        potential: ``[*batch, n]`` U in the middle of the cells, n >= 2.
        spacing: h > 0, the width of a cell.
        temperature: T > 0, in units of U; may be differentiated.
        symmetric: which of the two matrices.

    Returns:
        ``[*batch, n, n]``, from the cell of the row to that of the column, units of one over time.

    Raises:
        TypeError: ``potential`` is not floating.
        ValueError: a shape or a number out of range.

    Example:
        >>> langevin_generator(torch.zeros(3), spacing=1.0).tolist()
        [[-1.0, 1.0, 0.0], [1.0, -2.0, 1.0], [0.0, 1.0, -1.0]]

    References:
        Scharfetter, Gummel (1969), Large-signal analysis of a silicon read diode oscillator; Bou-Rabee, Vanden-Eijnden
        (2018), Continuous-time random walks for the numerical solution of stochastic differential equations, section 2.
    """
    if check_floating("potential", potential).ndim < 1 or potential.shape[-1] < 2:
        raise ValueError(f"potential must have shape (..., n) with n >= 2, got {tuple(potential.shape)}")
    check_positive("spacing", spacing)
    check_scalar("temperature", temperature)
    rate = temperature / spacing**2
    z = potential.diff(dim=-1) / temperature
    up, down = rate * _bernoulli(z), rate * _bernoulli(-z)
    zero = torch.zeros_like(up[..., :1])
    stay = -torch.cat([up, zero], -1) - torch.cat([zero, down], -1)
    if symmetric:
        up = down = rate * _bernoulli(z, half=True)
    return torch.diag_embed(stay) + torch.diag_embed(up, 1) + torch.diag_embed(down, -1)


def _bernoulli(z: Tensor, *, half: bool = False) -> Tensor:
    """``z / (e^z - 1)``, or ``half`` the geometric mean of that at z and -z; smooth at 0, finite everywhere."""
    near = z.abs() < 0.1
    small, far = torch.where(near, z, 0.0), torch.where(near, 1.0, z)
    square = small * small
    even = 1 - square / 24 * (1 - square * 7 / 240 * (1 - square * 31 / 1176))
    series = even if half else 1 - small / 2 + square / 12 * (1 - square / 60 * (1 - square / 42))
    size = far.abs()
    closed = size / -torch.expm1(-size) * torch.exp(-size / 2 if half else -far.clamp_min(0))
    return torch.where(near, series, closed)
