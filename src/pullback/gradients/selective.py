"""Convert a model to layers that keep for the backward pass what the active gradients need, and back."""

from __future__ import annotations

import copy as copying
import itertools
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from pullback.gradients import selective_ops as ops
from pullback.gradients.memory import saved_bytes

__all__ = ["Conversion", "restore", "selective"]


@dataclass(frozen=True)
class Conversion:
    """A converted model, and what was done to it.

    Attributes:
        module: the model.
        converted: name of each layer that was converted, to its kind, as ``{"0": "Conv2d"}``.
        left: name of each layer with parameters that stays torch's, to the reason.
    """

    module: nn.Module
    converted: dict[str, str]
    left: dict[str, str]


def selective(module: nn.Module, *, copy: bool = False) -> Conversion:
    """Let the layers of a model keep for the backward pass only what the gradients that are asked for need.

    Convolutions, transposed ones, batch norms in evaluation, layer and group norms, ReLUs, dropouts and max-pools get
    another class, which computes by :mod:`~pullback.gradients.selective_ops`; parameters, buffers, hooks, names in
    the ``state_dict`` and ``isinstance`` stay. Values and gradients stay the same, and which of them are asked for
    (``requires_grad``) may change at any time. What a version of torch keeps is measured: a kind of layer whose twin
    would keep no less stays as it is. Calls of functions inside a ``forward`` are not seen; the twins can be called.

    Args:
        module: any model; changed in place.
        copy: whether to leave it as it is and convert a copy, which shares its parameters and buffers.

    Returns:
        A :class:`Conversion`.

    Raises:
        TypeError: ``module`` is no ``nn.Module``.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
        >>> found = selective(model)
        >>> found.converted, found.left
        ({'0': 'Conv2d', '1': 'ReLU'}, {'3': 'Linear: torch keeps no more than is needed'})
        >>> restore(model)[0]
        Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))

    References:
        Bhatia, Dangel (2024), Lowering PyTorch's memory consumption for selective differentiation, arXiv 2404.12406.
    """
    _check_module(module)
    if copy:
        module = _sharing(module, {})
    converted, left = dict[str, str](), dict[str, str]()
    for name, layer in module.named_modules():
        kind = type(layer)
        if kind in _KINDS:
            continue  # is converted
        reason = _reason(layer)
        if reason:
            if layer._parameters:
                left[name] = f"{kind.__name__}: {reason}"
            continue
        layer.__class__ = _TWINS[kind]
        converted[name] = kind.__name__
    for parent in module.modules():
        if isinstance(parent, nn.Sequential):
            for layer, following in itertools.pairwise(parent):
                if isinstance(layer, _ReLU) and isinstance(following, _KEEPS_INPUT):
                    layer.following = (following,)
    return Conversion(module, converted, left)


def restore(module: nn.Module) -> nn.Module:
    """Undo :func:`selective`: make torch's own layers of the converted ones, and return the model.

    Args:
        module: a model, in which nothing may be converted.

    Returns:
        ``module``.

    Raises:
        TypeError: ``module`` is no ``nn.Module``.

    Example:
        >>> model = nn.Sequential(nn.ReLU())
        >>> type(restore(selective(model).module)[0]).__name__
        'ReLU'
    """
    _check_module(module)
    for layer in module.modules():
        if type(layer) in _KINDS:
            layer.__dict__.pop("following", None)
            layer.__class__ = _KINDS[type(layer)]
    return module


