"""Sparse softmaxes: the compiled kernel against its plain twins, optimality, ends."""

from __future__ import annotations

import math
from typing import Any

import entmax
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pullback import discrete
from pullback.discrete import sparse

needs_numba = pytest.mark.skipif(not sparse._NUMBA, reason="numba is not installed")


@needs_numba
@pytest.mark.parametrize("alpha", [0.3, 0.9, 1.05, 1.3, 1.5, 1.8, 2.0, 3.0])
@pytest.mark.parametrize("n", [1, 2, 7, 300])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-12)])
def test_kernel_equals_the_plain_versions(alpha: float, n: int, dtype: torch.dtype, tolerance: float) -> None:
    x = 3 * torch.randn(2, 10, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64).to(dtype)
    x[0, 0] = 1.0  # ties
    x[0, 1, n // 2 :] = -math.inf
    x[0, 1, 0] = 0.0
    got = discrete.entmax(x, alpha, method="kernel")
    assert got.dtype == dtype
    for method in ("sort", "bisection") if alpha in (1.5, 2.0) else ("bisection",):
        torch.testing.assert_close(got, discrete.entmax(x, alpha, method=method), rtol=0, atol=tolerance)


@pytest.mark.parametrize("method", ["auto", "bisection"])
@pytest.mark.parametrize("alpha", [1.2, 2.0, 3.5, 20.0])
def test_peer_s_normmax_agrees(method: str, alpha: float) -> None:
    x = torch.randn(20, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    g = torch.randn(20, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours = discrete.normmax(x, alpha, method=method)
    theirs = entmax.normmax_bisect(x, alpha, dim=-1, n_iter=60)
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)
    gradients = [torch.autograd.grad(p, x, g)[0] for p in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


@needs_numba
@pytest.mark.parametrize("learned", [False, True])
def test_gradients_of_the_kernel_equal_those_of_the_plain_version(learned: bool) -> None:
    x = torch.randn(6, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    g = torch.randn(6, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for alpha in (0.4, 1.1, 1.3, 2.0, 5.0):
        one = torch.full((6, 1), alpha, dtype=torch.float64, requires_grad=True) if learned else alpha
        inputs = (x, one) if isinstance(one, torch.Tensor) else (x,)
        ours, plain = (
            torch.autograd.grad(discrete.entmax(x, one, method=method), inputs, g) for method in ("kernel", "bisection")
        )
        for a, b in zip(ours, plain, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("method", ["auto", "sort", "bisection"])
@pytest.mark.parametrize("alpha", [1.5, 2.0])
def test_peer_agrees(method: str, alpha: float) -> None:
    x = torch.randn(20, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    g = torch.randn(20, 50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours = discrete.entmax(x, alpha, method=method)
    theirs = (entmax.entmax15 if alpha == 1.5 else entmax.sparsemax)(x, dim=-1)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, x, g)[0], torch.autograd.grad(theirs, x, g)[0])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=8), st.floats(1.02, 4))
def test_entmax_satisfies_its_optimality_conditions(values: list[float], alpha: float) -> None:
    """On the support x_i - p_i^(alpha - 1) / (alpha - 1) is one constant, and x_i is not above it elsewhere."""
    x = torch.tensor(values, dtype=torch.float64)
    p = discrete.entmax(x, alpha)
    assert p.sum().item() == pytest.approx(1, abs=1e-9)
    level = x - p.clamp(min=0) ** (alpha - 1) / (alpha - 1)
    support = p > 1e-12
    assert level[support].max() - level[support].min() < 1e-6
    assert (x[~support] <= level[support].min() + 1e-6).all()


def test_alpha_one_is_softmax_and_the_limit_is_continuous() -> None:
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(discrete.entmax(x, 1.0), torch.softmax(x, -1))
    torch.testing.assert_close(discrete.entmax(x, 1.001), torch.softmax(x, -1), rtol=0, atol=2e-3)


@pytest.mark.parametrize("method", ["auto", "sort", "bisection"])
def test_ends(method: str) -> None:
    rows = torch.tensor([[0.0, -math.inf], [math.nan, 1.0], [-math.inf, -math.inf]])
    got = discrete.sparsemax(rows, method=method)
    assert got[0].tolist() == [1.0, 0.0]
    assert got[1:].isnan().all()
    assert discrete.sparsemax(torch.zeros(0, 3), method=method).shape == (0, 3)
    assert discrete.sparsemax(torch.zeros(3, 0), method=method).shape == (3, 0)
    assert discrete.sparsemax(torch.tensor(2.0), 0, method=method).tolist() == 1.0
    x = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    swapped = discrete.entmax15(x.transpose(1, 2), method=method).transpose(1, 2)
    torch.testing.assert_close(discrete.entmax15(x, 1, method=method), swapped)


def test_hard_is_the_argmax_with_the_soft_gradient() -> None:
    x = torch.tensor([0.1, 0.6, 0.5], requires_grad=True)
    weights = torch.tensor([1.0, 2.0, 3.0])
    hard, soft = discrete.sparsemax(x, hard=True), discrete.sparsemax(x)
    assert hard.tolist() == [0.0, 1.0, 0.0]
    gradients = [torch.autograd.grad((p * weights).sum(), x)[0] for p in (hard, soft)]
    assert torch.equal(*gradients)
    zero = discrete.sparsemax(x, temperature=0.0)
    assert zero.tolist() == [0.0, 1.0, 0.0]
    assert torch.autograd.grad((zero * weights).sum(), x)[0].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("method", ["auto", "sort", "bisection"])
@pytest.mark.parametrize("temperature", [1.0, 1e-18, torch.tensor(1e-18)], ids=str)
@pytest.mark.parametrize("size", [2e16, 1e30, torch.finfo(torch.float32).min])
def test_rows_of_huge_scores_are_distributions(method: str, temperature: Any, size: float) -> None:
    x = torch.tensor([[size] * 4, [0.0, size, size, size]], requires_grad=True)
    for block in (discrete.sparsemax, discrete.entmax15):
        p = block(x, method=method, temperature=temperature)
        assert torch.equal(p[0], torch.full((4,), 0.25)), "a masked row is uniform"
        expected = [1.0, 0.0, 0.0, 0.0] if size < 0 else [0.0, 1 / 3, 1 / 3, 1 / 3]
        torch.testing.assert_close(p[1], torch.tensor(expected))
        (gradient,) = torch.autograd.grad(p[:, 1].sum(), x)
        assert torch.isfinite(gradient).all()


def test_a_row_without_a_finite_entry_is_nan_and_sends_no_gradient() -> None:
    x = torch.tensor([[-math.inf, 0.0, 0.5], [-math.inf] * 3], requires_grad=True)
    p = discrete.sparsemax(x)
    assert p[0].tolist() == [0.0, 0.25, 0.75]
    assert p[1].isnan().all()
    (gradient,) = torch.autograd.grad(p[0, 2] + p[1].sum(), x)
    assert gradient.tolist() == [[0.0, -0.5, 0.5], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize("alpha", [1.5, 2.0, 1.3])
def test_losses_and_their_gradients_are_those_of_the_peer(alpha: float) -> None:
    x = torch.randn(30, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    target = torch.arange(30) % 7
    ours, theirs = discrete.entmax_loss(x, target, alpha), entmax.entmax_bisect_loss(x, target, alpha)
    torch.testing.assert_close(ours, theirs)
    (gradient,) = torch.autograd.grad(ours.sum(), x)
    expected = discrete.entmax(x, alpha) - torch.nn.functional.one_hot(target, 7)
    torch.testing.assert_close(gradient, expected.detach())


def test_the_loss_of_alpha_one_is_cross_entropy_and_vanishes_at_the_target() -> None:
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = torch.arange(6) % 5
    expected = torch.nn.functional.cross_entropy(x, target, reduction="none")
    torch.testing.assert_close(discrete.entmax_loss(x, target, 1.0), expected)
    for alpha in (0.5, 1.0, 1.5, 2.0, 3.0):
        own = discrete.entmax_loss(x, discrete.entmax(x, alpha), alpha)
        torch.testing.assert_close(own, torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-9)
        assert (discrete.entmax_loss(x, target, alpha) >= 0).all()
    moved = discrete.entmax_loss(x.T, target, 1.5, 0)
    torch.testing.assert_close(moved, discrete.entmax_loss(x, target, 1.5))


def test_alphas_of_heads_are_those_of_each_head_and_are_learned() -> None:
    x = torch.randn(2, 4, 3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alphas = torch.tensor([1.2, 1.5, 2.0, 0.7], dtype=torch.float64, requires_grad=True)
    together = discrete.entmax(x, alphas.view(4, 1, 1))
    for head in range(4):
        alone = discrete.entmax(x[:, head], float(alphas[head].detach()))
        torch.testing.assert_close(together[:, head], alone, rtol=0, atol=1e-9)
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((together * weights).sum(), alphas)
    for head in range(4):
        step = torch.zeros(4, dtype=torch.float64)
        step[head] = 1e-5
        up, down = (discrete.entmax(x, (alphas.detach() + s).view(4, 1, 1)) for s in (step, -step))
        slope = ((up - down) * weights).sum() / 2e-5
        torch.testing.assert_close(gradient[head], slope, rtol=1e-4, atol=1e-6)
    along_queries = discrete.entmax(x.transpose(2, 3), alphas.view(4, 1, 1), 2).transpose(2, 3)
    torch.testing.assert_close(along_queries, together)


def test_below_one_tails_are_heavier_than_those_of_softmax() -> None:
    x = torch.tensor([0.0, -10.0, -100.0, -torch.inf], dtype=torch.float64)
    heavy, soft = discrete.entmax(x, 0.5), torch.softmax(x, -1)
    assert (heavy[1:3] > 10 * soft[1:3]).all()
    assert heavy[3] == 0
    torch.testing.assert_close(discrete.entmax(x, 1 - 1e-5), soft, rtol=0, atol=1e-4)


@pytest.mark.parametrize("budget", [1, 2, 5])
def test_the_isotonic_mask_is_the_peer_s_form_with_a_budget(budget: int) -> None:
    x = torch.randn(30, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    ours = discrete.soft_topk(x, budget, method="isotonic", temperature=1.0, scale=None)
    theirs = entmax.budget_bisect(x, budget)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
    weights = torch.randn(30, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = [torch.autograd.grad((mask * weights).sum(), x)[0] for mask in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-9)
