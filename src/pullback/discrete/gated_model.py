"""Plug gates into any network, count exactly what the open ones cost, and cut out what is closed."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from pullback.core.checks import check_choice
from pullback.core.shapes import Float, Tensor
from pullback.discrete.gates import TrainableGate
from pullback.discrete.unit_flow import CONVOLUTIONS, NORMS, Gated, Layer, UnitFlow, follow_units

__all__ = ["GatedModel", "NetworkCost", "attach_gates", "close_smallest", "prune_closed"]


class GatedModel(nn.Module):
    """A network whose layers are multiplied by gates; made by :func:`attach_gates`.

    Attributes:
        model: the network itself, unchanged: hooks are there only while the gated one runs.
        gate_list: the gates, in the order of ``groups``.
        groups: which layers share which gates.
        generator: of the noise of gates that have some; torch's own if ``None``.
    """

    def __init__(self, model: nn.Module, groups: Sequence[Gated], gates: Sequence[TrainableGate]) -> None:
        super().__init__()
        self.model, self.groups, self.gate_list = model, tuple(groups), nn.ModuleList(gates)
        self.generator: torch.Generator | None = None

    @property
    def gates(self) -> dict[str, TrainableGate]:
        """The gates by the name of their (first) layer."""
        return {g.names[0]: cast(TrainableGate, gate) for g, gate in zip(self.groups, self.gate_list, strict=True)}

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Return what the network does with its gates as they are."""
        modules, handles = dict(self.model.named_modules()), []
        try:
            for group, gate in zip(self.groups, self.gate_list, strict=True):
                values = gate(generator=self.generator)
                for name in group.names:
                    place = modules[name].outputs if group.unit == "head" else modules[name]
                    handles.append(place.register_forward_hook(partial(_multiply, group.unit, values)))
            return self.model(*inputs, **options)
        finally:
            for handle in handles:
                handle.remove()

    def harden(self) -> None:
        """Keep all gates as they are in evaluation from now on: without noise, without gradient."""
        for gate in self.gates.values():
            gate.harden()


