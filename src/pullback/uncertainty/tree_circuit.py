"""Circuits on a tree of latent variables with finitely many states: any marginal by one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from pullback.core.checks import (
    check_broadcast,
    check_floating,
    check_integer,
    check_positive,
    check_range,
    check_tensor,
)
from pullback.core.random import drawing_device
from pullback.core.shapes import Bool, Float, Int, Shaped, Tensor
from pullback.uncertainty.circuit_leaves import make_leaf
from pullback.uncertainty.log_einsum import log_einsum_exp

__all__ = ["CircuitWeights", "LatentTree", "TreeCircuit", "circuit_em_step"]


class CircuitWeights(NamedTuple):
    """The numbers of a circuit with N states.

    Attributes:
        root: ``[N]`` logarithms of the weights of the root's states.
        sums: ``[latents - 1, N, N]`` of the states of each other latent, one row for each state of its parent, in the
            order of ``TreeCircuit.latents``.
        leaves: ``[variables, N]`` logits, ``[variables, N, categories]`` logits, or ``[variables, N, 2]`` means and
            logarithms of standard deviations.
    """

    root: Float[Tensor, "N"]
    sums: Float[Tensor, "latents N N"]
    leaves: Float[Tensor, "variables N ..."]


class LatentTree:
    """Which variables have a latent of their own, in rising depth, and where the others hang.

    Attributes:
        latents: variables with a latent, the root first.
        seat: for each variable, the place in ``latents`` of the one that it depends on.
        depths: for each depth below the root, the places of its latents' parents in the depth above.
    """

    def __init__(self, parents: Sequence[int] | Int[Tensor, "variables"], own: bool) -> None:
        self.parents = _checked(parents)
        count, root = len(self.parents), self.parents.index(-1)
        children: list[list[int]] = [[] for _ in range(count)]
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                children[parent].append(node)
        above, self.latents, self.depths = [root], [root], list[list[int]]()
        reached = 1
        while above:
            below = [(node, place) for place, parent in enumerate(above) for node in children[parent]]
            reached += len(below)
            below = [(node, place) for node, place in below if own or children[node]]
            if below:
                self.depths.append([place for _, place in below])
            above = [node for node, _ in below]
            self.latents += above
        if reached < count:
            raise ValueError(f"parents must be a tree, got a cycle: {count - reached} variables do not reach the root")
        place = {node: i for i, node in enumerate(self.latents)}
        self.seat = [place[node] if node in place else place[self.parents[node]] for node in range(count)]


def _checked(parents: Sequence[int] | Tensor) -> list[int]:
    if isinstance(parents, Tensor):
        if parents.is_floating_point() or parents.ndim != 1:
            raise ValueError(f"parents must be one row of integers, got {parents.dtype} {tuple(parents.shape)}")
        parents = parents.tolist()
    found = [check_integer("parents", parent, -1, len(parents) - 1) for parent in parents]
    if found.count(-1) != 1:
        raise ValueError(f"parents must have one root (-1), got {found.count(-1)}")
    return found


class TreeCircuit(nn.Module):
    r"""A law of variables that hang on a tree of latent ones with N states each.

    .. math:: p(x)=\sum_{z}\;p(z_r)\prod_i p(z_i\mid z_{\mathrm{pa}(i)})\prod_v p(x_v\mid z_{s(v)})

    Each variable has a latent of its own; of discrete variables, those at the ends of the tree depend on their parent's
    latent instead. The sum over all states is done from the ends of the tree to its root, one matrix product of
    logarithms (:func:`log_einsum_exp`) for all latents of one depth: O(latents N^2) a row. A variable that is left out
    contributes a factor of 1: every marginal and conditional is exact and costs one pass or two.

    With ``width`` the weights are free parameters, whose rows are normalised (a hidden Chow-Liu tree: train them by any
    optimizer, or by :func:`circuit_em_step`). With ``weights`` they are what is given, tensors with a history included,
    taken as they are: ``log_prob`` subtracts ``log_normalizer()``.

    Args:
        parents: ``[variables]`` the parent of each variable, -1 for the one root.
        leaf: ``"bernoulli"``, ``"categorical"`` or ``"gaussian"``.
        width: N >= 1 states of free weights.
        weights: those of a circuit that is given, see :class:`CircuitWeights`.
        normalized: says that the rows of given weights sum to 1: nothing is subtracted then.
        categories: of ``"categorical"``.
        own_latents: whether the ends of the tree have a latent too; by default for ``"gaussian"``.
        generator: of the initial values: rows of the simplex, uniformly; leaves of probabilities, uniformly.

    Attributes:
        latents: the variables with a latent of their own, the root first, by depth.

    Raises:
        TypeError: a parent is no integer.
        ValueError: the parents are no tree with one root, both or neither of ``width`` and ``weights`` are given,
            shapes of weights do not fit.

    Example:
        >>> circuit = TreeCircuit([1, -1, 1], "bernoulli", width=4, generator=torch.Generator().manual_seed(0))
        >>> states = torch.cartesian_prod(*3 * [torch.tensor([0.0, 1.0])])
        >>> circuit.log_prob(states).exp().sum().round(decimals=4)
        tensor(1., grad_fn=<RoundBackward1>)

    References:
        Liu, Van den Broeck (2021), Tractable regularization of probabilistic circuits, section 5 (hidden Chow-Liu
        trees). Choi, Vergari, Van den Broeck (2020), Probabilistic circuits, section 3.
    """

    _seat: Tensor

    def __init__(
        self,
        parents: Sequence[int] | Int[Tensor, "variables"] | LatentTree,
        leaf: str = "bernoulli",
        *,
        width: int | None = None,
        weights: CircuitWeights | None = None,
        normalized: bool = False,
        categories: int | None = None,
        own_latents: bool | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.leaf = make_leaf(leaf, categories)
        own = leaf == "gaussian" if own_latents is None else own_latents
        self.tree = parents if isinstance(parents, LatentTree) else LatentTree(parents, own)
        self.latents = self.tree.latents
        if (width is None) == (weights is None):
            raise ValueError("width or weights must be given, and not both")
        device = None if weights is None else weights.root.device
        self.register_buffer("_seat", torch.tensor(self.tree.seat, device=device), persistent=False)
        for depth, places in enumerate(self.tree.depths):
            self.register_buffer(f"_above{depth}", torch.tensor(places, device=device), persistent=False)
        variables, latents = len(self.tree.seat), len(self.latents)
        self.normalized = normalized or weights is None
        self._given: CircuitWeights | None = None
        if weights is not None:
            self._given = _fitting(weights, latents, (variables, *self.leaf.shape))
            return
        n = check_integer("width", width, 1)
        self.root, self.sums = (
            nn.Parameter(torch.rand(shape, generator=generator).clamp(1e-6, 1 - 1e-6).log().neg().log())
            for shape in ((n,), (latents - 1, n, n))
        )
        self.leaves = nn.Parameter(self.leaf.initial(variables, n, generator))

    def weights(self) -> CircuitWeights:
        """Return the weights as they are used: those given, or the free ones with normalised rows."""
        if self._given is not None:
            return self._given
        return CircuitWeights(self.root.log_softmax(-1), self.sums.log_softmax(-1), self.leaves)

    def forward(
        self, x: Shaped[Tensor, "*batch variables"], observed: Bool[Tensor, "*#batch variables"] | None = None
    ) -> Float[Tensor, "*batch"]:
        """Return the logarithm of what the weights make of ``x``: :meth:`log_prob` where they are normalised."""
        weights = self._wide()
        rows, seen, batch = self._rows(x, observed, weights.root.dtype)
        return self._up(weights, self._leaves(weights, rows, seen))[0].reshape(batch).to(self._dtype())

    def log_normalizer(self) -> Float[Tensor, ""]:
        """Return the logarithm of the sum over all states (the integral): 0 for free weights, up to rounding."""
        weights = self._wide()
        none = weights.leaves.new_zeros(len(self._seat), 1, len(weights.root))
        return self._up(weights, none)[0].squeeze(0).to(self._dtype())

    def log_prob(
        self, x: Shaped[Tensor, "*batch variables"], observed: Bool[Tensor, "*#batch variables"] | None = None
    ) -> Float[Tensor, "*batch"]:
        """Return the log probability (density) of the observed part of ``x``, the rest summed out.

        Args:
            x: ``[*batch, variables]``; what is not observed may hold anything.
            observed: which variables count; all by default.

        Raises:
            TypeError: ``x`` is no tensor.
            ValueError: the last dimension is another, an observed value is outside of the support of the leaves.
        """
        return self(x, observed) - (0 if self.normalized else self.log_normalizer())

    def conditional(
        self,
        x: Shaped[Tensor, "*batch variables"],
        query: Bool[Tensor, "*#batch variables"],
        evidence: Bool[Tensor, "*#batch variables"],
    ) -> Float[Tensor, "*batch"]:
        """Return the log probability of the query given the evidence, the rest summed out.

        Raises:
            ValueError: a variable is in both, or as :meth:`log_prob`.
        """
        if bool((query & evidence).any()):
            raise ValueError("query and evidence must not share a variable")
        return self(x, query | evidence) - self(x, evidence)

    def expectation(
        self, x: Shaped[Tensor, "*batch variables"], observed: Bool[Tensor, "*#batch variables"]
    ) -> Float[Tensor, "*batch variables"]:
        """Return the mean of every variable given the observed ones (which are returned as they are); no gradient."""
        weights = CircuitWeights(*(w.detach() for w in self._wide()))
        rows, seen, _ = self._rows(x, observed, weights.root.dtype)
        with torch.enable_grad():
            leaves = self._leaves(weights, rows, seen).requires_grad_()
            (flows,) = torch.autograd.grad(self._up(weights, leaves)[0].sum(), leaves)
        means = torch.einsum("vbn,vn->bv", flows, self.leaf.mean(weights.leaves))
        return (means if seen is None else torch.where(seen, rows, means)).reshape(x.shape)

    @torch.no_grad()
    def sample(
        self,
        count: int | None = None,
        *,
        x: Shaped[Tensor, "*batch variables"] | None = None,
        observed: Bool[Tensor, "*#batch variables"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "*batch variables"]:
        """Draw ``count`` rows, or what is not observed of each row of ``x`` given what is.

        Raises:
            ValueError: both or neither of ``count`` and ``x`` are given, or as :meth:`log_prob`.
        """
        weights = self._wide()
        if (count is None) == (x is None) or (x is None) != (observed is None):
            raise ValueError("count, or x with observed, must be given")
        if count is not None:
            x = weights.root.new_zeros(check_integer("count", count, 0), len(self._seat))
            observed = torch.zeros_like(x, dtype=torch.bool)
        assert x is not None
        rows, seen, batch = self._rows(x, observed, weights.root.dtype)
        below = self._up(weights, self._leaves(weights, rows, seen))[1]
        device = drawing_device(generator, rows)

        def pick(logits: Tensor) -> Tensor:
            flat = logits.softmax(-1).flatten(0, -2).to(device)
            drawn = (
                torch.multinomial(flat, 1, generator=generator) if len(flat) else flat.new_zeros(0, dtype=torch.long)
            )
            return drawn.reshape(logits.shape[:-1]).to(rows.device)

        above = pick(weights.root + below[0])  # [1, rows]
        states = [above]
        matrices = weights.sums.split([len(places) for places in self.tree.depths])
        for depth, matrix in enumerate(matrices):
            chosen = above[getattr(self, f"_above{depth}")]
            index = chosen.unsqueeze(-1).expand(-1, -1, len(weights.root))
            above = pick(matrix.gather(1, index) + below[depth + 1])
            states.append(above)
        state = torch.cat(states)[self._seat].T  # [rows, variables]
        laws = weights.leaves[torch.arange(len(self._seat), device=state.device), state]
        drawn = self.leaf.draw(laws.to(device), generator).to(rows.device)
        return (drawn if seen is None else torch.where(seen, rows, drawn)).reshape(*batch, len(self._seat))

    def _dtype(self) -> torch.dtype:
        return (self.root if self._given is None else self._given.root).dtype

    def _wide(self) -> CircuitWeights:
        """Return the weights in single precision at least."""
        wide = torch.promote_types(self._dtype(), torch.float32)
        return CircuitWeights(*(w.to(wide) for w in self.weights()))

    def _rows(self, x: Tensor, observed: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor | None, torch.Size]:
        count = len(self._seat)
        if check_tensor("x", x).ndim < 1 or x.shape[-1] != count:
            raise ValueError(f"x must have shape (..., {count}), got {tuple(x.shape)}")
        rows = x.reshape(-1, count)
        if observed is None:
            self.leaf.check(rows, None)
            return rows.to(dtype), None, x.shape[:-1]
        if check_tensor("observed", observed).dtype != torch.bool:
            raise TypeError(f"observed must be a bool tensor, got {observed.dtype}")
        if check_broadcast(x=tuple(x.shape), observed=tuple(observed.shape)) != x.shape:
            raise ValueError(f"observed must broadcast to {tuple(x.shape)}, got {tuple(observed.shape)}")
        seen = observed.expand_as(x).reshape(-1, count)
        self.leaf.check(rows, seen)
        return torch.where(seen, rows, 0).to(dtype), seen, x.shape[:-1]

    def _leaves(self, weights: CircuitWeights, rows: Tensor, seen: Tensor | None) -> Tensor:
        found = self.leaf.log_prob(weights.leaves, rows)
        return found if seen is None else torch.where(seen.T.unsqueeze(-1), found, 0)

    def _up(self, weights: CircuitWeights, leaves: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return ``[rows]`` and, for each depth, the logarithm ``[latents, rows, N]`` of what hangs below a state."""
        sizes = [len(places) for places in self.tree.depths]
        products = leaves.new_zeros(len(self.latents), *leaves.shape[1:]).index_add(0, self._seat, leaves)
        below, matrices = list(products.split([1, *sizes])), weights.sums.split(sizes)
        for depth in range(len(sizes) - 1, -1, -1):
            sums = log_einsum_exp(matrices[depth], below[depth + 1])
            below[depth] = below[depth].index_add(0, getattr(self, f"_above{depth}"), sums)
        return torch.logsumexp(weights.root + below[0][0], -1), below


