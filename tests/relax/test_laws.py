"""The law of a hard value: expectations over its atoms, held against enumerations of what the value could have been."""

from __future__ import annotations

import inspect
import itertools
import math
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import pullback
from pullback.relax.image import convolved
from pullback.relax.rules_order import first_largest, members_in_order
from tests.relax.smoothing import TEMPERATURE, relaxed_gradient, smoothed_gradient

P = torch.float64


def leaf(*values: float) -> Tensor:
    return torch.tensor(values, dtype=P, requires_grad=True)


def slope(y: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(y, x, retain_graph=True)[0]


NUMBERS = {
    "is one": (lambda m: m == 1, 1.0),
    "is not zero": (lambda m: m != 0, 1.0),
    "above zero": (lambda m: m > 0, 1.0),
    "at least one": (lambda m: m >= 1, 1.0),
    "below one": (lambda m: m < 1, -1.0),
    "at most zero": (lambda m: m <= 0, -1.0),
    "number first": (lambda m: 1 == m, 1.0),  # noqa: SIM300
    "integer labels": (lambda m: m == torch.tensor([1, 1, 1]), 1.0),
    "float labels": (lambda m: m == torch.ones(3), 1.0),
    "out of reach": (lambda m: m == 2, 0.0),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_mask_meets_numbers_as_a_truth_value(name: str) -> None:
    compare, sign = NUMBERS[name]
    x = leaf(0.1, -0.2, 0.4)
    with pullback.relaxed(temperature=0.3, scale=None):
        mask = x > 0
        met = compare(mask)
        assert torch.equal(met, compare(mask.clone().bool() & True))
        value = met.double().sum()
    expected = sign * slope(mask.probability.sum(), x)
    assert torch.allclose(torch.autograd.grad(value, x, allow_unused=True)[0], expected)


def test_functions_of_a_looked_up_value_are_expectations_over_the_table() -> None:
    grades = torch.tensor([3, 0, 2, 2])
    for curved in (
        lambda g: 2.0**g,
        lambda g: (g - 1.0).abs(),
        lambda g: torch.sin(g) ** 3,
        lambda g: (g > 1).double(),
    ):
        x = leaf(0.4, 0.5, -0.3, 0.45)
        with pullback.relaxed(temperature=0.3, scale=None):
            index = x.argmax()
            value = curved(grades[index].double())
        p = index.distribution.probability
        assert torch.allclose(slope(value, x), slope((p * curved(grades.double())).sum(), x))


def test_a_jump_between_equal_entries_is_none() -> None:
    x = leaf(0.5, 0.51, -2.0)
    with pullback.relaxed(temperature=0.3, scale=None):
        same = torch.tensor([4.0, 4.0, 4.0], dtype=P)[x.argmax()] ** 3
    assert slope(same, x).abs().max() < 1e-9


def test_entries_of_one_row_move_together() -> None:
    rows = torch.tensor([[1.0, 2.0], [-1.0, 3.0], [0.5, -4.0]], dtype=P)
    mix = torch.tensor([[0.3, -1.0], [2.0, 0.7]], dtype=P)
    functions = {
        "product": lambda row: row[0] * row[1],
        "norm": lambda row: row.norm(),
        "after a matrix": lambda row: (row @ mix).square().sum(),
        "softmax": lambda row: row.softmax(-1)[0],
        "log of a sum": lambda row: torch.log(row.exp().sum()),
        "loss": lambda row: F.mse_loss(row, torch.tensor([0.2, 0.1], dtype=P)),
    }
    for name, function in functions.items():
        x = leaf(0.5, 0.3, 0.35)
        with pullback.relaxed(temperature=0.3, scale=None):
            index = x.argmax()
            value = function(rows[index])
        p = index.distribution.probability
        exact = sum(p[k] * function(rows[k]) for k in range(3))
        assert torch.allclose(slope(value, x), slope(exact, x)), name


def test_rows_of_a_batch_are_independent_choices() -> None:
    rows = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=P)
    x = torch.randn(2, 5, generator=torch.Generator().manual_seed(1), dtype=P, requires_grad=True)
    with pullback.relaxed(temperature=0.3):
        index = x.argmax(1)
        value = rows[index].norm(dim=1).sum()
        hot = (F.one_hot(index, 5).to(P) @ rows).pow(2).sum(1).sqrt().sum()
    p = index.distribution.probability
    exact = slope((p * rows.norm(dim=1)).sum(), x)
    assert torch.allclose(slope(value, x), exact)
    assert torch.allclose(slope(hot, x), exact)


def test_independent_choices_form_products() -> None:
    table = torch.tensor([1.0, -2.0, 0.5], dtype=P)
    x = leaf(0.5, 0.3, 0.35, -0.1, 0.05, 0.0)
    with pullback.relaxed(temperature=0.3, scale=None):
        i, j = x[:3].argmax(), x[3:].argmin()
        value = torch.exp(table[i] * table[j])
        same = (i == j).double()
    p, q = i.distribution.probability, j.distribution.probability
    pairs = list(itertools.product(range(3), range(3)))
    assert torch.allclose(
        slope(value, x), slope(sum(p[a] * q[b] * torch.exp(table[a] * table[b]) for a, b in pairs), x)
    )
    assert torch.allclose(slope(same, x), slope((p * q).sum(), x))


def test_what_is_mixed_in_has_the_derivative_of_the_expectation() -> None:
    codes = torch.tensor([-1.0, 0.0, 2.0], dtype=P)
    x, y = leaf(0.1, 0.12, -0.4), leaf(0.7)
    with pullback.relaxed(temperature=0.3, scale=None):
        index = x.argmax()
        value = torch.tanh(codes[index] - y[0])
    p = index.distribution.probability
    exact = (p * torch.tanh(codes - y[0])).sum()
    for z in (x, y):
        assert torch.allclose(slope(value, z), slope(exact, z))


def test_levels_reach_as_far_as_the_noise() -> None:
    pixels = torch.rand(40, generator=torch.Generator().manual_seed(3), dtype=P)
    weight = torch.randn(40, generator=torch.Generator().manual_seed(4), dtype=P)

    def posterize(x: Tensor) -> Tensor:
        return ((x * 200).int() // 50 * 50).double()

    x = pixels.clone().requires_grad_()
    with pullback.relaxed(temperature=0.2):
        y = (posterize(x) * weight).sum()
    sigma, generator = 0.2 * pixels.std(), torch.Generator().manual_seed(5)
    noise = torch.randn(4000, 40, generator=generator, dtype=P)
    # Each pixel by itself: its own noise times its own level.
    spread = posterize(pixels + sigma * noise) - posterize(pixels - sigma * noise)
    truth = (spread * noise).mean(0) * weight / (2 * sigma)
    gradient = slope(y, x)
    assert F.cosine_similarity(gradient, truth, dim=0) > 0.97
    assert 0.8 < gradient.norm() / truth.norm() < 1.25


def test_a_rounding_of_what_is_whole_is_the_identity() -> None:
    x = torch.linspace(-1, 1, 100, dtype=P).requires_grad_()
    keep = torch.arange(100) % 3 > 0
    gradients = []
    for rounding in (lambda n: n, torch.round, torch.floor, torch.ceil, torch.trunc):
        with pullback.relaxed():
            count = rounding(((x > 0.1) & keep).sum())
            assert count.dtype == torch.int64
        gradients.append(slope((count * 1.0 - 3) ** 2 if count.is_floating_point() else count.double(), x))
    assert all(torch.allclose(g, gradients[0]) for g in gradients)
    for rounding in (torch.round, torch.floor):
        with pullback.relaxed():
            mask = (x > 0.1).double()
            plain, rounded = (mask.sum() - 40) ** 2, (rounding(mask.sum()) - 40) ** 2
        assert torch.allclose(slope(rounded, x), slope(plain, x))


def test_a_rounding_far_from_every_step_is_reported_with_the_temperature_that_moves_it() -> None:
    x = leaf(3.02)
    with pullback.relaxed(temperature=0.05, scale=None) as r:
        x.round().sum()
    (call,) = r.calls
    assert call.status == "relaxed"
    assert "flat point" in call.reason
    needed = float(call.reason.split("temperature of ")[1].split()[0])
    with pullback.relaxed(temperature=needed, scale=None) as again:
        y = x.round().sum()
    assert slope(y, x) > 0.2
    assert again.calls[0].reason == ""


@pytest.mark.parametrize("lend", ["view_as", "reshape_as", "expand_as", "type_as", "to"])
def test_who_lends_a_shape_or_dtype_makes_nothing_soft(lend: str) -> None:
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    with pullback.relaxed(temperature=0.5) as r:
        found = x.argmax(1, keepdim=True)
        labels = torch.tensor([[0], [1], [2], [0]])
        assert type(getattr(labels, lend)(found)) is Tensor
        value = (found == getattr(labels, lend)(found)).double().sum()
    direct = sum(found.distribution.probability[i, 0, labels[i, 0]] for i in range(4))
    assert torch.allclose(slope(value, x), slope(direct.double(), x))
    assert not any(c.operation == lend for c in r.calls)


@pytest.mark.parametrize("fill", [0.0, 7e8, float("nan")])
@pytest.mark.parametrize("write", ["setitem", "scatter", "index_copy", "put"])
def test_a_write_that_covers_all_leaves_nothing_of_what_was_there(fill: float, write: str) -> None:
    x = leaf(0.3, -0.2, 0.25, 0.9, 0.1)
    places = torch.arange(5, dtype=P)

    def ranks(base: Tensor) -> Tensor:
        order = x.argsort()
        if write == "setitem":
            base[order] = places
        elif write == "scatter":
            base.scatter_(0, order, places)
        elif write == "index_copy":
            base.index_copy_(0, order, places)
        else:
            base.index_put_((order,), places)
        return base

    with pullback.relaxed(temperature=0.3):
        value = (ranks(torch.full((5,), fill, dtype=P)) * places).sum()
        direct = (x.argsort().argsort().double() * places).sum()
    assert torch.allclose(slope(value, x), slope(direct, x), rtol=1e-5)


def test_empty_memory_has_no_part_in_a_partial_write() -> None:
    x = leaf(0.3, -0.2, 0.25, 0.9)
    with pullback.relaxed(temperature=0.3, scale=None):
        sign = torch.empty(4, dtype=P)
        sign[x > 0.28] = 1.0
        sign[~(x > 0.28)] = -2.0
        direct = torch.where(x > 0.28, 1.0, -2.0)
    assert torch.equal(sign, direct)
    assert torch.allclose(slope(sign.sum(), x), slope(direct.sum(), x))


def test_long_chains_are_computed_in_order() -> None:
    x = leaf(0.3, -0.2, 0.25)
    with pullback.relaxed(temperature=0.3, scale=None):
        h, n, mask = (x > 0.2).double(), (x > 0.2).long(), x > 0.2
        for _ in range(3000):
            h = h * 0.999 + 0.0005
            n = n + 1
            mask = mask & True
        again = h.square().sum() + n.double().sum() * 0 + mask.double().sum() * 0
        p = (x > 0.2).probability
    values = torch.tensor([0.0, 1.0], dtype=P)
    for _ in range(3000):
        values = values * 0.999 + 0.0005
    assert torch.allclose(slope(again, x), slope((p * (values[1] ** 2 - values[0] ** 2)).sum(), x))
    assert torch.allclose(slope(n.double().sum(), x), slope(p.sum(), x))


def test_a_spiking_neuron_of_many_steps_has_a_gradient() -> None:
    drive = torch.full((5,), 0.3, dtype=P).requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pullback.relaxed(temperature=0.2, scale=None):
            membrane, spikes = torch.zeros(5, dtype=P), torch.zeros(5, dtype=P)
            for _ in range(500):
                membrane = 0.9 * membrane + drive
                fired = (membrane > 1).double()
                membrane = membrane - fired
                spikes = spikes + fired
    gradient = slope(spikes.sum(), drive)
    assert torch.isfinite(gradient).all()
    assert (gradient > 0).all()


def test_changes_in_place_after_a_soft_read() -> None:
    x = leaf(0.3, -0.2, 0.25, 0.9)
    weight = torch.arange(4, dtype=P)

    def program(inplace: bool) -> Tensor:
        a, book = x * 1, torch.linspace(0, 1, 4, dtype=P)
        if inplace:
            a[:] = a[a.argsort()]
            read = book[(x * 1).argsort()]
            book.mul_(0.9).add_(1.0)
        else:
            a = a[a.argsort()]
            read = book[(x * 1).argsort()]
        return (a * weight).sum() + (read * weight).sum()

    with pullback.relaxed(temperature=0.3):
        assert torch.allclose(slope(program(True), x), slope(program(False), x))


def test_writes_of_another_dtype_fail_as_in_torch() -> None:
    x = leaf(0.3, -0.2, 0.25)
    for write in (
        lambda order: torch.zeros(3).scatter_add_(0, order, torch.ones(3, dtype=P)),
        lambda order: torch.zeros(3).index_add(0, order, torch.ones(3, dtype=P)),
    ):
        with pytest.raises(RuntimeError) as plain:
            write(x.detach().argsort())
        with pullback.relaxed(), pytest.raises(RuntimeError) as relaxed:
            write(x.argsort())
        assert str(plain.value) == str(relaxed.value)


def both_gradients(program: Callable[[Tensor], Tensor], x: Tensor, samples: int = 1500) -> tuple[Tensor, Tensor]:
    """The relaxed gradient, and that of the smoothed program by antithetic differences."""
    sigma, generator = 0.1 * x.std().item(), torch.Generator().manual_seed(3)
    truth = torch.zeros_like(x)
    for _ in range(samples):
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        truth += (program(x + sigma * noise) - program(x - sigma * noise)).double() * noise / (2 * sigma * samples)
    leaf = x.clone().requires_grad_()
    with pullback.relaxed(temperature=0.1):
        y = program(leaf)
    assert torch.equal(y.detach(), program(x))
    return slope(y, leaf), truth


def test_a_suppression_loop_has_the_length_of_what_its_alternatives_change() -> None:
    generator = torch.Generator().manual_seed(21)
    centres = torch.rand(10, generator=generator, dtype=P)
    close = (centres[:, None] - centres).abs() < 0.12
    pay = torch.randn(10, generator=generator, dtype=P)

    def suppressed(scores: Tensor) -> Tensor:
        free, total = torch.ones(10, dtype=torch.bool), 0.0
        for _ in range(4):
            best = scores.masked_fill(~free, -20.0).argmax()
            total = total + pay[best]
            free = free & ~close[best]
        return total

    pairs = [both_gradients(suppressed, torch.randn(10, generator=generator, dtype=P)) for _ in range(6)]
    clear = [pair for pair in pairs if pair[1].norm() > 1]  # elsewhere nothing is near a change
    assert len(clear) >= 3
    assert all(F.cosine_similarity(relaxed, truth, dim=0) > 0.7 for relaxed, truth in clear)
    # A change of 2 over a noise of 0.1: slopes multiplied over four choices would be thousands.
    assert max(gradient.norm() for gradient, _ in pairs) < 20


def test_a_membrane_that_resets_has_no_product_of_slopes() -> None:
    weight = torch.tensor([1.0, -0.5, 0.7, 1.2], dtype=P)

    def spikes(drive: Tensor) -> Tensor:
        v, total = torch.zeros(4, dtype=P), torch.zeros(4, dtype=P)
        for _ in range(20):
            v = 0.8 * v + 0.4 * torch.sigmoid(drive)
            fired = (v >= 1).double()
            v = v * (1 - fired)
            total = total + fired
        return (total * weight).sum()

    relaxed, truth = both_gradients(spikes, torch.tensor([0.7, 0.1, 1.4, 2.0], dtype=P))
    assert F.cosine_similarity(relaxed, truth, dim=0) > 0.3
    assert relaxed.norm() < 5 * truth.norm()  # slopes multiplied, it would be hundreds


def test_bits_and_tables_of_integers_are_read_value_by_value() -> None:
    x = leaf(0.3, 0.34, -0.2, 0.31, 0.1, 0.27)
    table = torch.tensor([0.0, 3.0, -1.0, 2.0], dtype=P)
    with pullback.relaxed(temperature=0.3, scale=None):
        n = x[:3].argmax() + 1
        grey = table[n ^ (n >> 1)]
        partner = x.view(2, 3).argmax(0)
        back = (partner[x[3:].argmax()] == 1).double()
    p = x.new_tensor(1.0) * (n.distribution.probability)
    assert torch.allclose(slope(grey, x), slope((p * table[[k ^ (k >> 1) for k in (1, 2, 3)]]).sum(), x))
    where = pullback.relaxed(temperature=0.3, scale=None)
    with where:
        q, r = x.view(2, 3).argmax(0).distribution.probability, x[3:].argmax().distribution.probability
    assert torch.allclose(slope(back, x), slope((r * q[:, 1]).sum(), x))


def combinations(p: Tensor) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """Every outcome of independent numbers with the laws ``p [m, r]``, with its probability."""
    for outcome in itertools.product(range(p.shape[1]), repeat=len(p)):
        yield outcome, p[torch.arange(len(p)), list(outcome)].prod()


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 7])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_laws_of_sums_and_of_first_places_are_those_of_all_outcomes(count: int, levels: int) -> None:
    p = torch.rand(count, levels, dtype=P, generator=torch.Generator().manual_seed(count)).softmax(-1)
    sums, first = torch.zeros(count * (levels - 1) + 1, dtype=P), torch.zeros(count, dtype=P)
    for outcome, probability in combinations(p):
        sums[sum(outcome)] += probability
        first[outcome.index(max(outcome))] += probability
    assert torch.allclose(convolved(p), sums)
    assert torch.allclose(first_largest(p), first)


