"""Gradient flows of functionals in the geometry of Wasserstein, by implicit steps that need samples only."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from pullback.core.checks import (
    check_broadcast,
    check_finite,
    check_floating,
    check_integer,
    check_positive,
    check_same_dtype,
    check_scalar,
    check_shape,
)
from pullback.core.random import drawing_device
from pullback.core.shapes import Float, Scalar, Tensor
from pullback.core.transforms import can_look
from pullback.transport.functionals import VariationalFunctional

__all__ = [
    "GaussianStep",
    "JKOStep",
    "WassersteinGradientFlow",
    "barenblatt",
    "gaussian_jko_step",
    "jko_step",
    "symmetric_kl_gaussian",
]


class JKOStep(NamedTuple):
    """One implicit step.

    Attributes:
        particles: ``[n, d]`` the images of all particles.
        moved: mean of ``|x - T(x)|^2 / (2 step)``, without units.
        value: the witness's estimate of F at the images.
    """

    particles: Float[Tensor, "n d"]
    moved: float
    value: float


def jko_step(
    map: nn.Module,
    witness: nn.Module,
    particles: Float[Tensor, "n d"],
    functional: VariationalFunctional,
    *,
    step: float,
    updates: int = 300,
    ascent: int = 3,
    batch: int = 256,
    lr: float = 1e-3,
    witness_lr: float = 1e-3,
    refit: int | None = None,
    generator: torch.Generator | None = None,
) -> JKOStep:
    r"""Take the step of Jordan, Kinderlehrer and Otto: :math:`\min_PW_2^2(P,P_k)/(2a)+F(P)` over :math:`P=T\#P_k`.

    :math:`\min_T\max_h\;E_{x\sim P_k}\frac{|x-T(x)|^2}{2a}+E_{x\sim P_k}[A(T(x),h)+V(T(x))]-E_{z\sim\Gamma}B(z,h)`, the
    witness h ascending ``ascent`` times for each update of the map. Adam for both, step sizes falling to 0 on a cosine.
    Map and witness are trained in place and begin where they are: best at the identity, or at what the last step found.

    Args:
        map: T, from points ``[n, d]`` to points.
        witness: h, from points to numbers ``[n]``.
        particles: ``[n, d]`` samples of P_k.
        functional: F, such as :class:`RelativeEntropy`.
        step: a > 0, the time of the flow that passes.
        updates: of the map, >= 1.
        ascent: updates of the witness for each, >= 1.
        batch: particles of an update, drawn with replacement, and as many samples of the reference law.
        lr: step size of the map at the beginning, > 0.
        witness_lr: the same of the witness.
        refit: updates after which the reference law is fitted anew, to the images of all particles; ``None``: fitted
            once, to the particles.
        generator: source of all draws.

    Returns:
        :class:`JKOStep`.

    Raises:
        TypeError: arguments of another kind.
        ValueError: options out of range, the map or the witness returns another shape, the functional refuses points.

    Example:
        >>> x = torch.randn(500, 1, generator=torch.Generator().manual_seed(0))
        >>> shift, flat = torch.nn.Linear(1, 1), torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Flatten(0))
        >>> _ = torch.nn.init.eye_(shift.weight), torch.nn.init.zeros_(shift.bias), torch.nn.init.zeros_(flat[0].weight)
        >>> _ = torch.nn.init.zeros_(flat[0].bias)
        >>> from pullback.transport import RelativeEntropy
        >>> target = RelativeEntropy(lambda x: -((x[:, 0] - 2) ** 2) / 2)
        >>> found = jko_step(shift, flat, x, target, step=1.0, lr=0.05, refit=10)
        >>> abs(found.particles.mean() - 1) < 0.15  # half of the way: (0 / 1 + 2) / (1 / 1 + 1)
        tensor(True)

    References:
        Jordan, Kinderlehrer, Otto (1998), The variational formulation of the Fokker-Planck equation.
        Fan, Zhang, Taghvaei, Chen (2022), Variational Wasserstein gradient flow.
    """
    _check_flow(map, witness, particles, functional, step=step, lr=lr, witness_lr=witness_lr)
    for name, number in (("updates", updates), ("ascent", ascent), ("batch", batch)):
        check_integer(name, number, 1)
    refit = updates if refit is None else check_integer("refit", refit, 1)
    particles = particles.detach()
    rates = [[lr * (1 + math.cos(math.pi * k / updates)) / 2 for k in range(updates)] for lr in (lr, witness_lr)]
    optimizers = [torch.optim.Adam(m.parameters(), lr=r[0]) for m, r in zip((map, witness), rates, strict=True)]
    down, up = optimizers
    law = functional.reference(particles)
    device = drawing_device(generator, particles)

    def drawn() -> Tensor:
        chosen = torch.randint(len(particles), (batch,), generator=generator, device=device)
        return particles[chosen.to(particles.device)]

    for k in range(updates):
        if k and k % refit == 0:
            law = functional.reference(_moved(map, particles))
        for optimizer, falling in zip(optimizers, rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = falling[k]
        for _ in range(ascent):
            image, z = _moved(map, drawn()), law.sample(batch, generator)
            loss = functional.cost(z, witness, law).mean() - functional.gain(image, witness, law).mean()
            up.zero_grad()
            loss.backward()
            up.step()
        x = drawn()
        image = map(x)
        if image.shape != x.shape:
            raise ValueError(f"map must return the shape of its points, {tuple(x.shape)}, got {tuple(image.shape)}")
        energy = functional.gain(image, witness, law) + functional.known(image, law)
        loss = (x - image).square().sum(-1).mean() / (2 * step) + energy.mean()
        down.zero_grad()
        loss.backward()
        down.step()
    with torch.no_grad():
        image = map(particles)
        moved = (particles - image).square().sum(-1).mean() / (2 * step)
        value = functional.estimate(image, witness, reference=law, generator=generator)
    return JKOStep(image, float(moved), float(value))


class WassersteinGradientFlow:
    r"""The flow of a functional, :math:`\dot P=\nabla\cdot(P\,\nabla\frac{\delta F}{\delta P})`, in implicit steps.

    Args:
        map, witness, functional: see :func:`jko_step`; each step begins from the witness of the last one.
        particles: ``[n, d]`` samples of the law at the beginning.
        restart: whether each step begins from the map as it is handed in, best the identity; else from that of the
            last step, which moves the particles on as before: nearer where the flow is slow, too far after a large one.
        **options: of :func:`jko_step`: step, updates, ascent, batch, lr, witness_lr, refit, generator.

    Attributes:
        particles: ``[n, d]`` samples of the law now.
        taken: steps taken.
        moved: of each step, mean of ``|x - T(x)|^2 / (2 step)``.
        values: of each step, the estimate of F after it.

    Raises:
        TypeError, ValueError: arguments of another kind or out of range.

    Example:
        >>> x = torch.rand(200, 1, generator=torch.Generator().manual_seed(0))
        >>> line, flat = torch.nn.Linear(1, 1), torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Flatten(0))
        >>> from pullback.transport import RelativeEntropy
        >>> target = RelativeEntropy(lambda x: -x[:, 0] ** 2 / 2)
        >>> flow = WassersteinGradientFlow(line, flat, x, target, step=0.1, updates=2)
        >>> flow.step()
        >>> flow.taken, flow.particles.shape
        (1, torch.Size([200, 1]))

    References:
        Fan, Zhang, Taghvaei, Chen (2022), Variational Wasserstein gradient flow.
    """

    def __init__(
        self,
        map: nn.Module,
        witness: nn.Module,
        particles: Float[Tensor, "n d"],
        functional: VariationalFunctional,
        *,
        step: float,
        restart: bool = True,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> None:
        _check_flow(map, witness, particles, functional, step=step)
        self.map, self.witness, self.particles, self.taken = map, witness, particles.detach().clone(), 0
        self.moved: list[float] = []
        self.values: list[float] = []
        self._functional, self._generator, self._options = functional, generator, {"step": step, **options}
        self._first = copy.deepcopy(map.state_dict()) if restart else None

    def step(self) -> None:
        """Take one implicit step."""
        if self._first is not None:
            self.map.load_state_dict(self._first)
        found = jko_step(
            self.map, self.witness, self.particles, self._functional, generator=self._generator, **self._options
        )
        self.particles, self.taken = found.particles, self.taken + 1
        self.moved.append(found.moved)
        self.values.append(found.value)

    def state_dict(self) -> dict[str, Any]:
        """Return all that the steps change."""
        return {
            "map": self.map.state_dict(),
            "witness": self.witness.state_dict(),
            "particles": self.particles,
            "taken": self.taken,
            "moved": list(self.moved),
            "values": list(self.values),
            "generator": None if self._generator is None else self._generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the state of a flow of the same functional."""
        self.map.load_state_dict(state["map"])
        self.witness.load_state_dict(state["witness"])
        self.particles, self.taken = state["particles"].clone(), int(state["taken"])
        self.moved, self.values = list(state["moved"]), list(state["values"])
        if self._generator is not None and state["generator"] is not None:
            self._generator.set_state(state["generator"])


