"""Recurrent networks that read the time between observations: what a latent ODE is compared with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pullback.core.checks import check_integer, check_positive
from pullback.core.shapes import Float
from pullback.dynamics.latent_ode import BackwardsEncoder, LatentODE, check_sequences, check_times

__all__ = ["AutoregressiveRNN", "LatentRNN"]


class AutoregressiveRNN(nn.Module):
    """Predicts each observation from those before it and the time to it: ``x_{i+1} ~ N(W h_i + b, noise)``.

    The state ``h_i`` is that of a gated recurrent unit which has read ``(x_j, t_{j+1} - t_j)`` for j = 1 .. i. It
    extrapolates by reading its own predictions.

    Args:
        dim: of an observation.
        hidden: size of the state.
        noise: standard deviation of an observation.

    Example:
        >>> model = AutoregressiveRNN(2, hidden=8)
        >>> times = torch.linspace(0, 1, 10).expand(3, 10)
        >>> model.extrapolate(times, torch.zeros(3, 10, 2), times[:, :4] + 2).shape
        torch.Size([3, 4, 2])

    References:
        Chen, Rubanova, Bettencourt, Duvenaud (2018), section 5.1, arXiv 1806.07366: the baseline whose inputs are
        concatenated with the time difference to the next observation.
    """

    def __init__(self, dim: int, *, hidden: int = 25, noise: float = 0.1) -> None:
        super().__init__()
        check_integer("dim", dim, 1)
        check_integer("hidden", hidden, 1)
        check_positive("noise", noise)
        self.gru, self.head = nn.GRU(dim + 1, hidden, batch_first=True), nn.Linear(hidden, dim)
        self.dim, self.noise = dim, noise

    def log_likelihood(
        self, times: Float[Tensor, "batch steps"], values: Float[Tensor, "batch steps dim"]
    ) -> Float[Tensor, " batch"]:
        """Return the log density of all observations but the first, given those before.

        Args:
            times: ``[batch, steps]`` ascending in each row, two or more.
            values: ``[batch, steps, dim]``.
        """
        check_sequences(times, values, dim=self.dim)
        if times.shape[1] < 2:
            raise ValueError(f"times must hold at least two steps, got {times.shape[1]}")
        states, _ = self.gru(torch.cat([values[:, :-1], times.diff(dim=1).unsqueeze(-1)], -1))
        mean = self.head(states)
        return torch.distributions.Normal(mean, self.noise).log_prob(values[:, 1:]).sum((1, 2))

    def extrapolate(
        self,
        times: Float[Tensor, "batch steps"],
        values: Float[Tensor, "batch steps dim"],
        queries: Float[Tensor, "batch later"],
    ) -> Float[Tensor, "batch later dim"]:
        """Return the means at ``queries``, ascending and after ``times``, each read as an observation by the next."""
        check_sequences(times, values, dim=self.dim)
        check_times(queries, "queries", batch=len(times))
        gaps = torch.cat([times, queries], 1).diff(dim=1).unsqueeze(-1)
        seen = times.shape[1]
        states, state = self.gru(torch.cat([values, gaps[:, :seen]], -1))
        predictions = [self.head(states[:, -1])]
        for gap in gaps[:, seen:].unbind(1):
            _, state = self.gru(torch.cat([predictions[-1], gap], -1).unsqueeze(1), state)
            predictions.append(self.head(state[0]))
        return torch.stack(predictions, 1)


class LatentRNN(LatentODE):
    """A latent variable model whose decoder is recurrent: an RNN-VAE, the latent ODE without its equation.

    A gated recurrent unit starts from ``tanh(W z0 + b)`` and reads the time gaps alone; posterior and bound are those
    of :class:`LatentODE`.

    Args:
        dim: of an observation.
        latent: L, size of z0.
        hidden: size of the decoder's state.
        noise: standard deviation of an observation.
        start: the time of z0, at or before all others.

    Example:
        >>> model = LatentRNN(2, 4)
        >>> times = torch.linspace(0, 1, 10).expand(3, 10)
        >>> model.decode(torch.zeros(3, 4), times).shape
        torch.Size([3, 10, 2])
    """

    def __init__(self, dim: int, latent: int, *, hidden: int = 25, noise: float = 0.1, start: float = 0.0) -> None:
        check_integer("hidden", hidden, 1)
        recurrent, decoder = nn.GRU(1, hidden, batch_first=True), nn.Linear(hidden, dim)
        super().__init__(BackwardsEncoder(dim, latent), recurrent, decoder, latent=latent, noise=noise, start=start)
        self.first = nn.Linear(latent, hidden)

    def trajectory(
        self, z0: Float[Tensor, "batch latent"], times: Float[Tensor, "batch steps"]
    ) -> Float[Tensor, "steps batch hidden"]:
        """Return the recurrent states ``[steps, batch, hidden]``."""
        check_times(times, batch=len(z0))
        start = torch.full_like(times[:, :1], self.start)
        gaps = times.diff(dim=1, prepend=start).unsqueeze(-1)
        return self.field(gaps, torch.tanh(self.first(z0))[None])[0].transpose(0, 1)
