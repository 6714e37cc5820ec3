"""How Sphinx builds the guide and the reference: ``make docs``."""

from __future__ import annotations

import importlib
import inspect
import re
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import pullback

project = "pullback"
author = "The pullback developers"
version = release = installed("pullback")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "pullback"
html_theme_options = {"source_repository": "", "navigation_with_keys": True}
html_extra_path: list[str] = []
pygments_style = "friendly"

# Docstrings are Google's style with formulas in single or double backticks; signatures come from the annotations.
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
default_role = "code"
nitpicky = False

_REFERENCE = Path(__file__).parent / "reference"
_PACKAGES = ("audit", "relax", *pullback.FAMILIES, "lab", "data", "core")


def _write_reference() -> None:
    """Write one page a package, and for a package without ``__all__`` one that lists its modules."""
    _REFERENCE.mkdir(exist_ok=True)
    for name in _PACKAGES:
        package = importlib.import_module(f"pullback.{name}")
        summary = (inspect.getdoc(package) or "").partition("\n")[0]
        modules = [f"pullback.{name}"]
        if not getattr(package, "__all__", None):
            folder = Path(str(package.__file__)).parent
            modules += [f"pullback.{name}.{path.stem}" for path in sorted(folder.glob("[a-z]*.py"))]
        body = "\n\n".join(f".. automodule:: {module}\n   :members:" for module in modules)
        title = f"pullback.{name}"
        (_REFERENCE / f"{name}.rst").write_text(f"{title}\n{'=' * len(title)}\n\n{body}\n", encoding="utf-8")
        assert summary, f"{title} has no docstring"
    names = "\n".join(f"   {name}" for name in _PACKAGES)
    (_REFERENCE / "index.rst").write_text(
        f"The reference\n=============\n\nFrom the docstrings; each family's page lists its public names.\n\n"
        f".. toctree::\n   :maxdepth: 1\n\n{names}\n",
        encoding="utf-8",
    )


def _keep_symbols(app: Any, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Keep the stars and bars of shapes and formulas from being markup."""
    for i, line in enumerate(lines):
        if line.startswith(":vartype "):
            lines[i] = re.sub(r"(:vartype \w+:) (.+)", r"\1 ``\2``", line).replace("jaxtyping.", "")
            continue
        parts = re.split(r"(``.*?``|`.*?`)", line)
        parts[::2] = [part.replace("[*", "[\\*").replace("|", "\\|") for part in parts[::2]]
        lines[i] = "".join(parts)


def _skip_fields(app: Any, what: str, name: str, obj: object, skip: bool, options: object) -> bool | None:
    """Leave out the fields of named tuples, which stand under their class already."""
    return True if (inspect.getdoc(obj) or "").startswith("Alias for field number") else None


def setup(app: Any) -> None:
    """Write the pages of the reference before Sphinx looks for its sources."""
    _write_reference()
    app.connect("autodoc-process-docstring", _keep_symbols, priority=900)
    app.connect("autodoc-skip-member", _skip_fields)
