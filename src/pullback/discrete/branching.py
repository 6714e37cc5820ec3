"""Learning which tasks share which layers: every node of a layer picks one parent in the layer before."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, cast

import torch
from torch import nn

from pullback.core.checks import (
    check_callable,
    check_choice,
    check_floating,
    check_integer,
    check_shape,
    check_tensor,
)
from pullback.core.random import drawing_device
from pullback.core.shapes import Float, Int, Scalar, Tensor
from pullback.discrete.estimators import categorical

__all__ = ["BranchingLayer", "BranchingNetwork", "Search", "grouping_score", "search_branching"]

_ESTIMATORS = ("gumbel", "straight_through", "reinmax")
_MOST = 12
"""Nodes of a layer, up to which all sets of them are gone through."""


class Search(NamedTuple):
    """What several searches found.

    Attributes:
        best: number of the search with the lowest validation loss.
        trees: of each search, as :meth:`BranchingNetwork.extract_tree` gives it.
        losses: of each search, on validation data.
    """

    best: int
    trees: tuple[tuple[Int[Tensor, "children"], ...], ...]
    losses: tuple[float, ...]


class BranchingLayer(nn.Module):
    r"""Give each child the output of one parent, drawn anew at each call for the whole batch.

    Child :math:`j` sees :math:`\sum_i d_{ji} y_i` with a one-hot :math:`d_j \sim \mathrm{softmax}(\theta_j)`. Its
    gradient in :math:`\theta` needs the outputs of all parents.

    Args:
        parents: nodes of the layer before, >= 1.
        children: nodes of the layer after, >= 1. Their logits :math:`\theta` start at 0.

    Raises:
        TypeError: a size is no integer.
        ValueError: a size is < 1.

    Example:
        >>> layer = BranchingLayer(2, 3)
        >>> outputs = torch.tensor([[1.0], [5.0]])  # of two parents, a batch of one
        >>> layer(outputs, method="argmax").flatten().tolist(), layer.probabilities()[0].tolist()
        ([1.0, 1.0, 1.0], [0.5, 0.5])

    References:
        Guo, Lee, Ulbricht (2020), Learning to branch for multi-task learning, equations 2-5.
    """

    def __init__(self, parents: int, children: int) -> None:
        super().__init__()
        check_integer("parents", parents, 1)
        check_integer("children", children, 1)
        self.logits = nn.Parameter(torch.zeros(children, parents))

    def forward(
        self,
        outputs: Float[Tensor, "parents *batch"],
        *,
        temperature: Scalar = 1.0,
        method: str = "gumbel",
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "children *batch"]:
        """Return what each child sees.

        Args:
            outputs: ``[parents, *batch]`` of all parents.
            temperature: > 0, of the estimator.
            method: ``"gumbel"``, ``"straight_through"`` or ``"reinmax"``, as in :func:`categorical`; ``"uniform"``
                draws parents evenly, ``"argmax"`` takes the likeliest, both without a gradient in the logits.
            generator: torch's own by default.

        Raises:
            TypeError: ``outputs`` is not floating.
            ValueError: it has another number of parents, ``method`` is unknown, ``temperature`` is not positive.
        """
        children, parents = self.logits.shape
        if check_floating("outputs", outputs).ndim < 1 or len(outputs) != parents:
            raise ValueError(f"outputs must have shape ({parents}, ...), got {tuple(outputs.shape)}")
        check_choice("method", method, (*_ESTIMATORS, "uniform", "argmax"))
        if method in _ESTIMATORS:
            chosen = categorical(self.logits, method=method, temperature=temperature, generator=generator)
        else:
            if method == "uniform":
                device = drawing_device(generator, self.logits)
                index = torch.randint(parents, (children,), device=device, generator=generator).to(self.logits.device)
            else:
                index = self.harden()
            chosen = nn.functional.one_hot(index, parents)
        return torch.tensordot(chosen.to(outputs.dtype), outputs, 1)

    def probabilities(self) -> Float[Tensor, "children parents"]:
        """Return how likely each child takes each parent; rows sum to 1."""
        return torch.softmax(self.logits, -1)

    def harden(self) -> Int[Tensor, "children"]:
        """Return the likeliest parent of each child."""
        return self.logits.detach().argmax(-1)


class BranchingNetwork(nn.Module):
    r"""Layers of alternative nodes, between them :class:`BranchingLayer`, and a head for each task.

    The nodes of the first layer see the input. A sample of all choices is a tree: every task has one path, tasks share
    the nodes that their paths share. All nodes are computed while it is sought; :meth:`pruned` keeps those that a tree
    uses.

    Args:
        layers: for each layer its nodes, modules from one shape to one shape.
        heads: for each task a module on the output of the last layer.

    Raises:
        ValueError: there is no layer, a layer without nodes (its number is named), or no task.

    Example:
        >>> network = BranchingNetwork([[nn.Linear(3, 4) for _ in range(2)]], [nn.Linear(4, 1) for _ in range(5)])
        >>> [output.shape for output in network(torch.ones(7, 3))][:2]
        [torch.Size([7, 1]), torch.Size([7, 1])]
        >>> [parents.tolist() for parents in network.extract_tree()]
        [[0, 0, 0, 0, 0]]
        >>> network.expected_parameters().item()  # five heads of 5, two nodes of 16, each unused in one of 32 cases
        56.0

    References:
        Guo, Lee, Ulbricht (2020), Learning to branch for multi-task learning, section 3.
    """

    def __init__(self, layers: Sequence[Iterable[nn.Module]], heads: Iterable[nn.Module]) -> None:
        super().__init__()
        self.layers = cast("Sequence[nn.ModuleList]", nn.ModuleList(nn.ModuleList(nodes) for nodes in layers))
        self.heads = nn.ModuleList(heads)
        sizes = [*(len(nodes) for nodes in self.layers), len(self.heads)]
        if len(sizes) < 2:
            raise ValueError("layers must be at least one, got none")
        for number, size in enumerate(sizes[:-1]):
            if not size:
                raise ValueError(f"layers[{number}] must have at least one node, got none")
        if not sizes[-1]:
            raise ValueError("heads must be at least one task, got none")
        self.sizes = tuple(sizes)
        branchings = nn.ModuleList(map(BranchingLayer, sizes[:-1], sizes[1:]))
        self.branchings = cast("Sequence[BranchingLayer]", branchings)

    def forward(
        self,
        x: Float[Tensor, "*batch"],
        *,
        temperature: Scalar = 1.0,
        method: str = "gumbel",
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, ...]:
        """Return the output of each task, along paths that are drawn as :class:`BranchingLayer` draws.

        Raises:
            TypeError: ``x`` is not floating.
            ValueError: nodes of a layer return different shapes (the layer is named), or as in the layer.
        """
        inputs: Sequence[Tensor] | Tensor = [check_floating("x", x)] * self.sizes[0]
        for number, (nodes, branching) in enumerate(zip(self.layers, self.branchings, strict=True)):
            outputs = [node(seen) for node, seen in zip(nodes, inputs, strict=True)]
            for output in outputs:
                if output.shape != outputs[0].shape:
                    shapes = f"{tuple(outputs[0].shape)} and {tuple(output.shape)}"
                    raise ValueError(f"nodes of layers[{number}] must return one shape, got {shapes}")
            inputs = branching(torch.stack(outputs), temperature=temperature, method=method, generator=generator)
        return tuple(head(seen) for head, seen in zip(self.heads, inputs, strict=True))

    def extract_tree(self) -> tuple[Int[Tensor, "children"], ...]:
        """Return the likeliest parent of each child, layer by layer; the last are those of the tasks."""
        return tuple(branching.harden() for branching in self.branchings)

    def pruned(self, tree: Sequence[Tensor] | None = None) -> _Tree:
        """Return a network with copies of the nodes that a tree uses, from ``x`` to the outputs of all tasks.

        Of a network that was just made it is the tree with fresh weights, to be trained from scratch.

        Args:
            tree: as :meth:`extract_tree` gives it, which is the default.

        Raises:
            ValueError: the tree has other layers, or an index is out of range (its layer is named).
        """
        tree = self.extract_tree() if tree is None else tree
        _check_tree(tree, self.sizes)
        return _Tree(self, [parents.tolist() for parents in tree])

    def expected_parameters(self) -> Float[Tensor, ""]:
        r"""Return the mean number of parameters of :meth:`pruned`, over trees drawn from the logits, differentiable.

        Which nodes of a layer are used depends on which of the next are; the distribution of that set is followed
        exactly from the tasks to the first layer, through all :math:`2^P` sets of a layer of :math:`P` nodes.

        Raises:
            ValueError: a layer has more than 12 nodes.
        """
        if max(self.sizes[:-1]) > _MOST:
            raise ValueError(
                f"layers must have at most {_MOST} nodes for an exact expectation, got {max(self.sizes[:-1])}"
            )
        total = self.branchings[-1].logits.new_tensor(float(sum(map(_count, self.heads))))
        used = torch.ones(1, self.sizes[-1], dtype=torch.bool, device=total.device)
        likely = total.new_ones(1)
        for nodes, branching in zip(reversed(self.layers), reversed(self.branchings), strict=True):
            sets = _subsets(len(nodes), total.device)
            # All of the children in use pick inside of a set.
            inside = branching.probabilities() @ sets.to(total).T
            within = torch.where(used[:, :, None], inside, 1.0).prod(1)
            # Exactly that set: inclusion and exclusion over what is inside of it.
            parity = 1 - 2 * ((sets[:, None] ^ sets[None]).sum(-1) % 2)
            signs = torch.where((sets[None] <= sets[:, None]).all(-1), parity, 0).to(total)
            likely = likely @ within @ signs.T
            used = sets
            counts = total.new_tensor([float(_count(node)) for node in nodes])
            total = total + likely @ (sets.to(total) @ counts)
        return total


class _Tree(nn.Module):
    """The nodes of a tree: every node once, on the output of its parent."""

    def __init__(self, network: BranchingNetwork, tree: list[list[int]]) -> None:
        super().__init__()
        used = [set(range(network.sizes[-1]))]
        for parents in reversed(tree):
            used.insert(0, {parents[child] for child in used[0]})
        self.nodes = nn.ModuleList(
            nn.ModuleDict({str(node): copy.deepcopy(nodes[node]) for node in sorted(kept)})
            for nodes, kept in zip((*network.layers, network.heads), used, strict=True)
        )
        self.tree = tree

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        first, *others = (cast(nn.ModuleDict, nodes) for nodes in self.nodes)
        outputs = {node: module(x) for node, module in first.items()}
        for parents, nodes in zip(self.tree, others, strict=True):
            outputs = {node: module(outputs[str(parents[int(node)])]) for node, module in nodes.items()}
        return tuple(outputs.values())


def search_branching(
    make: Callable[[int], BranchingNetwork],
    train: Callable[[BranchingNetwork, int], None],
    validate: Callable[[BranchingNetwork], float | Tensor],
    *,
    restarts: int = 4,
) -> Search:
    """Search several times and keep the tree with the lowest validation loss.

    A single search often ends in a wrong tree: the first samples break the symmetry of the nodes.

    Args:
        make: from the number of the search to a new network.
        train: trains it, weights and logits; gets the number too.
        validate: the loss of a trained network on data that it has not seen, such as with ``method="argmax"``.
        restarts: searches, >= 1.

    Returns:
        :class:`Search`; a loss that is NaN is never the best.

    Raises:
        TypeError: an argument cannot be called, ``restarts`` is no integer.
        ValueError: ``restarts`` < 1, or all losses are NaN.

    Example:
        >>> def make(number):
        ...     return BranchingNetwork([[nn.Identity(), nn.Identity()]], [nn.Identity()])
        >>> def train(network, number):
        ...     network.branchings[0].logits.data[0, number % 2] = 1.0
        >>> found = search_branching(make, train, lambda network: float(network.extract_tree()[0]), restarts=2)
        >>> found.best, found.losses, found.trees[1][0].tolist()
        (0, (0.0, 1.0), [1])
    """
    for name, value in (("make", make), ("train", train), ("validate", validate)):
        check_callable(name, value)
    trees, losses = [], []
    for number in range(check_integer("restarts", restarts, 1)):
        network = make(number)
        train(network, number)
        losses.append(float(validate(network)))
        trees.append(network.extract_tree())
    right = [number for number, loss in enumerate(losses) if loss == loss]
    if not right:
        raise ValueError("validate must return a number for one search at least, got NaN from all")
    return Search(min(right, key=losses.__getitem__), tuple(trees), tuple(losses))


def grouping_score(tree: Sequence[Tensor], groups: Int[Tensor, "tasks"]) -> tuple[float, ...]:
    r"""Return, for each layer, how well the tasks that share its nodes are the true groups: the adjusted Rand index.

    With :math:`n_{ij}` tasks of group i in node j, :math:`a_i`, :math:`b_j` the sums and :math:`E` the product of
    :math:`\sum_i \binom{a_i}{2}` and :math:`\sum_j \binom{b_j}{2}` over :math:`\binom{n}{2}`,

    .. math:: \frac{\sum_{ij} \binom{n_{ij}}{2} - E}{\frac12 \sum_i \binom{a_i}{2} + \frac12 \sum_j \binom{b_j}{2} - E}

    is 1 for equal partitions and 0 on average for random ones.

    Args:
        tree: the parents of each layer's children, as :meth:`BranchingNetwork.extract_tree` gives them.
        groups: ``[tasks]`` integers >= 0.

    Returns:
        A number a layer, the first layer first, at most 1.

    Raises:
        TypeError: ``groups`` or ``tree`` does not hold integers.
        ValueError: the last layer of the tree does not have the tasks, or an index is out of range.

    Example:
        >>> grouping_score([torch.tensor([1, 1, 0, 0])], torch.tensor([5, 5, 2, 2]))
        (1.0,)

    References:
        Hubert, Arabie (1985), Comparing partitions, equation 5.
    """
    if check_tensor("groups", groups).is_floating_point() or groups.dtype == torch.bool:
        raise TypeError(f"groups must hold integers, got {groups.dtype}")
    if groups.ndim != 1 or not len(groups):
        raise ValueError(f"groups must have shape (tasks,), got {tuple(groups.shape)}")
    if not len(tree):
        raise ValueError("tree must have at least one layer, got none")
    check_shape("tree[-1]", tree[-1], (len(groups),))
    _check_tree(tree, None)
    node, scores = torch.arange(len(groups), device=groups.device), []
    for parents in reversed(tree):
        node = parents[node]
        scores.append(_adjusted_rand(node, groups))
    return tuple(reversed(scores))


def _adjusted_rand(first: Tensor, second: Tensor) -> float:
    together = [first[:, None] == first, second[:, None] == second]
    pairs = len(first) * (len(first) - 1) / 2
    a, b, both = ((int(same.sum()) - len(first)) / 2 for same in (together[0], together[1], together[0] & together[1]))
    expected = a * b / pairs if pairs else 0.0
    most = (a + b) / 2
    return 1.0 if most == expected else (both - expected) / (most - expected)


def _check_tree(tree: Sequence[Tensor], sizes: Sequence[int] | None) -> None:
    if sizes is not None and len(tree) != len(sizes) - 1:
        raise ValueError(f"tree must have {len(sizes) - 1} layers, got {len(tree)}")
    for number, parents in enumerate(tree):
        if check_tensor(f"tree[{number}]", parents).is_floating_point() or parents.dtype == torch.bool:
            raise TypeError(f"tree[{number}] must hold integers, got {parents.dtype}")
        if sizes is not None:
            check_shape(f"tree[{number}]", parents, (sizes[number + 1],))
            count = sizes[number]
        else:
            count = len(tree[number - 1]) if number else 1 + int(parents.max())
        if parents.ndim != 1 or not 0 <= int(parents.min()) <= int(parents.max()) < count:
            raise ValueError(f"tree[{number}] must name parents in 0..{count - 1}, got {parents.tolist()}")


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _subsets(count: int, device: torch.device) -> Tensor:
    """All sets of ``count`` nodes, ``[2 ** count, count]``."""
    numbers = torch.arange(2**count, device=device)
    return (numbers[:, None] >> torch.arange(count, device=device)) % 2 == 1
