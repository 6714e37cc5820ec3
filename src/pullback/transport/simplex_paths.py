"""Transport along paths between several distributions: velocities, paths that learn to cost less, flows."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import func, nn

from pullback.core.checks import check_broadcast, check_callable, check_floating, check_integer, check_positive
from pullback.core.random import drawing_device
from pullback.core.shapes import Float, Tensor
from pullback.core.transforms import can_look
from pullback.dynamics import odeint
from pullback.transport.rectified import Coupling
from pullback.transport.simplex import Means, barycentric_interpolant, means_at, mixed

__all__ = ["SimplexPath", "path_energy", "simplex_velocity", "transport_along"]

Path = Callable[[Tensor], Tensor]
"""From times ``[*batch]`` to weights ``[*batch, k]``."""


def simplex_velocity(
    model: Means, path: Path, t: Float[Tensor, "..."], x: Float[Tensor, "*shape"], *, event_ndim: int = 1
) -> Float[Tensor, "*shape"]:
    r"""Return the velocity along a path of weights, :math:`b(t,x)=\sum_k\dot\alpha_k(t)\,g_k(\alpha(t),x)`.

    Following it from points of :math:`x(\alpha(0))` gives points of :math:`x(\alpha(t))` at every time; a path from one
    vertex to another carries one distribution onto another.

    Args:
        model: the conditional means, see :func:`multimarginal_loss`.
        path: from times ``[*batch]`` to weights ``[*batch, k]``, smooth, such as :class:`SimplexPath`.
        t: ``[*batch]`` times, or one for all.
        x: ``[*batch, *event]`` points.
        event_ndim: how many dimensions are one point: 1 for vectors, 3 for images.

    Returns:
        The shape of x.

    Raises:
        TypeError: the model or the path cannot be called, t or x is no floating tensor.
        ValueError: the shapes do not fit, or t lies outside [0, 1].

    Example:
        >>> path = SimplexPath(0, 1, 2, modes=0)  # straight: the weights change by -1 and 1
        >>> model = lambda alpha, x: torch.stack([x, x + 3], -2)
        >>> simplex_velocity(model, path, torch.tensor([0.5]), torch.zeros(1, 1)).item()
        3.0

    References:
        Albergo, Boffi, Lindsey, Vanden-Eijnden (2024), corollary 4.
    """
    check_callable("model", model)
    alpha, rate = _along(path, t, _batch(x, event_ndim))
    return mixed(rate, means_at(model, alpha, x))


class SimplexPath(nn.Module):
    r"""A path of weights from one vertex of the simplex to another that can be learned.

    :math:`\alpha_k(t)\propto e_k(t)+\bigl(\sum_ma_{km}\sin(\pi mt)\bigr)^2` with the straight edge e,
    :math:`1-t` at the start and t at the end. Minimise :func:`path_energy` over the coefficients a.

    Args:
        start: index of the distribution at time 0.
        end: index of that at time 1, another one.
        vertices: k, number of distributions, >= 2.
        modes: number of frequencies; 0 is the straight edge.
        initial: the coefficients of the first frequency at the beginning; with 0 the path is the edge, where they have
            no gradient.

    Attributes:
        coefficients: ``[k, modes]``.

    Raises:
        TypeError, ValueError: a number is out of range, or ``start`` is ``end``.

    Example:
        >>> path = SimplexPath(0, 2, 3)
        >>> path(torch.tensor([0.0, 1.0])).detach().round(decimals=4)
        tensor([[1., 0., 0.],
                [0., 0., 1.]])

    References:
        Albergo, Boffi, Lindsey, Vanden-Eijnden (2024), section 2.3 and appendix B.
    """

    edge: Tensor

    def __init__(self, start: int, end: int, vertices: int, *, modes: int = 4, initial: float = 0.1) -> None:
        super().__init__()
        check_integer("vertices", vertices, 2)
        for name, value in (("start", start), ("end", end)):
            check_integer(name, value, 0, vertices - 1)
        if start == end:
            raise ValueError(f"end must be another vertex than start, got {end} for both")
        check_integer("modes", modes, 0)
        check_positive("initial", initial, zero=True)
        self.register_buffer("edge", torch.eye(vertices)[[start, end]])
        coefficients = torch.zeros(vertices, modes)
        coefficients[:, :1] = initial
        self.coefficients = nn.Parameter(coefficients)

    def forward(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch k"]:
        """Return the weights at times in [0, 1]."""
        return self.with_velocity(t)[0]

    def with_velocity(self, t: Float[Tensor, "*batch"]) -> tuple[Float[Tensor, "*batch k"], Float[Tensor, "*batch k"]]:
        """Return the weights and their derivatives in time."""
        _check_times(t)
        t = t.unsqueeze(-1)
        angle = math.pi * torch.arange(1, self.coefficients.shape[1] + 1, dtype=t.dtype, device=t.device)
        bend, slope = (angle * t).sin() @ self.coefficients.mT, (angle * (angle * t).cos()) @ self.coefficients.mT
        raw = (1 - t) * self.edge[0] + t * self.edge[1] + bend.square()
        change = self.edge[1] - self.edge[0] + 2 * bend * slope
        total = raw.sum(-1, keepdim=True)
        alpha = raw / total
        return alpha, (change - alpha * change.sum(-1, keepdim=True)) / total


def path_energy(
    model: Means,
    path: Path,
    xs: Float[Tensor, "*shape"],
    *,
    t: Float[Tensor, "*batch"] | None = None,
    event_ndim: int = 1,
    generator: torch.Generator | None = None,
) -> Float[Tensor, ""]:
    r"""Return :math:`\int_0^1E\,|\sum_k\dot\alpha_k(t)\,g_k(\alpha(t),x(\alpha(t)))|^2\,dt`, the cost of transport.

    The expectation is that of interpolated points: nothing is integrated along the flow. It is at least the mean
    squared displacement of the points that follow the path. Minimised over the path, it makes transport cheaper.

    Args:
        model: the conditional means, see :func:`multimarginal_loss`; frozen while the path learns.
        path: see :func:`simplex_velocity`.
        xs: ``[*batch, k, *event]``, one point of each distribution.
        t: ``[*batch]`` times in [0, 1]; ``None``: drawn uniformly, one for each.
        event_ndim: how many dimensions are one point; the square is summed over them.
        generator: source of the times.

    Returns:
        A scalar >= 0, the mean over the batch.

    Raises:
        TypeError: the model or the path cannot be called, xs is no floating tensor.
        ValueError: the shapes do not fit.

    Example:
        >>> xs = torch.tensor([[[0.0], [2.0]]])
        >>> known = lambda alpha, x: torch.tensor([[[0.0], [2.0]]])
        >>> path_energy(known, SimplexPath(0, 1, 2, modes=0), xs).item()
        4.0

    References:
        Albergo, Boffi, Lindsey, Vanden-Eijnden (2024), equation 14.
    """
    check_callable("model", model)
    check_floating("xs", xs)
    check_integer("event_ndim", event_ndim, 1)
    if xs.ndim < event_ndim + 1 or not xs.numel():
        raise ValueError(f"xs must have shape (*batch, k, *event) with {event_ndim} event dimensions, got {xs.shape}")
    batch = xs.shape[: xs.ndim - event_ndim - 1]
    if t is None:
        t = torch.rand(batch, generator=generator, dtype=xs.dtype, device=drawing_device(generator, xs)).to(xs.device)
    alpha, rate = _along(path, t, batch)
    velocity = mixed(rate, means_at(model, alpha, barycentric_interpolant(xs, alpha)))
    return velocity.flatten(-event_ndim).square().sum(-1).mean()


def transport_along(
    model: Means,
    path: Path,
    x: Float[Tensor, "*shape"],
    *,
    steps: int = 50,
    diffusion: float = 0.0,
    method: str = "rk4",
    event_ndim: int = 1,
    generator: torch.Generator | None = None,
) -> Coupling:
    r"""Carry points of the distribution at the start of a path to that at its end.

    Without diffusion along :math:`\dot X=b(t,X)`, see :func:`simplex_velocity`: every point has one image. With the
    diffusion c along :math:`dX=(b-c\,g_0)\,dt+\sqrt{2c\,\alpha_0}\,dW`, by the steps of Euler and Maruyama: the same
    distributions where the first one is a standard Gaussian, and noise only where it takes part.

    Args:
        model: the conditional means, see :func:`multimarginal_loss`.
        path: see :func:`simplex_velocity`.
        x: ``[*batch, *event]`` points.
        steps: of equal length.
        diffusion: c >= 0.
        method: of :func:`pullback.dynamics.odeint`, without diffusion.
        event_ndim: how many dimensions are one point.
        generator: source of the noise.

    Returns:
        :class:`Coupling`, differentiable in the points, the model and the path.

    Raises:
        TypeError: the model or the path cannot be called, x is no floating tensor.
        ValueError: an option is out of range, the shapes do not fit.

    Example:
        >>> model = lambda alpha, x: torch.stack([x, x + 3], -2)
        >>> round(transport_along(model, SimplexPath(0, 1, 2, modes=0), torch.zeros(1, 1)).z1.item(), 4)
        3.0

    References:
        Albergo, Boffi, Lindsey, Vanden-Eijnden (2024), corollary 4.
    """
    check_callable("model", model)
    check_integer("steps", steps, 1)
    check_positive("diffusion", diffusion, zero=True)
    batch = _batch(x, event_ndim)
    if not diffusion:

        def field(t: Tensor, x: Tensor) -> Tensor:
            times = t.flatten(-event_ndim)[..., 0].clamp(0, 1)  # its last stage may lie behind the end by rounding
            return simplex_velocity(model, path, times, x, event_ndim=event_ndim)

        return Coupling(x, odeint(field, x, [0.0, 1.0], method=method, step=1 / steps, batch_ndim=len(batch)).y[-1])
    at, span = x, 1 / steps
    for step in range(steps):
        alpha, rate = _along(path, x.new_full((), step * span), batch)
        means = means_at(model, alpha, at)
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=drawing_device(generator, x))
        gaussian = alpha[..., 0].reshape(*batch, *[1] * event_ndim)
        drift = mixed(rate, means) - diffusion * means.select(len(batch), 0)
        at = at + span * drift + (2 * diffusion * span * gaussian).sqrt() * noise.to(x.device)
    return Coupling(x, at)


def _batch(x: Tensor, event_ndim: int) -> torch.Size:
    check_integer("event_ndim", event_ndim, 1)
    if check_floating("x", x).ndim < event_ndim or not x.numel():
        raise ValueError(f"x must hold points of {event_ndim} dimensions, at least one, got shape {tuple(x.shape)}")
    return x.shape[: x.ndim - event_ndim]


def _along(path: Path, t: Tensor, batch: torch.Size) -> tuple[Tensor, Tensor]:
    """Weights ``[*batch, k]`` on a path, and their derivatives, at a time for each or for all."""
    check_callable("path", path)
    _check_times(t)
    if check_broadcast(t=tuple(t.shape), x=tuple(batch)) != batch:
        raise ValueError(f"t must broadcast to the points {tuple(batch)}, got shape {tuple(t.shape)}")
    found = path.with_velocity(t) if isinstance(path, SimplexPath) else func.jvp(path, (t,), (torch.ones_like(t),))
    # torch gives tangents of numbers in float64.
    alpha, rate = (part.to(found[0].dtype).expand(*batch, part.shape[-1]) for part in found)
    return alpha, rate


def _check_times(t: Tensor) -> None:
    if can_look(check_floating("t", t)) and not bool(((t >= 0) & (t <= 1)).all()):
        raise ValueError(f"t must be in [0, 1], got {float(t.detach().min()):g} to {float(t.detach().max()):g}")
