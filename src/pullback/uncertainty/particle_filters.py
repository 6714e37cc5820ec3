"""Particle filters of any state-space model, whose evidence has a gradient in the model's parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch

from pullback.core.checks import check_choice, check_finite, check_floating, check_integer, check_range
from pullback.core.random import drawing_device
from pullback.core.shapes import Float, Tensor
from pullback.core.transforms import can_look
from pullback.uncertainty.resampling import DegenerateWeights, check_particles, check_weights, drawn_again, resample
from pullback.uncertainty.weights import effective_sample_size

__all__ = ["ParticleFiltered", "StateSpaceModel", "particle_filter"]


@runtime_checkable
class StateSpaceModel(Protocol):
    """What a particle filter asks of a model: laws with ``rsample`` and ``log_prob``, as of torch.distributions.

    A model may also have ``proposal(x, y)``: the law of the next states given the last ones ``[*batch, n, d]``
    (``None`` at the first time) and the observation ``[*batch, 1, k]``, or ``None`` for the model's own law; and
    ``prepared()``: an object with the same laws that computes once what they share over the times. Where ``rsample`` is
    differentiable, so is all that follows.
    """

    def initial(self) -> Any:
        """Return the law of the first state: batch ``[*batch]`` (or a part that broadcasts), event ``[d]``."""
        ...

    def transition(self, x: Tensor) -> Any:
        """Return the law of the states after ``x`` ``[*batch, n, d]``: batch ``[*batch, n]``, event ``[d]``."""
        ...

    def observation(self, x: Tensor) -> Any:
        """Return the law of what is seen of ``x``: its ``log_prob`` takes ``[*batch, 1, k]`` to ``[*batch, n]``."""
        ...


class ParticleFiltered(NamedTuple):
    """What a particle filter found.

    Attributes:
        means: ``[*batch, T, d]`` weighted mean of the particles at each time.
        points: ``[*batch, n, d]`` the particles at the last time.
        log_weights: ``[*batch, n]`` their weights, of sum one.
        increments: ``[*batch, T]`` estimates of the log density of each observation given those before it.
        log_evidence: ``[*batch]`` their sum; its exponential is unbiased (but for ``"transport"``).
        ess: ``[*batch, T]`` effective sample size before resampling.
    """

    means: Float[Tensor, "*batch T d"]
    points: Float[Tensor, "*batch n d"]
    log_weights: Float[Tensor, "*batch n"]
    increments: Float[Tensor, "*batch T"]
    log_evidence: Float[Tensor, "*batch"]
    ess: Float[Tensor, "*batch T"]


def particle_filter(
    model: StateSpaceModel,
    y: Float[Tensor, "*batch T k"],
    *,
    particles: int = 100,
    resampling: str = "systematic",
    threshold: float = 0.5,
    start: tuple[Tensor, Tensor] | None = None,
    degenerate: str = "raise",
    generator: torch.Generator | None = None,
    **options: Any,
) -> ParticleFiltered:
    r"""Follow a state by weighted particles: resample, propose, weigh, for each observation.

    .. math:: w_t^i=w_{t-1}^i\,\frac{p(y_t|x_t^i)\,p(x_t^i|x_{t-1}^i)}{q(x_t^i|x_{t-1}^i,y_t)},\qquad
        \log\hat p(y_t|y_{<t})=\log\sum_iw_t^i\Big/\sum_iw_{t-1}^i

    Draws go through ``rsample``, so that the evidence and the means have a gradient in the parameters of the model;
    what resampling makes of it says :func:`resample`: ``"stop-gradient"`` keeps the gradient of the evidence unbiased,
    ``"systematic"`` loses what the weights would say of the past.

    Args:
        model: :class:`StateSpaceModel`, such as :class:`LinearGaussian`.
        y: ``[*batch, T, k]`` observations of a batch of independent series, T >= 1.
        particles: n >= 2 of each series.
        resampling: a method of :func:`resample`.
        threshold: in 0..1, the part of n below which the effective sample size makes a series resample; 1: always.
        start: points ``[*batch, n, d]`` and log weights ``[*batch, n]`` (of any sum) to go on from, as of a result; the
            first observation is then that after theirs.
        degenerate: what to do where no particle has any weight: ``"raise"``, or ``"reset"`` to equal weights (the
            increment is then -inf).
        generator: of all draws; the model's laws draw from torch's own generator, which is seeded from it meanwhile.
        options: of :func:`resample`: ``scheme``, ``mixture``, ``epsilon``.

    Returns:
        :class:`ParticleFiltered`.

    Raises:
        TypeError: ``model`` lacks a law, y is no floating tensor.
        ValueError: shapes do not fit, an option is out of range.
        DegenerateWeights: no particle of a series has any weight; the time is named.

    Example:
        >>> from pullback.uncertainty import LinearGaussian, kalman_evidence
        >>> one = torch.eye(1)
        >>> model, y = LinearGaussian(one, one, one, one, torch.zeros(1), one), torch.tensor([[0.5], [1.0], [0.0]])
        >>> found = particle_filter(model, y, particles=5000, generator=torch.Generator().manual_seed(0))
        >>> (found.log_evidence - kalman_evidence(model, y)).abs() < 0.05
        tensor(True)

    References:
        Gordon, Salmond, Smith (1993), Novel approach to nonlinear/non-Gaussian Bayesian state estimation. Del Moral
        (2004), Feynman-Kac formulae, theorem 7.4.2 (the evidence is unbiased).
    """
    _check_model(model)
    if check_floating("y", y).ndim < 2 or not y.numel():
        raise ValueError(f"y must have shape [*batch, T, k] with T >= 1 and be not empty, got {tuple(y.shape)}")
    if can_look(y):
        check_finite("y", y)
    check_integer("particles", particles, 2)
    check_range("threshold", threshold, 0.0, 1.0)
    check_choice("degenerate", degenerate, ("raise", "reset"))
    with _drawing(generator, y):
        return _filter(model, y, particles, resampling, threshold, start, degenerate, generator, options)


def _filter(
    model: Any,
    y: Tensor,
    n: int,
    resampling: str,
    threshold: float,
    start: tuple[Tensor, Tensor] | None,
    degenerate: str,
    generator: torch.Generator | None,
    options: dict[str, Any],
) -> ParticleFiltered:
    batch = y.shape[: y.ndim - 2]
    propose = getattr(model, "proposal", lambda x, seen: None)
    model = model.prepared() if callable(getattr(model, "prepared", None)) else model
    if start is not None:
        points, log_weights = start
        check_particles(points, log_weights)
        if points.shape[:-1] != (*batch, n):
            raise ValueError(f"start must have points of shape {(*batch, n, 'd')}, got {tuple(points.shape)}")
        check_weights(log_weights, " of start")
        log_weights = log_weights - log_weights.logsumexp(-1, keepdim=True)
    means, increments = [], []
    sizes: list[Tensor] = []
    looked = False  # whether the arguments of resampling were
    for t, now in enumerate(y.unbind(-2)):
        seen = now.unsqueeze(-2)
        if t == 0 and start is None:
            law, past = model.initial(), None
            log_weights = y.new_full((*batch, n), -math.log(n))
        else:
            size = sizes[-1] if sizes else effective_sample_size(log_weights.detach())
            points, log_weights, looked = _renewed(
                points, log_weights, size, resampling, threshold, generator, options, looked
            )
            law, past = None, points
        q = propose(past, seen)
        if q is None:
            law = model.transition(past) if law is None else law
            points = _drawn(law, batch, n) if past is None else law.rsample()
            gain = model.observation(points).log_prob(seen)
        else:
            points = _drawn(q, batch, n) if past is None else q.rsample()
            law = model.transition(past) if law is None else law
            gain = model.observation(points).log_prob(seen) + _density(law, points, past) - _density(q, points, past)
        if gain.shape != log_weights.shape:
            raise ValueError(f"log_prob must have shape {tuple(log_weights.shape)}, got {tuple(gain.shape)}")
        log_weights = log_weights + gain
        increment, log_weights = _normalised(log_weights, t, degenerate, n)
        weights = log_weights.exp()
        means.append((weights.unsqueeze(-2) @ points).squeeze(-2))
        increments.append(increment)
        sizes.append(1 / weights.detach().square().sum(-1))
    found = torch.stack(increments, -1)
    return ParticleFiltered(torch.stack(means, -2), points, log_weights, found, found.sum(-1), torch.stack(sizes, -1))


def _renewed(
    points: Tensor,
    log_weights: Tensor,
    size: Tensor,
    method: str,
    threshold: float,
    generator: torch.Generator | None,
    options: dict[str, Any],
    looked: bool,
) -> tuple[Tensor, Tensor, bool]:
    """Return particles, resampled in the series where few of them count, and whether they ever were."""
    low = size < threshold * points.shape[-2]
    every = threshold >= 1
    if not every and can_look(low):
        how_many = int(low.sum())
        if not how_many:
            return points, log_weights, looked
        every = how_many == low.numel()
    if looked and method != "transport" and options.keys() <= {"scheme", "mixture", "epsilon"}:
        scheme, mixture, n = options.get("scheme", "systematic"), options.get("mixture", 0.5), points.shape[-2]
        new = drawn_again(points, log_weights, method, n, scheme, mixture, generator, normalised=True)
    else:
        new = resample(points, log_weights, method=method, generator=generator, **options)
    if every:
        return new.points, new.log_weights, True
    return (
        torch.where(low[..., None, None], new.points, points),
        torch.where(low[..., None], new.log_weights, log_weights),
        True,
    )


def _normalised(log_weights: Tensor, t: int, degenerate: str, n: int) -> tuple[Tensor, Tensor]:
    """Return the logarithm of the sum of weights, and weights of sum one."""
    total = log_weights.logsumexp(-1, keepdim=True)
    if not can_look(total) or bool(total.isfinite().all()):
        return total.squeeze(-1), log_weights - total
    top = log_weights.detach().amax(-1, keepdim=True)
    lost = top == -torch.inf
    if bool((top.isnan() | (top == torch.inf)).any()):
        raise ValueError(f"log_prob must be finite or -inf, got {float(top[~top.isfinite() & ~lost][0])} at time {t}")
    if degenerate == "raise":
        raise DegenerateWeights(
            f"no particle has any weight at time {t}: more particles, a wider proposal or observation law may "
            'help, or degenerate="reset"'
        )
    held = torch.where(lost, -math.log(n), log_weights)
    total = held.logsumexp(-1, keepdim=True)
    return torch.where(lost, -torch.inf, total).squeeze(-1), held - total


def _drawn(law: Any, batch: torch.Size, n: int) -> Tensor:
    """Draw ``[*batch, n, d]`` from a law whose batch broadcasts to ``[*batch]``."""
    shape = tuple(law.batch_shape)
    wide = batch if shape != tuple(batch) else torch.Size()
    drawn: Tensor = law.expand(batch).rsample((n,)) if wide else law.rsample((n,))
    return drawn.movedim(0, -2)


def _density(law: Any, points: Tensor, past: Tensor | None) -> Tensor:
    """Return the log density of points ``[*batch, n, d]`` under a law for each of them, or for each series."""
    if past is not None:
        return torch.as_tensor(law.log_prob(points))
    return torch.as_tensor(law.log_prob(points.movedim(-2, 0))).movedim(0, -1)


@contextmanager
def _drawing(generator: torch.Generator | None, like: Tensor) -> Iterator[None]:
    """Seed torch's own generator, from which its distributions draw, from the given one for a while."""
    if generator is None:
        yield
        return
    seed = int(torch.randint(2**62, (), generator=generator, device=drawing_device(generator, like)))
    devices = [like.device] if like.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every device
        for device in devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def _check_model(model: object) -> None:
    for name in ("initial", "transition", "observation"):
        if not callable(getattr(model, name, None)):
            raise TypeError(f"model must have a method {name}, as a StateSpaceModel has, got {type(model).__name__}")
