"""torch's warnings name the user's line under audit, and obey the filters of the user's module."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import pullback


def _program(x: Tensor, w: Tensor) -> Tensor:
    h = x @ w
    a = F.softmax(h)
    b = F.mse_loss(h, h[0].detach())
    c = torch.nn.Softmax()(h)
    d = torch.tensor(h.detach())
    _ = h.grad
    return a.square().sum() + b + c.square().sum() + d.sum()


def _places(run: Callable[[], object], action: str) -> list[tuple[str, int, str]]:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("ignore")
        warnings.filterwarnings(action, module=__name__.replace(".", r"\."))  # type: ignore[arg-type]
        run()
    return [(w.filename, w.lineno, str(w.message)) for w in seen]


def test_warnings_have_the_place_that_they_have_without_an_audit() -> None:
    x, w = torch.randn(4, 3), torch.randn(3, 3, requires_grad=True)
    plain = _places(lambda: _program(x, w), "always")
    audited = _places(lambda: pullback.audit(_program, x, w, probes="none"), "always")
    assert len(plain) == 4
    assert {file for file, _, _ in plain} == {__file__}
    assert audited == plain


def test_a_warning_is_shown_once_for_each_line() -> None:
    x, w = torch.randn(4, 3), torch.randn(3, 3, requires_grad=True)
    globals().pop("__warningregistry__", None)

    def program(x: Tensor) -> Tensor:
        total = torch.zeros(())
        for _ in range(3):
            total = total + F.softmax(x @ w).square().sum()
        return total + F.softmax(x @ w).sum()

    assert len(_places(lambda: pullback.audit(program, x, probes="none"), "default")) == 2
