"""Any network as one that answers hyperparameters: its linear layers and convolutions give way to best responses."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from pullback.core.checks import check_integer
from pullback.core.shapes import Float, Tensor
from pullback.implicit.best_response import BestResponseConv2d, BestResponseLinear

__all__ = ["BestResponseModel", "replace_with_best_response"]


class _Answering(nn.Module):
    """A layer that takes its setting from the model around it."""

    def __init__(self, layer: BestResponseLinear | BestResponseConv2d) -> None:
        super().__init__()
        self.layer = layer
        self.setting: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.setting is None:
            raise RuntimeError("a best-response layer answers inside of its BestResponseModel alone: call that")
        h = self.setting
        if isinstance(self.layer, BestResponseLinear) and h.ndim > 1:  # examples first, whatever lies between
            h = h.reshape(h.shape[0], *(1,) * (x.ndim - 2), h.shape[-1])
        result: Tensor = self.layer(x, h)
        return result


class BestResponseModel(nn.Module):
    """A network whose linear layers and convolutions answer hyperparameters.

    Made by :func:`replace_with_best_response`.

    Args:
        model: the network with its layers replaced.
        hyperparameters: how many.
        replaced: names of the layers that answer.

    Attributes:
        model: the network; what was not replaced keeps its own parameters.
        hyperparameters: how many.
        replaced: names of the layers that answer.
    """

    def __init__(self, model: nn.Module, hyperparameters: int, replaced: list[str]) -> None:
        super().__init__()
        self.model = model
        self.hyperparameters = hyperparameters
        self.replaced = replaced

    def forward(self, *inputs: Any, h: Float[Tensor, "*batch h"], **more: Any) -> Any:
        """Return what the network returns.

        Args:
            *inputs: of the network, the examples in the first dimension.
            h: ``[hyperparameters]``, or a setting for each example, ``[n, hyperparameters]``.
            **more: further arguments of the network.
        """
        layers = [m for m in self.model.modules() if isinstance(m, _Answering)]
        for layer in layers:
            layer.setting = h
        try:
            return self.model(*inputs, **more)
        finally:
            for layer in layers:
                layer.setting = None

    def at(self, h: Float[Tensor, "h"]) -> dict[str, Tensor]:
        """Return parameters and buffers of the plain network at one setting, differentiable in ``h``.

        Args:
            h: ``[hyperparameters]``.

        Returns:
            What ``torch.func.functional_call`` of the network that was given takes.
        """
        found: dict[str, Tensor] = {}
        for name, tensor in [*self.model.named_parameters(), *self.model.named_buffers()]:
            if not any(name.startswith(f"{layer}.layer.") for layer in self.replaced):
                found[name] = tensor
        for name in self.replaced:
            answering: Any = self.model.get_submodule(name)
            weight, bias = answering.layer.at(h)
            found[f"{name}.weight"] = weight
            if bias is not None:
                found[f"{name}.bias"] = bias
        return found


def replace_with_best_response(
    model: nn.Module, hyperparameters: int, *, generator: torch.Generator | None = None
) -> BestResponseModel:
    r"""Return a copy of a network in which every ``Linear`` and ``Conv2d`` answers hyperparameters.

    A layer's weights become :math:`W_0` of :class:`BestResponseLinear` or :class:`BestResponseConv2d`, so that the copy
    begins as the network plus a small response; norms, embeddings, recurrent layers and everything else stay as they
    are.

    Args:
        model: the network; it is not changed.
        hyperparameters: >= 1, how many.
        generator: of the responses' first weights; torch's own by default.

    Returns:
        :class:`BestResponseModel`, called as ``answering(x, h=h)``; its ``replaced`` names the layers.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: ``hyperparameters`` < 1; no such layer; a convolution that :class:`BestResponseConv2d` is not
            (groups, dilation, another padding than zeros, unequal sides), by name.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> answering = replace_with_best_response(network, 3)
        >>> answering.replaced, answering(torch.ones(5, 4), h=torch.zeros(5, 3)).shape
        (['0', '2'], torch.Size([5, 2]))

    References:
        MacKay, Vicol, Lorraine, Duvenaud, Grosse (2019), Self-tuning networks, section 3.2.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    check_integer("hyperparameters", hyperparameters, 1)
    copied: nn.Module = copy.deepcopy(model)
    replaced: list[str] = []
    if isinstance(copied, nn.Linear | nn.Conv2d):
        copied = nn.Sequential(copied)
    for parent_name, parent in list(copied.named_modules()):
        for child_name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear | nn.Conv2d):
                name = f"{parent_name}.{child_name}".lstrip(".")
                setattr(parent, child_name, _Answering(_answer(name, child, hyperparameters, generator)))
                replaced.append(name)
    if not replaced:
        raise ValueError(f"model must have a Linear or Conv2d that can answer, got {type(model).__name__} without one")
    return BestResponseModel(copied, hyperparameters, replaced)


def _answer(
    name: str, layer: nn.Linear | nn.Conv2d, hyperparameters: int, generator: torch.Generator | None
) -> BestResponseLinear | BestResponseConv2d:
    bias = layer.bias is not None
    made: BestResponseLinear | BestResponseConv2d
    if isinstance(layer, nn.Linear):
        made = BestResponseLinear(
            layer.in_features, layer.out_features, hyperparameters, bias=bias, generator=generator
        )
    else:
        side, stride, padding = (_equal(v) for v in (layer.kernel_size, layer.stride, layer.padding))
        plain = layer.groups == 1 and set(layer.dilation) == {1} and layer.padding_mode == "zeros"
        if side is None or stride is None or padding is None or not plain:
            raise ValueError(
                f"layer {name!r} must have equal sides, strides and paddings with zeros, no groups and no dilation, "
                f"got {layer}"
            )
        made = BestResponseConv2d(
            layer.in_channels,
            layer.out_channels,
            side,
            hyperparameters,
            stride=stride,
            padding=padding,
            bias=bias,
            generator=generator,
        )
    made = made.to(layer.weight)
    with torch.no_grad():
        made.weight[0] = layer.weight
        if layer.bias is not None and made.bias is not None:
            made.bias[0] = layer.bias
    return made


def _equal(values: str | tuple[int, ...]) -> int | None:
    """The number that all are; ``None`` where they differ or are a word."""
    return values[0] if not isinstance(values, str) and len(set(values)) == 1 else None
