r"""Risk of a decision: the worst law near an estimated one, and the mean of the worst outcomes.

Of all laws q with ``KL(p, q) <= r`` the worst for costs c is ``q_i = p_i / ((alpha - c_i) H)``, with
``H = sum_i p_i / (alpha - c_i)`` and the one number ``alpha > max c`` at which ``KL(p, q) = r``. It falls in alpha, so
Newton steps inside a bracket find it; where even ``alpha = max c`` leaves some of r, the worst outcome takes the rest.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from pullback.core.checks import check_broadcast, check_dim, check_floating, check_same_dtype
from pullback.core.shapes import Float, Tensor
from pullback.core.transforms import can_look
from pullback.implicit.arguments import broadcast, positive
from pullback.implicit.probabilities import check_law

__all__ = ["WorstCase", "cvar", "kl_worst_case"]


class WorstCase(NamedTuple):
    """The worst law in a ball.

    Attributes:
        value: ``[*batch]`` the mean cost under it.
        law: ``[*batch, n]`` its probabilities.
    """

    value: Float[Tensor, "*batch"]
    law: Float[Tensor, "*batch n"]


def kl_worst_case(
    costs: Float[Tensor, "*#batch n"],
    law: Float[Tensor, "*#batch n"],
    *,
    radius: float | Float[Tensor, "..."],
) -> WorstCase:
    r"""Return the law of the largest mean cost among those within ``KL(law, q) <= radius``, and that cost.

    .. math:: V = \max_q \Big\{ \sum_i q_i c_i : \sum_i p_i \log (p_i / q_i) \le r \Big\}
                = \min_{\alpha \ge \max c}\ \alpha - e^{-r} \prod_i (\alpha - c_i)^{p_i}

    Minimised over a decision on which the costs depend it is distributionally robust optimisation; at ``radius=0`` it
    is the mean cost. The gradient of ``value`` in the costs is the worst law (no derivative passes through its search),
    that of ``law`` is implicit. An outcome of probability 0 costs nothing of the radius: the worst of them all gets
    what the radius leaves.

    Args:
        costs: ``[*batch, n]`` finite costs of the outcomes, in any unit.
        law: ``[*batch, n]`` their probabilities, >= 0, of sum one.
        radius: r >= 0 in nats, a number or a tensor that broadcasts against ``[*batch]``. The derivative in it is 0
            at 0, where it is infinite.

    Returns:
        :class:`WorstCase`.

    Raises:
        TypeError: costs or law are no floating tensors or of different dtypes.
        ValueError: shapes do not fit, costs are not finite, the law has negative entries or another sum than one, the
            radius is negative.

    Example:
        >>> costs, law = torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.5])
        >>> worst = kl_worst_case(costs, law, radius=0.5)
        >>> worst.value, worst.law
        (tensor(0.8975), tensor([0.1025, 0.8975]))

    References:
        Van Parys, Esfahani, Kuhn (2021), From data to decisions: distributionally robust optimization is optimal,
        proposition 5. Rychener, Kuhn, Sutter (2023), End-to-end learning for stochastic optimization, section 5.
    """
    for name, value in (("costs", costs), ("law", law)):
        if not check_floating(name, value).ndim or not value.shape[-1]:
            raise ValueError(f"{name} must have a last dimension of at least one outcome, got {tuple(value.shape)}")
    check_same_dtype(costs=costs, law=law)
    if costs.shape[-1] != law.shape[-1]:
        raise ValueError(f"costs and law must have as many outcomes, got {costs.shape[-1]} and {law.shape[-1]}")
    shape = check_broadcast(costs=tuple(costs.shape), law=tuple(law.shape))
    if can_look(costs) and not bool(costs.isfinite().all()):
        raise ValueError("costs must be finite")
    check_law("law", law)
    c, p = costs.double().expand(shape), law.double()
    p = (p / p.sum(-1, keepdim=True)).expand(shape)
    r = positive("radius", radius, c, shape[:-1], zero=True)[..., None].expand(*shape[:-1], 1)
    # Costs in units of their range, from the largest downwards. That unit is a constant: any gives the same result.
    origin = c.detach().amax(-1, keepdim=True)
    unit = origin - c.detach().amin(-1, keepdim=True)
    unit = torch.where(unit > 0, unit, 1.0)
    x = (c - origin) / unit
    top = x.amax(-1, keepdim=True)
    gap = top - x
    far = torch.where(r == 0, 1.0, r)
    t, edge, flat = _search(*(v.detach().contiguous() for v in (gap, p, far)))
    still, none = edge | flat, flat | (r == 0)
    t = torch.where(still, 1.0, t)  # what is not used has ordinary derivatives
    for _ in range(2):  # with derivatives: a Newton step squares the error of those before it
        level, slope = _excess(t, gap, p, far)
        t = t - torch.where(still, 0.0, level / torch.where(still, 1.0, slope))
    t = torch.where(edge, 0.0, t)
    inner = t + gap
    some = (p > 0) & (inner > 0)
    safe = torch.where(some, inner, 1.0)
    mean = (p * safe.log()).sum(-1, keepdim=True) - far
    large = torch.where(t > 1, t, 1.0)
    # Of two equal forms of alpha - exp(mean), the first does not cancel where alpha is large.
    fall = -large * torch.expm1((p * torch.log1p(gap / large)).sum(-1, keepdim=True) - far)
    value = top + torch.where(t > 1, fall, t - mean.exp())
    q = torch.where(some, p * (mean - safe.log()).exp(), 0.0)
    rest = 1 - q.sum(-1, keepdim=True)
    worst = gap.detach() == 0
    q = q + torch.where(edge, rest, 0.0) * worst / worst.sum(-1, keepdim=True)
    q = torch.where(edge, q, q / torch.where(edge, 1.0, q.sum(-1, keepdim=True)))
    kept = torch.where(flat, p * worst, p)  # without a radius the law, without a root its part on the largest cost
    kept = kept / torch.where(none, kept.sum(-1, keepdim=True), 1.0)
    value = torch.where(none, (kept * x).sum(-1, keepdim=True), value)
    q = torch.where(none, kept, q)
    return WorstCase((origin + unit * value)[..., 0].to(costs.dtype), q.to(costs.dtype))


def cvar(
    losses: Float[Tensor, "*shape"],
    level: float | Float[Tensor, ""],
    *,
    weights: Float[Tensor, "*#shape"] | None = None,
    dim: int = -1,
) -> Float[Tensor, "*rest"]:
    r"""Return the conditional value at risk: the mean of the worst share ``1 - level`` of the losses.

    .. math:: \mathrm{CVaR} = \min_\eta\ \eta + \frac{1}{1 - \mathrm{level}} \sum_i w_i \max(l_i - \eta, 0)

    with weights of sum one, equal by default. At level 0 it is the mean. Where the share ends within a loss, that loss
    counts by its part. Linear in sorted losses: the gradient is each loss's part of the share.

    Args:
        losses: ``[*shape]`` finite.
        level: in [0, 1), a number or a tensor without dimensions.
        weights: probabilities of the losses, >= 0 and of sum one along ``dim``; broadcast against ``losses``.
        dim: along which the losses are.

    Returns:
        ``[*shape]`` without ``dim``.

    Raises:
        IndexError: ``dim`` is out of range.
        TypeError: an argument is no floating tensor, or dtypes differ.
        ValueError: there is no loss or one is not finite; the level is out of range; weights have another sum than
            one or a shape that does not fit.

    Example:
        >>> cvar(torch.tensor([4.0, 1.0, 2.0, 3.0]), 0.5)
        tensor(3.5000)

    References:
        Rockafellar, Uryasev (2000), Optimization of conditional value-at-risk, theorem 1.
    """
    dim = check_dim(check_floating("losses", losses), dim)
    if not losses.ndim or not losses.shape[dim]:
        raise ValueError(f"losses must have at least one entry along dim, got shape {tuple(losses.shape)}")
    if can_look(losses) and not bool(losses.isfinite().all()):
        raise ValueError("losses must be finite")
    wide = losses.double().movedim(dim, -1)
    share = 1 - _level(level, wide)
    ordered = wide.sort(dim=-1, descending=True)
    if weights is None:
        w = torch.full_like(wide, 1 / wide.shape[-1])
    else:
        check_same_dtype(losses=losses, weights=check_floating("weights", weights))
        full = broadcast("weights", weights, wide, tuple(losses.shape)).expand(losses.shape).movedim(dim, -1)
        check_law("weights", full)
        w = full.gather(-1, ordered.indices)
    before = w.cumsum(-1) - w
    part = torch.minimum(w, (share - before).clamp(min=0))  # of the share that each loss fills
    largest = ordered.values[..., :1].detach()
    # Relative to the largest, rounding of the parts' sum does not count.
    return (largest[..., 0] + (part * (ordered.values - largest)).sum(-1) / share).to(losses.dtype)


def _level(level: Any, like: Tensor) -> Tensor:
    value = broadcast("level", level, like, ())
    if can_look(value) and not bool((value >= 0) & (value < 1)):
        raise ValueError(f"level must be in [0, 1), got {value.item()}")
    return value


def _excess(t: Tensor, gap: Tensor, p: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``KL(p, q) - radius`` at ``alpha = max c + t``, and its derivative in t."""
    some = (p > 0) & (t + gap > 0)
    inner = torch.where(some, t + gap, 1.0)
    weight = torch.where(some, p, 0.0) / inner
    first, second = weight.sum(-1, keepdim=True), (weight / inner).sum(-1, keepdim=True)
    # Both sums relative to a large t, so that it does not cancel.
    scale = torch.where(t > 1, t, 1.0)
    logs = torch.where(t > 1, torch.log1p(gap / scale), inner.log())
    logs = (torch.where(some, p, 0.0) * logs).sum(-1, keepdim=True)
    return logs + (first * scale).log() - radius, first - second / first


