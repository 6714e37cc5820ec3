"""Projected descent on losses that come one after another, the baseline of online learning."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch

from pullback.core.checks import (
    check_choice,
    check_finite,
    check_floating,
    check_integer,
    check_positive,
    check_shape,
)
from pullback.core.shapes import Float, Tensor
from pullback.implicit import projection_l2_ball

__all__ = ["OnlineDescent"]

Rule = Literal["adagrad", "sqrt", "horizon"]


class OnlineDescent:
    r"""Projected online gradient descent on a ball, with the step size of one of three rules.

    .. math:: x_{t+1} = \Pi_{|x| \le D/2}(x_t - \eta_t g_t)

    ===========  ==============================================================
    rule         step size
    ===========  ==============================================================
    adagrad      :math:`\eta_t = D / \sqrt{2 \sum_{s \le t} |g_s|^2}`
    sqrt         :math:`\eta_t = D / (G \sqrt t)`
    horizon      :math:`\eta_t = D / (G \sqrt T)`, which knows the last round
    ===========  ==============================================================

    Args:
        x: ``[*batch, n]`` the first decision, in the ball; copied. Independent learners form the batch.
        diameter: ``D`` > 0.
        lipschitz: ``G`` > 0, a bound on the norm of the gradients.
        rule: see the table.
        horizon: ``T`` >= 1, of that rule.
        scale: > 0, times the step size, a number or ``[*batch]``.

    Raises:
        TypeError: ``x`` is no floating tensor, or a number has the wrong type.
        ValueError: a number is out of range, ``x`` is not in the ball, ``horizon`` is missing or of another rule; a
            gradient has another shape or is not finite.

    Example:
        >>> learner = OnlineDescent(torch.zeros(1), diameter=2.0)
        >>> for _ in range(100):
        ...     learner.observe(learner.play() - 0.5)  # of (x - 0.5)^2 / 2
        >>> round(float(learner.play()), 2)
        0.5

    References:
        Zinkevich (2003), Online convex programming; Streeter, McMahan (2010), Less regret via online conditioning.
    """

    def __init__(
        self,
        x: Float[Tensor, "*batch n"],
        *,
        diameter: float,
        lipschitz: float = 1.0,
        rule: str = "adagrad",
        horizon: int | None = None,
        scale: float | Float[Tensor, "*batch"] = 1.0,
    ) -> None:
        check_floating("x", x)
        if x.ndim == 0 or x.shape[-1] == 0:
            raise ValueError(f"x must have at least one entry, got shape {tuple(x.shape)}")
        check_finite("x", x)
        check_choice("rule", rule, get_args(Rule))
        for name, number in (("diameter", diameter), ("lipschitz", lipschitz), ("scale", scale)):
            check_positive(name, number)
        if (horizon is None) == (rule == "horizon"):
            raise ValueError(f"horizon is of the rule 'horizon', got {horizon} for {rule!r}")
        if horizon is not None:
            check_integer("horizon", horizon, 1)
        size = x.norm(dim=-1)
        if bool((size > diameter / 2 * (1 + 1e-6)).any()):
            raise ValueError(f"x must lie in the ball of diameter {diameter}, got a norm of {float(size.max()):.6g}")
        self.diameter, self.lipschitz, self.rule, self.horizon, self.scale = diameter, lipschitz, rule, horizon, scale
        self.x, self.square, self.round = x.detach().clone(), x.new_zeros(x.shape[:-1]), 1

    def play(self) -> Float[Tensor, "*batch n"]:
        """Return this round's decision."""
        return self.x

    @torch.no_grad()
    def observe(self, gradient: Float[Tensor, "*batch n"]) -> None:
        """Learn from the gradient of this round's loss at the decision."""
        check_floating("gradient", gradient)
        check_shape("gradient", gradient, tuple(self.x.shape))
        check_finite("gradient", gradient)
        self.square = self.square + gradient.square().sum(-1)
        if self.rule == "adagrad":
            size = (2 * self.square).sqrt().clamp(min=torch.finfo(gradient.dtype).tiny)
        else:
            known = self.lipschitz * math.sqrt(self.horizon if self.horizon is not None else self.round)
            size = torch.full_like(self.square, known)
        step = self.scale * self.diameter / size
        self.x = projection_l2_ball(self.x - step[..., None] * gradient, self.diameter / 2)
        self.round += 1

    def state_dict(self) -> dict[str, Any]:
        """Return all that the rounds have changed."""
        return {"x": self.x.clone(), "square": self.square.clone(), "round": self.round}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a saved state ended."""
        self.x, self.square, self.round = state["x"].clone(), state["square"].clone(), state["round"]
