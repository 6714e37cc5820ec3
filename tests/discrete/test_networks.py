from __future__ import annotations

import itertools
import math
from typing import Any

import diffsort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pullback.discrete import (
    STEP_ERRORS,
    comparators,
    ordering_metrics,
    permutation_loss,
    soft_step,
    soft_swap,
    sorting_network,
)
from pullback.kernels import sorting_network as kernel

DISTRIBUTIONS = ("logistic", "gaussian", "cauchy", "reciprocal", "optimal")
FURTHER = ("linear", "cubic", "quintic", "logistic_phi")
MONOTONIC = ("cauchy", "reciprocal", "optimal")
NETWORKS = ("bitonic", "odd_even")
# The steepness of the reference code is ours times this.
REFERENCE_SCALE = {
    "logistic": 4.0,
    "gaussian": math.sqrt(2 * math.pi),
    "cauchy": math.pi,
    "reciprocal": 4.0,
    "optimal": 1.0,
}


def _in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "_is_compiled", lambda x: False)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("n", range(1, 13))
def test_network_sorts_every_sequence_of_zeros_and_ones(network: str, n: int) -> None:
    # The zero-one principle: then it sorts everything.
    sequences = torch.tensor(list(itertools.product([0, 1], repeat=n)))
    for low, high in comparators(n, network):
        a, b = sequences[:, low.long()], sequences[:, high.long()]
        sequences[:, low.long()], sequences[:, high.long()] = torch.minimum(a, b), torch.maximum(a, b)
    assert (sequences.diff(dim=-1) >= 0).all()


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("n", [2, 7, 31, 64])
def test_swaps_of_a_layer_share_no_wire(network: str, n: int) -> None:
    for layer in comparators(n, network):
        assert len(set(layer.flatten().tolist())) == layer.numel()
    k = math.ceil(math.log2(n))
    assert len(comparators(n, network)) <= {"bitonic": k * (k + 1) // 2, "odd_even": n}[network]


def _standard_bitonic_order(wires: list[int]) -> list[int]:
    """Where the textbook network, whose upper halves sort downwards, expects the inputs of ours."""
    if len(wires) == 1:
        return wires
    half = len(wires) // 2
    return _standard_bitonic_order(wires[:half]) + _standard_bitonic_order(wires[half:][::-1])


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize(("network", "n"), [("odd_even", 6), ("odd_even", 9), ("bitonic", 8), ("bitonic", 32)])
def test_equals_diffsort(distribution: str, network: str, n: int, generator: torch.Generator) -> None:
    x = torch.randn(4, n, generator=generator)
    theirs = diffsort.DiffSortNet(network, n, steepness=3.0 * REFERENCE_SCALE[distribution], distribution=distribution)
    order = list(range(n)) if network == "odd_even" else _standard_bitonic_order(list(range(n)))
    values, matrix = theirs(x.clone())
    ours = sorting_network(x[:, order], steepness=3.0, distribution=distribution, network=network)
    torch.testing.assert_close(ours.values, values, atol=2e-5, rtol=1e-5)
    # diffsort's matrix has items in rows.
    torch.testing.assert_close(ours.permutation, matrix.mT[:, :, order], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("network", "n"), [("odd_even", 6), ("bitonic", 8)])
def test_equals_diffsort_with_differences_pushed_apart(network: str, n: int, generator: torch.Generator) -> None:
    x = torch.randn(4, n, generator=generator)
    values, matrix = diffsort.DiffSortNet(network, n, steepness=7.0, distribution="logistic_phi")(x.clone())
    order = list(range(n)) if network == "odd_even" else _standard_bitonic_order(list(range(n)))
    ours = sorting_network(x[:, order], steepness=(7 / 4) ** (4 / 3), distribution="logistic_phi", network=network)
    torch.testing.assert_close(ours.values, values, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(ours.permutation, matrix.mT[:, :, order], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("step", "half", "smooth"), [("linear", 0.5, 0), ("cubic", 0.75, 1), ("quintic", 0.9375, 2)])
def test_a_step_has_as_many_continuous_derivatives_as_it_says_and_no_more(step: str, half: float, smooth: int) -> None:
    # Where the band ends; inside of it each is a polynomial, outside constant.
    x = torch.tensor([half - 1e-9, half + 1e-9], dtype=torch.float64, requires_grad=True)
    y = soft_step(x, step)
    for _ in range(smooth):
        torch.testing.assert_close(y[0], y[1], atol=1e-6, rtol=0)
        (y,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    torch.testing.assert_close(y[0], y[1], atol=1e-6, rtol=0)
    if y.grad_fn is None:  # the derivative of a line is a constant
        assert smooth == 0
    (jump,) = torch.autograd.grad(y.sum(), x)
    assert abs(jump[0] - jump[1]) > 0.9


@pytest.mark.parametrize("distribution", [*DISTRIBUTIONS, *FURTHER])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("hard", [False, True])
def test_compiled_equals_torch(
    distribution: str, network: str, hard: bool, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in (1, 2, 5, 19, 33):
        x = torch.randn(18, n, generator=generator, dtype=torch.float64)
        if n >= 5:
            x[0, :2] = torch.inf
            x[1, 2], x[1, 4], x[1, 0] = -torch.inf, -torch.inf, torch.inf
            x[2, 3] = x[2, 0]
        cotangents = [torch.randn(*shape, generator=generator).double() for shape in ((18, n), (18, n, n))]

        def outcome(x: Tensor = x, cotangents: list[Tensor] = cotangents) -> list[Tensor]:
            x = x.clone().requires_grad_()
            result = sorting_network(x, steepness=3.0, distribution=distribution, network=network, hard=hard)
            outputs = [result.values, result.permutation]
            return [
                *(y.detach() for y in outputs),
                *(torch.autograd.grad(y, x, g)[0] for y, g in zip(outputs, cotangents, strict=True)),
            ]

        compiled = outcome()
        with monkeypatch.context() as patch:
            _in_torch(patch)
            plain = outcome()
        # Slopes grow through hard layers that are not monotonic, and near 0 logistic_phi bends within 1e-4.
        rounding = 1e-9 if distribution == "logistic_phi" else 1e-12
        for fast, slow in zip(compiled, plain, strict=True):
            size = max(1.0, float(slow.nan_to_num(0, 0, 0).abs().max()))
            torch.testing.assert_close(fast, slow, atol=rounding * size, rtol=rounding)


@pytest.mark.parametrize("compiled", [True, False])
def test_infinities_go_to_the_ends_and_leave_the_gradient_finite(
    compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        _in_torch(monkeypatch)
    x = torch.tensor([2.0, torch.inf, 0.5, -torch.inf, 1.0, torch.inf], requires_grad=True)
    result = sorting_network(x, steepness=2.0)
    assert result.values[0] == -torch.inf
    assert (result.values[-2:] == torch.inf).all()
    result.values[1:4].sum().backward()
    assert x.grad is not None
    # The three finite values mix only with each other.
    torch.testing.assert_close(x.grad, torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0, 0.0]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("network", NETWORKS)
def test_hard_is_torch_sort_bit_for_bit(dtype: torch.dtype, network: str, generator: torch.Generator) -> None:
    for n in (1, 2, 3, 17, 64):
        x = torch.randn(5, n, generator=generator).to(dtype)
        x[1] = x[1].round()
        x[2, ::2], x[2, 1::2] = 0.0, -0.0
        for descending in (False, True):
            result = sorting_network(x, network=network, hard=True, descending=descending)
            expected = torch.sort(x, descending=descending, stable=True)
            assert torch.equal(result.values, expected.values)
            assert torch.equal(result.values.signbit(), expected.values.signbit())
            assert torch.equal(result.indices, expected.indices)
            assert torch.equal(result.permutation.argmax(-1), expected.indices)
            assert torch.equal(result.permutation.sum(-1), torch.ones_like(x))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_gradient_of_hard_is_the_chain_of_soft_swaps_at_the_hard_values(
    distribution: str, generator: torch.Generator
) -> None:
    n, steepness = 6, 1.5
    x = torch.randn(n, generator=generator, dtype=torch.float64)
    jacobian, wires = torch.eye(n, dtype=torch.float64), x.clone()
    for layer in comparators(n):
        factor = torch.eye(n, dtype=torch.float64)
        for i, j in layer.T.tolist():

            def low(a: Tensor, b: Tensor) -> Tensor:
                return a + (b - a) * soft_step(-steepness * (b - a), distribution)

            slope_a, slope_b = torch.autograd.functional.jacobian(low, (wires[i], wires[j]))
            factor[i, i], factor[i, j], factor[j, i], factor[j, j] = slope_a, slope_b, 1 - slope_a, 1 - slope_b
            wires[i], wires[j] = torch.minimum(wires[i], wires[j]), torch.maximum(wires[i], wires[j])
        jacobian = factor @ jacobian
    got = torch.autograd.functional.jacobian(
        lambda x: sorting_network(x, steepness=steepness, distribution=distribution, hard=True).values, x
    )
    torch.testing.assert_close(got, jacobian, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("network", NETWORKS)
def test_gradient_of_the_hard_permutation_is_that_of_the_published_layers(
    network: str, distribution: str, generator: torch.Generator
) -> None:
    # The paper's forward pass, written out: soft plus (hard minus soft) held constant, for values and rows.
    n, steepness = 7, 1.5
    start = torch.randn(n, generator=generator, dtype=torch.float64, requires_grad=True)
    x, rows = start, torch.eye(n, dtype=torch.float64)
    for low, high in comparators(n, network):
        a, b, above, below = x[low], x[high], rows[low], rows[high]
        w = soft_step(steepness * (b - a), distribution)
        keep = (a <= b).double()
        swapped = []
        for soft, hard in ((w, keep), (1 - w, 1 - keep)):
            value = soft * a + (1 - soft) * b
            row = soft[:, None] * above + (1 - soft[:, None]) * below
            exact, exact_row = hard * a + (1 - hard) * b, hard[:, None] * above + (1 - hard[:, None]) * below
            swapped.append((value + (exact - value).detach(), row + (exact_row - row).detach()))
        wires = torch.cat([low, high]).long()
        x = x.index_copy(0, wires, torch.cat([swapped[0][0], swapped[1][0]]))
        rows = rows.index_copy(0, wires, torch.cat([swapped[0][1], swapped[1][1]]))
    ours = sorting_network(
        start, steepness=steepness, distribution=distribution, network=network, hard=True
    ).permutation
    torch.testing.assert_close(ours, rows, atol=1e-12, rtol=0)
    cotangent = torch.randn(n, n, generator=generator, dtype=torch.float64)
    (expected,) = torch.autograd.grad(rows, start, cotangent)
    (got,) = torch.autograd.grad(ours, start, cotangent)
    torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-10)


def test_cross_entropy_pulls_at_the_right_entries_of_a_hard_permutation_alone() -> None:
    permutation = torch.eye(3)[[1, 0, 2]].requires_grad_()
    permutation_loss(permutation, torch.arange(3)).backward()
    wrong = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]).bool()
    assert permutation.grad is not None
    assert (permutation.grad[wrong] == 0).all()
    assert (permutation.grad[~wrong] != 0).all()


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(-5, 5), min_size=1, max_size=40),
    st.sampled_from((*DISTRIBUTIONS, *FURTHER)),
    st.sampled_from(NETWORKS),
    st.floats(0.1, 100),
)
def test_laws(values: list[float], distribution: str, network: str, steepness: float) -> None:
    x = torch.tensor(values, dtype=torch.float64)
    n = x.numel()
    result = sorting_network(x, steepness=steepness, distribution=distribution, network=network)
    ones = torch.ones(n, dtype=torch.float64)
    matrix = result.permutation
    assert (matrix >= 0).all()
    torch.testing.assert_close(matrix.sum(0), ones)
    torch.testing.assert_close(matrix.sum(1), ones)
    torch.testing.assert_close(matrix @ x, result.values)
    torch.testing.assert_close(result.values.sum(), x.sum())
    bound = len(comparators(n, network)) * STEP_ERRORS[distribution] / steepness
    assert ((result.values - x.sort().values).abs() <= bound + 1e-12).all()


@pytest.mark.parametrize("distribution", [*DISTRIBUTIONS, *FURTHER])
def test_swap_error_reaches_its_bound_and_never_exceeds_it(distribution: str) -> None:
    gap = torch.cat([torch.linspace(0, 3, 300_001, dtype=torch.float64), torch.logspace(0, 4, 200).double()])
    for steepness in (0.5, 10.0):
        low, high = soft_swap(gap / 2, -gap / 2, steepness=steepness, distribution=distribution)
        error = low + gap / 2
        torch.testing.assert_close(error, gap / 2 - high)
        bound = STEP_ERRORS[distribution] / steepness
        assert error.max() <= bound + 1e-11
        assert error.max() >= 0.99 * bound


@pytest.mark.parametrize("distribution", MONOTONIC)
@pytest.mark.parametrize("network", NETWORKS)
def test_monotonic_networks_have_no_negative_slope(distribution: str, network: str, generator: torch.Generator) -> None:
    x = torch.randn(20, 9, generator=generator, dtype=torch.float64)
    for row in x:
        jacobian = torch.autograd.functional.jacobian(
            lambda x: sorting_network(x, steepness=4.0, distribution=distribution, network=network).values, row
        )
        assert jacobian.min() >= -1e-12


def test_logistic_network_has_negative_slopes(generator: torch.Generator) -> None:
    a, b = torch.zeros(1001, dtype=torch.float64, requires_grad=True), torch.linspace(0, 2, 1001).double()
    low, _ = soft_swap(a, b, steepness=1.0, distribution="logistic")
    (slope,) = torch.autograd.grad(low.sum(), a)
    # low = a + d f(-d): its slope in b is 1 - slope in a.
    assert (1 - slope).min().item() == pytest.approx(-0.0998, abs=1e-4)


def test_values_and_matrix_can_be_sent_backward_separately(generator: torch.Generator) -> None:
    x = torch.randn(3, 8, generator=generator, requires_grad=True)
    result = sorting_network(x)
    (from_values,) = torch.autograd.grad(result.values.square().sum(), x)
    (from_matrix,) = torch.autograd.grad(torch.einsum("bpi,bi->bp", result.permutation, x).square().sum(), x)
    torch.testing.assert_close(from_matrix, from_values, atol=1e-5, rtol=1e-5)


def test_values_take_memory_linear_in_n() -> None:
    x = torch.linspace(0, 1, 2**17, requires_grad=True)
    # A matrix would have 2^34 entries.
    sorting_network(x, steepness=1e4).values.square().sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_steep_network_is_torch_sort(generator: torch.Generator) -> None:
    x = torch.rand(4, 200, generator=generator, dtype=torch.float64)
    for distribution in DISTRIBUTIONS:
        got = sorting_network(x, steepness=1e6, distribution=distribution).values
        torch.testing.assert_close(got, x.sort(-1).values, atol=1e-5, rtol=0)


def test_permutation_loss_takes_a_matrix_or_indices_and_stays_finite_at_zero_and_one(
    generator: torch.Generator,
) -> None:
    x = torch.randn(5, 6, generator=generator)
    target = torch.stack([torch.randperm(6, generator=generator) for _ in range(5)])
    soft = sorting_network(x).permutation
    matrix = torch.nn.functional.one_hot(target, 6).to(soft)
    torch.testing.assert_close(permutation_loss(soft, target), permutation_loss(soft, matrix))
    hard = sorting_network(x.requires_grad_(), hard=True).permutation
    permutation_loss(hard, target).backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("target", [torch.tensor([0, 0, 1]), torch.tensor([0, 1]), torch.zeros(3, 2)])
def test_permutation_loss_refuses_what_is_no_permutation(target: Tensor, without_shape_checks: None) -> None:
    with pytest.raises(ValueError, match="target must"):
        permutation_loss(torch.full((3, 3), 1 / 3), target)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.data())
