"""Search over topological orders by moving one node at a time, all moves scored from one factorisation."""

from __future__ import annotations

from typing import Any

import torch

from pullback.causal.graphs import check_square, topological_order
from pullback.causal.knowledge import check_knowledge
from pullback.causal.least_squares import check_data_sets, interventional_moments, second_moments
from pullback.causal.orders import checked_factor, checked_order, order_weights, permuted
from pullback.causal.structure import StructureResult, TableLearner, positive, sortability
from pullback.core.checks import check_floating, check_integer
from pullback.core.shapes import Bool, Float, Int, Shaped, Tensor

__all__ = ["OrderSearch", "insertion_scores", "order_search"]


def insertion_scores(
    covariance: Float[Tensor, "*#batch d d"], order: Int[Tensor, "*#batch d"]
) -> Float[Tensor, "*batch d d"]:
    r"""Return the least-squares scores of all orders that differ from one by the place of one node.

    With the nodes permuted into the order, :math:`C = LL^T` and :math:`M = L^{-1}`. Moving a node from place ``b`` to
    an earlier ``a`` leaves of its own variance :math:`R_{ba} = \sum_{a \le l \le b} L_{bl}^2`, and multiplies that of
    each node it passes at ``k`` by :math:`R_{b,k+1} / R_{bk}`. Moving one from ``a`` to a later ``b`` leaves
    :math:`1 / S_{ba}` with :math:`S_{ba} = \sum_{a \le m \le b} M_{ma}^2`, and multiplies those passed by
    :math:`S_{ka} / S_{k-1,a}`. So all ``d (d - 1)`` moves cost one factorisation and sums of squares.

    Args:
        covariance: ``[*batch, d, d]`` positive definite.
        order: ``[*batch, d]`` causes first; broadcasts against the covariance's batch.

    Returns:
        ``[*batch, d, d]``: at ``[a, b]`` the value of :func:`score_order` of the order in which the node at place ``a``
        was taken out and put where its place is ``b``; on the diagonal of the order itself. At least single precision.

    Raises:
        ValueError: an order that is not a permutation (the missing node is named), a singular covariance.

    Example:
        >>> scores = insertion_scores(torch.tensor([[1.0, 1.0], [1.0, 2.0]]), torch.tensor([1, 0]))
        >>> scores
        tensor([[1.2500, 1.0000],
                [1.0000, 1.2500]])

    References:
        Golub, Van Loan (2013), Matrix Computations, section 6.5, for factors of permuted matrices; the scores are those
        of Deng, Bello, Aragam, Ravikumar (2023), section 4.
    """
    check_square("covariance", check_floating("covariance", covariance))
    order = checked_order(covariance, order)
    ordered = permuted(covariance, order).to(torch.promote_types(covariance.dtype, torch.float32))
    return _moved_scores(ordered)