def attach_gates(
    model: nn.Module,
    layers: Sequence[str | tuple[str, ...]],
    *,
    unit: str | None = None,
    **options: Any,
) -> GatedModel:
    r"""Multiply the units of some layers of a trained network by :class:`TrainableGate` s, to learn which it needs.

    ===============  ==============================================  ==================================================
    ``unit``         layers                                          a closed gate
    ===============  ==============================================  ==================================================
    ``"channel"``    convolutions, linear layers, or a batch norm    silences one channel or feature of the result
                     behind one
    ``"head"``       attention whose ``outputs`` are one a head,     silences one head
                     such as :class:`pullback.topology
                     .HeadAttention`
    ``"block"``      any module that returns a tensor                makes the whole result 0: for the branch of a
                                                                     residual sum
    ===============  ==============================================  ==================================================

    Args:
        model: the network; it is not copied and not changed, its weights train on.
        layers: names as in ``model.named_modules()``; a tuple of names shares its gates, as layers that end in one sum
            must.
        unit: see the table; by default what the kind of each layer says.
        **options: of :class:`TrainableGate`.

    Returns:
        A :class:`GatedModel`, called as ``model`` is; gates that begin open leave its results as they were.

    Raises:
        TypeError: ``model`` is no module, or a layer not of the kind that has such units.
        ValueError: a layer is unknown (near names are listed) or named twice, layers that share gates differ in their
            number of units, ``unit`` is unknown, a head is closed already.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> gated = attach_gates(model, ["0"])
        >>> with torch.no_grad():
        ...     gated.gates["0"].weight[1] = -1
        >>> small = prune_closed(gated, torch.ones(1, 2))
        >>> small[0].out_features, bool((small(torch.ones(1, 2)) - gated(torch.ones(1, 2))).abs() < 1e-6)
        (2, True)

    References:
        Kim, Park, Jung, Choe (2020), Plug-in, trainable gate for streamlining arbitrary neural networks, section 4.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    check_choice("unit", unit, (*_UNITS, None))
    modules, seen = dict(model.named_modules()), set[str]()
    groups: list[Gated] = []
    gates: list[TrainableGate] = []
    for entry in layers:
        names = (entry,) if isinstance(entry, str) else tuple(entry)
        for name in names:
            if name not in modules:
                near = difflib.get_close_matches(name, modules, 3, 0.3)
                hint = f"; did you mean {', '.join(map(repr, near))}?" if near else ""
                raise ValueError(f"layers must name layers of the model, got {name!r}{hint}")
            if name in seen:
                raise ValueError(f"layers must name each layer once, got {name!r} twice")
            seen.add(name)
        kinds = {unit or _kind(modules[name]) for name in names}
        counts = {_units(kind, name, modules[name]) for kind in kinds for name in names}
        if len(counts) != 1 or len(kinds) != 1:
            raise ValueError(f"layers {', '.join(names)} must have as many units each, of one kind, to share gates")
        first = groups[-1].first + groups[-1].count if groups else 0
        groups.append(Gated(names, kinds.pop(), first, counts.pop()))
        gates.append(TrainableGate(groups[-1].count, **options))
    if not groups:
        raise ValueError("layers must name at least one layer")
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    gated = GatedModel(model, groups, gates).train(model.training)
    gated.gate_list.to(like.device, torch.promote_types(like.dtype, torch.float32))  # of halves they would stand still
    return gated


class NetworkCost:
    r"""What a gated network costs, exactly, as a differentiable function of its gates.

    .. math:: C = \sum_l c_l\, \bar g_{in(l)}\, \bar g_{out(l)} \prod_{b \ni l} g_b

    where :math:`c_l` is the cost of layer :math:`l` with all gates open and :math:`\bar g` the share of its input and
    output channels (its heads) that is open. Gates 0 or 1 give what :func:`prune_closed` leaves, to the unit.

    Args:
        model: the network; one made by :func:`attach_gates` has a cost that depends on its gates.
        *inputs: of the network, on which it is run once; multiply-adds are those of these inputs.
        measure: ``"macs"``, multiply-adds of matrix products and convolutions as :func:`expected_macs` counts them, or
            ``"parameters"``.

    Attributes:
        full: the cost with all gates open.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: channels with gates cannot be followed to the layers that read them; ``measure`` is unknown.

    Example:
        >>> gated = attach_gates(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3)), ["0"])
        >>> cost = NetworkCost(gated, torch.ones(1, 2))
        >>> cost().item(), cost({"0": torch.tensor([1.0, 0.0, 0.0, 1.0])}).item()
        (20.0, 10.0)

    References:
        Kim, Park, Jung, Choe (2020), Plug-in, trainable gate for streamlining arbitrary neural networks, section 4.
    """

    def __init__(self, model: nn.Module, *inputs: Any, measure: str = "macs") -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
        check_choice("measure", measure, ("macs", "parameters"))
        self.gated = model if isinstance(model, GatedModel) else GatedModel(model, (), ())
        flow = follow_units(self.gated.model, inputs, self.gated.groups)
        self.terms = _terms(flow, measure)
        units = sum(g.count for g in self.gated.groups)
        self.full = float(self._add_up(torch.ones(units, dtype=torch.float64)))

    def __call__(self, gates: Mapping[str, Float[Tensor, "units"]] | None = None) -> Float[Tensor, ""]:
        """Return the cost in float64, with gradient.

        Args:
            gates: by the name of their (first) layer; those of the network as they are now if ``None``: what
                :meth:`TrainableGate.expected` says.

        Raises:
            ValueError: a layer's gates are missing or not as many as its units.
        """
        rows = []
        for group, gate in zip(self.gated.groups, self.gated.gate_list, strict=True):
            name = group.names[0]
            if gates is not None and (name not in gates or gates[name].shape != (group.count,)):
                raise ValueError(f"gates must hold {group.count} for layer {name!r}")
            rows.append((cast(TrainableGate, gate).expected() if gates is None else gates[name]).double())
        return self._add_up(torch.cat(rows) if rows else torch.ones(0, dtype=torch.float64))

    def _add_up(self, values: Tensor) -> Tensor:
        padded = torch.cat([values, values.new_ones(1)])  # unit -1, which no gate closes
        total = values.new_zeros(())
        for cost, shares in self.terms:
            open_shares = [padded[units.to(values.device)].mean() for units in shares]
            total = total + (cost * torch.stack(open_shares).prod() if shares else cost)
        return total


@torch.no_grad()
def close_smallest(
    gated: GatedModel, scores: Mapping[str, Float[Tensor, "units"]], cost: NetworkCost, budget: float
) -> float:
    """Close the units of the smallest scores, so many that the cost is as near as can be to its budget.

    Scores of all layers are compared: give ranks in ``[0, 1]`` for the same share of each layer. The largest of a layer
    stays open. This is pruning by magnitude, by slopes or at random; the gates can be trained from there.

    Args:
        gated: made by :func:`attach_gates`, all gates with scores are set: weight 1 where open, -1 where closed.
        scores: by the name of the (first) layer, one a unit.
        cost: of ``gated``.
        budget: the share of ``cost.full`` that is aimed at, in (0, 1].

    Returns:
        The share that is left.

    Raises:
        ValueError: scores are missing, not one a unit or NaN, or ``budget`` is out of range.

    Example:
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
        gated: made by :func:`attach_gates`; it stays as it is.
        *inputs: of the network, on which it is run to see which layer reads what.

    Returns:
        The smaller network.

    Raises:
        TypeError: ``gated`` is no :class:`GatedModel`.
        ValueError: all units of a layer are closed, a closed channel is not 0 where it is read (a constant of what
            stands between), or channels cannot be followed.

    Example:
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
        if group.unit != "block" and not values[group.first : group.first + group.count].any():
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


