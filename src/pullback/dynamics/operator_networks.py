r"""Operators between function spaces: exact linear maps of finite elements at both ends, a network between them.

What a space of finite elements has for all of its functions (continuity, boundary values, a mean) then holds for every
state of the network, trained or not.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from pullback.core.checks import check_broadcast, check_floating, check_integer, check_same_dtype, check_shape
from pullback.core.shapes import Float, Tensor
from pullback.core.transforms import below_transforms
from pullback.dynamics.finite_elements import FunctionSpace, assemble, prolongation
from pullback.implicit import SparseMatrix, SparsePattern, linear_solve, projection_affine

__all__ = ["MeshProcessor", "MultigridProcessor", "StructurePreservingOperator"]

_GATES = 5  # what gates see of a coefficient field: itself and what the four integrals say of it
_PROJECTIONS = 12  # steps of Chebyshev's iteration for a mass matrix: an error of 1e-4 of the right side
_SMALL = 2**20  # numbers up to which the projection is kept as a matrix
_DENSE = 2**15  # and up to which a product with a stencil costs less with its zeros
_SPECTRUM = (0.35, 2.1)  # of diag(M)^-1 M on triangles, of degree 1 (1/2 to 2) and 2 (0.39 to 2.06) (Wathen, 1987)


class _Stencil:
    """A constant matrix with few entries, for features along the first dimension."""

    def __init__(self, matrix: SparseMatrix) -> None:
        self.matrix = SparseMatrix(matrix.pattern, matrix.values.detach())
        self._kept: dict[tuple[torch.dtype, torch.device], tuple[Tensor, ...]] = {}

    def __deepcopy__(self, memo: object) -> _Stencil:
        return self  # nothing of it changes

    def at(self, like: Tensor) -> tuple[Tensor, ...]:
        """The matrix and its transpose, by rows where they are large, kept for each dtype and device."""
        key = (like.dtype, like.device)
        if key not in self._kept:
            with below_transforms(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
                pattern, values = self.matrix.pattern, self.matrix.values
                whole = torch.sparse_coo_tensor(
                    torch.stack([pattern.rows, pattern.columns]), values, pattern.shape, check_invariants=False
                )
                whole = whole.to(device=like.device, dtype=like.dtype).coalesce()
                pair = (whole, whole.mT.coalesce())
                dense = math.prod(pattern.shape) <= _DENSE
                self._kept[key] = tuple(part.to_dense() if dense else part.to_sparse_csr() for part in pair)
        return self._kept[key]

    def __matmul__(self, h: Tensor) -> Tensor:
        wide = h.to(torch.promote_types(h.dtype, torch.float32))
        matrix, turned = self.at(wide)
        if matrix.layout == torch.strided:
            product = matrix @ wide.flatten(1)
        else:
            product = _Product.apply(_Opaque(matrix), _Opaque(turned), wide.flatten(1))
        return product.view(len(matrix), *h.shape[1:]).to(h.dtype)


class _Opaque:
    """A tensor that transforms do not look into."""

    def __init__(self, held: Tensor) -> None:
        self.held = held


class _Product(torch.autograd.Function):
    """Constant sparse rows times a matrix: linear, so that each of its derivatives is such a product."""

    @staticmethod
    def forward(matrix: _Opaque, turned: _Opaque, h: Tensor) -> Tensor:
        return matrix.held @ h

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[_Opaque, _Opaque, Tensor], output: Tensor) -> None:
        ctx.matrix, ctx.turned, _ = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, Tensor]:
        return None, None, _Product.apply(ctx.turned, ctx.matrix, grad.contiguous())

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return _Product.apply(ctx.matrix, ctx.turned, tangents[2])

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        wide = args[2].movedim(in_dims[2], -1)
        return _Product.apply(*args[:2], wide.flatten(1)).unflatten(1, wide.shape[1:]), 2


class _Level:
    r"""Integrals around each coefficient of a space, in units of its own length, and what else a round needs.

    Rows i, n + i, ... of the stencil hold, for the patch :math:`\omega_i` of the cells that have i: the mean, the mean
    of the slopes times :math:`\ell_i`, and :math:`-K_{ij}/K_{ii}`, with :math:`\ell_i^2=|\omega_i|/K_{ii}`.
    """

    def __init__(self, space: FunctionSpace) -> None:
        if space.size != len(space.dof_points.unique(dim=0)) or len(space.dofs[0]) == 1:
            raise ValueError(f"space must join its cells by coefficients at different points, got {space.family}")
        with torch.no_grad():
            n, mesh = space.size, space.mesh
            areas, stiffness = mesh.areas, assemble("stiffness", space)
            weights, values, derivatives = space._tables(mesh.vertices)
            patch = areas.new_zeros(n).index_add(0, space.dofs.flatten(), areas.repeat_interleave(len(space.dofs[0])))
            diagonal = stiffness.diagonal()
            self.area = patch / diagonal
            slopes = torch.einsum("q,qja,mak->kmj", weights, derivatives, mesh.slopes) * areas[:, None]
            local = torch.cat([(areas[:, None] * (weights @ values))[None], slopes])
            rows = space.dofs[:, :, None].expand(-1, -1, space.dofs.shape[1]).flatten()
            columns = space.dofs[:, None, :].expand(-1, space.dofs.shape[1], -1).flatten()
            scale = torch.stack([1 / patch, *[self.area.sqrt() / patch] * 2])
            parts = [
                (rows, columns + k * n, (one[:, None].expand(-1, space.dofs.shape[1], -1).flatten() * of[rows]))
                for k, (one, of) in enumerate(zip(local, scale, strict=True))
            ]
            pattern = stiffness.pattern
            parts.append((pattern.rows, pattern.columns + 3 * n, -stiffness.values / diagonal[pattern.rows]))
            rows, columns, entries = (torch.cat(part) for part in zip(*parts, strict=True))
            pattern = SparsePattern(columns // n * n + rows, columns % n, (4 * n, n))
            self.stencil = _Stencil(SparseMatrix(pattern, entries))
            self.boundary = areas.new_zeros(n, 1, 1)
            self.boundary[space.dirichlet_dofs] = 1


class _Transfer:
    """Between nested spaces: the embedding, means of what it meets, the projection, and values at common points."""

    def __init__(self, coarse: FunctionSpace, fine: FunctionSpace) -> None:
        with torch.no_grad():
            embedding = prolongation(coarse, fine)
            rows, columns, values = embedding.pattern.rows, embedding.pattern.columns, embedding.values
            turned = embedding.mT
            total = turned @ values.new_ones(fine.size)
            self.up = _Stencil(embedding)
            self.down = _Stencil(SparseMatrix(turned.pattern, turned.values / total[turned.pattern.rows]))
            self.restrict = _Stencil(turned)
            self.fine, self.coarse = (_Stencil(assemble("mass", space)) for space in (fine, coarse))
            self.diagonal = self.coarse.matrix.diagonal()[:, None, None]
            order = values.argsort()
            order = order[columns[order].argsort(stable=True)]  # the largest of each column last: one, but for rounding
            self.places = rows[order[columns.bincount(minlength=coarse.size).cumsum(0) - 1]]
            self.whole: Tensor | None = None
            if coarse.size * fine.size <= _SMALL:
                self.whole = self.project(torch.eye(fine.size).to(values)[:, :, None])[..., 0]

    def project(self, x: Tensor) -> Tensor:
        """The functions of the coarse space nearest in the mean square, to 1e-4: Chebyshev's iteration."""
        if self.whole is not None:
            return (self.whole.to(x) @ x.flatten(1)).view(len(self.whole), *x.shape[1:])
        low, high = _SPECTRUM
        centre, half = (high + low) / 2, (high - low) / 2
        right, diagonal = self.restrict @ (self.fine @ x), self.diagonal.to(x)
        step, found = right / diagonal / centre, torch.zeros_like(right)
        ratio = half / centre
        for _ in range(_PROJECTIONS):
            found = found + step
            nextly = 1 / (2 * centre / half - ratio)
            residual = (right - self.coarse @ found) / diagonal
            step, ratio = nextly * ratio * step + 2 * nextly / half * residual, nextly
        return found


