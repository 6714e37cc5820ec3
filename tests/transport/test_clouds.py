"""Clouds too large for the costs of all pairs: the same numbers as with them, in the memory of the points."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pullback import transport
from pullback.kernels.exponential import two_to_the
from pullback.kernels.sinkhorn import points_loops
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


@pytest.mark.parametrize("single", [False, True])
def test_the_exponential_of_the_loops_is_that_of_numpy(single: bool) -> None:
    pytest.importorskip("numba")
    real, rounding = (np.float32, 3e-7) if single else (np.float64, 1e-14)
    two_to, least = two_to_the(single), -126 if single else -1022
    x = np.concatenate([np.linspace(least, 120, 4001), np.linspace(-1, 1, 101), np.arange(least, 100, 7)]).astype(real)
    found = np.array([two_to(v) for v in x])
    assert found.dtype == real
    assert np.abs(found / np.exp2(x.astype(np.longdouble)) - 1).max() < rounding
    for far in (least - 1, 10 * least, -np.inf):
        assert two_to(real(far)) == 0


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("squared", [False, True])
def test_compiled_sweeps_in_float32_are_those_in_float64(symmetric: bool, squared: bool) -> None:
    x, y, a, b = (t.numpy() for t in _clouds(60, 40))  # one point of each has no mass
    y, b = (x, a) if symmetric else (y, b)
    columns, begin = np.ascontiguousarray(y.T), np.zeros(len(b))
    for epsilon in (0.5, 0.02):
        words = (True, symmetric, 500, 1e-4, 0.25)
        each = [points_loops(x, columns, squared, a, b, epsilon, begin, single, *words) for single in (True, False)]
        if each[0] is None:
            pytest.skip("needs numba")
        for found, exact, scale in zip(*each, (epsilon, epsilon, 1, 1, 1, 1), strict=True):
            np.testing.assert_allclose(found, exact, atol=1e-3 * scale)
        cost = (((x[:, None] - y) ** 2).sum(-1)) if squared else np.linalg.norm(x[:, None] - y, axis=-1)
        g, f, sums, value, along_x, along_y = each[0]
        plan = a[:, None] * b * np.exp((f[:, None] + g - cost) / epsilon)
        np.testing.assert_allclose(plan.sum(1), a, rtol=1e-10)  # the sums are in double precision
        np.testing.assert_allclose(plan.sum(0), sums, rtol=1e-10, atol=1e-14)
        np.testing.assert_allclose((plan * cost).sum(), value, rtol=1e-10)
        assert np.abs(sums - b).sum() <= 2e-4  # what single precision reached is so in double
        weights = 2 * plan if squared else plan / np.where(cost > 0, cost, np.inf)
        np.testing.assert_allclose(weights.sum(1)[:, None] * x - weights @ y, along_x, atol=1e-10)
        np.testing.assert_allclose((weights.sum(0)[:, None] * y - weights.T @ x).T, along_y, atol=1e-10)


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
