"""A watched training warns once, of the right parameter, at the right step, and is otherwise left alone."""

from __future__ import annotations

import gc
import math
import warnings
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import pullback


def _model(generator: torch.Generator) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    for parameter in model.parameters():
        nn.init.normal_(parameter, generator=generator)
    return model


def _train(
    model: nn.Module,
    loss: Callable[[int], Tensor],
    steps: int,
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=1e-3)
    for step in range(steps):
        optimizer.zero_grad()
        loss(step).backward()
        optimizer.step()


def test_a_healthy_training_is_silent_and_unchanged(generator: torch.Generator) -> None:
    x = torch.randn(8, 3, generator=generator)
    weights = []
    for watched in (False, True):
        model = _model(torch.Generator().manual_seed(1))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            if watched:
                with pullback.watch(model, every=2):
                    _train(model, lambda _, model=model: model(x).square().mean(), 9)
            else:
                _train(model, lambda _, model=model: model(x).square().mean(), 9)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*weights)


def test_nan_is_reported_at_once_with_step_and_names(generator: torch.Generator) -> None:
    model = _model(generator)
    x = torch.randn(8, 3, generator=generator)

    def loss(step: int) -> Tensor:
        out = model(x).square().mean()
        return out * (math.nan if step == 6 else 1.0)

    message = r"^step 6: the gradient of 0\.weight \(and of 3 more\) is not finite"
    with pytest.warns(pullback.GradientWarning, match=message) as seen, pullback.watch(model, every=3) as watching:
        _train(model, loss, 7)
    assert len(seen) == 1
    assert seen[0].filename == __file__, "the warning stands at the user's optimizer.step()"
    assert [(o.step, o.kind, o.parameter) for o in watching.observations] == [
        (6, "nan", name) for name, _ in model.named_parameters()
    ]


def test_infinite_is_not_finite(generator: torch.Generator) -> None:
    model = _model(generator)
    with pullback.watch(model, every=1, warn=False) as watching:
        _train(model, lambda _: model(torch.ones(1, 3)).sum() * torch.tensor(math.inf), 1)
    assert {o.kind for o in watching.observations} == {"nan"}


@pytest.mark.parametrize("zero", [False, True], ids=["missing", "zero"])
def test_a_dead_parameter_is_reported_after_three_looks_in_a_row(generator: torch.Generator, zero: bool) -> None:
    model = _model(generator)
    spare = nn.Linear(2, 2)
    whole = nn.ModuleDict({"body": model, "spare": spare})

    def loss(_: int) -> Tensor:
        return model(torch.ones(2, 3)).sum() + (0 * spare.weight.sum() if zero else 0)

    message = r"^step 2: the gradient of spare\.weight is missing or zero"
    watching = pullback.watch(whole, every=10, ignore=["*.bias"])
    with pytest.warns(pullback.GradientWarning, match=message), watching:
        _train(whole, loss, 15)
    (seen,) = watching.observations
    assert seen.norm == (0.0 if zero else None)


def test_a_last_layer_that_starts_at_zero_is_no_fault(generator: torch.Generator) -> None:
    """The first layer's gradient is exactly zero at step 0, and only there."""
    model = _model(generator)
    nn.init.zeros_(model[2].weight)
    x = torch.randn(8, 3, generator=generator)
    with pullback.watch(model, every=1, warn=False) as watching:
        _train(model, lambda _: (model(x) - 1).square().mean(), 5)
    assert watching.observations == []


def test_vanishing_is_a_share_of_the_largest_whatever_the_scale() -> None:
    for scale in (1e-25, 1.0, 1e25):  # squares of the first and the last leave float32
        first, last = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        model = nn.ModuleDict({"first": first, "last": last})

        def loss(_: int, first: nn.Linear = first, last: nn.Linear = last, scale: float = scale) -> Tensor:
            return scale * (last.weight.sum() + 1e-8 * first.weight.sum())

        with pullback.watch(model, every=1, warn=False) as watching:
            _train(model, loss, 3, torch.optim.SGD(model.parameters(), lr=0.0))
        found = [(o.kind, o.parameter) for o in watching.observations if o.kind == "vanishing"]
        assert found == [("vanishing", "first.weight")]
        (norm,) = [o.norm for o in watching.observations if o.kind == "vanishing"]
        assert norm == pytest.approx(2e-8 * scale, rel=1e-5)


