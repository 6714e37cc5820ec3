"""Functionals of a law that has samples only: a maximum over witness functions of a mean there less one elsewhere.

:math:`F(P)=\\max_h\\;E_{x\\sim P}[A(x,h)+V(x)]-E_{z\\sim\\Gamma}B(z,h)+c`, with a reference law :math:`\\Gamma` that is
easy to sample. Any h gives a lower bound, so a density of P is not needed.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch.nn.functional import logsigmoid, softplus

from pullback.core.checks import check_callable, check_finite, check_floating, check_integer, check_positive
from pullback.core.random import drawing_device
from pullback.core.shapes import Float, Tensor
from pullback.core.transforms import can_look

__all__ = ["GeneralizedEntropy", "JensenShannon", "ReferenceLaw", "RelativeEntropy", "VariationalFunctional"]

Witness = Callable[[Tensor], Tensor]
"""From points ``[n, d]`` to numbers ``[n]``."""


class ReferenceLaw(ABC):
    """A law that can be sampled and has a density: Gamma."""

    @abstractmethod
    def sample(self, count: int, generator: torch.Generator | None = None) -> Float[Tensor, "count d"]:
        """Return independent samples."""

    @abstractmethod
    def log_prob(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n"]:
        """Return the logarithm of the density."""


class VariationalFunctional(ABC):
    """A functional as a maximum over witnesses: A, V, B, the constant, and the reference law.

    Attributes:
        constant: c.
    """

    constant: float = 0.0

    @abstractmethod
    def reference(self, points: Float[Tensor, "n d"]) -> ReferenceLaw:
        """Return the reference law for samples ``points`` of P; any would do, one near P leaves the witness little."""

    @abstractmethod
    def gain(self, x: Float[Tensor, "n d"], witness: Witness, reference: ReferenceLaw) -> Float[Tensor, "n"]:
        """Return A at samples of P, differentiable in them and in the witness."""

    def known(self, x: Float[Tensor, "n d"], reference: ReferenceLaw) -> Float[Tensor, "n"]:
        """Return V at samples of P, what is there without a witness; 0 if it is not said."""
        return torch.zeros_like(x[:, 0])

    @abstractmethod
    def cost(self, z: Float[Tensor, "n d"], witness: Witness, reference: ReferenceLaw) -> Float[Tensor, "n"]:
        """Return B at samples of the reference law."""

    def estimate(
        self,
        x: Float[Tensor, "n d"],
        witness: Witness,
        *,
        reference: ReferenceLaw | None = None,
        count: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, ""]:
        """Return the lower bound of F that a witness gives.

        Args:
            x: ``[n, d]`` samples of P.
            witness: h, or its logarithm, as the functional says.
            reference: Gamma, to which the witness belongs; ``None``: that of x.
            count: samples of the reference law; ``None``: n.
            generator: source of them.
        """
        _check_points("x", x)
        check_callable("witness", witness)
        law = self.reference(x.detach()) if reference is None else reference
        z = law.sample(len(x) if count is None else check_integer("count", count, 1), generator)
        there = self.gain(x, witness, law) + self.known(x, law)
        return there.mean() - self.cost(z, witness, law).mean() + self.constant


class RelativeEntropy(VariationalFunctional):
    r"""The divergence :math:`KL(P\,|\,Q)` from a target Q, of which a density up to a factor or samples are known.

    The witness is :math:`w=\log h`, best at :math:`\log dP/d\Gamma`. With a density,
    :math:`A=w`, :math:`V=\log\Gamma-\log Q`, :math:`B=e^w`, c = 1, and Gamma is normal with the mean and covariance of
    P's samples; with samples Gamma is Q and V = 0.

    Args:
        log_density: log Q up to a constant (by which F is off), from points ``[n, d]`` to ``[n]``.
        samples: ``[m, d]`` of Q, instead.

    Raises:
        TypeError, ValueError: none or both are given, or of another kind or shape.

    Example:
        >>> x = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0))
        >>> entropy = RelativeEntropy(lambda x: -(x[:, 0] - 1) ** 2 / 2 - 0.9189)
        >>> float(entropy.estimate(x, lambda x: 0 * x[:, 0])), "near 1 / 2"
        (0.5..., 'near 1 / 2')

    References:
        Fan, Zhang, Taghvaei, Chen (2022), Variational Wasserstein gradient flow.
        Nguyen, Wainwright, Jordan (2010), Estimating divergence functionals and the likelihood ratio.
    """

    constant = 1.0

    def __init__(
        self,
        log_density: Callable[[Tensor], Tensor] | None = None,
        *,
        samples: Float[Tensor, "m d"] | None = None,
    ) -> None:
        if (log_density is None) == (samples is None):
            raise ValueError("log_density or samples must be given, and not both")
        if log_density is not None:
            check_callable("log_density", log_density)
        self._log_density = log_density
        self._samples = None if samples is None else _Empirical(samples)

    def reference(self, points: Float[Tensor, "n d"]) -> ReferenceLaw:
        """Return the normal law with the mean and covariance of the points, or the target's samples."""
        return self._samples or _Normal(points)

    def gain(self, x: Float[Tensor, "n d"], witness: Witness, reference: ReferenceLaw) -> Float[Tensor, "n"]:
        """Return A."""
        return _values("witness", witness, x)

    def known(self, x: Float[Tensor, "n d"], reference: ReferenceLaw) -> Float[Tensor, "n"]:
        """Return V: 0 where the target has samples only."""
        if self._log_density is None:
            return super().known(x, reference)
        return reference.log_prob(x) - _values("log_density", self._log_density, x)

    def cost(self, z: Float[Tensor, "n d"], witness: Witness, reference: ReferenceLaw) -> Float[Tensor, "n"]:
        """Return B."""
        return _values("witness", witness, z).exp()


