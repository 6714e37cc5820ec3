"""Where the channels of gated layers go inside a network: who reads them, and what it costs to read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from pullback.core.shapes import Tensor

__all__ = ["CONVOLUTIONS", "NORMS", "Gated", "Layer", "UnitFlow", "follow_units"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_ENTRYWISE = frozenset(
    """relu relu_ relu6 leaky_relu leaky_relu_ elu elu_ selu celu gelu silu mish hardswish hardtanh tanh sigmoid
    softplus sqrt square abs neg dropout dropout_ feature_dropout alpha_dropout dropout1d dropout2d dropout3d clone
    contiguous detach float double half to type_as requires_grad_ clamp max_pool1d max_pool2d max_pool3d avg_pool1d
    avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d
    adaptive_max_pool2d adaptive_max_pool3d boolean_dispatch interpolate upsample pad""".split()
)
_COMBINING = frozenset("add add_ sub sub_ mul mul_ div div_ __add__ __radd__ __sub__ __mul__ __rmul__ __iadd__".split())


@dataclass(frozen=True)
class Gated:
    """A group of layers that share their gates.

    Attributes:
        names: of the layers.
        unit: ``"channel"``, ``"head"`` or ``"block"``.
        first: number of its first unit among all units of all groups.
        count: how many units it has.
    """

    names: tuple[str, ...]
    unit: str
    first: int
    count: int


@dataclass
class Layer:
    """What can be made smaller, and costs accordingly.

    Attributes:
        name: in the network.
        module: itself.
        reads: the unit that each input channel belongs to, -1 for one that no gate closes; ``None`` before it ran.
        writes: the same of its output channels.
        macs: multiply-adds.
        inside: first units of the gated blocks that hold it.
    """

    name: str
    module: nn.Module
    reads: Tensor | None = None
    writes: Tensor | None = None
    macs: float = 0.0
    inside: tuple[int, ...] = ()


@dataclass
class UnitFlow:
    """All layers of a network, and what the rest of it costs.

    Attributes:
        layers: by name.
        rest: multiply-adds and parameters outside of ``layers``, with the first units of the blocks that hold them.
        shapes: of the results of gated blocks, without the batch; ``None`` where it is that of the input.
    """

    layers: dict[str, Layer] = field(default_factory=dict)
    rest: list[tuple[float, int, tuple[int, ...]]] = field(default_factory=list)
    shapes: dict[str, tuple[int, ...] | None] = field(default_factory=dict)


@torch.no_grad()
def follow_units(model: nn.Module, inputs: Sequence[Any], groups: Sequence[Gated]) -> UnitFlow:
    """Run a network once and follow each gated channel to the layers that read it.

    Raises:
        ValueError: channels flow through an operation that mixes them or cannot be followed, into a sum with other
            channels, or out of the network.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 1))
        >>> flow = follow_units(model, [torch.zeros(1, 1, 4, 4)], [Gated(("0",), "channel", 0, 2)])
        >>> flow.layers["2"].reads.tolist()
        [0, 0, 0, 0, 1, 1, 1, 1]
    """
    follower = _Follower(model, groups)
    training = [(part, part.training) for part in model.modules()]
    try:
        for part, _ in training:
            part.training = False
        with FlopCounterMode(display=False) as counter, follower:
            outputs = model(*inputs)
    finally:
        for part, was in training:
            part.training = was
        for handle in follower.handles:
            handle.remove()
    for output in outputs if isinstance(outputs, tuple | list) else (outputs,):
        follower.refuse(output, "are a result of the network, which would have others without them")
    follower.check_norms()
    macs = {_plain(name): sum(found.values()) / 2 for name, found in counter.get_flop_counts().items()}
    return _with_costs(follower.flow, model, groups, macs)


class _Follower(TorchFunctionMode):
    """Knows for each tensor along which dimension its channels lie, and which unit each belongs to."""

    def __init__(self, model: nn.Module, groups: Sequence[Gated]) -> None:
        super().__init__()
        self.flow = UnitFlow()
        self.units: dict[int, tuple[Tensor, int, Tensor]] = {}  # by id; the tensor is kept so that the id stays its own
        self.made: dict[int, tuple[Tensor, Layer]] = {}
        self.reading: dict[int, int] = {}
        self.before_norms: list[tuple[Tensor, str]] = []
        self.depth = 0
        self.names = {unit: "/".join(g.names) for g in groups for unit in range(g.first, g.first + g.count)}
        gated = {name: group for group in groups for name in group.names}
        self.handles: list[Any] = []
        for name, module in model.named_modules():
            group = gated.get(name)
            if group is not None and group.unit == "block":
                self.handles.append(module.register_forward_hook(_keeping_shape(self.flow, name)))
            if isinstance(module, (*CONVOLUTIONS, *NORMS, nn.Linear)):
                layer = Layer(name, module)
                self.flow.layers[name] = layer
                self.handles.append(module.register_forward_pre_hook(self._enter))
                self.handles.append(module.register_forward_hook(self._leave(layer, group)))
            elif group is not None and group.unit == "head":
                units = torch.arange(group.first, group.first + group.count)
                self.flow.layers[name] = Layer(name, module, reads=units, writes=units)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.depth or getattr(func, "__name__", "") == "__get__":
            return result
        given = [t for t in _tensors((args, kwargs or {})) if id(t) in self.units or id(t) in self.made]
        for t in given:
            self.reading[id(t)] = self.reading.get(id(t), 0) + 1
        given = [t for t in given if id(t) in self.units]
        if given and isinstance(result, Tensor) and not any(result is t for t in given):
            self._pass_on(getattr(func, "__name__", str(func)), given, args, kwargs or {}, result)
        return result

    def refuse(self, tensor: Any, what: str) -> None:
        """Raise if any channel of a tensor has a gate."""
        if isinstance(tensor, Tensor) and id(tensor) in self.units:
            name = self.names[int(self.units[id(tensor)][2].max())]
            raise ValueError(f"units of layer {name!r} {what}")

    def check_norms(self) -> None:
        """Raise if what a gated normalisation reads is read by others too, as it was before the gates."""
        for tensor, name in self.before_norms:
            if self.reading.get(id(tensor), 0) > 1:
                raise ValueError(f"layer {name!r} must be the only one that reads what it normalises, to have gates")

    def _pass_on(self, name: str, given: list[Tensor], args: Any, kwargs: Any, result: Tensor) -> None:
        first, dim, units = self.units[id(given[0])]
        if name in _COMBINING:
            self._combine(given, args, result)
        elif name in _ENTRYWISE and result.ndim == first.ndim and result.shape[dim] == first.shape[dim]:
            self._set(result, dim, units)
        elif name in ("mean", "sum", "amax"):
            self._reduce(first, dim, units, args, kwargs, result, name)
        elif name == "cat":
            self._join(args, kwargs, dim, result)
        elif name in ("flatten", "view", "reshape", "squeeze") and result.shape[:dim] == first.shape[:dim]:
            after = first.shape[dim:].numel() // max(1, first.shape[dim])
            if result.ndim > dim and result.shape[dim] == first.shape[dim]:
                self._set(result, dim, units)
            elif result.ndim == dim + 1:
                self._set(result, dim, units.repeat_interleave(after))
            else:
                self.refuse(first, f"flow into {name!r}, through which they cannot be followed")
        else:
            self.refuse(first, f"flow into {name!r}, through which they cannot be followed")

    def _combine(self, given: list[Tensor], args: Any, result: Tensor) -> None:
        first, dim, units = self.units[id(given[0])]
        others = [t for t in args if isinstance(t, Tensor) and t.numel() > 1 and t is not first]
        for other in others:
            found = self.units.get(id(other))
            if found is None or found[1] != dim or not torch.equal(found[2], units):
                self.refuse(first, "meet others in a sum or product: give the layers that end there the same gates")
        self._set(result, dim, units)

    def _reduce(
        self, first: Tensor, dim: int, units: Tensor, args: Any, kwargs: Any, result: Tensor, name: str
    ) -> None:
        given = kwargs.get("dim", args[1] if len(args) > 1 else None)
        dims = range(first.ndim) if given is None else [given] if isinstance(given, int) else given
        gone = {d % first.ndim for d in dims}
        if dim in gone:
            self.refuse(first, f"flow into {name!r}, which mixes them")
        self._set(result, dim if result.ndim == first.ndim else dim - sum(d < dim for d in gone), units)

    def _join(self, args: Any, kwargs: Any, dim: int, result: Tensor) -> None:
        along = kwargs.get("dim", args[1] if len(args) > 1 else 0) % result.ndim
        parts = [(t, self.units.get(id(t))) for t in args[0]]
        if along == dim:
            rows = [torch.full((t.shape[dim],), -1) if found is None else found[2] for t, found in parts]
            self._set(result, dim, torch.cat(rows))
        else:
            for t, found in parts:
                if found is None or not torch.equal(found[2], self.units[id(args[0][0])][2]):
                    self.refuse(t, "meet others in 'cat': give the layers that end there the same gates")
            self._set(result, dim, self.units[id(args[0][0])][2])

    def _set(self, tensor: Tensor, dim: int, units: Tensor) -> None:
        if bool((units >= 0).any()):
            self.units[id(tensor)] = (tensor, dim, units)

    def _enter(self, module: nn.Module, args: Any) -> None:
        self.depth += 1

    def _leave(self, layer: Layer, group: Gated | None) -> Any:
        def leave(module: nn.Module, args: Any, result: Tensor) -> None:
            self.depth -= 1
            x = args[0]
            if id(x) in self.made:
                self.reading[id(x)] = self.reading.get(id(x), 0) + 1
            along = x.ndim - 1 if isinstance(module, nn.Linear) else 1
            found = self.units.get(id(x))
            if found is not None and found[1] != along:
                self.refuse(x, f"reach layer {layer.name!r} along another dimension than its channels")
            free = torch.full((x.shape[along],), -1)
            reads = free if found is None else found[2]
            if layer.reads is not None and not torch.equal(layer.reads, reads):
                raise ValueError(f"layer {layer.name!r} is used on several inputs that differ in their gates")
            layer.reads = reads
            own = None if group is None else torch.arange(group.first, group.first + group.count)
            layer.writes = self._written(layer, x, reads, own, result)
            if own is None and not isinstance(module, NORMS):
                self.made[id(result)] = (result, layer)
            self._set(result, result.ndim - 1 if isinstance(module, nn.Linear) else 1, layer.writes)

        return leave

    def _written(self, layer: Layer, x: Tensor, reads: Tensor, own: Tensor | None, result: Tensor) -> Tensor:
        """The units of a layer's result; a gated normalisation hands its own to the layer that it follows."""
        module, gated = layer.module, bool((reads >= 0).any())
        if isinstance(module, NORMS):
            if own is None:
                return reads
            if gated or id(x) not in self.made:
                raise ValueError(f"layer {layer.name!r} must follow a convolution or linear layer without gates")
            maker = self.made[id(x)][1]
            maker.writes = layer.reads = own
            self.before_norms.append((x, layer.name))
            return own
        groups = getattr(module, "groups", 1)
        if groups > 1 and (gated or own is not None):
            if own is not None or groups != module.in_channels or groups != module.out_channels:
                raise ValueError(f"layer {layer.name!r} has {groups} groups of channels, which cannot be cut")
            return reads
        along = -1 if isinstance(module, nn.Linear) else 1
        return torch.full((result.shape[along],), -1) if own is None else own


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    return [t for part in value for t in _tensors(part)] if isinstance(value, tuple | list) else []