class _Conv:
    def forward(self: Any, x: Tensor) -> Tensor:
        return ops.conv(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class _ConvTranspose:
    def forward(self: Any, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        if output_size is not None:
            return super().forward(x, output_size)  # type: ignore[misc]
        options = (self.stride, self.padding, self.output_padding, self.groups, self.dilation)
        return ops.conv_transpose(x, self.weight, self.bias, *options)


class _BatchNorm:
    def forward(self: Any, x: Tensor) -> Tensor:
        if self.training or not self.track_running_stats:
            return super().forward(x)  # type: ignore[misc]
        self._check_input_dim(x)
        return ops.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


class _LayerNorm:
    def forward(self: Any, x: Tensor) -> Tensor:
        return ops.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


class _GroupNorm:
    def forward(self: Any, x: Tensor) -> Tensor:
        return ops.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class _ReLU:
    following: tuple[Any, ...] = ()
    """The next layer; a tuple hides it from ``nn.Module``, of which it is no child."""

    def forward(self: Any, x: Tensor) -> Tensor:
        kept = any(layer.weight.requires_grad for layer in self.following)  # the next layer keeps the result anyway
        return x.relu() if kept else ops.relu(x)


class _Dropout:
    def forward(self: Any, x: Tensor) -> Tensor:
        return ops.dropout(x, self.p, self.training)


class _MaxPool:
    def forward(self: Any, x: Tensor) -> Tensor:
        dims = int(type(self).__name__[-2])
        return ops.max_pool(x, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, dims=dims)


class SelectiveConv1d(_Conv, nn.Conv1d): ...


class SelectiveConv2d(_Conv, nn.Conv2d): ...


class SelectiveConv3d(_Conv, nn.Conv3d): ...


class SelectiveConvTranspose1d(_ConvTranspose, nn.ConvTranspose1d): ...


class SelectiveConvTranspose2d(_ConvTranspose, nn.ConvTranspose2d): ...


class SelectiveConvTranspose3d(_ConvTranspose, nn.ConvTranspose3d): ...


class SelectiveBatchNorm1d(_BatchNorm, nn.BatchNorm1d): ...


class SelectiveBatchNorm2d(_BatchNorm, nn.BatchNorm2d): ...


class SelectiveBatchNorm3d(_BatchNorm, nn.BatchNorm3d): ...


class SelectiveLayerNorm(_LayerNorm, nn.LayerNorm): ...


class SelectiveGroupNorm(_GroupNorm, nn.GroupNorm): ...


class SelectiveReLU(_ReLU, nn.ReLU): ...


class SelectiveDropout(_Dropout, nn.Dropout): ...


class SelectiveMaxPool1d(_MaxPool, nn.MaxPool1d): ...


class SelectiveMaxPool2d(_MaxPool, nn.MaxPool2d): ...


class SelectiveMaxPool3d(_MaxPool, nn.MaxPool3d): ...


_CLASSES: tuple[type[nn.Module], ...] = (
    *(SelectiveConv1d, SelectiveConv2d, SelectiveConv3d),
    *(SelectiveConvTranspose1d, SelectiveConvTranspose2d, SelectiveConvTranspose3d),
    *(SelectiveBatchNorm1d, SelectiveBatchNorm2d, SelectiveBatchNorm3d),
    *(SelectiveLayerNorm, SelectiveGroupNorm, SelectiveReLU, SelectiveDropout),
    *(SelectiveMaxPool1d, SelectiveMaxPool2d, SelectiveMaxPool3d),
)
_KINDS: dict[type[nn.Module], type[nn.Module]] = {twin: twin.__bases__[1] for twin in _CLASSES}
_TWINS = {kind: twin for twin, kind in _KINDS.items()}
_KEEPS_INPUT = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_SPACE = {"1d": (4,), "2d": (4, 4), "3d": (4, 4, 4)}


def _reason(layer: nn.Module) -> str:
    """Why a layer is not converted, or nothing."""
    kind = type(layer)
    if kind is nn.Linear:
        return "torch keeps " + ("the input of a frozen one" if _linear_keeps() else "no more than is needed")
    if kind not in _TWINS:
        return "unknown layer"
    if isinstance(layer, nn.modules.batchnorm._BatchNorm) and (layer.training or not layer.track_running_stats):
        return "in training mode, where the statistics of the batch need the input"
    if getattr(layer, "padding_mode", "zeros") != "zeros":
        return f"padding_mode={layer.padding_mode!r}"
    if getattr(layer, "return_indices", False):
        return "return_indices=True"
    return "" if _keeps_less(cast("Any", kind)) else "torch keeps no more than is needed"


@cache
def _keeps_less(kind: type[nn.Module]) -> bool:
    """Whether the twin of a layer keeps less than torch: frozen behind an active input, or with its bias alone."""
    dims = _SPACE.get(kind.__name__[-2:], ())
    options: dict[type, tuple[int, ...]] = {
        **dict.fromkeys((_Conv, _ConvTranspose), (8, 8, 3)),
        **{_BatchNorm: (8,), _LayerNorm: (64,), _GroupNorm: (1, 64), _MaxPool: (2,), _ReLU: (), _Dropout: ()},
    }
    layer = kind(*options[_TWINS[kind].__bases__[0]]).requires_grad_(False)
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        layer.eval()
    x = torch.zeros(2, 8, *dims) if dims else torch.zeros(8, 64)
    kept = []
    for twin in (kind, _TWINS[kind]):
        layer.__class__ = twin
        frozen = saved_bytes(layer, x.requires_grad_()).total
        bias = getattr(layer, "bias", None)
        if isinstance(bias, nn.Parameter):
            bias.requires_grad_()
        kept.append((frozen, saved_bytes(layer, x.detach()).total))
        layer.requires_grad_(False)
    return any(ours < theirs for theirs, ours in zip(*kept, strict=True))


@cache
def _linear_keeps() -> bool:
    return saved_bytes(nn.Linear(8, 8).requires_grad_(False), torch.zeros(2, 8).requires_grad_()).total > 0


def _sharing(module: nn.Module, made: dict[nn.Module, nn.Module]) -> nn.Module:
    """Copy a tree of modules, not their parameters and buffers; a module that stands in two places is one copy."""
    if module not in made:
        made[module] = twin = copying.copy(module)
        for name in ("_parameters", "_buffers"):
            twin.__dict__[name] = dict(module.__dict__[name])
        twin.__dict__["_modules"] = {
            name: child if child is None else _sharing(child, made) for name, child in module._modules.items()
        }
    return made[module]


def _check_module(module: nn.Module) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be an nn.Module, got {type(module).__name__}")
