"""Gradient descent whose penalty is taken by its proximal operator: the weights it removes are exactly 0."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pullback.core.checks import check_choice, check_positive
from pullback.core.elementwise import Elementwise, State, check_lr, check_modulus
from pullback.implicit import prox_group_lasso, prox_l0, prox_lasso

__all__ = ["ProximalSGD"]

Penalty = Literal["l1", "group", "l0"]
"""Sum of magnitudes, sum of the lengths of groups, number of entries other than 0."""


class ProximalSGD(Elementwise):
    r"""Stochastic gradient descent on ``loss + weight * penalty``, the penalty by its proximal operator.

    ``w_{k+1} = prox_{lr weight penalty}(w_k - lr grad + momentum (w_k - w_{k-1}))``; ``grad`` is that of the loss
    alone. With ``penalty="l1"`` the prox is soft thresholding. A step along ``sign(w)``, as the derivative of ``|w|``
    in the loss gives it, jumps over 0 by up to ``lr * weight`` and back forever: no weight becomes 0, and a large
    penalty makes the weights grow. The proximal operator stops at 0.

    A parameter group may have a ``penalty`` and a ``weight`` of its own, such as 0 for biases. Complex parameters are
    pairs of real ones. :func:`~pullback.optim.functional` makes the differentiable twin.

    Args:
        params: parameters, or dictionaries of parameter groups, as for :class:`torch.optim.SGD`.
        lr: step size, > 0.
        penalty: ``"l1"``, ``sum |w|``: single weights become 0; ``"group"``, ``sum |w_g|_2`` over the slices along a
            parameter's first dimension (the rows of a linear layer, the filters of a convolution), which become 0
            as a whole; ``"l0"``, the number of weights other than 0.
        weight: of the penalty, >= 0, in units of the loss per unit of penalty.
        momentum: in [0, 1), of the heavy ball (without penalty, that of :class:`torch.optim.SGD`).
        foreach: ``None`` or ``True``: gradients and momentum of all tensors at once; ``False``: tensor by tensor.

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
        foreach: bool | None = None,
    ) -> None:
        settings = {"penalty": penalty, "weight": weight, "momentum": momentum}
        super().__init__(params, {"lr": lr, "foreach": foreach, **settings})

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> None:
        """Refuse options out of range."""
        check_lr(options)
        check_choice("penalty", options["penalty"], get_args(Penalty))
        check_positive("weight", options["weight"], zero=True)
        check_modulus("momentum", options["momentum"])

    @staticmethod
    def start(p: Tensor, options: Mapping[str, Any]) -> State:
        """Where the step before began; nothing without momentum."""
        return {"before": p.clone()} if options["momentum"] else {}

    @staticmethod
    def rule(p: Tensor, g: Tensor, state: State, options: Mapping[str, Any]) -> tuple[Tensor, State]:
        """The formula."""
        moved = p - options["lr"] * g
        if state:
            moved = moved + options["momentum"] * (p - state["before"])
        return _prox(options["penalty"], moved, options["lr"] * options["weight"]), {"before": p} if state else {}

    @staticmethod
    def loop(params: list[Tensor], grads: list[Tensor], states: list[State], options: Mapping[str, Any]) -> None:
        """One pass an operation, then the operator of each."""
        moved = list(torch._foreach_add(params, torch._foreach_mul(grads, -options["lr"])))
        if options["momentum"]:
            before = [state["before"] for state in states]
            torch._foreach_add_(moved, torch._foreach_mul(torch._foreach_sub(params, before), options["momentum"]))
            torch._foreach_copy_(before, params)
        for p, there in zip(params, moved, strict=True):
            p.copy_(_prox(options["penalty"], there, options["lr"] * options["weight"]))


def _prox(penalty: Penalty, w: Tensor, weight: Any) -> Tensor:
    if penalty == "group":
        return prox_group_lasso(w.reshape(len(w) if w.ndim else 1, -1), weight).view(w.shape)
    prox = prox_lasso if penalty == "l1" else prox_l0
    return prox(w.reshape(-1), weight).view(w.shape)
