"""``relaxed`` as a context: nesting, errors, threads, transforms, checkpoints, in-place changes, reports."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import gc
import io
import pickle
import threading
import warnings
import weakref

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import pullback
from pullback.relax import SoftBool, SoftIndex
from pullback.relax.rules import RULES

TABLE = torch.tensor([1.0, 5.0, 2.0, 3.0])


def leaf() -> Tensor:
    return torch.tensor([0.2, 0.9, 0.4, -0.3], requires_grad=True)


def program(x: Tensor) -> Tensor:
    chosen = TABLE.gather(0, x.argmax(0, keepdim=True)).sum()
    return chosen + ((x > 0.3) * x).sum() + x.round().sum() + x.sort().values[0] + torch.relu(x).sum()


def reference() -> Tensor:
    x = leaf()
    with pullback.relaxed():
        y = program(x)
    return torch.autograd.grad(y, x)[0]


def test_results_have_the_usual_dtype_shape_and_values() -> None:
    x = leaf()
    with pullback.relaxed():
        index, mask, order = x.argmax(), x > 0.3, x.view(2, 2).argsort(dim=1)
    assert isinstance(index, SoftIndex)
    assert isinstance(mask, SoftBool)
    assert (index.dtype, index.shape, index.item()) == (torch.int64, (), 1)
    assert (mask.dtype, mask.tolist()) == (torch.bool, [False, True, True, False])
    assert torch.equal(order, x.detach().view(2, 2).argsort(dim=1))
    assert index.distribution is not None
    assert torch.allclose(index.distribution.probability.sum(), torch.tensor(1.0))
    assert mask.probability.shape == (4,)
    assert not mask.requires_grad


def test_exceptions_leave_no_mode_behind() -> None:
    with pytest.raises(KeyError), pullback.relaxed():
        raise KeyError
    assert torch._C._len_torch_function_stack() == 0
    assert type(leaf() > 0) is Tensor


def test_the_inner_context_decides() -> None:
    x = leaf()
    with pullback.relaxed() as outer:
        with pullback.relaxed(ignore=["comparison"]) as inner:
            assert type(x > 0) is Tensor
            assert type(x.argmax()) is SoftIndex
        assert type(x > 0) is SoftBool
    assert [c.operation for c in inner.calls] == ["argmax"]
    assert [c.operation for c in outer.calls] == ["gt"]


def test_other_threads_are_not_concerned() -> None:
    x, kinds = leaf(), []
    with pullback.relaxed():
        thread = threading.Thread(target=lambda: kinds.append(type(x > 0)))
        thread.start()
        thread.join()
    assert kinds == [Tensor]


def test_decorator_with_and_without_arguments() -> None:
    @pullback.relaxed
    def first(x: Tensor) -> Tensor:
        """Doc."""
        return program(x)

    second = pullback.relaxed(temperature=0.1)(program)
    for f in (first, second):
        x = leaf()
        assert torch.equal(torch.autograd.grad(f(x), x)[0], reference())
        assert "argmax" in f.report()
    assert first.__name__ == "first"
    assert first.__doc__ == "Doc."
    with pytest.raises(TypeError, match="generator"):
        pullback.relaxed(lambda: (yield))


def test_soft_tensors_go_on_after_the_context() -> None:
    x = leaf()
    index = pullback.relaxed(lambda x: x.argmax())(x)
    gradient = torch.autograd.grad(TABLE[index], x)[0]
    assert gradient[1] > 0
    assert gradient[2] < 0


def test_func_transforms() -> None:
    x = leaf().detach()
    with pullback.relaxed() as r:
        assert torch.allclose(torch.func.grad(program)(x), reference())
        twice = torch.stack([x, x])
        per_sample = torch.func.vmap(torch.func.grad(program))(twice)
        summed = torch.func.grad(lambda rows: torch.func.vmap(program)(rows).sum())(twice)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            value, tangent = torch.func.jvp(program, (x,), (torch.ones(4),))
    assert not any("failed" in c.reason for c in r.calls)
    assert torch.allclose(torch.func.grad(pullback.relaxed(program))(x), reference())
    # The spread is that of the whole batch, so the widths differ a little.
    assert torch.nn.functional.cosine_similarity(per_sample[0], reference(), dim=0) > 0.99
    assert torch.allclose(summed, per_sample)
    assert torch.equal(value, program(x))
    assert torch.allclose(tangent, reference().sum(), rtol=1e-4)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_checkpointing(reentrant: bool, inside: bool) -> None:
    x = leaf()
    with pullback.relaxed():
        y = checkpoint(program, x, use_reentrant=reentrant)
        if inside:
            y.backward()
    if not inside:
        y.backward()
    assert torch.allclose(x.grad, reference())


def test_double_backward() -> None:
    x = leaf().detach().double().requires_grad_()

    def slope(x: Tensor) -> Tensor:
        with pullback.relaxed(temperature=0.5, scale=None):
            y = (x > 0.3).double().sum() + x.round().sum()
        return torch.autograd.grad(y, x, create_graph=True)[0]

    second = torch.autograd.grad(slope(x).sum(), x)[0]
    step, numeric = 1e-5, []
    for e in torch.eye(4).double():
        numeric.append((slope(x + step * e).sum() - slope(x - step * e).sum()) / (2 * step))
    assert second.abs().max() > 0.1
    assert torch.allclose(second, torch.stack(numeric), rtol=1e-4, atol=1e-5)


def test_compiled_functions_run_eagerly_with_a_warning() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(program, backend="eager")
    x = leaf()
    with pullback.relaxed(), pytest.warns(UserWarning, match="runs eagerly"):
        y = compiled(x)
    assert torch.allclose(torch.autograd.grad(y, x)[0], reference())

    def enters(x: Tensor) -> Tensor:
        with pullback.relaxed():
            return program(x)

    with pytest.warns(UserWarning, match="runs eagerly"):
        y = torch.compile(enters, backend="eager")(x)
    assert torch.allclose(torch.autograd.grad(y, x)[0], reference())


def test_printing_copying_and_pickling() -> None:
    x = leaf()
    with pullback.relaxed():
        mask = x > 0.3
        assert repr(mask) == "SoftBool(tensor([False,  True,  True, False]))"
        again = copy.deepcopy(mask)
        back = pickle.loads(pickle.dumps(mask))
        buffer = io.BytesIO()
        torch.save(mask, buffer)
        buffer.seek(0)
        loaded = torch.load(buffer)
        array = (mask.float() + 1).numpy()  # the plain program's tensor does not require grad
    assert type(again) is SoftBool
    assert type(back) is type(loaded) is Tensor
    assert torch.equal(again, mask)
    assert back.tolist() == loaded.tolist() == mask.tolist()
    assert array.tolist() == [1.0, 2.0, 2.0, 1.0]


def test_changes_in_place_keep_values_and_gradients() -> None:
    x = leaf()
    with pullback.relaxed():
        y = x * 1.0
        mask = y > 0.3
        y.add_(5.0)  # the mask has not been read yet
        gradient = torch.autograd.grad(mask.float().sum(), x)[0]
        fresh = x > 0.3
        assert torch.allclose(gradient, torch.autograd.grad(fresh.float().sum(), x, retain_graph=True)[0])
        fresh[1] = False
        assert torch.autograd.grad(fresh.float().sum(), x)[0][1] == 0
        index = x.argsort()
        index += 1
        assert index.tolist() == [4, 1, 3, 2]
        assert isinstance(index, SoftIndex)


def test_a_change_nobody_saw_drops_the_soft_part_and_says_so() -> None:
    x = leaf()
    with pullback.relaxed() as r:
        mask = x > 0.3
    with torch._C.DisableTorchFunction():
        mask.fill_(True)
    with r:
        total = mask.float().sum()
    assert total == 4
    assert not total.requires_grad
    assert any("changed in place" in c.reason for c in r.calls)


def test_an_assignment_at_a_ragged_mask_has_the_plain_values() -> None:
    x = leaf()
    values = torch.tensor([7.0, 8.0])
    plain = x.detach().clone()
    plain[plain > 0.3] = values
    with pullback.relaxed() as r:
        y = x.clone()
        y[y > 0.3] = values
    assert torch.equal(y.detach(), plain)
    assert any(c.operation == "setitem" and c.status == "dropped" for c in r.calls)


def test_the_leaf_error_of_the_plain_program_stays() -> None:
    x = leaf()
    with pullback.relaxed(), pytest.raises(RuntimeError, match="leaf"):
        x[x > 0.3] = 0.0
    with pullback.relaxed(), pytest.raises(RuntimeError, match="leaf"):
        x.round_()


def test_draws_are_those_of_the_plain_program() -> None:
    p = torch.tensor([0.2, 0.5, 0.3], requires_grad=True)

    def draw(p: Tensor) -> tuple[Tensor, ...]:
        torch.manual_seed(3)
        own = torch.Generator().manual_seed(4)
        return (
            torch.bernoulli(p),
            torch.multinomial(p, 2),
            torch.multinomial(p, 5, replacement=True, generator=own),
            (torch.rand(3) < p).float(),
            torch.rand(2),
        )

    plain = draw(p.detach())
    with pullback.relaxed():
        drawn = draw(p)
        for a, b in zip(plain, drawn, strict=True):
            assert torch.equal(a, b.detach())
            assert a.dtype == b.dtype
        assert torch.equal(torch.autograd.grad(drawn[0].sum(), p)[0], torch.ones(3))
        expected = torch.autograd.grad(torch.tensor([1.0, 2.0, 4.0])[drawn[1]].sum(), p)[0]
    mean = p.detach() @ torch.tensor([1.0, 2.0, 4.0])
    assert torch.allclose(expected, 2 * (torch.tensor([1.0, 2.0, 4.0]) - mean))


def test_report_says_what_was_dropped_and_where() -> None:
    x = leaf()
    with pullback.relaxed() as r:
        mask = x > 0.3
        if mask[0]:
            pass
        x.argmax().item()
        x.view(2, 2)[mask.view(2, 2)]
        mask.view(2, 2).nonzero()
        torch.where(mask)
        torch.gt(x, 0, out=torch.empty(4, dtype=torch.bool))
        [0, 1, 2][x.argmax()]
        torch.unique(x)
        x.mode()
    dropped = {c.operation: c.reason for c in r.calls if c.status == "dropped"}
    assert "control flow" in dropped["__bool__"]
    assert {"item", "getitem", "nonzero", "where", "gt", "__index__", "unique", "mode"} <= set(dropped)
    assert all(c.file == __file__ and c.line > 0 for c in r.calls)
    assert "x.argmax().item()" in r.report()
    assert f"{__file__}:" in r.report()


@pytest.mark.parametrize("through", [False, True])
def test_a_region_without_gradients_behind_a_relaxed_value_is_told_with_its_line(through: bool) -> None:
    x, heights = leaf(), torch.rand(5)
    with pullback.relaxed(through_no_grad=through) as r:
        shares = (x > 0).float().cumsum(0) / x.numel()
        with torch.no_grad():
            area = torch.trapezoid(shares, torch.linspace(0, 1, len(shares)))
            torch.trapezoid(heights, heights)  # knows of no relaxed value
    left = [(c.operation, c.source[:6]) for c in r.calls if c.status == "left"]
    assert area.requires_grad == through
    assert left == ([] if through else [("trapezoid", "area =")])


def test_nothing_happens_without_gradients() -> None:
    x = leaf()
    with pullback.relaxed() as r, torch.no_grad():
        assert type(x > 0) is Tensor
        assert not x.round().requires_grad
    with pullback.relaxed() as s:
        assert type(x.detach() > 0) is Tensor
        assert type(torch.tensor([3, 1]).argsort()) is Tensor
    assert {(c.operation, c.status) for c in r.calls} == {("gt", "left"), ("round", "left")}
    assert all("torch.no_grad(); through_no_grad=True" in c.reason for c in r.calls)
    assert "nothing was relaxed" in r.report()
    assert s.calls == []


def test_a_soft_counterpart_that_fails_leaves_the_plain_value_and_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("broken on purpose")

    rule = RULES[torch.round]
    monkeypatch.setitem(RULES, torch.round, dataclasses.replace(rule, soft=broken))
    x = leaf()
    with warnings.catch_warnings(record=True) as caught, pullback.relaxed() as r:
        warnings.simplefilter("always")
        for _ in range(3):
            y = torch.round(x)
    assert torch.equal(y.detach(), x.detach().round())
    assert len(caught) == 1
    line = next(c for c in r.calls if c.operation == "round")
    assert line.count == 3
    assert f"{__file__}:{line.line}: round" in str(caught[0].message)
    assert "broken on purpose" in line.reason


def test_nothing_is_kept_alive_and_no_cycle_is_made() -> None:
    def once() -> list[weakref.ref[Tensor]]:
        x = leaf()
        with pullback.relaxed():
            y = x * 1
            values = y.topk(2).values
            mask, index = y >= values[-1], y.argsort()
            count, rounded = mask.sum(), y.round()
            loss = (mask.float() @ TABLE) ** 2 + TABLE[index][0] + count**2 + (rounded - 1).square().sum()
        loss.backward()
        return [weakref.ref(t) for t in (y, values, mask, index, count, rounded, loss)]

    once()  # what is imported and cached on first use
    gc.collect()
    gc.disable()
    try:
        assert [ref() for ref in once()] == [None] * 7
    finally:
        gc.enable()


def test_hooks_and_retained_gradients_of_jumping_values_are_served() -> None:
    x, seen = leaf(), []
    with pullback.relaxed():
        mask = (x > 0.3).float()
        mask.retain_grad()
        mask.register_hook(lambda gradient: seen.append(gradient))
        loss = (mask @ TABLE) ** 2
    loss.backward()
    assert len(seen) == 1
    assert torch.equal(mask.grad, seen[0])
    assert (mask.grad > 0).all()


def test_the_derivative_of_a_square_is_the_difference_between_its_two_values() -> None:
    x = torch.tensor([0.31, -2.0, 2.0], requires_grad=True)
    for target in (0.2, 0.8):
        with pullback.relaxed(temperature=0.1, scale=None):
            mask = x > 0.3
            loss = (mask.float()[0] - target) ** 2
        slope = torch.autograd.grad(mask.probability[0], x, retain_graph=True)[0][0]
        difference = (1 - target) ** 2 - target**2
        assert torch.autograd.grad(loss, x)[0][0].item() == pytest.approx(slope.item() * difference, rel=1e-4)


def test_views_and_changes_in_place_of_jumping_values_keep_the_plain_values() -> None:
    def f(x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.zeros(4)
        y.copy_((x > 0.3).float())
        v = y.view(2, 2)
        v[0] = 7
        y[3] += 1
        v.t().mul_(2)
        return y, v.square().sum()

    x = leaf()
    with pullback.relaxed():
        relaxed = f(x)
    for a, b in zip(f(x.detach()), relaxed, strict=True):
        assert torch.equal(a, b.detach())


def test_format_and_print_are_those_of_the_plain_tensor() -> None:
    x = leaf()
    with pullback.relaxed():
        index, mask = x.argmax(), x > 0.3
        assert f"{index:3d} {index} {mask[0]} {mask}" == "  1 1 False tensor([False,  True,  True, False])"
        assert str(mask) == "tensor([False,  True,  True, False])"
        assert type(copy.copy(mask)) is SoftBool


def test_modes_of_torch_inside_and_outside() -> None:
    x = leaf()
    with pullback.relaxed(), torch.inference_mode():
        assert not program(x).requires_grad
    with torch.inference_mode():
        data = torch.ones(4)
        with pullback.relaxed():
            assert program(data) == program(data.clone())
    with pullback.relaxed(), torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = torch.nn.Linear(4, 4)(x)
        y = ((hidden > 0) * hidden).sum() + hidden.round().sum()
    assert torch.isfinite(torch.autograd.grad(y.float(), x)[0]).all()


def test_random_layers_and_running_statistics_are_visited_once() -> None:
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    net = torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 2))
    twin = copy.deepcopy(net)
    torch.manual_seed(0)
    plain = twin((x > 0).float())
    torch.manual_seed(0)
    with pullback.relaxed():
        relaxed = net((x.requires_grad_() > 0).float())
    assert torch.equal(plain, relaxed)
    assert torch.equal(net[0].running_mean, twin[0].running_mean)
    assert net[0].num_batches_tracked == 1


def test_coroutines_and_threads_share_one_object() -> None:
    r = pullback.relaxed()
    gradients: list[Tensor] = []

    async def work() -> None:
        x = leaf()
        with pullback.relaxed():
            y = program(x)
            await asyncio.sleep(0)
            y = y + program(x)
        gradients.append(torch.autograd.grad(y, x)[0] / 2)

    async def together() -> None:
        await asyncio.gather(work(), work())

    def thread() -> None:
        x = leaf()
        for _ in range(5):
            with r:
                y = program(x)
        gradients.append(torch.autograd.grad(y, x)[0])

    asyncio.run(together())
    threads = [threading.Thread(target=thread) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(gradients) == 5
    assert all(torch.allclose(g, reference()) for g in gradients)
    assert torch._C._len_torch_function_stack() == 0


def test_soft_values_forward() -> None:
    x = leaf()
    with pullback.relaxed(hard=False):
        y, z = (x > 0.3).float(), x.round()
        assert (x > 0.3).tolist() == [False, True, True, False]
    assert ((y > 0) & (y < 1)).any()
    assert not torch.equal(z, z.round())


def test_only_ignore_methods_and_schedules() -> None:
    x = leaf()
    with pullback.relaxed(only=["argmax"]):
        assert type(x > 0) is Tensor
        assert TABLE[x.argmax()].requires_grad
    gradients = []
    for method in ("logistic", "cauchy"):
        with pullback.relaxed(methods={"gt": method}):
            gradients.append(torch.autograd.grad((x > 0.3).float().sum(), x)[0])
    assert not torch.allclose(*gradients)
    schedule = pullback.relaxed(temperature=lambda step: 1.0 / (1 + step))
    slopes = []
    for _ in range(2):
        with schedule:
            slopes.append(torch.autograd.grad((x > 0.4).float().sum(), x)[0][2].item())
    assert slopes[1] == pytest.approx(2 * slopes[0])


def test_invariance_to_the_scale_of_the_argument() -> None:
    x = leaf()
    gradients = []
    for factor in (1.0, 1000.0):
        with pullback.relaxed():
            y = (factor * x > 0.3 * factor).float().sum() + TABLE[(factor * x).argmax()]
        gradients.append(torch.autograd.grad(y, x)[0])
    assert torch.allclose(*gradients, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"temperature": 0.0}, ValueError, "temperature"),
        ({"temperature": -1.0}, ValueError, "temperature"),
        ({"temperature": "warm"}, TypeError, "temperature"),
        ({"temperature": float("nan")}, ValueError, "temperature"),
        ({"hard": 1}, TypeError, "hard"),
        ({"scale": "iqr"}, ValueError, "scale"),
        ({"methods": {"sortt": "softsort"}}, ValueError, "did you mean 'sort'"),
        ({"methods": {"sort": "sotfsort"}}, ValueError, "did you mean 'softsort'"),
        ({"only": "sort"}, TypeError, "only"),
        ({"only": ["sorted"]}, ValueError, "only.*did you mean 'sort'"),
        ({"ignore": ["comparisons"]}, ValueError, "did you mean 'comparison'"),
        ({"generator": None}, TypeError, "generator"),
    ],
)
def test_bad_arguments_are_refused_by_name(options: dict, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        pullback.relaxed(**options)


def test_infinities_in_unchosen_branches_send_no_nan_back() -> None:
    x = torch.tensor([-1.0, 2.0], requires_grad=True)
    with pullback.relaxed():
        y = torch.where(x > 0, torch.log(x.clamp(min=1e-3)), -torch.inf)
        z = x.masked_fill(x < 0, -torch.inf).softmax(0)
    gradient = torch.autograd.grad(y[1] + z[1], x)[0]
    assert torch.isfinite(gradient).all()


def test_an_argument_used_twice_counts_as_it_was_before_a_change_in_place():
    scores = torch.tensor([0.3, -0.2, 0.1, 0.4], requires_grad=True)
    gradients = []
    for changed in (False, True):
        with pullback.relaxed():
            index = scores.argsort()
            doubled = index + index
            if changed:
                index += 7
            loss = (doubled.float() * torch.tensor([1.0, -2.0, 3.0, 0.5])).sum()
        gradients += torch.autograd.grad(loss, scores)
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


def test_noise_wider_than_a_level_has_no_flat_point() -> None:
    x = (1000 * torch.rand(50, generator=torch.Generator().manual_seed(0))).requires_grad_()
    with pullback.relaxed(temperature=0.3) as report:  # noise of about 100 levels
        x.round().sum().backward()
    assert "flat point" not in report.report()
    torch.testing.assert_close(x.grad, torch.ones(50), rtol=0.05, atol=0.05)