class OrderSearch(TableLearner):
    r"""Learn a DAG by moving one node of a topological order at a time, while that lowers the least-squares score.

    Each :meth:`step` takes, of every search that has not ended, the best of all ``d (d - 1)`` moves
    (:func:`insertion_scores`); a search ends at an order that no move improves. The weights are regressions along the
    order, so that the result is a DAG whatever the threshold. The data sets of a batch and restarts go side by side.

    The result is identifiable for equal noise variances; on standardised data the order is not determined by the score.

    Args:
        data: ``[*batch, n, d]`` samples, ``n > d`` unless there is a penalty, or ``[*batch, d, d]`` covariance,
            positive definite. Solved in double precision.
        covariance: whether ``data`` is a covariance.
        targets: ``[*batch, n, d]`` booleans, which nodes were set in which sample: a node is regressed on the others
            where it was not (:func:`interventional_moments`; the samples are not centred then).
        allowed: ``[d, d]`` booleans, arcs that there may be; all by default. With it or ``targets`` a step costs ``d``
            factorisations instead of one.
        required: ``[d, d]`` booleans, arcs that there are: every order has them forward, and every graph of the result
            holds them.
        penalty: ridge of :func:`fit_order`, >= 0, in the score too.
        order: ``[*batch, d]`` where the first restart begins: at a random order if ``None``.
        restarts: searches a data set; the best is returned.
        moves: steps at most, >= 1; a search from a random order takes about ``1.5 d``.
        generator: source of the random orders, on the CPU or the device of the data.

    Raises:
        TypeError: not a floating tensor, options that are no integers.
        ValueError: bad data (see :func:`second_moments`), no more samples than nodes or a singular covariance without a
            penalty; options out of range, an order that is not a permutation; required arcs with a cycle, or against
            the given order.

    References:
        Deng, Bello, Aragam, Ravikumar (2023), Optimizing NOTEARS Objectives via Topological Swaps, for the two levels;
        Teyssier, Koller (2005), Ordering-Based Search, for local moves of orders.
    """

    def __init__(
        self,
        data: Shaped[Tensor, "*batch n d"],
        *,
        covariance: bool = False,
        targets: Bool[Tensor, "*batch n d"] | None = None,
        allowed: Bool[Tensor, "d d"] | None = None,
        required: Bool[Tensor, "d d"] | None = None,
        penalty: float = 0.0,
        order: Int[Tensor, "*#batch d"] | None = None,
        restarts: int = 1,
        moves: int = 10_000,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(check_integer("moves", moves, 1))
        check_integer("restarts", restarts, 1)
        self._penalty = positive("penalty", penalty, zero=True)
        check_data_sets("data", data)
        given = second_moments(data, covariance=covariance).detach()
        if targets is not None and covariance:
            raise ValueError("targets need samples, got covariance=True")
        nodes = given.shape[-1]
        if not covariance and penalty == 0 and data.shape[-2] <= nodes:
            raise ValueError(f"data must have more samples than nodes or a penalty, got shape {tuple(data.shape)}")
        possible, self._required = check_knowledge(nodes, allowed, required, given.device)
        self._dtype, self._batch, self._moments = given.dtype, given.shape[:-2], given.double()
        moments = self._moments
        if targets is not None:
            moments = interventional_moments(data.detach().double(), targets.to(data.device))
        elif allowed is not None:
            moments = moments.unsqueeze(-3).expand(*self._batch, nodes, nodes, nodes)
        if allowed is not None:
            moments = _without(moments, possible)
        moments = moments + self._penalty * torch.eye(nodes).to(moments)
        # One row a data set: a matrix, or with an axis before it a matrix for each node.
        self._of_rows = moments.reshape(-1, *moments.shape[len(self._batch) :])
        shape = (len(self._of_rows), restarts, nodes)
        device = given.device if generator is None else generator.device
        orders = torch.rand(shape, generator=generator, device=device).argsort(-1).to(given.device)
        if self._required is not None:
            flat = orders.view(-1, nodes)  # the same nodes, moved behind what must come before them
            for row, drawn in enumerate(flat):
                flat[row] = drawn[topological_order(self._required[drawn][:, drawn])]
        if order is not None:
            orders[:, 0] = checked_order(given, order).expand(*self._batch, nodes).reshape(-1, nodes)
            if self._required is not None and bool(permuted(self._required, orders[:, 0]).tril().any()):
                raise ValueError("order must have every required arc forward")
        self._table = {
            "order": orders.view(-1, nodes),
            "score": torch.full((orders.shape[0] * restarts,), torch.inf).to(moments),
            "ended": torch.zeros(orders.shape[0] * restarts, dtype=torch.bool, device=given.device),
        }
        self._restarts = restarts

    def _ended(self) -> bool:
        return bool(self._table["ended"].all())

    def _advance(self) -> None:
        rows = (~self._table["ended"]).nonzero()[:, 0]
        orders, moments = self._table["order"][rows], self._of_rows[rows // self._restarts]
        ordered = permuted(moments, orders if moments.ndim == 3 else orders.unsqueeze(-2))
        if moments.ndim == 4:  # the matrix of the node at each place
            ordered = ordered.gather(1, orders[:, :, None, None].expand_as(ordered))
        scores = _moved_scores(ordered, of_places=moments.ndim == 4) - self._penalty
        own = scores[:, 0, 0]
        if self._required is not None:
            scores = scores.masked_fill(_blocked(self._required, orders), torch.inf)
        best, index = scores.flatten(1).min(-1)
        better = best < own * (1 - 1e-12)
        source, target = index // orders.shape[-1], index % orders.shape[-1]
        self._table["order"][rows] = torch.where(better[:, None], _inserted(orders, source, target), orders)
        self._table["score"][rows] = torch.where(better, best, own)
        self._table["ended"][rows] = ~better
        self._history.append(self._table["score"].clone())

    def _answer(self) -> StructureResult:
        orders, nodes = self._table["order"], self._table["order"].shape[-1]
        moments = self._of_rows.repeat_interleave(self._restarts, 0)
        if moments.ndim == 3:
            weights = order_weights(moments, orders)
        else:  # the column of node j of the fit with the moments of node j
            weights = order_weights(moments, orders.unsqueeze(-2)).diagonal(dim1=1, dim2=3)
        residual = torch.eye(nodes).to(weights) - weights
        if moments.ndim == 3:
            scores = (residual * (moments @ residual)).sum((-2, -1)) / nodes - self._penalty
        else:
            columns = residual.mT.unsqueeze(-2)
            scores = (columns @ moments @ columns.mT).flatten(1).mean(-1) - self._penalty
        shape = (*self._batch, self._restarts)
        scores = scores.view(shape)
        best = scores.argmin(-1, keepdim=True)

        def chosen(values: Tensor) -> Tensor:
            values = values.view(*shape, *values.shape[1:])
            index = best.view(*best.shape, *[1] * (values.ndim - best.ndim))
            return values.take_along_dim(index, len(shape) - 1).squeeze(len(shape) - 1)

        found = chosen(weights)
        path = torch.stack(self._history) if self._history else scores.new_zeros(0, scores.numel())
        return StructureResult(
            weights=found.to(self._dtype),
            order=chosen(orders),
            score=chosen(scores.flatten()).to(self._dtype),
            restart_weights=weights.view(*shape, nodes, nodes).to(self._dtype),
            restart_scores=scores.to(self._dtype),
            history={"score": path.view(-1, *shape).to(self._dtype)},
            converged=chosen(self._table["ended"]),
            required=self._required,
            varsortability=sortability(self._moments, found, self._required).to(self._dtype),
        )


def order_search(data: Shaped[Tensor, "*batch n d"], **options: Any) -> StructureResult:
    """Learn a DAG by moving one node of a topological order at a time: :class:`OrderSearch` run to its end.

    The fastest of the learners here for linear models: a step costs one factorisation of the covariance.
    :func:`topological_swaps` exchanges two nodes instead, and fits logistic and Poisson models too.

    Args:
        data: ``[*batch, n, d]`` samples or, with ``covariance=True``, ``[*batch, d, d]`` covariance.
        **options: those of :class:`OrderSearch`.

    Returns:
        :class:`StructureResult` in the dtype of the data (half precision: float32). ``converged`` says whether no move
        lowers the score of the best restart; ``history["score"]`` is ``[steps, *batch, restarts]``.

    Raises:
        TypeError: not a floating tensor, options that are no integers or do not exist.
        ValueError: bad data (see :func:`second_moments`), no more samples than nodes or a singular covariance without a
            penalty; options out of range.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> cause = torch.randn(500, 1, generator=g)
        >>> x = torch.cat([2 * cause + torch.randn(500, 1, generator=g), cause], 1)
        >>> order_search(x, generator=g).order.tolist()
        [1, 0]

    References:
        Deng, Bello, Aragam, Ravikumar (2023); Teyssier, Koller (2005).
    """
    return OrderSearch(data, **options).run()


def _moved_scores(ordered: Tensor, *, of_places: bool = False) -> Tensor:
    """:func:`insertion_scores` of ``[*batch, d, d]`` in the order; ``of_places``: ``[*batch, d, d, d]``."""
    factor = checked_factor(ordered)
    nodes = factor.shape[-1]
    identity = torch.eye(nodes).to(factor)
    inverse = torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False)
    left = factor.square().flip(-1).cumsum(-1).flip(-1)  # R, of the matrix of each place
    left_next = torch.nn.functional.pad(left[..., 1:], (0, 1))
    known = inverse.square().cumsum(-2)  # S
    known_before = torch.nn.functional.pad(known[..., :-1, :], (0, 0, 1, 0))
    if of_places:  # what is left of a node is read off its own matrix, whether it moves or is passed
        own = factor.diagonal(dim1=-2, dim2=-1).diagonal(dim1=-2, dim2=-1).square()
        earlier, later = left.diagonal(dim1=-3, dim2=-2).mT, known.diagonal(dim1=-3, dim2=-1)
        left, left_next = (t.diagonal(dim1=-3, dim2=-1) for t in (left, left_next))
        known, known_before = (t.diagonal(dim1=-3, dim2=-2).mT for t in (known, known_before))
    else:
        own = factor.diagonal(dim1=-2, dim2=-1).square()
        earlier, later = left, known
    below = torch.ones(nodes, nodes, dtype=torch.bool, device=factor.device).tril(-1)

    def ratio(above: Tensor, under: Tensor) -> Tensor:
        return above / torch.where(below, under, 1.0) - 1

    loss = torch.where(below, own.unsqueeze(-2) * ratio(left_next, left), 0.0).flip(-1).cumsum(-1).flip(-1)
    gain = torch.where(below, own.unsqueeze(-1) * ratio(known, known_before), 0.0).cumsum(-2)
    to_earlier = torch.where(below, earlier - own.unsqueeze(-1) + loss, 0.0)  # [from, to]
    to_later = torch.where(below, 1 / torch.where(below, later, 1.0) - own.unsqueeze(-2) + gain, 0.0)  # [to, from]
    return (own.sum(-1)[..., None, None] + to_earlier + to_later.mT) / nodes


def _inserted(orders: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Take the node at place ``source [r]`` of ``orders [r, d]`` out and put it at ``target [r]``."""
    place = torch.arange(orders.shape[-1], device=orders.device)
    source, target = source[:, None], target[:, None]
    origin = place + ((place >= source) & (place < target)).long() - ((place > target) & (place <= source)).long()
    return orders.gather(-1, torch.where(place == target, source, origin))


def _blocked(required: Tensor, orders: Tensor) -> Tensor:
    """Say for every search which moves ``[r, from, to]`` turn a required arc around."""
    arcs = permuted(required, orders).long()
    later = arcs.cumsum(-1).triu(1)  # from a node to those it passes
    earlier = arcs.flip(-2).cumsum(-2).flip(-2).triu(1).mT  # from those it passes to the node
    return (later + earlier) > 0


def _without(moments: Tensor, possible: Tensor) -> Tensor:
    """Make what cannot cause a node independent of all else in its matrix ``[*batch, node, d, d]``."""
    identity = torch.eye(len(possible), dtype=torch.bool, device=possible.device)
    kept = possible.mT | identity
    return moments * ((kept.unsqueeze(-1) & kept.unsqueeze(-2)) | identity)
