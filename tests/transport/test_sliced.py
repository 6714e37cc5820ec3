"""Transport along lines: laws of a metric, the mean over the sphere, and the direction of a difference."""

from __future__ import annotations

import pytest
import torch

from pullback import transport
from pullback.kernels.order import row_order


def _clouds(*sizes: int) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(40, n, 3, generator=g, dtype=torch.float64) for n in sizes]


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_with_the_same_lines_it_is_a_metric(p: float) -> None:
    clouds, g = _clouds(5, 5, 3), torch.Generator().manual_seed(1)
    masses = [torch.rand(c.shape[:-1], generator=g, dtype=torch.float64) for c in clouds]
    masses = [m / m.sum(-1, keepdim=True) for m in masses]
    lines = torch.randn(20, 3, generator=g, dtype=torch.float64)

    def distance(i: int, j: int) -> torch.Tensor:
        return transport.sliced_wasserstein(clouds[i], clouds[j], masses[i], masses[j], p=p, directions=lines) ** (
            1 / p
        )

    torch.testing.assert_close(distance(0, 2), distance(2, 0))
    assert bool((distance(0, 2) <= distance(0, 1) + distance(1, 2) + 1e-9).all())
    assert bool((distance(0, 1) > 1e-2).all())
    assert float(distance(0, 0).max()) < 1e-6


def test_of_two_points_it_is_the_mean_square_of_a_cosine() -> None:
    x, y = torch.zeros(1, 5, dtype=torch.float64), torch.ones(1, 5, dtype=torch.float64)
    found = transport.sliced_wasserstein(x, y, projections=200_000, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found, torch.tensor(1.0, dtype=torch.float64), atol=0.02, rtol=0)  # 5 / 5


def test_masses_of_repeated_points_add_up() -> None:
    x, y, _ = _clouds(4, 6, 2)
    lines, copies = torch.eye(3, dtype=torch.float64), torch.tensor([2, 1, 1, 2])
    masses = (copies / 6).expand(40, 4).double()
    found = transport.sliced_wasserstein(x, y, masses, torch.full((40, 6), 1 / 6).double(), directions=lines)
    torch.testing.assert_close(found, transport.sliced_wasserstein(x.repeat_interleave(copies, 1), y, directions=lines))


def test_the_largest_line_is_found_among_all() -> None:
    x, y, _ = (c[:10, :, :2] for c in _clouds(6, 6, 2))
    angle = torch.arange(2000, dtype=torch.float64) * torch.pi / 2000
    lines = torch.stack([angle.cos(), angle.sin()], -1)
    each = [transport.sliced_wasserstein(x, y, directions=line[None]) for line in lines]
    best = torch.stack(each).amax(0)
    found = transport.max_sliced_wasserstein(x, y, projections=64, steps=60, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found.value, best, atol=0, rtol=1e-3)
    torch.testing.assert_close(found.direction.square().sum(-1), torch.ones(10, dtype=torch.float64))
    along = transport.sliced_wasserstein(x, y, directions=found.direction.unsqueeze(-2))
    torch.testing.assert_close(along, found.value)


def test_without_steps_the_best_start_is_taken() -> None:
    x, y, _ = _clouds(4, 4, 2)
    starts = torch.eye(3, dtype=torch.float64)
    found = transport.max_sliced_wasserstein(x, y, directions=starts, steps=0)
    each = torch.stack([transport.sliced_wasserstein(x, y, directions=line[None]) for line in starts])
    torch.testing.assert_close(found.value, each.amax(0))
    assert torch.equal(found.direction, starts[each.argmax(0)])
    with pytest.raises(ValueError, match="steps must be an integer >= 0"):
        transport.max_sliced_wasserstein(x, y, steps=-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_rows_are_put_in_order_whatever_their_layout(dtype: torch.dtype) -> None:
    x = torch.randn(7, 11, generator=torch.Generator().manual_seed(0)).to(dtype)
    for rows in (x, x.T, x[:, ::2], torch.zeros(2, 0, dtype=dtype), x[0]):
        torch.testing.assert_close(rows.gather(-1, row_order(rows)), rows.sort(-1).values)
    torch.testing.assert_close(torch.func.vmap(row_order)(x), row_order(x))