@pytest.mark.parametrize("k", [1, 2, 4, 5])
def test_members_in_order_are_those_of_all_sets_of_their_number(k: int) -> None:
    p = torch.tensor([0.2, 0.9, 0.5, 0.7, 0.1], dtype=P)
    expected = torch.zeros(k, 5, dtype=P)
    for outcome, probability in combinations(torch.stack([1 - p, p], -1)):
        members = [i for i, one in enumerate(outcome) if one]
        if len(members) == k:
            expected[torch.arange(k), members] += probability
    assert torch.allclose(members_in_order(p, k), expected / expected.sum(-1, keepdim=True))


def test_a_vote_is_an_expectation_over_all_outcomes() -> None:
    x = leaf(0.1, -0.2, 0.4)
    for count in (lambda m: m.double().sum(), lambda m: m.sum(), lambda m: m.double().mean() * 3):
        with pullback.relaxed(temperature=0.3, scale=None):
            mask = x > 0
            value = (count(mask) >= 2).double() + torch.exp(count(mask) * 1.0)
        p = mask.probability
        exact = sum(q * ((sum(o) >= 2) + math.exp(sum(o))) for o, q in combinations(torch.stack([1 - p, p], -1)))
        assert torch.allclose(slope(value, x), slope(exact, x))


def test_places_of_one_ordering_are_no_independent_votes() -> None:
    """Entries that swap places among the chosen leave every function of the sum over the chosen as it is."""
    x = leaf(3.0, 0.02, 0.0, -0.01, -5.0)
    with pullback.relaxed(temperature=0.3, scale=None):
        labels = torch.tensor([1, 0, 1, 0, 1])[x.topk(4).indices]
        value = (labels.double().sum() - 1.0) ** 2
    assert slope(value, x).abs().max() < 1e-6


