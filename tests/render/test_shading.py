"""The shader learns a map that no single pixel determines."""

from __future__ import annotations

import pytest
import torch

from pullback.render import NeuralShader


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (8, 8)])
def test_shape_and_range(size: tuple[int, int], generator: torch.Generator) -> None:
    out = NeuralShader(6, 4)(10 * torch.randn(2, 3, 6, *size, generator=generator))
    assert out.shape == (2, 3, 3, *size)
    assert out.min() >= 0
    assert out.max() <= 1


def test_it_learns_to_blur(generator: torch.Generator) -> None:
    torch.manual_seed(0)
    shader = NeuralShader(1, 8)
    images = torch.rand(8, 1, 12, 12, generator=generator)
    target = torch.nn.functional.avg_pool2d(images, 3, 1, 1, count_include_pad=False).expand(-1, 3, -1, -1)
    optimizer = torch.optim.Adam(shader.parameters(), lr=1e-2)
    losses = []
    for _ in range(120):
        loss = (shader(images) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.25 * target.var().item()


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="channels must be an integer >= 1, got 0"):
        NeuralShader(0, 4)


def test_no_images_and_no_pixels() -> None:
    shader = NeuralShader(3, 2)
    assert shader(torch.zeros(0, 3, 4, 5)).shape == (0, 3, 4, 5)
    with pytest.raises(ValueError, match="features must have pixels"):
        shader(torch.zeros(2, 3, 0, 5))
    with pytest.raises(TypeError, match="features and weights must have the same dtype"):
        shader(torch.zeros(3, 4, 5).double())
