"""Finds Chromium for the browser tests; installs Debian's where that is possible, else says what to install."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome")


def find() -> str | None:
    """Return the path of a Chromium in PATH, or ``None``."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def main() -> int:
    """Return 0 where there is one, or where one could be installed."""
    if (path := find()) is None and shutil.which("apt-get") and os.geteuid() == 0:
        print("installing Debian's chromium", flush=True)
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for words in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", "chromium"]):
            # A failure shows as a browser that is still missing, below.
            subprocess.run(["apt-get", *words], env=environment, stdout=subprocess.DEVNULL, check=False)
        path = find()
    if path is None:
        print(
            f"the browser tests need Chromium: install the package chromium (one of {', '.join(NAMES)} in PATH)",
            file=sys.stderr,
        )
        return 1
    print(f"found {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