def test_a_looked_up_truth_value_as_a_number_is_zero_or_one() -> None:
    x = leaf(0.3, 0.1, 0.2)
    table = torch.tensor([False, True, True])
    with pullback.relaxed(temperature=0.3, scale=None):
        number = table[x.argsort()].int()
        value = (number * torch.tensor([1.0, 2.0, 4.0])).sum()
        real = (table[x.argsort()].float() * torch.tensor([1.0, 2.0, 4.0])).sum()
    assert set(number.distribution.values.tolist()) == {0, 1}
    assert torch.allclose(slope(value, x), slope(real, x))
    assert slope(value, x).abs().max() > 0


CURVED = {
    "square of a count": lambda x: ((x > 0).sum() - 3.0) ** 2,
    "square of a sum": lambda x: ((x > 0).float().sum() - 3.0) ** 2,
    "product of sums": lambda x: (x > 0).float().sum() * (x > 0.2).float().sum(),
    "tanh of mixed roundings": lambda x: torch.tanh(x.round() @ torch.ones(len(x), dtype=P)),
}


@pytest.mark.parametrize("name", CURVED)
def test_the_report_names_the_line_where_more_is_possible_than_is_followed(name: str) -> None:
    x = torch.linspace(-1, 1, 80, dtype=P).requires_grad_()
    with pullback.relaxed() as r:
        CURVED[name](x)
    (told,) = [c for c in r.calls if "more values are possible" in c.reason]
    assert told.source == next(line.strip() for line in inspect.getsource(CURVED[name]).splitlines())
    with pullback.relaxed() as linear:
        ((x > 0).sum() * 0.5 + (x > 0).float().mean() / 3 + x.round().sum()).backward()
    with pullback.relaxed() as small:
        ((x[::8] > 0).float().sum() - 3.0).square().backward()
    assert not any(c.reason for c in (*linear.calls, *small.calls))


