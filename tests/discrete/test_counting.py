"""What counting, places, running extremes and rank filters promise beyond the laws of every block."""

from __future__ import annotations

import pytest
import torch
from scipy import ndimage
from tests.discrete.allocations import Largest

from pullback import discrete

N, BINS = 20_000, 2_000
"""A matrix of all entries and bins has 4e7 elements."""


@pytest.mark.parametrize("name", ["histc", "histogram", "bincount", "unique", "bucketize", "searchsorted"])
def test_no_matrix_of_entries_and_bins_is_formed(name: str) -> None:
    x = torch.rand(N, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    edges = torch.linspace(0, 1, BINS + 1, dtype=torch.float64)
    width = 0.1 / BINS  # an entry meets three edges
    calls = {
        "histc": lambda x: discrete.histc(x, BINS, 0, 1, temperature=width),
        "histogram": lambda x: discrete.histogram(x, edges, temperature=width).hist,
        "bincount": lambda x: discrete.bincount(x * (BINS - 1), temperature=0.1),
        "unique": lambda x: discrete.unique(x, edges, temperature=width).counts,
        "bucketize": lambda x: discrete.bucketize(x, edges, temperature=width),
        "searchsorted": lambda x: discrete.searchsorted(edges, x, temperature=width),
    }
    x.requires_grad_()
    with Largest() as made:
        value = calls[name](x)
        value.square().sum().backward()
    assert 0 < made.elements <= 10 * N
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert x.grad.any()
    # The window changes nothing: a tenth of the entries with all edges, by a step that is not cut.
    few = x.detach()[: N // 10]
    above = torch.sigmoid(4 * (few.unsqueeze(-1) - edges) / width)
    expected = {
        "histc": (above[:, :-1] - above[:, 1:]).sum(0),
        "histogram": (above[:, :-1] - above[:, 1:]).sum(0),
        "bucketize": above.sum(-1),
        "searchsorted": above.sum(-1),
    }
    if name in expected:
        torch.testing.assert_close(calls[name](few), expected[name], rtol=0, atol=1e-10)  # edges are rounded


def test_every_entry_is_counted_once() -> None:
    x = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for method in discrete.STEP_ERRORS:
        for temperature in (0.0, 0.3, 30.0):
            options = {"method": method, "temperature": temperature}
            counts = discrete.unique(x, torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64), **options).counts
            torch.testing.assert_close(counts.sum().item(), 50.0)
            torch.testing.assert_close(discrete.histc(x, 7, **options).sum().item(), 50.0)
            torch.testing.assert_close(discrete.bincount(x.exp(), **options).sum().item(), 50.0)


def test_hard_counts_are_torchs_with_a_gradient() -> None:
    x = torch.randint(0, 9, (40,), generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    edges = torch.tensor([0.0, 2.0, 2.0, 8.0], dtype=torch.float64)
    weight = torch.linspace(0, 1, 40, dtype=torch.float64)
    pairs = [
        (discrete.histc(x, 5, hard=True), torch.histc(x.detach(), 5)),
        (discrete.histc(x, 4, 1, 7, hard=True), torch.histc(x.detach(), 4, 1, 7)),
        (
            discrete.histogram(x, edges, weight=weight, hard=True).hist,
            torch.histogram(x.detach(), edges, weight=weight).hist,
        ),
        (discrete.histogram(x, 8, hard=True).hist, torch.histogram(x.detach(), 8).hist),
        (discrete.bincount(x, hard=True), torch.bincount(x.detach().long()).double()),
        (discrete.bucketize(x, edges, right=True, hard=True), torch.bucketize(x.detach(), edges, right=True).double()),
    ]
    for ours, torchs in pairs:
        torch.testing.assert_close(ours.detach(), torchs, rtol=1e-14, atol=1e-14)
        (gradient,) = torch.autograd.grad((ours * torch.arange(len(ours))).sum(), x)
        assert gradient.any()


def test_the_range_of_the_data_moves_with_the_data() -> None:
    """Scaled and shifted data have the same counts, if the temperature is scaled too."""
    x = torch.randn(30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    counts = discrete.histc(x, 6, temperature=0.2)
    torch.testing.assert_close(discrete.histc(3 * x + 5, 6, temperature=0.6), counts)


@pytest.mark.parametrize("mode", ["reflect", "nearest", "mirror", "wrap"])
@pytest.mark.parametrize("size", [(3,), (2, 3), (4, 1), (7, 9)])
def test_rank_filters_are_scipys_at_the_border(mode: str, size: tuple[int, ...]) -> None:
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = (1,) * (2 - len(size)) + size
    for rank in (0, 1, -1):
        ours = discrete.rank_filter(x, rank, size, mode=mode, hard=True)
        assert torch.equal(ours, torch.from_numpy(ndimage.rank_filter(x.numpy(), rank, size=whole, mode=mode)))
    ours = discrete.median_filter(x, size, mode=mode, hard=True)
    assert torch.equal(ours, torch.from_numpy(ndimage.median_filter(x.numpy(), size=whole, mode=mode)))


def test_a_running_maximum_takes_n_log_n() -> None:
    x = torch.randn(5000, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    with Largest() as made:
        values, indices = discrete.cummax(x, temperature=0.1)
        values.sum().backward()
    assert made.elements <= 2 * len(x)
    hard = torch.cummax(x.detach(), 0)
    assert torch.equal(indices, hard.indices)
    above = values.detach() - hard.values
    assert above.min() >= 0
    assert above.max() <= 0.1 / 4 * torch.tensor(5000.0).log()