class GeneralizedEntropy(VariationalFunctional):
    r"""The entropy :math:`\frac1{m-1}\int P^m`, whose gradient flow is the porous medium :math:`\dot P=\Delta P^m`.

    Gamma is uniform on a box, its density q: :math:`A=\frac m{m-1}q^{m-1}h^{m-1}`, :math:`B=q^{m-1}h^m`. The witness is
    h, best at :math:`P/q`; where it is negative the powers go on as odd and even ones, with slopes that lead back.

    Args:
        power: m > 1.
        low: ``[d]`` corner of the box.
        high: ``[d]`` the corner across; all points must lie between them.

    Raises:
        TypeError, ValueError: of another kind, shape or range; later: points outside of the box.

    Example:
        >>> x = 2 * torch.rand(1000, 1, generator=torch.Generator().manual_seed(0))
        >>> entropy = GeneralizedEntropy(2.0, torch.tensor([-1.0]), torch.tensor([3.0]))
        >>> inside = lambda x: 2.0 * ((x[:, 0] > 0) & (x[:, 0] < 2))  # P / q: P is 1 / 2 there, q 1 / 4
        >>> abs(entropy.estimate(x, inside, count=50_000) - 0.5) < 0.02  # the integral of 1 / 4
        tensor(True)

    References:
        Fan, Zhang, Taghvaei, Chen (2022), Variational Wasserstein gradient flow.
    """

    def __init__(self, power: float, low: Float[Tensor, "d"], high: Float[Tensor, "d"]) -> None:
        check_positive("power", power)
        if power <= 1:
            raise ValueError(f"power must be > 1, got {power}")
        self._power, self._box = power, _Box(low, high)

    def reference(self, points: Float[Tensor, "n d"]) -> ReferenceLaw:
        """Return the uniform law on the box; refuse points outside of it."""
        self._box.check(points)
        return self._box

    def gain(self, x: Float[Tensor, "n d"], witness: Witness, reference: ReferenceLaw) -> Float[Tensor, "n"]:
        """Return A."""
        h, m = _values("witness", witness, x), self._power
        powered = h if m == 2 else h.sign() * _power(h.abs(), m - 1)
        return m / (m - 1) * self._box.density ** (m - 1) * powered

    def cost(self, z: Float[Tensor, "n d"], witness: Witness, reference: ReferenceLaw) -> Float[Tensor, "n"]:
        """Return B."""
        return self._box.density ** (self._power - 1) * _values("witness", witness, z).abs() ** self._power


class JensenShannon(VariationalFunctional):
    r"""The Jensen-Shannon divergence from a target Q that has samples only: at most log 2.

    Gamma is Q. The witness is w, best at :math:`\log dP/dQ`: :math:`A=\frac12\log\sigma(w)`,
    :math:`B=-\frac12\log\sigma(-w)`, c = log 2.

    Args:
        samples: ``[m, d]`` of Q.

    Raises:
        TypeError, ValueError: of another kind or shape.

    Example:
        >>> x = torch.zeros(10, 1)
        >>> far = JensenShannon(x + 5).estimate(x, lambda x: 20 * (2.5 - x[:, 0]))
        >>> torch.isclose(far, torch.tensor(2.0).log())
        tensor(True)

    References:
        Fan, Zhang, Taghvaei, Chen (2022), Variational Wasserstein gradient flow.
        Nowozin, Cseke, Tomioka (2016), f-GAN.
    """

    constant = math.log(2)

    def __init__(self, samples: Float[Tensor, "m d"]) -> None:
        self._samples = _Empirical(samples)

    def reference(self, points: Float[Tensor, "n d"]) -> ReferenceLaw:
        """Return the target's samples."""
        return self._samples

    def gain(self, x: Float[Tensor, "n d"], witness: Witness, reference: ReferenceLaw) -> Float[Tensor, "n"]:
        """Return A."""
        return logsigmoid(_values("witness", witness, x)) / 2

    def cost(self, z: Float[Tensor, "n d"], witness: Witness, reference: ReferenceLaw) -> Float[Tensor, "n"]:
        """Return B."""
        return softplus(_values("witness", witness, z)) / 2


