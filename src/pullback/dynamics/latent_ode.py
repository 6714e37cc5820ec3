"""Latent ordinary differential equations: a sequence at irregular times as the picture of one latent trajectory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from pullback.core.checks import check_positive, check_shape
from pullback.core.shapes import Float, Num
from pullback.dynamics.draws import standard_normal
from pullback.dynamics.odeint import odeint

__all__ = ["BackwardsEncoder", "EvidenceLowerBound", "LatentODE"]


class EvidenceLowerBound(NamedTuple):
    """The evidence lower bound of each sequence and its parts, each ``[batch]``.

    Attributes:
        bound: ``log_likelihood - kl_weight kl`` (+ ``event_log_likelihood``).
        log_likelihood: of the observations, from one sample of z0.
        kl: divergence of q(z0 | x) from the prior.
        event_log_likelihood: of the observation times; ``None`` without an intensity.
    """

    bound: Tensor
    log_likelihood: Tensor
    kl: Tensor
    event_log_likelihood: Tensor | None


def check_times(times: Tensor, name: str = "times", batch: int | None = None) -> None:
    """Raise ``ValueError`` unless ``times`` are ``[batch, steps]``."""
    if times.ndim != 2 or batch not in (None, len(times)):
        wanted = "batch" if batch is None else batch
        raise ValueError(f"{name} must have shape ({wanted}, steps), got {tuple(times.shape)}")


def check_sequences(times: Tensor, values: Tensor, mask: Tensor | None = None, *, dim: int | None = None) -> None:
    """Raise ``ValueError`` unless ``values`` are ``[batch, steps, dim]`` and ``mask`` ``[batch, steps]``, as times."""
    check_times(times)
    if values.ndim != 3 or values.shape[:2] != times.shape or dim not in (None, values.shape[-1]):
        wanted = (*times.shape, "dim" if dim is None else dim)
        raise ValueError(f"values must have shape ({', '.join(map(str, wanted))}), got {tuple(values.shape)}")
    if mask is not None and mask.shape != times.shape:
        raise ValueError(f"mask must have the shape of times, {tuple(times.shape)}, got {tuple(mask.shape)}")


class BackwardsEncoder(nn.Module):
    """A recurrent network that reads (value, gap to the next later observation) from the last to the first.

    Args:
        dim: of an observation.
        latent: L; the output is the mean and the log of the deviation, ``2 L`` numbers.
        hidden: size of its state.

    Example:
        >>> encoder = BackwardsEncoder(2, 4, hidden=8)
        >>> encoder(torch.rand(3, 10).sort(1).values, torch.zeros(3, 10, 2), torch.ones(3, 10)).shape
        torch.Size([3, 8])
    """

    def __init__(self, dim: int, latent: int, *, hidden: int = 25) -> None:
        super().__init__()
        self.gru = nn.GRU(dim + 1, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 2 * latent)

    def forward(
        self,
        times: Float[Tensor, "batch steps"],
        values: Float[Tensor, "batch steps dim"],
        mask: Num[Tensor, "batch steps"],
    ) -> Float[Tensor, "batch twice_latent"]:
        """``[batch, 2 latent]``; masked observations are not read."""
        check_sequences(times, values, mask, dim=self.gru.input_size - 1)
        # what is seen comes first, the latest in front, so that one fused pass reads it without holes
        seen, order = (mask.flip(1) > 0).sort(dim=1, descending=True, stable=True)
        t = times.flip(1).gather(1, order)
        x = values.flip(1).gather(1, order.unsqueeze(-1).expand(-1, -1, values.shape[-1]))
        gap = F.pad(t[:, :-1] - t[:, 1:], (1, 0))
        read = torch.cat([x, gap.unsqueeze(-1)], -1)
        states, _ = self.gru(torch.where(seen.unsqueeze(-1), read, 0.0))
        count = seen.sum(1)
        last = (count - 1).clamp(min=0)[:, None, None].expand(-1, 1, states.shape[-1])
        state = states.gather(1, last)[:, 0]
        return self.head(torch.where(count.unsqueeze(1) > 0, state, 0.0))


class LatentODE(nn.Module):
    """q(z0 | x) = N(mu, sigma) from the encoder, z_i = odeint(field, z0, t_i), p(x_i | z_i) = N(decoder(z_i), noise).

    Args:
        encoder: ``encoder(times, values, mask) -> [batch, 2 latent]``: mean and log deviation.
        field: ``field(t, z)`` on ``[batch, latent]``.
        decoder: ``[..., latent] -> [..., dim]``.
        latent: L.
        start: the time t0 of z0, at or before all others.
        noise: standard deviation of an observation.
        intensity: ``[..., latent] -> [..., 1]``, log of the rate lambda(z(t)) of observation times: a Poisson process
            on (start, last time of the row], whose compensator is integrated by the same solve. ``None`` takes the
            times as given.
        method, rtol, atol, step, adjoint: as in :func:`odeint`. Fixed steps do not stop at the observation times: the
            states there are read from the dense output, so that more of them do not make a solve longer.

    Example:
        >>> from pullback.dynamics import NeuralField
        >>> encoder, decoder = BackwardsEncoder(2, 4), torch.nn.Linear(4, 2)
        >>> model = LatentODE(encoder, NeuralField(4), decoder, latent=4, method="rk4", step=0.2)
        >>> times = torch.linspace(0, 1, 10).expand(3, 10)
        >>> model.posterior(times, torch.zeros(3, 10, 2)).mean.shape, model.decode(torch.zeros(3, 4), times).shape
        (torch.Size([3, 4]), torch.Size([3, 10, 2]))

    References:
        Chen et al. (2018), section 5; Rubanova, Chen, Duvenaud (2019), arXiv 1907.03907.
    """

    def __init__(
        self,
        encoder: nn.Module,
        field: nn.Module,
        decoder: nn.Module,
        *,
        latent: int,
        start: float = 0.0,
        noise: float = 0.1,
        intensity: nn.Module | None = None,
        method: str = "dopri5",
        rtol: float = 1e-4,
        atol: float = 1e-5,
        step: float | None = None,
        adjoint: str = "checkpoint",
    ) -> None:
        super().__init__()
        check_positive("noise", noise)
        self.encoder, self.field, self.decoder, self.intensity = encoder, field, decoder, intensity
        self.latent = latent
        self.start = start
        self.noise = noise
        self.options: dict[str, Any] = {"method": method, "rtol": rtol, "atol": atol, "step": step, "adjoint": adjoint}

    def posterior(
        self,
        times: Float[Tensor, "batch steps"],
        values: Float[Tensor, "batch steps dim"],
        mask: Num[Tensor, "batch steps"] | None = None,
    ) -> Normal:
        """Return q(z0 | x), ``[batch, latent]``.

        Args:
            times: ``[batch, steps]`` ascending in each row.
            values: ``[batch, steps, dim]``.
            mask: ``[batch, steps]``, zero where there is no observation.

        Raises:
            ValueError: batches or steps differ.
        """
        check_sequences(times, values, mask)
        mask = torch.ones_like(times) if mask is None else mask
        code = self.encoder(times, values, mask)
        check_shape("encoder's output", code, (2 * self.latent,))
        mean, log_deviation = code.chunk(2, -1)
        return Normal(mean, log_deviation.clamp(-10.0, 4.0).exp())

    def trajectory(
        self, z0: Float[Tensor, "batch latent"], times: Float[Tensor, "batch steps"]
    ) -> Float[Tensor, "steps batch latent"]:
        """Return the latent states ``[steps, batch, latent]`` at times of each sample."""
        return self._solve(self.field, z0, times)

    def decode(
        self, z0: Float[Tensor, "batch latent"], times: Float[Tensor, "batch steps"]
    ) -> Float[Tensor, "batch steps dim"]:
        """Return the mean of the observations at ``times``."""
        return self.decoder(self.trajectory(z0, times)).transpose(0, 1)

    def extrapolate(
        self,
        times: Float[Tensor, "batch steps"],
        values: Float[Tensor, "batch steps dim"],
        queries: Float[Tensor, "batch later"],
        mask: Num[Tensor, "batch steps"] | None = None,
    ) -> Float[Tensor, "batch later dim"]:
        """Return the means at ``queries``, ascending and after ``times``, from the mean of q(z0 | x).

        Args:
            times, values, mask: as in :meth:`posterior`.
            queries: ``[batch, later]``.
        """
        z0 = self.posterior(times, values, mask).mean
        check_times(queries, "queries", batch=len(z0))
        return self.decode(z0, torch.cat([times, queries], 1))[:, times.shape[1] :]

    def elbo(
        self,
        times: Float[Tensor, "batch steps"],
        values: Float[Tensor, "batch steps dim"],
        mask: Num[Tensor, "batch steps"] | None = None,
        *,
        kl_weight: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> EvidenceLowerBound:
        """Return the evidence lower bound of each sequence, with one sample of z0.

        Args:
            times, values, mask: as in :meth:`posterior`.
            kl_weight: weight of the divergence from the prior N(0, 1).
            generator: of the sample.
        """
        check_sequences(times, values, mask)
        mask = torch.ones_like(times) if mask is None else mask
        values = torch.where(mask.unsqueeze(-1) > 0, values, 0.0)  # what was not observed may be NaN
        q = self.posterior(times, values, mask)
        noise = standard_normal(*q.mean.shape, generator=generator, dtype=q.mean.dtype, device=q.mean.device)
        z0 = q.mean + q.stddev * noise
        kl = kl_divergence(q, Normal(torch.zeros_like(z0), torch.ones_like(z0))).sum(-1)
        events: Tensor | None = None
        if self.intensity is None:
            z = self.trajectory(z0, times)
        else:
            z, events = self._with_intensity(z0, times, mask)
        x = self.decoder(z).transpose(0, 1)
        log_p = Normal(x, self.noise).log_prob(values).sum(-1)
        log_likelihood = torch.where(mask > 0, log_p, 0.0).sum(1)
        bound = log_likelihood - kl_weight * kl
        return EvidenceLowerBound(bound if events is None else bound + events, log_likelihood, kl, events)

    def _solve(self, field: Callable[[Tensor, Tensor], Tensor], z0: Tensor, times: Tensor) -> Tensor:
        check_times(times, "times", batch=len(z0))
        start = torch.full_like(times[:, :1], self.start)
        if bool((times[:, :1] < start).any()):
            raise ValueError(f"times must not lie before start={self.start}, got {float(times.min())}")
        parameters = list(self.parameters())
        if self.options["step"] is None:
            states: Tensor = odeint(field, z0, torch.cat([start, times], 1), params=parameters, **self.options).y
            return states[1:]
        ends = [self.start, float(times.max())]
        states = odeint(field, z0, ends, params=parameters, dense=True, **self.options).interpolate(times)
        return states

    def _with_intensity(self, z0: Tensor, times: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """States, and log likelihood of the times: sum_i log lambda(z(t_i)) - int lambda(z(t)) dt."""
        intensity: Any = self.intensity

        def augmented(t: Tensor, state: Tensor) -> Tensor:
            z = state[:, :-1]
            return torch.cat([self.field(t, z), intensity(z).exp()], 1)

        states = self._solve(augmented, F.pad(z0, (0, 1)), times)
        z, compensator = states[..., :-1], states[-1, :, -1]
        log_rate = intensity(z).squeeze(-1).T
        return z, torch.where(mask > 0, log_rate, 0.0).sum(1) - compensator
