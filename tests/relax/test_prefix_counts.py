"""How many independent events have come so far: the compiled table against enumeration and its plain twin."""

from __future__ import annotations

import itertools

import pytest
import torch

from pullback import relaxed
from pullback.kernels.prefix_counts import prefix_counts, prefix_counts_plain


def test_table_equals_enumeration() -> None:
    p = torch.rand(6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.zeros(6, 7, dtype=torch.float64)
    for i in range(6):
        for outcome in itertools.product((0, 1), repeat=i):
            chance = torch.tensor([float(q if o else 1 - q) for o, q in zip(outcome, p, strict=False)]).double().prod()
            expected[i, sum(outcome)] += chance
    torch.testing.assert_close(prefix_counts(p, 7), expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(prefix_counts_plain(p, 7), prefix_counts(p, 7), rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("most", [1, 2, 5, 9, 12])
def test_derivatives_equal_those_of_the_plain_form(most: int) -> None:
    g = torch.Generator().manual_seed(most)
    p = torch.rand(9, generator=g, dtype=torch.float64).requires_grad_()
    weights = torch.randn(9, most, generator=g, dtype=torch.float64)
    got, expected = (
        torch.autograd.grad((f(p, most) * weights).sum(), p)[0] for f in (prefix_counts, prefix_counts_plain)
    )
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)
    assert torch.autograd.gradgradcheck(lambda p: prefix_counts(p, most), p)
    tangent = torch.func.jvp(lambda p: prefix_counts(p, most), (p.detach(),), (torch.ones_like(p),))[1]
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(p.detach(), torch.ones(9, dtype=torch.float64))
        again = torch.autograd.forward_ad.unpack_dual(prefix_counts(dual, most)).tangent
    torch.testing.assert_close(again, tangent)
    batch = torch.stack([p.detach(), p.detach().flip(0)])
    one_by_one = torch.stack([prefix_counts(row, most) for row in batch])
    torch.testing.assert_close(torch.vmap(lambda p: prefix_counts(p, most))(batch), one_by_one)


def test_certain_events_and_a_cotangent_that_is_broadcast() -> None:
    p = torch.tensor([0.0, 1.0, 1.0, 0.0], requires_grad=True)
    assert prefix_counts(p, 3).tolist() == [[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]
    (of_every_count,) = torch.autograd.grad(prefix_counts(p, 4).sum(), p)
    assert of_every_count.tolist() == [0, 0, 0, 0], "rows that hold every count sum to one"
    (below_three,) = torch.autograd.grad(prefix_counts(p, 3).sum(), p)
    assert below_three.tolist() == [-1, 0, 0, 0], "a third event leaves the table"


def test_places_of_ten_thousand_soft_truths_point_downhill() -> None:
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with relaxed():
        first = torch.nonzero(x > 3).view(-1)[0] + 0.0
    (slope,) = torch.autograd.grad(first, x)
    assert slope.isfinite().all()
    assert slope[: int(first)].max() <= 0, "what rises above the threshold earlier is found earlier"
    assert slope[: int(first)].min() < 0


@pytest.mark.parametrize(("events", "most"), [(8, 0), (0, 3), (0, 0), (1, 1)])
def test_a_table_without_entries_writes_nothing(events: int, most: int) -> None:
    """Where nothing has come the table has no columns: a first column written all the same was another's memory."""
    p = torch.rand(events, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    counts = prefix_counts(p, most)
    assert counts.shape == (events, most)
    assert counts.tolist() == [[1.0] * most] * events
