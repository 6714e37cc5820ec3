"""How signals travel through layers, forth and back, and how much of a gradient is signal."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from pullback.core.checks import check_callable, check_floating
from pullback.core.random import drawing_device

__all__ = ["GradientSignal", "LayerSignal", "gradient_signal", "signal_propagation"]


@dataclass(frozen=True)
class LayerSignal:
    """What passes through one call of a layer.

    Attributes:
        name: path of the layer in the model, empty for the model itself.
        kind: its class.
        size: root mean square of its output.
        correlation: mean cosine between the outputs of two different samples: at 1 they can no longer be told apart.
            NaN for a single sample.
        idle: share of the units whose output is the same for all samples; NaN for a single sample.
        cotangent: root mean square of the gradient with respect to its output; 0 where none arrives.
    """

    name: str
    kind: str
    size: float
    correlation: float
    idle: float
    cotangent: float


def signal_propagation(
    model: nn.Module,
    inputs: Tensor | tuple[Any, ...],
    *,
    loss: Callable[[Any], Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> tuple[LayerSignal, ...]:
    r"""Measure the size of activations and of their gradients, layer by layer.

    ``size_l = sqrt(mean a_l^2)``, ``correlation_l = mean over pairs of samples of cos(a_l, a'_l)`` and
    ``cotangent_l = sqrt(mean (dL/da_l)^2)``. Sizes or cotangents that grow or shrink from layer to layer by a constant
    factor explode or vanish with depth; correlations that tend to 1 say that inputs are forgotten.

    Args:
        model: any module; samples lie along the first dimension.
        inputs: its argument, or a tuple of its arguments; left unchanged.
        loss: from the model's output to a scalar (default: its product with standard normal numbers, a cotangent of
            size 1 in every entry).
        generator: of these numbers.

    Returns:
        One entry for each call of a module without submodules, in the order of the calls; of their outputs those that
        are floating tensors, as the module returned them. (A running mean of a module in training goes on.)

    Raises:
        TypeError: ``model`` is no module, ``loss`` is not callable, or the output is no floating tensor and there is no
            ``loss``.
        ValueError: ``loss`` returns no scalar.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False))
        >>> for layer in model:
        ...     layer.weight = torch.nn.Parameter(3 * torch.eye(2))
        >>> found = signal_propagation(model, torch.ones(4, 2), loss=torch.sum)
        >>> [(layer.name, layer.size, layer.cotangent) for layer in found]
        [('0', 3.0, 3.0), ('1', 9.0, 1.0)]

    References:
        Glorot, Bengio (2010), Understanding the difficulty of training deep feedforward neural networks.
        Schoenholz, Gilmer, Ganguli, Sohl-Dickstein (2017), Deep information propagation.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if loss is not None:
        check_callable("loss", loss)
    calls: list[tuple[tuple[str, str, float, float, float], Any]] = []

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(module: nn.Module, _inputs: Any, output: Any) -> None:
            for tensor in torch.utils._pytree.tree_leaves(output):
                if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.numel():
                    # Now, and the place in the graph rather than the tensor: what follows may change it in place.
                    edge = get_gradient_edge(tensor) if tensor.requires_grad else None
                    calls.append(((name, type(module).__name__, _size(tensor), *_spread(tensor)), edge))

        return note

    handles = [m.register_forward_hook(hook(n)) for n, m in model.named_modules() if not next(m.children(), None)]
    args = inputs if isinstance(inputs, tuple) else (inputs,)
    try:
        with torch.enable_grad():
            output = model(*(_open(a) for a in args))
    finally:
        for handle in handles:
            handle.remove()
    if loss is None:
        check_floating("output of the model", output)
        device = drawing_device(generator, output)
        value = (output * torch.randn(output.shape, generator=generator, device=device).to(output)).sum()
    else:
        value = loss(output)
        if not isinstance(value, Tensor) or value.numel() != 1:
            came = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"loss must return a scalar, got {came}")
    edges = [edge for _, edge in calls if edge is not None]
    arriving: Iterator[Tensor | None] = iter(())
    if edges and value.requires_grad:
        arriving = iter(torch.autograd.grad(value.sum(), edges, allow_unused=True))
    return tuple(LayerSignal(*seen, _size(None if edge is None else next(arriving, None))) for seen, edge in calls)


