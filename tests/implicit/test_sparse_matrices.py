"""Sparse patterns, and elimination along their levels against scipy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
import torch
from torch import Tensor

from pullback.core.errors import ConvergenceError
from pullback.implicit import SparseMatrix, SparsePattern, linear_solve


def _random(n: int, entries: int, generator: torch.Generator) -> tuple[SparsePattern, Tensor]:
    """A pattern without symmetry, and values with a dominant diagonal."""
    rows, columns = torch.randint(n, (2, entries), generator=generator)
    pattern = SparsePattern(torch.cat([torch.arange(n), rows]), torch.cat([torch.arange(n), columns]), (n, n))
    values = torch.randn(3, n + entries, generator=generator, dtype=torch.float64)
    values[:, :n] = 4 * entries / n + 4
    return pattern, values


def _scipy(pattern: SparsePattern, values: Tensor) -> scipy.sparse.csc_array:
    places = (pattern.rows.numpy(), pattern.columns.numpy())
    return scipy.sparse.csc_array(scipy.sparse.coo_array((values.numpy(), places), shape=pattern.shape))


@pytest.mark.parametrize(("n", "entries"), [(1, 0), (5, 3), (40, 0), (200, 150), (200, 800), (600, 700)])
def test_elimination_equals_scipy(n: int, entries: int) -> None:
    """Also where the pattern has many parts, single unknowns and one dense block."""
    generator = torch.Generator().manual_seed(n + entries)
    pattern, values = _random(n, entries, generator)
    b = torch.randn(3, n, generator=generator, dtype=torch.float64)
    found = linear_solve(SparseMatrix(pattern, values), b)
    turned = linear_solve(SparseMatrix(pattern, values).mT, b)
    assert bool(found.converged.all())
    assert bool(turned.converged.all())
    for x, y, v, right in zip(found.value, turned.value, values, b, strict=True):
        matrix = _scipy(pattern, v)
        np.testing.assert_allclose(x, scipy.sparse.linalg.spsolve(matrix, right.numpy()), atol=1e-10)
        np.testing.assert_allclose(y, scipy.sparse.linalg.spsolve(matrix.T.tocsc(), right.numpy()), atol=1e-10)


def test_levels_of_a_grid_are_as_small_as_its_side() -> None:
    side = 40
    at = torch.arange(side * side).view(side, side)
    pairs = torch.cat(
        [torch.stack([a.flatten(), b.flatten()]) for a, b in ((at[1:], at[:-1]), (at[:, 1:], at[:, :-1]))], 1
    )
    pattern = SparsePattern(*torch.cat([pairs, pairs.flip(0)], 1), (side**2, side**2))
    shuffled = torch.randperm(side**2, generator=torch.Generator().manual_seed(0))
    other = SparsePattern(shuffled[pattern.rows], shuffled[pattern.columns], pattern.shape)
    for p in (pattern, other):
        groups = p.elimination.groups
        assert torch.equal(torch.cat(groups).sort().values, torch.arange(side**2))
        assert max(map(len, groups)) <= side


def test_one_matrix_serves_many_right_sides_and_many_matrices_one() -> None:
    generator = torch.Generator().manual_seed(0)
    pattern, values = _random(30, 60, generator)
    b = torch.randn(2, 3, 30, generator=generator, dtype=torch.float64)
    one = linear_solve(SparseMatrix(pattern, values[0]), b).value
    many = linear_solve(SparseMatrix(pattern, values), b[0, 0]).value
    assert one.shape == (2, 3, 30)
    assert many.shape == (3, 30)
    torch.testing.assert_close(one[0, 0], many[0])
    both = linear_solve(SparseMatrix(pattern, values), b)
    torch.testing.assert_close(both.value[1, 2], linear_solve(SparseMatrix(pattern, values[2]), b[1, 2]).value)


def test_gradients_in_the_values_sum_over_what_was_broadcast() -> None:
    generator = torch.Generator().manual_seed(1)
    pattern, values = _random(6, 8, generator)
    one = values[0].clone().requires_grad_()
    b = torch.randn(4, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    for method in ("lu", "gmres"):
        assert torch.autograd.gradcheck(
            lambda v, b, m=method: linear_solve(SparseMatrix(pattern, v), b, method=m, tolerance=1e-13).value, (one, b)
        )


def test_conjugate_gradients_and_a_ridge() -> None:
    generator = torch.Generator().manual_seed(2)
    pattern, values = _random(50, 0, generator)
    b = torch.randn(50, generator=generator, dtype=torch.float64)
    matrix = SparseMatrix(pattern, values[0].requires_grad_())
    for method in ("lu", "cg"):
        found = linear_solve(matrix, b, method=method, ridge=2.0, preconditioner=lambda v: v / 6)
        torch.testing.assert_close(found.value, b / (values[0] + 2), atol=1e-9, rtol=1e-9)


def test_a_singular_matrix_is_told() -> None:
    pattern = SparsePattern(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), (2, 2))
    matrix = SparseMatrix(pattern, torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 2.0]]))
    found = linear_solve(matrix, torch.tensor([1.0, 2.0]))
    assert found.converged.tolist() == [False, True]
    assert found.value.tolist() == [[0.0, 0.0], [1.0, 0.5]]
    with pytest.raises(ConvergenceError, match="linear_solve"):
        linear_solve(matrix, torch.tensor([1.0, 2.0]), check=True)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((torch.tensor([0]), torch.tensor([0, 1]), (2, 2)), ValueError, "two lists of one length"),
        ((torch.tensor([0.0]), torch.tensor([0]), (2, 2)), TypeError, "rows must hold integers of type int64"),
        ((torch.tensor([2]), torch.tensor([0]), (2, 2)), ValueError, r"rows must be in 0\.\.1, got 2\.\.2"),
        ((torch.tensor([0]), torch.tensor([-1]), (2, 2)), ValueError, r"columns must be in 0\.\.1, got -1"),
        ((torch.tensor([0]), torch.tensor([0]), (2,)), ValueError, "shape must be two numbers"),
        ((torch.tensor([0]), torch.tensor([0]), (2, 0)), ValueError, "shape must be an integer >= 1"),
    ],
)
def test_a_wrong_pattern_is_refused(
    arguments: tuple, error: type[Exception], words: str, without_shape_checks: None
) -> None:
    with pytest.raises(error, match=words):
        SparsePattern(*arguments)
