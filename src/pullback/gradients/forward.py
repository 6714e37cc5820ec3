"""Gradients without backpropagation: directional derivatives of one forward pass, times their directions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import forward_ad

from pullback.core.checks import check_callable, check_choice, check_floating, check_integer, check_positive
from pullback.core.shapes import Float
from pullback.gradients.directions import DISTRIBUTIONS, Distribution, draw, draw_again, draw_at
from pullback.gradients.forward_rules import refuse_missing_rules

__all__ = ["ForwardGradient", "ForwardGradientDescent", "forward_gradient"]

_Loss = Callable[[dict[str, Tensor]], Tensor]


@dataclass(frozen=True)
class ForwardGradient:
    """A loss and an unbiased estimate of its gradient.

    Attributes:
        value: the loss, a tensor without dimensions.
        gradient: name to estimate, shaped like the parameter: the mean over the directions.
        slopes: ``[K]`` directional derivatives of the loss, exact.
        directions: name to the ``[K, *shape]`` directions.
    """

    value: Float[Tensor, ""]
    gradient: dict[str, Tensor]
    slopes: Float[Tensor, " directions"]
    directions: dict[str, Tensor]

    @property
    def estimates(self) -> dict[str, Tensor]:
        """Name to the ``[K, *shape]`` estimates, one a direction: ``slopes[k] * directions[name][k]``."""
        return {name: self.slopes.to(v).view(-1, *[1] * (v.ndim - 1)) * v for name, v in self.directions.items()}


def forward_gradient(
    loss: _Loss,
    params: Mapping[str, Tensor],
    *,
    directions: int = 1,
    distribution: Distribution = "normal",
    subspace: Mapping[str, Tensor] | None = None,
    chunk: int | None = None,
    generator: torch.Generator | None = None,
) -> ForwardGradient:
    r"""Estimate a gradient from forward passes alone.

    With directions ``v_k`` of zero mean and unit covariance, ``g = 1/K sum_k (grad f . v_k) v_k``. Forward mode gives
    each slope ``grad f . v_k`` exactly, beside the value. The estimate is unbiased; of ``n`` parameters its variance
    ``E ||g - grad f||^2`` is ``(n + 1) ||grad f||^2 / K`` for normal directions and ``(n - 1) ||grad f||^2 / K`` for
    signs. No graph is stored: memory does not grow with depth.

    Args:
        loss: maps parameters by name to a scalar. It runs under ``torch.no_grad``. In one batched pass all directions
            see the same random numbers, such as those of dropout.
        params: floating tensors by name, left unchanged.
        directions: ``K >= 1``.
        distribution: ``"normal"`` or ``"rademacher"`` (signs).
        subspace: name to ``[rank, *shape]``: directions are drawn in the span of these ``rank`` vectors, and the
            expectation is the projection of the gradient onto it. A momentum ``m`` alone is ``{name: m[None]}``.
        chunk: directions of one batched pass, ``>= 1`` (default: all). With 1 they go one after another as dual
            numbers, which needs least memory and takes losses that cannot be batched (a step that depends on values).
        generator: of the directions.

    Returns:
        A :class:`ForwardGradient`.

    Raises:
        TypeError: ``loss`` is not callable, a parameter is not floating, or a count is no integer.
        ValueError: no parameters, ``directions`` or ``chunk`` below 1, an unknown ``distribution``, a ``subspace`` of
            other names or shapes or with dependent vectors, or a loss that is no scalar.
        NotImplementedError: the loss has operations without forward-mode rule: the message names them, with the
            source lines (:func:`missing_forward_rules`).

    Example:
        >>> params = {"w": torch.tensor([1.0, -2.0]), "b": torch.tensor(0.5)}
        >>> g = torch.Generator().manual_seed(0)
        >>> found = forward_gradient(lambda p: p["w"].square().sum() + p["b"], params, directions=50_000, generator=g)
        >>> found.value.item(), [round(x) for x in found.gradient["w"].tolist()]
        (5.5, [2, -4])

    References:
        Baydin, Pearlmutter, Syme, Wood, Torr (2022), Gradients without backpropagation, arXiv 2202.08587.
    """
    check_callable("loss", loss)
    check_integer("directions", directions, 1)
    check_choice("distribution", distribution, DISTRIBUTIONS)
    size = check_integer("chunk", directions if chunk is None else chunk, 1)
    if not params:
        raise ValueError("params must hold at least one tensor, got none")
    points = {name: check_floating(f"params[{name!r}]", p).detach() for name, p in params.items()}
    if subspace is None:
        drawn = draw_at(points, directions, distribution, generator)
    else:
        drawn = _within(_orthonormal(subspace, points), points, directions, distribution, generator)
    value, slopes = _slopes(loss, points, drawn, size)
    gradient = {name: torch.tensordot(slopes.to(v), v, 1) / directions for name, v in drawn.items()}
    return ForwardGradient(value, gradient, slopes, drawn)


class ForwardGradientDescent(torch.optim.Optimizer):
    r"""Descent along forward gradients: an optimizer whose step evaluates a loss and never calls ``backward``.

    ``p <- p - lr exp(-decay t) g``, with ``g`` from :func:`forward_gradient` and ``t`` counting steps. As ``||g||`` is
    about ``sqrt(n) ||grad f||``, step sizes are smaller than those of gradient descent.

    Args:
        named_parameters: pairs of name and parameter, as ``model.named_parameters()``; the loss gets them by name.
        lr: step size at the start, > 0.
        decay: rate at which it falls per step, >= 0.
        directions: ``K >= 1`` of each step.
        distribution: of the directions.
        generator: of the directions.

    Raises:
        TypeError: ``named_parameters`` are no pairs of names and floating parameters.
        ValueError: an argument is out of range, or there are no parameters.

    Example:
        >>> model, x = torch.nn.Linear(2, 1), torch.tensor([[1.0, 2.0]])
        >>> optimizer = ForwardGradientDescent(model.named_parameters(), lr=0.02)
        >>> def loss(params):
        ...     return torch.func.functional_call(model, params, x).square().sum()
        >>> for _ in range(300):
        ...     value = optimizer.step(loss)
        >>> value.item() < 1e-3
        True

    References:
        Baydin, Pearlmutter, Syme, Wood, Torr (2022), Gradients without backpropagation, algorithm 1.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, Tensor]],
        lr: float,
        decay: float = 0.0,
        *,
        directions: int = 1,
        distribution: Distribution = "normal",
        generator: torch.Generator | None = None,
    ) -> None:
        check_positive("lr", lr)
        check_positive("decay", decay, zero=True)
        check_integer("directions", directions, 1)
        check_choice("distribution", distribution, DISTRIBUTIONS)
        pairs = list(named_parameters)
        for pair in pairs:
            if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[0], str):
                raise TypeError(f"named_parameters must be pairs of a name and a parameter, got {type(pair).__name__}")
            check_floating(f"parameter {pair[0]!r}", pair[1])
        if not pairs:
            raise ValueError("named_parameters must hold at least one parameter, got none")
        super().__init__([p for _, p in pairs], {"lr": lr, "decay": decay, "taken": 0})
        self._names = [name for name, _ in pairs]
        self._drawn: dict[str, Tensor] = {}  # the memory of the directions, kept between steps
        self._kind: tuple[torch.dtype, torch.device] | None = None
        self._directions, self._distribution, self._generator = directions, distribution, generator

    @torch.no_grad()
    def step(self, loss: _Loss) -> Tensor:  # type: ignore[override]
        """Evaluate the loss once for all directions and move the parameters.

        Args:
            loss: maps parameters by name to a scalar, by ``torch.func.functional_call(model, params, x)`` for a module.

        Returns:
            The loss before the step.

        Raises:
            ValueError: ``loss`` returns no scalar.
            NotImplementedError: it has operations without forward-mode rule, named with their source lines; the
                parameters are unchanged.
        """
        group = self.param_groups[0]
        params = dict(zip(self._names, group["params"], strict=True))
        kind = (group["params"][0].dtype, group["params"][0].device)
        if self._kind == kind:
            draw_again(self._drawn, self._distribution, self._generator)
        else:
            self._kind = kind
            self._drawn = draw_at(params, self._directions, self._distribution, self._generator)
        drawn = self._drawn
        value, slopes = _slopes(loss, params, drawn, self._directions)
        slopes = slopes * (-group["lr"] * math.exp(-group["decay"] * group["taken"]) / self._directions)
        for name, p in params.items():
            v = drawn[name]
            if self._directions == 1:
                p.addcmul_(v[0], slopes.to(p.dtype))
            else:
                p.add_(torch.tensordot(slopes.to(v), v, 1))
        group["taken"] += 1
        return value

    def add_param_group(self, param_group: dict[str, object]) -> None:
        """Refuse a second group: one direction spans all parameters."""
        if self.param_groups:
            raise ValueError("ForwardGradientDescent has one group of parameters: one direction spans all of them")
        super().add_param_group(param_group)


