"""Structure learners against the official programs, on the designs of their papers. ``pullback bench causal``.

``dagma`` comes from PyPI, ``notears`` from its authors' repository (xunzheng/notears). All get the samples, with the
official programs' settings.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pullback import causal
from pullback.lab.bench import Case


def _samples(nodes: int, degree: int) -> Tensor:
    stream = torch.Generator().manual_seed(0)
    graph = causal.random_dag(nodes, degree * nodes, generator=stream)
    weights = causal.random_weights(graph, generator=stream).double()
    return causal.LinearSCM(weights).rsample(1000, generator=stream)


def _ours(learn: Callable[..., Any], samples: Tensor) -> None:
    learn(samples)


def _dagma(samples: Tensor) -> None:
    import dagma.linear as peer

    peer.DagmaLinear("l2").fit(samples.numpy().copy(), lambda1=0.03)  # it centres its argument in place


def _notears(samples: Tensor) -> None:
    from notears.linear import notears_linear

    notears_linear(samples.numpy().copy(), lambda1=0.1, loss_type="l2")


def _swapped(samples: Tensor) -> causal.StructureResult:
    return causal.topological_swaps(samples, generator=torch.Generator().manual_seed(0))


def _moved(samples: Tensor) -> causal.StructureResult:
    return causal.order_search(samples, generator=torch.Generator().manual_seed(0))


_LEARNERS = (
    ("DAGMA", causal.dagma, {"dagma": _dagma}, ((10, 2), (20, 2), (20, 4), (50, 2))),
    ("NOTEARS", causal.notears, {"notears": _notears}, ((10, 2), (20, 2))),  # on ER4 the official one takes minutes
    ("order search by swaps", _swapped, {"dagma": _dagma}, ((10, 2), (20, 2), (20, 4), (50, 2))),
    ("order search by moves", _moved, {"dagma": _dagma}, ((20, 2), (50, 2), (100, 2))),
)

CASES = [
    Case(
        f"{name}, {nodes} nodes, ER{degree}, 1 000 samples",
        partial(_samples, nodes, degree),
        partial(_ours, learn),
        peers,
    )
    for name, learn, peers, designs in _LEARNERS
    for nodes, degree in designs
]
