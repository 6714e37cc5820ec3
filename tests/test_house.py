"""The house in order: one list of families, imports of public names only, no cycles."""

from __future__ import annotations

import importlib
import re
import tomllib
from pathlib import Path

import grimp
import pytest

import pullback

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "pullback"


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    """All imports, those for type checkers and those inside of functions included."""
    return grimp.build_graph("pullback")


def _families(text: str) -> set[str]:
    return set(re.findall(r"\w+", text)) & set(pullback.FAMILIES)


@pytest.mark.parametrize("family", pullback.FAMILIES)
def test_a_family_is_a_package_with_an_interface_contracts_and_a_row_in_the_readme(family: str) -> None:
    assert importlib.import_module(f"pullback.{family}").__all__
    assert list((ROOT / "tests" / "contracts" / family).glob("[!_]*.py"))
    assert f"| `pullback.{family}` |" in (ROOT / "README.md").read_text()
    assert family in pullback.__all__


def test_what_has_to_be_copied_from_the_list_of_families_is_equal_to_it() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers, pure = (next(c for c in contracts if c["type"] == kind) for kind in ("layers", "forbidden"))
    for_type_checkers = re.search(r"TYPE_CHECKING:\n(.*?)\n__version__", (PACKAGE / "__init__.py").read_text(), re.S)
    assert for_type_checkers is not None
    for copy in (" ".join(layers["layers"]), " ".join(pure["source_modules"]), for_type_checkers.group(1)):
        assert _families(copy) == set(pullback.FAMILIES)


def test_a_system_is_under_300_lines() -> None:
    long = {path.name: n for path in PACKAGE.glob("systems/*/*.py") if (n := len(path.read_text().splitlines())) >= 300}
    assert not long


def test_no_module_imports_a_private_module_of_a_family(graph: grimp.ImportGraph) -> None:
    """Only what a family's ``__init__`` offers: the package itself, or a module that stands in its ``__all__``."""
    wrong = []
    for family in pullback.FAMILIES:
        home = f"pullback.{family}"
        public = {home, *(f"{home}.{name}" for name in importlib.import_module(home).__all__)}
        for module in graph.find_descendants(home) - public:
            importers = graph.find_modules_that_directly_import(module)
            wrong += [f"{i} -> {module}" for i in importers if i != home and not i.startswith(f"{home}.")]
    assert not wrong, sorted(wrong)


def test_no_package_has_a_cycle(graph: grimp.ImportGraph) -> None:
    """Neither between families nor between the modules of a package, imports for type checkers included."""
    packages = [m for m in graph.modules if graph.find_children(m)]
    cycles = {p: breakers for p in packages if (breakers := graph.nominate_cycle_breakers(p))}
    assert not cycles
