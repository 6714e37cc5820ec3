"""What a trained tensor is called: as its module names it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from torch import Tensor, nn

__all__ = ["names_of"]


def names_of(modules: Iterable[tuple[str, nn.Module]], tensors: Iterable[tuple[str, Tensor]] = ()) -> dict[int, str]:
    """Return names by id: ``body.0.weight``; ``critic.body.0.weight`` only where two modules have that name.

    Args:
        modules: with the user's names for them; a module inside of another one is named by the outer one.
        tensors: others, with their names.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3))
        >>> sorted(names_of([("model", model), ("first", model[0])]).values())
        ['0.bias', '0.weight']
    """
    roots = sorted(modules, key=lambda entry: -sum(1 for _ in entry[1].modules()))
    found: dict[int, tuple[str, str]] = {}
    for prefix, module in roots:
        for name, parameter in module.named_parameters():
            found.setdefault(id(parameter), (prefix, name))
    count = Counter(name for _, name in found.values())
    names = {key: f"{p}.{n}" if p and count[n] > 1 else n for key, (p, n) in found.items()}
    for name, tensor in tensors:
        names.setdefault(id(tensor), name)
    return names
