"""Beliefs of the nodes of a graph from frame to frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from pullback.core.checks import check_callable, check_floating, check_integer, check_range
from pullback.core.random import drawing_device
from pullback.core.shapes import Float, Tensor
from pullback.uncertainty.gaussian_beliefs import Edges
from pullback.uncertainty.messages import Beliefs, EdgePotential, PulledMessages, pull_messages
from pullback.uncertainty.proposals import propose_points

__all__ = ["BeliefTracker"]


class BeliefTracker:
    r"""Follow the nodes of a graph: particles of the last frame moved on, some drawn anew, one update of all messages.

    In frame t (from 0) a part :math:`1-\lambda^t` of the particles is kept (:func:`propose_points`), the rest is even
    in a box. They are the points of the messages of the frame, and with equal weights of those into the senders
    (:func:`pull_messages`). Nothing is differentiated from frame to frame.

    Args:
        pairwise: of all edges, or one for each.
        graph: edges as pairs of nodes.
        move: the motion of a frame, of points ``[*batch, nodes, m, d]``.
        low: corner of the box of each node, ``[nodes, d]``.
        high: the other one.
        particles: of each node, >= 2 and at least its neighbours.
        forget: lambda in 0..1.
        samples: draws of the sender for each point.
        generator: of all draws.

    Raises:
        TypeError: ``move`` is not callable, a corner not floating, a number no integer.
        ValueError: a shape or an option is out of range.

    Example:
        >>> from pullback.uncertainty import DistancePotential
        >>> low, high, g = -torch.ones(2, 2), torch.ones(2, 2), torch.Generator().manual_seed(0)
        >>> words = {"low": low, "high": high, "particles": 400, "generator": g}
        >>> tracker = BeliefTracker(DistancePotential(0.5, 0.02), [(0, 1)], lambda x: x, **words)
        >>> def seen(node, x): return -(x - torch.tensor([0.5 * node, 0.0])).square().sum(-1) / (2 * 0.05**2)
        >>> means = [tracker.step(seen).beliefs.means for _ in range(8)][-1]
        >>> bool((means - torch.tensor([[0.0, 0.0], [0.5, 0.0]])).abs().max() < 0.05)
        True

    References:
        Opipari, Pavlasek, Chen, Wang, Desingh, Jenkins (2023), DNBP: Differentiable nonparametric belief propagation,
        section 4.
    """

    def __init__(
        self,
        pairwise: EdgePotential | Sequence[EdgePotential],
        graph: Edges,
        move: Callable[[Tensor], Tensor],
        *,
        low: Float[Tensor, "nodes d"],
        high: Float[Tensor, "nodes d"],
        particles: int,
        forget: float = 0.8,
        samples: int = 10,
        generator: torch.Generator | None = None,
    ) -> None:
        check_callable("move", move)
        for name, corner in (("low", low), ("high", high)):
            if check_floating(name, corner).ndim != 2 or corner.shape != low.shape:
                raise ValueError(f"{name} must have shape [nodes, d] as low, got {tuple(corner.shape)}")
        check_integer("particles", particles, 2)
        check_range("forget", forget, 0.0, 1.0)
        check_integer("samples", samples, 1)
        self.pairwise, self.graph, self.move, self.low, self.high = pairwise, graph, move, low, high
        self.particles, self.forget, self.samples, self.generator = particles, forget, samples, generator
        self.begin()

    def begin(self, *batch: int) -> None:
        """Begin clips of this batch shape with a frame 0, in which nothing is known."""
        shape = (*batch, len(self.low), self.particles, self.low.shape[1])
        device = drawing_device(self.generator, self.low)
        drawn = torch.rand(shape, dtype=self.low.dtype, device=device, generator=self.generator).to(self.low.device)
        points = self.low.unsqueeze(-2) + (self.high - self.low).unsqueeze(-2) * drawn
        self.frame, self.last = 0, Beliefs(points, torch.zeros_like(points[..., 0]).log_softmax(-1))

    def step(
        self,
        unary: Callable[[int, Tensor], Tensor],
        *,
        truth: Float[Tensor, "*batch nodes d"] | None = None,
        sender: Callable[[int, Tensor], Tensor] | None = None,
    ) -> PulledMessages:
        """Take in a frame.

        Args:
            unary: ``(node, x)``, log potentials of this frame.
            truth: places of the nodes, for training: see :func:`pull_messages`.
            sender: the unary factors asked at the senders.

        Returns:
            :class:`PulledMessages`, differentiable in the potentials and draws of this frame.

        Raises:
            ValueError: as :func:`pull_messages`.
            DegenerateWeights: no point of a message has any weight; the node is named.
        """
        begun = self.last
        if self.frame:
            with torch.no_grad():
                kept = 1 - self.forget**self.frame
                begun = propose_points(
                    begun, self.move, kept=kept, low=self.low, high=self.high, generator=self.generator
                )
        found = pull_messages(
            unary,
            self.pairwise,
            self.graph,
            begun.points,
            into=begun if truth is None else None,
            truth=truth,
            sender=sender,
            samples=self.samples,
            generator=self.generator,
        )
        self.frame, self.last = self.frame + 1, Beliefs(found.points.detach(), found.log_weights.detach())
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return the frame and the beliefs of the last one."""
        return {"frame": self.frame, "points": self.last.points, "log_weights": self.last.log_weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.frame, self.last = state["frame"], Beliefs(state["points"], state["log_weights"])
