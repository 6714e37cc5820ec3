"""Forward gradients that perturb what units compute instead of their weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._pytree import tree_map

from pullback.core.checks import check_callable, check_choice, check_integer
from pullback.core.shapes import Float
from pullback.gradients.directions import DISTRIBUTIONS, Distribution, draw
from pullback.gradients.forward_rules import refuse_missing_rules

__all__ = ["ActivityGradient", "activity_forward_gradient"]


@dataclass(frozen=True)
class ActivityGradient:
    """Losses of a batch and an unbiased estimate of the gradient of their mean.

    Attributes:
        losses: ``[batch]`` the loss of each sample.
        gradient: name of parameter to estimate, shaped like the parameter: the mean over the directions.
        slopes: ``[K, batch]`` derivative of each sample's loss along its own direction, exact.
    """

    losses: Float[Tensor, " batch"]
    gradient: dict[str, Tensor]
    slopes: Float[Tensor, "directions batch"]


@dataclass(frozen=True)
class _Call:
    """One call of a layer: what it got and how its output was perturbed."""

    layer: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    noise: Tensor


def activity_forward_gradient(
    model: nn.Module,
    loss: Callable[[Tensor], Float[Tensor, " batch"]],
    inputs: Tensor | tuple[Any, ...],
    *,
    layers: Sequence[str] | None = None,
    directions: int = 1,
    distribution: Distribution = "normal",
    generator: torch.Generator | None = None,
) -> ActivityGradient:
    r"""Estimate the gradient of a mean loss by perturbing the outputs of layers (node perturbation).

    Layer ``l`` computes ``a_l = h_l(x_l; w_l)``; sample ``b`` gets its own direction ``u_lb`` there, of zero mean and
    unit covariance. One forward pass carries all of them and gives each sample's slope
    ``s_b = sum_l dL_b/da_lb . u_lb``, so that ``s_b u_lb`` estimates ``dL_b/da_lb`` without bias. The weights' gradient
    follows inside each layer, from its input alone: ``g_l = 1/B sum_b (da_lb/dw_l)^T (s_b u_lb)``.
    The variance is governed by the number of units of one sample, which is smaller than the number of weights, and is
    averaged over the batch: for a single linear layer it is ``1/B^2 sum_b (m + 1) ||dL_b/da_b||^2 (||x_b||^2 + 1)``
    with ``m`` outputs, a bias and normal directions.

    Args:
        model: a module whose samples, along the first dimension of every layer's output, do not depend on each other.
        loss: maps the model's output to ``[batch]`` losses, one a sample. It runs under ``torch.no_grad``.
        inputs: the model's argument, or a tuple of its arguments.
        layers: names of the submodules to perturb (default: all that own parameters). Only their own parameters get an
            estimate.
        directions: ``K >= 1``, one forward pass each.
        distribution: ``"normal"`` or ``"rademacher"`` (signs).
        generator: of the directions.

    Returns:
        An :class:`ActivityGradient`. Inputs of layers are kept until the end of a pass, no graph is.

    Raises:
        TypeError: ``model`` is no module, ``loss`` is not callable, or ``directions`` is no integer.
        ValueError: ``directions`` is below 1; a layer is unknown, owns no parameters, was not called, returns no
            floating tensor or one of another first dimension than the losses, or normalises over the batch; ``loss``
            returns anything but ``[batch]`` losses.
        NotImplementedError: an operation has no forward-mode rule: the message names it, with its source line.

    Example:
        >>> model = torch.nn.Linear(3, 2)
        >>> x, y = torch.ones(4, 3), torch.zeros(4, 2)
        >>> found = activity_forward_gradient(model, lambda out: (out - y).square().sum(-1), x, directions=3)
        >>> {name: tuple(g.shape) for name, g in found.gradient.items()}, tuple(found.slopes.shape)
        ({'weight': (2, 3), 'bias': (2,)}, (3, 4))

    References:
        Ren, Kornblith, Liao, Hinton (2023), Scaling forward gradient with local losses, equation 5.
        Widrow, Lehr (1990), 30 years of adaptive neural networks (madaline rule III).
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    check_callable("loss", loss)
    check_integer("directions", directions, 1)
    check_choice("distribution", distribution, DISTRIBUTIONS)
    args = inputs if isinstance(inputs, tuple) else (inputs,)
    chosen = _layers(model, layers)
    names = {id(p): name for name, p in model.named_parameters()}
    owned = {names[id(p)]: p for layer in chosen.values() for p in layer.parameters(recurse=False)}
    gradient = {name: torch.zeros_like(p) for name, p in owned.items()}
    losses, slopes = None, []

    def whole(params: dict[str, Tensor]) -> Tensor:
        return loss(torch.func.functional_call(model, params, args))

    with torch.no_grad():
        for _ in range(directions):
            try:
                found, slope, calls = _pass(model, loss, args, chosen, distribution, generator)
            except NotImplementedError as error:
                refuse_missing_rules(whole, owned, error)
                raise
            losses = found if losses is None else losses
            slopes.append(slope)
            for call in calls:
                delta = slope.reshape(-1, *[1] * (call.noise.ndim - 1)).to(call.noise) * call.noise
                for name, part in _local(call, delta / (len(slope) * directions)).items():
                    gradient[names[id(getattr(call.layer, name))]] += part
    assert losses is not None
    return ActivityGradient(losses, gradient, torch.stack(slopes))


