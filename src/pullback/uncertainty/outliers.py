"""Scores that are high for what a classifier was trained on and low for what it never saw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from pullback.core.checks import check_choice, check_integer, check_range, check_scalar, check_tensor
from pullback.core.shapes import Float, Int, Scalar, Tensor
from pullback.uncertainty.shaping import check_head, optimal_shaping

__all__ = ["OutlierState", "fit_ood_score", "linear_head", "ood_score"]


class OutlierState(NamedTuple):
    """What a score knows of the training set.

    Attributes:
        method: its name.
        values: tensors, by method: ``"react"``: the ceiling; ``"vra"``: floor and ceiling; ``"ash"``: the share that is
            removed; ``"dice"``: the weights that are left; ``"shaping"`` and ``"shaping_energy"``: edges and theta;
            ``"mahalanobis"``: means ``[classes, d]`` and the inverse of a Cholesky factor ``[d, d]`` of the covariance
            within classes; ``"knn"``: normalised features ``[n, d]``.
        neighbours: k of ``"knn"``, else 0.
    """

    method: str
    values: tuple[Tensor, ...]
    neighbours: int = 0


def ood_score(
    features: Float[Tensor, "*batch d"],
    weight: Float[Tensor, "classes d"],
    bias: Float[Tensor, "classes"] | None = None,
    *,
    method: str | OutlierState = "energy",
    temperature: Scalar = 1.0,
) -> Float[Tensor, "*batch"]:
    r"""Return a score of each sample, high for what is like the training set.

    Of the logits :math:`f=Wz+b`: ``"msp"`` :math:`\max_c\mathrm{softmax}(f/T)_c`, ``"max_logit"``
    :math:`\max_c f_c`, ``"energy"`` :math:`T\log\sum_c e^{f_c/T}`. The others know the training set and are given by
    their :class:`OutlierState`:

    ======================  ============================================================================================
    ``"react"``             energy of :math:`\min(z_i,\text{ceiling})`
    ``"vra"``               energy of the same where :math:`z_i>\text{floor}`, else of 0
    ``"ash"``               energy of the largest features alone, times :math:`e^{s_1/s_2}`, of the sums before, after
    ``"dice"``              energy with the weights alone that contribute most on average
    ``"shaping"``           :math:`w_c\cdot\theta(z)z`, c the prediction from z, :func:`optimal_shaping`
    ``"shaping_energy"``    energy of :math:`W\theta(z)z`
    ``"mahalanobis"``       minus the squared distance from the nearest mean of a class
    ``"knn"``               minus the distance of :math:`z/|z|` from the k-th nearest one of the training set
    ======================  ============================================================================================

    Args:
        features: ``[*batch, d]`` input z of the last linear layer.
        weight: ``[classes, d]`` W of that layer, see :func:`linear_head`.
        bias: ``[classes]`` b.
        method: the name of one that needs no state, or the state of a fitted one, :func:`fit_ood_score`.
        temperature: T > 0 of ``"msp"`` and of energies.

    Returns:
        ``[*batch]``, differentiable in features, weights and bias.

    Raises:
        TypeError: a tensor is not floating, or the dtypes differ.
        ValueError: shapes do not fit, ``method`` is unknown or needs to be fitted, or ``temperature`` <= 0.

    Example:
        >>> z, w = torch.tensor([[3.0, 0.0], [0.1, 0.1]]), torch.eye(2)
        >>> ood_score(z, w, method="max_logit")
        tensor([3.0000, 0.1000])
        >>> state = fit_ood_score(torch.tensor([[2.0, 0.0], [0.0, 2.0]]), w, method="react", level=1.0)
        >>> ood_score(z, w, method=state)  # as of (2, 0): nothing larger was seen in training
        tensor([2.1269, 0.7931])

    References:
        Hendrycks, Gimpel (2017), msp. Hendrycks et al. (2022), max_logit. Liu, Wang, Owens, Li (2020), energy. Sun,
        Guo, Li (2021), ReAct. Sun, Li (2022), DICE. Djurisic, Bozanic, Ashok, Liu (2023), ASH-S. Xu et al. (2023),
        VRA. Zhao et al. (2024), shaping. Lee, Lee, Lee, Shin (2018), Mahalanobis. Sun, Ming, Zhu, Li (2022), knn.
    """
    check_head(features, weight, of="weight")
    _check_bias(weight, bias)
    check_scalar("temperature", temperature)
    state = method if isinstance(method, OutlierState) else OutlierState(method, ())
    check_choice("method", state.method, tuple(_METHODS))
    kind = _METHODS[state.method]
    if kind.fit is not None and not state.values:
        raise ValueError(f"method {state.method!r} must be fitted: give what fit_ood_score returns")
    return kind.score(_Sample(features, weight, bias, temperature), state)


def fit_ood_score(
    features: Float[Tensor, "n d"],
    weight: Float[Tensor, "classes d"],
    bias: Float[Tensor, "classes"] | None = None,
    *,
    method: str,
    labels: Int[Tensor, "n"] | None = None,
    level: float | tuple[float, float] | None = None,
    neighbours: int = 10,
    bins: int = 100,
    outlier: Float[Tensor, "k d"] | None = None,
) -> OutlierState:
    """Return what :func:`ood_score` needs to know of the training set.

    Args:
        features: ``[n, d]`` of the training set.
        weight: ``[classes, d]`` of the last linear layer.
        bias: ``[classes]``.
        method: ``"react"``, ``"vra"``, ``"ash"``, ``"dice"``, ``"shaping"``, ``"shaping_energy"``, ``"mahalanobis"`` or
            ``"knn"``.
        labels: ``[n]`` classes, of ``"mahalanobis"``; what the layer predicts by default.
        level: in [0, 1]: quantile of all features that is the ceiling (``"react"``, 0.9), those that are floor and
            ceiling (``"vra"``, (0.6, 0.95)), share of a sample's features that is removed (``"ash"``, 0.9), share of
            weights that is removed (``"dice"``, 0.7), quantiles between which the bins lie (``"shaping"``,
            (0.001, 0.999)).
        neighbours: k of ``"knn"``, in 1..n.
        bins: of ``"shaping"``, >= 2.
        outlier: ``[k, d]`` features of data from outside that ``"shaping"`` is to tell apart, where there is some.

    Returns:
        :class:`OutlierState`, without gradient.

    Raises:
        TypeError: a tensor is not floating, or the dtypes differ.
        ValueError: shapes do not fit, ``method`` is unknown or needs no state, an option is out of range, or features
            are constant.

    Example:
        >>> fit_ood_score(torch.tensor([[0.0, 1.0], [2.0, 3.0]]), torch.eye(2), method="react", level=1.0).values
        (tensor(3.),)
    """
    check_head(features, weight, of="weight")
    _check_bias(weight, bias)
    if features.ndim != 2 or not len(features):
        raise ValueError(f"features must have shape (n, {weight.shape[1]}) with n >= 1, got {tuple(features.shape)}")
    check_choice("method", method, tuple(name for name, kind in _METHODS.items() if kind.fit is not None))
    features, weight = features.detach(), weight.detach()
    bias = None if bias is None else bias.detach()
    kind = _METHODS[method]
    levels = _levels(kind.level if level is None else level, kind.level)
    check_integer("neighbours", neighbours, 1, len(features) if method == "knn" else None)
    predictions = _logits(features, weight, bias).argmax(-1)
    labels = predictions if labels is None else check_tensor("labels", labels)
    if labels.shape != (len(features),):
        raise ValueError(f"labels must have shape ({len(features)},), got {tuple(labels.shape)}")
    assert kind.fit is not None
    values = kind.fit(_Training(features, weight, predictions, labels, levels, bins, _outside(outlier, weight, bias)))
    return OutlierState(method, values, neighbours if method == "knn" else 0)


def linear_head(model: nn.Module) -> nn.Linear:
    """Return the last linear layer of a model, whose input is what the scores look at.

    Its ``register_forward_pre_hook`` collects these inputs while the model runs.

    Args:
        model: whose modules are defined in the order of their use.

    Returns:
        The layer itself.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: it has no linear layer.

    Example:
        >>> linear_head(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))).out_features
        3
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    found = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not found:
        raise ValueError(f"model must have a linear layer, found none in {type(model).__name__}")
    return found[-1]


