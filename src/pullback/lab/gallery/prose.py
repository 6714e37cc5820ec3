"""Docstrings as HTML: paragraphs, lists, indented blocks and ``code``; everything else is text."""

from __future__ import annotations

import re

from markupsafe import Markup, escape

__all__ = ["inline", "prose"]

_CODE = re.compile(r"``([^`]+)``|(?::[a-z]+:)?`~?([^`]+)`")  # `code`, and roles such as :func:`name`
_ITEM = re.compile(r"[*-] +")


def inline(text: str) -> Markup:
    """Return one line of text with ``code`` marked.

    Example:
        >>> print(inline("a < b in ``x[i]``"))
        a &lt; b in <code>x[i]</code>
    """
    parts: list[Markup] = []
    end = 0
    for match in _CODE.finditer(text):
        parts += [escape(text[end : match.start()]), Markup("<code>{}</code>").format(match[1] or match[2])]
        end = match.end()
    return Markup("").join([*parts, escape(text[end:])])


def prose(text: str) -> Markup:
    """Return a docstring's paragraphs, lists and indented blocks.

    Example:
        >>> print(prose("One\\nline.\\n\\n* a\\n* b\\n\\n    x = 1"))
        <p>One line.</p><ul><li>a</li><li>b</li></ul><pre>x = 1</pre>
    """
    return Markup("").join(_block(block) for block in re.split(r"\n\s*\n", text.strip("\n")) if block.strip())


def _block(block: str) -> Markup:
    lines = block.splitlines()
    if all(line.startswith("    ") for line in lines):
        return Markup("<pre>{}</pre>").format("\n".join(line[4:] for line in lines))
    first = next((index for index, line in enumerate(lines) if _ITEM.match(line.strip())), None)
    if first is None:
        return Markup("<p>{}</p>").format(inline(" ".join(line.strip() for line in lines)))
    items: list[str] = []
    for line in lines[first:]:
        if _ITEM.match(line.strip()):
            items.append(_ITEM.sub("", line.strip(), count=1))
        else:
            items[-1] += " " + line.strip()
    before = Markup("<p>{}</p>").format(inline(" ".join(x.strip() for x in lines[:first]))) if first else Markup("")
    listed = Markup("").join(Markup("<li>{}</li>").format(inline(item)) for item in items)
    return before + Markup("<ul>{}</ul>").format(listed)