class GaussianStep(NamedTuple):
    """An implicit step of an isotropic normal law.

    Attributes:
        mean: ``[*batch, d]``.
        deviation: ``[*batch]``, of each coordinate.
    """

    mean: Float[Tensor, "*batch d"]
    deviation: Float[Tensor, "*batch"]


def gaussian_jko_step(
    mean: Float[Tensor, "*#batch d"],
    deviation: Float[Tensor, "*#batch"],
    *,
    target_mean: Float[Tensor, "d"],
    target_deviation: Scalar = 1.0,
    step: Scalar,
) -> GaussianStep:
    r"""Return the exact implicit step of :math:`N(m,v^2I)` in the flow of the divergence from :math:`N(b,s^2I)`.

    :math:`m'=(m/a+b/s^2)/(1/a+1/s^2)`, and :math:`v'` is the positive root of
    :math:`v'^2(1/a+1/s^2)-v'v/a-1=0`: what :func:`jko_step` should find, not only in the limit of small steps.

    Args:
        mean: ``[*batch, d]`` m.
        deviation: ``[*batch]`` v >= 0, to broadcast with the batch of the mean.
        target_mean: ``[d]`` b.
        target_deviation: s > 0.
        step: a > 0.

    Returns:
        :class:`GaussianStep`.

    Raises:
        TypeError: a tensor is not floating, an option is of another kind.
        ValueError: shapes do not fit, an option is out of range.

    Example:
        >>> gaussian_jko_step(torch.zeros(1), torch.tensor(1.0), target_mean=torch.tensor([3.0]), step=0.5)
        GaussianStep(mean=tensor([1.]), deviation=tensor(1.))

    References:
        Wibisono (2018), Sampling as optimization in the space of measures.
    """
    if check_floating("mean", mean).ndim < 1:
        raise ValueError("mean must have shape (..., d), got ()")
    check_floating("deviation", deviation)
    check_same_dtype(mean=mean, deviation=deviation, target_mean=check_floating("target_mean", target_mean))
    if target_mean.shape != mean.shape[-1:]:
        raise ValueError(f"target_mean must have shape {tuple(mean.shape[-1:])}, got {tuple(target_mean.shape)}")
    batch = check_broadcast(mean=mean.shape[:-1], deviation=deviation.shape)
    check_scalar("target_deviation", target_deviation)
    check_scalar("step", step)
    pull = step / target_deviation**2
    half = deviation / (2 * (1 + pull))
    root = half + torch.hypot(half, torch.as_tensor(step / (1 + pull), dtype=mean.dtype, device=mean.device).sqrt())
    moved = (mean + pull * target_mean) / (1 + pull)
    return GaussianStep(moved.expand(*batch, mean.shape[-1]), root.expand(batch))


