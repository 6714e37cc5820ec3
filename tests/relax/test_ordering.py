"""Orderings as operators: equal to their matrix where that can be formed, and without it beyond."""

from __future__ import annotations

import pytest
import torch

import pullback
from pullback import discrete
from pullback.relax.ordering import MAX_MATRIX, Ordering, TooMany

OPTIONS = {"temperature": 0.3, "scale": None}


def _keys(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("along", [0, 1])
def test_reading_and_writing_are_products_with_the_matrix(descending: bool, inverted: bool, along: int) -> None:
    x = _keys(5, 6)
    ordering = Ordering(x, along, descending, OPTIONS, inverted=inverted)
    matrix = ordering.probability.movedim(along, -2)  # [rest, elements, positions]
    table = _keys(5, 6, 2).detach().square()
    rows = table.movedim(along, -2).movedim(0, 0) if along else table.movedim(0, 1)  # [rest, n, 2]
    read = ordering.read(table)
    torch.testing.assert_close(read, (matrix @ rows).movedim(-2, along))
    written = ordering.write(table)
    torch.testing.assert_close(written, (matrix.mT @ rows).movedim(-2, along))
    torch.testing.assert_close(ordering.mean(), ordering.formed().mean())
    (direct,) = torch.autograd.grad(read.pow(2).sum(), x, retain_graph=True)
    (formed,) = torch.autograd.grad((matrix @ rows).pow(2).sum(), x, retain_graph=True)
    torch.testing.assert_close(direct, formed)


def test_a_part_of_the_places_reads_and_writes_rows_of_the_matrix() -> None:
    x = _keys(7)
    part = Ordering(x, 0, True, OPTIONS).part(0, 1, 4)
    assert part is not None
    matrix = discrete.argsort(x, descending=True, method="sinkhorn", **OPTIONS)[1:4]
    torch.testing.assert_close(part.probability, matrix)
    table = torch.arange(7.0, dtype=torch.float64)
    torch.testing.assert_close(part.read(table), matrix @ table)
    torch.testing.assert_close(part.write(table[:3]), matrix.mT @ table[:3])


def test_places_of_a_group_are_one_position() -> None:
    x = torch.tensor([0.2, -1.0, 0.2, 1.5], dtype=torch.float64, requires_grad=True)
    group = torch.tensor([0, 1, 1, 2])
    ranks = Ordering(x, 0, False, OPTIONS, inverted=True, group=(group, 3))
    matrix = discrete.argsort(x, method="sinkhorn", **OPTIONS).mT @ torch.eye(3, dtype=torch.float64)[group]
    torch.testing.assert_close(ranks.probability, matrix)
    torch.testing.assert_close(
        ranks.read(torch.tensor([1.0, 2.0, 5.0]).double()), matrix @ torch.tensor([1.0, 2, 5]).double()
    )
    torch.testing.assert_close(ranks.write(x), matrix.mT @ x)


N = 9_000


def test_beyond_the_largest_matrix_the_gradient_is_that_of_the_product() -> None:
    assert N * N > MAX_MATRIX
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(N, generator=generator, requires_grad=True)
    table, weight = torch.randn(N, generator=generator), torch.randn(N, generator=generator)
    with pullback.relaxed(temperature=0.1):
        read = (table[x.argsort()] * weight).sum()
    (gradient,) = torch.autograd.grad(read, x)
    soft = discrete.sort_by(x, table, method="sinkhorn", temperature=0.1 * float(x.detach().std()), scale=None)
    (expected,) = torch.autograd.grad((soft * weight).sum(), x)
    assert torch.equal(read, (table[x.detach().argsort()] * weight).sum())
    assert torch.cosine_similarity(gradient, expected, 0) > 0.999
    torch.testing.assert_close(gradient.norm(), expected.norm(), rtol=0.05, atol=0)


def test_beyond_the_largest_matrix_ranks_and_writes_keep_their_gradient() -> None:
    """A rank's derivative in its own value is the density of the others there: 1 for a uniform sample on [0, 1].

    With random signs what the others, which it passes, lose by it sums to nothing.
    """
    signs = torch.randint(2, (N,), generator=torch.Generator().manual_seed(3)) * 2.0 - 1
    x = torch.rand(N, generator=torch.Generator().manual_seed(2)).requires_grad_()
    for spelling in ("twice", "write", "inverse"):
        with pullback.relaxed(temperature=0.1):
            if spelling == "twice":
                rank = x.argsort().argsort()
            elif spelling == "write":
                rank = torch.empty(N, dtype=torch.long)
                rank[x.argsort()] = torch.arange(N)
            else:
                rank = x.unique(return_inverse=True)[1]
            weighed = (rank / N * signs).sum()
        (gradient,) = torch.autograd.grad(weighed, x)
        inside = (gradient * signs)[(x - 0.5).abs() < 0.4]
        assert abs(float(inside.mean()) - 1) < 0.05, spelling


def test_the_probabilities_themselves_are_not_formed_beyond_it() -> None:
    with pytest.raises(TooMany, match="9000 sorted entries"):
        _ = Ordering(torch.randn(N), 0, False, OPTIONS).probability
