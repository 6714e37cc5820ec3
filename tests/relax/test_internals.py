"""The private names of torch that ``relaxed`` relies on, in the installed torch, and that no other file uses one."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pullback.relax import internals, relaxed, rules


class _Seen(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


class _Counting(Tensor):
    count = 0

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.count += 1
        return super().__torch_function__(func, types, args, kwargs or {})


def test_calls_can_be_hidden() -> None:
    x = torch.zeros(2).as_subclass(_Counting)
    with _Seen() as seen, internals.unseen():
        torch.add(x, 1)
    assert (seen.count, _Counting.count) == (0, 0)
    with _Seen() as seen, internals.unseen_by_subclasses():
        torch.add(x, 1)
    assert (seen.count, _Counting.count) == (1, 0)


def test_versions_views_and_subclasses() -> None:
    x = torch.zeros(4)
    part, before = x[1:], internals.version(x)
    part.add_(1)
    assert internals.version(x) == before + 1 == internals.version(part)
    assert internals.viewed(part) is x
    assert internals.viewed(x) is x
    twin = internals.make_subclass(_Counting, x)
    assert type(twin) is _Counting
    assert twin.data_ptr() == x.data_ptr()
    assert not internals.inherits_dispatch(_Counting)
    assert internals.inherits_dispatch(type("Plain", (Tensor,), {}))


def test_transforms() -> None:
    kinds: list[tuple[bool, list[torch.Size], bool]] = []

    def look(x: Tensor) -> Tensor:
        kinds.append((internals.wrapped(x), [t.shape for t in internals.below_transforms(x)], internals.forward_mode()))
        return x.sum()

    look(torch.zeros(3))
    torch.func.vmap(torch.func.grad(look))(torch.zeros(5, 3))
    torch.func.jvp(look, (torch.zeros(3),), (torch.ones(3),))
    assert kinds[0] == (False, [], False)
    assert kinds[1][:2] == (True, [torch.Size([3]), torch.Size([5, 3])])
    assert kinds[2][2]


def test_checkpoint_has_the_two_parts_that_are_replaced() -> None:
    runs = []

    def part(x: Tensor) -> Tensor:
        runs.append(0)
        return x.tanh() ** 2

    def train() -> int:
        runs.clear()
        for reentrant in (False, True):
            x = torch.ones(2, requires_grad=True)
            torch.utils.checkpoint.checkpoint(part, x, use_reentrant=reentrant).sum().backward()
        return len(runs)

    with relaxed():
        assert train() == 2, "nothing is run twice"
    assert train() == 4


def test_a_process_that_imports_nothing_else_of_torch_is_relaxed() -> None:
    program = """
import torch, pullback
x = torch.tensor([0.1, -0.2], requires_grad=True)
with pullback.relaxed(temperature=0.1):
    (x > 0).float().sum().backward()
print(bool((x.grad > 0).all()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("True", 0), done.stderr


def test_no_other_file_names_what_is_private() -> None:
    folder = Path(internals.__file__).parent
    found = []
    for file in folder.glob("*.py"):
        if file.name == "internals.py":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
                root = node.value
                while isinstance(root, ast.Attribute):
                    root = root.value
                if isinstance(root, ast.Name) and root.id in ("torch", "Tensor"):
                    found.append(f"{file.name}: {ast.unparse(node)}")
                if node.attr in ("_version", "_base", "_cdata", "_current_level"):
                    found.append(f"{file.name}: {ast.unparse(node)}")
    assert found == []


def test_a_mode_sees_where_a_region_without_gradients_ends() -> None:
    class Calls(TorchFunctionMode):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[object] = []

        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            self.seen.append(func)
            return func(*args, **(kwargs or {}))

    with Calls() as calls, torch.no_grad():
        pass
    assert calls.seen.count(internals.set_grad_enabled) == 2
    assert torch.is_grad_enabled()


def test_no_function_has_two_rules_of_which_the_imports_choose() -> None:
    with pytest.raises(LookupError, match="searchsorted has a rule already"):
        rules.relaxes("searchsorted", group="order")(lambda settings, hard, *given: None)