def _keeping_shape(flow: UnitFlow, name: str) -> Any:
    def keep(module: nn.Module, args: Any, result: Any) -> None:
        if not isinstance(result, Tensor):
            raise ValueError(f"block {name!r} must return a tensor to have a gate, got {type(result).__name__}")
        same = isinstance(args[0], Tensor) and args[0].shape == result.shape
        flow.shapes[name] = None if same else tuple(result.shape[1:])

    return keep


def _plain(name: str) -> str:
    """``"Sequential.0.conv"`` is ``"0.conv"`` of the network, ``"Global"`` the network."""
    return name.partition(".")[2]


def _with_costs(flow: UnitFlow, model: nn.Module, groups: Sequence[Gated], macs: Mapping[str, float]) -> UnitFlow:
    """Give each layer what it costs, and what else runs to the innermost gated block that holds it."""
    blocks = {name: g.first for g in groups if g.unit == "block" for name in g.names}
    sizes = {name: sum(p.numel() for p in module.parameters()) for name, module in model.named_modules()}
    for name, layer in flow.layers.items():
        layer.macs = macs.get(name, 0.0)
        layer.inside = tuple(first for block, first in blocks.items() if _within(name, block))
    counted = [(name, layer.macs, sizes[name]) for name, layer in flow.layers.items()]
    for block in [*sorted(blocks, key=lambda b: -b.count(".")), ""]:
        inner = [(m, p) for name, m, p in counted if not block or _within(name, block)]
        whole = (macs.get(block, 0.0), sizes[block])
        left = whole[0] - sum(m for m, _ in inner), whole[1] - sum(p for _, p in inner)
        flow.rest.append((*left, tuple(first for b, first in blocks.items() if block and _within(block, b))))
        counted = [entry for entry in counted if block and not _within(entry[0], block)] + [(block, *whole)]
    return flow


def _within(name: str, block: str) -> bool:
    return name == block or name.startswith(f"{block}.")
