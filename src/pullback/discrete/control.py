"""Conditional control of a frozen network by gated copies of its blocks, which are run only where they are needed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from pullback.core.checks import check_floating, check_integer, check_same_dtype, check_tensor
from pullback.core.shapes import Float, Int, Scalar, Tensor
from pullback.discrete.gated_model import NetworkCost
from pullback.discrete.gates import gate

__all__ = ["Controlled", "ControlledBlock", "ControlledNet", "GateRouter", "opening_rates"]


class Controlled(NamedTuple):
    """What a :class:`ControlledNet` returns.

    Attributes:
        output: of the frozen network under control.
        gates: ``[b, blocks]`` which copies were open for which sample, with the gradient of the gate.
        logits: ``[b, blocks]`` of the routers: a copy is run in evaluation where they are positive. A budget for
            these gates, ``gate(logits, noise=None)``, is one that evaluation keeps. ``None`` where gates were given.
    """

    output: Tensor
    gates: Float[Tensor, "b blocks"]
    logits: Float[Tensor, "b blocks"] | None


class GateRouter(nn.Module):
    r"""The logit of a gate, from features and time: :math:`r = \mathrm{MLP}(\mathrm{mean}_{space}\, u,\ e_t) + 1`.

    Args:
        width: channels of the features.
        time_width: of the embedding of time.
        hidden: units of the hidden layer.
        bias: of the result at first: gates begin open with probability :math:`\sigma(bias)`.
        generator: of the initial weights; torch's own by default.

    Raises:
        TypeError: a size is no integer.
        ValueError: a size is < 1.

    Example:
        >>> GateRouter(4, 3)(torch.zeros(2, 4, 5, 5), torch.zeros(2, 3)).shape
        torch.Size([2])

    References:
        Fang et al. (2025), FlexControl: computation-aware ControlNet with differentiable router, section 3.
    """

    def __init__(
        self,
        width: int,
        time_width: int,
        hidden: int = 32,
        *,
        bias: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_integer("width", width, 1)
        check_integer("time_width", time_width, 1)
        check_integer("hidden", hidden, 1)
        self.width, self.time_width = width, time_width
        self.hidden, self.logit = nn.Linear(width + time_width, hidden), nn.Linear(hidden, 1)
        for layer in (self.hidden, self.logit) if generator is not None else ():
            for parameter in layer.parameters():
                nn.init.uniform_(parameter, -(layer.in_features**-0.5), layer.in_features**-0.5, generator=generator)
        nn.init.constant_(self.logit.bias, bias)

    def forward(self, features: Float[Tensor, "b width *space"], time: Float[Tensor, "b time"]) -> Float[Tensor, "b"]:
        """Return the logits, ``[b]``."""
        if check_floating("features", features).ndim < 2 or features.shape[1] != self.width:
            raise ValueError(f"features must have shape (b, {self.width}, ...), got {tuple(features.shape)}")
        _check_exactly("time", check_floating("time", time), (len(features), self.time_width))
        check_same_dtype(features=features, time=time)
        means = features.flatten(2).mean(2) if features.ndim > 2 else features
        hidden = torch.nn.functional.silu(self.hidden(torch.cat([means, time], 1)))
        result: Tensor = self.logit(hidden)[:, 0]
        return result


class ControlledBlock(nn.Module):
    r"""A frozen block, its trainable copy behind a gate, and a convolution that is zero at first.

    .. math:: u' = g\, \mathrm{copy}(u) + (1 - g)\, u, \; h' = \mathrm{block}(h) + g\, \mathrm{zero}(\mathrm{copy}(u))

    Args:
        block: from ``(h [b, width, *space], time [b, time_width])`` to the shape of ``h``; its own parameters are left
            as they are, without gradient.
        router: logits from ``(u, time)``, such as :class:`GateRouter`; ``None`` where gates are always given.
        width: channels of the block.

    Raises:
        TypeError: ``block`` is no module, ``width`` no integer.
        ValueError: ``width`` is < 1; in a call: the copy changes the shape.

    Example:
        >>> class Block(nn.Module):
        ...     def forward(self, h, time):
        ...         return h + 1
        >>> controlled = ControlledBlock(Block(), None, 2)
        >>> h = torch.zeros(3, 2, 4, 4)
        >>> h, u = controlled(h, h, torch.zeros(3, 1), torch.tensor([1.0, 0.0, 1.0]), skip=True)
        >>> h[:, 0, 0, 0].tolist(), u[:, 0, 0, 0].tolist()
        ([1.0, 1.0, 1.0], [1.0, 0.0, 1.0])

    References:
        Zhang, Rao, Agrawala (2023), Adding conditional control to text-to-image diffusion models, equation 2. Fang et
        al. (2025), FlexControl, section 3.
    """

    def __init__(self, block: nn.Module, router: nn.Module | None, width: int) -> None:
        super().__init__()
        if not isinstance(block, nn.Module):
            raise TypeError(f"block must be an nn.Module, got {type(block).__name__}")
        check_integer("width", width, 1)
        self.copy = copy.deepcopy(block).requires_grad_(True)
        self.block, self.router = block.requires_grad_(False), router
        self.zero = nn.Linear(width, width)
        for parameter in self.zero.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self,
        h: Float[Tensor, "b width *space"],
        u: Float[Tensor, "b width *space"],
        time: Tensor,
        gates: Float[Tensor, "b"],
        *,
        skip: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Return ``h'`` and ``u'``.

        Args:
            h: of the frozen network.
            u: of the control.
            time: embedded.
            gates: one a sample.
            skip: gates are 0 or 1 and want no gradient: the copy is run on the open samples alone.
        """
        width = self.zero.in_features
        if check_floating("h", h).ndim < 2 or h.shape[1] != width:
            raise ValueError(f"h must have shape (b, {width}, ...), got {tuple(h.shape)}")
        _check_exactly("u", check_floating("u", u), tuple(h.shape))
        _check_exactly("gates", check_floating("gates", gates), (len(u),))
        check_same_dtype(h=h, u=u, gates=gates)
        h = self.block(h, time)
        if skip:
            chosen = gates.nonzero()[:, 0]
            if not len(chosen):
                return h, u
            if len(chosen) == len(u):
                said = self._said(u, time)
                return h + _mixed(self.zero, said), said
            said = self._said(u[chosen], time[chosen])
            moved = h[chosen] + _mixed(self.zero, said)
            return h.index_copy(0, chosen, moved), u.index_copy(0, chosen, said)
        said, factor = self._said(u, time), gates.reshape(-1, *(1,) * (u.ndim - 1)).to(u.dtype)
        return h + factor * _mixed(self.zero, said), factor * said + (1 - factor) * u

    def _said(self, u: Tensor, time: Tensor) -> Tensor:
        said: Tensor = self.copy(u, time)
        if said.shape != u.shape:
            raise ValueError(
                f"block must keep the shape {tuple(u.shape)}, {type(self.copy).__name__} gave {tuple(said.shape)}"
            )
        return said