def barenblatt(x: Float[Tensor, "*batch d"], t: Scalar, *, power: float, mass: float = 1.0) -> Float[Tensor, "*batch"]:
    r"""Return the density that spreads from a point in a porous medium, exactly: :math:`\dot P=\Delta P^m`.

    :math:`P(x,t)=t^{-d\beta}\,\bigl(C-k\,|x|^2t^{-2\beta}\bigr)_+^{1/(m-1)}` with :math:`\beta=1/(d(m-1)+2)`,
    :math:`k=\beta(m-1)/(2m)`, and C from the mass. Unlike heat it has a front, at :math:`|x|=t^\beta\sqrt{C/k}`.

    Args:
        x: ``[*batch, d]`` points, d >= 1.
        t: time since the point, > 0; a number or a tensor without dimensions.
        power: m > 1.
        mass: > 0, the integral of P.

    Returns:
        ``[*batch]``, 0 beyond the front; the slope there is taken as 0.

    Raises:
        TypeError: ``x`` is no floating tensor, a number is of another kind.
        ValueError: ``x`` has no coordinates, a number is out of range.

    Example:
        >>> x = torch.linspace(-3, 3, 6001).unsqueeze(-1)
        >>> density = barenblatt(x, 0.5, power=2.0)
        >>> torch.isclose(density.sum() * 0.001, torch.tensor(1.0), atol=1e-4)
        tensor(True)

    References:
        Vazquez (2007), The porous medium equation.
        Barenblatt (1952), On some unsteady motions of a fluid and a gas in a porous medium.
    """
    if check_floating("x", x).ndim < 1 or not x.shape[-1]:
        raise ValueError(f"x must have shape (..., d) with d >= 1, got {tuple(x.shape)}")
    check_scalar("t", t)
    check_positive("power", power)
    check_positive("mass", mass)
    if power <= 1:
        raise ValueError(f"power must be > 1, got {power}")
    d, n = x.shape[-1], 1 / (power - 1)
    beta = 1 / (d * (power - 1) + 2)
    k = beta * (power - 1) / (2 * power)
    log_unit = d / 2 * math.log(math.pi / k) + math.lgamma(n + 1) - math.lgamma(n + 1 + d / 2)  # mass where C = 1
    c = math.exp((math.log(mass) - log_unit) / (n + d / 2))
    front = math.sqrt(c / k)
    time = torch.as_tensor(t, dtype=x.dtype, device=x.device)
    near = (x / (front * time**beta)).clamp(-2, 2)  # beyond the front either way, and squares do not overflow
    inside = 1 - near.square().sum(-1)
    positive = inside > 0
    height = torch.where(positive, torch.where(positive, inside, 1) ** n, 0)
    return c**n * time ** (-d * beta) * height


