"""Entry point of the ``pullback`` command and of ``python -m pullback``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; say which extra to install when it is missing."""
    try:
        from pullback.cli import main as run
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] == "pullback":
            raise
        print(
            f"pullback: the command needs '{error.name}'; install it with: pip install 'pullback[lab]'", file=sys.stderr
        )
        raise SystemExit(2) from None
    raise SystemExit(run())


if __name__ == "__main__":
    main()
