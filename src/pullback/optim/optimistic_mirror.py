"""Optimistic mirror descent for losses that come one after another, from chance or from an adversary."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch

from pullback.core.checks import check_choice, check_finite, check_floating, check_positive, check_shape
from pullback.core.shapes import Float, Tensor
from pullback.implicit import projection_l2_ball
from pullback.optim.metric_projection import projection_ball_in_metric
from pullback.optim.mirror import mirror_step

__all__ = ["OptimisticMirrorDescent"]

Geometry = Literal["euclidean", "simplex", "newton"]
Curvature = Literal["convex", "strong", "exp-concave"]


class OptimisticMirrorDescent:
    r"""Two mirror steps a round: one with the last gradient as a hint before the loss is known, one with its gradient.

    .. math:: x_t = \arg\min_{x \in X} \langle g_{t-1}, x\rangle + D_\psi(x, \hat x_t) / \eta_t, \qquad
        \hat x_{t+1} = \arg\min_{x \in X} \langle g_t, x\rangle + D_\psi(x, \hat x_t) / \eta_t

    ==============  =======================================================================================
    curvature       step size
    ==============  =======================================================================================
    convex          :math:`\eta_t = D / \sqrt{\delta + 4 G^2 + \sum_{s<t} |g_s - g_{s-1}|_*^2}`
    strong          :math:`\eta_t = 2 / (\lambda t)`
    exp-concave     1, in the norm of :math:`H_t = (1 + \beta G^2 / 2) I + \beta / 2 \sum_{s<t} g_s g_s^\top`,
                    :math:`\beta = \min(1 / (4 G D), \alpha) / 2`
    ==============  =======================================================================================

    Where the mean losses are convex and smooth, the expected regret of the first is of the order of the root of the
    summed variances of the gradients plus that of the summed squared drifts of their means, of the others of the
    logarithm of both: what is between chance and an adversary is paid for as it is, and none of it has to be known.
    ``X`` is the ball of diameter ``D`` around the origin, or the simplex. Independent learners form a batch.

    Args:
        x: ``[*batch, n]`` the first decision; copied. On the simplex positive with sum 1.
        diameter: ``D`` > 0; on the simplex ``sqrt(log n)`` is usual.
        lipschitz: ``G`` > 0, a bound on the norm of the gradients (on the simplex, of their largest entry).
        geometry: ``"euclidean"``, ``"simplex"`` (multiplicative weights) or ``"newton"``, of exp-concave losses.
        curvature: see the table; ``"exp-concave"`` belongs to ``"newton"``.
        strength: ``lambda`` or ``alpha`` > 0 of curved losses.
        delta: > 0.
        lr: a fixed step size instead of the table's, > 0, a number or ``[*batch]``.
        scale: > 0, times that of the table, a number or ``[*batch]``.

    Attributes:
        exceeded: ``[*batch]`` int64, gradients so far that were longer than ``lipschitz``: the bounds ask for none.

    Raises:
        TypeError: ``x`` is no floating tensor, or a number has the wrong type.
        ValueError: a number is out of range, ``x`` is not in the domain, or the options do not fit each other; a
            gradient has another shape or is not finite.
        RuntimeError: ``observe`` without a ``play`` before it.

    Example:
        >>> learner = OptimisticMirrorDescent(torch.zeros(1), diameter=2.0, lipschitz=1.0)
        >>> for _ in range(60):
        ...     x = learner.play()
        ...     learner.observe(x - 0.5)  # of (x - 0.5)^2 / 2
        >>> round(float(x), 2)
        0.5

    References:
        Chen, Zhang, Tu, Zhao, Zhang (2023), Optimistic online mirror descent for bridging stochastic and adversarial
        online convex optimization, equations 6, 9, 13. Chiang et al. (2012), Online optimization with gradual
        variations.
    """

    def __init__(
        self,
        x: Float[Tensor, "*batch n"],
        *,
        diameter: float,
        lipschitz: float = 1.0,
        geometry: str = "euclidean",
        curvature: str = "convex",
        strength: float | None = None,
        delta: float = 1.0,
        lr: float | Float[Tensor, "*batch"] | None = None,
        scale: float | Float[Tensor, "*batch"] = 1.0,
    ) -> None:
        check_floating("x", x)
        if x.ndim == 0 or x.shape[-1] == 0:
            raise ValueError(f"x must have at least one entry, got shape {tuple(x.shape)}")
        check_finite("x", x)
        for name, number in (("diameter", diameter), ("lipschitz", lipschitz), ("delta", delta)):
            check_positive(name, number)
        check_choice("geometry", geometry, get_args(Geometry))
        check_choice("curvature", curvature, get_args(Curvature))
        if (geometry == "newton") != (curvature == "exp-concave"):
            raise ValueError(f"'newton' and 'exp-concave' belong together, got {geometry!r} and {curvature!r}")
        if (strength is None) != (curvature == "convex"):
            raise ValueError(f"strength is of curved losses, got {strength} for curvature {curvature!r}")
        if strength is not None:
            check_positive("strength", strength)
        check_positive("scale", scale)
        if lr is not None:
            check_positive("lr", lr)
            if geometry == "newton":
                raise ValueError("lr is not for geometry 'newton', whose metric decides the step")
        self.scale = scale
        self.diameter, self.lipschitz, self.strength, self.delta = diameter, lipschitz, strength, delta
        self.geometry, self.curvature, self.lr = geometry, curvature, lr
        size = x.norm(dim=-1)
        if geometry == "simplex":
            if bool((x <= 0).any()) or bool(((x.sum(-1) - 1).abs() > 1e-5).any()):
                raise ValueError("x must be positive with sum 1 on the simplex")
        elif bool((size > diameter / 2 * (1 + 1e-6)).any()):
            raise ValueError(f"x must lie in the ball of diameter {diameter}, got a norm of {float(size.max()):.6g}")
        self.center, self.hint = x.detach().clone(), torch.zeros_like(x)
        self.variation = x.new_zeros(x.shape[:-1])
        self.exceeded = torch.zeros(x.shape[:-1], dtype=torch.int64, device=x.device)
        self.metric = None
        if geometry == "newton":
            first = (1 + self._beta * lipschitz**2 / 2) * torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
            self.metric = first.expand(*x.shape, -1).clone()
        self.round, self._played = 1, False

    @torch.no_grad()
    def play(self) -> Float[Tensor, "*batch n"]:
        """Return this round's decision."""
        self._played = True
        return self._step(self.hint)

    @torch.no_grad()
    def observe(self, gradient: Float[Tensor, "*batch n"]) -> None:
        """Learn from the gradient of this round's loss at the decision."""
        if not self._played:
            raise RuntimeError("observe() comes after play(): it takes the gradient at what was played")
        check_floating("gradient", gradient)
        check_shape("gradient", gradient, tuple(self.center.shape))
        check_finite("gradient", gradient)
        self._played = False
        self.exceeded += self._length(gradient) > self.lipschitz * (1 + 1e-6)
        self.center = self._step(gradient)
        self.variation = self.variation + self._length(gradient - self.hint) ** 2
        if self.metric is not None:
            self.metric += self._beta / 2 * gradient[..., :, None] * gradient[..., None, :]
        self.hint = gradient.clone()
        self.round += 1

    @property
    def step_size(self) -> Float[Tensor, "*batch"]:
        """``[*batch]``, that of this round."""
        if self.lr is not None:
            return torch.as_tensor(self.lr, dtype=self.center.dtype).expand(self.variation.shape)
        if self.curvature == "convex":
            return self.scale * self.diameter / (self.delta + 4 * self.lipschitz**2 + self.variation).sqrt()
        if self.curvature == "strong":
            return self.scale * torch.full_like(self.variation, 2 / (float(self.strength or 1) * self.round))
        return torch.ones_like(self.variation)

    @property
    def _beta(self) -> float:
        return min(1 / (4 * self.lipschitz * self.diameter), float(self.strength or 1)) / 2

    def _length(self, gradient: Tensor) -> Tensor:
        return gradient.abs().amax(-1) if self.geometry == "simplex" else gradient.norm(dim=-1)

    def _step(self, gradient: Tensor) -> Tensor:
        if self.metric is not None:
            moved = self.center - torch.linalg.solve(self.metric, gradient)
            return projection_ball_in_metric(moved, self.metric, self.diameter / 2)
        step = self.step_size[..., None]
        if self.geometry == "simplex":
            return mirror_step(self.center, gradient, step, geometry="simplex")
        return mirror_step(self.center, gradient, step, prox=lambda y, eta: projection_l2_ball(y, self.diameter / 2))

    def state_dict(self) -> dict[str, Any]:
        """Return all that the rounds have changed."""
        names = ("center", "hint", "variation", "exceeded", "metric")
        state = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return {name: value.clone() for name, value in state.items()} | {"round": self.round}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a saved state ended, before a ``play``."""
        for name, value in state.items():
            setattr(self, name, value.clone() if isinstance(value, Tensor) else value)
        self._played = False
