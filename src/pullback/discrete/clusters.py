"""How many functions a set of data needs at least, and whether what was allocated is what was meant."""

from __future__ import annotations

from typing import NamedTuple

import torch

from pullback.core.checks import check_finite, check_positive, check_tensor
from pullback.core.shapes import Int, Shaped, Tensor
from pullback.transport import assignment

__all__ = ["MappingRank", "Matching", "mapping_rank", "match_clusters"]

_EXACT = 12
"""Up to how many targets of one input the search is exact."""


class MappingRank(NamedTuple):
    """A lower bound of the number of functions.

    Attributes:
        rank: least number of functions that the conflicts ask for.
        exact: whether it is the least; otherwise some input had too many targets to try all groupings.
        conflicts: number of pairs of samples with equal input and targets that differ.
    """

    rank: int
    exact: bool
    conflicts: int


class Matching(NamedTuple):
    """Clusters, named after the classes that they fit best.

    Attributes:
        relabelled: ``[n]`` the class of each sample's cluster; clusters that are left over are ``classes`` and above.
        error: share of the samples whose relabelled cluster is not their class, in [0, 1].
        purity: share of the samples that belong to the most frequent class of their cluster, in [0, 1].
        confusion: ``[clusters, classes]`` counts.
    """

    relabelled: Int[Tensor, "n"]
    error: float
    purity: float
    confusion: Int[Tensor, "clusters classes"]


def mapping_rank(
    x: Shaped[Tensor, "n *features"], y: Shaped[Tensor, "n *targets"], *, tolerance: float = 0.0
) -> MappingRank:
    r"""Return how many functions it takes at least to explain data in which equal inputs have different targets.

    The mapping rank of a set :math:`Z` is the least :math:`R` with functions :math:`f_1..f_R` such that every
    :math:`(x, y) \in Z` has some :math:`f_i(x) = y`. Two samples conflict where their inputs are equal and some entry
    of their targets differs by more than the tolerance; one function cannot serve both. The rank is the number of
    colours that the graph of conflicts needs, the largest over the inputs. Without a tolerance it is the largest number
    of different targets of one input. With one, up to 12 targets of an input are coloured exactly; of more, those that
    conflict with each other are collected greedily, a lower bound.

    Args:
        x: ``[n, *features]``, compared to the bit; floating or integer.
        y: ``[n, *targets]``, floating or integer.
        tolerance: >= 0, in the units of ``y``.

    Returns:
        :class:`MappingRank`; the rank of no samples is 0.

    Raises:
        TypeError: ``x`` or ``y`` is no tensor.
        ValueError: they have different lengths, are NaN or infinite, or ``tolerance`` < 0.

    Example:
        >>> x = torch.tensor([0.0, 1.0, 0.0, 1.0])
        >>> mapping_rank(x, torch.tensor([0.0, 1.0, 2.0, 1.0]))
        MappingRank(rank=2, exact=True, conflicts=1)

    References:
        Zhang et al. (2021), Subjective learning for open-ended data, definition 1.
    """
    if check_tensor("x", x).ndim < 1 or check_tensor("y", y).ndim < 1 or len(x) != len(y):
        raise ValueError(f"x and y must have one length, got shapes {tuple(x.shape)} and {tuple(y.shape)}")
    check_positive("tolerance", tolerance, zero=True)
    for name, value in (("x", x), ("y", y)):
        if value.is_floating_point():
            check_finite(name, value.detach())
    if not len(x):
        return MappingRank(0, True, 0)
    inputs = x.detach().reshape(len(x), -1)
    # Zeros of both signs are one input.
    groups = (inputs + 0).unique(dim=0, return_inverse=True)[1] if inputs.shape[1] else inputs.new_zeros(len(x)).long()
    targets = y.detach().reshape(len(y), -1)
    rank, exact, conflicts = 1, True, 0
    for group in groups.unique().tolist():
        of_input, counts = targets[groups == group].unique(dim=0, return_counts=True)
        if len(of_input) == 1:
            continue
        apart = (of_input[:, None] - of_input[None]).abs().amax(-1) > tolerance
        conflicts += int((counts[:, None] * counts[None])[apart].sum()) // 2
        # Without a tolerance all conflict; with one, more than a dozen are only bounded.
        complete = bool((apart | torch.eye(len(apart), dtype=torch.bool, device=apart.device)).all())
        adjacent = [{j for j, conflict in enumerate(row) if conflict} for row in apart.tolist()]
        if complete:
            needed = len(apart)
        elif len(apart) <= _EXACT:
            needed = _colours(adjacent)
        else:
            needed, exact = _clique(adjacent), False
        rank = max(rank, needed)
    return MappingRank(rank, exact, conflicts)


