"""Entry point of the ``pullback`` command and of ``python -m pullback``."""

from __future__ import annotations

from pullback.cli import main as run


def main() -> None:
    """Run the command line and end the process with its exit status."""
    raise SystemExit(run())


if __name__ == "__main__":
    main()