def _slopes(loss: _Loss, points: dict[str, Tensor], drawn: dict[str, Tensor], size: int) -> tuple[Tensor, Tensor]:
    """Return the loss and its slopes ``[K]`` along all directions, ``size`` of them in one pass."""
    count = len(next(iter(drawn.values())))
    one_pass = _dual if size == 1 else _batched
    try:
        with torch.no_grad():
            if size >= count:
                return one_pass(loss, points, drawn)
            parts = [
                one_pass(loss, points, {name: v[start : start + size] for name, v in drawn.items()})
                for start in range(0, count, size)
            ]
    except NotImplementedError as error:
        refuse_missing_rules(loss, points, error)
        raise
    return parts[0][0], torch.cat([slopes for _, slopes in parts])


def _dual(loss: _Loss, points: dict[str, Tensor], some: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the value and the one slope ``[1]``: dual numbers spare what vmap costs."""
    with forward_ad.dual_level():
        value = _scalar(loss({name: forward_ad.make_dual(p, some[name][0]) for name, p in points.items()}))
        primal, tangent = forward_ad.unpack_dual(value)
    return primal, (torch.zeros_like(primal) if tangent is None else tangent).reshape(1)


def _batched(loss: _Loss, points: dict[str, Tensor], some: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the value and the slopes ``[K]``: what does not depend on the direction is computed once."""

    def along(v: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        value, slope = torch.func.jvp(lambda p: _scalar(loss(p)), (points,), (v,))[:2]
        return value, slope

    values, slopes = torch.func.vmap(along, randomness="same")(some)
    return values[0], slopes


def _scalar(value: Tensor) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"loss must return a tensor, got {type(value).__name__}")
    if value.numel() != 1 or not value.is_floating_point():
        raise ValueError(f"loss must return a real scalar, got shape {tuple(value.shape)} of {value.dtype}")
    return value.reshape(())


def _orthonormal(subspace: Mapping[str, Tensor], points: dict[str, Tensor]) -> Tensor:
    """Return an orthonormal basis ``[rank, n]`` of the span."""
    if set(subspace) != set(points):
        raise ValueError(f"subspace must have the names of params, {sorted(points)}, got {sorted(subspace)}")
    rank = None
    for name, p in points.items():
        vectors = check_floating(f"subspace[{name!r}]", subspace[name])
        if vectors.ndim != p.ndim + 1 or vectors.shape[1:] != p.shape:
            raise ValueError(
                f"subspace[{name!r}] must have shape (rank, *{tuple(p.shape)}), got {tuple(vectors.shape)}"
            )
        if not len(vectors) or rank not in (None, len(vectors)):
            wanted = "at least one vector" if rank is None else f"as many vectors as the others, {rank}"
            raise ValueError(f"subspace[{name!r}] must hold {wanted}, got {len(vectors)}")
        rank = len(vectors)
    matrix = torch.cat([subspace[name].detach().flatten(1).double() for name in points], 1)
    basis, triangle = torch.linalg.qr(matrix.T)
    sizes = torch.linalg.vector_norm(matrix, dim=1)
    if basis.shape[1] < len(matrix) or not bool((triangle.diagonal().abs() > 1e-7 * sizes).all()):
        raise ValueError(f"subspace must hold linearly independent vectors, got {len(matrix)} that are not")
    return basis.T


def _within(
    basis: Tensor, points: dict[str, Tensor], directions: int, distribution: str, generator: torch.Generator | None
) -> dict[str, Tensor]:
    drawn = draw((directions, len(basis)), basis, distribution, generator) @ basis
    parts = drawn.split([p.numel() for p in points.values()], 1)
    return {n: part.reshape(-1, *p.shape).to(p) for (n, p), part in zip(points.items(), parts, strict=True)}