class ControlledNet(nn.Module):
    r"""A frozen network steered by a condition through gated copies of all of its blocks.

    The control stream begins as :math:`u = \mathrm{stem}(x) + \mathrm{zero}(\mathrm{hint}(c))`. At each block a router
    says from the stream and the time whether its copy is active, for each sample. In training gates are noisy
    (:func:`gate`) and all copies are run, as closed gates learn too; in evaluation a copy sees the samples alone for
    which its logit is positive. At first, with all zero convolutions at zero, the result is that of the frozen network.

    Args:
        base: with ``stem(x)``, ``embed(time) -> [b, time_width]``, ``blocks`` and ``head(h)``; it is frozen.
        hint: from the condition to the shape of ``stem(x)``.
        width: channels of the blocks.
        time_width: of ``embed(time)``.
        routed: have routers; otherwise gates are given with each call.

    Raises:
        TypeError: ``base`` lacks a part, a size is no integer.
        ValueError: a size is < 1; in a call: the condition is of another size than the image, gates are missing or of
            the wrong shape.

    Example:
        >>> class Block(nn.Module):
        ...     def forward(self, h, time):
        ...         return h + 1
        >>> class Base(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.stem, self.head, self.blocks = nn.Identity(), nn.Identity(), nn.ModuleList([Block(), Block()])
        ...         self.embed = lambda time: time[:, None]
        >>> net = ControlledNet(Base(), nn.Identity(), 2, 1).eval()
        >>> controlled = net(torch.zeros(3, 2, 4, 4), torch.ones(3, 2, 4, 4), torch.zeros(3))
        >>> controlled.output.unique().tolist(), controlled.gates.shape
        ([2.0], torch.Size([3, 2]))

    References:
        Fang, Xiang, Cai, Zhou, Wen (2025), FlexControl: computation-aware ControlNet with differentiable router for
        text-to-image generation.
    """

    def __init__(self, base: nn.Module, hint: nn.Module, width: int, time_width: int, *, routed: bool = True) -> None:
        super().__init__()
        for part in ("stem", "embed", "blocks", "head"):
            if not hasattr(base, part):
                raise TypeError(f"base must have stem, embed, blocks and head, {type(base).__name__} lacks {part}")
        check_integer("width", width, 1)
        check_integer("time_width", time_width, 1)
        self.base, self.hint, self.routed = base.requires_grad_(False), hint, routed
        self.zero = nn.Linear(width, width)
        for parameter in self.zero.parameters():
            nn.init.zeros_(parameter)
        blocks = cast(Sequence[nn.Module], base.blocks)
        self.controls = nn.ModuleList(
            ControlledBlock(block, GateRouter(width, time_width) if routed else None, width) for block in blocks
        )

    def forward(
        self,
        x: Float[Tensor, "b *shape"],
        condition: Float[Tensor, "b *condition"],
        time: Tensor,
        *,
        gates: Float[Tensor, "b blocks"] | None = None,
        temperature: Scalar = 1.0,
        generator: torch.Generator | None = None,
    ) -> Controlled:
        """Return the :class:`Controlled` result.

        Args:
            x: what the base takes.
            condition: what ``hint`` takes.
            time: what ``base.embed`` takes.
            gates: 0 or 1, in place of the routers' choice; closed copies are then not computed in training either.
            temperature: of the noisy gates in training.
            generator: of their noise; torch's own by default.
        """
        check_same_dtype(x=check_floating("x", x), condition=check_floating("condition", condition))
        if not x.ndim or not condition.ndim or len(x) != len(condition):
            raise ValueError(f"x and condition must be as many, got {tuple(x.shape)} and {tuple(condition.shape)}")
        base = cast(Any, self.base)
        embedded, h = base.embed(time), base.stem(x)
        hint = self.hint(condition)
        if hint.shape != h.shape:
            raise ValueError(
                f"condition must have the size of the image: hint gives {tuple(hint.shape)}, stem {tuple(h.shape)}"
            )
        if gates is None and not self.routed:
            raise ValueError("gates must be given, as there are no routers")
        if gates is not None:
            _check_exactly("gates", gates, (len(x), len(self.controls)))
        u, rows = h + _mixed(self.zero, hint), list[Tensor]()
        said = list[Tensor]()
        for number, control in enumerate(self.controls):
            if gates is not None:
                opened = gates[:, number].detach().to(h.dtype)
            else:
                said.append(cast(Callable[..., Tensor], cast(Any, control).router)(u, embedded))
                if self.training:
                    opened = gate(said[-1], temperature=temperature, generator=generator)
                else:
                    opened = (said[-1].detach() > 0).to(h.dtype)
            h, u = control(h, u, embedded, opened, skip=not self.training or gates is not None)
            rows.append(opened)
        return Controlled(base.head(h), torch.stack(rows, 1), torch.stack(said, 1) if said else None)

    def costs(self, x: Tensor, time: Tensor) -> Float[Tensor, "blocks"]:
        """Return the multiply-adds of each copy for these inputs, found by a run, float64."""
        base = cast(Any, self.base)
        with torch.no_grad():
            h, embedded = base.stem(x), base.embed(time)
        copies = [cast(nn.Module, control.copy) for control in self.controls]
        return torch.tensor([NetworkCost(block, h, embedded).full for block in copies], dtype=torch.float64)


