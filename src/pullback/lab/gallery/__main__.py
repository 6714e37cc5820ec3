"""``python -m pullback.lab.gallery [RUNS] [--picture SLUG=NAME]``: keep runs as the references that are shipped."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pullback.lab.gallery.references import keep_all


def main() -> int:
    """``python -m pullback.lab.gallery.references [RUNS] [--picture SLUG=NAME]``."""
    parser = argparse.ArgumentParser(description="Keep the runs that speak for their systems as references.")
    parser.add_argument("runs", nargs="?", type=Path, default=Path("runs"))
    parser.add_argument("--picture", action="append", default=[], metavar="SLUG=NAME")
    words = parser.parse_args()
    for kept in keep_all(words.runs, dict(choice.split("=", 1) for choice in words.picture)):
        print(f"{kept.slug}: {kept.scale} scale, seed {kept.seed}, {kept.picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