class _Round(nn.Module):
    """One round: messages in the cells, their integrals, an update. Features are ``[n, batch, channels]``."""

    def __init__(self, channels: int, data: int) -> None:
        super().__init__()
        self.messages = nn.Parameter(torch.empty(4, channels, channels))
        self.own = nn.Linear(channels + data, channels, bias=False)
        self.out = nn.Linear(channels, channels, bias=False)
        self.gates = nn.Linear(channels, 2 * channels)

    def forward(self, h: Tensor, data: Tensor, seen: Tensor, level: _Level) -> Tensor:
        n, batch, channels = h.shape
        around = (level.stencil @ h).view(4, n, batch, channels)
        weights = torch.cat([self.messages.flatten(0, 1), self.own.weight.mT])
        told = torch.cat([*around, h, data], -1) @ weights
        inner, outer = (2 * torch.sigmoid(2 * self.gates(seen))).chunk(2, -1)  # 1 + tanh, in half of the time
        return h + outer * self.out(inner * told)


class _Processor(nn.Module):
    """Features from fields and back: what both processors share."""

    def __init__(self, kinds: tuple[int, int, int], channels: int, levels: int, rounds: int) -> None:
        super().__init__()
        self.kinds = [check_integer("coefficients", kinds[0], 0), check_integer("sources", kinds[1], 0), kinds[2]]
        if not sum(self.kinds):
            raise ValueError("coefficients, sources and boundary must be at least 1 field together, got 0")
        check_integer("channels", channels, 1)
        data = self.kinds[1] + self.kinds[2] or 1
        self.lift = nn.Linear(data, channels, bias=False)
        self.look = nn.ModuleList(nn.Linear(_GATES * self.kinds[0] + 1, channels) for _ in range(levels))
        self.rounds = nn.ModuleList(_Round(channels, data) for _ in range(rounds))
        self.head = nn.Linear(channels, 1, bias=False)

    def _draw(self, generator: torch.Generator | None) -> None:
        with torch.no_grad():
            for name, p in self.named_parameters():
                owner = self.get_submodule(name.rpartition(".")[0]) if "." in name else self
                fan = owner.in_features if isinstance(owner, nn.Linear) else p.shape[1]
                if isinstance(owner, _Round) or name.endswith("own.weight"):
                    fan = 5 * self.head.in_features + self.lift.in_features  # they add up
                p.uniform_(-(fan**-0.5), fan**-0.5, generator=generator)

    def _enter(self, x: Tensor) -> Tensor:
        """``[*batch, fields, n]`` to ``[n, batch, fields]``."""
        nodes = x.flatten(0, -3).permute(2, 0, 1) if x.ndim > 2 else x.mT[:, None]
        return nodes.contiguous()

    def _check(self, x: Tensor, size: int) -> None:
        check_shape("x", check_floating("x", x), (sum(self.kinds), size))
        check_same_dtype(x=x, weight=self.head.weight)

    def _told(self, x: Tensor, level: _Level, of: int, reference: float) -> tuple[Tensor, Tensor]:
        """What rounds on a level take in linearly, and what their gates see."""
        q, f, g = x.split(self.kinds, -1)
        flags = level.boundary.to(x).expand(-1, x.shape[1], 1)
        around = (level.stencil @ q).view(4, *q.shape) if q.shape[-1] else q.expand(4, *q.shape)
        seen = F.gelu(self.look[of](torch.cat([q, *around, flags], -1)))
        if not sum(self.kinds[1:]):
            return torch.ones_like(flags), seen
        return torch.cat([f * (level.area / reference).to(x)[:, None, None], g], -1), seen

    def _found(self, h: Tensor, data: Tensor, level: _Level) -> Tensor:
        """The output as a field: the boundary data carried inside, and a function that is zero at the boundary."""
        found = self.head(h)
        return data[..., -1:] + (1 - level.boundary.to(found)) * found if self.kinds[2] else found


