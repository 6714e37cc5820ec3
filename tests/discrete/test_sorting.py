"""What the orderings promise beyond their contracts: edges, layouts, sizes, memory, laws."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from pullback import discrete
from pullback.discrete.sorted_input import SortedInput
from pullback.kernels.compiled import compiled

METHODS = ("softsort", "neuralsort", "sinkhorn", "network", "isotonic")
WITH_MATRIX = METHODS[:-1]
INF = float("inf")


def _random(generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=dtype)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dim", [0, 1, -1, -2])
@pytest.mark.parametrize("descending", [False, True])
def test_any_dimension_and_direction(method: str, dim: int, descending: bool, generator: torch.Generator) -> None:
    x = _random(generator, 4, 3, 5)
    result = discrete.sort(x, dim, descending, method=method)
    moved = discrete.sort(x.movedim(dim, -1).contiguous(), descending=descending, method=method)
    torch.testing.assert_close(result.values, moved.values.movedim(-1, dim))
    assert torch.equal(result.indices, torch.sort(x, dim=dim, descending=descending, stable=True).indices)
    if method != "isotonic":
        assert result.permutation.shape == (*moved.values.shape, x.shape[dim])
        product = (result.permutation @ x.movedim(dim, -1).unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(product, moved.values)
    ranks = discrete.rank(x, dim, descending, method=method, temperature=1e-6)
    assert torch.equal(ranks.round().long(), torch.argsort(torch.argsort(x, dim, descending), dim))


@pytest.mark.parametrize("method", METHODS)
def test_hard_is_exact_and_has_the_soft_gradient(method: str, generator: torch.Generator) -> None:
    x = _random(generator, 3, 6, dtype=torch.float32).requires_grad_()
    weight = _random(generator, 3, 6, dtype=torch.float32)
    hard = discrete.sort(x, method=method, hard=True)
    assert torch.equal(hard.values, torch.sort(x).values)
    (got,) = torch.autograd.grad((hard.values * weight).sum(), x)
    (expected,) = torch.autograd.grad((discrete.sort(x, method=method).values * weight).sum(), x)
    torch.testing.assert_close(got, expected)
    assert torch.equal(discrete.rank(x, method=method, hard=True), x.argsort(-1).argsort(-1).float())
    if method != "isotonic":
        expected_matrix = torch.nn.functional.one_hot(x.argsort(-1), 6).float()
        assert torch.equal(discrete.argsort(x, method=method, hard=True), expected_matrix)
        assert torch.equal(hard.permutation, expected_matrix)


@pytest.mark.parametrize("method", METHODS)
def test_cotangents_may_be_zero_tensors_without_memory(method: str) -> None:
    """The second derivative of an absolute value is such a tensor."""
    x = torch.tensor([0.3, -0.8, 1.1], dtype=torch.float64, requires_grad=True)
    assert gradgradcheck(lambda x: discrete.sort(x, method=method).values.abs().mean(), (x,))


def test_temperature_zero_is_torch(generator: torch.Generator) -> None:
    x = _random(generator, 3, 6).requires_grad_()
    result = discrete.sort(x, temperature=0.0)
    assert torch.equal(result.values, torch.sort(x).values)
    (got,) = torch.autograd.grad((result.values * torch.arange(6.0)).sum(), x)
    assert torch.equal(got, x.argsort(-1).argsort(-1).double())
    assert torch.equal(discrete.rank(x, temperature=0.0), x.argsort(-1).argsort(-1).double())
    for flat in (discrete.rank, discrete.argsort, discrete.argmax, lambda x, **o: discrete.soft_topk(x, 2, **o)):
        assert (torch.autograd.grad(flat(x, temperature=0.0).square().sum(), x)[0] == 0).all()
    assert torch.equal(discrete.argsort(x, temperature=0.0) @ x.unsqueeze(-1), torch.sort(x).values.unsqueeze(-1))


@pytest.mark.parametrize("method", ["softsort", "neuralsort", "sinkhorn", "isotonic"])
@pytest.mark.parametrize("scale", ["std", None])
def test_infinities_leave_the_finite_entries_alone(method: str, scale: str | None, generator: torch.Generator) -> None:
    finite = _random(generator, 6)
    x = torch.cat([torch.tensor([INF, -INF]), finite, torch.tensor([INF])]).double().requires_grad_()
    clean = finite.clone().requires_grad_()
    weight = _random(generator, 6)
    result = discrete.sort(x, method=method, temperature=0.4, scale=scale).values
    expected = discrete.sort(clean, method=method, temperature=0.4, scale=scale).values
    assert result[0] == -INF
    assert (result[-2:] == INF).all()
    torch.testing.assert_close(result[1:-2], expected)
    (got,) = torch.autograd.grad((result[1:-2] * weight).sum(), x)
    (wanted,) = torch.autograd.grad((expected * weight).sum(), clean)
    torch.testing.assert_close(got[2:-1], wanted)
    assert (got[[0, 1, -1]] == 0).all()
    ranks = discrete.rank(x, method=method, temperature=0.4, scale=scale)
    torch.testing.assert_close(ranks[2:-1], 1 + discrete.rank(clean, method=method, temperature=0.4, scale=scale))
    assert ranks[1] == 0


@pytest.mark.parametrize("method", METHODS)
def test_only_infinities(method: str) -> None:
    x = torch.tensor([INF, -INF, INF], requires_grad=True)
    result = discrete.sort(x, method=method).values
    assert result.tolist() == [-INF, INF, INF]
    ranks = discrete.rank(x, method=method)
    ranks.sum().backward()
    assert torch.isfinite(ranks).all()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("method", METHODS)
def test_ties_and_equal_entries(method: str) -> None:
    x = torch.full((4,), 2.5, dtype=torch.float64, requires_grad=True)
    values = discrete.sort(x, method=method).values
    torch.testing.assert_close(values, x)
    values.sum().backward()
    torch.testing.assert_close(x.grad, torch.ones_like(x))
    tied = discrete.rank(torch.tensor([1.0, 5.0, 1.0, 5.0]), method=method, temperature=1e-4)
    if method != "network":  # a network swaps tied pairs by half, which is no symmetric mean over its wires
        torch.testing.assert_close(tied, torch.tensor([0.5, 2.5, 0.5, 2.5]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_size_one_empty_and_scalar(method: str) -> None:
    column = torch.tensor([[1.0], [7.0]], requires_grad=True)
    result = discrete.sort(column, method=method)
    assert torch.equal(result.values, column)
    assert result.indices.tolist() == [[0], [0]]
    result.values.sum().backward()
    assert column.grad.tolist() == [[1.0], [1.0]]
    assert discrete.rank(column, method=method).tolist() == [[0.0], [0.0]]
    for shape in ((0,), (3, 0), (0, 3)):
        empty = torch.zeros(shape, requires_grad=True)
        values = discrete.sort(empty, method=method).values
        assert values.shape == shape
        values.sum().backward()
        assert discrete.rank(empty, method=method).shape == shape
    assert discrete.sort(torch.tensor(3.0), 0, method=method).values.item() == 3.0


@pytest.mark.parametrize("n", [2, 9, 70])
@pytest.mark.parametrize("scale", ["std", None])
@pytest.mark.parametrize("method", ["softsort", "neuralsort", "sinkhorn", "isotonic"])
def test_the_direct_form_equals_the_composed_form(
    method: str, scale: str | None, n: int, generator: torch.Generator
) -> None:
    x = _random(generator, 2, n).requires_grad_()
    x.data[0, 1] = x.data[0, 0]
    weight = _random(generator, 2, n)
    temperature = torch.tensor(1.5, dtype=x.dtype, requires_grad=True)
    plainly = discrete.ORDERINGS[method]

    def composed(x: Tensor) -> SortedInput:
        return SortedInput.of(x, temperature, scale is not None)

    options = {"method": method, "temperature": temperature, "scale": scale}
    pairs = {"sort": (discrete.sort(x, **options).values, plainly.values(composed(x)))}
    pairs["rank"] = (discrete.rank(x, **options), plainly.ranks(composed(x)))
    for name, (direct, plain) in pairs.items():
        if compiled() is not None and (name, method) != ("rank", "neuralsort"):
            assert type(direct.grad_fn) is not type(plain.grad_fn)
        torch.testing.assert_close(direct, plain, rtol=1e-11, atol=1e-11)
        gradients = [torch.autograd.grad(v, x, weight, retain_graph=True)[0] for v in (direct, plain)]
        torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)
        learned = [torch.autograd.grad(v, temperature, weight, retain_graph=True)[0] for v in (direct, plain)]
        torch.testing.assert_close(*learned, rtol=1e-9, atol=1e-9)
        batched = torch.func.vmap(lambda g, v=direct: torch.autograd.grad(v, x, g, retain_graph=True)[0])(
            torch.stack([weight, 2 * weight])
        )
        torch.testing.assert_close(batched, torch.stack([gradients[0], 2 * gradients[0]]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", ["softsort", "neuralsort", "sinkhorn", "isotonic"])
@pytest.mark.parametrize("operation", ["sort", "rank"])
def test_rows_in_threads_are_rows_in_one(operation: str, method: str, generator: torch.Generator) -> None:
    x = _random(generator, 70, 6_000, dtype=torch.float32).requires_grad_()
    weight = _random(generator, 70, 6_000, dtype=torch.float32)

    def work() -> tuple[Tensor, Tensor]:
        result = getattr(discrete, operation)(x, method=method, temperature=1.0)
        values = result if operation == "rank" else result.values
        return values.detach(), torch.autograd.grad(values, x, weight)[0]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = work()
        torch.set_num_threads(3)
        together = work()
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(together, alone, rtol=0, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_units_and_offset_do_not_matter(method: str, generator: torch.Generator) -> None:
    x = _random(generator, 9)
    for factor, offset in ((1e-200, 0.0), (1e200, 0.0), (3.0, 1e5)):
        moved = discrete.sort(x * factor + offset, method=method).values
        torch.testing.assert_close(
            (moved - offset) / factor, discrete.sort(x, method=method).values, rtol=1e-7, atol=1e-7
        )


@pytest.mark.parametrize("method", WITH_MATRIX)
def test_matrices_are_stochastic(method: str, generator: torch.Generator) -> None:
    p = discrete.permutation_matrix(_random(generator, 2, 7), method=method, temperature=0.5)
    assert (p >= 0).all()
    torch.testing.assert_close(p.sum(-1), torch.ones(2, 7, dtype=torch.float64))
    if method in ("sinkhorn", "network"):
        torch.testing.assert_close(p.sum(-2), torch.ones(2, 7, dtype=torch.float64))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=12, unique=True), st.sampled_from(METHODS))
def test_values_are_ordered_within_range_and_equivariant(numbers: list[float], method: str) -> None:
    x = torch.tensor(numbers, dtype=torch.float64)
    values = discrete.sort(x, method=method, temperature=0.3).values
    slack = 1e-9 * (1 + x.abs().max())
    assert (values.diff() >= -slack).all()
    assert values.min() >= x.min() - slack
    assert values.max() <= x.max() + slack
    if method != "network":  # the wires of a network are fixed, so that it depends on the order of its input
        torch.testing.assert_close(discrete.sort(x.flip(0), method=method, temperature=0.3).values, values)
    if method in ("sinkhorn", "network", "isotonic"):
        assert abs(values.sum() - x.sum()) <= 1e-7 * (1 + x.abs().sum())


@pytest.mark.parametrize("n", [8, 200, 2000])
def test_rank_error_does_not_depend_on_the_size(n: int, generator: torch.Generator) -> None:
    """In float32, at one temperature, the mean error in units of n stays the same (it grew without bound elsewhere)."""
    x = _random(generator, 4, n, dtype=torch.float32)
    exact = x.argsort(-1).argsort(-1).float()
    for method in ("softsort", "sinkhorn", "neuralsort", "isotonic"):
        error = (discrete.rank(x, method=method) - exact).abs().mean() / n
        assert error < 0.05, (method, n, error)


@pytest.mark.parametrize("method", ["softsort", "sinkhorn", "isotonic"])
def test_a_million_values(method: str, generator: torch.Generator) -> None:
    x = _random(generator, 1_000_000, dtype=torch.float32).requires_grad_()
    values = discrete.sort(x, method=method, temperature=0.01).values
    values.square().sum().backward()
    hard = torch.sort(x.detach()).values
    assert (values.detach() - hard).abs().mean() < 0.02
    assert torch.isfinite(x.grad).all()
    assert torch.nn.functional.cosine_similarity(x.grad, 2 * x.detach(), dim=0) > 0.99


def test_values_hold_no_matrix(generator: torch.Generator) -> None:
    """n = 20 000 as a matrix is 1.6 GB; what autograd saves of each method is a few vectors."""
    x = _random(generator, 20_000, dtype=torch.float32).requires_grad_()
    for method in ("softsort", "sinkhorn", "isotonic", "neuralsort"):
        kept: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: (kept.append(t.numel()), t)[1], lambda t: t):
            values = discrete.sort(x, method=method).values
            discrete.rank(x, method=method)
        values.sum().backward()
        assert max(kept) <= 2 * x.numel()


@pytest.mark.parametrize("method", WITH_MATRIX)
def test_payload_with_features_follows_the_keys(method: str, generator: torch.Generator) -> None:
    key, payload = _random(generator, 4, 3).requires_grad_(), _random(generator, 4, 3, 2).requires_grad_()
    result = discrete.sort(key, 0, method=method, temperature=0.4, carry=payload)
    expected = torch.einsum("bij,jbf->ibf", result.permutation, payload)
    torch.testing.assert_close(result.carried, expected)
    assert gradcheck(lambda k, v: discrete.sort_by(k, v, 0, method=method, temperature=0.4), (key, payload))
    exact = discrete.sort_by(key, payload, 0, True, method=method, hard=True)
    index = key.argsort(0, descending=True).unsqueeze(-1).expand_as(payload)
    assert torch.equal(exact, payload.gather(0, index))


def test_isotonic_has_no_matrix_and_says_so() -> None:
    result = discrete.sort(torch.zeros(3), method="isotonic")
    with pytest.raises(ValueError, match=r"method must be one of 'softsort'.* got 'isotonic'"):
        result.permutation
    with pytest.raises(ValueError, match="method must be one of"):
        discrete.sort(torch.zeros(3), method="isotonic", carry=torch.zeros(3))


def test_ranks_train(generator: torch.Generator) -> None:
    """Gradient descent on soft ranks brings items into a wanted order; isotonic ranks slope only where they pool."""
    wanted = torch.randperm(6, generator=generator).double()
    for method in METHODS:
        x = _random(generator, 6).requires_grad_()
        optimizer = torch.optim.Adam([x], 0.05)
        for _ in range(400):
            optimizer.zero_grad()
            (
                discrete.rank(x, method=method, temperature=2.0 if method == "isotonic" else 0.5) - wanted
            ).square().sum().backward()
            optimizer.step()
        assert torch.equal(x.argsort().argsort().double(), wanted), method


def test_nan_is_refused_under_vmap() -> None:
    x = torch.tensor([[0.0, 1.0], [0.0, float("nan")]])
    with pytest.raises(ValueError, match="x must not hold NaN"):
        torch.func.vmap(lambda row: discrete.sort(row).values)(x)


def _simplex_rows(logits: Tensor, power: float) -> Tensor:
    """``argmax <p, logits>`` with the regulariser of entmax, a row: weights by Lagrange's condition, by bisection."""
    low, high = logits.amax(-1, keepdim=True) - power, logits.amax(-1, keepdim=True)
    for _ in range(80):
        middle = (low + high) / 2
        heavy = ((logits - middle).clamp(min=0) / power).pow(power).sum(-1, keepdim=True) > 1
        low, high = torch.where(heavy, middle, low), torch.where(heavy, high, middle)
    return ((logits - low).clamp(min=0) / power).pow(power)


