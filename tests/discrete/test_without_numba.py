"""The plain forms, taken where numba is not installed, agree with the compiled kernels."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tests.discrete.allocations import Largest
from torch import Tensor

from pullback import discrete
from pullback.kernels import isotonic, laplace, neuralsort
from pullback.kernels.compiled import compiled

METHODS = ("softsort", "neuralsort", "sinkhorn", "network", "isotonic")
DISTRIBUTIONS = ("logistic", "gaussian", "cauchy", "reciprocal", "optimal")


def blocks() -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
    """Every block that has a kernel behind it, in every form of it."""
    for method in METHODS:
        for scale in ("std", None):
            options = {"method": method, "temperature": 0.8, "scale": scale}
            yield f"sort {options}", lambda x, o=options: discrete.sort(x, **o).values
            yield f"rank {options}", lambda x, o=options: discrete.rank(x, **o)
            yield f"argmax {options}", lambda x, o=options: discrete.argmax(x, **o)
    for method in METHODS[:-1]:
        yield f"argsort {method}", lambda x, m=method: discrete.argsort(x, method=m, temperature=0.8)
        yield f"sort_by {method}", lambda x, m=method: discrete.sort_by(x, x.cos(), method=m, temperature=0.8)
    for distribution in DISTRIBUTIONS:
        for hard in (False, True):
            for network in discrete.NETWORKS:
                options = {"distribution": distribution, "network": network, "hard": hard, "steepness": 2.0}
                yield f"network {options}", lambda x, o=options: discrete.sorting_network(x, **o).values
                yield f"network matrix {options}", lambda x, o=options: discrete.sorting_network(x, **o).permutation
    for alpha in (1.3, 1.5, 2.0, 3.0):
        yield f"entmax {alpha}", lambda x, a=alpha: discrete.entmax(x, a)
    for method in ("sinkhorn", "isotonic", "network"):
        yield f"soft_topk {method}", lambda x, m=method: discrete.soft_topk(x, 3, method=m, temperature=0.8)
    for kind in ("l2", "kl"):
        yield (
            f"permutahedron {kind}",
            lambda x, k=kind: discrete.project_permutahedron(x, x.detach().flip(-1), regularization=k),
        )


def results() -> dict[str, Tensor]:
    """Values and gradients of all blocks, and the kernels themselves, on rows with ties."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(5, 33, generator=generator, dtype=torch.float64)
    rows[:, 7], rows[0] = rows[:, 3], 1.25
    found = {}
    for name, block in blocks():
        x = rows.clone().requires_grad_()
        value = block(x)
        weight = torch.randn(value.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        found[name] = value.detach()
        (found[f"gradient of {name}"],) = torch.autograd.grad(value, x, weight)
    y = rows.sort(-1).values
    v, g = (torch.randn(5, 2, 33, generator=generator, dtype=torch.float64) for _ in range(2))
    for signed in (False, True):
        found[f"laplace_product {signed}"] = laplace.laplace_product(y, v, signed)
    found["balance"] = f = laplace.balance(y)
    found["solve_balanced"] = laplace.solve_balanced(y, f, v[:, 0])
    y = torch.cat([y, y * 1e-3, torch.linspace(0, 40, 33, dtype=torch.float64).expand(1, 33)])
    v, g = torch.cat([v, v, v[:1]]), torch.cat([g, g, g[:1]])
    found["neuralsort_mean"] = neuralsort.neuralsort_mean(y, v)
    found["neuralsort in y"], found["neuralsort in v"] = neuralsort.neuralsort_mean_gradient(y, v, g)
    for entropic in (False, True):
        found[f"pool {entropic}"] = start = isotonic.pool(y, v[:, 0].sort(-1).values * 2, entropic)
        found[f"block_means {entropic}"] = isotonic.block_means(v[:, 1].contiguous(), start)
    return found


_PROGRAM = """
import io, sys
sys.modules["numba"] = None  # as if it were not installed
import torch
from pullback.kernels.compiled import compiled
from tests.discrete.test_without_numba import results
assert compiled() is None
buffer = io.BytesIO()
torch.save(results(), buffer)
sys.stdout.buffer.write(buffer.getvalue())
"""


def test_plain_forms_agree_with_the_kernels() -> None:
    assert compiled() is not None, "numba is a development dependency"
    root = Path(__file__).parents[2]
    process = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, check=False, cwd=root)
    assert process.returncode == 0, process.stderr.decode()
    plain = torch.load(io.BytesIO(process.stdout))
    fast = results()
    assert plain.keys() == fast.keys()
    for name, value in fast.items():
        torch.testing.assert_close(plain[name], value, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("size", [8_000, 100_000])
def test_plain_forms_take_no_square_of_a_row(size: int) -> None:
    """Equal to the compiled form at sizes where a matrix would not fit, in tensors of a few rows and few operations."""
    generator = torch.Generator().manual_seed(0)
    y = torch.sort(10 * torch.randn(1, size, generator=generator, dtype=torch.float64)).values
    y[:, 100:120] = y[:, 100:101]
    v = torch.randn(1, 2, size, generator=generator, dtype=torch.float64)
    for signed in (False, True):
        with Largest() as made:
            plain = laplace.laplace_product_plain(y, v, signed)
        torch.testing.assert_close(plain, laplace.laplace_product(y, v, signed), rtol=1e-10, atol=1e-10)
        assert made.elements <= 4 * v.numel()
        assert made.operations <= 30 * (size - 1).bit_length()
    if size > 8_000:
        return
    with Largest() as made:
        mean = neuralsort.neuralsort_mean_plain(y, v)
    torch.testing.assert_close(mean, neuralsort.neuralsort_mean(y, v), rtol=1e-10, atol=1e-10)
    assert made.elements <= 4 * v.numel()
    assert made.operations <= 100 * size**0.5  # a band, not a row
