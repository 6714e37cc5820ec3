"""Losses that keep the persistence of one set of distances in another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pullback.core.checks import check_choice, check_same_dtype
from pullback.core.random import drawing_device
from pullback.core.shapes import Float
from pullback.topology.diagrams import diagram_wasserstein
from pullback.topology.persistence import check_degrees, persistence
from pullback.topology.rips import check_distances, entries, tree_pairs

__all__ = ["topological_signature_loss"]


def topological_signature_loss(
    distances_a: Float[Tensor, "*batch n n"],
    distances_b: Float[Tensor, "*batch n n"],
    *,
    match: str = "symmetric",
    degrees: Sequence[int] = (0,),
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*batch"]:
    r"""Return how far two sets of distances are apart at the pairs of points that carry their persistence diagrams.

    .. math:: L = \tfrac12 \lVert A[\pi^A] - B[\pi^A] \rVert^2 + \tfrac12 \lVert B[\pi^B] - A[\pi^B] \rVert^2

    with :math:`\pi` the ``n - 1`` edges of a minimum spanning tree for degree 0 (:func:`rips_pairs`), and, for higher
    degrees, lengths of bars, :math:`A[\pi]` = the difference of the distances at death and at birth. Pairs are
    constant in a cell of orders of the distances, so where all distances differ, the gradient is that of the gathered
    entries. A bar is compared at its own pair of points in both spaces, which is more than to compare diagrams.

    Args:
        distances_a, distances_b: ``[*batch, n, n]`` as :func:`rips_pairs` takes them; detach what gets no gradient.
        match: ``"symmetric"`` as above; ``"random"`` the control of the paper, degree 0 alone: the same loss at ``n -
            1`` pairs of different points drawn at random, for each of the two terms (a stress of distances);
            ``"diagram"``: half the squared Wasserstein distance of the diagrams, which forgets which points they
            belong to.
        degrees: of homology, added up.
        generator: of ``"random"``.

    Returns:
        ``[*batch]`` in squared units. The paper divides by ``n``.

    Raises:
        TypeError: the distances are not floating or of different dtypes.
        ValueError: the shapes differ, the matrices are no distances, the degrees no set of degrees, or ``"random"``
            with a degree above 0.

    Example:
        >>> line = torch.tensor([0.0, 1.0, 5.0])
        >>> a = (line[:, None] - line).abs()
        >>> b = (2 * a).requires_grad_()
        >>> loss = topological_signature_loss(a, b)
        >>> loss.backward()
        >>> loss.item(), b.grad[0, 1].item(), b.grad[1, 2].item(), b.grad[0, 2].abs().item()
        (17.0, 2.0, 8.0, 0.0)

    References:
        Moor, Horn, Rieck, Borgwardt (2020), Topological autoencoders, equations 1 to 3.
    """
    check_choice("match", match, ("symmetric", "random", "diagram"))
    wanted = check_degrees(degrees)
    check_distances("distances_a", distances_a)
    check_distances("distances_b", distances_b)
    check_same_dtype(distances_a=distances_a, distances_b=distances_b)
    if distances_a.shape != distances_b.shape:
        shapes = f"{tuple(distances_a.shape)} and {tuple(distances_b.shape)}"
        raise ValueError(f"distances_a and distances_b must have the same shape, got {shapes}")
    if match == "random" and wanted != [0]:
        raise ValueError(f"degrees must be (0,) for match 'random', got {tuple(degrees)}")
    wide = torch.promote_types(distances_a.dtype, torch.float32)
    a, b = distances_a.to(wide), distances_b.to(wide)
    total = a.new_zeros(a.shape[:-2])
    for degree in wanted:
        if match == "diagram":
            (of_a,), (of_b,) = (persistence(d, degrees=(degree,)) for d in (a, b))
            total = total + 0.5 * diagram_wasserstein(of_a, of_b).square()
        elif degree == 0:
            pairs = [_random_pairs(own, generator) if match == "random" else tree_pairs(own) for own in (a, b)]
            total = total + 0.5 * entries(a - b, torch.cat(pairs, -2)).square().sum(-1)
        else:
            total = total + _of_cycles(a, b, degree)
    return total.to(distances_a.dtype)


def _random_pairs(like: Tensor, generator: torch.Generator | None) -> Tensor:
    *batch, n, _ = like.shape
    device = drawing_device(generator, like)
    first = torch.randint(n, (*batch, n - 1), generator=generator, device=device)
    second = (first + torch.randint(1, n, (*batch, n - 1), generator=generator, device=device)) % n
    return torch.stack([first, second], -1).to(like.device)


def _of_cycles(a: Tensor, b: Tensor, degree: int) -> Tensor:
    """The same for bars of higher degree: lengths of both spaces at the simplices of one."""
    batch, n = a.shape[:-2], a.shape[-1]
    flat_a, flat_b = (d.reshape(-1, n, n) for d in (a, b))
    total = flat_a.new_zeros(len(flat_a))
    for own, other in ((flat_a, flat_b), (flat_b, flat_a)):
        (bars,) = persistence(own.detach(), degrees=(degree,))
        lengths = []
        ends = [_longest(own, bars.batch, simplices) for simplices in (bars.birth_simplex, bars.death_simplex)]
        for distances in (own, other):
            birth, death = (distances[bars.batch, pair[:, 0], pair[:, 1]] for pair in ends)
            lengths.append(death - birth)
        total = total.index_add(0, bars.batch, 0.5 * (lengths[0] - lengths[1]).square())
    return total.view(batch)


def _longest(distances: Tensor, batch: Tensor, simplices: Tensor) -> Tensor:
    """The longest edge ``[m, 2]`` of each simplex."""
    sides = torch.combinations(torch.arange(simplices.shape[1], device=simplices.device))
    edges = simplices[:, sides]
    lengths = distances.detach()[batch[:, None], edges[..., 0], edges[..., 1]]
    return edges[torch.arange(len(edges), device=edges.device), lengths.argmax(1)]