@dataclass(frozen=True)
class GradientSignal:
    """Signal and noise of the gradients of single batches.

    Attributes:
        signal: name to ``||E g||^2``, estimated without bias: it may be below 0 where noise is all there is.
        noise: name to ``E ||g - E g||^2`` of one batch.
        ratio: name to signal over noise; infinite where batches agree.
        overall: signal over noise of all parameters together. Its inverse is the number of such batches whose mean has
            as much noise as signal.
        batches: number of batches.
    """

    signal: dict[str, float]
    noise: dict[str, float]
    ratio: dict[str, float]
    overall: float
    batches: int

    @classmethod
    def of(cls, gradients: Iterable[Mapping[str, Tensor | None]]) -> GradientSignal:
        """Measure gradients that are given, one mapping from names to tensors for each batch, ``None`` for zero.

        Raises:
            ValueError: there are fewer than two, or the names differ.

        Example:
            >>> GradientSignal.of([{"w": torch.tensor([2.0])}, {"w": torch.tensor([4.0])}]).ratio
            {'w': 4.0}
        """
        mean: dict[str, Tensor | float] = {}
        squares: dict[str, float] = {}
        count = 0
        for found in gradients:
            if count and found.keys() != squares.keys():
                raise ValueError(f"gradients must have the same names, got {sorted(squares)} and {sorted(found)}")
            count += 1
            for name, g in found.items():
                before = mean.get(name, 0.0)
                off = (0.0 if g is None else g.detach().double()) - before
                mean[name] = before + off / count
                square = float(off.square().sum()) if isinstance(off, Tensor) else off * off
                squares[name] = squares.get(name, 0.0) + square * (count - 1) / count  # Welford
        if count < 2:
            raise ValueError(f"batches must be at least two, got {count}")
        noise = {name: s / (count - 1) for name, s in squares.items()}
        lengths = {name: float(torch.as_tensor(m).square().sum()) for name, m in mean.items()}
        signal = {name: square - noise[name] / count for name, square in lengths.items()}
        ratio = {name: _ratio(signal[name], noise[name]) for name in noise}
        return cls(signal, noise, ratio, _ratio(sum(signal.values()), sum(noise.values())), count)


def gradient_signal(
    loss: Callable[[dict[str, Tensor], Any], Tensor], parameters: Mapping[str, Tensor], batches: Iterable[Any]
) -> GradientSignal:
    r"""Measure how much of the gradient of one batch is signal.

    Of gradients ``g_1 .. g_K`` with mean ``m``: ``noise = sum_k ||g_k - m||^2 / (K - 1)``,
    ``signal = ||m||^2 - noise / K``. With ``B`` samples a batch, ``B noise / signal`` is the gradient noise scale:
    larger batches than that gain little.

    Args:
        loss: maps parameters by name and a batch to a scalar.
        parameters: floating tensors by name, left unchanged.
        batches: at least two, drawn independently.

    Returns:
        A :class:`GradientSignal`, in squared units of the gradient, summed in double precision.

    Raises:
        TypeError: ``loss`` is not callable, or a parameter is not floating.
        ValueError: no parameters, fewer than two batches, or a loss that is no scalar or does not depend on any.

    Example:
        >>> parameters, batches = {"w": torch.tensor([1.0])}, [torch.tensor([2.0]), torch.tensor([4.0])]
        >>> found = gradient_signal(lambda p, batch: (p["w"] * batch).sum(), parameters, batches)
        >>> found.signal, found.noise, found.overall  # gradients 2 and 4: mean 3, variance 2
        ({'w': 8.0}, {'w': 2.0}, 4.0)

    References:
        McCandlish, Kaplan, Amodei (2018), An empirical model of large-batch training, arXiv 1812.06162, appendix A.
    """
    check_callable("loss", loss)
    if not parameters:
        raise ValueError("parameters must hold at least one tensor, got none")
    points = {
        name: check_floating(f"parameters[{name!r}]", p).detach().requires_grad_() for name, p in parameters.items()
    }
    return GradientSignal.of(_each(loss, points, batches))


def _each(
    loss: Callable[[dict[str, Tensor], Any], Tensor], points: dict[str, Tensor], batches: Iterable[Any]
) -> Iterator[dict[str, Tensor | None]]:
    for batch in batches:
        with torch.enable_grad():
            value = loss(points, batch)
            if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
                came = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(f"loss must return a scalar that depends on the parameters, got {came}")
            gradients = torch.autograd.grad(value.sum(), list(points.values()), allow_unused=True)
        yield dict(zip(points, gradients, strict=True))


def _open(value: Any) -> Any:
    """Let a gradient reach the first layers also where nothing before them is trained."""
    return value.detach().requires_grad_() if isinstance(value, Tensor) and value.is_floating_point() else value


def _size(values: Tensor | None) -> float:
    return 0.0 if values is None else float(values.detach().double().square().mean().sqrt())


def _spread(values: Tensor) -> tuple[float, float]:
    """Return the mean cosine between samples and the share of units that do not tell them apart."""
    if values.ndim < 2 or len(values) < 2:
        return math.nan, math.nan
    rows = values.detach().double().flatten(1)
    units = nn.functional.normalize(rows, dim=1)
    count = len(rows)
    # of all pairs, the cosines sum to the squared length of the sum of the unit vectors
    cosine = (float(units.sum(0).square().sum()) - float(units.square().sum())) / (count * (count - 1))
    return cosine, float((rows == rows[:1]).all(0).double().mean())


def _ratio(signal: float, noise: float) -> float:
    if noise > 0 or not signal:
        return signal / (noise or 1.0)
    return math.copysign(math.inf, signal)
