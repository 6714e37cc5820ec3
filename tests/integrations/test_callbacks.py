"""The callbacks against trainers that call the hooks as the libraries document them; neither library is needed."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import pullback

NAMES = {"gradients/norm", "gradients/smallest over largest", "gradients/dead"}


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"body": nn.Linear(3, 2), "spare": nn.Linear(1, 1)})


def _stand_in(monkeypatch: pytest.MonkeyPatch, module: str, **names: object) -> None:
    """A library of which only the base class of its callbacks is there."""
    parts = module.split(".")
    for count in range(1, len(parts) + 1):
        made = types.ModuleType(".".join(parts[:count]))
        monkeypatch.setitem(sys.modules, made.__name__, made)
    for name, value in names.items():
        setattr(made, name, value)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Modules that have not yet made their class."""
    for name in ("transformers", "lightning"):
        monkeypatch.delitem(sys.modules, f"pullback.integrations.{name}", raising=False)
    yield
    for name in ("transformers", "lightning"):
        sys.modules.pop(f"pullback.integrations.{name}", None)


class TrainerCallback:
    """All hooks take (args, state, control, **kwargs) and do nothing (transformers, "Callbacks")."""

    def on_train_begin(self, args, state, control, **kwargs): ...

    def on_step_begin(self, args, state, control, **kwargs): ...

    def on_log(self, args, state, control, **kwargs): ...

    def on_train_end(self, args, state, control, **kwargs): ...


class Callback:
    """Hooks take (trainer, pl_module, ...) and do nothing (lightning.pytorch.callbacks.Callback)."""

    def on_train_start(self, trainer, pl_module): ...

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx): ...

    def on_train_end(self, trainer, pl_module): ...

    def on_exception(self, trainer, pl_module, exception): ...


def _step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model["body"](torch.ones(4, 3)).square().sum().backward()
    optimizer.step()


@pytest.mark.usefixtures("fresh")
def test_the_trainer_of_hugging_face(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    _stand_in(monkeypatch, "transformers", TrainerCallback=TrainerCallback)
    from pullback.integrations.transformers import GradientCallback

    assert issubclass(GradientCallback, TrainerCallback)
    callback = GradientCallback(every=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    context = {"model": model, "optimizer": optimizer, "lr_scheduler": None}
    logged: list[dict[str, float]] = []

    def training() -> None:
        callback.on_train_begin(object(), SimpleNamespace(global_step=6), object(), **context)
        for step in range(5):
            callback.on_step_begin(object(), object(), object(), **context)
            _step(model, optimizer)
            logged.append({"loss": float(step)})
            callback.on_log(object(), object(), object(), logs=logged[-1], **context)
        callback.on_train_end(object(), object(), object(), **context)

    with pytest.warns(pullback.GradientWarning, match=r"step 8: the gradient of spare\.weight \(and of 1 more\)"):
        training()
    assert [set(logs) - {"loss"} for logs in logged] == [NAMES, set(), set(), NAMES, set()]
    assert logged[0]["gradients/dead"] == 2
    seen = list(callback.watching.observations)
    _step(model, optimizer)
    assert callback.watching.observations == seen, "it watches no longer"


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("library", ["lightning.pytorch.callbacks", "pytorch_lightning.callbacks"])
def test_the_trainer_of_lightning(library: str, model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightning", None)
    _stand_in(monkeypatch, library, Callback=Callback)
    from pullback.integrations.lightning import GradientCallback

    assert issubclass(GradientCallback, Callback)
    logged: list[dict[str, float]] = []
    monkeypatch.setattr(type(model), "log_dict", lambda _, numbers: logged.append(dict(numbers)), raising=False)
    callback = GradientCallback(every=2, ignore=["spare.*"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    callback.on_train_start(SimpleNamespace(global_step=0), model)
    for index in range(4):
        _step(model, optimizer)
        callback.on_train_batch_end(object(), model, None, None, index)
    callback.on_exception(object(), model, KeyboardInterrupt())
    _step(model, optimizer)
    assert [set(numbers) for numbers in logged] == [NAMES, NAMES]
    assert callback.watching.observations == []


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("library", ["transformers", "lightning"])
def test_without_the_library_the_import_says_what_to_install(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("transformers", "lightning", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    module = importlib.import_module(f"pullback.integrations.{library}")
    with pytest.raises(ImportError, match=f"needs '{library}', which is not installed: pip install {library}"):
        _ = module.GradientCallback
    with pytest.raises(AttributeError, match="no attribute 'Other'"):
        _ = module.Other
