"""Unknowns of any nesting as rows of one matrix."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pullback.core.rows import Rows


def _state(*lead: int) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(0)
    return {
        "position": torch.randn(*lead, 2, 3, generator=draw),
        "rest": (torch.randn(*lead, generator=draw), torch.randn(*lead, 4, generator=draw)),
    }


def test_a_row_holds_the_parts_of_one_problem_side_by_side() -> None:
    state = _state(5, 6)
    rows = Rows.of(state, 2)
    matrix = rows.pack(state)
    assert (rows.count, rows.size, rows.sizes) == (30, 11, (6, 1, 4))
    expected = torch.cat([state["position"][2, 3].flatten(), state["rest"][0][2, 3][None], state["rest"][1][2, 3]])
    torch.testing.assert_close(matrix[2 * 6 + 3], expected)


def test_unpacking_undoes_packing_and_keeps_dimensions_in_front() -> None:
    state = _state(4)
    rows = Rows.of(state, 1)
    many = rows.unpack(torch.stack([rows.pack(state), 2 * rows.pack(state)]))
    assert torch.equal(many["position"], torch.stack([state["position"], 2 * state["position"]]))
    assert torch.equal(many["rest"][0], torch.stack([state["rest"][0], 2 * state["rest"][0]]))
    scalar = torch.tensor(3.0)
    assert torch.equal(Rows.of(scalar, 0).unpack(Rows.of(scalar, 0).pack(scalar)), scalar)
    assert Rows.of(torch.zeros(0, 3), None).pack(torch.zeros(0, 3)).shape == (0, 3)


def test_one_number_a_row_takes_the_shape_of_the_batch() -> None:
    rows = Rows.of(torch.zeros(2, 3, 5), None)
    assert rows.per_row(torch.arange(6)).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert rows.per_row(torch.tensor([7])).tolist() == [[7, 7, 7], [7, 7, 7]]


@pytest.mark.parametrize(
    ("x", "batch_ndim", "error", "message"),
    [
        ((), 0, ValueError, "y0 must hold at least one tensor, got"),
        ([1.0], 0, TypeError, "y0 must be a floating tensor or a nesting of them, got float"),
        (torch.zeros(2, dtype=torch.int64), 0, TypeError, r"got torch\.int64"),
        (torch.tensor(1.0), None, ValueError, "y0 must have at least one dimension"),
        (torch.zeros(2), 2, ValueError, "batch_ndim must be between 0 and the dimensions of y0, got 2"),
        ((torch.zeros(2, 1), torch.zeros(3, 1)), 1, ValueError, "must share their first 1 dimensions"),
        ((torch.zeros(2), torch.zeros(2).double()), 0, ValueError, "must share dtype and device"),
    ],
)
def test_what_is_no_row_is_refused(x: Any, batch_ndim: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        Rows.of(x, batch_ndim, "y0")


def test_a_result_that_does_not_fit_is_named() -> None:
    rows = Rows.of(_state(4), 1)
    with pytest.raises(ValueError, match="field must return the structure of y"):
        rows.check(torch.zeros(4), "field", "y")
    with pytest.raises(ValueError, match=r"field must return the shapes of y, \[\(4, 2, 3\), \(4,\), \(4, 4\)\], got"):
        rows.check(_state(3), "field", "y")
