"""What audit takes from torch's insides does what it is taken for, and stands in one file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pullback.audit.trace import private

AUDIT = Path(private.__file__).parents[1]


def test_a_transform_is_seen_and_taken_off() -> None:
    x = torch.arange(3.0)
    assert not private.is_wrapped(x)
    seen: list[tuple[bool, bool, Tensor]] = []

    def look(one: Tensor) -> Tensor:
        inner = private.unwrap(one)
        seen.append((private.is_wrapped(one), private.is_wrapped(inner), inner))
        return one.sum()

    torch.func.grad(look)(x)
    assert seen[0][:2] == (True, False)
    assert torch.equal(seen[0][2], x)
    torch.func.vmap(torch.func.grad(look))(x.reshape(3, 1))
    assert seen[1][:2] == (True, True), "one transform at a time"


def test_what_is_done_unseen_reaches_no_mode() -> None:
    calls: list[str] = []

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            calls.append(func.__name__)
            return func(*args, **(kwargs or {}))

    x = torch.ones(2)
    with Mode():
        x.exp()
        with private.unseen():
            x.sin()
        x.cos()
    assert calls == ["exp", "cos"]


def test_a_view_knows_its_base() -> None:
    x = torch.arange(6.0)
    assert private.view_base(x) is None
    assert private.view_base(x.view(2, 3)[0]) is x


def test_the_parameters_of_a_module_itself() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1, bias=False))
    assert list(private.own_parameters(model)) == []
    assert [None if p is None else tuple(p.shape) for p in private.own_parameters(model[1])] == [(1, 3), None]


def test_the_derivative_of_func_is_taken_where_it_was_replaced() -> None:
    calls: list[int] = []

    def counting(outputs: object, inputs: object, *args: object, **kwargs: object) -> object:
        calls.append(1)
        return former(outputs, inputs, *args, **kwargs)

    former = private.replace_func_grad(counting)
    try:
        gradient = torch.func.grad(lambda x: (x * x).sum())(torch.ones(2))
        assert torch.equal(gradient, torch.full((2,), 2.0))
        assert calls == [1]
    finally:
        assert private.replace_func_grad(former) is counting
    torch.func.grad(torch.sum)(torch.ones(2))
    assert calls == [1]


@pytest.mark.parametrize("path", sorted(AUDIT.rglob("*.py")), ids=lambda p: p.relative_to(AUDIT).as_posix())
def test_no_other_file_names_them(path: Path) -> None:
    if path.name == "private.py":
        return
    # What begins with an underscore; the compiler's switch is looked up only if the program loaded it.
    insides = r"\btorch\._(?!_|dynamo\b)\w+|\bfrom torch\._\w+|\b_autograd_grad\b|\._base\b|\._parameters\.values"
    assert re.findall(insides, path.read_text(encoding="utf-8")) == []
