"""The one table of stops: what a stop of each code may be taken for. A false alarm is cured here.

A stop is written on purpose or lost by accident, and its code alone does not tell which: the table says which
explanations are open to it, :mod:`pullback.audit.judge.intent` looks for their shape in the trace.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "DIVISIONS",
    "FILLS",
    "GUARDED",
    "GUARDS",
    "HIDDEN_SHARE",
    "NEAR_POLE",
    "PICKS",
    "READS",
    "REMAINDERS",
    "STOPS",
    "StopKind",
    "kind_of",
]


@dataclass(frozen=True)
class StopKind:
    """What a stop can be.

    Attributes:
        said: somebody wrote it in order to stop a gradient: it may leave frozen parts without one, and the share of
            the derivative that it hides is meant.
        value: it takes one value out of the graph, so that it can be an encoder's code that its decoder needs.
        region: it stops everything inside a block, so that all lines of the block are one stop.
        sample: what it returns may be a generator's sample, shown to a discriminator.
        to_python: it may be the first half of an exit to a number or an array on the same line.
        departs: the value has left for Python: an action, a logged number.
        drawn: it draws a random value, whose log-probability may carry the gradient.
        found: it returns positions, which may pick from the values that they were found in.
        feature: it returns positions, truth values or whole numbers, which are lost where a layer takes them as input.
        mask: it returns truth values, which may fill or pick entries on purpose.
        relaxable: :func:`pullback.relaxed` replaces it.
    """

    said: bool = False
    value: bool = False
    region: bool = False
    sample: bool = False
    to_python: bool = False
    departs: bool = False
    drawn: bool = False
    found: bool = False
    feature: bool = False
    mask: bool = False
    relaxable: bool = False


STOPS: dict[str, StopKind] = {
    "cut.detach": StopKind(said=True, value=True, sample=True, to_python=True),
    "cut.data": StopKind(said=True, value=True, sample=True, to_python=True),
    "cut.no_grad": StopKind(said=True, region=True, sample=True, to_python=True),
    "cut.inference": StopKind(said=True, region=True, sample=True),
    "cut.create_graph": StopKind(said=True),
    "cut.item": StopKind(departs=True),
    "cut.number": StopKind(departs=True),
    "cut.numpy": StopKind(departs=True),
    "cut.sampling": StopKind(drawn=True, relaxable=True),
    "cut.index": StopKind(found=True, feature=True, relaxable=True),
    "cut.comparison": StopKind(feature=True, mask=True, relaxable=True),
    "cut.cast": StopKind(feature=True),
    "cut.rebuild": StopKind(feature=True),
    "control-flow.branch": StopKind(departs=True),
    "cut.custom": StopKind(),
    "cut.operation": StopKind(),
    "cut.optimizer": StopKind(),
    "cut.unstepped": StopKind(),
    "cut.unregistered": StopKind(),
}
"""By code; ``zero.*`` (a step: the path is there, its derivative is zero) has a row of its own below."""

_STEP = StopKind(relaxable=True)

HIDDEN_SHARE = 0.1
"""Share of the smoothed derivative that a stop may hide before it is an error."""

PICKS = frozenset("gather take_along_dim __getitem__ index_select masked_select".split())
"""Read entries at positions: what they pick carries its own gradient."""

READS = PICKS - {"index_select", "masked_select"}
"""Read one entry a row: the log-probability of what was drawn, or of a label."""

FILLS = frozenset("masked_fill masked_fill_ masked_scatter __getitem__ __setitem__".split())
"""Use a mask to fill or to pick entries."""

GUARDS = FILLS | {"where"}
"""Use a mask to replace values."""

GUARDED = frozenset(
    """sqrt rsqrt log log2 log10 pow __pow__ acos asin acosh atanh atan2 norm vector_norm linalg_norm reciprocal logit
    div true_divide __truediv__ __rtruediv__ __rdiv__ normalize std var""".split()
)
"""Have a pole, where a guard replaces their argument or their result."""

DIVISIONS = frozenset("div div_ true_divide __truediv__".split())
"""Divide by the number of entries that a mask keeps."""

NEAR_POLE = 1e-2
"""Distance from 0 or 1 up to which a threshold guards a pole."""

REMAINDERS = frozenset("sub rsub add add_ sub_".split())
"""Turn a value and its rounded self into a remainder."""


def kind_of(code: str) -> StopKind:
    """Return the row of a code.

    Raises:
        KeyError: no stop has that code.
    """
    return _STEP if code.startswith("zero.") else STOPS[code]