def symmetric_kl_gaussian(
    mean: Float[Tensor, "*#batch d"],
    covariance: Float[Tensor, "*#batch d d"],
    other_mean: Float[Tensor, "*#batch d"],
    other_covariance: Float[Tensor, "*#batch d d"],
) -> Float[Tensor, "*batch"]:
    r"""Return :math:`KL(N|N')+KL(N'|N)` of two normal laws.

    :math:`\frac12\mathrm{tr}(\Sigma'^{-1}\Sigma+\Sigma^{-1}\Sigma')-d+\frac12\delta^T(\Sigma^{-1}+\Sigma'^{-1})\delta`
    with the difference :math:`\delta` of the means: no logarithm of a determinant is left.

    Args:
        mean: ``[*batch, d]``.
        covariance: ``[*batch, d, d]``, symmetric and positive definite.
        other_mean: ``[*batch, d]``.
        other_covariance: ``[*batch, d, d]``.

    Returns:
        ``[*batch]``, >= 0.

    Raises:
        TypeError: an argument is no floating tensor.
        ValueError: shapes do not fit, entries are not finite, a covariance is not positive definite.

    Example:
        >>> eye = torch.eye(2)
        >>> symmetric_kl_gaussian(torch.zeros(2), eye, torch.ones(2), eye)
        tensor(2.)

    References:
        Kullback, Leibler (1951), On information and sufficiency.
    """
    named = {
        "mean": mean,
        "covariance": covariance,
        "other_mean": other_mean,
        "other_covariance": other_covariance,
    }
    for name, tensor in named.items():
        check_floating(name, tensor)
    if mean.ndim < 1:
        raise ValueError("mean must have shape (..., d), got ()")
    d = mean.shape[-1]
    for name, tensor in named.items():
        check_shape(name, tensor, (d, d) if name.endswith("covariance") else (d,))
        if can_look(tensor):
            check_finite(name, tensor)
    check_same_dtype(**named)
    check_broadcast(
        mean=mean.shape[:-1],
        covariance=covariance.shape[:-2],
        other_mean=other_mean.shape[:-1],
        other_covariance=other_covariance.shape[:-2],
    )
    wide = torch.promote_types(mean.dtype, torch.float32)
    delta = (mean.to(wide) - other_mean.to(wide)).unsqueeze(-1)
    roots = []
    for name in ("covariance", "other_covariance"):
        root, info = torch.linalg.cholesky_ex(named[name].to(wide))
        if can_look(info) and bool(info.any()):
            raise ValueError(f"{name} must be positive definite")
        roots.append(root)
    total = torch.full((), -float(d), dtype=wide, device=mean.device)
    for root, of in zip(roots, reversed(roots), strict=True):
        white = torch.linalg.solve_triangular(root, of, upper=False)  # its squares sum to tr(S^-1 S')
        far = torch.linalg.solve_triangular(root, delta, upper=False)
        total = total + (white.square().sum((-2, -1)) + far.square().sum((-2, -1))) / 2
    return total.to(mean.dtype)


def _moved(map: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        image: Tensor = map(x)
    if image.shape != x.shape:
        raise ValueError(f"map must return the shape of its points, {tuple(x.shape)}, got {tuple(image.shape)}")
    return image


def _check_flow(
    map: nn.Module, witness: nn.Module, particles: Tensor, functional: VariationalFunctional, **positive: float
) -> None:
    for name, module in (("map", map), ("witness", witness)):
        if not isinstance(module, nn.Module):
            raise TypeError(f"{name} must be a torch.nn.Module, got {type(module).__name__}")
    if check_floating("particles", particles).ndim != 2 or not particles.numel():
        raise ValueError(f"particles must have shape (n, d) with n >= 1, got {tuple(particles.shape)}")
    check_finite("particles", particles)
    if not isinstance(functional, VariationalFunctional):
        raise TypeError(f"functional must be a VariationalFunctional, got {type(functional).__name__}")
    for name, number in positive.items():
        check_positive(name, number)
