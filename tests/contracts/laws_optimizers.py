"""Laws of optimizers: the interface of ``torch.optim``, a plain rule, a differentiable twin, a resume to the bit."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from pullback.optim import functional
from tests.contracts.contract import DEVICE, Optimizer
from tests.contracts.law import close, having, seeded

_SHAPES = ((3, 2), (), (4,))


def _start(dtype: torch.dtype = torch.float64, seed: int = 0) -> list[nn.Parameter]:
    g = seeded(seed)
    return [nn.Parameter(torch.randn(s, generator=g, dtype=torch.float64).to(DEVICE, dtype)) for s in _SHAPES]


def _gradients(number: int, params: list[nn.Parameter]) -> list[Tensor]:
    g = seeded(100 + number)
    return [torch.randn(p.shape, generator=g, dtype=torch.float64).to(p) for p in params]


def _descend(optimizer: Any, params: list[nn.Parameter], numbers: range) -> None:
    """Steps with gradients that only their number decides."""
    for number in numbers:
        _fill(params, 2 * number)
        if hasattr(optimizer, "extrapolate"):
            optimizer.extrapolate()
            _fill(params, 2 * number + 1)
        optimizer.step()


def _fill(params: list[nn.Parameter], number: int) -> None:
    for p, g in zip(params, _gradients(number, params), strict=True):
        p.grad = g


def _equal(some: list[nn.Parameter], others: list[nn.Parameter]) -> bool:
    return all(torch.equal(p, q) for p, q in zip(some, others, strict=True))


@having(lambda c: True, Optimizer)
def test_fast_loops_equal_the_plain_rule(contract: Optimizer) -> None:
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        fast, plain = _start(dtype), _start(dtype)
        _descend(contract.build(fast), fast, range(6))
        _descend(contract.build(plain, foreach=False), plain, range(6))
        for p, q in zip(fast, plain, strict=True):
            close(p.detach(), q.detach(), tolerance)


@having(lambda c: True, Optimizer)
def test_tensors_of_any_layout_are_moved(contract: Optimizer) -> None:
    """Compiled loops take contiguous memory; others must get the same."""
    params = [nn.Parameter(p.detach().mT.contiguous().mT if p.ndim > 1 else p.detach()) for p in _start()]
    plain = _start()
    _descend(contract.build(params), params, range(3))
    _descend(contract.build(plain), plain, range(3))
    for p, q in zip(params, plain, strict=True):
        close(p.detach(), q.detach(), 1e-12)


@having(lambda c: True, Optimizer)
@pytest.mark.parametrize("foreach", [None, False])
def test_a_saved_state_goes_on_to_the_bit(contract: Optimizer, foreach: bool | None) -> None:
    params = _start()
    optimizer = contract.build(params, foreach=foreach)
    _descend(optimizer, params, range(3))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    again = [nn.Parameter(p.detach().clone()) for p in params]
    resumed = contract.build(again, foreach=foreach)
    resumed.load_state_dict(torch.load(file))
    _descend(optimizer, params, range(3, 6))
    _descend(resumed, again, range(3, 6))
    assert _equal(params, again)
    saved = resumed.state_dict()["state"]
    assert all(torch.equal(v, saved[k][n]) for k, s in optimizer.state_dict()["state"].items() for n, v in s.items())


@having(lambda c: True, Optimizer)
def test_a_state_follows_the_dtype_of_its_parameters(contract: Optimizer) -> None:
    params = _start(torch.float64)
    optimizer = contract.build(params)
    _descend(optimizer, params, range(2))
    single = [nn.Parameter(p.detach().float()) for p in params]
    moved = contract.build(single)
    moved.load_state_dict(optimizer.state_dict())
    assert all(v.dtype == torch.float32 for s in moved.state.values() for v in s.values())
    _descend(optimizer, params, range(2, 4))
    _descend(moved, single, range(2, 4))
    for p, q in zip(single, params, strict=True):
        close(p.detach(), q.detach().float(), 1e-5)


@having(lambda c: True, Optimizer)
def test_groups_have_options_of_their_own_and_schedulers_move_them(contract: Optimizer) -> None:
    params = _start()
    grouped = contract.build([{"params": params[:1]}, {"params": params[1:2], "lr": 3 * contract.options["lr"]}])
    grouped.add_param_group({"params": params[2:]})
    torch.optim.lr_scheduler.LambdaLR(grouped, lambda epoch: 0.5)
    _descend(grouped, params, range(2))
    for index, factor in enumerate((0.5, 1.5, 0.5)):
        alone = _start()
        _descend(contract.build(alone, lr=factor * contract.options["lr"]), alone, range(2))
        close(params[index].detach(), alone[index].detach(), 1e-12)


@having(lambda c: True, Optimizer)
def test_a_closure_is_evaluated_with_gradients_and_its_loss_returned(contract: Optimizer) -> None:
    params, before = _start(), _start()
    optimizer = contract.build(params)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = sum(p.square().sum() for p in params)
        loss.backward()
        return loss

    loss = optimizer.step(closure)
    assert float(loss) == pytest.approx(float(sum(p.square().sum() for p in before)))
    assert not any(torch.equal(p, q) for p, q in zip(params, before, strict=True))


@having(lambda c: True, Optimizer)
def test_parameters_without_gradient_stay_and_sparse_gradients_are_refused(contract: Optimizer) -> None:
    params, before = _start(), _start()
    optimizer = contract.build(params)
    first = getattr(optimizer, "extrapolate", optimizer.step)
    params[0].grad = torch.ones_like(params[0])
    first()
    assert not torch.equal(params[0], before[0])
    assert _equal(params[1:], before[1:])
    params[2].grad = torch.ones(4, dtype=torch.float64, device=DEVICE).to_sparse()
    with pytest.raises(RuntimeError, match="sparse gradients, got one for parameter 2 of group 0"):
        optimizer.step()


@having(lambda c: True, Optimizer)
def test_complex_parameters_are_pairs_of_real_ones(contract: Optimizer) -> None:
    value = torch.randn(3, generator=seeded(), dtype=torch.complex128).to(DEVICE)
    whole, pairs = nn.Parameter(value), nn.Parameter(torch.view_as_real(value).clone())
    optimizers = contract.build([whole]), contract.build([pairs])
    for number in range(6):
        pairs.grad = torch.randn((3, 2), generator=seeded(number), dtype=torch.float64).to(DEVICE)
        whole.grad = torch.view_as_complex(pairs.grad)
        for optimizer in optimizers:
            (optimizer.extrapolate if hasattr(optimizer, "extrapolate") and number % 2 == 0 else optimizer.step)()
    close(torch.view_as_real(whole.detach()), pairs.detach(), 1e-12)


@having(lambda c: True, Optimizer)
def test_the_functional_twin_takes_the_same_steps(contract: Optimizer) -> None:
    params = _start()
    init, update = functional(contract.kind, **contract.options)
    points = {str(i): p.detach().clone() for i, p in enumerate(params)}
    state, halves = init(points), 2 if hasattr(contract.kind, "extrapolate") else 1
    _descend(contract.build(params), params, range(4))
    for number in range(4):
        for half in range(halves):
            gradients = {str(i): g for i, g in enumerate(_gradients(2 * number + half, params))}
            kept = copy.deepcopy((gradients, state, points))
            moved = update(gradients, state, points)
            assert all(torch.equal(points[i], kept[2][i]) for i in points), "changes what it is given"
            points, state = moved
    for i, p in enumerate(params):
        close(points[str(i)], p.detach(), 1e-12)


@having(lambda c: True, Optimizer)
def test_gradients_pass_through_the_functional_twin(contract: Optimizer) -> None:
    def two_steps(w: Tensor, target: Tensor, lr: Tensor) -> Tensor:
        init, update = functional(contract.kind, **{**contract.options, "lr": lr})
        points = {"w": w}
        state = init(points)
        for _ in range(2):
            points, state = update({"w": points["w"] ** 3 - target}, state, points)
        return points["w"]

    g = seeded(1)
    lr = torch.tensor(contract.options["lr"], dtype=torch.float64, device=DEVICE, requires_grad=True)
    inputs = [torch.randn(3, generator=g, dtype=torch.float64).to(DEVICE).requires_grad_() for _ in "ab"]
    assert gradcheck(two_steps, (*inputs, lr))
    assert gradgradcheck(two_steps, (*inputs, lr), atol=1e-4)


@having(lambda c: True, Optimizer)
@pytest.mark.slow
def test_a_compiled_step_is_the_same(contract: Optimizer, without_shape_checks: None) -> None:
    torch._dynamo.reset()
    params, plain = _start(), _start()
    optimizer, other = contract.build(params), contract.build(plain)
    compiled = torch.compile(optimizer.step, backend="aot_eager")
    for number in range(3):
        _fill(params, number)
        _fill(plain, number)
        if number == 0 and hasattr(optimizer, "extrapolate"):
            optimizer.extrapolate()
            other.extrapolate()
            _fill(params, 7)
            _fill(plain, 7)
        elif hasattr(optimizer, "extrapolate"):
            break
        compiled()
        other.step()
    for p, q in zip(params, plain, strict=True):
        close(p.detach(), q.detach(), 1e-10)
