"""Which inputs drive a loss: its derivatives along each of them, to the third order."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from pullback.core.checks import check_callable, check_choice, check_finite, check_floating, check_integer
from pullback.core.shapes import Float

__all__ = ["DerivativeProfile", "SensitivityRanking", "derivative_profile", "sensitivity_ranking"]

_PIECEWISE_LINEAR = frozenset(
    "relu relu6 leaky_relu prelu rrelu threshold hardtanh hardsigmoid hardshrink softshrink".split()
)


@dataclass(frozen=True)
class DerivativeProfile:
    """Derivatives of a loss along each feature, averaged over the data.

    Attributes:
        values: ``[*nets, order, features]``; ``values[..., k - 1, j]`` is the mean of ``d^k L / dx_j^k``.
        spread: standard deviation of the same over the rows.
    """

    values: Float[Tensor, "*nets order features"]
    spread: Float[Tensor, "*nets order features"]


@dataclass(frozen=True)
class SensitivityRanking:
    """Features by their sensitivity over an ensemble.

    Attributes:
        score: ``[features]`` what features are ranked by, >= 0.
        mean: ``[features]`` of the ensemble.
        spread: ``[features]`` standard deviation over the ensemble; 0 for a single network.
        order: ``[features]`` indices, the most sensitive first.
        signed: ``[features]`` the score with the sign of the mean, or of ``slopes`` where they are given.
    """

    score: Float[Tensor, " features"]
    mean: Float[Tensor, " features"]
    spread: Float[Tensor, " features"]
    order: Tensor
    signed: Float[Tensor, " features"]


def derivative_profile(
    loss: Callable[[Tensor], Float[Tensor, "*nets rows"]],
    inputs: Float[Tensor, "rows features"],
    *,
    order: int = 3,
    wrt: Literal["input", "weight"] = "input",
    chunk: int | None = None,
) -> DerivativeProfile:
    r"""Return the diagonal derivatives of a loss with respect to features, averaged over the data.

    ``S_kj = mean_b d^k L_b / dx_bj^k`` for ``k = 1 .. order``. Each is the ``k``-th derivative of
    ``t -> L(x + t e_j)`` at 0, by ``k`` nested Jacobian-vector products, exact to rounding: ``O(features)`` forward
    passes, no Hessian. Under a squared error ``L = (f - y)^2``, ``S_2j = 2 E (df/dx_j)^2 + 2 E (f - y) d^2f/dx_j^2``:
    a good fit leaves the first part alone, which has no sign.

    Args:
        loss: maps ``inputs`` to one loss a row, ``[*nets, rows]``; rows do not depend on each other. Leading
            dimensions are networks, evaluated together.
        inputs: ``[rows, features]``. With ``wrt="weight"`` it is the first layer's weight, ``[units, features]``, and
            ``loss`` maps the weight to losses.
        order: highest derivative, 1 to 3.
        wrt: ``"input"``, or ``"weight"`` for derivatives with respect to single weights, summed over the units.
        chunk: directions of one batched pass, >= 1 (default: all).

    Returns:
        A :class:`DerivativeProfile`.

    Raises:
        TypeError: ``loss`` is not callable, ``inputs`` is not floating, or ``order`` or ``chunk`` is no integer.
        ValueError: ``order`` is outside of 1 to 3, ``wrt`` is unknown, ``inputs`` is no matrix or empty, a number is
            not finite, or ``loss`` returns no row of losses; or ``order >= 2`` and an activation is piecewise linear,
            so that the network has no curvature to show (the message names the layer).

    Example:
        >>> x = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
        >>> profile = derivative_profile(lambda x: x[:, 0] ** 3 + x[:, 1], x)
        >>> profile.values.tolist()  # means of 3 x^2, 6 x, 6; and 1, 0, 0
        [[15.0, 1.0], [12.0, 0.0], [6.0, 0.0]]

    References:
        Faroz (2024), Sensitivity analysis on loss landscape, arXiv 2403.01128.
    """
    check_callable("loss", loss)
    check_integer("order", order, 1, 3)
    check_choice("wrt", wrt, ("input", "weight"))
    if chunk is not None:
        check_integer("chunk", chunk, 1)
    x = check_floating("inputs", inputs).detach().resolve_neg()
    if x.ndim != 2 or not x.numel():
        raise ValueError(f"inputs must have shape (rows, features) and entries, got {tuple(x.shape)}")
    check_finite("inputs", x)
    _check_losses(loss, x, order, wrt)
    features = x.shape[1]
    count = features if wrt == "input" else x.numel()
    directions = torch.eye(count, dtype=x.dtype, device=x.device)
    if wrt == "weight":
        directions = directions.view(count, *x.shape)

    def along(direction: Tensor) -> tuple[Tensor, ...]:
        taylor: Callable[[Tensor], tuple[Tensor, ...]] = lambda z: (loss(z),)  # noqa: E731
        for _ in range(order):
            taylor = _with_derivative(taylor, direction.expand_as(x))
        return taylor(x)[1:]

    with torch.no_grad():
        found = torch.func.vmap(along, chunk_size=chunk)(directions)
    stacked = torch.stack(found, 0).movedim(1, -2).movedim(0, -3)  # [*nets, order, count, rows]
    if wrt == "weight":
        stacked = stacked.unflatten(-2, (-1, features)).sum(-3)
    return DerivativeProfile(stacked.mean(-1), stacked.std(-1, correction=0))


def sensitivity_ranking(
    profiles: Float[Tensor, "nets features"],
    *,
    method: Literal["mean", "median", "ratio"] = "mean",
    slopes: Float[Tensor, "nets features"] | None = None,
) -> SensitivityRanking:
    r"""Rank features by one derivative of an ensemble's loss: every retraining is another exploration.

    With ``m_j`` and ``s_j`` the mean and standard deviation of ``S_j`` over the networks, the score is ``|m_j|``
    (``"mean"``), ``|median_j|`` (``"median"``) or ``|m_j| / s_j`` (``"ratio"``).

    Args:
        profiles: ``[nets, features]`` one order of :class:`DerivativeProfile` ``.values`` for each network.
        method: of the score.
        slopes: ``[nets, features]`` that give the signs instead: mean derivatives of the prediction, as second
            derivatives of a loss say how much a feature matters, but not in which direction.

    Returns:
        A :class:`SensitivityRanking`. Equal scores keep the order of the features.

    Raises:
        TypeError: a tensor is not floating.
        ValueError: ``profiles`` is no matrix or empty, ``slopes`` has another shape, a number is not finite,
            ``method`` is unknown, or ``"ratio"`` is asked of a single network.

    Example:
        >>> profiles = torch.tensor([[0.1, -2.0, 1.0], [0.3, -4.0, 1.0]])
        >>> ranking = sensitivity_ranking(profiles)
        >>> ranking.order.tolist(), [round(x, 1) for x in ranking.signed.tolist()]
        ([1, 2, 0], [0.2, -3.0, 1.0])

    References:
        Faroz (2024), Sensitivity analysis on loss landscape, arXiv 2403.01128.
    """
    check_choice("method", method, ("mean", "median", "ratio"))
    check_floating("profiles", profiles)
    if profiles.ndim != 2 or not profiles.numel():
        raise ValueError(f"profiles must have shape (nets, features) and entries, got {tuple(profiles.shape)}")
    check_finite("profiles", profiles)
    if slopes is not None:
        if check_floating("slopes", slopes).shape != profiles.shape:
            raise ValueError(f"slopes must have shape {tuple(profiles.shape)}, got {tuple(slopes.shape)}")
        check_finite("slopes", slopes)
    if method == "ratio" and len(profiles) < 2:
        raise ValueError("profiles must be of at least 2 networks for method='ratio', got 1")
    p = profiles.detach()
    mean = p.mean(0)
    spread = p.std(0) if len(p) > 1 else torch.zeros_like(mean)
    middle = p.median(0).values if method == "median" else mean
    score = middle.abs()
    if method == "ratio":
        score = torch.where(score > 0, score / spread, score)
    sign = middle if slopes is None else slopes.detach().mean(0).to(middle)
    return SensitivityRanking(score, mean, spread, score.argsort(descending=True, stable=True), score * sign.sign())


def _with_derivative(
    function: Callable[[Tensor], tuple[Tensor, ...]], direction: Tensor
) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """Return ``z -> (f, f', f'', ..)`` with one derivative along the direction more than ``function`` returns."""

    def wider(z: Tensor) -> tuple[Tensor, ...]:
        values, slopes = torch.func.jvp(function, (z,), (direction,))[:2]
        return (*values, slopes[-1])

    return wider


def _check_losses(loss: Callable[[Tensor], Tensor], x: Tensor, order: int, wrt: str) -> None:
    with torch.no_grad(), _Activations() as activations:
        losses = loss(x)
    if not isinstance(losses, Tensor) or not losses.ndim or not losses.is_floating_point():
        came = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise ValueError(f"loss must return one real number a row, [*nets, rows], got {came}")
    if wrt == "input" and losses.shape[-1] != len(x):
        raise ValueError(f"loss must return a loss for each of {len(x)} rows, got shape {tuple(losses.shape)}")
    if order > 1 and activations.linear:
        raise ValueError(
            f"order must be 1 for piecewise linear activations, got {order}: {activations.linear} has no curvature, "
            "what is left of higher derivatives is the loss's own"
        )


class _Activations(TorchFunctionMode):
    """Notes the first piecewise linear activation and where it stands."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = ""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "").rstrip("_")
        if not self.linear and name in _PIECEWISE_LINEAR:
            self.linear = _layer() or (resolve_name(func) or name)
        return func(*args, **(kwargs or {}))


def _layer() -> str:
    """Name the innermost module whose code is running, by its path from the outermost one."""
    frame, inside, modules = sys._getframe(1), "", list[nn.Module]()
    while frame is not None:
        here = frame.f_locals.get("self")
        if isinstance(here, nn.Module) and (not modules or here is not modules[-1]):
            modules.append(here)
        frame = frame.f_back  # type: ignore[assignment]
    if modules:
        path = {id(module): name for name, module in modules[-1].named_modules()}.get(id(modules[0]), "")
        inside = f"layer {path!r} ({type(modules[0]).__name__})" if path else type(modules[0]).__name__
    return inside
