"""Laws of what is no plain function of tensors: functions of functions, modules, learners and searches."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pullback.core.errors import ConvergenceError
from tests.contracts.contract import DEVICE, HigherOrder, Learner, Module
from tests.contracts.law import calls, close, having, on_device, same, seeded, values_of


class _Given(nn.Module):
    """A function of a user as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


class _Mine(Exception):
    """An error that only the user's function knows."""


def _raiser(*args: Any, **kwargs: Any) -> Any:
    raise _Mine


@having(lambda c: True, HigherOrder)
def test_a_given_function_may_be_any_callable(contract: HigherOrder) -> None:
    call = calls(contract)[0]
    expected = values_of(contract, contract.run(*call.args, **call.kwargs))
    for form in (functools.partial(contract.given), _Given(contract.given), _Given(contract.given).forward):
        for g, e in zip(values_of(contract, contract.block(form, *call.args, **call.kwargs)), expected, strict=True):
            close(g, e, 1e-12)


@having(lambda c: True, HigherOrder)
def test_an_error_of_a_given_function_reaches_the_caller(contract: HigherOrder, without_shape_checks: None) -> None:
    call = calls(contract)[0]
    with pytest.raises(_Mine):
        contract.block(_raiser, *call.args, **call.kwargs)
    with pytest.raises(TypeError, match=contract.argument):
        contract.block(3, *call.args, **call.kwargs)


@having(lambda c: True, Module)
def test_a_module_is_its_generator_its_state_and_its_dtype(contract: Module) -> None:
    call = calls(contract)[0]
    module, twin, other = (contract.new(seed).to(DEVICE) for seed in (0, 0, 1))
    for (name, p), (_, q) in zip(module.named_parameters(), twin.named_parameters(), strict=True):
        assert torch.equal(p, q), f"the same generator gives another {name}"
    other.load_state_dict(module.state_dict())
    results = [values_of(contract, contract.block(m.double(), *call.args, **call.kwargs)) for m in (module, other)]
    for g, e in zip(*results, strict=True):
        assert g.dtype == torch.float64 or not g.is_floating_point()
        assert torch.equal(g, e)


@having(lambda c: True, Module)
def test_every_parameter_of_a_module_learns(contract: Module) -> None:
    call = calls(contract)[0]
    module = contract.new().to(DEVICE, torch.float64)
    total = sum(o.square().sum() for o in values_of(contract, contract.block(module, *call.args, **call.kwargs)))
    total.backward()
    for name, p in module.named_parameters():
        assert (p.grad is None) == (name in contract.idle), name
        assert p.grad is None or (torch.isfinite(p.grad).all() and p.grad.any()), name


def _planted(contract: Learner, seed: int = 0) -> tuple[Any, Any]:
    data, truth = contract.planted(seeded(seed))
    return on_device(data), truth


_ANSWERS: dict[tuple[int, int], tuple[Learner, Tensor]] = {}
"""By identity of the entry, which is kept so that it stays one, and by seed: several laws ask for the same answer."""


def _learned(contract: Learner, seed: int = 0) -> Tensor:
    key = (id(contract), seed)
    if key not in _ANSWERS:
        data, _ = _planted(contract, seed)
        _ANSWERS[key] = contract, contract.answer(contract.learn(data, seeded(seed)))
    return _ANSWERS[key][1]


@having(lambda c: True, Learner)
def test_a_learner_is_its_generator_and_changes_nothing(contract: Learner) -> None:
    expected = _learned(contract)
    data, _ = _planted(contract)
    before, state = copy.deepcopy(data), torch.get_rng_state()
    assert torch.equal(contract.answer(contract.learn(data, seeded())), expected)
    assert torch.equal(torch.get_rng_state(), state), "draws from the global generator"
    flat, flat_before = (tree_leaves(d) for d in (data, before))
    assert all(same(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(flat, flat_before, strict=True))


@having(lambda c: c.permute is not None, Learner)
def test_a_learner_does_not_see_the_order_of_samples(contract: Learner) -> None:
    data, _ = _planted(contract)
    count = len(tree_leaves(data)[0])
    again = contract.permute(data, torch.randperm(count, generator=seeded(1)))  # type: ignore[misc]
    close(contract.answer(contract.learn(again, seeded())), _learned(contract), contract.tolerance)


@having(lambda c: True, Learner)
def test_a_learner_finds_a_planted_answer(contract: Learner) -> None:
    for seed in range(2):
        _, truth = _planted(contract, seed)
        assert contract.recovers(_learned(contract, seed), truth)


@having(lambda c: True, Learner)
def test_a_learner_ends_with_finite_numbers_or_says_why_not(contract: Learner) -> None:
    for data in contract.sets(seeded()):
        try:
            answer = contract.answer(contract.learn(data, seeded()))
        except ConvergenceError:
            continue
        assert torch.isfinite(answer).all()