class _Sample(NamedTuple):
    z: Tensor
    weight: Tensor
    bias: Tensor | None
    temperature: Scalar

    def energy(self, z: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
        logits = _logits(self.z if z is None else z, self.weight if weight is None else weight, self.bias)
        return self.temperature * (logits / self.temperature).logsumexp(-1)


class _Training(NamedTuple):
    z: Tensor
    weight: Tensor
    predictions: Tensor
    labels: Tensor
    levels: tuple[float, ...]
    bins: int
    outlier: tuple[Tensor, Tensor] | None


@dataclass(frozen=True)
class _Method:
    score: Callable[[_Sample, OutlierState], Tensor]
    fit: Callable[[_Training], tuple[Tensor, ...]] | None = None
    level: tuple[float, ...] = ()


def _logits(z: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return nn.functional.linear(z, weight, bias)


def _check_bias(weight: Tensor, bias: Tensor | None) -> None:
    if bias is not None and (check_tensor("bias", bias).shape != weight.shape[:1] or bias.dtype != weight.dtype):
        raise ValueError(
            f"bias must have shape ({len(weight)},) and the dtype {weight.dtype}, got {tuple(bias.shape)}, {bias.dtype}"
        )


def _levels(level: float | tuple[float, ...], default: tuple[float, ...]) -> tuple[float, ...]:
    levels = tuple(level) if isinstance(level, tuple) else (level,) * bool(default)
    if len(levels) != len(default):
        raise ValueError(f"level must hold {len(default)} numbers for this method, got {level}")
    for value in levels:
        check_range("level", value, 0, 1)
    return levels


def _msp(s: _Sample, state: OutlierState) -> Tensor:
    return (_logits(s.z, s.weight, s.bias) / s.temperature).softmax(-1).amax(-1)


def _max_logit(s: _Sample, state: OutlierState) -> Tensor:
    return _logits(s.z, s.weight, s.bias).amax(-1)


def _quantiles(t: _Training) -> tuple[Tensor, ...]:
    flat = t.z.flatten()
    return tuple(flat.kthvalue(1 + round(level * (len(flat) - 1))).values for level in t.levels)


def _vra(s: _Sample, state: OutlierState) -> Tensor:
    floor, ceiling = state.values
    return s.energy(torch.where(s.z > floor, torch.minimum(s.z, ceiling), 0))


def _ash(s: _Sample, state: OutlierState) -> Tensor:
    kept = max(1, s.z.shape[-1] - round(float(state.values[0]) * s.z.shape[-1]))
    largest = s.z.topk(kept, dim=-1)
    sparse = torch.zeros_like(s.z).scatter(-1, largest.indices, largest.values)
    before, after = s.z.sum(-1, keepdim=True), largest.values.sum(-1, keepdim=True)
    # Without a positive sum the ratio means nothing; features that may be negative are not what it was made for.
    some = after > 0
    ratio = torch.where(some, before / torch.where(some, after, 1), 1)
    return s.energy(sparse * ratio.clamp(max=_LARGEST_RATIO).exp())


_LARGEST_RATIO = 30.0
"""Its exponential stays finite."""


def _strongest(t: _Training) -> tuple[Tensor, ...]:
    share = t.z.mean(0) * t.weight
    removed = round(t.levels[0] * share.numel())
    order = share.flatten().argsort(stable=True)
    mask = torch.ones(share.numel(), dtype=torch.bool, device=share.device)
    mask[order[:removed]] = False
    return (torch.where(mask.view_as(share), t.weight, 0),)


def _outside(features: Tensor | None, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor] | None:
    if features is None:
        return None
    check_head(features, weight, name="outlier", of="weight")
    return features.detach(), _logits(features.detach(), weight, bias).argmax(-1)


def _optimal(t: _Training) -> tuple[Tensor, ...]:
    quantiles = (t.levels[0], t.levels[1])
    shaping = optimal_shaping(t.z, t.weight, t.predictions, bins=t.bins, quantiles=quantiles, outlier=t.outlier)
    return shaping.edges, shaping.theta.detach()


def _shaped(s: _Sample, state: OutlierState) -> Tensor:
    edges, theta = state.values
    none = theta.new_zeros(1)
    return torch.cat([none, theta, none])[torch.bucketize(s.z.detach().contiguous(), edges, right=True)] * s.z


def _shaping(s: _Sample, state: OutlierState) -> Tensor:
    prediction = _logits(s.z, s.weight, s.bias).argmax(-1)
    return (s.weight[prediction] * _shaped(s, state)).sum(-1)


def _gaussian(t: _Training) -> tuple[Tensor, ...]:
    """Means of the classes that occur, and the inverse of a factor of what the covariance within them is."""
    classes = t.labels.unique()
    z = t.z.double()
    means = torch.stack([z[t.labels == c].mean(0) for c in classes])
    within = z - means[torch.searchsorted(classes, t.labels)]
    covariance = within.mT @ within / len(z)
    floor = 1e-6 * covariance.diagonal().mean()  # features that never vary
    if not bool(floor > 0):
        raise ValueError("features must differ within a class to have a covariance, got constant ones")
    factor = torch.linalg.cholesky(covariance + floor * torch.eye(len(covariance), dtype=z.dtype, device=z.device))
    identity = torch.eye(len(factor), dtype=z.dtype, device=z.device)
    inverse = torch.linalg.solve_triangular(factor, identity, upper=False)
    return means.to(t.z.dtype), inverse.to(t.z.dtype)


def _mahalanobis(s: _Sample, state: OutlierState) -> Tensor:
    means, inverse = state.values
    white = (s.z.unsqueeze(-2) - means) @ inverse.mT
    return -white.square().sum(-1).amin(-1)


def _bank(t: _Training) -> tuple[Tensor, ...]:
    return (nn.functional.normalize(t.z, dim=-1),)


def _knn(s: _Sample, state: OutlierState) -> Tensor:
    (bank,) = state.values
    z = nn.functional.normalize(s.z, dim=-1)
    nearest = (z.detach() @ bank.mT).topk(state.neighbours, dim=-1).indices[..., -1]
    return -torch.linalg.vector_norm(z - bank[nearest], dim=-1)


_METHODS = {
    "msp": _Method(_msp),
    "max_logit": _Method(_max_logit),
    "energy": _Method(lambda s, state: s.energy()),
    "react": _Method(lambda s, state: s.energy(torch.minimum(s.z, state.values[0])), _quantiles, (0.9,)),
    "vra": _Method(_vra, _quantiles, (0.6, 0.95)),
    "ash": _Method(_ash, lambda t: (t.z.new_tensor(t.levels[0]),), (0.9,)),
    "dice": _Method(lambda s, state: s.energy(weight=state.values[0]), _strongest, (0.7,)),
    "shaping": _Method(_shaping, _optimal, (1e-3, 1 - 1e-3)),
    "shaping_energy": _Method(
        lambda s, state: s.temperature * (_logits(_shaped(s, state), s.weight, None) / s.temperature).logsumexp(-1),
        _optimal,
        (1e-3, 1 - 1e-3),
    ),
    "mahalanobis": _Method(_mahalanobis, _gaussian),
    "knn": _Method(_knn, _bank),
}
