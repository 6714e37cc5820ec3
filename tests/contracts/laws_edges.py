"""Laws of edges: ties, infinities, no entries, a single one, every form of a block; arguments of the wrong kind."""

from __future__ import annotations

import functools
import importlib
import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.contracts.contract import DEVICE, Contract, Edges, HigherOrder
from tests.contracts.law import calls, gradients_of, having, on_device, values_of

INF = math.inf


def _public(contract: Contract) -> Any:
    """What the entry stands for."""
    family, *path = contract.name.partition("[")[0].split(".")
    return functools.reduce(getattr, path, importlib.import_module(f"pullback.{family}"))


def _parameters(contract: Contract) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(_public(contract)).parameters


def _options(contract: Contract) -> set[str]:
    """The parameters with a default."""
    return {name for name, p in _parameters(contract).items() if p.default is not p.empty}


def _edges(contract: Contract) -> Edges:
    assert contract.edges is not None
    return contract.edges


def _input(contract: Contract, *values: float, dtype: torch.dtype = torch.float64) -> Tensor:
    x = _edges(contract).domain(torch.tensor(values, dtype=torch.float64))
    return x.to(DEVICE, dtype).requires_grad_()


def _forms(contract: Contract) -> Iterator[dict[str, Any]]:
    """The block as the entry calls it, by every method, hard, and in the hard limit, as far as it has them."""
    yield {}
    options = _options(contract)
    if "method" in options:
        with pytest.raises(ValueError, match=r"^method must be one of") as refusal:
            _run(contract, _input(contract, 0.5), method="no such method")
        yield from ({"method": word} for word in str(refusal.value).split("got ")[0].split("'")[1::2])
    if "hard" in options:
        yield {"hard": True}
    if "temperature" in options and not any(bad.kwargs.get("temperature") == 0 for bad in contract.bad):
        yield {"temperature": 0.0}


def _run(contract: Contract, x: Tensor, dim: Any = -1, **options: Any) -> tuple[Tensor, ...]:
    edges = _edges(contract)
    along = {"dim": dim} if _has_dim(contract) else {}
    result = contract.run(*edges.args(x), **edges.words(x), **along, **options)
    result = result if edges.outputs is None else edges.outputs(result)
    return (result,) if isinstance(result, Tensor) else tuple(result)


def _has_dim(contract: Contract) -> bool:
    return _edges(contract).along and "dim" in _parameters(contract)


def _dims(contract: Contract, x: Tensor) -> range:
    """The dimensions along which the block may work."""
    return range(-x.ndim, 0) if _has_dim(contract) else range(-1, 0)


def _hard(contract: Contract, x: Tensor, dim: int = -1) -> Tensor:
    edges = _edges(contract)
    return on_device(edges.hard(x.detach().cpu(), dim) if edges.along else edges.hard(x.detach().cpu()))


def _has_finite_gradient(parts: tuple[Tensor, ...], x: Tensor, options: dict[str, Any]) -> None:
    connected = [p for p in parts if p.requires_grad]
    # An infinite value has no finite cotangent that means anything: it is left out of the loss.
    finite = [torch.where(torch.isfinite(p), p, 0.0) for p in connected]
    weights = [torch.linspace(1, 2, p.numel(), dtype=p.dtype, device=p.device).view(p.shape) for p in connected]
    for gradient in gradients_of([w * p for w, p in zip(weights, finite, strict=True)], [x]):
        assert gradient is None or torch.isfinite(gradient).all(), (options, gradient)


_having_edges = having(lambda c: c.edges is not None)
_TIES = [(0.5, 0.5, 0.5, 0.5), (1.0, 0.0, 1.0, 0.0), (0.0, -0.0, 0.5, 0.5)]
_INFINITIES = [(INF, -INF, 0.25, 0.5), (-INF, 0.25, 1.5, -INF), (INF, INF, 0.25, 0.0)]


@_having_edges
@pytest.mark.parametrize("values", _TIES, ids=str)
def test_ties_have_finite_values_and_gradients(contract: Contract, values: tuple[float, ...]) -> None:
    for options in _forms(contract):
        x = _input(contract, *values)
        parts = _run(contract, x, **options)
        assert all(torch.isfinite(p).all() for p in parts), options
        _has_finite_gradient(parts, x, options)


@_having_edges
@pytest.mark.parametrize("values", _INFINITIES, ids=str)
def test_infinities_bring_no_nan(contract: Contract, values: tuple[float, ...]) -> None:
    """NaN is where the hard operation has it, or where the entry says so; infinities are refused where it says so."""
    edges = _edges(contract)
    for options in _forms(contract):
        x = _input(contract, *values)
        if edges.refuses is not None and edges.refuses[0](x.detach()):
            with pytest.raises(ValueError, match=edges.refuses[1]):
                _run(contract, x, **options)
            continue
        if edges.nan is not None and edges.nan(x.detach(), options):
            continue
        parts = _run(contract, x, **options)
        allowed = _hard(contract, x).isnan()
        for part in parts:
            assert not (part.isnan() & ~allowed).any(), (options, part)
        if not allowed.any():
            _has_finite_gradient(parts, x, options)


@having(lambda c: c.edges is not None and c.edges.along)
def test_a_single_entry_is_exact(contract: Contract) -> None:
    row = _input(contract, 0.75, -1.5)
    for dim in (0, -1) if _has_dim(contract) else (-1,):
        x = row.unsqueeze(dim)
        for options in _forms(contract):
            expected = _hard(contract, x, dim)
            if _edges(contract).soft_single is not None and not options.get("hard"):
                expected = _edges(contract).soft_single(x.detach(), dim)
            for part in _run(contract, x, dim, **options):
                torch.testing.assert_close(part.detach(), expected.to(part.dtype), rtol=1e-12, atol=1e-12)


