"""From the beliefs of one frame to the points of the next."""

from __future__ import annotations

from collections.abc import Callable

import torch

from pullback.core.checks import (
    check_callable,
    check_finite,
    check_floating,
    check_integer,
    check_range,
    check_same_dtype,
)
from pullback.core.random import drawing_device
from pullback.core.shapes import Float, Tensor
from pullback.core.transforms import can_look
from pullback.uncertainty.messages import Beliefs, check_beliefs
from pullback.uncertainty.resampling import ancestors

__all__ = ["propose_points"]


def propose_points(
    beliefs: Beliefs,
    move: Callable[[Tensor], Tensor],
    *,
    kept: float,
    low: Float[Tensor, "..."],
    high: Float[Tensor, "..."],
    count: int | None = None,
    generator: torch.Generator | None = None,
) -> Beliefs:
    r"""Draw the points with which a tracker begins a frame, from what it believed of the last one.

    .. math:: x_i=\mathrm{move}(\mu_{a_i}),\ a\sim w\quad(i\le kM);\qquad x_i\sim U(\text{low},\text{high})\quad(i>kM),

    with ancestors of least variance (``"systematic"`` of :func:`resample`), in random order, so that any part of the
    points stands for all of them. The second kind finds what the first has lost: the published tracker takes
    :math:`k=1-0.8^t` of the first in frame t.

    Args:
        beliefs: points ``[*batch, nodes, M, d]`` and log weights ``[*batch, nodes, M]``.
        move: the motion of a frame, of points ``[*batch, nodes, kept M, d]``; called where there are any.
        kept: k in 0..1; k times the count is rounded.
        low: least places, which broadcast against ``[*batch, nodes, d]``.
        high: largest places, likewise.
        count: of new points of each node; M by default.
        generator: of the draws.

    Returns:
        :class:`Beliefs` of equal weights, constant but for what ``move`` is differentiable in.

    Raises:
        TypeError: ``move`` is not callable, or a tensor is not floating or of another dtype than the points.
        ValueError: a shape does not fit, ``kept`` or ``count`` is out of range, low is above high.

    Example:
        >>> last = Beliefs(torch.tensor([[[0.0], [1.0]]]), torch.tensor([[0.0, -torch.inf]]))
        >>> g = torch.Generator().manual_seed(0)
        >>> box = torch.zeros(1), torch.ones(1)
        >>> propose_points(last, lambda x: x + 5, kept=0.5, low=box[0], high=box[1], generator=g).points.sort(-2).values
        tensor([[[0.4963],
                 [5.0000]]])

    References:
        Opipari, Pavlasek, Chen, Wang, Desingh, Jenkins (2023), DNBP: Differentiable nonparametric belief propagation,
        section 4.
    """
    check_beliefs(beliefs, "beliefs")
    check_callable("move", move)
    check_range("kept", kept, 0.0, 1.0)
    points, log_weights = beliefs.points.detach(), beliefs.log_weights.detach()
    shape, d = points.shape[:-2], points.shape[-1]
    m = points.shape[-2] if count is None else check_integer("count", count, 2)
    corners = {"low": low, "high": high}
    for name, corner in corners.items():
        check_floating(name, corner)
        try:
            fits = torch.broadcast_shapes(corner.shape, (*shape, d)) == (*shape, d)
        except RuntimeError:
            fits = False
        if not fits:
            raise ValueError(f"{name} must broadcast against {(*shape, d)}, got {tuple(corner.shape)}")
        if can_look(corner):
            check_finite(name, corner)
    check_same_dtype(points=points, **corners)
    low, high = (corner.expand(*shape, d).unsqueeze(-2) for corner in (low, high))
    if can_look(low) and not bool((low <= high).all()):
        raise ValueError("low must be at most high")
    device, stay = drawing_device(generator, points), round(kept * m)
    new = low + (high - low) * _uniform((*shape, m - stay, d), points, device, generator)
    if stay:
        chosen = ancestors(log_weights, stay, generator=generator).unsqueeze(-1).expand(*shape, stay, d)
        moved = move(points.gather(-2, chosen))
        if not isinstance(moved, Tensor) or moved.shape != chosen.shape:
            got = tuple(moved.shape) if isinstance(moved, Tensor) else type(moved).__name__
            raise ValueError(f"move must return a tensor of shape {tuple(chosen.shape)}, got {got}")
        new = torch.cat([moved, new], -2)
    order = _uniform((*shape, m), points, device, generator).argsort(-1)
    new = new.gather(-2, order.unsqueeze(-1).expand(*shape, m, d))
    return Beliefs(new, torch.zeros_like(order, dtype=points.dtype).log_softmax(-1))


def _uniform(
    shape: tuple[int, ...], like: Tensor, device: torch.device | str, generator: torch.Generator | None
) -> Tensor:
    return torch.rand(shape, dtype=like.dtype, device=device, generator=generator).to(like.device)