def test_the_report_warns_of_a_suppression_loop_over_soft_places() -> None:
    x = leaf(0.3, 0.1, 0.2, 0.6)
    near = torch.eye(4, dtype=torch.bool).roll(1, 0)
    with pullback.relaxed() as r:
        keep = torch.ones(4, dtype=torch.bool)
        for place in x.argsort(descending=True):
            keep = keep & ~(near[place] & keep[place])
    (told,) = [c for c in r.calls if "do not trust" in c.reason]
    assert told.source == "keep = keep & ~(near[place] & keep[place])"
    with pullback.relaxed() as one:
        torch.arange(4)[x.argsort()].sum(), (x > 0.2)[torch.tensor([1, 2])].sum()
    assert not any(c.reason for c in one.calls)


@pytest.mark.parametrize("filled", [0.0, 1e4])
def test_a_curved_function_of_ranks_that_were_written_has_the_length_of_that_of_ranks_that_were_read(
    filled: float,
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 6, generator=generator, dtype=torch.float64)
    weights = torch.randn(20, 6, generator=generator, dtype=torch.float64)
    places = torch.arange(6, dtype=torch.float64).expand(20, 6)

    def written(z: torch.Tensor) -> torch.Tensor:
        ranks = torch.full_like(z, filled).scatter_(1, z.argsort(1), places)
        return ((ranks - 2) ** 2 * weights).sum()

    def read(z: torch.Tensor) -> torch.Tensor:
        return ((z.argsort(1).argsort(1).to(z) - 2) ** 2 * weights).sum()

    gradients = []
    for program in (written, read):
        z = x.clone().requires_grad_()
        with pullback.relaxed(temperature=0.1):
            value = program(z)
        gradients.append(torch.autograd.grad(value, z)[0].flatten())
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.95
    assert 0.8 < gradients[0].norm() / gradients[1].norm() < 1.25