@_having_edges
@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3)], ids=str)
def test_no_entries_keep_their_shape_or_are_refused_by_name(
    contract: Contract, shape: tuple[int, ...], without_shape_checks: None
) -> None:
    edges = _edges(contract)
    x = torch.zeros(shape, device=DEVICE, requires_grad=True)
    for dim in _dims(contract, x):
        for options in _forms(contract):
            if edges.empty is not None and shape[dim] == 0:
                with pytest.raises(ValueError, match=f"^{edges.empty}"):
                    _run(contract, x, dim, **options)
                continue
            parts = _run(contract, x, dim, **options)
            assert {p.shape for p in parts} == {_hard(contract, x, dim).shape}, (dim, options)
            for gradient in gradients_of(parts, [x]):
                assert gradient is None or gradient.shape == shape


@_having_edges
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision_stays_in_every_form(contract: Contract, dtype: torch.dtype) -> None:
    for options in _forms(contract):
        x = _input(contract, 0.75, -1.5, 2.0, 0.25, dtype=dtype)
        parts = _run(contract, x, **options)
        assert {p.dtype for p in parts} == {dtype}, options
        assert all(torch.isfinite(p).all() for p in parts), options
        _has_finite_gradient(parts, x, options)


def _is_direct(contract: Contract) -> bool:
    """Whether an argument of the laws reaches the public name as it is."""
    block = contract.block.func if isinstance(contract.block, functools.partial) else contract.block
    return contract.edges is not None or (type(contract) is Contract and block is _public(contract))


def _first(contract: Contract, change: Callable[[Tensor], Any]) -> tuple[Any, ...]:
    """The arguments of a call with another first floating tensor."""
    if contract.edges is not None:
        return contract.edges.args(change(_input(contract, 0.5, 0.25).detach()))
    args = calls(contract)[0].args
    place = next(i for i, a in enumerate(args) if isinstance(a, Tensor) and a.is_floating_point())
    return (*args[:place], change(args[place]), *args[place + 1 :])


def _words(contract: Contract, x: Tensor) -> dict[str, Any]:
    """The keyword arguments that go with it."""
    if contract.edges is None:
        return calls(contract)[0].kwargs
    return {**contract.edges.words(x), **({"dim": -1} if _has_dim(contract) else {})}


@having(_is_direct)
def test_integers_are_refused_by_name(contract: Contract, without_shape_checks: None) -> None:
    args = _first(contract, lambda t: torch.ones_like(t, dtype=torch.int64))
    first = 1 if isinstance(contract, HigherOrder) else 0  # the function stands before what the entry hands over
    with pytest.raises(TypeError, match=f"^{list(_parameters(contract))[first + _place(contract)]} must be"):
        contract.run(*args, **_words(contract, args[_place(contract)]))


@having(_is_direct)
def test_a_list_is_refused_by_name(contract: Contract, without_shape_checks: None) -> None:
    """Only the argument is a list: those that are made from it are tensors."""
    args = _first(contract, lambda t: t)
    place = _place(contract)
    given = [*args[:place], args[place].tolist(), *args[place + 1 :]]
    with pytest.raises(TypeError, match=r"^\w+ must be a (torch\.Tensor|floating tensor), got (list|float)"):
        contract.run(*given, **_words(contract, args[place]))


def _place(contract: Contract) -> int:
    """Which argument the laws of edges vary."""
    if contract.edges is not None:
        return contract.edges.place
    marked = _first(contract, lambda t: t)
    return next(i for i, a in enumerate(marked) if isinstance(a, Tensor) and a.is_floating_point())


def _scalars(contract: Contract) -> set[str]:
    """The scalars of an entry, and a temperature that is a number only."""
    return {*contract.scalars} | (_options(contract) & {"temperature"} if contract.edges is not None else set())


@having(_scalars)
@pytest.mark.parametrize("value", [math.nan, INF, -INF, -1.0])
def test_scalars_out_of_range_are_refused_by_name(contract: Contract, value: float, without_shape_checks: None) -> None:
    """No scalar is NaN, a temperature is finite and not negative; others may be infinite and say so or are right."""
    call = calls(contract)[0]
    for name in _scalars(contract):
        refused = math.isnan(value) or name in ("temperature", "steepness")
        for given in (value, torch.tensor(value, dtype=torch.float64)):
            try:
                result = contract.run(*call.args, **{**call.kwargs, name: given})
            except ValueError as error:
                assert {name, str(value)} <= set(re.findall(r"[-\w.]+", str(error))), error  # noqa: PT017
            else:
                assert not refused, name
                assert not any(v.isnan().any() for v in values_of(contract, result)), name


@having(lambda c: _is_direct(c) and "method" in _options(c))
def test_an_unknown_method_is_refused_with_the_list(contract: Contract, without_shape_checks: None) -> None:
    call = calls(contract)[0]
    with pytest.raises(ValueError, match=r"^method must be one of '.*', got 'no such method'"):
        contract.run(*call.args, **{**call.kwargs, "method": "no such method"})


@having(lambda c: c.edges is not None and _has_dim(c))
def test_a_dimension_out_of_range_is_refused(contract: Contract, without_shape_checks: None) -> None:
    x = _input(contract, 0.5, 0.25)
    with pytest.raises(IndexError, match=r"dim must be in \[-1, 0\] for shape \(2,\), got 5"):
        _run(contract, x, dim=5)
    with pytest.raises(TypeError, match="dim must be an integer"):
        _run(contract, x, dim=0.5)
