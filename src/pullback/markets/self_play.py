"""Learning to bid by playing against oneself: four gradients of a utility that jumps where a bid begins to win."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from pullback.core.checks import check_callable, check_choice, check_integer, check_positive
from pullback.core.random import drawing_device
from pullback.core.shapes import Tensor
from pullback.discrete import score_function
from pullback.gradients import evolution_gradient
from pullback.markets.auction_game import AuctionGame, each_strategy

__all__ = ["SelfPlay"]

_ADAM = partial(torch.optim.Adam, lr=1e-3)
GRADIENTS = ("smoothed", "hard", "evolution", "reinforce")


class SelfPlay:
    r"""Simultaneous gradient ascent of all bidders on their own utility, the others' strategies held fixed.

    Each step draws ``batch`` profiles of values; bidder ``i``, with parameters ``w``, ascends an estimate of
    ``d/dw E u_i(b_i(w), b_{-i})``:

    ==============  ================================================================================================
    ``smoothed``    the derivative in the game whose allocation is a softmax of the bids: biased by the temperature
    ``hard``        the derivative in the auction itself, which sees ``-x dp/db`` alone: it misses what a bid wins
    ``evolution``   ``population`` perturbed copies of ``w`` in antithetic pairs, ``(u(w + s e) - u(w - s e)) e / 2s``,
                    each pair on its own ``batch / population`` profiles
    ``reinforce``   bids ``max(b_i + s z, 0)`` with normal noise ``z``: the score function, less the others' mean
    ==============  ================================================================================================

    All evaluate ``batch`` auctions a step for each strategy that learns. Bidders that share a strategy (the same
    object) learn as one, in the first one's place.

    Args:
        game: what is played.
        strategies: one module for all bidders or a sequence of one for each; changed in place.
        gradient: one of the four.
        batch: auctions a step, >= 2; of ``"evolution"`` a multiple of ``population``.
        temperature: > 0, in the unit of the bids, of ``"smoothed"``.
        noise: ``s > 0``: in the unit of the parameters for ``"evolution"``, in that of the bids for ``"reinforce"``.
        population: even, >= 4.
        optimizer: takes parameters to a torch optimizer; those in use are ``optimizers``, one for each learner.
        generator: of the values and of the noise.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: ``gradient`` is unknown, or a number is out of range.

    Example:
        >>> from pullback.markets import BidNetwork
        >>> draw = torch.Generator().manual_seed(0)
        >>> game = AuctionGame(lambda count, generator: torch.rand(count, 2, generator=generator))
        >>> strategy = BidNetwork(generator=draw)
        >>> fast = partial(torch.optim.Adam, lr=0.02)
        >>> play = SelfPlay(game, strategy, temperature=0.05, optimizer=fast, generator=draw)
        >>> for _ in range(200):
        ...     utility = play.step()
        >>> 0.3 < strategy(torch.tensor(0.8)).item() < 0.5  # equilibrium: half of the value
        True

    References:
        Kohring, Pieroth, Bichler (2023), Enabling first-order gradient-based learning for equilibrium computation in
        markets, section 4. Bichler et al. (2021), Learning equilibria in symmetric auction games using artificial
        neural networks, algorithm 1.
    """

    def __init__(
        self,
        game: AuctionGame,
        strategies: nn.Module | Sequence[nn.Module],
        *,
        gradient: str = "smoothed",
        batch: int = 2048,
        temperature: float = 0.01,
        noise: float = 0.05,
        population: int = 64,
        optimizer: Callable[[Iterable[Tensor]], torch.optim.Optimizer] = _ADAM,
        generator: torch.Generator,
    ) -> None:
        if not isinstance(game, AuctionGame):
            raise TypeError(f"game must be an AuctionGame, got {type(game).__name__}")
        check_choice("gradient", gradient, GRADIENTS)
        check_integer("batch", batch, 2)
        check_positive("temperature", temperature)
        check_positive("noise", noise)
        check_integer("population", population, 4)
        if gradient == "evolution" and (population % 2 or batch % population):
            raise ValueError(f"population must be even and divide batch, got {population} of {batch}")
        check_callable("optimizer", optimizer)
        self.game, self.gradient, self.batch = game, gradient, batch
        self.temperature, self.noise, self.population = temperature, noise, population
        self._each: list[Any] = list(each_strategy(strategies, game.bidders))
        for strategy in self._each:
            if not isinstance(strategy, nn.Module):
                raise TypeError(f"strategies must be modules, got {type(strategy).__name__}")
        self.learners = [i for i, s in enumerate(self._each) if all(s is not other for other in self._each[:i])]
        self.optimizers = [optimizer(self._each[i].parameters()) for i in self.learners]
        self._generator = generator

    def step(self) -> float:
        """Move all strategies at once; return the mean utility of those that learn, as their gradient saw it."""
        utilities = [self.ascend(i) for i in self.learners]
        for optimizer in self.optimizers:
            optimizer.step()
        return sum(utilities) / len(utilities)

    def ascend(self, learner: int) -> float:
        """Set the gradients of one bidder's parameters, for an optimizer that descends, and return his mean utility.

        Args:
            learner: index of the bidder.
        """
        strategy = self._each[learner]
        values = self.game.sample(self.batch, self._generator)
        if self.gradient == "evolution":
            pairs, parameters = self.population // 2, {n: p.detach() for n, p in strategy.named_parameters()}
            found = evolution_gradient(
                partial(self._loss, learner),
                parameters,
                smoothing=self.noise,
                pairs=pairs,
                chunk=pairs,
                data=values[: self.batch // 2].unflatten(0, (pairs, -1)),  # both of a pair meet the same
                generator=self._generator,
            )
            for name, parameter in strategy.named_parameters():
                parameter.grad = found.gradient[name]
            return -found.value
        strategy.zero_grad()
        if self.gradient == "reinforce":
            loss = self._surprise(learner, values)
        else:
            temperature = self.temperature if self.gradient == "smoothed" else 0.0
            gained = self.game.utilities(self._each, values, temperature=temperature, learner=learner)
            loss = -gained[:, learner].mean()
        loss.backward()
        return -loss.item()

    def _loss(self, learner: int, parameters: dict[str, Tensor], values: Tensor) -> Tensor:
        """The learner's loss with other parameters, in the auction itself."""
        own = self._each[learner]
        each = [*self._each]
        each[learner] = lambda v: functional_call(own, parameters, (v,))
        return -self.game.utilities(each, values)[..., learner].mean()

    def _surprise(self, learner: int, values: Tensor) -> Tensor:
        """The score function estimate of the learner's loss, with noisy bids."""
        bids = self.game.bids(self._each, values, learner=learner)
        mean, device = bids[:, learner], drawing_device(self._generator, bids)
        z = torch.randn(mean.shape, dtype=mean.dtype, device=device, generator=self._generator).to(mean.device)
        drawn = mean.detach() + self.noise * z
        profile = bids.detach().clone()
        profile[:, learner] = drawn.clamp(min=0)
        outcome = self.game.mechanism(profile, temperature=0.0)
        gained = (outcome.allocation * values - outcome.payment)[:, learner]
        log_prob = -(((drawn - mean) / self.noise) ** 2) / 2
        return -score_function(log_prob, gained, baseline="leave_one_out").mean()

    def state_dict(self) -> dict[str, Any]:
        """Return all that a step changes but the generator: strategies and optimizers."""
        return {
            "strategies": [self._each[i].state_dict() for i in self.learners],
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of :meth:`state_dict`."""
        for i, saved in zip(self.learners, state["strategies"], strict=True):
            self._each[i].load_state_dict(saved)
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
