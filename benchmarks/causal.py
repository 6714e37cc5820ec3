"""Structure learners against the official programs, on the designs of their papers. ``pullback bench causal``.

``dagma`` comes from PyPI, ``notears`` from its authors' repository (xunzheng/notears). All get the samples, with the
official programs' settings. COSMO's authors train their module by a framework; here its expression is in a plain loop.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import redirect_stderr
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

    with redirect_stderr(io.StringIO()):  # no progress bar
        peer.DagmaLinear("l2").fit(samples.numpy().copy(), lambda1=0.03)  # it centres its argument in place


def _notears(samples: Tensor) -> None:
    from notears.linear import notears_linear

    notears_linear(samples.numpy().copy(), lambda1=0.1, loss_type="l2")


_STEPS = 300
"""Adam steps of COSMO, of one start."""


def _annealed(samples: Tensor) -> causal.StructureResult:
    return causal.cosmo(samples, iterations=_STEPS, restarts=1, generator=torch.Generator().manual_seed(0))


def _cosmo(samples: Tensor) -> None:
    """The expression of rmassidda/cosmo on batches of 64, as its configuration says."""
    x, nodes = (samples - samples.mean(0)).float(), samples.shape[-1]
    stream = torch.Generator().manual_seed(0)
    strength = (torch.rand(nodes, nodes, generator=stream) * 2 - 1).requires_grad_()
    priority = (0.007 * torch.randn(nodes, 1, generator=stream)).requires_grad_()
    optimizer = torch.optim.Adam([strength, priority], lr=1e-2)
    for step in range(_STEPS):
        temperature = causal.cosine_temperature(step / _STEPS, start=0.45, end=5e-4)
        oriented = torch.sigmoid((priority.mT - priority - 0.01) / temperature) * (1 - torch.eye(nodes))
        batch = x[torch.randint(len(x), (64,), generator=stream)]
        loss = torch.nn.functional.mse_loss(batch @ (strength * oriented), batch)
        loss = loss + 1e-3 * (strength.norm(p=1) + strength.norm(p=2)) + 3e-3 * priority.norm(p=2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _swapped(samples: Tensor) -> causal.StructureResult:
    return causal.topological_swaps(samples, generator=torch.Generator().manual_seed(0))


def _moved(samples: Tensor) -> causal.StructureResult:
    return causal.order_search(samples, generator=torch.Generator().manual_seed(0))


_LEARNERS = (
    ("DAGMA", causal.dagma, {"dagma": _dagma}, ((10, 2), (20, 2), (20, 4), (50, 2))),
    ("NOTEARS", causal.notears, {"notears": _notears}, ((10, 2), (20, 2))),  # on ER4 the official one takes minutes
    ("COSMO, 300 steps", _annealed, {"authors' expression": _cosmo}, ((20, 2), (50, 2))),
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