class MeshProcessor(_Processor):
    r"""Rounds of messages between the coefficients that share a cell, added up as integrals over the cells.

    .. math::
        m_i = \frac{1}{|\omega_i|}\int_{\omega_i}\big(W_0 h + \ell_i W_1\partial_x h + \ell_i W_2\partial_y h\big)
        - \frac{1}{K_{ii}}\sum_j K_{ij} W_3 h_j, \qquad
        h_i \leftarrow h_i + b_i\odot U\big(a_i\odot(m_i + V h_i + T d_i)\big)

    where :math:`\omega_i` are the cells that have i, :math:`\ell_i^2=|\omega_i|/K_{ii}` and K is the stiffness matrix:
    each message has a weight from the mesh, and what arrives is that of the functions, however cells are cut. Inputs
    are of three kinds. *Coefficients* of an equation are seen by the gates :math:`a, b\in(0, 2)` alone, networks of
    their values, means, slopes and stencils; output is linear in the others, :math:`d`: in *sources*, which count in
    proportion to the area :math:`\ell_i^2`, and in values at the *boundary*, which the output has there. Without either
    d is the number one, and the output any function of the coefficients. A round of messages goes one cell far.

    Args:
        space: whose coefficients are at different points, in one piece: Lagrange or Crouzeix-Raviart.
        coefficients: fields that come first, >= 0.
        sources: fields that follow, >= 0.
        boundary: whether the last field is what the output is at the boundary, zero inside.
        channels: width, >= 1.
        layers: rounds of messages, >= 1.
        generator: of the weights, uniform within one over the root of the fan in.

    Raises:
        TypeError: a size is no integer, ``space`` no :class:`FunctionSpace`.
        ValueError: a size is out of range, there is no field, or the space does not fit.

    Example:
        >>> from pullback.dynamics import grid_mesh
        >>> space = FunctionSpace(grid_mesh((3, 3)))
        >>> processor = MeshProcessor(space, coefficients=1, sources=1, channels=8, layers=2)
        >>> processor(torch.randn(5, 2, 16)).shape
        torch.Size([5, 16])
        >>> processor.on(FunctionSpace(grid_mesh((5, 4))))(torch.randn(2, 30)).shape
        torch.Size([30])

    References:
        Bouziani, Boulle (2024), Structure-preserving operator learning, arXiv 2410.01065, section 3. Jiang et al.
        (2019), Spherical CNNs on unstructured grids, arXiv 1901.02039: differential operators as filters.
    """

    def __init__(
        self,
        space: FunctionSpace,
        *,
        coefficients: int = 0,
        sources: int = 0,
        boundary: bool = False,
        channels: int = 32,
        layers: int = 4,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__((coefficients, sources, int(boundary)), channels, 1, check_integer("layers", layers, 1))
        self.level = _Level(_checked(space, "space"))
        self.reference = float(self.level.area.mean())
        self._draw(generator)

    def on(self, space: FunctionSpace) -> MeshProcessor:
        """Return a processor with the same parameters (not a copy of them) on another space."""
        other = copy.copy(self)
        other.level = _Level(_checked(space, "space"))
        return other

    def forward(self, x: Float[Tensor, "*batch fields n"]) -> Float[Tensor, "*batch n"]:
        """Return coefficients ``[*batch, n]`` from those of the fields."""
        self._check(x, len(self.level.area))
        data, seen = self._told(self._enter(x), self.level, 0, self.reference)
        h = self.lift(data)
        for layer in self.rounds:
            h = layer(h, data, seen, self.level)
        return _leave(self._found(h, data, self.level), x)


class MultigridProcessor(_Processor):
    r"""A V-cycle on nested spaces whose smoothers are rounds of messages: all coefficients meet at linear cost.

    On each level some rounds (as in :class:`MeshProcessor`), the correction of the next coarser level
    :math:`h\leftarrow h+P\,(V(Rh)-Rh)`, and as many rounds again. P is the exact embedding of the coarse space
    (:func:`prolongation`), R its transpose with rows of sum one. The coarsest level has all its rounds at once. Every
    level has parameters of its own, as many as ``2 * smoothing`` rounds, and its own view of the inputs: coefficients
    and sources by projection in the mean square, so that a level sees the same on whatever finer mesh they are told;
    values at the boundary as they are there, carried inside from the coarser level by P.

    Args:
        spaces: Lagrange spaces from the coarsest to the finest, nested, at least 2.
        coefficients: fields that come first, >= 0, as for :class:`MeshProcessor`.
        sources: fields that follow, >= 0.
        boundary: whether the last field is what the output is at the boundary, zero inside.
        channels: width, >= 1.
        smoothing: rounds before and after the correction, >= 1.
        generator: of the weights, as for :class:`MeshProcessor`.

    Raises:
        TypeError: a size is no integer, a space no :class:`FunctionSpace`.
        ValueError: a size is out of range, there is no field, or spaces are not nested.

    Example:
        >>> from pullback.dynamics import grid_mesh
        >>> mesh = grid_mesh((2, 2))
        >>> spaces = [FunctionSpace(mesh), FunctionSpace(mesh.refine()), FunctionSpace(mesh.refine())]
        >>> MultigridProcessor(spaces, sources=1)
        Traceback (most recent call last):
        ValueError: meshes must be nested: ...
        >>> fine = mesh.refine()
        >>> processor = MultigridProcessor([FunctionSpace(mesh), FunctionSpace(fine)], sources=1, channels=8)
        >>> processor(torch.randn(5, 1, 25)).shape
        torch.Size([5, 25])

    References:
        Bouziani, Boulle (2024), Structure-preserving operator learning, arXiv 2410.01065, section 4.
    """

    def __init__(
        self,
        spaces: Sequence[FunctionSpace],
        *,
        coefficients: int = 0,
        sources: int = 0,
        boundary: bool = False,
        channels: int = 32,
        smoothing: int = 1,
        generator: torch.Generator | None = None,
    ) -> None:
        rounds = 2 * check_integer("smoothing", smoothing, 1) * len(spaces)
        super().__init__((coefficients, sources, int(boundary)), channels, len(spaces), rounds)
        self.smoothing = smoothing
        self._place(spaces)
        self.references = [float(level.area.mean()) for level in self.levels]
        self._draw(generator)

    def _place(self, spaces: Sequence[FunctionSpace]) -> None:
        if len(spaces) < 2:
            raise ValueError(f"spaces must be at least 2, got {len(spaces)}")
        self.levels = [_Level(_checked(space, "spaces")) for space in spaces]
        self.transfers = [_Transfer(*pair) for pair in pairwise(spaces)]

    def on(self, spaces: Sequence[FunctionSpace]) -> MultigridProcessor:
        """Return a processor with the same parameters (not a copy of them) on other spaces.

        Levels are matched from the coarsest. Those beyond add no rounds: the function that is found is embedded, and
        takes the boundary data of the finer mesh, so that it is the same operator between functions.

        Raises:
            ValueError: ``spaces`` are fewer than the processor has levels, or not nested.
        """
        if len(spaces) < len(self.references):
            raise ValueError(f"spaces must be at least the {len(self.references)} of the processor, got {len(spaces)}")
        other = copy.copy(self)
        other._place(spaces)
        return other

    def forward(self, x: Float[Tensor, "*batch fields n"]) -> Float[Tensor, "*batch n"]:
        """Return coefficients ``[*batch, n]`` of the finest space from those of the fields."""
        self._check(x, len(self.levels[-1].area))
        inputs, last = self._inputs(self._enter(x)), len(self.references) - 1
        told = [self._told(inputs[k], self.levels[k], k, reference) for k, reference in enumerate(self.references)]
        found = self._found(self._cycle(self.lift(told[last][0]), told, last), told[last][0], self.levels[last])
        for k in range(last, len(self.transfers)):
            edge: Tensor | int = self.levels[k + 1].boundary.to(found) if self.kinds[2] else 0
            found = edge * inputs[k + 1][..., -1:] + (1 - edge) * (self.transfers[k].up @ found)
        return _leave(found, x)

    def _inputs(self, x: Tensor) -> list[Tensor]:
        """The inputs on every level, from the coarsest."""
        inner = self.kinds[0] + self.kinds[1]
        inputs, edges = [x[..., :inner]], [x[..., inner:]]
        for transfer in reversed(self.transfers):
            inputs.insert(0, transfer.project(inputs[0]) if inner else inputs[0][transfer.places])
            edges.insert(0, edges[0][transfer.places])
        if self.kinds[2]:
            for k, transfer in enumerate(self.transfers):
                inside = 1 - self.levels[k + 1].boundary.to(x)
                edges[k + 1] = edges[k + 1] + inside * (transfer.up @ edges[k])
        return [torch.cat(pair, -1) for pair in zip(inputs, edges, strict=True)]

    def _cycle(self, h: Tensor, told: list[tuple[Tensor, Tensor]], level: int) -> Tensor:
        first = 2 * self.smoothing * level
        for k in range(2 * self.smoothing):
            if level and k == self.smoothing:
                transfer = self.transfers[level - 1]
                below = transfer.down @ h
                h = h + transfer.up @ (self._cycle(below, told, level - 1) - below)
            h = self.rounds[first + k](h, *told[level], self.levels[level])
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
        >>> processor = MeshProcessor(space, sources=1, boundary=True, channels=8)
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


def _leave(found: Tensor, x: Tensor) -> Tensor:
    """``[n, batch, 1]`` in the shape of ``[*batch, fields, n]`` without its fields."""
    return found[..., 0].mT.reshape(*x.shape[:-2], x.shape[-1])


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
