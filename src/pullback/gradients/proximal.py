"""Gradient descent whose penalty is taken by its proximal operator: the weights it removes are exactly 0."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pullback.core.checks import check_choice, check_positive, check_range
from pullback.implicit import prox_group_lasso, prox_l0, prox_lasso

__all__ = ["ProximalSGD"]

Penalty = Literal["l1", "group", "l0"]
"""Sum of magnitudes, sum of the lengths of groups, number of entries other than 0."""


class ProximalSGD(torch.optim.Optimizer):
    r"""Stochastic gradient descent on ``loss + weight * penalty``, the penalty by its proximal operator.

    ``w_{k+1} = prox_{lr weight penalty}(w_k - lr grad + momentum (w_k - w_{k-1}))``; ``grad`` is that of the loss
    alone. With ``penalty="l1"`` the prox is soft thresholding. A step along ``sign(w)``, as the derivative of ``|w|``
    in the loss gives it, jumps over 0 by up to ``lr * weight`` and back forever: no weight becomes 0, and a large
    penalty makes the weights grow. The proximal operator stops at 0.

    A parameter group may have a ``penalty`` and a ``weight`` of its own, such as 0 for biases.

    Args:
        params: parameters, or dictionaries of parameter groups, as for :class:`torch.optim.SGD`.
        lr: step size, > 0.
        penalty: ``"l1"``, ``sum |w|``: single weights become 0; ``"group"``, ``sum |w_g|_2`` over the slices along a
            parameter's first dimension (the rows of a linear layer, the filters of a convolution), which become 0
            as a whole; ``"l0"``, the number of weights other than 0.
        weight: of the penalty, >= 0, in units of the loss per unit of penalty.
        momentum: in [0, 1), of the heavy ball (without penalty, that of :class:`torch.optim.SGD`).

    Raises:
        TypeError: a number has the wrong type.
        ValueError: ``lr``, ``weight`` or ``momentum`` is out of range, or ``penalty`` is unknown.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([1.0, 0.05]))
        >>> optimizer = ProximalSGD([w], lr=0.1, weight=2.0)
        >>> w.grad = torch.tensor([1.0, 0.0])
        >>> optimizer.step()
        >>> w.data
        tensor([0.7000, 0.0000])

    References:
        Combettes, Wajs (2005), Signal recovery by proximal forward-backward splitting, equation 3.6.
        Ochs, Chen, Brox, Pock (2014), iPiano: inertial proximal algorithm for nonconvex optimization, algorithm 1.
        Kumar (2024), GD doesn't make the cut: three ways that non-differentiability affects neural network training,
        arXiv 2401.08426, section 4.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        penalty: Penalty = "l1",
        weight: float,
        momentum: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "penalty": penalty, "weight": weight, "momentum": momentum})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group; its options are checked like those of the optimizer."""
        options = {**self.defaults, **param_group}
        check_positive("lr", options["lr"])
        check_choice("penalty", options["penalty"], get_args(Penalty))
        check_positive("weight", options["weight"], zero=True)
        check_range("momentum", options["momentum"], 0, 1)
        if options["momentum"] == 1:
            raise ValueError("momentum must be in [0, 1), got 1")
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take a step with the gradients that are there.

        Args:
            closure: evaluates the loss again, with its gradients.

        Returns:
            What ``closure`` returns.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for w in group["params"]:
                if w.grad is not None:
                    moved = torch.add(w, w.grad, alpha=-group["lr"])
                    if group["momentum"]:
                        before = self.state[w].setdefault("before", w.clone())
                        moved += group["momentum"] * (w - before)
                        before.copy_(w)
                    w.copy_(_prox(group["penalty"], moved, group["lr"] * group["weight"]))
        return loss


def _prox(penalty: Penalty, w: Tensor, weight: float) -> Tensor:
    if penalty == "group":
        return prox_group_lasso(w.reshape(len(w) if w.ndim else 1, -1), weight).view(w.shape)
    prox = prox_lasso if penalty == "l1" else prox_l0
    return prox(w.reshape(-1), weight).view(w.shape)
