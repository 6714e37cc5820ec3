"""Convex problems over laws of neurons: entropic fictitious play, noisy descent, and how far from the optimum a law is.

A law mu of neurons theta has the outputs :math:`h_i=E_\\mu h(\\theta,x_i)`, and what is minimised over all laws is
:math:`P(\\mu)=\\frac1n\\sum_i l(h_i,y_i)+c\\,E_\\mu|\\theta|^2+\\lambda\\,E_\\mu\\log\\mu`: convex, whatever h is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import func

from pullback.core.checks import (
    check_callable,
    check_floating,
    check_integer,
    check_positive,
    check_range,
    check_same_dtype,
    check_scalar,
)
from pullback.core.random import drawing_device
from pullback.core.shapes import Float, Scalar, Tensor
from pullback.core.transforms import can_look
from pullback.transport.langevin import langevin

__all__ = [
    "DualityGap",
    "EntropicFictitiousPlay",
    "MeanFieldLangevin",
    "duality_gap",
    "proximal_gibbs_potential",
]

Feature = Callable[[Tensor, Tensor], Tensor]
"""From neurons ``[m, d]`` and inputs ``[n, p]`` to outputs ``[m, n]``, or ``[m, n, k]``."""
Loss = Callable[[Tensor, Any], Tensor]
"""From outputs ``[n]``, or ``[n, k]``, and targets to a loss of each sample, ``[n]``; convex in the outputs."""


def proximal_gibbs_potential(
    theta: Float[Tensor, "*batch d"],
    x: Tensor,
    g: Tensor,
    *,
    feature: Feature,
    decay: Scalar = 0.0,
) -> Float[Tensor, "*batch"]:
    r"""Return :math:`V_g(\theta)=\frac1n\sum_i g_i\,h(\theta,x_i)+c\,|\theta|^2`.

    The law :math:`q_g\propto\exp(-V_g/\lambda)` is the best answer to a law whose outputs have the slopes
    :math:`g_i=l'(h_i)`; the optimum is the one that is its own best answer.

    Args:
        theta: ``[*batch, d]`` neurons.
        x: ``[n, p]`` inputs, handed to ``feature``.
        g: ``[n]``, or ``[n, k]``: the slope of each sample's loss in its outputs.
        feature: h, from theta and x to ``[*batch, *g.shape]``.
        decay: c >= 0.

    Returns:
        ``[*batch]``.

    Raises:
        TypeError: the feature cannot be called, ``theta`` or ``g`` is no floating tensor.
        ValueError: the feature returns another shape, ``g`` has no samples, ``decay`` is negative.

    Example:
        >>> theta, x, g = torch.tensor([[2.0], [1.0]]), torch.tensor([[1.0], [3.0]]), torch.tensor([1.0, 1.0])
        >>> proximal_gibbs_potential(theta, x, g, feature=lambda t, x: t @ x.mT, decay=0.5)
        tensor([6.0000, 2.5000])

    References:
        Nitanda, Oko, Wu, Takenouchi, Suzuki (2023), Primal and dual analysis of entropic fictitious play.
    """
    check_callable("feature", feature)
    if check_floating("theta", theta).ndim < 1:
        raise ValueError("theta must have shape (..., d), got ()")
    if check_floating("g", g).ndim < 1 or not g.numel():
        raise ValueError(f"g must have shape (n,) or (n, k) with n >= 1, got {tuple(g.shape)}")
    check_scalar("decay", decay, zero=True)
    out = _outputs(feature, theta, x, g.shape)
    fitted: Tensor = (out * (g / len(g))).flatten(theta.ndim - 1).sum(-1)
    return fitted + decay * theta.square().sum(-1)


class DualityGap(NamedTuple):
    """How far a law is from the optimum, and its best answer.

    Attributes:
        primal: ``[*batch]`` P(mu).
        dual: ``[*batch]`` D(g), at the slopes of mu's outputs: no law has a smaller P.
        divergence: ``[*batch]`` :math:`KL(\\mu\\,|\\,q_g)`; temperature times it is P - D.
        log_gibbs: ``[*batch, m]`` the logarithm of the density of the best answer q_g.
        outputs: ``[*batch, n]`` those of mu.
    """

    primal: Float[Tensor, "*batch"]
    dual: Float[Tensor, "*batch"]
    divergence: Float[Tensor, "*batch"]
    log_gibbs: Float[Tensor, "*batch m"]
    outputs: Float[Tensor, "*batch n"]


def duality_gap(
    log_density: Float[Tensor, "*batch m"],
    theta: Float[Tensor, "m d"],
    features: Float[Tensor, "m n"],
    y: Tensor,
    *,
    loss: Loss,
    temperature: Scalar,
    decay: Scalar = 0.0,
    volume: float = 1.0,
    conjugate: Loss | None = None,
) -> DualityGap:
    r"""Return P, D and what lies between them for a density on a grid of neurons.

    :math:`D(g)=-\frac1n\sum_il^*(g_i,y_i)-\lambda\log\int\exp(-V_g/\lambda)` bounds the optimum from below, and
    :math:`P(\mu)-D(g_\mu)=\lambda\,KL(\mu\,|\,q_{g_\mu})`: a certificate, exact up to the integrals, which are sums
    over the grid here.

    Args:
        log_density: ``[*batch, m]`` logarithms of the density at the grid's points, normalised: the sum of
            ``volume * exp`` is 1.
        theta: ``[m, d]`` the points.
        features: ``[m, n]`` h(theta_j, x_i), the output of each for each sample.
        y: targets, handed to the loss.
        loss: l, from outputs ``[n]`` and y to ``[n]``.
        temperature: lambda > 0.
        decay: c >= 0.
        volume: > 0, of a cell of the grid.
        conjugate: l*, from slopes ``[n]`` and y to ``[n]``; ``None``: ``g h - l(h)``, which is its value there.

    Returns:
        :class:`DualityGap`.

    Raises:
        TypeError: a function cannot be called, a tensor is not floating.
        ValueError: shapes do not fit, an option is out of range.

    Example:
        >>> theta = torch.linspace(-3, 3, 101).unsqueeze(-1)
        >>> flat = torch.full((101,), 1 / 101).log()
        >>> square = lambda h, y: (h - y) ** 2 / 2
        >>> found = duality_gap(flat, theta, theta.tanh(), torch.tensor([0.3]), loss=square, temperature=0.1)
        >>> torch.isclose(found.primal - found.dual, 0.1 * found.divergence, atol=1e-5)
        tensor(True)

    References:
        Nitanda, Oko, Wu, Takenouchi, Suzuki (2023), Primal and dual analysis of entropic fictitious play.
    """
    check_callable("loss", loss)
    if conjugate is not None:
        check_callable("conjugate", conjugate)
    for name, tensor, shape in (("theta", theta, "m d"), ("features", features, "m n")):
        if check_floating(name, tensor).ndim != 2 or not tensor.numel():
            raise ValueError(f"{name} must have shape ({shape.replace(' ', ', ')}), got {tuple(tensor.shape)}")
    points = len(theta)
    if len(features) != points:
        raise ValueError(f"features must have a row for each of the {points} points, got {len(features)}")
    if check_floating("log_density", log_density).ndim < 1 or log_density.shape[-1] != points:
        raise ValueError(f"log_density must have shape (..., {points}), got {tuple(log_density.shape)}")
    check_same_dtype(log_density=log_density, theta=theta, features=features)
    check_scalar("temperature", temperature)
    check_scalar("decay", decay, zero=True)
    check_positive("volume", volume)
    mass = volume * log_density.exp()
    if can_look(mass) and not bool(((mass.double().sum(-1) - 1).abs() < 0.03).all()):
        raise ValueError("log_density must be normalised: the sum of volume * exp(log_density) must be 1")
    outputs = mass @ features
    losses = _losses(loss, outputs, y)
    g = func.grad(lambda h: _losses(loss, h, y).sum())(outputs)
    dual_losses = g * outputs - losses if conjugate is None else conjugate(g, y)
    norm = theta.square().sum(-1)
    potential = (g @ features.mT) / features.shape[-1] + decay * norm
    log_total = torch.logsumexp(-potential / temperature, -1) + math.log(volume)
    log_gibbs = -potential / temperature - log_total.unsqueeze(-1)
    seen = torch.where(mass > 0, log_density, 0)  # a cell without mass adds nothing
    entropy = (mass * seen).sum(-1)
    primal = losses.mean(-1) + decay * (mass @ norm) + temperature * entropy
    dual = -dual_losses.mean(-1) - temperature * log_total
    return DualityGap(primal, dual, entropy - (mass * log_gibbs).sum(-1), log_gibbs, outputs)


class _Particles:
    """Neurons that are moved by Langevin steps in the potential of a law's slopes."""

    def __init__(
        self,
        theta: Float[Tensor, "m d"],
        x: Tensor,
        y: Any,
        *,
        feature: Feature,
        loss: Loss,
        temperature: float,
        decay: float,
        step: float,
        generator: torch.Generator | None,
    ) -> None:
        if check_floating("theta", theta).ndim != 2 or not theta.numel():
            raise ValueError(f"theta must have shape (m, d) with m >= 1, got {tuple(theta.shape)}")
        check_callable("feature", feature)
        check_callable("loss", loss)
        check_positive("temperature", temperature)
        check_positive("decay", decay, zero=True)
        check_positive("step", step)
        self._feature, self._loss, self._x, self._y = feature, loss, x, y
        self._temperature, self._decay, self._size, self._generator = temperature, decay, step, generator
        self.particles, self.taken, self.evaluations = theta.detach().clone(), 0, 0
        with torch.no_grad():
            out = feature(self.particles, x)
            if not isinstance(out, Tensor) or out.ndim < 2 or len(out) != len(theta):
                got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
                raise ValueError(
                    f"feature must return a tensor with a row for each of the {len(theta)} neurons, got {got}"
                )
            self.outputs = out.mean(0)
            fitted = loss(self.outputs, y)
            shapes = tuple(self.outputs.shape[: k + 1] for k in range(self.outputs.ndim))
            if not isinstance(fitted, Tensor) or fitted.shape not in shapes:
                got = tuple(fitted.shape) if isinstance(fitted, Tensor) else type(fitted).__name__
                raise ValueError(
                    f"loss must return a tensor of shape {' or '.join(map(str, map(tuple, shapes)))}, got {got}"
                )

    def predict(self, x: Tensor) -> Tensor:
        """Return the mean output of the stored particles, ``[n]`` or ``[n, k]``, for inputs ``[n, p]``."""
        with torch.no_grad():
            return self._feature(self.particles, x).mean(0)

    def objective(self) -> float:
        """Return the mean loss of the stored particles plus their decay; of P all but the entropy."""
        with torch.no_grad():
            fitted = self._loss(self.predict(self._x), self._y).mean()
            return float(fitted + self._decay * self.particles.square().sum(-1).mean())

    def state_dict(self) -> dict[str, Any]:
        """Return all that the steps change."""
        kept = {name: getattr(self, name) for name in self._tensors}
        random = None if self._generator is None else self._generator.get_state()
        return {**kept, "taken": self.taken, "evaluations": self.evaluations, "generator": random}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the state of a run of the same problem."""
        for name in self._tensors:
            setattr(self, name, state[name].clone())
        self.taken, self.evaluations = int(state["taken"]), int(state["evaluations"])
        if self._generator is not None and state["generator"] is not None:
            self._generator.set_state(state["generator"])

    _tensors: tuple[str, ...] = ("particles", "outputs")

    def _moved(self, theta: Tensor, outputs: Tensor, steps: int) -> Tensor:
        """Take Langevin steps in the potential of the law with these outputs."""
        with torch.no_grad():
            g = func.grad(lambda h: self._loss(h, self._y).sum())(outputs)

            def potential(theta: Tensor) -> Tensor:
                return proximal_gibbs_potential(theta, self._x, g, feature=self._feature, decay=self._decay)

            self.evaluations += steps * len(theta)
            heat, random = self._temperature, self._generator
            return langevin(potential, theta, step=self._size, temperature=heat, steps=steps, generator=random).theta


class EntropicFictitiousPlay(_Particles):
    r"""Entropic fictitious play with particles, in constant memory: :math:`\mu\leftarrow(1-\eta)\mu+\eta\,q_{g(\mu)}`.

    The best answer q depends on mu through its n outputs alone, which are kept:
    :math:`h_i\leftarrow(1-\eta)h_i+\eta\,\frac1m\sum_jh(\theta_j,x_i)` with samples :math:`\theta_j` of q, by Langevin
    steps that go on from those of the last time. These are the outputs of an ensemble of all samples ever drawn, with
    weights that fall; of the law itself m particles are stored, each replaced by a sample with probability eta.

    Args:
        theta: ``[m, d]`` the particles at the beginning, and where the chains start.
        x: ``[n, p]`` inputs.
        y: targets, handed to the loss.
        feature: h, from neurons ``[m, d]`` and x to ``[m, n]``, or ``[m, n, k]``.
        loss: from outputs ``[n]``, or ``[n, k]``, and y to a loss of each sample, convex in the outputs.
        temperature: lambda > 0, the weight of the entropy.
        decay: c >= 0, the weight of the mean of ``|theta|^2``.
        rate: eta in (0, 1].
        step: > 0, of Langevin.
        steps: Langevin steps between two mixtures, >= 1.
        generator: source of all draws.

    Attributes:
        particles: ``[m, d]`` stored samples of the law.
        chains: ``[m, d]`` the last samples of its best answer.
        outputs: ``[n]``, or ``[n, k]``: those of the ensemble of all samples.
        taken: mixtures so far.
        evaluations: gradients of a neuron, of all samples, so far.

    Raises:
        TypeError: arguments of another kind.
        ValueError: shapes do not fit, an option is out of range.

    Example:
        >>> x, g = torch.linspace(-1, 1, 9).unsqueeze(-1), torch.Generator().manual_seed(0)
        >>> law = EntropicFictitiousPlay(
        ...     torch.randn(200, 1, generator=g), x, 0.8 * x.squeeze(-1), feature=lambda t, x: t @ x.mT,
        ...     loss=lambda h, y: (h - y) ** 2 / 2, temperature=0.02, decay=0.01, rate=0.2, step=0.5, generator=g,
        ... )
        >>> for _ in range(60):
        ...     law.step()
        >>> abs(law.outputs[-1] - 0.8 * 5 / 5.24) < 0.1  # the mean of theta is that of ridge regression
        tensor(True)

    References:
        Nitanda, Oko, Wu, Takenouchi, Suzuki (2023), Primal and dual analysis of entropic fictitious play.
        Chen, Ren, Wang (2022), Entropic fictitious play for mean field optimization problem.
    """

    def __init__(
        self,
        theta: Float[Tensor, "m d"],
        x: Tensor,
        y: Any,
        *,
        feature: Feature,
        loss: Loss,
        temperature: float,
        decay: float,
        rate: float,
        step: float,
        steps: int = 10,
        generator: torch.Generator | None = None,
    ) -> None:
        check_range("rate", rate, 0, 1)
        check_positive("rate", rate)
        self._rate, self._steps = rate, check_integer("steps", steps, 1)
        super().__init__(
            theta,
            x,
            y,
            feature=feature,
            loss=loss,
            temperature=temperature,
            decay=decay,
            step=step,
            generator=generator,
        )
        self.chains = self.particles.clone()

    _tensors = ("particles", "outputs", "chains")

    def step(self) -> None:
        """Sample the best answer, mix it in."""
        self.chains = self._moved(self.chains, self.outputs, self._steps)
        with torch.no_grad():
            answer = self._feature(self.chains, self._x).mean(0)
            self.outputs = torch.lerp(self.outputs, answer, self._rate)
            device = drawing_device(self._generator, self.chains)
            chance = torch.rand(len(self.chains), 1, generator=self._generator, device=device).to(self.chains.device)
            self.particles = torch.where(chance < self._rate, self.chains, self.particles)
        self.taken += 1


class MeanFieldLangevin(_Particles):
    r"""Noisy gradient descent on all neurons of a wide network at once.

    :math:`\theta_j\leftarrow\theta_j-s\,\nabla V_{g(\mu)}(\theta_j)+\sqrt{2\lambda s}\,\xi_j`, mu the particles
    themselves, whose outputs are evaluated anew before each step.

    Args:
        theta: ``[m, d]`` the particles at the beginning.
        x, y, feature, loss, temperature, decay, step, generator: see :class:`EntropicFictitiousPlay`.

    Attributes:
        particles: ``[m, d]``.
        outputs: ``[n]``, or ``[n, k]``: their mean outputs.
        taken: steps so far.
        evaluations: gradients of a neuron, of all samples, so far.

    Raises:
        TypeError: arguments of another kind.
        ValueError: shapes do not fit, an option is out of range.

    Example:
        >>> x, g = torch.linspace(-1, 1, 9).unsqueeze(-1), torch.Generator().manual_seed(0)
        >>> law = MeanFieldLangevin(
        ...     torch.randn(200, 1, generator=g), x, 0.8 * x.squeeze(-1), feature=lambda t, x: t @ x.mT,
        ...     loss=lambda h, y: (h - y) ** 2 / 2, temperature=0.02, decay=0.01, step=0.5, generator=g,
        ... )
        >>> for _ in range(60):
        ...     law.step()
        >>> abs(law.outputs[-1] - 0.8 * 5 / 5.24) < 0.1  # the mean of theta is that of ridge regression
        tensor(True)

    References:
        Mei, Montanari, Nguyen (2018), A mean field view of the landscape of two-layer neural networks.
    """

    def __init__(
        self,
        theta: Float[Tensor, "m d"],
        x: Tensor,
        y: Any,
        *,
        feature: Feature,
        loss: Loss,
        temperature: float,
        decay: float,
        step: float,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(
            theta,
            x,
            y,
            feature=feature,
            loss=loss,
            temperature=temperature,
            decay=decay,
            step=step,
            generator=generator,
        )

    def step(self) -> None:
        """Move every particle once."""
        self.particles = self._moved(self.particles, self.outputs, 1)
        self.outputs = self.predict(self._x)
        self.taken += 1


def _outputs(feature: Feature, theta: Tensor, x: Tensor, tail: torch.Size) -> Tensor:
    out = feature(theta, x)
    wanted = (*theta.shape[:-1], *tail)
    if not isinstance(out, Tensor) or out.shape != wanted:
        got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(f"feature must return a tensor of shape {wanted}, got {got}")
    return out


def _losses(loss: Loss, outputs: Tensor, y: Any) -> Tensor:
    found = loss(outputs, y)
    if not isinstance(found, Tensor) or found.shape != outputs.shape:
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"loss must return a tensor of shape {tuple(outputs.shape)}, got {got}")
    return found
