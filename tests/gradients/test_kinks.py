"""What looks for points without derivative, against one-sided differences and closed forms."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pullback.gradients import (
    KINKS,
    Kink,
    clarke_contains,
    count_nondifferentiable,
    kink_distance,
    kink_report,
    minifloats,
)


@pytest.mark.parametrize(
    ("operation", "call"),
    [
        ("hardshrink", F.hardshrink),
        ("softshrink", F.softshrink),
        ("hardsigmoid", F.hardsigmoid),
        ("hardswish", F.hardswish),
        ("selu", F.selu),
        ("threshold", lambda x: F.threshold(x, 1.5, -1.0)),
        ("clamp_min", lambda x: x.clamp_min(0.5)),
        ("clamp_max", lambda x: x.clamp_max(0.5)),
        ("round", torch.round),
        ("floor", torch.floor),
        ("trunc", torch.trunc),
    ],
)
def test_distance_is_zero_exactly_where_one_sided_slopes_differ(operation: str, call) -> None:
    arguments = {"threshold": (1.5, -1.0), "clamp_min": (0.5,), "clamp_max": (0.5,)}.get(operation, ())
    grid = torch.linspace(-8, 8, 65, dtype=torch.float64)
    h = 1e-4
    left, right = (call(grid) - call(grid - h)) / h, (call(grid + h) - call(grid)) / h
    at_kink = (left - right).abs() > 0.1
    distance = kink_distance(operation, grid, *arguments)
    assert not bool((at_kink & (distance != 0)).any())  # trunc has none at 0, where its neighbours are integers too
    assert bool(((distance == 0) & ~at_kink).sum() <= (1 if operation == "trunc" else 0))


def test_ulps_count_numbers_between() -> None:
    one, above = torch.tensor(1.0), torch.tensor(1.0 + 3 * 2**-23)
    assert kink_distance("maximum", one, above, ulps=True).item() == 3
    assert kink_distance("hardtanh", above, ulps=True).item() == 3
    assert kink_distance("hardtanh", one, ulps=True).item() == 0
    assert kink_distance("relu", torch.tensor(1e-30), ulps=True).item() > 1e6


def test_windows_and_slices_have_their_own_ties() -> None:
    image = torch.tensor([[1.0, 1.0, 5.0, 3.0], [0.0, 1.0, 2.0, 5.0]])[None, None]
    assert kink_distance("max_pool2d", image, 2).tolist() == [[[[0.0, 0.0]]]]
    assert kink_distance("max_pool2d", image, (1, 2)).tolist() == [[[[0.0, 2.0], [1.0, 3.0]]]]
    assert kink_distance("max_pool1d", torch.tensor([[3.0, 1.0, 2.0, 2.5]]), 3, stride=1).tolist() == [[1.0, 0.5]]
    x = torch.tensor([[3.0, 1.0, 2.5], [4.0, 4.0, 0.0]])
    assert kink_distance("max", x).item() == 0  # over all entries
    assert kink_distance("amax", x, dim=1).tolist() == [0.5, 0.0]
    assert kink_distance("topk", x, 2).tolist() == [0.5, 0.0]
    assert kink_distance("median", x, 1).tolist() == [0.5, 0.0]


def test_a_report_names_lines_and_what_matters() -> None:
    def loss(x: Tensor) -> Tensor:
        positive = torch.relu(x)  # touched at 0, cotangent 1
        unused = x.abs() * 0  # touched at 0, cotangent 0
        chosen = torch.where(x > 2, x, x * x)  # decides at 2
        return (positive + unused + chosen).sum()

    report = kink_report(loss, torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64))
    lines = {kink.operation: kink for kink in report.kinks}
    assert list(lines) == ["relu", "abs", "gt"]
    assert "torch.relu(x)" in lines["relu"].source
    assert lines["relu"].file == __file__
    assert (lines["relu"].count, lines["relu"].total) == (1, 3)
    assert [lines[name].matters for name in ("relu", "abs", "gt")] == [True, False, None]
    assert report.smooth is False
    assert report.value == pytest.approx(8.0)
    assert kink_report(loss, torch.tensor([0.5], dtype=torch.float64)).smooth is True


def test_slopes_show_the_gradient_that_autograd_took() -> None:
    x = torch.zeros(1, dtype=torch.float64)
    (slope,) = kink_report(lambda y: y.abs().sum(), x, probes=1).slopes
    assert (slope.left, slope.right, slope.autograd) == pytest.approx((-1.0, 1.0, 0.0))
    (shared,) = kink_report(lambda y: (y.relu() - (-y).relu()).sum(), x, probes=1).slopes
    assert shared.left == pytest.approx(shared.right)
    assert abs(shared.right) == pytest.approx(1.0)
    assert shared.autograd == 0


def test_tolerance_finds_what_is_near(generator: torch.Generator) -> None:
    near = torch.tensor([1.0 + 2**-52, 3.0], dtype=torch.float64)
    assert not kink_report(lambda x: F.hardtanh(x).sum(), near, generator=generator).kinks
    assert kink_report(lambda x: F.hardtanh(x).sum(), near, tolerance_ulps=1).kinks[0].count == 1


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return (x > 0).to(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient


def test_a_custom_function_is_unknown_and_can_be_registered() -> None:
    report = kink_report(lambda x: _Step.apply(x.exp()).sum(), torch.ones(2, dtype=torch.float64), probes=0)
    assert report.unknown == ("_Step",)
    assert report.smooth is None
    KINKS["celu"] = lambda x, *_, **__: Kink((x - 7).abs(), x.abs())
    try:
        assert kink_report(lambda x: F.celu(x).sum(), torch.tensor([7.0]), probes=0).kinks[0].operation == "celu"
    finally:
        del KINKS["celu"]


def test_a_random_function_is_refused_at_its_line() -> None:
    def noisy(x: Tensor) -> Tensor:
        y = x * 2
        return (y * torch.rand(3)).sum()

    with pytest.raises(ValueError, match=r"deterministic, two runs differ at .*test_kinks.py:\d+: return .*rand"):
        kink_report(noisy, torch.ones(3))


def test_hull_of_a_maximum_is_the_simplex(generator: torch.Generator) -> None:
    x = torch.zeros(3, dtype=torch.float64)
    words = {"generator": generator, "chunk": 128}
    inside = torch.tensor([0.2, 0.5, 0.3]).double()
    found = clarke_contains(lambda y: y.max(), x, inside, **words)
    assert found.contains
    torch.testing.assert_close(found.weights @ found.pieces, inside, atol=1e-6, rtol=0)
    outside = torch.tensor([0.5, 0.5, 0.5]).double()
    far = clarke_contains(lambda y: y.max(), x, outside, **words)
    assert not far.contains
    assert far.distance == pytest.approx(0.5 / 3**0.5, abs=1e-6)  # from the plane of the simplex


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "hardtanh", "relu6", "abs"])
def test_with_biases_no_gradient_is_wrong_and_the_test_is_exact(activation: str) -> None:
    found = count_nondifferentiable((1, 1), minifloats(2, 0), torch.ones(1), activation=activation)
    assert found.total == 7**4
    assert found.incorrect == 0
    assert found.nondifferentiable == found.by_slopes > 0
    assert found.agreeing == found.touched
    assert found.fraction <= found.bound


def test_without_biases_gradients_can_be_wrong() -> None:
    found = count_nondifferentiable((1, 1), minifloats(2, 0), torch.ones(1), activation="clamp", bias=False)
    # clamp(v clamp(u)) at u = 0 with v < 0 is 0 around, autograd says v: the first unit's input is stuck at its kink.
    assert found.incorrect == 3
    assert bool((found.wrong[:, 0] == 0).all() & (found.wrong[:, 1] < 0).all())
    assert found.fraction <= found.bound
    point = found.wrong[0]
    gradient = torch.func.grad(found.network)(point)
    assert not clarke_contains(found.network, point, gradient, generator=torch.Generator()).contains


def test_draws_come_near_the_enumeration() -> None:
    words = {"activation": "relu"}
    everything = count_nondifferentiable((1, 1), minifloats(2, 1), torch.ones(1), **words)
    some = count_nondifferentiable(
        (1, 1), minifloats(2, 1), torch.ones(1), samples=20_000, generator=torch.Generator().manual_seed(0), **words
    )
    assert everything.exhaustive
    assert not some.exhaustive
    assert some.fraction == pytest.approx(everything.fraction, rel=0.1)
