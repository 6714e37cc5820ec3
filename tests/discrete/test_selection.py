"""Places and subsets of an order, against torch and closed forms."""

from __future__ import annotations

import pytest
import torch
from entmax import sparsemax
from tests.discrete.allocations import Largest
from torch import Tensor

from pullback import discrete

INF = float("inf")


def _random(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_argmax_is_softmax_and_sparsemax(generator: torch.Generator) -> None:
    x = _random(generator, 3, 6)
    soft = discrete.argmax(x, method="softsort", temperature=0.7, scale=None)
    torch.testing.assert_close(soft, torch.softmax(x / 0.7, -1))
    sparse = discrete.argmax(x, method="isotonic", temperature=0.7, scale=None)
    torch.testing.assert_close(sparse, sparsemax(x / 0.7, dim=-1))


@pytest.mark.parametrize("method", ["softsort", "neuralsort", "sinkhorn", "network", "isotonic"])
def test_argmax_is_the_last_row_of_the_permutation(method: str, generator: torch.Generator) -> None:
    x = _random(generator, 4, 5)
    row = discrete.argmax(x, 0, method=method, temperature=0.5)
    torch.testing.assert_close(row.sum(0), torch.ones(5, dtype=torch.float64))
    assert (row >= 0).all()
    if method != "isotonic":
        p = discrete.argsort(x, 0, method=method, temperature=0.5)
        torch.testing.assert_close(row, p[:, -1].T)
    hard = discrete.argmax(x, 0, method=method, hard=True)
    assert torch.equal(hard.argmax(0), x.argmax(0))
    assert set(hard.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("method", ["sinkhorn", "isotonic", "network"])
@pytest.mark.parametrize("largest", [True, False])
def test_masks_sum_to_k(method: str, largest: bool, generator: torch.Generator) -> None:
    x = _random(generator, 3, 7)
    for k in range(8):
        mask = discrete.soft_topk(x, k, largest=largest, method=method, temperature=0.5)
        torch.testing.assert_close(mask.sum(-1), torch.full((3,), float(k), dtype=torch.float64))
        assert mask.min() >= -1e-12
        assert mask.max() <= 1 + 1e-12
        hard = discrete.soft_topk(x, k, largest=largest, method=method, hard=True)
        expected = torch.zeros_like(x).scatter(-1, x.topk(k, largest=largest).indices, 1.0)
        assert torch.equal(hard, expected)


def test_the_transport_mask_is_the_two_target_plan(generator: torch.Generator) -> None:
    """Against log-domain Sinkhorn with targets 0 and 1 of masses n - k and k and cost -x * target."""
    x, k = _random(generator, 6), 2
    log_k = torch.stack([torch.zeros(6), x / 0.3], dim=-1).double()
    log_mass = torch.tensor([4.0, 2.0], dtype=torch.float64).log()
    g = torch.zeros(2, dtype=torch.float64)
    for _ in range(5000):
        f = -torch.logsumexp(log_k + g, -1)
        g = log_mass - torch.logsumexp(log_k + f.unsqueeze(-1), 0)
    plan = torch.exp(log_k + f.unsqueeze(-1) + g)
    mask = discrete.soft_topk(x, k, temperature=0.3, scale=None)
    torch.testing.assert_close(mask, plan[:, 1], rtol=1e-6, atol=1e-8)


def test_masks_with_infinities() -> None:
    x = torch.tensor([INF, 0.0, 1.0, -INF, 2.0], requires_grad=True)
    for method in ("sinkhorn", "isotonic", "network"):
        mask = discrete.soft_topk(x, 2, method=method, temperature=0.5)
        assert mask[0] > 1 - 1e-6
        assert mask[3] < 1e-6
        assert abs(mask.sum().item() - 2) < 1e-5
        (grad,) = torch.autograd.grad(mask[4], x)
        assert torch.isfinite(grad).all()


def test_partition_gives_a_trimmed_mean(generator: torch.Generator) -> None:
    x = _random(generator, 50)
    lower, upper = discrete.partition(x, 10, temperature=1e-6)
    torch.testing.assert_close((lower * x).sum() / 10, x.sort().values[:10].mean())
    torch.testing.assert_close(lower + upper, torch.ones_like(x))


@pytest.mark.parametrize("interpolation", ["linear", "lower", "higher", "nearest", "midpoint"])
@pytest.mark.parametrize("dim", [None, 0, 1, -1])
@pytest.mark.parametrize("keepdim", [False, True])
def test_quantile_is_laid_out_as_torch(
    interpolation: str, dim: int | None, keepdim: bool, generator: torch.Generator
) -> None:
    x = _random(generator, 4, 5)
    for q in (0.3, torch.tensor(0.5, dtype=torch.float64), torch.tensor([0.0, 0.21, 1.0], dtype=torch.float64)):
        got = discrete.quantile(x, q, dim, keepdim, interpolation=interpolation, hard=True)
        expected = torch.quantile(x, q, dim, keepdim, interpolation=interpolation)
        torch.testing.assert_close(got, expected)


def test_reductions_as_torch(generator: torch.Generator) -> None:
    x = _random(generator, 4, 6)
    for keepdim in (False, True):
        for dim in (0, 1):
            assert torch.equal(discrete.max(x, dim, keepdim, hard=True), x.max(dim, keepdim).values)
            assert torch.equal(discrete.min(x, dim, keepdim, hard=True), x.min(dim, keepdim).values)
            assert torch.equal(discrete.median(x, dim, keepdim, hard=True), x.median(dim, keepdim).values)
            assert torch.equal(discrete.kthvalue(x, 3, dim, keepdim, hard=True), x.kthvalue(3, dim, keepdim).values)


def test_every_input_of_a_median_gets_gradient(generator: torch.Generator) -> None:
    x = _random(generator, 9).requires_grad_()
    discrete.median(x, temperature=1.0, hard=True).backward()
    assert (x.grad != 0).all()
    torch.testing.assert_close(x.grad.sum(), torch.tensor(1.0, dtype=torch.float64))


def test_topk_permutation_and_sizes(generator: torch.Generator) -> None:
    x = _random(generator, 3, 6)
    top = discrete.topk(x, 2, 0, largest=False, temperature=0.4)
    assert top.values.shape == (2, 6)
    assert top.indices.shape == (2, 6)
    assert top.permutation.shape == (6, 2, 3)
    assert torch.equal(top.indices, x.topk(2, 0, largest=False).indices)
    torch.testing.assert_close((top.permutation @ x.T.unsqueeze(-1)).squeeze(-1).T, top.values)
    assert discrete.topk(x, 0).values.shape == (3, 0)


def test_bad_levels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"q must be one or more numbers in \[0, 1\]"):
        discrete.quantile(torch.zeros(3), 1.5)
    with pytest.raises(ValueError, match="q must be a number or a tensor of one dimension"):
        discrete.quantile(torch.zeros(3), torch.zeros(2, 2))


@pytest.mark.parametrize("method", ["sinkhorn", "isotonic", "network"])
@pytest.mark.parametrize("size", [1e8, 1e12, 1e30, 3e38])
def test_masks_of_large_entries_sum_to_k_and_share_ties(method: str, size: float) -> None:
    x = torch.tensor([-size, size, 0.0, size, 0.5 * size], requires_grad=True)
    for k, expected in ((1, [0.0, 0.5, 0.0, 0.5, 0.0]), (2, [0.0, 1.0, 0.0, 1.0, 0.0])):
        mask = discrete.soft_topk(x, k, method=method, scale=None)
        torch.testing.assert_close(mask, torch.tensor(expected), rtol=1e-4, atol=1e-4)
        assert torch.isfinite(torch.autograd.grad(mask[0], x)[0]).all()


@pytest.mark.parametrize("method", ["softsort", "neuralsort", "sinkhorn", "network"])
@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("hard", [False, True])
def test_some_places_are_rows_of_the_whole_matrix(method: str, descending: bool, hard: bool) -> None:
    x = torch.randn(2, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    options = {"method": method, "temperature": 0.7, "hard": hard}
    whole = discrete.argsort(x, -1, descending, **options)
    for first, end in ((0, 3), (2, 5), (6, 7), (4, 4)):
        some = discrete.argsort(x, -1, descending, places=(first, end), **options)
        torch.testing.assert_close(some, whole[:, first:end], rtol=1e-14, atol=1e-14)
    top = discrete.topk(x, 3, -1, descending, **options)
    torch.testing.assert_close(top.permutation, whole[:, :3], rtol=1e-14, atol=1e-14)


def test_the_first_places_of_many_rows_form_no_square() -> None:
    scores = torch.randn(256, 1000, generator=torch.Generator().manual_seed(0), requires_grad=True)
    with Largest() as made:
        rows = discrete.topk(scores, 5).permutation
        discrete.argsort(scores, places=(500, 501), method="sinkhorn").square().sum().backward()
    assert rows.shape == (256, 5, 1000)
    assert made.elements <= 2 * rows.numel()


@pytest.mark.parametrize("name", ["max", "min", "median", "argmax", "argmin", "argmedian"])
def test_without_a_dimension_all_entries_are_taken_together(name: str) -> None:
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    block = getattr(discrete, name)
    whole, flat = block(x, None), block(x.reshape(-1))
    assert torch.equal(whole, flat.reshape(x.shape) if name.startswith("arg") else flat)
    (gradient,) = torch.autograd.grad(whole.square().sum(), x)
    assert gradient.shape == x.shape
    assert gradient.isfinite().all()
    exact = block(x, None, hard=True)
    if name.startswith("arg"):
        assert (exact * x).sum() == {"argmax": x.max(), "argmin": x.min(), "argmedian": x.median()}[name]
    else:
        assert exact == getattr(torch, name)(x)
        assert block(x, None, True).shape == (1, 1)


@pytest.mark.parametrize("interpolation", ["linear", "lower", "higher", "nearest", "midpoint"])
@pytest.mark.parametrize("q", [0.0, 0.3, 0.5, 1.0])
def test_argquantile_weighs_the_entries_as_torch_does(q: float, interpolation: str) -> None:
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    places = discrete.argquantile(x, q, interpolation=interpolation, hard=True)
    torch.testing.assert_close((places * x).sum(-1), x.quantile(q, -1, interpolation=interpolation))
    soft = discrete.argquantile(x, q, interpolation=interpolation)
    torch.testing.assert_close((soft * x).sum(-1), discrete.quantile(x, q, -1, interpolation=interpolation))
