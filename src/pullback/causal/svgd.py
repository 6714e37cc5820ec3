"""Stein variational gradient descent: particles that move together until they stand for a distribution."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils import _pytree as pytree

from pullback.core.checks import check_callable, check_choice, check_finite, check_floating, check_integer, check_scalar
from pullback.core.errors import ConvergenceError
from pullback.core.shapes import Float, Tensor

__all__ = ["SVGD", "Particles", "SquaredExponential", "svgd"]

_OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]]], torch.optim.Optimizer]] = {
    "rmsprop": lambda parts: torch.optim.RMSprop(parts, alpha=0.9, eps=1e-8),
    "adam": torch.optim.Adam,
    "adagrad": torch.optim.Adagrad,
    "sgd": torch.optim.SGD,
}


@dataclass(frozen=True)
class Particles:
    """Where particles ended.

    Attributes:
        particles: a tensor ``[*batch, m, ...]`` or a nesting of them, as they were given.
        history: ``"update"``, ``[steps, *batch]``, the root mean square of the direction that the particles took.
    """

    particles: Any
    history: dict[str, Tensor] = field(default_factory=dict)


class SquaredExponential:
    r"""The kernel :math:`k(x, y) = \sum_l e^{-\|x_l - y_l\|^2 / h_l}` of particles with parts ``l``, or the product.

    A sum lets particles that differ in one part alone repel each other there; a product is the kernel of the whole.

    Args:
        bandwidth: ``h > 0``, for all parts or one for each (a nesting like the particles'); ``None`` for
            :math:`h_l = \mathrm{median}_{i \ne j} \|x_l^i - x_l^j\|^2 / \log(m + 1)` of the moment.
        product: whether to multiply the parts.

    Raises:
        TypeError: a bandwidth that is no number.
        ValueError: a bandwidth that is not positive, or not one for each part.

    Example:
        >>> kernel = SquaredExponential(2.0)
        >>> values, repulsion = kernel(torch.tensor([[0.0], [1.0]]), 0)
        >>> [round(v, 3) for v in values[0].tolist()], [round(v, 3) for v in repulsion.flatten().tolist()]
        ([1.0, 0.607], [-0.607, 0.607])

    References:
        Liu, Wang (2016), Stein Variational Gradient Descent, section 5, for the median; Lorch et al. (2021), DiBS,
        appendix E, for the sum.
    """

    def __init__(self, bandwidth: Any = None, *, product: bool = False) -> None:
        for value in () if bandwidth is None else pytree.tree_leaves(bandwidth):
            check_scalar("bandwidth", value)
        self.bandwidth, self.product = bandwidth, product

    def __call__(self, particles: Any, batch_ndim: int) -> tuple[Float[Tensor, "*batch m m"], Any]:
        """Return ``K[i, j] = k(x_i, x_j)`` and, for every particle ``i``, the sum over ``j`` of ``dk(x_j, x_i)/dx_j``.

        Args:
            particles: tensors ``[*batch, m, ...]``.
            batch_ndim: number of batch dimensions.

        Raises:
            ValueError: another number of bandwidths than of parts.
        """
        leaves, structure = pytree.tree_flatten(particles)
        for leaf in leaves:
            if check_floating("particles", leaf).ndim <= batch_ndim:
                raise ValueError(f"particles must have more than {batch_ndim} dimensions, got {tuple(leaf.shape)}")
        parts = [leaf.flatten(batch_ndim + 1) if leaf.ndim > batch_ndim + 1 else leaf.unsqueeze(-1) for leaf in leaves]
        given = [None] * len(parts) if self.bandwidth is None else _for_each("bandwidth", self.bandwidth, len(parts))
        values, widths = [], []
        for part, bandwidth in zip(parts, given, strict=True):
            squares = _squared_distances(part)
            width = _median_bandwidth(squares) if bandwidth is None else squares.new_tensor(bandwidth)
            widths.append(width)
            values.append(-squares / width)
        logs = torch.stack(values)
        whole = logs.sum(0).exp() if self.product else logs.exp().sum(0)
        repulsion = []
        for part, width, own, leaf in zip(parts, widths, logs, leaves, strict=True):
            slope = 2 / width * (whole if self.product else own.exp())
            repulsion.append((slope.sum(-1, keepdim=True) * part - slope @ part).view_as(leaf))
        return whole, pytree.tree_unflatten(repulsion, structure)


class SVGD:
    r"""Move particles towards a distribution, step by step from outside.

    .. math:: x_i \leftarrow x_i + \epsilon\,\phi_i, \qquad \phi_i = \frac1m \sum_j \big( k(x_j, x_i)\,
        \nabla_{x_j} \log p(x_j) + \nabla_{x_j} k(x_j, x_i) \big)

    where an optimizer scales the step. ``state_dict`` holds all that the steps change; what ``score`` draws is its own.

    Args:
        score: ``score(particles, step)`` returns the gradient of the log-density at the particles, nested like them.
            ``step`` counts from 0, for densities that change on the way.
        particles: a floating tensor ``[*batch, m, ...]`` or a nesting of tuples, lists and dicts of them; copied.
        batch_ndim: number of leading dimensions that number independent problems.
        kernel: a :class:`SquaredExponential` (the default, with medians for bandwidths), or any function of two single
            particles to a number, whose derivative is taken.
        lr: step size of the optimizer, > 0, for all parts or one for each (a nesting like the particles').
        steps: at least 0.
        optimizer: ``"rmsprop"``, ``"adam"``, ``"adagrad"`` or ``"sgd"``; each scales the coordinates of every particle
            by itself but for ``"sgd"``.

    Raises:
        TypeError: a score or a kernel that cannot be called, particles that are no floating tensors.
        ValueError: no particles, parts with different leading dimensions, options out of range.

    References:
        Liu, Wang (2016), Stein Variational Gradient Descent, algorithm 1.
    """

    def __init__(
        self,
        score: Callable[[Any, int], Any],
        particles: Any,
        *,
        batch_ndim: int = 0,
        kernel: SquaredExponential | Callable[[Any, Any], Tensor] | None = None,
        lr: Any = 5e-3,
        steps: int = 1000,
        optimizer: str = "rmsprop",
    ) -> None:
        check_callable("score", score)
        if kernel is not None:
            check_callable("kernel", kernel)
        check_integer("batch_ndim", batch_ndim, 0)
        check_choice("optimizer", optimizer, list(_OPTIMIZERS))
        leaves, self._structure = pytree.tree_flatten(particles)
        if not leaves:
            raise ValueError("particles must be at least one tensor")
        for leaf in leaves:
            check_floating("particles", leaf)
            check_finite("particles", leaf)
            if leaf.ndim <= batch_ndim or leaf.shape[: batch_ndim + 1] != leaves[0].shape[: batch_ndim + 1]:
                raise ValueError(
                    f"particles must have the same {batch_ndim + 1} leading dimensions in every part, got "
                    f"{[tuple(part.shape) for part in leaves]}"
                )
        self._batch_ndim, self._count = batch_ndim, leaves[0].shape[batch_ndim]
        check_integer("the number of particles", self._count, 1)
        self.steps, self.taken = check_integer("steps", steps, 0), 0
        rates = _for_each("lr", lr, len(leaves))
        self._score = score
        self._kernel = SquaredExponential() if kernel is None else kernel
        self._leaves = [leaf.detach().clone(memory_format=torch.contiguous_format) for leaf in leaves]
        self._optimizer = _OPTIMIZERS[optimizer](
            [{"params": [leaf], "lr": rate} for leaf, rate in zip(self._leaves, rates, strict=True)]
        )
        self._updates: list[Tensor] = []

    @property
    def particles(self) -> Any:
        """The particles of the moment, copied."""
        return pytree.tree_unflatten([leaf.clone() for leaf in self._leaves], self._structure)

    @property
    def finished(self) -> bool:
        """Whether all steps were taken."""
        return self.taken >= self.steps

    def step(self) -> None:
        """Take a step; nothing happens once all were taken.

        Raises:
            ConvergenceError: the direction is not finite; it carries the particles.
            ValueError: the score is not nested like the particles.
        """
        if self.finished:
            return
        with torch.no_grad():
            given = pytree.tree_unflatten([leaf.clone() for leaf in self._leaves], self._structure)
            with torch.enable_grad():
                score = self._score(given, self.taken)
            scores, structure = pytree.tree_flatten(score)
            shapes = [tuple(leaf.shape) for leaf in self._leaves]
            if structure != self._structure or [tuple(s.shape) for s in scores] != shapes:
                raise ValueError(f"score must return tensors of shapes {shapes} nested like the particles")
            if isinstance(self._kernel, SquaredExponential):
                values, repulsion = self._kernel(given, self._batch_ndim)
            else:
                values, repulsion = _of_pairs(self._kernel, given, self._batch_ndim)
            flat = self._batch_ndim + 1
            squares, size = torch.zeros(values.shape[:-2], dtype=values.dtype, device=values.device), 0
            for leaf, slope, away in zip(self._leaves, scores, pytree.tree_leaves(repulsion), strict=True):
                rows = slope.detach().reshape(*slope.shape[:flat], -1)
                phi = (values.mT @ rows).view_as(leaf).add(away).div(self._count)
                leaf.grad = -phi
                squares = squares + phi.reshape(*squares.shape, -1).square().sum(-1)
                size += math.prod(phi.shape[self._batch_ndim :])
            update = (squares / size).sqrt()
            if not bool(update.isfinite().all()):
                raise ConvergenceError(
                    f"the direction of the particles is not finite at step {self.taken}; lower lr", self.particles
                )
            self._optimizer.step()
            self._optimizer.zero_grad()
            self._updates.append(update)
        self.taken += 1

    def run(self) -> Particles:
        """Take all steps that are left and return the particles."""
        while not self.finished:
            self.step()
        return self.result()

    def result(self) -> Particles:
        """Return the particles of the moment and their history."""
        return Particles(self.particles, {"update": torch.stack(self._updates)} if self._updates else {})

    def state_dict(self) -> dict[str, Any]:
        """Return all that the steps change: particles, optimizer, history."""
        return {
            "taken": self.taken,
            "particles": [leaf.clone() for leaf in self._leaves],
            "optimizer": self._optimizer.state_dict(),
            "updates": list(self._updates),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of particles of the same shapes and options.

        Raises:
            ValueError: the state is of other particles.
        """
        shapes = [leaf.shape for leaf in self._leaves]
        if [leaf.shape for leaf in state["particles"]] != shapes:
            raise ValueError(f"state must be of particles with shapes {[tuple(shape) for shape in shapes]}")
        with torch.no_grad():
            for leaf, kept in zip(self._leaves, state["particles"], strict=True):
                leaf.copy_(kept)
        self._optimizer.load_state_dict(state["optimizer"])
        self._updates = list(state["updates"])
        self.taken = int(state["taken"])


def svgd(score: Callable[[Any, int], Any], particles: Any, **options: Any) -> Particles:
    """Move particles towards a distribution and return where they end; arguments and errors of :class:`SVGD`.

    Args:
        score: ``score(particles, step)``, the gradient of the log-density, nested like the particles.
        particles: ``[*batch, m, ...]``, or a nesting of such tensors.
        options: of :class:`SVGD`.

    Returns:
        :class:`Particles`.

    Raises:
        ConvergenceError: a direction is not finite.

    Example:
        >>> start = torch.linspace(-1, 1, 20).unsqueeze(-1)
        >>> found = svgd(lambda x, step: 3 - x, start, lr=0.1, steps=300).particles
        >>> round(found.mean().item(), 1), round(found.var().item(), 1)
        (3.0, 0.9)

    References:
        Liu, Wang (2016), Stein Variational Gradient Descent, algorithm 1.
    """
    return SVGD(score, particles, **options).run()


def _for_each(name: str, value: Any, count: int) -> list[float]:
    """Numbers for all parts: the same, or one for each."""
    numbers = []
    for given in pytree.tree_leaves(value):
        check_scalar(name, given)
        numbers.append(float(given))
    if not isinstance(value, list | tuple | dict):
        numbers = numbers * count
    if len(numbers) != count:
        raise ValueError(f"{name} must be one number or one for each of {count} parts, got {len(numbers)}")
    return numbers


def _squared_distances(rows: Tensor) -> Tensor:
    """``[*batch, m, m]`` of ``[*batch, m, size]``; centred, since products of large numbers cancel."""
    rows = rows - rows.mean(-2, keepdim=True)
    squares = rows.square().sum(-1)
    distances = (squares.unsqueeze(-1) + squares.unsqueeze(-2) - 2 * rows @ rows.mT).clamp(min=0)
    return distances * (1 - torch.eye(rows.shape[-2], dtype=rows.dtype, device=rows.device))


def _median_bandwidth(squares: Tensor) -> Tensor:
    count = squares.shape[-1]
    if count == 1:
        return torch.ones_like(squares)
    i, j = torch.triu_indices(count, count, 1, device=squares.device)
    median = squares[..., i, j].median(-1).values[..., None, None] / math.log(count + 1)
    return torch.where(median > 0, median, 1.0)


def _of_pairs(kernel: Callable[[Any, Any], Tensor], particles: Any, batch_ndim: int) -> tuple[Tensor, Any]:
    """Values of any kernel at all pairs ``(j, i)``, and the sum over ``j`` of its derivative by ``x_j``."""

    def both(other: Any, own: Any) -> tuple[Any, Tensor]:
        slope, value = torch.func.grad_and_value(kernel)(other, own)
        return slope, value

    pairs = torch.func.vmap(torch.func.vmap(both, (0, None)), (None, 0))  # [i, j]
    for _ in range(batch_ndim):
        pairs = torch.func.vmap(pairs)
    slopes, values = pairs(particles, particles)
    return values.mT, pytree.tree_map(lambda slope: slope.sum(batch_ndim + 1), slopes)
