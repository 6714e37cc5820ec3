"""Gaussian state-space models, and factors of their covariances."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch

from pullback.core.checks import check_broadcast, check_callable, check_finite, check_floating, check_same_dtype
from pullback.core.shapes import Float, Tensor
from pullback.core.transforms import can_look

__all__ = ["LinearGaussian", "NonlinearGaussian", "check_observations", "covariance_factor", "triangular"]

Law = torch.distributions.Distribution


@dataclass(frozen=True)
class LinearGaussian:
    r"""A linear Gaussian state-space model.

    .. math:: x_1\sim N(m,P),\quad x_{t+1}=Ax_t+N(0,Q),\quad y_t=Cx_t+N(0,R)

    It is also a model for :func:`particle_filter`: ``initial``, ``transition``, ``observation`` are its laws.

    Attributes:
        dynamics: A ``[*batch, d, d]``.
        emission: C ``[*batch, k, d]``.
        process_noise: Q ``[*batch, d, d]`` positive semi-definite.
        observation_noise: R ``[*batch, k, k]`` positive definite.
        mean: m ``[*batch, d]`` of the first state.
        covariance: P ``[*batch, d, d]`` of the first state, positive semi-definite.

    Raises:
        TypeError: a field is no floating tensor, or of another dtype.
        ValueError: shapes do not fit.

    Example:
        >>> walk = LinearGaussian(*(torch.eye(1) for _ in range(4)), mean=torch.zeros(1), covariance=torch.eye(1))
        >>> walk.transition(torch.tensor([[2.0]])).mean
        tensor([[2.]])
    """

    dynamics: Float[Tensor, "*#batch d d"]
    emission: Float[Tensor, "*#batch k d"]
    process_noise: Float[Tensor, "*#batch d d"]
    observation_noise: Float[Tensor, "*#batch k k"]
    mean: Float[Tensor, "*#batch d"]
    covariance: Float[Tensor, "*#batch d d"]

    def __post_init__(self) -> None:
        if check_floating("emission", self.emission).ndim < 2:
            raise ValueError(f"emission must have shape [*batch, k, d], got {tuple(self.emission.shape)}")
        k, d = self.emission.shape[-2:]
        _check_fields(self, {"dynamics": (d, d)}, d, k)

    def initial(self) -> Law:
        """Return the law of the first state."""
        return _normal(self.mean, covariance_factor("covariance", self.covariance))

    def transition(self, x: Float[Tensor, "*batch n d"]) -> Law:
        """Return the law of the states after ``x``."""
        return _normal(x @ self.dynamics.mT, covariance_factor("process_noise", self.process_noise).unsqueeze(-3))

    def observation(self, x: Float[Tensor, "*batch n d"]) -> Law:
        """Return the law of what is seen of ``x``."""
        return _normal(
            x @ self.emission.mT, covariance_factor("observation_noise", self.observation_noise).unsqueeze(-3)
        )

    def prepared(self) -> Any:
        """Return the same three laws, with their covariances factored once for all times; self with laws of its own."""
        if any(getattr(type(self), law) is not getattr(LinearGaussian, law) for law in ("transition", "observation")):
            return self
        q = covariance_factor("process_noise", self.process_noise).unsqueeze(-3)
        return _Prepared(self, q, covariance_factor("observation_noise", self.observation_noise).unsqueeze(-3))


class _Prepared:
    def __init__(self, model: LinearGaussian, process: Tensor, observation: Tensor) -> None:
        self.initial = model.initial
        self.a, self.c = model.dynamics.mT, model.emission.mT
        self.q, self.r = (factor.to(model.mean.dtype) for factor in (process, observation))
        self.size = _log_size(self.r.squeeze(-3))

    def transition(self, x: Tensor) -> Law:
        return _normal(x @ self.a, self.q)

    def observation(self, x: Tensor) -> Law:
        law = _normal(x @ self.c, self.r)
        law.size = self.size
        return law


@dataclass(frozen=True)
class NonlinearGaussian:
    r"""A state-space model with functions in the place of matrices.

    .. math:: x_1\sim N(m,P),\quad x_{t+1}=f(x_t)+N(0,Q),\quad y_t=h(x_t)+N(0,R)

    Attributes:
        dynamics: f, from states ``[..., d]`` to the next ones, each by itself.
        emission: h, from states ``[..., d]`` to ``[..., k]``, each by itself.
        process_noise: Q ``[*batch, d, d]`` positive semi-definite.
        observation_noise: R ``[*batch, k, k]`` positive definite.
        mean: m ``[*batch, d]``.
        covariance: P ``[*batch, d, d]`` positive semi-definite.

    Raises:
        TypeError: f or h is not callable, another field is no floating tensor or of another dtype.
        ValueError: shapes do not fit.

    Example:
        >>> eye = torch.eye(1)
        >>> NonlinearGaussian(torch.sin, torch.exp, eye, eye, torch.zeros(1), eye).mean
        tensor([0.])
    """

    dynamics: Callable[[Tensor], Tensor]
    emission: Callable[[Tensor], Tensor]
    process_noise: Float[Tensor, "*#batch d d"]
    observation_noise: Float[Tensor, "*#batch k k"]
    mean: Float[Tensor, "*#batch d"]
    covariance: Float[Tensor, "*#batch d d"]

    def __post_init__(self) -> None:
        check_callable("dynamics", self.dynamics)
        check_callable("emission", self.emission)
        for name in ("process_noise", "observation_noise"):
            if check_floating(name, getattr(self, name)).ndim < 2:
                raise ValueError(f"{name} must have shape [*batch, n, n], got {tuple(getattr(self, name).shape)}")
        _check_fields(self, {}, self.process_noise.shape[-1], self.observation_noise.shape[-1])


def check_observations(y: Tensor, like: Tensor, size: int, batch: tuple[int, ...]) -> torch.Size:
    """Raise unless y is ``[*batch, T, size]`` of the dtype of ``like`` and finite; return the common batch.

    Example:
        >>> check_observations(torch.zeros(3, 7, 2), torch.zeros(1), 2, ())
        torch.Size([3])
    """
    if check_floating("y", y).ndim < 2 or y.shape[-1] != size or not y.shape[-2]:
        raise ValueError(f"y must have shape [*batch, T, {size}] with T >= 1, got {tuple(y.shape)}")
    check_same_dtype(y=y, mean=like)
    if can_look(y):
        check_finite("y", y)
    return check_broadcast(model=tuple(batch), y=tuple(y.shape[:-2]))


def covariance_factor(name: str, covariance: Tensor, *, definite: bool = False) -> Tensor:
    """Return S with ``S @ S.mT`` the covariance: lower triangular, also where Cholesky's does not exist.

    Example:
        >>> covariance_factor("Q", torch.tensor([[0.0, 0.0], [0.0, 4.0]])).abs().sum().round(decimals=4)
        tensor(2.)
        >>> covariance_factor("Q", torch.tensor([[1.0, 0.0], [0.0, -4.0]]))
        Traceback (most recent call last):
        ValueError: Q must be positive semi-definite, got an eigenvalue of -4
    """
    wide = covariance.to(torch.promote_types(covariance.dtype, torch.float32))
    if can_look(wide):
        check_finite(name, wide)
        size = wide.detach().abs().amax((-2, -1), keepdim=True) if wide.numel() else wide
        skew = (wide.detach() - wide.detach().mT).abs()
        if bool((skew > 100 * torch.finfo(covariance.dtype).eps * size).any()):
            raise ValueError(f"{name} must be symmetric, got entries that differ by {float(skew.max()):g}")
    factor, failed = torch.linalg.cholesky_ex((wide + wide.mT) / 2)
    if not can_look(failed) or not bool(failed.any()):
        return cast(Tensor, factor)
    values, vectors = torch.linalg.eigh(wide)
    least = values.detach().amin(-1)
    slack = 100 * torch.finfo(covariance.dtype).eps * values.detach().abs().amax(-1)
    if definite or bool((least < -slack).any()):
        kind = "definite" if definite else "semi-definite"
        raise ValueError(f"{name} must be positive {kind}, got an eigenvalue of {float(least.min()):g}")
    size = torch.where(values > slack.unsqueeze(-1), values, 0).detach().sqrt()
    base = vectors.detach()
    root = triangular(base * size.unsqueeze(-2)).detach()
    # To first order of changes that keep the rank: half of them, from the right by the pseudoinverse.
    inverse = base * torch.where(size > 0, 1 / size.clamp(min=torch.finfo(size.dtype).tiny), 0).square().unsqueeze(-2)
    change = (wide + wide.mT) / 2
    root = root + (change - change.detach()) @ (inverse @ base.mT) @ root / 2
    return torch.where((failed > 0)[..., None, None], root, factor)


def triangular(array: Tensor) -> Tensor:
    """Return lower triangular L with non-negative diagonal and ``L @ L.mT = array @ array.mT``.

    Columns of the size of rounding are added, which no sum of squares shows: they keep the derivative finite where the
    array has not full rank.

    Example:
        >>> triangular(torch.tensor([[3.0, 4.0]]))
        tensor([[5.]])
    """
    least = torch.finfo(array.dtype)
    size = array.detach().abs().amax((-2, -1), keepdim=True) * least.eps + least.tiny
    floor = size * torch.eye(array.shape[-2], dtype=array.dtype, device=array.device)
    upper = torch.linalg.qr(torch.cat([array, floor], -1).mT).R
    sign = torch.where(upper.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(upper.dtype)
    return (upper * sign.detach().unsqueeze(-1)).mT


def _check_fields(model: object, more: dict[str, tuple[int, ...]], d: int, k: int) -> None:
    shapes = more | {"process_noise": (d, d), "observation_noise": (k, k), "mean": (d,), "covariance": (d, d)}
    for name, shape in shapes.items():
        value = check_floating(name, getattr(model, name))
        if tuple(value.shape[-len(shape) :]) != shape:
            wanted = ", ".join(map(str, shape))
            raise ValueError(f"{name} must have shape [*batch, {wanted}], got {tuple(value.shape)}")
    tensors = {name: value for name, value in vars(model).items() if isinstance(value, Tensor)}
    check_same_dtype(**tensors)
    check_broadcast(**{n: tuple(v.shape[: -1 if n == "mean" else -2]) for n, v in tensors.items()})


class _Normal(torch.distributions.MultivariateNormal):
    """The same, quicker where many means share one factor: ``[*batch, 1, d, d]`` beside ``[*batch, n, d]``."""

    size: Tensor | None = None
    """Logarithm of the density at the mean, negative, where it is known."""

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        factor = self._shared()
        if factor is None:
            return super().rsample(torch.Size(sample_shape))
        draws = torch.empty(self._extended_shape(torch.Size(sample_shape)), dtype=factor.dtype, device=factor.device)
        draws.normal_()
        if draws.ndim == 2 and self.loc.shape == draws.shape:
            return torch.addmm(self.loc, draws, factor.mT)
        return self.loc + draws @ factor.mT

    def log_prob(self, value: Tensor) -> Tensor:
        factor = self._shared()
        if factor is None:
            return cast(Tensor, super().log_prob(value))
        white = torch.linalg.solve_triangular(factor.mT, value - self.loc, upper=True, left=False)
        return white.square().sum(-1) * -0.5 - (_log_size(factor) if self.size is None else self.size)

    def _shared(self) -> Tensor | None:
        factor = self._unbroadcasted_scale_tril
        return factor.squeeze(-3) if factor.ndim > 2 and factor.shape[-3] == 1 and self.loc.ndim > 1 else None


def _log_size(factor: Tensor) -> Tensor:
    """``[*batch, 1]``, of the factor ``[*batch, d, d]``: minus the logarithm of the density at the mean."""
    logs = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1, keepdim=True)
    return logs + factor.shape[-1] * math.log(2 * math.pi) / 2


def _normal(mean: Tensor, factor: Tensor) -> _Normal:
    law = _Normal.__new__(_Normal)
    batch, law.loc, law._unbroadcasted_scale_tril = mean.shape[:-1], mean, factor.to(mean.dtype)
    if factor.shape[:-2] not in (batch[-1:], (1,)) and factor.shape[:-2] != (*batch[:-1], 1):
        batch = torch.broadcast_shapes(factor.shape[:-2], batch)
        law.loc = mean.expand(*batch, mean.shape[-1])
    torch.distributions.Distribution.__init__(law, batch, mean.shape[-1:], validate_args=False)
    return law
