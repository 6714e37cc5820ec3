"""Models of bits and of counts: their losses, and regressions along orders by Newton's method, all at once."""

from __future__ import annotations

import torch
from torch.nn.functional import softplus

from pullback.causal.graphs import check_square, topological_order
from pullback.core.checks import check_broadcast, check_finite, check_floating, check_integer, check_shape
from pullback.core.errors import ConvergenceError
from pullback.core.shapes import Float, Tensor
from pullback.core.transforms import physical
from pullback.implicit import custom_root, optimality

__all__ = ["LogisticSCM", "check_binary", "check_counts", "fit_regressions", "node_losses", "regression_weights"]

MODELS = {"logistic": "logistic", "poisson": "Poisson"}

STEPS = 100
"""Newton steps at most: where the predecessors separate the values of a node they never end."""


class LogisticSCM:
    r"""A model of nodes in {0, 1}: ``P(x_j = 1 | x) = sigmoid((x W)_j)``, ``W`` those of a DAG.

    Args:
        weights: ``[d, d]``, ``W[i, j]`` the effect of ``i`` on ``j``.

    Raises:
        TypeError: not a floating tensor.
        ValueError: not square, not finite, or with a cycle.

    Example:
        >>> scm = LogisticSCM(torch.tensor([[0.0, 9.0], [0.0, 0.0]]))
        >>> x = scm.sample(1000, generator=torch.Generator().manual_seed(0))
        >>> round(x[x[:, 0] == 1, 1].mean().item(), 1)
        1.0

    References:
        Zheng, Aragam, Ravikumar, Xing (2018), DAGs with NO TEARS, section 5 (their generator of binary data).
    """

    def __init__(self, weights: Float[Tensor, "d d"]) -> None:
        check_square("weights", check_floating("weights", weights), batch=False)
        check_finite("weights", weights)
        self.weights = weights
        self.order = topological_order(weights != 0).tolist()

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Float[Tensor, "n d"]:
        """Draw ``n`` samples ``[n, d]`` of zeros and ones, node by node in topological order."""
        check_integer("n", n, 1)
        shape = (n, len(self.order))
        device = None if generator is None else generator.device
        uniform = torch.rand(shape, generator=generator, device=device, dtype=self.weights.dtype).to(self.weights)
        x = torch.zeros_like(uniform)
        for node in self.order:
            x[:, node] = (uniform[:, node] < torch.sigmoid(x @ self.weights[:, node])).to(x)
        return x

    def log_prob(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """Return the log-probability of samples of zeros and ones."""
        check_shape("x", check_floating("x", x), (len(self.order),))
        logits = x @ self.weights
        return (x * logits - softplus(logits)).sum(-1)


def check_binary(data: Tensor) -> None:
    """Refuse samples of which a logistic model has no density."""
    check_shape("data", check_floating("data", data), (None, None))
    check_finite("data", data)
    if not bool(((data == 0) | (data == 1)).all()):
        raise ValueError("data of a logistic model must be 0 or 1")


def check_counts(data: Tensor) -> None:
    """Refuse samples of which a Poisson model has no density."""
    check_shape("data", check_floating("data", data), (None, None))
    check_finite("data", data)
    if not bool(((data >= 0) & (data == data.round())).all()):
        raise ValueError("data of a Poisson model must be whole numbers >= 0")


def node_losses(weights: Tensor, data: Tensor, penalty: float | Tensor, model: str = "logistic") -> Tensor:
    """Return what every node adds to the loss, ``[*batch, d]``: negative log-likelihoods, and the ridge."""
    fitted = data @ weights
    losses = (softplus(fitted) if model == "logistic" else fitted.exp()) - data * fitted
    return losses.mean(-2) + 0.5 * penalty * weights.square().sum(-2)


def expected_values(fitted: Tensor, model: str) -> tuple[Tensor, Tensor]:
    """Return mean and variance of nodes whose logits or log-rates are ``fitted``."""
    if model == "poisson":
        return fitted.exp(), fitted.exp()
    probability = torch.sigmoid(fitted)
    return probability, probability * (1 - probability)


def regression_weights(data: Tensor, order: Tensor, penalty: float | Tensor, model: str = "logistic") -> Tensor:
    """Regress all nodes of all orders ``[*batch, d]``; differentiable in data and penalty by the implicit function."""
    order = physical(order)  # a constant, which the optimality may hold beyond the transform that wraps it
    batch = check_broadcast(data=tuple(data.shape[:-2]), order=tuple(order.shape[:-1]))

    def losses(columns: Tensor, data: Tensor, strength: Tensor) -> Tensor:
        weights, allowed = columns.mT, _allowed(order).to(data)
        forbidden = (weights * (1 - allowed)).square().sum(-2)  # holds them at zero
        return node_losses(weights * allowed, data, strength, model) + forbidden

    @custom_root(optimality.stationary(losses), batch_ndim=len(batch) + 1)
    def columns(init: None, data: Tensor, strength: Tensor) -> Tensor:
        return fit_regressions(data, order, strength, model=model).mT

    strength = torch.as_tensor(penalty, dtype=data.dtype, device=data.device)
    return columns(None, data, strength).mT * _allowed(order).to(data)


def _allowed(order: Tensor) -> Tensor:
    place = order.argsort(-1)
    return place.unsqueeze(-1) < place.unsqueeze(-2)


def fit_regressions(
    data: Tensor, order: Tensor, penalty: float | Tensor, possible: Tensor | None = None, model: str = "logistic"
) -> Tensor:
    """Minimise the loss of every node over its predecessors, halving steps that do not lower it; no derivatives.

    ``possible``, ``[d, d]`` booleans, says which of them may be its causes.
    """
    size = data.shape[-1]
    allowed = (_allowed(order) if possible is None else _allowed(order) & possible).to(data)
    weights = data.new_zeros(*torch.broadcast_shapes(data.shape[:-2], order.shape[:-1]), size, size)
    fixed = torch.diag_embed((1 - allowed).mT)
    pairs = (allowed.mT.unsqueeze(-1) * allowed.mT.unsqueeze(-2)).expand(*weights.shape, size)
    products = (data.unsqueeze(-1) * data.unsqueeze(-2)).flatten(-2)  # [n, d * d]
    loss = node_losses(weights, data, penalty, model)
    # Rounding of the slopes, which are sums of products of two columns.
    unit = (data.abs().mT @ data.abs() / data.shape[-2]).amax().clamp(min=1)
    small = 1e4 * torch.finfo(data.dtype).eps
    for _ in range(STEPS):
        mean, spread = expected_values(data @ weights, model)
        slope = (data.mT @ (mean - data) / data.shape[-2] + penalty * weights) * allowed
        curvature = (spread.mT @ products / data.shape[-2]).unflatten(-1, (size, size))
        curvature = (curvature + penalty * torch.eye(size).to(data)) * pairs + fixed
        floor = torch.finfo(data.dtype).eps * torch.eye(size).to(data)  # a flat direction takes a long step, not none
        step = torch.linalg.solve(curvature + floor, slope.mT.unsqueeze(-1)).squeeze(-1).mT
        if bool((slope.abs() <= small * unit).all()):
            break
        length = torch.ones_like(loss)
        for _ in range(30):
            tried = weights - length.unsqueeze(-2) * step
            new = node_losses(tried, data, penalty, model)
            worse = ~(new <= loss + small * loss.abs())
            if not bool(worse.any()):
                break
            length = torch.where(worse, length / 2, length)
        weights, loss = tried, new
    # Separated values drive the logits (log-rates) to infinity, and the slope to zero with them: Newton's steps add one
    # to a logit each, however flat it is there, while near a finite answer they vanish.
    moving = (data @ step).abs().amax(-2, keepdim=True) > 0.1
    endless = (slope.abs() > small * unit) | moving
    if bool(endless.any()):
        node = int(endless.any(-2).nonzero()[0, -1])
        raise ConvergenceError(
            f"the {MODELS[model]} regression of node {node} has no finite answer: its predecessors separate its "
            "values; give a penalty > 0",
            weights,
        )
    return weights