class _Normal(ReferenceLaw):
    """The normal law with the mean and covariance of some points."""

    def __init__(self, points: Tensor) -> None:
        _check_points("x", points)
        count, dim = points.shape
        if count <= dim:
            raise ValueError(f"x must hold more points than dimensions, {dim}, got {count}")
        check_finite("x", points)
        self._dtype = points.dtype
        points = points.to(torch.promote_types(points.dtype, torch.float32))  # there is no root in half precision
        self._mean = points.mean(0)
        centred = points - self._mean
        covariance = centred.mT @ centred / count
        tiny = torch.finfo(points.dtype)
        least = (100 * tiny.eps * covariance.diagonal().mean()).clamp_min(tiny.tiny)  # points in a plane have a root
        self._root = torch.linalg.cholesky(
            covariance + least * torch.eye(dim, dtype=points.dtype, device=points.device)
        )

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        device = drawing_device(generator, self._mean)
        noise = torch.randn(count, len(self._mean), generator=generator, device=device, dtype=self._mean.dtype)
        return (self._mean + noise.to(self._mean.device) @ self._root.mT).to(self._dtype)

    def log_prob(self, x: Tensor) -> Tensor:
        white = torch.linalg.solve_triangular(self._root, (x.to(self._mean.dtype) - self._mean).mT, upper=False)
        scale = self._root.diagonal().log().sum() + len(self._mean) / 2 * math.log(2 * math.pi)
        return (-white.square().sum(0) / 2 - scale).to(x.dtype)


class _Box(ReferenceLaw):
    """The uniform law on a box."""

    def __init__(self, low: Tensor, high: Tensor) -> None:
        for name, corner in (("low", low), ("high", high)):
            if check_floating(name, corner).ndim != 1 or not len(corner):
                raise ValueError(f"{name} must have shape (d,), got {tuple(corner.shape)}")
            check_finite(name, corner)
        if low.shape != high.shape or not bool((low < high).all()):
            raise ValueError(f"high must be above low in each coordinate, got {low.tolist()} and {high.tolist()}")
        self._low, self._high = low.detach(), high.detach()
        self.density = 1 / float((high - low).double().prod())

    def check(self, points: Tensor) -> None:
        _check_points("x", points)
        if points.shape[-1] != len(self._low):
            raise ValueError(f"x must have {len(self._low)} coordinates as the box, got {points.shape[-1]}")
        outside = ((points < self._low) | (points > self._high)).any(-1)
        if can_look(outside) and bool(outside.any()):
            raise ValueError(f"x must lie in the box of the functional, {int(outside.sum())} points do not")

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        device = drawing_device(generator, self._low)
        draws = torch.rand(count, len(self._low), generator=generator, device=device, dtype=self._low.dtype)
        return self._low + (self._high - self._low) * draws.to(self._low.device)

    def log_prob(self, x: Tensor) -> Tensor:
        inside = ((x >= self._low) & (x <= self._high)).all(-1)
        return torch.where(inside, math.log(self.density), -math.inf).to(x.dtype)


class _Empirical(ReferenceLaw):
    """Samples, drawn with replacement."""

    def __init__(self, samples: Tensor) -> None:
        _check_points("samples", samples)
        check_finite("samples", samples)
        self._samples = samples.detach()

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        device = drawing_device(generator, self._samples)
        chosen = torch.randint(len(self._samples), (count,), generator=generator, device=device)
        return self._samples[chosen.to(self._samples.device)]

    def log_prob(self, x: Tensor) -> Tensor:
        raise NotImplementedError("samples have no density")


def _power(base: Tensor, exponent: float) -> Tensor:
    """``base ** exponent`` with a finite slope at 0."""
    positive = base > 0
    return torch.where(positive, torch.where(positive, base, 1) ** exponent, 0)


def _values(name: str, function: Witness, x: Tensor) -> Tensor:
    found = function(x)
    if not isinstance(found, Tensor) or found.shape != x.shape[:1]:
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"{name} must return a tensor of shape {tuple(x.shape[:1])}, got {got}")
    return found


def _check_points(name: str, points: Tensor) -> None:
    if check_floating(name, points).ndim != 2 or not points.numel():
        raise ValueError(f"{name} must have shape (n, d) with n >= 1, got {tuple(points.shape)}")
