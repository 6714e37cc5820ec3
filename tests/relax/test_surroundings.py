"""Around a relaxed program: checkpoints, subclasses, threads, regions without gradients, packages near torch."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import pullback
from pullback.relax import SoftBool

MIX = torch.randn(6, 6, generator=torch.Generator().manual_seed(6))

BLOCKS: dict[str, tuple[Callable[..., Tensor], ...]] = {
    "one": (lambda u: (u @ MIX).round().square(),),
    "law crosses": (torch.round, lambda r: (r @ MIX).tanh()),
    "mask crosses": (lambda u: u > 0.1, lambda m: torch.where(m, MIX[0], MIX[1])),
    "index crosses": (lambda u: u.argsort(1), lambda order: MIX[0][order] * MIX[1]),
    "count crosses": (lambda u: (u > 0).sum(1), lambda n: (n - 2) ** 2 * 0.5),
    "in the middle": (torch.sin, lambda u: (u > 0.2).float() * u, lambda v: v @ MIX, torch.floor),
}


def checkpointed(parts: tuple[Callable[..., Tensor], ...], run: Callable[..., Tensor]) -> Tensor:
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1), requires_grad=True)
    with pullback.relaxed(temperature=0.3):
        h: Tensor = x * 1.5
        for part in parts:
            h = run(part, h)
        y = h.float().sum()
    return torch.autograd.grad(y, x)[0]


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", BLOCKS)
def test_checkpoints_have_the_gradient_of_the_program_without_them(name: str, reentrant: bool) -> None:
    plain = checkpointed(BLOCKS[name], lambda part, h: part(h))
    assert plain.abs().max() > 0
    assert torch.equal(checkpointed(BLOCKS[name], lambda p, h: checkpoint(p, h, use_reentrant=reentrant)), plain)


def test_checkpoints_outside_of_the_context_are_those_of_torch() -> None:
    runs = []

    def part(u: Tensor) -> Tensor:
        runs.append(len(runs))
        return (u @ MIX).tanh().square()

    for reentrant in (False, True):
        x = torch.randn(2, 6, requires_grad=True)
        with pullback.relaxed():
            checkpoint(part, x, use_reentrant=reentrant)
        assert len(runs) == 1
        checkpoint(part, x, use_reentrant=reentrant).sum().backward()
        assert len(runs) == 3  # recomputed
        runs.clear()
        with pullback.relaxed():
            thread = threading.Thread(
                target=lambda x=x, kind=reentrant: checkpoint(part, x, use_reentrant=kind).sum().backward()
            )
            thread.start()
            thread.join()
        assert len(runs) == 2
        runs.clear()
    sequence = checkpoint_sequential([part, part], 2, torch.randn(2, 6, requires_grad=True), use_reentrant=False)
    sequence.sum().backward()


def test_only_names_what_is_made_soft_and_not_what_carries_it() -> None:
    x = torch.tensor([0.2, 0.9, 0.4], requires_grad=True)
    with pullback.relaxed(only=["gt"]):
        mask = x > 0.3
        values = (
            mask.float().sum(),
            mask.long().double().sum(),
            (mask == torch.tensor([1, 0, 1])).float().sum(),
            (mask & (x.detach() < 0.8)).sum() * 1.0,
            torch.where(mask, x, 0.0).sum(),
        )
        assert type(x < 0.3) is Tensor
        assert type(x.argmax()) is Tensor
    assert all(torch.autograd.grad(value, x, retain_graph=True)[0].abs().max() > 0 for value in values)
    with pullback.relaxed(ignore=["eq"]):
        assert type((x > 0.3) == 1) is Tensor


class Tagged(Tensor):
    """A class that adds nothing to the functions of torch."""


class Loud(Tensor):
    """A class that does."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return super().__torch_function__(func, types, args, kwargs or {})


def test_subclasses_that_leave_the_functions_of_torch_alone_are_relaxed() -> None:
    def program(x: Tensor) -> tuple[Tensor, ...]:
        mask = x > 0.3
        y = x * 1.0
        y.clamp_(min=0.1)
        return mask, x.argmax(), (mask * x).sum() + x.sort().values[0] ** 2 + y.round().exp().sum()

    x = torch.tensor([0.2, 0.9, 0.4], requires_grad=True)
    plain = program(x.detach().as_subclass(Tagged))
    with pullback.relaxed():
        relaxed = program(x.as_subclass(Tagged))
        expected = program(x)[-1]
    for a, b in zip(plain, relaxed, strict=True):
        assert isinstance(b, Tagged)
        assert a.dtype == b.dtype
        assert a.tolist() == b.tolist()
    assert isinstance(relaxed[0], SoftBool)
    gradients = [torch.autograd.grad(y, x)[0].as_subclass(Tensor) for y in (relaxed[-1], expected)]
    assert torch.equal(*gradients)


