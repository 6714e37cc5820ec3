"""Transport of a part of the mass, exactly: what is too far stays where it is."""

from __future__ import annotations

import torch

from pullback.core.checks import check_broadcast, check_floating
from pullback.core.shapes import Float, Scalar, Tensor
from pullback.core.transforms import can_look
from pullback.transport.exact import ExactTransport, solve_exact
from pullback.transport.masses import check_cost, masses

__all__ = ["partial_transport"]


def partial_transport(
    cost: Float[Tensor, "*#batch n m"],
    a: Float[Tensor, "*#batch n"] | None = None,
    b: Float[Tensor, "*#batch m"] | None = None,
    *,
    mass: Scalar,
) -> ExactTransport:
    r"""Ship a given mass at the least cost: :math:`\min_P\langle P,C\rangle`, :math:`P1\le a`, :math:`P^T1\le b`.

    The total of P is ``mass``. Equal to a plan of all masses with one more row and one more column, of cost 0, which
    take what stays, and may not ship to each other.

    Args:
        cost: ``[*batch, n, m]``; ``inf`` forbids a pair.
        a: ``[*batch, n]`` masses >= 0 of the rows; uniform of sum 1 by default.
        b: ``[*batch, m]`` masses >= 0 of the columns, of any sum.
        mass: what is shipped, > 0 and at most the lesser sum (up to rounding); a number or a tensor without
            dimensions, whose derivative is the price of the last unit.

    Returns:
        :class:`~pullback.transport.ExactTransport`, with a value that is differentiable in costs, masses and ``mass``.
        ``f`` and ``g`` are <= 0 up to one constant: where something stays they are equal to it.

    Raises:
        TypeError: ``cost`` is no floating tensor, or an argument has another dtype.
        ValueError: as :func:`exact_transport`, or ``mass`` is out of range.

    Example:
        >>> cost = torch.tensor([[0.0, 9.0], [1.0, 9.0]])
        >>> found = partial_transport(cost, torch.ones(2), torch.ones(2), mass=1.0)
        >>> found.plan.tolist(), found.value.item()
        ([[1.0, 0.0], [0.0, 0.0]], 0.0)

    References:
        Chapel, Alaya, Gasso (2020), Partial optimal transport with applications on positive-unlabeled learning,
        section 3.1. Caffarelli, McCann (2010), Free boundaries in optimal transport.
    """
    check_cost(cost)
    n, m = cost.shape[-2:]
    if n == 0 or m == 0:
        raise ValueError(f"cost must have at least one row and one column, got shape {tuple(cost.shape)}")
    batches = {name: tuple(x.shape[:-1]) for name, x in (("a", a), ("b", b)) if isinstance(x, Tensor)}
    batch = check_broadcast(cost=tuple(cost.shape[:-2]), **batches)
    words = {"sizes": (n, m), "batch": batch, "like": cost, "what": "cost", "held": False}
    if (a is None) == (b is None):
        supply, demand = masses(a, b, **words)  # type: ignore[arg-type]
    else:  # where only one is given the other still has a sum of its own, 1
        supply, demand = masses(a, None, **words)[0], masses(None, b, **words)[1]  # type: ignore[arg-type]
    sums = [x.sum(-1, keepdim=True) for x in (demand, supply)]
    total = _checked(mass, supply, sums)
    stay = [(x - total).clamp(min=0) for x in sums]
    wide = cost.to(supply.dtype).expand(*batch, n, m)
    stays = torch.nn.functional.pad(wide.new_zeros(m), (0, 1), value=torch.inf).expand(*batch, 1, m + 1)
    padded = torch.cat([torch.nn.functional.pad(wide, (0, 1)), stays], -2)
    found = solve_exact(padded, torch.cat([supply, stay[0]], -1), torch.cat([demand, stay[1]], -1))
    parts = found.plan[..., :n, :m], found.f[..., :n], found.g[..., :m], found.value
    return ExactTransport(*(x.to(cost.dtype) for x in parts))


def _checked(mass: Scalar, supply: Tensor, sums: list[Tensor]) -> Tensor:
    if isinstance(mass, Tensor):
        if check_floating("mass", mass).ndim:
            raise ValueError(f"mass must be a number or a tensor without dimensions, got shape {tuple(mass.shape)}")
    elif isinstance(mass, bool) or not isinstance(mass, int | float):
        raise TypeError(f"mass must be a number, got {type(mass).__name__}")
    total = torch.as_tensor(mass, dtype=supply.dtype, device=supply.device)
    if can_look(total) and all(can_look(x) for x in sums):
        most, wanted = min(float(x.detach().min()) if x.numel() else torch.inf for x in sums), float(total.detach())
        if not 0 < wanted <= most * (1 + 1e-3):
            raise ValueError(f"mass must be > 0 and at most {most:.6g}, the lesser sum, got {wanted}")
    return total
