"""What is known of a graph before it is learned: arcs that may be there, arcs that must."""

from __future__ import annotations

import torch

from pullback.causal.graphs import descendants, find_cycle
from pullback.core.checks import check_tensor
from pullback.core.shapes import Tensor

__all__ = ["check_knowledge"]


def check_knowledge(
    nodes: int, allowed: Tensor | None, required: Tensor | None, device: torch.device | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return which arcs can be in the graph, and which are.

    Args:
        nodes: ``d``.
        allowed: ``[d, d]`` booleans; all by default.
        required: ``[d, d]`` booleans; none by default.
        device: of the result.

    Returns:
        ``[d, d]`` booleans, false on the diagonal and against every directed path of required arcs; and ``required``.

    Raises:
        TypeError: no boolean tensors.
        ValueError: other shapes; required arcs with a cycle (it is named), or one that is not allowed.
    """
    for name, mask in (("allowed", allowed), ("required", required)):
        if mask is None:
            continue
        if check_tensor(name, mask).dtype != torch.bool:
            raise TypeError(f"{name} must be a boolean tensor, got {mask.dtype}")
        if tuple(mask.shape) != (nodes, nodes):
            raise ValueError(f"{name} must have shape {(nodes, nodes)}, got {tuple(mask.shape)}")
    possible = ~torch.eye(nodes, dtype=torch.bool, device=device)
    if allowed is not None:
        possible = possible & allowed.to(possible.device)
    if required is None:
        return possible, None
    required = required.to(possible.device)
    if (cycle := find_cycle(required)) is not None:
        raise ValueError(f"required has the cycle {' -> '.join(map(str, cycle))}")
    if bool((required & ~possible).any()):
        i, j = (required & ~possible).nonzero()[0].tolist()
        raise ValueError(f"required has the arc {i} -> {j}, which allowed forbids")
    return possible & ~descendants(required).mT, required