def test_exploding_is_against_what_was_usual(generator: torch.Generator) -> None:
    model = _model(generator)
    x = torch.randn(8, 3, generator=generator)
    with pullback.watch(model, every=2, warn=False) as watching:
        _train(model, lambda step: model(x).square().mean() * (1e6 if step >= 12 else 1.0), 13)
    assert {(o.step, o.kind) for o in watching.observations} == {(12, "exploding")}


def test_only_sampled_steps_are_read(generator: torch.Generator) -> None:
    model = _model(generator)
    x = torch.randn(8, 3, generator=generator)
    rows: list[tuple[str, float, int]] = []
    with pullback.watch(model, every=4, log=lambda name, value, step: rows.append((name, value, step))):
        _train(model, lambda step: model(x).square().mean() * (math.nan if step % 4 == 3 else 1), 3)
        norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in model.parameters()))
        assert {step for *_, step in rows} == {0}
    assert rows[0][0] == "gradients/norm"
    assert rows[0][1] == pytest.approx(norm, rel=0.05), "three small steps later"
    assert rows[-1] == ("gradients/dead", 0.0, 0)


def test_a_resumed_training_counts_on(generator: torch.Generator) -> None:
    model = _model(generator)
    steps: list[int] = []
    with pullback.watch(model, every=4, first_step=6, log=lambda name, value, step: steps.append(step)):
        _train(model, lambda _: model(torch.ones(2, 3)).square().sum(), 7)
    assert sorted(set(steps)) == [8, 12]


def test_a_step_with_a_closure_is_read_after_it(generator: torch.Generator) -> None:
    model = _model(generator)
    x = torch.randn(8, 3, generator=generator)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    with pullback.watch(model, optimizer, every=1, warn=False) as watching:
        for _ in range(4):
            optimizer.step(closure)
    assert watching.observations == []


def test_alternating_optimizers_count_their_own_steps(generator: torch.Generator) -> None:
    """A discriminator that got no gradient in the generator's turn is no fault: it did not step then."""
    models = {"generator": _model(generator), "critic": _model(generator)}
    optimizers = {name: torch.optim.SGD(model.parameters(), lr=1e-3) for name, model in models.items()}
    steps: list[int] = []
    with pullback.watch(models, every=2, log=lambda name, value, step: steps.append(step), warn=False) as watching:
        for turn in range(8):
            name = ("generator", "critic")[turn % 2]
            for model in models.values():
                model.zero_grad()
            models[name](torch.ones(2, 3)).sum().backward()
            optimizers[name].step()
    assert watching.observations == []
    assert sorted(set(steps)) == [0, 2]


def test_what_the_optimizer_steps_and_the_model_no_longer_owns_is_reported(generator: torch.Generator) -> None:
    model = _model(generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model[2] = nn.Linear(4, 1)  # the head is replaced after the optimizer was built
    with pullback.watch(model, optimizer, every=5, warn=False) as watching:
        for _ in range(5):
            model.zero_grad()
            model(torch.ones(2, 3)).sum().backward()
            optimizer.step()
    assert [o.parameter for o in watching.observations] == [
        f"parameter {index} of optimizer (the model does not own it)" for index in (2, 3)
    ]


def test_start_and_stop_and_nothing_is_kept_alive(generator: torch.Generator) -> None:
    model = _model(generator)
    watching = pullback.watch(model, every=1, warn=False).start()
    _train(model, lambda _: model(torch.full((1, 3), math.nan)).sum(), 1)
    seen = len(watching.observations)
    watching.stop()
    spare = nn.Linear(1, 1)
    other = pullback.watch({"spare": spare}, every=1).start()
    gradient = weakref.ref(model[0].weight.grad)
    _train(model, lambda _: model(torch.ones(1, 3)).sum(), 2)
    assert len(watching.observations) == seen == 3  # the last bias is only added
    model.zero_grad()
    gc.collect()
    assert gradient() is None
    other.stop()


def test_frozen_parameters_are_not_watched(generator: torch.Generator) -> None:
    model = _model(generator)
    model[0].requires_grad_(False)
    with pullback.watch(model, every=1, warn=False) as watching:
        _train(model, lambda _: model(torch.ones(2, 3)).sum(), 4)
    assert watching.observations == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": 3}, "model must be a torch.nn.Module or a mapping of them, got int"),
        ({"every": 0}, "every must be an integer >= 1, got 0"),
        ({"every": 2.0}, "every must be an integer"),
        ({"first_step": -1}, "first_step must be an integer >= 0, got -1"),
        ({"log": "x"}, "log must be callable, got str"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        pullback.watch(**{"model": nn.Linear(1, 1), **arguments})