_LEAST = 1e-60
"""Of t and of probabilities: powers of its inverse, as second derivatives have them, are finite."""


@torch.library.custom_op(
    "pullback::kl_worst_case",
    mutates_args=(),
    schema="(Tensor gap, Tensor p, Tensor radius) -> (Tensor, Tensor, Tensor)",
)
def _search(gap: Tensor, p: Tensor, radius: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the root t without derivatives, where t = 0 leaves some of the radius, and where no t > 0 reaches it.

    In the second case the law is on the largest cost alone, or the radius beyond all numbers: all of it goes there.
    """
    at_worst = torch.where(gap == 0, p, 0.0).sum(-1, keepdim=True)
    zero = torch.zeros_like(radius)
    edge = (at_worst <= _LEAST) & (_excess(zero, gap, p, radius)[0] <= 0)
    flat = ~edge & (_excess(zero + _LEAST, gap, p, radius)[0] <= 0)
    low = zero + math.log(_LEAST)  # of log t
    high = -torch.log(torch.expm1(radius.clamp(max=300)))  # where KL <= log(1 + 1 / t) is the radius
    spread = (p * (gap - (p * gap).sum(-1, keepdim=True)).square()).sum(-1, keepdim=True)
    s = (spread / (2 * radius)).clamp(min=1e-200).log() / 2  # the root for a small radius
    s = torch.minimum(torch.maximum(s, low), high)
    for _ in range(60):
        t = s.exp()
        level, slope = _excess(t, gap, p, radius)
        low, high = torch.where(level > 0, s, low), torch.where(level > 0, high, s)
        newton = s - level / (slope * t)
        new = torch.where((newton > low) & (newton < high), newton, (low + high) / 2)
        done = edge | flat | ((new - s).abs() <= 1e-7)  # Newton steps follow
        s = new
        if bool(done.all()):
            break
    return s.exp(), edge, flat


@_search.register_fake
def _(gap: Tensor, p: Tensor, radius: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    edge = torch.empty_like(radius, dtype=torch.bool)
    return torch.empty_like(radius), edge, torch.empty_like(edge)


@_search.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor) -> Any:
    moved = [
        t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)
        for t, dim in zip(tensors, in_dims, strict=True)
    ]
    return _search(*moved), (0, 0, 0)
