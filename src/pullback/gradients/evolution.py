"""The gradient of a smoothed loss from function values alone: the reference where derivatives mislead."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pullback.core.checks import check_choice, check_integer, check_tensor
from pullback.gradients.perturbed import check_perturbed, directions, each

__all__ = ["EvolutionGradient", "evolution_gradient"]


@dataclass(frozen=True)
class EvolutionGradient:
    """An estimate of the gradient of a Gaussian-smoothed loss.

    Attributes:
        gradient: name to estimate, shaped like the parameter; with ranks in place of losses a direction without unit.
        standard_error: name to standard error of each element.
        value: estimate of the smoothed loss.
        evaluations: number of calls of the loss.
    """

    gradient: dict[str, Tensor]
    standard_error: dict[str, Tensor]
    value: float
    evaluations: int


def evolution_gradient(
    loss: Callable[..., Tensor],
    parameters: Mapping[str, Tensor],
    *,
    smoothing: float,
    pairs: int,
    generator: torch.Generator,
    chunk: int | None = None,
    data: Any = None,
    shaping: str = "none",
) -> EvolutionGradient:
    r"""Estimate the gradient of ``E_e L(p + s e)``, ``e ~ N(0, I)``, by antithetic pairs.

    ``g = 1 / (2 s K) sum_k (L(p + s e_k) - L(p - s e_k)) e_k``. It needs no derivative of ``L``, is unbiased for the
    smoothed loss, and however chaotic ``L`` is, the variance of one pair, summed over the ``n`` elements of all
    parameters, is at most ``n (range of L)^2 / (4 s^2)``.

    With ``shaping="ranks"`` the ``2 K`` losses are replaced by their ranks, spread evenly over ``[-1/2, 1/2]``: equal
    losses share theirs. The estimate is then the same for every increasing function of the loss, and no outlier rules
    it; it is no longer the gradient, and is for optimizers that look at directions alone, such as Adam.

    Args:
        loss: maps parameters by name, and ``data`` of the pair where there is some, to a scalar.
        parameters: floating tensors by name; left unchanged.
        smoothing: ``s > 0``, in units of the parameters.
        pairs: ``K >= 2``.
        generator: of the directions.
        chunk: how many pairs are evaluated at once, by ``torch.func.vmap``; ``None`` calls ``loss`` for one at a time,
            which takes any Python function. The directions are the same.
        data: any nesting of tensors ``[pairs, ...]``: both losses of a pair see its entry, such as samples of its own,
            so that a stochastic loss is compared on equal samples.
        shaping: "none" or "ranks".

    Returns:
        An :class:`EvolutionGradient`.

    Raises:
        TypeError: ``loss`` is not callable, or a parameter is not floating.
        ValueError: ``smoothing``, ``pairs`` or ``chunk`` is out of range, ``shaping`` is unknown, there are no
            parameters, ``data`` has not ``pairs`` entries, or the loss is not a finite scalar.

    Example:
        >>> p = {"x": torch.tensor([3.0], dtype=torch.float64)}
        >>> estimate = evolution_gradient(lambda q: q["x"].square().sum(), p, smoothing=0.1, pairs=2000, chunk=500,
        ...                               generator=torch.Generator().manual_seed(0))
        >>> bool((estimate.gradient["x"] - 6).abs() < 4 * estimate.standard_error["x"])
        True

    References:
        Nesterov, Spokoiny (2017), Random gradient-free minimization of convex functions.
        Metz, Freeman, Schoenholz, Kachman (2021), Gradients are not all you need, section 4.
        Salimans, Ho, Chen, Sidor, Sutskever (2017), Evolution strategies as a scalable alternative to reinforcement
        learning, sections 2 and 2.1, for pairs and ranks.
    """
    check_perturbed(loss, parameters, smoothing, chunk)
    check_integer("pairs", pairs, 2)
    check_choice("shaping", shaping, ("none", "ranks"))
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    squares = {name: torch.zeros_like(p) for name, p in parameters.items()}

    leaves, structure = pytree.tree_flatten(() if data is None else data)
    for leaf in leaves:
        if check_tensor("data", leaf).shape[:1] != (pairs,):
            raise ValueError(f"data must have shape ({pairs}, ...), one entry for each pair, got {tuple(leaf.shape)}")
    done = 0

    def value(p: dict[str, Tensor], *seen: Tensor) -> Tensor:
        found = loss(p, pytree.tree_unflatten(list(seen), structure)) if leaves else loss(p)
        if found.numel() != 1:
            raise ValueError(f"loss must return a scalar, got shape {tuple(found.shape)}")
        return found.reshape(())

    def add(noise: dict[str, Tensor], slope: Tensor) -> None:
        for name, direction in noise.items():
            estimates = slope.reshape(-1, *(1,) * parameters[name].ndim).to(direction) * direction
            total[name] += estimates.sum(0) / pairs
            squares[name] += estimates.square().sum(0) / pairs

    losses: list[Tensor] = []
    sizes = [min(chunk or 1, pairs - start) for start in range(0, pairs, chunk or 1)]
    states: list[Tensor] = []  # ranks are known after the last loss: the directions are drawn once more
    with torch.no_grad():
        for count in sizes:
            if shaping == "ranks":
                states.append(generator.get_state())
            (noise,) = directions(dict(parameters), count, chunk, generator)
            seen = [leaf[done : done + count] for leaf in leaves]
            done += count
            both = [
                _finite(each(value, chunk, {name: p + side * noise[name] for name, p in parameters.items()}, *seen))
                for side in (smoothing, -smoothing)
            ]
            losses.append(torch.stack(both))
            if shaping == "none":
                add(noise, (both[0] - both[1]) / (2 * smoothing))
        found = torch.cat(losses, 1)
        if shaping == "ranks":
            plus, minus = _centred_ranks(found)
            again = torch.Generator(generator.device)
            for count, state in zip(sizes, states, strict=True):
                (noise,) = directions(dict(parameters), count, chunk, again.set_state(state))
                add(noise, (plus[:count] - minus[:count]) / (2 * smoothing))
                plus, minus = plus[count:], minus[count:]
    error = {name: ((squares[name] - total[name].square()).clamp_min(0) / (pairs - 1)).sqrt() for name in parameters}
    return EvolutionGradient(total, error, float(found.double().mean()), 2 * pairs)


def _centred_ranks(losses: Tensor) -> Tensor:
    """Ranks of all entries from -1/2 to 1/2, in the mean over ties."""
    flat = losses.flatten()
    ordered = flat.sort().values
    lowest, above = (torch.searchsorted(ordered, flat, right=right) for right in (False, True))
    ranks = (lowest + above - 1).to(losses) / 2
    return (ranks / (flat.numel() - 1) - 0.5).view_as(losses)


def _finite(values: Tensor) -> Tensor:
    finite = torch.isfinite(values)
    if not bool(finite.all()):
        raise ValueError(f"loss must be finite at perturbed parameters, got {values[~finite][0].item()}")
    return values
