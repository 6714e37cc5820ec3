"""A trellis of experts: at each level one thin expert is run, whichever was run before it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from pullback.core.checks import check_floating, check_scalar
from pullback.core.shapes import Float, Scalar, Tensor
from pullback.discrete.routing import Router, Routing, dispatch

__all__ = ["Trellis", "TrellisOutput"]


class TrellisOutput(NamedTuple):
    """What a trellis computes.

    Attributes:
        logits: ``[n, *out]``.
        routings: the :class:`Routing` of each level, of all samples; of all paths where several are followed.
    """

    logits: Float[Tensor, "n *out"]
    routings: tuple[Routing, ...]


class Trellis(nn.Module):
    """Levels of parallel experts, before each a router; every expert may follow every expert of the level before.

    A sample costs one expert a level (``k`` with routers of ``k``), and a wrong turn can be mended, as in a tree it
    cannot. With ``links`` some steps are forbidden; a tree is a trellis in which every expert has one predecessor.

    With a ``threshold`` samples whose router is unsure (entropy of its probabilities above the threshold) follow the
    two likeliest experts, and the logits of all paths of a sample are averaged.

    Args:
        stem: run on every sample.
        levels: for each level its experts, modules row by row, all from one shape to one shape.
        routers: for each level a :class:`Router` over its experts, which sees what the experts will see.
        head: run on every sample at the end.
        links: for each level ``[experts before, experts]`` booleans, which may follow which, or ``None`` (all); the
            first level follows the stem, one row. Needs routers with ``k = 1``.

    Raises:
        TypeError: a part is no module, a router no :class:`Router`.
        ValueError: there is no level, or the numbers of routers, experts or links do not fit.

    Example:
        >>> levels = [[nn.Linear(2, 2) for _ in range(count)] for count in (2, 4)]
        >>> trellis = Trellis(nn.Identity(), levels, [Router(2, 2), Router(2, 4)], nn.Linear(2, 10))
        >>> output = trellis(torch.randn(5, 2))
        >>> output.logits.shape, [routing.index.shape for routing in output.routings]
        (torch.Size([5, 10]), [torch.Size([5, 1]), torch.Size([5, 1])])

    References:
        Bicici, Meral, Akarun (2024), Conditional information gain trellis, section 3.
    """

    def __init__(
        self,
        stem: nn.Module,
        levels: Sequence[Iterable[nn.Module]],
        routers: Sequence[Router],
        head: nn.Module,
        *,
        links: Sequence[Tensor | None] | None = None,
    ) -> None:
        super().__init__()
        self.stem, self.head = stem, head
        self.levels = nn.ModuleList(nn.ModuleList(experts) for experts in levels)
        self.routers = nn.ModuleList(routers)
        self.links = [None] * len(self.levels) if links is None else list(links)
        if not len(self.levels) == len(self.routers) == len(self.links) or not len(self.levels):
            raise ValueError(
                f"levels, routers and links must be as many, and at least one, got {len(self.levels)}, "
                f"{len(self.routers)} and {len(self.links)}"
            )
        before = 1
        for number, (experts, router, link) in enumerate(zip(self.levels, routers, self.links, strict=True)):
            if not isinstance(router, Router):
                raise TypeError(f"routers[{number}] must be a Router, got {type(router).__name__}")
            if router.experts != len(experts):  # type: ignore[arg-type]
                raise ValueError(f"routers[{number}] must have {len(experts)} experts, got {router.experts}")  # type: ignore[arg-type]
            if link is not None and (link.shape != (before, router.experts) or router.k > 1):
                raise ValueError(
                    f"links[{number}] must have shape ({before}, {router.experts}) and its router k = 1, got "
                    f"{tuple(link.shape)} and k = {router.k}"
                )
            before = router.experts

    def forward(
        self,
        x: Float[Tensor, "n *features"],
        *,
        temperature: Scalar | None = None,
        random: float = 0.0,
        threshold: float | None = None,
        generator: torch.Generator | None = None,
    ) -> TrellisOutput:
        """Return logits and routings.

        Args:
            x: ``[n, *features]``.
            temperature: of all routers, in place of their own.
            random: probability with which a sample goes to an expert drawn evenly, at each level anew.
            threshold: entropy in nats, >= 0, above which the second expert is followed as well; ``None``: never.
            generator: of what is drawn.

        Raises:
            TypeError: ``x`` is not floating.
            ValueError: a number is out of range.
        """
        check_floating("x", x)
        if threshold is not None:
            check_scalar("threshold", threshold, zero=True)
        options: dict[str, Any] = {"temperature": temperature, "random": random, "generator": generator}
        x = self.stem(x)
        owner = torch.arange(len(x), device=x.device)
        came = torch.zeros_like(owner)
        routings = []
        for experts, router, link in zip(self.levels, self.routers, self.links, strict=True):
            allowed = None if link is None else link.to(x.device)[came]
            routing = router(x, allowed=allowed, **options)
            routings.append(routing)
            # A constant weight of 1 is left out, and its column with it.
            index, weights = routing.index, None if router.is_constant else routing.weights
            if threshold is not None:
                rows, index = _paths(routing, threshold)
                x, owner, weights = x[rows], owner[rows], None
            x = dispatch(x, index if weights is not None else index[:, 0], experts, weights=weights)  # type: ignore[arg-type]
            came = index[:, 0]
        logits = self.head(x)
        if threshold is not None:
            count = int(owner.max()) + 1 if len(owner) else 0
            paths = owner.bincount(minlength=count).to(logits)
            total = logits.new_zeros(count, *logits.shape[1:]).index_add(0, owner, logits)
            logits = total / paths.reshape(-1, *[1] * (logits.ndim - 1))
        return TrellisOutput(logits, tuple(routings))


def _paths(routing: Routing, threshold: float) -> tuple[Tensor, Tensor]:
    """Which samples go on, those that are unsure twice, and to which expert."""
    p = routing.probabilities.detach()
    entropy = -torch.xlogy(p, p).sum(-1)
    unsure = (entropy > threshold).nonzero().flatten()
    second = p[unsure].scatter(-1, routing.index[unsure, :1], -1.0).argmax(-1, keepdim=True)
    rows = torch.cat([torch.arange(len(p), device=p.device), unsure])
    return rows, torch.cat([routing.index[:, :1], second])
