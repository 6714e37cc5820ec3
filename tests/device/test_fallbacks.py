"""Off the CPU the kernels do not apply: their plain forms take no memory that grows with the square of the rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pullback import discrete
from tests.contracts.contract import DEVICE

N = 20_000
"""Items whose square, in float32, is 1.6 GB."""

BLOCKS: dict[str, Callable[[Tensor], Any]] = {
    **{
        f"sort {m}": lambda x, m=m: discrete.sort(x, method=m, temperature=0.5).values
        for m in ("softsort", "neuralsort", "isotonic")
    },
    **{f"rank {m}": lambda x, m=m: discrete.rank(x, method=m, temperature=0.5) for m in ("softsort", "isotonic")},
    "soft_topk": lambda x: discrete.soft_topk(x, 100, temperature=0.5),
    "sparsemax": discrete.sparsemax,
    "entmax15": discrete.entmax15,
    "project_permutahedron": lambda x: discrete.project_permutahedron(x, torch.arange(float(N), device=x.device)),
}


@pytest.mark.skipif(DEVICE.type != "cuda", reason="the CPU has the kernels; memory is counted on CUDA")
@pytest.mark.parametrize("name", BLOCKS)
def test_a_long_row_fits(name: str) -> None:
    x = torch.randn(N, generator=torch.Generator().manual_seed(0)).to(DEVICE).requires_grad_()
    torch.cuda.reset_peak_memory_stats()
    BLOCKS[name](x).square().sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert torch.cuda.max_memory_allocated() < 400e6, "more than 5 000 numbers an item"
