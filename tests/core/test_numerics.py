"""Solving with a matrix: half precision is solved in single, what is singular is refused."""

from __future__ import annotations

import pytest
import torch

from pullback.core.numerics import solve


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_solves_in_every_dtype(dtype: torch.dtype, generator: torch.Generator) -> None:
    matrix = torch.randn(3, 3, generator=generator) + 3 * torch.eye(3)
    right = torch.randn(3, 2, generator=generator)
    solution = solve(matrix.to(dtype), right.to(dtype))
    assert solution.dtype == dtype
    expected = torch.linalg.inv(matrix.to(dtype).double()) @ right.to(dtype).double()
    torch.testing.assert_close(solution.double(), expected, rtol=0, atol=8 * torch.finfo(dtype).eps)


def test_a_singular_matrix_is_refused() -> None:
    with pytest.raises(torch.linalg.LinAlgError, match="is singular"):
        solve(torch.zeros(2, 2), torch.ones(2, 1))
