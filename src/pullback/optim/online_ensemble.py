"""Learners with many step sizes at once, mixed by their success: for comparators that move."""

from __future__ import annotations

import math
from typing import Any

import torch

from pullback.core.checks import check_finite, check_floating, check_positive, check_shape
from pullback.core.shapes import Float, Tensor
from pullback.optim.optimistic_mirror import OptimisticMirrorDescent

__all__ = ["OnlineEnsemble"]


class OnlineEnsemble:
    r"""Mix of learners of different step sizes, by optimistic Hedge on linearised losses.

    .. math:: x_t = \sum_k p_{tk} x_{tk}, \qquad
        p_{tk} \propto \exp\Big(-\epsilon_t \big(\textstyle\sum_{s<t} \ell_{sk} + m_{tk}\big)\Big), \qquad
        \ell_{tk} = \langle g_t, x_{tk}\rangle + c\, |x_{tk} - x_{t-1,k}|^2, \quad
        m_{tk} = \langle g_{t-1}, x_{tk}\rangle + c\, |x_{tk} - x_{t-1,k}|^2

    with :math:`\epsilon_t = \sqrt{\log K / (\delta + \sum_{s<t} |\ell_s - m_s|_\infty^2)}`. Large steps follow a moving
    target, small ones average noise out; which it takes is found while it runs, at one gradient a round.

    Args:
        learners: an :class:`OptimisticMirrorDescent` whose last dimension of the batch numbers the ``K >= 2`` learners,
            with ``lr`` of that length, such as a grid of ratio 2; every learner gets the gradient at the mix.
        correction: ``c`` >= 0, what a learner pays for moving.
        delta: > 0, the square of the losses that the first rounds expect.

    Attributes:
        weights: ``[*batch, K]``, the mix of the last round.

    Raises:
        TypeError: ``learners`` is none of that class, or a number has the wrong type.
        ValueError: there is no dimension for the learners, or fewer than two; a number is out of range; a gradient has
            another shape or is not finite.
        RuntimeError: ``observe`` without a ``play`` before it.

    Example:
        >>> grid = torch.tensor([0.01, 0.1, 1.0])
        >>> learners = OptimisticMirrorDescent(torch.zeros(3, 1), diameter=4.0, lr=grid)
        >>> ensemble = OnlineEnsemble(learners)
        >>> for t in range(200):  # the target jumps
        ...     ensemble.observe(ensemble.play() - (1.0 if t % 20 < 10 else -1.0))
        >>> int(ensemble.weights.argmax())  # the largest step follows it
        2

    References:
        Chen, Zhang, Tu, Zhao, Zhang (2023), section 4.4; Zhao, Zhang, Zhang, Zhou (2020), Dynamic regret of convex and
        smooth functions.
    """

    def __init__(self, learners: OptimisticMirrorDescent, *, correction: float = 0.0, delta: float = 1.0) -> None:
        if not isinstance(learners, OptimisticMirrorDescent):
            raise TypeError(f"learners must be an OptimisticMirrorDescent, got {type(learners).__name__}")
        if learners.center.ndim < 2 or learners.center.shape[-2] < 2:
            raise ValueError(f"learners must be at least two, [*batch, K, n], got {tuple(learners.center.shape)}")
        check_positive("correction", correction, zero=True)
        check_positive("delta", delta)
        self.learners, self.correction, self.delta = learners, correction, delta
        self.losses = torch.zeros_like(learners.variation)
        self.weights = torch.full_like(self.losses, 1 / self.losses.shape[-1])
        self.surprise = learners.variation.new_zeros(learners.variation.shape[:-1])
        self.points = learners.center.clone()
        self._moved: Tensor | None = None

    @torch.no_grad()
    def play(self) -> Float[Tensor, "*batch n"]:
        """Return this round's decision, the mix."""
        points = self.learners.play()
        self._moved = self.correction * (points - self.points).square().sum(-1)
        self.points = points
        self._expected = (self.learners.hint * points).sum(-1) + self._moved
        rate = (math.log(self.losses.shape[-1]) / (self.delta + self.surprise)).sqrt()
        self.weights = torch.softmax(-rate[..., None] * (self.losses + self._expected), -1)
        return (self.weights[..., None] * points).sum(-2)

    @torch.no_grad()
    def observe(self, gradient: Float[Tensor, "*batch n"]) -> None:
        """Learn from the gradient of this round's loss at the mix."""
        if self._moved is None:
            raise RuntimeError("observe() comes after play(): it takes the gradient at what was played")
        check_floating("gradient", gradient)
        check_shape("gradient", gradient, (*self.points.shape[:-2], self.points.shape[-1]))
        check_finite("gradient", gradient)
        shared = gradient[..., None, :].expand(self.points.shape)
        loss = (shared * self.points).sum(-1) + self._moved
        self.surprise = self.surprise + (loss - self._expected).abs().amax(-1) ** 2
        self.losses = self.losses + loss
        self.learners.observe(shared)
        self._moved = None

    def state_dict(self) -> dict[str, Any]:
        """Return all that the rounds have changed."""
        own = {name: getattr(self, name).clone() for name in ("losses", "weights", "surprise", "points")}
        return own | {"learners": self.learners.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a saved state ended, before a ``play``."""
        for name in ("losses", "weights", "surprise", "points"):
            setattr(self, name, state[name].clone())
        self.learners.load_state_dict(state["learners"])
        self._moved = None
