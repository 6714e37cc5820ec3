r"""A network that has learned to assign: from distances to the logits of a matching, with a gradient."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from pullback.core.checks import (
    check_floating,
    check_integer,
    check_positive,
    check_range,
    check_same_dtype,
    check_shape,
)
from pullback.core.shapes import Float, Int, Tensor
from pullback.discrete.softness import widen
from pullback.transport import assignment

__all__ = ["AssignmentProblems", "HungarianNet", "assignment_problems", "fit_hungarian_net", "hungarian_net_loss"]


class AssignmentProblems(NamedTuple):
    """Distances between points of which some are missing, and who is matched with whom.

    Attributes:
        distance: ``[count, size, size]`` Euclidean.
        target: ``[count, size, size]`` 1 at the pairs of the best matching of those that exist, else 0.
        rows: ``[count]`` how many rows exist.
        columns: ``[count]`` how many columns exist.
    """

    distance: Float[Tensor, "count size size"]
    target: Float[Tensor, "count size size"]
    rows: Int[Tensor, "count"]
    columns: Int[Tensor, "count"]


class HungarianNet(nn.Module):
    r"""Logits of the best matching: a recurrent network over the rows, attention among them, a linear map.

    .. math::
        h = \mathrm{GRU}(\min(D, \mathit{far})), \qquad
        a = \mathrm{softmax}(h W_q (h W_k)^T)\, h W_v, \qquad
        \mathrm{logits} = \tanh(a) W_o + b

    ``sigmoid(logits)`` is what it holds for the matrix of the assignment; rows and columns that do not exist are far
    from all. It is trained once (:func:`fit_hungarian_net`), frozen, and then lets a gradient through.

    Args:
        size: n, rows and columns of a problem, >= 1.
        hidden: width of each direction, >= 1.
        bidirectional: read the rows in both directions. ``False`` is the network of the paper, in which a row knows of
            later ones by attention alone: it needs several hundred times as many steps of training.
        far: distances beyond are all the same, > 0: unit vectors are at most 2 apart.
        generator: of the initial weights; torch's own by default.

    Raises:
        TypeError: a size is no integer.
        ValueError: a size is < 1, or ``far`` not positive.

    Example:
        >>> HungarianNet(2)(torch.zeros(5, 2, 2)).shape
        torch.Size([5, 2, 2])

    References:
        Adavanne, Politis, Virtanen (2021), Differentiable tracking-based training of deep learning sound source
        localizers, section 2.1.
    """

    def __init__(
        self,
        size: int,
        hidden: int = 64,
        *,
        bidirectional: bool = True,
        far: float = 4.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.size = check_integer("size", size, 1)
        check_integer("hidden", hidden, 1)
        check_positive("far", far)
        self.far = far
        self.directions = nn.ModuleList(_Recurrence(size, hidden) for _ in range(1 + bidirectional))
        width = hidden * len(self.directions)
        self.attention, self.output = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, size)
        if generator is not None:
            for parameter in self.parameters():
                nn.init.uniform_(parameter, -(hidden**-0.5), hidden**-0.5, generator=generator)

    def forward(self, distance: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
        """Return the logits of distances (>= 0)."""
        check_shape("distance", check_floating("distance", distance), (self.size, self.size))
        rows = distance.clamp(max=self.far)
        states = [self.directions[0](rows)]
        if len(self.directions) > 1:
            states.append(self.directions[1](rows.flip(-2)).flip(-2))
        queries, keys, values = self.attention(torch.cat(states, -1)).chunk(3, -1)
        logits: Tensor = self.output(torch.tanh(torch.softmax(queries @ keys.mT, -1) @ values))
        return logits


class _Recurrence(nn.Module):
    """A gated recurrent unit out of plain operations: torch's own has no forward mode, ``vmap`` or compiled form."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.inputs, self.state = nn.Linear(inputs, 3 * hidden), nn.Linear(hidden, 3 * hidden)

    def forward(self, rows: Tensor) -> Tensor:
        given = self.inputs(rows)
        state, states = torch.zeros_like(given[..., 0, : given.shape[-1] // 3]), []
        for row in given.unbind(-2):
            reset, update, new = row.chunk(3, -1)
            kept_reset, kept_update, kept = self.state(state).chunk(3, -1)
            candidate = torch.tanh(new + torch.sigmoid(reset + kept_reset) * kept)
            state = torch.lerp(candidate, state, torch.sigmoid(update + kept_update))
            states.append(state)
        return torch.stack(states, -2)


def hungarian_net_loss(logits: Float[Tensor, "*batch n m"], target: Float[Tensor, "*batch n m"]) -> Float[Tensor, ""]:
    r"""Three binary cross entropies: of the matrix, of who among the rows is matched, of who among the columns.

    .. math:: H(L, T) + H(\max_j L_{ij}, \textstyle\sum_j T_{ij}) + H(\max_i L_{ij}, \textstyle\sum_i T_{ij})

    Args:
        logits: ``[*batch, n, m]``.
        target: ``[*batch, n, m]``, 0 or 1, at most one 1 a row and column.

    Returns:
        The sum over the entries of a problem, the mean over problems; 0 of none, NaN of infinite logits.

    Raises:
        TypeError: an argument is no floating tensor, or the dtypes differ.
        ValueError: the shapes differ, or a problem has no rows or columns.

    Example:
        >>> hungarian_net_loss(torch.zeros(2, 2), torch.eye(2))  # 8 log 2
        tensor(5.5452)

    References:
        Adavanne, Politis, Virtanen (2021), section 2.1.
    """
    check_same_dtype(logits=check_floating("logits", logits), target=check_floating("target", target))
    if logits.shape != target.shape or logits.ndim < 2 or 0 in logits.shape[-2:]:
        raise ValueError(
            "logits and target must have one shape (..., n, m), n and m >= 1, "
            f"got {tuple(logits.shape)} and {tuple(target.shape)}"
        )
    x, y = widen(logits), widen(target)
    pairs = ((x, y), (x.amax(-1), y.sum(-1)), (x.amax(-2), y.sum(-2)))
    entropies = [nn.functional.binary_cross_entropy_with_logits(a, b, reduction="sum") for a, b in pairs]
    problems = max(1, logits.shape[:-2].numel())
    return (torch.stack(entropies).sum() / problems).to(logits.dtype)


def assignment_problems(
    count: int, size: int, *, near: float = 0.0, generator: torch.Generator | None = None
) -> AssignmentProblems:
    r"""Draw what a localiser of sources meets: up to ``size`` predicted directions against up to ``size`` true ones.

    Directions lie on grids of azimuth and elevation of 1 to 30 degrees. How many exist on the side that has fewer is
    drawn evenly from 0..size, then how many on the other. Those that are missing are the point (10, 10, 10), or
    anywhere in [-100, 100]^3 outside of the unit cube; which row and column a direction has is random.

    Args:
        count: problems, >= 1.
        size: n, >= 1.
        near: in [0, 1], the probability of a problem in which predictions lie around true directions, off by up to 0.5
            (evenly drawn for each problem): what a localiser that has learned something says. Among random directions
            such problems are rare, and a network that has not seen them fails there.
        generator: of the draws.

    Returns:
        :class:`AssignmentProblems`.

    Raises:
        TypeError: a count is no integer.
        ValueError: an argument is out of range.

    Example:
        >>> problems = assignment_problems(4, 2)
        >>> problems.distance.shape, bool((problems.target.sum((-2, -1)) <= 2).all())
        (torch.Size([4, 2, 2]), True)

    References:
        Adavanne, Politis, Virtanen (2021), section 3.1 (``near=0``).
    """
    check_integer("count", count, 1)
    check_integer("size", size, 1)
    check_range("near", near, 0, 1)
    device = torch.device("cpu") if generator is None else generator.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=device)

    cases = torch.cartesian_prod(torch.arange(size + 1), torch.arange(size + 1))
    fewer = cases.amin(-1)
    chosen = torch.multinomial(1 / fewer.bincount()[fewer].to(device).float(), count, True, generator=generator)
    existing = cases.to(device)[chosen]
    points = _on_grid(count, size, generator, device)
    wrong = torch.randn((count, size, 3), generator=generator, device=device) * (0.5 * uniform(count, 1, 1))
    close = uniform(count, 1, 1) < near
    points[:, 0] = torch.where(close, nn.functional.normalize(points[:, 1] + wrong, dim=-1), points[:, 0])
    anywhere = 200 * uniform(*points.shape) - 100
    anywhere = torch.where(anywhere.abs() <= 1, 10.0, anywhere)
    missing = torch.where(uniform(count, 1, 1, 1) < 0.5, 10.0, anywhere)
    exists = torch.arange(size, device=device) < existing[..., None]
    points = torch.where(exists[..., None], points, missing)
    order = uniform(count, 2, size).argsort(-1)
    points, exists = points.gather(2, order[..., None].expand_as(points)), exists.gather(2, order)
    distance = torch.linalg.vector_norm(points[:, 0, :, None] - points[:, 1, None], dim=-1)
    both = exists[:, 0, :, None] & exists[:, 1, None]
    found = assignment(torch.where(both, distance, 100.0 * size))
    target = nn.functional.one_hot(found.columns, size).to(distance) * both
    return AssignmentProblems(distance, target, *existing.unbind(-1))


def _on_grid(count: int, size: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Unit vectors ``[count, 2, size, 3]``, those of a problem on one grid of angles."""
    steps = torch.tensor([1, 2, 3, 4, 5, 10, 15, 20, 30], device=device)
    steps = steps[torch.randint(len(steps), (count, 1, 1), generator=generator, device=device)]
    azimuth, polar = (
        ((torch.rand(count, 2, size, generator=generator, device=device) * cells).floor() * steps).deg2rad()
        for cells in (360 // steps, 180 // steps + 1)
    )
    return torch.stack([azimuth.cos() * polar.sin(), azimuth.sin() * polar.sin(), polar.cos()], -1)


def fit_hungarian_net(
    size: int,
    *,
    hidden: int = 64,
    steps: int = 1000,
    batch: int = 256,
    lr: float = 1e-2,
    near: float = 0.5,
    generator: torch.Generator | None = None,
) -> HungarianNet:
    """Train a :class:`HungarianNet` on :func:`assignment_problems` and freeze it.

    Adam with a step size that falls to 0 linearly.

    Args:
        size: n, >= 1.
        hidden: its width, >= 1.
        steps: of Adam, >= 1.
        batch: problems a step, >= 1.
        lr: first step size, > 0.
        near: in [0, 1], the share of problems with predictions around the truth.
        generator: of the initial weights and of the problems.

    Returns:
        The network, whose parameters want no gradient. With two rows and columns it has about 97 % of the problems
        right after 1 000 steps, 8 seconds.

    Raises:
        TypeError: a count is no integer.
        ValueError: an argument is out of range.

    Example:
        >>> net = fit_hungarian_net(2, hidden=8, steps=2, generator=torch.Generator().manual_seed(0))
        >>> net(torch.zeros(2, 2)).requires_grad
        False

    References:
        Adavanne, Politis, Virtanen (2021), section 3.1.
    """
    check_integer("steps", steps, 1)
    check_integer("batch", batch, 1)
    check_positive("lr", lr)
    net = HungarianNet(size, hidden, generator=generator)
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1e-3, steps)
    for _ in range(steps):
        problems = assignment_problems(batch, size, near=near, generator=generator)
        loss = hungarian_net_loss(net(problems.distance), problems.target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.requires_grad_(False)
