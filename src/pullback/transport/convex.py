"""Gradients of convex functions as networks: the maps that are optimal for squared distances."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import func, nn
from torch.nn.functional import elu, relu, softplus

from pullback.core.checks import check_callable, check_choice, check_floating, check_integer
from pullback.core.shapes import Float, Tensor

__all__ = ["HessianDefect", "InputConvexGradient", "InputConvexNetwork", "hessian_defect", "line_integral_field"]

Activation = Callable[[Tensor], Tensor]


def _softplus_primitive(z: Tensor) -> Tensor:
    return softplus(z) - torch.sigmoid(z)


def _tanh_primitive(z: Tensor) -> Tensor:
    t = torch.tanh(z)
    return t - t**3 / 3


def _sigmoid_primitive(z: Tensor) -> Tensor:
    s = torch.sigmoid(z)
    return s**2 / 2 - s**3 / 3


def _sine_primitive(z: Tensor) -> Tensor:
    return z / 2 + torch.sin(2 * z) / 4


_PRIMITIVES: dict[str, tuple[Activation, Activation]] = {
    "softplus": (softplus, _softplus_primitive),
    "tanh": (torch.tanh, _tanh_primitive),
    "sigmoid": (torch.sigmoid, _sigmoid_primitive),
    "sin": (torch.sin, _sine_primitive),
    "relu": (relu, relu),
}
"""Activations sigma, with the primitive of the square of their derivative."""

_CONVEX: dict[str, Activation] = {"softplus": softplus, "relu": relu, "elu": elu}
"""Activations that are convex and do not fall."""


class InputConvexGradient(nn.Module):
    r"""The gradient of a convex function, as one hidden layer.

    :math:`N(x)=\sigma(Wx+b)` has a Jacobian J for which :math:`J^TJ=W^T\mathrm{diag}(\sigma'^2)W` is positive
    semi-definite and the Hessian of a function. The gradient of that function is
    :math:`f(x)=f_0+\int_0^1 J(sx)^TJ(sx)\,x\,ds = f_0+W^T[\Phi(Wx+b)-\Phi(b)]` with :math:`\Phi'=\sigma'^2`.

    Args:
        dim: d of the points.
        hidden: rows of W.
        activation: ``"softplus"``, ``"tanh"``, ``"sigmoid"``, ``"sin"``, ``"relu"``; any smooth function of a tensor,
            entry by entry, with ``quadrature``.
        quadrature: number of Gauss-Legendre nodes of the integral; ``None``: the closed form.
        generator: source of the initial values, uniform with the bounds of ``nn.Linear``.

    Attributes:
        weight: ``[hidden, dim]``.
        bias: ``[hidden]``.
        offset: ``[dim]``, f(0).

    Raises:
        TypeError: ``activation`` is neither a name nor a function.
        ValueError: no primitive is known for the activation and ``quadrature`` is not given; a number is out of range.

    Example:
        >>> net = InputConvexGradient(2, 16, generator=torch.Generator().manual_seed(0))
        >>> x = torch.randn(5, 2, generator=torch.Generator().manual_seed(1))
        >>> step = net(x) - net(x + 1)
        >>> bool((step.sum(-1) <= 0).all())  # monotone: (f(x) - f(y)) (x - y) >= 0
        True

    References:
        Richter-Powell, Lorraine, Amos (2021), Input convex gradient networks, equations 4 and 8.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        *,
        activation: str | Activation = "softplus",
        quadrature: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_integer("dim", dim, 1)
        check_integer("hidden", hidden, 1)
        if not isinstance(activation, str) and not callable(activation):
            raise TypeError(f"activation must be a name or a function, got {type(activation).__name__}")
        if quadrature is not None:
            check_integer("quadrature", quadrature, 1)
        elif callable(activation):
            known = ", ".join(map(repr, _PRIMITIVES))
            raise ValueError(f"activation must be one of {known}, or quadrature must be given: no primitive is known")
        if isinstance(activation, str):
            check_choice("activation", activation, tuple(_PRIMITIVES))
        self.dim, self._quadrature = dim, quadrature
        self._activation, self._primitive = activation, None
        if isinstance(activation, str):
            self._activation, self._primitive = _PRIMITIVES[activation]
        bound = 1 / math.sqrt(dim)
        self.weight, self.bias = (
            nn.Parameter(bound * (2 * torch.rand(*shape, generator=generator) - 1))
            for shape in ((hidden, dim), (hidden,))
        )
        self.offset = nn.Parameter(torch.zeros(dim))

    def network(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch hidden"]:
        """Return N(x)."""
        return self._activation(x @ self.weight.mT + self.bias)  # type: ignore[operator]

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Return the gradient of the convex function at x."""
        _check_points(x, self.dim)
        if self._quadrature is not None:
            return self.offset + line_integral_field(self.network, x, nodes=self._quadrature)
        assert self._primitive is not None
        phi = self._primitive(x @ self.weight.mT + self.bias) - self._primitive(self.bias)
        return self.offset + phi @ self.weight

    def potential(self, x: Float[Tensor, "*batch dim"], *, nodes: int = 16) -> Float[Tensor, "*batch"]:
        """Return the convex function, 0 at 0, by Gauss-Legendre quadrature of the gradient along the line from 0."""
        _check_points(x, self.dim)
        where, weights = _nodes(check_integer("nodes", nodes, 1), x)
        return (weights * (self(where.unsqueeze(-1) * x.unsqueeze(-2)) * x.unsqueeze(-2)).sum(-1)).sum(-1)


def line_integral_field(
    net: Callable[[Tensor], Tensor], x: Float[Tensor, "*batch d"], *, nodes: int = 16
) -> Float[Tensor, "*batch d"]:
    r"""Return :math:`\int_0^1J(sx)^TJ(sx)\,x\,ds` with the Jacobian J of a network.

    By Gauss-Legendre quadrature: one Jacobian-vector and one vector-Jacobian product, no Jacobian is built. It is the
    gradient of a convex function where :math:`J^TJ` is a Hessian, as for one hidden layer and for sums of such; for
    deeper networks it is not (:func:`hessian_defect`).

    Args:
        net: from points ``[n, d]`` to ``[n, k]``, each point by itself.
        x: ``[*batch, d]`` points.
        nodes: of the quadrature, >= 1; exact for integrands of degree ``2 nodes - 1`` along the line.

    Returns:
        ``[*batch, d]``, 0 at x = 0.

    Raises:
        TypeError: ``net`` cannot be called, ``x`` is no floating tensor.
        ValueError: ``x`` has no dimensions, ``net`` does not return ``[n, k]``.

    Example:
        >>> line_integral_field(lambda x: x**2 / 2, torch.tensor([3.0, 1.0]))  # J = diag(x)
        tensor([9.0000, 0.3333])

    References:
        Richter-Powell, Lorraine, Amos (2021), Input convex gradient networks, equation 4.
    """
    check_callable("net", net)
    _check_points(x, None)
    where, weights = _nodes(check_integer("nodes", nodes, 1), x)
    points = x.reshape(-1, x.shape[-1])
    at = (where.view(-1, 1, 1) * points).flatten(0, 1)  # [nodes * n, d]
    along = points.expand(len(where), *points.shape).flatten(0, 1)
    out, pushed = func.jvp(net, (at,), (along,))[:2]
    if not isinstance(out, Tensor) or out.ndim != 2 or len(out) != len(at):
        got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(f"net must return a tensor of shape ({len(at)}, k) for {len(at)} points, got {got}")
    (pulled,) = func.vjp(net, at)[1](pushed)
    return (weights.view(-1, 1, 1) * pulled.view(len(where), *points.shape)).sum(0).reshape(x.shape)


class HessianDefect(NamedTuple):
    """How far a field is from the gradient of a convex function, point by point.

    Attributes:
        asymmetry: ``[*batch]`` ``|J - J^T| / |J|`` of its Jacobian, Frobenius; 0 for a gradient, 2 at most.
        smallest: ``[*batch]`` the smallest eigenvalue of ``(J + J^T) / 2``; >= 0 for a monotone field.
    """

    asymmetry: Float[Tensor, "*batch"]
    smallest: Float[Tensor, "*batch"]


def hessian_defect(field: Callable[[Tensor], Tensor], x: Float[Tensor, "*batch d"]) -> HessianDefect:
    """Return how far a vector field is from the gradient of a convex function.

    Args:
        field: from a point ``[d]`` to a vector ``[d]``.
        x: ``[*batch, d]`` points.

    Returns:
        :class:`HessianDefect`. The asymmetry is 0 where the Jacobian is.

    Raises:
        TypeError: ``field`` cannot be called, ``x`` is no floating tensor.
        ValueError: ``field`` returns another shape.

    Example:
        >>> turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
        >>> found = hessian_defect(lambda x: turn @ x, torch.ones(2))
        >>> found.asymmetry.item(), found.smallest.item()
        (2.0, 0.0)

    References:
        Richter-Powell, Lorraine, Amos (2021), Input convex gradient networks, section 3.
    """
    check_callable("field", field)
    _check_points(x, None)
    points = x.reshape(-1, x.shape[-1])
    if not len(points):
        return HessianDefect(x.sum(-1), x.sum(-1))
    jacobian = func.vmap(func.jacrev(field))(points)
    if jacobian.shape != (*points.shape, points.shape[-1]):
        raise ValueError(f"field must return a vector of {x.shape[-1]} entries, got {tuple(jacobian.shape[1:-1])}")
    jacobian = jacobian.to(torch.promote_types(x.dtype, torch.float32))
    size = torch.linalg.matrix_norm(jacobian)
    odd = torch.linalg.matrix_norm(jacobian - jacobian.mT) / torch.where(size > 0, size, 1)
    smallest = torch.linalg.eigvalsh((jacobian + jacobian.mT) / 2)[..., 0]
    return HessianDefect(*(t.to(x.dtype).reshape(x.shape[:-1]) for t in (odd, smallest)))


class InputConvexNetwork(nn.Module):
    r"""A network that is convex in its input.

    :math:`z_1=\sigma(A_0x+b_0)`, :math:`z_{k+1}=\sigma(U_kz_k+A_kx+b_k)` and the value
    :math:`u^Tz+a^Tx`, with :math:`U_k,u\ge0` (the softplus of what is learned) and a convex sigma that does not fall.

    Args:
        dim: d of the points.
        hidden: sizes of the hidden layers, one or more.
        activation: ``"softplus"``, ``"relu"`` or ``"elu"``.
        generator: source of the initial values; positive weights begin near one over the size of their layer.

    Raises:
        ValueError: a number is out of range, the activation is not known.

    Example:
        >>> net = InputConvexNetwork(2, (8, 8), generator=torch.Generator().manual_seed(0))
        >>> x, y = torch.randn(2, 5, 2, generator=torch.Generator().manual_seed(1))
        >>> bool((net((x + y) / 2) <= (net(x) + net(y)) / 2).all())
        True

    References:
        Amos, Xu, Kolter (2017), Input convex neural networks, equation 2.
    """

    def __init__(
        self,
        dim: int,
        hidden: tuple[int, ...] = (64, 64),
        *,
        activation: str = "softplus",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_integer("dim", dim, 1)
        if not hidden:
            raise ValueError("hidden must name at least one layer")
        for size in hidden:
            check_integer("hidden", size, 1)
        check_choice("activation", activation, tuple(_CONVEX))
        self.dim, self._activation = dim, _CONVEX[activation]

        def uniform(*shape: int) -> nn.Parameter:
            return nn.Parameter((2 * torch.rand(*shape, generator=generator) - 1) / math.sqrt(dim))

        def positive(out: int, size: int) -> nn.Parameter:
            start = math.log(math.expm1(1 / size))  # its softplus is 1 / size
            return nn.Parameter(start + 0.1 * torch.randn(out, size, generator=generator))

        sizes = (*hidden, 1)
        self.inputs = nn.ParameterList(uniform(size, dim) for size in sizes)
        self.biases = nn.ParameterList(uniform(size) for size in hidden)
        self.mixing = nn.ParameterList(positive(out, size) for size, out in pairwise(sizes))

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch"]:
        """Return the convex function at x."""
        _check_points(x, self.dim)
        z = self._activation(x @ self.inputs[0].mT + self.biases[0])
        for k, mixing in enumerate(self.mixing, 1):
            z = z @ softplus(mixing).mT + x @ self.inputs[k].mT
            z = self._activation(z + self.biases[k]) if k < len(self.biases) else z
        return z.squeeze(-1)

    def gradient(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Return its gradient at x, a monotone map."""
        _check_points(x, self.dim)
        result: Tensor = func.grad(lambda points: self(points).sum())(x)
        return result


def _check_points(x: Tensor, dim: int | None) -> None:
    if check_floating("x", x).ndim < 1 or x.shape[-1] < 1 or (dim is not None and x.shape[-1] != dim):
        raise ValueError(f"x must have shape (..., {'d' if dim is None else dim}), got {tuple(x.shape)}")


@cache
def _legendre(count: int) -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(count)


def _nodes(count: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights of Gauss and Legendre on [0, 1]."""
    where, weights = _legendre(count)
    return tuple(torch.as_tensor(v, dtype=like.dtype, device=like.device) for v in ((where + 1) / 2, weights / 2))  # type: ignore[return-value]
