"""Layers whose weights are a function of hyperparameters: what training would have answered to them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import conv2d, linear

from pullback.core.checks import check_broadcast, check_floating, check_integer, check_same_dtype, check_shape
from pullback.core.random import drawing_device
from pullback.core.shapes import Float, Tensor

__all__ = ["BestResponse", "BestResponseConv2d", "BestResponseLinear"]


class BestResponse(NamedTuple):
    """Weights of a layer at one setting of the hyperparameters.

    Attributes:
        weight: in the layout of the plain layer, ``[out, in]`` or ``[out, in, height, width]``.
        bias: ``[out]``, or ``None`` of a layer without.
    """

    weight: Float[Tensor, "out *rest"]
    bias: Float[Tensor, "out"] | None


class _BestResponseLayer(nn.Module):
    """The parameters of both layers, in pairs: the elementary part and the part that the hyperparameters scale."""

    def __init__(
        self, shape: tuple[int, ...], hyperparameters: int, bias: bool, generator: torch.Generator | None
    ) -> None:
        super().__init__()
        self.hyperparameters = check_integer("hyperparameters", hyperparameters, 1)
        bound, out = 1 / math.sqrt(math.prod(shape[1:])), shape[0]
        device = drawing_device(generator, torch.empty(0))

        def uniform(*size: int) -> nn.Parameter:
            draws = torch.rand(size, device=device, generator=generator)
            return nn.Parameter(((2 * draws - 1) * bound).to(torch.get_default_device()))

        self.weight = uniform(2, *shape)
        self.bias = uniform(2, out) if bias else None
        gates = torch.randn(2 if bias else 1, out, hyperparameters, device=device, generator=generator)
        self.gate = nn.Parameter((0.01 * gates).to(torch.get_default_device()))

    def at(self, h: Float[Tensor, "h"]) -> BestResponse:
        """Return the weights at ``h [hyperparameters]``, which has no batch here; differentiable.

        Raises:
            TypeError: ``h`` is no floating tensor of the layer's dtype.
            ValueError: it has another shape.
        """
        self._check_h(h)
        if h.ndim != 1:
            raise ValueError(f"h must have shape ({self.hyperparameters},), got {tuple(h.shape)}")
        gates = self.gate @ h
        weight = self.weight[0] + gates[0].view(-1, *[1] * (self.weight.ndim - 2)) * self.weight[1]
        return BestResponse(weight, None if self.bias is None else self.bias[0] + gates[1] * self.bias[1])

    def _check_h(self, h: Tensor) -> None:
        check_floating("h", h)
        check_shape("h", h, (self.hyperparameters,))
        check_same_dtype(h=h, weight=self.weight)

    def _check(self, x: Tensor, h: Tensor) -> None:
        check_floating("x", x)
        check_same_dtype(x=x, weight=self.weight)
        self._check_h(h)

    def _mix(self, both: Tensor, h: Tensor, after: int) -> Tensor:
        """Add to the elementary outputs the others, scaled; channels are the dimension before the last ``after``."""
        elementary, response = both.chunk(2, dim=-1 - after)
        gates = [linear(h, gate)[(..., *[None] * after)] for gate in self.gate]
        result = elementary + gates[0] * response
        if self.bias is not None:
            own, scaled = (part[(..., *[None] * after)] for part in self.bias)
            result = result + own + gates[1] * scaled
        return result


class BestResponseLinear(_BestResponseLayer):
    r"""Linear layer whose weights answer hyperparameters, another setting for each example.

    .. math:: y = \hat W(h)\, x + \hat b(h), \qquad \hat W(h) = W_0 + \mathrm{diag}(V h)\, W_1, \quad
        \hat b(h) = b_0 + (C h) \odot b_1

    Computed as :math:`W_0 x + b_0 + (V h) \odot W_1 x + (C h) \odot b_1`, without a matrix for each example: twice the
    cost and, but for ``V`` and ``C``, twice the parameters of a plain layer. Trained on losses at hyperparameters that
    are perturbed around their values, it approximates the response :math:`w^*(h)` of training to them near there, and
    the derivative of a validation loss in ``h`` through it is a hypergradient.

    Args:
        in_features: >= 1.
        out_features: >= 1.
        hyperparameters: >= 1, how many; best in unconstrained coordinates, see :class:`Hyperparameters`.
        bias: whether there is one.
        generator: of the first weights; torch's own by default.

    Attributes:
        weight: ``[2, out, in]``, :math:`W_0` and :math:`W_1`, uniform within :math:`1/\sqrt{in}`.
        bias: ``[2, out]``, :math:`b_0` and :math:`b_1`, likewise, or ``None``.
        gate: ``[2, out, hyperparameters]``, ``V`` and ``C`` (``V`` alone without bias), normal of deviation 0.01.

    Raises:
        TypeError: a count is no integer; on call, another dtype than that of the layer.
        ValueError: a count is < 1; on call, a wrong number of features or hyperparameters, or batches that do not fit.

    Example:
        >>> layer = BestResponseLinear(3, 2, hyperparameters=4)
        >>> x, h = torch.ones(5, 3), torch.zeros(5, 4)
        >>> layer(x, h).shape
        torch.Size([5, 2])
        >>> weight, bias = layer.at(h[0])  # at one setting, a plain layer
        >>> torch.allclose(layer(x, h), torch.nn.functional.linear(x, weight, bias), atol=1e-6)
        True

    References:
        MacKay, Vicol, Lorraine, Duvenaud, Grosse (2019), Self-tuning networks: bilevel optimization of hyperparameters
        using structured best-response functions, equation 11 (the form of the layer).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hyperparameters: int,
        *,
        bias: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        sizes = check_integer("out_features", out_features, 1), check_integer("in_features", in_features, 1)
        super().__init__(sizes, hyperparameters, bias, generator)
        self.in_features, self.out_features = in_features, out_features

    def forward(self, x: Float[Tensor, "*batch i"], h: Float[Tensor, "*batch_h h"]) -> Float[Tensor, "*out o"]:
        """Return ``[*batch, out_features]``.

        Args:
            x: ``[*batch, in_features]``.
            h: ``[*batch, hyperparameters]``, or fewer dimensions that broadcast, such as ``[hyperparameters]``.
        """
        self._check(x, h)
        check_shape("x", x, (self.in_features,))
        check_broadcast(x=x.shape[:-1], h=h.shape[:-1])
        return self._mix(linear(x, self.weight.flatten(0, 1)), h, 0)

    def extra_repr(self) -> str:
        """Say the sizes, as torch's layers do."""
        return f"{self.in_features}, {self.out_features}, {self.hyperparameters}, bias={self.bias is not None}"


