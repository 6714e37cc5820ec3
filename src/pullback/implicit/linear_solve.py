"""Linear systems given by products, with derivatives of every order in the right side and in the matrix."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch.func import vjp, vmap

from pullback.core.checks import check_broadcast, check_choice, check_floating, check_integer, check_same_dtype
from pullback.core.gradients import nested_forward_mode, primals
from pullback.core.rows import Rows
from pullback.core.shapes import Float, Tensor
from pullback.implicit import krylov
from pullback.implicit.arguments import check_function, check_number
from pullback.implicit.iteration import Map, iterate, norm
from pullback.implicit.solution import Reason, Solution, describe, raise_unless_converged
from pullback.implicit.sparse_matrices import SparseMatrix, SparsePattern

__all__ = ["DENSE_LIMIT", "LinearMethod", "LinearOptions", "Operator", "dense", "linear_solve"]

LinearMethod = Literal["auto", "cg", "normal_cg", "bicgstab", "gmres", "lu"]
DENSE_LIMIT = 512
"""Largest number of unknowns for which a dense matrix is built."""


@dataclass(frozen=True)
class LinearOptions:
    """How a linear system is solved: the arguments of :func:`linear_solve`.

    Attributes:
        method, tolerance, max_iterations, preconditioner, ridge, batch_ndim: as there.
        warn: what to call the solve in a warning when it does not converge; empty: no warning.
        argument: what the caller's argument for the method is called.
    """

    method: str = "auto"
    tolerance: float | None = None
    max_iterations: int | None = None
    preconditioner: Map | None = None
    ridge: float = 0.0
    batch_ndim: int = 0
    warn: str = ""
    argument: str = "method"

    def __post_init__(self) -> None:
        check_choice(self.argument, self.method, get_args(LinearMethod))
        check_number("ridge", self.ridge, zero=True)
        if self.tolerance is not None:
            check_number("tolerance", self.tolerance)
        if self.max_iterations is not None:
            check_integer("max_iterations", self.max_iterations, 1)
        if self.preconditioner is not None:
            check_function("preconditioner", self.preconditioner)
        check_integer("batch_ndim", self.batch_ndim, 0)


@dataclass(frozen=True)
class Operator:
    """A matrix that depends on tensors: ``at(*tensors)`` gives ``v -> A v``, ``adjoint_at`` gives ``w -> A^T w``.

    Where the matrix has an elimination of its own, ``inverse_at(ridge, *tensors)`` gives ``b -> (A + ridge I)^{-1} b``,
    and ``adjoint_inverse_at`` that of the transposed one.
    """

    at: Callable[..., Map]
    adjoint_at: Callable[..., Map]
    symmetric: bool = False
    inverse_at: Callable[..., Map] | None = None
    adjoint_inverse_at: Callable[..., Map] | None = None

    def transposed(self) -> Operator:
        """Return the transposed matrix."""
        return Operator(self.adjoint_at, self.at, self.symmetric, self.adjoint_inverse_at, self.inverse_at)


def linear_solve(
    matvec: Callable[..., Tensor] | Float[Tensor, "*batch n n"] | SparseMatrix,
    b: Float[Tensor, "..."],
    *,
    method: str = "auto",
    tolerance: float | None = None,
    max_iterations: int | None = None,
    preconditioner: Map | None = None,
    ridge: float = 0.0,
    parameters: Sequence[Float[Tensor, "..."]] = (),
    batch_ndim: int | None = None,
    columns: bool = False,
    check: bool = False,
) -> Solution:
    r"""Solve ``(A + ridge I) x = b``; only products with ``A`` are needed.

    Derivatives (reverse, forward, any order) are those of the exact solution:
    ``dx = A^{-1} (db - dA x)``, ``b_bar = A^{-T} x_bar``, each found by one more solve of the same kind.

    Args:
        matvec: ``A`` itself, ``[*batch, n, n]`` or a :class:`SparseMatrix`, or a linear function ``v -> A v`` (called
            ``matvec(v, *parameters)``) that keeps the shape of ``b``.
        b: right side. ``[*batch, n]`` for a matrix, both batches broadcast; any shape for a function.
        method: ``"cg"`` for symmetric positive (semi)definite ``A``; ``"normal_cg"`` (conjugate gradients on ``A^T A``,
            where ``ridge`` is added to ``A^T A``), ``"bicgstab"``, ``"gmres"`` for general ``A``; ``"lu"``: dense, up
            to 512 unknowns, a function is then called under ``torch.func.vmap``. A sparse matrix of any size is
            eliminated block by block along the breadth-first levels of its pattern, which suits meshes of the plane;
            pivots are chosen inside of a block alone: where those of a matrix that is neither definite nor dominated
            by its diagonal fail, ``converged`` says so. ``"auto"`` is ``"lu"`` for a sparse matrix and up to 512
            unknowns, else ``"gmres"``.
        tolerance: converged when ``|b - A x| <= tolerance * |b|``; default 1e-10 in float64, 1e-5 in float32.
        max_iterations: of a Krylov method; default ``10 n``.
        preconditioner: ``v -> M^{-1} v``, symmetric, approximating ``A^{-1}`` (``(A^T A)^{-1}`` for ``"normal_cg"``).
        ridge: >= 0, added to the diagonal: makes a singular ``A`` solvable.
        parameters: every tensor that the function ``matvec`` uses and that needs a derivative.
        batch_ndim: number of leading dimensions of ``b`` that are independent systems; default: all but the last for a
            matrix, 0 for a function (one system over all entries).
        columns: whether ``b`` holds ``k`` right sides of each matrix, ``[*batch, n, k]``; the matrix is then factorised
            once for all. A function takes them as leading dimensions, with ``batch_ndim``.
        check: raise when a system did not converge.

    Returns:
        ``Solution``: ``value`` like ``b``; ``residual [*batch]`` (``[*batch, k]`` with ``columns``), the 2-norm of
        ``b - (A + ridge I) x``, of the normal equations for ``"normal_cg"`` with a ridge; ``iterations`` (products; 1
        for ``"lu"``), ``reason`` and ``converged``. A singular ``A`` without ridge shows as ``converged`` false;
        ``value`` is then the last finite point, 0 where elimination breaks down, and derivatives warn.

    Raises:
        TypeError: ``b`` is no floating tensor, the matrix has another dtype, or ``matvec`` is no function.
        ValueError: an unknown method, a shape that does not fit, ``"lu"`` above 512 unknowns, or ``matvec`` uses a
            tensor that requires a derivative and is not in ``parameters``.
        ConvergenceError: ``check`` is set and a system did not converge; carries the ``Solution``.

    Example:
        >>> A = torch.tensor([[4.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
        >>> solution = linear_solve(lambda v: A @ v, torch.tensor([1.0, 2.0], dtype=torch.float64), method="cg")
        >>> [round(v, 4) for v in solution.value.tolist()], bool(solution.converged)
        ([0.0909, 0.6364], True)

    References:
        Blondel et al. (2022), Efficient and modular implicit differentiation, section 2.1; Saad (2003).
    """
    check_floating("b", b)
    if isinstance(matvec, Tensor | SparseMatrix):
        values, b = _aligned(matvec, b, columns)
        if batch_ndim is None:
            batch_ndim = b.ndim - 1
        operator = _of_sparse(matvec.pattern) if isinstance(matvec, SparseMatrix) else _COLUMNS if columns else _MATRIX
        tensors: tuple[Tensor, ...] = (values,)
    else:
        check_function("matvec", matvec)
        if columns:
            raise ValueError("columns=True is for a matrix; a function takes right sides as leading dimensions of b")
        operator, tensors = _of_function(matvec), tuple(parameters)
        _try(operator, b, tensors)
    options = LinearOptions(
        method=method,
        tolerance=tolerance,
        max_iterations=max_iterations,
        preconditioner=preconditioner,
        ridge=ridge,
        batch_ndim=batch_ndim or 0,
    )
    if options.batch_ndim > b.ndim:
        raise ValueError(f"batch_ndim must be in [0, {b.ndim}] for b {tuple(b.shape)}, got {batch_ndim}")
    solution = solve_system(operator, b, tensors, options)
    if columns:
        solution = solution._replace(value=solution.value.mT)
    if check:
        raise_unless_converged("linear_solve", solution)
    return solution


def _aligned(matrix: Tensor | SparseMatrix, b: Tensor, columns: bool) -> tuple[Tensor, Tensor]:
    """Return the numbers of the matrix and the right sides as rows, with batches that broadcast."""
    values, shape = (matrix.values, matrix.shape) if isinstance(matrix, SparseMatrix) else (matrix, matrix.shape)
    rows = b.mT if columns and b.ndim > 1 else b
    if b.ndim < 1 + columns or len(shape) < 2 or tuple(shape[-2:]) != (rows.shape[-1], rows.shape[-1]):
        raise ValueError(f"matvec must be [*batch, n, n] for b {tuple(b.shape)}, got {tuple(shape)}")
    check_same_dtype(matvec=values, b=b)
    batch = check_broadcast(matvec=tuple(shape[:-2]), b=tuple(rows.shape[: rows.ndim - 1 - columns]))
    if columns and isinstance(matrix, SparseMatrix) and len(shape) > 2:
        values = values.unsqueeze(-2)
    return values, rows.expand(*batch, *rows.shape[rows.ndim - 1 - columns :])


def _try(operator: Operator, b: Tensor, tensors: tuple[Tensor, ...]) -> None:
    """Multiply once: a map that does not fit, or that hides a tensor that requires a derivative, is told here."""
    with torch.enable_grad():
        try:
            product = operator.at(*(p.detach() for p in tensors))(b.detach())
        except (RuntimeError, IndexError) as error:
            raise ValueError(
                f"matvec must map a tensor of the shape of b, {tuple(b.shape)}, to one of that shape "
                f"(a square matrix); it fails on one: {error}"
            ) from error
    if product.requires_grad:
        raise ValueError("matvec uses a tensor that requires grad and is not in parameters; pass it there")


def solve_system(operator: Operator, b: Tensor, tensors: tuple[Tensor, ...], options: LinearOptions) -> Solution:
    """Solve with an :class:`Operator` at ``tensors``, differentiably in ``b`` and ``tensors``."""
    return Solution(*_LinearSolve.apply(operator, options, b, *tensors))


def resolve_method(options: LinearOptions, unknowns: int, symmetric: bool) -> str:
    """Return the method that ``"auto"`` stands for, and refuse a dense solve that is too large."""
    if options.method == "lu" and unknowns > DENSE_LIMIT:
        raise ValueError(
            f"method 'lu' builds a dense matrix and is for at most {DENSE_LIMIT} unknowns, got {unknowns}; "
            "use 'cg', 'gmres', 'bicgstab' or 'normal_cg'"
        )
    if options.method != "auto":
        return options.method
    return "lu" if unknowns <= DENSE_LIMIT else ("cg" if symmetric else "gmres")


def _of_function(function: Callable[..., Tensor]) -> Operator:
    def at(*tensors: Tensor) -> Map:
        def product(v: Tensor) -> Tensor:
            result = function(v, *tensors)
            if not isinstance(result, Tensor) or result.shape != v.shape:
                got = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
                raise ValueError(f"matvec must return the shape of its argument {tuple(v.shape)}, got {got}")
            return result

        return product

    def adjoint_at(*tensors: Tensor) -> Map:
        product = at(*tensors)
        return lambda w: vjp(product, torch.zeros_like(w))[1](w)[0]

    return Operator(at, adjoint_at)


_MATRIX = Operator(
    lambda matrix: lambda v: (matrix @ v[..., None])[..., 0],
    lambda matrix: lambda w: (matrix.mT @ w[..., None])[..., 0],
)


def _factorised(transposed: bool) -> Callable[..., Map]:
    def at(ridge: float, matrix: Tensor) -> Map:
        shifted = matrix + ridge * torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        factors, pivots, _ = torch.linalg.lu_factor_ex(shifted)
        return lambda v: torch.linalg.lu_solve(factors, pivots, v.mT, adjoint=transposed).mT

    return at


_COLUMNS = Operator(
    lambda matrix: lambda v: v @ matrix.mT,
    lambda matrix: lambda w: w @ matrix,
    inverse_at=_factorised(False),
    adjoint_inverse_at=_factorised(True),
)
"""``A`` on right sides ``[*batch, k, n]``."""


def _of_sparse(pattern: SparsePattern) -> Operator:
    def inverse_at(transposed: bool) -> Callable[..., Map]:
        def at(ridge: float, values: Tensor) -> Map:
            factors = pattern.elimination.factorise(values, ridge)
            return lambda v: pattern.elimination.solve(factors, v, transposed=transposed)

        return at

    return Operator(
        lambda values: lambda v: SparseMatrix(pattern, values) @ v,
        lambda values: lambda w: SparseMatrix(pattern, values).mT @ w,
        inverse_at=inverse_at(False),
        adjoint_inverse_at=inverse_at(True),
    )


class _LinearSolve(torch.autograd.Function):
    """``x`` of ``A(tensors) x = b``; its derivatives are further solves, so every order is exact."""

    @staticmethod
    def forward(operator: Operator, options: LinearOptions, b: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return tuple(_solve(operator, options, b, tensors)[:4])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.operator, ctx.options, _, *tensors = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(output[0], *tensors)
        ctx.save_for_forward(output[0], *tensors)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor, *_: Any) -> tuple[Any, ...]:
        x, *tensors = ctx.saved_tensors
        options = replace(ctx.options, warn=ctx.options.warn or "the backward pass of linear_solve")
        solution = solve_system(ctx.operator.transposed(), cotangent, tuple(tensors), options)
        grads = _product_vjp(ctx.operator, x, tensors, -solution.value) if any(ctx.needs_input_grad[3:]) else ()
        return None, None, solution.value, *(grads or (None,) * len(tensors))

    @staticmethod
    def jvp(ctx: Any, _operator: Any, _options: Any, b_tangent: Tensor | None, *tangents: Tensor | None) -> Any:
        with nested_forward_mode():
            x, *tensors = primals(ctx.saved_tensors)
            right = torch.zeros_like(x) if b_tangent is None else b_tangent
            if any(t is not None for t in tangents):
                filled = tuple(torch.zeros_like(p) if t is None else t for p, t in zip(tensors, tangents, strict=True))
                # The derivative of A(tensors) x along the tangents, as the transpose of its vjp.
                probe = torch.zeros_like(x)
                pulled = vjp(lambda w: _product_vjp(ctx.operator, x, tensors, w), probe)[1](filled)[0]
                right = right - pulled
            options = replace(ctx.options, warn=ctx.options.warn or "the forward derivative of linear_solve")
            solution = solve_system(ctx.operator, right, tuple(tensors), options)
        return solution.value, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], operator: Operator, options: LinearOptions, *tensors: Tensor) -> Any:
        return loop_over_batch(
            info.batch_size, in_dims[2:], tensors, lambda *t: _LinearSolve.apply(operator, options, *t)
        )


def _product_vjp(operator: Operator, x: Tensor, tensors: Sequence[Tensor], w: Tensor) -> tuple[Tensor, ...]:
    return vjp(lambda *t: operator.at(*t)(x), *tensors)[1](w) if tensors else ()


def loop_over_batch(
    size: int, in_dims: Sequence[int | None], tensors: Sequence[Tensor], call: Callable[..., tuple[Tensor, ...]]
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """Return ``call`` of each slice, stacked: the vmap rule of a solver that branches on its data."""
    results = [
        call(*(t if d is None else t.select(d, i) for t, d in zip(tensors, in_dims, strict=True))) for i in range(size)
    ]
    stacked = tuple(torch.stack(parts) for parts in zip(*results, strict=True))
    return stacked, (0,) * len(stacked)


def _solve(operator: Operator, options: LinearOptions, b: Tensor, tensors: tuple[Tensor, ...]) -> Solution:
    rows = Rows.of(b, options.batch_ndim, "b")
    # Half precision keeps too few digits for inner products: the iteration runs in float32, products in half.
    working = torch.float32 if b.dtype in (torch.float16, torch.bfloat16) else b.dtype

    def on_rows(function: Map) -> Map:
        return lambda v: rows.pack(function(rows.unpack(v.to(b.dtype)))).to(working)

    # Systems are linear: solved for right sides of ordinary size, whose squares neither overflow nor vanish.
    right = rows.pack(b).to(working)
    if rows.size == 0:
        nothing = rows.per_row(torch.zeros(rows.count, dtype=torch.int64, device=b.device))
        return Solution(b.clone(), nothing.to(b.dtype), nothing, nothing)
    right, scale, length = _ordinary(right, torch.finfo(b.dtype).max)
    direct = operator.inverse_at if options.method in ("auto", "lu") else None
    method = "lu" if direct is not None else resolve_method(options, rows.size, operator.symmetric)
    product, adjoint = on_rows(operator.at(*tensors)), on_rows(operator.adjoint_at(*tensors))
    shift = 0.0 if method == "normal_cg" else options.ridge
    matvec = (lambda v: product(v) + shift * v) if shift else product
    tolerance = options.tolerance if options.tolerance is not None else default_tolerance(b.dtype)
    threshold = tolerance * length
    limit = options.max_iterations if options.max_iterations is not None else 10 * rows.size
    precondition = on_rows(options.preconditioner) if options.preconditioner is not None else _identity
    if method == "lu":
        if direct is not None:
            inverse = direct(shift, *(t.to(working) for t in tensors))
            x = _solve_twice(matvec, lambda v: rows.pack(inverse(rows.unpack(v))), right)
        else:
            x = _solve_dense(matvec, right)
        iterations = torch.ones(rows.count, dtype=torch.int64, device=b.device)
        stopped = iterations.new_full((rows.count,), Reason.STALLED)
    else:
        algorithm: krylov.KrylovMethod
        if method == "cg":
            algorithm = krylov.CG(matvec, right, precondition)
        elif method == "normal_cg":
            algorithm = krylov.NormalCG(matvec, adjoint, right, precondition, options.ridge)
        elif method == "bicgstab":
            algorithm = krylov.BiCGStab(matvec, right, precondition)
        else:
            algorithm = krylov.GMRES(matvec, right, precondition, restart=min(30, limit))
            limit = -(-limit // algorithm.products)
        found = iterate(algorithm, torch.zeros_like(right), threshold, limit)
        x, iterations, stopped = found.x, found.iterations * algorithm.products, found.reason
    gap = right - matvec(x)
    if method == "normal_cg" and options.ridge:
        gap = adjoint(gap) - options.ridge * x
        threshold = tolerance * norm(adjoint(right))
    residual = norm(gap)
    reason = _judge(matvec, x, residual, 2 * threshold, length, torch.finfo(b.dtype).eps, stopped)
    solution = Solution(
        rows.unpack((x if scale is None else x * scale).to(b.dtype)),
        rows.per_row((residual if scale is None else residual * scale[:, 0]).to(b.dtype)),
        rows.per_row(iterations),
        rows.per_row(reason),
    )
    if options.warn and not bool(solution.converged.all()):
        warnings.warn(describe(options.warn, solution), RuntimeWarning, stacklevel=2)
    return solution


def _ordinary(right: Tensor, largest: float) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return the rows in a size whose squares neither overflow nor vanish, the scale taken out, and their norms."""
    length = norm(right)
    least, most = length.aminmax() if len(length) else (length.new_ones(()),) * 2
    limit = largest**0.4  # of the type that products are taken in
    if bool(least * limit > 1) and bool(most < limit):
        return right, None, length
    scale = right.abs().amax(1, keepdim=True)
    scale = torch.where((scale == 0) | ~torch.isfinite(scale), 1, scale)
    right = right / scale
    return right, scale, norm(right)


def _judge(
    matvec: Map, x: Tensor, residual: Tensor, threshold: Tensor, length: Tensor, eps: float, stopped: Tensor
) -> Tensor:
    """Return the reason of each row, from its true residual and from where the method ``stopped``."""
    good = residual <= threshold
    if bool(good.all()):
        return torch.full_like(stopped, Reason.CONVERGED)
    # Rounding alone leaves about eps |A||x|: a solve as good as its arithmetic has converged, unless the matrix is
    # singular to working precision, which shows as a residual above sqrt(eps) |b|.
    floor = torch.minimum(100 * eps * norm(matvec(x.abs())), eps**0.5 * length)
    finite = torch.isfinite(residual)
    reason = torch.where(stopped == Reason.CONVERGED, Reason.STALLED, stopped)
    reason = torch.where(finite, reason, Reason.DIVERGED)
    return torch.where(finite & (good | (residual <= floor)), Reason.CONVERGED, reason)


def default_tolerance(dtype: torch.dtype) -> float:
    """Return the relative tolerance of a solver in a floating type."""
    return {torch.float64: 1e-10, torch.float32: 1e-5}.get(dtype, 1e-2)


def _identity(v: Tensor) -> Tensor:
    return v


def dense(matvec: Map, rows: Float[Tensor, "count n"]) -> Float[Tensor, "count m n"]:
    """Return the matrix of a linear function of rows, by its products with the columns of the identity.

    Args:
        matvec: ``[count, n] -> [count, m]``, each row by itself.
        rows: any tensor of the shape and type of its argument.
    """
    n = rows.shape[-1]
    basis = torch.eye(n, dtype=rows.dtype, device=rows.device)
    basis = basis.reshape(n, *(1,) * (rows.ndim - 1), n).expand(n, *rows.shape)
    return vmap(matvec)(basis).movedim(0, -1)


def _solve_dense(matvec: Map, rows: Tensor) -> Tensor:
    matrix = dense(matvec, rows)
    x = torch.linalg.solve_ex(matrix, rows)[0]
    found = torch.isfinite(x).all(1)
    if not bool(found.all()):  # no elimination without a pivot: such a row stays at 0, where all methods start
        wrong = ~(torch.isfinite(rows).all(1) & torch.isfinite(matrix).flatten(1).all(1))
        x = torch.where((found | wrong)[:, None], x, 0)
    return x


def _solve_twice(matvec: Map, inverse: Map, rows: Tensor) -> Tensor:
    """Eliminate, and once more for what rounding left: pivots inside of blocks are not the largest of all."""
    x = inverse(rows)
    x = x + inverse(rows - matvec(x))
    wrong = ~(torch.isfinite(rows).all(1) & torch.isfinite(matvec(torch.ones_like(rows))).all(1))
    return torch.where((torch.isfinite(x).all(1) | wrong)[:, None], x, 0)
