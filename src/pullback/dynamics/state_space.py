"""A recurrent state-space model: a memory that is certain, a state that is not, learned from what is seen."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from pullback.core.checks import check_floating, check_integer, check_positive, check_same_dtype, check_shape
from pullback.core.random import drawing_device
from pullback.core.shapes import Float

__all__ = ["Beliefs", "RecurrentStateSpaceModel", "StateSpaceLoss"]


class Beliefs(NamedTuple):
    """What the model held for true along a sequence.

    Attributes:
        states: ``[*batch, T + 1, D + S]`` memory and a draw of the posterior.
        prior_mean: ``[*batch, T + 1, S]`` of the state before the observation is seen.
        prior_std: ``[*batch, T + 1, S]``.
        mean: ``[*batch, T + 1, S]`` of the state after it.
        std: ``[*batch, T + 1, S]``.
    """

    states: Float[Tensor, "*batch steps_plus_1 z"]
    prior_mean: Float[Tensor, "*batch steps_plus_1 s"]
    prior_std: Float[Tensor, "*batch steps_plus_1 s"]
    mean: Float[Tensor, "*batch steps_plus_1 s"]
    std: Float[Tensor, "*batch steps_plus_1 s"]


class StateSpaceLoss(NamedTuple):
    """The negative bound of the likelihood and its parts, means over sequences and steps.

    Attributes:
        total: ``observation + reward + max(divergence, free_nats)``.
        observation: half of the squared error of an observation, summed over its entries.
        reward: half of the squared error of a reward.
        divergence: of the posterior from the prior [nat].
    """

    total: Float[Tensor, ""]
    observation: Float[Tensor, ""]
    reward: Float[Tensor, ""]
    divergence: Float[Tensor, ""]


class RecurrentStateSpaceModel(nn.Module):
    r"""A world model whose state z = (h, s) has a part that is computed and a part that is drawn.

    .. math::
        h_{t+1} = \mathrm{GRU}(h_t, f(s_t, a_t)), \qquad s_{t+1} \sim N(\mu, \sigma^2)(h_{t+1}) \text{ before and }
        N(\mu, \sigma^2)(h_{t+1}, o_{t+1}) \text{ after seeing } o_{t+1}

    Observation and reward are read off z. ``model.step`` takes the prior's mean, and is the model of every planner of
    this family; :meth:`update` follows a real episode.

    Args:
        observation: o, size of an observation.
        action: m, size of an action.
        deterministic: D, size of h.
        stochastic: S, size of s.
        hidden: size of the hidden layers.
        noise_floor: least standard deviation of s, > 0.

    Raises:
        ValueError: a size below 1, or a number out of range.

    Example:
        >>> model = RecurrentStateSpaceModel(3, 1, deterministic=8, stochastic=2, hidden=16)
        >>> z = model.update(model.initial(5), torch.zeros(5, 1), torch.zeros(5, 3))
        >>> model.imagine(z, torch.zeros(7, 5, 1)).shape
        torch.Size([7, 5, 10])

    References:
        Hafner et al. (2019), Learning latent dynamics for planning from pixels, arXiv 1811.04551, equation 4 and
        appendix A.
    """

    def __init__(
        self,
        observation: int,
        action: int,
        *,
        deterministic: int = 200,
        stochastic: int = 30,
        hidden: int = 200,
        noise_floor: float = 0.1,
    ) -> None:
        super().__init__()
        sizes = {"observation": observation, "action": action, "deterministic": deterministic}
        for name, size in {**sizes, "stochastic": stochastic, "hidden": hidden}.items():
            check_integer(name, size, 1)
        check_positive("noise_floor", noise_floor)
        self.sizes, self.noise_floor = (observation, action, deterministic, stochastic), noise_floor
        self.encoder = nn.Sequential(nn.Linear(observation, hidden), nn.ELU())
        self.mixer = nn.Sequential(nn.Linear(stochastic + action, hidden), nn.ELU())
        self.memory = nn.GRUCell(hidden, deterministic)
        self.prior = _perceptron(deterministic, hidden, 2 * stochastic)
        self.posterior = _perceptron(deterministic + hidden, hidden, 2 * stochastic)
        self.decoder = _perceptron(deterministic + stochastic, hidden, observation)
        self.reward_head = _perceptron(deterministic + stochastic, hidden, 1)

    def initial(self, *batch: int) -> Float[Tensor, "*batch z"]:
        """Return z before anything is known: zeros."""
        return next(self.parameters()).new_zeros(*batch, self.sizes[2] + self.sizes[3])

    def observation(self, z: Float[Tensor, "*batch z"]) -> Float[Tensor, "*batch o"]:
        """Return the mean of what is seen in a state."""
        found: Tensor = self.decoder(self._checked(z))
        return found

    def reward(self, z: Float[Tensor, "*batch z"]) -> Float[Tensor, "*batch"]:
        """Return the mean reward of having come to a state."""
        found: Tensor = self.reward_head(self._checked(z))[..., 0]
        return found

    def step(
        self, z: Float[Tensor, "*batch z"], action: Float[Tensor, "*batch m"]
    ) -> tuple[Float[Tensor, "*batch z"], Float[Tensor, "*batch"]]:
        """Return the next state, the prior at its mean, and the reward there."""
        memory = self._remember(z, action)
        after = torch.cat([memory, self._normal(self.prior(memory))[0]], -1)
        return after, self.reward(after)

    def imagine(
        self,
        z: Float[Tensor, "*batch z"],
        actions: Float[Tensor, "H *batch m"],
        *,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "H *batch z"]:
        """Return the states that actions lead to: at the prior's mean, with a generator drawn from the prior."""
        if check_floating("actions", actions).ndim < 2 or not len(actions):
            raise ValueError(f"actions must have shape [H, *batch, m] with H >= 1, got {tuple(actions.shape)}")
        states = []
        for action in actions:
            memory = self._remember(z, action)
            mean, std = self._normal(self.prior(memory))
            z = torch.cat([memory, mean if generator is None else mean + std * _noise(mean, generator)], -1)
            states.append(z)
        return torch.stack(states)

    def update(
        self,
        z: Float[Tensor, "*batch z"],
        action: Float[Tensor, "*batch m"],
        observation: Float[Tensor, "*batch o"],
    ) -> Float[Tensor, "*batch z"]:
        """Return the state after an action and what was then seen, the posterior at its mean."""
        check_shape("observation", check_floating("observation", observation), (self.sizes[0],))
        check_same_dtype(z=z, observation=observation)
        memory = self._remember(z, action)
        mean, _ = self._normal(self.posterior(torch.cat([memory, self.encoder(observation)], -1)))
        return torch.cat([memory, mean], -1)

    def observe(
        self,
        observations: Float[Tensor, "*batch steps_plus_1 o"],
        actions: Float[Tensor, "*batch steps m"],
        *,
        generator: torch.Generator | None = None,
    ) -> Beliefs:
        """Follow sequences from :meth:`initial` on, an action 0 before the first observation.

        Args:
            observations: ``[*batch, T + 1, o]``.
            actions: ``[*batch, T, m]`` between them.
            generator: of the draws of s.

        Raises:
            TypeError: a tensor is not floating.
            ValueError: shapes do not fit.
        """
        check_shape("observations", check_floating("observations", observations), (None, self.sizes[0]))
        check_shape("actions", check_floating("actions", actions), (None, self.sizes[1]))
        check_same_dtype(observations=observations, actions=actions)
        *batch, length, _ = observations.shape
        if actions.shape[:-1] != (*batch, length - 1):
            raise ValueError(
                f"actions must have shape {(*batch, length - 1, self.sizes[1])}, got {tuple(actions.shape)}"
            )
        seen = self.encoder(observations)
        z = observations.new_zeros(*batch, self.sizes[2] + self.sizes[3])
        before = F.pad(actions, (0, 0, 1, 0))
        states, told, learned = [], [], []
        for t in range(length):
            memory = self._remember(z, before[..., t, :])
            told.append(self.prior(memory))
            learned.append(self.posterior(torch.cat([memory, seen[..., t, :]], -1)))
            mean, std = self._normal(learned[-1])
            z = torch.cat([memory, mean + std * _noise(mean, generator)], -1)
            states.append(z)
        prior, posterior = (self._normal(torch.stack(found, -2)) for found in (told, learned))
        return Beliefs(torch.stack(states, -2), *prior, *posterior)

    def losses(
        self,
        observations: Float[Tensor, "*batch steps_plus_1 o"],
        actions: Float[Tensor, "*batch steps m"],
        rewards: Float[Tensor, "*batch steps"],
        *,
        free_nats: float = 3.0,
        generator: torch.Generator | None = None,
    ) -> StateSpaceLoss:
        r"""Return the negative evidence bound with unit variances, constants left out.

        .. math:: \tfrac12 |o_t - \hat o(z_t)|^2 + \tfrac12 (r_t - \hat r(z_{t+1}))^2
                  + \max(\mathrm{KL}(\text{posterior} \,\|\, \text{prior}), \text{free nats})

        Args:
            observations: ``[*batch, T + 1, o]``.
            actions: ``[*batch, T, m]``.
            rewards: ``[*batch, T]`` of the observations after each action.
            free_nats: what the mean divergence may be for nothing, >= 0.
            generator: of the draws of s.

        Raises:
            TypeError: a tensor is not floating.
            ValueError: shapes do not fit, or a number is out of range.
        """
        check_positive("free_nats", free_nats, zero=True)
        beliefs = self.observe(observations, actions, generator=generator)
        if check_floating("rewards", rewards).shape != actions.shape[:-1] or not rewards.shape[-1]:
            raise ValueError(
                f"rewards must have shape {tuple(actions.shape[:-1])} with a step or more, got {tuple(rewards.shape)}"
            )
        check_same_dtype(observations=observations, rewards=rewards)
        seen = (self.observation(beliefs.states) - observations).square().sum(-1).mean() / 2
        earned = (self.reward(beliefs.states[..., 1:, :]) - rewards).square().mean() / 2
        laws = ((beliefs.prior_mean, beliefs.prior_std), (beliefs.mean, beliefs.std))
        before, after = (Normal(*law, validate_args=False) for law in laws)  # NaN in, NaN out
        divergence = kl_divergence(after, before).sum(-1).mean()
        return StateSpaceLoss(seen + earned + divergence.clamp_min(free_nats), seen, earned, divergence)

    def _checked(self, z: Tensor) -> Tensor:
        check_shape("z", check_floating("z", z), (self.sizes[2] + self.sizes[3],))
        return z

    def _remember(self, z: Tensor, action: Tensor) -> Tensor:
        """The next h."""
        check_shape("action", check_floating("action", action), (self.sizes[1],))
        check_same_dtype(z=z, action=action)
        if z.shape[:-1] != action.shape[:-1]:
            raise ValueError(f"action must have the batch of z, {tuple(z.shape[:-1])}, got {tuple(action.shape[:-1])}")
        memory, state = self._checked(z).split(self.sizes[2:], -1)
        mixed = self.mixer(torch.cat([state, action], -1))
        after: Tensor = self.memory(mixed.reshape(-1, mixed.shape[-1]), memory.reshape(-1, self.sizes[2]))
        return after.view(*memory.shape)

    def _normal(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = raw.chunk(2, -1)
        return mean, F.softplus(std) + self.noise_floor


def _noise(like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = drawing_device(generator, like)
    return torch.randn(like.shape, generator=generator, device=device, dtype=torch.float32).to(like)


def _perceptron(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ELU(), nn.Linear(hidden, outputs))
