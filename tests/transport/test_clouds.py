"""Clouds too large for the costs of all pairs: the same numbers as with them, in the memory of the points."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pullback import transport
from pullback.kernels.softmin import pull, pull_plain, softmin, softmin_plain
from pullback.transport import clouds, divergence
from pullback.transport.sweeps import Sweeper


def _clouds(n: int, m: int, *batch: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    x, y = torch.rand(*batch, n, 3, generator=g).double(), torch.rand(*batch, m, 3, generator=g).double() + 0.2
    a, b = torch.rand(*batch, n, generator=g).double(), torch.rand(*batch, m, generator=g).double()
    a[..., 1] = 0
    return [x, y, a / a.sum(-1, keepdim=True), b / b.sum(-1, keepdim=True)]


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean"])
@pytest.mark.parametrize("reach", [None, 0.5])
def test_costs_that_are_not_kept_give_the_same_values_and_gradients(
    monkeypatch: pytest.MonkeyPatch, cost: str, reach: float | None
) -> None:
    inputs = [t.requires_grad_() for t in _clouds(14, 11, 2)]
    scalars = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.05, reach) if v is not None]
    words: dict[str, Any] = {"cost": cost, "tolerance": 1e-11, "check": True}
    words |= dict(zip(("epsilon", "reach"), scalars, strict=False))
    results = []
    for kept in (divergence.PAIRS_KEPT, 0):
        monkeypatch.setattr(divergence, "PAIRS_KEPT", kept)
        monkeypatch.setattr(divergence, "_PAIRS_WITHOUT_LOOPS", kept)
        found = transport.sinkhorn_divergence(*inputs, **words)
        slopes = torch.autograd.grad(found.value.sum(), [*inputs, *scalars])
        results.append((found.value, found.g, *slopes))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean"])
def test_the_gap_of_many_points_is_that_of_few(monkeypatch: pytest.MonkeyPatch, cost: str) -> None:
    x, y = (t.requires_grad_() for t in _clouds(12, 12)[:2])
    results = []
    for kept in (divergence.PAIRS_KEPT, 0):
        monkeypatch.setattr(divergence, "PAIRS_KEPT", kept)
        monkeypatch.setattr(divergence, "_PAIRS_WITHOUT_LOOPS", kept)
        found = transport.monge_gap(x, y, cost=cost, relative_epsilon=0.1, tolerance=1e-11, check=True)
        results.append((found.value, *torch.autograd.grad(found.value, [x, y])))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_plain_forms_agree_with_the_kernels(squared: bool, dtype: torch.dtype) -> None:
    x, y, f, h = (t.to(dtype) for t in _clouds(40, 30))
    f, h, y = f.log(), h.log(), torch.cat([y[1:], x[:1]])  # one pair at distance 0, one row without mass
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-10, "atol": 1e-12}
    torch.testing.assert_close(softmin(x, y, h, 0.02, squared), softmin_plain(x, y, h, 0.02, squared), **tolerance)
    for fast, plain in zip(pull(x, y, f, h, 0.1, squared), pull_plain(x, y, f, h, 0.1, squared), strict=True):
        torch.testing.assert_close(fast, plain, **tolerance)


def test_costs_that_are_not_kept_work_under_vmap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divergence, "PAIRS_KEPT", 0)
    monkeypatch.setattr(divergence, "_PAIRS_WITHOUT_LOOPS", 0)
    x, y, a, b = _clouds(7, 5, 3)

    def value(x: Tensor, a: Tensor) -> Tensor:
        return transport.sinkhorn_divergence(x, y[0], a, b[0], epsilon=0.1, tolerance=1e-9).value

    mapped = torch.func.vmap(torch.func.grad(value))(x, a)
    for i in range(3):
        torch.testing.assert_close(mapped[i], torch.func.grad(value)(x[i], a[i]))


def test_many_points_take_the_memory_of_points() -> None:
    g = torch.Generator().manual_seed(1)
    x, y = torch.rand(2000, 3, generator=g).requires_grad_(), torch.rand(1500, 3, generator=g)
    largest = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = function(*args, **(kwargs or {}))
            largest.extend(t.numel() for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, Tensor))
            return out

    with Watch():
        found = transport.sinkhorn_divergence(x, y, relative_epsilon=0.1, tolerance=1e-2, max_iterations=4)
        found.value.backward()
    assert max(largest) <= 3 * 3500
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_expected_changes_no_soft_minimum(dtype: torch.dtype) -> None:
    x, y, _, h = (t.to(dtype) for t in _clouds(40, 30))
    h = h.log()
    plain = softmin(x, y, h, 0.02, True)
    near = plain + 0.02 * torch.linspace(-1000, 1000, 40).to(dtype)
    torch.testing.assert_close(softmin(x, y, h, 0.02, True, near), plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("tolerance", [1e-3, 1e-8])
def test_sweeps_on_arrays_are_the_sweeps_on_tensors(symmetric: bool, squared: bool, tolerance: float) -> None:
    g = torch.Generator().manual_seed(0)
    x, y = (
        torch.rand(30, 3, generator=g, dtype=torch.float64),
        torch.rand(20, 3, generator=g, dtype=torch.float64) + 0.2,
    )
    a, b = (torch.rand(n, generator=g, dtype=torch.float64) for n in (30, 20))
    a, b, y = (a / a.sum(), a / a.sum(), x) if symmetric else (a / a.sum(), b / b.sum(), y)
    epsilon, reach = torch.tensor([0.05], dtype=torch.float64), torch.tensor([torch.inf], dtype=torch.float64)
    start = torch.zeros_like(b)
    for scale in (True, False):
        sweepers = [clouds._Points(x, y, squared, a, b, epsilon, reach, symmetric, tolerance) for _ in range(2)]
        found, count = sweepers[0].run(start, scale, 500)
        expected, sweeps = Sweeper.run(sweepers[1], start, scale, 500)
        assert int(count) == int(sweeps)
        torch.testing.assert_close(found, expected, atol=1e-5 if tolerance > 1e-4 else 1e-9, rtol=0)
    few, _ = clouds._Points(x, y, squared, a, b, epsilon, reach, symmetric, tolerance).run(start, True, 2)
    torch.testing.assert_close(
        few, Sweeper.run(clouds._Points(x, y, squared, a, b, epsilon, reach, symmetric, tolerance), start, True, 2)[0]
    )