def test_what_is_written_in_place_keeps_what_stands_behind_it(generator: torch.Generator) -> None:
    """As torchmetrics' Kendall does: rows of targets are put into the order of the scores, in place."""
    targets = torch.rand(2, 6, generator=generator, dtype=torch.float64)
    weights = torch.arange(1.0, 6.0, dtype=torch.float64)

    def falls(rows: Tensor) -> Tensor:
        return ((rows[:, :-1] > rows[:, 1:]).double() * weights).sum()

    def out_of_place(x: Tensor, y: Tensor) -> Tensor:
        return falls(y.gather(1, x.argsort(1)))

    def in_place(x: Tensor, y: Tensor) -> Tensor:
        y, order = y.clone(), x.argsort(1)
        for i in range(len(y)):
            y[i] = y[i][order[i]]
        return falls(y)

    def gradient(function: Callable[[Tensor, Tensor], Tensor], count: int) -> Tensor:
        x = torch.randn(count, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
        with pullback.relaxed(0.1):
            value = function(x, targets[:count])
        assert value == function(x, targets[:count])
        return torch.autograd.grad(value, x)[0].flatten()

    torch.testing.assert_close(gradient(in_place, 1), gradient(out_of_place, 1), rtol=0.02, atol=1e-4)
    assert torch.cosine_similarity(gradient(in_place, 2), gradient(out_of_place, 2), dim=0) > 0.9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_writes_of_every_form_leave_the_program_as_it_is(dtype: torch.dtype, recwarn: pytest.WarningsRecorder) -> None:
    mask = torch.tensor([True, False, True, False, True])
    writes: list[Callable[[Tensor, Tensor], None]] = [
        lambda y, v: y.__setitem__(0, v),
        lambda y, v: y.__setitem__((0, 1), v[2]),
        lambda y, v: y.__setitem__((slice(None), slice(1, 4)), v[1:4]),
        lambda y, v: y.__setitem__((slice(None), mask), v[:3].to(y.dtype)),
        lambda y, v: y.__setitem__(([0, 1], [2, 2]), v[:2].to(y.dtype)),
        lambda y, v: y.__setitem__((None, ..., 0), v[1]),
        lambda y, v: y.__setitem__(..., v[None]),
        lambda y, v: y.__setitem__((-1, slice(None, None, 2)), v[:3]),
    ]
    targets = torch.rand(5, dtype=P, generator=torch.Generator().manual_seed(0))

    def loss(x: Tensor, write: Callable[[Tensor, Tensor], None]) -> Tensor:
        y = torch.zeros(2, 5, dtype=dtype)
        write(y, targets[x.argsort()])
        return ((y > 0.5).double() * torch.arange(1.0, 11.0, dtype=P).reshape(2, 5)).sum()

    x = leaf(0.3, -0.2, 0.5, 0.1, 0.9)
    for write in writes:
        with pullback.relaxed(0.2):
            value = loss(x, write)
        assert value == loss(x, write)
        assert slope(value, x).isfinite().all()
        assert slope(value, x).abs().max() > 0
    assert not recwarn.list


def largest_gap(a: Tensor) -> Tensor:
    """Kolmogorov and Smirnov's distance of two samples: the largest of counts that share their jumps."""
    b = torch.randn(20, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    both = torch.cat([a, b])
    return ((a[:, None] <= both).double().mean(0) - (b[:, None] <= both).double().mean(0)).abs().max()


def gap_on_a_grid(a: Tensor) -> Tensor:
    grid = torch.linspace(-2, 2, 15, dtype=torch.float64)
    return ((a[:, None] <= grid).double().mean(0) - torch.linspace(0.1, 0.9, 15, dtype=torch.float64)).amax()


def occupied(a: Tensor) -> Tensor:
    """Cells of a grid that hold a point: several may write the same one."""
    cell = ((a.reshape(-1, 2) + 3) / 1.5).floor().long().clamp(0, 3)
    grid = torch.zeros(16, dtype=torch.float64)
    grid[cell[:, 0] * 4 + cell[:, 1]] = 1.0
    return grid @ torch.linspace(0, 1, 16, dtype=torch.float64)


def occupied_by_two_indices(a: Tensor) -> Tensor:
    cell = ((a.reshape(-1, 2) + 3) / 1.5).floor().long().clamp(0, 3)
    grid = torch.zeros(4, 4, dtype=torch.float64)
    grid[cell[:, 0], cell[:, 1]] = 1.0
    return grid.sum()


@pytest.mark.parametrize("program", [largest_gap, gap_on_a_grid, occupied, occupied_by_two_indices])
def test_the_largest_of_counts_and_places_that_several_write(program: Callable[[Tensor], Tensor]) -> None:
    references, gradients = [], []
    for seed in range(3):
        a = torch.randn(20, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.3
        references.append(smoothed_gradient(program, a, TEMPERATURE * a.std().item())[0])
        gradients.append(relaxed_gradient(program, a)[1])
    ours, wanted = torch.cat(gradients), torch.cat(references)
    assert torch.nn.functional.cosine_similarity(ours, wanted, dim=0) > 0.75
    assert 0.5 < ours.norm() / wanted.norm() < 1.6
