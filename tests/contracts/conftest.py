"""Collects a table of contracts, ``<family>/<topic>.py``, as the tests of its laws.

``pytest tests/contracts`` goes through all tables, ``pytest tests/contracts/discrete`` and
``pytest tests/contracts/discrete/order.py`` import no more than that family and that table.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

_LAWS = ("laws_derivatives", "laws_edges", "laws_kinds", "laws_optimizers", "laws_values")
pytest.register_assert_rewrite("tests.contracts.law", *(f"tests.contracts.{name}" for name in _LAWS))

from tests.contracts import (  # noqa: E402, F401 (they fill LAWS)
    laws_derivatives,
    laws_edges,
    laws_kinds,
    laws_optimizers,
    laws_values,
)
from tests.contracts.law import LAWS  # noqa: E402 (assertions are rewritten by the line above)

_HERE = Path(__file__).parent


class Table(pytest.Module):
    """A module with ``CONTRACTS``: every law that holds for one of its entries is a test of it."""

    def collect(self) -> Any:
        for name, law in LAWS.items():
            if law.cases(self.obj.CONTRACTS):
                setattr(self.obj, name, law.test)
        return super().collect()


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    is_table = module_path.parent.parent == _HERE and module_path.name != "__init__.py"
    return Table.from_parent(parent, path=module_path) if is_table else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    law = LAWS.get(metafunc.function.__name__)
    if law is None or metafunc.function is not law.test:
        return
    cases = law.cases(metafunc.module.CONTRACTS)
    names = ("contract", "bad")[: len(cases[0][1])]
    metafunc.parametrize(names, [case for _, case in cases], ids=[name for name, _ in cases])


@pytest.fixture(scope="session", autouse=True)
def torch_is_warm(request: pytest.FixtureRequest) -> None:
    """What torch imports for its first derivatives and its first compilation costs no entry anything.

    It takes seconds, and would be counted for the entry that happens to come first.
    """
    laws = {getattr(item, "originalname", "") for item in request.session.items} & LAWS.keys()
    if laws:
        x, y = (torch.ones(2, dtype=torch.float64, requires_grad=True) for _ in "xy")
        torch.autograd.gradcheck(torch.tanh, (x,), check_forward_ad=True, check_batched_grad=True)
        torch.autograd.gradcheck(lambda x, y: x.exp() + y.exp(), (x, y), check_forward_ad=True)
        torch.func.jvp(lambda t: torch.addcmul(t, t, t), (x.detach(),), (x.detach(),))
    if "test_gradgradcheck" in laws:  # a second derivative of |x| that moves imports torch's compiler
        torch.autograd.gradgradcheck(lambda t: t.abs() * t.abs(), (x,))
    if "test_compile" in laws:
        torch.compile(lambda t: t.tanh().sum(), backend="aot_eager")(x).backward()
