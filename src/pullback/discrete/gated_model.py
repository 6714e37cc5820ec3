"""Plug gates into any network, and count exactly what the open ones cost."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from pullback.core.checks import check_callable, check_choice, check_integer, check_positive
from pullback.core.shapes import Float, Tensor
from pullback.discrete.gates import TrainableGate, budget_loss
from pullback.discrete.unit_flow import CONVOLUTIONS, NORMS, Gated, UnitFlow, follow_units

__all__ = ["BudgetPressure", "GatedModel", "NetworkCost", "attach_gates"]


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
    gate: Callable[..., nn.Module] = TrainableGate,
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
        gate: makes the gates of a layer from their number: :class:`TrainableGate`, or another module with its methods,
            such as ``partial(pullback.transport.TransportMask, keep=0.25)``.
        **options: of ``gate``.

    Returns:
        A :class:`GatedModel`, called as ``model`` is; gates that begin open leave its results as they were.

    Raises:
        TypeError: ``model`` is no module, or a layer not of the kind that has such units.
        ValueError: a layer is unknown (near names are listed) or named twice, layers that share gates differ in their
            number of units, ``unit`` is unknown, a head is closed already.

    Example:
        >>> from pullback.discrete import prune_closed
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
    check_callable("gate", gate)
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
        gates.append(cast(TrainableGate, gate(groups[-1].count, **options)))
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
    output channels (its heads) that is open. Gates 0 or 1 give what :func:`~pullback.discrete.prune_closed` leaves,
    to the unit.

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


class BudgetPressure:
    r"""The price of gates that are learned under a budget: a term of the loss, which grows while the budget is missed.

    .. math:: \lambda_t \left(\frac{C(g)}{C(1)} - c_t\right)^2

    The aim :math:`c_t` falls from 1 to the budget in the first ``fall`` of the steps, so that few gates close at a time
    and weights can follow; then :math:`\lambda_t` rises from ``price`` to 11 times that, linearly.

    Args:
        cost: of the gated network.
        budget: the share of ``cost.full`` that is aimed at, in (0, 1].
        steps: of the learning, >= 1.
        price: weight of the squared distance, > 0.
        fall: share of the steps, in (0, 1).
        tolerance: of the share that is met, >= 0.

    Attributes:
        taken: how often it was called.

    Raises:
        TypeError: ``steps`` is no integer.
        ValueError: a number is out of range.

    Example:
        >>> gated = attach_gates(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3)), ["0"])
        >>> pressure = BudgetPressure(NetworkCost(gated, torch.ones(1, 2)), 0.5, 10)
        >>> [round(pressure().item(), 4) for _ in range(3)], pressure.met
        ([0.0694, 0.2778, 0.625], False)

    References:
        Kim, Park, Jung, Choe (2020), Plug-in, trainable gate for streamlining arbitrary neural networks, section 4
        (with a constant aim).
    """

    def __init__(
        self,
        cost: NetworkCost,
        budget: float,
        steps: int,
        *,
        price: float = 10.0,
        fall: float = 0.6,
        tolerance: float = 0.01,
    ) -> None:
        check_integer("steps", steps, 1)
        check_positive("price", price)
        check_positive("tolerance", tolerance, zero=True)
        for name, value in (("budget", budget), ("fall", fall)):
            if not 0 < value <= 1:
                raise ValueError(f"{name} must be in (0, 1], got {value}")
        self.cost, self.budget, self.steps, self.price = cost, budget, steps, price
        self.falling, self.tolerance, self.taken = max(1, int(fall * steps)), tolerance, 0

    def __call__(self) -> Float[Tensor, ""]:
        """Return the next step's term, float32 with gradient."""
        self.taken += 1
        aim = 1 - (1 - self.budget) * min(1.0, self.taken / self.falling)
        late = max(0, self.taken - 1 - self.falling) / max(1, self.steps - self.falling)
        distance = budget_loss(self.cost() / self.cost.full, aim)
        return (self.price * (1 + 10 * late) * distance).float()

    @property
    def share(self) -> float:
        """What is left of the cost, with gates as they are in evaluation."""
        opened = {name: gate.open.float() for name, gate in self.cost.gated.gates.items()}
        return float(self.cost(opened)) / self.cost.full

    @property
    def met(self) -> bool:
        """Whether the aim has come down to the budget, and the cost is there."""
        return self.taken > self.falling and abs(self.share - self.budget) <= self.tolerance

    def state_dict(self) -> dict[str, int]:
        """Return how often it was called."""
        return {"taken": self.taken}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from there."""
        self.taken = int(state["taken"])


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