def test_other_subclasses_are_left_and_reported() -> None:
    x = torch.tensor([0.2, 0.9], requires_grad=True)
    with pullback.relaxed() as r:
        mask = x.as_subclass(Loud) > 0.3
    assert type(mask) is Loud
    (call,) = r.calls
    assert (call.operation, call.status) == ("gt", "left")
    assert "Loud" in call.reason
    assert call.source == "mask = x.as_subclass(Loud) > 0.3"


def test_the_report_says_why_nothing_was_relaxed() -> None:
    class Step(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor) -> Tensor:
            return (x > 0).float()

        @staticmethod
        def backward(ctx, gradient: Tensor) -> Tensor:
            return gradient

    x = torch.tensor([0.2, 0.9], requires_grad=True)
    with pullback.relaxed() as own:
        Step.apply(x)
    assert [(c.operation, c.status) for c in own.calls] == [("gt", "left")]
    assert "autograd.Function" in own.calls[0].reason
    with pullback.relaxed() as off, torch.no_grad():
        (x > 0).float()
    assert "no_grad" in off.calls[0].reason
    for r in (own, off):
        assert r.report().startswith("nothing was relaxed: in the thread that entered the context")


def in_a_thread(function: Callable[[], object]) -> None:
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


class Worker(threading.Thread):
    def __init__(self, function: Callable[[], object]) -> None:
        super().__init__()
        self.function = function

    def run(self) -> None:
        self.function()


def in_a_subclass(function: Callable[[], object]) -> None:
    worker = Worker(function)
    worker.start()
    worker.join()


def in_a_new_pool(function: Callable[[], object]) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(function).result()


OLD_POOL = ThreadPoolExecutor(1)


def in_an_old_pool(function: Callable[[], object]) -> None:
    OLD_POOL.submit(function).result()


@pytest.mark.parametrize("start", [in_a_thread, in_a_subclass, in_a_new_pool, in_an_old_pool])
def test_lines_that_run_in_a_worker_are_named(start: Callable[[Callable[[], object]], None]) -> None:
    before = threading.Thread.start, ThreadPoolExecutor.submit
    OLD_POOL.submit(int).result()
    x = torch.tensor([0.2, 0.9], requires_grad=True)
    kinds: list[type] = []

    def work() -> None:
        kinds.append(type(x > 0))

    with pullback.relaxed() as r:
        start(work)
        (x * 2).sum()
    assert kinds == [Tensor]
    (call,) = r.calls
    assert (call.operation, call.status, call.source) == ("gt", "left", "kinds.append(type(x > 0))")
    assert "another thread" in call.reason
    start(work)  # nothing watches after the context
    assert len(r.calls) == 1
    assert r.calls[0].count == 1
    assert (threading.Thread.start, ThreadPoolExecutor.submit) == before


def test_a_worker_goes_on_with_what_the_context_made_soft() -> None:
    x = torch.tensor([0.2, 0.9], requires_grad=True)
    sums: list[Tensor] = []
    with pullback.relaxed() as r:
        mask = x > 0.5
        in_a_thread(lambda: sums.append(mask.float().sum()))
    (gradient,) = torch.autograd.grad(sums[0], x)
    assert gradient.abs().min() > 0
    assert all(c.status == "relaxed" for c in r.calls)


def test_a_worker_may_enter_a_context_of_its_own() -> None:
    x = torch.tensor([0.2, 0.9], requires_grad=True)
    own = pullback.relaxed()

    def work() -> None:
        with own:
            (x > 0).float()

    with pullback.relaxed() as outer:
        in_a_thread(work)
    assert [c.status for c in own.calls] == ["relaxed", "relaxed"]
    assert not outer.calls


@pytest.mark.parametrize("package", ["torchmetrics", "torch_geometric", "torchdiffeq"])
def test_packages_whose_name_begins_like_torch_are_the_users_lines(package: str, tmp_path: Path) -> None:
    folder = Path(torch.__file__).parent.parent / package  # need not exist: the name of the file decides
    file = str(folder / "functional.py")
    module = ModuleType(package)
    exec(compile("def above(x):\n    return (x > 0).float()\n", file, "exec"), module.__dict__)
    x = torch.tensor([0.2, 0.9], requires_grad=True)
    with pullback.relaxed() as r:
        module.above(x)
    assert {(c.file, c.line) for c in r.calls} == {(file, 2)}


def test_a_saved_tensor_goes_without_its_law(tmp_path: Path) -> None:
    x = torch.tensor([0.2, 0.9], requires_grad=True)
    with pullback.relaxed():
        values = (x > 0.3).float(), x.sort().values, x.round() ** 2
    torch.save(values, tmp_path / "values.pt")
    loaded = torch.load(tmp_path / "values.pt", weights_only=True)
    assert all(torch.equal(a, b.detach()) for a, b in zip(loaded, values, strict=True))
    assert "pullback" not in (tmp_path / "values.pt").read_bytes().decode("latin-1")
