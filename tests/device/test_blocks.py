"""Every block gives on the device what it gives on the CPU, values and gradients; random ones with one generator."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

import pullback
from tests.contracts.contract import DEVICE, Call, Contract, Learner
from tests.contracts.law import close, gradients_of, on_device, samples, seeded, values_of
from tests.contracts.test_completeness import entries

ENTRIES = [entry for family in (*pullback.FAMILIES, "core") for entry in entries(family)]
BLOCKS = [entry for entry in ENTRIES if isinstance(entry, Contract)]
LEARNERS = [entry for entry in ENTRIES if isinstance(entry, Learner)]


def _evaluate(contract: Contract, call: Call) -> tuple[tuple[Tensor, ...], Any]:
    args = [a.detach().clone() if isinstance(a, Tensor) else a for a in call.args]
    inputs = [a.requires_grad_() for a in args if isinstance(a, Tensor) and a.is_floating_point()]
    values = values_of(contract, contract.run(*args, **call.kwargs))
    return values, gradients_of([v for v in values if v.is_floating_point()], inputs)


@pytest.mark.parametrize("contract", BLOCKS, ids=[c.name for c in BLOCKS])
def test_a_block_gives_what_it_gives_on_the_cpu(contract: Contract) -> None:
    for call in samples(contract):
        expected, slopes = _evaluate(contract, call)
        got, other_slopes = _evaluate(contract, Call(on_device(call.args), on_device(call.kwargs)))
        for g, e in zip(got, expected, strict=True):
            assert g.device.type == DEVICE.type or not g.is_floating_point()  # counts may be anywhere
            close(g, e, max(1e-9, contract.tolerance))
        for g, e in zip(other_slopes, slopes, strict=True):
            assert (g is None) == (e is None)
            if e is not None:
                close(g, e, max(1e-7, contract.tolerance))


@pytest.mark.parametrize("contract", LEARNERS, ids=[c.name for c in LEARNERS])
def test_a_learner_recovers_on_the_device(contract: Learner) -> None:
    data, truth = contract.planted(seeded())
    answer = contract.answer(contract.learn(on_device(data), seeded()))
    assert contract.recovers(answer.cpu(), truth)