def _layers(model: nn.Module, names: Sequence[str] | None) -> dict[str, nn.Module]:
    modules = dict(model.named_modules())
    if names is None:
        chosen = {name: m for name, m in modules.items() if next(m.parameters(recurse=False), None) is not None}
    else:
        for name in names:
            check_choice("layers", name, tuple(modules))
            if next(modules[name].parameters(recurse=False), None) is None:
                raise ValueError(f"layers must own parameters, {_shown(name, modules[name])} has none of its own")
        chosen = {name: modules[name] for name in names}
    if not chosen:
        raise ValueError("model must have a layer with parameters, got none")
    for name, module in modules.items():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise ValueError(
                f"model must keep samples apart, {_shown(name, module)} normalises over the batch: call eval() on it"
            )
    return chosen


def _pass(
    model: nn.Module,
    loss: Callable[[Tensor], Tensor],
    args: tuple[Any, ...],
    chosen: dict[str, nn.Module],
    distribution: str,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor, list[_Call]]:
    """Run the model once with all perturbations: the losses, their slopes, the calls of the layers."""
    calls: list[tuple[str, _Call]] = []

    def perturb(name: str) -> Callable[..., Tensor]:
        def hook(layer: nn.Module, given: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Tensor:
            if not isinstance(output, Tensor) or not output.is_floating_point() or not output.ndim:
                raise ValueError(
                    f"layers must return a floating tensor, {_shown(name, layer)} returns "
                    f"{output.dtype if isinstance(output, Tensor) else type(output).__name__}: name others in layers"
                )
            primal, tangent = forward_ad.unpack_dual(output)
            noise = draw(tuple(primal.shape), primal, distribution, generator)
            given, kwargs = tree_map(_primal, (given, kwargs))
            calls.append((name, _Call(layer, given, kwargs, noise)))
            return forward_ad.make_dual(primal, noise if tangent is None else tangent + noise)

        return hook

    with ExitStack() as stack:
        for name, layer in chosen.items():
            handle = layer.register_forward_hook(perturb(name), with_kwargs=True)
            stack.callback(handle.remove)
        with forward_ad.dual_level():
            losses = loss(model(*args))
            if not isinstance(losses, Tensor) or losses.ndim != 1 or not losses.is_floating_point():
                came = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
                raise ValueError(f"loss must return one real number a sample, [batch], got {came}")
            primal, tangent = forward_ad.unpack_dual(losses)
    for name in chosen:
        found = [call for called, call in calls if called == name]
        if not found:
            raise ValueError(f"layers must run, {_shown(name, chosen[name])} was not called: name others in layers")
        for call in found:
            if len(call.noise) != len(losses):
                raise ValueError(
                    f"layers must keep the {len(losses)} samples along their first dimension, "
                    f"{_shown(name, chosen[name])} returns shape {tuple(call.noise.shape)}"
                )
    return primal, torch.zeros_like(primal) if tangent is None else tangent, [call for _, call in calls]


def _local(call: _Call, delta: Tensor) -> dict[str, Tensor]:
    """Return what the layer's own parameters get from the cotangent of its output."""
    layer = call.layer
    if type(layer) is nn.Linear and not call.kwargs:
        rows = delta.flatten(0, -2) if delta.ndim > 1 else delta[None]
        found = {"weight": rows.T @ call.args[0].reshape(-1, layer.in_features)}
        return found if layer.bias is None else found | {"bias": rows.sum(0)}
    params = {name: p.detach() for name, p in layer.named_parameters(recurse=False)}
    pull = torch.func.vjp(lambda p: torch.func.functional_call(layer, p, call.args, call.kwargs), params)[1]
    parts: dict[str, Tensor] = pull(delta)[0]
    return parts


def _primal(value: Any) -> Any:
    return forward_ad.unpack_dual(value).primal if isinstance(value, Tensor) else value


def _shown(name: str, layer: nn.Module) -> str:
    return f"{name or 'the model'!r} ({type(layer).__name__})"
