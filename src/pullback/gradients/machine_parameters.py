"""How often a network with parameters of a small floating-point format has no derivative, or a wrong one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from pullback.core.checks import check_finite, check_floating, check_integer
from pullback.core.shapes import Float

__all__ = ["NondifferentiableCount", "count_nondifferentiable", "minifloats"]


class Activation(NamedTuple):
    """A function of one number with finitely many kinks.

    Attributes:
        function: what torch runs, and differentiates.
        kinks: where it has no derivative.
        zero_boundary: the points of the boundary of its zero set that are no kinks.
    """

    function: Callable[[Tensor], Tensor]
    kinks: tuple[float, ...]
    zero_boundary: tuple[float, ...] = ()


ACTIVATIONS: dict[str, Activation] = {
    "relu": Activation(torch.relu, (0.0,)),
    "leaky_relu": Activation(lambda x: functional.leaky_relu(x, 0.25), (0.0,)),
    "abs": Activation(torch.abs, (0.0,)),
    "hardtanh": Activation(functional.hardtanh, (-1.0, 1.0), (0.0,)),
    "relu6": Activation(functional.relu6, (0.0, 6.0)),
    "clamp": Activation(lambda x: x.clamp(min=0.0), (0.0,)),
    "tanh": Activation(torch.tanh, (), (0.0,)),
}
"""Name to activation."""


@dataclass(frozen=True)
class NondifferentiableCount:
    """Parameters at which a network has no derivative, or autograd another one.

    Attributes:
        total: parameter vectors that were looked at.
        touched: of them, those with a pre-activation exactly on a kink.
        nondifferentiable: by the test that is exact with biases: a touched kink whose unit has a non-zero cotangent.
        by_slopes: by one-sided differences along every parameter and along random directions.
        agreeing: touched ones on which the two tests agree.
        incorrect: differentiable by slopes, and autograd's gradient is another one.
        bound: on the fraction of nondifferentiable (and, without biases, incorrect) parameters.
        exhaustive: whether all parameters were looked at.
        examples: ``[at most 64, parameters]`` nondifferentiable ones, by slopes.
        wrong: ``[at most 64, parameters]`` incorrect ones.
        network: from ``[parameters]`` to the network's value.
    """

    total: int
    touched: int
    nondifferentiable: int
    by_slopes: int
    agreeing: int
    incorrect: int
    bound: float
    exhaustive: bool
    examples: Tensor
    wrong: Tensor
    network: Callable[[Tensor], Tensor]

    @property
    def fraction(self) -> float:
        """Nondifferentiable (by slopes) and incorrect ones among all: what ``bound`` is a bound of."""
        return (self.by_slopes + self.incorrect) / self.total


def minifloats(exponent: int, mantissa: int) -> Float[Tensor, "values"]:
    """Return all finite values of a small floating-point format with subnormals, ascending, zero once.

    ``(1 + m / 2^mantissa) 2^(e - bias)``, ``bias = 2^(exponent - 1) - 1``, and ``(m / 2^mantissa) 2^(1 - bias)`` for
    ``e = 0``, with a sign: every code is a number, none an infinity or NaN.

    Args:
        exponent: bits of the exponent, 1 to 5.
        mantissa: bits of the mantissa, 0 to 7.

    Returns:
        ``[2^(1 + exponent + mantissa) - 1]`` in double precision.

    Example:
        >>> minifloats(2, 1).tolist()
        [-6.0, -4.0, -3.0, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]

    References:
        Micikevicius et al. (2022), FP8 formats for deep learning, arXiv 2209.05433.
    """
    check_integer("exponent", exponent, 1, 5)
    check_integer("mantissa", mantissa, 0, 7)
    codes = torch.arange(2 ** (exponent + mantissa))
    e, m = codes >> mantissa, (codes & (2**mantissa - 1)).double() / 2**mantissa
    bias = 2 ** (exponent - 1) - 1
    positive = torch.where(e == 0, m * 2.0 ** (1 - bias), (1 + m) * 2.0 ** (e - bias).double())
    return torch.cat([-positive[1:].flip(0), positive])


def count_nondifferentiable(
    widths: tuple[int, ...],
    values: Float[Tensor, "values"],
    inputs: Float[Tensor, "features"],
    *,
    activation: str = "relu",
    bias: bool = True,
    samples: int | None = None,
    generator: torch.Generator | None = None,
    chunk: int = 65_536,
) -> NondifferentiableCount:
    r"""Count the parameters in ``values^W`` at which a network has no derivative with respect to them.

    The network maps ``inputs`` through ``widths`` units a layer, each ``s(w . x + b)`` with its own weights, and sums
    the last layer's outputs. With biases, Lee, Park and Aiken prove: no parameter is incorrect;

    .. math:: |\mathrm{ndf}| / |M|^W \le \frac{1}{|M|} \sum_{units} |\mathrm{ndf}(s)|,

    and the network has no derivative if and only if some pre-activation lies on a kink and the cotangent of that unit's
    output is not zero. Without biases the bound holds for both kinds together, with the boundary of the zero set of
    ``s`` joined to its kinks. Values and inputs must be so short that double precision adds them without rounding.

    Args:
        widths: units in each layer, at least one layer; the last layer has its activation, too.
        values: ``[count]`` the distinct numbers that a parameter may be, such as :func:`minifloats`.
        inputs: ``[features]`` finite.
        activation: ``"relu"``, ``"leaky_relu"`` (slope 1/4), ``"abs"``, ``"hardtanh"``, ``"relu6"``, ``"tanh"``, or
            ``"clamp"``: a relu whose derivative autograd takes from the right at 0.
        bias: whether units have biases.
        samples: uniform draws; ``None``: all of ``values^W``.
        generator: of the draws.
        chunk: how many networks run at once.

    Returns:
        A :class:`NondifferentiableCount`.

    Raises:
        TypeError: a tensor is not floating.
        ValueError: no layer, an unknown activation (none is taken as smooth), or all parameters are wanted and are more
            than 2^26.

    Example:
        >>> found = count_nondifferentiable((1,), minifloats(2, 1), torch.ones(1))  # relu(w + b), 15 values each
        >>> found.nondifferentiable, found.total, found.incorrect, round(found.bound * found.total)
        (15, 225, 0, 15)

    References:
        Lee, Park, Aiken (2023), On the correctness of automatic differentiation for neural networks with
        machine-representable parameters, theorems 3.2, 3.3, 3.6 and 4.2.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}, got {activation!r}: its kinks are unknown")
    if not widths or any(check_integer("widths", width, 1) < 1 for width in widths):
        raise ValueError(f"widths must name at least one layer, got {widths}")
    values = check_floating("values", values).double()
    inputs = check_floating("inputs", inputs).double()
    if inputs.ndim != 1 or values.ndim != 1 or not len(values):
        raise ValueError(f"values and inputs must be vectors, got shapes {tuple(values.shape)}, {tuple(inputs.shape)}")
    check_finite("values", values)
    check_finite("inputs", inputs)
    check_integer("chunk", chunk, 1)
    values = values.unique()
    network = _Network(widths, len(inputs), ACTIVATIONS[activation], bias)
    if samples is None and len(values) ** network.size > 2**26:
        raise ValueError(f"samples must be given for {len(values)}^{network.size} parameters")
    counts = torch.zeros(6, dtype=torch.int64)
    examples: list[Tensor] = []
    wrong: list[Tensor] = []
    draws = torch.Generator().manual_seed(0)
    for parameters in _parameters(values, network.size, samples, generator, chunk):
        on_kink = network.touched(parameters, inputs)
        counts[0] += len(parameters)
        some = parameters[on_kink]
        counts[1] += len(some)
        for part in some.split(max(1, chunk // (2 * network.size + 5))):
            gradient, singular = network.exact_test(part, inputs)
            rough, true = network.slopes(part, inputs, draws)
            incorrect = ~rough & ((gradient - true).abs().amax(1) > _TOLERANCE * (1 + true.abs().amax(1)))
            counts[2:] += torch.stack([singular.sum(), rough.sum(), (singular == rough).sum(), incorrect.sum()])
            examples.append(part[rough][:64])
            wrong.append(part[incorrect][:64])
    kinks = ACTIVATIONS[activation]
    points = len(kinks.kinks) + (0 if bias else len(kinks.zero_boundary))
    total, touched, nondifferentiable, by_slopes, agreeing, incorrect_count = counts.tolist()
    none = values.new_zeros(0, network.size)
    return NondifferentiableCount(
        *(total, touched, nondifferentiable, by_slopes, agreeing, incorrect_count),
        bound=sum(widths) * points / len(values),
        exhaustive=samples is None,
        examples=torch.cat([none, *examples])[:64],
        wrong=torch.cat([none, *wrong])[:64],
        network=lambda p: network.value(p[None], inputs)[0],
    )


_TOLERANCE = 1e-6
_STEP = 2.0**-24


def _parameters(
    values: Tensor, size: int, samples: int | None, generator: torch.Generator | None, chunk: int
) -> Iterator[Tensor]:
    count = len(values)
    total = count**size if samples is None else check_integer("samples", samples, 1)
    for start in range(0, total, chunk):
        stop = min(start + chunk, total)
        if samples is None:
            codes = torch.arange(start, stop)
            digits = torch.stack([codes.div(count**place, rounding_mode="floor") % count for place in range(size)], 1)
        else:
            digits = torch.randint(count, (stop - start, size), generator=generator)
        yield values[digits]


class _Network:
    """Many networks at once: ``parameters[n]`` are those of the n-th."""

    def __init__(self, widths: tuple[int, ...], features: int, activation: Activation, bias: bool) -> None:
        self.shapes = [(width, before + bias) for before, width in itertools.pairwise((features, *widths))]
        self.sizes = [rows * columns for rows, columns in self.shapes]
        self.size = sum(self.sizes)
        self.activation, self.bias = activation, bias

    def layers(self, parameters: Tensor, inputs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield pre-activations and outputs of each layer, ``[networks, units]``."""
        x = inputs.expand(len(parameters), -1)
        for part, shape in zip(parameters.split(self.sizes, 1), self.shapes, strict=True):
            weights = part.unflatten(1, shape)
            if self.bias:
                x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
            z = (weights * x[:, None]).sum(-1)
            x = self.activation.function(z)
            yield z, x

    def value(self, parameters: Tensor, inputs: Tensor) -> Tensor:
        *_, (_, out) = self.layers(parameters, inputs)
        return out.sum(1)

    def on_kink(self, z: Tensor) -> Tensor:
        return torch.stack(
            [z == kink for kink in self.activation.kinks] or [torch.zeros_like(z, dtype=torch.bool)]
        ).any(0)

    def touched(self, parameters: Tensor, inputs: Tensor) -> Tensor:
        return torch.stack([self.on_kink(z).any(1) for z, _ in self.layers(parameters, inputs)]).any(0)

    def exact_test(self, parameters: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return autograd's gradient, and whether a unit on a kink has a cotangent."""
        leaf = parameters.clone().requires_grad_()
        layers = list(self.layers(leaf, inputs))
        outputs = [x for _, x in layers]
        gradient, *cotangents = torch.autograd.grad(outputs[-1].sum(), [leaf, *outputs])
        singular = [(self.on_kink(z) & (c != 0)).any(1) for (z, _), c in zip(layers, cotangents, strict=True)]
        return gradient, torch.stack(singular).any(0)

    def slopes(self, parameters: Tensor, inputs: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return whether one-sided slopes disagree, or are not linear in the direction; and the slopes."""
        count, size = parameters.shape
        directions = torch.cat([torch.eye(size).double(), torch.randn(2, size, generator=draws, dtype=torch.float64)])
        base = self.value(parameters, inputs)

        def one_sided(side: float) -> Tensor:
            moved = (parameters[:, None] + side * _STEP * directions).flatten(0, 1)
            return (self.value(moved, inputs).view(count, len(directions)) - base[:, None]) / (side * _STEP)

        right, left = one_sided(1.0), one_sided(-1.0)
        partial = right[:, :size]
        linear = partial @ directions[size:].T
        scale = _TOLERANCE * (1 + right.abs().amax(1))
        apart = (right - left).abs().amax(1) > scale
        bent = (right[:, size:] - linear).abs().amax(1) > scale
        return apart | bent, partial
