"""Say which units of a network matter, close the others down to a budget, and cut out what is closed."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from pullback.core.checks import check_choice
from pullback.core.shapes import Float, Tensor
from pullback.discrete.gated_model import GatedModel, NetworkCost
from pullback.discrete.unit_flow import CONVOLUTIONS, NORMS, Layer, UnitFlow, follow_units

__all__ = ["close_smallest", "prune_closed", "unit_importance"]


def unit_importance(
    gated: GatedModel,
    method: str = "filters",
    *,
    ranks: bool = True,
    losses: Iterable[Tensor] = (),
    generator: torch.Generator | None = None,
) -> dict[str, Float[Tensor, "units"]]:
    r"""Score how much each unit of a network matters, by the name of its (first) layer.

    ==============  ====================================================================================================
    ``method``      score
    ==============  ====================================================================================================
    ``"filters"``   mean :math:`|w|` of the weights that make the unit, for a batch norm those of the layer before it
    ``"scales"``    :math:`|\gamma|` of the unit in a batch norm
    ``"slopes"``    :math:`\sum (\partial L / \partial g)^2` over the losses: to first order how much closing the unit
                    changes them
    ``"random"``    even in [0, 1)
    ==============  ====================================================================================================

    Such scores are comparable inside of a layer, and seldom between layers.

    Args:
        gated: made by :func:`~pullback.discrete.attach_gates`.
        method: see the table.
        ranks: give the rank of each score in its layer, :math:`0, 1/n, \ldots, (n - 1)/n`, and not the score itself.
        losses: of ``gated``, one a batch, such as ``(loss(gated(x)) for x in batches)``; for slopes alone.
        generator: of random scores; torch's own by default.

    Returns:
        ``[units]`` for each, without gradient.

    Raises:
        ValueError: ``method`` is unknown, or a layer has no such weights; slopes without a loss.

    Example:
        >>> from pullback.discrete import attach_gates
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> _ = model[0].weight.data.copy_(torch.tensor([[1.0, 1.0], [0.1, 0.0], [-2.0, 3.0]]))
        >>> unit_importance(attach_gates(model, ["0"]))["0"]
        tensor([0.3333, 0.0000, 0.6667])

    References:
        Li et al. (2017), Pruning filters for efficient convnets. Liu et al. (2017), Learning efficient convolutional
        networks through network slimming. Molchanov et al. (2019), Importance estimation for neural network pruning,
        equation 8.
    """
    check_choice("method", method, ("filters", "scales", "slopes", "random"))
    names, gates = list(gated.gates), list(gated.gates.values())
    if method == "slopes":
        rows = [torch.autograd.grad(loss, [gate.weight for gate in gates]) for loss in losses]
        if not rows:
            raise ValueError("losses must hold at least one loss for slopes")
        scores = [torch.stack(units).square().sum(0) for units in zip(*rows, strict=True)]
    elif method == "random":
        scores = [torch.rand(len(gate.open), generator=generator) for gate in gates]
    else:
        scores = [_size(gated.model, name, method) for name in names]
    if ranks:
        scores = [score.argsort().argsort() / len(score) for score in scores]
    return dict(zip(names, scores, strict=True))


@torch.no_grad()
def close_smallest(
    gated: GatedModel, scores: Mapping[str, Float[Tensor, "units"]], cost: NetworkCost, budget: float
) -> float:
    """Close the units of the smallest scores, so many that the cost is as near as can be to its budget.

    Scores of all layers are compared: give ranks in ``[0, 1]`` for the same share of each layer. The largest of a layer
    stays open. This is pruning by magnitude, by slopes or at random; the gates can be trained from there.

    Args:
        gated: made by :func:`~pullback.discrete.attach_gates`; weights of gates become 1 where open, -1 where closed.
        scores: by the name of the (first) layer, one a unit.
        cost: of ``gated``.
        budget: the share of ``cost.full`` that is aimed at, in (0, 1].

    Returns:
        The share that is left.

    Raises:
        ValueError: scores are missing, not one a unit or NaN, or ``budget`` is out of range.

    Example:
        >>> from pullback.discrete import attach_gates
        >>> gated = attach_gates(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3)), ["0"])
        >>> close_smallest(gated, {"0": torch.tensor([0.3, 0.1, 0.2, 0.4])}, NetworkCost(gated, torch.ones(1, 2)), 0.5)
        0.5
        >>> gated.gates["0"].open.tolist()
        [True, False, False, True]

    References:
        Li, Kadav, Durdanovic, Samet, Graf (2017), Pruning filters for efficient convnets, section 3.
    """
    if not 0 < budget <= 1:
        raise ValueError(f"budget must be in (0, 1], got {budget}")
    for name, gate in gated.gates.items():
        if name not in scores or scores[name].shape != gate.weight.shape or bool(scores[name].isnan().any()):
            raise ValueError(f"scores must hold {gate.weight.numel()} numbers for layer {name!r}")

    def opened(level: Tensor) -> dict[str, Tensor]:
        return {name: ((scores[name] > level) | (scores[name] == scores[name].max())).double() for name in gated.gates}

    lowest = min(float(scores[name].min()) for name in gated.gates) - 1
    levels = torch.cat(
        [*(scores[name].double().cpu() for name in gated.gates), torch.tensor([lowest]).double()]
    ).unique()
    low, high = 0, len(levels) - 1  # the cost falls as the level rises
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if float(cost(opened(levels[middle]))) >= budget * cost.full else (low, middle)
    best = min((low, high), key=lambda place: abs(float(cost(opened(levels[place]))) - budget * cost.full))
    found = opened(levels[best])
    for name, gate in gated.gates.items():
        gate.weight.copy_(2 * found[name] - 1)
    return float(cost(found)) / cost.full


def prune_closed(gated: GatedModel, *inputs: Any) -> nn.Module:
    """Return a copy of the network without what its gates close, and with the same results in evaluation.

    Channels are cut out of the layers that write and that read them, heads out of their attention, blocks become a
    constant 0. Open gates between 0 and 1 are multiplied into the weights.

    Args:
        gated: made by :func:`~pullback.discrete.attach_gates`; it stays as it is.
        *inputs: of the network, on which it is run to see which layer reads what.

    Returns:
        The smaller network.

    Raises:
        TypeError: ``gated`` is no :class:`GatedModel`.
        ValueError: all channels of a layer are closed, a closed channel is not 0 where it is read (a constant of what
            stands between), or channels cannot be followed.

    Example:
        >>> from pullback.discrete import attach_gates
        >>> gated = attach_gates(nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 1)), ["0"])
        >>> _ = gated.gates["0"].weight.data.copy_(torch.tensor([0.1, -0.1, 0.1]))
        >>> prune_closed(gated, torch.zeros(1, 1, 5, 5))[2].weight.shape
        torch.Size([2, 2, 1, 1])
    """
    if not isinstance(gated, GatedModel):
        raise TypeError(f"gated must be a GatedModel, got {type(gated).__name__}")
    model = copy.deepcopy(GatedModel(gated.model, gated.groups, list(gated.gates.values()))).eval()
    with torch.no_grad():
        values = torch.cat([gate() for gate in model.gates.values()]).double().cpu()
    for group in model.groups:
        if group.unit == "channel" and not values[group.first : group.first + group.count].any():
            raise ValueError(f"layer {group.names[0]!r} has no open unit: nothing would be left of it")
    flow = follow_units(model.model, inputs, model.groups)
    _check_silence(model, flow, inputs, values)
    padded = torch.cat([values, values.new_ones(1)])
    heads = {name for g in model.groups if g.unit == "head" for name in g.names}
    channels = {name for g in model.groups if g.unit == "channel" for name in g.names}
    for layer in flow.layers.values():
        if layer.reads is None or layer.writes is None:  # never ran
            continue
        if layer.name in heads:
            cast(Any, layer.module).cut(padded[layer.writes])
        else:
            _cut(layer, padded, layer.name in channels)
    for group in model.groups:
        for name in group.names if group.unit == "block" else ():
            value = float(values[group.first])
            if value != 1:
                inner = model.model.get_submodule(name)
                model.model.set_submodule(name, _Scaled(inner, value) if value else _Silent(flow.shapes[name]))
    return model.model.train(gated.model.training)


def _size(model: nn.Module, name: str, method: str) -> Tensor:
    """How large the weights are that make each unit of a layer."""
    modules = dict(model.named_modules())
    layer, kinds = modules[name], (*CONVOLUTIONS, nn.Linear)
    if method == "filters" and isinstance(layer, NORMS):
        names = list(modules)
        before = [modules[n] for n in names[: names.index(name)] if isinstance(modules[n], kinds)]
        layer = before[-1] if before else layer
    if not isinstance(layer, kinds if method == "filters" else NORMS) or layer.weight is None:
        raise ValueError(f"layer {name!r} has no {method} to score, it is a {type(layer).__name__}")
    weight = layer.weight.detach().abs()
    return weight if weight.ndim == 1 else weight.flatten(1).mean(1)


class _Silent(nn.Module):
    """What is left of a closed block."""

    def __init__(self, shape: tuple[int, ...] | None) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        return torch.zeros_like(x) if self.shape is None else x.new_zeros(len(x), *self.shape)


class _Scaled(nn.Module):
    """A block whose gate is neither 0 nor 1."""

    def __init__(self, inner: nn.Module, factor: float) -> None:
        super().__init__()
        self.inner, self.factor = inner, factor

    def forward(self, *args: Any, **options: Any) -> Tensor:
        result: Tensor = self.factor * self.inner(*args, **options)
        return result


@torch.no_grad()
def _check_silence(gated: GatedModel, flow: UnitFlow, inputs: Any, values: Tensor) -> None:
    """Raise if a layer reads a closed channel that is not 0."""
    padded, handles = torch.cat([values, values.new_ones(1)]), []

    def check(layer: Layer, module: nn.Module, args: Any) -> None:
        x = args[0].movedim(-1 if isinstance(module, nn.Linear) else 1, 0)
        closed = padded[cast(Tensor, layer.reads)] == 0
        if bool(x[closed.to(x.device)].any()):
            unit = int(cast(Tensor, layer.reads)[closed].max())
            name = next(g.names[0] for g in gated.groups if g.first <= unit < g.first + g.count)
            raise ValueError(
                f"closed units of layer {name!r} are not 0 where layer {layer.name!r} reads them, as of what stands "
                "between: give the gates to the normalisation, or take an activation that keeps 0"
            )

    readers = [x for x in flow.layers.values() if isinstance(x.module, (*CONVOLUTIONS, nn.Linear))]
    try:
        for layer in readers:
            if layer.reads is not None and bool((padded[layer.reads] == 0).any()):
                handles.append(layer.module.register_forward_pre_hook(partial(check, layer)))
        gated(*inputs)
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _cut(layer: Layer, padded: Tensor, gated: bool) -> None:
    module = cast(Any, layer.module)
    reads, writes = padded[cast(Tensor, layer.reads)], padded[cast(Tensor, layer.writes)]
    keep_in, keep_out = reads.nonzero()[:, 0], writes.nonzero()[:, 0]
    device = module.weight.device if module.weight is not None else None
    for name in ("weight", "bias", "running_mean", "running_var"):
        value = getattr(module, name, None)
        if value is None:
            continue
        kept = value.detach().index_select(0, keep_out.to(device))
        if name == "weight" and kept.ndim > 1 and getattr(module, "groups", 1) == 1:
            kept = kept.index_select(1, keep_in.to(device))
        if gated and name in ("weight", "bias"):
            factor = writes[keep_out].to(kept)
            kept = kept * factor.reshape(-1, *(1,) * (kept.ndim - 1))
        kept = nn.Parameter(kept, value.requires_grad) if isinstance(value, nn.Parameter) else kept
        setattr(module, name, kept)
    if isinstance(module, nn.Linear):
        module.in_features, module.out_features = len(keep_in), len(keep_out)
    elif isinstance(module, NORMS):
        module.num_features = len(keep_out)
    else:
        module.in_channels, module.out_channels = len(keep_in), len(keep_out)
        if module.groups > 1:
            module.groups = len(keep_out)
