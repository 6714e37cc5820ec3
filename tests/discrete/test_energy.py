"""The interpreter of structured predictors: what it finds, what it refuses, how it is resumed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from pullback import discrete


def _predict(x: Tensor) -> Tensor:
    """Two outputs of two features each, of which the first leans on the second; no gradient."""
    second = (x[:, 2] + x[:, 3] > 0).to(x)
    return torch.stack([(2 * x[:, 0] - 2 * x[:, 1] + second - 0.5 > 0).to(x), second], 1)


def _interpreter(generator: torch.Generator | None = None, **words: Any) -> discrete.EnergyInterpreter:
    given = {"predict": _predict, "features": 8, "outputs": 2, "target": 0, "k": 2, "hidden": 16, "lr": 3e-3}
    return discrete.EnergyInterpreter(**{**given, "generator": generator, **words})


def test_features_that_decide_the_target_are_found_without_a_gradient_of_the_box() -> None:
    draw = torch.Generator().manual_seed(0)
    interpreter = _interpreter(draw)
    for step in range(200):
        interpreter.step(torch.randn(64, 8, generator=draw), temperature=1 - step / 250)
    found = interpreter.explain(torch.randn(100, 8, generator=draw))
    truth = torch.arange(8) < 2
    assert float(discrete.mask_recovery(found.mask, truth).mean()) > 0.95
    assert bool((found.mask.sum(-1) == 2).all())


def test_features_that_reach_the_target_through_another_output_alone_are_found() -> None:
    def predict(x: Tensor) -> Tensor:
        other = (x[:, 2] + x[:, 3] + x[:, 2] * x[:, 3] > 0).to(x)
        return torch.stack([1 - other, other], 1)

    draw = torch.Generator().manual_seed(0)
    interpreter = _interpreter(draw, predict=predict)
    for step in range(200):
        interpreter.step(torch.randn(64, 8, generator=draw), temperature=1 - step / 250)
    found = interpreter.explain(torch.randn(100, 8, generator=draw))
    truth = (torch.arange(8) == 2) | (torch.arange(8) == 3)
    assert float(discrete.mask_recovery(found.mask, truth).mean()) > 0.95


def test_hard_masks_show_the_box_what_it_is_tested_on() -> None:
    shown = []
    draw = torch.Generator().manual_seed(3)
    interpreter = _interpreter(draw, predict=lambda x: shown.append(x) or _predict(x))
    x = torch.randn(16, 8, generator=draw)
    interpreter.step(x, temperature=0.5, hard=True)
    assert any(bool(((v == 0) | (v == x)).all()) and not torch.equal(v, x) for v in shown)
    shown.clear()
    interpreter.step(x, temperature=0.5)
    assert not any(bool(((v == 0) | (v == x)).all()) for v in shown if not torch.equal(v, x))


def test_a_copied_state_goes_on_to_the_same_numbers() -> None:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(32, 8, generator=draw)
    first = _interpreter(draw)
    first.step(x, temperature=0.5)
    second = _interpreter(torch.Generator())
    for name in ("optimizer", "energy_optimizer"):
        getattr(second, name).load_state_dict(copy.deepcopy(getattr(first, name).state_dict()))
    second.load_state_dict(first.state_dict())
    second.generator.set_state(draw.get_state())
    assert first.step(x, temperature=0.5) == second.step(x, temperature=0.5)
    assert torch.equal(first.explain(x).scores, second.explain(x).scores)


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ({"k": 9}, ValueError, r"k must be in 1\.\.8, got 9"),
        ({"target": 2}, ValueError, r"target must be in 0\.\.1, got 2"),
        ({"lr": 0.0}, ValueError, "lr must be > 0"),
        ({"hidden": 0}, ValueError, "hidden must be an integer >= 1"),
        ({"predict": 3}, TypeError, "predict must be callable"),
    ],
)
def test_wrong_interpreters_are_refused(words: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        _interpreter(**words)


def test_a_box_with_another_number_of_outputs_is_refused() -> None:
    interpreter = _interpreter(predict=lambda x: x[:, :3])
    with pytest.raises(ValueError, match=r"predict must return shape \(4, 2\), got \(4, 3\)"):
        interpreter.step(torch.ones(4, 8), temperature=0.5)
    with pytest.raises(ValueError, match=r"x must have shape \[batch, 8\]"):
        _interpreter().step(torch.ones(4, 7), temperature=0.5)
    with pytest.raises(ValueError, match="temperature must be > 0"):
        _interpreter().step(torch.ones(4, 8), temperature=0.0)


def test_recovery_is_the_share_of_true_features(without_shape_checks: None) -> None:
    draw = torch.Generator().manual_seed(0)
    mask, truth = (torch.rand(6, 9, generator=draw) < 0.5 for _ in range(2))
    expected = [m[t].double().mean().item() for m, t in zip(mask, truth, strict=True)]
    assert discrete.mask_recovery(mask, truth).tolist() == pytest.approx(expected)
    one = truth[0]
    assert discrete.mask_recovery(mask, one)[3].item() == pytest.approx(mask[3][one].double().mean().item())
    wrong = [
        (mask, truth.float(), TypeError, "truth must be boolean"),
        (mask, truth[:, :8], ValueError, "truth must have the shape"),
        (mask, ~one & one, ValueError, "truth must have a feature in each row"),
    ]
    for first, second, error, message in wrong:
        with pytest.raises(error, match=message):
            discrete.mask_recovery(first, second)