def match_clusters(choice: Int[Tensor, "n"], truth: Int[Tensor, "n"]) -> Matching:
    """Name clusters after classes, one to one, so that as many samples as possible agree.

    Args:
        choice: ``[n]`` the cluster of each sample, integers >= 0, n >= 1.
        truth: ``[n]`` its class, integers >= 0.

    Returns:
        :class:`Matching`; clusters and classes are as many as the largest integer asks for.

    Raises:
        TypeError: they do not hold integers.
        ValueError: they have different shapes, no entries or negative ones.

    Example:
        >>> found = match_clusters(torch.tensor([2, 2, 0, 0, 0]), torch.tensor([0, 0, 1, 1, 0]))
        >>> found.relabelled.tolist(), found.error
        ([0, 0, 1, 1, 1], 0.2)

    References:
        Kuhn (1955), The Hungarian method for the assignment problem. Zhang et al. (2021), section 5 (SUBJ).
    """
    for name, value in (("choice", choice), ("truth", truth)):
        if check_tensor(name, value).is_floating_point() or value.is_complex() or value.dtype == torch.bool:
            raise TypeError(f"{name} must hold integers, got {value.dtype}")
        if value.ndim != 1 or not len(value) or value.shape != choice.shape:
            raise ValueError(f"choice and truth must have shape (n,), n >= 1, got {choice.shape} and {value.shape}")
        if int(value.min()) < 0:
            raise ValueError(f"{name} must be >= 0, got {int(value.min())}")
    clusters, classes = int(choice.max()) + 1, int(truth.max()) + 1
    confusion = (choice * classes + truth).bincount(minlength=clusters * classes).view(clusters, classes)
    matched = assignment(confusion.double(), maximize=True)
    names = torch.full((clusters,), -1, dtype=torch.int64, device=choice.device)
    names[matched.rows] = matched.columns
    left = names < 0
    names[left] = classes + torch.arange(int(left.sum()), device=choice.device)
    relabelled = names[choice]
    purity = float(confusion.amax(1).sum()) / len(choice)
    return Matching(relabelled, int((relabelled != truth).sum()) / len(choice), purity, confusion)


def _colours(adjacent: list[set[int]]) -> int:
    """The chromatic number, by trying one colour more at a time."""

    def fits(colours: dict[int, int], allowed: int) -> bool:
        if len(colours) == len(adjacent):
            return True
        left = (node for node in range(len(adjacent)) if node not in colours)
        node = max(left, key=lambda n: (len({colours[m] for m in adjacent[n] if m in colours}), len(adjacent[n])))
        taken = {colours[m] for m in adjacent[node] if m in colours}
        # One colour that was not used yet stands for all of them.
        for colour in range(min(allowed, len(set(colours.values())) + 1)):
            if colour not in taken and fits({**colours, node: colour}, allowed):
                return True
        return False

    return next(number for number in range(1, len(adjacent) + 1) if fits({}, number))


def _clique(adjacent: list[set[int]]) -> int:
    """The largest set of mutual conflicts that greedy searches from every node find."""
    largest = 1
    for start in range(len(adjacent)):
        size, candidates = 1, set(adjacent[start])
        while candidates:
            node = max(candidates, key=lambda n: len(adjacent[n] & candidates))
            candidates &= adjacent[node]
            size += 1
        largest = max(largest, size)
    return largest