def opening_rates(
    gates: Float[Tensor, "n blocks"], times: Tensor, count: int = 10, *, largest: float | None = None
) -> Float[Tensor, "count blocks"]:
    """Return how often each gate is open in each of ``count`` equal spans of time.

    Args:
        gates: ``[n, blocks]`` in [0, 1].
        times: ``[n]``, >= 0.
        count: spans, >= 1.
        largest: end of the last span; by default the largest time.

    Returns:
        ``[count, blocks]`` means; NaN in a span without a sample.

    Raises:
        TypeError: ``gates`` is no floating tensor, ``count`` no integer.
        ValueError: shapes do not fit, a gate is outside [0, 1], a time is out of range, ``count`` < 1.

    Example:
        >>> opening_rates(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]), torch.tensor([0.0, 1.0, 9.0]), 2)
        tensor([[1.0000, 0.5000],
                [0.0000, 1.0000]])
    """
    if check_floating("gates", gates).ndim != 2:
        raise ValueError(f"gates must have shape (n, blocks), got {tuple(gates.shape)}")
    _check_exactly("times", check_tensor("times", times), (len(gates),))
    check_integer("count", count, 1)
    if not bool(((gates >= 0) & (gates <= 1)).all()):
        raise ValueError("gates must be in [0, 1]")
    end = largest if largest is not None else float(times.max()) if len(times) else 0.0
    if len(times) and not (float(times.min()) >= 0 and float(times.max()) <= end):
        raise ValueError(f"times must be in [0, {end}], got {float(times.min())} to {float(times.max())}")
    span: Int[Tensor, "n"] = (times.double() / max(end, 1e-300) * count).long().clamp(max=count - 1)
    inside = nn.functional.one_hot(span, count).to(gates)
    return inside.T @ gates.detach() / inside.sum(0)[:, None]


def _mixed(linear: nn.Linear, u: Tensor) -> Tensor:
    """A convolution of size 1: channels, dimension 1, mixed in each place."""
    if u.ndim == 2:
        return cast(Tensor, linear(u))
    if u.ndim == 4:  # keeps the layout, channels last too
        return torch.nn.functional.conv2d(u, linear.weight[:, :, None, None], linear.bias)
    flat = torch.nn.functional.conv1d(u.flatten(2), linear.weight[:, :, None], linear.bias)
    return flat.unflatten(2, u.shape[2:]) if u.ndim != 3 else flat


def _check_exactly(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    if value.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(value.shape)}")
