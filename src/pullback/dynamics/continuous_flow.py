"""Continuous normalising flows: a density carried along an ordinary differential equation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pullback.core.checks import check_choice, check_shape
from pullback.core.random import drawing_device
from pullback.core.shapes import Float
from pullback.dynamics.draws import standard_normal
from pullback.dynamics.odeint import odeint

__all__ = ["ContinuousFlow", "FlowSample", "GatedField"]


@runtime_checkable
class _Base(Protocol):
    def log_prob(self, z: Tensor) -> Tensor: ...

    def sample(self, n: int, generator: torch.Generator | None) -> Tensor: ...


class _StandardNormal:
    def __init__(self, dim: int) -> None:
        self.dim = dim

    def log_prob(self, z: Tensor) -> Tensor:
        return -0.5 * z.square().sum(-1) - 0.5 * self.dim * math.log(2 * math.pi)


class FlowSample(NamedTuple):
    """What :meth:`ContinuousFlow.sample` returns.

    Attributes:
        x: ``[n, dim]`` samples.
        log_prob: ``[n]`` their log density.
    """

    x: Tensor
    log_prob: Tensor


class GatedField(nn.Module):
    """The field of the paper: ``f(z, t) = sum_n s_n(t) u_n tanh(w_n^T z + b_n)``, with its trace in closed form.

    The gates ``s_n`` and, as in the authors' code, nothing else depend on time: ``s(t) = sigmoid(V tanh(a t + c) +
    d)``.

    Args:
        dim: of z.
        units: M, hidden units.
        width: hidden size of the gates' network.
        generator: of the initial weights.

    Example:
        >>> field = GatedField(2, 8, generator=torch.Generator().manual_seed(0))
        >>> rate, trace = field.with_trace(torch.zeros(5, 1), torch.zeros(5, 2))
        >>> rate.shape, trace.shape
        (torch.Size([5, 2]), torch.Size([5]))

    References:
        Chen, Rubanova, Bettencourt, Duvenaud (2018), section 4, arXiv 1806.07366.
    """

    def __init__(self, dim: int, units: int, *, width: int = 16, generator: torch.Generator | None = None) -> None:
        super().__init__()

        def normal(*shape: int, scale: float) -> nn.Parameter:
            return nn.Parameter(scale * standard_normal(*shape, generator=generator))

        self.w = normal(units, dim, scale=1.0)
        self.b = normal(units, scale=1.0)
        self.u = normal(units, dim, scale=1.0 / math.sqrt(units))
        self.gate_in = normal(width, 1, scale=2.0)
        self.gate_shift = normal(width, scale=1.0)
        self.gate_out = normal(units, width, scale=1.0 / math.sqrt(width))
        self.gate_bias = nn.Parameter(torch.zeros(units))

    def _parts(self, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        check_shape("t", t, (1,))
        check_shape("z", z, (self.w.shape[1],))
        gates = torch.sigmoid(
            F.linear(torch.tanh(F.linear(t, self.gate_in, self.gate_shift)), self.gate_out, self.gate_bias)
        )
        return gates, torch.tanh(F.linear(z, self.w, self.b))

    def forward(self, t: Float[Tensor, "*batch 1"], z: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """dz/dt."""
        gates, hidden = self._parts(t, z)
        return (gates * hidden) @ self.u

    def with_trace(
        self, t: Float[Tensor, "*batch 1"], z: Float[Tensor, "*batch dim"]
    ) -> tuple[Float[Tensor, "*batch dim"], Float[Tensor, "*batch"]]:
        """dz/dt and tr(df/dz) = sum_n s_n (1 - tanh^2) (u_n . w_n)."""
        gates, hidden = self._parts(t, z)
        return (gates * hidden) @ self.u, (gates * (1 - hidden.square())) @ (self.u * self.w).sum(1)


class ContinuousFlow(nn.Module):
    """x = z(1), z(0) ~ base, dz/dt = field(t, z): ``log p(x) = log p(z(0)) - int_0^1 tr(df/dz) dt``.

    Args:
        field: ``field(t, z)``; one that has ``with_trace(t, z)`` gives its trace itself.
        dim: of x.
        trace: ``exact`` (closed form, or dim vector-Jacobian products) or ``hutchinson`` (one Rademacher probe a
            solve, unbiased).
        base: an object with ``log_prob(z)`` and ``sample(n, generator)``; standard normal by default.
        t: start and end of the flow.
        method, rtol, atol, step, adjoint: as in :func:`odeint`.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> flow = ContinuousFlow(GatedField(2, 8, generator=g), 2)
        >>> sample = flow.sample(5, generator=g)
        >>> torch.allclose(flow.log_prob(sample.x), sample.log_prob, atol=1e-4)
        True

    References:
        Chen et al. (2018), theorem 1; Grathwohl et al. (2019), FFJORD, arXiv 1810.01367.
    """

    def __init__(
        self,
        field: Callable[[Tensor, Tensor], Tensor],
        dim: int,
        *,
        trace: str = "exact",
        base: _Base | None = None,
        t: Sequence[float] = (0.0, 1.0),
        method: str = "dopri5",
        rtol: float = 1e-5,
        atol: float = 1e-6,
        step: float | None = None,
        adjoint: str = "checkpoint",
    ) -> None:
        super().__init__()
        check_choice("trace", trace, ("exact", "hutchinson"))
        self.field = field
        self.dim = dim
        self.trace = trace
        self.base = base
        self.t = (float(t[0]), float(t[1]))
        self.options: dict[str, Any] = {"method": method, "rtol": rtol, "atol": atol, "step": step, "adjoint": adjoint}

    def log_prob(
        self, x: Float[Tensor, "*batch dim"], *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "*batch"]:
        """Return the log density at ``x``.

        Args:
            x: ``[*batch, dim]``.
            generator: of the Hutchinson probe, needed where ``trace="hutchinson"``.
        """
        check_shape("x", x, (self.dim,))
        z, change = self._carry(x.reshape(-1, self.dim), self.t[::-1], generator)
        return (self._base_log_prob(z) + change).reshape(x.shape[:-1])

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> FlowSample:
        """Return ``n`` samples with their log density (differentiable: reverse Kullback-Leibler training)."""
        like = next(iter(self.parameters()), torch.zeros(()))
        if self.base is None:
            z = standard_normal(n, self.dim, generator=generator, dtype=like.dtype, device=like.device)
        else:
            z = self.base.sample(n, generator)
        x, change = self._carry(z, self.t, generator)
        return FlowSample(x, self._base_log_prob(z) - change)

    def inverse(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Return the base point z(0) of ``x``."""
        check_shape("x", x, (self.dim,))
        return odeint(self.field, x, self.t[::-1], **self.options).y[-1]

    def _base_log_prob(self, z: Tensor) -> Tensor:
        return (self.base or _StandardNormal(self.dim)).log_prob(z)

    def _carry(self, z: Tensor, t: Sequence[float], generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """z at the other end, and the integral of the trace along the way."""
        probe: Tensor | None = None
        if self.trace == "hutchinson":
            if generator is None:
                raise ValueError("generator must be given where trace='hutchinson' (it draws the probe), got None")
            signs = torch.randint(0, 2, tuple(z.shape), generator=generator, device=drawing_device(generator, z))
            probe = (2 * signs - 1).to(z)

        def augmented(time: Tensor, state: Tensor) -> Tensor:
            rate, trace = self._rates(time, state[:, :-1], probe)
            return torch.cat([rate, trace.unsqueeze(1)], 1)

        # the parameters are named: a field made of a closure inside a module is still found by tracing
        end = odeint(
            augmented, torch.cat([z, torch.zeros_like(z[:, :1])], 1), t, params=list(self.parameters()), **self.options
        ).y[-1]
        return end[:, :-1], end[:, -1]

    def _rates(self, t: Tensor, z: Tensor, probe: Tensor | None) -> tuple[Tensor, Tensor]:
        if probe is None and hasattr(self.field, "with_trace"):
            return self.field.with_trace(t, z)
        with torch.enable_grad():
            z = z if z.requires_grad else z.detach().requires_grad_()
            rate = self.field(t, z)
            if probe is not None:
                return rate, (_pull(rate, z, probe) * probe).sum(1)
            units = torch.eye(self.dim, dtype=z.dtype, device=z.device)
            diagonal = [_pull(rate, z, e.expand_as(z))[:, i] for i, e in enumerate(units)]
        return rate, torch.stack(diagonal, 1).sum(1)


def _pull(rate: Tensor, z: Tensor, cotangent: Tensor) -> Tensor:
    return torch.autograd.grad(rate, z, cotangent, create_graph=True)[0]