class BestResponseConv2d(_BestResponseLayer):
    r"""Convolution whose kernels answer hyperparameters, another setting for each image.

    The kernel of output channel ``c`` is :math:`W_{0,c} + (V h)_c W_{1,c}`, its bias :math:`b_{0,c} + (C h)_c b_{1,c}`:
    :class:`BestResponseLinear` with a convolution in place of the product.

    Args:
        in_channels: >= 1.
        out_channels: >= 1.
        kernel_size: >= 1, of both sides.
        hyperparameters: >= 1, how many.
        stride: >= 1.
        padding: >= 0, zeros on every side.
        bias: whether there is one.
        generator: of the first weights; torch's own by default.

    Attributes:
        weight: ``[2, out, in, kernel_size, kernel_size]``, uniform within :math:`1/\sqrt{in \cdot kernel\_size^2}`.
        bias: ``[2, out]``, likewise, or ``None``.
        gate: ``[2, out, hyperparameters]``, ``V`` and ``C`` (``V`` alone without bias), normal of deviation 0.01.

    Raises:
        TypeError: a count is no integer; on call, another dtype than that of the layer.
        ValueError: a count is out of range; on call, wrong channels, or not one setting (or one for all) an image.

    Example:
        >>> layer = BestResponseConv2d(1, 8, 3, hyperparameters=2, padding=1)
        >>> layer(torch.zeros(5, 1, 6, 6), torch.zeros(5, 2)).shape
        torch.Size([5, 8, 6, 6])

    References:
        MacKay, Vicol, Lorraine, Duvenaud, Grosse (2019), Self-tuning networks, section 3.2 (convolutions).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        hyperparameters: int,
        *,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        channels = check_integer("out_channels", out_channels, 1), check_integer("in_channels", in_channels, 1)
        side = check_integer("kernel_size", kernel_size, 1)
        self_stride, self_padding = check_integer("stride", stride, 1), check_integer("padding", padding, 0)
        super().__init__((*channels, side, side), hyperparameters, bias, generator)
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel_size
        self.stride, self.padding = self_stride, self_padding

    def forward(self, x: Float[Tensor, "*n c height width"], h: Float[Tensor, "*m h"]) -> Float[Tensor, "*n o p q"]:
        """Return ``[n, out_channels, height', width']``, without ``n`` where ``x`` has none.

        Args:
            x: ``[n, in_channels, height, width]`` or a single image without ``n``.
            h: ``[n, hyperparameters]``, or one setting for all, ``[hyperparameters]``.
        """
        self._check(x, h)
        if x.ndim not in (3, 4):
            raise ValueError(f"x must have 3 or 4 dimensions, got shape {tuple(x.shape)}")
        check_shape("x", x, (self.in_channels, None, None))
        if h.ndim > 1 and h.shape[:-1] not in (x.shape[:-3], (1,)):
            raise ValueError(
                f"h must have one row an image, {tuple(x.shape[:-3])}, or one for all, got {tuple(h.shape)}"
            )
        return self._mix(conv2d(x, self.weight.flatten(0, 1), None, self.stride, self.padding), h, 2)

    def extra_repr(self) -> str:
        """Say the sizes, as torch's layers do."""
        sizes = f"{self.in_channels}, {self.out_channels}, {self.kernel_size}, {self.hyperparameters}"
        return f"{sizes}, stride={self.stride}, padding={self.padding}, bias={self.bias is not None}"