@pytest.mark.parametrize(("smoothness", "power"), [("c0", 1.0), ("c1", 2.0), ("c2", 3.0)])
def test_sparse_rows_are_projections_of_the_scores(smoothness: str, power: float, generator: torch.Generator) -> None:
    x = _random(generator, 3, 6)
    options = {"temperature": 0.4, "scale": None}
    places = x.sort(-1).values.unsqueeze(-1)
    near = -(places - x.unsqueeze(-2)).abs() / 0.4
    torch.testing.assert_close(
        discrete.argsort(x, method=f"softsort_{smoothness}", **options), _simplex_rows(near, power)
    )
    far = (x.unsqueeze(-1) - x.unsqueeze(-2)).abs().sum(-1)
    scores = (torch.arange(-5, 6, 2).unsqueeze(-1) * x.unsqueeze(-2) - far.unsqueeze(-2)) / 0.4
    rows = _simplex_rows(scores, power)
    torch.testing.assert_close(discrete.argsort(x, method=f"neuralsort_{smoothness}", **options), rows)
    ranks = (rows * torch.arange(6).unsqueeze(-1)).sum(-2) / rows.sum(-2)
    torch.testing.assert_close(discrete.rank(x, method=f"neuralsort_{smoothness}", **options), ranks)
    for method in ("softsort", "neuralsort"):
        top = discrete.argsort(x, method=f"{method}_{smoothness}", **options)[..., -1, :]
        torch.testing.assert_close(discrete.argmax(x, method=f"{method}_{smoothness}", **options), top)


