"""Every code block of the guide runs and prints what the page says."""

from __future__ import annotations

import pkgutil
import re
from pathlib import Path

import pytest
import torch

from tests.docs import pages

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(DOCS.glob("*.md"))

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.stem, marks=[pytest.mark.slow] if page.stem == "cluster" else [])  # ten processes
        for page in PAGES
    ],
)
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    pages.run(page, tmp_path)


@each_page
def test_links_and_pictures_of_a_page_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([\w./-]+?\.(?:md|png|svg))[)#]", text)
    targets += re.findall(r"^```\{(?:figure|literalinclude)\} (\S+)$", text, flags=re.MULTILINE)
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing


@each_page
def test_names_in_the_text_of_a_page_exist(page: Path) -> None:
    for name in sorted(set(re.findall(r"`(pullback\.[a-z_.]+)`", page.read_text(encoding="utf-8")))):
        assert pkgutil.resolve_name(name) is not None


def test_every_page_is_in_the_index() -> None:
    listed = re.findall(r"^([a-z]+)$", (DOCS / "index.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert {page.stem for page in PAGES} == {"index", *listed}


def test_output_that_differs_and_unknown_blocks_are_errors(tmp_path: Path) -> None:
    wrong = {
        "text": '```python\nprint("a", 1.5)\n```\n\n```text\na 1...\n```\n\n```text\nb\n```\n',
        "kind": "```rust\nfn main() {}\n```\n",
        "status": "```console\n$ false\n```\n",
        "output": "```console\n$ echo a\nb\n```\n",
    }
    for name, text in wrong.items():
        page = tmp_path / f"{name}.md"
        page.write_text(text)
        with pytest.raises(AssertionError, match=rf"{name}.md:\d+"):
            pages.run(page, tmp_path)