_UNITS = ("channel", "head", "block")


def _kind(module: nn.Module) -> str:
    if isinstance(module, (*CONVOLUTIONS, *NORMS, nn.Linear)):
        return "channel"
    return "head" if hasattr(module, "cut") else "block"


def _units(unit: str, name: str, module: nn.Module) -> int:
    if unit == "block":
        return 1
    if unit == "head":
        if not (hasattr(module, "cut") and hasattr(getattr(module, "outputs", None), "open")):
            raise TypeError(f"layer {name!r} must be attention with outputs by head, got {type(module).__name__}")
        opened: Tensor = cast(Any, module).outputs.open
        if not bool(opened.all()):
            raise ValueError(f"layer {name!r} must have all of its heads open: cut those that are closed")
        return len(opened)
    if isinstance(module, nn.Linear):
        return module.out_features
    if isinstance(module, CONVOLUTIONS):
        return module.out_channels
    if isinstance(module, NORMS):
        return module.num_features
    raise TypeError(f"layer {name!r} must be a convolution, linear or batch norm, got {type(module).__name__}")


def _multiply(unit: str, values: Tensor, module: nn.Module, args: Any, result: Tensor) -> Tensor:
    values = values.to(result.dtype)
    if unit == "head":
        return result * values[:, None, None]
    if unit == "block":
        return result * values[0]
    if isinstance(module, nn.Linear):
        return result * values
    return result * values.reshape(-1, *(1,) * (result.ndim - 2))


def _terms(flow: UnitFlow, measure: str) -> list[tuple[float, list[Tensor]]]:
    """Costs, each with the units of which a share has to be open for it."""
    terms: list[tuple[float, list[Tensor]]] = []
    for layer in flow.layers.values():
        around = [torch.tensor([first]) for first in layer.inside]
        sizes = {name: p.numel() for name, p in layer.module.named_parameters()}
        if layer.reads is None or layer.writes is None:
            whole = layer.macs if measure == "macs" else sum(sizes.values())
            terms.append((float(whole), around))
        elif not isinstance(layer.module, (*CONVOLUTIONS, nn.Linear)):  # heads, channels one by one
            constant = cast(Any, layer.module).bias.numel() if hasattr(layer.module, "cut") else 0
            whole = layer.macs if measure == "macs" else sum(sizes.values()) - constant
            terms.append((float(whole), [layer.writes, *around]))
            terms.append((0.0 if measure == "macs" else float(constant), around))
        else:
            both = [layer.writes] if getattr(layer.module, "groups", 1) > 1 else [layer.reads, layer.writes]
            terms.append((layer.macs if measure == "macs" else float(sizes["weight"]), [*both, *around]))
            terms.append((0.0 if measure == "macs" else float(sizes.get("bias", 0)), [layer.writes, *around]))
    for macs, parameters, inside in flow.rest:
        around = [torch.tensor([first]) for first in inside]
        terms.append((macs if measure == "macs" else float(parameters), around))
    return [(cost, [u for u in shares if bool((u >= 0).any())]) for cost, shares in terms if cost]


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
