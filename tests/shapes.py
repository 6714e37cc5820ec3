"""How the tests check annotations: as Python reads them, where an ``int`` serves for a ``float``."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
