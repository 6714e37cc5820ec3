"""Bayes filters over the cells of a grid: a belief is moved by kernels, weighed by likelihoods, all in logarithms."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from pullback.core.checks import (
    check_broadcast,
    check_choice,
    check_floating,
    check_integer,
    check_range,
    check_same_dtype,
)
from pullback.core.shapes import Bool, Float, Int, Tensor
from pullback.core.transforms import can_look

__all__ = [
    "FilteredBeliefs",
    "belief_loss",
    "compass_turns",
    "egocentric_kernels",
    "expected_distance",
    "histogram_filter",
    "motion_kernel",
    "shift_belief",
]

_BOUNDARIES = ("absorb", "reflect", "block")


def motion_kernel(*logits: Float[Tensor, "*#batch k k"]) -> Float[Tensor, "*batch k k"]:
    r"""Return a product of experts over displacements, each with its own softmax, as a normalised logarithm.

    .. math:: \log K = \mathrm{log\,softmax}\Bigl(\sum_e \mathrm{log\,softmax}(\mathrm{logits}_e)\Bigr)

    Args:
        logits: each ``[*batch, k, k]``, k odd: displacement (i - k // 2, j - k // 2) in rows and columns.

    Returns:
        ``[*batch, k, k]`` whose exponentials sum to 1.

    Raises:
        TypeError: one is not floating, or the dtypes differ.
        ValueError: there is none, or a kernel is not square and odd.

    Example:
        >>> motion_kernel(torch.zeros(3, 3), torch.zeros(3, 3)).exp()[0]
        tensor([0.1111, 0.1111, 0.1111])
    """
    if not logits:
        raise ValueError("logits must hold at least one kernel, got none")
    total: Tensor | None = None
    for part in logits:
        _check_kernel("logits", part)
        check_same_dtype(logits=logits[0], other=part)
        flat = part.flatten(-2).log_softmax(-1)
        total = flat if total is None else total + flat
    assert total is not None
    return total.log_softmax(-1).unflatten(-1, logits[0].shape[-2:])


def egocentric_kernels(logits: Float[Tensor, "*batch k k"]) -> Float[Tensor, "*batch 4 k k"]:
    """Turn a kernel that looks north into those of a walker who looks north, east, south and west.

    Args:
        logits: ``[*batch, k, k]``, k odd; rows go south, columns east.

    Returns:
        ``[*batch, 4, k, k]``.

    Raises:
        TypeError, ValueError: the kernels are not floating, or not square and odd.

    Example:
        >>> ahead = torch.zeros(3, 3)
        >>> ahead[0, 1] = 1.0
        >>> egocentric_kernels(ahead)[1]
        tensor([[0., 0., 0.],
                [0., 0., 1.],
                [0., 0., 0.]])
    """
    _check_kernel("logits", logits)
    return torch.stack([torch.rot90(logits, -heading, (-2, -1)) for heading in range(4)], -3)


def compass_turns(size: int) -> Int[Tensor, "size size"]:
    """Return the heading after each displacement: where it points, 0 north, 1 east, 2 south, 3 west.

    Args:
        size: k of the kernels, odd.

    Returns:
        ``[size, size]``; a diagonal counts to the heading clockwise of it, standing still as -1: no turn.

    Raises:
        TypeError, ValueError: the size is no odd integer >= 1.

    Example:
        >>> compass_turns(3)
        tensor([[ 0,  0,  1],
                [ 3, -1,  1],
                [ 3,  2,  2]])
    """
    if not check_integer("size", size, 1) % 2:
        raise ValueError(f"size must be odd, got {size}")
    step = torch.arange(size) - size // 2
    south, east = step[:, None].expand(size, size), step.expand(size, size)
    north = -south
    found = torch.full((size, size), -1)
    found[(north > 0) & (east < north) & (east >= -north)] = 0
    found[(east > 0) & (north <= east) & (north > -east)] = 1
    found[(south > 0) & (east <= south) & (east > -south)] = 2
    found[(east < 0) & (north < -east) & (north >= east)] = 3
    return found


def shift_belief(
    log_belief: Float[Tensor, "*#batch headings h w"],
    log_kernel: Float[Tensor, "*#batch headings k k"],
    *,
    local: Float[Tensor, "*#batch h w k k"] | None = None,
    turns: Int[Tensor, "k k"] | None = None,
    boundary: str = "absorb",
    obstacles: Bool[Tensor, "*#batch h w"] | None = None,
) -> Float[Tensor, "*batch headings h w"]:
    r"""Move a belief: :math:`\hat b(s + d) = \sum_d K_h(d \mid s)\, b_h(s)`, where every cell may have its own kernel.

    .. math:: K_h(d \mid s) = \frac{e^{k_h(d) + m_s(d)}}{\sum_{d'} e^{k_h(d') + m_s(d')}}

    The product of a kernel for each heading and one for each cell is never written out: normalisers and arrivals are
    products of matrices. Computed from exponentials after the largest logarithm is taken out; cells less likely than
    the smallest number times the likeliest one come out as that floor.

    Args:
        log_belief: ``[*batch, headings, h, w]`` logarithms; a belief without headings has one.
        log_kernel: ``[*batch, headings, k, k]`` logarithms that sum to 1 over displacements (i - k // 2, j - k // 2)
            in rows and columns, k odd.
        local: ``[*batch, h, w, k, k]`` logarithms m of each cell from which one moves; none by default.
        turns: ``[k, k]`` the heading after a displacement, -1 where it stays; none turn by default.
        boundary: of what leaves the grid: ``"absorb"``: it is lost, and the belief sums to less; ``"reflect"``: it
            comes back as from a mirror at the edge; ``"block"``: it cannot: the kernel is normalised over what is left.
        obstacles: ``[*batch, h, w]`` cells into which ``"block"`` does not move either; staying is always possible.

    Returns:
        ``[*batch, headings, h, w]``.

    Raises:
        TypeError: a tensor is not floating, or the dtypes differ.
        ValueError: the shapes do not fit, an option is unknown, or a kernel does not sum to 1 (not looked at under
            transforms).

    Example:
        >>> right = torch.full((1, 3, 3), -torch.inf)
        >>> right[..., 1, 2] = 0.0
        >>> shift_belief(torch.tensor([[[0.5, 0.25, 0.25]]]).log(), right).exp()
        tensor([[[...e-39, 5.0000e-01, 2.5000e-01]]])

    References:
        Thrun, Burgard, Fox (2005), Probabilistic robotics, table 8.1.
    """
    check_floating("log_belief", log_belief)
    check_same_dtype(log_belief=log_belief, log_kernel=check_floating("log_kernel", log_kernel))
    check_choice("boundary", boundary, _BOUNDARIES)
    k = _check_kernel("log_kernel", log_kernel)
    if log_belief.ndim < 3 or log_kernel.ndim < 3 or log_kernel.shape[-3] != log_belief.shape[-3]:
        raise ValueError(
            "log_belief must be [*batch, headings, h, w] and log_kernel [*batch, headings, k, k], got "
            f"{tuple(log_belief.shape)} and {tuple(log_kernel.shape)}"
        )
    headings, h, w = log_belief.shape[-3:]
    given = {"log_belief": tuple(log_belief.shape[:-3]), "log_kernel": tuple(log_kernel.shape[:-3])}
    if local is not None:
        check_same_dtype(log_belief=log_belief, local=check_floating("local", local))
        if local.ndim < 4 or local.shape[-4:] != (h, w, k, k):
            raise ValueError(f"local must be [*batch, {h}, {w}, {k}, {k}], got {tuple(local.shape)}")
        given["local"] = tuple(local.shape[:-4])
    if obstacles is not None:
        if boundary != "block" or obstacles.shape[-2:] != (h, w):
            raise ValueError(f"obstacles [*batch, {h}, {w}] need boundary='block', got {tuple(obstacles.shape)}")
        given["obstacles"] = tuple(obstacles.shape[:-2])
    if turns is not None and turns.shape != (k, k):
        raise ValueError(f"turns must have shape {(k, k)}, got {tuple(turns.shape)}")
    batch = check_broadcast(**given)
    if can_look(log_kernel) and not bool(((log_kernel.exp().sum((-2, -1)) - 1).abs() < 1e-2).all()):
        raise ValueError("log_kernel must have exponentials that sum to 1 over displacements")
    top = log_belief.detach().amax((-3, -2, -1), keepdim=True)
    top = torch.where(top.isfinite(), top, 0)
    mass = (log_belief - top).exp().flatten(-2).mT  # [*batch, h w, headings]
    own = log_kernel.exp().flatten(-2)  # [*batch, headings, k k]
    arrival, inside = _arrivals(h, w, k, boundary, log_belief.device)
    place = torch.ones_like(inside, dtype=mass.dtype)
    if local is not None:
        each = local.flatten(-2).flatten(-3, -2)  # [*batch, h w, k k]; its size cancels
        place = (each - each.detach().amax(-1, keepdim=True)).exp()
    if boundary == "block":
        free = inside if obstacles is None else inside & ~_hits(obstacles.flatten(-2), arrival, k)
        place = place * free.to(mass)
    tiny = torch.finfo(mass.dtype).tiny
    mass = (mass / (place @ own.mT).clamp_min(tiny)).expand(*batch, h * w, headings)
    cells, every = headings * h * w, torch.arange(k * k, device=mass.device)
    goal = torch.where(inside | (boundary == "reflect"), arrival, cells)  # cells: what is lost
    total = mass.new_zeros(*batch, cells + 1)
    staying = every
    if turns is not None:
        flat = turns.flatten()
        staying = (flat < 0).nonzero()[:, 0]
        moved = (mass @ (own * (flat >= 0).to(own))) * place  # of all headings together
        to = torch.where((goal == cells) | (flat < 0), cells, flat * h * w + goal)
        total = total.index_add(-1, to.flatten(), moved.expand(*batch, *to.shape).flatten(-2))
    moved = mass.mT[..., None] * own[..., None, staying] * place[..., None, :, staying]  # [*batch, headings, h w, d]
    to = torch.arange(headings, device=mass.device)[:, None, None] * h * w + goal[:, staying]
    to = torch.where(goal[:, staying] == cells, cells, to)
    total = total.index_add(-1, to.flatten(), moved.expand(*batch, *to.shape).flatten(-3))
    return total[..., :-1].unflatten(-1, (headings, h, w)).clamp_min(tiny).log() + top


class FilteredBeliefs(NamedTuple):
    """What a filter knows after each step.

    Attributes:
        log_belief: ``[*batch, t, headings, h, w]`` given the likelihoods up to each step; of a smoother, given all.
        log_predicted: the same before the step's likelihood.
        log_evidence: ``[*batch, t]`` by what the belief was divided: the log probability of the step's observation.
    """

    log_belief: Float[Tensor, "*batch t headings h w"]
    log_predicted: Float[Tensor, "*batch t headings h w"]
    log_evidence: Float[Tensor, "*batch t"]


def histogram_filter(
    log_prior: Float[Tensor, "*batch headings h w"],
    log_kernels: Float[Tensor, "*batch t headings k k"],
    log_likelihoods: Float[Tensor, "*batch t #headings h w"],
    *,
    local: Float[Tensor, "*batch h w k k"] | None = None,
    turns: Int[Tensor, "k k"] | None = None,
    boundary: str = "absorb",
    smoother: bool = False,
    truncate: int | None = None,
) -> FilteredBeliefs:
    r"""Run a Bayes filter: :math:`b_t \propto l_t\, \sum_{s'} K_t(\cdot \mid s')\, b_{t-1}(s')`.

    The smoother uses that the derivative of the log evidence in :math:`\log l_t(s)` is the probability of s at time t
    given everything: it is one backward pass.

    Args:
        log_prior: ``[*batch, headings, h, w]`` before the first motion; exponentials sum to 1.
        log_kernels: ``[*batch, t, headings, k, k]`` as for :func:`shift_belief`.
        log_likelihoods: ``[*batch, t, headings or 1, h, w]`` of what is observed after each motion, -inf where it is
            impossible.
        local, turns, boundary: as for :func:`shift_belief`.
        smoother: return beliefs given all observations.
        truncate: cut the gradient through the belief every so many steps.

    Returns:
        Beliefs that sum to 1, predictions, and the evidence of each step, which is not renormalised away.

    Raises:
        TypeError, ValueError: as :func:`shift_belief`; the prior does not sum to 1; the observation of a step is
            impossible, which is named (not looked at under transforms).

    Example:
        >>> stay = torch.zeros(2, 1, 1, 1)
        >>> seen = torch.tensor([[[[0.5, 0.5]]], [[[0.9, 0.1]]]]).log()
        >>> found = histogram_filter(torch.full((1, 1, 2), 0.5).log(), stay, seen)
        >>> found.log_belief[-1].exp(), found.log_evidence.exp()
        (tensor([[[0.9000, 0.1000]]]), tensor([0.5000, 0.5000]))

    References:
        Anderson, Shrivastava, Parikh, Batra, Lee (2019), Chasing ghosts: instruction following as Bayesian state
        tracking, section 3.
    """
    check_floating("log_prior", log_prior)
    check_same_dtype(log_prior=log_prior, log_likelihoods=check_floating("log_likelihoods", log_likelihoods))
    if log_likelihoods.ndim < 4 or log_kernels.ndim < 4 or log_kernels.shape[-4] != log_likelihoods.shape[-4]:
        raise ValueError(
            "log_kernels [*batch, t, headings, k, k] and log_likelihoods [*batch, t, headings, h, w] must have "
            f"as many steps, got {tuple(log_kernels.shape)} and {tuple(log_likelihoods.shape)}"
        )
    if log_likelihoods.shape[-2:] != log_prior.shape[-2:]:
        raise ValueError(
            f"log_likelihoods must have cells {tuple(log_prior.shape[-2:])}, got {tuple(log_likelihoods.shape)}"
        )
    if truncate is not None:
        check_integer("truncate", truncate, 1)
    if can_look(log_prior) and not bool(((log_prior.exp().sum((-3, -2, -1)) - 1).abs() < 1e-2).all()):
        raise ValueError("log_prior must have exponentials that sum to 1")
    if smoother:
        return _smoothed(
            log_prior,
            log_likelihoods,
            {"log_kernels": log_kernels, "local": local, "turns": turns, "boundary": boundary},
        )
    batch = check_broadcast(
        log_prior=tuple(log_prior.shape[:-3]),
        log_kernels=tuple(log_kernels.shape[:-4]),
        log_likelihoods=tuple(log_likelihoods.shape[:-4]),
        local=() if local is None else tuple(local.shape[:-4]),
    )
    belief, found = log_prior.expand(*batch, *log_prior.shape[-3:]), []
    for t in range(log_likelihoods.shape[-4]):
        if truncate is not None and t and t % truncate == 0:
            belief = belief.detach()
        kernel = log_kernels.select(-4, t)
        predicted = shift_belief(belief, kernel, local=local, turns=turns, boundary=boundary)
        joint = predicted + log_likelihoods.select(-4, t)
        evidence = joint.flatten(-3).logsumexp(-1)
        if can_look(evidence) and not bool(evidence.isfinite().all()):
            raise ValueError(f"log_likelihoods must leave a cell possible, those of step {t} leave none")
        belief = joint - evidence[..., None, None, None]
        found.append((belief, predicted, evidence))
    beliefs, predictions, evidences = zip(*found, strict=True)
    return FilteredBeliefs(torch.stack(beliefs, -4), torch.stack(predictions, -4), torch.stack(evidences, -1))


def _smoothed(prior: Tensor, likelihoods: Tensor, motion: dict[str, Any]) -> FilteredBeliefs:
    tensors = (prior, likelihoods, *(value for value in motion.values() if isinstance(value, Tensor)))
    wanted = torch.is_grad_enabled() and any(value.requires_grad for value in tensors)
    with torch.enable_grad():
        each = likelihoods.expand(*likelihoods.shape[:-3], *prior.shape[-3:]) + 0
        each = each if each.requires_grad else each.detach().requires_grad_()
        found = histogram_filter(prior, log_likelihoods=each, **motion)
        (marginal,) = torch.autograd.grad(found.log_evidence.sum(), each, create_graph=wanted)
    smoothed = marginal.clamp_min(torch.finfo(marginal.dtype).tiny).log()
    rest = found if wanted else FilteredBeliefs(*(part.detach() for part in found))
    return rest._replace(log_belief=smoothed)


def belief_loss(
    log_belief: Float[Tensor, "*batch headings h w"],
    pose: Int[Tensor, "*batch 3"],
    *,
    smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    r"""Return the mean divergence :math:`KL(q \,\|\, b)` of beliefs from smoothed true poses.

    Args:
        log_belief: ``[*batch, headings, h, w]``, exponentials sum to 1.
        pose: ``[*batch, 3]`` the true heading, row and column.
        smoothing: share of q that is uniform over all cells, in [0, 1).

    Raises:
        TypeError: ``log_belief`` is not floating or ``pose`` holds no integers.
        ValueError: the shapes do not fit, or a pose lies outside of the grid (not looked at under transforms).

    Example:
        >>> belief_loss(torch.full((1, 2, 2), 0.25).log(), torch.tensor([0, 1, 1]))
        tensor(1.3863)
    """
    check_floating("log_belief", log_belief)
    check_range("smoothing", smoothing, 0, 1 - 1e-9)
    if pose.is_floating_point():
        raise TypeError(f"pose must hold integers, got {pose.dtype}")
    if log_belief.ndim < 3 or pose.shape != (*log_belief.shape[:-3], 3):
        raise ValueError(f"pose must have shape {(*log_belief.shape[:-3], 3)}, got {tuple(pose.shape)}")
    headings, h, w = log_belief.shape[-3:]
    if can_look(pose) and not bool(((pose >= 0) & (pose < torch.tensor([headings, h, w], device=pose.device))).all()):
        raise ValueError(f"pose must lie in {headings} headings, {h} rows and {w} columns")
    flat = log_belief.flatten(-3)
    index = (pose[..., 0] * h + pose[..., 1]) * w + pose[..., 2]
    cells = flat.shape[-1]
    at = flat.gather(-1, index[..., None])[..., 0]
    rest = smoothing / cells
    peak = 1 - smoothing + rest
    entropy = peak * math.log(peak) + (cells - 1) * (rest * math.log(rest) if rest else 0.0)
    cross = (1 - smoothing) * at
    if smoothing:
        cross = cross + smoothing * flat.mean(-1)
    return (entropy - cross).mean()


def expected_distance(
    log_belief: Float[Tensor, "*batch headings h w"], goal: Float[Tensor, "*batch 2"], *, size: float = 1.0
) -> Float[Tensor, "*batch"]:
    """Return the mean distance of a belief from a place.

    Args:
        log_belief: ``[*batch, headings, h, w]``, exponentials sum to 1.
        goal: ``[*batch, 2]`` row and column, which may lie between cells.
        size: of a cell, in the unit of the result.

    Raises:
        TypeError, ValueError: the tensors do not fit.

    Example:
        >>> expected_distance(torch.tensor([[[0.5, 0.5]]]).log(), torch.tensor([0.0, 0.0]))
        tensor(0.5000)
    """
    check_same_dtype(log_belief=check_floating("log_belief", log_belief), goal=check_floating("goal", goal))
    if log_belief.ndim < 3 or goal.shape != (*log_belief.shape[:-3], 2):
        raise ValueError(f"goal must have shape {(*log_belief.shape[:-3], 2)}, got {tuple(goal.shape)}")
    if can_look(log_belief) and not bool(((log_belief.exp().sum((-3, -2, -1)) - 1).abs() < 1e-2).all()):
        raise ValueError("log_belief must have exponentials that sum to 1")
    h, w = log_belief.shape[-2:]
    rows = torch.arange(h, dtype=goal.dtype, device=goal.device) - goal[..., :1]
    columns = torch.arange(w, dtype=goal.dtype, device=goal.device) - goal[..., 1:]
    distance = torch.linalg.vector_norm(
        torch.stack(torch.broadcast_tensors(rows[..., :, None], columns[..., None, :])), dim=0
    )
    return size * (log_belief.exp().sum(-3) * distance).sum((-2, -1))


def _check_kernel(name: str, kernel: Tensor) -> int:
    if check_floating(name, kernel).ndim < 2 or kernel.shape[-1] != kernel.shape[-2] or not kernel.shape[-1] % 2:
        raise ValueError(f"{name} must have square odd kernels [..., k, k], got {tuple(kernel.shape)}")
    return kernel.shape[-1]


def _arrivals(h: int, w: int, k: int, boundary: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Number of the cell that each displacement reaches, mirrored at the edges, and whether it was in the grid."""
    rows, columns = (torch.arange(n, device=device) for n in (h, w))
    step = torch.arange(k, device=device) - k // 2
    if boundary == "reflect" and k // 2 > min(h, w):
        raise ValueError(f"boundary='reflect' needs at least {k // 2} cells a side, got {h} x {w}")
    row = (rows[:, None, None, None] + step[:, None]).expand(h, w, k, k)
    column = (columns[:, None, None] + step).expand(h, w, k, k)
    inside = (row >= 0) & (row < h) & (column >= 0) & (column < w)
    row, column = (
        torch.where(x < 0, -1 - x, torch.where(x >= n, 2 * n - 1 - x, x)).clamp(0, n - 1)
        for x, n in ((row, h), (column, w))
    )
    return (row * w + column).view(h * w, k * k), inside.view(h * w, k * k)


def _hits(obstacles: Tensor, arrival: Tensor, k: int) -> Tensor:
    """Whether a displacement ends in an obstacle; staying never does."""
    return obstacles[..., arrival] & (torch.arange(k * k, device=arrival.device) != k * k // 2)
