r"""Operators between function spaces: exact linear maps of finite elements at both ends, a network between them.

What a space of finite elements has for all of its functions (continuity, boundary values, a mean) then holds for every
state of the network, trained or not.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from pullback.core.checks import check_broadcast, check_floating, check_integer, check_same_dtype, check_shape
from pullback.core.shapes import Float, Tensor
from pullback.dynamics.finite_elements import FunctionSpace, assemble, prolongation
from pullback.implicit import SparseMatrix, SparsePattern, linear_solve, projection_affine

__all__ = ["MeshProcessor", "MultigridProcessor", "StructurePreservingOperator"]

_ATTRIBUTES = 4


class _Graph(NamedTuple):
    """Coefficients that share a cell: arcs from ``senders`` to ``receivers``, their geometry, and 1 / arcs of each."""

    senders: Tensor
    receivers: Tensor
    attributes: Tensor
    shares: Tensor
    boundary: Tensor

    @staticmethod
    def of(space: FunctionSpace) -> _Graph:
        if space.size != len(space.dof_points.unique(dim=0)) or len(space.dofs[0]) == 1:
            raise ValueError(f"space must join its cells by coefficients at different points, got {space.family}")
        with torch.no_grad():
            apart = space.pattern.rows != space.pattern.columns
            receivers, senders = space.pattern.rows[apart], space.pattern.columns[apart]
            points = space.dof_points
            way = points[senders] - points[receivers]
            length = way.norm(dim=1)
            shares = 1 / torch.bincount(receivers, minlength=space.size).to(length)
            near = length.new_zeros(space.size).index_add(0, receivers, length) * shares
            relative = torch.cat([way, length[:, None]], 1) / near[receivers, None]
            size = (near / near.mean()).log()[receivers, None]
            boundary = points.new_zeros(space.size, 1)
            boundary[space.dirichlet_dofs] = 1
        return _Graph(senders, receivers, torch.cat([relative, size], 1), shares[:, None, None], boundary)

    def like(self, h: Tensor) -> _Graph:
        """The graph where the features ``h`` are, in their dtype."""
        return _Graph(self.senders.to(h.device), self.receivers.to(h.device), *(part.to(h) for part in self[2:]))


class _Messages(nn.Module):
    """One round: a message of every arc, their mean, a residual update. Features are ``[n, batch, channels]``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.receive = nn.Linear(channels, channels, bias=False)
        self.send = nn.Linear(channels, channels, bias=False)
        self.arc = nn.Linear(_ATTRIBUTES, channels)
        self.message = nn.Linear(channels, channels)
        self.hidden = nn.Linear(2 * channels, channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, h: Tensor, graph: _Graph) -> Tensor:
        arcs = self.receive(h).index_select(0, graph.receivers) + self.send(h).index_select(0, graph.senders)
        arcs = arcs + self.arc(graph.attributes)[:, None]
        total = torch.zeros_like(h).index_add(0, graph.receivers, F.relu(arcs))
        message = self.message(total * graph.shares)  # a linear layer of a mean is the mean of the linear layer
        return h + self.out(F.gelu(self.hidden(torch.cat([h, message], -1))))


class _Processor(nn.Module):
    """Features from fields and back: what both processors share."""

    def __init__(self, fields: int, channels: int, rounds: int) -> None:
        super().__init__()
        self.fields = check_integer("fields", fields, 1)
        check_integer("channels", channels, 1)
        self.lift = nn.Linear(fields + 1, channels)
        self.rounds = nn.ModuleList(_Messages(channels) for _ in range(rounds))
        self.head = nn.Linear(channels, 1)

    def _draw(self, generator: torch.Generator | None) -> None:
        with torch.no_grad():
            for layer in self.modules():
                if isinstance(layer, nn.Linear):
                    bound = layer.in_features**-0.5
                    layer.weight.uniform_(-bound, bound, generator=generator)
                    if layer.bias is not None:
                        layer.bias.uniform_(-bound, bound, generator=generator)

    def _enter(self, x: Tensor, graph: _Graph) -> Tensor:
        """``[*batch, fields, n]`` to features ``[n, batch, channels]``."""
        check_shape("x", check_floating("x", x), (self.fields, len(graph.shares)))
        check_same_dtype(x=x, weight=self.lift.weight)
        nodes = x.flatten(0, -3).permute(2, 0, 1) if x.ndim > 2 else x.mT[:, None]
        flags = graph.boundary[:, None].expand(-1, nodes.shape[1], 1)
        return self.lift(torch.cat([nodes, flags], -1))

    def _leave(self, h: Tensor, x: Tensor) -> Tensor:
        return self.head(h)[..., 0].mT.reshape(*x.shape[:-2], x.shape[-1])


