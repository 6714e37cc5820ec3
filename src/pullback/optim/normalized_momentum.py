"""Momentum whose step has a length that is given: for losses that are steep without bound."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from pullback.core.elementwise import check_lr, check_modulus

__all__ = ["NormalizedMomentumSGD"]


class NormalizedMomentumSGD(torch.optim.Optimizer):
    r"""Steps of length ``lr`` along the running mean of the gradients.

    ``m <- momentum m + (1 - momentum) g``, ``w <- w - lr m / |m|``, with the 2-norm over all parameters of a group
    together. Where the curvature grows with the gradient, as of recurrent networks, plain steps need an ``lr`` that is
    right for the steepest place; these have the same length everywhere. The mean takes the bias out of normalised
    minibatch gradients. With a constant ``lr`` the iterates stay about ``lr`` away from a minimum: let it fall.

    Where all gradients so far are 0, the parameters stay; a gradient that is NaN makes them NaN, as other optimizers
    do. :func:`functional` has no twin of it: its norm is not elementwise.

    Args:
        params: parameters, or dictionaries of parameter groups.
        lr: length of a step, > 0, in units of the parameters.
        momentum: in [0, 1).

    Raises:
        TypeError: a number has the wrong type.
        ValueError: a number is out of range.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
        >>> optimizer = NormalizedMomentumSGD([w], lr=0.5)
        >>> w.grad = torch.tensor([300.0, 400.0])
        >>> optimizer.step()
        >>> w.data
        tensor([0.7000, 0.6000])

    References:
        Cutkosky, Mehta (2020), Momentum improves normalized SGD, algorithm 1.
    """

    def __init__(self, params: Iterable[Any], lr: float, *, momentum: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group; its options are checked like those of the optimizer."""
        options = {**self.defaults, **param_group}
        check_lr(options)
        check_modulus("momentum", options["momentum"])
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step with the gradients that are there.

        Args:
            closure: evaluates the loss again, with its gradients.

        Returns:
            What ``closure`` returns.

        Raises:
            RuntimeError: a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for number, group in enumerate(self.param_groups):
            params = [p for p in group["params"] if p.grad is not None]
            for index, p in enumerate(params):
                if p.grad.is_sparse:
                    raise RuntimeError(
                        "NormalizedMomentumSGD takes no sparse gradients, "
                        f"got one for parameter {index} of group {number}"
                    )
                if not self.state[p]:
                    self.state[p]["mean"] = torch.zeros_like(p)
            if not any(p.numel() for p in params):
                continue
            means = [self.state[p]["mean"] for p in params]
            torch._foreach_mul_(means, group["momentum"])  # torch._foreach_lerp_ rounds its weight to single precision
            torch._foreach_add_(means, [p.grad for p in params], alpha=1 - group["momentum"])
            unit = torch.stack([mean.abs().amax() for mean in means if mean.numel()]).max()
            shares = torch._foreach_div(means, torch.where(unit == 0, 1, unit))  # whose squares do not overflow
            length = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(shares)))
            far = torch.where(unit == 0, 0, group["lr"] / length)
            torch._foreach_sub_(params, torch._foreach_mul(shares, far))
        return loss
