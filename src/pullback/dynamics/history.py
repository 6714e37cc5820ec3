"""States made of histories: a recurrent encoder that learns by predicting the next observation."""

from __future__ import annotations

import torch
from torch import nn

from pullback.core.checks import check_floating, check_integer, check_same_dtype
from pullback.core.random import drawing_device
from pullback.core.shapes import Bool, Float, Int, Tensor
from pullback.core.transforms import can_look

__all__ = ["HistoryEncoder"]


class HistoryEncoder(nn.Module):
    r"""A state for what is only partly observed: a GRU over observations and the actions before them.

    :math:`h_t=\mathrm{GRU}(h_{t-1},[o_t,a_{t-1}])` is trained to tell, with the action taken, the next observation:
    :math:`o_{t+1}\sim N(\mu(h_t,a_t),\sigma^2(h_t,a_t))`. What predicts the future is an approximate information state:
    values of it lose little against values of the whole history.

    Args:
        observations: numbers of one observation, >= 1.
        actions: >= 1; before the first observation there is none.
        hidden: size of the state, >= 1.
        generator: source of the initial weights, uniform in ``+-1 / sqrt(hidden)``.

    Raises:
        TypeError: an option of another kind.
        ValueError: an option out of range.

    Example:
        >>> encoder = HistoryEncoder(3, 2, 8)
        >>> observations, actions = torch.randn(5, 6, 3), torch.zeros(5, 6, dtype=torch.int64)
        >>> encoder(observations, actions).shape, encoder.loss(observations, actions).shape
        (torch.Size([5, 6, 8]), torch.Size([]))

    References:
        Subramanian, Mahajan (2019), Approximate information state for partially observed systems; Killian, Zhang,
        Subramanian, Fatemi, Ghassemi (2020), An empirical study of representation learning for reinforcement learning
        in healthcare.
    """

    def __init__(
        self, observations: int, actions: int, hidden: int = 64, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        check_integer("observations", observations, 1)
        check_integer("actions", actions, 1)
        check_integer("hidden", hidden, 1)
        self.observations, self.actions = observations, actions
        self.recurrent = nn.GRU(observations + actions, hidden, batch_first=True)
        self.head = nn.Sequential(nn.Linear(hidden + actions, hidden), nn.ReLU(), nn.Linear(hidden, 2 * observations))
        device = drawing_device(generator, torch.device("cpu"))
        for p in self.parameters():
            drawn = torch.rand(p.shape, generator=generator, device=device)
            p.data = ((2 * drawn - 1) * hidden**-0.5).cpu()

    def forward(
        self, observations: Float[Tensor, "*batch times observations"], actions: Int[Tensor, "*batch times"]
    ) -> Float[Tensor, "*batch times hidden"]:
        """Return the state at each time: of the observations up to it and the actions before it.

        Raises:
            ValueError: shapes that do not fit, an action that is not there.
        """
        chosen = self._one_hot(observations, actions)
        before = torch.cat([torch.zeros_like(chosen[..., :1, :]), chosen[..., :-1, :]], -2)
        seen = torch.cat([observations, before], -1)
        states: Tensor = self.recurrent(seen.reshape(-1, *seen.shape[-2:]))[0]
        return states.reshape(*seen.shape[:-1], states.shape[-1])

    def loss(
        self,
        observations: Float[Tensor, "*batch times observations"],
        actions: Int[Tensor, "*batch times"],
        known: Bool[Tensor, "*batch times observations"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the mean negative log likelihood of the next observations, in nats a number.

        Args:
            observations: with any numbers where they are not known, for example those of the time before.
            actions: those taken after each observation.
            known: which numbers of each observation count as targets: not those that are missing, nor those after the
                end of a history. All by default.

        Raises:
            ValueError: shapes that do not fit, an action that is not there, fewer than two times, no target.
        """
        states = self(observations, actions)
        if observations.shape[-2] < 2:
            raise ValueError(f"observations must have at least two times, got shape {tuple(observations.shape)}")
        told = torch.cat([states, self._one_hot(observations, actions)], -1)[..., :-1, :]
        mean, spread = self.head(told).chunk(2, -1)
        log_scale = 5 * torch.tanh(spread / 5)  # between e^-5 and e^5
        target = observations[..., 1:, :]
        nats = ((target - mean) * torch.exp(-log_scale)).square() / 2 + log_scale + 0.9189385332046727
        if known is None:
            return nats.mean()
        if known.shape != observations.shape or known.dtype != torch.bool:
            raise ValueError(f"known must be booleans of shape {tuple(observations.shape)}, got {tuple(known.shape)}")
        counts = known[..., 1:, :]
        if can_look(counts) and not bool(counts.any()):
            raise ValueError("known must have a target after the first time")
        return torch.where(counts, nats, 0.0).sum() / counts.sum()

    def _one_hot(self, observations: Tensor, actions: Tensor) -> Tensor:
        weights = next(self.recurrent.parameters())
        check_same_dtype(weights=weights, observations=check_floating("observations", observations))
        if observations.ndim < 2 or observations.shape[-1] != self.observations or not observations.shape[-2]:
            raise ValueError(
                f"observations must have shape (..., times, {self.observations}), got {tuple(observations.shape)}"
            )
        if actions.shape != observations.shape[:-1] or actions.is_floating_point():
            raise ValueError(f"actions must be integers of shape {tuple(observations.shape[:-1])}, got {actions.dtype} "
                             f"{tuple(actions.shape)}")  # fmt: skip
        if can_look(actions) and bool(((actions < 0) | (actions >= self.actions)).any()):
            raise ValueError(f"actions must be in 0..{self.actions - 1}, got {actions.min()}..{actions.max()}")
        return torch.nn.functional.one_hot(actions.long(), self.actions).to(observations.dtype)
