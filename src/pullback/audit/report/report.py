"""The report of an audit: its data, and the forms in which it is read."""

from __future__ import annotations

import html
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pullback.audit.report.annotations import to_annotations
from pullback.audit.report.findings import Audited
from pullback.audit.report.html import to_html
from pullback.audit.report.sarif import to_sarif
from pullback.audit.report.terminal import to_text
from pullback.core.choices import check_choice
from pullback.core.files import write_atomically

__all__ = ["Report"]


@dataclass(frozen=True, repr=False)
class Report(Audited):
    """All that one audit found, and the forms to read it in.

    ``print(report)`` shows what the terminal shows, a notebook shows the page of :meth:`to_html`.

    Attributes:
        target: what was audited.
        findings: sorted by severity, then file and line.
        lines: measurements of each traced source line.
        edges: ``(i, j)``: values of ``lines[i]`` were used by ``lines[j]``.
        parameters: the trainable tensors and their gradients.
        notes: what the audit cannot see, or did not do.
        silenced: findings silenced by ``# audit: ok`` or ``ignore=``.
        steps: backward passes audited.
        error: the traceback of the user's code if it raised, else ``None``.
        landscape: the loss along its gradient and across it, where it was asked for.
        memory: what lines keep for the backward pass, the largest first, where that was asked for.
        layers: what passes through each call of a layer, where that was asked for.
        noise: signal and noise of the gradients, where that was asked for and the program draws random numbers.

    Example:
        >>> report = Report(target="f", steps=2)
        >>> report
        <Report of f: no findings, 2 backward passes>
        >>> report.ok, report.exit_code()
        (True, 0)
        >>> Report.from_dict(report.to_dict()) == report
        True
    """

    def __str__(self) -> str:
        return to_text(self)

    def __repr__(self) -> str:
        counts = [f"{count} {severity}" for severity, count in self.counts.items() if count] or ["no findings"]
        passes = f"{self.steps} backward pass{'' if self.steps == 1 else 'es'}"
        return f"<Report of {self.target}: {', '.join([*counts, passes])}>"

    def _repr_html_(self) -> str:
        """What a notebook shows: the page in a frame of its own, so that neither's styles touch the other."""
        page = html.escape(to_html(self))
        return f'<iframe sandbox srcdoc="{page}" style="width: 100%; height: 36em; border: 0"></iframe>'

    def to_html(self) -> str:
        """Return the report as a page that needs no other file and no network."""
        return to_html(self)

    def to_sarif(self) -> dict[str, Any]:
        """Return the findings as a SARIF 2.1.0 log, for code scanning and editors."""
        return to_sarif(self)

    def to_annotations(self) -> str:
        """Return the findings as annotations of GitHub Actions, one a line."""
        return to_annotations(self)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the report to a file, atomically, in the form that the file's suffix names.

        Args:
            path: ``.html``, ``.json``, ``.sarif`` or ``.txt``; the folder must exist.

        Returns:
            The path.

        Raises:
            ValueError: another suffix.
            OSError: the folder is missing or not writable.
        """
        target = Path(path)
        forms = {
            ".html": self.to_html,
            ".json": self.to_json,
            ".sarif": lambda: json.dumps(self.to_sarif(), indent=2, allow_nan=False),
            ".txt": lambda: f"{self}\n",
        }
        check_choice("suffix of path", target.suffix.lower(), forms)
        # What UTF-8 has no form for, half a surrogate pair in a file's name, is written as JSON writes it.
        write_atomically(target, forms[target.suffix.lower()]().encode("utf-8", "backslashreplace"))
        return target