def _fitting(weights: CircuitWeights, latents: int, leaves: tuple[int, ...]) -> CircuitWeights:
    for name, value in weights._asdict().items():
        check_floating(f"weights.{name}", value)
    if weights.root.ndim != 1 or not len(weights.root):
        raise ValueError(f"weights.root must have shape [N], got {tuple(weights.root.shape)}")
    n = len(weights.root)
    for name, shape in (("sums", (latents - 1, n, n)), ("leaves", (leaves[0], n, *leaves[1:]))):
        if getattr(weights, name).shape != shape:
            raise ValueError(f"weights.{name} must have shape {shape}, got {tuple(getattr(weights, name).shape)}")
    return weights


def circuit_em_step(
    circuit: TreeCircuit, x: Shaped[Tensor, "rows variables"], *, step: float = 1.0, smoothing: float = 1e-5
) -> Float[Tensor, ""]:
    r"""Move the free weights of a circuit towards those that expectation-maximisation finds for ``x``; in place.

    The derivative of the log likelihood by the logarithm of a weight is the expected number of its uses, its flow:
    :math:`n_{kl}=\sum_b\partial\log p(x_b)/\partial\log W_{kl}`, and the maximisation step is
    :math:`\hat W_{kl}=n_{kl}/\sum_l n_{kl}`; the leaves are fitted to rows weighted in the same way. Then
    :math:`W\leftarrow(1-s)W+s\hat W`. On all data, ``step=1`` never lowers the likelihood (up to the smoothing); on
    batches, smaller steps average over them.

    Args:
        circuit: with free weights.
        x: ``[rows, variables]``, all observed.
        step: s in (0, 1].
        smoothing: >= 0, added to each count.

    Returns:
        The mean log probability of ``x`` before the step, without dimensions.

    Raises:
        TypeError: ``circuit`` is no :class:`TreeCircuit`.
        ValueError: its weights are given, there are no rows, or an option is out of range.

    Example:
        >>> circuit = TreeCircuit([-1, 0], "bernoulli", width=2, generator=torch.Generator().manual_seed(0))
        >>> x = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
        >>> before = [circuit_em_step(circuit, x) for _ in range(50)]
        >>> before[-1].exp().round(decimals=2)  # both rows are as likely
        tensor(0.5000)

    References:
        Peharz, Lang, Vergari, Stelzner, Molina, Trapp, Van den Broeck, Kersting, Ghahramani (2020), Einsum networks,
        section 3.5. Gala, de Campos, Peharz, Vergari, Quaeghebeur (2024), Probabilistic integral circuits.
    """
    if not isinstance(circuit, TreeCircuit):
        raise TypeError(f"circuit must be a TreeCircuit, got {type(circuit).__name__}")
    if circuit._given is not None:
        raise ValueError("circuit must have free weights")
    check_positive("step", step)
    check_range("step", step, 0.0, 1.0)
    check_positive("smoothing", smoothing, zero=True)
    weights = CircuitWeights(*(w.detach().requires_grad_() for w in circuit.weights()))
    rows, _, batch = circuit._rows(x, None, weights.root.dtype)
    if len(batch) != 1 or not len(rows):
        raise ValueError(f"x must have shape [rows >= 1, variables], got {tuple(x.shape)}")
    with torch.no_grad():
        leaves = circuit._leaves(weights, rows, None)
    with torch.enable_grad():
        total = circuit._up(weights, leaves.requires_grad_())[0]
        *counts, flows = torch.autograd.grad(total.sum(), (weights.root, weights.sums, leaves), materialize_grads=True)
    with torch.no_grad():
        for parameter, weight, count in zip((circuit.root, circuit.sums), weights[:2], counts, strict=True):
            count = count + smoothing
            total_count = count.sum(-1, keepdim=True)
            used = total_count > 0
            found = torch.where(used, count / torch.where(used, total_count, 1), weight.exp())
            parameter.copy_(((1 - step) * weight.exp() + step * found).log())
        circuit.leaves.copy_(circuit.leaf.fitted(weights.leaves, flows, rows, step, smoothing))
    return total.detach().mean()