@pytest.mark.parametrize("smooth", [0, 1, 2])
def test_networks_have_as_many_continuous_derivatives_as_they_say_and_no_more(smooth: int) -> None:
    # Along a line that two entries meet and part on, a swap at a time: a jump is seen as a difference that does not
    # fall with the step, and a continuous derivative as one that does.
    def derivative(at: Tensor, order: int) -> Tensor:
        x = at.clone().requires_grad_()
        rows = torch.stack([x, 0.3 - 0 * x, 1 - 0.7 * x, -0.5 + 0.2 * x], -1)
        y = discrete.sort(rows, method=f"network_c{smooth}", temperature=0.7, scale=None).values[..., 1]
        for _ in range(order):
            (y,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return y.detach()

    for order in (smooth, smooth + 1):
        jumps = []
        for count in (1_001, 8_001):
            jumps.append(float(derivative(torch.linspace(-1, 2, count, dtype=torch.float64), order).diff().abs().max()))
        assert (jumps[1] < jumps[0] / 4) == (order == smooth)


@pytest.mark.parametrize("method", ["softsort_c0", "softsort_c2", "neuralsort_c1", "network_c0", "network_c1"])
def test_limited_smoothness_is_hard_beyond_its_band(method: str) -> None:
    x = torch.tensor([3.0, -torch.inf, 0.0, 10.0, 0.1, torch.inf], dtype=torch.float64, requires_grad=True)
    ordered = discrete.sort(x, method=method, temperature=0.2, scale=None)
    torch.testing.assert_close(ordered.values[[0, 3, 4, 5]], x.sort().values[[0, 3, 4, 5]])
    (slope,) = torch.autograd.grad(ordered.values[1] + ordered.values[2], x)
    assert slope[[0, 1, 3, 5]].tolist() == [0, 0, 0, 0]
    torch.testing.assert_close(
        discrete.rank(x, method=method, temperature=0.2, scale=None)[[0, 1, 3, 5]], x.new_tensor([3.0, 0.0, 4.0, 5.0])
    )
    weights = discrete.argmax(x[[0, 2, 3]], method=method, temperature=0.2, scale=None)
    assert weights.tolist() == [0, 0, 1]