def test_ordering_metrics_against_enumeration(n: int, data: st.DataObject) -> None:
    scores = torch.tensor(data.draw(st.lists(st.permutations(range(n)), min_size=3, max_size=3))).float()
    truth = torch.tensor([data.draw(st.lists(st.integers(0, 4), min_size=n, max_size=n)) for _ in range(3)])
    subset = data.draw(st.integers(1, n))
    metrics = ordering_metrics(scores, truth, subset)
    exact, places, subsets = [], [], []
    for s, t in zip(scores.tolist(), truth.tolist(), strict=True):
        predicted = [t[i] for i in sorted(range(n), key=lambda i: s[i])]
        exact.append(predicted == sorted(t))
        places += [p == q for p, q in zip(predicted, sorted(t), strict=True)]
        subsets += [list(c) == sorted(c) for c in itertools.combinations(predicted, subset)]
    for got, expected in zip(metrics, (exact, places, subsets), strict=True):
        assert got == pytest.approx(sum(expected) / len(expected))


def test_ordering_metrics_refuse_bad_arguments(without_shape_checks: None) -> None:
    with pytest.raises(ValueError, match=r"subset must be in 1\.\.3, got 4"):
        ordering_metrics(torch.zeros(2, 3), torch.zeros(2, 3), subset=4)
    with pytest.raises(ValueError, match="must agree in shape"):
        ordering_metrics(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="must not be empty"):
        ordering_metrics(torch.zeros(0, 3), torch.zeros(0, 3))


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ((2**31,), ValueError, "n must be small enough for 268435456 swaps, got 2147483648"),
        ((100_000, "odd_even"), ValueError, "n must be small enough for 268435456 swaps, got 100000"),
        ((0,), ValueError, "n must be an integer >= 1, got 0"),
        ((2.0,), TypeError, "n must be an integer, got float"),
    ],
)
def test_a_network_that_cannot_be_listed_is_refused(
    arguments: tuple[Any, ...], error: type[Exception], match: str, without_shape_checks: None
) -> None:
    with pytest.raises(error, match=match):
        comparators(*arguments)