class MeshProcessor(_Processor):
    r"""A graph network on the coefficients of a space, whose edges are the pattern of its matrices.

    .. math::
        m_{ij} = W\,\mathrm{ReLU}\left(A h_i + B h_j + C e_{ij} + c\right) + w, \qquad
        h_i \leftarrow h_i + \mathrm{MLP}\Big(h_i,\ \tfrac{1}{|N(i)|}\sum_{j\in N(i)} m_{ij}\Big)

    with arcs :math:`e_{ij}=(x_j-x_i,\ |x_j-x_i|)/\ell_i` and :math:`\log\ell_i/\bar\ell`, where :math:`\ell_i` is the
    mean length of the arcs at i. Nothing depends on the numbering, the place or the size of the mesh, so that the same
    weights go on any mesh (:meth:`on`); a round of messages goes one cell far.

    Args:
        space: whose coefficients are at different points, in one piece: Lagrange or Crouzeix-Raviart.
        fields: functions that go in, >= 1.
        channels: width, >= 1.
        layers: rounds of messages, >= 1.
        generator: of the weights, uniform within one over the root of the fan in.

    Raises:
        TypeError: a size is no integer, ``space`` no :class:`FunctionSpace`.
        ValueError: a size is out of range, or the space does not fit.

    Example:
        >>> from pullback.dynamics import grid_mesh
        >>> space = FunctionSpace(grid_mesh((3, 3)))
        >>> processor = MeshProcessor(space, fields=2, channels=8, layers=2)
        >>> processor(torch.randn(5, 2, 16)).shape
        torch.Size([5, 16])
        >>> processor.on(FunctionSpace(grid_mesh((5, 4))))(torch.randn(2, 30)).shape
        torch.Size([30])

    References:
        Bouziani, Boulle (2024), Structure-preserving operator learning, arXiv 2410.01065, section 3. Battaglia et al.
        (2018), Relational inductive biases, arXiv 1806.01261.
    """

    def __init__(
        self,
        space: FunctionSpace,
        *,
        fields: int,
        channels: int = 32,
        layers: int = 4,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(fields, channels, check_integer("layers", layers, 1))
        self.graph = _Graph.of(_checked(space, "space"))
        self._draw(generator)

    def on(self, space: FunctionSpace) -> MeshProcessor:
        """Return a processor with the same parameters (not a copy of them) on another space."""
        other = copy.copy(self)
        other.graph = _Graph.of(_checked(space, "space"))
        return other

    def forward(self, x: Float[Tensor, "*batch fields n"]) -> Float[Tensor, "*batch n"]:
        """Return coefficients ``[*batch, n]`` from those of the fields."""
        graph = self.graph.like(self.lift.weight)
        h = self._enter(x, graph)
        for layer in self.rounds:
            h = layer(h, graph)
        return self._leave(h, x)


class MultigridProcessor(_Processor):
    r"""A V-cycle on nested spaces whose smoothers are rounds of messages: all coefficients meet at linear cost.

    On each level some rounds (as in :class:`MeshProcessor`), the correction of the next coarser level
    :math:`h\leftarrow h+P\,(V(Rh)-Rh)`, and as many rounds again. P is the exact embedding of the coarse space
    (:func:`prolongation`), R its transpose with rows of sum one. The coarsest level has all its rounds at once. Every
    level has parameters of its own, as many as ``2 * smoothing`` rounds.

    Args:
        spaces: Lagrange spaces from the coarsest to the finest, nested, at least 2.
        fields: functions that go in, >= 1.
        channels: width, >= 1.
        smoothing: rounds before and after the correction, >= 1.
        generator: of the weights, as for :class:`MeshProcessor`.

    Raises:
        TypeError: a size is no integer, a space no :class:`FunctionSpace`.
        ValueError: a size is out of range, or spaces are not nested.

    Example:
        >>> from pullback.dynamics import grid_mesh
        >>> mesh = grid_mesh((2, 2))
        >>> spaces = [FunctionSpace(mesh), FunctionSpace(mesh.refine()), FunctionSpace(mesh.refine())]
        >>> MultigridProcessor(spaces, fields=1)
        Traceback (most recent call last):
        ValueError: meshes must be nested: ...
        >>> fine = mesh.refine()
        >>> processor = MultigridProcessor([FunctionSpace(mesh), FunctionSpace(fine)], fields=1, channels=8)
        >>> processor(torch.randn(5, 1, 25)).shape
        torch.Size([5, 25])

    References:
        Bouziani, Boulle (2024), Structure-preserving operator learning, arXiv 2410.01065, section 4.
    """

    def __init__(
        self,
        spaces: Sequence[FunctionSpace],
        *,
        fields: int,
        channels: int = 32,
        smoothing: int = 1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(fields, channels, 2 * check_integer("smoothing", smoothing, 1) * len(spaces))
        self.levels, self.smoothing = len(spaces), smoothing
        self._place(spaces)
        self._draw(generator)

    def _place(self, spaces: Sequence[FunctionSpace]) -> None:
        if len(spaces) < 2:
            raise ValueError(f"spaces must be at least 2, got {len(spaces)}")
        self.graphs = [_Graph.of(_checked(space, "spaces")) for space in spaces]
        self.up, self.down = [], []
        for coarse, fine in pairwise(spaces):
            embedding = prolongation(coarse, fine)
            turned = embedding.mT
            total = turned @ embedding.values.new_ones(fine.size)
            self.up.append(embedding)
            self.down.append(SparseMatrix(turned.pattern, turned.values / total[turned.pattern.rows]))

    def on(self, spaces: Sequence[FunctionSpace]) -> MultigridProcessor:
        """Return a processor with the same parameters (not a copy of them) on other spaces.

        Levels are matched from the coarsest; those beyond have the parameters of the finest that was trained.

        Raises:
            ValueError: ``spaces`` are fewer than the processor has levels, or not nested.
        """
        if len(spaces) < self.levels:
            raise ValueError(f"spaces must be at least the {self.levels} of the processor, got {len(spaces)}")
        other = copy.copy(self)
        other._place(spaces)
        return other

    def forward(self, x: Float[Tensor, "*batch fields n"]) -> Float[Tensor, "*batch n"]:
        """Return coefficients ``[*batch, n]`` of the finest space from those of the fields."""
        graphs = [graph.like(self.lift.weight) for graph in self.graphs]
        return self._leave(self._cycle(self._enter(x, graphs[-1]), graphs, len(graphs) - 1), x)

    def _cycle(self, h: Tensor, graphs: list[_Graph], level: int) -> Tensor:
        first = 2 * self.smoothing * min(level, self.levels - 1)
        layers = [self.rounds[first + k] for k in range(2 * self.smoothing)]
        for k, layer in enumerate(layers):
            if level and k == self.smoothing:
                below = _times(self.down[level - 1], h)
                h = h + _times(self.up[level - 1], self._cycle(below, graphs, level - 1) - below)
            h = layer(h, graphs[level])
        return h


class StructurePreservingOperator(nn.Module):
    r"""Decode, process, encode: :math:`G_\theta = D\circ P_\theta\circ E`, with exact maps D and E.

    E takes functions to coefficients: those of ``source`` are taken as they are, or projected in :math:`L^2` on
    ``target`` where that is another space on the same mesh. The processor maps them to coefficients of ``target``. With
    Dirichlet data it sees them as a further field (zero inside) and gives inner coefficients only; the others are the
    data, to the bit. A constraint :math:`By=c` on the coefficients is met by projecting the inner ones,

    .. math:: y \mapsto y - D^{-1}B^T(BD^{-1}B^T)^{-1}(By-c), \qquad D=\mathrm{diag}(M),

    so that how a mesh is graded does not matter. All of it is differentiable, and holds for every state of the network.

    Args:
        source: the space of the inputs.
        target: the space of the outputs, on the same mesh.
        processor: a module from ``[*batch, fields, target.size]`` to ``[*batch, target.size]``, with one field more
            than the inputs where there is Dirichlet data.
        dirichlet: whether values on the boundary are given.
        constraint: B ``[k, target.size]``, independent on the inner coefficients, and c ``[k]``.

    Raises:
        TypeError: a space is no :class:`FunctionSpace`.
        ValueError: the meshes differ, the target has no coefficients on the boundary, or a shape does not fit.

    Example:
        >>> from pullback.dynamics import grid_mesh, load_vector
        >>> space = FunctionSpace(grid_mesh((3, 3)))
        >>> mean = load_vector(lambda x: torch.ones_like(x[..., 0]), space)[None]
        >>> processor = MeshProcessor(space, fields=2, channels=8)
        >>> operator = StructurePreservingOperator(
        ...     space, space, processor, dirichlet=True, constraint=(mean, torch.tensor([0.5]))
        ... )
        >>> data = torch.linspace(0, 1, 12)
        >>> u = operator(torch.randn(5, 1, 16), data).detach()
        >>> bool((u[:, space.dirichlet_dofs] == data).all()), round(float(mean[0].float() @ u[3]), 5)
        (True, 0.5)

    References:
        Bouziani, Boulle (2024), Structure-preserving operator learning, arXiv 2410.01065, section 2.
    """

    def __init__(
        self,
        source: FunctionSpace,
        target: FunctionSpace,
        processor: nn.Module,
        *,
        dirichlet: bool = False,
        constraint: tuple[Float[Tensor, "k n"], Float[Tensor, "k"]] | None = None,
    ) -> None:
        super().__init__()
        self.source, self.target = _checked(source, "source"), _checked(target, "target")
        if source.mesh is not target.mesh:
            raise ValueError("source and target must be spaces on one mesh")
        if dirichlet and not len(target.dirichlet_dofs):
            raise ValueError(f"target must have coefficients on the boundary, got {target.family}")
        self.processor, self.dirichlet = processor, dirichlet
        self.mass: SparseMatrix | None = None
        if source is not target:
            self.mass, self.across = assemble("mass", target), _mixed_mass(source, target)
        self.functionals = self.values = self.weights = None
        if constraint is not None:
            self.functionals, self.values = constraint
            if self.functionals.ndim != 2 or self.functionals.shape[1] != target.size:
                raise ValueError(
                    f"constraint must have functionals [k, {target.size}], got {tuple(self.functionals.shape)}"
                )
            if self.values.shape != self.functionals.shape[:1]:
                raise ValueError(f"constraint must have a value for each functional, got {tuple(self.values.shape)}")
            self.weights = assemble("mass", target).diagonal().detach().sqrt()

    def encode(self, inputs: Float[Tensor, "*batch fields n"]) -> Float[Tensor, "*batch fields m"]:
        """Return coefficients of the inputs in the target space."""
        check_shape("inputs", check_floating("inputs", inputs), (None, self.source.size))
        if self.mass is None:
            return inputs
        wide = inputs.to(self.mass.values)
        return linear_solve(self.mass, self.across @ wide).value.to(inputs)

    def forward(
        self, inputs: Float[Tensor, "*#batch fields n"], boundary: Float[Tensor, "*#batch b"] | None = None
    ) -> Float[Tensor, "*batch m"]:
        """Return the coefficients of the output.

        Args:
            inputs: ``[*batch, fields, source.size]``.
            boundary: ``[*batch, b]`` values at ``target.dirichlet_dofs``; 0 by default.

        Raises:
            ValueError: a shape does not fit, or there is boundary data for an operator without.
        """
        x = self.encode(inputs)
        fixed = self.target.dirichlet_dofs.to(x.device)
        if not self.dirichlet:
            if boundary is not None:
                raise ValueError("boundary must be None for an operator without Dirichlet data")
            return self._constrained(self.processor(x))
        if boundary is None:
            boundary = x.new_zeros(len(fixed))
        check_same_dtype(inputs=inputs, boundary=check_floating("boundary", boundary))
        check_shape("boundary", boundary, (len(fixed),))
        batch = check_broadcast(inputs=x.shape[:-2], boundary=boundary.shape[:-1])
        boundary, x = boundary.expand(*batch, -1), x.expand(*batch, *x.shape[-2:])
        lift = x.new_zeros(*batch, self.target.size).index_copy(-1, fixed, boundary)
        inner = self.processor(torch.cat([x, lift[..., None, :]], -2))
        return self._constrained(inner.index_copy(-1, fixed, boundary))

    def _constrained(self, y: Tensor) -> Tensor:
        if self.functionals is None or self.values is None or self.weights is None:
            return y
        functionals, values, weights = (t.to(y) for t in (self.functionals, self.values, self.weights))
        if not self.dirichlet:
            return projection_affine(y * weights, functionals / weights, values) / weights
        free, fixed = self.target.free_dofs.to(y.device), self.target.dirichlet_dofs.to(y.device)
        left = values - y[..., fixed] @ functionals[:, fixed].mT
        weights = weights[free]
        inner = projection_affine(y[..., free] * weights, functionals[:, free] / weights, left) / weights
        return y.index_copy(-1, free, inner)


def _times(matrix: SparseMatrix, h: Tensor) -> Tensor:
    """The product along the first dimension of ``[n, batch, channels]``, which keeps rows of features together."""
    rows, columns = matrix.pattern.rows.to(h.device), matrix.pattern.columns.to(h.device)
    terms = matrix.values.to(h)[:, None, None] * h.index_select(0, columns)
    return h.new_zeros(matrix.pattern.shape[0], *h.shape[1:]).index_add(0, rows, terms)


def _mixed_mass(source: FunctionSpace, target: FunctionSpace) -> SparseMatrix:
    """Integrals of products of the functions of two spaces on one mesh."""
    weights, values, _ = target._tables(target.mesh.vertices)
    others = source._tables(target.mesh.vertices)[1]
    local = torch.einsum("q,qi,qj,m->mij", weights, values, others, target.mesh.areas)
    rows = target.dofs[:, :, None].expand(local.shape)
    columns = source.dofs[:, None, :].expand(local.shape)
    pattern = SparsePattern(rows.flatten(), columns.flatten(), (target.size, source.size))
    return SparseMatrix(pattern, local.flatten())


def _checked(space: object, name: str) -> FunctionSpace:
    if not isinstance(space, FunctionSpace):
        raise TypeError(f"{name} must be a FunctionSpace, got {type(space).__name__}")
    return space
