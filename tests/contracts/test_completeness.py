"""Every public name of every family stands in its family's tables, or is of a kind that needs no entry."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import pullback
from tests.contracts.contract import Contract, Exempt, HigherOrder, Module

TESTS = Path(__file__).parents[1]
FAMILIES = (*pullback.FAMILIES, "core")


def entries(family: str) -> list[Any]:
    """All entries of a family's tables."""
    files = sorted((TESTS / "contracts" / family).glob("[!_]*.py"))
    modules = [importlib.import_module(f"tests.contracts.{family}.{file.stem}") for file in files]
    return [entry for module in modules for entry in module.CONTRACTS]


def public(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """The public names of a family with their objects, those of its public submodules included."""
    prefix = module.__name__.removeprefix("pullback.")
    for name in module.__all__:
        value = getattr(module, name)
        if isinstance(value, ModuleType):
            yield from public(value)
        else:
            yield f"{prefix}.{name}", value


def is_result(value: Any) -> bool:
    """Whether it is a result type: a named tuple or a frozen dataclass that only holds its fields."""
    if not inspect.isclass(value):
        return False
    if issubclass(value, tuple) and hasattr(value, "_fields"):
        return True
    methods = [name for name, member in vars(value).items() if inspect.isfunction(member) and not name.startswith("_")]
    return dataclasses.is_dataclass(value) and not methods


def names_of_fields(value: Any) -> list[str]:
    return list(value._fields) if hasattr(value, "_fields") else [f.name for f in dataclasses.fields(value)]


def needs_entry(value: Any) -> bool:
    """Not a result, which :func:`test_a_result_documents_its_fields` looks at, an error or a constant."""
    return callable(value) and not is_result(value) and not (inspect.isclass(value) and issubclass(value, Exception))


@pytest.mark.parametrize("family", pullback.FAMILIES)
def test_every_public_name_has_an_entry(family: str) -> None:
    held = {entry.name.partition("[")[0] for entry in entries(family)}
    offered = dict(public(importlib.import_module(f"pullback.{family}")))
    wanted = {name for name, value in offered.items() if needs_entry(value)}
    assert not wanted - held, f"no entry in tests/contracts/{family}: {sorted(wanted - held)}"
    assert not held - set(offered), f"entries without a public name: {sorted(held - set(offered))}"


def test_every_block_of_discrete_states_its_edges_once() -> None:
    """A network and a function of functions need none: what they are called with depends on more than one tensor."""
    held = entries("discrete")
    other = {e.name.partition("[")[0] for e in held if isinstance(e, Module | HigherOrder)}
    blocks = [e for e in held if isinstance(e, Contract) and e.name.partition("[")[0] not in other]
    stated = [e.name.partition("[")[0] for e in blocks if e.edges is not None]
    assert sorted(stated) == sorted({e.name.partition("[")[0] for e in blocks})


@pytest.mark.parametrize("family", pullback.FAMILIES)
def test_a_result_documents_its_fields(family: str) -> None:
    for name, value in public(importlib.import_module(f"pullback.{family}")):
        if is_result(value):
            missing = [f for f in names_of_fields(value) if f"{f}:" not in (value.__doc__ or "")]
            assert not missing, f"the docstring of {name} says nothing about {missing}"


@pytest.mark.parametrize("family", FAMILIES)
def test_names_are_unique_and_exemptions_are_tested(family: str) -> None:
    names = [entry.name for entry in entries(family)]
    assert len(names) == len(set(names)), sorted({n for n in names if names.count(n) > 1})
    for entry in entries(family):
        if isinstance(entry, Exempt):
            assert entry.why
            text = (TESTS / entry.tested).read_text()
            assert entry.name.rpartition(".")[2].partition("[")[0] in text, f"{entry.tested} does not test {entry.name}"
