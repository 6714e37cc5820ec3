"""The laws can fail: each refuses a block that breaks it and nothing else, and passes the one that does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pullback.core.checks import check_floating, check_scalar
from pullback.core.errors import ConvergenceError
from tests.contracts import laws_derivatives, laws_edges, laws_kinds, laws_values
from tests.contracts.contract import Bad, Call, Contract, Edges, HigherOrder, Learner, Module
from tests.contracts.fuzz import fuzz


def _samples(generator: torch.Generator) -> list[Call]:
    return [Call((torch.randn(3, 4, generator=generator, dtype=torch.float64),))]


def _good(x: Tensor, temperature: Any = 1.0) -> Tensor:
    check_scalar("temperature", temperature)
    return check_floating("x", x).tanh() / temperature


def _contract(block: Callable[..., Any], **options: Any) -> Contract:
    return Contract("a.block", block, _samples, **options)


def _changes_its_input(x: Tensor) -> Tensor:
    x.detach()[0] = 0
    return x.tanh()


def _reads_memory(x: Tensor) -> Tensor:
    return x.tanh() * torch.as_strided(x.detach(), (1,), (1,), x.storage_offset() + 1)


def _without_gradient_in_half(x: Tensor) -> Tensor:
    return _good(x) if x.dtype.itemsize > 2 else _good(x.detach()) + 0 * x


def _single(x: Tensor) -> Tensor:
    return x.float().tanh()


def _wrong_second(x: Tensor) -> Tensor:
    return (x * x.detach()).tanh()


def _number_only(x: Tensor, temperature: Any = 1.0) -> Tensor:
    return x.tanh() / float(torch.as_tensor(temperature).detach())


BROKEN: dict[str, tuple[Callable[..., None], Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = {
    "reference": (laws_values.test_equals_reference, lambda x: x.sin(), (), {"reference": torch.tanh}),
    "hard": (laws_values.test_tends_to_the_hard_operation, _good, (), {"hard": torch.tanh}),
    "input changed": (laws_values.test_inputs_are_not_changed, _changes_its_input, (), {}),
    "layout": (
        laws_values.test_result_does_not_depend_on_memory_layout,
        _reads_memory,
        ("transposed",),
        {},
    ),
    "half": (laws_values.test_half_precision, _without_gradient_in_half, (torch.float16,), {}),
    "large": (laws_values.test_large_inputs, lambda x: x.exp().log(), (), {}),
    "dtype": (laws_values.test_result_has_the_dtype_and_the_device_of_its_input, _single, (), {}),
    "gradient": (laws_derivatives.test_gradcheck, _wrong_second, (), {}),
    "batch": (laws_derivatives.test_batch_equals_loop_and_vmap, lambda x: x / x.sum(), (), {}),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_law_refuses_what_breaks_it(broken: str) -> None:
    law, block, arguments, options = BROKEN[broken]
    with pytest.raises((AssertionError, RuntimeError)):
        law(_contract(block, **options), *arguments)
    if broken != "hard":
        law(_contract(_good, **{**options, **({"reference": torch.tanh} if broken == "reference" else {})}), *arguments)


def _soft_max(x: Tensor) -> Tensor:
    return check_floating("x", x).softmax(-1)


ALONG = Edges(lambda x, dim: torch.ones_like(x), along=True)
BROKEN_AT_EDGES: dict[str, tuple[Callable[..., None], Callable[..., Any], tuple[Any, ...]]] = {
    "ties": (
        laws_edges.test_ties_have_finite_values_and_gradients,
        lambda x: (x - x.roll(1)).abs().sqrt(),
        ((0.5, 0.5, 0.5, 0.5),),
    ),
    "infinities": (
        laws_edges.test_infinities_bring_no_nan,
        lambda x: x.softmax(-1),
        ((-torch.inf, 0.25, torch.inf, 0.0),),
    ),
    "one entry": (laws_edges.test_a_single_entry_is_exact, lambda x: x.softmax(-1) / 2, ()),
    "no entries": (laws_edges.test_no_entries_keep_their_shape_or_are_refused_by_name, torch.sum, ((0, 3), None)),
    "half": (laws_edges.test_half_precision_stays_in_every_form, lambda x: x.float().softmax(-1), (torch.float16,)),
    "integers": (laws_edges.test_integers_are_refused_by_name, torch.tanh, (None,)),
    "a list": (laws_edges.test_a_list_is_refused_by_name, torch.tensor, (None,)),
}


@pytest.mark.parametrize("broken", BROKEN_AT_EDGES)
def test_a_law_of_edges_refuses_what_breaks_it(broken: str) -> None:
    """The name is that of a public block without a method, a hard form and a temperature."""
    law, block, arguments = BROKEN_AT_EDGES[broken]
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        law(Contract("discrete.soft_step", block, _samples, edges=ALONG), *arguments)
    good = _soft_max if broken != "infinities" else torch.tanh
    law(Contract("discrete.soft_step", good, _samples, edges=ALONG), *arguments)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -1.0])
def test_the_law_of_ranges_refuses_blocks_that_take_anything(value: float) -> None:
    law = laws_edges.test_scalars_out_of_range_are_refused_by_name
    law(_contract(_good, scalars={"temperature": 0.5}), value, None)
    with pytest.raises(AssertionError):
        law(_contract(_number_only, scalars={"temperature": 0.5}), value, None)


def test_the_law_of_scalars_refuses_numbers_only() -> None:
    laws_values.test_scalars_may_be_tensors_with_a_gradient(_contract(_good, scalars={"temperature": 0.5}), None)
    with pytest.raises((AssertionError, RuntimeError)):
        laws_values.test_scalars_may_be_tensors_with_a_gradient(
            _contract(_number_only, scalars={"temperature": 0.5}), None
        )


def test_fuzzing_tells_refusals_from_accidents() -> None:
    assert not fuzz([_contract(_good)], 200)
    kinds = {fault.kind for fault in fuzz([_contract(lambda x: x.tanh() / x.sum())], 200)}
    assert "the value is not finite" in kinds


def _mean(data: Tensor, generator: torch.Generator) -> Tensor:
    if not bool(torch.isfinite(data).all()):
        raise ConvergenceError("data must be finite")
    return data.mean(0)


def _learner(learn: Callable[..., Tensor]) -> Learner:
    def planted(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        truth = torch.randn(3, generator=generator)
        return truth + 0.01 * torch.randn(50, 3, generator=generator), truth

    return Learner(
        "a.learner",
        learn,
        answer=lambda mean: mean,
        planted=planted,
        recovers=lambda answer, truth: bool((answer - truth).abs().max() < 0.1),
        sets=lambda generator: [torch.zeros(2, 3), torch.full((2, 3), torch.nan)],
        bad=[Bad((torch.zeros(2),), {}, ValueError, "data")],
    )


LEARNER_LAWS: dict[Callable[[Learner], None], Callable[..., Tensor]] = {
    laws_kinds.test_a_learner_is_its_generator_and_changes_nothing: lambda data, g: data.mean(0) + torch.rand(3),
    laws_kinds.test_a_learner_does_not_see_the_order_of_samples: lambda data, g: data[0],
    laws_kinds.test_a_learner_finds_a_planted_answer: lambda data, g: 0 * data.mean(0),
    laws_kinds.test_a_learner_ends_with_finite_numbers_or_says_why_not: lambda data, g: data.mean(0),
}


@pytest.mark.parametrize("law", LEARNER_LAWS, ids=lambda law: law.__name__)
def test_a_law_of_learners_refuses_what_breaks_it(law: Callable[[Learner], None]) -> None:
    law(_learner(_mean))
    with pytest.raises(AssertionError):
        law(_learner(LEARNER_LAWS[law]))


def _linear(generator: torch.Generator) -> nn.Module:
    layer = nn.utils.skip_init(nn.Linear, 4, 2)
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_(generator=generator)
    return layer


def test_laws_of_modules_refuse_global_draws_and_idle_parameters() -> None:
    def module(build: Callable[..., nn.Module], use: Callable[..., Tensor]) -> Module:
        return Module("a.Module", use, _samples, build=build)

    good = module(_linear, lambda layer, x: layer(x))
    laws_kinds.test_a_module_is_its_generator_its_state_and_its_dtype(good)
    laws_kinds.test_every_parameter_of_a_module_learns(good)
    with pytest.raises(AssertionError):
        laws_kinds.test_a_module_is_its_generator_its_state_and_its_dtype(
            module(lambda generator: nn.Linear(4, 2), lambda layer, x: layer(x))
        )
    with pytest.raises(AssertionError):
        laws_kinds.test_every_parameter_of_a_module_learns(module(_linear, lambda layer, x: x @ layer.weight.T))


def test_laws_of_functions_of_functions_refuse_swallowed_errors() -> None:
    def swallows(f: Callable[..., Tensor], x: Tensor) -> Tensor:
        try:
            return f(x)
        except Exception:
            return x

    entry = HigherOrder("a.map", swallows, _samples, given=torch.tanh, argument="f")
    laws_kinds.test_a_given_function_may_be_any_callable(entry)
    with pytest.raises(pytest.fail.Exception):
        laws_kinds.test_an_error_of_a_given_function_reaches_the_caller(entry, None)
