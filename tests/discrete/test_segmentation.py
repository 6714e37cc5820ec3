from __future__ import annotations

import warnings

import pytest
import torch

from pullback import discrete


@pytest.mark.parametrize("method", ["gaussian", "gaussian_sharp", "exact"])
def test_certain_frontiers_give_the_hard_blocks(method: str, generator: torch.Generator) -> None:
    for dtype in (torch.float32, torch.float16, torch.float64):
        borders = (torch.rand(3, 40, generator=generator) < 0.3).to(dtype)
        opened = torch.cat([torch.zeros_like(borders[:, :1]), borders[:, 1:]], -1).cumsum(-1).long()
        expected = torch.nn.functional.one_hot(opened, 40).to(dtype)
        for blocks in (40, 7):
            got = discrete.soft_segment(borders, blocks=blocks, method=method)
            torch.testing.assert_close(
                got, expected[..., :blocks], rtol=0, atol=1e-200 if dtype == torch.float64 else 0
            )


def test_rows_sum_to_one_where_no_block_is_dropped(generator: torch.Generator) -> None:
    p = torch.rand(4, 100, generator=generator)
    for method in ("gaussian", "gaussian_sharp", "exact"):
        sums = discrete.soft_segment(p, blocks=100, method=method).sum(-1)
        torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=1e-5)
        assert (discrete.soft_segment(p, blocks=20, method=method).sum(-1)[:, -1] < 0.01).all()


def test_the_gaussian_is_near_the_exact_law(generator: torch.Generator) -> None:
    p = torch.rand(2, 128, generator=generator, dtype=torch.float64)
    exact = discrete.soft_segment(p, blocks=128, method="exact")
    distances = {
        method: float((discrete.soft_segment(p, blocks=128, method=method) - exact).abs().sum(-1).mean() / 2)
        for method in ("gaussian", "gaussian_sharp")
    }
    assert distances["gaussian"] < 0.02
    assert distances["gaussian_sharp"] > 0.1


@pytest.mark.parametrize("method", ["max", "mean"])
def test_a_window_that_holds_a_block_changes_nothing(method: str, generator: torch.Generator) -> None:
    borders = torch.zeros(2, 60)
    borders[0, ::6] = 1
    borders[1, 2::9] = 1
    hard = discrete.soft_segment(borders, blocks=10)
    embeddings, kernel = torch.randn(2, 60, 4, generator=generator), torch.randn(4, 3, generator=generator)
    expected = discrete.pool_blocks(embeddings, hard, kernel=kernel, method=method)
    got = discrete.pool_blocks(embeddings, hard, kernel=kernel, method=method, window=16)
    there = hard.sum(-2) > 0
    assert there.sum() == 10 + 8
    torch.testing.assert_close(got[there], expected[there])
    assert not got[~there].any()


def test_the_gradient_of_frontiers_moves_a_border(generator: torch.Generator) -> None:
    """Means of two blocks, a signal with one step: descent of the error alone finds the border."""
    signal = torch.cat([torch.zeros(12), torch.ones(20)])[:, None] + 0.05 * torch.randn(32, 1, generator=generator)
    logits = torch.full((32,), -3.0, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(200):
        assignment = discrete.soft_segment(torch.sigmoid(logits), blocks=2)
        means = discrete.pool_blocks(signal, assignment, method="mean")
        optimizer.zero_grad()
        (assignment @ means - signal).square().mean().backward()
        optimizer.step()
    assert int(logits[1:].argmax()) + 1 == 12


def test_a_tokenizer_keeps_the_first_blocks_and_says_what_it_drops(generator: torch.Generator) -> None:
    tokens = torch.randint(256, (3, 50), generator=generator)
    tokenizer = discrete.GradientTokenizer(out=6, width=8, heads=2, seen=20, start=-1.5, generator=generator)
    found = tokenizer(tokens)
    assert found.blocks.shape == (3, 13, 6)
    torch.testing.assert_close(found.assignment.sum(-1).mean(-1), 1 - found.dropped)
    gradients = torch.autograd.grad(found.blocks.square().sum(), list(tokenizer.parameters()))
    assert all(bool((g != 0).any()) for g in gradients)
    torch.nn.init.constant_(tokenizer.frontiers.open.bias, 5.0)  # a block for each byte
    assert tokenizer(tokens).dropped.min() > 0.6
    with pytest.warns(UserWarning, match="of the bytes lie in blocks that are dropped"):
        tokenizer.eval()(tokens)
    torch.nn.init.constant_(tokenizer.frontiers.open.bias, -5.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tokenizer(tokens).dropped.max() < 0.05
    with pytest.raises(ValueError, match=r"tokens must be in 0\.\.255"):
        tokenizer(tokens + 10)
    with pytest.raises(ValueError, match="tokens must hold at least one byte"):
        tokenizer(tokens[:, :0])


def test_local_attention_of_a_wide_window_is_attention(generator: torch.Generator) -> None:
    for n in (1, 5, 33, 70):
        q, k, v = (torch.randn(2, 3, n, 4, generator=generator) for _ in range(3))
        expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        torch.testing.assert_close(discrete.local_attention(q, k, v, 2 * n), expected)
        torch.testing.assert_close(discrete.local_attention(q, k, v, 1), v)


def test_borders_are_counted() -> None:
    truth = torch.tensor([[True, False, True, False], [False] * 4])
    found = torch.tensor([[True, True, False, False], [False] * 4])
    assert discrete.segmentation_f1(found, truth).tolist() == [0.5, 1.0]
    assert discrete.segmentation_f1(truth, truth).tolist() == [1.0, 1.0]
